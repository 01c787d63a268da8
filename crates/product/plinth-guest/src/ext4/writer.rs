//! Puts content, then the tree, into the image file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::dir;
use super::extent::{ExtentMap, Extents};
use super::inode::{self, Body, Inode, TYPE_DIRECTORY, TYPE_REGULAR};
use super::layout::{
    FIRST_INODE, GROUP_BLOCKS, GroupUse, JOURNAL_INODE, Layout, Options, ROOT_INODE, Totals,
    journal_superblock,
};
use super::{BLOCK, BLOCK_LEN};
use crate::error::{AtPath, GuestError, Result};
use crate::tree::{Content, Kind, Meta, NodeId, ROOT, Tree};

/// Bytes written at once.
const CHUNK: usize = 256 * 1024;
/// `lost+found` has room for what a check finds, so that the check need not allocate.
const LOST_FOUND_BLOCKS: usize = 4;
/// More subdirectories than this are counted as "1" (`dir_nlink`).
const LINK_LIMIT: u64 = 65_000;

/// Hands out blocks from the front to the back, around the groups' own tables.
#[derive(Debug)]
struct Allocator {
    group: u64,
    next: u64,
}

/// An image in the making.
#[derive(Debug)]
pub struct ImageWriter {
    file: File,
    path: PathBuf,
    options: Options,
    layout: Layout,
    allocator: Mutex<Allocator>,
}

impl ImageWriter {
    /// Begins an image in `file`, which is empty; `path` is for messages.
    pub fn create(file: File, path: &Path, options: Options) -> Result<Self> {
        let layout = Layout::new(options.size)?;
        file.set_len(options.size).at("sizing", path)?;
        let allocator = Mutex::new(Allocator { group: 0, next: layout.data_start(0) });
        Ok(Self { file, path: path.to_owned(), options, layout, allocator })
    }

    /// Puts `len` bytes from `content` into the image. May be called from several threads at once.
    pub fn store(&self, content: &mut dyn Read, len: u64) -> Result<Extents> {
        let extents = self.allocate(len)?;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        for (mut offset, mut left) in extents.ranges() {
            while left > 0 {
                let n = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
                content
                    .read_exact(&mut buffer[..n])
                    .map_err(|e| GuestError::malformed("a packed file", e.to_string()))?;
                self.write(offset, &buffer[..n])?;
                offset += n as u64;
                left -= n as u64;
            }
        }
        Ok(extents)
    }

    /// Reads content back.
    pub fn load(&self, extents: &Extents) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (offset, len) in extents.ranges() {
            let start = out.len();
            out.resize(start + usize::try_from(len).unwrap_or_default(), 0);
            self.file.read_exact_at(&mut out[start..], offset).at("reading", &self.path)?;
        }
        Ok(out)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).at("writing", &self.path)
    }

    fn allocate(&self, len: u64) -> Result<Extents> {
        let mut left = len.div_ceil(BLOCK);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut allocator = self.allocator.lock().unwrap_or_else(|e| e.into_inner());
        while left > 0 {
            if allocator.group >= self.layout.groups {
                return Err(GuestError::ImageFull {
                    needed: format!("the files do not fit into {} MiB", self.options.size >> 20),
                });
            }
            let room = self.layout.group_end(allocator.group) - allocator.next;
            let n = room.min(left);
            if n > 0 {
                runs.push((allocator.next, n));
                allocator.next += n;
                left -= n;
            } else {
                allocator.group += 1;
                if allocator.group < self.layout.groups {
                    allocator.next = self.layout.data_start(allocator.group);
                }
            }
        }
        Ok(Extents { runs, len })
    }

    /// Writes the tree and all tables. The caller syncs the file.
    pub fn finish(self, tree: &Tree<Extents>) -> Result<()> {
        let mut tables = Tables::new(&self);
        let numbers = tables.number(tree)?;
        tables.write_journal()?;
        tables.write_tree(tree, &numbers)?;
        tables.write_groups()
    }
}

