//! The server and the client with each other, and with those of others where they are installed.

use std::cell::{Cell, RefCell};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use plinth_host::aio::{self, block_on};
use plinth_image::graph::{IoBuf, IoData, MemoryNode, Node};
use plinth_image::testing::{Shadow, Workload};
use plinth_nbd::client::{self, Options};
use plinth_nbd::server::{Export, Server};
use plinth_nbd::stream::Listener;
use plinth_nbd::uri::{Address, Uri};
use plinth_nbd::{ALLOCATION_DEPTH, ErrorKind, tls};

const SIZE: u64 = 8 << 20;

/// Serves on a Unix socket, beside what the caller awaits.
fn serve(path: &Path, server: Server) {
    let listener = Listener::Unix(Arc::new(UnixListener::bind(path).unwrap()));
    let server = Rc::new(server);
    aio::spawn(async move {
        loop {
            let socket = listener.accept().await.unwrap();
            let server = server.clone();
            // What is wrong with a connection shows at its other end.
            aio::spawn(async move { drop(server.serve(socket).await) });
        }
    });
}

fn uri(path: &Path, export: &str) -> Uri {
    Uri { address: Address::Unix(path.to_owned()), export: export.to_owned(), tls: false }
}

fn disk() -> Rc<MemoryNode> {
    let node = MemoryNode::new("disk");
    node.set_size(SIZE);
    Rc::new(node)
}

/// A program of the system, with the system's Python, whose modules come from packages as well.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default()));
    command
}

fn installed(program: &str) -> bool {
    let asked = command(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = asked.is_ok_and(|s| s.success());
    if !found {
        eprintln!("{program} is not installed: what compares with it is skipped");
    }
    found
}

/// Runs a program while the server goes on.
async fn run(program: &str, args: &[&str]) -> String {
    let mut command = command(program);
    command.args(args);
    let out = aio::blocking(move || command.output().unwrap()).await;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program}: {text} {}", String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn random_work_over_the_wire_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    block_on(async {
        let node = disk();
        serve(&path, Server::new(vec![Export::new("a", node.clone()), Export::new("b", disk())]));
        let client = client::open(&uri(&path, "a"), &Options::default()).await.unwrap();
        assert_eq!(client.size(), SIZE);
        let shadow = Shadow::default();
        Workload::new(5, 500).run(&client, &shadow, &|| 0).await.unwrap();
        shadow.verify(&client, None).await.unwrap();
        shadow.verify(&*node, None).await.unwrap();
        // Larger than one request can be, and several of them.
        let big = Rc::new(MemoryNode::new("big"));
        big.set_size(100 << 20);
        big.put((64 << 20) - 5, b"0123456789");
        let other = dir.path().join("big");
        serve(&other, Server::new(vec![Export::new("", big)]));
        let big = client::open(&uri(&other, ""), &Options::default()).await.unwrap();
        let data = big.read(10 << 20, IoBuf::new(80 << 20)).await.unwrap();
        assert_eq!(&data[(54 << 20) - 5..][..10], b"0123456789");
        assert!(
            join_all((0..1000).map(|n| big.read(n * 512, IoBuf::new(512)))).await.iter().all(Result::is_ok)
        );
        let holes = big.status(0, 64 << 20).await.unwrap();
        assert!(holes.zero && holes.len == (64 << 20) - 4096, "{holes:?}");
        client.close().await.unwrap();
        assert!(client.read(0, IoBuf::new(1)).await.is_err());
    });
}

/// A server whose connections the test can break, and which it can stop.
#[derive(Clone, Default)]
struct Fragile {
    connections: Rc<RefCell<Vec<UnixStream>>>,
    /// Connections that are taken from now on, and the export's size.
    left: Rc<Cell<(u32, u64)>>,
}

