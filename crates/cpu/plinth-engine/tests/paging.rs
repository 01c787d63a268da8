//! Page tables on both tiers of the engine: remapping and its fences, permissions, accesses and instructions
//! across pages.

mod common;

use common::{Asm, EXIT, Machine, RAM, csr};
use plinth_engine::Tier;
use plinth_isa_riscv::Firmware;
use plinth_isa_riscv::generate::{by_name, encode};

const TIERS: [Tier; 2] = [Tier::Interpret, Tier::Translate];
const CODE: u64 = RAM + 0x1_0000;
const HANDLER: u64 = RAM + 0x3_0000;
/// Pages with data or code, one after another.
const FRAMES: u64 = RAM + 0x4_0000;
/// The root, and the tables that follow it.
const TABLES: u64 = RAM + 0x20_0000;
/// Virtual addresses of the pages that are remapped.
const VA: u64 = 0x4000_0000;
const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;

const RW: u64 = 0xc7;
const RX: u64 = 0xcb;
const RWX: u64 = 0xcf;
const READ: u64 = 0xc3;
const GLOBAL: u64 = 0x20;

const ZERO: u8 = 0;
const RA: u8 = 1;
const T0: u8 = 5;
const T1: u8 = 6;
const T2: u8 = 7;
const S0: u8 = 8;
const S1: u8 = 9;
const A0: u8 = 10;
const A1: u8 = 11;
const A2: u8 = 12;
const A3: u8 = 13;
const A4: u8 = 14;

fn frame(n: u64) -> u64 {
    FRAMES + n * PAGE
}

fn entry(pa: u64, flags: u64) -> u64 {
    pa >> 12 << 10 | flags
}

/// Sv39 tables at `root` and behind it: RAM and the exit registers where they are, for the supervisor; the
/// tables of [`VA`] at `root + 0x3000` (its 2 MiB entries) and `root + 0x4000` (its first 512 pages).
struct Tables<'a> {
    m: &'a Machine,
    root: u64,
    asid: u64,
}

impl<'a> Tables<'a> {
    fn new(m: &'a Machine, root: u64, asid: u64) -> Self {
        let [low, ram, middle, leaves] = [1, 2, 3, 4].map(|n| root + n * PAGE);
        m.write(root, &[0; 5 * PAGE as usize]);
        m.set_word(root, entry(low, 1));
        m.set_word(root + 8 * (VA >> 30), entry(middle, 1));
        m.set_word(root + 8 * (RAM >> 30), entry(ram, 1));
        m.set_word(low + 8 * (EXIT >> 21), entry(EXIT & !(LARGE - 1), RW | GLOBAL));
        for n in 0..2 {
            m.set_word(ram + 8 * n, entry(RAM + n * LARGE, RWX | GLOBAL));
        }
        m.set_word(middle, entry(leaves, 1));
        Self { m, root, asid }
    }

    /// Address of the entry for page `n` from [`VA`].
    fn leaf(&self, n: u64) -> u64 {
        self.root + 4 * PAGE + 8 * n
    }

    /// Address of the entry for the `n`th 2 MiB from [`VA`].
    fn large(&self, n: u64) -> u64 {
        self.root + 3 * PAGE + 8 * n
    }

    fn map(&self, n: u64, pa: u64, flags: u64) {
        self.m.set_word(self.leaf(n), entry(pa, flags));
    }

    fn satp(&self) -> u64 {
        8 << 60 | self.asid << 44 | self.root >> 12
    }
}

/// A machine in supervisor mode whose exceptions write `scause` to `EXIT + 8`.
fn supervisor(tier: Tier) -> Machine {
    let m = Machine::new(tier, Firmware::BuiltIn, 1);
    let mut a = Asm::new(HANDLER);
    a.csrr(30, csr::SCAUSE);
    a.exit(30, EXIT + 8);
    m.write(HANDLER, &a.code);
    m
}

/// Code that has its handler and `satp` set.
fn program(satp: u64) -> Asm {
    let mut a = Asm::new(CODE);
    a.li(31, HANDLER);
    a.csrw(csr::STVEC, 31);
    set_satp(&mut a, satp);
    a
}

fn set_satp(a: &mut Asm, satp: u64) {
    a.li(31, satp);
    a.csrw(csr::SATP, 31);
}

