//! VHD images.

mod common;

use common::{clean, create_file, create_in, open_in, parent_in};
use plinth_host::aio::block_on;
use plinth_image::format::{Format, OpenOptions, Progress, Repair, open, vhd};
use plinth_image::graph::{IoBuf, IoData};
use plinth_image::testing::World;
use plinth_image::{ErrorKind, SECTOR};

const M: u64 = 1 << 20;

#[test]
fn power_cuts_leave_images_that_are_clean_after_the_next_open() {
    for (options, size, cluster) in [("block_size=64k", 6 * M, 65536), ("", 12 * M, 2 * M)] {
        common::crash(&vhd::DRIVER, options, size, cluster);
    }
    common::crash(&vhd::DRIVER, "subformat=fixed", 4 * M, 65536);
}

#[test]
fn failures_leave_old_or_new_contents() {
    for options in ["block_size=64k", "subformat=fixed"] {
        common::fault(&vhd::DRIVER, options, 4 * M, 65536);
    }
}

#[test]
fn what_is_not_in_an_image_is_its_parents() {
    common::differencing(&vhd::DRIVER, "vhd", "block_size=64k", 6 * M, 65536);
}

#[test]
fn sizes_change() {
    for options in ["block_size=64k", "subformat=fixed", "block_size=4k"] {
        common::resizing(&vhd::DRIVER, options, &[2 * M, 7 * M + 512, 3 * M, 3 * M + 4096, 9 * M], 65536);
    }
}

#[test]
fn the_space_of_a_table_that_moved_is_not_lost() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vhd::DRIVER, "image", M, "block_size=4k", None).await.unwrap();
        image.write(0, IoData::copy_of(&[7; 40_000])).await.unwrap();
        image.resize(9 * M).await.unwrap();
        clean(&*image).await;
        let all = image.read(0, IoBuf::new(40_000)).await.unwrap();
        assert!(all.iter().all(|&b| b == 7));
        image.close().await.unwrap();
        clean(&*open_in(&world, &vhd::DRIVER, "image", true).await.unwrap()).await;
    });
}

#[test]
fn both_programs_write_one_image() {
    let theirs = ["", "subformat=fixed", "force_size=on", "force_size=on,subformat=fixed"];
    for (seed, theirs) in theirs.into_iter().enumerate() {
        common::with_qemu(&vhd::DRIVER, Some(theirs), "", "vpc", false, seed as u64);
    }
    for (seed, ours) in ["", "subformat=fixed", "force_size=off"].into_iter().enumerate() {
        common::with_qemu(&vhd::DRIVER, None, ours, "vpc", false, seed as u64);
    }
}

#[test]
fn sizes_are_the_peers() {
    if !common::has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for size in [512, 70_000 / 512 * 512, 10 * M, 1000 * M, 10 << 30, 130 << 30, 200 << 30] {
        for (theirs, ours) in [("force_size=off", "force_size=off"), ("force_size=on", "")] {
            let name = a.to_str().unwrap();
            common::run("qemu-img", &["create", "-q", "-f", "vpc", "-o", theirs, name, &size.to_string()]);
            create_file(&vhd::DRIVER, &b, size, ours);
            let (theirs, ours) = (common::open_file(&a, true), common::open_file(&b, true));
            assert_eq!(theirs.image.size(), ours.image.size(), "{size}");
            drop(ours);
            let info = common::run("qemu-img", &["info", "--output=json", "-f", "vpc", b.to_str().unwrap()]);
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"], theirs.image.size());
        }
    }
}

