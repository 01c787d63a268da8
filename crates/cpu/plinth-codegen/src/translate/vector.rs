//! Vectors of 128 bits.

use plinth_ir::{Block, Code, Lane, Op, Val, VecOp, flags};

use super::Translator;
use super::cold::{Cold, ColdKind};
use super::int_special::movq_to_xmm;
use super::state::{Loc, Opnd, spill_cell};
use super::xmm::{Kind, View};
use crate::asm::{P66, RCX, Reg, Rm, Size, Vex, frame, mem_index, vex};
use crate::frame::slot_offset;

/// Opcode maps 0F, 0F38, 0F3A.
const M1: u8 = 1;
const M2: u8 = 2;
const M3: u8 = 3;

const fn v(map: u8, op: u8) -> Vex {
    vex(P66, map, false, op)
}

const VPAND: Vex = v(M1, 0xdb);
const VPOR: Vex = v(M1, 0xeb);
const VPXOR: Vex = v(M1, 0xef);
const VPADDQ: Vex = v(M1, 0xd4);
const VPMULLW: Vex = v(M1, 0xd5);
const VPMULUDQ: Vex = v(M1, 0xf4);
const VPCMPEQD: Vex = v(M1, 0x76);
const VPCMPGTQ: Vex = v(M2, 0x37);
const VBLENDVPD: Vex = v(M3, 0x4b);

/// Shifts of lanes by an immediate: opcode and its extension.
const SRL_W: (Vex, Reg) = (v(M1, 0x71), 2);
const SLL_W: (Vex, Reg) = (v(M1, 0x71), 6);
const SRL_Q: (Vex, Reg) = (v(M1, 0x73), 2);
const SLL_Q: (Vex, Reg) = (v(M1, 0x73), 6);

/// The instruction for an operation, where there is one.
fn instruction(op: VecOp, lane: Lane) -> Option<Vex> {
    let i = lane as usize;
    let pick = |table: [Option<Vex>; 4]| table[i];
    let add = |base: u8| Some(v(M1, base + lane as u8));
    match op {
        VecOp::And => Some(VPAND),
        VecOp::Or => Some(VPOR),
        VecOp::Xor => Some(VPXOR),
        VecOp::AndNot => Some(v(M1, 0xdf)),
        VecOp::Add if lane == Lane::I64 => Some(VPADDQ),
        VecOp::Add => add(0xfc),
        VecOp::Sub => add(0xf8),
        VecOp::Mul => pick([None, Some(VPMULLW), Some(v(M2, 0x40)), None]),
        VecOp::CmpEq if lane == Lane::I64 => Some(v(M2, 0x29)),
        VecOp::CmpEq => add(0x74),
        VecOp::CmpGtS if lane == Lane::I64 => Some(VPCMPGTQ),
        VecOp::CmpGtS => add(0x64),
        VecOp::MinS => pick([Some(v(M2, 0x38)), Some(v(M1, 0xea)), Some(v(M2, 0x39)), None]),
        VecOp::MinU => pick([Some(v(M1, 0xda)), Some(v(M2, 0x3a)), Some(v(M2, 0x3b)), None]),
        VecOp::MaxS => pick([Some(v(M2, 0x3c)), Some(v(M1, 0xee)), Some(v(M2, 0x3d)), None]),
        VecOp::MaxU => pick([Some(v(M1, 0xde)), Some(v(M2, 0x3e)), Some(v(M2, 0x3f)), None]),
    }
}

impl Translator {
    /// A vector operation, or a load or store of a vector.
    pub(super) fn vector(&mut self, op: &Op, block: &Block) {
        match op.code {
            Code::Load => self.vector_load(op, block),
            Code::Store => self.vector_store(op, block),
            Code::VBin => self.vector_binary(op),
            _ => {
                let Some(&lane) = Lane::ALL.get(usize::from(op.flags)) else {
                    return self.fail("an unknown lane");
                };
                match op.code {
                    Code::VSplat => self.vector_splat(op, lane, block),
                    Code::VExtract => self.vector_extract(op, lane),
                    _ => self.vector_insert(op, lane, block),
                }
            }
        }
    }

