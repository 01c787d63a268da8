//! Entry points for fuzzing: what is read of a disk's contents, and image files.

use std::rc::Rc;

use futures_util::FutureExt;

use crate::format::{
    Driver, NoLinks, OpenOptions, OpenRequest, Progress, Repair, Sample, probe, vdi, vhd, vhdx,
};
use crate::graph::{IoBuf, IoData, MemoryNode};
use crate::probe::{not_a_disk, stated_size};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // All are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(&Sample { head: data, tail: data, len: data.len() as u64, name: "fuzz" });
    let _kind = not_a_disk(data);
    let _size = stated_size(data);
}

/// Bytes of a disk that are read: a small file may claim to be a large disk.
const READ: u64 = 4 << 20;
/// Bytes that a file in memory may grow to.
const LIMIT: u64 = 64 << 20;

/// Opens `data` as an image of a format whose tables say where blocks are, reads, checks, writes and repairs it.
fn fuzz_blocks(driver: &Driver, data: &[u8]) {
    for (read_only, repair) in [(true, Repair::No), (false, Repair::All)] {
        let file = Rc::new(MemoryNode::with("fuzz", data).limited(LIMIT));
        let options = OpenOptions { read_only, no_backing: true, ..OpenOptions::default() };
        let request = OpenRequest { file, links: Rc::new(NoLinks), options };
        let all = async {
            let Ok(image) = (driver.open)(request).await else { return };
            let _description = image.describe();
            let size = image.size();
            for at in [0, size / 2 / 512 * 512, size.saturating_sub(READ) / 512 * 512] {
                let mut at = at;
                let end = at.saturating_add(READ / 3).min(size);
                while at < end {
                    let len = (end - at).min(1 << 18);
                    let _data = image.read(at, IoBuf::new(len as usize)).await;
                    let Ok(extent) = image.status(at, len).await else { break };
                    assert!(
                        extent.len > 0 && extent.len <= len,
                        "an extent of {} of {len} bytes",
                        extent.len
                    );
                    at += len;
                }
            }
            let _report = image.check(repair, &Progress::default()).await;
            if read_only {
                return;
            }
            for at in [0, size / 3, size.saturating_sub(700)] {
                let len = 700.min(size - at);
                let written = image.write(at, IoData::copy_of(&vec![7; len as usize])).await;
                if written.is_ok() {
                    let read = image.read(at, IoBuf::new(len as usize)).await;
                    assert!(read.is_err() || read.is_ok_and(|r| r.iter().all(|&b| b == 7)));
                }
                let _zeroed = image.write_zeroes(at, len, true).await;
                let _flushed = image.flush().await;
            }
            let _resized = image.resize(size.saturating_add(1 << 20) / 512 * 512).await;
            let _closed = image.close().await;
        };
        all.now_or_never().expect("a file in memory keeps nobody waiting");
    }
}

/// Treats `data` as a VDI image.
pub fn fuzz_vdi(data: &[u8]) {
    fuzz_blocks(&vdi::DRIVER, data);
}

/// Treats `data` as a VHD image.
pub fn fuzz_vhd(data: &[u8]) {
    fuzz_blocks(&vhd::DRIVER, data);
}

/// Treats `data` as a VHDX image.
pub fn fuzz_vhdx(data: &[u8]) {
    fuzz_blocks(&vhdx::DRIVER, data);
}
