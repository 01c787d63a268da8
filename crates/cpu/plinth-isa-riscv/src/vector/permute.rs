//! Moves and permutations (16).

use super::Unit;
use super::config::VLENB;
use super::integer::{low, signed};
use super::sem::Slide;
use crate::slots::{self, set};

impl Unit<'_, '_> {
    /// vd = b where the mask is set, else a; without a mask, b everywhere.
    pub(super) fn merge(&mut self) {
        let (vd, vs2, vs1, width, scalar) = (self.vd(), self.vs2(), self.vs1(), self.width(), self.scalar());
        for i in self.elements() {
            let value = if self.is_active(i) {
                scalar.unwrap_or_else(|| self.get(vs1, i, width))
            } else {
                self.get(vs2, i, width)
            };
            self.set(vd, i, width, value);
        }
    }

    pub(super) fn slide(&mut self, slide: Slide) {
        let (vd, vs2, width, vl) = (self.vd(), self.vs2(), self.width(), self.config.vl());
        let b = self.scalar().unwrap_or_default();
        for i in self.elements() {
            if !self.is_active(i) {
                continue;
            }
            let value = match slide {
                Slide::Up if i < b => continue,
                Slide::Up => self.get(vs2, i - b, width),
                Slide::Down => self.element_or_zero(i.saturating_add(b)),
                Slide::OneUp if i == 0 => b,
                Slide::OneUp => self.get(vs2, i - 1, width),
                Slide::OneDown if i + 1 == vl => b,
                Slide::OneDown => self.get(vs2, i + 1, width),
            };
            self.set(vd, i, width, value);
        }
    }

    /// Element `i` of vs2; those beyond the last one are zero.
    fn element_or_zero(&self, i: u64) -> u64 {
        if i < self.config.vlmax() { self.get(self.vs2(), i, self.width()) } else { 0 }
    }

    fn gather_by(&mut self, index: impl Fn(&Self, u64) -> u64) {
        for i in self.elements() {
            if self.is_active(i) {
                let from = index(self, i);
                let value = self.element_or_zero(from);
                self.set(self.vd(), i, self.width(), value);
            }
        }
    }

    pub(super) fn gather(&mut self) {
        match self.scalar() {
            Some(index) => self.gather_by(|_, _| index),
            None => self.gather_by(|unit, i| unit.get(unit.vs1(), i, unit.width())),
        }
    }

    pub(super) fn gather_16(&mut self) {
        self.gather_by(|unit, i| unit.get(unit.vs1(), i, 1));
    }

    pub(super) fn compress(&mut self) {
        let mut to = 0;
        for i in self.elements() {
            if self.bit(self.vs1(), i) {
                let value = self.get(self.vs2(), i, self.width());
                self.set(self.vd(), to, self.width(), value);
                to += 1;
            }
        }
    }

    pub(super) fn first_to_x(&mut self) {
        let value = signed(self.get(self.vs2(), 0, self.width()), self.bits());
        self.set_x(value as u64);
    }

    pub(super) fn first_to_f(&mut self) {
        let value = self.get(self.vs2(), 0, self.width());
        let boxed = value | !low(u64::MAX, self.bits());
        set(self.cpu.slots, slots::f(self.vd() as u8), boxed);
    }

    pub(super) fn first_from(&mut self) {
        if !self.elements().is_empty() {
            let value = self.scalar().unwrap_or_default();
            self.set(self.vd(), 0, self.width(), value);
        }
    }

    pub(super) fn move_whole(&mut self, n: u8) {
        let width = self.width();
        for i in self.config.vstart()..(u64::from(n) * VLENB) >> width {
            let value = self.get(self.vs2(), i, width);
            self.set(self.vd(), i, width, value);
        }
    }
}
