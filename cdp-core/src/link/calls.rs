//! The calls of a session, those of this end and those of the other.

use super::message::{Answer, CALL_HEADER_MAX, CALL_TAIL_MAX, CALLS_MAX, Call, CallStatus, Code, Farewell, Message};
use crate::types::MonoTime;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of tails of one side's open calls, and of answers that wait to be sent, at most.
pub const CALL_TAILS_MAX: usize = 64 << 20;

/// A call, of this end or of the other, for as long as this end lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

/// Why a call was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallRefused {
    /// Header or tail is longer than the wire takes.
    #[error("a call of {header} + {tail} bytes is longer than {CALL_HEADER_MAX} + {CALL_TAIL_MAX}")]
    TooLong {
        /// Bytes of the header.
        header: usize,
        /// Bytes of the tail.
        tail: usize,
    },
    /// So many are open.
    #[error("{open} calls are open, with {tails} bytes")]
    TooMany {
        /// Calls without an answer.
        open: usize,
        /// Bytes of their tails.
        tails: usize,
    },
    /// No session holds.
    #[error("the other side cannot be reached")]
    Down,
}

#[derive(Debug)]
struct Mine {
    kind: u16,
    until: MonoTime,
    tail: usize,
    /// The owner was told that it took too long; for the other side it is open until it answers.
    late: bool,
}

#[derive(Debug)]
struct Theirs {
    number: u64,
    kind: u16,
    tail: usize,
}

/// Both directions. What waits is bounded by what is open: [`CALLS_MAX`] and [`CALL_TAILS_MAX`] each way.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last: u64,
    mine: BTreeMap<u64, Mine>,
    theirs: BTreeMap<CallId, Theirs>,
    waiting: VecDeque<Message>,
    answer_tails: usize,
}

impl Calls {
    pub(super) fn call(&mut self, now: MonoTime, call: Call, within_ns: u64) -> Result<CallId, CallRefused> {
        let (header, tail) = (call.header.len(), call.tail.len());
        if header > CALL_HEADER_MAX || tail > CALL_TAIL_MAX {
            return Err(CallRefused::TooLong { header, tail });
        }
        let (open, tails) = (self.mine.len(), self.mine.values().map(|mine| mine.tail).sum::<usize>());
        if open >= CALLS_MAX || tails + tail > CALL_TAILS_MAX {
            return Err(CallRefused::TooMany { open, tails });
        }
        self.last += 1;
        let mine = Mine { kind: call.kind, until: now.after(within_ns), tail, late: false };
        self.mine.insert(self.last, mine);
        self.waiting.push_back(Message::Call(self.last, call));
        Ok(CallId(self.last))
    }

    /// The other side asked.
    pub(super) fn asked(&mut self, number: u64, call: &Call) -> Result<CallId, Farewell> {
        let tails = self.theirs.values().map(|theirs| theirs.tail).sum::<usize>() + call.tail.len();
        if self.theirs.len() >= CALLS_MAX || tails > CALL_TAILS_MAX {
            let text = "more calls are open than a session may have";
            return Err(Farewell::new(Code::Busy, text).with(CALLS_MAX as u64, self.theirs.len() as u64 + 1));
        }
        if self.theirs.values().any(|theirs| theirs.number == number) {
            return Err(Farewell::new(Code::Malformed, "two open calls have the same number").with(0, number));
        }
        self.last += 1;
        let id = CallId(self.last);
        self.theirs.insert(id, Theirs { number, kind: call.kind, tail: call.tail.len() });
        Ok(id)
    }

    /// The owner answers. Without effect when the session in which it was asked is over. An answer that does not fit becomes a
    /// refusal: the other side may ask again.
    pub(super) fn answer(&mut self, id: CallId, mut answer: Answer) {
        let Some(theirs) = self.theirs.remove(&id) else { return };
        let too_long = answer.header.len() > CALL_HEADER_MAX || answer.tail.len() > CALL_TAIL_MAX;
        if too_long || self.answer_tails + answer.tail.len() > CALL_TAILS_MAX {
            let header = if too_long { r#"{"reason":"too-long"}"# } else { r#"{"reason":"busy"}"# };
            answer.status = CallStatus::Refused;
            (answer.header, answer.tail) = (Bytes::from_static(header.as_bytes()), Bytes::new());
        }
        answer.kind = theirs.kind;
        self.answer_tails += answer.tail.len();
        self.waiting.push_back(Message::Answer(theirs.number, answer));
    }

    /// The other side answered. An answer to what is not asked any more says nothing.
    pub(super) fn answered(&mut self, number: u64) -> Option<CallId> {
        let mine = self.mine.remove(&number)?;
        (!mine.late).then_some(CallId(number))
    }

    /// What is to be sent next.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        if let Message::Answer(_, answer) = &message {
            self.answer_tails -= answer.tail.len();
        }
        Some(message)
    }

    /// Calls whose time is over, with the answer that says so.
    pub(super) fn expired(&mut self, now: MonoTime) -> Vec<(CallId, Answer)> {
        let late = self.mine.iter_mut().filter(|(_, mine)| !mine.late && mine.until <= now);
        late.map(|(number, mine)| {
            mine.late = true;
            (CallId(*number), empty(mine.kind, CallStatus::TimedOut))
        })
        .collect()
    }

    /// The session is over: every call of this end is answered, those of the other are forgotten.
    pub(super) fn cut(&mut self) -> Vec<(CallId, Answer)> {
        self.theirs.clear();
        self.waiting.clear();
        self.answer_tails = 0;
        let mine = std::mem::take(&mut self.mine);
        let open = mine.into_iter().filter(|(_, mine)| !mine.late);
        open.map(|(number, mine)| (CallId(number), empty(mine.kind, CallStatus::Unreachable))).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        self.mine.values().filter(|mine| !mine.late).map(|mine| mine.until).min()
    }
}

