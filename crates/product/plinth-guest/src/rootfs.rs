//! From package files to the tree of a root file system.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::control::dependencies;
use crate::deb::{self, Control, Entry, EntryKind};
use crate::error::{GuestError, Result};
use crate::ext4::{Extents, ImageWriter};
use crate::modules::{ModuleSet, module_name};
use crate::progress::{Progress, Unit};
use crate::tree::{Content, Kind, Node, NodeId, Tree};

/// Entries one package may have.
const ENTRY_LIMIT: usize = 1_000_000;
/// The package whose links make `/bin` one with `/usr/bin`; it has to be placed before the others.
const LAYOUT_PACKAGE: &str = "base-files";

/// A package whose content is in the image.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Its control files.
    pub control: Control,
    /// Its entries in the order of the archive.
    pub entries: Vec<(Entry, Option<Extents>)>,
}

impl Unpacked {
    /// The name.
    pub fn name(&self) -> &str {
        self.control.stanza.get("Package").unwrap_or_default()
    }

    fn version(&self) -> &str {
        self.control.stanza.get("Version").unwrap_or_default()
    }

    /// Does it take over files of `other` (`Replaces`, Debian Policy section 7.6)?
    fn replaces(&self, other: &Self) -> bool {
        dependencies(self.control.stanza.get("Replaces").unwrap_or_default())
            .into_iter()
            .flat_map(|d| d.alternatives)
            .any(|atom| {
                atom.name == other.name()
                    && atom.version.is_none_or(|(relation, bound)| relation.holds(other.version(), &bound))
            })
    }
}

/// Unpacks packages into the image, several at once. The result is in the order of `files`.
pub fn unpack(image: &ImageWriter, files: &[PathBuf], progress: &dyn Progress) -> Result<Vec<Unpacked>> {
    let size = |file: &PathBuf| file.metadata().map_or(0, |m| m.len());
    progress.step("Unpacking packages", files.iter().map(size).sum(), Unit::Bytes);
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_cached_key(|i| std::cmp::Reverse(size(&files[*i])));
    let done: Mutex<Vec<Option<Unpacked>>> = Mutex::new(files.iter().map(|_| None).collect());
    parallel(order.len(), |i| {
        let at = order[i];
        let mut entries = Vec::new();
        let control = deb::read(&files[at], &mut |entry, content| {
            if entries.len() >= ENTRY_LIMIT {
                return Err(GuestError::malformed("deb", "it has too many files"));
            }
            let extents = match entry.kind {
                EntryKind::File(len) => Some(image.store(content, len)?),
                _ => None,
            };
            entries.push((entry, extents));
            Ok(())
        })?;
        progress.advance(size(&files[at]));
        done.lock().unwrap_or_else(|e| e.into_inner())[at] = Some(Unpacked { control, entries });
        Ok(())
    })?;
    Ok(done.into_inner().unwrap_or_else(|e| e.into_inner()).into_iter().flatten().collect())
}

/// Does `work` for 0..count on several threads, in order, until one fails.
pub fn parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    const MOST_THREADS: usize = 8;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<GuestError>> = Mutex::new(None);
    let lock = || failure.lock().unwrap_or_else(|e| e.into_inner());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || lock().is_some() {
                        return;
                    }
                    if let Err(error) = work(i) {
                        lock().get_or_insert(error);
                    }
                }
            });
        }
    });
    let outcome = lock().take();
    outcome.map_or(Ok(()), Err)
}

/// Puts everything into one tree, as dpkg would have done one package after the other.
pub fn place(packages: &[Unpacked], mtime: i64) -> Result<Tree<Extents>> {
    let mut tree = Tree::new(mtime);
    let mut owners: HashMap<NodeId, usize> = HashMap::new();
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|i| packages[*i].name() != LAYOUT_PACKAGE);
    for i in order {
        for (entry, extents) in &packages[i].entries {
            place_entry(&mut tree, &mut owners, packages, i, entry, extents.as_ref())?;
        }
    }
    Ok(tree)
}

fn place_entry(
    tree: &mut Tree<Extents>,
    owners: &mut HashMap<NodeId, usize>,
    packages: &[Unpacked],
    package: usize,
    entry: &Entry,
    extents: Option<&Extents>,
) -> Result<()> {
    if entry.path.is_empty() {
        tree.node_mut(crate::tree::ROOT).meta = entry.meta;
        return Ok(());
    }
    if !matches!(entry.kind, EntryKind::Directory)
        && let Some(owner) = tree.find(&entry.path, false).and_then(|id| owners.get(&id)).copied()
        && owner != package
    {
        let (new, old) = (&packages[package], &packages[owner]);
        if old.replaces(new) && !new.replaces(old) {
            return Ok(());
        }
        if !new.replaces(old) {
            return Err(GuestError::Conflict {
                package: new.name().to_owned(),
                other: format!("{} (both have /{})", old.name(), String::from_utf8_lossy(&entry.path)),
            });
        }
    }
    let kind = match &entry.kind {
        EntryKind::Directory => Kind::Directory(BTreeMap::new()),
        EntryKind::File(_) => Kind::File(match extents {
            Some(extents) => Content::Stored(extents.clone()),
            None => Content::Bytes(Vec::new()),
        }),
        EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
        EntryKind::HardLink(target) => {
            return tree.link(&entry.path, target, entry.meta.mtime);
        }
        EntryKind::CharDevice(major, minor) => Kind::CharDevice(*major, *minor),
        EntryKind::BlockDevice(major, minor) => Kind::BlockDevice(*major, *minor),
        EntryKind::Fifo => Kind::Fifo,
    };
    let is_directory = matches!(kind, Kind::Directory(_));
    let id = tree.put(&entry.path, Node { meta: entry.meta, kind })?;
    if !is_directory {
        owners.insert(id, package);
    }
    Ok(())
}

