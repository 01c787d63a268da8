//! Inputs of the fuzzer as changes to an image and a script of what is done to it then.

use super::seeds::Seed;
use crate::graph::{MemoryNode, Node};

/// Bytes that are read one after the other; zeros when there are no more.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        first
    }
}

/// Bytes of a file that is edited as a text at most.
const TEXT: u64 = 16 << 10;

/// Bytes that a change makes a file long at most: more only takes longer.
const FILE: u64 = 2 << 20;

/// Makes up to 15 changes to a copy of the seed's main file.
pub fn change(seed: &Seed, file: &MemoryNode, input: &mut Input<'_>) -> u8 {
    let changes = input.byte() & 15;
    let hot = |place: u16| {
        let place = u64::from(place);
        seed.hot[(place / 64) as usize % seed.hot.len()] + place % 64
    };
    for _ in 0..changes {
        let head = input.byte();
        let len = usize::from(head & 31) + 1;
        match head >> 5 {
            0 | 1 => {
                let at = hot(input.short());
                file.put(at, input.take(len));
            }
            2 => {
                let (at, byte) = (hot(input.short()), input.byte());
                file.put(at, &vec![byte; len]);
            }
            3 => {
                let (from, to) = (hot(input.short()), hot(input.short()));
                let mut bytes = vec![0; len * 16];
                file.get(from, &mut bytes);
                file.put(to, &bytes);
            }
            4 => {
                let (at, bits) = (hot(input.short()), input.byte());
                let mut byte = [0];
                file.get(at, &mut byte);
                file.put(at, &[byte[0] ^ bits]);
            }
            // A number, in both orders of its bytes.
            5 => {
                let at = hot(input.short());
                let value =
                    (u64::from(input.byte()) << ((len * 2) & 63)).wrapping_sub(u64::from(input.byte() & 3));
                let width = [2, 4, 8, 8][len & 3];
                if len & 4 == 0 {
                    file.put(at, &value.to_le_bytes()[..width]);
                } else {
                    file.put(at, &value.to_be_bytes()[8 - width..]);
                }
            }
            6 => {
                let at = usize::from(input.short());
                let insert = if head & 16 == 0 { input.take(len & 15) } else { &[] };
                if file.size() <= TEXT {
                    let mut bytes = file.contents();
                    let at = at.min(bytes.len());
                    let end = if head & 16 == 0 { at } else { (at + len).min(bytes.len()) };
                    bytes.splice(at..end, insert.iter().copied());
                    file.set_size(0);
                    file.put(0, &bytes);
                }
            }
            _ => {
                let at = (u64::from(input.short()) << (head & 15)).min(FILE);
                file.set_size(if head & 16 == 0 { at } else { file.size().saturating_sub(at) });
            }
        }
    }
    changes
}

/// What is done to the disk next.
pub enum Step {
    Write { at: u64, len: u64, byte: u8 },
    Packed { at: u64, byte: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Flush,
    Check(u8),
    Resize(u64),
    Snapshot(u8),
    Bitmap(u8),
    Unlink,
    Reopen,
}

/// Steps at most.
const STEPS: usize = 12;

/// What remains of an input as a script, of some requests if there is nothing.
pub fn script(input: &mut Input<'_>, size: u64) -> Vec<Step> {
    if input.0.is_empty() {
        let last = size.saturating_sub(700);
        return vec![
            Step::Check(2),
            Step::Write { at: 0, len: 700, byte: 7 },
            Step::Zero { at: 512, len: 4096, unmap: true },
            Step::Write { at: size / 3, len: 5000, byte: 9 },
            Step::Discard { at: size / 3, len: 4096 },
            Step::Write { at: last, len: 700, byte: 8 },
            Step::Resize(size.saturating_add(65536)),
        ];
    }
    let mut steps = Vec::new();
    while !input.0.is_empty() && steps.len() < STEPS {
        let kind = input.byte();
        let (a, b) = (u64::from(input.short()), u64::from(input.byte()));
        let mut at = (u128::from(a) * u128::from(size) / 65536) as u64;
        if kind & 32 != 0 {
            at = at / 512 * 512;
        }
        let len = if kind & 64 != 0 { (b + 1) * 64 } else { b * b / 4 + 1 };
        let len = len.min(size - at);
        steps.push(match kind & 31 {
            0..8 => Step::Write { at, len, byte: kind ^ b as u8 | 1 },
            8 | 9 => Step::Zero { at, len, unmap: kind & 1 == 0 },
            10 | 11 => Step::Discard { at, len },
            12 | 13 => Step::Read { at, len },
            14 | 15 => Step::Packed { at, byte: b as u8 },
            16 => Step::Flush,
            17 => Step::Check(b as u8 % 3),
            18 | 19 => Step::Resize((size / 2).saturating_add(a * 16 / 512 * 512)),
            20..24 => Step::Snapshot(b as u8),
            24..28 => Step::Bitmap(b as u8),
            28 => Step::Unlink,
            _ => Step::Reopen,
        });
    }
    steps
}
