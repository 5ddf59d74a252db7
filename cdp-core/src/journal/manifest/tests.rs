//! A manifest comes back as it was; nothing else is taken for one.

use super::*;
use crate::frame::{Mark, PointKinds};
use crate::journal::bytes::FormatError;
use crate::journal::level::{RegionRange, RunTotals};
use crate::types::{ClockEpoch, Stamp};
use proptest::prelude::*;

pub(crate) fn full() -> Manifest {
    let timeline = Timeline::new([3; 16]).unwrap();
    let mut manifest = Manifest::new(ReplicaId::new([1; 16]).unwrap(), GroupId::new([2; 16]).unwrap(), "web");
    manifest.generation = Generation(7);
    manifest.durable = Lsn(90);
    manifest.reserved = Lsn(1 << 20);
    manifest.next_segment = 9;
    manifest.disks.push(DiskInfo {
        id: DiskId::new(1).unwrap(),
        name: "root".into(),
        size: 1 << 30,
        source: "/srv/root.img".into(),
        added: Lsn(0),
        removed: Some(Lsn(80)),
        stopped: Some(SourceFacts { size: 1, inode: 2, modified: 3, changed: 4 }),
        base: Some(BaseInfo { lsn: Lsn(4), generation: 2, size: 1 << 30, root: [9; 32], at_rest: true }),
    });
    manifest.timelines.push(TimelineInfo {
        id: timeline,
        number: 1,
        parent: None,
        fork: Lsn(0),
        last: None,
        state: TimelineState::Open,
        role: TimelineRole::Trunk,
        opened: WallTime(5),
    });
    let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(6) };
    let summary = Summary {
        group: manifest.group,
        timeline,
        prev_lsn: Lsn(0),
        first_lsn: Lsn(1),
        last_lsn: Lsn(60),
        whole_lsn: Lsn(60),
        settled: Lsn(59),
        first: stamp,
        last: stamp,
        frames_end: 8192,
        file_bytes: 8192 + 4 * 4096 + 512 + 512,
        frames: 1,
        chunks: 1,
        entries: 3,
        records: 4,
        plain_bytes: 4096,
        blocks: [1, 0, 1, 1, 1],
        events_bytes: 300,
        footer_crc: 77,
    };
    let id = |n| SegmentId::new([n; 16]).unwrap();
    manifest.segments = vec![
        SegmentInfo { number: 6, id: id(6), state: SegmentState::Sealed(summary), key: 0 },
        SegmentInfo { number: 7, id: id(7), state: SegmentState::Active, key: 3 },
        SegmentInfo { number: 8, id: id(8), state: SegmentState::Prepared, key: 9 },
    ];
    let key = |generation, bases| WrappedKey {
        generation,
        created: WallTime(3),
        bases,
        check: [1; 8],
        salt: [generation as u8; 16],
        sealed: [4; 48],
    };
    manifest.keys = vec![key(2, true), key(3, false), key(9, false)];
    manifest.sessions.push(SessionInfo {
        name: "test".into(),
        timeline,
        parent: timeline,
        fork: Lsn(50),
        kind: SessionKind::Named,
        created: WallTime(8),
    });
    let point = SeedingPoint { done: 4096, root: [6; 32] };
    manifest.seeding.push(SeedingInfo { point, ..SeedingInfo::new(DiskId::new(1).unwrap(), 1 << 30, timeline) });
    manifest.pins.push(PinInfo { label: "court".into(), timeline, lsn: Lsn(44), created: WallTime(9) });
    let moment = |lsn| StampedMoment { timeline, lsn: Lsn(lsn), stamp };
    manifest.merge = Some(moment(60));
    let kinds = PointKinds { long: true, app: true, ..PointKinds::default() };
    let point = Some(Mark { kinds, on_barrier: true, label: "audit".into() });
    manifest.next_kept = 5;
    manifest.kept = vec![
        KeptInfo { number: 2, moment: moment(20), point, disks: vec![(DiskId::new(1).unwrap(), 512)] },
        KeptInfo { number: 4, moment: moment(44), point: None, disks: Vec::new() },
    ];
    manifest.cut = Some(CutInfo { lsn: Lsn(70), by: CutBy::Quota });
    manifest.oldest_point = Some(Mark { on_barrier: true, label: "close".into(), ..Mark::default() });
    manifest.retention = Retention {
        elapsed_ms: 900,
        oldest: Some(moment(44)),
        arrivals: vec![Arrival { elapsed_ms: 700, lsn: Lsn(55) }, Arrival { elapsed_ms: 800, lsn: Lsn(60) }],
        layers: vec![LayerInfo { timeline, lsn: Lsn(20), elapsed_ms: 300 }],
    };
    manifest.next_disk = 4;
    manifest.resizing.push(ResizeInfo { disk: DiskId::new(1).unwrap(), size: 2 << 30 });
    let range = |disk, first, last| RegionRange { disk, first, last };
    let run = |number, level, first_segment, segments: u32| RunInfo {
        number,
        id: id(number as u8 + 20),
        level,
        timeline,
        segments,
        first_segment,
        last_segment: first_segment + u64::from(segments) - 1,
        first_lsn: Lsn(10 * first_segment),
        last_lsn: Lsn(10 * first_segment + 500),
        chunks: 99,
        totals: RunTotals {
            file_bytes: 4096 + 6 * 4096 + 1024 + 512,
            entries: 400,
            blocks: [1, 2, 1, 1, 1],
            table_crc: 5,
            events_bytes: 700,
        },
        emptied: number == 2,
        regions: vec![range(1, 0, 4), range(1, 9, 9), range(2, 0, 0)],
    };
    (manifest.policy.when_full, manifest.policy.quota) = (WhenFull::Stop, 1 << 40);
    manifest.next_run = 5;
    manifest.runs = vec![Arc::new(run(4, 2, 1, 5)), Arc::new(run(3, 1, 6, 1))];
    manifest.unknown.push((200, vec![1, 2, 3]));
    manifest
}