    fn vector_src(&mut self, val: Val) -> Reg {
        if let Some(slot) = val.as_slot() {
            if let Some((r, _)) = self.xmm.find(slot, |view| view == View::Vector) {
                return r;
            }
            let r = self.xmm();
            let from = self.vector_mem(slot);
            self.asm.movups_load(r, from);
            self.xmm.set_view(r, slot, View::Vector);
            return r;
        }
        match self.state.loc(val) {
            Some(Loc::Xmm(r, Kind::V128)) => r,
            Some(Loc::SpillPair(cell)) => {
                let r = self.xmm();
                self.asm.movups_load(r, spill_cell(cell));
                r
            }
            _ => {
                self.fail("an operand that is no vector");
                self.xmm()
            }
        }
    }

    /// Memory of the vector in `slot` and the next one.
    fn vector_mem(&mut self, slot: u16) -> crate::asm::Mem {
        if self.state.pin(slot + 1).is_some() {
            self.fail("a vector in a pinned slot");
        }
        let _ = self.slot_opnd(slot + 1);
        self.slot_mem(slot)
    }

    fn vector_commit(&mut self, dst: Val, r: Reg) {
        let Some(slot) = dst.as_slot() else { return self.own_xmm(dst, r, Kind::V128) };
        let to = self.vector_mem(slot);
        self.before_write(slot, 0);
        self.before_write(slot + 1, 0);
        self.asm.movups_store(to, r);
        self.slot_written(slot);
        self.slot_written(slot + 1);
        self.xmm.set_view(r, slot, View::Vector);
    }

    fn vector_binary(&mut self, op: &Op) {
        let (Some(kind), Some(&lane)) = (VecOp::from_u8(op.sub), Lane::ALL.get(usize::from(op.flags))) else {
            return self.fail("an unknown vector operation");
        };
        let a = self.vector_src(op.a);
        let b = self.vector_src(op.b);
        self.state.done(op.a);
        self.state.done(op.b);
        let d = self.xmm();
        match (instruction(kind, lane), kind) {
            // The instruction negates its first operand, the IR its second.
            (Some(i), VecOp::AndNot) => self.asm.vex(i, d, b, Rm::R(a)),
            (Some(i), _) => self.asm.vex(i, d, a, Rm::R(b)),
            (None, VecOp::Mul) if lane == Lane::I8 => self.multiply_bytes(d, a, b),
            (None, VecOp::Mul) => self.multiply_quads(d, a, b),
            (None, _) => {
                let signed = matches!(kind, VecOp::MinS | VecOp::MaxS);
                let min = matches!(kind, VecOp::MinS | VecOp::MinU);
                self.min_max_quads(d, a, b, signed, min);
            }
        }
        self.vector_commit(op.dst, d);
    }

    fn shift_lanes(&mut self, (i, extension): (Vex, Reg), to: Reg, from: Reg, by: u8) {
        self.asm.vex_imm(i, extension, to, Rm::R(from), by);
    }

    /// Products of even and of odd bytes as words.
    fn multiply_bytes(&mut self, d: Reg, a: Reg, b: Reg) {
        self.shift_lanes(SRL_W, 0, a, 8);
        self.shift_lanes(SRL_W, 1, b, 8);
        self.asm.vex(VPMULLW, 0, 0, Rm::R(1));
        self.shift_lanes(SLL_W, 0, 0, 8);
        self.asm.vex(VPMULLW, d, a, Rm::R(b));
        self.shift_lanes(SLL_W, d, d, 8);
        self.shift_lanes(SRL_W, d, d, 8);
        self.asm.vex(VPOR, d, d, Rm::R(0));
    }

    /// Low halves' product, plus the cross products shifted up.
    fn multiply_quads(&mut self, d: Reg, a: Reg, b: Reg) {
        self.shift_lanes(SRL_Q, 0, a, 32);
        self.asm.vex(VPMULUDQ, 0, 0, Rm::R(b));
        self.shift_lanes(SRL_Q, 1, b, 32);
        self.asm.vex(VPMULUDQ, 1, 1, Rm::R(a));
        self.asm.vex(VPADDQ, 0, 0, Rm::R(1));
        self.shift_lanes(SLL_Q, 0, 0, 32);
        self.asm.vex(VPMULUDQ, d, a, Rm::R(b));
        self.asm.vex(VPADDQ, d, d, Rm::R(0));
    }

