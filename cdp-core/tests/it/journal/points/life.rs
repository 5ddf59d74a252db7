//! A short life in which everything happens that a replica does to its media, and what somebody outside was told meanwhile.

mod disks;
mod history;
mod sessions;

pub(crate) use self::sessions::Overlay;
use super::super::kit::*;
use super::model::*;
use super::step::{Kind, Record, Step};
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::session::Session;
use cdp_core::replica::{Replica, remove_bases, retention};
use cdp_core::sim::SimDisk;
use cdp_core::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const NOW: Now = Now { wall: WallTime(1), mono: MonoTime(1) };

pub(crate) type Outcome<T> = Result<T, String>;

pub(crate) fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What somebody outside was told, and may hold against whoever opens the store after a power cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Belief {
    /// Changes of the media by then.
    pub(crate) changes: u64,
    pub(crate) durable: Lsn,
    pub(crate) generation: Generation,
    pub(crate) pins: BTreeSet<Lsn>,
    /// Long-term points.
    pub(crate) layers: BTreeSet<Lsn>,
    /// History up to here may be gone, and no more.
    pub(crate) target: Lsn,
    /// Sessions, and how many of their writes were flushed.
    pub(crate) sessions: BTreeMap<Timeline, usize>,
}

/// The next segment is there before one is full.
fn small_segments() -> Options {
    Options { segment_records: 8, ..options() }
}

/// A life; see the module's text.
pub(crate) struct Life {
    pub(crate) disk: SimDisk,
    pub(crate) rig: Rig,
    pub(crate) past: Past,
    pub(crate) belief: Belief,
    pub(crate) beliefs: Vec<Belief>,
    /// Every session that there ever was.
    pub(crate) overlays: BTreeMap<Timeline, Overlay>,
    /// Those that are open.
    open: BTreeMap<Timeline, Session>,
    /// The moment before which only kept ones can be restored, and those.
    pub(crate) oldest: Option<Lsn>,
    pub(crate) kept: BTreeSet<Lsn>,
    /// First copies of disks, with the sizes that they had when these were begun.
    copies: BTreeMap<u16, (BaseWriter, u64)>,
    pub(crate) source: Source,
    dice: Dice,
    /// Effects that were begun: at most four, those that were carried out with what came of that.
    flying: Vec<(EffectId, Effect, Option<cdp_core::journal::Outcome>)>,
    /// Looks at the life in the midst of merges.
    pub(crate) looks: Option<fn(&Life) -> Outcome<()>>,
    /// How often each of the things was done.
    pub(crate) done: BTreeMap<&'static str, u32>,
}

impl Life {
    /// The first one, on disks of about this size.
    pub(crate) fn new(seed: u64, size: u64, at_rest: &AtRest) -> Self {
        let disk = SimDisk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
        let opened = create(storage.as_ref(), manifest).unwrap();
        let rig = Rig::with_at_rest(storage, opened, seed + 1, small_segments(), at_rest);
        let mut life = Self::on(disk, rig, Source::new(seed, timeline(1)), Dice(seed ^ 0x11fe));
        for number in 1..=2 {
            let content = Arc::new(content(&mut life.dice, size + u64::from(number) * SECTOR));
            let base = life.base_of(number, &content, Lsn::ZERO).unwrap();
            let info = disks::info(number, content.len() as u64, Lsn::ZERO, Some(base));
            life.rig.writer.edit(|manifest| manifest.disks.push(info));
            life.log(What::Joined(number, content));
            life.log(What::Complete(number));
        }
        life.settle().unwrap();
        life.begin(None, Lsn::ZERO).unwrap();
        life
    }

    fn on(disk: SimDisk, rig: Rig, source: Source, dice: Dice) -> Self {
        Self {
            disk,
            rig,
            past: Past::default(),
            belief: Belief::default(),
            beliefs: Vec::new(),
            overlays: BTreeMap::new(),
            open: BTreeMap::new(),
            oldest: None,
            kept: BTreeSet::new(),
            copies: BTreeMap::new(),
            source,
            dice,
            flying: Vec::new(),
            looks: None,
            done: BTreeMap::new(),
        }
    }

