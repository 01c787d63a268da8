//! LUKS images, and the ciphers below them.

mod common;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::crypt::SectorCipher;
use plinth_image::format::{
    CreateRequest, Image, OpenOptions, Options, OutputFiles, Progress, Repair, luks, open,
};
use plinth_image::graph::{Cache, IoBuf, IoData};
use plinth_image::{Error, ErrorKind};

const SECRET: &[u8] = b"a good passphrase";
const SIZE: u64 = 2 << 20;

/// Every kind of cipher, and both versions.
const VARIANTS: [&str; 8] = [
    "iter-time=1",
    "iter-time=1,cipher-alg=aes-128,hash-alg=sha1",
    "iter-time=1,cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha512",
    "iter-time=1,cipher-alg=aes-192,cipher-mode=cbc,ivgen-alg=plain64",
    "iter-time=1,cipher-alg=serpent-256",
    "iter-time=1,cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=plain",
    "iter-time=1,version=2",
    "iter-time=1,version=2,pbkdf=pbkdf2,sector-size=512,cipher-mode=cbc,ivgen-alg=essiv",
];

fn secret(bytes: &[u8]) -> Option<Rc<[u8]>> {
    Some(bytes.into())
}

async fn make(path: &Path, options: &str, size: u64) -> Result<(), Error> {
    let output = OutputFiles::new(path, Cache::Cached)?;
    let options = Options::parse(options)?;
    options.check(luks::DRIVER.options)?;
    let request =
        CreateRequest { output: &output, size, options: &options, backing: None, secret: Some(SECRET) };
    let image = (luks::DRIVER.create.expect("it can be written"))(request).await?;
    image.close().await?;
    drop(image);
    output.finish()
}

async fn open_with(path: &Path, passphrase: &[u8]) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { secret: secret(passphrase), ..OpenOptions::default() };
    Ok(open(path, &options).await?.image)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

#[test]
fn known_answers() {
    // IEEE 1619-2007, annex B, vector 10 (AES-256, data unit 0xff); its unit of 512 bytes counts 00 to ff twice.
    let key: Vec<u8> = [
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592",
    ]
    .iter()
    .flat_map(|s| (0..32).map(|i| u8::from_str_radix(&s[i * 2..i * 2 + 2], 16).unwrap()))
    .collect();
    let spec = plinth_image::crypt::CipherSpec::parse("aes", "xts-plain64").unwrap();
    let cipher = SectorCipher::new(spec, &key, 512).unwrap();
    let mut data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    cipher.encrypt(0xff, &mut data);
    assert_eq!(data[..8], [0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86]);
    assert_eq!(data[504..], [0xb9, 0xc6, 0xe6, 0x93, 0xe1, 0x48, 0xc1, 0x51]);
    cipher.decrypt(0xff, &mut data);
    assert!(data.iter().enumerate().all(|(i, &b)| b == i as u8));
}

#[test]
fn what_is_written_is_read_by_those_who_know_the_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.luks");
    for options in VARIANTS {
        block_on(async {
            make(&path, options, SIZE).await.unwrap();
            let image = open_with(&path, SECRET).await.unwrap();
            assert_eq!(image.size(), SIZE, "{options}");
            let data = pattern(700_000, 1);
            image.write(512 * 3, IoData::copy_of(&data)).await.unwrap();
            image.write(SIZE - 100, IoData::copy_of(&data[..100])).await.unwrap();
            image.write_zeroes(1000, 9000, true).await.unwrap();
            // More bytes, which are zeros.
            image.resize(SIZE + 65536).await.unwrap();
            image.close().await.unwrap();
            drop(image);
            let image = open_with(&path, SECRET).await.unwrap();
            let all = image.read(0, IoBuf::new(SIZE as usize + 65536)).await.unwrap();
            assert!(all[1000..10_000].iter().all(|&b| b == 0), "{options}");
            assert!(all[10_000..1536 + 700_000] == data[10_000 - 1536..], "{options}");
            assert!(all[SIZE as usize - 100..SIZE as usize] == data[..100], "{options}");
            assert!(all[SIZE as usize..].iter().all(|&b| b == 0), "{options}");
            let some = image.read(12_345, IoBuf::new(7)).await.unwrap();
            assert_eq!(some[..], all[12_345..12_352]);
            // Nothing of it is in the file as it is.
            let file = std::fs::read(&path).unwrap();
            assert!(!file.windows(64).any(|w| w == &data[20_000..20_064]), "{options}");
            assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
            assert!(image.describe().encrypted);
            drop(image);
            assert_eq!(open_with(&path, b"wrong").await.err().unwrap().kind, ErrorKind::Key);
            let closed = open(&path, &OpenOptions::default()).await.unwrap().image;
            assert_eq!(closed.size(), SIZE + 65536);
            assert_eq!(closed.read(0, IoBuf::new(512)).await.unwrap_err().kind, ErrorKind::Key);
            assert!(closed.write(0, IoData::copy_of(&[0; 512])).await.is_err());
        });
    }
}

