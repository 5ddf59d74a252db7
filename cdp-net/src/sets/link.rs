//! Members in other processes: the taker of the cuts dials each of them, and both say what they have to say by calls.
//!
//! The machines of the link carry it, over TLS with pinned certificates on the hosts' own network. Nothing is repeated here that was lost: the
//! taker says again what is not answered, and a member answers again. A session is of one group, by its name: its first call
//! says of which set the taker takes the cuts, and the answer which group the name stands for.

pub mod member;
pub mod taker;

use super::words::CALL;
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call, CallStatus};

/// Orders, or reports, that wait to be sent; one more is lost.
const WAITING_MAX: usize = 256;
/// A call whose answer does not come for so long is forgotten. What it said is old by then.
const CALL_NS: u64 = 1_000_000_000;
/// After so long without a word the other side is taken for dead, and dialled again.
const SILENCE_MS: u32 = 2_000;
/// A member that cannot be reached, or that says no, is tried again so often at least.
const RETRY_NS: u64 = 1_000_000_000;

fn call(kind: u16, header: Bytes) -> Call {
    Call { kind, header, tail: Bytes::new() }
}

fn answer(kind: u16, status: CallStatus, header: Bytes) -> Answer {
    Answer { kind, status, header, tail: Bytes::new() }
}

/// The answer to a call with an order or a report, and what it said.
fn heard<T>(call: &Call, of: impl Fn(&[u8]) -> Option<T>) -> (Answer, Option<T>) {
    let said = if call.kind == CALL { of(&call.header) } else { None };
    let status = match said {
        Some(_) => CallStatus::Done,
        None if call.kind == CALL => CallStatus::Refused,
        None => CallStatus::UnknownKind,
    };
    (answer(call.kind, status, Bytes::new()), said)
}
