//! Both implementations do the same.

use super::*;
use crate::types::SECTOR;
use proptest::prelude::*;

fn storages() -> Vec<(Arc<dyn Storage>, Option<tempfile::TempDir>)> {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::create(directory.path().join("a/b")).unwrap();
    vec![(Arc::new(Memory::new()), None), (Arc::new(disk), Some(directory))]
}

#[test]
fn bytes_names_and_holes() {
    for (storage, _directory) in storages() {
        let file = storage.create("journal/1.seg").unwrap();
        assert_eq!(storage.create("journal/1.seg").unwrap_err().kind, MediaErrorKind::Exists);
        assert_eq!(storage.open("nothing", false).unwrap_err().kind, MediaErrorKind::NotFound);
        assert_eq!(storage.open("../x", false).unwrap_err().kind, MediaErrorKind::Io);
        file.preallocate(Extent::new(0, 2 << 20)).unwrap();
        assert_eq!(file.len().unwrap(), 2 << 20);
        let pieces: Vec<Bytes> = (0..300u32).map(|n| Bytes::from(vec![n as u8; 100 + n as usize])).collect();
        file.write_at(5_000, &pieces).unwrap();
        file.sync().unwrap();
        let flat: Vec<u8> = pieces.concat();
        let (mut a, mut b) = (vec![0; 77], vec![0; flat.len() - 77]);
        let mut out = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        assert_eq!(file.read_vectored_at(5_000, &mut out).unwrap(), flat.len());
        assert_eq!([a, b].concat(), flat);
        file.set_len(6_000).unwrap();
        let mut tail = [9; 2_000];
        assert_eq!(file.read_at(5_500, &mut tail).unwrap(), 500);
        assert_eq!(file.read_exact_at(5_500, &mut tail).unwrap_err().kind, MediaErrorKind::Short);
        file.set_len(8_000).unwrap();
        file.read_exact_at(6_000, &mut tail).unwrap();
        assert_eq!(tail, [0; 2_000]);
        storage.rename("journal/1.seg", "journal/2.seg").unwrap();
        storage.sync_dir("journal").unwrap();
        assert_eq!(storage.list("journal").unwrap(), ["2.seg"]);
        assert_eq!(names(storage.as_ref(), "journal"), ["2.seg"]);
        assert_eq!(storage.list("").unwrap(), ["journal"]);
        assert_eq!(storage.sub("journal").unwrap().open("2.seg", true).unwrap().len().unwrap(), 8_000);
        storage.remove("journal/2.seg").unwrap();
        assert!(storage.list("journal").unwrap().is_empty());
        assert!(storage.list("nowhere").unwrap().is_empty() && names(storage.as_ref(), "nowhere").is_empty());
        assert!(storage.free_bytes().unwrap() > 0);
    }
}

fn names(storage: &dyn Storage, directory: &str) -> Vec<String> {
    let mut names = Vec::new();
    storage.each_name(directory, &mut |name| names.push(String::from_utf8(name.to_vec()).unwrap())).unwrap();
    names.sort();
    names
}

/// More than the system gives at once.
#[test]
fn a_long_directory_is_listed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path()).unwrap();
    let expected: Vec<_> = (0..1500).map(|number| format!("{number:030}.seg")).collect();
    expected.iter().for_each(|name| drop(disk.create(name).unwrap()));
    assert_eq!(disk.list("").unwrap(), expected);
    assert_eq!(names(&disk, ""), expected);
}

#[test]
fn data_between_holes() {
    for (storage, _directory) in storages() {
        let file = storage.create("disk.img").unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_all_at(2 << 20, &[7; 1 << 20]).unwrap();
        file.write_all_at(5 << 20, &[7; 1 << 20]).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(Extent::new(2 << 20, 1 << 20)));
        assert_eq!(file.next_data(3 << 20).unwrap(), Some(Extent::new(5 << 20, 1 << 20)));
        file.punch(Extent::new(2 << 20, 1 << 20)).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(Extent::new(5 << 20, 1 << 20)));
        assert_eq!(file.next_data(6 << 20).unwrap(), None);
        let mut bytes = [1; 16];
        file.read_exact_at(2 << 20, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 16]);
    }
}

