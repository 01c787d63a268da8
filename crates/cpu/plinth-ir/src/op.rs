//! Operations and what they operate on.

/// Type of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Ty {
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    V128,
}

impl Ty {
    /// Bytes in memory.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Ty::I8 => 1,
            Ty::I16 | Ty::F16 => 2,
            Ty::I32 | Ty::F32 => 4,
            Ty::I64 | Ty::F64 => 8,
            Ty::V128 => 16,
        }
    }

    /// Bits.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bytes() * 8
    }
}

/// An operand: a slot of the guest's state, a temporary, a constant of the block's pool, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Val(pub u16);

impl Val {
    /// No operand.
    pub const NONE: Val = Val(0xffff);
    const TEMP: u16 = 0x4000;
    const CONST: u16 = 0x8000;

    /// State slot `index` (below 0x4000).
    #[inline]
    #[must_use]
    pub const fn slot(index: u16) -> Self {
        Val(index & 0x3fff)
    }

    /// Temporary `index` (below 0x4000).
    #[inline]
    #[must_use]
    pub const fn temp(index: u16) -> Self {
        Val(Self::TEMP | (index & 0x3fff))
    }

    /// Constant `index` of the block's pool (below 0x4000).
    #[inline]
    #[must_use]
    pub const fn constant(index: u16) -> Self {
        Val(Self::CONST | (index & 0x3fff))
    }

    /// The slot's index, if this is a slot.
    #[inline]
    #[must_use]
    pub const fn as_slot(self) -> Option<u16> {
        if self.0 < Self::TEMP { Some(self.0) } else { None }
    }

    /// The temporary's index, if this is one.
    #[inline]
    #[must_use]
    pub const fn as_temp(self) -> Option<u16> {
        if self.0 & 0xc000 == Self::TEMP { Some(self.0 & 0x3fff) } else { None }
    }

    /// The constant's index in the pool, if this is one.
    #[inline]
    #[must_use]
    pub const fn as_const(self) -> Option<u16> {
        if self.0 & 0xc000 == Self::CONST { Some(self.0 & 0x3fff) } else { None }
    }

    /// True for [`Val::NONE`].
    #[inline]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0xffff
    }
}

impl std::fmt::Debug for Val {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.as_slot(), self.as_temp(), self.as_const()) {
            (Some(i), ..) => write!(f, "s{i}"),
            (_, Some(i), _) => write!(f, "t{i}"),
            (.., Some(i)) => write!(f, "c{i}"),
            _ => f.write_str("-"),
        }
    }
}

