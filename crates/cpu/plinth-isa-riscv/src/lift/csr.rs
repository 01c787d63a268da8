//! CSR instructions. Most go to the privileged architecture's helper; CSRs that are plain storage, and the
//! floating point flags, are accessed in line.

use plinth_ir::{BlockBuilder, Code, Op, Ty, Val};

use super::emit::Lifter;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::mode::Unit;
use crate::mode::privilege::{MACHINE, SUPERVISOR};
use crate::slots;
use crate::table::CsrOp;
use crate::vector::{VLENB, VTYPE_MASK};

/// CSR numbers.
mod number {
    pub const FFLAGS: u32 = 0x001;
    pub const FRM: u32 = 0x002;
    pub const FCSR: u32 = 0x003;
    pub const SSTATUS: u32 = 0x100;
    pub const VL: u32 = 0xc20;
    pub const VTYPE: u32 = 0xc21;
    pub const VLENB: u32 = 0xc22;
}

/// Bits of `mstatus` that `sstatus` shows, without SD: SIE, SPIE, UBE, SPP, VS, FS, XS, SUM, MXR, UXL.
pub const SSTATUS_MASK: u64 = 0x3_000d_e762;
/// `sstatus.SIE`.
const SIE: u64 = 1 << 1;

/// A CSR that only stores what is written, without an effect on anything else.
struct Plain {
    number: u32,
    privilege: u32,
    slot: u16,
    /// Bits that can be written; the others are zero.
    mask: u64,
}

const PLAIN: [Plain; 8] = [
    Plain { number: 0x140, privilege: SUPERVISOR, slot: slots::SSCRATCH, mask: !0 },
    Plain { number: 0x141, privilege: SUPERVISOR, slot: slots::SEPC, mask: !1 },
    Plain { number: 0x142, privilege: SUPERVISOR, slot: slots::SCAUSE, mask: !0 },
    Plain { number: 0x143, privilege: SUPERVISOR, slot: slots::STVAL, mask: !0 },
    Plain { number: 0x340, privilege: MACHINE, slot: slots::MSCRATCH, mask: !0 },
    Plain { number: 0x341, privilege: MACHINE, slot: slots::MEPC, mask: !1 },
    Plain { number: 0x342, privilege: MACHINE, slot: slots::MCAUSE, mask: !0 },
    Plain { number: 0x343, privilege: MACHINE, slot: slots::MTVAL, mask: !0 },
];

