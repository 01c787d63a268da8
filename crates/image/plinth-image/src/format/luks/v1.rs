//! LUKS1: the header and its key slots (LUKS1 On-Disk Format Specification, version 1.2.3).

use plinth_host::aio;
use zeroize::Zeroizing;

use super::{ALL_SLOTS_IN_USE, Areas, NewKey, Refusal, area_cipher, open_area, seal_area, text};
use crate::Error;
use crate::crypt::{CipherSpec, Hash, KeyCost, Pbkdf2, Secret, iterations_for, random, same_bytes};
use crate::format::CheckReport;
use crate::graph::{IoData, Node};

/// Bytes of the header.
pub const LEN: usize = 592;
/// Key slots.
pub const SLOTS: usize = 8;
/// Where the slots' entries begin, and how long one is.
const SLOT_AT: usize = 208;
const SLOT_LEN: usize = 48;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
/// Stripes of key material; nobody has ever used another number. (Fuzzing has no time for so many.)
pub const STRIPES: usize = if cfg!(fuzzing) { 20 } else { 4000 };
/// Bytes that the first key material begins at, and all others at multiples of.
const ALIGN: usize = 4096;

/// One key slot.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub active: bool,
    pub iterations: u32,
    pub salt: [u8; 32],
    /// Bytes from the header's start.
    pub offset: u64,
    pub stripes: u32,
}

/// A header.
#[derive(Clone, Debug)]
pub struct Header {
    pub spec: CipherSpec,
    pub hash: Hash,
    /// Bytes from the header's start to the payload.
    pub payload: u64,
    pub key_len: usize,
    digest: [u8; 20],
    digest_salt: [u8; 32],
    pub digest_iterations: u32,
    pub uuid: String,
    pub slots: [Slot; SLOTS],
}

