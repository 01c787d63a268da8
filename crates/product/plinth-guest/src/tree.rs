//! The files of a guest before they are in a file system: an index in memory with owners, modes and
//! device numbers as values, so that no root rights are needed.

use std::collections::BTreeMap;

use crate::error::{GuestError, Result};

/// Longest name of a directory entry (`NAME_MAX`).
pub const NAME_LIMIT: usize = 255;
/// Longest path and symbolic link (`PATH_MAX` less the final NUL).
pub const PATH_LIMIT: usize = 4095;
/// As many symbolic links in one path as Linux follows.
const LINK_LIMIT: usize = 40;
/// Entries one tree may have.
const NODE_LIMIT: usize = 4_000_000;

/// Number of a node in its [`Tree`].
pub type NodeId = usize;

/// The root directory of every tree.
pub const ROOT: NodeId = 0;

/// Content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<S> {
    /// In memory.
    Bytes(Vec<u8>),
    /// In the image already.
    Stored(S),
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<S> {
    /// A directory: names to nodes.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file.
    File(Content<S>),
    /// A symbolic link to the path.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Owner, permissions and time of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits, `0o7777` at most.
    pub mode: u16,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The modification time, seconds since 1970.
    pub mtime: i64,
}

impl Meta {
    /// Owned by root.
    pub fn root(mode: u16, mtime: i64) -> Self {
        Self { mode, uid: 0, gid: 0, mtime }
    }
}

/// A file, directory or other thing that names lead to; hard links lead to the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<S> {
    /// Owner, permissions, time.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind<S>,
}

/// A tree of nodes. `S` describes content that is stored elsewhere.
#[derive(Debug, Clone)]
pub struct Tree<S> {
    nodes: Vec<Node<S>>,
}

