//! The figures: what each one runs in the guest and what it makes of the time that took.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::console::{Console, Moment};
use super::emulator::{Emulator, Launch, Programs};
use super::material::Material;
use super::process::resident;

/// A machine that has not ended by then is stopped, and the figure fails.
const LIMIT: Duration = Duration::from_secs(900);
const MIB: f64 = (1 << 20) as f64;

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// What the project wants of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// At least so many times as good as QEMU.
    Times(f64),
    /// At most this value.
    AtMost(f64),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What `PERF-BEGIN` names, or a name of its own.
    pub key: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub better: Better,
    pub aim: Aim,
}

/// A figure: one start of the machine that gives one or more rows.
pub struct Figure {
    pub name: &'static str,
    pub rows: &'static [Row],
    /// RVVM takes part, and Plinth has to be at least as good.
    pub with_rvvm: bool,
    measure: fn(&Context<'_>, Emulator) -> Result<Samples, String>,
}

impl Figure {
    /// Starts the machine once.
    pub fn measure(&self, context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
        (self.measure)(context, emulator)
    }
}

/// What one start of the machine has shown.
#[derive(Debug, Default)]
pub struct Samples {
    /// By the rows' keys.
    pub values: BTreeMap<&'static str, Sample>,
    /// Checksums of what the guest's programs printed, by the same keys.
    pub checksums: BTreeMap<&'static str, String>,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// In the row's unit.
    pub value: f64,
    /// CPU seconds that the emulator took for it, if that says anything.
    pub cpu: Option<f64>,
}

/// What all figures share.
pub struct Context<'a> {
    pub programs: &'a Programs,
    pub material: &'a Material,
    /// A fraction of the work, for a look and not for the table.
    pub quick: bool,
}

const fn row(key: &'static str, title: &'static str, unit: &'static str, better: Better, aim: Aim) -> Row {
    Row { key, title, unit, better, aim }
}

const fn work_row(key: &'static str, title: &'static str) -> Row {
    row(key, title, "s", Better::Lower, Aim::Times(1.0))
}

/// The name of the figure whose rows have a geometric mean.
pub const WORK: &str = "work";

/// All figures, in the order of the table.
pub const FIGURES: &[Figure] = &[
    Figure {
        name: "boot",
        rows: &[row("boot", "boot to the first line of init", "s", Better::Lower, Aim::Times(1.0))],
        with_rvvm: true,
        measure: boot,
    },
    Figure {
        name: "coremark",
        rows: &[row("coremark", "CoreMark", "iterations/s", Better::Higher, Aim::Times(1.8))],
        with_rvvm: true,
        measure: coremark,
    },
    Figure {
        name: "arrays",
        rows: &[
            row("padded", "three arrays, padded", "s", Better::Lower, Aim::Times(1.0)),
            row("conflict", "three arrays at a stride of 8 MiB", "s", Better::Lower, Aim::Times(1.0)),
            row("factor", "stride of 8 MiB against padded", "times", Better::Lower, Aim::AtMost(1.5)),
        ],
        with_rvvm: false,
        measure: arrays,
    },
    Figure {
        name: WORK,
        rows: &[
            work_row("lua", "lua5.4"),
            work_row("sqlite", "sqlite3"),
            work_row("openssl", "openssl dgst -sha256"),
            work_row("python3", "python3"),
            work_row("xz", "xz -2"),
            work_row("zstd", "zstd -9"),
            work_row("gcc", "gcc -O2"),
            work_row("7z", "7z a -mx3"),
        ],
        with_rvvm: false,
        measure: work,
    },
    Figure {
        name: "7z-b",
        rows: &[row("7z-b", "7z b, rating", "MIPS", Better::Higher, Aim::Times(1.0))],
        with_rvvm: false,
        measure: seven_zip,
    },
    Figure {
        name: "disk",
        rows: &[
            row(
                "sequential",
                "virtio-blk, fio, sequential read of 1 MiB",
                "MiB/s",
                Better::Higher,
                Aim::Times(1.0),
            ),
            row(
                "random",
                "virtio-blk, fio, random read of 4 KiB",
                "reads/s",
                Better::Higher,
                Aim::Times(1.0),
            ),
        ],
        with_rvvm: false,
        measure: disk,
    },
    Figure {
        name: "net",
        rows: &[row("download", "download over the user network", "MiB/s", Better::Higher, Aim::Times(1.0))],
        with_rvvm: false,
        measure: net,
    },
    Figure {
        name: "memory",
        rows: &[row(
            "memory",
            "memory beyond the guest's, after boot",
            "MiB",
            Better::Lower,
            Aim::AtMost(64.0),
        )],
        with_rvvm: false,
        measure: memory,
    },
];

fn start(
    context: &Context<'_>,
    emulator: Emulator,
    job: &str,
    argument: u64,
    memory: u64,
) -> Result<Console, String> {
    let material = context.material;
    let launch = Launch {
        kernel: &material.kernel,
        initrd: &material.initrd,
        cmdline: format!("console=ttyS0 quiet perf.job={job} perf.arg={argument}"),
        memory,
        // RVVM has no virtio disk.
        disk: (job != "boot" && job != "coremark").then_some(&*material.disk),
        network: job == "net",
    };
    Console::start(context.programs.command(emulator, &launch)?, LIMIT)
}

fn seconds(from: Moment, to: Moment) -> Sample {
    let cpu = to.cpu.saturating_sub(from.cpu);
    Sample { value: to.at.duration_since(from.at).as_secs_f64(), cpu: Some(cpu.as_secs_f64()) }
}

