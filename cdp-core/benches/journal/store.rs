//! Journals: with real data, and very long ones of which only the index is real.

use crate::Failure;
use crate::frames::{Dice, Frames, RECORDS, WRITE, group, timeline};
use crate::sparse::Sparse;
use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Part, Payload, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Storage};
use cdp_core::types::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The journal's directory in a store.
pub(crate) const DIRECTORY: &str = "journal";

/// Bytes that are written at once.
const WRITE_BYTES: u64 = 4 << 20;

/// A journal with the in-order driver.
pub(crate) struct Rig {
    pub(crate) writer: Writer,
    executor: Executor,
    storage: Arc<dyn Storage>,
    now: MonoTime,
    /// Bytes that were appended and not written.
    held: u64,
}

impl Rig {
    /// A new store with an open timeline; it syncs when `commit_bytes` are written.
    pub(crate) fn create(storage: Arc<dyn Storage>, commit_bytes: u64) -> Result<Self, Failure> {
        let replica = ReplicaId::new([5; 16]).ok_or("an id of zeros")?;
        let made = create(storage.as_ref(), Manifest::new(replica, group(), "bench"))?;
        let mut dice = Dice(1);
        let ids = Box::new(move || {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&dice.next().to_le_bytes());
            id[8..].copy_from_slice(&dice.next().to_le_bytes());
            id
        });
        let options = Options { keep_free_bytes: 0, commit_bytes, commit_ns: u64::MAX / 2, ..Options::default() };
        let writer = Writer::new(made, options, ids);
        let mut rig =
            Self { writer, executor: Executor::new(Arc::clone(&storage)), storage, now: MonoTime(1), held: 0 };
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        rig.writer.open_timeline(TimelineInfo {
            id: timeline(),
            number: 1,
            parent: None,
            fork: Lsn::ZERO,
            last: None,
            state,
            role,
            opened: WallTime(1),
        });
        rig.drain();
        Ok(rig)
    }

    pub(crate) fn drain(&mut self) {
        self.held = 0;
        drain(&mut self.writer, &self.executor, self.now);
    }

    /// Appends a frame, and does what the writer wants when there is a large write's worth of it.
    pub(crate) fn append(&mut self, frame: EncodedFrame) -> Result<(), Failure> {
        let mut frame = frame;
        self.held += frame.len();
        for _ in 0..100 {
            match self.writer.append(self.now, frame) {
                Ok(_) => {
                    if self.held >= WRITE_BYTES {
                        self.drain();
                    }
                    return Ok(());
                }
                Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                Err(refused) => return Err(refused.why.into()),
            }
            self.drain();
        }
        Err(format!("the writer does not go on: {:?}", self.writer.state()).into())
    }

    pub(crate) fn sync(&mut self) {
        self.writer.request_sync();
        self.drain();
    }

    pub(crate) fn close(&mut self) {
        self.writer.close(true);
        self.drain();
    }

    /// Merges the index as far as it goes and empties footers.
    fn merge_index(&mut self) -> Result<(), Failure> {
        let storage = Arc::clone(&self.storage);
        let reader = || Arc::new(Reader::new(Arc::clone(&storage), DIRECTORY, 8 << 20));
        loop {
            if let Some(task) = self.writer.next_emptying() {
                let mut emptying = IndexEmptying::new(&reader(), task);
                while !emptying.step()? {}
                self.writer.emptied(emptying.run());
            } else if let Some(task) = self.writer.next_index_merge() {
                let mut merge = IndexMerge::new(&reader(), &self.writer.snapshot(), task)?;
                let run = loop {
                    if let Some(run) = merge.step(64 << 20)? {
                        break run;
                    }
                };
                self.writer.publish_run(run);
            } else {
                return Ok(());
            }
            self.drain();
        }
    }
}

/// What is asked for of a long journal.
#[derive(Clone, Copy)]
pub(crate) struct Long {
    /// Writes of 4 KiB to random places.
    pub(crate) records: u64,
    /// Bytes of the disk that they go to.
    pub(crate) disk: u64,
    /// Of them so many at the end are there in full, and the journal was not closed.
    pub(crate) tail: u64,
}

/// Makes a journal with the writes of a disk, so that each byte of it is written once; gives the last LSN.
pub(crate) fn filled(
    path: &Path,
    compression: Compression,
    writes: impl IntoIterator<Item = Payload>,
    in_a_frame: usize,
) -> Result<Lsn, Failure> {
    let mut rig = Rig::create(Arc::new(Disk::create(path)?), 64 << 20)?;
    let mut frames = Frames::new(compression);
    let mut writes = writes.into_iter().peekable();
    while writes.peek().is_some() {
        rig.append(frames.writes(writes.by_ref().take(in_a_frame)))?;
    }
    rig.close();
    Ok(frames.lsn)
}

/// A small write of zeros, which is what holes read as.
pub(crate) fn zeros() -> Result<Part, Failure> {
    let zeros = Frames::payload(0, Bytes::from(vec![0; WRITE as usize]))?;
    let part = zeros.into_parts(RecordKind::Write, crate::frames::disk(), Lsn(1), WallTime(1)).next();
    Ok(part.ok_or("a write has a part")?)
}

/// A journal of which frames are holes but for its tail: footers, runs and manifest are made by the writer as ever.
pub(crate) fn long(path: &Path, long: Long) -> Result<Lsn, Failure> {
    let sparse = Sparse::new(Arc::new(Disk::create(path)?));
    let whole = Arc::clone(&sparse.whole);
    let mut rig = Rig::create(Arc::new(sparse), 1 << 40)?;
    let part = zeros()?;
    let (mut frames, mut dice) = (Frames::new(Compression::None), Dice(9));
    let (mut left, mut segment) = (long.records, 0);
    while left > 0 {
        if left <= long.tail && !whole.swap(true, Ordering::Relaxed) {
            rig.writer.roll();
        }
        let count = left.min(RECORDS as u64);
        let offsets: Vec<_> = (0..count).map(|_| dice.below(long.disk / WRITE) * WRITE).collect();
        rig.append(frames.copies(&part, offsets))?;
        left -= count;
        let sealed = rig.writer.manifest().segments.len();
        if sealed != segment {
            segment = sealed;
            rig.merge_index()?;
        }
    }
    match long.tail {
        0 => rig.close(),
        _ => rig.sync(),
    }
    Ok(frames.lsn)
}
