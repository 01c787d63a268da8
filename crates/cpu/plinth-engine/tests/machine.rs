//! Small programs on both tiers of the engine: changed code, exceptions, devices, interrupts, several harts.
//! Paging has its own file.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Asm, DEVICE, EXIT, Machine, RAM, csr};
use plinth_engine::{Engine, Tier};
use plinth_isa_riscv::Firmware;
use plinth_isa_riscv::generate::{by_name, encode};
use plinth_vcpu::{StartState, TlbFlush};

const TIERS: [Tier; 2] = [Tier::Interpret, Tier::Translate];
const CODE: u64 = RAM + 0x1_0000;
const FUNCTION: u64 = RAM + 0x2_0000;
const HANDLER: u64 = RAM + 0x3_0000;
const DATA: u64 = RAM + 0x4_0000;

const T0: u8 = 5;
const T1: u8 = 6;
const T2: u8 = 7;
const S0: u8 = 8;
const S1: u8 = 9;
const A0: u8 = 10;
const A1: u8 = 11;
const RA: u8 = 1;

/// A machine in machine mode whose exceptions and interrupts write `mcause` to `EXIT + 8`.
fn bare(tier: Tier) -> Machine {
    let m = Machine::new(tier, Firmware::Guest, 1);
    let mut a = Asm::new(HANDLER);
    a.csrr(30, csr::MCAUSE);
    a.exit(30, EXIT + 8);
    m.write(HANDLER, &a.code);
    m
}

/// Code that begins with the address of [`HANDLER`] in `mtvec`.
fn program() -> Asm {
    let mut a = Asm::new(CODE);
    a.li(31, HANDLER);
    a.csrw(csr::MTVEC, 31);
    a
}

/// `addi a0, x0, n`.
fn li_a0(n: i32) -> u32 {
    encode(by_name("addi").unwrap(), A0, 0, 0, n).unwrap()
}

fn call(a: &mut Asm, function: u64) {
    a.branch("jal", RA, 0, function);
}

fn ret(a: &mut Asm) {
    a.imm("jalr", 0, RA, 0);
}

#[test]
fn code_that_the_guest_changes_is_run_anew() {
    const TIMES: u64 = 500;
    for tier in TIERS {
        // In another page, and in the page of the code that changes it.
        for function in [FUNCTION, CODE + 0x800] {
            let mut m = bare(tier);
            let mut f = Asm::new(function);
            f.imm("addi", A0, 0, 0);
            ret(&mut f);
            m.write(function, &f.code);
            let mut a = program();
            a.li(T0, function);
            a.li(T1, li_a0(0).into());
            a.li(T2, 1 << 20);
            a.li(S0, TIMES);
            let top = a.here();
            call(&mut a, function);
            a.emit("add", S1, S1, A0, 0);
            a.emit("add", T1, T1, T2, 0);
            a.store("sw", T1, T0, 0);
            a.emit("fence.i", 0, 0, 0, 0);
            a.imm("addi", S0, S0, -1);
            a.branch("bne", S0, 0, top);
            a.exit(S1, EXIT);
            m.write(CODE, &a.code);
            assert_eq!(m.run(CODE, &[]), (EXIT, TIMES * (TIMES - 1) / 2), "{tier:?} {function:#x}");
        }
    }
}

/// A loop whose end is a store into itself, with no `fence.i` after it: what is stored is seen in the end
/// (Ziccid's eventuality).
#[test]
fn a_loop_that_changes_itself_without_a_fence_ends() {
    for tier in TIERS {
        let mut m = bare(tier);
        let mut a = program();
        a.li(S0, 1000);
        a.li(T1, li_a0(7).into());
        a.emit("auipc", T0, 0, 0, 0);
        let top = a.here();
        a.imm("addi", A0, 0, 0);
        a.imm("addi", S0, S0, -1);
        a.branch("bne", S0, 0, a.here() + 8);
        a.store("sw", T1, T0, 4);
        a.branch("beq", A0, 0, top);
        a.exit(A0, EXIT);
        m.write(CODE, &a.code);
        assert_eq!(m.run(CODE, &[]), (EXIT, 7), "{tier:?}");
    }
}

