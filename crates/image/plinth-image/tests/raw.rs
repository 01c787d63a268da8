//! The raw format, and with it what the tests of all formats stand on.

mod common;

use futures_util::FutureExt;
use plinth_host::aio::block_on;
use plinth_image::format::{CreateRequest, OpenOptions, Options, Output, OutputFiles, open, raw};
use plinth_image::graph::{Cache, IoData, Node};
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
