//! The decoder and the disassembler against `riscv64-linux-gnu-objdump`. Without it there is nothing to
//! compare with, and the test says so.

use std::fmt::Write;
use std::process::Command;

use plinth_isa_riscv::decode::Decoder;
use plinth_isa_riscv::disasm;
use plinth_isa_riscv::generate::Rng;
use plinth_isa_riscv::table::{Ext, rows};

const ARCH: &str = "rv64gcv_zba_zbb_zbc_zbs_zfh_zicbom_zicboz_zicbop_zawrs_svinval";
/// Extensions newer than binutils 2.40.
const NEWER: [Ext; 6] = [Ext::Zfa, Ext::Zicond, Ext::Zacas, Ext::Zimop, Ext::Zcb, Ext::Zcmop];
/// Conversions without rounding, for which binutils wants a rounding mode of 0.
const EXACT: [&str; 5] = ["fcvt.d.s", "fcvt.d.w", "fcvt.d.wu", "fcvt.s.h", "fcvt.d.h"];
/// What binutils knows with these extensions and is not ours: the hypervisor extension, debug mode, user-mode
/// interrupts of old, encodings that are reserved for RV64.
const FOREIGN: [&str; 5] = ["hfence.", "hlv", "hsv", "hinval.", "dret"];

fn have_tools() -> bool {
    ["as", "objdump"]
        .iter()
        .all(|tool| Command::new(format!("riscv64-linux-gnu-{tool}")).arg("--version").output().is_ok())
}

/// Address, bits and text of every instruction, as binutils sees them.
fn binutils(words: &[u32], name: &str) -> Vec<(u64, u32, String)> {
    let dir = std::env::temp_dir().join(format!("plinth-objdump-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut source = String::from(".option norelax\n");
    for word in words {
        writeln!(source, ".insn {word:#x}").unwrap();
    }
    std::fs::write(dir.join("a.s"), source).unwrap();
    let assembled = Command::new("riscv64-linux-gnu-as")
        .arg(format!("-march={ARCH}"))
        .args(["-o", "a.o", "a.s"])
        .current_dir(&dir)
        .status()
        .unwrap();
    assert!(assembled.success());
    let listing = Command::new("riscv64-linux-gnu-objdump")
        .args(["-d", "-z", "-M", "no-aliases", "a.o"])
        .current_dir(&dir)
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    listing.lines().filter_map(line).collect()
}

/// Parses `  10:<tab>00b50533  <tab>add<tab>a0,a0,a1 # comment`.
fn line(line: &str) -> Option<(u64, u32, String)> {
    let (at, rest) = line.trim_start().split_once(":\t")?;
    let (bits, text) = rest.split_once('\t')?;
    let text = text.split('#').next()?.split('<').next()?.trim().replace('\t', " ");
    Some((u64::from_str_radix(at, 16).ok()?, u32::from_str_radix(bits.trim(), 16).ok()?, text))
}

/// Whether texts differ for a reason that is none of our mistakes.
fn excused(ours: &str, theirs: &str, ext: Option<Ext>) -> bool {
    let unknown = [".2byte", ".4byte"].iter().any(|p| theirs.starts_with(p));
    let mnemonic = |s: &str| s.split(' ').next().unwrap_or_default().to_owned();
    let (o, t) = (mnemonic(ours), mnemonic(theirs));
    match ext {
        // Reserved encodings: binutils decodes two.
        None => {
            unknown
                || t == "c.unimp"
                || theirs == "c.addi16sp sp,0"
                || FOREIGN.iter().any(|p| t.starts_with(p))
        }
        Some(ext) if NEWER.contains(&ext) => true,
        // Fields that are to be ignored; rounding modes of exact conversions.
        Some(_) if o.starts_with("fence") || EXACT.contains(&&*o) => unknown || o == t,
        // CSRs that we print as numbers.
        Some(Ext::Zicsr) => o == t,
        // Hints.
        Some(_) => t == format!("{o}64") || o == "c.nop" && t == "c.addi" || o == "pause" && t == "fence",
    }
}

fn compare(words: &[u32], name: &str) {
    if !have_tools() {
        eprintln!("skipped: there is no riscv64-linux-gnu-objdump");
        return;
    }
    let theirs = binutils(words, name);
    assert_eq!(theirs.len(), words.len());
    let mut differences = String::new();
    let mut equal = 0;
    for (at, bits, theirs) in &theirs {
        let d = Decoder::new().decode(*bits);
        let ours = disasm::text(&d, *at).replace("0x", "");
        let theirs = theirs.replace("0x", "");
        if ours == theirs {
            equal += 1;
        } else if !excused(&ours, &theirs, d.row.map(|r| r.ext)) {
            writeln!(differences, "{bits:#010x}: {ours:40} | {theirs}").unwrap();
        }
    }
    assert!(differences.is_empty(), "ours | binutils\n{differences}");
    assert!(equal * 5 > words.len(), "{equal} of {} equal", words.len());
}

#[test]
fn compressed_instructions_agree() {
    let words: Vec<u32> = (0..0x1_0000).filter(|w| w & 3 != 3).collect();
    compare(&words, "c");
}

#[test]
fn all_rows_agree() {
    let mut rng = Rng::new(5);
    let mut words = Vec::new();
    for row in rows().filter(|r| r.bytes() == 4) {
        words.extend((0..30).map(|_| row.bits | rng.next() as u32 & !row.mask));
    }
    compare(&words, "rows");
}

#[test]
fn random_words_agree() {
    let mut rng = Rng::new(6);
    // What ends in 11111 is longer than 32 bits.
    let words: Vec<u32> = (0..20_000).map(|_| rng.next() as u32 | 3).filter(|w| w & 31 != 31).collect();
    compare(&words, "random");
}
