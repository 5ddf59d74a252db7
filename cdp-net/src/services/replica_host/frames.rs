//! The task that has the frames of one timeline: from the link to the keeper, and acks back.

use super::questions::SILENCE_MS;
use super::seat::{Held, NotAsked, Resumed, Seat, ToFrames};
use super::traffic::Traffic;
use super::{Shared, lock};
use crate::clock::{mono, until};
use crate::link::connection::ConnectionOptions;
use crate::link::hub::{Happened, Hub};
use crate::random::identity as random;
use crate::services::seeds::{self, Piece, Seed};
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::frame::EncodedFrame;
use cdp_core::link::calls::CallId;
use cdp_core::link::message::{
    Answer, Call, CallStatus, Code, DATA_CONNECTIONS_MAX, DataKey, FarRoom, Farewell, Features, Hello,
};
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use cdp_core::types::{Lsn, Position, SessionId, Timeline};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc::{UnboundedReceiver, WeakUnboundedSender};

/// Bytes of frames and seeds that were taken and are not durable, at most: what is granted to the other end.
pub(super) const WINDOW: u64 = 64 << 20;
/// What the keeper asks is given up after so long.
const CALL_NS: u64 = 10_000_000_000;

/// See the module's text.
struct Task {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    /// Of this timeline's frames.
    traffic: Arc<Traffic>,
    end: TargetEnd,
    hub: Hub,
    /// None before the first session was let in.
    held: Option<Held>,
    have: Position,
    durable: Lsn,
    room: FarRoom,
    /// Sessions so far; the seeds of the one that holds go to this thread.
    sessions: u64,
    /// The one that holds, for the thread of its seeds; 0: none does.
    current: Arc<AtomicU64>,
    /// The session whose key is known to the door.
    key: Option<SessionId>,
    copier: Option<std::sync::mpsc::Sender<EncodedFrame>>,
    seed_bytes: VecDeque<u64>,
    asked: BTreeMap<CallId, SyncSender<Result<Answer, NotAsked>>>,
    queue: WeakUnboundedSender<ToFrames>,
}

/// Writes the seeds of a session of this timeline, and tells how many were taken, until the session is over or nobody hears it.
fn copy(
    timeline: Timeline,
    seeds: impl IntoIterator<Item = EncodedFrame>,
    is_over: impl Fn() -> bool,
    mut write: impl FnMut(u64, Seed),
    mut told: impl FnMut(u64) -> bool,
) {
    for (number, frame) in (1..).zip(seeds) {
        // What is still here of a session that is over belongs to a copy that is begun anew.
        if is_over() {
            return;
        }
        // What does not verify, or is of another timeline or a copy that was given up, is taken and passed over: the copy is judged at
        // its end.
        if let Ok(Some(seed)) = seeds::read(&frame, timeline) {
            write(number, seed);
        }
        if !told(number) {
            return;
        }
    }
}

/// Until nobody can send to it any more.
pub(super) async fn run(
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    timeline: Timeline,
    me: WeakUnboundedSender<ToFrames>,
    mut queue: UnboundedReceiver<ToFrames>,
) {
    let Some(ToFrames::Accepted(first)) = queue.recv().await else { return };
    let options = TargetOptions {
        group: first.hello.group,
        timeline: Some(timeline),
        features: Features::ALL,
        connections: DATA_CONNECTIONS_MAX,
        silence_ms: SILENCE_MS,
        attempt: 0,
    };
    let hub = Hub::new(Arc::clone(&shared.identity), ConnectionOptions::default());
    let traffic = seat.next_traffic();
    let mut task = Task {
        shared,
        seat,
        traffic,
        end: TargetEnd::new(options),
        hub,
        held: None,
        have: Position::default(),
        durable: Lsn::ZERO,
        room: FarRoom::Ok,
        sessions: 0,
        current: Arc::default(),
        key: None,
        copier: None,
        seed_bytes: VecDeque::new(),
        asked: BTreeMap::new(),
        queue: me,
    };
    task.told(ToFrames::Accepted(first));
    loop {
        while let Some(effect) = task.end.poll() {
            task.carry_out(effect);
        }
        tokio::select! {
            message = queue.recv() => match message {
                Some(message) => task.told(message),
                None => return task.closed(),
            },
            happened = task.hub.next() => task.happened(happened),
            () = until(task.end.next_deadline()) => task.end.handle_timer(mono()),
        }
    }
}

