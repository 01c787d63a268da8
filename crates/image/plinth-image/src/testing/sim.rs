//! Files in memory whose requests take random time, fail when told to, and are recorded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::Random;
use crate::format::{BackingLink, Image, Links, Output};
use crate::graph::{Extent, Io, IoBuf, IoData, MemoryNode, Node, NodeInfo, NodeRef};
use crate::{Error, ErrorKind};

/// What happened to the files, in order.
#[derive(Clone, Debug)]
pub enum Record {
    /// A write was submitted.
    Write { id: u64, file: usize, offset: u64, data: IoData },
    /// A range was to become zeros.
    Zero { id: u64, file: usize, offset: u64, len: u64 },
    /// A file was to change its size.
    Resize { id: u64, file: usize, size: u64 },
    /// The request with this number was complete.
    Done { id: u64 },
    /// A flush of a file was submitted.
    FlushStart { id: u64, file: usize },
    /// Somebody looked at the clock.
    Tick,
}

impl Record {
    /// The request and the file, if it changes one.
    #[must_use]
    pub fn change(&self) -> Option<(u64, usize)> {
        match self {
            Self::Write { id, file, .. } | Self::Zero { id, file, .. } | Self::Resize { id, file, .. } => {
                Some((*id, *file))
            }
            Self::Done { .. } | Self::FlushStart { .. } | Self::Tick => None,
        }
    }
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// EIO, and nothing was done.
    Io,
    /// ENOSPC, and nothing was done.
    NoSpace,
    /// A part was done, and no more can be.
    Short,
    /// All was done, but the answer was lost, as by EINTR.
    Interrupted,
}

#[derive(Debug)]
struct State {
    random: Random,
    records: Vec<Record>,
    next: u64,
    /// Requests so far that can fail, which of them does next, and how many requests later another one does.
    requests: u64,
    fail_at: Option<u64>,
    fail_step: Option<u64>,
    /// How many failed.
    failures: u64,
    names: Vec<String>,
}

/// All files of one image, and what happens to them.
#[derive(Clone, Debug)]
pub struct World {
    state: Rc<RefCell<State>>,
    files: Rc<RefCell<BTreeMap<String, Rc<SimNode>>>>,
    /// Requests take random time; without it all are done at once.
    pub slow: bool,
    /// Everything is recorded.
    pub record: bool,
}

