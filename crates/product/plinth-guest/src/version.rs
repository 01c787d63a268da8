//! Debian version numbers: `[epoch:]upstream[-revision]`, ordered as deb-version(7) says.

use std::cmp::Ordering;

/// A relation between versions as written in a dependency, Debian Policy section 7.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl Relation {
    /// Reads the operator, with the old spellings `<` and `>` that mean "or equal".
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "<<" => Self::Earlier,
            "<=" | "<" => Self::EarlierOrEqual,
            "=" => Self::Equal,
            ">=" | ">" => Self::LaterOrEqual,
            ">>" => Self::Later,
            _ => return None,
        })
    }

    /// Does `version` stand in this relation to `bound`?
    pub fn holds(self, version: &str, bound: &str) -> bool {
        let order = compare(version, bound);
        match self {
            Self::Earlier => order == Ordering::Less,
            Self::EarlierOrEqual => order != Ordering::Greater,
            Self::Equal => order == Ordering::Equal,
            Self::LaterOrEqual => order != Ordering::Less,
            Self::Later => order == Ordering::Greater,
        }
    }
}

/// Orders two versions.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_rest) = split_epoch(a);
    let (b_epoch, b_rest) = split_epoch(b);
    let (a_upstream, a_revision) = split_revision(a_rest);
    let (b_upstream, b_revision) = split_revision(b_rest);
    compare_digits(a_epoch.as_bytes(), b_epoch.as_bytes())
        .then_with(|| compare_part(a_upstream.as_bytes(), b_upstream.as_bytes()))
        .then_with(|| compare_part(a_revision.as_bytes(), b_revision.as_bytes()))
}

fn split_epoch(version: &str) -> (&str, &str) {
    version.split_once(':').unwrap_or(("0", version))
}

fn split_revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, ""))
}

/// Alternates between non-digit and digit runs, as deb-version(7) describes.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let a_text = a.iter().take_while(|c| !c.is_ascii_digit()).count();
        let b_text = b.iter().take_while(|c| !c.is_ascii_digit()).count();
        let order = compare_text(&a[..a_text], &b[..b_text]);
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[a_text..], &b[b_text..]);
        let a_digits = a.iter().take_while(|c| c.is_ascii_digit()).count();
        let b_digits = b.iter().take_while(|c| c.is_ascii_digit()).count();
        let order = compare_digits(&a[..a_digits], &b[..b_digits]);
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[a_digits..], &b[b_digits..]);
    }
    Ordering::Equal
}

/// `~` sorts before the end of the text, letters before everything else.
fn compare_text(a: &[u8], b: &[u8]) -> Ordering {
    let weight = |c: Option<&u8>| match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    for i in 0..a.len().max(b.len()) {
        let order = weight(a.get(i)).cmp(&weight(b.get(i)));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Compares numbers of any length without overflow.
fn compare_digits(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| digits.iter().take_while(|c| **c == b'0').count();
    let (a, b) = (&a[strip(a)..], &b[strip(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_like_dpkg() {
        // Each line is in ascending order.
        for line in [
            "1.0~~ 1.0~~a 1.0~ 1.0 1.0a 1.0+b1 1.0.1",
            "0:9 1:1 2:0",
            "1.0-1 1.0-1+b1 1.0-1+deb13u1 1.0-2 1.0-10",
            "2.41-12+deb13u3 2.41-12+deb13u4",
            "257.4-4~ 257.13-1~deb13u1 257.13-1",
            "1.2-3-1 1.2-3-2",
            "9 10 99999999999999999999999 100000000000000000000000",
        ] {
            let versions: Vec<_> = line.split(' ').collect();
            for (i, a) in versions.iter().enumerate() {
                for (j, b) in versions.iter().enumerate() {
                    assert_eq!(compare(a, b), i.cmp(&j), "{a} against {b}");
                }
            }
        }
    }

    #[test]
    fn equal_spellings() {
        assert_eq!(compare("0:1.0-0", "1.0"), Ordering::Equal);
        assert_eq!(compare("1.00", "1.0"), Ordering::Equal);
        assert_eq!(compare("", ""), Ordering::Equal);
    }

    #[test]
    fn relations() {
        assert!(Relation::parse(">=").unwrap().holds("2.41", "2.38"));
        assert!(!Relation::parse("<<").unwrap().holds("2.41", "2.41"));
        assert!(Relation::parse("=").unwrap().holds("1:1.0", "1:1.0-0"));
        assert!(Relation::parse("=>").is_none());
    }
}
