//! Fields of the control state, and what is derived from them.

use plinth_ir::Mode;

use crate::mode::{RiscvMode, Unit, mmu, privilege};
use crate::slots::{self, get, set};

/// Fields of `mstatus` (3.1.6). `sstatus` shows those of [`status::SUPERVISOR`].
pub mod status {
    /// Supervisor interrupts are enabled.
    pub const SIE: u64 = 1 << 1;
    /// Machine interrupts are enabled.
    pub const MIE: u64 = 1 << 3;
    /// SIE before the last trap to supervisor mode.
    pub const SPIE: u64 = 1 << 5;
    /// MIE before the last trap to machine mode.
    pub const MPIE: u64 = 1 << 7;
    /// Supervisor mode before the last trap to it.
    pub const SPP: u64 = 1 << 8;
    /// State of the vector unit.
    pub const VS: u64 = 3 << 9;
    /// Privilege before the last trap to machine mode.
    pub const MPP: u64 = 3 << 11;
    /// Lowest bit of [`MPP`].
    pub const MPP_SHIFT: u32 = 11;
    /// State of the floating point unit.
    pub const FS: u64 = 3 << 13;
    /// Data accesses have the privilege in [`MPP`].
    pub const MPRV: u64 = 1 << 17;
    /// Supervisor mode may access user pages.
    pub const SUM: u64 = 1 << 18;
    /// Loads may read executable pages.
    pub const MXR: u64 = 1 << 19;
    /// Supervisor mode may not manage virtual memory.
    pub const TVM: u64 = 1 << 20;
    /// `wfi` below machine mode traps.
    pub const TW: u64 = 1 << 21;
    /// `sret` in supervisor mode traps.
    pub const TSR: u64 = 1 << 22;
    /// UXL and SXL: both are 64 bits wide, always.
    pub const XL: u64 = 2 << 32 | 2 << 34;
    /// FS or VS is dirty; computed when read.
    pub const SD: u64 = 1 << 63;
    /// What machine mode can change.
    pub const MACHINE: u64 = SUPERVISOR | MIE | MPIE | MPP | MPRV | TVM | TW | TSR;
    /// What supervisor mode can change.
    pub const SUPERVISOR: u64 = SIE | SPIE | SPP | VS | FS | SUM | MXR;
    /// UXL, which `sstatus` shows too.
    pub const UXL: u64 = 3 << 32;
}

/// Fields of `menvcfg` and `senvcfg` (3.1.18, 10.1.10).
pub mod envcfg {
    /// Fences of I/O imply memory.
    pub const FIOM: u64 = 1;
    /// `cbo.inval`: 0 traps, 1 flushes, 3 invalidates.
    pub const CBIE: u64 = 3 << 4;
    /// The reserved value of [`CBIE`].
    pub const CBIE_RESERVED: u64 = 2 << 4;
    /// `cbo.clean` and `cbo.flush` are enabled.
    pub const CBCFE: u64 = 1 << 6;
    /// `cbo.zero` is enabled.
    pub const CBZE: u64 = 1 << 7;
    /// The hardware updates accessed and dirty bits (Svadu).
    pub const ADUE: u64 = 1 << 61;
    /// `stimecmp` is enabled (Sstc).
    pub const STCE: u64 = 1 << 63;
    /// What `senvcfg` has.
    pub const SUPERVISOR: u64 = FIOM | CBIE | CBCFE | CBZE;
    /// What `menvcfg` has.
    pub const MACHINE: u64 = SUPERVISOR | ADUE | STCE;
}

/// Bits of [`slots::FEATURES`]: what [`crate::Riscv`] was made with.
pub mod feature {
    /// The SBI is built in: there is no machine mode.
    pub const SBI: u64 = 1;
    /// `satp` accepts Sv48.
    pub const SV48: u64 = 1 << 1;
    /// `satp` accepts Sv57.
    pub const SV57: u64 = 1 << 2;
    /// Supervisor mode has the advanced interrupt architecture, with an interrupt file (Ssaia).
    pub const AIA: u64 = 1 << 3;
}

