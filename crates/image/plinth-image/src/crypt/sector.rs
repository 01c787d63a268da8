//! Sectors: XTS (IEEE 1619), CBC and ECB over 128-bit block ciphers, with the IVs of dm-crypt.

use std::fmt;
use std::sync::Arc;

use aes::Block;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};
use futures_util::future::join_all;
use plinth_host::aio;

use super::Hash;
use crate::SECTOR;
use crate::graph::IoBuf;

/// Bytes that are worked on at once, so that all of it stays in the nearest cache.
const CHUNK: usize = 4096;
/// Blocks of it.
const BLOCKS: usize = CHUNK / 16;
/// Sectors of it.
const SECTORS: usize = CHUNK / SECTOR as usize;
/// Bytes that one core does while others do others. Less than half of it is not worth another core.
const PIECE: usize = 128 << 10;

/// A block cipher and the bits of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES (FIPS 197).
    Aes,
    /// Serpent.
    Serpent,
    /// Twofish.
    Twofish,
}

/// How blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each block with a tweak of its own (IEEE 1619); the key is two keys.
    Xts,
    /// Each block with the one before it.
    Cbc,
    /// Each block by itself.
    Ecb,
}

/// How a sector's number becomes its IV (dm-crypt's names).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvKind {
    /// There is none.
    Null,
    /// The number's lower 32 bits, little-endian.
    Plain,
    /// The number, little-endian.
    Plain64,
    /// The number, encrypted with the hash of the key.
    Essiv(Hash),
}

/// A cipher as LUKS headers write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    /// The block cipher.
    pub algorithm: Algorithm,
    /// The mode.
    pub mode: Mode,
    /// The IVs.
    pub iv: IvKind,
}

impl Algorithm {
    /// dm-crypt's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Aes => "aes",
            Algorithm::Serpent => "serpent",
            Algorithm::Twofish => "twofish",
        }
    }
}

impl Mode {
    /// dm-crypt's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
            Mode::Ecb => "ecb",
        }
    }
}

impl CipherSpec {
    /// Reads a cipher's name and its mode (`aes`, `xts-plain64`).
    ///
    /// # Errors
    /// What of it is not known.
    pub fn parse(cipher: &str, mode: &str) -> Result<Self, String> {
        let algorithm = match cipher {
            "aes" => Algorithm::Aes,
            "serpent" => Algorithm::Serpent,
            "twofish" => Algorithm::Twofish,
            other => return Err(format!("the cipher '{other}' is not supported (aes, serpent, twofish)")),
        };
        let (mode, iv) = mode.split_once('-').unwrap_or((mode, ""));
        let mode = match mode {
            "xts" => Mode::Xts,
            "cbc" => Mode::Cbc,
            "ecb" => Mode::Ecb,
            other => return Err(format!("the cipher mode '{other}' is not supported (xts, cbc, ecb)")),
        };
        let (iv, hash) = iv.split_once(':').unwrap_or((iv, ""));
        let iv = match iv {
            "" if mode == Mode::Ecb => IvKind::Null,
            "null" => IvKind::Null,
            "plain" => IvKind::Plain,
            "plain64" => IvKind::Plain64,
            "essiv" => IvKind::Essiv(Hash::parse(hash)?),
            other => {
                return Err(format!("the IV generator '{other}' is not supported (plain, plain64, essiv)"));
            }
        };
        Ok(Self { algorithm, mode, iv })
    }

    /// Reads LUKS2's form, `aes-xts-plain64`.
    ///
    /// # Errors
    /// What of it is not known.
    pub fn parse_whole(text: &str) -> Result<Self, String> {
        let (cipher, mode) = text.split_once('-').unwrap_or((text, "ecb"));
        Self::parse(cipher, mode)
    }

    /// The mode with the IV generator, `xts-plain64`.
    #[must_use]
    pub fn mode_text(&self) -> String {
        match self.iv {
            IvKind::Null if self.mode == Mode::Ecb => "ecb".to_owned(),
            IvKind::Null => format!("{}-null", self.mode.name()),
            IvKind::Plain => format!("{}-plain", self.mode.name()),
            IvKind::Plain64 => format!("{}-plain64", self.mode.name()),
            IvKind::Essiv(hash) => format!("{}-essiv:{}", self.mode.name(), hash.name()),
        }
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.algorithm.name(), self.mode_text())
    }
}

/// A block cipher with its key.
trait Blocks: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C> Blocks for C
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