/// An answer that is only a status.
pub(super) fn empty(kind: u16, status: CallStatus) -> Answer {
    Answer { kind, status, header: Bytes::new(), tail: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::super::farewell::Class;
    use super::*;

    fn call(kind: u16, tail: usize) -> Call {
        Call { kind, header: Bytes::from_static(b"{}"), tail: vec![0; tail].into() }
    }

    fn answer(tail: usize) -> Answer {
        Answer { tail: vec![0; tail].into(), ..empty(0, CallStatus::Done) }
    }

    #[test]
    fn calls_are_answered_once_and_under_the_number_that_they_came_with() {
        let mut calls = Calls::default();
        let mine = calls.call(MonoTime(0), call(7, 0), 100).unwrap();
        assert!(matches!(calls.next_message(), Some(Message::Call(number, _)) if number == mine.0));
        let theirs = calls.asked(40, &call(8, 0)).unwrap();
        calls.answer(theirs, answer(3));
        calls.answer(theirs, answer(4));
        let said = calls.next_message();
        assert!(matches!(said, Some(Message::Answer(40, answer)) if answer.kind == 8 && answer.tail.len() == 3));
        assert!(calls.next_message().is_none());
        assert_eq!(calls.answered(mine.0), Some(mine));
        assert_eq!(calls.answered(mine.0), None);
    }

    #[test]
    fn a_late_call_counts_until_its_answer_comes() {
        let mut calls = Calls::default();
        for _ in 0..CALLS_MAX {
            calls.call(MonoTime(0), call(1, 0), 100).unwrap();
        }
        assert_eq!(calls.next_deadline(), Some(MonoTime(100)));
        assert!(calls.expired(MonoTime(99)).is_empty());
        let expired = calls.expired(MonoTime(100));
        assert!(expired.len() == CALLS_MAX && expired.iter().all(|(_, answer)| answer.status == CallStatus::TimedOut));
        assert!(calls.expired(MonoTime(101)).is_empty() && calls.next_deadline().is_none());
        let refused = calls.call(MonoTime(200), call(1, 0), 100).unwrap_err();
        assert_eq!(refused, CallRefused::TooMany { open: CALLS_MAX, tails: 0 });
        assert_eq!(calls.answered(1), None, "its owner has an answer");
        calls.call(MonoTime(200), call(1, 0), 100).unwrap();
    }

    #[test]
    fn a_cut_answers_what_is_open_and_forgets_what_was_asked() {
        let mut calls = Calls::default();
        let mine = calls.call(MonoTime(0), call(7, 0), 100).unwrap();
        let theirs = calls.asked(1, &call(8, 0)).unwrap();
        let cut = calls.cut();
        assert!(cut.len() == 1 && cut[0].0 == mine && cut[0].1.status == CallStatus::Unreachable);
        calls.answer(theirs, answer(0));
        assert!(calls.next_message().is_none() && calls.cut().is_empty());
    }

    #[test]
    fn what_is_open_has_bounds_both_ways() {
        let mut calls = Calls::default();
        let long = calls.call(MonoTime(0), call(1, CALL_TAIL_MAX + 1), 1).unwrap_err();
        assert_eq!(long, CallRefused::TooLong { header: 2, tail: CALL_TAIL_MAX + 1 });
        for number in 0..64 {
            calls.call(MonoTime(0), call(1, CALL_TAIL_MAX), 1).unwrap();
            calls.asked(number, &call(1, CALL_TAIL_MAX)).unwrap();
        }
        assert!(matches!(calls.call(MonoTime(0), call(1, 1), 1), Err(CallRefused::TooMany { open: 64, .. })));
        assert_eq!(calls.asked(64, &call(1, 1)).unwrap_err().code.class(), Class::Retry);
        assert_eq!(calls.asked(63, &call(1, 0)).unwrap_err().code, Code::Malformed);
        calls.cut();
        let ids: Vec<CallId> = (0..65).map(|number| calls.asked(number, &call(1, 0)).unwrap()).collect();
        ids.iter().for_each(|id| calls.answer(*id, answer(CALL_TAIL_MAX)));
        let said: Vec<Message> = std::iter::from_fn(|| calls.next_message()).collect();
        let refused = said.iter().filter(|m| matches!(m, Message::Answer(_, a) if a.status == CallStatus::Refused));
        assert_eq!((said.len(), refused.count()), (65, 1));
    }
}
