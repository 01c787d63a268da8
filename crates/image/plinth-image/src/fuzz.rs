//! Entry points for fuzzing: what is read of a disk's contents, and image files.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use plinth_host::aio::{Backend, block_on_with};

use crate::Error;
use crate::crypt::KeyCost;
use crate::format::{
    Image, NoLinks, OpenOptions, OpenRequest, Progress, Repair, Sample, cloop, dmg, luks, parallels, probe,
    qcow2, qed, vdi, vhd, vhdx, vmdk,
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

/// Bytes of a disk that are read, and that a file in memory may have.
const READ: u64 = 8 << 20;
const LIMIT: u64 = 64 << 20;
/// The passphrase of encrypted images in the corpus.
pub const SECRET: &[u8] = b"a good passphrase";

type Open = fn(OpenRequest) -> LocalBoxFuture<'static, Result<Rc<dyn Image>, Error>>;

/// Opens `data` as an image, reads, checks and, if it can be written, writes and mends it.
fn fuzz_image(open: Open, data: &[u8]) {
    for read_only in [true, false] {
        let file = Rc::new(MemoryNode::with("fuzz", data).limited(LIMIT));
        let secret = Some(SECRET.into());
        let options = OpenOptions { read_only, secret, no_backing: true, ..OpenOptions::default() };
        let request = OpenRequest { file, links: Rc::new(NoLinks), options };
        // Worker threads may be needed, so it is not enough to poll once.
        block_on_with(Backend::Threads, async {
            let Ok(image) = open(request).await else { return };
            let _description = image.describe();
            let size = image.size();
            for mut at in [0, size / 2 / 512 * 512, size.saturating_sub(READ / 4) / 512 * 512] {
                let end = at.saturating_add(READ / 4).min(size);
                while at < end {
                    let len = (end - at).min(1 << 18);
                    let _data = image.read(at, IoBuf::new(len as usize)).await;
                    if let Ok(extent) = image.status(at, len).await {
                        assert!(extent.len > 0 && extent.len <= len, "{} of {len} bytes", extent.len);
                    }
                    at += len;
                }
            }
            let _report = image.check(Repair::No, &Progress::default()).await;
            if let Some(snapshots) = image.snapshots() {
                for s in snapshots.list().iter().take(4) {
                    if let Ok(view) = snapshots.view(&s.id).await {
                        let _data = view.read(0, IoBuf::new(view.size().min(1 << 18) as usize)).await;
                    }
                }
            }
            if let Some(bitmaps) = image.bitmaps() {
                for b in bitmaps.list().iter().take(4) {
                    let _ranges = bitmaps.ranges(&b.name).await;
                }
            }
            if image.info().read_only {
                return;
            }
            let _report = image.check(Repair::All, &Progress::default()).await;
            for at in [0, size / 3, size.saturating_sub(700)] {
                let len = 700.min(size - at);
                if image.write(at, IoData::copy_of(&vec![7; len as usize])).await.is_ok() {
                    let read = image.read(at, IoBuf::new(len as usize)).await;
                    assert!(!read.is_ok_and(|r| r.iter().any(|&b| b != 7)), "what was written is not read");
                }
                let _zeroed = image.write_zeroes(at, len, true).await;
                let _discarded = image.discard(at, len).await;
            }
            let _resized = image.resize(size.saturating_add(65536)).await;
            let _flushed = image.flush().await;
            let _closed = image.close().await;
        });
    }
}

/// Keys of honest images take longer, but that is no news.
const COST: KeyCost = KeyCost { iterations: 40_000, memory: 2048, work: 16 << 10 };

/// Treats `data` as a LUKS image.
pub fn fuzz_luks(data: &[u8]) {
    fuzz_image(|request| Box::pin(luks::open_with(request, COST)), data);
}

/// Treats `data` as a Parallels disk or a description of one.
pub fn fuzz_parallels(data: &[u8]) {
    fuzz_image(parallels::DRIVER.open, data);
}

/// Treats `data` as a QED image.
pub fn fuzz_qed(data: &[u8]) {
    fuzz_image(qed::DRIVER.open, data);
}

/// Treats `data` as a cloop image.
pub fn fuzz_cloop(data: &[u8]) {
    fuzz_image(cloop::DRIVER.open, data);
}

/// Treats `data` as an Apple disk image.
pub fn fuzz_dmg(data: &[u8]) {
    fuzz_image(dmg::DRIVER.open, data);
}

/// Damages `good` in some places, again and again, and gives it to `fuzz`.
pub fn damage(good: &[u8], rounds: u64, at_most: usize, fuzz: fn(&[u8])) {
    for seed in 0..rounds {
        let mut random = crate::testing::Random::new(seed + 1);
        let mut bad = good.to_vec();
        for _ in 0..1 + random.below(6) {
            let at = random.below(at_most.min(bad.len()) as u64) as usize;
            match random.below(3) {
                0 => bad[at] ^= 1 << random.below(8),
                1 => bad[at] = [0, 1, 0x7f, 0xff][random.below(4) as usize],
                _ => bad[at] = random.number() as u8,
            }
        }
        if random.one_in(8) {
            bad.truncate(random.below(good.len() as u64) as usize);
        }
        fuzz(&bad);
    }
}

/// Treats `data` as a VMDK image in one file.
pub fn fuzz_vmdk(data: &[u8]) {
    fuzz_image(vmdk::DRIVER.open, data);
}

/// Treats `data` as the envelope of a package of virtual machines.
pub fn fuzz_ovf(data: &[u8]) {
    let _machines = crate::ovf::parse_envelope(data);
}

/// Treats `data` as a VDI image.
pub fn fuzz_vdi(data: &[u8]) {
    fuzz_image(vdi::DRIVER.open, data);
}

/// Treats `data` as a VHD image.
pub fn fuzz_vhd(data: &[u8]) {
    fuzz_image(vhd::DRIVER.open, data);
}

/// Treats `data` as a VHDX image.
pub fn fuzz_vhdx(data: &[u8]) {
    fuzz_image(vhdx::DRIVER.open, data);
}

/// Treats `data` as a qcow2 image.
pub fn fuzz_qcow2(data: &[u8]) {
    fuzz_image(|request| Box::pin(qcow2::open_with(request, COST)), data);
}
