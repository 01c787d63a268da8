//! Loads and stores (7). Elements are accessed in order; what faults leaves `vstart` at its element.

use super::config::{Config, VLENB};
use super::sem::Memory;
use super::{Stop, Unit};
use crate::slots;

/// Bytes of the largest group of registers.
const MAX_BYTES: usize = 8 * VLENB as usize;

/// Where the elements of a load or store are.
struct Access {
    kind: Memory,
    base: u64,
    stride: u64,
    /// Binary logarithm of the index' bytes.
    index_width: u32,
    /// Binary logarithm of an element's bytes.
    width: u32,
    fields: u32,
    /// Registers from one field to the next.
    step: u32,
    from: u64,
    to: u64,
}

impl Unit<'_, '_> {
    fn access(&self, kind: Memory, eew: u32) -> Access {
        let fields = (self.d.bits >> 29) + 1;
        let emul =
            self.config.lmul() + if kind == Memory::Indexed { 0 } else { eew as i32 - self.width() as i32 };
        let width = if kind == Memory::Indexed { self.width() } else { eew };
        let elements = self.elements();
        let to = match kind {
            Memory::Whole => (u64::from(fields) * VLENB) >> width,
            Memory::Mask => elements.end.div_ceil(8),
            _ => elements.end,
        };
        let fields = if matches!(kind, Memory::Whole | Memory::Mask) { 1 } else { fields };
        let stride = match kind {
            Memory::Strided => self.x(self.vs2()),
            _ => u64::from(fields) << width,
        };
        Access {
            kind,
            base: self.x(self.vs1()),
            stride,
            index_width: eew,
            width,
            fields,
            step: 1 << emul.max(0),
            from: elements.start,
            to,
        }
    }

    /// The bytes of registers from `reg` on.
    fn get_bytes(&self, reg: u32, data: &mut [u8]) {
        let first = usize::from(slots::V0) + 2 * reg as usize;
        for (to, word) in data.chunks_mut(8).zip(&self.cpu.slots[first..]) {
            to.copy_from_slice(&word.to_le_bytes()[..to.len()]);
        }
    }

    fn set_bytes(&mut self, reg: u32, data: &[u8]) {
        let first = usize::from(slots::V0) + 2 * reg as usize;
        for (from, word) in data.chunks(8).zip(&mut self.cpu.slots[first..]) {
            let mut bytes = word.to_le_bytes();
            bytes[..from.len()].copy_from_slice(from);
            *word = u64::from_le_bytes(bytes);
        }
    }

    /// Address of the first field of element `i`.
    fn address(&self, access: &Access, i: u64) -> u64 {
        let offset = match access.kind {
            Memory::Indexed => self.get(self.vs2(), i, access.index_width),
            _ => i.wrapping_mul(access.stride),
        };
        access.base.wrapping_add(offset)
    }

    /// Bytes of the access if they are adjacent and all of them are accessed.
    fn plain_bytes(&self, access: &Access) -> Option<usize> {
        let adjacent = !matches!(access.kind, Memory::Strided | Memory::Indexed) && access.fields == 1;
        let plain = adjacent && !self.is_masked() && access.from == 0 && access.to > 0;
        plain.then_some((access.to << access.width) as usize)
    }

    pub(super) fn load(&mut self, kind: Memory, eew: u32) -> Result<(), Stop> {
        let access = self.access(kind, eew);
        let (vd, width, bytes) = (self.vd(), access.width, 1 << access.width);
        let mut data = [0; MAX_BYTES];
        if let Some(data) = self.plain_bytes(&access).and_then(|n| data.get_mut(..n))
            && self.cpu.env.load_quickly(access.base, data)
        {
            self.set_bytes(vd, data);
            return Ok(());
        }
        for i in access.from..access.to {
            if !self.is_active(i) {
                continue;
            }
            let address = self.address(&access, i);
            for field in 0..access.fields {
                let at = address.wrapping_add(u64::from(field) << width);
                match self.cpu.env.load(at, bytes) {
                    Ok(value) => self.set(vd + field * access.step, i, width, value),
                    Err(_) if kind == Memory::FaultOnlyFirst && i > 0 => {
                        Config::of(self.cpu.slots).with_vl(i).put(self.cpu.slots);
                        return Ok(());
                    }
                    Err(exception) => return Err(Stop::Fault(i, exception)),
                }
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, kind: Memory, eew: u32) -> Result<(), Stop> {
        let access = self.access(kind, eew);
        let (vd, width, bytes) = (self.vd(), access.width, 1 << access.width);
        let mut data = [0; MAX_BYTES];
        if let Some(data) = self.plain_bytes(&access).and_then(|n| data.get_mut(..n)) {
            self.get_bytes(vd, data);
            if self.cpu.env.store_quickly(access.base, data) {
                return Ok(());
            }
        }
        for i in access.from..access.to {
            if !self.is_active(i) {
                continue;
            }
            let address = self.address(&access, i);
            for field in 0..access.fields {
                let at = address.wrapping_add(u64::from(field) << width);
                let value = self.get(vd + field * access.step, i, width);
                if let Err(exception) = self.cpu.env.store(at, bytes, value) {
                    return Err(Stop::Fault(i, exception));
                }
            }
        }
        Ok(())
    }
}
