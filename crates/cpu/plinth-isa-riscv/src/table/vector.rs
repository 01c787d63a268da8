//! Vectors: V 1.0, with half precision (Zvfh).

use plinth_ir::{Code, FpCond};

use super::format::{
    V_ACC, V_ACC_F, V_ACC_X, V_CARRY, V_CARRY_I, V_CARRY_X, V_FROM_F, V_FROM_I, V_FROM_V, V_FROM_X, V_INDEX,
    V_LOAD, V_LOAD_INDEXED, V_LOAD_STRIDED, V_LOAD_WHOLE, V_MERGE_F, V_PLAIN, V_PLAIN_I, V_PLAIN_X, V_SETVL,
    V_SETVLI, V_SETVLII, V_TO_F, V_TO_X, V_TO_X_MASKED, V_UNARY, V_VF, V_VI, V_VU, V_VV, V_VX, V_WHOLE,
};
use super::{Ext, Format, Row, Sem, row};
use crate::vector::sem::{
    Compare, Conversion, FloatForm, Form, Integer, MaskLogic, MaskPrefix, Memory, Number, Sign, Slide,
    VectorSem,
};

const OPIVV: u32 = 0 << 12;
const OPFVV: u32 = 1 << 12;
const OPMVV: u32 = 2 << 12;
const OPIVI: u32 = 3 << 12;
const OPIVX: u32 = 4 << 12;
const OPFVF: u32 = 5 << 12;
const OPMVX: u32 = 6 << 12;
/// The bit that says that an instruction is not masked.
const VM: u32 = 1 << 25;

/// An instruction of opcode OP-V: `funct6` and what else is fixed.
const fn op(name: &'static str, funct6: u32, rest: u32, format: &'static Format, sem: VectorSem) -> Row {
    row(name, Ext::V, 0x57 | funct6 << 26 | rest, format, Sem::Vector(sem))
}

/// A load or store: the number of its width of elements, and what else is fixed.
const fn memory(
    name: &'static str,
    major: u32,
    eew: u8,
    rest: u32,
    format: &'static Format,
    sem: VectorSem,
) -> Row {
    let width = [0, 5, 6, 7][eew as usize];
    row(name, Ext::V, major | width << 12 | rest, format, Sem::Vector(sem))
}

/// The forms of an integer instruction with a vector, an integer register and an immediate.
macro_rules! vxi {
    ($name:literal, $funct6:literal, $imm:expr, $sem:expr) => {
        &[
            op(concat!($name, ".vv"), $funct6, OPIVV, &V_VV, $sem),
            op(concat!($name, ".vx"), $funct6, OPIVX, &V_VX, $sem),
            op(concat!($name, ".vi"), $funct6, OPIVI, $imm, $sem),
        ]
    };
}

/// Those without an immediate.
macro_rules! vx {
    ($name:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".vv"), $funct6, OPIVV, &V_VV, $sem),
            op(concat!($name, ".vx"), $funct6, OPIVX, &V_VX, $sem),
        ]
    };
}

/// Those without a vector.
macro_rules! xi {
    ($name:literal, $funct6:literal, $imm:expr, $sem:expr) => {
        &[
            op(concat!($name, ".vx"), $funct6, OPIVX, &V_VX, $sem),
            op(concat!($name, ".vi"), $funct6, OPIVI, $imm, $sem),
        ]
    };
}

/// A narrowing shift.
macro_rules! narrow {
    ($name:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".wv"), $funct6, OPIVV, &V_VV, $sem),
            op(concat!($name, ".wx"), $funct6, OPIVX, &V_VX, $sem),
            op(concat!($name, ".wi"), $funct6, OPIVI, &V_VU, $sem),
        ]
    };
}

/// A multiplication, a division, an average: `$s` is the suffix' first letter.
macro_rules! mul {
    ($name:literal, $s:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".", $s, "v"), $funct6, OPMVV, &V_VV, $sem),
            op(concat!($name, ".", $s, "x"), $funct6, OPMVX, &V_VX, $sem),
        ]
    };
}

