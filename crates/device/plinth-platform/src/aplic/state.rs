//! Sources, domains and what becomes due.

/// `sourcecfg` (section 4.5.2).
const DELEGATED: u32 = 1 << 10;
const MODE: u32 = 7;

/// `domaincfg` (section 4.5.1).
const DOMAIN_READ_ONLY: u32 = 0x80 << 24;
const DOMAIN_ENABLE: u32 = 1 << 8;
const DOMAIN_MSI: u32 = 1 << 2;

/// Bits of the EIID in `target` and `genmsi`.
const EIID: u32 = 0x7ff;
const HART_SHIFT: u32 = 18;

/// Source modes that look at the input, and inactive (section 4.5.2, table 4.2); mode 1 is detached.
mod mode {
    pub const INACTIVE: u32 = 0;
    pub const EDGE_RISING: u32 = 4;
    pub const EDGE_FALLING: u32 = 5;
    pub const LEVEL_HIGH: u32 = 6;
    pub const LEVEL_LOW: u32 = 7;
}

/// A message that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub domain: usize,
    pub hart: usize,
    pub id: u32,
}

#[derive(Clone, Default)]
struct Source {
    config: u32,
    target: u32,
    pending: bool,
    enabled: bool,
}

/// A hart's registers in direct mode (section 4.8.1).
#[derive(Clone, Default)]
pub struct Idc {
    pub delivery: bool,
    pub force: bool,
    pub threshold: u32,
}

struct Domain {
    config: u32,
    sources: Vec<Source>,
    harts: Vec<Idc>,
    /// `mmsiaddrcfg`, `mmsiaddrcfgh`, `smsiaddrcfg`, `smsiaddrcfgh`.
    addresses: [u32; 4],
}

impl Domain {
    fn new(sources: u32, harts: usize) -> Self {
        Self {
            config: 0,
            sources: vec![Source::default(); sources as usize + 1],
            harts: vec![Idc::default(); harts],
            addresses: [0; 4],
        }
    }
}

/// All volatile state of the controller. Index 0 of every source array is not used.
pub struct State {
    inputs: Vec<bool>,
    domains: Vec<Domain>,
}

impl State {
    pub fn new(sources: u32, domains: usize, harts: usize) -> Self {
        Self {
            inputs: vec![false; sources as usize + 1],
            domains: (0..domains).map(|_| Domain::new(sources, harts)).collect(),
        }
    }

    /// Back to the state after power-on; the inputs are other devices' outputs and stay.
    pub fn reset(&mut self, domain: usize) {
        let sources = self.inputs.len() as u32 - 1;
        if let Some(d) = self.domains.get_mut(domain) {
            *d = Domain::new(sources, d.harts.len());
        }
    }

    fn source(&self, domain: usize, source: u32) -> Option<&Source> {
        self.domains.get(domain)?.sources.get(source as usize).filter(|_| source != 0)
    }

    fn source_mut(&mut self, domain: usize, source: u32) -> Option<&mut Source> {
        self.domains.get_mut(domain)?.sources.get_mut(source as usize).filter(|_| source != 0)
    }

    /// True if every domain above has handed the source down.
    fn reaches(&self, domain: usize, source: u32) -> bool {
        (0..domain).all(|d| self.source(d, source).is_some_and(|s| s.config & DELEGATED != 0))
    }

    /// The source's mode in this domain; inactive unless it reaches the domain and stays there.
    fn mode(&self, domain: usize, source: u32) -> u32 {
        match self.source(domain, source) {
            Some(s) if s.config & DELEGATED == 0 && self.reaches(domain, source) => s.config & MODE,
            _ => mode::INACTIVE,
        }
    }

    fn active(&self, domain: usize, source: u32) -> bool {
        self.mode(domain, source) != mode::INACTIVE
    }

    /// The input after inversion (section 4.7).
    pub fn rectified(&self, domain: usize, source: u32) -> bool {
        let input = self.inputs.get(source as usize).copied().unwrap_or(false);
        match self.mode(domain, source) {
            mode::EDGE_RISING | mode::LEVEL_HIGH => input,
            mode::EDGE_FALLING | mode::LEVEL_LOW => !input,
            _ => false,
        }
    }

