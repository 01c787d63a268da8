//! A LUKS header inside of another format's file, which encrypts that format's clusters: qcow2's encryption.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use async_lock::Mutex;
use serde_json::{Map, Value, json};

use super::image::describe_header;
use super::keys::{AMEND, KeySlots};
use super::{Header, NewKey, Refusal, cipher_options, iter_time, v1, v2};
use crate::crypt::{Hash, KeyCost, Secret, SectorCipher, random};
use crate::format::{CheckReport, Options};
use crate::graph::Node;
use crate::{Error, ErrorKind, SECTOR};

/// The header, which says nothing of use about a payload.
pub struct Inside {
    header: RefCell<Header>,
    /// The volume's key, once it is known.
    key: RefCell<Option<Secret>>,
    start: u64,
    name: String,
    /// Changes of the header.
    changing: Mutex<()>,
}

impl Inside {
    /// Reads the header in this part of a node.
    ///
    /// # Errors
    /// It is wrong or not supported; the node's.
    pub async fn read(node: &dyn Node, range: Range<u64>) -> Result<Self, Error> {
        let name = node.info().name.clone();
        let inner = async {
            let header = Header::read(node, range.start).await?;
            match &header {
                Header::V1(h) => {
                    let mut report = CheckReport::default();
                    let mut h = h.clone();
                    h.payload = range.end.saturating_sub(range.start);
                    h.check(&mut report);
                    if report.corruptions > 0 {
                        return Err(Refusal::Header(report.messages.join("; ")));
                    }
                }
                Header::V2(h) if u64::from(h.segment.sector) != SECTOR => {
                    let why = format!("sectors of {} bytes are not supported here", h.segment.sector);
                    return Err(Refusal::Header(why));
                }
                Header::V2(_) => {}
            }
            Ok(header)
        };
        match inner.await {
            Ok(header) => Ok(Self {
                header: RefCell::new(header),
                key: RefCell::default(),
                start: range.start,
                name,
                changing: Mutex::new(()),
            }),
            Err(r) => Err(Refusal::into_error(r, &name)),
        }
    }

    /// The cipher, whose IV numbers are up to the format. Keys may cost that much.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] if the passphrase opens no key slot; the header is wrong; the node's.
    pub async fn unlock(
        &self,
        node: &dyn Node,
        secret: &[u8],
        cost: &mut KeyCost,
    ) -> Result<Arc<SectorCipher>, Error> {
        let inner = async {
            let header = self.header.borrow().clone();
            let Some((_, key)) = header.unlock(node, self.start, secret, None, cost).await? else {
                return Ok(None);
            };
            let cipher = Arc::new(header.cipher(&key)?);
            self.key.replace(Some(key));
            Ok(Some(cipher))
        };
        let cipher = inner.await.map_err(|r: Refusal| r.into_error(&self.name))?;
        cipher.ok_or_else(|| {
            let doing = format!("cannot open '{}'", self.name);
            Error::new(ErrorKind::Key, doing, "the passphrase opens none of its key slots")
        })
    }

    /// True for the options of [`change_keys`](Self::change_keys), which have the names that LUKS images know.
    #[must_use]
    pub fn is_key_option(name: &str) -> bool {
        AMEND.iter().any(|o| o.name == name)
    }

    /// Adds or takes away a passphrase.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] if the image was opened without a passphrase, or the old one opens nothing;
    /// [`ErrorKind::Invalid`] options; the node's.
    pub async fn change_keys(&self, node: &dyn Node, options: &Options) -> Result<(), Error> {
        let key = self.key.borrow().clone().ok_or_else(|| {
            let doing = format!("cannot change the keys of '{}'", self.name);
            Error::new(ErrorKind::Key, doing, "it is encrypted: give its passphrase")
        })?;
        let _alone = self.changing.lock().await;
        let mut header = self.header.borrow().clone();
        let mut slots = KeySlots { node, base: self.start, header: &mut header, key: &key };
        let changed = slots.change(options, &self.name).await;
        self.header.replace(header);
        changed
    }

    /// What is known without a passphrase, under QEMU's names.
    #[must_use]
    pub fn describe(&self) -> Map<String, Value> {
        let mut details = Map::new();
        describe_header(&self.header.borrow(), None, &mut details);
        details.remove("version");
        if let Header::V1(h) = &*self.header.borrow() {
            details.insert("payload-offset".into(), json!(h.payload));
        }
        details.insert("detached-header".into(), json!(false));
        details
    }
}

/// A new header.
pub struct NewInside {
    header: v1::Header,
    key: Secret,
    iter_time: u64,
}

/// Bytes of the header that these options make.
///
/// # Errors
/// [`ErrorKind::Invalid`] for options that make no sense.
pub fn header_len(options: &Options) -> Result<u64, Error> {
    Ok(v1::compact_len(cipher_options(options).map_err(invalid)?.1))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid, "cannot make a LUKS header", why)
}

impl NewInside {
    /// A header of version 1 with a new random key, by the options of the format `luks`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for options that make no sense.
    pub async fn new(options: &Options) -> Result<Self, Error> {
        let iter_time = iter_time(options)?;
        let hash = Hash::parse(options.text("hash-alg").unwrap_or("sha256")).map_err(invalid)?;
        let (spec, key_len) = cipher_options(options).map_err(invalid)?;
        let mut key = Secret::new(vec![0; key_len]);
        random(&mut key);
        SectorCipher::new(spec, &key, SECTOR as u32).map_err(invalid)?;
        let mut header = v1::Header::new(spec, hash, &key, iter_time, false).await;
        header.payload = v1::compact_len(key_len);
        Ok(Self { header, key, iter_time })
    }

    /// Bytes of the header.
    #[must_use]
    pub fn header_len(&self) -> u64 {
        self.header.payload
    }

    /// Writes it, with one key slot for the passphrase, and gives the cipher.
    ///
    /// # Errors
    /// The node's.
    pub async fn write(
        mut self,
        node: &dyn Node,
        base: u64,
        secret: &[u8],
    ) -> Result<Arc<SectorCipher>, Error> {
        let inner = async {
            self.header.write(node, base).await?;
            let new = NewKey { secret, slot: None, iter_time: self.iter_time, kdf: v2::NewKdf::Pbkdf2 };
            self.header.add_key(node, base, &self.key, &new).await?;
            Ok(Arc::new(Header::V1(Box::new(self.header)).cipher(&self.key)?))
        };
        inner.await.map_err(|r: Refusal| r.into_error(&node.info().name))
    }
}
