//! Integers, memory and control flow: I, M, A, Zba, Zbb, Zbc, Zbs, Zicond, Zacas.

use plinth_ir::{AmoOp, Code, Cond, Ty};

use super::format::{AMO, AMO_PAIR, B, I, J, LOAD, LR, R, R2, SHIFT5, SHIFT6, STORE, U};
use super::{Ext, Row, Sem, row};
use crate::helper::HelperId;

const fn op(name: &'static str, ext: Ext, bits: u32, code: Code) -> Row {
    row(name, ext, bits, &R, Sem::Alu(code))
}
const fn opw(name: &'static str, ext: Ext, bits: u32, code: Code) -> Row {
    row(name, ext, bits, &R, Sem::AluW(code))
}
const fn unary(name: &'static str, bits: u32, code: Code) -> Row {
    row(name, Ext::Zbb, bits, &R2, Sem::Unary(code))
}
const fn imm(name: &'static str, bits: u32, code: Code) -> Row {
    row(name, Ext::I, bits, &I, Sem::AluImm(code))
}
const fn load(name: &'static str, bits: u32, ty: Ty, sext: bool) -> Row {
    row(name, Ext::I, bits, &LOAD, Sem::Load(ty, sext))
}
const fn store(name: &'static str, bits: u32, ty: Ty) -> Row {
    row(name, Ext::I, bits, &STORE, Sem::Store(ty))
}
const fn branch(name: &'static str, bits: u32, cond: Cond) -> Row {
    row(name, Ext::I, bits, &B, Sem::Branch(cond))
}
const fn amo_w(name: &'static str, bits: u32, op: AmoOp) -> Row {
    row(name, Ext::A, bits | 0x202f, &AMO, Sem::Amo(op, Ty::I32))
}
const fn amo_d(name: &'static str, bits: u32, op: AmoOp) -> Row {
    row(name, Ext::A, bits | 0x302f, &AMO, Sem::Amo(op, Ty::I64))
}

