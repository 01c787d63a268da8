//! Options as getopt_long(3) reads them: anywhere between the arguments, short ones together.

use std::collections::VecDeque;

use super::{Exit, Result};

/// A long option: its name, whether it has a value, and the short option or the name it stands for.
pub type Long = (&'static str, bool, &'static str);

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Options in order: their short letter or their name, and their value.
    pub options: Vec<(String, String)>,
    /// The other arguments.
    pub rest: Vec<String>,
}

impl Parsed {
    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|o| o.0 == name).map(|o| o.1.as_str())
    }

    /// All values of an option.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.options.iter().filter(|o| o.0 == name).map(|o| o.1.as_str()).collect()
    }

    /// True if an option is there.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|o| o.0 == name)
    }

    /// The only argument besides the options.
    pub fn one(&self, otherwise: &str) -> Result<&str> {
        match &self.rest[..] {
            [one] => Ok(one),
            _ => Err(Exit::usage(otherwise)),
        }
    }
}

/// Options that all commands have.
const COMMON: [Long; 3] =
    [("help", false, "h"), ("object", true, "object"), ("image-opts", false, "image-opts")];

/// Reads a command's arguments. `short` has each short option, with a colon behind those that have a value.
pub fn parse(args: Vec<String>, short: &str, long: &[Long]) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut args: VecDeque<String> = args.into();
    let missing = |what: &str| Exit::usage(format!("missing argument for option '{what}'"));
    let unknown = |what: &str| Exit::usage(format!("unrecognized option '{what}'"));
    while let Some(arg) = args.pop_front() {
        if arg == "--" {
            parsed.rest.extend(args);
            break;
        }
        if let Some(text) = arg.strip_prefix("--") {
            let (name, value) = match text.split_once('=') {
                Some((n, v)) => (n, Some(v.to_owned())),
                None => (text, None),
            };
            let all = || long.iter().chain(&COMMON);
            let exact = all().find(|l| l.0 == name);
            let mut begins = all().filter(|l| l.0.starts_with(name));
            // An abbreviation is taken if it is the only one.
            let found = exact.or_else(|| begins.next().filter(|_| begins.next().is_none()));
            let Some((_, takes, id)) = found else { return Err(unknown(&arg)) };
            let value = match (takes, value) {
                (true, Some(v)) => v,
                (true, None) => args.pop_front().ok_or_else(|| missing(&arg))?,
                (false, None) => String::new(),
                (false, Some(_)) => return Err(unknown(&arg)),
            };
            parsed.options.push(((*id).to_owned(), value));
            continue;
        }
        let Some(letters) = arg.strip_prefix('-').filter(|l| !l.is_empty()) else {
            parsed.rest.push(arg);
            continue;
        };
        for (at, letter) in letters.char_indices() {
            let place = if letter == ':' { None } else { short.find(letter) };
            let Some(place) = place else { return Err(unknown(&arg)) };
            let takes = short[place + letter.len_utf8()..].starts_with(':');
            let mut value = String::new();
            if takes {
                value = arg[1 + at + letter.len_utf8()..].to_owned();
                if value.is_empty() {
                    value = args.pop_front().ok_or_else(|| missing(&arg))?;
                }
            }
            parsed.options.push((letter.to_string(), value));
            if takes {
                break;
            }
        }
    }
    if parsed.has("h") {
        super::say(&super::help())?;
        return Err(Exit::Code(0));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Parsed> {
        let long = [
            ("output", true, "output"),
            ("backing-chain", false, "backing-chain"),
            ("force-share", false, "U"),
        ];
        parse(args.iter().map(|a| (*a).to_owned()).collect(), "f:Uq", &long)
    }

    #[test]
    fn options_stand_anywhere() {
        let parsed =
            read(&["a", "-qfraw", "--output=json", "b", "--backing", "--force-share", "--", "-x"]).unwrap();
        assert_eq!(parsed.rest, ["a", "b", "-x"]);
        assert_eq!((parsed.value("f"), parsed.value("output")), (Some("raw"), Some("json")));
        assert!(parsed.has("q") && parsed.has("U") && parsed.has("backing-chain"));
        for bad in [&["-f"][..], &["-x"], &["--nothing"], &["--output"], &["--force-share=1"], &["-:"]] {
            assert!(matches!(read(bad), Err(Exit::Failed(_, 1))), "{bad:?}");
        }
    }
}
