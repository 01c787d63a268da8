//! Type-0 configuration space: registers with write masks, BARs and the capability list.
//!
//! Layout: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 4.0, section 7.5.3.

use std::ops::Range;
use std::sync::Arc;

use crate::{BarSpec, BarWidth, Capability, ConfigWindow, FunctionConfig, MsixSpec, PciError};

/// Bytes that are backed; the rest of the 4 KiB of a PCI Express function reads as zero (no extended
/// capabilities).
const SPACE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAP_POINTER: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAP: usize = 0x40;

const CMD_MEMORY: u16 = 1 << 1;
const CMD_BUS_MASTER: u16 = 1 << 2;
const CMD_PARITY: u16 = 1 << 6;
const CMD_SERR: u16 = 1 << 8;
const CMD_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTX: u8 = 1 << 3;
const STATUS_CAP_LIST: u8 = 1 << 4;

const CAP_MSIX: u8 = 0x11;
const CAP_EXPRESS: u8 = 0x10;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

const BAR_64: u32 = 0b100;
const BAR_PREFETCHABLE: u32 = 0b1000;

/// The bits of the configuration space that act outside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Control {
    /// The function answers at its BARs.
    pub memory: bool,
    /// The function may write to memory, messages included.
    pub bus_master: bool,
    /// INTx is held back.
    pub intx_disabled: bool,
    /// MSI-X is on.
    pub msix_enabled: bool,
    /// All MSI-X vectors are masked.
    pub msix_masked: bool,
}

struct Window {
    /// Bytes of configuration space.
    range: Range<usize>,
    /// The capability's body.
    body: Range<usize>,
    handler: Arc<dyn ConfigWindow>,
}

/// An access to a [`ConfigWindow`], to be made after the lock is released.
pub(crate) struct WindowAccess {
    pub handler: Arc<dyn ConfigWindow>,
    pub body: Vec<u8>,
    pub offset: usize,
}

/// Configuration space of one function.
pub(crate) struct ConfigSpace {
    bars: Vec<BarSpec>,
    msix_control: Option<usize>,
    windows: Vec<Window>,
    initial: Box<[u8; SPACE]>,
    mask: Box<[u8; SPACE]>,
    bytes: Box<[u8; SPACE]>,
}

