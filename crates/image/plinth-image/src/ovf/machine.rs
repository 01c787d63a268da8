//! What an envelope says of a machine.
//!
//! Sources: DMTF DSP0243 (OVF 1.1.1 and 2.1.1); the numbers of resource types are those of the CIM schema's
//! `CIM_ResourceAllocationSettingData`, and of operating systems those of `CIM_OperatingSystem`.

use super::xml::Element;

/// What starts the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS.
    #[default]
    Bios,
    /// UEFI.
    Efi {
        /// Only signed programs are started.
        secure_boot: bool,
    },
}

/// What a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// IDE (parallel ATA).
    Ide,
    /// SCSI, with the model that the envelope has: `lsilogic`, `lsilogicsas`, `buslogic`, `VirtualSCSI`.
    Scsi(String),
    /// AHCI.
    Sata,
    /// NVMe.
    Nvme,
    /// Something else that has disks, with what the envelope calls it.
    Other(String),
}

/// A controller of disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// What it is.
    pub kind: ControllerKind,
    /// Its number among those of its kind.
    pub address: Option<u32>,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Unique within the package.
    pub id: String,
    /// Bytes.
    pub capacity: u64,
    /// The file with its contents, in the package; `None`: it is empty.
    pub file: Option<String>,
    /// The format's address, as the envelope has it.
    pub format: String,
    /// The disk below, by its ID.
    pub parent: Option<String>,
    /// Index of its controller, and its place there.
    pub controller: Option<(usize, Option<u32>)>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// `E1000`, `VmxNet3`, `PCNet32`, `virtio`; empty if nothing is said.
    pub model: String,
    /// The network that it is connected to.
    pub network: String,
    /// Its MAC address, if it is fixed.
    pub mac: Option<String>,
}

/// The operating system that is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatingSystem {
    /// Number of CIM; 1 is "other".
    pub id: u16,
    /// Its version.
    pub version: Option<String>,
    /// In words, or a product's own name for it.
    pub description: Option<String>,
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineDescription {
    /// Its name.
    pub name: String,
    /// CPUs; 0 if nothing is said.
    pub cpus: u32,
    /// Bytes of memory; 0 if nothing is said.
    pub memory: u64,
    /// What starts it.
    pub firmware: Firmware,
    /// Its operating system.
    pub os: Option<OperatingSystem>,
    /// The family of virtual hardware, such as `vmx-13` or `virtualbox-2.2`.
    pub hardware: Option<String>,
    /// Controllers that disks can be on.
    pub controllers: Vec<Controller>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Sections and devices that are not understood here, as they are in the envelope.
    pub other: Vec<String>,
}

/// The factor of `byte * 2^20`, `MegaBytes` and the like (DSP0004, programmatic units).
fn unit(text: Option<&str>) -> Result<u64, String> {
    let Some(text) = text else { return Ok(1) };
    let unknown = || format!("the unit '{text}' is not known");
    let compact: String =
        text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
    match compact.as_str() {
        "byte" | "bytes" => return Ok(1),
        "kilobytes" | "kb" => return Ok(1 << 10),
        "megabytes" | "mb" => return Ok(1 << 20),
        "gigabytes" | "gb" => return Ok(1 << 30),
        "terabytes" | "tb" => return Ok(1 << 40),
        _ => {}
    }
    let factor = compact.strip_prefix("byte*").ok_or_else(unknown)?;
    let (base, power) = factor.split_once('^').unwrap_or((factor, "1"));
    let (base, power): (u64, u32) =
        (base.parse().map_err(|_| unknown())?, power.parse().map_err(|_| unknown())?);
    base.checked_pow(power).ok_or_else(unknown)
}

fn amount(number: &str, units: Option<&str>) -> Result<u64, String> {
    let n: u64 = number.trim().parse().map_err(|_| format!("'{number}' is not a number"))?;
    n.checked_mul(unit(units)?)
        .filter(|&n| n <= i64::MAX as u64)
        .ok_or_else(|| format!("'{number}' is too large"))
}

