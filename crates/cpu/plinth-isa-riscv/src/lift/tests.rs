//! The shape of lifted blocks. What the instructions compute is tested in the crate's `tests` folder.

use plinth_ir::{AmoOp, Block, Code, Cond, LiftError, LiftRequest, Mode, Op, Ty, Val, flags, verify};

use super::lift;
use crate::generate::{Rng, by_name, encode};
use crate::helper::HelperId;
use crate::mode::{RiscvMode, Unit, privilege};
use crate::slots;

const USER: RiscvMode = RiscvMode {
    mmu: 0,
    privilege: privilege::USER,
    fp: Unit::On,
    vector: Unit::Off,
    frm: 0,
    cbo_clean: false,
    cbo_inval: false,
    cbo_zero: false,
};
const SUPERVISOR: RiscvMode = RiscvMode { mmu: 1, privilege: privilege::SUPERVISOR, fp: Unit::Check, ..USER };

/// The code of named instructions with (rd, rs1, rs2, immediate).
fn code(insns: &[(&str, u8, u8, u8, i32)]) -> Vec<u8> {
    let mut out = Vec::new();
    for &(name, rd, rs1, rs2, imm) in insns {
        let row = by_name(name).unwrap();
        let bits = encode(row, rd, rs1, rs2, imm).unwrap_or_else(|| panic!("{name} cannot be encoded"));
        out.extend_from_slice(&bits.to_le_bytes()[..usize::from(row.bytes())]);
    }
    out
}

fn request(mode: RiscvMode, start: u32, code: &[u8], max_insns: u32) -> LiftRequest<'_> {
    LiftRequest { mode: Mode { key: mode.key(), fetch: 0 }, start, code, max_insns }
}

fn block_at(mode: RiscvMode, start: u32, code: &[u8], max_insns: u32) -> Block {
    let mut block = Block::default();
    lift(&request(mode, start, code, max_insns), &mut block).unwrap();
    verify(&block, &slots::LAYOUT).unwrap_or_else(|e| panic!("{e}: {block:#?}"));
    block
}

fn block(mode: RiscvMode, insns: &[(&str, u8, u8, u8, i32)]) -> Block {
    block_at(mode, 0, &code(insns), 64)
}

fn codes(block: &Block) -> Vec<Code> {
    block.ops.iter().map(|op| op.code).collect()
}

fn find(block: &Block, code: Code) -> Vec<Op> {
    block.ops.iter().filter(|op| op.code == code).copied().collect()
}

fn target(block: &Block, op: &Op) -> (i32, bool) {
    let label = block.labels[op.aux as usize];
    (label.pc, label.op.is_some())
}

fn x(r: u8) -> Val {
    Val::slot(slots::x(r))
}

#[test]
fn a_loop_is_one_block_with_a_bound_label() {
    let b = block(
        USER,
        &[("addi", 10, 0, 0, 100), ("addi", 10, 10, 0, -1), ("bne", 0, 10, 0, -4), ("jalr", 0, 1, 0, 0)],
    );
    assert_eq!(b.insns, 4);
    assert_eq!((b.start, b.len), (0, 16));
    let branch = find(&b, Code::Br)[0];
    assert_eq!(target(&b, &branch), (4, true));
    assert_eq!((branch.sub, branch.a, b.const_of(branch.b)), (Cond::Ne as u8, x(10), Some(0)));
    // What is known before the label does not count after it.
    let add = find(&b, Code::Add)[0];
    assert_eq!((add.dst, add.a), (x(10), x(10)));
    let jump = find(&b, Code::JmpInd)[0];
    assert_eq!(jump.flags, flags::RET);
}

