//! `plinth disk serve`.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{Either, select};
use plinth_host::aio;
use plinth_image::format::{Image, OpenOptions};
use plinth_image::graph::{Cache, NodeRef};
use plinth_nbd::server::{Export, Server};
use plinth_nbd::stream::Listener;
use plinth_nbd::uri::{Address, Uri};
use serde_json::json;

use super::address::open_with;
use super::common::{Signals, close, failed, open_options, result};
use crate::cli::Global;
use crate::cli::disk_tool::ServeArgs;
use crate::failure::{Code, Failure, Result};

/// A Unix socket that is removed with its name.
struct SocketFile<'a>(&'a Path);

impl Drop for SocketFile<'_> {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(self.0);
    }
}

fn listen_unix(path: &Path) -> Result<Listener> {
    let failed = |e: std::io::Error| {
        Failure::from_error(Code::Failed, &format!("cannot listen on the socket '{}'", path.display()), &e)
    };
    // What a server left that was killed. Nobody answers there.
    let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if stale && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path)
        .map_err(|e| failed(e).help("name a file that is not there; another server may be using this one"))?;
    Ok(Listener::Unix(Arc::new(listener)))
}

fn listen_tcp(address: SocketAddr) -> Result<(Listener, SocketAddr)> {
    let failed = |e: std::io::Error| {
        Failure::from_error(Code::Failed, &format!("cannot listen on {address}"), &e)
            .help("choose another port with --listen ADDRESS:PORT (port 0: any that is free)")
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((Listener::Tcp(Arc::new(listener)), address))
}

async fn export(args: &ServeArgs, image: &Rc<dyn Image>) -> Result<Export> {
    let node: NodeRef = match &args.snapshot {
        None => image.clone(),
        Some(name) => {
            let snapshots = image.snapshots();
            let none = || Failure::new(Code::Failed, "the image has no snapshots");
            snapshots.ok_or_else(none)?.view(name).await.map_err(failed)?
        }
    };
    let mut export = Export::new(&args.name, node);
    export.read_only |= args.read_only;
    export.description = args.description.clone().unwrap_or_default();
    for name in &args.bitmap {
        let none = || Failure::new(Code::Failed, "the image has no bitmaps");
        let ranges = image.bitmaps().ok_or_else(none)?.ranges(name).await.map_err(failed)?;
        export.bitmaps.push((name.clone(), ranges));
    }
    Ok(export)
}

/// Accepts clients; with `once`, until the last of them has gone.
async fn accept(listener: Listener, server: Rc<Server>, once: bool) -> std::io::Result<()> {
    let clients = Rc::new(Cell::new(0u32));
    let gone = Rc::new(event());
    loop {
        let socket = {
            let next = pin!(listener.accept());
            let empty = pin!(gone.1.lock());
            match select(next, empty).await {
                Either::Left((socket, _)) => socket?,
                Either::Right(_) => return Ok(()),
            }
        };
        clients.set(clients.get() + 1);
        let (server, clients, gone) = (server.clone(), clients.clone(), gone.clone());
        aio::spawn(async move {
            if let Err(e) = server.serve(socket).await {
                tracing::info!("a client's connection ended: {e}");
            }
            clients.set(clients.get() - 1);
            if once && clients.get() == 0 {
                drop(gone.0.take());
            }
        });
    }
}

type Held = Cell<Option<async_lock::MutexGuardArc<()>>>;

/// A lock that is held until the last client has gone.
fn event() -> (Held, Arc<async_lock::Mutex<()>>) {
    let mutex = Arc::new(async_lock::Mutex::new(()));
    (Cell::new(mutex.try_lock_arc()), mutex)
}

pub fn run(args: &ServeArgs, global: &Global) -> Result<ExitCode> {
    let tls = args.tls.as_deref().map(|folder| plinth_nbd::tls::server(folder, args.tls_verify)).transpose();
    let tls = tls.map_err(|e| Failure::from_error(Code::Failed, "", &e))?;
    let stop = Signals::new()
        .map_err(|e| Failure::from_error(Code::HostResource, "cannot watch for signals", &e))?;
    aio::block_on(async {
        let cache = if args.cached { Cache::Cached } else { Cache::Direct };
        let how = open_options(&args.image.open, args.image.format, args.read_only)?;
        let opened = open_with(&args.image.path, &args.image.open, &OpenOptions { cache, ..how }).await?;
        let server = Server::new(vec![export(args, &opened.image).await?]);
        let server = match tls.clone() {
            Some(tls) => server.with_tls(tls),
            None => server,
        };
        let mut _socket = None;
        let (listener, address) = match &args.socket {
            Some(path) => {
                let listener = listen_unix(path)?;
                _socket = Some(SocketFile(path));
                (listener, Address::Unix(path.clone()))
            }
            None => {
                let (listener, at) = listen_tcp(args.listen)?;
                (listener, Address::Tcp(at.ip().to_string(), at.port()))
            }
        };
        let uri = Uri { address, export: args.name.clone(), tls: tls.is_some() };
        let value = json!({ "uri": uri.to_string(), "size": opened.image.size(), "pid": std::process::id() });
        result(global, &value, &format!("serving '{}' at {uri}\n", args.image.path.display()))?;
        let serve = pin!(accept(listener, Rc::new(server), args.once));
        let stopped = pin!(stop.next());
        let outcome = match select(serve, stopped).await {
            Either::Left((outcome, _)) => outcome,
            // A signal is the way to end it.
            Either::Right(_) => Ok(()),
        };
        close(&*opened.image).await?;
        outcome.map_err(|e| Failure::from_error(Code::HostResource, "cannot accept clients", &e))
    })?;
    Ok(ExitCode::SUCCESS)
}
