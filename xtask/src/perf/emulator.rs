//! The emulators and how each one starts the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::rvvm::Rvvm;

/// One of those compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Emulator {
    /// This project.
    Plinth,
    /// QEMU with its translator (TCG).
    Qemu,
    /// RVVM with its JIT compiler.
    Rvvm,
}

impl Emulator {
    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plinth => "Plinth",
            Self::Qemu => "QEMU",
            Self::Rvvm => "RVVM",
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
    /// Where it was built.
    pub rvvm: Option<Rvvm>,
}

impl Programs {
    /// Those that there are, in the order of the table's columns.
    pub fn emulators(&self) -> Vec<Emulator> {
        let mut all = vec![Emulator::Plinth, Emulator::Qemu];
        all.extend(self.rvvm.as_ref().map(|_| Emulator::Rvvm));
        all
    }

    /// The line in which the emulator says its version.
    pub fn version(&self, emulator: Emulator) -> Result<String, String> {
        let (path, option) = match (emulator, &self.rvvm) {
            (Emulator::Rvvm, Some(rvvm)) => (&rvvm.program, "--help"),
            (Emulator::Qemu, _) => (&self.qemu, "--version"),
            _ => (&self.plinth, "--version"),
        };
        let output = Command::new(path)
            .arg(option)
            .output()
            .map_err(|e| format!("cannot start {}: {e}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // RVVM has it in the middle of its help: "https://... (v0.7-...)".
        let is_version = |line: &&str| emulator != Emulator::Rvvm || line.contains("(v");
        let line = text.lines().find(is_version).unwrap_or_default().trim();
        Ok(match (emulator, line.split_once("(v")) {
            (Emulator::Rvvm, Some((_, version))) => format!("RVVM {}", version.trim_end_matches(')')),
            _ => line.to_owned(),
        })
    }

    /// The command that starts the machine, with its console on standard output.
    pub fn command(&self, emulator: Emulator, launch: &Launch<'_>) -> Result<Command, String> {
        match (emulator, &self.rvvm) {
            (Emulator::Plinth, _) => Ok(plinth(&self.plinth, launch)),
            (Emulator::Qemu, _) => Ok(qemu(&self.qemu, launch)),
            (Emulator::Rvvm, Some(rvvm)) => rvvm.command(launch),
            (Emulator::Rvvm, None) => Err("there is no RVVM".into()),
        }
    }
}

fn plinth(program: &Path, launch: &Launch<'_>) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--arch", "riscv64", "--no-reboot"]);
    command.arg("--kernel").arg(launch.kernel).arg("--initrd").arg(launch.initrd);
    command.arg("--append").arg(&launch.cmdline).arg("-m").arg(format!("{}M", launch.memory));
    if let Some(disk) = launch.disk {
        command.arg("--disk").arg(format!("path={},readonly=on", disk.display()));
    }
    command.args(["--net", if launch.network { "user" } else { "none" }]);
    command
}

fn qemu(program: &Path, launch: &Launch<'_>) -> Command {
    let mut command = Command::new(program);
    // `rv64` is QEMU's fastest model: `max` has extensions that its translator is slow at.
    command.args(["-M", "virt", "-cpu", "rv64", "-smp", "1", "-nographic", "-no-reboot"]);
    command.arg("-kernel").arg(launch.kernel).arg("-initrd").arg(launch.initrd);
    command.arg("-append").arg(&launch.cmdline).arg("-m").arg(format!("{}M", launch.memory));
    if let Some(disk) = launch.disk {
        let drive = format!("file={},format=raw,if=none,id=disk,readonly=on", disk.display());
        command.arg("-drive").arg(drive).args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    if launch.network {
        // Nothing is booted from the network: the ROM for that, a package of its own, is not needed.
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    } else {
        command.args(["-nic", "none"]);
    }
    command
}
