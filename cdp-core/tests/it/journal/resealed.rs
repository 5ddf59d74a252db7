//! A store that somebody means harm with: what its blocks say is changed, and every checksum is right. What is read then may be
//! anything that the changed blocks say; but it comes to an end, within its memory, and never with a panic.

use super::corruption::{copy, read, replace};
use super::decoders::{Change, cases, same_length};
use super::kit::*;
use super::levels::store;
use cdp_core::frame::{Compression, FrameHead};
use cdp_core::fuzz::{Decoder, sealed};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::types::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::{Arc, LazyLock};

/// What a block begins with, how long it is (none: as long as it says), and what of it the manifest repeats.
type Kind = (&'static [u8; 8], Decoder, Option<usize>, std::ops::Range<usize>);

const BLOCKS: [Kind; 8] = [
    (b"CDPSEGM\x01", Decoder::SegmentHeader, Some(512), 0..0),
    (b"CDPOPEN\x01", Decoder::Opening, Some(512), 0..0),
    (b"CDPENVL\x01", Decoder::Envelope, Some(64), 0..0),
    (b"CDPFRAM\x01", Decoder::Frame, None, 0..0),
    (b"CDPBLOK\x01", Decoder::FooterBlock, Some(4096), 0..0),
    (b"CDPTRLR\x01", Decoder::Trailer, Some(512), 32..200),
    (b"CDPRUNH\x01", Decoder::RunHeader, Some(512), 56..120),
    (b"CDPRUNT\x01", Decoder::RunTrailer, Some(512), 32..72),
];

/// A block of a file.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    offset: usize,
    length: usize,
    decoder: Decoder,
    repeated: std::ops::Range<usize>,
}

struct World {
    storage: Memory,
    places: Vec<Place>,
    source: Vec<(Timeline, Lsn)>,
}

/// Segments on two timelines, runs over some of them, and all the blocks that they are made of.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (storage, mut rig, _, ends) = store(21, 9);
    assert!(rig.merge_index(1 << 16) > 1);
    let mut places = Vec::new();
    for name in storage.list(DIRECTORY).unwrap().into_iter().map(|name| format!("{DIRECTORY}/{name}")) {
        let bytes = read(&storage, &name);
        for offset in (0..bytes.len()).step_by(64) {
            let block = BLOCKS.iter().find(|(magic, ..)| bytes[offset..].starts_with(*magic));
            let Some((_, decoder, length, repeated)) = block else { continue };
            let whole = |head: FrameHead| (head.info.head_bytes + head.info.body_bytes) as usize;
            let length = length.unwrap_or_else(|| whole(FrameHead::parse(&bytes[offset..]).unwrap()));
            let (name, repeated) = (name.clone(), repeated.clone());
            places.push(Place { name, offset, length, decoder: *decoder, repeated });
        }
    }
    let length = read(&storage, MANIFEST_NAME).len();
    // As often as a block of the others: it says most.
    for _ in 0..places.len() / 8 {
        let (name, decoder) = (MANIFEST_NAME.to_owned(), Decoder::Manifest);
        places.push(Place { name, offset: 0, length, decoder, repeated: 0..0 });
    }
    for (_, decoder, ..) in &BLOCKS {
        assert!(places.iter().any(|place| place.decoder == *decoder), "{decoder:?}");
    }
    World { storage, places, source: ends.to_vec() }
});

