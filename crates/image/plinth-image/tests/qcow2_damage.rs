//! qcow2 images whose tables lead to tables: nothing that is there is overwritten.

use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::format::{
    CreateRequest, Image, MemoryOutput, NoLinks, OpenOptions, OpenRequest, Options, Progress, Repair,
    Snapshot,
};
use plinth_image::graph::{IoBuf, IoData, MemoryNode};

const SIZE: u64 = 4 << 20;
const CLUSTER: usize = 4096;

fn be64(b: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(b[at..at + 8].try_into().unwrap())
}

async fn create(options: &str, size: u64) -> (Rc<dyn Image>, MemoryOutput) {
    let output = MemoryOutput::new("image");
    let options = Options::parse(options).unwrap();
    let request = CreateRequest { output: &output, size, options: &options, backing: None, secret: None };
    ((DRIVER.create.unwrap())(request).await.unwrap(), output)
}

async fn open(bytes: &[u8]) -> (Rc<dyn Image>, Rc<MemoryNode>) {
    let file = Rc::new(MemoryNode::with("image", bytes));
    let request =
        OpenRequest { file: file.clone(), links: Rc::new(NoLinks), options: OpenOptions::default() };
    ((DRIVER.open)(request).await.unwrap(), file)
}

fn template() -> Snapshot {
    Snapshot { name: "s".to_owned(), ..Snapshot::default() }
}

/// What QEMU's checker says; `None` if it is not here.
fn their_check(bytes: &[u8]) -> Option<i32> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), bytes).unwrap();
    Command::new("qemu-img")
        .args(["check", "-q", "image"])
        .current_dir(dir.path())
        .output()
        .ok()?
        .status
        .code()
}

/// An image with two L2 tables, a snapshot and a bitmap, and the places of its tables.
async fn image(options: &str) -> (Vec<u8>, Vec<(&'static str, u64)>) {
    let (image, output) = create(options, SIZE).await;
    image.write(0, IoData::copy_of(&[1; 8 * CLUSTER])).await.unwrap();
    image.snapshots().unwrap().create(&template()).await.unwrap();
    if let Some(bitmaps) = image.bitmaps() {
        bitmaps.add("b", None, true).await.unwrap();
    }
    image.write(0, IoData::copy_of(&[2; 16 * CLUSTER])).await.unwrap();
    image.write(SIZE - 8 * CLUSTER as u64, IoData::copy_of(&[3; 8 * CLUSTER])).await.unwrap();
    image.close().await.unwrap();
    let bytes = output.file("image").unwrap().contents();
    let (l1, reftable, snapshots) = (be64(&bytes, 40), be64(&bytes, 48), be64(&bytes, 64));
    let mask = 0x00ff_ffff_ffff_fe00;
    let l2 = be64(&bytes, l1 as usize) & mask;
    let other = be64(&bytes, l1 as usize + 8) & mask;
    let mut tables = vec![
        ("L1", l1),
        ("refcount table", reftable),
        ("refcount block", be64(&bytes, reftable as usize) & mask),
        ("snapshot table", snapshots),
        ("snapshot's L1", be64(&bytes, snapshots as usize)),
        ("its own L2", l2),
        ("another L2", other),
    ];
    assert!(tables.iter().all(|t| t.1 != 0), "{tables:?}");
    tables.sort_unstable();
    (bytes, tables)
}

/// An entry that leads nowhere has lost a cluster, which must not be given to somebody else before the user says so.
#[test]
fn what_damage_has_lost_is_not_freed_unasked() {
    block_on(async {
        let (mut bytes, tables) = image("cluster_size=4k").await;
        let place = |name: &str| tables.iter().find(|t| t.0 == name).unwrap().1 as usize;
        let entry = place("another L2") + 8 * ((SIZE as usize / CLUSTER - 4) % (CLUSTER / 8));
        assert_ne!(be64(&bytes, entry), 0);
        bytes[entry..entry + 8].copy_from_slice(&(1 << 63 | 1u64 << 40).to_be_bytes());
        // As after a crash.
        bytes[79] |= 1;
        let file = Rc::new(MemoryNode::with("image", &bytes));
        let request =
            || OpenRequest { file: file.clone(), links: Rc::new(NoLinks), options: OpenOptions::default() };
        let e = (DRIVER.open)(request()).await.err().expect("it cannot be mended");
        assert_eq!(e.kind, ErrorKind::Corrupt);
        let block = place("refcount block");
        assert!(
            file.contents()[block..block + CLUSTER] == bytes[block..block + CLUSTER],
            "counts have changed"
        );
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = (DRIVER.open)(OpenRequest { options, ..request() }).await.unwrap();
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (1, 1), "{report:?}");
    });
}

