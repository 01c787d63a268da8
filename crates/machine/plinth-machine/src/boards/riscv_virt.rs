//! The riscv64 `virt` board. Addresses and interrupts are those of the board of this name that firmware and
//! kernels are built for (OpenSBI's generic platform, U-Boot's `qemu-riscv64` configurations).

use plinth_device::Range;
use plinth_platform::{Aclint, AplicDomain, GoldfishRtc, ImsicPages, TestDevice, Uart};
use plinth_vcpu::StartState;

use super::cpu_controller;
use crate::assembly::Assembly;
use crate::board::{Board, CpuModel, CpuPins, CpuProperty, Site};
use crate::parts::{
    AclintPart, AplicPart, ImsicPart, PciePart, PlicPart, RtcPart, TestPart, UartPart, VirtioMmioPart,
};
use crate::tree::Tree;
use crate::{BootEntry, Error, isa};

const MAX_CPUS: u32 = 64;
const RAM_START: u64 = 0x8000_0000;
const TIMEBASE_HZ: u64 = 10_000_000;

/// Interrupt numbers of the `mip` register (RISC-V Privileged Architecture, "Machine Interrupt Registers").
const M_SOFTWARE: u32 = 3;
const M_TIMER: u32 = 7;
const S_EXTERNAL: u32 = 9;
const M_EXTERNAL: u32 = 11;

/// The privilege level of the stage after firmware.
const SUPERVISOR: u64 = 1;

const fn at(start: u64, len: u64) -> Range {
    Range { start, len }
}

const fn virtio(reg: &'static [Range], irqs: &'static [u32]) -> Site {
    Site { part: &VirtioMmioPart, name: "virtio_mmio", reg, irqs }
}

/// The board with a PLIC.
pub static BOARD: Board = Board {
    name: "virt",
    compatible: "riscv-virtio",
    isa: &isa::RISCV64,
    ram_start: RAM_START,
    ram_max: 1 << 40,
    max_cpus: MAX_CPUS,
    timebase_hz: TIMEBASE_HZ,
    pins: CpuPins { external: &[M_EXTERNAL, S_EXTERNAL], software: M_SOFTWARE, timer: M_TIMER },
    interrupt_controller: "plic",
    interrupt_trigger: None,
    interrupt_lines: 95,
    stdout_path: "/soc/serial@10000000",
    takes_firmware: true,
    sites: &SITES,
    describe_cpus,
    default_cpu,
    start,
    next_stage,
};

/// The board with the Advanced Interrupt Architecture, for message-signalled interrupts. It has the
/// supervisor's part of it only: what firmware in machine mode would set up is not there.
pub static BOARD_AIA: Board = Board {
    name: "virt-aia",
    compatible: "riscv-virtio",
    isa: &isa::RISCV64,
    ram_start: RAM_START,
    ram_max: 1 << 40,
    max_cpus: MAX_CPUS,
    timebase_hz: TIMEBASE_HZ,
    pins: CpuPins { external: &[S_EXTERNAL], software: M_SOFTWARE, timer: M_TIMER },
    interrupt_controller: "aplic",
    interrupt_trigger: Some(LEVEL_HIGH),
    interrupt_lines: 96,
    stdout_path: "/soc/serial@10000000",
    takes_firmware: false,
    sites: &SITES_AIA,
    describe_cpus,
    default_cpu,
    start,
    next_stage,
};

/// Of an interrupt specifier (Linux, `dt-bindings/interrupt-controller/irq.h`).
const LEVEL_HIGH: u32 = 4;
/// Number of the supervisor's interrupt file.
const S_FILE: u32 = 1;

