//! What vector instructions do. Where the operand called `b` comes from (vs1, an integer or floating point
//! register, an immediate), `funct3` says; `a` is vs2, always.

use plinth_ir::{Code, FpCond};

use crate::table::SignOp;

/// The lifter's and the helper's dispatch of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorSem {
    /// `vsetvli`, `vsetivli`, `vsetvl`.
    SetVl,
    /// A load; of elements or (if indexed) with indices of 1 << this bytes.
    Load(Memory, u8),
    /// A store, likewise.
    Store(Memory, u8),
    /// vd = op(a, b), element by element.
    Integer(Integer, Form),
    /// vd = a + b + mask, or a - b - mask.
    Carry {
        /// Subtracts.
        subtract: bool,
    },
    /// Mask vd = the carry or borrow out of it; without v0 if the instruction is not masked.
    CarryOut {
        /// Subtracts.
        subtract: bool,
    },
    /// vd = b where the mask is set, else a.
    Merge,
    /// vd = b.
    Move,
    /// Mask vd = compare(a, b).
    Compare(Compare),
    /// vd\[0\] = op(vs1\[0\], all of a); elements extended to twice the width if a sign is given.
    Reduce(Integer, Option<Sign>),
    /// Mask vd = op(vs2, vs1).
    Mask(MaskLogic),
    /// rd = how many bits of the mask are set.
    Count,
    /// rd = index of the first one, or -1.
    Find,
    /// Mask vd = elements up to the first one that is set.
    Prefix(MaskPrefix),
    /// vd = how many elements before this one are set.
    Iota,
    /// vd = index of the element.
    Index,
    /// vd = a, extended from a width that is smaller by 1 << this.
    Extend(u8, Sign),
    /// vd = a moved by some elements.
    Slide(Slide),
    /// vd = a\[b\].
    Gather,
    /// The same with 16-bit indices.
    Gather16,
    /// vd = elements of a that vs1 selects.
    Compress,
    /// rd = a\[0\].
    FirstToX,
    /// fd = a\[0\].
    FirstToF,
    /// vd\[0\] = b.
    FirstFrom,
    /// So many registers of vd = those of vs2.
    MoveWhole(u8),
    /// vd = op(a, b), rounded where the operation rounds.
    Float(Code, FloatForm),
    /// vd = ±(b * a) ± vd, or ±(b * vd) ± a.
    MulAdd {
        /// The product's sign is changed.
        negate_product: bool,
        /// The addend's sign is changed.
        negate_addend: bool,
        /// vd is added to the product, not multiplied.
        addend_is_vd: bool,
        /// vd is twice as wide as the factors.
        wide: bool,
    },
    /// vd = a with a sign from b.
    SignInject(SignOp),
    /// Mask vd = cond(a, b).
    FloatCompare {
        /// The condition.
        cond: FpCond,
        /// It is cond(b, a).
        swap: bool,
        /// It is the opposite.
        not: bool,
    },
    /// vd\[0\] = op(vs1\[0\], all of a in order); elements converted to twice the width, or not.
    FloatReduce(Code, bool),
    /// vd (first) = a (second).
    Convert(Number, Number, FloatForm, Conversion),
    /// vd = sqrt(a).
    SquareRoot,
    /// vd = an estimate of 1 / a or 1 / sqrt(a) to 7 bits.
    Estimate {
        /// Of the square root.
        square_root: bool,
    },
    /// vd = class of a.
    Classify,
}

/// How a load or store addresses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// One element after the other.
    Unit,
    /// The same, and only the first element may fault.
    FaultOnlyFirst,
    /// At multiples of rs2.
    Strided,
    /// At offsets in vs2.
    Indexed,
    /// Whole registers.
    Whole,
    /// A mask: as many bytes as it takes for vl bits.
    Mask,
}

/// Whether a number has a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sign {
    Signed,
    Unsigned,
}

/// Widths of an integer operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All operands have SEW.
    Same,
    /// vd has twice SEW, a and b are extended.
    Widen(Sign, Sign),
    /// vd and a have twice SEW, b is extended.
    WidenRight(Sign),
    /// a has twice SEW.
    Narrow,
}

/// Widths of a floating point operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatForm {
    /// All operands have SEW.
    Same,
    /// The same, and it is op(b, a).
    Reverse,
    /// vd has twice SEW.
    Widen,
    /// vd and a have twice SEW.
    WidenRight,
    /// a has twice SEW.
    Narrow,
}

/// What a conversion is from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// A float.
    Float,
    /// An integer.
    Integer(Sign),
}

/// How a conversion rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// As `frm` says.
    Dynamic,
    /// Toward zero.
    ToZero,
    /// To odd: what is inexact gets the neighbour whose last bit is 1.
    ToOdd,
}

/// Integer operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Integer {
    Add,
    Sub,
    SubReverse,
    MinU,
    Min,
    MaxU,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Sar,
    SatAddU,
    SatAdd,
    SatSubU,
    SatSub,
    SatMul,
    AverageAddU,
    AverageAdd,
    AverageSubU,
    AverageSub,
    RoundShr,
    RoundSar,
    /// Shift right with rounding and saturation to half the width.
    ClipU,
    Clip,
    DivU,
    Div,
    RemU,
    Rem,
    Mul,
    MulHighU,
    MulHigh,
    MulHighSU,
    /// b * vd + a.
    MulAdd,
    /// a - b * vd.
    MulSub,
    /// b * a + vd.
    Accumulate,
    /// vd - b * a.
    Decumulate,
}

impl Integer {
    /// True if vd is a source.
    #[must_use]
    pub const fn reads_vd(self) -> bool {
        matches!(self, Integer::MulAdd | Integer::MulSub | Integer::Accumulate | Integer::Decumulate)
    }
}

/// Integer comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    LtU,
    Lt,
    LeU,
    Le,
    GtU,
    Gt,
}

/// Operations on masks: vs2 op vs1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MaskLogic {
    And,
    AndNot,
    Or,
    OrNot,
    Xor,
    Nand,
    Nor,
    Xnor,
}

/// Which elements around the first one that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskPrefix {
    /// Those before it.
    Before,
    /// Those and itself.
    Including,
    /// Itself.
    Only,
}

/// Slides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slide {
    /// To higher indices by b.
    Up,
    /// To lower indices by b.
    Down,
    /// By one, b comes in.
    OneUp,
    /// By one, b comes in at the end.
    OneDown,
}
