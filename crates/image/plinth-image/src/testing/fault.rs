//! Requests that fail.

use std::cell::Cell;

use super::{Shadow, Subject, Workload, World};
use crate::format::Driver;

/// Which requests to the files fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// One in each run of the work, the next one so many requests later.
    Single { step: u64 },
    /// In run `r` of `step` runs the requests `r`, `r + step`, `r + 2 * step` and so on: each fails once in all.
    Spaced { step: u64 },
}

/// What a [`FaultTest`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCount {
    /// Runs of the work.
    pub runs: u64,
    /// Requests to the files that failed.
    pub failures: u64,
    /// Requests to the disk, and how many of them failed.
    pub requests: u64,
    /// Those that failed for it.
    pub refused: u64,
}

/// The same work again and again, with other requests failing each time.
#[derive(Clone)]
pub struct FaultTest {
    /// What is tested.
    pub subject: Subject,
    /// The work.
    pub work: Workload,
    /// What fails.
    pub faults: Faults,
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
        faults: Faults,
    ) -> Self {
        let subject = Subject { driver, options: options.to_owned(), size, secret: None };
        let work = Workload { may_fail: true, ..Workload::new(seed, requests) };
        Self { subject, work, faults }
    }

    /// Does it all.
    ///
    /// # Errors
    /// What was wrong after which failure.
    pub async fn run(&self) -> Result<FaultCount, String> {
        let mut count = FaultCount::default();
        let mut first = 0;
        loop {
            let failed = |e: String| {
                let Subject { driver, options, .. } = &self.subject;
                let (format, seed, faults) = (driver.format, self.work.seed, self.faults);
                format!("{format} ({options}), seed {seed}, failure of request {first} ({faults:?}): {e}")
            };
            let before = count;
            self.once(first, &mut count).await.map_err(failed)?;
            if count.failures == before.failures {
                return Ok(before);
            }
            match self.faults {
                Faults::Single { step } => first += step,
                Faults::Spaced { step } if first + 1 == step => return Ok(count),
                Faults::Spaced { .. } => first += 1,
            }
        }
    }

    /// One run, in which request `first` is the first to fail.
    async fn once(&self, first: u64, count: &mut FaultCount) -> Result<(), String> {
        let mut world = World::new(self.work.seed);
        world.record = false;
        let image = self.subject.create(&world).await.map_err(|e| e.to_string())?;
        match self.faults {
            Faults::Single { .. } => world.fail_after(Some(first)),
            Faults::Spaced { step } => world.fail_every(first, step),
        }
        let shadow = Shadow::default();
        let clock = Cell::new(0);
        let now = || {
            clock.set(clock.get() + 1);
            clock.get()
        };
        self.work.run(&*image, &shadow, &now).await?;
        // The end of the work fails too, if it comes to that.
        let _ = image.flush().await;
        world.fail_after(None);
        count.runs += 1;
        count.failures += world.failures();
        count.requests += self.work.requests as u64;
        count.refused += shadow.failed();
        shadow.verify(&*image, None).await?;
        image.close().await.map_err(|e| e.to_string())?;
        drop(image);
        let image = self.subject.open(&world).await.map_err(|e| e.to_string())?;
        self.subject.judge(&*image, &shadow, None).await
    }
}