impl<S> Tree<S> {
    /// An empty tree.
    pub fn new(mtime: i64) -> Self {
        let root = Node { meta: Meta::root(0o755, mtime), kind: Kind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root] }
    }

    /// The node of that id, which came from this tree.
    pub fn node(&self, id: NodeId) -> &Node<S> {
        &self.nodes[id]
    }

    /// The node of that id, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node<S> {
        &mut self.nodes[id]
    }

    /// The entries of a directory; none for everything else.
    pub fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let entries = match &self.nodes[id].kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, id)| (name.as_slice(), *id))
    }

    fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[id].kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Finds a path. Symbolic links on the way are followed inside the tree and never out of it; one at
    /// the end is followed if `follow` says so.
    pub fn find(&self, path: &[u8], follow: bool) -> Option<NodeId> {
        let mut links = 0;
        self.walk(ROOT, path, follow, &mut links).map(|trail| trail.last().copied().unwrap_or(ROOT))
    }

    /// The directories passed and the node found; `..` goes back along them and stops at the root.
    fn walk(&self, start: NodeId, path: &[u8], follow: bool, links: &mut usize) -> Option<Vec<NodeId>> {
        let mut trail = vec![start];
        self.walk_from(&mut trail, path, follow, links)?;
        Some(trail)
    }

    fn walk_from(&self, trail: &mut Vec<NodeId>, path: &[u8], follow: bool, links: &mut usize) -> Option<()> {
        if path.starts_with(b"/") {
            trail.truncate(1);
        }
        let mut names =
            path.split(|c| *c == b'/').filter(|name| !name.is_empty() && *name != b".").peekable();
        while let Some(name) = names.next() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let id = self.child(*trail.last()?, name)?;
            match &self.nodes[id].kind {
                Kind::Symlink(target) if follow || names.peek().is_some() => {
                    *links += 1;
                    if *links > LINK_LIMIT {
                        return None;
                    }
                    self.walk_from(trail, target, true, links)?;
                }
                _ => trail.push(id),
            }
        }
        Some(())
    }

    /// Finds the directory a path's last name belongs in, and that name. Missing directories are made.
    fn parent(&mut self, path: &[u8], mtime: i64) -> Result<(NodeId, Vec<u8>)> {
        check_path(path)?;
        let mut names: Vec<&[u8]> =
            path.split(|c| *c == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
        let last = names.pop().ok_or_else(|| bad_path(path, "it names nothing"))?.to_vec();
        let mut walked: Vec<u8> = Vec::new();
        let mut parent = ROOT;
        for name in names {
            walked.push(b'/');
            walked.extend_from_slice(name);
            parent = match self.find(&walked, true) {
                Some(id) if matches!(self.nodes[id].kind, Kind::Directory(_)) => id,
                Some(_) => return Err(bad_path(path, "it leads through something that is no directory")),
                None if self.child(parent, name).is_some() => {
                    return Err(bad_path(path, "it leads through a symbolic link to nothing"));
                }
                None => {
                    let node =
                        Node { meta: Meta::root(0o755, mtime), kind: Kind::Directory(BTreeMap::new()) };
                    self.attach(parent, name.to_vec(), node)?
                }
            };
        }
        Ok((parent, last))
    }

    fn attach(&mut self, parent: NodeId, name: Vec<u8>, node: Node<S>) -> Result<NodeId> {
        let id = self.nodes.len();
        if id >= NODE_LIMIT {
            return Err(GuestError::ImageFull { needed: "too many files".into() });
        }
        self.nodes.push(node);
        self.link_node(parent, name, id);
        Ok(id)
    }

    fn link_node(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) {
        if let Kind::Directory(entries) = &mut self.nodes[parent].kind {
            entries.insert(name, id);
        }
    }

    /// Puts a node at a path, through the symbolic links of the directories before it. A directory that
    /// is there already, or a link to one, keeps its content and takes the new owner and mode, as when
    /// dpkg unpacks. Anything else there is replaced.
    pub fn put(&mut self, path: &[u8], node: Node<S>) -> Result<NodeId> {
        let (parent, name) = self.parent(path, node.meta.mtime)?;
        let is_directory = |tree: &Self, id: NodeId| matches!(tree.nodes[id].kind, Kind::Directory(_));
        if let Some(old) = self.child(parent, &name) {
            let new_is_directory = matches!(node.kind, Kind::Directory(_));
            if is_directory(self, old) {
                if new_is_directory {
                    self.nodes[old].meta = node.meta;
                    return Ok(old);
                }
                // dpkg never puts a link in the place of a directory with files.
                if matches!(node.kind, Kind::Symlink(_)) && self.entries(old).next().is_some() {
                    return Ok(old);
                }
                if self.entries(old).next().is_some() {
                    return Err(bad_path(path, "a directory with files in it is in the way"));
                }
            } else if new_is_directory
                && let Some(target) = self.find(path, true)
                && is_directory(self, target)
            {
                return Ok(target);
            }
        }
        self.attach(parent, name, node)
    }

    /// Puts another name for the node at `target` (a hard link) at `path`.
    pub fn link(&mut self, path: &[u8], target: &[u8], mtime: i64) -> Result<()> {
        let id = self
            .find(target, false)
            .filter(|id| !matches!(self.nodes[*id].kind, Kind::Directory(_)))
            .ok_or_else(|| bad_path(path, "it is a hard link to nothing"))?;
        let (parent, name) = self.parent(path, mtime)?;
        if let Some(old) = self.child(parent, &name)
            && matches!(self.nodes[old].kind, Kind::Directory(_))
        {
            return Err(bad_path(path, "a directory is in the way"));
        }
        self.link_node(parent, name, id);
        Ok(())
    }

    /// Puts a directory at a path.
    pub fn directory(&mut self, path: &str, meta: Meta) -> Result<NodeId> {
        self.put(path.as_bytes(), Node { meta, kind: Kind::Directory(BTreeMap::new()) })
    }

    /// Puts a regular file at a path.
    pub fn file(&mut self, path: &str, meta: Meta, content: impl Into<Vec<u8>>) -> Result<NodeId> {
        self.put(path.as_bytes(), Node { meta, kind: Kind::File(Content::Bytes(content.into())) })
    }

    /// Puts a symbolic link at a path.
    pub fn symlink(&mut self, path: &str, target: &str, mtime: i64) -> Result<NodeId> {
        let kind = Kind::Symlink(target.as_bytes().to_vec());
        self.put(path.as_bytes(), Node { meta: Meta::root(0o777, mtime), kind })
    }

    /// Is there anything at the path, a broken link included?
    pub fn exists(&self, path: &str) -> bool {
        self.find(path.as_bytes(), false).is_some()
    }
}