/// The bit of extension `letter` (upper case) in `misa`.
#[must_use]
pub const fn misa_bit(letter: u8) -> u64 {
    1 << (letter - b'A')
}

/// The current privilege.
#[must_use]
pub fn privilege_of(s: &[u64]) -> u32 {
    get(s, slots::PRIVILEGE) as u32
}

/// True if the SBI is built in.
#[must_use]
pub fn has_sbi(s: &[u64]) -> bool {
    get(s, slots::FEATURES) & feature::SBI != 0
}

/// True if supervisor mode has the advanced interrupt architecture.
#[must_use]
pub fn has_aia(s: &[u64]) -> bool {
    get(s, slots::FEATURES) & feature::AIA != 0
}

/// True if `mstatus.FS` is not Off.
#[must_use]
pub fn fp_on(s: &[u64]) -> bool {
    get(s, slots::MSTATUS) & status::FS != 0
}

/// True if `mstatus.VS` is not Off.
#[must_use]
pub fn vector_on(s: &[u64]) -> bool {
    get(s, slots::MSTATUS) & status::VS != 0
}

/// Sets `bits` in slot `slot`.
pub fn set_bits(s: &mut [u64], slot: u16, bits: u64) {
    set(s, slot, get(s, slot) | bits);
}

/// Clears `bits` in slot `slot`.
pub fn clear_bits(s: &mut [u64], slot: u16, bits: u64) {
    set(s, slot, get(s, slot) & !bits);
}

/// `mstatus.MPP`.
#[must_use]
pub fn mpp(s: &[u64]) -> u32 {
    ((get(s, slots::MSTATUS) & status::MPP) >> status::MPP_SHIFT) as u32
}

/// The set of address translations that data accesses use.
fn data_mmu(s: &[u64]) -> u32 {
    let mstatus = get(s, slots::MSTATUS);
    let own = privilege_of(s);
    let effective = if own == privilege::MACHINE && mstatus & status::MPRV != 0 { mpp(s) } else { own };
    match effective {
        privilege::USER => mmu::USER,
        privilege::SUPERVISOR if mstatus & status::SUM != 0 => mmu::SUPERVISOR_SUM,
        privilege::SUPERVISOR => mmu::SUPERVISOR,
        _ => mmu::MACHINE,
    }
}

fn unit(user: bool, on: bool) -> Unit {
    match (user, on) {
        (false, _) => Unit::Check,
        (true, true) => Unit::On,
        (true, false) => Unit::Off,
    }
}

/// What translated code depends on.
#[must_use]
pub fn mode_of(s: &[u64]) -> Mode {
    let own = privilege_of(s);
    let user = own == privilege::USER;
    let fp = unit(user, fp_on(s));
    // What the environment grants: machine mode everything, each level below what all above it grant.
    let granted = match own {
        privilege::MACHINE => u64::MAX,
        privilege::SUPERVISOR => get(s, slots::MENVCFG),
        _ => get(s, slots::MENVCFG) & get(s, slots::SENVCFG),
    };
    // Of CBIE, 1 and 3 grant: their common bit is the low one.
    let key = RiscvMode {
        mmu: data_mmu(s),
        privilege: own,
        fp,
        vector: if get(s, slots::MISA) & misa_bit(b'V') != 0 { Unit::Check } else { Unit::Off },
        frm: if fp == Unit::Off { 0 } else { get(s, slots::FRM) as u32 },
        cbo_clean: granted & envcfg::CBCFE != 0,
        cbo_inval: granted & envcfg::CBIE & !envcfg::CBIE_RESERVED != 0,
        cbo_zero: granted & envcfg::CBZE != 0,
    }
    .key();
    let fetch = match own {
        privilege::USER => mmu::USER,
        privilege::SUPERVISOR => mmu::SUPERVISOR,
        _ => mmu::MACHINE,
    };
    Mode { key, fetch: fetch as u8 }
}