    fn is_level(&self, domain: usize, source: u32) -> bool {
        matches!(self.mode(domain, source), mode::LEVEL_HIGH | mode::LEVEL_LOW)
    }

    fn is_msi(&self, domain: usize) -> bool {
        self.domains.get(domain).is_some_and(|d| d.config & DOMAIN_MSI != 0)
    }

    pub fn set_input(&mut self, source: u32, level: bool) {
        let before: Vec<bool> = (0..self.domains.len()).map(|d| self.rectified(d, source)).collect();
        if let Some(input) = self.inputs.get_mut(source as usize) {
            *input = level;
        }
        for (domain, before) in before.into_iter().enumerate() {
            self.input_changed(domain, source, before);
        }
    }

    /// What a change of the rectified value does to the pending bit (section 4.7).
    fn input_changed(&mut self, domain: usize, source: u32, before: bool) {
        let (now, level) = (self.rectified(domain, source), self.is_level(domain, source));
        if !self.active(domain, source) {
            return;
        }
        if let Some(s) = self.source_mut(domain, source) {
            if now && !before {
                s.pending = true;
            } else if !now && level {
                s.pending = false;
            }
        }
    }

    /// The pending bit as the guest sees it: in direct mode that of a level source is the level.
    pub fn pending(&self, domain: usize, source: u32) -> bool {
        if !self.active(domain, source) {
            return false;
        }
        if self.is_level(domain, source) && !self.is_msi(domain) {
            return self.rectified(domain, source);
        }
        self.source(domain, source).is_some_and(|s| s.pending)
    }

    /// A write of 1 to the source's `setip` or `clrip` bit.
    pub fn set_pending(&mut self, domain: usize, source: u32, on: bool) {
        if !self.active(domain, source) {
            return;
        }
        if self.is_level(domain, source) {
            // Set only while the level is there; without MSIs it is the level itself.
            if !self.is_msi(domain) || (on && !self.rectified(domain, source)) {
                return;
            }
        }
        if let Some(s) = self.source_mut(domain, source) {
            s.pending = on;
        }
    }

    pub fn enabled(&self, domain: usize, source: u32) -> bool {
        self.active(domain, source) && self.source(domain, source).is_some_and(|s| s.enabled)
    }

    pub fn set_enabled(&mut self, domain: usize, source: u32, on: bool) {
        let active = self.active(domain, source);
        if let Some(s) = self.source_mut(domain, source).filter(|_| active) {
            s.enabled = on;
        }
    }

    pub fn source_config(&self, domain: usize, source: u32) -> u32 {
        if !self.reaches(domain, source) {
            return 0;
        }
        self.source(domain, source).map_or(0, |s| s.config)
    }

    pub fn set_source_config(&mut self, domain: usize, source: u32, value: u32) {
        if !self.reaches(domain, source) {
            return;
        }
        let has_child = domain + 1 < self.domains.len();
        let config = match value & MODE {
            _ if value & DELEGATED != 0 => {
                if has_child {
                    DELEGATED
                } else {
                    mode::INACTIVE
                }
            }
            2 | 3 => mode::INACTIVE,
            mode => mode,
        };
        let before = self.rectified(domain, source);
        let was_active = self.active(domain, source);
        if let Some(s) = self.source_mut(domain, source) {
            s.config = config;
        }
        let stays = was_active && self.active(domain, source);
        if let Some(s) = self.source_mut(domain, source).filter(|_| !stays) {
            *s = Source { config, ..Source::default() };
        }
        // A source that is taken back from the domains below is inactive there from now on.
        if config & DELEGATED == 0 {
            for below in domain + 1..self.domains.len() {
                if let Some(s) = self.source_mut(below, source) {
                    *s = Source::default();
                }
            }
        }
        self.input_changed(domain, source, before && was_active);
    }

