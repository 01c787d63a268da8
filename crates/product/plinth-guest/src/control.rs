//! Debian control data: stanzas of `Field: value` with continuation lines (deb822(5)), and the
//! dependency fields in them (Debian Policy chapter 7).

use crate::version::Relation;

/// One stanza: fields in their order. Names compare without case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// The value of a field, continuation lines joined by newlines as written.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All fields in the order of the text.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

/// Splits a text into its stanzas. Lines that follow no form are skipped: one bad field must not make
/// an index of sixty thousand packages unusable.
pub fn stanzas(text: &str) -> impl Iterator<Item = Stanza> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let mut stanza = Stanza::default();
        for line in lines.by_ref() {
            if line.trim().is_empty() {
                if !stanza.fields.is_empty() {
                    return Some(stanza);
                }
            } else if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = stanza.fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':')
                && !line.starts_with('#')
            {
                stanza.fields.push((name.to_owned(), value.trim().to_owned()));
            }
        }
        (!stanza.fields.is_empty()).then_some(stanza)
    })
}

/// One alternative of a dependency: `name[:arch] [(relation version)]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Atom {
    /// The package or virtual package.
    pub name: String,
    /// The architecture qualifier, without `any` and `native` which mean "of this system" here.
    pub arch: Option<String>,
    /// The versions that will do.
    pub version: Option<(Relation, String)>,
}

/// One group of alternatives, `a | b`: one of them is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The alternatives, most wanted first.
    pub alternatives: Vec<Atom>,
    /// The text, for messages.
    pub text: String,
}

/// Reads a dependency field. What cannot be read is kept as an alternative that nothing satisfies, so
/// that it is reported and not ignored.
pub fn dependencies(field: &str) -> Vec<Dependency> {
    field
        .split(',')
        .map(str::trim)
        .filter(|group| !group.is_empty())
        .map(|group| Dependency {
            alternatives: group.split('|').map(atom).collect(),
            text: group.to_owned(),
        })
        .collect()
}

fn atom(text: &str) -> Atom {
    let (head, bound) = match text.split_once('(') {
        Some((head, bound)) => (head, Some(bound.trim_end().trim_end_matches(')'))),
        None => (text, None),
    };
    // Architecture and build-profile restrictions do not occur in binary packages.
    let head = head.split(['[', '<']).next().unwrap_or_default().trim();
    let (name, arch) = match head.split_once(':') {
        Some((name, "any" | "native")) => (name, None),
        Some((name, arch)) => (name, Some(arch.to_owned())),
        None => (head, None),
    };
    let mut name = name.to_owned();
    let version = bound.and_then(|bound| {
        let bound = bound.trim();
        let split = bound.find(|c: char| !matches!(c, '<' | '=' | '>')).unwrap_or(bound.len());
        let (relation, version) = bound.split_at(split);
        Relation::parse(relation).map(|relation| (relation, version.trim().to_owned()))
    });
    if bound.is_some() && version.is_none() {
        name.clear();
    }
    Atom { name, arch, version }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stanzas() {
        let text = "Package: a\nDescription: short\n long\n .\nVersion: 1\n\n\n# note\nPackage: b\n";
        let all: Vec<_> = stanzas(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("description"), Some("short\n long\n ."));
        assert_eq!(all[0].get("Version"), Some("1"));
        assert_eq!(all[1].get("Package"), Some("b"));
        assert_eq!(all[1].get("Version"), None);
    }

    #[test]
    fn reads_dependencies() {
        let deps = dependencies("libc6 (>= 2.41), default-mta|exim4:any (<<4) , python3:native, x:amd64,");
        assert_eq!(deps.len(), 4);
        assert_eq!(deps[0].alternatives[0].version, Some((Relation::LaterOrEqual, "2.41".into())));
        assert_eq!(deps[1].alternatives[1].name, "exim4");
        assert_eq!(deps[1].alternatives[1].version, Some((Relation::Earlier, "4".into())));
        assert_eq!(deps[2].alternatives[0].arch, None);
        assert_eq!(deps[3].alternatives[0].arch.as_deref(), Some("amd64"));
    }

    #[test]
    fn garbage_is_kept_as_unsatisfiable_or_skipped() {
        assert_eq!(dependencies("a (~ 1)")[0].alternatives[0].name, "");
        assert_eq!(dependencies("a ()")[0].alternatives[0].name, "");
        assert!(dependencies(" , ,").is_empty());
        assert_eq!(stanzas("\n \n:\n : x\nno colon\n").count(), 1);
        assert_eq!(stanzas(" leading continuation\n").count(), 0);
    }
}
