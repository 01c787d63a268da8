//! `plinth disk` and `plinth qemu-img` from outside: what they print, return and leave behind. Where qemu-img is
//! installed, it is asked too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn plinth(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plinth"))
        .args(args)
        .current_dir(folder)
        .env_remove("PLINTH_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn does(folder: &Path, args: &[&str]) -> String {
    let out = plinth(folder, args);
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {err}");
    String::from_utf8(out.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, texts: &[&str]) {
    let out = plinth(folder, args);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    for text in texts {
        assert!(err.contains(text), "{args:?}: no '{text}' in: {err}");
    }
}

#[track_caller]
fn json(folder: &Path, args: &[&str]) -> Value {
    let all = [&["--output", "json", "disk"], args].concat();
    serde_json::from_str(&does(folder, &all)).unwrap()
}

/// The peer, if it is installed.
fn peer(folder: &Path, args: &[&str]) -> Option<Output> {
    let out = Command::new("qemu-img").args(args).current_dir(folder).output();
    if out.is_err() {
        eprintln!("qemu-img is not installed: it is not asked");
    }
    out.ok()
}

/// The peer, if it is one whose texts are those that Plinth speaks: they changed between versions.
fn current_peer(folder: &Path, args: &[&str]) -> Option<Output> {
    let version = peer(folder, &["--version"])?.stdout;
    let text = String::from_utf8_lossy(&version).into_owned();
    let number =
        text.strip_prefix("qemu-img version ").and_then(|t| t.split('.').next()?.parse::<u32>().ok());
    if number.is_none_or(|n| n < 10) {
        eprintln!("qemu-img is older than version 10: its texts are not compared");
        return None;
    }
    peer(folder, args)
}

/// A folder with a disk of 3 MiB and one sector, of which some is data.
fn folder() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; (3 << 20) + 512];
    for (n, b) in bytes.iter_mut().enumerate() {
        if n / 70_000 % 3 == 1 {
            *b = (n % 251) as u8 + 1;
        }
    }
    fs::write(dir.path().join("d.raw"), &bytes).unwrap();
    (dir, bytes)
}

#[test]
fn a_disk_is_created_shown_and_resized() {
    let (dir, _) = folder();
    let dir = dir.path();
    assert_eq!(does(dir, &["disk", "create", "n.raw", "20G"]), "n.raw: raw, 20 GiB\n");
    let info = json(dir, &["info", "n.raw"]);
    assert_eq!(
        (&info["size"], &info["format"], &info["probed"]),
        (&(20u64 << 30).into(), &"raw".into(), &true.into())
    );
    assert!(does(dir, &["disk", "info", "n.raw"]).contains("found by its contents"));
    assert!(does(dir, &["disk", "info", "n.raw", "--format", "raw"]).contains("as given"));
    fails(dir, &["disk", "resize", "n.raw", "1G"], 2, &["smaller", "--shrink"]);
    does(dir, &["disk", "resize", "n.raw", "-19G", "--shrink"]);
    does(dir, &["disk", "resize", "n.raw", "+512M"]);
    assert_eq!(fs::metadata(dir.join("n.raw")).unwrap().len(), 3 << 29);
    fails(dir, &["disk", "create", "d.raw", "1G"], 2, &["is there already", "--force"]);
    does(dir, &["disk", "create", "d.raw", "1G", "--force"]);
    fails(dir, &["disk", "create", "x.raw"], 2, &["SIZE"]);
    fails(dir, &["disk", "create", "x.raw", "20"], 2, &["20M for mebibytes"]);
    fails(dir, &["disk", "create", "x.raw", "1G", "-o", "cluster_size=1"], 2, &["cluster_size", "-o help"]);
    assert!(does(dir, &["disk", "create", "x.raw", "-o", "help"]).contains("preallocation"));
    assert!(!dir.join("x.raw").exists());
}

