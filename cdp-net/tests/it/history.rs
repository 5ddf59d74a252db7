//! What records say, applied one after another: the model that every restore is held against.

use cdp_core::frame::RecordKind;
use cdp_core::journal::ReadError;
use cdp_core::replica::{Replica, ReplicaView};
use cdp_core::types::{DiskId, Extent, Lsn, Stamp, Timeline};
use std::collections::BTreeMap;

/// A record, its parts put together again.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) timeline: Timeline,
    pub(crate) lsn: Lsn,
    pub(crate) stamp: Stamp,
    pub(crate) kind: RecordKind,
    disk: Option<DiskId>,
    /// What each part writes; zeros where a part has no data.
    changes: Vec<(Extent, bytes::Bytes)>,
}

/// All whole records of one timeline, in their order, as the journal's frames hold them.
pub(crate) fn records(replica: &Replica, timeline: Timeline) -> Vec<Record> {
    let frames = replica.reader().frames(replica.snapshot(), timeline, Lsn::ZERO).unwrap();
    let mut records: Vec<Record> = Vec::new();
    let mut parts_wanted = 0;
    for frame in frames.map(Result::unwrap) {
        for part in &frame.parts {
            if part.index == 0 {
                assert_eq!(parts_wanted, 0, "a record begins inside another");
                parts_wanted = part.count;
                assert!(records.last().is_none_or(|last| last.lsn < part.lsn), "{} is out of order", part.lsn);
                let stamp = Stamp { epoch: frame.epoch, time: part.time };
                let (lsn, kind, disk) = (part.lsn, part.kind, part.disk);
                records.push(Record { timeline, lsn, stamp, kind, disk, changes: Vec::new() });
            }
            let record = records.last_mut().unwrap();
            assert_eq!((record.lsn, part.count - parts_wanted), (part.lsn, part.index), "parts are in order");
            record.changes.push((part.extent, part.data.clone()));
            parts_wanted -= 1;
        }
    }
    if parts_wanted > 0 {
        records.pop();
    }
    records
}

/// The records on the way to the newest moment: of every timeline those that belong to its successor's past.
pub(crate) fn path(replica: &Replica) -> Vec<Record> {
    let catalogue = replica.catalogue();
    let path = catalogue.path(catalogue.trunk().unwrap().timeline);
    let of = |(branch, upto): &(&cdp_core::replica::catalogue::Branch, Lsn)| {
        records(replica, branch.timeline).into_iter().filter(|record| record.lsn <= *upto).collect::<Vec<_>>()
    };
    path.iter().rev().flat_map(of).collect()
}

/// The content of all disks of a group.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Disks(pub(crate) BTreeMap<DiskId, Vec<u8>>);

impl Disks {
    /// In the order of their numbers, from 1.
    pub(crate) fn new(contents: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self((1..).map(|number| DiskId::new(number).unwrap()).zip(contents).collect())
    }

    /// What a view shows of all its disks, read as a restore reads it.
    pub(crate) fn of(view: &ReplicaView) -> Self {
        let mut buffer = vec![0; 256 << 10];
        let read = |disk: &cdp_core::replica::ViewDisk| {
            let mut content = vec![0; disk.size as usize];
            view.walk(disk, &mut buffer, |offset, bytes| {
                content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
                Ok::<_, ReadError>(())
            })
            .unwrap();
            (disk.id, content)
        };
        Self(view.disks().iter().map(read).collect())
    }

    /// What a record makes of them.
    pub(crate) fn apply(&mut self, record: &Record) {
        if !record.kind.changes_disk() {
            return;
        }
        let content = self.0.get_mut(&record.disk.unwrap()).unwrap();
        for (extent, data) in &record.changes {
            let range = &mut content[extent.offset as usize..extent.end() as usize];
            if record.kind.has_data() { range.copy_from_slice(data) } else { range.fill(0) }
        }
    }

    /// Fails with the first byte that differs: two disks in a message help nobody.
    #[track_caller]
    pub(crate) fn check(&self, expected: &Self, what: &dyn std::fmt::Display) {
        assert_eq!(self.0.len(), expected.0.len(), "{what}: number of disks");
        for ((disk, found), (_, expected)) in self.0.iter().zip(&expected.0) {
            assert_eq!(found.len(), expected.len(), "{what}: size of disk {disk}");
            if found == expected {
                continue;
            }
            let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or_default();
            let differing = found.chunks(512).zip(expected.chunks(512)).filter(|(a, b)| a != b).count();
            panic!("{what}: disk {disk} differs in {differing} sectors, first at byte {at}");
        }
    }
}

/// The content at an LSN.
pub(crate) fn at(replica: &Replica, timeline: Timeline, lsn: Lsn) -> Disks {
    Disks::of(&replica.view(timeline, lsn).unwrap())
}
