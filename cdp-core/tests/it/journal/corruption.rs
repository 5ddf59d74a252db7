//! Whatever is done to the bytes of a store: it is noticed, and no wrong byte is ever given.

use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::types::*;
use std::sync::Arc;

/// A store with several segments; the last one is sealed only if `clean`.
fn store(clean: bool, at_rest: &AtRest) -> (Memory, Source, Lsn) {
    let storage = Memory::new();
    let mut rig = Rig::create_at_rest(Arc::new(storage.clone()), at_rest);
    let mut source = Source::new(11, timeline(1));
    source.size = 256 << 10;
    rig.start(timeline(1), None, Lsn::ZERO);
    for round in 0..24 {
        (0..6).for_each(|_| source.any());
        let label = format!("mark {round}");
        source.note(RecordKind::Mark, None, Note::Mark(Mark { label, ..Mark::default() }));
        let compression = if round % 2 == 0 { Compression::None } else { Compression::Zstd(1) };
        source.frames(compression).into_iter().for_each(|frame| drop(rig.append(frame)));
        if round == 7 || round == 15 {
            rig.writer.roll();
        }
    }
    rig.sync();
    let durable = rig.writer.durable().lsn();
    if clean {
        rig.close();
    }
    (storage, source, durable)
}

pub(super) fn copy(from: &Memory) -> Memory {
    let to = Memory::new();
    for directory in ["", DIRECTORY] {
        for name in from.list(directory).unwrap().into_iter().filter(|name| name != DIRECTORY) {
            let name = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let bytes = read(from, &name);
            to.create(&name).unwrap().write_all_at(0, &bytes).unwrap();
        }
    }
    to
}

