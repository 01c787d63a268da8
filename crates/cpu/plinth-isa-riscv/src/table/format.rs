//! Where instruction formats keep their operands.

/// Where a register number stands in an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// Not in this format: the register is always this one.
    Fixed(u8),
    /// Five bits from this one.
    At5(u8),
    /// Three bits from this one: registers 8 to 15.
    At3(u8),
}

impl Reg {
    /// The register that instruction `bits` names.
    #[must_use]
    #[inline]
    pub const fn extract(self, bits: u32) -> u8 {
        match self {
            Reg::Fixed(r) => r,
            Reg::At5(lsb) => (bits >> lsb & 31) as u8,
            Reg::At3(lsb) => (bits >> lsb & 7) as u8 + 8,
        }
    }

    /// The bits that name `register`; `None` if they cannot.
    #[must_use]
    pub const fn insert(self, register: u8) -> Option<u32> {
        match self {
            Reg::Fixed(r) if r == register => Some(0),
            Reg::At5(lsb) if register < 32 => Some((register as u32) << lsb),
            Reg::At3(lsb) if register >= 8 && register < 16 => Some((register as u32 - 8) << lsb),
            _ => None,
        }
    }
}

/// A run of bits of an immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Lowest bit in the instruction.
    pub from: u8,
    /// How many bits.
    pub width: u8,
    /// Lowest bit in the immediate.
    pub to: u8,
}

/// An immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imm {
    /// Its runs of bits.
    pub pieces: &'static [Piece],
    /// How many bits it has if it is signed; 0: unsigned.
    pub signed: u8,
}

impl Imm {
    /// The immediate in instruction `bits`.
    #[must_use]
    #[inline]
    pub fn extract(self, bits: u32) -> i32 {
        let mut value = 0;
        for p in self.pieces {
            value |= (bits >> p.from & ((1u32 << p.width) - 1)) << p.to;
        }
        if self.signed == 0 {
            return value as i32;
        }
        let shift = 32 - u32::from(self.signed);
        ((value << shift) as i32) >> shift
    }

    /// The bits that hold it.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.pieces.iter().fold(0, |bits, p| bits | ((1 << p.width) - 1) << p.from)
    }

    /// The bits that hold `value`; `None` if they cannot.
    #[must_use]
    pub fn insert(self, value: i32) -> Option<u32> {
        let mut bits = 0;
        for p in self.pieces {
            bits |= (value as u32 >> p.to & ((1u32 << p.width) - 1)) << p.from;
        }
        (self.extract(bits) == value).then_some(bits)
    }
}

impl Format {
    /// The bits of which one must be set for [`Format::need`]; none if nothing is needed.
    #[must_use]
    pub fn needed(&self) -> u32 {
        let field = |reg| match reg {
            Reg::Fixed(_) => 0,
            Reg::At5(lsb) => 31 << lsb,
            Reg::At3(lsb) => 7 << lsb,
        };
        match self.need {
            Need::Nothing => 0,
            Need::Rd => field(self.rd),
            Need::Rs1 => field(self.rs1),
            Need::Rs2 => field(self.rs2),
            Need::Imm => self.imm.bits(),
        }
    }
}

/// What an encoding needs beyond its fixed bits; without it, it is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// `rd` is not `x0`.
    Rd,
    /// `rs1` is not `x0`.
    Rs1,
    /// `rs2` is not `x0`.
    Rs2,
    /// The immediate is not 0.
    Imm,
}

