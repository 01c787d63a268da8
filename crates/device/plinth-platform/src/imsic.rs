//! The memory page of each interrupt file of the RISC-V Incoming MSI Controller (RISC-V Advanced Interrupt
//! Architecture 1.0, section 3.5). The files themselves are part of the harts.

use std::sync::Arc;

use plinth_device::{Device, IoOutcome, MmioDevice};
use plinth_vcpu::VcpuControl;

use crate::{le_value, put_le};

const PAGE: u64 = 0x1000;
const SETEIPNUM_LE: u64 = 0;
const SETEIPNUM_BE: u64 = 4;

/// The pages of one privilege level's files, one a hart, side by side.
pub struct ImsicPages {
    file: u32,
    harts: Vec<Arc<dyn VcpuControl>>,
}

impl ImsicPages {
    /// Pages that lead to interrupt file `file` of each hart.
    #[must_use]
    pub fn new(file: u32, harts: Vec<Arc<dyn VcpuControl>>) -> Self {
        Self { file, harts }
    }

    /// Bytes of the range for `harts` harts.
    #[must_use]
    pub const fn size(harts: u64) -> u64 {
        harts * PAGE
    }
}

impl MmioDevice for ImsicPages {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        put_le(data, 0);
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        let value = le_value(data) as u32;
        let id = match offset % PAGE {
            SETEIPNUM_LE => value,
            SETEIPNUM_BE => value.swap_bytes(),
            _ => return IoOutcome::Done,
        };
        let hart = usize::try_from(offset / PAGE).ok().and_then(|h| self.harts.get(h));
        if let Some(hart) = hart.filter(|_| id != 0) {
            hart.deliver_message(self.file, id);
        }
        IoOutcome::Done
    }
}

impl Device for ImsicPages {
    fn name(&self) -> &str {
        "imsic"
    }

    /// The files are reset with their harts.
    fn reset(&self) {}
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use plinth_device::IrqSink;
    use plinth_vcpu::{StartState, TlbFlush, VcpuPower};

    use super::*;

    /// A hart that remembers the messages it got.
    #[derive(Default)]
    pub struct Hart {
        pub messages: Mutex<Vec<(u32, u32)>>,
    }

    impl Hart {
        pub fn take(&self) -> Vec<(u32, u32)> {
            std::mem::take(&mut self.messages.lock().unwrap())
        }
    }

    impl IrqSink for Hart {
        fn set_irq(&self, _line: u32, _level: bool) {}
    }

    impl VcpuControl for Hart {
        fn index(&self) -> u32 {
            0
        }
        fn deliver_message(&self, file: u32, id: u32) {
            self.messages.lock().unwrap().push((file, id));
        }
        fn kick(&self) {}
        fn start(&self, _state: StartState) -> bool {
            false
        }
        fn power(&self) -> VcpuPower {
            VcpuPower::On
        }
        fn flush_tlb(&self, _flush: TlbFlush) {}
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Hart;
    use super::*;

    #[test]
    fn messages_reach_their_harts_file() {
        let harts = [Arc::new(Hart::default()), Arc::new(Hart::default())];
        let pages = ImsicPages::new(1, harts.iter().map(|h| h.clone() as Arc<dyn VcpuControl>).collect());
        pages.write(PAGE, &77u32.to_le_bytes());
        pages.write(PAGE + 4, &78u32.to_be_bytes());
        pages.write(PAGE + 8, &79u32.to_le_bytes());
        pages.write(0, &0u32.to_le_bytes());
        pages.write(2 * PAGE, &5u32.to_le_bytes());
        assert_eq!(harts[1].take(), [(1, 77), (1, 78)]);
        assert!(harts[0].take().is_empty());
        let mut word = [9; 4];
        assert_eq!(pages.read(PAGE, &mut word), IoOutcome::Done);
        assert_eq!(word, [0; 4]);
        assert_eq!(pages.write(2, &[0; 4]), IoOutcome::Fault);
    }
}
