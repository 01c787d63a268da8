//! `plinth disk export`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use plinth_image::graph::NodeRef;
use plinth_image::ovf::{
    Controller, ControllerKind, Disk, Firmware, MachineDescription, Nic, OperatingSystem, Package,
    package_files, write_package,
};
use serde_json::json;

use super::address::open_any;
use super::common::{failed, may_replace, print, result, with_progress};
use super::package;
use crate::cli::disk_tool::{ExportArgs, FirmwareArg};
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};

/// Disks that one SATA controller has in the products that read packages.
const SATA_PORTS: u32 = 30;
/// What a machine gets of which nobody says more.
const MEMORY: u64 = 1 << 30;
/// A network interface that all products and old guests know.
const NIC: &str = "E1000";

/// The machine of a package, if it is one.
fn machine_of(package: &Package, path: &Path) -> Result<MachineDescription> {
    match &package.machines[..] {
        [one] => Ok(one.clone()),
        several => {
            let names: Vec<_> = several.iter().map(|m| m.name.as_str()).collect();
            let what = format!("'{}' has {} machines: {}", path.display(), several.len(), names.join(", "));
            Err(Failure::new(Code::Failed, what)
                .help("export one disk after the other: `plinth disk convert PACKAGE d.qcow2 --disk NAME`"))
        }
    }
}

/// What the options say of the machine.
fn apply(args: &ExportArgs, machine: &mut MachineDescription) -> Result<()> {
    if let Some(name) = &args.name {
        machine.name.clone_from(name);
    }
    machine.cpus = args.cpus.unwrap_or(machine.cpus.max(1));
    machine.memory = match (args.memory, machine.memory) {
        (Some(memory), _) => memory.0,
        (None, 0) => MEMORY,
        (None, known) => known,
    };
    match args.firmware {
        None => {}
        Some(FirmwareArg::Bios) => machine.firmware = Firmware::Bios,
        Some(FirmwareArg::Efi) => machine.firmware = Firmware::Efi { secure_boot: false },
        Some(FirmwareArg::SecureBoot) => machine.firmware = Firmware::Efi { secure_boot: true },
    }
    if let Some(name) = &args.os {
        let (id, description) = package::system(name).ok_or_else(|| {
            Failure::usage(format!("the operating system '{name}' is not known"))
                .help("`--os help` lists the names; a number of CIM_OperatingSystem works too")
        })?;
        let description = description.map(str::to_owned);
        machine.os = Some(OperatingSystem { id, version: None, description });
    }
    if !args.network.is_empty() {
        let nic = |network: &String| Nic { model: NIC.into(), network: network.clone(), mac: None };
        machine.nics = args.network.iter().map(nic).collect();
    }
    Ok(())
}

/// Puts disks that are nowhere on SATA controllers.
fn place(machine: &mut MachineDescription) {
    let mut used: Vec<(usize, u32)> =
        machine.disks.iter().filter_map(|d| d.controller).map(|(c, p)| (c, p.unwrap_or(0))).collect();
    for n in 0..machine.disks.len() {
        if machine.disks[n].controller.is_some() {
            continue;
        }
        let free = machine
            .controllers
            .iter()
            .enumerate()
            .filter(|c| c.1.kind == ControllerKind::Sata)
            .find_map(|(c, _)| (0..SATA_PORTS).map(|p| (c, p)).find(|place| !used.contains(place)));
        let (c, p) = free.unwrap_or_else(|| {
            let address = machine.controllers.iter().filter(|c| c.kind == ControllerKind::Sata).count();
            machine
                .controllers
                .push(Controller { kind: ControllerKind::Sata, address: Some(address as u32) });
            (machine.controllers.len() - 1, 0)
        });
        used.push((c, p));
        machine.disks[n].controller = Some((c, Some(p)));
    }
}

pub fn run(args: &ExportArgs, global: &Global) -> Result<ExitCode> {
    if args.os.as_deref() == Some("help") {
        print(&format!("Operating systems:\n{}", package::systems()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some((target, sources)) = args.paths.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(Failure::usage("name the disks, and last the package to write"));
    };
    if !Package::is_name(target) {
        return Err(Failure::usage(format!("'{}' is not the name of a package", target.display()))
            .help("let it end in .ova for one archive, or in .ovf for a folder of files"));
    }
    let start = Instant::now();
    let (machine, written, left_out) = with_progress("exporting", async |progress| {
        let mut machine: Option<MachineDescription> = None;
        if let Some(like) = &args.like {
            let package = Package::open(like).await.map_err(failed)?;
            machine = Some(MachineDescription { disks: Vec::new(), ..machine_of(&package, like)? });
        }
        let mut disks = Vec::new();
        let mut nodes: Vec<Option<NodeRef>> = Vec::new();
        for path in sources {
            if args.from.is_some() || !Package::is_name(path) || args.open.disk.is_some() {
                nodes.push(Some(open_any(path, &args.open, args.from).await?.image));
                disks.push(Disk::default());
                continue;
            }
            let package = Package::open(path).await.map_err(failed)?;
            let own = machine_of(&package, path)?;
            for disk in &own.disks {
                nodes.push(package.open_disk(disk).await.map_err(failed)?.map(|i| i as NodeRef));
                // Its place is on the controllers of its own machine.
                let controller = if machine.is_none() { disk.controller } else { None };
                disks.push(Disk { controller, ..disk.clone() });
            }
            machine.get_or_insert(own).disks.clear();
        }
        let stem = target.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let mut machine =
            machine.unwrap_or(MachineDescription { name: stem, ..MachineDescription::default() });
        machine.disks = disks;
        apply(args, &mut machine)?;
        place(&mut machine);
        for path in package_files(target, nodes.len()) {
            may_replace(&path, args.force)?;
        }
        let left_out = std::mem::take(&mut machine.other).len();
        let written = write_package(target, &machine, &nodes, progress).await.map_err(failed)?;
        let mut files = written.iter();
        for (n, (disk, node)) in machine.disks.iter_mut().zip(&nodes).enumerate() {
            let file = node.as_ref().and_then(|_| files.next());
            disk.id = format!("vmdisk{}", n + 1);
            disk.file = file.map(|w| w.file.clone());
            disk.capacity = file.map_or(disk.capacity, |w| w.capacity);
        }
        Ok((machine, written, left_out))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes: u64 = written.iter().map(|w| w.size).sum();
    let disks = match written.len() {
        1 => "1 disk".to_owned(),
        n => format!("{n} disks"),
    };
    let mut text = format!(
        "{}: machine '{}', {disks}, {} in {seconds:.1} s\n",
        target.display(),
        machine.name.escape_debug(),
        size::show(bytes)
    );
    if left_out > 0 {
        text += &format!("{left_out} parts of its description are not understood, and were left out\n");
    }
    let value = json!({
        "path": target, "left_out": left_out, "machine": package::value(&machine), "seconds": seconds,
        "disks": written.iter()
            .map(|w| json!({ "file": w.file, "size": w.size, "capacity": w.capacity })).collect::<Vec<_>>(),
    });
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
