//! Chunks of an image that are compressed each by itself: decompressed on all cores, and kept for a while.

use std::cell::{Cell, RefCell};
use std::io::Read;

use async_lock::Mutex;
use futures_util::future::join_all;
use plinth_host::aio;

use crate::Error;
use crate::graph::{IoBuf, IoData, Node, read_table};

/// Bytes of a chunk at most, compressed or not.
pub const MAX_CHUNK: u64 = 64 << 20;
/// Decompressed bytes that are kept, unless one chunk has more.
const KEPT: u64 = 16 << 20;
/// Chunks that are decompressed together when they are read one after the other, and their bytes.
const AHEAD: u64 = 16;
/// The same for xz, whose decoder needs much memory.
const AHEAD_XZ: usize = 4;
const AHEAD_BYTES: u64 = 8 << 20;

/// How a chunk is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Apple Data Compression.
    Adc,
    /// zlib (RFC 1950).
    Zlib,
    /// bzip2.
    Bzip2,
    /// LZFSE.
    Lzfse,
    /// LZMA in an xz container.
    Xz,
}

/// A chunk in the file.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    pub codec: Codec,
    /// Where it is in the file, and its bytes there.
    pub offset: u64,
    pub len: u64,
    /// Its bytes when decompressed.
    pub size: u64,
}

impl Codec {
    /// Decompresses to exactly `size` bytes.
    ///
    /// # Errors
    /// It is damaged, or has fewer bytes.
    pub fn unpack(self, packed: &[u8], size: usize) -> Result<IoBuf, String> {
        /// Dictionaries of 32 MiB, and what the decoder needs besides.
        const XZ_MEMORY: u64 = 34 << 20;
        // What a header says of a chunk's size costs memory, so what cannot be true is refused before: a copy in
        // ADC gives 67 bytes for 3, one in deflate 258 for 2 bits.
        let most = match self {
            Codec::Adc => packed.len().saturating_mul(23),
            Codec::Zlib => packed.len().saturating_mul(1032),
            _ => usize::MAX,
        };
        if size > most {
            return Err("the compressed data ends too early".to_owned());
        }
        let mut out = IoBuf::new(size);
        let read = |from: &mut dyn Read, out: &mut [u8]| from.read_exact(out).map_err(|e| e.to_string());
        match self {
            Codec::Adc => adc(packed, &mut out)?,
            Codec::Zlib => read(&mut flate2::read::ZlibDecoder::new(packed), &mut out)?,
            Codec::Bzip2 => read(&mut bzip2::read::BzDecoder::new(packed), &mut out)?,
            Codec::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0);
                let stream = stream.map_err(|e| e.to_string())?;
                read(&mut liblzma::read::XzDecoder::new_stream(packed, stream), &mut out)?;
            }
            Codec::Lzfse => {
                let mut decoder = lzfse_rust::LzfseRingDecoder::default();
                read(&mut decoder.reader_bytes(packed), &mut out)?;
            }
        }
        Ok(out)
    }
}

/// ADC: bytes as they are, and copies of what came before. It was never described but by programs; this is the form
/// that all of them read: `1nnnnnnn` and n + 1 bytes; `0nnnnndd` and one byte of distance, n + 3 bytes;
/// `01nnnnnn` and two bytes of distance, n + 4 bytes.
fn adc(mut packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let short = || "the compressed data ends too early".to_owned();
    let mut done = 0;
    while done < out.len() {
        let (&head, rest) = packed.split_first().ok_or_else(short)?;
        if head & 0x80 != 0 {
            let n = usize::from(head & 0x7f) + 1;
            let (bytes, rest) = rest.split_at_checked(n).ok_or_else(short)?;
            let n = n.min(out.len() - done);
            out[done..done + n].copy_from_slice(&bytes[..n]);
            done += n;
            packed = rest;
            continue;
        }
        let (n, distance, rest) = if head & 0x40 != 0 {
            let ([a, b], rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::from(head & 0x3f) + 4, usize::from(*a) << 8 | usize::from(*b), rest)
        } else {
            let ([a], rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::from(head >> 2 & 0x0f) + 3, usize::from(head & 3) << 8 | usize::from(*a), rest)
        };
        let from = done.checked_sub(distance + 1).ok_or("the compressed data refers to what is not there")?;
        for k in 0..n.min(out.len() - done) {
            out[done + k] = out[from + k];
        }
        done += n.min(out.len() - done);
        packed = rest;
    }
    Ok(())
}