#[test]
fn full_memory_refuses_and_recovers() {
    let memory = Memory::with_capacity(1 << 20);
    let file = memory.create("a").unwrap();
    assert!(file.preallocate(Extent::new(0, 2 << 20)).unwrap_err().is_no_space());
    memory.set_capacity(4 << 20);
    file.preallocate(Extent::new(0, 2 << 20)).unwrap();
    assert_eq!(memory.free_bytes().unwrap(), 2 << 20);
}

#[test]
fn faults_come_and_go() {
    let faults = Faults::default();
    let storage = Faulty::new(Arc::new(Memory::new()), faults.clone());
    let file = storage.create("x.seg").unwrap();
    let fault = Fault::once(Operation::Write, ".seg", MediaErrorKind::Io);
    faults.add(Fault { after: 1, range: Some(Extent::new(512, 512)), ..fault });
    file.write_all_at(0, &[1; 512]).unwrap();
    file.write_all_at(512, &[1; 512]).unwrap();
    assert_eq!(faults.fired(), 0);
    assert_eq!(file.write_all_at(512, &[1; 512]).unwrap_err().kind, MediaErrorKind::Io);
    file.write_all_at(512, &[1; 512]).unwrap();
    assert_eq!(faults.fired(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Small writes go through the page cache and large ones past it, in the same pages and in any order; of large ones some
    /// pieces are handed over as they are and others are gathered.
    #[test]
    fn a_streamed_file_holds_what_was_written(
        ops in proptest::collection::vec((0u64..400, 1usize..1200, 1usize..6, any::<u8>(), any::<bool>()), 1..30),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(directory.path()).unwrap();
        let (file, model) = (disk.create_streamed("a.seg").unwrap(), Memory::new().create("a.seg").unwrap());
        file.preallocate(Extent::new(0, 1 << 20)).unwrap();
        model.set_len(1 << 20).unwrap();
        let pool = crate::buffer::BufferPool::new(1 << 20, 1);
        for (sector, sectors, pieces, fill, odd) in ops {
            let length = sectors * SECTOR as usize - usize::from(odd && fill < 64);
            let mut memory = pool.take();
            memory[..length].iter_mut().enumerate().for_each(|(at, byte)| *byte = fill.wrapping_add((at / 100) as u8));
            let whole = memory.freeze(length);
            // Pieces of sectors in aligned memory, or of any length.
            let piece = length.div_ceil(pieces);
            let piece = if odd { piece } else { piece.next_multiple_of(SECTOR as usize) };
            let cut = |at: usize| whole.slice(at..length.min(at + piece));
            let pieces: Vec<_> = (0..length).step_by(piece).map(cut).collect();
            for file in [&file, &model] {
                file.write_at(sector * SECTOR, &pieces).unwrap();
            }
            let (mut found, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            file.read_exact_at(0, &mut found).unwrap();
            model.read_exact_at(0, &mut expected).unwrap();
            prop_assert!(found == expected, "after {length} bytes at sector {sector}, pieces of {piece}");
        }
        file.sync().unwrap();
    }
}

#[test]
fn large_writes_of_a_streamed_file_are_not_in_the_page_cache() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::create(directory.path()).unwrap();
    let file = disk.streamed("a.seg").unwrap();
    let Some(direct) = &file.direct else {
        assert!(direct::Direct::open(&directory.path().join("a.seg")).is_none());
        eprintln!("skipped: the file system here takes no writes past the page cache, or does not say so");
        return;
    };
    assert!(direct.is_direct() && disk.streamed("b.seg").unwrap().direct.is_some());
    // Smaller, or not on sectors: the cache's business.
    assert!(!direct.takes(0, 4096) && !direct.takes(100, 1 << 20) && !direct.takes(512, (1 << 20) + 1));
    assert!(direct.takes(512, 1 << 20));
    let pieces: Vec<Vec<u8>> = (0..41).map(|piece| vec![piece; 77 * 512 + usize::from(piece)]).collect();
    let mut whole = pieces.concat();
    whole.resize(whole.len().next_multiple_of(512), 0);
    let rest = &whole[pieces.concat().len()..];
    let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).chain([IoSlice::new(rest)]).collect();
    file.write_vectored_at(512, &slices).unwrap();
    let mut found = vec![0; whole.len()];
    file.read_exact_at(512, &mut found).unwrap();
    assert!(found == whole);
    // What it refuses after all goes through the cache, once and for all.
    direct.give_up();
    assert!(!direct.takes(512, 1 << 20));
    file.write_vectored_at(0, &slices).unwrap();
    file.read_exact_at(0, &mut found).unwrap();
    assert!(found == whole);
}
