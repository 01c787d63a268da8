//! LUKS: encrypted disks of Linux, versions 1 and 2.
//!
//! A header with key slots, and behind it the disk, encrypted sector by sector. Each key slot has the volume's key,
//! encrypted with a key made from a passphrase.
//!
//! **Without a passphrase** an image can be opened and described, but not read.
//!
//! **A new image** reads as noise, not as zeros, in this program as in all others: what was never written decrypts to
//! whatever. [`status`](Node::status) says so, and who copies a disk must write its zeros too. With
//! `preallocation=full` all is written, and reads as zeros. What `resize` adds is always written. A discard does
//! nothing, and so does `unmap`: holes would turn into noise, and show what is in use.
//!
//! **Order of writes.** Data needs none: each sector is at its place. LUKS1's key slots: the material and the inactive
//! slot's entry, flush, then the one word that makes it active, flush; a slot that goes away is made inactive, flush,
//! then overwritten. LUKS2: the material, flush, then one copy of the header, flush, the other one, flush: one good
//! copy is there at any time, and the newer one wins.
//!
//! **A header in a file of its own** ("detached") is all but the disk, which begins at the other file's first byte
//! unless the header says more. Without it that file is noise, and nothing tells that it is encrypted.
//!
//! **qcow2** has such a header [inside] of its file, see [`crypt`](crate::crypt).

mod image;
pub mod inside;
mod keys;
mod v1;
mod v2;

pub use keys::{ALL_SLOTS_IN_USE, LAST_KEY, NO_SUCH_KEY, SLOT_IN_USE};

use std::rc::Rc;
use std::sync::Arc;

use self::image::{LuksImage, Volume};
use super::{
    CheckReport, CreateRequest, Driver, Format, Image, OpenRequest, OptionKind, OptionSpec, Options,
};
use crate::crypt::{
    CipherSpec, Hash, IvKind, KeyCost, Secret, SectorCipher, af_merge, af_split, encrypt, random,
};
use crate::graph::{IoBuf, IoData, MemoryNode, Node, read_table};
use crate::{Error, ErrorKind, SECTOR};

/// Ciphers with the bits of their keys, modes and IVs of new volumes.
pub(super) const CIPHERS: &[&str] = &[
    "aes-128",
    "aes-192",
    "aes-256",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
];
pub(super) const MODES: &[&str] = &["xts", "cbc", "ecb"];
pub(super) const IV_KINDS: &[&str] = &["plain", "plain64", "essiv"];

/// Encrypted disks.
pub static DRIVER: Driver = Driver {
    format: Format::Luks,
    probe: |sample| {
        sample.head.starts_with(b"LUKS\xba\xbe\0\x01") || sample.head.starts_with(b"LUKS\xba\xbe\0\x02")
    },
    open: |request| Box::pin(open_with(request, KeyCost::default())),
    create: Some(|request| Box::pin(create(request))),
    options: &[
        OptionSpec {
            name: "version",
            kind: OptionKind::Choice(&["1", "2"]),
            help: "of LUKS; 1 if not given",
        },
        OptionSpec {
            name: "cipher-alg",
            kind: OptionKind::Choice(CIPHERS),
            help: "cipher and bits of its key; aes-256 if not given",
        },
        OptionSpec {
            name: "cipher-mode",
            kind: OptionKind::Choice(MODES),
            help: "cipher mode; xts if not given",
        },
        OptionSpec {
            name: "ivgen-alg",
            kind: OptionKind::Choice(IV_KINDS),
            help: "how sectors get their IVs; plain64 if not given",
        },
        OptionSpec {
            name: "ivgen-hash-alg",
            kind: OptionKind::Choice(Hash::NAMES),
            help: "hash of essiv; sha256 if not given",
        },
        OptionSpec {
            name: "hash-alg",
            kind: OptionKind::Choice(Hash::NAMES),
            help: "hash that keys are made with; sha256 if not given",
        },
        OptionSpec {
            name: "iter-time",
            kind: OptionKind::Number,
            help: "milliseconds that a try of a passphrase takes; 2000 if not given",
        },
        OptionSpec {
            name: "pbkdf",
            kind: OptionKind::Choice(&["pbkdf2", "argon2i", "argon2id"]),
            help: "how version 2 makes keys from passphrases; argon2id if not given",
        },
        OptionSpec {
            name: "sector-size",
            kind: OptionKind::Choice(&["512", "1024", "2048", "4096"]),
            help: "bytes that version 2 encrypts as one; 4096 if not given",
        },
        OptionSpec {
            name: "detached-header",
            kind: OptionKind::Flag,
            help: "write the header only, for a disk in a file of its own",
        },
        OptionSpec {
            name: "preallocation",
            kind: OptionKind::Choice(&["off", "falloc", "full"]),
            help: "reserve the space: off, falloc (quick), full (written, and reads as zeros)",
        },
    ],
};

