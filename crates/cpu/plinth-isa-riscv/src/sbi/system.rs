//! System reset (10).

use plinth_ir::Cpu;
use plinth_vcpu::SystemEvent;

use super::{Call, Error, Result};

const SHUTDOWN: u64 = 0;
const COLD_REBOOT: u64 = 1;
const WARM_REBOOT: u64 = 2;
const REASON_FAILURE: u64 = 1;

/// `sbi_system_reset`. The hart stops; the machine does the rest.
pub(super) fn reset(cpu: &mut Cpu<'_>, call: &Call) -> Result {
    if call.function != 0 {
        return Err(Error::NotSupported);
    }
    let [kind, reason] = [call.args[0], call.args[1]].map(|v| v & 0xffff_ffff);
    let event = match (kind, reason) {
        (_, 2..0xe000_0000) => return Err(Error::InvalidParam),
        (SHUTDOWN, REASON_FAILURE) => SystemEvent::Crash("the guest shut down: system failure".into()),
        (SHUTDOWN, _) => SystemEvent::PowerOff,
        (COLD_REBOOT | WARM_REBOOT, _) => SystemEvent::Reset,
        (0xf000_0000.., _) => return Err(Error::NotSupported),
        _ => return Err(Error::InvalidParam),
    };
    cpu.env.platform().system_event(event);
    cpu.env.power_off();
    Ok(0)
}
