use plinth_ir::{Exception, HelperResult};

use super::number as n;
use crate::Firmware;
use crate::harness::Hart;
use crate::mode::{RiscvMode, Unit, mmu, privilege};
use crate::privileged::interrupts::irq;
use crate::privileged::state::{envcfg, mode_of, status};
use crate::slots;

fn machine() -> Hart {
    Hart::new(Firmware::Guest)
}

fn supervisor() -> Hart {
    Hart::new(Firmware::BuiltIn)
}

fn set_privilege(hart: &mut Hart, to: u32) {
    hart.set(slots::PRIVILEGE, u64::from(to));
}

fn is_illegal<T>(result: Result<T, Exception>) -> bool {
    matches!(result, Err(Exception { code: 2, .. }))
}

#[test]
fn instructions_read_write_set_and_clear() {
    let mut h = machine();
    h.set(slots::x(6), 0xf0);
    h.csr(1, n::MSCRATCH, 0, 6);
    h.set(slots::x(6), 0x0f);
    assert_eq!(h.csr(2, n::MSCRATCH, 5, 6), HelperResult::Next(0));
    assert_eq!((h.x(5), h.get(slots::MSCRATCH)), (0xf0, 0xff));
    h.csr(3, n::MSCRATCH, 5, 6);
    assert_eq!((h.x(5), h.get(slots::MSCRATCH)), (0xff, 0xf0));
    h.csr(5, n::MSCRATCH, 5, 31);
    assert_eq!((h.x(5), h.get(slots::MSCRATCH)), (0xf0, 31));
    h.csr(6, n::MSCRATCH, 0, 32 - 32);
    assert_eq!(h.get(slots::MSCRATCH), 31);
    h.csr(7, n::MSCRATCH, 0, 1);
    assert_eq!(h.get(slots::MSCRATCH), 30);
    // The same register as source and destination.
    h.set(slots::x(6), 7);
    h.csr(1, n::MSCRATCH, 6, 6);
    assert_eq!((h.x(6), h.get(slots::MSCRATCH)), (30, 7));
    // x0 stays.
    h.csr(2, n::MSCRATCH, 0, 0);
    assert_eq!(h.x(0), 0);
}

#[test]
fn a_register_is_guarded_by_its_number() {
    let mut h = supervisor();
    for number in [n::MSTATUS, n::MEPC, n::PMPCFG0, n::MCYCLE, n::MHARTID] {
        assert!(is_illegal(h.read(number)), "{number:#x}");
    }
    set_privilege(&mut h, privilege::USER);
    assert!(is_illegal(h.read(n::SSCRATCH)));
    // Read-only registers cannot be written, but read without an attempt to.
    let mut h = machine();
    assert_eq!(h.read(n::MHARTID), Ok(0));
    assert!(matches!(h.write(n::MHARTID, 0), HelperResult::Raise(_)));
    let insn = u64::from(n::MHARTID) << 20 | 6 << 15 | 1 << 12 | 0x73;
    let expected = Exception { code: 2, value: insn };
    assert_eq!(h.write(n::MHARTID, 0), HelperResult::Raise(expected));
    // Absent ones.
    for number in [0x004, 0x015, 0x280, 0x3a1, 0x3c0, 0x7b0, 0x5a8, 0xcff, 0xfff] {
        assert!(is_illegal(h.read(number)), "{number:#x}");
    }
}

#[test]
fn mstatus_keeps_legal_values() {
    let mut h = machine();
    let all = h.write_read(n::MSTATUS, u64::MAX).unwrap();
    let expected = status::XL | status::MACHINE & !status::VS | status::SD;
    assert_eq!(all, expected);
    // MPP = 2 is reserved: the old value stays.
    let value = h.write_read(n::MSTATUS, 2 << 11).unwrap();
    assert_eq!(value, status::XL | 3 << 11);
    assert_eq!(h.write_read(n::MSTATUS, 1 << 11), Ok(status::XL | 1 << 11));
    // The supervisor's view.
    h.write(n::MSTATUS, u64::MAX);
    let seen = h.read(n::SSTATUS).unwrap();
    let fields = status::SIE | status::SPIE | status::SPP | status::FS | status::SUM | status::MXR;
    assert_eq!(seen, fields | status::SD | 2 << 32);
    h.write(n::SSTATUS, 0);
    assert_eq!(h.read(n::MSTATUS), Ok(expected & !fields & !status::SD));
}

