//! What each opcode looks like: one table for the text form and the verifier.

use crate::op::{AmoOp, Code, Cond, FpCond, Lane, Op, Round, Ty, Val, VecOp};

/// A set of types.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Types(u8);

impl Types {
    const fn of(types: &[Ty]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < types.len() {
            bits |= 1 << types[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    pub(crate) fn contains(self, ty: Ty) -> bool {
        self.0 & (1 << ty as u8) != 0
    }

    /// The type, if there is only one: the text form leaves it out.
    pub(crate) fn only(self) -> Option<Ty> {
        if self.0.is_power_of_two() { Ty::from_u8(self.0.trailing_zeros() as u8) } else { None }
    }
}

const I64: Types = Types::of(&[Ty::I64]);
const INT: Types = Types::of(&[Ty::I32, Ty::I64]);
const MEMORY: Types = Types::of(&[Ty::I8, Ty::I16, Ty::I32, Ty::I64]);
const ANY_MEMORY: Types = Types::of(&[Ty::I8, Ty::I16, Ty::I32, Ty::I64, Ty::V128]);
const FLOAT: Types = Types::of(&[Ty::F16, Ty::F32, Ty::F64]);
const BOXED: Types = Types::of(&[Ty::F16, Ty::F32]);
const V128: Types = Types::of(&[Ty::V128]);

/// What `sub` holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sub {
    Zero,
    /// Length of an instruction.
    Len,
    Cond,
    FpCond,
    Round,
    Amo,
    Vec,
}

const CONDS: &[&str] = &["eq", "ne", "lts", "ges", "ltu", "geu"];
const FP_CONDS: &[&str] = &["eq", "lt", "le", "ltq", "leq"];
const ROUNDS: &[&str] = &["rne", "rtz", "rdn", "rup", "rna"];
const AMOS: &[&str] = &["swap", "add", "and", "or", "xor", "mins", "maxs", "minu", "maxu"];
const VECS: &[&str] =
    &["and", "or", "xor", "andnot", "add", "sub", "mul", "cmpeq", "cmpgts", "mins", "minu", "maxs", "maxu"];
/// Names of lanes.
pub(crate) const LANES: &[&str] = &["i8", "i16", "i32", "i64"];
/// Names of types.
pub(crate) const TYPES: &[&str] = &["i8", "i16", "i32", "i64", "f16", "f32", "f64", "v128"];

const _: () = assert!(
    CONDS.len() == Cond::ALL.len()
        && FP_CONDS.len() == FpCond::ALL.len()
        && ROUNDS.len() == Round::ALL.len()
        && AMOS.len() == AmoOp::ALL.len()
        && VECS.len() == VecOp::ALL.len()
        && LANES.len() == Lane::ALL.len()
        && TYPES.len() == Ty::ALL.len()
);

impl Sub {
    /// Names of its values, by value; none if it has no names.
    pub(crate) const fn names(self) -> &'static [&'static str] {
        match self {
            Sub::Zero | Sub::Len => &[],
            Sub::Cond => CONDS,
            Sub::FpCond => FP_CONDS,
            Sub::Round => ROUNDS,
            Sub::Amo => AMOS,
            Sub::Vec => VECS,
        }
    }
}

/// What `dst` is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dst {
    None,
    Optional,
    Needed,
}

/// What stands behind the mnemonic, in the order of the text form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arg {
    A,
    B,
    C,
    /// `a`, `b` or `c` that may be absent.
    OptA,
    OptB,
    OptC,
    /// `aux` in decimal: a displacement, a lane, a shift count, an index.
    Aux,
    /// `aux` as an offset from the page base.
    Offset,
    /// `aux` as a label.
    Label,
}

impl Arg {
    /// The operand that it stands for.
    pub(crate) fn operand(self, op: &mut Op) -> Option<&mut Val> {
        match self {
            Arg::A | Arg::OptA => Some(&mut op.a),
            Arg::B | Arg::OptB => Some(&mut op.b),
            Arg::C | Arg::OptC => Some(&mut op.c),
            Arg::Aux | Arg::Offset | Arg::Label => None,
        }
    }

