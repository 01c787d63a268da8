//! One vCPU's state and what its ISA's functions can ask of it.

use std::arch::asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use plinth_clock::{NEVER, Timer};
use plinth_ir::{Access, AccessKind, Cpu, CpuEnv, Exception, Mode, PhysFault};
use plinth_vcpu::{IrqSink, Platform, TlbFlush};

use crate::code::Dropped;
use crate::control::{Control, Request};
use crate::frame::{FrameMap, FramePtr, field};
use crate::recent::Recent;
use crate::shared::Shared;
use crate::tlb::{Page, Tlb};

/// One vCPU, on its own thread.
pub struct Core {
    pub frame: FramePtr,
    pub map: Arc<FrameMap>,
    pub control: Arc<Control>,
    pub shared: Arc<Shared>,
    pub tlb: Tlb,
    pub recent: Recent,
    pub mode: Mode,
    /// Translated code is on the stack above: MXCSR is the guest's.
    pub in_code: bool,
    pub waits: bool,
    pub stops: bool,
    pub deadline: u64,
    pub timer: Timer,
}

impl Core {
    pub fn new(index: u32, shared: Arc<Shared>) -> std::io::Result<Self> {
        let map = Arc::new(FrameMap::new()?);
        let frame = map.frame();
        let control = Arc::new(Control::new(index, Arc::clone(&map)));
        let at_deadline = Arc::clone(&control);
        let timer = shared.timers.timer(move || at_deadline.deadline());
        field!(frame, reserved_va) = u64::MAX;
        Ok(Self {
            frame,
            tlb: Tlb::new(frame),
            recent: Recent::new(),
            map,
            control,
            shared,
            mode: Mode::default(),
            in_code: false,
            waits: false,
            stops: false,
            deadline: NEVER,
            timer,
        })
    }

    /// Hands the state to a function of the ISA; the address it leaves is the frame's.
    pub fn with_cpu<R>(&mut self, pc: u64, insn_len: u32, f: impl FnOnce(&mut Cpu<'_>) -> R) -> R {
        let frame = self.frame;
        let mut cpu = Cpu { slots: frame.slots(), pc, insn_len, env: self };
        let r = f(&mut cpu);
        let pc = cpu.pc;
        field!(frame, pc) = pc;
        r
    }

    /// The guest takes `exception` at `pc`.
    pub fn raise(&mut self, pc: u64, insn_len: u32, exception: Exception) {
        field!(self.frame, reserved_va) = u64::MAX;
        let isa = Arc::clone(&self.shared.isa);
        self.with_cpu(pc, insn_len, |cpu| isa.raise(cpu, exception));
    }

    /// Looks at the mode and its address spaces, and makes the TLBs theirs.
    pub fn enter_mode(&mut self) {
        let isa = &self.shared.isa;
        let slots = self.frame.slots();
        let mode = isa.mode(slots);
        let data = isa.address_space(slots, mode.data());
        let fetch = isa.address_space(slots, usize::from(mode.fetch));
        self.mode = mode;
        self.tlb.enter_mode(mode, data, fetch);
    }

    /// Carries out what others asked.
    pub fn handle(&mut self, request: Request) {
        match request {
            Request::Flush(f) => self.tlb.flush(f),
            Request::ProtectPage(gpa) => self.tlb.protect(gpa),
            Request::DropCode(dropped) => self.drop_code(&dropped),
            Request::DropAllCode => self.drop_all_code(),
        }
    }

    /// Forgets where `dropped` translations were.
    pub fn drop_code(&mut self, dropped: &[Dropped]) {
        for d in dropped {
            self.recent.remove(d.gpa);
            match d.host {
                Some(host) => self.tlb.drop_jump(d.gpa, host),
                // The interpreter's cache goes by the jump token alone.
                None => self.tlb.drop_jumps(),
            }
        }
        if dropped.iter().any(|d| d.host.is_none()) {
            self.enter_mode();
        }
    }

    /// Forgets where all translations were.
    pub fn drop_all_code(&mut self) {
        self.recent.clear();
        self.tlb.drop_jumps();
    }

    /// Translates an access and enters its page into the TLB.
    pub fn translate(&mut self, access: Access) -> Result<Page, Exception> {
        let isa = Arc::clone(&self.shared.isa);
        let frame = self.frame;
        let t = isa.translate(frame.slots(), self, access)?;
        let gpa = t.gpa & !4095;
        let page = Page {
            va: access.va & !4095,
            gpa,
            hva: self.shared.ram.hva(gpa, 4096).map(|p| p as u64),
            read: t.read,
            write: t.write,
            protect: self.shared.ram.is_code(gpa),
            global: t.global,
            page_size: t.page_size,
        };
        if t.page_size >= 4096 {
            if access.kind == AccessKind::Fetch {
                // Code runs from RAM alone.
                if page.hva.is_some() {
                    self.tlb.fill_code(access.mmu, &page);
                }
            } else {
                self.tlb.fill(access.mmu, &page);
            }
        }
        Ok(page)
    }

    /// This vCPU wrote what code was translated from: its own ways there are stale.
    pub fn code_changed(&mut self, dropped: &[Dropped]) {
        if dropped.is_empty() {
            return;
        }
        self.drop_code(dropped);
        // The code may have been that which runs now, in a loop that nothing else would ever lead out of.
        self.map.attention().store(1, Ordering::SeqCst);
    }

    /// MXCSR's sticky bits, wherever the guest's are now.
    fn mxcsr(&self) -> u32 {
        if !self.in_code {
            return field!(self.frame, guest_mxcsr);
        }
        let mut v = 0u32;
        // SAFETY: stores the register into a local.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut v, options(nostack, preserves_flags)) };
        v
    }

    fn set_mxcsr(&mut self, v: u32) {
        field!(self.frame, guest_mxcsr) = v;
        if self.in_code {
            // SAFETY: only sticky bits differ from what is there; all exceptions stay masked.
            unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const v, options(nostack, preserves_flags)) };
        }
    }
}

