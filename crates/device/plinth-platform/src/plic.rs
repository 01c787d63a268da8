//! The RISC-V platform-level interrupt controller (RISC-V PLIC specification 1.0.0; `sifive,plic-1.0.0`),
//! with level-triggered gateways.

use std::sync::Mutex;

use plinth_device::{Device, IoOutcome, IrqLine, IrqSink, MmioDevice};

use crate::{OutputLine, le_value, lock, put_le};

const PENDING: u64 = 0x1000;
const ENABLE: u64 = 0x2000;
const ENABLE_STRIDE: u64 = 0x80;
const CONTEXT: u64 = 0x20_0000;
const CONTEXT_STRIDE: u64 = 0x1000;
const THRESHOLD: u64 = 0;
const CLAIM: u64 = 4;
/// Priorities that are implemented: 0 (never) to 7.
const MAX_PRIORITY: u32 = 7;

/// How the controller is wired.
#[derive(Debug)]
pub struct PlicConfig {
    /// Highest interrupt source; sources count from 1. At most 1023.
    pub sources: u32,
    /// Output of each context. At most 15,872.
    pub contexts: Vec<IrqLine>,
}

struct Context {
    threshold: u32,
    enable: Vec<u32>,
}

/// Bit sets are in 32-bit words, as the guest sees them.
struct State {
    priority: Vec<u32>,
    level: Vec<u32>,
    pending: Vec<u32>,
    /// Claimed and not yet completed: the gateway holds back further requests.
    claimed: Vec<u32>,
    contexts: Vec<Context>,
}

/// The controller. Its inputs are an [`IrqSink`] with sources as lines.
pub struct Plic {
    sources: u32,
    outputs: Vec<OutputLine>,
    state: Mutex<State>,
}

fn bit(set: &[u32], source: u32) -> bool {
    set.get(source as usize / 32).is_some_and(|w| w >> (source % 32) & 1 != 0)
}

fn set_bit(set: &mut [u32], source: u32, on: bool) {
    if let Some(w) = set.get_mut(source as usize / 32) {
        *w = *w & !(1 << (source % 32)) | u32::from(on) << (source % 32);
    }
}

impl State {
    fn new(sources: u32, contexts: usize) -> Self {
        let words = sources as usize / 32 + 1;
        let context = || Context { threshold: 0, enable: vec![0; words] };
        Self {
            priority: vec![0; sources as usize + 1],
            level: vec![0; words],
            pending: vec![0; words],
            claimed: vec![0; words],
            contexts: (0..contexts).map(|_| context()).collect(),
        }
    }

    /// The gateway: a source whose level is high is pending unless it is being served. A level that falls
    /// before it was claimed takes its request back.
    fn gateway(&mut self, source: u32) {
        let on = bit(&self.level, source) && !bit(&self.claimed, source);
        set_bit(&mut self.pending, source, on);
    }

    /// The pending source of highest priority that `context` has enabled, lowest number first, and its
    /// priority. Sources of priority 0 never interrupt.
    fn best(&self, context: &Context) -> Option<(u32, u32)> {
        let mut best = None;
        for (i, (p, e)) in self.pending.iter().zip(&context.enable).enumerate() {
            let mut ready = p & e;
            while ready != 0 {
                let source = i as u32 * 32 + ready.trailing_zeros();
                ready &= ready - 1;
                let priority = self.priority.get(source as usize).copied().unwrap_or(0);
                if priority > best.map_or(0, |(_, p)| p) {
                    best = Some((source, priority));
                }
            }
        }
        best
    }

    fn claim(&mut self, context: usize) -> u32 {
        let Some((source, _)) = self.contexts.get(context).and_then(|c| self.best(c)) else { return 0 };
        set_bit(&mut self.claimed, source, true);
        self.gateway(source);
        source
    }

    /// Completion of a source that the context has not enabled is ignored, as the specification says.
    fn complete(&mut self, context: usize, source: u32) {
        if self.contexts.get(context).is_some_and(|c| bit(&c.enable, source)) {
            set_bit(&mut self.claimed, source, false);
            self.gateway(source);
        }
    }
}

/// What a register offset means.
enum Register {
    Priority(usize),
    Pending(usize),
    Enable(usize, usize),
    Threshold(usize),
    Claim(usize),
    None,
}

