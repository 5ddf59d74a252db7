//! The levelled index: views over runs read as views without them, and whatever happens to a run costs no data.

use super::corruption::{copy, damage_one_of, read, replace};
use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::types::*;
use std::sync::Arc;

pub(super) fn small_segments() -> Options {
    Options { segment_records: 12, ..options() }
}

pub(super) fn opened(storage: &Memory, seed: u64) -> Rig {
    let opened = open(storage, DIRECTORY, None).unwrap();
    Rig::with(Arc::new(storage.clone()), opened, seed, small_segments())
}

pub(super) fn append(rig: &mut Rig, source: &mut Source, dice: &mut Dice, segments: u64) {
    for _ in 0..segments {
        (0..4 + dice.below(5)).for_each(|_| source.any());
        if dice.below(2) == 0 {
            let label = format!("at {}", source.lsn);
            source.note(RecordKind::Mark, None, Note::Mark(Mark { label, ..Mark::default() }));
        }
        let compression = if dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) };
        source.frames(compression).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.writer.roll();
        rig.drain();
    }
    rig.sync();
}

/// A store with so many segments on its first timeline, 20 on a second one, and no runs.
pub(super) fn store(seed: u64, segments: u64) -> (Memory, Rig, Source, [(Timeline, Lsn); 2]) {
    let storage = Memory::new();
    let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
    let made = create(&storage, manifest).unwrap();
    let mut rig = Rig::with(Arc::new(storage.clone()), made, seed + 1, small_segments());
    let (mut source, mut dice) = (Source::new(seed, timeline(1)), Dice(seed + 7));
    rig.start(timeline(1), None, Lsn::ZERO);
    append(&mut rig, &mut source, &mut dice, segments);
    let fork = source.lsn;
    rig.start(timeline(2), Some(timeline(1)), fork);
    source.fork(timeline(2), fork);
    append(&mut rig, &mut source, &mut dice, 20);
    let ends = [(timeline(1), fork), (timeline(2), source.lsn)];
    (storage, rig, source, ends)
}

/// The manifest of such a store, with runs that it names.
pub(super) fn manifest_with_runs() -> Vec<u8> {
    let (storage, mut rig, ..) = store(1, 9);
    assert!(rig.merge_index(1 << 16) > 1);
    read(&storage, MANIFEST_NAME)
}

pub(super) fn upto(ends: &[(Timeline, Lsn)], lsn: Lsn) -> Vec<(Timeline, Lsn)> {
    ends.iter().map(|(timeline, end)| (*timeline, lsn.min(*end))).collect()
}

pub(super) fn view(reader: &Arc<Reader>, snapshot: &Snapshot, elements: &[(Timeline, Lsn)]) -> View {
    View::open(&path(reader, snapshot, elements), 1 << 20).unwrap()
}

pub(super) fn pieces(view: &View, source: &Source) -> Vec<Vec<Piece>> {
    [1, 2].map(|number| view.resolve(disk(number), Extent::new(0, source.size + (65 << 20))).unwrap()).into()
}

pub(super) fn check_bytes(view: &View, source: &Source, elements: &[(Timeline, Lsn)], what: &str) {
    for number in 1..=2 {
        let expected = source.model.at(elements, number, source.size as usize);
        assert!(restore(view, number, source.size).unwrap() == expected, "disk {number} at {elements:?}: {what}");
    }
}

pub(super) fn index_files(storage: &Memory) -> Vec<String> {
    storage.list(DIRECTORY).unwrap().into_iter().filter(|name| name.ends_with(".idx")).collect()
}

