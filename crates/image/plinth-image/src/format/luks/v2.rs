//! LUKS2: two copies of a header with JSON, and its key slots (LUKS2 On-Disk Format Specification, version 1.1.3).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use plinth_host::aio;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{ALL_SLOTS_IN_USE, Areas, NewKey, Refusal, open_area, seal_area, text};
use crate::Error;
use crate::crypt::{
    Argon2, Argon2Kind, CipherSpec, Hash, KeyCost, Pbkdf2, Secret, iterations_for, random, same_bytes,
};
use crate::format::CheckReport;
use crate::graph::{IoBuf, Node};

/// Bytes of the binary part.
const BINARY: usize = 4096;
/// Sizes that a header with its JSON may have, and so the places of the second one.
const SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
const FIRST: &[u8; 6] = b"LUKS\xba\xbe";
const SECOND: &[u8; 6] = b"SKUL\xba\xbe";
/// What new volumes get: as cryptsetup does it.
const NEW_HEADER: u64 = 0x4000;
pub const NEW_PAYLOAD: u64 = 16 << 20;
const STRIPES: usize = if cfg!(fuzzing) { 20 } else { 4000 };
/// KiB that new Argon2 keys need: no command takes more than 64 MiB in all.
const NEW_MEMORY: u32 = 48 << 10;
/// Bytes of a key at most.
const MAX_KEY: usize = 128;
/// Key slots that a header may have.
const MAX_SLOTS: usize = 32;

/// How a passphrase becomes a key.
#[derive(Clone, Debug)]
pub enum Kdf {
    Pbkdf2(Pbkdf2),
    Argon2(Argon2),
}

/// The way of new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewKdf {
    Pbkdf2,
    Argon2i,
    #[default]
    Argon2id,
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub id: usize,
    key_len: usize,
    priority: u64,
    pub kdf: Kdf,
    af_hash: Hash,
    stripes: usize,
    offset: u64,
    size: u64,
    spec: CipherSpec,
    area_key: usize,
}

#[derive(Clone, Debug)]
pub struct Segment {
    /// Bytes from the header's start.
    pub offset: u64,
    /// Bytes; `None`: all that follows.
    pub size: Option<u64>,
    /// IV number of the first sector.
    pub iv: u64,
    pub spec: CipherSpec,
    pub sector: u32,
}

#[derive(Clone, Debug)]
struct Proof {
    id: String,
    slots: Vec<usize>,
    kdf: Pbkdf2,
    digest: Vec<u8>,
}

/// A header.
#[derive(Clone, Debug)]
pub struct Header {
    sequence: u64,
    size: u64,
    label: String,
    subsystem: String,
    pub uuid: String,
    checksum: Hash,
    json: Value,
    pub slots: Vec<Slot>,
    pub segment: Segment,
    proof: Proof,
    /// Which of the two copies are good and up to date.
    pub copies: [bool; 2],
}

fn be64(b: &[u8], at: usize) -> u64 {
    b[at..].first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
}

fn field<'a>(v: &'a Value, name: &str) -> Result<&'a Value, String> {
    v.get(name).ok_or_else(|| format!("its metadata lacks '{name}'"))
}

fn string<'a>(v: &'a Value, name: &str) -> Result<&'a str, String> {
    field(v, name)?.as_str().ok_or_else(|| format!("'{name}' in its metadata is no text"))
}

fn number(v: &Value, name: &str) -> Result<u64, String> {
    field(v, name)?.as_u64().ok_or_else(|| format!("'{name}' in its metadata is no number"))
}

/// Numbers of 64 bits are written as text.
fn long(v: &Value, name: &str) -> Result<u64, String> {
    string(v, name)?.parse().map_err(|_| format!("'{name}' in its metadata is no number"))
}

fn small(v: &Value, name: &str) -> Result<u32, String> {
    u32::try_from(number(v, name)?).map_err(|_| format!("'{name}' in its metadata is too large"))
}

