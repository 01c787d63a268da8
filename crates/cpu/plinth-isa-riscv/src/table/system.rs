//! Fences, CSRs, cache blocks, hints and the privileged architecture.

use super::format::{CBO, CSR, CSR_IMM, FENCE, FIXED, FIXED_I, FIXED_R2, MOP_R, MOP_RR, PREFETCH, SFENCE};
use super::{CsrOp, Ext, Row, Sem, row};
use crate::helper::HelperId;

pub(super) static ROWS: &[Row] = &[
    row("ecall", Ext::I, 0x0000_0073, &FIXED, Sem::Ecall),
    row("ebreak", Ext::I, 0x0010_0073, &FIXED, Sem::Ebreak),
    row("pause", Ext::I, 0x0100_000f, &FIXED, Sem::Hint),
    row("fence.tso", Ext::I, 0x8330_000f, &FIXED_R2, Sem::FenceTso),
    row("fence", Ext::I, 0x0000_000f, &FENCE, Sem::Fence),
    row("fence.i", Ext::Zifencei, 0x0000_100f, &FIXED_I, Sem::FenceI),
    row("csrrw", Ext::Zicsr, 0x0000_1073, &CSR, Sem::Csr(CsrOp::Write)),
    row("csrrs", Ext::Zicsr, 0x0000_2073, &CSR, Sem::Csr(CsrOp::Set)),
    row("csrrc", Ext::Zicsr, 0x0000_3073, &CSR, Sem::Csr(CsrOp::Clear)),
    row("csrrwi", Ext::Zicsr, 0x0000_5073, &CSR_IMM, Sem::Csr(CsrOp::Write)),
    row("csrrsi", Ext::Zicsr, 0x0000_6073, &CSR_IMM, Sem::Csr(CsrOp::Set)),
    row("csrrci", Ext::Zicsr, 0x0000_7073, &CSR_IMM, Sem::Csr(CsrOp::Clear)),
    row("sret", Ext::Priv, 0x1020_0073, &FIXED, Sem::SystemEnd(HelperId::Sret)),
    row("mret", Ext::Priv, 0x3020_0073, &FIXED, Sem::SystemEnd(HelperId::Mret)),
    row("wfi", Ext::Priv, 0x1050_0073, &FIXED, Sem::SystemEnd(HelperId::Wfi)),
    row("sfence.vma", Ext::Priv, 0x1200_0073, &SFENCE, Sem::TlbFence),
    row("sinval.vma", Ext::Svinval, 0x1600_0073, &SFENCE, Sem::TlbFence),
    row("sfence.w.inval", Ext::Svinval, 0x1800_0073, &FIXED, Sem::System(HelperId::SfenceOrder)),
    row("sfence.inval.ir", Ext::Svinval, 0x1810_0073, &FIXED, Sem::SystemEnd(HelperId::SfenceOrder)),
    row("wrs.nto", Ext::Zawrs, 0x00d0_0073, &FIXED, Sem::System(HelperId::Wrs)),
    row("wrs.sto", Ext::Zawrs, 0x01d0_0073, &FIXED, Sem::System(HelperId::Wrs)),
    row("cbo.inval", Ext::Zicbom, 0x0000_200f, &CBO, Sem::CacheBlock(false)),
    row("cbo.clean", Ext::Zicbom, 0x0010_200f, &CBO, Sem::CacheBlock(true)),
    row("cbo.flush", Ext::Zicbom, 0x0020_200f, &CBO, Sem::CacheBlock(true)),
    row("cbo.zero", Ext::Zicboz, 0x0040_200f, &CBO, Sem::CacheZero),
    row("mop.r", Ext::Zimop, 0x81c0_4073, &MOP_R, Sem::Zero),
    row("mop.rr", Ext::Zimop, 0x8200_4073, &MOP_RR, Sem::Zero),
];

/// Before `ori` in the decoder's order, of which they are hints.
pub(super) static PREFETCHES: &[Row] = &[
    row("prefetch.i", Ext::Zicbop, 0x0000_6013, &PREFETCH, Sem::Hint),
    row("prefetch.r", Ext::Zicbop, 0x0010_6013, &PREFETCH, Sem::Hint),
    row("prefetch.w", Ext::Zicbop, 0x0030_6013, &PREFETCH, Sem::Hint),
];