/// Giving back what has leaked cuts off the file's free end, but not what is in use there and not counted.
#[test]
fn what_is_not_counted_at_the_end_is_not_cut_off() {
    block_on(async {
        let (mut bytes, tables) = image("cluster_size=4k").await;
        let block = tables.iter().find(|t| t.0 == "refcount block").unwrap().1 as usize;
        let last = bytes.len() / CLUSTER - 1;
        let (count, leak) = (block + 2 * last, block + 2 * (last + 4));
        assert_eq!(bytes[count..count + 4], [0, 1, 0, 0]);
        bytes[count + 1] = 0;
        bytes[leak + 1] = 1;
        let (image, file) = open(&bytes).await;
        let report = image.check(Repair::Leaks, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 0), "{report:?}");
        image.close().await.unwrap();
        let now = file.contents();
        assert!(now.len() >= bytes.len() && now[last * CLUSTER..][..CLUSTER] == bytes[last * CLUSTER..]);
    });
}

#[test]
fn writes_through_damaged_tables_do_not_hit_tables() {
    for options in ["cluster_size=4k", "cluster_size=4k,compat=0.10"] {
        block_on(async {
            let v3 = !options.contains("0.10");
            let (bytes, tables) = image(options).await;
            let mut kinds = Vec::new();
            // Discards and writes of whole clusters take the reference back; small writes go where it leads.
            type Change = for<'a> fn(&'a dyn Image) -> plinth_image::graph::Io<'a, ()>;
            let changes: [(&str, Change); 4] = [
                ("small write", |i| i.write(512, IoData::copy_of(&[9; 512]))),
                ("large write", |i| i.write(0, IoData::copy_of(&[9; 3 * CLUSTER]))),
                ("zeros", |i| i.write_zeroes(0, CLUSTER as u64, true)),
                ("discard", |i| i.discard(0, CLUSTER as u64)),
            ];
            for &(table, place) in &tables {
                for (what, change) in &changes {
                    let what = format!("{options}: {what} over {table}");
                    let mut damaged = bytes.clone();
                    let l1 = be64(&damaged, 40) as usize;
                    let l2 = (be64(&damaged, l1) & 0x00ff_ffff_ffff_fe00) as usize;
                    damaged[l2..l2 + 8].copy_from_slice(&(place | 1 << 63).to_be_bytes());
                    let (image, file) = open(&damaged).await;
                    let e = change(&*image).await.expect_err(&what);
                    assert_eq!(e.kind, ErrorKind::Corrupt, "{what}: {e}");
                    // Nothing else is written either.
                    let at = SIZE - CLUSTER as u64;
                    let e = image.write(at, IoData::copy_of(&[7; 512])).await.expect_err(&what);
                    assert_eq!(e.kind, ErrorKind::Corrupt, "{what}");
                    let _ = image.close().await;
                    let now = file.contents();
                    for &(name, at) in &tables {
                        let at = at as usize;
                        // Counts change with what is done for the bitmap; the first one is the header's.
                        let len = if name == "refcount block" { 2 } else { 64 };
                        assert!(now[at..at + len] == damaged[at..at + len], "{what}: {name} was changed");
                    }
                    assert_eq!(now[79] & 2 != 0, v3, "{what}: the mark");
                    if v3 && let Some(code) = their_check(&now) {
                        assert_eq!(code, 2, "{what}");
                    }
                    let (image, file) = open(&now).await;
                    let report = image.check(Repair::All, &Progress::default()).await.unwrap();
                    assert!(report.corruptions > 0 && report.is_clean(), "{what}: {report:?}");
                    assert_eq!(image.describe().details.get("corrupt"), v3.then_some(&false.into()));
                    image.write(512, IoData::copy_of(&[9; 512])).await.expect(&what);
                    image.write(at, IoData::copy_of(&[7; 512])).await.unwrap();
                    // The table is alone in its place again, which its flag does not say yet.
                    let report = image.check(Repair::All, &Progress::default()).await.unwrap();
                    assert!(report.is_clean() && report.leaks == 0, "{what}: {report:?}");
                    assert!(image.read(512, IoBuf::new(512)).await.unwrap()[..] == [9; 512]);
                    image.close().await.unwrap();
                    if let Some(code) = their_check(&file.contents()) {
                        assert_eq!(code, 0, "{what}: mended");
                    }
                    kinds.push(table);
                }
            }
            kinds.dedup();
            assert_eq!(kinds.len(), 7);
        });
    }
}

