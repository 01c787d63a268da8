//! A small machine that translated blocks run on, and the same machine for the reference interpreter.

#![allow(unsafe_code, dead_code)] // Runs generated code; each test file uses a part.

use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};

use plinth_codegen::frame::{
    Frame, Runtime, TLB_ENTRIES, TlbEntry, code_tlb_index, exit, jump_index, tlb_index,
};
use plinth_codegen::{CodeMemory, CodegenError, Config, Region, Straddle, Translator};
use plinth_ir::interp::{self, Atomic, Machine, MemAccess, Next, Program, Site, WORDS};
use plinth_ir::{
    AmoOp, Block, Code, FloatOp, Layout, Mode, SlotClass, SlotInfo, Ty, eval_amo, eval_float, extend, flags,
};

/// Integer slots; the first 12 are pinned.
pub const INTS: u16 = 16;
/// Float slots follow.
pub const FLOATS: u16 = 8;
/// Vectors follow, two slots each.
pub const VECTORS: u16 = 4;
pub const FLOAT0: u16 = INTS;
pub const VECTOR0: u16 = INTS + FLOATS;
pub const ALL_SLOTS: u16 = VECTOR0 + 2 * VECTORS;

const fn slots() -> [SlotInfo; ALL_SLOTS as usize] {
    let mut all = [SlotInfo { name: "x", class: SlotClass::Int }; ALL_SLOTS as usize];
    let mut i = FLOAT0 as usize;
    while i < ALL_SLOTS as usize {
        all[i].class = if i < VECTOR0 as usize { SlotClass::Float } else { SlotClass::Vector };
        i += 1;
    }
    all
}

