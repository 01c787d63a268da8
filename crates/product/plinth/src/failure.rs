//! What a command prints and returns when it fails: what failed, why, and what to do.

use std::error::Error as StdError;
use std::process::ExitCode;

use plinth_image::ErrorKind as ImageKind;
use plinth_net::NetError;
use plinth_vm::Error as VmError;

use crate::cli::OutputFormat;
use crate::printable::printable;

/// The process's exit codes. Their text is part of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Something failed that has no code of its own: a file, the network.
    Failed = 1,
    /// The command line is wrong (clap's own code too).
    Usage = 2,
    /// The guest crashed.
    GuestCrashed = 3,
    /// The host lacks memory, threads or another resource.
    HostResource = 4,
    /// Another process uses the disk.
    DiskBusy = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What the process returns.
    pub code: Code,
    /// What failed and why, `: ` between.
    pub message: String,
    /// What to do, a line each.
    pub help: Vec<String>,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: Vec::new() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    #[must_use]
    pub fn help(mut self, line: impl Into<String>) -> Self {
        self.help.push(line.into());
        self
    }

    /// `what`, then the error and what caused it.
    pub fn from_error(code: Code, what: &str, error: &dyn StdError) -> Self {
        let mut message = what.to_owned();
        let mut next = Some(error);
        while let Some(e) = next {
            let text = e.to_string();
            // Errors that show their source in their own text need not show it twice.
            if !message.ends_with(&text) {
                if !message.is_empty() {
                    message.push_str(": ");
                }
                message.push_str(&text);
            }
            next = e.source();
        }
        Self::new(code, message)
    }

    /// Writes to standard error; a console that is gone is no reason to fail once more.
    pub fn print(&self, format: OutputFormat) {
        use std::io::Write;
        let mut err = std::io::stderr().lock();
        let _ = match format {
            OutputFormat::Json => {
                let value =
                    serde_json::json!({ "error": self.message, "help": self.help, "code": self.code as u8 });
                writeln!(err, "{value}")
            }
            OutputFormat::Text => {
                let mut text = format!("error: {}\n", self.message);
                for line in &self.help {
                    text.push_str(&format!("help: {line}\n"));
                }
                err.write_all(printable(&text).as_bytes())
            }
        };
    }
}

impl From<plinth_image::Error> for Failure {
    fn from(e: plinth_image::Error) -> Self {
        let code = if e.kind == ImageKind::Busy { Code::DiskBusy } else { Code::Failed };
        let failure = Self::from_error(code, "", &e);
        match e.kind {
            ImageKind::NotFound => failure.help("check the path given with --disk"),
            ImageKind::Busy => failure
                .help("stop the machine that uses it (`fuser` names the process)")
                .help("several machines can share a disk that all open with readonly=on"),
            ImageKind::ReadOnly => failure
                .help("open it with --disk path=FILE,readonly=on, or keep it unchanged with --snapshot"),
            ImageKind::Format => {
                failure.help("use --disk path=FILE,format=raw if the guest is to see these very bytes")
            }
            _ => failure,
        }
    }
}

impl From<VmError> for Failure {
    fn from(e: VmError) -> Self {
        use plinth_machine::Error as M;
        let code = match &e {
            VmError::Memory(_) | VmError::Thread { .. } | VmError::Vcpus { .. } => Code::HostResource,
            VmError::Machine(M::TooMany { .. } | M::NoSlot(_) | M::NoFirmware(_)) => Code::Usage,
            VmError::Machine(_) => Code::Failed,
        };
        let failure = Self::from_error(code, "", &e);
        match e {
            VmError::Memory(_) => failure.help("give the guest less memory with --memory"),
            VmError::Machine(M::Read { what, .. }) => {
                failure.help(format!("check the path given with --{what} and the file's permissions"))
            }
            VmError::Machine(M::WrongIsa { what, wanted, .. }) => {
                failure.help(format!("give a {what} that is built for {wanted}, or another --arch"))
            }
            VmError::Machine(M::NoFirmware(_)) => {
                failure.help("leave out --firmware, or choose a board that runs it: --board virt")
            }
            VmError::Machine(M::NoRoom { .. }) => failure.help("give the guest more memory with --memory"),
            _ => failure,
        }
    }
}

impl From<plinth_machine::Error> for Failure {
    fn from(e: plinth_machine::Error) -> Self {
        VmError::from(e).into()
    }
}

impl From<NetError> for Failure {
    fn from(e: NetError) -> Self {
        Self::from_error(Code::Failed, "cannot make the user network", &e)
            .help("choose another host port with --publish, or run without a network with --net none")
    }
}
