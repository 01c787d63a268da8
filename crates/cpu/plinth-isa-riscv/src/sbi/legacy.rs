//! Legacy extensions (5): those without pointers, which early consoles still use.

use plinth_ir::Cpu;
use plinth_vcpu::SystemEvent;

use super::{Call, Error, Outcome, arm_timer};
use crate::privileged::interrupts::irq;
use crate::privileged::state::clear_bits;
use crate::slots;

const SET_TIMER: u64 = 0;
const PUTCHAR: u64 = 1;
const GETCHAR: u64 = 2;
const CLEAR_IPI: u64 = 3;
const SHUTDOWN: u64 = 8;

pub(super) fn is_extension(extension: u64) -> bool {
    matches!(extension, SET_TIMER..=CLEAR_IPI | SHUTDOWN)
}

pub(super) fn call(cpu: &mut Cpu<'_>, extension: u64, call: &Call) -> Outcome {
    match extension {
        SET_TIMER => {
            arm_timer(cpu, call.args[0]);
            Outcome::Legacy(0)
        }
        PUTCHAR => {
            cpu.env.platform().console_write(&[call.args[0] as u8]);
            Outcome::Legacy(0)
        }
        GETCHAR => {
            let mut byte = [0];
            let got = cpu.env.platform().console_read(&mut byte);
            Outcome::Legacy(if got == 1 { u64::from(byte[0]) } else { u64::MAX })
        }
        CLEAR_IPI => {
            clear_bits(cpu.slots, slots::MIP, irq::SSI);
            cpu.env.set_pin(irq::SSI_PIN, false);
            Outcome::Legacy(0)
        }
        SHUTDOWN => {
            cpu.env.platform().system_event(SystemEvent::PowerOff);
            cpu.env.power_off();
            Outcome::Legacy(0)
        }
        _ => Outcome::Legacy(Error::NotSupported as i64 as u64),
    }
}
