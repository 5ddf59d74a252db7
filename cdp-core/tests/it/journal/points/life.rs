//! A short life in which everything happens that a replica does to its media, and what somebody outside was told meanwhile.

mod disks;
mod overlay;

use super::super::kit::*;
use super::model::*;
use cdp_core::frame::{Compression, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::{self, Merge};
use cdp_core::replica::{Replica, merge_limit, remove_bases, retention};
use cdp_core::sim::SimDisk;
use cdp_core::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const NOW: Now = Now { wall: WallTime(1), mono: MonoTime(1) };

pub(super) type Outcome<T> = Result<T, String>;

pub(super) fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What somebody outside was told, and may hold against whoever opens the store after a power cut.
#[derive(Clone, Debug, Default)]
pub(super) struct Belief {
    /// Changes of the media by then.
    pub(super) changes: u64,
    pub(super) durable: Lsn,
    pub(super) generation: Generation,
    pub(super) pins: BTreeSet<Lsn>,
    /// History up to here may be gone, and no more.
    pub(super) target: Lsn,
    /// So many of the session's writes were flushed.
    pub(super) flushed: usize,
}

/// What the session wrote: each of one block, with its number in every byte.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) info: SessionInfo,
    pub(super) writes: Vec<(u16, u64)>,
}

/// What a life does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Write { records: u64, roll: bool, wait: bool },
    Pin,
    Unpin,
    Merge,
    Index,
    Overlay,
    Grow,
    Add,
    Remove,
    Rotate,
}

impl Step {
    pub(super) fn any(dice: &mut Dice) -> Self {
        match dice.below(18) {
            0..=6 => Self::write(dice),
            7..=8 => Self::Pin,
            9 => Self::Unpin,
            10..=12 => Self::Merge,
            13 => Self::Overlay,
            14 => Self::Grow,
            15 => Self::Add,
            16 => Self::Remove,
            _ => Self::Rotate,
        }
    }

    fn write(dice: &mut Dice) -> Self {
        Self::Write { records: 1 + dice.below(4), roll: dice.below(3) == 0, wait: dice.below(2) == 0 }
    }

    /// A life's steps: nothing of what there is is left out, and the order is the seed's.
    pub(super) fn script(dice: &mut Dice) -> Vec<Self> {
        let held =
            [Self::Pin, Self::Merge, Self::Pin, Self::Merge, Self::Unpin, Self::Merge, Self::Overlay, Self::Merge];
        let disks = [Self::Grow, Self::Add, Self::Remove, Self::Rotate, Self::Overlay];
        let mut rest: Vec<_> = held.into_iter().collect();
        for step in disks {
            rest.insert(dice.below(rest.len() as u64 + 1) as usize, step);
        }
        let short = Self::Write { records: 1, roll: true, wait: true };
        let mut steps: Vec<_> = [short; 8].into_iter().chain([Self::Index]).collect();
        if dice.below(3) > 0 {
            steps.clear();
        }
        for step in rest {
            steps.extend([Self::write(dice), Self::write(dice), step]);
        }
        steps
    }
}

/// The next segment is there before one is full.
fn small_segments() -> Options {
    Options { segment_records: 8, ..options() }
}

/// A life; see the module's text.
pub(super) struct Life {
    pub(super) disk: SimDisk,
    pub(super) rig: Rig,
    pub(super) past: Past,
    pub(super) belief: Belief,
    pub(super) beliefs: Vec<Belief>,
    pub(super) overlay: Option<Overlay>,
    source: Source,
    dice: Dice,
    /// Effects that were begun: at most four, those that were carried out with what came of that.
    flying: Vec<(EffectId, Effect, Option<cdp_core::journal::Outcome>)>,
    /// How often each of the things was done.
    pub(super) done: BTreeMap<&'static str, u32>,
}

impl Life {
    /// The first one, on disks of about this size.
    pub(super) fn new(seed: u64, size: u64, at_rest: &AtRest) -> Self {
        let disk = SimDisk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
        let opened = create(storage.as_ref(), manifest).unwrap();
        let rig = Rig::with_at_rest(storage, opened, seed + 1, small_segments(), at_rest);
        let (source, dice) = (Source::new(seed, timeline(1)), Dice(seed ^ 0x11fe));
        let (past, belief, beliefs) = (Past::default(), Belief::default(), Vec::new());
        let mut life = Self {
            disk,
            rig,
            past,
            belief,
            beliefs,
            overlay: None,
            source,
            dice,
            flying: Vec::new(),
            done: BTreeMap::new(),
        };
        for number in 1..=2 {
            let content = Arc::new(content(&mut life.dice, size + u64::from(number) * SECTOR));
            let base = life.copy(number, &content, Lsn::ZERO).unwrap();
            let info = disks::info(number, content.len() as u64, Lsn::ZERO, Some(base));
            life.rig.writer.edit(|manifest| manifest.disks.push(info));
            let on = timeline(1);
            life.past
                .0
                .extend([(Lsn::ZERO, on, What::Joined(number, content)), (Lsn::ZERO, on, What::Complete(number))]);
        }
        life.settle().unwrap();
        life.begin(None, Lsn::ZERO).unwrap();
        life
    }