#[test]
fn forward_branches_carry_the_region_over_jumps() {
    let b = block(
        USER,
        &[
            ("beq", 0, 10, 11, 12),
            ("c.addi", 12, 12, 0, 1),
            ("c.jr", 0, 1, 0, 0),
            ("addi", 13, 0, 0, 1), // nobody gets here
            ("addi", 14, 14, 0, 1),
            ("c.jr", 0, 1, 0, 0),
            ("c.addi", 15, 15, 0, 1), // nor here
        ],
    );
    assert_eq!(b.len, 18);
    assert_eq!(b.insns, 5);
    assert_eq!(target(&b, &find(&b, Code::Br)[0]), (12, true));
    assert!(!b.ops.iter().any(|op| op.dst == x(13) || op.dst == x(15)));
}

#[test]
fn code_behind_a_jump_comes_alive_by_a_branch_back() {
    // The condition of a loop at its end.
    let b = block(
        USER,
        &[("jal", 0, 0, 0, 8), ("addi", 10, 10, 0, 1), ("bne", 0, 10, 11, -4), ("jalr", 0, 1, 0, 0)],
    );
    assert_eq!(b.insns, 4);
    assert_eq!(target(&b, &find(&b, Code::Jmp)[0]), (8, true));
    assert_eq!(target(&b, &find(&b, Code::Br)[0]), (4, true));
}

#[test]
fn targets_outside_stay_unbound() {
    let b = block(
        USER,
        &[
            ("beq", 0, 10, 11, -8), // before the page
            ("beq", 0, 10, 11, 6),  // into the middle of the next but one
            ("addi", 12, 12, 0, 1),
            ("jal", 1, 0, 0, 0x2000),
        ],
    );
    let branches = find(&b, Code::Br);
    assert_eq!(target(&b, &branches[0]), (-8, false));
    assert_eq!(target(&b, &branches[1]), (10, false));
    assert_eq!(target(&b, &find(&b, Code::Jmp)[0]), (0x200c, false));
    let link = find(&b, Code::PcRel)[0];
    assert_eq!((link.dst, link.aux), (x(1), 16));
}

#[test]
fn the_region_ends_with_the_page() {
    let nops = code(&[("addi", 1, 1, 0, 1), ("addi", 1, 1, 0, 1)]);
    let b = block_at(USER, 4092, &nops, 64);
    assert_eq!((b.insns, b.len), (1, 4));
    assert_eq!(target(&b, b.ops.last().unwrap()), (4096, false));
    // A straddling instruction is lifted only as the first one.
    let mut half = code(&[("c.addi", 1, 1, 0, 1)]);
    half.extend_from_slice(&nops);
    let b = block_at(USER, 4092, &half, 64);
    assert_eq!((b.insns, b.len), (1, 2));
    assert_eq!(target(&b, b.ops.last().unwrap()), (4094, false));
    let b = block_at(USER, 4094, &nops, 64);
    assert_eq!((b.start, b.insns, b.len), (4094, 1, 4));
    assert_eq!(target(&b, b.ops.last().unwrap()), (4098, false));
    let mut out = Block::default();
    assert_eq!(lift(&request(USER, 4094, &nops[..2], 64), &mut out), Err(LiftError::NeedNextPage));
    assert_eq!(lift(&request(USER, 4094, &[], 64), &mut out), Err(LiftError::NeedNextPage));
}

#[test]
fn max_insns_is_kept() {
    let many = code(&[("addi", 1, 1, 0, 1); 20]);
    let b = block_at(USER, 0, &many, 5);
    assert_eq!((b.insns, b.len), (5, 20));
    assert_eq!(target(&b, b.ops.last().unwrap()), (20, false));
    assert_eq!(block_at(USER, 0, &many, 0).insns, 1);
}

#[test]
fn x0_takes_no_results_but_keeps_faults() {
    let b = block(USER, &[("addi", 0, 10, 0, 1), ("lw", 0, 10, 0, 8), ("add", 11, 0, 12, 0)]);
    use Code::{Insn, Jmp, Load, Mov};
    assert_eq!(codes(&b), [Insn, Insn, Load, Insn, Mov, Jmp]);
    let load = find(&b, Load)[0];
    assert!(load.dst.as_temp().is_some());
    assert_eq!((load.a, load.aux, load.flags), (x(10), 8, flags::SEXT));
}

