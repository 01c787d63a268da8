//! Builds a guest: `build ARCH OUT.raw [PACKAGE...]`, or `build ARCH test`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use plinth_guest::{DebianSpec, GuestError, Progress, Unit, build_debian, test_guest};

/// Prints steps and their totals.
#[derive(Default)]
struct Lines {
    done: AtomicU64,
}

impl Progress for Lines {
    fn step(&self, title: &str, total: u64, unit: Unit) {
        self.done.store(0, Ordering::Relaxed);
        println!("{title} ({total} {unit:?})");
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }

    fn note(&self, message: &str) {
        println!("note: {message}");
    }

    fn warn(&self, message: &str) {
        println!("warning: {message}");
    }
}

fn main() -> Result<(), GuestError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(arch), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err(GuestError::Invalid("usage: build ARCH (OUT.raw [PACKAGE...] | test)".into()));
    };
    let mut spec = DebianSpec::new(arch.parse()?);
    spec.packages = arguments.collect();
    let progress = Lines::default();
    if out == "test" {
        println!("{:#?}", test_guest(spec.arch, &spec.suite, None, &progress)?);
    } else {
        println!("{:#?}", build_debian(&spec, Path::new(&out), &progress)?);
    }
    Ok(())
}
