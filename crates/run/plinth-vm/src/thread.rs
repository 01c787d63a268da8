//! vCPU threads and how they are brought to a halt together.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use plinth_vcpu::{StartState, SystemEvent, Vcpu, VcpuControl, VcpuExit};

use crate::Error;
use crate::event::{Event, Events};

/// How long to wait for vCPUs before they are kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    Quit,
}

struct State {
    order: Order,
    /// Threads that are not inside their vCPU.
    parked: usize,
    /// By vCPU: what it is to be reset to before it runs again.
    resets: Vec<Option<Option<StartState>>>,
}

struct Gate {
    state: Mutex<State>,
    /// The order changed.
    ordered: Condvar,
    /// A thread has parked.
    arrived: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the order to run; false: to quit. Applies a reset that was ordered. A vCPU that has
    /// crashed runs only after a reset.
    fn enter(&self, vcpu: &mut dyn Vcpu, index: usize, crashed: bool) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.arrived.notify_all();
        let waits = |s: &State| match s.order {
            Order::Park => true,
            Order::Run => crashed && s.resets.get(index).is_none_or(Option::is_none),
            Order::Quit => false,
        };
        while waits(&state) {
            state = self.ordered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.order == Order::Quit {
            return false;
        }
        state.parked -= 1;
        let reset = state.resets.get_mut(index).and_then(Option::take);
        drop(state);
        if let Some(start) = reset {
            vcpu.reset(start);
        }
        true
    }
}

/// The threads of all vCPUs, parked at first. Dropping it ends them.
pub struct VcpuThreads {
    gate: Arc<Gate>,
    controls: Vec<Arc<dyn VcpuControl>>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    pub fn spawn(vcpus: Vec<Box<dyn Vcpu>>, events: &Arc<Events>) -> Result<Self, Error> {
        let state = State { order: Order::Park, parked: 0, resets: vec![None; vcpus.len()] };
        let gate =
            Arc::new(Gate { state: Mutex::new(state), ordered: Condvar::new(), arrived: Condvar::new() });
        let mut all = Self { gate, controls: Vec::new(), threads: Vec::new() };
        for (index, mut vcpu) in vcpus.into_iter().enumerate() {
            all.controls.push(vcpu.control());
            let (gate, events) = (Arc::clone(&all.gate), Arc::clone(events));
            let name = format!("vcpu{index}");
            let thread = std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || run(vcpu.as_mut(), index, &gate, &events))
                .map_err(|source| Error::Thread { what: name, source })?;
            all.threads.push(thread);
        }
        Ok(all)
    }

    /// Brings all vCPUs out of guest code.
    pub fn park(&self) {
        let mut state = self.gate.lock();
        state.order = Order::Park;
        while state.parked < self.threads.len() {
            // A kick that comes before its vCPU enters guest code may be lost, so it is repeated. Not
            // under the lock: a kick can wait for the vCPU, which may want to park.
            drop(state);
            for c in &self.controls {
                c.kick();
            }
            state = self.gate.lock();
            if state.parked < self.threads.len() {
                state = self
                    .gate
                    .arrived
                    .wait_timeout(state, KICK_AGAIN)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    /// Lets parked vCPUs run.
    pub fn run(&self) {
        self.gate.lock().order = Order::Run;
        self.gate.ordered.notify_all();
    }

    /// Resets parked vCPUs; each starts as said once they run.
    pub fn reset(&self, starts: Vec<Option<StartState>>) {
        self.gate.lock().resets = starts.into_iter().map(Some).collect();
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.park();
        self.gate.lock().order = Order::Quit;
        self.gate.ordered.notify_all();
        for t in self.threads.drain(..) {
            // Its panic, if there was one, has been reported as a crash.
            let _ = t.join();
        }
    }
}

fn run(vcpu: &mut dyn Vcpu, index: usize, gate: &Gate, events: &Events) {
    let mut crashed = false;
    while gate.enter(vcpu, index, crashed) {
        let why = match catch_unwind(AssertUnwindSafe(|| vcpu.run())) {
            Ok(VcpuExit::Kicked) => None,
            Ok(VcpuExit::Crashed(why)) => Some(why),
            Err(panic) => Some(format!("a fault in Plinth itself: {}", panic_text(&*panic))),
        };
        crashed = why.is_some();
        if let Some(why) = why {
            events.push(Event::Guest(SystemEvent::Crash(format!("vCPU {index}: {why}"))));
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
