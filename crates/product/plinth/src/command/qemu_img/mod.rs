//! `qemu-img`: the arguments, texts and exit codes of QEMU's disk tool.
//!
//! What QEMU does and Plinth does not, here too: an image cannot name any file outside of its own folder. Names that
//! the user gives (`-b`, `-B`, `json:`, `driver=`) are opened, and so are files below the folders in the environment
//! variable `PLINTH_ALLOW_BACKING` (separated by colons). Without `-f`, a file that has no mark of another format is
//! taken for raw, as QEMU does.

mod bench;
mod bitmap;
mod blkdebug;
mod chain;
mod check;
mod compare;
mod convert;
mod create;
mod getopt;
mod info;
mod json;
mod links;
mod map;
mod names;
mod nbd;
mod open;
mod option_help;
mod options;
mod quorum;
mod refusal;
mod resize;
mod secret;
mod snapshot;
mod target;
mod through;
mod tree;
mod words;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use plinth_image::Error;

use crate::printable::printable;

/// What the peer's version is that this speaks like.
const VERSION: &str = "10.0.0";

/// The end of a command.
#[derive(Debug)]
pub enum Exit {
    /// Done, with this exit code; all is said.
    Code(u8),
    /// Failed: the message, and the exit code.
    Failed(String, u8),
}

impl Exit {
    /// A failure with exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into(), 1)
    }

    /// A wrong command line.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::failed(format!("{message}\nTry 'qemu-img --help' for more information"))
    }
}

/// What a command gives.
pub type Result<T = ()> = std::result::Result<T, Exit>;

type Command = fn(Vec<String>) -> Result;

const COMMANDS: [(&str, Command, &str); 15] = [
    ("amend", options::amend, "[-p] [-q] [-f fmt] [-t cache] [--force] -o options filename"),
    (
        "bench",
        bench::run,
        "[-c count] [-d depth] [-f fmt] [-o offset] [-s buffer_size] [-S step_size] [-w] filename",
    ),
    (
        "bitmap",
        bitmap::run,
        "(--add | --remove | --clear | --enable | --disable | --merge SOURCE)... filename bitmap",
    ),
    ("check", check::run, "[-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename"),
    ("commit", chain::commit, "[-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename"),
    ("compare", compare::run, "[-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2"),
    (
        "convert",
        convert::convert,
        "[-c] [-p] [-q] [-n] [-f fmt] [-O output_fmt] [-B backing_file] [-o options] filename... output_filename",
    ),
    (
        "create",
        create::run,
        "[-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]",
    ),
    (
        "dd",
        convert::dd,
        "[-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output",
    ),
    ("info", info::run, "[-f fmt] [--output=ofmt] [--backing-chain] [-U] filename"),
    ("map", map::map, "[-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename"),
    (
        "measure",
        map::measure,
        "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [-f fmt] [-l snapshot] filename]",
    ),
    ("snapshot", snapshot::run, "[-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename"),
    (
        "rebase",
        chain::rebase,
        "[-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [-c] -b backing_file [-F fmt] filename",
    ),
    ("resize", resize::run, "[-q] [-f fmt] [--preallocation=prealloc] [--shrink] filename [+ | -]size"),
];

fn help() -> String {
    let mut text = format!(
        "{}usage: qemu-img [standard options] command [command options]\nQEMU disk image utility, spoken by Plinth\n\n\
         Commands:\n",
        version()
    );
    for (name, _, args) in COMMANDS {
        text.push_str(&format!("  {name} {args}\n"));
    }
    text.push_str("\nSupported formats:");
    for driver in plinth_image::format::DRIVERS {
        text.push_str(&format!(" {}", names::qemu_name(driver.format)));
    }
    text.push('\n');
    text
}

fn version() -> String {
    format!("qemu-img version {VERSION} (plinth {})\n", env!("CARGO_PKG_VERSION"))
}

/// Runs a command line of qemu-img, without the program's name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let args: Option<Vec<String>> = args.into_iter().map(|a| a.into_string().ok()).collect();
    let outcome = match args {
        Some(args) => command(args),
        None => Err(Exit::failed("arguments must be UTF-8")),
    };
    let _ = std::io::stdout().flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Code(code)) => code.into(),
        Err(Exit::Failed(message, code)) => {
            warn(&message);
            code.into()
        }
    }
}

fn command(args: Vec<String>) -> Result {
    let mut args = args.into_iter().peekable();
    // Tracing is taken and does nothing.
    while let Some(first) = args.peek().cloned() {
        match first.as_str() {
            "-h" | "--help" => return say(&help()),
            "-V" | "--version" => return say(&version()),
            "-T" | "--trace" => {
                args.next();
                args.next();
            }
            s if s.starts_with("--trace=") || s.starts_with("-T") => drop(args.next()),
            s if s.starts_with('-') => return Err(Exit::usage(format!("unrecognized option '{s}'"))),
            _ => break,
        }
    }
    let Some(name) = args.next() else { return Err(Exit::usage("Not enough arguments")) };
    let Some((_, run, _)) = COMMANDS.iter().find(|c| c.0 == name) else {
        return Err(Exit::usage(format!("Command not found: {name}")));
    };
    run(args.collect())
}

/// Writes to standard output. A reader that is gone has seen enough.
pub fn say(text: &str) -> Result {
    put(&printable(text))
}

/// Writes to standard output as it is.
pub fn put(text: &str) -> Result {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Exit::Code(1)),
        Err(e) => Err(Exit::failed(format!("cannot write to standard output: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes a message to standard error and goes on.
pub fn warn(message: &str) {
    eprintln!("qemu-img: {}", printable(message));
}

/// Why something failed, without what was being done.
pub fn reason(e: &Error) -> String {
    let text = e.source.to_string();
    // The host's errors, as strerror(3) has them.
    words::in_qemus_words(text.split(" (os error ").next().unwrap_or_default())
}

/// Runs a job on this thread; a signal ends it, and it leaves nothing half-done.
pub fn block_on<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    super::disk::until_signal(job)
}