#[test]
fn footers_are_found_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let format = |path| block_on(open(path, &OpenOptions::default())).map(|o| o.image.format());
    // A fixed image is known by its end, with 511 bytes too.
    create_file(&vhd::DRIVER, &path, 4 * M, "subformat=fixed");
    assert_eq!(format(&path).unwrap(), Format::Vhd);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(4 * M + SECTOR - 1).unwrap();
    let opened = block_on(open(&path, &OpenOptions::default())).unwrap();
    assert_eq!((opened.image.format(), opened.image.size()), (Format::Vhd, 4 * M));
    drop(opened);
    // A dynamic one by its beginning, when the end is damaged.
    create_file(&vhd::DRIVER, &path, 4 * M, "");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(common::open_file(&path, true).image.size(), 4 * M);
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        clean(&*image).await;
        image.close().await.unwrap();
    });
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // What a guest may have written at the end of its disk does not name files.
    let mut raw = vec![0; 4 << 20];
    raw.extend(&whole[..512]);
    std::fs::write(&path, &raw).unwrap();
    assert_eq!(format(&path).unwrap(), Format::Raw);
}

#[test]
fn another_parent_is_refused() {
    block_on(async {
        let world = World::new(1);
        parent_in(&world, &vhd::DRIVER, "parent.vhd", "", 4 * M).await;
        let parent = open_in(&world, &vhd::DRIVER, "parent.vhd", true).await.unwrap();
        let link = common::link_to("parent.vhd", &*parent);
        let child = create_in(&world, &vhd::DRIVER, "child", 4 * M, "", Some(link)).await.unwrap();
        child.close().await.unwrap();
        let with = async |parent: Option<&str>| {
            let other = World::new(2);
            other.add("child", world.file("child").unwrap().memory.clone());
            if let Some(name) = parent {
                other.add("parent.vhd", world.file(name).unwrap().memory.clone());
            }
            open_in(&other, &vhd::DRIVER, "child", true).await
        };
        assert!(with(Some("parent.vhd")).await.is_ok());
        assert_eq!(with(None).await.err().unwrap().kind, ErrorKind::NotFound);
        parent_in(&world, &vhd::DRIVER, "stranger", "", 4 * M).await;
        let e = with(Some("stranger")).await.err().unwrap();
        assert!(e.kind == ErrorKind::Corrupt && e.to_string().contains("unique ID"), "{e}");
    });
}

#[test]
fn damage_is_found_and_mended() {
    block_on(async {
        let world = World::new(1);
        let image = create_in(&world, &vhd::DRIVER, "image", 16 * M, "", None).await.unwrap();
        for n in 0..8u64 {
            image.write(n * 2 * M, IoData::copy_of(&[n as u8 + 1; 4096])).await.unwrap();
        }
        image.close().await.unwrap();
        let file = world.file("image").unwrap();
        let mut second = [0; 4];
        file.memory.get(4096 + 2 * 4, &mut second);
        file.memory.put(4096 + 3 * 4, &second);
        file.memory.put(4096 + 5 * 4, &[0, 0x70, 0, 0]);
        let image = open_in(&world, &vhd::DRIVER, "image", false).await.unwrap();
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
fn damaged_images_are_refused_or_read() {
    let options = ["block_size=64k", "subformat=fixed"];
    common::damaged(&vhd::DRIVER, &options, 2 * M, plinth_image::fuzz::fuzz_vhd);
}

#[test]
fn a_large_table_with_little_in_it_is_read_in_pieces() {
    common::sparse_table(&vhd::DRIVER, "", 1 << 40, 2 << 20);
}

#[test]
fn space_that_blocks_left_before_the_table_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.vhd");
    create_file(&vhd::DRIVER, &path, 64 << 10, "block_size=4k");
    let write = async |image: &dyn plinth_image::format::Image, at: u64| {
        image.write(at, IoData::copy_of(&[7; 4096])).await.unwrap();
    };
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        for at in [0, 16 << 10, 40 << 10, 60 << 10] {
            write(&*image, at).await;
        }
        // The table goes behind the blocks, of which some are no more then.
        image.resize(8 << 20).await.unwrap();
        write(&*image, 4 << 20).await;
        image.resize(32 << 10).await.unwrap();
        image.close().await.unwrap();
    });
    let before = std::fs::metadata(&path).unwrap().len();
    block_on(async {
        let image = common::open_in_file(&path, false).await;
        for at in [8 << 10, 24 << 10] {
            write(&*image, at).await;
            image.flush().await.unwrap();
            clean(&*image).await;
        }
        image.close().await.unwrap();
    });
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
}
