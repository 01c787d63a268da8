use plinth_ir::{AccessKind, CpuEnv, Exception, Translation};

use super::{address_space, pte};
use crate::Firmware;
use crate::harness::{Hart, RAM_BASE};
use crate::mode::mmu;
use crate::privileged::csr::number as n;
use crate::privileged::state::{envcfg, status};
use crate::slots;

const ROOT: u64 = RAM_BASE + 0x1000;
const S: u32 = mmu::SUPERVISOR;
const SUM: u32 = mmu::SUPERVISOR_SUM;
const U: u32 = mmu::USER;
use AccessKind::{Fetch, Read, Write};

/// Flags of an entry that allows everything and needs no update.
const RWX: u64 = pte::V | pte::R | pte::W | pte::X | pte::A | pte::D;

fn entry(pa: u64, flags: u64) -> u64 {
    pa >> 12 << 10 | flags
}

/// A hart in supervisor mode with `levels` levels of tables, in which `va` leads to leaf `leaf` at `level`.
/// Returns it with the leaf's physical address.
fn mapped(levels: u32, va: u64, level: u32, leaf: u64) -> (Hart, u64) {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.set(slots::SATP, u64::from(levels + 5) << 60 | ROOT >> 12);
    let mut table = ROOT;
    for l in (level..levels).rev() {
        let at = table + (va >> (12 + 9 * l) & 0x1ff) * 8;
        table += 0x1000;
        let value = if l == level { leaf } else { entry(table, pte::V) };
        h.env.write_phys(at, 8, value).unwrap();
        if l == level {
            return (h, at);
        }
    }
    unreachable!("level is below levels")
}

fn code(result: Result<Translation, Exception>) -> Option<u32> {
    result.err().map(|e| e.code)
}

/// `va` extended as a canonical address of `levels` levels.
fn canonical(va: u64, levels: u32) -> u64 {
    let unused = 64 - (12 + 9 * levels);
    ((va << unused) as i64 >> unused) as u64
}

#[test]
fn every_level_maps() {
    for levels in [3, 4, 5] {
        for level in 0..levels {
            let va = canonical(0x01b5_a5c3_8712_3456 | 1 << (11 + 9 * levels), levels);
            let size = 1u64 << (12 + 9 * level);
            let pa = 0x00a5_0000_0000_0000 & !(size - 1);
            let (mut h, _) = mapped(levels, va, level, entry(pa, RWX));
            let t = h.translate(va, Read, S).unwrap();
            let expected = Translation {
                gpa: pa | va & (size - 1),
                page_size: size,
                read: true,
                write: true,
                fetch: true,
                global: false,
            };
            assert_eq!(t, expected, "{levels} {level}");
            // Not canonical.
            for bit in 12 + 9 * levels..64 {
                assert_eq!(
                    h.translate(va ^ 1 << bit, Read, S),
                    Err(Exception { code: 13, value: va ^ 1 << bit })
                );
            }
            // A leaf that is not aligned to its size.
            if level > 0 {
                let (mut h, _) = mapped(levels, va, level, entry(pa + size / 2, RWX));
                assert_eq!(code(h.translate(va, Fetch, S)), Some(12));
            }
        }
        // A pointer where only leaves may be.
        let (mut h, _) = mapped(levels, 0x1000, 0, entry(RAM_BASE, pte::V));
        assert_eq!(code(h.translate(0x1000, Write, S)), Some(15));
    }
}

#[test]
fn bare_and_machine_mode_are_not_translated() {
    let mut h = Hart::new(Firmware::BuiltIn);
    for set in [U, S, SUM] {
        assert_eq!(h.translate(0x1234_5678_9abc, Write, set).unwrap().gpa, 0x1234_5678_9abc);
    }
    h.set(slots::SATP, 8 << 60);
    assert_eq!(h.translate(0x1234, Write, mmu::MACHINE).unwrap().gpa, 0x1234);
}

