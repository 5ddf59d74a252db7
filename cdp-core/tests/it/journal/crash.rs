//! A power cut at every storage effect of a life, and again in the life after it: what was durable is there, and what is
//! there is what a model says, at every LSN that is looked at.

use super::kit::*;
use cdp_core::frame::Compression;
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::sync::Arc;

/// A mistake that a driver could make; the test has to notice it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mistake {
    None,
    /// Says that a file is synced when it is not.
    NoSync,
    /// Says that a directory is synced when it is not.
    NoSyncDir,
    /// Says that a write is through when it was only begun.
    EarlyWrites,
}

/// What somebody outside believes.
#[derive(Default)]
struct Believed {
    durable: Lsn,
    generation: Generation,
}

/// A driver that carries effects out and completes them in any order. It may stop at any time and come back later.
pub(super) fn shuffle(rig: &mut Rig, dice: &mut Dice, mistake: Mistake) {
    let rounds = if dice.below(4) == 0 { u64::MAX } else { dice.below(4) };
    shuffle_rounds(rig, dice, mistake, rounds);
}

pub(super) fn shuffle_rounds(rig: &mut Rig, dice: &mut Dice, mistake: Mistake, rounds: u64) {
    for _ in 0..rounds {
        let mut batch = Vec::new();
        while batch.len() < 4 {
            let Some(effect) = rig.writer.poll(rig.now) else { break };
            hold(&mut batch, effect);
        }
        if batch.is_empty() {
            return;
        }
        let mut late = Vec::new();
        while !batch.is_empty() {
            let (id, effect) = batch.swap_remove(dice.below(batch.len() as u64) as usize);
            let outcome = match (&effect, mistake) {
                (Effect::Sync { .. }, Mistake::NoSync) | (Effect::SyncDir { .. }, Mistake::NoSyncDir) => Ok(()),
                (Effect::Write { .. }, Mistake::EarlyWrites) => {
                    late.push(effect);
                    Ok(())
                }
                _ => rig.executor.run(&effect),
            };
            rig.writer.completed(rig.now, id, outcome);
            // Somebody may look, and sync, between any two completions.
            if let Some((id, effect)) = rig.writer.poll(rig.now) {
                hold(&mut batch, (id, effect));
            }
        }
        for effect in late {
            let _ = rig.executor.run(&effect);
        }
    }
}

/// One more effect is under way: never two syncs of one file, of which only one would be told of a write that was lost.
fn hold(batch: &mut Vec<(EffectId, Effect)>, more: (EffectId, Effect)) {
    let synced = |effect: &Effect| if let Effect::Sync { file } = effect { Some(*file) } else { None };
    let beside = synced(&more.1).is_some_and(|file| batch.iter().any(|(_, effect)| synced(effect) == Some(file)));
    assert!(!beside, "{more:?} beside another one");
    batch.push(more);
}

/// Lives on one timeline until the power goes or the life is over.
fn live(
    disk: &SimDisk,
    rig: &mut Rig,
    source: &mut Source,
    (dice, mistake): (&mut Dice, Mistake),
    believed: &mut Believed,
) -> Result<(), String> {
    let note = |rig: &Rig, believed: &mut Believed| {
        believed.durable = believed.durable.max(rig.writer.durable().lsn());
        believed.generation = believed.generation.max(rig.writer.manifest_durable());
    };
    for round in 0..14u64 {
        (0..1 + dice.below(3)).for_each(|_| source.any());
        for frame in source.frames(if dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) }) {
            let offered = rig.offer(frame, |rig| {
                shuffle(rig, dice, mistake);
                note(rig, believed);
            });
            match offered {
                Ok(Some(_)) => {}
                Ok(None) | Err(Refusal::Failed(_)) if disk.is_cut() => {
                    note(rig, believed);
                    return Ok(());
                }
                Ok(None) => return Err("a frame is never taken".to_owned()),
                Err(why) => return Err(format!("what follows is refused: {why}")),
            }
        }
        match dice.below(6) {
            0 | 1 => rig.writer.request_sync(),
            2 => rig.writer.roll(),
            // Where it is sealed, also a new replica key under load.
            3 if dice.below(2) == 0 => rig.rotate(dice.next()),
            3 => drop(rig.writer.edit(|manifest| manifest.name = format!("round {round}"))),
            _ => {}
        }
        rig.now = rig.now.after(dice.below(30_000_000));
        shuffle(rig, dice, mistake);
        note(rig, believed);
    }
    if dice.below(2) == 0 {
        rig.writer.close(true);
        shuffle_rounds(rig, dice, mistake, u64::MAX);
        note(rig, believed);
    }
    Ok(())
}

