//! QED: power cuts, failures, and QEMU as an oracle.

mod common;

use futures_util::FutureExt;
use plinth_host::aio::block_on;
use plinth_image::format::qed::DRIVER;
use plinth_image::graph::{IoBuf, IoData};

const SIZE: u64 = 4 << 20;
const VARIANTS: [(&str, u64); 3] =
    [("", 65536), ("cluster_size=4k,table_size=1", 4096), ("table_size=16", 65536)];

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    for (options, cluster) in VARIANTS {
        common::crash(&DRIVER, options, SIZE, cluster);
    }
}

#[test]
fn every_failure_leaves_the_image_right() {
    for (options, cluster) in VARIANTS {
        common::fault(&DRIVER, options, SIZE, cluster);
    }
}

#[test]
fn qemu_finds_nothing_wrong_after_power_cuts() {
    common::peer_after_cuts(&DRIVER, "cluster_size=16k", SIZE, "qed");
}

#[test]
fn qemu_and_plinth_work_on_the_same_image_in_turns() {
    for (seed, options) in (1..).zip(["", "cluster_size=16384"]) {
        common::with_qemu(&DRIVER, Some(options), "", "qed", true, seed);
        common::with_qemu(&DRIVER, None, options, "qed", true, seed);
    }
}

#[test]
fn a_large_disk_with_little_in_it_is_not_looked_at_cluster_by_cluster() {
    common::sparse_table(&DRIVER, "", 16 << 40, 65536);
}

#[test]
fn what_a_dropped_write_has_taken_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.qed");
    common::create_file(&DRIVER, &path, SIZE, "");
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        let data = IoData::copy_of(&[7; 1 << 20]);
        image.write(1 << 20, data.clone()).await.unwrap();
        // Polled once, so that it is under way, and given up.
        for (at, len) in [(0, 1 << 20), (2 << 20, 5000)] {
            assert!(image.write(at, data.slice(..len)).now_or_never().is_none());
        }
        image.write(3 << 20, data.clone()).await.unwrap();
        image.close().await.unwrap();
    });
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        common::clean(&*image).await;
        for at in [1 << 20, 3 << 20] {
            let read = image.read(at, IoBuf::new(1 << 20)).await.unwrap();
            assert!(read.iter().all(|&b| b == 7));
        }
        image.close().await.unwrap();
    });
    if common::has("qemu-img") {
        common::run("qemu-img", &["check", "-f", "qed", path.to_str().unwrap()]);
    }
}