const PLIC: Site = Site {
    part: &PlicPart { compatible: &["sifive,plic-1.0.0", "riscv,plic0"] },
    name: "plic",
    reg: &[at(0x0c00_0000, 0x60_0000)],
    irqs: &[],
};
const IMSIC: Site = Site {
    part: &ImsicPart { file: S_FILE, ids: 255 },
    name: "imsics",
    reg: &[at(0x2800_0000, ImsicPages::size(MAX_CPUS as u64))],
    irqs: &[],
};
const APLIC: Site = Site {
    part: &AplicPart { file: S_FILE, imsic: "imsics" },
    name: "aplic",
    reg: &[at(0x0d00_0000, AplicDomain::size(MAX_CPUS as u64))],
    irqs: &[],
};
const CLINT: Site = Site {
    part: &AclintPart { compatible: &["sifive,clint0", "riscv,clint0"] },
    name: "clint",
    reg: &[at(0x0200_0000, Aclint::SIZE)],
    irqs: &[],
};
const TEST: Site = Site { part: &TestPart, name: "test", reg: &[at(0x10_0000, TestDevice::SIZE)], irqs: &[] };
const RTC: Site = Site { part: &RtcPart, name: "rtc", reg: &[at(0x10_1000, GoldfishRtc::SIZE)], irqs: &[11] };
const SERIAL: Site = Site {
    part: &UartPart { clock_hz: 3_686_400 },
    name: "serial",
    reg: &[at(0x1000_0000, Uart::SIZE)],
    irqs: &[10],
};
const VIRTIO: [Site; 8] = [
    virtio(&[at(0x1000_1000, 0x1000)], &[1]),
    virtio(&[at(0x1000_2000, 0x1000)], &[2]),
    virtio(&[at(0x1000_3000, 0x1000)], &[3]),
    virtio(&[at(0x1000_4000, 0x1000)], &[4]),
    virtio(&[at(0x1000_5000, 0x1000)], &[5]),
    virtio(&[at(0x1000_6000, 0x1000)], &[6]),
    virtio(&[at(0x1000_7000, 0x1000)], &[7]),
    virtio(&[at(0x1000_8000, 0x1000)], &[8]),
];
const PCI: Site = Site {
    part: &PciePart { high_window: 0x4_0000_0000 },
    name: "pci",
    reg: &[at(0x3000_0000, 0x1000_0000), at(0x4000_0000, 0x4000_0000)],
    irqs: &[32, 33, 34, 35],
};

static SITES: [Site; 14] = {
    let [v1, v2, v3, v4, v5, v6, v7, v8] = VIRTIO;
    [PLIC, CLINT, TEST, RTC, SERIAL, v1, v2, v3, v4, v5, v6, v7, v8, PCI]
};
static SITES_AIA: [Site; 14] = {
    let [v1, v2, v3, v4, v5, v6, v7, v8] = VIRTIO;
    [IMSIC, APLIC, TEST, RTC, SERIAL, v1, v2, v3, v4, v5, v6, v7, v8, PCI]
};

/// RV64GC with what current distributions use, should the vCPUs' maker not say what it has.
fn default_cpu() -> CpuModel {
    let text = |s: &str| CpuProperty::Text(s.to_owned());
    let extensions = ["i", "m", "a", "f", "d", "c", "zicsr", "zifencei"];
    CpuModel {
        properties: vec![
            ("riscv,isa".to_owned(), text("rv64imafdc_zicsr_zifencei")),
            ("riscv,isa-base".to_owned(), text("rv64i")),
            (
                "riscv,isa-extensions".to_owned(),
                CpuProperty::Texts(extensions.iter().map(|s| (*s).to_owned()).collect()),
            ),
            ("mmu-type".to_owned(), text("riscv,sv39")),
        ],
    }
}

fn describe_cpus(machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
    tree.node("cpus", |t| {
        t.cells("#address-cells", &[1])?;
        t.cells("#size-cells", &[0])?;
        t.cells("timebase-frequency", &[TIMEBASE_HZ as u32])?;
        for index in 0..machine.vcpus.len() {
            t.node(&format!("cpu@{index:x}"), |t| {
                t.text("device_type", "cpu")?;
                t.cells("reg", &[index as u32])?;
                t.text("status", "okay")?;
                t.text("compatible", "riscv")?;
                for (name, value) in &machine.cpu.properties {
                    match value {
                        CpuProperty::Text(v) => t.text(name, v)?,
                        CpuProperty::Texts(v) => {
                            t.texts(name, &v.iter().map(String::as_str).collect::<Vec<_>>())?;
                        }
                        CpuProperty::Cell(v) => t.cells(name, &[*v])?,
                    }
                }
                t.node("interrupt-controller", |t| {
                    t.cells("#interrupt-cells", &[1])?;
                    t.flag("interrupt-controller")?;
                    t.text("compatible", "riscv,cpu-intc")?;
                    t.label(&cpu_controller(index))
                })
            })?;
        }
        Ok(())
    })
}

/// Firmware starts on every hart, as after a reset; a kernel starts on the first one, above the built-in
/// firmware, which starts the others (SBI specification, HSM extension).
fn start(entry: &BootEntry, index: u32) -> Option<StartState> {
    if index != 0 && !entry.firmware {
        return None;
    }
    let mut registers = vec![("a0", u64::from(index)), ("a1", entry.fdt)];
    if let Some(next) = entry.next_stage {
        registers.push(("a2", next));
    }
    Some(StartState { pc: entry.pc, registers })
}

/// OpenSBI's `struct fw_dynamic_info`, version 2: magic, version, next address, next mode, options, boot
/// hart; each 64 bits.
fn next_stage(next: u64) -> Vec<u8> {
    const MAGIC: u64 = 0x4942_534f;
    [MAGIC, 2, next, SUPERVISOR, 0, 0].iter().flat_map(|v| v.to_le_bytes()).collect()
}