#[test]
fn constants_and_addresses_are_folded() {
    let b = block(
        USER,
        &[
            ("lui", 10, 0, 0, 0x1234_5000),
            ("addiw", 10, 10, 0, 0x678),
            ("slli", 10, 10, 0, 4),
            ("auipc", 11, 0, 0, 0x1000),
            ("addi", 11, 11, 0, -4),
            ("auipc", 1, 0, 0, 0x3000),
            ("jalr", 1, 1, 0, 0x10),
        ],
    );
    let values: Vec<_> = find(&b, Code::Mov).iter().map(|op| b.const_of(op.a)).collect();
    assert_eq!(values, [Some(0x1234_5000), Some(0x1234_5678), Some(0x1_2345_6780)]);
    let addresses: Vec<_> = find(&b, Code::PcRel).iter().map(|op| (op.dst, op.aux)).collect();
    assert_eq!(addresses, [(x(11), 12 + 0x1000), (x(11), 12 + 0x1000 - 4), (x(1), 20 + 0x3000), (x(1), 28)]);
    assert_eq!(target(&b, &find(&b, Code::Jmp)[0]), (20 + 0x3000 + 0x10, false));
    // A load in between makes it unknown.
    let b = block(USER, &[("auipc", 1, 0, 0, 0x3000), ("ld", 1, 1, 0, 0), ("jalr", 1, 1, 0, 0)]);
    assert_eq!(find(&b, Code::JmpInd)[0].flags, flags::CALL);
    // No overflow at the ends of the address range.
    let b = block_at(USER, 4088, &code(&[("auipc", 1, 0, 0, 0x7fff_f000), ("addi", 1, 1, 0, 2047)]), 64);
    assert_eq!(find(&b, Code::PcRel)[0].aux, 0x7fff_fff8);
    assert_eq!(find(&b, Code::Add).len(), 1);
}

#[test]
fn atomics_carry_their_order() {
    let mut words = code(&[("amoadd.w", 10, 11, 12, 0), ("lr.d", 10, 11, 0, 0), ("sc.d", 10, 11, 12, 0)]);
    words[3] |= 6; // aq, rl
    let b = block_at(USER, 0, &words, 64);
    let amo = find(&b, Code::Amo)[0];
    assert_eq!((amo.ty, amo.sub, amo.a, amo.b), (Ty::I32, AmoOp::Add as u8, x(11), x(12)));
    assert_eq!(amo.flags, flags::SEXT | flags::ALIGNED | flags::ACQUIRE | flags::RELEASE);
    assert_eq!(find(&b, Code::LoadReserved)[0].flags, flags::ALIGNED);
    assert_eq!(find(&b, Code::StoreCond)[0].dst, x(10));
    let b = block(USER, &[("fence", 0, 0, 0, 0x33), ("fence", 0, 0, 0, 0x23), ("fence", 0, 0, 0, 0x10)]);
    let full: Vec<_> = find(&b, Code::Fence).iter().map(|op| op.aux).collect();
    assert_eq!(full, [1, 0]);
}

