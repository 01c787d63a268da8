//! An x86-64 encoder: just the instructions that the translator and the thunks emit. Sources of encodings:
//! Intel SDM volume 2, chapters 2 (formats) and 3 to 5 (opcodes).

/// A general register by its number, or an xmm register.
pub(crate) type Reg = u8;

pub(crate) const RAX: Reg = 0;
pub(crate) const RCX: Reg = 1;
pub(crate) const RDX: Reg = 2;
pub(crate) const RBX: Reg = 3;
pub(crate) const RSP: Reg = 4;
pub(crate) const RBP: Reg = 5;
pub(crate) const RSI: Reg = 6;
pub(crate) const RDI: Reg = 7;
pub(crate) const R8: Reg = 8;
pub(crate) const R12: Reg = 12;
pub(crate) const R13: Reg = 13;
pub(crate) const R14: Reg = 14;
pub(crate) const R15: Reg = 15;

const NO_INDEX: Reg = 0xff;
const RIP: Reg = 0xfe;

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mem {
    base: Reg,
    index: Reg,
    scale: u8,
    disp: i32,
}

/// \[`base` + `disp`\].
pub(crate) const fn mem(base: Reg, disp: i32) -> Mem {
    Mem { base, index: NO_INDEX, scale: 0, disp }
}

/// \[`base` + `index` << `scale` + `disp`\].
pub(crate) const fn mem_index(base: Reg, index: Reg, scale: u8, disp: i32) -> Mem {
    Mem { base, index, scale, disp }
}

/// \[rsp + `disp`\]: a field of the frame.
pub(crate) const fn frame(disp: i32) -> Mem {
    mem(RSP, disp)
}

/// A register or memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rm {
    R(Reg),
    M(Mem),
}

impl From<Mem> for Rm {
    fn from(m: Mem) -> Self {
        Rm::M(m)
    }
}

/// Operations of the classic arithmetic group, by their number in opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotates by an immediate or by cl, by their number in opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Shift {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// Conditions, by their number in opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cc {
    O = 0,
    B = 2,
    Ae = 3,
    E = 4,
    Ne = 5,
    Be = 6,
    A = 7,
    P = 10,
    L = 12,
    Ge = 13,
    Le = 14,
    G = 15,
}

/// Operand size of an integer instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    B1,
    B2,
    B4,
    B8,
}

impl Size {
    /// 64 bits, else 32.
    pub(crate) const fn wide(wide: bool) -> Self {
        if wide { Size::B8 } else { Size::B4 }
    }
}

/// A two-byte-prefix (VEX) instruction: mandatory prefix, opcode map, W, opcode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vex {
    pub pp: u8,
    pub map: u8,
    pub w: bool,
    pub op: u8,
}

/// No mandatory prefix, and the three there are.
pub(crate) const P0: u8 = 0;
pub(crate) const P66: u8 = 1;
pub(crate) const PF3: u8 = 2;
pub(crate) const PF2: u8 = 3;

/// A VEX instruction.
pub(crate) const fn vex(pp: u8, map: u8, w: bool, op: u8) -> Vex {
    Vex { pp, map, w, op }
}

/// Code in the making. Writes need room made by [`Asm::reserve`].
pub(crate) struct Asm {
    buf: Vec<u8>,
    pos: usize,
    /// Address that the first byte will have.
    base: u64,
}

impl Asm {
    pub(crate) fn new() -> Self {
        Self { buf: vec![0; 16 << 10], pos: 0, base: 0 }
    }

    /// Starts over with code that will be at `base`.
    pub(crate) fn start(&mut self, base: u64) {
        self.pos = 0;
        self.base = base;
    }