/// Inode numbers of a tree, and how many names lead to each node.
struct Numbers {
    inodes: HashMap<NodeId, u32>,
    links: HashMap<NodeId, u64>,
    /// Every node once, directories before what is in them, with the directory it was first seen in.
    order: Vec<(NodeId, NodeId)>,
}

/// The bitmaps and counts that grow while the tree is written.
struct Tables<'a> {
    image: &'a ImageWriter,
    block_bitmaps: Vec<Vec<u8>>,
    inode_bitmaps: Vec<Vec<u8>>,
    directories: Vec<u64>,
    journal_map: [u8; 60],
    next_inode: u32,
}

impl<'a> Tables<'a> {
    fn new(image: &'a ImageWriter) -> Self {
        let layout = &image.layout;
        let groups = usize::try_from(layout.groups).unwrap_or_default();
        let mut tables = Self {
            image,
            block_bitmaps: vec![vec![0; BLOCK_LEN]; groups],
            inode_bitmaps: vec![vec![0; BLOCK_LEN]; groups],
            directories: vec![0; groups],
            journal_map: [0; 60],
            next_inode: FIRST_INODE + 1,
        };
        for (group, (blocks, inodes)) in
            (0..).zip(tables.block_bitmaps.iter_mut().zip(&mut tables.inode_bitmaps))
        {
            let start = layout.group_start(group);
            set_bits(blocks, 0, layout.data_start(group) - start);
            // What lies behind the end counts as used.
            let end = layout.group_end(group) - start;
            set_bits(blocks, end, GROUP_BLOCKS - end);
            set_bits(inodes, layout.inodes_per_group, GROUP_BLOCKS - layout.inodes_per_group);
        }
        set_bits(&mut tables.inode_bitmaps[0], 0, u64::from(FIRST_INODE));
        tables
    }

    /// Gives every node of the tree an inode number.
    fn number(&mut self, tree: &Tree<Extents>) -> Result<Numbers> {
        let mut numbers = Numbers {
            inodes: HashMap::from([(ROOT, ROOT_INODE)]),
            links: HashMap::new(),
            order: vec![(ROOT, ROOT)],
        };
        let mut at = 0;
        while let Some(&(parent, _)) = numbers.order.get(at) {
            at += 1;
            for (_, id) in tree.entries(parent) {
                *numbers.links.entry(id).or_default() += 1;
                if let std::collections::hash_map::Entry::Vacant(entry) = numbers.inodes.entry(id) {
                    let inode = self.next_inode;
                    if u64::from(inode) > self.image.layout.inodes() {
                        return Err(GuestError::ImageFull {
                            needed: "there are too many files in it".into(),
                        });
                    }
                    self.next_inode += 1;
                    let (group, index) = self.inode_place(inode);
                    set_bits(&mut self.inode_bitmaps[group], index, 1);
                    entry.insert(inode);
                    numbers.order.push((id, parent));
                }
            }
        }
        Ok(numbers)
    }

    fn inode_place(&self, inode: u32) -> (usize, u64) {
        let per_group = self.image.layout.inodes_per_group;
        let index = u64::from(inode) - 1;
        (usize::try_from(index / per_group).unwrap_or_default(), index % per_group)
    }

    fn mark_used(&mut self, runs: &[(u64, u64)]) {
        for &(start, blocks) in runs {
            // A run never leaves its group: the next one begins with tables.
            let group = usize::try_from(start / GROUP_BLOCKS).unwrap_or_default();
            set_bits(&mut self.block_bitmaps[group], start % GROUP_BLOCKS, blocks);
        }
    }

    /// Makes the body of an inode whose content is in the image, and marks its blocks.
    fn body(&mut self, extents: &Extents) -> Result<Body> {
        let image = self.image;
        let mut failure = None;
        let map = ExtentMap::new(extents, &mut || match image.allocate(BLOCK) {
            Ok(block) => block.runs.first().map(|(start, _)| *start),
            Err(error) => {
                failure = Some(error);
                None
            }
        });
        let map = map.ok_or_else(|| {
            failure.unwrap_or_else(|| GuestError::ImageFull { needed: "a file is in too many pieces".into() })
        })?;
        self.mark_used(&extents.runs);
        for (block, content) in &map.leaves {
            self.mark_used(&[(*block, 1)]);
            self.image.write(block * BLOCK, content)?;
        }
        let blocks = extents.blocks() + map.leaves.len() as u64;
        Ok(Body::Extents { map: map.root, len: extents.len, blocks })
    }

