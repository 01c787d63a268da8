//! Host sides of the guest's serial console.

mod stream;
mod terminal;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use plinth_device::CharBackend;

pub use stream::Stream;
pub use terminal::RawTerminal;

use crate::cli::SerialChoice;
use crate::failure::{Code, Failure, Result};

/// What the console gives to the rest of a run.
pub struct Console {
    /// The host side of the guest's serial line. Its last bytes are written when [`Stream::finish`] is called.
    pub stream: Arc<Stream>,
    /// Standard input is a terminal that the console has taken over.
    pub interactive: bool,
}

impl Console {
    /// Opens a console; `None` where the guest is to have none.
    ///
    /// # Errors
    /// The host has no such file, or no thread.
    pub fn open(choice: &SerialChoice) -> Result<Option<Self>> {
        let failed = |e: io::Error| Failure::from_error(Code::HostResource, "cannot open the console", &e);
        let (input, output, interactive): (Option<OwnedFd>, OwnedFd, bool) = match choice {
            SerialChoice::None => return Ok(None),
            SerialChoice::Stdio => {
                let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
                let interactive = rustix::termios::isatty(input);
                let input = input.try_clone_to_owned().map_err(failed)?;
                (Some(input), output.try_clone_to_owned().map_err(failed)?, interactive)
            }
            SerialChoice::File(path) => (None, create(path)?.into(), false),
        };
        let stream = Stream::new(input, output, interactive).map_err(failed)?;
        Ok(Some(Self { stream, interactive }))
    }

    /// The device's host side.
    pub fn backend(&self) -> Arc<dyn CharBackend> {
        self.stream.clone()
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| {
        let what = format!("cannot write the serial console to '{}'", path.display());
        Failure::from_error(Code::Failed, &what, &e)
    })
}

/// Whether standard error is a terminal, where remarks to the user belong.
pub fn remarks_wanted() -> bool {
    rustix::termios::isatty(rustix::stdio::stderr().as_fd())
}
