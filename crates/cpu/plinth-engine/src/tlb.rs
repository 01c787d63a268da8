//! The software TLB: tokens of address spaces, fills, flushes.
//!
//! An entry belongs to an address space by the token in its tag, so a switch of address spaces or a full
//! flush changes one number. A space whose entries are nearly all global (the guest kernel's) keeps its token
//! across a switch: its few other entries are cleared instead.

use plinth_codegen::frame::{
    CODE_TLB_ENTRIES, CodeTlbEntry, JUMP_ENTRIES, JumpEntry, MMUS, TAG_SLOW, TLB_ENTRIES, TOKEN_MAX,
    TlbEntry, code_tlb_index, jump_index, tlb_index,
};
use plinth_ir::{AddressSpace, Mode};
use plinth_vcpu::TlbFlush;

use crate::frame::{FramePtr, field};

const PAGE: u64 = 4096;
const PAGE_MASK: u64 = !(PAGE - 1);
/// Address spaces remembered for each set.
const SPACES: usize = 16;
/// Entries that are not global that a space may have and still keep its token at a switch.
const FEW: usize = 48;
/// A flush of more pages than this flushes everything.
const FLUSH_PAGES: u64 = 64;
/// Ranges of large pages remembered for each set.
const LARGE: usize = 16;
/// Jump tokens remembered.
const JUMP_TOKENS: usize = 64;
/// Words of the filter of pages that the jump cache may know.
const FILTER: usize = 64;
/// Pages whose entries in the jump cache are apart from one another's.
const JUMP_PAGES: usize = JUMP_ENTRIES / (PAGE as usize / 2);

#[derive(Debug)]
struct Space {
    id: AddressSpace,
    token: u64,
    /// Indices of its entries that are not global, while they are few.
    few: Vec<u16>,
    many: bool,
}

#[derive(Debug, Default)]
struct Set {
    /// Most recently used first.
    spaces: Vec<Space>,
    last_token: u64,
    /// Addresses (first and last) that large pages have been seen at, sorted: a flush inside flushes all.
    large: Vec<(u64, u64)>,
}

impl Set {
    /// Remembers a large page. Ranges that touch become one; of too many, the two that are closest do.
    fn note_large(&mut self, lo: u64, hi: u64) {
        let large = &mut self.large;
        if large.iter().any(|r| r.0 <= lo && hi <= r.1) {
            return;
        }
        let at = large.partition_point(|r| r.0 < lo);
        large.insert(at, (lo, hi));
        let mut i = at.saturating_sub(1);
        while i + 1 < large.len() && i <= at + 1 {
            if large[i + 1].0 <= large[i].1.saturating_add(1) {
                large[i].1 = large[i].1.max(large[i + 1].1);
                large.remove(i + 1);
            } else {
                i += 1;
            }
        }
        if large.len() > LARGE
            && let Some(i) = (0..large.len() - 1).min_by_key(|&i| large[i + 1].0 - large[i].1)
        {
            large[i].1 = large[i + 1].1;
            large.remove(i + 1);
        }
    }
}

struct JumpToken {
    mode: u32,
    fetch: u8,
    token: u64,
    jump: u64,
}

/// State of a vCPU's TLBs beside the entries themselves, which are in the frame.
pub struct Tlb {
    frame: FramePtr,
    sets: [Set; MMUS],
    jump_tokens: Vec<JumpToken>,
    /// For each set of pages that share entries of the jump cache, by a hash of the page: it may know some.
    filter: Box<[[u64; FILTER]; JUMP_PAGES]>,
    /// Another cache goes by the jump token.
    foreign_jumps: bool,
    random: u64,
}

/// A page to be entered.
pub struct Page {
    pub va: u64,
    pub gpa: u64,
    /// Host address of the page, if it is RAM.
    pub hva: Option<u64>,
    pub read: bool,
    pub write: bool,
    /// Stores must come to the slow path.
    pub protect: bool,
    pub global: bool,
    pub page_size: u64,
}

impl Tlb {
    pub fn new(frame: FramePtr) -> Self {
        use std::hash::{BuildHasher, Hasher};
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish() | 1;
        Self {
            frame,
            sets: Default::default(),
            jump_tokens: Vec::new(),
            filter: Box::new([[0; FILTER]; JUMP_PAGES]),
            foreign_jumps: false,
            random,
        }
    }

    fn next_random(&mut self) -> u64 {
        // SplitMix64: keys must not be guessable by accident, and the guest never sees them.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn entry(&mut self, mmu: usize, index: usize) -> &mut TlbEntry {
        &mut field!(self.frame, tlb[mmu & 3][index & (TLB_ENTRIES - 1)])
    }

    fn code_entry(&mut self, mmu: usize, index: usize) -> &mut CodeTlbEntry {
        &mut field!(self.frame, code_tlb[mmu & 3][index & (CODE_TLB_ENTRIES - 1)])
    }

