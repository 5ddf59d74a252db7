//! Making a run of eight neighbours: a bounded amount of work at a time, beside everything else.
//!
//! A merge reads footers or runs and writes one new file from front to back, which nothing names. When all of it and its
//! name are durable it gives the run to whoever owns the manifest. Whatever goes wrong before, the file is nobody's.

use super::codec::SegmentRow;
use super::cursor::{Input, Merged};
use super::plan::{IndexPlan, Item, PlanError, join};
use super::write::{self, RunBytes};
use super::{BLOCKS_AT, RunInfo, RunTotals, run_name};
use crate::journal::footer;
use crate::journal::index::{ENTRY_BYTES, Entry};
use crate::journal::layout::{BLOCK_BYTES, FIXED_BYTES};
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::{Content, Snapshot};
use crate::media::{self, File, MediaError, MediaErrorKind, Operation};
use crate::mistakes::{self, Mistake};
use crate::types::{ReplicaId, SegmentId};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that are written at once, about, and held.
const WRITE_BYTES: u64 = 256 << 10;
/// Bytes that wait for a sync, at most: the guests' syncs share the disk with the last one of a run.
const UNSYNCED_BYTES: u64 = 16 << 20;

/// A merge to be done: what the owner of the manifest gives to whoever does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexMergeTask {
    /// What becomes one.
    pub plan: IndexPlan,
    /// Whose journal.
    pub replica: ReplicaId,
    /// The new run's number.
    pub number: u64,
    /// The new run's identity.
    pub id: SegmentId,
    /// So much stays free on the media behind it.
    pub keep_free_bytes: u64,
}

/// Why a merge did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum IndexMergeError {
    /// A segment cannot be read, neither its index nor the frames that it is made of.
    #[error("segment {segment} stays out of the levelled index: {source}")]
    Segment {
        /// Its number.
        segment: u64,
        /// Why.
        source: ReadError,
    },
    /// A run cannot be read.
    #[error("index run {run} cannot be merged: {source}")]
    Run {
        /// Its number.
        run: u64,
        /// Why.
        source: ReadError,
    },
    /// The new file cannot be written.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Limits of the format.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What was to be merged is not there any more.
    #[error("index run {run} is not made: {what} {number}, which it was to hold, is gone")]
    Gone {
        /// Number of the run.
        run: u64,
        /// What is missing.
        what: &'static str,
        /// Which.
        number: u64,
    },
    /// An input is not in order.
    #[error("index run {run} is not made: an entry at LSN {lsn} is out of order, chunk {chunk}")]
    Order {
        /// Number of the run.
        run: u64,
        /// The entry's.
        lsn: u64,
        /// The entry's.
        chunk: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Create,
    Entries { wide: bool },
    Events,
    Sync,
    SyncDirectory,
}

/// The run's file.
#[derive(Debug)]
struct Output {
    file: Arc<dyn File>,
    written: u64,
    unsynced: u64,
}

impl Output {
    fn new(file: Arc<dyn File>) -> Self {
        Self { file, written: 0, unsynced: 0 }
    }

