//! What the commands share: opening images, progress, signals, and what to say when something fails.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plinth_host::aio;
use plinth_host::buffer::IoBuf;
use plinth_image::format::{
    Backing, BackingLink, Format, Image, OpenOptions, Opened, Options, OutputFiles, Progress, Trust, open,
};
use plinth_image::graph::{Cache, NodeRef};
use plinth_image::{Error, ErrorKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::address::open_any;
use crate::cli::disk_tool::{ImageArgs, NewArgs, OpenArgs};
use crate::cli::{Global, OutputFormat};
use crate::failure::{Code, Failure, Result};

/// A failed operation on an image, with what to do about it.
pub fn failed(e: Error) -> Failure {
    let code = match e.kind {
        ErrorKind::Busy => Code::DiskBusy,
        _ => Code::Failed,
    };
    let failure = Failure::from_error(code, "", &e);
    match e.kind {
        ErrorKind::NotFound => failure.help("check the name: relative paths begin at the current folder"),
        ErrorKind::Busy => failure
            .help("stop the machine or program that uses it (`fuser FILE` names the process)")
            .help("to read it nevertheless, add --share"),
        ErrorKind::Corrupt => {
            failure.help("`plinth disk check IMAGE` says more, and mends some with --repair")
        }
        ErrorKind::Key => failure.help("give the passphrase in a file: --secret-file FILE"),
        ErrorKind::NoSpace => failure.help("free some space, or write to another file system"),
        ErrorKind::Format => {
            failure.help("if the bytes are the disk's own, say so: --format raw (--from raw)")
        }
        _ => failure,
    }
}

/// The text of an argument that has to be one.
pub fn usage(e: &Error) -> Failure {
    Failure::from_error(Code::Usage, "", e)
}

/// A passphrase from a file, without the line's end.
pub fn secret(file: Option<&Path>) -> Result<Option<Rc<[u8]>>> {
    let Some(path) = file else { return Ok(None) };
    let mut bytes = std::fs::read(path).map_err(|e| {
        Failure::from_error(Code::Failed, &format!("cannot read the passphrase in '{}'", path.display()), &e)
    })?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Some(bytes.into()))
}

/// How to open images for a command.
pub fn open_options(args: &OpenArgs, format: Option<Format>, read_only: bool) -> Result<OpenOptions> {
    Ok(OpenOptions {
        format,
        read_only,
        share: args.share,
        trust: Trust { allowed: args.allow_backing.clone(), nothing: false },
        secret: secret(args.secret_file.as_deref())?,
        ..OpenOptions::default()
    })
}

/// Opens the image of a command.
pub async fn open_image(args: &ImageArgs, read_only: bool) -> Result<Opened> {
    open_any(&args.path, &args.open, args.format, read_only).await
}

/// A format by the ending of a name.
pub fn by_ending(path: &Path) -> Option<Format> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    Some(match ending.as_str() {
        "raw" | "img" | "bin" => Format::Raw,
        "qcow2" | "qcow" => Format::Qcow2,
        "vmdk" => Format::Vmdk,
        "vdi" => Format::Vdi,
        "vhd" | "vpc" => Format::Vhd,
        "vhdx" | "avhdx" => Format::Vhdx,
        "hdd" | "hds" | "parallels" => Format::Parallels,
        "qed" => Format::Qed,
        "luks" => Format::Luks,
        _ => return None,
    })
}

/// The format of a new image: as the user says, else by its name.
pub fn new_format(args: &NewArgs, path: &Path) -> Format {
    args.to.or_else(|| by_ending(path)).unwrap_or(Format::Raw)
}

/// The options of a new image; prints what there is where they are `help`.
pub fn new_options(args: &[String], format: Format) -> Result<Option<Options>> {
    if args.iter().any(|o| o == "help" || o == "?") {
        print_options(format)?;
        return Ok(None);
    }
    let mut options = Options::default();
    for text in args {
        options.add(text).map_err(|e| usage(&e))?;
    }
    if let Some(driver) = format.driver() {
        options
            .check(driver.options)
            .map_err(|e| usage(&e).help(format!("`-o help` lists the options of the format {format}")))?;
    }
    Ok(Some(options))
}

fn print_options(format: Format) -> Result<()> {
    let Some(driver) = format.driver() else {
        return Err(Failure::usage(format!("Plinth does not have the format {format} yet")));
    };
    let width = driver.options.iter().map(|o| o.name.len()).max().unwrap_or(0);
    let mut text = format!("Options of the format {format}:\n");
    if driver.options.is_empty() {
        text = format!("The format {format} has no options.\n");
    }
    for o in driver.options {
        text.push_str(&format!("  {:width$}  {}\n", o.name, o.help));
    }
    print(&text)
}

/// Writes to standard output. A reader that is gone has seen enough.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::from_error(Code::Failed, "cannot write to standard output", &e))
        }
        _ => Ok(()),
    }
}

