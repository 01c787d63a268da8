//! Vector instructions (V 1.0 and Zvfh): VLEN is 128, ELEN 64.
//!
//! The helper [`execute`] runs any of them on the hart's state, element by element, and is what all others
//! are measured by. Elements that an agnostic policy leaves open keep their values.

mod arithmetic;
mod check;
mod config;
mod float;
mod integer;
mod mask;
mod memory;
mod permute;
pub mod sem;

use plinth_ir::{Cpu, Exception, HelperResult, Round};

pub use self::check::is_legal;
pub use self::config::{Config, VLEN, VLENB, VTYPE_MASK, requested};
use self::integer::low;
use self::sem::VectorSem;
use crate::decode::{Decoded, Decoder};
use crate::privileged::state::{fp_on, set_bits, status, vector_on};
use crate::privileged::trap::illegal;
use crate::slots::{self, get, set};
use crate::table::Sem;

/// Why an instruction did not complete.
enum Stop {
    Illegal,
    /// At this element.
    Fault(u64, Exception),
}

/// An instruction in execution.
struct Unit<'u, 'c> {
    cpu: &'u mut Cpu<'c>,
    d: Decoded,
    config: Config,
}

/// The helper `vector`: all of a vector instruction, given its bits.
pub fn execute(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    let d = Decoder::new().decode(insn as u32);
    let Some(Sem::Vector(sem)) = d.row.map(|row| row.sem) else { return illegal(insn) };
    let config = Config::of(cpu.slots);
    if !vector_on(cpu.slots) || !check::is_legal_again(sem, d.bits, config) {
        return illegal(insn);
    }
    let mut unit = Unit { cpu, d, config };
    let result = unit.run(sem);
    let s = &mut *unit.cpu.slots;
    let (vstart, result) = match result {
        Ok(()) => (0, HelperResult::Next(0)),
        Err(Stop::Illegal) => return illegal(insn),
        Err(Stop::Fault(element, exception)) => (element, HelperResult::Raise(exception)),
    };
    Config::of(s).with_vstart(vstart).put(s);
    set_bits(s, slots::MSTATUS, status::VS);
    result
}

impl Unit<'_, '_> {
    fn run(&mut self, sem: VectorSem) -> Result<(), Stop> {
        use VectorSem::*;
        if self.is_float() {
            if !fp_on(self.cpu.slots) || self.round().is_none() {
                return Err(Stop::Illegal);
            }
            set_bits(self.cpu.slots, slots::MSTATUS, status::FS);
        }
        match sem {
            SetVl => self.set_vl(),
            Load(kind, eew) => return self.load(kind, u32::from(eew)),
            Store(kind, eew) => return self.store(kind, u32::from(eew)),
            Integer(op, form) => self.integer(op, form),
            Carry { subtract } => self.carry(subtract),
            CarryOut { subtract } => self.carry_out(subtract),
            Compare(op) => self.compare(op),
            Reduce(op, sign) => self.reduce(op, sign),
            Extend(by, sign) => self.extend(by, sign),
            Mask(op) => self.mask_logic(op),
            Count | Find => self.count(sem == Find),
            Prefix(which) => self.prefix(which),
            Iota => self.iota(),
            Index => self.index(),
            Merge | Move => self.merge(),
            Slide(slide) => self.slide(slide),
            Gather => self.gather(),
            Gather16 => self.gather_16(),
            Compress => self.compress(),
            FirstToX => self.first_to_x(),
            FirstToF => self.first_to_f(),
            FirstFrom => self.first_from(),
            MoveWhole(n) => self.move_whole(n),
            Float(code, form) => self.float(code, form),
            MulAdd { negate_product, negate_addend, addend_is_vd, wide } => {
                self.mul_add(negate_product, negate_addend, addend_is_vd, wide);
            }
            SignInject(op) => self.sign_inject(op),
            FloatCompare { cond, swap, not } => self.float_compare(cond, swap, not),
            FloatReduce(code, wide) => self.float_reduce(code, wide),
            Convert(to, from, form, how) => self.convert(to, from, form, how),
            SquareRoot => self.square_root(),
            Estimate { square_root } => self.estimate(square_root),
            Classify => self.classify(),
        }
        Ok(())
    }

    /// `funct3`.
    const fn category(&self) -> u32 {
        self.d.bits >> 12 & 7
    }

    /// OPFVV or OPFVF of opcode OP-V.
    const fn is_float(&self) -> bool {
        self.d.bits & 0x7f == 0x57 && matches!(self.category(), 1 | 5)
    }

