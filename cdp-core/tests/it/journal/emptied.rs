//! Footers whose indexes went to runs: read as before, told apart from damage, and made again from frames where a run is lost.

use super::corruption::{copy, damage_one_of, read};
use super::kit::*;
use super::levels::*;
use cdp_core::journal::*;
use cdp_core::media::*;
use cdp_core::types::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// 75 segments on one timeline and 20 on another; 80 of them in runs, and their footers emptied.
fn emptied(seed: u64) -> (Memory, Rig, Source, [(Timeline, Lsn); 2]) {
    let (storage, mut rig, source, ends) = store(seed, 75);
    rig.merge_index(1 << 14);
    rig.empty_footers();
    (storage, rig, source, ends)
}

fn name_of(segment: &SegmentInfo) -> String {
    format!("{DIRECTORY}/{}", segment_name(segment.number))
}

fn in_runs(rig: &Rig) -> Vec<SegmentInfo> {
    let manifest = rig.writer.manifest();
    let held = |number| manifest.runs.iter().any(|run| run.first_segment <= number && number <= run.last_segment);
    manifest.segments.iter().filter(|segment| held(segment.number)).copied().collect()
}

fn remove_runs(storage: &Memory) {
    index_files(storage).iter().for_each(|name| storage.remove(&format!("{DIRECTORY}/{name}")).unwrap());
}

fn reader(storage: &Memory) -> Arc<Reader> {
    Arc::new(Reader::new(Arc::new(storage.clone()), DIRECTORY, 1 << 20))
}

#[test]
fn footers_are_emptied_when_a_durable_manifest_names_their_run_and_everything_reads_as_before() {
    let (storage, mut rig, source, ends) = store(21, 75);
    let (before, events) = (rig.writer.snapshot(), rig.reader().events(&rig.writer.snapshot()).unwrap());
    assert!(events.len() > 30, "{}", events.len());
    let unchanged = copy(&storage);
    // A run that is named, but not durably yet.
    let task = rig.writer.next_index_merge().unwrap();
    let mut merge = IndexMerge::new(&rig.reader(), &rig.writer.snapshot(), task).unwrap();
    let run = (0..100).find_map(|_| merge.step(1 << 20).unwrap()).unwrap();
    assert!(rig.writer.publish_run(run).is_some());
    assert_eq!(rig.writer.next_emptying(), None);
    rig.drain();
    assert!(rig.writer.next_emptying().is_some());
    rig.merge_index(1 << 12);
    assert_eq!(rig.empty_footers(), 4);
    let held = in_runs(&rig);
    assert_eq!(held.len(), 72 + 16);
    for segment in &held {
        let (bytes, whole) = (read(&storage, &name_of(segment)), read(&unchanged, &name_of(segment)));
        let summary = segment.summary().unwrap();
        let from = summary.frames_end as usize;
        let to = from + 4096 * summary.blocks[..3].iter().sum::<u32>() as usize;
        assert!(bytes[from..to].iter().all(|byte| *byte == 0) && to > from);
        assert!(bytes[..from] == whole[..from] && bytes[to..] == whole[to..]);
    }
    let after = rig.writer.snapshot();
    let (old, mut dice) = (reader(&unchanged), Dice(5));
    for _ in 0..40 {
        let lsn = Lsn(1 + dice.below(ends[1].1.0));
        let mut elements = upto(&ends, lsn);
        elements.truncate(1 + usize::from(lsn > ends[0].1));
        let (now, then) = (view(&rig.reader(), &after, &elements), view(&old, &before, &elements));
        assert_eq!(pieces(&now, &source), pieces(&then, &source), "LSN {lsn}");
        check_bytes(&now, &source, &elements, "emptied");
    }
    assert_eq!(rig.reader().events(&after).unwrap(), events);
    assert_eq!(rig.reader().verify(&after, |_| true).findings, []);
    // A merge of runs that say so says so from the beginning.
    let mut more = Source::new(22, timeline(2));
    (more.size, more.lsn, more.prev) = (source.size, source.lsn, source.prev);
    append(&mut rig, &mut more, &mut Dice(1), 60);
    let mut levels = Vec::new();
    while rig.merge_one(1 << 20) {
        levels.push(rig.writer.next_emptying().is_some());
        rig.empty_footers();
    }
    assert_eq!(levels, [true, true, true, true, true, true, true, true, false]);
    rig.close();
    let mut rig = opened(&storage, 30);
    assert!(rig.writer.manifest().runs.iter().all(|run| run.emptied) && rig.repairs.is_empty());
    assert_eq!(rig.empty_footers(), 0);
}

