//! What the two ends of a relay want, of each other and of the driver.

use super::kept::ToSend;
use super::{CALL_NS, Code, Farewell, Hop, Message, REDIAL_NS, Relay, RelayEffect, RelayEvent, TargetEffect};
use crate::link::calls::{CallId, empty};
use crate::link::message::{Call, CallStatus};
use crate::link::source::{Acked, SeedRefused, SourceEffect};
use crate::link::spool::Lookup;
use crate::types::MonoTime;

impl Relay {
    pub(super) fn drain_above(&mut self, now: MonoTime) -> bool {
        let mut worked = false;
        while let Some(effect) = self.above.poll() {
            worked = true;
            match effect {
                TargetEffect::Judge { session, hello } => self.judge(now, session, &hello),
                TargetEffect::Send { conn, message } => {
                    self.effects.push_back(RelayEffect::Send { hop: Hop::Above, conn, message });
                }
                TargetEffect::Close { conn, farewell } => {
                    self.effects.push_back(RelayEffect::Close { hop: Hop::Above, conn, farewell });
                }
                TargetEffect::Take(frame) => {
                    self.told = None;
                    self.kept.take(&frame);
                    self.effects.push_back(RelayEffect::Taken { run: self.kept.run(), frame });
                }
                TargetEffect::TakeSeed(seed) => self.seeds.push_back(seed),
                TargetEffect::Answered { id, answer } => {
                    if let (Some(asked), Some(below)) = (self.calls_up.remove(&id), &mut self.below) {
                        below.answer(now, asked, answer);
                    }
                }
                TargetEffect::Called { id, call } => self.call_below(now, id, call),
                TargetEffect::Up { .. } => self.tell(RelayEvent::Up(Hop::Above)),
                TargetEffect::Down { why } => self.tell(RelayEvent::Down(Hop::Above, why)),
            }
        }
        worked
    }

    pub(super) fn drain_below(&mut self, now: MonoTime) -> bool {
        let mut worked = false;
        while let Some(effect) = self.below.as_mut().and_then(|below| below.poll()) {
            worked = true;
            match effect {
                SourceEffect::Connect { dial, session, plain } => {
                    self.effects.push_back(RelayEffect::Connect { dial, session, plain });
                }
                SourceEffect::Send { conn, message } => {
                    self.effects.push_back(RelayEffect::Send { hop: Hop::Below, conn, message });
                }
                SourceEffect::SendFrame { conn, number, key } => {
                    self.kept.to_send.push_back(ToSend { conn, number, key: key.0 });
                }
                SourceEffect::Close { conn, farewell } => {
                    self.effects.push_back(RelayEffect::Close { hop: Hop::Below, conn, farewell });
                }
                SourceEffect::Acked(acked) => self.acked(now, acked),
                SourceEffect::Answered { id, answer } => {
                    if let Some(asked) = self.calls_down.remove(&id) {
                        self.above.answer(now, asked, answer);
                    }
                }
                SourceEffect::Called { id, call } => match self.above.call(now, call.clone(), CALL_NS) {
                    Ok(passed) => drop(self.calls_up.insert(passed, id)),
                    Err(_) => self.answer_below(now, id, &call),
                },
                SourceEffect::Lost(lost) => {
                    self.tell(RelayEvent::Lost(lost.clone()));
                    // Told at the next hello, which comes at once.
                    (self.lost, self.lost_told) = (Some(lost), false);
                    self.above.close(Farewell::new(Code::Broken, "what was durable is lost behind this relay"));
                }
                SourceEffect::Broken { have, .. } => {
                    self.above.close(Farewell::new(Code::Broken, "what is kept here does not meet the next hop"));
                    self.drain_above(now);
                    self.forget(now, Some(have));
                }
                SourceEffect::Refused { farewell, .. } => self.refused(now, farewell),
                SourceEffect::Up { have, .. } => {
                    self.met = have;
                    self.tell(RelayEvent::Up(Hop::Below));
                }
                SourceEffect::Down { why } => self.below_is_down(now, why),
            }
        }
        worked
    }

