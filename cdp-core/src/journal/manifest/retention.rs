//! What the manifest says of the past: how old it is, where it begins, and which moments outlast it.

use super::codec::{disk_id, flag, list};
use crate::frame::{Mark, PointKinds};
use crate::journal::bytes::{FormatError, Put, Take};
use crate::journal::layout;
use crate::types::{DISK_MAX, DISKS_MAX, DiskId, Lsn, NAME_MAX, Stamp, Timeline};

/// Bounds on lists, far above what can be used.
const KEPT_MAX: usize = 1 << 20;
const ARRIVALS_MAX: usize = 1 << 16;
const LAYERS_MAX: usize = 1 << 16;
/// What was durable when is known to such a part of its age: so finely as any window may soon be, also one that is cut. So a list of
/// arrivals has some hundreds, for days and for years, and never 3,000.
const FINENESS: u64 = 32;

/// A moment of the group, with its stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StampedMoment {
    /// The branch of history.
    pub timeline: Timeline,
    /// Everything up to and with this record.
    pub lsn: Lsn,
    /// When it was.
    pub stamp: Stamp,
}

/// How far back history goes, and how old it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Milliseconds during which an owner has watched over the replica.
    pub elapsed_ms: u64,
    /// The moment that the bases hold; none before the first merge.
    pub oldest: Option<StampedMoment>,
    /// What was durable when; both grow.
    pub arrivals: Vec<Arrival>,
    /// Long-term points, oldest first.
    pub layers: Vec<LayerInfo>,
}

/// What was durable at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// [`Retention::elapsed_ms`] then.
    pub elapsed_ms: u64,
    /// Everything up to here.
    pub lsn: Lsn,
}

impl Arrival {
    /// Joins those before it, if more is durable than they say. Those between two go which, as seen from now, are no further apart than a
    /// small part of the age of the younger: what lies between is older than that one says, so a little is kept longer, and
    /// nothing shorter.
    pub fn join(self, list: &mut Vec<Self>) {
        if list.last().is_some_and(|last| last.lsn >= self.lsn || last.elapsed_ms > self.elapsed_ms) {
            return;
        }
        list.push(self);
        // The first says how old the oldest moment is: it stays.
        let mut last = 0;
        for at in 1..list.len() {
            let near = list.get(at + 1).is_some_and(|after| {
                let age_ms = self.elapsed_ms.saturating_sub(after.elapsed_ms);
                after.elapsed_ms.saturating_sub(list[last].elapsed_ms) <= age_ms / FINENESS
            });
            if !near {
                last += 1;
                list[last] = list[at];
            }
        }
        list.truncate(last + 1);
    }
}

/// That history was cut for lack of room: it ends there, and not where the window does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutInfo {
    /// The oldest moment since then; where another one is, this says nothing any more.
    pub lsn: Lsn,
    /// What there was no room in.
    pub by: CutBy,
}

/// What history was cut by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CutBy {
    /// The journal's bound.
    Bytes = 1,
    /// The media.
    Room = 2,
    /// The replica's quota.
    Quota = 3,
}

/// A long-term point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerInfo {
    /// The branch of history.
    pub timeline: Timeline,
    /// The moment.
    pub lsn: Lsn,
    /// [`Retention::elapsed_ms`] when it was made.
    pub elapsed_ms: u64,
}

/// A moment older than the bases, and the number of the store that keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptInfo {
    /// Names the store; never used again.
    pub number: u64,
    /// The moment.
    pub moment: StampedMoment,
    /// What the point said that was made there, if one was.
    pub point: Option<Mark>,
    /// The disks that were complete then, and their sizes in bytes: the records that say so are gone.
    pub disks: Vec<(DiskId, u64)>,
}

impl Retention {
    /// The most long-term points that are listed; no policy may ask for more.
    pub const LAYERS_MAX: usize = LAYERS_MAX;

    /// Takes what was durable when, and lets go of what need not be known so finely any more.
    pub fn arrive(&mut self, arrivals: &[Arrival]) {
        arrivals.iter().for_each(|arrival| arrival.join(&mut self.arrivals));
    }

    /// Adds a long-term point, unless it is there. Where the list is full, which no policy asks for, the oldest goes.
    pub fn add_layer(&mut self, layer: LayerInfo) {
        if self.layers.last().is_some_and(|last| last.lsn >= layer.lsn) {
            return;
        }
        if self.layers.len() >= LAYERS_MAX {
            self.layers.remove(0);
        }
        self.layers.push(layer);
    }

    /// Drops long-term points that are so old.
    pub fn expire_layers(&mut self, keep_ms: u64) {
        let elapsed_ms = self.elapsed_ms;
        let old = self.layers.partition_point(|layer| elapsed_ms.saturating_sub(layer.elapsed_ms) >= keep_ms);
        self.layers.drain(..old);
    }

