//! A vCPU's thread: look at what was asked, find code, run it.

use std::sync::Arc;

use plinth_codegen::frame::exit;
use plinth_codegen::{CodegenError, EnterFn, ExitSite, Straddle, Translator};
use plinth_ir::interp::{self, Next, Program};
use plinth_ir::{Access, AccessKind, Block, Exception, LiftError, LiftRequest};
use plinth_vcpu::{Register, StartState, Vcpu, VcpuControl, VcpuExit, VcpuPower};

use crate::code::{Body, Key, NewUnit};
use crate::control::{Control, set_current};
use crate::core::{Core, MXCSR_DEFAULT};
use crate::frame::field;
use crate::runtime::IrMachine;
use crate::shared::{Shared, Tier};

const PAGE: u64 = 4096;
/// Guest instructions in one region at the most.
const MAX_INSNS: u32 = 128;
/// Entries of the interpreter's own cache of blocks.
const IR_CACHE: usize = 8192;

/// Guest virtual address of the page after that of `va`.
const fn next_page(va: u64) -> u64 {
    (va & !(PAGE - 1)).wrapping_add(PAGE)
}

/// Why a lifted block was not registered.
enum Refused {
    /// The guest's code has changed since it was read, or its page is no longer marked.
    Changed,
    /// The code memory is full.
    Full,
}

/// How the frame's `pc` was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// By a jump at this site, which may be linked.
    FromSite(u64),
    /// With a change of mode, so that the jump cache may know the place and nobody has looked there.
    ModeChanged,
    /// Otherwise.
    Anyhow,
}

/// A vCPU that the engine runs.
pub struct EngineVcpu {
    core: Box<Core>,
    translator: Option<Translator>,
    enter: Option<EnterFn>,
    block: Block,
    /// The interpreter's cache: (address xor jump token, block).
    ir_cache: Vec<(u64, Option<Arc<Program>>)>,
}

impl EngineVcpu {
    /// A vCPU that is off.
    pub fn new(index: u32, shared: Arc<Shared>, translator: Option<Translator>) -> std::io::Result<Self> {
        let mut core = Box::new(Core::new(index, shared)?);
        field!(core.frame, owner) = (&raw mut *core) as u64;
        field!(core.frame, guest_mxcsr) = MXCSR_DEFAULT;
        let enter = core.shared.code().memory.as_ref().map(|memory| {
            field!(core.frame, thunks) = memory.thunk_table();
            memory.enter_fn()
        });
        Ok(Self { core, translator, enter, block: Block::default(), ir_cache: vec![(0, None); IR_CACHE] })
    }

    pub fn shared_control(&self) -> Arc<Control> {
        Arc::clone(&self.core.control)
    }

    fn reset_to(&mut self, start: &StartState) {
        let index = self.core.control.index();
        let pc = self.core.shared.isa.reset(self.core.frame.slots(), index, start);
        field!(self.core.frame, pc) = pc;
        field!(self.core.frame, reserved_va) = u64::MAX;
        field!(self.core.frame, fp_flags) = 0;
        field!(self.core.frame, guest_mxcsr) = MXCSR_DEFAULT;
        self.core.waits = false;
        self.core.stops = false;
        self.core.tlb.flush(plinth_vcpu::TlbFlush { range: None, asid: None });
        plinth_ir::CpuEnv::set_deadline(&mut *self.core, plinth_clock::NEVER);
        self.core.control.set_power(VcpuPower::On);
    }

