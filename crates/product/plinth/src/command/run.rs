//! `plinth run`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use plinth_image::disk::{self, Disk, Overlay};
use plinth_image::format::Trust;
use plinth_machine::board::Board;
use plinth_machine::{BootFile, BootSources, boards};
use plinth_net::{UserNet, UserNetConfig};
use plinth_virtio::{Blk, BlkConfig, Net, NetConfig, Rng, VirtioDevice, VirtioMmio, VirtioPci};
use plinth_vm::{Exit, VmBuilder, VmHandle};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::accel::{self, AccelOptions};
use crate::adapter::{CardBackend, DiskBackend};
use crate::cli::{DeviceBus, DiskOption, Global, NetChoice, OutputFormat, RunArgs, size};
use crate::command::image;
use crate::console::{Console, RawTerminal, remarks_wanted};
use crate::failure::{Code, Failure, Result};

/// The address of a guest's first network card: locally administered, and the same in every run so that a
/// guest's own configuration keeps fitting.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Memory of the guest where the command line does not say.
const PLAIN_MEMORY: u64 = 512 << 20;
const NAMED_MEMORY: u64 = 1 << 30;

/// Runs a machine as the command line says.
pub fn run(mut args: RunArgs, global: &Global) -> Result<ExitCode> {
    let board = find_board(&args.arch, args.board.as_deref())?;
    if args.guest.is_none() && args.kernel.is_none() && args.firmware.is_none() {
        return Err(Failure::usage("there is nothing to boot")
            .help("name a guest, as in `plinth run debian`")
            .help("or give a kernel with --kernel, or firmware with --firmware"));
    }
    if !args.publish.is_empty() && args.net == NetChoice::None {
        return Err(Failure::usage("--publish needs a network").help("leave out --net none"));
    }
    let default_memory = if args.guest.is_some() { NAMED_MEMORY } else { PLAIN_MEMORY };
    let memory = args.memory.map_or(default_memory, |m| m.0);
    check_memory(memory)?;
    resolve_guest(&mut args)?;
    let sources = boot_sources(&args)?;
    sources.check(board)?;
    let disks = args.disk.iter().map(|d| open_disk(d, args.snapshot)).collect::<Result<Vec<_>>>()?;
    let accelerator = accel::select(args.accel, board.isa, AccelOptions { perf_map: args.perf_map })?;
    let mut builder = VmBuilder::new(board, memory, args.cpus)?;
    for (option, disk) in args.disk.iter().zip(disks) {
        add_disk(&mut builder, option, disk, args.cpus)?;
    }
    if args.net == NetChoice::User {
        add_network(&mut builder, &args)?;
    }
    attach(&mut builder, DeviceBus::VirtioPci, Box::new(Rng::new()));
    builder.boot(sources).reboot(!args.no_reboot);
    let console = Console::open(&args.serial)?;
    if let Some(console) = &console {
        builder.serial(console.backend());
    }
    let vm = builder.build(accelerator.as_ref())?;
    let signal = watch_signals(vm.handle())?;
    let name = args.name.as_deref().or(args.guest.as_deref()).unwrap_or("the guest");
    let terminal = console.as_ref().map(|c| connect(c, vm.handle(), name)).transpose()?;
    let ended = vm.run();
    if let Some(console) = &console {
        console.stream.finish();
    }
    drop(terminal);
    finish(ended?, signal.load(Ordering::SeqCst), global.output)
}

/// Puts the parts of a named guest where the command line's own would be; its disk comes first.
fn resolve_guest(args: &mut RunArgs) -> Result<()> {
    let Some(guest) = &args.guest else { return Ok(()) };
    let image = image::named(guest, &args.arch)?;
    let added = args.append.take().map(|a| format!(" {a}")).unwrap_or_default();
    args.append = Some(image.cmdline + &added);
    args.kernel = Some(image.kernel);
    args.initrd = Some(image.initrd);
    let disk = DiskOption { path: image.disk, read_only: false, format: None, bus: DeviceBus::default() };
    args.disk.insert(0, disk);
    Ok(())
}

fn find_board(arch: &str, name: Option<&str>) -> Result<&'static Board> {
    let known = boards::ALL.iter().filter(|b| b.isa.name == arch);
    let Some(default) = known.clone().next() else {
        let names: BTreeSet<_> = boards::ALL.iter().map(|b| b.isa.name).collect();
        let names: Vec<_> = names.into_iter().collect();
        return Err(Failure::usage(format!("Plinth has no board for --arch {arch}"))
            .help(format!("this build runs: {}", names.join(", "))));
    };
    let Some(name) = name else { return Ok(default) };
    known.clone().find(|b| b.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = known.map(|b| b.name).collect();
        Failure::usage(format!("there is no board '{name}' for {arch}"))
            .help(format!("its boards are: {}", names.join(", ")))
    })
}

