//! Checks that a block keeps the rules of the IR.

use crate::block::{Block, Label};
use crate::isa::{Layout, SlotClass};
use crate::op::{Code, Lane, Op, Ty, Val};
use crate::spec::{Arg, Dst, Spec, Sub, spec, vectors};

/// What a block breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum VerifyError {
    #[error("operation {at}: {code:?} is not defined for {ty:?}")]
    Type { at: usize, code: Code, ty: Ty },
    #[error("operation {at}: {code:?} with a sub-operation, flags or auxiliary field that it has not")]
    Fields { at: usize, code: Code },
    #[error("operation {at}: operand {val:?} is missing or superfluous, or names what does not exist")]
    Operand { at: usize, val: Val },
    #[error("operation {at}: {val:?} is a vector where a scalar must be, or a scalar where a vector must be")]
    Class { at: usize, val: Val },
    #[error("operation {at}: {val:?} is defined a second time")]
    Redefined { at: usize, val: Val },
    #[error("operation {at}: {val:?} is not defined since the last marker or label")]
    Undefined { at: usize, val: Val },
    #[error("operation {at}: label {label} is bound twice, elsewhere, or does not exist")]
    Label { at: usize, label: i32 },
    #[error("label {label} stands nowhere in the block, or outside its page")]
    Unbound { label: usize },
    #[error("operation {at} may stop and belongs to no instruction")]
    NoInsn { at: usize },
    #[error("instructions: the block says {says}, there are {are}")]
    Insns { says: u32, are: u32 },
    #[error("control runs off the end")]
    End,
}

/// A temporary: the stretch between two markers that it lives in (0: none yet), and whether it is a vector.
#[derive(Clone, Copy, Default)]
struct Temp {
    stretch: u32,
    vector: bool,
}

struct Verifier<'a> {
    block: &'a Block,
    layout: &'a Layout,
    temps: Vec<Temp>,
    stretch: u32,
    insns: u32,
}

/// Checks `block`, which is of an ISA with this `layout`, in linear time.
///
/// # Errors
/// The first rule that it breaks.
pub fn verify(block: &Block, layout: &Layout) -> Result<(), VerifyError> {
    let temps = vec![Temp::default(); usize::from(block.temps)];
    let mut v = Verifier { block, layout, temps, stretch: 1, insns: 0 };
    for (at, op) in block.ops.iter().enumerate() {
        v.op(at, op)?;
    }
    for (label, l) in block.labels.iter().enumerate() {
        let Some(at) = l.op else {
            if l.pc == Label::LOCAL {
                return Err(VerifyError::Unbound { label });
            }
            continue;
        };
        let bound =
            block.ops.get(at as usize).is_some_and(|op| op.code == Code::Label && op.aux == label as i32);
        if !bound || !(l.pc == Label::LOCAL || (0..4096).contains(&l.pc)) {
            return Err(VerifyError::Unbound { label });
        }
    }
    if v.insns != block.insns {
        return Err(VerifyError::Insns { says: block.insns, are: v.insns });
    }
    if !block.ops.last().is_some_and(|op| op.code.leaves()) {
        return Err(VerifyError::End);
    }
    Ok(())
}

