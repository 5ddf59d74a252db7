//! The frames of a relay: those that are being prepared, those that wait for room in the spool, those in it, and those of it that
//! are to be sent and are not in memory.

use super::Run;
use crate::frame::{EncodedFrame, FrameInfo};
use crate::link::source::ConnId;
use crate::link::spool::{Lookup, PushError, Spool};
use crate::types::{Lsn, Position};
use std::collections::VecDeque;

/// A frame that is to be sent as soon as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToSend {
    pub(super) conn: ConnId,
    pub(super) number: u64,
    pub(super) key: u64,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) spool: Spool,
    run: Run,
    /// The spool's number of the frame that the end below calls 0.
    base: u64,
    /// What was taken: where it ends, and its bytes, until what is made of it is kept. Within the window.
    preparing: VecDeque<(Position, u64)>,
    preparing_bytes: u64,
    /// Made, but the spool had no room. Within the window, as far as preparation makes nothing longer.
    waiting: VecDeque<EncodedFrame>,
    waiting_bytes: u64,
    /// Where frames of the spool begin and end, from the first that is not released.
    places: VecDeque<(Position, Position)>,
    first: u64,
    /// Behind everything that was taken.
    position: Option<Position>,
    /// Bounded by what the end below has queued.
    pub(super) to_send: VecDeque<ToSend>,
}

impl Kept {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            spool,
            run: Run(0),
            base: 0,
            preparing: VecDeque::new(),
            preparing_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            places: VecDeque::new(),
            first: 0,
            position: None,
            to_send: VecDeque::new(),
        }
    }

    pub(super) fn run(&self) -> Run {
        self.run
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.position
    }

    /// Where what is kept begins.
    pub(super) fn oldest(&self) -> Option<Position> {
        self.places.front().map(|(begin, _)| *begin).or(self.position)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.preparing.is_empty() && self.waiting.is_empty()
    }

    /// Bytes that are here and not in the spool.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.preparing_bytes + self.waiting_bytes
    }

    /// A frame that was in the spool from the start.
    pub(super) fn recovered(&mut self, info: &FrameInfo) {
        self.places.push_back((info.begin(), info.end()));
        self.position = Some(info.end());
    }

    /// A frame came.
    pub(super) fn take(&mut self, frame: &EncodedFrame) {
        self.position = Some(frame.info.end());
        self.preparing.push_back((frame.info.end(), frame.len()));
        self.preparing_bytes += frame.len();
    }

    /// What was made of frames that came.
    pub(super) fn push(&mut self, frame: EncodedFrame) {
        while let Some((_, bytes)) = self.preparing.pop_front_if(|(end, _)| *end <= frame.info.end()) {
            self.preparing_bytes -= bytes;
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back(frame);
    }

    /// Puts the next frame into the spool: what it is, if there was room.
    pub(super) fn store(&mut self) -> Result<Option<FrameInfo>, PushError> {
        let Some(frame) = self.waiting.front() else { return Ok(None) };
        let (info, bytes) = (frame.info, frame.len());
        match self.spool.push(frame.clone()) {
            Ok(_) => {
                self.waiting.pop_front();
                self.waiting_bytes -= bytes;
                self.places.push_back((info.begin(), info.end()));
                Ok(Some(info))
            }
            Err(PushError::Full { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is kept is not wanted any more.
    pub(super) fn retire(&mut self) {
        self.forget();
        self.spool.retire();
    }

    pub(super) fn get(&mut self, key: u64) -> Lookup {
        self.spool.get(self.base + key)
    }

    /// The end below needs frames with lower keys no more.
    pub(super) fn release(&mut self, kept_from: u64) {
        let upto = self.base + kept_from;
        if upto > self.first {
            self.spool.release(upto - 1);
            let released = usize::try_from(upto - self.first).unwrap_or(usize::MAX);
            self.places.drain(..released.min(self.places.len()));
            self.first = upto;
        }
    }

    /// The last LSN that is whole in what is synced.
    pub(super) fn stored(&self) -> Lsn {
        let frames = self.spool.stored().and_then(|number| number.checked_sub(self.first));
        let place = frames.and_then(|at| self.places.get(usize::try_from(at).ok()?));
        place.map_or(Lsn::ZERO, |(_, end)| end.whole_lsn())
    }

    /// Nothing is kept any more; what comes next need not continue it.
    pub(super) fn forget(&mut self) {
        self.spool.forget();
        self.run.0 += 1;
        self.base = self.spool.next_number();
        self.first = self.base;
        self.places.clear();
        self.preparing.clear();
        self.waiting.clear();
        self.to_send.clear();
        (self.preparing_bytes, self.waiting_bytes) = (0, 0);
        self.position = None;
    }
}
