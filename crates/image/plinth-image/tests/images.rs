//! Raw images and overlays on real files.

use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;

use plinth_image::disk::{Disk, GraphDisk, OpenOptions, Overlay, RawImage};
use plinth_image::format::{Format, Trust};
use plinth_image::{Error, ErrorKind};

const READ_WRITE: OpenOptions = OpenOptions { read_only: false, trust_raw: false };
const READ_ONLY: OpenOptions = OpenOptions { read_only: true, trust_raw: false };

fn image(dir: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn read(node: &dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut a = vec![1; len / 2];
    let mut b = vec![1; len - len / 2];
    node.read_at(offset, &mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap();
    a.extend(b);
    a
}

fn write(node: &dyn Disk, offset: u64, data: &[u8]) -> Result<(), Error> {
    let (a, b) = data.split_at(data.len() / 3);
    node.write_at(offset, &[IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b)])
}

fn kind<T>(r: Result<T, Error>) -> ErrorKind {
    r.err().expect("must fail").kind
}

#[test]
fn raw_images_read_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, &[7; 1 << 20]);
    let disk = RawImage::open(&path, &READ_WRITE).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    write(&disk, 5000, b"some bytes").unwrap();
    disk.flush().unwrap();
    assert_eq!(read(&disk, 4999, 12), b"\x07some bytes\x07");
    disk.write_zeroes(4096, 8192, true).unwrap();
    disk.write_zeroes(65536, 512, false).unwrap();
    disk.discard(131_072, 4096).unwrap();
    assert_eq!(read(&disk, 4095, 8194), [&[7][..], &[0; 8192], &[7]].concat());
    assert_eq!(read(&disk, 65536, 513)[511..], [0, 7]);
    assert_eq!(kind(write(&disk, (1 << 20) - 4, b"12345")), ErrorKind::OutOfRange);
    assert_eq!(kind(disk.discard(u64::MAX, 2)), ErrorKind::OutOfRange);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn a_file_that_ends_within_a_sector_is_padded() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, &[9; 1000]);
    let disk = RawImage::open(&path, &READ_WRITE).unwrap();
    assert_eq!(disk.size(), 1024);
    assert_eq!(read(&disk, 990, 34), [&[9; 10][..], &[0; 24]].concat());
    write(&disk, 1020, &[5; 4]).unwrap();
    assert_eq!(read(&disk, 999, 25), [&[9][..], &[0; 20], &[5; 4]].concat());
}

#[test]
fn a_disk_in_use_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, &[0; 4096]);
    let reader = RawImage::open(&path, &READ_ONLY).unwrap();
    let other = RawImage::open(&path, &READ_ONLY).unwrap();
    assert_eq!(kind(write(&reader, 0, b"x")), ErrorKind::ReadOnly);
    assert_eq!(kind(RawImage::open(&path, &READ_WRITE)), ErrorKind::Busy);
    drop((reader, other));
    let writer = RawImage::open(&path, &READ_WRITE).unwrap();
    assert_eq!(kind(RawImage::open(&path, &READ_WRITE)), ErrorKind::Busy);
    assert_eq!(kind(RawImage::open(&path, &READ_ONLY)), ErrorKind::Busy);
    drop(writer);
    RawImage::open(&path, &READ_ONLY).unwrap();
}

/// Runs `qemu-io`; `None` where it is not installed.
fn qemu_io(args: &[&str]) -> Option<bool> {
    let run = std::process::Command::new("qemu-io").args(["-f", "raw"]).args(args).output();
    Some(run.ok()?.status.success())
}

#[test]
fn other_tools_keep_away_from_a_disk_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, &[0; 4096]);
    let name = path.to_str().unwrap();
    let (read, write) = (["-r", "-c", "read 0 512", name], ["-c", "write 0 512", name]);
    if qemu_io(&read).is_none() {
        eprintln!("qemu-io is not installed");
        return;
    }
    let reader = RawImage::open(&path, &READ_ONLY).unwrap();
    assert_eq!((qemu_io(&read), qemu_io(&write)), (Some(true), Some(false)));
    drop(reader);
    let writer = RawImage::open(&path, &READ_WRITE).unwrap();
    // It reads along with a writer, since it does not mind what it sees; a machine would.
    assert_eq!((qemu_io(&read), qemu_io(&write)), (Some(true), Some(false)));
    drop(writer);
    assert_eq!(qemu_io(&write), Some(true));
}