/// Prints a result: as a JSON value or as text.
pub fn result(global: &Global, value: &serde_json::Value, text: &str) -> Result<()> {
    match global.output {
        OutputFormat::Json => print(&format!("{value:#}\n")),
        OutputFormat::Text => print(text),
    }
}

/// True if nothing is lost when a new file gets this name: there is none, or it is empty.
pub fn is_new(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |m| m.is_file() && m.len() == 0)
}

/// The files of a new image.
pub fn output(path: &Path, args: &NewArgs) -> Result<OutputFiles> {
    if !args.force && !is_new(path) {
        return Err(Failure::usage(format!("'{}' is there already", path.display()))
            .help("choose another name, or replace it with --force: what it holds is lost then"));
    }
    let cache = if args.cached { Cache::Cached } else { Cache::Direct };
    // Where the name is a link, the file behind it is replaced, not the link.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    OutputFiles::new(&real, cache).map_err(failed)
}

/// The link to the image at `backing`, for an image at `path`: relative where that lies in the image's own folder. It
/// is opened to learn its format and what else is recorded; that and its size are returned.
pub async fn backing_link(
    path: &Path,
    backing: &Path,
    format: Option<Format>,
    args: &OpenArgs,
) -> Result<(Backing, Opened)> {
    let opened = open(backing, &open_options(args, format, true)?).await.map_err(failed)?;
    let real = |p: &Path| {
        std::fs::canonicalize(p)
            .map_err(|e| Failure::from_error(Code::Failed, &format!("cannot find '{}'", p.display()), &e))
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (folder, target) = (real(folder)?, real(backing)?);
    let name = target.strip_prefix(&folder).unwrap_or(&target);
    let Some(name) = name.to_str().map(str::to_owned) else {
        return Err(Failure::usage(format!("'{}' is not UTF-8, which images need", backing.display())));
    };
    // What begins like an address would be taken for one.
    let name = if name.contains(':') && !name.starts_with('/') { format!("./{name}") } else { name };
    let link =
        BackingLink { name, format: Some(opened.image.format()), identity: opened.image.describe().identity };
    let node: NodeRef = opened.image.clone();
    Ok((Backing { link, node: Some(node) }, opened))
}

/// A stream with a byte for each signal that ends the process.
pub fn signals() -> std::io::Result<Arc<UnixStream>> {
    let (read, mut write) = UnixStream::pair()?;
    let mut all = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for signal in all.forever() {
            // The job has ended if this fails.
            let _ = write.write_all(&[signal as u8]);
        }
    });
    Ok(Arc::new(read))
}

/// Runs a job on this thread. When a signal comes, the job is dropped, with all that it has not finished, and the
/// process ends as the signal says.
pub fn interruptible<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    until_signal(job)
}

/// As [`interruptible`], for jobs that end in anything.
pub fn until_signal<T>(job: impl Future<Output = T>) -> T {
    let Ok(stream) = signals() else { return aio::block_on(job) };
    let outcome = aio::block_on(async {
        let signal = pin!(aio::receive(&stream, IoBuf::new(1)));
        // The job is dropped here, inside: its I/O may still be running.
        let job = pin!(job);
        match select(job, signal).await {
            Either::Left((value, _)) => Ok(value),
            Either::Right(((_, byte), _)) => Err(i32::from(byte.first().copied().unwrap_or(0))),
        }
    });
    match outcome {
        Ok(value) => value,
        Err(signal) => {
            eprintln!("\nstopped by a signal");
            // It does not come back, unless the signal does not end processes.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal)
        }
    }
}

/// Runs a job, and shows how far it is on a terminal.
pub fn with_progress<T>(title: &str, job: impl AsyncFnOnce(&Progress) -> Result<T>) -> Result<T> {
    interruptible(async {
        let progress = Progress::default();
        if !std::io::stderr().is_terminal() {
            return job(&progress).await;
        }
        let bar = ProgressBar::new(0);
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) =
            ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(title.to_owned());
        let draw = async {
            loop {
                aio::sleep(Duration::from_millis(150)).await;
                bar.set_length(progress.total.get());
                bar.set_position(progress.done.get());
            }
        };
        let job = pin!(job(&progress));
        let draw = pin!(draw);
        let value = match select(job, draw).await {
            Either::Left((value, _)) => value,
            Either::Right((never, _)) => never,
        };
        bar.finish_and_clear();
        value
    })
}

/// Closes an image that was changed.
pub async fn close(image: &dyn Image) -> Result<()> {
    image.close().await.map_err(failed)
}

/// Where an image's backing image is, if it may be opened.
pub fn backing_of(path: &Path, link: &BackingLink, args: &OpenArgs) -> Result<PathBuf> {
    let trust = Trust { allowed: args.allow_backing.clone(), nothing: false };
    plinth_image::format::backing_path(path, &link.name, &trust).map_err(failed)
}
