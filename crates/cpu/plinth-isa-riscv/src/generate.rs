//! Random instructions from the table, for differential tests.
//!
//! Sequences read and write memory only through [`BASE`] and `sp`. Both must hold an address with
//! [`WINDOW`] bytes of memory before and behind it, aligned to [`ALIGN`].

mod vector;

use crate::decode::Decoder;
use crate::table::format::{Format, Reg};
use crate::table::{Ext, Row, Sem, rows};
use crate::vector::Config;
use crate::vector::sem::VectorSem;

/// The base register of memory operands.
pub const BASE: u8 = 9;
/// `sp`, the base of the compressed stack loads and stores.
pub const SP: u8 = 2;
/// Bytes around an address in [`BASE`] or `sp` that sequences access at most.
pub const WINDOW: u64 = 2048 + 16;
/// What addresses in [`BASE`] and `sp` are multiples of.
pub const ALIGN: u64 = 64;
/// Furthest forward jump, in instructions.
const JUMP: u32 = 6;

/// A small generator of pseudo-random numbers (xorshift64*): reproducible from its seed.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Starts at `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// One of `items`, which is not empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u32) as usize]
    }

    /// A register's content of the kinds that find mistakes: small numbers, powers of two and their
    /// neighbours, floats, special floats of every width, boxed or not, and anything.
    pub fn value(&mut self) -> u64 {
        const FLOATS: [u64; 12] = [
            0,
            0x8000_0000_0000_0000,
            0x3ff0_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0xfff8_0000_0000_1234,
            0x0010_0000_0000_0000,
            0x000f_ffff_ffff_ffff,
            0x7fef_ffff_ffff_ffff,
            0x41df_ffff_ffc0_0000,
        ];
        const SINGLES: [u64; 8] =
            [0, 0x8000_0000, 0x3f80_0000, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 0x0080_0000, 0x4f00_0000];
        const HALVES: [u64; 8] = [0, 0x8000, 0x3c00, 0x7c00, 0x7e00, 0x7c01, 0x0400, 0x7bff];
        let r = self.next();
        match self.below(12) {
            0 => u64::from(self.below(32)),
            1 => u64::from(self.below(32)).wrapping_neg(),
            2 => 1 << (r & 63),
            3 => (1u64 << (r & 63)).wrapping_sub(1),
            4 => (r as i32) as u64,
            5 => self.pick(&FLOATS),
            6 => self.pick(&SINGLES) | 0xffff_ffff_0000_0000,
            7 => self.pick(&HALVES) | 0xffff_ffff_ffff_0000,
            8 => r | 0xffff_ffff_0000_0000,
            9 => r | 0xffff_ffff_ffff_0000,
            // A double of moderate size.
            10 => r & 0x800f_ffff_ffff_ffff | (1023 - 40 + u64::from(self.below(80))) << 52,
            _ => r,
        }
    }
}

/// Bits of instruction `row` with these operands; a register or immediate that the format has not must be
/// zero (or what the format says). `None` if they cannot be encoded.
#[must_use]
pub fn encode(row: &Row, rd: u8, rs1: u8, rs2: u8, imm: i32) -> Option<u32> {
    let f = row.format;
    let bits = row.bits | f.rd.insert(rd)? | f.rs1.insert(rs1)? | f.rs2.insert(rs2)? | f.imm.insert(imm)?;
    row.matches(bits).then_some(bits)
}

/// The row named `name`.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Row> {
    rows().find(|r| r.name == name)
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Extensions to take instructions from.
    pub exts: Vec<Ext>,
    /// Integer registers that are never written, by bit; [`BASE`] and `sp` never are.
    pub keep: u32,
    /// Instructions to leave out, such as those that a peer gets wrong.
    pub skip: fn(&Row, u32) -> bool,
}

/// Generates instruction sequences.
pub struct Generator {
    rng: Rng,
    rows: Vec<&'static Row>,
    keep: u32,
    skip: fn(&Row, u32) -> bool,
    decoder: Decoder,
    /// The vector type that is set where the sequence stands.
    config: Config,
}

/// An instruction of a sequence.
#[derive(Clone, Copy)]
struct Insn {
    row: &'static Row,
    bits: u32,
    /// No jump goes over it: what follows relies on it.
    barrier: bool,
}

/// True for instructions that run the same anywhere in user mode.
fn plain(sem: Sem) -> bool {
    !matches!(
        sem,
        Sem::Jalr
            | Sem::Ecall
            | Sem::Ebreak
            | Sem::System(_)
            | Sem::SystemEnd(_)
            | Sem::TlbFence
            | Sem::FenceI
            | Sem::Csr(_)
            | Sem::CacheBlock(_)
            | Sem::StoreCond(_)
            | Sem::Vector(VectorSem::SetVl)
    )
}

