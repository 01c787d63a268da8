//! Sources of disks: image files, and addresses of exports (NBD) and of files on web servers.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use plinth_image::format::{Format, OpenOptions, Opened, open, open_node};
use plinth_image::graph::{Cache, FileNode, FileOptions, HttpNode, Keep, NodeRef, OverlayNode};
use plinth_image::ovf::Package;
use plinth_nbd::client;
use plinth_nbd::uri::Uri;

use super::common::{failed, open_options};
use crate::cli::disk_tool::OpenArgs;
use crate::failure::{Code, Failure, Result};

/// Bytes that are read from a web server at once.
const WEB_CLUSTER: u32 = 1 << 20;

/// How long a server of an export may be gone in the middle of a command.
const RECONNECT: Duration = Duration::from_secs(30);

/// Opens the image at a path or an address.
///
/// What an NBD server exports is a disk, so it is taken for raw unless the user says more.
pub async fn open_source(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let text = path.to_str().unwrap_or_default();
    if Uri::looks_like(text) {
        let node = open_export(text, options.read_only).await?;
        let format = options.format.or(Some(Format::Raw));
        return open_node(node, &OpenOptions { format, ..options.clone() }).await.map_err(failed);
    }
    if HttpNode::is_address(text) {
        let node = Rc::new(HttpNode::open(text).await.map_err(failed)?);
        let store = Rc::new(cache_file()?);
        let cache = OverlayNode::new(node, store, Keep::Reads, WEB_CLUSTER).map_err(failed)?;
        return open_node(Rc::new(cache), options).await.map_err(failed);
    }
    open(path, options).await.map_err(failed)
}

/// How to open what is read once, from its start to its end.
fn read_once(args: &OpenArgs, format: Option<Format>) -> Result<OpenOptions> {
    Ok(OpenOptions { cache: Cache::Spared, ..open_options(args, format, true)? })
}

/// Opens an image that a command reads all of: at a path or an address, or a disk inside of a package.
pub async fn open_any(path: &Path, args: &OpenArgs, format: Option<Format>) -> Result<Opened> {
    open_with(path, args, &read_once(args, format)?).await
}

/// Opens an image: at a path or an address, or a disk inside of a package; or the image that is inside of it.
pub async fn open_with(path: &Path, args: &OpenArgs, options: &OpenOptions) -> Result<Opened> {
    let disk = args.disk.as_deref();
    let Some(inside) = args.inside else { return open_outer(path, disk, options).await };
    // Header and passphrase are those of what is inside.
    let outer = open_outer(path, disk, &OpenOptions { header: None, ..options.clone() }).await?;
    let options = OpenOptions { format: Some(inside), ..options.clone() };
    open_node(outer.image, &options).await.map_err(failed)
}

/// Refuses to look inside of a disk, for commands that work on the image's own file.
pub fn outer_only(args: &OpenArgs, command: &str) -> Result<()> {
    match args.inside {
        None => Ok(()),
        Some(_) => Err(Failure::usage(format!("--inside has no meaning for `plinth disk {command}`"))
            .help("`plinth disk convert --inside FORMAT` makes an image of its own of what is inside")),
    }
}

async fn open_outer(path: &Path, disk: Option<&str>, options: &OpenOptions) -> Result<Opened> {
    let text = path.to_str().unwrap_or_default();
    if options.format.is_none()
        && Package::is_name(path)
        && (Uri::looks_like(text) || HttpNode::is_address(text))
    {
        let what = format!("cannot open '{text}': packages are opened from files, not from addresses");
        return Err(Failure::new(Code::Failed, what).help("fetch it first"));
    }
    if options.format.is_none() && Package::is_name(path) {
        let doing = || format!("'{}' is a package, which is only read", path.display());
        if !options.read_only {
            return Err(Failure::new(Code::Failed, doing())
                .help("take the disk out of it first: `plinth disk convert PACKAGE NEW.qcow2`"));
        }
        let package = Package::open(path).await.map_err(failed)?;
        return open_packed(&package, disk).await;
    }
    if disk.is_some() {
        let what = format!("'{}' is not a package (.ova, .ovf), so --disk has no meaning", path.display());
        return Err(Failure::usage(what));
    }
    open_source(path, options).await
}

/// As [`open_any`], for one of two images: only one of them may be a package.
pub async fn open_either(path: &Path, args: &OpenArgs, format: Option<Format>) -> Result<Opened> {
    let mut args = args.clone();
    args.disk = args.disk.filter(|_| Package::is_name(path));
    // Neither is a header that of both.
    if format.is_some_and(|f| f != Format::Luks) {
        args.header = None;
    }
    open_with(path, &args, &read_once(&args, format)?).await
}

/// Opens the disk of a package that has this name.
async fn open_packed(package: &Package, name: Option<&str>) -> Result<Opened> {
    let disk = package.find_disk(name).map_err(|e| {
        let failure = Failure::from_error(Code::Usage, "", &e);
        if name.is_none() { failure.help("name it: --disk NAME") } else { failure }
    })?;
    let image = package.open_disk(disk).await.map_err(failed)?;
    let image = image.ok_or_else(|| {
        Failure::new(Code::Failed, format!("the disk '{}' is empty: it has no file", disk.id))
    })?;
    Ok(Opened { image, probed: true })
}

async fn open_export(text: &str, read_only: bool) -> Result<NodeRef> {
    let nbd = |e: &plinth_nbd::Error| Failure::from_error(Code::Failed, "", e);
    let uri: Uri = text.parse().map_err(|e| nbd(&e))?;
    let tls = match (uri.tls, std::env::var_os("PLINTH_TLS")) {
        (true, Some(folder)) => Some(plinth_nbd::tls::client(Path::new(&folder)).map_err(|e| nbd(&e))?),
        (true, None) => {
            return Err(Failure::usage(format!("'{text}' needs TLS, and no certificates are given"))
                .help("set PLINTH_TLS to a folder with ca-cert.pem, and client-cert.pem and client-key.pem if needed"));
        }
        (false, _) => None,
    };
    let options = client::Options { tls, read_only, bitmap: None, reconnect: RECONNECT };
    Ok(Rc::new(client::open(&uri, &options).await.map_err(|e| nbd(&e))?))
}

/// A file without a name for what was read, in the host's folder for large temporary files.
fn cache_file() -> Result<FileNode> {
    let folder = std::env::var_os("TMPDIR").filter(|d| !d.is_empty()).unwrap_or("/var/tmp".into());
    let file = tempfile::NamedTempFile::new_in(&folder).map_err(|e| {
        let what = format!("cannot make a temporary file in '{}'", Path::new(&folder).display());
        Failure::from_error(Code::Failed, &what, &e).help("name another folder in TMPDIR")
    })?;
    // The name goes away with `file`; the open file stays.
    FileNode::open(file.path(), &FileOptions::default()).map_err(failed)
}
