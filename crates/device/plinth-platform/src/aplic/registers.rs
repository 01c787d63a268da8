//! The register map of a domain (section 4.5, table 4.1).

use super::state::{Message, State};

const DOMAINCFG: u64 = 0;
const SOURCECFG: u64 = 4;
const MSIADDRCFG: u64 = 0x1bc0;
const SETIP: u64 = 0x1c00;
const SETIPNUM: u64 = 0x1cdc;
const IN_CLRIP: u64 = 0x1d00;
const CLRIPNUM: u64 = 0x1ddc;
const SETIE: u64 = 0x1e00;
const SETIENUM: u64 = 0x1edc;
const CLRIE: u64 = 0x1f00;
const CLRIENUM: u64 = 0x1fdc;
const SETIPNUM_LE: u64 = 0x2000;
const SETIPNUM_BE: u64 = 0x2004;
const GENMSI: u64 = 0x3000;
const TARGET: u64 = 0x3004;
/// First hart's registers for direct mode.
pub const IDC: u64 = 0x4000;
/// Bytes of each hart's.
pub const IDC_STRIDE: u64 = 32;

/// Bytes of a bit array.
const BITS: u64 = 128;

const IDELIVERY: u64 = 0x00;
const IFORCE: u64 = 0x04;
const ITHRESHOLD: u64 = 0x08;
const TOPI: u64 = 0x18;
const CLAIMI: u64 = 0x1c;

/// First source of the word of a bit array.
fn first(offset: u64, array: u64) -> u32 {
    ((offset - array) * 8) as u32
}

fn gather(first: u32, bit: impl Fn(u32) -> bool) -> u32 {
    (0..32).filter(|&i| bit(first + i)).fold(0, |word, i| word | 1 << i)
}

fn each(first: u32, value: u32, mut change: impl FnMut(u32)) {
    (0..32).filter(|i| value >> i & 1 != 0).for_each(|i| change(first + i));
}

fn top_value(top: Option<(u32, u32)>) -> u32 {
    top.map_or(0, |(source, priority)| source << 16 | priority)
}

impl State {
    /// Reads the register at `offset`.
    pub fn read(&mut self, domain: usize, offset: u64) -> u32 {
        match offset {
            DOMAINCFG => self.domain_config(domain),
            SOURCECFG..0x1000 => self.source_config(domain, (offset / 4) as u32),
            MSIADDRCFG..0x1bd0 => {
                self.address(domain, ((offset - MSIADDRCFG) / 4) as usize).copied().unwrap_or(0)
            }
            _ if (SETIP..SETIP + BITS).contains(&offset) => {
                gather(first(offset, SETIP), |s| self.pending(domain, s))
            }
            _ if (IN_CLRIP..IN_CLRIP + BITS).contains(&offset) => {
                gather(first(offset, IN_CLRIP), |s| self.rectified(domain, s))
            }
            _ if (SETIE..SETIE + BITS).contains(&offset) => {
                gather(first(offset, SETIE), |s| self.enabled(domain, s))
            }
            TARGET..IDC => self.target(domain, ((offset - GENMSI) / 4) as u32),
            IDC.. => self.read_idc(domain, offset - IDC),
            _ => 0,
        }
    }

    fn read_idc(&mut self, domain: usize, offset: u64) -> u32 {
        let hart = (offset / IDC_STRIDE) as usize;
        match offset % IDC_STRIDE {
            TOPI => top_value(self.top(domain, hart)),
            CLAIMI => top_value(self.claim(domain, hart)),
            register => self.idc(domain, hart).map_or(0, |idc| match register {
                IDELIVERY => idc.delivery.into(),
                IFORCE => idc.force.into(),
                ITHRESHOLD => idc.threshold,
                _ => 0,
            }),
        }
    }

    /// Writes the register at `offset`; returns the message that the write itself asks for.
    pub fn write(&mut self, domain: usize, offset: u64, value: u32) -> Option<Message> {
        match offset {
            DOMAINCFG => self.set_domain_config(domain, value),
            SOURCECFG..0x1000 => self.set_source_config(domain, (offset / 4) as u32, value),
            MSIADDRCFG..0x1bd0 => {
                if let Some(a) = self.address(domain, ((offset - MSIADDRCFG) / 4) as usize) {
                    *a = value;
                }
            }
            SETIPNUM | SETIPNUM_LE => self.set_pending(domain, value, true),
            SETIPNUM_BE => self.set_pending(domain, value.swap_bytes(), true),
            CLRIPNUM => self.set_pending(domain, value, false),
            SETIENUM => self.set_enabled(domain, value, true),
            CLRIENUM => self.set_enabled(domain, value, false),
            _ if (SETIP..SETIP + BITS).contains(&offset) => {
                each(first(offset, SETIP), value, |s| self.set_pending(domain, s, true));
            }
            _ if (IN_CLRIP..IN_CLRIP + BITS).contains(&offset) => {
                each(first(offset, IN_CLRIP), value, |s| self.set_pending(domain, s, false));
            }
            _ if (SETIE..SETIE + BITS).contains(&offset) => {
                each(first(offset, SETIE), value, |s| self.set_enabled(domain, s, true));
            }
            _ if (CLRIE..CLRIE + BITS).contains(&offset) => {
                each(first(offset, CLRIE), value, |s| self.set_enabled(domain, s, false));
            }
            GENMSI => return self.extra_message(domain, value),
            TARGET..IDC => self.set_target(domain, ((offset - GENMSI) / 4) as u32, value),
            IDC.. => self.write_idc(domain, offset - IDC, value),
            _ => {}
        }
        None
    }

    fn write_idc(&mut self, domain: usize, offset: u64, value: u32) {
        let Some(idc) = self.idc(domain, (offset / IDC_STRIDE) as usize) else { return };
        match offset % IDC_STRIDE {
            IDELIVERY => idc.delivery = value & 1 != 0,
            IFORCE => idc.force = value & 1 != 0,
            ITHRESHOLD => idc.threshold = value & 0xff,
            _ => {}
        }
    }
}
