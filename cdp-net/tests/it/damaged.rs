//! What `verify` calls good of a damaged replica is what can be restored, disk by disk and moment by moment.

use crate::dice::Dice;
use crate::kit::{Place, label, noise, restored as restored_at, seeded, wait_for};
use bytes::Bytes;
use cdp_core::capture::State;
use cdp_core::frame::{Compression, Encoder, Part, Payload, RawFrame, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Fault, Faults, Faulty, MediaErrorKind, Memory, Operation, Storage};
use cdp_core::replica::base::{BaseWriter, file_names};
use cdp_core::replica::{BASE_DIRECTORY, JOURNAL_DIRECTORY, Replica};
use cdp_core::trust::KeyHolder;
use cdp_core::types::*;
use cdp_core::when::When;
use cdp_net::host::{Host, load_idle};
use cdp_net::owner::{Connection, Handler, PolicyChange, Request};
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::report::Range;
use cdp_net::verify::{Verified, verify};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// So small that most of it is written over again and again.
const SIZE: usize = 32 * BLOCK as usize;
const NAMES: [&str; 2] = ["root", "data"];

fn disk(number: u16) -> DiskId {
    DiskId::new(number).unwrap()
}

fn timeline(number: u8) -> Timeline {
    Timeline::new([number; 16]).unwrap()
}

/// A replica of two disks in memory, and what each held after each record.
struct Built {
    storage: Memory,
    moments: Vec<(Timeline, Lsn, [Vec<u8>; 2])>,
}

struct Builder {
    writer: Writer,
    executor: Executor,
    dice: Dice,
    group: GroupId,
    disks: [Vec<u8>; 2],
    built: Built,
}

impl Builder {
    fn new(seed: u64) -> Self {
        let (memory, mut dice) = (Memory::new(), Dice::new(seed));
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let (replica, group) = (ReplicaId::new([5; 16]).unwrap(), GroupId::new([7; 16]).unwrap());
        let opened = create(storage.as_ref(), Manifest::new(replica, group, "group")).unwrap();
        let disks = [(); 2].map(|()| dice.bytes(SIZE));
        let options = Options { directory: JOURNAL_DIRECTORY.to_owned(), keep_free_bytes: 0, ..Options::default() };
        let mut drawn = 0u64;
        let ids = Box::new(move || {
            drawn += 1;
            u128::from(drawn).to_le_bytes()
        });
        let writer = Writer::new(opened, options, ids);
        let (executor, built) = (Executor::new(Arc::clone(&storage)), Built { storage: memory, moments: Vec::new() });
        let mut builder = Self { writer, executor, dice, group, disks, built };
        for (number, name) in (1..).zip(NAMES) {
            let mut base = BaseWriter::create(storage.as_ref(), replica, disk(number), SIZE as u64).unwrap();
            base.data(&builder.disks[usize::from(number) - 1], Lsn::ZERO).unwrap();
            let base = Some(base.finish(storage.as_ref(), Lsn::ZERO).unwrap().named(Lsn::ZERO));
            let (id, name, source, added, size) = (disk(number), name.into(), String::new(), Lsn::ZERO, SIZE as u64);
            let info = DiskInfo { id, name, size, source, added, removed: None, stopped: None, base };
            builder.writer.edit(|manifest| manifest.disks.push(info));
        }
        builder
    }

    fn drain(&mut self) {
        drain(&mut self.writer, &self.executor, MonoTime(1));
    }

    fn open_timeline(&mut self, number: u8, fork: u64) {
        self.writer.open_timeline(TimelineInfo {
            id: timeline(number),
            number: number.into(),
            parent: (number > 1).then(|| timeline(number - 1)),
            fork: Lsn(fork),
            last: None,
            state: TimelineState::Open,
            role: TimelineRole::Trunk,
            opened: WallTime(fork + 1),
        });
        self.drain();
    }

    /// Frames of a few writes, zeros and discards each.
    fn records(&mut self, on: Timeline, from: u64, to: u64, first: u64) {
        let mut lsn = from;
        while lsn <= to {
            let count = (1 + self.dice.below(5)).min(to + 1 - lsn);
            let prev_lsn = Lsn(if lsn == first { 0 } else { lsn - 1 });
            let parts: Vec<Part> = (lsn..lsn + count).flat_map(|lsn| self.record(on, lsn)).collect();
            lsn += count;
            let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
            let frame =
                RawFrame { timeline: on, prev_lsn, settled: Lsn(lsn - 1), epoch: ClockEpoch(1), parts, plain_bytes };
            let packed = if self.dice.permille(500) { Compression::None } else { Compression::Zstd(1) };
            let mut frame = Encoder::new().encode(frame, self.group, packed);
            while let Err(refused) = self.writer.append(MonoTime(1), frame) {
                frame = refused.frame;
                self.drain();
            }
            self.drain();
        }
    }