    /// Looks at requests, interrupts, power and sleep. Returns an exit, or true if guest code may run.
    fn look(&mut self) -> Result<bool, VcpuExit> {
        let core = &mut *self.core;
        if core.stops {
            core.stops = false;
            core.control.set_power(VcpuPower::Off);
        }
        let found = core.control.look();
        for r in found.requests {
            core.handle(r);
        }
        core.control.done();
        let is_off = found.power_off && found.start.is_none();
        if let Some(start) = found.start {
            self.reset_to(&start);
        }
        // The look has taken a start and a kick: nobody else remembers them, so they come before the gate.
        if found.kicked {
            return Err(VcpuExit::Kicked);
        }
        let core = &mut *self.core;
        if !core.shared.pass_gate(&core.control) {
            core.map.attention().store(1, std::sync::atomic::Ordering::SeqCst);
            return Ok(false);
        }
        if is_off {
            core.control.sleep(None, || false);
            return Ok(false);
        }
        let isa = Arc::clone(&core.shared.isa);
        if core.waits {
            if core.deadline <= core.shared.clock.now_ns() {
                core.control.set_deadline_passed(true);
            }
            if !isa.wakes(core.frame.slots(), core) {
                let control = Arc::clone(&core.control);
                let until = core.shared.clock.instant(core.deadline);
                control.sleep(until, || false);
                return Ok(false);
            }
            core.waits = false;
        }
        let pc = field!(core.frame, pc);
        if core.with_cpu(pc, 0, |cpu| isa.take_interrupt(cpu)) {
            field!(core.frame, reserved_va) = u64::MAX;
        }
        Ok(true)
    }

    /// The guest physical address of the code at `pc`.
    fn code_gpa(&mut self, pc: u64) -> Result<u64, Exception> {
        let mmu = usize::from(self.core.mode.fetch);
        let page = match self.core.tlb.find_code(mmu, pc) {
            Some(page) => page * PAGE,
            None => {
                let access = Access { va: pc, kind: AccessKind::Fetch, mmu };
                let page = self.core.translate(access)?;
                if page.hva.is_none() {
                    return Err(self.core.shared.isa.access_fault(access));
                }
                page.gpa
            }
        };
        Ok(page | (pc & (PAGE - 1)))
    }

    /// Finds or makes what runs the code at `pc`, at guest physical address `gpa`.
    fn body(&mut self, pc: u64, gpa: u64) -> Result<Body, Exception> {
        let key = Key { gpa, mode: self.core.mode.key };
        let shared = Arc::clone(&self.core.shared);
        let found = shared.code().find(key).map(|(body, straddles)| (body.clone(), straddles));
        match found {
            Some((body, None)) => {
                // One that straddles is found here each time: its second page has to be looked at.
                if let Body::Host(host) = body {
                    self.core.recent.insert(key, host);
                }
                Ok(body)
            }
            // The code itself checks its second page, in the code TLB: that must know the page.
            Some((body, Some(second))) if self.code_gpa(next_page(pc))? == second => Ok(body),
            _ => self.translate(pc, key),
        }
    }

    /// Copies the guest's code from `gpa` to the end of its page, and the start of page `next`.
    fn fetch(&self, gpa: u64, next: Option<u64>) -> Vec<u8> {
        let page = gpa & !(PAGE - 1);
        let mut code = vec![0; (page + PAGE - gpa) as usize];
        let ram = self.core.shared.ram.memory();
        use plinth_memory::{Bytes, GuestAddress};
        // Both pages are RAM: `code_gpa` has said so.
        let _ = ram.read_slice(&mut code, GuestAddress(gpa));
        if let Some(next) = next {
            let at = code.len();
            code.resize(at + 16, 0);
            let _ = ram.read_slice(&mut code[at..], GuestAddress(next));
        }
        code
    }

    fn translate(&mut self, pc: u64, key: Key) -> Result<Body, Exception> {
        let page = key.gpa & !(PAGE - 1);
        let mut next = None;
        loop {
            let core = &mut *self.core;
            let shared = Arc::clone(&core.shared);
            for p in [Some(page), next].into_iter().flatten() {
                shared.protect_page(p, || core.tlb.protect(p));
            }
            let bytes = self.fetch(key.gpa, next);
            let start = (key.gpa - page) as u32;
            let request = LiftRequest { mode: self.core.mode, start, code: &bytes, max_insns: MAX_INSNS };
            match shared.isa.lift(&request, &mut self.block) {
                Ok(()) => {}
                Err(LiftError::NeedNextPage) => {
                    next = Some(self.code_gpa(next_page(pc))?);
                    continue;
                }
            }
            match self.install(pc, key, next, &bytes) {
                Ok(body) => return Ok(body),
                Err(Refused::Changed) => {}
                Err(Refused::Full) => self.drop_all_code(),
            }
        }
    }

