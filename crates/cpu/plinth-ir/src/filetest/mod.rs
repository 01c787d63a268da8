//! Tests of the IR as text files, for whatever executes blocks: the interpreter, a code generator.
//!
//! ```text
//! test add                       ; a test: operations, then cases
//! ir
//!   x3 = add.i64 x1, x2
//! cases
//!   x1=5 x2=-1 => x3=4           ; state before => changes
//! ```
//! Operations that do not begin with `block` are wrapped into one instruction of 4 bytes at [`INSN`] that ends
//! with `exit` to [`END`]. Values are decimal or hexadecimal numbers (of 128 bits for vectors), `f32(1.5)` or
//! `f64(-inf)`; `[0x10000]` is a 64-bit word of memory, `fpflags` the floating point flags.
//! Before: `attention=1` asks for attention. After: control's end is `jump=` (an address), `dispatch=` (an
//! offset from the page base, as all that follow; `dispatch` to [`END`] is assumed), `attention=`, or
//! `trap=`, `raise=`, `fault=`, `misaligned=` with what is raised and `at=`, the instruction's offset.
//! Everything that a case does not name must not change.

mod machine;
mod memory;
mod parse;

pub use machine::interpret;
pub use memory::{Fault, MEMORY_BASE, MEMORY_BYTES, Memory};
pub use parse::parse_file;

use std::path::Path;

use crate::block::Block;
use crate::interp::Site;
use crate::isa::{Layout, SlotClass, SlotInfo};

/// Guest virtual address of the page that blocks are in.
pub const PAGE_BASE: u64 = 0x8000_0000;
/// Offset of the instruction that bare operations are wrapped in.
pub const INSN: u32 = 0x10;
/// Offset that bare operations exit to.
pub const END: i32 = 0x100;

macro_rules! slots {
    ($($class:ident: $($name:literal)+;)+) => {
        &[$($(SlotInfo { name: $name, class: SlotClass::$class },)+)+]
    };
}

/// The state of the tests' ISA.
pub static LAYOUT: Layout = Layout {
    slots: slots! {
        Int: "x0" "x1" "x2" "x3" "x4" "x5" "x6" "x7" "x8" "x9" "x10" "x11" "x12" "x13" "x14" "x15";
        Float: "f0" "f1" "f2" "f3" "f4" "f5" "f6" "f7";
        Vector: "v0" "v0h" "v1" "v1h" "v2" "v2h" "v3" "v3h";
        Control: "c0" "c1" "c2" "c3";
    },
    hot: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0],
    default_nan: [0x7e00, 0x7fc0_0000, 0x7ff8_0000_0000_0000],
};

/// An exception of a helper: its number and value.
pub type Raised = (i32, u64);

/// How many helpers there are.
pub const HELPERS: u32 = 4;

/// The tests' helpers: 0 gives a + 2b + 3c; 1 sets slot a to b and gives the slot's old value; 2 raises
/// exception a with value b; 3 gives slot a.
///
/// # Errors
/// Helper 2 raises; so does one that does not exist, or that is asked for a slot that does not.
pub fn helper(index: u32, slots: &mut [u64], [a, b, c]: [u64; 3]) -> Result<u64, Raised> {
    let slot = slots.get_mut(a as usize).ok_or((-1, a));
    match index {
        0 => Ok(a.wrapping_add(b.wrapping_mul(2)).wrapping_add(c.wrapping_mul(3))),
        1 => Ok(std::mem::replace(slot?, b)),
        2 => Err((a as i32, b)),
        3 => slot.copied(),
        _ => Err((-1, u64::from(index))),
    }
}

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A jump to this address.
    Jump(u64),
    /// Through the dispatcher to this offset.
    Dispatch(i32),
    /// Attention at this offset.
    Attention(i32),
    /// A trap operation raised this, at the instruction at the offset.
    Trap(Raised, u32),
    /// A helper raised this.
    Raise(Raised, u32),
    /// A memory access failed.
    Fault(Fault, u32),
}

/// What a block runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Values of the slots of [`LAYOUT`].
    pub slots: Vec<u64>,
    /// Memory.
    pub memory: Memory,
    /// Accumulated floating point flags.
    pub fp_flags: u8,
}

/// A case of a test.
#[derive(Clone, Debug)]
pub struct Case {
    /// Test and number of the case, for messages.
    pub name: String,
    /// State before.
    pub before: State,
    /// Attention is asked for all along.
    pub attention: bool,
    /// State after.
    pub after: State,
    /// How it ends.
    pub end: End,
}

/// A test.
#[derive(Clone, Debug)]
pub struct Test {
    /// What is executed, from its first operation.
    pub block: Block,
    /// Cases.
    pub cases: Vec<Case>,
}

/// Runs every case of every `.irt` file in `dir` by `execute`, which is given a test's block, the page base
/// [`PAGE_BASE`] being understood, the state to run on and change, and whether attention is asked for.
/// Returns how many cases there were.
///
/// # Errors
/// Says what failed, in which file.
pub fn run_dir(
    dir: &Path,
    execute: &mut dyn FnMut(&Block, &mut State, bool) -> Result<End, String>,
) -> Result<usize, String> {
    let fail = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let entries = std::fs::read_dir(dir).map_err(|e| fail(dir, &e))?;
    let mut paths: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "irt"));
    paths.sort();
    let mut count = 0;
    let mut failures = Vec::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).map_err(|e| fail(path, &e))?;
        for test in parse_file(&text).map_err(|e| fail(path, &e))? {
            crate::verify(&test.block, &LAYOUT)
                .map_err(|e| fail(path, &format!("{}: {e}", test.cases[0].name)))?;
            for case in &test.cases {
                count += 1;
                if let Err(e) = run_case(&test.block, case, execute) {
                    failures.push(fail(path, &format!("{}: {e}", case.name)));
                }
            }
        }
    }
    if failures.is_empty() { Ok(count) } else { Err(failures.join("\n")) }
}

fn run_case(
    block: &Block,
    case: &Case,
    execute: &mut dyn FnMut(&Block, &mut State, bool) -> Result<End, String>,
) -> Result<(), String> {
    let mut state = case.before.clone();
    let end = execute(block, &mut state, case.attention)?;
    let mut differences = Vec::new();
    if end != case.end {
        differences.push(format!("ends with {end:x?}, expected {:x?}", case.end));
    }
    for (i, (got, want)) in state.slots.iter().zip(&case.after.slots).enumerate() {
        if got != want {
            differences.push(format!("{} = {got:#x}, expected {want:#x}", LAYOUT.slots[i].name));
        }
    }
    if state.fp_flags != case.after.fp_flags {
        differences.push(format!("fpflags = {:#x}, expected {:#x}", state.fp_flags, case.after.fp_flags));
    }
    if let Some((va, got, want)) = state.memory.difference(&case.after.memory) {
        differences.push(format!("[{va:#x}] = {got:#x}, expected {want:#x}"));
    }
    if differences.is_empty() { Ok(()) } else { Err(differences.join("; ")) }
}

/// Offset of a site, as [`End`] has it.
fn offset(site: Site) -> u32 {
    u32::from(site.offset)
}