/// An operand format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Fixed bits of every instruction in this format. Compressed rows have masks of their own.
    pub mask: u32,
    /// Destination.
    pub rd: Reg,
    /// First source.
    pub rs1: Reg,
    /// Second source.
    pub rs2: Reg,
    /// Immediate.
    pub imm: Imm,
    /// What is needed.
    pub need: Need,
    /// Text of the operands. `d` `s` `t`: integer registers rd, rs1, rs2; `D` `S` `T` `R`: floating point
    /// registers rd, rs1, rs2, rs3; `i` `x`: the immediate, decimal or hexadecimal; `u`: bits 31 to 12 of it;
    /// `p`: pc + immediate; `m`: rounding mode unless dynamic; `P` `Q`: sets of a fence; `c`: CSR; `z`: the
    /// rs1 field as a number; `l`: the constant of `fli`; `v` `a` `b`: vector registers rd, rs1, rs2; `k`:
    /// the mask, if there is one; `o`: v0; `y`: vtype. Everything else stands for itself.
    pub text: &'static str,
}

const X0: Reg = Reg::Fixed(0);
const RD: Reg = Reg::At5(7);
const RS1: Reg = Reg::At5(15);
const RS2: Reg = Reg::At5(20);
const SP: Reg = Reg::Fixed(2);
/// Three-bit registers of the compressed formats, in bits 2 to 4 and 7 to 9.
const C2: Reg = Reg::At3(2);
const C7: Reg = Reg::At3(7);
/// Five-bit rs2 of the compressed formats.
const CRS2: Reg = Reg::At5(2);

const fn p(from: u8, width: u8, to: u8) -> Piece {
    Piece { from, width, to }
}
const fn signed(bits: u8, pieces: &'static [Piece]) -> Imm {
    Imm { pieces, signed: bits }
}
const fn unsigned(pieces: &'static [Piece]) -> Imm {
    Imm { pieces, signed: 0 }
}

const NO_IMM: Imm = unsigned(&[]);
const IMM_I: Imm = signed(12, &[p(20, 12, 0)]);
const IMM_S: Imm = signed(12, &[p(7, 5, 0), p(25, 7, 5)]);
const IMM_B: Imm = signed(13, &[p(8, 4, 1), p(25, 6, 5), p(7, 1, 11), p(31, 1, 12)]);
const IMM_U: Imm = signed(32, &[p(12, 20, 12)]);
const IMM_J: Imm = signed(21, &[p(21, 10, 1), p(20, 1, 11), p(12, 8, 12), p(31, 1, 20)]);
const IMM_CSR: Imm = unsigned(&[p(20, 12, 0)]);
const SHAMT6: Imm = unsigned(&[p(20, 6, 0)]);
const SHAMT5: Imm = unsigned(&[p(20, 5, 0)]);

const PLAIN: Format =
    Format { mask: u32::MAX, rd: X0, rs1: X0, rs2: X0, imm: NO_IMM, need: Need::Nothing, text: "" };

