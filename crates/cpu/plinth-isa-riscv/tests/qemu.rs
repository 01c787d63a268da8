//! Random programs on the reference interpreter and on `qemu-riscv64`: all registers and memory must agree.
//! Without `qemu-riscv64` there is nothing to compare with, and the test says so.

mod common;

use std::process::Command;

use common::{Hart, Stop};
use plinth_isa_riscv::decode::Decoder;
use plinth_isa_riscv::disasm;
use plinth_isa_riscv::generate::{ALIGN, BASE, Generator, Options, Rng, SP, WINDOW, by_name, encode};
use plinth_isa_riscv::slots::{F_NAMES, X_NAMES};
use plinth_isa_riscv::table::{Ext, Row, Sem};

/// Where the program is loaded: an ELF header, the code, the states.
const LOAD: u64 = 0x10000;
const CODE: u64 = LOAD + 0x1000;
/// Bytes of a sequence's state: x0..x31, f0..f31, fcsr, vcsr, vl, vtype; padded; v0..v31.
const STATE: u64 = 1088;
/// Where the vector registers are in it.
const VECTORS: u64 = 576;
/// Holds the address of the state while a sequence runs.
const STATE_REGISTER: u8 = 31;

/// QEMU 10.0 writes its constant zero for `amocas` with x0 as destination, and drops the flags of a rounding
/// whose result is not used.
fn qemu_is_wrong(row: &Row, bits: u32) -> bool {
    match row.sem {
        Sem::AmoCas(_) | Sem::AmoCasPair => bits >> 7 & 31 == 0,
        Sem::FRound(..) => true,
        _ => false,
    }
}

struct Assembler {
    code: Vec<u8>,
}

impl Assembler {
    fn emit(&mut self, name: &str, rd: u8, rs1: u8, rs2: u8, imm: i32) {
        let bits = by_name(name).and_then(|row| encode(row, rd, rs1, rs2, imm));
        self.code.extend_from_slice(&bits.expect("encodable").to_le_bytes());
    }

    /// Loads or stores all vector registers.
    fn vectors(&mut self, name: &str) {
        self.emit("addi", 1, STATE_REGISTER, 0, VECTORS as i32);
        for r in [0, 8, 16, 24] {
            self.emit(name, r, 1, 0, 0);
            self.emit("addi", 1, 1, 0, 128);
        }
    }

    /// rd = `value`, below 2^31.
    fn li(&mut self, rd: u8, value: u64) {
        let value = value as i32;
        let low = value << 20 >> 20;
        self.emit("lui", rd, 0, 0, value.wrapping_sub(low));
        self.emit("addiw", rd, rd, 0, low);
    }
}

struct Program {
    image: Vec<u8>,
    states: u64,
    window: u64,
    /// Code of each sequence.
    sequences: Vec<Vec<u8>>,
}