#[test]
fn permissions() {
    /// Flags of the entry, `mstatus`, and what each set of translations may do.
    type Case = (u64, u64, &'static [(u32, &'static str)]);
    let table: [Case; 8] = [
        (RWX, 0, &[(S, "rwx"), (SUM, "rwx"), (U, "---")]),
        (RWX | pte::U, 0, &[(S, "---"), (SUM, "rw-"), (U, "rwx")]),
        (RWX & !pte::W, 0, &[(S, "r-x"), (U, "---")]),
        (RWX & !pte::X | pte::U, 0, &[(SUM, "rw-"), (U, "rw-")]),
        (RWX & !(pte::W | pte::R), 0, &[(S, "--x"), (U, "---")]),
        (RWX & !(pte::W | pte::R), status::MXR, &[(S, "r-x"), (SUM, "r-x"), (U, "---")]),
        (RWX & !(pte::W | pte::R) | pte::U, status::MXR, &[(S, "---"), (SUM, "r--"), (U, "r-x")]),
        (RWX & !(pte::W | pte::X), status::MXR, &[(S, "r--"), (SUM, "r--")]),
    ];
    for (flags, mstatus, expected) in table {
        let (mut h, _) = mapped(3, 0x4000, 0, entry(RAM_BASE, flags));
        h.set(slots::MSTATUS, mstatus);
        for &(set, allowed) in expected {
            for (kind, letter, fault) in [(Read, 'r', 13), (Write, 'w', 15), (Fetch, 'x', 12)] {
                let result = h.translate(0x4ffc, kind, set);
                if allowed.contains(letter) {
                    let t = result.unwrap();
                    let seen: String = [(t.read, 'r'), (t.write, 'w'), (t.fetch, 'x')]
                        .map(|(on, c)| if on { c } else { '-' })
                        .iter()
                        .collect();
                    assert_eq!(seen, allowed, "{flags:#x} {set}");
                    assert_eq!(t.gpa, RAM_BASE + 0xffc);
                } else {
                    assert_eq!(result, Err(Exception { code: fault, value: 0x4ffc }), "{flags:#x} {set}");
                }
            }
        }
    }
}

