//! What all vCPUs of a machine share.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use plinth_clock::{Clock, Timers};
use plinth_ir::Isa;
use plinth_memory::{CodeWriteSink, GuestRam};
use plinth_vcpu::{PhysicalBus, Platform};

use crate::Parts;
use crate::code::{CodeCache, Dropped};
use crate::control::{Control, Request, current};

const PAGE_MASK: u64 = !4095;

/// How guest code is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// By translation to host code.
    Translate,
    /// By interpreting the IR.
    Interpret,
}

/// The machine as its vCPUs see it.
pub struct Shared {
    pub isa: Arc<dyn Isa>,
    pub ram: GuestRam,
    pub bus: Arc<dyn PhysicalBus>,
    pub platform: Arc<dyn Platform>,
    pub clock: Clock,
    pub timers: Arc<Timers>,
    pub tier: Tier,
    pub vcpus: RwLock<Vec<Arc<Control>>>,
    code: Mutex<CodeCache>,
    /// Names of translated code for `perf`, if asked for.
    perf_map: OnceLock<Mutex<File>>,
    /// Somebody drops all code: no vCPU enters any.
    stopping: Mutex<bool>,
    stopped: Condvar,
    /// Pages that are marked as code while vCPUs may still store to them without notice.
    protecting: Mutex<Vec<u64>>,
    protected: Condvar,
}

impl Shared {
    pub fn new(parts: Parts, tier: Tier, code: CodeCache) -> Self {
        let Parts { isa, ram, bus, platform, timers } = parts;
        let clock = timers.clock();
        Self {
            isa,
            ram,
            bus,
            platform,
            clock,
            timers,
            tier,
            vcpus: RwLock::default(),
            code: Mutex::new(code),
            perf_map: OnceLock::new(),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
            protecting: Mutex::default(),
            protected: Condvar::new(),
        }
    }

    pub fn code(&self) -> MutexGuard<'_, CodeCache> {
        self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on names every translation in the file where `perf` looks for this process's.
    pub fn open_perf_map(&self) -> io::Result<()> {
        // `perf` looks there, whatever TMPDIR says.
        let path = format!("/tmp/perf-{}.map", std::process::id());
        // The name can be guessed and the folder is everybody's: what is there is not written through, but
        // replaced (an earlier process of this number has left it).
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
        // The first file wins.
        let _ = self.perf_map.set(Mutex::new(File::create_new(path)?));
        Ok(())
    }

    /// Names the host code at `host`: a translation of the guest code at `gva`.
    pub fn name_code(&self, host: u64, len: usize, gva: u64) {
        let Some(map) = self.perf_map.get() else { return };
        let mut file = map.lock().unwrap_or_else(PoisonError::into_inner);
        // A name that is missing harms nobody but the profile.
        let _ = writeln!(file, "{host:x} {len:x} guest_{gva:x}");
    }

    /// The machine has one vCPU.
    pub fn is_alone(&self) -> bool {
        self.vcpus.read().unwrap_or_else(PoisonError::into_inner).len() == 1
    }

    pub fn controls(&self) -> Vec<Arc<Control>> {
        self.vcpus.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All vCPUs but the one of this thread forget where `dropped` were, soon.
    fn drop_elsewhere(&self, dropped: &Arc<[Dropped]>) {
        let me = current();
        for c in self.controls() {
            if !me.as_ref().is_some_and(|m| Arc::ptr_eq(m, &c)) {
                c.post(Request::DropCode(Arc::clone(dropped)));
            }
        }
    }

    /// The guest wrote `bytes` bytes at `gpa`, in a page that holds translated code. Gives the
    /// translations of it that were dropped, which the caller's own vCPU has to forget.
    pub fn code_written(&self, gpa: u64, bytes: u64) -> Arc<[Dropped]> {
        let mut code = self.code();
        let dropped: Arc<[Dropped]> = code.invalidate(gpa, bytes).into();
        if !code.has_code(gpa & PAGE_MASK) {
            self.ram.set_code(gpa & PAGE_MASK, false);
        }
        drop(code);
        if !dropped.is_empty() {
            self.drop_elsewhere(&dropped);
        }
        dropped
    }

    /// Waits while another vCPU drops all code. False: it had to wait, and must look again.
    pub fn pass_gate(&self, me: &Control) -> bool {
        let mut stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        if !*stopping {
            return true;
        }
        me.set_outside();
        while *stopping {
            stopping = self.stopped.wait(stopping).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Runs `f` with every other vCPU outside of translated code; if another vCPU is doing the same, waits
    /// for that instead.
    pub fn stop_world(&self, me: &Control, f: impl FnOnce()) {
        {
            let mut stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
            if *stopping {
                drop(stopping);
                self.pass_gate(me);
                return;
            }
            *stopping = true;
        }
        for c in self.controls() {
            if !std::ptr::eq(Arc::as_ptr(&c), me) {
                c.post(Request::DropAllCode);
                c.wait_outside();
            }
        }
        f();
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.stopped.notify_all();
    }

    /// Makes sure that no vCPU stores to page `gpa` without coming to the slow path. `tlb_protect` does it for
    /// the calling vCPU.
    pub fn protect_page(&self, gpa: u64, tlb_protect: impl FnOnce()) {
        let me = current();
        let mut protecting = self.protecting();
        if self.ram.set_code(gpa, true) {
            if protecting.contains(&gpa) {
                drop(protecting);
                // Another vCPU has marked the page and still waits for stores without notice to end.
                let wait = || drop(self.protected.wait_while(self.protecting(), |p| p.contains(&gpa)));
                match &me {
                    Some(m) => m.outside_while(wait),
                    None => wait(),
                }
            }
            return;
        }
        protecting.push(gpa);
        drop(protecting);
        tlb_protect();
        for c in self.controls() {
            if !me.as_ref().is_some_and(|m| Arc::ptr_eq(m, &c)) {
                c.request_and_wait(Request::ProtectPage(gpa), me.as_deref());
            }
        }
        let mut protecting = self.protecting();
        if let Some(at) = protecting.iter().position(|&p| p == gpa) {
            protecting.swap_remove(at);
        }
        drop(protecting);
        self.protected.notify_all();
    }

    fn protecting(&self) -> MutexGuard<'_, Vec<u64>> {
        self.protecting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CodeWriteSink for Shared {
    fn code_page_written(&self, gpa: u64) {
        // From a device's thread there is no vCPU of our own: all are told.
        self.code_written(gpa, 4096);
    }
}
