//! Debian's OpenSBI and U-Boot in front of the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use plinth_guest::{GuestArch, Silent, package_files};

use super::{LIMIT, LONG_LIMIT, Session, debian_boots, guest, kernel_boots};

/// Where a disk's partition begins.
const PARTITION: usize = 1 << 20;
const DISK: usize = 96 << 20;
/// Has the kernel say how many CPUs it runs on. U-Boot would take a `$` for one of its variables.
const BOOTARGS: &str = "console=ttyS0 quiet plinth.run=\"nproc | sed s/^/CPUS-/\"";

struct Firmware {
    opensbi_dynamic: PathBuf,
    opensbi_jump: PathBuf,
    opensbi_elf: PathBuf,
    u_boot: PathBuf,
    u_boot_machine: PathBuf,
}

fn firmware() -> &'static Firmware {
    static FIRMWARE: OnceLock<Firmware> = OnceLock::new();
    FIRMWARE.get_or_init(|| {
        let files = |package: &str, folder: &str, names: &[&str]| {
            let paths: Vec<String> = names.iter().map(|name| format!("{folder}/{name}")).collect();
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            package_files(GuestArch::Riscv64, "trixie", None, package, &paths, &Silent).unwrap().into_iter()
        };
        let opensbi = "usr/lib/riscv64-linux-gnu/opensbi/generic";
        let mut opensbi = files("opensbi", opensbi, &["fw_dynamic.bin", "fw_jump.bin", "fw_dynamic.elf"]);
        let u_boot = ["qemu-riscv64_smode/u-boot.bin", "qemu-riscv64/u-boot.bin"];
        let mut u_boot = files("u-boot-qemu", "usr/lib/u-boot", &u_boot);
        Firmware {
            opensbi_dynamic: opensbi.next().unwrap(),
            opensbi_jump: opensbi.next().unwrap(),
            opensbi_elf: opensbi.next().unwrap(),
            u_boot: u_boot.next().unwrap(),
            u_boot_machine: u_boot.next().unwrap(),
        }
    })
}

#[test]
#[ignore = "downloads firmware and a Debian kernel"]
fn opensbi_boots_a_kernel() {
    let f = firmware();
    for (file, cpus, bus) in [
        (&f.opensbi_dynamic, 2, "virtio-pci"),
        (&f.opensbi_jump, 1, "virtio-mmio"),
        (&f.opensbi_elf, 1, "virtio-pci"),
    ] {
        let text = kernel_boots("engine", cpus, bus, &["--firmware", file.to_str().unwrap()]);
        assert!(text.contains("OpenSBI v"), "{text}");
    }
}

#[test]
#[ignore = "downloads firmware and Debian"]
fn opensbi_boots_debian_to_a_login() {
    let file = firmware().opensbi_dynamic.to_str().unwrap();
    for cpus in [1, 4] {
        debian_boots("engine", cpus, &["--snapshot", "--firmware", file], LONG_LIMIT);
    }
}

/// CRC-32 (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| c >> 1 ^ if c & 1 != 0 { 0xedb8_8320 } else { 0 })
    })
}

/// What U-Boot's `bootm` starts (U-Boot `include/image.h`, the legacy format): `data`, at the start of RAM.
fn legacy_image(data: &[u8]) -> Vec<u8> {
    const RAM: u32 = 0x8000_0000;
    // Linux, RISC-V, a kernel, not compressed.
    const KIND: u32 = 0x051a_0200;
    let header = |checksum: u32| {
        let words = [0x2705_1956, checksum, 0, data.len() as u32, RAM, RAM, crc32(data), KIND];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        bytes.resize(64, 0);
        bytes
    };
    let mut image = header(crc32(&header(0)));
    image.extend(data);
    image
}

