//! MSI-X: the vector table, the pending-bit array and delivery (PCI Express Base Specification 4.0, 6.1.4).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plinth_device::MsiSink;

use crate::MsixSpec;

const ENTRY: u64 = 16;
const ENTRY_MASKED: u32 = 1;

#[derive(Clone, Copy)]
struct Entry {
    address_low: u32,
    address_high: u32,
    data: u32,
    control: u32,
}

impl Entry {
    /// After reset every vector is masked.
    const RESET: Self = Self { address_low: 0, address_high: 0, data: 0, control: ENTRY_MASKED };

    fn message(&self) -> Message {
        Message {
            address: (u64::from(self.address_high) << 32) | u64::from(self.address_low),
            data: self.data,
        }
    }
}

/// A message that is due.
pub(crate) struct Message {
    address: u64,
    data: u32,
}

struct State {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    /// Enabled in the capability, not masked as a whole, and the function may master the bus.
    open: bool,
    enabled: bool,
}

impl State {
    fn take_if_deliverable(&mut self, vector: usize) -> Option<Message> {
        let entry = self.entries.get(vector)?;
        let (word, bit) = (self.pending.get_mut(vector / 64)?, 1 << (vector % 64));
        if self.open && entry.control & ENTRY_MASKED == 0 {
            *word &= !bit;
            Some(entry.message())
        } else {
            *word |= bit;
            None
        }
    }

    fn release_pending(&mut self) -> Vec<Message> {
        let waiting: Vec<usize> =
            (0..self.entries.len()).filter(|v| self.pending[v / 64] & (1 << (v % 64)) != 0).collect();
        waiting.into_iter().filter_map(|v| self.take_if_deliverable(v)).collect()
    }
}

/// The MSI-X structures of one function.
pub(crate) struct Msix {
    spec: MsixSpec,
    sink: Arc<dyn MsiSink>,
    state: Mutex<State>,
}

impl Msix {
    pub(crate) fn new(spec: MsixSpec, sink: Arc<dyn MsiSink>) -> Self {
        let n = usize::from(spec.vectors);
        let state = State {
            entries: vec![Entry::RESET; n],
            pending: vec![0; n.div_ceil(64)],
            open: false,
            enabled: false,
        };
        Self { spec, sink, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends messages. To be called with no lock held: a guest chooses the address.
    pub(crate) fn send(&self, messages: impl IntoIterator<Item = Message>) {
        for m in messages {
            self.sink.send(m.address, m.data);
        }
    }

    pub(crate) fn enabled(&self) -> bool {
        self.state().enabled
    }

    /// Signals `vector`; one that does not exist is ignored.
    pub(crate) fn trigger(&self, vector: u16) {
        let mut state = self.state();
        // With MSI-X off there is no message to hold back either.
        let message = if state.enabled { state.take_if_deliverable(usize::from(vector)) } else { None };
        drop(state);
        self.send(message);
    }

    /// Takes new control bits and returns the messages that they set free.
    #[must_use]
    pub(crate) fn set_control(&self, enabled: bool, masked: bool, bus_master: bool) -> Vec<Message> {
        let mut state = self.state();
        state.enabled = enabled;
        state.open = enabled && !masked && bus_master;
        if state.open { state.release_pending() } else { Vec::new() }
    }

    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.entries.fill(Entry::RESET);
        state.pending.fill(0);
        (state.open, state.enabled) = (false, false);
    }

    /// True if the access belongs to the table or the pending-bit array. What lies between is the function's.
    pub(crate) fn claims(&self, bar: usize, offset: u64) -> bool {
        bar == self.spec.bar && (self.in_table(offset).is_some() || self.in_pba(offset).is_some())
    }

    fn in_table(&self, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(u64::from(self.spec.table_offset))?;
        (at < u64::from(self.spec.vectors) * ENTRY).then_some(at)
    }

    fn in_pba(&self, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(u64::from(self.spec.pba_offset))?;
        (at < u64::from(self.spec.vectors).div_ceil(64) * 8).then_some(at)
    }

    /// Reads aligned 4 or 8 bytes; other accesses are undefined by the specification and read as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return;
        }
        let state = self.state();
        for (i, chunk) in data.chunks_exact_mut(4).enumerate() {
            let offset = offset + 4 * i as u64;
            let word = if let Some(at) = self.in_table(offset) {
                state.entries.get((at / ENTRY) as usize).map_or(0, |e| match at % ENTRY / 4 {
                    0 => e.address_low,
                    1 => e.address_high,
                    2 => e.data,
                    _ => e.control,
                })
            } else if let Some(at) = self.in_pba(offset) {
                let word = state.pending.get((at / 8) as usize).copied().unwrap_or(0);
                (word >> (8 * (at & 4))) as u32
            } else {
                0
            };
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Writes aligned 4 or 8 bytes of the table; the pending bits are read-only.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return;
        }
        let mut state = self.state();
        let mut messages = Vec::new();
        for (i, chunk) in data.chunks_exact(4).enumerate() {
            let Some(at) = self.in_table(offset + 4 * i as u64) else { continue };
            let vector = (at / ENTRY) as usize;
            let Some(entry) = state.entries.get_mut(vector) else { continue };
            let value = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            match at % ENTRY / 4 {
                0 => entry.address_low = value & !3,
                1 => entry.address_high = value,
                2 => entry.data = value,
                _ => entry.control = value & ENTRY_MASKED,
            }
            if state.pending[vector / 64] & (1 << (vector % 64)) != 0 {
                messages.extend(state.take_if_deliverable(vector));
            }
        }
        drop(state);
        self.send(messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    #[test]
    fn a_masked_vector_waits_in_the_pending_bits() {
        let sent = Arc::new(Sent::default());
        let spec = MsixSpec { vectors: 66, bar: 0, table_offset: 0x1000, pba_offset: 0x2000 };
        let msix = Msix::new(spec, sent.clone());
        let entry = 0x1000 + 65 * 16;
        msix.write(entry, &0xfee0_0000_1234_u64.to_le_bytes());
        msix.write(entry + 8, &77u32.to_le_bytes());
        msix.trigger(65);
        let mut pba = [0; 8];
        msix.read(0x2008, &mut pba);
        assert_eq!(pba, [0; 8], "off: nothing is recorded");

        let control = |masked, bus_master| msix.send(msix.set_control(true, masked, bus_master));
        control(true, true);
        msix.trigger(65);
        control(false, true);
        msix.read(0x2008, &mut pba);
        assert_eq!(u64::from_le_bytes(pba), 2, "the vector itself is still masked");
        assert!(sent.0.lock().unwrap().is_empty());

        msix.write(entry + 12, &0u32.to_le_bytes());
        assert_eq!(*sent.0.lock().unwrap(), [(0xfee0_0000_1234, 77)]);
        msix.read(0x2008, &mut pba);
        assert_eq!(pba, [0; 8]);

        control(false, false);
        msix.trigger(65);
        msix.trigger(66);
        assert_eq!(sent.0.lock().unwrap().len(), 1, "no bus mastering, no message");
        control(false, true);
        assert_eq!(sent.0.lock().unwrap().len(), 2);
    }
}