static SLOTS: [SlotInfo; ALL_SLOTS as usize] = slots();
static HOT: [u16; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
pub static LAYOUT: Layout =
    Layout { slots: &SLOTS, hot: &HOT, default_nan: [0x7e00, 0x7fc0_0000, 0x7ff8_0000_0000_0000] };

/// Guest address of the RAM, and its bytes.
pub const RAM: u64 = 0x5000_0000;
pub const RAM_BYTES: usize = 4 * 4096;
/// Guest address of the page that code runs in, and its guest physical page number.
pub const PAGE: u64 = 0x8000_1000;
/// Reason of a fault.
pub const FAULT: u32 = 100;
pub const TOKEN: u64 = 5;
pub const CODE_TOKEN: u64 = 9;
pub const MXCSR: u32 = 0x1f80;
const STACK: usize = 256 << 10;

/// What the runtime functions work on.
pub struct Env {
    pub ram: Vec<u8>,
    /// Calls: loads, stores, atomics, helpers, floats.
    pub calls: [u32; 5],
    /// The last fault, trap or helper: address or value, description.
    pub last: (u64, u64),
    /// What a helper does.
    pub on_helper: fn(&mut [u64], u64, [u64; 3]) -> Option<u64>,
    pub reserved: Option<u64>,
}

fn helper_default(slots: &mut [u64], _: u64, args: [u64; 3]) -> Option<u64> {
    slots[3] = slots[3].wrapping_add(1);
    slots[14] ^= args[0];
    Some(args[0].wrapping_mul(3) ^ args[1].rotate_left(7) ^ args[2])
}

impl Env {
    fn new() -> Self {
        let ram = (0..RAM_BYTES).map(|i| (i * 37 + i / 251) as u8).collect();
        Self { ram, calls: [0; 5], last: (0, 0), on_helper: helper_default, reserved: None }
    }

    fn at(&self, va: u64, bytes: u32) -> Option<usize> {
        let at = va.wrapping_sub(RAM);
        let end = at.checked_add(bytes.into())?;
        (end <= RAM_BYTES as u64).then_some(at as usize)
    }

    pub fn read(&self, va: u64, bytes: u32) -> Option<u64> {
        let at = self.at(va, bytes)?;
        let mut b = [0; 8];
        b[..bytes as usize].copy_from_slice(&self.ram[at..at + bytes as usize]);
        Some(u64::from_le_bytes(b))
    }

    pub fn write(&mut self, va: u64, bytes: u32, value: u64) -> Option<()> {
        let at = self.at(va, bytes)?;
        self.ram[at..at + bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        Some(())
    }

    /// Reservations are by value and address, as translated code keeps them.
    fn atomic(
        &mut self,
        op: Atomic,
        va: u64,
        ty: Ty,
        (b, c): (u64, u64),
        reservation: (&mut u64, &mut u64),
    ) -> Option<u64> {
        let bytes = ty.bytes();
        let old = self.read(va, bytes)?;
        match op {
            Atomic::Amo(op) => self.write(va, bytes, eval_amo(op, ty, old, b))?,
            Atomic::Cas if extend(ty, false, b) == old => self.write(va, bytes, c)?,
            Atomic::Cas => {}
            Atomic::LoadReserved => {
                *reservation.0 = va;
                *reservation.1 = old;
            }
            Atomic::StoreCond => {
                let holds = *reservation.0 == va && extend(ty, false, *reservation.1) == old;
                *reservation.0 = u64::MAX;
                if holds {
                    self.write(va, bytes, b)?;
                }
                return Some(u64::from(!holds));
            }
        }
        Some(old)
    }
}

pub struct Vm {
    block: *mut u8,
    pub frame: *mut Frame,
    pub env: Box<Env>,
    pub code: CodeMemory,
    pub translator: Translator,
    pub mode: Mode,
}

fn memory_layout() -> Memory {
    Memory::from_size_align(STACK + size_of::<Frame>(), 4096).expect("sizes are constants")
}

impl Vm {
    pub fn new() -> Self {
        let runtime = Runtime { load, store, atomic, helper, float, trap };
        let code = CodeMemory::new(8 << 20, &LAYOUT, &runtime).expect("code memory");
        let translator = Translator::new(&LAYOUT, Config::detect().expect("host")).expect("layout fits");
        // SAFETY: not zero bytes.
        let block = unsafe { alloc_zeroed(memory_layout()) };
        // SAFETY: within the block.
        let frame = unsafe { block.add(STACK) }.cast::<Frame>();
        let mut vm = Self {
            block,
            frame,
            env: Box::new(Env::new()),
            code,
            translator,
            mode: Mode { key: 1, fetch: 1 },
        };
        let thunks = vm.code.thunk_table();
        let owner = (&raw mut *vm.env) as u64;
        let f = vm.frame();
        f.owner = owner;
        f.thunks = thunks;
        f.guest_mxcsr = MXCSR;
        f.reserved_va = u64::MAX;
        f.tokens = [TOKEN; 4];
        f.code_tokens = [CODE_TOKEN; 4];
        f.jump_token = 0x1234_5678_9abc_def0;
        for j in &mut f.jumps {
            j.key = !0;
        }
        vm
    }

    pub fn frame(&mut self) -> &mut Frame {
        // SAFETY: zero is a valid frame, and the vm is borrowed for the result's life.
        unsafe { &mut *self.frame }
    }

    pub fn slots(&mut self) -> &mut [u64] {
        &mut self.frame().slots[..usize::from(ALL_SLOTS)]
    }

    /// Maps page `n` of the RAM for reads and maybe writes.
    pub fn map(&mut self, n: u64, write: bool) {
        let va = RAM + n * 4096;
        let addend = (self.env.ram.as_ptr() as u64 + n * 4096).wrapping_sub(va);
        let mmu = self.mode.data();
        let tag = va | TOKEN;
        self.frame().tlb[mmu][tlb_index(va)] =
            TlbEntry { read: tag, write: if write { tag } else { 0 }, addend, gpa: va };
    }

    pub fn map_all(&mut self) {
        for n in 0..(RAM_BYTES / 4096) as u64 {
            self.map(n, true);
        }
    }

    pub fn unmap_all(&mut self) {
        let mmu = self.mode.data();
        for i in 0..TLB_ENTRIES {
            self.frame().tlb[mmu][i] = TlbEntry::default();
        }
    }

    /// Makes `page` the guest physical page of code address `va`.
    pub fn map_code(&mut self, va: u64, page: u64) {
        let fetch = usize::from(self.mode.fetch);
        let e = &mut self.frame().code_tlb[fetch][code_tlb_index(va)];
        e.tag = (va & !4095) | CODE_TOKEN;
        e.page = page;
    }

    pub fn map_jump(&mut self, va: u64, host: u64) {
        let token = self.frame().jump_token;
        let e = &mut self.frame().jumps[jump_index(va)];
        e.key = va ^ token;
        e.host = host;
    }

    pub fn try_translate(&mut self, block: &Block) -> Result<Region, CodegenError> {
        self.translator.translate(block, self.mode, None, &mut self.code)
    }

    pub fn translate(&mut self, block: &Block) -> Region {
        self.try_translate(block).expect("translates")
    }

    pub fn translate_straddling(&mut self, block: &Block, page: u32) -> Region {
        let straddle = Some(Straddle { page });
        self.translator.translate(block, self.mode, straddle, &mut self.code).expect("translates")
    }

    /// Enters code in the page [`PAGE`].
    pub fn enter(&mut self, code: u64) -> u32 {
        self.frame().pc_page = PAGE;
        let host_before = mxcsr();
        // SAFETY: the frame is set up; `code` is a region's entry.
        let reason = unsafe { self.code.enter(self.frame, code) };
        assert_eq!(mxcsr(), host_before, "the host's floating point state is restored");
        reason
    }

    /// Translates and runs.
    pub fn run(&mut self, block: &Block) -> u32 {
        let region = self.translate(block);
        self.enter(region.code)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.block, memory_layout()) };
    }
}

