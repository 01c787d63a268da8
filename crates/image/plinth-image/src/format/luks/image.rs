//! An open LUKS image.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use async_lock::Mutex;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::keys::KeySlots;
use super::{Header, Refusal, sealed_zeros};
use crate::crypt::{CipherSpec, IvKind, Mode, Secret, SectorCipher, decrypt, encrypt};
use crate::format::{CheckReport, Description, Format, Image, Options, Progress, Repair};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write,
};
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of zeros that are encrypted and written at once, and how many such pieces in flight.
const ZEROS: u64 = 1 << 20;
const ZEROS_DEPTH: usize = 4;

/// The key, and what it makes.
pub struct Volume {
    key: Secret,
    cipher: Arc<SectorCipher>,
}

impl Volume {
    pub fn new(header: &Header, key: Secret) -> Result<Self, String> {
        Ok(Self { cipher: Arc::new(header.cipher(&key)?), key })
    }
}

/// A LUKS image.
pub struct LuksImage {
    info: NodeInfo,
    file: NodeRef,
    /// The header's own file.
    detached: Option<NodeRef>,
    header: RefCell<Header>,
    volume: Option<Volume>,
    /// Bytes from the file's start to the disk.
    payload: u64,
    size: Cell<u64>,
    /// The size is in the header.
    fixed: bool,
    /// IV number of the first sector.
    iv: u64,
    sector: u64,
    /// Writes of parts of sectors read and write whole ones.
    locks: RangeLocks,
    /// Changes of the header.
    changing: Mutex<()>,
}

impl LuksImage {
    pub fn new(
        file: NodeRef,
        detached: Option<NodeRef>,
        header: Header,
        volume: Option<Volume>,
        read_only: bool,
    ) -> Result<Self, Refusal> {
        let (payload, len, iv, sector) = match &header {
            Header::V1(h) => (h.payload, None, 0, SECTOR),
            Header::V2(h) => (h.segment.offset, h.segment.size, h.segment.iv, u64::from(h.segment.sector)),
        };
        let there = file.size().checked_sub(payload);
        let there = there.ok_or_else(|| format!("its data begins at {payload}, behind the file's end"))?;
        if len.is_some_and(|len| len > there) {
            return Err(format!(
                "its data ({} bytes at {payload}) ends behind the file's end",
                len.unwrap_or(0)
            )
            .into());
        }
        if payload == 0 && detached.is_none() {
            return Err("its disk is in another file, and without that file it is not supported: open that one, with --header"
                .to_owned()
                .into());
        }
        if !sector.is_power_of_two() || !(SECTOR..=4096).contains(&sector) || !payload.is_multiple_of(SECTOR)
        {
            return Err(format!("sectors of {sector} bytes at {payload} are not supported").into());
        }
        let size = len.unwrap_or(there);
        let info = NodeInfo {
            name: file.info().name.clone(),
            read_only: read_only || file.info().read_only,
            block: file.info().block.max(sector as u32),
        };
        Ok(Self {
            info,
            file,
            detached,
            header: RefCell::new(header),
            volume,
            payload,
            size: Cell::new(size - size % sector),
            fixed: len.is_some(),
            iv,
            sector,
            locks: RangeLocks::default(),
            changing: Mutex::new(()),
        })
    }

    /// The file that has the header.
    fn place(&self) -> &dyn Node {
        &**self.detached.as_ref().unwrap_or(&self.file)
    }

    fn volume(&self) -> Result<&Volume, Error> {
        self.volume.as_ref().ok_or_else(|| {
            let doing = format!("cannot use the disk in '{}'", self.info.name);
            Error::new(ErrorKind::Key, doing, "it is encrypted: give its passphrase")
        })
    }

    fn iv(&self, offset: u64) -> u64 {
        self.iv.wrapping_add(offset / SECTOR)
    }

    /// The range in whole sectors.
    fn widen(&self, offset: u64, len: u64) -> (u64, u64) {
        let start = offset - offset % self.sector;
        (start, (offset + len).next_multiple_of(self.sector) - start)
    }

