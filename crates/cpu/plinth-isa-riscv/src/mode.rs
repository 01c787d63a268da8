//! What translated code depends on, packed into [`Mode::key`].
//!
//! Kernel code runs with whatever `FS` the interrupted program has. To translate it once, not once for each,
//! supervisor mode says [`Unit::Check`]: the few floating point instructions of a kernel ask
//! [`crate::helper::HelperId::FpCheck`] at run time. Whether the unit is dirty is not part of the mode: code
//! that writes floating point state sets it. Vector instructions ask in every mode: few programs have any,
//! and those that do share the code of libraries with others.

use plinth_ir::Mode;

/// Sets of address translations of data accesses (bits 0 and 1).
pub mod mmu {
    /// User mode.
    pub const USER: u32 = 0;
    /// Supervisor mode without access to user pages (`SUM` = 0).
    pub const SUPERVISOR: u32 = 1;
    /// Supervisor mode with access to user pages.
    pub const SUPERVISOR_SUM: u32 = 2;
    /// Machine mode: no translation. With `MPRV`, machine mode's data accesses use the other sets.
    pub const MACHINE: u32 = 3;
}

/// Privilege levels.
pub mod privilege {
    /// User.
    pub const USER: u32 = 0;
    /// Supervisor.
    pub const SUPERVISOR: u32 = 1;
    /// Machine.
    pub const MACHINE: u32 = 3;
}

/// Whether instructions of a unit (floating point, vector) may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Unit {
    /// They are illegal: the unit's state is Off.
    #[default]
    Off,
    /// They are legal.
    On,
    /// Not known at translation: code asks `mstatus` when it runs.
    Check,
}

impl Unit {
    const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Unit::Off,
            1 => Unit::On,
            _ => Unit::Check,
        }
    }
}

/// The unpacked mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RiscvMode {
    /// Of [`mmu`]: bits 0 and 1.
    pub mmu: u32,
    /// Of [`privilege`]: bits 2 and 3.
    pub privilege: u32,
    /// Floating point: bits 4 and 5.
    pub fp: Unit,
    /// Vectors: bits 6 and 7.
    pub vector: Unit,
    /// `frm`, 0..8: bits 8 to 10.
    pub frm: u32,
    /// `cbo.clean` and `cbo.flush` are legal (`CBCFE`): bit 11.
    pub cbo_clean: bool,
    /// `cbo.inval` is legal (`CBIE`): bit 12.
    pub cbo_inval: bool,
    /// `cbo.zero` is legal (`CBZE`): bit 13.
    pub cbo_zero: bool,
}

impl RiscvMode {
    /// The key with these fields.
    #[must_use]
    pub const fn key(self) -> u32 {
        (self.mmu & 3)
            | (self.privilege & 3) << 2
            | (self.fp as u32) << 4
            | (self.vector as u32) << 6
            | (self.frm & 7) << 8
            | (self.cbo_clean as u32) << 11
            | (self.cbo_inval as u32) << 12
            | (self.cbo_zero as u32) << 13
    }

    /// The fields of `mode`'s key.
    #[must_use]
    pub const fn of(mode: Mode) -> Self {
        let key = mode.key;
        Self {
            mmu: key & 3,
            privilege: key >> 2 & 3,
            fp: Unit::from_bits(key >> 4),
            vector: Unit::from_bits(key >> 6),
            frm: key >> 8 & 7,
            cbo_clean: key >> 11 & 1 != 0,
            cbo_inval: key >> 12 & 1 != 0,
            cbo_zero: key >> 13 & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_round_trips() {
        let m = RiscvMode {
            mmu: mmu::SUPERVISOR_SUM,
            privilege: privilege::SUPERVISOR,
            fp: Unit::Check,
            vector: Unit::On,
            frm: 4,
            cbo_clean: true,
            cbo_inval: false,
            cbo_zero: true,
        };
        let mode = Mode { key: m.key(), fetch: 1 };
        assert_eq!(RiscvMode::of(mode), m);
        assert_eq!(mode.data(), 2);
    }
}
