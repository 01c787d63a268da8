//! The instruction table. A [`Row`] says everything about one instruction; the decoder, the disassembler,
//! the lifter and the generator of random instructions all work from it.

mod compressed;
mod float;
pub mod format;
mod integer;
mod system;
mod vector;

use plinth_ir::{AmoOp, Code, Cond, FpCond, Ty};

pub use self::format::{Format, Need};
use crate::helper::HelperId;
use crate::vector::sem::VectorSem;

/// The extension that an instruction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Ext {
    I,
    M,
    A,
    F,
    D,
    C,
    Zicsr,
    Zifencei,
    Zba,
    Zbb,
    Zbc,
    Zbs,
    Zfa,
    Zfh,
    Zicond,
    Zawrs,
    Zacas,
    Zicbom,
    Zicbop,
    Zicboz,
    Zimop,
    Zcb,
    Zcmop,
    /// Privileged architecture.
    Priv,
    Svinval,
    V,
}

/// What an instruction does: the lifter's dispatch. "W" forms compute in 32 bits and sign-extend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sem {
    /// rd = code(rs1, rs2).
    Alu(Code),
    /// rd = sext(code.i32(rs1, rs2)).
    AluW(Code),
    /// rd = code(rs1, immediate).
    AluImm(Code),
    /// rd = sext(code.i32(rs1, immediate)).
    AluImmW(Code),
    /// rd = code(rs1).
    Unary(Code),
    /// rd = code.i32(rs1), not negative.
    UnaryW(Code),
    /// rd = cond(rs1, rs2).
    Set(Cond),
    /// rd = cond(rs1, immediate).
    SetImm(Cond),
    /// rd = (rs1 << n) + rs2.
    ShAdd(u8),
    /// rd = (zext32(rs1) << n) + rs2.
    ShAddUw(u8),
    /// rd = zext32(rs1) << immediate.
    SlliUw,
    /// rd = rs1 with bit rs2 changed by code: `AndNot` clears, `Or` sets, `Xor` inverts.
    Bit(Code),
    /// The same with the bit in the immediate.
    BitImm(Code),
    /// rd = bit rs2 of rs1.
    BitGet,
    /// rd = bit immediate of rs1.
    BitGetImm,
    /// rd = 0 if cond(rs2, 0), else rs1.
    CondZero(Cond),
    /// rd = helper(rs1, rs2).
    Compute(HelperId),
    /// rd = immediate.
    Lui,
    /// rd = pc + immediate.
    Auipc,
    /// Jump and link.
    Jal,
    /// Jump to a register and link.
    Jalr,
    /// Branch.
    Branch(Cond),
    /// Load; sign-extending or not.
    Load(Ty, bool),
    /// Store.
    Store(Ty),
    /// Load of a float of this size.
    FLoad(Ty),
    /// Store of one.
    FStore(Ty),
    /// Load-reserved.
    LoadReserved(Ty),
    /// Store-conditional.
    StoreCond(Ty),
    /// Atomic operation.
    Amo(AmoOp, Ty),
    /// Atomic compare and swap.
    AmoCas(Ty),
    /// Compare and swap of a pair of registers.
    AmoCasPair,
    /// Memory barrier; the sets are in the immediate.
    Fence,
    /// Memory barrier that lets later loads pass earlier stores.
    FenceTso,
    /// Nothing, but rd (if there is one) becomes 0.
    Zero,
    /// Nothing at all.
    Hint,
    /// Environment call.
    Ecall,
    /// Breakpoint.
    Ebreak,
    /// helper(instruction) and the next instruction.
    System(HelperId),
    /// helper(instruction), after which control never falls through in the same block.
    SystemEnd(HelperId),
    /// helper(instruction, rs1, rs2), likewise.
    TlbFence,
    /// Instruction fence.
    FenceI,
    /// CSR instruction.
    Csr(CsrOp),
    /// Cache block operation that only checks: it writes (else invalidates).
    CacheBlock(bool),
    /// Zeroes a cache block.
    CacheZero,
    /// fd = code(fs1, fs2), rounded.
    FArith(Code, Ty),
    /// fd = code(fs1, fs2), exact.
    FExact(Code, Ty),
    /// fd = sqrt(fs1).
    FSqrt(Ty),
    /// Fused multiply-add with these flags.
    FMulAdd(u8, Ty),
    /// Sign injection.
    FSign(SignOp, Ty),
    /// rd = cond(fs1, fs2).
    FCompare(FpCond, Ty),
    /// fd (first type) = fs1 (second type).
    FToF(Ty, Ty),
    /// rd (integer type, signed or not) = fs1.
    FToInt(Ty, bool, Ty),
    /// fd (first type) = integer rs1 of a type, signed or not.
    IntToF(Ty, Ty, bool),
    /// rd = class of fs1.
    FClass(Ty),
    /// rd = bits of fs1.
    FMoveToInt(Ty),
    /// fd = bits of rs1.
    FMoveFromInt(Ty),
    /// fd = constant.
    FConst(Ty),
    /// fd = fs1 rounded to an integral value; inexact or not.
    FRound(Ty, bool),
    /// rd = fs1 modulo 2^32.
    FModular,
    /// A vector instruction.
    Vector(VectorSem),
}

