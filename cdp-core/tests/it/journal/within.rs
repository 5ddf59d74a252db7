//! A journal that goes on within a record: of a long write the first parts are there when the power goes, and the rest comes behind
//! them, from whoever still has it.

use super::crash::{Mistake, shuffle, shuffle_rounds};
use super::kit::*;
use cdp_core::frame::{Compression, EncodedFrame};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::merge::Merge;
use cdp_core::replica::{Bases, retention};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the peer still has: every frame of the timeline.
struct Peer {
    source: Source,
    kept: Vec<EncodedFrame>,
}

impl Peer {
    fn new(seed: u64, size: u64) -> Self {
        let mut source = Source::new(seed, timeline(1));
        source.size = size;
        Self { source, kept: Vec::new() }
    }

    /// Long writes and short ones; frames end anywhere.
    fn write(&mut self, dice: &mut Dice, records: u64) {
        for _ in 0..records {
            if dice.below(3) == 0 {
                self.source.any();
                continue;
            }
            let (number, size) = (1 + dice.below(2) as u16, self.source.size / SECTOR);
            let sectors = size / 3 + dice.below(size * 2 / 3);
            let at = dice.below(size - sectors + 1);
            let (extent, fill) = (Extent::new(at * SECTOR, sectors * SECTOR), dice.next() as u8);
            match dice.below(3) {
                0 => self.source.write_with_zeros(number, extent, fill),
                _ => self.source.write(number, extent, fill),
            }
        }
        let compression = if dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) };
        self.kept.extend(self.source.short_frames(compression, 1 + dice.below(9) as usize));
    }

    /// What follows a place: it continues that exactly.
    fn after(&self, position: Position) -> Vec<EncodedFrame> {
        let rest = self.kept.iter().skip_while(|frame| frame.info.end() <= position);
        let mut rest: Vec<_> = rest.cloned().collect();
        if let Some(first) = rest.first_mut() {
            *first = first.after(position).unwrap().unwrap();
            assert_eq!(first.info.begin(), position);
        }
        rest
    }

    fn fork(&mut self, id: Timeline, above: Lsn) {
        self.source.fork(id, above);
        self.kept.clear();
    }

    /// The disks at an LSN are what the model says; none of it may be seen before it is whole.
    fn check(&self, rig: &Rig, lineage: &[(Timeline, Lsn)], lsns: &[Lsn]) -> Result<(), String> {
        let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
        for lsn in lsns {
            let cut = |(timeline, end): &(Timeline, Lsn)| (*timeline, (*end).min(*lsn));
            let elements: Vec<_> = lineage.iter().map(cut).collect();
            let view = View::open(&path(&reader, &snapshot, &elements), 1 << 20).map_err(|error| error.to_string())?;
            for number in 1..=2 {
                let found = restore(&view, number, self.source.size).map_err(|error| error.to_string())?;
                if found != self.source.model.at(&elements, number, self.source.size as usize) {
                    return Err(format!("disk {number} is wrong at LSN {lsn} of {elements:?}"));
                }
            }
        }
        let findings = reader.verify(&snapshot, |_| true).findings;
        findings.first().map_or(Ok(()), |finding| Err(format!("verify: {}", finding.what)))
    }
}

/// What came of stories: that they are about what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Told {
    effects: u64,
    /// Lives that went on within a record, and those that did so in the record of the life before.
    within: u64,
    again: u64,
    /// Records with parts in three segments and more.
    spread: u64,
    forks: u64,
}

const LIVES: u8 = 5;

/// Appends what follows until the power goes or everything is there; somebody may sync, roll or look at any time.
fn live(rig: &mut Rig, frames: Vec<EncodedFrame>, dice: &mut Dice, durable: &mut Lsn) -> Result<(), String> {
    for frame in frames {
        let offered = rig.offer(frame, |rig| {
            shuffle(rig, dice, Mistake::None);
            *durable = rig.writer.durable().lsn();
        });
        match offered {
            Err(Refusal::Failed(_)) => return Ok(()),
            Err(why) => return Err(format!("what follows is refused: {why}")),
            Ok(_) => {}
        }
        match dice.below(6) {
            0 => rig.writer.request_sync(),
            1 => rig.writer.roll(),
            _ => {}
        }
        rig.now = rig.now.after(dice.below(30_000_000));
        shuffle(rig, dice, Mistake::None);
        *durable = rig.writer.durable().lsn();
    }
    Ok(())
}

