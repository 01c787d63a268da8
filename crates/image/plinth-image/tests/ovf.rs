//! Packages of virtual machines.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::{Format, Progress};
use plinth_image::graph::{IoBuf, MemoryNode, NodeRef};
use plinth_image::ovf::{
    Controller, ControllerKind, Disk, Firmware, MachineDescription, Nic, OperatingSystem, Package,
    write_package,
};

fn machine() -> MachineDescription {
    MachineDescription {
        name: "a <machine> & more".to_owned(),
        cpus: 3,
        memory: 1536 << 20,
        firmware: Firmware::Efi { secure_boot: true },
        os: Some(OperatingSystem { id: 96, version: None, description: Some("Debian".to_owned()) }),
        hardware: Some("vmx-13".to_owned()),
        controllers: vec![
            Controller { kind: ControllerKind::Scsi("lsilogic".to_owned()), address: Some(0) },
            Controller { kind: ControllerKind::Sata, address: Some(0) },
        ],
        disks: vec![
            Disk { id: "a".to_owned(), controller: Some((0, Some(0))), ..Disk::default() },
            Disk { id: "b".to_owned(), controller: Some((1, Some(2))), ..Disk::default() },
            Disk { id: "c".to_owned(), capacity: 1 << 30, controller: Some((0, Some(1))), ..Disk::default() },
        ],
        nics: vec![Nic {
            model: "VmxNet3".to_owned(),
            network: "VM Network".to_owned(),
            mac: Some("00:50:56:00:00:01".to_owned()),
        }],
        other: Vec::new(),
    }
}

fn contents(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| if i / 100_000 % 3 == 0 { 0 } else { (i / 5 % 250) as u8 ^ seed }).collect()
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = [contents(5 << 20, 1), contents((2 << 20) + 512, 2)];
    for name in ["vm.ova", "vm.ovf"] {
        let path = dir.path().join(name);
        block_on(async {
            let node = |n: usize| Some(Rc::new(MemoryNode::with("d", &data[n])) as NodeRef);
            write_package(&path, &machine(), &[node(0), node(1), None], &Progress::default()).await.unwrap();
            let package = Package::open(&path).await.unwrap();
            let verified = package.verify(&Progress::default()).await.unwrap().unwrap();
            assert_eq!((verified.files.len(), verified.unlisted.len()), (3, 0));
            let [read] = &package.machines[..] else { panic!("one machine") };
            let want = machine();
            assert_eq!((&read.name, read.cpus, read.memory), (&want.name, 3, want.memory));
            assert_eq!((read.firmware, &read.os, &read.hardware), (want.firmware, &want.os, &want.hardware));
            assert_eq!((&read.controllers, &read.nics), (&want.controllers, &want.nics));
            let places: Vec<_> = read.disks.iter().map(|d| d.controller).collect();
            assert_eq!(places, want.disks.iter().map(|d| d.controller).collect::<Vec<_>>());
            for (disk, data) in read.disks.iter().zip(&data) {
                let image = package.open_disk(disk).await.unwrap().unwrap();
                assert_eq!(
                    (image.format(), image.size(), disk.capacity),
                    (Format::Vmdk, data.len() as u64, data.len() as u64)
                );
                assert!(*image.read(0, IoBuf::new(data.len())).await.unwrap() == data[..]);
            }
            assert!(package.open_disk(&read.disks[2]).await.unwrap().is_none());
            assert_eq!(read.disks[2].capacity, 1 << 30);
        });
    }
    // tar and QEMU's tool, where they are, take the archive and what is in it for what they are.
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let tar =
        Command::new("tar").arg("-xvf").arg(dir.path().join("vm.ova")).arg("-C").arg(&out).output().unwrap();
    let listed = String::from_utf8(tar.stdout).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["vm.ovf", "vm.mf", "vm-disk1.vmdk", "vm-disk2.vmdk"]);
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        for (n, data) in data.iter().enumerate() {
            let (vmdk, raw) = (out.join(format!("vm-disk{}.vmdk", n + 1)), out.join("raw"));
            let ok =
                Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(vmdk).arg(&raw).status().unwrap();
            assert!(ok.success() && std::fs::read(&raw).unwrap() == *data);
        }
    }
}

#[test]
fn a_changed_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.ovf");
    let data = contents(1 << 20, 3);
    block_on(async {
        let mut one = machine();
        one.disks.truncate(1);
        let node = Some(Rc::new(MemoryNode::with("d", &data)) as NodeRef);
        write_package(&path, &one, &[node], &Progress::default()).await.unwrap();
        let disk = dir.path().join("vm-disk1.vmdk");
        let mut bytes = std::fs::read(&disk).unwrap();
        bytes[70_000] ^= 1;
        std::fs::write(&disk, bytes).unwrap();
        let package = Package::open(&path).await.unwrap();
        let e = package.verify(&Progress::default()).await.unwrap_err();
        assert!(e.kind == ErrorKind::Corrupt && e.to_string().contains("vm-disk1.vmdk"), "{e}");
    });
}

