//! The initial file systems: one that mounts a Debian guest's disk, one that is the test guest.

use crate::cpio::Cpio;

const INIT: &str = include_str!("scripts/initrd-init.sh");
const TEST_INIT: &str = include_str!("scripts/test-init.sh");
const UDHCPC: &str = include_str!("scripts/udhcpc.sh");

/// Modules that find a virtio disk and mount ext4 on it, and the early console. ext4 asks for `crc32c`
/// by a name that only a module's alias answers to.
pub const DISK_MODULES: &[&str] =
    &["virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "crc32c_generic", "ext4"];
/// What the test guest has besides.
pub const TEST_MODULES: &[&str] = &["virtio_net", "virtio_rng", "virtio_balloon", "af_packet"];

/// The initial file system of a Debian guest. `modules` are in the order to load them in.
pub fn debian(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut cpio = base(busybox, modules, INIT);
    cpio.directory("root");
    cpio.finish()
}

/// The test guest's only file system.
pub fn test(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut cpio = base(busybox, modules, TEST_INIT);
    for folder in ["root", "tmp", "mnt", "etc", "etc/udhcpc"] {
        cpio.directory(folder);
    }
    cpio.file("etc/udhcpc/default.script", 0o755, UDHCPC.as_bytes());
    cpio.finish()
}

fn base(busybox: &[u8], modules: &[(String, Vec<u8>)], init: &str) -> Cpio {
    let mut cpio = Cpio::default();
    for folder in ["bin", "dev", "proc", "sys", "modules"] {
        cpio.directory(folder);
    }
    // The kernel opens it for init before devtmpfs is mounted.
    cpio.char_device("dev/console", 0o600, 5, 1);
    cpio.char_device("dev/null", 0o666, 1, 3);
    cpio.file("bin/busybox", 0o755, busybox);
    cpio.symlink("bin/sh", "busybox");
    let mut order = String::new();
    for (name, content) in modules {
        cpio.file(&format!("modules/{name}.ko"), 0o644, content);
        order.push_str(name);
        order.push('\n');
    }
    cpio.file("modules/order", 0o644, order.as_bytes());
    cpio.file("init", 0o755, init.as_bytes());
    cpio
}