#[test]
fn entries_with_reserved_bits_fault() {
    let bad_leaves = [
        0,
        RWX & !pte::V,
        RWX & !pte::R,
        RWX | 1 << 54,
        RWX | 1 << 60,
        RWX | 1 << 61,
        RWX | 1 << 62,
        RWX | pte::N,
    ];
    for flags in bad_leaves {
        let (mut h, _) = mapped(3, 0x4000, 0, entry(RAM_BASE, flags));
        assert_eq!(code(h.translate(0x4000, Read, S)), Some(13), "{flags:#x}");
    }
    for flag in [pte::A, pte::D, pte::U, pte::N, 1 << 54, 1 << 62] {
        let (mut h, at) = mapped(3, 0x4000, 1, entry(ROOT + 0x2000, pte::V | flag));
        h.env.write_phys(ROOT + 0x2000 + 4 * 8, 8, entry(RAM_BASE, RWX)).unwrap();
        assert_eq!(code(h.translate(0x4000, Fetch, S)), Some(12), "{flag:#x}");
        h.env.write_phys(at, 8, entry(ROOT + 0x2000, pte::V)).unwrap();
        assert_eq!(code(h.translate(0x4000, Fetch, S)), None);
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_where_that_is_enabled() {
    let flags = RWX & !(pte::A | pte::D);
    let (mut h, at) = mapped(4, 0x4000, 0, entry(RAM_BASE, flags));
    let stored = |h: &mut Hart| h.env.read_phys(at, 8).unwrap() & 0x3ff;
    assert_eq!(h.get(slots::MENVCFG) & envcfg::ADUE, envcfg::ADUE);
    let t = h.translate(0x4000, Read, S).unwrap();
    assert_eq!((t.read, t.write), (true, false), "the first store must come here again");
    assert_eq!(stored(&mut h), flags | pte::A);
    let t = h.translate(0x4000, Write, S).unwrap();
    assert!(t.read && t.write);
    assert_eq!(stored(&mut h), flags | pte::A | pte::D);
    // A refused access leaves them alone.
    let (mut h, at) = mapped(4, 0x4000, 0, entry(RAM_BASE, flags & !pte::W));
    assert_eq!(code(h.translate(0x4000, Write, S)), Some(15));
    assert_eq!(h.env.read_phys(at, 8).unwrap() & pte::A, 0);
    // Without hardware updating they are the guest's.
    let (mut h, at) = mapped(4, 0x4000, 0, entry(RAM_BASE, flags));
    h.set(slots::MENVCFG, 0);
    assert_eq!(code(h.translate(0x4000, Read, S)), Some(13));
    h.env.write_phys(at, 8, entry(RAM_BASE, flags | pte::A)).unwrap();
    assert!(!h.translate(0x4000, Read, S).unwrap().write);
    assert_eq!(code(h.translate(0x4000, Write, S)), Some(15));
}

#[test]
fn an_update_that_loses_a_race_starts_again() {
    let (mut h, at) = mapped(3, 0x4000, 0, entry(RAM_BASE, RWX & !pte::D));
    h.env.contended = 3;
    assert!(h.translate(0x4000, Write, S).unwrap().write);
    assert_eq!(h.env.read_phys(at, 8).unwrap(), entry(RAM_BASE, RWX | 1 << 8));
    // Another hart that never lets it win cannot hold it forever.
    let (mut h, _) = mapped(3, 0x4000, 0, entry(RAM_BASE, RWX & !pte::D));
    h.env.contended = u32::MAX;
    assert_eq!(code(h.translate(0x4000, Write, S)), Some(15));
}

#[test]
fn napot_pages_are_64_kib() {
    let leaf = entry(RAM_BASE + 0x4_8000, RWX | pte::N);
    let (mut h, at) = mapped(3, 0x7000, 0, leaf);
    let t = h.translate(0x7123, Read, S).unwrap();
    assert_eq!((t.gpa, t.page_size), (RAM_BASE + 0x4_7123, 0x1_0000));
    for low in [0, 4, 9, 12] {
        h.env.write_phys(at, 8, entry(RAM_BASE + 0x4_0000 + low * 0x1000, RWX | pte::N)).unwrap();
        assert_eq!(code(h.translate(0x7000, Read, S)), Some(13));
    }
}

#[test]
fn global_comes_from_any_level() {
    let (mut h, _) = mapped(3, 0x4000, 0, entry(RAM_BASE, RWX | pte::G));
    assert!(h.translate(0x4000, Read, S).unwrap().global);
    let (mut h, at) = mapped(3, 0x4000, 1, entry(ROOT + 0x2000, pte::V | pte::G));
    h.env.write_phys(ROOT + 0x2000 + 4 * 8, 8, entry(RAM_BASE, RWX)).unwrap();
    assert!(h.translate(0x4000, Read, S).unwrap().global);
    h.env.write_phys(at, 8, entry(ROOT + 0x2000, pte::V)).unwrap();
    assert!(!h.translate(0x4000, Read, S).unwrap().global);
}

#[test]
fn tables_outside_of_ram_are_access_faults() {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.set(slots::SATP, 8 << 60 | 0x100);
    assert_eq!([Read, Write, Fetch].map(|k| code(h.translate(0x4000, k, S))), [5, 7, 1].map(Some));
}

#[test]
fn the_walk_and_its_result_are_protected() {
    let (mut h, _) = mapped(3, 0x4000, 0, entry(RAM_BASE + 0x1_0000, RWX & !pte::A));
    h.set(slots::FEATURES, 0);
    assert_eq!(code(h.translate(0x4000, Read, S)), Some(5), "no entry lets supervisor mode in");
    h.set(slots::PRIVILEGE, 3);
    // All may be read, nothing written: the accessed bit cannot be set.
    h.write(n::PMPADDR0 + 1, u64::MAX);
    h.write(n::PMPCFG0, 0x19 << 8);
    assert_eq!(code(h.translate(0x4000, Read, S)), Some(5));
    h.write(n::PMPCFG0, 0x1f << 8);
    assert_eq!(h.translate(0x4000, Read, S).unwrap().gpa, RAM_BASE + 0x1_0000);
    h.write(n::PMPADDR0, (RAM_BASE + 0x1_0000) >> 2 | 0x1ff);
    h.write(n::PMPCFG0, 0x1f << 8 | 0x19);
    let t = h.translate(0x4000, Read, S).unwrap();
    assert_eq!((t.read, t.write, t.fetch), (true, false, false));
    assert_eq!(code(h.translate(0x4000, Fetch, S)), Some(1));
}

#[test]
fn address_spaces_differ_where_translations_do() {
    let mut h = Hart::new(Firmware::BuiltIn);
    let mut seen = std::collections::HashSet::new();
    for satp in
        [0, 8 << 60, 9 << 60, 10 << 60, 8 << 60 | 1, 8 << 60 | 1 << 43, 8 << 60 | 1 << 44, 8 << 60 | 1 << 59]
    {
        for mstatus in [0, status::MXR] {
            h.set(slots::SATP, satp);
            h.set(slots::MSTATUS, mstatus);
            assert!(seen.insert(address_space(&h.slots, S as usize)), "{satp:#x}");
            assert_eq!(address_space(&h.slots, U as usize), address_space(&h.slots, SUM as usize));
        }
    }
    assert!(seen.insert(address_space(&h.slots, mmu::MACHINE as usize)));
}