impl Verifier<'_> {
    fn op(&mut self, at: usize, op: &Op) -> Result<(), VerifyError> {
        let spec = spec(op.code);
        if !spec.types.contains(op.ty) {
            return Err(VerifyError::Type { at, code: op.code, ty: op.ty });
        }
        if !fields_are_valid(op, &spec) {
            return Err(VerifyError::Fields { at, code: op.code });
        }
        match op.code {
            Code::Insn => {
                self.insns += 1;
                self.stretch += 1;
            }
            Code::Label => {
                let label = self.block.labels.get(op.aux as usize);
                if label.is_none_or(|l| l.op != Some(at as u32)) {
                    return Err(VerifyError::Label { at, label: op.aux });
                }
                self.stretch += 1;
            }
            Code::Br | Code::Jmp => {
                let goes_back = |l: &Label| l.op.is_some_and(|to| to as usize <= at);
                let label = self.block.labels.get(op.aux as usize);
                if label.is_none_or(|l| l.pc == Label::LOCAL && goes_back(l)) {
                    return Err(VerifyError::Label { at, label: op.aux });
                }
            }
            code if self.insns == 0 && (code.is_memory() || matches!(code, Code::Helper | Code::Trap)) => {
                return Err(VerifyError::NoInsn { at });
            }
            _ => {}
        }
        self.operands(at, op, &spec)
    }

    fn operands(&mut self, at: usize, op: &Op, spec: &Spec) -> Result<(), VerifyError> {
        let (dst_vector, a_vector, b_vector) = vectors(op);
        let operands = [
            (op.a, Arg::A, Arg::OptA, a_vector),
            (op.b, Arg::B, Arg::OptB, b_vector),
            (op.c, Arg::C, Arg::OptC, false),
        ];
        for (val, needed, optional, vector) in operands {
            let needed = spec.args.contains(&needed);
            let allowed = needed || spec.args.contains(&optional);
            match (val.is_none(), needed, allowed) {
                (true, true, _) | (false, _, false) => return Err(VerifyError::Operand { at, val }),
                (true, false, _) => {}
                (false, _, true) => self.read(at, val, vector)?,
            }
        }
        match (op.dst.is_none(), spec.dst) {
            (true, Dst::Needed) | (false, Dst::None) => Err(VerifyError::Operand { at, val: op.dst }),
            (true, _) => Ok(()),
            (false, _) => self.define(at, op.dst, dst_vector),
        }
    }

    fn read(&self, at: usize, val: Val, vector: bool) -> Result<(), VerifyError> {
        if let Some(i) = val.as_temp() {
            let temp = self.temps.get(usize::from(i)).ok_or(VerifyError::Operand { at, val })?;
            if temp.stretch != self.stretch {
                return Err(VerifyError::Undefined { at, val });
            }
            if temp.vector != vector {
                return Err(VerifyError::Class { at, val });
            }
            return Ok(());
        }
        if val.as_const().is_some() {
            if vector {
                return Err(VerifyError::Class { at, val });
            }
            return self.block.const_of(val).map(|_| ()).ok_or(VerifyError::Operand { at, val });
        }
        self.slot(at, val, vector)
    }

    fn slot(&self, at: usize, val: Val, vector: bool) -> Result<(), VerifyError> {
        let index = usize::from(val.as_slot().ok_or(VerifyError::Operand { at, val })?);
        let class = |i: usize| self.layout.slots.get(i).map(|s| s.class);
        let first = class(index).ok_or(VerifyError::Operand { at, val })?;
        let pair = first == SlotClass::Vector && class(index + 1) == Some(SlotClass::Vector);
        if vector && !pair {
            return Err(VerifyError::Class { at, val });
        }
        Ok(())
    }

    fn define(&mut self, at: usize, val: Val, vector: bool) -> Result<(), VerifyError> {
        let Some(i) = val.as_temp() else {
            return self.slot(at, val, vector);
        };
        let temp = self.temps.get_mut(usize::from(i)).ok_or(VerifyError::Operand { at, val })?;
        if temp.stretch != 0 {
            return Err(VerifyError::Redefined { at, val });
        }
        *temp = Temp { stretch: self.stretch, vector };
        Ok(())
    }
}

/// `sub`, `flags` and `aux` hold what the opcode knows. Labels are checked elsewhere.
fn fields_are_valid(op: &Op, spec: &Spec) -> bool {
    let sub = match spec.sub {
        Sub::Zero => op.sub == 0,
        // The longest instructions are x86's.
        Sub::Len => (1..=15).contains(&op.sub),
        named => usize::from(op.sub) < named.names().len(),
    };
    let flags = if spec.lane {
        Lane::from_u8(op.flags).is_some()
    } else {
        (0..8)
            .all(|bit| op.flags & (1 << bit) == 0 || spec.flags.get(bit).is_some_and(|name| !name.is_empty()))
    };
    let aux = match op.code {
        Code::Insn => (0..4096).contains(&op.aux),
        Code::ShlAdd => (1..=3).contains(&op.aux),
        Code::Fence => (0..=1).contains(&op.aux),
        Code::Helper => (0..=0xffff).contains(&op.aux),
        Code::VExtract | Code::VInsert => {
            Lane::from_u8(op.flags).is_some_and(|lane| (0..lane.count() as i32).contains(&op.aux))
        }
        _ => match spec.other {
            Some(types) => {
                u8::try_from(op.aux).ok().and_then(Ty::from_u8).is_some_and(|ty| types.contains(ty))
            }
            None => op.aux == 0 || spec.args.iter().any(|a| matches!(a, Arg::Aux | Arg::Offset | Arg::Label)),
        },
    };
    sub && flags && aux
}