impl World {
    /// No files.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            records: Vec::new(),
            next: 0,
            requests: 0,
            fail_at: None,
            fail_step: None,
            failures: 0,
            names: Vec::new(),
        };
        Self { state: Rc::new(RefCell::new(state)), files: Rc::default(), slow: true, record: true }
    }

    /// Lets the `n`th request from now on fail (0: the next), and no other.
    pub fn fail_after(&self, n: Option<u64>) {
        let mut state = self.state.borrow_mut();
        state.fail_at = n.map(|n| state.requests + n);
        state.fail_step = None;
    }

    /// Lets the `n`th request from now on fail, and every `step`th after it.
    pub fn fail_every(&self, n: u64, step: u64) {
        self.fail_after(Some(n));
        self.state.borrow_mut().fail_step = Some(step);
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.borrow().requests
    }

    /// How many requests failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.state.borrow().failures
    }

    /// Length of the record.
    #[must_use]
    pub fn now(&self) -> usize {
        self.state.borrow().records.len()
    }

    /// A time that no other event has, as a place in the record.
    #[must_use]
    pub fn tick(&self) -> usize {
        let mut state = self.state.borrow_mut();
        state.records.push(Record::Tick);
        state.records.len()
    }

    /// The record.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.state.borrow().records.clone()
    }

    /// Names of files, by number.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.state.borrow().names.clone()
    }

    /// A file that is there.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<Rc<SimNode>> {
        self.files.borrow().get(name).cloned()
    }

    /// Adds a file with contents.
    pub fn add(&self, name: &str, memory: MemoryNode) -> Rc<SimNode> {
        let mut state = self.state.borrow_mut();
        let number = state.names.len();
        state.names.push(name.to_owned());
        drop(state);
        // Without the files, which would never be freed if they had each other.
        let world = Self { files: Rc::default(), ..self.clone() };
        let node = Rc::new(SimNode { number, memory, world });
        self.files.borrow_mut().insert(name.to_owned(), node.clone());
        node
    }

    fn log(&self, make: impl FnOnce(u64) -> Record) -> u64 {
        let mut state = self.state.borrow_mut();
        let id = state.next;
        state.next += 1;
        if self.record {
            state.records.push(make(id));
        }
        id
    }

    fn done(&self, id: u64) {
        if self.record {
            self.state.borrow_mut().records.push(Record::Done { id });
        }
    }

    /// Counts a request: whether and how it is to fail.
    fn count(&self) -> Option<Failure> {
        let mut state = self.state.borrow_mut();
        let n = state.requests;
        state.requests += 1;
        if state.fail_at != Some(n) {
            return None;
        }
        state.fail_at = state.fail_step.map(|step| n + step);
        state.failures += 1;
        // Each kind in turn, whatever the distance between failures.
        Some(match (n + state.failures) % 4 {
            0 => Failure::Io,
            1 => Failure::NoSpace,
            2 => Failure::Short,
            _ => Failure::Interrupted,
        })
    }

    /// Lets others go first, a random number of times.
    async fn delay(&self) {
        if !self.slow {
            return;
        }
        let mut turns = self.state.borrow_mut().random.below(6);
        poll_fn(|cx| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// A file of a [`World`].
#[derive(Debug)]
pub struct SimNode {
    number: usize,
    /// The contents.
    pub memory: MemoryNode,
    world: World,
}

impl SimNode {
    fn failed(&self, how: Failure) -> Error {
        let kind = if how == Failure::NoSpace { ErrorKind::NoSpace } else { ErrorKind::Io };
        let context = format!("cannot use '{}'", self.memory.info().name);
        Error::new(kind, context, format!("the test says so ({how:?})"))
    }

    /// One request that changes the file. A write that fails may have changed any of its sectors. `apply` is told
    /// how many halves of it to do.
    async fn change(
        &self,
        record: impl FnOnce(u64) -> Record,
        apply: impl FnOnce(&MemoryNode, u64),
    ) -> Result<(), Error> {
        let w = &self.world;
        let id = w.log(record);
        w.delay().await;
        let failure = w.count();
        let halves = match failure {
            None | Some(Failure::Interrupted) => 2,
            Some(Failure::Short) => 1,
            Some(Failure::Io | Failure::NoSpace) => 0,
        };
        apply(&self.memory, halves);
        w.delay().await;
        match failure {
            Some(how) => Err(self.failed(how)),
            None => {
                w.done(id);
                Ok(())
            }
        }
    }
}

impl Node for SimNode {
    fn info(&self) -> &NodeInfo {
        self.memory.info()
    }

    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            self.world.delay().await;
            if let Some(how) = self.world.count() {
                return Err(self.failed(how));
            }
            self.memory.get(offset, &mut buf);
            self.world.delay().await;
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            let (file, copy) = (self.number, data.clone());
            self.change(
                |id| Record::Write { id, file, offset, data: copy },
                |memory, halves| {
                    let n = if halves == 2 { data.len() } else { data.len() / 1024 * 512 * halves as usize };
                    if n > 0 {
                        memory.put(offset, &data[..n]);
                    }
                },
            )
            .await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            let file = self.number;
            self.change(
                |id| Record::Zero { id, file, offset, len },
                |memory, halves| {
                    let len = if halves == 2 { len } else { len / 1024 * 512 * halves };
                    if len > 0 {
                        memory.clear(offset, len);
                        memory.set_size(memory.size().max(offset + len));
                    }
                },
            )
            .await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        let end = self.size().min(offset.saturating_add(len));
        self.write_zeroes(offset, end.saturating_sub(offset), true)
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            let file = self.number;
            self.change(|id| Record::FlushStart { id, file }, |_, _| {}).await
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        self.memory.status(offset, len)
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            let file = self.number;
            self.change(
                |id| Record::Resize { id, file, size },
                |memory, halves| {
                    if halves == 2 {
                        memory.set_size(size);
                    }
                },
            )
            .await
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn is_open_ended(&self) -> bool {
        true
    }
}

/// Makes new files in a world, and finds them again.
#[derive(Clone, Debug)]
pub struct SimOutput {
    /// Name of the main file.
    pub name: String,
    /// Where.
    pub world: World,
    /// Made so far.
    pub count: Rc<Cell<usize>>,
}

impl Output for SimOutput {
    fn name(&self) -> &str {
        &self.name
    }

    fn main(&self) -> Io<'_, NodeRef> {
        self.sibling(&self.name)
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            self.count.set(self.count.get() + 1);
            Ok(self.world.add(name, MemoryNode::new(name)) as NodeRef)
        })
    }
}

impl Links for World {
    fn open_file<'a>(&'a self, name: &'a str, _read_only: bool) -> Io<'a, NodeRef> {
        Box::pin(async move {
            let file = self.file(name).map(|f| f as NodeRef);
            file.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("cannot open '{name}'"), "it is not there")
            })
        })
    }

    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>> {
        Box::pin(async move {
            let file = self.open_file(&link.name, true).await?;
            let format = link.format.unwrap_or(crate::format::Format::Raw);
            let options =
                crate::format::OpenOptions { format: Some(format), read_only: true, ..Default::default() };
            let driver = format.driver().ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, format!("cannot open '{}'", link.name), "no such format")
            })?;
            let links = Rc::new(self.clone());
            (driver.open)(crate::format::OpenRequest { file, links, options }).await
        })
    }

    fn candidates(&self, suffix: &str) -> Vec<String> {
        self.files.borrow().keys().filter(|n| n.ends_with(suffix)).cloned().collect()
    }
}
