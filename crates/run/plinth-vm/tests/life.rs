//! A machine's life with vCPUs that run a Rust function in place of a guest.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plinth_device::IrqSink;
use plinth_machine::{boards, isa};
use plinth_vcpu::{
    PhysicalBus, Platform, Register, StartState, SystemEvent, TlbFlush, Vcpu, VcpuControl, VcpuExit,
    VcpuPower,
};
use plinth_vm::{Accelerator, Exit, MachineContext, Vcpus, VmBuilder};

/// What a vCPU does each time it is let run; `None` means that it waits to be kicked.
type Guest = dyn Fn(&Context, &Option<StartState>) -> Option<VcpuExit> + Send + Sync;

struct Context {
    index: u32,
    bus: Arc<dyn PhysicalBus>,
    platform: Arc<dyn Platform>,
}

struct Control {
    index: u32,
    kicked: AtomicBool,
}

impl IrqSink for Control {
    fn set_irq(&self, _line: u32, _level: bool) {}
}

impl VcpuControl for Control {
    fn index(&self) -> u32 {
        self.index
    }
    fn deliver_message(&self, _file: u32, _id: u32) {}
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
    }
    fn start(&self, _state: StartState) -> bool {
        false
    }
    fn power(&self) -> VcpuPower {
        VcpuPower::On
    }
    fn flush_tlb(&self, _flush: TlbFlush) {}
}

struct Cpu {
    context: Context,
    control: Arc<Control>,
    guest: Arc<Guest>,
    start: Option<StartState>,
}

impl Vcpu for Cpu {
    fn run(&mut self) -> VcpuExit {
        // A kick from before is for a run that has ended: it must not make this guest run twice.
        self.control.kicked.store(false, Ordering::SeqCst);
        if let Some(exit) = (self.guest)(&self.context, &self.start) {
            return exit;
        }
        while !self.control.kicked.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        VcpuExit::Kicked
    }
    fn reset(&mut self, start: Option<StartState>) {
        self.start = start;
    }
    fn control(&self) -> Arc<dyn VcpuControl> {
        self.control.clone()
    }
    fn registers(&self) -> Vec<Register> {
        Vec::new()
    }
}

struct Fake(Arc<Guest>);

impl Accelerator for Fake {
    fn name(&self) -> &str {
        "fake"
    }
    fn create_vcpus(&self, machine: MachineContext) -> Result<Vcpus, String> {
        let make = |index| -> Box<dyn Vcpu> {
            let (bus, platform) = (machine.bus.clone(), machine.platform.clone());
            let control = Arc::new(Control { index, kicked: AtomicBool::new(false) });
            Box::new(Cpu {
                context: Context { index, bus, platform },
                control,
                guest: self.0.clone(),
                start: None,
            })
        };
        Ok(Vcpus { vcpus: (0..machine.cpus).map(make).collect(), model: None })
    }
}

fn builder(cpus: u32) -> VmBuilder {
    VmBuilder::new(boards::for_isa(&isa::RISCV64).unwrap(), 16 << 20, cpus).unwrap()
}

fn run(
    builder: VmBuilder,
    guest: impl Fn(&Context, &Option<StartState>) -> Option<VcpuExit> + Send + Sync + 'static,
) -> Exit {
    builder.build(&Fake(Arc::new(guest))).unwrap().run().unwrap()
}

const TEST: u64 = 0x10_0000;

#[test]
fn the_guest_powers_off() {
    let exit = run(builder(2), |c, start| {
        assert_eq!(start.is_some(), c.index == 0);
        if start.is_some() {
            assert_eq!(c.platform.vcpus().len(), 2);
            c.bus.write(TEST, &0x5555u32.to_le_bytes()).unwrap();
        }
        None
    });
    assert_eq!(exit, Exit::PowerOff);
}

#[test]
fn a_reboot_resets_devices_and_starts_again() {
    let boots = Arc::new(Mutex::new(Vec::new()));
    let seen = boots.clone();
    let exit = run(builder(2), move |c, start| {
        let Some(start) = start else { return None };
        let mut msip = [0; 4];
        c.bus.read(0x200_0000, &mut msip).unwrap();
        seen.lock().unwrap().push((start.pc, msip[0]));
        c.bus.write(0x200_0000, &[1, 0, 0, 0]).unwrap();
        let code: u32 = if seen.lock().unwrap().len() < 3 { 0x7777 } else { 0x5555 };
        c.bus.write(TEST, &code.to_le_bytes()).unwrap();
        None
    });
    assert_eq!(exit, Exit::PowerOff);
    assert_eq!(*boots.lock().unwrap(), [(0x8000_0000, 0); 3]);
}

#[test]
fn without_reboot_a_reset_ends_the_run() {
    let mut b = builder(1);
    b.reboot(false);
    let exit = run(b, |c, _| {
        c.platform.system_event(SystemEvent::Reset);
        None
    });
    assert_eq!(exit, Exit::Reset);
}

#[test]
fn crashes_end_the_run_with_their_reason() {
    let exit = run(builder(2), |c, _| (c.index == 1).then(|| VcpuExit::Crashed("triple".into())));
    assert_eq!(exit, Exit::Crash("vCPU 1: triple".into()));
    let exit = run(builder(1), |_, _| panic!("on purpose"));
    assert!(matches!(exit, Exit::Crash(why) if why.contains("on purpose")));
    let exit = run(builder(1), |c, _| {
        c.bus.write(TEST, &0x0001_3333u32.to_le_bytes()).unwrap();
        None
    });
    assert!(matches!(exit, Exit::Crash(why) if why.contains("failure 1")));
}

#[test]
fn a_paused_guest_does_not_run_until_it_is_resumed() {
    let entries = Arc::new(AtomicU32::new(0));
    let seen = entries.clone();
    let vm = builder(1)
        .build(&Fake(Arc::new(move |_, _| {
            seen.fetch_add(1, Ordering::SeqCst);
            None
        })))
        .unwrap();
    let handle = vm.handle();
    let runner = std::thread::spawn(move || vm.run().unwrap());
    let wait_for = |n: u32| {
        for _ in 0..10_000 {
            if entries.load(Ordering::SeqCst) >= n {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the guest did not run {n} times");
    };
    wait_for(1);
    handle.pause();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(entries.load(Ordering::SeqCst), 1);
    handle.resume();
    wait_for(2);
    handle.stop();
    assert_eq!(runner.join().unwrap(), Exit::Stopped);
}

#[test]
fn the_boards_limits_hold() {
    let board = boards::for_isa(&isa::RISCV64).unwrap();
    let e = VmBuilder::new(board, 16 << 20, 1000).err().unwrap();
    assert_eq!(e.to_string(), "the board 'virt' takes at most 64 CPUs, not 1000");
    assert!(VmBuilder::new(board, 0, 1).is_err());
}
