//! From bytes to decoded instructions.

use std::sync::LazyLock;

use crate::table::format::{Imm, Reg};
use crate::table::{Row, Sem, rows};

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction, or into an exception.
    Next,
    /// To the next one or to pc + immediate.
    Branch,
    /// To pc + immediate.
    Jump,
    /// Elsewhere.
    Leave,
}

impl Flow {
    const fn of(sem: Sem) -> Self {
        match sem {
            Sem::Branch(_) => Flow::Branch,
            Sem::Jal => Flow::Jump,
            Sem::Jalr | Sem::Ecall | Sem::Ebreak | Sem::SystemEnd(_) | Sem::TlbFence | Sem::FenceI => {
                Flow::Leave
            }
            _ => Flow::Next,
        }
    }
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its row; `None`: no defined instruction.
    pub row: Option<&'static Row>,
    /// Its bits: 32, or 16 with zeros above.
    pub bits: u32,
    /// Immediate.
    pub imm: i32,
    /// Bytes: 2 or 4.
    pub len: u8,
    /// Where control goes.
    pub flow: Flow,
    /// Destination register.
    pub rd: u8,
    /// First source register.
    pub rs1: u8,
    /// Second source register.
    pub rs2: u8,
}

impl Decoded {
    /// Third source register.
    #[must_use]
    pub const fn rs3(&self) -> u8 {
        (self.bits >> 27) as u8
    }

    /// Rounding mode, 0..8.
    #[must_use]
    pub const fn rm(&self) -> u32 {
        self.bits >> 12 & 7
    }

    /// The rs1 field as a number.
    #[must_use]
    pub const fn zimm(&self) -> u8 {
        (self.bits >> 15 & 31) as u8
    }

    /// Acquire bit of an atomic instruction.
    #[must_use]
    pub const fn acquire(&self) -> bool {
        self.bits >> 26 & 1 != 0
    }

    /// Release bit of an atomic instruction.
    #[must_use]
    pub const fn release(&self) -> bool {
        self.bits >> 25 & 1 != 0
    }
}

/// Keys of 32-bit instructions: major opcode and `funct3`; for OP-FP, whose `funct3` often is a rounding
/// mode, one for each `funct7` after them; for OP-V, one for each `funct3` and `funct6`. Then those of
/// compressed ones: quadrant and bits 15 to 13.
const OP_FP: u32 = 0x14;
const OP_V: u32 = 0x15;
const FP_KEYS: usize = 32 * 8;
const V_KEYS: usize = FP_KEYS + 128;
const COMPRESSED_KEYS: usize = V_KEYS + 512;
const KEYS: usize = COMPRESSED_KEYS + 32;

#[inline]
fn key(bits: u32) -> usize {
    let opcode = bits >> 2 & 31;
    (if bits & 3 != 3 {
        COMPRESSED_KEYS as u32 + ((bits & 3) << 3 | bits >> 13 & 7)
    } else if opcode == OP_FP {
        FP_KEYS as u32 + (bits >> 25)
    } else if opcode == OP_V {
        V_KEYS as u32 + ((bits >> 12 & 7) << 6 | bits >> 26)
    } else {
        opcode << 3 | bits >> 12 & 7
    }) as usize
}

/// The bits that make up `key`, and the value of these bits that has it.
fn bits_of_key(key: usize) -> (u32, u32) {
    let k = key as u32;
    if key >= COMPRESSED_KEYS {
        let k = k - COMPRESSED_KEYS as u32;
        (0xe003, k >> 3 | (k & 7) << 13)
    } else if key >= V_KEYS {
        let k = k - V_KEYS as u32;
        (0xfc00_707f, (k & 63) << 26 | k >> 6 << 12 | OP_V << 2 | 3)
    } else if key >= FP_KEYS {
        (0xfe00_007f, (k - FP_KEYS as u32) << 25 | OP_FP << 2 | 3)
    } else {
        (0x0000_707f, k >> 3 << 2 | 3 | (k & 7) << 12)
    }
}

/// What tells a row from others. It matches if the masked bits are right and, where `needed` has any, one of
/// these is set.
#[derive(Clone, Copy)]
struct Matcher {
    mask: u32,
    bits: u32,
    needed: u32,
}

/// A register's field: `(bits >> shift & mask) + base`.
#[derive(Clone, Copy)]
struct Field {
    shift: u8,
    mask: u8,
    base: u8,
}

impl Field {
    const fn of(reg: Reg) -> Self {
        match reg {
            Reg::Fixed(base) => Self { shift: 0, mask: 0, base },
            Reg::At5(shift) => Self { shift, mask: 31, base: 0 },
            Reg::At3(shift) => Self { shift, mask: 7, base: 8 },
        }
    }

    #[inline(always)]
    const fn extract(self, bits: u32) -> u8 {
        (bits >> self.shift) as u8 & self.mask | self.base
    }
}

/// A row's operands in a form that is quick to extract: no branches but the loop over the immediate's pieces.
struct Operands {
    row: &'static Row,
    flow: Flow,
    rd: Field,
    rs1: Field,
    rs2: Field,
    imm: Imm,
}

/// Rows by key.
struct Index {
    /// Where the rows of a key begin; they end where the next key's begin.
    starts: [u16; KEYS + 1],
    matchers: Vec<Matcher>,
    operands: Vec<Operands>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { starts: [0; KEYS + 1], matchers: Vec::new(), operands: Vec::new() };
    for k in 0..KEYS {
        let (mask, bits) = bits_of_key(k);
        let compressed = k >= COMPRESSED_KEYS;
        let possible =
            |r: &&Row| (r.bytes() == 2) == compressed && r.bits & r.mask & mask == bits & r.mask & mask;
        for row in rows().filter(possible) {
            let f = row.format;
            index.matchers.push(Matcher { mask: row.mask, bits: row.bits, needed: f.needed() });
            let (rd, rs1, rs2) = (Field::of(f.rd), Field::of(f.rs1), Field::of(f.rs2));
            let flow = Flow::of(row.sem);
            index.operands.push(Operands { row, flow, rd, rs1, rs2, imm: f.imm });
        }
        index.starts[k + 1] = index.matchers.len() as u16;
    }
    index
});

