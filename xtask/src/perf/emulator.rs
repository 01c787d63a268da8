//! The emulators and how each one starts the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One of those compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Emulator {
    /// This project.
    Plinth,
    /// QEMU with its translator (TCG).
    Qemu,
}

impl Emulator {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 2] = [Self::Plinth, Self::Qemu];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plinth => "Plinth",
            Self::Qemu => "QEMU",
        }
    }
}

/// A machine with one vCPU, a console and what this says.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    pub cmdline: String,
    /// Mebibytes of RAM.
    pub memory: u64,
    /// A disk that the guest may only read, on virtio over PCI.
    pub disk: Option<&'a Path>,
    /// A user-mode network card, on virtio over PCI.
    pub network: bool,
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub plinth: PathBuf,
    pub qemu: PathBuf,
}

impl Programs {
    /// The program of an emulator.
    pub fn path(&self, emulator: Emulator) -> &Path {
        match emulator {
            Emulator::Plinth => &self.plinth,
            Emulator::Qemu => &self.qemu,
        }
    }

    /// The first line that the emulator's `--version` prints.
    pub fn version(&self, emulator: Emulator) -> Result<String, String> {
        let path = self.path(emulator);
        let output = Command::new(path)
            .arg("--version")
            .output()
            .map_err(|e| format!("cannot start {}: {e}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// The command that starts the machine, with its console on standard output.
    pub fn command(&self, emulator: Emulator, launch: &Launch<'_>) -> Command {
        let mut command = Command::new(self.path(emulator));
        match emulator {
            Emulator::Plinth => plinth(&mut command, launch),
            Emulator::Qemu => qemu(&mut command, launch),
        }
        command
    }
}

fn plinth(command: &mut Command, launch: &Launch<'_>) {
    command.args(["run", "--arch", "riscv64", "--no-reboot"]);
    command.arg("--kernel").arg(launch.kernel).arg("--initrd").arg(launch.initrd);
    command.arg("--append").arg(&launch.cmdline).arg("-m").arg(format!("{}M", launch.memory));
    if let Some(disk) = launch.disk {
        command.arg("--disk").arg(format!("path={},readonly=on", disk.display()));
    }
    command.args(["--net", if launch.network { "user" } else { "none" }]);
}

fn qemu(command: &mut Command, launch: &Launch<'_>) {
    // `rv64` is QEMU's fastest model: `max` has extensions that its translator is slow at.
    command.args(["-M", "virt", "-cpu", "rv64", "-smp", "1", "-nographic", "-no-reboot"]);
    command.arg("-kernel").arg(launch.kernel).arg("-initrd").arg(launch.initrd);
    command.arg("-append").arg(&launch.cmdline).arg("-m").arg(format!("{}M", launch.memory));
    if let Some(disk) = launch.disk {
        let drive = format!("file={},format=raw,if=none,id=disk,readonly=on", disk.display());
        command.arg("-drive").arg(drive).args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    if launch.network {
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]);
    } else {
        command.args(["-nic", "none"]);
    }
}
