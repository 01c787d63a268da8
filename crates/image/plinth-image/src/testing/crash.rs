//! Power cuts.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::{Random, Record, Shadow, SimOutput, Workload, World};
use crate::format::{
    CheckReport, CreateRequest, Driver, Image, OpenOptions, OpenRequest, Options, Progress, Repair,
};
use crate::graph::{MemoryNode, Node};
use crate::{Error, SECTOR};

const NAME: &str = "image";

/// A file as a power cut left it.
pub struct Cut {
    /// The image's main file comes first.
    pub files: Vec<(String, MemoryNode)>,
    /// When it happened.
    pub at: usize,
}

/// Power cuts at random points of a record, the earliest first. Each leaves everything that a flush covered, and
/// of the rest a random part, torn at sectors.
pub struct Cuts<'a> {
    names: &'a [String],
    records: &'a [Record],
    /// When each request was complete.
    done: HashMap<u64, usize>,
    /// The cuts to come, the last one first.
    places: Vec<usize>,
    /// What follows is as of this time.
    now: usize,
    /// For each file, the latest time up to which all that completed is safe; and what is safe.
    safe: Vec<usize>,
    files: Vec<MemoryNode>,
    flushes: HashMap<u64, (usize, usize)>,
    /// Changes that are not safe, in the order of their submission.
    unsafe_changes: Vec<usize>,
    random: Random,
}

impl<'a> Cuts<'a> {
    /// So many cuts of the work that began at `begin`.
    #[must_use]
    pub fn new(
        names: &'a [String],
        records: &'a [Record],
        begin: usize,
        cuts: usize,
        mut random: Random,
    ) -> Self {
        let mut done = HashMap::new();
        for (n, record) in records.iter().enumerate() {
            if let Record::Done { id } = record {
                done.insert(*id, n);
            }
        }
        let mut places: Vec<_> =
            (0..cuts).map(|_| begin + random.below((records.len() - begin + 1) as u64) as usize).collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        let files = names.iter().map(|name| MemoryNode::new(name)).collect();
        let (safe, flushes, unsafe_changes) = (vec![0; names.len()], HashMap::new(), Vec::new());
        Self { names, records, done, places, now: 0, safe, files, flushes, unsafe_changes, random }
    }

    /// Takes what happened until `at` into account.
    fn advance(&mut self, at: usize) {
        for n in self.now..at {
            match &self.records[n] {
                Record::Write { .. } | Record::Zero { .. } | Record::Resize { .. } => {
                    self.unsafe_changes.push(n);
                }
                Record::FlushStart { id, file } => drop(self.flushes.insert(*id, (n, *file))),
                Record::Done { id } => {
                    if let Some((start, file)) = self.flushes.remove(id) {
                        self.safe[file] = self.safe[file].max(start);
                    }
                }
                Record::Tick => {}
            }
        }
        self.now = at;
        let Self { records, done, safe, files, random, .. } = self;
        self.unsafe_changes.retain(|&n| {
            let Some((id, file)) = records[n].change() else { return false };
            let is_safe = done.get(&id).is_some_and(|&d| d < safe[file]);
            if is_safe {
                apply(&records[n], &files[file], false, random);
            }
            !is_safe
        });
    }
}

impl Iterator for Cuts<'_> {
    type Item = Cut;

    fn next(&mut self) -> Option<Cut> {
        let at = self.places.pop()?;
        self.advance(at);
        let files: Vec<_> = self.names.iter().cloned().zip(self.files.iter().cloned()).collect();
        // A cut loses nothing, everything, or about a half of what is not safe.
        let keep = self.random.below(4);
        for &n in &self.unsafe_changes {
            let Some((_, file)) = self.records[n].change() else { continue };
            let kept = match keep {
                0 => false,
                1 => true,
                _ => self.random.one_in(2),
            };
            if kept {
                let torn = self.random.one_in(5);
                apply(&self.records[n], &files[file].1, torn, &mut self.random);
            }
        }
        Some(Cut { files, at })
    }
}

fn apply(record: &Record, file: &MemoryNode, torn: bool, random: &mut Random) {
    match record {
        Record::Write { offset, data, .. } if torn => {
            for (n, sector) in data.chunks(SECTOR as usize).enumerate() {
                if random.one_in(2) {
                    file.put(offset + n as u64 * SECTOR, sector);
                }
            }
        }
        Record::Write { offset, data, .. } => file.put(*offset, data),
        Record::Zero { offset, len, .. } => {
            file.clear(*offset, *len);
            file.set_size(file.size().max(offset + len));
        }
        Record::Resize { size, .. } => file.set_size(*size),
        Record::Done { .. } | Record::FlushStart { .. } | Record::Tick => {}
    }
}

