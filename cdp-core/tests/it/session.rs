//! A writable session against a byte-array model: read what was written, flushed or not, over clean stops and crashes.

use bytes::Bytes;
use cdp_core::frame::{Compression, Payload};
use cdp_core::journal::{Manifest, OpenError, TimelineInfo, TimelineRole, TimelineState};
use cdp_core::media::{Fault, Faults, Faulty, MediaErrorKind, Memory, Operation, Storage};
use cdp_core::replica::session::{Session, SessionError, SessionOptions, create};
use cdp_core::replica::{Bases, ReplicaView, ViewDisk};
use cdp_core::trust::{KeyError, KeyHolder, WrappingKey};
use cdp_core::types::{DiskId, Extent, GroupId, Lsn, MonoTime, Now, ReplicaId, Timeline, WallTime};
use proptest::prelude::*;
use std::sync::Arc;

const DISK: usize = 4 << 20;

fn now(step: u64) -> Now {
    Now { wall: WallTime(1_700_000_000_000_000_000 + step), mono: MonoTime(step) }
}

fn disk() -> DiskId {
    DiskId::new(1).unwrap()
}

fn store() -> Arc<dyn Storage> {
    store_in(Memory::default())
}

fn store_in(memory: Memory) -> Arc<dyn Storage> {
    let storage: Arc<dyn Storage> = Arc::new(memory);
    let trunk = Manifest::new(ReplicaId::new([1; 16]).unwrap(), GroupId::new([2; 16]).unwrap(), "g");
    let timeline = TimelineInfo {
        id: Timeline::new([3; 16]).unwrap(),
        number: 1,
        parent: Timeline::new([4; 16]),
        fork: Lsn(10),
        last: None,
        state: TimelineState::Open,
        role: TimelineRole::Session,
        opened: WallTime(1),
    };
    create(storage.as_ref(), &trunk, "s", timeline).unwrap();
    storage
}

fn open(storage: &Arc<dyn Storage>, life: u8) -> Session {
    try_open(storage, life).unwrap()
}

fn try_open(storage: &Arc<dyn Storage>, life: u8) -> Result<Session, SessionError> {
    try_open_with(storage, life, KeyHolder::default())
}

fn try_open_with(storage: &Arc<dyn Storage>, life: u8, keys: KeyHolder) -> Result<Session, SessionError> {
    let disks = vec![ViewDisk { id: disk(), name: "d".into(), size: DISK as u64 }];
    let options = SessionOptions {
        moment: ReplicaView::open((Vec::new(), Arc::new(Bases::default())), disks).unwrap(),
        keep_free_bytes: 0,
        segment_bytes: u64::MAX,
        compression: Compression::None,
        keys,
    };
    let mut drawn = 0u64;
    let ids = move || {
        drawn += 1;
        let mut id = [life + 10; 16];
        id[8..].copy_from_slice(&drawn.to_le_bytes());
        id
    };
    Session::open(storage, options, Box::new(ids), now(u64::from(life)))
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        sector: usize,
        sectors: usize,
        fill: u8,
    },
    Zero {
        sector: usize,
        sectors: usize,
        keep: bool,
    },
    Read {
        sector: usize,
        sectors: usize,
    },
    Flush,
    CleanStop,
    /// The process ends after a flush, and without closing anything.
    Killed,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let place = (0..DISK / 512, 1usize..1400);
    let op = prop_oneof![
        6 => (place.clone(), any::<u8>()).prop_map(|((sector, sectors), fill)| Op::Write { sector, sectors, fill }),
        2 => (place.clone(), any::<bool>()).prop_map(|((sector, sectors), keep)| Op::Zero { sector, sectors, keep }),
        4 => place.prop_map(|(sector, sectors)| Op::Read { sector, sectors }),
        2 => Just(Op::Flush),
        1 => Just(Op::CleanStop),
        1 => Just(Op::Killed),
    ];
    prop::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_session_reads_as_what_was_written(ops in ops()) {
        let storage = store();
        let mut life = 1;
        let mut session = open(&storage, life);
        let mut model = vec![0u8; DISK];
        for (step, op) in ops.into_iter().enumerate() {
            let now = now(1000 + step as u64);
            let range = |sector: usize, sectors: usize| (sector * 512, ((sector + sectors) * 512).min(DISK));
            match op {
                Op::Write { sector, sectors, fill } => {
                    let (from, to) = range(sector, sectors);
                    model[from..to].fill(fill);
                    let payload = Payload::new(from as u64, Bytes::from(vec![fill; to - from])).unwrap();
                    session.write(now, disk(), payload).unwrap();
                }
                Op::Zero { sector, sectors, keep } => {
                    let (from, to) = range(sector, sectors);
                    model[from..to].fill(0);
                    session.zero(now, disk(), Extent::new(from as u64, (to - from) as u64), keep).unwrap();
                }
                Op::Read { sector, sectors } => {
                    let (from, to) = range(sector, sectors);
                    let mut found = vec![1; to - from];
                    session.read(now, disk(), from as u64, &mut found).unwrap();
                    prop_assert!(found == model[from..to]);
                }
                Op::Flush => session.flush(now).unwrap(),
                Op::CleanStop => {
                    session.close(now).unwrap();
                    life += 1;
                    session = open(&storage, life);
                }
                Op::Killed => {
                    session.flush(now).unwrap();
                    life += 1;
                    session = open(&storage, life);
                }
            }
        }
        let mut found = vec![1; DISK];
        session.read(now(9999), disk(), 0, &mut found).unwrap();
        prop_assert!(found == model);
    }
}

