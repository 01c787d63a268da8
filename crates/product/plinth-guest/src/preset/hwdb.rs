//! The hardware database of udev, which `systemd-hwdb update` compiles from text files (hwdb(7)). The
//! binary form is a prefix tree; sd-hwdb's `hwdb-internal.h` describes it.

use std::collections::{BTreeMap, HashMap};

use crate::error::{GuestError, Result};
use crate::ext4::{Extents, ImageWriter};
use crate::rootfs::read_file;
use crate::tree::{Meta, Tree};

const SOURCES: &str = "/usr/lib/udev/hwdb.d";
const COMPILED: &str = "/usr/lib/udev/hwdb.bin";
const MAGIC: &[u8; 8] = b"KSLPHHRH";
const HEADER_LEN: u64 = 80;
const NODE_LEN: u64 = 24;
const CHILD_LEN: u64 = 16;
const VALUE_LEN: u64 = 32;
/// Longer match patterns do not occur; it bounds the depth of the tree.
const PATTERN_LIMIT: usize = 1024;

/// Compiles the database, unless the tree has no source of one.
pub fn hardware_database(image: &ImageWriter, tree: &mut Tree<Extents>, time: i64) -> Result<()> {
    let Some(folder) = tree.find(SOURCES.as_bytes(), true) else { return Ok(()) };
    let names: Vec<String> = tree
        .entries(folder)
        .filter_map(|(name, _)| std::str::from_utf8(name).ok())
        .filter(|name| name.ends_with(".hwdb"))
        .map(str::to_owned)
        .collect();
    let mut database = Database::default();
    for (priority, name) in (1..).zip(&names) {
        let path = format!("{SOURCES}/{name}");
        let text = read_file(image, tree, &path)?.unwrap_or_default();
        database.add_file(&path, priority, &String::from_utf8_lossy(&text));
    }
    if !database.matches.is_empty() {
        let compiled = database
            .encode()
            .ok_or_else(|| GuestError::malformed("the hardware database", "it is too large"))?;
        tree.file(COMPILED, Meta::root(0o444, time), compiled)?;
    }
    Ok(())
}

/// A property's value and where it was set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Value {
    text: String,
    file: u64,
    line: u32,
    priority: u16,
}

/// Properties of a match pattern by their names, which begin with a space.
type Properties = BTreeMap<String, Value>;

#[derive(Debug, Default)]
struct Database {
    matches: BTreeMap<Vec<u8>, Properties>,
    strings: Strings,
}

impl Database {
    /// A record is one or more lines with patterns, then indented properties, then an empty line. The
    /// last of several values for the same property of the same pattern counts.
    fn add_file(&mut self, path: &str, priority: u16, text: &str) {
        let file = self.strings.offset(path.as_bytes());
        let mut patterns: Vec<&str> = Vec::new();
        let mut in_properties = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('#') {
                continue;
            }
            let line = line.split('#').next().unwrap_or_default();
            let line = line.trim_end_matches(|c: char| c.is_ascii_whitespace());
            if line.is_empty() {
                patterns.clear();
                in_properties = false;
            } else if !line.starts_with(' ') {
                if in_properties {
                    // A record without an empty line before it; the database skips such lines.
                    continue;
                }
                if line.len() <= PATTERN_LIMIT && !line.contains('\0') {
                    patterns.push(line);
                }
            } else if let Some((key, value)) = line.trim_start().split_once('=') {
                in_properties = true;
                for pattern in &patterns {
                    let value = Value { text: value.to_owned(), file, line: number, priority };
                    let properties = self.matches.entry(pattern.as_bytes().to_vec()).or_default();
                    properties.insert(format!(" {key}"), value);
                }
            }
        }
    }

    /// The file; `None` when a number in it would not fit.
    fn encode(mut self) -> Option<Vec<u8>> {
        let items: Vec<(&[u8], &Properties)> =
            self.matches.iter().map(|(pattern, properties)| (pattern.as_slice(), properties)).collect();
        let mut nodes = Nodes { out: Vec::new(), strings: &mut self.strings, relocations: Vec::new() };
        let root = nodes.write(&items, 0)?;
        let Nodes { mut out, relocations, .. } = nodes;
        let nodes_len = out.len() as u64;
        // The strings follow the nodes, whose size is known only now.
        for at in relocations {
            let field = out.get_mut(at..at + 8)?;
            let offset = u64::from_le_bytes(field.try_into().ok()?) + HEADER_LEN + nodes_len;
            field.copy_from_slice(&offset.to_le_bytes());
        }
        let strings = &self.strings.bytes;
        let mut file = MAGIC.to_vec();
        for number in [
            1, // version of the tool
            HEADER_LEN + nodes_len + strings.len() as u64,
            HEADER_LEN,
            NODE_LEN,
            CHILD_LEN,
            VALUE_LEN,
            root,
            nodes_len,
            strings.len() as u64,
        ] {
            file.extend(number.to_le_bytes());
        }
        file.append(&mut out);
        file.extend_from_slice(strings);
        Some(file)
    }
}

