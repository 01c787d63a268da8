//! The contract of a guest ISA: what a front end gives to the engine, and what the engine gives to it.

use plinth_vcpu::{Platform, Register, StartState, TlbFlush};

use crate::block::Block;

/// What a slot holds, which decides where a code generator keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotClass {
    /// A general register: an integer or an address.
    Int,
    /// A floating point register's bits.
    Float,
    /// Rarely touched control state.
    Control,
    /// A 128-bit vector; takes this slot and the next.
    Vector,
}

/// One slot of the guest's state: 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Name in the text form and in register dumps.
    pub name: &'static str,
    /// What it holds.
    pub class: SlotClass,
}

/// The guest's state of one ISA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// All slots, by index.
    pub slots: &'static [SlotInfo],
    /// Integer slots by how much a code generator gains from keeping them in host registers, most first.
    pub hot: &'static [u16],
    /// Bits of the default NaN of f16, f32 and f64.
    pub default_nan: [u64; 3],
}

/// The part of the state that translated code depends on. A block is translated for one value of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mode {
    /// Bits 0 and 1: which of the four sets of address translations data accesses use (privilege and its
    /// variants). The other bits belong to the ISA: all that its lifter looks at.
    pub key: u32,
    /// Which set instruction fetch uses, 0..4.
    pub fetch: u8,
}

impl Mode {
    /// The set of address translations for data accesses, 0..4.
    #[must_use]
    pub const fn data(self) -> usize {
        (self.key & 3) as usize
    }
}

/// What address translations of one set depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct AddressSpace {
    /// What global translations depend on too: paging mode, permission switches, protection regions.
    pub regime: u32,
    /// What distinguishes address spaces of one regime (an ASID and the root of the page tables).
    pub space: u64,
    /// What a flush of one address space names it by ([`plinth_vcpu::TlbFlush::asid`]).
    pub asid: u64,
}

/// Kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store or an atomic operation.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// An access to be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Guest virtual address.
    pub va: u64,
    /// Kind.
    pub kind: AccessKind,
    /// The set of address translations (see [`Mode`]).
    pub mmu: usize,
}

/// How a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address of the accessed byte.
    pub gpa: u64,
    /// Bytes of the mapping: a power of two, 4096 at the least (what is smaller, as protection regions may
    /// be, says 0: valid for this access alone).
    pub page_size: u64,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed (and the dirty state, where there is one, is set).
    pub write: bool,
    /// Fetches are allowed.
    pub fetch: bool,
    /// The same in every address space.
    pub global: bool,
}

/// An exception or interrupt to be taken by the guest. The numbers are the ISA's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which.
    pub code: u32,
    /// What the ISA reports with it: an address, an instruction.
    pub value: u64,
}

/// A guest physical access from a page walk or a helper failed: nothing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysFault;

/// What the engine offers to an ISA's functions.
pub trait CpuEnv {
    /// Index of this vCPU.
    fn index(&self) -> u32;
    /// Nanoseconds of the machine's clock.
    fn now_ns(&self) -> u64;
    /// Looks at interrupts again at `ns` ([`plinth_vcpu`]'s clock; `u64::MAX`: never), in place of an
    /// earlier deadline.
    fn set_deadline(&mut self, ns: u64);
    /// False if the deadline has not passed since it was set, so that the clock need not be read. An engine
    /// that does not keep track says true.
    fn deadline_passed(&self) -> bool {
        true
    }
    /// Levels of the vCPU's interrupt inputs, by bit.
    fn pins(&self) -> u64;
    /// Sets an interrupt input of this vCPU itself.
    fn set_pin(&mut self, pin: u32, level: bool);
    /// Takes up to 64 message-signalled interrupts for `file` that arrived: `(id)` each.
    fn take_messages(&mut self, file: u32) -> Vec<u32>;
    /// Forgets address translations of this vCPU.
    fn flush_tlb(&mut self, flush: TlbFlush);
    /// Later fetches see all earlier stores of this vCPU.
    fn flush_code(&mut self);
    /// The vCPU has nothing to do until an interrupt input rises or the deadline passes: it sleeps after the
    /// current instruction. May return early.
    fn wait_for_interrupt(&mut self);
    /// Switches the vCPU off after the current instruction, until it is started again.
    fn power_off(&mut self);
    /// Reads 1, 2, 4 or 8 bytes of RAM, naturally aligned, atomically.
    ///
    /// # Errors
    /// There is no RAM.
    fn read_phys(&mut self, gpa: u64, bytes: u32) -> Result<u64, PhysFault>;
    /// Writes 1, 2, 4 or 8 bytes of RAM, naturally aligned, atomically.
    ///
    /// # Errors
    /// There is no RAM.
    fn write_phys(&mut self, gpa: u64, bytes: u32, value: u64) -> Result<(), PhysFault>;
    /// Compares and swaps 8 aligned bytes of RAM; returns what was there.
    ///
    /// # Errors
    /// There is no RAM.
    fn cas_phys(&mut self, gpa: u64, old: u64, new: u64) -> Result<u64, PhysFault>;
    /// Compares and swaps 16 aligned bytes of RAM, given and returned as the low and the high half; returns
    /// what was there. Code translated from them is dropped.
    ///
    /// # Errors
    /// There is no RAM.
    fn cas_pair_phys(&mut self, gpa: u64, old: [u64; 2], new: [u64; 2]) -> Result<[u64; 2], PhysFault>;
    /// Loads 1, 2, 4 or 8 bytes at guest virtual address `va`, zero-extended, as a load of the current mode
    /// does.
    ///
    /// # Errors
    /// The exception that it would raise.
    fn load(&mut self, va: u64, bytes: u32) -> Result<u64, Exception>;
    /// Stores the low 1, 2, 4 or 8 bytes of `value` at `va`, as a store of the current mode does; all of them
    /// or none.
    ///
    /// # Errors
    /// The exception that it would raise.
    fn store(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception>;
    /// Loads `data.len()` bytes at `va`, if they are in one page that was accessed before and has nothing
    /// special; else does nothing and says false.
    fn load_quickly(&mut self, _va: u64, _data: &mut [u8]) -> bool {
        false
    }
    /// Stores `data` at `va`, likewise.
    fn store_quickly(&mut self, _va: u64, _data: &[u8]) -> bool {
        false
    }
    /// The accumulated floating point flags (see [`crate::Code::FpFlagsGet`]).
    fn fp_flags(&mut self) -> u8;
    /// Sets them.
    fn set_fp_flags(&mut self, flags: u8);
    /// Services of the machine.
    fn platform(&self) -> &dyn Platform;
    /// Instructions retired, if the engine counts them; else a steadily growing stand-in.
    fn instret(&self) -> u64;
}

/// A vCPU's state in the hands of an ISA's function.
pub struct Cpu<'a> {
    /// All slots.
    pub slots: &'a mut [u64],
    /// Address of the current instruction; a function that redirects sets it.
    pub pc: u64,
    /// Bytes of the current instruction, where it is known; else 0.
    pub insn_len: u32,
    /// The engine.
    pub env: &'a mut dyn CpuEnv,
}

