//! Opening what the user names: a file, an address, `json:{...}`, or `driver=...,key=value`.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use plinth_image::ErrorKind;
use plinth_image::format::{
    BackingLink, Format, Image, Links, NoLinks, OpenOptions, Opened, Trust, file_links, open,
    open_linked_node, open_node, raw::RawImage,
};
use plinth_image::graph::{Cache, FileNode, FileOptions, HttpNode, MemoryNode, NodeRef, SliceNode};
use plinth_nbd::uri::Uri;

use super::blkdebug::{self, Faults};
use super::getopt::Parsed;
use super::links::Given;
use super::quorum::Quorum;
use super::secret::{Secrets, passphrase, secrets};
use super::through::Through;
use super::tree::Tree;
use super::words::in_qemus_words;
use super::{Exit, Result, names, nbd, quorum, reason};
use crate::command::disk::open_source;
use crate::printable::printable;

/// How to open an image.
#[derive(Clone, Default)]
pub struct How {
    /// Refuse writes.
    pub read_only: bool,
    /// Read along with a writer (`-U`).
    pub share: bool,
    /// The page cache.
    pub cache: Cache,
    /// Leave the image below closed.
    pub no_backing: bool,
    /// To be checked, and mended if possible.
    pub for_check: bool,
    /// Files that the user has named.
    pub allowed: Vec<PathBuf>,
    /// Passphrases by the ID of their object.
    pub secrets: Secrets,
    /// Contents are not looked at: passphrases may be missing.
    pub no_keys: bool,
}

/// Why something cannot be opened, in words for the user.
type Why<T> = std::result::Result<T, String>;

/// What a name of the user means.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    File(PathBuf),
    Address(String),
    Described(Tree),
}

fn protocol(name: &str) -> Option<&str> {
    let (prefix, _) = name.split_once(':')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    (!prefix.is_empty() && prefix.bytes().all(plain)).then_some(prefix)
}

fn understand(name: &str, image_opts: bool) -> Why<Named> {
    if image_opts {
        return Ok(Named::Described(Tree::from_options(name)));
    }
    if let Some(text) = name.strip_prefix("json:") {
        return Ok(Named::Described(Tree::from_json(text)?));
    }
    if Uri::looks_like(name) || HttpNode::is_address(name) {
        return Ok(Named::Address(name.to_owned()));
    }
    if let Some(text) = name.strip_prefix("blkdebug:") {
        return blkdebug::described(text).map(Named::Described);
    }
    match protocol(name) {
        Some("file") | None => {
            let path = name.strip_prefix("file:").unwrap_or(name);
            // What looks like a protocol is shown so that it is a path.
            let here = if protocol(path).is_some() { "./" } else { "" };
            Ok(Named::File(format!("{here}{path}").into()))
        }
        Some(driver @ ("null-co" | "null-aio")) => {
            Ok(Named::Described(Tree::from_options(&format!("file.driver={driver}"))))
        }
        Some(protocol) => Err(format!("Unknown protocol '{protocol}'")),
    }
}

/// Folders whose files images may name, from the environment.
fn allowed_by_environment() -> Vec<PathBuf> {
    std::env::var_os("PLINTH_ALLOW_BACKING").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default()
}

/// The file of a name, for commands that look at it from outside.
pub fn path(name: &str, image_opts: bool) -> Option<PathBuf> {
    match understand(name, image_opts).ok()? {
        Named::File(path) => Some(path),
        Named::Address(_) => None,
        Named::Described(tree) => {
            tree.filename().map(|n| PathBuf::from(n.strip_prefix("file:").unwrap_or(n)))
        }
    }
}

/// The image below, as an image names it.
///
/// # Errors
/// Its format is one that nobody knows, and it is not guessed.
pub fn link_of(image: &dyn Image) -> Result<Option<BackingLink>> {
    image.describe().backing_to_open().map_err(|e| Exit::failed(reason(&e)))
}

/// True for a name that the user gives to something else than a file: an address, a description.
pub fn is_no_file(name: &str) -> bool {
    matches!(understand(name, false), Ok(Named::Address(_) | Named::Described(_)))
}

/// What is shown as the name of an image: the description, where it says more than which file.
pub fn shown(name: &str, image_opts: bool) -> String {
    match understand(name, image_opts) {
        Ok(Named::Described(tree)) => {
            tree.shown().or_else(|| path(name, image_opts)?.to_str().map(Into::into))
        }
        _ => path(name, image_opts).and_then(|p| p.to_str().map(Into::into)),
    }
    .filter(|n: &String| !n.is_empty())
    .unwrap_or_else(|| name.to_owned())
}