impl Fragile {
    fn serve(&self, path: &Path, node: Rc<MemoryNode>) {
        let listener = Arc::new(UnixListener::bind(path).unwrap());
        let me = self.clone();
        aio::spawn(async move {
            loop {
                let listener = listener.clone();
                let stream = aio::blocking(move || listener.accept().unwrap().0).await;
                let (left, size) = me.left.get();
                if left == 0 {
                    continue;
                }
                me.left.set((left - 1, size));
                me.connections.borrow_mut().push(stream.try_clone().unwrap());
                node.set_size(size);
                let server = Server::new(vec![Export::new("a", node.clone())]);
                aio::spawn(async move { drop(server.serve(stream.into()).await) });
            }
        });
    }

    async fn break_all(&self) {
        for stream in self.connections.borrow_mut().drain(..) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        aio::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_broken_connection_is_made_again_where_that_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    block_on(async {
        let node = disk();
        let server = Fragile::default();
        server.left.set((100, SIZE));
        server.serve(&path, node.clone());
        let options = Options { reconnect: Duration::from_secs(10), ..Options::default() };
        let client = client::open(&uri(&path, "a"), &options).await.unwrap();
        let write = async |at: u64, byte: u8| client.write(at, IoData::copy_of(&[byte; 4096])).await;
        let read = async |at: u64| client.read(at, IoBuf::new(4096)).await.map(|b| b[0]);
        write(0, 1).await.unwrap();
        client.flush().await.unwrap();
        for _ in 0..3 {
            server.break_all().await;
            assert_eq!(read(0).await.unwrap(), 1);
        }
        // Many at once, some of them on their way.
        let reads = join_all((0..64).map(|n| read(n % 2 * 8192)));
        let (done, ()) = join(reads, server.break_all()).await;
        assert!(done.into_iter().enumerate().all(|(n, r)| r.unwrap() == u8::from(n % 2 == 0)));
        // Nothing was written since the flush.
        server.break_all().await;
        client.flush().await.unwrap();
        write(4096, 2).await.unwrap();
        server.break_all().await;
        write(8192, 3).await.unwrap();
        let e = client.flush().await.unwrap_err();
        assert!(e.to_string().contains("may be lost"), "{e}");
        client.flush().await.unwrap();
        assert_eq!((read(4096).await.unwrap(), read(8192).await.unwrap()), (2, 3));
        // Another disk under the same name is not what the client works on.
        server.left.set((1, 4096));
        server.break_all().await;
        let e = read(0).await.unwrap_err();
        assert!(e.to_string().contains("another one"), "{e}");

        server.left.set((1, SIZE));
        let options = Options { reconnect: Duration::from_millis(300), ..Options::default() };
        let client = client::open(&uri(&path, "a"), &options).await.unwrap();
        server.break_all().await;
        let begin = Instant::now();
        let e = client.read(0, IoBuf::new(512)).await.unwrap_err();
        assert!(e.to_string().contains("could not be made again within"), "{e}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(client.read(0, IoBuf::new(512)).await.is_err());
        // Without leave to connect again, all fails at once.
        server.left.set((9, SIZE));
        let client = client::open(&uri(&path, "a"), &Options::default()).await.unwrap();
        server.break_all().await;
        let e = client.read(0, IoBuf::new(512)).await.unwrap_err();
        assert!(e.to_string().contains("is gone"), "{e}");
    });
}

#[test]
fn lengths_have_64_bits() {
    const HUGE: u64 = 1 << 43;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    block_on(async {
        let node = disk();
        node.set_size(HUGE);
        node.put(HUGE - 4096, &[1; 4096]);
        serve(&path, Server::new(vec![Export::new("a", node.clone())]));
        let client = client::open(&uri(&path, "a"), &Options::default()).await.unwrap();
        let all = client.status(0, HUGE).await.unwrap();
        assert_eq!((all.len, all.zero), (HUGE - 4096, true), "{all:?}");
        client.discard(0, HUGE - 8192).await.unwrap();
        let data = client.read(HUGE - 8192, IoBuf::new(8192)).await.unwrap();
        assert_eq!((data[4095], data[4096]), (0, 1));
        let text = uri(&path, "a").to_string();
        if installed("qemu-img") {
            // Its client has extended headers from version 8.2 on.
            let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &text]).await;
            assert!(map.contains(&format!("\"start\": 0, \"length\": {}", HUGE - 4096)), "{map}");
        }
        if installed("qemu-img") && installed("qemu-nbd") {
            let (file, path) = (dir.path().join("q.qcow2"), dir.path().join("q"));
            run("qemu-img", &["create", "-q", "-f", "qcow2", file.to_str().unwrap(), "1T"]).await;
            let args = ["-t", "-x", "disk", "-k", path.to_str().unwrap(), file.to_str().unwrap()];
            let _server = Other(Command::new("qemu-nbd").args(args).spawn().unwrap());
            wait_for(&path);
            let client = client::open(&uri(&path, "disk"), &Options::default()).await.unwrap();
            let mut at = 0;
            let mut answers = 0;
            while at < 1 << 40 {
                at += client.status(at, (1 << 40) - at).await.unwrap().len;
                answers += 1;
            }
            // With lengths of 32 bits there would be 256.
            assert!(answers < 200, "{answers}");
            client.write_zeroes(5, (8 << 30) + 1, true).await.unwrap();
            client.close().await.unwrap();
        }
    });
}

