//! Entry point for fuzzing what is read of a disk's contents.

use std::rc::Rc;

use plinth_host::aio::block_on;

use crate::format::{Format, NoLinks, OpenOptions, OpenRequest, Progress, Repair, Sample, probe};
use crate::graph::{IoBuf, IoData, MemoryNode};
use crate::probe::{not_a_disk, stated_size};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // All are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(&Sample { head: data, tail: data, len: data.len() as u64, name: "fuzz" });
    let _kind = not_a_disk(data);
    let _size = stated_size(data);
}

/// Treats `data` as a qcow2 image: reads, checks, writes and mends it. Errors are right, panics are not.
pub fn fuzz_qcow2(data: &[u8]) {
    const AT_ONCE: u64 = 1 << 18;
    for read_only in [true, false] {
        // What damage makes us write is bounded, as a disk would.
        let file = Rc::new(MemoryNode::with("fuzz", data).limited(data.len() as u64 + (16 << 20)));
        let options = OpenOptions { read_only, no_backing: true, ..OpenOptions::default() };
        let request = OpenRequest { file, links: Rc::new(NoLinks), options };
        block_on(async {
            let Some(driver) = Format::Qcow2.driver() else { return };
            let Ok(image) = (driver.open)(request).await else { return };
            let size = image.size();
            // The ends of the disk, and something in between.
            for at in [0, size / 2, size.saturating_sub(AT_ONCE)] {
                let len = AT_ONCE.min(size - at);
                let _ = image.read(at, IoBuf::new(len as usize)).await;
                let _ = image.status(at, len).await;
            }
            let _ = image.check(Repair::No, &Progress::default()).await;
            let _ = image.describe();
            if let Some(snapshots) = image.snapshots() {
                for s in snapshots.list().iter().take(4) {
                    if let Ok(view) = snapshots.view(&s.id).await {
                        let _ = view.read(0, IoBuf::new(AT_ONCE.min(view.size()) as usize)).await;
                    }
                }
            }
            if let Some(bitmaps) = image.bitmaps() {
                for b in bitmaps.list().iter().take(4) {
                    let _ = bitmaps.ranges(&b.name).await;
                }
            }
            if !read_only {
                let some = AT_ONCE.min(size) as usize;
                let _ = image.write(0, IoData::copy_of(&vec![5; some])).await;
                let _ = image.write_zeroes(size / 2, AT_ONCE.min(size - size / 2), true).await;
                let _ = image.flush().await;
                let _ = image.check(Repair::All, &Progress::default()).await;
            }
            let _ = image.close().await;
        });
    }
}