/// A program of `count` sequences of `len` instructions each from `exts`.
fn program(seed: u64, exts: &[Ext], count: usize, len: usize) -> Program {
    let options = Options { exts: exts.to_vec(), keep: 1 << STATE_REGISTER, skip: qemu_is_wrong };
    let mut generator = Generator::new(seed, &options);
    let sequences: Vec<_> = (0..count).map(|_| generator.sequence(len)).collect();
    let code_bytes: usize = sequences.iter().map(Vec::len).sum::<usize>() + count * 4 * 180 + 64;
    let vector = exts.contains(&Ext::V);
    let states = (CODE + code_bytes as u64).next_multiple_of(4096);
    let window = states + STATE * count as u64;
    // In the middle of a page: QEMU 10.0 gives up on loads that only fault first where they cross pages.
    let window = (window + WINDOW).next_multiple_of(4096) + 2048;
    assert!(window.is_multiple_of(ALIGN));
    let end = window + WINDOW.next_multiple_of(ALIGN);

    let mut asm = Assembler { code: Vec::new() };
    for (i, sequence) in sequences.iter().enumerate() {
        asm.li(STATE_REGISTER, states + STATE * i as u64);
        asm.emit("ld", 1, STATE_REGISTER, 0, 512);
        asm.emit("csrrw", 0, 1, 0, 3);
        for r in 0..32u8 {
            asm.emit("fld", r, STATE_REGISTER, 0, 256 + 8 * i32::from(r));
        }
        if vector {
            asm.vectors("vl8re8.v");
            asm.emit("ld", 1, STATE_REGISTER, 0, 520);
            asm.emit("csrrw", 0, 1, 0, 15);
        }
        for r in 1..31u8 {
            asm.emit("ld", r, STATE_REGISTER, 0, 8 * i32::from(r));
        }
        asm.code.extend_from_slice(sequence);
        for r in 1..32u8 {
            asm.emit("sd", 0, STATE_REGISTER, r, 8 * i32::from(r));
        }
        for r in 0..32u8 {
            asm.emit("fsd", 0, STATE_REGISTER, r, 256 + 8 * i32::from(r));
        }
        asm.emit("csrrs", 1, 0, 0, 3);
        asm.emit("sd", 0, STATE_REGISTER, 1, 512);
        if vector {
            asm.vectors("vs8r.v");
            for (i, csr) in [15, 0xc20, 0xc21].into_iter().enumerate() {
                asm.emit("csrrs", 1, 0, 0, csr);
                asm.emit("sd", 0, STATE_REGISTER, 1, 520 + 8 * i as i32);
            }
        }
    }
    // write(1, states, end - states); exit(0)
    asm.li(17, 64);
    asm.li(10, 1);
    asm.li(11, states);
    asm.li(12, end - states);
    asm.emit("ecall", 0, 0, 0, 0);
    asm.li(17, 93);
    asm.li(10, 0);
    asm.emit("ecall", 0, 0, 0, 0);
    assert!(CODE + asm.code.len() as u64 <= states);

    let mut image = vec![0; (end - LOAD) as usize];
    image[(CODE - LOAD) as usize..][..asm.code.len()].copy_from_slice(&asm.code);
    let rng = generator.rng();
    for word in image[(states - LOAD) as usize..].chunks_exact_mut(8) {
        word.copy_from_slice(&rng.value().to_le_bytes());
    }
    for i in 0..count {
        let at = (states - LOAD + STATE * i as u64) as usize;
        for r in [BASE, SP] {
            image[at + 8 * usize::from(r)..][..8].copy_from_slice(&window.to_le_bytes());
        }
        let fcsr = u64::from(rng.below(5)) << 5;
        image[at + 512..][..8].copy_from_slice(&fcsr.to_le_bytes());
        image[at + 520..][..8].copy_from_slice(&u64::from(rng.below(8)).to_le_bytes());
    }
    let header = elf_header(image.len() as u64);
    image[..120].copy_from_slice(&header);
    Program { image, states, window, sequences }
}

/// An ELF header and one segment that loads the whole file, readable, writable and executable.
fn elf_header(len: u64) -> [u8; 120] {
    let mut h = [0; 120];
    h[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes()); // executable
    put(18, &243u16.to_le_bytes()); // RISC-V
    put(20, &1u32.to_le_bytes());
    put(24, &CODE.to_le_bytes());
    put(32, &64u64.to_le_bytes()); // program headers
    put(48, &5u32.to_le_bytes()); // RVC, double-float ABI
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes()); // load
    put(68, &7u32.to_le_bytes());
    put(80, &LOAD.to_le_bytes());
    put(88, &LOAD.to_le_bytes());
    put(96, &len.to_le_bytes());
    put(104, &len.to_le_bytes());
    put(112, &4096u64.to_le_bytes());
    h
}

fn run_qemu(p: &Program, seed: u64) -> Option<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("plinth-riscv-{}-{seed}", std::process::id()));
    std::fs::write(&path, &p.image).unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&path, permissions).unwrap();
    let output = Command::new("qemu-riscv64").arg("-cpu").arg("max").arg(&path).output();
    if std::env::var_os("KEEP").is_none() {
        std::fs::remove_file(&path).unwrap();
    }
    match output {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        output => {
            let output = output.unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {errors}", output.status);
            Some(output.stdout)
        }
    }
}

/// Runs until the `exit` system call and returns what the program has written.
fn run_here(p: &Program, max_insns: u32) -> Vec<u8> {
    let mut hart = Hart::new(LOAD, p.image.clone());
    hart.pc = CODE;
    hart.max_insns = max_insns;
    loop {
        match hart.run(1_000_000) {
            Stop::Exception(8, _) if hart.x(17) == 64 => {
                hart.pc += 4;
            }
            Stop::Exception(8, _) if hart.x(17) == 93 => break,
            stop => {
                let code = hart.memory[(hart.pc - LOAD) as usize..][..4].to_vec();
                panic!("{stop:?} at {:#x}: {}", hart.pc, disasm::disassemble(&code, hart.pc).0);
            }
        }
    }
    hart.memory.split_off((p.states - LOAD) as usize)
}

