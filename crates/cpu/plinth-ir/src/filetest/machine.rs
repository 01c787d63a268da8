//! The interpreter as an executor of tests.

use super::{End, Fault, LAYOUT, PAGE_BASE, Raised, State, helper, offset};
use crate::block::Block;
use crate::interp::{Atomic, Machine, MemAccess, Next, Program, Site, WORDS, run};

enum Stop {
    Trap(Raised),
    Raise(Raised),
    Fault(Fault),
}

struct TestMachine<'a> {
    words: Box<[u64; WORDS]>,
    state: &'a mut State,
    attention: bool,
}

/// Executes `block` on the reference interpreter.
///
/// # Errors
/// The block cannot be prepared.
pub fn interpret(block: &Block, state: &mut State, attention: bool) -> Result<End, String> {
    let program = Program::new(block, &LAYOUT).map_err(|e| e.to_string())?;
    let count = state.slots.len();
    // Scratch space holds anything.
    let mut words = Box::new([0xdead_beef_dead_beef; WORDS]);
    words[..count].copy_from_slice(&state.slots);
    let mut machine = TestMachine { words, state, attention };
    let next = run(&program, Program::START, PAGE_BASE, &mut machine);
    machine.state.slots.copy_from_slice(&machine.words[..count]);
    Ok(match next {
        Next::Direct { pc_off } => End::Jump(PAGE_BASE.wrapping_add(pc_off as u64)),
        Next::Indirect { pc, .. } => End::Jump(pc),
        Next::Exit { pc_off } => End::Dispatch(pc_off),
        Next::Attention { pc_off } => End::Attention(pc_off),
        Next::Stop { stop: Stop::Trap(raised), site } => End::Trap(raised, offset(site)),
        Next::Stop { stop: Stop::Raise(raised), site } => End::Raise(raised, offset(site)),
        Next::Stop { stop: Stop::Fault(fault), site } => End::Fault(fault, offset(site)),
    })
}

impl Machine for TestMachine<'_> {
    type Stop = Stop;

    fn words(&mut self) -> &mut [u64; WORDS] {
        &mut self.words
    }

    fn load(&mut self, va: u64, access: MemAccess) -> Result<u64, Stop> {
        self.state.memory.load(va, access.ty, access.flags).map(|v| v as u64).map_err(Stop::Fault)
    }

    fn store(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), Stop> {
        self.state.memory.store(va, access.ty, access.flags, u128::from(value)).map_err(Stop::Fault)
    }

    fn load_v128(&mut self, va: u64, access: MemAccess) -> Result<[u64; 2], Stop> {
        let value = self.state.memory.load(va, access.ty, access.flags).map_err(Stop::Fault)?;
        Ok([value as u64, (value >> 64) as u64])
    }

    fn store_v128(&mut self, va: u64, value: [u64; 2], access: MemAccess) -> Result<(), Stop> {
        let value = u128::from(value[0]) | u128::from(value[1]) << 64;
        self.state.memory.store(va, access.ty, access.flags, value).map_err(Stop::Fault)
    }

    fn atomic(&mut self, va: u64, atomic: Atomic, access: MemAccess, b: u64, c: u64) -> Result<u64, Stop> {
        self.state.memory.atomic(va, atomic, access.ty, b, c).map_err(Stop::Fault)
    }

    fn helper(&mut self, index: u32, _: Site, args: [u64; 3]) -> Result<u64, Stop> {
        helper(index, &mut self.words[..LAYOUT.slots.len()], args).map_err(Stop::Raise)
    }

    fn trap(&mut self, exception: i32, value: u64, _: Site) -> Stop {
        Stop::Trap((exception, value))
    }

    fn attention(&self) -> bool {
        self.attention
    }

    fn fp_flags(&mut self) -> u8 {
        self.state.fp_flags
    }

    fn set_fp_flags(&mut self, flags: u8) {
        self.state.fp_flags = flags;
    }
}
