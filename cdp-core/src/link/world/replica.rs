//! Where frames become durable.

use super::origin::{Origin, Piece, group, timeline};
use super::{In, MS, Out, Part, Random, Side};
use crate::frame::{EncodedFrame, FrameHead};
use crate::link::message::{Code, Farewell, Features, Hello};
use crate::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use crate::types::{Lsn, MonoTime, Position};
use std::collections::VecDeque;

/// Bytes of frames that it holds, at most, until they are durable.
const BOUND: u64 = 40_000;
/// A sync takes so long.
const SYNC_NS: u64 = 20 * MS;

pub(super) struct Replica {
    pub(super) number: u8,
    pub(super) end: TargetEnd,
    /// Every part that was taken of this timeline, in order.
    pub(super) taken: Vec<Piece>,
    checked: usize,
    /// Frames that are not durable: when they will be, how many parts are taken then, and their bytes.
    waiting: VecDeque<(MonoTime, usize, u64)>,
    /// So many parts are durable.
    synced: usize,
    /// The highest LSN that was ever said to be durable.
    pub(super) durable_told: Lsn,
    attempt: u64,
    pub(super) refused: u32,
    /// What an end still wanted to say when its timeline was over.
    left: VecDeque<Out>,
}

impl Replica {
    pub(super) fn new() -> Self {
        Self {
            number: 1,
            end: target(1, 0),
            taken: Vec::new(),
            checked: 0,
            waiting: VecDeque::new(),
            synced: 0,
            durable_told: Lsn::ZERO,
            attempt: 0,
            refused: 0,
            left: VecDeque::new(),
        }
    }

    /// Where it stands after so many parts.
    fn position(&self, parts: usize) -> Position {
        match parts.checked_sub(1).and_then(|last| self.taken.get(last)) {
            None => Position::whole(Lsn::ZERO),
            Some(&(lsn, index, count)) if index + 1 == count => Position::whole(Lsn(lsn)),
            Some(&(lsn, index, _)) => Position { lsn: Lsn(lsn), parts: u32::from(index) + 1 },
        }
    }

    pub(super) fn durable(&self) -> Lsn {
        self.position(self.synced).whole_lsn()
    }

    fn held(&self) -> u64 {
        self.waiting.iter().map(|(_, _, bytes)| bytes).sum()
    }

    fn take(&mut self, now: MonoTime, frame: &EncodedFrame) {
        let raw = FrameHead::parse(&frame.head).unwrap().unpack(&frame.body.concat().into()).unwrap();
        let position = self.position(self.taken.len());
        assert_eq!(frame.info.begin(), position, "a frame that does not continue was handed on");
        self.taken.extend(raw.parts.iter().map(|part| (part.lsn.0, part.index, part.count)));
        self.waiting.push_back((now.after(SYNC_NS), self.taken.len(), frame.len()));
        assert!(self.held() <= BOUND, "{} bytes are held", self.held());
    }

    /// Everything once, in order, and nothing that was not made.
    pub(super) fn check(&mut self, origin: &Origin) {
        if self.number == origin.number {
            assert!(self.taken.len() <= origin.made.len(), "more was taken than was made");
            self.checked = self.checked.min(self.taken.len());
            let new = self.checked..self.taken.len();
            assert_eq!(self.taken[new.clone()], origin.made[new.clone()], "not what was made, from part {}", new.start);
            self.checked = new.end;
        }
    }

    /// Comes back with what is durable, and perhaps some more; where `lose` is set, with less.
    pub(super) fn crash(&mut self, random: &mut Random, lose: bool) {
        let more = self.taken.len() - self.synced;
        let kept = match lose {
            false => self.synced + random.below(more as u64 + 1) as usize,
            true => random.below(self.synced as u64 + 1) as usize,
        };
        self.taken.truncate(kept);
        self.checked = self.checked.min(kept);
        self.synced = kept;
        self.waiting.clear();
        self.end = target(self.number, self.attempt);
    }

    fn judge(&mut self, now: MonoTime, hello: &Hello) {
        self.attempt = hello.attempt;
        let durable = self.durable();
        let lost = (hello.durable_seen > durable && hello.durable_seen > Lsn::ZERO)
            .then(|| durable.next()..=hello.durable_seen);
        let terms = Terms {
            have: Some(self.position(self.taken.len())),
            stored: durable,
            durable,
            lost,
            room_bytes: BOUND - self.held(),
            ..Terms::default()
        };
        self.durable_told = self.durable_told.max(durable);
        self.end.admit(now, hello.session, terms);
    }
}

fn target(number: u8, attempt: u64) -> TargetEnd {
    TargetEnd::new(TargetOptions {
        group: Some(group()),
        timeline: Some(timeline(number)),
        features: Features::ALL,
        connections: 15,
        silence_ms: 5_000,
        attempt,
    })
}

impl Part for Replica {
    fn handle(&mut self, now: MonoTime, _: Side, input: In) {
        if let In::Accepted(_, hello) = &input
            && hello.timeline > Some(timeline(self.number))
        {
            // A new timeline: its first frame comes next.
            self.end.close(Farewell::new(Code::Superseded, "a new timeline is there"));
            let left: Vec<Out> = std::iter::from_fn(|| self.poll(now)).collect();
            self.left.extend(left);
            while hello.timeline > Some(timeline(self.number)) {
                self.number += 1;
            }
            self.taken.clear();
            self.waiting.clear();
            (self.synced, self.checked) = (0, 0);
            self.end = target(self.number, 0);
        }
        target_input(&mut self.end, now, input);
    }

    fn timer(&mut self, now: MonoTime) {
        self.end.handle_timer(now);
        while let Some((_, parts, _)) = self.waiting.pop_front_if(|(due, _, _)| *due <= now) {
            self.synced = parts;
            let durable = self.durable();
            self.durable_told = self.durable_told.max(durable);
            self.end.durable(now, durable);
            self.end.grant(now, BOUND - self.held());
        }
    }

    fn deadline(&self) -> Option<MonoTime> {
        let sync = self.waiting.front().map(|(due, _, _)| *due);
        self.end.next_deadline().into_iter().chain(sync).min()
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        loop {
            if let Some(out) = self.left.pop_front() {
                return Some(out);
            }
            return Some(match self.end.poll()? {
                TargetEffect::Judge { hello, .. } => {
                    self.judge(now, &hello);
                    continue;
                }
                TargetEffect::Send { conn, message } => Out::Send(Side::Above, conn, message),
                TargetEffect::Close { conn, farewell } => {
                    self.refused += u32::from(farewell.as_ref().is_some_and(|f| f.code == Code::Superseded));
                    Out::Close(Side::Above, conn, farewell)
                }
                TargetEffect::Take(frame) => {
                    self.take(now, &frame);
                    continue;
                }
                TargetEffect::TakeSeed(_) | TargetEffect::Answered { .. } | TargetEffect::Called { .. } => continue,
                TargetEffect::Up { .. } | TargetEffect::Down { .. } => continue,
            });
        }
    }
}

/// What the network says, to a target end.
pub(super) fn target_input(end: &mut TargetEnd, now: MonoTime, input: In) {
    match input {
        In::Accepted(conn, hello) => end.handle_accepted(now, conn, *hello),
        In::Message(conn, message) => end.handle_message(now, conn, message),
        In::Sent(conn, bytes) => end.handle_sent(now, conn, bytes),
        In::Gone(conn) => end.handle_disconnected(now, conn, "closed"),
        In::Connected(..) | In::ConnectFailed(_) => unreachable!("a target end dials nobody"),
    }
}
