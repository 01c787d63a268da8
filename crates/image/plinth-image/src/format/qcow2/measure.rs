//! How large a new image would be.

use super::create::{count_clusters, plan};
use crate::Error;
use crate::format::Options;
use crate::format::luks::inside;

/// Bytes of the files of a new image of a disk of `size` bytes, `used` of which (in whole clusters) are to be
/// allocated; and the same with all of them allocated. An external data file counts, as QEMU counts it.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) for options that make no sense.
pub fn measure(size: u64, used: u64, options: &Options) -> Result<(u64, u64), Error> {
    let plan = plan(size, options)?;
    let header = &plan.header;
    let cluster = header.cluster_size();
    let tables = size.div_ceil(header.l2_span());
    let l1 = (plan.l1_entries * 8).div_ceil(cluster);
    let luks = plan.luks.as_ref().map(inside::len).transpose()?.unwrap_or(0).div_ceil(cluster);
    let data = size.div_ceil(cluster);
    // Tables are reckoned for the full disk in both cases.
    let other = 1 + l1 + tables + luks + data;
    let (blocks, table) = count_clusters(other, header.cluster_bits, header.refcount_order);
    let full = (other + blocks + table) * cluster;
    let preallocated = matches!(plan.preallocation.as_str(), "falloc" | "full");
    let required = full - (data - used.div_ceil(cluster).min(data)) * cluster;
    Ok((if preallocated { full } else { required }, full))
}
