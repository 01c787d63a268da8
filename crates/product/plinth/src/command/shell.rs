//! Completions and manual pages, made from the command line's own description.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::failure::{Code, Failure, Result};

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failure {
    move |e| Failure::from_error(Code::Failed, what, &e)
}

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "plinth", &mut script);
    print(&script)
}

/// Prints the manual page, or writes all pages into `dir`.
pub fn man(dir: Option<&Path>) -> Result<ExitCode> {
    if let Some(dir) = dir {
        std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
            .map_err(failed(&format!("cannot write manual pages into '{}'", dir.display())))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed("cannot make the manual page"))?;
    print(&page)
}

fn print(bytes: &[u8]) -> Result<ExitCode> {
    match io::stdout().write_all(bytes) {
        // The reader has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        r => r.map(|()| ExitCode::SUCCESS).map_err(failed("cannot write to standard output")),
    }
}
