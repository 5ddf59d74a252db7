//! Media that cannot reserve room, and run out of it at any write: it is waited for, nothing durable is lost, nothing made up.

use super::kit::*;
use cdp_core::frame::{Compression, EncodedFrame};
use cdp_core::journal::*;
use cdp_core::media::*;
use cdp_core::types::*;
use std::sync::Arc;

/// As many segments as there may be: the next frame waits, and goes on when some are forgotten.
#[test]
fn as_many_segments_as_may_be_are_a_lack_of_room_and_no_manifest_that_nobody_reads() {
    let memory = Arc::new(Memory::new());
    let opened = create(memory.as_ref(), Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test")).unwrap();
    let mut rig = Rig::with(memory.clone(), opened, 3, Options { segments_max: 4, ..options() });
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut source = Source::new(3, timeline(1));
    let mut taken = Vec::new();
    let mut refused = None;
    while refused.is_none() && taken.len() < 20 {
        source.write(1, Extent::new(0, BLOCK), taken.len() as u8);
        for frame in source.frames(Compression::None) {
            rig.drain();
            match rig.writer.append(rig.now, frame) {
                Ok(_) => taken.push(source.lsn),
                Err(Refused { frame, why: Refusal::NotNow(Hold::NoSpace) }) => refused = Some(frame),
                Err(other) => panic!("{}", other.why),
            }
        }
        rig.writer.request_sync();
        rig.writer.roll();
        rig.drain();
    }
    let frame = refused.expect("it goes on for ever");
    assert_eq!(rig.writer.manifest().segments.len(), 4);
    assert_eq!((rig.writer.state(), rig.writer.durable().lsn()), (WriterState::NoSpace, taken[taken.len() - 1]));
    assert!(rig.writer.lacks().is_some());
    let oldest = rig.writer.manifest().segments[0].number;
    rig.writer.forget(&[oldest]);
    rig.now = rig.writer.next_deadline().expect("it asks again");
    rig.drain();
    rig.append(frame);
    rig.sync();
    assert!(rig.writer.manifest().segments.len() <= 4);
    assert_eq!(rig.writer.durable().lsn(), source.lsn);
}

struct Scene {
    memory: Arc<Memory>,
    faults: Faults,
    rig: Rig,
    source: Source,
}

impl Scene {
    /// Every other one is sealed at rest.
    fn new(seed: u64) -> Self {
        let (memory, faults) = (Arc::new(Memory::new()), Faults::default());
        let at_rest = &AtRest::both()[seed as usize % 2];
        let mut rig = Rig::create_at_rest(Arc::new(Faulty::new(memory.clone(), faults.clone())), at_rest);
        rig.start(timeline(1), None, Lsn::ZERO);
        Self { memory, faults, rig, source: Source::new(seed, timeline(1)) }
    }

    fn lack(&self, operation: Operation, path: &str, after: u64, count: u64) {
        let once = Fault::once(operation, path, MediaErrorKind::NoSpace);
        self.faults.add(Fault { after, count, ..once });
    }

    fn frames(&mut self) -> Vec<EncodedFrame> {
        (0..4).for_each(|_| self.source.any());
        self.source.frames(Compression::None)
    }

    /// Appends a frame, however often it has to be offered; gives whether room was lacking.
    fn append(&mut self, frame: EncodedFrame) -> bool {
        let (mut frame, mut lacked) = (frame, false);
        for _ in 0..100 {
            frame = match self.rig.writer.append(self.rig.now, frame) {
                Ok(_) => {
                    self.rig.drain();
                    return lacked;
                }
                Err(Refused { frame, why: Refusal::NotNow(hold) }) => {
                    lacked |= hold == Hold::NoSpace;
                    frame
                }
                Err(refused) => panic!("{}", refused.why),
            };
            self.rig.drain();
            self.wait();
        }
        panic!("never taken");
    }

    /// Lets time pass while room is lacking.
    fn wait(&mut self) {
        if self.rig.writer.lacks().is_some() {
            self.rig.now = self.rig.writer.next_deadline().expect("it asks again");
            self.rig.drain();
        }
    }

    /// Whether the disks are what the source made of them up to `upto`, for a reader without an owner.
    fn check(&self, upto: Lsn, context: &str) {
        let at_rest = &self.rig.at_rest;
        let rig = Rig::open_at_rest(self.memory.clone(), 99, at_rest).unwrap_or_else(|e| panic!("{context}: {e}"));
        at_rest.check().unwrap_or_else(|wrong| panic!("{context}: {wrong}"));
        assert!(rig.writer.durable().lsn() >= upto, "{context}");
        let elements = [(timeline(1), upto)];
        let view = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
        for number in 1..=2 {
            let expected = self.source.model.at(&elements, number, self.source.size as usize);
            assert!(restore(&view, number, self.source.size).unwrap() == expected, "{context}: disk {number}");
        }
    }
}

/// Headers, frames, footers and the cut behind them, whichever it hits, and more than once.
#[test]
fn room_that_ends_at_any_write_of_a_segment_is_waited_for() {
    let mut lacked = 0;
    for (operation, most) in [(Operation::Write, 40), (Operation::SetLength, 3)] {
        for after in 0..most {
            let context = format!("{operation} {after}");
            let mut scene = Scene::new(after + 1);
            scene.lack(operation, ".seg", after, 3);
            for _ in 0..60 {
                for frame in scene.frames() {
                    lacked += u32::from(scene.append(frame));
                }
            }
            scene.rig.sync();
            scene.rig.writer.close(true);
            for _ in 0..20 {
                scene.rig.drain();
                scene.rig.now = scene.rig.writer.next_deadline().unwrap_or(scene.rig.now);
            }
            assert_eq!(scene.rig.writer.state(), WriterState::Closed, "{context}");
            scene.check(scene.source.lsn, &context);
        }
    }
    assert!(lacked > 20, "room was lacking in {lacked} appends only");
}

#[test]
fn a_crash_while_frames_wait_for_room_loses_nothing_that_was_durable() {
    for after in 0..30 {
        let mut scene = Scene::new(after + 50);
        scene.lack(Operation::Write, ".seg", after, u64::MAX);
        'full: for _ in 0..60 {
            for frame in scene.frames() {
                if scene.rig.writer.append(scene.rig.now, frame).is_err() {
                    break 'full;
                }
                scene.rig.sync();
            }
        }
        let durable = scene.rig.writer.durable().lsn();
        assert!(!matches!(scene.rig.writer.state(), WriterState::Failed(_)), "{after}");
        scene.check(durable, &format!("crash after {after} writes"));
    }
}

