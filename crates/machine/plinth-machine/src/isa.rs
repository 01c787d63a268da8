//! Instruction sets as values: what tells their program files apart.

/// An instruction set of guests.
#[derive(Debug, PartialEq, Eq)]
pub struct Isa {
    /// Name, as users give it.
    pub name: &'static str,
    /// `e_machine` of its ELF files.
    pub elf_machine: u16,
    /// `EI_CLASS` is 64-bit.
    pub elf_64: bool,
    /// Bytes 56 to 59 of its Linux `Image` files, where it has such.
    pub image_magic: Option<[u8; 4]>,
}

/// RISC-V with 64-bit registers.
pub static RISCV64: Isa =
    Isa { name: "riscv64", elf_machine: 243, elf_64: true, image_magic: Some(*b"RSC\x05") };
/// Arm with 64-bit registers.
pub static AARCH64: Isa =
    Isa { name: "aarch64", elf_machine: 183, elf_64: true, image_magic: Some(*b"ARM\x64") };
/// x86 with 64-bit registers.
pub static X86_64: Isa = Isa { name: "x86_64", elf_machine: 62, elf_64: true, image_magic: None };

/// All that can be told apart, whether or not there is a board for them; the first of several with one
/// magic is the one that is meant.
pub static ALL: [&Isa; 8] = [
    &RISCV64,
    &AARCH64,
    &X86_64,
    &Isa { name: "riscv32", elf_machine: 243, elf_64: false, image_magic: None },
    &Isa { name: "i386", elf_machine: 3, elf_64: false, image_magic: None },
    &Isa { name: "arm", elf_machine: 40, elf_64: false, image_magic: None },
    &Isa { name: "ppc64", elf_machine: 21, elf_64: true, image_magic: None },
    &Isa { name: "loongarch64", elf_machine: 258, elf_64: true, image_magic: None },
];

/// The instruction set of ELF files with this machine number and class.
#[must_use]
pub fn of_elf(machine: u16, is_64: bool) -> Option<&'static Isa> {
    ALL.iter().copied().find(|i| i.elf_machine == machine && i.elf_64 == is_64)
}

/// The instruction set of Linux `Image` files with this magic.
#[must_use]
pub fn of_image(magic: [u8; 4]) -> Option<&'static Isa> {
    ALL.iter().copied().find(|i| i.image_magic == Some(magic))
}
