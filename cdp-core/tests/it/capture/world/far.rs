//! The world as somebody else drives it, who has the replica: step by step, with what is durable told from there.

use super::*;
use cdp_core::frame::{Note, Part};
use cdp_core::replica::compare::{Asked, Hash};

/// Blocks that a first copy takes at once, at most.
const PIECE_BLOCKS: u64 = 16;

/// What whoever has the replica is to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// No activity log below this generation is to be believed: [`World::trusted`].
    Trust(u64),
    /// What a proxy has stored up to here need not be kept.
    Lend(Lsn),
    /// Something is to become of the disks.
    Change(DiskChange),
    /// What of a range differs: [`World::compared`].
    Compare { token: RereadToken, disk: DiskId, extent: Extent, at: Lsn },
}

/// What a first copy takes next.
pub enum Piece {
    Data(bytes::Bytes),
    Zeros(u64),
}

/// What guests did on one timeline: what each LSN of it has to be.
pub struct History {
    pub timeline: Timeline,
    pub start: Vec<Tags>,
    /// What the replica knew of the disks before the first record.
    known: Known,
    pub changes: Vec<Change>,
    pub lsn_after_call: Vec<Lsn>,
    /// Every record of it.
    pub frames: Vec<RawFrame>,
}

impl World {
    /// When something happens here, if nothing comes from outside.
    pub fn next_time(&self) -> u64 {
        let event = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        let timer = self.filter.next_deadline().map_or(u64::MAX, |at| at.0);
        event.min(timer).max(self.now)
    }

    /// What happens until `now`.
    pub fn step(&mut self, now: u64) {
        self.drain();
        let mut stuck = 0;
        while self.next_time() <= now {
            let next = self.next_time();
            stuck = if next > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "time stands still at {}: {:#?}", self.now, self.filter);
            self.now = next;
            if self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= next) {
                let (_, event) = self.queue.pop_first().expect("an event");
                self.happen(event);
            }
            self.drain();
        }
        self.now = now;
    }

    /// The replica has everything up to here.
    pub fn far_durable(&mut self, lsn: Lsn) {
        if lsn <= self.applied_through {
            return;
        }
        let run = (self.applied_through, lsn);
        let first = self.frames.partition_point(|frame| frame.last_lsn() <= run.0);
        self.taken = self.frames.partition_point(|frame| frame.parts[0].lsn <= lsn);
        model::apply(&mut self.applied, &self.frames[first..self.taken], run, &self.left_out, index);
        self.applied_through = lsn;
        self.filter.durable(lsn);
        self.drain();
    }

    /// A proxy has synced everything up to here; one that took its place may have less.
    pub fn far_stored(&mut self, lsn: Lsn) {
        self.stored = lsn;
        self.filter.stored(lsn);
        self.drain();
    }

    /// The replica believes no activity log below this generation any more.
    pub fn trusted(&mut self, least: u64) {
        self.least = self.least.max(least);
    }

    /// The hashes of a range as it is now.
    pub fn hashes(&self, disk: DiskId, asked: &Asked) -> Vec<Hash> {
        let bytes = bytes_of(&self.disks[index(disk)].content[sectors(asked.extent())]);
        asked.hashes_of(&bytes).expect("as many bytes as were asked for")
    }

    /// What of a range that was to be compared differs; none: that is not known.
    pub fn compared(&mut self, token: RereadToken, differs: Option<Vec<Extent>>) {
        let Some(OpenReread { reread, disk, .. }) = self.rereads.remove(&token) else { return };
        let runs = differs.unwrap_or_else(|| vec![reread.extent]);
        let content = &self.disks[disk].content;
        let payload = |run: &Extent| Payload::new(run.offset, bytes_of(&content[sectors(*run)])).expect("aligned");
        let payloads = runs.iter().map(payload).collect();
        self.repaired.extend(runs.iter().map(|run| (disk, *run, self.frames.len())));
        let failed = self.unlucky(self.hostility.reread_fails_one_in);
        let result = if failed { Err(Failed { errno: 5 }) } else { Ok(payloads) };
        self.filter.reread_done(self.both(), token, result).expect("it was under way");
        self.drain();
    }

    /// What comes at an offset of a disk, in whole blocks but for its end, with an LSN up to which all is in it; none: it cannot be
    /// read now.
    pub fn piece(&mut self, disk: usize, at: u64) -> Option<(Piece, Lsn)> {
        if self.unlucky(self.hostility.reread_fails_one_in) {
            return None;
        }
        let lsn = self.filter.status(self.both()).settled;
        let content = &self.disks[disk].content[(at / SECTOR) as usize..self.sizes[disk]];
        let block = (BLOCK / SECTOR) as usize;
        let zeros = content.chunks(block).take_while(|block| block.iter().all(|tag| *tag == 0)).count() * block;
        if zeros > 0 {
            return Some((Piece::Zeros(zeros.min(content.len()) as u64 * SECTOR), lsn));
        }
        let blocks = self.rng.between(1, PIECE_BLOCKS) as usize;
        let data = &self.disks[disk].content[(at / SECTOR) as usize..self.sizes[disk]];
        Some((Piece::Data(bytes_of(&data[..data.len().min(blocks * block)])), lsn))
    }

    /// What has to be read again.
    pub fn dirty_bytes(&self) -> u64 {
        self.filter.status(self.both()).dirty_bytes
    }

    /// What is lost where the replica goes on after this LSN, in blocks of the dirty map: recorded, and not durable. What is lent is
    /// known until all of it is durable.
    pub fn lost_bytes(&self, fork: Lsn) -> u64 {
        let from = self.lent_since.map_or(fork, |since| since.min(fork));
        // A frame of which a part is lost counts as a whole.
        let frames = self.frames.iter().filter(|frame| frame.last_lsn() > from);
        let sent = frames.flat_map(|frame| &frame.parts).filter(|part| part.kind.changes_disk());
        let sent = sent.map(|part| (index(part.disk.expect("a disk")), part.extent));
        let made = self.changes.iter().filter(|change| change.lsn.is_some_and(|lsn| lsn > from));
        let made = made.map(|change| (change.disk, change.extent));
        // Of what was repaired last some may lie in the frame that is open.
        let open = self.repaired.iter().filter(|(.., frames)| frames + 2 >= self.frames.len());
        let open = open.map(|(disk, extent, _)| (*disk, *extent));
        let blocks = |(disk, extent): (usize, Extent)| {
            (extent.offset / DIRTY_BLOCK..extent.end().div_ceil(DIRTY_BLOCK)).map(move |block| (disk, block))
        };
        let lost: BTreeSet<(usize, u64)> = sent.chain(made).chain(open).flat_map(blocks).collect();
        lost.len() as u64 * DIRTY_BLOCK
    }

    /// What the replica has of a disk below the timeline's first record, as its first copy is through.
    pub fn set_base(&mut self, disk: usize, base: Tags) {
        self.base[disk] = base;
        self.applied = self.base.clone();
        let run = (Lsn::ZERO, self.applied_through);
        model::apply(&mut self.applied, &self.frames, run, &self.left_out, index);
    }

    /// Whether everything up to here is durable and settled at the replica.
    pub fn has_reached(&self, lsn: Lsn) -> bool {
        let settled = self.frames[..self.taken].last().map_or(Lsn::ZERO, |frame| frame.settled);
        lsn <= settled.min(self.applied_through)
    }

    /// What guests see of the disks.
    pub fn seen(&self) -> Vec<(DiskId, Tags)> {
        let there = (0..self.disks.len()).filter(|disk| !self.left.contains(disk));
        there.map(|disk| (spec(disk, 0).id, self.disks[disk].content[..self.sizes[disk]].to_vec())).collect()
    }

    /// The first copies of the group are through; where one was there before, everything is compared.
    pub fn group_copied(&mut self, compare: bool) {
        let now = self.both();
        if compare {
            self.filter.full_check(now);
            self.called();
        }
        self.filter.seed_done();
        self.seeds_left = 0;
        self.drain();
    }

    /// What happened on the timeline so far.
    pub fn history_so_far(&self) -> History {
        History {
            timeline: self.options.timeline,
            start: self.start_content.clone(),
            known: self.known_first(),
            changes: self.changes.clone(),
            lsn_after_call: self.lsn_after_call.clone(),
            frames: self.frames.clone(),
        }
    }

    /// The replica is what the source is, and the filter knows. Records that only tell the time are always under way.
    pub fn is_converged(&self) -> bool {
        let status = self.filter.status(self.both());
        self.ops.is_empty()
            && status.state == State::Protecting
            && status.dirty_bytes == 0
            && self.filter.is_whole()
            && self.changing.is_empty()
            && status.restorable >= self.last_change().max(self.disks_changed)
    }
}