/// Refuses paths that lead out of the tree or that no file system takes.
pub fn check_path(path: &[u8]) -> Result<()> {
    if path.len() > PATH_LIMIT {
        return Err(bad_path(path, "it is too long"));
    }
    if path.contains(&0) {
        return Err(bad_path(path, "it has a NUL in it"));
    }
    for name in path.split(|c| *c == b'/') {
        if name == b".." {
            return Err(bad_path(path, "it has \"..\" in it"));
        }
        if name.len() > NAME_LIMIT {
            return Err(bad_path(path, "a name in it is too long"));
        }
    }
    Ok(())
}

fn bad_path(path: &[u8], reason: &str) -> GuestError {
    let shown: String = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    GuestError::malformed(format!("the path {shown:?}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree<()> {
        let mut tree = Tree::new(0);
        tree.directory("/usr/lib", Meta::root(0o755, 0)).unwrap();
        tree.symlink("/lib", "usr/lib", 0).unwrap();
        tree.symlink("/etc/up", "../../../../usr", 0).unwrap();
        tree.symlink("/loop", "/loop", 0).unwrap();
        tree.symlink("/broken", "/nowhere", 0).unwrap();
        tree
    }

    #[test]
    fn merged_usr_is_followed() {
        let mut tree = tree();
        tree.file("lib/a", Meta::root(0o644, 0), "a").unwrap();
        assert_eq!(tree.find(b"/usr/lib/a", false), tree.find(b"./lib/a", false));
        // A package that still has /lib as a directory does not undo the merge.
        tree.directory("/lib", Meta::root(0o755, 0)).unwrap();
        assert!(matches!(tree.node(tree.find(b"/lib", false).unwrap()).kind, Kind::Symlink(_)));
    }

    #[test]
    fn links_never_lead_out() {
        let mut tree = tree();
        assert_eq!(tree.find(b"/etc/up/lib", false), tree.find(b"/usr/lib", false));
        tree.file("/etc/up/new", Meta::root(0o644, 0), "x").unwrap();
        assert!(tree.exists("/usr/new"));
        assert_eq!(tree.find(b"/loop/x", true), None);
        assert!(tree.file("/loop/x", Meta::root(0o644, 0), "").is_err());
        assert!(tree.file("/broken/x", Meta::root(0o644, 0), "").is_err());
    }

    #[test]
    fn hostile_paths() {
        let mut tree = tree();
        let long = "x".repeat(256);
        for path in ["../x", "/a/../../x", "a/..", "", ".", "/", "a\0b", &long, &"y/".repeat(3000)] {
            assert!(tree.file(path, Meta::root(0o644, 0), "").is_err(), "{path:?}");
        }
        // What looks absolute is below the tree's root.
        tree.file("/etc/passwd", Meta::root(0o644, 0), "mine").unwrap();
        assert!(tree.exists("etc/passwd"));
    }

    #[test]
    fn hard_links_share_their_node() {
        let mut tree = tree();
        tree.file("/a", Meta::root(0o644, 0), "a").unwrap();
        tree.link(b"/b/c", b"./a", 0).unwrap();
        assert_eq!(tree.find(b"/b/c", false), tree.find(b"/a", false));
        assert!(tree.link(b"/d", b"/missing", 0).is_err());
        assert!(tree.link(b"/d", b"/usr", 0).is_err());
    }

    #[test]
    fn replacing() {
        let mut tree = tree();
        tree.file("/f", Meta::root(0o644, 0), "1").unwrap();
        tree.file("/f", Meta::root(0o600, 0), "2").unwrap();
        assert_eq!(tree.node(tree.find(b"/f", false).unwrap()).meta.mode, 0o600);
        assert!(tree.file("/usr", Meta::root(0o644, 0), "").is_err());
    }
}