#[test]
fn a_disk_is_converted_and_compared() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    does(dir, &["disk", "convert", "d.raw", "e.raw"]);
    assert!(fs::read(dir.join("e.raw")).unwrap() == bytes);
    assert_eq!(json(dir, &["compare", "d.raw", "e.raw"])["same"], true);
    fails(dir, &["disk", "convert", "d.raw", "e.raw"], 2, &["is there already"]);
    fails(dir, &["disk", "convert", "d.raw"], 2, &["last the image to write"]);
    does(dir, &["disk", "convert", "d.raw", "--from", "raw", "d.raw", "--force", "e.raw"]);
    assert!(fs::read(dir.join("e.raw")).unwrap() == [&bytes[..], &bytes[..]].concat());
    let out = plinth(dir, &["disk", "compare", "d.raw", "e.raw"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stdout).contains(&format!("first at byte {}", bytes.len() + 70_000))
    );
    does(dir, &["disk", "dd", "d.raw", "part.raw", "--skip", "64K", "--length", "1000K"]);
    assert!(fs::read(dir.join("part.raw")).unwrap() == bytes[65_536..65_536 + 1_024_000]);
    fails(dir, &["disk", "compare", "d.raw", "nothing.raw"], 2, &["nothing.raw", "No such file"]);
    fails(dir, &["disk", "convert", "nothing.raw", "x.raw"], 1, &["cannot open 'nothing.raw'", "help:"]);
    // A link leads to the file that is replaced, and stays a link.
    std::os::unix::fs::symlink("e.raw", dir.join("link")).unwrap();
    does(dir, &["disk", "convert", "d.raw", "link", "--force"]);
    assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
    assert!(fs::read(dir.join("e.raw")).unwrap() == bytes);
}

#[test]
fn maps_and_sizes_are_those_of_the_peer() {
    let (dir, _) = folder();
    let dir = dir.path();
    does(dir, &["disk", "convert", "d.raw", "sparse.raw", "--zero-run", "4K"]);
    let own = json(dir, &["map", "sparse.raw"]);
    let covered: u64 = own.as_array().unwrap().iter().map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(covered, (3 << 20) + 512);
    for args in [
        &["map", "--output=json", "-f", "raw", "sparse.raw"][..],
        &["map", "-f", "raw", "sparse.raw"],
        &["map", "-f", "raw", "-s", "64k", "-l", "1M", "sparse.raw"],
        &["measure", "-O", "qcow2", "sparse.raw"],
        &["measure", "-O", "qcow2", "-o", "cluster_size=4k", "--output=json", "sparse.raw"],
        &["measure", "-O", "raw", "--size", "10G"],
        &["info", "-f", "raw", "sparse.raw"],
        &["info", "--output=json", "-f", "raw", "sparse.raw"],
        &["compare", "-f", "raw", "-F", "raw", "d.raw", "sparse.raw"],
        &["compare", "-s", "-f", "raw", "-F", "raw", "d.raw", "sparse.raw"],
        &["check", "-f", "raw", "d.raw"],
        &["resize", "-f", "raw", "d.raw", "1M"],
        &["info", "nothing"],
        &["compare", "nothing", "d.raw"],
        &["snapshot", "-l", "d.raw"],
        &["create", "-f", "raw", "p.raw", "1M"],
        &["create", "-f", "raw", "-o", "size=2M", "p.raw"],
        &["create", "-f", "raw", "-b", "d.raw", "p.raw"],
        &["create", "-f", "vax", "p.raw", "1M"],
        &["create", "-f", "raw", "p.raw"],
        &["info", "--image-opts", "driver=raw,file.filename=d.raw"],
        &["info", "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"d.raw\"}}"],
    ] {
        let own = plinth(dir, &[&["qemu-img"], args].concat());
        let Some(theirs) = current_peer(dir, args) else { continue };
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert_eq!(text(&own.stdout), text(&theirs.stdout), "{args:?}");
        assert_eq!(own.status.code(), theirs.status.code(), "{args:?}");
        assert_eq!(text(&own.stderr), text(&theirs.stderr), "{args:?}");
    }
}

#[test]
fn the_name_qemu_img_takes_its_arguments() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    let link = dir.join("qemu-img");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_plinth"), &link).unwrap();
    let run = |args: &[&str]| Command::new(&link).args(args).current_dir(dir).output().unwrap();
    assert!(run(&["--version"]).stdout.starts_with(b"qemu-img version 10."));
    assert!(run(&["convert", "-O", "raw", "-pf", "raw", "d.raw", "e.raw"]).status.success());
    assert!(fs::read(dir.join("e.raw")).unwrap() == bytes);
    assert!(run(&["dd", "if=d.raw", "of=f.raw", "bs=1k", "skip=3", "count=10"]).status.success());
    assert!(fs::read(dir.join("f.raw")).unwrap() == bytes[3072..10_240]);
    assert_eq!(run(&["check", "d.raw"]).status.code(), Some(63));
    let out = run(&["nothing"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("qemu-img: Command not found: nothing\n"));
}

