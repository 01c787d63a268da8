//! Which Debian mirror to use, and through which proxy: the host's apt knows.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::control::stanzas;
use crate::error::{GuestError, Result};

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The root of the archive, without a slash at the end.
    pub uri: String,
    /// The proxy to go through.
    pub proxy: Option<String>,
    /// The archive of security updates that the host uses.
    pub security: Option<String>,
}

/// Finds the mirror: `explicit`, else the host's apt configuration.
pub fn find(explicit: Option<&str>) -> Result<Mirror> {
    find_in(Path::new("/etc/apt"), explicit, &|name| std::env::var(name).ok())
}

fn find_in(apt: &Path, explicit: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Mirror> {
    let uri = match explicit {
        Some(uri) if is_web(uri) => uri.to_owned(),
        Some(uri) => {
            return Err(GuestError::Invalid(format!(
                "the mirror \"{uri}\" is no http:// or https:// address"
            )));
        }
        None => from_apt(apt, &score).ok_or(GuestError::NoMirror)?,
    };
    let uri = uri.trim_end_matches('/').to_owned();
    let proxy = proxy_for(&uri, &apt_options(apt), env);
    let security = from_apt(apt, &|uri, _| u32::from(is_web(uri) && uri.contains("debian-security")));
    Ok(Mirror { uri, proxy, security })
}

fn is_web(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

/// The address in the source lists that `score` likes best; it gives 0 to those it does not want.
fn from_apt(apt: &Path, score: &dyn Fn(&str, &str) -> u32) -> Option<String> {
    let mut files = vec![apt.join("sources.list")];
    files.extend(folder(&apt.join("sources.list.d")));
    let mut best: Option<(u32, String)> = None;
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let entries = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => one_line_entries(&text),
            Some("sources") => deb822_entries(&text),
            _ => continue,
        };
        for (uri, signed_by) in entries.into_iter().flat_map(|(uris, by)| {
            uris.into_iter().flat_map(|uri| expand(&uri)).map(move |uri| (uri, by.clone()))
        }) {
            let score = score(&uri, &signed_by);
            if score > best.as_ref().map_or(0, |(s, _)| *s) {
                best = Some((score, uri));
            }
        }
    }
    best.map(|(_, uri)| uri)
}

/// Prefers Debian archives. Security and third-party ones do not have the base system in them.
fn score(uri: &str, signed_by: &str) -> u32 {
    let path = uri.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    if !is_web(uri) || path.contains("debian-security") || path.contains("debian-ports") {
        0
    } else if last == "debian" {
        2
    } else {
        u32::from(signed_by.contains("debian-archive"))
    }
}

/// `mirror+file:LIST` names a file with one mirror in a line (apt-transport-mirror(1)).
fn expand(uri: &str) -> Vec<String> {
    match uri.strip_prefix("mirror+file:") {
        Some(list) => fs::read_to_string(list)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| !word.starts_with('#'))
            .map(str::to_owned)
            .collect(),
        None => vec![uri.to_owned()],
    }
}

/// A source's addresses and its `Signed-By`.
type Entry = (Vec<String>, String);

/// sources.list(5), "one-line-style format".
fn one_line_entries(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
            let mut options = "";
            if let Some(bracket) = rest.strip_prefix('[') {
                (options, rest) = bracket.split_once(']')?;
            }
            Some((vec![rest.split_whitespace().next()?.to_owned()], options.to_owned()))
        })
        .collect()
}

/// sources.list(5), "deb822-style format".
fn deb822_entries(text: &str) -> Vec<Entry> {
    // A comment line between fields is no continuation.
    let text: String = text.lines().filter(|l| !l.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
    stanzas(&text)
        .filter(|s| s.get("Types").is_some_and(|types| types.split_whitespace().any(|t| t == "deb")))
        .filter(|s| !s.get("Enabled").is_some_and(|e| e.eq_ignore_ascii_case("no")))
        .map(|s| {
            let uris = s.get("URIs").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            (uris, s.get("Signed-By").unwrap_or_default().to_owned())
        })
        .collect()
}

/// All options of apt.conf and apt.conf.d, names in lower case.
fn apt_options(apt: &Path) -> HashMap<String, String> {
    let mut options = HashMap::new();
    let mut files = folder(&apt.join("apt.conf.d"));
    files.push(apt.join("apt.conf"));
    for file in files {
        if let Ok(text) = fs::read_to_string(&file) {
            parse_options(&text, &mut options);
        }
    }
    options
}

/// apt.conf(5): `A::B "value";` and `A { B "value"; };`.
fn parse_options(text: &str, options: &mut HashMap<String, String>) {
    let mut scopes: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let name = |scopes: &[String], word: Option<&String>| {
        let all: Vec<_> = scopes.iter().chain(word).filter(|s| !s.is_empty()).map(String::as_str).collect();
        all.join("::").to_ascii_lowercase()
    };
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if rest.starts_with("//") || c == '#' {
            rest = rest.split_once('\n').map_or("", |(_, r)| r);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, r)| r);
        } else if c == '"' {
            let (word, r) = after.split_once('"').unwrap_or((after, ""));
            words.push(word.to_owned());
            rest = r;
        } else if c == '{' {
            scopes.push(words.pop().unwrap_or_default());
            words.clear();
            rest = after;
        } else if c == '}' {
            scopes.pop();
            words.clear();
            rest = after;
        } else if c == ';' {
            if let [key, value] = &words[..] {
                options.insert(name(&scopes, Some(key)), value.clone());
            }
            words.clear();
            rest = after;
        } else if c.is_whitespace() {
            rest = after;
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "{};\"".contains(c)).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
    }
}

