//! `qemu-img create`.

use std::path::{Path, PathBuf};

use plinth_image::format::{Backing, BackingLink, Format};
use plinth_image::graph::{Cache, IoBuf};
use plinth_image::job;

use super::getopt::parse;
use super::open::{How, image, is_no_file};
use super::options::{NewOptions, can_have_backing, collect, formatting, sort};
use super::refusal::refusal;
use super::secret::{passphrase, secrets};
use super::target::target as place;
use super::{Exit, Result, block_on, names, option_help, reason, say};

/// The path of a backing image, as seen from the image that names it.
pub fn beside(file: &str, backing: &str) -> PathBuf {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    folder.join(backing.strip_prefix("file:").unwrap_or(backing))
}

/// Why a file cannot be created, in QEMU's words where it has them.
pub fn create_reason(e: &plinth_image::Error, file: &str) -> String {
    use plinth_image::ErrorKind as K;
    match e.kind {
        K::Busy => format!("Failed to get \"write\" lock\nIs another process using the image [{file}]?"),
        K::NotFound | K::ReadOnly => format!("Could not create '{file}': {}", reason(e)),
        _ => reason(e),
    }
}

/// The link to a backing image, and its size. The image is opened to learn what else is recorded of it.
pub async fn link(file: &str, backing: &str, format: Option<Format>, how: &How) -> Result<(Backing, u64)> {
    let path = beside(file, backing);
    let how = How { read_only: true, share: true, allowed: vec![path.clone()], ..how.clone() };
    let named = if is_no_file(backing) { backing } else { path.to_str().unwrap_or(backing) };
    let below = image(named, format.map(names::qemu_name), false, &how).await?;
    let identity = below.describe().identity;
    let format = Some(format.unwrap_or(below.format()));
    let (link, size) = (BackingLink { name: backing.to_owned(), format, identity }, below.size());
    Ok((Backing { link, node: Some(below) }, size))
}

/// `qemu-img create`.
pub fn run(args: Vec<String>) -> Result {
    let parsed = parse(args, "F:b:f:ho:qu", &[])?;
    let name = parsed.value("f").unwrap_or("raw");
    if option_help::wanted(&parsed)? {
        return option_help::for_new(names::known_format(name)?, !parsed.rest.is_empty());
    }
    let [file, sizes @ ..] = &parsed.rest[..] else { return Err(Exit::usage("Expecting image file name")) };
    let mut size = None;
    if let [text, rest @ ..] = sizes {
        size = Some(names::number("image size", text)?);
        if let [extra, ..] = rest {
            return Err(Exit::usage(format!("Unexpected argument: {extra}")));
        }
    }
    let failed = |why: String| Exit::failed(format!("{file}: {why}"));
    let format = names::format(name).ok_or_else(|| failed(names::unknown(name)))?;
    if format.driver().is_none_or(|d| d.create.is_none()) {
        return Err(failed(format!("Format driver '{name}' does not support image creation")));
    }
    let own = collect(&parsed)?;
    let mut new = sort(format, own).map_err(|e| match e {
        Exit::Failed(why, _) => failed(why),
        other => other,
    })?;
    if new.size.is_some() && size.is_some() {
        return Err(failed("The image size must be specified only once".into()));
    }
    size = size.or(new.size);
    if let Some(backing) = parsed.value("b") {
        if !can_have_backing(format) {
            return Err(failed(format!("Backing file not supported for file format '{name}'")));
        }
        new.backing = Some(backing.to_owned());
    }
    if let Some(f) = parsed.value("F") {
        if !can_have_backing(format) {
            return Err(failed(format!("Backing file format not supported for file format '{name}'")));
        }
        new.backing_format = Some(f.to_owned());
    }
    if let Some(backing) = &new.backing {
        if backing == file {
            let why = "Error: Trying to create an image with the same filename as the backing file";
            return Err(failed(why.into()));
        }
        if backing.is_empty() {
            return Err(failed("Expected backing file name, got empty string".into()));
        }
    }
    let how = How { secrets: secrets(&parsed)?, ..How::default() };
    block_on(async {
        let below_format = match &new.backing_format {
            Some(f) => Some(names::format(f).ok_or_else(|| {
                let open = new.backing.is_some() && !parsed.has("u");
                failed(match open {
                    true => format!("Unknown driver '{f}'\nCould not open backing image."),
                    false => format!("unrecognized backing format '{f}'"),
                })
            })?),
            None => None,
        };
        let mut backing = None;
        if let Some(below) = &new.backing {
            if parsed.has("u") {
                if below_format.is_none() {
                    return Err(failed("Backing file specified without backing format".into()));
                }
                let link = BackingLink { name: below.clone(), format: below_format, identity: None };
                backing = Some(link.into());
            } else {
                let (link, bytes) = link(file, below, below_format, &how).await.map_err(|e| match e {
                    Exit::Failed(why, _) => {
                        let why = inner(&why, below);
                        failed(format!("{why}\nCould not open backing image."))
                    }
                    other => other,
                })?;
                if below_format.is_none() {
                    let found = link.link.format.map_or("raw", names::qemu_name);
                    return Err(failed(format!(
                        "Backing file specified without backing format\nDetected format of {found}."
                    )));
                }
                size = size.or(Some(bytes));
                backing = Some(link);
            }
        }
        let Some(bytes) = size else { return Err(failed("Image creation needs a size parameter".into())) };
        if !parsed.has("q") {
            say(&formatting(file, format, &new, Some(bytes)))?;
        }
        if let Some(why) = refusal(format, &new, bytes) {
            return Err(failed(why));
        }
        let secret = secret(&new, &how).map_err(failed)?;
        let files = place(file, Cache::Cached).await?;
        let explain = |e: plinth_image::Error| failed(create_reason(&e, file));
        let image = job::create(&files, format, bytes, &new.own, backing, secret.as_deref())
            .await
            .map_err(explain)?;
        if format == Format::Raw && new.own.text("preallocation").is_none_or(|p| p == "off") && bytes > 0 {
            // As QEMU does: who opens it past the page cache finds out about alignment by reading a stored block.
            let block = IoBuf::zeroed(bytes.min(4096) as usize).freeze();
            image.write(0, block).await.map_err(explain)?;
        }
        image.close().await.map_err(explain)?;
        drop(image);
        files.finish().map_err(explain)
    })
}

/// The passphrase that an encryption's options name.
pub fn secret(new: &NewOptions, how: &How) -> std::result::Result<Option<std::rc::Rc<[u8]>>, String> {
    new.secret.as_deref().map(|id| passphrase(&how.secrets, id)).transpose()
}

/// A message without what it was about.
pub fn inner<'a>(why: &'a str, name: &str) -> &'a str {
    let whole = why.strip_prefix("Could not open '").and_then(|w| w.strip_prefix(name)?.strip_prefix("': "));
    whole.or(why.split_once("': ").map(|(_, rest)| rest)).unwrap_or(why)
}
