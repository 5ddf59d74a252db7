//! What is not the same in two disks: of two moments, or of a moment and a file.
//!
//! The indexes say first where the two may differ at all: what the same record wrote, or what lies in the same base, is not
//! read. The rest is read from both sides and compared in blocks of 4 KiB, so that a block that was written again with what it
//! held is no difference. Where one disk is shorter it counts as zeros.

use super::base::is_zero;
use super::content::{Content, Provenance};
use crate::types::{BLOCK, Extent};

/// How much of the disks is looked at in one step, in bytes: a whole region of an index, and whole blocks.
pub const STRIDE: u64 = 64 << 20;
/// Bytes of one read of either side.
const PIECE: u64 = 1 << 20;

/// A run of blocks that differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which bytes: whole blocks, but at the end of the longer disk.
    pub extent: Extent,
    /// The second side reads as zeros there.
    pub zero: bool,
}

/// Which of the two sides could not be read, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiffError<A, B> {
    /// The first one.
    #[error("{0}")]
    From(A),
    /// The second one.
    #[error("{0}")]
    To(B),
}

/// A comparison under way. Takes two pieces and the runs of one stride in memory, however large the disks are.
#[derive(Debug)]
pub struct Diff<'a, A, B> {
    from: &'a A,
    to: &'a B,
    size: u64,
    at: u64,
    /// The last run: the next block may belong to it.
    held: Option<Change>,
    buffers: (Vec<u8>, Vec<u8>),
}

impl<'a, A: Content, B: Content> Diff<'a, A, B> {
    /// Of two disks: what `to` holds and `from` does not.
    #[must_use]
    pub fn new(from: &'a A, to: &'a B) -> Self {
        let size = from.size().max(to.size());
        Self { from, to, size, at: 0, held: None, buffers: Default::default() }
    }

    /// Bytes to look at: the size of the longer disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were looked at.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Looks at the next stride and gives out the runs that are known to end before it; `Ok(false)`: everything was given out.
    /// Neighbours of one kind are one run.
    ///
    /// # Errors
    /// When either side cannot be read or does not verify; the comparison cannot go on then.
    pub fn step(&mut self, found: &mut impl FnMut(Change)) -> Result<bool, DiffError<A::Error, B::Error>> {
        if self.at >= self.size {
            self.held.take().into_iter().for_each(found);
            return Ok(false);
        }
        let stride = Extent::new(self.at, STRIDE.min(self.size - self.at));
        for candidate in self.candidates(stride)? {
            let mut at = candidate.offset;
            while at < candidate.end() {
                let piece = Extent::new(at, PIECE.min(candidate.end() - at));
                self.compare(piece, found)?;
                at = piece.end();
            }
        }
        self.at = stride.end();
        Ok(true)
    }

    /// Whole blocks, ascending, that may differ.
    fn candidates(&self, stride: Extent) -> Result<Vec<Extent>, DiffError<A::Error, B::Error>> {
        let made = |disk_size: u64, runs: Vec<_>| padded(stride, disk_size, runs, Provenance::Zeros);
        let from = inside(self.from, stride, Content::provenance).map_err(DiffError::From)?;
        let to = inside(self.to, stride, Content::provenance).map_err(DiffError::To)?;
        let (from, to) = (made(self.from.size(), from), made(self.to.size(), to));
        let unlike = |a: &Provenance, b: &Provenance| a != b || *a == Provenance::Unknown;
        let mut blocks: Vec<Extent> = Vec::new();
        for suspect in overlay(&from, &to, unlike) {
            // Zeros that a base holds, or a file, are known as zeros only here.
            let from = inside(self.from, suspect, Content::zeros).map_err(DiffError::From)?;
            let to = inside(self.to, suspect, Content::zeros).map_err(DiffError::To)?;
            let from = padded(suspect, self.from.size(), from, true);
            let to = padded(suspect, self.to.size(), to, true);
            for range in overlay(&from, &to, |a, b| !(*a && *b)) {
                let whole = range.widen(BLOCK);
                let whole = Extent::new(whole.offset, whole.end().min(self.size) - whole.offset);
                match blocks.last_mut().filter(|last| whole.offset <= last.end()) {
                    Some(last) => last.length = whole.end().max(last.end()) - last.offset,
                    None => blocks.push(whole),
                }
            }
        }
        Ok(blocks)
    }

    fn compare(&mut self, piece: Extent, found: &mut impl FnMut(Change)) -> Result<(), DiffError<A::Error, B::Error>> {
        let (from, to) = (&mut self.buffers.0, &mut self.buffers.1);
        fill(self.from, piece, from).map_err(DiffError::From)?;
        fill(self.to, piece, to).map_err(DiffError::To)?;
        if from == to {
            return Ok(());
        }
        let blocks = from.chunks(BLOCK as usize).zip(to.chunks(BLOCK as usize));
        for (number, (_, to)) in blocks.enumerate().filter(|(_, (from, to))| from != to) {
            let extent = Extent::new(piece.offset + number as u64 * BLOCK, to.len() as u64);
            let zero = is_zero(to);
            match self.held.as_mut().filter(|held| held.zero == zero && held.extent.end() == extent.offset) {
                Some(held) => held.extent.length += extent.length,
                None => self.held.replace(Change { extent, zero }).into_iter().for_each(&mut *found),
            }
        }
        Ok(())
    }
}

/// What a question about a range gives for the part of it that the disk has.
fn inside<C: Content, T>(
    content: &C,
    range: Extent,
    ask: impl Fn(&C, Extent) -> Result<Vec<(Extent, T)>, C::Error>,
) -> Result<Vec<(Extent, T)>, C::Error> {
    match range.intersect(&Extent::new(0, content.size())) {
        Some(range) => ask(content, range),
        None => Ok(Vec::new()),
    }
}

/// The runs of a range with what lies behind the disk's end.
fn padded<T>(range: Extent, disk_size: u64, mut runs: Vec<(Extent, T)>, behind: T) -> Vec<(Extent, T)> {
    let from = disk_size.clamp(range.offset, range.end());
    if from < range.end() {
        runs.push((Extent::new(from, range.end() - from), behind));
    }
    runs
}

/// Where two lists of runs of the same range hold what is unlike; neighbours are one.
fn overlay<T>(from: &[(Extent, T)], to: &[(Extent, T)], unlike: impl Fn(&T, &T) -> bool) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    let (mut a, mut b) = (from.iter().peekable(), to.iter().peekable());
    while let (Some((of_a, what_a)), Some((of_b, what_b))) = (a.peek(), b.peek()) {
        if unlike(what_a, what_b)
            && let Some(both) = of_a.intersect(of_b)
        {
            match found.last_mut().filter(|last| last.end() == both.offset) {
                Some(last) => last.length += both.length,
                None => found.push(both),
            }
        }
        if of_a.end() <= of_b.end() {
            a.next();
        } else {
            b.next();
        }
    }
    found
}

/// Reads a range of a disk, and zeros behind its end.
fn fill<C: Content>(content: &C, range: Extent, buffer: &mut Vec<u8>) -> Result<(), C::Error> {
    buffer.resize(range.length as usize, 0);
    let there = content.size().clamp(range.offset, range.end()) - range.offset;
    let (there, behind) = buffer.split_at_mut(there as usize);
    behind.fill(0);
    if there.is_empty() { Ok(()) } else { content.read(range.offset, there) }
}

#[cfg(test)]
mod tests;
