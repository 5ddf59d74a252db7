//! The source's side of a comparison: what to hash here, what to ask there, and what differs in the end.

use super::{Asked, BLOCKS, BadAsk, Hash};
use crate::types::{DiskId, Extent, Lsn, MonoTime};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The most ranges that are compared at once.
pub const EXTENTS_MAX: usize = 64;
/// The longest that an answer is waited for before it is asked for again, in nanoseconds.
pub const PATIENCE_NS_MAX: u64 = 60_000_000_000;
/// After so long it is asked again when the far side is not there yet, in nanoseconds.
const NOT_YET_NS: u64 = 100_000_000;

/// Bounds of a [`Compare`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompareOptions {
    /// Ranges at once, done ones that were not fetched included; at most [`EXTENTS_MAX`]. Each is cut into at most 9 that are looked at
    /// more closely, and holds 257 hashes of each side at most: 1 MiB for all of them.
    pub extents_max: usize,
    /// Questions to the far side that are open at once: a session has no more than 256 calls, for everything.
    pub asks_max: usize,
    /// Ranges that are read and hashed here at once: 1 MiB of memory each.
    pub jobs_max: usize,
    /// An answer that does not come in so many nanoseconds is asked for again, each time after twice as long, up to
    /// [`PATIENCE_NS_MAX`].
    pub patience_ns: u64,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { extents_max: EXTENTS_MAX, asks_max: EXTENTS_MAX, jobs_max: 8, patience_ns: 5_000_000_000 }
    }
}

/// Names a range that is to be hashed here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct JobId(u64);

/// Names a question. It stays the same when it is asked again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AskId(u64);

/// A range to read and hash here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// Comes back with [`Compare::hashed`], always.
    pub id: JobId,
    /// The disk.
    pub disk: DiskId,
    /// What of it.
    pub asked: Asked,
}

/// A question to the far side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Comes back with [`Compare::answered`], once, more often, or never.
    pub id: AskId,
    /// The disk.
    pub disk: DiskId,
    /// What of it.
    pub asked: Asked,
    /// As of this LSN or any later one.
    pub at: Lsn,
}

/// What the far side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The hashes of the pieces in order.
    Hashes(Vec<Hash>),
    /// It does not have everything up to that LSN yet: it is asked again.
    NotYet,
    /// It cannot read that, or has no such disk: all of the range counts as different.
    Unreadable,
}

/// How a range compares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// What differs: ascending, apart, on multiples of 4 KiB but for the range's own ends. Nothing else does.
    Differs(Vec<Extent>),
    /// The far side cannot say: everything has to be taken for different.
    Unknown,
    /// It cannot be read here.
    Failed {
        /// As the operating system says it; 0 where there is no number.
        errno: i32,
    },
}

/// A range that is through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compared<K> {
    /// What it was begun with.
    pub key: K,
    /// The disk.
    pub disk: DiskId,
    /// The range.
    pub extent: Extent,
    /// How it compares.
    pub outcome: Outcome,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output<K> {
    /// Read and hash, from the media and not from a cache.
    Hash(Job),
    /// Ask the far side.
    Ask(Ask),
    /// A range is through.
    Done(Compared<K>),
}

/// Why a range is not compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BeginError {
    /// As many as may be are under way.
    #[error("{count} ranges are being compared; no more are begun until one is through")]
    Full {
        /// How many.
        count: usize,
    },
    /// The key is in use.
    #[error("a range with this key is being compared")]
    Twice,
    /// Not a range.
    #[error(transparent)]
    Range(#[from] BadAsk),
}

/// Other hashes came than were asked for: it is asked again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{found} hashes came for {expected} pieces")]
pub struct BadAnswer {
    /// How many pieces there are.
    pub expected: usize,
    /// How many came.
    pub found: usize,
}

/// What comparing cost so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Ranges that are through.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, bytes that differ, or may.
    pub bytes_different: u64,
    /// Bytes that were given to be hashed here.
    pub bytes_hashed: u64,
    /// Questions that were asked for the first time.
    pub asks: u64,
    /// Questions that were asked again.
    pub asked_again: u64,
    /// Hashes that came and were needed.
    pub hashes: u64,
}