    fn write_inode(&self, number: u32, inode: &Inode) -> Result<()> {
        self.image.write(self.image.layout.inode_offset(number), &inode.encode())
    }

    fn write_journal(&mut self) -> Result<()> {
        let blocks = self.image.layout.journal_blocks;
        let extents = self.image.allocate(blocks * BLOCK)?;
        // The log itself stays a hole: nothing in it counts before the first transaction.
        let superblock = journal_superblock(blocks, &self.image.options.uuid);
        if let Some((offset, _)) = extents.ranges().next() {
            self.image.write(offset, &superblock)?;
        }
        let body = self.body(&extents)?;
        if let Body::Extents { map, .. } = &body {
            self.journal_map = *map;
        }
        let meta = Meta::root(0o600, self.image.options.time);
        self.write_inode(JOURNAL_INODE, &Inode { file_type: TYPE_REGULAR, meta, links: 1, body })
    }

    fn write_tree(&mut self, tree: &Tree<Extents>, numbers: &Numbers) -> Result<()> {
        self.write_lost_found()?;
        for &(id, parent) in &numbers.order {
            let node = tree.node(id);
            let mut links = numbers.links.get(&id).copied().unwrap_or(1);
            let body = match &node.kind {
                Kind::Directory(_) => {
                    let subdirectories = tree
                        .entries(id)
                        .filter(|(_, id)| matches!(tree.node(*id).kind, Kind::Directory(_)))
                        .count() as u64
                        + u64::from(id == ROOT); // lost+found
                    links = if subdirectories + 2 > LINK_LIMIT { 1 } else { subdirectories + 2 };
                    let (group, _) = self.inode_place(numbers.inodes[&id]);
                    self.directories[group] += 1;
                    let content = directory(tree, id, parent, numbers);
                    self.store_body(&content)?
                }
                Kind::File(Content::Stored(extents)) => self.body(extents)?,
                Kind::File(Content::Bytes(bytes)) => self.store_body(bytes)?,
                Kind::Symlink(target) if inode::is_fast_link(target) => Body::Link(target.clone()),
                Kind::Symlink(target) => self.store_body(target)?,
                Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                    Body::Device(*major, *minor)
                }
                Kind::Fifo => Body::Empty,
            };
            let inode = Inode { file_type: inode::file_type(&node.kind), meta: node.meta, links, body };
            self.write_inode(numbers.inodes[&id], &inode)?;
        }
        Ok(())
    }

    fn store_body(&mut self, mut bytes: &[u8]) -> Result<Body> {
        let len = bytes.len() as u64;
        let extents = self.image.store(&mut bytes, len)?;
        self.body(&extents)
    }

    fn write_lost_found(&mut self) -> Result<()> {
        let mut content =
            dir::encode(&[(b".", FIRST_INODE, TYPE_DIRECTORY), (b"..", ROOT_INODE, TYPE_DIRECTORY)]);
        for _ in 1..LOST_FOUND_BLOCKS {
            // A block without an entry is one unused entry.
            let mut block = vec![0; BLOCK_LEN];
            super::layout::put16(&mut block, 4, BLOCK);
            content.append(&mut block);
        }
        let body = self.store_body(&content)?;
        self.directories[0] += 1;
        let meta = Meta::root(0o700, self.image.options.time);
        self.write_inode(FIRST_INODE, &Inode { file_type: TYPE_DIRECTORY, meta, links: 2, body })
    }

    /// Writes the bitmaps, descriptors and superblocks.
    fn write_groups(self) -> Result<()> {
        let layout = &self.image.layout;
        let mut uses = Vec::new();
        for (i, group) in (0..layout.groups).enumerate() {
            let free = |bitmap: &[u8]| bitmap.iter().map(|b| u64::from(b.count_zeros())).sum();
            uses.push(GroupUse {
                free_blocks: free(&self.block_bitmaps[i]),
                free_inodes: free(&self.inode_bitmaps[i]),
                directories: self.directories[i],
            });
            self.image.write(layout.block_bitmap(group) * BLOCK, &self.block_bitmaps[i])?;
            self.image.write(layout.inode_bitmap(group) * BLOCK, &self.inode_bitmaps[i])?;
        }
        let totals = Totals {
            free_blocks: uses.iter().map(|u| u.free_blocks).sum(),
            free_inodes: uses.iter().map(|u| u.free_inodes).sum(),
            journal_map: self.journal_map,
        };
        let descriptors = layout.descriptors(&uses);
        for group in (0..layout.groups).filter(|group| layout.has_superblock(*group)) {
            let start = layout.group_start(group) * BLOCK;
            // The first 1024 bytes of the image belong to boot loaders.
            let offset = if group == 0 { 1024 } else { start };
            self.image.write(offset, &layout.superblock(&self.image.options, &totals, group))?;
            self.image.write(start + BLOCK, &descriptors)?;
        }
        Ok(())
    }
}

