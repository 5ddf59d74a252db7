//! What the parts of a chain have in common, and what goes between them.

use super::calls::Ask;
use cdp_core::capture::REREAD_BYTES_MAX;
use cdp_core::link::message::{Farewell, Hello, Message};
use cdp_core::link::source::{ConnId, Dial};
use cdp_core::types::MonoTime;

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000 * MS;

/// The longest write of a guest in most worlds, in bytes.
pub const WRITE: u64 = 256 << 10;

/// Bytes of frames that a part holds, at most, where no disk has more bytes than this: the longest record, and two frames. A frame
/// that ends within a record goes only with all of that record. The longest is a write of a guest, or a repair of what was read again.
pub fn window(disk_bytes_max: u64) -> u64 {
    let repair = disk_bytes_max.min(REREAD_BYTES_MAX);
    repair.max(WRITE) + 2 * FRAME
}
/// No frame is longer, with its head.
pub const FRAME: u64 = 290_000;

/// Which neighbour something is about: the one nearer to the source, or the one nearer to the replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    Above,
    Below,
}

/// What the network tells a part.
#[derive(Clone, Debug)]
pub enum In {
    Connected(ConnId, Dial),
    ConnectFailed(Dial),
    Accepted(ConnId, Box<Hello>),
    Message(ConnId, Message),
    Sent(ConnId, u64),
    /// A part of a long message came.
    Heard(ConnId),
    Gone(ConnId),
}

/// What a part wants of the network.
#[derive(Debug)]
pub enum Out {
    Connect(Dial),
    Send(Side, ConnId, Message),
    Close(Side, ConnId, Option<Farewell>),
    /// Of the filter's host: another timeline has to be opened at the replica.
    Begin,
    /// Of the filter's host: a question to whoever keeps the replica.
    Ask(Ask),
}

/// A part of the chain. Times are its own clock's.
pub trait Part {
    fn handle(&mut self, now: MonoTime, from: Side, input: In);
    fn timer(&mut self, now: MonoTime);
    fn deadline(&self) -> Option<MonoTime>;
    fn poll(&mut self, now: MonoTime) -> Option<Out>;
}
