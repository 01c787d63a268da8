//! What `update-ca-certificates` makes of the package ca-certificates: the bundle, a link for each
//! certificate, and the links by the hash of the subject that OpenSSL looks for.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

use crate::error::Result;
use crate::ext4::{Extents, ImageWriter};
use crate::rootfs::read_file;
use crate::tree::{Kind, Meta, Tree};

const SHIPPED: &str = "/usr/share/ca-certificates";
const CERTS: &str = "/etc/ssl/certs";
const CONF: &str = "/etc/ca-certificates.conf";
const CONF_HEADER: &str = "\
# The certificates that are trusted, relative to /usr/share/ca-certificates.
# update-ca-certificates(8) reads this file; a line with \"!\" before it is not trusted.
";

/// Sets the certificates up. False when the package is not there or something in it is not understood;
/// then the guest has to do it.
pub fn certificates(image: &ImageWriter, tree: &mut Tree<Extents>, time: i64) -> Result<bool> {
    let mut certificates = BTreeMap::new();
    for path in shipped(tree) {
        let Some(pem) = read_file(image, tree, &format!("{SHIPPED}/{path}"))? else { return Ok(false) };
        let Some(hash) = decode_pem(&pem).and_then(|der| subject_hash(&der)) else { return Ok(false) };
        certificates.insert(path, (pem, hash));
    }
    if certificates.is_empty() {
        return Ok(false);
    }
    let file = Meta::root(0o644, time);
    let (mut conf, mut bundle) = (CONF_HEADER.to_owned(), Vec::new());
    let mut hashes: BTreeMap<u32, u32> = BTreeMap::new();
    for (path, (pem, hash)) in &certificates {
        conf += &format!("{path}\n");
        bundle.extend_from_slice(pem);
        if !pem.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        let name = link_name(path);
        tree.symlink(&format!("{CERTS}/{name}"), &format!("{SHIPPED}/{path}"), time)?;
        let number = hashes.entry(*hash).or_default();
        tree.symlink(&format!("{CERTS}/{hash:08x}.{number}"), &name, time)?;
        *number += 1;
    }
    tree.file(CONF, file, conf)?;
    tree.file(&format!("{CERTS}/ca-certificates.crt"), file, bundle)?;
    tree.directory("/usr/local/share/ca-certificates", Meta::root(0o755, time))?;
    Ok(true)
}