macro_rules! formats {
    ($($(#[$m:meta])* $name:ident { $($field:ident: $value:expr),* $(,)? })+) => {
        $($(#[$m])* pub const $name: Format = Format { $($field: $value,)* ..PLAIN };)+
    };
}

const M_R: u32 = 0xfe00_707f;
const M_I: u32 = 0x0000_707f;
const M_R2: u32 = 0xfff0_707f;
const M_V: u32 = 0xfc00_707f;
const SIMM5: Imm = signed(5, &[p(15, 5, 0)]);
const UIMM5: Imm = unsigned(&[p(15, 5, 0)]);

formats! {
    /// No operands.
    FIXED {}
    /// No operands, the fields for rd and rs1 ignored.
    FIXED_R2 { mask: M_R2 }
    /// No operands, the fields for them and the immediate ignored.
    FIXED_I { mask: M_I }
    /// rd, rs1, rs2.
    R { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "d,s,t" }
    /// rd, rs1.
    R2 { mask: M_R2, rd: RD, rs1: RS1, text: "d,s" }
    /// rd, rs1, immediate.
    I { mask: M_I, rd: RD, rs1: RS1, imm: IMM_I, text: "d,s,i" }
    /// rd, immediate(rs1).
    LOAD { mask: M_I, rd: RD, rs1: RS1, imm: IMM_I, text: "d,i(s)" }
    /// As [`LOAD`], to a floating point register.
    FLOAD { mask: M_I, rd: RD, rs1: RS1, imm: IMM_I, text: "D,i(s)" }
    /// rs2, immediate(rs1).
    STORE { mask: M_I, rs1: RS1, rs2: RS2, imm: IMM_S, text: "t,i(s)" }
    /// As [`STORE`], from a floating point register.
    FSTORE { mask: M_I, rs1: RS1, rs2: RS2, imm: IMM_S, text: "T,i(s)" }
    /// rd, rs1, shift of 6 bits.
    SHIFT6 { mask: 0xfc00_707f, rd: RD, rs1: RS1, imm: SHAMT6, text: "d,s,x" }
    /// rd, rs1, shift of 5 bits.
    SHIFT5 { mask: M_R, rd: RD, rs1: RS1, imm: SHAMT5, text: "d,s,x" }
    /// rs1, rs2, target.
    B { mask: M_I, rs1: RS1, rs2: RS2, imm: IMM_B, text: "s,t,p" }
    /// rd, upper immediate.
    U { mask: 0x7f, rd: RD, imm: IMM_U, text: "d,u" }
    /// rd, target.
    J { mask: 0x7f, rd: RD, imm: IMM_J, text: "d,p" }
    /// Fence.
    FENCE { mask: M_I, imm: unsigned(&[p(20, 8, 0)]), text: "P,Q" }
    /// rd, rs2, (rs1).
    AMO { mask: 0xf800_707f, rd: RD, rs1: RS1, rs2: RS2, text: "d,t,(s)" }
    /// rd, rs2, (rs1), the registers those of pairs: even.
    AMO_PAIR { mask: 0xf810_70ff, rd: RD, rs1: RS1, rs2: RS2, text: "d,t,(s)" }
    /// rd, (rs1).
    LR { mask: 0xf9f0_707f, rd: RD, rs1: RS1, text: "d,(s)" }
    /// rd, CSR, rs1.
    CSR { mask: M_I, rd: RD, rs1: RS1, imm: IMM_CSR, text: "d,c,s" }
    /// rd, CSR, small immediate in the field of rs1.
    CSR_IMM { mask: M_I, rd: RD, imm: IMM_CSR, text: "d,c,z" }
    /// rs1, rs2.
    SFENCE { mask: 0xfe00_7fff, rs1: RS1, rs2: RS2, text: "s,t" }
    /// (rs1).
    CBO { mask: 0xfff0_7fff, rs1: RS1, text: "(s)" }
    /// immediate(rs1), the low five bits of the immediate zero.
    PREFETCH { mask: 0x01f0_7fff, rs1: RS1, imm: signed(12, &[p(25, 7, 5)]), text: "i(s)" }
    /// May-be-operation with one source.
    MOP_R { mask: 0xb3c0_707f, rd: RD, rs1: RS1, text: "d,s" }
    /// May-be-operation with two sources.
    MOP_RR { mask: 0xb200_707f, rd: RD, rs1: RS1, rs2: RS2, text: "d,s,t" }

    /// fd, fs1, fs2, rounding.
    F3 { mask: 0xfe00_007f, rd: RD, rs1: RS1, rs2: RS2, text: "D,S,Tm" }
    /// fd, fs1, fs2, fs3, rounding.
    F4 { mask: 0x0600_007f, rd: RD, rs1: RS1, rs2: RS2, text: "D,S,T,Rm" }
    /// fd, fs1, fs2.
    F3_EXACT { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "D,S,T" }
    /// rd, fs1, fs2.
    FCMP { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "d,S,T" }
    /// fd, fs1, rounding.
    F2 { mask: 0xfff0_007f, rd: RD, rs1: RS1, text: "D,Sm" }
    /// rd, fs1, rounding.
    F_TO_X { mask: 0xfff0_007f, rd: RD, rs1: RS1, text: "d,Sm" }
    /// fd, rs1, rounding.
    X_TO_F { mask: 0xfff0_007f, rd: RD, rs1: RS1, text: "D,sm" }
    /// rd, fs1.
    F_TO_X_EXACT { mask: M_R2, rd: RD, rs1: RS1, text: "d,S" }
    /// fd, rs1.
    X_TO_F_EXACT { mask: M_R2, rd: RD, rs1: RS1, text: "D,s" }
    /// fd, number of a constant.
    FLI { mask: M_R2, rd: RD, imm: unsigned(&[p(15, 5, 0)]), text: "D,l" }

    /// rd, AVL in rs1, vtype.
    V_SETVLI { mask: 0x8000_707f, rd: RD, rs1: RS1, imm: unsigned(&[p(20, 11, 0)]), text: "d,s,y" }
    /// rd, AVL in the field of rs1, vtype.
    V_SETVLII { mask: 0xc000_707f, rd: RD, imm: unsigned(&[p(20, 10, 0)]), text: "d,z,y" }
    /// rd, AVL in rs1, vtype in rs2.
    V_SETVL { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "d,s,t" }
    /// vd, (rs1), the number of fields in bits 29 to 31.
    V_LOAD { mask: 0x1df0_707f, rd: RD, rs1: RS1, text: "v,(s)k" }
    /// vd, (rs1), rs2.
    V_LOAD_STRIDED { mask: 0x1c00_707f, rd: RD, rs1: RS1, rs2: RS2, text: "v,(s),tk" }
    /// vd, (rs1), vs2.
    V_LOAD_INDEXED { mask: 0x1c00_707f, rd: RD, rs1: RS1, rs2: RS2, text: "v,(s),bk" }
    /// vd, (rs1), nothing else.
    V_LOAD_WHOLE { mask: M_R2, rd: RD, rs1: RS1, text: "v,(s)" }
    /// vd, vs2, vs1.
    V_VV { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,ak" }
    /// vd, vs2, rs1.
    V_VX { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,sk" }
    /// vd, vs2, fs1.
    V_VF { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,Sk" }
    /// vd, vs2, immediate.
    V_VI { mask: M_V, rd: RD, rs2: RS2, imm: SIMM5, text: "v,b,ik" }
    /// vd, vs2, unsigned immediate.
    V_VU { mask: M_V, rd: RD, rs2: RS2, imm: UIMM5, text: "v,b,ik" }
    /// vd, vs1, vs2; vd is a source too.
    V_ACC { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,a,bk" }
    /// vd, rs1, vs2, likewise.
    V_ACC_X { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,s,bk" }
    /// vd, fs1, vs2, likewise.
    V_ACC_F { mask: M_V, rd: RD, rs1: RS1, rs2: RS2, text: "v,S,bk" }
    /// vd, vs2, vs1, v0.
    V_CARRY { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,a,o" }
    /// vd, vs2, rs1, v0.
    V_CARRY_X { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,s,o" }
    /// vd, vs2, immediate, v0.
    V_CARRY_I { mask: M_R, rd: RD, rs2: RS2, imm: SIMM5, text: "v,b,i,o" }
    /// vd, vs2, fs1, v0.
    V_MERGE_F { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,S,o" }
    /// vd, vs2, vs1, never masked.
    V_PLAIN { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,a" }
    /// vd, vs2, rs1, never masked.
    V_PLAIN_X { mask: M_R, rd: RD, rs1: RS1, rs2: RS2, text: "v,b,s" }
    /// vd, vs2, immediate, never masked.
    V_PLAIN_I { mask: M_R, rd: RD, rs2: RS2, imm: SIMM5, text: "v,b,i" }
    /// vd, vs1.
    V_FROM_V { mask: M_R2, rd: RD, rs1: RS1, text: "v,a" }
    /// vd, rs1.
    V_FROM_X { mask: M_R2, rd: RD, rs1: RS1, text: "v,s" }
    /// vd, fs1.
    V_FROM_F { mask: M_R2, rd: RD, rs1: RS1, text: "v,S" }
    /// vd, immediate.
    V_FROM_I { mask: M_R2, rd: RD, imm: SIMM5, text: "v,i" }
    /// vd, vs2, what selects the instruction in the field of rs1.
    V_UNARY { mask: 0xfc0f_f07f, rd: RD, rs2: RS2, text: "v,bk" }
    /// vd.
    V_INDEX { mask: 0xfdff_f07f, rd: RD, text: "vk" }
    /// rd, vs2, never masked.
    V_TO_X { mask: 0xfe0f_f07f, rd: RD, rs2: RS2, text: "d,b" }
    /// rd, vs2.
    V_TO_X_MASKED { mask: 0xfc0f_f07f, rd: RD, rs2: RS2, text: "d,bk" }
    /// fd, vs2.
    V_TO_F { mask: 0xfe0f_f07f, rd: RD, rs2: RS2, text: "D,b" }
    /// vd, vs2, how many in the field of rs1.
    V_WHOLE { mask: 0xfe0f_f07f, rd: RD, rs2: RS2, text: "v,b" }

    /// rd', sp, immediate.
    C_ADDI4SPN { rd: C2, rs1: SP, imm: unsigned(&[p(11, 2, 4), p(7, 4, 6), p(6, 1, 2), p(5, 1, 3)]),
        need: Need::Imm, text: "d,s,i" }
    /// rd', immediate(rs1'), 4 bytes.
    C_LW { rd: C2, rs1: C7, imm: CIMM_W, text: "d,i(s)" }
    /// rd', immediate(rs1'), 8 bytes.
    C_LD { rd: C2, rs1: C7, imm: CIMM_D, text: "d,i(s)" }
    /// As [`C_LD`], to a floating point register.
    C_FLD { rd: C2, rs1: C7, imm: CIMM_D, text: "D,i(s)" }
    /// rd', immediate(rs1'), 1 byte.
    C_LB { rd: C2, rs1: C7, imm: CIMM_B, text: "d,i(s)" }
    /// rd', immediate(rs1'), 2 bytes.
    C_LH { rd: C2, rs1: C7, imm: CIMM_H, text: "d,i(s)" }
    /// rs2', immediate(rs1'), 4 bytes.
    C_SW { rs2: C2, rs1: C7, imm: CIMM_W, text: "t,i(s)" }
    /// rs2', immediate(rs1'), 8 bytes.
    C_SD { rs2: C2, rs1: C7, imm: CIMM_D, text: "t,i(s)" }
    /// As [`C_SD`], from a floating point register.
    C_FSD { rs2: C2, rs1: C7, imm: CIMM_D, text: "T,i(s)" }
    /// rs2', immediate(rs1'), 1 byte.
    C_SB { rs2: C2, rs1: C7, imm: CIMM_B, text: "t,i(s)" }
    /// rs2', immediate(rs1'), 2 bytes.
    C_SH { rs2: C2, rs1: C7, imm: CIMM_H, text: "t,i(s)" }
    /// `c.nop`, with the immediate of a hint.
    C_NOP { imm: CIMM_6, text: "" }
    /// rd, immediate; rd is a source too.
    C_ADDI { rd: RD, rs1: RD, imm: CIMM_6, text: "d,i" }
    /// As [`C_ADDI`]; not for x0.
    C_ADDIW { rd: RD, rs1: RD, imm: CIMM_6, need: Need::Rd, text: "d,i" }
    /// rd, immediate.
    C_LI { rd: RD, imm: CIMM_6, text: "d,i" }
    /// sp, immediate.
    C_ADDI16SP { rd: SP, rs1: SP, need: Need::Imm, text: "d,i",
        imm: signed(10, &[p(6, 1, 4), p(2, 1, 5), p(5, 1, 6), p(3, 2, 7), p(12, 1, 9)]) }
    /// rd, upper immediate.
    C_LUI { rd: RD, imm: signed(18, &[p(2, 5, 12), p(12, 1, 17)]), need: Need::Imm, text: "d,u" }
    /// rd', shift.
    C_SHIFT { rd: C7, rs1: C7, imm: CIMM_SHIFT, text: "d,x" }
    /// rd', immediate.
    C_ANDI { rd: C7, rs1: C7, imm: CIMM_6, text: "d,i" }
    /// rd', rs2'; rd' is a source too.
    C_ARITH { rd: C7, rs1: C7, rs2: C2, text: "d,t" }
    /// rd', which is the source too.
    C_UNARY { rd: C7, rs1: C7, text: "d" }
    /// Target.
    C_J { text: "p", imm: signed(12, &[p(3, 3, 1), p(11, 1, 4), p(2, 1, 5), p(7, 1, 6), p(6, 1, 7),
        p(9, 2, 8), p(8, 1, 10), p(12, 1, 11)]) }
    /// rs1', target.
    C_B { rs1: C7, text: "s,p",
        imm: signed(9, &[p(3, 2, 1), p(10, 2, 3), p(2, 1, 5), p(5, 2, 6), p(12, 1, 8)]) }
    /// rd, shift; rd is the source too.
    C_SLLI { rd: RD, rs1: RD, imm: CIMM_SHIFT, text: "d,x" }
    /// rd, immediate(sp), 4 bytes.
    C_LWSP { rd: RD, rs1: SP, imm: unsigned(&[p(4, 3, 2), p(12, 1, 5), p(2, 2, 6)]), need: Need::Rd,
        text: "d,i(s)" }
    /// rd, immediate(sp), 8 bytes.
    C_LDSP { rd: RD, rs1: SP, imm: CIMM_DSP, need: Need::Rd, text: "d,i(s)" }
    /// As [`C_LDSP`], to a floating point register.
    C_FLDSP { rd: RD, rs1: SP, imm: CIMM_DSP, text: "D,i(s)" }
    /// rs2, immediate(sp), 4 bytes.
    C_SWSP { rs1: SP, rs2: CRS2, imm: unsigned(&[p(9, 4, 2), p(7, 2, 6)]), text: "t,i(s)" }
    /// rs2, immediate(sp), 8 bytes.
    C_SDSP { rs1: SP, rs2: CRS2, imm: CIMM_SDSP, text: "t,i(s)" }
    /// As [`C_SDSP`], from a floating point register.
    C_FSDSP { rs1: SP, rs2: CRS2, imm: CIMM_SDSP, text: "T,i(s)" }
    /// rs1.
    C_JR { rs1: RD, need: Need::Rs1, text: "s" }
    /// rs1; the link goes to ra.
    C_JALR { rd: Reg::Fixed(1), rs1: RD, need: Need::Rs1, text: "s" }
    /// rd, rs2.
    C_MV { rd: RD, rs2: CRS2, need: Need::Rs2, text: "d,t" }
    /// rd, rs2; rd is a source too.
    C_ADD { rd: RD, rs1: RD, rs2: CRS2, need: Need::Rs2, text: "d,t" }
}

const CIMM_W: Imm = unsigned(&[p(10, 3, 3), p(6, 1, 2), p(5, 1, 6)]);
const CIMM_D: Imm = unsigned(&[p(10, 3, 3), p(5, 2, 6)]);
const CIMM_B: Imm = unsigned(&[p(6, 1, 0), p(5, 1, 1)]);
const CIMM_H: Imm = unsigned(&[p(5, 1, 1)]);
const CIMM_6: Imm = signed(6, &[p(2, 5, 0), p(12, 1, 5)]);
const CIMM_SHIFT: Imm = unsigned(&[p(2, 5, 0), p(12, 1, 5)]);
const CIMM_DSP: Imm = unsigned(&[p(5, 2, 3), p(12, 1, 5), p(2, 3, 6)]);
const CIMM_SDSP: Imm = unsigned(&[p(10, 3, 3), p(7, 3, 6)]);
