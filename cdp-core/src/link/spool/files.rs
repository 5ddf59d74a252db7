//! What is written: one file at a time, in the order of `SPOOL.md`, so that a sync may say `stored`.

use super::ahead::Span;
use super::held::{Kept, Place};
use super::layout::{HEADER_BYTES, Header, Home, encode_entry, entry_bytes};
use super::{RETRY_NS, SYNC_PAUSE_NS, Spool, SpoolEvent};
use crate::journal::{Effect, EffectId, FileId, Landing, Outcome};
use crate::media::{MediaError, MediaErrorKind};
use crate::types::MonoTime;
use std::collections::{BTreeMap, VecDeque};

/// Writes under way at once.
const WRITES_MAX: usize = 4;
/// Frames that wait are written as one, up to so many bytes and the frame that exceeds them.
const WRITE_BYTES: u64 = 1 << 20;

/// An effect that was handed out.
#[derive(Debug)]
pub(super) enum Pending {
    Create,
    /// Names in a directory, for the file that is being written.
    Names,
    Write {
        numbers: Vec<u64>,
        /// Memory of those that were released meanwhile.
        orphaned: u64,
    },
    /// Everything before this number.
    Sync(u64),
    Close,
    Remove(u64),
    /// Names in the directory, after removals.
    RemovedNames,
    Read {
        spans: Vec<Span>,
        landing: Landing,
        reserved: u64,
    },
}

/// A file that is there.
#[derive(Clone, Copy, Debug)]
struct OnDisk {
    /// Once everything before this number is released, it goes.
    end: u64,
    /// Room that it takes.
    bytes: u64,
    removing: bool,
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    file: FileId,
    sequence: u64,
    /// How long it becomes.
    bytes: u64,
    made: bool,
    /// Where the next entry goes; 0: the header does.
    offset: u64,
    /// What is not durable of its name: directories to be synced, and those that are being.
    names: Vec<String>,
    naming: usize,
    /// Writes under way, by their first number.
    writes: BTreeMap<u64, EffectId>,
    /// The number behind the last one that was handed out.
    next: u64,
    syncing: bool,
    /// The next frame has no room in it.
    full: bool,
    /// A write or sync failed: it is written no more, and closed when nothing of it is under way.
    broken: bool,
}

impl Open {
    /// The first number that is not written, with all before it.
    fn written(&self) -> u64 {
        self.writes.first_key_value().map_or(self.next, |(first, _)| *first)
    }

    fn is_busy(&self) -> bool {
        !self.made || self.syncing || self.naming > 0 || !self.writes.is_empty()
    }
}

/// The files of a spool.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Bounded by the disk's bytes: each takes its own.
    on_disk: BTreeMap<u64, OnDisk>,
    open: Option<Open>,
    last_sequence: u64,
    /// Numbers that are to be written; what was released meanwhile is passed over. Bounded by memory: each is there.
    pub(super) queue: VecDeque<u64>,
    /// Everything before this number is stored or released.
    pub(super) synced: u64,
    last_sync: Option<MonoTime>,
    /// The disk is left alone until then.
    paused: Option<MonoTime>,
    /// Trouble was told, and nothing has worked since.
    pub(super) failed: bool,
    /// The directories above were synced.
    named: bool,
    removing: usize,
    removed: bool,
}

impl Files {
    pub(super) fn bytes(&self) -> u64 {
        self.on_disk.values().map(|file| file.bytes).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.on_disk.is_empty()
    }

    /// What recovery found.
    pub(super) fn found(&mut self, sequence: u64, end: u64, bytes: u64) {
        self.on_disk.insert(sequence, OnDisk { end, bytes, removing: false });
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// Sequences up to this one were used.
    pub(super) fn begin_after(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }
}

impl Spool {
    pub(super) fn poll_files(&mut self, now: MonoTime) -> Option<(EffectId, Effect)> {
        if self.files.paused.is_some_and(|until| now >= until) {
            self.files.paused = None;
        }
        self.close()
            .or_else(|| self.remove())
            .or_else(|| self.create())
            .or_else(|| self.name())
            .or_else(|| self.write())
            .or_else(|| self.sync(now))
    }

    pub(super) fn files_deadline(&self) -> Option<MonoTime> {
        let paused = self.files.paused.filter(|_| !self.files.queue.is_empty() || self.removable().is_some());
        let sync = self.files.last_sync.filter(|_| self.can_sync()).map(|last| last.after(SYNC_PAUSE_NS));
        [paused, sync].into_iter().flatten().min()
    }

    fn close(&mut self) -> Option<(EffectId, Effect)> {
        let open = self.files.open.as_ref().filter(|open| !open.is_busy())?;
        let is_safe = !self.options.always || self.files.synced >= open.next;
        let is_over = self.retired && self.held.base() == self.held.end();
        if !(open.broken || open.full && is_safe || is_over) {
            return None;
        }
        let (file, broken) = (open.file, open.broken);
        self.files.open = None;
        if broken {
            self.queue_again();
        }
        self.hand_out(Pending::Close, Effect::Close { file })
    }

