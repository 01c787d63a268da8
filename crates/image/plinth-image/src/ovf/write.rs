//! Writing packages.
//!
//! Disks are streams that are written once, so an archive needs no second copy of them: the envelope and the
//! manifest, which come first in it, have places whose sizes are known, and are written last.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::machine::{ControllerKind, Firmware, MachineDescription};
use super::manifest::{Algorithm, Manifest, checksum};
use super::part::Window;
use super::xml::escape;
use crate::format::{CreateRequest, Format, Image, Options, Output, OutputFiles, Progress};
use crate::graph::{Cache, Io, IoBuf, IoData, NodeRef, is_zero};
use crate::{Error, ErrorKind};

/// Requests in flight while a disk is copied, and bytes of each.
const DEPTH: usize = 8;
const AT_ONCE: u64 = 1 << 20;
/// Bytes of a tar archive's blocks.
const BLOCK: u64 = 512;
/// The address by which streams are known.
const STREAM: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

/// Lets a disk be created in a file that is there.
struct Here<'a> {
    name: &'a str,
    node: NodeRef,
}

impl Output for Here<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn main(&self) -> Io<'_, NodeRef> {
        Box::pin(async { Ok(self.node.clone()) })
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            let why = "a stream is one file";
            Err(Error::new(ErrorKind::Unsupported, format!("cannot create '{name}'"), why))
        })
    }
}

/// A disk's file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name in the package.
    pub file: String,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the disk.
    pub capacity: u64,
}

fn is_archive(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|n| n.1.eq_ignore_ascii_case("ova"))
}

/// The names of the files that a package of so many disks has in its folder, the one at `path` last.
#[must_use]
pub fn package_files(path: &Path, disks: usize) -> Vec<PathBuf> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name.as_str(), |n| n.0);
    let mut all = Vec::new();
    if !is_archive(&name) {
        all.extend((1..=disks).map(|n| path.with_file_name(disk_name(stem, n))));
        all.push(path.with_file_name(format!("{stem}.mf")));
    }
    all.push(path.to_owned());
    all
}

fn disk_name(stem: &str, number: usize) -> String {
    format!("{stem}-disk{number}.vmdk")
}

