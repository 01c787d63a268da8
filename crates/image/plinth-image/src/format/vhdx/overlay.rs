//! A file as it will be when its log has been replayed, for who may only read it.

use super::header::SECTOR;
use super::log::Replay;
use crate::graph::{Extent, Io, IoBuf, NodeInfo, NodeRef, ReadNode};

/// Sectors of the log over the file.
pub struct Replayed {
    info: NodeInfo,
    file: NodeRef,
    replay: Replay,
}

impl Replayed {
    pub fn new(file: NodeRef, replay: Replay) -> Self {
        Self { info: NodeInfo { read_only: true, ..file.info().clone() }, file, replay }
    }
}

/// What of `[at, at + len)` is in `[offset, offset + buf)`, as a range of the buffer and one of the piece.
fn common(at: u64, len: u64, offset: u64, buf: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let from = at.max(offset);
    let to = (at + len).min(offset + buf as u64);
    (from < to).then(|| ((from - offset) as usize..(to - offset) as usize, (from - at) as usize))
}

impl ReadNode for Replayed {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.file.size().max(self.replay.file_len.min(i64::MAX as u64))
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let mut buf = self.file.read(offset, buf).await?;
            let len = buf.len();
            for &(at, n) in &self.replay.zeros {
                if let Some((range, _)) = common(at, n, offset, len) {
                    buf[range].fill(0);
                }
            }
            let first = offset.saturating_sub(SECTOR as u64);
            for (&at, sector) in self.replay.sectors.range(first..offset + len as u64) {
                if let Some((range, from)) = common(at, SECTOR as u64, offset, len) {
                    let n = range.len();
                    buf[range].copy_from_slice(&sector[from..from + n]);
                }
            }
            Ok(buf)
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        // The log has metadata alone; where it goes over data, nothing is claimed.
        Box::pin(
            async move { Ok(Extent { zero: false, data: true, ..self.file.status(offset, len).await? }) },
        )
    }

    fn close(&self) -> Io<'_, ()> {
        self.file.close()
    }
}
