//! The life of a journal on a real directory: frames, stops in the middle, recovery, and views that show what was written.

use super::{Kind, PATIENCE, directory, noise, waker};
use crate::dice::{Dice, count};
use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, Part, Payload, RawFrame, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::types::*;
use cdp_net::drive::Driver;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

const DIRECTORY: &str = "journal";
/// Of the disk whose writes are kept.
const DISK_BYTES: u64 = 2 << 20;
const NOW: MonoTime = MonoTime(1);

fn group() -> GroupId {
    GroupId::new([7; 16]).unwrap()
}

fn timeline() -> Timeline {
    Timeline::new([1; 16]).unwrap()
}

fn disk() -> DiskId {
    DiskId::new(1).unwrap()
}

/// Who carries out what the writer wants.
enum Hands {
    InOrder(Executor),
    Beside(Box<dyn Driver>, Receiver<()>),
}

struct Rig {
    storage: Arc<dyn Storage>,
    writer: Writer,
    hands: Hands,
}

impl Rig {
    fn new(kind: Kind, storage: &Arc<dyn Storage>, opened: Opened, seed: u64) -> Option<Self> {
        let mut dice = Dice::new(seed);
        let ids = Box::new(move || std::array::from_fn(|_| dice.next() as u8));
        // Small segments, so that many are made and sealed; some commits by bytes, some because somebody asks.
        let options = Options {
            segment_bytes: 1 << 20,
            keep_free_bytes: 0,
            commit_bytes: 256 << 10,
            in_flight_bytes: 2 << 20,
            ..Options::default()
        };
        let executor = Executor::new(Arc::clone(storage));
        let hands = if kind == Kind::InOrder {
            Hands::InOrder(executor)
        } else {
            let (wake, woken) = channel();
            Hands::Beside(kind.start(executor, waker(wake))?, woken)
        };
        Some(Self { storage: Arc::clone(storage), writer: Writer::new(opened, options, ids), hands })
    }

    /// Hands over what the writer wants, and back what came of it.
    fn drive(&mut self) {
        match &mut self.hands {
            Hands::InOrder(executor) => drain(&mut self.writer, executor, NOW),
            Hands::Beside(driver, _) => {
                for (id, outcome) in driver.take() {
                    self.writer.completed(NOW, id, outcome);
                }
                while let Some((id, effect)) = self.writer.poll(NOW) {
                    driver.start(id, effect);
                }
            }
        }
    }

    /// Goes on until it is so.
    fn until(&mut self, there: impl Fn(&Writer) -> bool) {
        loop {
            self.drive();
            if there(&self.writer) {
                return;
            }
            assert!(!matches!(self.writer.state(), WriterState::Failed(_)), "{:?}", self.writer.state());
            match &self.hands {
                Hands::InOrder(_) => panic!("nothing more happens: {:?}", self.writer),
                Hands::Beside(_, woken) => woken.recv_timeout(PATIENCE).expect("the driver wakes"),
            }
        }
    }

    fn append(&mut self, frame: EncodedFrame) {
        let mut frame = frame;
        loop {
            match self.writer.append(NOW, frame) {
                Ok(_) => return self.drive(),
                Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                Err(refused) => panic!("{}", refused.why),
            }
            // In order everything is through when it returns; beside, something is under way.
            self.drive();
            if let Hands::Beside(_, woken) = &self.hands {
                let _ = woken.recv_timeout(std::time::Duration::from_millis(20));
            }
        }
    }

    /// A moment's bytes.
    fn read(&self, upto: Lsn) -> Vec<u8> {
        let reader = Arc::new(Reader::new(Arc::clone(&self.storage), DIRECTORY, 1 << 20));
        let path = [PathElement { reader, snapshot: self.writer.snapshot(), timeline: timeline(), upto }];
        let view = View::open(&path, 1 << 20).unwrap();
        let mut bytes = vec![0xee; DISK_BYTES as usize];
        view.read(disk(), 0, &mut bytes, &Nothing).unwrap();
        bytes
    }
}

/// Makes frames, and remembers what each LSN wrote.
struct Source {
    dice: Dice,
    encoder: Encoder,
    history: Vec<(Lsn, u64, Bytes)>,
    /// The last LSN that was given, and the last one of the frame before.
    lsn: Lsn,
    prev: Lsn,
}

