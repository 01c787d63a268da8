//! Boards and loaders from outside: a machine with vCPUs that only have pins.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use plinth_clock::{Clock, Timers};
use plinth_device::{Bus, CharBackend, IrqSink};
use plinth_machine::board::Board;
use plinth_machine::{BootFile, BootSources, Error, Loaded, Machine, Resources, boards, isa};
use plinth_memory::{Bytes, GuestAddress, GuestRam};
use plinth_vcpu::{PhysicalBus, StartState, SystemEvent, TlbFlush, VcpuControl, VcpuPower};

struct Pins(u32);

impl IrqSink for Pins {
    fn set_irq(&self, _line: u32, _level: bool) {}
}

impl VcpuControl for Pins {
    fn index(&self) -> u32 {
        self.0
    }
    fn deliver_message(&self, _file: u32, _id: u32) {}
    fn kick(&self) {}
    fn start(&self, _state: StartState) -> bool {
        false
    }
    fn power(&self) -> VcpuPower {
        VcpuPower::Off
    }
    fn flush_tlb(&self, _flush: TlbFlush) {}
}

struct Null;

impl CharBackend for Null {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn read(&self, _data: &mut [u8]) -> usize {
        0
    }
    fn on_input(&self, _notify: Box<dyn Fn() + Send + Sync>) {}
}

const BASE: u64 = 0x8000_0000;
const MIB: u64 = 1 << 20;

struct Rig {
    machine: Machine,
    bus: Arc<Bus>,
    events: Arc<Mutex<Vec<SystemEvent>>>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new(memory: u64, cpus: u32) -> Self {
        Self::on(boards::for_isa(&isa::RISCV64).unwrap(), memory, cpus)
    }

