//! The progress of an image's build on the user's terminal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plinth_guest::{Progress, Unit};

use crate::printable::printable;

const BYTES: &str = "{msg:32} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
const ITEMS: &str = "{msg:32} [{bar:30}] {pos}/{len}";
const UNKNOWN: &str = "{msg:32} {spinner}";

/// Draws one bar at a time on standard error, and nothing where that is no terminal. Warnings are always
/// printed: they weaken the result.
#[derive(Default)]
pub struct Bars {
    current: Mutex<Option<ProgressBar>>,
}

impl Bars {
    fn with_current(&self, f: impl FnOnce(Option<&ProgressBar>)) {
        f(self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref());
    }

    /// Takes the last bar off the screen.
    pub fn finish(&self) {
        if let Some(bar) = self.current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Bars {
    fn step(&self, title: &str, total: u64, unit: Unit) {
        self.finish();
        let (bar, template) = match (total, unit) {
            (0, _) => (ProgressBar::new_spinner(), UNKNOWN),
            (n, Unit::Bytes) => (ProgressBar::new(n), BYTES),
            (n, Unit::Items) => (ProgressBar::new(n), ITEMS),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        tracing::info!(target: "plinth::guest", "{title}");
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, amount: u64) {
        self.with_current(|bar| {
            if let Some(bar) = bar {
                bar.inc(amount);
            }
        });
    }

    fn note(&self, message: &str) {
        tracing::info!(target: "plinth::guest", "{message}");
    }

    fn warn(&self, message: &str) {
        let print = || eprintln!("warning: {}", printable(message));
        self.with_current(|bar| match bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        });
    }
}