impl Source {
    /// A few writes of any size up to a frame's; with a large one the frame goes past the page cache.
    fn frame(&mut self) -> EncodedFrame {
        let (mut parts, mut plain_bytes): (Vec<Part>, u64) = (Vec::new(), 0);
        for _ in 0..=self.dice.below(4) {
            let sectors = if self.dice.permille(200) { 300 } else { 16 };
            let length = SECTOR * (1 + self.dice.below(sectors));
            if plain_bytes + length > FRAME_PLAIN_MAX {
                break;
            }
            let offset = self.dice.below((DISK_BYTES - length) / SECTOR) * SECTOR;
            let data = Bytes::from(noise(&mut self.dice, length as usize));
            self.lsn = self.lsn.next();
            let payload = Payload::new(offset, data.clone()).unwrap();
            parts.extend(payload.into_parts(RecordKind::Write, disk(), self.lsn, WallTime(1_000_000 + self.lsn.0)));
            plain_bytes += length;
            self.history.push((self.lsn, offset, data));
        }
        let prev_lsn = std::mem::replace(&mut self.prev, self.lsn);
        let (timeline, settled, epoch) = (timeline(), self.lsn, ClockEpoch(1));
        let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes };
        let compression = if self.dice.permille(500) { Compression::None } else { Compression::Zstd(1) };
        self.encoder.encode(raw, group(), compression)
    }

    fn at(&self, upto: Lsn) -> Vec<u8> {
        let mut bytes = vec![0; DISK_BYTES as usize];
        for (_, offset, data) in self.history.iter().take_while(|(lsn, ..)| *lsn <= upto) {
            bytes[*offset as usize..][..data.len()].copy_from_slice(data);
        }
        bytes
    }

    /// What was lost never happened.
    fn back_to(&mut self, lsn: Lsn) {
        self.history.retain(|(of, ..)| *of <= lsn);
        (self.lsn, self.prev) = (lsn, lsn);
    }
}

fn compare(rig: &Rig, source: &mut Source, upto: Lsn, times: usize) {
    for _ in 0..times {
        let lsn = Lsn(1 + source.dice.below(upto.0));
        assert!(rig.read(lsn) == source.at(lsn), "LSN {lsn} of {upto} is not what was written");
    }
    assert!(rig.read(upto) == source.at(upto), "LSN {upto}, the last one, is not what was written");
}

pub(super) fn a_journal_is_what_was_appended_to_it_through_stops_in_the_middle(kind: Kind) {
    for seed in 0..count("CDP_DRIVER_SEEDS", 3) {
        live(kind, seed);
    }
}

fn live(kind: Kind, seed: u64) {
    let (_place, storage) = directory();
    let (dice, encoder, history) = (Dice::new(seed), Encoder::new(), Vec::new());
    let mut source = Source { dice, encoder, history, lsn: Lsn::ZERO, prev: Lsn::ZERO };
    let made = create(storage.as_ref(), Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test")).unwrap();
    let Some(mut rig) = Rig::new(kind, &storage, made, seed) else { return };
    let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
    let (parent, fork, last, opened) = (None, Lsn::ZERO, None, WallTime(1));
    let started =
        rig.writer.open_timeline(TimelineInfo { id: timeline(), number: 1, parent, fork, last, state, role, opened });
    rig.until(|writer| writer.manifest_durable() >= started);
    for stop in 1..=4 {
        for _ in 0..40 + source.dice.below(60) {
            let frame = source.frame();
            rig.append(frame);
            if source.dice.permille(60) {
                rig.writer.request_sync();
                let wanted = source.lsn;
                rig.until(|writer| writer.durable().lsn() >= wanted);
            }
        }
        let (written, durable) = (rig.writer.written(), rig.writer.durable().lsn());
        if written > Lsn::ZERO {
            compare(&rig, &mut source, written, 2);
        }
        if source.dice.permille(300) {
            rig.writer.close(true);
            rig.until(|writer| writer.state() == WriterState::Closed);
            assert_eq!(rig.writer.durable().lsn(), source.lsn, "seed {seed}, stop {stop}");
        }
        // Without a word: what was handed over is carried out, what was not is lost.
        drop(rig);
        let opened = open(storage.as_ref(), DIRECTORY, Some(durable)).unwrap();
        let found = opened.durable.lsn();
        assert!(found >= durable && found >= written, "seed {seed}, stop {stop}: {found} of {durable}, {written}");
        assert!(found <= source.lsn);
        source.back_to(found);
        rig = Rig::new(kind, &storage, opened, seed ^ stop).unwrap();
        compare(&rig, &mut source, found, 3);
    }
    assert!(rig.writer.manifest().segments.len() > 5, "many segments were made and sealed");
}