#[test]
fn a_link_inside_an_image_leads_nowhere_unless_the_user_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), vec![7; 1 << 20]).unwrap();
    let made = peer(&inside, &["create", "-f", "qcow2", "-b", "../out/secret", "-F", "raw", "evil.qcow2"]);
    if !made.is_some_and(|m| m.status.success()) || plinth_image::format::Format::Qcow2.driver().is_none() {
        return;
    }
    let convert = ["disk", "convert", "evil.qcow2", "leak.raw"];
    fails(&inside, &convert, 1, &["../out/secret", "--allow-backing"]);
    assert!(!inside.join("leak.raw").exists());
    let out = plinth(&inside, &["qemu-img", "convert", "-O", "raw", "evil.qcow2", "leak.raw"]);
    assert!(!out.status.success() && !inside.join("leak.raw").exists());
    does(&inside, &[&convert[..], &["--allow-backing", "../out"]].concat());
    assert!(fs::read(inside.join("leak.raw")).unwrap() == vec![7; 1 << 20]);
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_signal_leaves_what_was_there() {
    let (dir, _) = folder();
    let dir = dir.path();
    fs::write(dir.join("e.raw"), b"old").unwrap();
    let before = names(dir);
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plinth"))
            .args(["disk", "convert", "d.raw", "e.raw", "--force", "--rate", "100K"])
            .current_dir(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while names(dir).len() == before.len() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal.as_raw()));
        assert_eq!(names(dir), before);
        assert_eq!(fs::read(dir.join("e.raw")).unwrap(), b"old");
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let (dir, _) = folder();
    for command in [
        "create", "info", "convert", "check", "resize", "snapshot", "rebase", "commit", "compare", "map",
        "measure", "dd", "bench", "amend", "bitmap", "compact", "serve", "export",
    ] {
        let help = does(dir.path(), &["disk", command, "--help"]);
        assert!(help.contains("Examples:") && help.contains(&format!("plinth disk {command}")), "{command}");
    }
}

#[test]
fn zeros_give_their_space_back() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    let value = json(dir, &["compact", "d.raw"]);
    assert!(value["after"].as_u64() < value["before"].as_u64(), "{value}");
    assert!(fs::read(dir.join("d.raw")).unwrap() == bytes);
}

#[test]
fn bench_reads_and_writes_what_it_says() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    let value = json(dir, &["bench", "d.raw", "--count", "100", "--depth", "8", "--cached"]);
    assert_eq!((&value["requests"], &value["bytes"]), (&100.into(), &409_600.into()));
    assert!(fs::read(dir.join("d.raw")).unwrap() == bytes);
    json(dir, &["bench", "d.raw", "--count", "10", "--write", "--flush", "3", "--step", "64K", "--cached"]);
    let after = fs::read(dir.join("d.raw")).unwrap();
    for n in 0..10 {
        let at = n * 65_536;
        assert!(after[at..at + 4096].iter().all(|&b| b == 0));
        assert!(after[at + 4096..at + 65_536] == bytes[at + 4096..at + 65_536]);
    }
    fails(dir, &["disk", "bench", "d.raw", "--size", "1G"], 2, &["16 MiB"]);
    fails(dir, &["disk", "bench", "d.raw", "--offset", "1T"], 1, &["beyond its end"]);
}