fn binary(v: &Value, name: &str) -> Result<Vec<u8>, String> {
    let bytes =
        BASE64.decode(string(v, name)?).map_err(|_| format!("'{name}' in its metadata is no base64"))?;
    if bytes.is_empty() || bytes.len() > 1024 {
        return Err(format!("'{name}' in its metadata has {} bytes", bytes.len()));
    }
    Ok(bytes)
}

fn ids(v: &Value, name: &str) -> Result<Vec<usize>, String> {
    let list = field(v, name)?.as_array().ok_or_else(|| format!("'{name}' in its metadata is no list"))?;
    list.iter()
        .map(|id| id.as_str().and_then(|i| i.parse().ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("'{name}' in its metadata has what is no number"))
}

fn slot(id: &str, v: &Value) -> Result<Slot, String> {
    let (af, area, kdf) = (field(v, "af")?, field(v, "area")?, field(v, "kdf")?);
    let kind = string(kdf, "type")?;
    let salt = binary(kdf, "salt")?;
    let kdf = match kind {
        "pbkdf2" => {
            let hash = Hash::parse(string(kdf, "hash")?)?;
            Kdf::Pbkdf2(Pbkdf2 { hash, salt, iterations: small(kdf, "iterations")? })
        }
        "argon2i" | "argon2id" => Kdf::Argon2(Argon2 {
            kind: if kind == "argon2i" { Argon2Kind::I } else { Argon2Kind::Id },
            salt,
            time: small(kdf, "time")?,
            memory: small(kdf, "memory")?,
            lanes: small(kdf, "cpus")?,
        }),
        other => return Err(format!("keys by '{other}' are not supported")),
    };
    let made = Slot {
        id: id.parse().map_err(|_| format!("a key slot has the name '{id}'"))?,
        key_len: number(v, "key_size")? as usize,
        priority: v.get("priority").and_then(Value::as_u64).unwrap_or(1),
        kdf,
        af_hash: Hash::parse(string(af, "hash")?)?,
        stripes: number(af, "stripes")? as usize,
        offset: long(area, "offset")?,
        size: long(area, "size")?,
        spec: CipherSpec::parse_whole(string(area, "encryption")?)?,
        area_key: number(area, "key_size")? as usize,
    };
    let lens = 1..=MAX_KEY;
    if !lens.contains(&made.key_len)
        || !lens.contains(&made.area_key)
        || !(1..=STRIPES).contains(&made.stripes)
    {
        return Err(format!("key slot {id} has keys of {} bytes in {} stripes", made.key_len, made.stripes));
    }
    if made.size < made.area_len() as u64 {
        return Err(format!("the area of key slot {id} is too small for its key"));
    }
    Ok(made)
}

impl Slot {
    /// The name of its key derivation.
    pub fn pbkdf(&self) -> &'static str {
        match &self.kdf {
            Kdf::Pbkdf2(_) => "pbkdf2",
            Kdf::Argon2(a) if a.kind == Argon2Kind::I => "argon2i",
            Kdf::Argon2(_) => "argon2id",
        }
    }

    fn area_len(&self) -> usize {
        (self.key_len * self.stripes).next_multiple_of(512)
    }
}

/// What one copy of the header says, if it is good.
struct Copy {
    sequence: u64,
    size: u64,
    bytes: IoBuf,
}

async fn read_copy(node: &dyn Node, base: u64, at: u64, magic: &[u8; 6]) -> Result<Option<Copy>, Error> {
    if base + at + BINARY as u64 > node.size() {
        return Ok(None);
    }
    let head = node.read(base + at, IoBuf::new(BINARY)).await?;
    let size = be64(&head, 8);
    let right = head.starts_with(magic) && head[6..8] == [0, 2] && SIZES.contains(&size);
    if !right || be64(&head, 256) != at || base + at + size > node.size() {
        return Ok(None);
    }
    let Ok(hash) = text(&head[72..104]).and_then(|name| Hash::parse(&name)) else { return Ok(None) };
    let mut bytes = node.read(base + at, IoBuf::new(size as usize)).await?;
    let mut sum = [0; 64];
    sum.copy_from_slice(&bytes[448..512]);
    bytes[448..512].fill(0);
    let good = hash.digest(&[&bytes])[..] == sum[..hash.size()];
    Ok(good.then(|| Copy { sequence: be64(&bytes, 16), size, bytes }))
}