pub(super) static ROWS: &[Row] = &[
    // What compiled code is made of comes first: the decoder searches in this order.
    imm("addi", 0x0000_0013, Code::Add),
    imm("andi", 0x0000_7013, Code::And),
    imm("ori", 0x0000_6013, Code::Or),
    imm("xori", 0x0000_4013, Code::Xor),
    row("slti", Ext::I, 0x0000_2013, &I, Sem::SetImm(Cond::LtS)),
    row("sltiu", Ext::I, 0x0000_3013, &I, Sem::SetImm(Cond::LtU)),
    row("slli", Ext::I, 0x0000_1013, &SHIFT6, Sem::AluImm(Code::Shl)),
    row("srli", Ext::I, 0x0000_5013, &SHIFT6, Sem::AluImm(Code::Shr)),
    row("srai", Ext::I, 0x4000_5013, &SHIFT6, Sem::AluImm(Code::Sar)),
    row("addiw", Ext::I, 0x0000_001b, &I, Sem::AluImmW(Code::Add)),
    row("slliw", Ext::I, 0x0000_101b, &SHIFT5, Sem::AluImmW(Code::Shl)),
    row("srliw", Ext::I, 0x0000_501b, &SHIFT5, Sem::AluImmW(Code::Shr)),
    row("sraiw", Ext::I, 0x4000_501b, &SHIFT5, Sem::AluImmW(Code::Sar)),
    load("lb", 0x0000_0003, Ty::I8, true),
    load("lh", 0x0000_1003, Ty::I16, true),
    load("lw", 0x0000_2003, Ty::I32, true),
    load("ld", 0x0000_3003, Ty::I64, false),
    load("lbu", 0x0000_4003, Ty::I8, false),
    load("lhu", 0x0000_5003, Ty::I16, false),
    load("lwu", 0x0000_6003, Ty::I32, false),
    store("sb", 0x0000_0023, Ty::I8),
    store("sh", 0x0000_1023, Ty::I16),
    store("sw", 0x0000_2023, Ty::I32),
    store("sd", 0x0000_3023, Ty::I64),
    branch("beq", 0x0000_0063, Cond::Eq),
    branch("bne", 0x0000_1063, Cond::Ne),
    branch("blt", 0x0000_4063, Cond::LtS),
    branch("bge", 0x0000_5063, Cond::GeS),
    branch("bltu", 0x0000_6063, Cond::LtU),
    branch("bgeu", 0x0000_7063, Cond::GeU),
    row("jal", Ext::I, 0x0000_006f, &J, Sem::Jal),
    row("jalr", Ext::I, 0x0000_0067, &LOAD, Sem::Jalr),
    row("lui", Ext::I, 0x0000_0037, &U, Sem::Lui),
    row("auipc", Ext::I, 0x0000_0017, &U, Sem::Auipc),
    op("add", Ext::I, 0x0000_0033, Code::Add),
    op("sub", Ext::I, 0x4000_0033, Code::Sub),
    op("sll", Ext::I, 0x0000_1033, Code::Shl),
    row("slt", Ext::I, 0x0000_2033, &R, Sem::Set(Cond::LtS)),
    row("sltu", Ext::I, 0x0000_3033, &R, Sem::Set(Cond::LtU)),
    op("xor", Ext::I, 0x0000_4033, Code::Xor),
    op("srl", Ext::I, 0x0000_5033, Code::Shr),
    op("sra", Ext::I, 0x4000_5033, Code::Sar),
    op("or", Ext::I, 0x0000_6033, Code::Or),
    op("and", Ext::I, 0x0000_7033, Code::And),
    opw("addw", Ext::I, 0x0000_003b, Code::Add),
    opw("subw", Ext::I, 0x4000_003b, Code::Sub),
    opw("sllw", Ext::I, 0x0000_103b, Code::Shl),
    opw("srlw", Ext::I, 0x0000_503b, Code::Shr),
    opw("sraw", Ext::I, 0x4000_503b, Code::Sar),
    op("mul", Ext::M, 0x0200_0033, Code::Mul),
    op("mulh", Ext::M, 0x0200_1033, Code::MulHiS),
    op("mulhsu", Ext::M, 0x0200_2033, Code::MulHiSU),
    op("mulhu", Ext::M, 0x0200_3033, Code::MulHiU),
    op("div", Ext::M, 0x0200_4033, Code::DivS),
    op("divu", Ext::M, 0x0200_5033, Code::DivU),
    op("rem", Ext::M, 0x0200_6033, Code::RemS),
    op("remu", Ext::M, 0x0200_7033, Code::RemU),
    opw("mulw", Ext::M, 0x0200_003b, Code::Mul),
    opw("divw", Ext::M, 0x0200_403b, Code::DivS),
    opw("divuw", Ext::M, 0x0200_503b, Code::DivU),
    opw("remw", Ext::M, 0x0200_603b, Code::RemS),
    opw("remuw", Ext::M, 0x0200_703b, Code::RemU),
    row("sh1add", Ext::Zba, 0x2000_2033, &R, Sem::ShAdd(1)),
    row("sh2add", Ext::Zba, 0x2000_4033, &R, Sem::ShAdd(2)),
    row("sh3add", Ext::Zba, 0x2000_6033, &R, Sem::ShAdd(3)),
    row("add.uw", Ext::Zba, 0x0800_003b, &R, Sem::ShAddUw(0)),
    row("sh1add.uw", Ext::Zba, 0x2000_203b, &R, Sem::ShAddUw(1)),
    row("sh2add.uw", Ext::Zba, 0x2000_403b, &R, Sem::ShAddUw(2)),
    row("sh3add.uw", Ext::Zba, 0x2000_603b, &R, Sem::ShAddUw(3)),
    row("slli.uw", Ext::Zba, 0x0800_101b, &SHIFT6, Sem::SlliUw),
    op("andn", Ext::Zbb, 0x4000_7033, Code::AndNot),
    op("orn", Ext::Zbb, 0x4000_6033, Code::OrNot),
    op("xnor", Ext::Zbb, 0x4000_4033, Code::XorNot),
    op("min", Ext::Zbb, 0x0a00_4033, Code::MinS),
    op("minu", Ext::Zbb, 0x0a00_5033, Code::MinU),
    op("max", Ext::Zbb, 0x0a00_6033, Code::MaxS),
    op("maxu", Ext::Zbb, 0x0a00_7033, Code::MaxU),
    op("rol", Ext::Zbb, 0x6000_1033, Code::Rotl),
    op("ror", Ext::Zbb, 0x6000_5033, Code::Rotr),
    opw("rolw", Ext::Zbb, 0x6000_103b, Code::Rotl),
    opw("rorw", Ext::Zbb, 0x6000_503b, Code::Rotr),
    row("rori", Ext::Zbb, 0x6000_5013, &SHIFT6, Sem::AluImm(Code::Rotr)),
    row("roriw", Ext::Zbb, 0x6000_501b, &SHIFT5, Sem::AluImmW(Code::Rotr)),
    unary("clz", 0x6000_1013, Code::Clz),
    unary("ctz", 0x6010_1013, Code::Ctz),
    unary("cpop", 0x6020_1013, Code::Popcnt),
    unary("sext.b", 0x6040_1013, Code::Sext8),
    unary("sext.h", 0x6050_1013, Code::Sext16),
    unary("orc.b", 0x2870_5013, Code::OrBytes),
    unary("rev8", 0x6b80_5013, Code::Bswap),
    unary("zext.h", 0x0800_403b, Code::Zext16),
    row("clzw", Ext::Zbb, 0x6000_101b, &R2, Sem::UnaryW(Code::Clz)),
    row("ctzw", Ext::Zbb, 0x6010_101b, &R2, Sem::UnaryW(Code::Ctz)),
    row("cpopw", Ext::Zbb, 0x6020_101b, &R2, Sem::UnaryW(Code::Popcnt)),
    row("bclr", Ext::Zbs, 0x4800_1033, &R, Sem::Bit(Code::AndNot)),
    row("bset", Ext::Zbs, 0x2800_1033, &R, Sem::Bit(Code::Or)),
    row("binv", Ext::Zbs, 0x6800_1033, &R, Sem::Bit(Code::Xor)),
    row("bext", Ext::Zbs, 0x4800_5033, &R, Sem::BitGet),
    row("bclri", Ext::Zbs, 0x4800_1013, &SHIFT6, Sem::BitImm(Code::AndNot)),
    row("bseti", Ext::Zbs, 0x2800_1013, &SHIFT6, Sem::BitImm(Code::Or)),
    row("binvi", Ext::Zbs, 0x6800_1013, &SHIFT6, Sem::BitImm(Code::Xor)),
    row("bexti", Ext::Zbs, 0x4800_5013, &SHIFT6, Sem::BitGetImm),
    row("czero.eqz", Ext::Zicond, 0x0e00_5033, &R, Sem::CondZero(Cond::Eq)),
    row("czero.nez", Ext::Zicond, 0x0e00_7033, &R, Sem::CondZero(Cond::Ne)),
    row("clmul", Ext::Zbc, 0x0a00_1033, &R, Sem::Compute(HelperId::Clmul)),
    row("clmulr", Ext::Zbc, 0x0a00_2033, &R, Sem::Compute(HelperId::Clmulr)),
    row("clmulh", Ext::Zbc, 0x0a00_3033, &R, Sem::Compute(HelperId::Clmulh)),
    row("lr.w", Ext::A, 0x1000_202f, &LR, Sem::LoadReserved(Ty::I32)),
    row("lr.d", Ext::A, 0x1000_302f, &LR, Sem::LoadReserved(Ty::I64)),
    row("sc.w", Ext::A, 0x1800_202f, &AMO, Sem::StoreCond(Ty::I32)),
    row("sc.d", Ext::A, 0x1800_302f, &AMO, Sem::StoreCond(Ty::I64)),
    amo_w("amoadd.w", 0x0000_0000, AmoOp::Add),
    amo_w("amoswap.w", 0x0800_0000, AmoOp::Swap),
    amo_w("amoxor.w", 0x2000_0000, AmoOp::Xor),
    amo_w("amoor.w", 0x4000_0000, AmoOp::Or),
    amo_w("amoand.w", 0x6000_0000, AmoOp::And),
    amo_w("amomin.w", 0x8000_0000, AmoOp::MinS),
    amo_w("amomax.w", 0xa000_0000, AmoOp::MaxS),
    amo_w("amominu.w", 0xc000_0000, AmoOp::MinU),
    amo_w("amomaxu.w", 0xe000_0000, AmoOp::MaxU),
    amo_d("amoadd.d", 0x0000_0000, AmoOp::Add),
    amo_d("amoswap.d", 0x0800_0000, AmoOp::Swap),
    amo_d("amoxor.d", 0x2000_0000, AmoOp::Xor),
    amo_d("amoor.d", 0x4000_0000, AmoOp::Or),
    amo_d("amoand.d", 0x6000_0000, AmoOp::And),
    amo_d("amomin.d", 0x8000_0000, AmoOp::MinS),
    amo_d("amomax.d", 0xa000_0000, AmoOp::MaxS),
    amo_d("amominu.d", 0xc000_0000, AmoOp::MinU),
    amo_d("amomaxu.d", 0xe000_0000, AmoOp::MaxU),
    row("amocas.w", Ext::Zacas, 0x2800_202f, &AMO, Sem::AmoCas(Ty::I32)),
    row("amocas.d", Ext::Zacas, 0x2800_302f, &AMO, Sem::AmoCas(Ty::I64)),
    row("amocas.q", Ext::Zacas, 0x2800_402f, &AMO_PAIR, Sem::AmoCasPair),
];
