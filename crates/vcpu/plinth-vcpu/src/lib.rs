//! What a vCPU is to the rest of Plinth, whatever runs it (the translating engine, the interpreter, KVM)
//! and whatever its instruction set: the two traits at its edges and the values that cross them.
//!
//! Downwards a vCPU needs RAM (`plinth-memory`), a [`PhysicalBus`] for every other guest physical address
//! and [`Platform`] services. Upwards it gives [`Vcpu`] to its thread and [`VcpuControl`] to everybody else.

use std::fmt;
use std::sync::Arc;

/// Why an access to a guest physical address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusFault {
    /// No device is there.
    NoDevice,
    /// A device is there and refuses this size, alignment or direction.
    Refused,
}

/// Guest physical addresses that are not RAM.
pub trait PhysicalBus: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `gpa`.
    ///
    /// # Errors
    /// [`BusFault`] becomes a guest-visible access fault.
    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), BusFault>;

    /// Writes `data` (1, 2, 4 or 8 bytes) at `gpa`.
    ///
    /// # Errors
    /// [`BusFault`] becomes a guest-visible access fault.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), BusFault>;
}

/// A set of interrupt inputs: those of an interrupt controller, or of a vCPU.
pub trait IrqSink: Send + Sync {
    /// Sets the level of input `line`.
    fn set_irq(&self, line: u32, level: bool);
}

/// What the guest, or its built-in firmware, asked of the whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest reported that it crashed, or cannot go on.
    Crash(String),
}

/// What a vCPU starts with. Registers are named in the guest ISA's own terms by the board's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartState {
    /// Guest address of the first instruction.
    pub pc: u64,
    /// Register names and values, such as `("a0", 0)`.
    pub registers: Vec<(&'static str, u64)>,
}

/// Whether a vCPU runs guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuPower {
    /// Runs, or sleeps in a wait for interrupts.
    On,
    /// Waits to be started by another vCPU.
    Off,
}

/// Services of the machine that firmware built into a vCPU offers to the guest (SBI, PSCI).
pub trait Platform: Send + Sync {
    /// Writes to the firmware's console; returns how many bytes were taken.
    fn console_write(&self, data: &[u8]) -> usize;
    /// Reads what waits at the firmware's console, without blocking.
    fn console_read(&self, data: &mut [u8]) -> usize;
    /// Reports a machine-wide event. Returns at once; the machine stops its vCPUs.
    fn system_event(&self, event: SystemEvent);
    /// All vCPUs of the machine by index, for starting, interrupting and remote TLB flushes.
    fn vcpus(&self) -> Vec<Arc<dyn VcpuControl>>;
}

/// Asks another vCPU to forget address translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbFlush {
    /// First guest virtual address; with `len`, the range. `None`: everything.
    pub range: Option<(u64, u64)>,
    /// Only this address space, where the ISA has such identifiers.
    pub asid: Option<u64>,
}

/// A vCPU as other threads see it. Cheap to call; never blocks, but for what is said at each method.
pub trait VcpuControl: IrqSink {
    /// Index in its machine, from 0.
    fn index(&self) -> u32;
    /// Delivers message-signalled interrupt `id` to interrupt file `file` of this vCPU.
    fn deliver_message(&self, file: u32, id: u32);
    /// Leaves guest code soon and returns [`VcpuExit::Kicked`] from [`Vcpu::run`].
    fn kick(&self);
    /// Starts a vCPU that is off. Returns false if it is on.
    fn start(&self, state: StartState) -> bool;
    /// Whether it is on.
    fn power(&self) -> VcpuPower;
    /// Flushes translations; returns when the vCPU no longer uses the old ones.
    fn flush_tlb(&self, flush: TlbFlush);
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// [`VcpuControl::kick`] was called.
    Kicked,
    /// The guest cannot go on (a triple fault and its like); the text says why.
    Crashed(String),
}

/// A vCPU as its own thread sees it.
pub trait Vcpu: Send {
    /// Runs guest code until there is a reason to return. While the vCPU is off or waits for an interrupt
    /// the thread sleeps inside.
    fn run(&mut self) -> VcpuExit;
    /// Puts the vCPU into its reset state, off, or on with `start`.
    fn reset(&mut self, start: Option<StartState>);
    /// The handle for other threads.
    fn control(&self) -> Arc<dyn VcpuControl>;
    /// All architectural registers, by name. For a debugger and crash reports.
    fn registers(&self) -> Vec<Register>;
}

/// One architectural register's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Name in the ISA's terms.
    pub name: String,
    /// Its bits.
    pub value: u64,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:#018x}", self.name, self.value)
    }
}
