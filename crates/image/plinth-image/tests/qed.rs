//! QED: power cuts, failures, and QEMU as an oracle.

mod common;

use plinth_image::format::qed::DRIVER;

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