#[test]
fn tables_that_are_counted_as_free_are_not_given_away() {
    block_on(async {
        let (bytes, tables) = image("cluster_size=4k").await;
        let block = tables.iter().find(|t| t.0 == "refcount block").unwrap().1 as usize;
        let mut damaged = bytes.clone();
        for (_, place) in &tables {
            let at = block + *place as usize / CLUSTER * 2;
            damaged[at..at + 2].fill(0);
        }
        let (image, file) = open(&damaged).await;
        let before = image.read(0, IoBuf::new(SIZE as usize)).await.unwrap();
        let mut at = 1 << 20;
        while at < 2 << 20 {
            image.write(at, IoData::copy_of(&[0xee; 2 * CLUSTER])).await.unwrap();
            at += 2 * CLUSTER as u64;
        }
        image.flush().await.unwrap();
        for (name, at) in tables {
            let at = at as usize;
            assert!(file.contents()[at..at + 16] != [0xee; 16], "{name}");
        }
        drop(image);
        let (image, _) = open(&file.contents()).await;
        let now = image.read(0, IoBuf::new(SIZE as usize)).await.unwrap();
        assert!(now[..1 << 20] == before[..1 << 20] && now[2 << 20..] == before[2 << 20..]);
        assert!(now[1 << 20..2 << 20].iter().all(|&b| b == 0xee));
    });
}

/// A table whose entries all lead to one block costs no more than one block.
#[test]
fn one_refcount_block_for_everything_is_found_quickly() {
    block_on(async {
        let (image, output) = create("cluster_size=2M", 1 << 20).await;
        image.write(0, IoData::copy_of(&[1; 4096])).await.unwrap();
        image.close().await.unwrap();
        let mut bytes = output.file("image").unwrap().contents();
        let table = be64(&bytes, 48) as usize;
        let block = be64(&bytes, table);
        bytes[table..table + (2 << 20)].chunks_mut(8).for_each(|c| c.copy_from_slice(&block.to_be_bytes()));
        let start = std::time::Instant::now();
        let (image, _) = open(&bytes).await;
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert!(report.corruptions > 1000, "{}", report.corruptions);
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{} {}", report.corruptions, report.corruptions_fixed);
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        assert!(image.read(0, IoBuf::new(4096)).await.unwrap()[..] == [1; 4096]);
    });
}

