//! A hart on the reference interpreter with flat memory: enough to run user-mode code.

#![allow(dead_code)] // Each test uses its part of it.

use std::sync::Arc;

use plinth_ir::interp::{Atomic, Machine, MemAccess, Next, Program, Site, WORDS, run};
use plinth_ir::{
    Block, Cpu, CpuEnv, Exception, HelperFn, HelperResult, LiftError, LiftRequest, Mode, PhysFault, Ty,
    eval_amo, flags, verify,
};
use plinth_isa_riscv::helper::HelperId;
use plinth_isa_riscv::mode::{RiscvMode, Unit, mmu, privilege};
use plinth_isa_riscv::privileged::state::{misa_bit, status};
use plinth_isa_riscv::privileged::{access, csr};
use plinth_isa_riscv::{compute, lift, slots, vector};
use plinth_vcpu::{Platform, SystemEvent, TlbFlush, VcpuControl};

/// Why the hart stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An exception at the current instruction.
    Exception(i32, u64),
    /// A helper that belongs to the privileged architecture.
    Helper(HelperId, [u64; 3]),
    /// Too many blocks were run.
    Limit,
}

/// The hart.
pub struct Hart {
    pub words: Box<[u64; WORDS]>,
    pub memory: Vec<u8>,
    /// Address of `memory`.
    pub base: u64,
    pub pc: u64,
    pub mode: RiscvMode,
    pub fp_flags: u8,
    pub max_insns: u32,
    reservation: Option<u64>,
}

/// User mode with floating point and all cache block instructions.
pub const USER: RiscvMode = RiscvMode {
    mmu: mmu::USER,
    privilege: privilege::USER,
    fp: Unit::On,
    vector: Unit::On,
    frm: 0,
    cbo_clean: true,
    cbo_inval: true,
    cbo_zero: true,
};

impl Hart {
    pub fn new(base: u64, memory: Vec<u8>) -> Self {
        let mut words = Box::new([0; WORDS]);
        words[usize::from(slots::MSTATUS)] = status::FS | status::VS;
        words[usize::from(slots::MISA)] = misa_bit(b'V');
        Self { words, memory, base, pc: base, mode: USER, fp_flags: 0, max_insns: 64, reservation: None }
    }

    pub fn x(&self, r: u8) -> u64 {
        self.words[usize::from(slots::x(r))]
    }

    pub fn set_x(&mut self, r: u8, value: u64) {
        self.words[usize::from(slots::x(r))] = value;
    }

    pub fn set_xs(&mut self, values: &[(u8, u64)]) {
        for &(r, value) in values {
            self.set_x(r, value);
        }
    }

    pub fn f(&self, r: u8) -> u64 {
        self.words[usize::from(slots::f(r))]
    }

    pub fn set_f(&mut self, r: u8, value: u64) {
        self.words[usize::from(slots::f(r))] = value;
    }

    pub fn slot(&mut self, slot: u16) -> &mut u64 {
        &mut self.words[usize::from(slot)]
    }

    pub fn bytes(&mut self, va: u64, len: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(va.checked_sub(self.base)?).ok()?;
        self.memory.get_mut(at..at.checked_add(len)?)
    }

    /// Lifts the block at `pc` and checks it.
    pub fn lift(&mut self) -> Result<Block, Stop> {
        let page = self.pc & !4095;
        let start = (self.pc & 4095) as u32;
        let mut block = Block::default();
        let mode = Mode { key: self.mode.key(), fetch: 0 };
        let mut len = 4096 - start as usize;
        loop {
            let available = usize::try_from(self.pc - self.base).unwrap();
            let end = (available + len).min(self.memory.len());
            let Some(code) = self.memory.get(available..end) else {
                return Err(Stop::Exception(12, self.pc));
            };
            let request = LiftRequest { mode, start, code, max_insns: self.max_insns };
            match lift::lift(&request, &mut block) {
                Ok(()) => break,
                Err(LiftError::NeedNextPage) if len < 4096 - start as usize + 2 => len += 2,
                Err(e) => panic!("{e:?} at {page:#x}+{start:#x}"),
            }
        }
        if let Err(e) = verify(&block, &slots::LAYOUT) {
            panic!("{e}: {block:#?}");
        }
        Ok(block)
    }

    /// Runs until something stops it. `pc` is then that of the instruction.
    pub fn run(&mut self, blocks: usize) -> Stop {
        for _ in 0..blocks {
            let page = self.pc & !4095;
            let block = match self.lift() {
                Ok(block) => block,
                Err(stop) => return stop,
            };
            let program = Program::new(&block, &slots::LAYOUT).expect("verified");
            match run(&program, Program::START, page, self) {
                Next::Direct { pc_off } | Next::Exit { pc_off } | Next::Attention { pc_off } => {
                    self.pc = page.wrapping_add(pc_off as u64);
                }
                Next::Indirect { pc, .. } => self.pc = pc,
                Next::Stop { stop, site } => {
                    self.pc = page + u64::from(site.offset);
                    match stop {
                        Stop::Helper(HelperId::Csr, [insn, ..]) if self.float_csr(insn as u32) => {
                            self.pc += u64::from(site.len);
                        }
                        Stop::Helper(HelperId::Csr, [insn, ..]) if self.vector_csr(insn) => {
                            self.pc += u64::from(site.len);
                        }
                        Stop::Helper(HelperId::FenceI | HelperId::Wrs, _) => self.pc += u64::from(site.len),
                        stop => return stop,
                    }
                }
            }
        }
        Stop::Limit
    }

