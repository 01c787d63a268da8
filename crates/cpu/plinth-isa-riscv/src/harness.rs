//! A hart without an engine: RAM, a clock and a machine that record what they are asked. For tests and fuzz
//! targets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use plinth_ir::{Access, AccessKind, Cpu, CpuEnv, Exception, HelperFn, HelperResult, PhysFault, Translation};
use plinth_vcpu::{IrqSink, Platform, StartState, SystemEvent, TlbFlush, VcpuControl, VcpuPower};

use crate::mode::{RiscvMode, Unit, mmu};
use crate::privileged::state::{feature, status};
use crate::privileged::{csr, interrupts, mmu as walk, trap};
use crate::slots::{self, get, set};
use crate::{CpuModel, Firmware, Riscv, lift, vector};

/// Guest physical address of the RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Bytes of code that are lifted at most.
const PAGE_BYTES: usize = 4096;
/// Bytes of RAM.
pub const RAM_BYTES: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Another vCPU: records what it is asked.
#[derive(Default)]
pub struct TestVcpu {
    /// Its index.
    pub index: u32,
    /// It is on.
    pub is_on: AtomicBool,
    /// Inputs that were set.
    pub irqs: Mutex<Vec<(u32, bool)>>,
    /// Flushes.
    pub flushes: Mutex<Vec<TlbFlush>>,
    /// How it was started.
    pub started: Mutex<Option<StartState>>,
}

impl IrqSink for TestVcpu {
    fn set_irq(&self, line: u32, level: bool) {
        lock(&self.irqs).push((line, level));
    }
}

impl VcpuControl for TestVcpu {
    fn index(&self) -> u32 {
        self.index
    }
    fn deliver_message(&self, _: u32, _: u32) {}
    fn kick(&self) {}
    fn start(&self, state: StartState) -> bool {
        let was_on = self.is_on.swap(true, Ordering::Relaxed);
        if !was_on {
            *lock(&self.started) = Some(state);
        }
        !was_on
    }
    fn power(&self) -> VcpuPower {
        if self.is_on.load(Ordering::Relaxed) { VcpuPower::On } else { VcpuPower::Off }
    }
    fn flush_tlb(&self, flush: TlbFlush) {
        lock(&self.flushes).push(flush);
    }
}

/// A machine that records.
#[derive(Default)]
pub struct TestPlatform {
    /// What was written to the console.
    pub written: Mutex<Vec<u8>>,
    /// What waits at the console.
    pub input: Mutex<Vec<u8>>,
    /// Events.
    pub events: Mutex<Vec<SystemEvent>>,
    /// vCPUs.
    pub vcpus: Vec<Arc<TestVcpu>>,
}

impl Platform for TestPlatform {
    fn console_write(&self, data: &[u8]) -> usize {
        lock(&self.written).extend_from_slice(data);
        data.len()
    }
    fn console_read(&self, data: &mut [u8]) -> usize {
        let mut input = lock(&self.input);
        let count = input.len().min(data.len());
        for (to, from) in data.iter_mut().zip(input.drain(..count)) {
            *to = from;
        }
        count
    }
    fn system_event(&self, event: SystemEvent) {
        lock(&self.events).push(event);
    }
    fn vcpus(&self) -> Vec<Arc<dyn VcpuControl>> {
        self.vcpus.iter().map(|v| Arc::clone(v) as Arc<dyn VcpuControl>).collect()
    }
}

/// What the engine would offer.
pub struct TestEnv {
    /// RAM at [`RAM_BASE`].
    pub ram: Vec<u8>,
    /// The clock.
    pub now: u64,
    /// Instructions retired.
    pub retired: u64,
    /// The deadline.
    pub deadline: u64,
    /// Interrupt inputs.
    pub pins: u64,
    /// TLB flushes.
    pub flushes: Vec<TlbFlush>,
    /// How often code was flushed.
    pub code_flushes: u32,
    /// How often it was asked to wait.
    pub waits: u32,
    /// It was switched off.
    pub is_off: bool,
    /// Floating point flags.
    pub flags: u8,
    /// Messages that wait, with their files.
    pub messages: Vec<(u32, u32)>,
    /// How many of the next compare-and-swaps lose against another hart that sets this bit.
    pub contended: u32,
    /// The machine.
    pub platform: TestPlatform,
}

