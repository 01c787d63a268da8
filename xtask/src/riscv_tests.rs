//! The official RISC-V tests (`riscv-software-src/riscv-tests`, folder `isa`): bare programs, each of which says
//! through its `tohost` word whether it has passed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

const HELP: &str = "\
Runs the official RISC-V tests of a built suite on the translator and the interpreter.

Usage: cargo xtask riscv-tests DIR [--accel engine|interp] [--only TEXT]

DIR is where the suite's programs are: the folder `isa` after `make XLEN=64`. Every program is run, except those
of extensions that Plinth's CPU does not have; these are listed.

  --accel NAME   On this one only; repeatable
  --only TEXT    Only programs whose names contain this

With Debian's cross compiler the suite is built with
  make XLEN=64 RISCV_PREFIX=riscv64-linux-gnu- RISCV_GCC='riscv64-linux-gnu-gcc -fno-pie -fno-pic -no-pie'
It needs GCC 14 for all of the extensions' tests; older ones leave some out.
";

/// Most tests take milliseconds.
const LIMIT_SECONDS: &str = "60";

/// Groups of tests of what Plinth's CPU does not have.
const NOT_RUN: [(&str, &str); 6] = [
    ("rv32", "a 32-bit CPU"),
    ("hypervisor", "the hypervisor extension"),
    ("rv64up-", "the draft extension P"),
    ("rv64uzbkb-", "Zbkb"),
    ("rv64uzbkx-", "Zbkx"),
    ("rv64uzvk", "vector cryptography"),
];

struct Options {
    dir: PathBuf,
    accels: Vec<String>,
    only: String,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let (mut dir, mut accels, mut only) = (None, Vec::new(), String::new());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--accel" => accels.push(value()?),
                "--only" => only = value()?,
                path if !path.starts_with('-') && dir.is_none() => dir = Some(PathBuf::from(path)),
                other => return Err(format!("no option `{other}`; see `cargo xtask riscv-tests --help`")),
            }
        }
        if accels.is_empty() {
            accels = vec!["engine".to_owned(), "interp".to_owned()];
        }
        let dir = dir.ok_or("`cargo xtask riscv-tests DIR` needs the folder of a built suite")?;
        Ok(Self { dir, accels, only })
    }
}

/// A test program: its file's name is `GROUP-p-NAME`, on the bare machine, or `GROUP-v-NAME`, in virtual memory.
struct Test {
    path: PathBuf,
    name: String,
    group: String,
}

impl Test {
    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        let (at, _) = ["-p-", "-v-"].iter().filter_map(|env| name.match_indices(env).next()).min()?;
        let mut magic = [0; 4];
        let is_elf =
            File::open(&path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && &magic == b"\x7fELF";
        is_elf.then(|| Self { group: name[..at + 2].to_owned(), path, name })
    }

    /// What Plinth's CPU lacks for it.
    fn lacks(&self) -> Option<&'static str> {
        NOT_RUN.iter().find(|(prefix, _)| self.group.starts_with(prefix)).map(|(_, what)| *what)
    }

    /// Runs it.
    ///
    /// # Errors
    /// Why it has not passed.
    fn run(&self, plinth: &Path, accel: &str) -> Result<(), String> {
        // A test that hangs is ended by coreutils' `timeout`, which says so with its status.
        let out = Command::new("timeout")
            .args(["--signal=KILL", LIMIT_SECONDS])
            .arg(plinth)
            .args(["run", "--accel", accel, "--memory", "64M", "--net", "none", "--serial", "none"])
            .arg("--firmware")
            .arg(&self.path)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("cannot run `timeout`: {e}"))?;
        if out.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&out.stderr).lines().next().map(str::to_owned);
        Err(said.unwrap_or_else(|| format!("no result after {LIMIT_SECONDS} s ({})", out.status)))
    }
}

