//! A machine for tests of the engine: RAM, a bus with an exit register and some bytes of a device, RISC-V harts
//! and an assembler for what they run.

#![allow(dead_code)] // Each test file uses its part.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use plinth_clock::{Clock, NEVER, Timers};
use plinth_engine::{Engine, Parts, Tier};
use plinth_isa_riscv::generate::{by_name, encode};
use plinth_isa_riscv::{CpuModel, Firmware, Riscv};
use plinth_memory::{Bytes, GuestAddress, GuestRam};
use plinth_vcpu::{BusFault, PhysicalBus, Platform, StartState, SystemEvent, Vcpu, VcpuControl, VcpuExit};

/// Guest physical address of the RAM.
pub const RAM: u64 = 0x8000_0000;
/// Bytes of RAM.
pub const RAM_BYTES: u64 = 4 << 20;
/// Exit register of hart `n`: `EXIT + 16 * n`; the 8 bytes after it are another.
pub const EXIT: u64 = 0x1000_0000;
/// A page of bytes that read as they were written.
pub const DEVICE: u64 = 0x1000_1000;
/// Nanoseconds until a guest that does not end has failed.
const LIMIT_NS: u64 = 60_000_000_000;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that is not RAM.
pub struct TestBus {
    device: Mutex<Vec<u8>>,
    /// Writes to exit registers: address and value.
    exits: Mutex<Vec<(u64, u64)>>,
    /// Reads and writes of the device: address and bytes.
    pub accesses: Mutex<Vec<(u64, usize)>>,
    vcpus: OnceLock<Vec<Arc<dyn VcpuControl>>>,
}

impl TestBus {
    fn vcpus(&self) -> &[Arc<dyn VcpuControl>] {
        self.vcpus.get().map_or(&[], Vec::as_slice)
    }
}

impl PhysicalBus for TestBus {
    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), BusFault> {
        let at = gpa.checked_sub(DEVICE).ok_or(BusFault::NoDevice)? as usize;
        lock(&self.accesses).push((gpa, data.len()));
        data.copy_from_slice(lock(&self.device).get(at..at + data.len()).ok_or(BusFault::NoDevice)?);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), BusFault> {
        if (EXIT..EXIT + 0x100).contains(&gpa) {
            let value = data.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
            lock(&self.exits).push((gpa, value));
            self.vcpus().get((gpa - EXIT) as usize / 16).ok_or(BusFault::Refused)?.kick();
            return Ok(());
        }
        let at = gpa.checked_sub(DEVICE).ok_or(BusFault::NoDevice)? as usize;
        lock(&self.accesses).push((gpa, data.len()));
        lock(&self.device).get_mut(at..at + data.len()).ok_or(BusFault::NoDevice)?.copy_from_slice(data);
        Ok(())
    }
}

impl Platform for TestBus {
    fn console_write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn console_read(&self, _: &mut [u8]) -> usize {
        0
    }
    fn system_event(&self, _: SystemEvent) {}
    fn vcpus(&self) -> Vec<Arc<dyn VcpuControl>> {
        self.vcpus().to_vec()
    }
}

/// A machine with one hart or more.
pub struct Machine {
    pub ram: GuestRam,
    pub bus: Arc<TestBus>,
    pub vcpus: Vec<Box<dyn Vcpu>>,
    pub timers: Arc<Timers>,
}

impl Machine {
    pub fn new(tier: Tier, firmware: Firmware, harts: usize) -> Self {
        Self::make(firmware, harts, |parts| Engine::new(parts, tier).unwrap())
    }