/// By the examples of DSP0243: prefixes of their own, two configurations, a property as a capacity, a file in
/// compressed chunks.
const BY_HAND: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<o:Envelope xmlns:o="http://schemas.dmtf.org/ovf/envelope/2" xmlns:r="rasd" xmlns:e="epasd" xmlns:s="sasd">
  <o:References><o:File o:id="f" o:href="sub/disk%201.raw" o:compression="gzip" o:chunkSize="1000"/></o:References>
  <o:DiskSection><o:Info/><o:Disk o:diskId="d" o:fileRef="f" o:capacity="${size}" o:capacityAllocationUnits="byte * 2^20"/></o:DiskSection>
  <o:DeploymentOptionSection><o:Info/><o:Configuration o:id="small"/><o:Configuration o:id="big" o:default="true"/></o:DeploymentOptionSection>
  <o:VirtualSystemCollection o:id="all"><o:Info/>
   <o:VirtualSystem o:id="one"><o:Info/>
    <o:ProductSection><o:Info/><o:Property o:key="size" o:type="uint32" o:value="4"/></o:ProductSection>
    <o:VirtualHardwareSection>
     <o:Item><r:InstanceID>1</r:InstanceID><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>1</r:VirtualQuantity></o:Item>
     <o:Item o:configuration="big"><r:InstanceID>1</r:InstanceID><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>8</r:VirtualQuantity></o:Item>
     <o:Item o:bound="min"><r:InstanceID>2</r:InstanceID><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>1</r:VirtualQuantity></o:Item>
     <o:Item><r:AllocationUnits>byte * 2^30</r:AllocationUnits><r:InstanceID>2</r:InstanceID><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>2</r:VirtualQuantity></o:Item>
     <o:Item><r:InstanceID>3</r:InstanceID><r:ResourceType>5</r:ResourceType></o:Item>
     <o:StorageItem><s:AddressOnParent>1</s:AddressOnParent><s:HostResource>ovf:/disk/d</s:HostResource><s:InstanceID>4</s:InstanceID><s:Parent>3</s:Parent><s:ResourceType>17</s:ResourceType></o:StorageItem>
     <o:EthernetPortItem><e:Connection>net</e:Connection><e:InstanceID>5</e:InstanceID><e:ResourceType>10</e:ResourceType></o:EthernetPortItem>
     <o:Item><r:InstanceID>6</r:InstanceID><r:ResourceType>24</r:ResourceType></o:Item>
    </o:VirtualHardwareSection>
   </o:VirtualSystem>
  </o:VirtualSystemCollection>
</o:Envelope>"#;

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn write_chunks(folder: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    for (n, chunk) in bytes.chunks(1000).enumerate() {
        std::fs::write(folder.join(format!("sub/disk 1.raw.{n:09}")), chunk).unwrap();
    }
}

#[test]
fn envelopes_of_others_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.ovf");
    std::fs::write(&path, BY_HAND).unwrap();
    let data = contents(4 << 20, 9);
    write_chunks(dir.path(), &gzip(&data));
    block_on(async {
        let package = Package::open(&path).await.unwrap();
        assert!(package.manifest.is_none());
        let m = &package.machines[0];
        assert_eq!((m.name.as_str(), m.cpus, m.memory), ("one", 8, 2 << 30));
        assert_eq!((m.disks[0].capacity, m.disks[0].controller), (4 << 20, Some((0, Some(1)))));
        assert_eq!((m.nics[0].network.as_str(), m.controllers.len()), ("net", 1));
        assert!(m.other.iter().any(|o| o.contains("24")) && m.other.iter().any(|o| o.contains("Property")));
        let disk = package.open_disk(&m.disks[0]).await.unwrap().unwrap();
        assert!(*disk.read(0, IoBuf::new(data.len())).await.unwrap() == data[..]);
    });
    // A few bytes that unpack to far more than the disk can have.
    write_chunks(dir.path(), &gzip(&vec![0; 200 << 20]));
    block_on(async {
        let package = Package::open(&path).await.unwrap();
        let e = package.open_disk(&package.machines[0].disks[0]).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Limit, "{e}");
    });
}

#[test]
fn nothing_outside_of_the_package_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, secret) = (dir.path().join("in"), dir.path().join("secret.raw"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(&secret, [7; 512]).unwrap();
    let path = inside.join("vm.ovf");
    std::os::unix::fs::symlink(&secret, inside.join("link.raw")).unwrap();
    let hrefs = [
        "../secret.raw",
        "%2e%2e/secret.raw",
        "/etc/hostname",
        "a/../../secret.raw",
        "file:///etc/hostname",
        "http://127.0.0.1/x",
        "..\\secret.raw",
        "",
        "nbd:unix:x",
    ];
    let envelope = |href: &str| {
        BY_HAND.replace(" o:compression=\"gzip\" o:chunkSize=\"1000\"", "").replace("sub/disk%201.raw", href)
    };
    for href in hrefs {
        std::fs::write(&path, envelope(href)).unwrap();
        assert!(block_on(Package::open(&path)).is_err(), "{href}");
    }
    std::fs::write(&path, envelope("link.raw")).unwrap();
    block_on(async {
        let package = Package::open(&path).await.unwrap();
        let e = package.open_disk(&package.machines[0].disks[0]).await.err().unwrap();
        assert_eq!(e.kind, ErrorKind::Denied, "{e}");
    });
}
