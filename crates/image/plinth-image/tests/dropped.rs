//! Requests that nobody waits for any more: nothing is lost but what they were about, and the image stays right.

mod common;

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use plinth_host::aio::{self, block_on};
use plinth_image::format::{Driver, Image, parallels, qcow2, qed, vdi, vhd, vhdx, vmdk};
use plinth_image::graph::{IoBuf, IoData};
use plinth_image::testing::Random;

const SIZE: u64 = 16 << 20;
const UNIT: u64 = 4096;
const UNITS: usize = (SIZE / UNIT) as usize;
/// Requests of a run.
const REQUESTS: usize = 150;

/// What a unit of the disk may be full of. One that a dropped request was about is left alone from then on: the
/// request may still be under way.
#[derive(Clone, Default)]
struct Unit {
    values: Vec<u8>,
    dropped: bool,
}

/// Four requests at once, of which some are dropped after a while.
async fn requests(image: &dyn Image, random: &mut Random, units: &mut [Unit]) {
    let mut batch = Vec::new();
    let mut taken = vec![false; UNITS];
    for _ in 0..4 {
        let most = if random.below(3) == 0 { 300 } else { 20 };
        let len = 1 + random.below(most) as usize;
        let at = random.below((UNITS - len) as u64) as usize;
        let range = at..at + len;
        if range.clone().any(|n| taken[n] || units[n].dropped) {
            continue;
        }
        taken[range.clone()].fill(true);
        let value = if random.below(4) == 0 { 0 } else { 1 + random.below(255) as u8 };
        let patience = (random.below(2) == 0).then(|| Duration::from_micros(random.below(300)));
        batch.push((range, value, patience));
    }
    let run = batch.iter().map(async |(range, value, patience)| {
        let (offset, len) = (range.start as u64 * UNIT, range.len() as u64 * UNIT);
        let request = pin!(async {
            match value {
                0 => image.write_zeroes(offset, len, true).await,
                _ => image.write(offset, IoData::copy_of(&vec![*value; len as usize])).await,
            }
        });
        match patience {
            None => request.await.is_ok(),
            Some(time) => match select(request, pin!(aio::sleep(*time))).await {
                Either::Left((done, _)) => done.is_ok(),
                Either::Right(_) => false,
            },
        }
    });
    let done = join_all(run).await;
    for ((range, value, patience), done) in batch.into_iter().zip(done) {
        assert!(done || patience.is_some(), "a request failed");
        for unit in &mut units[range] {
            if done {
                unit.values = vec![value];
            } else {
                unit.values.push(value);
                unit.dropped = true;
            }
        }
    }
}

async fn verify(image: &dyn Image, units: &[Unit]) {
    for (n, unit) in units.iter().enumerate() {
        let read = image.read(n as u64 * UNIT, IoBuf::new(UNIT as usize)).await.unwrap();
        // A sector of a dropped request is old or new.
        for sector in read.chunks(512) {
            let value = sector[0];
            assert!(
                sector.iter().all(|&b| b == value) && unit.values.contains(&value),
                "unit {n} has {value}, which is none of {:?}",
                unit.values
            );
        }
    }
}

fn run(driver: &'static Driver, options: &str, seed: u64, peer: Option<&str>) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    common::create_file(driver, &path, SIZE, options);
    let mut random = Random::new(seed);
    let mut units = vec![Unit { values: vec![0], dropped: false }; UNITS];
    for _ in 0..3 {
        block_on(async {
            let image = common::open_in_file(&path, false).await;
            common::clean(&*image).await;
            verify(&*image, &units).await;
            for _ in 0..REQUESTS / 12 {
                requests(&*image, &mut random, &mut units).await;
            }
            image.close().await.unwrap();
        });
    }
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        common::clean(&*image).await;
        verify(&*image, &units).await;
        image.close().await.unwrap();
    });
    if let Some(format) = peer.filter(|_| common::has("qemu-img")) {
        common::run("qemu-img", &["check", "-q", "-f", format, path.to_str().unwrap()]);
    }
    units.iter().filter(|u| u.dropped).count()
}

#[test]
fn dropped_requests_lose_nothing_else() {
    let subjects: [(&Driver, &str, Option<&str>); 10] = [
        (&qcow2::DRIVER, "", Some("qcow2")),
        (&qcow2::DRIVER, "cluster_size=4k,refcount_bits=1", Some("qcow2")),
        (&qcow2::DRIVER, "extended_l2=on", Some("qcow2")),
        (&vmdk::DRIVER, "", Some("vmdk")),
        (&vdi::DRIVER, "block_size=64k", None),
        (&vdi::DRIVER, "", Some("vdi")),
        (&vhd::DRIVER, "", None),
        (&vhdx::DRIVER, "block_size=1M", Some("vhdx")),
        (&qed::DRIVER, "", Some("qed")),
        (&parallels::DRIVER, "", Some("parallels")),
    ];
    let mut dropped = 0;
    for (driver, options, peer) in subjects {
        for seed in 0..if common::long() { 200 } else { 6 } {
            println!("{} ({options}), seed {seed}", driver.format);
            dropped += run(driver, options, seed, peer);
        }
    }
    println!("blocks of dropped requests: {dropped}");
    assert!(dropped > 0, "all requests were done before they could be dropped");
}
