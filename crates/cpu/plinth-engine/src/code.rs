//! All translations of a machine: which guest code they came from, where they are, who jumps to them.
//!
//! A unit is a region of guest code in one page, for one mode. It is found by guest *physical* address, so
//! processes that share a library share its translations. Invalidation unlinks the jumps into a unit and
//! takes it out of the maps; its host code stays until all code is dropped, because another vCPU may be
//! inside.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use plinth_codegen::{CodeMemory, ExitSite};
use plinth_ir::interp::Program;

const PAGE: u64 = 4096;

/// Multiplies: keys are small integers that nobody outside chooses in bulk.
#[derive(Default)]
pub struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(b.into());
        }
    }

    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }
}

type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Where a unit can be entered: guest physical address and mode key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub gpa: u64,
    pub mode: u32,
}

/// What runs a unit.
#[derive(Clone)]
pub enum Body {
    /// Host code to enter.
    Host(u64),
    /// IR, and the operation to start at.
    Ir(Arc<Program>),
}

struct Entry {
    body: Body,
    unit: u32,
}

/// A unit as it is registered.
pub struct NewUnit {
    pub mode: u32,
    /// Guest physical address of its first byte.
    pub gpa: u64,
    pub len: u32,
    /// Guest physical page that its last instruction straddles into.
    pub straddles: Option<u64>,
    /// Offsets in the page of its entries, and what to run there.
    pub entries: Vec<(u32, Body)>,
    pub exits: Vec<ExitSite>,
}

struct Unit {
    mode: u32,
    gpa: u64,
    len: u32,
    straddles: Option<u64>,
    /// Offsets of its entries and their host code, also of those that another unit has replaced since:
    /// vCPUs may know them.
    entries: Vec<(u32, Option<u64>)>,
    /// Its own exits' sites.
    exits: Vec<u64>,
    /// Sites linked to this unit.
    incoming: Vec<u64>,
    /// Bytes that it takes outside of the code memory.
    ir_bytes: usize,
}

/// An exit of a unit.
struct Exit {
    site: ExitSite,
    /// The unit that it is linked to.
    to: Option<u32>,
}

/// An entry of a unit that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Guest physical address.
    pub gpa: u64,
    /// Host code, if it had some.
    pub host: Option<u64>,
}

/// See the module's text.
pub struct CodeCache {
    pub memory: Option<CodeMemory>,
    entries: FastMap<Key, Entry>,
    units: Vec<Option<Unit>>,
    /// Places in `units` that are free.
    free: Vec<u32>,
    /// Units by page address.
    pages: FastMap<u64, Vec<u32>>,
    /// All exits by site.
    sites: FastMap<u64, Exit>,
    /// Bytes of prepared IR, and how many there may be.
    ir_bytes: usize,
    ir_limit: usize,
    /// How often everything was dropped.
    pub generation: u64,
}

impl CodeCache {
    /// Translations to host code in `memory`, and to at most `ir_limit` bytes of prepared IR.
    pub fn new(memory: Option<CodeMemory>, ir_limit: usize) -> Self {
        Self {
            memory,
            entries: FastMap::default(),
            units: Vec::new(),
            free: Vec::new(),
            pages: FastMap::default(),
            sites: FastMap::default(),
            ir_bytes: 0,
            ir_limit,
            generation: 0,
        }
    }

    /// What runs `key`, and the page that it straddles into.
    pub fn find(&self, key: Key) -> Option<(&Body, Option<u64>)> {
        let entry = self.entries.get(&key)?;
        let unit = self.units.get(entry.unit as usize)?.as_ref()?;
        Some((&entry.body, unit.straddles))
    }

