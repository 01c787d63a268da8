//! The address map: which device answers at which guest physical address.

use std::sync::{Arc, PoisonError, RwLock};

use plinth_vcpu::{BusFault, PhysicalBus};

use crate::{IoOutcome, MmioDevice};

/// A stretch of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes; not zero.
    pub len: u64,
}

impl Range {
    fn end(self) -> Option<u64> {
        self.start.checked_add(self.len - 1)
    }
}

/// Why a device could not be put on the bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or wraps.
    #[error("range {0:?} is empty or wraps around the address space")]
    BadRange(Range),
    /// Another device is there.
    #[error("range {0:?} overlaps the device at {1:?}")]
    Overlap(Range, Range),
}

struct Slot {
    range: Range,
    device: Arc<dyn MmioDevice>,
}

/// The devices of a machine by address. A device is called with no lock of the bus held, so an access may
/// move devices (a BAR written from a configuration access).
#[derive(Default)]
pub struct Bus {
    slots: RwLock<Vec<Slot>>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`.
    ///
    /// # Errors
    /// [`BusError`]; the bus is unchanged.
    pub fn insert(&self, range: Range, device: Arc<dyn MmioDevice>) -> Result<(), BusError> {
        let end = if range.len == 0 { None } else { range.end() }.ok_or(BusError::BadRange(range))?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.partition_point(|s| s.range.start < range.start);
        let before = at.checked_sub(1).map(|i| slots[i].range).filter(|r| r.end() >= Some(range.start));
        let after = slots.get(at).map(|s| s.range).filter(|r| r.start <= end);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap(range, other));
        }
        slots.insert(at, Slot { range, device });
        Ok(())
    }

    /// Takes the device that starts at `start` off the bus.
    pub fn remove(&self, start: u64) -> Option<Arc<dyn MmioDevice>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.iter().position(|s| s.range.start == start)?;
        Some(slots.remove(at).device)
    }

    fn find(&self, gpa: u64, len: usize) -> Result<(u64, Arc<dyn MmioDevice>), BusFault> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let at = slots.partition_point(|s| s.range.start <= gpa);
        let slot = at.checked_sub(1).and_then(|i| slots.get(i)).ok_or(BusFault::NoDevice)?;
        let offset = gpa - slot.range.start;
        match offset.checked_add(len as u64) {
            Some(end) if end <= slot.range.len => Ok((offset, Arc::clone(&slot.device))),
            _ if offset >= slot.range.len => Err(BusFault::NoDevice),
            _ => Err(BusFault::Refused),
        }
    }
}

fn result(outcome: IoOutcome) -> Result<(), BusFault> {
    match outcome {
        IoOutcome::Done => Ok(()),
        IoOutcome::Fault => Err(BusFault::Refused),
    }
}

impl PhysicalBus for Bus {
    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), BusFault> {
        let (offset, device) = self.find(gpa, data.len())?;
        result(device.read(offset, data))
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), BusFault> {
        let (offset, device) = self.find(gpa, data.len())?;
        result(device.write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl MmioDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
            data.fill(self.0 + offset as u8);
            IoOutcome::Done
        }
        fn write(&self, _: u64, _: &[u8]) -> IoOutcome {
            IoOutcome::Fault
        }
    }

    #[test]
    fn accesses_reach_the_device_whose_range_holds_all_bytes() {
        let bus = Bus::new();
        bus.insert(Range { start: 0x1000, len: 0x100 }, Arc::new(Echo(1))).unwrap();
        bus.insert(Range { start: 0x1100, len: 0x10 }, Arc::new(Echo(9))).unwrap();
        let clash = bus.insert(Range { start: 0x10ff, len: 1 }, Arc::new(Echo(0)));
        assert!(matches!(clash, Err(BusError::Overlap(..))));
        let wrap = Range { start: u64::MAX, len: 2 };
        assert_eq!(bus.insert(wrap, Arc::new(Echo(0))), Err(BusError::BadRange(wrap)));
        let mut b = [0; 2];
        bus.read(0x1004, &mut b).unwrap();
        assert_eq!(b, [5, 5]);
        bus.read(0x1100, &mut b).unwrap();
        assert_eq!(b, [9, 9]);
        assert_eq!(bus.read(0x10ff, &mut b), Err(BusFault::Refused));
        assert_eq!(bus.read(0x1110, &mut b), Err(BusFault::NoDevice));
        assert_eq!(bus.read(0xfff, &mut b[..1]), Err(BusFault::NoDevice));
        assert_eq!(bus.write(0x1000, &b), Err(BusFault::Refused));
        assert!(bus.remove(0x1000).is_some());
        assert_eq!(bus.read(0x1004, &mut b), Err(BusFault::NoDevice));
    }
}