    /// Goes on where a start found things; `seed` draws what this life draws.
    pub(crate) fn after(
        found: &SimDisk,
        opened: Opened,
        past: &Past,
        (belief, overlays): (&Belief, &BTreeMap<Timeline, Overlay>),
        (seed, at_rest): (u64, &AtRest),
    ) -> Outcome<Self> {
        let storage: Arc<dyn Storage> = Arc::new(found.clone());
        let (durable, manifest) = (opened.durable.lsn(), opened.manifest.clone());
        retention::clean_up(storage.as_ref(), &manifest).map_err(said)?;
        let last = manifest.timelines.last().map(|info| (info.id, info.number));
        let (last_lsn, generation) = (opened.last_lsn, opened.stored);
        let rig = Rig::with_at_rest(storage, opened, seed, small_segments(), at_rest);
        let mut source = Source::new(seed, last.map_or(timeline(1), |(id, _)| id));
        source.lsn = last_lsn.max(durable);
        let mut life = Self::on(found.clone(), rig, source, Dice(seed ^ 0xa17e));
        life.past = past.upto(durable);
        life.source.time = life.past.0.last().map_or(0, |done| done.stamp.time.0) + 1_000_000_000;
        life.oldest = manifest.oldest().map(|oldest| oldest.lsn);
        life.kept = manifest.kept.iter().map(|kept| kept.moment.lsn).collect();
        life.overlays.clone_from(overlays);
        let flushed = |session: &SessionInfo| belief.sessions.get(&session.timeline).copied().unwrap_or(0);
        life.belief = Belief {
            changes: 0,
            durable,
            generation,
            pins: manifest.pins.iter().map(|pin| pin.lsn).collect(),
            layers: manifest.retention.layers.iter().map(|layer| layer.lsn).collect(),
            target: belief.target,
            sessions: manifest.sessions.iter().map(|session| (session.timeline, flushed(session))).collect(),
        };
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

    /// What the newest record did, or what goes with it.
    fn log(&mut self, what: What) {
        let (lsn, timeline) = (self.source.lsn, self.source.timeline);
        let stamp = Stamp { epoch: ClockEpoch(self.source.epoch), time: WallTime(self.source.time) };
        self.past.0.push(Done { lsn, timeline, stamp, what });
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

    /// As its readers find it now.
    pub(crate) fn replica(&self) -> Outcome<Replica> {
        let (writer, storage) = (&self.rig.writer, Arc::clone(&self.rig.storage));
        let (safe, keys) = (writer.durable().lsn(), Arc::clone(&self.rig.keys));
        Replica::load_with(storage, writer.manifest().clone(), writer.snapshot(), safe, keys).map_err(said)
    }

    /// The oldest and the newest moment of the trunk.
    pub(crate) fn span(&self) -> (Lsn, Lsn) {
        let first = self.past.0.iter().map(|done| done.lsn).find(|lsn| *lsn > Lsn::ZERO);
        (self.oldest.or(first).unwrap_or(Lsn(1)), self.rig.writer.durable().lsn())
    }

    pub(crate) fn timeline_of(&self, lsn: Lsn) -> Timeline {
        self.past.timeline_of(lsn).unwrap_or(self.source.timeline)
    }

    /// A moment of the trunk that can be restored.
    fn moment(&self, pick: u16) -> Option<Lsn> {
        let (from, to) = self.span();
        let lsns = self.past.lsns(from, to);
        lsns.get(usize::from(pick) % lsns.len().max(1)).copied()
    }

    pub(crate) fn play(&mut self, step: &Step) -> Outcome<()> {
        self.rig.now = self.rig.now.after(self.dice.below(30_000_000));
        match step {
            Step::Write { records, roll, wait } => self.write(records, *roll, *wait),
            Step::Pin(pick) => self.pin(*pick),
            Step::Unpin(pick) => self.unpin(*pick),
            Step::Layer => self.layer(),
            Step::Expire => self.expire(),
            Step::Merge { to, pieces } => self.merge_to(*to, *pieces),
            Step::Index => self.index(),
            Step::Session { which, fork, writes, flush, after } => {
                self.session((*which, *fork), writes, (*flush, *after))
            }
            Step::Drop(which) => self.drop_session(*which),
            Step::Resize { disk, sectors } => self.resize(*disk, u64::from(*sectors), false),
            Step::Add { blocks } => self.add(u64::from(*blocks)),
            Step::Copy { blocks } => self.copy(u64::from(*blocks)),
            Step::Remove(disk) => self.remove(*disk),
            Step::Rotate => {
                self.rig.rotate(self.dice.next());
                self.did("rotated");
                self.settle()
            }
        }
    }

    fn write(&mut self, records: &[Record], roll: bool, wait: bool) -> Outcome<()> {
        records.iter().for_each(|record| self.record(record));
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

    /// The disks as they are now: number and size.
    fn sizes(&self) -> Vec<(u16, u64)> {
        let now = self.past.at(Lsn(u64::MAX));
        now.into_iter().map(|(number, disk)| (number, disk.bytes.len() as u64)).collect()
    }

    fn record(&mut self, record: &Record) {
        if record.kind == Kind::Mark {
            let label = format!("at {}", self.source.lsn.next());
            self.source.note(RecordKind::Mark, None, Note::Mark(Mark { label: label.clone(), ..Mark::default() }));
            return self.log(What::Mark(label));
        }
        let sizes = self.sizes();
        let (number, size) = sizes[usize::from(record.disk) % sizes.len()];
        let start = u64::from(record.sector) * 7 % (size / SECTOR) * SECTOR;
        let extent = Extent::new(start, (u64::from(record.sectors.max(1)) * SECTOR).min(size - start));
        match record.kind {
            Kind::Zero => self.source.clear(RecordKind::Zero, number, extent),
            Kind::Discard => self.source.clear(RecordKind::Discard, number, extent),
            Kind::Data(fill) => self.source.write(number, extent, fill),
            Kind::Mark => {}
        }
        self.log_write(number, extent);
    }

    /// A write of these bytes, which waits to be appended.
    pub(crate) fn bytes(&mut self, number: u16, offset: u64, bytes: &[u8]) {
        self.source.bytes(number, offset, bytes);
        self.log_write(number, Extent::new(offset, bytes.len() as u64));
    }

    /// What the newest record wrote.
    fn log_write(&mut self, number: u16, extent: Extent) {
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

    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.append()?;
        self.rig.writer.request_sync();
        self.settle()
    }

    /// A clean stop.
    pub(crate) fn close(&mut self) -> Outcome<()> {
        self.flush()?;
        self.rig.writer.close(true);
        self.settle()?;
        let state = self.rig.writer.state();
        if state == WriterState::Closed { Ok(()) } else { Err(format!("{state:?} after a stop")) }
    }

    fn ids(&mut self) -> IdSource {
        let mut dice = Dice(self.dice.next());
        Box::new(move || std::array::from_fn(|_| dice.next() as u8))
    }
}