/// True if the instruction addresses memory through rs1.
fn accesses(sem: Sem) -> bool {
    matches!(
        sem,
        Sem::Load(..)
            | Sem::Store(_)
            | Sem::FLoad(_)
            | Sem::FStore(_)
            | Sem::LoadReserved(_)
            | Sem::StoreCond(_)
            | Sem::Amo(..)
            | Sem::AmoCas(_)
            | Sem::AmoCasPair
            | Sem::CacheZero
            | Sem::Vector(VectorSem::Load(..) | VectorSem::Store(..))
    )
}

/// True if rd is an integer register.
fn writes_integer(row: &Row) -> bool {
    !row.format.text.starts_with(['D', 'v']) && row.format.rd != Reg::Fixed(0)
}

/// True if bits 12 to 14 are a rounding mode.
fn rounds(format: &Format) -> bool {
    format.text.ends_with('m')
}

fn is_jump(sem: Sem) -> bool {
    matches!(sem, Sem::Branch(_) | Sem::Jal)
}

impl Generator {
    /// Starts at `seed`. `options` must allow one instruction at least.
    #[must_use]
    pub fn new(seed: u64, options: &Options) -> Self {
        let keep = options.keep | 1 << BASE | 1 << SP;
        let usable = |r: &&'static Row| {
            let kept = |reg| matches!(reg, Reg::Fixed(n) if n != 0 && keep >> n & 1 != 0);
            options.exts.contains(&r.ext) && plain(r.sem) && !(writes_integer(r) && kept(r.format.rd))
        };
        Self {
            rng: Rng::new(seed),
            rows: rows().filter(usable).collect(),
            keep,
            skip: options.skip,
            decoder: Decoder::new(),
            config: Config::ILLEGAL,
        }
    }

    /// The source of its randomness.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Random bits for `row`; `None` if these cannot be used.
    fn attempt(&mut self, row: &'static Row) -> Option<u32> {
        let f = row.format;
        let random = self.rng.next() as u32 & if row.bytes() == 2 { 0xffff } else { u32::MAX };
        let mut bits = row.bits | random & !row.mask;
        if let Sem::Vector(sem) = row.sem {
            bits = self.vector_operands(row, sem, bits)?;
        }
        if accesses(row.sem) && f.rs1 != Reg::Fixed(SP) {
            let field = f.rs1.insert(if matches!(f.rs1, Reg::At3(_)) { 15 } else { 31 })?;
            bits = bits & !field | f.rs1.insert(BASE)?;
        }
        if !row.matches(bits) || self.decoder.decode(bits).row != Some(row) {
            return None;
        }
        let written = if row.sem == Sem::AmoCasPair { 3 } else { 1 };
        if writes_integer(row) && self.keep >> f.rd.extract(bits) & written != 0 {
            return None;
        }
        if rounds(f) && matches!(bits >> 12 & 7, 5 | 6) || (self.skip)(row, bits) {
            return None;
        }
        Some(bits)
    }

    /// A random instruction. Targets of branches and jumps are random. A vector instruction is one for the
    /// vector type that [`Generator::sequence`] has set.
    pub fn instruction(&mut self) -> (&'static Row, u32) {
        loop {
            let row = self.rng.pick(&self.rows);
            if let Some(bits) = self.attempt(row) {
                return (row, bits);
            }
        }
    }

    /// A CSR instruction on the floating point flags or (to a valid value) the rounding mode.
    fn float_csr(&mut self) -> Option<u32> {
        let name = self.rng.pick(&["csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci"]);
        let source = self.rng.below(32) << 15;
        let rd = self.rng.below(32) as u8;
        if self.keep >> rd & 1 != 0 {
            return None;
        }
        if self.rng.below(8) == 0 {
            return Some(encode(by_name("csrrwi")?, rd, 0, 0, 2)? | self.rng.below(5) << 15);
        }
        Some(encode(by_name(name)?, rd, 0, 0, 1)? | source)
    }

    /// A store-conditional to the address of a load-reserved of the same width, `bits`.
    fn store_conditional(&mut self, bits: u32) -> Option<u32> {
        let name = if bits >> 12 & 7 == 2 { "sc.w" } else { "sc.d" };
        let rd = self.rng.below(32) as u8;
        if self.keep >> rd & 1 != 0 {
            return None;
        }
        encode(by_name(name)?, rd, BASE, self.rng.below(32) as u8, 0)
    }

    /// A sequence of at least `len` instructions. Jumps go forward inside it or to its end; control always
    /// reaches the end.
    pub fn sequence(&mut self, len: usize) -> Vec<u8> {
        let float = self.rows.iter().any(|r| r.is_float());
        let vector = self.rows.iter().any(|r| r.ext == Ext::V);
        let mut insns: Vec<Insn> = Vec::with_capacity(len + 4);
        let plain = |row, bits| Insn { row, bits, barrier: false };
        if vector {
            self.set_type(&mut insns);
        }
        while insns.len() < len {
            if vector && self.rng.below(8) == 0 {
                self.set_type(&mut insns);
            }
            if vector
                && self.rng.below(24) == 0
                && let Some(insn) = self.vector_csr()
            {
                insns.push(insn);
                continue;
            }
            if float
                && self.rng.below(24) == 0
                && let Some(bits) = self.float_csr()
                && let Some(row) = self.decoder.decode(bits).row
            {
                insns.push(plain(row, bits));
                continue;
            }
            let (row, bits) = self.instruction();
            if let Sem::Vector(sem) = row.sem {
                self.vector_instruction(&mut insns, row, sem, bits);
                continue;
            }
            insns.push(plain(row, bits));
            if matches!(row.sem, Sem::LoadReserved(_)) {
                let (bits, row) = loop {
                    if let Some(bits) = self.store_conditional(bits)
                        && let Some(row) = self.decoder.decode(bits).row
                    {
                        break (bits, row);
                    }
                };
                insns.push(plain(row, bits));
            }
        }
        self.link(&insns)
    }

    /// Sets the targets of jumps and joins the instructions.
    fn link(&mut self, insns: &[Insn]) -> Vec<u8> {
        let mut offsets = vec![0];
        for insn in insns {
            offsets.push(offsets[offsets.len() - 1] + i32::from(insn.row.bytes()));
        }
        let mut code = Vec::new();
        for (i, &Insn { row, bits, .. }) in insns.iter().enumerate() {
            let mut bits = bits;
            if is_jump(row.sem) {
                let target = (i + 1 + self.rng.below(JUMP) as usize).min(insns.len());
                let barrier = (i + 1..target).find(|&at| insns[at].barrier);
                let target = barrier.unwrap_or(target);
                let distance = offsets[target] - offsets[i];
                let all = if row.bytes() == 2 { 0xffff } else { u32::MAX };
                let fields = row.format.imm.bits();
                // Every format of a jump reaches that far.
                let distance = row.format.imm.insert(distance).unwrap_or_default();
                bits = (bits & !fields | distance) & all;
            }
            code.extend_from_slice(&bits.to_le_bytes()[..usize::from(row.bytes())]);
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn sequences_are_defined_and_keep_their_registers() {
        let exts = vec![Ext::I, Ext::M, Ext::A, Ext::F, Ext::D, Ext::C, Ext::Zba, Ext::Zcb, Ext::Zfa];
        let mut g = Generator::new(7, &Options { exts: exts.clone(), keep: 1 << 31, skip: |_, _| false });
        let d = Decoder::new();
        let mut seen = HashSet::new();
        for _ in 0..300 {
            let code = g.sequence(40);
            let mut at = 0;
            let mut starts = HashSet::new();
            let mut targets = Vec::new();
            while at < code.len() {
                starts.insert(at as i32);
                let insn = d.decode_bytes(&code[at..]).unwrap();
                let row = insn.row.expect("defined");
                seen.insert(row.name);
                if writes_integer(row) {
                    assert!(!matches!(insn.rd, 31 | SP | BASE), "{}", row.name);
                }
                if accesses(row.sem) {
                    assert!(insn.rs1 == BASE || insn.rs1 == SP, "{}", row.name);
                }
                if is_jump(row.sem) {
                    targets.push(at as i32 + insn.imm);
                }
                at += usize::from(insn.len);
            }
            starts.insert(at as i32);
            assert!(targets.iter().all(|t| starts.contains(t)));
        }
        let usable = rows().filter(|r| exts.contains(&r.ext) && plain(r.sem)).count();
        assert!(seen.len() > usable - 10, "{} of {usable}", seen.len());
        assert!(seen.contains("sc.d") && seen.contains("csrrs"));
    }

    #[test]
    fn encode_refuses_what_does_not_fit() {
        let addi = by_name("addi").unwrap();
        assert_eq!(encode(addi, 10, 10, 0, -1), Some(0xfff5_0513));
        assert_eq!(encode(addi, 10, 10, 0, 2048), None);
        assert_eq!(encode(addi, 32, 10, 0, 0), None);
        assert_eq!(encode(by_name("c.sub").unwrap(), 8, 8, 15, 0), Some(0x8c1d));
        assert_eq!(encode(by_name("c.sub").unwrap(), 7, 7, 15, 0), None);
        assert_eq!(encode(by_name("c.addiw").unwrap(), 0, 0, 0, 1), None);
    }
}
