//! Runs as bytes: what was put comes back, everything else is an error; and what a manifest says is to be merged.

use super::codec::*;
use super::plan::{Item, join};
use super::write::{RunBytes, joined, tail};
use super::*;
use crate::frame::{Mark, Note, RecordKind};
use crate::journal::bytes::{Put, Take};
use crate::journal::event::{self, Event};
use crate::journal::index::{Entry, LSN_SPAN, What};
use crate::journal::layout::{Summary, VERSION};
use crate::journal::manifest::{Manifest, SegmentInfo, SegmentState};
use crate::journal::reader::Reader;
use crate::journal::snapshot::SegmentView;
use crate::media::{Memory, Storage};
use crate::types::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

const GOLDEN: &str = include_str!("golden-v1.txt");

fn id(number: u8) -> SegmentId {
    SegmentId::new([number; 16]).unwrap()
}

fn info() -> RunInfo {
    RunInfo {
        number: 7,
        id: id(9),
        level: 2,
        timeline: Timeline::new([3; 16]).unwrap(),
        segments: 2,
        first_segment: 4,
        last_segment: 5,
        first_lsn: Lsn(1000),
        last_lsn: Lsn(1000 + (1 << 33)),
        chunks: 12,
        totals: RunTotals::default(),
        emptied: false,
        regions: Vec::new(),
    }
}

fn rows() -> [SegmentRow; 2] {
    let row = |number: u8, last, first_chunk, chunks| {
        let (number, id, last_lsn) = (number.into(), id(number), Lsn(last));
        let events = events_of(number);
        let (events_bytes, events_crc) = (events.len() as u32, crc32c::crc32c(&events));
        SegmentRow { number, id, last_lsn, first_chunk, chunks, events_bytes, events_crc }
    };
    [row(4, 2000, 0, 10), row(5, 1000 + (1 << 33), 10, 2)]
}

fn narrow(disk: u16, sector: u64, lsn: u64, chunk: u32) -> Entry {
    Entry { disk, sector, lsn, sectors: 8, crc: 77, chunk, at: 16, what: What::Data }
}

fn wide(disk: u16, sector: u64, lsn: u64, sectors: u64) -> Entry {
    Entry { disk, sector, lsn, sectors, crc: 0, chunk: 0, at: 0, what: What::Discard }
}

/// A mark in each segment, at its last LSN.
fn event(number: u64) -> Event {
    let lsn = if number == 4 { 2000 } else { 1000 + (1 << 33) };
    let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(77) };
    let mark = Note::Mark(Mark { label: format!("in {number}"), ..Mark::default() });
    let (timeline, lsn) = (Timeline::new([3; 16]).unwrap(), Lsn(lsn));
    Event { timeline, lsn, stamp, kind: RecordKind::Mark, disk: None, note: Some(mark) }
}

fn events_of(number: u64) -> Vec<u8> {
    event::encode(GroupId::new([7; 16]).unwrap(), &[event(number)])
}

/// The run's file in a store, and what the manifest would say of it.
fn written(entries: &[Entry]) -> (Memory, Arc<RunInfo>) {
    let mut run = RunBytes::begin(ReplicaId::new([5; 16]).unwrap(), info(), &rows());
    entries.iter().for_each(|entry| run.add(*entry));
    let held = run.held();
    let (mut bytes, info) = run.finish();
    bytes.extend(rows().map(|row| events_of(row.number).into()));
    bytes.extend(tail(&info));
    let storage = Memory::new();
    storage.create(&run_name(info.number)).unwrap().write_at(0, &bytes).unwrap();
    let length: u64 = bytes.iter().map(|piece| piece.len() as u64).sum();
    assert!(length == info.totals.file_bytes && held < length);
    (storage, Arc::new(info))
}

fn small() -> Vec<Entry> {
    vec![
        narrow(1, 0, 1000, 0),
        narrow(1, 8, 1500, 9),
        narrow(1, 8, 1000 + (1 << 33), 11),
        narrow(2, 1 << 40, 1001, 10),
        wide(1, 5, 1800, 1 << 20),
    ]
}

fn read(storage: &Memory, info: &RunInfo) -> Vec<Entry> {
    let reader = Reader::new(Arc::new(storage.clone()), "", 1 << 20);
    let mut found = Vec::new();
    for disk in [1, 2] {
        let disk = DiskId::new(disk).unwrap();
        reader.run_overlapping(info, disk, Extent::new(0, DISK_MAX), |entry| found.push(*entry)).unwrap();
    }
    found
}

