//! Which program made a disk image, as far as the image says.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Parallels' name of a disk's first layer, which is the same in all of its disks.
const PARALLELS: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";

/// The program's name; empty if the image does not say it.
pub fn made_by(image: &Path) -> String {
    if image.is_dir() {
        let text = std::fs::read_to_string(image.join("DiskDescriptor.xml")).unwrap_or_default();
        return if text.contains(PARALLELS) { "Parallels" } else { "" }.to_owned();
    }
    let Ok(file) = File::open(image) else { return String::new() };
    let mut start = Vec::new();
    if (&file).take(1 << 16).read_to_end(&mut start).is_err() {
        return String::new();
    }
    let mut footer = [0; 512];
    let end = file.metadata().map_or(0, |m| m.len());
    let has_footer = file.read_exact_at(&mut footer, end.saturating_sub(512)).is_ok();
    if start.starts_with(b"conectix") {
        vhd(&start)
    } else if has_footer && footer.starts_with(b"conectix") {
        vhd(&footer)
    } else if start.starts_with(b"vhdxfile") {
        vhdx(&start)
    } else if start.starts_with(b"<<< ") {
        vdi(&start)
    } else {
        vmdk(&String::from_utf8_lossy(&start)).to_owned()
    }
}

/// The field "creator application" of a VHD's footer (Microsoft's specification, "Hard Disk Footer Format").
fn vhd(footer: &[u8]) -> String {
    let name = footer.get(28..32).unwrap_or_default();
    let known = match name {
        b"vpc " => "Virtual PC",
        b"vs  " => "Virtual Server",
        b"win " => "Windows or Hyper-V",
        b"vbox" => "VirtualBox",
        b"d2v " => "Disk2vhd",
        b"qemu" | b"qem2" => "QEMU",
        b"tap\0" => "Xen (blktap)",
        _ => return String::from_utf8_lossy(name).trim_matches([' ', '\0']).to_owned(),
    };
    known.to_owned()
}

/// The field "creator" of a VHDX's file type identifier, UTF-16 ([MS-VHDX] 2.2.1).
fn vhdx(start: &[u8]) -> String {
    let units =
        start.get(8..520).unwrap_or_default().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let text: Vec<u16> = units.take_while(|u| *u != 0).collect();
    let text = String::from_utf16_lossy(&text);
    if text.starts_with("Microsoft Windows") { format!("{text} (Hyper-V)") } else { text }
}

/// The line of text that a VDI begins with.
fn vdi(start: &[u8]) -> String {
    let line = start.get(4..64).unwrap_or_default();
    let text = String::from_utf8_lossy(line.split(|b| *b == b'>').next().unwrap_or_default()).into_owned();
    text.trim().trim_end_matches("Disk Image").trim_end_matches("Virtual ").trim().to_owned()
}

/// What the disk database of a VMDK has, which each program writes in its own way.
fn vmdk(text: &str) -> &'static str {
    let Some(at) = text.find("# Disk DescriptorFile") else { return "" };
    let text = &text[at..];
    if text.contains("ddb.uuid.image") {
        "VirtualBox"
    } else if text.contains("#DDB\n\nddb.virtualHWVersion") {
        "QEMU"
    } else if text.contains("ddb.longContentID") {
        "VMware"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_say_who_made_them() {
        let mut footer = [0; 512];
        footer[28..32].copy_from_slice(b"vbox");
        assert_eq!(vhd(&footer), "VirtualBox");
        footer[28..32].copy_from_slice(b"abc ");
        assert_eq!(vhd(&footer), "abc");
        let mut start = b"vhdxfile".to_vec();
        start.extend("QEMU v2".encode_utf16().flat_map(u16::to_le_bytes));
        start.resize(520, 0);
        assert_eq!(vhdx(&start), "QEMU v2");
        assert_eq!(vdi(b"<<< Oracle VM VirtualBox Disk Image >>>\n\0\0"), "");
        let mut line = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        line.resize(64, 0);
        assert_eq!(vdi(&line), "Oracle VM VirtualBox");
        assert_eq!(vmdk("KDMV # Disk DescriptorFile\nddb.uuid.image=\"x\""), "VirtualBox");
        assert_eq!(vmdk("# Disk DescriptorFile\nversion=1"), "");
    }
}
