//! The pump: packs frames, appends them to the journal, and says what became durable.
//!
//! One thread owns the journal's writer and packs, with helpers where that is much work; a [`Driver`] writes what was packed and
//! does everything else that waits for a disk. So packing, appending and syncing overlap. [`Ease`] says what is compressed how
//! hard, and by whom.

use super::ease::{Choice, Ease};
use super::pack::{Pack, Packers};
use super::room::Lack;
use crate::clock;
use crate::drive::Driver;
use crate::failure::Failure;
use crate::far::Near;
use crate::host::Host;
use cdp_core::capture::Room;
use cdp_core::frame::{EncodedFrame, Encoder, FrameError, FrameHead, RawFrame, RecordKind};
use cdp_core::journal::{Event, Generation, Hold, Refusal, Writer, WriterState};
use cdp_core::types::{ClockEpoch, GroupId, Lsn, MonoTime, Stamp};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest the pump sleeps when the journal has no deadline.
const IDLE: Duration = Duration::from_millis(500);

/// How often it is looked whether frames have to wait for a merge: few come in between.
const BRAKE_LOOK: Duration = Duration::from_millis(2);

/// Messages between two reports of what became durable.
const BATCH: usize = 16;

/// What the pump is told.
pub(super) enum Message {
    /// The next frame, to be packed.
    Frame(RawFrame),
    /// The next frame, packed by somebody else.
    Packed(EncodedFrame),
    /// The driver, or a thread that packs, has something to be taken. Not in the queue itself: there it would wait behind frames,
    /// and the journal would seem busier than it is.
    Done,
    /// Something for the writer itself: edits of the manifest, a request to sync.
    Call(Box<dyn FnOnce(&mut Writer) + Send>),
    /// Nothing more comes: what is not durable stays so.
    End,
}

/// A frame that was appended and is not yet durable.
struct Underway {
    whole: Lsn,
    settled: Lsn,
    stamp: Stamp,
    events: Vec<Event>,
    bytes: u64,
}

/// A frame on its way to the writer, in order.
struct Held {
    /// None while it is being packed elsewhere.
    frame: Option<EncodedFrame>,
    underway: Underway,
}

/// How many plain bytes wait to be packed; kept by both ends.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicU64);

impl Backlog {
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn take(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Owner of the journal's writer.
pub(super) struct Pump {
    parts: Parts,
    encoder: Encoder,
    /// Frames that the writer does not take yet, or that are not packed yet.
    held: VecDeque<Held>,
    /// The ticket of the first of them; they are numbered one by one.
    first_held: u64,
    /// Bytes of those that are packed.
    held_bytes: u64,
    underway: VecDeque<Underway>,
    /// Bytes of those.
    unsynced: u64,
    durable: Lsn,
    generation: Generation,
    stamp: Option<Stamp>,
    epoch: Option<ClockEpoch>,
    room: Room,
    /// Whether frames have to wait for a merge, and when that is looked at again.
    braking: (MonoTime, bool),
}

/// What the journal stored, and how fast.
#[derive(Debug, Default)]
pub(super) struct Stored {
    bytes: AtomicU64,
    /// When the rate was last looked at, the bytes by then, and the rate: a mean that forgets half of itself at each look.
    rate: Mutex<(u64, u64, u64)>,
}

impl Stored {
    /// Bytes since the start.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn sample(&self, mono_ns: u64) {
        const LOOK_NS: u64 = 500_000_000;
        let mut held = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, before, rate) = *held;
        let elapsed = mono_ns.saturating_sub(since);
        if elapsed >= LOOK_NS {
            let bytes = self.bytes();
            let now = u128::from(bytes - before) * 1_000_000_000 / u128::from(elapsed);
            *held = (mono_ns, bytes, rate.midpoint(u64::try_from(now).unwrap_or(u64::MAX)));
        }
    }

    /// Bytes a second lately.
    pub(super) fn per_second(&self) -> u64 {
        self.sample(clock::mono().0);
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).2
    }
}

/// What a pump is made of.
pub(super) struct Parts {
    pub(super) group: GroupId,
    pub(super) writer: Writer,
    pub(super) driver: Box<dyn Driver>,
    pub(super) packers: Packers,
    pub(super) near: Arc<dyn Near>,
    pub(super) host: Arc<Host>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) failure: Arc<Failure>,
    pub(super) stored: Arc<Stored>,
    pub(super) lack: Arc<Lack>,
    /// Frames wait for a merge as long as no more bytes do.
    pub(super) waiting_bytes_max: u64,
    /// Is told when a manifest became durable; one word waits at most, since the next says the same.
    pub(super) named: SyncSender<()>,
    /// Set when everything is sealed, durable, and the manifest says so.
    pub(super) closed: Arc<AtomicBool>,
}

