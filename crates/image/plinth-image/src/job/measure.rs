//! How large an image would be.

use super::plan::{Kind, Plan};
use crate::format::{Format, Options};
use crate::graph::Node;
use crate::{Error, ErrorKind, SECTOR};

/// Bytes that an image's file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// With the contents that it was measured for.
    pub required: u64,
    /// When all of the disk is written.
    pub fully_allocated: u64,
}

/// What the new image would hold.
pub enum Contents<'a> {
    /// Nothing yet, in so many bytes.
    Size(u64),
    /// What a disk holds.
    Disk(&'a dyn Node),
}

fn refused(format: Format, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("cannot measure an image of the format {format}"), why)
}

/// Bytes that the file of a new image needs.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for formats other than raw and qcow2; [`ErrorKind::Invalid`] options; the disk's.
pub async fn measure(format: Format, options: &Options, contents: Contents<'_>) -> Result<Measured, Error> {
    let size = match contents {
        Contents::Size(size) => size,
        Contents::Disk(disk) => disk.size(),
    };
    let size = size
        .checked_next_multiple_of(SECTOR)
        .filter(|&s| s <= i64::MAX as u64)
        .ok_or_else(|| refused(format, format!("no disk has {size} bytes")))?;
    match format {
        Format::Raw => Ok(Measured { required: size, fully_allocated: size }),
        Format::Qcow2 => qcow2(size, options, contents).await,
        _ => {
            let doing = format!("cannot measure an image of the format {format}");
            Err(Error::new(ErrorKind::Unsupported, doing, "only raw and qcow2 images can be measured"))
        }
    }
}

/// The parts of a qcow2 file besides its data (QEMU's docs/interop/qcow2.txt): header, L1 and L2 tables, and the
/// reference counts of all clusters, their own included.
async fn qcow2(size: u64, options: &Options, contents: Contents<'_>) -> Result<Measured, Error> {
    let cluster = options.size("cluster_size")?.unwrap_or(64 << 10);
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        return Err(refused(Format::Qcow2, "Cluster size must be a power of two between 512 and 2048k"));
    }
    let entry = if options.flag("extended_l2") == Some(true) { 16 } else { 8 };
    let bits = options.number("refcount_bits")?.unwrap_or(16);
    if !bits.is_power_of_two() || bits > 64 {
        return Err(refused(
            Format::Qcow2,
            "Refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    let data = size
        .checked_next_multiple_of(cluster)
        .ok_or_else(|| refused(Format::Qcow2, "the disk is too large"))?;
    let data_clusters = data / cluster;
    let l2_tables = data_clusters.div_ceil(cluster / entry);
    /// QEMU opens no larger L1 table.
    const MAX_L1: u64 = 32 << 20;
    if l2_tables * 8 > MAX_L1 {
        return Err(refused(Format::Qcow2, "The image size is too large (try using a larger cluster size)"));
    }
    let fixed = 1 + l2_tables + l2_tables.div_ceil(cluster / 8);
    let counted = fixed + data_clusters;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let all = counted + blocks + table;
        let new_blocks = all.div_ceil(cluster * 8 / bits);
        let new_table = new_blocks.div_ceil(cluster / 8);
        if (new_blocks, new_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (new_blocks, new_table);
    }
    let overhead = (fixed + blocks + table) * cluster;
    let preallocated = matches!(options.text("preallocation"), Some("full" | "falloc"));
    let required = match contents {
        _ if preallocated => data,
        Contents::Size(_) => 0,
        // What the new backing image has in common with the disk is not known.
        Contents::Disk(_) if options.text("backing_file").is_some() => data,
        Contents::Disk(disk) => {
            let plan = Plan::new(disk, 0..disk.size(), cluster, 1 << 40, None);
            let mut used = 0;
            while let Some(run) = plan.next().await? {
                if run.kind == Kind::Data {
                    used += run.len.next_multiple_of(cluster);
                }
            }
            used
        }
    };
    Ok(Measured { required: overhead + required, fully_allocated: overhead + data })
}