/// Lives on one timeline and on forks of it, each of which ends where the power goes; the last one ends well.
fn story(seed: u64, cut: u64, at_rest: &AtRest) -> Result<Told, String> {
    let mut dice = Dice(seed);
    let (mut disk, mut peer, mut told) = (SimDisk::new(), Peer::new(seed, 640 << 10), Told::default());
    let mut lineage = vec![(timeline(1), Lsn::ZERO)];
    let (mut durable, mut before) = (Lsn::ZERO, Position::default());
    for life in 1..=LIVES {
        disk.cut_at(match life {
            1 => cut,
            LIVES => u64::MAX,
            // Some so early that nothing more of the record comes.
            _ => {
                let most = [25, 90][dice.below(2) as usize];
                1 + dice.below(most)
            }
        });
        let looked = look_through(&disk, DIRECTORY, None, &at_rest.holder()).ok();
        let opened = if life == 1 {
            let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
            create(&disk, manifest).map(|opened| at_rest.made(opened))
        } else {
            at_rest.open(&disk, None)
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(OpenError::NoStore { .. }) if durable == Lsn::ZERO => return Ok(told),
            Err(_) if disk.is_cut() => {
                disk = disk.after_cut(Survival::Some(dice.next()));
                continue;
            }
            Err(error) => return Err(format!("life {life}: {error}")),
        };
        let found = opened.durable.lsn();
        if looked.is_some_and(|looked| looked.damage.is_some() || looked.snapshot.written() != found) {
            return Err(format!("life {life}: who only looks does not see {found}"));
        }
        if found < durable {
            return Err(format!("life {life}: LSN {found} is there, {durable} was durable"));
        }
        durable = found;
        let open = opened.manifest.timelines.iter().rev().find(|info| info.state == TimelineState::Open);
        let (open, last) = (open.map(|info| info.id), lineage[lineage.len() - 1].0);
        // The manifest that opens the last one may be lost.
        let wanted = lineage.pop_if(|_| open != Some(last)).map(|_| last);
        let tail = opened.tail.position().ok_or("nobody can tell where it ends")?;
        if (tail.parts == Position::WHOLE) != (tail.lsn <= durable) {
            return Err(format!("life {life}: it ends at {tail}, and {durable} is whole"));
        }
        let mut rig = Rig::with_at_rest(Arc::new(disk.clone()), opened, dice.next(), options(), at_rest);
        lineage.iter_mut().last().into_iter().for_each(|last| last.1 = durable);
        let some = [durable, Lsn(dice.below(durable.0 + 1))];
        peer.check(&rig, &lineage, &some).map_err(|wrong| format!("life {life}: {wrong}"))?;
        let earlier = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &lineage), 1 << 20);
        let (earlier, at) = (earlier.map_err(|error| error.to_string())?, lineage.clone());
        let id = wanted.or_else(|| (dice.below(5) == 0).then_some(timeline(10 + life)));
        let from = if let Some(id) = id {
            rig.start(id, open, durable);
            if wanted.is_none() {
                peer.fork(id, durable);
                told.forks += 1;
            }
            lineage.push((id, durable));
            Position::whole(Lsn::ZERO)
        } else {
            let within = tail.parts != Position::WHOLE;
            told.within += u64::from(within);
            told.again += u64::from(within && before.lsn == tail.lsn && before.parts != Position::WHOLE);
            tail
        };
        before = tail;
        if peer.after(from).is_empty() {
            peer.write(&mut dice, 2 + u64::from(life == 1) * 3);
        }
        live(&mut rig, peer.after(from), &mut dice, &mut durable).map_err(|wrong| format!("life {life}: {wrong}"))?;
        // Whoever reads a moment all the while reads the same.
        for number in 1..=2 {
            let found = restore(&earlier, number, peer.source.size);
            let same = found.is_ok_and(|found| found == peer.source.model.at(&at, number, peer.source.size as usize));
            if !same && !disk.is_cut() {
                return Err(format!("life {life}: disk {number} changed under who reads {at:?}"));
            }
        }
        if life == 1 {
            told.effects = disk.effects();
        }
        if life == LIVES {
            end_well(&mut rig, &mut peer, &mut lineage, &mut told)?;
            break;
        }
        disk = disk.after_cut(match dice.below(4) {
            0 => Survival::Everything,
            1 => Survival::Nothing,
            _ => Survival::Some(dice.next()),
        });
    }
    at_rest.check().map(|_| told)
}

