//! Opening what the user names: a file, `json:{...}`, or `driver=...,key=value`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use plinth_image::ErrorKind;
use plinth_image::format::{Format, Image, OpenOptions, Trust, open, raw::RawImage};
use plinth_image::graph::{Cache, HttpNode, MemoryNode, NodeRef, SliceNode};
use plinth_nbd::uri::Uri;
use serde_json::Value;

use super::getopt::Parsed;
use super::{Exit, Result, names, reason};
use crate::command::disk::open_source;

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
    /// Files that the user has named.
    pub allowed: Vec<PathBuf>,
    /// Passphrases by the ID of their object.
    pub secrets: Secrets,
}

/// Passphrases of `--object secret`, by ID.
pub type Secrets = BTreeMap<String, Rc<[u8]>>;

/// The passphrases that the command line defines.
pub fn secrets(parsed: &Parsed) -> Result<Secrets> {
    let mut all = Secrets::new();
    for text in parsed.values("object") {
        let map = keys(text, "qom-type");
        let get = |k: &str| map.get(k).map(String::as_str);
        if get("qom-type") != Some("secret") {
            return Err(Exit::failed(format!(
                "invalid object type: {}",
                get("qom-type").unwrap_or_default()
            )));
        }
        let Some(id) = get("id") else { return Err(Exit::failed("Parameter 'id' is missing")) };
        let data: Vec<u8> = match (get("data"), get("file")) {
            (Some(data), None) => data.as_bytes().to_vec(),
            (None, Some(file)) => {
                std::fs::read(file).map_err(|e| Exit::failed(format!("Unable to read {file}: {e}")))?
            }
            _ => return Err(Exit::failed("Either 'file' or 'data' must be provided for a secret")),
        };
        let data = if get("format") == Some("base64") {
            base64(&data).ok_or_else(|| Exit::failed("Base64 data is not valid"))?
        } else {
            data
        };
        all.insert(id.to_owned(), data.into());
    }
    Ok(all)
}

/// Base 64 (RFC 4648, section 4); line breaks are skipped.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut have) = (0u32, 0);
    for &c in text.iter().filter(|c| !c.is_ascii_whitespace() && **c != b'=') {
        let v = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(v);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    Some(out)
}

/// `key=value,key=value`, where a first part without a key is the value of `first`; two commas stand for one.
pub fn keys(text: &str, first: &str) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    // The character cannot be in an argument.
    for (n, part) in text.replace(",,", "\0").split(',').enumerate() {
        let part = part.replace('\0', ",");
        match part.split_once('=') {
            Some((k, v)) => map.insert(k.to_owned(), v.to_owned()),
            None if n == 0 => map.insert(first.to_owned(), part),
            None if part.is_empty() => None,
            None => map.insert(part, "on".to_owned()),
        };
    }
    map
}

/// The keys of a JSON description, with dots between the levels.
fn flatten(prefix: &str, value: &Value, map: &mut BTreeMap<String, String>) {
    let join = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    match value {
        Value::Object(all) => all.iter().for_each(|(k, v)| flatten(&join(k), v, map)),
        Value::Array(all) => all.iter().enumerate().for_each(|(n, v)| flatten(&join(&n.to_string()), v, map)),
        Value::Bool(b) => drop(map.insert(prefix.to_owned(), if *b { "on" } else { "off" }.to_owned())),
        Value::String(s) => drop(map.insert(prefix.to_owned(), s.clone())),
        Value::Null => drop(map.insert(prefix.to_owned(), String::new())),
        Value::Number(n) => drop(map.insert(prefix.to_owned(), n.to_string())),
    }
}

/// JSON with strings in single quotes too, which QEMU takes, as plain JSON.
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => out.push('\''),
                Some(next) => out.extend(['\\', next]),
                None => out.push(c),
            },
            ('"' | '\'', None) => {
                quote = Some(c);
                out.push('"');
            }
            (c, Some(q)) if c == q => {
                quote = None;
                out.push('"');
            }
            ('"', Some(_)) => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
    out
}

/// What a name of the user means.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    path: PathBuf,
    format: Option<Format>,
    read_only: Option<bool>,
    share: bool,
    direct: Option<bool>,
    secret: Option<String>,
    /// First byte and length of the part that is the disk, of a raw image.
    slice: Option<(u64, Option<u64>)>,
    no_backing: bool,
    /// No file at all, but so many zeros.
    null: Option<u64>,
    /// The path is an address.
    remote: bool,
}

