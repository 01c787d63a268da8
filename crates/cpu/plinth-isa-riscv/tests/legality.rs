//! Which vector instructions are legal, as `qemu-riscv64` sees it. Without it or without
//! `riscv64-linux-gnu-gcc`, there is nothing to compare with, and the test says so.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use plinth_isa_riscv::disasm;
use plinth_isa_riscv::generate::Rng;
use plinth_isa_riscv::table::{Ext, Sem, rows};
use plinth_isa_riscv::vector::sem::VectorSem;
use plinth_isa_riscv::vector::{is_legal, requested};

/// Instructions for each row of the table.
const PER_ROW: usize = 400;

/// Reading a register with two widths is reserved (5.2). QEMU 10.0 looks for that, but not where the
/// destination is a mask or a scalar, nor in stores and `vcompress`.
fn qemu_reads_two_widths(sem: VectorSem, bits: u32) -> bool {
    use VectorSem::*;
    let named = |lsb: u32| bits >> lsb & 31;
    let data_is_mask = bits >> 25 & 1 == 0 && [7, 15, 20].map(named).contains(&0);
    match sem {
        Carry { .. } | CarryOut { .. } | Compare(_) | FloatCompare { .. } => data_is_mask,
        Reduce(..) | FloatReduce(..) | Compress => data_is_mask || named(15).abs_diff(named(20)) < 8,
        Store(..) => data_is_mask || named(7).abs_diff(named(20)) < 8,
        _ => false,
    }
}

fn answers(records: &[u8]) -> Option<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("plinth-legal-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/legal.c");
    let made =
        Command::new("riscv64-linux-gnu-gcc").args(["-O1", "-static", "-o"]).arg(&path).arg(source).status();
    if !made.ok()?.success() {
        return None;
    }
    let child = Command::new("qemu-riscv64")
        .args(["-cpu", "max"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.ok()?;
    let mut stdin = child.stdin.take()?;
    let records = records.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&records));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn legality_agrees_with_qemu() {
    let mut rng = Rng::new(3);
    let mut cases = Vec::new();
    for row in rows().filter(|row| row.ext == Ext::V) {
        let Sem::Vector(sem) = row.sem else { continue };
        if sem == VectorSem::SetVl {
            continue;
        }
        for _ in 0..PER_ROW {
            let config = requested(u64::from(rng.below(64)));
            let mut bits = row.bits | rng.next() as u32 & !row.mask;
            for lsb in [7, 15, 20] {
                // Aligned and equal registers more often than chance has them.
                let field = 31 << lsb & !row.mask;
                match rng.below(4) {
                    0 => bits &= !(7 << lsb) | !field,
                    1 => bits = bits & !field | row.bits & field | (bits >> 7 & 31) << lsb & field,
                    _ => {}
                }
            }
            if matches!(sem, VectorSem::Load(..) | VectorSem::Store(..)) {
                bits = bits & !(31 << 15) | 11 << 15;
                if rng.below(2) == 0 {
                    bits = bits & !(7 << 29) | row.bits & 7 << 29;
                }
            }
            if row.format.text.starts_with('d') {
                bits = bits & !(31 << 7) | 10 << 7;
            }
            if row.matches(bits) {
                cases.push((row, sem, bits, config.with_vstart(u64::from(rng.below(8) == 0))));
            }
        }
    }
    let mut records = Vec::new();
    for (_, _, bits, config) in &cases {
        records.extend(config.vtype().to_le_bytes());
        records.extend((config.vstart() as u32).to_le_bytes());
        records.extend(bits.to_le_bytes());
    }
    let Some(theirs) = answers(&records) else {
        eprintln!("skipped: there is no qemu-riscv64 or riscv64-linux-gnu-gcc");
        return;
    };
    assert_eq!(theirs.len(), cases.len());
    let mut differences = String::new();
    let (mut legal, mut count) = (0, 0);
    for (&(_, sem, bits, config), theirs) in cases.iter().zip(theirs) {
        let ours = is_legal(sem, bits, config);
        legal += u64::from(ours);
        if ours == (theirs != 0) && (ours || !qemu_reads_two_widths(sem, bits)) {
            count += 1;
            let text = disasm::disassemble(&bits.to_le_bytes(), 0).0;
            let verdict = if ours { "legal here" } else { "illegal here" };
            writeln!(
                differences,
                "{text:36} vtype {:#x} vstart {}: {verdict}",
                config.vtype(),
                config.vstart()
            )
            .unwrap();
        }
    }
    assert!(differences.is_empty(), "{count} differ\n{differences}");
    assert!(legal * 10 > cases.len() as u64, "{legal} of {} are legal", cases.len());
}
