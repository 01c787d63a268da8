//! What a boot file holds, in the file or unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use plinth_memory::{Bytes, GuestAddress, GuestRam};

use super::Compression;

/// Bytes of the largest copy made at once.
const CHUNK: usize = 1 << 20;

/// The bytes of a kernel or firmware.
pub enum Content<'a> {
    /// In a file, which may be large: it is copied straight into RAM.
    File {
        /// The file.
        file: &'a File,
        /// Its length in bytes.
        len: u64,
    },
    /// In memory.
    Memory(Vec<u8>),
}

impl<'a> Content<'a> {
    /// The whole of `file`.
    pub fn of_file(file: &'a File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self::File { file, len: meta.len() })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory(v) => v.len() as u64,
        }
    }

    /// Reads all of `buf` from byte `offset`.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.read_exact_at(buf, offset),
            Self::Memory(v) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let bytes = start.checked_add(buf.len()).and_then(|end| v.get(start..end));
                buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// The first `max` bytes, or all if there are fewer.
    pub fn head(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; usize::try_from(self.len()).map_or(max, |l| l.min(max))];
        self.read_exact_at(&mut head, 0)?;
        Ok(head)
    }

    /// Copies `len` bytes from `offset` to guest address `gpa`, which the caller has checked to be RAM.
    pub fn copy_to(&self, ram: &GuestRam, gpa: u64, offset: u64, len: u64) -> io::Result<()> {
        let mut buf = vec![0; usize::try_from(len).map_or(CHUNK, |l| l.min(CHUNK))];
        let mut done = 0;
        while done < len {
            let n = usize::try_from(len - done).map_or(CHUNK, |l| l.min(CHUNK));
            let part = &mut buf[..n];
            self.read_exact_at(part, offset + done)?;
            ram.memory().write_slice(part, GuestAddress(gpa + done)).map_err(io::Error::other)?;
            done += n as u64;
        }
        Ok(())
    }

    /// Unpacks `len` bytes from `offset`. The result has at most `limit` bytes.
    pub fn unpack(&self, how: Compression, offset: u64, len: u64, limit: u64) -> io::Result<Vec<u8>> {
        let source = Window { content: self, at: offset, end: offset.saturating_add(len).min(self.len()) };
        let source = io::BufReader::with_capacity(1 << 16, source);
        let mut out = Vec::new();
        // One byte more, to tell a result of exactly `limit` bytes from a larger one.
        match how {
            Compression::Gzip => {
                flate2::bufread::MultiGzDecoder::new(source).take(limit + 1).read_to_end(&mut out)
            }
            Compression::Zstd => ruzstd::decoding::StreamingDecoder::new(source)
                .map_err(io::Error::other)?
                .take(limit + 1)
                .read_to_end(&mut out),
        }?;
        if out.len() as u64 > limit {
            return Err(io::Error::other("unpacked, it is larger than the guest's memory"));
        }
        Ok(out)
    }
}

struct Window<'a, 'f> {
    content: &'a Content<'f>,
    at: u64,
    end: u64,
}

impl Read for Window<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = usize::try_from(self.end.saturating_sub(self.at)).map_or(buf.len(), |l| l.min(buf.len()));
        let part = &mut buf[..n];
        self.content.read_exact_at(part, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
