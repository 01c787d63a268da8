//! Changes of key slots: of a LUKS image, and of a LUKS header inside of another format's file.

use super::{Header, NewKey, Refusal, iter_time, kdf_option};
use crate::crypt::{KeyCost, Secret};
use crate::format::{OptionKind, OptionSpec, Options};
use crate::graph::Node;
use crate::{Error, ErrorKind};

/// Options of `amend`. The passphrases themselves are their values: who has names for them looks them up before.
pub const AMEND: &[OptionSpec] = &[
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
    OptionSpec {
        name: "force",
        kind: OptionKind::Flag,
        help: "replace a key slot in use; take the last one away, and all data with it",
    },
];

/// Why a key is not taken away, unless by force.
pub const LAST_KEY: &str = "this would take away the last key slot, and with it all data";
/// Why there is nothing to take away.
pub const NO_SUCH_KEY: &str = "no key slot has this passphrase";
/// Why a key is not added, unless by force.
pub const SLOT_IN_USE: &str = "the key slot is in use: take its passphrase away first";
/// Why there is no slot for a new key.
pub const ALL_SLOTS_IN_USE: &str = "all key slots are in use";

/// The key slots of a header at a place of a node.
pub struct KeySlots<'a> {
    pub node: &'a dyn Node,
    pub base: u64,
    /// The header as it is there; it is changed along.
    pub header: &'a mut Header,
    /// The volume's key.
    pub key: &'a Secret,
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Invalid(why.into()))
}

impl KeySlots<'_> {
    fn active(&self) -> Vec<usize> {
        match &*self.header {
            Header::V1(h) => (0..h.slots.len()).filter(|&n| h.slots[n].active).collect(),
            Header::V2(h) => h.slots.iter().map(|s| s.id).collect(),
        }
    }

    async fn add(&mut self, new: &NewKey<'_>) -> Result<usize, Refusal> {
        match self.header {
            Header::V1(h) => h.add_key(self.node, self.base, self.key, new).await,
            Header::V2(h) => h.add_key(self.node, self.base, self.key, new).await,
        }
    }

    async fn remove(&mut self, slot: usize) -> Result<(), Refusal> {
        match self.header {
            Header::V1(h) => h.remove_key(self.node, self.base, slot).await.map_err(Refusal::Io),
            Header::V2(h) => h.remove_key(self.node, self.base, slot).await,
        }
    }

    /// Puts a key in place of another one. At any moment there is one that opens the volume.
    async fn replace(&mut self, slot: usize, new: &NewKey<'_>) -> Result<(), Refusal> {
        let spare = match self.active().len() {
            1 => Some(self.add(&NewKey { slot: None, ..*new }).await?),
            _ => None,
        };
        self.remove(slot).await?;
        self.add(new).await?;
        match spare {
            Some(spare) => self.remove(spare).await,
            None => Ok(()),
        }
    }

    /// The slots that a passphrase opens.
    async fn opened_by(&self, secret: &str, only: Option<usize>) -> Result<Vec<usize>, Refusal> {
        let mut found = Vec::new();
        // As much as one passphrase may cost that is tried on all of them.
        let mut cost = KeyCost::default();
        for slot in self.active().into_iter().filter(|&s| only.is_none_or(|o| o == s)) {
            let opened = self.header.unlock(self.node, self.base, secret.as_bytes(), Some(slot), &mut cost);
            if opened.await?.is_some() {
                found.push(slot);
            }
        }
        Ok(found)
    }

    async fn erase(
        &mut self,
        old: Option<&str>,
        slot: Option<usize>,
        force: bool,
        name: &str,
    ) -> Result<(), Refusal> {
        let active = self.active();
        match (old, slot) {
            (Some(old), _) => {
                let found = self.opened_by(old, slot).await?;
                if found.is_empty() {
                    let doing = format!("cannot change the keys of '{name}'");
                    return Err(Error::new(ErrorKind::Key, doing, NO_SUCH_KEY).into());
                }
                if found.len() == active.len() && !force {
                    return invalid(LAST_KEY);
                }
                for slot in found {
                    self.remove(slot).await?;
                }
                Ok(())
            }
            // What is asked for is so.
            (None, Some(slot)) if !active.contains(&slot) && force => Ok(()),
            (None, Some(slot)) if !active.contains(&slot) => {
                invalid(format!("key slot {slot} is not in use"))
            }
            (None, Some(_)) if active.len() == 1 && !force => invalid(LAST_KEY),
            (None, Some(slot)) => self.remove(slot).await,
            (None, None) => invalid("state=inactive needs keyslot or old-secret"),
        }
    }

    /// Does what the options say, which are those of [`AMEND`].
    pub async fn change(&mut self, options: &Options, name: &str) -> Result<(), Error> {
        options.check(AMEND)?;
        let force = options.flag("force") == Some(true);
        let slot = options.number("keyslot")?.map(|n| n as usize);
        let (old, new) = (options.text("old-secret"), options.text("new-secret"));
        let changed = match (options.text("state"), new, old) {
            (Some("active"), Some(secret), None) if !secret.is_empty() => {
                let (iter_time, kdf) = (iter_time(options)?, kdf_option(options));
                let new = NewKey { secret: secret.as_bytes(), slot, iter_time, kdf };
                match slot.filter(|s| self.active().contains(s)) {
                    Some(slot) if force => self.replace(slot, &new).await,
                    Some(_) => invalid(SLOT_IN_USE),
                    None => self.add(&new).await.map(drop),
                }
            }
            (Some("active"), ..) => invalid("state=active needs new-secret, and no old-secret"),
            (Some("inactive"), None, old) => self.erase(old, slot, force, name).await,
            (Some("inactive"), ..) => invalid("state=inactive has no use for new-secret"),
            _ => invalid("say state=active to add a passphrase, state=inactive to take one away"),
        };
        changed.map_err(|r| r.into_error(name))
    }
}