#[test]
fn a_view_over_runs_reads_as_one_without_at_any_lsn_of_any_timeline() {
    for seed in 0..3 {
        let (storage, mut rig, source, ends) = store(seed, 75);
        let (reader, before) = (rig.reader(), rig.writer.snapshot());
        let segments = rig.writer.manifest().segments.len();
        // 75 segments make 9 runs of level 1 and of those 1 of level 2; 20 of another timeline 2.
        assert_eq!(rig.merge_index(1 << 12), 12);
        let levels = |rig: &Rig| rig.writer.manifest().runs.iter().map(|run| run.level).collect::<Vec<_>>();
        assert_eq!(levels(&rig), [2, 1, 1, 1]);
        assert_eq!(index_files(&storage).len(), 4, "what was replaced is gone");
        let after = rig.writer.snapshot();
        let mut dice = Dice(seed);
        for _ in 0..60 {
            let lsn = Lsn(1 + dice.below(ends[1].1.0));
            let mut elements = upto(&ends, lsn);
            elements.truncate(1 + usize::from(lsn > ends[0].1));
            let (with, without) = (view(&reader, &after, &elements), view(&reader, &before, &elements));
            assert_eq!(pieces(&with, &source), pieces(&without, &source), "seed {seed}, LSN {lsn}");
            check_bytes(&with, &source, &elements, "with runs");
        }
        // And after a stop; then the merging goes on where it was.
        rig.close();
        let mut rig = opened(&storage, seed + 9);
        assert_eq!((rig.repairs.clone(), levels(&rig)), (vec![], vec![2, 1, 1, 1]));
        assert!(rig.writer.manifest().segments.len() >= segments - 1);
        check_bytes(&view(&rig.reader(), &rig.writer.snapshot(), &ends), &source, &ends, "after a stop");
        assert_eq!(rig.merge_index(1 << 20), 0);
        assert_eq!(rig.reader().verify(&rig.writer.snapshot(), |_| true).findings, []);
    }
}

/// Takes from a segment everything that says where its data is, footer and frame.
pub(super) fn spoil(storage: &Memory, segment: &SegmentInfo) {
    let file = storage.open(&format!("{DIRECTORY}/{}", segment_name(segment.number)), true).unwrap();
    file.write_all_at(segment.summary().unwrap().frames_end, &[0x5a; 4096]).unwrap();
    file.write_all_at(4096, &[0x5a; 64]).unwrap();
}

/// Were the footers or frames read, this would fail: they are destroyed.
#[test]
fn a_view_reads_the_run_and_not_the_footers_that_it_holds() {
    let (storage, mut rig, source, ends) = store(4, 64);
    assert_eq!(rig.merge_index(u64::MAX), 11);
    let (snapshot, segments) = (rig.writer.snapshot(), rig.writer.manifest().segments.clone());
    let expected = pieces(&view(&rig.reader(), &snapshot, &ends), &source);
    segments.iter().filter(|segment| segment.summary().is_some()).take(80).for_each(|s| spoil(&storage, s));
    assert_eq!(pieces(&view(&rig.reader(), &snapshot, &ends), &source), expected);
    // Without the runs there is nothing else to read.
    for name in index_files(&storage) {
        storage.remove(&format!("{DIRECTORY}/{name}")).unwrap();
    }
    assert!(view(&rig.reader(), &snapshot, &ends).resolve(disk(1), Extent::new(0, 4096)).is_err());
}

/// Its segments' footers are destroyed here too.
#[test]
fn a_view_goes_on_reading_runs_that_were_replaced_since_its_first_read() {
    let (storage, mut rig, source, ends) = store(13, 60);
    rig.merge_index(1 << 16);
    let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
    let expected = pieces(&view(&rig.reader(), &snapshot, &ends), &source);
    let old = view(&reader, &snapshot, &ends);
    old.resolve(disk(1), Extent::new(source.size + (64 << 20), 4096)).unwrap();
    let before = rig.writer.manifest().runs.clone();
    let mut more = Source::new(14, timeline(2));
    (more.lsn, more.prev) = (source.lsn, source.prev);
    append(&mut rig, &mut more, &mut Dice(1), 48);
    rig.merge_index(1 << 16);
    let names = index_files(&storage);
    let gone =
        before.iter().filter(|run| run.timeline == timeline(2) && !names.contains(&run_name(run.number))).count();
    assert_eq!(gone, 2, "what the view reads was not replaced");
    let held = |number| before.iter().any(|run| run.first_segment <= number && number <= run.last_segment);
    for segment in rig.writer.manifest().segments.iter().filter(|segment| held(segment.number)) {
        spoil(&storage, segment);
    }
    storage.remove(MANIFEST_NAME).unwrap();
    assert_eq!(pieces(&old, &source), expected);
}

#[test]
fn a_live_view_over_runs_follows_every_append() {
    let (_, mut rig, mut source, mut ends) = store(5, 20);
    rig.merge_index(1 << 16);
    let (reader, mut dice) = (rig.reader(), Dice(3));
    let live = view(&reader, &rig.writer.snapshot(), &ends);
    for _ in 0..40 {
        source.any();
        for frame in source.frames(Compression::None) {
            let appended = rig.append(frame);
            rig.drain();
            live.advance(&reader, &appended);
        }
        if dice.below(3) == 0 {
            live.refresh(&rig.writer.snapshot());
            ends[1].1 = source.lsn;
            check_bytes(&live, &source, &ends, "live");
        }
    }
}