#[allow(deprecated)]
fn mxcsr() -> u32 {
    // SAFETY: SSE is part of x86-64.
    unsafe { std::arch::x86_64::_mm_getcsr() }
}

fn env_of<'a>(frame: *mut Frame) -> (&'a mut Frame, &'a mut Env) {
    // SAFETY: translated code runs with the vm's frame, whose owner is the environment; nothing else borrows
    // them while it runs.
    unsafe {
        let frame = &mut *frame;
        let env = &mut *(frame.owner as *mut Env);
        (frame, env)
    }
}

fn fault(frame: &mut Frame, env: &mut Env, va: u64, desc: u64) -> u64 {
    frame.leave = FAULT;
    frame.pc = frame.pc_page + (desc >> 16 & 0xffff);
    env.last = (va, desc);
    0xdead
}

/// Overwrites what a callee may overwrite, so that code which relies on it fails.
fn trash() {
    // SAFETY: clobbers only what it says.
    unsafe {
        std::arch::asm!(
            "mov rcx, -1", "mov rdx, -1", "mov rsi, -1", "mov rdi, -1", "mov r8, -1", "mov r9, -1",
            "mov r10, -1", "mov r11, -1",
            "vpcmpeqd xmm0, xmm0, xmm0", "vpcmpeqd xmm1, xmm1, xmm1", "vpcmpeqd xmm2, xmm2, xmm2",
            "vpcmpeqd xmm3, xmm3, xmm3", "vpcmpeqd xmm4, xmm4, xmm4", "vpcmpeqd xmm5, xmm5, xmm5",
            "vpcmpeqd xmm6, xmm6, xmm6", "vpcmpeqd xmm7, xmm7, xmm7", "vpcmpeqd xmm8, xmm8, xmm8",
            "vpcmpeqd xmm9, xmm9, xmm9", "vpcmpeqd xmm10, xmm10, xmm10", "vpcmpeqd xmm11, xmm11, xmm11",
            "vpcmpeqd xmm12, xmm12, xmm12", "vpcmpeqd xmm13, xmm13, xmm13",
            "vpcmpeqd xmm14, xmm14, xmm14", "vpcmpeqd xmm15, xmm15, xmm15",
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _,
        );
    }
}

fn aligned_stack() -> bool {
    let mut probe = std::mem::MaybeUninit::<u128>::uninit();
    (std::hint::black_box(probe.as_mut_ptr()) as usize).is_multiple_of(16)
}

extern "C" fn load(frame: *mut Frame, va: u64, desc: u64) -> u64 {
    trash();
    assert!(aligned_stack());
    let (frame, env) = env_of(frame);
    env.calls[0] += 1;
    let ty = Ty::from_u8(desc as u8).expect("a type");
    let misaligned = (desc >> 8) as u8 & flags::ALIGNED != 0 && !va.is_multiple_of(ty.bytes().into());
    if ty == Ty::V128
        && let (Some(low), Some(high)) = (env.read(va, 8), env.read(va.wrapping_add(8), 8))
    {
        frame.vector = [low, high];
        return low;
    }
    match env.read(va, ty.bytes().min(8)).filter(|_| !misaligned && ty != Ty::V128) {
        Some(v) => extend(ty, (desc >> 8) as u8 & flags::SEXT != 0, v),
        None => fault(frame, env, va, desc),
    }
}

extern "C" fn store(frame: *mut Frame, va: u64, desc: u64, value: u64) {
    trash();
    let (frame, env) = env_of(frame);
    env.calls[1] += 1;
    let ty = Ty::from_u8(desc as u8).expect("a type");
    let done = if ty == Ty::V128 {
        let [low, high] = frame.vector;
        env.read(va.wrapping_add(8), 8)
            .and_then(|_| env.write(va, 8, low))
            .and_then(|()| env.write(va.wrapping_add(8), 8, high))
    } else {
        env.write(va, ty.bytes(), value)
    };
    if done.is_none() {
        fault(frame, env, va, desc);
    }
}

