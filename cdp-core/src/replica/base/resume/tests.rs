//! A first copy goes on after a crash at any moment, as often as it has to, and is the source in the end.

use super::super::{Base, BaseError, is_zero};
use super::*;
use crate::sim::{SimDisk, Survival};
use crate::trust::{Wrap, WrappingKey};
use crate::types::{Extent, Lsn, Timeline, WallTime};
use proptest::prelude::*;

fn ids() -> (ReplicaId, DiskId) {
    (ReplicaId::new([3; 16]).unwrap(), DiskId::new(1).unwrap())
}

/// What a process has that is the `life`-th: the keys of those before, and its own.
fn ring(life: u32) -> Arc<Keyring> {
    let ring = Keyring::default();
    for generation in 1..=life {
        let wrap = Wrap { salt: [1; 16], created: WallTime(1) };
        let key = WrappingKey::parse(&[2; 32]).unwrap().new_key(ids().0, [generation as u8; 32], wrap);
        key.name(generation, &ring);
    }
    Arc::new(ring)
}

fn info(size: u64, point: SeedingPoint, at_rest: bool) -> SeedingInfo {
    SeedingInfo { point, at_rest, ..SeedingInfo::new(ids().1, size, Timeline::new([9; 16]).unwrap()) }
}

fn begin(storage: &dyn Storage, size: u64, keys: Option<&Keyring>) -> BaseWriter {
    let writer = BaseWriter::create(storage, ids().0, ids().1, size).unwrap();
    keys.map_or_else(
        || BaseWriter::create(storage, ids().0, ids().1, size).unwrap(),
        |keys| writer.at_rest(keys).unwrap(),
    )
}

/// Feeds a piece: zeros as such.
fn feed(writer: &mut BaseWriter, content: &[u8], bytes: u64) {
    let at = writer.position() as usize;
    let piece = &content[at..content.len().min(at + bytes as usize)];
    match is_zero(piece) {
        true => writer.zeros(piece.len() as u64, Lsn(at as u64 + 1)).unwrap(),
        false => writer.data(piece, Lsn(at as u64 + 1)).unwrap(),
    }
}