/// The certificates of the package: `FOLDER/NAME.crt`.
fn shipped(tree: &Tree<Extents>) -> Vec<String> {
    let mut found = Vec::new();
    let Some(root) = tree.find(SHIPPED.as_bytes(), true) else { return found };
    for (folder, id) in tree.entries(root) {
        for (name, file) in tree.entries(id) {
            if matches!(tree.node(file).kind, Kind::File(_))
                && name.ends_with(b".crt")
                && let (Ok(folder), Ok(name)) = (std::str::from_utf8(folder), std::str::from_utf8(name))
            {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    found
}

fn link_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.strip_suffix(".crt").unwrap_or(name);
    let stem: String = stem
        .chars()
        .map(|c| match c {
            ' ' | ',' => '_',
            '(' | ')' => '=',
            c => c,
        })
        .collect();
    format!("{stem}.pem")
}

/// The bytes of the one certificate in a PEM file (RFC 7468).
fn decode_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, rest) = rest.split_once("-----END CERTIFICATE-----")?;
    if rest.contains("-----BEGIN") {
        return None;
    }
    let mut out = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in body.bytes().filter(|c| !c.is_ascii_whitespace()) {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const VERSION: u8 = 0xa0;

/// OpenSSL's hash of a certificate's subject: the first four bytes, little-endian, of the SHA-1 of the
/// name in canonical form, without its outer header (openssl-x509(1), `-subject_hash`).
fn subject_hash(certificate: &[u8]) -> Option<u32> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm, issuer and validity stand before the subject.
    for _ in 0..4 {
        fields = element(fields)?.2;
    }
    let (tag, mut names, _) = element(fields)?;
    if tag != SEQUENCE {
        return None;
    }
    let mut canonical = Vec::new();
    while !names.is_empty() {
        let (tag, mut set, rest) = element(names)?;
        if tag != SET {
            return None;
        }
        let mut attributes = Vec::new();
        while !set.is_empty() {
            let (tag, attribute, rest) = element(set)?;
            if tag != SEQUENCE {
                return None;
            }
            attributes.push(encode(SEQUENCE, &canonical_attribute(attribute)?));
            set = rest;
        }
        attributes.sort();
        canonical.extend(encode(SET, &attributes.concat()));
        names = rest;
    }
    let digest = Sha1::digest(&canonical);
    Some(u32::from_le_bytes(digest.get(..4)?.try_into().ok()?))
}

/// Texts become UTF-8 in lower case (of ASCII), with single spaces inside and none around.
fn canonical_attribute(attribute: &[u8]) -> Option<Vec<u8>> {
    let (tag, object, rest) = element(attribute)?;
    let (kind, value, _) = element(rest)?;
    if tag != OBJECT_ID {
        return None;
    }
    let text: String = match kind {
        UTF8_STRING => std::str::from_utf8(value).ok()?.to_owned(),
        // PrintableString, IA5String, VisibleString, and TeletexString as Latin-1.
        0x13 | 0x14 | 0x16 | 0x1a => value.iter().map(|c| char::from(*c)).collect(),
        // BMPString.
        0x1e => value
            .chunks(2)
            .map(|pair| char::from_u32(u32::from(*pair.first()?) << 8 | u32::from(*pair.get(1)?)))
            .collect::<Option<_>>()?,
        _ => return Some(attribute.to_vec()),
    };
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
    let words: Vec<_> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    let text = words.join(" ").to_ascii_lowercase();
    Some([encode(OBJECT_ID, object), encode(UTF8_STRING, text.as_bytes())].concat())
}

/// The first element of DER data: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let len = if *first < 0x80 {
        usize::from(*first)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(count)?;
        rest = after;
        bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len();
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes = len.to_be_bytes();
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate with this subject, as far as the parser looks.
    fn certificate(subject: &[u8]) -> Vec<u8> {
        let fields = [
            encode(VERSION, &[2, 1, 2]),
            encode(2, &[1]),
            encode(SEQUENCE, &[]),
            encode(SEQUENCE, &[]),
            encode(SEQUENCE, &[]),
            encode(SEQUENCE, subject),
        ]
        .concat();
        encode(SEQUENCE, &encode(SEQUENCE, &fields))
    }

    fn name(kind: u8, text: &[u8]) -> Vec<u8> {
        let attribute = [encode(OBJECT_ID, &[0x55, 4, 3]), encode(kind, text)].concat();
        encode(SET, &encode(SEQUENCE, &attribute))
    }

    #[test]
    fn hashes_like_openssl() {
        // `openssl req -x509 -subj "/CN=Plinth Test Root"` and `openssl x509 -subject_hash`.
        let expected = 0x5ab6_c8f7;
        assert_eq!(subject_hash(&certificate(&name(UTF8_STRING, b"Plinth Test Root"))), Some(expected));
        assert_eq!(subject_hash(&certificate(&name(0x13, b"  plinth   TEST root "))), Some(expected));
        assert_ne!(subject_hash(&certificate(&name(UTF8_STRING, b"Other"))), Some(expected));
    }

    #[test]
    fn pem() {
        let pem = b"x\n-----BEGIN CERTIFICATE-----\naGVs\nbG8=\n-----END CERTIFICATE-----\n";
        assert_eq!(decode_pem(pem).unwrap(), b"hello");
        assert!(decode_pem(&[&pem[..], &pem[..]].concat()).is_none());
        assert!(decode_pem(b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----").is_none());
    }

    #[test]
    fn damaged_certificates_never_panic() {
        let good = certificate(&name(UTF8_STRING, b"Plinth Test Root"));
        for len in 0..good.len() {
            assert_eq!(subject_hash(&good[..len]), None);
        }
        for i in 0..good.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[i] = value;
                let _ = subject_hash(&bad);
            }
        }
    }

    #[test]
    fn names_of_links() {
        assert_eq!(link_name("mozilla/A (b), c.crt"), "A_=b=__c.pem");
    }
}
