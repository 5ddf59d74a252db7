//! A power cut at every storage effect of a life in which the index is merged and footers are emptied: data is as it was whatever
//! became of a run, and what the manifest names and what lies there are the same.

use super::crash::{Mistake, shuffle, shuffle_rounds};
use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::sync::Arc;

fn rig(disk: &SimDisk, opened: Opened, seed: u64) -> Rig {
    Rig::with(Arc::new(disk.clone()), opened, seed, Options { segment_records: 24, ..options() })
}

/// One segment more.
fn segment(rig: &mut Rig, source: &mut Source, dice: &mut Dice) {
    (0..2).for_each(|_| source.any());
    let label = format!("at {}", source.lsn);
    source.note(RecordKind::Mark, None, Note::Mark(Mark { label, ..Mark::default() }));
    for frame in source.frames(Compression::None) {
        let mut frame = Some(frame);
        for _ in 0..50 {
            let Some(offered) = frame.take() else { break };
            if let Err(Refused { frame: back, why: Refusal::NotNow(_) }) = rig.writer.append(rig.now, offered) {
                frame = Some(back);
            }
            shuffle(rig, dice, Mistake::None);
        }
    }
    rig.writer.roll();
    rig.writer.request_sync();
    shuffle(rig, dice, Mistake::None);
}