/// Milliseconds of key derivation where nobody says how many, and at most.
const ITER_TIME: u64 = 2000;
const MAX_ITER_TIME: u64 = 60_000;

/// Why something about a header did not work.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The header is wrong, or has what is not supported.
    Header(String),
    /// What was asked for makes no sense.
    Invalid(String),
    /// The file.
    Io(Error),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Header(why)
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        Self::Io(e)
    }
}

impl Refusal {
    fn into_error(self, name: &str) -> Error {
        match self {
            Refusal::Header(why) => {
                let kind = if why.contains("not supported") {
                    ErrorKind::Unsupported
                } else if why.contains("too long") || why.contains("of memory") {
                    ErrorKind::Limit
                } else {
                    ErrorKind::Corrupt
                };
                Error::new(kind, format!("cannot use the LUKS header of '{name}'"), why)
            }
            Refusal::Invalid(why) => {
                Error::new(ErrorKind::Invalid, format!("cannot change the keys of '{name}'"), why)
            }
            Refusal::Io(e) => e,
        }
    }
}

/// A header of either version.
#[derive(Clone, Debug)]
enum Header {
    V1(Box<v1::Header>),
    V2(Box<v2::Header>),
}

/// A key that is to be added.
#[derive(Clone, Copy)]
struct NewKey<'a> {
    secret: &'a [u8],
    slot: Option<usize>,
    iter_time: u64,
    kdf: v2::NewKdf,
}

/// A text in a field that is filled up with zeros.
fn text(field: &[u8]) -> Result<String, String> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    match std::str::from_utf8(&field[..end]) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("a text in the header is not readable".to_owned()),
    }
}