/// One side's hashes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Side {
    Waiting,
    Out,
    Here(Vec<Hash>),
}

/// A range that is looked at on one level.
#[derive(Clone, Debug)]
pub(super) struct Look {
    range: u64,
    level: usize,
    asked: Asked,
    here: Side,
    there: Side,
    /// When it is asked again, and after how long the time after that.
    due: MonoTime,
    patience_ns: u64,
}

#[derive(Clone, Debug)]
struct Range<K> {
    key: K,
    disk: DiskId,
    extent: Extent,
    at: Lsn,
    looks: BTreeSet<u64>,
    differs: Vec<Extent>,
}

/// Compares ranges of disks with what their replicas hold, many at once, in any order of answers. `K` is how the caller knows a range: a
/// re-read's token, for one.
///
/// After every call, and at [`Compare::next_deadline`], the driver calls [`Compare::poll`] until it gives nothing. A re-read of the filter goes in by
/// [`begin`](Compare::begin), with the LSN that it may be compared at; what comes out as different is read once more and handed to `reread_done`.
#[derive(Debug)]
pub struct Compare<K> {
    options: CompareOptions,
    next: u64,
    ranges: BTreeMap<u64, Range<K>>,
    keys: BTreeMap<K, u64>,
    pub(super) looks: BTreeMap<u64, Look>,
    /// Looks that wait to be hashed here.
    jobs: VecDeque<u64>,
    /// Looks that were given out to be hashed, forgotten ones too. At most `jobs_max`.
    jobs_out: BTreeSet<u64>,
    /// Looks that wait to be asked for.
    asks: VecDeque<u64>,
    /// Looks that were asked for, by when they are asked for again. At most `asks_max`.
    pub(super) asks_out: BTreeSet<(MonoTime, u64)>,
    done: VecDeque<Compared<K>>,
    counted: Counted,
}

impl<K: Copy + Ord> Compare<K> {
    /// Nothing is compared yet. Bounds of 0 count as 1.
    #[must_use]
    pub fn new(options: CompareOptions) -> Self {
        let options = CompareOptions {
            extents_max: options.extents_max.clamp(1, EXTENTS_MAX),
            asks_max: options.asks_max.max(1),
            jobs_max: options.jobs_max.max(1),
            patience_ns: options.patience_ns.clamp(1, PATIENCE_NS_MAX),
        };
        Self {
            options,
            next: 0,
            ranges: BTreeMap::new(),
            keys: BTreeMap::new(),
            looks: BTreeMap::new(),
            jobs: VecDeque::new(),
            jobs_out: BTreeSet::new(),
            asks: VecDeque::new(),
            asks_out: BTreeSet::new(),
            done: VecDeque::new(),
            counted: Counted::default(),
        }
    }

