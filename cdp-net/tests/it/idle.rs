//! What is found of a directory that nobody owns, after a power cut.

use bytes::Bytes;
use cdp_core::frame::{Compression, Encoder, Part, Payload, RawFrame, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::trust::KeyHolder;
use cdp_core::types::*;
use cdp_core::when::When;
use cdp_net::host::{Change, Host, Store, load_idle};
use cdp_net::owner::{Connection, Handler, Request};
use cdp_net::report::Problem;
use cdp_net::verify::verify;
use std::sync::{Arc, Mutex};

const SIZE: usize = 16 * BLOCK as usize;

fn disk() -> DiskId {
    DiskId::new(1).unwrap()
}

fn timeline() -> Timeline {
    Timeline::new([1; 16]).unwrap()
}

fn frame(lsn: u64) -> RawFrame {
    let payload = Payload::new((lsn - 1) * BLOCK, Bytes::from(vec![lsn as u8; BLOCK as usize])).unwrap();
    let parts: Vec<Part> = payload.into_parts(RecordKind::Write, disk(), Lsn(lsn), WallTime(lsn)).collect();
    let (prev_lsn, settled) = (Lsn(lsn - 1), Lsn(lsn));
    RawFrame { timeline: timeline(), prev_lsn, settled, epoch: ClockEpoch(1), parts, plain_bytes: BLOCK }
}

/// A replica with a base of zeros, whose owner was killed: frames of one write each, no segment sealed.
fn killed(frames: u64) -> Arc<dyn Storage> {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new());
    let (replica, group) = (ReplicaId::new([5; 16]).unwrap(), GroupId::new([7; 16]).unwrap());
    let opened = create(storage.as_ref(), Manifest::new(replica, group, "group")).unwrap();
    let mut base = BaseWriter::create(storage.as_ref(), replica, disk(), SIZE as u64).unwrap();
    base.zeros(SIZE as u64, Lsn::ZERO).unwrap();
    let base = base.finish(storage.as_ref(), Lsn::ZERO).unwrap().named(Lsn::ZERO);
    let options = Options { directory: JOURNAL_DIRECTORY.to_owned(), keep_free_bytes: 0, ..Options::default() };
    let mut drawn = 0;
    let ids = Box::new(move || {
        drawn += 1;
        [drawn; 16]
    });
    let (mut writer, executor) = (Writer::new(opened, options, ids), Executor::new(Arc::clone(&storage)));
    writer.edit(|manifest| {
        let (name, source, added) = ("disk".to_owned(), String::new(), Lsn::ZERO);
        let size = SIZE as u64;
        let info = DiskInfo { id: disk(), name, size, source, added, removed: None, stopped: None, base: Some(base) };
        manifest.disks.push(info);
    });
    writer.open_timeline(TimelineInfo {
        id: timeline(),
        number: 1,
        parent: None,
        fork: Lsn::ZERO,
        last: None,
        state: TimelineState::Open,
        role: TimelineRole::Trunk,
        opened: WallTime(1),
    });
    drain(&mut writer, &executor, MonoTime(1));
    for lsn in 1..=frames {
        let mut frame = Encoder::new().encode(frame(lsn), group, Compression::None);
        while let Err(refused) = writer.append(MonoTime(1), frame) {
            frame = refused.frame;
            drain(&mut writer, &executor, MonoTime(1));
        }
        drain(&mut writer, &executor, MonoTime(1));
    }
    storage
}

/// Flips the last byte that was written to the journal: it is of the last frame's body.
fn tear(storage: &dyn Storage) {
    let manifest = read_manifest(storage).unwrap();
    let name = segment_name(manifest.segments.last().unwrap().number);
    let file = storage.open(&format!("{JOURNAL_DIRECTORY}/{name}"), true).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    file.write_all_at(last as u64, &[bytes[last] ^ 1]).unwrap();
}

fn content(replica: &Replica, lsn: Lsn) -> Vec<u8> {
    let mut bytes = vec![0xee; SIZE];
    replica.view(timeline(), lsn).unwrap().read(disk(), 0, &mut bytes).unwrap();
    bytes
}