/// Writes `value` to the page table entry at `at`, by way of `t0` and `t1`.
fn set_entry(a: &mut Asm, at: u64, value: u64) {
    a.li(T0, at);
    a.li(T1, value);
    a.store("sd", T1, T0, 0);
}

/// `sfence.vma` for the address in `va` and the space in `asid`.
fn fence(a: &mut Asm, va: u8, asid: u8) {
    a.emit("sfence.vma", 0, va, asid, 0);
}

fn run(m: &mut Machine, a: &Asm) -> (u64, u64) {
    m.write(a.base, &a.code);
    m.run(a.base, &[])
}

#[test]
fn every_fence_that_covers_a_page_shows_its_new_place() {
    // Operands of the fence, and whether the page is global.
    let fences = [
        (A3, ZERO, false),
        (A3, A4, false),
        (ZERO, ZERO, false),
        (ZERO, A4, false),
        (A3, ZERO, true),
        (ZERO, ZERO, true),
    ];
    for tier in TIERS {
        for (va, asid, global) in fences {
            // Few pages of its own, and many: the engine tells those apart.
            for others in [0, 100] {
                let mut m = supervisor(tier);
                m.set_word(frame(0) + 8, 11);
                m.set_word(frame(1) + 8, 22);
                let flags = RW | if global { GLOBAL } else { 0 };
                let t = Tables::new(&m, TABLES, 5);
                t.map(3, frame(0), flags);
                for n in 0..others {
                    t.map(16 + n, frame(2), RW);
                }
                let leaf = t.leaf(3);
                let mut a = program(t.satp());
                a.li(A3, VA + 3 * PAGE);
                a.li(A4, 5);
                a.li(S0, 10);
                a.li(T2, VA + 16 * PAGE);
                a.li(A0, PAGE);
                for _ in 0..others {
                    a.imm("ld", A1, T2, 0);
                    a.emit("add", T2, T2, A0, 0);
                }
                a.li(A0, 0);
                let top = a.here();
                for (f, weight) in [(1, 8), (0, 0)] {
                    a.imm("ld", A1, A3, 8);
                    a.imm("slli", A1, A1, weight);
                    a.emit("add", A0, A0, A1, 0);
                    set_entry(&mut a, leaf, entry(frame(f), flags));
                    fence(&mut a, va, asid);
                }
                a.imm("addi", S0, S0, -1);
                a.branch("bne", S0, 0, top);
                a.exit(A0, EXIT);
                let what = format!("{tier:?}, {va}, {asid}, {global}, {others}");
                assert_eq!(run(&mut m, &a), (EXIT, 10 * (11 * 256 + 22)), "{what}");
            }
        }
    }
}

#[test]
fn a_fence_at_any_address_of_a_large_page_is_for_all_of_it() {
    for tier in TIERS {
        let mut m = supervisor(tier);
        m.set_word(RAM + 0x5_5000, 11);
        m.set_word(RAM + LARGE + 0x5_5000, 22);
        let t = Tables::new(&m, TABLES, 5);
        let at = t.large(1);
        m.set_word(at, entry(RAM, RW));
        let mut a = program(t.satp());
        a.li(S0, VA + LARGE + 0x5_5000);
        a.li(S1, VA + LARGE + 0x1000);
        a.imm("ld", A0, S1, 0);
        a.imm("ld", A0, S0, 0);
        set_entry(&mut a, at, entry(RAM + LARGE, RW));
        fence(&mut a, S1, ZERO);
        a.imm("ld", A1, S0, 0);
        a.imm("slli", A1, A1, 8);
        a.emit("add", A0, A0, A1, 0);
        a.exit(A0, EXIT);
        assert_eq!(run(&mut m, &a), (EXIT, 11 + 22 * 256), "{tier:?}");
    }
}