/// `cargo xtask riscv-tests DIR`: see [`HELP`].
///
/// # Errors
/// A test has failed, or there is none.
pub fn run(root: &Path, args: &[String]) -> Result<String, Vec<String>> {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return Ok(HELP.trim_end().to_owned());
    }
    let options = Options::parse(args).map_err(|e| vec![e])?;
    let entries =
        std::fs::read_dir(&options.dir).map_err(|e| vec![format!("{}: {e}", options.dir.display())])?;
    let all = entries.filter_map(|e| Test::of(e.ok()?.path())).filter(|t| t.name.contains(&options.only));
    let (left_out, mut tests): (Vec<Test>, Vec<Test>) = all.partition(|t| t.lacks().is_some());
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    if tests.is_empty() {
        return Err(vec![format!("no test programs in {}; see --help", options.dir.display())]);
    }
    let plinth = build(root)?;
    let mut failures = Vec::new();
    let mut table: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (column, accel) in options.accels.iter().enumerate() {
        let failed = run_all(&tests, &plinth, accel);
        for (i, test) in tests.iter().enumerate() {
            for row in [test.group.as_str(), "all"] {
                let cells = table.entry(row).or_insert_with(|| vec![(0, 0); options.accels.len()]);
                let (passed, failures) = &mut cells[column];
                *(if failed.contains_key(&i) { failures } else { passed }) += 1;
            }
        }
        failures.extend(failed.iter().map(|(i, why)| format!("{} on {accel}: {why}", tests[*i].name)));
    }
    let line = |name: &str, cells: Vec<String>| {
        println!("{name:16}{}", cells.iter().map(|c| format!("{c:>18}")).collect::<String>());
    };
    line("group", options.accels.iter().map(|a| format!("{a} pass/fail")).collect());
    for (group, cells) in &table {
        line(group, cells.iter().map(|(passed, failed)| format!("{passed}/{failed}")).collect());
    }
    for (prefix, what) in NOT_RUN {
        let count = left_out.iter().filter(|t| t.group.starts_with(prefix)).count();
        if count != 0 {
            println!("not run: {count} tests of {what}, which Plinth's CPU does not have");
        }
    }
    let count = tests.len() * options.accels.len();
    if failures.is_empty() { Ok(format!("riscv-tests: {count} runs, all passed")) } else { Err(failures) }
}

/// Builds Plinth's program.
pub fn build(root: &Path) -> Result<PathBuf, Vec<String>> {
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--package", "plinth"])
        .current_dir(root)
        .status()
        .map_err(|e| vec![format!("cannot run cargo: {e}")])?;
    if !status.success() {
        return Err(vec![format!("plinth cannot be built: {status}")]);
    }
    Ok(root.join("target/release/plinth"))
}

/// Runs the tests, as many at once as the host has CPUs; returns the failures by index.
fn run_all(tests: &[Test], plinth: &Path, accel: &str) -> BTreeMap<usize, String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        let Some(test) = tests.get(i) else { return };
        if let Err(why) = test.run(plinth, accel) {
            failed.lock().unwrap_or_else(PoisonError::into_inner).insert(i, why);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_files() {
        let dir = std::env::temp_dir().join(format!("plinth-riscv-tests-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut found = Vec::new();
        for (name, bytes) in [
            ("rv64ui-p-add", "\x7fELF.."),
            ("rv64ui-v-x-p-y", "\x7fELF.."),
            ("rv64ui-p-add.dump", "text"),
            ("Makefile", "\x7fELF"),
            ("rv64uzbkb-p-pack", "\x7fELF.."),
        ] {
            std::fs::write(dir.join(name), bytes).unwrap();
            found.extend(Test::of(dir.join(name)));
        }
        std::fs::remove_dir_all(&dir).unwrap();
        let seen: Vec<_> = found.iter().map(|t| (t.group.as_str(), t.lacks())).collect();
        assert_eq!(seen, [("rv64ui-p", None), ("rv64ui-v", None), ("rv64uzbkb-p", Some("Zbkb"))]);
        assert!(Options::parse(&["--accel".to_owned()]).is_err());
    }
}
