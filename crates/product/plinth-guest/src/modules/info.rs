//! What a module file says about itself.

use crate::error::{GuestError, Result};

/// The parts of a module's ELF file that `depmod` looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Names of the modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Patterns of devices and names it answers to.
    pub aliases: Vec<String>,
    /// `softdep` texts: `pre: a b post: c`.
    pub softdeps: Vec<String>,
    /// `weakdep` texts.
    pub weakdeps: Vec<String>,
    /// Symbols it exports.
    pub symbols: Vec<String>,
}

impl ModuleInfo {
    /// Reads an unpacked module; `path` is for messages.
    pub fn parse(path: &str, elf: &[u8]) -> Result<Self> {
        let sections = sections(elf).ok_or_else(|| {
            GuestError::malformed(format!("the kernel module {path}"), "it is not a 64-bit ELF file")
        })?;
        let mut info = Self::default();
        let section = |name: &str| sections.iter().find(|(n, _)| *n == name.as_bytes()).map(|(_, s)| *s);
        for field in strings(section(".modinfo").unwrap_or_default()) {
            match field.split_once('=') {
                Some(("depends", list)) => {
                    info.depends = list.split(',').filter(|n| !n.is_empty()).map(underscored).collect();
                }
                Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
                Some(("softdep", text)) => info.softdeps.push(text.to_owned()),
                Some(("weakdep", text)) => info.weakdeps.push(text.to_owned()),
                _ => {}
            }
        }
        // Of every exported symbol there is one with this prefix, the entry in the table of exports.
        info.symbols = strings(section(".strtab").unwrap_or_default())
            .filter_map(|name| name.strip_prefix("__ksymtab_"))
            .map(str::to_owned)
            .collect();
        Ok(info)
    }

    /// Modules that should be loaded before this one.
    pub fn soft_before(&self) -> Vec<String> {
        let mut before = Vec::new();
        for text in &self.softdeps {
            let mut pre = false;
            for word in text.split_whitespace() {
                match word {
                    "pre:" => pre = true,
                    "post:" => pre = false,
                    name if pre => before.push(underscored(name)),
                    _ => {}
                }
            }
        }
        before
    }
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The texts of a section of NUL-terminated strings; those that are not text are skipped.
fn strings(section: &[u8]) -> impl Iterator<Item = &str> {
    section.split(|c| *c == 0).filter(|s| !s.is_empty()).filter_map(|s| std::str::from_utf8(s).ok())
}

/// Name and content of the sections of a little-endian ELF64 file.
fn sections(elf: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let bytes = |at: u64, len: u64| -> Option<&[u8]> {
        let at = usize::try_from(at).ok()?;
        elf.get(at..at.checked_add(usize::try_from(len).ok()?)?)
    };
    let number = |at: u64, len: u64| -> Option<u64> {
        Some(bytes(at, len)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    // Class 64, data little-endian.
    if bytes(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry_len, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |i: u64| table.checked_add(i.checked_mul(entry_len)?);
    let content = |i: u64| -> Option<&[u8]> {
        const NO_BITS: u64 = 8;
        let at = header(i)?;
        if number(at.checked_add(4)?, 4)? == NO_BITS {
            return Some(&[]);
        }
        bytes(number(at.checked_add(0x18)?, 8)?, number(at.checked_add(0x20)?, 8)?)
    };
    let names = content(names)?;
    (0..count)
        .map(|i| {
            let name = names.get(usize::try_from(number(header(i)?, 4)?).ok()?..)?;
            let name = name.split(|c| *c == 0).next()?;
            Some((name, content(i)?))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file of these sections.
    pub(crate) fn elf(list: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut names = vec![0];
        let mut headers = vec![0; 64];
        let mut section = |out: &mut Vec<u8>, name: u32, content: &[u8]| {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4] = 1;
            header[0x18..0x20].copy_from_slice(&(out.len() as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(content.len() as u64).to_le_bytes());
            out.extend_from_slice(content);
            headers.extend(header);
        };
        for (name, content) in list {
            section(&mut out, names.len() as u32, content);
            names.extend(name.bytes().chain([0]));
        }
        let name = names.len() as u32;
        names.extend(b".shstrtab\0");
        section(&mut out, name, &names);
        let table = out.len() as u64;
        out[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        out[0x3a] = 64;
        out[0x3c] = list.len() as u8 + 2;
        out[0x3e] = list.len() as u8 + 1;
        out.extend(headers);
        out
    }

    #[test]
    fn reads_modinfo() {
        let bytes = elf(&[
            (".modinfo", b"license=GPL\0alias=pci:v*\0depends=crc-x,b\0softdep=pre: c d post: e\0\0"),
            (".strtab", b"\0foo\0__ksymtab_foo\0x\0__ksymtab_bar\0"),
        ]);
        let info = ModuleInfo::parse("x.ko", &bytes).unwrap();
        assert_eq!(info.depends, ["crc_x", "b"]);
        assert_eq!(info.aliases, ["pci:v*"]);
        assert_eq!(info.soft_before(), ["c", "d"]);
        assert_eq!(info.symbols, ["foo", "bar"]);
    }

    #[test]
    fn garbage_never_panics() {
        let bytes = elf(&[(".modinfo", b"depends=a\0")]);
        for len in 0..bytes.len() {
            let _ = ModuleInfo::parse("x.ko", &bytes[..len]);
        }
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] = 0xff;
            let _ = ModuleInfo::parse("x.ko", &bad);
        }
        assert!(ModuleInfo::parse("x.ko", b"").is_err());
    }
}