#[test]
fn every_format_comes_and_goes() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    let mut padded = bytes.clone();
    for (format, peers) in [
        ("qcow2", "qcow2"),
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vhd", "vpc"),
        ("vhdx", "vhdx"),
        ("parallels", "parallels"),
    ] {
        let (image, back) = (format!("x.{format}"), format!("{format}.raw"));
        does(dir, &["disk", "convert", "d.raw", &image, "--to", format]);
        does(dir, &["disk", "check", &image]);
        does(dir, &["disk", "convert", &image, &back]);
        let read = fs::read(dir.join(&back)).unwrap();
        // Some formats have whole blocks or cylinders only.
        padded.resize(read.len().max(bytes.len()), 0);
        assert!(read == padded[..read.len()] && read.len() >= bytes.len(), "{format}: {} bytes", read.len());
        if let Some(out) = peer(dir, &["compare", "-f", "raw", "-F", peers, "d.raw", &image]) {
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(text.contains("Images are identical"), "{format}: {text}");
        }
    }
}

#[test]
fn an_image_over_another_one_keeps_what_is_below_its_clusters() {
    use plinth_host::aio::block_on;
    use plinth_image::format::{OpenOptions, open};
    use plinth_image::graph::IoData;

    let (dir, bytes) = folder();
    let dir = dir.path();
    does(dir, &["disk", "create", "top.qcow2", "-o", "cluster_size=4k", "--backing", "d.raw"]);
    block_on(async {
        let top = open(&dir.join("top.qcow2"), &OpenOptions::default()).await.unwrap().image;
        for at in [8192, 100_000, 1 << 20] {
            top.write(at, IoData::copy_of(&[0xee; 3000])).await.unwrap();
        }
        top.close().await.unwrap();
    });
    let mut want = bytes;
    for at in [8192, 100_000, 1 << 20] {
        want[at..at + 3000].fill(0xee);
    }
    // Its clusters are larger than those that have something, so that some of them come from below.
    for format in ["qcow2", "vmdk", "vdi", "vhd", "vhdx"] {
        let (base, image, whole) =
            (format!("base.{format}"), format!("copy.{format}"), format!("{format}.raw"));
        does(dir, &["disk", "convert", "d.raw", &base, "--to", format]);
        does(dir, &["disk", "convert", "top.qcow2", &image, "--to", format, "--backing", &base]);
        does(dir, &["disk", "convert", &image, &whole]);
        let read = fs::read(dir.join(&whole)).unwrap();
        assert!(read.starts_with(&want), "{format}");
    }
}

#[test]
fn a_commit_empties_the_image_and_a_rebase_compresses() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    does(dir, &["disk", "convert", "d.raw", "base.qcow2"]);
    does(dir, &["disk", "create", "top.qcow2", "--backing", "base.qcow2"]);
    let mut want = bytes;
    want[200_000..900_000].fill(0x5a);
    fs::write(dir.join("want.raw"), &want).unwrap();
    let rewrite = || {
        let over = ["disk", "convert", "want.raw", "top.qcow2", "--force", "--backing", "base.qcow2"];
        does(dir, &over);
    };
    rewrite();
    let size = |name: &str| json(dir, &["info", name])["allocated"].as_u64().unwrap();
    let before = size("top.qcow2");
    assert_eq!(json(dir, &["commit", "top.qcow2", "--keep"])["emptied"], false);
    assert_eq!(size("top.qcow2"), before);
    assert_eq!(json(dir, &["commit", "top.qcow2"])["emptied"], true);
    assert!(size("top.qcow2") < before / 2, "{} of {before}", size("top.qcow2"));
    let entries = json(dir, &["map", "top.qcow2"]);
    assert!(entries.as_array().unwrap().iter().all(|e| e["depth"] != 0));
    for image in ["base.qcow2", "top.qcow2"] {
        assert_eq!(json(dir, &["compare", image, "want.raw"])["same"], true, "{image}");
        assert!(json(dir, &["check", image])["clean"].as_bool().unwrap());
        if let Some(out) = peer(dir, &["check", image]) {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        }
    }
    // Over another image, what differs is copied into it.
    does(dir, &["disk", "create", "zeros.qcow2", "3M"]);
    does(dir, &["disk", "rebase", "top.qcow2", "--backing", "zeros.qcow2", "--compress"]);
    assert_eq!(json(dir, &["compare", "top.qcow2", "want.raw"])["same"], true);
    let report = json(dir, &["check", "top.qcow2"]);
    assert!(report["clean"].as_bool().unwrap());
    assert!(report["compressed_clusters"].as_u64().unwrap() >= 15, "{report}");
    if let Some(out) = peer(dir, &["compare", "top.qcow2", "want.raw"]) {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
    does(dir, &["disk", "convert", "d.raw", "b.vdi"]);
    does(dir, &["disk", "create", "t.vdi", "--backing", "b.vdi"]);
    fails(dir, &["disk", "rebase", "t.vdi", "--flatten", "--compress"], 1, &["vdi", "compress"]);
}

