//! Sealing at rest: nothing plain on media, no nonce twice, and clear words where a key is missing or another one.

use super::corruption::{copy, read};
use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::trust::{KeyError, KeyHolder, WrappingKey};
use cdp_core::types::*;
use std::sync::Arc;

const SECRET: &[u8] = b"the recipe of the sauce";

/// Two writes of one block that says a secret, one that compresses and one that does not, and a mark that says it too.
fn secrets(rig: &mut Rig, source: &mut Source) -> [u32; 2] {
    let mut noise = Dice(9);
    let packed: Vec<u8> = SECRET.iter().copied().cycle().take(4096).collect();
    let mut raw: Vec<u8> = (0..4096).map(|_| noise.next() as u8).collect();
    raw[1000..1000 + SECRET.len()].copy_from_slice(SECRET);
    for (number, bytes) in [&packed, &raw, &packed].into_iter().enumerate() {
        source.bytes(1, 4096 * number as u64, bytes);
        let label = format!("{} {number}", String::from_utf8_lossy(SECRET));
        source.note(RecordKind::Mark, None, Note::Mark(Mark { label, ..Mark::default() }));
        let compression = if number == 0 { Compression::Zstd(1) } else { Compression::None };
        source.frames(compression).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.writer.roll();
        rig.drain();
    }
    [crc32c::crc32c(&packed), crc32c::crc32c(&raw)]
}

fn files(storage: &Memory) -> Vec<(String, Vec<u8>)> {
    let inside = storage.list(DIRECTORY).unwrap().into_iter().map(|name| format!("{DIRECTORY}/{name}"));
    inside.chain(["MANIFEST".to_owned()]).map(|name| (name.clone(), read(storage, &name))).collect()
}

/// How often something stands in the files.
fn count(storage: &Memory, what: &[u8]) -> usize {
    files(storage).iter().map(|(_, bytes)| bytes.windows(what.len()).filter(|window| *window == what).count()).sum()
}

#[test]
fn no_plain_byte_and_no_checksum_of_one_is_in_any_file() {
    for at_rest in AtRest::both() {
        let storage = Memory::new();
        let mut rig = Rig::create_at_rest(Arc::new(storage.clone()), &at_rest);
        let mut source = Source::new(3, timeline(1));
        rig.start(timeline(1), None, Lsn::ZERO);
        let crcs = secrets(&mut rig, &mut source);
        (0..40).for_each(|_| {
            source.any();
            source.frames(Compression::Zstd(1)).into_iter().for_each(|frame| drop(rig.append(frame)));
            rig.writer.roll();
            rig.drain();
        });
        rig.sync();
        assert!(rig.merge_index(1 << 20) > 0, "index runs too");
        source.any();
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.sync();
        let found = count(&storage, SECRET);
        let of_crcs: usize = crcs.iter().map(|crc| count(&storage, &crc.to_le_bytes())).sum();
        if at_rest.key.is_some() {
            assert_eq!((found, of_crcs), (0, 0));
        } else {
            assert!(found >= 6 && of_crcs >= 6, "the test would see it: {found}, {of_crcs}");
        }
        let elements = [(timeline(1), source.lsn)];
        let view = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
        let expected = source.model.at(&elements, 1, source.size as usize);
        assert!(restore(&view, 1, source.size).unwrap() == expected);
        let events = rig.reader().events(&rig.writer.snapshot()).unwrap();
        assert_eq!(events.len(), 3, "and who has the key reads the marks");
    }
}

