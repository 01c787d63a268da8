//! Vector instructions: the helper does them.

use super::emit::Lifter;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::mode::Unit;

impl Lifter<'_> {
    /// A vector instruction.
    pub fn vector(&mut self, d: &Decoded) -> bool {
        if self.mode.vector == Unit::Off {
            return self.illegal(d);
        }
        self.system_helper(HelperId::Vector, d);
        if d.row.is_some_and(|row| row.format.text.starts_with('d')) {
            self.forget(d.rd);
        }
        true
    }
}
