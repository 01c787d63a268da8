//! One block request: from its descriptor chain to its status byte (Virtio 1.2, 5.2.6).

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use plinth_device::{BlockBackend, BlockError, BlockErrorKind};
use plinth_memory::io::{drain_slices, fill_slices};
use plinth_memory::{GuestMemory, PageTracker};
use vm_memory::{Bytes, VolatileSlice};

use crate::Error;
use crate::queue::Chain;

/// Bytes of a sector in requests, whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Bytes of the device's identity.
pub(super) const ID_BYTES: usize = 20;
/// The most ranges of a discard or write-zeroes request, and the most sectors of each: 2 GiB.
pub(super) const MAX_RANGES: usize = 64;
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

const HEADER: usize = 16;
const RANGE: usize = 16;
/// The most buffers of one vectored call of the host (`IOV_MAX` of Linux).
const MAX_VECTORS: usize = 1024;
/// Bytes of the buffer that stands in for buffers of the guest's that overlap.
const BOUNCE: usize = 64 << 10;

mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

const WRITE_ZEROES_UNMAP: u32 = 1;

/// How a request ended, as the status byte says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// Why a request did not end well.
enum Failure {
    /// The guest gets this status.
    Status(Status),
    /// The queue is broken.
    Queue(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Queue(e)
    }
}

impl From<BlockError> for Failure {
    fn from(e: BlockError) -> Self {
        Self::Status(match e.kind {
            BlockErrorKind::Unsupported => Status::Unsupported,
            _ => Status::IoErr,
        })
    }
}

const IO_ERROR: Failure = Failure::Status(Status::IoErr);

/// A disk as requests see it.
pub(crate) struct Disk {
    backend: Arc<dyn BlockBackend>,
    size: u64,
    read_only: bool,
    id: [u8; ID_BYTES],
}

