//! Entry points for fuzzing what comes over the wire.

use std::io::Write;
use std::os::unix::net::UnixStream;

use plinth_host::aio::block_on;
use plinth_image::graph::MemoryNode;

use crate::server::{Export, Server};

/// A client that sends `data` to a server and hangs up.
pub fn fuzz_nbd_server(data: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("the host has sockets");
    let sender = std::thread::spawn({
        let data = data.to_vec();
        move || {
            let mut theirs = theirs;
            // The server may hang up first.
            let _ = theirs.write_all(&data);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut theirs, &mut std::io::sink());
        }
    });
    block_on(async {
        let node = std::rc::Rc::new(MemoryNode::with("fuzz", &[7; 8192]).limited(1 << 20));
        let server = Server::new(vec![Export::new("", node)]);
        // Any answer is right but a panic.
        let _ = server.serve(ours.into()).await;
    });
    sender.join().expect("sending does not fail");
}

/// A server that sends `data` to a client.
pub fn fuzz_nbd_client(data: &[u8]) {
    let dir = std::env::temp_dir();
    let path = dir.join(format!("plinth-nbd-fuzz-{}-{:?}", std::process::id(), std::thread::current().id()));
    let _ = std::fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket can be made");
    let sender = std::thread::spawn({
        let data = data.to_vec();
        move || {
            let Ok((mut socket, _)) = listener.accept() else { return };
            let _ = socket.write_all(&data);
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut socket, &mut std::io::sink());
        }
    });
    block_on(async {
        use plinth_image::graph::{IoBuf, Node};
        let uri = crate::uri::Uri {
            address: crate::uri::Address::Unix(path.clone()),
            export: String::new(),
            tls: false,
        };
        if let Ok(node) = crate::client::open(&uri, &crate::client::Options::default()).await {
            let n = node.size().min(4096);
            let _ = node.read(0, IoBuf::new(n as usize)).await;
            let _ = node.status(0, n).await;
        }
    });
    sender.join().expect("sending does not fail");
    let _ = std::fs::remove_file(&path);
}