impl Header {
    /// Reads both copies and takes the newer good one.
    ///
    /// # Errors
    /// Neither is good, or what is in it cannot be.
    pub async fn read(node: &dyn Node, base: u64) -> Result<Self, Refusal> {
        let first = read_copy(node, base, 0, FIRST).await?;
        let mut second = None;
        let places = first.as_ref().map_or(&SIZES[..], |f| std::slice::from_ref(&f.size));
        for &at in places {
            second = read_copy(node, base, at, SECOND).await?;
            if second.is_some() {
                break;
            }
        }
        let newest = first.iter().chain(&second).map(|c| c.sequence).max();
        let copies = [&first, &second].map(|c| c.is_some() && c.as_ref().map(|c| c.sequence) == newest);
        let Some(copy) = [first, second].into_iter().flatten().find(|c| Some(c.sequence) == newest) else {
            let why = "it does not begin like LUKS of version 1, and neither copy of a LUKS2 header has the checksum \
                       that it should have";
            return Err(why.to_owned().into());
        };
        Ok(Self::parse(&copy, copies)?)
    }

    fn parse(copy: &Copy, copies: [bool; 2]) -> Result<Self, String> {
        let b = &copy.bytes;
        let area = &b[BINARY..];
        let area = &area[..area.iter().position(|&c| c == 0).unwrap_or(area.len())];
        let json: Value =
            serde_json::from_slice(area).map_err(|e| format!("its metadata is no JSON: {e}"))?;
        let (slots, segment, proof) = Self::parts(&json)?;
        Ok(Self {
            sequence: copy.sequence,
            size: copy.size,
            label: text(&b[24..72])?,
            checksum: Hash::parse(&text(&b[72..104])?)?,
            uuid: text(&b[168..208])?,
            subsystem: text(&b[208..256])?,
            json,
            slots,
            segment,
            proof,
            copies,
        })
    }

    fn parts(json: &Value) -> Result<(Vec<Slot>, Segment, Proof), String> {
        let object = |name: &str| {
            field(json, name)?.as_object().ok_or_else(|| format!("'{name}' in its metadata is no object"))
        };
        let config = field(json, "config")?;
        if let Some(needs) = config.pointer("/requirements/mandatory").and_then(Value::as_array)
            && !needs.is_empty()
        {
            let needs: Vec<_> = needs.iter().filter_map(Value::as_str).take(8).collect();
            return Err(format!("it needs what is not supported: {}", needs.join(", ")));
        }
        let segments = object("segments")?;
        let (Some((id, v)), 1) = (segments.iter().next(), segments.len()) else {
            return Err(format!("volumes of {} segments are not supported", segments.len()));
        };
        if string(v, "type")? != "crypt" {
            return Err(format!("segments of type '{}' are not supported", string(v, "type")?));
        }
        if v.get("integrity").is_some() {
            return Err("volumes with integrity protection are not supported".to_owned());
        }
        let segment = Segment {
            offset: long(v, "offset")?,
            size: if string(v, "size")? == "dynamic" { None } else { Some(long(v, "size")?) },
            iv: long(v, "iv_tweak")?,
            spec: CipherSpec::parse_whole(string(v, "encryption")?)?,
            sector: small(v, "sector_size")?,
        };
        let id: usize = id.parse().map_err(|_| format!("a segment has the name '{id}'"))?;
        let slots = object("keyslots")?;
        if slots.len() > MAX_SLOTS {
            return Err(format!("it has {} key slots; at most {MAX_SLOTS} are allowed", slots.len()));
        }
        // Slots of other types belong to other segments, such as one that is being encrypted anew.
        let is_key = |v: &Value| v.get("type").and_then(Value::as_str) == Some("luks2");
        let mut slots = slots
            .iter()
            .filter(|(_, v)| is_key(v))
            .map(|(n, v)| slot(n, v))
            .collect::<Result<Vec<_>, _>>()?;
        slots.sort_by_key(|s| s.id);
        let mut proof = None;
        for (name, v) in object("digests")?.iter().take(MAX_SLOTS) {
            if ids(v, "segments")?.contains(&id) {
                if string(v, "type")? != "pbkdf2" {
                    return Err(format!("digests of type '{}' are not supported", string(v, "type")?));
                }
                let hash = Hash::parse(string(v, "hash")?)?;
                let kdf = Pbkdf2 { hash, salt: binary(v, "salt")?, iterations: small(v, "iterations")? };
                let (slots, digest) = (ids(v, "keyslots")?, binary(v, "digest")?);
                proof = Some(Proof { id: name.clone(), slots, kdf, digest });
            }
        }
        let proof = proof.ok_or("nothing in its metadata tells a right key from a wrong one")?;
        if proof.digest.len() < 16 || proof.digest.len() > 64 {
            return Err(format!("the digest of its key has {} bytes", proof.digest.len()));
        }
        Ok((slots, segment, proof))
    }