    /// Makes room for `bytes` more.
    #[inline]
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let need = self.pos + bytes + 16;
        if need > self.buf.len() {
            self.buf.resize(need.max(self.buf.len() * 2), 0);
        }
    }

    /// Offset of the next byte.
    #[inline]
    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    /// Address of the next byte.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.base + self.pos as u64
    }

    /// All bytes so far.
    pub(crate) fn code(&self) -> &[u8] {
        &self.buf[..self.pos]
    }

    #[inline]
    fn put(&mut self, word: u64, len: usize) {
        if let Some(at) = self.buf.get_mut(self.pos..self.pos + 8) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        self.pos += len;
    }

    /// Overwrites 4 bytes at offset `at`.
    #[inline]
    pub(crate) fn set_u32(&mut self, at: usize, value: u32) {
        if let Some(b) = self.buf.get_mut(at..at + 4) {
            b.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Makes the rel32 at offset `at` reach offset `target`.
    #[inline]
    pub(crate) fn set_rel32(&mut self, at: usize, target: usize) {
        self.set_u32(at, (target as u32).wrapping_sub(at as u32 + 4));
    }

    /// Eight bytes of data.
    pub(crate) fn data(&mut self, word: u64) {
        self.put(word, 8);
    }

    /// Moves the code from offset `from` on up by `by` bytes, and puts a no-operation there.
    pub(crate) fn shift_up(&mut self, from: usize, by: usize) {
        if by == 0 {
            return;
        }
        self.reserve(by);
        self.buf.copy_within(from..self.pos, from + by);
        let end = self.pos + by;
        self.pos = from;
        self.nop(by);
        self.pos = end;
    }

    /// A no-operation of `len` bytes. Writes only these.
    pub(crate) fn nop(&mut self, len: usize) {
        const NOPS: [&[u8]; 8] = [
            &[],
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
        ];
        let mut left = len;
        while left > 0 {
            let n = left.min(7);
            if let Some(at) = self.buf.get_mut(self.pos..self.pos + n) {
                at.copy_from_slice(NOPS[n]);
            }
            self.pos += n;
            left -= n;
        }
    }

    /// Pads so that a 4-byte field that begins `ahead` bytes from here does not straddle 8 bytes.
    pub(crate) fn align_field(&mut self, ahead: usize) {
        let at = (self.pos + ahead) % 8;
        if at > 4 {
            self.nop(8 - at);
        }
    }

    /// Pads to a multiple of 16.
    pub(crate) fn align16(&mut self) {
        let n = self.pos.next_multiple_of(16) - self.pos;
        self.nop(n);
    }

    /// ModRM and what follows it. `head` holds `len` bytes so far; `tail` immediate bytes will follow.
    #[inline]
    fn finish(&mut self, head: u64, len: usize, reg: Reg, rm: Rm, tail: usize) {
        let reg = u64::from(reg & 7) << 3;
        let at = len * 8;
        let m = match rm {
            Rm::R(r) => {
                self.put(head | (0xc0 | reg | u64::from(r & 7)) << at, len + 1);
                return;
            }
            Rm::M(m) => m,
        };
        if m.base == RIP {
            self.put(head | (reg | 5) << at, len + 1);
            // `disp` holds the target as an offset from the base of the code.
            let rel = m.disp.wrapping_sub((self.pos + 4 + tail) as i32);
            self.put(u64::from(rel as u32), 4);
            return;
        }
        let base = u64::from(m.base & 7);
        // rbp and r13 as a base always have a displacement.
        let (mode, disp_len) = if m.disp == 0 && base != 5 {
            (0, 0)
        } else if i8::try_from(m.disp).is_ok() {
            (0x40, 1)
        } else {
            (0x80, 4)
        };
        let (bytes, n) = if m.index == NO_INDEX && base != 4 {
            (mode | reg | base, 1)
        } else {
            let index = if m.index == NO_INDEX { 4 } else { u64::from(m.index & 7) };
            let sib = base | index << 3 | u64::from(m.scale) << 6;
            (mode | reg | 4 | sib << 8, 2)
        };
        self.put(head | bytes << at, len + n);
        if disp_len != 0 {
            self.put(u64::from(m.disp as u32), disp_len);
        }
    }

    /// REX bits X and B for an operand.
    #[inline]
    fn xb(rm: Rm) -> u8 {
        match rm {
            Rm::R(r) => (r >> 3) & 1,
            Rm::M(m) if m.base == RIP => 0,
            Rm::M(m) => {
                let x = if m.index == NO_INDEX { 0 } else { (m.index >> 3) & 1 };
                ((m.base >> 3) & 1) | x << 1
            }
        }
    }

    /// A legacy instruction. `op`: opcode bytes, first in the low byte; `prefix`: mandatory prefix or 0.
    #[inline]
    #[allow(clippy::too_many_arguments)] // The parts of one instruction.
    fn legacy(&mut self, size: Size, prefix: u8, op: u32, reg: Reg, rm: Rm, tail: usize, byte_reg: bool) {
        let mut head = 0u64;
        let mut len = 0;
        if prefix != 0 {
            head = u64::from(prefix);
            len = 1;
        }
        let mut rex = Self::xb(rm) | (reg >> 3 & 1) << 2;
        if size == Size::B8 {
            rex |= 8;
        }
        // sil, dil, bpl, spl need a REX prefix to be named.
        if rex != 0 || byte_reg {
            head |= u64::from(0x40 | rex) << (len * 8);
            len += 1;
        }
        head |= u64::from(op) << (len * 8);
        len += if op > 0xffff {
            3
        } else if op > 0xff {
            2
        } else {
            1
        };
        self.finish(head, len, reg, rm, tail);
    }

    /// An instruction whose byte form has the next lower opcode (the classic groups).
    #[inline]
    fn sized(&mut self, size: Size, op: u32, reg: Reg, rm: Rm, tail: usize) {
        match size {
            Size::B1 => {
                let byte = reg >= 4 || matches!(rm, Rm::R(r) if r >= 4);
                // The opcode's last byte is the one to change.
                let op = if op > 0xff { op - 0x100 } else { op - 1 };
                self.legacy(Size::B4, 0, op, reg, rm, tail, byte);
            }
            Size::B2 => self.legacy(Size::B4, 0x66, op, reg, rm, tail, false),
            Size::B4 | Size::B8 => self.legacy(size, 0, op, reg, rm, tail, false),
        }
    }

    // Moves.

    /// `dst` = `src`, 32 (zero-extending) or 64 bits.
    #[inline]
    pub(crate) fn mov_rr(&mut self, wide: bool, dst: Reg, src: Reg) {
        self.legacy(Size::wide(wide), 0, 0x8b, dst, Rm::R(src), 0, false);
    }

    /// `dst` = `src`, unless it is the same register (and 64 bits wide).
    #[inline]
    pub(crate) fn copy(&mut self, dst: Reg, src: Reg) {
        if dst != src {
            self.mov_rr(true, dst, src);
        }
    }

    /// `dst` = register or memory, 32 or 64 bits.
    #[inline]
    pub(crate) fn mov_load(&mut self, wide: bool, dst: Reg, src: Mem) {
        self.legacy(Size::wide(wide), 0, 0x8b, dst, Rm::M(src), 0, false);
    }

    /// `dst` = `src` extended from `size` to 64 bits (32 for zero extension).
    pub(crate) fn load_extend(&mut self, size: Size, signed: bool, dst: Reg, src: Rm) {
        let byte = size == Size::B1 && matches!(src, Rm::R(r) if r >= 4);
        let (wide, op) = match (size, signed) {
            (Size::B1, false) => (Size::B4, 0xb60f),
            (Size::B2, false) => (Size::B4, 0xb70f),
            (Size::B4, false) => (Size::B4, 0x8b),
            (Size::B8, _) => (Size::B8, 0x8b),
            (Size::B1, true) => (Size::B8, 0xbe0f),
            (Size::B2, true) => (Size::B8, 0xbf0f),
            (Size::B4, true) => (Size::B8, 0x63),
        };
        self.legacy(wide, 0, op, dst, src, 0, byte);
    }

    /// Memory `dst` = `src`.
    #[inline]
    pub(crate) fn store(&mut self, size: Size, dst: Mem, src: Reg) {
        self.sized(size, 0x89, src, Rm::M(dst), 0);
    }

    /// Memory `dst` = `imm`, sign-extended to the size.
    pub(crate) fn store_imm(&mut self, size: Size, dst: Mem, imm: i32) {
        let tail = match size {
            Size::B1 => 1,
            Size::B2 => 2,
            Size::B4 | Size::B8 => 4,
        };
        self.sized(size, 0xc7, 0, Rm::M(dst), tail);
        self.put(u64::from(imm as u32), tail);
    }

    /// `dst` = `value`, by the shortest form. Leaves the flags alone.
    pub(crate) fn mov_imm(&mut self, dst: Reg, value: u64) {
        let low = u64::from(dst & 7);
        let b = u64::from(dst >> 3);
        if u32::try_from(value).is_ok() {
            if b != 0 {
                self.put(0x41, 1);
            }
            self.put(0xb8 | low | value << 8, 5);
        } else if i32::try_from(value as i64).is_ok() {
            self.legacy(Size::B8, 0, 0xc7, 0, Rm::R(dst), 4, false);
            self.put(value, 4);
        } else {
            self.put(0x48 | b | (0xb8 | low) << 8, 2);
            self.put(value, 8);
        }
    }

    /// `dst` = 0. Changes the flags.
    pub(crate) fn zero(&mut self, dst: Reg) {
        self.legacy(Size::B4, 0, 0x33, dst, Rm::R(dst), 0, false);
    }

    /// `dst` = address of `src`, 32 or 64 bits.
    #[inline]
    pub(crate) fn lea(&mut self, wide: bool, dst: Reg, src: Mem) {
        self.legacy(Size::wide(wide), 0, 0x8d, dst, Rm::M(src), 0, false);
    }

    /// A memory operand at the absolute `address`, near this code.
    pub(crate) fn absolute(&self, address: u64) -> Mem {
        Mem { base: RIP, index: NO_INDEX, scale: 0, disp: address.wrapping_sub(self.base) as i32 }
    }

    /// A memory operand at offset `at` of this code.
    pub(crate) fn absolute_offset(&self, at: u32) -> Mem {
        Mem { base: RIP, index: NO_INDEX, scale: 0, disp: at as i32 }
    }

    /// Compares the dword at `a` with a literal in the last 4 bytes of the instruction.
    pub(crate) fn cmp_mem_literal(&mut self, a: Mem, literal: u32) {
        self.legacy(Size::B4, 0, 0x81, Alu::Cmp as u8, Rm::M(a), 4, false);
        self.put(u64::from(literal), 4);
    }

    // Arithmetic.

    /// `dst` = `dst` op `src`.
    #[inline]
    pub(crate) fn alu(&mut self, op: Alu, size: Size, dst: Reg, src: Rm) {
        self.sized(size, u32::from((op as u8) << 3 | 3), dst, src, 0);
    }

    /// `dst` = `dst` op `src`, to memory.
    #[inline]
    pub(crate) fn alu_store(&mut self, op: Alu, size: Size, dst: Mem, src: Reg) {
        self.sized(size, u32::from((op as u8) << 3 | 1), src, Rm::M(dst), 0);
    }

    /// `dst` = `dst` op `imm`, 4 or 8 bytes.
    pub(crate) fn alu_imm(&mut self, op: Alu, wide: bool, dst: Rm, imm: i32) {
        if i8::try_from(imm).is_ok() {
            self.legacy(Size::wide(wide), 0, 0x83, op as u8, dst, 1, false);
            self.put(u64::from(imm as u8), 1);
        } else if let Rm::R(RAX) = dst {
            let head = if wide { 0x48 } else { 0 };
            let at = if wide { 8 } else { 0 };
            self.put(head | u64::from((op as u8) << 3 | 5) << at, 1 + usize::from(wide));
            self.put(u64::from(imm as u32), 4);
        } else {
            self.legacy(Size::wide(wide), 0, 0x81, op as u8, dst, 4, false);
            self.put(u64::from(imm as u32), 4);
        }
    }

    /// Sets flags by `a` & `b`.
    pub(crate) fn test(&mut self, wide: bool, a: Reg, b: Reg) {
        self.legacy(Size::wide(wide), 0, 0x85, b, Rm::R(a), 0, false);
    }

    /// Sets flags by the low byte of `a` & `imm`.
    pub(crate) fn test_byte(&mut self, a: Reg, imm: u8) {
        self.legacy(Size::B4, 0, 0xf6, 0, Rm::R(a), 1, a >= 4);
        self.put(u64::from(imm), 1);
    }

    /// `dst` = -`dst` (`not`: !`dst`).
    pub(crate) fn neg(&mut self, wide: bool, dst: Reg) {
        self.legacy(Size::wide(wide), 0, 0xf7, 3, Rm::R(dst), 0, false);
    }

    /// `dst` = !`dst`.
    pub(crate) fn not(&mut self, wide: bool, dst: Reg) {
        self.legacy(Size::wide(wide), 0, 0xf7, 2, Rm::R(dst), 0, false);
    }

    /// Shifts `dst` by `count`.
    pub(crate) fn shift_imm(&mut self, op: Shift, wide: bool, dst: Reg, count: u8) {
        self.legacy(Size::wide(wide), 0, 0xc1, op as u8, Rm::R(dst), 1, false);
        self.put(u64::from(count), 1);
    }

    /// Shifts `dst` by cl.
    pub(crate) fn shift_cl(&mut self, op: Shift, wide: bool, dst: Reg) {
        self.legacy(Size::wide(wide), 0, 0xd3, op as u8, Rm::R(dst), 0, false);
    }

    /// `dst` = `src` shifted by `count` (BMI2: flags stay).
    pub(crate) fn shift_var(&mut self, op: Shift, wide: bool, dst: Reg, src: Rm, count: Reg) {
        let pp = match op {
            Shift::Shl => P66,
            Shift::Shr => PF2,
            Shift::Sar | Shift::Rol | Shift::Ror => PF3,
        };
        self.vex(vex(pp, 2, wide, 0xf7), dst, count, src);
    }

    /// `dst` = `src` rotated right by `count`.
    #[inline]
    pub(crate) fn rorx(&mut self, wide: bool, dst: Reg, src: Rm, count: u8) {
        self.vex_tail(vex(PF2, 3, wide, 0xf0), dst, 0, src, 1);
        self.put(u64::from(count), 1);
    }

    /// `dst` = !`a` & `b`.
    pub(crate) fn andn(&mut self, wide: bool, dst: Reg, a: Reg, b: Rm) {
        self.vex(vex(P0, 2, wide, 0xf2), dst, a, b);
    }

    /// `dst` = high half of rdx * `src`, unsigned.
    pub(crate) fn mulx_high(&mut self, dst: Reg, src: Rm) {
        self.vex(vex(PF2, 2, true, 0xf6), dst, dst, src);
    }

    /// `dst` = `dst` * `src`.
    pub(crate) fn imul(&mut self, wide: bool, dst: Reg, src: Rm) {
        self.legacy(Size::wide(wide), 0, 0xaf0f, dst, src, 0, false);
    }

    /// `dst` = `src` * `imm`.
    pub(crate) fn imul_imm(&mut self, wide: bool, dst: Reg, src: Rm, imm: i32) {
        if i8::try_from(imm).is_ok() {
            self.legacy(Size::wide(wide), 0, 0x6b, dst, src, 1, false);
            self.put(u64::from(imm as u8), 1);
        } else {
            self.legacy(Size::wide(wide), 0, 0x69, dst, src, 4, false);
            self.put(u64::from(imm as u32), 4);
        }
    }

    /// rdx:rax = rax * `src`, signed.
    pub(crate) fn imul_wide(&mut self, src: Rm) {
        self.legacy(Size::B8, 0, 0xf7, 5, src, 0, false);
    }

    /// rax, rdx = quotient, remainder of rdx:rax by `divisor`.
    pub(crate) fn div(&mut self, signed: bool, wide: bool, divisor: Reg) {
        self.legacy(Size::wide(wide), 0, 0xf7, if signed { 7 } else { 6 }, Rm::R(divisor), 0, false);
    }

    /// Sign-extends rax into rdx:rax.
    pub(crate) fn cqo(&mut self, wide: bool) {
        if wide { self.put(0x9948, 2) } else { self.put(0x99, 1) }
    }

    /// lzcnt, tzcnt, popcnt by their last opcode byte.
    pub(crate) fn count(&mut self, op: u8, wide: bool, dst: Reg, src: Rm) {
        self.legacy(Size::wide(wide), 0xf3, 0x0f | u32::from(op) << 8, dst, src, 0, false);
    }

    /// Reverses the bytes of `dst`.
    pub(crate) fn bswap(&mut self, wide: bool, dst: Reg) {
        let rex = 0x40 | u64::from(wide) << 3 | u64::from(dst >> 3);
        self.put(rex | 0x0f << 8 | (0xc8 | u64::from(dst & 7)) << 16, 3);
    }

    /// Byte `dst` = 1 if `cc`, else 0.
    pub(crate) fn setcc(&mut self, cc: Cc, dst: Reg) {
        self.legacy(Size::B4, 0, 0x900f + ((cc as u32) << 8), 0, Rm::R(dst), 0, dst >= 4);
    }

    /// `dst` = `src` if `cc` (32 bits: zero-extends in any case).
    pub(crate) fn cmov(&mut self, cc: Cc, wide: bool, dst: Reg, src: Rm) {
        self.legacy(Size::wide(wide), 0, 0x400f + ((cc as u32) << 8), dst, src, 0, false);
    }

    // Atomics.

    /// lock xadd \[`dst`\], `src`.
    pub(crate) fn lock_xadd(&mut self, size: Size, dst: Mem, src: Reg) {
        self.put(0xf0, 1);
        self.sized(size, 0xc10f, src, Rm::M(dst), 0);
    }

    /// lock cmpxchg \[`dst`\], `src`.
    pub(crate) fn lock_cmpxchg(&mut self, size: Size, dst: Mem, src: Reg) {
        self.put(0xf0, 1);
        self.sized(size, 0xb10f, src, Rm::M(dst), 0);
    }

    /// xchg \[`dst`\], `src`.
    pub(crate) fn xchg(&mut self, size: Size, dst: Mem, src: Reg) {
        self.sized(size, 0x87, src, Rm::M(dst), 0);
    }

    /// lock or dword \[`dst`\], 0: a full barrier.
    pub(crate) fn lock_or_zero(&mut self, dst: Mem) {
        self.put(0xf0, 1);
        self.alu_imm(Alu::Or, false, Rm::M(dst), 0);
    }

    // Control.

    /// jmp rel32 with an empty field; gives the field's offset.
    #[inline]
    pub(crate) fn jmp(&mut self) -> usize {
        self.put(0xe9, 5);
        self.pos - 4
    }

    /// jcc rel32 with an empty field; gives the field's offset.
    #[inline]
    pub(crate) fn jcc(&mut self, cc: Cc) -> usize {
        self.put(0x800f + ((cc as u64) << 8), 6);
        self.pos - 4
    }

    /// jmp to an offset behind.
    pub(crate) fn jmp_back(&mut self, target: usize) {
        let rel = target as i64 - (self.pos as i64 + 2);
        if let Ok(rel) = i8::try_from(rel) {
            self.put(0xeb | u64::from(rel as u8) << 8, 2);
        } else {
            let at = self.jmp();
            self.set_rel32(at, target);
        }
    }

    /// jcc to an offset behind.
    pub(crate) fn jcc_back(&mut self, cc: Cc, target: usize) {
        let rel = target as i64 - (self.pos as i64 + 2);
        if let Ok(rel) = i8::try_from(rel) {
            self.put(0x70 | cc as u64 | u64::from(rel as u8) << 8, 2);
        } else {
            let at = self.jcc(cc);
            self.set_rel32(at, target);
        }
    }

    /// jcc rel8 with an empty field; gives the field's offset.
    pub(crate) fn jcc_short(&mut self, cc: Cc) -> usize {
        self.put(0x70 | cc as u64, 2);
        self.pos - 1
    }

    /// Makes the rel8 at offset `at` reach here.
    pub(crate) fn bind_short(&mut self, at: usize) {
        let rel = self.pos - at - 1;
        debug_assert!(rel < 128);
        if let Some(b) = self.buf.get_mut(at) {
            *b = rel as u8;
        }
    }

    /// Makes the rel32 at offset `at` reach here.
    pub(crate) fn bind(&mut self, at: usize) {
        self.set_rel32(at, self.pos);
    }

    /// jmp to an absolute address near this code.
    pub(crate) fn jmp_to(&mut self, address: u64) {
        let at = self.jmp();
        self.set_u32(at, address.wrapping_sub(self.address()) as u32);
    }

    /// Makes the rel32 at offset `at` reach an absolute address near this code.
    pub(crate) fn set_rel_to(&mut self, at: usize, address: u64) {
        self.set_u32(at, address.wrapping_sub(self.base + at as u64 + 4) as u32);
    }

    /// call of an absolute address near this code.
    pub(crate) fn call_to(&mut self, address: u64) {
        self.put(0xe8, 5);
        let rel = address.wrapping_sub(self.address()) as u32;
        self.set_u32(self.pos - 4, rel);
    }

    /// Indirect jmp.
    pub(crate) fn jmp_rm(&mut self, target: Rm) {
        self.legacy(Size::B4, 0, 0xff, 4, target, 0, false);
    }

    /// Indirect call.
    pub(crate) fn call_reg(&mut self, target: Reg) {
        self.legacy(Size::B4, 0, 0xff, 2, Rm::R(target), 0, false);
    }

    /// Near return.
    pub(crate) fn ret(&mut self) {
        self.put(0xc3, 1);
    }

    /// push of a register.
    pub(crate) fn push(&mut self, r: Reg) {
        if r >= 8 {
            self.put(0x41, 1);
        }
        self.put(0x50 | u64::from(r & 7), 1);
    }

    /// pop into a register.
    pub(crate) fn pop(&mut self, r: Reg) {
        if r >= 8 {
            self.put(0x41, 1);
        }
        self.put(0x58 | u64::from(r & 7), 1);
    }

    /// MXCSR = memory.
    pub(crate) fn ldmxcsr(&mut self, src: Mem) {
        self.legacy(Size::B4, 0, 0xae0f, 2, Rm::M(src), 0, false);
    }

    /// Memory = MXCSR.
    pub(crate) fn stmxcsr(&mut self, dst: Mem) {
        self.legacy(Size::B4, 0, 0xae0f, 3, Rm::M(dst), 0, false);
    }

    // VEX-encoded instructions.

    /// `i` `reg`, `v`, `rm`. Two-operand instructions have `v` = 0.
    #[inline]
    pub(crate) fn vex(&mut self, i: Vex, reg: Reg, v: Reg, rm: Rm) {
        self.vex_tail(i, reg, v, rm, 0);
    }

    /// The same with an immediate byte.
    pub(crate) fn vex_imm(&mut self, i: Vex, reg: Reg, v: Reg, rm: Rm, imm: u8) {
        self.vex_tail(i, reg, v, rm, 1);
        self.put(u64::from(imm), 1);
    }

    /// xmm `dst` = 16 bytes of memory.
    pub(crate) fn movups_load(&mut self, dst: Reg, src: Mem) {
        self.vex(vex(P0, 1, false, 0x10), dst, 0, Rm::M(src));
    }

    /// 16 bytes of memory = xmm `src`.
    pub(crate) fn movups_store(&mut self, dst: Mem, src: Reg) {
        self.vex(vex(P0, 1, false, 0x11), src, 0, Rm::M(dst));
    }

    #[inline]
    fn vex_tail(&mut self, i: Vex, reg: Reg, v: Reg, rm: Rm, tail: usize) {
        let xb = Self::xb(rm);
        let r = u64::from(!reg >> 3 & 1);
        let vvvv = u64::from(!v & 15) << 3;
        let (head, len) = if xb == 0 && i.map == 1 && !i.w {
            (0xc5 | (r << 7 | vvvv | u64::from(i.pp)) << 8, 2)
        } else {
            let xb = u64::from(!xb & 3);
            let byte1 = r << 7 | xb << 5 | u64::from(i.map);
            let byte2 = u64::from(i.w) << 7 | vvvv | u64::from(i.pp);
            (0xc4 | byte1 << 8 | byte2 << 16, 3)
        };
        self.finish(head | u64::from(i.op) << (len * 8), len + 1, reg, rm, tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(f: impl FnOnce(&mut Asm)) -> Vec<u8> {
        let mut a = Asm::new();
        f(&mut a);
        a.code().to_vec()
    }

    #[test]
    fn encodings() {
        assert_eq!(bytes(|a| a.mov_rr(true, RAX, R8)), [0x49, 0x8b, 0xc0]);
        assert_eq!(bytes(|a| a.mov_load(true, RBX, frame(8))), [0x48, 0x8b, 0x5c, 0x24, 0x08]);
        assert_eq!(bytes(|a| a.store(Size::B1, mem(R13, 0), RSI)), [0x41, 0x88, 0x75, 0x00]);
        assert_eq!(bytes(|a| a.store(Size::B2, mem(R12, 0), RDI)), [0x66, 0x41, 0x89, 0x3c, 0x24]);
        assert_eq!(bytes(|a| a.rorx(true, RCX, Rm::R(RAX), 7)), [0xc4, 0xe3, 0xfb, 0xf0, 0xc8, 0x07]);
        assert_eq!(bytes(|a| a.andn(true, RAX, RBX, Rm::R(R15))), [0xc4, 0xc2, 0xe0, 0xf2, 0xc7]);
        assert_eq!(bytes(|a| a.mov_imm(R15, 1)), [0x41, 0xbf, 1, 0, 0, 0]);
        assert_eq!(bytes(|a| a.mov_imm(RAX, u64::MAX)), [0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(
            bytes(|a| a.mov_imm(R8, 0x1122_3344_5566_7788)),
            [0x49, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
        );
        assert_eq!(bytes(|a| a.lea(true, RAX, mem_index(RBP, R13, 2, 0))), [0x4a, 0x8d, 0x44, 0xad, 0x00]);
        assert_eq!(bytes(|a| a.lock_cmpxchg(Size::B8, mem(RCX, 0), RDX)), [0xf0, 0x48, 0x0f, 0xb1, 0x11]);
        assert_eq!(bytes(|a| a.lock_cmpxchg(Size::B1, mem(RCX, 0), RDX)), [0xf0, 0x0f, 0xb0, 0x11]);
        assert_eq!(bytes(|a| a.setcc(Cc::L, RSI)), [0x40, 0x0f, 0x9c, 0xc6]);
        assert_eq!(bytes(|a| a.alu_imm(Alu::Cmp, true, Rm::R(RAX), 0x1234)), [0x48, 0x3d, 0x34, 0x12, 0, 0]);
        assert_eq!(bytes(|a| a.load_extend(Size::B1, true, RAX, Rm::R(RDI))), [0x48, 0x0f, 0xbe, 0xc7]);
    }
}
