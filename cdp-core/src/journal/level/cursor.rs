//! The entries of several sorted indexes as one sorted stream, with a few blocks of each in memory; all entries of a segment
//! whose footer has no index.

use super::codec::Top;
use super::{IndexMergeError, RunInfo};
use crate::journal::footer;
use crate::journal::index::{Entry, What};
use crate::journal::layout::{BLOCK_BYTES, BlockKind};
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::{Content, SegmentView};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

/// Blocks of one input that are read at once, and held.
const BLOCKS_AT_ONCE: u32 = 16;

/// A sealed segment's footer, or a run.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Segment(Arc<SegmentView>),
    Run(Arc<RunInfo>),
}

impl Input {
    /// A failure to read it as a failure of the merge.
    pub(super) fn unreadable(&self, source: ReadError) -> IndexMergeError {
        match self {
            Self::Segment(segment) => IndexMergeError::Segment { segment: segment.number, source },
            Self::Run(run) => IndexMergeError::Run { run: run.number, source },
        }
    }
}

/// One input and how far it was read.
#[derive(Debug)]
struct Cursor {
    input: Input,
    /// Is added to chunk numbers.
    chunk_base: u32,
    /// Runs of index blocks that were not read yet: first and how many.
    blocks: VecDeque<(u32, u32)>,
    entries: VecDeque<Entry>,
    /// How many were read.
    read: usize,
}

impl Cursor {
    fn start(&mut self, reader: &Reader, wide: bool) -> Result<(), IndexMergeError> {
        self.entries.clear();
        self.read = 0;
        self.blocks = match &self.input {
            Input::Segment(segment) => match &segment.content {
                Content::Sealed(summary) => VecDeque::from([(0, summary.blocks[usize::from(wide)])]),
                Content::Active(_) => VecDeque::new(),
            },
            Input::Run(run) => {
                let tops = reader.run_tops(run).map_err(|source| self.input.unreadable(source))?;
                let blocks = |top: &Top| (top.fences - u32::from(top.count), u32::from(top.count));
                tops.iter().filter(|top| top.wide == wide).map(blocks).collect()
            }
        };
        Ok(())
    }

    /// Reads on when nothing is held; gives the bytes that were read.
    fn fill(&mut self, reader: &Reader, wide: bool) -> Result<u64, IndexMergeError> {
        let mut read = 0;
        while self.entries.is_empty() {
            let Some((first, left)) = self.blocks.pop_front() else { break };
            let count = left.min(BLOCKS_AT_ONCE);
            if left > count {
                self.blocks.push_front((first + count, left - count));
            }
            let mut entries = match &self.input {
                Input::Segment(segment) => match segment_entries(reader, segment, (first, count), wide) {
                    Ok(entries) => entries,
                    // The frames say the same, in the same order; all that is left of it at once.
                    Err(_) => {
                        self.blocks.clear();
                        let index = reader.rebuilt(segment).map_err(|source| self.input.unreadable(source))?;
                        let entries = if wide { &index.wide } else { &index.narrow };
                        entries.get(self.read..).unwrap_or_default().to_vec()
                    }
                },
                Input::Run(run) => {
                    let entries = reader.run_entries(run, (first, count), wide);
                    entries.map_err(|source| self.input.unreadable(source))?
                }
            };
            self.read += entries.len();
            for entry in entries.iter_mut().filter(|entry| entry.what == What::Data) {
                // Numbers past the end of the table are noticed by whoever looks them up.
                entry.chunk = entry.chunk.saturating_add(self.chunk_base);
            }
            self.entries = entries.into();
            read += u64::from(count) * BLOCK_BYTES as u64;
        }
        Ok(read)
    }
}

fn segment_entries(
    reader: &Reader,
    segment: &SegmentView,
    (first, count): (u32, u32),
    wide: bool,
) -> Result<Vec<Entry>, ReadError> {
    let Content::Sealed(summary) = &segment.content else { return Ok(Vec::new()) };
    let kind = if wide { BlockKind::Wide } else { BlockKind::Narrow };
    reader.blocks(segment, summary, kind, first..first + count, |bytes, number| {
        footer::decode_entries(bytes, segment.id, number, wide, summary.first_lsn.0)
    })
}

/// Several inputs as one.
#[derive(Debug)]
pub(super) struct Merged {
    cursors: Vec<Cursor>,
    /// The next entry of each input that has one.
    next: BinaryHeap<Reverse<(u128, usize)>>,
    wide: bool,
}

impl Merged {
    /// Inputs with what is added to their chunk numbers.
    pub(super) fn new(inputs: impl IntoIterator<Item = (Input, u32)>) -> Self {
        let cursor = |(input, chunk_base)| {
            let (blocks, entries) = (VecDeque::new(), VecDeque::new());
            Cursor { input, chunk_base, blocks, entries, read: 0 }
        };
        Self { cursors: inputs.into_iter().map(cursor).collect(), next: BinaryHeap::new(), wide: false }
    }

    /// Begins with the narrow or with the wide entries; gives the bytes that were read.
    pub(super) fn start(&mut self, reader: &Reader, wide: bool) -> Result<u64, IndexMergeError> {
        self.next.clear();
        self.wide = wide;
        let mut read = 0;
        for at in 0..self.cursors.len() {
            self.cursors[at].start(reader, wide)?;
            read += self.queue(reader, at)?;
        }
        Ok(read)
    }

    fn queue(&mut self, reader: &Reader, at: usize) -> Result<u64, IndexMergeError> {
        let cursor = &mut self.cursors[at];
        let read = cursor.fill(reader, self.wide)?;
        self.next.extend(cursor.entries.front().map(|entry| Reverse((entry.key(), at))));
        Ok(read)
    }

    /// The next entry, and the bytes that were read for it.
    pub(super) fn next(&mut self, reader: &Reader) -> Result<Option<(Entry, u64)>, IndexMergeError> {
        let Some(Reverse((_, at))) = self.next.pop() else { return Ok(None) };
        let Some(entry) = self.cursors[at].entries.pop_front() else { return Ok(None) };
        Ok(Some((entry, self.queue(reader, at)?)))
    }
}
