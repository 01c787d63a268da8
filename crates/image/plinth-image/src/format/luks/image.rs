//! An open LUKS image.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use async_lock::Mutex;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::{Header, NewKey, Refusal, iter_time, kdf_option, sealed_zeros};
use crate::crypt::{CipherSpec, IvKind, KeyCost, Mode, Secret, SectorCipher, decrypt, encrypt};
use crate::format::{
    CheckReport, Description, Format, Image, OptionKind, OptionSpec, Options, Progress, Repair,
};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write,
};
use crate::{Error, ErrorKind, SECTOR};

/// Options of `amend`. The passphrases themselves are their values: who has names for them looks them up before.
const AMEND: &[OptionSpec] = &[
    OptionSpec {
        name: "state",
        kind: OptionKind::Choice(&["active", "inactive"]),
        help: "active: add a passphrase; inactive: take one away",
    },
    OptionSpec { name: "keyslot", kind: OptionKind::Number, help: "which key slot; any if not given" },
    OptionSpec { name: "new-secret", kind: OptionKind::Text, help: "the passphrase to add" },
    OptionSpec { name: "old-secret", kind: OptionKind::Text, help: "the passphrase to take away" },
    OptionSpec { name: "iter-time", kind: OptionKind::Number, help: "milliseconds that a try of it takes" },
    OptionSpec {
        name: "pbkdf",
        kind: OptionKind::Choice(&["pbkdf2", "argon2i", "argon2id"]),
        help: "how version 2 makes the key",
    },
];

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
        if payload == 0 {
            return Err("headers in files of their own are not supported".to_owned().into());
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

    /// Adds a passphrase; which slot it got.
    async fn add_key(&self, new: &NewKey<'_>) -> Result<usize, Error> {
        let key = &self.volume()?.key;
        let _alone = self.changing.lock().await;
        let mut header = self.header.borrow().clone();
        let added = match &mut header {
            Header::V1(h) => h.add_key(&*self.file, 0, key, new).await,
            Header::V2(h) => h.add_key(&*self.file, 0, key, new).await,
        };
        self.header.replace(header);
        added.map_err(|r| self.refusal(r))
    }

    fn slots(&self) -> Vec<usize> {
        match &*self.header.borrow() {
            Header::V1(h) => (0..h.slots.len()).filter(|&n| h.slots[n].active).collect(),
            Header::V2(h) => h.slots.iter().map(|s| s.id).collect(),
        }
    }

    async fn remove_key(&self, slot: usize) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        let slots = self.slots();
        let refused = |why: String| Err(self.refusal(Refusal::Invalid(why)));
        if !slots.contains(&slot) {
            return refused(format!("key slot {slot} is not in use"));
        }
        if slots.len() == 1 {
            return refused("it is the last key slot: nothing could open the image any more".to_owned());
        }
        let mut header = self.header.borrow().clone();
        let removed = match &mut header {
            Header::V1(h) => h.remove_key(&*self.file, 0, slot).await.map_err(Refusal::Io),
            Header::V2(h) => h.remove_key(&*self.file, 0, slot).await,
        };
        self.header.replace(header);
        removed.map_err(|r| self.refusal(r))
    }

    async fn change_keys(&self, options: &Options) -> Result<(), Error> {
        options.check(AMEND)?;
        check_write(self, 0, 0)?;
        self.volume()?;
        let refused = |why: &str| Err(self.refusal(Refusal::Invalid(why.to_owned())));
        let slot = options.number("keyslot")?.map(|n| n as usize);
        match (options.text("state"), options.text("new-secret"), options.text("old-secret")) {
            (Some("active"), Some(secret), None) if !secret.is_empty() => {
                let (iter_time, kdf) = (iter_time(options)?, kdf_option(options));
                self.add_key(&NewKey { secret: secret.as_bytes(), slot, iter_time, kdf }).await.map(drop)
            }
            (Some("active"), ..) => refused("state=active needs new-secret, and no old-secret"),
            (Some("inactive"), None, Some(secret)) => {
                let mut any = false;
                // The same passphrase may be in several slots.
                loop {
                    let header = self.header.borrow().clone();
                    let found =
                        header.unlock(&*self.file, 0, secret.as_bytes(), slot, &mut KeyCost::default()).await;
                    match found.map_err(|r| self.refusal(r))? {
                        Some((slot, _)) => self.remove_key(slot).await?,
                        None if any => return Ok(()),
                        None => {
                            let doing = format!("cannot change the keys of '{}'", self.info.name);
                            return Err(Error::new(ErrorKind::Key, doing, "old-secret opens no key slot"));
                        }
                    }
                    any = true;
                }
            }
            (Some("inactive"), None, None) => match slot {
                Some(slot) => self.remove_key(slot).await,
                None => refused("state=inactive needs keyslot or old-secret"),
            },
            (Some("inactive"), ..) => refused("state=inactive has no use for new-secret"),
            _ => refused("say state=active to add a passphrase, state=inactive to take one away"),
        }
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
                return self.grow(size).await;
            }
            self.file.resize(self.payload + size).await?;
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
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
        details.insert("detached-header".into(), json!(false));
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
            let mut header = Header::read(&*self.file, 0).await.map_err(|r| self.refusal(r))?;
            match &mut header {
                Header::V1(h) => h.check(&mut report),
                Header::V2(h) => {
                    h.check(&mut report);
                    if h.copies != [true; 2] && repair == Repair::All {
                        check_write(self, 0, 0)?;
                        h.write(&*self.file, 0).await.map_err(|r| self.refusal(r))?;
                        report.corruptions_fixed += 1;
                        self.header.replace(header);
                    }
                }
            }
            Ok(report)
        })
    }

    fn amend<'a>(&'a self, options: &'a Options) -> Io<'a, ()> {
        Box::pin(self.change_keys(options))
    }
}
