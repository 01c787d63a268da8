//! Power cuts, and requests that fail.

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

/// What a cut at `at` leaves: everything that a flush covered, and of the rest a random part, torn at sectors.
#[must_use]
pub fn cut(names: &[String], records: &[Record], at: usize, random: &mut Random) -> Cut {
    let mut done = HashMap::new();
    for (n, record) in records[..at].iter().enumerate() {
        if let Record::Done { id } = record {
            done.insert(*id, n);
        }
    }
    // For each file, the latest time up to which everything completed is safe.
    let mut safe = vec![0; names.len()];
    for (n, record) in records[..at].iter().enumerate() {
        if let Record::FlushStart { id, file } = record
            && done.contains_key(id)
        {
            safe[*file] = n;
        }
    }
    let files: Vec<_> = names.iter().map(|name| (name.clone(), MemoryNode::new(name))).collect();
    let is_safe = |id: &u64, file: &usize| done.get(id).is_some_and(|&d| d < safe[*file]);
    // A cut loses nothing, everything, or about a half of what is not safe.
    let keep = random.below(4);
    // What is safe in the order of its completion, and the rest in any order that respects submission.
    for want_safe in [true, false] {
        for record in &records[..at] {
            let (Record::Write { id, file, .. }
            | Record::Zero { id, file, .. }
            | Record::Resize { id, file, .. }) = record
            else {
                continue;
            };
            if is_safe(id, file) != want_safe {
                continue;
            }
            let kept = match keep {
                _ if want_safe => true,
                0 => false,
                1 => true,
                _ => random.one_in(2),
            };
            if kept {
                apply(record, &files[*file].1, !want_safe && random.one_in(5), random);
            }
        }
    }
    Cut { files, at }
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
    async fn create(&self, world: &World) -> Result<Rc<dyn Image>, Error> {
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

    async fn open(&self, world: &World) -> Result<Rc<dyn Image>, Error> {
        let file = world.file(NAME).expect("there is an image");
        let options = OpenOptions {
            format: Some(self.driver.format),
            secret: self.secret.clone(),
            ..OpenOptions::default()
        };
        (self.driver.open)(OpenRequest { file, links: Rc::new(world.clone()), options }).await
    }

    /// Checks an image that was opened again, and its contents.
    async fn judge(&self, image: &dyn Image, shadow: &Shadow, cut: Option<usize>) -> Result<(), String> {
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
        let mut random = Random::new(self.work.seed ^ 0x5eed);
        for n in 0..self.cuts {
            let at = begin + random.below((records.len() - begin + 1) as u64) as usize;
            let cut = cut(&names, &records, at, &mut random);
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

/// The same work again and again, with another request failing each time.
#[derive(Clone)]
pub struct FaultTest {
    /// What is tested.
    pub subject: Subject,
    /// The work.
    pub work: Workload,
    /// Requests to the files that are skipped between two failures: 1 lets each fail.
    pub step: u64,
}

impl FaultTest {
    /// Work for one format and its options, on a disk of `size` bytes.
    #[must_use]
    pub fn new(
        driver: &'static Driver,
        options: &str,
        size: u64,
        seed: u64,
        requests: usize,
        step: u64,
    ) -> Self {
        let subject = Subject { driver, options: options.to_owned(), size, secret: None };
        let work = Workload { may_fail: true, ..Workload::new(seed, requests) };
        Self { subject, work, step }
    }

    /// Does it all; how many requests failed.
    ///
    /// # Errors
    /// What was wrong after which failure.
    pub async fn run(&self) -> Result<u64, String> {
        let mut n = 0;
        let mut failures = 0;
        loop {
            let failed = |e: String| {
                let Subject { driver, options, .. } = &self.subject;
                format!("{} ({options}), seed {}, failure of request {n}: {e}", driver.format, self.work.seed)
            };
            let mut world = World::new(self.work.seed);
            world.record = false;
            let image = self.subject.create(&world).await.map_err(|e| failed(e.to_string()))?;
            world.fail_after(Some(n));
            let shadow = Shadow::default();
            let clock = Cell::new(0);
            let now = || {
                clock.set(clock.get() + 1);
                clock.get()
            };
            self.work.run(&*image, &shadow, &now).await.map_err(failed)?;
            // The end of the work fails too, if it comes to that.
            let _ = image.flush().await;
            if !world.has_failed() {
                return Ok(failures);
            }
            failures += 1;
            world.fail_after(None);
            shadow.verify(&*image, None).await.map_err(failed)?;
            image.close().await.map_err(|e| failed(e.to_string()))?;
            drop(image);
            let image = self.subject.open(&world).await.map_err(|e| failed(e.to_string()))?;
            self.subject.judge(&*image, &shadow, None).await.map_err(failed)?;
            n += self.step;
        }
    }
}
