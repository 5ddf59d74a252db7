//! The replica's half of first copies, and what it answers who asks: pieces are written straight into base and sidecar, and what came
//! so far is named now and then, so that the next attempt goes on there.

use super::super::calls::{Ask, Begun, Reply, Whole};
use super::super::part::Part;
use super::ReplicaHost;
use crate::capture::disk::{Tags, tags_of};
use bytes::Bytes;
use cdp_core::frame::{EncodedFrame, FrameHead, RecordKind};
use cdp_core::journal::{DiskInfo, Generation, SeedingInfo, TimelineInfo};
use cdp_core::media::Storage;
use cdp_core::replica::base::{Adoption, BaseWriter, file_names};
use cdp_core::replica::compare::{Answer, Ask as AskHashes};
use cdp_core::replica::content::DiskView;
use cdp_core::replica::seeding::is_begun;
use cdp_core::replica::{BASE_DIRECTORY, Replica, ReplicaView, ViewDisk, is_unseeded};
use cdp_core::sim::SimDisk;
use cdp_core::types::{DiskId, Lsn, MonoTime, Timeline};
use std::collections::{BTreeSet, VecDeque};

/// After a piece in so many it is written down how far the copy came.
const NOTED_ONE_IN: u64 = 3;

/// An attempt at a first copy.
struct Copy {
    /// The question that began it: asked again, it is the same attempt.
    asked: u64,
    disk: DiskId,
    attempt: u64,
    writer: Writing,
}

enum Writing {
    Copy(BaseWriter),
    Brought(Adoption),
    /// Everything came; the manifest says so soon.
    Ended,
}

impl Writing {
    fn position(&self) -> Option<u64> {
        match self {
            Self::Copy(writer) => Some(writer.position()),
            Self::Brought(adoption) => Some(adoption.position()),
            Self::Ended => None,
        }
    }
}

pub struct Copies {
    /// Images that somebody brought before the group began.
    brought: Vec<(DiskId, Bytes)>,
    /// Disks whose bases were made of them.
    adopted: BTreeSet<DiskId>,
    copy: Option<Copy>,
    /// Seeds of the session that holds: those that wait for room, and how many were taken.
    waiting: VecDeque<EncodedFrame>,
    taken: u64,
    /// The manifest that has to be durable before anything is answered.
    edited: Generation,
}

impl Copies {
    pub fn new(brought: Vec<(DiskId, Bytes)>) -> Self {
        let adopted = brought.iter().map(|(disk, _)| *disk).collect();
        let (copy, waiting, taken, edited) = (None, VecDeque::new(), 0, Generation(0));
        Self { brought, adopted, copy, waiting, taken, edited }
    }

    /// Puts the images where they belong.
    pub fn bring(&self, disk: &SimDisk) {
        for (id, bytes) in &self.brought {
            let image = disk.create(&file_names(*id).0).expect("it is not there");
            image.write_all_at(0, bytes).expect("there is room");
            image.sync().expect("it is there");
        }
        disk.sync_dir(BASE_DIRECTORY).expect("it is there");
    }

    /// The session is over, or another one begins: what came in it is for nobody. Gives the bytes that waited.
    pub fn forget(&mut self) -> u64 {
        self.taken = 0;
        self.waiting.drain(..).map(|seed| seed.len()).sum()
    }

    /// The host fell: of an attempt stays what is named.
    pub fn fell(&mut self) {
        self.forget();
        (self.copy, self.edited) = (None, Generation(0));
    }

    pub fn arrives(&mut self, seed: EncodedFrame) {
        self.waiting.push_back(seed);
    }

    /// Whether something waits for room.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl ReplicaHost {
    /// Answers what is asked; none: what has to be done for it is not done yet.
    pub fn ask(&mut self, now: MonoTime, number: u64, ask: &Ask) -> Option<Reply> {
        if self.has_failed() {
            return None;
        }
        let reply = match *ask {
            Ask::Begin { timeline, starts, ref given } => return self.begin(now, timeline, (starts, given.as_slice())),
            // Who asked writes another timeline now, and says it again there.
            Ask::Disks { timeline, .. } if timeline != self.timeline => return None,
            Ask::Disks { edit, .. } => {
                self.copies.edited = self.edit_disks(edit).unwrap_or(self.copies.edited);
                Some(Reply::Done)
            }
            Ask::Trust { least } => {
                if self.writer.manifest().activity_generation < least {
                    self.copies.edited = self.writer.edit(|manifest| manifest.activity_generation = least);
                }
                Some(Reply::Done)
            }
            Ask::Copy { disk, size } => self.begin_copy(number, disk, size),
            Ask::Copied { disk, attempt } => Some(Reply::Copied(self.end_copy(disk, attempt))),
            Ask::Hashes(ask) => return Some(Reply::Hashes(ask.id, self.hashes(&ask))),
        };
        self.turn(now);
        reply.filter(|_| self.writer.manifest_durable() >= self.copies.edited)
    }