/// One story: a life, a cut, what is found, another life, another cut, what is found. Gives the number of effects of the
/// first life, or what was wrong.
fn story(seed: u64, cut: u64, mistake: Mistake, at_rest: &AtRest) -> Result<(u64, u64), String> {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::new();
    let mut source = Source::new(seed, timeline(1));
    source.size = 256 << 10;
    let mut path_so_far: Vec<(Timeline, Lsn)> = Vec::new();
    let mut first = (0, 0);
    let mut believed = Believed::default();
    for life in 1..=3u8 {
        disk.cut_at(if life == 1 { cut } else { 1 + dice.below(120) });
        let opened = if life == 1 {
            let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
            create(&disk, manifest).map(|opened| at_rest.made(opened))
        } else {
            at_rest.open(&disk, None)
        };
        match opened {
            Ok(opened) => {
                let durable = opened.durable.lsn();
                if durable < believed.durable {
                    return Err(format!("life {life}: LSN {durable} is there, {} was durable", believed.durable));
                }
                if opened.manifest.generation < believed.generation {
                    return Err(format!("life {life}: a durable manifest is gone"));
                }
                let said =
                    opened.manifest.timelines.last().filter(|_| opened.manifest.clean).and_then(|info| info.last);
                if said.is_some_and(|said| said != durable) {
                    return Err(format!("life {life}: a clean stop at {said:?} was said, LSN {durable} is there"));
                }
                if let Some(last) = path_so_far.last_mut() {
                    last.1 = durable;
                }
                check(&disk, &opened, &source, &path_so_far, &mut dice, at_rest)
                    .map_err(|e| format!("life {life}: {e}"))?;
                believed.durable = durable;
                let storage: Arc<dyn Storage> = Arc::new(disk.clone());
                let options = Options { segment_records: 24, ..options() };
                let mut rig = Rig::with_at_rest(storage, opened, dice.next(), options, at_rest);
                let id = timeline(life);
                let parent = path_so_far.last().map(|(parent, _)| *parent);
                let number = u32::from(life);
                let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
                source.fork(id, durable);
                path_so_far.push((id, durable));
                let info =
                    TimelineInfo { id, number, parent, fork: durable, last: None, state, role, opened: WallTime(1) };
                rig.writer.open_timeline(info);
                shuffle(&mut rig, &mut dice, mistake);
                live(&disk, &mut rig, &mut source, (&mut dice, mistake), &mut believed)
                    .map_err(|wrong| format!("life {life}: {wrong}"))?;
            }
            // The power went while the store was made or opened: it opens at the next attempt.
            Err(_) if disk.is_cut() => {}
            Err(OpenError::NoStore { .. }) if believed.generation == Generation(0) => return Ok(first),
            Err(error) => return Err(format!("life {life}: {error}")),
        }
        if life == 1 {
            first = (disk.effects(), disk.trace());
        }
        disk = disk.after_cut(match dice.below(4) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Some(dice.next()),
        });
    }
    at_rest.check().map(|_| first)
}

fn check(
    disk: &SimDisk,
    opened: &Opened,
    source: &Source,
    path_so_far: &[(Timeline, Lsn)],
    dice: &mut Dice,
    at_rest: &AtRest,
) -> Result<(), String> {
    let (snapshot, reader) = (&opened.snapshot(), at_rest.reader(Arc::new(disk.clone()), &opened.manifest));
    let Some((on, upto)) = path_so_far.last().copied() else { return Ok(()) };
    for lsn in [upto, Lsn(dice.below(upto.0 + 1))] {
        let cut = |(timeline, end): &(Timeline, Lsn)| (*timeline, (*end).min(lsn));
        let elements: Vec<_> = path_so_far.iter().map(cut).collect();
        let view = View::open(&path(&reader, snapshot, &elements), 1 << 20).map_err(|error| error.to_string())?;
        let number = 1 + dice.below(2) as u16;
        let found = restore(&view, number, source.size).map_err(|error| error.to_string())?;
        if found != source.model.at(&elements, number, source.size as usize) {
            return Err(format!("disk {number} is wrong at LSN {lsn} of timeline {on}"));
        }
    }
    let findings = reader.verify(snapshot, |_| true).findings;
    findings.first().map_or(Ok(()), |finding| Err(format!("verify: {}", finding.what)))
}

/// Crash points per seed are all effects of the first life; `CDP_CRASH_SEEDS` asks for more seeds.
#[test]
fn a_cut_at_every_effect_loses_nothing_that_was_durable() {
    let seeds: u64 = std::env::var("CDP_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut points = 0;
    // One in four is told of a store that is sealed at rest too.
    let sealed = (0..seeds).step_by(4).map(|seed| (seed, true));
    for (seed, sealed) in (0..seeds).map(|seed| (seed, false)).chain(sealed) {
        let told = |cut| story(seed, cut, Mistake::None, &if sealed { AtRest::sealed() } else { AtRest::default() });
        let what = if sealed { "sealed at rest" } else { "not sealed" };
        let (effects, trace) = told(u64::MAX).unwrap_or_else(|wrong| panic!("seed {seed}, {what}: {wrong}"));
        assert_eq!(told(u64::MAX), Ok((effects, trace)), "the same seed gives the same trace");
        for cut in 1..=effects {
            let told = told(cut);
            assert!(told.is_ok(), "seed {seed}, {what}, power cut at effect {cut}: {}", told.unwrap_err());
            points += 1;
        }
    }
    println!("{points} crash points, seeds 0..{seeds}");
}

#[test]
fn a_driver_that_lies_is_caught() {
    for mistake in [Mistake::NoSync, Mistake::NoSyncDir, Mistake::EarlyWrites] {
        let caught =
            (0..20).any(|seed| (1..100).step_by(3).any(|cut| story(seed, cut, mistake, &AtRest::default()).is_err()));
        assert!(caught, "{mistake:?} goes unnoticed");
    }
}