    /// Registers the block that was lifted from `bytes`.
    fn install(&mut self, pc: u64, key: Key, next: Option<u64>, bytes: &[u8]) -> Result<Body, Refused> {
        let shared = Arc::clone(&self.core.shared);
        let mut cache = shared.code();
        let page = key.gpa & !(PAGE - 1);
        // Who writes to marked pages stores first and then invalidates under the lock that is held here: what
        // was stored since the bytes were read is seen now, or the block will be invalidated.
        let is_marked = [Some(page), next].into_iter().flatten().all(|p| shared.ram.is_code(p));
        let len = (self.block.len as usize).min(bytes.len());
        if !is_marked || self.fetch(key.gpa, next)[..len] != bytes[..len] {
            return Err(Refused::Changed);
        }
        if cache.is_full() {
            return Err(Refused::Full);
        }
        let (entries, exits) = match (&mut self.translator, &mut cache.memory) {
            (Some(translator), Some(memory)) => {
                let straddle = next.map(|n| Straddle { page: (n / PAGE) as u32 });
                match translator.translate(&self.block, self.core.mode, straddle, memory) {
                    Ok(r) => {
                        shared.name_code(r.code, r.len, pc);
                        (r.entries.into_iter().map(|(o, h)| (o, Body::Host(h))).collect(), r.exits)
                    }
                    Err(CodegenError::Full) => return Err(Refused::Full),
                    // What the translator cannot do is interpreted.
                    Err(_) => self.interpreted(&shared),
                }
            }
            _ => self.interpreted(&shared),
        };
        let entries: Vec<(u32, Body)> = entries;
        let body = entries.first().map(|e| e.1.clone()).ok_or(Refused::Full)?;
        cache.insert(NewUnit {
            mode: key.mode,
            gpa: key.gpa,
            len: self.block.len,
            straddles: next.map(|n| n & !(PAGE - 1)),
            entries,
            exits,
        });
        Ok(body)
    }

    /// The lifted block for the interpreter.
    fn interpreted(&self, shared: &Shared) -> (Vec<(u32, Body)>, Vec<ExitSite>) {
        let program = match Program::new(&self.block, shared.isa.layout()) {
            Ok(p) => p,
            // A lifter that makes malformed blocks is a defect of ours that no guest can be run with.
            Err(e) => panic!("the {} front end made a malformed block: {e}", shared.isa.name()),
        };
        (vec![(self.block.start, Body::Ir(Arc::new(program)))], Vec::new())
    }

    /// Drops all translations, with every other vCPU outside of them.
    fn drop_all_code(&mut self) {
        let shared = Arc::clone(&self.core.shared);
        shared.stop_world(&self.core.control, || {
            let mut code = shared.code();
            for page in code.clear() {
                shared.ram.set_code(page, false);
            }
        });
        self.core.drop_all_code();
        self.core.enter_mode();
        // The site of a pending link is gone.
        self.core.map.attention().store(1, std::sync::atomic::Ordering::SeqCst);
    }

    /// Host code for `pc`, linked to from `came` if that is a site; `None` if there is none to be entered now.
    fn host_code(&mut self, pc: u64, came: Came) -> Result<Option<u64>, Exception> {
        if came == Came::ModeChanged
            && let Some(host) = self.core.tlb.find_jump(pc)
        {
            return Ok(Some(host));
        }
        let gpa = self.code_gpa(pc)?;
        let key = Key { gpa, mode: self.core.mode.key };
        let host = match self.core.recent.find(key) {
            Some(host) => host,
            None => match self.body(pc, gpa)? {
                Body::Host(host) => host,
                Body::Ir(_) => return self.run_interpreted().map(|()| None),
            },
        };
        let core = &mut *self.core;
        // Before the link: if all code was dropped meanwhile, `site` may be in somebody else's code by now.
        if core.frame.wants_attention() {
            return Ok(None);
        }
        if let Came::FromSite(site) = came {
            let alone = core.shared.is_alone();
            core.shared.code().link(site, key, alone);
        }
        core.tlb.fill_jump(pc, host);
        Ok(Some(host))
    }