/// apt's order: the proxy of the host, of the scheme, then the environment.
fn proxy_for(
    uri: &str,
    options: &HashMap<String, String>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    let host = rest.split(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let mut keys = vec![format!("acquire::{scheme}::proxy::{host}"), format!("acquire::{scheme}::proxy")];
    if scheme == "https" {
        keys.push("acquire::http::proxy".to_owned());
    }
    if let Some(proxy) = keys.iter().find_map(|key| options.get(key)).filter(|p| !p.is_empty()) {
        return (!proxy.eq_ignore_ascii_case("DIRECT")).then(|| proxy.trim_end_matches('/').to_owned());
    }
    let variable =
        |name: &str| env(name).or_else(|| env(&name.to_ascii_uppercase())).filter(|v| !v.is_empty());
    let direct = variable("no_proxy").is_some_and(|list| {
        list.split(',').map(|item| item.trim().trim_start_matches("*.").trim_start_matches('.')).any(|item| {
            item == "*" || (!item.is_empty() && (host == item || host.ends_with(&format!(".{item}"))))
        })
    });
    if direct {
        return None;
    }
    variable(&format!("{scheme}_proxy"))
        .or_else(|| variable("all_proxy"))
        .map(|p| p.trim_end_matches('/').to_owned())
}

/// The files of a folder by name; none when it cannot be read.
fn folder(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn no_env(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn deb822_sources() {
        let dir = apt(&[
            (
                "sources.list.d/debian.sources",
                "Types: deb\nURIs: http://security.example/debian-security\nSuites: bookworm-security\n\n\
                 Types: deb deb-src\n# a note\nURIs:\n http://mirror.example/debian/\nSuites: bookworm\n",
            ),
            ("sources.list.d/other.sources", "Types: deb\nURIs: https://other.example/node\nSuites: x\n"),
        ]);
        let mirror = find_in(dir.path(), None, &no_env).unwrap();
        assert_eq!(mirror.uri, "http://mirror.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://security.example/debian-security"));
    }

    #[test]
    fn one_line_sources() {
        let dir = apt(&[(
            "sources.list",
            "# deb http://old.example/debian x main\ndeb cdrom:[Debian]/ x main\n\
             deb-src http://src.example/debian x main\n\
             deb [arch=amd64 signed-by=/k] https://m.example/debian trixie main # yes\n",
        )]);
        assert_eq!(find_in(dir.path(), None, &no_env).unwrap().uri, "https://m.example/debian");
    }

    #[test]
    fn nothing_fitting_is_an_error_that_names_the_option() {
        let dir = apt(&[("sources.list", "deb http://archive.example/ubuntu noble main\n")]);
        let error = find_in(dir.path(), None, &no_env).unwrap_err();
        assert!(error.to_string().contains("--mirror"));
        assert!(find_in(dir.path(), Some("ftp://x"), &no_env).is_err());
        let mirror = find_in(dir.path(), Some("http://x.example/d/"), &no_env).unwrap();
        assert_eq!(mirror.uri, "http://x.example/d");
    }

    #[test]
    fn disabled_sources_do_not_count() {
        let dir = apt(&[(
            "sources.list.d/a.sources",
            "Types: deb\nEnabled: no\nURIs: http://mirror.example/debian\nSuites: x\n",
        )]);
        assert!(find_in(dir.path(), None, &no_env).is_err());
    }

    #[test]
    fn proxies() {
        let conf = "// c\nAcquire { /* x */ http { Proxy \"http://p:1/\"; Proxy::near.example \"DIRECT\"; }; };\n\
                    APT::Foo \"1\"; DPkg::Post { \"cmd; }\"; };";
        let mut options = HashMap::new();
        parse_options(conf, &mut options);
        let proxy = |uri: &str| proxy_for(uri, &options, &no_env);
        assert_eq!(proxy("http://far.example/debian").as_deref(), Some("http://p:1"));
        assert_eq!(proxy("https://far.example/debian").as_deref(), Some("http://p:1"));
        assert_eq!(proxy("http://near.example/debian"), None);
        let env = |name: &str| match name {
            "http_proxy" => Some("http://e:2".to_owned()),
            "NO_PROXY" => Some("localhost, .inside.example".to_owned()),
            _ => None,
        };
        let none = HashMap::new();
        assert_eq!(proxy_for("http://far.example/d", &none, &env).as_deref(), Some("http://e:2"));
        assert_eq!(proxy_for("http://a.inside.example/d", &none, &env), None);
        assert_eq!(proxy_for("https://far.example/d", &none, &env), None);
    }

    #[test]
    fn garbage_configuration_never_panics() {
        for text in ["{{{", "}}}", "\"", "a \"b", "/*", "A::B", ";;;", "é{\"ü\";}"] {
            parse_options(text, &mut HashMap::new());
        }
        one_line_entries("deb [\ndeb\ndeb \ndeb []\n");
    }
}
