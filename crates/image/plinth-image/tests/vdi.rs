//! VDI images.

mod common;

use common::{clean, create_in, open_in, parent_in};
use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::{Progress, Repair, vdi};
use plinth_image::graph::{IoData, Node};
use plinth_image::testing::{Random, World};

const OPTIONS: [&str; 3] = ["block_size=64k", "static,block_size=64k", ""];

#[test]
fn power_cuts_leave_images_that_are_clean_after_the_next_open() {
    for options in OPTIONS {
        let (size, cluster) = if options.is_empty() { (12 << 20, 1 << 20) } else { (6 << 20, 65536) };
        common::crash(&vdi::DRIVER, options, size, cluster);
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    for options in ["block_size=64k", "static,block_size=64k"] {
        common::fault(&vdi::DRIVER, options, 4 << 20, 65536);
    }
}

#[test]
fn what_is_not_in_an_image_is_its_parents() {
    common::differencing(&vdi::DRIVER, "vdi", "block_size=64k", 6 << 20, 65536);
}

#[test]
fn sizes_change() {
    let m = 1 << 20;
    common::resizing(
        &vdi::DRIVER,
        "block_size=64k",
        &[2 * m, 7 * m + 512, 3 * m, 3 * m + 4096, 9 * m],
        65536,
    );
    common::resizing(&vdi::DRIVER, "static,block_size=64k", &[2 * m, 4 * m, 3 * m], 65536);
    // With blocks so small, the table must move; it has room for 1 GiB.
    let block = 4096;
    common::resizing(&vdi::DRIVER, "block_size=4k", &[2 * m, 3 * m], block);
}

#[test]
fn the_table_moves_when_it_is_too_small() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vdi::DRIVER, "image", 1 << 20, "block_size=4k", None).await.unwrap();
        let mut random = Random::new(1);
        let mut blocks: Vec<u64> = (0..256).collect();
        for n in 0..200 {
            let block = blocks.swap_remove(random.below(blocks.len() as u64) as usize);
            image.write(block * 4096, IoData::copy_of(&[n as u8 + 1; 4096])).await.unwrap();
        }
        let before = common_contents(&*image).await;
        image.resize(3 << 30).await.unwrap();
        assert_eq!(common_contents(&*image).await, before);
        image.write((3 << 30) - 512, IoData::copy_of(&[9; 512])).await.unwrap();
        clean(&*image).await;
        image.close().await.unwrap();
        let image = open_in(&world, &vdi::DRIVER, "image", false).await.unwrap();
        assert_eq!(common_contents(&*image).await, before);
        assert!(
            image.read((3 << 30) - 512, plinth_image::IoBuf::new(512)).await.unwrap().iter().all(|&b| b == 9)
        );
        clean(&*image).await;
    });
}

async fn common_contents(image: &dyn Node) -> Vec<u8> {
    image.read(0, plinth_image::IoBuf::new(1 << 20)).await.unwrap().to_vec()
}

#[test]
fn a_missing_or_changed_parent_is_refused() {
    block_on(async {
        let world = World::new(1);
        parent_in(&world, &vdi::DRIVER, "parent.vdi", "", 4 << 20).await;
        let parent = open_in(&world, &vdi::DRIVER, "parent.vdi", true).await.unwrap();
        let uuid = parent.describe().details["uuid"].as_str().unwrap().to_owned();
        let link = common::link_to("parent.vdi", &*parent);
        create_in(&world, &vdi::DRIVER, "child", 4 << 20, "", Some(link))
            .await
            .unwrap()
            .close()
            .await
            .unwrap();
        let alone = World::new(2);
        alone.add("child", world.file("child").unwrap().memory.clone());
        let e = open_in(&alone, &vdi::DRIVER, "child", true).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::NotFound);
        assert!(e.to_string().contains(&uuid), "{e}");
        let parent = open_in(&world, &vdi::DRIVER, "parent.vdi", false).await.unwrap();
        parent.write(0, IoData::copy_of(&[1; 512])).await.unwrap();
        parent.close().await.unwrap();
        let e = open_in(&world, &vdi::DRIVER, "child", true).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Corrupt);
    });
}

#[test]
fn damage_is_found_and_mended() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vdi::DRIVER, "image", 16 << 20, "", None).await.unwrap();
        for n in 0..8u64 {
            image.write(n << 20, IoData::copy_of(&[n as u8 + 1; 4096])).await.unwrap();
        }
        image.close().await.unwrap();
        let file = world.file("image").unwrap();
        // Two blocks share their space, one leads nowhere, and one place is nobody's.
        for (block, entry) in [(3u64, 2u32), (5, 77)] {
            file.memory.put((1 << 20) + block * 4, &entry.to_le_bytes());
        }
        let image = open_in(&world, &vdi::DRIVER, "image", true).await.unwrap();
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (2, 2), "{report:?}");
        drop(image);
        let image = open_in(&world, &vdi::DRIVER, "image", false).await.unwrap();
        let e = image.write(0, IoData::copy_of(&[1; 512])).await.unwrap_err();
        assert!(e.kind == ErrorKind::Corrupt && e.to_string().contains("repair"), "{e}");
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        clean(&*image).await;
        image.write(3 << 20, IoData::copy_of(&[99; 4096])).await.unwrap();
        for (n, byte) in [(0u64, 1), (1, 2), (2, 3), (3, 99), (4, 5), (5, 0), (6, 7), (7, 8)] {
            let data = image.read(n << 20, plinth_image::IoBuf::new(4096)).await.unwrap();
            assert!(data.iter().all(|&b| b == byte), "block {n}");
        }
        image.close().await.unwrap();
    });
}

#[test]
fn both_programs_write_one_image() {
    for (seed, theirs) in ["", "static=on"].into_iter().enumerate() {
        common::with_qemu(&vdi::DRIVER, Some(theirs), "", "vdi", true, seed as u64);
    }
    for (seed, ours) in ["", "static"].into_iter().enumerate() {
        common::with_qemu(&vdi::DRIVER, None, ours, "vdi", true, seed as u64);
    }
}

#[test]
fn the_peers_checker_is_content_after_the_next_open() {
    common::peer_after_cuts(&vdi::DRIVER, "", 12 << 20, "vdi");
}

#[test]
fn damaged_images_are_refused_or_read() {
    let options = ["block_size=64k", "static,block_size=64k"];
    common::damaged(&vdi::DRIVER, &options, 2 << 20, plinth_image::fuzz::fuzz_vdi);
}

#[test]
fn a_large_table_with_little_in_it_is_read_in_pieces() {
    common::sparse_table(&vdi::DRIVER, "", 4 << 40, 1 << 20);
}