/// 62 segments, 56 of them in seven runs, their footers emptied: with two more they become one run of level 2.
fn before() -> (SimDisk, Source) {
    let disk = SimDisk::new();
    let made = create(&disk, Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test")).unwrap();
    let mut rig = rig(&disk, made, 1);
    let mut source = Source::new(3, timeline(1));
    source.size = 64 << 10;
    rig.start(timeline(1), None, Lsn::ZERO);
    for _ in 0..62 {
        segment(&mut rig, &mut source, &mut Dice(0));
        rig.sync();
    }
    assert_eq!((rig.merge_index(1 << 20), rig.empty_footers()), (7, 7));
    rig.close();
    (disk.after_cut(Survival::Everything), source)
}

/// What was told to somebody outside.
#[derive(Default)]
struct Believed {
    durable: Lsn,
    /// The last segment of a run of level 2, once a durable manifest names it.
    merged: Option<u64>,
}

fn believe(rig: &Rig, named: Option<(Generation, u64)>, believed: &mut Believed) {
    believed.durable = believed.durable.max(rig.writer.durable().lsn());
    let durable = rig.writer.manifest_durable();
    let merged = named.filter(|(generation, _)| *generation <= durable).map(|(_, last)| last);
    believed.merged = merged.or(believed.merged);
}

/// Segments and merges at once, until the power goes or four segments are written and everything is merged.
fn live(
    disk: &SimDisk,
    rig: &mut Rig,
    source: &mut Source,
    dice: &mut Dice,
    believed: &mut Believed,
) -> Result<(), String> {
    let reader = rig.reader();
    let (mut merge, mut named): (Option<IndexMerge>, Option<(Generation, u64)>) = (None, None);
    let mut emptying: Option<IndexEmptying> = None;
    for round in 0..100 {
        if disk.is_cut() {
            break;
        }
        if round < 4 {
            segment(rig, source, dice);
        }
        if let (None, Some(task)) = (&emptying, rig.writer.next_emptying()) {
            emptying = Some(IndexEmptying::new(&reader, task));
        }
        match emptying.as_mut().map(|emptying| emptying.step()) {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => drop(emptying.take().map(|emptying| rig.writer.emptied(emptying.run()))),
            Some(Err(_)) if disk.is_cut() => break,
            Some(Err(error)) => return Err(error.to_string()),
        }
        if merge.is_none() {
            let new = match rig.writer.next_index_merge() {
                None if round >= 4 && emptying.is_none() && rig.writer.is_idle() => break,
                task => task.map(|task| IndexMerge::new(&reader, &rig.writer.snapshot(), task)),
            };
            match new.transpose() {
                Ok(new) => merge = new,
                Err(_) if disk.is_cut() => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        for _ in 0..1 + dice.below(4) {
            match merge.as_mut().map(|merge| merge.step(1 << 16)) {
                None | Some(Ok(None)) => {}
                Some(Ok(Some(run))) => {
                    let (level, last) = (run.level, run.last_segment);
                    let generation = rig.writer.publish_run(run).ok_or("a run is not taken")?;
                    named = (level == 2).then_some((generation, last)).or(named);
                    merge = None;
                }
                Some(Err(_)) if disk.is_cut() => return Ok(()),
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
        shuffle(rig, dice, Mistake::None);
        believe(rig, named, believed);
    }
    shuffle_rounds(rig, dice, Mistake::None, u64::MAX);
    believe(rig, named, believed);
    Ok(())
}

fn check(
    disk: &SimDisk,
    opened: &Opened,
    source: &Source,
    path_of: &[(Timeline, Lsn)],
    believed: &Believed,
) -> Result<(), String> {
    if opened.durable.lsn() < believed.durable {
        return Err(format!("LSN {} is there, {} was durable", opened.durable.lsn(), believed.durable));
    }
    if let Some(repair) = opened.repairs.iter().find(|repair| matches!(repair, Repair::IndexDropped { .. })) {
        return Err(format!("a run that was named is not sound: {repair:?}"));
    }
    let holds = |last| opened.manifest.runs.iter().any(|run| run.level == 2 && run.last_segment >= last);
    if believed.merged.is_some_and(|last| !holds(last)) {
        return Err("a run that was durable is gone".to_owned());
    }
    let mut named: Vec<_> = opened.manifest.runs.iter().map(|run| run_name(run.number)).collect();
    named.sort();
    let names = disk.list(DIRECTORY).map_err(|error| error.to_string())?;
    let there: Vec<_> = names.into_iter().filter(|name| name.ends_with(".idx")).collect();
    if there != named {
        return Err(format!("{there:?} are there, {named:?} are named"));
    }
    let reader = Arc::new(Reader::new(Arc::new(disk.clone()), DIRECTORY, 1 << 20));
    let view = View::open(&path(&reader, &opened.snapshot(), path_of), 1 << 20).map_err(|error| error.to_string())?;
    for number in 1..=2 {
        let found = restore(&view, number, source.size).map_err(|error| error.to_string())?;
        if found != source.model.at(path_of, number, source.size as usize) {
            return Err(format!("disk {number} is wrong at {path_of:?}"));
        }
    }
    let events = reader.events(&opened.snapshot()).map_err(|error| error.to_string())?;
    let found: Vec<_> = events.iter().map(|event| (event.timeline, event.lsn)).collect();
    let is_there = |(on, lsn): &&(Timeline, Lsn)| path_of.iter().any(|(timeline, upto)| timeline == on && lsn <= upto);
    let expected: Vec<_> = source.marks.iter().filter(is_there).copied().collect();
    let whole = found.iter().filter(|(on, lsn)| is_there(&&(*on, *lsn))).copied().collect::<Vec<_>>();
    if whole != expected {
        return Err(format!("marks are {whole:?}, not {expected:?}"));
    }
    let findings = reader.verify(&opened.snapshot(), |_| true).findings;
    findings.first().map_or(Ok(()), |finding| Err(format!("verify: {}", finding.what)))
}

/// A life with a cut, what is found, a life that may be cut too, what is found. Gives the effects of the first one.
fn story(from: &(SimDisk, Source), seed: u64, cut: u64) -> Result<u64, String> {
    let mut dice = Dice(seed);
    let mut disk = from.0.after_cut(Survival::Everything);
    let mut model = Source::new(seed, timeline(1));
    (model.size, model.model, model.lsn) = (from.1.size, from.1.model.clone(), from.1.lsn);
    model.marks.clone_from(&from.1.marks);
    let mut path_of = vec![(timeline(1), model.lsn)];
    let (mut believed, mut effects) = (Believed { durable: model.lsn, merged: None }, 0);
    for life in 2..=4u8 {
        let before = disk.effects();
        disk.cut_at(before + if life == 2 { cut } else { 1 + dice.below(400) });
        match open(&disk, DIRECTORY, None) {
            Ok(opened) => {
                let durable = opened.durable.lsn();
                path_of.last_mut().unwrap().1 = durable;
                check(&disk, &opened, &model, &path_of, &believed).map_err(|wrong| format!("life {life}: {wrong}"))?;
                if life == 4 {
                    break;
                }
                let mut rig = rig(&disk, opened, dice.next());
                if life == 2 {
                    // The timeline goes on, so that there is something to merge.
                    (model.lsn, model.prev) = (durable, durable);
                } else {
                    rig.start(timeline(life), Some(path_of[path_of.len() - 1].0), durable);
                    model.fork(timeline(life), durable);
                    path_of.push((timeline(life), durable));
                }
                live(&disk, &mut rig, &mut model, &mut dice, &mut believed)?;
            }
            Err(_) if disk.is_cut() => {}
            Err(error) => return Err(format!("life {life}: {error}")),
        }
        if life == 2 {
            effects = disk.effects() - before;
        }
        disk = disk.after_cut(match dice.below(4) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Some(dice.next()),
        });
    }
    if cut == u64::MAX / 2 && believed.merged.is_none() {
        return Err("no run of level 2 was made".to_owned());
    }
    Ok(effects)
}

/// All effects of the first life, or one in four where nothing is optimised; `CDP_CRASH_SEEDS` asks for more seeds.
#[test]
fn a_cut_at_every_effect_of_index_merges_costs_nothing() {
    let seeds: u64 = std::env::var("CDP_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (from, stride) = (before(), if cfg!(debug_assertions) { 4 } else { 1 });
    let mut points = 0;
    for seed in 0..seeds {
        let effects = story(&from, seed, u64::MAX / 2).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        for cut in (1 + seed % stride..=effects).step_by(stride as usize) {
            let told = story(&from, seed, cut);
            assert!(told.is_ok(), "seed {seed}, power cut at effect {cut}: {}", told.unwrap_err());
            points += 1;
        }
    }
    println!("{points} crash points, seeds 0..{seeds}");
}
