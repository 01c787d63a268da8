//! Encryption of clusters (qcow2 specification, "Data encryption"): LUKS, whose header is in the file, and AES-CBC with
//! the passphrase for a key. Tables, compressed clusters and bitmaps are not encrypted.
//!
//! Sectors are encrypted, so what is not whole sectors is read and written with what is around it. Space that reads as
//! zeros where it is stored is noise when it is decrypted: nothing is left to such space here.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Core;
use super::header::{self, Header};
use super::map::View;
use crate::crypt::{KeyCost, SectorCipher, decrypt, encrypt};
use crate::format::Options;
use crate::format::luks::inside::Inside;
use crate::graph::{IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of zeros that are encrypted and written at once.
const ZEROS: u64 = 1 << 20;

/// How an image is encrypted.
pub struct Crypt {
    /// The LUKS header; without it, the encryption is legacy AES.
    luks: Option<Inside>,
    /// It is there if the passphrase is known.
    cipher: Option<Arc<SectorCipher>>,
}

impl Crypt {
    /// What the header says; `None` for an image that is not encrypted.
    pub async fn open(
        file: &NodeRef,
        header: &Header,
        secret: Option<&[u8]>,
        cost: &mut KeyCost,
    ) -> Result<Option<Self>, Error> {
        match header.crypt {
            header::CRYPT_NONE => Ok(None),
            header::CRYPT_AES => {
                let cipher = secret.map(|s| Arc::new(SectorCipher::qcow_aes(s)));
                Ok(Some(Self { luks: None, cipher }))
            }
            _ => {
                let (at, len) = header.crypt_area().unwrap_or_default();
                let luks = Inside::read(&**file, at..at.saturating_add(len)).await?;
                let cipher = match secret {
                    Some(secret) => Some(luks.unlock(&**file, secret, cost).await?),
                    None => None,
                };
                Ok(Some(Self { luks: Some(luks), cipher }))
            }
        }
    }

    /// The cipher is known now.
    pub fn unlock(&mut self, cipher: Arc<SectorCipher>) {
        self.cipher = Some(cipher);
    }

    /// Changes the passphrases, which only LUKS can do.
    pub async fn change_keys(&self, file: &NodeRef, options: &Options) -> Result<(), Error> {
        match &self.luks {
            Some(luks) => luks.change_keys(&**file, options).await,
            None => {
                let doing = format!("cannot change the passphrase of '{}'", file.info().name);
                let why = "its encryption has no key slots: convert it to encrypt.format=luks";
                Err(Error::new(ErrorKind::Unsupported, doing, why))
            }
        }
    }

    /// QEMU's `encrypt` of an image.
    pub fn describe(&self) -> Map<String, Value> {
        let mut details = self.luks.as_ref().map(Inside::describe).unwrap_or_default();
        details.insert("format".into(), json!(if self.luks.is_some() { "luks" } else { "aes" }));
        details
    }
}

impl Core {
    /// The cipher and the first sector's number for bytes of the disk at `offset` that are in the file at `host`;
    /// `None` if they are not encrypted.
    fn cipher(&self, offset: u64, host: u64) -> Result<Option<(&Arc<SectorCipher>, u64)>, Error> {
        let Some(crypt) = &self.crypt else { return Ok(None) };
        let place = if crypt.luks.is_some() { host } else { offset };
        match &crypt.cipher {
            Some(cipher) => Ok(Some((cipher, place / SECTOR))),
            None => {
                let doing = format!("cannot use the disk in '{}'", self.info.name);
                Err(Error::new(ErrorKind::Key, doing, "it is encrypted: give its passphrase"))
            }
        }
    }

    /// Refuses to go on without the passphrase of an encrypted image.
    pub fn check_key(&self) -> Result<(), Error> {
        self.cipher(0, 0).map(drop)
    }

    /// True if this part must be widened to be encrypted.
    pub fn splits_sectors(&self, offset: u64, len: u64) -> bool {
        self.crypt.is_some() && !(offset | len).is_multiple_of(SECTOR)
    }

    /// Reads bytes of the disk at `offset` that are in the file at `host`, with all of their sectors.
    pub async fn read_host(&self, offset: u64, host: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let before = offset % SECTOR;
        let Some((cipher, iv)) = self.cipher(offset - before, host.saturating_sub(before))? else {
            return self.data_node().read(host, buf).await;
        };
        let len = buf.len() as u64;
        if !self.splits_sectors(offset, len) {
            let buf = self.data_node().read(host, buf).await?;
            return Ok(decrypt(cipher, iv, buf).await);
        }
        let whole = IoBuf::new((before + len).next_multiple_of(SECTOR) as usize);
        let whole = self.data_node().read(host - before, whole).await?;
        let whole = decrypt(cipher, iv, whole).await;
        buf.copy_from_slice(&whole[before as usize..(before + len) as usize]);
        Ok(buf)
    }

    /// Writes whole sectors of the disk at `offset` to the file at `host`.
    pub async fn write_host(&self, offset: u64, host: u64, data: IoData) -> Result<(), Error> {
        self.guard(host, data.len() as u64).await?;
        let data = match self.cipher(offset, host)? {
            Some((cipher, iv)) => encrypt(cipher, iv, data.into_buf()).await.freeze(),
            None => data,
        };
        self.data_node().write(host, data).await
    }

    /// Writes zeros to the disk at `offset`, in the file at `host`, whose space stays.
    pub async fn zero_host(&self, offset: u64, host: u64, len: u64, unmap: bool) -> Result<(), Error> {
        if self.crypt.is_none() {
            self.guard(host, len).await?;
            return self.data_node().write_zeroes(host, len, unmap).await;
        }
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROS);
            self.write_host(offset + done, host + done, IoBuf::zeroed(n as usize).freeze()).await?;
            done += n;
        }
        Ok(())
    }

    /// Data with what is around it in its sectors, if sectors are encrypted. The caller holds them alone.
    pub async fn whole_sectors(&self, offset: u64, data: IoData) -> Result<(u64, IoData), Error> {
        let len = data.len() as u64;
        if !self.splits_sectors(offset, len) {
            return Ok((offset, data));
        }
        let start = offset - offset % SECTOR;
        let end = (offset + len).next_multiple_of(SECTOR);
        let mut whole = IoBuf::new((end - start) as usize);
        let last = end - SECTOR;
        for at in if start == last { vec![start] } else { vec![start, last] } {
            let sector = self.read_view(View::Active, at, IoBuf::new(SECTOR as usize)).await?;
            whole[(at - start) as usize..][..SECTOR as usize].copy_from_slice(&sector);
        }
        whole[(offset - start) as usize..][..data.len()].copy_from_slice(&data);
        Ok((start, whole.freeze()))
    }
}