#[test]
fn segments_that_were_dropped_are_passed_over_in_runs_and_take_empty_runs_with_them() {
    let (storage, mut rig, source, ends) = store(6, 70);
    rig.merge_index(1 << 16);
    let runs = rig.writer.manifest().runs.len();
    let mut dice = Dice(8);
    // The first run is of 64 segments; the last ones of this loop are in the runs behind it.
    for round in 0..14 {
        let numbers: Vec<_> = rig.writer.manifest().segments.iter().take(6).map(|segment| segment.number).collect();
        rig.writer.forget(&numbers);
        rig.drain();
        let bare = copy(&storage);
        for name in index_files(&bare) {
            bare.remove(&format!("{DIRECTORY}/{name}")).unwrap();
        }
        let without = open(&bare, DIRECTORY, None).unwrap();
        assert!(without.manifest.runs.is_empty());
        let bare_reader = Arc::new(Reader::new(Arc::new(bare.clone()), DIRECTORY, 1 << 20));
        let floor = rig.writer.manifest().floor.0;
        for _ in 0..4 {
            let elements = upto(&ends, Lsn(floor + dice.below(ends[1].1.0 - floor) + 1));
            let with = view(&rig.reader(), &rig.writer.snapshot(), &elements);
            let expected = view(&bare_reader, &without.snapshot(), &elements);
            assert_eq!(pieces(&with, &source), pieces(&expected, &source), "round {round}");
        }
        let snapshot = rig.writer.snapshot();
        assert_eq!(rig.reader().verify(&snapshot, |_| true).findings, [], "round {round}");
        assert_eq!(index_files(&storage).len(), rig.writer.manifest().runs.len());
    }
    assert!(rig.writer.manifest().runs.len() < runs);
    drop(rig);
    assert!(opened(&storage, 3).repairs.iter().all(|repair| !matches!(repair, Repair::IndexDropped { .. })));
}

#[test]
fn damage_to_a_run_is_noticed_and_never_costs_a_byte() {
    let (storage, mut rig, source, ends) = store(9, 20);
    rig.merge_index(1 << 16);
    rig.close();
    drop(rig);
    let (mut dropped, mut found) = (0, 0);
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let storage = copy(&storage);
        let names: Vec<_> = index_files(&storage).iter().map(|name| format!("{DIRECTORY}/{name}")).collect();
        let (what, changed) = match dice.below(12) {
            0 => (storage.remove(&names[0]).map(|()| "remove".to_owned()).unwrap(), true),
            _ => damage_one_of(&storage, &names, &mut dice),
        };
        let elements = upto(&ends, Lsn(1 + dice.below(ends[1].1.0)));
        let reader = Arc::new(Reader::new(Arc::new(storage.clone()), DIRECTORY, 1 << 20));
        let looked = look(&storage, DIRECTORY, None).unwrap();
        assert!(looked.damage.is_none());
        check_bytes(&view(&reader, &looked.snapshot, &elements), &source, &elements, &what);
        let findings = reader.verify(&looked.snapshot, |_| true).findings;
        assert_eq!(!findings.is_empty(), changed, "seed {seed}, {what}: {findings:?}");
        assert!(
            findings.iter().all(|finding| finding.file.ends_with(".idx") && finding.lost.is_none()),
            "{findings:?}"
        );
        // A start drops what it sees to be damaged, and the merge is made again.
        let mut rig = opened(&storage, seed + 1);
        let is_dropped = |repair: &Repair| matches!(repair, Repair::IndexDropped { .. });
        let lost = rig.repairs.iter().filter(|repair| is_dropped(repair)).count();
        dropped += lost;
        found += usize::from(lost == 0 && changed);
        check_bytes(&view(&rig.reader(), &rig.writer.snapshot(), &elements), &source, &elements, &what);
        assert_eq!(rig.merge_index(1 << 16), lost, "{what}");
        assert_eq!(index_files(&storage).len(), names.len());
        if lost > 0 {
            assert_eq!(rig.reader().verify(&rig.writer.snapshot(), |_| true).findings, [], "{what}");
        }
    }
    assert!(dropped > 20 && found > 20, "{dropped} dropped at a start, {found} found by reading all");
}