/// Writes a machine and its disks: an archive if the name ends in `.ova`, else an envelope with its files beside it.
/// `disks` are the contents of the machine's disks, in their order; `None` for an empty one. The files that the
/// disks are in then are returned.
///
/// The files get their names when all is written and durable.
///
/// # Errors
/// As for reading the disks and writing files; [`ErrorKind::Invalid`] if the description makes no sense.
pub async fn write_package(
    path: &Path,
    machine: &MachineDescription,
    disks: &[Option<NodeRef>],
    progress: &Progress,
) -> Result<Vec<Written>, Error> {
    let output = OutputFiles::new(path, Cache::Cached)?;
    let stem = output.name().rsplit_once('.').map_or(output.name(), |n| n.0);
    let archive = is_archive(output.name());
    let invalid =
        |why: String| Error::new(ErrorKind::Invalid, format!("cannot write '{}'", path.display()), why);
    if disks.len() != machine.disks.len() {
        let why = format!(
            "the machine has {} disks, and there are contents of {}",
            machine.disks.len(),
            disks.len()
        );
        return Err(invalid(why));
    }
    let main = output.main().await?;
    let mut files = Vec::new();
    for (n, disk) in disks.iter().enumerate() {
        files.push(disk.as_ref().map(|_| (disk_name(stem, n + 1), u64::MAX)));
    }
    let capacities: Vec<u64> =
        machine.disks.iter().zip(disks).map(|(d, n)| n.as_ref().map_or(d.capacity, |n| n.size())).collect();
    progress.total.set(capacities.iter().sum());
    let envelope = format!("{stem}.ovf");
    let manifest_name = format!("{stem}.mf");
    let room = envelope_text(machine, &capacities, &files).map_err(invalid)?.len() as u64;
    let mut manifest = Manifest::default();
    manifest.entries.push((envelope.clone(), Algorithm::Sha256, "0".repeat(64)));
    for (name, _) in files.iter().flatten() {
        manifest.entries.push((name.clone(), Algorithm::Sha256, "0".repeat(64)));
    }
    let manifest_room = manifest.write().len() as u64;
    let block = |n: u64| n.next_multiple_of(BLOCK);
    let mut at = BLOCK + block(room) + BLOCK + block(manifest_room);
    let mut sums = Vec::new();
    for (n, source) in disks.iter().enumerate() {
        let (Some(source), Some(file)) = (source, &mut files[n]) else { continue };
        let node: NodeRef = if archive {
            Rc::new(Window::new(main.clone(), at + BLOCK))
        } else {
            output.sibling(&file.0).await?
        };
        stream(source, &file.0, node.clone(), progress).await?;
        file.1 = node.size();
        progress.total.set(progress.total.get() + file.1);
        sums.push(checksum(&*node, Algorithm::Sha256, progress).await?);
        if archive {
            main.write(at, header(&file.0, file.1)?).await?;
            at += BLOCK + block(file.1);
        }
    }
    let mut text = envelope_text(machine, &capacities, &files).map_err(invalid)?;
    if archive {
        // Sizes had more digits when its place was measured.
        text.extend(std::iter::repeat_n('\n', (room as usize).saturating_sub(text.len())));
    }
    let bytes = IoData::copy_of(text.as_bytes());
    let whole = crate::graph::MemoryNode::with(&envelope, text.as_bytes());
    manifest.entries[0].2 = checksum(&whole, Algorithm::Sha256, &Progress::default()).await?;
    for (entry, sum) in manifest.entries[1..].iter_mut().zip(sums) {
        entry.2 = sum;
    }
    let manifest_bytes = IoData::copy_of(manifest.write().as_bytes());
    if archive {
        main.write(0, header(&envelope, bytes.len() as u64)?).await?;
        main.write(BLOCK, bytes).await?;
        let next = BLOCK + block(room);
        main.write(next, header(&manifest_name, manifest_bytes.len() as u64)?).await?;
        main.write(next + BLOCK, manifest_bytes).await?;
        // Two empty blocks end an archive.
        main.write(at, IoBuf::zeroed(2 * BLOCK as usize).freeze()).await?;
    } else {
        let side = output.sibling(&manifest_name).await?;
        side.write(0, manifest_bytes).await?;
        side.flush().await?;
        main.write(0, bytes).await?;
    }
    main.flush().await?;
    drop(main);
    output.finish()?;
    let written = files.into_iter().zip(capacities);
    Ok(written.filter_map(|(f, capacity)| f.map(|(file, size)| Written { file, size, capacity })).collect())
}

/// Copies a disk into a stream.
async fn stream(source: &NodeRef, name: &str, node: NodeRef, progress: &Progress) -> Result<(), Error> {
    let output = Here { name, node };
    let mut options = Options::default();
    options.set("subformat", "streamOptimized");
    options.set("adapter_type", "lsilogic");
    let request = CreateRequest {
        output: &output,
        size: source.size(),
        options: &options,
        backing: None,
        secret: None,
    };
    let create = Format::Vmdk.driver().and_then(|d| d.create).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("cannot create '{name}'"), "there is no driver for vmdk")
    })?;
    let disk: Rc<dyn Image> = create(request).await?;
    let disk = &disk;
    let mut running = FuturesUnordered::new();
    let mut at = 0;
    while at < source.size() {
        let extent = source.status(at, source.size() - at).await?;
        let skip = if extent.zero { extent.len / AT_ONCE * AT_ONCE } else { 0 };
        if skip > 0 {
            progress.add(skip);
            at += skip;
            continue;
        }
        let (here, n) = (at, AT_ONCE.min(source.size() - at));
        at += n;
        running.push(async move {
            let data = source.read(here, IoBuf::new(n as usize)).await?;
            if !is_zero(&data) {
                disk.write(here, data.freeze()).await?;
            }
            progress.add(n);
            Ok::<(), Error>(())
        });
        if running.len() >= DEPTH {
            running.next().await.unwrap_or(Ok(()))?;
        }
    }
    while let Some(done) = running.next().await {
        done?;
    }
    drop(running);
    disk.close().await
}