#[test]
fn an_image_below_without_a_name_is_found_by_its_identity() {
    let (dir, mut want) = folder();
    let dir = dir.path();
    does(dir, &["disk", "convert", "d.raw", "base.vdi"]);
    want[1 << 20..][..70_000].fill(0x77);
    fs::write(dir.join("want.raw"), &want).unwrap();
    does(dir, &["disk", "convert", "want.raw", "top.vdi", "--backing", "base.vdi"]);
    let chain = json(dir, &["info", "--chain", "top.vdi"]);
    let names: Vec<_> = chain.as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
    assert!(names.len() == 2 && names[0] == "top.vdi" && names[1].ends_with("base.vdi"), "{names:?}");
    let theirs = does(dir, &["qemu-img", "info", "--backing-chain", "top.vdi"]);
    assert!(theirs.contains("base.vdi") && theirs.matches("virtual size").count() == 2, "{theirs}");
    does(dir, &["disk", "commit", "top.vdi"]);
    assert_eq!(json(dir, &["compare", "base.vdi", "want.raw"])["same"], true);
    // Without it, what is known is shown.
    fs::rename(dir.join("base.vdi"), dir.join("base.old")).unwrap();
    does(dir, &["disk", "info", "top.vdi"]);
    fails(dir, &["disk", "info", "--chain", "top.vdi"], 1, &["beside"]);
}

#[test]
fn a_machine_is_exported_and_its_disks_are_read_again() {
    let (dir, _) = folder();
    let dir = dir.path();
    does(dir, &["disk", "create", "empty.qcow2", "1G"]);
    let about = ["--name", "a & b", "--cpus", "3", "--memory", "1536M", "--os", "debian", "--network", "LAN"];
    for name in ["m.ova", "m.ovf"] {
        let made =
            json(dir, &[&["export", "d.raw", "empty.qcow2", name, "--firmware", "efi"], &about[..]].concat());
        assert_eq!(made["disks"][0]["capacity"], (3 << 20) + 512);
        let info = json(dir, &["info", name]);
        let m = &info["machines"][0];
        let text = |key: &str| m[key].as_str().unwrap().to_owned();
        assert_eq!((text("name"), text("firmware")), ("a & b".to_owned(), "efi".to_owned()));
        assert_eq!((&m["cpus"], &m["memory"], &m["os"]["id"]), (&3.into(), &(1536 << 20).into(), &96.into()));
        assert_eq!((&m["nics"][0]["network"], &info["manifest"]), (&"LAN".into(), &true.into()));
        assert!(does(dir, &["disk", "info", name]).contains("disk 2"));
        does(dir, &["disk", "check", name]);
        for disk in ["1", "m-disk1", "m-disk1.vmdk", "vmdisk1"] {
            assert_eq!(json(dir, &["compare", name, "d.raw", "--disk", disk])["same"], true, "{disk}");
        }
        does(dir, &["disk", "convert", name, "two.qcow2", "--disk", "2", "--force"]);
        assert_eq!(json(dir, &["info", "two.qcow2"])["size"], 1 << 30);
        fails(dir, &["disk", "convert", name, "x.qcow2"], 2, &["m-disk1.vmdk, m-disk2.vmdk", "--disk"]);
        fails(dir, &["disk", "resize", name, "2G", "--disk", "1"], 1, &["only read", "convert"]);
    }
    fails(dir, &["disk", "export", "d.raw", "m.ovf"], 2, &["m-disk1.vmdk", "there already", "--force"]);
    fails(dir, &["disk", "export", "d.raw", "m.zip"], 2, &[".ova"]);
    fails(dir, &["disk", "export", "d.raw", "n.ova", "--os", "cp/m"], 2, &["cp/m", "--os help"]);
    fails(dir, &["disk", "info", "d.raw", "--disk", "1"], 2, &["not a package"]);
    // A package becomes another one, and lends its description.
    does(dir, &["disk", "export", "m.ovf", "again.ova"]);
    does(dir, &["disk", "export", "d.raw", "like.ova", "--like", "m.ova", "--cpus", "9"]);
    let [again, like] = ["again.ova", "like.ova"].map(|n| json(dir, &["info", n])["machines"][0].clone());
    assert_eq!((&again["cpus"], again["disks"].as_array().unwrap().len()), (&3.into(), 2));
    assert_eq!(
        (&like["cpus"], &like["nics"], like["disks"].as_array().unwrap().len()),
        (&9.into(), &again["nics"], 1)
    );
    // The manifest is what others compute, and a damaged file is found.
    let manifest = fs::read_to_string(dir.join("m.mf")).unwrap();
    let sums: String = manifest
        .lines()
        .map(|l| l.strip_prefix("SHA256(").unwrap().split_once(")= ").unwrap())
        .map(|(file, sum)| format!("{sum}  {file}\n"))
        .collect();
    fs::write(dir.join("sums"), sums).unwrap();
    let checked = Command::new("sha256sum").args(["-c", "--quiet", "sums"]).current_dir(dir).status();
    assert!(checked.map_or(true, |s| s.success()));
    let disk = dir.join("m-disk1.vmdk");
    let mut bytes = fs::read(&disk).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&disk, bytes).unwrap();
    let out = plinth(dir, &["disk", "check", "m.ovf"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("m-disk1.vmdk"));
}

