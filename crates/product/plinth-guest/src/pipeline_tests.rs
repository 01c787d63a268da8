//! The whole build against a small archive on a local server.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::arch::GuestArch;
use crate::cache::{Cache, sha256};
use crate::deb::tests::deb;
use crate::debian::{BASE, Builder, DebianImage, DebianSpec};
use crate::error::{GuestError, Result};
use crate::progress::{Progress, Unit};
use crate::release::Verification;

/// Serves files until it is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let _ = answer(stream.unwrap(), &files);
            }
        });
        Self { address, stop }
    }

    fn uri(&self) -> String {
        format!("http://{}/debian", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    while lines.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match files.get(path.strip_prefix("/debian/").unwrap_or_default()) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &b""[..]),
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)
}

/// What a build said.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<String>>,
}

impl Heard {
    fn has(&self, text: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(text))
    }
}

impl Progress for Heard {
    fn step(&self, title: &str, _total: u64, _unit: Unit) {
        self.lines.lock().unwrap().push(format!("step {title}"));
    }

    fn advance(&self, _amount: u64) {}

    fn note(&self, message: &str) {
        self.lines.lock().unwrap().push(format!("note {message}"));
    }

    fn warn(&self, message: &str) {
        self.lines.lock().unwrap().push(format!("warn {message}"));
    }
}

const PASSWD: &str = "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/:/bin/false\n";
const KERNEL: &str = "linux-image-6.1-riscv64";

/// Paths with contents.
type Files = Vec<(&'static str, &'static str)>;

/// Control fields, control files and data of the packages that are more than a name.
fn contents(name: &str) -> (&'static str, Files, Files) {
    match name {
        "base-files" => (
            "Essential: yes\n",
            vec![],
            vec![
                ("./", ""),
                ("./usr/", ""),
                ("./usr/bin/", ""),
                ("./bin", "->usr/bin"),
                ("./lib", "->usr/lib"),
            ],
        ),
        "base-passwd" => (
            "Essential: yes\n",
            vec![("preinst", "#!/bin/sh\n")],
            vec![
                ("./usr/share/base-passwd/passwd.master", PASSWD),
                ("./usr/share/base-passwd/group.master", "root:*:0:\n"),
            ],
        ),
        "curl" => (
            "Depends: libcurl (>= 1)\n",
            vec![
                ("conffiles", "/etc/curlrc\n"),
                ("postinst", "#!/bin/sh\ndeb-systemd-helper enable 'curl.timer'\n"),
            ],
            vec![
                ("./bin/curl", "curl!"),
                ("./etc/curlrc", "silent\n"),
                ("./usr/lib/systemd/system/curl.timer", "[Install]\nWantedBy=timers.target\n"),
            ],
        ),
        "busybox-static" => ("", vec![], vec![("./usr/bin/busybox", "busybox!")]),
        "linux-image-riscv64" => ("Depends: linux-image-6.1-riscv64 (= 1)\n", vec![], vec![]),
        KERNEL => (
            "Depends: initramfs-tools | linux-initramfs-tool\n",
            vec![("postinst", "#!/bin/sh\n")],
            vec![
                ("./boot/vmlinux-6.1-riscv64", "kernel!"),
                ("./usr/lib/modules/6.1-riscv64/modules.order", ""),
            ],
        ),
        "extra" => (
            "",
            vec![("preinst", "#!/bin/sh\n"), ("postinst", "#!/bin/sh\n")],
            vec![("./usr/bin/extra", "x")],
        ),
        _ => ("", vec![], vec![]),
    }
}

/// The files of an archive with all packages a build asks for.
fn archive() -> HashMap<String, Vec<u8>> {
    let others =
        ["base-files", "base-passwd", "libcurl", "busybox-static", "linux-image-riscv64", KERNEL, "extra"];
    let mut files = HashMap::new();
    let mut index = String::new();
    for name in BASE.iter().chain(&others) {
        let (fields, control, data) = contents(name);
        let text = format!("Package: {name}\nVersion: 1\nArchitecture: riscv64\n{fields}");
        let mut control = control.clone();
        control.push(("control", &text));
        let bytes = deb(&control, &data);
        let path = format!("pool/main/{name}_1_riscv64.deb");
        index += &format!("{text}Filename: {path}\nSize: {}\nSHA256: {}\n\n", bytes.len(), sha256(&bytes));
        files.insert(path, bytes);
    }
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(index.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let release = format!(
        "Codename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\nValid-Until: Sat, 12 Sep 2015 07:55:41 UTC\n\
         Acquire-By-Hash: yes\nSHA256:\n {} {} main/binary-riscv64/Packages.xz\n",
        sha256(&packed),
        packed.len()
    );
    let signed = format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{release}-----BEGIN PGP SIGNATURE-----\n\nx\n\
         -----END PGP SIGNATURE-----\n"
    );
    files.insert("dists/trixie/InRelease".into(), signed.into_bytes());
    // Only under its plain name: the request by hash has to fall back.
    files.insert("dists/trixie/main/binary-riscv64/Packages.xz".into(), packed);
    files
}

fn spec(uri: String) -> DebianSpec {
    let mut spec = DebianSpec::new(GuestArch::Riscv64);
    spec.size = 64 << 20;
    spec.mirror = Some(uri);
    spec.packages = vec!["extra".into()];
    spec
}

fn build(cache: &Path, spec: &DebianSpec, heard: &Heard) -> Result<DebianImage> {
    let (cache, verification) = (Cache::at(cache), Verification::none());
    Builder { cache: &cache, verification: &verification, progress: heard }.cached(spec)
}