    pub fn make(firmware: Firmware, harts: usize, engine: impl FnOnce(Parts) -> Engine) -> Self {
        let ram = GuestRam::new(&[(RAM, RAM_BYTES)]).unwrap();
        let bus = Arc::new(TestBus {
            device: Mutex::new(vec![0; 4096]),
            exits: Mutex::default(),
            accesses: Mutex::default(),
            vcpus: OnceLock::new(),
        });
        let timers = Arc::new(Timers::new(Clock::new()).unwrap());
        let engine = engine(Parts {
            isa: Arc::new(Riscv::new(CpuModel { vector: true, ..CpuModel::default() }, firmware)),
            ram: ram.clone(),
            bus: bus.clone(),
            platform: bus.clone(),
            timers: Arc::clone(&timers),
        });
        let vcpus: Vec<_> = (0..harts).map(|_| engine.add_vcpu().unwrap()).collect();
        assert!(bus.vcpus.set(vcpus.iter().map(|v| v.control()).collect()).is_ok());
        Self { ram, bus, vcpus, timers }
    }

    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.ram.memory().write_slice(data, GuestAddress(gpa)).unwrap();
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.memory().read_slice(&mut data, GuestAddress(gpa)).unwrap();
        data
    }

    pub fn word(&self, gpa: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(gpa)).unwrap()
    }

    pub fn set_word(&self, gpa: u64, value: u64) {
        self.ram.memory().write_obj(value, GuestAddress(gpa)).unwrap();
    }

    /// Runs hart 0 from `pc` until it writes an exit register, and returns that write.
    pub fn run(&mut self, pc: u64, registers: &[(&'static str, u64)]) -> (u64, u64) {
        self.vcpus[0].reset(Some(StartState { pc, registers: registers.to_vec() }));
        self.resume()
    }

    /// Goes on with hart 0 until it writes an exit register, and returns that write.
    pub fn resume(&mut self) -> (u64, u64) {
        self.run_all()[0]
    }

    /// Runs every hart, each on a thread, until each has written its exit register.
    pub fn run_all(&mut self) -> Vec<(u64, u64)> {
        lock(&self.bus.exits).clear();
        let late = Arc::new(AtomicBool::new(false));
        let (flag, bus) = (Arc::clone(&late), Arc::clone(&self.bus));
        let limit = self.timers.timer(move || {
            flag.store(true, Ordering::SeqCst);
            bus.vcpus().iter().for_each(|v| v.kick());
        });
        limit.arm(self.timers.clock().now_ns() + LIMIT_NS);
        if let [vcpu] = &mut self.vcpus[..] {
            assert_eq!(vcpu.run(), VcpuExit::Kicked);
        } else {
            std::thread::scope(|scope| {
                for vcpu in &mut self.vcpus {
                    scope.spawn(|| assert_eq!(vcpu.run(), VcpuExit::Kicked));
                }
            });
        }
        limit.arm(NEVER);
        if late.load(Ordering::SeqCst) {
            let state: Vec<_> =
                self.vcpus.iter().flat_map(|v| v.registers()).map(|r| r.to_string()).collect();
            panic!("the guest did not end in time: {}", state.join(" "));
        }
        std::mem::take(&mut *lock(&self.bus.exits))
    }

    /// A register of hart 0, by its ABI name.
    pub fn register(&self, name: &str) -> u64 {
        self.vcpus[0].registers().into_iter().find(|r| r.name == name).unwrap().value
    }
}

/// Numbers of CSRs.
pub mod csr {
    pub const FCSR: i32 = 0x003;
    pub const SSTATUS: i32 = 0x100;
    pub const STVEC: i32 = 0x105;
    pub const SENVCFG: i32 = 0x10a;
    pub const SEPC: i32 = 0x141;
    pub const SCAUSE: i32 = 0x142;
    pub const STVAL: i32 = 0x143;
    pub const SATP: i32 = 0x180;
    pub const SIE: i32 = 0x104;
    pub const MSTATUS: i32 = 0x300;
    pub const MIE: i32 = 0x304;
    pub const MTVEC: i32 = 0x305;
    pub const MEPC: i32 = 0x341;
    pub const MCAUSE: i32 = 0x342;
    pub const MTVAL: i32 = 0x343;
}

/// Puts instructions together.
#[derive(Clone, Default)]
pub struct Asm {
    /// Guest address of the first byte.
    pub base: u64,
    pub code: Vec<u8>,
}

impl Asm {
    pub fn new(base: u64) -> Self {
        Self { base, code: Vec::new() }
    }

    /// Guest address of the next instruction.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    pub fn emit(&mut self, name: &str, rd: u8, rs1: u8, rs2: u8, imm: i32) {
        let row = by_name(name).unwrap();
        let bits = encode(row, rd, rs1, rs2, imm)
            .unwrap_or_else(|| panic!("{name} {rd} {rs1} {rs2} {imm:#x} cannot be encoded"));
        self.code.extend_from_slice(&bits.to_le_bytes()[..usize::from(row.bytes())]);
    }

    /// `name rd, rs1, imm`.
    pub fn imm(&mut self, name: &str, rd: u8, rs1: u8, imm: i32) {
        self.emit(name, rd, rs1, 0, imm);
    }

    /// `name rs2, imm(rs1)`.
    pub fn store(&mut self, name: &str, rs2: u8, rs1: u8, imm: i32) {
        self.emit(name, 0, rs1, rs2, imm);
    }

    /// A branch (or, with `jal`, a jump that links `rs1`) to `target`.
    pub fn branch(&mut self, name: &str, rs1: u8, rs2: u8, target: u64) {
        let distance = target.wrapping_sub(self.here()) as i32;
        if name == "jal" {
            self.emit(name, rs1, 0, 0, distance)
        } else {
            self.emit(name, 0, rs1, rs2, distance)
        }
    }

    /// rd = `value`.
    pub fn li(&mut self, rd: u8, value: u64) {
        let value = value as i64;
        let low = (value << 52 >> 52) as i32;
        if i64::from(low) == value {
            self.imm("addi", rd, 0, low);
        } else if i64::from(value as i32) == value {
            self.imm("lui", rd, 0, (value as i32).wrapping_sub(low));
            self.imm("addiw", rd, rd, low);
        } else {
            self.li(rd, (value.wrapping_sub(low.into()) >> 12) as u64);
            self.imm("slli", rd, rd, 12);
            self.imm("addi", rd, rd, low);
        }
    }

    /// csr = rs1.
    pub fn csrw(&mut self, csr: i32, rs1: u8) {
        self.emit("csrrw", 0, rs1, 0, csr);
    }

    /// rd = csr.
    pub fn csrr(&mut self, rd: u8, csr: i32) {
        self.emit("csrrs", rd, 0, 0, csr);
    }

    /// Writes `rs` to exit register `register`, by way of `t6`, and waits there.
    pub fn exit(&mut self, rs: u8, register: u64) {
        self.li(31, register);
        self.store("sd", rs, 31, 0);
        self.branch("jal", 0, 0, self.here());
    }
}
