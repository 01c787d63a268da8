//! What `plinth disk` says of packages (OVF, OVA), and how it checks them.

use std::path::Path;
use std::process::ExitCode;

use plinth_image::ovf::{ControllerKind, Disk, Firmware, MachineDescription, Package};
use serde_json::{Value, json};

use super::common::{failed, interruptible, result, with_progress};
use crate::cli::disk_tool::ImageArgs;
use crate::cli::{Global, size};
use crate::failure::{Code, Result};
use crate::printable::one_line;

/// True if an argument names a package, and not an image that its user says the format of.
pub fn is_meant(image: &ImageArgs) -> bool {
    image.format.is_none() && Package::is_name(&image.path)
}

/// Operating systems by a short name, with their numbers in `CIM_OperatingSystem` and a name for people.
const SYSTEMS: [(&str, u16, &str); 31] = [
    ("other", 1, "Other"),
    ("other-64", 102, "Other, 64-bit"),
    ("linux", 101, "Linux, 64-bit"),
    ("linux-32", 36, "Linux"),
    ("debian", 96, "Debian, 64-bit"),
    ("debian-32", 95, "Debian"),
    ("ubuntu", 94, "Ubuntu, 64-bit"),
    ("ubuntu-32", 93, "Ubuntu"),
    ("rhel", 80, "Red Hat Enterprise Linux, 64-bit"),
    ("rhel-32", 79, "Red Hat Enterprise Linux"),
    ("centos", 107, "CentOS, 64-bit"),
    ("oracle", 109, "Oracle Linux, 64-bit"),
    ("suse", 83, "SUSE, 64-bit"),
    ("sles", 85, "SUSE Linux Enterprise Server, 64-bit"),
    ("freebsd", 78, "FreeBSD, 64-bit"),
    ("freebsd-32", 42, "FreeBSD"),
    ("netbsd", 43, "NetBSD"),
    ("openbsd", 65, "OpenBSD"),
    ("solaris", 81, "Solaris, 64-bit"),
    ("dos", 14, "MS-DOS"),
    ("windows-xp", 67, "Windows XP"),
    ("windows-7", 105, "Windows 7"),
    ("windows-8", 114, "Windows 8, 64-bit"),
    ("windows-8.1", 117, "Windows 8.1, 64-bit"),
    ("windows-10", 120, "Windows 10, 64-bit"),
    ("windows-10-32", 119, "Windows 10"),
    ("windows-2008r2", 103, "Windows Server 2008 R2"),
    ("windows-2012", 112, "Windows Server 2012"),
    ("windows-2012r2", 115, "Windows Server 2012 R2"),
    ("windows-2016", 118, "Windows Server 2016"),
    ("esxi", 104, "VMware ESXi"),
];

/// The number and the name of an operating system, by what the user calls it.
pub fn system(name: &str) -> Option<(u16, Option<&'static str>)> {
    let known = |s: &&(&str, u16, &'static str)| s.0 == name || name.parse() == Ok(s.1);
    let found = SYSTEMS.iter().find(known).map(|s| (s.1, Some(s.2)));
    found.or_else(|| Some((name.parse().ok()?, None)))
}

/// The names that [`system`] takes.
pub fn systems() -> String {
    let width = SYSTEMS.iter().map(|s| s.0.len()).max().unwrap_or(0);
    SYSTEMS.iter().map(|(name, number, text)| format!("  {name:width$}  {number:>3}  {text}\n")).collect()
}

fn controller(kind: &ControllerKind) -> String {
    match kind {
        ControllerKind::Ide => "IDE".into(),
        ControllerKind::Scsi(model) if model.is_empty() => "SCSI".into(),
        ControllerKind::Scsi(model) => format!("SCSI ({model})"),
        ControllerKind::Sata => "SATA".into(),
        ControllerKind::Nvme => "NVMe".into(),
        ControllerKind::Other(model) => model.clone(),
    }
}

fn firmware(of: Firmware) -> &'static str {
    match of {
        Firmware::Bios => "BIOS",
        Firmware::Efi { secure_boot: false } => "UEFI",
        Firmware::Efi { secure_boot: true } => "UEFI with Secure Boot",
    }
}

/// A machine, for programs.
pub fn value(m: &MachineDescription) -> Value {
    let secure = m.firmware == Firmware::Efi { secure_boot: true };
    json!({
        "name": m.name, "cpus": m.cpus, "memory": m.memory, "hardware": m.hardware,
        "firmware": if m.firmware == Firmware::Bios { "bios" } else { "efi" }, "secure_boot": secure,
        "os": m.os.as_ref().map(|o| json!({ "id": o.id, "version": o.version, "description": o.description })),
        "controllers": m.controllers.iter()
            .map(|c| json!({ "kind": controller(&c.kind), "address": c.address })).collect::<Vec<_>>(),
        "disks": m.disks.iter().map(|d| json!({
            "id": d.id, "capacity": d.capacity, "file": d.file, "format": d.format, "parent": d.parent,
            "controller": d.controller.map(|c| c.0), "place": d.controller.and_then(|c| c.1),
        })).collect::<Vec<_>>(),
        "nics": m.nics.iter()
            .map(|n| json!({ "model": n.model, "network": n.network, "mac": n.mac })).collect::<Vec<_>>(),
        "not_understood": m.other,
    })
}

