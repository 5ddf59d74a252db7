//! Bytes of a small store of this format version, as they were written once: they are read for ever, and written the same.

use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Memory, Storage};
use cdp_core::types::*;
use std::fmt::Write;
use std::sync::Arc;

const GOLDEN: &str = include_str!("golden-v1.txt");
/// The same store, sealed at rest.
const GOLDEN_AT_REST: &str = include_str!("golden-at-rest-v1.txt");

fn goldens() -> [(AtRest, &'static str, &'static str); 2] {
    let [plain, sealed] = AtRest::both();
    [(plain, GOLDEN, "golden-v1.txt"), (sealed, GOLDEN_AT_REST, "golden-at-rest-v1.txt")]
}

fn play(source: &mut Source) {
    source.write(1, Extent::new(4096, 1024), 3);
    source.write(2, Extent::new(512, 512), 4);
    source.clear(RecordKind::Zero, 1, Extent::new(4608, 512));
    source.clear(RecordKind::Discard, 2, Extent::new(0, 1 << 20));
    source.note(RecordKind::Mark, None, Note::Mark(Mark { label: "before".into(), ..Mark::default() }));
}

fn store(at_rest: &AtRest) -> (Memory, Source) {
    let storage = Memory::new();
    let mut rig = Rig::create_at_rest(Arc::new(storage.clone()), at_rest);
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    play(&mut source);
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    source.write(1, Extent::new(0, 512), 5);
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.close();
    (storage, source)
}

/// Files as text: rows of sixteen bytes that are not all zeros.
pub(super) fn dump(storage: &Memory, names: &[String]) -> String {
    let mut out = String::new();
    for name in names {
        let file = storage.open(name, false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        writeln!(out, "file {name} {}", bytes.len()).unwrap();
        for (row, bytes) in bytes.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(out, "{:06x} {hex}", row * 16).unwrap();
        }
    }
    out
}

pub(super) fn load(text: &str) -> Memory {
    let storage = Memory::new();
    let mut file = None;
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let ["file", name, length] = words[..] {
            let made = storage.create(name).unwrap();
            made.set_len(length.parse().unwrap()).unwrap();
            file = Some(made);
            continue;
        }
        let offset = u64::from_str_radix(words[0], 16).unwrap();
        let byte = |at: usize| u8::from_str_radix(&words[1][at * 2..at * 2 + 2], 16).unwrap();
        let bytes: Vec<_> = (0..words[1].len() / 2).map(byte).collect();
        file.as_ref().unwrap().write_all_at(offset, &bytes).unwrap();
    }
    storage
}

/// Whether what is written now is what was written then; where `CDP_BLESS` is set, that is what it is from now on.
pub(super) fn compare(name: &str, found: &str, golden: &str) {
    if std::env::var_os("CDP_BLESS").is_some() {
        let tree = Disk::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/journal")).unwrap();
        let file = tree.open(name, true).or_else(|_| tree.create(name)).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(0, found.as_bytes()).unwrap();
    } else {
        assert!(found == golden, "the format changed: raise its version\n{found}");
    }
}

#[test]
fn version_1_is_written_as_it_was() {
    for (at_rest, golden, name) in goldens() {
        let storage = store(&at_rest).0;
        let segments = storage.list(DIRECTORY).unwrap().into_iter().map(|name| format!("{DIRECTORY}/{name}"));
        let names: Vec<_> = segments.chain([MANIFEST_NAME.to_owned()]).collect();
        compare(name, &dump(&storage, &names), golden);
    }
}

#[test]
fn version_1_is_read_as_it_was() {
    for (at_rest, golden, _) in goldens() {
        let storage = load(golden);
        read_it(&storage, &at_rest);
        let words = inspect(storage.open("journal/0000000000000001.seg", false).unwrap().as_ref()).unwrap().unwrap();
        assert_eq!(words.contains("sealed at rest by the replica key of generation 1"), at_rest.key.is_some());
        let words = inspect(storage.open(MANIFEST_NAME, false).unwrap().as_ref()).unwrap().unwrap();
        assert_eq!(words.contains("replica key 1, wrapped, of 1\n"), at_rest.key.is_some(), "{words}");
        assert_eq!(words.contains(", at rest under key 1"), at_rest.key.is_some());
    }
}

fn read_it(storage: &Memory, at_rest: &AtRest) {
    let source = store(at_rest).1;
    let opened = at_rest.open(storage, Some(source.lsn)).unwrap();
    assert_eq!(opened.repairs, []);
    let reader = at_rest.reader(Arc::new(storage.clone()), &opened.manifest);
    let snapshot = opened.snapshot();
    for (lsn, ..) in &source.model.history {
        let elements = [(timeline(1), *lsn)];
        let view = View::open(&path(&reader, &snapshot, &elements), 1 << 20).unwrap();
        for number in 1..=2 {
            assert_eq!(restore(&view, number, 8192).unwrap(), source.model.at(&elements, number, 8192));
        }
    }
    let words = inspect(storage.open("journal/0000000000000001.seg", false).unwrap().as_ref()).unwrap().unwrap();
    for expected in ["segment 1 ", "LSN 1 to 5, 5 parts", "footer: sealed", "2 frames with 6 parts in 3 chunks"] {
        assert!(words.contains(expected), "{expected:?} in\n{words}");
    }
    let words = inspect(storage.open(MANIFEST_NAME, false).unwrap().as_ref()).unwrap().unwrap();
    for expected in ["durable up to LSN 6", "stopped cleanly", "sealed", "timeline 1 "] {
        assert!(words.contains(expected), "{expected:?} in\n{words}");
    }
}

#[test]
fn a_real_directory_holds_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(directory.path().join("replica")).unwrap());
    let mut rig = Rig::create(Arc::clone(&storage));
    let mut source = Source::new(21, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    for _ in 0..60 {
        (0..4).for_each(|_| source.any());
        source.frames(Compression::Zstd(1)).into_iter().for_each(|frame| drop(rig.append(frame)));
    }
    rig.sync();
    drop(rig);
    let mut rig = Rig::open(Arc::clone(&storage), 5).unwrap();
    assert_eq!(rig.writer.durable().lsn(), source.lsn);
    let elements = [(timeline(1), source.lsn)];
    let view = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
    for number in 1..=2 {
        assert!(
            restore(&view, number, source.size).unwrap() == source.model.at(&elements, number, source.size as usize)
        );
    }
    assert!(storage.list(DIRECTORY).unwrap().len() > 1);
    rig.close();
    assert_eq!(open(storage.as_ref(), DIRECTORY, None).unwrap().repairs, []);
}