fn listing(code: &[u8]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while let Some(d) = Decoder::new().decode_bytes(&code[at..]) {
        out += &format!("{at:5x}: {}\n", disasm::text(&d, at as u64));
        at += usize::from(d.len);
    }
    out
}

const OTHERS: [&str; 4] = ["fcsr", "vcsr", "vl", "vtype"];

fn compare(p: &Program, seed: u64, ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len(), "bytes written");
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    for (i, sequence) in p.sequences.iter().enumerate() {
        let at = STATE as usize * i;
        let mut differences = String::new();
        for (r, name) in X_NAMES.iter().chain(&F_NAMES).chain(&OTHERS).enumerate().skip(1) {
            let (o, t) = (word(ours, at + 8 * r), word(theirs, at + 8 * r));
            if o != t {
                let before = word(&p.image, (p.states - LOAD) as usize + at + 8 * r);
                differences += &format!("{name}: {o:#018x}, qemu {t:#018x}, before {before:#018x}\n");
            }
        }
        for r in 0..32 {
            let of = |bytes: &[u8], at: usize| {
                u128::from_le_bytes(bytes[at + VECTORS as usize + 16 * r..][..16].try_into().unwrap())
            };
            let (o, t) = (of(ours, at), of(theirs, at));
            if o != t {
                let before = of(&p.image, (p.states - LOAD) as usize + at);
                differences += &format!("v{r}: {o:#034x}, qemu {t:#034x}, before {before:#034x}\n");
            }
        }
        assert!(differences.is_empty(), "seed {seed}, sequence {i}:\n{differences}{}", listing(sequence));
    }
    assert!(ours == theirs, "seed {seed}: memory around {:#x} differs", p.window);
}

fn differential(seed: u64, exts: &[Ext], count: usize, len: usize) {
    let p = program(seed, exts, count, len);
    let Some(theirs) = run_qemu(&p, seed) else {
        eprintln!("skipped: there is no qemu-riscv64");
        return;
    };
    let max_insns = Rng::new(seed).pick(&[1, 5, 64, 500]);
    compare(&p, seed, &run_here(&p, max_insns), &theirs);
}

const INTEGER: &[Ext] =
    &[Ext::I, Ext::M, Ext::Zba, Ext::Zbb, Ext::Zbc, Ext::Zbs, Ext::Zicond, Ext::C, Ext::Zcb];

#[test]
fn integer_programs() {
    for seed in 1..5 {
        differential(seed, INTEGER, 400, 50);
    }
}

#[test]
fn memory_programs() {
    let exts = [Ext::I, Ext::A, Ext::Zacas, Ext::Zicboz, Ext::Zicbop, Ext::Zimop, Ext::Zcmop, Ext::Zifencei];
    for seed in 11..15 {
        differential(seed, &exts, 400, 50);
    }
}

#[test]
fn float_programs() {
    for (seed, exts) in [
        (21, &[Ext::F][..]),
        (22, &[Ext::D]),
        (23, &[Ext::Zfh]),
        (24, &[Ext::Zfa]),
        (25, &[Ext::F, Ext::D, Ext::Zfh, Ext::Zfa, Ext::C]),
        (26, &[Ext::F, Ext::D, Ext::Zfh, Ext::Zfa, Ext::I]),
    ] {
        differential(seed, exts, 400, 40);
    }
}

#[test]
fn mixed_programs() {
    let mut exts = INTEGER.to_vec();
    exts.extend([Ext::A, Ext::F, Ext::D, Ext::Zfh, Ext::Zfa]);
    for seed in 31..35 {
        differential(seed, &exts, 300, 80);
    }
}

#[test]
fn vector_programs() {
    for seed in 41..45 {
        differential(seed, &[Ext::V], 300, 40);
    }
    let mut exts = INTEGER.to_vec();
    exts.extend([Ext::A, Ext::F, Ext::D, Ext::Zfh, Ext::Zfa, Ext::V]);
    for seed in 45..47 {
        differential(seed, &exts, 300, 80);
    }
}

/// `PLINTH_FUZZ_INSNS`: how many instructions; `PLINTH_FUZZ_SEED`: where to start.
#[test]
#[ignore = "long"]
fn vector_programs_for_long() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
    };
    let insns = number("PLINTH_FUZZ_INSNS", 1_000_000);
    let from = number("PLINTH_FUZZ_SEED", 1000);
    for seed in from..from + insns.div_ceil(20_000) {
        differential(seed, &[Ext::V], 400, 50);
    }
}
