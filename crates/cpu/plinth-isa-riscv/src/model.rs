//! The CPU model: what harts have, and what a device tree says of it.

use crate::privileged::state::{feature, misa_bit};

/// The deepest page tables that `satp` accepts. Shallower ones are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Paging {
    /// Three levels: 39-bit addresses.
    Sv39,
    /// Four levels: 48-bit addresses.
    Sv48,
    /// Five levels: 57-bit addresses.
    #[default]
    Sv57,
}

/// Bytes that `cbo.zero`, `cbo.clean`, `cbo.flush` and `cbo.inval` act on.
pub const CACHE_BLOCK_BYTES: u32 = 64;

/// Extensions of every model: the base's letters, then the others in the order of the naming conventions.
const LETTERS: [&str; 6] = ["i", "m", "a", "f", "d", "c"];
const EXTENSIONS: [&str; 25] = [
    "zicbom",
    "zicbop",
    "zicboz",
    "zicntr",
    "zicond",
    "zicsr",
    "zifencei",
    "zihintntl",
    "zihintpause",
    "zimop",
    "zaamo",
    "zacas",
    "zalrsc",
    "zawrs",
    "zfa",
    "zfh",
    "zfhmin",
    "zca",
    "zcb",
    "zcd",
    "zcmop",
    "zba",
    "zbb",
    "zbc",
    "zbs",
];
/// Those that V implies, and half precision.
const VECTOR: [&str; 10] =
    ["zve32f", "zve32x", "zve64d", "zve64f", "zve64x", "zvfh", "zvfhmin", "zvl128b", "zvl32b", "zvl64b"];
const TRANSLATION: [&str; 3] = ["svadu", "svinval", "svnapot"];

/// A model of a hart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuModel {
    /// Page tables.
    pub paging: Paging,
    /// Supervisor mode has the advanced interrupt architecture: an interrupt file with identities 1 to 255
    /// for message-signalled interrupts (Ssaia). Needs [`crate::Firmware::BuiltIn`].
    pub aia: bool,
    /// The vector extension, V 1.0 with registers of 128 bits, half precision included.
    pub vector: bool,
}

impl CpuModel {
    fn named_extensions(&self) -> impl Iterator<Item = &'static str> {
        let aia = self.aia.then_some("ssaia");
        let vector = if self.vector { &VECTOR[..] } else { &[] };
        EXTENSIONS.into_iter().chain(vector.iter().copied()).chain(aia).chain(["sstc"]).chain(TRANSLATION)
    }

    fn letters(&self) -> impl Iterator<Item = &'static str> {
        LETTERS.into_iter().chain(self.vector.then_some("v"))
    }

    /// The device tree's `riscv,isa-extensions`.
    #[must_use]
    pub fn extensions(&self) -> Vec<&'static str> {
        self.letters().chain(self.named_extensions()).collect()
    }

    /// The device tree's `riscv,isa-base`.
    #[must_use]
    pub const fn base(&self) -> &'static str {
        "rv64i"
    }

    /// The device tree's `riscv,isa`: `rv64imafdc_zicbom_...`.
    #[must_use]
    pub fn isa_string(&self) -> String {
        let mut text = format!("rv64{}", self.letters().collect::<String>());
        for extension in self.named_extensions() {
            text.push('_');
            text.push_str(extension);
        }
        text
    }

    /// The device tree's `mmu-type`.
    #[must_use]
    pub const fn mmu_type(&self) -> &'static str {
        match self.paging {
            Paging::Sv39 => "riscv,sv39",
            Paging::Sv48 => "riscv,sv48",
            Paging::Sv57 => "riscv,sv57",
        }
    }

    /// `misa`: 64 bits, the letters of [`Self::extensions`], B for Zba, Zbb and Zbs, S and U.
    pub(crate) fn misa(&self) -> u64 {
        let letters = self.letters().flat_map(|l| l.bytes()).map(|l| l.to_ascii_uppercase());
        letters.chain(*b"BSU").fold(2 << 62, |misa, l| misa | misa_bit(l))
    }

    /// The model's bits of [`crate::slots::FEATURES`].
    pub(crate) const fn features(&self) -> u64 {
        let paging = match self.paging {
            Paging::Sv39 => 0,
            Paging::Sv48 => feature::SV48,
            Paging::Sv57 => feature::SV48 | feature::SV57,
        };
        paging | if self.aia { feature::AIA } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_isa_string_names_the_extensions() {
        let model = CpuModel::default();
        let text = model.isa_string();
        assert!(text.starts_with("rv64imafdc_zicbom_"));
        for extension in model.extensions().iter().filter(|e| e.len() > 1) {
            assert!(text.split('_').any(|part| part == *extension), "{extension}");
        }
        assert_eq!(model.misa(), 0x8000_0000_0014_112f);
        assert!(!text.contains("ssaia"));
        assert!(CpuModel { aia: true, ..model }.isa_string().contains("_ssaia_sstc_svadu"));
    }
}