/// Opcode. `dst`, `a`, `b`, `c`, `sub`, `aux` and `flags` are the fields of [`Op`]; `ty` is its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    // Structure and control flow.
    /// A guest instruction begins. `aux`: its byte offset from the block's page base; `sub`: its length in bytes.
    Insn,
    /// Label `aux` of the block stands here. The architectural state is in the slots; no temporary lives.
    Label,
    /// If `cond(sub)(a, b)` in type `ty` (i32, i64): goes to label `aux`.
    Br,
    /// Goes to label `aux`.
    Jmp,
    /// Goes to the guest address in `a`. `flags`: [`flags::CALL`], [`flags::RET`] as hints.
    JmpInd,
    /// Leaves the block to page base + `aux` through the dispatcher, which looks at the mode again.
    Exit,
    /// `dst` = helper `aux`(`a`, `b`, `c`). Absent operands are zero, `dst` may be absent. The helper may
    /// read and write every slot, raise an exception, or leave the block.
    Helper,
    /// Raises exception `aux` with value `a` (absent: zero) at the current instruction.
    Trap,
    /// `dst` = page base + `aux` (the block's page base is known only when it runs).
    PcRel,

    // Integers; i32 and i64 unless said otherwise.
    /// `dst` = `a`.
    Mov,
    /// `dst` = `a` + `b`.
    Add,
    /// `dst` = `a` - `b`.
    Sub,
    /// `dst` = (`a` << `aux`) + `b`, `aux` in 1..=3.
    ShlAdd,
    /// `dst` = `a` & `b`.
    And,
    /// `dst` = `a` | `b`.
    Or,
    /// `dst` = `a` ^ `b`.
    Xor,
    /// `dst` = `a` & !`b`.
    AndNot,
    /// `dst` = `a` | !`b`.
    OrNot,
    /// `dst` = !(`a` ^ `b`).
    XorNot,
    /// `dst` = `a` << (`b` mod width).
    Shl,
    /// Logical shift right by `b` mod width.
    Shr,
    /// Arithmetic shift right by `b` mod width.
    Sar,
    /// Rotate left by `b` mod width.
    Rotl,
    /// Rotate right by `b` mod width.
    Rotr,
    /// Low half of the product.
    Mul,
    /// High half of the signed product (i64).
    MulHiS,
    /// High half of the unsigned product (i64).
    MulHiU,
    /// High half of signed `a` times unsigned `b` (i64).
    MulHiSU,
    /// Signed quotient, toward zero; all ones for a zero divisor; the minimum for minimum / -1.
    DivS,
    /// Unsigned quotient; all ones for a zero divisor.
    DivU,
    /// Signed remainder; `a` for a zero divisor; 0 for minimum % -1.
    RemS,
    /// Unsigned remainder; `a` for a zero divisor.
    RemU,
    /// Signed minimum.
    MinS,
    /// Unsigned minimum.
    MinU,
    /// Signed maximum.
    MaxS,
    /// Unsigned maximum.
    MaxU,
    /// `dst` = 1 if `cond(sub)(a, b)`, else 0.
    SetCond,
    /// `dst` = `c` != 0 ? `a` : `b` (i64).
    Select,
    /// Sign-extends the low 8 bits to 64.
    Sext8,
    /// Sign-extends the low 16 bits to 64.
    Sext16,
    /// Sign-extends the low 32 bits to 64.
    Sext32,
    /// Zero-extends the low 8 bits.
    Zext8,
    /// Zero-extends the low 16 bits.
    Zext16,
    /// Zero-extends the low 32 bits.
    Zext32,
    /// Leading zeros; the width for zero.
    Clz,
    /// Trailing zeros; the width for zero.
    Ctz,
    /// Set bits.
    Popcnt,
    /// Bytes in reverse order.
    Bswap,
    /// Every byte becomes 0xff unless it is 0.
    OrBytes,
    /// Bits of each byte in reverse order.
    BitRev8,

    // Memory. The address is `a` + `aux` (wrapping at 64 bits), a guest virtual address.
    /// `dst` = memory; i8..i64 (with [`flags::SEXT`], else zero-extended), v128.
    Load,
    /// memory = `b`; i8..i64, v128.
    Store,
    /// `dst` = old memory; memory = `AmoOp(sub)`(old, `b`), atomically. `aux` is 0.
    Amo,
    /// `dst` = old memory; if it equals `b`, memory = `c`; atomically. `aux` is 0.
    Cas,
    /// `dst` = memory, and the address is reserved. `aux` is 0.
    LoadReserved,
    /// If the reservation holds: memory = `b` and `dst` = 0; else `dst` = 1. It is gone either way.
    StoreCond,
    /// Orders memory accesses. `aux` bit 0: a full barrier (earlier stores before later loads) is needed.
    Fence,

    // Floating point: f16, f32, f64. Exceptions accumulate in the floating point flags. Arithmetic rounds by
    // `Round(sub)`. NaN results are the ISA's default NaN.
    /// Sum.
    FAdd,
    /// Difference.
    FSub,
    /// Product.
    FMul,
    /// Quotient.
    FDiv,
    /// Square root of `a`.
    FSqrt,
    /// ±(`a` * `b`) ± `c` with one rounding; [`flags::NEG_PRODUCT`], [`flags::NEG_ADDEND`]. Infinity times zero
    /// is invalid even if `c` is a quiet NaN (where x86's instructions raise nothing).
    FMulAdd,
    /// Minimum: the other operand for one NaN, -0 < +0; a signalling NaN raises invalid.
    FMin,
    /// Maximum, likewise.
    FMax,
    /// As [`Code::FMin`], but NaN if either is NaN.
    FMinNan,
    /// As [`Code::FMax`], but NaN if either is NaN.
    FMaxNan,
    /// `dst` = 1 if `FpCond(sub)(a, b)`, else 0.
    FCmp,
    /// Converts to type `ty` from float type `Ty(aux)`.
    FCvtFF,
    /// Converts float `a` of type `Ty(aux)` to integer type `ty` (i32, i64), signed with [`flags::SIGNED`];
    /// saturates and raises invalid out of range; NaN gives the maximum. An i32 result is zero-extended.
    FCvtFI,
    /// Converts integer `a` of type `Ty(aux)` (i32, i64), signed with [`flags::SIGNED`], to float `ty`.
    FCvtIF,
    /// Rounds to an integral value in the same type; raises inexact only with [`flags::EXACT`].
    FRound,
    /// `dst` = `a` with all bits above `ty`'s width set (f16, f32).
    NanBox,
    /// `dst` = low bits of `a` if all bits above `ty`'s width are set, else the default NaN of `ty`.
    NanUnbox,
    /// `dst` = the accumulated flags: bit 4 invalid, 3 divide by zero, 2 overflow, 1 underflow, 0 inexact.
    FpFlagsGet,
    /// The accumulated flags = `a`.
    FpFlagsSet,

    // Vectors of 128 bits (`ty` is v128); lanes by `Lane(flags)`.
    /// `dst` = `VecOp(sub)`(`a`, `b`) lane by lane.
    VBin,
    /// `dst` = integer `a` in every lane.
    VSplat,
    /// Integer `dst` = lane `aux` of `a`, zero-extended.
    VExtract,
    /// `dst` = `a` with lane `aux` replaced by integer `b`.
    VInsert,
}

