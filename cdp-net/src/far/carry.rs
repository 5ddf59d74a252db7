//! The calls of the seam as a link carries them: asked at one end, answered at the other.

use super::CallKind;
use crate::report::{Problem, ProblemClass};
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call, CallStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a header, at most, as the link has it.
pub const HEADER_MAX: usize = 64 << 10;

/// What a problem is called where nobody is at the other end, for now.
pub const UNREACHABLE: &str = "unreachable";

/// Asks who is at the other end, and waits for the answer.
pub trait Caller: Send + Sync {
    /// The answer, whatever became of the call: where nobody can be reached, that is one too.
    fn call(&self, call: Call) -> Answer;
}

/// Asks, and reads the answer: its header and its tail.
///
/// # Errors
/// What the other end refuses, or why it cannot be asked.
pub fn ask<A: DeserializeOwned>(
    caller: &dyn Caller,
    kind: CallKind,
    question: &impl Serialize,
) -> Result<(A, Bytes), Problem> {
    let call = Call { kind: kind as u16, header: header(question)?, tail: Bytes::new() };
    answered(kind, caller.call(call))
}

/// Reads an answer: its header and its tail.
///
/// # Errors
/// As [`ask`].
pub fn answered<A: DeserializeOwned>(kind: CallKind, answer: Answer) -> Result<(A, Bytes), Problem> {
    let Answer { status, header, tail, .. } = answer;
    let unreadable = |_| failed("answer", format!("the other side's answer to {kind:?} is none"));
    let problem = match status {
        CallStatus::Done => return Ok((serde_json::from_slice(&header).map_err(unreadable)?, tail)),
        CallStatus::Refused => serde_json::from_slice(&header).map_err(unreadable)?,
        CallStatus::UnknownKind => failed("unknown-call", format!("the other side does not know the call {kind:?}")),
        CallStatus::Unreachable => failed(UNREACHABLE, format!("the other side cannot be reached with {kind:?}")),
        CallStatus::TimedOut => failed(UNREACHABLE, format!("the other side took too long to answer {kind:?}")),
    };
    Err(problem)
}

fn failed(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Failed, code, message)
}

/// A call's header, or an answer's.
///
/// # Errors
/// When it is too long.
pub fn header(value: &impl Serialize) -> Result<Bytes, Problem> {
    let bytes = serde_json::to_vec(value).map_err(|error| failed("call", error.to_string()))?;
    if bytes.len() > HEADER_MAX {
        return Err(failed(
            "call",
            format!("a header of {} bytes is too long: {HEADER_MAX} are the most", bytes.len()),
        ));
    }
    Ok(bytes.into())
}

/// Reads a call's header.
pub(crate) fn question<Q: DeserializeOwned>(call: &Call) -> Result<Q, Problem> {
    if call.header.len() > HEADER_MAX {
        return Err(failed("call", format!("a header of {} bytes is too long", call.header.len())));
    }
    serde_json::from_slice(&call.header).map_err(|error| {
        Problem::new(ProblemClass::Usage, "call", format!("the header of a call of kind {}: {error}", call.kind))
    })
}

/// What is told of a call: a header, and bytes that need no words.
pub(crate) type Told = Result<(Bytes, Vec<u8>), Problem>;

/// An answer without a tail.
pub(crate) fn tell(value: &impl Serialize) -> Told {
    Ok((header(value)?, Vec::new()))
}

/// The same with one.
pub(crate) fn tell_with(value: &impl Serialize, tail: Vec<u8>) -> Told {
    Ok((header(value)?, tail))
}

/// The answer to a call; none told: whoever was asked does not know it.
pub(crate) fn answer(call: &Call, told: Option<Told>) -> Answer {
    let empty = |status| Answer { kind: call.kind, status, header: Bytes::new(), tail: Bytes::new() };
    match told {
        None => empty(CallStatus::UnknownKind),
        Some(Ok((header, tail))) => Answer { header, tail: tail.into(), ..empty(CallStatus::Done) },
        // Where the problem itself is too long to be told, it is said that there is one.
        Some(Err(problem)) => {
            let short = || header(&failed(&problem.code, "it was refused, for a reason too long to be told".into()));
            let header = header(&problem).or_else(|_| short()).unwrap_or_default();
            Answer { header, ..empty(CallStatus::Refused) }
        }
    }
}
