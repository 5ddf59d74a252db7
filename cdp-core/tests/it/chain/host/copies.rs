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

/// A disk to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Order {
    disk: DiskId,
    /// It joined the group. It has a base only when the records up to this LSN are durable, which say that it is not complete.
    announced: Option<Lsn>,
}

/// First copies of a group's disks, and of those that join.
pub struct Copies {
    waiting: VecDeque<Order>,
    now: Option<(Order, Stage)>,
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
        let waiting = disks.into_iter().map(|disk| Order { disk, announced: None }).collect();
        Self { waiting, now: None, is_up: false, given: 0, taken: 0, retry: None, compares: false, told }
    }

    /// A disk joined: it is copied when those before it are. `announced` are the records that say so.
    pub fn join(&mut self, disk: DiskId, announced: Lsn) {
        self.waiting.push_back(Order { disk, announced: Some(announced) });
    }

    /// A disk leaves: nobody copies it any more.
    pub fn forget(&mut self, disk: DiskId) {
        self.waiting.retain(|order| order.disk != disk);
        self.now = self.now.filter(|(order, _)| order.disk != disk);
    }

    /// Those whose copies are not through.
    fn orders(&self) -> impl Iterator<Item = &Order> {
        self.waiting.iter().chain(self.now.as_ref().map(|(order, _)| order))
    }

    /// Bytes of disks whose copies are not through.
    pub fn left(&self, world: &World) -> u64 {
        self.orders().map(|order| world.sizes[index(order.disk)] as u64 * SECTOR).sum()
    }

    /// The disks of the group are copied.
    pub fn are_done(&self) -> bool {
        self.told
    }

    /// And those that joined.
    pub fn are_all_done(&self) -> bool {
        self.told && self.orders().next().is_none()
    }

    pub fn is_uncopied(&self, disk: DiskId) -> bool {
        self.orders().any(|order| order.disk == disk)
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
        let asked = |now: &&mut (Order, Stage)| now.0.disk == disk && now.1 == Stage::Asked;
        if let Some((_, stage)) = self.now.as_mut().filter(asked) {
            *stage = Stage::Reads { attempt, at: position };
        }
    }

    pub fn ended(&mut self, world: &mut World, of: (DiskId, u64), whole: Option<Whole>) {
        let (disk, attempt) = of;
        let Some((order, _)) = self.now.filter(|now| now.0.disk == disk && now.1 == Stage::Ends { attempt }) else {
            return;
        };
        self.now = match whole {
            Some(whole) => {
                self.compares |= whole.brought;
                world.set_base(index(disk), whole.base);
                if order.announced.is_some() {
                    world.joined(index(disk));
                }
                None
            }
            None => Some((order, Stage::Asks)),
        };
    }

    pub fn next_deadline(&self) -> Option<MonoTime> {
        let reads = matches!(self.now, Some((_, Stage::Reads { .. })));
        self.retry.filter(|_| self.is_up && reads)
    }

    /// Goes on; gives what is to be asked.
    pub fn go_on(&mut self, now: MonoTime, world: &mut World, of: (GroupId, &mut SourceEnd)) -> Option<Ask> {
        if self.now.is_none() {
            self.now = self.waiting.pop_front().map(|order| (order, Stage::Asks));
        }
        let Some((Order { disk, announced }, stage)) = &mut self.now else {
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
                if announced.is_some_and(|announced| !world.has_reached(announced)) {
                    return None;
                }
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