#[test]
fn a_view_that_began_before_finds_the_run_that_has_what_its_footers_had() {
    let (storage, mut rig, source, ends) = store(23, 75);
    let snapshot = rig.writer.snapshot();
    let expected = pieces(&view(&rig.reader(), &snapshot, &ends), &source);
    let early = upto(&ends[..1], Lsn(ends[0].1.0 / 2));
    let expected_early = pieces(&view(&rig.reader(), &snapshot, &early), &source);
    let (old, old_early) = (view(&rig.reader(), &snapshot, &ends), view(&rig.reader(), &snapshot, &early));
    // It has looked at another region.
    old.resolve(disk(1), Extent::new(source.size + (64 << 20), 4096)).unwrap();
    rig.merge_index(1 << 16);
    rig.empty_footers();
    in_runs(&rig).iter().for_each(|segment| spoil(&storage, segment));
    assert_eq!(pieces(&old, &source), expected);
    assert_eq!(pieces(&old_early, &source), expected_early);
}

/// An owner merges the index while somebody verifies what he found before.
#[test]
fn a_verification_that_began_before_finds_nothing_wrong_with_footers_that_were_emptied_since() {
    let (_storage, mut rig, _, _) = store(29, 75);
    let before = rig.writer.snapshot();
    rig.merge_index(1 << 16);
    assert!(rig.empty_footers() > 0);
    assert_eq!(rig.reader().verify(&before, |_| true).findings, []);
}

/// A live view's newest part goes on behind what a run that is found holds.
#[test]
fn a_live_view_that_finds_a_run_follows_every_append() {
    let (_, mut rig, mut source, mut ends) = store(24, 20);
    let (reader, mut dice) = (rig.reader(), Dice(3));
    let live = view(&reader, &rig.writer.snapshot(), &ends);
    for round in 0..30 {
        source.any();
        for frame in source.frames(cdp_core::frame::Compression::None) {
            let appended = rig.append(frame);
            rig.drain();
            live.advance(&reader, &appended);
        }
        if round == 10 {
            rig.writer.roll();
            rig.sync();
            rig.merge_index(1 << 16);
            rig.empty_footers();
        }
        if dice.below(3) == 0 {
            live.refresh(&rig.writer.snapshot());
            ends[1].1 = source.lsn;
            check_bytes(&live, &source, &ends, "live");
        }
    }
}

#[test]
fn without_its_run_an_emptied_segment_is_read_from_its_frames_until_it_is_merged_again() {
    let (storage, mut rig, source, ends) = emptied(25);
    let (runs, events) = (rig.writer.manifest().runs.len(), rig.reader().events(&rig.writer.snapshot()).unwrap());
    rig.close();
    drop(rig);
    remove_runs(&storage);
    let looked = look(&storage, DIRECTORY, None).unwrap();
    assert!(looked.damage.is_none());
    let findings = reader(&storage).verify(&looked.snapshot, |_| true).findings;
    assert_eq!(findings.len(), runs);
    assert!(findings.iter().all(|finding| finding.file.ends_with(".idx") && finding.lost.is_none()), "{findings:?}");
    let mut rig = opened(&storage, 4);
    assert_eq!(rig.repairs.len(), runs);
    let mut dice = Dice(6);
    for _ in 0..10 {
        let elements = upto(&ends, Lsn(1 + dice.below(ends[1].1.0)));
        check_bytes(&view(&rig.reader(), &rig.writer.snapshot(), &elements), &source, &elements, "from frames");
    }
    assert_eq!(rig.reader().events(&rig.writer.snapshot()).unwrap(), events);
    // No byte is lost, and still it is said.
    let findings = rig.reader().verify(&rig.writer.snapshot(), |_| true).findings;
    assert_eq!(findings.len(), 72 + 16);
    let told =
        |f: &Finding| f.file.ends_with(".seg") && f.lost.is_none() && f.what.contains("until it is merged again");
    assert!(findings.iter().all(told), "{findings:?}");
    // From frames and from footers comes the same.
    let (_, mut whole, ..) = store(25, 75);
    whole.merge_index(1 << 14);
    rig.merge_index(1 << 14);
    let facts = |rig: &Rig| -> Vec<_> {
        let runs = rig.writer.manifest().runs.iter();
        runs.map(|run| (run.level, run.totals.entries, run.totals.blocks, run.regions.clone())).collect()
    };
    assert_eq!(facts(&rig), facts(&whole));
    assert_eq!(rig.reader().events(&rig.writer.snapshot()).unwrap(), events);
    rig.empty_footers();
    assert_eq!(rig.reader().verify(&rig.writer.snapshot(), |_| true).findings, []);
    check_bytes(&view(&rig.reader(), &rig.writer.snapshot(), &ends), &source, &ends, "merged again");
}

