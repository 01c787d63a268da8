//! qcow2: power cuts and failures.

use plinth_host::aio::block_on;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::testing::{CrashTest, FaultTest, Workload};

const SIZE: u64 = 4 << 20;

/// Options, the cluster that the work is made for, and bytes of the disk.
const VARIANTS: [(&str, u64, u64); 11] = [
    ("", 65536, SIZE),
    ("cluster_size=512", 512, 1 << 20),
    ("cluster_size=4k,refcount_bits=1", 4096, SIZE),
    ("cluster_size=512,refcount_bits=64", 512, 1 << 20),
    ("extended_l2=on", 2048, SIZE),
    ("extended_l2=on,cluster_size=16k", 16384, SIZE),
    ("lazy_refcounts=on,cluster_size=4k", 4096, SIZE),
    ("data_file=data", 65536, SIZE),
    ("data_file=data,data_file_raw=on,cluster_size=4k", 4096, SIZE),
    ("compat=0.10,cluster_size=4k", 4096, SIZE),
    ("cluster_size=2M,refcount_bits=8", 65536, 32 << 20),
];

fn is_long() -> bool {
    std::env::var_os("PLINTH_LONG").is_some()
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let (seeds, cuts) = if is_long() { (20, 120) } else { (2, 12) };
    for (options, cluster, size) in VARIANTS {
        for seed in 1..=seeds {
            let mut test = CrashTest::new(&DRIVER, options, size, seed, cuts);
            test.work.cluster = cluster;
            block_on(test.run(|_| Ok(()))).unwrap();
        }
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    let (requests, step) = if is_long() { (2000, 7) } else { (40, 9) };
    for (options, cluster, size) in VARIANTS {
        let mut test = FaultTest::new(&DRIVER, options, size, 1, requests, step);
        test.work = Workload { cluster, ..test.work };
        let failures = block_on(test.run()).unwrap();
        assert!(failures > 3, "{options}: {failures}");
    }
}
