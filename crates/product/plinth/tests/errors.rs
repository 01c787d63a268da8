//! What the command says when something is wrong: the message, the help and the exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use plinth_image::disk::{OpenOptions, RawImage};

fn plinth(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plinth"))
        .args(args)
        .env_remove("PLINTH_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn fails(args: &[&str], code: i32, texts: &[&str]) {
    let out = plinth(args);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    for text in texts {
        assert!(err.contains(text), "{args:?}: no '{text}' in: {err}");
    }
    assert!(out.stdout.is_empty(), "{args:?}");
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn with(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
    fn kernel(&self) -> PathBuf {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"RSC\x05");
        self.with("Image", &image)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_property_that_cpus_do_not_have_is_named() {
    let files = Files::new();
    let kernel = files.kernel();
    let args = ["run", "--kernel", text(&kernel), "--cpu", "v=on,w=on", "--net", "none"];
    fails(&args, 2, &["no property `w`", "help: properties: v"]);
}

#[test]
fn usage_errors_say_what_to_write() {
    fails(&["run"], 2, &["error: there is nothing to boot", "help: name a guest"]);
    fails(&["run", "nothing.raw"], 2, &["no guest 'nothing.raw'", "help: guests known by name: debian"]);
    fails(&["run", "debian", "--kernel", "x"], 2, &["--kernel"]);
    fails(&["image", "build", "debian", "--suite", "..", "-o", "x"], 2, &["name of a suite"]);
    fails(&["run", "--kernel", "x", "-m", "512"], 2, &["512M for mebibytes or 512B for bytes"]);
    fails(&["run", "--kernel", "x", "--arch", "vax"], 2, &["--arch vax", "help: this build runs: riscv64"]);
    fails(&["run", "--kernel", "x", "-c", "0"], 2, &["0"]);
    fails(&["run", "--kernel", "x", "--disk", "path=d,format=qcow9"], 2, &["there is no format 'qcow9'"]);
    fails(&["run", "--kernel", "x", "--cpu", "v"], 2, &["`v` is not PROPERTY=on or PROPERTY=off"]);
    fails(&["run", "--kernel", "x", "-p", "22"], 2, &["2222:22"]);
    fails(&["run", "--kernel", "x", "-p", "1:2", "--net", "none"], 2, &["--publish needs a network"]);
    fails(&["run", "--kernel", "x", "--log", "a=b=c"], 2, &["log filter", "help:"]);
}

#[test]
fn wrong_files_are_named() {
    let files = Files::new();
    let missing = files.0.path().join("nothing");
    fails(
        &["run", "--kernel", text(&missing)],
        1,
        &["cannot read kernel", "nothing", "No such file", "--kernel"],
    );
    let mut arm = vec![0; 4096];
    arm[56..60].copy_from_slice(b"ARM\x64");
    let arm = files.with("arm", &arm);
    fails(&["run", "--kernel", text(&arm)], 1, &["is for aarch64, not riscv64", "help:"]);
    let mut bz = vec![0; 4096];
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    let bz = files.with("bz", &bz);
    fails(&["run", "--kernel", text(&bz)], 1, &["is for x86 (bzImage), not riscv64"]);
    fails(&["run", "--firmware", text(&bz)], 1, &["firmware", "not riscv64"]);
    let no_firmware = ["run", "--board", "virt-aia", "--firmware", text(&bz)];
    fails(&no_firmware, 2, &["virt-aia", "no firmware", "--board virt"]);
    let kernel = files.kernel();
    fails(&["run", "--kernel", text(&kernel), "--initrd", text(files.0.path())], 1, &["cannot read initrd"]);
}

#[test]
fn disks_that_cannot_be_used_are_left_alone() {
    let files = Files::new();
    let kernel = files.kernel();
    let run = |disk: &str, code, texts: &[&str]| {
        fails(&["run", "--kernel", text(&kernel), "--disk", disk], code, texts)
    };
    let bytes = vec![7; 8192];
    let disk = files.with("disk.raw", &bytes);
    let user = RawImage::open(&disk, &OpenOptions::default()).unwrap();
    run(text(&disk), 5, &["error: cannot open disk image", "another process is using it", "help:"]);
    drop(user);
    run("/nowhere/disk.raw", 1, &["No such file", "--disk"]);
    let mut ext4 = vec![0; 8192];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    ext4[1028..1030].copy_from_slice(&[0, 1]);
    let cut = files.with("cut.raw", &ext4);
    run(text(&cut), 1, &["truncated", "262144 bytes", "8192"]);
    let qcow2 = files.with("d.qcow2", b"QFI\xfb\0\0\0\x03");
    run(text(&qcow2), 1, &["d.qcow2"]);
    run(text(&files.with("empty", b"")), 1, &["it is empty"]);
    assert!(std::fs::read(&disk).unwrap() == bytes);
    assert!(std::fs::read(&cut).unwrap() == ext4);
}

#[test]
fn more_memory_than_the_host_has_is_refused() {
    let files = Files::new();
    let kernel = files.kernel();
    let args = ["run", "--kernel", text(&kernel), "-m", "8000T"];
    fails(&args, 4, &["cannot give the guest 7.8 PiB of memory", "help: give the guest less memory"]);
}

#[test]
fn errors_are_json_where_asked() {
    let out = plinth(&["--output", "json", "run"]);
    let value: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(value["code"], 2);
    assert_eq!(value["error"], "there is nothing to boot");
    // What cannot be parsed, too.
    for args in [
        &["disk", "--output", "json", "frobnicate"][..],
        &["disk", "create", "d.raw", "5", "--output=json"],
        &["disk", "create", "--output", "json"],
    ] {
        let out = plinth(args);
        let value: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
        assert_eq!((&value["code"], out.status.code()), (&2.into(), Some(2)), "{args:?}");
        assert!(!value["error"].as_str().unwrap().starts_with("error"), "{value}");
    }
}

#[test]
fn help_completions_and_pages_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        let out = plinth(&["completions", shell]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("plinth"), "{shell}");
    }
    let help = plinth(&["run", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    for text in ["Examples:", "--snapshot", "Exit codes:", "Ctrl-]"] {
        assert!(help.contains(text), "{text}");
    }
    let files = Files::new();
    let dir = files.0.path().join("man");
    assert!(plinth(&["man", "--dir", text(&dir)]).status.success());
    assert!(std::fs::read_to_string(dir.join("plinth-run.1")).unwrap().contains("no\\-reboot"));
    assert!(plinth(&["--version"]).stdout.starts_with(b"plinth 0."));
}