    /// Emulates writes of `frm` and `fcsr`, which change the mode.
    fn float_csr(&mut self, insn: u32) -> bool {
        let (number, rd, rs1) = (insn >> 20, (insn >> 7 & 31) as u8, (insn >> 15 & 31) as u8);
        if !(2..=3).contains(&number) {
            return false;
        }
        let old_fcsr = u64::from(self.fp_flags) | u64::from(self.mode.frm) << 5;
        let old = if number == 2 { old_fcsr >> 5 } else { old_fcsr };
        let operand = if insn >> 14 & 1 != 0 { u64::from(rs1) } else { self.x(rs1) };
        let new = match insn >> 12 & 3 {
            1 => operand,
            2 => old | operand,
            _ => old & !operand,
        };
        if number == 2 {
            self.mode.frm = (new & 7) as u32;
        } else {
            self.mode.frm = (new >> 5 & 7) as u32;
            self.fp_flags = (new & 31) as u8;
        }
        if rd != 0 {
            self.set_x(rd, old);
        }
        true
    }

    /// CSR instructions on what only vector instructions use: true if it was one.
    fn vector_csr(&mut self, insn: u64) -> bool {
        let is_vector = matches!(insn >> 20, 8..=15 | 0xc20..=0xc22);
        is_vector && matches!(self.call(csr::csr, [insn, 0, 0]), HelperResult::Next(_))
    }

    pub fn call(&mut self, function: HelperFn, args: [u64; 3]) -> HelperResult {
        let mut env = Env { fp_flags: self.fp_flags, memory: &mut self.memory, base: self.base };
        *self.words.get_mut(usize::from(slots::FRM)).unwrap() = u64::from(self.mode.frm);
        let mut cpu = Cpu { slots: &mut self.words[..slots::COUNT], pc: self.pc, insn_len: 4, env: &mut env };
        let result = function(&mut cpu, args[0], args[1], args[2]);
        self.fp_flags = env.fp_flags;
        result
    }

    fn access(&mut self, va: u64, access: MemAccess, code: i32) -> Result<&mut [u8], Stop> {
        let len = access.ty.bytes() as usize;
        if access.flags & flags::ALIGNED != 0 && !va.is_multiple_of(len as u64) {
            return Err(Stop::Exception(code - 1, va));
        }
        self.bytes(va, len).ok_or(Stop::Exception(code, va))
    }

    fn read(&mut self, va: u64, access: MemAccess, code: i32) -> Result<u64, Stop> {
        let mut value = [0; 8];
        let bytes = self.access(va, access, code)?;
        value[..bytes.len()].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(value))
    }

    fn write(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), Stop> {
        let bytes = self.access(va, access, 7)?;
        let len = bytes.len();
        bytes.copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(())
    }
}

fn cut(ty: Ty, value: u64) -> u64 {
    plinth_ir::extend(ty, false, value)
}

impl Machine for Hart {
    type Stop = Stop;

    fn words(&mut self) -> &mut [u64; WORDS] {
        &mut self.words
    }

    fn load(&mut self, va: u64, access: MemAccess) -> Result<u64, Stop> {
        self.read(va, access, 5)
    }

    fn store(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), Stop> {
        self.write(va, value, access)
    }

    fn load_v128(&mut self, va: u64, access: MemAccess) -> Result<[u64; 2], Stop> {
        let bytes = self.access(va, access, 5)?;
        let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Ok([half(0), half(8)])
    }

    fn store_v128(&mut self, va: u64, value: [u64; 2], access: MemAccess) -> Result<(), Stop> {
        let bytes = self.access(va, access, 7)?;
        bytes[..8].copy_from_slice(&value[0].to_le_bytes());
        bytes[8..].copy_from_slice(&value[1].to_le_bytes());
        Ok(())
    }

    fn atomic(&mut self, va: u64, atomic: Atomic, access: MemAccess, b: u64, c: u64) -> Result<u64, Stop> {
        let code = if atomic == Atomic::LoadReserved { 5 } else { 7 };
        let old = self.read(va, access, code)?;
        let new = match atomic {
            Atomic::Amo(op) => eval_amo(op, access.ty, old, b),
            Atomic::Cas if old == cut(access.ty, b) => c,
            Atomic::Cas => return Ok(old),
            Atomic::LoadReserved => {
                self.reservation = Some(va);
                return Ok(old);
            }
            Atomic::StoreCond => {
                let held = self.reservation.take() == Some(va);
                if held {
                    self.write(va, b, access)?;
                }
                return Ok(u64::from(!held));
            }
        };
        self.write(va, new, access)?;
        Ok(old)
    }