    /// The list that is longer than a reader takes, if one is.
    pub(super) fn too_long(&self) -> Option<&'static str> {
        let lists = [("arrivals", self.arrivals.len(), ARRIVALS_MAX), ("layers", self.layers.len(), LAYERS_MAX)];
        lists.into_iter().find(|(_, count, max)| count > max).map(|(what, ..)| what)
    }

    pub(super) fn put(&self, put: &mut Put) {
        put.u64(self.elapsed_ms).u8(u8::from(self.oldest.is_some()));
        if let Some(oldest) = &self.oldest {
            oldest.put(put);
        }
        list(put, &self.arrivals, |put, arrival| {
            put.u64(arrival.elapsed_ms).u64(arrival.lsn.0);
        });
        list(put, &self.layers, |put, layer| {
            put.bytes(layer.timeline.bytes()).u64(layer.lsn.0).u64(layer.elapsed_ms);
        });
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            elapsed_ms: take.u64()?,
            oldest: match take.kind("oldest moment", flag)? {
                true => Some(StampedMoment::take(take)?),
                false => None,
            },
            arrivals: take.list("arrivals", ARRIVALS_MAX, |take| {
                Ok(Arrival { elapsed_ms: take.u64()?, lsn: Lsn(take.u64()?) })
            })?,
            layers: take.list("layers", LAYERS_MAX, |take| {
                Ok(LayerInfo {
                    timeline: take.id("timeline", Timeline::new)?,
                    lsn: Lsn(take.u64()?),
                    elapsed_ms: take.u64()?,
                })
            })?,
        })
    }
}

impl StampedMoment {
    pub(super) fn put(&self, put: &mut Put) {
        put.bytes(self.timeline.bytes()).u64(self.lsn.0).u32(self.stamp.epoch.0).u64(self.stamp.time.0);
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let (timeline, lsn) = (take.id("timeline", Timeline::new)?, Lsn(take.u64()?));
        Ok(Self { timeline, lsn, stamp: layout::stamp(take)? })
    }
}

pub(super) fn put_point(put: &mut Put, point: &Mark) {
    put.u8(point.kinds.bits()).u8(u8::from(point.on_barrier)).text(&point.label);
}

pub(super) fn take_point(take: &mut Take<'_>) -> Result<Mark, FormatError> {
    Ok(Mark {
        kinds: PointKinds::from_bits(take.u8()?),
        on_barrier: take.kind("on_barrier", flag)?,
        label: take.text("label", NAME_MAX)?,
    })
}

pub(super) fn put_cut(put: &mut Put, cut: &CutInfo) {
    put.u64(cut.lsn.0).u8(cut.by as u8);
}

pub(super) fn take_cut(take: &mut Take<'_>) -> Result<CutInfo, FormatError> {
    let by = |code| match code {
        1 => Some(CutBy::Bytes),
        2 => Some(CutBy::Room),
        3 => Some(CutBy::Quota),
        _ => None,
    };
    Ok(CutInfo { lsn: Lsn(take.u64()?), by: take.kind("what history was cut by", by)? })
}

pub(super) fn put_kept(put: &mut Put, next: u64, kept: &[KeptInfo]) {
    put.u64(next);
    list(put, kept, |put, kept| {
        put.u64(kept.number);
        kept.moment.put(put);
        put.u8(u8::from(kept.point.is_some()));
        if let Some(point) = &kept.point {
            put_point(put, point);
        }
        list(put, &kept.disks, |put, (disk, size)| {
            put.u16(disk.get()).u64(*size);
        });
    });
}

/// Whether no reader takes so many kept moments.
pub(super) fn too_many_kept(kept: &[KeptInfo]) -> bool {
    kept.len() > KEPT_MAX
}

pub(super) fn take_kept(take: &mut Take<'_>) -> Result<(u64, Vec<KeptInfo>), FormatError> {
    let next = take.u64_if("next kept moment", |value| value > 1)?;
    let kept = take.list("kept moments", KEPT_MAX, |take| {
        Ok(KeptInfo {
            number: take.u64_if("kept moment", |number| (1..next).contains(&number))?,
            moment: StampedMoment::take(take)?,
            point: match take.kind("point", flag)? {
                true => Some(take_point(take)?),
                false => None,
            },
            disks: take.list("disks of a kept moment", DISKS_MAX, |take| {
                Ok((disk_id(take)?, take.u64_if("disk size", |value| value <= DISK_MAX)?))
            })?,
        })
    })?;
    let ordered = |pair: &[KeptInfo]| pair[0].number < pair[1].number && pair[0].moment.lsn < pair[1].moment.lsn;
    if let Some(pair) = kept.windows(2).find(|pair| !ordered(pair)) {
        return Err(take.field("kept moments out of order", pair[1].number));
    }
    Ok((next, kept))
}
