//! `plinth qemu-img`: what scripts that were written for QEMU's tool count on.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_plinth");
    Command::new(program).arg("qemu-img").args(args).current_dir(folder).output().unwrap()
}

#[track_caller]
fn does(folder: &Path, args: &[&str]) -> String {
    let out = run(folder, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, text: &str) {
    let out = run(folder, args);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    assert!(err.contains(text), "{args:?}: no '{text}' in: {err}");
}

/// Raw bytes become an image.
fn image(folder: &Path, name: &str, bytes: &[u8], args: &[&str]) {
    fs::write(folder.join("bytes"), bytes).unwrap();
    does(folder, &[&["convert", "-f", "raw", "-O", "qcow2"], args, &["bytes", name]].concat());
}

fn contents(folder: &Path, name: &str) -> Vec<u8> {
    does(folder, &["convert", "-O", "raw", name, "out.raw"]);
    fs::read(folder.join("out.raw")).unwrap()
}

const CLUSTER: usize = 64 << 10;

/// Clusters filled with these bytes.
fn clusters(fill: &[u8]) -> Vec<u8> {
    fill.iter().flat_map(|&b| std::iter::repeat_n(b, CLUSTER)).collect()
}

/// What a map says of the layers, as depth and number of clusters.
fn layers(folder: &Path, name: &str) -> Vec<(u64, u64, bool)> {
    let map: serde_json::Value =
        serde_json::from_str(&does(folder, &["map", "--output=json", name])).unwrap();
    let entries = map.as_array().unwrap().iter();
    let n = |v: &serde_json::Value| v.as_u64().unwrap();
    entries.map(|e| (n(&e["depth"]), n(&e["length"]) / CLUSTER as u64, e["data"] == true)).collect()
}

#[test]
fn commit_empties_the_upper_image_unless_it_is_told_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (options, emptied) in [(&["-q"][..], true), (&["-d", "-q"], false), (&["-b", "base", "-q"], false)] {
        image(dir, "base", &clusters(&[1, 1, 1, 0]), &[]);
        image(dir, "top", &clusters(&[1, 2, 1, 3]), &["-B", "base", "-F", "qcow2"]);
        does(dir, &[&["commit"], options, &["top"]].concat());
        let own = layers(dir, "top").iter().any(|l| l.0 == 0 && l.2);
        assert_eq!(own, !emptied, "{options:?}");
        for name in ["base", "top"] {
            assert!(contents(dir, name) == clusters(&[1, 2, 1, 3]), "{options:?}: {name}");
        }
        does(dir, &["check", "-q", "top"]);
    }
    fails(
        dir,
        &["commit", "-b", "nowhere", "top"],
        1,
        "Did not find 'nowhere' in the backing chain of 'top'",
    );
}

#[test]
fn rebase_keeps_zeros_over_the_data_of_the_new_base() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for compat in ["compat=1.1", "compat=0.10"] {
        for format in ["qcow2", "vmdk"] {
            let options: &[&str] = if format == "qcow2" { &["-o", compat] } else { &[] };
            fs::write(dir.join("bytes"), clusters(&[2, 2, 1, 0, 0, 0])).unwrap();
            let convert = [&["convert", "-f", "raw", "-O", format], options, &["bytes", "image"]].concat();
            does(dir, &convert);
            fs::write(dir.join("bytes"), clusters(&[1, 0, 1, 0, 1, 0])).unwrap();
            does(dir, &["convert", "-f", "raw", "-O", format, "bytes", "new"]);
            does(dir, &["rebase", "-b", "new", "-F", format, "image"]);
            assert!(contents(dir, "image") == clusters(&[2, 2, 1, 0, 0, 0]), "{format} {compat}");
            assert!(does(dir, &["info", "image"]).contains("backing file: new"));
        }
    }
    fails(dir, &["rebase", "-u", "-b", "new", "image"], 1, "backing format must be specified");
}