/// How a helper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperResult {
    /// The block goes on with this value.
    Next(u64),
    /// The block is left to [`Cpu::pc`], which the helper has set; the engine looks at the mode again.
    Jump,
    /// An exception at the current instruction.
    Raise(Exception),
}

/// A helper function.
pub type HelperFn = fn(&mut Cpu<'_>, u64, u64, u64) -> HelperResult;

/// A helper of an ISA.
#[derive(Clone, Copy)]
pub struct Helper {
    /// Name in the text form.
    pub name: &'static str,
    /// The function.
    pub function: HelperFn,
}

/// What is to be lifted.
pub struct LiftRequest<'a> {
    /// Mode to lift for.
    pub mode: Mode,
    /// Offset of the first instruction from the page base, below 4096.
    pub start: u32,
    /// Code from `start` to the end of the page, and after it what is known of the next page, if that is
    /// mapped: enough for an instruction that straddles.
    pub code: &'a [u8],
    /// At most so many instructions.
    pub max_insns: u32,
}

/// Why nothing could be lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiftError {
    /// The first instruction straddles into the next page and `code` ends before it does. The engine fetches
    /// the next page (which may raise a fault there) and asks again.
    NeedNextPage,
}

/// A guest ISA.
pub trait Isa: Send + Sync {
    /// Name: `riscv64`.
    fn name(&self) -> &'static str;
    /// The guest's state.
    fn layout(&self) -> &Layout;
    /// Helpers, by index.
    fn helpers(&self) -> &[Helper];
    /// Lifts one region into `out`, which is cleared first. An instruction that straddles the page is lifted
    /// only as the first one, in a block of its own. Undefined instructions lift to a trap.
    ///
    /// # Errors
    /// [`LiftError`].
    fn lift(&self, request: &LiftRequest<'_>, out: &mut Block) -> Result<(), LiftError>;
    /// Text of the instruction that `code` begins with at address `pc`, and its length in bytes.
    fn disassemble(&self, code: &[u8], pc: u64) -> (String, u32);

    /// Sets the state after reset for vCPU `index`, then registers and the address from `start`. Returns
    /// the address of the first instruction.
    fn reset(&self, slots: &mut [u64], index: u32, start: &StartState) -> u64;
    /// The mode that the state is in.
    fn mode(&self, slots: &[u64]) -> Mode;
    /// What distinguishes the address space of set `mmu` from others: translations are kept by it. Everything
    /// that changes translations or permissions without a TLB flush by the guest is part of it. Cheap.
    fn address_space(&self, slots: &[u64], mmu: usize) -> AddressSpace;
    /// Translates an access: walks page tables, sets accessed and dirty state.
    ///
    /// # Errors
    /// The exception that the guest sees.
    fn translate(
        &self,
        slots: &[u64],
        env: &mut dyn CpuEnv,
        access: Access,
    ) -> Result<Translation, Exception>;
    /// The exception for an access whose translation succeeded but whose bus access failed.
    fn access_fault(&self, access: Access) -> Exception;
    /// The exception for a misaligned access that must be aligned.
    fn misaligned(&self, access: Access) -> Exception;
    /// Takes an exception: saves state, enters the handler by setting [`Cpu::pc`]. Firmware built into the
    /// ISA answers its calls here.
    fn raise(&self, cpu: &mut Cpu<'_>, exception: Exception);
    /// Takes the most urgent enabled interrupt, if one is pending; [`Cpu::pc`] is that of the next instruction.
    fn take_interrupt(&self, cpu: &mut Cpu<'_>) -> bool;
    /// True if the vCPU has a reason to end a wait for interrupts. May take messages into the state.
    fn wakes(&self, slots: &mut [u64], env: &mut dyn CpuEnv) -> bool;
    /// All registers for a dump.
    fn registers(&self, slots: &[u64], pc: u64) -> Vec<Register>;
}