/// The safe rules, with what the user has allowed.
pub fn trust(how: &How) -> Trust {
    let mut allowed = allowed_by_environment();
    allowed.extend(how.allowed.iter().cloned());
    Trust { allowed, nothing: false }
}

/// Opens an image by the user's name for it.
pub async fn image(name: &str, format: Option<&str>, image_opts: bool, how: &How) -> Result<Rc<dyn Image>> {
    let refused = |why: String| Exit::failed(format!("Could not open '{name}': {why}"));
    let format = match format {
        Some(f) => Some(names::format(f).ok_or_else(|| refused(format!("Unknown driver '{f}'")))?),
        None => None,
    };
    let opening = Opening { how, faults: RefCell::default() };
    let opened = async {
        match understand(name, image_opts)? {
            Named::Described(tree) => opening.image(tree, format, how.read_only).await,
            Named::File(path) => {
                opening.file(&path, &opening.options(format, how.read_only, None), None).await
            }
            Named::Address(address) => {
                let raw = opening.options(Some(Format::Raw), how.read_only, None);
                let export = open_source(Path::new(&address), &raw).await.map_err(|e| e.message)?.image;
                let options = opening.options(format, how.read_only, None);
                let opened = open_node(export as NodeRef, &options).await;
                opened.map(|o| o.image).map_err(|e| reason(&e))
            }
        }
    };
    let image = opened.await.map_err(refused)?;
    opening.arm();
    for line in image.describe().mended {
        eprintln!("{}", printable(&in_qemus_words(&line)));
    }
    Ok(image)
}

/// Opens what a name describes as the image so many layers below its own; `None` if it describes none there.
pub async fn described_below(
    name: &str,
    image_opts: bool,
    depth: usize,
    how: &How,
) -> Result<Option<Rc<dyn Image>>> {
    let refused = |why: String| Exit::failed(format!("Could not open what is below '{name}': {why}"));
    let Named::Described(mut tree) = understand(name, image_opts).map_err(refused)? else { return Ok(None) };
    for _ in 0..depth {
        let Some(below) = tree.below.remove("backing") else { return Ok(None) };
        tree = below;
    }
    let opening = Opening { how, faults: RefCell::default() };
    let image = opening.image(tree, None, how.read_only).await.map_err(refused)?;
    opening.arm();
    Ok(Some(image))
}

/// What is below an image.
enum Below {
    File(PathBuf),
    /// Something else, and the file that names in the image are relative to.
    Image(Rc<dyn Image>, Option<PathBuf>),
}

/// The opening of one name.
struct Opening<'a> {
    how: &'a How,
    /// Faults begin when all is open.
    faults: RefCell<Vec<Rc<Cell<bool>>>>,
}

impl Opening<'_> {
    fn arm(&self) {
        self.faults.borrow().iter().for_each(|armed| armed.set(true));
    }
}

fn on(key: &str, value: &str) -> Why<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

fn number(key: &str, value: &str) -> Why<u64> {
    match names::size(value) {
        Some(Ok(n)) => Ok(n),
        _ => Err(format!("Parameter '{key}' expects a size")),
    }
}

/// True for options whose request is so in any case, or of no importance to one command.
fn harmless(key: &str) -> bool {
    let exact = [
        "node-name",
        "auto-read-only",
        "cache.no-flush",
        "cache.writeback",
        "detect-zeroes",
        "discard",
        "aio",
        "locking",
        "encrypt.format",
        "lazy-refcounts",
        "cache-size",
        "cache-clean-interval",
        "refcount-cache-size",
        "read-zeroes",
    ];
    exact.contains(&key)
        || ["l2-cache-", "overlap-check", "pass-discard-", "discard-no-unref", "x-check-cache"]
            .iter()
            .any(|p| key.starts_with(p))
}

fn unknown_option(driver: &str, key: &str) -> String {
    format!("Block driver '{driver}' does not support the option '{key}'")
}

/// Options that all nodes have, taken from a description.
#[derive(Default)]
struct General {
    read_only: Option<bool>,
    share: bool,
    cache: Option<Cache>,
}

impl General {
    fn take(tree: &mut Tree) -> Why<Self> {
        let mut general = Self::default();
        if let Some(value) = tree.options.remove("read-only") {
            general.read_only = Some(on("read-only", &value)?);
        }
        if let Some(value) = tree.options.remove("force-share") {
            general.share = on("force-share", &value)?;
        }
        if let Some(value) = tree.options.remove("cache.direct") {
            general.cache = Some(if on("cache.direct", &value)? { Cache::Direct } else { Cache::Cached });
        }
        tree.options.retain(|key, _| !harmless(key));
        Ok(general)
    }
}