#[test]
fn a_permission_that_is_taken_away_is_gone_after_the_fence() {
    for tier in TIERS {
        // The fence's operands; the new flags; the access; the cause.
        type Act = fn(&mut Asm);
        let cases: [(u64, Act, u64); 4] = [
            (READ, |a| a.store("sd", S0, A3, 16), 15),
            (0, |a| a.imm("lw", A0, A3, 16), 13),
            (RW | 0x10, |a| a.imm("lw", A0, A3, 16), 13),
            (READ, |a| a.emit("amoadd.w", A0, A3, A0, 0), 15),
        ];
        for (i, (flags, act, cause)) in cases.into_iter().enumerate() {
            let mut m = supervisor(tier);
            let t = Tables::new(&m, TABLES, 1);
            t.map(0, frame(0), RW);
            let mut a = program(t.satp());
            a.li(A3, VA);
            a.li(S0, 77);
            a.store("sd", S0, A3, 16);
            a.imm("ld", A0, A3, 16);
            set_entry(&mut a, t.leaf(0), entry(frame(0), flags));
            fence(&mut a, A3, ZERO);
            a.imm("addi", A1, A1, 9);
            let pc = a.here();
            act(&mut a);
            a.exit(A0, EXIT);
            assert_eq!(run(&mut m, &a), (EXIT + 8, cause), "{tier:?}, case {i}");
            let value = VA + if i == 3 { 0 } else { 16 };
            assert_eq!((m.register("sepc"), m.register("stval")), (pc, value), "{tier:?}, case {i}");
            assert_eq!((m.register("a0"), m.register("a1")), (77, 9), "{tier:?}, case {i}");
            assert_eq!(m.word(frame(0) + 16), 77);
        }
    }
}

#[test]
fn address_spaces_need_no_fence_between_them() {
    for tier in TIERS {
        for own in [1, 60] {
            let mut m = supervisor(tier);
            let spaces = [1, 2, 3].map(|i| {
                let t = Tables::new(&m, TABLES + i * 0x1_0000, i);
                for n in 0..own {
                    t.map(n, frame(i), RX);
                }
                t.map(100, frame(10), RW | GLOBAL);
                // Each has its own code and data at the same address.
                let mut f = Asm::new(frame(i));
                f.imm("addi", A1, A1, i as i32);
                f.imm("jalr", 0, RA, 0);
                m.write(frame(i), &f.code);
                m.set_word(frame(i) + 64, 0x100 * i);
                t.satp()
            });
            m.set_word(frame(10), 0x10000);
            let mut a = program(spaces[0]);
            a.li(S0, 20);
            a.li(A3, VA);
            a.li(A4, VA + 100 * PAGE);
            a.li(T2, PAGE);
            let top = a.here();
            for satp in spaces {
                set_satp(&mut a, satp);
                a.imm("addi", T1, A3, 0);
                for _ in 0..own {
                    a.imm("ld", A2, T1, 64);
                    a.emit("add", T1, T1, T2, 0);
                }
                a.emit("add", A1, A1, A2, 0);
                a.imm("ld", A2, A4, 0);
                a.emit("add", A1, A1, A2, 0);
                a.imm("jalr", RA, A3, 0);
            }
            a.imm("addi", S0, S0, -1);
            a.branch("bne", S0, 0, top);
            a.exit(A1, EXIT);
            assert_eq!(run(&mut m, &a), (EXIT, 20 * 0x3_0606), "{tier:?}, {own}");
        }
    }
}

/// An `addi a0, a0, n` whose second half is in the page after [`VA`], then a return.
fn put_straddling(m: &Machine, first: u64, second: u64, n: i32) {
    let bits = encode(by_name("addi").unwrap(), A0, A0, 0, n).unwrap().to_le_bytes();
    m.write(first + PAGE - 2, &bits[..2]);
    m.write(second, &bits[2..]);
    let mut f = Asm::new(second + 2);
    f.imm("jalr", 0, RA, 0);
    m.write(f.base, &f.code);
}

#[test]
fn a_fence_for_another_space_is_for_that_one() {
    for tier in TIERS {
        for own in [1, 60] {
            let mut m = supervisor(tier);
            let spaces = [1, 2].map(|i| {
                let t = Tables::new(&m, TABLES + i * 0x1_0000, i);
                // Each at addresses of its own, so that neither's pages push the other's out of the TLB.
                for n in 0..own {
                    t.map(100 * i + n, frame(i), RW);
                }
                t
            });
            for i in [1, 2, 3] {
                m.set_word(frame(i), 1 << (16 * (i - 1)));
            }
            let leaf = spaces[1].leaf(200);
            let [first, second] = [(spaces[0].satp(), 100), (spaces[1].satp(), 200)];
            let mut a = program(first.0);
            a.li(S0, 20);
            a.li(T2, PAGE);
            let top = a.here();
            for next in [3, 2] {
                for (satp, page) in [second, first] {
                    set_satp(&mut a, satp);
                    a.li(T1, VA + page * PAGE);
                    a.imm("ld", A2, T1, 0);
                    a.emit("add", A1, A1, A2, 0);
                    for _ in 1..own {
                        a.emit("add", T1, T1, T2, 0);
                        a.imm("ld", A2, T1, 0);
                    }
                }
                // In the first space: the second one's page moves.
                set_entry(&mut a, leaf, entry(frame(next), RW));
                a.li(A4, 2);
                fence(&mut a, ZERO, A4);
            }
            a.imm("addi", S0, S0, -1);
            a.branch("bne", S0, 0, top);
            a.exit(A1, EXIT);
            assert_eq!(run(&mut m, &a), (EXIT, 20 * 0x1_0001_0002), "{tier:?}, {own}");
        }
    }
}

