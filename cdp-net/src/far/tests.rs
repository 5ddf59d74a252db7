//! What goes over the seam between two processes means the same on the other side.

use super::*;
use crate::owner::PolicyChange;
use crate::report::{PointPolicy, State};
use cdp_core::frame::PointKinds;
use cdp_core::types::{ClockEpoch, DISK_MAX, GroupId, ReplicaId, Timeline};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let text = serde_json::to_vec(value).unwrap();
    assert_eq!(&serde_json::from_slice::<T>(&text).unwrap(), value, "{}", String::from_utf8_lossy(&text));
}

fn refused<T: DeserializeOwned + Debug>(text: &str) {
    let read = serde_json::from_str::<T>(text);
    assert!(read.is_err(), "{text} is read as {read:?}");
}

fn disk(number: u16) -> DiskId {
    DiskId::new(number).unwrap()
}

fn id() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>().prop_map(|mut bytes| {
        bytes[0] |= 1;
        bytes
    })
}

fn new_disk() -> impl Strategy<Value = NewDisk> {
    let parts = (1u16.., any::<String>(), any::<u64>(), any::<String>(), any::<u64>());
    parts.prop_map(|(id, name, size, source, added)| NewDisk { id: disk(id), name, size, source, added: Lsn(added) })
}

fn found_disk() -> impl Strategy<Value = FoundDisk> {
    let parts = (1u16.., any::<String>(), any::<u64>(), any::<bool>(), any::<Option<u64>>());
    parts.prop_map(|(id, name, size, complete, announced)| FoundDisk { id: disk(id), name, size, complete, announced })
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        Just(Origin::First),
        Just(Origin::GoesOn),
        any::<u64>().prop_map(|at| Origin::Resumes { at: Lsn(at) }),
        (id(), any::<u64>())
            .prop_map(|(parent, at)| Origin::Fork { parent: Timeline::new(parent).unwrap(), at: Lsn(at) }),
    ]
}