#[test]
fn code_that_a_device_changes_is_run_anew() {
    const VALUES: i32 = 300;
    for tier in TIERS {
        let mut m = bare(tier);
        let mut f = Asm::new(FUNCTION);
        f.imm("addi", A0, 0, 0);
        ret(&mut f);
        m.write(FUNCTION, &f.code);
        let mut a = program();
        a.li(T0, VALUES as u64);
        a.li(S0, DATA);
        let top = a.here();
        call(&mut a, FUNCTION);
        a.store("sd", A0, S0, 0);
        a.emit("fence.i", 0, 0, 0, 0);
        a.branch("bne", A0, T0, top);
        a.exit(A0, EXIT);
        m.write(CODE, &a.code);
        let ram = m.ram.clone();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                use plinth_memory::{Bytes, GuestAddress};
                let memory = ram.memory();
                for n in 1..=VALUES {
                    // Again at once: the guest may be just where it translates what was there before.
                    memory.write_slice(&li_a0(-n).to_le_bytes(), GuestAddress(FUNCTION)).unwrap();
                    memory.write_slice(&li_a0(n).to_le_bytes(), GuestAddress(FUNCTION)).unwrap();
                    let limit = Instant::now() + Duration::from_secs(10);
                    while memory.read_obj::<u64>(GuestAddress(DATA)).unwrap() != n as u64 {
                        assert!(Instant::now() < limit, "{tier:?}: value {n} is not seen");
                        std::thread::yield_now();
                    }
                }
            });
            m.run(CODE, &[])
        });
        assert_eq!(exit, (EXIT, VALUES as u64), "{tier:?}");
        // While it does not run.
        m.write(FUNCTION, &li_a0(-1).to_le_bytes());
        m.write(FUNCTION, &li_a0(VALUES).to_le_bytes());
        assert_eq!(m.run(CODE, &[]), (EXIT, VALUES as u64), "{tier:?}");
    }
}

#[test]
fn exceptions_in_the_middle_of_a_block_are_exact() {
    const ILLEGAL: u32 = 0xffff_ffff;
    type Fault = fn(&mut Asm);
    // What faults, the cause, and the value in `mtval`; `s1` holds an address without a device.
    let faults: [(Fault, u64, u64); 7] = [
        (|a| a.imm("lw", A0, S1, 4), 5, 0x2000_0004),
        (|a| a.store("sd", A0, S1, -8), 7, 0x1fff_fff8),
        (|a| a.emit("amoadd.d", A0, S1, A0, 0), 7, 0x2000_0000),
        (|a| a.emit("lr.w", A0, S0, 0, 0), 4, DATA + 1),
        (|a| a.emit("sc.d", A0, S0, A0, 0), 6, DATA + 1),
        (|a| a.code.extend_from_slice(&ILLEGAL.to_le_bytes()), 2, ILLEGAL as u64),
        (|a| a.emit("ecall", 0, 0, 0, 0), 11, 0),
    ];
    for tier in TIERS {
        for (i, (fault, cause, value)) in faults.into_iter().enumerate() {
            // At the end of a page and not.
            for padding in [0, 0xfc0 - 0x10] {
                let mut m = bare(tier);
                let mut a = program();
                a.li(S1, 0x2000_0000);
                a.li(S0, DATA + 1);
                a.li(A0, 0);
                for _ in 0..padding / 2 {
                    a.imm("c.addi", A1, A1, 1);
                }
                a.imm("addi", A0, A0, 5);
                a.imm("c.addi", A0, A0, 3);
                let pc = a.here();
                fault(&mut a);
                a.imm("addi", A0, A0, 100);
                a.exit(A0, EXIT);
                m.write(CODE, &a.code);
                let what = format!("{tier:?}, fault {i}, padding {padding}");
                assert_eq!(m.run(CODE, &[]), (EXIT + 8, cause), "{what}");
                assert_eq!((m.register("mepc"), m.register("mtval")), (pc, value), "{what}");
                assert_eq!((m.register("a0"), m.register("a1")), (8, padding / 2), "{what}");
            }
        }
    }
}