/// Everything is durable and restored at every LSN; then the same with an index that is merged and footers that are emptied.
fn end_well(rig: &mut Rig, peer: &mut Peer, lineage: &mut [(Timeline, Lsn)], told: &mut Told) -> Result<(), String> {
    shuffle_rounds(rig, &mut Dice(1), Mistake::None, u64::MAX);
    rig.sync();
    lineage.last_mut().unwrap().1 = peer.source.lsn;
    if rig.writer.durable().lsn() != peer.source.lsn {
        return Err(format!("{} is durable in the end, and not {}", rig.writer.durable().lsn(), peer.source.lsn));
    }
    let there = |(lsn, on): &(Lsn, Timeline)| lineage.iter().any(|(timeline, upto)| timeline == on && lsn <= upto);
    let lsns = peer.source.model.history.iter().map(|(lsn, on, ..)| (*lsn, *on)).filter(there);
    let lsns: Vec<Lsn> = lsns.map(|(lsn, _)| lsn).collect();
    peer.check(rig, lineage, &lsns)?;
    rig.writer.roll();
    rig.sync();
    // Runs are of eight segments.
    while rig.writer.manifest().segments.len() < 18 {
        peer.kept.clear();
        peer.source.any();
        peer.source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.writer.roll();
        rig.sync();
    }
    lineage.last_mut().unwrap().1 = peer.source.lsn;
    let mut parts: BTreeMap<Lsn, u64> = BTreeMap::new();
    for summary in rig.writer.manifest().segments.iter().filter_map(|segment| segment.summary()) {
        let (first, last) = (summary.first_lsn, summary.last_lsn);
        *parts.entry(first).or_default() += 1;
        *parts.entry(last).or_default() += u64::from(last != first);
    }
    told.spread += parts.values().filter(|segments| **segments > 2).count() as u64;
    let made = (rig.merge_index(1 << 16), rig.empty_footers());
    if made.0 == 0 || made.1 == 0 {
        return Err(format!("{made:?} runs were made and emptied"));
    }
    peer.check(rig, lineage, &lsns).map_err(|wrong| format!("with a merged index: {wrong}"))
}