    /// As [`v1::Header::unlock`](super::v1::Header::unlock).
    ///
    /// # Errors
    /// A slot costs too much; the node's.
    pub async fn unlock(
        &self,
        node: &dyn Node,
        base: u64,
        secret: &[u8],
        only: Option<usize>,
        cost: &mut KeyCost,
    ) -> Result<Option<(usize, Secret)>, Refusal> {
        let mut slots: Vec<_> = self.slots.iter().filter(|s| self.proof.slots.contains(&s.id)).collect();
        // Priority 0 is for those who ask for the slot by its number.
        slots.retain(|s| only.map_or(s.priority > 0, |o| o == s.id));
        slots.sort_by_key(|s| (std::cmp::Reverse(s.priority), s.id));
        for slot in slots {
            let what = "a key slot's material";
            let at = base.saturating_add(slot.offset);
            let area = crate::graph::read_table(node, at, slot.area_len(), what).await?;
            match &slot.kdf {
                Kdf::Pbkdf2(kdf) => kdf.spend(cost, slot.area_key)?,
                Kdf::Argon2(kdf) => kdf.spend(cost)?,
            }
            self.proof.kdf.spend(cost, self.proof.digest.len())?;
            let (slot_, proof, secret) = (slot.clone(), self.proof.clone(), Zeroizing::new(secret.to_vec()));
            let key = aio::offload(move || {
                let s = slot_;
                let outer = match &s.kdf {
                    Kdf::Pbkdf2(kdf) => kdf.derive(&secret, s.area_key),
                    Kdf::Argon2(kdf) => kdf.derive(&secret, s.area_key)?,
                };
                let key = open_area(area, s.spec, s.af_hash, &outer, s.key_len, s.stripes)?;
                let same = same_bytes(&proof.kdf.derive(&key, proof.digest.len()), &proof.digest);
                Ok::<_, String>(same.then_some(key))
            });
            if let Some(key) = key.await? {
                return Ok(Some((slot.id, key)));
            }
        }
        Ok(None)
    }