#[test]
fn passphrases_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.luks");
    for options in ["iter-time=1", "iter-time=1,version=2"] {
        block_on(async {
            make(&path, options, SIZE).await.unwrap();
            let image = open_with(&path, SECRET).await.unwrap();
            let amend = async |o: &str| {
                image.amend(&Options::parse(o).unwrap(), &Progress::default()).await.map_err(|e| e.kind)
            };
            assert_eq!(amend("state=inactive,keyslot=0").await, Err(ErrorKind::Invalid));
            amend("state=active,new-secret=two,iter-time=1").await.unwrap();
            amend("state=active,new-secret=three,keyslot=5,iter-time=1").await.unwrap();
            assert_eq!(
                amend("state=active,new-secret=x,keyslot=5,iter-time=1").await,
                Err(ErrorKind::Invalid)
            );
            assert_eq!(amend("state=inactive,old-secret=four").await, Err(ErrorKind::Key));
            amend("state=inactive,keyslot=0").await.unwrap();
            for (secret, right) in [(SECRET, false), (b"two", true), (b"three", true)] {
                let secret = Some(secret.into());
                let look = OpenOptions { read_only: true, share: true, secret, ..OpenOptions::default() };
                let opened = open(&path, &look).await;
                assert_eq!(opened.err().map(|e| e.kind), (!right).then_some(ErrorKind::Key), "{options}");
            }
            amend("state=inactive,old-secret=two").await.unwrap();
            for n in 0.. {
                if amend("state=active,new-secret=more,iter-time=1").await.is_err() {
                    assert_eq!(n, if options.contains("version") { 31 } else { 7 });
                    break;
                }
            }
            assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
            amend("state=inactive,old-secret=more").await.unwrap();
            image.close().await.unwrap();
            drop(image);
            open_with(&path, b"three").await.unwrap();
        });
    }
}

#[test]
fn a_damaged_copy_of_the_header_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.luks");
    block_on(async {
        for at in [0, 5000, 0x4000 + 5000] {
            make(&path, "iter-time=1,version=2", SIZE).await.unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let options = OpenOptions {
                secret: secret(SECRET),
                format: Some(plinth_image::format::Format::Luks),
                ..OpenOptions::default()
            };
            let image = open(&path, &options).await.unwrap().image;
            let report = image.check(Repair::All, &Progress::default()).await.unwrap();
            assert_eq!((report.corruptions, report.corruptions_fixed), (1, 1), "{report:?}");
            assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
            drop(image);
            open_with(&path, SECRET).await.unwrap();
        }
    });
}

#[test]
fn power_cuts_and_failures() {
    for options in [VARIANTS[0], VARIANTS[2], VARIANTS[6], VARIANTS[7]] {
        let options = format!("{options},preallocation=full");
        let mut subject = common::subject(&luks::DRIVER, &options, SIZE / 4);
        subject.secret = secret(SECRET);
        common::crash_seen(&subject, 65536, |_| Ok(false));
        common::fault_of(&subject, 65536);
    }
}

/// Runs `qemu-img` with the passphrase as the secret `s`; `None` where it is not installed.
fn qemu_img(args: &[&str]) -> Option<()> {
    let (verb, rest) = args.split_first().unwrap();
    let data = std::str::from_utf8(SECRET).unwrap();
    let object = format!("secret,id=s,data={data}");
    let run = Command::new("qemu-img").args([verb, "--object", &object]).args(rest).output();
    let out = run.ok()?;
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Some(())
}