fn protocol(name: &str) -> Option<&str> {
    let (prefix, _) = name.split_once(':')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    (!prefix.is_empty() && prefix.bytes().all(plain)).then_some(prefix)
}

fn understand(name: &str, image_opts: bool) -> std::result::Result<Named, String> {
    let mut map = BTreeMap::new();
    if image_opts {
        map = keys(name, "file");
        // The value of `file` alone is a name, or another node's.
        if let Some(file) = map.remove("file") {
            map.insert("file.filename".into(), file);
        }
    } else if let Some(text) = name.strip_prefix("json:") {
        let value: Value = serde_json::from_str(&double_quoted(text))
            .map_err(|e| format!("Could not parse the JSON options: {e}"))?;
        if !value.is_object() {
            return Err("Invalid JSON object given".to_owned());
        }
        flatten("", &value, &mut map);
    } else {
        let path = name.strip_prefix("file:").unwrap_or(name);
        if Uri::looks_like(name) || HttpNode::is_address(name) {
            return Ok(Named { path: name.into(), remote: true, ..Named::default() });
        }
        if let Some(protocol) = protocol(name).filter(|p| *p != "file") {
            return Err(format!("Unknown protocol '{protocol}'"));
        }
        return Ok(Named { path: path.into(), ..Named::default() });
    }
    let mut named = Named::default();
    if let Some("null-co" | "null-aio") = map.get("driver").or(map.get("file.driver")).map(String::as_str) {
        /// What QEMU takes if nothing is said.
        const SIZE: u64 = 1 << 30;
        let size = map.get("size").or(map.get("file.size"));
        named.null =
            Some(size.map_or(Some(SIZE), |s| names::size(s)?.ok()).ok_or("Parameter 'size' expects a size")?);
        return Ok(named);
    }
    let on = |v: &str| match v {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{v}' expects 'on' or 'off'")),
    };
    let number = |k: &str, v: &str| match names::size(v) {
        Some(Ok(n)) => Ok(n),
        _ => Err(format!("Parameter '{k}' expects a size")),
    };
    let (mut offset, mut size) = (None, None);
    // A raw image over a file may be written as the file alone.
    let protocol_only = matches!(map.get("driver").map(String::as_str), Some("file" | "host_device"));
    for (key, value) in &map {
        let inner = key.strip_prefix("file.").unwrap_or(key);
        match (key.as_str(), inner) {
            ("driver", _) if protocol_only => {}
            ("driver", _) => {
                named.format = Some(names::format(value).ok_or_else(|| format!("Unknown driver '{value}'"))?);
            }
            (_, "driver") if matches!(value.as_str(), "file" | "host_device") => {}
            (_, "driver") => return Err(format!("Unknown driver '{value}'")),
            (_, "filename") => named.path = value.strip_prefix("file:").unwrap_or(value).into(),
            (_, "read-only") => named.read_only = Some(on(value)?),
            (_, "force-share") => named.share |= on(value)?,
            (_, "cache.direct") => named.direct = Some(on(value)?),
            ("key-secret" | "encrypt.key-secret", _) => named.secret = Some(value.clone()),
            ("offset", _) => offset = Some(number(key, value)?),
            ("size", _) => size = Some(number(key, value)?),
            ("backing", _) if value.is_empty() => named.no_backing = true,
            // What these ask for is so in any case, or of no importance to one command.
            (_, "node-name" | "auto-read-only" | "cache.no-flush" | "cache.writeback" | "detect-zeroes")
            | (_, "discard" | "aio" | "locking" | "encrypt.format" | "lazy-refcounts") => {}
            _ => {
                let driver = map.get("driver").map_or("file", String::as_str);
                return Err(format!("Block driver '{driver}' does not support the option '{key}'"));
            }
        }
    }
    if named.path.as_os_str().is_empty() {
        return Err("A block device must be specified for \"file\"".to_owned());
    }
    if offset.is_some() || size.is_some() {
        if named.format.is_some_and(|f| f != Format::Raw) {
            return Err("Only raw images have the options 'offset' and 'size'".to_owned());
        }
        named.slice = Some((offset.unwrap_or(0), size));
    }
    Ok(named)
}

/// Folders whose files images may name, from the environment.
fn allowed_by_environment() -> Vec<PathBuf> {
    std::env::var_os("PLINTH_ALLOW_BACKING").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default()
}

