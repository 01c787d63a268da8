//! What translated code and the IR interpreter call.

use plinth_codegen::frame::{Frame, Runtime, exit};
use plinth_ir::interp::{Atomic, Machine, MemAccess, Site, WORDS};
use plinth_ir::{AmoOp, Code, Exception, FloatOp, HelperResult, Ty, eval_float, extend, flags};

use crate::core::Core;
use crate::frame::{FramePtr, field};

/// The functions that translated code calls.
pub const RUNTIME: Runtime = Runtime { load, store, atomic, helper, float, trap };

/// The vCPU of `frame`.
fn core_of<'a>(frame: *mut Frame) -> &'a mut Core {
    let owner = field!(FramePtr(frame), owner) as *mut Core;
    // SAFETY: `owner` was set to the boxed core before the first entry; translated code runs on the core's
    // thread inside `enter`, whose caller touches the core only after it returned.
    unsafe { &mut *owner }
}

fn leave(frame: *mut Frame) {
    field!(FramePtr(frame), leave) = exit::DISPATCH;
}

impl Core {
    fn raise_at(&mut self, insn: u64, len: u64, e: Exception) {
        let pc = field!(self.frame, pc_page).wrapping_add(insn);
        self.raise(pc, len as u32, e);
    }

    fn call_helper(&mut self, id: usize, pc: u64, len: u32, args: [u64; 3]) -> Result<u64, ()> {
        let isa = std::sync::Arc::clone(&self.shared.isa);
        let Some(h) = isa.helpers().get(id) else { return Ok(0) };
        let f = h.function;
        match self.with_cpu(pc, len, |cpu| f(cpu, args[0], args[1], args[2])) {
            HelperResult::Next(v) => Ok(v),
            HelperResult::Jump => Err(()),
            HelperResult::Raise(e) => {
                self.raise(pc, len, e);
                Err(())
            }
        }
    }
}

fn desc_insn(desc: u64) -> (u64, u64) {
    (desc >> 16 & 0xffff, desc >> 48 & 0xff)
}

fn desc_signed(desc: u64) -> bool {
    (desc >> 8) as u8 & flags::SEXT != 0
}

fn desc_ty(desc: u64) -> Ty {
    Ty::from_u8(desc as u8).unwrap_or(Ty::I64)
}

extern "C" fn load(frame: *mut Frame, va: u64, desc: u64) -> u64 {
    let core = core_of(frame);
    let ty = desc_ty(desc);
    let read = if ty == Ty::V128 {
        core.read_v128(va).map(|v| {
            field!(core.frame, vector) = v;
            v[0]
        })
    } else {
        core.read(va, ty.bytes())
    };
    match read {
        Ok(v) => extend(ty, desc_signed(desc), v),
        Err(e) => {
            let (insn, len) = desc_insn(desc);
            core.raise_at(insn, len, e);
            leave(frame);
            0
        }
    }
}

extern "C" fn store(frame: *mut Frame, va: u64, desc: u64, value: u64) {
    let core = core_of(frame);
    let ty = desc_ty(desc);
    let written = if ty == Ty::V128 {
        let value = field!(core.frame, vector);
        core.write_v128(va, value)
    } else {
        core.write(va, ty.bytes(), value)
    };
    if let Err(e) = written {
        let (insn, len) = desc_insn(desc);
        core.raise_at(insn, len, e);
        leave(frame);
    }
}

extern "C" fn atomic(frame: *mut Frame, va: u64, desc: u64, b: u64, c: u64) -> u64 {
    let core = core_of(frame);
    let ty = desc_ty(desc);
    let op = match (desc >> 32) as u8 {
        x if x == Code::Cas as u8 => Atomic::Cas,
        x if x == Code::LoadReserved as u8 => Atomic::LoadReserved,
        x if x == Code::StoreCond as u8 => Atomic::StoreCond,
        _ => Atomic::Amo(AmoOp::from_u8((desc >> 40) as u8).unwrap_or(AmoOp::Swap)),
    };
    match core.atomic(va, op, ty, b, c) {
        Ok(v) if op == Atomic::StoreCond => v,
        Ok(v) => extend(ty, desc_signed(desc), v),
        Err(e) => {
            let (insn, len) = desc_insn(desc);
            core.raise_at(insn, len, e);
            leave(frame);
            0
        }
    }
}