impl Code {
    /// All opcodes, by value.
    pub const ALL: &'static [Code] = &[
        Code::Insn,
        Code::Label,
        Code::Br,
        Code::Jmp,
        Code::JmpInd,
        Code::Exit,
        Code::Helper,
        Code::Trap,
        Code::PcRel,
        Code::Mov,
        Code::Add,
        Code::Sub,
        Code::ShlAdd,
        Code::And,
        Code::Or,
        Code::Xor,
        Code::AndNot,
        Code::OrNot,
        Code::XorNot,
        Code::Shl,
        Code::Shr,
        Code::Sar,
        Code::Rotl,
        Code::Rotr,
        Code::Mul,
        Code::MulHiS,
        Code::MulHiU,
        Code::MulHiSU,
        Code::DivS,
        Code::DivU,
        Code::RemS,
        Code::RemU,
        Code::MinS,
        Code::MinU,
        Code::MaxS,
        Code::MaxU,
        Code::SetCond,
        Code::Select,
        Code::Sext8,
        Code::Sext16,
        Code::Sext32,
        Code::Zext8,
        Code::Zext16,
        Code::Zext32,
        Code::Clz,
        Code::Ctz,
        Code::Popcnt,
        Code::Bswap,
        Code::OrBytes,
        Code::BitRev8,
        Code::Load,
        Code::Store,
        Code::Amo,
        Code::Cas,
        Code::LoadReserved,
        Code::StoreCond,
        Code::Fence,
        Code::FAdd,
        Code::FSub,
        Code::FMul,
        Code::FDiv,
        Code::FSqrt,
        Code::FMulAdd,
        Code::FMin,
        Code::FMax,
        Code::FMinNan,
        Code::FMaxNan,
        Code::FCmp,
        Code::FCvtFF,
        Code::FCvtFI,
        Code::FCvtIF,
        Code::FRound,
        Code::NanBox,
        Code::NanUnbox,
        Code::FpFlagsGet,
        Code::FpFlagsSet,
        Code::VBin,
        Code::VSplat,
        Code::VExtract,
        Code::VInsert,
    ];

    /// The opcode with this value.
    #[must_use]
    pub fn from_u8(v: u8) -> Option<Self> {
        Self::ALL.get(usize::from(v)).copied()
    }
}

impl Code {
    /// How many of `a`, `b` and `c` it reads. Those of a [`Code::Helper`] and a [`Code::Trap`] may be absent.
    #[inline]
    #[must_use]
    pub const fn operands(self) -> u32 {
        use Code::*;
        match self {
            Insn | Label | Jmp | Exit | PcRel | Fence | FpFlagsGet => 0,
            JmpInd | Trap | Mov | Sext8 | Sext16 | Sext32 | Zext8 | Zext16 | Zext32 | Clz | Ctz | Popcnt
            | Bswap | OrBytes | BitRev8 | Load | LoadReserved | FSqrt | FCvtFF | FCvtFI | FCvtIF | FRound
            | NanBox | NanUnbox | FpFlagsSet | VSplat | VExtract => 1,
            Helper | Select | Cas | FMulAdd => 3,
            _ => 2,
        }
    }

    /// It always leaves the straight line.
    #[inline]
    #[must_use]
    pub const fn leaves(self) -> bool {
        matches!(self, Code::Jmp | Code::JmpInd | Code::Exit | Code::Trap)
    }