extern "C" fn atomic(frame: *mut Frame, va: u64, desc: u64, b: u64, c: u64) -> u64 {
    trash();
    let (frame, env) = env_of(frame);
    env.calls[2] += 1;
    let ty = Ty::from_u8(desc as u8).expect("a type");
    let sub = (desc >> 40) as u8;
    let op = match Code::from_u8((desc >> 32) as u8) {
        Some(Code::Amo) => Atomic::Amo(AmoOp::from_u8(sub).expect("an operation")),
        Some(Code::Cas) => Atomic::Cas,
        Some(Code::LoadReserved) => Atomic::LoadReserved,
        Some(Code::StoreCond) => Atomic::StoreCond,
        other => panic!("no atomic: {other:?}"),
    };
    if (desc >> 8) as u8 & flags::ALIGNED != 0 && !va.is_multiple_of(ty.bytes().into()) {
        return fault(frame, env, va, desc);
    }
    let reservation = (&mut frame.reserved_va, &mut frame.reserved_value);
    match env.atomic(op, va, ty, (b, c), reservation) {
        Some(v) if op == Atomic::StoreCond => v,
        Some(v) => extend(ty, (desc >> 8) as u8 & flags::SEXT != 0, v),
        None => fault(frame, env, va, desc),
    }
}

extern "C" fn helper(frame: *mut Frame, id_insn: u64, a: u64, b: u64, c: u64) -> u64 {
    let (frame, env) = env_of(frame);
    env.calls[3] += 1;
    env.last = (a, id_insn);
    match (env.on_helper)(&mut frame.slots[..usize::from(ALL_SLOTS)], id_insn & 0xffff, [a, b, c]) {
        Some(v) => {
            trash();
            v
        }
        None => {
            frame.leave = exit::DISPATCH;
            frame.pc = 0x7777;
            0
        }
    }
}

extern "C" fn float(frame: *mut Frame, op: u64, a: u64, b: u64, c: u64) -> u64 {
    let (frame, env) = env_of(frame);
    env.calls[4] += 1;
    let op = FloatOp::unpack(op).expect("a floating point operation");
    let (v, flags) = eval_float(op, a, b, c, &LAYOUT.default_nan);
    frame.fp_flags |= u64::from(flags);
    trash();
    v
}

extern "C" fn trap(frame: *mut Frame, code_insn: u64, value: u64) {
    let (frame, env) = env_of(frame);
    env.last = (value, code_insn);
    frame.leave = FAULT;
    frame.pc = frame.pc_page + (code_insn >> 32 & 0xffff);
}

/// The machine for the reference interpreter.
pub struct Oracle {
    pub words: Box<[u64; WORDS]>,
    pub env: Env,
    pub fp_flags: u8,
    pub reserved: (u64, u64),
}

impl Oracle {
    pub fn new(slots: &[u64]) -> Self {
        let mut words = Box::new([0; WORDS]);
        words[..slots.len()].copy_from_slice(slots);
        Self { words, env: Env::new(), fp_flags: 0, reserved: (u64::MAX, 0) }
    }

    pub fn run(&mut self, block: &Block) -> Next<()> {
        let program = Program::new(block, &LAYOUT).expect("a well-formed block");
        interp::run(&program, Program::START, PAGE, self)
    }
}

impl Machine for Oracle {
    type Stop = ();

    fn words(&mut self) -> &mut [u64; WORDS] {
        &mut self.words
    }
    fn load(&mut self, va: u64, access: MemAccess) -> Result<u64, ()> {
        self.env.read(va, access.ty.bytes()).ok_or(())
    }
    fn store(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), ()> {
        self.env.write(va, access.ty.bytes(), value).ok_or(())
    }
    fn load_v128(&mut self, va: u64, _: MemAccess) -> Result<[u64; 2], ()> {
        Ok([self.env.read(va, 8).ok_or(())?, self.env.read(va.wrapping_add(8), 8).ok_or(())?])
    }
    fn store_v128(&mut self, va: u64, value: [u64; 2], _: MemAccess) -> Result<(), ()> {
        self.env.at(va, 16).ok_or(())?;
        self.env.write(va, 8, value[0]).ok_or(())?;
        self.env.write(va.wrapping_add(8), 8, value[1]).ok_or(())
    }
    fn atomic(&mut self, va: u64, op: Atomic, access: MemAccess, b: u64, c: u64) -> Result<u64, ()> {
        let (r, v) = &mut self.reserved;
        self.env.atomic(op, va, access.ty, (b, c), (r, v)).ok_or(())
    }
    fn helper(&mut self, index: u32, _: Site, args: [u64; 3]) -> Result<u64, ()> {
        let f = self.env.on_helper;
        f(&mut self.words[..usize::from(ALL_SLOTS)], index.into(), args).ok_or(())
    }
    fn trap(&mut self, exception: i32, value: u64, _: Site) {
        self.env.last = (value, exception as u64);
    }
    fn attention(&self) -> bool {
        false
    }
    fn fp_flags(&mut self) -> u8 {
        self.fp_flags
    }
    fn set_fp_flags(&mut self, flags: u8) {
        self.fp_flags = flags;
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Integers that find edge cases.
pub const EDGES: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_8000_0000,
    0x0123_4567_89ab_cdef,
];