fn directory(tree: &Tree<Extents>, id: NodeId, parent: NodeId, numbers: &Numbers) -> Vec<u8> {
    let mut entries: Vec<dir::Entry<'_>> =
        vec![(b".", numbers.inodes[&id], TYPE_DIRECTORY), (b"..", numbers.inodes[&parent], TYPE_DIRECTORY)];
    if id == ROOT {
        entries.push((b"lost+found", FIRST_INODE, TYPE_DIRECTORY));
    }
    for (name, child) in tree.entries(id).filter(|(name, _)| id != ROOT || *name != b"lost+found") {
        entries.push((name, numbers.inodes[&child], inode::file_type(&tree.node(child).kind)));
    }
    dir::encode(&entries)
}

/// Sets `count` bits from `start` on; stays inside the bitmap.
fn set_bits(bitmap: &mut [u8], start: u64, count: u64) {
    for bit in start..start + count {
        if let Some(byte) = bitmap.get_mut(usize::try_from(bit / 8).unwrap_or(usize::MAX)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::process::Command;

    use super::*;

    fn tool(name: &str) -> Option<PathBuf> {
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.is_file())
    }

    fn options(size: u64) -> Options {
        Options { size, label: "plinth-root".into(), uuid: *b"0123456789abcdef", time: 1_700_000_000 }
    }

    /// Builds an image and lets e2fsck judge it.
    fn build(size: u64, fill: impl FnOnce(&ImageWriter, &mut Tree<Extents>)) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let writer = ImageWriter::create(file, &path, options(size)).unwrap();
        let mut tree = Tree::new(1_600_000_000);
        fill(&writer, &mut tree);
        writer.finish(&tree).unwrap();
        if let Some(e2fsck) = tool("e2fsck") {
            let output = Command::new(e2fsck).arg("-fn").arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            assert!(!text.contains("ix?"), "{text}");
        }
        (dir, path)
    }

    fn debugfs(path: &Path, command: &str) -> Option<Vec<u8>> {
        let output = Command::new(tool("debugfs")?).args(["-R", command]).arg(path).output().unwrap();
        Some(output.stdout)
    }

    #[test]
    fn empty_images_of_many_sizes() {
        for mib in [16, 17, 127, 128, 129, 130, 200, 1024, 2048, 5000] {
            build((mib << 20) + 4096 * (mib % 3), |_, _| {});
        }
    }

    #[test]
    fn every_kind_of_node() {
        let long_link = format!("/{}", "x".repeat(200));
        let big: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 251) as u8).collect();
        let (_dir, path) = build(64 << 20, |writer, tree| {
            let meta = Meta { mode: 0o4755, uid: 70_000, gid: 100_000, mtime: 1_500_000_000 };
            let extents = writer.store(&mut &big[..], big.len() as u64).unwrap();
            assert_eq!(writer.load(&extents).unwrap(), big);
            tree.put(b"usr/bin/big", crate::tree::Node { meta, kind: Kind::File(Content::Stored(extents)) })
                .unwrap();
            tree.file("etc/empty", meta, "").unwrap();
            tree.file("etc/small", meta, "small\n").unwrap();
            tree.link(b"etc/again", b"etc/small", 0).unwrap();
            tree.symlink("fast", "usr/bin", 0).unwrap();
            tree.symlink("slow", &long_link, 0).unwrap();
            tree.symlink("edge", &"y".repeat(59), 0).unwrap();
            tree.symlink("edge2", &"y".repeat(60), 0).unwrap();
            for (name, kind) in [
                ("dev/null", Kind::CharDevice(1, 3)),
                ("dev/vda", Kind::BlockDevice(254, 0)),
                ("dev/wide", Kind::BlockDevice(259, 70_000)),
                ("pipe", Kind::Fifo),
            ] {
                tree.put(name.as_bytes(), crate::tree::Node { meta, kind }).unwrap();
            }
            for i in 0..3000 {
                tree.file(&format!("many/{}{i}", "n".repeat(i % 200)), meta, format!("{i}")).unwrap();
                tree.directory(&format!("dirs/{i}"), meta).unwrap();
            }
        });
        let Some(content) = debugfs(&path, "cat /usr/bin/big") else { return };
        assert!(content == big);
        let stat = |name: &str| String::from_utf8(debugfs(&path, &format!("stat {name}")).unwrap()).unwrap();
        let big = stat("/usr/bin/big");
        assert!(big.contains("Mode:  04755") && big.contains("User: 70000"), "{big}");
        assert!(big.contains("Group: 100000"), "{big}");
        assert!(stat("/etc/small").contains("Links: 2"));
        assert!(stat("/dev/null").contains("01:03 (hex 01:03)"), "{}", stat("/dev/null"));
        assert!(stat("/dev/wide").contains("259:70000"), "{}", stat("/dev/wide"));
        assert!(stat("/dirs").contains("Links: 3002"));
        assert!(stat("/slow").contains("Size: 201"));
        let name = format!("/many/{}42", "n".repeat(42));
        assert_eq!(debugfs(&path, &format!("cat {name}")).unwrap_or_default(), b"42");
    }

    #[test]
    fn files_across_groups_and_leaf_blocks() {
        // The tables between the groups cut a file into more pieces than an inode holds.
        let (_dir, path) = build(1 << 30, |writer, tree| {
            let meta = Meta::root(0o644, 0);
            let extents = writer.store(&mut io::repeat(0), 700 << 20).unwrap();
            assert!(extents.runs.len() > 4);
            tree.put(b"large", crate::tree::Node { meta, kind: Kind::File(Content::Stored(extents)) })
                .unwrap();
        });
        let Some(stat) = debugfs(&path, "stat /large") else { return };
        let stat = String::from_utf8(stat).unwrap();
        assert!(stat.contains("ETB0"), "{stat}");
    }

    #[test]
    fn too_much_content_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let writer = ImageWriter::create(file, &path, options(16 << 20)).unwrap();
        assert!(matches!(writer.store(&mut io::empty(), u64::MAX), Err(GuestError::ImageFull { .. })));
        let writer = {
            let file = File::options().read(true).write(true).open(&path).unwrap();
            ImageWriter::create(file, &path, options(16 << 20)).unwrap()
        };
        assert!(matches!(writer.store(&mut &b"short"[..], 10), Err(GuestError::Malformed { .. })));
        let mut tree = Tree::new(0);
        for i in 0..5000 {
            tree.file(&format!("f{i}"), Meta::root(0o644, 0), "").unwrap();
        }
        assert!(matches!(writer.finish(&tree), Err(GuestError::ImageFull { .. })));
    }
}
