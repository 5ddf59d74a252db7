//! What the manifest has to say before and after a merge, and which moments it stops at.
//!
//! In this order, each durable before the next: [`create`](super::kept::create) the store of a moment that is to be kept,
//! [`begin`] names it and the merge, [`Merge`](super::merge::Merge) does it, [`end`] names the new bases and drops what is in them,
//! [`clean_up`](super::merge::clean_up). Both ends may drop disks that no moment has any more, whose files
//! [`remove_bases`](super::remove_bases) removes when that is durable. At any time [`release`] lets go of kept moments that nothing holds.

use super::catalogue::Catalogue;
use super::disks;
use crate::frame::Mark;
use crate::journal::{BaseInfo, Generation, KeptInfo, Manifest, SegmentInfo, StampedMoment, Writer};
use crate::media::{MediaError, Storage};
use crate::types::{DiskId, Lsn, Timeline};
use std::collections::BTreeSet;

/// The moments of the trunk that must not end. LSNs grow along it: they name them.
pub type Held = BTreeSet<Lsn>;

/// What pins, layers and sessions hold.
#[must_use]
pub fn held(manifest: &Manifest) -> Held {
    let pins = manifest.pins.iter().map(|pin| pin.lsn);
    let layers = manifest.retention.layers.iter().map(|layer| layer.lsn);
    let sessions = manifest.sessions.iter().map(|session| session.fork);
    pins.chain(layers).chain(sessions).collect()
}

/// The first stop on the way to `target`: a moment that is held, or the target. None: the bases are there, or records on the way
/// are of a disk that has no base yet ([`merge_limit`](super::merge_limit)).
#[must_use]
pub fn stop(manifest: &Manifest, held: &Held, target: Lsn) -> Option<Lsn> {
    let from = manifest.retention.oldest.map_or(Lsn::ZERO, |oldest| oldest.lsn);
    if target <= from || disks::merge_limit(manifest).is_some_and(|limit| target > limit) {
        return None;
    }
    Some(held.range(from.next()..=target).next().copied().unwrap_or(target))
}

/// What has to be kept of the moment that the bases are at, before a merge goes on from there; none where nothing holds it, or it
/// is kept already.
#[must_use]
pub fn to_keep(manifest: &Manifest, held: &Held, catalogue: &Catalogue) -> Option<KeptInfo> {
    let moment = manifest.retention.oldest.filter(|oldest| held.contains(&oldest.lsn))?;
    if manifest.kept.binary_search_by_key(&moment.lsn, |kept| kept.moment.lsn).is_ok() {
        return None;
    }
    let complete =
        disks::at(manifest, catalogue, moment.timeline, moment.lsn).into_iter().filter(|found| found.complete);
    let disks = complete.map(|found| (found.disk.id, found.disk.size)).collect();
    Some(KeptInfo { number: manifest.next_kept, moment, point: point_at(catalogue, &moment), disks })
}

/// What the point says that was made at a moment, if one was.
#[must_use]
pub fn point_at(catalogue: &Catalogue, moment: &StampedMoment) -> Option<Mark> {
    let points = catalogue.branch(moment.timeline)?.points();
    let at = points.binary_search_by_key(&moment.lsn, |point| point.id.lsn).ok()?;
    Some(points[at].mark.clone())
}

/// Names a merge, the point that was made where it ends ([`point_at`]), and the moment that is kept of where it begins.
pub fn begin(writer: &mut Writer, to: StampedMoment, point: Option<Mark>, keep: Option<KeptInfo>) -> Generation {
    writer.edit(move |manifest| {
        (manifest.merge, manifest.oldest_point) = (Some(to), point);
        if let Some(keep) = keep {
            manifest.next_kept = manifest.next_kept.max(keep.number + 1);
            manifest.kept.push(keep);
        }
    })
}