/// Decodes instructions. Cheap to make and to copy.
#[derive(Clone, Copy)]
pub struct Decoder {
    index: &'static Index,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { index: &INDEX }
    }
}

impl Decoder {
    /// The decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes the instruction that begins with the 32 bits `word`.
    #[must_use]
    #[inline]
    pub fn decode(self, word: u32) -> Decoded {
        let compressed = word & 3 != 3;
        let bits = if compressed { word & 0xffff } else { word };
        let len = if compressed { 2 } else { 4 };
        let k = key(bits);
        let (from, to) = (usize::from(self.index.starts[k]), usize::from(self.index.starts[k + 1]));
        let matches = |m: &Matcher| bits & m.mask == m.bits && (m.needed == 0 || bits & m.needed != 0);
        match self.index.matchers[from..to].iter().position(matches) {
            Some(at) => {
                let o = &self.index.operands[from + at];
                let (rd, rs1, rs2) = (o.rd.extract(bits), o.rs1.extract(bits), o.rs2.extract(bits));
                Decoded { row: Some(o.row), bits, imm: o.imm.extract(bits), len, flow: o.flow, rd, rs1, rs2 }
            }
            None => Decoded { row: None, bits, imm: 0, len, flow: Flow::Leave, rd: 0, rs1: 0, rs2: 0 },
        }
    }

    /// Decodes the instruction at the start of `code`; `None` if `code` ends before it does.
    #[must_use]
    #[inline]
    pub fn decode_bytes(self, code: &[u8]) -> Option<Decoded> {
        if let Some(&word) = code.first_chunk::<4>() {
            return Some(self.decode(u32::from_le_bytes(word)));
        }
        let half = u32::from(u16::from_le_bytes(*code.first_chunk::<2>()?));
        (half & 3 != 3).then(|| self.decode(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Rng;

    /// The first row of the table that matches: what the index must find.
    fn linear(bits: u32) -> Option<&'static Row> {
        let len = if bits & 3 == 3 { 4 } else { 2 };
        rows().find(|r| r.bytes() == len && r.matches(bits))
    }

    #[test]
    fn index_agrees_with_a_linear_search() {
        let d = Decoder::new();
        for half in 0..0x1_0000u32 {
            if half & 3 != 3 {
                assert_eq!(d.decode(half).row, linear(half), "{half:#06x}");
            }
        }
        let mut rng = Rng::new(1);
        for _ in 0..100_000 {
            let word = rng.next() as u32 | 3;
            assert_eq!(d.decode(word).row, linear(word), "{word:#010x}");
        }
    }

    #[test]
    fn every_row_round_trips() {
        let d = Decoder::new();
        let mut rng = Rng::new(2);
        let mut bits_of_operands = 0;
        for row in rows() {
            for _ in 0..200 {
                let bits =
                    row.bits | rng.next() as u32 & !row.mask & if row.bytes() == 2 { 0xffff } else { !0 };
                if !row.matches(bits) {
                    continue;
                }
                let found = d.decode(bits);
                if found.row != Some(row) {
                    // A more special row stands before this one.
                    assert_eq!(found.row, linear(bits));
                    continue;
                }
                let f = row.format;
                let again = f.rd.insert(found.rd).unwrap()
                    | f.rs1.insert(found.rs1).unwrap()
                    | f.rs2.insert(found.rs2).unwrap()
                    | f.imm.insert(found.imm).unwrap();
                assert_eq!(bits & (row.mask | again), row.bits | again, "{} {bits:#x}", row.name);
                bits_of_operands += again.count_ones();
                assert_eq!(d.decode_bytes(&bits.to_le_bytes()[..usize::from(row.bytes())]), Some(found));
            }
        }
        assert!(bits_of_operands > 100_000);
    }

    #[test]
    fn reserved_encodings_are_undefined() {
        let d = Decoder::new();
        for bits in [
            0x0000, // all zeros
            0x0004, // c.addi4spn without an immediate
            0x2001, // c.addiw x0
            0x4002, // c.lwsp x0
            0x6002, // c.ldsp x0
            0x6101, // c.addi16sp 0
            0x6401, // c.lui s0, 0
            0x8002, // c.jr x0
            0x9c79, // after c.not
            0x7fff_ffff,
            0xffff_ffff,
            0x0000_7003, // load with funct3 7
            0x0000_4023, // store with funct3 4
            0x0000_2063, // branch with funct3 2
            0x4000_1013, // slli with a wrong funct6
            0x0200_101b, // slliw by 32
            0x2800_40af, // amocas.q with an odd rd
            0x2810_402f, // amocas.q with an odd rs2
        ] {
            assert_eq!(d.decode(bits).row, None, "{bits:#x}");
        }
    }

    #[test]
    fn short_code_is_not_read_past_its_end() {
        let d = Decoder::new();
        assert_eq!(d.decode_bytes(&[]), None);
        assert_eq!(d.decode_bytes(&[0x01]), None);
        assert_eq!(d.decode_bytes(&[0x13, 0x05]), None);
        assert_eq!(d.decode_bytes(&[0x13, 0x05, 0x00]), None);
        assert!(d.decode_bytes(&[0x01, 0x00]).is_some());
    }
}
