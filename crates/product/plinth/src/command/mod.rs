//! The commands.

pub mod disk;
pub mod image;
mod progress;
pub mod qemu_img;
pub mod run;
pub mod shell;