#[test]
fn damage_anywhere_in_a_store_with_emptied_footers_is_noticed_and_never_gives_a_wrong_byte() {
    let (intact, mut rig, source, ends) = emptied(26);
    rig.close();
    drop(rig);
    let names: Vec<_> = intact.list(DIRECTORY).unwrap().iter().map(|name| format!("{DIRECTORY}/{name}")).collect();
    let (runs, segments): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(".idx"));
    let rounds: Option<u64> = std::env::var("CDP_CORRUPTIONS").ok().and_then(|text| text.parse().ok());
    // Few where nothing is optimised.
    let rounds = rounds.unwrap_or(if cfg!(debug_assertions) { 40 } else { 120 });
    for seed in 0..rounds {
        let mut dice = Dice(seed);
        let storage = copy(&intact);
        let (what, changed) = damage_one_of(&storage, if seed % 2 == 0 { &runs } else { &segments }, &mut dice);
        let elements = upto(&ends, Lsn(1 + dice.below(ends[1].1.0)));
        let reader = reader(&storage);
        let noticed = match open(&storage, DIRECTORY, None) {
            Err(_) => true,
            Ok(opened) => {
                let snapshot = opened.snapshot();
                let view = view(&reader, &snapshot, &elements);
                let mut all = true;
                for number in 1..=2 {
                    match restore(&view, number, source.size) {
                        Ok(bytes) => {
                            let expected = source.model.at(&elements, number, source.size as usize);
                            assert!(bytes == expected, "wrong bytes: {what}");
                        }
                        Err(_) => all = false,
                    }
                }
                let findings = reader.verify(&snapshot, |_| true).findings;
                assert!(all || !findings.is_empty(), "read fails, verify is silent: {what}");
                let _ = reader.events(&snapshot);
                !findings.is_empty() || !opened.repairs.is_empty()
            }
        };
        assert_eq!(noticed, changed, "seed {seed}: {what}");
    }
}

/// Any read of one of their files would fail.
#[test]
fn a_start_and_the_events_read_no_segment_that_a_run_holds() {
    let (storage, mut rig, _, _) = emptied(27);
    let events = rig.reader().events(&rig.writer.snapshot()).unwrap();
    let held = in_runs(&rig);
    rig.close();
    drop(rig);
    let faults = Faults::default();
    let faulty: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::new(storage.clone()), faults.clone()));
    let unreadable =
        |segment: &SegmentInfo| Fault::always(Operation::Read, &segment_name(segment.number), MediaErrorKind::Io);
    held.iter().for_each(|segment| faults.add(unreadable(segment)));
    let opened = open(faulty.as_ref(), DIRECTORY, None).unwrap();
    let reader = Reader::new(Arc::clone(&faulty), DIRECTORY, 1 << 20);
    assert_eq!(reader.events(&opened.snapshot()).unwrap(), events);
    let alone = opened.manifest.segments.iter().find(|s| held.iter().all(|other| other.number != s.number)).unwrap();
    faults.add(unreadable(alone));
    assert!(open(faulty.as_ref(), DIRECTORY, None).is_err(), "of the others header and trailer are read");
}