    pub fn has_code(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// Registers a unit. Its first entry replaces one that is there (a straddling instruction whose second
    /// page changed); the others yield to what is there.
    pub fn insert(&mut self, new: NewUnit) {
        let id = self.free.pop().unwrap_or(self.units.len() as u32);
        let page = new.gpa & !(PAGE - 1);
        let mut entries = Vec::with_capacity(new.entries.len());
        let mut ir_bytes = 0;
        for (i, (offset, body)) in new.entries.into_iter().enumerate() {
            let host = match &body {
                Body::Host(host) => Some(*host),
                Body::Ir(program) => {
                    ir_bytes += program.bytes();
                    None
                }
            };
            let key = Key { gpa: page + u64::from(offset), mode: new.mode };
            if i == 0 || !self.entries.contains_key(&key) {
                self.entries.insert(key, Entry { body, unit: id });
                entries.push((offset, host));
            }
        }
        self.pages.entry(page).or_default().push(id);
        if let Some(second) = new.straddles {
            self.pages.entry(second).or_default().push(id);
        }
        let exits = new.exits.iter().map(|s| s.site).collect();
        for site in new.exits {
            self.sites.insert(site.site, Exit { site, to: None });
        }
        self.ir_bytes += ir_bytes;
        let unit = Unit {
            mode: new.mode,
            gpa: new.gpa,
            len: new.len,
            straddles: new.straddles,
            entries,
            exits,
            incoming: Vec::new(),
            ir_bytes,
        };
        match self.units.get_mut(id as usize) {
            Some(place) => *place = Some(unit),
            None => self.units.push(Some(unit)),
        }
    }

    /// The prepared IR takes as much as it may.
    pub fn is_full(&self) -> bool {
        self.ir_bytes >= self.ir_limit
    }

    /// Makes the exit at `site` jump to the host code of `key` from now on. One that is linked elsewhere (its
    /// target page was another one then) changes only if the caller is `alone`: another vCPU could have
    /// passed the check of the old page and take the new jump.
    pub fn link(&mut self, site: u64, key: Key, alone: bool) {
        let Some(entry) = self.entries.get(&key) else { return };
        let (Body::Host(host), Some(memory)) = (&entry.body, &mut self.memory) else { return };
        // An exit to another page comes here too when the code TLB has forgotten the page.
        if memory.jump_target(site) == Some(*host) {
            return;
        }
        let Some(exit) = self.sites.get_mut(&site) else { return };
        if exit.to.is_some() && !alone {
            return;
        }
        let to = entry.unit;
        let before = exit.to.replace(to);
        memory.patch_jump(site, *host);
        if let Some(literal) = exit.site.page_literal {
            memory.patch_literal(literal, (key.gpa / PAGE) as u32);
        }
        if let Some(id) = before {
            self.forget_link(id, site);
        }
        if let Some(unit) = self.units[to as usize].as_mut() {
            unit.incoming.push(site);
        }
    }

    /// The exit at `site` no longer leads to unit `id`.
    fn forget_link(&mut self, id: u32, site: u64) {
        if let Some(unit) = self.units[id as usize].as_mut()
            && let Some(at) = unit.incoming.iter().position(|&s| s == site)
        {
            unit.incoming.swap_remove(at);
        }
    }

    /// Drops all units that were translated from any of `bytes` bytes at `gpa`; gives their entries.
    pub fn invalidate(&mut self, gpa: u64, bytes: u64) -> Vec<Dropped> {
        let page = gpa & !(PAGE - 1);
        let Some(ids) = self.pages.get(&page) else { return Vec::new() };
        let end = gpa + bytes;
        let hit: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|&id| {
                let Some(u) = &self.units[id as usize] else { return true };
                let (from, to) = u.extent(page);
                from < end && gpa < to
            })
            .collect();
        let mut dropped = Vec::new();
        for &id in &hit {
            self.drop_unit(id, &mut dropped);
        }
        dropped
    }

    fn drop_unit(&mut self, id: u32, dropped: &mut Vec<Dropped>) {
        let Some(unit) = self.units[id as usize].take() else { return };
        self.free.push(id);
        self.ir_bytes -= unit.ir_bytes;
        let page = unit.gpa & !(PAGE - 1);
        for &(offset, host) in &unit.entries {
            let key = Key { gpa: page + u64::from(offset), mode: unit.mode };
            if self.entries.get(&key).is_some_and(|e| e.unit == id) {
                self.entries.remove(&key);
            }
            dropped.push(Dropped { gpa: key.gpa, host });
        }
        for p in [Some(page), unit.straddles].into_iter().flatten() {
            if let Some(list) = self.pages.get_mut(&p) {
                list.retain(|&i| i != id);
                if list.is_empty() {
                    self.pages.remove(&p);
                }
            }
        }
        if let Some(memory) = &mut self.memory {
            for site in unit.incoming {
                let Some(exit) = self.sites.get_mut(&site) else { continue };
                exit.to = None;
                if let Some(literal) = exit.site.page_literal {
                    memory.patch_literal(literal, u32::MAX);
                }
                memory.patch_jump(site, exit.site.stub);
            }
        }
        // A vCPU that is inside goes on to where the unit led at last; it is told of all that is dropped.
        for site in unit.exits {
            if let Some(Exit { to: Some(to), .. }) = self.sites.remove(&site) {
                self.forget_link(to, site);
            }
        }
    }