    fn clear_set(&mut self, mmu: usize) {
        for i in 0..TLB_ENTRIES {
            *self.entry(mmu, i) = TlbEntry::default();
        }
        for i in 0..CODE_TLB_ENTRIES {
            *self.code_entry(mmu, i) = CodeTlbEntry::default();
        }
        self.sets[mmu].spaces.clear();
        self.sets[mmu].last_token = 0;
    }

    /// Makes `id` the current space of set `mmu`; returns its token.
    fn switch(&mut self, mmu: usize, id: AddressSpace) -> u64 {
        let set = &mut self.sets[mmu];
        if let Some(first) = set.spaces.first()
            && first.id == id
        {
            return first.token;
        }
        if let Some(at) = set.spaces.iter().position(|s| s.id == id) {
            let space = set.spaces.remove(at);
            let token = space.token;
            set.spaces.insert(0, space);
            return token;
        }
        if set.spaces.first().is_some_and(|s| s.id.regime == id.regime && !s.many) {
            self.clear_few(mmu);
            let space = &mut self.sets[mmu].spaces[0];
            space.id = id;
            return space.token;
        }
        self.new_space(mmu, id)
    }

    /// Clears the entries of the current space of `mmu` that are not global.
    fn clear_few(&mut self, mmu: usize) {
        let few = std::mem::take(&mut self.sets[mmu].spaces[0].few);
        for &i in &few {
            *self.entry(mmu, usize::from(i)) = TlbEntry::default();
        }
    }

    fn new_space(&mut self, mmu: usize, id: AddressSpace) -> u64 {
        if self.sets[mmu].last_token == TOKEN_MAX {
            self.clear_set(mmu);
            self.jump_tokens.clear();
        }
        let set = &mut self.sets[mmu];
        set.last_token += 1;
        let token = set.last_token;
        set.spaces.truncate(SPACES - 1);
        set.spaces.insert(0, Space { id, token, few: Vec::new(), many: false });
        token
    }

    /// Makes the frame's tokens those of `mode`, with the address spaces of its data and fetch sets.
    pub fn enter_mode(&mut self, mode: Mode, data: AddressSpace, fetch: AddressSpace) {
        let d = mode.data();
        let f = usize::from(mode.fetch) & 3;
        let data_token = self.switch(d, data);
        field!(self.frame, tokens[d]) = data_token;
        let token = if f == d { data_token } else { self.switch(f, fetch) };
        field!(self.frame, tokens[f]) = token;
        field!(self.frame, code_tokens[f]) = token;
        let found =
            self.jump_tokens.iter().find(|j| j.mode == mode.key && j.fetch == mode.fetch && j.token == token);
        let jump = match found {
            Some(j) => j.jump,
            None => {
                let jump = self.next_random();
                if self.jump_tokens.len() == JUMP_TOKENS {
                    self.jump_tokens.remove(0);
                }
                self.jump_tokens.push(JumpToken { mode: mode.key, fetch: mode.fetch, token, jump });
                jump
            }
        };
        field!(self.frame, jump_token) = jump;
    }

    /// The entry for `va`, if it belongs to the current space of `mmu`: (readable, writable, entry). What a
    /// slow page allows counts too.
    pub fn find(&self, mmu: usize, va: u64) -> Option<(bool, bool, TlbEntry)> {
        let tag = (va & PAGE_MASK) | field!(self.frame, tokens[mmu & 3]);
        let e = field!(self.frame, tlb[mmu & 3][tlb_index(va)]);
        let read = e.read & !TAG_SLOW == tag;
        let write = e.write & !TAG_SLOW == tag;
        (read || write).then_some((read, write, e))
    }

    /// Notes where an entry that is not global went.
    fn note(&mut self, mmu: usize, index: u16, page: &Page) {
        if page.page_size > PAGE {
            let lo = page.va & !(page.page_size - 1);
            let hi = lo | (page.page_size - 1);
            self.sets[mmu].note_large(lo, hi);
        }
        if !page.global
            && let Some(space) = self.sets[mmu].spaces.first_mut()
            && !space.many
        {
            if space.few.len() == FEW {
                space.many = true;
                space.few = Vec::new();
            } else {
                space.few.push(index);
            }
        }
    }

    /// Enters a page into set `mmu`, whose current space is the frame's.
    pub fn fill(&mut self, mmu: usize, page: &Page) {
        let va = page.va & PAGE_MASK;
        // A page that shares its index with the one before it would let an access that crosses from that one
        // match here with the wrong host address; it stays slow.
        let twin = tlb_index(va) == tlb_index(va.wrapping_sub(PAGE));
        let slow = if page.hva.is_none() || twin { TAG_SLOW } else { 0 };
        let tag = va | field!(self.frame, tokens[mmu & 3]);
        let index = tlb_index(va);
        *self.entry(mmu, index) = TlbEntry {
            read: if page.read { tag | slow } else { 0 },
            write: if page.write { tag | slow | if page.protect { TAG_SLOW } else { 0 } } else { 0 },
            addend: page.hva.unwrap_or(0).wrapping_sub(va),
            gpa: page.gpa & PAGE_MASK,
        };
        self.note(mmu, index as u16, page);
    }