    /// Frames into the spool, out of it, and seeds on.
    pub(super) fn move_on(&mut self, now: MonoTime) -> bool {
        let mut worked = false;
        loop {
            let offered = match self.kept.store() {
                Ok(None) => break,
                Ok(Some(info)) => {
                    let bytes = u64::from(info.head_bytes) + u64::from(info.body_bytes);
                    self.below.as_mut().is_some_and(|below| below.offer(now, &info, bytes).is_ok())
                }
                Err(_) => false,
            };
            worked = true;
            if !offered {
                // Whoever prepared made frames that do not continue each other.
                self.begin_anew(now, "what was made of frames does not continue what was kept");
                return true;
            }
        }
        for _ in 0..self.kept.to_send.len() {
            let Some(next) = self.kept.to_send.pop_front() else { break };
            match self.kept.get(next.key) {
                Lookup::Here(frame) => {
                    worked = true;
                    let message = Message::Frame(next.number, frame);
                    self.effects.push_back(RelayEffect::Send { hop: Hop::Below, conn: next.conn, message });
                }
                Lookup::Later => {
                    self.kept.to_send.push_front(next);
                    break;
                }
                Lookup::Gone => {
                    self.begin_anew(now, "a frame cannot be read any more");
                    return true;
                }
            }
        }
        while let (Some(seed), Some(below)) = (self.seeds.pop_front(), &mut self.below) {
            if let Err(SeedRefused(seed)) = below.offer_seed(now, seed) {
                self.seeds.push_front(*seed);
                break;
            }
            self.seeds_passed += 1;
            worked = true;
        }
        worked
    }

    /// The source has everything that is not durable: it sends it again.
    pub(super) fn begin_anew(&mut self, now: MonoTime, why: &str) {
        self.above.close(Farewell::new(Code::Broken, why));
        self.drain_above(now);
        self.forget(now, None);
    }

    fn acked(&mut self, now: MonoTime, acked: Acked) {
        self.kept.release(acked.kept_from);
        self.far_room = acked.room;
        self.above.stored(now, acked.stored);
        self.above.room(now, acked.room);
        self.above.seeds(now, acked.seeds.saturating_sub(self.seeds_before));
    }

    fn call_below(&mut self, now: MonoTime, id: CallId, call: Call) {
        let kind = call.kind;
        let passed = self.below.as_mut().and_then(|below| below.call(now, call, CALL_NS).ok());
        match passed {
            Some(passed) => drop(self.calls_down.insert(passed, id)),
            None => self.above.answer(now, id, empty(kind, CallStatus::Unreachable)),
        }
    }

    fn answer_below(&mut self, now: MonoTime, id: CallId, call: &Call) {
        if let Some(below) = &mut self.below {
            below.answer(now, id, empty(call.kind, CallStatus::Unreachable));
        }
    }

    fn below_is_down(&mut self, now: MonoTime, why: Farewell) {
        self.kept.to_send.clear();
        self.calls_up.clear();
        // Seeds are kept by nobody: the source hears that those of this session may be lost.
        if self.seeds_passed > self.seeds_before || !self.seeds.is_empty() {
            // What ends a timeline is said as a refusal next, and whoever knows the other ways decides who hears it.
            self.seeds_cut = why.code.is_of_the_source();
            if !self.seeds_cut {
                self.above.close(seeds_lost());
            }
        }
        self.seeds.clear();
        (self.seeds_before, self.seeds_passed) = (0, 0);
        let does_not_continue = why.code == Code::OutOfOrder;
        self.tell(RelayEvent::Down(Hop::Below, why));
        if does_not_continue {
            // Of a record of which the next hop has parts the rest was left out here: before that hop crashed it had more.
            let text = "what is kept here does not continue what the next hop has";
            self.above.close(Farewell::new(Code::Broken, text));
            self.drain_above(now);
            self.forget(now, self.met);
        }
    }

    /// Whoever drives this relay knows whether there are other ways, and says who hears of it.
    fn refused(&mut self, now: MonoTime, farewell: Farewell) {
        if farewell.code == Code::Superseded {
            // One that was found in a cache again, say, and whose source has come here meanwhile.
            self.redial = Some(now.after(REDIAL_NS));
        }
        self.tell(RelayEvent::Refused(farewell));
    }

    /// The driver's answer to [`RelayEvent::Refused`]. With `is_last` nobody else could let in what this next hop refuses: what it says of
    /// group and timeline the source has to hear then. What it says of this relay is the relay's affair.
    pub fn handle_refused(&mut self, now: MonoTime, farewell: Farewell, is_last: bool) {
        let seeds_cut = std::mem::take(&mut self.seeds_cut);
        if is_last && farewell.code.is_of_the_source() {
            self.above.close(farewell);
        } else if seeds_cut {
            self.above.close(seeds_lost());
        }
        self.work(now);
    }

    fn tell(&mut self, event: RelayEvent) {
        self.effects.push_back(RelayEffect::Event(event));
    }
}

fn seeds_lost() -> Farewell {
    Farewell::new(Code::Unreachable, "seeds may be lost: the next hop cannot be reached")
}