    pub fn target(&self, domain: usize, source: u32) -> u32 {
        if !self.active(domain, source) {
            return 0;
        }
        let target = self.source(domain, source).map_or(0, |s| s.target);
        // Priority 0 does not exist.
        if self.is_msi(domain) { target } else { target | u32::from(target & 0xff == 0) }
    }

    pub fn set_target(&mut self, domain: usize, source: u32, value: u32) {
        let kept = if self.is_msi(domain) { EIID } else { 0xff };
        let active = self.active(domain, source);
        if let Some(s) = self.source_mut(domain, source).filter(|_| active) {
            s.target = value >> HART_SHIFT << HART_SHIFT | value & kept;
        }
    }

    pub fn domain_config(&self, domain: usize) -> u32 {
        self.domains.get(domain).map_or(0, |d| d.config | DOMAIN_READ_ONLY)
    }

    pub fn set_domain_config(&mut self, domain: usize, value: u32) {
        if let Some(d) = self.domains.get_mut(domain) {
            d.config = value & (DOMAIN_ENABLE | DOMAIN_MSI);
        }
    }

    pub fn address(&mut self, domain: usize, which: usize) -> Option<&mut u32> {
        self.domains.get_mut(domain)?.addresses.get_mut(which)
    }

    pub fn idc(&mut self, domain: usize, hart: usize) -> Option<&mut Idc> {
        self.domains.get_mut(domain)?.harts.get_mut(hart)
    }

    /// The message that a write to `genmsi` asks for.
    pub fn extra_message(&self, domain: usize, value: u32) -> Option<Message> {
        let hart = (value >> HART_SHIFT) as usize;
        self.is_msi(domain).then_some(Message { domain, hart, id: value & EIID })
    }

    fn is_on(&self, domain: usize) -> bool {
        self.domains.get(domain).is_some_and(|d| d.config & DOMAIN_ENABLE != 0)
    }

    /// In MSI mode: takes all messages that are due (section 4.9).
    pub fn forward(&mut self, domain: usize, messages: &mut Vec<Message>) {
        if !self.is_on(domain) || !self.is_msi(domain) {
            return;
        }
        for source in 1..self.inputs.len() as u32 {
            if !self.source(domain, source).is_some_and(|s| s.pending && s.enabled) {
                continue;
            }
            if !self.active(domain, source) {
                continue;
            }
            if let Some(s) = self.source_mut(domain, source) {
                s.pending = false;
                let hart = (s.target >> HART_SHIFT) as usize;
                messages.push(Message { domain, hart, id: s.target & EIID });
            }
        }
    }

    /// In direct mode: the source that `topi` of a hart shows, as (source, priority) (section 4.8.1.4).
    pub fn top(&self, domain: usize, hart: usize) -> Option<(u32, u32)> {
        let threshold = self.domains.get(domain)?.harts.get(hart)?.threshold;
        (1..self.inputs.len() as u32)
            .filter(|&s| self.pending(domain, s) && self.enabled(domain, s))
            .map(|s| (s, self.target(domain, s)))
            .filter(|&(_, target)| (target >> HART_SHIFT) as usize == hart)
            .map(|(s, target)| (s, target & 0xff))
            .filter(|&(_, priority)| threshold == 0 || priority < threshold)
            .min_by_key(|&(s, priority)| (priority, s))
    }

    /// A read of `claimi`: what `topi` shows, which is no longer pending after.
    pub fn claim(&mut self, domain: usize, hart: usize) -> Option<(u32, u32)> {
        let top = self.top(domain, hart);
        match top {
            Some((source, _)) => self.set_pending(domain, source, false),
            None => {
                if let Some(idc) = self.idc(domain, hart) {
                    idc.force = false;
                }
            }
        }
        top
    }

    /// In direct mode: the level of a hart's external interrupt.
    pub fn hart_level(&self, domain: usize, hart: usize) -> bool {
        let idc = self.domains.get(domain).and_then(|d| d.harts.get(hart));
        let Some(idc) = idc.filter(|i| i.delivery && self.is_on(domain) && !self.is_msi(domain)) else {
            return false;
        };
        idc.force || self.top(domain, hart).is_some()
    }
}