/// Bytes of a header with all its key slots, and not more, for keys of `key_len` bytes.
pub fn compact_len(key_len: usize) -> u64 {
    (ALIGN + SLOTS * (key_len * STRIPES).next_multiple_of(ALIGN)) as u64
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

impl Header {
    /// Reads a header's [`LEN`] bytes.
    ///
    /// # Errors
    /// What of it cannot be.
    pub fn parse(b: &[u8; LEN]) -> Result<Self, String> {
        let spec = CipherSpec::parse(&text(&b[8..40])?, &text(&b[40..72])?)?;
        let key_len = be32(b, 108) as usize;
        if !matches!(key_len, 16 | 24 | 32 | 48 | 64) {
            return Err(format!("its key has {key_len} bytes"));
        }
        // Whether cipher and key fit is found out before anybody is asked for a passphrase.
        area_cipher(spec, &vec![0; key_len])?;
        let mut slots: [Slot; SLOTS] = Default::default();
        for (n, slot) in slots.iter_mut().enumerate() {
            let at = SLOT_AT + n * SLOT_LEN;
            let state = be32(b, at);
            if state != ACTIVE && state != INACTIVE {
                return Err(format!("key slot {n} is neither active nor inactive ({state:#x})"));
            }
            *slot = Slot {
                active: state == ACTIVE,
                iterations: be32(b, at + 4),
                salt: *b[at + 8..].first_chunk().expect("the header is longer"),
                offset: u64::from(be32(b, at + 40)) * 512,
                stripes: be32(b, at + 44),
            };
        }
        Ok(Self {
            spec,
            hash: Hash::parse(&text(&b[72..104])?)?,
            payload: u64::from(be32(b, 104)) * 512,
            key_len,
            digest: *b[112..].first_chunk().expect("the header is longer"),
            digest_salt: *b[132..].first_chunk().expect("the header is longer"),
            digest_iterations: be32(b, 164),
            uuid: text(&b[168..208])?,
            slots,
        })
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"LUKS\xba\xbe\0\x01");
        put(8, self.spec.algorithm.name().as_bytes());
        put(40, self.spec.mode_text().as_bytes());
        put(72, self.hash.name().as_bytes());
        put(104, &((self.payload / 512) as u32).to_be_bytes());
        put(108, &(self.key_len as u32).to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        put(168, self.uuid.as_bytes());
        for (n, slot) in self.slots.iter().enumerate() {
            let at = SLOT_AT + n * SLOT_LEN;
            put(at, &if slot.active { ACTIVE } else { INACTIVE }.to_be_bytes());
            put(at + 4, &slot.iterations.to_be_bytes());
            put(at + 8, &slot.salt);
            put(at + 40, &((slot.offset / 512) as u32).to_be_bytes());
            put(at + 44, &slot.stripes.to_be_bytes());
        }
        b
    }

    /// Where the last slot's material ends in a new header.
    fn end(&self) -> u64 {
        (ALIGN + SLOTS * self.area_len().next_multiple_of(ALIGN)) as u64
    }

    fn area_len(&self) -> usize {
        (self.key_len * STRIPES).next_multiple_of(512)
    }

    /// The volume's key, from the first of `slots` that the passphrase opens, and which one that was. `None`: it
    /// opens none of them.
    ///
    /// # Errors
    /// A slot contradicts itself or costs too much; the node's.
    pub async fn unlock(
        &self,
        node: &dyn Node,
        base: u64,
        secret: &[u8],
        only: Option<usize>,
        cost: &mut KeyCost,
    ) -> Result<Option<(usize, Secret)>, Refusal> {
        for (n, slot) in self.slots.iter().enumerate().filter(|(_, s)| s.active) {
            if only.is_some_and(|o| o != n) {
                continue;
            }
            if slot.stripes as usize != STRIPES {
                return Err(format!("key slot {n} has {} stripes, not {STRIPES}", slot.stripes).into());
            }
            let at = base.saturating_add(slot.offset);
            let area = crate::graph::read_table(node, at, self.area_len(), "a key slot's material").await?;
            let kdf = Pbkdf2 { hash: self.hash, salt: slot.salt.to_vec(), iterations: slot.iterations };
            let proof = self.proof();
            kdf.spend(cost, self.key_len)?;
            proof.spend(cost, self.digest.len())?;
            let (spec, hash, len, digest) = (self.spec, self.hash, self.key_len, self.digest);
            let secret = Zeroizing::new(secret.to_vec());
            let key = aio::offload(move || {
                let key = open_area(area, spec, hash, &kdf.derive(&secret, len), len, STRIPES)?;
                let same = same_bytes(&proof.derive(&key, digest.len()), &digest);
                Ok::<_, String>(same.then_some(key))
            });
            if let Some(key) = key.await? {
                return Ok(Some((n, key)));
            }
        }
        Ok(None)
    }

    fn proof(&self) -> Pbkdf2 {
        Pbkdf2 { hash: self.hash, salt: self.digest_salt.to_vec(), iterations: self.digest_iterations }
    }

    /// A header for a new volume, without key slots in use.
    pub async fn new(spec: CipherSpec, hash: Hash, key: &Secret, iter_time: u64, detached: bool) -> Self {
        let (mut digest_salt, key) = ([0; 32], key.clone());
        random(&mut digest_salt);
        let key_len = key.len();
        let mut header = Self {
            spec,
            hash,
            payload: 0,
            key_len,
            digest: [0; 20],
            digest_salt,
            digest_iterations: 0,
            uuid: super::new_uuid(),
            slots: Default::default(),
        };
        let area = header.area_len().next_multiple_of(ALIGN);
        for (n, slot) in header.slots.iter_mut().enumerate() {
            slot.offset = (ALIGN + n * area) as u64;
            slot.stripes = STRIPES as u32;
        }
        if !detached {
            header.payload = header.end();
        }
        // The proof has to be no quicker to try than a key slot's share of it; QEMU takes the same part.
        header.digest_iterations = aio::offload(move || iterations_for(hash, 20, iter_time / 8)).await;
        let proof = header.proof();
        let digest = aio::offload(move || proof.derive(&key, 20)).await;
        header.digest.copy_from_slice(&digest);
        header
    }

    /// Fills a free slot. It is active only after its material is durable.
    ///
    /// # Errors
    /// No slot is free; the node's.
    pub async fn add_key(
        &mut self,
        node: &dyn Node,
        base: u64,
        key: &Secret,
        new: &NewKey<'_>,
    ) -> Result<usize, Refusal> {
        let slot = match new.slot {
            Some(n) if n >= SLOTS => return Err(Refusal::Invalid(format!("there is no key slot {n}"))),
            Some(n) if self.slots[n].active => {
                return Err(Refusal::Invalid(format!("key slot {n} is in use")));
            }
            Some(n) => n,
            None => self
                .slots
                .iter()
                .position(|s| !s.active)
                .ok_or_else(|| Refusal::Invalid(ALL_SLOTS_IN_USE.to_owned()))?,
        };
        let (hash, len, ms) = (self.hash, self.key_len, new.iter_time);
        let mut salt = [0; 32];
        random(&mut salt);
        let (spec, key, secret) = (self.spec, key.clone(), Zeroizing::new(new.secret.to_vec()));
        let (iterations, area) = aio::offload(move || {
            let iterations = iterations_for(hash, len, ms);
            let kdf = Pbkdf2 { hash, salt: salt.to_vec(), iterations };
            (iterations, seal_area(spec, hash, &kdf.derive(&secret, len), &key, STRIPES))
        })
        .await;
        let area = area?;
        let entry = Slot {
            active: false,
            iterations,
            salt,
            offset: self.slots[slot].offset,
            stripes: STRIPES as u32,
        };
        let mut next = self.clone();
        next.slots[slot] = entry;
        node.write(base + next.slots[slot].offset, area.freeze()).await?;
        node.write(base, IoData::copy_of(&next.bytes())).await?;
        node.flush().await?;
        next.slots[slot].active = true;
        next.write_state(node, base, slot).await?;
        *self = next;
        Ok(slot)
    }

    /// Writes the one word of a slot that says whether it is active; a power cut cannot tear it.
    async fn write_state(&self, node: &dyn Node, base: u64, slot: usize) -> Result<(), Error> {
        let state = if self.slots[slot].active { ACTIVE } else { INACTIVE };
        let at = base + (SLOT_AT + slot * SLOT_LEN) as u64;
        node.write(at, IoData::copy_of(&state.to_be_bytes())).await?;
        node.flush().await
    }

    /// Empties a slot and overwrites its material.
    ///
    /// # Errors
    /// The node's.
    pub async fn remove_key(&mut self, node: &dyn Node, base: u64, slot: usize) -> Result<(), Error> {
        let mut next = self.clone();
        next.slots[slot].active = false;
        next.write_state(node, base, slot).await?;
        *self = next;
        let area = super::noise(self.area_len());
        node.write(base + self.slots[slot].offset, area).await?;
        self.slots[slot].salt = [0; 32];
        self.slots[slot].iterations = 0;
        node.write(base, IoData::copy_of(&self.bytes())).await?;
        node.flush().await
    }

    /// Writes a new header, with no slot in use yet.
    ///
    /// # Errors
    /// The node's.
    pub async fn write(&self, node: &dyn Node, base: u64) -> Result<(), Error> {
        let mut all = vec![0; self.payload.max(self.end()) as usize];
        all[..LEN].copy_from_slice(&self.bytes());
        node.write(base, IoData::copy_of(&all)).await
    }

    /// Slots must lie between the header and the payload, and apart.
    pub fn check(&self, report: &mut CheckReport) {
        let mut areas = Areas::default();
        areas.add("the header", 0, LEN as u64);
        for (n, slot) in self.slots.iter().enumerate().filter(|(_, s)| s.active) {
            if slot.stripes as usize != STRIPES {
                report.corruptions += 1;
                report.say(format_args!("key slot {n} has {} stripes, not {STRIPES}", slot.stripes));
            }
            if slot.iterations == 0 {
                report.corruptions += 1;
                report.say(format_args!("the key of slot {n} is derived in no rounds at all"));
            }
            areas.add(&format!("the material of key slot {n}"), slot.offset, self.area_len() as u64);
        }
        // A payload at 0 is in another file than the header.
        let end = if self.payload == 0 { u64::MAX } else { self.payload };
        areas.report(end, report);
        if !self.slots.iter().any(|s| s.active) {
            report.corruptions += 1;
            report.say("no key slot is in use: nothing can open it any more");
        }
    }
}
