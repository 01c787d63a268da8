//! What the commands share: opening images, progress, signals, and what to say when something fails.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plinth_host::aio;
use plinth_host::buffer::IoBuf;
use plinth_image::format::{
    Backing, BackingLink, Format, Image, OpenOptions, Opened, Options, OutputFiles, Progress, Trust, open,
};
use plinth_image::graph::{Cache, FileNode, FileOptions, HttpNode, NodeRef};
use plinth_image::{Error, ErrorKind};
use plinth_nbd::uri::Uri;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

use super::address::{open_source, open_with};
use super::target::Target;
use crate::cli::disk_tool::{ImageArgs, NewArgs, OpenArgs};
use crate::cli::{Global, OutputFormat, output_format};
use crate::failure::{Code, Failure, Result};
use crate::printable::printable;

/// A failed operation on an image, with what to do about it.
pub fn failed(e: Error) -> Failure {
    let code = match e.kind {
        ErrorKind::Busy => Code::DiskBusy,
        _ => Code::Failed,
    };
    let failure = Failure::from_error(code, "", &e);
    match e.kind {
        ErrorKind::NotFound if e.context.contains("://") => failure.help("check the address"),
        ErrorKind::NotFound if e.source.kind() == std::io::ErrorKind::NotFound => {
            failure.help("check the name: relative paths begin at the current folder")
        }
        ErrorKind::ReadOnly if e.source.kind() == std::io::ErrorKind::PermissionDenied => {
            failure.help("`ls -ld` on the file and its folder shows who may read and write them")
        }
        ErrorKind::Busy => failure
            .help("stop the machine or program that uses it (`fuser FILE` names the process)")
            .help("to read it nevertheless, add --share"),
        ErrorKind::Corrupt => {
            failure.help("`plinth disk check IMAGE` says more, and mends some with --repair")
        }
        ErrorKind::Key => failure.help("give the passphrase in a file: --secret-file FILE"),
        ErrorKind::NoSpace => failure.help("free some space, or write to another file system"),
        ErrorKind::Format => failure.help(
            "without --format (--from) the contents decide; if they are the disk's own bytes, say raw there",
        ),
        _ => failure,
    }
}

/// Bytes that an image takes up: a file, or the files of a folder.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.blocks() * 512);
    match std::fs::read_dir(path) {
        Ok(folder) => folder.flatten().map(|e| of(&e.path())).sum(),
        Err(_) => of(path),
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
    let header = args.header.as_deref().map(|path| {
        let how = FileOptions { read_only, share: args.share, ..FileOptions::default() };
        FileNode::open(path, &how).map(|node| Rc::new(node) as NodeRef).map_err(failed)
    });
    Ok(OpenOptions {
        format,
        read_only,
        header: header.transpose()?,
        share: args.share,
        trust: Trust { allowed: args.allow_backing.clone(), nothing: false },
        secret: secret(args.secret_file.as_deref())?,
        ..OpenOptions::default()
    })
}

/// Opens the image of a command.
pub async fn open_image(args: &ImageArgs, read_only: bool) -> Result<Opened> {
    open_with(&args.path, &args.open, &open_options(&args.open, args.format, read_only)?).await
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
    put(&printable(text))
}

fn put(text: &str) -> Result<()> {
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
        OutputFormat::Json => put(&format!("{value:#}\n")),
        OutputFormat::Text => print(text),
    }
}

/// True if nothing is lost when a new file gets this name: there is none, or it is empty.
pub fn is_new(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |m| m.is_file() && m.len() == 0)
}

/// Refuses to replace what the user has not given up.
pub fn may_replace(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() && !path.join(plinth_image::format::parallels::DESCRIPTOR).is_file() {
        return Err(Failure::usage(format!("'{}' is a folder", path.display())).help("name a file in it"));
    }
    if force || is_new(path) {
        return Ok(());
    }
    Err(Failure::usage(format!("'{}' is there already", path.display()))
        .help("choose another name, or replace it with --force: what it holds is lost then"))
}