/// Crash points per seed are all effects of the first life, or one in three where nothing is optimised; `CDP_CRASH_SEEDS` asks for
/// more seeds.
#[test]
fn whatever_is_cut_within_a_record_goes_on_there_and_every_moment_is_what_was_written() {
    let seeds: u64 = std::env::var("CDP_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let stride = if cfg!(debug_assertions) { 3 } else { 1 };
    let (mut sum, mut points) = (Told::default(), 0);
    for seed in 0..seeds {
        let at_rest = || AtRest::both()[seed as usize % 2].clone();
        let whole = story(seed, u64::MAX, &at_rest()).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        for cut in (1 + seed % stride..=whole.effects).step_by(stride as usize) {
            let told = story(seed, cut, &at_rest());
            let told = told.unwrap_or_else(|wrong| panic!("seed {seed}, power cut at effect {cut}: {wrong}"));
            let Told { within, again, spread, forks, .. } = told;
            sum = Told {
                within: sum.within + within,
                again: sum.again + again,
                spread: sum.spread + spread,
                forks: sum.forks + forks,
                effects: sum.effects + whole.effects,
            };
            points += 1;
        }
    }
    println!("{points} crash points, seeds 0..{seeds}: {sum:?}");
    assert!(sum.within > points / 4 && sum.again > 0 && sum.spread > 0 && sum.forks > 0, "{sum:?}");
}

/// Parts that are zeros have no chunk that would say of which segment they are.
#[test]
fn a_run_over_a_record_in_two_segments_with_zeros_in_the_second_verifies() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut peer = Peer::new(1, 1 << 20);
    rig.start(timeline(1), None, Lsn::ZERO);
    peer.source.write_with_zeros(1, Extent::new(0, 8 * PART_MAX), 1);
    for frame in peer.source.short_frames(Compression::None, 2) {
        rig.append(frame);
        rig.writer.roll();
        rig.sync();
    }
    (0..12).for_each(|_| peer.source.write(1, Extent::new(0, 512), 2));
    for frame in peer.source.short_frames(Compression::None, 1) {
        rig.append(frame);
        rig.writer.roll();
        rig.sync();
    }
    assert_eq!((rig.merge_index(1 << 16), rig.empty_footers()), (2, 2));
    let lineage = [(timeline(1), peer.source.lsn)];
    peer.check(&rig, &lineage, &[Lsn(1), Lsn(2), peer.source.lsn]).unwrap();
}

/// A journal that ends within a record: two short writes, then so many frames of a long one. Gives what follows too.
fn cut_within(storage: &Arc<Memory>, frames: usize) -> (Rig, Peer) {
    let mut rig = Rig::create(Arc::clone(storage) as Arc<dyn Storage>);
    let mut peer = Peer::new(1, 1 << 20);
    rig.start(timeline(1), None, Lsn::ZERO);
    peer.source.write(1, Extent::new(0, 4096), 1);
    peer.source.write(2, Extent::new(0, 4096), 2);
    peer.source.write(1, Extent::new(0, 1 << 20), 3);
    peer.source.write(1, Extent::new(512, 512), 4);
    peer.kept = peer.source.short_frames(Compression::None, 5);
    peer.kept[..frames].iter().for_each(|frame| drop(rig.append(frame.clone())));
    rig.sync();
    drop(rig);
    (Rig::open(Arc::clone(storage) as Arc<dyn Storage>, 2).unwrap(), peer)
}

fn refusal(rig: &mut Rig, frame: &EncodedFrame) -> Refusal {
    rig.writer.append(rig.now, frame.clone()).unwrap_err().why
}

#[test]
fn behind_the_first_parts_of_a_record_only_the_next_one_is_taken() {
    let storage = Arc::new(Memory::new());
    let (mut rig, mut peer) = cut_within(&storage, 3);
    let tail = open(storage.as_ref(), DIRECTORY, None).unwrap().tail;
    let ends = Position { lsn: Lsn(3), parts: 13 };
    assert_eq!((tail.position(), rig.writer.durable().lsn()), (Some(ends), Lsn(2)));
    rig.drain();
    let rest = peer.after(ends);
    // What comes later, what came before, and another record, as if the rest had been left out.
    assert!(matches!(refusal(&mut rig, &rest[1]), Refusal::Chain { .. }));
    assert!(matches!(refusal(&mut rig, &peer.kept[2]), Refusal::Chain { .. }));
    let mut other = Peer::new(2, 1 << 20);
    (other.source.lsn, other.source.prev) = (Lsn(3), Lsn(3));
    other.source.write(1, Extent::new(0, 512), 5);
    let skipping = other.source.frames(Compression::None).remove(0);
    assert!(matches!(refusal(&mut rig, &skipping), Refusal::Chain { .. }));
    // The same record from its beginning, and one of that name that has fewer parts.
    (other.source.lsn, other.source.prev) = (Lsn(2), Lsn(3));
    other.source.write(1, Extent::new(0, 1 << 20), 3);
    assert!(matches!(refusal(&mut rig, &other.source.frames(Compression::None)[0]), Refusal::Chain { .. }));
    (other.source.lsn, other.source.prev) = (Lsn(2), Lsn(2));
    other.source.write(1, Extent::new(0, 14 * PART_MAX), 3);
    let shorter = other.source.frames(Compression::None).pop().unwrap().after(ends).unwrap().unwrap();
    assert_eq!(shorter.info.begin(), ends);
    assert!(matches!(refusal(&mut rig, &shorter), Refusal::Chain { .. }));
    // Whole it is with its last part only.
    for frame in &rest {
        let whole = rig.append(frame.clone()).whole;
        rig.sync();
        assert_eq!((whole, rig.writer.durable().lsn()), (frame.info.end().whole_lsn(), whole));
    }
    let lineage = [(timeline(1), peer.source.lsn)];
    peer.check(&rig, &lineage, &[Lsn(1), Lsn(2), Lsn(3), Lsn(4)]).unwrap();
    rig.close();
    assert_eq!(open(storage.as_ref(), DIRECTORY, None).unwrap().tail.position(), Some(Position::whole(Lsn(4))));
    peer.kept.clear();
}

