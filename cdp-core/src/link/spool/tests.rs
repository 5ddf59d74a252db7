//! The spool on media that work, fail, and lose what was not synced.

mod crash;
mod model;
mod rules;

use super::*;
use crate::frame::{Compression, Encoder, Part, Payload, RawFrame, RecordKind};
use crate::journal::Executor;
use crate::media::Storage;
use crate::types::{ClockEpoch, DiskId, Lsn, WallTime};
use bytes::Bytes;
use std::sync::Arc;

pub(super) const MIB: u64 = 1 << 20;
/// A sixty-fourth of a second.
pub(super) const TICK: u64 = 1 << 24;

pub(super) fn timeline(number: u8) -> Timeline {
    Timeline::new([number; 16]).unwrap()
}

pub(super) fn options(always: bool) -> SpoolOptions {
    SpoolOptions {
        memory_bytes_max: 3 * MIB,
        disk_bytes_max: 6 * MIB,
        file_bytes: MIB,
        directory: "spool/a".into(),
        ahead_bytes: MIB,
        always,
        ids: 5,
    }
}

/// Frames of a timeline, one after another.
#[derive(Debug, Clone)]
pub(super) struct Source {
    timeline: Timeline,
    prev: Lsn,
    next: u64,
    rest: Vec<Part>,
}

impl Source {
    pub(super) fn new(number: u8) -> Self {
        Self { timeline: timeline(number), prev: Lsn::ZERO, next: 1, rest: Vec::new() }
    }

    /// A frame of so many parts at most; of a longer write the next frames hold the rest.
    pub(super) fn frame(&mut self, sectors: u64, parts_max: usize) -> EncodedFrame {
        if self.rest.is_empty() {
            let bytes = Bytes::from(vec![self.next as u8; (sectors * 512) as usize]);
            let payload = Payload::new(4096 * self.next, bytes).unwrap();
            let disk = DiskId::new(1).unwrap();
            self.rest = payload.into_parts(RecordKind::Write, disk, Lsn(self.next), WallTime(self.next)).collect();
            self.next += 1 + self.next % 3;
        }
        let parts: Vec<Part> = self.rest.drain(..self.rest.len().min(parts_max)).collect();
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let last = parts[parts.len() - 1].lsn;
        let (timeline, prev_lsn, epoch) = (self.timeline, self.prev, ClockEpoch(1));
        let raw = RawFrame { timeline, prev_lsn, settled: prev_lsn, epoch, parts, plain_bytes };
        self.prev = last;
        Encoder::new().encode(raw, GroupId::new([9; 16]).unwrap(), Compression::None)
    }
}

pub(super) fn bytes_of(frame: &EncodedFrame) -> Vec<u8> {
    [&frame.head[..], &frame.body.concat()].concat()
}

/// Draws numbers.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A spool, a storage, and what is under way between them.
pub(super) struct Rig {
    pub(super) spool: Spool,
    executor: Executor,
    pub(super) flying: Vec<(EffectId, Effect)>,
    pub(super) now: MonoTime,
    pub(super) events: Vec<SpoolEvent>,
}

impl Rig {
    pub(super) fn new(spool: Spool, storage: Arc<dyn Storage>) -> Self {
        let executor = Executor::new(storage);
        Self { spool, executor, flying: Vec::new(), now: MonoTime(0), events: Vec::new() }
    }

    /// Takes what the spool wants now.
    pub(super) fn poll(&mut self) {
        while let Some((id, effect)) = self.spool.poll(self.now) {
            assert_eq!(Spool::ids_of(id), 5);
            self.flying.push((id, effect));
        }
        self.events.extend(std::iter::from_fn(|| self.spool.event()));
        let within = |bytes: u64, max: u64| assert!(bytes <= max, "{bytes} of {max} bytes");
        within(self.spool.memory_bytes(), self.spool.options.memory_bytes_max);
        within(self.spool.disk_bytes(), self.spool.options.disk_bytes_max);
    }

    /// Carries out one of those under way.
    pub(super) fn finish(&mut self, which: usize) {
        if self.flying.is_empty() {
            return;
        }
        let (id, effect) = self.flying.swap_remove(which % self.flying.len());
        let outcome = self.executor.run(&effect);
        self.spool.completed(self.now, id, outcome);
    }

    /// Carries out everything, and waits for nothing but what time brings.
    pub(super) fn settle(&mut self) {
        loop {
            self.poll();
            if self.flying.is_empty() {
                return;
            }
            self.finish(0);
        }
    }

    /// The same with all the time that it takes.
    pub(super) fn settle_for(&mut self, nanoseconds: u64) {
        let end = self.now.after(nanoseconds);
        while self.now < end {
            self.settle();
            let next = self.spool.next_deadline().unwrap_or(end);
            self.now = next.max(self.now).min(end);
            if next <= self.now && self.spool.next_deadline() == Some(next) && self.now < end {
                self.settle();
                assert!(self.spool.next_deadline() != Some(next), "a deadline that brings nothing");
            }
        }
        self.settle();
    }

    /// The frame, whatever it takes.
    pub(super) fn read(&mut self, number: u64) -> Option<EncodedFrame> {
        for _ in 0..100 {
            match self.spool.get(number) {
                Lookup::Here(frame) => return Some(frame),
                Lookup::Gone => return None,
                Lookup::Later => self.settle(),
            }
            if let Some(next) = self.spool.next_deadline() {
                self.now = self.now.max(next);
            }
        }
        panic!("frame {number} never came: {:?}", self.spool)
    }
}