#[test]
fn a_luks_header_is_in_a_file_of_its_own_and_keys_come_and_go() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    fs::write(dir.join("key"), "first\n").unwrap();
    fs::write(dir.join("key2"), "second").unwrap();
    for version in ["1", "2"] {
        let (disk, header) = (format!("d{version}.img"), format!("h{version}"));
        let options = format!("version={version},iter-time=10,sector-size=512");
        let options = if version == "1" { "iter-time=10" } else { &options };
        let new = ["disk", "convert", "d.raw", &disk, "--to", "luks", "-o", options, "--secret-file", "key"];
        does(dir, &[&new[..], &["--new-header", &header]].concat());
        // The disk's file has nothing but the disk.
        assert_eq!(fs::metadata(dir.join(&disk)).unwrap().len(), bytes.len() as u64);
        let with = ["--header", header.as_str(), "--secret-file"];
        let same = |key: &str| {
            let args = ["compare", &disk, "d.raw", "--second-format", "raw"];
            json(dir, &[&args[..], &with, &[key]].concat())["same"] == true
        };
        assert!(same("key"));
        assert!(
            json(dir, &[&["info", disk.as_str()][..], &with, &["key"]].concat())["details"]["detached-header"]
                == true
        );
        fails(dir, &[&["disk", "convert", &disk, "x.raw"][..], &with, &["key2"]].concat(), 1, &["key slots"]);
        let amend = [&["disk", "amend", disk.as_str(), "-o", "iter-time=10"][..], &with, &["key"]].concat();
        does(dir, &[&amend[..], &["--add-secret", "key2"]].concat());
        assert!(same("key2"));
        let amend = [&["disk", "amend", disk.as_str()][..], &with, &["key2"]].concat();
        does(dir, &[&amend[..], &["--remove-secret", "key"]].concat());
        fails(dir, &[&["disk", "convert", &disk, "x.raw"][..], &with, &["key"]].concat(), 1, &["key slots"]);
        fails(dir, &[&amend[..], &["--remove-secret", "key2"]].concat(), 1, &["last key slot"]);
        assert!(same("key2"));
        does(dir, &[&["disk", "check", disk.as_str()][..], &with, &["key2"]].concat());
        let dump = Command::new("cryptsetup")
            .args(["luksDump", "--header", &header, &disk])
            .current_dir(dir)
            .output();
        let Ok(dump) = dump else {
            eprintln!("cryptsetup is not installed: it is not asked");
            continue;
        };
        let text = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(dump.status.success() && text.contains(&format!("Version:       \t{version}")), "{text}");
        let mut open = Command::new("cryptsetup");
        open.args(["open", "--test-passphrase", "--key-file", "key2", "--header", &header, &disk])
            .current_dir(dir);
        assert!(open.status().unwrap().success());
    }
    // QEMU reads what has a header of version 1 in another file.
    let source = "driver=luks,key-secret=k,file.driver=file,file.filename=d1.img,header.driver=file,header.filename=h1";
    let secret = "secret,id=k,file=key2";
    let args = ["convert", "--object", secret, "--image-opts", source, "-O", "raw", "peer.raw"];
    if let Some(out) = peer(dir, &args) {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(fs::read(dir.join("peer.raw")).unwrap() == bytes);
    }
    fails(dir, &["disk", "create", "x.qcow2", "1G", "--new-header", "h"], 2, &["LUKS", "--to luks"]);
    fails(dir, &["disk", "info", "h1"], 1, &["another file"]);
}

