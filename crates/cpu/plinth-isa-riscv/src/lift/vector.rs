//! Vector instructions. The helper can do all of them; what is frequent is done in line where all elements of
//! whole registers are computed: `vl` is VLMAX, there is no mask, LMUL is 1 at least.
//!
//! The vector type is not part of the mode, since programs set it in every pass of a loop. Code is lifted for
//! the type that was set last in program order, and compares one slot before it relies on that.

use plinth_ir::{BlockBuilder, Code, Cond, LabelId, Lane, Op, Ty, Val, VecOp, flags};

use super::emit::Lifter;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::mode::Unit;
use crate::slots;
use crate::vector::sem::{FloatForm, Form, Integer, Memory, VectorSem};
use crate::vector::{Config, is_legal, requested};

/// `mstatus.VS`, all ones for Dirty.
const VS_DIRTY: u64 = 3 << 9;
/// `vstart` in the slot.
const VSTART: u64 = 0xff_0000;
/// `vtype.vill` in the slot.
const ILL: u64 = 1 << 63;
/// Temporaries of a block after which no more lanes are taken apart.
const MANY_TEMPS: u16 = 8192;

/// What the lifter knows of the vector unit.
#[derive(Default)]
pub(super) struct VectorState {
    /// The type that was set last in program order, with VLMAX elements: what code is lifted for.
    predicted: Option<Config>,
    /// What the slot holds for certain; `vstart` is 0.
    known: Option<Config>,
    /// `mstatus.VS` has been set to Dirty since the last label or change of `mstatus`.
    dirty: bool,
}

impl VectorState {
    /// Control comes from elsewhere, or a CSR was written.
    pub fn status_changed(&mut self) {
        self.known = None;
        self.dirty = false;
    }
}

/// What code in line relies on.
#[derive(Clone, Copy)]
enum Guard {
    /// This is in the slot.
    Config(Config),
    /// These bits of the slot are zero.
    Zero(u64),
}

/// The second operand of lanes.
#[derive(Clone, Copy)]
enum Second {
    /// Of registers from this one on.
    Vector(u8),
    /// The same for all.
    All(Val),
}