/// A multiplication that adds.
macro_rules! mul_add {
    ($name:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".vv"), $funct6, OPMVV, &V_ACC, $sem),
            op(concat!($name, ".vx"), $funct6, OPMVX, &V_ACC_X, $sem),
        ]
    };
}

/// A floating point instruction with a vector and with a register.
macro_rules! vf {
    ($name:literal, $s:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".", $s, "v"), $funct6, OPFVV, &V_VV, $sem),
            op(concat!($name, ".", $s, "f"), $funct6, OPFVF, &V_VF, $sem),
        ]
    };
}

/// A fused multiply-add.
macro_rules! fused {
    ($name:literal, $funct6:literal, $sem:expr) => {
        &[
            op(concat!($name, ".vv"), $funct6, OPFVV, &V_ACC, $sem),
            op(concat!($name, ".vf"), $funct6, OPFVF, &V_ACC_F, $sem),
        ]
    };
}

/// Loads and stores for elements of 1 << `$eew` bytes.
macro_rules! width {
    ($bits:literal, $eew:literal) => {
        &[
            memory(concat!("vle", $bits, ".v"), LOAD, $eew, 0, &V_LOAD, load(Memory::Unit, $eew)),
            memory(
                concat!("vle", $bits, "ff.v"),
                LOAD,
                $eew,
                16 << 20,
                &V_LOAD,
                load(Memory::FaultOnlyFirst, $eew),
            ),
            memory(
                concat!("vlse", $bits, ".v"),
                LOAD,
                $eew,
                2 << 26,
                &V_LOAD_STRIDED,
                load(Memory::Strided, $eew),
            ),
            memory(
                concat!("vluxei", $bits, ".v"),
                LOAD,
                $eew,
                1 << 26,
                &V_LOAD_INDEXED,
                load(Memory::Indexed, $eew),
            ),
            memory(
                concat!("vloxei", $bits, ".v"),
                LOAD,
                $eew,
                3 << 26,
                &V_LOAD_INDEXED,
                load(Memory::Indexed, $eew),
            ),
            memory(
                concat!("vl1re", $bits, ".v"),
                LOAD,
                $eew,
                whole(1),
                &V_LOAD_WHOLE,
                load(Memory::Whole, $eew),
            ),
            memory(
                concat!("vl2re", $bits, ".v"),
                LOAD,
                $eew,
                whole(2),
                &V_LOAD_WHOLE,
                load(Memory::Whole, $eew),
            ),
            memory(
                concat!("vl4re", $bits, ".v"),
                LOAD,
                $eew,
                whole(4),
                &V_LOAD_WHOLE,
                load(Memory::Whole, $eew),
            ),
            memory(
                concat!("vl8re", $bits, ".v"),
                LOAD,
                $eew,
                whole(8),
                &V_LOAD_WHOLE,
                load(Memory::Whole, $eew),
            ),
            memory(concat!("vse", $bits, ".v"), STORE, $eew, 0, &V_LOAD, store(Memory::Unit, $eew)),
            memory(
                concat!("vsse", $bits, ".v"),
                STORE,
                $eew,
                2 << 26,
                &V_LOAD_STRIDED,
                store(Memory::Strided, $eew),
            ),
            memory(
                concat!("vsuxei", $bits, ".v"),
                STORE,
                $eew,
                1 << 26,
                &V_LOAD_INDEXED,
                store(Memory::Indexed, $eew),
            ),
            memory(
                concat!("vsoxei", $bits, ".v"),
                STORE,
                $eew,
                3 << 26,
                &V_LOAD_INDEXED,
                store(Memory::Indexed, $eew),
            ),
        ]
    };
}

const LOAD: u32 = 0x07;
const STORE: u32 = 0x27;

/// Bits of a load or store of `n` whole registers.
const fn whole(n: u32) -> u32 {
    (n - 1) << 29 | VM | 8 << 20
}

const fn load(kind: Memory, eew: u8) -> VectorSem {
    VectorSem::Load(kind, eew)
}

const fn store(kind: Memory, eew: u8) -> VectorSem {
    VectorSem::Store(kind, eew)
}

