//! The raw format, and with it what the tests of all formats stand on.

mod common;

use std::rc::Rc;

use futures_util::FutureExt;
use plinth_host::aio::block_on;
use plinth_image::format::{
    CreateRequest, Format, OpenOptions, Options, Output, OutputFiles, open, open_node, raw,
};
use plinth_image::graph::{Cache, IoBuf, IoData, MemoryNode, Node, NodeRef, SliceNode};
use plinth_image::testing::{Shadow, Workload};

const SIZE: u64 = 4 << 20;

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    common::crash(&raw::DRIVER, "", SIZE, 65536);
}

#[test]
fn failures_leave_old_or_new_contents() {
    common::fault(&raw::DRIVER, "", SIZE, 65536);
}

#[test]
fn the_shadow_finds_what_is_wrong() {
    let node = plinth_image::graph::MemoryNode::new("x");
    let shadow = Shadow::default();
    node.resize(SIZE).now_or_never().unwrap().unwrap();
    block_on(Workload::new(3, 100).run(&node, &shadow, &|| 0)).unwrap();
    block_on(shadow.verify(&node, None)).unwrap();
    let mut byte = [0];
    node.get(5000, &mut byte);
    node.put(5000, &[byte[0] ^ 1]);
    assert!(block_on(shadow.verify(&node, None)).unwrap_err().contains("sector 9 "));
}

#[test]
fn a_new_image_has_its_name_when_it_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, b"old").unwrap();
    let make = async |finish: bool| {
        let output = OutputFiles::new(&path, Cache::Cached).unwrap();
        let options = Options::default();
        let request =
            CreateRequest { output: &output, size: SIZE, options: &options, backing: None, secret: None };
        let image = (raw::DRIVER.create.unwrap())(request).await.unwrap();
        image.write(1000, IoData::copy_of(b"new")).await.unwrap();
        image.close().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(output.name(), "disk.raw");
        if finish {
            output.finish().unwrap();
        }
    };
    block_on(make(false));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    block_on(make(true));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let opened = block_on(open(&path, &OpenOptions::default())).unwrap();
    assert!(opened.probed);
    assert_eq!(opened.image.size(), SIZE);
}

#[test]
fn the_last_sector_of_what_cannot_grow_is_padded() {
    block_on(async {
        const LEN: u64 = 3 * 512 + 100;
        let below = MemoryNode::new("below");
        below.put(0, &[7; LEN as usize]);
        below.set_size(LEN);
        // A slice reads and writes nothing beyond its end, as an export.
        let slice: NodeRef = Rc::new(SliceNode::new(Rc::new(below), 0, LEN).unwrap());
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let image = open_node(slice, &options).await.unwrap().image;
        assert_eq!(image.size(), 4 * 512);
        let all = image.read(0, IoBuf::new(4 * 512)).await.unwrap();
        assert!(all[..LEN as usize].iter().all(|&b| b == 7) && all[LEN as usize..].iter().all(|&b| b == 0));
        let mut at = 0;
        while at < image.size() {
            at += image.status(at, image.size() - at).await.unwrap().len;
        }
        let mut sector = [0; 512];
        sector[..100].fill(8);
        image.write(3 * 512, IoData::copy_of(&sector)).await.unwrap();
        image.write_zeroes(3 * 512 + 50, 462, true).await.unwrap();
        let last = image.read(3 * 512, IoBuf::new(512)).await.unwrap();
        assert!(last[..50].iter().all(|&b| b == 8) && last[50..].iter().all(|&b| b == 0));
        sector[100] = 1;
        image.write(3 * 512, IoData::copy_of(&sector)).await.unwrap_err();
    });
}