/// That the base is the disk, and has room for nothing else.
fn check(storage: &dyn Storage, content: &[u8], (root, keys): (crate::replica::sidecar::Root, Arc<Keyring>)) {
    let base = Base::open_with(storage, ids().0, ids().1, root, keys).unwrap();
    let mut found = vec![1; content.len()];
    base.read(0, &mut found).unwrap();
    assert!(found == content, "the base is not the disk");
    let image = storage.open(&file_names(ids().1).0, false).unwrap();
    let mut at = 0;
    while let Some(data) = image.next_data(at).unwrap() {
        let blocks = Extent::new(data.offset, data.length).widen(BLOCK);
        let inside = &content[blocks.offset as usize..content.len().min(blocks.end() as usize)];
        assert!(inside.chunks(BLOCK as usize).all(|block| !is_zero(block)), "zeros take room in {blocks}");
        at = data.end();
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Copies so many blocks.
    Copy(u64),
    /// Takes a checkpoint.
    Checkpoint,
    /// Syncs and names the one that was taken.
    Name,
}

/// One process: what the source holds from where the copy stands on, what is done, and where and how the power goes.
#[derive(Clone, Debug)]
struct Life {
    runs: Vec<(bool, u64)>,
    ops: Vec<Op>,
    cut: prop::sample::Index,
    survival: u64,
}

fn life() -> impl Strategy<Value = Life> {
    let op = prop_oneof![4 => (1..300u64).prop_map(Op::Copy), 1 => Just(Op::Checkpoint), 1 => Just(Op::Name)];
    let runs = prop::collection::vec((any::<bool>(), 1..500u64), 1..8);
    let ops = prop::collection::vec(op, 1..24);
    (runs, ops, any::<prop::sample::Index>(), any::<u64>()).prop_map(|(runs, ops, cut, survival)| Life {
        runs,
        ops,
        cut,
        survival,
    })
}

/// What a source holds, from `from` on, in a life.
fn rewrite(content: &mut [u8], from: usize, runs: &[(bool, u64)], number: u8) {
    let bytes = runs.iter().enumerate().cycle().flat_map(|(run, (data, blocks))| {
        let byte = if *data { number.wrapping_mul(31) ^ (run as u8 + 1) | 1 } else { 0 };
        std::iter::repeat_n(byte, *blocks as usize)
    });
    let blocks = content.chunks_mut(BLOCK as usize).zip(bytes).skip(from.div_ceil(BLOCK as usize));
    blocks.for_each(|(block, byte)| block.fill(byte));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn killed_at_any_change_it_goes_on_and_is_the_source(
        lives in prop::collection::vec(life(), 1..4),
        blocks in 400..800u64,
        at_rest: bool,
    ) {
        let size = blocks * BLOCK - 512;
        let mut content = vec![0; size as usize];
        let mut disk = SimDisk::new();
        let mut known: Option<SeedingPoint> = None;
        for (number, life) in (1..).zip(&lives) {
            let ring = at_rest.then(|| ring(number));
            let stands = known.map_or(0, |point| point.done as usize);
            rewrite(&mut content, stands, &life.runs, number as u8);
            disk.remember();
            let mut writer = match known {
                None => begin(&disk, size, ring.as_deref()),
                Some(point) => {
                    BaseWriter::resume(&disk, ids().0, &info(size, point, at_rest), size, ring.as_deref()).unwrap()
                }
            };
            // What the manifest names after so many changes of the media.
            let mut named = vec![(0, known)];
            let mut taken = None;
            for op in &life.ops {
                match op {
                    Op::Copy(blocks) => feed(&mut writer, &content, blocks * BLOCK),
                    Op::Checkpoint => taken = Some(writer.checkpoint().unwrap()),
                    Op::Name => {
                        if let Some(checkpoint) = taken.take() {
                            let point = checkpoint.sync().unwrap();
                            prop_assert!(point.done <= writer.position());
                            named.push((disk.remembered(), Some(point)));
                        }
                    }
                }
            }
            let cut = life.cut.index(disk.remembered() as usize + 1) as u64;
            known = named.iter().rev().find(|(changes, _)| *changes <= cut).and_then(|(_, point)| *point);
            disk = disk.past(cut, Survival::Some(life.survival)).unwrap();
        }
        let number = lives.len() as u32 + 1;
        let ring = at_rest.then(|| ring(number));
        rewrite(&mut content, known.map_or(0, |point| point.done as usize), &[(true, 3), (false, 400)], 99);
        let mut writer = match known {
            None => begin(&disk, size, ring.as_deref()),
            Some(point) => {
                BaseWriter::resume(&disk, ids().0, &info(size, point, at_rest), size, ring.as_deref()).unwrap()
            }
        };
        while writer.position() < size {
            feed(&mut writer, &content, 64 * BLOCK);
        }
        let root = writer.finish(&disk, Lsn(99)).unwrap();
        check(&disk, &content, (root, ring.unwrap_or_default()));
    }
}

/// A copy of 5 pages with holes, left at a checkpoint behind the third.
fn left(storage: &dyn Storage, keys: Option<&Keyring>) -> (Vec<u8>, SeedingInfo) {
    let layout = if keys.is_some() { Layout::AtRest } else { Layout::Plain };
    let covers = layout.covers();
    let mut content = vec![7; (5 * covers - 512) as usize];
    content[covers as usize..2 * covers as usize].fill(0);
    let mut writer = begin(storage, content.len() as u64, keys);
    for bytes in [covers, covers, covers + BLOCK] {
        feed(&mut writer, &content, bytes);
    }
    let point = writer.checkpoint().unwrap().sync().unwrap();
    assert_eq!(point.done, 3 * covers, "the last border");
    let size = content.len() as u64;
    while writer.position() < size {
        feed(&mut writer, &content, covers);
    }
    (content, info(size, point, keys.is_some()))
}

#[test]
fn what_was_copied_is_not_written_again() {
    let storage = SimDisk::new();
    let (content, info) = left(&storage, None);
    let mut writer = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap();
    assert_eq!(writer.position(), info.point.done);
    feed(&mut writer, &content, u64::from(u32::MAX));
    assert_eq!(writer.stored_bytes(), info.size - info.point.done);
    let root = writer.finish(&storage, Lsn(1)).unwrap();
    check(&storage, &content, (root, Arc::default()));
}

#[test]
fn what_lies_behind_the_place_is_not_believed() {
    let storage = SimDisk::new();
    let (mut content, info) = left(&storage, None);
    // The source was rewritten since: what was data is zeros now.
    content[info.point.done as usize..].fill(0);
    let mut writer = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap();
    writer.zeros(info.size - info.point.done, Lsn(5)).unwrap();
    let root = writer.finish(&storage, Lsn(5)).unwrap();
    check(&storage, &content, (root, Arc::default()));
    let sidecar = storage.open(&file_names(ids().1).1, false).unwrap();
    assert_eq!(sidecar.len().unwrap(), Slot::First.offset(3), "what was behind is cut off");
}

#[test]
fn a_copy_of_which_a_byte_of_its_pages_changed_begins_anew() {
    let storage = SimDisk::new();
    let (_, info) = left(&storage, None);
    let sidecar = storage.open(&file_names(ids().1).1, true).unwrap();
    for page in 0..3 {
        for at in (0..PAGE_BYTES as u64).step_by(61) {
            let at = Slot::First.offset(page) + at;
            let mut byte = [0];
            sidecar.read_exact_at(at, &mut byte).unwrap();
            sidecar.write_all_at(at, &[byte[0] ^ 1]).unwrap();
            let error = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap_err();
            assert!(error.begins_anew() && matches!(error, ResumeError::Page { .. }), "byte {at}: {error}");
            sidecar.write_all_at(at, &byte).unwrap();
        }
    }
    sidecar.punch(Extent::new(Slot::First.offset(2), PAGE_BYTES as u64)).unwrap();
    let error = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap_err();
    assert!(error.begins_anew() && matches!(error, ResumeError::Root { .. }), "a page is gone: {error}");
}

#[test]
fn a_copy_whose_files_are_gone_or_short_begins_anew() {
    let storage = SimDisk::new();
    let (_, info) = left(&storage, None);
    let (image, _) = file_names(ids().1);
    storage.open(&image, true).unwrap().set_len(info.point.done - 1).unwrap();
    let error = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap_err();
    assert!(error.begins_anew() && matches!(error, ResumeError::Length { .. }), "{error}");
    storage.remove(&image).unwrap();
    let error = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap_err();
    assert!(error.begins_anew() && matches!(error, ResumeError::Media(_)), "{error}");
}

#[test]
fn a_disk_that_grew_goes_on_and_one_that_was_cut_before_the_place_does_not() {
    let storage = SimDisk::new();
    let (mut content, info) = left(&storage, None);
    let cut = BaseWriter::resume(&storage, ids().0, &info, info.point.done - 512, None).unwrap_err();
    assert!(matches!(cut, ResumeError::Size { .. }) && cut.begins_anew());
    content.resize(content.len() + 77 * BLOCK as usize, 9);
    let mut writer = BaseWriter::resume(&storage, ids().0, &info, content.len() as u64, None).unwrap();
    feed(&mut writer, &content, u64::from(u32::MAX));
    let at_the_end = writer.checkpoint().unwrap().sync().unwrap();
    assert_eq!(at_the_end.done, content.len() as u64);
    let whole = SeedingInfo { point: at_the_end, size: content.len() as u64, ..info };
    let other = BaseWriter::resume(&storage, ids().0, &whole, whole.size + BLOCK, None).unwrap_err();
    assert!(matches!(other, ResumeError::Size { .. }), "its last page is not whole any more");
    let writer = BaseWriter::resume(&storage, ids().0, &whole, whole.size, None).unwrap();
    let root = writer.finish(&storage, Lsn(1)).unwrap();
    check(&storage, &content, (root, Arc::default()));
}

#[test]
fn a_sealed_copy_goes_on_under_a_key_of_its_own_and_needs_both() {
    let storage = SimDisk::new();
    let (content, info) = left(&storage, Some(&ring(1)));
    let no_key = BaseWriter::resume(&storage, ids().0, &info, info.size, None).unwrap_err();
    assert!(matches!(no_key, ResumeError::Key { .. }) && !no_key.begins_anew());
    let other =
        BaseWriter::resume(&storage, ids().0, &SeedingInfo { at_rest: false, ..info }, info.size, Some(&ring(2)));
    assert!(matches!(other, Err(ResumeError::NotSealed { .. })));
    let mut writer = BaseWriter::resume(&storage, ids().0, &info, info.size, Some(&ring(2))).unwrap();
    feed(&mut writer, &content, u64::from(u32::MAX));
    let root = writer.finish(&storage, Lsn(1)).unwrap();
    check(&storage, &content, (root, ring(2)));
    let base = Base::open_with(&storage, ids().0, ids().1, root, ring(1)).unwrap();
    let mut block = vec![0; BLOCK as usize];
    base.read(0, &mut block).unwrap();
    let error = base.read(info.point.done, &mut block).unwrap_err();
    assert!(matches!(error, BaseError::AtRest { source: KeyError::Unknown { generation: 2 }, .. }), "{error}");
}