#[test]
fn float_needs_its_unit() {
    let add = [("fadd.d", 1, 2, 3, 0), ("fsub.d", 1, 1, 3, 0)];
    let off = block(RiscvMode { fp: Unit::Off, ..USER }, &add);
    assert_eq!(codes(&off), [Code::Insn, Code::Trap]);
    assert_eq!((off.ops[1].aux, off.const_of(off.ops[1].a)), (2, Some(0x0231_00d3)));
    let on = block(USER, &add);
    use Code::{FAdd, FSub, Helper, Insn, Jmp, Or};
    // Dirty is set once.
    assert_eq!(codes(&on), [Insn, Or, FAdd, Insn, FSub, Jmp]);
    assert_eq!(on.ops[1].dst, Val::slot(slots::MSTATUS));
    let check = block(SUPERVISOR, &add);
    assert_eq!(codes(&check), [Insn, Helper, Or, FAdd, Insn, FSub, Jmp]);
    assert_eq!(check.ops[1].aux, HelperId::FpCheck as i32);
    // ... and again after a CSR write, and after a label.
    let b = block(
        SUPERVISOR,
        &[
            ("fadd.d", 1, 2, 3, 0),
            ("csrrw", 0, 5, 0, 0x100),
            ("fadd.d", 1, 2, 3, 0),
            ("fadd.d", 1, 2, 3, 0),
            ("bne", 0, 10, 0, -4),
        ],
    );
    assert_eq!(find(&b, Or).len(), 3);
    let helpers: Vec<_> = find(&b, Helper).iter().map(|op| op.aux).collect();
    let (check, csr) = (HelperId::FpCheck as i32, HelperId::Csr as i32);
    assert_eq!(helpers, [check, csr, check, check]);
    // Stores do not change the state.
    assert_eq!(codes(&block(USER, &[("fsd", 0, 2, 8, 16)])), [Insn, Code::Store, Jmp]);
}

#[test]
fn rounding_modes_are_static() {
    let with_rm = |rm: u32, frm: u32| {
        let mut word = code(&[("fadd.s", 1, 2, 3, 0)]);
        word[1] |= (rm << 4) as u8;
        block_at(RiscvMode { frm, ..USER }, 0, &word, 64)
    };
    for rm in 0..5 {
        assert_eq!(u32::from(find(&with_rm(rm, 0), Code::FAdd)[0].sub), rm);
        assert_eq!(u32::from(find(&with_rm(7, rm), Code::FAdd)[0].sub), rm);
    }
    for (rm, frm) in [(5, 0), (6, 0), (7, 5), (7, 6), (7, 7)] {
        assert_eq!(codes(&with_rm(rm, frm)), [Code::Insn, Code::Trap], "{rm} {frm}");
    }
}

#[test]
fn csrs_are_in_line_where_they_are_plain() {
    // Swapping a register with sscratch.
    let b = block(SUPERVISOR, &[("csrrw", 4, 4, 0, 0x140)]);
    use Code::{And, Exit, FpFlagsGet, FpFlagsSet, Helper, Insn, Jmp, Mov, Trap};
    assert_eq!(codes(&b), [Insn, Mov, Mov, Mov, Jmp]);
    assert_eq!((b.ops[2].dst, b.ops[2].a), (Val::slot(slots::SSCRATCH), x(4)));
    assert_eq!((b.ops[3].dst, b.ops[3].a), (x(4), b.ops[1].dst));
    // sepc has no bit 0.
    let b = block(SUPERVISOR, &[("csrrw", 0, 5, 0, 0x141), ("csrrs", 6, 0, 0, 0x141)]);
    assert_eq!(codes(&b), [Insn, And, Insn, Mov, Jmp]);
    assert_eq!(b.const_of(b.ops[1].b), Some(!1));
    // Not for user mode; machine mode's not for supervisor mode.
    assert_eq!(codes(&block(USER, &[("csrrs", 6, 0, 0, 0x141)])), [Insn, Helper, Jmp]);
    assert_eq!(codes(&block(SUPERVISOR, &[("csrrs", 6, 0, 0, 0x341)])), [Insn, Helper, Jmp]);
    // Disabling interrupts is in line, enabling is not.
    let mut word = code(&[("csrrci", 0, 0, 0, 0x100)]);
    word[2] |= 1; // the immediate's bit 1
    assert_eq!(codes(&block_at(SUPERVISOR, 0, &word, 64)), [Insn, And, Jmp]);
    let mut word = code(&[("csrrsi", 0, 0, 0, 0x100)]);
    word[2] |= 1;
    assert_eq!(codes(&block_at(SUPERVISOR, 0, &word, 64)), [Insn, Helper, Jmp]);
    // Floating point flags; the rounding mode is known.
    let b = block(RiscvMode { frm: 3, ..USER }, &[("csrrs", 10, 0, 0, 1), ("csrrs", 11, 0, 0, 2)]);
    assert_eq!(codes(&b), [Insn, FpFlagsGet, Mov, Insn, Mov, Jmp]);
    assert_eq!(b.const_of(b.ops[4].a), Some(3));
    assert!(codes(&block(USER, &[("csrrw", 0, 5, 0, 1)])).contains(&FpFlagsSet));
    let off = RiscvMode { fp: Unit::Off, ..USER };
    assert_eq!(codes(&block(off, &[("csrrs", 10, 0, 0, 1)])), [Insn, Trap]);
    // Leaving instructions.
    assert_eq!(codes(&block(SUPERVISOR, &[("sret", 0, 0, 0, 0)])), [Insn, Helper, Exit]);
    let ecall = block(SUPERVISOR, &[("ecall", 0, 0, 0, 0)]);
    assert_eq!((codes(&ecall), ecall.ops[1].aux), (vec![Insn, Trap], 9));
    let fence = block(SUPERVISOR, &[("sfence.vma", 0, 10, 11, 0)]);
    assert_eq!(codes(&fence), [Insn, Helper, Exit]);
    assert_eq!((fence.ops[1].b, fence.ops[1].c), (x(10), x(11)));
}