    /// Guest physical page number of the code at `va`, if it is known.
    pub fn find_code(&self, mmu: usize, va: u64) -> Option<u64> {
        let e = field!(self.frame, code_tlb[mmu & 3][code_tlb_index(va)]);
        (e.tag == (va & PAGE_MASK) | field!(self.frame, code_tokens[mmu & 3])).then_some(e.page)
    }

    /// Enters a page of code.
    pub fn fill_code(&mut self, mmu: usize, page: &Page) {
        let tag = (page.va & PAGE_MASK) | field!(self.frame, code_tokens[mmu & 3]);
        *self.code_entry(mmu, code_tlb_index(page.va)) = CodeTlbEntry { tag, page: page.gpa / PAGE };
        if page.page_size > PAGE {
            self.note(mmu, 0, &Page { global: true, ..*page });
        }
        if !page.global
            && let Some(space) = self.sets[mmu].spaces.first_mut()
        {
            // The code TLB and the jump cache have no list to clear.
            space.many = true;
            space.few = Vec::new();
        }
    }

    /// Enters host code for guest address `va` into the jump cache, for the current mode.
    pub fn fill_jump(&mut self, va: u64, host: u64) {
        let key = va ^ field!(self.frame, jump_token);
        let e = &mut field!(self.frame, jumps[jump_index(va)]);
        e.key = key;
        e.host = host;
        self.note_jump(va);
    }

    /// A cache outside that goes by the jump token knows the code at `va`: a flush of its page must change the
    /// token.
    pub fn note_foreign_jump(&mut self, va: u64) {
        self.foreign_jumps = true;
        self.note_jump(va);
    }

    /// A flush of the page of `va` must look at the jump cache.
    fn note_jump(&mut self, va: u64) {
        let (set, word, bit) = Self::filter_bit(va);
        self.filter[set][word] |= bit;
    }

