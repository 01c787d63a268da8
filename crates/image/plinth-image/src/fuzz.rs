//! Entry point for fuzzing what is read of a disk's contents.

use std::rc::Rc;

use plinth_host::aio::block_on;

use crate::format::{Driver, NoLinks, OpenOptions, OpenRequest, Progress, Repair, Sample, probe};
use crate::graph::{IoBuf, MemoryNode};
use crate::probe::{not_a_disk, stated_size};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // All are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(&Sample { head: data, tail: data, len: data.len() as u64, name: "fuzz" });
    let _kind = not_a_disk(data);
    let _size = stated_size(data);
}

/// Treats `data` as an image of `driver`'s format: opens it, reads all within a budget, checks it, and writes.
fn image(driver: &'static Driver, data: &[u8]) {
    /// Bytes that are read, and that the file may grow to.
    const BUDGET: u64 = 16 << 20;
    let options = OpenOptions { format: Some(driver.format), ..OpenOptions::default() };
    block_on(async {
        let file = Rc::new(MemoryNode::with("fuzz", data).limited(BUDGET));
        let request = OpenRequest { file, links: Rc::new(NoLinks), options };
        let Ok(image) = (driver.open)(request).await else { return };
        let size = image.size();
        let _info = image.describe();
        let (mut at, mut left) = (0, BUDGET);
        while at < size && left > 0 {
            let Ok(extent) = image.status(at, size - at).await else { break };
            assert!(extent.len > 0 && extent.len <= size - at, "the extent {extent:?} at {at} of {size}");
            let n = extent.len.min(1 << 20).min(left);
            if extent.zero {
                left = left.saturating_sub(4096);
            } else {
                let _data = image.read(at, IoBuf::new(n as usize)).await;
                left = left.saturating_sub(n.max(4096));
            }
            at += extent.len;
        }
        let _report = image.check(Repair::No, &Progress::default()).await;
        for at in [0, size / 2, size.saturating_sub(1024)] {
            let n = 1024.min(size - at.min(size));
            let _written = image.write(at, IoBuf::zeroed(n as usize).freeze()).await;
        }
        let _zeroed = image.write_zeroes(0, size.min(1 << 20), true).await;
        let _mended = image.check(Repair::All, &Progress::default()).await;
        let _closed = image.close().await;
    });
}

/// Treats `data` as a VMDK image in one file.
pub fn fuzz_vmdk(data: &[u8]) {
    image(&crate::format::vmdk::DRIVER, data);
}

/// Treats `data` as the envelope of a package of virtual machines.
pub fn fuzz_ovf(data: &[u8]) {
    let _machines = crate::ovf::parse_envelope(data);
}
