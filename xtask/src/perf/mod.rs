//! `cargo xtask perf`: Plinth's speed and memory beside its peers', taken in alternation.

mod console;
mod cpio;
mod disk;
mod emulator;
mod figures;
mod material;
mod process;
mod report;
mod rvvm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use emulator::{Emulator, Programs};
use figures::{Context, FIGURES, Figure};
use material::Material;
use report::{Line, Round};
use rvvm::Rvvm;

const HELP: &str = "\
Measures Plinth and its peers in alternation and writes the table of docs/performance.md.

Usage: cargo xtask perf [OPTIONS]
       cargo xtask perf disk [OPTIONS]    the disk tool beside qemu-img; `perf disk --help` says more

Options:
  --only NAME       Take this figure only; repeatable
  --runs N          Rounds: starts of each emulator for each figure [default: 5]
  --quick           One round with less work, for a look: nothing is written
  --plinth PATH     Program to measure [default: $PLINTH or target/release/plinth]
  --qemu PATH       Its peer [default: qemu-system-riscv64]
  --rvvm PATH       A second peer, built from LekKit/RVVM, for boot and CoreMark [default: $RVVM]
  --firmware PATH   OpenSBI's fw_jump.bin, which RVVM needs [default: that of Debian's package opensbi]
  --coremark PATH   A static riscv64 build of eembc/coremark; without it that figure is left out

Figures: ";

/// Options with a value.
const OPTIONS: [&str; 7] = ["--only", "--runs", "--plinth", "--qemu", "--rvvm", "--firmware", "--coremark"];

/// The command line.
struct Options {
    only: Vec<String>,
    runs: usize,
    quick: bool,
    plinth: PathBuf,
    qemu: PathBuf,
    rvvm: Option<PathBuf>,
    firmware: PathBuf,
    coremark: Option<PathBuf>,
}

impl Options {
    fn parse(root: &Path, args: &[String]) -> Result<Self, String> {
        let plinth = std::env::var_os("PLINTH").map(PathBuf::from);
        let mut options = Self {
            only: Vec::new(),
            runs: 5,
            quick: false,
            plinth: plinth.unwrap_or_else(|| root.join("target/release/plinth")),
            qemu: "qemu-system-riscv64".into(),
            rvvm: std::env::var_os("RVVM").map(PathBuf::from),
            firmware: "/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_jump.bin".into(),
            coremark: None,
        };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            if name == "--quick" {
                options.quick = true;
                continue;
            }
            if !OPTIONS.contains(&name.as_str()) {
                return Err(format!("no option `{name}`; see `cargo xtask perf --help`"));
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--only" if FIGURES.iter().any(|f| f.name == value) => options.only.push(value.clone()),
                "--only" => return Err(format!("no figure `{value}`; there are {}", names())),
                "--runs" => {
                    options.runs = value
                        .parse()
                        .ok()
                        .filter(|n| *n > 0)
                        .ok_or_else(|| format!("--runs {value}: it has to be a number above zero"))?;
                }
                "--plinth" => options.plinth = value.into(),
                "--qemu" => options.qemu = value.into(),
                "--rvvm" => options.rvvm = Some(value.into()),
                "--firmware" => options.firmware = value.into(),
                _ => options.coremark = Some(value.into()),
            }
        }
        if options.quick {
            options.runs = 1;
        }
        Ok(options)
    }

    fn wants(&self, figure: &Figure) -> bool {
        match figure.name {
            "coremark" if self.coremark.is_none() && self.only.is_empty() => false,
            name => self.only.is_empty() || self.only.iter().any(|o| o == name),
        }
    }
}

fn names() -> String {
    FIGURES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

/// Runs the command.
///
/// # Errors
/// One line for each figure that could not be taken, and for each result that differs between Plinth
/// and its peer.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    if let Some(("disk", rest)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return disk::run(root, rest);
    }
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return Ok(format!("{HELP}{}", names()));
    }
    let options = Options::parse(root, args).map_err(|e| vec![e])?;
    let folder = root.join("target/perf");
    let rvvm = options.rvvm.clone().map(|program| Rvvm {
        program,
        firmware: options.firmware.clone(),
        folder: folder.clone(),
    });
    let programs = Programs { plinth: options.plinth.clone(), qemu: options.qemu.clone(), rvvm };
    for emulator in programs.emulators() {
        let version = programs.version(emulator).map_err(|e| vec![e])?;
        eprintln!("{}: {version}", emulator.name());
    }
    let material = Material::prepare(root, &folder, &programs.plinth, options.coremark.as_deref())
        .map_err(|e| vec![e])?;
    let date = report::today().map_err(|e| vec![e])?;
    let context = Context { programs: &programs, material: &material, quick: options.quick };

    let mut problems = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for figure in FIGURES.iter().filter(|f| options.wants(f)) {
        let rounds = take(&context, figure, options.runs, &mut problems);
        problems.extend(report::differences(figure, &rounds));
        let new = report::lines(figure, &rounds, &date);
        eprintln!("{}", report::table(&new));
        lines.extend(new);
        // Each one at once: a run takes long, and what is measured is not to be lost.
        if !options.quick {
            report::write(root, lines.clone(), FIGURES, &programs, &material).map_err(|e| vec![e])?;
        }
    }
    if problems.is_empty() { Ok(report::table(&lines)) } else { Err(problems) }
}

/// Takes a figure in rounds. Who is first changes, so that a drift of the host's speed favours none.
fn take(context: &Context<'_>, figure: &Figure, runs: usize, problems: &mut Vec<String>) -> Vec<Round> {
    let mut rounds = Vec::new();
    for number in 0..runs {
        let mut round: Round = BTreeMap::new();
        let mut order = context.programs.emulators();
        order.retain(|e| *e != Emulator::Rvvm || figure.with_rvvm);
        let count = order.len();
        order.rotate_left(number % count);
        for emulator in order {
            eprintln!("{} with {}, round {} of {runs}", figure.name, emulator.name(), number + 1);
            match figure.measure(context, emulator) {
                Ok(samples) => drop(round.insert(emulator, samples)),
                Err(e) => problems.push(format!("{} with {}: {e}", figure.name, emulator.name())),
            }
        }
        rounds.push(round);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Options::parse(Path::new("/root"), &args)
    }

    #[test]
    fn options() {
        let options = parse(&["--only", "boot", "--runs", "3", "--plinth", "p"]).unwrap();
        assert_eq!((options.runs, options.quick), (3, false));
        assert_eq!(options.plinth, Path::new("p"));
        assert!(FIGURES.iter().filter(|f| options.wants(f)).map(|f| f.name).eq(["boot"]));
        assert_eq!(parse(&["--quick"]).unwrap().runs, 1);
    }

    #[test]
    fn wrong_options_are_told() {
        for wrong in [&["--only", "x"][..], &["--runs", "0"], &["--runs"], &["--fast"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