extern "C" fn helper(frame: *mut Frame, id_insn: u64, a: u64, b: u64, c: u64) -> u64 {
    let core = core_of(frame);
    let pc = field!(core.frame, pc_page).wrapping_add(id_insn >> 16 & 0xffff);
    let len = (id_insn >> 32 & 0xff) as u32;
    match core.call_helper((id_insn & 0xffff) as usize, pc, len, [a, b, c]) {
        Ok(v) => v,
        Err(()) => {
            leave(frame);
            0
        }
    }
}

extern "C" fn float(frame: *mut Frame, op: u64, a: u64, b: u64, c: u64) -> u64 {
    let core = core_of(frame);
    let nan = core.shared.isa.layout().default_nan;
    let Some(op) = FloatOp::unpack(op) else { return nan[2] };
    let (v, flags) = eval_float(op, a, b, c, &nan);
    field!(core.frame, fp_flags) |= u64::from(flags);
    v
}

extern "C" fn trap(frame: *mut Frame, code_insn: u64, value: u64) {
    let core = core_of(frame);
    let e = Exception { code: code_insn as u32, value };
    core.raise_at(code_insn >> 32 & 0xffff, code_insn >> 48 & 0xff, e);
    leave(frame);
}

/// The interpreter's view of a vCPU.
pub struct IrMachine<'a> {
    pub core: &'a mut Core,
}

impl IrMachine<'_> {
    fn raise(&mut self, site: Site, e: Exception) {
        self.core.raise_at(site.offset.into(), site.len.into(), e);
    }
}

/// An exception was raised, or a helper redirected: the frame's `pc` is where to go on.
pub struct Left;

impl Machine for IrMachine<'_> {
    type Stop = Left;

    fn words(&mut self) -> &mut [u64; WORDS] {
        self.core.frame.words()
    }

    fn load(&mut self, va: u64, access: MemAccess) -> Result<u64, Left> {
        self.core.fast_read(va, access.ty.bytes()).map_err(|e| {
            self.raise(access.site, e);
            Left
        })
    }

    fn store(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), Left> {
        self.core.fast_write(va, access.ty.bytes(), value).map_err(|e| {
            self.raise(access.site, e);
            Left
        })
    }

    fn load_v128(&mut self, va: u64, access: MemAccess) -> Result<[u64; 2], Left> {
        self.core.read_v128(va).map_err(|e| {
            self.raise(access.site, e);
            Left
        })
    }

    fn store_v128(&mut self, va: u64, value: [u64; 2], access: MemAccess) -> Result<(), Left> {
        self.core.write_v128(va, value).map_err(|e| {
            self.raise(access.site, e);
            Left
        })
    }

    fn atomic(&mut self, va: u64, atomic: Atomic, access: MemAccess, b: u64, c: u64) -> Result<u64, Left> {
        self.core.atomic(va, atomic, access.ty, b, c).map_err(|e| {
            self.raise(access.site, e);
            Left
        })
    }

    fn helper(&mut self, index: u32, site: Site, args: [u64; 3]) -> Result<u64, Left> {
        let pc = field!(self.core.frame, pc_page).wrapping_add(site.offset.into());
        self.core.call_helper(index as usize, pc, site.len.into(), args).map_err(|()| Left)
    }

    fn trap(&mut self, exception: i32, value: u64, site: Site) -> Left {
        self.raise(site, Exception { code: exception as u32, value });
        Left
    }

    fn attention(&self) -> bool {
        self.core.frame.wants_attention()
    }

    fn fp_flags(&mut self) -> u8 {
        plinth_ir::CpuEnv::fp_flags(self.core)
    }

    fn set_fp_flags(&mut self, flags: u8) {
        plinth_ir::CpuEnv::set_fp_flags(self.core, flags);
    }
}
