//! Random programs on both tiers of the engine: all registers, the memory around the data and what the
//! programs report must agree.

mod common;

use common::{Asm, EXIT, Machine, RAM, RAM_BYTES, csr};
use plinth_engine::Tier;
use plinth_isa_riscv::Firmware;
use plinth_isa_riscv::decode::Decoder;
use plinth_isa_riscv::disasm;
use plinth_isa_riscv::generate::{ALIGN, BASE, Generator, Options, Rng, SP, WINDOW};
use plinth_isa_riscv::slots::{F_NAMES, V_NAMES, X_NAMES};
use plinth_isa_riscv::table::Ext;
use plinth_vcpu::Register;

/// Counts the passes through a sequence; holds `fcsr` at the end.
const COUNTER: u8 = 30;
/// For what comes before and after a sequence.
const SCRATCH: u8 = 31;
/// Passes through a sequence in one run.
const PASSES: u64 = 3;
/// Runs of each sequence, from different registers and data.
const RUNS: usize = 2;
/// Where handlers of exceptions are.
const HANDLER: u64 = RAM;
/// Sets `satp` to the scratch register and jumps to the counter's address.
const TO_PAGED: u64 = RAM + 0x800;
/// The root page table; behind it, a table for each of the first 2 GiB and leaf tables.
const TABLES: u64 = RAM + 0x1000;
const PAGE: u64 = 4096;
/// Where code and data are.
const PLAYGROUND: std::ops::Range<u64> = RAM + 0x1_0000..RAM + RAM_BYTES - 0x1_0000;

const EXTS: &[Ext] = &[
    Ext::I,
    Ext::M,
    Ext::A,
    Ext::F,
    Ext::D,
    Ext::C,
    Ext::Zifencei,
    Ext::Zba,
    Ext::Zbb,
    Ext::Zbc,
    Ext::Zbs,
    Ext::Zfa,
    Ext::Zfh,
    Ext::Zicond,
    Ext::Zacas,
    Ext::Zicbop,
    Ext::Zicboz,
    Ext::Zimop,
    Ext::Zcb,
    Ext::Zcmop,
    Ext::V,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    Machine,
    Supervisor,
    /// Supervisor mode with page tables.
    Paged,
    User,
}

/// A program, its data and the registers that it starts with.
struct Case {
    privilege: Privilege,
    /// Address of the first instruction.
    at: u64,
    /// What [`BASE`] and `sp` hold.
    window: u64,
    sequence: Vec<u8>,
    fcsr: u64,
    registers: Vec<(&'static str, u64)>,
    data: Vec<u8>,
}

const WINDOW_BYTES: u64 = 2 * WINDOW.next_multiple_of(ALIGN);

impl Case {
    fn code(&self) -> Vec<u8> {
        let mut a = Asm::new(self.at);
        let (status, tvec) = match self.privilege {
            Privilege::Machine => (csr::MSTATUS, csr::MTVEC),
            _ => (csr::SSTATUS, csr::STVEC),
        };
        a.li(SCRATCH, HANDLER);
        a.csrw(tvec, SCRATCH);
        a.li(SCRATCH, 0x6600); // FS and VS
        a.emit("csrrs", 0, SCRATCH, 0, status);
        a.li(SCRATCH, self.fcsr);
        a.csrw(csr::FCSR, SCRATCH);
        a.li(COUNTER, PASSES);
        if self.privilege == Privilege::User {
            a.li(SCRATCH, 0xf0); // cache block instructions
            a.csrw(csr::SENVCFG, SCRATCH);
            a.emit("auipc", SCRATCH, 0, 0, 0);
            a.imm("addi", SCRATCH, SCRATCH, 16);
            a.csrw(csr::SEPC, SCRATCH);
            a.emit("sret", 0, 0, 0, 0);
        }
        let top = a.here();
        a.code.extend_from_slice(&self.sequence);
        a.imm("addi", COUNTER, COUNTER, -1);
        a.branch("bne", COUNTER, 0, top);
        a.csrr(COUNTER, csr::FCSR);
        a.exit(COUNTER, EXIT);
        a.code
    }
}

/// What a run has led to.
#[derive(PartialEq)]
struct Outcome {
    /// The register written, and `fcsr` or the exception's code.
    exit: (u64, u64),
    registers: Vec<Register>,
    data: Vec<u8>,
}

/// A machine of one tier and firmware, used for many sequences.
struct Side {
    machine: Machine,
}

/// The page behind the page at virtual address `va` of [`PLAYGROUND`] with page tables: neighbours are apart.
fn physical(va: u64) -> u64 {
    let pages = (PLAYGROUND.end - PLAYGROUND.start) / PAGE;
    let n = (va - PLAYGROUND.start) / PAGE;
    // 7 and the number of pages have no common factor.
    PLAYGROUND.start + (n * 7 + 3) % pages * PAGE + va % PAGE
}

/// Sv39 tables: the playground as [`physical`] says, the rest where it is.
fn put_tables(m: &Machine) {
    const V: u64 = 1;
    const RWX: u64 = 0xf;
    let entry = |pa: u64, flags: u64| pa >> 12 << 10 | flags;
    let [low, ram, first, second] = [1, 2, 3, 4].map(|n| TABLES + n * PAGE);
    m.set_word(TABLES, entry(low, V));
    m.set_word(TABLES + 8 * (RAM >> 30), entry(ram, V));
    m.set_word(low + 8 * (EXIT >> 21), entry(EXIT, RWX));
    m.set_word(ram, entry(first, V));
    m.set_word(ram + 8, entry(second, V));
    for va in (RAM..RAM + RAM_BYTES).step_by(PAGE as usize) {
        let pa = if PLAYGROUND.contains(&va) { physical(va) } else { va };
        m.set_word(first + (va - RAM) / PAGE * 8, entry(pa, RWX));
    }
}

/// Pieces of `data` at `at` that each are in one page, by physical address.
fn pieces(privilege: Privilege, at: u64, len: u64) -> Vec<(u64, std::ops::Range<usize>)> {
    let mut out = Vec::new();
    let mut done = 0;
    while done < len {
        let va = at + done;
        let n = (PAGE - va % PAGE).min(len - done);
        let pa = if privilege == Privilege::Paged { physical(va) } else { va };
        out.push((pa, done as usize..(done + n) as usize));
        done += n;
    }
    out
}

impl Side {
    fn new(tier: Tier, firmware: Firmware) -> Self {
        let machine = Machine::new(tier, firmware, 1);
        let mut a = Asm::new(HANDLER);
        a.csrr(COUNTER, if firmware == Firmware::Guest { csr::MCAUSE } else { csr::SCAUSE });
        a.exit(COUNTER, EXIT + 8);
        machine.write(HANDLER, &a.code);
        let mut a = Asm::new(TO_PAGED);
        a.csrw(csr::SATP, SCRATCH);
        a.imm("jalr", 0, COUNTER, 0);
        machine.write(TO_PAGED, &a.code);
        put_tables(&machine);
        Self { machine }
    }

