//! A Debian guest: its disk, its kernel and what starts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::arch::GuestArch;
use crate::archive::{Archive, Suite};
use crate::cache::{Cache, Pending, hex, sha256, write_file};
use crate::deb::Control;
use crate::dpkg;
use crate::error::{AtPath, GuestError, Result};
use crate::ext4::{ImageWriter, Options, check_size};
use crate::files::package_file;
use crate::initramfs;
use crate::mirror;
use crate::modules::{ModuleInfo, closure, depmod, unpack};
use crate::preset;
use crate::progress::{Progress, Unit};
use crate::release::Verification;
use crate::resolve::{Wanted, resolve};
use crate::rootfs::{self, Kernel, Unpacked, parallel};
use crate::setup::{Setup, Steps};
use crate::tree::Meta;

/// Counts up whenever the same spec gives another image, so that caches are built anew.
const FORMAT: u32 = 2;
/// The package that stands in for an initramfs generator: the initial file system comes from the host.
const OWN_PACKAGE: &str = "plinth-guest";
const OWN_PROVIDES: &str = "linux-initramfs-tool";
/// The base system besides the required packages.
pub(crate) const BASE: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "kmod",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "netbase",
    "procps",
    "linux-sysctl-defaults",
    "debian-archive-keyring",
    "ca-certificates",
    "curl",
    "less",
    "nano",
];

/// What guest to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebianSpec {
    /// The suite: a code name such as `trixie`.
    pub suite: String,
    /// The architecture.
    pub arch: GuestArch,
    /// Bytes of the disk.
    pub size: u64,
    /// The mirror; without one, the host's apt configuration names it.
    pub mirror: Option<String>,
    /// Packages besides the base system.
    pub packages: Vec<String>,
    /// The guest's host name.
    pub hostname: String,
    /// Fail when the suite's signature cannot be checked.
    pub require_signature: bool,
}

impl DebianSpec {
    /// The default guest of an architecture: Debian trixie on 2 GiB.
    pub fn new(arch: GuestArch) -> Self {
        Self {
            suite: "trixie".into(),
            arch,
            size: 2 << 30,
            mirror: None,
            packages: Vec::new(),
            hostname: "debian".into(),
            require_signature: false,
        }
    }

    fn check(&self) -> Result<()> {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 63
                && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        if !self.suite.split('.').all(word) {
            return Err(GuestError::Invalid(format!("\"{}\" is not the name of a suite", self.suite)));
        }
        if !self.hostname.split('.').all(word) || self.hostname.len() > 64 {
            return Err(GuestError::Invalid(format!("\"{}\" is not a host name", self.hostname)));
        }
        check_size(self.size)
    }

    /// The name of the image in the cache.
    fn key(&self, mirror: &mirror::Mirror) -> String {
        let mut packages = self.packages.clone();
        packages.sort();
        packages.dedup();
        let text = format!(
            "{FORMAT}\0{}\0{}\0{}\0{}\0{}\0{}\0{}",
            self.suite,
            self.arch,
            self.size,
            mirror.uri,
            packages.join(","),
            self.hostname,
            // Not to mix up what was checked with what was not.
            self.require_signature
        );
        format!("debian-{}-{}-{}", self.suite, self.arch, &sha256(text.as_bytes())[..16])
    }
}

/// A guest that is ready to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebianImage {
    /// The architecture.
    pub arch: GuestArch,
    /// The suite.
    pub suite: String,
    /// The raw disk: an ext4 file system without a partition table.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// The kernel's release.
    pub kernel_release: String,
    /// Installed packages: names and versions.
    pub packages: Vec<String>,
    /// The signature of the package index was checked.
    pub verified: bool,
}

impl DebianImage {
    /// Reads the description that a build has left beside the disk; its files have to be there still.
    pub fn load(manifest: &Path) -> Result<Self> {
        let text = fs::read(manifest).at("reading", manifest)?;
        let mut image: Self = serde_json::from_slice(&text)
            .map_err(|e| GuestError::malformed(manifest.display().to_string(), e.to_string()))?;
        // Names in it are relative, so that the folder can be moved.
        let folder = manifest.parent().unwrap_or(Path::new("."));
        for file in [&mut image.disk, &mut image.kernel, &mut image.initrd] {
            *file = folder.join(&*file);
            fs::metadata(&*file).at("looking for", file)?;
        }
        Ok(image)
    }

    fn save(&self, manifest: &Path) -> Result<()> {
        let name = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
        let relative = Self {
            disk: name(&self.disk),
            kernel: name(&self.kernel),
            initrd: name(&self.initrd),
            ..self.clone()
        };
        let mut text = serde_json::to_vec_pretty(&relative)
            .map_err(|e| GuestError::Invalid(format!("the image cannot be described: {e}")))?;
        text.push(b'\n');
        write_file(manifest, &text).map(drop)
    }
}

