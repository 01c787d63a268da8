//! Integer loads and stores, atomics, fences and cache blocks.

use plinth_ir::{BlockBuilder, Code, Op, Ty, Val, flags};

use super::emit::Lifter;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::table::Sem;

/// Bytes of a cache block.
pub const CACHE_BLOCK: u64 = 64;

/// Access classes of a fence: bits 3 to 0 of its sets.
const INPUT: i32 = 8;
const OUTPUT: i32 = 4;
const READ: i32 = 2;
const WRITE: i32 = 1;

impl Lifter<'_> {
    /// An instruction that accesses memory with integer registers.
    pub fn memory(&mut self, d: &Decoded, sem: Sem) -> bool {
        match sem {
            Sem::Load(ty, sext) => {
                let base = self.x(d.rs1);
                let dst = self.dst(d.rd);
                self.b.load(ty, if sext { flags::SEXT } else { 0 }, dst, base, d.imm);
            }
            Sem::Store(ty) => {
                let (base, value) = (self.x(d.rs1), self.x(d.rs2));
                self.b.store(ty, 0, base, d.imm, value);
            }
            Sem::LoadReserved(ty) => self.atomic(d, Code::LoadReserved, ty, 0),
            Sem::StoreCond(ty) => self.atomic(d, Code::StoreCond, ty, 0),
            Sem::Amo(op, ty) => self.atomic(d, Code::Amo, ty, op as u8),
            Sem::AmoCas(ty) => self.atomic(d, Code::Cas, ty, 0),
            Sem::AmoCasPair => {
                let (insn, va) = (self.constant(u64::from(d.bits)), self.x(d.rs1));
                self.b.helper(HelperId::AmocasQ as u32, Val::NONE, &[insn, va]);
                self.forget(d.rd);
                self.forget(d.rd + 1);
            }
            Sem::Fence => {
                let (before, after) = (d.imm >> 4, d.imm & 15);
                // With an empty set it is a hint.
                if before != 0 && after != 0 {
                    let full = before & (WRITE | OUTPUT) != 0 && after & (READ | INPUT) != 0;
                    self.fence(full);
                }
            }
            Sem::FenceTso => self.fence(false),
            Sem::CacheBlock(writes) => {
                let allowed = if writes { self.mode.cbo_clean } else { self.mode.cbo_inval };
                if !allowed {
                    return self.illegal(d);
                }
                let base = self.x(d.rs1);
                self.b.helper(HelperId::CacheBlock as u32, Val::NONE, &[base]);
            }
            // CacheZero: all others are lifted elsewhere.
            _ => return self.zero_block(d),
        }
        true
    }

    fn fence(&mut self, full: bool) {
        self.b.push(Op { aux: i32::from(full), ..BlockBuilder::op(Code::Fence, Ty::I64) });
    }

    fn zero_block(&mut self, d: &Decoded) -> bool {
        if !self.mode.cbo_zero {
            return self.illegal(d);
        }
        let (base, mask, zero) = (self.x(d.rs1), self.constant(!(CACHE_BLOCK - 1)), self.constant(0));
        let base = self.bin(Code::And, Ty::I64, base, mask);
        for disp in (0..CACHE_BLOCK as i32).step_by(8) {
            self.b.store(Ty::I64, 0, base, disp, zero);
        }
        true
    }

    fn atomic(&mut self, d: &Decoded, code: Code, ty: Ty, sub: u8) {
        let a = self.x(d.rs1);
        let (b, c) = match code {
            Code::LoadReserved => (Val::NONE, Val::NONE),
            Code::Cas => (self.x(d.rd), self.x(d.rs2)),
            _ => (self.x(d.rs2), Val::NONE),
        };
        let mut access = flags::ALIGNED;
        if ty == Ty::I32 && code != Code::StoreCond {
            access |= flags::SEXT;
        }
        if d.acquire() {
            access |= flags::ACQUIRE;
        }
        if d.release() {
            access |= flags::RELEASE;
        }
        let dst = self.dst(d.rd);
        self.b.push(Op { sub, flags: access, dst, a, b, c, ..BlockBuilder::op(code, ty) });
    }
}