    fn run(&mut self, case: &Case) -> Outcome {
        let m = &mut self.machine;
        let data = pieces(case.privilege, case.window - WINDOW_BYTES / 2, WINDOW_BYTES);
        for (pa, range) in &data {
            m.write(*pa, &case.data[range.clone()]);
        }
        let code = case.code();
        for (pa, range) in pieces(case.privilege, case.at, code.len() as u64) {
            m.write(pa, &code[range]);
        }
        let start = if case.privilege == Privilege::Paged { TO_PAGED } else { case.at };
        let exit = m.run(start, &case.registers);
        let mut registers = m.vcpus[0].registers();
        // The address is anywhere in the loop at the end.
        registers.retain(|r| r.name != "pc");
        let data = data.iter().flat_map(|(pa, range)| m.read(*pa, range.len())).collect();
        Outcome { exit, registers, data }
    }
}

/// Both tiers, of one firmware.
struct Pair {
    interpreter: Side,
    translator: Side,
}

impl Pair {
    fn new(firmware: Firmware) -> Self {
        Self {
            interpreter: Side::new(Tier::Interpret, firmware),
            translator: Side::new(Tier::Translate, firmware),
        }
    }

    fn run(&mut self, case: &Case) -> (Outcome, Outcome) {
        (self.interpreter.run(case), self.translator.run(case))
    }

