//! Text of instructions, in the assembler's canonical form without aliases.

use std::fmt::Write;

use crate::decode::{Decoded, Decoder};
use crate::slots::{F_NAMES, X_NAMES};
use crate::table::{Sem, format};
use crate::vector::sem::{Memory, VectorSem};

/// Names of the CSRs that a person meets.
const CSRS: &[(u16, &str)] = &[
    (0x001, "fflags"),
    (0x002, "frm"),
    (0x003, "fcsr"),
    (0x008, "vstart"),
    (0x009, "vxsat"),
    (0x00a, "vxrm"),
    (0x00f, "vcsr"),
    (0x100, "sstatus"),
    (0x104, "sie"),
    (0x105, "stvec"),
    (0x106, "scounteren"),
    (0x10a, "senvcfg"),
    (0x140, "sscratch"),
    (0x141, "sepc"),
    (0x142, "scause"),
    (0x143, "stval"),
    (0x144, "sip"),
    (0x14d, "stimecmp"),
    (0x180, "satp"),
    (0x300, "mstatus"),
    (0x301, "misa"),
    (0x302, "medeleg"),
    (0x303, "mideleg"),
    (0x304, "mie"),
    (0x305, "mtvec"),
    (0x306, "mcounteren"),
    (0x30a, "menvcfg"),
    (0x320, "mcountinhibit"),
    (0x340, "mscratch"),
    (0x341, "mepc"),
    (0x342, "mcause"),
    (0x343, "mtval"),
    (0x344, "mip"),
    (0x3a0, "pmpcfg0"),
    (0x3b0, "pmpaddr0"),
    (0xb00, "mcycle"),
    (0xb02, "minstret"),
    (0xc00, "cycle"),
    (0xc01, "time"),
    (0xc02, "instret"),
    (0xc20, "vl"),
    (0xc21, "vtype"),
    (0xc22, "vlenb"),
    (0xf11, "mvendorid"),
    (0xf12, "marchid"),
    (0xf13, "mimpid"),
    (0xf14, "mhartid"),
];

const ROUNDING: [&str; 8] = ["rne", "rtz", "rdn", "rup", "rmm", "unknown", "unknown", "dyn"];

/// Text of CSR `number`.
#[must_use]
pub fn csr_name(number: u16) -> String {
    match CSRS.binary_search_by_key(&number, |c| c.0) {
        Ok(i) => CSRS[i].1.to_owned(),
        Err(_) => format!("{number:#x}"),
    }
}

fn fence_set(bits: i32) -> String {
    let set: String =
        "wroi".chars().enumerate().filter(|(i, _)| bits >> i & 1 != 0).map(|(_, c)| c).collect();
    if set.is_empty() { "unknown".to_owned() } else { set.chars().rev().collect() }
}

fn operand(d: &Decoded, what: char, pc: u64) -> String {
    let x = |r: u8| X_NAMES[usize::from(r & 31)].to_owned();
    let f = |r: u8| F_NAMES[usize::from(r & 31)].to_owned();
    match what {
        'd' => x(d.rd),
        's' => x(d.rs1),
        't' => x(d.rs2),
        'D' => f(d.rd),
        'S' => f(d.rs1),
        'T' => f(d.rs2),
        'R' => f(d.rs3()),
        'i' => d.imm.to_string(),
        'x' => format!("{:#x}", d.imm),
        'u' => format!("{:#x}", d.imm >> 12 & 0xf_ffff),
        'p' => format!("{:#x}", pc.wrapping_add(i64::from(d.imm) as u64)),
        'm' if d.rm() == 7 => String::new(),
        'm' => format!(",{}", ROUNDING[d.rm() as usize]),
        'P' => fence_set(d.imm >> 4),
        'Q' => fence_set(d.imm & 15),
        'c' => csr_name(d.imm as u16),
        'z' => d.zimm().to_string(),
        'l' => match d.imm {
            1 => "min".to_owned(),
            n => format!("{:?}", f64::from_bits(crate::lift::float_constant(n as u8))).to_lowercase(),
        },
        'v' => format!("v{}", d.rd),
        'a' => format!("v{}", d.rs1),
        'b' => format!("v{}", d.rs2),
        'k' if d.bits >> 25 & 1 != 0 => String::new(),
        'k' => ",v0.t".to_owned(),
        'o' => "v0".to_owned(),
        'y' => vtype(d.imm as u32),
        other => other.to_string(),
    }
}

/// `e32,m1,ta,ma`; reserved settings are a number.
fn vtype(bits: u32) -> String {
    const LMUL: [&str; 8] = ["m1", "m2", "m4", "m8", "", "mf8", "mf4", "mf2"];
    let (sew, lmul) = (bits >> 3 & 7, (bits & 7) as usize);
    if bits >> 8 != 0 || sew > 3 || lmul == 4 {
        return bits.to_string();
    }
    let tail = if bits >> 6 & 1 != 0 { "ta" } else { "tu" };
    let mask = if bits >> 7 & 1 != 0 { "ma" } else { "mu" };
    format!("e{},{},{tail},{mask}", 8 << sew, LMUL[lmul])
}

