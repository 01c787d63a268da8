//! Virtio memory balloon with statistics and free page reporting (Virtio 1.2, 5.5).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plinth_memory::{GuestRam, PAGE_SIZE};

use crate::device::read_config_bytes;
use crate::queue::Chain;
use crate::{Activation, DeviceKind, Error, Interrupt, VirtQueue, VirtioDevice};

const QUEUE_SIZE: u16 = 128;

/// Feature bits (Virtio 1.2, 5.5.3).
mod feature {
    pub(super) const STATS_VQ: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// The most page numbers of one inflate request; drivers send 256 or 1,024.
const MAX_PAGES: usize = 4096;
/// The most statistics a driver can send; the specification knows sixteen.
const MAX_STATS: usize = 64;
/// Offset of `actual` in the configuration structure.
const ACTUAL: usize = 4;

/// Takes guest memory back that the guest does not use.
pub trait PageReclaim: Send + Sync {
    /// The guest has no use for the contents of `gpa .. gpa + len`, in bytes, any more; they may read as zeros
    /// from now on. The guest chose the range: it need not be RAM nor aligned.
    fn release(&self, gpa: u64, len: u64);
}

impl PageReclaim for GuestRam {
    fn release(&self, gpa: u64, len: u64) {
        // What is not RAM, or what the host does not want back, just stays.
        let _ = self.release(gpa, len);
    }
}

/// How a balloon looks to its guest.
#[derive(Clone, Debug)]
pub struct BalloonConfig {
    /// Bytes the guest is to give up from the start.
    pub target: u64,
    /// The guest takes pages back rather than run out of memory.
    pub deflate_on_oom: bool,
    /// The guest reports free pages, which go back to the host until they are used again.
    pub free_page_reporting: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { target: 0, deflate_on_oom: true, free_page_reporting: true }
    }
}

/// One of the guest's memory statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonStat {
    /// What it is: `VIRTIO_BALLOON_S_*` (Virtio 1.2, 5.5.6.3), such as 4 for free memory.
    pub tag: u16,
    /// Bytes, or a count.
    pub value: u64,
}

/// The statistics queue: its one buffer stays with the device until new statistics are wanted.
#[derive(Default)]
struct Stats {
    queue: Option<VirtQueue>,
    chain: Chain,
    held: Option<u16>,
    last: Vec<BalloonStat>,
}