impl Lifter<'_> {
    /// A CSR instruction.
    pub fn csr(&mut self, d: &Decoded, op: CsrOp) -> bool {
        let number = d.imm as u32;
        // Bit 14 tells the forms with an immediate. Setting and clearing nothing, by the encoding, does not
        // write.
        let immediate = d.bits >> 14 & 1 != 0;
        let source = if immediate { d.zimm() } else { d.rs1 };
        let writes = op == CsrOp::Write || source != 0;
        match number {
            number::FFLAGS => return self.fflags(d, op, writes, immediate),
            number::VL | number::VTYPE | number::VLENB if !writes => return self.read_vector_csr(d, number),
            number::FRM | number::FCSR if !writes => return self.read_rounding(d, number),
            number::SSTATUS if self.mode.privilege >= SUPERVISOR => {
                let clears_sie = op == CsrOp::Clear && immediate && u64::from(source) == SIE;
                if !writes || clears_sie {
                    self.sstatus(d, clears_sie);
                    return true;
                }
            }
            _ => {
                let plain = PLAIN.iter().find(|p| p.number == number && self.mode.privilege >= p.privilege);
                if let Some(plain) = plain {
                    self.plain(d, op, writes, immediate, plain);
                    return true;
                }
            }
        }
        self.system_helper(HelperId::Csr, d);
        self.forget(d.rd);
        self.status_changed();
        true
    }

    /// The operand of a CSR instruction.
    fn csr_operand(&mut self, d: &Decoded, immediate: bool) -> Val {
        if immediate { self.constant(u64::from(d.zimm())) } else { self.x(d.rs1) }
    }

    /// A temporary = what a CSR instruction makes of `old`.
    fn csr_value(&mut self, op: CsrOp, old: Val, operand: Val) -> Val {
        match op {
            CsrOp::Write => operand,
            CsrOp::Set => self.bin(Code::Or, Ty::I64, old, operand),
            CsrOp::Clear => self.bin(Code::AndNot, Ty::I64, old, operand),
        }
    }

    fn plain(&mut self, d: &Decoded, op: CsrOp, writes: bool, immediate: bool, plain: &Plain) {
        let slot = Val::slot(plain.slot);
        // The old value must survive the write, and the operand the write to rd.
        let old = if writes && (d.rd != 0 || op != CsrOp::Write) {
            self.un(Code::Mov, Ty::I64, slot)
        } else {
            slot
        };
        if writes {
            let operand = self.csr_operand(d, immediate);
            let value = self.csr_value(op, old, operand);
            if plain.mask == !0 {
                self.b.un(Code::Mov, Ty::I64, slot, value);
            } else {
                let mask = self.constant(plain.mask);
                self.b.bin(Code::And, Ty::I64, slot, value, mask);
            }
        }
        if d.rd != 0 {
            let dst = self.dst(d.rd);
            self.b.un(Code::Mov, Ty::I64, dst, old);
        }
    }

    fn fflags(&mut self, d: &Decoded, op: CsrOp, writes: bool, immediate: bool) -> bool {
        if !self.use_float(d, writes) {
            return false;
        }
        let old = self.b.temp();
        if d.rd != 0 || op != CsrOp::Write {
            self.b.push(Op { dst: old, ..BlockBuilder::op(Code::FpFlagsGet, Ty::I64) });
        }
        if writes {
            let operand = self.csr_operand(d, immediate);
            let value = self.csr_value(op, old, operand);
            let mask = self.constant(0x1f);
            let a = self.bin(Code::And, Ty::I64, value, mask);
            self.b.push(Op { a, ..BlockBuilder::op(Code::FpFlagsSet, Ty::I64) });
        }
        if d.rd != 0 {
            let dst = self.dst(d.rd);
            self.b.un(Code::Mov, Ty::I64, dst, old);
        }
        true
    }

    /// Reads `frm` or `fcsr`; the rounding mode is part of the mode.
    fn read_rounding(&mut self, d: &Decoded, number: u32) -> bool {
        if !self.use_float(d, false) {
            return false;
        }
        if d.rd == 0 {
            return true;
        }
        let frm = u64::from(self.mode.frm);
        if number == number::FRM {
            let frm = self.constant(frm);
            let dst = self.dst(d.rd);
            self.b.un(Code::Mov, Ty::I64, dst, frm);
            return true;
        }
        let flags = self.b.temp();
        self.b.push(Op { dst: flags, ..BlockBuilder::op(Code::FpFlagsGet, Ty::I64) });
        let frm = self.constant(frm << 5);
        let dst = self.dst(d.rd);
        self.b.bin(Code::Or, Ty::I64, dst, flags, frm);
        true
    }

    /// Reads `vl`, `vtype` or `vlenb`.
    fn read_vector_csr(&mut self, d: &Decoded, number: u32) -> bool {
        if self.mode.vector == Unit::Off {
            return self.illegal(d);
        }
        let otherwise = self.vector_may_be_off().then(|| {
            let labels = (self.b.local_label(), self.b.local_label());
            self.go_if_off(labels.0);
            labels
        });
        let config = Val::slot(slots::VCONFIG);
        let value = match number {
            number::VL => {
                let (by, mask) = (self.constant(8), self.constant(0xff));
                let shifted = self.bin(Code::Shr, Ty::I64, config, by);
                self.bin(Code::And, Ty::I64, shifted, mask)
            }
            number::VTYPE => {
                let mask = self.constant(VTYPE_MASK);
                self.bin(Code::And, Ty::I64, config, mask)
            }
            _ => self.constant(VLENB),
        };
        if d.rd != 0 {
            let dst = self.dst(d.rd);
            self.b.un(Code::Mov, Ty::I64, dst, value);
        }
        if let Some((slow, done)) = otherwise {
            self.b.jmp(done);
            self.b.bind(slow);
            self.system_helper(HelperId::Csr, d);
            self.b.bind(done);
        }
        true
    }

    /// Reads `sstatus`, and then clears SIE if asked: what a kernel does wherever it disables interrupts.
    fn sstatus(&mut self, d: &Decoded, clear_sie: bool) {
        let status = Val::slot(slots::MSTATUS);
        if d.rd != 0 {
            let mask = self.constant(SSTATUS_MASK);
            let shown = self.bin(Code::And, Ty::I64, status, mask);
            // SD: the carry out of FS or VS, of two bits each, when it is Dirty.
            let (units, ones) = (self.constant(0x6600), self.constant(0x2200));
            let units = self.bin(Code::And, Ty::I64, status, units);
            let carries = self.bin(Code::Add, Ty::I64, units, ones);
            let carry_bits = self.constant(0x8800);
            let carries = self.bin(Code::And, Ty::I64, carries, carry_bits);
            let zero = self.constant(0);
            let dirty = self.b.temp();
            self.set_cond(plinth_ir::Cond::Ne, dirty, carries, zero);
            let top = self.constant(63);
            let sd = self.bin(Code::Shl, Ty::I64, dirty, top);
            let dst = self.dst(d.rd);
            self.b.bin(Code::Or, Ty::I64, dst, shown, sd);
        }
        if clear_sie {
            let mask = self.constant(!SIE);
            self.b.bin(Code::And, Ty::I64, status, status, mask);
        }
    }
}
