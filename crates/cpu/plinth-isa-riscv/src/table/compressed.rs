//! Compressed instructions: C, Zcb, Zcmop. They have the semantics of the instructions they stand for.

use plinth_ir::{Code, Cond, Ty};

use super::format::{
    C_ADD, C_ADDI, C_ADDI4SPN, C_ADDI16SP, C_ADDIW, C_ANDI, C_ARITH, C_B, C_FLD, C_FLDSP, C_FSD, C_FSDSP,
    C_J, C_JALR, C_JR, C_LB, C_LD, C_LDSP, C_LH, C_LI, C_LUI, C_LW, C_LWSP, C_MV, C_NOP, C_SB, C_SD, C_SDSP,
    C_SH, C_SHIFT, C_SLLI, C_SW, C_SWSP, C_UNARY, FIXED,
};
use super::{Ext, Format, Row, Sem};

const fn c(name: &'static str, mask: u32, bits: u32, format: &'static Format, sem: Sem) -> Row {
    extension(Ext::C, name, mask, bits, format, sem)
}
const fn zcb(name: &'static str, mask: u32, bits: u32, format: &'static Format, sem: Sem) -> Row {
    extension(Ext::Zcb, name, mask, bits, format, sem)
}
const fn extension(
    ext: Ext,
    name: &'static str,
    mask: u32,
    bits: u32,
    format: &'static Format,
    sem: Sem,
) -> Row {
    assert!(bits & !mask == 0 && mask < 0x1_0000 && bits & 3 != 3);
    Row { name, ext, mask, bits, format, sem }
}

pub(super) static ROWS: &[Row] = &[
    // Quadrant 0.
    c("c.addi4spn", 0xe003, 0x0000, &C_ADDI4SPN, Sem::AluImm(Code::Add)),
    c("c.fld", 0xe003, 0x2000, &C_FLD, Sem::FLoad(Ty::F64)),
    c("c.lw", 0xe003, 0x4000, &C_LW, Sem::Load(Ty::I32, true)),
    c("c.ld", 0xe003, 0x6000, &C_LD, Sem::Load(Ty::I64, false)),
    zcb("c.lbu", 0xfc03, 0x8000, &C_LB, Sem::Load(Ty::I8, false)),
    zcb("c.lhu", 0xfc43, 0x8400, &C_LH, Sem::Load(Ty::I16, false)),
    zcb("c.lh", 0xfc43, 0x8440, &C_LH, Sem::Load(Ty::I16, true)),
    zcb("c.sb", 0xfc03, 0x8800, &C_SB, Sem::Store(Ty::I8)),
    zcb("c.sh", 0xfc43, 0x8c00, &C_SH, Sem::Store(Ty::I16)),
    c("c.fsd", 0xe003, 0xa000, &C_FSD, Sem::FStore(Ty::F64)),
    c("c.sw", 0xe003, 0xc000, &C_SW, Sem::Store(Ty::I32)),
    c("c.sd", 0xe003, 0xe000, &C_SD, Sem::Store(Ty::I64)),
    // Quadrant 1.
    c("c.nop", 0xef83, 0x0001, &C_NOP, Sem::Hint),
    c("c.addi", 0xe003, 0x0001, &C_ADDI, Sem::AluImm(Code::Add)),
    c("c.addiw", 0xe003, 0x2001, &C_ADDIW, Sem::AluImmW(Code::Add)),
    c("c.li", 0xe003, 0x4001, &C_LI, Sem::AluImm(Code::Add)),
    extension(Ext::Zcmop, "c.mop", 0xf8ff, 0x6081, &FIXED, Sem::Hint),
    c("c.addi16sp", 0xef83, 0x6101, &C_ADDI16SP, Sem::AluImm(Code::Add)),
    c("c.lui", 0xe003, 0x6001, &C_LUI, Sem::Lui),
    c("c.srli", 0xec03, 0x8001, &C_SHIFT, Sem::AluImm(Code::Shr)),
    c("c.srai", 0xec03, 0x8401, &C_SHIFT, Sem::AluImm(Code::Sar)),
    c("c.andi", 0xec03, 0x8801, &C_ANDI, Sem::AluImm(Code::And)),
    c("c.sub", 0xfc63, 0x8c01, &C_ARITH, Sem::Alu(Code::Sub)),
    c("c.xor", 0xfc63, 0x8c21, &C_ARITH, Sem::Alu(Code::Xor)),
    c("c.or", 0xfc63, 0x8c41, &C_ARITH, Sem::Alu(Code::Or)),
    c("c.and", 0xfc63, 0x8c61, &C_ARITH, Sem::Alu(Code::And)),
    c("c.subw", 0xfc63, 0x9c01, &C_ARITH, Sem::AluW(Code::Sub)),
    c("c.addw", 0xfc63, 0x9c21, &C_ARITH, Sem::AluW(Code::Add)),
    zcb("c.mul", 0xfc63, 0x9c41, &C_ARITH, Sem::Alu(Code::Mul)),
    zcb("c.zext.b", 0xfc7f, 0x9c61, &C_UNARY, Sem::Unary(Code::Zext8)),
    zcb("c.sext.b", 0xfc7f, 0x9c65, &C_UNARY, Sem::Unary(Code::Sext8)),
    zcb("c.zext.h", 0xfc7f, 0x9c69, &C_UNARY, Sem::Unary(Code::Zext16)),
    zcb("c.sext.h", 0xfc7f, 0x9c6d, &C_UNARY, Sem::Unary(Code::Sext16)),
    zcb("c.zext.w", 0xfc7f, 0x9c71, &C_UNARY, Sem::Unary(Code::Zext32)),
    // The format has no rs2: x0.
    zcb("c.not", 0xfc7f, 0x9c75, &C_UNARY, Sem::Alu(Code::XorNot)),
    c("c.j", 0xe003, 0xa001, &C_J, Sem::Jal),
    c("c.beqz", 0xe003, 0xc001, &C_B, Sem::Branch(Cond::Eq)),
    c("c.bnez", 0xe003, 0xe001, &C_B, Sem::Branch(Cond::Ne)),
    // Quadrant 2.
    c("c.slli", 0xe003, 0x0002, &C_SLLI, Sem::AluImm(Code::Shl)),
    c("c.fldsp", 0xe003, 0x2002, &C_FLDSP, Sem::FLoad(Ty::F64)),
    c("c.lwsp", 0xe003, 0x4002, &C_LWSP, Sem::Load(Ty::I32, true)),
    c("c.ldsp", 0xe003, 0x6002, &C_LDSP, Sem::Load(Ty::I64, false)),
    c("c.ebreak", 0xffff, 0x9002, &FIXED, Sem::Ebreak),
    c("c.jr", 0xf07f, 0x8002, &C_JR, Sem::Jalr),
    c("c.jalr", 0xf07f, 0x9002, &C_JALR, Sem::Jalr),
    c("c.mv", 0xf003, 0x8002, &C_MV, Sem::Alu(Code::Add)),
    c("c.add", 0xf003, 0x9002, &C_ADD, Sem::Alu(Code::Add)),
    c("c.fsdsp", 0xe003, 0xa002, &C_FSDSP, Sem::FStore(Ty::F64)),
    c("c.swsp", 0xe003, 0xc002, &C_SWSP, Sem::Store(Ty::I32)),
    c("c.sdsp", 0xe003, 0xe002, &C_SDSP, Sem::Store(Ty::I64)),
];
