//! Passphrases: `--object secret`.

use std::collections::BTreeMap;
use std::rc::Rc;

use plinth_image::format::Options;

use super::getopt::Parsed;
use super::tree::keys;
use super::{Exit, Result};

/// Passphrases of `--object secret`, by ID.
pub type Secrets = BTreeMap<String, Rc<[u8]>>;

/// The passphrases that the command line defines.
pub fn secrets(parsed: &Parsed) -> Result<Secrets> {
    let mut all = Secrets::new();
    for text in parsed.values("object") {
        let map = keys(text, "qom-type");
        let get = |k: &str| map.get(k).map(String::as_str);
        if get("keyid").is_some() || get("iv").is_some() {
            return Err(Exit::failed("Secrets that are encrypted themselves (keyid, iv) are not supported"));
        }
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

/// The passphrase with an ID, which is text.
pub fn passphrase(all: &Secrets, id: &str) -> std::result::Result<Rc<[u8]>, String> {
    let found = all.get(id).cloned().ok_or_else(|| format!("No secret with id '{id}'"))?;
    match std::str::from_utf8(&found) {
        Ok(_) => Ok(found),
        Err(_) => Err(format!("Data from secret {id} is not valid UTF-8")),
    }
}

/// Options that change passphrases, with the passphrases in place of their IDs.
pub fn resolved(options: &Options, all: &Secrets) -> Result<Options> {
    let mut resolved = options.clone();
    for (name, id) in options.iter() {
        if name.ends_with("new-secret") || name.ends_with("old-secret") {
            let secret = passphrase(all, id).map_err(Exit::failed)?;
            resolved.set(name, &String::from_utf8_lossy(&secret));
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_text() {
        assert_eq!(base64(b"aGVs\nbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64(b"a*"), None);
    }

    #[test]
    fn passphrases_are_text() {
        let all = Secrets::from([("a".to_owned(), b"x".to_vec().into()), ("b".to_owned(), vec![255].into())]);
        assert!(passphrase(&all, "a").is_ok());
        assert!(passphrase(&all, "b").is_err() && passphrase(&all, "c").is_err());
        let options = Options::parse("state=active,new-secret=a").unwrap();
        assert_eq!(resolved(&options, &all).unwrap().text("new-secret"), Some("x"));
    }
}