#[test]
fn address_registers_keep_legal_values() {
    let mut h = machine();
    assert_eq!(h.write_read(n::MEPC, 0x1235), Ok(0x1234));
    assert_eq!(h.write_read(n::SEPC, u64::MAX), Ok(u64::MAX - 1));
    assert_eq!(h.write_read(n::MTVEC, 0x8000_0003), Ok(0x8000_0001));
    assert_eq!(h.write_read(n::STVEC, 0x8000_0002), Ok(0x8000_0000));
    assert_eq!(h.write_read(n::MISA, 0), Ok(0x8000_0000_0014_112f));
    assert_eq!(h.write_read(n::MEDELEG, u64::MAX), Ok(0xb3ff));
    assert_eq!(h.write_read(n::MIDELEG, u64::MAX), Ok(0x222));
    assert_eq!(h.write_read(n::MIE, u64::MAX), Ok(0xaaa));
    assert_eq!(h.write_read(n::MCOUNTEREN, u64::MAX), Ok(7));
    assert_eq!(h.write_read(n::TSELECT, 1), Ok(0));
    assert_eq!(h.write_read(n::TDATA1, u64::MAX), Ok(0));
}

#[test]
fn envcfg_keeps_legal_values() {
    let mut h = machine();
    let all = h.write_read(n::MENVCFG, u64::MAX).unwrap();
    assert_eq!(all, 0xa000_0000_0000_00f1);
    assert_eq!(h.write_read(n::SENVCFG, u64::MAX), Ok(0xf1));
    assert_eq!(h.write_read(n::SENVCFG, 0x20), Ok(0x30), "the reserved CBIE leaves the old one");
}

#[test]
fn satp_accepts_the_modes_there_are() {
    let mut h = supervisor();
    for mode in [8, 9, 10] {
        let value = mode << 60 | 0xffff << 44 | 0x8_0000;
        assert_eq!(h.write(n::SATP, value), HelperResult::Jump);
        assert_eq!(h.read(n::SATP), Ok(value));
    }
    let before = h.read(n::SATP).unwrap();
    assert_eq!(h.write_read(n::SATP, 11 << 60 | 1), Ok(before));
    assert_eq!(h.write_read(n::SATP, 1), Ok(0));
    h.set(slots::FEATURES, 1);
    assert_eq!(h.write_read(n::SATP, 9 << 60 | 1), Ok(0));
    assert_eq!(h.write_read(n::SATP, 8 << 60 | 1), Ok(8 << 60 | 1));
    // TVM keeps supervisor mode out.
    h.set(slots::MSTATUS, status::TVM);
    assert!(is_illegal(h.read(n::SATP)));
    set_privilege(&mut h, privilege::MACHINE);
    assert_eq!(h.read(n::SATP), Ok(8 << 60 | 1));
}

#[test]
fn counters_are_granted_by_the_levels_above() {
    let mut h = machine();
    h.env.now = 12_345;
    h.env.retired = 77;
    assert_eq!(h.read(n::TIME), Ok(123));
    assert_eq!(h.read(n::INSTRET), Ok(77));
    assert_eq!(h.read(n::HPMCOUNTER3), Ok(0));
    set_privilege(&mut h, privilege::SUPERVISOR);
    assert!(is_illegal(h.read(n::TIME)));
    h.set(slots::MCOUNTEREN, 2);
    assert_eq!(h.read(n::TIME), Ok(123));
    assert!(is_illegal(h.read(n::CYCLE)));
    set_privilege(&mut h, privilege::USER);
    assert!(is_illegal(h.read(n::TIME)));
    h.set(slots::SCOUNTEREN, 2);
    assert_eq!(h.read(n::TIME), Ok(123));
    h.set(slots::MCOUNTEREN, 0);
    assert!(is_illegal(h.read(n::TIME)));
}

#[test]
fn counters_can_be_set_and_stopped() {
    let mut h = machine();
    h.env.retired = 1000;
    h.env.now = 500;
    assert_eq!(h.write_read(n::MINSTRET, 5), Ok(5));
    h.env.retired += 10;
    assert_eq!(h.read(n::MINSTRET), Ok(15));
    assert_eq!(h.write_read(n::MCOUNTINHIBIT, u64::MAX), Ok(5));
    h.env.retired += 10;
    h.env.now += 10;
    assert_eq!((h.read(n::MINSTRET), h.read(n::MCYCLE)), (Ok(15), Ok(500)));
    assert_eq!(h.write_read(n::MCYCLE, u64::MAX), Ok(u64::MAX));
    h.write(n::MCOUNTINHIBIT, 0);
    h.env.retired += 1;
    h.env.now += 1;
    assert_eq!((h.read(n::INSTRET), h.read(n::CYCLE)), (Ok(16), Ok(0)));
}

#[test]
fn minstret_is_read_back_by_the_next_instruction() {
    let mut h = machine();
    h.env.retired = 1000;
    h.write(n::MINSTRET, 7);
    h.pc += 4;
    h.env.retired += 50;
    assert_eq!(h.read(n::MINSTRET), Ok(7));
    h.env.retired += 1;
    assert_eq!(h.read(n::MINSTRET), Ok(8), "the same instruction again");
    h.write(n::MINSTRET, 0);
    h.env.retired += 1;
    h.pc += 8;
    assert_eq!(h.read(n::MINSTRET), Ok(1));
    h.pc -= 4;
    assert_eq!(h.read(n::MINSTRET), Ok(1));
}