#[test]
fn comes_back_whole() {
    let manifest = full();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
}

#[test]
fn what_is_not_said_of_room_is_as_it_is_by_default() {
    let mut manifest = full();
    let said = manifest.encode().len();
    (manifest.policy.when_full, manifest.policy.quota) = (WhenFull::Shorten, 0);
    let bytes = manifest.encode();
    assert_eq!(bytes.len(), said - 8 - 9, "the whole section");
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    for (when_full, quota) in [(WhenFull::Stop, 0), (WhenFull::Shorten, 1), (WhenFull::Stop, u64::MAX)] {
        (manifest.policy.when_full, manifest.policy.quota) = (when_full, quota);
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = full().encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert!(Manifest::decode(&damaged).is_err(), "byte {at}");
    }
    for length in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..length]).is_err(), "length {length}");
    }
}

#[test]
fn a_replica_key_goes_when_nothing_is_sealed_by_it() {
    let mut manifest = full();
    let left = |manifest: &Manifest| manifest.keys.iter().map(|key| key.generation).collect::<Vec<_>>();
    manifest.drop_unused_keys();
    assert_eq!(left(&manifest), [2, 3, 9], "one of a base, one of a segment, the newest");
    manifest.segments.clear();
    manifest.drop_unused_keys();
    assert_eq!(left(&manifest), [2, 9]);
}

#[test]
fn keys_out_of_order_and_segments_without_their_key_are_refused() {
    let refused = |manifest: &Manifest| Manifest::decode(&manifest.encode()).unwrap_err().to_string();
    let mut manifest = full();
    manifest.keys.swap(0, 1);
    assert!(refused(&manifest).contains("key generation"));
    let mut manifest = full();
    manifest.segments[1].key = 4;
    assert!(refused(&manifest).contains("sealed segment"));
}

#[test]
fn two_disks_of_one_number_are_refused() {
    let mut manifest = full();
    let second = DiskInfo { id: DiskId::new(2).unwrap(), ..manifest.disks[0].clone() };
    manifest.disks.push(second);
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    manifest.disks[1].id = manifest.disks[0].id;
    let refused = Manifest::decode(&manifest.encode()).unwrap_err().to_string();
    assert!(refused.contains("disk listed twice"), "{refused}");
}

#[test]
fn a_newer_section_that_must_be_understood_is_refused() {
    let mut manifest = full();
    manifest.unknown.clear();
    let mut bytes = manifest.encode();
    bytes.extend_from_slice(&[201, 0, 1, 0, 0, 0, 0, 0]);
    bytes[12..16].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Manifest::decode(&bytes), Err(FormatError::Field { what: "manifest", field: "section", value: 201 }));
}

#[test]
fn a_number_of_a_disk_is_never_given_again() {
    let mut manifest = Manifest::new(ReplicaId::new([1; 16]).unwrap(), GroupId::new([2; 16]).unwrap(), "web");
    let mut given = Vec::new();
    for round in 0..4 {
        let id = manifest.free_disk().unwrap();
        assert!(!given.contains(&id));
        given.push(id);
        let disk = DiskInfo { id, ..full().disks[0].clone() };
        manifest.disks.push(disk);
        if round % 2 == 1 {
            manifest.drop_disk(id);
            manifest = Manifest::decode(&manifest.encode()).unwrap();
        }
    }
    manifest.next_disk = u16::MAX - 1;
    let last = manifest.free_disk().unwrap();
    manifest.disks.push(DiskInfo { id: last, ..full().disks[0].clone() });
    assert_eq!(manifest.free_disk(), None);
    manifest.drop_disk(last);
    assert_eq!(manifest.free_disk(), None);
}

#[test]
fn only_names_that_the_journal_gives_are_its_own() {
    for number in [0, 1, 0xabc, u64::MAX] {
        assert!(is_journal_file(&segment_name(number)));
        assert!(is_journal_file(&crate::journal::run_name(number)));
    }
    for stranger in ["", ".seg", "1.seg", "000000000000000A.seg", "00000000000000001.idx", "0000000000000001.seg~"] {
        assert!(!is_journal_file(stranger), "{stranger}");
    }
}

proptest! {
    /// Behind a right checksum, whatever the fields say, decoding ends in a value or an error.
    #[test]
    fn garbage_fields_never_panic(at in 16usize..1400, bytes in prop::collection::vec(any::<u8>(), 1..32)) {
        let mut damaged = full().encode();
        let at = at.min(damaged.len() - 1);
        let end = (at + bytes.len()).min(damaged.len());
        damaged[at..end].copy_from_slice(&bytes[..end - at]);
        damaged[12..16].fill(0);
        let crc = crc32c::crc32c(&damaged);
        damaged[12..16].copy_from_slice(&crc.to_le_bytes());
        let _ = Manifest::decode(&damaged);
    }
}
