//! Keys from passphrases, and the splitting of keys over many sectors.

use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, Zeroizing};

use super::Secret;

/// A hash function, by LUKS's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-2 of 224 bits.
    Sha224,
    /// SHA-2 of 256 bits.
    Sha256,
    /// SHA-2 of 384 bits.
    Sha384,
    /// SHA-2 of 512 bits.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
}

impl Hash {
    /// Names that [`parse`](Self::parse) takes.
    pub const NAMES: &'static [&'static str] = &["sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"];
    const ALL: [Hash; 6] =
        [Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512, Hash::Ripemd160];

    /// The hash of this name.
    ///
    /// # Errors
    /// It is not known.
    pub fn parse(name: &str) -> Result<Self, String> {
        let n = Self::NAMES.iter().position(|n| *n == name);
        n.map(|n| Self::ALL[n])
            .ok_or_else(|| format!("the hash '{name}' is not supported ({})", Self::NAMES.join(", ")))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[Self::ALL.iter().position(|h| *h == self).unwrap_or(0)]
    }

    /// Bytes of a digest.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Hash::Sha1 | Hash::Ripemd160 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// The digest of the parts, one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Secret {
        fn with<D: Digest>(parts: &[&[u8]]) -> Secret {
            let hash = parts.iter().fold(D::new(), |h, part| h.chain_update(part));
            Zeroizing::new(hash.finalize().to_vec())
        }
        match self {
            Hash::Sha1 => with::<Sha1>(parts),
            Hash::Sha224 => with::<Sha224>(parts),
            Hash::Sha256 => with::<Sha256>(parts),
            Hash::Sha384 => with::<Sha384>(parts),
            Hash::Sha512 => with::<Sha512>(parts),
            Hash::Ripemd160 => with::<Ripemd160>(parts),
        }
    }
}

/// What it may cost to try keys. Headers state the cost, and they are hostile.
#[derive(Clone, Copy, Debug)]
pub struct KeyCost {
    /// Iterations of PBKDF2, over all tries.
    pub iterations: u64,
    /// KiB of memory of one try of Argon2.
    pub memory: u32,
    /// KiB that Argon2 goes over, passes times memory, over all tries.
    pub work: u64,
}

impl Default for KeyCost {
    /// What an honest image needs: `cryptsetup` takes up to 1 GiB of memory and 2 seconds for a key.
    fn default() -> Self {
        Self { iterations: 100_000_000, memory: 1 << 20, work: 16 << 20 }
    }
}

/// PBKDF2 (RFC 8018) with HMAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pbkdf2 {
    /// The hash.
    pub hash: Hash,
    /// The salt.
    pub salt: Vec<u8>,
    /// Rounds.
    pub iterations: u32,
}

impl Pbkdf2 {
    /// Takes its cost from what may be spent.
    ///
    /// # Errors
    /// It is too much, or there are no rounds at all.
    pub fn spend(&self, cost: &mut KeyCost, len: usize) -> Result<(), String> {
        if self.iterations == 0 {
            return Err("a key is derived in no rounds at all".to_owned());
        }
        let rounds = u64::from(self.iterations) * len.div_ceil(self.hash.size()) as u64;
        match cost.iterations.checked_sub(rounds) {
            Some(rest) => cost.iterations = rest,
            None => return Err(format!("deriving keys would take too long ({} rounds)", self.iterations)),
        }
        Ok(())
    }

    /// A key of `len` bytes. It takes long.
    #[must_use]
    pub fn derive(&self, secret: &[u8], len: usize) -> Secret {
        let mut out = Zeroizing::new(vec![0; len]);
        let f = match self.hash {
            Hash::Sha1 => pbkdf2_hmac::<Sha1>,
            Hash::Sha224 => pbkdf2_hmac::<Sha224>,
            Hash::Sha256 => pbkdf2_hmac::<Sha256>,
            Hash::Sha384 => pbkdf2_hmac::<Sha384>,
            Hash::Sha512 => pbkdf2_hmac::<Sha512>,
            Hash::Ripemd160 => pbkdf2_hmac::<Ripemd160>,
        };
        // Fuzzing is after what is done with a key, not after what it costs.
        let rounds = if cfg!(fuzzing) { self.iterations.min(2) } else { self.iterations };
        f(secret, &self.salt, rounds, &mut out);
        out
    }
}

/// Rounds of PBKDF2 that take about `ms` milliseconds here for a key of `len` bytes.
#[must_use]
pub fn iterations_for(hash: Hash, len: usize, ms: u64) -> u32 {
    /// QEMU and cryptsetup take no fewer.
    const LEAST: u64 = 1000;
    if cfg!(fuzzing) {
        return LEAST as u32;
    }
    let mut rounds = 10_000u32;
    loop {
        let kdf = Pbkdf2 { hash, salt: vec![0; 32], iterations: rounds };
        let start = std::time::Instant::now();
        let _key = kdf.derive(b"a passphrase", len);
        let took = start.elapsed().as_nanos().max(1) as u64;
        // Long enough to be exact, or as long as is wanted.
        if took > 20_000_000 || took > ms * 1_000_000 || rounds > 1 << 24 {
            let wanted = u128::from(rounds) * u128::from(ms) * 1_000_000 / u128::from(took);
            return wanted.clamp(u128::from(LEAST), 20_000_000) as u32;
        }
        rounds *= 2;
    }
}

