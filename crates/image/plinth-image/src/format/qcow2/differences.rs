//! What a check finds where counts are not as they should be.

use super::refcount;
use crate::format::CheckReport;

/// What helps where counts are too narrow for what refers to a cluster.
pub const NARROW_COUNTS: &str = "a cluster has more references than its count can say: widen the counts (`plinth disk amend \
                                 -o refcount_bits=64`), or convert the image";
/// Counts to mend one by one at most; of more, all are written anew.
const MAX_FIXES: usize = 1 << 20;

/// Counts that differ from the references there are.
pub struct Differences {
    bits: u32,
    max: u64,
    raise: bool,
    lower: bool,
    /// What to write: the cluster, and its count.
    pub fixes: Vec<(u64, u64)>,
    /// Something is in use that is counted as free.
    pub uncounted: bool,
    /// Findings are not told, only what is done about them.
    pub quiet: bool,
    /// There are so many that all are to be written anew.
    pub many: bool,
    /// The findings that are to be mended.
    pub repairs: Vec<String>,
    /// Flags say what the counts say, and may be wrong too.
    pub flags_doubtful: bool,
    /// Some count cannot say what is right.
    pub overflow: bool,
}

impl Differences {
    /// Of an image with clusters of 2^`bits` bytes and counts of 2^`order` bits; those that are too low
    /// are to be raised, those that are too high lowered.
    pub fn new(bits: u32, order: u32, raise: bool, lower: bool) -> Self {
        Self {
            bits,
            max: refcount::max(order),
            raise,
            lower,
            fixes: Vec::new(),
            uncounted: false,
            quiet: false,
            many: false,
            repairs: Vec::new(),
            flags_doubtful: false,
            overflow: false,
        }
    }

    /// A cluster's count is `stored`, and there are `right` references to it.
    pub fn note(&mut self, cluster: u64, stored: u64, right: u64, report: &mut CheckReport) {
        if stored == right {
            return;
        }
        if right > self.max {
            // Nothing that could be written here would be right, and neither would flags that go by it.
            report.corruptions += 1;
            report.say(format_args!("ERROR: overflow cluster offset={:#x}", cluster << self.bits));
            if !self.overflow {
                report.say(NARROW_COUNTS);
            }
            self.overflow = true;
            return;
        }
        self.flags_doubtful = true;
        self.uncounted |= stored == 0;
        // In QEMU's words, which scripts look for.
        let (mended, kind) = match stored < right {
            true => (self.raise, "ERROR"),
            false => (self.lower, "Leaked"),
        };
        match stored < right {
            true => report.corruptions += 1,
            false => report.leaks += 1,
        }
        if report.messages.len() < CheckReport::MESSAGES {
            let what = format!("cluster {cluster} refcount={stored} reference={right}");
            if !self.quiet {
                report.say(format_args!("{kind} {what}"));
            }
            if mended {
                self.repairs.push(format!("Repairing {what}"));
            }
        }
        if mended && !self.many {
            self.fixes.push((cluster, right));
            if self.fixes.len() > MAX_FIXES {
                self.many = true;
                self.fixes = Vec::new();
            }
        }
    }
}
