//! Instructions on masks (15).

use super::Unit;
use super::sem::{MaskLogic, MaskPrefix};

impl Unit<'_, '_> {
    pub(super) fn mask_logic(&mut self, op: MaskLogic) {
        for i in self.elements() {
            let (a, b) = (self.bit(self.vs2(), i), self.bit(self.vs1(), i));
            let value = match op {
                MaskLogic::And => a & b,
                MaskLogic::AndNot => a & !b,
                MaskLogic::Or => a | b,
                MaskLogic::OrNot => a | !b,
                MaskLogic::Xor => a ^ b,
                MaskLogic::Nand => !(a & b),
                MaskLogic::Nor => !(a | b),
                MaskLogic::Xnor => a == b,
            };
            self.set_bit(self.vd(), i, value);
        }
    }

    /// `vcpop.m`, or `vfirst.m` if `first`.
    pub(super) fn count(&mut self, first: bool) {
        let mut set = self.elements().filter(|&i| self.is_active(i) && self.bit(self.vs2(), i));
        let value = if first { set.next().unwrap_or(u64::MAX) } else { set.count() as u64 };
        self.set_x(value);
    }

    pub(super) fn prefix(&mut self, which: MaskPrefix) {
        let mut found = false;
        for i in self.elements() {
            if !self.is_active(i) {
                continue;
            }
            let is_first = !found && self.bit(self.vs2(), i);
            found |= is_first;
            let value = match which {
                MaskPrefix::Before => !found,
                MaskPrefix::Including => !found || is_first,
                MaskPrefix::Only => is_first,
            };
            self.set_bit(self.vd(), i, value);
        }
    }

    pub(super) fn iota(&mut self) {
        let mut count = 0;
        for i in self.elements() {
            if self.is_active(i) {
                self.set(self.vd(), i, self.width(), count);
                count += u64::from(self.bit(self.vs2(), i));
            }
        }
    }

    pub(super) fn index(&mut self) {
        for i in self.elements() {
            if self.is_active(i) {
                self.set(self.vd(), i, self.width(), i);
            }
        }
    }
}
