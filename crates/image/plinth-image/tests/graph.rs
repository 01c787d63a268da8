//! Nodes that lie over other nodes.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::graph::{
    IoBuf, IoData, Keep, Limits, MemoryNode, Node, NodeRef, OverlayNode, SliceNode, ThrottleNode,
};
use plinth_image::testing::{Shadow, Workload, World};

const SIZE: u64 = 4 << 20;

fn disk(fill: u8) -> Rc<MemoryNode> {
    Rc::new(MemoryNode::with("disk", &vec![fill; SIZE as usize]))
}

fn shadow(fill: u8) -> Shadow {
    let mut shadow = Shadow::default();
    shadow.below = (0..SIZE / 512).map(|s| (s, vec![fill; 512])).collect();
    shadow
}

#[test]
fn an_overlay_keeps_writes_and_leaves_the_disk_alone() {
    for seed in 0..20 {
        block_on(async {
            let world = World::new(seed);
            let below = world.add("below", MemoryNode::with("below", &vec![7; SIZE as usize]));
            let store = world.add("store", MemoryNode::new("store"));
            let overlay = OverlayNode::new(below.clone(), store, Keep::Writes, 16 << 10).unwrap();
            let shadow = shadow(7);
            let work = Workload { cluster: 16 << 10, ..Workload::new(seed, 300) };
            work.run(&overlay, &shadow, &|| 0).await.unwrap();
            shadow.verify(&overlay, None).await.unwrap();
            assert!(below.memory.contents().iter().all(|&b| b == 7));
        });
    }
}

#[test]
fn an_overlay_grows_and_shrinks() {
    block_on(async {
        let overlay =
            OverlayNode::new(disk(7), Rc::new(MemoryNode::new("s")), Keep::Writes, 64 << 10).unwrap();
        overlay.resize(1000 * 512).await.unwrap();
        overlay.resize(SIZE * 2).await.unwrap();
        let all = overlay.read(0, IoBuf::new(SIZE as usize * 2)).await.unwrap();
        assert!(all[..512_000].iter().all(|&b| b == 7) && all[512_000..].iter().all(|&b| b == 0));
        assert_eq!(overlay.status(0, SIZE).await.unwrap().depth, 1);
    });
}

#[test]
fn a_cache_reads_everything_once() {
    block_on(async {
        let world = World::new(1);
        let below = world.add("below", MemoryNode::with("below", &vec![7; SIZE as usize]));
        let cache = OverlayNode::new(below, disk(0), Keep::Reads, 1 << 20).unwrap();
        let before = world.requests();
        for _ in 0..2 {
            let reads = (0..100).map(|n| cache.read(n * 40_000, IoBuf::new(30_000)));
            for data in join_all(reads).await {
                assert!(data.unwrap().iter().all(|&b| b == 7));
            }
        }
        assert_eq!(world.requests() - before, 4);
        let e = cache.write(0, IoData::copy_of(b"x")).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::ReadOnly);
    });
}

#[test]
fn a_slice_is_a_disk_of_its_own() {
    block_on(async {
        let whole = disk(7);
        let slice = SliceNode::new(whole.clone(), 512, 1024).unwrap();
        slice.write(1000, IoData::copy_of(&[1; 24])).await.unwrap();
        assert!(slice.write(1001, IoData::copy_of(&[1; 24])).await.is_err());
        assert_eq!(slice.read(999, IoBuf::new(2)).await.unwrap()[..], [7, 1]);
        assert_eq!((whole.contents()[1535], whole.contents()[1536]), (1, 7));
        assert!(SliceNode::new(whole, SIZE - 512, 513).is_err());
    });
}

#[test]
fn a_throttle_holds_back_what_is_too_much() {
    block_on(async {
        let limits = Limits { bytes: Some(10 << 20), requests: None };
        let slow: NodeRef = Rc::new(ThrottleNode::new(disk(0), limits));
        let begin = Instant::now();
        // 4 MiB at 10 MiB a second, of which the first tenth of a second is free.
        let all = (0..64).map(|n| slow.read(n * 65536, IoBuf::new(65536)));
        join_all(all).await;
        assert!(begin.elapsed() >= Duration::from_millis(280), "{:?}", begin.elapsed());
    });
}
