//! Re-reading the source: for resyncs, failed writes and full checks.
//!
//! Where the filter allows it, what was read is compared with the replica, and only blocks that differ are recorded.

use super::engine::Engine;
use super::sources::Sources;
use super::watch::Inbox;
use crate::device::Device;
use crate::far::Far;
use crate::threads::step_back;
use bytes::Bytes;
use cdp_core::capture::{Failed, Reread};
use cdp_core::frame::Payload;
use cdp_core::types::Extent;

/// Carries out re-reads until the queue is closed, on as many threads as call this.
pub(super) fn run(sources: &Sources, far: &dyn Far, engine: &Engine, queue: &Inbox<Reread>) {
    step_back();
    while let Some((reread, _taken)) = queue.take() {
        let result = match sources.get(reread.disk) {
            Some(held) => read(held.device.as_ref(), far, &reread),
            None => Err(Failed { errno: libc::ENODEV }),
        };
        let done = engine.with(|filter, now| filter.reread_done(now, reread.token, result));
        debug_assert!(done.is_ok(), "{done:?}");
    }
}

fn read(source: &dyn Device, far: &dyn Far, reread: &Reread) -> Result<Vec<Payload>, Failed> {
    let range = reread.extent;
    let mut data = vec![0; range.length as usize];
    let failed = |error: std::io::Error| Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) };
    // From the disk, not from a cache that may hold what a failed flush did not bring down.
    source.read_media(range.offset, &mut data).map_err(failed)?;
    let data = Bytes::from(data);
    let known = reread.compare_at.and_then(|lsn| far.differing(reread.disk, range, lsn, &data));
    // Not comparable, or the replica cannot be read there: everything is recorded, which is always right.
    let runs = known.unwrap_or_else(|| vec![range]);
    let payload = |run: Extent| {
        let run = run.intersect(&range)?;
        let from = (run.offset - range.offset) as usize;
        Payload::new(run.offset, data.slice(from..from + run.length as usize)).ok()
    };
    Ok(runs.into_iter().filter_map(payload).collect())
}