/// What libnbd sees, step by step.
const SHELL: &str = r#"
import errno
assert h.get_size() == 8388608 and not h.is_read_only()
assert h.can_meta_context("base:allocation") and h.get_structured_replies_negotiated()
h.pwrite(b"x" * 5000, 70000)
assert h.pread(5002, 69999) == b"\0" + b"x" * 5000 + b"\0"
h.zero(4096, 70000)
h.trim(65536, 1048576)
h.flush()
h.pwrite(b"y" * 512, 512, nbd.CMD_FLAG_FUA)
seen = []
def extents(context, offset, entries, error):
    seen.append((context, offset, list(entries)))
h.block_status(8388608, 0, extents)
assert [s[0] for s in seen] == ["base:allocation"] and sum(seen[0][2][::2]) == 8388608, seen
chunks = []
def chunk(buf, offset, status, error):
    chunks.append((offset, len(buf), status))
h.pread_structured(1 << 20, 0, chunk)
assert sum(c[1] for c in chunks) == 1 << 20 and any(c[2] == nbd.READ_HOLE for c in chunks), chunks
h.set_strict_mode(0)
assert h.pread(0, 0) == b""
for bad in (lambda: h.pread(512, 8388608), lambda: h.pwrite(b"z", 8388608)):
    try:
        bad()
        raise SystemExit("it was not refused")
    except nbd.Error as e:
        assert e.errnum in (errno.EINVAL, errno.ENOSPC), e
buf = nbd.Buffer(65536)
cookies = [h.aio_pread(nbd.Buffer(4096), n * 4096) for n in range(64)]
while any(not h.aio_command_completed(c) for c in cookies[-1:]):
    h.poll(-1)
print("all is well")
"#;

#[test]
fn libnbds_shell_works_on_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    if !installed("nbdsh") {
        return;
    }
    block_on(async {
        let node = disk();
        serve(&path, Server::new(vec![Export::new("a", node.clone())]));
        let out = run("nbdsh", &["--base-allocation", "-u", &uri(&path, "a").to_string(), "-c", SHELL]).await;
        assert!(out.contains("all is well"), "{out}");
        let mut bytes = [0; 2];
        node.get(511, &mut bytes);
        assert_eq!(bytes, [0, b'y']);
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    block_on(async {
        let mut export = Export::new("a", disk());
        export.read_only = true;
        serve(&path, Server::new(vec![export, Export::new("b", disk())]));
        let e = client::open(&uri(&path, "c"), &Options::default()).await.err().unwrap();
        assert_eq!(
            (e.kind, e.to_string().contains("there is no export 'c'")),
            (ErrorKind::Refused, true),
            "{e}"
        );
        let client = client::open(&uri(&path, "a"), &Options::default()).await.unwrap();
        assert!(client.info().read_only);
        let e = client::open(&uri(&dir.path().join("x"), ""), &Options::default()).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Connection);
        let mut with_tls = uri(&path, "a");
        with_tls.tls = true;
        let e = client::open(&with_tls, &Options::default()).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Tls);
    });
}

