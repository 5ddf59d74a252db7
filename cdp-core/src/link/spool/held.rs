//! The frames that are held, and the accounts of memory.
//!
//! A frame is *safe* when it may leave memory because it is on disk for good: stored, or where nothing is synced, written. When
//! there is no room, safe frames leave from the newest on: the oldest are wanted first. From then on what becomes safe leaves at
//! once, until half of the memory is free again.

use super::SLOT_COST;
use crate::frame::EncodedFrame;
use crate::journal::EffectId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Memory that a frame in memory takes beside its bytes and the list of its pieces.
const FRAME_COST: u64 = size_of::<EncodedFrame>() as u64;
const PIECE_COST: u64 = size_of::<Bytes>() as u64;
/// A piece of a frame's body is a part at least.
const PIECE_BYTES_MIN: u64 = 512;

const _: () = assert!(size_of::<Slot>() <= SLOT_COST as usize);

/// What a frame takes in memory.
pub(super) fn cost_of(frame: &EncodedFrame) -> u64 {
    frame.len() + FRAME_COST + frame.body.len() as u64 * PIECE_COST
}

/// What a frame of so many bytes takes at most.
pub(super) fn cost_at_most(bytes: u64) -> u64 {
    bytes + FRAME_COST + bytes.div_ceil(PIECE_BYTES_MIN) * PIECE_COST
}

/// Where a frame lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) offset: u64,
}

/// How far a frame is on its way to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// Not on its way.
    Memory,
    /// To be written.
    Queued,
    /// Being written by this effect.
    Writing(EffectId),
    /// Written, and not covered by a sync.
    Written,
    /// On disk for good.
    Stored,
    /// On disk for good once, and cannot be read.
    Lost,
}

#[derive(Debug)]
pub(super) struct Slot {
    frame: Option<Box<EncodedFrame>>,
    /// Bytes of the frame.
    pub(super) bytes: u32,
    /// What it takes while it is in memory.
    cost: u32,
    pub(super) kept: Kept,
    pub(super) place: Option<Place>,
    pub(super) reading: bool,
    pub(super) tries: u8,
}

/// What [`Held::frame`] finds.
pub(super) enum Found {
    Here(EncodedFrame),
    OnDisk,
    Lost,
}

/// All frames that are not released.
#[derive(Debug)]
pub(super) struct Held {
    /// Bounded by memory: each takes [`SLOT_COST`].
    slots: VecDeque<Slot>,
    base: u64,
    always: bool,
    /// Bytes for all but what is read ahead, and for that.
    memory_max: u64,
    ahead_max: u64,
    /// Bytes of all frames, wherever they are.
    frame_bytes: u64,
    /// Memory of frames that are there since they came, and of those the ones that may leave.
    resident: u64,
    leaving: u64,
    /// Memory of released frames that a write still has.
    orphaned: u64,
    /// Safe frames from here on are not in memory, but for those read ahead.
    drop_from: u64,
    /// Frames that were read, with what each takes.
    ahead: BTreeMap<u64, u64>,
    /// What these take, and what reads under way will.
    ahead_bytes: u64,
}

impl Held {
    pub(super) fn new(memory_max: u64, ahead_max: u64, always: bool) -> Self {
        Self {
            slots: VecDeque::new(),
            base: 0,
            always,
            memory_max,
            ahead_max,
            frame_bytes: 0,
            resident: 0,
            leaving: 0,
            orphaned: 0,
            drop_from: u64::MAX,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
        }
    }

    /// Other bounds: see [`Held::new`].
    pub(super) fn set_bounds(&mut self, memory_max: u64, ahead_max: u64) {
        (self.memory_max, self.ahead_max) = (memory_max, ahead_max);
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    pub(super) fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.taken() + self.ahead_bytes
    }

    fn taken(&self) -> u64 {
        self.slots.len() as u64 * SLOT_COST + self.resident + self.orphaned
    }

    /// Memory of what cannot leave.
    pub(super) fn stuck(&self) -> u64 {
        self.taken() - self.leaving
    }

    pub(super) fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// Where only what has no room is written: whether there is little.
    pub(super) fn spills(&self) -> bool {
        self.stuck() > self.memory_max / 2
    }

    pub(super) fn has_room(&self, cost: u64) -> bool {
        self.stuck() + SLOT_COST + cost <= self.memory_max
    }

