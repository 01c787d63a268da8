//! What translated code and the IR interpreter call.

use plinth_codegen::Runtime;
use plinth_codegen::frame::{Frame, exit};
use plinth_ir::interp::{Machine, Stop};
use plinth_ir::{Code, Exception, HelperResult, Op, Ty};

use crate::access::extend;
use crate::core::Core;
use crate::frame::{FramePtr, field};

/// The functions that translated code calls.
pub const RUNTIME: Runtime = Runtime { load, store, atomic, helper, float, trap };

/// The vCPU of `frame`.
fn core_of<'a>(frame: *mut Frame) -> &'a mut Core {
    // SAFETY: `owner` was set to the boxed core before the first entry; translated code runs on the core's
    // thread inside `enter`, whose caller touches the core only after it returned.
    unsafe { &mut *(field!(FramePtr(frame), owner) as *mut Core) }
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

fn desc_ty(desc: u64) -> Ty {
    Ty::from_u8(desc as u8).unwrap_or(Ty::I64)
}

extern "C" fn load(frame: *mut Frame, va: u64, desc: u64) -> u64 {
    let core = core_of(frame);
    let ty = desc_ty(desc);
    match core.read(va, ty.bytes().min(8)) {
        Ok(v) => extend(v, ty, (desc >> 8) as u8),
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
    if let Err(e) = core.write(va, desc_ty(desc).bytes().min(8), value) {
        let (insn, len) = desc_insn(desc);
        core.raise_at(insn, len, e);
        leave(frame);
    }
}

extern "C" fn atomic(frame: *mut Frame, va: u64, desc: u64, b: u64, c: u64) -> u64 {
    let core = core_of(frame);
    let code = match (desc >> 32) as u8 {
        x if x == Code::Cas as u8 => Code::Cas,
        x if x == Code::LoadReserved as u8 => Code::LoadReserved,
        x if x == Code::StoreCond as u8 => Code::StoreCond,
        _ => Code::Amo,
    };
    match core.atomic(code, desc_ty(desc), (desc >> 40) as u8, (desc >> 8) as u8, va, b, c) {
        Ok(v) => v,
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
    let (v, flags) = plinth_ir::eval_float_packed(op, a, b, c, nan);
    field!(core.frame, fp_flags) |= u64::from(flags);
    v
}

extern "C" fn trap(frame: *mut Frame, code_insn: u64, value: u64) {
    let core = core_of(frame);
    let e = Exception { code: code_insn as u32, value };
    core.raise_at(code_insn >> 32 & 0xffff, code_insn >> 48 & 0xff, e);
    leave(frame);
}
