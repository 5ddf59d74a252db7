//! A simulated file's bytes: in pieces that copies share, with nothing where nothing was written. So a whole disk is copied in
//! microseconds, and what room was reserved for costs nothing.

use crate::types::Extent;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a piece.
const PIECE: u64 = 4096;

/// See the module's text. What no piece holds reads as zeros.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Content {
    pieces: BTreeMap<u64, Arc<[u8; PIECE as usize]>>,
    length: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Reads up to the end; gives how many bytes.
    pub(super) fn read(&self, at: u64, out: &mut [u8]) -> usize {
        let end = self.length.min(at.saturating_add(out.len() as u64));
        let mut done = 0;
        for (number, range) in pieces(at, end) {
            let into = &mut out[done..done + range.len()];
            match self.pieces.get(&number) {
                Some(piece) => into.copy_from_slice(&piece[range.clone()]),
                None => into.fill(0),
            }
            done += range.len();
        }
        done
    }

    /// Writes, making the file longer where it ends before.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        let end = at + data.len() as u64;
        self.length = self.length.max(end);
        let mut done = 0;
        for (number, range) in pieces(at, end) {
            let from = &data[done..done + range.len()];
            done += range.len();
            let piece = self.pieces.entry(number).or_insert_with(|| Arc::new([0; PIECE as usize]));
            Arc::make_mut(piece)[range].copy_from_slice(from);
        }
    }

    pub(super) fn set_len(&mut self, length: u64) {
        if length < self.length {
            // The last piece goes whole, too: a file that was cut has no room behind its end.
            self.zero(length, self.length.next_multiple_of(PIECE));
        }
        self.length = length;
    }

    /// Makes a range inside the file read as zeros.
    pub(super) fn punch(&mut self, range: Extent) {
        self.zero(range.offset, range.end().min(self.length));
    }

    fn zero(&mut self, from: u64, end: u64) {
        for (number, range) in pieces(from, end) {
            if range.len() as u64 == PIECE {
                self.pieces.remove(&number);
            } else if let Some(piece) = self.pieces.get_mut(&number) {
                Arc::make_mut(piece)[range].fill(0);
            }
        }
    }

    /// The next range that something was written to.
    pub(super) fn next_data(&self, offset: u64) -> Option<Extent> {
        let (first, _) = self.pieces.range(offset / PIECE..).next()?;
        let following = self.pieces.range(first..).zip(*first..).take_while(|((number, _), at)| *number == at);
        let start = (first * PIECE).max(offset);
        let end = ((first + following.count() as u64) * PIECE).min(self.length);
        (start < end).then(|| Extent::new(start, end - start))
    }

    /// What is there, for a hash: places and bytes.
    pub(super) fn hash(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.length.to_le_bytes());
        // A piece of zeros is the same as none.
        for (number, piece) in self.pieces.iter().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0)) {
            hasher.update(&number.to_le_bytes()).update(piece.as_slice());
        }
    }
}

/// The pieces of a range with the part of each that is in it.
fn pieces(from: u64, end: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let numbers = if from < end { from / PIECE..end.div_ceil(PIECE) } else { 0..0 };
    numbers.map(move |number| {
        let start = number * PIECE;
        (number, (from.max(start) - start) as usize..(end.min(start + PIECE) - start) as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Length(u64),
        Punch(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..20_000, prop::collection::vec(any::<u8>(), 0..9000)).prop_map(|(at, data)| Op::Write(at, data)),
            (0u64..30_000).prop_map(Op::Length),
            (0u64..25_000, 0u64..12_000).prop_map(|(at, length)| Op::Punch(at, length)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_as_a_plain_vector(ops in prop::collection::vec(op(), 1..20)) {
            let (mut content, mut plain) = (Content::default(), Vec::<u8>::new());
            for op in ops {
                let before = content.clone();
                let was = plain.clone();
                match op {
                    Op::Write(at, data) => {
                        content.write(at, &data);
                        plain.resize(plain.len().max(at as usize + data.len()), 0);
                        plain[at as usize..at as usize + data.len()].copy_from_slice(&data);
                    }
                    Op::Length(length) => {
                        content.set_len(length);
                        plain.resize(length as usize, 0);
                    }
                    Op::Punch(at, length) => {
                        content.punch(Extent::new(at, length));
                        let end = plain.len().min((at + length) as usize);
                        plain[(at as usize).min(end)..end].fill(0);
                    }
                }
                // The copy from before stays as it was.
                for (content, plain) in [(&content, &plain), (&before, &was)] {
                    let mut found = vec![0xee; plain.len() + 9];
                    prop_assert_eq!(content.read(0, &mut found), plain.len());
                    prop_assert!(found[..plain.len()] == plain[..]);
                    prop_assert_eq!(content.len(), plain.len() as u64);
                }
                // Between what it calls data there are zeros only.
                let mut at = 0;
                while let Some(data) = content.next_data(at) {
                    prop_assert!(data.length > 0 && data.offset >= at && data.end() <= content.len());
                    prop_assert!(plain[at as usize..data.offset as usize].iter().all(|byte| *byte == 0));
                    at = data.end();
                }
                prop_assert!(plain[at as usize..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