    /// What a broken file was to keep is to be written again.
    fn queue_again(&mut self) {
        self.files.queue.clear();
        for number in self.files.synced.max(self.held.base())..self.held.end() {
            let again = match self.held.slot(number).map(|slot| slot.kept) {
                Some(Kept::Queued) => true,
                Some(Kept::Written) => self.options.always,
                _ => false,
            };
            if again {
                self.held.set_kept(number, Kept::Queued);
                self.files.queue.push_back(number);
            }
        }
    }

    /// The oldest file, if nothing in it is wanted any more.
    fn removable(&self) -> Option<u64> {
        let (sequence, file) = self.files.on_disk.iter().find(|(_, file)| !file.removing)?;
        let open = self.files.open.as_ref().is_some_and(|open| open.sequence == *sequence);
        (!open && file.end <= self.held.base()).then_some(*sequence)
    }

    fn remove(&mut self) -> Option<(EffectId, Effect)> {
        if self.files.removed && self.files.removing == 0 && self.options.always {
            self.files.removed = false;
            let name = self.options.directory.clone();
            return self.hand_out(Pending::RemovedNames, Effect::SyncDir { name });
        }
        if self.files.paused.is_some() {
            return None;
        }
        let sequence = self.removable()?;
        self.files.on_disk.get_mut(&sequence)?.removing = true;
        self.files.removing += 1;
        let (_, timeline) = self.of?;
        let name = self.path(timeline, sequence);
        self.hand_out(Pending::Remove(sequence), Effect::Remove { name })
    }

    /// Whether the first of those to be written may be now.
    fn may_write(&mut self) -> bool {
        while self.files.queue.front().is_some_and(|number| *number < self.held.base()) {
            self.files.queue.pop_front();
        }
        !self.files.queue.is_empty() && (self.options.always || self.held.spills())
    }

    fn create(&mut self) -> Option<(EffectId, Effect)> {
        let bytes = self.options.file_bytes;
        let has_room = self.files.bytes() + bytes <= self.options.disk_bytes_max;
        if self.files.open.is_some() || self.files.paused.is_some() || !has_room || !self.may_write() {
            return None;
        }
        let (_, timeline) = self.of?;
        let first = *self.files.queue.front()?;
        self.files.last_sequence += 1;
        let sequence = self.files.last_sequence;
        self.files.on_disk.insert(sequence, OnDisk { end: first, bytes, removing: false });
        let file = FileId(self.coming_id().0);
        self.files.open = Some(Open {
            file,
            sequence,
            bytes,
            made: false,
            offset: 0,
            names: Vec::new(),
            naming: 0,
            writes: BTreeMap::new(),
            next: first,
            syncing: false,
            full: false,
            broken: false,
        });
        let name = self.path(timeline, sequence);
        // Where nothing is synced, what an earlier life left is of no use.
        let replace = !self.options.always;
        self.hand_out(Pending::Create, Effect::Create { file, name, preallocate: bytes, keep_free: 0, replace })
    }

    fn name(&mut self) -> Option<(EffectId, Effect)> {
        let open = self.files.open.as_mut().filter(|open| !open.broken)?;
        let name = open.names.pop()?;
        open.naming += 1;
        self.hand_out(Pending::Names, Effect::SyncDir { name })
    }

    fn write(&mut self) -> Option<(EffectId, Effect)> {
        let id = self.coming_id();
        let base = self.held.base();
        if !self.may_write() {
            return None;
        }
        let open = self.files.open.as_mut()?;
        if !open.made || open.broken || open.full || open.writes.len() >= WRITES_MAX {
            return None;
        }
        let (group, timeline) = self.of?;
        let (sequence, from) = (open.sequence, open.offset);
        let (mut data, mut numbers) = (Vec::new(), Vec::new());
        let mut spilled = 0;
        while let Some(number) = self.files.queue.front().copied() {
            let enough = open.offset - from >= WRITE_BYTES;
            let kept = self.options.always || self.held.stuck().saturating_sub(spilled) > self.held.memory_max() / 2;
            if !numbers.is_empty() && (enough || !kept) {
                break;
            }
            let Some(frame) = self.held.peek(number) else { break };
            let header = if open.offset == 0 { HEADER_BYTES } else { 0 };
            if open.offset + header + entry_bytes(frame.len()) > open.bytes {
                open.full = true;
                break;
            }
            if header > 0 {
                data.push(Header { group, timeline, sequence, first: frame.info.begin() }.encode());
                open.offset = HEADER_BYTES;
            }
            let home = Home { group, timeline, sequence, offset: open.offset };
            encode_entry(home, frame, number == base, &mut data);
            spilled += frame.len();
            let place = Place { sequence, offset: open.offset };
            open.offset += entry_bytes(frame.len());
            self.files.queue.pop_front();
            numbers.push(number);
            self.held.set_kept(number, Kept::Writing(id));
            if let Some(slot) = self.held.slot_mut(number) {
                slot.place = Some(place);
            }
        }
        let (first, last) = (*numbers.first()?, *numbers.last()?);
        open.next = last + 1;
        open.writes.insert(first, id);
        let file = open.file;
        if let Some(on_disk) = self.files.on_disk.get_mut(&sequence) {
            on_disk.end = last + 1;
        }
        self.hand_out(Pending::Write { numbers, orphaned: 0 }, Effect::Write { file, offset: from, data })
    }