#[test]
fn a_segment_in_a_run_that_is_missing_or_short_is_refused_at_the_start() {
    let (storage, mut rig, ..) = emptied(28);
    let segment = in_runs(&rig)[10];
    rig.close();
    drop(rig);
    let short = copy(&storage);
    let length = segment.summary().unwrap().file_bytes;
    short.open(&name_of(&segment), true).unwrap().set_len(length - 1).unwrap();
    storage.remove(&name_of(&segment)).unwrap();
    for storage in [storage, short] {
        match open(&storage, DIRECTORY, None) {
            Err(OpenError::Damaged(damage)) => assert_eq!(damage.segment, segment.number),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_merge_cannot_read_is_left_out_or_made_again() {
    // A segment with neither footer nor frames: its neighbours are merged without it.
    let (storage, mut rig, ..) = store(29, 20);
    let segment = rig.writer.manifest().segments[4];
    spoil(&storage, &segment);
    let task = rig.writer.next_index_merge().unwrap();
    let mut merge = IndexMerge::new(&rig.reader(), &rig.writer.snapshot(), task).unwrap();
    let error = (0..100).find_map(|_| merge.step(1 << 20).err()).unwrap();
    assert!(error.to_string().starts_with("segment 5 stays out of the levelled index"), "{error}");
    merge.discard();
    assert!(rig.writer.merge_failed(&error) && !rig.writer.merge_failed(&error));
    let numbers: Vec<_> = rig.writer.next_index_merge().unwrap().plan.inputs;
    assert_eq!(numbers[0], 6);
    // A run that is damaged: it goes, and is merged again from what its segments say.
    let (storage, mut rig, source, ends) = store(31, 64);
    while IndexPlan::next(rig.writer.manifest(), &BTreeSet::new()).is_some_and(|plan| plan.level == 1) {
        assert!(rig.merge_one(1 << 20));
    }
    rig.empty_footers();
    let run = Arc::clone(&rig.writer.manifest().runs[2]);
    let file = storage.open(&format!("{DIRECTORY}/{}", run_name(run.number)), true).unwrap();
    file.write_all_at(4096 + 4096 + 100, &[0x77; 9]).unwrap();
    let task = rig.writer.next_index_merge().unwrap();
    assert_eq!(task.plan.level, 2);
    let mut merge = IndexMerge::new(&rig.reader(), &rig.writer.snapshot(), task).unwrap();
    let error = (0..100).find_map(|_| merge.step(1 << 20).err()).unwrap();
    assert!(matches!(error, IndexMergeError::Run { run: found, .. } if found == run.number), "{error}");
    merge.discard();
    assert!(rig.writer.merge_failed(&error) && !rig.writer.merge_failed(&error));
    rig.drain();
    assert!(storage.open(&format!("{DIRECTORY}/{}", run_name(run.number)), false).is_err());
    check_bytes(&view(&rig.reader(), &rig.writer.snapshot(), &ends), &source, &ends, "without the run");
    rig.merge_index(1 << 20);
    rig.empty_footers();
    assert_eq!(rig.writer.manifest().runs[0].level, 2);
    assert_eq!(rig.reader().verify(&rig.writer.snapshot(), |_| true).findings, []);
}

/// A run that was replaced takes no room once nobody reads it.
#[test]
fn a_replaced_run_is_let_go_of_with_the_last_view_that_reads_it() {
    let deleted = |path: &std::path::Path| {
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let ours = path.to_string_lossy().into_owned();
        links
            .filter(|link| {
                let link = link.to_string_lossy();
                link.starts_with(&ours) && link.contains(".idx") && link.ends_with("(deleted)")
            })
            .count()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica");
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(&path).unwrap());
    let made = create(storage.as_ref(), Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test")).unwrap();
    let mut rig = Rig::with(Arc::clone(&storage), made, 1, small_segments());
    let mut source = Source::new(3, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    append(&mut rig, &mut source, &mut Dice(2), 64);
    while rig.writer.manifest().runs.len() < 8 {
        assert!(rig.merge_one(1 << 20));
    }
    let (reader, elements) = (rig.reader(), [(timeline(1), source.lsn)]);
    let old = view(&reader, &rig.writer.snapshot(), &elements);
    check_bytes(&old, &source, &elements, "level 1");
    rig.merge_index(1 << 20);
    assert_eq!(deleted(&path), 8);
    check_bytes(&old, &source, &elements, "what was replaced");
    let new = view(&reader, &rig.writer.snapshot(), &elements);
    check_bytes(&new, &source, &elements, "level 2");
    drop(old);
    assert_eq!(deleted(&path), 0);
    check_bytes(&new, &source, &elements, "level 2");
}

/// A footer that cannot be emptied is passed over: the others are, and merges go on.
#[test]
fn a_footer_that_cannot_be_emptied_holds_nobody_up() {
    let (storage, mut rig, ..) = store(26, 75);
    rig.merge_index(1 << 14);
    let bad = rig.writer.next_emptying().unwrap();
    let run = rig.writer.manifest().runs.iter().find(|run| run.number == bad.run).unwrap().clone();
    let name = format!("{DIRECTORY}/{}", segment_name(run.first_segment));
    let header = read(&storage, &name)[..512].to_vec();
    let file = storage.open(&name, true).unwrap();
    file.write_all_at(40, &[header[40] ^ 1]).unwrap();
    assert!(IndexEmptying::new(&rig.reader(), bad.clone()).step().is_err());
    rig.writer.emptying_failed(bad.run);
    let emptied = rig.empty_footers();
    assert!(emptied > 0 && rig.writer.next_emptying().is_none());
    let not: Vec<_> = rig.writer.manifest().runs.iter().filter(|run| !run.emptied).map(|run| run.number).collect();
    assert_eq!(not, [bad.run]);
    // The next writer asks for it again.
    rig.close();
    file.write_all_at(0, &header).unwrap();
    drop(rig);
    let mut rig = Rig::open(Arc::new(storage), 9).unwrap();
    assert_eq!(rig.writer.next_emptying(), Some(bad));
    assert_eq!(rig.empty_footers(), 1);
}