#[test]
fn device_registers_are_read_and_written_in_their_sizes() {
    for tier in TIERS {
        let mut m = bare(tier);
        let mut a = program();
        a.li(S0, DEVICE);
        a.li(T0, 0x8192_a3b4_c5d6_e7f8);
        a.store("sd", T0, S0, 0);
        a.store("sw", T0, S0, 8);
        a.store("sh", T0, S0, 12);
        a.store("sb", T0, S0, 14);
        a.imm("lw", 10, S0, 4);
        a.imm("lwu", 11, S0, 4);
        a.imm("lh", 12, S0, 12);
        a.imm("lhu", 13, S0, 12);
        a.imm("lb", 14, S0, 14);
        a.imm("lbu", 15, S0, 14);
        a.imm("ld", 16, S0, 8);
        a.exit(16, EXIT);
        m.write(CODE, &a.code);
        assert_eq!(m.run(CODE, &[]), (EXIT, 0x00f8_e7f8_c5d6_e7f8), "{tier:?}");
        let values = ["a0", "a1", "a2", "a3", "a4", "a5"].map(|r| m.register(r));
        let expected =
            [0xffff_ffff_8192_a3b4, 0x8192_a3b4, 0xffff_ffff_ffff_e7f8, 0xe7f8, u64::MAX - 7, 0xf8];
        assert_eq!(values, expected, "{tier:?}");
        let accesses = std::mem::take(&mut *m.bus.accesses.lock().unwrap());
        let expected =
            [(0, 8), (8, 4), (12, 2), (14, 1), (4, 4), (4, 4), (12, 2), (12, 2), (14, 1), (14, 1), (8, 8)];
        assert_eq!(accesses, expected.map(|(at, len)| (DEVICE + at, len)), "{tier:?}");
    }
}

#[test]
fn reservations_hold_for_one_store_to_one_address() {
    for tier in TIERS {
        let mut m = bare(tier);
        m.set_word(DATA, 1);
        m.set_word(DATA + 8, 2);
        let mut a = program();
        a.li(S0, DATA);
        a.li(S1, DATA + 8);
        a.li(T0, 7);
        a.emit("sc.d", 10, S0, T0, 0); // none
        a.emit("lr.d", T1, S0, 0, 0);
        a.emit("sc.d", 11, S1, T0, 0); // another address
        a.emit("sc.d", 12, S0, T0, 0); // used up
        a.emit("lr.d", T1, S0, 0, 0);
        a.emit("sc.d", 13, S0, T0, 0); // succeeds
        a.emit("lr.w", T1, S0, 0, 0);
        a.store("sw", 0, S0, 0); // changed
        a.emit("sc.w", 14, S0, T0, 0);
        a.exit(T1, EXIT);
        m.write(CODE, &a.code);
        assert_eq!(m.run(CODE, &[]), (EXIT, 7), "{tier:?}");
        let results = ["a0", "a1", "a2", "a3", "a4"].map(|r| m.register(r));
        assert_eq!(results, [1, 1, 1, 0, 1], "{tier:?}");
        assert_eq!((m.word(DATA), m.word(DATA + 8)), (0, 2), "{tier:?}");
    }
}

#[test]
fn an_interrupt_ends_every_kind_of_loop() {
    const MTI: u32 = 7;
    type Loop = fn(&mut Asm);
    let loops: [Loop; 5] = [
        |a| a.branch("jal", 0, 0, a.here()),
        |a| {
            let top = a.here();
            a.imm("addi", A0, A0, 1);
            a.branch("bgeu", A0, 0, top);
        },
        |a| {
            // Through another page.
            let top = a.here();
            call(a, FUNCTION);
            a.branch("jal", 0, 0, top);
        },
        |a| {
            // By an indirect jump.
            a.emit("auipc", T0, 0, 0, 0);
            a.imm("jalr", 0, T0, 4);
        },
        |a| {
            let top = a.here();
            a.emit("wfi", 0, 0, 0, 0);
            a.branch("jal", 0, 0, top);
        },
    ];
    for tier in TIERS {
        for (i, body) in loops.into_iter().enumerate() {
            let mut m = bare(tier);
            let mut f = Asm::new(FUNCTION);
            ret(&mut f);
            m.write(FUNCTION, &f.code);
            let mut a = program();
            a.li(T0, 1 << MTI);
            a.csrw(csr::MIE, T0);
            a.li(T0, 8);
            a.emit("csrrs", 0, T0, 0, csr::MSTATUS);
            let start = a.here();
            body(&mut a);
            let end = a.here();
            m.write(CODE, &a.code);
            let control = m.vcpus[0].control();
            let exit = std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(10));
                    control.set_irq(MTI, true);
                });
                m.run(CODE, &[])
            });
            assert_eq!(exit, (EXIT + 8, 1 << 63 | u64::from(MTI)), "{tier:?}, loop {i}");
            let pc = m.register("mepc");
            assert!((start..end).contains(&pc) || pc == FUNCTION, "{tier:?}, loop {i}, {pc:#x}");
        }
    }
}

/// Starts every hart at [`CODE`] with its index in `a0` and its exit register in `s1`.
fn start_all(m: &mut Machine) {
    for (i, vcpu) in m.vcpus.iter_mut().enumerate() {
        let registers = vec![("a0", i as u64), ("s1", EXIT + 16 * i as u64)];
        vcpu.reset(Some(StartState { pc: CODE, registers }));
    }
}