    fn helper(&mut self, index: u32, _: Site, args: [u64; 3]) -> Result<u64, Stop> {
        let id = HelperId::ALL[index as usize];
        let function = match id {
            HelperId::Clmul => compute::clmul,
            HelperId::Clmulh => compute::clmulh,
            HelperId::Clmulr => compute::clmulr,
            HelperId::Fclass => compute::fclass,
            HelperId::Fcvtmod => compute::fcvtmod,
            HelperId::AmocasQ => access::amocas_q,
            HelperId::CacheBlock => access::cache_block,
            HelperId::Vector => vector::execute,
            _ => return Err(Stop::Helper(id, args)),
        };
        // Memory is not translated or protected here: for what asks, this is machine mode.
        let machine = matches!(id, HelperId::AmocasQ | HelperId::CacheBlock);
        let privilege = self.words[usize::from(slots::PRIVILEGE)];
        if machine {
            self.words[usize::from(slots::PRIVILEGE)] = 3;
        }
        let result = self.call(function, args);
        self.words[usize::from(slots::PRIVILEGE)] = privilege;
        match result {
            HelperResult::Next(value) => Ok(value),
            HelperResult::Jump => panic!("{} does not jump", id.name()),
            HelperResult::Raise(Exception { code, value }) => Err(Stop::Exception(code as i32, value)),
        }
    }

    fn trap(&mut self, exception: i32, value: u64, _: Site) -> Stop {
        Stop::Exception(exception, value)
    }

    fn attention(&self) -> bool {
        false
    }

    fn fp_flags(&mut self) -> u8 {
        self.fp_flags
    }

    fn set_fp_flags(&mut self, flags: u8) {
        self.fp_flags = flags;
    }
}

/// What helpers may use here: the floating point flags and memory.
struct Env<'a> {
    fp_flags: u8,
    memory: &'a mut [u8],
    base: u64,
}

impl Env<'_> {
    fn at(&mut self, va: u64, bytes: u32, code: u32) -> Result<&mut [u8], Exception> {
        let fault = Exception { code, value: va };
        let start = va.checked_sub(self.base).ok_or(fault)? as usize;
        let end = start.checked_add(bytes as usize).ok_or(fault)?;
        self.memory.get_mut(start..end).ok_or(fault)
    }
}

struct NoPlatform;

impl Platform for NoPlatform {
    fn console_write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn console_read(&self, _: &mut [u8]) -> usize {
        0
    }
    fn system_event(&self, _: SystemEvent) {}
    fn vcpus(&self) -> Vec<Arc<dyn VcpuControl>> {
        Vec::new()
    }
}

impl CpuEnv for Env<'_> {
    fn index(&self) -> u32 {
        0
    }
    fn now_ns(&self) -> u64 {
        0
    }
    fn set_deadline(&mut self, _: u64) {}
    fn pins(&self) -> u64 {
        0
    }
    fn set_pin(&mut self, _: u32, _: bool) {}
    fn take_messages(&mut self, _: u32) -> Vec<u32> {
        Vec::new()
    }
    fn flush_tlb(&mut self, _: TlbFlush) {}
    fn flush_code(&mut self) {}
    fn wait_for_interrupt(&mut self) {}
    fn power_off(&mut self) {}
    fn read_phys(&mut self, _: u64, _: u32) -> Result<u64, PhysFault> {
        Err(PhysFault)
    }
    fn write_phys(&mut self, _: u64, _: u32, _: u64) -> Result<(), PhysFault> {
        Err(PhysFault)
    }
    fn cas_phys(&mut self, _: u64, _: u64, _: u64) -> Result<u64, PhysFault> {
        Err(PhysFault)
    }
    fn cas_pair_phys(&mut self, gpa: u64, old: [u64; 2], new: [u64; 2]) -> Result<[u64; 2], PhysFault> {
        let at = gpa.checked_sub(self.base).ok_or(PhysFault)? as usize;
        let bytes = self.memory.get_mut(at..at + 16).ok_or(PhysFault)?;
        let (low, high) = bytes.split_at_mut(8);
        let half = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
        let was = [half(low), half(high)];
        if was == old {
            low.copy_from_slice(&new[0].to_le_bytes());
            high.copy_from_slice(&new[1].to_le_bytes());
        }
        Ok(was)
    }
    fn load(&mut self, va: u64, bytes: u32) -> Result<u64, Exception> {
        let mut value = [0; 8];
        value[..bytes as usize].copy_from_slice(self.at(va, bytes, 5)?);
        Ok(u64::from_le_bytes(value))
    }
    fn store(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception> {
        self.at(va, bytes, 7)?.copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        Ok(())
    }
    fn fp_flags(&mut self) -> u8 {
        self.fp_flags
    }
    fn set_fp_flags(&mut self, flags: u8) {
        self.fp_flags = flags;
    }
    fn platform(&self) -> &dyn Platform {
        &NoPlatform
    }
    fn instret(&self) -> u64 {
        0
    }
}
