//! Payloads: from messages to bytes. A frame's bytes and those of a call are passed on as they are.

use super::error::Unsendable;
use super::kind::MessageKind;
use super::layout::{
    AckFixed, CallFixed, FarewellFixed, GRANTS_PLAIN, HAS, HelloFixed, PulseFixed, WISHES_PLAIN, WelcomeFixed,
};
use crate::frame::EncodedFrame;
use crate::link::farewell::TEXT_MAX;
use crate::link::message::{CALL_HEADER_MAX, CALL_TAIL_MAX, Farewell, Hello, Message, Welcome};
use bytes::Bytes;
use zerocopy::{FromZeros, IntoBytes};

/// Adds the fixed part of the payload to `fixed` and what follows it as it is to `pieces`.
pub(super) fn payload(message: &Message, fixed: &mut Vec<u8>, pieces: &mut Vec<Bytes>) -> Result<(), Unsendable> {
    let kind = MessageKind::of(message);
    match message {
        Message::Hello(value) => hello(value, fixed)?,
        Message::Welcome(value) => welcome(value, fixed),
        Message::Frame(_, value) | Message::Seed(_, value) => frame(kind, value, pieces)?,
        Message::Ack(value) => {
            let mut bytes = AckFixed::new_zeroed();
            bytes.received.set(value.received.0);
            bytes.stored.set(value.stored.0);
            bytes.durable.set(value.durable.0);
            bytes.credit.set(value.credit);
            bytes.seeds.set(value.seeds);
            bytes.room = value.room as u8;
            fixed.extend_from_slice(bytes.as_bytes());
        }
        Message::Ping(value) => pulse([value.sent_ns, value.held_bytes, value.newest_ns], fixed),
        Message::Pong(value) => pulse([value.sent_ns, value.came_ns, value.left_ns], fixed),
        Message::Call(_, value) => call(kind, (value.kind, 0), [&value.header, &value.tail], fixed, pieces)?,
        Message::Answer(_, value) => {
            call(kind, (value.kind, value.status as u16), [&value.header, &value.tail], fixed, pieces)?;
        }
        Message::Error(value) | Message::Close(value) => farewell(value, TEXT_MAX, fixed),
    }
    Ok(())
}

fn within(kind: MessageKind, field: &'static str, found: u64, max: usize) -> Result<(), Unsendable> {
    let max = max as u64;
    if found <= max { Ok(()) } else { Err(Unsendable { kind, field, found, max }) }
}

fn hello(value: &Hello, out: &mut Vec<u8>) -> Result<(), Unsendable> {
    let mut fixed = HelloFixed::new_zeroed();
    fixed.version_min.set(*value.versions.start());
    fixed.version_max.set(*value.versions.end());
    fixed.connection.set(value.connection);
    fixed.connections.set(value.connections);
    fixed.features.set(value.features.0);
    fixed.session = *value.session.bytes();
    fixed.attempt.set(value.attempt);
    fixed.group = value.group.map_or([0; 16], |group| *group.bytes());
    fixed.timeline = value.timeline.map_or([0; 16], |timeline| *timeline.bytes());
    fixed.durable_seen.set(value.durable_seen.0);
    fixed.oldest_lsn.set(value.oldest.lsn.0);
    fixed.oldest_parts.set(value.oldest.parts);
    fixed.silence_ms.set(value.silence_ms);
    fixed.purpose = value.purpose as u8;
    fixed.flags = if value.plain { WISHES_PLAIN } else { 0 };
    out.extend_from_slice(fixed.as_bytes());
    for (field, text) in [("tenant", &value.tenant), ("name", &value.name), ("software", &value.software)] {
        within(MessageKind::Hello, field, text.len() as u64, u8::MAX.into())?;
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
    Ok(())
}

fn welcome(value: &Welcome, out: &mut Vec<u8>) {
    let mut fixed = WelcomeFixed::new_zeroed();
    fixed.version.set(value.version);
    fixed.connections.set(value.connections);
    fixed.silence_ms.set(value.silence_ms);
    fixed.features.set(value.features.0);
    fixed.credit.set(value.credit);
    if let Some(have) = value.have {
        fixed.flags |= HAS;
        fixed.have_lsn.set(have.lsn.0);
        fixed.have_parts.set(have.parts);
    }
    if let Some(key) = &value.data_key {
        fixed.flags |= GRANTS_PLAIN;
        fixed.data_key = key.0;
    }
    fixed.durable.set(value.durable.0);
    if let Some(lost) = &value.lost {
        fixed.lost_from.set(lost.start().0);
        fixed.lost_to.set(lost.end().0);
    }
    out.extend_from_slice(fixed.as_bytes());
}

fn frame(kind: MessageKind, value: &EncodedFrame, pieces: &mut Vec<Bytes>) -> Result<(), Unsendable> {
    within(kind, "frame", value.len(), kind.payload_max())?;
    pieces.push(value.head.clone());
    pieces.extend(value.body.iter().cloned());
    Ok(())
}

fn pulse([sent, second, third]: [u64; 3], out: &mut Vec<u8>) {
    let mut fixed = PulseFixed::new_zeroed();
    fixed.sent_ns.set(sent);
    fixed.second.set(second);
    fixed.third.set(third);
    out.extend_from_slice(fixed.as_bytes());
}

fn call(
    kind: MessageKind,
    (call_kind, status): (u16, u16),
    [header, tail]: [&Bytes; 2],
    out: &mut Vec<u8>,
    pieces: &mut Vec<Bytes>,
) -> Result<(), Unsendable> {
    within(kind, "header", header.len() as u64, CALL_HEADER_MAX)?;
    within(kind, "tail", tail.len() as u64, CALL_TAIL_MAX)?;
    let mut fixed = CallFixed::new_zeroed();
    fixed.kind.set(call_kind);
    fixed.status.set(status);
    fixed.header.set(header.len() as u32);
    out.extend_from_slice(fixed.as_bytes());
    pieces.extend([header, tail].into_iter().filter(|bytes| !bytes.is_empty()).cloned());
    Ok(())
}

/// The text is for people: what is too long of it is left out.
pub(in crate::link) fn farewell(value: &Farewell, text_max: usize, out: &mut Vec<u8>) {
    let text = &value.text[..value.text.floor_char_boundary(text_max)];
    let mut fixed = FarewellFixed::new_zeroed();
    fixed.code.set(value.code as u16);
    fixed.expected.set(value.expected);
    fixed.found.set(value.found);
    fixed.text.set(text.len() as u16);
    out.extend_from_slice(fixed.as_bytes());
    out.extend_from_slice(text.as_bytes());
}
