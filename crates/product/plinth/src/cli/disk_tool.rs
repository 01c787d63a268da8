//! The command line of `plinth disk`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use plinth_image::format::Format;

use super::Size;

/// A format's name, as `clap` reads it.
fn format(text: &str) -> Result<Format, String> {
    text.parse().map_err(|e: plinth_image::Error| e.to_string())
}

const EXAMPLES: &str = "\
Examples:
  plinth disk create d.qcow2 20G
  plinth disk info d.qcow2
  plinth disk convert d.raw d.qcow2
  plinth disk convert old.vmdk new.qcow2 --compress zstd
  plinth disk check --repair d.qcow2

The format of an existing image is found by its contents, unless it is given; that of a new one by its name's \
ending. What an image names (its backing image, its extents) is opened in the image's own folder only, unless \
--allow-backing says more. The names and arguments of qemu-img work too: `plinth qemu-img ...`.";

// `plinth disk`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub command: DiskCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum DiskCommand {
    /// Create an image
    Create(CreateArgs),
    /// Show what is known of an image
    Info(InfoArgs),
    /// Copy a disk into a new image of any format
    Convert(ConvertArgs),
    /// Look for errors in an image, and mend them
    Check(CheckArgs),
    /// Make a disk larger or smaller
    Resize(ResizeArgs),
    /// List, make, apply and delete the snapshots inside of an image
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Put an image over another backing image
    Rebase(RebaseArgs),
    /// Write what an image has into its backing image
    Commit(CommitArgs),
    /// Compare the contents of two disks
    Compare(CompareArgs),
    /// Show which parts of a disk are stored, and where
    Map(MapArgs),
    /// Tell how large a new image would be
    Measure(MeasureArgs),
    /// Copy a part of a disk into a new image
    Dd(DdArgs),
    /// Measure the speed of requests to an image
    Bench(BenchArgs),
    /// Change options of an image's format
    Amend(AmendArgs),
    /// List and change the bitmaps inside of an image
    #[command(subcommand)]
    Bitmap(BitmapCommand),
    /// Make an image's file smaller: zeros and unused space are given back
    Compact(CompactArgs),
    /// Serve a disk over the network (NBD)
    Serve(ServeArgs),
    /// Write disks and a machine's description as a package for other products (OVF, OVA)
    Export(ExportArgs),
}

// How an image that is there is opened.
#[derive(Clone, Debug, Default, Args)]
pub struct OpenArgs {
    /// Open this file, or anything below this folder, when an image names it. Repeatable
    #[arg(long, value_name = "PATH")]
    pub allow_backing: Vec<PathBuf>,
    /// Of a package with several disks (OVF, OVA), open this one: its file, ID or number
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// Read the passphrase of an encrypted image from this file
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Take the LUKS header of the image from this file
    #[arg(long, value_name = "FILE")]
    pub header: Option<PathBuf>,
    /// The disk's bytes are an image themselves, of this format (such as luks): use that one
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub inside: Option<Format>,
    /// Go on if another process uses the image: what is read may be in the middle of a change
    #[arg(long)]
    pub share: bool,
}

// An image that is there, for commands with one.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,
    /// Its format [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub open: OpenArgs,
}