fn bytes_of(storage: &Memory) -> Vec<u8> {
    let file = storage.open(&run_name(7), false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn version_1_is_written_as_it_was_and_read_as_it_was() {
    let (storage, info) = written(&small());
    let mut text = String::new();
    let mut put = Put::default();
    put_info(&mut put, &info);
    for (what, bytes) in [("file", bytes_of(&storage)), ("manifest's entry", put.0)] {
        writeln!(text, "{what} {}", bytes.len()).unwrap();
        for (row, bytes) in bytes.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:06x} {hex}", row * 16).unwrap();
        }
    }
    if std::env::var_os("CDP_BLESS").is_some() {
        let tree = crate::media::Disk::open(concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/level")).unwrap();
        let file = tree.open("golden-v1.txt", true).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(0, text.as_bytes()).unwrap();
        return;
    }
    assert!(text == GOLDEN, "the format changed: raise its version\n{text}");
    // The same bytes, from the text.
    let mut file = vec![0; info.totals.file_bytes as usize];
    for line in GOLDEN.lines().skip(1).take_while(|line| !line.starts_with("manifest")) {
        let (at, hex) = line.split_once(' ').unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        (0..hex.len() / 2).for_each(|n| file[at + n] = u8::from_str_radix(&hex[n * 2..n * 2 + 2], 16).unwrap());
    }
    let storage = Memory::new();
    storage.create(&run_name(7)).unwrap().write_all_at(0, &file).unwrap();
    let mut expected = small();
    expected.sort();
    let mut found = read(&storage, &info);
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_run_says_of_each_entry_which_segment_it_is_of() {
    let (storage, info) = written(&small());
    let reader = Reader::new(Arc::new(storage), "", 1 << 20);
    let tables = reader.run_tables(&info).unwrap();
    let of: Vec<_> = small().iter().map(|entry| tables.segment_of(entry)).collect();
    assert_eq!(of, [Some((0, 0)), Some((0, 9)), Some((1, 1)), Some((1, 0)), Some((0, 0))]);
    assert_eq!(tables.segment_of(&narrow(1, 0, 1000, 12)), None);
    assert_eq!(tables.segment_of(&wide(1, 0, 2001, 100)), Some((1, 0)));
    assert_eq!(tables.segment_of(&wide(1, 0, u64::MAX, 100)), None);
}

#[test]
fn events_come_back_as_those_of_the_segments_that_are_asked_for() {
    let (storage, info) = written(&small());
    let reader = Reader::new(Arc::new(storage), "", 1 << 20);
    let plain = plain_segment();
    assert_eq!(reader.run_events(&info, |_| Some(&plain)).unwrap(), [event(4), event(5)]);
    assert_eq!(reader.run_events(&info, |row| Some(&plain).filter(|_| row.number == 5)).unwrap(), [event(5)]);
    assert_eq!(reader.run_events(&info, |_| None).unwrap(), []);
    let tables = reader.run_tables(&info).unwrap();
    let second = reader.run_event_bytes(&info, &tables.segments[1], events_of(4).len() as u64).unwrap();
    assert_eq!(second, events_of(5));
    assert!(reader.run_event_bytes(&info, &tables.segments[1], 0).is_err(), "bytes of another segment");
}

/// What a catalogue is made of reads no more of a run than that needs, and of one without events nothing.
#[test]
fn events_are_read_without_tops_and_no_events_without_the_file() {
    let (storage, info) = written(&small());
    let file = storage.open(&run_name(7), true).unwrap();
    file.write_all_at(block_at(info.tops_at()) + 100, &[0xff; 8]).unwrap();
    let reader = Reader::new(Arc::new(storage.clone()), "", 1 << 20);
    let plain = plain_segment();
    assert_eq!(reader.run_events(&info, |_| Some(&plain)).unwrap(), [event(4), event(5)]);
    let disk = DiskId::new(1).unwrap();
    let entries = |reader: &Reader| reader.run_overlapping(&info, disk, Extent::new(0, DISK_MAX), |_| ());
    assert!(reader.run_tops(&info).is_err() && entries(&reader).is_err(), "damaged tops");
    drop((file, reader));
    storage.remove(&run_name(7)).unwrap();
    let reader = Reader::new(Arc::new(storage), "", 1 << 20);
    assert!(reader.run_events(&info, |_| Some(&plain)).is_err());
    let totals = RunTotals { events_bytes: 0, ..info.totals };
    let without = RunInfo { totals, ..info.as_ref().clone() };
    assert_eq!(reader.run_events(&without, |_| Some(&plain)).unwrap(), []);
}

#[test]
fn a_segment_that_no_merge_can_read_is_merged_around() {
    let all = manifest(&[1; 20], None);
    let next = |without: &[u64]| IndexPlan::next(&all, &without.iter().copied().collect()).map(|plan| plan.inputs[0]);
    assert_eq!(next(&[]), Some(1));
    assert_eq!(next(&[3]), Some(4));
    assert_eq!(next(&[3, 11]), Some(12));
    assert_eq!(next(&[7, 14]), None);
}

#[test]
fn many_entries_are_found_by_range_and_by_region() {
    // Three groups and more on the first disk, one on the second, some wide ones.
    let mut entries: Vec<_> = (0..110_000).map(|n| narrow(1, n * 8, 1000 + n, 0)).collect();
    entries.extend((0..500).map(|n| narrow(2, (n * n) << 17, 1000 + n, 1)));
    entries.extend((0..300).map(|n| wide(1, n * 3000, 1000 + n, 2500)));
    let (storage, info) = written(&entries);
    assert_eq!(info.totals.entries, entries.len() as u64);
    assert!(info.totals.blocks[3] >= 6, "{:?}", info.totals);
    let reader = Reader::new(Arc::new(storage), "", 1 << 20);
    for (disk, range) in [
        (1, Extent::new(0, 4096)),
        (1, Extent::new(100 << 20, 64 << 20)),
        (1, Extent::new(430 << 20, 1 << 20)),
        (2, Extent::new(0, 64 << 20)),
        (2, Extent::new(4 << 26, 4096)),
        (2, Extent::new(1 << 40, 1 << 30)),
        (3, Extent::new(0, DISK_MAX)),
    ] {
        let disk = DiskId::new(disk).unwrap();
        let mut found = Vec::new();
        reader.run_overlapping(&info, disk, range, |entry| found.push(*entry)).unwrap();
        let is_in = |entry: &&Entry| {
            entry.disk == disk.get() && entry.sector * 512 < range.end() && entry.end() * 512 > range.offset
        };
        let expected: Vec<_> = entries.iter().filter(is_in).copied().collect();
        assert_eq!(found, expected, "{disk} {range:?}");
        let touched = (range.offset / REGION..range.end().div_ceil(REGION)).any(|region| info.touches(disk, region));
        assert!(touched || expected.is_empty());
    }
    assert!(!info.touches(DiskId::new(1).unwrap(), 9) && !info.touches(DiskId::new(3).unwrap(), 0));
    assert!(info.regions.len() <= RANGES_MAX);
}

#[test]
fn limits_are_refused() {
    let item = |number: u64, first, last, chunks| {
        let (first_lsn, last_lsn, timeline) = (Lsn(first), Lsn(last), info().timeline);
        Item { level: 0, number, timeline, first_lsn, last_lsn, chunks }
    };
    let far = 1 + LSN_SPAN;
    assert_eq!(join(&[item(1, 1, 5, 3), item(2, 6, far - 1, 4)]), Ok((Lsn(1), Lsn(far - 1), 7)));
    let span = PlanError::LsnSpan { first: Lsn(1), last: Lsn(far) };
    assert_eq!(join(&[item(1, 1, 5, 3), item(2, 6, far, 4)]), Err(span));
    let chunks = PlanError::Chunks { chunks: 0xffff_ffff };
    assert_eq!(join(&[item(1, 1, 5, 0xffff_fffe), item(2, 6, 7, 1)]), Err(chunks));
    assert_eq!(join(&[item(1, 1, 5, 0xffff_fffd), item(2, 6, 7, 1)]), Ok((Lsn(1), Lsn(7), 0xffff_fffe)));
}

/// A manifest with segments of these timelines, one after another; each a thousand LSNs, the `far`-th far behind the one before.
fn manifest(timelines: &[u8], far: Option<usize>) -> Manifest {
    let mut manifest = crate::journal::manifest::tests::full();
    let summary = *manifest.segments[0].summary().unwrap();
    manifest.runs.clear();
    manifest.segments.clear();
    let mut lsn = 0;
    for (at, timeline) in timelines.iter().enumerate() {
        lsn += if far == Some(at) { LSN_SPAN } else { 0 };
        let timeline = Timeline::new([*timeline; 16]).unwrap();
        let (prev_lsn, first_lsn, last_lsn) = (Lsn(lsn), Lsn(lsn + 1), Lsn(lsn + 1000));
        let summary = Summary { timeline, prev_lsn, first_lsn, last_lsn, ..summary };
        lsn += 1000;
        let (number, state) = (at as u64 + 1, SegmentState::Sealed(summary));
        manifest.segments.push(SegmentInfo { number, id: id(at as u8 + 1), state, key: 0 });
    }
    manifest
}

/// What publishing a plan's run would make of the manifest.
fn publish(manifest: &mut Manifest, plan: &IndexPlan, number: u64) {
    let of = |number: u64| match plan.level {
        1 => (number, number),
        _ => manifest.runs.iter().find(|run| run.number == number).map(|r| (r.first_segment, r.last_segment)).unwrap(),
    };
    let (first_segment, last_segment) = (of(plan.inputs[0]).0, of(*plan.inputs.last().unwrap()).1);
    let summary = |number: u64| *manifest.segments.iter().find(|s| s.number == number).unwrap().summary().unwrap();
    let (first, last) = (summary(first_segment), summary(last_segment));
    let (level, timeline, first_lsn, last_lsn) = (plan.level, first.timeline, first.first_lsn, last.last_lsn);
    let run = RunInfo { number, level, timeline, first_segment, last_segment, first_lsn, last_lsn, ..info() };
    manifest.runs.retain(|other| !run.covers(other.first_segment));
    manifest.runs.push(Arc::new(run));
    manifest.runs.sort_by_key(|run| run.first_segment);
}

fn none() -> BTreeSet<u64> {
    BTreeSet::new()
}

fn plans(manifest: &mut Manifest) -> Vec<IndexPlan> {
    let mut plans = Vec::new();
    while let Some(plan) = IndexPlan::next(manifest, &none()) {
        publish(manifest, &plan, 100 + plans.len() as u64);
        plans.push(plan);
    }
    plans
}

#[test]
fn whole_groups_of_one_timeline_are_merged_up_to_the_top() {
    assert_eq!(IndexPlan::next(&manifest(&[1; 7], None), &none()), None);
    let plan = IndexPlan::next(&manifest(&[1; 9], None), &none()).unwrap();
    assert_eq!(plan, IndexPlan { level: 1, inputs: (1..=8).collect() });
    // Four of one timeline and nine of another.
    let mut timelines = vec![1; 4];
    timelines.extend([2; 9]);
    let plan = IndexPlan::next(&manifest(&timelines, None), &none()).unwrap();
    assert_eq!(plan.inputs, (5..=12).collect::<Vec<_>>());
    // 200 segments: 25 of level 1, of which 24 make 3 of level 2.
    let mut all = manifest(&[1; 200], None);
    let plans = plans(&mut all);
    assert_eq!(plans.iter().filter(|plan| plan.level == 1).count(), 25);
    assert_eq!(plans.iter().filter(|plan| plan.level == 2).count(), 3);
    assert_eq!(plans.last().unwrap().inputs, (116..124).collect::<Vec<_>>());
    let levels: Vec<_> = all.runs.iter().map(|run| run.level).collect();
    assert_eq!(levels, [2, 2, 2, 1]);
}

#[test]
fn what_one_run_cannot_hold_is_merged_around() {
    // No run holds LSNs on both sides of the eleventh segment's first.
    let mut all = manifest(&[1; 24], Some(10));
    let first: Vec<_> = plans(&mut all).iter().map(|plan| (plan.level, plan.inputs[0])).collect();
    assert_eq!(first, [(1, 1), (1, 11)]);
}

#[test]
fn ranges_are_joined_where_they_are_nearest() {
    let range = |disk, first, last| RegionRange { disk, first, last };
    let ranges =
        vec![range(2, 5, 5), range(1, 10, 12), range(1, 0, 0), range(1, 1, 1), range(1, 20, 20), range(1, 22, 30)];
    assert_eq!(
        joined(ranges.clone(), 9),
        [range(1, 0, 1), range(1, 10, 12), range(1, 20, 20), range(1, 22, 30), range(2, 5, 5)]
    );
    assert_eq!(joined(ranges.clone(), 4), [range(1, 0, 1), range(1, 10, 12), range(1, 20, 30), range(2, 5, 5)]);
    assert_eq!(joined(ranges.clone(), 1), [range(1, 0, 30), range(2, 5, 5)]);
    let even: Vec<_> = (0..1000).map(|n| range(1, n * 2, n * 2)).collect();
    assert_eq!(joined(even, 128).len(), 128);
}

proptest! {
    #[test]
    fn ranges_cover_what_they_did(points in prop::collection::vec((1u16..4, 0u32..5000), 1..300), most in 1usize..40) {
        let ranges = points.iter().map(|(disk, at)| RegionRange { disk: *disk, first: *at, last: *at }).collect();
        let info = RunInfo { regions: joined(ranges, most), ..info() };
        prop_assert!(info.regions.len() <= most.max(3));
        for (disk, at) in points {
            prop_assert!(info.touches(DiskId::new(disk).unwrap(), at.into()));
        }
        let mut put = Put::default();
        let blocks = [1, 1, 0, 1, 1];
        let totals = RunTotals { file_bytes: RunTotals::bytes_of(&blocks, 0), blocks, ..RunTotals::default() };
        put_info(&mut put, &RunInfo { totals, ..info.clone() });
        let back = take_info(&mut Take::new("run", &put.0)).unwrap();
        prop_assert_eq!(back.regions, info.regions);
    }

    #[test]
    fn garbage_is_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..600), header in any::<bool>()) {
        let _ = take_info(&mut Take::new("run", &bytes));
        let _ = SegmentRow::take(&mut Take::new("row", &bytes));
        let _ = Top::take(&mut Take::new("top", &bytes));
        let _ = (decode_header(&bytes), decode_trailer(&bytes));
        // The same behind a right prefix and checksum: fields alone decide.
        let mut put = Put::begin(if header { *b"CDPRUNH\x01" } else { *b"CDPRUNT\x01" }, VERSION, 0);
        put.bytes(&bytes[..bytes.len().min(496)]);
        let whole = put.finish(512);
        let _ = (decode_header(&whole), decode_trailer(&whole));
    }

    /// A block that is not what was written is an error, never another entry.
    #[test]
    fn flipped_bits_are_noticed(at in 0usize..40_000, bit in 0u8..8) {
        let (storage, info) = written(&small());
        let file = storage.open(&run_name(7), true).unwrap();
        let at = at % info.totals.file_bytes as usize;
        let mut byte = [0];
        file.read_exact_at(at as u64, &mut byte).unwrap();
        file.write_all_at(at as u64, &[byte[0] ^ 1 << bit]).unwrap();
        let reader = Reader::new(Arc::new(storage.clone()), "", 1 << 20);
        let mut found = Vec::new();
        let read = [1, 2].map(|disk| {
            let disk = DiskId::new(disk).unwrap();
            reader.run_overlapping(&info, disk, Extent::new(0, DISK_MAX), |entry| found.push(*entry))
        });
        if read.iter().all(Result::is_ok) && reader.run_tables(&info).is_ok() {
            let mut expected = small();
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
            // Zeros behind the header, events, or the trailer, which only a start and `verify` look at.
            let at = at as u64;
            let events_at = RunTotals::events_at(&info.totals.blocks);
            prop_assert!((512..BLOCKS_AT).contains(&at) || at >= events_at);
        }
        let plain = plain_segment();
        match reader.run_events(&info, |_| Some(&plain)) {
            Ok(found) => prop_assert_eq!(found, vec![event(4), event(5)]),
            Err(_) => prop_assert!(at < BLOCKS_AT as usize + 4096 || at as u64 >= info.totals.file_bytes - 8192),
        }
    }
}