impl Disk {
    /// `serial` is cut after 20 bytes.
    pub(crate) fn new(backend: Arc<dyn BlockBackend>, serial: &str) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let (size, read_only) = (backend.size(), backend.read_only());
        Self { backend, size, read_only, id }
    }

    /// Serves the request in `chain`. Returns how many bytes of its writable part were written, and how many
    /// bytes of data it moved.
    ///
    /// # Errors
    /// The chain has no room for a header and a status: the driver is broken.
    pub(super) fn serve(&self, memory: &GuestMemory, chain: &Chain) -> Result<(usize, usize), Error> {
        let broken = |reason| Error::Chain { head: chain.head(), reason };
        let mut header = [0; HEADER];
        if chain.read(memory, 0, &mut header)? < HEADER {
            return Err(broken("a block request has no header"));
        }
        let status_at = chain
            .writable_len()
            .checked_sub(1)
            .ok_or_else(|| broken("a block request has no status byte"))?;
        let (written, moved, status) = match self.execute(memory, chain, header, status_at) {
            Ok((written, moved)) => (written, moved, Status::Ok),
            Err(Failure::Status(status)) => (0, 0, status),
            Err(Failure::Queue(e)) => return Err(e),
        };
        chain.write(memory, status_at, &[status as u8])?;
        // The used length promises that all bytes up to it were written, so it counts the status only where
        // nothing is missing before it (Virtio 1.2, 2.7.8.2).
        Ok((if written == status_at { written + 1 } else { written }, moved))
    }

    /// Bytes written to the chain, and bytes moved.
    fn execute(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        header: [u8; HEADER],
        room: usize,
    ) -> Result<(usize, usize), Failure> {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let payload = chain.readable_len() - HEADER;
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            kind::IN => {
                let offset = self.range(sector, room as u64)?;
                self.read(memory, chain, offset, room)?;
                Ok((room, room))
            }
            kind::OUT => {
                let offset = self.writable_range(sector, payload as u64)?;
                self.write(memory, chain, offset, payload)?;
                Ok((0, payload))
            }
            kind::FLUSH => {
                self.backend.flush()?;
                Ok((0, 0))
            }
            kind::GET_ID => {
                let n = room.min(ID_BYTES);
                chain.write(memory, 0, &self.id[..n])?;
                Ok((n, 0))
            }
            kind @ (kind::DISCARD | kind::WRITE_ZEROES) => {
                self.clear_ranges(memory, chain, payload, kind == kind::WRITE_ZEROES)?;
                Ok((0, 0))
            }
            _ => Err(Failure::Status(Status::Unsupported)),
        }
    }

    /// The byte offset of `len` bytes at `sector`, if they are whole sectors on the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(IO_ERROR)?;
        let end = offset.checked_add(len).ok_or(IO_ERROR)?;
        if end > self.size || !len.is_multiple_of(SECTOR) { Err(IO_ERROR) } else { Ok(offset) }
    }

    fn writable_range(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        if self.read_only { Err(IO_ERROR) } else { self.range(sector, len) }
    }

    fn read(&self, memory: &GuestMemory, chain: &Chain, offset: u64, len: usize) -> Result<(), Failure> {
        let slices = chain.writable_slices(memory, 0, len)?;
        let mut at = offset;
        for part in slices.chunks(MAX_VECTORS) {
            match fill_slices(part, |vecs| self.backend.read_at(at, vecs)) {
                Some(result) => result?,
                None => self.read_overlapping(part, at)?,
            }
            at += bytes(part);
        }
        Ok(())
    }

    /// No driver needs this: its buffers overlap. It is still served, in order, and costs no more memory.
    fn read_overlapping(&self, slices: &[VolatileSlice<'_, PageTracker>], at: u64) -> Result<(), Failure> {
        let mut at = at;
        let mut buffer = vec![0; BOUNCE];
        for slice in slices {
            let mut done = 0;
            while done < slice.len() {
                let n = (slice.len() - done).min(BOUNCE);
                self.backend.read_at(at, &mut [IoSliceMut::new(&mut buffer[..n])])?;
                slice.write_slice(&buffer[..n], done).map_err(|_| IO_ERROR)?;
                done += n;
                at += n as u64;
            }
        }
        Ok(())
    }

    fn write(&self, memory: &GuestMemory, chain: &Chain, offset: u64, len: usize) -> Result<(), Failure> {
        let slices = chain.readable_slices(memory, HEADER, len)?;
        let mut at = offset;
        for part in slices.chunks(MAX_VECTORS) {
            drain_slices(part, |vecs: &[IoSlice<'_>]| self.backend.write_at(at, vecs))?;
            at += bytes(part);
        }
        Ok(())
    }

    /// Discards, or writes zeros to, each range of the payload (Virtio 1.2, 5.2.6.2).
    fn clear_ranges(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        payload: usize,
        zeroes: bool,
    ) -> Result<(), Failure> {
        if self.read_only || !payload.is_multiple_of(RANGE) || payload > MAX_RANGES * RANGE {
            return Err(IO_ERROR);
        }
        let mut buffer = [0; MAX_RANGES * RANGE];
        let ranges = &mut buffer[..payload];
        chain.read(memory, HEADER, ranges)?;
        for range in ranges.as_chunks::<RANGE>().0 {
            let [start @ .., n0, n1, n2, n3, f0, f1, f2, f3] = *range;
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            let allowed = if zeroes { WRITE_ZEROES_UNMAP } else { 0 };
            if flags & !allowed != 0 {
                return Err(Failure::Status(Status::Unsupported));
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(IO_ERROR);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.writable_range(u64::from_le_bytes(start), len)?;
            if zeroes {
                self.backend.write_zeroes(offset, len, flags & WRITE_ZEROES_UNMAP != 0)?;
            } else {
                self.backend.discard(offset, len)?;
            }
        }
        Ok(())
    }
}

fn bytes(slices: &[VolatileSlice<'_, PageTracker>]) -> u64 {
    slices.iter().map(|s| s.len() as u64).sum()
}
