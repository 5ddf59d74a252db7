//! Payloads: from bytes, trusted for nothing, to messages. What is read is what would be written again, byte for byte.

use super::error::WireError;
use super::kind::MessageKind;
use super::layout::{
    AckFixed, CallFixed, FarewellFixed, GRANTS_PLAIN, HAS, HelloFixed, PulseFixed, WISHES_PLAIN, WelcomeFixed,
};
use crate::frame::EncodedFrame;
use crate::link::farewell::TEXT_MAX;
use crate::link::message::{
    Ack, Answer, CALL_HEADER_MAX, CALL_TAIL_MAX, Call, CallStatus, Code, DATA_CONNECTIONS_MAX, DataKey, FarRoom,
    Farewell, Features, Hello, Message, Ping, Pong, Purpose, SILENCE_MS, VERSION, Welcome,
};
use crate::types::{GroupId, Lsn, PART_MAX, Position, SessionId, Timeline, WRITE_MAX};
use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The payload of a message, field by field.
struct Fields<'a> {
    kind: MessageKind,
    bytes: &'a [u8],
    read: usize,
}

impl<'a> Fields<'a> {
    fn new(kind: MessageKind, bytes: &'a [u8]) -> Self {
        Self { kind, bytes, read: 0 }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let end = self.read + length;
        let taken = self.bytes.get(self.read..end).ok_or(self.length(end))?;
        self.read = end;
        Ok(taken)
    }

    fn fixed<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, WireError> {
        let bytes = self.take(size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| self.length(self.read))
    }

    fn text(&mut self, length: usize, field: &'static str) -> Result<String, WireError> {
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned).map_err(|_| WireError::Text { kind: self.kind, field })
    }

    /// A length of one byte, and so much text.
    fn short_text(&mut self, field: &'static str) -> Result<String, WireError> {
        let length = self.take(1)?[0];
        self.text(length.into(), field)
    }

    fn end(&self) -> Result<(), WireError> {
        if self.read == self.bytes.len() { Ok(()) } else { Err(self.length(self.read)) }
    }

    fn length(&self, expected: usize) -> WireError {
        WireError::Length { kind: self.kind, expected: expected as u64, found: self.bytes.len() as u64 }
    }

    fn check(&self, field: &'static str, value: u64, holds: bool) -> Result<(), WireError> {
        if holds { Ok(()) } else { Err(WireError::Field { kind: self.kind, field, value }) }
    }

    fn zeros(&self, field: &'static str, bytes: &[u8]) -> Result<(), WireError> {
        let odd = bytes.iter().copied().find(|byte| *byte != 0);
        self.check(field, odd.unwrap_or(0).into(), odd.is_none())
    }

    fn parts(&self, field: &'static str, parts: u32) -> Result<u32, WireError> {
        self.check(field, parts.into(), parts == Position::WHOLE || u64::from(parts) <= WRITE_MAX / PART_MAX)?;
        Ok(parts)
    }

    fn silence(&self, value: u32) -> Result<u32, WireError> {
        self.check("silence_ms", value.into(), SILENCE_MS.contains(&value))?;
        Ok(value)
    }

    fn connections(&self, field: &'static str, value: u16) -> Result<u16, WireError> {
        self.check(field, value.into(), value <= DATA_CONNECTIONS_MAX)?;
        Ok(value)
    }
}