fn short(operation: Operation, path: &str, after: u64, count: u64) -> Fault {
    Fault { after, count, ..Fault::once(operation, path, MediaErrorKind::NoSpace) }
}

/// Media that cannot reserve room refuse a frame in the middle of its writes: what was taken is read right or not at all.
#[test]
fn a_session_without_room_gives_no_wrong_byte_and_goes_on_by_itself() {
    const SECOND: u64 = 1_000_000_000;
    let (inner, faults) = (store(), Faults::default());
    let storage: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::clone(&inner), faults.clone()));
    let session = open(&storage, 1);
    let mut model = vec![0u8; DISK];
    let write = |at: u64, fill: u8, step: u64| {
        let payload = Payload::new(at, Bytes::from(vec![fill; 512 << 10])).unwrap();
        session.write(now(step), disk(), payload)
    };
    let mut step = SECOND;
    let mut refused = 0;
    faults.add(short(Operation::Write, ".seg", 2, 3));
    for round in 0..40u64 {
        step += SECOND / 4;
        let (at, fill) = (round % 8 * (512 << 10), round as u8 + 1);
        // A guest whose write fails does not know what is there; it writes again until it does.
        let mut tries = 0;
        while let Err(error) = write(at, fill, step) {
            assert!(matches!(error, SessionError::NoSpace { .. }), "{error}");
            (refused, tries, step) = (refused + 1, tries + 1, step + SECOND / 4);
            let mut found = vec![0; 4096];
            // Either not to be read now, or right.
            let other = (at + (512 << 10)) % DISK as u64;
            if session.read(now(step), disk(), other, &mut found).is_ok() {
                assert!(found == model[other as usize..][..4096]);
            }
            assert!(tries < 100, "it never goes on");
        }
        model[at as usize..][..512 << 10].fill(fill);
    }
    assert!(refused > 0, "room was never lacking");
    session.flush(now(step)).unwrap();
    drop(session);
    for session in [open(&inner, 2), open(&inner, 3)] {
        let mut found = vec![1; DISK];
        session.read(now(step), disk(), 0, &mut found).unwrap();
        assert!(found == model);
    }
}

/// Who was refused once was refused for ever: nobody asked for room again.
#[test]
fn a_session_that_was_refused_a_segment_gets_it_when_there_is_room() {
    let memory = Memory::default();
    let storage = store_in(memory.clone());
    let session = open(&storage, 1);
    memory.set_capacity(70 << 20);
    let mut step = 0;
    let mut write = |fill: u8| {
        step += 300_000_000;
        let payload = Payload::new(0, Bytes::from(vec![fill; 2 << 20])).unwrap();
        session.write(now(step), disk(), payload)
    };
    let refused = (0..100).find_map(|fill| write(fill).err()).expect("two segments do not hold two hundred megabytes");
    assert!(matches!(refused, SessionError::NoSpace { .. }), "{refused}");
    memory.set_capacity(1 << 30);
    assert!((0..20).any(|_| write(7).is_ok()), "it never asks again");
    let mut found = vec![0; 2 << 20];
    session.read(now(u64::MAX / 2), disk(), 0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 7));
}

/// Its manifest names the timeline that follows an unclean stop: without room for that it was asked again for ever.
#[test]
fn a_session_that_is_opened_without_room_for_its_manifest_says_so() {
    let (inner, faults) = (store(), Faults::default());
    drop(open(&inner, 1));
    let storage: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::clone(&inner), faults.clone()));
    faults.add(short(Operation::Write, "MANIFEST", 0, u64::MAX));
    let refused = try_open(&storage, 2).unwrap_err();
    assert!(matches!(refused, SessionError::NoSpace { .. }), "{refused}");
    faults.clear();
    try_open(&storage, 3).unwrap();
}

/// A session of a replica that is sealed at rest is sealed too, under replica keys of its own, a new one at each opening.
#[test]
fn a_session_of_a_sealed_replica_is_sealed() {
    let memory = Memory::default();
    let storage = store_in(memory.clone());
    let holder = KeyHolder::from(Some(WrappingKey::parse(&[9; 32]).unwrap()));
    let secret = [b"nobody reads this without a key.".as_slice(); 16].concat();
    for life in 1..=2 {
        let session = try_open_with(&storage, life, holder.clone()).unwrap();
        if life == 1 {
            session.write(now(1), disk(), Payload::new(4096, Bytes::from(secret.clone())).unwrap()).unwrap();
        }
        let mut found = vec![0; 512];
        session.read(now(2), disk(), 4096, &mut found).unwrap();
        assert_eq!(found, secret);
        session.close(now(3)).unwrap();
    }
    let mut bytes = 0;
    for name in memory.list("").unwrap() {
        let file = memory.open(&name, false).unwrap();
        let mut all = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut all).unwrap();
        assert!(all.windows(32).all(|window| window != &secret[..32]), "{name}");
        bytes += all.len();
    }
    assert!(bytes > 8192);
    let manifest = cdp_core::journal::read_manifest(storage.as_ref()).unwrap();
    assert_eq!(manifest.keys.iter().map(|key| key.generation).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(try_open_with(&storage, 3, KeyHolder::default()), Err(SessionError::AtRest(KeyError::Missing))));
    let other = KeyHolder::from(Some(WrappingKey::parse(&[8; 32]).unwrap()));
    let refused = try_open_with(&storage, 3, other).unwrap_err();
    assert!(matches!(refused, SessionError::Open(OpenError::AtRest { source: KeyError::Wrong, .. })), "{refused}");
}