#[test]
fn qemu_reads_ours_and_we_read_qemus() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, theirs, ours, back) =
        (dir.path().join("raw"), dir.path().join("theirs"), dir.path().join("ours"), dir.path().join("back"));
    let data = pattern(SIZE as usize, 7);
    std::fs::write(&raw, &data).unwrap();
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    // QEMU stops at an assertion for keys of 24 bytes, whose material is not whole sectors.
    for options in VARIANTS.iter().filter(|o| !o.contains("version") && !o.contains("aes-192")) {
        let args = format!("key-secret=s,{}", options.replace("iter-time=1,", "iter-time=10,"));
        let Some(()) =
            qemu_img(&["convert", "-f", "raw", "-O", "luks", "-o", &args, &text(&raw), &text(&theirs)])
        else {
            eprintln!("qemu-img is not installed");
            return;
        };
        block_on(async {
            let image = open_with(&theirs, SECRET).await.unwrap();
            assert!(image.read(0, IoBuf::new(SIZE as usize)).await.unwrap()[..] == data, "{options}");
            make(&ours, options, SIZE).await.unwrap();
            let image = open_with(&ours, SECRET).await.unwrap();
            image.write(0, IoData::copy_of(&data)).await.unwrap();
            image.close().await.unwrap();
        });
        let source = format!("driver=luks,key-secret=s,file.filename={}", text(&ours));
        qemu_img(&["convert", "--image-opts", &source, "-O", "raw", &text(&back)]).unwrap();
        assert!(std::fs::read(&back).unwrap() == data, "{options}");
    }
}

#[test]
fn cryptsetup_opens_ours_and_we_open_cryptsetups() {
    let dir = tempfile::tempdir().unwrap();
    let (key, path) = (dir.path().join("key"), dir.path().join("disk"));
    std::fs::write(&key, SECRET).unwrap();
    let cryptsetup = |args: &[&str]| {
        let run = Command::new("cryptsetup").arg("-q").args(args).args([&path, &key]).output().ok()?;
        assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
        Some(())
    };
    let keyed = |args: &[&str]| {
        let run =
            Command::new("cryptsetup").args(args).arg("--key-file").arg(&key).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        // Ciphers that its library lacks it wants from the kernel, which a container may not have.
        assert!(run.status.success() || said.contains("device-mapper"), "{args:?}: {said}");
    };
    for args in [
        &["luksFormat", "--type", "luks1", "--iter-time", "10"][..],
        &["luksFormat", "--type", "luks2", "--iter-time", "10", "--pbkdf-memory", "1024"],
        &["luksFormat", "--type", "luks2", "--iter-time", "10", "--pbkdf", "argon2i", "--sector-size", "512"],
        &["luksFormat", "--type", "luks2", "--iter-time", "10", "--pbkdf", "pbkdf2", "--hash", "sha512"],
    ] {
        std::fs::write(&path, []).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(20 << 20).unwrap();
        let Some(()) = cryptsetup(args) else {
            eprintln!("cryptsetup is not installed");
            return;
        };
        let image = block_on(open_with(&path, SECRET)).unwrap();
        block_on(image.amend(
            &Options::parse("state=active,new-secret=two,iter-time=1").unwrap(),
            &Progress::default(),
        ))
        .unwrap();
        drop(image);
        keyed(&["open", "--test-passphrase"]);
        block_on(open_with(&path, b"two")).unwrap();
    }
    for options in VARIANTS {
        block_on(make(&path, options, SIZE)).unwrap();
        keyed(&["open", "--test-passphrase"]);
        keyed(&["luksDump"]);
    }
}

#[test]
fn damaged_files_do_no_harm() {
    use plinth_image::fuzz::{SECRET as KNOWN, damage, fuzz_luks};
    assert_eq!(KNOWN, SECRET);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for (options, at_most) in [("iter-time=1", 600), ("iter-time=1,version=2,pbkdf=pbkdf2", 6000)] {
        block_on(make(&path, options, 65536)).unwrap();
        damage(&std::fs::read(&path).unwrap(), 30, at_most, fuzz_luks);
    }
}