#[test]
fn what_is_no_raw_disk_is_refused_unless_the_user_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let qcow2 = image(&dir, &[b"QFI\xfb\0\0\0\x03", &[0; 504][..]].concat());
    let e = RawImage::open(&qcow2, &READ_ONLY).unwrap_err();
    assert!(e.kind == ErrorKind::Format && e.to_string().contains("qcow2"), "{e}");
    RawImage::open(&qcow2, &OpenOptions { read_only: true, trust_raw: true }).unwrap();
    let mut ext4 = vec![0; 8192];
    ext4[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    ext4[1024 + 4..1024 + 6].copy_from_slice(&[0, 1]);
    let e = RawImage::open(&image(&dir, &ext4), &READ_ONLY).unwrap_err();
    assert!(e.to_string().contains("truncated"), "{e}");
    assert_eq!(kind(RawImage::open(&image(&dir, b""), &READ_ONLY)), ErrorKind::Format);
    assert_eq!(kind(RawImage::open(dir.path(), &READ_ONLY)), ErrorKind::Format);
    assert_eq!(kind(RawImage::open(&dir.path().join("none"), &READ_ONLY)), ErrorKind::NotFound);
}

#[test]
fn an_overlay_behaves_like_the_disk_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut model: Vec<u8> = (0..300_000u32 / 512 * 512).map(|i| (i % 251) as u8).collect();
    let path = image(&dir, &model);
    let base = RawImage::open(&path, &READ_ONLY).unwrap();
    let disk = Overlay::new_in(Box::new(base), dir.path()).unwrap();
    let mut random = 12345u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % below
    };
    for round in 0..300 {
        let at = next(model.len());
        let len = next(if round % 5 == 0 { 200_000 } else { 3000 }).min(model.len() - at);
        match round % 3 {
            0 => {
                write(&disk, at as u64, &vec![round as u8; len]).unwrap();
                model[at..at + len].fill(round as u8);
            }
            1 => {
                disk.write_zeroes(at as u64, len as u64, round % 2 == 0).unwrap();
                model[at..at + len].fill(0);
            }
            _ => assert!(read(&disk, at as u64, len) == model[at..at + len], "round {round}"),
        }
    }
    assert!(read(&disk, 0, model.len()) == model);
    assert_eq!(kind(write(&disk, model.len() as u64, b"x")), ErrorKind::OutOfRange);
    disk.flush().unwrap();
    assert!(std::fs::read(&path).unwrap().iter().enumerate().all(|(i, &b)| b == (i % 251) as u8));
}

#[test]
fn a_graph_is_a_disk_for_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, &[7; 1 << 20]);
    let disk = GraphDisk::open(&path, Some(Format::Raw), false, Trust::default()).unwrap();
    assert_eq!((disk.size(), disk.read_only(), disk.format()), (1 << 20, false, Format::Raw));
    std::thread::scope(|s| {
        for n in 0..8u8 {
            let disk = &disk;
            s.spawn(move || {
                for i in 0..50 {
                    let at = u64::from(n) * 65536 + i * 1000;
                    write(disk, at, &[n + 10; 700]).unwrap();
                    assert_eq!(read(disk, at, 701), [&[n + 10; 700][..], &[7]].concat());
                }
            });
        }
    });
    disk.flush().unwrap();
    disk.write_zeroes(4096, 8192, true).unwrap();
    assert_eq!(read(&disk, 4096, 8192), [0; 8192]);
    assert_eq!(kind(write(&disk, (1 << 20) - 1, b"xy")), ErrorKind::OutOfRange);
    let busy = GraphDisk::open(&path, Some(Format::Raw), false, Trust::default());
    assert_eq!(busy.err().unwrap().kind, ErrorKind::Busy);
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap()[65536], 11);
}