    fn on(board: &'static Board, memory: u64, cpus: u32) -> Self {
        let bus = Arc::new(Bus::new());
        let events = Arc::new(Mutex::new(Vec::new()));
        let to = events.clone();
        let resources = Resources {
            ram: GuestRam::new(&[(BASE, memory)]).unwrap(),
            bus: bus.clone(),
            timers: Arc::new(Timers::new(Clock::new()).unwrap()),
            vcpus: (0..cpus).map(|i| Arc::new(Pins(i)) as Arc<dyn VcpuControl>).collect(),
            cpu: None,
            events: Arc::new(move |e| to.lock().unwrap().push(e)),
            serials: vec![Arc::new(Null)],
            pci: Vec::new(),
            virtio_mmio: Vec::new(),
        };
        let machine = Machine::new(board, resources).unwrap();
        Self { machine, bus, events, dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, what: &'static str, bytes: &[u8]) -> BootFile {
        let path: PathBuf = self.dir.path().join(what);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        BootFile::open(what, &path).unwrap()
    }

    fn kernel(&self, bytes: &[u8]) -> Result<Loaded, Error> {
        let kernel = Some(self.file("kernel", bytes));
        self.machine.load(&BootSources { kernel, ..BootSources::default() }, 1)
    }

    fn ram<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.machine.ram().memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn tree(&self, at: u64) -> Vec<u8> {
        let len = u32::from_be_bytes(self.ram(at + 4));
        let mut blob = vec![0; len as usize];
        self.machine.ram().memory().read_slice(&mut blob, GuestAddress(at)).unwrap();
        blob
    }
}

fn image(size: u64, magic: &[u8; 4], len: usize) -> Vec<u8> {
    let mut k = vec![0; len];
    k[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
    k[16..24].copy_from_slice(&size.to_le_bytes());
    k[56..60].copy_from_slice(magic);
    k[len - 1] = 0x77;
    k
}

/// A 64-bit ELF file with one segment of 16 bytes in the file and `memsz` in memory.
fn elf(machine: u16, at: u64, memsz: u64) -> Vec<u8> {
    let mut e = vec![0; 0x100];
    e[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    e[16..20].copy_from_slice(&[2, 0, machine as u8, (machine >> 8) as u8]);
    e[20] = 1;
    e[24..32].copy_from_slice(&(at + 4).to_le_bytes());
    e[32..40].copy_from_slice(&64u64.to_le_bytes());
    e[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
    let segment = [1u64 | 5 << 32, 0x80, at, at, 16, memsz, 0x1000];
    for (i, v) in segment.iter().enumerate() {
        e[64 + i * 8..72 + i * 8].copy_from_slice(&v.to_le_bytes());
    }
    e[0x80..0x90].fill(0xab);
    e
}

fn register(start: &StartState, name: &str) -> u64 {
    start.registers.iter().find(|(n, _)| *n == name).unwrap().1
}

#[test]
fn a_kernel_its_initrd_and_tree_are_placed_apart() {
    let rig = Rig::new(256 * MIB, 2);
    let sources = BootSources {
        kernel: Some(rig.file("kernel", &image(40 * MIB, b"RSC\x05", 5000))),
        initrd: Some(rig.file("initrd", b"ramdisk!")),
        append: "console=ttyS0".to_owned(),
        firmware: None,
    };
    let loaded = rig.machine.load(&sources, 2).unwrap();
    let [Some(start), None] = &loaded.starts[..] else { panic!("only the first hart starts") };
    assert_eq!(start.pc, BASE + 2 * MIB);
    assert_eq!(rig.ram(start.pc + 4999), [0x77]);
    assert_eq!(register(start, "a0"), 0);
    let blob = rig.tree(register(start, "a1"));
    let tree = fdt::Fdt::new(&blob).unwrap();
    assert_eq!(tree.chosen().bootargs(), Some("console=ttyS0"));
    let chosen = tree.find_node("/chosen").unwrap();
    let at = |name| {
        let v: [u8; 8] = chosen.property(name).unwrap().value.try_into().unwrap();
        u64::from_be_bytes(v)
    };
    assert_eq!(at("linux,initrd-end") - at("linux,initrd-start"), 8);
    assert_eq!(&rig.ram(at("linux,initrd-start")), b"ramdisk!");
    assert!(at("linux,initrd-start") >= start.pc + 40 * MIB);
    assert_ne!(chosen.property("rng-seed").unwrap().value, [0; 32]);
    assert_eq!(tree.cpus().count(), 2);
    let memory: Vec<_> = tree.memory().regions().map(|r| r.size).collect();
    assert_eq!(memory, [Some(256 << 20)]);
    assert!(tree.chosen().stdout().is_some(), "stdout-path names a node");
}

#[test]
fn the_tree_names_every_device_that_is_built() {
    let rig = Rig::new(64 * MIB, 1);
    let blob = rig.machine.device_tree(|_| Ok(())).unwrap();
    let tree = fdt::Fdt::new(&blob).unwrap();
    for compatible in [
        "riscv,plic0",
        "riscv,clint0",
        "sifive,test1",
        "ns16550a",
        "google,goldfish-rtc",
        "pci-host-ecam-generic",
    ] {
        let node = tree.find_compatible(&[compatible]).unwrap_or_else(|| panic!("no {compatible}"));
        let reg = node.reg().unwrap().next().unwrap().starting_address as u64;
        let mut word = [0; 4];
        assert!(rig.bus.read(reg, &mut word).is_ok() || rig.bus.read(reg, &mut word[..1]).is_ok());
    }
    assert!(tree.find_compatible(&["virtio,mmio"]).is_none(), "no device was given");
    let poweroff = tree.find_compatible(&["syscon-poweroff"]).unwrap();
    let value = poweroff.property("value").unwrap().as_usize().unwrap() as u32;
    rig.bus.write(0x10_0000, &value.to_le_bytes()).unwrap();
    assert_eq!(*rig.events.lock().unwrap(), [SystemEvent::PowerOff]);
}

#[test]
fn the_board_with_messages_tells_where_they_go() {
    let board = boards::named(&isa::RISCV64, "virt-aia").unwrap();
    let rig = Rig::on(board, 64 * MIB, 2);
    let blob = rig.machine.device_tree(|_| Ok(())).unwrap();
    let tree = fdt::Fdt::new(&blob).unwrap();
    let cell = |compatible: &str, name: &str| {
        let node = tree.find_compatible(&[compatible]).unwrap();
        node.property(name).unwrap().as_usize().unwrap()
    };
    let imsic = cell("riscv,imsics", "phandle");
    assert_eq!(cell("riscv,aplic", "msi-parent"), imsic);
    assert_eq!(cell("pci-host-ecam-generic", "msi-parent"), imsic);
    assert_eq!(cell("ns16550a", "interrupt-parent"), cell("riscv,aplic", "phandle"));
    assert_eq!(tree.find_compatible(&["ns16550a"]).unwrap().property("interrupts").unwrap().value.len(), 8);
    rig.bus.write(0x2800_1000, &5u32.to_le_bytes()).unwrap();
    let firmware = Some(rig.file("firmware", &[0x13; 64]));
    let sources = BootSources { firmware, ..BootSources::default() };
    assert!(matches!(rig.machine.load(&sources, 2), Err(Error::NoFirmware("virt-aia"))));
}

#[test]
fn kernels_of_other_instruction_sets_are_named() {
    let rig = Rig::new(64 * MIB, 1);
    let found = |bytes: &[u8]| match rig.kernel(bytes) {
        Err(Error::WrongIsa { found, wanted: "riscv64", .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&image(0, b"ARM\x64", 4096)), "aarch64");
    assert_eq!(found(&elf(62, BASE, 16)), "x86_64");
    assert!(found(&elf(0x1234, BASE, 16)).contains("4660"));
    let mut bz = vec![0; 4096];
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(found(&bz), "x86 (bzImage)");
}

#[test]
fn compressed_kernels_are_unpacked_within_limits() {
    let rig = Rig::new(64 * MIB, 1);
    let plain = image(MIB, b"RSC\x05", 100_000);
    let gzip = |bytes: &[u8]| {
        let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        z.write_all(bytes).unwrap();
        z.finish().unwrap()
    };
    let packed = gzip(&plain);
    assert_eq!(rig.kernel(&packed).unwrap().starts[0].as_ref().unwrap().pc, BASE + 2 * MIB);
    assert_eq!(rig.ram(BASE + 2 * MIB + 99_999), [0x77]);
    let mut zboot = vec![0; 64];
    zboot[..8].copy_from_slice(b"MZ\0\0zimg");
    zboot[8] = 64;
    zboot[12..16].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    zboot[24..28].copy_from_slice(b"gzip");
    zboot.extend(&packed);
    assert!(rig.kernel(&zboot).is_ok());
    zboot.truncate(zboot.len() / 2);
    assert!(matches!(rig.kernel(&zboot), Err(Error::Format { .. })));
    let bomb = gzip(&vec![0; 65 << 20]);
    assert!(rig.kernel(&bomb).unwrap_err().to_string().contains("larger than the guest's memory"));
}

#[test]
fn elf_programs_go_where_they_say_and_nowhere_else() {
    let rig = Rig::new(64 * MIB, 2);
    let firmware = Some(rig.file("firmware", &elf(243, BASE + 0x1000, 0x2000)));
    let loaded = rig.machine.load(&BootSources { firmware, ..BootSources::default() }, 2).unwrap();
    for (hart, start) in loaded.starts.iter().enumerate() {
        let start = start.as_ref().unwrap();
        assert_eq!((start.pc, register(start, "a0")), (BASE + 0x1004, hart as u64));
    }
    assert_eq!(rig.ram(BASE + 0x100f), [0xab, 0]);
    let mut from_zero = elf(243, 0, 0x2000);
    from_zero[16] = 3;
    let firmware = Some(rig.file("firmware", &from_zero));
    let kernel = Some(rig.file("kernel", &from_zero));
    let loaded = rig.machine.load(&BootSources { firmware, kernel, ..BootSources::default() }, 1).unwrap();
    assert_eq!(loaded.starts[0].as_ref().unwrap().pc, BASE + 4, "position-independent firmware");
    assert_eq!((rig.ram(BASE + 15), rig.ram(BASE + 2 * MIB + 15)), ([0xab, 0], [0xab, 0]));
    for (at, len) in [(0, 16), (BASE + 63 * MIB, 2 * MIB), (u64::MAX - 8, 16), (BASE, u64::MAX), (BASE, 8)] {
        assert!(rig.kernel(&elf(243, at, len)).is_err(), "{at:#x} {len:#x}");
    }
    let good = elf(243, BASE, 16);
    for cut in 1..0x90 {
        assert!(rig.kernel(&good[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn firmware_is_told_where_the_next_stage_is() {
    let rig = Rig::new(64 * MIB, 1);
    let sources = BootSources {
        firmware: Some(rig.file("firmware", &[0x13; 300_000])),
        kernel: Some(rig.file("kernel", &[0x6f; 1000])),
        ..BootSources::default()
    };
    let loaded = rig.machine.load(&sources, 1).unwrap();
    let start = loaded.starts[0].as_ref().unwrap();
    assert_eq!(start.pc, BASE);
    let info = register(start, "a2");
    assert_eq!(u64::from_le_bytes(rig.ram(info)), 0x4942_534f);
    let next = u64::from_le_bytes(rig.ram(info + 16));
    assert_eq!((next, rig.ram(next)), (BASE + 2 * MIB, [0x6f]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = Rig::new(8 * MIB, 1);
    let big = image(6 * MIB, b"RSC\x05", 4096);
    assert!(matches!(rig.kernel(&big), Err(Error::NoRoom { what: "the kernel", .. })));
    let huge = image(u64::MAX, b"RSC\x05", 4096);
    assert!(matches!(rig.kernel(&huge), Err(Error::NoRoom { .. })));
    assert!(matches!(rig.kernel(b"#!/bin/sh"), Err(Error::Format { .. })));
    assert!(matches!(rig.kernel(b""), Err(Error::Format { .. })));
    let initrd = rig.file("initrd", &vec![1; 7 << 20]);
    let sources = BootSources { initrd: Some(initrd), ..BootSources::default() };
    assert!(matches!(rig.machine.load(&sources, 1), Err(Error::NoRoom { what: "the initrd", .. })));
    let rig = Rig::new(MIB, 1);
    assert!(matches!(rig.kernel(&elf(243, BASE, 16)), Err(Error::NoRoom { .. })));
    let missing = BootFile::open("kernel", &rig.dir.path().join("nothing"));
    assert!(missing.unwrap_err().to_string().contains("cannot read kernel"));
}