impl ConfigSpace {
    pub(crate) fn new(config: &FunctionConfig, with_msix: bool) -> Result<Self, PciError> {
        let mut space = Self {
            bars: config.bars.clone(),
            msix_control: None,
            windows: Vec::new(),
            initial: Box::new([0; SPACE]),
            mask: Box::new([0; SPACE]),
            bytes: Box::new([0; SPACE]),
        };
        space.put16(0x00, config.vendor_id);
        space.put16(0x02, config.device_id);
        let command = CMD_MEMORY | CMD_BUS_MASTER | CMD_PARITY | CMD_SERR | CMD_INTX_DISABLE;
        space.mask[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        space.put32(0x08, (config.class << 8) | u32::from(config.revision));
        space.mask[0x0c] = 0xff; // Cache line size: software's own.
        space.put16(0x2c, config.subsystem_vendor_id);
        space.put16(0x2e, config.subsystem_id);
        space.mask[0x3c] = 0xff; // Interrupt line: software's own.
        space.initial[INTERRUPT_PIN] = u8::from(config.intx);
        space.put_bars()?;
        space.put_capabilities(config, with_msix)?;
        space.bytes = space.initial.clone();
        Ok(space)
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.initial[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.initial[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_bars(&mut self) -> Result<(), PciError> {
        let mut taken = [false; 6];
        for bar in self.bars.clone() {
            let registers = if bar.width == BarWidth::Bits64 { 2 } else { 1 };
            let fits = bar.size.is_power_of_two()
                && bar.size >= 0x1000
                && (registers == 2 || bar.size <= 1 << 31)
                && bar.index + registers <= taken.len()
                && !taken[bar.index..bar.index + registers].contains(&true);
            if !fits {
                return Err(PciError::BadBar(bar));
            }
            taken[bar.index..bar.index + registers].fill(true);
            let at = BAR0 + 4 * bar.index;
            let mut flags = if registers == 2 { BAR_64 } else { 0 };
            if bar.prefetchable {
                flags |= BAR_PREFETCHABLE;
            }
            self.put32(at, flags);
            let mask = !(bar.size - 1);
            self.mask[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
            if registers == 2 {
                self.mask[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
            }
        }
        Ok(())
    }

    fn put_capabilities(&mut self, config: &FunctionConfig, with_msix: bool) -> Result<(), PciError> {
        let mut next = FIRST_CAP;
        let mut link = CAP_POINTER;
        if config.express {
            self.put_capability(&mut next, &mut link, &express_capability())?;
        }
        if let (Some(msix), true) = (config.msix, with_msix) {
            let at = self.put_capability(&mut next, &mut link, &msix_capability(msix)?)?;
            self.msix_control = Some(at + 2);
        }
        for cap in &config.capabilities {
            self.put_capability(&mut next, &mut link, cap)?;
        }
        if next > FIRST_CAP {
            self.initial[STATUS] |= STATUS_CAP_LIST;
        }
        Ok(())
    }

    fn put_capability(
        &mut self,
        next: &mut usize,
        link: &mut usize,
        cap: &Capability,
    ) -> Result<usize, PciError> {
        let at = *next;
        let body = at + 2..at + 2 + cap.body.len();
        if body.end > SPACE || cap.writable.len() > cap.body.len() {
            return Err(PciError::CapabilitiesTooLong);
        }
        self.initial[*link] = at as u8;
        self.initial[at] = cap.id;
        self.initial[body.clone()].copy_from_slice(&cap.body);
        self.mask[body.start..body.start + cap.writable.len()].copy_from_slice(&cap.writable);
        if let Some(window) = &cap.window {
            let range = body.start + window.range.start..body.start + window.range.end;
            if range.start > range.end || range.end > body.end {
                return Err(PciError::CapabilitiesTooLong);
            }
            self.windows.push(Window { range, body: body.clone(), handler: Arc::clone(&window.handler) });
        }
        *link = at + 1;
        *next = body.end.next_multiple_of(4);
        Ok(at)
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// The access that `at .. at + len` makes to a window, if it lies in one.
    pub(crate) fn window(&self, at: usize, len: usize) -> Option<WindowAccess> {
        let w = self.windows.iter().find(|w| at >= w.range.start && at + len <= w.range.end)?;
        Some(WindowAccess {
            handler: Arc::clone(&w.handler),
            body: self.bytes[w.body.clone()].to_vec(),
            offset: at - w.range.start,
        })
    }

    /// Reads registers. `intx` is the state of the function's interrupt, shown in the status register.
    pub(crate) fn read(&self, at: usize, data: &mut [u8], intx: bool) {
        for (i, out) in data.iter_mut().enumerate() {
            *out = self.bytes.get(at + i).copied().unwrap_or(0);
            if at + i == STATUS && intx {
                *out |= STATUS_INTX;
            }
        }
    }

    /// Writes registers, as far as they can be written.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at + i), self.mask.get(at + i)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    pub(crate) fn control(&self) -> Control {
        let command = u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]);
        let msix = self.msix_control.map_or(0, |at| u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        Control {
            memory: command & CMD_MEMORY != 0,
            bus_master: command & CMD_BUS_MASTER != 0,
            intx_disabled: command & CMD_INTX_DISABLE != 0,
            msix_enabled: msix & MSIX_ENABLE != 0,
            msix_masked: msix & MSIX_FUNCTION_MASK != 0,
        }
    }

    /// The BARs and the guest physical addresses they are programmed to.
    pub(crate) fn bars(&self) -> impl Iterator<Item = (BarSpec, u64)> + '_ {
        self.bars.iter().map(|bar| {
            let at = BAR0 + 4 * bar.index;
            let mut value = u64::from(self.register32(at) & !0xf);
            if bar.width == BarWidth::Bits64 {
                value |= u64::from(self.register32(at + 4)) << 32;
            }
            (*bar, value)
        })
    }

    fn register32(&self, at: usize) -> u32 {
        let b = &self.bytes;
        u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }
}

/// A root complex integrated endpoint: it sits on the root bus and has no link.
fn express_capability() -> Capability {
    const VERSION: u16 = 2;
    const INTEGRATED_ENDPOINT: u16 = 9;
    const ROLE_BASED_ERROR_REPORTING: u32 = 1 << 15;
    let mut body = vec![0; 0x3a];
    let mut writable = vec![0; 0x3a];
    body[0..2].copy_from_slice(&(VERSION | (INTEGRATED_ENDPOINT << 4)).to_le_bytes());
    body[2..6].copy_from_slice(&ROLE_BASED_ERROR_REPORTING.to_le_bytes());
    // Device control: error reporting enables, relaxed ordering, payload and read request sizes, no snoop.
    writable[6..8].copy_from_slice(&0x78ff_u16.to_le_bytes());
    Capability { id: CAP_EXPRESS, body, writable, window: None }
}

fn msix_capability(msix: MsixSpec) -> Result<Capability, PciError> {
    if !(1..=2048).contains(&msix.vectors)
        || msix.bar > 5
        || !msix.table_offset.is_multiple_of(8)
        || !msix.pba_offset.is_multiple_of(8)
    {
        return Err(PciError::BadMsix(msix));
    }
    let mut body = vec![0; 10];
    body[0..2].copy_from_slice(&(msix.vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&(msix.table_offset | msix.bar as u32).to_le_bytes());
    body[6..10].copy_from_slice(&(msix.pba_offset | msix.bar as u32).to_le_bytes());
    let writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes().to_vec();
    Ok(Capability { id: CAP_MSIX, body, writable, window: None })
}