/// A disk with one ext4 partition: a kernel, its initial file system, `extlinux.conf`, and OpenSBI for `bootm`.
fn disk_with_a_kernel(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    let boot = root.join("boot");
    std::fs::create_dir_all(boot.join("extlinux")).unwrap();
    std::fs::copy(&guest().kernel, boot.join("vmlinux")).unwrap();
    std::fs::copy(&guest().initrd, boot.join("initrd.img")).unwrap();
    let opensbi = std::fs::read(&firmware().opensbi_jump).unwrap();
    std::fs::write(boot.join("opensbi.uimg"), legacy_image(&opensbi)).unwrap();
    let config = format!(
        "default test\ntimeout 1\nlabel test\n  kernel /boot/vmlinux\n  initrd /boot/initrd.img\n  append {BOOTARGS}\n"
    );
    std::fs::write(boot.join("extlinux/extlinux.conf"), config).unwrap();

    let disk = dir.join("disk.raw");
    let mut table = vec![0; PARTITION];
    let sectors = |bytes: usize| (bytes as u32 / 512).to_le_bytes();
    // The first of four entries: can be booted, Linux.
    table[446] = 0x80;
    table[450] = 0x83;
    table[454..458].copy_from_slice(&sectors(PARTITION));
    table[458..462].copy_from_slice(&sectors(DISK - PARTITION));
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&disk, table).unwrap();
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(DISK as u64).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let made = Command::new("mke2fs")
        .env("PATH", path)
        .args(["-q", "-t", "ext4", "-E", &format!("offset={PARTITION}"), "-d"])
        .arg(&root)
        .arg(&disk)
        .arg(format!("{}k", (DISK - PARTITION) / 1024))
        .status();
    assert!(made.expect("mke2fs of e2fsprogs runs").success());
    disk
}

/// Starts U-Boot with a disk and 2 CPUs, stops its countdown, and gives it `commands`; the kernel must come up
/// from the disk and power off.
fn u_boot(options: &[&str], commands: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_a_kernel(dir.path());
    let mut args = vec!["--cpus", "2", "--disk", disk.to_str().unwrap()];
    args.extend(options);
    let mut session = Session::start(&args, LIMIT);
    session.wait_for("Hit any key to stop autoboot");
    session.send("");
    for command in commands {
        session.wait_for("=> ");
        session.send(command);
    }
    session.wait_for("PLINTH-INIT-OK");
    session.wait_for("CPUS-2");
    session.wait_for("PLINTH-RUN-EXIT 0");
    session.finish()
}

fn supervisor_mode() -> [&'static str; 4] {
    let f = firmware();
    ["--firmware", f.opensbi_dynamic.to_str().unwrap(), "--kernel", f.u_boot.to_str().unwrap()]
}

#[test]
#[ignore = "downloads firmware and a Debian kernel"]
fn u_boot_boots_a_kernel_from_a_disk() {
    let commands = ["virtio scan", "virtio info", "ls virtio 0:1 /boot", "setenv autoload no; dhcp", "boot"];
    let text = u_boot(&supervisor_mode(), &commands);
    for said in [
        "OpenSBI v",
        "VirtIO Block Device",
        "opensbi.uimg",
        "DHCP client bound to address 10.0.2.15",
        "Found /boot/extlinux/extlinux.conf",
    ] {
        assert!(text.contains(said), "no '{said}':\n{text}");
    }
}

#[test]
#[ignore = "downloads firmware and a Debian kernel"]
fn u_boot_boots_a_kernel_by_efi() {
    let bootargs = format!("setenv bootargs '{BOOTARGS} initrd=boot/initrd.img efi=debug'");
    let load = "load virtio 0:1 ${kernel_addr_r} boot/vmlinux";
    let text = u_boot(&supervisor_mode(), &[load, &bootargs, "bootefi ${kernel_addr_r} ${fdtcontroladdr}"]);
    assert!(text.contains("Booting /boot\\vmlinux"), "{text}");
}

/// In machine mode U-Boot is no SBI: it loads OpenSBI too, and that starts the kernel.
#[test]
#[ignore = "downloads firmware and a Debian kernel"]
fn u_boot_in_machine_mode_boots_a_kernel_from_a_disk() {
    let bootargs = format!("setenv bootargs '{BOOTARGS}'");
    let commands = [
        "load virtio 0:1 80200000 boot/vmlinux",
        "load virtio 0:1 88000000 boot/initrd.img; setenv initrd 88000000:${filesize}",
        "load virtio 0:1 84000000 boot/opensbi.uimg",
        &bootargs,
        // The tree grows, and where it is it has no room.
        "fdt move ${fdtcontroladdr} 8c000000 10000",
        "bootm 84000000 ${initrd} 8c000000",
    ];
    let text = u_boot(&["--firmware", firmware().u_boot_machine.to_str().unwrap()], &commands);
    assert!(text.contains("OpenSBI v"), "{text}");
}