const fn int(op: Integer) -> VectorSem {
    VectorSem::Integer(op, Form::Same)
}

const fn wide(op: Integer, a: Sign, b: Sign) -> VectorSem {
    VectorSem::Integer(op, Form::Widen(a, b))
}

const fn wide_left(op: Integer, b: Sign) -> VectorSem {
    VectorSem::Integer(op, Form::WidenRight(b))
}

const fn to_narrow(op: Integer) -> VectorSem {
    VectorSem::Integer(op, Form::Narrow)
}

const fn float(op: Code) -> VectorSem {
    VectorSem::Float(op, FloatForm::Same)
}

/// A unary instruction: what selects it is in the place of vs1.
const fn unary(name: &'static str, funct6: u32, funct3: u32, vs1: u32, sem: VectorSem) -> Row {
    op(name, funct6, funct3 | vs1 << 15, &V_UNARY, sem)
}

const fn mask(name: &'static str, funct6: u32, op_: MaskLogic) -> Row {
    op(name, funct6, OPMVV | VM, &V_PLAIN, VectorSem::Mask(op_))
}

const fn reduce(name: &'static str, funct6: u32, op_: Integer) -> Row {
    op(name, funct6, OPMVV, &V_VV, VectorSem::Reduce(op_, None))
}

const fn convert(name: &'static str, vs1: u32, to: Number, from: Number, how: Conversion) -> Row {
    let form = match vs1 >> 3 {
        0 => FloatForm::Same,
        1 => FloatForm::Widen,
        _ => FloatForm::Narrow,
    };
    unary(name, 0x12, OPFVV, vs1, VectorSem::Convert(to, from, form, how))
}

const fn fused_op(negate_product: bool, negate_addend: bool, addend_is_vd: bool) -> VectorSem {
    VectorSem::MulAdd { negate_product, negate_addend, addend_is_vd, wide: false }
}

const fn fused_wide(negate_product: bool, negate_addend: bool) -> VectorSem {
    VectorSem::MulAdd { negate_product, negate_addend, addend_is_vd: true, wide: true }
}

use Sign::{Signed, Unsigned};