/// Sealed or not, people are told that more has to come, and which part of what.
#[test]
fn people_see_within_which_record_a_journal_ends() {
    let storage = Arc::new(Memory::new());
    let words = |number| {
        let name = format!("{DIRECTORY}/{}", segment_name(number));
        inspect(storage.open(&name, false).unwrap().as_ref()).unwrap().unwrap()
    };
    let ends = |parts| format!("the frames end within LSN 3, of which {parts} of 32 parts are there\n");
    let (mut rig, peer) = cut_within(&storage, 2);
    let sealed = words(rig.writer.manifest().segments[0].number);
    for expected in [ends(8).as_str(), "footer: sealed", "LSN 1 to 3, whole to 2"] {
        assert!(sealed.contains(expected), "{expected:?} in\n{sealed}");
    }
    rig.drain();
    let mut rest = peer.after(Position { lsn: Lsn(3), parts: 8 }).into_iter();
    rig.append(rest.next().unwrap());
    rig.sync();
    let active = |rig: &Rig| {
        let is = |segment: &&SegmentInfo| segment.state == SegmentState::Active;
        words(rig.writer.manifest().segments.iter().find(is).unwrap().number)
    };
    let open = active(&rig);
    assert!(open.contains(&ends(13)) && open.contains("end: not sealed"), "{open}");
    for frame in rest {
        rig.append(frame);
        rig.sync();
    }
    let whole = active(&rig);
    assert!(!whole.contains("the frames end within") && whole.contains("end: not sealed"), "{whole}");
}

/// The parts that are there count for nothing where another timeline begins; and that one is empty, whatever the one before left.
#[test]
fn another_timeline_forks_below_an_unfinished_record_and_begins_at_its_own_beginning() {
    let storage = Arc::new(Memory::new());
    let (mut rig, mut peer) = cut_within(&storage, 3);
    rig.start(timeline(2), Some(timeline(1)), Lsn(2));
    drop(rig);
    let opened = open(storage.as_ref(), DIRECTORY, None).unwrap();
    assert_eq!((opened.tail, opened.durable.lsn()), (Tail::Whole(Lsn::ZERO), Lsn(2)));
    let mut rig = Rig::on(storage, opened, 3);
    assert!(matches!(refusal(&mut rig, &peer.kept[3]), Refusal::Timeline { .. }));
    peer.fork(timeline(2), Lsn(3));
    peer.source.write(1, Extent::new(0, 4096), 9);
    peer.source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.sync();
    let lineage = [(timeline(1), Lsn(2)), (timeline(2), peer.source.lsn)];
    peer.check(&rig, &lineage, &[Lsn(1), Lsn(2), peer.source.lsn]).unwrap();
}