/// MXCSR's sticky bits (IE, DE, ZE, OE, UE, PE from bit 0) in the IR's numbering.
pub fn flags_of_mxcsr(m: u32) -> u8 {
    ((m & 1) << 4 | (m >> 2 & 1) << 3 | (m >> 3 & 1) << 2 | (m >> 4 & 1) << 1 | (m >> 5 & 1)) as u8
}

/// Default MXCSR: all exceptions masked, to nearest, no flags.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

/// Reads naturally aligned RAM atomically; `bytes` is 1, 2, 4 or 8.
///
/// # Safety
/// `p` points to `bytes` bytes of guest RAM and is aligned to them.
pub unsafe fn ram_read(p: *mut u8, bytes: u32) -> u64 {
    // SAFETY: as the caller promises; guest RAM is only ever accessed like this or by translated code.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(p).load(Ordering::Relaxed).into(),
            2 => AtomicU16::from_ptr(p.cast()).load(Ordering::Relaxed).into(),
            4 => AtomicU32::from_ptr(p.cast()).load(Ordering::Relaxed).into(),
            _ => AtomicU64::from_ptr(p.cast()).load(Ordering::Relaxed),
        }
    }
}

/// Writes naturally aligned RAM atomically; `bytes` is 1, 2, 4 or 8.
///
/// # Safety
/// As for [`ram_read`].
pub unsafe fn ram_write(p: *mut u8, bytes: u32, v: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(p).store(v as u8, Ordering::Relaxed),
            2 => AtomicU16::from_ptr(p.cast()).store(v as u16, Ordering::Relaxed),
            4 => AtomicU32::from_ptr(p.cast()).store(v as u32, Ordering::Relaxed),
            _ => AtomicU64::from_ptr(p.cast()).store(v, Ordering::Relaxed),
        }
    }
}

/// Compares and swaps 16 bytes; returns what was there, or `None` on a host CPU that cannot.
///
/// # Safety
/// `p` points to 16 bytes of guest RAM and is aligned to them.
unsafe fn ram_cas_pair(p: *mut u8, old: [u64; 2], new: [u64; 2]) -> Option<[u64; 2]> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let ([mut low, mut high], [new_low, new_high]) = (old, new);
    // SAFETY: the CPU has the instruction; the memory is as the caller promises. LLVM keeps rbx for itself, so it
    // is changed for the one instruction that needs it.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") p,
            inout("rsi") new_low => _,
            in("rcx") new_high,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    Some([low, high])
}

fn aligned(gpa: u64, bytes: u32) -> Result<(), PhysFault> {
    let ok = matches!(bytes, 1 | 2 | 4 | 8) && gpa.is_multiple_of(u64::from(bytes));
    if ok { Ok(()) } else { Err(PhysFault) }
}