fn keyed<C: Blocks + KeyInit + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
    Some(Box::new(C::new_from_slice(key).ok()?))
}

fn blocks(algorithm: Algorithm, key: &[u8]) -> Result<Box<dyn Blocks>, String> {
    let made = match (algorithm, key.len()) {
        (Algorithm::Aes, 16) => keyed::<aes::Aes128>(key),
        (Algorithm::Aes, 24) => keyed::<aes::Aes192>(key),
        (Algorithm::Aes, 32) => keyed::<aes::Aes256>(key),
        (Algorithm::Serpent, 16 | 24 | 32) => keyed::<serpent::Serpent>(key),
        (Algorithm::Twofish, 16 | 24 | 32) => keyed::<twofish::Twofish>(key),
        _ => None,
    };
    made.ok_or_else(|| format!("{} has no keys of {} bits", algorithm.name(), key.len() * 8))
}

fn xor(block: &mut Block, other: &Block) {
    block.0 = (u128::from_ne_bytes(block.0) ^ u128::from_ne_bytes(other.0)).to_ne_bytes();
}

/// Encrypts and decrypts sectors.
pub struct SectorCipher {
    spec: CipherSpec,
    sector: usize,
    data: Box<dyn Blocks>,
    /// XTS encrypts its tweaks with a key of their own.
    tweak: Option<Box<dyn Blocks>>,
    essiv: Option<Box<dyn Blocks>>,
}

