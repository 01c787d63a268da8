//! The hart's state as slots.
//!
//! `x0..x31` are slots 0..32 (that of `x0` is never written; the lifter reads `x0` as a constant), `f0..f31`
//! slots 32..64, `v0..v31` two slots each from 64, then control state. A control slot named as a CSR holds
//! the bits that are stored; views (`sstatus`, `sie`, `sip`), read-only fields (`mstatus.SD`) and bits that
//! come from outside (`mip.SEIP`, ...) are computed where the CSR is read.

use plinth_ir::{Layout, SlotClass, SlotInfo};

/// Slot of `x0`.
pub const X0: u16 = 0;
/// Slot of `f0`.
pub const F0: u16 = 32;
/// First slot of `v0`: registers are 128 bits, two slots each.
pub const V0: u16 = 64;
const CONTROL: u16 = 128;

/// Slot of integer register `r`.
#[must_use]
pub const fn x(r: u8) -> u16 {
    X0 + (r & 31) as u16
}

/// Slot of floating point register `r`.
#[must_use]
pub const fn f(r: u8) -> u16 {
    F0 + (r & 31) as u16
}

/// First slot of vector register `r`.
#[must_use]
pub const fn v(r: u8) -> u16 {
    V0 + 2 * (r & 31) as u16
}

/// The value of `slot`.
#[must_use]
pub fn get(slots: &[u64], slot: u16) -> u64 {
    slots[usize::from(slot)]
}

/// Sets `slot`.
pub fn set(slots: &mut [u64], slot: u16, value: u64) {
    slots[usize::from(slot)] = value;
}

