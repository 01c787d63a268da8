//! The prepared form of a block.

use super::{Atomic, MemAccess, Site};
use crate::op::{Code, Cond, Lane, Ty, VecOp};
use crate::softfloat::FloatOp;

/// Calls `$then!` with the operations that the interpreter is specialized for:
/// - binary: micro-operation for two registers, for a register and an immediate, then opcode, type and
///   condition (`Eq` where there is none) in the IR;
/// - unary: micro-operation, opcode, type;
/// - branches: micro-operation, condition, type;
/// - loads: micro-operation, type, whether they sign-extend;
/// - stores: micro-operation, type.
macro_rules! with_tables {
    ($then:ident) => {
        $then! {
            binary {
                Add64 Add64I Add I64 Eq, Sub64 Sub64I Sub I64 Eq, Mul64 Mul64I Mul I64 Eq,
                And64 And64I And I64 Eq, Or64 Or64I Or I64 Eq, Xor64 Xor64I Xor I64 Eq,
                Shl64 Shl64I Shl I64 Eq, Shr64 Shr64I Shr I64 Eq, Sar64 Sar64I Sar I64 Eq,
                Add32 Add32I Add I32 Eq, Sub32 Sub32I Sub I32 Eq, Mul32 Mul32I Mul I32 Eq,
                And32 And32I And I32 Eq, Or32 Or32I Or I32 Eq, Xor32 Xor32I Xor I32 Eq,
                Shl32 Shl32I Shl I32 Eq, Shr32 Shr32I Shr I32 Eq, Sar32 Sar32I Sar I32 Eq,
                SetEq64 SetEq64I SetCond I64 Eq, SetNe64 SetNe64I SetCond I64 Ne,
                SetLtS64 SetLtS64I SetCond I64 LtS, SetGeS64 SetGeS64I SetCond I64 GeS,
                SetLtU64 SetLtU64I SetCond I64 LtU, SetGeU64 SetGeU64I SetCond I64 GeU,
                AndNot64 AndNot64I AndNot I64 Eq,
            }
            unary {
                Mov64 Mov I64, Mov32 Mov I32,
                Sext8 Sext8 I64, Sext16 Sext16 I64, Sext32 Sext32 I64,
                Zext8 Zext8 I64, Zext16 Zext16 I64, Zext32 Zext32 I64,
            }
            branches {
                BrEq64 Eq I64, BrNe64 Ne I64, BrLtS64 LtS I64,
                BrGeS64 GeS I64, BrLtU64 LtU I64, BrGeU64 GeU I64,
                BrEq32 Eq I32, BrNe32 Ne I32, BrLtS32 LtS I32,
                BrGeS32 GeS I32, BrLtU32 LtU I32, BrGeU32 GeU I32,
            }
            loads {
                Load8 I8 false, Load8S I8 true, Load16 I16 false, Load16S I16 true,
                Load32 I32 false, Load32S I32 true, Load64 I64 false,
            }
            stores { Store8 I8, Store16 I16, Store32 I32, Store64 I64, }
        }
    };
}
pub(super) use with_tables;

macro_rules! define {
    (
        binary { $($rr:ident $ri:ident $bc:ident $bt:ident $bs:ident,)* }
        unary { $($un:ident $uc:ident $ut:ident,)* }
        branches { $($br:ident $cc:ident $ct:ident,)* }
        loads { $($ld:ident $lt:ident $ls:literal,)* }
        stores { $($st:ident $tt:ident,)* }
    ) => {
        /// Opcode of a [`Micro`]; `w` are the machine's words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum MicroCode {
            $($rr, $ri,)* $($un,)* $($br,)* $($ld,)* $($st,)*
            /// w\[dst\] = immediate.
            Const,
            /// w\[dst\] = page base + immediate.
            PcRel,
            /// An operation of [`Program::rare`], whose index is the immediate.
            Rare,
            /// To the operation in the immediate's low half; the high half is the label's offset. So do
            /// branches.
            Jmp,
            /// Immediate: the hints.
            JmpInd,
            /// Immediate: the offset.
            Exit,
            /// Leaves to the offset in the immediate.
            Direct,
        }

        impl MicroCode {
            /// For two registers, and for a register and an immediate.
            pub(super) fn binary(code: Code, ty: Ty, cond: Option<Cond>) -> Option<(Self, Self)> {
                let cond = if code == Code::SetCond { cond? } else { Cond::Eq };
                match (code, ty, cond) {
                    $((Code::$bc, Ty::$bt, Cond::$bs) => Some((Self::$rr, Self::$ri)),)*
                    _ => None,
                }
            }

            pub(super) fn unary(code: Code, ty: Ty) -> Option<Self> {
                match (code, ty) {
                    $((Code::$uc, Ty::$ut) => Some(Self::$un),)*
                    _ => None,
                }
            }

            pub(super) fn branch(cond: Cond, ty: Ty) -> Option<Self> {
                match (cond, ty) {
                    $((Cond::$cc, Ty::$ct) => Some(Self::$br),)*
                    _ => None,
                }
            }

            pub(super) fn load(ty: Ty, signed: bool) -> Option<Self> {
                match (ty, signed && ty != Ty::I64) {
                    $((Ty::$lt, $ls) => Some(Self::$ld),)*
                    _ => None,
                }
            }

            pub(super) fn store(ty: Ty) -> Option<Self> {
                match ty {
                    $(Ty::$tt => Some(Self::$st),)*
                    _ => None,
                }
            }
        }
    };
}
with_tables!(define);