/// Tables that are longer than what one block counts.
#[test]
fn long_tables_find_room() {
    block_on(async {
        let (image, output) = create("cluster_size=512,refcount_bits=64", 1 << 20).await;
        image.write(0, IoData::copy_of(&[1; 70_000])).await.unwrap();
        // An L1 table of 4 MiB.
        image.resize(16 << 30).await.unwrap();
        for n in 0..32u64 {
            image.write(n << 29, IoData::copy_of(&[n as u8; 700])).await.unwrap();
        }
        image.snapshots().unwrap().create(&template()).await.unwrap();
        image.write(0, IoData::copy_of(&[9; 1024])).await.unwrap();
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        image.close().await.unwrap();
        let bytes = output.file("image").unwrap().contents();
        let (image, _) = open(&bytes).await;
        for n in 1..32u64 {
            assert!(image.read(n << 29, IoBuf::new(700)).await.unwrap()[..] == [n as u8; 700]);
        }
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        if let Some(code) = their_check(&bytes) {
            assert_eq!(code, 0);
        }
    });
}

#[test]
fn more_references_than_a_count_can_say_are_left_alone() {
    block_on(async {
        let (image, output) = create("refcount_bits=1,cluster_size=4k", SIZE).await;
        image.write(0, IoData::copy_of(&[1; CLUSTER])).await.unwrap();
        image.close().await.unwrap();
        let mut bytes = output.file("image").unwrap().contents();
        let l2 = (be64(&bytes, be64(&bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
        bytes.copy_within(l2..l2 + 8, l2 + 8);
        let (image, file) = open(&bytes).await;
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 0), "{report:?}");
        assert!(report.messages.iter().any(|m| m.contains("amend -o refcount_bits=64")), "{report:?}");
        image.close().await.unwrap();
        // With wider counts it can be mended.
        let (image, _) = open(&file.contents()).await;
        image.amend(&Options::parse("refcount_bits=2").unwrap(), &Progress::default()).await.unwrap();
        image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
        // A write to one of the two does not change the other.
        image.write(0, IoData::copy_of(&[2; CLUSTER])).await.unwrap();
        let both = image.read(0, IoBuf::new(2 * CLUSTER)).await.unwrap();
        assert!(both[..CLUSTER] == [2; CLUSTER] && both[CLUSTER..] == [1; CLUSTER]);
    });
}

#[test]
fn bitmaps_of_large_disks_take_little_memory() {
    block_on(async {
        const LARGE: u64 = 2 << 40;
        let (image, output) = create("cluster_size=2M", LARGE).await;
        let bitmaps = image.bitmaps().unwrap();
        // 512 MiB of bits.
        bitmaps.add("fine", Some(512), true).await.unwrap();
        let some = [(512, 1024), (LARGE / 2, 64 << 30), (LARGE - 512, 512)];
        bitmaps.set("fine", &some).await.unwrap();
        image.write(1 << 40, IoData::copy_of(&[1; 512])).await.unwrap();
        bitmaps.enable("fine", false).await.unwrap();
        image.write(4096, IoData::copy_of(&[1; 512])).await.unwrap();
        image.close().await.unwrap();
        let file = output.file("image").unwrap();
        assert!(file.contents().len() < 128 << 20);
        let (image, _) = open(&file.contents()).await;
        let bitmaps = image.bitmaps().unwrap();
        assert_eq!(bitmaps.ranges("fine").await.unwrap(), some);
        assert!(!bitmaps.list()[0].enabled);
        bitmaps.clear("fine").await.unwrap();
        assert!(bitmaps.ranges("fine").await.unwrap().is_empty());
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
    });
}

/// Opens an image for a check.
async fn open_for_check(bytes: &[u8]) -> (Rc<dyn Image>, Rc<MemoryNode>) {
    let file = Rc::new(MemoryNode::with("image", bytes));
    let options = OpenOptions { for_check: true, ..OpenOptions::default() };
    let request = OpenRequest { file: file.clone(), links: Rc::new(NoLinks), options };
    ((DRIVER.open)(request).await.unwrap(), file)
}

/// Why an image cannot be opened.
async fn refusal(bytes: &[u8]) -> plinth_image::Error {
    let file = Rc::new(MemoryNode::with("image", bytes));
    let request = OpenRequest { file, links: Rc::new(NoLinks), options: OpenOptions::default() };
    (DRIVER.open)(request).await.err().expect("must not be opened")
}

/// Checks and repairs an image until nothing is wrong with it; the report, and the image.
async fn repaired(bytes: &[u8]) -> (plinth_image::format::CheckReport, Vec<u8>) {
    let (image, file) = open_for_check(bytes).await;
    let report = image.check(Repair::All, &Progress::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let again = image.check(Repair::No, &Progress::default()).await.unwrap();
    assert_eq!((again.corruptions, again.leaks), (0, 0), "{again:?}");
    image.close().await.unwrap();
    if let Some(code) = their_check(&file.contents()) {
        assert_eq!(code, 0);
    }
    (report, file.contents())
}

#[test]
fn sizes_that_version_3_demands_are_added_to_snapshots() {
    block_on(async {
        let (mut bytes, _) = image("cluster_size=4k").await;
        let table = be64(&bytes, 64) as usize;
        // ID and name follow without anything between.
        bytes.copy_within(table + 64..table + 66, table + 40);
        bytes[table + 36..table + 40].fill(0);
        let (old, _) = open(&bytes).await;
        let before = old.snapshots().unwrap().list();
        let report = old.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (1, 0), "{report:?}");
        // Such an image is opened after a crash, too.
        let mut dirty = bytes.clone();
        dirty[79] |= 1;
        open(&dirty).await.0.close().await.unwrap();
        let (report, mended) = repaired(&bytes).await;
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 1), "{report:?}");
        let (image, _) = open(&mended).await;
        assert_eq!(image.snapshots().unwrap().list(), before);
        assert_eq!(before[0].disk_size, SIZE);
    });
}

