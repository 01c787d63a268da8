//! The test guest: Debian's kernel with a busybox in memory, for tests and benchmarks.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::arch::GuestArch;
use crate::archive::Archive;
use crate::cache::{Cache, sha256, write_file};
use crate::deb;
use crate::debian::{busybox, kernel_package};
use crate::error::{AtPath, GuestError, Result};
use crate::initramfs::{self, DISK_MODULES, TEST_MODULES};
use crate::mirror;
use crate::modules::{ModuleSet, closure, module_name};
use crate::progress::{Progress, Unit};
use crate::release::Verification;

/// Counts up whenever the guest changes.
const FORMAT: u32 = 1;
/// Kernels and modules are smaller than this.
const FILE_LIMIT: u64 = 256 << 20;

/// A kernel and its file system in memory.
///
/// Its `/init` prints `PLINTH-INIT-OK` before anything else, then loads virtio and ext4. With
/// `plinth.run="commands"` on the kernel's command line it runs them in a shell, prints
/// `PLINTH-RUN-EXIT status` and powers off; without, it gives a shell on the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestGuest {
    /// The architecture.
    pub arch: GuestArch,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line, to which `plinth.run=` may be added.
    pub cmdline: String,
    /// The kernel's release.
    pub kernel_release: String,
}

/// The test guest of an architecture from the user's cache; it is built if it is not there. `mirror`
/// is as in [`DebianSpec`](crate::DebianSpec).
pub fn test_guest(
    arch: GuestArch,
    suite: &str,
    mirror: Option<&str>,
    progress: &dyn Progress,
) -> Result<TestGuest> {
    let cache = Cache::of_user()?;
    let mirror = mirror::find(mirror)?;
    let key = sha256(format!("{FORMAT}\0{suite}\0{arch}\0{}", mirror.uri).as_bytes());
    let folder = cache.folder(&format!("images/test-{arch}-{}", &key[..16]))?;
    let manifest = folder.join("test.json");
    let lock_path = folder.join("lock");
    let lock = fs::File::create(&lock_path).at("creating", &lock_path)?;
    lock.lock().at("locking", &lock_path)?;
    let cached = fs::read(&manifest).ok().and_then(|text| serde_json::from_slice::<TestGuest>(&text).ok());
    if let Some(guest) = cached
        && guest.kernel.is_file()
        && guest.initrd.is_file()
    {
        return Ok(guest);
    }
    let verification = Verification::of_host();
    let archive = Archive {
        mirror,
        suite: suite.to_owned(),
        arch,
        cache: &cache,
        verification: &verification,
        progress,
    };
    let suite = archive.suite(false)?;
    let package = kernel_package(arch, &archive.suite, &suite)?;
    let id = suite.index.find(&package).ok_or_else(|| GuestError::UnknownPackage {
        name: package,
        suite: archive.suite.clone(),
        arch: arch.to_string(),
    })?;
    let files = archive.fetch(&suite.index, &[id])?;
    let busybox = busybox(&archive, &suite)?;
    progress.step("Building the test guest", 0, Unit::Items);
    let mut kernel = KernelFiles::default();
    for file in &files {
        kernel.read(file)?;
    }
    let wanted: Vec<&str> = DISK_MODULES.iter().chain(TEST_MODULES).copied().collect();
    let initrd = initramfs::test(&busybox, &closure(&kernel, &wanted)?);
    let guest = TestGuest {
        arch,
        kernel: write_file(&folder.join("test.kernel"), &kernel.image)?,
        initrd: write_file(&folder.join("test.initrd"), &initrd)?,
        cmdline: format!("console={} quiet", arch.data().console),
        kernel_release: kernel.release,
    };
    let text = serde_json::to_vec_pretty(&guest)
        .map_err(|e| GuestError::Invalid(format!("the guest cannot be described: {e}")))?;
    write_file(&manifest, &text)?;
    Ok(guest)
}

/// A kernel package in memory.
#[derive(Default)]
struct KernelFiles {
    release: String,
    image: Vec<u8>,
    paths: BTreeMap<String, String>,
    modules: BTreeMap<String, Vec<u8>>,
}

impl KernelFiles {
    fn read(&mut self, file: &std::path::Path) -> Result<()> {
        deb::read(file, &mut |entry, content| {
            let Ok(path) = std::str::from_utf8(&entry.path) else { return Ok(()) };
            let read = |content: &mut dyn Read| -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                content
                    .take(FILE_LIMIT)
                    .read_to_end(&mut bytes)
                    .map_err(|e| GuestError::malformed("the kernel package", e.to_string()))?;
                Ok(bytes)
            };
            let kernel = ["boot/vmlinux-", "boot/vmlinuz-"].iter().find_map(|p| path.strip_prefix(p));
            if let Some(release) = kernel {
                self.release = release.to_owned();
                self.image = read(content)?;
            } else if let Some(name) = module_name(path)
                && matches!(entry.kind, deb::EntryKind::File(_))
            {
                self.paths.insert(name, path.to_owned());
                self.modules.insert(path.to_owned(), read(content)?);
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl ModuleSet for KernelFiles {
    fn paths(&self) -> &BTreeMap<String, String> {
        &self.paths
    }

    fn load(&self, path: &str) -> Result<Vec<u8>> {
        self.modules.get(path).cloned().ok_or_else(|| GuestError::malformed(path, "it is missing"))
    }
}