/// The files of a new image.
pub fn output(path: &Path, args: &NewArgs) -> Result<OutputFiles> {
    let name = path.to_str().unwrap_or_default();
    if Uri::looks_like(name) || HttpNode::is_address(name) {
        let what = format!("'{name}' is an address, and new images are files");
        return Err(Failure::usage(what).help("`plinth disk convert` writes to exports (NBD), too"));
    }
    for path in std::iter::once(path).chain(args.new_header.as_deref()) {
        may_replace(path, args.force)?;
    }
    if args.new_header.is_some() && new_format(args, path) != Format::Luks {
        return Err(Failure::usage("only LUKS images can have their header in a file of its own")
            .help("add --to luks"));
    }
    let cache = if args.cached { Cache::Cached } else { Cache::Direct };
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    // What Parallels calls a disk by this ending is a folder.
    if new_format(args, path) == Format::Parallels && name.to_ascii_lowercase().ends_with(".hdd") {
        let main = plinth_image::format::parallels::main_name(name);
        return OutputFiles::in_folder(path, &main, cache).map_err(failed);
    }
    // Where the name is a link, the file behind it is replaced, not the link.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let files = OutputFiles::new(&real, cache).map_err(failed)?;
    Ok(match &args.new_header {
        Some(header) => files.with_header(header),
        None => files,
    })
}

/// The place of what is copied: new files, or an export (NBD) that is there and loses what it holds.
pub async fn place(path: &Path, args: &NewArgs) -> Result<Target> {
    let Some(name) = path.to_str().filter(|n| Uri::looks_like(n)) else {
        return output(path, args).map(Target::Files);
    };
    if args.new_header.is_some() {
        return Err(Failure::usage("a header of its own is for an image in a file"));
    }
    if !args.force {
        let what = format!("'{name}' is an export, which would be written over");
        return Err(Failure::usage(what).help("say --force: what it holds is lost then"));
    }
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    Ok(Target::there(name, open_source(path, &options).await?.image))
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

/// The signals that end the process, for whoever wants to do something before.
pub struct Signals {
    /// Gets a byte for each one.
    stream: Arc<UnixStream>,
    /// The last one.
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// From here on they do nothing but wake who waits for the [`next`](Self::next).
    ///
    /// # Errors
    /// The host has no more descriptors.
    pub fn new() -> std::io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: who is woken finds out which one it was.
            signal_hook::flag::register_usize(signal, last.clone(), signal as usize)?;
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        // A file that becomes larger than the limit of the process: the write fails, which is enough.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        Ok(Self { stream: Arc::new(read), last })
    }

    /// Waits for a signal: its number.
    pub async fn next(&self) -> i32 {
        let _ = aio::receive(&self.stream, IoBuf::new(1)).await;
        self.last.load(Ordering::Acquire) as i32
    }
}

/// Runs a job on this thread. When a signal comes, the job is dropped, with all that it has not finished, and the
/// process ends as the signal says.
pub fn interruptible<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    until_signal(job)
}

/// As [`interruptible`], for jobs that end in anything.
pub fn until_signal<T>(job: impl Future<Output = T>) -> T {
    let Ok(signals) = Signals::new() else { return aio::block_on(job) };
    let outcome = aio::block_on(async {
        let signal = pin!(signals.next());
        // The job is dropped here, inside: its I/O may still be running.
        let job = pin!(job);
        match select(job, signal).await {
            Either::Left((value, _)) => Ok(value),
            Either::Right((signal, _)) => Err(signal),
        }
    });
    match outcome {
        Ok(value) => value,
        Err(signal) => {
            match output_format() {
                OutputFormat::Text => eprintln!("\nstopped by a signal"),
                OutputFormat::Json => {
                    eprintln!(
                        "{}",
                        json!({ "error": "stopped by a signal", "help": [], "code": 128 + signal })
                    );
                }
            }
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
