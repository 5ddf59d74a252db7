//! The pump: packs frames, appends them to the journal, and says what became durable.
//!
//! One thread owns the journal's writer. It writes frames itself (that is a copy into the page cache) and leaves everything
//! that waits for a disk to the sync thread, so appends and syncs overlap. What is compressed how hard follows the backlog:
//! with little waiting the level is the policy's, with much everything is stored as it is.

use super::engine::Engine;
use super::shared::Shared;
use crate::clock;
use cdp_core::capture::Room;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, RawFrame};
use cdp_core::journal::{Driver, Effect, EffectId, Hold, Outcome, Refusal, Writer, WriterState};
use cdp_core::types::{GroupId, Lsn, Stamp};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// Plain bytes waiting to be packed above which the next easier level is taken: zstd 1, zstd -3, none.
const EASE_AT: [u64; 2] = [8 << 20, 32 << 20];
/// The longest the pump sleeps when the journal has no deadline.
const IDLE: Duration = Duration::from_millis(500);

/// What the pump is told.
pub(super) enum Message {
    /// The next frame.
    Frame(RawFrame),
    /// An effect that another thread carried out is done.
    Done(EffectId, Outcome),
    /// Something for the writer itself: edits of the manifest, a request to sync.
    Call(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// A frame that was appended and is not yet durable.
struct Underway {
    whole: Lsn,
    settled: Lsn,
    stamp: Stamp,
    events: Vec<cdp_core::journal::Event>,
}

/// How many plain bytes are on their way to the pump; kept by both ends.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicU64);

impl Backlog {
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn take(&self, bytes: u64) -> u64 {
        self.0.fetch_sub(bytes, Ordering::Relaxed)
    }
}

/// Owner of the journal's writer.
pub(super) struct Pump {
    pub(super) group: GroupId,
    pub(super) writer: Writer,
    pub(super) driver: Arc<Driver>,
    pub(super) syncs: Sender<(EffectId, Effect)>,
    pub(super) engine: Arc<Engine>,
    pub(super) shared: Arc<Shared>,
    pub(super) backlog: Arc<Backlog>,
    encoder: Encoder,
    /// Packed frames that the writer does not take yet.
    held: VecDeque<(EncodedFrame, Underway)>,
    underway: VecDeque<Underway>,
    durable: Lsn,
    stamp: Option<Stamp>,
    room: Room,
}

/// What a pump is made of.
pub(super) struct Parts {
    pub(super) group: GroupId,
    pub(super) writer: Writer,
    pub(super) driver: Arc<Driver>,
    pub(super) syncs: Sender<(EffectId, Effect)>,
    pub(super) engine: Arc<Engine>,
    pub(super) shared: Arc<Shared>,
    pub(super) backlog: Arc<Backlog>,
}

impl Pump {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { group, writer, driver, syncs, engine, shared, backlog } = parts;
        Self {
            durable: writer.durable().lsn(),
            group,
            writer,
            driver,
            syncs,
            engine,
            shared,
            backlog,
            encoder: Encoder::new(),
            held: VecDeque::new(),
            underway: VecDeque::new(),
            stamp: None,
            room: Room::Ok,
        }
    }

    /// Runs until every sender of its queue is gone or the writer is closed.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let now = clock::mono();
            let wait = self.writer.next_deadline().map_or(IDLE, |due| Duration::from_nanos(due.since(now)).min(IDLE));
            match queue.recv_timeout(wait) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Completions first free the writer's room: take all that is there before driving it.
            while let Ok(message) = queue.try_recv() {
                self.handle(message);
                if self.held.len() > 16 {
                    break;
                }
            }
            self.offer_held();
            self.drive();
            self.report();
            if self.writer.state() == WriterState::Closed {
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Frame(raw) => self.append(&raw),
            Message::Done(id, outcome) => self.writer.completed(clock::mono(), id, outcome),
            Message::Call(call) => call(&mut self.writer),
        }
    }

