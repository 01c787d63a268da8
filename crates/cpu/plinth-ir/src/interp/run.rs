//! The loop.

use super::micro::{Entry, Micro, MicroCode, Program, Rare, with_tables};
use super::prepare::ZERO;
use super::{Machine, Next, WORDS};
use crate::eval::{eval_cond, eval_int, eval_vec, extend, vec_extract, vec_insert, vec_splat};
use crate::op::{Code, Cond, Ty};
use crate::softfloat::eval_float;

type Words = [u64; WORDS];

/// The word at `index`. All indices of a [`Program`] are in range; the mask shows that to the compiler.
#[inline(always)]
fn get(w: &Words, index: u16) -> u64 {
    w[usize::from(index) % WORDS]
}

#[inline(always)]
fn set(w: &mut Words, index: u16, value: u64) {
    w[usize::from(index) % WORDS] = value;
}

fn get_vector(w: &Words, index: u16) -> [u64; 2] {
    [get(w, index), get(w, index + 1)]
}

fn set_vector(w: &mut Words, index: u16, value: [u64; 2]) {
    set(w, index, value[0]);
    set(w, index + 1, value[1]);
}

/// An integer operation of the tables: the constants make [`eval_int`] one host operation.
#[inline(always)]
fn integer<M: Machine>(m: &mut M, op: &Micro, code: Code, ty: Ty, sub: u8, b: u64) {
    let w = m.words();
    let value = eval_int(code, ty, sub, get(w, op.a), b, 0).unwrap_or_default();
    set(w, op.dst, value);
}

/// Runs `program` from `entry` until control leaves it. `page_base` is the guest virtual address of the page
/// that the block was made from.
pub fn run<M: Machine>(program: &Program, entry: Entry, page_base: u64, m: &mut M) -> Next<M::Stop> {
    set(m.words(), ZERO, 0);
    let micros = &program.micros[..];
    let mut pc = entry.0 as usize;
    macro_rules! dispatch {
        (
            binary { $($rr:ident $ri:ident $bc:ident $bt:ident $bs:ident,)* }
            unary { $($un:ident $uc:ident $ut:ident,)* }
            branches { $($br:ident $cc:ident $ct:ident,)* }
            loads { $($ld:ident $lt:ident $ls:literal,)* }
            stores { $($st:ident $tt:ident,)* }
        ) => {
            loop {
                let op = &micros[pc];
                pc += 1;
                let target = match op.code {
                    $(
                        MicroCode::$rr => {
                            let b = get(m.words(), op.b);
                            integer(m, op, Code::$bc, Ty::$bt, Cond::$bs as u8, b);
                            continue;
                        }
                        MicroCode::$ri => {
                            integer(m, op, Code::$bc, Ty::$bt, Cond::$bs as u8, op.imm);
                            continue;
                        }
                    )*
                    $(
                        MicroCode::$un => {
                            integer(m, op, Code::$uc, Ty::$ut, 0, 0);
                            continue;
                        }
                    )*
                    $(
                        MicroCode::$br => {
                            let w = m.words();
                            if !eval_cond(Cond::$cc, Ty::$ct, get(w, op.a), get(w, op.b)) {
                                continue;
                            }
                            op.target()
                        }
                    )*
                    $(
                        MicroCode::$ld => {
                            let (disp, access) = op.memory(Ty::$lt);
                            let va = get(m.words(), op.a).wrapping_add(disp);
                            match m.load(va, access) {
                                Ok(v) => set(m.words(), op.dst, extend(Ty::$lt, $ls, v)),
                                Err(stop) => return Next::Stop { stop, site: access.site },
                            }
                            continue;
                        }
                    )*
                    $(
                        MicroCode::$st => {
                            let (disp, access) = op.memory(Ty::$tt);
                            let w = m.words();
                            let (va, value) = (get(w, op.a).wrapping_add(disp), get(w, op.b));
                            if let Err(stop) = m.store(va, value, access) {
                                return Next::Stop { stop, site: access.site };
                            }
                            continue;
                        }
                    )*
                    MicroCode::Const => {
                        set(m.words(), op.dst, op.imm);
                        continue;
                    }
                    MicroCode::PcRel => {
                        set(m.words(), op.dst, page_base.wrapping_add(op.imm));
                        continue;
                    }
                    MicroCode::Rare => {
                        let rare = &program.rare[op.imm as usize];
                        if let Err(stop) = run_rare(rare, op, &program.default_nan, m) {
                            return Next::Stop { stop, site: rare.site() };
                        }
                        continue;
                    }
                    MicroCode::Jmp => op.target(),
                    MicroCode::JmpInd => {
                        return Next::Indirect { pc: get(m.words(), op.a), flags: op.imm as u8 };
                    }
                    MicroCode::Exit => return Next::Exit { pc_off: op.imm as i32 },
                    MicroCode::Direct => return Next::Direct { pc_off: op.imm as i32 },
                };
                if target.0 < pc && m.attention() {
                    return Next::Attention { pc_off: target.1 };
                }
                pc = target.0;
            }
        };
    }
    with_tables!(dispatch)
}

