//! Seeding: the first copy of a disk, straight into base and sidecar while the guest goes on writing.
//!
//! This side reads the source ahead; the replica's side checksums, writes and syncs. Holes and zeros cost nothing. What the guest
//! writes meanwhile is in the journal, above the base.

use crate::device::Device;
use crate::far::{PIECE, SeedEnd, Seeding, UNREACHABLE};
use crate::report::Problem;
use crate::threads::pause;
use cdp_core::buffer::BufferPool;
use cdp_core::types::{BLOCK, Lsn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[cfg(test)]
mod tests;

/// Pieces whose memory is kept: what is under way on a fast link.
const RETAINED: usize = 32;
/// How long a read that failed, or media that dropped what was written, are left alone.
const RETRY: Duration = Duration::from_millis(500);

/// How far the seeding of a group is, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all disks.
    pub total: AtomicU64,
    /// Bytes that are done, holes counted.
    pub done: Arc<AtomicU64>,
    /// Reads of a source that failed and are tried again.
    pub failing: AtomicU64,
}

impl Progress {
    /// Whether a first copy is, or was, made since the start.
    pub(super) fn is_of_this_start(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }
}

/// A disk to be seeded.
pub(super) struct Seed<'a> {
    pub(super) source: &'a dyn Device,
    /// An LSN up to which everything is in what is read next: settled at the source.
    pub(super) lsn: &'a dyn Fn() -> Lsn,
    /// Begins at the replica's side, for a disk of so many bytes.
    pub(super) begin: &'a dyn Fn(u64) -> Result<Box<dyn Seeding>, Problem>,
    pub(super) progress: &'a Progress,
    /// Set when the protector is to end; the seeding is then begun anew at the next start.
    pub(super) stop: &'a AtomicBool,
}

/// Copies the disk; whether to its end: else it was stopped.
///
/// # Errors
/// When the replica's media fail. A failing source, and room, are waited for.
pub(super) fn run(seed: &Seed<'_>) -> Result<bool, Problem> {
    let before = seed.progress.done.load(Ordering::Relaxed);
    loop {
        let size = seed.source.size();
        let mut copy = match (seed.begin)(size) {
            Ok(copy) => copy,
            // Nobody is there now: who takes his place is waited for.
            Err(problem) if problem.code == UNREACHABLE => {
                if seed.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                pause(seed.stop, RETRY);
                continue;
            }
            // A disk that has left meanwhile is not copied.
            Err(_) if seed.stop.load(Ordering::Relaxed) => return Ok(false),
            Err(problem) => return Err(problem),
        };
        read(seed, size, copy.as_mut());
        match copy.end()? {
            SeedEnd::Whole => return Ok(true),
            SeedEnd::Stopped | SeedEnd::Again if seed.stop.load(Ordering::Relaxed) => return Ok(false),
            // Where it was not stopped from here, the line was cut, or who keeps the replica has ended: it goes on where it is durable.
            SeedEnd::Stopped | SeedEnd::Again => {
                seed.progress.done.store(before, Ordering::Relaxed);
                pause(seed.stop, RETRY);
            }
        }
    }
}

/// Reads the source from where the copy begins to the last byte; ends early when told to stop.
fn read(seed: &Seed<'_>, size: u64, copy: &mut dyn Seeding) {
    let memory = BufferPool::new(PIECE as usize, RETAINED);
    let mut at = copy.position();
    seed.progress.done.fetch_add(at, Ordering::Relaxed);
    while at < size && !seed.stop.load(Ordering::Relaxed) {
        let Some(run) = next_run(seed, at, size) else { continue };
        // A piece ends with a block: what remains of one at a run's end is read with the next.
        let lsn = (seed.lsn)();
        let taken = if run.zero {
            at += run.length;
            copy.zeros(run.length, lsn)
        } else {
            let length = run.length.min(PIECE) as usize;
            let mut buffer = memory.take();
            if seed.source.read(at, &mut buffer[..length]).is_err() {
                wait(seed);
                continue;
            }
            at += length as u64;
            copy.data(vec![buffer.freeze(length)], lsn)
        };
        if !taken {
            return;
        }
    }
}

struct Run {
    length: u64,
    zero: bool,
}

/// What comes at `at`: whole blocks, or everything up to the disk's end.
fn next_run(seed: &Seed<'_>, at: u64, size: u64) -> Option<Run> {
    let Ok(found) = seed.source.block_status(at, size - at, 1) else {
        wait(seed);
        return None;
    };
    let first = found.first()?;
    let end = (at + first.length).min(size);
    let whole = if end == size { end } else { end / BLOCK * BLOCK };
    if first.zero && whole > at {
        return Some(Run { length: whole - at, zero: true });
    }
    // A hole that is no whole block is read like data, up to the end of its block.
    let end = if end == size { end } else { end.next_multiple_of(BLOCK).min(size) };
    Some(Run { length: end - at, zero: false })
}

/// A read failed: it is tried again after a while.
fn wait(seed: &Seed<'_>) {
    seed.progress.failing.fetch_add(1, Ordering::Relaxed);
    pause(seed.stop, RETRY);
}