impl Task {
    fn told(&mut self, message: ToFrames) {
        let now = mono();
        match message {
            ToFrames::Accepted(accepted) => {
                let conn = self.hub.add(accepted.opened);
                self.end.handle_accepted(now, conn, *accepted.hello);
            }
            ToFrames::Durable(lsn) => {
                self.durable = self.durable.max(lsn);
                self.traffic.durable(lsn);
                self.end.durable(now, lsn);
                self.grant();
            }
            ToFrames::Room(room) => {
                self.room = match room {
                    Room::Ok => FarRoom::Ok,
                    Room::NoSpace => FarRoom::NoSpace,
                    Room::Lost => FarRoom::Lost,
                };
                self.end.room(now, self.room);
            }
            ToFrames::Call { call, reply } => self.ask(call, reply),
            ToFrames::Seeded { session, taken } => {
                if session == self.sessions {
                    if let Some(bytes) = self.seed_bytes.pop_front() {
                        self.traffic.seeded(bytes);
                    }
                    self.end.seeds(now, taken);
                    self.grant();
                }
            }
        }
    }

    fn ask(&mut self, call: Call, reply: SyncSender<Result<Answer, NotAsked>>) {
        match self.end.call(mono(), call, CALL_NS) {
            Ok(id) => drop(self.asked.insert(id, reply)),
            // Who asked may have given up.
            Err(_) => drop(reply.send(Err(NotAsked))),
        }
    }

    fn grant(&mut self) {
        self.end.grant(mono(), WINDOW.saturating_sub(self.traffic.held()));
    }

    fn happened(&mut self, happened: Happened) {
        let now = mono();
        match happened {
            Happened::Message { conn, message } => self.end.handle_message(now, conn, message),
            Happened::Heard { conn } => self.end.handle_heard(now, conn),
            Happened::Sent { conn, bytes } => self.end.handle_sent(now, conn, bytes),
            Happened::Disconnected { conn, why } => self.end.handle_disconnected(now, conn, &why),
            Happened::Connected { .. } | Happened::NotConnected { .. } => {}
        }
    }

    fn carry_out(&mut self, effect: TargetEffect) {
        match effect {
            TargetEffect::Judge { session, hello } => self.judge(session, &hello),
            TargetEffect::Send { conn, message } => self.hub.send(conn, message),
            TargetEffect::Close { conn, farewell } => self.hub.close(conn, farewell),
            TargetEffect::Take(frame) => {
                self.have = frame.info.end();
                self.traffic.frame(mono(), frame.info.last_lsn, frame.len());
                if let Some(held) = &self.held {
                    held.keeper.packed(frame);
                }
            }
            TargetEffect::TakeSeed(seed) => {
                self.traffic.seed(seed.len());
                self.seed_bytes.push_back(seed.len());
                // A thread that has ended is of a session that has.
                if let Some(copier) = &self.copier {
                    let _ = copier.send(seed);
                }
            }
            TargetEffect::Answered { id, answer } => {
                // Who asked may have given up.
                let _ = self.asked.remove(&id).map(|reply| reply.send(Ok(answer)));
            }
            TargetEffect::Called { id, call } => {
                let (kind, status) = (call.kind, CallStatus::UnknownKind);
                // What a filter asks comes in a session of its own.
                self.end.answer(mono(), id, Answer { kind, status, header: Bytes::new(), tail: Bytes::new() });
            }
            TargetEffect::Up { .. } => self.up(),
            TargetEffect::Down { .. } => self.down(),
        }
    }

    fn judge(&mut self, session: SessionId, hello: &Hello) {
        if self.held.is_none() {
            // Opening a replica reads what its journal's end needs: on this thread others wait for it.
            match tokio::task::block_in_place(|| self.seat.resume(hello)) {
                Ok(Resumed::Held(held, begun)) => {
                    (self.have, self.durable) = (begun.have, begun.durable);
                    self.held = Some(held);
                }
                Ok(Resumed::Lost { have, lost }) => {
                    // Nothing is taken: who hears it forks.
                    let (have, durable) = (Some(have), have.lsn);
                    let terms = Terms { have, durable, stored: durable, lost: Some(lost), ..Terms::default() };
                    return self.end.admit(mono(), session, terms);
                }
                Err(farewell) => return self.end.refuse(session, farewell),
            }
        }
        let data_key = hello.plain.then(|| {
            let mut key = [0; 32];
            key[..16].copy_from_slice(&random());
            key[16..].copy_from_slice(&random());
            DataKey(key)
        });
        if let Some(key) = &data_key {
            let mut keys = lock(&self.shared.keys);
            // The session's name is its source's choice: nobody takes another's, be it of another group or timeline.
            if keys.contains_key(&session) {
                drop(keys);
                return self.end.refuse(session, Farewell::new(Code::Unexpected, "another session has this name"));
            }
            keys.insert(session, (Arc::clone(&self.seat), key.clone()));
            drop(keys);
            self.key = Some(session);
        }
        let room_bytes = WINDOW.saturating_sub(self.traffic.held());
        let (durable, room) = (self.durable, self.room);
        let terms =
            Terms { have: Some(self.have), durable, stored: durable, room_bytes, room, data_key, ..Terms::default() };
        self.end.admit(mono(), session, terms);
    }