#[derive(Default)]
struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    interrupt: Mutex<Option<Interrupt>>,
    stats: Mutex<Stats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The manager's end of a balloon. Works at any time; without a driver nothing happens.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to give up `bytes` in all, rounded down to pages.
    pub fn set_target(&self, bytes: u64) {
        self.0.target_pages.store(pages(bytes), Ordering::SeqCst);
        let interrupt = lock(&self.0.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Bytes the guest says it has given up.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual_pages.load(Ordering::SeqCst)) * PAGE_SIZE
    }

    /// The statistics the guest sent last.
    #[must_use]
    pub fn stats(&self) -> Vec<BalloonStat> {
        lock(&self.0.stats).last.clone()
    }

    /// Asks the guest for new statistics, which come a little later.
    pub fn request_stats(&self) {
        let Some(interrupt) = lock(&self.0.interrupt).clone() else { return };
        if let Err(e) = lock(&self.0.stats).request(&interrupt) {
            interrupt.fail(&e);
        }
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

impl Stats {
    fn request(&mut self, interrupt: &Interrupt) -> Result<(), Error> {
        if let (Some(queue), Some(head)) = (&mut self.queue, self.held.take()) {
            queue.add_used(head, 0)?;
            signal(queue, interrupt)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Error> {
        const STAT: usize = 10;
        let Some(queue) = &mut self.queue else { return Ok(()) };
        loop {
            while queue.pop(&mut self.chain)? {
                if let Some(older) = self.held.replace(self.chain.head()) {
                    // A driver has one buffer there; a second one pushes the first out.
                    queue.add_used(older, 0)?;
                }
                let mut bytes = [0; MAX_STATS * STAT];
                let n = self.chain.read(queue.memory(), 0, &mut bytes)?;
                let stat = |b: &[u8; STAT]| {
                    let [t0, t1, value @ ..] = *b;
                    BalloonStat { tag: u16::from_le_bytes([t0, t1]), value: u64::from_le_bytes(value) }
                };
                self.last = bytes[..n].as_chunks().0.iter().map(stat).collect();
            }
            if !queue.enable_kicks()? {
                return Ok(());
            }
        }
    }
}

/// What a queue of the balloon is for; which there are depends on the negotiated features.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
}

struct Active {
    queues: Vec<(Role, Option<VirtQueue>)>,
    interrupt: Interrupt,
}

/// A memory balloon. It works on the vCPU's thread: giving pages back takes microseconds.
pub struct Balloon {
    // Fixed.
    config: BalloonConfig,
    // Of the host.
    reclaim: Arc<dyn PageReclaim>,
    shared: Arc<Shared>,
    chain: Chain,
    // Of an activation.
    active: Option<Active>,
}

impl Balloon {
    /// Makes a balloon that gives pages back through `reclaim`, and its handle.
    #[must_use]
    pub fn new(config: BalloonConfig, reclaim: Arc<dyn PageReclaim>) -> (Self, BalloonHandle) {
        let shared = Arc::new(Shared::default());
        shared.target_pages.store(pages(config.target), Ordering::SeqCst);
        let handle = BalloonHandle(Arc::clone(&shared));
        (Self { config, reclaim, shared, chain: Chain::default(), active: None }, handle)
    }

    fn serve(&mut self, index: usize) -> Result<(), Error> {
        let Some(Active { queues, interrupt }) = &mut self.active else { return Ok(()) };
        let Some((role, queue)) = queues.get_mut(index) else { return Ok(()) };
        if *role == Role::Stats {
            return lock(&self.shared.stats).receive();
        }
        let Some(queue) = queue else { return Ok(()) };
        loop {
            while queue.pop(&mut self.chain)? {
                match role {
                    Role::Inflate => inflate(queue, &self.chain, self.reclaim.as_ref())?,
                    Role::Reporting => {
                        for s in self.chain.writable() {
                            self.reclaim.release(s.start.0, s.len as u64);
                        }
                    }
                    // The guest's next access brings a page back.
                    Role::Deflate | Role::Stats => {}
                }
                queue.add_used(self.chain.head(), 0)?;
            }
            if !queue.enable_kicks()? {
                break;
            }
        }
        signal(queue, interrupt)
    }
}

fn signal(queue: &mut VirtQueue, interrupt: &Interrupt) -> Result<(), Error> {
    if queue.needs_interrupt()? {
        interrupt.queue_used(queue.index());
    }
    Ok(())
}

/// Releases the pages whose numbers the chain holds, neighbours together.
fn inflate(queue: &VirtQueue, chain: &Chain, reclaim: &dyn PageReclaim) -> Result<(), Error> {
    let len = chain.readable_len();
    if len > MAX_PAGES * 4 {
        return Err(Error::Chain { head: chain.head(), reason: "it inflates by more than 4096 pages" });
    }
    let mut bytes = vec![0; len];
    chain.read(queue.memory(), 0, &mut bytes)?;
    let mut numbers: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| b - a <= 1) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            reclaim.release(u64::from(*first) * PAGE_SIZE, u64::from(last - first + 1) * PAGE_SIZE);
        }
    }
    Ok(())
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let mut features = feature::STATS_VQ;
        if self.config.deflate_on_oom {
            features |= feature::DEFLATE_ON_OOM;
        }
        if self.config.free_page_reporting {
            features |= feature::REPORTING;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; if self.config.free_page_reporting { 4 } else { 3 }]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 16];
        space[0..4].copy_from_slice(&self.shared.target_pages.load(Ordering::SeqCst).to_le_bytes());
        space[4..8].copy_from_slice(&self.shared.actual_pages.load(Ordering::SeqCst).to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let mut actual = self.shared.actual_pages.load(Ordering::SeqCst).to_le_bytes();
        for (i, &value) in data.iter().enumerate() {
            let at = offset.checked_add(i).and_then(|at| at.checked_sub(ACTUAL));
            if let Some(byte) = at.and_then(|at| actual.get_mut(at)) {
                *byte = value;
            }
        }
        self.shared.actual_pages.store(u32::from_le_bytes(actual), Ordering::SeqCst);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        // Queues of features that were not accepted do not exist and take no index.
        let mut roles = vec![Role::Inflate, Role::Deflate];
        if activation.features & feature::STATS_VQ != 0 {
            roles.push(Role::Stats);
        }
        if activation.features & feature::REPORTING != 0 {
            roles.push(Role::Reporting);
        }
        let mut queues: Vec<_> = roles.into_iter().zip(activation.queues).collect();
        let stats = queues.iter_mut().find(|(role, _)| *role == Role::Stats);
        lock(&self.shared.stats).queue = stats.and_then(|(_, queue)| queue.take());
        *lock(&self.shared.interrupt) = Some(activation.interrupt.clone());
        self.active = Some(Active { queues, interrupt: activation.interrupt });
        Ok(())
    }

    fn queue_notify(&mut self, queue: u16) {
        if let Err(e) = self.serve(usize::from(queue))
            && let Some(active) = self.active.take()
        {
            active.interrupt.fail(&e);
        }
    }

    fn reset(&mut self) {
        self.active = None;
        *lock(&self.shared.interrupt) = None;
        let mut stats = lock(&self.shared.stats);
        stats.queue = None;
        stats.held = None;
        self.shared.actual_pages.store(0, Ordering::SeqCst);
    }
}