/// The guest from the user's cache; it is built if it is not there. The disk is the cached one: who
/// writes to it keeps what was written, until the folder is deleted.
pub fn cached_debian(spec: &DebianSpec, progress: &dyn Progress) -> Result<DebianImage> {
    let (cache, verification) = (Cache::of_user()?, Verification::of_host());
    Builder { cache: &cache, verification: &verification, progress }.cached(spec)
}

/// Builds a guest. Its disk is `out`; kernel, initial file system and description get the same name
/// with the endings `kernel`, `initrd` and `json`.
pub fn build_debian(spec: &DebianSpec, out: &Path, progress: &dyn Progress) -> Result<DebianImage> {
    let (cache, verification) = (Cache::of_user()?, Verification::of_host());
    Builder { cache: &cache, verification: &verification, progress }.build(spec, out)
}

/// What a build takes from its surroundings.
pub(crate) struct Builder<'a> {
    pub cache: &'a Cache,
    pub verification: &'a Verification,
    pub progress: &'a dyn Progress,
}

impl Builder<'_> {
    pub fn cached(&self, spec: &DebianSpec) -> Result<DebianImage> {
        spec.check()?;
        let mirror = mirror::find(spec.mirror.as_deref())?;
        let folder = self.cache.folder(&format!("images/{}", spec.key(&mirror)))?;
        let disk = folder.join("disk.raw");
        let manifest = disk.with_extension("json");
        if let Ok(image) = DebianImage::load(&manifest) {
            return Ok(image);
        }
        // Of two processes that want the same image, one builds it and the other one waits.
        let lock_path = folder.join("lock");
        let lock = fs::File::create(&lock_path).at("creating", &lock_path)?;
        lock.lock().at("locking", &lock_path)?;
        DebianImage::load(&manifest).or_else(|_| self.build(spec, &disk))
    }

    pub fn build(&self, spec: &DebianSpec, out: &Path) -> Result<DebianImage> {
        let Self { cache, verification, progress } = *self;
        spec.check()?;
        let taken = ["kernel", "initrd", "json"].iter().any(|e| out.extension() == Some(e.as_ref()));
        if out.file_name().is_none() || out.is_dir() || taken {
            return Err(GuestError::Invalid(format!("{} is not a name for a disk", out.display())));
        }
        let mirror = mirror::find(spec.mirror.as_deref())?;
        let archive =
            Archive { mirror, suite: spec.suite.clone(), arch: spec.arch, cache, verification, progress };
        let suite = archive.suite(spec.require_signature)?;
        let choice = Choice::new(spec, &suite)?;
        let files = archive.fetch(&suite.index, &choice.all)?;
        let busybox = busybox(&archive, &suite)?;

        let pending = Pending::create(out)?;
        let file = pending.file().try_clone().at("opening", pending.path())?;
        let uuid = uuid(spec, &suite, &choice);
        let time = suite.release.date.unwrap_or_default();
        let options = Options { size: spec.size, label: "debian".into(), uuid, time };
        let image = ImageWriter::create(file, pending.path(), options)?;
        let mut packages = rootfs::unpack(&image, &files, progress)?;
        packages.push(own_package());
        let mut tree = rootfs::place(&packages, time)?;

        let kernel = Kernel::find(&image, &tree)?;
        let tables = module_tables(&kernel, progress)?;
        let modules = closure(&kernel, initramfs::DISK_MODULES)?;
        let initrd = initramfs::debian(&busybox, &modules);
        let release = kernel.release.clone();
        let kernel_image = rootfs::read_file(&image, &tree, &kernel.path)?.unwrap_or_default();
        let folder = kernel.folder();

        progress.step("Writing the disk", 0, Unit::Items);
        for (name, content) in tables {
            tree.file(&format!("{folder}/{name}"), Meta::root(0o644, time), content)?;
        }
        let certificates = preset::certificates(&image, &mut tree, time)?;
        preset::enable_units(&image, &mut tree, &packages, time)?;
        preset::hardware_database(&image, &mut tree, time)?;
        // The kernel's scripts make its tables and its initial file system: both are done.
        let done = |package: &Unpacked| {
            package.name().starts_with("linux-image-")
                || (certificates && package.name() == "ca-certificates")
        };
        dpkg::write_database(&image, &mut tree, &packages, &done, time)?;
        let setup = Setup {
            hostname: &spec.hostname,
            suite: &spec.suite,
            mirror: &archive.mirror,
            uuid: &format_uuid(&uuid),
            time,
            arch: spec.arch,
        };
        let base = |package: &Unpacked| choice.base.iter().any(|name| name == package.name());
        setup.apply(&image, &mut tree, &packages, &Steps { base: &base, done: &done })?;
        image.finish(&tree)?;

        let manifest = out.with_extension("json");
        // From here on an old description would be wrong.
        if manifest.exists() {
            fs::remove_file(&manifest).at("removing", &manifest)?;
        }
        let built = DebianImage {
            arch: spec.arch,
            suite: suite.release.codename.clone(),
            kernel: write_file(&out.with_extension("kernel"), &kernel_image)?,
            initrd: write_file(&out.with_extension("initrd"), &initrd)?,
            disk: pending.commit()?,
            cmdline: format!("root=/dev/vda rw console={} quiet", spec.arch.data().console),
            kernel_release: release,
            packages: packages.iter().map(described).collect(),
            verified: suite.verified,
        };
        built.save(&manifest)?;
        Ok(built)
    }
}