    /// Seeds go to a thread of their own: they wait for the replica's media.
    fn up(&mut self) {
        self.sessions += 1;
        self.traffic.linked(true);
        let held = self.held.clone().and_then(|held| Some((held.begun?.timeline, held)));
        let Some((timeline, held)) = held else { return };
        let (copier, seeds) = std::sync::mpsc::channel::<EncodedFrame>();
        let (session, queue, current) = (self.sessions, self.queue.clone(), Arc::clone(&self.current));
        current.store(session, Ordering::Relaxed);
        let copying = move || {
            let is_over = || current.load(Ordering::Relaxed) != session;
            let write = |number, seed: Seed| {
                held.calls.copy(seed.disk, number, seed.offset, |copy| match seed.piece {
                    Piece::Data(data) => copy.data(data, seed.lsn),
                    Piece::Zeros(length) => copy.zeros(length, seed.lsn),
                });
            };
            let told =
                |taken| queue.upgrade().is_some_and(|task| task.send(ToFrames::Seeded { session, taken }).is_ok());
            copy(timeline, seeds, is_over, write, told);
        };
        let spawned = std::thread::Builder::new().name("cdp-copy".into()).spawn(copying);
        match spawned {
            Ok(_) => self.copier = Some(copier),
            Err(error) => self.end.close(Farewell::new(Code::Internal, format!("cannot start a thread: {error}"))),
        }
    }

    fn down(&mut self) {
        self.current.store(0, Ordering::Relaxed);
        self.copier = None;
        self.traffic.linked(false);
        self.traffic.seeded(self.seed_bytes.drain(..).sum());
        if let Some(session) = self.key.take() {
            lock(&self.shared.keys).remove(&session);
        }
        if let Some(held) = self.held.clone() {
            // What was under way begins again in the next session, which must not find it; ending it may wait for the media.
            tokio::task::block_in_place(|| held.calls.end());
        }
    }

    /// The group is let go of.
    fn closed(mut self) {
        self.down();
        self.end.close(Farewell::new(Code::Stopping, "the replica host ends"));
        while let Some(effect) = self.end.poll() {
            if let TargetEffect::Close { conn, farewell } = effect {
                self.hub.close(conn, farewell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::frame::Encoder;
    use cdp_core::types::{DiskId, GroupId};
    use std::cell::Cell;

    fn timeline(number: u8) -> Timeline {
        Timeline::new([number; 16]).unwrap()
    }

    fn seed_of(timeline: Timeline, at: u64) -> EncodedFrame {
        let home = seeds::Home { group: GroupId::new([1; 16]).unwrap(), timeline, disk: DiskId::new(1).unwrap() };
        let data = Bytes::from(vec![at as u8 + 1; 4096]);
        seeds::of_data(&mut Encoder::new(), home, at << 12, data, Lsn(1)).unwrap()
    }

    #[test]
    fn seeds_of_a_session_that_is_over_are_not_written_into_the_next_copy() {
        let current = Cell::new(7);
        let (mut written, mut taken) = (Vec::new(), Vec::new());
        let told = |number| {
            taken.push(number);
            if number == 2 {
                // The line is cut, and another session begins while two are still here.
                current.set(8);
            }
            true
        };
        copy(
            timeline(2),
            (0..4).map(|at| seed_of(timeline(2), at)),
            || current.get() != 7,
            |number, _| written.push(number),
            told,
        );
        assert_eq!((written, taken), (vec![1, 2], vec![1, 2]));
    }

    #[test]
    fn seeds_of_another_timeline_are_counted_and_not_written() {
        let (mut written, mut taken) = (Vec::new(), Vec::new());
        let told = |number| {
            taken.push(number);
            true
        };
        let seeds = [2, 3, 2, 1].map(|of| seed_of(timeline(of), 0));
        copy(timeline(2), seeds, || false, |number, _| written.push(number), told);
        assert_eq!((written, taken), (vec![1, 3], vec![1, 2, 3, 4]));
    }
}