#[test]
fn what_is_too_much_in_a_snapshot_table_is_removed() {
    block_on(async {
        let (image, output) = create("cluster_size=4k", SIZE).await;
        image.write(0, IoData::copy_of(&[1; CLUSTER])).await.unwrap();
        for name in ["a", "b"] {
            let new = Snapshot { name: name.to_owned(), ..Snapshot::default() };
            image.snapshots().unwrap().create(&new).await.unwrap();
            image.write(0, IoData::copy_of(name.repeat(CLUSTER).as_bytes())).await.unwrap();
        }
        image.close().await.unwrap();
        let bytes = output.file("image").unwrap().contents();
        let second = be64(&bytes, 64) as usize + 72;

        // An entry with 60,000 bytes of additional data; its ID and name are wherever that ends.
        let mut long = bytes.clone();
        long[second + 36..second + 40].copy_from_slice(&60_000u32.to_be_bytes());
        long.resize(long.len() + (64 << 10), 0);
        let error = refusal(&long).await.to_string();
        assert!(error.contains("60000 bytes") && error.contains("--repair all"), "{error}");
        let (report, mended) = repaired(&long).await;
        assert!(report.corruptions_fixed > 0);
        let (image, _) = open(&mended).await;
        let names: Vec<_> = image.snapshots().unwrap().list().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["a", "\0"]);
        let view = image.snapshots().unwrap().view("a").await.unwrap();
        assert!(view.read(0, IoBuf::new(CLUSTER)).await.unwrap()[..] == [1; CLUSTER]);

        // More entries than a table may have; those behind its end go, and their clusters too.
        let mut many = bytes.clone();
        let at = many.len().next_multiple_of(CLUSTER);
        let entries = (64 << 20) / (40 + 24 + 65_535 + 65_535 + 2) + 3;
        let mut entry = vec![b'x'; 40 + 24 + 65_535 + 65_535 + 2];
        entry[..64].copy_from_slice(&many[second..second + 64]);
        entry[12..16].fill(0xff);
        many.resize(at, 0);
        for _ in 0..entries {
            many.extend(&entry);
        }
        many[60..64].copy_from_slice(&(entries as u32).to_be_bytes());
        many[64..72].copy_from_slice(&(at as u64).to_be_bytes());
        let error = refusal(&many).await.to_string();
        assert!(error.contains("too long") && error.contains("the 3 snapshots"), "{error}");
        // What they have is not given back before they are gone from the table.
        let (image, file) = open_for_check(&many).await;
        assert_eq!(image.check(Repair::Leaks, &Progress::default()).await.unwrap().leaks_fixed, 0);
        assert!(image.write(0, IoData::copy_of(&[1; 512])).await.is_err());
        image.close().await.unwrap();
        assert!(file.contents() == many);
        let (_, mended) = repaired(&many).await;
        assert_eq!(u32::from_be_bytes(mended[60..64].try_into().unwrap()), entries as u32 - 3);
    });
}