/// What both kinds of tests begin with.
#[derive(Clone)]
pub struct Subject {
    /// The format.
    pub driver: &'static Driver,
    /// Its options, as users write them.
    pub options: String,
    /// Bytes of the disk.
    pub size: u64,
    /// The passphrase, for formats with encryption.
    pub secret: Option<Rc<[u8]>>,
}

impl Subject {
    pub(super) async fn create(&self, world: &World) -> Result<Rc<dyn Image>, Error> {
        let output = SimOutput { name: NAME.to_owned(), world: world.clone(), count: Rc::new(Cell::new(0)) };
        let options = Options::parse(&self.options)?;
        options.check(self.driver.options)?;
        let create = self.driver.create.expect("the format can be written");
        let request = CreateRequest {
            output: &output,
            size: self.size,
            options: &options,
            backing: None,
            secret: self.secret.as_deref(),
        };
        let image = create(request).await?;
        image.flush().await?;
        Ok(image)
    }

    pub(super) async fn open(&self, world: &World) -> Result<Rc<dyn Image>, Error> {
        let file = world.file(NAME).expect("there is an image");
        let options = OpenOptions {
            format: Some(self.driver.format),
            secret: self.secret.clone(),
            ..OpenOptions::default()
        };
        (self.driver.open)(OpenRequest { file, links: Rc::new(world.clone()), options }).await
    }

    /// Checks an image that was opened again, and its contents.
    pub(super) async fn judge(
        &self,
        image: &dyn Image,
        shadow: &Shadow,
        cut: Option<usize>,
    ) -> Result<(), String> {
        shadow.verify(image, cut).await?;
        if let Some(report) = check(image).await?
            && !report.is_clean()
        {
            return Err(format!("the check finds {report:?}"));
        }
        Ok(())
    }
}

/// `None` if the format has nothing to check.
async fn check(image: &dyn Image) -> Result<Option<CheckReport>, String> {
    match image.check(Repair::No, &Progress::default()).await {
        Ok(report) => Ok(Some(report)),
        Err(e) if e.kind == crate::ErrorKind::Unsupported => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Random work, cut off at random points.
#[derive(Clone)]
pub struct CrashTest {
    /// What is tested.
    pub subject: Subject,
    /// The work.
    pub work: Workload,
    /// Power cuts, each of another place in the same work.
    pub cuts: usize,
}

impl CrashTest {
    /// Work for one format and its options, on a disk of `size` bytes.
    #[must_use]
    pub fn new(driver: &'static Driver, options: &str, size: u64, seed: u64, cuts: usize) -> Self {
        let subject = Subject { driver, options: options.to_owned(), size, secret: None };
        Self { subject, work: Workload::new(seed, 150), cuts }
    }

    /// Does it all. `look` sees each cut's files before they are opened, for other checkers.
    ///
    /// # Errors
    /// What was wrong after which cut.
    pub async fn run(&self, mut look: impl FnMut(&Cut) -> Result<(), String>) -> Result<(), String> {
        let world = World::new(self.work.seed);
        let image = self.subject.create(&world).await.map_err(|e| e.to_string())?;
        let shadow = Shadow::default();
        let begin = world.now();
        self.work.run(&*image, &shadow, &|| world.tick()).await?;
        shadow.verify(&*image, None).await?;
        image.close().await.map_err(|e| e.to_string())?;
        let (records, names) = (world.records(), world.names());
        let random = Random::new(self.work.seed ^ 0x5eed);
        for (n, cut) in Cuts::new(&names, &records, begin, self.cuts, random).enumerate() {
            let at = cut.at;
            let failed = |e: String| {
                let Subject { driver, options, .. } = &self.subject;
                format!("{} ({options}), seed {}, cut {n} at {at}: {e}", driver.format, self.work.seed)
            };
            look(&cut).map_err(failed)?;
            let mut after = World::new(n as u64);
            (after.slow, after.record) = (false, false);
            for (name, memory) in cut.files {
                after.add(&name, memory);
            }
            let image = self.subject.open(&after).await.map_err(|e| failed(e.to_string()))?;
            self.subject.judge(&*image, &shadow, Some(at)).await.map_err(failed)?;
            image.close().await.map_err(|e| failed(e.to_string()))?;
        }
        Ok(())
    }
}