    /// It accesses memory, or orders accesses.
    #[inline]
    #[must_use]
    pub const fn is_memory(self) -> bool {
        Code::Load as u8 <= self as u8 && self as u8 <= Code::Fence as u8
    }

    /// It is a floating point operation.
    #[inline]
    #[must_use]
    pub const fn is_float(self) -> bool {
        Code::FAdd as u8 <= self as u8 && self as u8 <= Code::FpFlagsSet as u8
    }

    /// It is a vector operation.
    #[inline]
    #[must_use]
    pub const fn is_vector(self) -> bool {
        Code::VBin as u8 <= self as u8
    }
}

/// Bits of [`Op::flags`].
pub mod flags {
    /// A load, AMO or reservation sign-extends to 64 bits.
    pub const SEXT: u8 = 1;
    /// A memory access must be naturally aligned, or raises the ISA's misaligned exception.
    pub const ALIGNED: u8 = 2;
    /// A memory access acquires.
    pub const ACQUIRE: u8 = 4;
    /// A memory access releases.
    pub const RELEASE: u8 = 8;
    /// A jump is a call.
    pub const CALL: u8 = 1;
    /// A jump is a return.
    pub const RET: u8 = 2;
    /// The product of a fused multiply-add is negated.
    pub const NEG_PRODUCT: u8 = 1;
    /// The addend of a fused multiply-add is negated.
    pub const NEG_ADDEND: u8 = 2;
    /// An integer conversion is signed.
    pub const SIGNED: u8 = 1;
    /// A rounding to integral raises inexact.
    pub const EXACT: u8 = 1;
}

macro_rules! sub_enum {
    ($(#[$m:meta])* $name:ident { $($v:ident),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum $name { $($v),+ }

        impl $name {
            /// All of them, by value.
            pub const ALL: &'static [$name] = &[$($name::$v),+];

            /// The one with this value.
            #[must_use]
            pub fn from_u8(v: u8) -> Option<Self> {
                Self::ALL.get(usize::from(v)).copied()
            }
        }
    };
}

sub_enum! {
    /// Integer comparison.
    Cond { Eq, Ne, LtS, GeS, LtU, GeU }
}
sub_enum! {
    /// Floating point comparison. False for NaN. `LtQuiet` and `LeQuiet` raise invalid for signalling NaNs
    /// only, as `Eq` does; `Lt` and `Le` for every NaN.
    FpCond { Eq, Lt, Le, LtQuiet, LeQuiet }
}
sub_enum! {
    /// Rounding: to nearest even, to zero, down, up, to nearest with ties away from zero.
    Round { NearestEven, ToZero, Down, Up, NearestAway }
}
sub_enum! {
    /// What an atomic memory operation does.
    AmoOp { Swap, Add, And, Or, Xor, MinS, MaxS, MinU, MaxU }
}
sub_enum! {
    /// Lane width of a vector operation.
    Lane { I8, I16, I32, I64 }
}
sub_enum! {
    /// What a vector operation does to each lane.
    VecOp { And, Or, Xor, AndNot, Add, Sub, Mul, CmpEq, CmpGtS, MinS, MinU, MaxS, MaxU }
}
impl Ty {
    /// All types, by value.
    pub const ALL: &'static [Ty] = &[Ty::I8, Ty::I16, Ty::I32, Ty::I64, Ty::F16, Ty::F32, Ty::F64, Ty::V128];

    /// The type with this value.
    #[must_use]
    pub fn from_u8(v: u8) -> Option<Self> {
        Self::ALL.get(usize::from(v)).copied()
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Op {
    /// Opcode.
    pub code: Code,
    /// Type.
    pub ty: Ty,
    /// Sub-operation: a [`Cond`], [`FpCond`], [`Round`], [`AmoOp`] or [`VecOp`], or a length.
    pub sub: u8,
    /// Bits of [`flags`], or a [`Lane`].
    pub flags: u8,
    /// Where the result goes: a slot or a temporary.
    pub dst: Val,
    /// First operand.
    pub a: Val,
    /// Second operand.
    pub b: Val,
    /// Third operand.
    pub c: Val,
    /// Displacement, label, offset, helper: see [`Code`].
    pub aux: i32,
}

const _: () = assert!(size_of::<Op>() == 16);

const _: () = {
    let mut i = 0;
    while i < Code::ALL.len() {
        assert!(Code::ALL[i] as usize == i, "Code::ALL is in order");
        i += 1;
    }
    assert!(Code::ALL.len() == Code::VInsert as usize + 1, "Code::ALL is complete");
};
