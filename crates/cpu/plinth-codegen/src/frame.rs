//! The frame: all of a vCPU's state that translated code touches, at fixed offsets from the host's stack
//! pointer. While translated code runs, `rsp` points at the [`Frame`]; below it is the stack that helpers
//! run on. Nothing in translated code names a vCPU otherwise, so all vCPUs share it.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

use plinth_ir::interp::WORDS;

/// 64-bit slots of guest state that a frame has room for.
pub const SLOTS: usize = plinth_ir::interp::SLOTS;
/// Entries of each data TLB.
pub const TLB_ENTRIES: usize = 4096;
/// Entries of each code TLB.
pub const CODE_TLB_ENTRIES: usize = 2048;
/// Entries of the jump cache.
pub const JUMP_ENTRIES: usize = 65536;
/// Sets of address translations.
pub const MMUS: usize = 4;
/// Bits of a TLB token: 1..=[`TOKEN_MAX`], in the low bits of a tag. 0 marks an empty entry.
pub const TOKEN_MAX: u64 = 0x7ff;
/// A tag with this bit never matches in translated code, but tells the slow path about the page.
pub const TAG_SLOW: u64 = 0x800;
/// Spill room for temporaries.
pub const SPILLS: usize = 64;

/// A data TLB entry. A tag is the page's guest virtual address, plus the token of the address space.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TlbEntry {
    /// Tag that a load must match.
    pub read: u64,
    /// Tag that a store must match.
    pub write: u64,
    /// Host address minus guest virtual address.
    pub addend: u64,
    /// Guest physical address of the page; for the slow path.
    pub gpa: u64,
}

/// A code TLB entry.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CodeTlbEntry {
    /// Tag, as in [`TlbEntry`].
    pub tag: u64,
    /// Guest physical page number (address / 4096).
    pub page: u64,
}

/// A jump cache entry.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct JumpEntry {
    /// Guest virtual address xor the jump token. An empty entry has a host address of 0 and must have a key
    /// that the current token cannot produce for the index (the engine refills all keys with the token's
    /// complement when it changes tables).
    pub key: u64,
    /// Host code.
    pub host: u64,
}

/// Addresses of the thunks that translated code calls and jumps to, filled by the code memory's owner.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ThunkTable {
    /// Leaves to `enter`'s caller with `eax` = exit reason; saves the pinned registers.
    pub exit: u64,
    /// Calls [`Runtime::load`].
    pub load: u64,
    /// Calls [`Runtime::store`].
    pub store: u64,
    /// Calls [`Runtime::atomic`].
    pub atomic: u64,
    /// Calls [`Runtime::helper`].
    pub helper: u64,
    /// Calls [`Runtime::float`].
    pub float: u64,
    /// Calls [`Runtime::trap`]; does not return.
    pub trap: u64,
}

/// What translated code calls in the engine. `frame` is the vCPU's frame, with all slots current.
/// A function that ends the block (it raised an exception, say) sets [`Frame::leave`] to an exit reason and
/// [`Frame::pc`]; the thunk then leaves. `insn` is the current instruction's offset from [`Frame::pc_page`].
#[derive(Clone, Copy)]
pub struct Runtime {
    /// Loads: `desc` as packed by [`mem_desc`]. Returns the value, extended as asked.
    pub load: extern "C" fn(frame: *mut Frame, va: u64, desc: u64) -> u64,
    /// Stores `value`.
    pub store: extern "C" fn(frame: *mut Frame, va: u64, desc: u64, value: u64),
    /// Atomic operation: `desc` also packs the operation (see [`mem_desc`]); returns `dst`'s value.
    pub atomic: extern "C" fn(frame: *mut Frame, va: u64, desc: u64, b: u64, c: u64) -> u64,
    /// Helper `id_insn` (low 16 bits: helper index; bits 16..32: insn offset; bits 32..40: instruction length).
    pub helper: extern "C" fn(frame: *mut Frame, id_insn: u64, a: u64, b: u64, c: u64) -> u64,
    /// A floating point operation that host code does not do itself: the [`plinth_ir::Op`]'s first 4 bytes
    /// (code, ty, sub, flags) in the low half of `op`, `aux` in the high half. Flags go to `fp_flags`.
    pub float: extern "C" fn(frame: *mut Frame, op: u64, a: u64, b: u64, c: u64) -> u64,
    /// Raises exception (low 32 bits of `code_insn`), insn offset in bits 32..48, length in bits 48..56.
    pub trap: extern "C" fn(frame: *mut Frame, code_insn: u64, value: u64),
}