#[test]
fn a_rebase_changes_no_snapshot() {
    let (temp, bytes) = folder();
    let dir = temp.path();
    does(dir, &["disk", "convert", "d.raw", "base.qcow2", "--from", "raw"]);
    does(dir, &["disk", "create", "top.qcow2", "--backing", "base.qcow2"]);
    does(dir, &["disk", "snapshot", "create", "top.qcow2", "s"]);
    fails(dir, &["disk", "rebase", "top.qcow2", "--flatten"], 1, &["snapshots", "--unsafe"]);
    does(dir, &["disk", "convert", "top.qcow2", "s.raw", "--snapshot", "s"]);
    assert!(fs::read(dir.join("s.raw")).unwrap() == bytes);
    does(dir, &["disk", "snapshot", "delete", "top.qcow2", "s"]);
    does(dir, &["disk", "rebase", "top.qcow2", "--flatten"]);
}

#[test]
fn an_encrypted_disk_inside_of_an_image_is_used() {
    let (temp, bytes) = folder();
    let dir = temp.path();
    fs::write(dir.join("key"), "secret").unwrap();
    let new =
        ["disk", "convert", "d.raw", "d.luks", "--from", "raw", "-o", "iter-time=10", "--secret-file", "key"];
    does(dir, &new);
    for format in ["qcow2", "vmdk", "vdi", "vhd", "vhdx"] {
        let outer = format!("d.{format}");
        does(dir, &["disk", "convert", "d.luks", &outer, "--from", "raw"]);
        let inside = ["--inside", "luks", "--secret-file", "key"];
        let shown = json(dir, &[&["info", &outer][..], &inside].concat());
        assert_eq!(
            (shown["format"].as_str(), shown["size"].as_u64()),
            (Some("luks"), Some(bytes.len() as u64))
        );
        let plain = format!("{format}.raw");
        does(dir, &[&["disk", "convert", &outer, &plain][..], &inside].concat());
        assert!(fs::read(dir.join(&plain)).unwrap() == bytes, "{format}");
        fails(
            dir,
            &["disk", "convert", &outer, "x.raw", "--inside", "luks"],
            1,
            &["passphrase", "--secret-file"],
        );
        fails(dir, &["disk", "compact", &outer, "--inside", "luks"], 2, &["--inside"]);
        // Both grow, and what is new reads as zeros.
        does(dir, &[&["disk", "resize", &outer, "+5M"][..], &inside].concat());
        does(dir, &["disk", "check", &outer]);
        does(dir, &[&["disk", "convert", &outer, &plain, "--force"][..], &inside].concat());
        let larger = [&bytes[..], &[0; 5 << 20]].concat();
        assert!(fs::read(dir.join(&plain)).unwrap() == larger, "{format}");
    }
    fails(dir, &["disk", "info", "d.raw", "--format", "raw", "--inside", "luks"], 1, &["begin like LUKS"]);
}