#[test]
fn cache_blocks_need_permission() {
    let zero = [("cbo.zero", 0, 10, 0, 0)];
    assert_eq!(codes(&block(USER, &zero)), [Code::Insn, Code::Trap]);
    let b = block(RiscvMode { cbo_zero: true, ..USER }, &zero);
    let stores: Vec<_> = find(&b, Code::Store).iter().map(|op| op.aux).collect();
    assert_eq!(stores, [0, 8, 16, 24, 32, 40, 48, 56]);
    assert_eq!(codes(&block(USER, &[("cbo.flush", 0, 10, 0, 0)])), [Code::Insn, Code::Trap]);
    let clean = RiscvMode { cbo_clean: true, ..USER };
    assert_eq!(codes(&block(clean, &[("cbo.flush", 0, 10, 0, 0)])), [Code::Insn, Code::Helper, Code::Jmp]);
    assert_eq!(codes(&block(clean, &[("cbo.inval", 0, 10, 0, 0)])), [Code::Insn, Code::Trap]);
}

/// Code of the guest is anything.
#[test]
fn random_bytes_lift_to_valid_blocks() {
    let mut rng = Rng::new(9);
    for i in 0..20_000 {
        let start = rng.below(2048) * 2;
        let len = rng.below(600) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        if i % 2 == 0 {
            // Bytes that look more like code: jumps and branches, mostly.
            for b in bytes.chunks_mut(4) {
                b[0] = rng.pick(&[0x63, 0x6f, 0x13, 0x01, 0x09, 0xe3, 0x53, 0x73]);
            }
        }
        bytes.truncate(4096 + 4 - start as usize);
        let mode = RiscvMode::of(Mode { key: rng.next() as u32, fetch: 0 });
        let max = rng.below(300);
        let mut block = Block::default();
        if lift(&request(mode, start, &bytes, max), &mut block).is_ok() {
            verify(&block, &slots::LAYOUT).unwrap_or_else(|e| panic!("{e}: {bytes:02x?} {block:#?}"));
            assert!(block.insns >= 1 && block.insns <= max.max(1));
            assert!(block.start + block.len <= 4096 + 2);
            assert!(block.start + block.len <= 4096 || block.insns == 1);
        } else {
            assert!(bytes.len() < 4);
        }
    }
}