macro_rules! control_slots {
    ($($(#[$m:meta])* $name:ident = $text:literal,)+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Control { $($name),+ }
        $($(#[$m])* pub const $name: u16 = CONTROL + Control::$name as u16;)+
        const CONTROL_NAMES: &[&str] = &[$($text),+];
    };
}

control_slots! {
    /// Privilege: 0 user, 1 supervisor, 3 machine.
    PRIVILEGE = "privilege",
    /// `mstatus` without SD. `sstatus` is a view of it.
    MSTATUS = "mstatus",
    /// `misa`.
    MISA = "misa",
    /// `mie`. `sie` is a view of it.
    MIE = "mie",
    /// Software-writable bits of `mip` (SSIP, STIP, SEIP); the others come from the interrupt inputs.
    MIP = "mip",
    /// `mideleg`.
    MIDELEG = "mideleg",
    /// `medeleg`.
    MEDELEG = "medeleg",
    /// `mtvec`.
    MTVEC = "mtvec",
    /// `mepc`.
    MEPC = "mepc",
    /// `mcause`.
    MCAUSE = "mcause",
    /// `mtval`.
    MTVAL = "mtval",
    /// `mscratch`.
    MSCRATCH = "mscratch",
    /// `mcounteren`.
    MCOUNTEREN = "mcounteren",
    /// `mcountinhibit`.
    MCOUNTINHIBIT = "mcountinhibit",
    /// `menvcfg`.
    MENVCFG = "menvcfg",
    /// `mhartid`.
    MHARTID = "mhartid",
    /// What `mcycle` is ahead of the engine's count.
    MCYCLE_OFFSET = "mcycle_offset",
    /// What `minstret` is ahead of the engine's count.
    MINSTRET_OFFSET = "minstret_offset",
    /// What was last written to `minstret`.
    MINSTRET_WRITTEN = "minstret_written",
    /// Address of the instruction after that write; 1 once another has read the counter.
    MINSTRET_READER = "minstret_reader",
    /// `stvec`.
    STVEC = "stvec",
    /// `sepc`.
    SEPC = "sepc",
    /// `scause`.
    SCAUSE = "scause",
    /// `stval`.
    STVAL = "stval",
    /// `sscratch`.
    SSCRATCH = "sscratch",
    /// `scounteren`.
    SCOUNTEREN = "scounteren",
    /// `senvcfg`.
    SENVCFG = "senvcfg",
    /// `satp`.
    SATP = "satp",
    /// `stimecmp`.
    STIMECMP = "stimecmp",
    /// Rounding mode of `fcsr`. The flags are the engine's (`FpFlagsGet`).
    FRM = "frm",
    /// `vxsat`.
    VXSAT = "vxsat",
    /// `vxrm`.
    VXRM = "vxrm",
    /// `vtype`, `vl` and `vstart`: see [`crate::vector::Config`].
    VCONFIG = "vconfig",
    /// What the hart was made with; see [`crate::privileged::state::feature`].
    FEATURES = "features",
    /// `siselect`.
    SISELECT = "siselect",
    /// `eidelivery` of the supervisor's interrupt file.
    EIDELIVERY = "eidelivery",
    /// `eithreshold` of the same.
    EITHRESHOLD = "eithreshold",
    /// Pending interrupts of the file: identities 0 to 63. The other three words follow.
    EIP0 = "eip0",
    /// See [`EIP0`].
    EIP1 = "eip1",
    /// See [`EIP0`].
    EIP2 = "eip2",
    /// See [`EIP0`].
    EIP3 = "eip3",
    /// Enabled interrupts of the file, likewise.
    EIE0 = "eie0",
    /// See [`EIE0`].
    EIE1 = "eie1",
    /// See [`EIE0`].
    EIE2 = "eie2",
    /// See [`EIE0`].
    EIE3 = "eie3",
    /// `pmpcfg0`: entries 0..8.
    PMPCFG0 = "pmpcfg0",
    /// `pmpcfg2`: entries 8..16.
    PMPCFG2 = "pmpcfg2",
    /// `pmpaddr0`; the other 15 follow.
    PMPADDR0 = "pmpaddr0",
    /// See [`PMPADDR0`].
    PMPADDR1 = "pmpaddr1",
    /// See [`PMPADDR0`].
    PMPADDR2 = "pmpaddr2",
    /// See [`PMPADDR0`].
    PMPADDR3 = "pmpaddr3",
    /// See [`PMPADDR0`].
    PMPADDR4 = "pmpaddr4",
    /// See [`PMPADDR0`].
    PMPADDR5 = "pmpaddr5",
    /// See [`PMPADDR0`].
    PMPADDR6 = "pmpaddr6",
    /// See [`PMPADDR0`].
    PMPADDR7 = "pmpaddr7",
    /// See [`PMPADDR0`].
    PMPADDR8 = "pmpaddr8",
    /// See [`PMPADDR0`].
    PMPADDR9 = "pmpaddr9",
    /// See [`PMPADDR0`].
    PMPADDR10 = "pmpaddr10",
    /// See [`PMPADDR0`].
    PMPADDR11 = "pmpaddr11",
    /// See [`PMPADDR0`].
    PMPADDR12 = "pmpaddr12",
    /// See [`PMPADDR0`].
    PMPADDR13 = "pmpaddr13",
    /// See [`PMPADDR0`].
    PMPADDR14 = "pmpaddr14",
    /// See [`PMPADDR0`].
    PMPADDR15 = "pmpaddr15",
}

/// How many slots there are.
pub const COUNT: usize = CONTROL as usize + CONTROL_NAMES.len();
const _: () = assert!(COUNT < 512);

/// ABI names of the integer registers.
pub const X_NAMES: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

/// ABI names of the floating point registers.
pub const F_NAMES: [&str; 32] = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4",
    "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8",
    "ft9", "ft10", "ft11",
];

/// Names of the vector registers' slots, low and high halves.
pub const V_NAMES: [&str; 64] = [
    "v0", "v0h", "v1", "v1h", "v2", "v2h", "v3", "v3h", "v4", "v4h", "v5", "v5h", "v6", "v6h", "v7", "v7h",
    "v8", "v8h", "v9", "v9h", "v10", "v10h", "v11", "v11h", "v12", "v12h", "v13", "v13h", "v14", "v14h",
    "v15", "v15h", "v16", "v16h", "v17", "v17h", "v18", "v18h", "v19", "v19h", "v20", "v20h", "v21", "v21h",
    "v22", "v22h", "v23", "v23h", "v24", "v24h", "v25", "v25h", "v26", "v26h", "v27", "v27h", "v28", "v28h",
    "v29", "v29h", "v30", "v30h", "v31", "v31h",
];

const fn slot_infos() -> [SlotInfo; COUNT] {
    let mut out = [SlotInfo { name: "", class: SlotClass::Control }; COUNT];
    let mut i = 0;
    while i < COUNT {
        out[i] = match i {
            0..32 => SlotInfo { name: X_NAMES[i], class: SlotClass::Int },
            32..64 => SlotInfo { name: F_NAMES[i - 32], class: SlotClass::Float },
            64..128 => SlotInfo { name: V_NAMES[i - 64], class: SlotClass::Vector },
            _ => SlotInfo { name: CONTROL_NAMES[i - 128], class: SlotClass::Control },
        };
        i += 1;
    }
    out
}

static SLOTS: [SlotInfo; COUNT] = slot_infos();

/// Integer registers by how often compiled code names them, most first: a5 a0 a4 sp s0 a3 a1 a2 s1 ra s2 a6,
/// which are five sixths of what the kernel and the C library name, and then the others.
static HOT: [u16; 31] = [
    15, 10, 14, 2, 8, 13, 11, 12, 9, 1, 18, 16, 17, 6, 19, 28, 20, 29, 21, 5, 7, 30, 31, 22, 23, 24, 25, 26,
    27, 4, 3,
];

/// The hart's layout.
pub static LAYOUT: Layout =
    Layout { slots: &SLOTS, hot: &HOT, default_nan: [0x7e00, 0x7fc0_0000, 0x7ff8_0000_0000_0000] };

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slots_are_named_once_and_hot_ones_are_integers() {
        let names: HashSet<_> = SLOTS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), COUNT);
        let hot: HashSet<_> = HOT.iter().collect();
        assert_eq!(hot.len(), HOT.len());
        assert!(HOT.iter().all(|&s| s != X0 && SLOTS[usize::from(s)].class == SlotClass::Int));
        assert_eq!(SLOTS[usize::from(SATP)].name, "satp");
        assert_eq!(SLOTS[usize::from(PMPADDR15)].name, "pmpaddr15");
        assert_eq!(SLOTS[usize::from(v(31)) + 1].name, "v31h");
    }
}
