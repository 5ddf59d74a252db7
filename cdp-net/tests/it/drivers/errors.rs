//! What is told when something does not work.

use super::{Driven, Kind, create, directory};
use bytes::Bytes;
use cdp_core::journal::{Effect, FileId};
use cdp_core::media::{Fault, Faults, Faulty, MediaErrorKind, Operation};
use cdp_core::types::Extent;
use std::sync::Arc;

pub(super) fn a_file_that_would_leave_too_little_room_is_not_made(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
    let free = storage.free_bytes().unwrap();
    let file = driven.new_file();
    let made = |keep_free| Effect::Create { file, name: "new".into(), preallocate: 1 << 20, keep_free, replace: true };
    let error = driven.run(made(free + (1 << 40))).unwrap_err();
    assert_eq!((error.kind, error.operation, error.path.as_str()), (MediaErrorKind::NoSpace, Operation::Create, "new"));
    assert!(storage.list("").unwrap().is_empty());
    driven.run(made(free / 4)).unwrap();
    assert_eq!(storage.list("").unwrap(), ["new"]);
}

pub(super) fn errors_say_what_was_tried_and_where_as_the_file_says_it(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
    // Further than files go, with many bytes and with few.
    for (name, preallocate) in [("cached", 0), ("streamed", 1 << 20)] {
        let file = driven.create(name, preallocate);
        for length in [4096, 256 << 10] {
            let (offset, data) = (1 << 62, vec![Bytes::from(vec![1; length])]);
            let expected = storage.open(name, true).unwrap().write_at(offset, &data);
            let told = driven.run(Effect::Write { file, offset, data });
            assert_eq!(told, expected);
            match told {
                Err(error) => {
                    assert_eq!((error.operation, error.offset), (Operation::Write, offset));
                    assert!(error.path.ends_with(name), "{error}");
                }
                Ok(()) => println!("skipped: files have no end here"),
            }
        }
        let error = driven.run(Effect::SetLength { file, length: u64::MAX }).unwrap_err();
        assert_eq!(error.operation, Operation::SetLength);
        assert!(error.path.ends_with(name), "{error}");
    }
    let [gone, other] = ["gone", "other"].map(str::to_owned);
    let mut refused = |effect| {
        let error = driven.run(effect).unwrap_err();
        (error.kind, error.operation, error.path.rsplit('/').next().unwrap().to_owned())
    };
    let rename = Effect::Rename { from: gone.clone(), to: other };
    assert_eq!(refused(rename), (MediaErrorKind::NotFound, Operation::Rename, gone.clone()));
    let sync = Effect::SyncDir { name: gone.clone() };
    assert_eq!(refused(sync), (MediaErrorKind::NotFound, Operation::SyncDir, gone.clone()));
    let taken = (MediaErrorKind::Exists, Operation::Create, "cached".to_owned());
    assert_eq!(refused(create(FileId(99), "cached", 0)), taken);
    assert_eq!(driven.run(Effect::Remove { name: gone }), Ok(()), "what is not there is as good as removed");
}

pub(super) fn a_file_that_was_never_opened_is_an_error_and_no_wait(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage) else { return };
    let open = driven.create("open", 0);
    let file = FileId(77);
    let data = vec![Bytes::from_static(b"lost")];
    let unknown = [
        Effect::Write { file, offset: 0, data: data.clone() },
        Effect::Sync { file },
        Effect::SetLength { file, length: 1 },
    ];
    for effect in unknown {
        let error = driven.run(effect).unwrap_err();
        assert_eq!((error.operation, error.path.as_str()), (Operation::Open, "file 77"));
    }
    driven.run(Effect::Close { file }).unwrap();
    driven.run(Effect::Write { file: open, offset: 0, data }).unwrap();
}

pub(super) fn a_write_that_fails_is_told_once_and_the_others_go_on(kind: Kind) {
    let (_place, storage) = directory();
    let faults = Faults::default();
    let range = Some(Extent::new(25_000, 1));
    faults.add(Fault { range, ..Fault::once(Operation::Write, "segment", MediaErrorKind::Io) });
    let Some(mut driven) = Driven::new(kind, Arc::new(Faulty::new(storage.clone(), faults.clone()))) else { return };
    let file = driven.create("segment", 1 << 20);
    // Apart from each other, so that each is a write of its own.
    let data = |number: u64| vec![Bytes::from(vec![number as u8 + 1; 10_000])];
    let writes: Vec<_> = (0..10)
        .map(|number| driven.start(Effect::Write { file, offset: number * 20_000, data: data(number) }))
        .collect();
    let outcomes: Vec<_> = writes.into_iter().map(|id| driven.wait(id)).collect();
    let failed: Vec<_> = (0..10).filter(|at| outcomes[*at].is_err()).collect();
    assert_eq!((failed.as_slice(), faults.fired()), ([1].as_slice(), 1));
    let error = outcomes[1].clone().unwrap_err();
    assert_eq!((error.operation, error.offset), (Operation::Write, 20_000));
    driven.run(Effect::Sync { file }).unwrap();
    let mut found = vec![0; 200_000];
    storage.open("segment", false).unwrap().read_exact_at(0, &mut found).unwrap();
    for number in 0..10 {
        let expected = if number == 1 { 0 } else { number as u8 + 1 };
        assert!(found[number * 20_000..][..10_000].iter().all(|byte| *byte == expected), "write {number}");
    }
    // The same on files with descriptors: one of many goes further than files go.
    let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
    let file = driven.create("real", 1 << 20);
    let writes: Vec<_> = (0..10)
        .map(|number| {
            let offset = if number == 4 { 1 << 62 } else { number * 20_000 };
            driven.start(Effect::Write { file, offset, data: data(number) })
        })
        .collect();
    let outcomes: Vec<_> = writes.into_iter().map(|id| driven.wait(id)).collect();
    assert!((0..10).all(|at| at == 4 || outcomes[at].is_ok()), "{outcomes:?}");
    let mut found = vec![0; 10_000];
    storage.open("real", false).unwrap().read_exact_at(9 * 20_000, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 10));
}

pub(super) fn a_sync_that_fails_is_told_once_and_not_tried_again(kind: Kind) {
    let (_place, storage) = directory();
    let faults = Faults::default();
    faults.add(Fault::once(Operation::Sync, "segment", MediaErrorKind::Io));
    let Some(mut driven) = Driven::new(kind, Arc::new(Faulty::new(storage, faults.clone()))) else { return };
    let (file, other) = (driven.create("segment", 0), driven.create("another", 0));
    let data = vec![Bytes::from_static(b"some")];
    driven.run(Effect::Write { file, offset: 0, data }).unwrap();
    let (failed, fine) = (driven.start(Effect::Sync { file }), driven.start(Effect::Sync { file: other }));
    let error = driven.wait(failed).unwrap_err();
    assert_eq!((error.kind, error.operation), (MediaErrorKind::Io, Operation::Sync));
    assert!(error.path.ends_with("segment"), "{error}");
    driven.wait(fine).unwrap();
    assert_eq!(faults.fired(), 1);
}
