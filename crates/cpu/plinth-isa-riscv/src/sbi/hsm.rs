//! Hart state management (9).

use plinth_ir::Cpu;
use plinth_vcpu::{StartState, VcpuPower};

use super::{Call, Error, Outcome, Result};
use crate::privileged::fence::FLUSH_ALL;
use crate::privileged::interrupts;
use crate::privileged::state::{clear_bits, status};
use crate::slots::{self, get, set};

const STARTED: u64 = 0;
const STOPPED: u64 = 1;
const RETENTIVE: u64 = 0;
const NON_RETENTIVE: u64 = 0x8000_0000;

pub(super) fn call(cpu: &mut Cpu<'_>, call: &Call) -> Outcome {
    let [first, address, opaque, ..] = call.args;
    Outcome::Return(match call.function {
        0 => start(cpu, first, address, opaque),
        1 => {
            cpu.env.power_off();
            Ok(0)
        }
        2 => get_status(cpu, first),
        3 => return suspend(cpu, first, address, opaque),
        _ => Err(Error::NotSupported),
    })
}

fn start(cpu: &mut Cpu<'_>, hart: u64, address: u64, opaque: u64) -> Result {
    if !is_code_address(cpu, address) {
        return Err(Error::InvalidAddress);
    }
    let vcpus = cpu.env.platform().vcpus();
    let vcpu = usize::try_from(hart).ok().and_then(|i| vcpus.get(i)).ok_or(Error::InvalidParam)?;
    let registers = vec![("a0", hart), ("a1", opaque)];
    if vcpu.start(StartState { pc: address, registers }) { Ok(0) } else { Err(Error::AlreadyAvailable) }
}

fn is_code_address(cpu: &mut Cpu<'_>, address: u64) -> bool {
    address & 1 == 0 && cpu.env.read_phys(address & !7, 8).is_ok()
}

fn get_status(cpu: &Cpu<'_>, hart: u64) -> Result {
    let vcpus = cpu.env.platform().vcpus();
    let vcpu = usize::try_from(hart).ok().and_then(|i| vcpus.get(i)).ok_or(Error::InvalidParam)?;
    Ok(match vcpu.power() {
        VcpuPower::On => STARTED,
        VcpuPower::Off => STOPPED,
    })
}

/// `sbi_hart_suspend`: a wait for interrupts; if not retentive, it goes on at `address` as after a start.
fn suspend(cpu: &mut Cpu<'_>, kind: u64, address: u64, opaque: u64) -> Outcome {
    match kind & 0xffff_ffff {
        RETENTIVE => {}
        NON_RETENTIVE if is_code_address(cpu, address) => {}
        NON_RETENTIVE => return Outcome::Return(Err(Error::InvalidAddress)),
        0x1000_0000..=0x7fff_ffff | 0x9000_0000..=0xffff_ffff => {
            return Outcome::Return(Err(Error::NotSupported));
        }
        _ => return Outcome::Return(Err(Error::InvalidParam)),
    }
    if !interrupts::wakes(cpu) {
        cpu.env.wait_for_interrupt();
    }
    if kind & 0xffff_ffff == RETENTIVE {
        return Outcome::Return(Ok(0));
    }
    let s = &mut *cpu.slots;
    clear_bits(s, slots::MSTATUS, status::SIE);
    set(s, slots::SATP, 0);
    set(s, slots::x(10), get(s, slots::MHARTID));
    set(s, slots::x(11), opaque);
    cpu.env.flush_tlb(FLUSH_ALL);
    cpu.pc = address;
    Outcome::Redirected
}