/// What a CSR instruction does to the CSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrOp {
    /// Writes.
    Write,
    /// Sets bits.
    Set,
    /// Clears bits.
    Clear,
}

/// Where a sign injection takes its sign from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignOp {
    /// fs2.
    Copy,
    /// fs2, inverted.
    Negate,
    /// fs1 xor fs2.
    Xor,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Mnemonic.
    pub name: &'static str,
    /// Extension.
    pub ext: Ext,
    /// Bits that are fixed.
    pub mask: u32,
    /// What they are.
    pub bits: u32,
    /// Operands.
    pub format: &'static Format,
    /// What it does.
    pub sem: Sem,
}

impl Row {
    /// Bytes: 2 or 4.
    #[must_use]
    pub const fn bytes(&self) -> u8 {
        if self.bits & 3 == 3 { 4 } else { 2 }
    }

    /// True if instruction `bits` is this one.
    #[must_use]
    #[inline]
    pub fn matches(&self, bits: u32) -> bool {
        if bits & self.mask != self.bits {
            return false;
        }
        match self.format.need {
            Need::Nothing => true,
            Need::Rd => self.format.rd.extract(bits) != 0,
            Need::Rs1 => self.format.rs1.extract(bits) != 0,
            Need::Rs2 => self.format.rs2.extract(bits) != 0,
            Need::Imm => self.format.imm.extract(bits) != 0,
        }
    }

    /// True for an instruction that computes on floating point state, which needs `mstatus.FS`.
    #[must_use]
    pub const fn is_float(&self) -> bool {
        matches!(
            self.sem,
            Sem::FLoad(_)
                | Sem::FStore(_)
                | Sem::FArith(..)
                | Sem::FExact(..)
                | Sem::FSqrt(_)
                | Sem::FMulAdd(..)
                | Sem::FSign(..)
                | Sem::FCompare(..)
                | Sem::FToF(..)
                | Sem::FToInt(..)
                | Sem::IntToF(..)
                | Sem::FClass(_)
                | Sem::FMoveToInt(_)
                | Sem::FMoveFromInt(_)
                | Sem::FConst(_)
                | Sem::FRound(..)
                | Sem::FModular
        )
    }
}

/// A row of a 32-bit instruction, its fixed bits given by its format.
const fn row(name: &'static str, ext: Ext, bits: u32, format: &'static Format, sem: Sem) -> Row {
    assert!(bits & !format.mask == 0 && bits & 3 == 3);
    Row { name, ext, mask: format.mask, bits, format, sem }
}

/// The table but for vector instructions. Where two rows match the same bits, the first one counts.
static TABLES: [&[Row]; 5] = [system::PREFETCHES, integer::ROWS, system::ROWS, float::ROWS, compressed::ROWS];

/// All rows.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLES.into_iter().chain(vector::ROWS.iter().copied()).flatten()
}