fn new_uuid() -> String {
    let mut b = [0; 16];
    random(&mut b);
    // RFC 9562, version 4.
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Random bytes to overwrite a key with.
fn noise(len: usize) -> IoData {
    let mut buf = IoBuf::new(len);
    random(&mut buf);
    buf.freeze()
}

/// Key material is encrypted like sectors of 512 bytes.
fn area_cipher(spec: CipherSpec, key: &[u8]) -> Result<SectorCipher, String> {
    SectorCipher::new(spec, key, SECTOR as u32)
}

fn open_area(
    mut area: IoBuf,
    spec: CipherSpec,
    hash: Hash,
    outer: &[u8],
    len: usize,
    stripes: usize,
) -> Result<Secret, String> {
    area_cipher(spec, outer)?.decrypt(0, &mut area);
    let key = af_merge(hash, &area[..stripes * len], len);
    area.fill(0);
    Ok(key)
}

fn seal_area(
    spec: CipherSpec,
    hash: Hash,
    outer: &[u8],
    key: &[u8],
    stripes: usize,
) -> Result<IoBuf, String> {
    let split = af_split(hash, key, stripes);
    let mut area = IoBuf::zeroed(split.len().next_multiple_of(SECTOR as usize));
    area[..split.len()].copy_from_slice(&split);
    area_cipher(spec, outer)?.encrypt(0, &mut area);
    Ok(area)
}

/// Parts of a header that must not overlap.
#[derive(Default)]
struct Areas(Vec<(u64, u64, String)>);

impl Areas {
    fn add(&mut self, what: &str, offset: u64, len: u64) {
        self.0.push((offset, offset.saturating_add(len), what.to_owned()));
    }

    fn report(mut self, payload: u64, report: &mut CheckReport) {
        self.0.sort();
        for pair in self.0.windows(2) {
            if pair[1].0 < pair[0].1 {
                report.corruptions += 1;
                report.say(format_args!("{} overlaps {}", pair[1].2, pair[0].2));
            }
        }
        for (_, end, what) in &self.0 {
            if *end > payload {
                report.corruptions += 1;
                report.say(format_args!("{what} overlaps the encrypted data"));
            }
        }
    }
}

impl Header {
    async fn read(node: &dyn Node, base: u64) -> Result<Self, Refusal> {
        let head = read_table(node, base, v1::LEN, "the LUKS header").await?;
        let bytes: &[u8; v1::LEN] = head.first_chunk().expect("as long as was read");
        match (&bytes[..6], bytes[6], bytes[7]) {
            (b"LUKS\xba\xbe", 0, 1) => Ok(Self::V1(Box::new(v1::Header::parse(bytes)?))),
            // A LUKS2 header whose first copy is gone has a second one.
            _ => Ok(Self::V2(Box::new(v2::Header::read(node, base).await?))),
        }
    }

    async fn unlock(
        &self,
        node: &dyn Node,
        base: u64,
        secret: &[u8],
        only: Option<usize>,
        cost: &mut KeyCost,
    ) -> Result<Option<(usize, Secret)>, Refusal> {
        match self {
            Self::V1(h) => h.unlock(node, base, secret, only, cost).await,
            Self::V2(h) => h.unlock(node, base, secret, only, cost).await,
        }
    }

    fn cipher(&self, key: &[u8]) -> Result<SectorCipher, String> {
        match self {
            Self::V1(h) => area_cipher(h.spec, key),
            Self::V2(h) => SectorCipher::new(h.segment.spec, key, h.segment.sector),
        }
    }
}

/// Opens an image; keys may cost that much.
pub(crate) async fn open_with(request: OpenRequest, mut cost: KeyCost) -> Result<Rc<dyn Image>, Error> {
    let OpenRequest { file, options, .. } = request;
    let name = file.info().name.clone();
    let detached = options.header.clone();
    let inner = async {
        let place = detached.as_ref().unwrap_or(&file);
        let header = Header::read(&**place, 0).await?;
        let key = match &options.secret {
            None => None,
            Some(secret) => match header.unlock(&**place, 0, secret, None, &mut cost).await? {
                Some((_, key)) => Some(key),
                None => {
                    let doing = format!("cannot open '{name}'");
                    return Err(Error::new(
                        ErrorKind::Key,
                        doing,
                        "the passphrase opens none of its key slots",
                    )
                    .into());
                }
            },
        };
        let volume = key.map(|key| Volume::new(&header, key)).transpose()?;
        let read_only = options.read_only || file.info().read_only;
        LuksImage::new(file.clone(), detached.clone(), header, volume, read_only)
    };
    match inner.await {
        Ok(image) => Ok(Rc::new(image) as Rc<dyn Image>),
        Err(r) => Err(r.into_error(&name)),
    }
}

/// What the options say of a new volume's cipher: itself, and the bytes of its key.
fn cipher_options(options: &Options) -> Result<(CipherSpec, usize), String> {
    let (cipher, bits) =
        options.text("cipher-alg").unwrap_or("aes-256").split_once('-').unwrap_or(("aes", "256"));
    let mode = options.text("cipher-mode").unwrap_or("xts");
    let iv = match options.text("ivgen-alg").unwrap_or("plain64") {
        "essiv" => format!("-essiv:{}", options.text("ivgen-hash-alg").unwrap_or("sha256")),
        _ if mode == "ecb" => String::new(),
        other => format!("-{other}"),
    };
    let mut spec = CipherSpec::parse(cipher, &format!("{mode}{iv}"))?;
    if mode == "ecb" {
        spec.iv = IvKind::Null;
    }
    let bytes = bits.parse::<usize>().map_err(|e| e.to_string())? / 8;
    Ok((spec, if mode == "xts" { 2 * bytes } else { bytes }))
}

fn kdf_option(options: &Options) -> v2::NewKdf {
    match options.text("pbkdf") {
        Some("pbkdf2") => v2::NewKdf::Pbkdf2,
        Some("argon2i") => v2::NewKdf::Argon2i,
        _ => v2::NewKdf::Argon2id,
    }
}

fn iter_time(options: &Options) -> Result<u64, Error> {
    let ms = options.number("iter-time")?.unwrap_or(ITER_TIME);
    if ms == 0 || ms > MAX_ITER_TIME {
        let why = format!("it is between 1 and {MAX_ITER_TIME} milliseconds");
        return Err(Error::new(ErrorKind::Invalid, "option 'iter-time' cannot be used", why));
    }
    Ok(ms)
}

/// Bytes in front of the disk of a new image.
///
/// # Errors
/// [`ErrorKind::Invalid`] for options that make no sense.
pub fn header_len(options: &Options) -> Result<u64, Error> {
    let (_, key_len) = cipher_options(options)
        .map_err(|why| Error::new(ErrorKind::Invalid, "cannot measure a LUKS image", why))?;
    Ok(if options.text("version") == Some("2") { v2::NEW_PAYLOAD } else { v1::compact_len(key_len) })
}

async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let CreateRequest { output, size, options, backing, secret } = request;
    let doing = || format!("cannot create '{}'", output.name());
    let refused = |kind, why: &str| Error::new(kind, doing(), why);
    if backing.is_some() {
        return Err(refused(ErrorKind::Unsupported, "a LUKS image has no image below"));
    }
    let secret = secret.filter(|s| !s.is_empty());
    let secret = secret.ok_or_else(|| refused(ErrorKind::Key, "an encrypted image needs a passphrase"))?;
    let version2 = options.text("version") == Some("2");
    if !version2 && (options.text("pbkdf").is_some() || options.text("sector-size").is_some()) {
        return Err(refused(ErrorKind::Invalid, "the options pbkdf and sector-size are for version=2"));
    }
    let ms = iter_time(options)?;
    let hash = Hash::parse(options.text("hash-alg").unwrap_or("sha256"))
        .map_err(|why| refused(ErrorKind::Invalid, &why))?;
    let (spec, key_len) = cipher_options(options).map_err(|why| refused(ErrorKind::Invalid, &why))?;
    let sector = match options.number("sector-size")? {
        Some(n) => n as u32,
        None if size.is_multiple_of(4096) => 4096,
        None => SECTOR as u32,
    };
    if version2 && !size.is_multiple_of(u64::from(sector)) {
        return Err(refused(ErrorKind::Invalid, "the size is not a multiple of the sector size"));
    }
    let mut key = Secret::new(vec![0; key_len]);
    random(&mut key);
    SectorCipher::new(spec, &key, if version2 { sector } else { SECTOR as u32 })
        .map_err(|why| refused(ErrorKind::Invalid, &why))?;
    let file = output.main().await?;
    let only_header = options.flag("detached-header") == Some(true);
    let detached = match output.header() {
        Some(header) => Some(header.await?),
        // The disk itself is somebody else's business.
        None if only_header => Some(file.clone()),
        None => None,
    };
    let place = detached.clone().unwrap_or_else(|| file.clone());
    let new = NewKey { secret, slot: None, iter_time: ms, kdf: kdf_option(options) };
    let inner = async {
        let (header, payload) = if version2 {
            let mut header = v2::Header::new(spec, hash, sector, &key, ms, detached.is_some()).await?;
            header.write_new(&*place, 0).await?;
            header.add_key(&*place, 0, &key, &new).await?;
            let payload = header.segment.offset;
            (Header::V2(Box::new(header)), payload)
        } else {
            let mut header = v1::Header::new(spec, hash, &key, ms, detached.is_some()).await;
            header.write(&*place, 0).await?;
            header.add_key(&*place, 0, &key, &new).await?;
            let payload = header.payload;
            (Header::V1(Box::new(header)), payload)
        };
        if only_header {
            let disk = MemoryNode::new(output.name());
            disk.set_size(size);
            return LuksImage::new(Rc::new(disk), detached, header, None, false);
        }
        let volume = Volume::new(&header, key)?;
        let full = options.text("preallocation") == Some("full");
        if full {
            file.write_zeroes(payload, 0, true).await?;
        } else {
            let unmap = options.text("preallocation") != Some("falloc");
            file.write_zeroes(payload, size, unmap).await?;
        }
        let image = LuksImage::new(file.clone(), detached, header, Some(volume), false)?;
        if full {
            image.grow(size).await?;
        }
        Ok(image)
    };
    match inner.await {
        Ok(image) => Ok(Rc::new(image) as Rc<dyn Image>),
        Err(r) => Err(Refusal::into_error(r, output.name())),
    }
}

/// Encrypted zeros for `len` bytes from IV number `iv` on.
async fn sealed_zeros(cipher: &Arc<SectorCipher>, iv: u64, len: usize) -> IoData {
    encrypt(cipher, iv, IoBuf::zeroed(len)).await.freeze()
}