#[test]
fn rebase_writes_compressed_clusters_where_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "base", &clusters(&[1, 1, 1]), &[]);
    image(dir, "top", &clusters(&[1, 2, 1]), &["-B", "base", "-F", "qcow2", "-c"]);
    does(dir, &["rebase", "-c", "-b", "", "top"]);
    assert!(contents(dir, "top") == clusters(&[1, 2, 1]));
    assert!(does(dir, &["check", "top"]).contains("100.00% compressed"));
    fails(dir, &["rebase", "-c", "-f", "raw", "-b", "", "bytes"], 1, "Compression not supported");
}

#[test]
fn a_data_file_may_have_a_whole_path() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let option = format!("data_file={},data_file_raw=on", data.display());
    let dir = dir.path();
    does(dir, &["create", "-q", "-f", "qcow2", "-o", &option, "a", "1M"]);
    assert_eq!(fs::metadata(&data).unwrap().len(), 1 << 20);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
    let named = format!("data-file.filename={},file.filename=a", data.display());
    assert!(does(dir, &["info", "--image-opts", &named]).contains("virtual size: 1 MiB"));
}

/// An image that has itself only what differs from `base`.
fn over(dir: &Path, name: &str, bytes: &[u8], base: &str) {
    image(dir, "whole", bytes, &[]);
    does(dir, &["create", "-q", "-f", "qcow2", "-b", "whole", "-F", "qcow2", name]);
    does(dir, &["rebase", "-b", base, "-F", "qcow2", name]);
}

#[test]
fn a_map_names_the_files_of_all_layers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "base", &clusters(&[1, 1, 1]), &[]);
    over(dir, "middle", &clusters(&[1, 2, 2]), "base");
    over(dir, "top", &clusters(&[1, 2, 3]), "middle");
    let map = does(dir, &["map", "top"]);
    let names: Vec<_> = map.lines().skip(1).filter_map(|l| l.split_whitespace().last()).collect();
    assert_eq!(names, ["base", "middle", "top"]);
}

#[test]
fn images_are_described_by_options_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "base", &clusters(&[5]), &[]);
    image(dir, "other", &clusters(&[6]), &[]);
    over(dir, "top", &clusters(&[5]), "base");
    let json = "json:{'driver':'qcow2','file':{'driver':'file','filename':'top'},\
                'backing':{'driver':'qcow2','file.filename':'other'}}";
    assert!(contents(dir, json) == clusters(&[6]));
    let slice = "driver=raw,offset=512,size=1k,file.driver=qcow2,file.file.filename=other";
    does(dir, &["convert", "--image-opts", "-O", "raw", slice, "out.raw"]);
    assert!(fs::read(dir.join("out.raw")).unwrap() == vec![6; 1024]);
    fails(dir, &["info", "--image-opts", "driver=qcow2,file.filename=top,colour=red"], 1, "'colour'");
    // A file that fails, as who tests scripts needs it.
    fs::write(dir.join("conf"), "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\n").unwrap();
    fails(
        dir,
        &["compare", "blkdebug:conf:base", "other"],
        4,
        "Error while reading offset 0 of blkdebug:conf:base",
    );
}

#[test]
fn luks_passphrases_have_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("bytes"), clusters(&[7])).unwrap();
    fs::write(dir.join("two"), "bG9uZw==").unwrap();
    let one = ["--object", "secret,id=a,data=short"];
    let two = ["--object", "secret,id=b,file=two,format=base64"];
    let make = ["convert", "-f", "raw", "-O", "luks", "-o", "key-secret=a,iter-time=10", "bytes", "l"];
    does(dir, &[&make[..1], &one, &make[1..]].concat());
    let amend = ["amend", "-o", "state=active,new-secret=b,iter-time=10", "--image-opts"];
    let with = |id: &str| format!("driver=luks,file.filename=l,key-secret={id}");
    does(dir, &[&amend[..1], &one, &two, &amend[1..], &[&with("a")]].concat());
    let convert = ["convert", "-O", "raw", "--image-opts"];
    does(dir, &[&convert[..1], &two, &convert[1..], &[&with("b"), "out.raw"]].concat());
    assert!(fs::read(dir.join("out.raw")).unwrap() == clusters(&[7]));
    fails(dir, &[&convert[..], &[&with("c"), "out.raw"]].concat(), 1, "No secret with id 'c'");
}

