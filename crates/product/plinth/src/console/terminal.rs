//! The user's terminal in raw mode, and back.

use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, LocalModes, OptionalActions, OutputModes, Termios};

/// What the terminal was like. A process has one terminal, and every way out of it must find this.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode while it lives: keys go to the guest as they are typed, those that would stop this process too.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches standard input's terminal to raw mode.
    ///
    /// # Errors
    /// It is not a terminal, or the host refused.
    pub fn enter() -> std::io::Result<Self> {
        let saved = termios::tcgetattr(rustix::stdio::stdin())?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        let terminal = Self(());
        Self::apply()?;
        Ok(terminal)
    }

    fn apply() -> std::io::Result<()> {
        let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut raw) = saved.clone() else { return Ok(()) };
        drop(saved);
        raw.make_raw();
        // Newlines of messages that do not come from the guest still return the carriage.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        raw.local_modes &= !LocalModes::ISIG;
        Ok(termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?)
    }

    /// Puts raw mode back after the shell has had the terminal (the process was stopped and continued).
    pub fn reapply() {
        // A terminal that is gone needs no mode.
        let _ = Self::apply();
    }

    /// Gives the terminal back as it was. Can be called at any time, also when it is not raw.
    pub fn restore() {
        let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(saved) = saved {
            // A terminal that is gone cannot be restored.
            let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        Self::restore();
    }
}