#[test]
fn other_contexts_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    block_on(async {
        let node = disk();
        node.write(1 << 20, IoData::copy_of(&[1; 4096])).await.unwrap();
        let mut export = Export::new("a", node);
        export.bitmaps = vec![("changes".to_owned(), vec![(65536, 65536), (1 << 20, 4096)])];
        serve(&path, Server::new(vec![export]));
        let open = async |bitmap: &str| {
            let options = Options { bitmap: Some(bitmap.to_owned()), ..Options::default() };
            client::open(&uri(&path, "a"), &options).await.unwrap()
        };
        let changes = open("qemu:dirty-bitmap:changes").await;
        assert_eq!(changes.dirty().await.unwrap().unwrap(), [(65536, 65536), (1 << 20, 4096)]);
        // One layer has all that there is.
        let depths = open(ALLOCATION_DEPTH).await.marks().await.unwrap().unwrap();
        assert_eq!(depths.iter().map(|m| m.1).sum::<u64>(), SIZE);
        assert!(depths.iter().all(|m| m.2 <= 1) && depths.iter().any(|m| m.2 == 1), "{depths:?}");
        assert!(open("qemu:dirty-bitmap:other").await.marks().await.unwrap().is_none());
    });
}

/// An authority, and certificates of a server and a client.
fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    std::fs::write(dir.join("ca-cert.pem"), ca.pem()).unwrap();
    for who in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_carries_everything_and_needs_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    certificates(dir.path());
    block_on(async {
        let config = tls::server(dir.path(), true).unwrap();
        serve(&path, Server::new(vec![Export::new("a", disk())]).with_tls(config));
        let plain = client::open(&uri(&path, "a"), &Options::default()).await.err().unwrap();
        assert!(plain.to_string().contains("TLS"), "{plain}");
        let secure = Uri { tls: true, ..uri(&path, "a") };
        let options = Options { tls: Some(tls::client(dir.path()).unwrap()), ..Options::default() };
        let client = client::open(&secure, &options).await.unwrap();
        let shadow = Shadow::default();
        Workload { cluster: 1 << 20, ..Workload::new(6, 200) }.run(&client, &shadow, &|| 0).await.unwrap();
        shadow.verify(&client, None).await.unwrap();
        client.close().await.unwrap();
        // Somebody without a certificate.
        for name in ["client-cert.pem", "client-key.pem"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let options = Options { tls: Some(tls::client(dir.path()).unwrap()), ..Options::default() };
        assert!(client::open(&secure, &options).await.is_err());
    });
}