#[test]
fn a_disk_of_parallels_is_a_folder() {
    let (dir, bytes) = folder();
    let dir = dir.path();
    does(dir, &["disk", "convert", "d.raw", "p.hdd"]);
    let files: Vec<String> =
        names(&dir.join("p.hdd")).iter().map(|p| p.file_name().unwrap().to_string_lossy().into()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.contains(&"DiskDescriptor.xml".to_owned()));
    does(dir, &["disk", "convert", "p.hdd", "back.raw"]);
    assert!(fs::read(dir.join("back.raw")).unwrap() == bytes);
    does(dir, &["disk", "check", "p.hdd"]);
    let size = fs::metadata(dir.join("d.raw")).unwrap().len();
    does(dir, &["disk", "resize", "p.hdd", "+3M"]);
    does(dir, &["disk", "resize", "d.raw", "+3M"]);
    assert_eq!(json(dir, &["info", "p.hdd"])["size"], size + (3 << 20));
    does(dir, &["disk", "compare", "p.hdd", "d.raw"]);
    does(dir, &["disk", "check", "p.hdd"]);
    fails(dir, &["disk", "resize", "p.hdd", "1M", "--shrink"], 1, &["smaller"]);
    fails(dir, &["disk", "convert", "d.raw", "p.hdd"], 2, &["there already"]);
    does(dir, &["disk", "create", "p.hdd", "1G", "--force"]);
    assert_eq!(json(dir, &["info", "p.hdd"])["size"], 1 << 30);
    assert_eq!(names(dir).iter().filter(|p| p.to_string_lossy().ends_with(".tmp")).count(), 0);
    fs::create_dir(dir.join("other.hdd")).unwrap();
    fs::write(dir.join("other.hdd/x"), "x").unwrap();
    fails(dir, &["disk", "create", "other.hdd", "1G", "--force"], 2, &["is a folder"]);
    // One file is what others open.
    does(dir, &["disk", "convert", "d.raw", "p.hds"]);
    if let Some(out) = peer(dir, &["compare", "-f", "parallels", "-F", "raw", "p.hds", "d.raw"]) {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn names_in_images_do_not_command_the_terminal() {
    let (dir, _) = folder();
    let dir = dir.path();
    does(dir, &["disk", "create", "d.qcow2", "1M"]);
    let name = "a\x1b[2J\n\u{85}\x7fb";
    does(dir, &["disk", "snapshot", "create", "d.qcow2", name]);
    for command in [&["disk", "info"][..], &["disk", "snapshot", "list"], &["qemu-img", "info"]] {
        let text = does(dir, &[command, &["d.qcow2"]].concat());
        assert!(text.contains("a\\u{1b}[2J") && !text.contains('\x1b'), "{text}");
    }
    assert_eq!(json(dir, &["snapshot", "list", "d.qcow2"])[0]["name"], name);
    let theirs = does(dir, &["qemu-img", "info", "--output=json", "d.qcow2"]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!(theirs["snapshots"][0]["name"], name);
    fails(dir, &["disk", "snapshot", "delete", "d.qcow2", "\x1b[2J"], 1, &["\\u{1b}[2J"]);
}

#[test]
fn what_is_read_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    does(folder, &["disk", "create", "d.qcow2", "8M"]);
    std::os::unix::fs::symlink("d.qcow2", folder.join("link.qcow2")).unwrap();
    for command in ["convert", "dd"] {
        fails(folder, &["disk", command, "d.qcow2", "link.qcow2", "--force"], 2, &["is what is read, too"]);
    }
    // A link to an image stays one.
    does(folder, &["disk", "compact", "link.qcow2"]);
    assert!(fs::symlink_metadata(folder.join("link.qcow2")).unwrap().is_symlink());
    does(folder, &["disk", "check", "--repair", "link.qcow2"]);
    fails(folder, &["disk", "info", "."], 1, &["neither a regular file nor a block device"]);
    fails(folder, &["disk", "create", "nbd://localhost/x", "1M"], 2, &["is an address"]);
}

#[test]
fn a_map_is_json_up_to_where_the_image_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    does(folder, &["disk", "create", "d.vhd", "64M"]);
    let path = folder.join("d.vhd");
    let mut bytes = fs::read(&path).unwrap();
    let table = u64::from_be_bytes(bytes[512 + 16..512 + 24].try_into().unwrap()) as usize;
    bytes[table + 40..table + 44].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    let out = plinth(folder, &["disk", "--output", "json", "map", "d.vhd"]);
    assert_eq!(out.status.code(), Some(1));
    let entries: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(entries.is_array());
    let error: Value = serde_json::from_slice(&out.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("block 10"), "{error}");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let script = "ulimit -f 100; exec \"$0\" disk create d.raw 10M -o preallocation=full";
    let out = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_plinth")])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(err.contains("d.raw") && err.contains("File too large"), "{err}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}