/// What is behind a fork without being whole is not durable by what comes later either.
#[test]
fn the_first_parts_of_a_record_behind_a_fork_are_never_called_durable() {
    let storage = Arc::new(Memory::new());
    let (mut rig, mut peer) = cut_within(&storage, 3);
    rig.start(timeline(2), Some(timeline(1)), Lsn(2));
    peer.fork(timeline(2), Lsn(3));
    peer.source.write(1, Extent::new(0, 1 << 20), 9);
    let frames = peer.source.short_frames(Compression::None, 5);
    rig.append(frames[0].clone());
    rig.sync();
    rig.writer.roll();
    rig.append(frames[1].clone());
    rig.sync();
    drop(rig);
    for _ in 0..2 {
        let opened = open(storage.as_ref(), DIRECTORY, None).unwrap();
        assert_eq!(opened.durable.lsn(), Lsn(2));
        assert_eq!(opened.tail.position(), Some(frames[1].info.end()));
        let whole: Vec<_> =
            opened.manifest.segments.iter().map(|segment| segment.summary().unwrap().whole_lsn).collect();
        assert_eq!(whole, [Lsn(2); 3]);
    }
}

/// The head of the last frame says which part is next. Where it is damaged nobody knows, and what is durable is there all the same.
#[test]
fn a_journal_that_cannot_say_within_which_part_it_ends_takes_another_timeline_only() {
    let storage = Arc::new(Memory::new());
    let (rig, peer) = cut_within(&storage, 3);
    let name = format!("{DIRECTORY}/{}", segment_name(rig.writer.manifest().segments[0].number));
    drop(rig);
    let file = storage.open(&name, true).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    let heads = bytes.windows(8).enumerate().filter(|(_, bytes)| *bytes == b"CDPENVL\x01");
    let at = heads.map(|(at, _)| at as u64).max().unwrap() + 64 + 8;
    file.write_all_at(at, &[0xff; 8]).unwrap();
    let opened = open(storage.as_ref(), DIRECTORY, None).unwrap();
    assert_eq!((opened.tail, opened.durable.lsn()), (Tail::Lost(Lsn(3)), Lsn(2)));
    let mut rig = Rig::on(storage, opened, 3);
    assert!(matches!(refusal(&mut rig, &peer.kept[3]), Refusal::Timeline { open: None, .. }));
    rig.start(timeline(2), Some(timeline(1)), Lsn(2));
    assert_eq!(rig.writer.manifest().timelines[0].last, Some(Lsn(2)));
}

/// A disk of a rig whose bases are merged into.
struct Merging {
    storage: Arc<dyn Storage>,
    rig: Rig,
    bases: Bases,
}

impl Merging {
    /// Merges up to there, and drops the segments that are in the base whole.
    fn merge(&mut self, lsn: Lsn) {
        let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(1) };
        let moment = StampedMoment { timeline: timeline(1), lsn, stamp };
        retention::begin(&mut self.rig.writer, moment, None, None);
        self.rig.drain();
        let path = path(&self.rig.reader(), &self.rig.writer.snapshot(), &[(timeline(1), lsn)]);
        let now = Now { wall: WallTime(1), mono: MonoTime(1) };
        let bases = Arc::new(std::mem::take(&mut self.bases).changed_by(moment));
        let manifest = self.rig.writer.manifest();
        let mut merge = Merge::begin(&self.storage, manifest, moment, &path, &bases, None).unwrap();
        while merge.step(now, 1 << 20).unwrap() {}
        let merged = merge.finish(now).unwrap();
        retention::end(&mut self.rig.writer, &merged);
        self.rig.drain();
        self.open_base();
    }

    /// Another start has keys of its own, by which the base is read too.
    fn start_again(&mut self, rig: Rig) {
        self.rig = rig;
        self.open_base();
    }

    /// Reads the base that the manifest names.
    fn open_base(&mut self) {
        let Manifest { replica, disks, .. } = self.rig.writer.manifest();
        let root = disks[0].base.unwrap().into();
        let base = Base::open_with(self.storage.as_ref(), *replica, disk(1), root, Arc::clone(&self.rig.keys));
        let mut bases = Bases::default();
        bases.insert(disk(1), Arc::new(base.unwrap()));
        self.bases = bases;
    }

    fn read(&self, lsn: Lsn) -> Vec<u8> {
        let path = path(&self.rig.reader(), &self.rig.writer.snapshot(), &[(timeline(1), lsn)]);
        let mut found = vec![0; 1 << 20];
        View::open(&path, 1 << 20).unwrap().read(disk(1), 0, &mut found, &self.bases).unwrap();
        found
    }
}