/// The message of this payload; frames, headers and tails are slices of it. `verify`: the checksums of a frame's chunks too.
pub(super) fn message(kind: MessageKind, number: u64, payload: &Bytes, verify: bool) -> Result<Message, WireError> {
    let mut fields = Fields::new(kind, payload);
    let message = match kind {
        MessageKind::Frame => return Ok(Message::Frame(number, frame(number, payload, verify)?)),
        MessageKind::Seed => return Ok(Message::Seed(number, frame(number, payload, verify)?)),
        MessageKind::Hello => Message::Hello(Box::new(hello(&mut fields)?)),
        MessageKind::Welcome => Message::Welcome(Box::new(welcome(&mut fields)?)),
        MessageKind::Ack => Message::Ack(ack(&mut fields)?),
        MessageKind::Ping => {
            let [sent_ns, held_bytes, newest_ns] = pulse(&mut fields)?;
            Message::Ping(Ping { sent_ns, held_bytes, newest_ns })
        }
        MessageKind::Pong => {
            let [sent_ns, came_ns, left_ns] = pulse(&mut fields)?;
            Message::Pong(Pong { sent_ns, came_ns, left_ns })
        }
        MessageKind::Call => {
            let (call_kind, status, header, tail) = call(&mut fields, payload)?;
            fields.check("status", status.into(), status == 0)?;
            Message::Call(number, Call { kind: call_kind, header, tail })
        }
        MessageKind::Answer => {
            let (call_kind, status, header, tail) = call(&mut fields, payload)?;
            let known = CallStatus::from_number(status);
            let status = known.ok_or(WireError::Field { kind, field: "status", value: status.into() })?;
            Message::Answer(number, Answer { kind: call_kind, status, header, tail })
        }
        MessageKind::Error => Message::Error(farewell(&mut fields)?),
        MessageKind::Close => Message::Close(farewell(&mut fields)?),
    };
    fields.end()?;
    Ok(message)
}

fn frame(number: u64, payload: &Bytes, verify: bool) -> Result<EncodedFrame, WireError> {
    let wrong = |error| WireError::Frame { number, error };
    let (head, frame) = EncodedFrame::whole(payload).map_err(wrong)?;
    if let Some(chunk) = head.chunks.iter().find(|chunk| chunk.sealed) {
        return Err(wrong(crate::frame::FrameError::Sealed { chunk: chunk.number }));
    }
    if verify {
        head.verify_stored(&frame.body).map_err(wrong)?;
    }
    Ok(frame)
}

fn hello(fields: &mut Fields<'_>) -> Result<Hello, WireError> {
    // Every version of a hello begins with the versions that are spoken: a newer one may look different behind them.
    let both = fields.bytes.get(..4).ok_or(fields.length(size_of::<HelloFixed>()))?;
    let (lowest, highest) = (u16::from_le_bytes([both[0], both[1]]), u16::from_le_bytes([both[2], both[3]]));
    fields.check("version_min", lowest.into(), lowest != 0 && lowest <= highest)?;
    if !(lowest..=highest).contains(&VERSION) {
        return Err(WireError::Version { found: highest });
    }
    let fixed: HelloFixed = fields.fixed()?;
    fields.zeros("reserved", &fixed.reserved)?;
    fields.check("flags", fixed.flags.into(), fixed.flags & !WISHES_PLAIN == 0)?;
    let connection = fields.connections("connection", fixed.connection.get())?;
    let connections = fields.connections("connections", fixed.connections.get())?;
    let session = SessionId::new(fixed.session);
    let session = session.ok_or(WireError::Field { kind: fields.kind, field: "session", value: 0 })?;
    let purpose = match fixed.purpose {
        1 => Purpose::Frames,
        2 => Purpose::Calls,
        value => return Err(WireError::Field { kind: fields.kind, field: "purpose", value: value.into() }),
    };
    let (group, timeline) = (GroupId::new(fixed.group), Timeline::new(fixed.timeline));
    let parts = fields.parts("oldest_parts", fixed.oldest_parts.get())?;
    let silence_ms = fields.silence(fixed.silence_ms.get())?;
    let tenant = fields.short_text("tenant")?;
    let name = fields.short_text("name")?;
    let software = fields.short_text("software")?;
    let by_name = purpose == Purpose::Calls && !name.is_empty();
    fields.check("group", 0, group.is_some() || by_name)?;
    fields.check("timeline", 0, timeline.is_some() == (purpose == Purpose::Frames))?;
    Ok(Hello {
        versions: lowest..=highest,
        connection,
        connections,
        plain: fixed.flags & WISHES_PLAIN != 0,
        features: Features(fixed.features.get()),
        session,
        attempt: fixed.attempt.get(),
        purpose,
        group,
        timeline,
        durable_seen: Lsn(fixed.durable_seen.get()),
        oldest: Position { lsn: Lsn(fixed.oldest_lsn.get()), parts },
        silence_ms,
        tenant,
        name,
        software,
    })
}