#[inline(never)]
fn run_rare<M: Machine>(rare: &Rare, op: &Micro, default_nan: &[u64; 3], m: &mut M) -> Result<(), M::Stop> {
    let w = m.words();
    let (a, b) = (get(w, op.a), get(w, op.b));
    let value = match *rare {
        Rare::Int { code, ty, sub, c } => eval_int(code, ty, sub, a, b, get(w, c)).unwrap_or_default(),
        Rare::ShlAdd { ty, shift } => eval_int(Code::ShlAdd, ty, 0, a, b, shift).unwrap_or_default(),
        Rare::Float { op: float, c } => {
            let (value, raised) = eval_float(float, a, b, get(w, c), default_nan);
            if raised != 0 {
                let before = m.fp_flags();
                m.set_fp_flags(before | raised);
            }
            value
        }
        Rare::FlagsGet => u64::from(m.fp_flags()),
        Rare::FlagsSet => {
            m.set_fp_flags(a as u8 & 0x1f);
            return Ok(());
        }
        Rare::LoadV { disp, access } => {
            let value = m.load_v128(a.wrapping_add(disp), access)?;
            set_vector(m.words(), op.dst, value);
            return Ok(());
        }
        Rare::StoreV { disp, access } => {
            let value = get_vector(w, op.b);
            return m.store_v128(a.wrapping_add(disp), value, access);
        }
        Rare::Atomic { atomic, access, c } => {
            let c = get(w, c);
            let old = m.atomic(a, atomic, access, b, c)?;
            extend(access.ty, access.flags & crate::flags::SEXT != 0, old)
        }
        Rare::Fence { full } => {
            use std::sync::atomic::{Ordering, fence};
            fence(if full { Ordering::SeqCst } else { Ordering::AcqRel });
            return Ok(());
        }
        Rare::VBin { op: vec_op, lane } => {
            let value = eval_vec(vec_op, lane, get_vector(w, op.a), get_vector(w, op.b));
            set_vector(w, op.dst, value);
            return Ok(());
        }
        Rare::VSplat { lane } => {
            set_vector(w, op.dst, vec_splat(lane, a));
            return Ok(());
        }
        Rare::VExtract { lane, index } => vec_extract(lane, index, get_vector(w, op.a)),
        Rare::VInsert { lane, index } => {
            let value = vec_insert(lane, index, get_vector(w, op.a), b);
            set_vector(w, op.dst, value);
            return Ok(());
        }
        Rare::Helper { index, c, site } => {
            let c = get(w, c);
            m.helper(index, site, [a, b, c])?
        }
        Rare::Trap { exception, site } => return Err(m.trap(exception, a, site)),
    };
    set(m.words(), op.dst, value);
    Ok(())
}