/// What is lacking is said, and a timeline that cannot be named yet is such a lack, not a moment's wait.
#[test]
fn a_timeline_that_finds_no_room_for_its_name_waits_for_it() {
    let mut scene = Scene::new(7);
    for frame in scene.frames() {
        scene.append(frame);
    }
    scene.lack(Operation::Write, "MANIFEST", 0, 2);
    scene.source.fork(timeline(2), scene.source.lsn);
    scene.rig.start(timeline(2), Some(timeline(1)), Lsn(1));
    let frame = scene.frames().remove(0);
    let refused = scene.rig.writer.append(scene.rig.now, frame).unwrap_err();
    assert_eq!(refused.why, Refusal::NotNow(Hold::NoSpace));
    assert!(scene.rig.writer.lacks().is_some_and(|bytes| bytes > 0));
    assert!(scene.append(refused.frame), "room was lacking once more");
    assert_eq!(scene.rig.writer.lacks(), None);
}

/// After a crash, too, the manifest may find no room: the store opens, everything is there, and nothing is taken meanwhile.
#[test]
fn a_store_opens_without_room_for_its_manifest() {
    let mut scene = Scene::new(9);
    for _ in 0..30 {
        for frame in scene.frames() {
            scene.append(frame);
        }
    }
    scene.rig.sync();
    let durable = scene.rig.writer.durable().lsn();
    for life in 0..3 {
        scene.faults.clear();
        scene.lack(Operation::Write, "MANIFEST", 0, u64::MAX);
        let storage: Arc<dyn Storage> = Arc::new(Faulty::new(scene.memory.clone(), scene.faults.clone()));
        scene.rig = Rig::open_at_rest(storage, 60 + life, &scene.rig.at_rest).unwrap();
        assert_eq!(scene.rig.writer.durable().lsn(), durable, "life {life}");
    }
    scene.source.fork(timeline(2), scene.source.lsn);
    scene.rig.start(timeline(2), Some(timeline(1)), durable);
    let frame = scene.frames().remove(0);
    let refused = scene.rig.writer.append(scene.rig.now, frame).unwrap_err();
    assert_eq!(refused.why, Refusal::NotNow(Hold::NoSpace));
    scene.faults.clear();
    scene.append(refused.frame);
    scene.rig.sync();
    let upto = scene.source.lsn;
    assert_eq!(scene.rig.writer.durable().lsn(), upto);
    let rig = Rig::open_at_rest(scene.memory.clone(), 70, &scene.rig.at_rest).unwrap();
    assert!(scene.rig.at_rest.check().unwrap() > 0, "it is one that is sealed");
    let elements = [(timeline(1), durable), (timeline(2), upto)];
    let view = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
    let expected = scene.source.model.at(&elements, 1, scene.source.size as usize);
    assert!(restore(&view, 1, scene.source.size).unwrap() == expected);
}

/// What a sync dropped is not known, whatever its reason.
#[test]
fn a_sync_that_finds_no_room_is_a_failure() {
    let mut scene = Scene::new(8);
    for frame in scene.frames() {
        scene.append(frame);
    }
    scene.lack(Operation::Sync, ".seg", 0, 1);
    scene.rig.sync();
    assert!(matches!(scene.rig.writer.state(), WriterState::Failed(_)));
}