impl Lifter<'_> {
    /// A vector instruction.
    pub fn vector(&mut self, d: &Decoded, sem: VectorSem) -> bool {
        if self.mode.vector == Unit::Off {
            return self.illegal(d);
        }
        if self.vector_inline(d, sem) {
            return true;
        }
        self.vector_helper(d);
        if matches!(sem, VectorSem::SetVl) {
            self.vector.predicted = None;
            self.vector.known = None;
        }
        true
    }

    fn vector_helper(&mut self, d: &Decoded) {
        self.system_helper(HelperId::Vector, d);
        if d.row.is_some_and(|row| row.format.text.starts_with('d')) {
            self.forget(d.rd);
        }
        // It may have changed `vl`.
        if is_fault_only_first(d) {
            self.vector.known = None;
        }
        self.vector.dirty = true;
    }

    fn vector_dirty(&mut self) {
        if !self.vector.dirty {
            let (status, dirty) = (Val::slot(slots::MSTATUS), self.constant(VS_DIRTY));
            self.b.bin(Code::Or, Ty::I64, status, status, dirty);
            self.vector.dirty = true;
        }
    }

    /// Lifts the instruction in line, if it can be; says whether it was.
    fn vector_inline(&mut self, d: &Decoded, sem: VectorSem) -> bool {
        use VectorSem::*;
        let is_masked = d.bits >> 25 & 1 == 0;
        match sem {
            SetVl => return self.set_vl(d),
            _ if is_masked => return false,
            Load(Memory::Whole, _) | Store(Memory::Whole, _) if is_legal(sem, d.bits, Config::new(0, 0)) => {
                let registers = (d.bits >> 29) as u8 + 1;
                self.guarded(d, Guard::Zero(VSTART), |l| l.move_registers(d, sem, registers));
                return true;
            }
            MoveWhole(n) if is_legal(sem, d.bits, Config::new(0, 0)) => {
                self.guarded(d, Guard::Zero(VSTART | ILL), |l| {
                    for k in 0..n {
                        l.copy(d.rd + k, d.rs2 + k);
                    }
                });
                return true;
            }
            _ => {}
        }
        let Some(config) = self.vector.predicted.or_else(|| likely(sem)) else { return false };
        if !is_legal(sem, d.bits, config) || config.lmul() < 0 {
            return false;
        }
        self.vector.predicted = Some(config);
        if self.vector.known.is_some_and(|known| known != config) {
            return false;
        }
        let (sew, registers) = (config.sew(), 1 << config.lmul());
        match sem {
            Load(kind @ (Memory::Unit | Memory::FaultOnlyFirst), eew) | Store(kind @ Memory::Unit, eew) => {
                let emul = i32::from(eew) + 3 - sew + config.lmul();
                if emul < 0 || d.bits >> 29 != 0 {
                    return false;
                }
                let within_page = kind == Memory::FaultOnlyFirst;
                self.guarded_access(d, config, within_page.then_some(16 << emul), |l| {
                    l.move_registers(d, sem, 1 << emul);
                });
            }
            Integer(op, Form::Same) => {
                if matches!(op, self::Integer::Shl | self::Integer::Shr) {
                    return self.shift(d, op, config);
                }
                if !has_lanes(op) {
                    return false;
                }
                self.guarded(d, Guard::Config(config), |l| l.integer_lanes(d, op, sew, registers));
            }
            Move => {
                if d.bits >> 12 & 7 == 5 && sew != 6 {
                    return false;
                }
                self.guarded(d, Guard::Config(config), |l| l.splat_or_copy(d, sew, registers));
            }
            Compare(op) => return self.compare_bytes(d, op, config),
            Find | Count if config.vlmax() <= 64 => {
                self.guarded(d, Guard::Config(config), |l| l.mask_to_x(d, sem == Find, config.vlmax()));
            }
            FirstToX => {
                self.guarded(d, Guard::Config(config), |l| l.first_to_x(d, sew));
            }
            Float(code, form @ (FloatForm::Same | FloatForm::Reverse)) => {
                let reverse = form == FloatForm::Reverse;
                return self.float_lanes(d, config, |l, round, [a, b, _]| {
                    let (a, b) = if reverse { (b, a) } else { (a, b) };
                    let sub = if matches!(code, Code::FMin | Code::FMax) { 0 } else { round };
                    Op { sub, a, b, ..l.float_op(code, sew) }
                });
            }
            MulAdd { negate_product, negate_addend, addend_is_vd, wide: false } => {
                let signs = if negate_product { flags::NEG_PRODUCT } else { 0 }
                    | if negate_addend { flags::NEG_ADDEND } else { 0 };
                return self.float_lanes(d, config, |l, sub, [a, b, vd]| {
                    let (y, z) = if addend_is_vd { (a, vd) } else { (vd, a) };
                    Op { sub, flags: signs, a: b, b: y, c: z, ..l.float_op(Code::FMulAdd, sew) }
                });
            }
            _ => return false,
        }
        true
    }

    /// What `fast` emits if `guard` holds when the code runs, else the helper.
    fn guarded(&mut self, d: &Decoded, guard: Guard, fast: impl FnOnce(&mut Self)) {
        self.guarded_by(d, guard, None, fast);
    }

    /// The same for an access of memory; with `bytes`, it must not cross a page.
    fn guarded_access(
        &mut self,
        d: &Decoded,
        config: Config,
        bytes: Option<u64>,
        fast: impl FnOnce(&mut Self),
    ) {
        self.guarded_by(d, Guard::Config(config), bytes, fast);
    }

    fn guarded_by(&mut self, d: &Decoded, guard: Guard, bytes: Option<u64>, fast: impl FnOnce(&mut Self)) {
        let certain = self.vector.known.is_some_and(|known| match guard {
            Guard::Config(config) => known == config,
            Guard::Zero(bits) => known.0 & bits == 0,
        });
        if certain && bytes.is_none() && !self.vector_may_be_off() {
            self.vector_dirty();
            return fast(self);
        }
        let (slow, done) = (self.b.local_label(), self.b.local_label());
        let slot = Val::slot(slots::VCONFIG);
        self.go_if_off(slow);
        match guard {
            _ if certain => {}
            Guard::Config(config) => {
                let config = self.constant(config.0);
                self.b.br(Cond::Ne, Ty::I64, slot, config, slow);
            }
            Guard::Zero(bits) => {
                let (bits, zero) = (self.constant(bits), self.constant(0));
                let rest = self.bin(Code::And, Ty::I64, slot, bits);
                self.b.br(Cond::Ne, Ty::I64, rest, zero, slow);
            }
        }
        if let Some(bytes) = bytes {
            let (base, mask, last) = (self.x(d.rs1), self.constant(4095), self.constant(4096 - bytes));
            let offset = self.bin(Code::And, Ty::I64, base, mask);
            self.b.br(Cond::LtU, Ty::I64, last, offset, slow);
        }
        self.vector_dirty();
        fast(self);
        self.b.jmp(done);
        self.b.bind(slow);
        self.vector_helper(d);
        self.b.bind(done);
    }

    /// It takes a look at `mstatus` to tell that the unit is on.
    pub(super) fn vector_may_be_off(&self) -> bool {
        self.mode.vector == Unit::Check && !self.vector.dirty
    }

    /// Goes to `label` if the unit is off.
    pub(super) fn go_if_off(&mut self, label: LabelId) {
        if self.vector_may_be_off() {
            let (unit, zero) = (self.constant(VS_DIRTY), self.constant(0));
            let state = self.bin(Code::And, Ty::I64, Val::slot(slots::MSTATUS), unit);
            self.b.br(Cond::Eq, Ty::I64, state, zero, label);
        }
    }

    /// `vsetvli`, `vsetivli`, `vsetvl`.
    fn set_vl(&mut self, d: &Decoded) -> bool {
        let config = requested(d.imm as u64);
        if d.bits >> 30 == 2 || config.is_ill() {
            return false;
        }
        if self.vector_may_be_off() {
            let (slow, done) = (self.b.local_label(), self.b.local_label());
            self.go_if_off(slow);
            self.set_config(d, config);
            self.b.jmp(done);
            self.b.bind(slow);
            self.vector_helper(d);
            self.b.bind(done);
        } else {
            self.set_config(d, config);
        }
        true
    }

    fn set_config(&mut self, d: &Decoded, config: Config) {
        let (max, slot) = (config.vlmax(), Val::slot(slots::VCONFIG));
        let fixed = match d.bits >> 30 {
            3 => Some(u64::from(d.zimm()).min(max)),
            _ if d.rs1 == 0 && d.rd != 0 => Some(max),
            _ => None,
        };
        self.vector_dirty();
        if let Some(vl) = fixed {
            let known = config.with_vl(vl);
            let (value, vl) = (self.constant(known.0), self.constant(vl));
            self.b.un(Code::Mov, Ty::I64, slot, value);
            self.set_rd(d, vl);
            self.vector.known = Some(known);
        } else {
            let (max, by, vtype) = (self.constant(max), self.constant(8), self.constant(config.vtype()));
            let avl = if d.rs1 == 0 {
                // The old `vl`.
                let mask = self.constant(0xff);
                let shifted = self.bin(Code::Shr, Ty::I64, slot, by);
                self.bin(Code::And, Ty::I64, shifted, mask)
            } else {
                self.x(d.rs1)
            };
            let vl = self.bin(Code::MinU, Ty::I64, avl, max);
            let high = self.bin(Code::Shl, Ty::I64, vl, by);
            self.b.bin(Code::Or, Ty::I64, slot, high, vtype);
            self.set_rd(d, vl);
            self.vector.known = None;
        }
        self.vector.predicted = Some(config.with_vl(config.vlmax()));
    }

    fn set_rd(&mut self, d: &Decoded, value: Val) {
        if d.rd != 0 {
            let dst = self.dst(d.rd);
            self.b.un(Code::Mov, Ty::I64, dst, value);
        }
    }

    /// Loads or stores `n` registers.
    fn move_registers(&mut self, d: &Decoded, sem: VectorSem, n: u8) {
        let base = self.x(d.rs1);
        for k in 0..n {
            let (register, disp) = (Val::slot(slots::v(d.rd + k)), 16 * i32::from(k));
            match sem {
                VectorSem::Store(..) => self.b.store(Ty::V128, 0, base, disp, register),
                _ => self.b.load(Ty::V128, 0, register, base, disp),
            }
        }
    }

    fn lanes(&mut self, op: VecOp, sew: i32, dst: Val, a: Val, b: Val) {
        let lane = lane_of(sew) as u8;
        self.b.push(Op { sub: op as u8, flags: lane, dst, a, b, ..BlockBuilder::op(Code::VBin, Ty::V128) });
    }

    fn copy(&mut self, to: u8, from: u8) {
        let from = Val::slot(slots::v(from));
        self.lanes(VecOp::Or, 6, Val::slot(slots::v(to)), from, from);
    }

    fn splat(&mut self, sew: i32, a: Val) -> Val {
        let dst = self.b.temp();
        self.b.push(Op { flags: lane_of(sew) as u8, dst, a, ..BlockBuilder::op(Code::VSplat, Ty::V128) });
        dst
    }

    /// The operand called b: a vector, an integer register or an immediate, in all lanes.
    fn second(&mut self, d: &Decoded, sew: i32) -> Second {
        match d.bits >> 12 & 7 {
            0..=2 => Second::Vector(d.rs1),
            3 => {
                let imm = self.imm(d);
                Second::All(self.splat(sew, imm))
            }
            _ => {
                let x = self.x(d.rs1);
                Second::All(self.splat(sew, x))
            }
        }
    }

    fn integer_lanes(&mut self, d: &Decoded, op: Integer, sew: i32, registers: u8) {
        let second = self.second(d, sew);
        for k in 0..registers {
            let (vd, a) = (Val::slot(slots::v(d.rd + k)), Val::slot(slots::v(d.rs2 + k)));
            let b = second.of(k);
            let product = |l: &mut Self, x, y| {
                let t = l.b.temp();
                l.lanes(VecOp::Mul, sew, t, x, y);
                t
            };
            match op {
                Integer::SubReverse => self.lanes(VecOp::Sub, sew, vd, b, a),
                Integer::Accumulate => {
                    let t = product(self, a, b);
                    self.lanes(VecOp::Add, sew, vd, vd, t);
                }
                Integer::Decumulate => {
                    let t = product(self, a, b);
                    self.lanes(VecOp::Sub, sew, vd, vd, t);
                }
                Integer::MulAdd => {
                    let t = product(self, vd, b);
                    self.lanes(VecOp::Add, sew, vd, a, t);
                }
                Integer::MulSub => {
                    let t = product(self, vd, b);
                    self.lanes(VecOp::Sub, sew, vd, a, t);
                }
                _ => {
                    if let Some(op) = lane_op(op) {
                        self.lanes(op, sew, vd, a, b);
                    }
                }
            }
        }
    }

    /// `vsll` and `vsrl` by an immediate, in words of 64 bits.
    fn shift(&mut self, d: &Decoded, op: Integer, config: Config) -> bool {
        let bits = 1u32 << config.sew();
        if d.bits >> 12 & 7 != 3 {
            return false;
        }
        let by = d.imm as u32 & (bits - 1);
        let all = u64::MAX >> (64 - bits);
        let (code, kept) =
            if op == Integer::Shl { (Code::Shl, all >> by) } else { (Code::Shr, all >> by << by) };
        // The bits of each lane that stay in it.
        let kept = (0..64 / bits).fold(0, |mask, lane| mask | kept << (lane * bits));
        self.guarded(d, Guard::Config(config), |l| {
            let (kept, by) = (l.constant(kept), l.constant(by.into()));
            for word in 0..2u16 << config.lmul() {
                let (dst, a) = (Val::slot(slots::v(d.rd) + word), Val::slot(slots::v(d.rs2) + word));
                let t = l.bin(Code::And, Ty::I64, a, kept);
                l.b.bin(code, Ty::I64, dst, t, by);
            }
        });
        true
    }

    fn splat_or_copy(&mut self, d: &Decoded, sew: i32, registers: u8) {
        if d.bits >> 12 & 7 == 5 {
            let all = self.splat(sew, Val::slot(slots::f(d.rs1)));
            for k in 0..registers {
                self.lanes(VecOp::Or, sew, Val::slot(slots::v(d.rd + k)), all, all);
            }
            return;
        }
        let second = self.second(d, sew);
        for k in 0..registers {
            let b = second.of(k);
            self.lanes(VecOp::Or, sew, Val::slot(slots::v(d.rd + k)), b, b);
        }
    }

    /// Comparisons of bytes, for which a product gathers the results.
    fn compare_bytes(&mut self, d: &Decoded, op: crate::vector::sem::Compare, config: Config) -> bool {
        use crate::vector::sem::Compare;
        const LOW_BITS: u64 = 0x0101_0101_0101_0101;
        const GATHER: u64 = 0x0102_0408_1020_4080;
        if config.sew() != 3 || !matches!(op, Compare::Eq | Compare::Ne) {
            return false;
        }
        self.guarded(d, Guard::Config(config), |l| {
            let second = l.second(d, 3);
            let mut words = [None; 2];
            for k in 0..1u8 << config.lmul() {
                let equal = l.b.temp();
                l.lanes(VecOp::CmpEq, 3, equal, Val::slot(slots::v(d.rs2 + k)), second.of(k));
                for half in 0..2u8 {
                    let t = l.b.temp();
                    let extract = BlockBuilder::op(Code::VExtract, Ty::V128);
                    let lane = Lane::I64 as u8;
                    l.b.push(Op { flags: lane, dst: t, a: equal, aux: half.into(), ..extract });
                    let (low_bits, gather, top) = (l.constant(LOW_BITS), l.constant(GATHER), l.constant(56));
                    let t = l.bin(Code::And, Ty::I64, t, low_bits);
                    let t = l.bin(Code::Mul, Ty::I64, t, gather);
                    let t = l.bin(Code::Shr, Ty::I64, t, top);
                    let (word, at) = (usize::from(k / 4), u64::from(k % 4 * 16 + half * 8));
                    words[word] = Some(match words[word] {
                        None => t,
                        Some(sum) => {
                            let at = l.constant(at);
                            let t = l.bin(Code::Shl, Ty::I64, t, at);
                            l.bin(Code::Or, Ty::I64, sum, t)
                        }
                    });
                }
            }
            let defined = config.vlmax().min(64);
            let mask = u64::MAX >> (64 - defined);
            for (word, value) in words.into_iter().enumerate() {
                let (Some(value), dst) = (value, Val::slot(slots::v(d.rd) + word as u16)) else { continue };
                let mask = l.constant(mask);
                let value = if op == Compare::Ne { l.bin(Code::Xor, Ty::I64, value, mask) } else { value };
                let rest = l.bin(Code::AndNot, Ty::I64, dst, mask);
                l.b.bin(Code::Or, Ty::I64, dst, rest, value);
            }
        });
        true
    }

    /// `vfirst.m` or `vcpop.m` of the first `vl` bits, 64 at most.
    fn mask_to_x(&mut self, d: &Decoded, first: bool, vl: u64) {
        let mask = self.constant(u64::MAX >> (64 - vl));
        let bits = self.bin(Code::And, Ty::I64, Val::slot(slots::v(d.rs2)), mask);
        let value = if first {
            let (index, none) = (self.un(Code::Ctz, Ty::I64, bits), self.constant(u64::MAX));
            let t = self.b.temp();
            let select = BlockBuilder::op(Code::Select, Ty::I64);
            self.b.push(Op { dst: t, a: index, b: none, c: bits, ..select });
            t
        } else {
            self.un(Code::Popcnt, Ty::I64, bits)
        };
        self.set_rd(d, value);
    }

    fn first_to_x(&mut self, d: &Decoded, sew: i32) {
        let code = match sew {
            3 => Code::Sext8,
            4 => Code::Sext16,
            5 => Code::Sext32,
            _ => Code::Mov,
        };
        let value = self.un(code, Ty::I64, Val::slot(slots::v(d.rs2)));
        self.set_rd(d, value);
    }

    fn float_op(&self, code: Code, sew: i32) -> Op {
        BlockBuilder::op(code, if sew == 5 { Ty::F32 } else { Ty::F64 })
    }

    /// An operation on lanes of 32 or 64 bits, made by `op` of the rounding mode, a, b and vd.
    fn float_lanes(&mut self, d: &Decoded, config: Config, op: impl Fn(&Self, u8, [Val; 3]) -> Op) -> bool {
        let sew = config.sew();
        let round = plinth_ir::Round::from_u8(self.mode.frm as u8);
        let usable = self.mode.fp == Unit::On && self.b.block.temps < MANY_TEMPS;
        let (true, Some(round), 5 | 6) = (usable, round, sew) else { return false };
        self.guarded(d, Guard::Config(config), |l| {
            l.use_float(d, true);
            let scalar =
                (d.bits >> 12 & 7 == 5).then(|| l.f(d.rs1, if sew == 5 { Ty::F32 } else { Ty::F64 }));
            for i in 0..(config.vlmax() as u16) {
                let operands = [Some(d.rs2), scalar.is_none().then_some(d.rs1), Some(d.rd)];
                let values = operands.map(|r| r.map_or(scalar.unwrap_or(Val::NONE), |r| l.lane(r, i, sew)));
                let mut made = op(l, round as u8, values);
                if sew == 6 {
                    made.dst = Val::slot(slots::v(d.rd) + i);
                    l.b.push(made);
                    continue;
                }
                made.dst = l.b.temp();
                l.b.push(made);
                let vd = Val::slot(slots::v(d.rd) + i / 4 * 2);
                let insert = BlockBuilder::op(Code::VInsert, Ty::V128);
                let (lane, aux) = (Lane::I32 as u8, i32::from(i % 4));
                l.b.push(Op { flags: lane, dst: vd, a: vd, b: made.dst, aux, ..insert });
            }
        });
        true
    }

    /// Lane `i` of registers from `r` on.
    fn lane(&mut self, r: u8, i: u16, sew: i32) -> Val {
        if sew == 6 {
            return Val::slot(slots::v(r) + i);
        }
        let dst = self.b.temp();
        let a = Val::slot(slots::v(r) + i / 4 * 2);
        let extract = BlockBuilder::op(Code::VExtract, Ty::V128);
        self.b.push(Op { flags: Lane::I32 as u8, dst, a, aux: i32::from(i % 4), ..extract });
        dst
    }
}

