//! Reading whole tables, a piece at a time.

use crate::Error;
use crate::graph::{NodeRef, read_table};

/// Bytes of a table that are read at once.
const AT_ONCE: u64 = 1 << 20;

/// Reads `len` bytes of a table at `offset` and shows them in order: the byte of the table, and the bytes.
///
/// # Errors
/// The table is not wholly inside of the file; the file's; those of `see`.
pub async fn scan(
    file: &NodeRef,
    offset: u64,
    len: u64,
    what: &str,
    mut see: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut at = 0;
    while at < len {
        let n = AT_ONCE.min(len - at);
        let bytes = read_table(&**file, offset + at, n as usize, what).await?;
        see(at, &bytes)?;
        at += n;
    }
    Ok(())
}

/// One bit for each number.
#[derive(Clone, Debug)]
pub struct Bits {
    words: Vec<u64>,
    len: u64,
}

impl Bits {
    /// None set.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// Sets one; true if it was set. Numbers beyond the end are never set.
    pub fn set(&mut self, n: u64) -> bool {
        if n >= self.len {
            return false;
        }
        let (word, bit) = (&mut self.words[(n / 64) as usize], 1 << (n % 64));
        let was = *word & bit != 0;
        *word |= bit;
        was
    }

    /// True if it is set.
    pub fn get(&self, n: u64) -> bool {
        n < self.len && self.words[(n / 64) as usize] >> (n % 64) & 1 != 0
    }

    /// Those below `end` that are not set, in order.
    pub fn clear_below(&self, end: u64) -> impl Iterator<Item = u64> {
        (0..end.min(self.len).div_ceil(64))
            .filter(|&w| self.words[w as usize] != u64::MAX)
            .flat_map(|w| w * 64..w * 64 + 64)
            .filter(move |&n| n < end && !self.get(n))
    }

    /// One more than the last that is set.
    pub fn end(&self) -> u64 {
        let last = self.words.iter().rposition(|&w| w != 0);
        last.map_or(0, |w| w as u64 * 64 + 64 - u64::from(self.words[w].leading_zeros()))
    }
}

/// Copies a table within a file, as it is.
///
/// # Errors
/// The file's; the table is not wholly inside of the file.
pub async fn copy_all(file: &NodeRef, from: u64, to: u64, len: u64) -> Result<(), Error> {
    let mut at = 0;
    while at < len {
        let n = AT_ONCE.min(len - at);
        let bytes = read_table(&**file, from + at, n as usize, "its table").await?;
        file.write(to + at, bytes.freeze()).await?;
        at += n;
    }
    Ok(())
}