/// A prepared operation. `dst`, `a` and `b` are indices of words; what `imm` holds depends on the opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micro {
    pub code: MicroCode,
    pub dst: u16,
    pub a: u16,
    pub b: u16,
    pub imm: u64,
}

const _: () = assert!(size_of::<Micro>() == 16);

/// An operation that is dispatched a second time: one that takes long anyway, or is seldom. Operands that
/// [`Micro`] has no room for, by word.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rare {
    Int { code: Code, ty: Ty, sub: u8, c: u16 },
    ShlAdd { ty: Ty, shift: u64 },
    Float { op: FloatOp, c: u16 },
    FlagsGet,
    FlagsSet,
    LoadV { disp: u64, access: MemAccess },
    StoreV { disp: u64, access: MemAccess },
    Atomic { atomic: Atomic, access: MemAccess, c: u16 },
    Fence { full: bool },
    VBin { op: VecOp, lane: Lane },
    VSplat { lane: Lane },
    VExtract { lane: Lane, index: u32 },
    VInsert { lane: Lane, index: u32 },
    Helper { index: u32, c: u16, site: Site },
    Trap { exception: i32, site: Site },
}

impl Rare {
    /// The instruction of an operation that can stop; of others, nothing in particular.
    pub(super) fn site(&self) -> Site {
        match *self {
            Rare::LoadV { access, .. } | Rare::StoreV { access, .. } | Rare::Atomic { access, .. } => {
                access.site
            }
            Rare::Helper { site, .. } | Rare::Trap { site, .. } => site,
            _ => Site::default(),
        }
    }
}

/// Immediate of a load or store: displacement, flags, site.
pub(super) fn memory_imm(disp: i32, flags: u8, site: Site) -> u64 {
    u64::from(disp as u32) | u64::from(flags) << 32 | u64::from(site.offset) << 40 | u64::from(site.len) << 56
}

impl Micro {
    /// Displacement and access of a load or store of type `ty`.
    #[inline(always)]
    pub(super) fn memory(&self, ty: Ty) -> (u64, MemAccess) {
        let site = Site { offset: (self.imm >> 40) as u16, len: (self.imm >> 56) as u8 };
        (self.imm as i32 as u64, MemAccess { ty, flags: (self.imm >> 32) as u8, site })
    }

    /// Target and label offset of a branch.
    #[inline(always)]
    pub(super) fn target(&self) -> (usize, i32) {
        (self.imm as u32 as usize, (self.imm >> 32) as i32)
    }
}

/// Where a [`Program`] may be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub(super) u32);

/// A block prepared for the interpreter.
#[derive(Clone, Debug)]
pub struct Program {
    /// Operations. The last one leaves; targets of branches are in range.
    pub(super) micros: Vec<Micro>,
    pub(super) rare: Vec<Rare>,
    /// Offsets that it may be entered at, sorted.
    pub(super) entries: Vec<(i32, Entry)>,
    pub(super) default_nan: [u64; 3],
}

impl Program {
    /// The beginning.
    pub const START: Entry = Entry(0);

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.micros)
            + size_of_val(&*self.rare)
            + size_of_val(&*self.entries)
    }

    /// Where execution may begin for the guest code at `pc_off` from the page base, if there is a label.
    #[must_use]
    pub fn entry(&self, pc_off: i32) -> Option<Entry> {
        let i = self.entries.binary_search_by_key(&pc_off, |e| e.0).ok()?;
        Some(self.entries[i].1)
    }

    /// All offsets for which there is an [`Program::entry`], in ascending order.
    pub fn entry_offsets(&self) -> impl Iterator<Item = i32> {
        self.entries.iter().map(|e| e.0)
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.micros.capacity() * size_of::<Micro>()
            + self.rare.capacity() * size_of::<Rare>()
            + self.entries.capacity() * size_of::<(i32, Entry)>()
    }
}
