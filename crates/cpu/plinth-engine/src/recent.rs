//! A vCPU's own memory of where translations are, by guest physical address: it needs no lock and outlives
//! switches of address spaces, flushes and mode changes, which the jump cache does not.

use crate::code::Key;

/// Entries; a power of two.
const ENTRIES: usize = 16384;

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    host: u64,
}

const EMPTY: Entry = Entry { key: Key { gpa: u64::MAX, mode: 0 }, host: 0 };

/// See the module's text.
pub struct Recent(Box<[Entry]>);

impl Recent {
    pub fn new() -> Self {
        Self(vec![EMPTY; ENTRIES].into_boxed_slice())
    }

    /// By address alone: what is dropped is dropped for all modes.
    const fn index(gpa: u64) -> usize {
        ((gpa >> 1) ^ (gpa >> 12)) as usize & (ENTRIES - 1)
    }

    pub fn find(&self, key: Key) -> Option<u64> {
        let e = &self.0[Self::index(key.gpa)];
        (e.key == key).then_some(e.host)
    }

    pub fn insert(&mut self, key: Key, host: u64) {
        self.0[Self::index(key.gpa)] = Entry { key, host };
    }

    /// Forgets the code at `gpa`.
    pub fn remove(&mut self, gpa: u64) {
        let e = &mut self.0[Self::index(gpa)];
        if e.key.gpa == gpa {
            *e = EMPTY;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.fill(EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_until_their_code_is_dropped() {
        let mut recent = Recent::new();
        let key = Key { gpa: 0x8000_1234, mode: 3 };
        assert_eq!(recent.find(key), None);
        recent.insert(key, 77);
        assert_eq!(recent.find(key), Some(77));
        assert_eq!(recent.find(Key { mode: 2, ..key }), None);
        recent.remove(0x8000_1236);
        assert_eq!(recent.find(key), Some(77));
        recent.remove(key.gpa);
        assert_eq!(recent.find(key), None);
        recent.insert(key, 78);
        recent.clear();
        assert_eq!(recent.find(key), None);
    }
}