proptest! {
    #[test]
    fn what_is_found_is_told_as_it_is(
        (replica, group, open) in (id(), id(), proptest::option::of(id())),
        (name, disks) in (any::<String>(), prop::collection::vec(found_disk(), 0..5)),
        (leaving, free_disk) in (prop::collection::vec(1u16.., 0..4), any::<Option<u16>>()),
        (durable, reserved, clean, epoch) in (any::<u64>(), any::<u64>(), any::<bool>(), any::<u32>()),
        (activity_generation, rpo_ms, per_point) in (any::<u64>(), any::<u64>(), any::<bool>()),
    ) {
        same(&Found {
            replica: ReplicaId::new(replica).unwrap(),
            group: GroupId::new(group).unwrap(),
            name,
            disks,
            leaving: leaving.into_iter().map(disk).collect(),
            free_disk: free_disk.and_then(DiskId::new),
            open: open.and_then(Timeline::new),
            durable: Lsn(durable),
            reserved: Lsn(reserved),
            clean,
            epoch: ClockEpoch(epoch),
            activity_generation,
            policy: FilterPolicy { rpo_ms, points: if per_point { PointPolicy::PerPoint } else { PointPolicy::EveryWrite } },
        });
    }

    #[test]
    fn how_it_begins_is_told_as_it_is(
        (group, timeline, origin) in (id(), id(), origin()),
        (name, new) in (any::<String>(), proptest::option::of(prop::collection::vec(new_disk(), 0..4))),
        (reserved, stored) in (any::<u64>(), any::<bool>()),
        dropped in prop::collection::vec(1u16.., 0..4),
        joining in prop::collection::vec(new_disk(), 0..4),
        sizes in prop::collection::vec((1u16.., any::<u64>()), 0..4),
        rpo_ms in any::<Option<u64>>(),
    ) {
        same(&Begin {
            new: new.map(|disks| NewGroup { group: GroupId::new(group).unwrap(), name, disks }),
            timeline: Timeline::new(timeline).unwrap(),
            origin,
            reserved: Lsn(reserved),
            dropped: dropped.into_iter().map(disk).collect(),
            joining,
            sizes: sizes.into_iter().map(|(id, size)| SizeOf { disk: disk(id), size }).collect(),
            policy: PolicyChange { rpo_ms, ..PolicyChange::default() },
            stored,
        });
        same(&Find {
            name: None,
            policy: PolicyChange { rpo_ms, ..PolicyChange::default() },
            witness: Some(Witness { group: GroupId::new(group).unwrap(), generation: reserved, durable: Lsn(reserved) }),
        });
    }

    #[test]
    fn what_comes_instead_of_a_header_is_refused_and_nothing_worse(text in "\\PC*") {
        let _ = serde_json::from_str::<Begin>(&text);
        let _ = serde_json::from_str::<Found>(&text);
        let _ = serde_json::from_str::<DisksEdit>(&text);
        let _ = serde_json::from_str::<Digests>(&text);
    }

    #[test]
    fn no_call_for_digests_asks_for_more_than_its_bounds(
        (offset, length, block) in (any::<u64>(), any::<u64>(), any::<u64>()),
    ) {
        let text = format!(r#"{{"disk":1,"range":[{offset},{length}],"block":{block},"at":0}}"#);
        if let Ok(asked) = serde_json::from_str::<Digests>(&text) {
            prop_assert!(asked.range.end() <= DISK_MAX);
            if asked.is_bounded() {
                prop_assert!(asked.range.length <= Digests::BYTES_MAX);
                prop_assert!(asked.range.length.div_ceil(asked.block) <= Digests::HASHES_MAX);
            }
        }
    }
}

#[test]
fn calls_while_it_goes_on_are_told_as_they_are() {
    let range = Extent::new(512, 1 << 20);
    let edit_of = NewDisk { id: disk(2), name: "two".into(), size: 512, source: "x".into(), added: Lsn(9) };
    for edit in [
        DisksEdit::Joins(edit_of),
        DisksEdit::Forget(disk(3)),
        DisksEdit::Left { disk: disk(1), lsn: Lsn(u64::MAX) },
        DisksEdit::Announce(SizeOf { disk: disk(4), size: 8192 }),
        DisksEdit::Sizes(vec![SizeOf { disk: disk(4), size: 8192 }, SizeOf { disk: disk(5), size: u64::MAX }]),
    ] {
        same(&edit);
    }
    for order in [
        DiskOrder::Add { name: "a".into(), source: "/dev/sdb".into() },
        DiskOrder::Remove { name: "b".into() },
        DiskOrder::Resize { name: "c".into(), size: None, force: true },
    ] {
        same(&order);
    }
    let kinds = PointKinds { long: true, app: true, ..PointKinds::default() };
    same(&MarkOrder { kinds, label: "before the update".into() });
    same(&Marked { lsn: Lsn(7) });
    same(&Group { seeding: true, free_disk: None });
    same(&Trust { least: u64::MAX });
    same(&Reach { lsn: Lsn(1) });
    same(&Reached { reached: true });
    same(&Range { disk: disk(1), range });
    same(&Zeros { zeros: true });
    same(&Digests { disk: disk(1), range, block: 4096, at: Lsn(5) });
    same(&Digested { at: None });
    same(&Digested { at: Some(Lsn(6)) });
    same(&SeedBegin { disk: disk(1), size: 1 << 40, first: 7 });
    same(&SeedBegun { position: 1 << 30 });
    same(&SeedOf { disk: disk(1) });
    same(&Seeded { disks: vec![disk(1), disk(64)] });
    [SeedEnd::Whole, SeedEnd::Again, SeedEnd::Stopped].iter().for_each(same);
    same(&Close { clean: true });
    [Closed::Stored, Closed::Failed, Closed::NotYet].iter().for_each(same);
    same(&Standing { seed_waits: true, quota: false });
    let lack = crate::report::Lack { needed_bytes: 2, free_bytes: 1 };
    same(&Sums { points: 3, stored_bytes: 4, lack: Some(lack) });
    same(&Facts {
        state: State::Resync,
        unrecorded: Some(State::NoSpace),
        detached: Some("by order".into()),
        failure: Some("the thread x ended by a panic".into()),
        lsn: Lsn(8),
        hot_bytes: 1,
        reread_bytes: 2,
        rpo_ms: Some(3),
        write_bytes_per_s: 4,
        uris: BTreeMap::from([("disk".into(), "nbd://localhost/disk".into())]),
    });
}

#[test]
fn identities_disks_and_ranges_that_there_are_not_are_refused() {
    let trust = |id: &str| format!(r#"{{"group":"{id}","generation":1,"durable":2}}"#);
    serde_json::from_str::<Witness>(&trust("00000000000000000000000000000001")).unwrap();
    for wrong in ["", "00", "00000000000000000000000000000000", "0000000000000000000000000000000g", &"0".repeat(33)] {
        refused::<Witness>(&trust(wrong));
    }
    // Bytes that are no characters of one byte each.
    refused::<Witness>(&trust(&"é".repeat(16)));
    refused::<SeedBegin>(r#"{"disk":0,"size":1,"first":1}"#);
    refused::<SeedBegin>(r#"{"disk":65536,"size":1,"first":1}"#);
    refused::<Seeded>(r#"{"disks":[1,0]}"#);
    refused::<Range>(r#"{"disk":1,"range":[18446744073709551615,1]}"#);
    refused::<Range>(&format!(r#"{{"disk":1,"range":[{DISK_MAX},512]}}"#));
}

#[test]
fn every_call_has_a_number_of_its_own() {
    let numbers: BTreeSet<u16> = CallKind::ALL.into_iter().map(|kind| kind as u16).collect();
    assert_eq!(numbers.len(), CallKind::ALL.len());
    for number in 0..=u16::MAX {
        assert_eq!(CallKind::of(number).is_some(), numbers.contains(&number));
    }
    let of_keeper: Vec<_> = CallKind::ALL.into_iter().filter(|kind| kind.is_of_keeper()).collect();
    assert_eq!(of_keeper.len(), 4);
    // The table says the same.
    let table = include_str!("../far.rs");
    for number in numbers {
        assert!(table.contains(&format!("//! | {number} | `")), "{number}");
    }
}