#[test]
fn options_are_refused_in_the_words_of_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = |options: &str, text: &str| {
        fails(dir, &["create", "-f", "qcow2", "-o", options, "a", "1M"], 1, text);
        assert!(!dir.join("a").exists(), "{options}");
    };
    create("cluster_size=3k", "a: Cluster size must be a power of two between 512 and 2048k");
    create("compat=0.42", "Parameter 'version' does not accept value '0.42'");
    create("cluster_size=-1", "Value '-1' is out of range for parameter 'cluster_size'");
    create("colour=red", "Invalid parameter 'colour'");
    create("encrypt.key-secret=x,encrypt.format=foo", "");
    does(dir, &["create", "-q", "-f", "qcow2", "a", "1M"]);
    does(dir, &["amend", "-o", "size=2M", "a"]);
    assert!(does(dir, &["info", "a"]).contains("virtual size: 2 MiB"));
    does(dir, &["resize", "-q", "--preallocation=full", "a", "+1M"]);
    assert!(layers(dir, "a").contains(&(0, 16, true)));
    let amend = |options: &str, text: &str| fails(dir, &["amend", "-o", options, "a"], 1, text);
    amend("backing_file=b", "Cannot amend the backing file");
    amend("colour=red", "Invalid parameter 'colour'");
    amend("cluster_size=64k", "only supported for image creation");
    amend("compat=0.10,lazy_refcounts=on", "use compat=1.1 or greater");
    amend("compat=0.42", "Unknown compatibility level 0.42");
    // An old version is made after the size is what its snapshots have.
    does(dir, &["amend", "-o", "compat=0.10,size=1M", "a"]);
    assert!(does(dir, &["info", "a"]).contains("compat: 0.10"));
}

#[test]
fn what_a_description_adds_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "a", &clusters(&[5]), &[]);
    let info = |opts: &str| does(dir, &["info", "--image-opts", opts]);
    assert!(info("driver=qcow2,file.driver=file,file.filename=a").starts_with("image: a\n"));
    let faulty = info("driver=qcow2,file.driver=blkdebug,file.image.filename=a");
    assert!(faulty.starts_with("image: json:{"), "{faulty}");
    // A format that nobody knows keeps its name, and is opened only without what is below.
    does(dir, &["create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "top"]);
    let mut bytes = fs::read(dir.join("top")).unwrap();
    let at = bytes.windows(5).position(|w| w == b"qcow2").unwrap();
    bytes[at..at + 5].copy_from_slice(b"qcow9");
    fs::write(dir.join("top"), bytes).unwrap();
    assert!(does(dir, &["info", "top"]).contains("backing file format: qcow9"));
    fails(dir, &["convert", "-O", "raw", "top", "out.raw"], 1, "qcow9");
}

#[test]
fn files_grow_below_descriptions() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("conf"), "[inject-error]\nevent = \"l1_update\"\n").unwrap();
    let described = [
        "blkdebug:conf:",
        "json:{'driver':'qcow2','file':{'driver':'raw','file':{'driver':'file','filename':'",
    ];
    for (n, (before, behind)) in described.into_iter().zip(["", "'}}}"]).enumerate() {
        let (base, top) = (format!("base{n}"), format!("top{n}"));
        image(dir, &base, &clusters(&[0; 8]), &[]);
        image(dir, &top, &clusters(&[1; 8]), &["-B", &base, "-F", "qcow2"]);
        does(dir, &["commit", "-q", &format!("{before}{top}{behind}")]);
        assert!(contents(dir, &base) == clusters(&[1; 8]));
        assert_eq!(layers(dir, &top), [(1, 8, true)]);
        let fresh = format!("fresh{n}");
        does(dir, &["create", "-q", "-f", "qcow2", &fresh, "512k"]);
        does(dir, &["convert", "-n", "-O", "qcow2", &base, &format!("{before}{fresh}{behind}")]);
        assert!(contents(dir, &fresh) == clusters(&[1; 8]));
    }
}