/// Decompressed chunks by number, the last used one last.
pub struct ChunkCache {
    kept: RefCell<Vec<(u64, IoData)>>,
    /// The chunk that was asked for last, to find out who reads one after the other.
    last: Cell<u64>,
    /// One load at a time: it bounds memory, and uses all cores itself.
    loading: Mutex<()>,
}

impl Default for ChunkCache {
    fn default() -> Self {
        Self { kept: RefCell::default(), last: Cell::new(u64::MAX), loading: Mutex::new(()) }
    }
}

impl ChunkCache {
    fn get(&self, n: u64) -> Option<IoData> {
        let mut kept = self.kept.borrow_mut();
        let at = kept.iter().position(|k| k.0 == n)?;
        let entry = kept.remove(at);
        let data = entry.1.clone();
        kept.push(entry);
        Some(data)
    }

    fn keep(&self, n: u64, data: IoData) {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|k| k.0 != n);
        kept.push((n, data));
        let mut bytes: u64 = kept.iter().map(|k| k.1.len() as u64).sum();
        while bytes > KEPT && kept.len() > 1 {
            bytes -= kept.remove(0).1.len() as u64;
        }
    }

    /// The `n`th chunk. `find` says what a chunk is; `None` if there is none, or it is not compressed. Some that follow
    /// are decompressed with it if chunks are asked for one after the other.
    ///
    /// # Errors
    /// The chunk is damaged; the file's.
    pub async fn chunk(
        &self,
        file: &dyn Node,
        n: u64,
        find: &dyn Fn(u64) -> Option<Packed>,
    ) -> Result<IoData, Error> {
        let in_a_row = self.last.replace(n).wrapping_add(1) == n;
        if let Some(data) = self.get(n) {
            return Ok(data);
        }
        let _alone = self.loading.lock().await;
        // Somebody else may have loaded it meanwhile.
        if let Some(data) = self.get(n) {
            return Ok(data);
        }
        let mut wanted = Vec::new();
        let mut bytes = 0;
        for k in n..n.saturating_add(if in_a_row { AHEAD } else { 1 }) {
            let Some(packed) = find(k) else { continue };
            bytes = packed.size.max(packed.len).saturating_add(bytes);
            if k > n && (bytes > AHEAD_BYTES || (packed.codec == Codec::Xz && wanted.len() >= AHEAD_XZ)) {
                break;
            }
            if k == n || self.get(k).is_none() {
                wanted.push((k, packed));
            }
        }
        let loaded = join_all(wanted.iter().map(|(_, packed)| unpack(file, *packed))).await;
        let mut result = None;
        for ((k, _), data) in wanted.iter().zip(loaded) {
            match data {
                Ok(data) => {
                    if *k == n {
                        result = Some(Ok(data.clone()));
                    }
                    self.keep(*k, data);
                }
                // One that nobody has asked for yet fails when it is asked for.
                Err(e) if *k == n => result = Some(Err(e)),
                Err(_) => {}
            }
        }
        result.unwrap_or_else(|| Err(Error::corrupt(&file.info().name, format!("there is no chunk {n}"))))
    }
}

async fn unpack(file: &dyn Node, packed: Packed) -> Result<IoData, Error> {
    let Packed { codec, offset, len, size } = packed;
    let name = &file.info().name;
    if len > MAX_CHUNK || size > MAX_CHUNK {
        return Err(Error::corrupt(name, format!("a chunk has {} bytes", len.max(size))));
    }
    let bytes = read_table(file, offset, len as usize, "a compressed chunk").await?;
    let data = aio::offload(move || codec.unpack(&bytes, size as usize)).await;
    data.map(IoBuf::freeze).map_err(|why| {
        Error::corrupt(name, format!("the compressed chunk at {offset} cannot be read: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adc_copies() {
        let packed = [0x82, b'a', b'b', b'c', 0x04, 2, 0x40, 0, 1];
        let mut out = [0; 11];
        adc(&packed, &mut out).unwrap();
        assert_eq!(&out, b"abcabcacaca");
        assert!(adc(&packed, &mut [0; 13]).is_err());
        assert!(adc(&[0x04, 0], &mut out).is_err());
    }
}
