//! Runs the fuzz targets of `fuzz/` one after the other.

use std::path::Path;
use std::process::Command;

/// Runs a fuzz target for this long where the command line does not say.
const SECONDS: u64 = 60;
/// libFuzzer's instrumentation, as `cargo fuzz` passes it, with AddressSanitizer.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// What the command line asks for.
struct Options {
    target: Option<String>,
    seconds: u64,
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options { target: None, seconds: SECONDS };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let value = args.next().ok_or("--seconds needs a number")?;
                options.seconds = value.parse().map_err(|e| format!("--seconds {value}: {e}"))?;
            }
            name if !name.starts_with('-') && options.target.is_none() => options.target = Some(name.into()),
            other => return Err(format!("no option `{other}`; `cargo xtask fuzz [TARGET] [--seconds N]`")),
        }
    }
    Ok(options)
}

/// Names of the targets: the files of `fuzz/fuzz_targets`.
pub fn targets(root: &Path) -> Vec<String> {
    let files = crate::docs::files(&root.join("fuzz/fuzz_targets"), "rs");
    files.iter().filter_map(|f| Some(f.file_stem()?.to_str()?.to_owned())).collect()
}

/// `cargo xtask fuzz [TARGET] [--seconds N]`: all targets, or one, each for N seconds.
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
    let target_dir = root.join("target/fuzz");
    let mut build = Command::new("rustup");
    build.args(["run", "nightly", "cargo", "build", "--release", "--target", &host, "--manifest-path"]);
    build.arg(root.join("fuzz/Cargo.toml")).arg("--target-dir").arg(&target_dir);
    build.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
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
        println!("fuzz: {name} for {} s", options.seconds);
        let mut run = Command::new(target_dir.join(&host).join("release").join(name));
        run.arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-verbosity=0", "-print_funcs=0"])
            .arg(&corpus);
        succeed(&format!("fuzz target {name}"), &mut run)?;
    }
    Ok(format!("fuzz: {} targets, {} s each, nothing found", chosen.len(), options.seconds))
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