    /// A header for a new volume, without key slots.
    ///
    /// # Errors
    /// Never for what [`Segment`] may be.
    pub async fn new(
        spec: CipherSpec,
        hash: Hash,
        sector: u32,
        key: &Secret,
        ms: u64,
        detached: bool,
    ) -> Result<Self, String> {
        let payload = if detached { 0 } else { NEW_PAYLOAD };
        let mut salt = vec![0; 32];
        random(&mut salt);
        let key = key.clone();
        let (iterations, digest) = aio::offload(move || {
            let iterations = iterations_for(hash, hash.size(), ms / 8);
            let kdf = Pbkdf2 { hash, salt: salt.clone(), iterations };
            let digest = kdf.derive(&key, hash.size());
            (kdf, digest)
        })
        .await;
        let json = json!({
            "keyslots": {}, "tokens": {},
            "segments": { "0": {
                "type": "crypt", "offset": payload.to_string(), "size": "dynamic", "iv_tweak": "0",
                "encryption": spec.to_string(), "sector_size": sector,
            } },
            "digests": { "0": {
                "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": hash.name(),
                "iterations": iterations.iterations, "salt": BASE64.encode(&iterations.salt),
                "digest": BASE64.encode(&*digest),
            } },
            "config": {
                "json_size": (NEW_HEADER - BINARY as u64).to_string(),
                "keyslots_size": (NEW_PAYLOAD - 2 * NEW_HEADER).to_string(),
            },
        });
        let (slots, segment, proof) = Self::parts(&json)?;
        Ok(Self {
            sequence: 0,
            size: NEW_HEADER,
            label: String::new(),
            subsystem: String::new(),
            uuid: super::new_uuid(),
            checksum: Hash::Sha256,
            json,
            slots,
            segment,
            proof,
            copies: [true; 2],
        })
    }