impl CpuEnv for Core {
    fn index(&self) -> u32 {
        plinth_vcpu::VcpuControl::index(&*self.control)
    }

    fn now_ns(&self) -> u64 {
        self.shared.clock.now_ns()
    }

    fn set_deadline(&mut self, ns: u64) {
        self.deadline = ns;
        self.control.set_deadline_passed(ns <= self.now_ns());
        self.timer.arm(ns);
    }

    fn deadline_passed(&self) -> bool {
        self.control.deadline_passed()
    }

    fn pins(&self) -> u64 {
        self.control.pins()
    }

    fn set_pin(&mut self, pin: u32, level: bool) {
        self.control.set_irq(pin, level);
    }

    fn take_messages(&mut self, file: u32) -> Vec<u32> {
        self.control.take_messages(file)
    }

    fn flush_tlb(&mut self, flush: TlbFlush) {
        self.tlb.flush(flush);
        self.enter_mode();
    }

    fn flush_code(&mut self) {
        // Stores to translated code have dropped it already.
    }

    fn wait_for_interrupt(&mut self) {
        self.waits = true;
    }

    fn power_off(&mut self) {
        self.stops = true;
    }

    fn read_phys(&mut self, gpa: u64, bytes: u32) -> Result<u64, PhysFault> {
        aligned(gpa, bytes)?;
        let p = self.shared.ram.hva(gpa, bytes.into()).ok_or(PhysFault)?;
        // SAFETY: `bytes` bytes of guest RAM, aligned.
        Ok(unsafe { ram_read(p, bytes) })
    }

    fn write_phys(&mut self, gpa: u64, bytes: u32, value: u64) -> Result<(), PhysFault> {
        aligned(gpa, bytes)?;
        let p = self.shared.ram.hva(gpa, bytes.into()).ok_or(PhysFault)?;
        // SAFETY: `bytes` bytes of guest RAM, aligned.
        unsafe { ram_write(p, bytes, value) };
        if self.shared.ram.is_code(gpa) {
            let dropped = self.shared.code_written(gpa, bytes.into());
            self.code_changed(&dropped);
        }
        Ok(())
    }

    fn cas_phys(&mut self, gpa: u64, old: u64, new: u64) -> Result<u64, PhysFault> {
        aligned(gpa, 8)?;
        let p = self.shared.ram.hva(gpa, 8).ok_or(PhysFault)?;
        // SAFETY: 8 aligned bytes of guest RAM.
        let a = unsafe { AtomicU64::from_ptr(p.cast()) };
        Ok(match a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(v) | Err(v) => v,
        })
    }

    fn cas_pair_phys(&mut self, gpa: u64, old: [u64; 2], new: [u64; 2]) -> Result<[u64; 2], PhysFault> {
        if !gpa.is_multiple_of(16) {
            return Err(PhysFault);
        }
        let p = self.shared.ram.hva(gpa, 16).ok_or(PhysFault)?;
        // SAFETY: 16 aligned bytes of guest RAM.
        let found = unsafe { ram_cas_pair(p, old, new) }.ok_or(PhysFault)?;
        if self.shared.ram.is_code(gpa) {
            let dropped = self.shared.code_written(gpa, 16);
            self.code_changed(&dropped);
        }
        Ok(found)
    }
    fn load(&mut self, va: u64, bytes: u32) -> Result<u64, Exception> {
        self.fast_read(va, bytes)
    }

    fn store(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception> {
        self.fast_write(va, bytes, value)
    }

    fn load_quickly(&mut self, va: u64, data: &mut [u8]) -> bool {
        self.fast_read_bytes(va, data)
    }

    fn store_quickly(&mut self, va: u64, data: &[u8]) -> bool {
        self.fast_write_bytes(va, data)
    }

    fn fp_flags(&mut self) -> u8 {
        flags_of_mxcsr(self.mxcsr()) | field!(self.frame, fp_flags) as u8
    }

    fn set_fp_flags(&mut self, flags: u8) {
        field!(self.frame, fp_flags) = u64::from(flags);
        self.set_mxcsr(MXCSR_DEFAULT);
    }

    fn platform(&self) -> &dyn Platform {
        &*self.shared.platform
    }

    fn instret(&self) -> u64 {
        self.shared.clock.now_ns()
    }
}