/// The mnemonic of a load or store of `fields` fields: `vle8.v` is `vlseg2e8.v`.
fn with_fields(name: &str, fields: u32) -> String {
    let at = if fields > 1 { name.rfind("ei").or_else(|| name.rfind('e')) } else { None };
    match at {
        Some(at) => format!("{}seg{fields}{}", &name[..at], &name[at..]),
        None => name.to_owned(),
    }
}

/// Text of `d` at address `pc`.
#[must_use]
pub fn text(d: &Decoded, pc: u64) -> String {
    let Some(row) = d.row else {
        let digits = usize::from(d.len) * 2;
        return format!(".insn 0x{:0digits$x}", d.bits);
    };
    let mut out = row.name.to_owned();
    match row.sem {
        Sem::LoadReserved(_) | Sem::StoreCond(_) | Sem::Amo(..) | Sem::AmoCas(_) | Sem::AmoCasPair => {
            out += match (d.acquire(), d.release()) {
                (false, false) => "",
                (true, false) => ".aq",
                (false, true) => ".rl",
                (true, true) => ".aqrl",
            };
        }
        Sem::Vector(VectorSem::Load(kind, _) | VectorSem::Store(kind, _))
            if !matches!(kind, Memory::Whole | Memory::Mask) =>
        {
            out = with_fields(row.name, (d.bits >> 29) + 1);
        }
        // May-be-operations have their number in the mnemonic.
        Sem::Zero => {
            let b = d.bits;
            let high = b >> 30 & 1;
            let n = if row.format.mask == format::MOP_RR.mask {
                high << 2 | b >> 26 & 3
            } else {
                high << 4 | (b >> 26 & 3) << 2 | b >> 20 & 3
            };
            let _ = write!(out, ".{n}");
        }
        _ if row.name == "c.mop" => {
            let _ = write!(out, ".{}", d.bits >> 7 & 31);
        }
        _ => {}
    }
    if !row.format.text.is_empty() {
        out.push(' ');
        out.extend(row.format.text.chars().map(|c| operand(d, c, pc)));
    }
    out
}

/// Text of the instruction that `code` begins with at address `pc`, and its length in bytes (that of what
/// there is, if `code` ends inside the instruction).
#[must_use]
pub fn disassemble(code: &[u8], pc: u64) -> (String, u32) {
    match Decoder::new().decode_bytes(code) {
        Some(d) => (text(&d, pc), u32::from(d.len)),
        None => (".insn (incomplete)".to_owned(), code.len() as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(word: u32, pc: u64) -> String {
        disassemble(&word.to_le_bytes(), pc).0
    }

    #[test]
    fn csrs_are_sorted() {
        assert!(CSRS.is_sorted_by_key(|c| c.0));
        assert_eq!(csr_name(0x180), "satp");
        assert_eq!(csr_name(0x7ff), "0x7ff");
    }

    #[test]
    fn texts() {
        for (word, text) in [
            (0xfff5_0513, "addi a0,a0,-1"),
            (0x0085_3583, "ld a1,8(a0)"),
            (0xfeb5_3c23, "sd a1,-8(a0)"),
            (0xfe05_1ee3, "bne a0,zero,0xffc"),
            (0x1234_5537, "lui a0,0x12345"),
            (0x0080_00ef, "jal ra,0x1008"),
            (0x0000_8067, "jalr zero,0(ra)"),
            (0x0330_000f, "fence rw,rw"),
            (0x1405_1573, "csrrw a0,sscratch,a0"),
            (0x1001_7073, "csrrci zero,sstatus,2"),
            (0x06b5_352f, "amoadd.d.aqrl a0,a1,(a0)"),
            (0x02c5_8553, "fadd.d fa0,fa1,fa2,rne"),
            (0x02c5_f553, "fadd.d fa0,fa1,fa2"),
            (0x4301_f5c7, "fmsub.d fa1,ft3,fa6,fs0"),
            (0xf218_0553, "fli.d fa0,1.0"),
            (0x4501, "c.li a0,0"),
            (0x6105, "c.addi16sp sp,32"),
            (0x8082, "c.jr ra"),
            (0x6281, "c.mop.5"),
            (0xc1c0_4573, "mop.r.16 a0,zero"),
            (0x0000, ".insn 0x0000"),
            (0xffff_ffff, ".insn 0xffffffff"),
        ] {
            assert_eq!(at(word, 0x1000), text, "{word:#x}");
        }
        assert_eq!(disassemble(&[0x13, 0x05, 0x15], 0), (".insn (incomplete)".to_owned(), 3));
    }
}