#[test]
fn floating_point_registers_need_the_unit() {
    let mut h = supervisor();
    for number in [n::FFLAGS, n::FRM, n::FCSR] {
        assert!(is_illegal(h.read(number)));
        assert!(matches!(h.write(number, 0), HelperResult::Raise(_)));
    }
    h.set(slots::MSTATUS, status::XL | 1 << 13);
    h.write(n::FCSR, 0xffff_ffff);
    assert_eq!((h.env.flags, h.get(slots::FRM)), (31, 7));
    assert_eq!(h.get(slots::MSTATUS) & status::FS, status::FS, "the state is dirty");
    h.write(n::FRM, 9);
    assert_eq!((h.read(n::FCSR), h.read(n::FRM)), (Ok(0x3f), Ok(1)));
    h.write(n::FFLAGS, 0x20 | 4);
    assert_eq!((h.read(n::FCSR), h.read(n::FFLAGS)), (Ok(0x24), Ok(4)));
    assert!(is_illegal(h.read(n::VSTART)), "there is no vector unit");
}

#[test]
fn a_change_of_mode_ends_the_block() {
    let mut h = supervisor();
    let start = h.pc;
    assert_eq!(h.write(n::SSTATUS, status::SUM), HelperResult::Jump);
    assert_eq!(h.pc, start + 4);
    assert_eq!(mode_of(&h.slots).data() as u32, mmu::SUPERVISOR_SUM);
    assert_eq!(h.write(n::SSTATUS, status::SUM), HelperResult::Next(0));
    assert_eq!(h.write(n::SSTATUS, status::SUM | status::MXR), HelperResult::Jump);
    assert_eq!(h.write(n::SSTATUS, status::SUM | status::MXR | status::SIE), HelperResult::Next(0));
    // Turning the floating point unit on changes nothing for code of supervisor mode.
    assert_eq!(h.write(n::SSTATUS, status::SUM | status::MXR | status::FS), HelperResult::Next(0));
    set_privilege(&mut h, privilege::USER);
    assert_eq!(h.write(n::FRM, 2), HelperResult::Jump);
    let mode = RiscvMode::of(mode_of(&h.slots));
    assert_eq!((mode.privilege, mode.fp, mode.frm), (privilege::USER, Unit::On, 2));
}

#[test]
fn the_environment_grants_cache_operations() {
    let mut h = machine();
    let mode = |h: &Hart| {
        let m = RiscvMode::of(mode_of(&h.slots));
        (m.cbo_clean, m.cbo_inval, m.cbo_zero)
    };
    assert_eq!(mode(&h), (true, true, true));
    set_privilege(&mut h, privilege::SUPERVISOR);
    assert_eq!(mode(&h), (false, false, false));
    h.set(slots::MENVCFG, envcfg::CBZE | 1 << 4);
    assert_eq!(mode(&h), (false, true, true));
    set_privilege(&mut h, privilege::USER);
    assert_eq!(mode(&h), (false, false, false));
    h.set(slots::SENVCFG, envcfg::CBZE | envcfg::CBCFE);
    assert_eq!(mode(&h), (false, false, true));
}

#[test]
fn stimecmp_sets_the_deadline() {
    let mut h = machine();
    h.write(n::STIMECMP, 50);
    assert_eq!(h.env.deadline, u64::MAX, "it is off");
    h.write(n::MENVCFG, envcfg::STCE);
    assert_eq!(h.env.deadline, 5000);
    h.write(n::STIMECMP, u64::MAX);
    assert_eq!(h.env.deadline, u64::MAX);
    h.write(n::STIMECMP, 50);
    h.env.now = 4999;
    assert_eq!(h.read(n::MIP), Ok(0));
    h.env.now = 5000;
    assert_eq!(h.read(n::MIP), Ok(irq::STI));
    h.write(n::MIP, 0);
    assert_eq!(h.read(n::MIP), Ok(irq::STI), "software cannot change it");
    h.write(n::STIMECMP, 51);
    assert_eq!(h.read(n::MIP), Ok(0));
    // Supervisor mode needs STCE and the counter.
    set_privilege(&mut h, privilege::SUPERVISOR);
    assert!(is_illegal(h.read(n::STIMECMP)));
    h.set(slots::MCOUNTEREN, 2);
    assert_eq!(h.read(n::STIMECMP), Ok(51));
    h.set(slots::MENVCFG, 0);
    assert!(is_illegal(h.read(n::STIMECMP)));
}

#[test]
fn protection_changes_flush() {
    let mut h = machine();
    assert_eq!(h.write(n::PMPADDR0, 0x1000), HelperResult::Jump);
    assert_eq!(h.write(n::PMPCFG0, 0x1f), HelperResult::Jump);
    assert_eq!(h.env.flushes.len(), 2);
    assert_eq!(h.read(n::PMPCFG0), Ok(0x1f));
}