impl SectorCipher {
    /// A cipher for sectors of `sector` bytes: 512, 1024, 2048 or 4096.
    ///
    /// # Errors
    /// The key or the sector has a size that the cipher does not have.
    pub fn new(spec: CipherSpec, key: &[u8], sector: u32) -> Result<Self, String> {
        if !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return Err(format!("sectors of {sector} bytes are not supported"));
        }
        let (data, tweak) = match spec.mode {
            Mode::Xts if !key.len().is_multiple_of(2) => {
                return Err(format!("XTS has no keys of {} bits", key.len() * 8));
            }
            Mode::Xts => (&key[..key.len() / 2], Some(&key[key.len() / 2..])),
            Mode::Cbc | Mode::Ecb => (key, None),
        };
        let essiv = match spec.iv {
            IvKind::Essiv(hash) => Some(blocks(spec.algorithm, &hash.digest(&[key]))?),
            _ => None,
        };
        Ok(Self {
            spec,
            sector: sector as usize,
            data: blocks(spec.algorithm, data)?,
            tweak: tweak.map(|k| blocks(spec.algorithm, k)).transpose()?,
            essiv,
        })
    }

    /// The cipher of qcow2's first encryption: AES-128-CBC whose key is the passphrase, cut or filled up with zeros
    /// to 16 bytes (QEMU, docs/interop/qcow2.txt, `crypt_method` 1).
    #[must_use]
    pub fn qcow_aes(passphrase: &[u8]) -> Self {
        let mut key = zeroize::Zeroizing::new([0; 16]);
        let n = passphrase.len().min(16);
        key[..n].copy_from_slice(&passphrase[..n]);
        let spec = CipherSpec { algorithm: Algorithm::Aes, mode: Mode::Cbc, iv: IvKind::Plain64 };
        Self::new(spec, &*key, SECTOR as u32).expect("AES has keys of 16 bytes")
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> CipherSpec {
        self.spec
    }

    /// Bytes of a sector.
    #[must_use]
    pub fn sector(&self) -> usize {
        self.sector
    }

    /// Encrypts whole sectors; the first one has IV number `iv`, and each counts for its size in 512 bytes.
    ///
    /// # Panics
    /// If `data` is not whole sectors.
    pub fn encrypt(&self, iv: u64, data: &mut [u8]) {
        self.run(iv, data, true);
    }

    /// Undoes [`encrypt`](Self::encrypt).
    ///
    /// # Panics
    /// If `data` is not whole sectors.
    pub fn decrypt(&self, iv: u64, data: &mut [u8]) {
        self.run(iv, data, false);
    }

    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        assert!(data.len().is_multiple_of(self.sector), "{} bytes are not whole sectors", data.len());
        let step = self.sector as u64 / SECTOR;
        let mut number = first;
        for chunk in data.chunks_mut(CHUNK) {
            let mut ivs = [Block::default(); SECTORS];
            let ivs = &mut ivs[..chunk.len() / self.sector];
            for iv in &mut *ivs {
                let value = match self.spec.iv {
                    IvKind::Null => 0,
                    IvKind::Plain => number & 0xffff_ffff,
                    IvKind::Plain64 | IvKind::Essiv(_) => number,
                };
                iv[..8].copy_from_slice(&value.to_le_bytes());
                number = number.wrapping_add(step);
            }
            if let Some(essiv) = &self.essiv {
                essiv.encrypt(ivs);
            }
            let (parts, _) = chunk.as_chunks_mut::<16>();
            let data = Block::cast_slice_from_core_mut(parts);
            match self.spec.mode {
                Mode::Xts => self.xts(ivs, data, encrypt),
                Mode::Cbc if encrypt => self.cbc_encrypt(ivs, data),
                Mode::Cbc => self.cbc_decrypt(ivs, data),
                Mode::Ecb if encrypt => self.data.encrypt(data),
                Mode::Ecb => self.data.decrypt(data),
            }
        }
    }

    /// IEEE 1619: each block is XORed with its tweak before and after; tweaks of a sector are the encrypted IV times
    /// powers of x in GF(2^128).
    fn xts(&self, ivs: &mut [Block], data: &mut [Block], encrypt: bool) {
        let Some(tweak) = &self.tweak else { return };
        tweak.encrypt(ivs);
        let mut tweaks = [Block::default(); BLOCKS];
        for (tweaks, first) in tweaks.chunks_mut(self.sector / 16).zip(ivs) {
            let mut t = u128::from_le_bytes(first.0);
            for tweak in tweaks {
                tweak.0 = t.to_le_bytes();
                let carry = ((t as i128) >> 127) as u128;
                t = (t << 1) ^ (carry & 0x87);
            }
        }
        for (block, tweak) in data.iter_mut().zip(&tweaks) {
            xor(block, tweak);
        }
        if encrypt {
            self.data.encrypt(data);
        } else {
            self.data.decrypt(data);
        }
        for (block, tweak) in data.iter_mut().zip(&tweaks) {
            xor(block, tweak);
        }
    }

    /// The blocks of one sector depend on each other, those of different sectors do not: the sectors go abreast.
    fn cbc_encrypt(&self, ivs: &mut [Block], data: &mut [Block]) {
        let per = self.sector / 16;
        let last = ivs;
        for n in 0..per {
            for (block, sector) in last.iter_mut().zip(data.chunks(per)) {
                xor(block, &sector[n]);
            }
            self.data.encrypt(last);
            for (block, sector) in last.iter().zip(data.chunks_mut(per)) {
                sector[n] = *block;
            }
        }
    }

    fn cbc_decrypt(&self, ivs: &mut [Block], data: &mut [Block]) {
        let per = self.sector / 16;
        let mut old = [Block::default(); BLOCKS];
        old[..data.len()].copy_from_slice(data);
        self.data.decrypt(data);
        for ((sector, old), iv) in data.chunks_mut(per).zip(old.chunks(per)).zip(ivs) {
            xor(&mut sector[0], iv);
            for (block, before) in sector[1..].iter_mut().zip(old) {
                xor(block, before);
            }
        }
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SectorCipher({}, sectors of {} bytes)", self.spec, self.sector)
    }
}

/// Encrypts a buffer of whole sectors, a large one on all cores.
pub async fn encrypt(cipher: &Arc<SectorCipher>, iv: u64, data: IoBuf) -> IoBuf {
    run(cipher, iv, data, true).await
}

/// Decrypts a buffer of whole sectors, a large one on all cores.
pub async fn decrypt(cipher: &Arc<SectorCipher>, iv: u64, data: IoBuf) -> IoBuf {
    run(cipher, iv, data, false).await
}

async fn run(cipher: &Arc<SectorCipher>, iv: u64, mut data: IoBuf, encrypt: bool) -> IoBuf {
    if data.len() <= PIECE / 2 {
        cipher.run(iv, &mut data, encrypt);
        return data;
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while !data.is_empty() {
        let rest = data.split_off(data.len().min(PIECE));
        let mut piece = std::mem::replace(&mut data, rest);
        let (cipher, iv) = (cipher.clone(), iv.wrapping_add(at / SECTOR));
        at += piece.len() as u64;
        pieces.push(aio::offload(move || {
            cipher.run(iv, &mut piece, encrypt);
            piece
        }));
    }
    let done = join_all(pieces).await.into_iter();
    done.reduce(|a, b| a.join(b).expect("pieces of one buffer follow each other")).unwrap_or(data)
}