impl Pump {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            durable: parts.writer.durable().lsn(),
            generation: parts.writer.manifest_durable(),
            parts,
            encoder: Encoder::new(),
            held: VecDeque::new(),
            first_held: 0,
            held_bytes: 0,
            underway: VecDeque::new(),
            unsynced: 0,
            stamp: None,
            epoch: None,
            room: Room::Ok,
            braking: (MonoTime(0), false),
        }
    }

    /// Runs until every sender of its queue is gone or the writer is closed.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        let mut ease = Ease::of_this_thread(clock::mono());
        loop {
            let now = clock::mono();
            let idle = if self.is_braking() { BRAKE_LOOK } else { IDLE };
            let wait =
                self.parts.writer.next_deadline().map_or(idle, |due| Duration::from_nanos(due.since(now)).min(idle));
            match queue.recv_timeout(wait) {
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.handle(message, &mut ease),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // A few at once: what became durable in between is told soon, however fast frames come.
            for message in queue.try_iter().take(BATCH) {
                if matches!(message, Message::End) {
                    return;
                }
                self.handle(message, &mut ease);
            }
            self.offer_held();
            self.drive();
            self.report();
            self.parts.stored.sample(clock::mono().0);
            if self.parts.writer.state() == WriterState::Closed {
                self.parts.closed.store(true, Ordering::Release);
                return;
            }
        }
    }

    fn handle(&mut self, message: Message, ease: &mut Ease) {
        for (id, outcome) in self.parts.driver.take() {
            self.parts.writer.completed(clock::mono(), id, outcome);
        }
        for (ticket, frame) in self.parts.packers.take() {
            self.packed(ticket, frame);
        }
        match message {
            Message::Frame(raw) => self.append(raw, ease),
            Message::Packed(frame) => self.append_packed(frame),
            Message::Call(call) => {
                // Who hears that a change is durable finds it in the replica, in the order in which changes were made.
                self.report();
                call(&mut self.parts.writer);
            }
            Message::Done | Message::End => {}
        }
    }

    fn append(&mut self, raw: RawFrame, ease: &mut Ease) {
        // What is packed behind a frame that is not waits for the packing, not for the disk.
        let for_packing = self.held.front().is_some_and(|held| held.frame.is_none());
        let unwritten = if for_packing { 0 } else { self.held_bytes };
        let choice = ease.choose(clock::mono(), self.parts.backlog.bytes(), unwritten, self.unsynced);
        let ticket = self.first_held + self.held.len() as u64;
        let underway = self.underway_of(&raw);
        self.held.push_back(Held { frame: None, underway });
        match choice {
            Choice::Here(compression) => {
                let frame = self.encoder.encode(raw, self.parts.group, compression);
                self.packed(ticket, frame);
            }
            Choice::Aside(compression) => self.parts.packers.push(Pack { ticket, raw, compression }),
        }
        self.offer_held();
        self.drive();
    }

    /// The same for a frame that came packed: it goes on as it is.
    fn append_packed(&mut self, frame: EncodedFrame) {
        self.parts.backlog.take(frame.info.plain_bytes.into());
        let underway = match self.underway_of_packed(&frame) {
            Ok(underway) => underway,
            Err(error) => {
                self.parts.failure.set(&error);
                return self.set_room(Room::Lost);
            }
        };
        self.held_bytes += frame.len();
        self.held.push_back(Held { frame: Some(frame), underway });
        self.offer_held();
        self.drive();
    }

    fn packed(&mut self, ticket: u64, frame: EncodedFrame) {
        self.parts.backlog.take(frame.info.plain_bytes.into());
        self.held_bytes += frame.len();
        self.held[(ticket - self.first_held) as usize].frame = Some(frame);
    }

    /// What is to be told when the frame is durable.
    fn underway_of(&mut self, raw: &RawFrame) -> Underway {
        let stamp_of = |time| Stamp { epoch: raw.epoch, time };
        let settled = raw.parts.iter().rev().find(|part| part.lsn <= raw.settled).map(|part| stamp_of(part.time));
        // Where nothing of the frame is settled, the stamp of what was settled before still holds.
        let stamp = settled.or(self.stamp).unwrap_or(stamp_of(raw.parts[0].time));
        self.stamp = Some(stamp);
        let new_epoch = self.epoch.replace(raw.epoch) != Some(raw.epoch);
        Underway { whole: Lsn::ZERO, settled: raw.settled, stamp, events: events_of(raw, new_epoch), bytes: 0 }
    }

    fn underway_of_packed(&mut self, frame: &EncodedFrame) -> Result<Underway, FrameError> {
        let head = FrameHead::parse(&frame.head)?;
        let info = &head.info;
        let stamp_of = |time| Stamp { epoch: info.epoch, time };
        let last = head.records.iter().rev().find(|record| record.lsn <= info.settled);
        let stamp = last.map(|record| stamp_of(record.time)).or(self.stamp).unwrap_or(stamp_of(info.first_time));
        let new_epoch = self.epoch != Some(info.epoch);
        // Only frames with notes are looked into, and those come every few seconds.
        let body = if head.chunks.iter().any(|chunk| chunk.notes) { frame.body.concat() } else { Vec::new() };
        let events = Event::of_frame(&head, &body, new_epoch)?;
        (self.stamp, self.epoch) = (Some(stamp), Some(info.epoch));
        Ok(Underway { whole: Lsn::ZERO, settled: info.settled, stamp, events, bytes: 0 })
    }

    /// Whether frames wait until a merge has made room for them.
    fn is_braking(&mut self) -> bool {
        let now = clock::mono();
        if self.braking.0.since(now) == 0 {
            self.braking = (now.after(BRAKE_LOOK.as_nanos() as u64), self.parts.host.is_braking());
        }
        self.braking.1 && self.parts.backlog.bytes() + self.held_bytes < self.parts.waiting_bytes_max
    }

    fn offer_held(&mut self) {
        if self.is_braking() {
            return;
        }
        while let Some(frame) = self.held.front_mut().and_then(|held| held.frame.take()) {
            let bytes = frame.len();
            match self.parts.writer.append(clock::mono(), frame) {
                Ok(appended) => {
                    self.parts.stored.bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.held_bytes -= bytes;
                    self.unsynced += bytes;
                    self.first_held += 1;
                    let held = self.held.pop_front();
                    self.underway.extend(held.map(|held| Underway { whole: appended.whole, bytes, ..held.underway }));
                }
                Err(refused) => {
                    self.held[0].frame = Some(refused.frame);
                    let room = match refused.why {
                        Refusal::NotNow(Hold::NoSpace) => Room::NoSpace,
                        // Closed before everything came: what did not is in the activity log.
                        Refusal::NotNow(_) | Refusal::Closed => return,
                        why => {
                            self.parts.failure.set(&why);
                            Room::Lost
                        }
                    };
                    return self.set_room(room);
                }
            }
        }
        if !matches!(self.parts.writer.state(), WriterState::Failed(_)) {
            self.set_room(if self.parts.writer.is_starved() { Room::NoSpace } else { Room::Ok });
        }
    }

    fn set_room(&mut self, room: Room) {
        // What is lacking is not said while it is being asked for again: then the last word holds.
        match self.parts.writer.lacks() {
            Some(bytes) if room == Room::NoSpace => self.parts.lack.set(bytes),
            None if room == Room::NoSpace => {}
            _ => self.parts.lack.clear(),
        }
        if self.room != room {
            self.room = room;
            self.parts.near.room(room);
        }
    }

    /// Has carried out what the writer wants.
    fn drive(&mut self) {
        while let Some((id, effect)) = self.parts.writer.poll(clock::mono()) {
            self.parts.driver.start(id, effect);
        }
        // Lack of room for the next segment is no matter while the active one takes frames: it is one when a frame is refused.
        if let WriterState::Failed(error) = self.parts.writer.state() {
            self.parts.failure.set(&error);
            self.set_room(Room::Lost);
        }
    }

    /// Tells catalogue and filter how far everything is durable.
    fn report(&mut self) {
        let durable = self.parts.writer.durable().lsn();
        let generation = self.parts.writer.manifest_durable();
        if durable == self.durable && generation == self.generation {
            return;
        }
        let manifest = (generation != self.generation).then(|| self.parts.writer.manifest());
        let mut replica = self.parts.host.replica_mut();
        if let Err(error) = replica.update(manifest, self.parts.writer.snapshot()) {
            self.parts.failure.set(&error);
        }
        let reached = self.underway.iter().take_while(|frame| frame.whole <= durable).count();
        self.unsynced -= self.underway.iter().take(reached).map(|frame| frame.bytes).sum::<u64>();
        let frames = self.underway.drain(..reached);
        let trunk = replica.catalogue().trunk().map(|branch| branch.timeline);
        if let Some(branch) = trunk.and_then(|trunk| replica.catalogue_mut().branch_mut(trunk)) {
            for frame in frames {
                frame.events.into_iter().for_each(|event| branch.handle(event));
                branch.advance(frame.settled.min(durable), frame.stamp);
            }
        }
        drop(replica);
        if generation != self.generation {
            // A word that waits already is as good, and without a listener there is nothing to say.
            let _ = self.parts.named.try_send(());
        }
        (self.durable, self.generation) = (durable, generation);
        self.parts.near.durable(durable);
    }
}

/// What the catalogue wants to know of a frame.
fn events_of(raw: &RawFrame, new_epoch: bool) -> Vec<Event> {
    let mut first_of_epoch = new_epoch;
    let wanted = |kind: RecordKind| match kind {
        RecordKind::Time => std::mem::take(&mut first_of_epoch),
        kind => !kind.changes_disk() && kind != RecordKind::Barrier,
    };
    let mut wanted = wanted;
    let parts = raw.parts.iter().filter(|part| wanted(part.kind));
    let event = |part: &cdp_core::frame::Part| Event {
        timeline: raw.timeline,
        lsn: part.lsn,
        stamp: Stamp { epoch: raw.epoch, time: part.time },
        kind: part.kind,
        disk: part.disk,
        note: part.note.as_deref().cloned(),
    };
    parts.map(event).collect()
}
