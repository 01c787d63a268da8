//! `quorum`: several copies of a disk, of which so many have to agree.

use std::cell::Cell;
use std::rc::Rc;

use futures_util::future::join_all;
use plinth_image::format::Image;
use plinth_image::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, check_range, check_write};
use plinth_image::{Error, ErrorKind};

use super::names;
use super::tree::Tree;

/// Copies at most.
const MAX: usize = 32;

/// The copies.
pub struct Quorum {
    info: NodeInfo,
    size: Cell<u64>,
    copies: Vec<NodeRef>,
    /// How many have to agree.
    votes: usize,
}

/// What options say of the copies: their descriptions, and how many of them have to agree.
pub fn described(tree: &mut Tree) -> Result<(Vec<Tree>, usize), String> {
    let mut copies = Vec::new();
    while let Some(copy) = tree.below.remove(&format!("children.{}", copies.len())) {
        copies.push(copy);
    }
    if !(1..=MAX).contains(&copies.len()) {
        return Err(format!("Number of provided children must be 1 to {MAX}"));
    }
    let votes = tree.options.remove("vote-threshold");
    let votes = votes.and_then(|v| names::size(&v)?.ok()).filter(|&v| v > 0);
    let votes = votes.ok_or("Parameter 'vote-threshold' expects a number above 0")? as usize;
    if votes > copies.len() {
        return Err("threshold may not exceed children count".to_owned());
    }
    // All of them are read in any case, and nothing is mended behind the user's back.
    for (name, usual) in [("read-pattern", "quorum"), ("blkverify", "off"), ("rewrite-corrupted", "off")] {
        if let Some(value) = tree.options.remove(name).filter(|v| v != usual) {
            return Err(format!("{name}={value} is not supported"));
        }
    }
    Ok((copies, votes))
}

impl Quorum {
    /// A disk of copies, which have the same size.
    pub fn new(copies: Vec<Rc<dyn Image>>, votes: usize) -> Result<Self, String> {
        let size = copies.first().map_or(0, |c| c.size());
        if copies.iter().any(|c| c.size() != size) {
            return Err("The children of a quorum must have the same size".to_owned());
        }
        let info = NodeInfo {
            name: "quorum".to_owned(),
            read_only: copies.iter().any(|c| c.info().read_only),
            block: copies.iter().map(|c| c.info().block).max().unwrap_or(1),
        };
        Ok(Self {
            info,
            size: Cell::new(size),
            copies: copies.into_iter().map(|c| c as NodeRef).collect(),
            votes,
        })
    }

    fn no_majority(&self, doing: &str, first: Option<Error>) -> Error {
        first.unwrap_or_else(|| {
            let why = format!("not {} of the {} copies agree", self.votes, self.copies.len());
            Error::new(ErrorKind::Io, format!("cannot {doing} the quorum"), why)
        })
    }

    /// Done if it went well with enough of the copies.
    async fn enough<'a>(
        &'a self,
        doing: &str,
        each: impl Fn(&'a NodeRef) -> Io<'a, ()>,
    ) -> Result<(), Error> {
        let done = join_all(self.copies.iter().map(each)).await;
        if done.iter().filter(|r| r.is_ok()).count() >= self.votes {
            return Ok(());
        }
        Err(self.no_majority(doing, done.into_iter().find_map(Result::err)))
    }
}

impl Node for Quorum {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            let reads = self.copies.iter().map(|c| c.read(offset, IoBuf::new(buf.len())));
            let (mut good, mut bad) = (Vec::new(), None);
            for read in join_all(reads).await {
                match read {
                    Ok(bytes) => good.push(bytes),
                    Err(e) => _ = bad.get_or_insert(e),
                }
            }
            let agree = |bytes: &IoBuf| good.iter().filter(|g| g[..] == bytes[..]).count();
            let best = (0..good.len()).max_by_key(|&n| (agree(&good[n]), std::cmp::Reverse(n)));
            match best.filter(|&n| agree(&good[n]) >= self.votes) {
                Some(n) => Ok(good.swap_remove(n)),
                None => Err(self.no_majority("read", bad)),
            }
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            self.enough("write to", |c| c.write(offset, data.clone())).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            self.enough("write to", |c| c.write_zeroes(offset, len, unmap)).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            // Copies need not read the same afterwards, so nothing is discarded.
            Ok(())
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move { self.enough("flush", |c| c.flush()).await })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            // What is a hole in one copy may be data in another.
            Ok(Extent::stored(len, None))
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            self.enough("resize", |c| c.resize(size)).await?;
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move { self.enough("close", |c| c.close()).await })
    }
}