    /// Nothing of any first copy is worth going on with.
    pub(super) fn is_vacant(&self) -> bool {
        let manifest = self.writer.manifest();
        is_unseeded(manifest) && !is_begun(manifest) && manifest.disks.iter().all(|disk| disk.base.is_none())
    }

    pub(super) fn begin_anew(&mut self, timeline: Timeline) {
        let sizes: Vec<u64> = self.writer.manifest().disks.iter().map(|disk| disk.size).collect();
        let (brought, attempt) = (self.copies.brought.clone(), self.attempt);
        let mut anew = Self::new(self.group, timeline, &sizes, brought, self.rng.clone());
        (anew.attempt, anew.no_space_until) = (attempt, self.no_space_until);
        (anew.torn_times, anew.within_times) = (self.torn_times, self.within_times);
        self.end.close(super::Farewell::new(super::Code::TimelineClosed, "the group begins anew"));
        let left: Vec<_> = std::iter::from_fn(|| self.poll(MonoTime(0))).collect();
        *self = anew;
        self.left.extend(left);
    }

    /// What whoever begins has to know.
    pub(super) fn begun(&self) -> Begun {
        let manifest = self.writer.manifest();
        let Some(&TimelineInfo { parent, fork, .. }) = manifest.timelines.iter().find(|info| info.id == self.timeline)
        else {
            unreachable!("it was opened")
        };
        let copied = |disk: &&DiskInfo| disk.base.is_some() && disk.added == Lsn::ZERO;
        let uncopied = manifest.disks.iter().filter(|disk| disk.base.is_none() && disk.added == Lsn::ZERO);
        let uncopied = uncopied.map(|disk| disk.id).collect();
        let bases = manifest.disks.iter().filter(copied).map(|disk| (disk.id, self.below(disk.id))).collect();
        let after = parent.map(|parent| (parent, fork));
        let (disks, leaving) = self.found(fork);
        Begun { after, least: manifest.activity_generation, disks, leaving, uncopied, bases }
    }

    /// What a disk is below the first record of the open timeline.
    fn below(&self, disk: DiskId) -> Tags {
        let replica = self.look();
        let timeline = replica.manifest().timeline(self.timeline).expect("it was opened");
        let lsn = timeline.fork;
        let size = replica.manifest().disk(disk).expect("it is known").size;
        let mut bytes = vec![0; size as usize];
        self.view(&replica, disk, lsn).read(disk, 0, &mut bytes).expect("it can be read");
        tags_of(&bytes)
    }

    /// A disk, whether its copy is through or not.
    fn view(&self, replica: &Replica, disk: DiskId, lsn: Lsn) -> ReplicaView {
        let info = replica.manifest().disk(disk).expect("it is known");
        let disks = vec![ViewDisk { id: disk, name: info.name.clone(), size: info.size }];
        let ground = replica.ground(self.timeline, lsn).expect("the open timeline");
        ReplicaView::open(ground, disks).expect("it can be read")
    }

    fn begin_copy(&mut self, asked: u64, disk: DiskId, size: u64) -> Option<Reply> {
        // One that left, or is copied anew under another number, nobody copies any more.
        let info = self.writer.manifest().disk(disk).filter(|info| info.removed.is_none())?;
        if info.base.is_some() {
            return Some(Reply::Copy { attempt: 0, position: size });
        }
        let joined = info.added > Lsn::ZERO;
        if self.copies.copy.as_ref().is_none_or(|copy| copy.asked < asked) {
            let brought = self.copies.adopted.contains(&disk);
            let fresh = SeedingInfo { adopted: brought, ..SeedingInfo::new(disk, size, self.timeline) };
            // Of one that joined what was copied in another timeline would have to be compared first: it is begun anew.
            let counts = |info: &&SeedingInfo| !joined || info.since == self.timeline;
            let found = self.writer.manifest().seeding_of(disk).filter(counts).copied();
            let mut attempt = None;
            self.copies.edited = self.writer.edit(|manifest| attempt = manifest.begin_seeding(found.unwrap_or(fresh)));
            let (media, replica) = (&self.disk, self.writer.manifest().replica);
            let writer = match (found, brought) {
                (None, false) => Writing::Copy(BaseWriter::create(media, replica, disk, size).expect("a disk")),
                (None, true) => Writing::Brought(Adoption::begin(media, replica, disk, size).expect("it was brought")),
                (Some(info), false) => self.resumed(&info, size),
                (Some(info), true) => {
                    Writing::Brought(Adoption::resume(media, replica, &info, size).expect("what is named is there"))
                }
            };
            let attempt = attempt.expect("it has no base");
            self.copies.copy = Some(Copy { asked, disk, attempt, writer });
        }
        let copy = self.copies.copy.as_mut().filter(|copy| copy.asked == asked)?;
        if let Writing::Brought(adoption) = &mut copy.writer
            && adoption.step().expect("it is read")
        {
            self.note_copy();
            return None;
        }
        let position = copy.writer.position()?;
        Some(Reply::Copy { attempt: copy.attempt, position })
    }