    /// Runs translated code once from the frame's `pc`.
    fn run_translated(&mut self, came: Came) -> Result<Came, Exception> {
        let pc = field!(self.core.frame, pc);
        let (Some(host), Some(enter)) = (self.host_code(pc, came)?, self.enter) else {
            return Ok(Came::Anyhow);
        };
        let core = &mut *self.core;
        field!(core.frame, pc_page) = pc & !(PAGE - 1);
        core.in_code = true;
        // SAFETY: `host` is code that the translator made for this frame's layout, and nobody frees it while
        // this vCPU is inside.
        let reason = unsafe { enter(core.frame.0, host) };
        core.in_code = false;
        match reason {
            exit::LINK => return Ok(Came::FromSite(field!(core.frame, site))),
            exit::DISPATCH => {
                self.after_dispatch();
                return Ok(Came::ModeChanged);
            }
            _ => {}
        }
        Ok(Came::Anyhow)
    }

    /// The mode, or what may interrupt, has changed.
    fn after_dispatch(&mut self) {
        let core = &mut *self.core;
        let isa = Arc::clone(&core.shared.isa);
        if core.waits || core.stops {
            core.map.attention().store(1, std::sync::atomic::Ordering::SeqCst);
        } else {
            let pc = field!(core.frame, pc);
            if core.with_cpu(pc, 0, |cpu| isa.take_interrupt(cpu)) {
                field!(core.frame, reserved_va) = u64::MAX;
            }
        }
        core.enter_mode();
    }

    /// Interprets one block from the frame's `pc`.
    fn run_interpreted(&mut self) -> Result<(), Exception> {
        let pc = field!(self.core.frame, pc);
        let key = pc ^ field!(self.core.frame, jump_token);
        let slot = (pc >> 1) as usize & (IR_CACHE - 1);
        let prepared = match &self.ir_cache[slot] {
            (k, Some(p)) if *k == key => Arc::clone(p),
            _ => {
                let gpa = self.code_gpa(pc)?;
                let Body::Ir(p) = self.body(pc, gpa)? else { return Ok(()) };
                self.core.tlb.note_foreign_jump(pc);
                self.ir_cache[slot] = (pc ^ field!(self.core.frame, jump_token), Some(Arc::clone(&p)));
                p
            }
        };
        let base = pc & !(PAGE - 1);
        field!(self.core.frame, pc_page) = base;
        let mut machine = IrMachine { core: &mut self.core };
        let next = interp::run(&prepared, Program::START, base, &mut machine);
        let target = |offset: i32| base.wrapping_add_signed(offset.into());
        match next {
            Next::Direct { pc_off } | Next::Attention { pc_off } => {
                field!(self.core.frame, pc) = target(pc_off)
            }
            Next::Indirect { pc, .. } => field!(self.core.frame, pc) = pc,
            Next::Exit { pc_off } => {
                field!(self.core.frame, pc) = target(pc_off);
                self.after_dispatch();
            }
            Next::Stop { .. } => self.after_dispatch(),
        }
        Ok(())
    }
}

impl Vcpu for EngineVcpu {
    fn run(&mut self) -> VcpuExit {
        set_current(&self.core.control);
        let mut came = Came::Anyhow;
        let mut looked = false;
        loop {
            if !looked || self.core.frame.wants_attention() {
                came = Came::Anyhow;
                match self.look() {
                    Err(exit) => {
                        self.core.control.set_outside();
                        return exit;
                    }
                    Ok(false) => continue,
                    Ok(true) => looked = true,
                }
                self.core.enter_mode();
            }
            let result = match self.core.shared.tier {
                Tier::Interpret => self.run_interpreted(),
                Tier::Translate => self.run_translated(came).map(|c| came = c),
            };
            if let Err(exception) = result {
                let pc = field!(self.core.frame, pc);
                self.core.raise(pc, 0, exception);
                self.after_dispatch();
                came = Came::Anyhow;
            }
        }
    }

    fn reset(&mut self, start: Option<StartState>) {
        match start {
            Some(start) => self.reset_to(&start),
            None => self.core.control.set_power(VcpuPower::Off),
        }
    }

    fn control(&self) -> Arc<dyn VcpuControl> {
        self.core.control.clone()
    }

    fn registers(&self) -> Vec<Register> {
        self.core.shared.isa.registers(self.core.frame.slots(), field!(self.core.frame, pc))
    }
}