/// Changes a block, makes its checksum right, and those that hold it.
fn change(storage: &Memory, place: &Place, changes: &[Change]) {
    let mut bytes = read(storage, &place.name);
    let Some(old) = bytes.get(place.offset..place.offset + place.length).map(<[u8]>::to_vec) else { return };
    // What is behind the last byte that says anything is padding.
    let mut new = old.clone();
    new.truncate(old.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    changes.iter().for_each(|change| change.apply(&mut new));
    new.resize(old.len(), 0);
    let mut new = sealed(place.decoder, &new);
    new.truncate(place.length);
    bytes[place.offset..place.offset + new.len()].copy_from_slice(&new);
    if place.decoder == Decoder::Frame {
        let Ok(head) = FrameHead::parse(&new) else { return };
        let crc = crc32c::crc32c(&new[..head.info.head_bytes as usize]);
        let at = place.offset - 64;
        bytes[at + 56..at + 60].copy_from_slice(&crc.to_le_bytes());
        let envelope = sealed(Decoder::Envelope, &bytes[at..at + 64]);
        bytes[at..at + 64].copy_from_slice(&envelope);
    }
    replace(storage, &place.name, &bytes);
    if !place.repeated.is_empty() {
        let mut manifest = read(storage, MANIFEST_NAME);
        let (old, new) = (&old[place.repeated.clone()], &new[place.repeated.clone()]);
        if let Some(at) = manifest.windows(old.len()).position(|window| window == old) {
            manifest[at..at + new.len()].copy_from_slice(new);
            replace(storage, MANIFEST_NAME, &sealed(Decoder::Manifest, &manifest));
        }
    }
}

/// Everything that a reader may ask; how much of it was answered.
fn read_all(
    storage: &Arc<dyn Storage>,
    snapshot: &Snapshot,
    timelines: &[Timeline],
    ends: &[(Timeline, Lsn)],
) -> usize {
    let reader = Arc::new(Reader::new(Arc::clone(storage), DIRECTORY, 1 << 20));
    let mut answered = usize::from(reader.events(snapshot).is_ok());
    for timeline in timelines {
        answered += usize::from(reader.frontiers(snapshot, *timeline).is_ok());
        answered += usize::from(reader.stamp(snapshot, *timeline, snapshot.written()).is_some());
    }
    for elements in [ends, &ends[..1]] {
        let elements: Vec<_> =
            elements.iter().map(|(timeline, lsn)| (*timeline, (*lsn).min(snapshot.written()))).collect();
        let Ok(view) = View::open(&path(&reader, snapshot, &elements), 1 << 20) else { continue };
        for number in 1..=2 {
            answered += usize::from(view.resolve(disk(number), Extent::new(0, 65 << 20)).is_ok());
            let mut out = vec![0; 1 << 20];
            answered += usize::from(view.read(disk(number), 0, &mut out, &Nothing).is_ok());
        }
    }
    let _ = reader.verify(snapshot, |_| true);
    answered
}

/// The owner's side: a start, more records, a merge of the index.
fn go_on(storage: &Memory, ends: &[(Timeline, Lsn)]) -> bool {
    let Ok(opened) = open(storage, DIRECTORY, None) else { return false };
    let mut rig = Rig::on(Arc::new(storage.clone()), opened, 5);
    let (last, after) = ends[ends.len() - 1];
    let mut source = Source::new(3, last);
    source.fork(last, after);
    source.prev = rig.writer.snapshot().span(last).map_or(Lsn::ZERO, |_| after);
    source.any();
    for frame in source.frames(Compression::None) {
        // What it must follow may say something else now.
        let _ = rig.writer.append(rig.now, frame);
    }
    rig.sync();
    let reader = rig.reader();
    for _ in 0..4 {
        let Some(task) = rig.writer.next_index_merge() else { break };
        let Ok(mut merge) = IndexMerge::new(&reader, &rig.writer.snapshot(), task) else { break };
        let run = loop {
            match merge.step(1 << 16) {
                Ok(None) => {}
                Ok(Some(run)) => break run,
                Err(_) => return true,
            }
        };
        rig.writer.publish_run(run);
        rig.drain();
    }
    true
}

fn try_all(storage: &Memory) -> (usize, bool) {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let mut answered = 0;
    if let Ok(looked) = look(storage, DIRECTORY, None) {
        let timelines: Vec<_> = looked.manifest.timelines.iter().map(|info| info.id).collect();
        for snapshot in std::iter::once(&looked.snapshot).chain(&looked.behind) {
            answered += read_all(&shared, snapshot, &timelines, &WORLD.source);
        }
    }
    let files = storage.list(DIRECTORY).unwrap().into_iter().map(|name| format!("{DIRECTORY}/{name}"));
    for name in files.chain([MANIFEST_NAME.to_owned()]) {
        inspect(storage.open(&name, false).unwrap().as_ref()).unwrap();
    }
    (answered, go_on(storage, &WORLD.source))
}

#[test]
fn a_store_that_was_not_changed_answers_everything() {
    // Events, two of each timeline, four of each of two views; and it goes on.
    assert_eq!(try_all(&copy(&WORLD.storage)), (1 + 4 + 8, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases() / 2))]

    #[test]
    fn a_store_whose_blocks_lie_is_read_to_an_end(
        places in prop::collection::vec((any::<Index>(), prop::collection::vec(same_length(), 1..3)), 1..3),
    ) {
        let storage = copy(&WORLD.storage);
        for (place, changes) in places {
            change(&storage, place.get(&WORLD.places), &changes);
        }
        let _ = try_all(&storage);
    }
}