    fn record(&mut self, on: Timeline, lsn: u64) -> Vec<Part> {
        let which = self.dice.below(2) as usize;
        let sectors = SIZE as u64 / SECTOR;
        let at = self.dice.below(sectors);
        let long = if self.dice.permille(300) { 100 } else { 12 };
        let extent = Extent::new(at * SECTOR, (1 + self.dice.below(long)).min(sectors - at) * SECTOR);
        let range = extent.offset as usize..extent.end() as usize;
        let (id, time) = (disk(which as u16 + 1), WallTime(lsn));
        let parts = match self.dice.below(8) {
            kind @ (0 | 1) => {
                self.disks[which][range].fill(0);
                let kind = if kind == 0 { RecordKind::Zero } else { RecordKind::Discard };
                vec![Part::plain(kind, Some(id), extent, Lsn(lsn), time)]
            }
            _ => {
                let data = self.dice.bytes(extent.length as usize);
                self.disks[which][range].copy_from_slice(&data);
                let payload = Payload::new(extent.offset, Bytes::from(data)).unwrap();
                payload.into_parts(RecordKind::Write, id, Lsn(lsn), time).collect()
            }
        };
        self.built.moments.push((on, Lsn(lsn), self.disks.clone()));
        parts
    }

    fn merge_index(&mut self, storage: &Memory) {
        while let Some(task) = self.writer.next_index_merge() {
            let reader = Arc::new(Reader::new(Arc::new(storage.clone()), JOURNAL_DIRECTORY, 1 << 20));
            let mut merge = IndexMerge::new(&reader, &self.writer.snapshot(), task).unwrap();
            let run = loop {
                if let Some(run) = merge.step(1 << 20).unwrap() {
                    break run;
                }
            };
            assert!(self.writer.publish_run(run).is_some());
            self.drain();
        }
    }
}

/// Two timelines, many short segments, some of whose indexes are in runs.
fn build(seed: u64) -> Built {
    let mut builder = Builder::new(seed);
    let storage = builder.built.storage.clone();
    builder.open_timeline(1, 0);
    for round in 0..12 {
        builder.records(timeline(1), round * 12 + 1, (round + 1) * 12, 1);
        builder.writer.roll();
        builder.drain();
    }
    builder.merge_index(&storage);
    builder.open_timeline(2, 144);
    for round in 12..16 {
        builder.records(timeline(2), round * 12 + 1, (round + 1) * 12, 145);
        builder.writer.roll();
        builder.drain();
    }
    builder.writer.close(true);
    builder.drain();
    assert_eq!(builder.writer.state(), WriterState::Closed);
    // Nobody knows of a moment before the first segment's end.
    let whole = load(&storage).unwrap();
    let is_there = |on, lsn| whole.catalogue().branch(on).is_some_and(|branch| branch.is_restorable(lsn));
    builder.built.moments.retain(|(on, lsn, _)| is_there(*on, *lsn));
    assert!(builder.built.moments.len() > 150);
    builder.built
}

fn names(storage: &Memory) -> Vec<String> {
    let of = |directory: &str| {
        let names = storage.list(directory).unwrap().into_iter();
        names.map(|name| format!("{directory}/{name}")).collect::<Vec<_>>()
    };
    [of(JOURNAL_DIRECTORY), of(BASE_DIRECTORY)].concat()
}

