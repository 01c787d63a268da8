//! VHDX images.

mod common;

use common::{clean, create_in, open_in, parent_in};
use futures_util::FutureExt;
use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::{Progress, Repair, vhdx};
use plinth_image::graph::{IoBuf, IoData};
use plinth_image::testing::{CrashTest, Cut, World};

const M: u64 = 1 << 20;

#[test]
fn power_cuts_leave_images_that_are_clean_after_the_next_open() {
    for options in ["block_size=1M", "subformat=fixed,block_size=1M", "block_size=1M,block_state_zero=off"] {
        common::crash(&vhdx::DRIVER, options, 12 * M, M);
    }
}

#[test]
fn a_reader_sees_the_same_as_a_writer_after_a_cut() {
    for seed in 1..=if common::long() { 40 } else { 3 } {
        let look = |cut: &Cut| {
            let contents = |read_only| {
                let mut world = World::new(1);
                world.slow = false;
                world.add("image", cut.files[0].1.clone());
                let all = async {
                    let image = open_in(&world, &vhdx::DRIVER, "image", read_only).await.unwrap();
                    if !read_only {
                        clean(&*image).await;
                    }
                    image.read(0, IoBuf::new(image.size() as usize)).await.unwrap()
                };
                all.now_or_never().expect("nothing waits in this world")
            };
            if contents(true)[..] == contents(false)[..] { Ok(()) } else { Err("they differ".into()) }
        };
        block_on(CrashTest::new(&vhdx::DRIVER, "block_size=1M", 8 * M, seed, 10).run(look)).unwrap();
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    for options in ["block_size=1M", "subformat=fixed,block_size=1M"] {
        common::fault(&vhdx::DRIVER, options, 12 * M, M);
    }
}

#[test]
fn what_is_not_in_an_image_is_its_parents() {
    common::differencing(&vhdx::DRIVER, "vhdx", "block_size=1M", 8 * M, M);
    common::differencing(&vhdx::DRIVER, "vhdx", "block_size=2M,logical_sector_size=4096", 8 * M, M);
}

#[test]
fn sizes_change() {
    let sizes = [2 * M, 7 * M + 4096, 3 * M, 3 * M + 8192, 19 * M];
    for options in
        ["block_size=1M", "block_size=1M,subformat=fixed", "block_size=4M,logical_sector_size=4096"]
    {
        common::resizing(&vhdx::DRIVER, options, &sizes, 65536);
    }
}

#[test]
fn the_table_moves_when_it_is_too_small() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vhdx::DRIVER, "image", 4 * M, "block_size=1M", None).await.unwrap();
        image.write(M, IoData::copy_of(&[5; 4096])).await.unwrap();
        image.flush().await.unwrap();
        // A table of 1 MiB is enough for 128 GiB.
        image.resize(300 << 30).await.unwrap();
        image.write((300 << 30) - 512, IoData::copy_of(&[9; 512])).await.unwrap();
        clean(&*image).await;
        image.close().await.unwrap();
        let image = open_in(&world, &vhdx::DRIVER, "image", false).await.unwrap();
        assert!(image.read(M, IoBuf::new(4096)).await.unwrap().iter().all(|&b| b == 5));
        assert!(image.read((300 << 30) - 512, IoBuf::new(512)).await.unwrap().iter().all(|&b| b == 9));
        clean(&*image).await;
    });
}

#[test]
fn another_or_changed_parent_is_refused() {
    block_on(async {
        let world = World::new(1);
        parent_in(&world, &vhdx::DRIVER, "parent.vhdx", "", 4 * M).await;
        let parent = open_in(&world, &vhdx::DRIVER, "parent.vhdx", true).await.unwrap();
        let link = common::link_to("parent.vhdx", &*parent);
        let child = create_in(&world, &vhdx::DRIVER, "child", 4 * M, "", Some(link)).await.unwrap();
        child.close().await.unwrap();
        open_in(&world, &vhdx::DRIVER, "child", true).await.unwrap();
        let alone = World::new(2);
        alone.add("child", world.file("child").unwrap().memory.clone());
        let e = open_in(&alone, &vhdx::DRIVER, "child", true).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::NotFound);
        let parent = open_in(&world, &vhdx::DRIVER, "parent.vhdx", false).await.unwrap();
        parent.write(0, IoData::copy_of(&[1; 512])).await.unwrap();
        parent.close().await.unwrap();
        let e = open_in(&world, &vhdx::DRIVER, "child", true).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Corrupt);
    });
}