    /// Drops everything. No vCPU may be inside translated code. Returns the pages that held some.
    pub fn clear(&mut self) -> Vec<u64> {
        if let Some(memory) = &mut self.memory {
            memory.reset();
        }
        self.entries.clear();
        self.units.clear();
        self.free.clear();
        self.sites.clear();
        self.ir_bytes = 0;
        self.generation += 1;
        self.pages.drain().map(|(p, _)| p).collect()
    }
}

impl Unit {
    /// Guest physical bytes of it that lie in `page`.
    fn extent(&self, page: u64) -> (u64, u64) {
        let end = self.gpa + u64::from(self.len);
        let first = self.gpa & !(PAGE - 1);
        if page == first {
            (self.gpa, end.min(first + PAGE))
        } else {
            (page, page + end.saturating_sub(first + PAGE))
        }
    }
}

#[cfg(test)]
mod tests {
    use plinth_ir::{Block, BlockBuilder, Layout};

    use super::*;

    /// The prepared form of a block that only leaves.
    fn program() -> Arc<Program> {
        let mut block = Block::default();
        let mut builder = BlockBuilder::new(&mut block);
        builder.insn(0, 4);
        builder.exit(4);
        let layout = Layout { slots: &[], hot: &[], default_nan: [0; 3] };
        Arc::new(Program::new(&block, &layout).unwrap())
    }

    #[test]
    fn what_is_dropped_leaves_nothing_behind() {
        let program = program();
        let mut cache = CodeCache::new(None, 10 * program.bytes());
        for i in 0..1000u64 {
            assert!(!cache.is_full());
            let site = ExitSite { site: i * 64, stub: i * 64 + 32, pc: 8, page_literal: None };
            cache.insert(NewUnit {
                mode: 1,
                gpa: 0x8000_0ffc,
                len: 8,
                straddles: Some(0x8000_1000),
                entries: vec![(0xffc, Body::Ir(Arc::clone(&program)))],
                exits: vec![site],
            });
            let key = Key { gpa: 0x8000_0ffc, mode: 1 };
            assert!(matches!(cache.find(key), Some((Body::Ir(_), Some(0x8000_1000)))));
            assert_eq!(cache.invalidate(0x8000_1004, 4), []);
            // Its second page's part.
            assert_eq!(cache.invalidate(0x8000_1002, 1), [Dropped { gpa: key.gpa, host: None }]);
            assert!(cache.find(key).is_none() && !cache.has_code(0x8000_0000));
        }
        assert_eq!((cache.units.len(), cache.sites.len(), cache.ir_bytes), (1, 0, 0));
    }

    #[test]
    fn what_was_replaced_is_told_too() {
        // Two vCPUs translate the same code at once, and each goes on with its own translation.
        let mut cache = CodeCache::new(None, 0);
        for host in [0x1000, 0x2000] {
            cache.insert(NewUnit {
                mode: 0,
                gpa: 0x8000_0010,
                len: 4,
                straddles: None,
                entries: vec![(0x10, Body::Host(host))],
                exits: Vec::new(),
            });
        }
        let dropped = |host| Dropped { gpa: 0x8000_0010, host: Some(host) };
        assert_eq!(cache.invalidate(0x8000_0010, 1), [dropped(0x1000), dropped(0x2000)]);
        assert!(cache.find(Key { gpa: 0x8000_0010, mode: 0 }).is_none());
    }

    #[test]
    fn prepared_code_has_its_bound() {
        let program = program();
        let mut cache = CodeCache::new(None, 2 * program.bytes());
        for i in 0..2 {
            assert!(!cache.is_full());
            cache.insert(NewUnit {
                mode: 0,
                gpa: i * 4,
                len: 4,
                straddles: None,
                entries: vec![(i as u32 * 4, Body::Ir(Arc::clone(&program)))],
                exits: Vec::new(),
            });
        }
        assert!(cache.is_full());
        assert_eq!(cache.clear(), [0]);
        assert!(!cache.is_full());
    }
}