/// Reads a regular file of the tree, through symbolic links.
pub fn read_file(image: &ImageWriter, tree: &Tree<Extents>, path: &str) -> Result<Option<Vec<u8>>> {
    match tree.find(path.as_bytes(), true).map(|id| &tree.node(id).kind) {
        Some(Kind::File(Content::Bytes(bytes))) => Ok(Some(bytes.clone())),
        Some(Kind::File(Content::Stored(extents))) => image.load(extents).map(Some),
        _ => Ok(None),
    }
}

/// The kernel in a tree.
pub struct Kernel<'a> {
    /// Its release, such as `6.12.1-riscv64`.
    pub release: String,
    /// Path of its image.
    pub path: String,
    paths: BTreeMap<String, String>,
    image: &'a ImageWriter,
    tree: &'a Tree<Extents>,
}

impl<'a> Kernel<'a> {
    /// Finds the kernel: its image in `/boot` and its modules.
    pub fn find(image: &'a ImageWriter, tree: &'a Tree<Extents>) -> Result<Self> {
        let missing = || GuestError::malformed("the kernel package", "it has no kernel image in /boot");
        let boot = tree.find(b"/boot", true).ok_or_else(missing)?;
        let (path, release) = tree
            .entries(boot)
            .filter_map(|(name, _)| std::str::from_utf8(name).ok())
            .find_map(|name| {
                let release = name.strip_prefix("vmlinux-").or_else(|| name.strip_prefix("vmlinuz-"))?;
                Some((format!("/boot/{name}"), release.to_owned()))
            })
            .ok_or_else(missing)?;
        let mut paths = BTreeMap::new();
        let root = format!("/usr/lib/modules/{release}");
        if let Some(id) = tree.find(root.as_bytes(), true) {
            let mut open = vec![(id, String::new())];
            while let Some((id, folder)) = open.pop() {
                for (name, child) in tree.entries(id) {
                    let Ok(name) = std::str::from_utf8(name) else { continue };
                    let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                    match tree.node(child).kind {
                        Kind::Directory(_) => open.push((child, path)),
                        Kind::File(_) => paths.extend(module_name(&path).map(|name| (name, path))),
                        _ => {}
                    }
                }
            }
        }
        Ok(Self { release, path, paths, image, tree })
    }

    /// The folder of its modules.
    pub fn folder(&self) -> String {
        format!("/usr/lib/modules/{}", self.release)
    }

    /// One of its files, empty when it has none.
    pub fn text(&self, name: &str) -> Result<Vec<u8>> {
        Ok(read_file(self.image, self.tree, &format!("{}/{name}", self.folder()))?.unwrap_or_default())
    }
}

impl ModuleSet for Kernel<'_> {
    fn paths(&self) -> &BTreeMap<String, String> {
        &self.paths
    }

    fn load(&self, path: &str) -> Result<Vec<u8>> {
        self.text(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stanzas;
    use crate::tree::Meta;

    fn package(control: &str, entries: &[(&str, EntryKind)]) -> Unpacked {
        let stanza = stanzas(control).next().unwrap();
        let entries = entries
            .iter()
            .map(|(path, kind)| {
                let meta = Meta::root(0o755, 0);
                let extents = matches!(kind, EntryKind::File(_)).then(Extents::default);
                (Entry { path: path.as_bytes().to_vec(), meta, kind: kind.clone() }, extents)
            })
            .collect();
        Unpacked { control: Control { stanza, files: BTreeMap::new() }, entries }
    }

    #[test]
    fn the_layout_comes_first() {
        let packages = [
            package(
                "Package: a\nVersion: 1",
                &[("bin", EntryKind::Directory), ("bin/a", EntryKind::File(0))],
            ),
            package(
                "Package: base-files\nVersion: 1",
                &[("usr/bin", EntryKind::Directory), ("bin", EntryKind::Symlink(b"usr/bin".to_vec()))],
            ),
        ];
        let tree = place(&packages, 0).unwrap();
        assert!(tree.exists("/usr/bin/a"));
    }

    #[test]
    fn files_of_two_packages() {
        let file = [("x", EntryKind::File(0))];
        let old = || package("Package: old\nVersion: 1", &file);
        assert!(place(&[old(), package("Package: new\nVersion: 1", &file)], 0).is_err());
        let replacing = || package("Package: new\nVersion: 1\nReplaces: old (<< 2)", &file);
        assert!(place(&[old(), replacing()], 0).is_ok());
        assert!(place(&[replacing(), old()], 0).is_ok());
        assert!(
            place(&[old(), package("Package: new\nVersion: 1\nReplaces: old (<< 1)", &file)], 0).is_err()
        );
    }

    #[test]
    fn parallel_work_reports_its_failure() {
        let sum = AtomicUsize::new(0);
        parallel(100, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 4950);
        assert!(parallel(100, |i| if i == 50 { Err(GuestError::NoCache) } else { Ok(()) }).is_err());
    }
}