#[test]
fn a_merge_does_as_much_at_a_time_as_it_is_told_and_comes_to_the_same() {
    let (storage, mut rig, ..) = store(10, 8);
    let task = rig.writer.next_index_merge().unwrap();
    let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
    let mut made = Vec::new();
    for budget in [1, 100, u64::MAX] {
        let mut merge = IndexMerge::new(&reader, &snapshot, task.clone()).unwrap();
        let mut steps = 1;
        let run = loop {
            if let Some(run) = merge.step(budget).unwrap() {
                break run;
            }
            steps += 1;
        };
        let name = format!("{DIRECTORY}/{}", run_name(run.number));
        let bytes = read(&storage, &name);
        storage.remove(&name).unwrap();
        made.push((steps, run, bytes));
    }
    let [(one, run, bytes), (some, ..), (few, ..)] = &made[..] else { unreachable!() };
    assert!(made.iter().all(|(_, other, same)| other == run && same == bytes));
    // The events of a segment are one step too.
    let steps = run.totals.entries + 6 + 1..=run.totals.entries + 6 + 8;
    assert!(steps.contains(one) && *few == 6, "an entry at a time, or each phase at once: {one} {few}");
    assert!(some > few && some < one, "{one} {some} {few}");
}

#[test]
fn what_cannot_be_merged_leaves_nothing_behind() {
    let (storage, mut rig, ..) = store(11, 8);
    let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
    // No room beside what must be left.
    storage.set_capacity(1 << 40);
    let task = IndexMergeTask { keep_free_bytes: 1 << 40, ..rig.writer.next_index_merge().unwrap() };
    let mut merge = IndexMerge::new(&reader, &snapshot, task).unwrap();
    let full = merge.step(1 << 20).unwrap_err();
    assert!(matches!(&full, IndexMergeError::Media(error) if error.is_no_space()), "{full}");
    merge.discard();
    assert_eq!(index_files(&storage), [""; 0]);
    storage.set_capacity(u64::MAX);
    // An input that is damaged.
    let segment = snapshot_segment(&rig, 2);
    let name = format!("{DIRECTORY}/{}", segment_name(2));
    let intact = read(&storage, &name);
    let mut bytes = intact.clone();
    bytes[segment.frames_end as usize + 60] ^= 1;
    bytes[4096 + 20] ^= 1;
    replace(&storage, &name, &bytes);
    let mut merge = IndexMerge::new(&rig.reader(), &snapshot, rig.writer.next_index_merge().unwrap()).unwrap();
    let error = (0..100).find_map(|_| merge.step(1 << 20).err()).unwrap();
    assert!(matches!(error, IndexMergeError::Segment { .. }), "{error}");
    merge.discard();
    assert_eq!(index_files(&storage), [""; 0]);
    replace(&storage, &name, &intact);
    // What it was made of is dropped before it is named.
    let task = rig.writer.next_index_merge().unwrap();
    let numbers = task.plan.inputs.clone();
    let mut merge = IndexMerge::new(&rig.reader(), &snapshot, task.clone()).unwrap();
    let run = (0..100).find_map(|_| merge.step(1 << 20).unwrap()).unwrap();
    assert_eq!(index_files(&storage).len(), 1);
    rig.writer.forget(&numbers);
    rig.drain();
    assert_eq!(rig.writer.publish_run(run), None);
    rig.drain();
    assert_eq!(index_files(&storage), [""; 0]);
    let gone = IndexMerge::new(&rig.reader(), &rig.writer.snapshot(), task).unwrap_err();
    assert!(matches!(gone, IndexMergeError::Gone { what: "segment", .. }), "{gone}");
}

fn snapshot_segment(rig: &Rig, number: u64) -> Summary {
    *rig.writer.manifest().segments.iter().find(|segment| segment.number == number).unwrap().summary().unwrap()
}

#[test]
fn people_can_look_at_a_run() {
    let (storage, mut rig, ..) = store(12, 8);
    rig.merge_index(1 << 20);
    let file = storage.open(&format!("{DIRECTORY}/{}", index_files(&storage)[0]), false).unwrap();
    let words = inspect(file.as_ref()).unwrap().unwrap();
    for expected in ["index run 1 ", "level 1", "8 segments, 1 to 8", "entries", "segment 8 ", "trailer: whole"] {
        assert!(words.contains(expected), "{expected:?} in\n{words}");
    }
    file.write_all_at(file.len().unwrap() - 300, &[1]).unwrap();
    let words = inspect(file.as_ref()).unwrap().unwrap();
    assert!(words.contains("trailer: run trailer damaged"), "{words}");
    let words = inspect(storage.open(MANIFEST_NAME, false).unwrap().as_ref()).unwrap().unwrap();
    assert!(words.contains("index run 1 ") && words.contains("level 1"), "{words}");
}