/// Writes `rs` to the exit register in `s1` and waits there.
fn exit_each(a: &mut Asm, rs: u8) {
    a.store("sd", rs, S1, 0);
    a.branch("jal", 0, 0, a.here());
}

#[test]
fn atomics_of_two_harts_add_up() {
    const TIMES: u64 = 20_000;
    for tier in TIERS {
        let mut m = Machine::new(tier, Firmware::Guest, 2);
        let mut a = Asm::new(CODE);
        a.li(S0, DATA);
        a.li(T0, TIMES);
        a.li(T1, 1);
        let top = a.here();
        a.emit("amoadd.w", 0, S0, T1, 0);
        let again = a.here();
        a.imm("addi", A1, S0, 64);
        a.emit("lr.d", T2, A1, 0, 0);
        a.imm("addi", T2, T2, 3);
        a.emit("sc.d", T2, A1, T2, 0);
        a.branch("bne", T2, 0, again);
        // Both halves of a pair at DATA + 128 go up together; a2 and a3 expect, a4 and a5 are new.
        a.imm("addi", A1, S0, 128);
        a.li(12, 0);
        a.li(13, 0);
        let again = a.here();
        a.imm("addi", 14, 12, 1);
        a.imm("addi", 15, 13, 5);
        a.imm("addi", 16, 12, 0);
        a.imm("addi", 17, 13, 0);
        a.emit("amocas.q", 12, A1, 14, 0);
        a.branch("bne", 12, 16, again);
        a.branch("bne", 13, 17, again);
        a.imm("addi", T0, T0, -1);
        a.branch("bne", T0, 0, top);
        exit_each(&mut a, A0);
        m.write(CODE, &a.code);
        start_all(&mut m);
        let mut exits = m.run_all();
        exits.sort_unstable();
        assert_eq!(exits, [(EXIT, 0), (EXIT + 16, 1)], "{tier:?}");
        assert_eq!((m.word(DATA), m.word(DATA + 64)), (2 * TIMES, 6 * TIMES), "{tier:?}");
        assert_eq!((m.word(DATA + 128), m.word(DATA + 136)), (2 * TIMES, 10 * TIMES), "{tier:?}");
    }
}

#[test]
fn harts_that_flush_each_other_go_on() {
    const TIMES: u64 = 2_000;
    const RFENCE: u64 = 0x5246_4e43;
    for tier in TIERS {
        let mut m = Machine::new(tier, Firmware::BuiltIn, 2);
        let mut a = Asm::new(CODE);
        a.li(S0, DATA);
        a.li(T0, TIMES);
        a.li(T1, 1);
        a.imm("xori", 18, A0, 1);
        let top = a.here();
        a.emit("amoadd.d", 0, S0, T1, 0);
        a.emit("sll", A0, T1, 18, 0); // mask of the other hart
        a.li(A1, 0);
        a.li(12, DATA);
        a.li(13, 0x3000);
        a.imm("andi", 16, T0, 1); // fence.i and sfence.vma
        a.li(17, RFENCE);
        a.emit("ecall", 0, 0, 0, 0);
        a.emit("add", 19, 19, A0, 0); // errors
        a.imm("addi", T0, T0, -1);
        a.branch("bne", T0, 0, top);
        exit_each(&mut a, 19);
        m.write(CODE, &a.code);
        start_all(&mut m);
        let controls: Vec<_> = m.vcpus.iter().map(|v| v.control()).collect();
        let done = AtomicBool::new(false);
        let mut exits = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for c in &controls {
                        c.flush_tlb(TlbFlush { range: None, asid: None });
                    }
                }
            });
            let exits = m.run_all();
            done.store(true, Ordering::Relaxed);
            exits
        });
        exits.sort_unstable();
        assert_eq!(exits, [(EXIT, 0), (EXIT + 16, 0)], "{tier:?}");
        assert_eq!(m.word(DATA), 2 * TIMES, "{tier:?}");
    }
}