impl History {
    /// The last LSN that was made.
    pub fn made(&self) -> Lsn {
        self.frames.last().map_or(Lsn::ZERO, |frame| frame.last_lsn())
    }

    /// What the disks were at these LSNs, which ascend: those that could be restored.
    pub fn at(&self, lsns: &[Lsn]) -> Vec<Vec<(DiskId, Tags)>> {
        let mut state = self.start.clone();
        let mut known = self.known.clone();
        let mut changes = self.changes.iter().peekable();
        let mut happen = |state: &mut Vec<Tags>, lsn: Lsn| {
            let call = self.lsn_after_call.partition_point(|last| *last < lsn) as u64;
            // What went unrecorded in a call went after the records of that call.
            let happened = |change: &&Change| change.lsn.map_or(change.call < call, |own| own <= lsn);
            while let Some(change) = changes.next_if(happened) {
                for (at, sector) in sectors(change.extent).enumerate() {
                    state[change.disk][sector] = change.tags.get(at).copied().unwrap_or(0);
                }
            }
        };
        let of_disks = |part: &&Part| part.disk.is_some() && !part.kind.changes_disk();
        let mut said = self.frames.iter().flat_map(|frame| &frame.parts).filter(of_disks).peekable();
        let mut states = Vec::with_capacity(lsns.len());
        for lsn in lsns {
            while let Some(part) = said.next_if(|part| part.lsn <= *lsn) {
                if let (Some(disk), Some(Note::Resize { from, to })) = (part.disk.map(index), part.note.as_deref()) {
                    // What is cut off is nobody's any more.
                    happen(&mut state, part.lsn);
                    let (from, to) = ((from / SECTOR) as usize, (to / SECTOR) as usize);
                    state[disk][to.min(from)..from].fill(0);
                }
                known.hear(part);
            }
            happen(&mut state, *lsn);
            let shown = known.shown().map(|disk| (spec(disk, 0).id, state[disk][..known.sizes[disk]].to_vec()));
            states.push(shown.collect());
        }
        states
    }
}