impl Second {
    fn of(self, k: u8) -> Val {
        match self {
            Second::Vector(r) => Val::slot(slots::v(r + k)),
            Second::All(value) => value,
        }
    }
}

fn is_fault_only_first(d: &Decoded) -> bool {
    use crate::table::Sem;
    d.row.is_some_and(|row| matches!(row.sem, Sem::Vector(VectorSem::Load(Memory::FaultOnlyFirst, _))))
}

/// The type that code which sets none most likely has.
fn likely(sem: VectorSem) -> Option<Config> {
    let (VectorSem::Load(_, eew) | VectorSem::Store(_, eew)) = sem else { return None };
    let agnostic = requested(0xc0 | u64::from(eew) << 3);
    Some(agnostic.with_vl(agnostic.vlmax()))
}

const fn lane_of(sew: i32) -> Lane {
    match sew {
        3 => Lane::I8,
        4 => Lane::I16,
        5 => Lane::I32,
        _ => Lane::I64,
    }
}

/// The operation on lanes that `op` is.
const fn lane_op(op: Integer) -> Option<VecOp> {
    Some(match op {
        Integer::Add => VecOp::Add,
        Integer::Sub => VecOp::Sub,
        Integer::And => VecOp::And,
        Integer::Or => VecOp::Or,
        Integer::Xor => VecOp::Xor,
        Integer::Mul => VecOp::Mul,
        Integer::MinU => VecOp::MinU,
        Integer::Min => VecOp::MinS,
        Integer::MaxU => VecOp::MaxU,
        Integer::Max => VecOp::MaxS,
        _ => return None,
    })
}

/// True if lanes can do `op`.
const fn has_lanes(op: Integer) -> bool {
    let made_of_two = matches!(
        op,
        Integer::SubReverse | Integer::Accumulate | Integer::Decumulate | Integer::MulAdd | Integer::MulSub
    );
    made_of_two || lane_op(op).is_some()
}