pub(super) static ROWS: &[&[Row]] = &[
    &[
        row("vsetvli", Ext::V, 0x0000_7057, &V_SETVLI, Sem::Vector(VectorSem::SetVl)),
        row("vsetivli", Ext::V, 0xc000_7057, &V_SETVLII, Sem::Vector(VectorSem::SetVl)),
        row("vsetvl", Ext::V, 0x8000_7057, &V_SETVL, Sem::Vector(VectorSem::SetVl)),
    ],
    width!("8", 0),
    width!("16", 1),
    width!("32", 2),
    width!("64", 3),
    &[
        memory("vlm.v", LOAD, 0, VM | 11 << 20, &V_LOAD_WHOLE, load(Memory::Mask, 0)),
        memory("vsm.v", STORE, 0, VM | 11 << 20, &V_LOAD_WHOLE, store(Memory::Mask, 0)),
        memory("vs1r.v", STORE, 0, whole(1), &V_LOAD_WHOLE, store(Memory::Whole, 0)),
        memory("vs2r.v", STORE, 0, whole(2), &V_LOAD_WHOLE, store(Memory::Whole, 0)),
        memory("vs4r.v", STORE, 0, whole(4), &V_LOAD_WHOLE, store(Memory::Whole, 0)),
        memory("vs8r.v", STORE, 0, whole(8), &V_LOAD_WHOLE, store(Memory::Whole, 0)),
    ],
    // Integers.
    vxi!("vadd", 0x00, &V_VI, int(Integer::Add)),
    vx!("vsub", 0x02, int(Integer::Sub)),
    xi!("vrsub", 0x03, &V_VI, int(Integer::SubReverse)),
    vx!("vminu", 0x04, int(Integer::MinU)),
    vx!("vmin", 0x05, int(Integer::Min)),
    vx!("vmaxu", 0x06, int(Integer::MaxU)),
    vx!("vmax", 0x07, int(Integer::Max)),
    vxi!("vand", 0x09, &V_VI, int(Integer::And)),
    vxi!("vor", 0x0a, &V_VI, int(Integer::Or)),
    vxi!("vxor", 0x0b, &V_VI, int(Integer::Xor)),
    vxi!("vrgather", 0x0c, &V_VU, VectorSem::Gather),
    &[op("vrgatherei16.vv", 0x0e, OPIVV, &V_VV, VectorSem::Gather16)],
    xi!("vslideup", 0x0e, &V_VU, VectorSem::Slide(Slide::Up)),
    xi!("vslidedown", 0x0f, &V_VU, VectorSem::Slide(Slide::Down)),
    &[
        op("vadc.vvm", 0x10, OPIVV, &V_CARRY, VectorSem::Carry { subtract: false }),
        op("vadc.vxm", 0x10, OPIVX, &V_CARRY_X, VectorSem::Carry { subtract: false }),
        op("vadc.vim", 0x10, OPIVI, &V_CARRY_I, VectorSem::Carry { subtract: false }),
        op("vmadc.vvm", 0x11, OPIVV, &V_CARRY, VectorSem::CarryOut { subtract: false }),
        op("vmadc.vxm", 0x11, OPIVX, &V_CARRY_X, VectorSem::CarryOut { subtract: false }),
        op("vmadc.vim", 0x11, OPIVI, &V_CARRY_I, VectorSem::CarryOut { subtract: false }),
        op("vmadc.vv", 0x11, OPIVV | VM, &V_PLAIN, VectorSem::CarryOut { subtract: false }),
        op("vmadc.vx", 0x11, OPIVX | VM, &V_PLAIN_X, VectorSem::CarryOut { subtract: false }),
        op("vmadc.vi", 0x11, OPIVI | VM, &V_PLAIN_I, VectorSem::CarryOut { subtract: false }),
        op("vsbc.vvm", 0x12, OPIVV, &V_CARRY, VectorSem::Carry { subtract: true }),
        op("vsbc.vxm", 0x12, OPIVX, &V_CARRY_X, VectorSem::Carry { subtract: true }),
        op("vmsbc.vvm", 0x13, OPIVV, &V_CARRY, VectorSem::CarryOut { subtract: true }),
        op("vmsbc.vxm", 0x13, OPIVX, &V_CARRY_X, VectorSem::CarryOut { subtract: true }),
        op("vmsbc.vv", 0x13, OPIVV | VM, &V_PLAIN, VectorSem::CarryOut { subtract: true }),
        op("vmsbc.vx", 0x13, OPIVX | VM, &V_PLAIN_X, VectorSem::CarryOut { subtract: true }),
        op("vmerge.vvm", 0x17, OPIVV, &V_CARRY, VectorSem::Merge),
        op("vmerge.vxm", 0x17, OPIVX, &V_CARRY_X, VectorSem::Merge),
        op("vmerge.vim", 0x17, OPIVI, &V_CARRY_I, VectorSem::Merge),
        op("vmv.v.v", 0x17, OPIVV | VM, &V_FROM_V, VectorSem::Move),
        op("vmv.v.x", 0x17, OPIVX | VM, &V_FROM_X, VectorSem::Move),
        op("vmv.v.i", 0x17, OPIVI | VM, &V_FROM_I, VectorSem::Move),
    ],
    vxi!("vmseq", 0x18, &V_VI, VectorSem::Compare(Compare::Eq)),
    vxi!("vmsne", 0x19, &V_VI, VectorSem::Compare(Compare::Ne)),
    vx!("vmsltu", 0x1a, VectorSem::Compare(Compare::LtU)),
    vx!("vmslt", 0x1b, VectorSem::Compare(Compare::Lt)),
    vxi!("vmsleu", 0x1c, &V_VI, VectorSem::Compare(Compare::LeU)),
    vxi!("vmsle", 0x1d, &V_VI, VectorSem::Compare(Compare::Le)),
    xi!("vmsgtu", 0x1e, &V_VI, VectorSem::Compare(Compare::GtU)),
    xi!("vmsgt", 0x1f, &V_VI, VectorSem::Compare(Compare::Gt)),
    vxi!("vsaddu", 0x20, &V_VI, int(Integer::SatAddU)),
    vxi!("vsadd", 0x21, &V_VI, int(Integer::SatAdd)),
    vx!("vssubu", 0x22, int(Integer::SatSubU)),
    vx!("vssub", 0x23, int(Integer::SatSub)),
    vxi!("vsll", 0x25, &V_VU, int(Integer::Shl)),
    vx!("vsmul", 0x27, int(Integer::SatMul)),
    &[
        op("vmv1r.v", 0x27, OPIVI | VM, &V_WHOLE, VectorSem::MoveWhole(1)),
        op("vmv2r.v", 0x27, OPIVI | VM | 1 << 15, &V_WHOLE, VectorSem::MoveWhole(2)),
        op("vmv4r.v", 0x27, OPIVI | VM | 3 << 15, &V_WHOLE, VectorSem::MoveWhole(4)),
        op("vmv8r.v", 0x27, OPIVI | VM | 7 << 15, &V_WHOLE, VectorSem::MoveWhole(8)),
    ],
    vxi!("vsrl", 0x28, &V_VU, int(Integer::Shr)),
    vxi!("vsra", 0x29, &V_VU, int(Integer::Sar)),
    vxi!("vssrl", 0x2a, &V_VU, int(Integer::RoundShr)),
    vxi!("vssra", 0x2b, &V_VU, int(Integer::RoundSar)),
    narrow!("vnsrl", 0x2c, to_narrow(Integer::Shr)),
    narrow!("vnsra", 0x2d, to_narrow(Integer::Sar)),
    narrow!("vnclipu", 0x2e, to_narrow(Integer::ClipU)),
    narrow!("vnclip", 0x2f, to_narrow(Integer::Clip)),
    &[
        op("vwredsumu.vs", 0x30, OPIVV, &V_VV, VectorSem::Reduce(Integer::Add, Some(Unsigned))),
        op("vwredsum.vs", 0x31, OPIVV, &V_VV, VectorSem::Reduce(Integer::Add, Some(Signed))),
        reduce("vredsum.vs", 0x00, Integer::Add),
        reduce("vredand.vs", 0x01, Integer::And),
        reduce("vredor.vs", 0x02, Integer::Or),
        reduce("vredxor.vs", 0x03, Integer::Xor),
        reduce("vredminu.vs", 0x04, Integer::MinU),
        reduce("vredmin.vs", 0x05, Integer::Min),
        reduce("vredmaxu.vs", 0x06, Integer::MaxU),
        reduce("vredmax.vs", 0x07, Integer::Max),
    ],
    mul!("vaaddu", "v", 0x08, int(Integer::AverageAddU)),
    mul!("vaadd", "v", 0x09, int(Integer::AverageAdd)),
    mul!("vasubu", "v", 0x0a, int(Integer::AverageSubU)),
    mul!("vasub", "v", 0x0b, int(Integer::AverageSub)),
    &[
        op("vslide1up.vx", 0x0e, OPMVX, &V_VX, VectorSem::Slide(Slide::OneUp)),
        op("vslide1down.vx", 0x0f, OPMVX, &V_VX, VectorSem::Slide(Slide::OneDown)),
        op("vmv.x.s", 0x10, OPMVV | VM, &V_TO_X, VectorSem::FirstToX),
        op("vcpop.m", 0x10, OPMVV | 0x10 << 15, &V_TO_X_MASKED, VectorSem::Count),
        op("vfirst.m", 0x10, OPMVV | 0x11 << 15, &V_TO_X_MASKED, VectorSem::Find),
        op("vmv.s.x", 0x10, OPMVX | VM, &V_FROM_X, VectorSem::FirstFrom),
        unary("vzext.vf8", 0x12, OPMVV, 2, VectorSem::Extend(3, Unsigned)),
        unary("vsext.vf8", 0x12, OPMVV, 3, VectorSem::Extend(3, Signed)),
        unary("vzext.vf4", 0x12, OPMVV, 4, VectorSem::Extend(2, Unsigned)),
        unary("vsext.vf4", 0x12, OPMVV, 5, VectorSem::Extend(2, Signed)),
        unary("vzext.vf2", 0x12, OPMVV, 6, VectorSem::Extend(1, Unsigned)),
        unary("vsext.vf2", 0x12, OPMVV, 7, VectorSem::Extend(1, Signed)),
        unary("vmsbf.m", 0x14, OPMVV, 1, VectorSem::Prefix(MaskPrefix::Before)),
        unary("vmsof.m", 0x14, OPMVV, 2, VectorSem::Prefix(MaskPrefix::Only)),
        unary("vmsif.m", 0x14, OPMVV, 3, VectorSem::Prefix(MaskPrefix::Including)),
        unary("viota.m", 0x14, OPMVV, 0x10, VectorSem::Iota),
        op("vid.v", 0x14, OPMVV | 0x11 << 15, &V_INDEX, VectorSem::Index),
        op("vcompress.vm", 0x17, OPMVV | VM, &V_PLAIN, VectorSem::Compress),
        mask("vmandn.mm", 0x18, MaskLogic::AndNot),
        mask("vmand.mm", 0x19, MaskLogic::And),
        mask("vmor.mm", 0x1a, MaskLogic::Or),
        mask("vmxor.mm", 0x1b, MaskLogic::Xor),
        mask("vmorn.mm", 0x1c, MaskLogic::OrNot),
        mask("vmnand.mm", 0x1d, MaskLogic::Nand),
        mask("vmnor.mm", 0x1e, MaskLogic::Nor),
        mask("vmxnor.mm", 0x1f, MaskLogic::Xnor),
    ],
    mul!("vdivu", "v", 0x20, int(Integer::DivU)),
    mul!("vdiv", "v", 0x21, int(Integer::Div)),
    mul!("vremu", "v", 0x22, int(Integer::RemU)),
    mul!("vrem", "v", 0x23, int(Integer::Rem)),
    mul!("vmulhu", "v", 0x24, int(Integer::MulHighU)),
    mul!("vmul", "v", 0x25, int(Integer::Mul)),
    mul!("vmulhsu", "v", 0x26, int(Integer::MulHighSU)),
    mul!("vmulh", "v", 0x27, int(Integer::MulHigh)),
    mul_add!("vmadd", 0x29, int(Integer::MulAdd)),
    mul_add!("vnmsub", 0x2b, int(Integer::MulSub)),
    mul_add!("vmacc", 0x2d, int(Integer::Accumulate)),
    mul_add!("vnmsac", 0x2f, int(Integer::Decumulate)),
    mul!("vwaddu", "v", 0x30, wide(Integer::Add, Unsigned, Unsigned)),
    mul!("vwadd", "v", 0x31, wide(Integer::Add, Signed, Signed)),
    mul!("vwsubu", "v", 0x32, wide(Integer::Sub, Unsigned, Unsigned)),
    mul!("vwsub", "v", 0x33, wide(Integer::Sub, Signed, Signed)),
    mul!("vwaddu", "w", 0x34, wide_left(Integer::Add, Unsigned)),
    mul!("vwadd", "w", 0x35, wide_left(Integer::Add, Signed)),
    mul!("vwsubu", "w", 0x36, wide_left(Integer::Sub, Unsigned)),
    mul!("vwsub", "w", 0x37, wide_left(Integer::Sub, Signed)),
    mul!("vwmulu", "v", 0x38, wide(Integer::Mul, Unsigned, Unsigned)),
    mul!("vwmulsu", "v", 0x3a, wide(Integer::Mul, Signed, Unsigned)),
    mul!("vwmul", "v", 0x3b, wide(Integer::Mul, Signed, Signed)),
    mul_add!("vwmaccu", 0x3c, wide(Integer::Accumulate, Unsigned, Unsigned)),
    mul_add!("vwmacc", 0x3d, wide(Integer::Accumulate, Signed, Signed)),
    &[op("vwmaccus.vx", 0x3e, OPMVX, &V_ACC_X, wide(Integer::Accumulate, Signed, Unsigned))],
    mul_add!("vwmaccsu", 0x3f, wide(Integer::Accumulate, Unsigned, Signed)),
    // Floating point.
    vf!("vfadd", "v", 0x00, float(Code::FAdd)),
    vf!("vfsub", "v", 0x02, float(Code::FSub)),
    vf!("vfmin", "v", 0x04, float(Code::FMin)),
    vf!("vfmax", "v", 0x06, float(Code::FMax)),
    vf!("vfsgnj", "v", 0x08, VectorSem::SignInject(super::SignOp::Copy)),
    vf!("vfsgnjn", "v", 0x09, VectorSem::SignInject(super::SignOp::Negate)),
    vf!("vfsgnjx", "v", 0x0a, VectorSem::SignInject(super::SignOp::Xor)),
    &[
        op("vfredusum.vs", 0x01, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FAdd, false)),
        op("vfredosum.vs", 0x03, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FAdd, false)),
        op("vfredmin.vs", 0x05, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FMin, false)),
        op("vfredmax.vs", 0x07, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FMax, false)),
        op("vfwredusum.vs", 0x31, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FAdd, true)),
        op("vfwredosum.vs", 0x33, OPFVV, &V_VV, VectorSem::FloatReduce(Code::FAdd, true)),
        op("vfslide1up.vf", 0x0e, OPFVF, &V_VF, VectorSem::Slide(Slide::OneUp)),
        op("vfslide1down.vf", 0x0f, OPFVF, &V_VF, VectorSem::Slide(Slide::OneDown)),
        op("vfmv.f.s", 0x10, OPFVV | VM, &V_TO_F, VectorSem::FirstToF),
        op("vfmv.s.f", 0x10, OPFVF | VM, &V_FROM_F, VectorSem::FirstFrom),
        convert("vfcvt.xu.f.v", 0x00, Number::Integer(Unsigned), Number::Float, Conversion::Dynamic),
        convert("vfcvt.x.f.v", 0x01, Number::Integer(Signed), Number::Float, Conversion::Dynamic),
        convert("vfcvt.f.xu.v", 0x02, Number::Float, Number::Integer(Unsigned), Conversion::Dynamic),
        convert("vfcvt.f.x.v", 0x03, Number::Float, Number::Integer(Signed), Conversion::Dynamic),
        convert("vfcvt.rtz.xu.f.v", 0x06, Number::Integer(Unsigned), Number::Float, Conversion::ToZero),
        convert("vfcvt.rtz.x.f.v", 0x07, Number::Integer(Signed), Number::Float, Conversion::ToZero),
        convert("vfwcvt.xu.f.v", 0x08, Number::Integer(Unsigned), Number::Float, Conversion::Dynamic),
        convert("vfwcvt.x.f.v", 0x09, Number::Integer(Signed), Number::Float, Conversion::Dynamic),
        convert("vfwcvt.f.xu.v", 0x0a, Number::Float, Number::Integer(Unsigned), Conversion::Dynamic),
        convert("vfwcvt.f.x.v", 0x0b, Number::Float, Number::Integer(Signed), Conversion::Dynamic),
        convert("vfwcvt.f.f.v", 0x0c, Number::Float, Number::Float, Conversion::Dynamic),
        convert("vfwcvt.rtz.xu.f.v", 0x0e, Number::Integer(Unsigned), Number::Float, Conversion::ToZero),
        convert("vfwcvt.rtz.x.f.v", 0x0f, Number::Integer(Signed), Number::Float, Conversion::ToZero),
        convert("vfncvt.xu.f.w", 0x10, Number::Integer(Unsigned), Number::Float, Conversion::Dynamic),
        convert("vfncvt.x.f.w", 0x11, Number::Integer(Signed), Number::Float, Conversion::Dynamic),
        convert("vfncvt.f.xu.w", 0x12, Number::Float, Number::Integer(Unsigned), Conversion::Dynamic),
        convert("vfncvt.f.x.w", 0x13, Number::Float, Number::Integer(Signed), Conversion::Dynamic),
        convert("vfncvt.f.f.w", 0x14, Number::Float, Number::Float, Conversion::Dynamic),
        convert("vfncvt.rod.f.f.w", 0x15, Number::Float, Number::Float, Conversion::ToOdd),
        convert("vfncvt.rtz.xu.f.w", 0x16, Number::Integer(Unsigned), Number::Float, Conversion::ToZero),
        convert("vfncvt.rtz.x.f.w", 0x17, Number::Integer(Signed), Number::Float, Conversion::ToZero),
        unary("vfsqrt.v", 0x13, OPFVV, 0x00, VectorSem::SquareRoot),
        unary("vfrsqrt7.v", 0x13, OPFVV, 0x04, VectorSem::Estimate { square_root: true }),
        unary("vfrec7.v", 0x13, OPFVV, 0x05, VectorSem::Estimate { square_root: false }),
        unary("vfclass.v", 0x13, OPFVV, 0x10, VectorSem::Classify),
        op("vfmerge.vfm", 0x17, OPFVF, &V_MERGE_F, VectorSem::Merge),
        op("vfmv.v.f", 0x17, OPFVF | VM, &V_FROM_F, VectorSem::Move),
        op(
            "vmfgt.vf",
            0x1d,
            OPFVF,
            &V_VF,
            VectorSem::FloatCompare { cond: FpCond::Lt, swap: true, not: false },
        ),
        op(
            "vmfge.vf",
            0x1f,
            OPFVF,
            &V_VF,
            VectorSem::FloatCompare { cond: FpCond::Le, swap: true, not: false },
        ),
        op("vfrdiv.vf", 0x21, OPFVF, &V_VF, VectorSem::Float(Code::FDiv, FloatForm::Reverse)),
        op("vfrsub.vf", 0x27, OPFVF, &V_VF, VectorSem::Float(Code::FSub, FloatForm::Reverse)),
    ],
    vf!("vmfeq", "v", 0x18, VectorSem::FloatCompare { cond: FpCond::Eq, swap: false, not: false }),
    vf!("vmfle", "v", 0x19, VectorSem::FloatCompare { cond: FpCond::Le, swap: false, not: false }),
    vf!("vmflt", "v", 0x1b, VectorSem::FloatCompare { cond: FpCond::Lt, swap: false, not: false }),
    vf!("vmfne", "v", 0x1c, VectorSem::FloatCompare { cond: FpCond::Eq, swap: false, not: true }),
    vf!("vfdiv", "v", 0x20, float(Code::FDiv)),
    vf!("vfmul", "v", 0x24, float(Code::FMul)),
    fused!("vfmadd", 0x28, fused_op(false, false, false)),
    fused!("vfnmadd", 0x29, fused_op(true, true, false)),
    fused!("vfmsub", 0x2a, fused_op(false, true, false)),
    fused!("vfnmsub", 0x2b, fused_op(true, false, false)),
    fused!("vfmacc", 0x2c, fused_op(false, false, true)),
    fused!("vfnmacc", 0x2d, fused_op(true, true, true)),
    fused!("vfmsac", 0x2e, fused_op(false, true, true)),
    fused!("vfnmsac", 0x2f, fused_op(true, false, true)),
    vf!("vfwadd", "v", 0x30, VectorSem::Float(Code::FAdd, FloatForm::Widen)),
    vf!("vfwsub", "v", 0x32, VectorSem::Float(Code::FSub, FloatForm::Widen)),
    vf!("vfwadd", "w", 0x34, VectorSem::Float(Code::FAdd, FloatForm::WidenRight)),
    vf!("vfwsub", "w", 0x36, VectorSem::Float(Code::FSub, FloatForm::WidenRight)),
    vf!("vfwmul", "v", 0x38, VectorSem::Float(Code::FMul, FloatForm::Widen)),
    fused!("vfwmacc", 0x3c, fused_wide(false, false)),
    fused!("vfwnmacc", 0x3d, fused_wide(true, true)),
    fused!("vfwmsac", 0x3e, fused_wide(false, true)),
    fused!("vfwnmsac", 0x3f, fused_wide(true, false)),
];
