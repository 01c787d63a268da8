//! PCI Express host bridge with ECAM, type-0 configuration space, BARs, MSI-X and INTx.
//!
//! A [`PciFunction`] says once what it looks like ([`FunctionConfig`]); configuration space, BAR
//! placement, the MSI-X table and interrupt routing are the [`PciHost`]'s work. The guest may program
//! anything: a BAR is on the bus only while it lies in one of the host's windows and nothing else is there.
//!
//! ```
//! use std::sync::Arc;
//! use plinth_device::{Bus, IrqLine, IrqSink, Range};
//! use plinth_pci::{PciHost, PciHostConfig};
//!
//! struct Wires;
//! impl IrqSink for Wires {
//!     fn set_irq(&self, _line: u32, _level: bool) {}
//! }
//!
//! let bus = Arc::new(Bus::new());
//! let sink: Arc<dyn IrqSink> = Arc::new(Wires);
//! let intx = std::array::from_fn(|pin| IrqLine::new(Arc::clone(&sink), 32 + pin as u32));
//! let config = PciHostConfig {
//!     ecam: Range { start: 0x3000_0000, len: 0x1000_0000 },
//!     windows: vec![Range { start: 0x4000_0000, len: 0x4000_0000 }],
//! };
//! let host = PciHost::new(config, &bus, None, intx).unwrap();
//! // host.add(1, virtio_pci)?; the ECAM range is on the bus already.
//! ```

mod config;
mod function;
mod fuzz;
mod host;
mod irq;
mod msix;

pub use function::{
    BarSpec, BarWidth, Capability, ConfigWindow, FunctionConfig, MsixSpec, PciFunction, WindowSpec,
};
#[doc(hidden)]
pub use fuzz::fuzz_pci_config;
pub use host::{PciError, PciHost, PciHostConfig};
pub use irq::PciIrq;
