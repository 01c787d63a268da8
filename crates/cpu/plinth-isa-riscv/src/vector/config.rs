//! `vtype`, `vl` and `vstart`, which one slot holds.

use crate::slots::{self, get, set};

/// Bytes of a vector register.
pub const VLENB: u64 = 16;
/// Bits of a vector register.
pub const VLEN: u64 = VLENB * 8;
/// `vtype.vill`.
const ILL: u64 = 1 << 63;

/// The bits of the slot that are `vtype`.
pub const VTYPE_MASK: u64 = ILL | 0xff;

/// The slot [`slots::VCONFIG`]: `vtype` in bits 0 to 7, `vl` in bits 8 to 15, `vstart` in bits 16 to 23;
/// `vtype.vill` in bit 63. One comparison of the slot tells translated code all that it relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config(pub u64);

impl Config {
    /// `vill` is set, which is the state after reset (3.11).
    pub const ILLEGAL: Config = Config(ILL);

    /// `vl` elements of a type, from the first one on.
    #[must_use]
    pub const fn new(vtype: u64, vl: u64) -> Self {
        Config(vtype & (ILL | 0xff) | (vl & 0xff) << 8)
    }

    /// The state's.
    #[must_use]
    pub fn of(s: &[u64]) -> Self {
        Config(get(s, slots::VCONFIG))
    }

    /// Makes it the state's.
    pub fn put(self, s: &mut [u64]) {
        set(s, slots::VCONFIG, self.0);
    }

    /// The CSR `vtype`.
    #[must_use]
    pub const fn vtype(self) -> u64 {
        self.0 & VTYPE_MASK
    }

    /// The CSR `vl`.
    #[must_use]
    pub const fn vl(self) -> u64 {
        self.0 >> 8 & 0xff
    }

    /// The CSR `vstart`.
    #[must_use]
    pub const fn vstart(self) -> u64 {
        self.0 >> 16 & 0xff
    }

    /// The same with another `vl`.
    #[must_use]
    pub const fn with_vl(self, vl: u64) -> Self {
        Config(self.0 & !0xff00 | (vl & 0xff) << 8)
    }

    /// The same with another `vstart`, of which there are as many bits as the longest vector needs.
    #[must_use]
    pub const fn with_vstart(self, vstart: u64) -> Self {
        Config(self.0 & !0xff_0000 | (vstart & (VLEN - 1)) << 16)
    }

    /// `vtype.vill`.
    #[must_use]
    pub const fn is_ill(self) -> bool {
        self.0 & ILL != 0
    }

    /// Binary logarithm of SEW in bits.
    #[must_use]
    pub const fn sew(self) -> i32 {
        (self.0 >> 3 & 7) as i32 + 3
    }

    /// Binary logarithm of LMUL.
    #[must_use]
    pub const fn lmul(self) -> i32 {
        ((self.0 << 61) as i64 >> 61) as i32
    }

    /// VLMAX: the most elements of this type.
    #[must_use]
    pub const fn vlmax(self) -> u64 {
        VLEN << (self.lmul() + 3) >> (self.sew() + 3)
    }
}

/// The type that `vtype` asks for, with no elements; [`Config::ILLEGAL`] if it is reserved. SEW must fit into
/// LMUL * ELEN (3.4.2), where ELEN is 64.
#[must_use]
pub const fn requested(vtype: u64) -> Config {
    let config = Config::new(vtype, 0);
    let (sew, lmul) = (config.sew(), config.lmul());
    let fits = if lmul < 0 { sew <= 6 + lmul } else { true };
    if vtype >> 8 != 0 || sew > 6 || lmul == -4 || !fits { Config::ILLEGAL } else { config }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        assert_eq!(requested(0).vlmax(), 16);
        assert_eq!(requested(0b000_011).vlmax(), 128); // e8, m8
        assert_eq!(requested(0b011_000).vlmax(), 2); // e64, m1
        assert_eq!(requested(0b000_101).vlmax(), 2); // e8, mf8
        assert_eq!(requested(0b010_111).vlmax(), 2); // e32, mf2
        for reserved in [0b011_111, 0b001_101, 0b010_110, 0b000_100, 0b100_000, 0x100, 1 << 63] {
            assert!(requested(reserved).is_ill(), "{reserved:#x}");
        }
    }

    #[test]
    fn fields_do_not_touch_each_other() {
        let c = Config::new(0xff, 128).with_vstart(127);
        assert_eq!((c.vtype(), c.vl(), c.vstart()), (0xff, 128, 127));
        let c = c.with_vl(3).with_vstart(128);
        assert_eq!((c.vtype(), c.vl(), c.vstart()), (0xff, 3, 0));
    }
}