    /// Whether another range can be begun.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ranges.len() + self.done.len() < self.options.extents_max
    }

    /// Whether nothing is under way, and nothing waits to be fetched.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ranges.is_empty() && self.done.is_empty() && self.jobs_out.is_empty()
    }

    /// What it cost so far.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// Compares a range with the replica at an LSN or later.
    ///
    /// # Errors
    /// When it is no range, its key is in use, or there is no room.
    pub fn begin(&mut self, key: K, disk: DiskId, extent: Extent, at: Lsn) -> Result<(), BeginError> {
        let asked = Asked::new(extent, BLOCKS[0])?;
        if !self.has_room() {
            return Err(BeginError::Full { count: self.ranges.len() + self.done.len() });
        }
        if self.keys.contains_key(&key) || self.done.iter().any(|done| done.key == key) {
            return Err(BeginError::Twice);
        }
        let number = self.number();
        self.keys.insert(key, number);
        self.ranges.insert(number, Range { key, disk, extent, at, looks: BTreeSet::new(), differs: Vec::new() });
        self.look(number, 0, asked);
        Ok(())
    }

    /// The range is not compared any more, and nothing comes out for it; whether there was one. What was given out is reported all
    /// the same.
    pub fn cancel(&mut self, key: K) -> bool {
        let before = self.done.len();
        self.done.retain(|done| done.key != key);
        let under_way = self.keys.get(&key).copied();
        under_way.and_then(|number| self.forget(number)).is_some() || self.done.len() < before
    }

    /// A range that was given out is hashed, or cannot be read here.
    pub fn hashed(&mut self, id: JobId, hashes: Result<Vec<Hash>, i32>) {
        if !self.jobs_out.remove(&id.0) {
            return;
        }
        let Some(look) = self.looks.get_mut(&id.0) else { return };
        match hashes {
            Ok(hashes) if hashes.len() == look.asked.count() => {
                look.here = Side::Here(hashes);
                self.judge(id.0);
            }
            // One that is no answer is one that failed: the range is read again by whoever wants it.
            Ok(_) => self.end(id.0, Outcome::Failed { errno: 0 }),
            Err(errno) => self.end(id.0, Outcome::Failed { errno }),
        }
    }

    /// The far side answered. Answers that nobody waits for any more are passed over.
    ///
    /// # Errors
    /// When it is none to this question, which is asked again.
    pub fn answered(&mut self, now: MonoTime, id: AskId, answer: Answer) -> Result<(), BadAnswer> {
        let Some(look) = self.looks.get_mut(&id.0).filter(|look| look.there == Side::Out) else { return Ok(()) };
        let expected = look.asked.count();
        self.asks_out.remove(&(look.due, id.0));
        match answer {
            Answer::Hashes(hashes) if hashes.len() == expected => {
                self.counted.hashes += expected as u64;
                look.there = Side::Here(hashes);
                self.judge(id.0);
                return Ok(());
            }
            Answer::Unreadable => {
                self.end(id.0, Outcome::Unknown);
                return Ok(());
            }
            Answer::NotYet | Answer::Hashes(_) => {}
        }
        // It is there, and answers: what is lost next is waited for as if it were the first.
        (look.due, look.patience_ns) = (now.after(NOT_YET_NS), self.options.patience_ns);
        self.asks_out.insert((look.due, id.0));
        match answer {
            Answer::Hashes(hashes) => Err(BadAnswer { expected, found: hashes.len() }),
            _ => Ok(()),
        }
    }

    /// The far side is another one, or there again: what is open is asked for again at once.
    pub fn ask_again(&mut self, now: MonoTime) {
        for (_, number) in std::mem::take(&mut self.asks_out) {
            if let Some(look) = self.looks.get_mut(&number) {
                (look.due, look.patience_ns) = (now, self.options.patience_ns);
                self.asks_out.insert((now, number));
            }
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self, now: MonoTime) -> Option<Output<K>> {
        if let Some(done) = self.done.pop_front() {
            return Some(Output::Done(done));
        }
        if let Some(ask) = self.next_ask(now) {
            return Some(Output::Ask(ask));
        }
        if self.jobs_out.len() >= self.options.jobs_max {
            return None;
        }
        let number = self.jobs.pop_front()?;
        let look = self.looks.get_mut(&number)?;
        look.here = Side::Out;
        self.jobs_out.insert(number);
        let (asked, range) = (look.asked, look.range);
        self.counted.bytes_hashed += asked.extent().length;
        let disk = self.ranges.get(&range)?.disk;
        Some(Output::Hash(Job { id: JobId(number), disk, asked }))
    }

    /// When something is asked again if no answer comes.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.asks_out.first().map(|(due, _)| *due)
    }

    fn next_ask(&mut self, now: MonoTime) -> Option<Ask> {
        let overdue = self.asks_out.first().filter(|(due, _)| *due <= now).copied();
        let number = match overdue {
            Some(out) => {
                self.asks_out.remove(&out);
                self.counted.asked_again += 1;
                out.1
            }
            None if self.asks_out.len() < self.options.asks_max => {
                let number = self.asks.pop_front()?;
                self.counted.asks += 1;
                number
            }
            None => return None,
        };
        let look = self.looks.get_mut(&number)?;
        look.there = Side::Out;
        look.due = now.after(look.patience_ns);
        look.patience_ns = (look.patience_ns * 2).min(PATIENCE_NS_MAX);
        self.asks_out.insert((look.due, number));
        let Range { disk, at, .. } = self.ranges.get(&look.range)?;
        Some(Ask { id: AskId(number), disk: *disk, asked: look.asked, at: *at })
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Looks at a part of a range on a level.
    fn look(&mut self, range: u64, level: usize, asked: Asked) {
        let number = self.number();
        let (here, there, patience_ns) = (Side::Waiting, Side::Waiting, self.options.patience_ns);
        self.looks.insert(number, Look { range, level, asked, here, there, due: MonoTime(0), patience_ns });
        if let Some(range) = self.ranges.get_mut(&range) {
            range.looks.insert(number);
        }
        self.jobs.push_back(number);
        self.asks.push_back(number);
    }

    /// Compares what both sides said, once they did.
    fn judge(&mut self, number: u64) {
        let Some(look) = self.looks.get(&number) else { return };
        let (Side::Here(here), Side::Here(there)) = (&look.here, &look.there) else { return };
        let (range, level, block) = (look.range, look.level, look.asked.block());
        let pairs = look.asked.pieces().zip(here.iter().zip(there));
        let mut runs: Vec<Extent> = Vec::new();
        for (piece, _) in pairs.filter(|(_, (here, there))| here != there) {
            join(&mut runs, piece);
        }
        self.looks.remove(&number);
        let mut closer = Vec::new();
        if let Some(range) = self.ranges.get_mut(&range) {
            range.looks.remove(&number);
            for run in runs {
                match next_level(run, level, block) {
                    Some(next) => closer.push(next),
                    None => range.differs.push(run),
                }
            }
        }
        closer.into_iter().for_each(|(level, asked)| self.look(range, level, asked));
        if self.ranges.get(&range).is_some_and(|range| range.looks.is_empty()) {
            self.through(range);
        }
    }

    /// Every part of a range is looked at.
    fn through(&mut self, number: u64) {
        let Some(mut range) = self.forget(number) else { return };
        range.differs.sort_unstable();
        let mut differs = Vec::new();
        range.differs.iter().for_each(|run| join(&mut differs, *run));
        self.finish(range, Outcome::Differs(differs));
    }

    /// A look ends the range that it is of.
    fn end(&mut self, look: u64, outcome: Outcome) {
        let range = self.looks.get(&look).map(|look| look.range);
        if let Some(range) = range.and_then(|range| self.forget(range)) {
            self.finish(range, outcome);
        }
    }

    fn finish(&mut self, range: Range<K>, outcome: Outcome) {
        let Range { key, disk, extent, .. } = range;
        self.counted.ranges += 1;
        self.counted.bytes += extent.length;
        self.counted.bytes_different += match &outcome {
            Outcome::Differs(runs) => runs.iter().map(|run| run.length).sum(),
            Outcome::Unknown | Outcome::Failed { .. } => extent.length,
        };
        self.done.push_back(Compared { key, disk, extent, outcome });
    }

    /// Takes a range out, with all that is looked at for it.
    fn forget(&mut self, number: u64) -> Option<Range<K>> {
        let range = self.ranges.remove(&number)?;
        self.keys.remove(&range.key);
        for look in &range.looks {
            if let Some(Look { due, there: Side::Out, .. }) = self.looks.remove(look) {
                self.asks_out.remove(&(due, *look));
            }
        }
        let waits = |look: &u64| !range.looks.contains(look);
        self.jobs.retain(waits);
        self.asks.retain(waits);
        Some(range)
    }
}

/// Adds a run behind the others, to the last one if they touch.
fn join(runs: &mut Vec<Extent>, run: Extent) {
    match runs.last_mut().filter(|last| last.end() == run.offset) {
        Some(last) => last.length += run.length,
        None => runs.push(run),
    }
}

/// How a run that differs is looked at more closely: on the first level that cuts it further. None: no level does.
fn next_level(run: Extent, level: usize, block: u64) -> Option<(usize, Asked)> {
    let now = Asked::new(run, block).ok()?.count();
    let closer = (level + 1..BLOCKS.len()).filter_map(|level| Some((level, Asked::new(run, BLOCKS[level]).ok()?)));
    closer.into_iter().find(|(_, asked)| asked.count() > now)
}