fn register(offset: u64) -> Register {
    let part = |base: u64, stride: u64| (((offset - base) / stride) as usize, (offset - base) % stride);
    match offset {
        ..PENDING => Register::Priority(offset as usize / 4),
        PENDING..ENABLE => Register::Pending((offset - PENDING) as usize / 4),
        ENABLE..CONTEXT => {
            let (context, at) = part(ENABLE, ENABLE_STRIDE);
            Register::Enable(context, at as usize / 4)
        }
        CONTEXT.. => match part(CONTEXT, CONTEXT_STRIDE) {
            (context, THRESHOLD) => Register::Threshold(context),
            (context, CLAIM) => Register::Claim(context),
            _ => Register::None,
        },
    }
}

impl Plic {
    /// Bytes of its range with `contexts` contexts.
    #[must_use]
    pub const fn size(contexts: u64) -> u64 {
        CONTEXT + contexts * CONTEXT_STRIDE
    }

    /// Makes the controller; nothing is enabled.
    #[must_use]
    pub fn new(config: PlicConfig) -> Self {
        let PlicConfig { sources, contexts } = config;
        let sources = sources.min(1023);
        let outputs: Vec<_> = contexts.into_iter().map(OutputLine::new).collect();
        let state = Mutex::new(State::new(sources, outputs.len()));
        Self { sources, outputs, state }
    }

    /// Changes the state, then drives the outputs that have changed.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut s = lock(&self.state);
        let r = change(&mut s);
        let mut changed = Vec::new();
        for (context, output) in s.contexts.iter().zip(&self.outputs) {
            let level = s.best(context).is_some_and(|(_, priority)| priority > context.threshold);
            if output.decide(level) {
                changed.push(output);
            }
        }
        drop(s);
        for output in changed {
            output.deliver();
        }
        r
    }

    fn valid(&self, word: usize) -> u32 {
        let mut mask = if word == 0 { !1 } else { !0 };
        let first = word as u32 * 32;
        if first + 31 > self.sources {
            mask &= ((1u64 << (self.sources + 1).saturating_sub(first).min(32)) - 1) as u32;
        }
        mask
    }
}

impl IrqSink for Plic {
    fn set_irq(&self, line: u32, level: bool) {
        if line == 0 || line > self.sources {
            return;
        }
        self.update(|s| {
            set_bit(&mut s.level, line, level);
            s.gateway(line);
        });
    }
}

impl MmioDevice for Plic {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        let value = if let Register::Claim(context) = register(offset) {
            self.update(|s| s.claim(context))
        } else {
            let s = lock(&self.state);
            let found = match register(offset) {
                Register::Priority(source) => s.priority.get(source),
                Register::Pending(word) => s.pending.get(word),
                Register::Enable(context, word) => s.contexts.get(context).and_then(|c| c.enable.get(word)),
                Register::Threshold(context) => s.contexts.get(context).map(|c| &c.threshold),
                Register::Claim(_) | Register::None => None,
            };
            found.copied().unwrap_or(0)
        };
        put_le(data, value.into());
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        let value = le_value(data) as u32;
        self.update(|s| match register(offset) {
            Register::Priority(source) => {
                if let Some(p) = s.priority.get_mut(source).filter(|_| source != 0) {
                    *p = value & MAX_PRIORITY;
                }
            }
            Register::Enable(context, word) => {
                let enable = s.contexts.get_mut(context).and_then(|c| c.enable.get_mut(word));
                if let Some(e) = enable {
                    *e = value & self.valid(word);
                }
            }
            Register::Threshold(context) => {
                if let Some(c) = s.contexts.get_mut(context) {
                    c.threshold = value & MAX_PRIORITY;
                }
            }
            Register::Claim(context) => s.complete(context, value),
            Register::Pending(_) | Register::None => {}
        });
        IoOutcome::Done
    }
}

impl Device for Plic {
    fn name(&self) -> &str {
        "plic"
    }