/// A merge that ends before the record leaves the segment with its first parts; one that takes the record takes all of it.
#[test]
fn merges_leave_the_parts_of_an_unfinished_record_and_take_a_whole_one_whole() {
    AtRest::both().iter().for_each(merges_around_an_unfinished_record);
}

fn merges_around_an_unfinished_record(at_rest: &AtRest) {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new());
    let mut rig = Rig::create_at_rest(Arc::clone(&storage), at_rest);
    rig.drain();
    let replica = rig.writer.manifest().replica;
    let mut base = BaseWriter::create(storage.as_ref(), replica, disk(1), 1 << 20).unwrap();
    base.data(&[0; 1 << 20], Lsn::ZERO).unwrap();
    let base = Some(base.finish(storage.as_ref(), Lsn::ZERO).unwrap().named(Lsn::ZERO));
    let (size, added, source) = (1 << 20, Lsn::ZERO, String::new());
    let info = DiskInfo { id: disk(1), name: "disk".into(), size, source, added, removed: None, stopped: None, base };
    rig.writer.edit(|manifest| manifest.disks.push(info));
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut peer = Peer::new(1, size);
    peer.source.write(1, Extent::new(0, 8192), 1);
    peer.source.write(1, Extent::new(512, 8192), 2);
    peer.source.write_with_zeros(1, Extent::new(512, size - 1024), 3);
    peer.source.write(1, Extent::new(1024, 512), 4);
    peer.kept = peer.source.short_frames(Compression::None, 5);
    peer.kept[..3].iter().for_each(|frame| drop(rig.append(frame.clone())));
    rig.sync();
    drop(rig);
    let reopen = |seed| Rig::open_at_rest(Arc::clone(&storage), seed, at_rest).unwrap();
    let expected = |lsn| peer.source.model.at(&[(timeline(1), Lsn(lsn))], 1, size as usize);
    let mut merging = Merging { rig: reopen(2), storage: Arc::clone(&storage), bases: Bases::default() };
    merging.open_base();
    merging.merge(Lsn(2));
    assert_eq!(merging.rig.writer.manifest().segments.iter().filter_map(|segment| segment.summary()).count(), 1);
    assert!(merging.read(Lsn(2)) == expected(2));
    // Another start finds the same place.
    merging.start_again(reopen(3));
    let tail = open_with(storage.as_ref(), DIRECTORY, None, &at_rest.holder()).unwrap().tail.position().unwrap();
    assert_eq!((tail.lsn, tail.parts != Position::WHOLE), (Lsn(3), true));
    peer.after(tail).into_iter().for_each(|frame| drop(merging.rig.append(frame)));
    merging.rig.sync();
    assert!((2..5).all(|lsn| merging.read(Lsn(lsn)) == expected(lsn)));
    merging.rig.writer.roll();
    merging.rig.drain();
    merging.merge(Lsn(3));
    assert_eq!(merging.rig.writer.manifest().segments.iter().filter_map(|segment| segment.summary()).count(), 1);
    assert!((3..5).all(|lsn| merging.read(Lsn(lsn)) == expected(lsn)));
    merging.start_again(reopen(4));
    assert_eq!(merging.rig.writer.durable().lsn(), Lsn(4));
    assert!((3..5).all(|lsn| merging.read(Lsn(lsn)) == expected(lsn)));
}