pub(super) fn read(storage: &Memory, name: &str) -> Vec<u8> {
    let file = storage.open(name, false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn names(storage: &Memory) -> Vec<String> {
    let segments = storage.list(DIRECTORY).unwrap().into_iter().map(|name| format!("{DIRECTORY}/{name}"));
    segments.chain(["MANIFEST".to_owned()]).collect()
}

/// Damages one file; gives what was done, and whether anything is different at all.
fn damage(storage: &Memory, dice: &mut Dice) -> (String, bool) {
    damage_one_of(storage, &names(storage), dice)
}

/// The same with one of these files.
pub(super) fn damage_one_of(storage: &Memory, names: &[String], dice: &mut Dice) -> (String, bool) {
    let name = &names[dice.below(names.len() as u64) as usize];
    let before = read(storage, name);
    let mut bytes = before.clone();
    let length = bytes.len() as u64;
    let (at, other) = (dice.below(length), dice.below(length));
    let most = if dice.below(2) == 0 { 16 } else { 9000 };
    let count = (1 + dice.below(most)).min(length - at.max(other)) as usize;
    let (at, other) = (at as usize, other as usize);
    let what = match dice.below(6) {
        0 => {
            bytes[at] ^= 1 << dice.below(8);
            "flip"
        }
        1 => {
            bytes[at..at + count].fill(0);
            "zero"
        }
        2 => {
            bytes.truncate(at);
            "truncate"
        }
        3 => {
            let from = bytes[other..other + count].to_vec();
            bytes[at..at + count].copy_from_slice(&from);
            "duplicate"
        }
        4 => {
            // Whole sectors trade places, which checksums of their content alone would not notice.
            let (a, b) = (at / 512 * 512, other / 512 * 512);
            let count = 512.min(bytes.len() - a.max(b));
            let from = bytes[a..a + count].to_vec();
            bytes.copy_within(b..b + count, a);
            bytes[b..b + count].copy_from_slice(&from);
            "swap sectors"
        }
        _ => {
            let other = &names[dice.below(names.len() as u64) as usize];
            let theirs = read(storage, other);
            replace(storage, other, &bytes);
            bytes = theirs;
            "swap files"
        }
    };
    let changed = bytes != before;
    replace(storage, name, &bytes);
    (format!("{what} {name} at {at} {other} {count}"), changed)
}

pub(super) fn replace(storage: &Memory, name: &str, bytes: &[u8]) {
    storage.remove(name).unwrap();
    storage.create(name).unwrap().write_all_at(0, bytes).unwrap();
}

/// Reads both disks at a moment: an error, or what the model says.
fn read_right(reader: &Arc<Reader>, snapshot: &Snapshot, source: &Source, lsn: Lsn, what: &str) -> bool {
    let elements = [(timeline(1), lsn)];
    let Ok(view) = View::open(&path(reader, snapshot, &elements), 1 << 20) else { return false };
    let mut all = true;
    for number in 1..=2 {
        match restore(&view, number, source.size) {
            Ok(bytes) => {
                assert!(bytes == source.model.at(&elements, number, source.size as usize), "wrong bytes: {what}")
            }
            Err(_) => all = false,
        }
    }
    all
}

/// Whether the moment of an LSN needs what verify calls unreadable.
fn needs(reader: &Reader, snapshot: &Snapshot, lost: &Unreadable, lsn: Lsn) -> bool {
    let over = |disk| reader.written_over(snapshot, (lost.timeline, disk), &mut vec![lost.extent], (lost.lsn, lsn));
    lost.lsn <= lsn && lost.disk.is_none_or(|disk| !matches!(over(disk), Ok(Some(_))))
}

#[test]
fn either_manifest_is_enough_and_the_next_start_mends_the_other() {
    for damaged in [MANIFEST_NAME, MANIFEST_COPY] {
        let (intact, _, durable) = store(true, &AtRest::both()[0]);
        let whole = read_manifest(&intact).unwrap();
        let mut bytes = read(&intact, damaged);
        bytes[70] ^= 4;
        replace(&intact, damaged, &bytes);
        assert_eq!(read_manifest(&intact).unwrap(), whole);
        assert_eq!(damaged_manifests(&intact).unwrap().iter().map(|(name, _)| *name).collect::<Vec<_>>(), [damaged]);
        let opened = cdp_core::journal::open(&intact, DIRECTORY, None).unwrap();
        assert_eq!(opened.durable.lsn(), durable);
        assert_eq!(damaged_manifests(&intact).unwrap(), []);
        let both = [MANIFEST_NAME, MANIFEST_COPY].map(|name| read(&intact, name));
        assert_eq!(both[0], both[1]);
    }
}

#[test]
fn a_store_without_its_manifest_is_none_whatever_its_copy_says() {
    let (intact, ..) = store(true, &AtRest::both()[0]);
    intact.remove(MANIFEST_NAME).unwrap();
    assert!(matches!(read_manifest(&intact), Err(OpenError::NoStore { .. })));
}

#[test]
fn damage_to_a_stopped_store_is_noticed_and_never_gives_a_wrong_byte() {
    AtRest::both().iter().for_each(damage_is_noticed);
}

fn damage_is_noticed(at_rest: &AtRest) {
    let (intact, source, durable) = store(true, at_rest);
    let whole = read_manifest(&intact).unwrap();
    let rounds: u64 = std::env::var("CDP_CORRUPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let rounds = if at_rest.key.is_some() { rounds / 3 } else { rounds };
    for seed in 0..rounds {
        let mut dice = Dice(seed);
        let storage = copy(&intact);
        let (what, changed) = damage(&storage, &mut dice);
        let reader = at_rest.reader(Arc::new(storage.clone()), &whole);
        let of_manifests = damaged_manifests(&storage).map_or(true, |found| !found.is_empty());
        let noticed = match at_rest.open(&storage, None) {
            Err(_) => true,
            Ok(opened) => {
                let snapshot = opened.snapshot();
                let lsn = Lsn(1 + dice.below(durable.0));
                let read = [lsn, durable].map(|lsn| read_right(&reader, &snapshot, &source, lsn, &what));
                let Verified { findings, unreadable, .. } = reader.verify(&snapshot, |_| true);
                assert!(read == [true, true] || !findings.is_empty(), "read fails, verify is silent: {what}");
                let said =
                    [lsn, durable].map(|lsn| !unreadable.iter().any(|lost| needs(&reader, &snapshot, lost, lsn)));
                assert_eq!(read, said, "seed {seed}: {what}: {unreadable:?}");
                let _ = (reader.events(&snapshot), reader.moments(&snapshot, timeline(1), lsn, WallTime(1 << 60)));
                !findings.is_empty()
            }
        };
        assert_eq!(noticed || of_manifests, changed, "seed {seed}: {what}");
        // Who only looks gets what is good, and never a wrong byte.
        if let Ok(looked) = at_rest.look(&storage, None) {
            read_right(&reader, &looked.snapshot, &source, looked.snapshot.written(), &what);
        }
    }
}

#[test]
fn damage_to_what_was_not_sealed_is_refused_or_was_never_acknowledged() {
    AtRest::both().iter().for_each(damage_is_refused);
}

fn damage_is_refused(at_rest: &AtRest) {
    let (intact, source, durable) = store(false, at_rest);
    let whole = read_manifest(&intact).unwrap();
    let (mut refused, mut told) = (0, 0);
    for seed in 1000..1300 {
        let mut dice = Dice(seed);
        let storage = copy(&intact);
        let (what, _) = damage(&storage, &mut dice);
        let reader = at_rest.reader(Arc::new(storage.clone()), &whole);
        // The peer remembers what was acknowledged: then nothing of it can go unnoticed.
        match at_rest.open(&storage, Some(durable)) {
            Ok(opened) => {
                assert!(opened.durable.lsn() >= durable, "{what}");
                read_right(&reader, &opened.snapshot(), &source, durable, &what);
            }
            Err(OpenError::Damaged(damage)) => {
                refused += 1;
                assert!(damage.good < damage.acknowledged && damage.acknowledged >= durable, "{what}: {damage}");
                // Who only looks is told the same before anybody takes the store over; of frames' bodies, when it reads them.
                let looked = at_rest.look(&storage, Some(durable)).unwrap();
                told += usize::from(looked.damage.is_some());
                let at_least =
                    looked.damage.is_none_or(|told| told.good >= damage.good && told.acknowledged >= durable);
                assert!(at_least, "{what}: {damage}");
                let upto = looked.snapshot.written().min(damage.good);
                read_right(&reader, &looked.snapshot, &source, upto, &what);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 50 && told > 20, "{refused} refused, {told} told to who looks");
}

/// By itself an acknowledged last frame that is damaged looks like one that was never whole.
#[test]
fn who_remembers_what_was_durable_is_told_that_the_last_frame_is_damaged() {
    let storage = Memory::new();
    let mut rig = Rig::create(Arc::new(storage.clone()));
    let mut source = Source::new(12, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    for _ in 0..3 {
        source.any();
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.sync();
    }
    let durable = rig.writer.durable().lsn();
    let last = |name: &String| read(&storage, name).windows(8).rposition(|bytes| bytes == b"CDPENVL\x01");
    let mut found = names(&storage).into_iter().filter_map(|name| last(&name).map(|at| (name, at)));
    let (name, at) = found.next_back().unwrap();
    let file = storage.open(&name, true).unwrap();
    file.write_all_at(at as u64 + 20, &[0x55]).unwrap();
    let looked = look(&storage, DIRECTORY, None).unwrap();
    assert!(looked.damage.is_none() && looked.snapshot.written() < durable);
    let told = look(&storage, DIRECTORY, Some(durable)).unwrap();
    let damage = told.damage.unwrap();
    assert_eq!((damage.good, damage.acknowledged), (looked.snapshot.written(), durable));
    // And what is good can be read all the same.
    assert_eq!(told.snapshot.written(), damage.good);
    let reader = Arc::new(Reader::new(Arc::new(storage.clone()), DIRECTORY, 1 << 20));
    assert!(damage.good > Lsn::ZERO && read_right(&reader, &told.snapshot, &source, damage.good, "the front"));
    assert!(matches!(open(&storage, DIRECTORY, Some(durable)), Err(OpenError::Damaged(_))));
}

/// A segment that was not sealed, with as many commits; gives its name and what was durable.
fn unsealed(storage: &Memory, commits: u64) -> (String, Lsn) {
    let mut rig = Rig::create(Arc::new(storage.clone()));
    let mut source = Source::new(13, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    for _ in 0..commits {
        source.any();
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.sync();
    }
    let mut segments = names(storage).into_iter().filter(|name| name.ends_with(".seg"));
    (segments.next_back().unwrap(), rig.writer.durable().lsn())
}

/// The header was durable before anybody named the segment: no power cut leaves a bad one.
#[test]
fn a_damaged_header_of_what_was_not_sealed_is_refused() {
    for commits in [1, 2, 5] {
        let storage = Memory::new();
        let (name, durable) = unsealed(&storage, commits);
        let mut bytes = read(&storage, &name);
        bytes[40] ^= 1;
        replace(&storage, &name, &bytes);
        let looked = look(&storage, DIRECTORY, None).unwrap();
        assert_eq!(looked.damage.map(|damage| damage.acknowledged), Some(durable), "{commits} commits");
        let Err(OpenError::Damaged(damage)) = open(&storage, DIRECTORY, None) else { panic!("{commits} commits") };
        assert_eq!((damage.good, damage.acknowledged, damage.offset), (Lsn::ZERO, durable, 0));
        assert!(damage.path.ends_with(&name) && damage.what.contains("segment header"), "{damage}");
        assert!(read(&storage, &name) == bytes, "nothing was changed");
    }
    // In one that was only prepared there is nothing to lose.
    let storage = Memory::new();
    let (name, durable) = unsealed(&storage, 0);
    let mut bytes = read(&storage, &name);
    bytes[40] ^= 1;
    replace(&storage, &name, &bytes);
    assert_eq!(open(&storage, DIRECTORY, None).unwrap().durable.lsn(), durable);
}