    /// Whether a sync would make anything stored.
    fn can_sync(&self) -> bool {
        self.files.open.as_ref().is_some_and(|open| {
            let is_named = open.names.is_empty() && open.naming == 0;
            let idle = open.made && !open.broken && !open.syncing && is_named;
            self.options.always && idle && open.written() > self.files.synced
        })
    }

    fn sync(&mut self, now: MonoTime) -> Option<(EffectId, Effect)> {
        let due = self.files.last_sync.is_none_or(|last| now >= last.after(SYNC_PAUSE_NS));
        let tight = self.held.stuck() > self.held.memory_max() / 4;
        let urgent = tight || self.files.open.as_ref().is_some_and(|open| open.full);
        if !(due || urgent) || !self.can_sync() {
            return None;
        }
        let open = self.files.open.as_mut()?;
        open.syncing = true;
        self.files.last_sync = Some(now);
        let (file, through) = (open.file, open.written());
        self.hand_out(Pending::Sync(through), Effect::Sync { file })
    }

    pub(super) fn was_done(&mut self, now: MonoTime, id: EffectId, pending: Pending, outcome: Outcome) {
        let broken = self.files.open.as_ref().is_some_and(|open| open.broken);
        match pending {
            Pending::Create => self.was_made(now, outcome),
            Pending::Names => {
                self.files.open.iter_mut().for_each(|open| open.naming -= 1);
                self.or_break(now, outcome);
            }
            Pending::Write { numbers, orphaned } => {
                let written = outcome.is_ok() && !broken;
                self.files.open.iter_mut().for_each(|open| open.writes.retain(|_, write| *write != id));
                let kept = if written { Kept::Written } else { Kept::Queued };
                numbers.iter().for_each(|number| self.held.set_kept(*number, kept));
                self.held.given_back(orphaned);
                if written && !self.options.always {
                    self.works();
                }
                self.or_break(now, outcome);
            }
            Pending::Sync(through) => {
                self.files.open.iter_mut().for_each(|open| open.syncing = false);
                // A write failed meanwhile: what a sync says of such a file is not believed.
                if outcome.is_ok() && !broken {
                    for number in self.files.synced.max(self.held.base())..through {
                        self.held.set_kept(number, Kept::Stored);
                    }
                    self.files.synced = self.files.synced.max(through);
                    self.works();
                }
                self.or_break(now, outcome);
            }
            Pending::Remove(sequence) => {
                self.files.removing -= 1;
                match outcome {
                    Ok(()) => {
                        self.files.on_disk.remove(&sequence);
                        self.files.removed = true;
                    }
                    Err(error) => {
                        self.files.on_disk.entry(sequence).and_modify(|file| file.removing = false);
                        self.fails(now, error);
                    }
                }
            }
            // A name that comes back is of a file in which everything is released: the next start finds out.
            Pending::Close | Pending::RemovedNames | Pending::Read { .. } => {}
        }
    }

    fn was_made(&mut self, now: MonoTime, outcome: Outcome) {
        if let Err(error) = outcome {
            if let Some(open) = self.files.open.take() {
                self.files.on_disk.remove(&open.sequence);
                // A sequence that is missing means that a file was removed; but a name that is taken is passed over.
                if error.kind != MediaErrorKind::Exists {
                    self.files.last_sequence = open.sequence - 1;
                }
            }
            return self.fails(now, error);
        }
        let Some(open) = self.files.open.as_mut() else { return };
        open.made = true;
        if self.options.always {
            open.names.push(self.options.directory.clone());
            if !std::mem::replace(&mut self.files.named, true) {
                open.names.extend(above(&self.options.directory));
            }
        }
    }

    /// The file that is being written is no more, if this failed.
    fn or_break(&mut self, now: MonoTime, outcome: Outcome) {
        let Err(error) = outcome else { return };
        let Some(open) = self.files.open.as_mut() else { return };
        open.broken = true;
        open.names.clear();
        // The directories may not be durable: they are asked for again.
        self.files.named = false;
        if self.options.always {
            let (sequence, end) = (open.sequence, self.files.synced);
            self.files.on_disk.entry(sequence).and_modify(|file| file.end = end);
        }
        self.fails(now, error);
    }

    fn fails(&mut self, now: MonoTime, error: MediaError) {
        self.files.paused = Some(now.after(RETRY_NS));
        if !std::mem::replace(&mut self.files.failed, true) {
            self.tell(SpoolEvent::DiskFailed { error });
        }
    }

    fn works(&mut self) {
        if std::mem::replace(&mut self.files.failed, false) {
            self.tell(SpoolEvent::DiskBack);
        }
    }
}

/// The directories that a directory lies in, up to the storage's own.
fn above(directory: &str) -> impl Iterator<Item = String> {
    let ends = directory.rmatch_indices('/').map(|(at, _)| directory[..at].to_owned());
    ends.chain((!directory.is_empty()).then(String::new))
}
