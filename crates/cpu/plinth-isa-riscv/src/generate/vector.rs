//! Vector instructions, legal ones for the type that was set before them.

use super::{BASE, Generator, Insn, by_name, encode};
use crate::table::format::Reg;
use crate::table::{Row, Sem};
use crate::vector::sem::{Memory, VectorSem};
use crate::vector::{Config, is_legal, requested};

/// Distance between elements of strided accesses at most, in bytes: 128 of them stay inside the window.
const STRIDE: u32 = 14;
/// The largest index in memory, in bytes.
const MAX_INDEX: i32 = 15;

fn insn(name: &str, rd: u8, rs1: u8, rs2: u8, imm: i32) -> Option<Insn> {
    let row = by_name(name)?;
    Some(Insn { row, bits: encode(row, rd, rs1, rs2, imm)?, barrier: true })
}

impl Generator {
    /// An integer register that may be written, other than x0.
    fn free_register(&mut self) -> u8 {
        loop {
            let r = 1 + self.rng.below(31) as u8;
            if self.keep >> r & 1 == 0 {
                return r;
            }
        }
    }

    /// A vector type that is not reserved; `alike`: with as many elements as the current one.
    fn vector_type(&mut self, alike: bool) -> Config {
        loop {
            let config = requested(u64::from(self.rng.below(256)));
            if !config.is_ill() && (!alike || config.vlmax() == self.config.vlmax()) {
                return config;
            }
        }
    }

    /// Sets a random vector type in one of the ways there are.
    pub(super) fn set_type(&mut self, out: &mut Vec<Insn>) {
        let alike = !self.config.is_ill() && self.rng.below(8) == 0;
        let config = self.vector_type(alike);
        let vtype = config.vtype() as i32;
        let (rd, rs1) = (self.free_register(), self.rng.below(32) as u8);
        let made = match self.rng.below(4) {
            _ if alike => vec![insn("vsetvli", 0, 0, 0, vtype)],
            0 => vec![insn("vsetvli", rd, 0, 0, vtype)],
            1 => vec![insn("vsetvli", if rs1 == 0 { rd } else { 0 }, rs1, 0, vtype)],
            2 => {
                let from = self.free_register();
                vec![insn("addi", from, 0, 0, vtype), insn("vsetvl", rd, rs1, from, 0)]
            }
            _ => {
                let avl = self.rng.below(32) << 15;
                let insn = insn("vsetivli", rd, 0, 0, vtype);
                vec![insn.map(|i| Insn { bits: i.bits | avl, ..i })]
            }
        };
        out.extend(made.into_iter().flatten());
        self.config = config;
    }

    /// Operands that are legal for the current type in `bits`, which are random.
    pub(super) fn vector_operands(&mut self, row: &Row, sem: VectorSem, bits: u32) -> Option<u32> {
        let random = self.rng.next() as u32;
        let mut bits = bits;
        if matches!(sem, VectorSem::Load(..) | VectorSem::Store(..)) && random & 1 != 0 {
            // No segments.
            bits = bits & !(7 << 29) | row.bits & 7 << 29;
        }
        for _ in 0..64 {
            let random = self.rng.next() as u32;
            // Register numbers that are multiples of powers of two.
            let mut fields = random & !row.mask;
            for lsb in [7, 15, 20] {
                let power = self.rng.below(5).min(3);
                fields &= !(((1 << power) - 1) << lsb);
            }
            let keep = row.mask | 7 << 29;
            let candidate = bits & keep | fields & !keep;
            if is_legal(sem, candidate, self.config) {
                return Some(candidate);
            }
        }
        None
    }

    /// Appends vector instruction `bits`, after what keeps its addresses inside the window and, sometimes, a
    /// start that is not zero.
    pub(super) fn vector_instruction(
        &mut self,
        out: &mut Vec<Insn>,
        row: &'static Row,
        sem: VectorSem,
        bits: u32,
    ) {
        let mut bits = bits;
        if let VectorSem::Load(kind, eew) | VectorSem::Store(kind, eew) = sem {
            match kind {
                Memory::Strided => {
                    let stride = self.free_register();
                    let by = self.rng.below(2 * STRIDE + 1) as i32 - STRIDE as i32;
                    bits = bits & !(31 << 20) | u32::from(stride) << 20;
                    out.extend(insn("addi", stride, 0, 0, by));
                }
                Memory::Indexed => {
                    let emul = i32::from(eew) + 3 - self.config.sew() + self.config.lmul();
                    let indices = i32::from(eew) << 3 | emul & 7;
                    let (rd, again) = (self.free_register(), self.free_register());
                    let vs2 = (bits >> 20 & 31) as u8;
                    out.extend(insn("vsetvli", rd, 0, 0, indices));
                    let and =
                        insn("vand.vi", vs2, 0, vs2, MAX_INDEX).map(|i| Insn { bits: i.bits | 1 << 25, ..i });
                    out.extend(and);
                    out.extend(insn("vsetvli", again, BASE, 0, self.config.vtype() as i32));
                }
                _ => {}
            }
        }
        let start = self.rng.below(32);
        // QEMU 10.0 gives up on loads and stores of masks and whole registers that start beyond their end.
        let start = match sem {
            VectorSem::Load(Memory::Mask, _) | VectorSem::Store(Memory::Mask, _) => 0,
            VectorSem::Load(Memory::Whole, _) | VectorSem::Store(Memory::Whole, _) => start & 1,
            _ => start,
        };
        let started = self.config.with_vstart(u64::from(start));
        if self.rng.below(16) == 0 && is_legal(sem, bits, started) {
            out.extend(insn("csrrwi", 0, 0, 0, 8).map(|i| Insn { bits: i.bits | start << 15, ..i }));
        }
        let barrier = false;
        out.push(Insn { row, bits, barrier });
    }

    /// A CSR instruction on the vector unit's state.
    pub(super) fn vector_csr(&mut self) -> Option<Insn> {
        let rd = self.free_register();
        let name = self.rng.pick(&["csrrwi", "csrrsi", "csrrci"]);
        let mut insn = match self.rng.below(3) {
            0 => {
                let number = self.rng.pick(&[0xc20, 0xc21, 0xc22, 8]);
                insn("csrrs", rd, 0, 0, number)?
            }
            _ => {
                // Bits beyond the fields are to be written as zero.
                let (number, bits) = self.rng.pick(&[(9, 1), (10, 2), (15, 3)]);
                let source = self.rng.below(1 << bits) << 15;
                let insn = insn(name, rd, 0, 0, number)?;
                Insn { bits: insn.bits | source, ..insn }
            }
        };
        insn.barrier = false;
        debug_assert!(matches!(insn.row.sem, Sem::Csr(_)) && insn.row.format.rd != Reg::Fixed(0));
        Some(insn)
    }
}