fn welcome(fields: &mut Fields<'_>) -> Result<Welcome, WireError> {
    let fixed: WelcomeFixed = fields.fixed()?;
    fields.zeros("reserved", &fixed.reserved)?;
    fields.check("flags", fixed.flags.into(), fixed.flags & !(HAS | GRANTS_PLAIN) == 0)?;
    fields.check("version", fixed.version.get().into(), fixed.version.get() != 0)?;
    let connections = fields.connections("connections", fixed.connections.get())?;
    let parts = fields.parts("have_parts", fixed.have_parts.get())?;
    let have = Position { lsn: Lsn(fixed.have_lsn.get()), parts };
    let has = fixed.flags & HAS != 0;
    fields.check("have_lsn", have.lsn.0, has || have == Position::default())?;
    let grants = fixed.flags & GRANTS_PLAIN != 0;
    // The key itself is in no error.
    fields.check("data_key", 0, grants == (fixed.data_key != [0; 32]))?;
    let (from, to) = (fixed.lost_from.get(), fixed.lost_to.get());
    fields.check("lost_from", from, from <= to && (from == 0) == (to == 0))?;
    Ok(Welcome {
        version: fixed.version.get(),
        connections,
        data_key: grants.then_some(DataKey(fixed.data_key)),
        features: Features(fixed.features.get()),
        credit: fixed.credit.get(),
        have: has.then_some(have),
        durable: Lsn(fixed.durable.get()),
        lost: (from != 0).then_some(Lsn(from)..=Lsn(to)),
        silence_ms: fields.silence(fixed.silence_ms.get())?,
    })
}

fn ack(fields: &mut Fields<'_>) -> Result<Ack, WireError> {
    let fixed: AckFixed = fields.fixed()?;
    fields.zeros("reserved", &fixed.reserved)?;
    let room = match fixed.room {
        1 => FarRoom::Ok,
        2 => FarRoom::NoSpace,
        3 => FarRoom::Lost,
        4 => FarRoom::Quota,
        value => return Err(WireError::Field { kind: fields.kind, field: "room", value: value.into() }),
    };
    Ok(Ack {
        received: Lsn(fixed.received.get()),
        stored: Lsn(fixed.stored.get()),
        durable: Lsn(fixed.durable.get()),
        credit: fixed.credit.get(),
        seeds: fixed.seeds.get(),
        room,
    })
}

fn pulse(fields: &mut Fields<'_>) -> Result<[u64; 3], WireError> {
    let PulseFixed { sent_ns, second, third, reserved } = fields.fixed()?;
    fields.zeros("reserved", &reserved)?;
    Ok([sent_ns.get(), second.get(), third.get()])
}

/// Kind, status, header and tail.
fn call(fields: &mut Fields<'_>, payload: &Bytes) -> Result<(u16, u16, Bytes, Bytes), WireError> {
    let fixed: CallFixed = fields.fixed()?;
    let header = fixed.header.get();
    fields.check("header", header.into(), header as usize <= CALL_HEADER_MAX)?;
    fields.take(header as usize)?;
    let (begin, end) = (size_of::<CallFixed>(), fields.read);
    let tail = payload.len() - end;
    fields.check("tail", tail as u64, tail <= CALL_TAIL_MAX)?;
    fields.take(tail)?;
    Ok((fixed.kind.get(), fixed.status.get(), payload.slice(begin..end), payload.slice(end..)))
}

fn farewell(fields: &mut Fields<'_>) -> Result<Farewell, WireError> {
    let fixed: FarewellFixed = fields.fixed()?;
    fields.zeros("reserved", &fixed.reserved)?;
    let number = fixed.code.get();
    let code = Code::from_number(number);
    let code = code.ok_or(WireError::Field { kind: fields.kind, field: "code", value: number.into() })?;
    let length = usize::from(fixed.text.get());
    fields.check("text", length as u64, length <= TEXT_MAX)?;
    let text = fields.text(length, "text")?;
    Ok(Farewell { code, expected: fixed.expected.get(), found: fixed.found.get(), text })
}

/// A farewell that comes in another way than as a message.
pub(in crate::link) fn read_farewell(bytes: &[u8]) -> Result<Farewell, WireError> {
    let mut fields = Fields::new(MessageKind::Error, bytes);
    let found = farewell(&mut fields)?;
    fields.end()?;
    Ok(found)
}