    pub(crate) const fn optional(self) -> bool {
        matches!(self, Arg::OptA | Arg::OptB | Arg::OptC)
    }
}

/// What an opcode looks like.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub name: &'static str,
    pub types: Types,
    /// What type `aux` holds.
    pub other: Option<Types>,
    pub sub: Sub,
    /// Names of the bits of `flags`; an empty name is a bit that must be clear.
    pub flags: &'static [&'static str],
    /// `flags` holds a lane instead.
    pub lane: bool,
    pub dst: Dst,
    pub args: &'static [Arg],
}

const NONE: Spec = Spec {
    name: "",
    types: I64,
    other: None,
    sub: Sub::Zero,
    flags: &[],
    lane: false,
    dst: Dst::None,
    args: &[],
};

const fn control(name: &'static str, args: &'static [Arg]) -> Spec {
    Spec { name, args, ..NONE }
}

const fn binary(name: &'static str, types: Types) -> Spec {
    Spec { name, types, dst: Dst::Needed, args: &[Arg::A, Arg::B], ..NONE }
}

const fn unary(name: &'static str, types: Types) -> Spec {
    Spec { name, types, dst: Dst::Needed, args: &[Arg::A], ..NONE }
}

const fn rounded(spec: Spec) -> Spec {
    Spec { types: FLOAT, sub: Sub::Round, ..spec }
}

const fn vector(name: &'static str, args: &'static [Arg]) -> Spec {
    Spec { name, types: V128, lane: true, dst: Dst::Needed, args, ..NONE }
}

const ACCESS: &[&str] = &["sx", "aligned", "acq", "rel"];
const STORE: &[&str] = &["", "aligned", "acq", "rel"];

