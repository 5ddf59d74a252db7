//! What is read: the frames that follow the one that was asked for last, as far as they are on disk alone.

use super::files::Pending;
use super::held::{self, Kept, Place};
use super::layout::{ENTRY_BYTES, Home, decode_entry, entry_bytes};
use super::{READ_RETRY_NS, READ_TRIES, Spool, SpoolEvent};
use crate::journal::{Effect, EffectId, Landing, Outcome};
use crate::types::MonoTime;
use bytes::Bytes;

/// Reads under way at once.
const READS_MAX: usize = 4;
/// Small frames that follow each other are read as one, up to so many bytes.
const READ_BYTES: u64 = 256 << 10;

/// A frame in what is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    number: u64,
    place: Place,
    /// Where in what is read.
    from: usize,
    /// Bytes of the entry without its padding.
    length: usize,
    /// What it takes in memory.
    cost: u64,
}

impl Spool {
    /// The reader is here now.
    pub(super) fn seek(&mut self, number: u64) {
        if number < self.cursor {
            self.ahead_next = number;
        }
        self.cursor = number;
        self.held.forget_before(number);
    }

    /// Whether there is anything to read, room or not.
    pub(super) fn wants_read(&self) -> bool {
        (self.ahead_next.max(self.cursor)..self.held.end())
            .find_map(|number| self.held.slot(number)?.is_to_be_read())
            .is_some()
    }

    pub(super) fn poll_reads(&mut self, now: MonoTime) -> Option<(EffectId, Effect)> {
        if self.read_after.is_some_and(|after| now < after) {
            return None;
        }
        self.read_after = None;
        if self.reads >= READS_MAX {
            return None;
        }
        self.ahead_next = self.ahead_next.max(self.cursor);
        let first = loop {
            match self.held.slot(self.ahead_next)?.is_to_be_read() {
                Some(place) => break place,
                None => self.ahead_next += 1,
            }
        };
        let (mut spans, mut at, mut reserved): (Vec<Span>, u64, u64) = (Vec::new(), 0, 0);
        while let Some(slot) = self.held.slot(self.ahead_next) {
            let (frame, tries) = (u64::from(slot.bytes), slot.tries);
            let follows = Place { sequence: first.sequence, offset: first.offset + at };
            let Some(place) = slot.is_to_be_read().filter(|place| *place == follows) else { break };
            // What failed before is read alone: it takes no other with it.
            let more = at + entry_bytes(frame) <= READ_BYTES && tries == 0;
            let cost = held::cost_of_read(frame);
            if !(spans.is_empty() || more) || !self.held.reserve(self.ahead_next, cost) {
                break;
            }
            let length = (ENTRY_BYTES + frame) as usize;
            spans.push(Span { number: self.ahead_next, place, from: at as usize, length, cost });
            if let Some(slot) = self.held.slot_mut(self.ahead_next) {
                slot.reading = true;
            }
            (at, reserved) = (at + entry_bytes(frame), reserved + cost);
            self.ahead_next += 1;
            if tries > 0 {
                break;
            }
        }
        let last = spans.last()?;
        let (_, timeline) = self.of?;
        let landing = Landing::new(last.from + last.length);
        self.reads += 1;
        let effect =
            Effect::Read { name: self.path(timeline, first.sequence), offset: first.offset, into: landing.clone() };
        self.hand_out(Pending::Read { spans, landing, reserved }, effect)
    }

    pub(super) fn was_read(
        &mut self,
        now: MonoTime,
        spans: &[Span],
        landing: &Landing,
        reserved: u64,
        outcome: Outcome,
    ) {
        self.reads -= 1;
        self.held.unreserve(reserved);
        let Some((group, timeline)) = self.of else { return };
        let bytes = outcome.map(|()| landing.bytes().unwrap_or_default());
        for span in spans {
            let Some(slot) = self.held.slot_mut(span.number) else { continue };
            slot.reading = false;
            let Place { sequence, offset } = span.place;
            let found = match &bytes {
                Err(error) => Err(error.to_string()),
                Ok(bytes) => {
                    let piece = bytes.get(span.from..span.from + span.length).unwrap_or_default();
                    // A frame of several in one buffer would keep all of it in memory.
                    let piece = if spans.len() > 1 { Bytes::copy_from_slice(piece) } else { bytes.slice_ref(piece) };
                    decode_entry(Home { group, timeline, sequence, offset }, &piece).map_err(|error| error.to_string())
                }
            };
            match found {
                Ok(frame) => {
                    slot.tries = 0;
                    self.held.put_read(span.number, frame, span.cost);
                }
                Err(why) => self.was_not_read(now, span.number, why),
            }
        }
        // The reader may be beyond them meanwhile.
        self.held.forget_before(self.cursor);
    }

    fn was_not_read(&mut self, now: MonoTime, number: u64, why: String) {
        let Some(slot) = self.held.slot_mut(number) else { return };
        slot.tries += 1;
        if slot.tries < READ_TRIES {
            self.ahead_next = self.ahead_next.min(number);
            self.read_after = Some(now.after(READ_RETRY_NS));
            return;
        }
        self.held.set_kept(number, Kept::Lost);
        self.tell(SpoolEvent::Lost { number, why });
    }
}
