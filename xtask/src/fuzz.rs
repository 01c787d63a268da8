//! Runs the fuzz targets of `fuzz/` one after the other.

use std::path::Path;
use std::process::Command;

/// Runs a fuzz target for this long where the command line does not say.
const SECONDS: u64 = 60;
const RUSTFLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// libFuzzer's instrumentation of basic blocks, for the project's own crates: inputs that begin with sound structures
/// need not guess magic numbers, for which comparisons are instrumented, nor find ways through compressors, and either
/// doubles the time.
const COVERAGE: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=2",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

/// With the option `--asan`: most of the code has no `unsafe`, and is fuzzed four times as fast without.
const ASAN: &str = " -Zsanitizer=address";
/// Targets that read image files, which may not have more memory than this (MiB).
const IMAGES: [&str; 12] =
    ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "parallels", "qed", "cloop", "dmg", "luks", "ovf", "disk_head"];
const IMAGE_MEMORY: u32 = 256;
const MEMORY: u32 = 2048;

/// What the command line asks for.
struct Options {
    target: Option<String>,
    seconds: u64,
    /// Executions instead of a time.
    runs: Option<u64>,
    asan: bool,
}

impl Options {
    /// How long, in libFuzzer's words and in ours.
    fn length(&self) -> (String, String) {
        match self.runs {
            Some(n) => (format!("-runs={n}"), format!("{n} runs")),
            None => (format!("-max_total_time={}", self.seconds), format!("{} s", self.seconds)),
        }
    }
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options { target: None, seconds: SECONDS, runs: None, asan: false };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let value = args.next().ok_or("--seconds needs a number")?;
                options.seconds = value.parse().map_err(|e| format!("--seconds {value}: {e}"))?;
            }
            "--runs" => {
                let value = args.next().ok_or("--runs needs a number")?;
                options.runs = Some(value.parse().map_err(|e| format!("--runs {value}: {e}"))?);
            }
            "--asan" => options.asan = true,
            name if !name.starts_with('-') && options.target.is_none() => options.target = Some(name.into()),
            other => return Err(format!("no option `{other}`; {USAGE}")),
        }
    }
    Ok(options)
}

const USAGE: &str = "`cargo xtask fuzz [TARGET] [--seconds N | --runs N] [--asan]`";

/// Names of the targets: the files of `fuzz/fuzz_targets`.
pub fn targets(root: &Path) -> Vec<String> {
    let files = crate::docs::files(&root.join("fuzz/fuzz_targets"), "rs");
    files.iter().filter_map(|f| Some(f.file_stem()?.to_str()?.to_owned())).collect()
}

/// `cargo xtask fuzz [TARGET] [--seconds N | --runs N] [--asan]`: all targets, or one, each for N seconds or
/// executions. libFuzzer prints how many there were, the peak of memory and the slowest one.
///
/// # Errors
/// The nightly toolchain is missing, a target does not build, or one found something: its input is kept in
/// `fuzz/artifacts`.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    let options = options(args).map_err(|e| vec![e])?;
    let all = targets(root);
    let chosen: Vec<&String> =
        all.iter().filter(|t| options.target.as_ref().is_none_or(|wanted| wanted == *t)).collect();
    if chosen.is_empty() {
        let wanted = options.target.unwrap_or_default();
        return Err(vec![format!("no fuzz target `{wanted}`; there are: {}", all.join(", "))]);
    }
    let host = nightly_host()?;
    let (rustflags, folder) = if options.asan {
        (format!("{RUSTFLAGS}{ASAN}"), "target/fuzz-asan")
    } else {
        (RUSTFLAGS.to_owned(), "target/fuzz")
    };
    let target_dir = root.join(folder);
    let mut build = Command::new("rustup");
    build.args(["run", "nightly", "cargo", "build", "--release", "--target", &host, "--manifest-path"]);
    build.arg(root.join("fuzz/Cargo.toml")).arg("--target-dir").arg(&target_dir).arg("-Zprofile-rustflags");
    for name in own_crates(root)? {
        build.arg("--config").arg(format!("profile.release.package.{name}.rustflags={COVERAGE:?}"));
    }
    build.env("RUSTFLAGS", rustflags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    for name in &chosen {
        build.args(["--bin", name]);
    }
    succeed("building the fuzz targets", &mut build)?;
    for name in &chosen {
        let (corpus, artifacts) =
            (root.join("fuzz/corpus").join(name), root.join("fuzz/artifacts").join(name));
        for dir in [&corpus, &artifacts] {
            std::fs::create_dir_all(dir).map_err(|e| vec![format!("{}: {e}", dir.display())])?;
        }
        let (limit, how_long) = options.length();
        println!("fuzz: {name} for {how_long}");
        let memory = if IMAGES.contains(&name.as_str()) && !options.asan { IMAGE_MEMORY } else { MEMORY };
        let mut run = Command::new(target_dir.join(&host).join("release").join(name));
        if IMAGES.contains(&name.as_str()) && *name != "disk_head" {
            // Changes to a small image and a script: longer ones only take longer.
            run.arg("-max_len=512");
        }
        run.arg(limit)
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-rss_limit_mb={memory}"))
            // Counters are hit or not: how often says little, and takes a third of the time.
            .args(["-timeout=10", "-use_counters=0"])
            .args(["-verbosity=0", "-print_funcs=0", "-print_final_stats=1"])
            .arg(&corpus);
        succeed(&format!("fuzz target {name}"), &mut run)?;
    }
    Ok(format!("fuzz: {} targets, {} each, nothing found", chosen.len(), options.length().1))
}

/// The crates of the project that the targets use.
fn own_crates(root: &Path) -> Result<Vec<String>, Vec<String>> {
    let manifest = root.join("fuzz/Cargo.toml");
    let packages = crate::packages(root, &["--manifest-path".as_ref(), manifest.as_os_str()])?;
    let own = packages.iter().filter(|p| p["source"].is_null()).filter_map(|p| p["name"].as_str());
    Ok(own.filter(|n| *n != "plinth-fuzz").map(str::to_owned).collect())
}

fn succeed(what: &str, command: &mut Command) -> Result<(), Vec<String>> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(vec![format!("{what}: {status}")]),
        Err(e) => Err(vec![format!("{what}: cannot run {}: {e}", command.get_program().display())]),
    }
}

/// The nightly compiler's host triple.
fn nightly_host() -> Result<String, Vec<String>> {
    let missing = || {
        vec![
            "fuzzing needs the nightly toolchain, and that is not installed".to_owned(),
            "install it with: rustup toolchain install nightly --profile minimal".to_owned(),
        ]
    };
    let out =
        Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]).output().map_err(|_| missing())?;
    let text = String::from_utf8_lossy(&out.stdout);
    let host = text.lines().find_map(|l| l.strip_prefix("host: ")).filter(|_| out.status.success());
    host.map(str::to_owned).ok_or_else(missing)
}