#[test]
fn luks_is_measured_as_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for more in ["", ",cipher-alg=aes-128", ",version=2"] {
        let options = format!("key-secret=a,iter-time=10{more}");
        let object = ["--object", "secret,id=a,data=x"];
        let args =
            [&["measure"][..], &object, &["-O", "luks", "-o", &options, "--output=json", "--size", "1M"]];
        let told: serde_json::Value = serde_json::from_str(&does(dir, &args.concat())).unwrap();
        does(dir, &[&["create", "-q", "-f", "luks"][..], &object, &["-o", &options, "a", "1M"]].concat());
        assert_eq!(told["required"], fs::metadata(dir.join("a")).unwrap().len(), "{more}");
    }
}

#[test]
fn key_slots_in_qcow2_are_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let keys = ["--object", "secret,id=a,data=one", "--object", "secret,id=b,data=two"];
    let with = |id: &str| format!("driver=qcow2,file.filename=q,encrypt.key-secret={id}");
    fs::write(dir.join("bytes"), clusters(&[7])).unwrap();
    let make =
        ["-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10"];
    does(dir, &[&["convert"][..], &keys, &make, &["bytes", "q"]].concat());
    let amend = |options: &str, by: &str| {
        let by = with(by);
        let all = [&["amend"][..], &keys, &["-o", options, "--image-opts", &by]].concat();
        run(dir, &all)
    };
    assert!(amend("encrypt.state=active,encrypt.new-secret=b,encrypt.iter-time=10", "a").status.success());
    assert!(amend("encrypt.state=inactive,encrypt.keyslot=0", "b").status.success());
    let last = amend("encrypt.state=inactive,encrypt.old-secret=b", "b");
    assert!(String::from_utf8_lossy(&last.stderr).contains("erase all the data"));
    let read = [&["convert"][..], &keys, &["-O", "raw", "--image-opts"]].concat();
    does(dir, &[&read[..], &[&with("b"), "out.raw"]].concat());
    assert!(fs::read(dir.join("out.raw")).unwrap() == clusters(&[7]));
    fails(dir, &[&read[..], &[&with("a"), "out.raw"]].concat(), 1, "key slots");
}

#[test]
fn copies_that_agree_are_a_quorum() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, fill) in [("a", 1), ("b", 2), ("c", 1)] {
        fs::write(dir.join(name), vec![fill; 1 << 16]).unwrap();
    }
    let described = |votes: u32| {
        let copies = ["a", "b", "c"].map(|n| format!("{{'driver':'raw','file.filename':'{n}'}}"));
        format!("json:{{'driver':'quorum','vote-threshold':{votes},'children':[{}]}}", copies.join(","))
    };
    assert!(contents(dir, &described(2)) == [1; 1 << 16]);
    fails(dir, &["convert", "-O", "raw", &described(3), "out.raw"], 1, "agree");
    fails(dir, &["convert", "-O", "raw", &described(4), "out.raw"], 1, "threshold may not exceed");
    fs::write(dir.join("new"), vec![3; 1 << 16]).unwrap();
    does(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "new", &described(3)]);
    assert!(["a", "b", "c"].iter().all(|n| fs::read(dir.join(n)).unwrap() == [3; 1 << 16]));
}