/// Guest RAM is not taken from the host until the guest uses it, so the host would find out too late.
fn check_memory(bytes: u64) -> Result<()> {
    let info = rustix::system::sysinfo();
    let total = (info.totalram as u64).saturating_add(info.totalswap as u64);
    let total = total.saturating_mul(info.mem_unit.into());
    if bytes <= total {
        return Ok(());
    }
    let (asked, has) = (size::show(bytes), size::show(total));
    Err(Failure::new(
        Code::HostResource,
        format!("cannot give the guest {asked} of memory: the host has {has} with its swap space"),
    )
    .help("give the guest less memory with --memory"))
}

fn boot_sources(args: &RunArgs) -> Result<BootSources> {
    let open = |what, path: &Option<std::path::PathBuf>| {
        path.as_deref().map(|p: &Path| BootFile::open(what, p)).transpose()
    };
    Ok(BootSources {
        firmware: open("firmware", &args.firmware)?,
        kernel: open("kernel", &args.kernel)?,
        initrd: open("initrd", &args.initrd)?,
        append: args.append.clone().unwrap_or_default(),
    })
}

fn open_disk(option: &DiskOption, snapshot: bool) -> Result<Box<dyn Disk>> {
    let read_only = option.read_only || snapshot;
    let image = disk::open(&option.path, option.format, read_only, Trust::default())?;
    if snapshot && !option.read_only {
        return Ok(Box::new(Overlay::new(image)?));
    }
    Ok(image)
}

/// Puts a virtio device where the guest finds it.
fn attach(builder: &mut VmBuilder, bus: DeviceBus, device: Box<dyn VirtioDevice>) {
    let ram = builder.ram().clone();
    match bus {
        DeviceBus::VirtioPci => builder.pci(VirtioPci::new(device, ram)),
        DeviceBus::VirtioMmio => {
            builder.virtio_mmio(Box::new(move |irq| Ok(VirtioMmio::new(device, ram, irq))))
        }
    };
}

fn device_failed(what: &str) -> impl FnOnce(plinth_virtio::Error) -> Failure {
    move |e| Failure::from_error(Code::HostResource, what, &e)
}

fn add_disk(builder: &mut VmBuilder, option: &DiskOption, disk: Box<dyn Disk>, cpus: u32) -> Result<()> {
    let queues = u16::try_from(cpus).map_or(64, |c| c.min(64));
    let config = BlkConfig { queues, ..BlkConfig::default() };
    let device = Blk::new(config, Arc::new(DiskBackend(disk)))
        .map_err(device_failed("cannot make the disk's device"))?;
    attach(builder, option.bus, Box::new(device));
    Ok(())
}

fn add_network(builder: &mut VmBuilder, args: &RunArgs) -> Result<()> {
    let config = UserNetConfig { forwards: args.publish.clone(), ..UserNetConfig::default() };
    let network = UserNet::new(&config)?;
    for (forward, address) in network.forwards() {
        tracing::info!(target: "plinth::net", "{address} leads to port {} of the guest", forward.guest_port);
    }
    let card = Net::new(NetConfig::new(MAC), Box::new(CardBackend(network)))
        .map_err(device_failed("cannot make the network card"))?;
    attach(builder, DeviceBus::VirtioPci, Box::new(card));
    Ok(())
}

/// Hands the terminal to the guest, if there is one.
fn connect(console: &Console, handle: VmHandle, name: &str) -> Result<Option<RawTerminal>> {
    if !console.interactive {
        return Ok(None);
    }
    if remarks_wanted() {
        eprintln!("Connected to the console of {name}. Ctrl-] leaves it and stops the guest.");
    }
    console.stream.on_escape(move || handle.stop());
    RawTerminal::enter()
        .map(Some)
        .map_err(|e| Failure::from_error(Code::Failed, "cannot take over the terminal", &e))
}

/// Ends the machine on the first signal and the process on the second. The value is the signal's number.
fn watch_signals(handle: VmHandle) -> Result<Arc<AtomicI32>> {
    let failed = |e: std::io::Error| Failure::from_error(Code::HostResource, "cannot watch for signals", &e);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCONT]).map_err(failed)?;
    let seen = Arc::new(AtomicI32::new(0));
    let in_thread = Arc::clone(&seen);
    let watch = move || {
        for signal in signals.forever() {
            if signal == SIGCONT {
                RawTerminal::reapply();
            } else if in_thread.swap(signal, Ordering::SeqCst) == 0 {
                handle.stop();
            } else {
                RawTerminal::restore();
                std::process::exit(128 + signal);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed)?;
    Ok(seen)
}

/// Says how the run ended.
fn finish(exit: Exit, signal: i32, format: OutputFormat) -> Result<ExitCode> {
    let (reason, code) = match &exit {
        Exit::Crash(why) => {
            return Err(Failure::new(Code::GuestCrashed, format!("the guest crashed: {why}"))
                .help("-v shows what led to it; the console's last lines are the guest's own account"));
        }
        Exit::PowerOff => ("poweroff", 0),
        Exit::Reset => ("reset", 0),
        Exit::Stopped if signal != 0 => ("signal", u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Exit::Stopped => ("left", 0),
    };
    if format == OutputFormat::Json {
        eprintln!("{}", serde_json::json!({ "exit": reason, "code": code }));
    }
    tracing::info!(target: "plinth::run", "the run ended: {reason}");
    Ok(code.into())
}