    fn append(&mut self, raw: &RawFrame) {
        let waiting = self.backlog.take(raw.plain_bytes);
        let compression = match EASE_AT.iter().filter(|limit| waiting > **limit).count() {
            0 => Compression::Zstd(1),
            1 => Compression::Zstd(-3),
            _ => Compression::None,
        };
        let frame = self.encoder.encode(raw, self.group, compression);
        let underway = self.underway_of(raw);
        self.held.push_back((frame, underway));
        self.offer_held();
        self.drive();
    }

    /// What is to be told when the frame is durable.
    fn underway_of(&mut self, raw: &RawFrame) -> Underway {
        let stamp_of = |time| Stamp { epoch: raw.epoch, time };
        let settled = raw.parts.iter().rev().find(|part| part.lsn <= raw.settled).map(|part| stamp_of(part.time));
        // Where nothing of the frame is settled, the stamp of what was settled before still holds.
        let stamp = settled.or(self.stamp).unwrap_or(stamp_of(raw.parts[0].time));
        self.stamp = Some(stamp);
        let events = cdp_core::journal::events_of(raw);
        Underway { whole: Lsn::ZERO, settled: raw.settled, stamp, events }
    }

    fn offer_held(&mut self) {
        while let Some((frame, mut underway)) = self.held.pop_front() {
            match self.writer.append(clock::mono(), frame) {
                Ok(appended) => {
                    underway.whole = appended.whole;
                    self.underway.push_back(underway);
                }
                Err(refused) => {
                    self.held.push_front((refused.frame, underway));
                    let room = match refused.why {
                        Refusal::NotNow(Hold::NoSpace) => Room::NoSpace,
                        Refusal::NotNow(_) => return,
                        why => {
                            self.shared.failed(&why);
                            Room::Lost
                        }
                    };
                    return self.set_room(room);
                }
            }
        }
        if self.writer.state() == WriterState::Running {
            self.set_room(Room::Ok);
        }
    }

    fn set_room(&mut self, room: Room) {
        if self.room != room {
            self.room = room;
            self.engine.with(|filter, now| filter.set_room(now, room));
        }
    }

    /// Carries out what the writer wants: frames here, everything that waits for a disk on the sync thread.
    fn drive(&mut self) {
        while let Some((id, effect)) = self.writer.poll(clock::mono()) {
            if matches!(effect, Effect::Write { .. }) {
                let outcome = self.driver.carry_out(effect);
                self.writer.completed(clock::mono(), id, outcome);
            } else if self.syncs.send((id, effect)).is_err() {
                return;
            }
        }
        if let WriterState::Failed(error) = self.writer.state() {
            self.shared.failed(&error);
            self.set_room(Room::Lost);
        }
    }

    /// Tells catalogue and filter how far everything is durable.
    fn report(&mut self) {
        let durable = self.writer.durable().lsn();
        if durable > self.durable {
            self.durable = durable;
            let reached = self.underway.iter().take_while(|frame| frame.whole <= durable).count();
            let mut frontier = None;
            self.shared.update(&self.writer, |branch| {
                for frame in self.underway.drain(..reached) {
                    frame.events.into_iter().for_each(|event| branch.handle(event));
                    branch.advance(frame.settled.min(durable), frame.stamp);
                    frontier = Some(frame.stamp);
                }
            });
            self.engine.with(|filter, now| filter.durable(now, durable));
        } else {
            self.shared.refresh(&self.writer);
        }
    }
}

/// The sync thread: carries out everything that waits for a disk, one after another.
pub(super) fn run_syncs(driver: &Driver, queue: &Receiver<(EffectId, Effect)>, pump: &Sender<Message>) {
    for (id, effect) in queue {
        let outcome = driver.carry_out(effect);
        if pump.send(Message::Done(id, outcome)).is_err() {
            return;
        }
    }
}
