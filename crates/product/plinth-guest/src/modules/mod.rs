//! Kernel modules: what they need, and the tables that tell the guest's `modprobe`.
//!
//! Debian makes these tables (`depmod`) when a kernel is configured. On an emulated CPU, unpacking three
//! thousand modules for that takes minutes; on the host it takes seconds.

mod index;
mod info;
mod tables;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

pub use info::ModuleInfo;
pub use tables::depmod;

use crate::error::{GuestError, Result};

/// No module is larger than this.
const MODULE_LIMIT: u64 = 256 << 20;

/// Modules of one kernel by their name, as the packages have them.
pub trait ModuleSet {
    /// Paths below `/usr/lib/modules/VERSION`, by module name.
    fn paths(&self) -> &BTreeMap<String, String>;
    /// The file at one of the paths, still packed.
    fn load(&self, path: &str) -> Result<Vec<u8>>;
}

/// The name of a module from its path: without folder and suffix, with `_` for `-`.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

/// Unpacks a module by the suffix of its path.
pub fn unpack(path: &str, packed: Vec<u8>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let input = &packed[..];
    let result = match path.rsplit('.').next() {
        Some("xz") => liblzma::read::XzDecoder::new(input).take(MODULE_LIMIT).read_to_end(&mut out),
        Some("gz") => flate2::read::GzDecoder::new(input).take(MODULE_LIMIT).read_to_end(&mut out),
        Some("zst") => zstd::Decoder::new(input).and_then(|d| d.take(MODULE_LIMIT).read_to_end(&mut out)),
        _ => return Ok(packed),
    };
    result.map_err(|e| GuestError::malformed(format!("the kernel module {path}"), e.to_string()))?;
    Ok(out)
}

/// The wanted modules and all they need, unpacked, in an order they can be loaded in. Those the kernel
/// has built in are not in the set and are left out.
pub fn closure(set: &dyn ModuleSet, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    for name in wanted {
        visit(set, name, &mut seen, &mut order)?;
    }
    Ok(order)
}

fn visit(
    set: &dyn ModuleSet,
    name: &str,
    seen: &mut HashSet<String>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = set.paths().get(&name) else { return Ok(()) };
    // A cycle ends here too; the kernel would refuse it, we need not run forever.
    if !seen.insert(name.clone()) {
        return Ok(());
    }
    let bytes = unpack(path, set.load(path)?)?;
    let info = ModuleInfo::parse(path, &bytes)?;
    for needed in info.depends.iter().chain(&info.soft_before()) {
        visit(set, needed, seen, order)?;
    }
    order.push((name, bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(BTreeMap<String, String>);

    impl ModuleSet for Fake {
        fn paths(&self) -> &BTreeMap<String, String> {
            &self.0
        }

        fn load(&self, path: &str) -> Result<Vec<u8>> {
            let info: &[u8] = match path {
                "kernel/a-x.ko" => b"depends=b\0softdep=pre: c post: d\0",
                "kernel/b.ko" => b"depends=c,builtin\0",
                "kernel/c.ko" => b"depends=\0",
                "kernel/cycle.ko" => b"depends=cycle\0",
                _ => return Err(GuestError::malformed(path, "missing")),
            };
            Ok(info::tests::elf(&[(".modinfo", info)]))
        }
    }

    #[test]
    fn closures_are_ordered() {
        let paths = ["kernel/a-x.ko", "kernel/b.ko", "kernel/c.ko", "kernel/cycle.ko"];
        let set = Fake(paths.iter().map(|p| (module_name(p).unwrap(), (*p).to_owned())).collect());
        let names = |wanted: &[&str]| -> Vec<String> {
            closure(&set, wanted).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&["a-x", "nothing"]), ["c", "b", "a_x"]);
        assert_eq!(names(&["cycle"]), ["cycle"]);
    }

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/x/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("modules.order"), None);
    }
}