fn expected(frames: u64) -> Vec<u8> {
    (0..16).flat_map(|block| vec![if block < frames { block as u8 + 1 } else { 0 }; BLOCK as usize]).collect()
}

/// The envelope and the head of the last frame reached the media and its body did not, as the system may order its writes: what is
/// restored, verified and kept before the next start is what that start finds.
#[test]
fn an_idle_reader_after_a_cut_offers_only_whole_frames() {
    let (storage, key) = (killed(5), KeyHolder::default());
    let found = load_idle(&storage, &key).unwrap();
    assert_eq!((found.catalogue().latest().unwrap().lsn, content(&found, Lsn(5))), (Lsn(5), expected(5)));
    tear(storage.as_ref());
    let found = load_idle(&storage, &key).unwrap();
    assert!(found.damage().is_none());
    let latest = found.catalogue().latest().unwrap().lsn;
    assert_eq!((latest, content(&found, latest)), (Lsn(4), expected(4)));
    let verified = verify(&storage, None, &key, &mut |_, _| {}).unwrap();
    assert!(verified.ok, "{verified:?}");
    assert_eq!(verified.good.last().unwrap().to_lsn, Lsn(4));
    let host = Host::idle(Arc::clone(&storage), &key).unwrap();
    let keep = Request::Keep { at: When::Latest, nearest: None, label: None };
    host.handle(keep, &Connection::local()).unwrap();
    drop(host);
    let opened = open(storage.as_ref(), JOURNAL_DIRECTORY, None).unwrap();
    let pinned: Vec<_> = opened.manifest.pins.iter().map(|pin| pin.lsn).collect();
    assert_eq!((opened.durable.lsn(), pinned), (Lsn(4), vec![Lsn(4)]));
    let found = load_idle(&storage, &key).unwrap();
    assert_eq!(content(&found, Lsn(4)), expected(4));
}

/// Answers to changes, in the order in which they arrive.
struct Answers(Mutex<Vec<(Manifest, Snapshot)>>);

impl Store for Answers {
    fn change(&self, _: Change) -> Result<(Manifest, Snapshot), Problem> {
        Ok(self.0.lock().unwrap().remove(0))
    }
}

/// Two change the store at once: one is answered when a part of what the other changes is there, and comes last. Nobody writes
/// meanwhile, so that the journal ends where it did.
#[test]
fn a_late_answer_takes_nothing_back_from_the_replica() {
    let (storage, key) = (killed(3), KeyHolder::default());
    let opened = open(storage.as_ref(), JOURNAL_DIRECTORY, None).unwrap();
    let options = Options { directory: JOURNAL_DIRECTORY.to_owned(), ..Options::default() };
    let mut writer = Writer::new(opened, options, Box::new(|| [9; 16]));
    let pin = |writer: &mut Writer, lsn: u64| {
        let (label, timeline, created) = (String::new(), timeline(), WallTime(1));
        writer.edit(|manifest| manifest.pins.push(PinInfo { label, timeline, lsn: Lsn(lsn), created }))
    };
    let early = pin(&mut writer, 1);
    let first = (writer.manifest().clone(), writer.snapshot());
    let late = pin(&mut writer, 2);
    let numbers: Vec<_> = writer.manifest().segments.iter().map(|segment| segment.number).collect();
    writer.forget(&numbers);
    let second = (writer.manifest().clone(), writer.snapshot());
    let holds = |snapshot: &Snapshot| snapshot.span(timeline()).is_some();
    assert_eq!((early, holds(&first.1), holds(&second.1)), (late, true, false));
    assert_eq!(first.1.written(), second.1.written());
    let before = load_idle(&storage, &key).unwrap();
    assert!(before.manifest().generation < early);
    let older = (before.manifest().clone(), before.snapshot().clone());
    let answers = Answers(Mutex::new(vec![second, first, older]));
    let host = Host::new(before, Box::new(answers));
    for _ in 0..3 {
        host.edit(Box::new(|_| {})).unwrap();
        let replica = host.replica();
        assert_eq!((replica.manifest().pins.len(), holds(replica.snapshot())), (2, false));
    }
}