    async fn read_sectors(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, Error> {
        let cipher = &self.volume()?.cipher;
        let buf = self.file.read(self.payload + offset, buf).await?;
        Ok(decrypt(cipher, self.iv(offset), buf).await)
    }

    async fn write_sectors(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let cipher = &self.volume()?.cipher;
        let data = encrypt(cipher, self.iv(offset), data.into_buf()).await;
        self.file.write(self.payload + offset, data.freeze()).await
    }

    async fn write_part(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let (start, len) = self.widen(offset, data.len() as u64);
        let _alone = self.locks.lock(start..start + len, true).await;
        let mut buf = IoBuf::new(len as usize);
        let (first, last) = (start, start + len - self.sector);
        for at in if first == last { vec![first] } else { vec![first, last] } {
            let sector = self.read_sectors(at, IoBuf::new(self.sector as usize)).await?;
            let at = (at - start) as usize;
            buf[at..at + sector.len()].copy_from_slice(&sector);
        }
        let at = (offset - start) as usize;
        buf[at..at + data.len()].copy_from_slice(&data);
        self.write_sectors(start, buf.freeze()).await
    }

    /// Writes zeros to whole sectors, which may be behind the end.
    async fn zero_sectors(&self, offset: u64, len: u64) -> Result<(), Error> {
        let cipher = &self.volume()?.cipher;
        let pieces = (0..len.div_ceil(ZEROS)).map(|n| (offset + n * ZEROS, (len - n * ZEROS).min(ZEROS)));
        let writes = stream::iter(pieces).map(|(at, n)| async move {
            let data = sealed_zeros(cipher, self.iv(at), n as usize).await;
            self.file.write(self.payload + at, data).await
        });
        writes.buffer_unordered(ZEROS_DEPTH).try_collect().await
    }

    /// Makes it longer, by zeros.
    pub async fn grow(&self, size: u64) -> Result<(), Error> {
        let old = self.size.get();
        self.zero_sectors(old, size - old).await?;
        self.size.set(size);
        Ok(())
    }

    fn refusal(&self, r: Refusal) -> Error {
        r.into_error(&self.info.name)
    }

    async fn change_keys(&self, options: &Options) -> Result<(), Error> {
        check_write(self, 0, 0)?;
        let key = &self.volume()?.key;
        let _alone = self.changing.lock().await;
        let mut header = self.header.borrow().clone();
        let mut slots = KeySlots { node: self.place(), base: 0, header: &mut header, key };
        let changed = slots.change(options, &self.info.name).await;
        self.header.replace(header);
        changed
    }
}

impl Node for LuksImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            if buf.is_empty() {
                return Ok(buf);
            }
            let (start, len) = self.widen(offset, buf.len() as u64);
            if len == buf.len() as u64 {
                return self.read_sectors(offset, buf).await;
            }
            let whole = self.read_sectors(start, IoBuf::new(len as usize)).await?;
            let at = (offset - start) as usize;
            let n = buf.len();
            buf.copy_from_slice(&whole[at..at + n]);
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            if data.is_empty() {
                return Ok(());
            }
            if (offset | data.len() as u64).is_multiple_of(self.sector) {
                let _shared = self.locks.lock(offset..offset + data.len() as u64, false).await;
                return self.write_sectors(offset, data).await;
            }
            self.write_part(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            let start = offset.next_multiple_of(self.sector).min(offset + len);
            let end = (offset + len) - (offset + len) % self.sector;
            for (from, to) in [(offset, start), (end.max(start), offset + len)] {
                if from < to {
                    self.write(from, IoBuf::zeroed((to - from) as usize).freeze()).await?;
                }
            }
            if start < end {
                let _shared = self.locks.lock(start..end, false).await;
                self.zero_sectors(start, end - start).await?;
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        // See the module's text.
        Box::pin(async move { check_write(self, offset, len) })
    }

    fn flush(&self) -> Io<'_, ()> {
        self.file.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            Ok(Extent::stored(len, None))
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let refused = |kind, why: &str| {
                Err(Error::new(kind, format!("cannot resize '{}'", self.info.name), why.to_owned()))
            };
            if self.fixed {
                return refused(ErrorKind::Unsupported, "its header gives the disk a size");
            }
            if !size.is_multiple_of(self.sector) || size.checked_add(self.payload).is_none() {
                return refused(ErrorKind::Invalid, "the size is not a multiple of the sector size");
            }
            self.volume()?;
            let _alone = self.locks.lock(0..u64::MAX, true).await;
            if size > self.size.get() {
                // A file becomes longer by itself.
                let (old, need) = (self.file.size(), self.payload + size);
                let inside = !self.file.is_open_ended() && old < need;
                if inside {
                    self.file.resize(need).await?;
                }
                let grown = self.grow(size).await;
                if inside && grown.is_err() {
                    // As it was, if it can be: the error is the one to know.
                    let _ = self.file.resize(old).await;
                }
                return grown;
            }
            self.file.resize(self.payload + size).await?;
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if let Some(header) = &self.detached {
                header.close().await?;
            }
            self.file.flush().await?;
            self.file.close().await
        })
    }
}

