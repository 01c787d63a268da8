//! Options of formats, as users write them: `cluster_size=64k,lazy_refcounts=on`.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind};

/// What an option's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// A number of bytes, with or without a unit.
    Size,
    /// A whole number.
    Number,
    /// `on` or `off`.
    Flag,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Anything.
    Text,
}

/// One option of a format.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its name; QEMU's where QEMU has it.
    pub name: &'static str,
    /// What it may be.
    pub kind: OptionKind,
    /// One line for users.
    pub help: &'static str,
}

/// Options that the user gave, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

fn invalid(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("option '{name}' cannot be used"), why)
}

/// Bytes of a size such as `512`, `64k`, `1.5G`: units are powers of 1024.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let bad = || {
        let why = "a size is a number with an optional unit: k, M, G, T, P or E, as in 20G";
        Error::new(ErrorKind::Invalid, format!("'{text}' is not a size"), why)
    };
    let t = text.trim();
    let t = t.strip_suffix("iB").or_else(|| t.strip_suffix('B').or(Some(t))).ok_or_else(bad)?;
    let (number, shift) = match t.chars().last().ok_or_else(bad)?.to_ascii_lowercase() {
        'k' => (&t[..t.len() - 1], 10),
        'm' => (&t[..t.len() - 1], 20),
        'g' => (&t[..t.len() - 1], 30),
        't' => (&t[..t.len() - 1], 40),
        'p' => (&t[..t.len() - 1], 50),
        'e' => (&t[..t.len() - 1], 60),
        _ => (t, 0),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || !whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit()) || part.len() > 15 {
        return Err(bad());
    }
    let whole: u128 = whole.parse().map_err(|_| bad())?;
    let scale = 10u128.pow(part.len() as u32);
    let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| bad())? };
    let bytes =
        whole.checked_shl(shift).filter(|v| v >> shift == whole).ok_or_else(bad)? + (part << shift) / scale;
    u64::try_from(bytes).ok().filter(|&b| b <= i64::MAX as u64).ok_or_else(bad)
}

impl Options {
    /// Reads `name=value,name=value`; two commas stand for one within a value. A name alone means `on`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut options = Self::default();
        options.add(text)?;
        Ok(options)
    }

    /// Reads more of them; later ones win.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn add(&mut self, text: &str) -> Result<(), Error> {
        let mut parts = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let last = parts.last_mut().expect("there is always one");
            if c != ',' {
                last.push(c);
            } else if chars.peek() == Some(&',') {
                chars.next();
                last.push(',');
            } else {
                parts.push(String::new());
            }
        }
        for part in parts.iter().filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, "on"));
            if name.is_empty() {
                return Err(invalid(part, "it has no name"));
            }
            self.set(name, value);
        }
        Ok(())
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Takes one away.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// True if the new image is to have the space for all of its disk from the start.
    #[must_use]
    pub fn reserves_space(&self) -> bool {
        matches!(self.text("preallocation"), Some("falloc" | "full"))
    }

    /// Refuses names and values that are not in `specs`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]; it says what there is.
    pub fn check(&self, specs: &[OptionSpec]) -> Result<(), Error> {
        for (name, value) in self.iter() {
            let Some(spec) = specs.iter().find(|s| s.name == name) else {
                let known: Vec<_> = specs.iter().map(|s| s.name).collect();
                let why = if known.is_empty() {
                    "this format has no options".to_owned()
                } else {
                    format!("this format does not have it; it has {}", known.join(", "))
                };
                return Err(invalid(name, why));
            };
            match spec.kind {
                OptionKind::Size => _ = parse_size(value).map_err(|e| invalid(name, e))?,
                OptionKind::Number => {
                    _ = value.parse::<u64>().map_err(|e| invalid(name, format!("'{value}': {e}")))?
                }
                OptionKind::Flag => {
                    if !matches!(value, "on" | "off" | "true" | "false" | "yes" | "no") {
                        return Err(invalid(name, format!("'{value}' is neither 'on' nor 'off'")));
                    }
                }
                OptionKind::Choice(choices) => {
                    if !choices.contains(&value) {
                        return Err(invalid(name, format!("'{value}' is none of {}", choices.join(", "))));
                    }
                }
                OptionKind::Text => {}
            }
        }
        Ok(())
    }

    /// A text or a choice.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        self.text(name).map(|v| parse_size(v).map_err(|e| invalid(name, e))).transpose()
    }

    /// A number.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        self.text(name).map(|v| v.parse().map_err(|e| invalid(name, format!("'{v}': {e}")))).transpose()
    }

    /// A flag.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|v| matches!(v, "on" | "true" | "yes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64k", 65536), ("1.5G", 3 << 29), ("2TiB", 2 << 40), ("7E", 7 << 60)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "k", "-1", "1..5", "8E", "99999999999999999999999999999999999999999E", "1 G", "0x10"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options() {
        const SPECS: &[OptionSpec] = &[
            OptionSpec { name: "size", kind: OptionKind::Size, help: "" },
            OptionSpec { name: "lazy", kind: OptionKind::Flag, help: "" },
            OptionSpec { name: "kind", kind: OptionKind::Choice(&["a", "b"]), help: "" },
            OptionSpec { name: "file", kind: OptionKind::Text, help: "" },
        ];
        let options = Options::parse("size=64k,lazy,file=a,,b,kind=b").unwrap();
        options.check(SPECS).unwrap();
        assert_eq!(options.size("size").unwrap(), Some(65536));
        assert_eq!((options.flag("lazy"), options.text("file")), (Some(true), Some("a,b")));
        for bad in ["sizes=1", "size=x", "lazy=maybe", "kind=c"] {
            assert_eq!(
                Options::parse(bad).unwrap().check(SPECS).unwrap_err().kind,
                ErrorKind::Invalid,
                "{bad}"
            );
        }
    }
}