/// Names the bases that a merge made, and drops the segments and timelines that are in them whole.
pub fn end(writer: &mut Writer, bases: &[(DiskId, BaseInfo)]) -> Generation {
    let Some(moment) = writer.manifest().merge else { return writer.manifest().generation };
    let whole = writer.manifest().segments.iter().filter(|segment| is_whole(segment, moment.lsn));
    let numbers: Vec<_> = whole.map(|segment| segment.number).collect();
    writer.forget(&numbers);
    writer.edit(|manifest| {
        for (id, base) in bases {
            manifest.disks.iter_mut().filter(|disk| disk.id == *id).for_each(|disk| disk.base = Some(*base));
        }
        manifest.merge = None;
        manifest.retention.oldest = Some(moment);
        // Their files are removed by who cleans up: [`remove_bases`](super::remove_bases).
        disks::expired(manifest).into_iter().for_each(|disk| manifest.drop_disk(disk));
        // One of those that are merged says how old the oldest moment is.
        let merged = manifest.retention.arrivals.partition_point(|arrival| arrival.lsn <= moment.lsn);
        manifest.retention.arrivals.drain(..merged.saturating_sub(1));
        drop_timelines(manifest, moment.timeline);
    })
}

/// Whether all that a segment has lies up to there.
fn is_whole(segment: &SegmentInfo, upto: Lsn) -> bool {
    segment.summary().is_some_and(|summary| summary.last_lsn <= upto)
}

/// Takes out of a manifest what a merge will, as far as decisions about the next one go by it: for who asks what would come of it.
pub fn foresee(manifest: &mut Manifest, to: StampedMoment) {
    manifest.segments.retain(|segment| !is_whole(segment, to.lsn));
    let Manifest { segments, runs, .. } = manifest;
    let held = |first: u64, last: u64| segments.iter().any(|segment| (first..=last).contains(&segment.number));
    runs.retain(|run| held(run.first_segment, run.last_segment));
    (manifest.merge, manifest.retention.oldest) = (None, Some(to));
}

/// Drops the timelines before one that lie before every one that is still named: those between are the way to it.
fn drop_timelines(manifest: &mut Manifest, oldest: Timeline) {
    let mut merged = Vec::new();
    let mut next = manifest.timeline(oldest).and_then(|info| info.parent);
    while let Some(timeline) = next.filter(|timeline| !merged.contains(timeline)) {
        merged.push(timeline);
        next = manifest.timeline(timeline).and_then(|info| info.parent);
    }
    let segments = manifest.segments.iter().filter_map(|segment| Some(segment.summary()?.timeline));
    let kept = manifest.kept.iter().map(|kept| kept.moment.timeline);
    let pins = manifest.pins.iter().map(|pin| pin.timeline);
    let sessions = manifest.sessions.iter().map(|session| session.parent);
    let named: BTreeSet<_> = segments.chain(kept).chain(pins).chain(sessions).collect();
    // Segments that are not sealed are of the newest timeline, which is none of those.
    let way = merged.iter().rposition(|timeline| named.contains(timeline)).map_or(0, |last| last + 1);
    let gone: BTreeSet<_> = merged.drain(way..).collect();
    manifest.timelines.retain(|info| !gone.contains(&info.id));
}

/// Takes kept moments out of the manifest that nothing held needs: their numbers, whose stores are to be removed when that is
/// durable. Not while a merge is being done: it writes to the newest.
pub fn release(writer: &mut Writer, held: &Held) -> Option<(Generation, Vec<u64>)> {
    let needed = |kept: &KeptInfo| held.contains(&kept.moment.lsn);
    let manifest = writer.manifest();
    let free = manifest.kept.iter().take_while(|kept| !needed(kept)).map(|kept| kept.number);
    let numbers: Vec<_> = free.collect();
    if numbers.is_empty() {
        return None;
    }
    let generation = writer.edit(|manifest| {
        manifest.kept.drain(..numbers.len());
        disks::expired(manifest).into_iter().for_each(|disk| manifest.drop_disk(disk));
    });
    Some((generation, numbers))
}

/// Removes what a crash left of merges and kept moments that the manifest does not name. For an owner that begins.
///
/// # Errors
/// When the media fail.
pub fn clean_up(storage: &dyn Storage, manifest: &Manifest) -> Result<(), MediaError> {
    super::kept::remove_strays(storage, manifest)?;
    disks::remove_bases(storage, manifest)?;
    if manifest.merge.is_none() { super::merge::clean_up(storage) } else { Ok(()) }
}
