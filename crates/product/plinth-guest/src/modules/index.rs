//! The binary form of the tables, a prefix tree that `modprobe` maps into memory
//! (libkmod/libkmod-index.h of kmod describes it).

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;
/// Keys are ASCII, and longer ones than this do not occur; both bound the depth of the tree.
const KEY_LIMIT: usize = 1024;

/// Keys, each with its values and their ranks: of several matches, the lowest rank is used first.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    /// Adds a value. Keys that the format cannot hold are left out, as no lookup could ask for them.
    pub fn add(&mut self, key: &str, rank: u32, value: &str) {
        if key.is_ascii() && !key.is_empty() && !key.contains('\0') && key.len() <= KEY_LIMIT {
            let values = self.entries.entry(key.as_bytes().to_vec()).or_default();
            if !values.iter().any(|(_, v)| v == value) {
                values.push((rank, value.to_owned()));
            }
        }
    }

    /// The file.
    pub fn encode(&mut self) -> Vec<u8> {
        for values in self.entries.values_mut() {
            values.sort_by_key(|(rank, _)| *rank);
        }
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(VERSION.to_be_bytes());
        out.extend([0; 4]);
        let all: Vec<_> =
            self.entries.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
        let root = write_node(&mut out, &all, 0);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }
}

type Item<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes the node for `items`, which are sorted and share their first `depth` bytes; returns its offset
/// with the flags that say what it has.
fn write_node(out: &mut Vec<u8>, items: &[Item<'_>], depth: usize) -> u32 {
    let prefix_len = match (items.first(), items.last()) {
        (Some((first, _)), Some((last, _))) => {
            first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count()
        }
        _ => 0,
    };
    let end = depth + prefix_len;
    let (values, rest) = match items.first() {
        Some((key, values)) if key.len() == end => (*values, &items[1..]),
        _ => (&[][..], items),
    };
    // Children come first: their offsets are part of the node.
    let mut children: BTreeMap<u8, u32> = BTreeMap::new();
    for group in rest.chunk_by(|(a, _), (b, _)| a[end] == b[end]) {
        let offset = write_node(out, group, end + 1);
        children.insert(group[0].0[end], offset);
    }
    let mut offset = out.len() as u32;
    if prefix_len > 0 {
        offset |= HAS_PREFIX;
        out.extend_from_slice(&items[0].0[depth..end]);
        out.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first_key_value(), children.last_key_value()) {
        offset |= HAS_CHILDREN;
        out.extend([*first, *last]);
        for c in *first..=*last {
            out.extend(children.get(&c).copied().unwrap_or(0).to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= HAS_VALUES;
        out.extend((values.len() as u32).to_be_bytes());
        for (rank, value) in values {
            out.extend(rank.to_be_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tree as kmod does.
    fn lookup(file: &[u8], key: &[u8]) -> Option<Vec<String>> {
        let be = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
        let text = |at: usize| -> Vec<u8> { file[at..].iter().copied().take_while(|c| *c != 0).collect() };
        let (mut node, mut key) = (be(8), key);
        loop {
            let mut at = (node & 0x0fff_ffff) as usize;
            if node & HAS_PREFIX != 0 {
                let prefix = text(at);
                at += prefix.len() + 1;
                key = key.strip_prefix(&prefix[..])?;
            }
            let (mut first, mut last, mut table) = (1, 0, 0);
            if node & HAS_CHILDREN != 0 {
                (first, last, table) = (file[at], file[at + 1], at + 2);
                at = table + (usize::from(last - first) + 1) * 4;
            }
            let Some((c, rest)) = key.split_first() else {
                if node & HAS_VALUES == 0 {
                    return None;
                }
                let mut found = Vec::new();
                let count = be(at);
                at += 4;
                for _ in 0..count {
                    let value = text(at + 4);
                    at += 5 + value.len();
                    found.push(String::from_utf8(value).unwrap());
                }
                return Some(found);
            };
            if !(first..=last).contains(c) {
                return None;
            }
            node = be(table + usize::from(c - first) * 4);
            if node == 0 {
                return None;
            }
            key = rest;
        }
    }

    #[test]
    fn finds_what_was_added_and_nothing_else() {
        let mut index = Index::default();
        let keys = [
            "a",
            "ab",
            "abc",
            "abd",
            "pci:v00001AF4d*",
            "pci:v00001AF4d00001000*",
            "virtio:d00000001v*",
            "z",
        ];
        for (rank, key) in (0..).zip(keys) {
            index.add(key, rank, &format!("value of {key}"));
        }
        index.add("ab", 0, "better");
        let file = index.encode();
        assert_eq!(&file[..8], &[0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1]);
        for key in keys {
            let found = lookup(&file, key.as_bytes()).unwrap();
            assert_eq!(found.last().unwrap(), &format!("value of {key}"));
        }
        assert_eq!(lookup(&file, b"ab").unwrap()[0], "better");
        for key in ["", "b", "abcd", "pci:", "zz"] {
            assert_eq!(lookup(&file, key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn an_empty_index_is_one_node() {
        let file = Index::default().encode();
        assert_eq!(file.len(), 12);
        assert_eq!(lookup(&file, b"x"), None);
    }
}
