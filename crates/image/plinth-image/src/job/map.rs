//! Where a disk's bytes are.

use crate::Error;
use crate::graph::{Extent, Node};

/// A run of bytes that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub start: u64,
    /// What is known of it and the bytes that follow.
    pub extent: Extent,
}

impl MapEntry {
    fn joins(&self, next: &Extent) -> bool {
        let Extent { len, zero, present, data, compressed, depth, host } = &self.extent;
        let follows = match (host, next.host) {
            (Some(a), Some(b)) => a.checked_add(*len) == Some(b),
            (None, None) => true,
            _ => false,
        };
        follows
            && (*zero, *present, *data, *compressed, *depth)
                == (next.zero, next.present, next.data, next.compressed, next.depth)
    }
}

/// Gives `each` the runs of a range, in order, each as long as it is; those on the two sides of one of the `borders`,
/// in order, are not one.
///
/// # Errors
/// The node's; those of `each`.
pub async fn map<E: From<Error>>(
    node: &dyn Node,
    start: u64,
    end: u64,
    borders: &[u64],
    each: &mut dyn FnMut(MapEntry) -> Result<(), E>,
) -> Result<(), E> {
    let end = end.min(node.size());
    let mut at = start;
    let mut current: Option<MapEntry> = None;
    while at < end {
        let mut extent = node.status(at, end - at).await?;
        extent.len = extent.len.clamp(1, end - at);
        let from = at;
        at += extent.len;
        match &mut current {
            Some(entry) if entry.joins(&extent) && borders.binary_search(&from).is_err() => {
                entry.extent.len += extent.len
            }
            _ => {
                if let Some(done) = current.replace(MapEntry { start: from, extent }) {
                    each(done)?;
                }
            }
        }
    }
    current.map_or(Ok(()), each)
}