// What a new image is to be.
#[derive(Clone, Debug, Default, Args)]
pub struct NewArgs {
    /// Its format [default: by the name's ending, else raw]
    #[arg(long, visible_alias = "format", value_name = "FORMAT", value_parser = format)]
    pub to: Option<Format>,
    /// Options of the format: NAME=VALUE[,NAME=VALUE...]; `-o help` lists them. Repeatable
    #[arg(short = 'o', long = "option", value_name = "OPTION")]
    pub options: Vec<String>,
    /// Write the LUKS header of the new image into this file of its own
    #[arg(long, value_name = "FILE")]
    pub new_header: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
    /// Write through the host's page cache
    #[arg(long)]
    pub cached: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk create d.qcow2 20G
  plinth disk create d.qcow2 20G -o cluster_size=128k,preallocation=metadata
  plinth disk create overlay.qcow2 --backing base.qcow2
  plinth disk create d.luks 20G --secret-file key.txt
  plinth disk create d.img 20G --to luks --secret-file key.txt --new-header d.header")]
pub struct CreateArgs {
    /// The image to create
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,
    /// Bytes of the disk, with a unit [default: those of the backing image]
    #[arg(required_unless_present_any = ["backing", "options"])]
    pub size: Option<Size>,
    /// Put it over this image: what is not written reads as it does there
    #[arg(long, value_name = "IMAGE")]
    pub backing: Option<PathBuf>,
    /// The backing image's format, which is recorded [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "backing")]
    pub backing_format: Option<Format>,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk info d.qcow2
  plinth disk info --chain overlay.qcow2 --output json
  plinth disk info machine.ova")]
pub struct InfoArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Show the images below too
    #[arg(long)]
    pub chain: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk convert d.raw d.qcow2
  plinth disk convert d.vmdk d.qcow2 --compress zstd
  plinth disk convert part1.raw part2.raw whole.qcow2
  plinth disk convert d.qcow2 d.raw --snapshot before-update
  plinth disk convert d.qcow2 /dev/sdx --to raw --force
  plinth disk convert d.qcow2 nbd://host/export --force
  plinth disk convert machine.ova d.qcow2 --disk 2
  plinth disk convert d.qcow2 d.hdd

The new image gets its name when it is complete and on the disk. When the command is stopped before that, whatever \
had the name still has it. Several sources become one disk, one behind the other. A new disk of Parallels is a folder \
if its name ends in .hdd, and one file if it ends in .hds.")]
pub struct ConvertArgs {
    /// The images to read, and last the image to write
    #[arg(value_name = "SOURCE... TARGET", required = true)]
    pub paths: Vec<PathBuf>,
    /// Format of the sources [default: what their contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub from: Option<Format>,
    /// Compress: the format's usual way, or zlib or zstd
    #[arg(long, value_name = "TYPE", num_args = 0..=1, default_missing_value = "",
        require_equals = true)]
    pub compress: Option<String>,
    /// Read the disk as it was at this snapshot
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<String>,
    /// Put the new image over this one, and copy only what the source's uppermost layer has
    #[arg(long, value_name = "IMAGE")]
    pub backing: Option<PathBuf>,
    /// The backing image's format, which is recorded [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "backing")]
    pub backing_format: Option<Format>,
    /// Zeros shorter than this are written as data
    #[arg(long, value_name = "SIZE", default_value = "32K")]
    pub zero_run: Size,
    /// Write zeros for what cannot be read, and say what that was
    #[arg(long)]
    pub salvage: bool,
    /// Copy at most so many bytes a second
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Size>,
    /// Write all data, also where the file system could share the source's space with the new image
    #[arg(long)]
    pub no_reflink: bool,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk check d.qcow2
  plinth disk check --repair d.qcow2
  plinth disk check machine.ova

Of a package (OVF, OVA) the checksums of its files are compared with its manifest.

Exit code 0: nothing is wrong, or all of it was mended; 1: something is wrong.")]
pub struct CheckArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Mend what can be mended: leaks, which only lose space, or all
    #[arg(long, value_name = "WHAT", num_args = 0..=1, default_missing_value = "all",
        require_equals = true, value_parser = ["leaks", "all"])]
    pub repair: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk resize d.qcow2 40G
  plinth disk resize d.qcow2 +10G
  plinth disk resize d.qcow2 10G --shrink")]
pub struct ResizeArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The new size with a unit; with + or - the change
    #[arg(allow_hyphen_values = true)]
    pub size: String,
    /// Allow a smaller size: what is behind the new end is lost
    #[arg(long)]
    pub shrink: bool,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
#[command(after_help = "\
Examples:
  plinth disk snapshot list d.qcow2
  plinth disk snapshot create d.qcow2 before-update
  plinth disk snapshot apply d.qcow2 before-update")]