#[test]
fn progress_is_told_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut bytes = vec![0; 16 << 20];
    for n in 0..2 {
        bytes[n * (8 << 20)..n * (8 << 20) + (1 << 20)].fill(1);
    }
    image(dir, "a", &bytes, &[]);
    let shown = does(dir, &["convert", "-p", "-O", "raw", "a", "b"]);
    let steps: Vec<&str> = shown.trim().split('\r').map(str::trim).collect();
    assert_eq!(steps, ["(0.00/100%)", "(50.00/100%)", "(100.00/100%)", "(100.00/100%)"]);
    let shown = does(dir, &["amend", "-p", "-o", "compat=0.10", "a"]);
    assert!(shown.contains("(100.00/100%)"), "{shown}");
}

#[test]
fn options_are_listed_in_the_words_of_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = does(dir, &["create", "-f", "qcow2", "-o", "help"]);
    assert!(
        create
            .starts_with("Supported qcow2 options:\n  backing_file=<str>     - File name of a base image\n")
    );
    assert!(does(dir, &["create", "-f", "qcow2", "-o", "?", "x"]).contains("  nocow=<bool (on/off)>  - "));
    let amend = does(dir, &["amend", "-f", "qcow2", "-o", "help"]);
    assert!(amend.starts_with("Amend options for 'qcow2':\n") && !amend.contains("cluster_size"), "{amend}");
    fails(dir, &["amend", "-o", "help"], 1, "Expecting one image file name");
    fails(dir, &["create", "-f", "qcow2", "-o", ",help", "x"], 1, "Invalid option list: ,help");
}

#[test]
fn what_is_copied_into_an_image_stands_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "source", &clusters(&[0, 1, 0, 0]), &[]);
    does(dir, &["create", "-q", "-f", "qcow2", "target", "256k"]);
    does(dir, &["convert", "-n", "-O", "qcow2", "source", "target"]);
    // Whatever is put below it later does not show.
    image(dir, "base", &clusters(&[5, 5, 5, 5]), &[]);
    does(dir, &["rebase", "-u", "-b", "base", "-F", "qcow2", "target"]);
    assert!(contents(dir, "target") == clusters(&[0, 1, 0, 0]));
}

#[test]
fn amending_is_refused_in_the_words_of_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    does(dir, &["create", "-q", "-f", "qcow2", "-o", "data_file=data", "a", "1M"]);
    fails(dir, &["amend", "-o", "compat=0.10", "a"], 1, "Cannot downgrade an image with a data file");
    fails(
        dir,
        &["amend", "-o", "data_file_raw=on", "a"],
        1,
        "data-file-raw cannot be set on existing images",
    );
    // Without a name of the data file in it, the file can be given.
    does(dir, &["amend", "-o", "data_file=", "a"]);
    fails(dir, &["info", "a"], 1, "it does not say in which");
    let given = "data-file.filename=data,file.filename=a";
    assert!(does(dir, &["info", "--image-opts", given]).starts_with("image: a\n"));
    does(dir, &["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "b", "1M"]);
    fails(dir, &["amend", "-o", "compat=0.10", "b"], 1, "with incompatible features 0x10 set");
    fails(
        dir,
        &["amend", "-o", "data_file=x", "b"],
        1,
        "data-file can only be set for images that use an external",
    );
    image(dir, "base", &clusters(&[1]), &[]);
    does(dir, &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "c"]);
    does(dir, &["amend", "-o", "backing_file=base,backing_fmt=qcow2", "c"]);
    fails(dir, &["amend", "-o", "backing_file=b", "c"], 1, "Cannot amend the backing file");
}

#[test]
fn faults_happen_below_what_is_committed_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    image(dir, "base", &clusters(&[1, 1]), &[]);
    image(dir, "top", &clusters(&[2, 1]), &["-B", "base", "-F", "qcow2"]);
    let described = "json:{'driver':'qcow2','file':{'driver':'file','filename':'top'},'backing':{'driver':'qcow2','file':\
                     {'driver':'blkdebug','inject-error':[{'event':'write_aio','errno':28,'once':true}],\
                     'image':{'driver':'file','filename':'base'}}}}";
    fails(dir, &["commit", described], 1, "Block job failed: No space left on device");
    assert!(contents(dir, "top") == clusters(&[2, 1]));
}