/// QEMU's names for a cipher's parts.
fn describe_cipher(spec: CipherSpec, key_len: usize, out: &mut serde_json::Map<String, Value>) {
    let bits = if spec.mode == Mode::Xts { key_len * 4 } else { key_len * 8 };
    out.insert("cipher-alg".into(), json!(format!("{}-{bits}", spec.algorithm.name())));
    out.insert("cipher-mode".into(), json!(spec.mode.name()));
    let (name, hash) = match spec.iv {
        IvKind::Null => ("null", None),
        IvKind::Plain => ("plain", None),
        IvKind::Plain64 => ("plain64", None),
        IvKind::Essiv(hash) => ("essiv", Some(hash)),
    };
    out.insert("ivgen-alg".into(), json!(name));
    if let Some(hash) = hash {
        out.insert("ivgen-hash-alg".into(), json!(hash.name()));
    }
}

/// What a header says, under QEMU's names. Only who has the key of version 2 knows how long it is.
pub fn describe_header(header: &Header, key_len: Option<usize>, out: &mut serde_json::Map<String, Value>) {
    match header {
        Header::V1(h) => {
            describe_cipher(h.spec, h.key_len, out);
            let slots: Vec<_> = h
                .slots
                .iter()
                .map(|s| match s.active {
                    true => json!({ "active": true, "key-offset": s.offset, "iters": s.iterations,
                        "stripes": s.stripes }),
                    false => json!({ "active": false, "key-offset": s.offset }),
                })
                .collect();
            out.insert("version".into(), json!(1));
            out.insert("hash-alg".into(), json!(h.hash.name()));
            out.insert("master-key-iters".into(), json!(h.digest_iterations));
            out.insert("uuid".into(), json!(h.uuid));
            out.insert("slots".into(), json!(slots));
        }
        Header::V2(h) => {
            let key_len = key_len.unwrap_or(0);
            describe_cipher(h.segment.spec, key_len, out);
            if key_len == 0 {
                // How long the key is, only its slots know.
                out.insert("cipher-alg".into(), json!(h.segment.spec.algorithm.name()));
            }
            let (hash, iterations) = h.digest();
            let slots: Vec<_> = h
                .slots
                .iter()
                .map(|s| json!({ "active": true, "keyslot": s.id, "pbkdf": s.pbkdf() }))
                .collect();
            out.insert("version".into(), json!(2));
            out.insert("hash-alg".into(), json!(hash.name()));
            out.insert("master-key-iters".into(), json!(iterations));
            out.insert("uuid".into(), json!(h.uuid));
            out.insert("sector-size".into(), json!(h.segment.sector));
            out.insert("slots".into(), json!(slots));
        }
    }
}

impl Image for LuksImage {
    fn format(&self) -> Format {
        Format::Luks
    }

    fn describe(&self) -> Description {
        let mut details = serde_json::Map::new();
        let key_len = self.volume.as_ref().map(|v| v.key.len());
        describe_header(&self.header.borrow(), key_len, &mut details);
        details.insert("payload-offset".into(), json!(self.payload));
        details.insert("detached-header".into(), json!(self.detached.is_some()));
        Description { encrypted: true, details, ..Description::default() }
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn check<'a>(&'a self, repair: Repair, _progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            let _alone = self.changing.lock().await;
            let mut report =
                CheckReport { image_end: self.payload + self.size.get(), ..CheckReport::default() };
            // What is on disk now, not what was found when it was opened.
            let mut header = Header::read(self.place(), 0).await.map_err(|r| self.refusal(r))?;
            match &mut header {
                Header::V1(h) => h.check(&mut report),
                Header::V2(h) => {
                    h.check(&mut report);
                    if h.copies != [true; 2] && repair == Repair::All {
                        check_write(self, 0, 0)?;
                        h.write(self.place(), 0).await.map_err(|r| self.refusal(r))?;
                        report.corruptions_fixed += 1;
                        self.header.replace(header);
                    }
                }
            }
            Ok(report)
        })
    }

    fn amend<'a>(&'a self, options: &'a Options, _progress: &'a Progress) -> Io<'a, ()> {
        Box::pin(self.change_keys(options))
    }
}
