//! Whose calls are answered at once.
//!
//! An answer may wait for media or for a directory's owner, so each has one of the runtime's blocking threads while it is made, and of
//! these there are 512. What a tenant asks beyond its share waits in its own session, which has a bound of its own
//! ([`CALLS_MAX`](cdp_core::link::message::CALLS_MAX)): nobody else waits for it, and neither do the tenant's own filters for who reads.

use crate::far::CallKind;
use cdp_core::link::message::Call;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of a tenant's readers that are answered at once, at most: what one reader has under way.
const READERS_OF_TENANT: usize = 32;
/// The same of its filters.
const FILTERS_OF_TENANT: usize = 32;
/// Calls of everybody's readers at once, at most: tenants take turns beyond it.
const READERS: usize = 256;
/// The same of filters. Both together leave threads for what opens and ends replicas.
const FILTERS: usize = 192;

#[derive(Debug)]
struct Shares {
    readers: Arc<Semaphore>,
    filters: Arc<Semaphore>,
}

impl Shares {
    fn new(readers: usize, filters: usize) -> Self {
        Self { readers: Arc::new(Semaphore::new(readers)), filters: Arc::new(Semaphore::new(filters)) }
    }

    async fn take(&self, is_reader: bool) -> Option<OwnedSemaphorePermit> {
        let share = if is_reader { &self.readers } else { &self.filters };
        // They are never closed.
        Arc::clone(share).acquire_owned().await.ok()
    }
}

/// Of a host.
#[derive(Debug)]
pub(super) struct Turns(Shares);

/// Of one of its tenants, shared by all of the tenant's groups.
#[derive(Debug)]
pub(super) struct TenantTurns {
    all: Arc<Turns>,
    own: Shares,
}

/// May be answered, for as long as it is there.
#[derive(Debug)]
pub(super) struct Turn {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Shares::new(READERS, FILTERS)))
    }

    pub(super) fn of_tenant(self: &Arc<Self>) -> Arc<TenantTurns> {
        Arc::new(TenantTurns { all: Arc::clone(self), own: Shares::new(READERS_OF_TENANT, FILTERS_OF_TENANT) })
    }
}

impl TenantTurns {
    /// Waits for the call's turn: first among its tenant's, so that no tenant stands in the common line with more than its share.
    pub(super) async fn turn(&self, call: &Call) -> Option<Turn> {
        let is_reader = CallKind::of(call.kind).is_some_and(CallKind::is_of_reader);
        let own = self.own.take(is_reader).await?;
        Some(Turn { _own: own, _of_all: self.all.0.take(is_reader).await? })
    }
}
