//! Guest images: Debian built from its packages.
//!
//! A guest is built on the host in user space: no root rights, no loop mounts, no debootstrap, no dpkg.
//! The suite's signed index is fetched from a mirror ([`mirror`](crate::DebianSpec::mirror)) and checked,
//! the dependencies are resolved, the packages are unpacked straight into an ext4 image that this crate
//! writes itself. What needs the guest's CPU, the packages' own scripts, runs once when the guest boots
//! for the first time.
//!
//! - [`cached_debian`] gives the guest that `plinth run debian` starts.
//! - [`build_debian`] builds one into files of the caller's choice.
//! - [`package_files`] gives single files of a package, such as firmware.
//! - [`test_guest`] gives a kernel with a busybox in memory, for tests and benchmarks.
//!
//! All downloads stay in the cache (`$PLINTH_CACHE`, `$XDG_CACHE_HOME/plinth` or `~/.cache/plinth`);
//! with a warm cache everything works without a network.

mod ar;
mod arch;
mod archive;
mod cache;
mod control;
mod cpio;
mod deb;
mod debian;
mod dpkg;
mod error;
mod ext4;
mod files;
mod http;
mod initramfs;
mod mirror;
mod modules;
mod package;
#[cfg(test)]
mod pipeline_tests;
mod preset;
mod progress;
mod release;
mod resolve;
mod rootfs;
mod setup;
mod test_guest;
mod tree;
mod version;

pub use arch::GuestArch;
pub use debian::{DebianImage, DebianSpec, build_debian, cached_debian};
pub use error::{GuestError, Result};
pub use files::package_files;
pub use progress::{Progress, Silent, Unit};
pub use test_guest::{TestGuest, test_guest};
