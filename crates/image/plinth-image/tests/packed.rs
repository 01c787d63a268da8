//! Compressed images that are only read: cloop and Apple's disk images. And how QED is read.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{Format, Image, OpenOptions, Progress, Repair, open, open_node};
use plinth_image::graph::{IoBuf, IoData, MemoryNode};
use plinth_image::testing::samples::{CHUNK, adc, cloop, data, dmg, qed, zlib};
use plinth_image::{Error, ErrorKind};

async fn open_bytes(bytes: &[u8]) -> Result<Rc<dyn Image>, Error> {
    Ok(open_node(Rc::new(MemoryNode::with("image", bytes)), &OpenOptions::default()).await?.image)
}

#[test]
fn cloop_reads_its_blocks() {
    let want = data(CHUNK * 40);
    let bytes = cloop(&want);
    block_on(async {
        let image = open_bytes(&bytes).await.unwrap();
        assert_eq!((image.format(), image.size()), (Format::Cloop, want.len() as u64));
        assert!(image.read(0, IoBuf::new(want.len())).await.unwrap()[..] == want);
        assert!(
            image.read(CHUNK as u64 * 3 - 7, IoBuf::new(20)).await.unwrap()[..]
                == want[CHUNK * 3 - 7..CHUNK * 3 + 13]
        );
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
        assert_eq!(image.write(0, IoData::copy_of(&[0; 512])).await.unwrap_err().kind, ErrorKind::ReadOnly);
        let mut bad = bytes.clone();
        let end = bad.len();
        bad[end - 300..end - 100].fill(0x55);
        let image = open_bytes(&bad).await.unwrap();
        assert_eq!(
            image.read(CHUNK as u64 * 39, IoBuf::new(512)).await.unwrap_err().kind,
            ErrorKind::Corrupt
        );
        assert_eq!(image.check(Repair::No, &Progress::default()).await.unwrap().corruptions, 1);
        for (at, value) in [(128, 0), (128, u32::MAX), (132, u32::MAX), (132, 1 << 20), (136, 1)] {
            let mut bad = bytes.clone();
            bad[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
            assert_eq!(open_bytes(&bad).await.err().unwrap().kind, ErrorKind::Corrupt, "{at}");
        }
    });
}

#[test]
fn apples_disk_images_read_every_kind_of_chunk() {
    let want = data(CHUNK * 40);
    let part = |n: usize| &want[n * CHUNK..(n + 1) * CHUNK];
    let bzip2 = |data: &[u8]| {
        let mut e = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    };
    let xz = |data: &[u8]| {
        let mut e = liblzma::write::XzEncoder::new(Vec::new(), 6);
        e.write_all(data).unwrap();
        e.finish().unwrap()
    };
    let lzfse = |data: &[u8]| {
        let mut out = Vec::new();
        lzfse_rust::encode_bytes(data, &mut out).unwrap();
        out
    };
    let mut chunks = vec![
        (1, part(0).to_vec()),
        (0, Vec::new()),
        (2, Vec::new()),
        (0x8000_0004, adc(part(3))),
        (0x8000_0005, zlib(part(4))),
        (0x8000_0006, bzip2(part(5))),
        (0x8000_0007, lzfse(part(6))),
        (0x8000_0008, xz(part(7))),
    ];
    chunks.extend((8..40).map(|n| match n % 3 {
        0 => (0x8000_0005, zlib(part(n))),
        1 => (0x8000_0006, bzip2(part(n))),
        _ => (0x8000_0008, xz(part(n))),
    }));
    let mut want = want.clone();
    want[CHUNK..3 * CHUNK].fill(0);
    block_on(async {
        for old in [false, true] {
            let image = open_bytes(&dmg(&chunks, old)).await.unwrap();
            assert_eq!((image.format(), image.size()), (Format::Dmg, want.len() as u64));
            assert!(image.read(0, IoBuf::new(want.len())).await.unwrap()[..] == want);
            for at in (0..want.len() - 5000).step_by(30_011) {
                assert!(image.read(at as u64, IoBuf::new(5000)).await.unwrap()[..] == want[at..at + 5000]);
            }
            assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
            assert!(image.status(CHUNK as u64, CHUNK as u64).await.unwrap().zero);
        }
        // Each kind cut short, or nonsense.
        for n in 3..8 {
            for keep in [0, 1, chunks[n].1.len() / 2] {
                let mut bad = chunks.clone();
                bad[n].1.truncate(keep);
                let image = open_bytes(&dmg(&bad, false)).await.unwrap();
                let read = image.read((n * CHUNK) as u64, IoBuf::new(CHUNK)).await;
                assert_eq!(read.unwrap_err().kind, ErrorKind::Corrupt, "{n} {keep}");
            }
            let mut bad = chunks.clone();
            bad[n].1 = data(3000);
            let image = open_bytes(&dmg(&bad, false)).await.unwrap();
            assert!(image.read((n * CHUNK) as u64, IoBuf::new(CHUNK)).await.is_err(), "{n}");
        }
        let encrypted = [b"encrcdsa".to_vec(), vec![0; 4096]].concat();
        assert_eq!(open_bytes(&encrypted).await.err().unwrap().kind, ErrorKind::Unsupported);
    });
}

#[test]
fn apples_lists_that_cannot_be_are_refused() {
    let good = dmg(&[(1, vec![7; CHUNK]), (0x8000_0005, zlib(&[8; CHUNK]))], true);
    let fork = good.len() - 512 - 256 - 4 - 204 - 120;
    let mish = fork + 260;
    block_on(async {
        open_bytes(&good).await.unwrap();
        for (at, bytes, kind) in [
            // The second chunk where the first is, too long, behind the end, of an unknown kind.
            (mish + 204 + 40 + 8, vec![0; 8], ErrorKind::Corrupt),
            (mish + 204 + 40 + 16, vec![0x10; 8], ErrorKind::Corrupt),
            (mish + 204 + 40 + 16, vec![0, 0, 0, 0, 0x10, 0, 0, 0], ErrorKind::Corrupt),
            (mish + 204 + 40 + 24, vec![0x7f; 8], ErrorKind::Corrupt),
            (mish + 204 + 40, vec![0x12; 4], ErrorKind::Unsupported),
            (mish + 200, vec![0xff; 4], ErrorKind::Corrupt),
            (mish, vec![0; 4], ErrorKind::Corrupt),
            (good.len() - 512 + 40, vec![0xff; 8], ErrorKind::Corrupt),
            (good.len() - 512 + 48, vec![0xff; 8], ErrorKind::Corrupt),
            (good.len() - 512 + 48, vec![0; 8], ErrorKind::Corrupt),
        ] {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(&bytes);
            assert_eq!(open_bytes(&bad).await.err().unwrap().kind, kind, "{at} {bytes:?}");
        }
    });
}

#[test]
fn qed_reads_through_its_tables() {
    block_on(async {
        let image = open_bytes(&qed()).await.unwrap();
        assert_eq!((image.format(), image.size()), (Format::Qed, 64 * 4096));
        let all = image.read(0, IoBuf::new(64 * 4096)).await.unwrap();
        assert!(all[..4096].iter().all(|&b| b == 1) && all[4096..8192].iter().all(|&b| b == 2));
        assert!(all[8192..].iter().all(|&b| b == 0));
        let extent = image.status(512, 64 * 4096 - 512).await.unwrap();
        assert_eq!((extent.len, extent.host), (8192 - 512, Some(12288 + 512)));
        assert!(image.status(8192, 4096).await.unwrap().present);
        assert!(!image.status(12288, 4096).await.unwrap().present);
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
        for (at, value) in [(4, 5), (8, 3), (40, 4000), (40, 1 << 40), (48, 1 << 62), (16, 1)] {
            let mut bad = qed();
            bad[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            assert!(open_bytes(&bad).await.is_err(), "{at}");
        }
        // A cluster that is shared, one behind the end, a table that is not aligned.
        for (at, value) in [(8200, 12288), (8200, 1 << 40), (4096, 8193)] {
            let mut bad = qed();
            bad[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            let image = open_bytes(&bad).await.unwrap();
            assert_eq!(image.check(Repair::No, &Progress::default()).await.unwrap().corruptions, 1, "{at}");
        }
    });
}

#[test]
fn qed_images_of_qemu_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, base, top) = (path("raw"), path("base.qed"), path("top.qed"));
    let mut want = data(3 << 20);
    want[1 << 20..2 << 20].fill(0);
    std::fs::write(&raw, &want).unwrap();
    let run = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).output().ok()?;
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Some(())
    };
    for options in ["cluster_size=64k", "cluster_size=4k,table_size=2"] {
        let convert = ["convert", "-f", "raw", "-O", "qed", "-o", options, &raw, &base];
        if run("qemu-img", &convert).is_none() {
            eprintln!("qemu-img is not installed");
            return;
        }
        run("qemu-img", &["create", "-f", "qed", "-b", "base.qed", "-F", "qed", &top, "4M"]);
        let io = ["-f", "qed", "-c", "write -P 9 100k 300k", "-c", "write -z 2M 128k", &top];
        run("qemu-io", &io).expect("it comes with qemu-img");
        let mut want = want.clone();
        want.resize(4 << 20, 0);
        want[100 << 10..400 << 10].fill(9);
        want[2 << 20..(2 << 20) + (128 << 10)].fill(0);
        block_on(async {
            let image = open(Path::new(&top), &OpenOptions::default()).await.unwrap().image;
            assert!(image.read(0, IoBuf::new(4 << 20)).await.unwrap()[..] == want, "{options}");
            assert_eq!(image.status(0, 4096).await.unwrap().depth, 1);
            let report = image.check(Repair::No, &Progress::default()).await.unwrap();
            assert!(report.is_clean(), "{report:?}");
        });
    }
}

#[test]
fn damaged_files_do_no_harm() {
    use plinth_image::fuzz::{damage, fuzz_cloop, fuzz_dmg, fuzz_qed};
    damage(&qed(), 300, 20_480, fuzz_qed);
    damage(&cloop(&data(CHUNK * 5)), 100, 4000, fuzz_cloop);
    let image =
        dmg(&[(1, vec![7; CHUNK]), (0x8000_0005, zlib(&data(CHUNK))), (0x8000_0004, adc(&[1; CHUNK]))], true);
    let (start, end) = (image.len() - 1500, image.len());
    // What matters is at the end.
    let rotated: Vec<u8> = image[start..end].iter().chain(&image[..start]).copied().collect();
    assert_eq!(rotated.len(), image.len());
    damage(&rotated, 300, 1500, |bad| {
        let start = bad.len().min(1500);
        fuzz_dmg(&[&bad[start..], &bad[..start]].concat());
    });
}