    /// Goes on where a start found things; `seed` draws what this life draws.
    pub(super) fn after(
        found: &SimDisk,
        opened: Opened,
        past: &Past,
        (belief, overlay): (&Belief, Option<&Overlay>),
        (seed, at_rest): (u64, &AtRest),
    ) -> Outcome<Self> {
        let storage: Arc<dyn Storage> = Arc::new(found.clone());
        let durable = opened.durable.lsn();
        retention::clean_up(storage.as_ref(), &opened.manifest).map_err(said)?;
        let pins = opened.manifest.pins.iter().map(|pin| pin.lsn).collect();
        let generation = opened.stored;
        let belief = Belief { changes: 0, durable, generation, pins, ..belief.clone() };
        let last = opened.manifest.timelines.last().map(|info| (info.id, info.number));
        let overlay = overlay.filter(|overlay| opened.manifest.sessions.contains(&overlay.info)).cloned();
        let flushed = if overlay.is_some() { belief.flushed } else { 0 };
        let last_lsn = opened.last_lsn;
        let rig = Rig::with_at_rest(storage, opened, seed, small_segments(), at_rest);
        let mut source = Source::new(seed, last.map_or(timeline(1), |(id, _)| id));
        source.lsn = last_lsn.max(durable);
        source.time += 1_000_000_000_000;
        let (past, belief) = (past.upto(durable), Belief { flushed, ..belief });
        let (disk, dice, beliefs) = (found.clone(), Dice(seed ^ 0xa17e), Vec::new());
        let mut life =
            Self { disk, rig, past, belief, beliefs, overlay, source, dice, flying: Vec::new(), done: BTreeMap::new() };
        life.take_over()?;
        let next = timeline(last.map_or(1, |(_, number)| number + 1) as u8);
        life.source.fork(next, durable);
        life.begin(last.map(|(id, _)| id), durable)?;
        life.end_copies();
        Ok(life)
    }

    /// What records say of disks and the manifest does not yet, and disks whose first record is lost.
    fn take_over(&mut self) -> Outcome<()> {
        let replica = self.replica()?;
        let known = self.past.at(Lsn(u64::MAX));
        let lost =
            |info: &&DiskInfo| !known.contains_key(&info.id.get()) && info.removed.is_none() && info.base.is_none();
        self.rig.writer.edit(|manifest| {
            replica.note_disks(manifest);
            manifest.resizing.clear();
            let lost: Vec<_> = manifest.disks.iter().filter(lost).map(|info| info.id).collect();
            lost.into_iter().for_each(|id| manifest.drop_disk(id));
        });
        self.settle()?;
        remove_bases(self.rig.storage.as_ref(), self.rig.writer.manifest()).map_err(said)
    }