/// Reads the console to its end and gives what was measured between markers: seconds, or the number that the
/// measured program itself gave.
fn marked(console: &mut Console, rows: &[Row]) -> Result<Samples, String> {
    let mut samples = Samples::default();
    let mut begun: Option<Moment> = None;
    while let Some(line) = console.line()? {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        let key = words.get(1).and_then(|name| rows.iter().map(|r| r.key).find(|key| key == name));
        match (words.first().copied(), key) {
            (Some("PERF-BEGIN"), Some(_)) => begun = Some(line.moment),
            (Some("PERF-END"), Some(key)) => {
                let from = begun.take().ok_or_else(|| console.failure("a marker is missing"))?;
                if words.get(2) != Some(&"0") {
                    while console.line()?.is_some() {}
                    return Err(console.failure(&format!("{key} failed in the guest")));
                }
                samples.values.insert(key, seconds(from, line.moment));
            }
            (Some("PERF-VALUE"), Some(key)) => {
                let value = words.get(2).and_then(|text| text.parse().ok());
                let value: f64 = value.ok_or_else(|| console.failure(&format!("{key} gave no number")))?;
                // How much was done in that time is the program's own affair.
                samples.values.insert(key, Sample { value, cpu: None });
            }
            (Some("PERF-SUM"), Some(key)) => {
                samples.checksums.insert(key, words[2..].join(" "));
            }
            (Some("PERF-MISSING"), _) => {
                return Err(format!("the guest's disk lacks a program: {}", line.text));
            }
            (Some("PERF-DONE"), _) => return Ok(samples),
            _ => {}
        }
    }
    Err(console.failure("the guest ended before its work was done"))
}

/// Turns the seconds of `key` into `amount` a second.
fn rate(samples: &mut Samples, key: &str, amount: f64) {
    if let Some(sample) = samples.values.get_mut(key) {
        sample.value = amount / sample.value;
    }
}

fn find(name: &str) -> &'static [Row] {
    FIGURES.iter().find(|f| f.name == name).map_or(&[], |f| f.rows)
}

fn boot(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    let mut console = start(context, emulator, "boot", 0, 512)?;
    let line = console.wait_for("PLINTH-INIT-OK")?;
    let mut samples = Samples::default();
    samples.values.insert("boot", seconds(console.started, line.moment));
    Ok(samples)
}

fn coremark(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    if !context.material.coremark {
        return Err("it needs --coremark PATH: a static riscv64 build of eembc/coremark".into());
    }
    let iterations: u32 = if context.quick { 4_000 } else { 10_000 };
    let mut console = start(context, emulator, "coremark", iterations.into(), 512)?;
    let mut samples = marked(&mut console, find("coremark"))?;
    // It prints its own times, so the outputs differ.
    samples.checksums.clear();
    rate(&mut samples, "coremark", iterations.into());
    Ok(samples)
}

fn arrays(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    let passes = if context.quick { 64 } else { 256 };
    let mut console = start(context, emulator, "arrays", passes, 512)?;
    let mut samples = marked(&mut console, find("arrays"))?;
    if let (Some(padded), Some(conflict)) = (samples.values.get("padded"), samples.values.get("conflict")) {
        let factor = Sample { value: conflict.value / padded.value, cpu: None };
        samples.values.insert("factor", factor);
    }
    Ok(samples)
}

fn work(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    let mut console = start(context, emulator, "work", 0, 1024)?;
    marked(&mut console, find(WORK))
}

/// What 7-Zip's benchmark says.
fn seven_zip(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    // The logarithm of the dictionary's size. The default is 25, with which QEMU works for minutes.
    const DICTIONARY: u64 = 18;
    let mut console = start(context, emulator, "7z-b", DICTIONARY, 1024)?;
    let mut samples = marked(&mut console, find("7z-b"))?;
    // It prints its own times, so the outputs differ.
    samples.checksums.clear();
    Ok(samples)
}

fn disk(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    let mebibytes: u32 = if context.quick { 64 } else { 512 };
    warm(&context.material.disk, mebibytes)?;
    let mut console = start(context, emulator, "disk", mebibytes.into(), 512)?;
    let mut samples = marked(&mut console, find("disk"))?;
    // As above.
    samples.checksums.clear();
    Ok(samples)
}

/// Brings the start of a file into the host's page cache: the host's own disk is not what is compared.
fn warm(path: &Path, mebibytes: u32) -> Result<(), String> {
    let copy =
        || std::io::copy(&mut File::open(path)?.take(u64::from(mebibytes) << 20), &mut std::io::sink());
    copy().map(drop).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn net(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    let mebibytes: u32 = if context.quick { 32 } else { 256 };
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|e| format!("cannot listen: {e}"))?;
    let port = listener.local_addr().map_err(|e| format!("cannot listen: {e}"))?.port();
    // One download is all it serves; if the guest never comes, the thread ends with the process.
    thread::spawn(move || listener.accept().map(|(stream, _)| serve(stream, mebibytes)));
    let mut console = start(context, emulator, "net", port.into(), 512)?;
    let mut samples = marked(&mut console, find("net"))?;
    rate(&mut samples, "download", mebibytes.into());
    Ok(samples)
}

/// Answers one HTTP request with zeros. A guest that leaves early shows in its own exit status.
fn serve(mut stream: TcpStream, mebibytes: u32) -> std::io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone()?.take(1 << 16));
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = u64::from(mebibytes) << 20;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn memory(context: &Context<'_>, emulator: Emulator) -> Result<Samples, String> {
    const RAM: u64 = 512;
    let mut console = start(context, emulator, "memory", 0, RAM)?;
    console.wait_for("PERF-IDLE")?;
    thread::sleep(Duration::from_secs(1));
    let found = resident(console.pid(), RAM << 20)?;
    let mut samples = Samples::default();
    samples.values.insert("memory", Sample { value: found.rest as f64 / MIB, cpu: None });
    Ok(samples)
}