    pub(super) fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn slot_mut(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    /// Takes a frame for which there is room; whether it is to be written.
    pub(super) fn push(&mut self, frame: EncodedFrame, has_disk: bool) -> bool {
        let cost = cost_of(&frame);
        self.make_room(SLOT_COST + cost);
        self.resident += cost;
        self.frame_bytes += frame.len();
        let bytes = frame.len() as u32;
        let frame = Some(Box::new(frame));
        let slot = Slot { frame, bytes, cost: cost as u32, kept: Kept::Memory, place: None, reading: false, tries: 0 };
        self.slots.push_back(slot);
        let queued = has_disk && (self.always || self.spills());
        if queued && let Some(slot) = self.slots.back_mut() {
            slot.kept = Kept::Queued;
        }
        queued
    }

    /// Takes a frame that is on disk, and stored.
    pub(super) fn push_stored(&mut self, bytes: u64, place: Place) {
        self.frame_bytes += bytes;
        let (bytes, place) = (bytes as u32, Some(place));
        self.slots.push_back(Slot { frame: None, bytes, cost: 0, kept: Kept::Stored, place, reading: false, tries: 0 });
    }

    /// Lets the oldest frame go; the write that still has it, and what it takes.
    pub(super) fn release(&mut self) -> Option<(Option<EffectId>, u64)> {
        let is_safe = self.is_safe(self.base);
        let slot = self.slots.pop_front()?;
        let number = self.base;
        self.base += 1;
        self.frame_bytes -= u64::from(slot.bytes);
        let cost = u64::from(slot.cost);
        if let Some(read) = self.ahead.remove(&number) {
            self.ahead_bytes -= read;
        } else if slot.frame.is_some() {
            self.resident -= cost;
            if is_safe {
                self.leaving -= cost;
            }
        }
        let Kept::Writing(id) = slot.kept else { return Some((None, 0)) };
        self.orphaned += cost;
        Some((Some(id), cost))
    }

    /// A write gave back frames that were released meanwhile.
    pub(super) fn given_back(&mut self, bytes: u64) {
        self.orphaned -= bytes;
    }

    pub(super) fn frame(&self, number: u64) -> Found {
        let Some(slot) = self.slot(number) else { return Found::Lost };
        match &slot.frame {
            Some(frame) => Found::Here(EncodedFrame::clone(frame)),
            None if slot.kept == Kept::Lost => Found::Lost,
            None => Found::OnDisk,
        }
    }

    pub(super) fn peek(&self, number: u64) -> Option<&EncodedFrame> {
        self.slot(number)?.frame.as_deref()
    }

    fn is_safe(&self, number: u64) -> bool {
        self.slot(number).is_some_and(|slot| match slot.kept {
            Kept::Stored => true,
            Kept::Written => !self.always,
            _ => false,
        })
    }

    /// A frame came a step further; it may be what lets it leave.
    pub(super) fn set_kept(&mut self, number: u64, kept: Kept) {
        let was_safe = self.is_safe(number);
        let Some(slot) = self.slot_mut(number) else { return };
        slot.kept = kept;
        let cost = if slot.frame.is_some() { u64::from(slot.cost) } else { 0 };
        if !was_safe && self.is_safe(number) {
            self.leaving += cost;
            if number >= self.drop_from {
                self.leave(number);
            }
        }
    }

    /// A safe frame leaves memory, unless it was read ahead.
    fn leave(&mut self, number: u64) -> bool {
        if !self.is_safe(number) || self.ahead.contains_key(&number) {
            return false;
        }
        let Some(slot) = self.slot_mut(number) else { return false };
        let cost = u64::from(slot.cost);
        if slot.frame.take().is_none() {
            return false;
        }
        self.resident -= cost;
        self.leaving -= cost;
        true
    }

    fn make_room(&mut self, needed: u64) {
        if self.taken() + needed <= self.memory_max / 2 {
            self.drop_from = u64::MAX;
        }
        while self.taken() + needed > self.memory_max && self.leaving > 0 {
            self.drop_from = self.drop_from.min(self.end());
            if self.drop_from <= self.base {
                break;
            }
            self.drop_from -= 1;
            self.leave(self.drop_from);
        }
    }

    /// Whether a frame may be read ahead that takes so much. What lies behind it gives way.
    pub(super) fn reserve(&mut self, number: u64, bytes: u64) -> bool {
        while self.ahead_bytes + bytes > self.ahead_max {
            let Some((last, _)) = self.ahead.last_key_value().map(|(last, cost)| (*last, *cost)) else { return false };
            if last <= number {
                return false;
            }
            self.forget_read(last);
        }
        self.ahead_bytes += bytes;
        true
    }

    /// A read ended, whatever came of it.
    pub(super) fn unreserve(&mut self, bytes: u64) {
        self.ahead_bytes -= bytes;
    }

    /// A frame was read; room was reserved for it and given back.
    pub(super) fn put_read(&mut self, number: u64, frame: EncodedFrame, bytes: u64) {
        let Some(slot) = self.slot_mut(number).filter(|slot| slot.frame.is_none()) else { return };
        slot.frame = Some(Box::new(frame));
        self.ahead.insert(number, bytes);
        self.ahead_bytes += bytes;
    }

    fn forget_read(&mut self, number: u64) {
        let Some(bytes) = self.ahead.remove(&number) else { return };
        self.ahead_bytes -= bytes;
        if let Some(slot) = self.slot_mut(number) {
            slot.frame = None;
        }
    }

    /// Nobody reads on from before this number.
    pub(super) fn forget_before(&mut self, number: u64) {
        while let Some(first) = self.ahead.first_key_value().map(|(first, _)| *first).filter(|first| *first < number) {
            self.forget_read(first);
        }
    }
}

/// Memory that a frame takes that is read, padding included.
pub(super) fn cost_of_read(frame: u64) -> u64 {
    super::layout::entry_bytes(frame) + FRAME_COST + PIECE_COST
}

impl Slot {
    /// Whether it has to be read before it can be given.
    pub(super) fn is_to_be_read(&self) -> Option<Place> {
        self.place.filter(|_| self.frame.is_none() && !self.reading && self.kept != Kept::Lost)
    }
}
