//! How a long build tells its caller where it stands.

/// What the numbers of a step count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, to be shown as KiB, MiB, ...
    Bytes,
    /// Packages, files: plain numbers.
    Items,
}

/// Receives the progress of a build. Drawing is the caller's business.
///
/// Methods come from several threads at once and have to return quickly.
pub trait Progress: Sync {
    /// A step begins; the one before it is done. `total` is 0 when it is not known.
    fn step(&self, title: &str, total: u64, unit: Unit);
    /// `amount` more units of the current step are done.
    fn advance(&self, amount: u64);
    /// Something worth knowing that is no problem ("using the cached index").
    fn note(&self, message: &str);
    /// Something the user should know because it weakens the result.
    fn warn(&self, message: &str);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _title: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _amount: u64) {}
    fn note(&self, _message: &str) {}
    fn warn(&self, _message: &str) {}
}