    /// `frm`; `None` if it is reserved.
    fn round(&self) -> Option<Round> {
        Round::from_u8(get(self.cpu.slots, slots::FRM) as u8)
    }

    const fn vd(&self) -> u32 {
        self.d.bits >> 7 & 31
    }

    const fn vs1(&self) -> u32 {
        self.d.bits >> 15 & 31
    }

    const fn vs2(&self) -> u32 {
        self.d.bits >> 20 & 31
    }

    /// SEW in bits.
    const fn bits(&self) -> u32 {
        1 << self.config.sew()
    }

    /// SEW as the binary logarithm of bytes.
    const fn width(&self) -> u32 {
        self.config.sew() as u32 - 3
    }

    /// Indices from `vstart` to `vl`, which may be none.
    const fn elements(&self) -> std::ops::Range<u64> {
        self.config.vstart()..self.config.vl()
    }

    const fn is_masked(&self) -> bool {
        self.d.bits >> 25 & 1 == 0
    }

    /// Element `i` is active: not masked off.
    fn is_active(&self, i: u64) -> bool {
        !self.is_masked() || self.bit(0, i)
    }

    /// Element `i`, of 1 << `width` bytes, of the group from register `reg` on.
    fn get(&self, reg: u32, i: u64, width: u32) -> u64 {
        let at = (u64::from(reg) * VLENB + (i << width)) as usize;
        let word = self.cpu.slots[usize::from(slots::V0) + at / 8];
        low(word >> (at % 8 * 8), 8 << width)
    }

    fn set(&mut self, reg: u32, i: u64, width: u32, value: u64) {
        let at = (u64::from(reg) * VLENB + (i << width)) as usize;
        let word = &mut self.cpu.slots[usize::from(slots::V0) + at / 8];
        let mask = (u64::MAX >> (64 - (8 << width))) << (at % 8 * 8);
        *word = *word & !mask | value << (at % 8 * 8) & mask;
    }

    /// Bit `i` of mask register `reg`.
    fn bit(&self, reg: u32, i: u64) -> bool {
        let word = self.cpu.slots[usize::from(slots::V0) + 2 * reg as usize + (i / 64) as usize];
        word >> (i % 64) & 1 != 0
    }

    fn set_bit(&mut self, reg: u32, i: u64, value: bool) {
        let word = &mut self.cpu.slots[usize::from(slots::V0) + 2 * reg as usize + (i / 64) as usize];
        *word = *word & !(1 << (i % 64)) | u64::from(value) << (i % 64);
    }

    /// The scalar operand, unless the operand is a vector: an immediate, or a register. Not cut to any width;
    /// a float that is not boxed as one of SEW is the default NaN.
    fn scalar(&self) -> Option<u64> {
        match self.category() {
            3 => Some(i64::from(self.d.imm) as u64),
            4 | 6 => Some(self.x(self.vs1())),
            5 => Some(self.unbox(get(self.cpu.slots, slots::f(self.vs1() as u8)))),
            _ => None,
        }
    }

    fn unbox(&self, value: u64) -> u64 {
        let is_boxed = self.bits() == 64 || value >> self.bits() == u64::MAX >> self.bits();
        if is_boxed { value } else { float::default_nan(self.config.sew()) }
    }

    fn x(&self, r: u32) -> u64 {
        if r == 0 { 0 } else { get(self.cpu.slots, slots::x(r as u8)) }
    }

    fn set_x(&mut self, value: u64) {
        let rd = self.vd() as u8;
        if rd != 0 {
            set(self.cpu.slots, slots::x(rd), value);
        }
    }

    /// `vsetvli`, `vsetivli`, `vsetvl` (6).
    fn set_vl(&mut self) {
        let bits = self.d.bits;
        let (rd, rs1) = (self.vd(), self.vs1());
        let (vtype, avl) = match bits >> 30 {
            3 => (u64::from(bits >> 20 & 0x3ff), Some(u64::from(rs1))),
            2 => (self.x(self.vs2()), None),
            _ => (u64::from(bits >> 20 & 0x7ff), None),
        };
        let avl = avl.unwrap_or_else(|| match (rd, rs1) {
            (0, 0) => self.config.vl(),
            (_, 0) => u64::MAX,
            _ => self.x(rs1),
        });
        let config = requested(vtype);
        let vl = if config.is_ill() { 0 } else { avl.min(config.vlmax()) };
        config.with_vl(vl).put(self.cpu.slots);
        self.set_x(vl);
    }
}