#[test]
fn an_instruction_across_pages_follows_its_second_page() {
    for tier in TIERS {
        for whole in [false, true] {
            let mut m = supervisor(tier);
            put_straddling(&m, frame(0), frame(1), 1);
            put_straddling(&m, frame(0), frame(2), 0x100);
            let t = Tables::new(&m, TABLES, 1);
            t.map(0, frame(0), RX);
            t.map(1, frame(1), RX);
            let mut a = program(t.satp());
            a.li(S0, 10);
            a.li(A3, VA + PAGE - 2);
            a.li(A4, VA + PAGE);
            let top = a.here();
            for f in [2, 1] {
                a.imm("jalr", RA, A3, 0);
                a.imm("jalr", RA, A3, 0);
                set_entry(&mut a, t.leaf(1), entry(frame(f), RX));
                fence(&mut a, if whole { ZERO } else { A4 }, ZERO);
            }
            // Now the first of the two second halves is written, where it is mapped for data.
            a.li(T0, frame(1));
            a.imm("lhu", T1, T0, 0);
            a.imm("addi", T1, T1, 0x10);
            a.store("sh", T1, T0, 0);
            a.emit("fence.i", 0, 0, 0, 0);
            a.imm("addi", S0, S0, -1);
            a.branch("bne", S0, 0, top);
            // Unmapped: the fetch faults at the second page.
            set_entry(&mut a, t.leaf(1), 0);
            fence(&mut a, if whole { ZERO } else { A4 }, ZERO);
            a.imm("jalr", RA, A3, 0);
            a.exit(A0, EXIT);
            assert_eq!(run(&mut m, &a), (EXIT + 8, 12), "{tier:?}");
            assert_eq!(m.register("a0"), 2 * (10 + 45) + 20 * 0x100, "{tier:?}");
            assert_eq!((m.register("sepc"), m.register("stval")), (VA + PAGE - 2, VA + PAGE), "{tier:?}");
        }
    }
}

