//! The commands.

pub mod image;
mod progress;
pub mod run;
pub mod shell;