#[test]
fn what_opening_cannot_mend_is_opened_for_a_check() {
    block_on(async {
        let (mut bytes, _) = image("cluster_size=4k").await;
        // It was not closed, and the L2 table has an entry that no repair knows the right value of.
        bytes[79] |= 1;
        let l2 = (be64(&bytes, be64(&bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
        bytes[l2 + 6] |= 2;
        assert_eq!(refusal(&bytes).await.kind, ErrorKind::Corrupt);
        let (image, file) = open_for_check(&bytes).await;
        assert_eq!(image.write(0, IoData::copy_of(&[7; 512])).await.unwrap_err().kind, ErrorKind::Corrupt);
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert_eq!(
            (report.corruptions - report.corruptions_fixed, report.leaks - report.leaks_fixed),
            (1, 0)
        );
        image.close().await.unwrap();
        // What the mark says is still true.
        assert_eq!(file.contents()[79] & 1, 1);
        assert_eq!(refusal(&file.contents()).await.kind, ErrorKind::Corrupt);
    });
}

#[test]
fn tables_that_many_snapshots_share_are_looked_at_once() {
    block_on(async {
        let (image, output) = create("cluster_size=4k", SIZE).await;
        image.snapshots().unwrap().create(&template()).await.unwrap();
        image.close().await.unwrap();
        let mut bytes = output.file("image").unwrap().contents();
        let table = be64(&bytes, 64) as usize;
        let mut entry = bytes[table..table + 72].to_vec();
        // 32 MiB each, and each a bit shorter than the one before it: 1 TiB, if each were read.
        let count = 32_768u32;
        let l1 = 64 << 20;
        entry[..8].copy_from_slice(&(l1 as u64).to_be_bytes());
        bytes.resize(32 << 20, 0);
        for n in 0..count {
            entry[8..12].copy_from_slice(&((4 << 20) - n).to_be_bytes());
            bytes.extend(&entry);
        }
        bytes[60..64].copy_from_slice(&count.to_be_bytes());
        bytes[64..72].copy_from_slice(&(32u64 << 20).to_be_bytes());
        bytes.resize(l1 + (32 << 20), 0);
        let (image, _) = open_for_check(&bytes).await;
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert!(report.corruptions > 0, "{report:?}");
    });
}

/// An image with one cluster of data, and where its L2 table is.
async fn one_cluster(options: &str) -> (Vec<u8>, usize) {
    let (image, output) = create(options, SIZE).await;
    image.write(0, IoData::copy_of(&[1; 64 << 10])).await.unwrap();
    image.close().await.unwrap();
    let bytes = output.file("image").unwrap().contents();
    let l2 = be64(&bytes, be64(&bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00;
    (bytes, l2 as usize)
}

#[test]
fn misplaced_clusters_go_where_they_hold_nothing() {
    block_on(async {
        for (options, zeros) in [("", false), ("extended_l2=on", false), ("", true), ("extended_l2=on", true)]
        {
            let (mut bytes, l2) = one_cluster(options).await;
            let entry = be64(&bytes, l2) + 0x200;
            let extended = !options.is_empty();
            let zero = if zeros && !extended { 1 } else { 0 };
            bytes[l2..l2 + 8].copy_from_slice(&(entry | zero).to_be_bytes());
            if zeros && extended {
                bytes[l2 + 8..l2 + 16].copy_from_slice(&(0xffff_ffff_u64 << 32).to_be_bytes());
            }
            let (image, _) = open(&bytes).await;
            image.read(0, IoBuf::new(512)).await.unwrap_err();
            let report = image.check(Repair::All, &Progress::default()).await.unwrap();
            let again = image.check(Repair::No, &Progress::default()).await.unwrap();
            assert_eq!(again.is_clean(), zeros, "{options}: {report:?} {again:?}");
            let read = image.read(0, IoBuf::new(512)).await;
            if zeros {
                assert!(report.messages[0].starts_with("Repairing offset="), "{report:?}");
                assert!(read.unwrap()[..] == [0; 512]);
            } else {
                // It may be the data nevertheless: nobody else gets its place.
                assert!(report.messages[0].contains("Data cluster is not properly aligned"), "{report:?}");
                assert_eq!((again.corruptions, again.leaks), (1, 0), "{again:?}");
                read.unwrap_err();
            }
        }
    });
}

#[test]
fn counts_that_call_something_free_are_written_anew() {
    block_on(async {
        let (mut bytes, l2) = one_cluster("").await;
        let data = (be64(&bytes, l2) & 0x00ff_ffff_ffff_fe00) as usize >> 16;
        let block = be64(&bytes, be64(&bytes, 48) as usize) as usize;
        bytes[block + data * 2..block + data * 2 + 2].fill(0);
        let (image, file) = open(&bytes).await;
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert!(report.messages.iter().any(|m| m == "Rebuilding refcount structure"), "{report:?}");
        image.close().await.unwrap();
        let new = file.contents();
        assert!(be64(&new, 48) != be64(&bytes, 48));
        assert_eq!(their_check(&new).unwrap_or(0), 0);
        let (image, _) = open(&new).await;
        let again = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((again.corruptions, again.leaks), (0, 0), "{again:?}");
        assert!(image.read(0, IoBuf::new(64 << 10)).await.unwrap()[..] == [1; 64 << 10]);
    });
}

#[test]
fn a_snapshot_that_fails_in_a_damaged_image_leaves_it_as_it_was() {
    block_on(async {
        let (mut bytes, l2) = one_cluster("").await;
        bytes[l2 + 8..l2 + 16].copy_from_slice(&0xbfff_ffff_ffff_0000_u64.to_be_bytes());
        let (image, file) = open(&bytes).await;
        image.snapshots().unwrap().create(&template()).await.unwrap_err();
        drop(image);
        // It can be opened, read and written still.
        let (image, _) = open(&file.contents()).await;
        assert!(image.snapshots().unwrap().list().is_empty() && !image.describe().dirty);
        assert!(image.read(0, IoBuf::new(64 << 10)).await.unwrap()[..] == [1; 64 << 10]);
        image.write(0, IoData::copy_of(&[2; 512])).await.unwrap();
        image.close().await.unwrap();
    });
}

#[test]
fn a_snapshot_whose_table_cannot_be_is_told_by_a_check() {
    block_on(async {
        let (image, output) = create("", SIZE).await;
        image.write(0, IoData::copy_of(&[1; 64 << 10])).await.unwrap();
        image.snapshots().unwrap().create(&template()).await.unwrap();
        image.close().await.unwrap();
        let bytes = output.file("image").unwrap().contents();
        let table = be64(&bytes, 64) as usize;
        for (at, value, text) in [(8, 0x1000_0000_u32, "too large"), (4, 0x40_0200, "not cluster aligned")] {
            let mut bytes = bytes.clone();
            bytes[table + at..table + at + 4].copy_from_slice(&value.to_be_bytes());
            let (image, _) = open(&bytes).await;
            assert!(image.read(0, IoBuf::new(64 << 10)).await.unwrap()[..] == [1; 64 << 10]);
            let report = image.check(Repair::No, &Progress::default()).await.unwrap();
            assert!(report.messages[0].contains(text), "{report:?}");
            image.snapshots().unwrap().view("s").await.err().unwrap();
            image.snapshots().unwrap().delete("s").await.unwrap_err();
        }
    });
}