/// The header of a file in a tar archive.
fn header(name: &str, size: u64) -> Result<IoData, Error> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|e| Error::from_host("put into an archive", name, e))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(IoData::copy_of(header.as_bytes()))
}

/// One `Item` of the hardware.
struct Item<'a> {
    kind: u32,
    instance: usize,
    name: String,
    /// More elements, in the order of their names, which the schema asks for.
    more: &'a [(&'a str, String)],
}

fn item(out: &mut String, item: &Item<'_>) {
    let mut fields = vec![
        ("ElementName", item.name.clone()),
        ("InstanceID", item.instance.to_string()),
        ("ResourceType", item.kind.to_string()),
    ];
    fields.extend(item.more.iter().filter(|f| !f.1.is_empty()).cloned());
    fields.sort_by_key(|f| f.0);
    out.push_str("      <Item>\n");
    for (name, value) in fields {
        let _ = writeln!(out, "        <rasd:{name}>{}</rasd:{name}>", escape(&value));
    }
    out.push_str("      </Item>\n");
}

/// The envelope. `files`: name and bytes of each disk's file.
fn envelope_text(
    machine: &MachineDescription,
    capacities: &[u64],
    files: &[Option<(String, u64)>],
) -> Result<String, String> {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope ovf:version=\"1.0\" xml:lang=\"en-US\" xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
         xmlns:vmw=\"http://www.vmware.com/schema/ovf\" xmlns:vbox=\"http://www.virtualbox.org/ovf/machine\" \
         xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n  <References>\n",
    );
    for (n, (name, size)) in files.iter().enumerate().filter_map(|(n, f)| Some((n, f.as_ref()?))) {
        let _ = writeln!(
            out,
            "    <File ovf:href=\"{}\" ovf:id=\"file{}\" ovf:size=\"{size}\"/>",
            escape(&href(name)),
            n + 1
        );
    }
    out.push_str("  </References>\n  <DiskSection>\n    <Info>Virtual disks</Info>\n");
    for (n, (capacity, file)) in capacities.iter().zip(files).enumerate() {
        let n = n + 1;
        let file = if file.is_some() { format!(" ovf:fileRef=\"file{n}\"") } else { String::new() };
        let _ = writeln!(
            out,
            "    <Disk ovf:capacity=\"{capacity}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk{n}\"{file} \
             ovf:format=\"{STREAM}\"/>"
        );
    }
    out.push_str("  </DiskSection>\n  <NetworkSection>\n    <Info>Networks</Info>\n");
    let mut networks: Vec<&str> =
        machine.nics.iter().map(|n| n.network.as_str()).filter(|n| !n.is_empty()).collect();
    networks.sort_unstable();
    networks.dedup();
    for network in networks {
        let name = escape(network);
        let _ = writeln!(out, "    <Network ovf:name=\"{name}\"><Description>{name}</Description></Network>");
    }
    out.push_str("  </NetworkSection>\n");
    let name = escape(&machine.name);
    let _ = writeln!(
        out,
        "  <VirtualSystem ovf:id=\"{name}\">\n    <Info>A virtual machine</Info>\n    <Name>{name}</Name>"
    );
    let os = machine.os.clone().unwrap_or(super::OperatingSystem { id: 1, ..Default::default() });
    let version = os.version.map_or(String::new(), |v| format!(" ovf:version=\"{}\"", escape(&v)));
    let _ = writeln!(
        out,
        "    <OperatingSystemSection ovf:id=\"{}\"{version}>\n      <Info>The operating system</Info>",
        os.id
    );
    if let Some(description) = os.description {
        let _ = writeln!(out, "      <Description>{}</Description>", escape(&description));
    }
    out.push_str("    </OperatingSystemSection>\n");
    hardware_text(&mut out, machine)?;
    out.push_str("  </VirtualSystem>\n</Envelope>\n");
    Ok(out)
}