#[test]
fn a_store_across_pages_is_done_as_a_whole_or_not() {
    for tier in TIERS {
        for (name, len) in [("sh", 2), ("sw", 4), ("sd", 8)] {
            for before in 1..len {
                // The second page is read-only, or the first is, or both may be written.
                for (first, second) in [(RW, READ), (READ, RW), (RW, 0), (RW, RW)] {
                    let mut m = supervisor(tier);
                    let t = Tables::new(&m, TABLES, 1);
                    // The pages behind each other in the address space are not so in memory.
                    t.map(0, frame(4), first);
                    t.map(1, frame(2), second);
                    let mut a = program(t.satp());
                    a.li(S0, VA + PAGE - before);
                    a.li(T0, 0x0102_0304_0506_0708);
                    // Both pages are known before.
                    a.imm("lb", A0, S0, 0);
                    if second != 0 {
                        a.imm("lb", A0, S0, len as i32 - 1);
                    }
                    let pc = a.here();
                    a.store(name, T0, S0, 0);
                    a.imm(if len == 8 { "ld" } else { "lhu" }, A1, S0, 0);
                    a.exit(A1, EXIT);
                    let exit = run(&mut m, &a);
                    let stored: Vec<u8> =
                        [m.read(frame(5) - before, before as usize), m.read(frame(2), 8)].concat();
                    let what = format!("{tier:?}, {name}, {before}, {first:#x}, {second:#x}");
                    if (first, second) == (RW, RW) {
                        let bytes = 0x0102_0304_0506_0708u64.to_le_bytes();
                        assert_eq!(stored[..len as usize], bytes[..len as usize], "{what}");
                        let value = if len == 8 { 0x0102_0304_0506_0708 } else { 0x0708 };
                        assert_eq!(exit, (EXIT, value), "{what}");
                    } else {
                        assert_eq!(exit, (EXIT + 8, 15), "{what}");
                        assert_eq!(m.register("sepc"), pc, "{what}");
                        let page = if first == READ { VA } else { VA + PAGE };
                        assert_eq!(m.register("stval") & !(PAGE - 1), page, "{what}");
                        assert!(stored.iter().all(|&b| b == 0), "{what}: {stored:x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_load_across_pages_reads_both_or_faults_at_the_one_that_is_not_there() {
    for tier in TIERS {
        for second in [READ, 0] {
            let mut m = supervisor(tier);
            m.write(frame(5) - 3, &[1, 2, 3]);
            m.write(frame(2), &[4, 5, 6, 7, 0x88]);
            let t = Tables::new(&m, TABLES, 1);
            t.map(0, frame(4), READ);
            t.map(1, frame(2), second);
            let mut a = program(t.satp());
            a.li(S0, VA + PAGE - 3);
            a.imm("lw", A1, S0, 0);
            a.imm("ld", A0, S0, 0);
            a.exit(A0, EXIT);
            let exit = run(&mut m, &a);
            if second == 0 {
                assert_eq!((exit, m.register("stval")), ((EXIT + 8, 13), VA + PAGE), "{tier:?}");
            } else {
                assert_eq!(
                    (exit, m.register("a1")),
                    ((EXIT, 0x8807_0605_0403_0201), 0x0403_0201),
                    "{tier:?}"
                );
            }
        }
    }
}

/// Appends a vector load or store of `vd`, unmasked.
fn vector(a: &mut Asm, name: &str, vd: u8, base: u8) {
    let bits = encode(by_name(name).unwrap(), vd, base, 0, 0).unwrap() | 1 << 25;
    a.code.extend(bits.to_le_bytes());
}

#[test]
fn vectors_across_pages_go_to_both_or_fault_whole() {
    for tier in TIERS {
        let mut m = supervisor(tier);
        let tables = Tables::new(&m, TABLES, 1);
        tables.map(0, frame(3), RW);
        tables.map(1, frame(1), RW);
        tables.map(2, frame(5), READ);
        let satp = tables.satp();
        let pattern: Vec<u8> = (1..=PAGE as usize).map(|n| (n % 251) as u8).collect();
        m.write(frame(3), &pattern);
        m.write(frame(1), &pattern);
        m.write(frame(5), &pattern);
        let mut a = program(satp);
        a.li(T0, 0x600);
        a.emit("csrrs", 0, T0, 0, csr::SSTATUS);
        // All 16 bytes of a register.
        a.emit("vsetvli", T1, 0, 0, 0);
        // Twice: without and with the pages in the TLB.
        for _ in 0..2 {
            a.li(A0, VA + PAGE - 5);
            vector(&mut a, "vle8.v", 8, A0);
            a.li(A1, VA + PAGE - 9);
            vector(&mut a, "vse8.v", 8, A1);
            a.li(A1, VA + 0x100);
            vector(&mut a, "vse8.v", 8, A1);
        }
        a.li(A2, VA + 2 * PAGE - 8);
        vector(&mut a, "vse8.v", 8, A2);
        a.exit(A0, EXIT);
        let exit = run(&mut m, &a);
        assert_eq!(exit, (EXIT + 8, 15), "{tier:?}: a store page fault");
        let at = |n: usize| pattern[n % PAGE as usize];
        // The second load reads what the first store has changed.
        let mut memory: Vec<u8> = (0..2 * PAGE as usize).map(at).collect();
        let mut loaded = Vec::new();
        for _ in 0..2 {
            loaded = memory[PAGE as usize - 5..][..16].to_vec();
            memory[PAGE as usize - 9..][..16].copy_from_slice(&loaded);
        }
        assert_eq!(m.read(frame(3) + 0x100, 16), loaded, "{tier:?}");
        assert_eq!(m.read(frame(3) + PAGE - 9, 9), memory[PAGE as usize - 9..PAGE as usize], "{tier:?}");
        assert_eq!(m.read(frame(1), 7), memory[PAGE as usize..][..7], "{tier:?}");
        assert_eq!(
            m.read(frame(1) + PAGE - 8, 8),
            pattern[PAGE as usize - 8..],
            "{tier:?}: nothing was stored"
        );
        assert_eq!(m.read(frame(5), 8), pattern[..8], "{tier:?}");
    }
}
