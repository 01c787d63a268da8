//! NBD exports as they are described by options.

use std::path::Path;
use std::rc::Rc;

use plinth_image::format::raw::RawImage;
use plinth_image::format::{Image, OpenOptions};
use plinth_image::graph::{Extent, Io, IoBuf, Node, NodeInfo, ReadNode, check_range};
use plinth_nbd::ALLOCATION_DEPTH;
use plinth_nbd::client::{self, NbdNode};
use plinth_nbd::uri::{Address, PORT, Uri};

use super::through::Through;
use super::tree::Tree;
use crate::command::disk::open_source;

/// The export that options describe.
pub async fn open(tree: &mut Tree, read_only: bool) -> Result<Rc<dyn Image>, String> {
    let mut take = |key: &str| tree.options.remove(key);
    if let Some(name) = take("filename") {
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let opened = open_source(Path::new(&name), &options).await.map_err(|e| e.message)?;
        return Ok(opened.image);
    }
    let kind = take("server.type");
    let path = take("path").or_else(|| take("server.path"));
    let host = take("host").or_else(|| take("server.host"));
    let port = take("port").or_else(|| take("server.port"));
    if take("tls-creds").is_some() {
        return Err("TLS for NBD is taken from the folder in PLINTH_TLS, with an nbds:// address".to_owned());
    }
    let address = match (kind.as_deref(), path, host) {
        (Some("unix") | None, Some(path), None) => Address::Unix(path.into()),
        (Some("inet") | None, None, Some(host)) => {
            let port = port.map_or(Ok(PORT), |p| p.parse().map_err(|_| format!("Port '{p}' is invalid")))?;
            Address::Tcp(host, port)
        }
        (_, Some(_), Some(_)) => return Err("path and host may not be used at the same time".to_owned()),
        _ => return Err("NBD server address missing".to_owned()),
    };
    let uri = Uri { address, export: take("export").unwrap_or_default(), tls: false };
    let bitmap = take("x-dirty-bitmap");
    let options = client::Options {
        // What shows a bitmap as what is there is for looking only.
        read_only: read_only || bitmap.is_some(),
        bitmap: bitmap.clone(),
        ..client::Options::default()
    };
    let node = client::open(&uri, &options).await.map_err(|e| e.to_string())?;
    let Some(bitmap) = bitmap else { return Ok(Rc::new(RawImage::new(Rc::new(node), read_only))) };
    let marks = node.marks().await.map_err(|e| e.to_string())?;
    let mut marks = marks.ok_or_else(|| format!("The server has no bitmap '{bitmap}'"))?;
    if bitmap == ALLOCATION_DEPTH {
        marks.iter_mut().for_each(|m| m.2 = m.2.min(ZERO));
    }
    Ok(Rc::new(Through { node: Rc::new(Marked { node, marks }), image: None }))
}

/// Flags of the context `base:allocation`.
const HOLE: u64 = 1;
const ZERO: u64 = 1 << 1;

/// An export whose status is what another metadata context says, taken as if it were about what is allocated: what
/// is marked in a bitmap is shown as not there; of depths, those below the first are shown as zeros.
struct Marked {
    node: NbdNode,
    /// First byte, length, flags; without gaps.
    marks: Vec<(u64, u64, u64)>,
}

impl ReadNode for Marked {
    fn info(&self) -> &NodeInfo {
        self.node.info()
    }

    fn size(&self) -> u64 {
        self.node.size()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        self.node.read(offset, buf)
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let end = offset + len;
            // The first range that ends behind the start.
            let next = self.marks.partition_point(|(at, n, _)| at + n <= offset);
            let Some(&(at, n, flags)) = self.marks.get(next) else {
                return Ok(Extent::stored(len, Some(offset)));
            };
            let len = (at + n).min(end) - offset;
            let zero = flags & ZERO != 0;
            Ok(match flags & HOLE {
                0 => Extent { zero, ..Extent::stored(len, Some(offset)) },
                _ => Extent { zero, ..Extent::hole(len) },
            })
        })
    }

    fn close(&self) -> Io<'_, ()> {
        self.node.close()
    }
}