/// The packages of a guest.
struct Choice {
    /// What gets installed.
    all: Vec<usize>,
    /// Names of what would be installed without the user's own packages.
    base: Vec<String>,
}

impl Choice {
    fn new(spec: &DebianSpec, suite: &Suite) -> Result<Self> {
        let kernel = kernel_package(spec.arch, &spec.suite, suite)?;
        let arch = spec.arch.to_string();
        let mut names: Vec<String> = BASE.iter().map(|n| (*n).to_owned()).collect();
        names.push(kernel);
        let provided = &[OWN_PROVIDES];
        let wanted = |names| Wanted { arch: &arch, suite: &spec.suite, names, provided };
        let base = resolve(&suite.index, &wanted(names.clone()))?;
        let base = base.into_iter().map(|id| suite.index.get(id).name.clone()).collect();
        names.extend(spec.packages.iter().cloned());
        Ok(Self { all: resolve(&suite.index, &wanted(names))?, base })
    }
}

/// The kernel that the metapackage stands for. The metapackage itself would bring newer kernels with
/// every upgrade, which nothing would boot.
pub(crate) fn kernel_package(arch: GuestArch, suite_name: &str, suite: &Suite) -> Result<String> {
    let meta = arch.data().kernel;
    let unknown =
        || GuestError::UnknownPackage { name: meta.into(), suite: suite_name.into(), arch: arch.to_string() };
    let id = suite.index.find(meta).ok_or_else(unknown)?;
    let [_, depends] = &suite.index.get(id).depends;
    crate::control::dependencies(depends)
        .into_iter()
        .flat_map(|d| d.alternatives)
        .map(|atom| atom.name)
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(unknown)
}

/// The program of the initial file system.
pub(crate) fn busybox(archive: &Archive<'_>, suite: &Suite) -> Result<Vec<u8>> {
    package_file(archive, suite, "busybox-static", &["usr/bin/busybox", "bin/busybox"])
}

/// Reads every module, to write what `depmod` would.
fn module_tables(kernel: &Kernel<'_>, progress: &dyn Progress) -> Result<Vec<(&'static str, Vec<u8>)>> {
    use crate::modules::ModuleSet;
    let paths: Vec<&String> = kernel.paths().values().collect();
    progress.step("Indexing kernel modules", paths.len() as u64, Unit::Items);
    let infos = Mutex::new(Vec::with_capacity(paths.len()));
    parallel(paths.len(), |i| {
        let path = paths[i];
        let info = ModuleInfo::parse(path, &unpack(path, kernel.load(path)?)?)?;
        infos.lock().unwrap_or_else(|e| e.into_inner()).push((path.clone(), info));
        progress.advance(1);
        Ok(())
    })?;
    let mut infos = infos.into_inner().unwrap_or_else(|e| e.into_inner());
    infos.sort_by(|(a, _), (b, _)| a.cmp(b));
    let text = |name: &str| Ok::<_, GuestError>(String::from_utf8_lossy(&kernel.text(name)?).into_owned());
    Ok(depmod(
        &infos,
        &text("modules.order")?,
        &text("modules.builtin")?,
        &kernel.text("modules.builtin.modinfo")?,
    ))
}

/// The package that tells the guest's dpkg what the host does for it.
fn own_package() -> Unpacked {
    let text = format!(
        "Package: {OWN_PACKAGE}\nVersion: {}\nArchitecture: all\nMaintainer: Plinth\nSection: admin\n\
         Priority: optional\nProvides: {OWN_PROVIDES}\nDescription: guest of the Plinth hypervisor\n \
         The kernel and its initial file system come from the host.\n",
        env!("CARGO_PKG_VERSION")
    );
    let stanza = crate::control::stanzas(&text).next().unwrap_or_default();
    let files = [("md5sums".to_owned(), (Vec::new(), 0o644))].into();
    Unpacked { control: Control { stanza, files }, entries: Vec::new() }
}

fn described(package: &Unpacked) -> String {
    let stanza = &package.control.stanza;
    format!("{} {}", package.name(), stanza.get("Version").unwrap_or_default())
}

/// A UUID made from what is in the image. Its form is that of version 8 of RFC 9562.
fn uuid(spec: &DebianSpec, suite: &Suite, choice: &Choice) -> [u8; 16] {
    let mut text = format!("{FORMAT} {} {}", spec.hostname, spec.size);
    for id in &choice.all {
        text.push_str(&suite.index.get(*id).sha256);
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(sha256(text.as_bytes()).as_bytes().chunks(2)) {
        *byte =
            std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()).unwrap_or_default();
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn format_uuid(uuid: &[u8; 16]) -> String {
    let text = hex(uuid);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}