fn read(storage: &Memory, name: &str) -> Vec<u8> {
    let file = storage.open(name, false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn write(storage: &Memory, name: &str, bytes: &[u8]) {
    storage.create(name).unwrap().write_all_at(0, bytes).unwrap();
}

fn copy(from: &Memory) -> Memory {
    let to = Memory::new();
    for name in names(from).into_iter().chain(["MANIFEST", "MANIFEST.copy"].map(str::to_owned)) {
        write(&to, &name, &read(from, &name));
    }
    to
}

fn verified(storage: &Memory) -> Verified {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap()
}

fn load(storage: &Memory) -> Option<Replica> {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    load_idle(&storage, &KeyHolder::default()).ok()
}

/// Restores a disk as a restore does: none where that fails.
fn restored(replica: &Replica, (on, lsn): (Timeline, Lsn), number: u16) -> Option<Vec<u8>> {
    let moment = replica.resolve(&When::Lsn { timeline: Some(on.into()), lsn }).ok()?;
    let view = replica.view(moment.timeline, moment.lsn).ok()?;
    let found = view.disks().iter().find(|found| found.id == disk(number))?;
    let (mut all, mut buffer) = (vec![0; found.size as usize], vec![0; 1 << 20]);
    let read = view.walk(found, &mut buffer, |at, bytes| {
        all[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok::<_, ReadError>(())
    });
    read.ok().map(|()| all)
}

fn has(ranges: &[Range], (on, lsn): (Timeline, Lsn)) -> bool {
    ranges.iter().any(|range| range.timeline.matches(&on) && range.from_lsn <= lsn && lsn <= range.to_lsn)
}

/// What verify says is what a restore finds; gives how many moments are lost, and how many come back behind lost ones.
fn check(built: &Built, storage: &Memory, what: &str, every: (usize, usize)) -> (usize, usize) {
    let (said, replica) = (verified(storage), load(storage));
    assert!(said.ok || said.disks.len() == 2 || replica.is_none(), "{what}: {said:?}");
    let text = serde_json::to_string(&said).unwrap();
    assert!(!text.contains(&u64::MAX.to_string()), "{what}: {text}");
    let (mut lost, mut back) = (0, 0);
    for number in 1..=2 {
        let of_disk = said.disks.iter().find(|disk| disk.disk == NAMES[usize::from(number) - 1]);
        let good = of_disk.map_or(&said.good, |disk| &disk.good);
        let before = lost;
        for (on, lsn, held) in built.moments.iter().skip(every.0).step_by(every.1) {
            let found = replica.as_ref().and_then(|replica| restored(replica, (*on, *lsn), number));
            let expected = &held[usize::from(number) - 1];
            assert!(found.as_ref().is_none_or(|found| found == expected), "{what}: wrong bytes at {lsn} of {number}");
            assert_eq!(has(good, (*on, *lsn)), found.is_some(), "{what}: disk {number} at {lsn}: {said:#?}");
            if let Some(of_disk) = of_disk {
                assert!(found.is_some() || has(&of_disk.lost, (*on, *lsn)), "{what}: {lsn} is neither lost nor good");
            }
            lost += usize::from(found.is_none());
            back += usize::from(found.is_some() && lost > before);
        }
    }
    for (on, lsn, _) in &built.moments {
        let all = said.ok || said.disks.iter().all(|disk| has(&disk.good, (*on, *lsn))) && !said.disks.is_empty();
        assert_eq!(has(&said.good, (*on, *lsn)), all, "{what}: all disks at {lsn}");
    }
    (lost, back)
}

/// The moments with damage, both ways: nothing that is good is called lost, nothing that is lost is called good.
#[test]
fn what_verify_calls_good_is_what_restores_whatever_byte_is_flipped() {
    let built = build(1);
    assert_eq!(check(&built, &built.storage, "whole", (0, 1)), (0, 0));
    assert!(names(&built.storage).iter().any(|name| name.ends_with(".idx")));
    let rounds: u64 = std::env::var("CDP_TEST_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let (mut some, mut none, mut come_back) = (0, 0, 0);
    for seed in 0..rounds {
        let mut dice = Dice::new(seed);
        let (storage, names) = (copy(&built.storage), names(&built.storage));
        let name = &names[dice.below(names.len() as u64) as usize];
        let mut bytes = read(&storage, name);
        let at = dice.below(bytes.len() as u64) as usize;
        // One bit, or what a sector that was lost leaves.
        match dice.below(3) {
            0 => bytes[at / 512 * 512..].iter_mut().take(512).for_each(|byte| *byte = 0),
            _ => bytes[at] ^= 1 << dice.below(8),
        }
        storage.remove(name).unwrap();
        write(&storage, name, &bytes);
        // Every third moment, others each time: the end as well as what lies before.
        let what = format!("seed {seed}: {name} at {at}");
        let (lost, back) = check(&built, &storage, &what, (seed as usize % 3, 3));
        some += u64::from(lost > 0 && lost < 2 * built.moments.len() / 3);
        none += u64::from(lost == 0);
        come_back += u64::from(back > 0);
    }
    assert!(some > rounds / 10 && none > 0 && come_back > 0, "{some} {none} {come_back}");
}

/// A stretch of a footer may take several of its tables at once: what one of them says, another one may be needed for.
#[test]
fn what_verify_calls_good_is_what_restores_whatever_a_footer_has_lost() {
    let built = build(5);
    let rounds: u64 = std::env::var("CDP_TEST_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let whole = load(&built.storage).unwrap();
    let sealed: Vec<_> =
        whole.manifest().segments.iter().filter_map(|info| Some((info.number, *info.summary()?))).collect();
    let (mut lost, mut none) = (0, 0);
    for seed in 0..rounds {
        let mut dice = Dice::new(seed);
        let storage = copy(&built.storage);
        let (number, summary) = sealed[dice.below(sealed.len() as u64) as usize];
        let name = format!("{JOURNAL_DIRECTORY}/{}", segment_name(number));
        let mut bytes = read(&storage, &name);
        let sectors = (summary.file_bytes - summary.frames_end) / SECTOR;
        let from = dice.below(sectors);
        let to = (from + 1 + dice.below(40)).min(sectors);
        let footer = &mut bytes[summary.frames_end as usize..];
        footer[(from * SECTOR) as usize..(to * SECTOR) as usize].fill(0);
        // And a head, which says what a footer says.
        let head = dice.permille(300);
        if head {
            let at = BLOCK as usize + 16 + dice.below(100) as usize;
            bytes[at] ^= 1;
        }
        storage.remove(&name).unwrap();
        write(&storage, &name, &bytes);
        let what = format!("seed {seed}: sectors {from} to {to} of {sectors} of the footer of {name}, head {head}");
        let (gone, _) = check(&built, &storage, &what, (seed as usize % 3, 3));
        lost += u64::from(gone > 0);
        none += u64::from(gone == 0);
    }
    assert!(lost > 3 && none > 3, "{lost} {none}");
}

/// When a moment was is for people, and nothing that restoring it needs.
#[test]
fn without_the_table_of_its_frames_every_moment_of_a_segment_restores() {
    let built = build(6);
    let whole = load(&built.storage).unwrap();
    for info in &whole.manifest().segments {
        let summary = info.summary().unwrap();
        let storage = copy(&built.storage);
        let name = format!("{JOURNAL_DIRECTORY}/{}", segment_name(info.number));
        let mut bytes = read(&storage, &name);
        let table = summary.frames_end + summary.blocks[..4].iter().sum::<u32>() as u64 * BLOCK;
        bytes[table as usize + 100] ^= 1;
        storage.remove(&name).unwrap();
        write(&storage, &name, &bytes);
        assert!(!verified(&storage).ok);
        assert_eq!(check(&built, &storage, &name, (0, 7)).0, 0, "{name}");
        // An owner vouches for moments in the middle of a segment too.
        let safe = summary.last_lsn.prev();
        let shared: Arc<dyn Storage> = Arc::new(storage);
        let said = verify(&shared, Some(safe), &KeyHolder::default(), &mut |_, _| true).unwrap();
        assert!(!said.ok && said.disks.len() == 2 && has(&said.good, (summary.timeline, safe)), "{name}: {said:#?}");
    }
}

#[test]
fn a_base_that_is_missing_takes_its_own_disk_and_no_other() {
    let built = build(2);
    let (image, sidecar) = file_names(disk(1));
    for name in [image, sidecar] {
        let storage = copy(&built.storage);
        storage.remove(&name).unwrap();
        check(&built, &storage, &name, (0, 1));
        let said = verified(&storage);
        let by_name: BTreeMap<_, _> = said.disks.iter().map(|disk| (disk.disk.as_str(), disk)).collect();
        assert!(by_name["data"].lost.is_empty() && !by_name["data"].good.is_empty(), "{said:?}");
        assert!(!by_name["root"].lost.is_empty(), "{said:?}");
        assert_eq!(said.damage[0].disks, ["root"]);
    }
}

/// A flipped bit of a write takes the moments from it until it was written over, and of its own disk.
#[test]
fn a_damaged_block_of_a_base_is_lost_until_it_is_written_over() {
    let mut builder = Builder::new(3);
    builder.open_timeline(1, 0);
    let over = Payload::new(0, Bytes::from(builder.dice.bytes(BLOCK as usize))).unwrap();
    let beside = Payload::new(BLOCK, Bytes::from(builder.dice.bytes(512))).unwrap();
    for (lsn, payload) in (1..).zip([&beside, &over]) {
        let parts: Vec<_> = payload.clone().into_parts(RecordKind::Write, disk(1), Lsn(lsn), WallTime(lsn)).collect();
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let (on, prev_lsn) = (timeline(1), Lsn(lsn - 1));
        let frame = RawFrame { timeline: on, prev_lsn, settled: Lsn(lsn), epoch: ClockEpoch(1), parts, plain_bytes };
        let frame = Encoder::new().encode(frame, builder.group, Compression::None);
        let mut frame = frame;
        while let Err(refused) = builder.writer.append(MonoTime(1), frame) {
            frame = refused.frame;
            builder.drain();
        }
        builder.drain();
        // So that each of them is the end of a segment, and a moment.
        builder.writer.roll();
        builder.drain();
    }
    builder.writer.close(true);
    builder.drain();
    let storage = &builder.built.storage;
    let (image, _) = file_names(disk(1));
    let mut bytes = read(storage, &image);
    bytes[100] ^= 1;
    storage.remove(&image).unwrap();
    write(storage, &image, &bytes);
    let said = verified(storage);
    let [root, data] = &said.disks[..] else { panic!("{said:?}") };
    let lsns = |ranges: &[Range]| ranges.iter().map(|range| (range.from_lsn.0, range.to_lsn.0)).collect::<Vec<_>>();
    assert_eq!(lsns(&root.good), [(2, 2)], "{said:?}");
    assert_eq!(root.lost.last().map(|range| range.to_lsn), Some(Lsn(1)));
    assert!(data.lost.is_empty());
    let extent = &said.damage[0].extents[0];
    assert_eq!((extent.disk.as_deref(), extent.offset, extent.length), (Some("root"), 0, Some(BLOCK)));
}

/// Moments that are kept stand on the stores of those kept after them and on the bases: what they need is another thing than what
/// the moments above need.
#[test]
fn of_kept_moments_too_what_is_called_good_is_what_restores() {
    let place = Place::new();
    place.make_source("disk", 96);
    let options = ProtectOptions { segment_bytes: 1 << 20, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    for piece in 0..30u64 {
        let (at, data) = ((piece * 7 % 12) << 20, noise(piece, 1 << 20));
        protector.exports()[0].device.write(at, Bytes::from(data), false).unwrap();
        if piece % 6 == 5 {
            protector.mark(&label(&format!("m{piece}"))).unwrap();
        }
    }
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let disk = || -> Arc<dyn Storage> { Arc::new(Disk::open(place.replica()).unwrap()) };
    let host = Host::idle(disk(), &KeyHolder::default()).unwrap();
    for piece in [5, 11, 17] {
        let at = When::Label(label(&format!("m{piece}")));
        host.handle(Request::Keep { at, nearest: None, label: None }, &Connection::local()).unwrap();
    }
    let change = PolicyChange { max_bytes: Some(8 << 20), ..PolicyChange::default() };
    host.handle(Request::Policy { change }, &Connection::local()).unwrap();
    host.handle(Request::Compact, &Connection::local()).unwrap();
    drop(host);

    let replica = place.load();
    let mut moments: Vec<_> =
        replica.manifest().kept.iter().map(|kept| (kept.moment.timeline, kept.moment.lsn)).collect();
    assert_eq!(moments.len(), 3);
    let latest = replica.catalogue().latest().unwrap();
    moments.push((latest.timeline, latest.lsn));
    drop(replica);
    let storage = disk();
    let stores = storage.list("kept").unwrap().into_iter().map(|store| format!("kept/{store}"));
    let directories: Vec<_> = stores.chain([BASE_DIRECTORY.to_owned()]).collect();
    // Who stops it before or between stores waits for none.
    let key = KeyHolder::default();
    let mut told = Vec::new();
    assert!(
        verify(&storage, None, &key, &mut |bytes, _| {
            told.push(bytes);
            true
        })
        .unwrap()
        .ok
    );
    let segments =
        |directory: &String| storage.list(directory).unwrap().iter().filter(|name| name.ends_with(".seg")).count();
    let in_stores: usize = directories.iter().map(segments).sum();
    assert!(in_stores >= 3 && told.is_sorted(), "{in_stores}: {told:?}");
    for stop in (told.len() - in_stores..=told.len()).rev() {
        let mut calls = 0;
        let mut count = |_, _| {
            calls += 1;
            calls < stop
        };
        let said = verify(&storage, None, &key, &mut count).unwrap();
        assert_eq!((said.stopped, calls, said.bytes), (true, stop, told[stop - 1]), "{told:?}");
    }
    let (mut lost, mut good, mut some) = (0, 0, 0);
    for seed in 0..24u64 {
        let mut dice = Dice::new(seed);
        let directory = &directories[seed as usize % directories.len()];
        let names = storage.list(directory).unwrap();
        let named: Vec<_> = names.iter().filter(|name| name.ends_with(".seg") || name.ends_with(".img")).collect();
        let name = format!("{directory}/{}", named[dice.below(named.len() as u64) as usize]);
        let file = storage.open(&name, true).unwrap();
        let at = dice.below(file.len().unwrap());
        let mut byte = [0];
        file.read_exact_at(at, &mut byte).unwrap();
        file.write_all_at(at, &[byte[0] ^ 4]).unwrap();
        let said = verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap();
        let replica = place.load();
        let before = (lost, good);
        for moment in &moments {
            let found = restored(&replica, *moment, 1).is_some();
            assert_eq!(has(&said.good, *moment), found, "{name} at {at}: {moment:?}: {said:#?}");
            (lost, good) = (lost + u64::from(!found), good + u64::from(found));
        }
        some += u64::from(lost > before.0 && good > before.1);
        file.write_all_at(at, &byte).unwrap();
    }
    assert!(lost > 0 && good > 0 && some > 0, "{lost} {good} {some}");
}

/// What a merge left is read by nobody but who loads the bases.
#[test]
fn what_cannot_be_loaded_is_not_called_right_because_nothing_else_is_wrong() {
    let mut builder = Builder::new(7);
    builder.open_timeline(1, 0);
    builder.records(timeline(1), 1, 40, 1);
    let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(20) };
    let merge = StampedMoment { timeline: timeline(1), lsn: Lsn(20), stamp };
    builder.writer.edit(|manifest| manifest.merge = Some(merge));
    builder.drain();
    builder.writer.close(true);
    builder.drain();
    let memory = &builder.built.storage;
    write(memory, &format!("{BASE_DIRECTORY}/merge.rests"), &[0; 512]);
    assert!(verified(memory).ok);
    let faults = Faults::default();
    let storage: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::new(memory.clone()), faults.clone()));
    faults.add(Fault::always(Operation::Open, "merge.rests", MediaErrorKind::Io));
    let problem = verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap_err();
    assert!(faults.fired() > 0 && problem.message.contains("merge.rests"), "{problem:?}");
}

#[test]
fn who_stops_it_hears_what_was_found_and_that_it_is_not_all() {
    let built = build(4);
    let storage: Arc<dyn Storage> = Arc::new(built.storage.clone());
    let mut left = 3;
    let said = verify(&storage, None, &KeyHolder::default(), &mut |_, _| {
        left -= 1;
        left > 0
    });
    let said = said.unwrap();
    assert!(said.stopped && !said.ok && said.bytes > 0 && said.good.is_empty(), "{said:?}");
    assert_eq!(left, 0, "it went on");
}

/// Nothing is merged into a base that is gone under its owner: that is said, the protection goes on, and of the other disk every moment
/// stays.
#[test]
fn a_base_that_goes_under_its_owner_ends_neither_the_protection_nor_the_history_of_the_other_disk() {
    let place = Place::new();
    place.make_source("root", 31);
    place.make_source("data", 32);
    let options = ProtectOptions { segment_bytes: 1 << 20, ..place.options(&["root", "data"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    let (host, local) = (Arc::clone(protector.host()), Connection::local());
    let write = |piece: u64| {
        for export in protector.exports() {
            export.device.write((piece % 20) << 20, Bytes::from(noise(300 + piece, 1 << 20)), false).unwrap();
        }
    };
    (0..4).for_each(write);
    protector.mark(&label("first")).unwrap();
    let first = When::Label(label("first"));
    let held = restored_at(&host.replica(), &first, "data");
    (4..16).for_each(write);
    protector.mark(&label("second")).unwrap();

    let (image, aside) = (place.replica().join(file_names(disk(1)).0), place.source("aside"));
    std::fs::rename(&image, &aside).unwrap();
    let change = PolicyChange { max_bytes: Some(8 << 20), ..PolicyChange::default() };
    host.handle(Request::Policy { change }, &local).unwrap();
    let problem = || host.status().unwrap().history.problem;
    wait_for("what is wrong", || problem().is_some() || protector.failure().is_some());
    let refused = host.handle(Request::Prune { dry_run: false }, &local).unwrap_err();
    assert!(refused.code == "damaged" && refused.message.contains(image.to_str().unwrap()), "{refused}");
    assert_eq!(problem(), Some(refused.message));
    assert!(host.replica().manifest().merge.is_none(), "a merge is begun");
    write(16);
    protector.mark(&label("third")).unwrap();
    assert_eq!((protector.status().state, protector.failure()), (State::Protecting, None));
    assert!(restored_at(&host.replica(), &first, "data") == held);
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    drop(host);
    let idle = place.load();
    assert!(restored_at(&idle, &first, "data") == held);
    restored_at(&idle, &When::Label(label("third")), "data");
    drop(idle);

    // One that goes while it is merged into: what is merged is not taken out of the journal.
    std::fs::rename(&aside, &image).unwrap();
    let host = Host::idle(Arc::new(Disk::open(place.replica()).unwrap()), &KeyHolder::default()).unwrap();
    let reader = Connection::local();
    host.handle(Request::PinAll, &reader).unwrap();
    let merging = Arc::clone(&host);
    let merging = std::thread::spawn(move || merging.handle(Request::Compact, &Connection::local()));
    wait_for("a merge that waits", || host.replica().manifest().merge.is_some());
    // By then it has its files open. Where it has not, it does not find them, which is as good.
    std::thread::sleep(Duration::from_millis(300));
    std::fs::rename(&image, &aside).unwrap();
    drop(reader);
    let refused = merging.join().unwrap().unwrap_err();
    assert!(refused.message.contains(image.to_str().unwrap()), "{refused}");
    let segments = || host.replica().manifest().segments.len();
    let before = segments();
    assert!(place.load().manifest().merge.is_some(), "it is ended");
    std::fs::rename(&aside, &image).unwrap();
    host.handle(Request::Compact, &local).unwrap();
    assert!(host.replica().manifest().merge.is_none() && segments() < before);
}

/// Flips a bit.
fn flip(storage: &Memory, name: &str, at: usize) {
    let mut bytes = read(storage, name);
    bytes[at] ^= 1;
    storage.remove(name).unwrap();
    write(storage, name, &bytes);
}

/// Writes a block of the first disk, the last record of its segment.
fn write_block(builder: &mut Builder, lsn: u64, block: u64, data: &[u8]) {
    let payload = Payload::new(block * BLOCK, Bytes::copy_from_slice(data)).unwrap();
    let parts: Vec<_> = payload.into_parts(RecordKind::Write, disk(1), Lsn(lsn), WallTime(lsn)).collect();
    let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
    let (on, prev_lsn) = (timeline(1), Lsn(lsn - 1));
    let frame = RawFrame { timeline: on, prev_lsn, settled: Lsn(lsn), epoch: ClockEpoch(1), parts, plain_bytes };
    let mut frame = Encoder::new().encode(frame, builder.group, Compression::None);
    while let Err(refused) = builder.writer.append(MonoTime(1), frame) {
        frame = refused.frame;
        builder.drain();
    }
    builder.drain();
    builder.writer.roll();
    builder.drain();
    let at = (block * BLOCK) as usize;
    builder.disks[0][at..at + data.len()].copy_from_slice(data);
    builder.built.moments.push((on, Lsn(lsn), builder.disks.clone()));
}

/// Three records: of block 3, and twice of block 0. A merge up to the second is under way and has touched nothing yet, and the first
/// moment is kept. Gives what the second wrote, too.
fn merging() -> (Built, Vec<u8>) {
    let mut builder = Builder::new(6);
    builder.open_timeline(1, 0);
    let data: Vec<Vec<u8>> = (0..3).map(|_| builder.dice.bytes(BLOCK as usize)).collect();
    for ((lsn, block), data) in (1..).zip([3, 0, 0]).zip(&data) {
        write_block(&mut builder, lsn, block, data);
    }
    let at = |lsn| {
        let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(lsn) };
        StampedMoment { timeline: timeline(1), lsn: Lsn(lsn), stamp }
    };
    let storage = builder.built.storage.clone();
    let manifest = read_manifest(&storage).unwrap();
    let now = Now { wall: WallTime(1), mono: MonoTime(1) };
    cdp_core::replica::kept::create(&storage, &manifest, 1, timeline(9), now).unwrap();
    builder.writer.edit(|manifest| {
        (manifest.merge, manifest.next_kept) = (Some(at(2)), 2);
        let disks = vec![(disk(1), SIZE as u64), (disk(2), SIZE as u64)];
        manifest.kept.push(KeptInfo { number: 1, moment: at(1), point: None, disks });
    });
    builder.drain();
    builder.writer.close(true);
    builder.drain();
    builder.built.moments.retain(|(_, lsn, _)| *lsn >= Lsn(2));
    (builder.built, data[1].clone())
}

/// What a merge has yet to replace is needed by the moments that are kept before it, and by no other.
#[test]
fn a_block_that_a_merge_has_yet_to_replace_is_lost_of_the_moments_kept_before() {
    let (built, _) = merging();
    let (storage, kept) = (&built.storage, (timeline(1), Lsn(1)));
    assert_eq!(check(&built, storage, "whole", (0, 1)), (0, 0));
    assert!(restored(&load(storage).unwrap(), kept, 1).is_some());
    assert!(has(&verified(storage).good, kept));
    flip(storage, &file_names(disk(1)).0, 100);
    assert_eq!(check(&built, storage, "damaged", (0, 1)), (0, 0));
    let said = verified(storage);
    assert!(restored(&load(storage).unwrap(), kept, 1).is_none());
    let [root, data] = &said.disks[..] else { panic!("{said:?}") };
    assert!(!said.ok && said.damage.len() == 1 && !has(&said.good, kept), "{said:#?}");
    assert!(has(&root.lost, kept) && has(&data.good, kept), "{said:#?}");
    assert!(has(&said.damage[0].lost, kept), "{said:#?}");
}

#[test]
fn while_a_merge_is_under_way_damage_of_the_journal_hides_none_of_the_base() {
    let (built, second) = merging();
    let storage = &built.storage;
    let journal = names(storage).into_iter().find_map(|name| {
        let bytes = read(storage, &name);
        Some((bytes.windows(second.len()).position(|bytes| bytes == second)?, name))
    });
    let (at, name) = journal.unwrap();
    flip(storage, &name, at);
    assert_eq!(check(&built, storage, "journal", (0, 1)).0, 1);
    flip(storage, &file_names(disk(1)).0, 7 * BLOCK as usize);
    // Neither the second moment nor the third.
    assert_eq!(check(&built, storage, "both", (0, 1)).0, 2);
}

/// However much of a base is damaged, it is one place, and who waits for the answer can stop it.
#[test]
fn a_base_of_which_nothing_is_right_is_one_place_and_its_judgement_can_be_stopped() {
    let built = build(7);
    let storage: Arc<dyn Storage> = Arc::new(built.storage.clone());
    let asked_until = |stop_at: usize| {
        let mut asked = 0;
        let said = verify(&storage, None, &KeyHolder::default(), &mut |_, _| {
            asked += 1;
            asked < stop_at
        });
        (said.unwrap(), asked)
    };
    let (whole, reads) = asked_until(usize::MAX);
    assert!(whole.ok);
    let (image, _) = file_names(disk(1));
    let bytes: Vec<u8> = read(&built.storage, &image).iter().map(|byte| !byte).collect();
    built.storage.remove(&image).unwrap();
    write(&built.storage, &image, &bytes);
    check(&built, &built.storage, "all", (0, 5));
    let (said, asked) = asked_until(usize::MAX);
    assert_eq!(said.damage.len(), 1, "{said:#?}");
    let [damage] = &said.damage[..] else { panic!("{said:?}") };
    assert_eq!((damage.offset, damage.length, damage.extents.len()), (0, SIZE as u64, 1));
    assert!(!said.at_most && !said.stopped && asked > reads, "{asked} {reads}");
    for stop_at in reads + 1..=asked {
        let (said, asked) = asked_until(stop_at);
        assert!(said.stopped && !said.ok && said.good.is_empty() && said.disks.is_empty(), "{said:?}");
        assert_eq!((asked, said.damage.len()), (stop_at, 1), "it went on");
    }
}

/// What was written over is known as soon as all of it was: what comes later is not read.
#[test]
fn what_was_written_over_is_found_without_what_came_later() {
    let mut builder = Builder::new(8);
    builder.open_timeline(1, 0);
    for (lsn, block) in (1..).zip([1, 0, 0, 1]) {
        let data = builder.dice.bytes(BLOCK as usize);
        write_block(&mut builder, lsn, block, &data);
    }
    builder.writer.close(true);
    builder.drain();
    let storage = &builder.built.storage;
    let snapshot = builder.writer.snapshot();
    let last =
        storage.list(JOURNAL_DIRECTORY).unwrap().into_iter().filter(|name| name.ends_with(".seg")).max().unwrap();
    storage.remove(&format!("{JOURNAL_DIRECTORY}/{last}")).unwrap();
    let reader = Reader::new(Arc::new(storage.clone()), JOURNAL_DIRECTORY, 0);
    let over = |blocks: u64, after: u64| {
        let (mut rest, upto) = (vec![Extent::new(0, blocks * BLOCK)], Lsn(u64::MAX));
        reader.written_over(&snapshot, (timeline(1), disk(1)), &mut rest, (Lsn(after), upto))
    };
    assert_eq!(over(2, 0).unwrap(), Some(Lsn(2)));
    assert_eq!(over(1, 2).unwrap(), Some(Lsn(3)));
    assert!(over(2, 2).is_err() && over(3, 0).is_err(), "the last one is there");
}