/// A store that is sealed at rest, with marks, a segment that is not closed, and what it is to be opened with.
fn store(seed: u64) -> (Memory, Source, AtRest) {
    let (storage, at_rest) = (Memory::new(), AtRest::sealed());
    let mut rig = Rig::create_at_rest(Arc::new(storage.clone()), &at_rest);
    let mut source = Source::new(seed, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    secrets(&mut rig, &mut source);
    for _ in 0..20 {
        (0..4).for_each(|_| source.any());
        source.frames(Compression::Zstd(1)).into_iter().for_each(|frame| drop(rig.append(frame)));
    }
    for label in ["last but one", "last"] {
        source.note(RecordKind::Mark, None, Note::Mark(Mark { label: label.to_owned(), ..Mark::default() }));
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    }
    rig.sync();
    (storage, source, at_rest)
}

#[test]
fn without_a_key_everything_is_found_and_nothing_opened() {
    let (storage, source, at_rest) = store(1);
    let refused = open(&storage, DIRECTORY, None).unwrap_err();
    let missing = |error: &ReadError| matches!(error, ReadError::AtRest { source: KeyError::Missing, .. });
    assert!(matches!(&refused, OpenError::Segment(error) if missing(error)), "{refused}");
    assert!(refused.to_string().contains("no key was given"));
    let looked = look(&storage, DIRECTORY, Some(source.lsn)).unwrap();
    assert_eq!((looked.damage, looked.snapshot.written()), (None, source.lsn));
    let reader = Arc::new(Reader::new(Arc::new(storage.clone()), DIRECTORY, 1 << 20));
    assert!(missing(&reader.events(&looked.snapshot).unwrap_err()));
    let view = View::open(&path(&reader, &looked.snapshot, &[(timeline(1), source.lsn)]), 1 << 20).unwrap();
    assert!(missing(&restore(&view, 1, source.size).unwrap_err()));
    let verified = reader.verify(&looked.snapshot, |_| true);
    assert_eq!(verified.findings, []);
    assert!(verified.unopened == verified.frames && verified.frames > 20);
    let wrong = AtRest { key: Some(WrappingKey::parse(&[1; 32]).unwrap()), ..AtRest::default() };
    let told = [wrong.open(&storage, None).unwrap_err(), wrong.look(&storage, None).unwrap_err()];
    assert!(told.iter().all(|told| matches!(told, OpenError::AtRest { source: KeyError::Wrong, .. })), "{told:?}");
    // With the key all of it is there, and closed.
    let opened = at_rest.open(&storage, Some(source.lsn)).unwrap();
    let reader = at_rest.reader(Arc::new(storage.clone()), &opened.manifest);
    assert_eq!(reader.events(&opened.snapshot()).unwrap().len(), 5);
    assert_eq!(reader.verify(&opened.snapshot(), |_| true).unopened, 0);
}

/// What checksums see is seen without a key.
#[test]
fn a_flipped_bit_is_noticed_without_a_key() {
    let (intact, _, at_rest) = store(1);
    let opened = at_rest.open(&intact, None).unwrap();
    let names: Vec<_> = files(&intact).into_iter().filter(|(name, _)| name.ends_with(".seg")).collect();
    let mut dice = Dice(5);
    for _ in 0..200 {
        let storage = copy(&intact);
        let (name, bytes) = &names[dice.below(names.len() as u64) as usize];
        let at = dice.below(bytes.len() as u64);
        let file = storage.open(name, true).unwrap();
        file.write_all_at(at, &[bytes[at as usize] ^ 1 << dice.below(8)]).unwrap();
        let reader = Reader::new(Arc::new(storage), DIRECTORY, 0);
        let findings = reader.verify(&opened.snapshot(), |_| true).findings;
        assert!(!findings.is_empty(), "{name} at {at}");
    }
}

#[test]
fn a_store_that_is_sealed_takes_nothing_without_a_key_to_seal_with() {
    let (storage, mut source, at_rest) = store(1);
    let opened = at_rest.open(&storage, None).unwrap();
    let mut rig = Rig::with(Arc::new(storage.clone()), opened, 7, options());
    source.fork(timeline(2), source.lsn);
    rig.start(timeline(2), Some(timeline(1)), source.lsn);
    source.any();
    let frame = source.frames(Compression::None).remove(0);
    assert_eq!(rig.writer.append(rig.now, frame).unwrap_err().why, Refusal::NoKey);
    assert_eq!(rig.writer.key_generation(), None);
}

#[test]
fn keys_are_rotated_under_load_and_old_ones_go_with_their_segments() {
    let (storage, at_rest) = (Memory::new(), AtRest::sealed());
    let mut rig = Rig::create_at_rest(Arc::new(storage.clone()), &at_rest);
    let mut source = Source::new(8, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    let (live, mut dice) = (rig.reader(), Dice(4));
    for round in 0..60 {
        (0..3).for_each(|_| source.any());
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        if round % 7 == 0 {
            rig.rotate(1000 + round);
        }
        // Sometimes the next file is half made when the key changes.
        if dice.below(2) == 0 {
            rig.drain();
        } else if let Some((id, effect)) = rig.writer.poll(rig.now) {
            let outcome = rig.executor.run(&effect);
            rig.writer.completed(rig.now, id, outcome);
        }
    }
    rig.sync();
    let generations = |rig: &Rig| rig.writer.manifest().keys.iter().map(|key| key.generation).collect::<Vec<_>>();
    assert_eq!(generations(&rig).last(), Some(&10));
    let used: Vec<_> = rig.writer.manifest().segments.iter().map(|segment| segment.key).collect();
    assert!(used.windows(2).all(|pair| pair[0] <= pair[1]) && used.len() >= 10, "{used:?}");
    let elements = [(timeline(1), source.lsn)];
    let check = |reader: &Arc<Reader>, snapshot: &Snapshot| {
        let view = View::open(&path(reader, snapshot, &elements), 1 << 20).unwrap();
        let expected = source.model.at(&elements, 2, source.size as usize);
        assert!(restore(&view, 2, source.size).unwrap() == expected);
        assert_eq!(reader.verify(snapshot, |_| true).findings, []);
    };
    check(&live, &rig.writer.snapshot());
    rig.close();
    // The wrapping key is rotated: the old one is of no use any more, the new one opens everything.
    let (old, new) = (at_rest.key.clone().unwrap(), WrappingKey::parse(&[0x88; 32]).unwrap());
    let mut salt = 0;
    let mut draw = || {
        salt += 1;
        [salt; 16]
    };
    assert!(rewrap(&storage, &KeyHolder::from(Some(old.clone())), &new, &mut draw).unwrap());
    assert!(!rewrap(&storage, &KeyHolder::from(Some(old.clone())), &new, &mut draw).unwrap(), "once is enough");
    let manifest = read_manifest(&storage).unwrap();
    let holder = KeyHolder::from(Some(old));
    assert_eq!(holder.unlock(manifest.replica, &manifest.keys).unwrap_err(), KeyError::Wrong);
    let again = AtRest { key: Some(new), ..at_rest };
    let reader = again.reader(Arc::new(storage.clone()), &manifest);
    let opened = again.open(&storage, None).unwrap();
    check(&reader, &opened.snapshot());
    // Keys go with the last segment that is sealed by them.
    let mut rig = Rig::with_at_rest(Arc::new(storage.clone()), opened, 5, options(), &again);
    let numbers: Vec<_> = rig.writer.manifest().segments.iter().filter(|s| s.key < 5).map(|s| s.number).collect();
    rig.writer.forget(&numbers);
    rig.drain();
    assert!(generations(&rig).iter().all(|generation| *generation >= 5));
    assert_eq!(read_manifest(&storage).unwrap().keys, rig.writer.manifest().keys);
    again.check().unwrap();
}

/// The worst luck: both copies draw the same ids of files. What they seal is under different keys all the same, since each draws a
/// replica key before it appends.
#[test]
fn a_clone_of_a_directory_seals_under_keys_of_its_own() {
    for own_keys in [true, false] {
        let (storage, source, at_rest) = store(1);
        for (number, storage) in [copy(&storage), storage].into_iter().enumerate() {
            let opened = at_rest.open(&storage, None).unwrap();
            let mut rig = Rig::with_at_rest(Arc::new(storage.clone()), opened, 77, options(), &at_rest);
            rig.rotate(if own_keys { 100 + number as u64 } else { 100 });
            let mut source = Source::new(50 + number as u64, timeline(2));
            source.fork(timeline(2), Lsn(1000));
            rig.start(timeline(2), Some(timeline(1)), Lsn(0));
            for _ in 0..10 {
                source.any();
                let label = format!("mark of {number}");
                source.note(RecordKind::Mark, None, Note::Mark(Mark { label, ..Mark::default() }));
                source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
            }
            rig.close();
        }
        assert_eq!(at_rest.check().is_ok(), own_keys, "and if they did not, this test would see it");
        drop(source);
    }
}

/// A torn end takes frames away that the footer had been written for: recovery writes another footer with the same key.
#[test]
fn a_footer_written_again_with_other_events_has_another_nonce() {
    let (storage, source, at_rest) = store(1);
    let mut segments = files(&storage).into_iter().filter(|(name, _)| name.ends_with(".seg"));
    let envelope = |(_, bytes): &(String, Vec<u8>)| bytes.windows(8).any(|window| window == b"CDPENVL\x01");
    let (name, bytes) = segments.rfind(envelope).unwrap();
    at_rest.open(&copy(&storage), None).unwrap();
    let cut = bytes.windows(8).rposition(|window| window == b"CDPENVL\x01").unwrap();
    let file = storage.open(&name, true).unwrap();
    file.write_all_at(cut as u64, &vec![0; bytes.len() - cut]).unwrap();
    let opened = at_rest.open(&storage, None).unwrap();
    assert!(opened.durable.lsn() < source.lsn, "the last frame, with its mark, is gone");
    let footers = at_rest.recorder.calls().into_iter().filter(|call| call.key.1 == "events");
    let of_last: Vec<_> =
        footers.filter(|call| call.key.0 == opened.manifest.segments.last().map(|segment| segment.id)).collect();
    assert_eq!(of_last.len(), 2);
    assert!(of_last[0].nonce != of_last[1].nonce && of_last[0].key == of_last[1].key);
    at_rest.check().unwrap();
}