    /// A disk whose base is named is complete: the record that says so may be lost, and is written again.
    fn end_copies(&mut self) {
        let copied =
            |number: u16| self.rig.writer.manifest().disk(disk(number)).is_some_and(|info| info.base.is_some());
        let now = self.past.at(Lsn(u64::MAX)).into_iter();
        let ended: Vec<_> =
            now.filter(|(number, then)| !then.complete && copied(*number)).map(|(number, _)| number).collect();
        for number in ended {
            let note = Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 };
            self.source.note(RecordKind::ResyncEnd, Some(number), note);
            self.log(What::Complete(number));
        }
    }

    /// A timeline of its own.
    fn begin(&mut self, parent: Option<Timeline>, fork: Lsn) -> Outcome<()> {
        let id = self.source.timeline;
        let number = self.rig.writer.manifest().timelines.last().map_or(0, |info| info.number) + 1;
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        let info = TimelineInfo { id, number, parent, fork, last: None, state, role, opened: WallTime(1) };
        self.rig.writer.open_timeline(info);
        self.settle()?;
        self.source.note(RecordKind::TimelineStart, None, Note::TimelineStart { parent, fork });
        self.log(What::Nothing);
        Ok(())
    }

    fn log(&mut self, what: What) {
        self.past.0.push((self.source.lsn, self.source.timeline, what));
    }

    fn did(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn note(&mut self) {
        self.belief.changes = if self.disk.remembered() > 0 { self.disk.remembered() } else { self.disk.effects() };
        self.belief.durable = self.belief.durable.max(self.rig.writer.durable().lsn());
        self.belief.generation = self.belief.generation.max(self.rig.writer.manifest_durable());
        self.beliefs.push(self.belief.clone());
    }

    /// A driver that has up to four effects under way, carries each out at once or late, and completes them in any order; so many
    /// rounds, after which some may still be under way.
    fn drive(&mut self, rounds: u64) -> Outcome<()> {
        for _ in 0..rounds {
            let most = 1 + self.dice.below(4) as usize;
            while self.flying.len() < most {
                let Some((id, effect)) = self.rig.writer.poll(self.rig.now) else { break };
                let outcome = (self.dice.below(2) == 0).then(|| self.rig.executor.run(&effect));
                self.flying.push((id, effect, outcome));
            }
            if self.flying.is_empty() {
                break;
            }
            let (id, effect, outcome) = self.flying.swap_remove(self.dice.below(self.flying.len() as u64) as usize);
            let outcome = outcome.unwrap_or_else(|| self.rig.executor.run(&effect));
            self.rig.writer.completed(self.rig.now, id, outcome);
            self.note();
        }
        match self.rig.writer.state() {
            WriterState::Failed(error) => Err(said(error)),
            _ => Ok(()),
        }
    }

    fn settle(&mut self) -> Outcome<()> {
        self.drive(u64::MAX)?;
        self.note();
        Ok(())
    }

    pub(super) fn replica(&self) -> Outcome<Replica> {
        let (writer, storage) = (&self.rig.writer, Arc::clone(&self.rig.storage));
        let (safe, keys) = (writer.durable().lsn(), Arc::clone(&self.rig.keys));
        Replica::load_with(storage, writer.manifest().clone(), writer.snapshot(), safe, keys).map_err(said)
    }

    /// The oldest and the newest moment of the trunk.
    pub(super) fn span(&self) -> (Lsn, Lsn) {
        let oldest = self.rig.writer.manifest().oldest().map(|oldest| oldest.lsn);
        let first = self.past.0.iter().map(|(lsn, ..)| *lsn).find(|lsn| *lsn > Lsn::ZERO);
        (oldest.or(first).unwrap_or(Lsn(1)), self.rig.writer.durable().lsn())
    }

    pub(super) fn timeline_of(&self, lsn: Lsn) -> Timeline {
        self.past.timeline_of(lsn).unwrap_or(self.source.timeline)
    }

    fn any_of(&mut self) -> Option<Lsn> {
        let (from, to) = self.span();
        let lsns = self.past.lsns(from, to);
        (!lsns.is_empty()).then(|| lsns[self.dice.below(lsns.len() as u64) as usize])
    }

    pub(super) fn play(&mut self, step: Step) -> Outcome<()> {
        self.rig.now = self.rig.now.after(self.dice.below(30_000_000));
        match step {
            Step::Write { records, roll, wait } => {
                (0..records).for_each(|_| self.record());
                self.append()?;
                if roll {
                    self.rig.writer.roll();
                    self.did("sealed");
                }
                if wait {
                    return self.flush();
                }
                self.rig.writer.request_sync();
                let rounds = self.dice.below(4);
                self.drive(rounds)
            }
            Step::Pin => self.pin(),
            Step::Unpin => self.unpin(),
            Step::Merge => self.merge_any(),
            Step::Index => self.index(),
            Step::Overlay => self.overlay(),
            Step::Grow => self.grow(),
            Step::Add => self.add(),
            Step::Remove => self.remove(),
            Step::Rotate => {
                self.rig.rotate(self.dice.next());
                self.did("rotated");
                self.settle()
            }
        }
    }

    /// The disks as they are now: number and size.
    fn sizes(&self) -> Vec<(u16, u64)> {
        let now = self.past.at(Lsn(u64::MAX));
        now.into_iter().map(|(number, disk)| (number, disk.bytes.len() as u64)).collect()
    }

    fn record(&mut self) {
        let sizes = self.sizes();
        let (number, size) = sizes[self.dice.below(sizes.len() as u64) as usize];
        let start = self.dice.below(size / SECTOR) * SECTOR;
        let extent = Extent::new(start, ((1 + self.dice.below(24)) * SECTOR).min(size - start));
        match self.dice.below(8) {
            0 => self.source.clear(RecordKind::Zero, number, extent),
            1 => self.source.clear(RecordKind::Discard, number, extent),
            _ => self.source.write(number, extent, self.dice.next() as u8),
        }
        let data = self.source.model.history.last().and_then(|record| record.4.clone());
        self.log(What::Write(number, extent, data));
    }

    fn append(&mut self) -> Outcome<()> {
        let compression = if self.dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) };
        for mut frame in self.source.frames(compression) {
            loop {
                match self.rig.writer.append(self.rig.now, frame) {
                    Ok(_) => break,
                    Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                    Err(refused) => return Err(said(refused.why)),
                }
                let rounds = 1 + self.dice.below(3);
                self.drive(rounds)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Outcome<()> {
        self.append()?;
        self.rig.writer.request_sync();
        self.settle()
    }

    fn pin(&mut self) -> Outcome<()> {
        let Some(lsn) = self.any_of() else { return Ok(()) };
        let pin = PinInfo { label: String::new(), timeline: self.timeline_of(lsn), lsn, created: WallTime(1) };
        self.rig.writer.edit(|manifest| manifest.pins.push(pin));
        self.settle()?;
        self.belief.pins.insert(lsn);
        self.note();
        Ok(())
    }

    fn unpin(&mut self) -> Outcome<()> {
        let Some(lsn) = self.belief.pins.first().copied() else { return Ok(()) };
        self.belief.pins.remove(&lsn);
        self.note();
        self.rig.writer.edit(|manifest| manifest.pins.retain(|pin| pin.lsn != lsn));
        self.settle()?;
        self.release()
    }

    fn release(&mut self) -> Outcome<()> {
        let held = retention::held(self.rig.writer.manifest());
        if let Some((_, numbers)) = retention::release(&mut self.rig.writer, &held) {
            self.settle()?;
            let storage = Arc::clone(&self.rig.storage);
            numbers.into_iter().try_for_each(|number| kept::remove(storage.as_ref(), number)).map_err(said)?;
            self.did("released");
        }
        remove_bases(self.rig.storage.as_ref(), self.rig.writer.manifest()).map_err(said)
    }

    fn index(&mut self) -> Outcome<()> {
        let reader = self.rig.reader();
        while let Some(task) = self.rig.writer.next_index_merge() {
            let mut merge = IndexMerge::new(&reader, &self.rig.writer.snapshot(), task).map_err(said)?;
            let run = loop {
                if let Some(run) = merge.step(1 << 16).map_err(said)? {
                    break run;
                }
            };
            self.rig.writer.publish_run(run).ok_or("a run is not taken")?;
            self.did("index merged");
            self.settle()?;
        }
        Ok(())
    }

    fn ids(&mut self) -> IdSource {
        let mut dice = Dice(self.dice.next());
        Box::new(move || std::array::from_fn(|_| dice.next() as u8))
    }

    /// Merges up to some moment as an owner does, stopping at what is held.
    pub(super) fn merge_any(&mut self) -> Outcome<()> {
        self.flush()?;
        self.rig.writer.roll();
        self.settle()?;
        let Some(lsn) = self.any_of() else { return Ok(()) };
        let target = merge_limit(self.rig.writer.manifest()).map_or(lsn, |limit| limit.min(lsn));
        self.belief.target = self.belief.target.max(target);
        self.note();
        loop {
            if let Some(to) = self.rig.writer.manifest().merge {
                self.merge(to)?;
                continue;
            }
            let held = retention::held(self.rig.writer.manifest());
            let Some(lsn) = retention::stop(self.rig.writer.manifest(), &held, target) else { break };
            let (replica, on) = (self.replica()?, self.timeline_of(lsn));
            let stamp = replica.exact(on, lsn).map_err(said)?.stamp;
            let keep = retention::to_keep(self.rig.writer.manifest(), &held, replica.catalogue());
            if let Some(keep) = &keep {
                let id = Timeline::new(self.ids()()).unwrap();
                let storage = self.rig.storage.as_ref();
                kept::create(storage, self.rig.writer.manifest(), keep.number, id, NOW).map_err(said)?;
                self.did("kept");
            }
            retention::begin(&mut self.rig.writer, StampedMoment { timeline: on, lsn, stamp }, keep);
            self.settle()?;
        }
        self.release()
    }

    fn merge(&mut self, to: StampedMoment) -> Outcome<()> {
        let (storage, replica) = (Arc::clone(&self.rig.storage), self.replica()?);
        let manifest = self.rig.writer.manifest().clone();
        let (newest, ids) = (manifest.kept.last().map(|kept| kept.number), self.ids());
        let open = |number| Space::open(storage.as_ref(), number, (0, u64::MAX), (&self.rig.keys, ids), NOW);
        let space = newest.map(open).transpose().map_err(said)?;
        let path = replica.path(to.timeline, to.lsn).map_err(said)?;
        let mut merge = Merge::begin(&storage, &manifest, to, &path, replica.bases(), space).map_err(said)?;
        while merge.step(NOW, 16 << 10).map_err(said)? {}
        let bases = merge.finish(NOW).map_err(said)?;
        retention::end(&mut self.rig.writer, &bases);
        self.settle()?;
        self.did("merged");
        merge::clean_up(storage.as_ref()).map_err(said)
    }
}
