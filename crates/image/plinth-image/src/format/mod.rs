//! The formats of disk images.
//!
//! Each format is one module with one [`Driver`]: how to know it, open it and create it, and which options it has.
//! [`open`](fn@open) finds the driver and gives an [`Image`], which is a [`Node`] with all that an image can do
//! besides holding bytes.

mod below;
mod blocks;
mod chunks;
pub mod cloop;
pub mod dmg;
mod guid;
pub(crate) mod image;
mod links;
pub mod luks;
mod open;
mod options;
mod output;
pub mod parallels;
pub mod qcow2;
pub mod qed;
pub mod raw;
pub mod table;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use crate::graph::{Io, NodeRef};
use crate::{Error, ErrorKind};
pub use below::Backing;
use image::unknown_format;
pub use image::{
    BackingLink, Bitmap, Bitmaps, CheckReport, Description, Image, Progress, Repair, Snapshot, Snapshots,
    UNKNOWN_FORMAT,
};
pub use links::{LinkKind, Links, NoLinks, Trust, backing_path};
pub use open::{OpenOptions, Opened, file_links, open, open_linked_node, open_node};
pub use options::{OptionKind, OptionSpec, Options, parse_size};
pub use output::{MemoryOutput, Output, OutputFiles};

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU copy on write, versions 2 and 3.
    Qcow2,
    /// VMware, in one file or several.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Virtual PC, and Hyper-V before 2012.
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// Parallels.
    Parallels,
    /// QEMU enhanced disk.
    Qed,
    /// Compressed loop device.
    Cloop,
    /// Apple's disk images.
    Dmg,
    /// Linux Unified Key Setup, versions 1 and 2.
    Luks,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Raw,
        Self::Qcow2,
        Self::Vmdk,
        Self::Vdi,
        Self::Vhd,
        Self::Vhdx,
        Self::Parallels,
        Self::Qed,
        Self::Cloop,
        Self::Dmg,
        Self::Luks,
    ];

    /// Its usual name, which [`FromStr`] takes too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Parallels => "parallels",
            Format::Qed => "qed",
            Format::Cloop => "cloop",
            Format::Dmg => "dmg",
            Format::Luks => "luks",
        }
    }

    /// What opens and creates it; `None` if Plinth cannot yet.
    #[must_use]
    pub fn driver(self) -> Option<&'static Driver> {
        DRIVERS.iter().copied().find(|d| d.format == self)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    /// Takes QEMU's names too.
    fn from_str(name: &str) -> Result<Self, Error> {
        if name == "vpc" {
            return Ok(Format::Vhd);
        }
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|f| f.name()).collect();
            let why = format!("there is {}", known.join(", "));
            Error::new(ErrorKind::Invalid, format!("there is no format '{name}'"), why)
        })
    }
}

/// A file's beginning and end, to find out what it is.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The first bytes: 2 KiB, or the whole file.
    pub head: &'a [u8],
    /// The last bytes: 1 KiB, or the whole file.
    pub tail: &'a [u8],
    /// Bytes of the file.
    pub len: u64,
    /// The file's name, for formats that are known by it alone.
    pub name: &'a str,
}

/// What a format's `open` gets.
pub struct OpenRequest {
    /// The image's (first) file.
    pub file: NodeRef,
    /// Opens what the image names: backing images, extents, data files, parents. It decides what may be opened.
    pub links: Rc<dyn Links>,
    /// How, and with what.
    pub options: OpenOptions,
}

/// What a format's `create` gets.
pub struct CreateRequest<'a> {
    /// Makes the image's files.
    pub output: &'a dyn Output,
    /// Bytes of the disk; a multiple of [`SECTOR`](crate::SECTOR).
    pub size: u64,
    /// The format's own options; the driver has checked that all are its own.
    pub options: &'a Options,
    /// The image below.
    pub backing: Option<Backing>,
    /// The passphrase where an option asks for encryption.
    pub secret: Option<&'a [u8]>,
}

/// Creates an image.
pub type Create = for<'a> fn(CreateRequest<'a>) -> Io<'a, Rc<dyn Image>>;

/// What a format can do as a whole.
pub struct Driver {
    /// Which one.
    pub format: Format,
    /// True if the file is in this format. Must be right for hostile files, and cheap.
    pub probe: fn(&Sample<'_>) -> bool,
    /// Opens an image.
    pub open: fn(OpenRequest) -> Io<'static, Rc<dyn Image>>,
    /// Creates an image that reads as zeros (or as its backing image), and opens it for writing; where it reads as
    /// something else (noise, for LUKS), its status does not say zero. `None`: the format is for reading only.
    pub create: Option<Create>,
    /// Options of `create`.
    pub options: &'static [OptionSpec],
}

/// Every format that Plinth knows, in the order in which files are tried.
pub static DRIVERS: &[&Driver] = &[
    &raw::DRIVER,
    &qcow2::DRIVER,
    &luks::DRIVER,
    &parallels::DRIVER,
    &qed::DRIVER,
    &cloop::DRIVER,
    &dmg::DRIVER,
    &vmdk::DRIVER,
    &vdi::DRIVER,
    &vhd::DRIVER,
    &vhdx::DRIVER,
];

/// What a file holds, by its contents. Whatever has no mark of another format is raw.
#[must_use]
pub fn probe(sample: &Sample<'_>) -> Format {
    DRIVERS.iter().find(|d| (d.probe)(sample)).map_or(Format::Raw, |d| d.format)
}