    fn write(&mut self, data: &[Bytes]) -> Result<(), MediaError> {
        self.file.write_at(self.written, data)?;
        let bytes = data.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.written += bytes;
        self.unsynced += bytes;
        if self.unsynced >= UNSYNCED_BYTES {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// A merge under way. Dropped half way its file stays, unnamed: [`IndexMerge::discard`] removes it.
#[derive(Debug)]
pub struct IndexMerge {
    reader: Arc<Reader>,
    task: IndexMergeTask,
    info: RunInfo,
    rows: Vec<SegmentRow>,
    inputs: Merged,
    /// Segments whose events are to be copied: where from, what is known of them, and where in a run's events they begin.
    events: VecDeque<(Input, SegmentRow, u64)>,
    /// Keeps the runs that are merged open.
    _files: Vec<Arc<dyn File>>,
    /// Index entries of all inputs, at most.
    entries: u64,
    phase: Phase,
    out: Option<RunBytes>,
    file: Option<Output>,
    last_key: Option<u128>,
}

impl IndexMerge {
    /// A merge of what the snapshot has, read through `reader` and written beside it. Reads the events of segments and the tables
    /// of runs, no entries.
    ///
    /// # Errors
    /// `Gone` when the snapshot has not all inputs; `Plan` when one run cannot hold them.
    pub fn new(reader: &Arc<Reader>, snapshot: &Snapshot, task: IndexMergeTask) -> Result<Self, IndexMergeError> {
        let gone = |what, number| IndexMergeError::Gone { run: task.number, what, number };
        let (mut items, mut inputs, mut rows, mut entries) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let (mut copies, mut files) = (VecDeque::new(), Vec::new());
        let (mut first_chunk, mut emptied) = (0u32, task.plan.level > 1);
        for &number in &task.plan.inputs {
            let (item, input) = if task.plan.level == 1 {
                let segment = snapshot.segments().iter().find(|segment| segment.number == number);
                let segment = segment.ok_or_else(|| gone("segment", number))?;
                let Content::Sealed(summary) = &segment.content else { return Err(gone("segment", number)) };
                entries += u64::from(summary.entries);
                let (id, last_lsn, chunks) = (segment.id, segment.last_lsn, summary.chunks);
                let unreadable = |source| IndexMergeError::Segment { segment: number, source };
                let events = reader.event_bytes(segment, summary).map_err(unreadable)?;
                let (events_bytes, events_crc) = (events.len() as u32, crc32c::crc32c(&events));
                let row = SegmentRow { number, id, last_lsn, first_chunk, chunks, events_bytes, events_crc };
                rows.push(row);
                let input = Input::Segment(Arc::clone(segment));
                copies.push_back((input.clone(), row, 0));
                (Item::of_segment(number, summary), input)
            } else {
                let run = snapshot.runs().iter().find(|run| run.number == number);
                let run = run.ok_or_else(|| gone("index run", number))?;
                entries += run.totals.entries;
                let unreadable = |source| IndexMergeError::Run { run: number, source };
                // Held open from here on.
                files.push(reader.run_file(run).map_err(unreadable)?);
                let tables = reader.run_tables(run).map_err(unreadable)?;
                let moved = |row: &SegmentRow| SegmentRow {
                    // What does not fit is refused below.
                    first_chunk: row.first_chunk.saturating_add(first_chunk),
                    ..*row
                };
                rows.extend(tables.segments.iter().map(moved));
                emptied &= run.emptied;
                let (input, mut at) = (Input::Run(Arc::clone(run)), 0);
                for row in &tables.segments {
                    copies.push_back((input.clone(), *row, at));
                    at += u64::from(row.events_bytes);
                }
                (Item::of_run(run), input)
            };
            inputs.push((input, first_chunk));
            first_chunk = first_chunk.saturating_add(item.chunks);
            items.push(item);
        }
        let (first_lsn, last_lsn, chunks) = join(&items)?;
        let (Some(first), Some(last), Some(item)) = (rows.first(), rows.last(), items.first()) else {
            return Err(gone("segment", 0));
        };
        let info = RunInfo {
            number: task.number,
            id: task.id,
            level: task.plan.level,
            timeline: item.timeline,
            segments: rows.len() as u32,
            first_segment: first.number,
            last_segment: last.number,
            first_lsn,
            last_lsn,
            chunks,
            totals: RunTotals::default(),
            emptied,
            regions: Vec::new(),
        };
        Ok(Self {
            reader: Arc::clone(reader),
            task,
            info,
            rows,
            inputs: Merged::new(inputs),
            events: copies,
            _files: files,
            entries,
            phase: Phase::Create,
            out: None,
            file: None,
            last_key: None,
        })
    }

    /// Works on until about `budget` bytes were read and written, or a sync is through. Gives the run when it is durable: it
    /// counts from when a manifest names it.
    ///
    /// # Errors
    /// The merge cannot go on; `discard` it.
    pub fn step(&mut self, budget: u64) -> Result<Option<RunInfo>, IndexMergeError> {
        match self.phase {
            Phase::Create => {
                self.create()?;
                self.inputs.start(&self.reader, false)?;
                self.phase = Phase::Entries { wide: false };
            }
            Phase::Entries { wide } => self.merge(wide, budget)?,
            Phase::Events => self.copy_events(budget)?,
            Phase::Sync => {
                if !mistakes::is(Mistake::RunNotSynced) {
                    self.file()?.file.sync()?;
                }
                self.phase = Phase::SyncDirectory;
            }
            Phase::SyncDirectory => {
                self.reader.storage.sync_dir(&self.reader.directory)?;
                return Ok(Some(self.info.clone()));
            }
        }
        Ok(None)
    }

    /// Removes what was written. Best effort: what stays is removed at the next start.
    pub fn discard(self) {
        if self.file.is_some() {
            let _ = self.reader.storage.remove(&self.name());
        }
    }

    fn name(&self) -> String {
        media::join(&self.reader.directory, &run_name(self.task.number))
    }

    fn create(&mut self) -> Result<(), IndexMergeError> {
        let name = self.name();
        let storage = &self.reader.storage;
        let (free, needed) = (storage.free_bytes()?, self.bound());
        if free < needed.saturating_add(self.task.keep_free_bytes) {
            let keep = self.task.keep_free_bytes;
            let message = format!("{free} bytes are free, {needed} are needed and {keep} must be left");
            return Err(MediaError::new(MediaErrorKind::NoSpace, Operation::Create, &name, 0, &message).into());
        }
        self.file = Some(Output::new(storage.create_streamed(&name)?));
        self.out = Some(RunBytes::begin(self.task.replica, self.info.clone(), &self.rows));
        Ok(())
    }

    /// About the most bytes that the file may take.
    fn bound(&self) -> u64 {
        let blocks = self.entries / footer::per_block(ENTRY_BYTES) as u64 + 64;
        let events: u64 = self.rows.iter().map(|row| u64::from(row.events_bytes)).sum();
        let tables = self.rows.len() as u64 * 64 + BLOCKS_AT + FIXED_BYTES as u64;
        (blocks + blocks / 64) * BLOCK_BYTES as u64 + events + tables
    }

    fn file(&mut self) -> Result<&mut Output, MediaError> {
        let name = self.name();
        let never = || MediaError::new(MediaErrorKind::Io, Operation::Open, &name, 0, "the file was never made");
        self.file.as_mut().ok_or_else(never)
    }

    fn merge(&mut self, wide: bool, budget: u64) -> Result<(), IndexMergeError> {
        let mut spent = 0;
        while spent < budget.max(1) {
            let Some((entry, read)) = self.inputs.next(&self.reader)? else {
                if wide {
                    return self.finish();
                }
                self.last_key = None;
                self.inputs.start(&self.reader, true)?;
                self.phase = Phase::Entries { wide: true };
                return Ok(());
            };
            self.check(&entry)?;
            spent += read + ENTRY_BYTES as u64;
            let bytes = self.out.as_mut().map(|out| {
                out.add(entry);
                out.held()
            });
            if bytes.is_some_and(|bytes| bytes >= WRITE_BYTES) {
                let data = self.out.as_mut().map(RunBytes::take).unwrap_or_default();
                self.file()?.write(&data)?;
            }
        }
        Ok(())
    }

    /// Blocks verify on their own; that they are in order, and of this history, is looked at here.
    fn check(&mut self, entry: &Entry) -> Result<(), IndexMergeError> {
        let before = self.last_key.replace(entry.key());
        let of_it = (self.info.first_lsn.0..=self.info.last_lsn.0).contains(&entry.lsn);
        if before.is_some_and(|before| before > entry.key()) || !of_it || entry.chunk >= self.info.chunks.max(1) {
            return Err(IndexMergeError::Order { run: self.task.number, lsn: entry.lsn, chunk: entry.chunk });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), IndexMergeError> {
        if let Some(out) = self.out.take() {
            let (data, info) = out.finish();
            self.file()?.write(&data)?;
            self.info = info;
        }
        self.phase = Phase::Events;
        Ok(())
    }

    /// Copies the events of segments, one after another, then ends the file.
    fn copy_events(&mut self, budget: u64) -> Result<(), IndexMergeError> {
        let mut spent = 0;
        while spent < budget.max(1) {
            let Some((input, row, at)) = self.events.pop_front() else {
                let tail = write::tail(&self.info);
                self.file()?.write(&tail)?;
                self.phase = Phase::Sync;
                return Ok(());
            };
            let bytes = match &input {
                Input::Run(run) => self.reader.run_event_bytes(run, &row, at),
                Input::Segment(segment) => match &segment.content {
                    Content::Sealed(summary) => self.reader.event_bytes(segment, summary),
                    Content::Active(_) => Ok(Vec::new()),
                },
            };
            let bytes = bytes.map_err(|source| input.unreadable(source))?;
            // The table of segments is written: it says what comes here.
            if bytes.len() != row.events_bytes as usize || crc32c::crc32c(&bytes) != row.events_crc {
                return Err(IndexMergeError::Gone {
                    run: self.task.number,
                    what: "events of segment",
                    number: row.number,
                });
            }
            spent += bytes.len() as u64;
            if !bytes.is_empty() {
                self.file()?.write(&[bytes.into()])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Fault, Faults, Faulty, Memory, Storage};

    #[test]
    fn a_long_run_is_synced_while_it_is_written() {
        let faults = Faults::default();
        let storage = Faulty::new(Arc::new(Memory::new()), faults.clone());
        let mut out = Output::new(storage.create_streamed("a.idx").unwrap());
        let piece = [Bytes::from(vec![7; 1 << 20]), Bytes::from(vec![8; 1 << 20])];
        for round in 1..=3 {
            // Nothing else tells of a sync: it must be met by a fault, at this write and at none before.
            faults.add(Fault::once(Operation::Sync, ".idx", MediaErrorKind::Io));
            for written in 1..UNSYNCED_BYTES / (2 << 20) {
                out.write(&piece).unwrap();
                assert_eq!(out.unsynced, written * (2 << 20));
            }
            assert_eq!(out.write(&piece).unwrap_err().operation, Operation::Sync);
            assert_eq!(out.written, round * UNSYNCED_BYTES);
            // A merge ends here; this one goes on as after a sync that succeeded.
            out.unsynced = 0;
        }
        for _ in 0..UNSYNCED_BYTES / (2 << 20) {
            out.write(&piece).unwrap();
        }
        assert_eq!(out.unsynced, 0, "a sync that succeeded leaves nothing to be synced");
        assert_eq!(faults.fired(), 3);
    }
}