/// A name as an address.
fn href(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn hardware_text(out: &mut String, machine: &MachineDescription) -> Result<(), String> {
    let family = escape(machine.hardware.as_deref().unwrap_or("vmx-10"));
    let _ = writeln!(
        out,
        "    <VirtualHardwareSection>\n      <Info>Virtual hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>{family}</vssd:VirtualSystemType>\n      </System>",
        escape(&machine.name)
    );
    let one = |kind, instance, name: &str, more: &[(&str, String)], out: &mut String| {
        item(out, &Item { kind, instance, name: name.to_owned(), more });
    };
    let cpus = [
        ("AllocationUnits", "hertz * 10^6".to_owned()),
        ("VirtualQuantity", machine.cpus.max(1).to_string()),
    ];
    one(3, 1, "CPUs", &cpus, out);
    // Memory is given in MiB where that is exact, which old readers insist on.
    let (units, quantity) = match machine.memory {
        m if m.is_multiple_of(1 << 20) => ("byte * 2^20", m >> 20),
        m => ("byte", m),
    };
    one(
        4,
        2,
        "Memory",
        &[("AllocationUnits", units.to_owned()), ("VirtualQuantity", quantity.to_string())],
        out,
    );
    const FIRST: usize = 3;
    for (n, controller) in machine.controllers.iter().enumerate() {
        let (kind, name, model) = match &controller.kind {
            ControllerKind::Ide => (5, "IDE controller", ""),
            ControllerKind::Scsi(model) => (6, "SCSI controller", model.as_str()),
            ControllerKind::Sata => (20, "SATA controller", "AHCI"),
            ControllerKind::Nvme => (20, "NVMe controller", "vmware.nvme.controller"),
            ControllerKind::Other(model) => (20, "Storage controller", model.as_str()),
        };
        let address = controller.address.unwrap_or(0).to_string();
        one(kind, FIRST + n, name, &[("Address", address), ("ResourceSubType", model.to_owned())], out);
    }
    let disks = FIRST + machine.controllers.len();
    let mut places = std::collections::HashMap::new();
    for (n, disk) in machine.disks.iter().enumerate() {
        let mut more = vec![("HostResource", format!("ovf:/disk/vmdisk{}", n + 1))];
        if let Some((controller, place)) = disk.controller {
            if controller >= machine.controllers.len() {
                return Err(format!("the disk '{}' is on a controller that is not there", disk.id));
            }
            let next = places.entry(controller).or_insert(0u32);
            let place = place.unwrap_or(*next);
            *next = place.saturating_add(1);
            more.push(("Parent", (FIRST + controller).to_string()));
            more.push(("AddressOnParent", place.to_string()));
        }
        one(17, disks + n, &format!("Disk {}", n + 1), &more, out);
    }
    for (n, nic) in machine.nics.iter().enumerate() {
        let more = [
            ("Address", nic.mac.clone().unwrap_or_default()),
            ("AutomaticAllocation", "true".to_owned()),
            ("Connection", nic.network.clone()),
            ("ResourceSubType", nic.model.clone()),
        ];
        one(10, disks + machine.disks.len() + n, &format!("Network interface {}", n + 1), &more, out);
    }
    if let Firmware::Efi { secure_boot } = machine.firmware {
        out.push_str("      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"efi\"/>\n");
        let _ = writeln!(
            out,
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"bootOptions.efiSecureBootEnabled\" vmw:value=\"{secure_boot}\"/>"
        );
    }
    out.push_str("    </VirtualHardwareSection>\n");
    Ok(())
}
