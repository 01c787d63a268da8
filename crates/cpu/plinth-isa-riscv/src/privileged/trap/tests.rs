use plinth_ir::{Exception, HelperResult};

use super::{cause, mret, sret};
use crate::Firmware;
use crate::harness::Hart;
use crate::mode::privilege::{MACHINE, SUPERVISOR, USER};
use crate::privileged::fence::{fence_i, sfence_order, sfence_vma};
use crate::privileged::state::status;
use crate::slots;

fn hart(privilege: u32) -> Hart {
    let mut h = Hart::new(Firmware::Guest);
    h.set(slots::PRIVILEGE, u64::from(privilege));
    h.set(slots::MTVEC, 0x8000_1001);
    h.set(slots::STVEC, 0x8000_2001);
    h
}

const ILLEGAL: u64 = 0xdead;
const IS_ILLEGAL: HelperResult = HelperResult::Raise(Exception { code: 2, value: ILLEGAL });

#[test]
fn an_exception_goes_to_machine_mode_and_back() {
    let mut h = hart(USER);
    h.set(slots::MSTATUS, status::MIE);
    h.pc = 0x4444;
    h.raise(cause::LOAD_PAGE, 0x1234);
    assert_eq!(h.pc, 0x8000_1000, "exceptions are not vectored");
    assert_eq!(
        [slots::PRIVILEGE, slots::MEPC, slots::MCAUSE, slots::MTVAL].map(|s| h.get(s)),
        [3, 0x4444, 13, 0x1234]
    );
    assert_eq!(h.get(slots::MSTATUS), status::MPIE);
    h.set(slots::MSTATUS, h.get(slots::MSTATUS) | status::MPRV);
    assert_eq!(h.helper(mret, ILLEGAL, 0, 0), HelperResult::Jump);
    assert_eq!((h.pc, h.get(slots::PRIVILEGE)), (0x4444, u64::from(USER)));
    assert_eq!(h.get(slots::MSTATUS), status::MIE | status::MPIE, "MPRV is left behind");
}

#[test]
fn a_delegated_exception_goes_to_supervisor_mode_and_back() {
    let mut h = hart(SUPERVISOR);
    h.set(slots::MEDELEG, 1 << cause::ILLEGAL);
    h.set(slots::MSTATUS, status::SIE);
    h.pc = 0x4444;
    h.raise(cause::ILLEGAL, 0xffff);
    assert_eq!(h.pc, 0x8000_2000);
    assert_eq!(
        [slots::PRIVILEGE, slots::SEPC, slots::SCAUSE, slots::STVAL].map(|s| h.get(s)),
        [1, 0x4444, 2, 0xffff]
    );
    assert_eq!(h.get(slots::MSTATUS), status::SPIE | status::SPP);
    assert_eq!(h.helper(sret, ILLEGAL, 0, 0), HelperResult::Jump);
    assert_eq!((h.pc, h.get(slots::PRIVILEGE)), (0x4444, u64::from(SUPERVISOR)));
    assert_eq!(h.get(slots::MSTATUS), status::SIE | status::SPIE);
    assert_eq!(h.helper(sret, ILLEGAL, 0, 0), HelperResult::Jump);
    assert_eq!(h.get(slots::PRIVILEGE), u64::from(USER), "SPP became user mode");
    // Delegation does not take an exception away from machine mode.
    let mut h = hart(MACHINE);
    h.set(slots::MEDELEG, u64::MAX);
    h.raise(cause::ILLEGAL, 0);
    assert_eq!((h.pc, h.get(slots::PRIVILEGE)), (0x8000_1000, u64::from(MACHINE)));
    assert_eq!(h.get(slots::MSTATUS) & status::MPP, status::MPP);
}

#[test]
fn returns_need_their_privilege() {
    for (privilege, m, s) in [(USER, false, false), (SUPERVISOR, false, true), (MACHINE, true, true)] {
        let mut h = hart(privilege);
        assert_eq!(h.helper(mret, ILLEGAL, 0, 0) != IS_ILLEGAL, m);
        let mut h = hart(privilege);
        assert_eq!(h.helper(sret, ILLEGAL, 0, 0) != IS_ILLEGAL, s);
    }
    let mut h = hart(SUPERVISOR);
    h.set(slots::MSTATUS, status::TSR);
    assert_eq!(h.helper(sret, ILLEGAL, 0, 0), IS_ILLEGAL);
}

#[test]
fn fences_need_their_privilege_and_say_what_they_cover() {
    let mut h = hart(USER);
    assert_eq!(h.helper(sfence_vma, ILLEGAL, 0, 0), IS_ILLEGAL);
    assert_eq!(h.helper(sfence_order, ILLEGAL, 0, 0), IS_ILLEGAL);
    let mut h = hart(SUPERVISOR);
    let start = h.pc;
    let fields = |rs1: u64, rs2: u64| 0x1200_0073 | rs1 << 15 | rs2 << 20;
    assert_eq!(h.helper(sfence_vma, fields(0, 0), 1, 2), HelperResult::Jump);
    assert_eq!(h.pc, start + 4);
    h.helper(sfence_vma, fields(5, 0), 0x1234_5678, 2);
    h.helper(sfence_vma, fields(0, 6), 1, 0x1_0007);
    h.helper(sfence_vma, fields(5, 6), 0x1fff, 3);
    let seen: Vec<_> = h.env.flushes.iter().map(|f| (f.range, f.asid)).collect();
    let expected =
        [(None, None), (Some((0x1234_5000, 4096)), None), (None, Some(7)), (Some((0x1000, 4096)), Some(3))];
    assert_eq!(seen, expected);
    h.set(slots::MSTATUS, status::TVM);
    assert_eq!(h.helper(sfence_vma, ILLEGAL, 0, 0), IS_ILLEGAL);
    assert_eq!(h.helper(sfence_order, ILLEGAL, 0, 0), HelperResult::Next(0));
    assert_eq!(h.helper(fence_i, 0, 0, 0), HelperResult::Jump);
    assert_eq!(h.env.code_flushes, 1);
}

#[test]
fn environment_calls_reach_the_firmware_there_is() {
    let mut h = hart(SUPERVISOR);
    h.raise(cause::ECALL_SUPERVISOR, 0);
    assert_eq!((h.get(slots::PRIVILEGE), h.get(slots::MCAUSE)), (3, 9));
    let mut h = Hart::new(Firmware::BuiltIn);
    let start = h.pc;
    // The specification's version.
    assert_eq!(h.sbi(0x10, 0, &[]), (0, 2 << 24));
    assert_eq!((h.pc, h.get(slots::PRIVILEGE)), (start + 4, 1));
    // From user mode they are the kernel's.
    h.set(slots::PRIVILEGE, 0);
    h.set(slots::STVEC, 0x8000_0100);
    h.raise(cause::ECALL_USER, 0);
    assert_eq!((h.pc, h.get(slots::SCAUSE)), (0x8000_0100, 8));
}
