//! A table of bounded size whose keys do not outlive their values.

/// Names one value in a [`Slab`]; once that value is removed it names nothing, even if the slot is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SlotId {
    index: u32,
    generation: u32,
}

/// Generations count modulo 2^24, so that an id fits 56 bits of an epoll event.
const GENERATION_BITS: u32 = 24;

impl SlotId {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 & ((1 << GENERATION_BITS) - 1) }
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

impl<T> Slab<T> {
    /// A table of at most `limit` values.
    pub(super) fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit: limit.min(u32::MAX as usize) }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Stores the value that `make` builds for its id; `None` when the table is full.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(SlotId) -> T) -> Option<SlotId> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = SlotId { index, generation: slot.generation };
        slot.value = Some(make(id));
        Some(id)
    }

    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: SlotId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & ((1 << GENERATION_BITS) - 1);
        self.free.push(id.index);
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = SlotId { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (id, value))
        })
    }

    pub(super) fn ids(&self) -> Vec<SlotId> {
        self.iter().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_id_stays_dead() {
        let mut slab = Slab::new(1);
        let first = slab.insert_with(|_| 'a').unwrap();
        assert!(slab.insert_with(|_| 'b').is_none());
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert_with(|_| 'c').unwrap();
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(SlotId::from_bits(second.to_bits())), Some(&mut 'c'));
        assert_eq!(slab.ids(), [second]);
        assert_eq!((slab.remove(second), slab.len()), (Some('c'), 0));
    }
}