    fn bytes(&self, second: bool) -> Result<IoBuf, String> {
        let json = serde_json::to_vec(&self.json).map_err(|e| e.to_string())?;
        let mut b = IoBuf::zeroed(self.size as usize);
        if json.len() >= b.len() - BINARY {
            return Err("its metadata has no room for more".to_owned());
        }
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, if second { SECOND } else { FIRST });
        put(6, &[0, 2]);
        put(8, &self.size.to_be_bytes());
        put(16, &self.sequence.to_be_bytes());
        put(24, self.label.as_bytes());
        put(72, self.checksum.name().as_bytes());
        let mut salt = [0; 64];
        random(&mut salt);
        put(104, &salt);
        put(168, self.uuid.as_bytes());
        put(208, self.subsystem.as_bytes());
        put(256, &if second { self.size } else { 0 }.to_be_bytes());
        put(BINARY, &json);
        let sum = self.checksum.digest(&[&b]);
        b[448..448 + sum.len()].copy_from_slice(&sum);
        Ok(b)
    }

    /// Writes both copies, one after the other is durable.
    ///
    /// # Errors
    /// There is no room in them; the node's.
    pub async fn write(&mut self, node: &dyn Node, base: u64) -> Result<(), Refusal> {
        self.sequence += 1;
        // A bad copy goes first: at every time one is good.
        let order = if self.copies[1] { [false, true] } else { [true, false] };
        for second in order {
            let bytes = self.bytes(second)?;
            node.write(base + if second { self.size } else { 0 }, bytes.freeze()).await?;
            node.flush().await?;
        }
        self.copies = [true; 2];
        Ok(())
    }

    /// Where the disk begins in the header's file; behind everything if it is in another one.
    fn payload(&self) -> u64 {
        if self.segment.offset == 0 { u64::MAX } else { self.segment.offset }
    }

    fn keyslots_end(&self) -> Result<u64, String> {
        let size = long(field(&self.json, "config")?, "keyslots_size")?;
        (2 * self.size).checked_add(size).ok_or_else(|| "its area of key slots has no end".to_owned())
    }

    /// As [`v1::Header::add_key`](super::v1::Header::add_key).
    ///
    /// # Errors
    /// No slot, or no room for one, is free; the node's.
    pub async fn add_key(
        &mut self,
        node: &dyn Node,
        base: u64,
        key: &Secret,
        new: &NewKey<'_>,
    ) -> Result<usize, Refusal> {
        let used = |n: usize| self.json["keyslots"].get(n.to_string()).is_some();
        let id = match new.slot {
            Some(n) if n >= MAX_SLOTS => return Err(Refusal::Invalid(format!("there is no key slot {n}"))),
            Some(n) if used(n) => return Err(Refusal::Invalid(format!("key slot {n} is in use"))),
            Some(n) => n,
            None => (0..MAX_SLOTS)
                .find(|&n| !used(n))
                .ok_or_else(|| Refusal::Invalid(ALL_SLOTS_IN_USE.to_owned()))?,
        };
        let len = (key.len() * STRIPES).next_multiple_of(4096) as u64;
        let offset = self.free_area(len)?;
        let (hash, ms, kind) = (self.proof.kdf.hash, new.iter_time, new.kdf);
        let (secret, clear) = (Zeroizing::new(new.secret.to_vec()), key.clone());
        // The areas' cipher is XTS whatever the volume's is: CBC's IVs would repeat from slot to slot.
        let spec = CipherSpec::parse_whole("aes-xts-plain64")?;
        let (kdf, area) = aio::offload(move || -> Result<(Kdf, IoBuf), String> {
            const AREA_KEY: usize = 64;
            let mut salt = vec![0; 32];
            random(&mut salt);
            let (kdf, outer) = match kind {
                NewKdf::Pbkdf2 => {
                    let kdf = Pbkdf2 { hash, salt, iterations: iterations_for(hash, AREA_KEY, ms) };
                    let outer = kdf.derive(&secret, AREA_KEY);
                    (Kdf::Pbkdf2(kdf), outer)
                }
                NewKdf::Argon2i | NewKdf::Argon2id => {
                    let kind = if kind == NewKdf::Argon2i { Argon2Kind::I } else { Argon2Kind::Id };
                    let kdf = argon2_for(kind, salt, ms)?;
                    let outer = kdf.derive(&secret, AREA_KEY)?;
                    (Kdf::Argon2(kdf), outer)
                }
            };
            Ok((kdf, seal_area(spec, hash, &outer, &clear, STRIPES)?))
        })
        .await?;
        node.write(base + offset, area.freeze()).await?;
        node.flush().await?;
        let kdf = match &kdf {
            Kdf::Pbkdf2(k) => json!({ "type": "pbkdf2", "hash": k.hash.name(), "iterations": k.iterations,
                "salt": BASE64.encode(&k.salt) }),
            Kdf::Argon2(k) => json!({ "type": if k.kind == Argon2Kind::I { "argon2i" } else { "argon2id" },
                "time": k.time, "memory": k.memory, "cpus": k.lanes, "salt": BASE64.encode(&k.salt) }),
        };
        let entry = json!({
            "type": "luks2", "key_size": key.len(), "kdf": kdf,
            "af": { "type": "luks1", "stripes": STRIPES, "hash": hash.name() },
            "area": { "type": "raw", "offset": offset.to_string(), "size": len.to_string(),
                "encryption": spec.to_string(), "key_size": 64 },
        });
        let mut next = self.clone();
        next.json["keyslots"][id.to_string()] = entry;
        if let Some(list) = next.json["digests"][&self.proof.id]["keyslots"].as_array_mut() {
            list.push(json!(id.to_string()));
        }
        next.replace(self, node, base).await?;
        Ok(id)
    }

    /// Makes this header the one that is on disk, in place of `old`.
    async fn replace(mut self, old: &mut Self, node: &dyn Node, base: u64) -> Result<(), Refusal> {
        (self.slots, self.segment, self.proof) = Self::parts(&self.json)?;
        self.write(node, base).await?;
        *old = self;
        Ok(())
    }

    /// Where `len` bytes are free for key material.
    fn free_area(&self, len: u64) -> Result<u64, Refusal> {
        let end = self.keyslots_end()?.min(self.payload());
        let mut used: Vec<(u64, u64)> = Vec::new();
        for v in self.json["keyslots"].as_object().into_iter().flat_map(|o| o.values()) {
            let area = field(v, "area")?;
            used.push((long(area, "offset")?, long(area, "size")?));
        }
        used.sort_unstable();
        let mut at = 2 * self.size;
        for (offset, size) in used {
            if offset.saturating_sub(at) >= len {
                break;
            }
            at = at.max(offset.saturating_add(size)).next_multiple_of(4096);
        }
        if at.saturating_add(len) > end {
            return Err(Refusal::Invalid("there is no room for another key".to_owned()));
        }
        Ok(at)
    }

    /// As [`v1::Header::remove_key`](super::v1::Header::remove_key).
    ///
    /// # Errors
    /// The node's.
    pub async fn remove_key(&mut self, node: &dyn Node, base: u64, id: usize) -> Result<(), Refusal> {
        let area = self.slots.iter().find(|s| s.id == id).map(|s| (s.offset, s.area_len()));
        let mut next = self.clone();
        if let Some(slots) = next.json["keyslots"].as_object_mut() {
            slots.remove(&id.to_string());
        }
        let name = json!(id.to_string());
        // Tokens name slots too.
        for part in ["digests", "tokens"] {
            let all = next.json[part].as_object_mut();
            for list in
                all.into_iter().flat_map(|o| o.values_mut()).filter_map(|v| v["keyslots"].as_array_mut())
            {
                list.retain(|v| *v != name);
            }
        }
        next.replace(self, node, base).await?;
        if let Some((offset, len)) = area {
            node.write(base + offset, super::noise(len)).await?;
            node.flush().await?;
        }
        Ok(())
    }

    /// Room for a new volume's header and key slots.
    ///
    /// # Errors
    /// The node's.
    pub async fn write_new(&mut self, node: &dyn Node, base: u64) -> Result<(), Refusal> {
        node.write_zeroes(base, self.keyslots_end()?, true).await?;
        self.write(node, base).await
    }

    /// Both copies must be good, and the areas apart.
    pub fn check(&self, report: &mut CheckReport) {
        for (good, name) in self.copies.iter().zip(["first", "second"]) {
            if !good {
                report.corruptions += 1;
                report.say(format_args!("the {name} copy of the header is damaged or old"));
            }
        }
        let mut areas = Areas::default();
        areas.add("the headers", 0, 2 * self.size);
        for slot in &self.slots {
            areas.add(&format!("the material of key slot {}", slot.id), slot.offset, slot.size);
        }
        areas.report(self.payload(), report);
        if !self.slots.iter().any(|s| self.proof.slots.contains(&s.id)) {
            report.corruptions += 1;
            report.say("no key slot is in use: nothing can open it any more");
        }
    }

    /// How the volume's key is proven: hash and rounds.
    pub fn digest(&self) -> (Hash, u32) {
        (self.proof.kdf.hash, self.proof.kdf.iterations)
    }
}

/// Argon2 that takes about `ms` milliseconds here.
fn argon2_for(kind: Argon2Kind, salt: Vec<u8>, ms: u64) -> Result<Argon2, String> {
    /// cryptsetup's bounds.
    const PASSES: std::ops::RangeInclusive<u64> = 4..=100;
    let lanes = std::thread::available_parallelism().map_or(1, |n| n.get().min(4)) as u32;
    // Short times are for tests, which need no strong keys.
    let memory = if ms < 100 { 1 << 10 } else { NEW_MEMORY };
    let mut kdf = Argon2 { kind, salt, time: *PASSES.start() as u32, memory, lanes };
    let start = std::time::Instant::now();
    let _key = kdf.derive(b"a passphrase", 64)?;
    let pass = (start.elapsed().as_millis() as u64 / PASSES.start()).max(1);
    kdf.time = (ms / pass).clamp(*PASSES.start(), *PASSES.end()) as u32;
    Ok(kdf)
}