    /// Goes on where the manifest says, if anything was named; what was begun and never named is begun again.
    fn resumed(&self, info: &SeedingInfo, size: u64) -> Writing {
        let replica = self.writer.manifest().replica;
        let writer = match info.point.done {
            0 => BaseWriter::create(&self.disk, replica, info.disk, size).expect("a disk"),
            _ => BaseWriter::resume(&self.disk, replica, info, size, None).expect("what is named is there"),
        };
        Writing::Copy(writer)
    }

    /// Takes the pieces that came, as far as there is room.
    pub(super) fn take_seeds(&mut self, now: MonoTime) {
        if now < self.no_space_until || !self.copies.waits() {
            return;
        }
        while let Some(seed) = self.copies.waiting.pop_front() {
            self.pending_bytes -= seed.len();
            self.copies.taken += 1;
            self.take_seed(&seed);
        }
        self.end.seeds(now, self.copies.taken);
        self.tell(now);
    }

    /// Writes a piece, if it is the one that comes next: others are of an attempt that was given up.
    fn take_seed(&mut self, seed: &EncodedFrame) {
        let head = FrameHead::parse(&seed.head).expect("it came whole");
        let raw = head.unpack(&seed.body.concat().into()).expect("it came whole");
        let first = raw.parts.first().expect("a piece");
        let Some(Copy { disk, writer: Writing::Copy(writer), .. }) = &mut self.copies.copy else { return };
        let is_next = first.disk == Some(*disk) && first.extent.offset == writer.position();
        if raw.timeline != self.timeline || !is_next {
            return;
        }
        let lsn = first.lsn;
        match first.kind {
            RecordKind::Zero => writer.zeros(first.extent.length, lsn).expect("there is room"),
            _ => raw.parts.iter().for_each(|part| writer.data(&part.data, lsn).expect("there is room")),
        }
        if self.rng.one_in(NOTED_ONE_IN) {
            self.note_copy();
        }
    }

    /// Writes down how far a copy came.
    fn note_copy(&mut self) {
        let Some(copy) = &mut self.copies.copy else { return };
        let checkpoint = match &mut copy.writer {
            Writing::Copy(writer) => writer.checkpoint(),
            Writing::Brought(adoption) => adoption.checkpoint(),
            Writing::Ended => return,
        };
        let point = checkpoint.and_then(|checkpoint| checkpoint.sync()).expect("it is synced");
        let (disk, attempt) = (copy.disk, copy.attempt);
        self.writer.edit(|manifest| {
            manifest.note_seeding(disk, attempt, point);
        });
    }

    /// Whether a copy is whole; if so it is named.
    fn end_copy(&mut self, disk: DiskId, attempt: u64) -> Option<Whole> {
        let info = self.writer.manifest().disk(disk).filter(|info| info.removed.is_none())?;
        let (added, size, is_named) = (info.added, info.size, info.base.is_some());
        if !is_named {
            let is_this = |copy: &&mut Copy| copy.disk == disk && copy.attempt == attempt;
            let copy = self.copies.copy.as_mut().filter(is_this)?;
            if copy.writer.position() != Some(size) {
                return None;
            }
            let root = match std::mem::replace(&mut copy.writer, Writing::Ended) {
                Writing::Copy(writer) => writer.finish(&self.disk, Lsn::ZERO),
                Writing::Brought(adoption) => adoption.finish(&self.disk),
                Writing::Ended => return None,
            };
            let base = root.expect("it is synced").named(added);
            let mut named = false;
            self.copies.edited = self.writer.edit(|manifest| named = manifest.end_seeding(disk, attempt, base));
            assert!(named, "the attempt that is under way is the one that the manifest knows");
        }
        Some(Whole { brought: self.copies.adopted.contains(&disk), base: self.below(disk) })
    }

    /// What it has of a range, at the last durable LSN.
    fn hashes(&self, ask: &AskHashes) -> Answer {
        let durable = self.durable();
        let info = self.writer.manifest().disk(ask.disk);
        let Some(info) = info.filter(|info| info.removed.is_none()) else { return Answer::Unreadable };
        if durable < ask.at || info.base.is_none() {
            return Answer::NotYet;
        }
        let replica = self.look();
        let view = self.view(&replica, ask.disk, durable);
        // What it has grown by is compared before its record says so.
        let size = info.size.max(ask.asked.extent().end());
        let disk = ViewDisk { id: info.id, name: info.name.clone(), size };
        let hashes = ask.asked.hashes_in(&DiskView::new(&view, disk), &mut Vec::new());
        Answer::Hashes(hashes.expect("it can be read"))
    }
}