#[test]
fn code_that_another_hart_changes_is_run_anew_after_its_remote_fence() {
    const VALUES: u64 = 500;
    const RFENCE: u64 = 0x5246_4e43;
    for tier in TIERS {
        let mut m = Machine::new(tier, Firmware::BuiltIn, 2);
        let mut f = Asm::new(FUNCTION);
        f.imm("addi", A0, 0, 0);
        ret(&mut f);
        m.write(FUNCTION, &f.code);
        // Hart 1 runs the function and tells what it returned.
        let mut a = Asm::new(CODE);
        a.li(S0, DATA);
        a.li(T0, VALUES);
        a.branch("beq", A0, 0, CODE + 0x100);
        let top = a.here();
        call(&mut a, FUNCTION);
        a.store("sd", A0, S0, 0);
        a.branch("bne", A0, T0, top);
        exit_each(&mut a, A0);
        m.write(CODE, &a.code);
        // Hart 0 changes it and waits for the new value.
        let mut a = Asm::new(CODE + 0x100);
        a.li(18, FUNCTION);
        a.li(19, li_a0(0).into());
        a.li(20, 1 << 20);
        a.li(T1, 0);
        let top = a.here();
        a.imm("addi", T1, T1, 1);
        a.emit("add", 19, 19, 20, 0);
        a.store("sw", 19, 18, 0);
        a.li(A0, 2);
        a.li(A1, 0);
        a.li(16, 0);
        a.li(17, RFENCE);
        a.emit("ecall", 0, 0, 0, 0);
        let wait = a.here();
        a.imm("ld", T2, S0, 0);
        a.branch("bne", T2, T1, wait);
        a.branch("bne", T1, T0, top);
        exit_each(&mut a, T1);
        m.write(a.base, &a.code);
        start_all(&mut m);
        let mut exits = m.run_all();
        exits.sort_unstable();
        assert_eq!(exits, [(EXIT, VALUES), (EXIT + 16, VALUES)], "{tier:?}");
    }
}

/// A machine with two harts and little room for translations; `CODE` runs more code than that `times` times over, without
/// end for 0, and leaves a sum in `a1`.
fn crowded(tier: Tier, times: u64) -> (Machine, u64) {
    const FUNCTIONS: u64 = 300;
    const FIRST: u64 = RAM + 0x10_0000;
    const STRIDE: u64 = 0x804;
    let m = Machine::make(Firmware::Guest, 2, |p| Engine::with_code_memory(p, tier, 64 << 10).unwrap());
    // A chain of functions, each of which adds something of its own and jumps to the next.
    for i in 0..FUNCTIONS {
        let mut f = Asm::new(FIRST + i * STRIDE);
        for _ in 0..16 {
            f.imm("addi", A1, A1, i as i32);
            f.emit("xor", T1, T1, A1, 0);
        }
        if i + 1 == FUNCTIONS {
            ret(&mut f);
        } else {
            f.branch("jal", 0, 0, FIRST + (i + 1) * STRIDE);
        }
        m.write(f.base, &f.code);
    }
    let mut a = Asm::new(CODE);
    a.li(T0, times);
    a.li(T2, FIRST);
    let top = a.here();
    a.imm("jalr", RA, T2, 0);
    a.imm("addi", T0, T0, -1);
    a.branch("bne", T0, 0, top);
    exit_each(&mut a, A1);
    m.write(CODE, &a.code);
    (m, times * 16 * (FUNCTIONS * (FUNCTIONS - 1) / 2))
}

#[test]
fn a_full_code_memory_is_begun_anew() {
    for tier in TIERS {
        let (mut m, sum) = crowded(tier, 40);
        start_all(&mut m);
        let mut exits = m.run_all();
        exits.sort_unstable();
        assert_eq!(exits, [(EXIT, sum), (EXIT + 16, sum)], "{tier:?}");
    }
}

#[test]
fn kicks_arrive_while_another_hart_drops_all_code() {
    const KICKS: u32 = 400;
    let (mut m, _) = crowded(Tier::Translate, 0);
    start_all(&mut m);
    let controls: Vec<_> = m.vcpus.iter().map(|v| v.control()).collect();
    let returned = [AtomicU32::new(0), AtomicU32::new(0)];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (vcpu, returned) in m.vcpus.iter_mut().zip(&returned) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    vcpu.run();
                    returned.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let mut lost = None;
        'kicks: for n in 1..=KICKS {
            for i in 0..2 {
                controls[i].kick();
                let limit = Instant::now() + Duration::from_secs(5);
                while returned[i].load(Ordering::SeqCst) < n {
                    if Instant::now() > limit {
                        lost = Some((i, n));
                        break 'kicks;
                    }
                    std::thread::yield_now();
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        controls.iter().for_each(|c| c.kick());
        assert_eq!(lost, None, "hart and number of a kick that was lost");
    });
}
