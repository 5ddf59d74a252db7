//! The way of a first copy's pieces over a link.

use super::task::Command;
use super::{Shared, State, lock};
use crate::far::{SeedHandle, SeedWay};
use crate::services::seeds::{Home, SEED_BYTES, of_data, of_zeros};
use bytes::Bytes;
use cdp_core::frame::{EncodedFrame, Encoder};
use cdp_core::types::{DiskId, Lsn};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes on their way that the other end has not taken, at most.
const UNDER_WAY_MAX: u64 = 16 << 20;
/// How often it is looked whether the copy is to end.
const LOOK: Duration = Duration::from_millis(100);

/// One first copy, in one session.
pub(super) struct Way {
    shared: Arc<Shared>,
    handle: SeedHandle,
    disk: DiskId,
    session: u64,
    /// Where the next bytes belong.
    at: u64,
    /// Numbers of seeds that were given and are not known to be taken, and what of the disk each is.
    under_way: VecDeque<(u64, u64)>,
    under_way_bytes: u64,
    encoder: Encoder,
}

impl Way {
    pub(super) fn new(shared: Arc<Shared>, disk: DiskId, position: u64, handle: SeedHandle) -> Self {
        let session = lock(&shared.state).session;
        let (under_way, encoder) = (VecDeque::new(), Encoder::new());
        Self { shared, handle, disk, session, at: position, under_way, under_way_bytes: 0, encoder }
    }

    /// Waits until no more than `most` bytes are on their way. `false`: the session has ended, or the copy is to end.
    fn wait(&mut self, most: u64) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        loop {
            if state.ended || state.session != self.session || !state.is_up || self.handle.stop.load(Ordering::Relaxed)
            {
                return false;
            }
            self.count(&state);
            if self.under_way_bytes <= most {
                return true;
            }
            state = wait(&shared, state);
        }
    }

    /// Counts what was taken since.
    fn count(&mut self, state: &State) {
        while let Some((_, bytes)) = self.under_way.pop_front_if(|(number, _)| *number <= state.seeds_taken) {
            self.under_way_bytes -= bytes;
            self.handle.done.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn home(&self) -> Option<Home> {
        let (group, timeline) = lock(&self.shared.state).begun?;
        Some(Home { group, timeline, disk: self.disk })
    }

    fn give(&mut self, frame: EncodedFrame, bytes: u64) -> bool {
        if !self.wait(UNDER_WAY_MAX) {
            return false;
        }
        let mut state = lock(&self.shared.state);
        if state.session != self.session {
            return false;
        }
        // Numbered and sent under one lock: several disks may be copied at once.
        state.seeds_given += 1;
        self.under_way.push_back((state.seeds_given, bytes));
        self.under_way_bytes += bytes;
        self.at += bytes;
        self.shared.commands.send(Command::Seed { session: self.session, frame }).is_ok()
    }
}

fn wait<'a>(shared: &Shared, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    shared.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

impl SeedWay for Way {
    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        let Some(home) = self.home() else { return false };
        data.into_iter().all(|mut data| {
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(SEED_BYTES as usize));
                let bytes = piece.len() as u64;
                let frame = of_data(&mut self.encoder, home, self.at, piece, lsn);
                if !frame.is_some_and(|frame| self.give(frame, bytes)) {
                    return false;
                }
            }
            true
        })
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        let Some(home) = self.home() else { return false };
        let frame = of_zeros(&mut self.encoder, home, self.at, length, lsn);
        self.give(frame, length)
    }

    fn flush(&mut self) -> bool {
        self.wait(0)
    }
}