    fn differs(&mut self, case: &Case) -> bool {
        let (a, b) = self.run(case);
        a != b
    }
}

/// Offset and length of each instruction.
fn instructions(code: &[u8]) -> Vec<(usize, usize)> {
    let decoder = Decoder::new();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(d) = decoder.decode_bytes(&code[at..]) {
        out.push((at, usize::from(d.len)));
        at += usize::from(d.len);
    }
    out
}

/// Replaces instructions by ones that do nothing, as long as the tiers still differ.
fn shrink(pair: &mut Pair, case: &mut Case) {
    const NOP: [u8; 4] = 0x13u32.to_le_bytes();
    const C_NOP: [u8; 2] = [1, 0];
    for (at, len) in instructions(&case.sequence) {
        let nop = if len == 2 { &C_NOP[..] } else { &NOP };
        let old = case.sequence[at..at + len].to_vec();
        case.sequence[at..at + len].copy_from_slice(nop);
        if !pair.differs(case) {
            case.sequence[at..at + len].copy_from_slice(&old);
        }
    }
}

fn report(case: &Case, left: &Outcome, right: &Outcome) -> String {
    let mut out = format!(
        "interpreter and translator differ: {:?}, code at {:#x}, data at {:#x}, fcsr {:#x}\nexit {:x?} and {:x?}\n",
        case.privilege, case.at, case.window, case.fcsr, left.exit, right.exit
    );
    for (l, r) in left.registers.iter().zip(&right.registers).filter(|(l, r)| l != r) {
        out += &format!("{l}, {r}\n");
    }
    for (i, (l, r)) in left.data.iter().zip(&right.data).enumerate().filter(|(_, (l, r))| l != r) {
        out += &format!("data {:+}: {l:#x}, {r:#x}\n", i as i64 - (WINDOW_BYTES / 2) as i64);
    }
    out += "registers at the start:";
    for (name, value) in &case.registers {
        out += &format!(" {name}={value:#x}");
    }
    out.push('\n');
    for (at, len) in instructions(&case.sequence) {
        let code = &case.sequence[at..at + len];
        if code != 0x13u32.to_le_bytes() && code != [1, 0] {
            out += &format!("{at:5x}: {}\n", disasm::disassemble(code, at as u64).0);
        }
    }
    out
}

/// Registers and data of another run of `case`.
fn fill(case: &mut Case, rng: &mut Rng) {
    case.fcsr = u64::from(rng.below(5)) << 5 | u64::from(rng.below(32));
    case.registers.clear();
    for (r, name) in X_NAMES.into_iter().enumerate().skip(1) {
        let pinned = r == usize::from(BASE) || r == usize::from(SP);
        case.registers.push((name, if pinned { case.window } else { rng.value() }));
    }
    if case.privilege == Privilege::Paged {
        case.registers[usize::from(SCRATCH) - 1].1 = 8 << 60 | TABLES >> 12;
        case.registers[usize::from(COUNTER) - 1].1 = case.at;
    }
    case.registers.extend(F_NAMES.into_iter().chain(V_NAMES).map(|name| (name, rng.value())));
    case.data = (0..WINDOW_BYTES / 8).flat_map(|_| rng.value().to_le_bytes()).collect();
}

/// Where code and data go: anywhere, or side by side, so that stores meet pages with code.
fn place(rng: &mut Rng, code_bytes: u64) -> (u64, u64) {
    let room = (PLAYGROUND.end - PLAYGROUND.start) as u32 - 0x4000;
    let at = PLAYGROUND.start + u64::from(rng.below(room / 2)) * 2;
    if rng.below(2) == 0 {
        return (at, (at + code_bytes).next_multiple_of(ALIGN) + WINDOW_BYTES / 2);
    }
    // Data has its own half.
    let half = u64::from(room) / 2;
    let at = (PLAYGROUND.start + (at - PLAYGROUND.start) % half) & !1;
    let data = PLAYGROUND.start + half + 0x2000 + u64::from(rng.below((half / ALIGN) as u32 - 256)) * ALIGN;
    (at, data.next_multiple_of(ALIGN))
}

/// Runs sequences with `insns` instructions in total. Returns how many were run and how many sequences ended in
/// an exception.
fn differential(seed: u64, insns: u64, exts: &[Ext]) -> (u64, u64) {
    let options = Options { exts: exts.to_vec(), keep: 1 << COUNTER | 1 << SCRATCH, skip: |_, _| false };
    let mut generator = Generator::new(seed, &options);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut machine = Pair::new(Firmware::Guest);
    let mut supervisor = Pair::new(Firmware::BuiltIn);
    let (mut count, mut exceptions) = (0, 0);
    while count < insns {
        let len = 1 + rng.below(100) as usize;
        let sequence = generator.sequence(len);
        let (at, window) = place(&mut rng, sequence.len() as u64 + 256);
        let privilege =
            rng.pick(&[Privilege::Machine, Privilege::Supervisor, Privilege::Paged, Privilege::User]);
        count += instructions(&sequence).len() as u64;
        let pair = if privilege == Privilege::Machine { &mut machine } else { &mut supervisor };
        let mut case =
            Case { privilege, at, window, sequence, fcsr: 0, registers: Vec::new(), data: Vec::new() };
        for _ in 0..RUNS {
            fill(&mut case, &mut rng);
            let (left, right) = pair.run(&case);
            exceptions += u64::from(left.exit.0 != EXIT);
            if left != right {
                let first = report(&case, &left, &right);
                shrink(pair, &mut case);
                let (left, right) = pair.run(&case);
                panic!("seed {seed}, after {count}:\n{first}\nshrunk: {}", report(&case, &left, &right));
            }
        }
    }
    (count, exceptions)
}

#[test]
fn the_tiers_agree() {
    let (_, exceptions) = differential(1, 200_000, EXTS);
    assert_eq!(exceptions, 0);
}

#[test]
fn the_tiers_agree_on_vectors() {
    let (_, exceptions) = differential(2, 100_000, &[Ext::V]);
    assert_eq!(exceptions, 0);
}

/// `PLINTH_FUZZ_INSNS`: how many instructions; `PLINTH_FUZZ_SEED`: where to start; `PLINTH_FUZZ_VECTORS`:
/// vector instructions alone.
#[test]
#[ignore = "long"]
fn the_tiers_agree_for_long() {
    let number = |name: &str, default| {
        std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
    };
    let (insns, mut seed) = (number("PLINTH_FUZZ_INSNS", 10_000_000), number("PLINTH_FUZZ_SEED", 100));
    let exts = if std::env::var_os("PLINTH_FUZZ_VECTORS").is_some() { &[Ext::V] } else { EXTS };
    let mut done = 0;
    while done < insns {
        let (count, exceptions) = differential(seed, (insns - done).min(1_000_000), exts);
        done += count;
        seed += 1;
        println!("{done} instructions, {exceptions} exceptions");
    }
}
