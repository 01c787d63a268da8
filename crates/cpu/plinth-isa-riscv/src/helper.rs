//! Helpers that translated code calls, by id. Those of [`crate::compute`] are pure functions; the others
//! belong to the privileged architecture.

macro_rules! helpers {
    ($($(#[$m:meta])* $name:ident = $text:literal,)+) => {
        /// A helper's index in [`plinth_ir::Isa::helpers`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum HelperId { $($(#[$m])* $name),+ }

        impl HelperId {
            /// All of them, by index.
            pub const ALL: &'static [HelperId] = &[$(HelperId::$name),+];

            /// Name in the IR's text form.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(HelperId::$name => $text),+ }
            }
        }
    };
}

helpers! {
    /// `csr(insn)`: all of a CSR instruction, given its 32 bits: checks, reads `rs1` from its slot, writes
    /// `rd`'s slot. Returns `Next`, or `Jump` to the next instruction if the mode, the address spaces or
    /// the deliverable interrupts changed; illegal: exception 2 with the instruction.
    Csr = "csr",
    /// `sret(insn)`: `Jump`, or illegal.
    Sret = "sret",
    /// `mret(insn)`: `Jump`, or illegal.
    Mret = "mret",
    /// `wfi(insn)`: `Jump` to the next instruction after asking the engine to wait, or illegal.
    Wfi = "wfi",
    /// `wrs(insn)`: `wrs.nto` and `wrs.sto`; may end at once.
    Wrs = "wrs",
    /// `sfence_vma(insn, va, asid)`: `sfence.vma` and `sinval.vma` with the values of `rs1` and `rs2`; the
    /// register fields of `insn` say whether they count. `Jump` to the next instruction, or illegal.
    SfenceVma = "sfence_vma",
    /// `sfence_order(insn)`: `sfence.w.inval` and `sfence.inval.ir`: legal or not.
    SfenceOrder = "sfence_order",
    /// `fence_i()`: `Jump` to the next instruction, with the code that this hart wrote visible to fetches.
    FenceI = "fence_i",
    /// `fp_check(insn)`: illegal if `mstatus.FS` is Off.
    FpCheck = "fp_check",
    /// `amocas_q(insn, va)`: all of `amocas.q`; or an exception of a store.
    AmocasQ = "amocas_q",
    /// `cache_block(va)`: the check of the address of `cbo.clean`, `cbo.flush` and `cbo.inval`.
    CacheBlock = "cache_block",
    /// `vector(insn)`: all of a vector instruction, given its bits.
    Vector = "vector",
    /// `clmul(a, b)`: low half of the carry-less product.
    Clmul = "clmul",
    /// `clmulh(a, b)`: high half of the carry-less product.
    Clmulh = "clmulh",
    /// `clmulr(a, b)`: bits 63 to 126 of the carry-less product.
    Clmulr = "clmulr",
    /// `fclass(bits, exponent_bits, fraction_bits)`: the class mask of a float.
    Fclass = "fclass",
    /// `fcvtmod(bits)`: `fcvtmod.w.d`; accumulates flags.
    Fcvtmod = "fcvtmod",
}