fn debugfs(disk: &Path, command: &str) -> Option<String> {
    let tool = ["/usr/sbin/debugfs", "/sbin/debugfs"].iter().map(PathBuf::from).find(|p| p.is_file())?;
    let output = Command::new(tool).args(["-R", command]).arg(disk).output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn builds_a_guest_and_builds_it_again_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(archive());
    let spec = spec(server.uri());
    let heard = Heard::default();
    let image = build(dir.path(), &spec, &heard).unwrap();
    assert!(heard.has("warn the packages' signature was not checked"));
    assert!(heard.has("warn the suite's index is out of date"));
    assert!(!image.verified);
    assert_eq!(fs::read(&image.kernel).unwrap(), b"kernel!");
    assert_eq!(image.kernel_release, "6.1-riscv64");
    assert!(fs::read(&image.initrd).unwrap().windows(8).any(|w| w == b"busybox!"));
    assert!(image.packages.contains(&"libcurl 1".to_owned()));
    check_disk(&image.disk);

    // The second call finds the image.
    drop(server);
    let heard = Heard::default();
    assert_eq!(build(dir.path(), &spec, &heard).unwrap(), image);
    assert!(heard.lines.lock().unwrap().is_empty());
    // Another image is built from the cached packages.
    let other = DebianSpec { hostname: "other".into(), ..spec.clone() };
    let heard = Heard::default();
    let built = build(dir.path(), &other, &heard).unwrap();
    assert!(heard.has("note using the cached package index"));
    assert_ne!(built.disk, image.disk);
    // With a package that is not in the cache it says what is missing.
    for deb in fs::read_dir(dir.path().join("debs")).unwrap().flatten() {
        if deb.file_name().to_string_lossy().starts_with("extra_") {
            fs::remove_file(deb.path()).unwrap();
        }
    }
    let other = DebianSpec { hostname: "third".into(), ..spec };
    let error = build(dir.path(), &other, &Heard::default()).unwrap_err();
    assert!(matches!(error, GuestError::Network { .. }), "{error}");
    assert!(error.to_string().contains("check the network"));
}

fn check_disk(disk: &Path) {
    let Some(status) = debugfs(disk, "cat /var/lib/dpkg/status") else { return };
    let state = |name: &str| {
        let stanza = status.split("\n\n").find(|s| s.starts_with(&format!("Package: {name}\n"))).unwrap();
        stanza.lines().nth(1).unwrap().to_owned()
    };
    assert_eq!(state("curl"), "Status: install ok unpacked");
    assert_eq!(state("libcurl"), "Status: install ok installed");
    assert_eq!(state(KERNEL), "Status: install ok installed");
    assert!(status.contains(" /etc/curlrc e478ccf4f597be0e6aa57c4574c84405\n"), "{status}");
    let cat = |path: &str| debugfs(disk, &format!("cat {path}")).unwrap();
    assert_eq!(cat("/usr/bin/curl"), "curl!");
    assert!(cat("/etc/passwd").starts_with("root:x:0:0:"));
    assert!(cat("/etc/shadow").starts_with("root::20708:"));
    assert!(cat("/etc/shadow").contains("nobody:*:"));
    assert_eq!(cat("/etc/hostname"), "debian\n");
    assert_eq!(cat("/usr/lib/plinth/base"), "curl\n");
    // The preinst of a base package is known to be needless, that of another one is not.
    assert_eq!(cat("/usr/lib/plinth/preinsts"), "extra riscv64 /var/lib/dpkg/info/extra.preinst\n");
    assert!(
        cat("/var/lib/systemd/deb-systemd-helper-enabled/curl.timer.dsh-also")
            .contains("timers.target.wants")
    );
    assert_eq!(
        cat("/var/lib/dpkg/info/curl.list"),
        "/bin/curl\n/etc/curlrc\n/usr/lib/systemd/system/curl.timer\n"
    );
}

#[test]
fn refuses_what_is_not_as_promised() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = archive();
    files.get_mut("pool/main/extra_1_riscv64.deb").unwrap()[100] ^= 1;
    let server = Server::start(files);
    let spec = spec(server.uri());
    let error = build(dir.path(), &spec, &Heard::default()).unwrap_err();
    assert!(matches!(&error, GuestError::Integrity { what, .. } if what.contains("extra")), "{error}");
    let images = dir.path().join("images");
    let disks =
        fs::read_dir(images).unwrap().flatten().flat_map(|d| fs::read_dir(d.path()).unwrap().flatten());
    assert_eq!(disks.filter(|f| f.file_name() != "lock").count(), 0);

    let strict = DebianSpec { require_signature: true, ..spec.clone() };
    let error = build(dir.path(), &strict, &Heard::default()).unwrap_err();
    assert!(matches!(error, GuestError::Signature { .. }), "{error}");
    for (bad, say) in [
        (DebianSpec { suite: "../x".into(), ..spec.clone() }, "suite"),
        (DebianSpec { hostname: "a b".into(), ..spec.clone() }, "host name"),
        (DebianSpec { suite: "forky".into(), ..spec.clone() }, "404"),
        (DebianSpec { packages: vec!["nothing".into()], ..spec.clone() }, "nothing"),
        (DebianSpec { arch: GuestArch::Arm64, ..spec.clone() }, "arm64"),
        (DebianSpec { size: 1 << 20, ..spec.clone() }, "16 MiB"),
    ] {
        let error = build(dir.path(), &bad, &Heard::default()).unwrap_err();
        assert!(error.to_string().contains(say), "{error}");
    }
}
