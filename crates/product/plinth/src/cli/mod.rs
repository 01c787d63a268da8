//! The command line.

mod cpu;
mod disk;
pub mod disk_tool;
pub mod size;
mod words;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use plinth_net::PortForward;

pub use cpu::CpuOption;
pub use disk::{DeviceBus, DiskOption};
pub use size::Size;
pub use words::{output_format, parse};

const EXIT_CODES: &str = "\
Exit codes:
  0    done; for `run`: the guest powered off, or reset under --no-reboot
  1    something failed: a file, the network
  2    the command line is wrong
  3    the guest crashed
  4    the host lacks memory, threads or another resource
  5    another process uses a disk
  128+n  ended by signal n";

/// Runs operating systems built for any CPU, on any Linux host.
#[derive(Debug, Parser)]
#[command(name = "plinth", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Write a log to standard error: a level, or levels of modules (`plinth_net=debug`). Also PLINTH_LOG
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Log more: -v what happens, -vv all
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How results and errors are printed
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Text,
    /// One JSON object
    Json,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Run a machine until its guest powers off
    Run(Box<RunArgs>),
    /// Make disk images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Create, convert, check and change disk images
    Disk(Box<disk_tool::DiskArgs>),
    /// Take the arguments of qemu-img, and print what it prints
    #[command(
        name = "qemu-img",
        disable_help_flag = true,
        after_help = "The same under the name qemu-img: ln -s plinth qemu-img"
    )]
    QemuImg {
        /// A command of qemu-img and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  plinth completions bash > ~/.local/share/bash-completion/completions/plinth"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands
    #[command(after_help = "Examples:\n  plinth man | man -l -\n  plinth man --dir ~/.local/share/man/man1")]
    Man {
        /// Write a page for each command into this folder
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum ImageCommand {
    /// Build the disk of a guest, with its kernel beside it
    #[command(subcommand)]
    Build(BuildWhat),
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum BuildWhat {
    /// Debian, from its packages: no root rights are needed
    Debian(BuildDebianArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth image build debian -o debian.raw
  plinth image build debian --suite trixie --arch riscv64 --size 4G --package openssh-server -o ssh.raw
  plinth run debian.raw")]
pub struct BuildDebianArgs {
    /// Suite to take packages from
    #[arg(long, default_value = "trixie")]
    pub suite: String,
    /// Instruction set of the guest
    #[arg(long, default_value = "riscv64")]
    pub arch: String,
    /// Size of the disk, with a unit
    #[arg(long, default_value = "2G")]
    pub size: Size,
    /// Mirror to download from; without one the host's apt configuration names it
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Package to install besides the base system. Repeatable
    #[arg(long, value_name = "NAME")]
    pub package: Vec<String>,
    /// Host name of the guest
    #[arg(long, default_value = "debian")]
    pub hostname: String,
    /// Fail where the archive's signature cannot be checked
    #[arg(long)]
    pub require_signature: bool,
    /// The disk to write; kernel, initrd and description get its name with another ending
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
}

const RUN_EXAMPLES: &str = "\
Examples:
  plinth run debian
  plinth run debian -m 2G -c 4 -p 2222:22 --snapshot
  plinth run --kernel Image --initrd initrd.img --append 'console=ttyS0' -m 512M
  plinth run --kernel vmlinuz --disk root.raw --append 'root=/dev/vda rw console=ttyS0' -c 4
  plinth run debian --firmware fw_dynamic.bin                             # OpenSBI, then Debian's kernel
  plinth run --firmware fw_dynamic.bin --kernel u-boot.bin --disk d.raw   # OpenSBI, then U-Boot in S mode
  plinth run --firmware u-boot.bin --disk d.raw                           # U-Boot in M mode
  plinth run --kernel Image --disk root.raw -p 2222:22    # then: ssh -p 2222 root@localhost

The guest's console is standard input and output. On a terminal, Ctrl-] leaves it and stops the guest.
With standard input closed or not a terminal the guest runs unattended.";

#[derive(Debug, Args)]
#[command(after_help = format!("{RUN_EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct RunArgs {
    /// Guest to run: debian, or the path of a disk that `plinth image build` has made
    #[arg(conflicts_with_all = ["kernel", "initrd"])]
    pub guest: Option<String>,
    /// Instruction set of the guest
    #[arg(long, default_value = "riscv64")]
    pub arch: String,
    /// Board of the guest [default: the first that its instruction set has]
    #[arg(long)]
    pub board: Option<String>,
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,
    /// Properties of the guest's CPUs: PROPERTY=on|off[,...]. For riscv64: v, the vector extension
    /// [default: v=on]
    #[arg(long, value_name = "PROPERTIES")]
    pub cpu: Option<CpuOption>,
    /// Kernel to start: a Linux image (also compressed) or an ELF program
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Command line of the kernel; for a named guest, what to add to its own
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Firmware that starts first, such as OpenSBI or U-Boot, and starts the kernel; without it Plinth's own
    /// serves the kernel
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// Disk: an image of any format, or path=FILE[,readonly=on][,format=FORMAT][,bus=virtio-pci|virtio-mmio]. Repeatable
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<DiskOption>,
    /// Memory of the guest, with a unit [default: 512M, for a named guest 1G]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// CPUs of the guest
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Network of the guest
    #[arg(long, value_enum, default_value_t = NetChoice::User)]
    pub net: NetChoice,
    /// Open a port of the host to the guest: [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]. Repeatable
    #[arg(short, long, value_name = "HOST:GUEST")]
    pub publish: Vec<PortForward>,
    /// Serial console of the guest: stdio, none or file:PATH
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: SerialChoice,
    /// Leave the disks unchanged: what the guest writes is gone when it ends
    #[arg(long)]
    pub snapshot: bool,
    /// End when the guest resets
    #[arg(long)]
    pub no_reboot: bool,
    /// Write /tmp/perf-PID.map, so that `perf` names translated code
    #[arg(long)]
    pub perf_map: bool,
    /// Name of the machine, for messages [default: the guest's]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// The fastest there is for the guest on this host
    Auto,
    /// Translate to host code
    Engine,
    /// Interpret: slow, on every host
    Interp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetChoice {
    /// DHCP, name service and the outside world, without rights on the host
    User,
    /// No network card
    None,
}

/// Where the guest's serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialChoice {
    Stdio,
    None,
    File(PathBuf),
}

impl FromStr for SerialChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("write stdio, none or file:PATH".to_owned()),
        }
    }
}
