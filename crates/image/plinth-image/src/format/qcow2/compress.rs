//! Compressed clusters.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use plinth_host::aio;

use super::Core;
use super::header::Compression;
use super::map::Entry;
use crate::graph::{IoBuf, IoData};
use crate::{Error, ErrorKind};

/// libdeflate's level: its files are smaller than those of zlib's default, in 0.3 of the time.
const ZLIB_LEVEL: i32 = 5;
/// Zstandard's own default.
const ZSTD_LEVEL: i32 = 3;
/// Bytes of unpacked clusters that are kept, so that small reads of one cluster unpack it once.
const KEPT: u64 = 2 << 20;

thread_local! {
    static DEFLATE: RefCell<Option<libdeflater::Compressor>> = const { RefCell::new(None) };
    static INFLATE: RefCell<Option<libdeflater::Decompressor>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses a cluster. `None` if that does not make it smaller.
pub fn pack(kind: Compression, cluster: &[u8]) -> Option<IoData> {
    let mut out = IoBuf::new(cluster.len() - 1);
    let n = match kind {
        Compression::Zlib => DEFLATE.with_borrow_mut(|packer| {
            let level = libdeflater::CompressionLvl::new(ZLIB_LEVEL).ok()?;
            packer
                .get_or_insert_with(|| libdeflater::Compressor::new(level))
                .deflate_compress(cluster, &mut out)
                .ok()
        })?,
        Compression::Zstd => ZSTD.with_borrow_mut(|packer| {
            if packer.is_none() {
                *packer = Some(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?);
            }
            packer.as_mut()?.compress_to_buffer(cluster, &mut out[..]).ok()
        })?,
    };
    out.truncate(n);
    Some(out.freeze())
}

/// Unpacks a cluster of `len` bytes. `packed` may be followed by something else.
pub fn unpack(kind: Compression, packed: &[u8], len: usize) -> Result<IoBuf, String> {
    let mut out = IoBuf::new(len);
    match kind {
        Compression::Zlib => {
            let done = INFLATE.with_borrow_mut(|unpacker| {
                let unpacker = unpacker.get_or_insert_with(libdeflater::Decompressor::new);
                unpacker.deflate_decompress(packed, &mut out)
            });
            match done {
                Ok(n) if n == len => {}
                Ok(n) => return Err(format!("it unpacks to {n} bytes instead of {len}")),
                Err(e) => return Err(e.to_string()),
            }
        }
        Compression::Zstd => {
            // Frames, until the cluster is full; behind them is anything.
            let mut reader = zstd::stream::read::Decoder::with_buffer(packed).map_err(|e| e.to_string())?;
            // More than a window of the cluster's size is of no use.
            reader.window_log_max(27).map_err(|e| e.to_string())?;
            std::io::Read::read_exact(&mut reader, &mut out).map_err(|e| e.to_string())?;
        }
    }
    Ok(out)
}

/// Clusters that were unpacked lately, by their entries.
#[derive(Default)]
pub struct Unpacked(VecDeque<(u64, Rc<IoBuf>)>);

impl Unpacked {
    fn get(&self, word: u64) -> Option<Rc<IoBuf>> {
        self.0.iter().find(|e| e.0 == word).map(|e| e.1.clone())
    }

    fn put(&mut self, word: u64, cluster: Rc<IoBuf>) {
        let most = (KEPT / cluster.len().max(1) as u64).clamp(1, 64) as usize;
        while self.0.len() >= most {
            self.0.pop_front();
        }
        self.0.push_back((word, cluster));
    }

    /// Forgets all, because an entry may come to mean something else.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Core {
    /// The bytes of a compressed cluster.
    pub async fn unpack(&self, entry: Entry) -> Result<Rc<IoBuf>, Error> {
        if let Some(cluster) = self.unpacked.borrow().get(entry.word) {
            return Ok(cluster);
        }
        let (offset, len) = self.compressed(entry);
        let corrupt = |why: String| {
            Error::corrupt(&self.info.name, format!("the compressed cluster at {offset:#x}: {why}"))
        };
        if len > self.cluster + 1024 || offset >= self.file.size() {
            return Err(corrupt(format!("its {len} bytes are not in the file")));
        }
        let packed = self.file.read(offset, IoBuf::new(len as usize)).await?;
        let (kind, len) = (self.header.borrow().compression, self.cluster as usize);
        let cluster = aio::offload(move || unpack(kind, &packed, len)).await;
        let cluster = Rc::new(cluster.map_err(corrupt)?);
        self.unpacked.borrow_mut().put(entry.word, cluster.clone());
        Ok(cluster)
    }

    /// Writes one cluster, or the last part of the disk, compressed if that makes it smaller.
    pub async fn write_packed(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let refused = |kind, why: &str| {
            Err(Error::new(kind, format!("cannot write compressed data to '{}'", self.info.name), why))
        };
        let whole = data.len() as u64 == self.cluster || offset + data.len() as u64 == self.size.get();
        if !offset.is_multiple_of(self.cluster) || !whole || data.len() as u64 > self.cluster {
            return refused(ErrorKind::Invalid, "it must be one whole cluster");
        }
        if self.crypt.is_some() {
            return refused(ErrorKind::Unsupported, "encrypted images cannot have compressed clusters");
        }
        if self.data.is_some() {
            return refused(ErrorKind::Unsupported, "a data file cannot have compressed clusters");
        }
        if data.is_empty() {
            return Ok(());
        }
        let kind = self.header.borrow().compression;
        let len = self.cluster as usize;
        let plain = data.clone();
        let packed = aio::offload(move || {
            if plain.len() == len {
                return pack(kind, &plain);
            }
            let mut padded = IoBuf::zeroed(len);
            padded[..plain.len()].copy_from_slice(&plain);
            pack(kind, &padded)
        });
        let Some(packed) = packed.await else { return self.write_data(offset, data).await };
        self.begin_change(offset, data.len() as u64).await?;
        let _alone = self.locks.lock(self.clusters(offset, self.cluster), true).await;
        let bytes = packed.len() as u64;
        self.table_for_change((offset >> self.bits) / self.l2_entries()).await?;
        let at = self.allocate_bytes(bytes).await?;
        let Some(entry) = self.compressed_entry(at, bytes) else {
            return self.write_locked(offset, data).await;
        };
        if let Err(e) = self.file.write(at, packed).await {
            let (first, last) = (at >> self.bits, (at + bytes - 1) >> self.bits);
            let mut pending = self.alloc.pending.borrow_mut();
            pending.push(super::alloc::Freed::data(first, last - first + 1));
            self.changed();
            return Err(e);
        }
        self.set_entries(offset >> self.bits, &[entry], false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_unpacks_even_with_something_behind() {
        let mut cluster = vec![0u8; 65536];
        let mut random = crate::testing::Random::new(5);
        for b in &mut cluster {
            *b = random.below(7) as u8;
        }
        for kind in [Compression::Zlib, Compression::Zstd] {
            let packed = pack(kind, &cluster).unwrap();
            let mut longer = packed.to_vec();
            longer.extend([0x55; 700]);
            assert_eq!(&unpack(kind, &longer, cluster.len()).unwrap()[..], cluster);
            unpack(kind, &packed[..packed.len() / 2], cluster.len()).unwrap_err();
            unpack(kind, &[0xff; 300], cluster.len()).unwrap_err();
            let noise: Vec<u8> = (0..65536).map(|_| random.number() as u8).collect();
            assert!(pack(kind, &noise).is_none());
        }
    }
}