/// Packs what a memory slow path must know: bits 0..8 `Ty`, 8..16 IR flags, 16..32 insn offset from the page
/// base (13 bits used), 32..40 the IR `Code`, 40..48 `sub`, 48..56 instruction length.
#[must_use]
pub const fn mem_desc(ty: u8, flags: u8, insn: u32, code: u8, sub: u8, len: u8) -> u64 {
    ty as u64
        | (flags as u64) << 8
        | (insn as u64 & 0xffff) << 16
        | (code as u64) << 32
        | (sub as u64) << 40
        | (len as u64) << 48
}

/// Why translated code was left (the value of `enter`).
pub mod exit {
    /// A direct jump without a link: [`super::Frame::pc`] is the target, [`super::Frame::site`] its site.
    pub const LINK: u32 = 1;
    /// [`super::Frame::pc`] is the target; its translation is not known.
    pub const LOOKUP: u32 = 2;
    /// [`super::Frame::attention`] was set; [`super::Frame::pc`] is where to go on.
    pub const ATTENTION: u32 = 3;
    /// An operation asked for the dispatcher; the mode may have changed. [`super::Frame::pc`] is current.
    pub const DISPATCH: u32 = 4;
}

/// See the module's text.
#[repr(C, align(64))]
pub struct Frame {
    /// Not zero: leave translated code at the next loop head, backward jump or indirect jump.
    pub attention: AtomicU32,
    /// Set by a runtime function that ends the block.
    pub leave: u32,
    /// Guest address at an exit.
    pub pc: u64,
    /// Guest virtual address of the page that is being executed.
    pub pc_page: u64,
    /// What jump cache keys are made with: random for each mode and address space.
    pub jump_token: u64,
    /// Guest state, then scratch room of the interpreter.
    pub slots: [u64; WORDS],
    /// Tokens of the data TLBs.
    pub tokens: [u64; MMUS],
    /// Tokens of the code TLBs.
    pub code_tokens: [u64; MMUS],
    /// Reserved address (guest virtual), or all ones.
    pub reserved_va: u64,
    /// What was loaded there.
    pub reserved_value: u64,
    /// Temporaries that outlive the scratch registers; the last eight are addends of pages that accesses share.
    pub spills: [u64; SPILLS],
    /// Host address of the site that left with [`exit::LINK`].
    pub site: u64,
    /// Thunks.
    pub thunks: ThunkTable,
    /// The engine's own pointer.
    pub owner: u64,
    /// The host's stack pointer while translated code runs.
    pub host_rsp: u64,
    /// MXCSR of the guest: its sticky bits are the guest's floating point flags.
    pub guest_mxcsr: u32,
    /// MXCSR of the host, while translated code runs.
    pub host_mxcsr: u32,
    /// Floating point flags from software, to be joined with MXCSR's (IR numbering).
    pub fp_flags: u64,
    /// A 128-bit value on its way: [`Runtime::load`] of type v128 leaves it here, [`Runtime::store`] finds it.
    pub vector: [u64; 2],
    /// Code TLBs.
    pub code_tlb: [[CodeTlbEntry; CODE_TLB_ENTRIES]; MMUS],
    /// Jump cache.
    pub jumps: [JumpEntry; JUMP_ENTRIES],
    /// Data TLBs.
    pub tlb: [[TlbEntry; TLB_ENTRIES]; MMUS],
}

/// Byte offset of slot `index`.
#[must_use]
pub const fn slot_offset(index: u16) -> i32 {
    (offset_of!(Frame, slots) + index as usize * 8) as i32
}

/// Index into a data TLB: the page number folded, so that arrays at power-of-two strides do not collide.
#[must_use]
pub const fn tlb_index(va: u64) -> usize {
    ((va >> 12) ^ (va >> 24)) as usize & (TLB_ENTRIES - 1)
}

/// Index into a code TLB.
#[must_use]
pub const fn code_tlb_index(va: u64) -> usize {
    (va >> 12) as usize & (CODE_TLB_ENTRIES - 1)
}

/// Index into the jump cache.
#[must_use]
pub const fn jump_index(va: u64) -> usize {
    (va >> 1) as usize & (JUMP_ENTRIES - 1)
}