#[test]
fn clients_of_others_read_and_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let text = uri(&path, "disk").to_string();
    block_on(async {
        let node = disk();
        let mut export = Export::new("disk", node.clone());
        export.description = "a test".to_owned();
        export.bitmaps = vec![("changes".to_owned(), vec![(65536, 65536), (1 << 20, 4096)])];
        serve(&path, Server::new(vec![export]));
        let mut data = IoBuf::new(1 << 20);
        data.iter_mut().enumerate().for_each(|(n, b)| *b = (n * 7) as u8);
        node.write(1 << 20, data.freeze()).await.unwrap();
        let whole = dir.path().join("whole.raw");
        std::fs::write(&whole, node.contents()).unwrap();
        let whole = whole.to_str().unwrap();
        if installed("qemu-img") {
            assert!(
                run("qemu-img", &["compare", "-f", "raw", "-F", "raw", whole, &text])
                    .await
                    .contains("identical")
            );
            let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &text]).await;
            assert!(map.contains("\"start\": 1048576, \"length\": 1048576"), "{map}");
            let dirty = format!(
                "driver=nbd,server.type=unix,server.path={},export=disk,x-dirty-bitmap=qemu:dirty-bitmap:changes",
                path.display()
            );
            let map = run("qemu-img", &["map", "--output=json", "--image-opts", &dirty]).await;
            assert!(map.contains("\"start\": 65536, \"length\": 65536"), "{map}");
        }
        if installed("qemu-io") {
            run(
                "qemu-io",
                &["-f", "raw", "-c", "write -P 9 5000 3000", "-c", "write -z 1M 64k", "-c", "flush", &text],
            )
            .await;
            let mut bytes = [0; 3002];
            node.get(4999, &mut bytes);
            assert_eq!((bytes[0], bytes[1], bytes[3000], bytes[3001]), (0, 9, 9, 0));
            node.get(1 << 20, &mut bytes);
            assert_eq!(bytes, [0; 3002]);
        }
        if installed("nbdinfo") {
            let info = run("nbdinfo", &["--json", &text]).await;
            for part in ["\"export-size\": 8388608", "qemu:dirty-bitmap:changes", "a test"] {
                assert!(info.contains(part), "{part}: {info}");
            }
            let map = run("nbdinfo", &["--map", &text]).await;
            assert!(map.contains("hole,zero"), "{map}");
            run("nbdinfo", &["--list", &format!("nbd+unix://?socket={}", path.display())]).await;
        }
        if installed("nbdcopy") {
            let copy = dir.path().join("copy.raw");
            run("nbdcopy", &[&text, copy.to_str().unwrap()]).await;
            assert!(std::fs::read(&copy).unwrap() == node.contents());
            std::fs::write(&copy, vec![5; SIZE as usize]).unwrap();
            run("nbdcopy", &[copy.to_str().unwrap(), &text]).await;
            assert!(node.contents().iter().all(|&b| b == 5));
        }
    });
}

/// A server of others, ended with the test.
struct Other(std::process::Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(path: &Path) {
    let begin = std::time::Instant::now();
    while !path.exists() {
        assert!(begin.elapsed().as_secs() < 20, "{} does not come", path.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn work_on(path: PathBuf, export: &str) {
    wait_for(&path);
    block_on(async {
        let client = client::open(&uri(&path, export), &Options::default()).await.unwrap();
        assert_eq!(client.size(), SIZE);
        let shadow = Shadow::default();
        Workload::new(7, 300).run(&client, &shadow, &|| 0).await.unwrap();
        shadow.verify(&client, None).await.unwrap();
        client.write(1 << 20, IoData::copy_of(&[1; 4096])).await.unwrap();
        client.close().await.unwrap();
    });
}

#[test]
fn servers_of_others_are_used() {
    let dir = tempfile::tempdir().unwrap();
    if installed("qemu-nbd") {
        let (file, path) = (dir.path().join("q.raw"), dir.path().join("q"));
        std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
        let args = ["-f", "raw", "-t", "-x", "disk", "-k", path.to_str().unwrap(), file.to_str().unwrap()];
        let _server = Other(Command::new("qemu-nbd").args(args).spawn().unwrap());
        work_on(path, "disk");
    }
    if installed("nbdkit") {
        // Its smallest block is larger than a sector, so the client has to patch.
        for (n, filter) in
            [&["--filter=nozero"][..], &["--filter=blocksize-policy"], &["--filter=stats"]].iter().enumerate()
        {
            let path = dir.path().join(format!("k{n}"));
            let mut command = Command::new("nbdkit");
            command.args(["-f", "--exit-with-parent", "-U"]).arg(&path).args(*filter).args(["memory", "8M"]);
            match n {
                1 => drop(command.args([
                    "blocksize-minimum=4096",
                    "blocksize-preferred=65536",
                    "blocksize-maximum=1M",
                ])),
                2 => drop(command.arg("statsfile=/dev/null")),
                _ => {}
            }
            let _server = Other(command.spawn().unwrap());
            work_on(path, "");
        }
    }
}

#[test]
fn nonsense_ends_a_connection_and_nothing_else() {
    let mut state = 1u64;
    for n in 0..200 {
        let mut data: Vec<u8> = (0..n % 90)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        plinth_nbd::fuzz::fuzz_nbd_server(&data);
        // Behind a right beginning.
        let mut hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        hello.append(&mut data);
        plinth_nbd::fuzz::fuzz_nbd_client(&hello);
    }
}