/// Which Argon2 (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argon2Kind {
    /// Argon2i.
    I,
    /// Argon2id.
    Id,
}

/// Argon2 (RFC 9106), version 1.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argon2 {
    /// Which one.
    pub kind: Argon2Kind,
    /// The salt.
    pub salt: Vec<u8>,
    /// Passes.
    pub time: u32,
    /// KiB.
    pub memory: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2 {
    /// Takes its cost from what may be spent.
    ///
    /// # Errors
    /// It is too much.
    pub fn spend(&self, cost: &mut KeyCost) -> Result<(), String> {
        if self.memory > cost.memory {
            return Err(format!(
                "a key needs {} MiB of memory, and more than {} MiB are not given",
                self.memory >> 10,
                cost.memory >> 10
            ));
        }
        match cost.work.checked_sub(u64::from(self.memory) * u64::from(self.time)) {
            Some(rest) => cost.work = rest,
            None => {
                let why = format!("{} passes over {} MiB", self.time, self.memory >> 10);
                return Err(format!("deriving keys would take too long ({why})"));
            }
        }
        Ok(())
    }

    /// A key of `len` bytes. It takes long.
    ///
    /// # Errors
    /// Argon2 does not have these parameters.
    pub fn derive(&self, secret: &[u8], len: usize) -> Result<Secret, String> {
        let mut out = Zeroizing::new(vec![0; len]);
        let (memory, time) =
            if cfg!(fuzzing) { (self.memory.min(8 * self.lanes), 1) } else { (self.memory, self.time) };
        let params = argon2::Params::new(memory, time, self.lanes, Some(len))
            .map_err(|e| format!("Argon2 cannot be used: {e}"))?;
        let kind = match self.kind {
            Argon2Kind::I => argon2::Algorithm::Argon2i,
            Argon2Kind::Id => argon2::Algorithm::Argon2id,
        };
        argon2::Argon2::new(kind, argon2::Version::V0x13, params)
            .hash_password_into(secret, &self.salt, &mut out)
            .map_err(|e| format!("Argon2 cannot be used: {e}"))?;
        Ok(out)
    }
}

/// Spreads the information of each part of `block` over all of its digest-sized parts (LUKS1 specification, 2.4).
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (n, part) in block.chunks_mut(hash.size()).enumerate() {
        let digest = hash.digest(&[&(n as u32).to_be_bytes(), part]);
        part.copy_from_slice(&digest[..part.len()]);
    }
}

/// Makes `stripes` times the key's length of it, from all of which alone the key can be had (LUKS1 specification,
/// 2.4, AFsplit).
#[must_use]
pub fn af_split(hash: Hash, key: &[u8], stripes: usize) -> Secret {
    let mut out = Zeroizing::new(vec![0; key.len() * stripes]);
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    let (first, last) = out.split_at_mut(key.len() * (stripes - 1));
    random(first);
    for stripe in first.chunks(key.len()) {
        sum.iter_mut().zip(stripe).for_each(|(s, b)| *s ^= b);
        diffuse(hash, &mut sum);
    }
    for ((out, key), sum) in last.iter_mut().zip(key).zip(sum.iter()) {
        *out = key ^ sum;
    }
    out
}

/// The key again (LUKS1 specification, 2.4, AFmerge); `split` has at least one stripe of `len` bytes.
#[must_use]
pub fn af_merge(hash: Hash, split: &[u8], len: usize) -> Secret {
    let mut sum = Zeroizing::new(vec![0; len]);
    let stripes = split.len() / len;
    for (n, stripe) in split.chunks(len).take(stripes).enumerate() {
        sum.iter_mut().zip(stripe).for_each(|(s, b)| *s ^= b);
        if n + 1 < stripes {
            diffuse(hash, &mut sum);
        }
    }
    sum
}

/// Fills with random bytes that nobody can guess.
///
/// # Panics
/// If the host has none, without which no key may be made.
pub fn random(mut out: &mut [u8]) {
    if cfg!(fuzzing) {
        // What fuzzing finds must be there again in the next run.
        out.fill(0xa5);
        return;
    }
    while !out.is_empty() {
        match rustix::rand::getrandom(&mut *out, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => out = &mut out[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                out.zeroize();
                panic!("the host gives no random numbers: {e}");
            }
        }
    }
}

/// Compares in a time that does not tell where they differ.
#[must_use]
pub fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}
