//! `blkdebug`: faults on purpose, for who tests how a program takes them.
//!
//! Of QEMU's rules, those whose events every format has: `read_aio`, `write_aio`, `flush_to_disk`, `flush_to_os` and
//! `none`, with `errno`, `once`, `sector` and `iotype`. Rules for events inside of QEMU's own formats never happen,
//! and neither do rules for states that only `set-state` leads to. Faults begin when the image is open.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use plinth_image::Error;
use plinth_image::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef};

use super::names;
use super::tree::Tree;

/// What a rule makes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Any,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    kind: Kind,
    errno: i32,
    once: bool,
    sector: Option<u64>,
}

/// The rules of a node, and its alignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    rules: Vec<Fault>,
    align: Option<u32>,
    config: String,
}

/// What `blkdebug:CONFIG:FILE` describes; `text` is what stands behind the first colon.
pub fn described(text: &str) -> Result<Tree, String> {
    let (config, file) =
        text.split_once(':').ok_or("blkdebug requires raw copy of original image filename")?;
    let mut map = BTreeMap::from([
        ("file.driver".to_owned(), "blkdebug".to_owned()),
        ("file.image.filename".to_owned(), file.to_owned()),
    ]);
    if !config.is_empty() {
        map.insert("file.config".to_owned(), config.to_owned());
    }
    Ok(Tree::new(map))
}

/// The name of a section, and its options.
type Section = (String, BTreeMap<String, String>);

/// The sections of a configuration.
fn sections(text: &str) -> Result<Vec<Section>, String> {
    let mut all: Vec<Section> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            all.push((name.to_owned(), BTreeMap::new()));
            continue;
        }
        let bad = || format!("'{line}' in the blkdebug configuration is not understood");
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        let (_, options) = all.last_mut().ok_or_else(bad)?;
        options.insert(key.trim().to_owned(), value.trim().trim_matches('"').to_owned());
    }
    Ok(all)
}

fn fault(options: &BTreeMap<String, String>) -> Result<Option<Fault>, String> {
    let get = |key: &str| options.get(key).map(String::as_str);
    let number = |key: &str| {
        get(key)
            .map(|v| v.parse::<u64>().map_err(|_| format!("Parameter '{key}' expects a number")))
            .transpose()
    };
    let kind = match (get("event").unwrap_or("none"), get("iotype")) {
        ("read_aio", _) | ("none", Some("read")) => Kind::Read,
        ("write_aio", _) | ("none", Some("write")) => Kind::Write,
        ("flush_to_disk" | "flush_to_os", _) | ("none", Some("flush")) => Kind::Flush,
        ("none", None) => Kind::Any,
        _ => return Ok(None),
    };
    if number("state")?.is_some_and(|s| s > 1) {
        return Ok(None);
    }
    /// What QEMU takes if nothing is said: EIO.
    const ERRNO: u64 = 5;
    Ok(Some(Fault {
        kind,
        errno: number("errno")?.unwrap_or(ERRNO) as i32,
        once: matches!(get("once"), Some("on" | "true" | "yes")),
        sector: number("sector")?,
    }))
}

impl Faults {
    /// Takes the options out of a description.
    pub fn take(tree: &mut Tree) -> Result<Self, String> {
        let mut faults = Self::default();
        if let Some(path) = tree.options.remove("config") {
            let text = std::fs::read_to_string(&path)
                .map_err(|e| format!("Could not open blkdebug configuration '{path}': {e}"))?;
            faults.config = path;
            for (name, options) in sections(&text)? {
                if name == "inject-error" {
                    faults.rules.extend(fault(&options)?);
                }
            }
        }
        if let Some(text) = tree.options.remove("align") {
            let bytes = names::size(&text).and_then(Result::ok).and_then(|n| u32::try_from(n).ok());
            let bytes = bytes.filter(|n| n.is_power_of_two());
            faults.align = Some(bytes.ok_or_else(|| format!("Cannot meet constraints with align {text}"))?);
        }
        let mut rules: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (key, value) in &tree.options {
            if let Some((number, name)) = key.strip_prefix("inject-error.").and_then(|k| k.split_once('.')) {
                rules.entry(number.to_owned()).or_default().insert(name.to_owned(), value.clone());
            }
        }
        for options in rules.values() {
            faults.rules.extend(fault(options)?);
        }
        // Limits of requests change nothing that can be seen.
        let limits = ["max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"];
        tree.options.retain(|k, _| {
            !["inject-error.", "set-state."].iter().any(|p| k.starts_with(p)) && !limits.contains(&k.as_str())
        });
        Ok(faults)
    }

    /// A node with these faults.
    pub fn over(self, image: NodeRef) -> Faulty {
        let mut info = image.info().clone();
        info.name = format!("blkdebug:{}:{}", self.config, info.name);
        info.block = info.block.max(self.align.unwrap_or(1));
        Faulty { info, image, rules: RefCell::new(self.rules), armed: Rc::default() }
    }
}

/// A node with faults.
pub struct Faulty {
    info: NodeInfo,
    image: NodeRef,
    rules: RefCell<Vec<Fault>>,
    armed: Rc<Cell<bool>>,
}

impl Faulty {
    /// Whether faults happen yet.
    pub fn armed(&self) -> Rc<Cell<bool>> {
        self.armed.clone()
    }

    fn check(&self, kind: Kind, offset: u64, len: u64) -> Result<(), Error> {
        if !self.armed.get() {
            return Ok(());
        }
        let mut rules = self.rules.borrow_mut();
        let found = rules.iter().position(|r| {
            (r.kind == kind || r.kind == Kind::Any)
                && r.sector.is_none_or(|s| (offset..offset.saturating_add(len)).contains(&(s * 512)))
        });
        let Some(at) = found else { return Ok(()) };
        let rule = if rules[at].once { rules.remove(at) } else { rules[at].clone() };
        let error = std::io::Error::from_raw_os_error(rule.errno);
        Err(Error::from_host("use", &self.info.name, error))
    }
}

impl Node for Faulty {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            self.check(Kind::Read, offset, buf.len() as u64)?;
            self.image.read(offset, buf).await
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            self.check(Kind::Write, offset, data.len() as u64)?;
            self.image.write(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            self.check(Kind::Write, offset, len)?;
            self.image.write_zeroes(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        self.image.discard(offset, len)
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            self.check(Kind::Flush, 0, u64::MAX)?;
            self.image.flush().await
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        self.image.status(offset, len)
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        self.image.resize(size)
    }

    fn close(&self) -> Io<'_, ()> {
        self.image.close()
    }

    fn is_open_ended(&self) -> bool {
        self.image.is_open_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let text = "[inject-error]\nevent = \"read_aio\"\nerrno = \"28\"\nonce = \"on\"\n\n[set-state]\nevent = \"x\"\n";
        let all = sections(text).unwrap();
        assert_eq!(all.len(), 2);
        let rule = fault(&all[0].1).unwrap().unwrap();
        assert_eq!(rule, Fault { kind: Kind::Read, errno: 28, once: true, sector: None });
        let l1 = BTreeMap::from([("event".to_owned(), "l1_update".to_owned())]);
        assert_eq!(fault(&l1).unwrap(), None);
        assert!(sections("event = 1").is_err());
        let tree = described("conf:a:b").unwrap();
        assert_eq!(tree.filename(), Some("a:b"));
        assert_eq!(tree.below["file"].get("config"), Some("conf"));
    }
}
