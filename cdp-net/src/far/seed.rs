//! The first copy of a disk: read where the filter is, written where the replica is.

use super::ids;
use crate::report::Problem;
use bytes::Bytes;
use cdp_core::types::{DiskId, Lsn};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Bytes of a piece, at most.
pub const PIECE: u64 = 1 << 20;

/// What a problem is called where a first copy is not whole that was taken to be: it has to be made again.
pub const NOT_SEEDED: &str = "not-seeded";

/// A first copy that begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeedBegin {
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Its size, in bytes.
    pub size: u64,
    /// The number of its first seed in the session of a link: those before are of an earlier attempt. No matter within a process.
    pub first: u64,
}

/// Where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeedBegun {
    /// What lies before this offset is there already, as far as that is known: where it takes long to read it back, and something of it
    /// turns out to be damaged, the copy ends with [`SeedEnd::Again`], and begins anew with the next attempt.
    pub position: u64,
}

/// Which first copy is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeedOf {
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
}

/// How a first copy ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedEnd {
    /// It is whole and durable.
    Whole,
    /// It was cut off, or what the media dropped of it is not known: it goes on where it is known to be durable.
    Again,
    /// It was stopped.
    Stopped,
}

/// Whose first copies are whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seeded {
    /// The disks, all in one edit.
    #[serde(with = "ids::disks")]
    pub disks: Vec<DiskId>,
}

/// What both ends of a first copy see of each other at any time.
#[derive(Clone, Debug, Default)]
pub struct SeedHandle {
    /// It is to end: set by the filter's side, also while the other one waits for room.
    pub stop: Arc<AtomicBool>,
    /// Bytes of all copies that are written, holes counted: added to by the replica's side.
    pub done: Arc<AtomicU64>,
}

/// A first copy that is being made: what the disk holds, from [`Seeding::position`] to its end, in ascending order. Each call may
/// wait until there is room; then it gives `false` where there is no use in going on, and [`Seeding::end`] says why.
pub trait Seeding: Send {
    /// Where the next bytes belong.
    fn position(&self) -> u64;

    /// The next bytes, [`PIECE`] of them at most, in pieces of whole blocks. Everything up to `lsn` in the write order is in them.
    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool;

    /// The next `length` bytes are zeros.
    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool;

    /// Nothing more comes: waits until what came is durable.
    ///
    /// # Errors
    /// When the replica's media failed.
    fn end(self: Box<Self>) -> Result<SeedEnd, Problem>;
}
