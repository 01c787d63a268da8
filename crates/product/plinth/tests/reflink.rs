//! Copies on file systems that can share space between files: Btrfs and XFS, made here in a file. That takes root
//! and a kernel with loop devices; where they are missing, the tests say so and prove nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MIB: u64 = 1 << 20;
/// Data of the source.
const DATA: u64 = 48 * MIB;
/// Space that an image's own tables may take.
const TABLES: u64 = 4 * MIB;

fn run(program: &str, args: &[&str]) -> Option<Output> {
    Command::new(program).args(args).stdin(Stdio::null()).output().ok()
}

/// A mounted file system.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn new(make: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("fs"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(600 * MIB).unwrap();
        let (image, at) = (image.to_str().unwrap(), at.to_str().unwrap());
        let made = run(make[0], &[&make[1..], &[image]].concat());
        let mounted =
            made.filter(|o| o.status.success()).and_then(|_| run("mount", &["-o", "loop", image, at]));
        if mounted.is_none_or(|o| !o.status.success()) {
            eprintln!("{} or mounting what it makes does not work here: skipped", make[0]);
            return None;
        }
        Some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        run("sync", &["-f", self.path().to_str().unwrap()]).unwrap();
        let v = rustix::fs::statvfs(self.path()).unwrap();
        (v.f_blocks - v.f_bfree) * v.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[self.path().to_str().unwrap()]);
    }
}

#[track_caller]
fn does(folder: &Path, args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_plinth")).args(args).current_dir(folder).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A disk with data in pieces of 3 MiB, holes between them, and zeros that are data: its bytes.
fn source(folder: &Path) -> Vec<u8> {
    let mut bytes = vec![0; (DATA * 2) as usize];
    let mut x = 1u64;
    for piece in bytes.chunks_mut(3 << 20).step_by(2) {
        for word in piece.chunks_mut(8) {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&x.to_be_bytes()[..word.len()]);
        }
        piece[1 << 20..3 << 19].fill(0);
    }
    let file = fs::File::create(folder.join("s.raw")).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (n, piece) in bytes.chunks(3 << 20).enumerate().step_by(2) {
        file.write_all_at(piece, ((n * 3) << 20) as u64).unwrap();
    }
    bytes
}

fn copies_share(make: &[&str]) {
    let Some(fs) = Mount::new(make) else { return };
    let folder = &fs.path();
    let bytes = source(folder);
    // What is zeros in it becomes holes, whether it is shared or not.
    let data = DATA / 6 * 5;
    let grown = |before: u64| fs.used().saturating_sub(before);
    for format in ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed", "parallels"] {
        let before = fs.used();
        does(folder, &["disk", "convert", "s.raw", "t", "--from", "raw", "--to", format]);
        assert!(grown(before) <= TABLES, "{format}: {} bytes more", grown(before));
        if format != "raw" {
            does(folder, &["disk", "check", "t", "--format", format]);
        }
        let before = fs.used();
        does(folder, &["disk", "convert", "t", "back.raw", "--from", format, "--to", "raw"]);
        assert!(fs::read(folder.join("back.raw")).unwrap() == bytes, "{format}");
        assert!(grown(before) <= TABLES, "{format} back: {} bytes more", grown(before));
        // Neither changes when the other is written.
        let back = fs::File::options().write(true).open(folder.join("back.raw")).unwrap();
        back.write_all_at(&[1; 1 << 20], 0).unwrap();
        back.sync_all().unwrap();
        does(folder, &["disk", "compare", "s.raw", "t", "--second-format", format]);
        assert!(fs::read(folder.join("s.raw")).unwrap() == bytes, "{format}");
        fs::remove_file(folder.join("back.raw")).unwrap();
        fs::remove_file(folder.join("t")).unwrap();
    }
    // Two layers, of which the upper one has some of the data, in other files than the lower one.
    does(folder, &["disk", "convert", "s.raw", "base.qcow2", "--from", "raw"]);
    does(folder, &["disk", "create", "top.qcow2", "--backing", "base.qcow2"]);
    does(
        folder,
        &["disk", "bench", "top.qcow2", "--write", "--count", "16", "--size", "64K", "--step", "5M"],
    );
    let before = fs.used();
    does(folder, &["disk", "convert", "top.qcow2", "flat.raw", "--allow-backing", "base.qcow2"]);
    assert!(grown(before) <= TABLES, "two layers: {} bytes more", grown(before));
    does(folder, &["disk", "compare", "top.qcow2", "flat.raw", "--allow-backing", "base.qcow2"]);
    // A new image of the same contents takes the old one's space.
    let before = fs.used();
    does(folder, &["disk", "compact", "base.qcow2"]);
    assert!(grown(before) <= TABLES, "compact: {} bytes more", grown(before));
    does(folder, &["disk", "compare", "s.raw", "base.qcow2"]);
    // Space of its own where that was asked for. (Nothing is removed here: XFS counts that later.)
    let convert = ["disk", "convert", "s.raw", "--from", "raw"];
    let own = |name: &str, args: &[&str]| {
        let before = fs.used();
        does(folder, &[args, &[name]].concat());
        assert!(grown(before) >= data, "{args:?}: only {} bytes more", grown(before));
        assert!(fs::read(folder.join(name)).unwrap() == bytes);
    };
    own("1.raw", &[&convert[..], &["--no-reflink"]].concat());
    own("2.raw", &[&convert[..], &["-o", "preallocation=full"]].concat());
    own("3.raw", &[&convert[..], &["-o", "preallocation=falloc"]].concat());
    own("4.raw", &["qemu-img", "convert", "-f", "raw", "-S", "0", "s.raw"]);
    let before = fs.used();
    does(folder, &["disk", "dd", "s.raw", "part.raw", "--from", "raw", "--skip", "6M", "--length", "20M"]);
    assert!(grown(before) <= TABLES);
    assert!(fs::read(folder.join("part.raw")).unwrap() == bytes[6 << 20..26 << 20]);
    // Places that are not whole blocks are written.
    does(folder, &["disk", "dd", "s.raw", "odd.raw", "--from", "raw", "--skip", "1536K", "--length", "20M"]);
    assert!(fs::read(folder.join("odd.raw")).unwrap() == bytes[3 << 19..(3 << 19) + (20 << 20)]);
    does(folder, &["disk", "dd", "s.raw", "odd2.raw", "--from", "raw", "--skip", "1K", "--length", "9M"]);
    assert!(fs::read(folder.join("odd2.raw")).unwrap() == bytes[1 << 10..(9 << 20) + (1 << 10)]);
}

#[test]
fn copies_share_space_on_btrfs() {
    copies_share(&["mkfs.btrfs", "-q"]);
}

#[test]
fn copies_share_space_on_xfs() {
    copies_share(&["mkfs.xfs", "-q", "-m", "reflink=1"]);
}