    /// Where the filter keeps the page of `va`: set, word, bit.
    fn filter_bit(va: u64) -> (usize, usize, u64) {
        let page = va / PAGE;
        let hash = (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize;
        (page as usize % JUMP_PAGES, hash / 64, 1 << (hash % 64))
    }

    /// The host code that the jump cache has for guest address `va`, in the current mode.
    pub fn find_jump(&self, va: u64) -> Option<u64> {
        let e = field!(self.frame, jumps[jump_index(va)]);
        (e.key == va ^ field!(self.frame, jump_token) && e.host != 0).then_some(e.host)
    }

    /// Forgets host code at `host`, made from guest physical address `gpa`, wherever it is mapped: only the
    /// index's bits above the offset in the page can differ.
    pub fn drop_jump(&mut self, gpa: u64, host: u64) {
        let mut va = gpa & (PAGE - 1);
        while va < 2 * JUMP_ENTRIES as u64 {
            let e = &mut field!(self.frame, jumps[jump_index(va)]);
            if e.host == host {
                *e = JumpEntry::default();
            }
            va += PAGE;
        }
    }

    /// Forgets where translated code is.
    pub fn drop_jumps(&mut self) {
        self.jump_tokens.clear();
        *self.filter = [[0; FILTER]; JUMP_PAGES];
        self.foreign_jumps = false;
        field!(self.frame, jump_token) = self.next_random();
    }

    /// Forgets everything of set `mmu`.
    fn flush_set(&mut self, mmu: usize) {
        let current = self.sets[mmu].spaces.first().map(|s| s.id);
        self.sets[mmu].spaces.clear();
        self.sets[mmu].large.clear();
        if let Some(id) = current {
            let token = self.new_space(mmu, id);
            field!(self.frame, tokens[mmu]) = token;
            field!(self.frame, code_tokens[mmu]) = token;
        }
    }

    /// Forgets what is not global in the address spaces of set `mmu` that `asid` names.
    fn flush_spaces(&mut self, mmu: usize, asid: u64) {
        let Some(&Space { id, many, .. }) = self.sets[mmu].spaces.first() else { return };
        self.sets[mmu].spaces.retain(|s| s.id.asid != asid || s.id == id && !many);
        if id.asid == asid {
            if many {
                let token = self.new_space(mmu, id);
                field!(self.frame, tokens[mmu]) = token;
                field!(self.frame, code_tokens[mmu]) = token;
            } else {
                self.clear_few(mmu);
            }
        }
    }

    /// Carries out a flush. Afterwards the mode must be entered again.
    pub fn flush(&mut self, flush: TlbFlush) {
        let pages =
            flush.range.map(|(va, len)| (va & PAGE_MASK, len.saturating_add(va % PAGE).div_ceil(PAGE)));
        match pages {
            Some((first, n)) if n <= FLUSH_PAGES => {
                for i in 0..n {
                    self.flush_page(first.wrapping_add(i * PAGE));
                }
            }
            _ => {
                for mmu in 0..MMUS {
                    match flush.asid {
                        Some(asid) => self.flush_spaces(mmu, asid),
                        None => self.flush_set(mmu),
                    }
                }
                // Tokens of the flushed sets are new, so their jump tokens are found no more.
                field!(self.frame, jump_token) = self.next_random();
            }
        }
    }

    /// Forgets where translated code of the page of `va` is. Other pages that share its entries suffer too.
    fn drop_jumps_of_page(&mut self, va: u64) {
        if self.foreign_jumps {
            return self.drop_jumps();
        }
        let first = jump_index(va & PAGE_MASK);
        for i in first..first + PAGE as usize / 2 {
            field!(self.frame, jumps[i & (JUMP_ENTRIES - 1)]) = JumpEntry::default();
        }
        self.filter[Self::filter_bit(va).0] = [0; FILTER];
    }

    fn flush_page(&mut self, va: u64) {
        let (set, word, bit) = Self::filter_bit(va);
        if self.filter[set][word] & bit != 0 {
            self.drop_jumps_of_page(va);
        }
        for mmu in 0..MMUS {
            if self.sets[mmu].large.iter().any(|(lo, hi)| (lo..=hi).contains(&&va)) {
                self.flush_set(mmu);
                self.drop_jumps();
                continue;
            }
            let e = self.entry(mmu, tlb_index(va));
            if e.read & PAGE_MASK == va || e.write & PAGE_MASK == va {
                *e = TlbEntry::default();
            }
            let c = self.code_entry(mmu, code_tlb_index(va));
            if c.tag & PAGE_MASK == va {
                *c = CodeTlbEntry::default();
            }
        }
    }

    /// Sends stores to guest physical page `gpa` to the slow path.
    pub fn protect(&mut self, gpa: u64) {
        for mmu in 0..MMUS {
            if self.sets[mmu].last_token == 0 {
                continue;
            }
            for i in 0..TLB_ENTRIES {
                let e = self.entry(mmu, i);
                if e.gpa == gpa && e.write != 0 {
                    e.write |= TAG_SLOW;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameMap;

    #[test]
    fn large_pages_are_kept_as_ranges() {
        let mut set = Set::default();
        for i in [0u64, 2, 4, 3, 1, 0] {
            set.note_large(i << 21, ((i + 1) << 21) - 1);
        }
        assert_eq!(set.large, [(0, (5 << 21) - 1)]);
        set.note_large(1 << 30, (2 << 30) - 1);
        set.note_large(0, (1 << 30) - 1);
        assert_eq!(set.large, [(0, (2 << 30) - 1)]);
        // Too many: the closest become one, and no page is forgotten.
        for i in 1..100 {
            set.note_large(i << 40, (i << 40) + 0x1f_ffff);
        }
        set.note_large((50 << 40) + (1 << 30), (50 << 40) + (1 << 30) + 0x1f_ffff);
        assert_eq!(set.large.len(), LARGE);
        assert!(set.large.is_sorted() && set.large.windows(2).all(|w| w[0].1 < w[1].0));
        for i in 1..100u64 {
            assert!(set.large.iter().any(|r| r.0 <= i << 40 && (i << 40) + 0x1f_ffff <= r.1));
        }
    }

    #[test]
    fn jumps_are_forgotten_by_code_and_by_page() {
        let map = FrameMap::new().unwrap();
        let mut tlb = Tlb::new(map.frame());
        tlb.drop_jumps();
        // The same code at two addresses, other code at the same offset, and at another one.
        let places = [(0x1_0234, 7), (0xffff_ffff_8005_5234, 7), (0x1_1234, 8), (0x1_0238, 9)];
        let found = |tlb: &Tlb| places.map(|(va, _)| tlb.find_jump(va));
        for (va, host) in places {
            tlb.fill_jump(va, host);
        }
        assert_eq!(found(&tlb), [Some(7), Some(7), Some(8), Some(9)]);
        tlb.drop_jump(0x8765_4234, 7);
        assert_eq!(found(&tlb), [None, None, Some(8), Some(9)]);
        let page = |va| TlbFlush { range: Some((va, 4096)), asid: None };
        tlb.flush(page(0x7_7000));
        assert_eq!(found(&tlb), [None, None, Some(8), Some(9)]);
        tlb.flush(page(0x1_0000));
        assert_eq!(found(&tlb), [None, None, Some(8), None]);
    }
}
