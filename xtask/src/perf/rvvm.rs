//! RVVM (LekKit/RVVM), the second peer. Its command line knows no initial file system, so the machine is
//! put together here: the initial file system follows the kernel in one file, and RVVM's own device tree,
//! which it can write out, says where.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::emulator::Launch;

/// Where RVVM puts what `-k` names.
const KERNEL: u64 = 0x8020_0000;
/// Where the initial file system goes, seen from the kernel: behind the place that OpenSBI moves the device
/// tree to.
const INITRD: u64 = 0x220_0000;
/// Bytes that all emulators' device trees are smaller than.
const TREE_LIMIT: u32 = 1 << 20;

/// What RVVM needs besides what a [`Launch`] has.
#[derive(Debug, Clone)]
pub struct Rvvm {
    /// The program.
    pub program: PathBuf,
    /// OpenSBI's `fw_jump.bin`.
    pub firmware: PathBuf,
    /// A folder for the files that are made.
    pub folder: PathBuf,
}

impl Rvvm {
    /// The command that starts the machine, with its console on standard output.
    pub fn command(&self, launch: &Launch<'_>) -> Result<Command, String> {
        if launch.disk.is_some() || launch.network {
            return Err("RVVM has neither the disk nor the network card of this comparison".into());
        }
        let kernel = self.folder.join("rvvm.kernel");
        let initrd_len = join(launch.kernel, launch.initrd, &kernel)?;
        let tree = self.folder.join("rvvm.dtb");
        self.dump_tree(launch, &tree)?;
        let start = KERNEL + INITRD;
        set(&tree, &["-t", "s"], "bootargs", &launch.cmdline)?;
        set(&tree, &["-t", "x"], "linux,initrd-start", &format!("{start:x}"))?;
        set(&tree, &["-t", "x"], "linux,initrd-end", &format!("{:x}", start + initrd_len))?;
        let mut command = self.machine(launch.memory);
        command.arg("-k").arg(kernel).arg("-dtb").arg(tree);
        Ok(command)
    }

    fn machine(&self, memory: u64) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.firmware).args(["-m", &format!("{memory}M"), "-s", "1", "-nogui", "-nonet"]);
        command
    }

    /// Has RVVM write the device tree that it makes for this machine. It goes on to start the machine, so it
    /// is stopped once the tree is there.
    fn dump_tree(&self, launch: &Launch<'_>, tree: &Path) -> Result<(), String> {
        // What an earlier run has left is not to be taken for this one's.
        let _ = fs::remove_file(tree);
        let mut child = self
            .machine(launch.memory)
            .arg("-dumpdtb")
            .arg(tree)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut whole = false;
        while !whole && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            whole = fs::read(tree).is_ok_and(|bytes| is_whole(&bytes));
        }
        // It may have ended by itself; both calls fail then, and that is no loss.
        let _ = child.kill();
        let _ = child.wait();
        if whole { Ok(()) } else { Err(format!("{} wrote no device tree", self.program.display())) }
    }
}

/// A flattened device tree starts with a magic number and its own length.
fn is_whole(bytes: &[u8]) -> bool {
    let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    word(0) == Some(0xd00d_feed)
        && word(4).is_some_and(|n| (8..TREE_LIMIT).contains(&n) && bytes.len() >= n as usize)
}

/// Writes the kernel with the initial file system behind it; returns the length of the latter.
fn join(kernel: &Path, initrd: &Path, out: &Path) -> Result<u64, String> {
    let read = |path: &Path| fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let (mut image, files) = (read(kernel)?, read(initrd)?);
    // A Linux image says at offset 16 how much memory it takes.
    let needed = image.get(16..24).map_or(0, |b| b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)));
    if needed == 0 || needed > INITRD {
        return Err(format!("{} is no kernel image of less than {INITRD} bytes", kernel.display()));
    }
    image.resize(INITRD as usize, 0);
    let write = || {
        let mut file = fs::File::create(out)?;
        file.write_all(&image)?;
        file.write_all(&files)
    };
    write().map_err(|e| format!("cannot write {}: {e}", out.display()))?;
    Ok(files.len() as u64)
}

/// Sets a property of `/chosen`.
fn set(tree: &Path, kind: &[&str], name: &str, value: &str) -> Result<(), String> {
    let mut command = Command::new("fdtput");
    let status = command
        .args(kind)
        .arg(tree)
        .args(["/chosen", name, value])
        .status()
        .map_err(|e| format!("cannot start fdtput (Debian: device-tree-compiler): {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("fdtput cannot set {name}: {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_tree_is_not_taken() {
        let mut tree = vec![0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 40];
        assert!(!is_whole(&tree));
        tree.resize(40, 0);
        assert!(is_whole(&tree));
        assert!(!is_whole(b"not a tree"));
        assert!(!is_whole(&[]));
    }

    #[test]
    fn the_initial_file_system_follows_the_kernel() {
        let dir = std::env::temp_dir().join(format!("plinth-perf-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (kernel, initrd, out) = (dir.join("kernel"), dir.join("initrd"), dir.join("out"));
        let mut image = vec![1; 64];
        image[16..24].copy_from_slice(&4096u64.to_le_bytes());
        fs::write(&kernel, &image).unwrap();
        fs::write(&initrd, b"files").unwrap();
        assert_eq!(join(&kernel, &initrd, &out), Ok(5));
        assert_eq!(fs::read(&out).unwrap()[INITRD as usize..], *b"files");
        image[16..24].copy_from_slice(&(INITRD + 1).to_le_bytes());
        fs::write(&kernel, &image).unwrap();
        assert!(join(&kernel, &initrd, &out).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
