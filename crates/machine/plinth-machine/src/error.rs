//! Why a machine could not be made or loaded.

use std::io;
use std::path::PathBuf;

use plinth_device::BusError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A board's table lacks something its part needs.
    #[error("board table: '{site}' lacks {what}")]
    Board {
        /// The site.
        site: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// More vCPUs or memory than the board takes.
    #[error("the board '{board}' takes at most {max} {what}, not {asked}")]
    TooMany {
        /// The board.
        board: &'static str,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: u64,
        /// How many were asked for.
        asked: u64,
    },
    /// Firmware for a board that has none.
    #[error("the board '{0}' runs no firmware but Plinth's own")]
    NoFirmware(&'static str),
    /// No more room for devices of a kind.
    #[error("no {0} is left on the board")]
    NoSlot(&'static str),
    /// Two parts at one address.
    #[error("cannot place '{site}': {source}")]
    Bus {
        /// The part.
        site: String,
        /// The clash.
        source: BusError,
    },
    /// A device could not be made.
    #[error("cannot make the device '{site}': {why}")]
    Device {
        /// Which one.
        site: String,
        /// Why.
        why: String,
    },
    /// The device tree writer refused.
    #[error("cannot write the device tree: {0}")]
    Tree(#[from] vm_fdt::Error),
    /// A boot file could not be read.
    #[error("cannot read {what} '{path}': {source}", path = path.display())]
    Read {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A boot file is for another instruction set.
    #[error("{what} '{path}' is for {found}, not {wanted}", path = path.display())]
    WrongIsa {
        /// `kernel` or `firmware`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What the board runs.
        wanted: &'static str,
    },
    /// A boot file is not what it should be.
    #[error("{what} '{path}' {why}", path = path.display())]
    Format {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the rest of the sentence.
        why: String,
    },
    /// It does not fit into guest RAM.
    #[error("{what} does not fit: it needs {needed:#x} bytes at {at:#x} and RAM ends at {end:#x}")]
    NoRoom {
        /// `kernel`, `initrd`, `firmware`, `device tree`.
        what: &'static str,
        /// Where it was to go.
        at: u64,
        /// Its size in bytes.
        needed: u64,
        /// First address after RAM.
        end: u64,
    },
    /// The host gave no random numbers.
    #[error("the host gives no random numbers: {0}")]
    Random(getrandom::Error),
}
