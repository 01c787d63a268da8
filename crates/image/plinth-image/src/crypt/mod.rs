//! Encryption of sectors, and keys made from passphrases: what encrypted images are made of.
//!
//! A [`SectorCipher`] encrypts and decrypts runs of sectors; a sector's *IV number* is its place counted in 512 bytes,
//! in whatever space the format counts. Formats use it like this:
//!
//! - **LUKS**: the header has the cipher and, encrypted, its key; IV numbers count from the payload's start.
//! - **qcow2 with LUKS**: [`luks::inside`](crate::format::luks::inside) has the cipher; IV numbers are
//!   `host offset / 512` of the cluster in the file.
//! - **qcow2 with legacy AES**: [`SectorCipher::qcow_aes`]; IV numbers are `guest offset / 512`.
//!
//! [`encrypt`] and [`decrypt`] do large buffers in pieces on all cores.

mod kdf;
mod sector;

pub use kdf::{
    Argon2, Argon2Kind, Hash, KeyCost, Pbkdf2, af_merge, af_split, iterations_for, random, same_bytes,
};
pub use sector::{Algorithm, CipherSpec, IvKind, Mode, SectorCipher, decrypt, encrypt};

/// Bytes that are overwritten when they are not needed any more.
pub type Secret = zeroize::Zeroizing<Vec<u8>>;