/// Tables are read as a whole: a manifest that says that they are long would have memory taken for nothing.
#[test]
fn a_run_whose_tables_are_longer_than_it_needs_is_refused() {
    let (_, info) = written(&small());
    let taken = |blocks: [u32; 5]| {
        let totals =
            RunTotals { file_bytes: RunTotals::bytes_of(&blocks, info.totals.events_bytes), blocks, ..info.totals };
        let mut put = Put::default();
        put_info(&mut put, &RunInfo { totals, ..(*info).clone() });
        take_info(&mut Take::new("run", &put.0))
    };
    let [segments, narrow, wide, fences, tops] = info.totals.blocks;
    assert_eq!(taken(info.totals.blocks).unwrap(), *info);
    for blocks in [
        [1 << 30, narrow, wide, fences, tops],
        [segments + 1, narrow, wide, fences, tops],
        [segments, narrow, wide, fences, tops + 1],
        [segments, narrow, wide, 1 << 30, 1 << 24],
        [segments, 1 << 30, wide, fences, tops],
    ] {
        taken(blocks).unwrap_err();
    }
}

/// The same where the manifest's numbers fit to each other and not to the file.
#[test]
fn a_run_whose_file_is_shorter_than_the_manifest_says_is_not_read() {
    let (storage, info) = written(&small());
    let file = storage.open(&run_name(7), true).unwrap();
    file.set_len(info.totals.file_bytes - 1).unwrap();
    let reader = Reader::new(Arc::new(storage), "", 1 << 20);
    let error = reader.run_tables(&info).unwrap_err().to_string();
    assert!(error.contains("cut short"), "{error}");
}

/// A segment that is not sealed at rest: of any, for who asks only that.
fn plain_segment() -> SegmentView {
    let (id, timeline) = (SegmentId::new([9; 16]).unwrap(), Timeline::new([9; 16]).unwrap());
    SegmentView::active((9, id, 0), timeline, Lsn::ZERO, Vec::new())
}
