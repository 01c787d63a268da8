//! Automation of the project: `cargo xtask --help`.

mod docs;
mod fuzz;
mod guest;
mod images;
mod layers;
mod made_by;
mod perf;
mod riscv_tests;
mod spec;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

const HELP: &str = "\
Automation of the project.

Usage: cargo xtask <COMMAND>

Commands:
  layers   Check that crates import downwards only and that unsafe code is where it may be
  spec     Check that every promise in SPECIFICATION.md names a test that exists, or is pending
  docs     Check that the documentation's paths exist and its quotations are there
  guest    Make the test guest, or find it in the cache, and print its parts: guest [ARCH]
  fuzz     Run the fuzz targets, each for 60 seconds: fuzz [TARGET] [--seconds N | --runs N]
  riscv-tests  Run the official RISC-V tests on both tiers: riscv-tests DIR; see `cargo xtask riscv-tests --help`
  images   Read other programs' disk images with Plinth and qemu-img; see `cargo xtask images --help`
  perf     Measure Plinth beside QEMU and write docs/performance.md; see `cargo xtask perf --help`
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = root();
    let result = match args.first().map(String::as_str) {
        Some("layers") => layers::check(&root),
        Some("spec") => spec::check(&root),
        Some("docs") => docs::check(&root),
        Some("guest") => guest::run(&root, &args[1..]),
        Some("fuzz") => fuzz::run(&root, &args[1..]),
        Some("riscv-tests") => riscv_tests::run(&root, &args[1..]),
        Some("images") => images::run(&root, &args[1..]),
        Some("perf") => perf::run(&root, &args[1..]),
        Some("--help" | "-h" | "help") | None => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => Err(vec![format!("no command `{other}`; see `cargo xtask --help`")]),
    };
    match result {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for p in problems {
                eprintln!("error: {p}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The repository's root: the parent of this crate's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// What cargo knows of the packages of a workspace.
fn packages(root: &Path, args: &[&OsStr]) -> Result<Vec<Value>, Vec<String>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--format-version", "1"]).args(args).current_dir(root);
    let out = cargo.output().map_err(|e| vec![format!("cannot run cargo metadata: {e}")])?;
    let json: Value = serde_json::from_slice(&out.stdout).map_err(|e| {
        vec![format!("cargo metadata gave no JSON: {e}; {}", String::from_utf8_lossy(&out.stderr))]
    })?;
    Ok(json["packages"].as_array().cloned().unwrap_or_default())
}