/// Texts with a final NUL, each once. Offset 0 is the empty text.
#[derive(Debug)]
struct Strings {
    bytes: Vec<u8>,
    offsets: HashMap<Vec<u8>, u64>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { bytes: vec![0], offsets: HashMap::from([(Vec::new(), 0)]) }
    }
}

impl Strings {
    fn offset(&mut self, text: &[u8]) -> u64 {
        if let Some(offset) = self.offsets.get(text) {
            return *offset;
        }
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
        self.offsets.insert(text.to_vec(), offset);
        offset
    }
}

struct Nodes<'a> {
    out: Vec<u8>,
    strings: &'a mut Strings,
    /// Where offsets of strings stand that still lack the start of the strings.
    relocations: Vec<usize>,
}

impl Nodes<'_> {
    fn put(&mut self, number: u64) {
        self.out.extend(number.to_le_bytes());
    }

    fn put_string(&mut self, offset: u64) {
        self.relocations.push(self.out.len());
        self.put(offset);
    }

    /// Writes the node for patterns that are sorted and share their first `depth` bytes, after its
    /// children; returns its offset in the file.
    fn write(&mut self, items: &[(&[u8], &Properties)], depth: usize) -> Option<u64> {
        let ((first, properties), (last, _)) = (items.first()?, items.last()?);
        let shared = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
        let end = depth + shared;
        let (properties, rest) =
            if first.len() == end { (Some(*properties), &items[1..]) } else { (None, items) };
        let mut children: BTreeMap<u8, u64> = BTreeMap::new();
        for group in rest.chunk_by(|(a, _), (b, _)| a[end] == b[end]) {
            children.insert(group[0].0[end], self.write(group, end + 1)?);
        }
        let prefix = self.strings.offset(&first[depth..end]);
        let offset = HEADER_LEN + self.out.len() as u64;
        self.put_string(prefix);
        self.put(u64::from(u8::try_from(children.len()).ok()?));
        self.put(properties.map_or(0, |p| p.len() as u64));
        for (c, child) in children {
            self.put(u64::from(c));
            self.put(child);
        }
        for (key, value) in properties.into_iter().flatten() {
            let (key, text) =
                (self.strings.offset(key.as_bytes()), self.strings.offset(value.text.as_bytes()));
            self.put_string(key);
            self.put_string(text);
            self.put_string(value.file);
            self.put(u64::from(value.line) | u64::from(value.priority) << 32);
        }
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\n\nusb:v1*\nusb:v12p3*\n  A=1 # note\n B=x=y\n\nusb:v1*\n A=2\nbroken\n C=3\n\n\
                        é*\n D=4\n\n no pattern=5\nlonely\n";

    /// All patterns with their properties, found by walking the tree.
    fn dump(file: &[u8]) -> Vec<(String, String)> {
        fn number(file: &[u8], at: u64) -> u64 {
            u64::from_le_bytes(file[at as usize..at as usize + 8].try_into().unwrap())
        }
        fn text(file: &[u8], at: u64) -> Vec<u8> {
            file[number(file, at) as usize..].iter().copied().take_while(|c| *c != 0).collect()
        }
        fn walk(file: &[u8], node: u64, path: &[u8], found: &mut Vec<(String, String)>) {
            let path = [path, &text(file, node)].concat();
            let (children, values) = (number(file, node + 8), number(file, node + 16));
            let table = node + NODE_LEN + children * CHILD_LEN;
            for at in (0..values).map(|i| table + i * VALUE_LEN) {
                let property = [text(file, at), b"=".to_vec(), text(file, at + 8)].concat();
                found.push((String::from_utf8(path.clone()).unwrap(), String::from_utf8(property).unwrap()));
            }
            for at in (0..children).map(|i| node + NODE_LEN + i * CHILD_LEN) {
                let c = number(file, at) as u8;
                walk(file, number(file, at + 8), &[&path[..], &[c]].concat(), found);
            }
        }
        let mut found = Vec::new();
        walk(file, number(file, 56), b"", &mut found);
        found
    }

    #[test]
    fn compiles_and_finds_again() {
        let mut database = Database::default();
        database.add_file("/a.hwdb", 1, TEXT);
        database.add_file("/b.hwdb", 2, "usb:v12p3*\n B=new\n");
        let file = database.encode().unwrap();
        assert_eq!(&file[..8], MAGIC);
        assert_eq!(file.len() as u64, u64::from_le_bytes(file[16..24].try_into().unwrap()));
        let found = dump(&file);
        let found: Vec<_> = found.iter().map(|(p, v)| (p.as_str(), v.as_str())).collect();
        assert_eq!(
            found,
            [
                ("usb:v1*", " A=2"),
                ("usb:v1*", " B=x=y"),
                ("usb:v1*", " C=3"),
                ("usb:v12p3*", " A=1"),
                ("usb:v12p3*", " B=new"),
                ("é*", " D=4"),
            ]
        );
    }
}