/// The description of `code`.
pub(crate) const fn spec(code: Code) -> Spec {
    use Arg::{A, Aux, B, C, Label, Offset, OptA, OptB, OptC};
    match code {
        Code::Insn => Spec { sub: Sub::Len, ..control("insn", &[Offset]) },
        Code::Label => control("label", &[Label]),
        Code::Br => Spec { types: INT, sub: Sub::Cond, ..control("br", &[A, B, Label]) },
        Code::Jmp => control("jmp", &[Label]),
        Code::JmpInd => Spec { flags: &["call", "ret"], ..control("jmpind", &[A]) },
        Code::Exit => control("exit", &[Offset]),
        Code::Helper => Spec { dst: Dst::Optional, ..control("helper", &[Aux, OptA, OptB, OptC]) },
        Code::Trap => control("trap", &[Aux, OptA]),
        Code::PcRel => Spec { dst: Dst::Needed, ..control("pcrel", &[Offset]) },

        Code::Mov => unary("mov", INT),
        Code::Add => binary("add", INT),
        Code::Sub => binary("sub", INT),
        Code::ShlAdd => Spec { args: &[A, Aux, B], ..binary("shladd", INT) },
        Code::And => binary("and", INT),
        Code::Or => binary("or", INT),
        Code::Xor => binary("xor", INT),
        Code::AndNot => binary("andnot", INT),
        Code::OrNot => binary("ornot", INT),
        Code::XorNot => binary("xornot", INT),
        Code::Shl => binary("shl", INT),
        Code::Shr => binary("shr", INT),
        Code::Sar => binary("sar", INT),
        Code::Rotl => binary("rotl", INT),
        Code::Rotr => binary("rotr", INT),
        Code::Mul => binary("mul", INT),
        Code::MulHiS => binary("mulhs", I64),
        Code::MulHiU => binary("mulhu", I64),
        Code::MulHiSU => binary("mulhsu", I64),
        Code::DivS => binary("divs", INT),
        Code::DivU => binary("divu", INT),
        Code::RemS => binary("rems", INT),
        Code::RemU => binary("remu", INT),
        Code::MinS => binary("mins", INT),
        Code::MinU => binary("minu", INT),
        Code::MaxS => binary("maxs", INT),
        Code::MaxU => binary("maxu", INT),
        Code::SetCond => Spec { sub: Sub::Cond, ..binary("set", INT) },
        Code::Select => Spec { args: &[A, B, C], ..binary("select", I64) },
        Code::Sext8 => unary("sext8", I64),
        Code::Sext16 => unary("sext16", I64),
        Code::Sext32 => unary("sext32", I64),
        Code::Zext8 => unary("zext8", I64),
        Code::Zext16 => unary("zext16", I64),
        Code::Zext32 => unary("zext32", I64),
        Code::Clz => unary("clz", INT),
        Code::Ctz => unary("ctz", INT),
        Code::Popcnt => unary("popcnt", INT),
        Code::Bswap => unary("bswap", INT),
        Code::OrBytes => unary("orbytes", INT),
        Code::BitRev8 => unary("bitrev8", INT),

        Code::Load => Spec { flags: ACCESS, args: &[A, Aux], ..unary("load", ANY_MEMORY) },
        Code::Store => {
            Spec { flags: STORE, dst: Dst::None, args: &[A, Aux, B], ..unary("store", ANY_MEMORY) }
        }
        Code::Amo => Spec { sub: Sub::Amo, flags: ACCESS, ..binary("amo", MEMORY) },
        Code::Cas => Spec { flags: ACCESS, args: &[A, B, C], ..binary("cas", MEMORY) },
        Code::LoadReserved => Spec { flags: ACCESS, ..unary("lr", MEMORY) },
        Code::StoreCond => Spec { flags: STORE, ..binary("sc", MEMORY) },
        Code::Fence => control("fence", &[Aux]),

        Code::FAdd => rounded(binary("fadd", FLOAT)),
        Code::FSub => rounded(binary("fsub", FLOAT)),
        Code::FMul => rounded(binary("fmul", FLOAT)),
        Code::FDiv => rounded(binary("fdiv", FLOAT)),
        Code::FSqrt => rounded(unary("fsqrt", FLOAT)),
        Code::FMulAdd => {
            rounded(Spec { flags: &["negp", "nega"], args: &[A, B, C], ..binary("fmuladd", FLOAT) })
        }
        Code::FMin => binary("fmin", FLOAT),
        Code::FMax => binary("fmax", FLOAT),
        Code::FMinNan => binary("fminnan", FLOAT),
        Code::FMaxNan => binary("fmaxnan", FLOAT),
        Code::FCmp => Spec { sub: Sub::FpCond, ..binary("fcmp", FLOAT) },
        Code::FCvtFF => rounded(Spec { other: Some(FLOAT), ..unary("fcvtff", FLOAT) }),
        Code::FCvtFI => {
            Spec { other: Some(FLOAT), sub: Sub::Round, flags: &["signed"], ..unary("fcvtfi", INT) }
        }
        Code::FCvtIF => rounded(Spec { other: Some(INT), flags: &["signed"], ..unary("fcvtif", FLOAT) }),
        Code::FRound => rounded(Spec { flags: &["exact"], ..unary("fround", FLOAT) }),
        Code::NanBox => unary("nanbox", BOXED),
        Code::NanUnbox => unary("nanunbox", BOXED),
        Code::FpFlagsGet => Spec { dst: Dst::Needed, ..control("fpflagsget", &[]) },
        Code::FpFlagsSet => control("fpflagsset", &[A]),

        Code::VBin => Spec { sub: Sub::Vec, ..vector("vbin", &[A, B]) },
        Code::VSplat => vector("vsplat", &[A]),
        Code::VExtract => vector("vextract", &[A, Aux]),
        Code::VInsert => vector("vinsert", &[A, Aux, B]),
    }
}

/// Which of the destination, `a` and `b` are vectors.
pub(crate) const fn vectors(op: &Op) -> (bool, bool, bool) {
    match op.code {
        Code::VBin => (true, true, true),
        Code::VSplat => (true, false, false),
        Code::VExtract => (false, true, false),
        Code::VInsert => (true, true, false),
        Code::Load => (matches!(op.ty, Ty::V128), false, false),
        Code::Store => (false, false, matches!(op.ty, Ty::V128)),
        _ => (false, false, false),
    }
}
