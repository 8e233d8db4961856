//! Changes examples: bytes flipped, cut, doubled, moved, mixed, and replaced by what often hurts.

use crate::corpus::Corpus;

/// Largest input.
const BYTES_MAX: usize = 64 << 10;
/// Numbers, signs and sequences at the edges of what readers expect.
const AWKWARD: [&[u8]; 26] = [
    b"",
    b"\0",
    b"\x7f",
    b"\xff",
    b"\xc0\x0c",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\xa6\x80",
    b"\xe2\x80\xa8",
    b"\\u0000",
    b"\\ud800",
    b"-1",
    b"0",
    b"65536",
    b"4294967296",
    b"18446744073709551615",
    b"1e999",
    b"null",
    b"[]",
    b"{}",
    b"\"\"",
    b"%00",
    b"%ff",
    b".",
    b"\r\n",
    b"&*!|>",
];

/// Draws changes.
pub(crate) struct Mutator {
    pub(crate) random: fastrand::Rng,
}

impl Mutator {
    /// The same seed draws the same changes.
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed) }
    }

    /// An example, changed.
    pub(crate) fn change(&mut self, corpus: &Corpus) -> Vec<u8> {
        let mut bytes = corpus.pick(&mut self.random).to_vec();
        let other = corpus.pick(&mut self.random);
        self.alter(&mut bytes, other);
        bytes
    }

    /// Changes `bytes` once or a few times; `other` is something of its kind.
    pub(crate) fn alter(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..1 << self.random.u32(..4) {
            self.alter_once(bytes, other);
            bytes.truncate(BYTES_MAX);
        }
    }

    fn alter_once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let (from, to) = self.range(bytes.len());
        match self.random.u32(..9) {
            0 if !bytes.is_empty() => {
                let at = self.random.usize(..bytes.len());
                bytes[at] ^= 1 << self.random.u32(..8);
            }
            1 if !bytes.is_empty() => {
                let at = self.random.usize(..bytes.len());
                bytes[at] = self.random.u8(..);
            }
            2 => drop(bytes.drain(from..to)),
            3 => bytes.truncate(from),
            4 => {
                let part = bytes[from..to].repeat(1 + self.random.usize(..64));
                bytes.splice(to..to, part);
            }
            5 => {
                let (begin, end) = self.range(other.len());
                bytes.splice(from..to, other[begin..end].iter().copied());
            }
            6 => {
                let part = bytes[from..to].to_vec();
                let at = self.random.usize(..=bytes.len());
                bytes.splice(at..at, part);
            }
            _ => {
                let awkward = AWKWARD[self.random.usize(..AWKWARD.len())];
                let to = if self.random.bool() { to } else { from };
                bytes.splice(from..to, awkward.iter().copied());
            }
        }
    }

    /// Part of so many bytes, rather a short one.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let from = self.random.usize(..=len);
        let long = if self.random.u32(..4) == 0 { len } else { 16 };
        (from, (from + self.random.usize(..=long)).min(len))
    }
}