#[test]
fn zeros_stay_zeros_when_some_of_their_block_is_written() {
    block_on(async {
        let world = World::new(1);
        parent_in(&world, &vhdx::DRIVER, "parent.vhdx", "", 4 * M).await;
        let parent = open_in(&world, &vhdx::DRIVER, "parent.vhdx", true).await.unwrap();
        let link = common::link_to("parent.vhdx", &*parent);
        let made =
            create_in(&world, &vhdx::DRIVER, "child", 4 * M, "block_size=1M", Some(link)).await.unwrap();
        made.close().await.unwrap();
        let child = open_in(&world, &vhdx::DRIVER, "child", false).await.unwrap();
        child.write_zeroes(0, M, true).await.unwrap();
        child.write(4096, IoData::copy_of(&[7; 512])).await.unwrap();
        let read = child.read(0, IoBuf::new(1 << 20)).await.unwrap();
        assert!(read.iter().enumerate().all(|(n, &b)| b == if (4096..4608).contains(&n) { 7 } else { 0 }));
    });
}

#[test]
fn damage_is_found_and_mended() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vhdx::DRIVER, "image", 16 * M, "block_size=2M", None).await.unwrap();
        for n in 0..8u64 {
            image.write(n * 2 * M, IoData::copy_of(&[n as u8 + 1; 4096])).await.unwrap();
        }
        image.close().await.unwrap();
        let file = world.file("image").unwrap();
        let bat = 3 * M;
        let mut second = [0; 8];
        file.memory.get(bat + 2 * 8, &mut second);
        file.memory.put(bat + 3 * 8, &second);
        file.memory.put(bat + 5 * 8, &((7777 * M) | 6).to_le_bytes());
        let image = open_in(&world, &vhdx::DRIVER, "image", false).await.unwrap();
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (2, 2), "{report:?}");
        assert_eq!(image.write(0, IoData::copy_of(&[1])).await.unwrap_err().kind, ErrorKind::Corrupt);
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        clean(&*image).await;
        image.write(6 * M, IoData::copy_of(&[99; 4096])).await.unwrap();
        for (n, byte) in [(0u64, 1), (1, 2), (2, 3), (3, 99), (4, 5), (5, 0), (6, 7), (7, 8)] {
            let data = image.read(n * 2 * M, IoBuf::new(4096)).await.unwrap();
            assert!(data.iter().all(|&b| b == byte), "block {n}");
        }
        image.close().await.unwrap();
    });
}

#[test]
fn both_programs_write_one_image() {
    let theirs = ["", "subformat=fixed", "block_size=1M,block_state_zero=off", "block_size=256M,log_size=2M"];
    for (seed, theirs) in theirs.into_iter().enumerate() {
        common::with_qemu(&vhdx::DRIVER, Some(theirs), "", "vhdx", true, seed as u64);
    }
    let ours = ["", "subformat=fixed", "block_size=1M,block_state_zero=off", "block_size=32M,log_size=4M"];
    for (seed, ours) in ours.into_iter().enumerate() {
        common::with_qemu(&vhdx::DRIVER, None, ours, "vhdx", true, seed as u64);
    }
}

#[test]
fn the_peer_replays_our_log() {
    if !common::has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("disk.vhdx"), dir.path().join("raw"));
    let mut now = vec![0u8; 8 << 20];
    block_on(async {
        let mut world = World::new(1);
        world.slow = false;
        let image = create_in(&world, &vhdx::DRIVER, "image", 8 * M, "block_size=1M", None).await.unwrap();
        for n in 0..4u64 {
            let at = (n * 2 * M + 512) as usize;
            now[at..at + 100_000].fill(n as u8 + 1);
            image.write(at as u64, IoData::copy_of(&[n as u8 + 1; 100_000])).await.unwrap();
            image.flush().await.unwrap();
        }
        // Not closed. The table of blocks, which is written last, is lost.
        let memory = world.file("image").unwrap().memory.clone();
        memory.clear(3 * M, M);
        std::fs::write(&path, memory.contents()).unwrap();
    });
    let image = common::open_file(&path, true).image;
    assert!(common::contents(&*image) == now);
    drop(image);
    let name = path.to_str().unwrap();
    common::run("qemu-img", &["check", "-r", "all", "-f", "vhdx", name]);
    common::run("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", name, raw.to_str().unwrap()]);
    // The last of our entries counts alone: all four blocks' entries are in one sector.
    assert!(std::fs::read(&raw).unwrap() == now);
}

#[test]
fn damaged_images_are_refused_or_read() {
    let options = ["block_size=1M", "block_size=1M,subformat=fixed"];
    common::damaged(&vhdx::DRIVER, &options, 2 * M, plinth_image::fuzz::fuzz_vhdx);
}

#[test]
fn a_large_table_with_little_in_it_is_read_in_pieces() {
    common::sparse_table(&vhdx::DRIVER, "block_size=1M", 2 << 40, 1 << 20);
}
