//! `plinth disk`: a tool for disk images.

mod address;
mod bench;
mod bitmap;
mod chain;
mod change;
mod check;
mod common;
mod compact;
mod compare;
mod convert;
mod create;
mod export;
mod info;
mod map;
mod package;
mod serve;
mod snapshot;
mod target;

use std::process::ExitCode;

pub use address::open_source;
pub use common::until_signal;
pub use snapshot::{date, new as new_snapshot};
pub use target::Target;

use crate::cli::Global;
use crate::cli::disk_tool::DiskCommand;
use crate::failure::Result;

/// Runs a command of the disk tool.
pub fn run(command: &DiskCommand, global: &Global) -> Result<ExitCode> {
    match command {
        DiskCommand::Create(args) => create::run(args, global),
        DiskCommand::Info(args) => info::run(args, global),
        DiskCommand::Convert(args) => convert::run(args, global),
        DiskCommand::Check(args) => check::run(args, global),
        DiskCommand::Resize(args) => change::resize(args, global),
        DiskCommand::Snapshot(command) => snapshot::run(command, global),
        DiskCommand::Rebase(args) => chain::rebase(args, global),
        DiskCommand::Commit(args) => chain::commit(args, global),
        DiskCommand::Compare(args) => compare::run(args, global),
        DiskCommand::Map(args) => map::map(args, global),
        DiskCommand::Measure(args) => map::measure(args, global),
        DiskCommand::Dd(args) => convert::dd(args, global),
        DiskCommand::Bench(args) => bench::run(args, global),
        DiskCommand::Amend(args) => change::amend(args, global),
        DiskCommand::Bitmap(command) => bitmap::run(command, global),
        DiskCommand::Compact(args) => compact::run(args, global),
        DiskCommand::Serve(args) => serve::run(args, global),
        DiskCommand::Export(args) => export::run(args, global),
    }
}
