//! The `--disk` option.

use std::path::PathBuf;
use std::str::FromStr;

use plinth_image::format::Format;

/// How a device is reached by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceBus {
    /// A PCI Express function.
    #[default]
    VirtioPci,
    /// Registers at a fixed address.
    VirtioMmio,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// The image file, or a block device.
    pub path: PathBuf,
    /// The guest cannot write, and other machines can read along.
    pub read_only: bool,
    /// The format, if the user says so; else the contents decide.
    pub format: Option<Format>,
    /// How the guest reaches it.
    pub bus: DeviceBus,
}

fn on_off(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(format!("{key}={value}: write {key}=on or {key}=off")),
    }
}

impl FromStr for DiskOption {
    type Err = String;

    /// A path, or `path=FILE,key=value...`; a comma in the path is doubled there.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk =
            Self { path: PathBuf::from(text), read_only: false, format: None, bus: DeviceBus::default() };
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if !text.starts_with("path=") {
            return Ok(disk);
        }
        // The character cannot be in a path.
        for field in text.replace(",,", "\0").split(',') {
            let field = field.replace('\0', ",");
            let (key, value) =
                field.split_once('=').ok_or_else(|| format!("'{field}' is not of the form key=value"))?;
            match (key, value) {
                ("path", "") => return Err("the path is empty".to_owned()),
                ("path", path) => disk.path = PathBuf::from(path),
                ("readonly", v) => disk.read_only = on_off(key, v)?,
                ("format", v) => disk.format = Some(v.parse().map_err(|e| format!("{e}"))?),
                ("bus", "virtio-pci") => disk.bus = DeviceBus::VirtioPci,
                ("bus", "virtio-mmio") => disk.bus = DeviceBus::VirtioMmio,
                ("bus", v) => return Err(format!("bus={v}: write bus=virtio-pci or bus=virtio-mmio")),
                _ => return Err(format!("'{key}' is not one of path, readonly, format, bus")),
            }
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_keys_are_read() {
        let disk: DiskOption = "/a/b=c,d.raw".parse().unwrap();
        assert_eq!((disk.path.to_str(), disk.read_only), (Some("/a/b=c,d.raw"), false));
        let disk: DiskOption = "path=x,,y.raw,readonly=on,format=raw,bus=virtio-mmio".parse().unwrap();
        let want = DiskOption {
            path: "x,y.raw".into(),
            read_only: true,
            format: Some(Format::Raw),
            bus: DeviceBus::VirtioMmio,
        };
        assert_eq!(disk, want);
        for bad in ["", "path=", "path=x,readonly", "path=x,readonly=2", "path=x,format=qcow9", "path=x,a=b"]
        {
            assert!(bad.parse::<DiskOption>().is_err(), "{bad}");
        }
    }
}