    fn min_max_quads(&mut self, d: Reg, a: Reg, b: Reg, signed: bool, min: bool) {
        if signed {
            self.asm.vex(VPCMPGTQ, 0, a, Rm::R(b));
        } else {
            // With the sign bits flipped, a signed comparison orders unsigned numbers.
            self.asm.vex(VPCMPEQD, 1, 1, Rm::R(1));
            self.shift_lanes(SLL_Q, 1, 1, 63);
            self.asm.vex(VPXOR, 0, a, Rm::R(1));
            self.asm.vex(VPXOR, 1, b, Rm::R(1));
            self.asm.vex(VPCMPGTQ, 0, 0, Rm::R(1));
        }
        // Takes the second where a > b.
        let (first, second) = if min { (a, b) } else { (b, a) };
        self.asm.vex_imm(VBLENDVPD, d, first, Rm::R(second), 0);
    }

    fn vector_splat(&mut self, op: &Op, lane: Lane, block: &Block) {
        let a = self.take1(op, block);
        let g = self.in_reg(a, 0, true);
        self.asm.vex(movq_to_xmm(true), 0, 0, Rm::R(g));
        let d = self.xmm();
        let opcode = [0x78, 0x79, 0x58, 0x59][lane as usize];
        self.asm.vex(v(M2, opcode), d, 0, Rm::R(0));
        self.vector_commit(op.dst, d);
    }

    fn vector_extract(&mut self, op: &Op, lane: Lane) {
        let index = op.aux as u32 % lane.count();
        if let Some(slot) = op.a.as_slot() {
            // Memory is current, and wider stores forward to narrower loads.
            let _ = self.vector_mem(slot);
            let d = self.dst_reg(op.dst, 0);
            let from = frame(slot_offset(slot) + (index * lane.bits() / 8) as i32);
            let size = [Size::B1, Size::B2, Size::B4, Size::B8][lane as usize];
            self.asm.load_extend(size, false, d, Rm::M(from));
            return self.commit(op.dst, d);
        }
        let a = self.vector_src(op.a);
        self.state.done(op.a);
        let d = self.dst_reg(op.dst, 0);
        let (opcode, w) = [(0x14, false), (0x15, false), (0x16, false), (0x16, true)][lane as usize];
        self.asm.vex_imm(vex(P66, M3, w, opcode), a, 0, Rm::R(d), index as u8);
        self.commit(op.dst, d);
    }

    fn vector_insert(&mut self, op: &Op, lane: Lane, block: &Block) {
        let index = op.aux as u32 % lane.count();
        let b = self.src(op.b, block);
        let g = match b {
            Opnd::Reg(r) => r,
            _ => self.in_reg(b, 0, true),
        };
        let a = self.vector_src(op.a);
        self.state.done(op.a);
        self.state.done(op.b);
        let d = self.xmm();
        let (map, opcode, w) =
            [(M3, 0x20, false), (M1, 0xc4, false), (M3, 0x22, false), (M3, 0x22, true)][lane as usize];
        self.asm.vex_imm(vex(P66, map, w, opcode), d, a, Rm::R(g), index as u8);
        self.vector_commit(op.dst, d);
    }

    fn vector_load(&mut self, op: &Op, block: &Block) {
        let va = self.address(op, block);
        let at = self.check(va, 16, false, op.flags & flags::ALIGNED != 0);
        self.addend();
        let x = self.xmm();
        self.asm.movups_load(x, mem_index(RCX, va, 0, 0));
        self.vector_cold(op, at, va, x, ColdKind::Load);
        self.vector_commit(op.dst, x);
    }

    fn vector_store(&mut self, op: &Op, block: &Block) {
        let va = self.address(op, block);
        let x = self.vector_src(op.b);
        self.state.done(op.b);
        let at = self.check(va, 16, true, op.flags & flags::ALIGNED != 0);
        self.addend();
        self.asm.movups_store(mem_index(RCX, va, 0, 0), x);
        self.touched = true;
        self.vector_cold(op, at, va, x, ColdKind::Store);
    }

    /// The stub passes the value by [`crate::frame::Frame::vector`].
    fn vector_cold(&mut self, op: &Op, at: [u32; 2], va: Reg, x: Reg, kind: ColdKind) {
        self.cold.push(Cold {
            at,
            resume: self.asm.pos() as u32,
            va,
            desc: self.describe(op),
            x: [x, x, 0, 0],
            reloads: self.xmm.snapshot(),
            ..Cold::new(kind)
        });
    }
}
