//! What the guest is made of: a kernel and a disk that Plinth builds from Debian's packages, and an
//! initial file system with the programs of `guests/perf`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::cpio::Cpio;

/// Programs that the guest's work needs, besides the base system.
const PACKAGES: &[&str] = &[
    "lua5.4",
    "sqlite3",
    "openssl",
    "python3",
    "xz-utils",
    "zstd",
    "7zip",
    "gcc-14",
    "libc6-dev",
    "libstb-dev",
    "fio",
];
/// The guest's own programs, each of one source file.
const SOURCES: &[&str] = &["arrays"];
const COMPILER: &str = "riscv64-linux-gnu-gcc";

/// Files that every machine of the comparison gets.
#[derive(Debug, Clone)]
pub struct Material {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
    /// The kernel's release.
    pub kernel_release: String,
    /// CoreMark is in the initial file system.
    pub coremark: bool,
}

impl Material {
    /// Makes what is not there yet in `folder`.
    pub fn prepare(
        root: &Path,
        folder: &Path,
        plinth: &Path,
        coremark: Option<&Path>,
    ) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|e| format!("cannot create {}: {e}", folder.display()))?;
        let disk = folder.join("debian.raw");
        build_debian(plinth, &disk)?;
        let manifest: Value = serde_json::from_slice(&read(&disk.with_extension("json"))?)
            .map_err(|e| format!("the description of {} is no JSON: {e}", disk.display()))?;
        let initrd = folder.join("perf.initrd");
        let mut bytes = read(&disk.with_extension("initrd"))?;
        bytes.extend(overlay(root, folder, coremark)?);
        write(&initrd, &bytes)?;
        Ok(Self {
            kernel: disk.with_extension("kernel"),
            initrd,
            disk,
            kernel_release: manifest["kernel_release"].as_str().unwrap_or("unknown").to_owned(),
            coremark: coremark.is_some(),
        })
    }
}

/// Builds the disk, unless there is one with the same packages.
fn build_debian(plinth: &Path, disk: &Path) -> Result<(), String> {
    let list = disk.with_extension("packages");
    let wanted = PACKAGES.join("\n");
    let same = fs::read_to_string(&list).is_ok_and(|found| found == wanted);
    if same && disk.with_extension("json").is_file() {
        return Ok(());
    }
    eprintln!("building the guest's disk {}", disk.display());
    let mut command = Command::new(plinth);
    command.args(["image", "build", "debian", "--arch", "riscv64", "--size", "4G"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    run(command.arg("-o").arg(disk))?;
    write(&list, wanted.as_bytes())
}

/// The archive that follows Debian's own initial file system and replaces its init.
fn overlay(root: &Path, folder: &Path, coremark: Option<&Path>) -> Result<Vec<u8>, String> {
    let sources = root.join("guests/perf");
    let mut cpio = Cpio::default();
    for name in ["perf", "tmp", "mnt", "proc", "sys", "dev"] {
        cpio.directory(name);
    }
    cpio.program("init", &read(&sources.join("init.sh"))?);
    let entries = fs::read_dir(&sources).map_err(|e| format!("cannot read {}: {e}", sources.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        cpio.program(&format!("perf/{name}"), &read(&sources.join(&name))?);
    }
    for name in SOURCES {
        let program = folder.join(name);
        let mut compiler = Command::new(COMPILER);
        compiler.args(["-O2", "-static", "-Wall", "-o"]).arg(&program).arg(sources.join(format!("{name}.c")));
        run(&mut compiler)?;
        cpio.program(&format!("perf/{name}"), &read(&program)?);
    }
    if let Some(path) = coremark {
        cpio.program("perf/coremark", &read(path)?);
    }
    Ok(cpio.finish())
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().display().to_string();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|e| format!("cannot start {name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed: {status}")) }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
}
