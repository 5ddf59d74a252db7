//! The filter's half of first copies: the disks are read one after the other, and what was read goes over the link beside the records.
//! Whatever ends a session ends an attempt; the next one goes on where the replica says.

use super::super::calls::{Ask, Whole};
use super::super::part::MS;
use crate::capture::world::{Piece, World, index, spec};
use cdp_core::frame::{Compression, EncodedFrame, Encoder, Part, Payload, RawFrame, RecordKind};
use cdp_core::link::source::SourceEnd;
use cdp_core::types::{ClockEpoch, DiskId, Extent, GroupId, Lsn, MonoTime, SECTOR, Timeline, WallTime};
use std::collections::VecDeque;

/// A read of the source that failed is tried again after so long.
const RETRY_NS: u64 = 100 * MS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The replica has to be asked to begin, or was.
    Asks,
    Asked,
    /// Up to here it was read.
    Reads {
        attempt: u64,
        at: u64,
    },
    /// The replica was asked whether it is whole.
    Ends {
        attempt: u64,
    },
}

/// First copies of a group's disks.
pub struct Copies {
    waiting: VecDeque<DiskId>,
    now: Option<(DiskId, Stage)>,
    /// Seeds of the session that holds: so many were given, and taken.
    is_up: bool,
    given: u64,
    taken: u64,
    retry: Option<MonoTime>,
    /// One of them was there before.
    compares: bool,
    told: bool,
}

impl Copies {
    pub fn new(disks: Vec<DiskId>) -> Self {
        let told = disks.is_empty();
        Self { waiting: disks.into(), now: None, is_up: false, given: 0, taken: 0, retry: None, compares: false, told }
    }

    /// Bytes of disks whose copies are not through.
    pub fn left(&self, world: &World) -> u64 {
        let disks = self.waiting.iter().chain(self.now.as_ref().map(|(disk, _)| disk));
        disks.map(|disk| world.sizes[index(*disk)] as u64 * SECTOR).sum()
    }

    pub fn are_done(&self) -> bool {
        self.told
    }

    pub fn is_uncopied(&self, disk: DiskId) -> bool {
        self.waiting.contains(&disk) || self.now.is_some_and(|(now, _)| now == disk)
    }

    /// A session holds, or does not any more: what was given in another one is for nobody.
    pub fn session_changed(&mut self, is_up: bool) {
        (self.is_up, self.given, self.taken) = (is_up, 0, 0);
        if let Some((_, stage @ Stage::Reads { .. })) = &mut self.now {
            *stage = Stage::Asks;
        }
    }

    pub fn taken(&mut self, seeds: u64) {
        self.taken = seeds;
    }

    pub fn begun(&mut self, disk: DiskId, attempt: u64, position: u64) {
        if let Some((_, stage)) = self.now.as_mut().filter(|now| **now == (disk, Stage::Asked)) {
            *stage = Stage::Reads { attempt, at: position };
        }
    }

    pub fn ended(&mut self, world: &mut World, of: (DiskId, u64), whole: Option<Whole>) {
        let (disk, attempt) = of;
        if self.now != Some((disk, Stage::Ends { attempt })) {
            return;
        }
        self.now = match whole {
            Some(whole) => {
                self.compares |= whole.brought;
                world.set_base(index(disk), whole.base);
                None
            }
            None => Some((disk, Stage::Asks)),
        };
    }

    pub fn next_deadline(&self) -> Option<MonoTime> {
        let reads = matches!(self.now, Some((_, Stage::Reads { .. })));
        self.retry.filter(|_| self.is_up && reads)
    }

    /// Goes on; gives what is to be asked.
    pub fn go_on(&mut self, now: MonoTime, world: &mut World, of: (GroupId, &mut SourceEnd)) -> Option<Ask> {
        if self.now.is_none() {
            self.now = self.waiting.pop_front().map(|disk| (disk, Stage::Asks));
        }
        let Some((disk, stage)) = &mut self.now else {
            if !std::mem::replace(&mut self.told, true) {
                world.group_copied(self.compares);
            }
            return None;
        };
        let (disk, size) = (*disk, world.sizes[index(*disk)] as u64 * SECTOR);
        match stage {
            Stage::Asks => {
                *stage = Stage::Asked;
                Some(Ask::Copy { disk, size })
            }
            Stage::Reads { attempt, at } if *at == size && self.given == self.taken => {
                let attempt = *attempt;
                *stage = Stage::Ends { attempt };
                Some(Ask::Copied { disk, attempt })
            }
            Stage::Reads { at, .. } => {
                let (group, end) = of;
                let timeline = world.options.timeline;
                if !self.is_up || self.retry.is_some_and(|retry| retry > now) {
                    return None;
                }
                self.retry = None;
                while *at < size && end.seeds_wanted() > 0 {
                    let Some((piece, lsn)) = world.piece(index(disk), *at) else {
                        self.retry = Some(now.after(RETRY_NS));
                        break;
                    };
                    let (frame, bytes) = seed((group, timeline, disk), *at, piece, lsn);
                    end.offer_seed(now, frame).expect("as many as are wanted");
                    (*at, self.given) = (*at + bytes, self.given + 1);
                }
                None
            }
            Stage::Asked | Stage::Ends { .. } => None,
        }
    }
}

/// A piece as a link carries it.
fn seed(of: (GroupId, Timeline, DiskId), at: u64, piece: Piece, lsn: Lsn) -> (EncodedFrame, u64) {
    let (group, timeline, disk) = of;
    // No frame has LSN 0, and what begins a timeline touches no disk.
    let lsn = lsn.max(Lsn(1));
    let parts: Vec<Part> = match piece {
        Piece::Data(data) => {
            let payload = Payload::new(at, data).expect("aligned");
            payload.into_parts(RecordKind::Repair, disk, lsn, WallTime(0)).collect()
        }
        Piece::Zeros(length) => {
            vec![Part::plain(RecordKind::Zero, Some(disk), Extent::new(at, length), lsn, WallTime(0))]
        }
    };
    let bytes = parts.iter().map(|part| part.extent.length).sum();
    let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
    let (prev_lsn, settled, epoch) = (Lsn::ZERO, Lsn::ZERO, ClockEpoch(1));
    let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes };
    (Encoder::new().encode(raw, group, Compression::None), bytes)
}

/// The disks of a group that begins.
pub fn all(world: &World) -> Vec<DiskId> {
    (0..world.disks.len()).map(|disk| spec(disk, 0).id).collect()
}
