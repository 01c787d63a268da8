use plinth_ir::AccessKind;

use super::{Allowed, check, write_config};
use crate::Firmware;
use crate::harness::{Hart, RAM_BASE};
use crate::mode::{mmu, privilege};
use crate::privileged::csr::number as n;
use crate::slots;

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const TOR: u64 = 1 << 3;
const NA4: u64 = 2 << 3;
const NAPOT: u64 = 3 << 3;
const L: u64 = 1 << 7;
const S: u32 = privilege::SUPERVISOR;
const M: u32 = privilege::MACHINE;

fn napot(base: u64, size: u64) -> u64 {
    base >> 2 | (size / 8 - 1)
}

fn rwx(h: &Hart, gpa: u64, own: u32) -> String {
    let (Allowed { read, write, fetch }, _) = check(&h.slots, gpa, 4096, own);
    [(read, 'r'), (write, 'w'), (fetch, 'x')].iter().map(|&(on, c)| if on { c } else { '-' }).collect()
}

#[test]
fn without_a_match_only_machine_mode_has_access() {
    let h = Hart::new(Firmware::Guest);
    assert_eq!(rwx(&h, RAM_BASE, M), "rwx");
    assert_eq!(rwx(&h, RAM_BASE, S), "---");
    let h = Hart::new(Firmware::BuiltIn);
    assert_eq!(rwx(&h, RAM_BASE, S), "rwx", "there is no protection below the built-in SBI");
}

#[test]
fn the_lowest_entry_decides() {
    let mut h = Hart::new(Firmware::Guest);
    h.write(n::PMPADDR0, napot(0x8000_0000, 0x1_0000));
    h.write(n::PMPADDR0 + 1, u64::MAX);
    h.write(n::PMPCFG0, (NAPOT | R | W | X) << 8 | NAPOT);
    assert_eq!(rwx(&h, 0x8000_0000, S), "---");
    assert_eq!(rwx(&h, 0x8000_ffff, S), "---");
    assert_eq!(rwx(&h, 0x8001_0000, S), "rwx");
    assert_eq!(rwx(&h, 0x7fff_f000, S), "rwx");
    assert_eq!(rwx(&h, 0x8000_0000, M), "rwx", "an entry that is not locked does not bind machine mode");
    assert_eq!(rwx(&h, 1 << 57, S), "---", "all ones cover 57 bits");
}

#[test]
fn tor_begins_at_the_address_before() {
    let mut h = Hart::new(Firmware::Guest);
    h.write(n::PMPADDR0, 0x8000_0000 >> 2);
    h.write(n::PMPADDR0 + 1, 0x8000_5000 >> 2);
    h.write(n::PMPADDR0 + 8, 0x1000 >> 2);
    h.write(n::PMPCFG0, (TOR | R | X) << 8);
    assert_eq!(rwx(&h, 0x7fff_f000, S), "---");
    assert_eq!(rwx(&h, 0x8000_0000, S), "r-x");
    assert_eq!(rwx(&h, 0x8000_4fff, S), "r-x");
    assert_eq!(rwx(&h, 0x8000_5000, S), "---");
    // Entry 0 begins at 0; an empty one matches nothing.
    h.write(n::PMPCFG0, TOR | R);
    assert_eq!(rwx(&h, 0, S), "r--");
    h.write(n::PMPADDR0 + 1, 0x7000_0000 >> 2);
    h.write(n::PMPCFG0, (TOR | R) << 8);
    assert_eq!(rwx(&h, 0x7000_0000, S), "---");
}

#[test]
fn the_granule_is_a_page() {
    let mut h = Hart::new(Firmware::Guest);
    h.write(n::PMPADDR0, u64::MAX);
    assert_eq!(h.read(n::PMPADDR0), Ok((1 << 54) - 1024), "low bits read 0 while it is off");
    h.write(n::PMPCFG0, NAPOT | R);
    assert_eq!(h.read(n::PMPADDR0), Ok((1 << 54) - 1));
    h.write(n::PMPADDR0, 0);
    assert_eq!(h.read(n::PMPADDR0), Ok(511));
    assert_eq!(rwx(&h, 0xfff, S), "r--");
    assert_eq!(rwx(&h, 0x1000, S), "---");
    // What was written shows again in another mode: it is only hidden.
    h.write(n::PMPADDR0, 0x600);
    assert_eq!(h.read(n::PMPADDR0), Ok(0x7ff));
    h.write(n::PMPCFG0, TOR);
    assert_eq!(h.read(n::PMPADDR0), Ok(0x400));
    // NA4 leaves the mode as it is; W without R is not there.
    h.write(n::PMPCFG0, NA4 | W | X);
    assert_eq!(h.read(n::PMPCFG0), Ok(TOR | X));
}

#[test]
fn locked_entries_stay_and_bind_machine_mode() {
    let mut h = Hart::new(Firmware::Guest);
    h.write(n::PMPADDR0, 0x8000_0000 >> 2);
    h.write(n::PMPADDR0 + 1, 0x8000_4000 >> 2);
    h.write(n::PMPCFG0, (L | TOR | R) << 8);
    assert_eq!(rwx(&h, 0x8000_3000, M), "r--");
    h.write(n::PMPADDR0, 0);
    h.write(n::PMPADDR0 + 1, 0);
    h.write(n::PMPCFG0, (NAPOT << 8) | NAPOT | R);
    assert_eq!(h.read(n::PMPCFG0), Ok((L | TOR | R) << 8 | NAPOT | R));
    h.write(n::PMPCFG0, 0);
    assert_eq!(h.read(n::PMPADDR0), Ok(0x8000_0000 >> 2), "the bound of a locked TOR entry is locked");
    assert_eq!(h.read(n::PMPADDR0 + 1), Ok(0x8000_4000 >> 2));
    let mut s = vec![0; slots::COUNT];
    write_config(&mut s, slots::PMPCFG2, u64::MAX);
    write_config(&mut s, slots::PMPCFG2, 0);
    assert_eq!(s[usize::from(slots::PMPCFG2)], 0x9f9f_9f9f_9f9f_9f9f);
}

#[test]
fn a_translation_is_as_large_as_the_protection_is_uniform() {
    let mut h = Hart::new(Firmware::Guest);
    h.write(n::PMPADDR0, napot(0x8000_0000, 0x1000));
    h.write(n::PMPADDR0 + 15, u64::MAX);
    h.write(n::PMPCFG2, (NAPOT | R) << 56);
    let size = |h: &mut Hart, va| h.translate(va, AccessKind::Read, mmu::SUPERVISOR).unwrap().page_size;
    assert_eq!(size(&mut h, 0x8000_2000), 1 << 30);
    h.write(n::PMPCFG0, NAPOT | R | W);
    assert_eq!(size(&mut h, 0x8000_2000), 4096);
    assert_eq!(size(&mut h, 0x8000_0000), 4096);
    assert_eq!(size(&mut h, 0x4000_0000), 1 << 30);
    let refused = h.translate(0x8000_2000, AccessKind::Write, mmu::SUPERVISOR).unwrap_err();
    assert_eq!((refused.code, refused.value), (7, 0x8000_2000));
    let t = h.translate(0x8000_2000, AccessKind::Read, mmu::SUPERVISOR).unwrap();
    assert_eq!((t.read, t.write, t.fetch), (true, false, false));
}