    fn reset(&self) {
        self.update(|s| {
            // The inputs are other devices' outputs: they fall when those devices are reset.
            let level = std::mem::take(&mut s.level);
            *s = State::new(self.sources, self.outputs.len());
            s.level = level;
            for source in 1..=self.sources {
                s.gateway(source);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::line::testing::Pins;

    fn plic() -> (Plic, Arc<Pins>) {
        let pins = Arc::new(Pins::default());
        let contexts = (0..3).map(|c| pins.line(c)).collect();
        (Plic::new(PlicConfig { sources: 95, contexts }), pins)
    }

    fn read(p: &Plic, offset: u64) -> u32 {
        let mut b = [0; 4];
        assert_eq!(p.read(offset, &mut b), IoOutcome::Done);
        u32::from_le_bytes(b)
    }

    fn write(p: &Plic, offset: u64, value: u32) {
        assert_eq!(p.write(offset, &value.to_le_bytes()), IoOutcome::Done);
    }

    const CONTEXT1_ENABLE: u64 = ENABLE + ENABLE_STRIDE;
    const CONTEXT1: u64 = CONTEXT + CONTEXT_STRIDE;

    #[test]
    fn a_level_is_claimed_once_and_again_after_completion() {
        let (p, pins) = plic();
        write(&p, 10 * 4, 1);
        write(&p, CONTEXT1_ENABLE, 1 << 10);
        p.set_irq(10, true);
        assert!(pins.get(1) && !pins.get(0));
        assert_eq!(read(&p, PENDING), 1 << 10);
        assert_eq!(read(&p, CONTEXT1 + CLAIM), 10);
        assert!(!pins.get(1));
        assert_eq!(read(&p, CONTEXT1 + CLAIM), 0);
        write(&p, CONTEXT1 + CLAIM, 10);
        assert!(pins.get(1), "the level is still high");
        assert_eq!(read(&p, CONTEXT1 + CLAIM), 10);
        p.set_irq(10, false);
        write(&p, CONTEXT1 + CLAIM, 10);
        assert!(!pins.get(1));
    }

    #[test]
    fn priority_decides_and_the_threshold_masks() {
        let (p, pins) = plic();
        for (source, priority) in [(3, 2), (33, 5), (40, 5), (50, 0)] {
            write(&p, source * 4, priority);
            p.set_irq(source as u32, true);
        }
        write(&p, CONTEXT1_ENABLE, !0);
        write(&p, CONTEXT1_ENABLE + 4, !0);
        write(&p, CONTEXT1 + THRESHOLD, 5);
        assert!(!pins.get(1));
        write(&p, CONTEXT1 + THRESHOLD, 4);
        assert!(pins.get(1));
        let claims: Vec<_> = (0..4).map(|_| read(&p, CONTEXT1 + CLAIM)).collect();
        assert_eq!(claims, [33, 40, 3, 0]);
        // Not enabled in context 2: its completion changes nothing.
        write(&p, CONTEXT + 2 * CONTEXT_STRIDE + CLAIM, 33);
        assert_eq!(read(&p, CONTEXT1 + CLAIM), 0);
    }

    #[test]
    fn registers_that_are_not_there_read_zero_and_never_panic() {
        let (p, _) = plic();
        write(&p, 0, 7);
        assert_eq!(read(&p, 0), 0);
        write(&p, CONTEXT1_ENABLE, !0);
        assert_eq!(read(&p, CONTEXT1_ENABLE), !1);
        write(&p, CONTEXT1_ENABLE + 8, !0);
        assert_eq!(read(&p, CONTEXT1_ENABLE + 8), !0);
        write(&p, CONTEXT1_ENABLE + 12, !0);
        assert_eq!(read(&p, CONTEXT1_ENABLE + 12), 0);
        for offset in (0..0x60_0000).step_by(0x7fc) {
            read(&p, offset);
            write(&p, offset, !0);
        }
        write(&p, CONTEXT1 + CLAIM, u32::MAX);
        p.set_irq(u32::MAX, true);
        assert_eq!(p.read(2, &mut [0; 4]), IoOutcome::Fault);
        assert_eq!(p.read(0, &mut [0; 8]), IoOutcome::Fault);
    }

    #[test]
    fn reset_forgets_all_but_the_inputs() {
        let (p, pins) = plic();
        write(&p, 10 * 4, 1);
        write(&p, CONTEXT1_ENABLE, 1 << 10);
        p.set_irq(10, true);
        assert_eq!(read(&p, CONTEXT1 + CLAIM), 10);
        p.reset();
        assert!(!pins.get(1));
        write(&p, 10 * 4, 1);
        write(&p, CONTEXT1_ENABLE, 1 << 10);
        assert!(pins.get(1));
    }
}
