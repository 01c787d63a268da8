//! Reader of the `ar` archive that a Debian package is (deb(5), ar(5)).

use std::io::{self, Read};

use crate::error::{GuestError, Result};

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_LEN: usize = 60;

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name without padding and the trailing `/` some writers add.
    pub name: String,
    /// Bytes of content.
    pub size: u64,
}

/// Walks the members of an archive in their order.
pub struct Archive<R> {
    input: R,
    /// Bytes of the current member, with its padding, that were not read yet.
    pending: u64,
    /// The padding part of `pending`.
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// Checks the magic.
    pub fn open(mut input: R) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(|e| malformed(format!("no magic: {e}")))?;
        if &magic != MAGIC {
            return Err(malformed("it is not an ar archive"));
        }
        Ok(Self { input, pending: 0, padding: 0 })
    }

    /// Goes on to the next member; `None` at the end of the archive.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let skipped = io::copy(&mut self.input.by_ref().take(self.pending), &mut io::sink())
            .map_err(|e| malformed(e.to_string()))?;
        // The padding byte after the last member is often left out.
        if self.pending - skipped > self.padding {
            return Err(malformed("a member is cut short"));
        }
        let mut header = [0; HEADER_LEN];
        let mut have = 0;
        while have < HEADER_LEN {
            match self.input.read(&mut header[have..]).map_err(|e| malformed(e.to_string()))? {
                0 if have == 0 => return Ok(None),
                0 => return Err(malformed("a member header is cut short")),
                n => have += n,
            }
        }
        if &header[58..60] != b"`\n" {
            return Err(malformed("a member header has no end mark"));
        }
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range])
                .map(str::trim_end)
                .map_err(|_| malformed("a header is not text"))
        };
        let name = text(0..16)?.trim_end_matches('/').to_owned();
        let size: u64 = text(48..58)?.parse().map_err(|_| malformed("a member size is no number"))?;
        self.padding = size & 1;
        self.pending = size + self.padding;
        Ok(Some(Member { name, size }))
    }

    /// The rest of the current member's content.
    pub fn content(&mut self) -> impl Read + '_ {
        Content { archive: self }
    }
}

struct Content<'a, R> {
    archive: &'a mut Archive<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let archive = &mut *self.archive;
        let left = archive.pending - archive.padding.min(archive.pending);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let n = archive.input.read(&mut buf[..len])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the ar member is cut short"));
        }
        archive.pending -= n as u64;
        Ok(n)
    }
}

fn malformed(reason: impl Into<String>) -> GuestError {
    GuestError::malformed("the package's ar archive", reason)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes an archive.
    pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, content) in members {
            out.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).bytes(),
            );
            out.extend_from_slice(content);
            if content.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    fn walk(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut archive = Archive::open(bytes)?;
        let mut all = Vec::new();
        while let Some(member) = archive.next_member()? {
            let mut content = Vec::new();
            archive.content().read_to_end(&mut content).map_err(|e| malformed(e.to_string()))?;
            all.push((member.name, content));
        }
        Ok(all)
    }

    #[test]
    fn reads_members() {
        let bytes = archive(&[("debian-binary", b"2.0\n"), ("odd/", b"abc"), ("even", b"wxyz")]);
        let all = walk(&bytes).unwrap();
        assert_eq!(all[1], ("odd".to_owned(), b"abc".to_vec()));
        assert_eq!(all[2].1, b"wxyz");
        // Members can be skipped without reading them.
        let mut archive = Archive::open(&bytes[..]).unwrap();
        while archive.next_member().unwrap().is_some() {}
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_list() {
        let bytes = archive(&[("debian-binary", b"2.0\n"), ("data.tar", b"0123456789abcde")]);
        let whole = walk(&bytes).unwrap().len();
        for len in 0..bytes.len() - 1 {
            if let Ok(members) = walk(&bytes[..len]) {
                assert!(members.len() < whole, "cut at {len}");
            }
        }
        // Only the padding of the last member is missing.
        assert_eq!(walk(&bytes[..bytes.len() - 1]).unwrap().len(), whole);
    }

    #[test]
    fn damaged_headers_never_panic() {
        let bytes = archive(&[("debian-binary", b"2.0\n"), ("data.tar", b"0123456789")]);
        for i in 0..bytes.len() {
            for value in [0, b' ', b'9', b'-', 0xff] {
                let mut bad = bytes.clone();
                bad[i] = value;
                let _ = walk(&bad);
            }
        }
    }
}