/// What a disk is, in a line.
fn disk_line(m: &MachineDescription, d: &Disk) -> String {
    let file = d.file.as_deref().unwrap_or("empty, without a file");
    let at = d.controller.and_then(|(c, place)| {
        let kind = controller(&m.controllers.get(c)?.kind);
        Some(format!(", on {kind}{}", place.map_or(String::new(), |p| format!(" at {p}"))))
    });
    format!("{file}: {}{}", size::show(d.capacity), at.unwrap_or_default())
}

/// A machine, for people.
fn text(m: &MachineDescription, first_disk: usize) -> String {
    let number = |n: u32| if n == 0 { "not said".to_owned() } else { n.to_string() };
    let mut lines = vec![
        ("machine".to_owned(), m.name.clone()),
        ("CPUs".to_owned(), number(m.cpus)),
        ("memory".to_owned(), if m.memory == 0 { "not said".into() } else { size::show(m.memory) }),
        ("firmware".to_owned(), firmware(m.firmware).into()),
    ];
    if let Some(os) = &m.os {
        let known = system(&os.id.to_string()).and_then(|s| s.1);
        let name = os
            .description
            .clone()
            .or(known.map(str::to_owned))
            .unwrap_or_else(|| format!("number {}", os.id));
        let version = os.version.as_ref().map_or(String::new(), |v| format!(" {v}"));
        lines.push(("operating system".into(), format!("{name}{version}")));
    }
    if let Some(hardware) = &m.hardware {
        lines.push(("hardware".into(), hardware.clone()));
    }
    for (n, d) in m.disks.iter().enumerate() {
        lines.push((format!("disk {}", first_disk + n), disk_line(m, d)));
    }
    for n in &m.nics {
        let network = if n.network.is_empty() { "no network" } else { &n.network };
        let model = if n.model.is_empty() { String::new() } else { format!(" ({})", n.model) };
        lines.push(("network".into(), format!("{network}{model}")));
    }
    if !m.other.is_empty() {
        lines.push(("not understood".into(), format!("{} parts of its description", m.other.len())));
    }
    let width = lines.iter().map(|l| l.0.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {}\n", one_line(value))).collect()
}

/// `plinth disk info PACKAGE`.
pub fn info(path: &Path, global: &Global) -> Result<ExitCode> {
    let package = interruptible(async { Package::open(path).await.map_err(failed) })?;
    let mut all = format!("package           {}\n", path.display());
    let mut first_disk = 1;
    for machine in &package.machines {
        all.push('\n');
        all.push_str(&text(machine, first_disk));
        first_disk += machine.disks.len();
    }
    let manifest = package.manifest.as_ref();
    all += &match manifest {
        Some(m) => format!("\n{} files have checksums: `plinth disk check` compares them\n", m.entries.len()),
        None => "\nit has no checksums\n".to_owned(),
    };
    let files = package.files.iter();
    let value = json!({
        "path": path, "machines": package.machines.iter().map(value).collect::<Vec<_>>(),
        "files": files.map(|f| json!({ "id": f.id, "name": f.name, "size": f.size })).collect::<Vec<_>>(),
        "manifest": manifest.is_some(), "not_understood": package.other,
    });
    result(global, &value, &all)?;
    Ok(ExitCode::SUCCESS)
}

/// `plinth disk check PACKAGE`: compares the files with the manifest.
pub fn check(path: &Path, global: &Global) -> Result<ExitCode> {
    let verified = with_progress("checking", async |progress| {
        let package = Package::open(path).await.map_err(failed)?;
        match package.verify(progress).await {
            Ok(verified) => Ok(Ok(verified)),
            Err(e) if e.kind == plinth_image::ErrorKind::Corrupt => Ok(Err(e.to_string())),
            Err(e) => Err(failed(e)),
        }
    })?;
    let (clean, text, files, unlisted) = match verified {
        Err(why) => {
            (false, format!("{why}\nthe package is NOT in order: get it again\n"), Vec::new(), Vec::new())
        }
        Ok(None) => {
            let text = "it has no manifest (.mf), so there is nothing to compare its files with\n".to_owned();
            (true, text, Vec::new(), Vec::new())
        }
        Ok(Some(v)) => {
            let mut text = format!("{} files have the checksums that the manifest says\n", v.files.len());
            for name in &v.unlisted {
                text += &format!("the manifest does not have '{}'\n", name.escape_debug());
            }
            (true, text, v.files, v.unlisted)
        }
    };
    let messages: Vec<&str> = if clean { Vec::new() } else { text.lines().take(1).collect() };
    let value = json!({ "clean": clean, "verified": files, "unlisted": unlisted, "messages": messages });
    result(global, &value, &text)?;
    Ok(if clean { ExitCode::SUCCESS } else { Code::Failed.into() })
}