impl Opening<'_> {
    fn options(&self, format: Option<Format>, read_only: bool, secret: Option<Rc<[u8]>>) -> OpenOptions {
        OpenOptions {
            format,
            read_only,
            cache: self.how.cache,
            share: self.how.share,
            trust: trust(self.how),
            secret,
            no_backing: self.how.no_backing,
            for_check: self.how.for_check,
            header: None,
        }
    }

    /// An image in a file, with what was given for the files that it names.
    async fn file(&self, path: &Path, options: &OpenOptions, given: Option<Given>) -> Why<Rc<dyn Image>> {
        let failed = |e: plinth_image::Error| open_reason(&e, path, options.read_only);
        let attempt = async |options: &OpenOptions, given: Option<Given>| {
            let Some(given) = given else { return open(path, options).await };
            let file =
                FileOptions { read_only: options.read_only, cache: options.cache, share: options.share };
            let file = Rc::new(FileNode::open(path, &file)?);
            let links = Rc::new(Given { inner: file_links(path, options)?, ..given });
            open_linked_node(file, links, options).await
        };
        match attempt(options, given.clone()).await {
            Ok(opened) => Ok(opened.image),
            // QEMU has no idea that such a file is not a disk.
            Err(e) if e.kind == ErrorKind::Format && options.format.is_none() => {
                let raw = OpenOptions { format: Some(Format::Raw), ..options.clone() };
                attempt(&raw, given).await.map(|o| o.image).map_err(failed)
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// The image that a description means.
    fn image(
        &self,
        mut tree: Tree,
        format: Option<Format>,
        read_only: bool,
    ) -> LocalBoxFuture<'_, Why<Rc<dyn Image>>> {
        Box::pin(async move {
            let general = General::take(&mut tree)?;
            let read_only = read_only || general.read_only == Some(true);
            let driver = tree.options.remove("driver");
            let mut wanted = format;
            match driver.as_deref() {
                None => {}
                Some(
                    "file" | "host_device" | "nbd" | "http" | "https" | "null-co" | "null-aio" | "blkdebug"
                    | "quorum",
                ) => {
                    tree.options.insert("driver".into(), driver.unwrap_or_default());
                    return match self.below(tree, read_only, &general).await? {
                        Below::File(path) => {
                            let options = self.options(Some(Format::Raw), read_only, None);
                            self.file(&path, &options, None).await
                        }
                        Below::Image(image, _) => Ok(image),
                    };
                }
                Some(name) => {
                    wanted = Some(names::format(name).ok_or_else(|| format!("Unknown driver '{name}'"))?);
                }
            }
            self.format(tree, wanted, read_only, general).await
        })
    }

    /// An image of a format, over what is described as its file.
    async fn format(
        &self,
        mut tree: Tree,
        format: Option<Format>,
        read_only: bool,
        general: General,
    ) -> Why<Rc<dyn Image>> {
        let secret = tree.options.remove("key-secret").or(tree.options.remove("encrypt.key-secret"));
        let secret = secret.filter(|id| !self.how.no_keys || self.how.secrets.contains_key(id));
        let secret = secret.map(|id| passphrase(&self.how.secrets, &id)).transpose()?;
        let mut options = self.options(format, read_only, secret);
        options.share |= general.share;
        options.cache = general.cache.unwrap_or(options.cache);
        options.no_backing |= tree.options.remove("backing").is_some_and(|b| b.is_empty());
        let offset = tree.options.remove("offset").map(|v| number("offset", &v)).transpose()?;
        let size = tree.options.remove("size").map(|v| number("size", &v)).transpose()?;
        if (offset.is_some() || size.is_some()) && format != Some(Format::Raw) {
            return Err("Only raw images have the options 'offset' and 'size'".to_owned());
        }
        let named = format.map_or("file", names::qemu_name);
        let file = match tree.below.remove("file") {
            Some(file) => file,
            None => match tree.options.remove("filename") {
                Some(name) => Tree::file(&name),
                None => return Err("A block device must be specified for \"file\"".to_owned()),
            },
        };
        let given = self.given(&mut tree, read_only, &options).await?;
        if let Some(key) = tree.options.keys().chain(tree.below.keys()).next() {
            return Err(unknown_option(named, key));
        }
        let mut file = file;
        let file_driver = file.get("driver").unwrap_or("file").to_owned();
        let described = file.described();
        let inner = General::take(&mut file)?;
        options.share |= inner.share;
        options.cache = inner.cache.unwrap_or(options.cache);
        options.read_only |= inner.read_only == Some(true);
        let image = match self.below(file, options.read_only, &inner).await? {
            Below::File(path) => self.file(&path, &options, given).await?,
            Below::Image(node, path) => {
                let failed = |e: plinth_image::Error| reason(&e);
                let inner: Rc<dyn Links> = match &path {
                    Some(path) => file_links(path, &options).map_err(failed)?,
                    None => Rc::new(NoLinks),
                };
                let links = Rc::new(Given { inner, ..given.unwrap_or_default() });
                let opened = open_linked_node(node, links, &options).await;
                let opened: Opened = opened.map_err(|e| match (e.kind, &path, format) {
                    // Nobody knows from where the extents' names are seen.
                    (ErrorKind::Denied, None, Some(Format::Vmdk)) => format!(
                        "Cannot use relative paths with VMDK descriptor file '{described}': Cannot generate a base \
                         directory for {file_driver} nodes"
                    ),
                    _ => failed(e),
                })?;
                opened.image
            }
        };
        if offset.is_none() && size.is_none() {
            return Ok(image);
        }
        let offset = offset.unwrap_or(0);
        let rest = image.size().checked_sub(offset);
        let rest = rest.ok_or("The offset is beyond the end of the file")?;
        let size = size.unwrap_or(rest);
        if size > rest {
            return Err("The sum of offset and size is beyond the end of the file".to_owned());
        }
        let part = SliceNode::new(image as NodeRef, offset, size).map_err(|e| reason(&e))?;
        Ok(Rc::new(RawImage::new(Rc::new(part), read_only)))
    }

    /// A file, whatever it holds.
    fn plain_file(&self, path: &Path, options: &OpenOptions) -> Why<NodeRef> {
        let read_only = options.read_only;
        let file = FileOptions { read_only, cache: options.cache, share: options.share };
        let opened = FileNode::open(path, &file);
        Ok(Rc::new(opened.map_err(|e| open_reason(&e, path, read_only))?))
    }

    /// What a description says of the image below and of the data file.
    async fn given(&self, tree: &mut Tree, read_only: bool, options: &OpenOptions) -> Why<Option<Given>> {
        let mut given = Given::default();
        if let Some(data) = tree.below.remove("data-file") {
            given.data = Some(match self.below(data, read_only, &General::default()).await? {
                Below::Image(node, _) => node,
                Below::File(path) => self.plain_file(&path, &OpenOptions { read_only, ..options.clone() })?,
            });
        }
        if let Some(backing) = tree.below.remove("backing")
            && !options.no_backing
        {
            given.backing = Some(self.image(backing, None, true).await?);
        }
        Ok((given.data.is_some() || given.backing.is_some()).then_some(given))
    }

    /// What a description says of the file of an image.
    async fn below(&self, mut tree: Tree, read_only: bool, general: &General) -> Why<Below> {
        tree.options.retain(|key, _| !harmless(key) || key == "read-zeroes");
        let driver = tree.options.remove("driver");
        let name = tree.get("filename").unwrap_or_default().to_owned();
        let driver = match driver {
            Some(driver) => driver,
            None => match understand(&name, false)? {
                Named::File(_) => "file".to_owned(),
                Named::Address(_) if Uri::looks_like(&name) => "nbd".to_owned(),
                Named::Address(_) => "http".to_owned(),
                Named::Described(inner) => {
                    let image = self.image(inner, Some(Format::Raw), read_only).await?;
                    return Ok(Below::Image(image, path(&name, false)));
                }
            },
        };
        let node = match driver.as_str() {
            "file" | "host_device" => {
                tree.options.remove("filename");
                if name.is_empty() {
                    return Err(format!("The '{driver}' block driver requires a file name"));
                }
                Below::File(name.strip_prefix("file:").unwrap_or(&name).into())
            }
            "nbd" => Below::Image(nbd::open(&mut tree, read_only).await?, None),
            "http" | "https" => {
                let address =
                    tree.options.remove("url").or(tree.options.remove("filename")).unwrap_or_default();
                let options = self.options(Some(Format::Raw), read_only, None);
                let opened = open_source(Path::new(&address), &options).await.map_err(|e| e.message)?;
                Below::Image(opened.image, None)
            }
            "null-co" | "null-aio" => {
                /// What QEMU takes if nothing is said.
                const SIZE: u64 = 1 << 30;
                tree.options.remove("read-zeroes");
                let size = tree.options.remove("size").map(|s| number("size", &s)).transpose()?;
                let zeros = MemoryNode::new(&format!("{driver}://"));
                zeros.set_size(size.unwrap_or(SIZE));
                Below::Image(Rc::new(RawImage::new(Rc::new(zeros), read_only)), None)
            }
            "blkdebug" => {
                let faults = Faults::take(&mut tree)?;
                let file = tree.filename().map(PathBuf::from);
                let inner = match tree.below.remove("image") {
                    Some(inner) => inner,
                    None => return Err("A block device must be specified for \"image\"".to_owned()),
                };
                let read_only = read_only || general.read_only == Some(true);
                // Without a driver it is a file, whatever it holds. Files grow where they are written to.
                let (inner, image): (NodeRef, _) =
                    match Box::pin(self.below(inner, read_only, general)).await? {
                        Below::File(path) => {
                            let options = self.options(None, read_only, None);
                            (self.plain_file(&path, &options)?, None)
                        }
                        Below::Image(image, _) => (image.clone(), Some(image)),
                    };
                let node = faults.over(inner);
                self.faults.borrow_mut().push(node.armed());
                Below::Image(Rc::new(Through { node: Rc::new(node), image }), file)
            }
            "quorum" => {
                let (described, votes) = quorum::described(&mut tree)?;
                let mut copies = Vec::new();
                for copy in described {
                    // Without a driver it is a file, whatever it holds.
                    let format = copy.get("driver").is_none().then_some(Format::Raw);
                    copies.push(self.image(copy, format, read_only).await?);
                }
                let node = Quorum::new(copies, votes)?;
                Below::Image(Rc::new(RawImage::new(Rc::new(node), read_only)), None)
            }
            // All of a file, which may grow.
            "raw" if tree.options.is_empty() && tree.below.keys().eq(["file"]) => {
                let file = tree.below.remove("file").unwrap_or_default();
                return Box::pin(self.below(file, read_only, general)).await;
            }
            _ => {
                tree.options.insert("driver".into(), driver);
                let file = tree.filename().map(PathBuf::from);
                return Ok(Below::Image(self.image(tree, None, read_only).await?, file));
            }
        };
        match tree.options.keys().chain(tree.below.keys()).next() {
            Some(key) => Err(unknown_option(&driver, key)),
            None => Ok(node),
        }
    }
}

/// Why an image cannot be opened, in QEMU's words where it has them.
pub fn open_reason(e: &plinth_image::Error, path: &Path, read_only: bool) -> String {
    let shown = path.display();
    match e.kind {
        ErrorKind::Busy => {
            let lock = if read_only { "shared \"write\"" } else { "\"write\"" };
            format!("Failed to get {lock} lock\nIs another process using the image [{shown}]?")
        }
        ErrorKind::NotFound | ErrorKind::ReadOnly => format!("Could not open '{shown}': {}", reason(e)),
        ErrorKind::Denied => format!("{e}"),
        _ => reason(e),
    }
}

/// What the options of most commands say about opening.
pub fn how(parsed: &Parsed, read_only: bool) -> Result<How> {
    Ok(How { read_only, share: parsed.has("U"), secrets: secrets(parsed)?, ..How::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_user() {
        let file = |n: &str| Ok(Named::File(n.into()));
        assert_eq!(understand("a/b.raw", false), file("a/b.raw"));
        assert_eq!(understand("file:x", false), file("x"));
        assert_eq!(understand("file:a:x", false), file("./a:x"));
        assert_eq!(understand("./a:b", false), file("./a:b"));
        assert_eq!(understand("nbd://h/x", false), Ok(Named::Address("nbd://h/x".into())));
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"x,y"}}"#;
        assert_eq!(path(json, false), Some("x,y".into()));
        assert_eq!(path("driver=raw,file.filename=x,,y", true), Some("x,y".into()));
        for bad in ["gluster:x", "json:{"] {
            assert!(understand(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn described_images() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("a.raw");
        std::fs::write(&raw, [7; 8192]).unwrap();
        let raw = raw.display();
        let size = |name: String, opts: bool| {
            plinth_host::aio::block_on(async {
                let how = How { read_only: true, ..How::default() };
                image(&name, None, opts, &how).await.map(|i| i.size())
            })
        };
        assert_eq!(size(format!("driver=raw,offset=1k,size=2k,file.filename={raw}"), true).unwrap(), 2048);
        assert_eq!(size("json:{'driver': 'null-co', 'size': 1048576}".into(), false).unwrap(), 1 << 20);
        let nested = format!("driver=raw,file.driver=blkdebug,file.align=4k,file.image.filename={raw}");
        assert_eq!(size(nested, true).unwrap(), 8192);
        for bad in ["driver=vax,file.filename=x", "driver=raw", "driver=raw,file.filename=x,colour=1"] {
            assert!(size(bad.to_owned(), true).is_err(), "{bad}");
        }
    }
}