/// The file of a name, for commands that look at it from outside.
pub fn path(name: &str, image_opts: bool) -> Option<PathBuf> {
    understand(name, image_opts).ok().map(|n| n.path)
}

/// The safe rules, with what the user has allowed.
pub fn trust(how: &How) -> Trust {
    let mut allowed = allowed_by_environment();
    allowed.extend(how.allowed.iter().cloned());
    Trust { allowed, nothing: false }
}

/// Opens an image by the user's name for it.
pub async fn image(name: &str, format: Option<&str>, image_opts: bool, how: &How) -> Result<Rc<dyn Image>> {
    let refused = |why: &str| Exit::failed(format!("Could not open '{name}': {why}"));
    let named = understand(name, image_opts).map_err(|e| refused(&e))?;
    if let Some(size) = named.null {
        let zeros = MemoryNode::new(name);
        zeros.set_size(size);
        return Ok(Rc::new(RawImage::new(Rc::new(zeros), how.read_only)));
    }
    let format = match format {
        Some(f) => Some(names::format(f).ok_or_else(|| refused(&format!("Unknown driver '{f}'")))?),
        None => named.format,
    };
    let secret = match &named.secret {
        Some(id) => {
            let found = how.secrets.get(id).cloned();
            Some(found.ok_or_else(|| refused(&format!("No secret with id '{id}'")))?)
        }
        None => None,
    };
    let cache = match named.direct {
        Some(true) => Cache::Direct,
        Some(false) => Cache::Cached,
        None => how.cache,
    };
    let options = OpenOptions {
        format,
        read_only: named.read_only.unwrap_or(how.read_only) || how.read_only,
        cache,
        share: how.share || named.share,
        trust: trust(how),
        secret,
        no_backing: how.no_backing || named.no_backing,
        header: None,
    };
    let path = &named.path;
    if named.remote {
        return open_source(path, &options).await.map(|o| o.image).map_err(|e| refused(&e.message));
    }
    let failed = |e: plinth_image::Error| refused(&open_reason(&e, path, options.read_only));
    let image = match open(path, &options).await {
        Ok(opened) => opened.image,
        // QEMU has no idea that such a file is not a disk.
        Err(e) if e.kind == ErrorKind::Format && format.is_none() => {
            let raw = OpenOptions { format: Some(Format::Raw), ..options.clone() };
            open(path, &raw).await.map_err(failed)?.image
        }
        Err(e) => return Err(failed(e)),
    };
    let Some((offset, size)) = named.slice else { return Ok(image) };
    let whole = image.size();
    let rest =
        whole.checked_sub(offset).ok_or_else(|| refused("The offset is beyond the end of the file"))?;
    let size = size.unwrap_or(rest);
    if size > rest {
        return Err(refused("The sum of offset and size is beyond the end of the file"));
    }
    let part = SliceNode::new(image as NodeRef, offset, size).map_err(failed)?;
    Ok(Rc::new(RawImage::new(Rc::new(part), options.read_only)))
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
        let path = |n: &str, o| understand(n, o).map(|n| (n.path.display().to_string(), n.format));
        assert_eq!(path("a/b.raw", false), Ok(("a/b.raw".into(), None)));
        assert_eq!(path("file:x", false), Ok(("x".into(), None)));
        assert_eq!(path("./a:b", false), Ok(("./a:b".into(), None)));
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"x,y"}}"#;
        assert_eq!(path(json, false), Ok(("x,y".into(), Some(Format::Qcow2))));
        assert_eq!(path("driver=raw,file.filename=x,,y", true), Ok(("x,y".into(), Some(Format::Raw))));
        assert_eq!(path("x.raw", true), Ok(("x.raw".into(), None)));
        assert_eq!(
            path("json:{'driver':'raw','file':{'filename':'a\"b'}}", false),
            Ok(("a\"b".into(), Some(Format::Raw)))
        );
        assert_eq!(
            understand("json:{'driver': 'null-co', 'size': 1048576}", false).unwrap().null,
            Some(1 << 20)
        );
        let slice = understand("driver=raw,offset=1k,size=2k,file.filename=x", true).unwrap();
        assert_eq!(slice.slice, Some((1024, Some(2048))));
        for (bad, opts) in
            [("nbd:x", false), ("json:{", false), ("driver=vax,file.filename=x", true), ("driver=raw", true)]
        {
            assert!(understand(bad, opts).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_text() {
        assert_eq!(base64(b"aGVs\nbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64(b"a*"), None);
    }
}