impl TestEnv {
    fn at(&mut self, gpa: u64, bytes: u32) -> Result<&mut [u8], PhysFault> {
        let start = gpa.checked_sub(RAM_BASE).and_then(|o| usize::try_from(o).ok()).ok_or(PhysFault)?;
        let end = start.checked_add(bytes as usize).ok_or(PhysFault)?;
        if !gpa.is_multiple_of(u64::from(bytes)) {
            return Err(PhysFault);
        }
        self.ram.get_mut(start..end).ok_or(PhysFault)
    }
}

impl CpuEnv for TestEnv {
    fn index(&self) -> u32 {
        0
    }
    fn now_ns(&self) -> u64 {
        self.now
    }
    fn set_deadline(&mut self, ns: u64) {
        self.deadline = ns;
    }
    fn deadline_passed(&self) -> bool {
        self.now >= self.deadline
    }
    fn pins(&self) -> u64 {
        self.pins
    }
    fn set_pin(&mut self, pin: u32, level: bool) {
        self.pins = self.pins & !(1 << pin) | u64::from(level) << pin;
    }
    fn take_messages(&mut self, file: u32) -> Vec<u32> {
        let (taken, left) = self.messages.iter().partition(|(f, _)| *f == file);
        self.messages = left;
        let taken: Vec<(u32, u32)> = taken;
        taken.into_iter().map(|(_, id)| id).collect()
    }
    fn flush_tlb(&mut self, flush: TlbFlush) {
        self.flushes.push(flush);
    }
    fn flush_code(&mut self) {
        self.code_flushes += 1;
    }
    fn wait_for_interrupt(&mut self) {
        self.waits += 1;
    }
    fn power_off(&mut self) {
        self.is_off = true;
    }
    fn read_phys(&mut self, gpa: u64, bytes: u32) -> Result<u64, PhysFault> {
        let data = self.at(gpa, bytes)?;
        Ok(data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
    fn write_phys(&mut self, gpa: u64, bytes: u32, value: u64) -> Result<(), PhysFault> {
        let data = self.at(gpa, bytes)?;
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }
    fn cas_phys(&mut self, gpa: u64, old: u64, new: u64) -> Result<u64, PhysFault> {
        const SOFTWARE_BIT: u64 = 1 << 8;
        if self.contended > 0 {
            self.contended -= 1;
            let was = self.read_phys(gpa, 8)?;
            self.write_phys(gpa, 8, was ^ SOFTWARE_BIT)?;
        }
        let was = self.read_phys(gpa, 8)?;
        if was == old {
            self.write_phys(gpa, 8, new)?;
        }
        Ok(was)
    }
    fn cas_pair_phys(&mut self, gpa: u64, old: [u64; 2], new: [u64; 2]) -> Result<[u64; 2], PhysFault> {
        self.at(gpa, 16)?;
        let was = [self.read_phys(gpa, 8)?, self.read_phys(gpa + 8, 8)?];
        if was == old {
            self.write_phys(gpa, 8, new[0])?;
            self.write_phys(gpa + 8, 8, new[1])?;
        }
        Ok(was)
    }
    fn load(&mut self, va: u64, bytes: u32) -> Result<u64, Exception> {
        let fault = Exception { code: trap::cause::LOAD_PAGE, value: va };
        (0..bytes).try_fold(0, |value, i| {
            let byte = self.read_phys(va.wrapping_add(i.into()), 1).map_err(|PhysFault| fault)?;
            Ok(value | byte << (8 * i))
        })
    }
    fn store(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception> {
        let fault = Exception { code: trap::cause::STORE_PAGE, value: va };
        self.read_phys(va.wrapping_add(u64::from(bytes) - 1), 1).map_err(|PhysFault| fault)?;
        (0..bytes).try_for_each(|i| {
            self.write_phys(va.wrapping_add(i.into()), 1, value >> (8 * i) & 0xff).map_err(|PhysFault| fault)
        })
    }
    fn fp_flags(&mut self) -> u8 {
        self.flags
    }
    fn set_fp_flags(&mut self, flags: u8) {
        self.flags = flags;
    }
    fn platform(&self) -> &dyn Platform {
        &self.platform
    }
    fn instret(&self) -> u64 {
        self.retired
    }
}

/// A hart.
pub struct Hart {
    /// The ISA.
    pub isa: Riscv,
    /// State.
    pub slots: Vec<u64>,
    /// Address of the current instruction.
    pub pc: u64,
    /// Surroundings. Hart 0 of four; 0 and 1 are on.
    pub env: TestEnv,
}

impl Hart {
    /// After reset at the base of RAM.
    #[must_use]
    pub fn new(firmware: Firmware) -> Self {
        use plinth_ir::Isa;
        let isa = Riscv::new(CpuModel::default(), firmware);
        let vcpu = |index| Arc::new(TestVcpu { index, is_on: (index < 2).into(), ..TestVcpu::default() });
        let env = TestEnv {
            ram: vec![0; RAM_BYTES],
            now: 0,
            retired: 0,
            deadline: u64::MAX,
            pins: 0,
            flushes: Vec::new(),
            code_flushes: 0,
            waits: 0,
            is_off: false,
            flags: 0,
            messages: Vec::new(),
            contended: 0,
            platform: TestPlatform { vcpus: (0..4).map(vcpu).collect(), ..TestPlatform::default() },
        };
        let mut slots = vec![0; slots::COUNT];
        let start = StartState { pc: RAM_BASE, registers: Vec::new() };
        let pc = isa.reset(&mut slots, 0, &start);
        Self { isa, slots, pc, env }
    }

    /// The slot's value.
    #[must_use]
    pub fn get(&self, slot: u16) -> u64 {
        get(&self.slots, slot)
    }

    /// Sets a slot.
    pub fn set(&mut self, slot: u16, value: u64) {
        set(&mut self.slots, slot, value);
    }

    /// Value of integer register `r`.
    #[must_use]
    pub fn x(&self, r: u8) -> u64 {
        self.get(slots::x(r))
    }

    /// What the engine's functions take.
    pub fn cpu(&mut self) -> Cpu<'_> {
        Cpu { slots: &mut self.slots, pc: self.pc, insn_len: 4, env: &mut self.env }
    }

    /// Runs a helper.
    pub fn helper(&mut self, function: HelperFn, a: u64, b: u64, c: u64) -> HelperResult {
        let mut cpu = self.cpu();
        let result = function(&mut cpu, a, b, c);
        self.pc = cpu.pc;
        result
    }

    /// Runs the CSR instruction with `funct3`, on CSR `number`, with the `rd` and `rs1` fields.
    pub fn csr(&mut self, funct3: u32, number: u16, rd: u32, rs1: u32) -> HelperResult {
        let insn = u32::from(number) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x73;
        self.helper(csr::csr, u64::from(insn), 0, 0)
    }

    /// Reads a CSR.
    ///
    /// # Errors
    /// The exception.
    pub fn read(&mut self, number: u16) -> Result<u64, Exception> {
        match self.csr(2, number, 5, 0) {
            HelperResult::Raise(e) => Err(e),
            HelperResult::Next(_) | HelperResult::Jump => Ok(self.x(5)),
        }
    }

    /// Writes a CSR.
    pub fn write(&mut self, number: u16, value: u64) -> HelperResult {
        self.set(slots::x(6), value);
        self.csr(1, number, 0, 6)
    }

    /// Writes a CSR and reads it back.
    ///
    /// # Errors
    /// The exception of the read.
    pub fn write_read(&mut self, number: u16, value: u64) -> Result<u64, Exception> {
        self.write(number, value);
        self.read(number)
    }

    /// Takes an exception.
    pub fn raise(&mut self, code: u32, value: u64) {
        let mut cpu = self.cpu();
        trap::raise(&mut cpu, Exception { code, value });
        self.pc = cpu.pc;
    }

    /// Takes an interrupt, if there is one.
    pub fn take_interrupt(&mut self) -> bool {
        let mut cpu = self.cpu();
        let taken = interrupts::take(&mut cpu);
        self.pc = cpu.pc;
        taken
    }

    /// Translates an access of set `mmu`.
    ///
    /// # Errors
    /// The exception.
    pub fn translate(&mut self, va: u64, kind: AccessKind, mmu: u32) -> Result<Translation, Exception> {
        let access = Access { va, kind, mmu: mmu as usize };
        walk::translate(&self.slots, &mut self.env, access)
    }

    /// Makes an SBI call; returns `a0` and `a1`.
    pub fn sbi(&mut self, extension: u64, function: u64, args: &[u64]) -> (i64, u64) {
        for r in 10..16 {
            self.set(slots::x(r), args.get(usize::from(r) - 10).copied().unwrap_or(0));
        }
        self.set(slots::x(16), function);
        self.set(slots::x(17), extension);
        self.raise(trap::cause::ECALL_SUPERVISOR, 0);
        (self.x(10) as i64, self.x(11))
    }
}

/// Fuzz targets: none may panic, whatever the data.
pub mod fuzz {
    use super::*;
    use crate::privileged::csr::number as n;

    const CSRS: [u16; 24] = [
        n::SSTATUS,
        n::SIE,
        n::SIP,
        n::STIMECMP,
        n::SISELECT,
        n::SIREG,
        n::STOPEI,
        n::STOPI,
        n::SATP,
        n::FCSR,
        n::MSTATUS,
        n::MIDELEG,
        n::MEDELEG,
        n::MIE,
        n::MIP,
        n::MENVCFG,
        n::MCOUNTINHIBIT,
        n::MINSTRET,
        n::PMPCFG0,
        n::PMPCFG2,
        n::PMPADDR0,
        n::PMPADDR15,
        n::STVEC,
        n::MTVEC,
    ];

    fn words(data: &[u8]) -> impl Iterator<Item = u64> {
        data.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_le_bytes))
    }

