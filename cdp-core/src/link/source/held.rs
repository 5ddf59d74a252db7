//! What the source end knows of the frames that are not durable yet. The frames themselves are somebody else's.

use super::{FrameKey, OfferError};
use crate::frame::FrameInfo;
use crate::types::{Lsn, MonoTime, Position};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
pub(super) struct HeldFrame {
    pub(super) begin: Position,
    pub(super) end: Position,
    pub(super) bytes: u64,
    pub(super) made: MonoTime,
}

/// Frames in order, without a hole between them.
#[derive(Debug)]
pub(super) struct Held {
    frames: VecDeque<HeldFrame>,
    /// The key of the first one.
    first: u64,
    bytes: u64,
    /// Behind the last frame that was ever offered; before the first one, what its owner said at the start.
    end: Position,
    begun: bool,
    max: usize,
}

impl Held {
    pub(super) fn new(start: Position, max: usize) -> Self {
        Self { frames: VecDeque::new(), first: 0, bytes: 0, end: start, begun: false, max }
    }

    pub(super) fn push(&mut self, now: MonoTime, info: &FrameInfo, bytes: u64) -> Result<FrameKey, OfferError> {
        let (begin, end) = (info.begin(), info.end());
        if self.begun && begin != self.end {
            return Err(OfferError::Chain { expected: self.end, found: begin });
        }
        if self.frames.len() >= self.max {
            return Err(OfferError::Full { frames: self.max });
        }
        self.begun = true;
        self.end = end;
        self.bytes += bytes;
        self.frames.push_back(HeldFrame { begin, end, bytes, made: now });
        Ok(FrameKey(self.next_key() - 1))
    }

    /// Where the first frame will begin, if none came yet.
    pub(super) fn start_at(&mut self, start: Position) {
        if !self.begun {
            self.end = start;
        }
    }

    pub(super) fn next_key(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    pub(super) fn first_key(&self) -> u64 {
        self.first
    }

    pub(super) fn get(&self, key: u64) -> Option<&HeldFrame> {
        self.frames.get(usize::try_from(key.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn front(&self) -> Option<&HeldFrame> {
        self.frames.front()
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From here on everything is held.
    pub(super) fn oldest(&self) -> Position {
        self.frames.front().map_or(self.end, |frame| frame.begin)
    }

    pub(super) fn end(&self) -> Position {
        self.end
    }

    /// The key of the frame to go on with where the other side has everything up to `have`.
    pub(super) fn find(&self, have: Position) -> Option<u64> {
        if have < self.oldest() {
            return None;
        }
        let before = self.frames.partition_point(|frame| frame.end <= have);
        Some(self.first + before as u64)
    }

    /// Nothing up to here is needed any more.
    pub(super) fn release(&mut self, durable: Lsn) {
        while let Some(frame) = self.frames.front().filter(|frame| frame.end <= Position::whole(durable)) {
            self.bytes -= frame.bytes;
            self.frames.pop_front();
            self.first += 1;
        }
    }
}