/// What the whole envelope has, for one of its machines.
pub struct Context<'a> {
    pub text: &'a str,
    pub envelope: &'a Element,
    /// IDs and names of files.
    pub files: &'a [super::PackageFile],
}

impl Context<'_> {
    /// The capacity of a disk can be a property's default: `${disk.size}`.
    fn resolve<'b>(&self, value: &'b str, system: &'b Element) -> Result<&'b str, String> {
        let Some(key) = value.strip_prefix("${").and_then(|v| v.strip_suffix('}')) else { return Ok(value) };
        let properties = system.all("ProductSection").flat_map(|p| p.all("Property"));
        let found = properties.into_iter().find(|p| p.attribute("key") == Some(key));
        found.and_then(|p| p.attribute("value")).ok_or_else(|| format!("the property '{key}' has no value"))
    }

    fn disk(&self, id: &str, system: &Element) -> Result<Disk, String> {
        let disks = self.envelope.all("DiskSection").flat_map(|s| s.all("Disk"));
        let found = disks.into_iter().find(|d| d.attribute("diskId") == Some(id));
        let disk = found.ok_or_else(|| format!("there is no disk '{id}'"))?;
        let file = match disk.attribute("fileRef").filter(|r| !r.is_empty()) {
            None => None,
            Some(r) => {
                let file = self.files.iter().find(|f| f.id == r);
                Some(file.ok_or_else(|| format!("there is no file '{r}'"))?.name.clone())
            }
        };
        let capacity =
            disk.attribute("capacity").ok_or_else(|| format!("the disk '{id}' has no capacity"))?;
        let capacity = self.resolve(capacity, system)?;
        Ok(Disk {
            id: id.to_owned(),
            capacity: amount(capacity, disk.attribute("capacityAllocationUnits"))?,
            file,
            format: disk.attribute("format").unwrap_or_default().to_owned(),
            parent: disk.attribute("parentRef").map(str::to_owned),
            controller: None,
        })
    }

    fn raw(&self, element: &Element) -> String {
        self.text.get(element.place.clone()).unwrap_or_default().to_owned()
    }

    /// The configuration that holds if nobody chooses one.
    fn configuration(&self) -> Option<&str> {
        let all = self.envelope.child("DeploymentOptionSection")?;
        let chosen = all.all("Configuration").find(|c| c.attribute("default") == Some("true"));
        chosen.or_else(|| all.child("Configuration"))?.attribute("id")
    }

    /// Items that hold: of the default configuration, and no bounds of ranges.
    fn items<'a>(&self, hardware: &'a Element) -> Vec<&'a Element> {
        let chosen = self.configuration();
        let mut items: Vec<&Element> = Vec::new();
        for item in &hardware.children {
            if !matches!(item.name.as_str(), "Item" | "StorageItem" | "EthernetPortItem") {
                continue;
            }
            if item.attribute("bound").is_some_and(|b| b != "normal") {
                continue;
            }
            if let Some(of) = item.attribute("configuration") {
                if !of.split_whitespace().any(|c| Some(c) == chosen) {
                    continue;
                }
                // It takes the place of the one that is for all.
                let id = item.text_of("InstanceID");
                items.retain(|i| i.text_of("InstanceID") != id);
            }
            items.push(item);
        }
        items
    }

    /// Reads one `VirtualSystem`.
    pub fn machine(&self, system: &Element) -> Result<MachineDescription, String> {
        let id = system.attribute("id").unwrap_or("machine");
        let name = system.text_of("Name").unwrap_or(id).to_owned();
        let mut machine = MachineDescription { name, ..MachineDescription::default() };
        for section in &system.children {
            match section.name.as_str() {
                "Info" | "Name" => {}
                "OperatingSystemSection" => {
                    machine.os = Some(OperatingSystem {
                        id: section.attribute("id").and_then(|i| i.parse().ok()).unwrap_or(1),
                        version: section.attribute("version").map(str::to_owned),
                        description: section.text_of("Description").map(str::to_owned),
                    });
                }
                "VirtualHardwareSection" => self.hardware(section, system, &mut machine)?,
                _ => {
                    // VirtualBox has a description of its own beside the envelope's.
                    if section.name == "Machine"
                        && let Some(kind) = section.find("Firmware").and_then(|f| f.attribute("type"))
                        && kind.starts_with("EFI")
                    {
                        machine.firmware = Firmware::Efi { secure_boot: false };
                    }
                    machine.other.push(self.raw(section));
                }
            }
        }
        Ok(machine)
    }

    fn hardware(
        &self,
        section: &Element,
        system: &Element,
        machine: &mut MachineDescription,
    ) -> Result<(), String> {
        if let Some(family) = section.child("System") {
            machine.hardware = family.text_of("VirtualSystemType").map(str::to_owned);
        }
        let items = self.items(section);
        let mut instances = Vec::new();
        for item in &items {
            let kind = item.text_of("ResourceType").and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
            let model = item.text_of("ResourceSubType").unwrap_or_default();
            let kind = match kind {
                5 => ControllerKind::Ide,
                6 => ControllerKind::Scsi(model.to_owned()),
                20 if model.to_ascii_lowercase().contains("nvme") => ControllerKind::Nvme,
                20 if model.to_ascii_lowercase().contains("ahci") => ControllerKind::Sata,
                20 => ControllerKind::Other(model.to_owned()),
                _ => continue,
            };
            let address = item.text_of("Address").and_then(|a| a.parse().ok());
            machine.controllers.push(Controller { kind, address });
            instances.push(item.text_of("InstanceID").unwrap_or_default());
        }
        for item in items {
            let kind = item.text_of("ResourceType").and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
            match kind {
                3 => {
                    let n = item.text_of("VirtualQuantity").unwrap_or("1");
                    machine.cpus = n.parse().map_err(|_| format!("'{n}' is not a number of CPUs"))?;
                }
                4 => {
                    let n = item.text_of("VirtualQuantity").unwrap_or("0");
                    machine.memory = amount(n, item.text_of("AllocationUnits"))?;
                }
                5 | 6 | 20 => {}
                10 => machine.nics.push(Nic {
                    model: item.text_of("ResourceSubType").unwrap_or_default().to_owned(),
                    network: item.text_of("Connection").unwrap_or_default().to_owned(),
                    mac: item.text_of("Address").filter(|a| a.len() >= 12).map(str::to_owned),
                }),
                17 => {
                    let host = item.text_of("HostResource").unwrap_or_default();
                    let Some((_, id)) = host.split_once("/disk/") else {
                        machine.other.push(self.raw(item));
                        continue;
                    };
                    let mut disk = self.disk(id, system)?;
                    let parent = item.text_of("Parent").unwrap_or_default();
                    let place = item.text_of("AddressOnParent").and_then(|a| a.parse().ok());
                    disk.controller = instances.iter().position(|i| *i == parent).map(|c| (c, place));
                    machine.disks.push(disk);
                }
                _ => machine.other.push(self.raw(item)),
            }
        }
        let config = |key: &str| {
            let found = section.all("Config").find(|c| c.attribute("key") == Some(key));
            found.and_then(|c| c.attribute("value"))
        };
        if config("firmware") == Some("efi") {
            let secure_boot = config("bootOptions.efiSecureBootEnabled") == Some("true");
            machine.firmware = Firmware::Efi { secure_boot };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, factor) in
            [("byte", 1), ("byte * 2^20", 1 << 20), ("MegaBytes", 1 << 20), ("byte*10^9", 1_000_000_000)]
        {
            assert_eq!(unit(Some(text)), Ok(factor), "{text}");
        }
        for text in ["hertz * 10^6", "byte * 2^64", "byte * x", ""] {
            assert!(unit(Some(text)).is_err(), "{text}");
        }
        assert!(amount("9999999999", Some("byte * 2^40")).is_err());
    }
}