    fn hart(data: &[u8]) -> Hart {
        let choice = data.first().copied().unwrap_or(0);
        let mut hart = Hart::new(if choice & 1 != 0 { Firmware::Guest } else { Firmware::BuiltIn });
        if choice & 2 != 0 {
            hart.set(slots::FEATURES, hart.get(slots::FEATURES) | feature::AIA);
        }
        hart
    }

    fn probe(hart: &mut Hart, va: u64) {
        use plinth_ir::Isa;
        for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
            for set in [mmu::USER, mmu::SUPERVISOR, mmu::SUPERVISOR_SUM, mmu::MACHINE] {
                if let Ok(t) = hart.translate(va, kind, set) {
                    assert!(t.page_size.is_power_of_two() && t.page_size >= 4096);
                    assert_eq!((t.gpa ^ va) & 0xfff, 0);
                }
                std::hint::black_box(hart.isa.address_space(&hart.slots, set as usize));
            }
        }
        std::hint::black_box(hart.isa.mode(&hart.slots));
    }

    /// CSR instructions and traps: each word is one.
    pub fn privileged(data: &[u8]) {
        let mut hart = hart(data);
        let helpers: [HelperFn; 7] = [
            csr::csr,
            trap::mret,
            trap::sret,
            interrupts::wfi,
            crate::privileged::fence::sfence_vma,
            crate::privileged::fence::sfence_order,
            crate::privileged::fence::fp_check,
        ];
        for word in words(data) {
            hart.env.now = hart.env.now.wrapping_add(word >> 40);
            hart.env.pins = word >> 48;
            hart.env.messages.push((1, (word >> 12 & 0x1ff) as u32));
            hart.env.messages.truncate(64);
            hart.set(slots::x((word >> 32 & 31) as u8), word.rotate_left(21));
            hart.set(slots::X0, 0);
            let (insn, va) = (word & 0xffff_ffff, word.rotate_left(9));
            // Half of the instructions name a CSR of supervisor or machine mode that exists.
            let known = CSRS[(word >> 24) as usize % CSRS.len()];
            let insn = if word >> 59 & 1 == 0 { insn } else { insn & 0xf_ffff | u64::from(known) << 20 };
            let function = if word >> 60 < 9 { csr::csr } else { helpers[(word >> 60) as usize % 7] };
            if let HelperResult::Raise(e) = hart.helper(function, insn, va, word >> 20) {
                hart.raise(e.code, e.value);
            }
            match word >> 56 & 15 {
                0 => hart.raise((word & 127) as u32, word),
                1 => {
                    hart.take_interrupt();
                }
                2 => probe(&mut hart, va),
                _ => {}
            }
            let s = &hart.slots;
            assert!([0, 1, 3].contains(&get(s, slots::PRIVILEGE)));
            assert_eq!(get(s, slots::X0), 0);
            std::hint::black_box(interrupts::wakes(&mut hart.cpu()));
        }
    }

    /// Page tables: the RAM is made of the data, the walks begin in it.
    pub fn pages(data: &[u8]) {
        let mut hart = hart(data);
        if data.is_empty() {
            return;
        }
        let pattern: Vec<u8> = data.iter().copied().cycle().take(RAM_BYTES).collect();
        hart.env.ram = pattern;
        for word in words(data) {
            let root = RAM_BASE >> 12 | word & 0xff;
            hart.set(slots::SATP, (8 + (word >> 8) % 3) << 60 | root);
            hart.set(slots::MENVCFG, word << 61 & (1 << 61));
            hart.env.contended = (word >> 16 & 1023) as u32;
            hart.set(slots::PMPCFG0, word.rotate_left(13));
            hart.set(slots::PMPADDR0 + (word >> 26 & 15) as u16, word.rotate_left(33) & ((1 << 54) - 1));
            let va = word.rotate_left(7);
            probe(&mut hart, va);
            probe(&mut hart, (va << 25) as i64 as u64 >> 25);
        }
    }

    /// Vector instructions: each word is one, with a vector type and registers. They are executed, and
    /// lifted.
    pub fn vector(data: &[u8]) {
        use plinth_ir::{Block, LiftRequest, Mode};
        const OPCODES: [u32; 4] = [0x57, 0x57, 0x07, 0x27];
        let mut hart = Hart::new(Firmware::Guest);
        hart.set(slots::MSTATUS, status::FS | status::VS);
        let mut code = Vec::new();
        for word in words(data) {
            let insn = (word as u32) & !0x7f | OPCODES[(word & 3) as usize];
            let config = vector::Config::new(word >> 32 & 0xff, word >> 40 & 0xff);
            let vl = config.vl().min(config.vlmax());
            // Types that no instruction could have set are not in the slot.
            let config = vector::requested(config.vtype()).with_vl(vl);
            let config = if config.is_ill() { vector::Config::ILLEGAL } else { config };
            if word >> 63 == 0 {
                config.with_vstart(word >> 56 & 15).put(&mut hart.slots);
            }
            let address = RAM_BASE.wrapping_add(word >> 48 << 5);
            hart.set(slots::x((insn >> 15 & 31) as u8), address);
            hart.set(slots::X0, 0);
            hart.set(slots::FRM, word >> 60 & 7);
            hart.helper(vector::execute, u64::from(insn), 0, 0);
            let after = vector::Config::of(&hart.slots);
            assert!(after.is_ill() || after.vl() <= after.vlmax());
            assert_eq!(hart.get(slots::X0), 0);
            code.extend(insn.to_le_bytes());
        }
        code.truncate(PAGE_BYTES);
        let mode = Mode {
            key: RiscvMode { vector: Unit::Check, fp: Unit::On, ..RiscvMode::default() }.key(),
            fetch: 0,
        };
        let mut block = Block::default();
        let request = LiftRequest { mode, start: 0, code: &code, max_insns: 128 };
        if lift::lift(&request, &mut block).is_ok() {
            assert_eq!(plinth_ir::verify(&block, &slots::LAYOUT), Ok(()));
        }
    }

    /// SBI calls: seven words each.
    pub fn sbi(data: &[u8]) {
        const EXTENSIONS: [u64; 9] =
            [0x10, 0x5449_4d45, 0x73_5049, 0x5246_4e43, 0x48_534d, 0x5352_5354, 0x4442_434e, 1, 0];
        let mut hart = Hart::new(Firmware::BuiltIn);
        let all: Vec<u64> = words(data).collect();
        for call in all.chunks_exact(7) {
            let selector = (call[0] & 15) as usize;
            let extension = EXTENSIONS.get(selector).copied().unwrap_or(call[0] >> 4);
            let small = |v: u64| if v & 1 == 0 { v >> 1 } else { v >> 56 };
            let in_ram = |v: u64| if v & 3 == 0 { RAM_BASE + (v >> 2) % (RAM_BYTES as u64 + 64) } else { v };
            let args = [small(call[2]), in_ram(call[3]), small(call[4]), call[5], call[6]];
            hart.sbi(extension, call[1] & 7, &args);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fuzz;

    /// Pseudo-random bytes (xorshift64).
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..bytes / 8).flat_map(|_| next().to_le_bytes()).collect()
    }

    #[test]
    fn a_hostile_guest_does_not_get_out() {
        for seed in 0..24 {
            fuzz::privileged(&noise(seed * 0x9e37_79b9 + 1, 64 << 10));
            fuzz::vector(&noise(seed * 0x3141_5927 + 1, 64 << 10));
            fuzz::sbi(&noise(seed * 0x1234_5677 + 1, 14 << 10));
            fuzz::pages(&noise(seed * 0x7654_3211 + 1, 1 << 10));
        }
    }
}