pub enum SnapshotCommand {
    /// List the snapshots
    List {
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Keep the disk's present contents under a name
    Create(SnapshotArgs),
    /// Make the disk's contents those of a snapshot; the present ones are lost
    Apply(SnapshotArgs),
    /// Forget a snapshot
    Delete(SnapshotArgs),
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The snapshot's name or ID
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk rebase overlay.qcow2 --backing new-base.qcow2
  plinth disk rebase overlay.qcow2 --backing moved/base.qcow2 --unsafe
  plinth disk rebase overlay.qcow2 --flatten

What differs between the old and the new backing image is copied into the image first, so it reads the same as \
before. With --unsafe only the name is changed.")]
pub struct RebaseArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The new backing image
    #[arg(long, value_name = "IMAGE", required_unless_present = "flatten")]
    pub backing: Option<PathBuf>,
    /// Its format, which is recorded [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "backing")]
    pub backing_format: Option<Format>,
    /// No backing image any more: all it gives is copied into the image
    #[arg(long, conflicts_with = "backing")]
    pub flatten: bool,
    /// Change the name only: for a backing image that was moved, or has the same contents
    #[arg(long)]
    pub r#unsafe: bool,
    /// Compress what is copied into the image
    #[arg(long, conflicts_with = "unsafe")]
    pub compress: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk commit overlay.qcow2
  plinth disk commit overlay.qcow2 --keep

When all is written, the image is made empty: it reads as before, from its backing image.")]
pub struct CommitArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Leave the image as it is
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk compare a.raw b.qcow2

Exit code 0: the disks are the same, and where one is longer that is zeros; 1: they differ; 2 and more: the command \
failed.")]
pub struct CompareArgs {
    /// The first image
    pub first: PathBuf,
    /// The second image
    pub second: PathBuf,
    /// Format of the first [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub first_format: Option<Format>,
    /// Format of the second [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub second_format: Option<Format>,
    /// Sizes, and what is stored and what is not, must be the same too
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk map d.qcow2
  plinth disk map d.qcow2 --start 1G --length 64M --output json")]
pub struct MapArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// First byte, with a unit
    #[arg(long)]
    pub start: Option<Size>,
    /// Bytes, with a unit [default: up to the end]
    #[arg(long)]
    pub length: Option<Size>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk measure --to qcow2 d.raw
  plinth disk measure --to qcow2 --size 100G")]
pub struct MeasureArgs {
    /// The disk that it is to hold
    #[arg(value_name = "IMAGE", required_unless_present = "size", conflicts_with = "size")]
    pub path: Option<PathBuf>,
    /// An empty disk of this size instead
    #[arg(long)]
    pub size: Option<Size>,
    /// Format of IMAGE [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub from: Option<Format>,
    /// The new image's format
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub to: Format,
    /// Options of the new image's format. Repeatable
    #[arg(short = 'o', long = "option", value_name = "OPTION")]
    pub options: Vec<String>,
    #[command(flatten)]
    pub open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk dd d.qcow2 part.raw --skip 1M --length 100M")]
pub struct DdArgs {
    /// The image to read
    pub source: PathBuf,
    /// The image to write
    pub target: PathBuf,
    /// Format of the source [default: what its contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub from: Option<Format>,
    /// First byte to copy, with a unit
    #[arg(long)]
    pub skip: Option<Size>,
    /// Bytes to copy, with a unit [default: up to the end]
    #[arg(long)]
    pub length: Option<Size>,
    /// Write all data, also where the file system could share the source's space with the new image
    #[arg(long)]
    pub no_reflink: bool,
    #[command(flatten)]
    pub new: NewArgs,
    #[command(flatten)]
    pub open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk bench d.qcow2
  plinth disk bench d.qcow2 --write --step 64K --depth 32 --cached")]
pub struct BenchArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Requests
    #[arg(long, default_value_t = 75_000)]
    pub count: u64,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub depth: u32,
    /// Bytes of each, with a unit
    #[arg(long, default_value = "4K")]
    pub size: Size,
    /// From one request's start to the next's [default: the size]
    #[arg(long)]
    pub step: Option<Size>,
    /// First byte
    #[arg(long)]
    pub offset: Option<Size>,
    /// Write: what was there is lost
    #[arg(long)]
    pub write: bool,
    /// Writes between two flushes [default: none]
    #[arg(long, requires = "write")]
    pub flush: Option<u64>,
    /// Through the host's page cache
    #[arg(long)]
    pub cached: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk amend d.qcow2 -o lazy_refcounts=on
  plinth disk amend d.luks --secret-file key.txt --add-secret new-key.txt
  plinth disk amend d.luks --secret-file new-key.txt --remove-secret key.txt
  plinth disk amend d.luks --secret-file key.txt -o state=inactive,keyslot=3

An encrypted image has slots for several passphrases. -o keyslot=NUMBER names one; the last one cannot be removed.")]
pub struct AmendArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Options of the format. Repeatable
    #[arg(short = 'o', long = "option", value_name = "OPTION",
          required_unless_present_any = ["add_secret", "remove_secret"])]
    pub options: Vec<String>,
    /// Let the passphrase in this file open the image too
    #[arg(long, value_name = "FILE", conflicts_with = "remove_secret")]
    pub add_secret: Option<PathBuf>,
    /// Let the passphrase in this file open the image no more
    #[arg(long, value_name = "FILE")]
    pub remove_secret: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
#[command(after_help = "\
Examples:
  plinth disk bitmap list d.qcow2
  plinth disk bitmap add d.qcow2 backup
  plinth disk bitmap merge d.qcow2 backup --from other")]
pub enum BitmapCommand {
    /// List the bitmaps
    List {
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Add an empty bitmap, which records writes from now on
    Add {
        #[command(flatten)]
        bitmap: BitmapArgs,
        /// Bytes that a bit stands for, with a unit
        #[arg(long)]
        granularity: Option<Size>,
        /// Do not record writes yet
        #[arg(long)]
        disabled: bool,
    },
    /// Remove a bitmap
    Remove(BitmapArgs),
    /// Clear a bitmap
    Clear(BitmapArgs),
    /// Record writes
    Enable(BitmapArgs),
    /// Record no writes any more
    Disable(BitmapArgs),
    /// Set in a bitmap what is set in another one of the image
    Merge {
        #[command(flatten)]
        bitmap: BitmapArgs,
        /// The bitmap to read
        #[arg(long, value_name = "NAME")]
        from: String,
    },
}

#[derive(Debug, Args)]
pub struct BitmapArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The bitmap's name
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk compact d.raw
  plinth disk compact d.qcow2

A raw image gets holes where it has zeros. An image of another format is written anew beside the old one, which it \
then replaces; options, backing image and contents stay the same.")]
pub struct CompactArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Compress: the format's usual way, or zlib or zstd
    #[arg(long, value_name = "TYPE", num_args = 0..=1, default_missing_value = "",
        require_equals = true)]
    pub compress: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk serve d.qcow2 --socket /run/d.sock
  plinth disk serve d.qcow2 --listen 0.0.0.0:10809 --name d --tls /etc/plinth/tls --tls-verify
  plinth disk convert nbd+unix:///?socket=/run/d.sock copy.qcow2

It serves until it gets a signal (Ctrl-C), and closes the image then. The folder of --tls has server-cert.pem, \
server-key.pem, and for --tls-verify ca-cert.pem.")]
pub struct ServeArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Serve on this Unix socket instead of a port
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub socket: Option<PathBuf>,
    /// Address and port to serve on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10809")]
    pub listen: SocketAddr,
    /// The export's name
    #[arg(long, value_name = "NAME", default_value = "")]
    pub name: String,
    /// A line about it, for people
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Refuse writes, and let others use the image along
    #[arg(long)]
    pub read_only: bool,
    /// Serve the disk as it was at this snapshot, for reading
    #[arg(long, value_name = "NAME", requires = "read_only")]
    pub snapshot: Option<String>,
    /// Show this bitmap of the image to clients (as qemu:dirty-bitmap:NAME). Repeatable
    #[arg(long, value_name = "NAME")]
    pub bitmap: Vec<String>,
    /// End when the last client has gone
    #[arg(long)]
    pub once: bool,
    /// Have clients use TLS, with the certificate and key in this folder
    #[arg(long, value_name = "FOLDER")]
    pub tls: Option<PathBuf>,
    /// Have clients show a certificate too
    #[arg(long, requires = "tls")]
    pub tls_verify: bool,
    /// Through the host's page cache
    #[arg(long)]
    pub cached: bool,
}

/// What starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirmwareArg {
    Bios,
    Efi,
    SecureBoot,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth disk export d.qcow2 machine.ova
  plinth disk export system.qcow2 data.vmdk machine.ovf --name web --cpus 4 --memory 8G --os debian --network LAN
  plinth disk export system.qcow2 new.ova --like old.ova
  plinth disk export machine.ovf machine.ova

The name's ending decides: .ova is one archive, .ovf an envelope with the disks and a manifest beside it. Disks are \
compressed (VMDK, streamOptimized), and the manifest has SHA-256 checksums. What is said of the machine comes from a \
package among the sources, or that of --like; options take precedence. The package gets its name when it is complete \
and on the disk.")]
pub struct ExportArgs {
    /// The disks, or a package with its disks, and last the package to write (.ova or .ovf)
    #[arg(value_name = "SOURCE... TARGET", required_unless_present = "os")]
    pub paths: Vec<PathBuf>,
    /// Format of the disks [default: what their contents say]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub from: Option<Format>,
    /// Describe the machine as this package does, without its disks
    #[arg(long, value_name = "PACKAGE")]
    pub like: Option<PathBuf>,
    /// The machine's name [default: that of the package's file]
    #[arg(long)]
    pub name: Option<String>,
    /// Its CPUs [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub cpus: Option<u32>,
    /// Its memory, with a unit [default: 1G]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// What starts it [default: bios]
    #[arg(long, value_enum)]
    pub firmware: Option<FirmwareArg>,
    /// Its operating system: `--os help` lists the names; or a number of CIM_OperatingSystem
    #[arg(long, value_name = "NAME")]
    pub os: Option<String>,
    /// Give it a network interface on the network of this name. Repeatable
    #[arg(long, value_name = "NAME")]
    pub network: Vec<String>,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub open: OpenArgs,
}
