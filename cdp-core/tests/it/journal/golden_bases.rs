//! Bytes of a base before and after a merge, as they were written once: image, both places of a page of checksums, both digest
//! tables, their roots, and what the merge left of blocks that it changed in parts.

use super::golden::{compare, dump, load};
use super::kit::*;
use cdp_core::frame::{Compression, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::{Base, BaseError, BaseWriter};
use cdp_core::replica::merge::Merge;
use cdp_core::replica::rests::expect_torn;
use cdp_core::replica::sidecar::{Layout, Root};
use cdp_core::replica::{BaseFile, Bases};
use cdp_core::types::*;
use std::sync::Arc;

const GOLDEN: &str = include_str!("golden-bases-v1.txt");
/// A page of checksums that is absent, and one for a few blocks, the last of which is not whole.
const PAGE_COVERS: u64 = Layout::Plain.covers();
const SIZE: u64 = PAGE_COVERS + 3 * BLOCK + 512;

/// Up to where is merged: all records.
fn merge_info() -> StampedMoment {
    StampedMoment { timeline: timeline(1), lsn: Lsn(3), stamp: Stamp { epoch: ClockEpoch(1), time: WallTime(1) } }
}

fn replica() -> ReplicaId {
    ReplicaId::new([5; 16]).unwrap()
}

fn files() -> Vec<String> {
    let files = [BaseFile::Image(disk(1)), BaseFile::Sidecar(disk(1)), BaseFile::OddTable(disk(1))];
    files.into_iter().chain([BaseFile::EvenTable(disk(1)), BaseFile::Rests]).map(BaseFile::path).collect()
}

/// The disk before the merge: data in the first and the third block behind the absent page.
fn before() -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    for (block, fill) in [(0, 0x11), (2, 0x22)] {
        content[(PAGE_COVERS + block * BLOCK) as usize..][..BLOCK as usize].fill(fill);
    }
    content
}

/// What is merged: two sectors in the middle of a block, a whole block that is discarded, the end of the disk.
fn records(source: &mut Source) {
    source.write(1, Extent::new(PAGE_COVERS + 1024, 1024), 4);
    source.clear(RecordKind::Discard, 1, Extent::new(PAGE_COVERS + 2 * BLOCK, BLOCK));
    source.write(1, Extent::new(PAGE_COVERS + 3 * BLOCK, 512), 5);
}

fn after() -> Vec<u8> {
    let mut source = Source::new(1, timeline(1));
    records(&mut source);
    let mut content = before();
    for (.., extent, data) in &source.model.history {
        let range = extent.offset as usize..extent.end() as usize;
        match data {
            Some(data) => content[range].copy_from_slice(data),
            None => content[range].fill(0),
        }
    }
    content
}

/// A base that was merged into, before the manifest says so; its roots before and after.
fn merged() -> (Memory, [Root; 2]) {
    let memory = Memory::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let mut rig = Rig::create(Arc::clone(&storage));
    let mut writer = BaseWriter::create(storage.as_ref(), replica(), disk(1), SIZE).unwrap();
    let content = before();
    writer.zeros(PAGE_COVERS, Lsn::ZERO).unwrap();
    writer.data(&content[PAGE_COVERS as usize..], Lsn::ZERO).unwrap();
    let old = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
    let base = old.named(Lsn::ZERO);
    rig.writer.edit(|manifest| {
        manifest.disks.push(DiskInfo {
            id: disk(1),
            name: "disk".to_owned(),
            size: SIZE,
            source: String::new(),
            added: Lsn::ZERO,
            removed: None,
            stopped: None,
            base: Some(base),
        });
        manifest.merge = Some(merge_info());
    });
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut source = Source::new(1, timeline(1));
    records(&mut source);
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.sync();
    let info = merge_info();
    let path = path(&rig.reader(), &rig.writer.snapshot(), &[(info.timeline, info.lsn)]);
    let bases = bases(&memory, old);
    let now = Now { wall: WallTime(1), mono: MonoTime(1) };
    let mut merge = Merge::begin(&storage, rig.writer.manifest(), info, &path, &bases, None).unwrap();
    while merge.step(now, 1 << 20).unwrap() {}
    let done = merge.finish(now).unwrap();
    (memory, [old, done[0].1.into()])
}

fn bases(storage: &Memory, root: Root) -> Arc<Bases> {
    let mut bases = Bases::default();
    bases.insert(disk(1), Arc::new(Base::open(storage, replica(), disk(1), root).unwrap()));
    // The one merge that there is in these tests.
    Arc::new(bases.changed_by(merge_info()))
}

fn line_of(root: &Root) -> String {
    let digest: String = root.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("root {} {} {digest}", root.generation, root.size)
}

/// Files, and behind them the roots.
fn golden() -> (Memory, [Root; 2]) {
    let (files, roots) = GOLDEN.split_at(GOLDEN.find("root ").unwrap());
    let mut roots = roots.lines().map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let byte = |at: usize| u8::from_str_radix(&words[3][at * 2..at * 2 + 2], 16).unwrap();
        let digest = std::array::from_fn(byte);
        Root { generation: words[1].parse().unwrap(), size: words[2].parse().unwrap(), digest, layout: Layout::Plain }
    });
    (load(files), std::array::from_fn(|_| roots.next().unwrap()))
}

#[test]
fn version_1_of_a_base_is_written_as_it_was() {
    let (storage, roots) = merged();
    let lines: String = roots.iter().map(|root| line_of(root) + "\n").collect();
    compare("golden-bases-v1.txt", &(dump(&storage, &files()) + &lines), GOLDEN);
}

#[test]
fn version_1_of_a_base_is_read_as_it_was() {
    let (storage, [old, new]) = golden();
    assert_eq!((old.generation, new.generation), (1, 2));
    let mut found = vec![1; SIZE as usize];
    bases(&storage, new).get(disk(1)).unwrap().read(0, &mut found).unwrap();
    assert!(found == after());
}

/// The old pages, and a block that is torn as far as a merge may tear it: what the merge does not change is right, and known to be.
#[test]
fn version_1_of_what_a_merge_leaves_is_read_as_it_was() {
    let (storage, [old, _]) = golden();
    let image = storage.open(&BaseFile::Image(disk(1)).path(), true).unwrap();
    image.write_all_at(PAGE_COVERS + 1024, &[0xee; 700]).unwrap();
    let read = |bases: &Bases| {
        let mut block = vec![0; BLOCK as usize];
        bases.get(disk(1)).unwrap().read(PAGE_COVERS, &mut block).map(|()| block)
    };
    let bases = bases(&storage, old);
    assert!(matches!(read(&bases), Err(BaseError::Block { offset: PAGE_COVERS, .. })));
    expect_torn(&storage, &bases, merge_info()).unwrap();
    let block = read(&bases).unwrap();
    assert!(block[..1024] == [0x11; 1024] && block[2048..] == [0x11; 2048]);
    // One of its bytes that stay is another.
    image.write_all_at(PAGE_COVERS + 3000, &[0xee]).unwrap();
    assert!(read(&bases).is_err());
}
