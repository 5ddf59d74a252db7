//! Requests in flight: encoding, batching, matching replies.

use super::ClientError;
use crate::device::BlockStatus;
use crate::nbd::channel::Channel;
use crate::nbd::protocol::*;
use crate::nbd::spin::Spin;
use std::io;
use std::time::Duration;

/// Submitted requests are sent when so many bytes are collected.
const SEND_BYTES: usize = 256 << 10;
/// From this length on payloads are sent from where they are: to collect them would cost more than a call.
const COPY_BELOW: usize = 32 << 10;
/// First size of the receive buffer, in bytes; it grows to hold the longest reply.
const RECEIVE_BYTES: usize = 512 << 10;
/// A receive gets at least this much room, in bytes.
const ROOM_MIN: usize = 128 << 10;

/// A request. Offsets and lengths are bytes; `flags` are `command_flag`s.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are the protocol's")]
pub enum Command<'a> {
    Read { offset: u64, length: u32, flags: u16 },
    Write { offset: u64, data: &'a [u8], flags: u16 },
    Flush,
    Trim { offset: u64, length: u32, flags: u16 },
    WriteZeroes { offset: u64, length: u32, flags: u16 },
    Cache { offset: u64, length: u32 },
    BlockStatus { offset: u64, length: u32, flags: u16 },
}

/// A request that is done.
#[derive(Debug)]
pub struct Completion<'a> {
    /// What `submit` was given.
    pub cookie: u64,
    /// What the server says.
    pub result: Result<(), NbdError>,
    /// What a successful read brought.
    pub data: &'a [u8],
    /// What a successful block status brought.
    pub extents: &'a [BlockStatus],
}

#[derive(Debug, Default)]
struct Slot {
    active: bool,
    generation: u32,
    cookie: u64,
    command: u16,
    offset: u64,
    length: usize,
    /// Bytes of a read that came so far.
    covered: usize,
    error: Option<NbdError>,
    data: Vec<u8>,
    extents: Vec<BlockStatus>,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    channel: Channel,
    structured: bool,
    context: Option<u32>,
    spin: Spin,
    slots: Vec<Slot>,
    free: Vec<usize>,
    out: Vec<u8>,
    received: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Pipeline {
    pub(super) fn new(channel: Channel, structured: bool, context: Option<u32>, spin: Duration) -> Self {
        Self {
            channel,
            structured,
            context,
            spin: Spin::new(spin),
            slots: Vec::new(),
            free: Vec::new(),
            out: Vec::with_capacity(SEND_BYTES),
            received: vec![0; RECEIVE_BYTES],
            start: 0,
            filled: 0,
        }
    }

    pub(super) fn into_channel(self) -> Channel {
        self.channel
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn submit(&mut self, cookie: u64, command: Command<'_>) -> Result<(), ClientError> {
        let (command, flags, offset, length, payload): (u16, u16, u64, u32, &[u8]) = match command {
            Command::Read { offset, length, flags } => (command::READ, flags, offset, length, &[]),
            Command::Write { offset, data, flags } => {
                let length = data.len();
                let length = u32::try_from(length).map_err(|_| ClientError::TooLong { length: length as u64 })?;
                (command::WRITE, flags, offset, length, data)
            }
            Command::Flush => (command::FLUSH, 0, 0, 0, &[]),
            Command::Trim { offset, length, flags } => (command::TRIM, flags, offset, length, &[]),
            Command::WriteZeroes { offset, length, flags } => (command::WRITE_ZEROES, flags, offset, length, &[]),
            Command::Cache { offset, length } => (command::CACHE, 0, offset, length, &[]),
            Command::BlockStatus { offset, length, flags } => (command::BLOCK_STATUS, flags, offset, length, &[]),
        };
        if command == command::READ && length > PAYLOAD_MAX {
            return Err(ClientError::TooLong { length: length.into() });
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.active = true;
        slot.generation = slot.generation.wrapping_add(1);
        (slot.cookie, slot.command, slot.offset, slot.length) = (cookie, command, offset, length as usize);
        (slot.covered, slot.error) = (0, None);
        slot.extents.clear();
        let wire_cookie = (u64::from(slot.generation) << 32) | index as u64;
        let header = Request { flags, command, cookie: wire_cookie, offset, length }.encode();
        if self.out.len() + REQUEST_BYTES + payload.len() > SEND_BYTES {
            self.send()?;
        }
        self.out.extend_from_slice(&header);
        if payload.len() >= COPY_BELOW {
            return self.send_with(payload);
        }
        self.out.extend_from_slice(payload);
        Ok(())
    }

    pub(super) fn send(&mut self) -> Result<(), ClientError> {
        if self.out.is_empty() && !self.channel.owes() {
            return Ok(());
        }
        self.send_with(&[])
    }

    /// Sends what was collected, and `payload` behind it.
    fn send_with(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let out = std::mem::take(&mut self.out);
        let sent = self.send_parts(&out, payload);
        self.out = out;
        self.out.clear();
        sent
    }

    /// Sends both, receiving meanwhile: a server that waits for us to take its replies may read no further request.
    fn send_parts(&mut self, mut first: &[u8], mut second: &[u8]) -> Result<(), ClientError> {
        while !first.is_empty() || !second.is_empty() || self.channel.owes() {
            let sent = match second {
                [] => self.channel.try_send(&[first])?,
                _ => self.channel.try_send(&[first, second])?,
            };
            let of_first = sent.min(first.len());
            first = &first[of_first..];
            second = &second[sent - of_first..];
            if (sent == 0 || self.channel.owes()) && !(first.is_empty() && second.is_empty() && !self.channel.owes()) {
                self.channel.wait(true, true, None)?;
                self.receive_now()?;
            }
        }
        Ok(())
    }

    pub(super) fn farewell(&mut self) -> Result<(), ClientError> {
        let header = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 }.encode();
        self.out.extend_from_slice(&header);
        self.send()
    }

    pub(super) fn complete(&mut self, wait: bool) -> Result<Option<Completion<'_>>, ClientError> {
        let index = loop {
            if let Some(index) = self.take_reply()? {
                break index;
            }
            self.send()?;
            if self.in_flight() == 0 || (!self.receive(wait)? && !wait) {
                return Ok(None);
            }
        };
        self.slots[index].active = false;
        self.free.push(index);
        let slot = &self.slots[index];
        let read = slot.command == command::READ && slot.error.is_none();
        let data = if read { &slot.data[..slot.length] } else { &[] };
        let result = slot.error.map_or(Ok(()), Err);
        Ok(Some(Completion { cookie: slot.cookie, result, data, extents: &slot.extents }))
    }

    /// Takes complete messages off what was received, until one finishes a request.
    fn take_reply(&mut self) -> Result<Option<usize>, ClientError> {
        loop {
            let unread = &self.received[self.start..self.filled];
            let Some((header, header_bytes)) = ReplyHeader::decode(unread)? else { return Ok(None) };
            let (wire_cookie, done) = match header {
                ReplyHeader::Simple { cookie, .. } => (cookie, true),
                ReplyHeader::Chunk(chunk) => (chunk.cookie, chunk.flags & chunk::FLAG_DONE != 0),
            };
            let index = usize::try_from(wire_cookie & 0xffff_ffff).unwrap_or(usize::MAX);
            let slot = self.slots.get_mut(index).filter(|slot| slot.active);
            let slot = slot.filter(|slot| u64::from(slot.generation) == wire_cookie >> 32);
            let slot = slot.ok_or(ProtocolError::Malformed("a reply to no request"))?;
            let payload_bytes = payload_bytes(header, slot, self.structured)?;
            let Some(payload) = unread.get(header_bytes..header_bytes + payload_bytes) else {
                let needed = header_bytes + payload_bytes;
                if self.received.len() < needed + ROOM_MIN {
                    self.received.resize(needed + ROOM_MIN, 0);
                }
                return Ok(None);
            };
            match header {
                ReplyHeader::Simple { error: 0, .. } if slot.command == command::READ => {
                    slot.data.clear();
                    slot.data.extend_from_slice(payload);
                    slot.covered = slot.length;
                }
                ReplyHeader::Simple { error: 0, .. } => {}
                ReplyHeader::Simple { error, .. } => slot.error = Some(NbdError::from_code(error)),
                ReplyHeader::Chunk(chunk) => take_chunk(slot, chunk, payload, self.context)?,
            }
            self.start += header_bytes + payload_bytes;
            if done {
                if slot.command == command::READ && slot.error.is_none() && slot.covered != slot.length {
                    return Err(ProtocolError::Malformed("a read that was not answered in full").into());
                }
                return Ok(Some(index));
            }
        }
    }

    /// Receives something; with `wait` only the end of the connection stops it.
    fn receive(&mut self, wait: bool) -> Result<bool, ClientError> {
        if !wait {
            return self.receive_now();
        }
        self.make_room();
        let (channel, filled) = (&mut self.channel, self.filled);
        let received = &mut self.received[filled..];
        let mut count = self.spin.run(|| channel.try_recv(received))?;
        while count.is_none() {
            let owes = channel.owes();
            channel.wait(true, owes, None)?;
            if owes {
                channel.try_send(&[])?;
            }
            count = channel.try_recv(received)?;
        }
        self.received(count)
    }

    fn receive_now(&mut self) -> Result<bool, ClientError> {
        self.make_room();
        let count = self.channel.try_recv(&mut self.received[self.filled..])?;
        self.received(count)
    }

    fn received(&mut self, count: Option<usize>) -> Result<bool, ClientError> {
        if count == Some(0) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.filled += count.unwrap_or(0);
        Ok(count.is_some())
    }

    fn make_room(&mut self) {
        if self.start == self.filled {
            (self.start, self.filled) = (0, 0);
        }
        if self.received.len() - self.filled < ROOM_MIN {
            self.received.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.start = 0;
            if self.received.len() - self.filled < ROOM_MIN {
                self.received.resize(self.filled + ROOM_MIN, 0);
            }
        }
    }
}

/// How many bytes follow a header; checked, so that no server can make us wait for what will never fit.
fn payload_bytes(header: ReplyHeader, slot: &Slot, structured: bool) -> Result<usize, ProtocolError> {
    match header {
        ReplyHeader::Simple { error: 0, .. } if slot.command == command::READ => {
            if structured {
                Err(ProtocolError::Malformed("a simple reply to a read"))
            } else {
                Ok(slot.length)
            }
        }
        ReplyHeader::Simple { .. } => Ok(0),
        ReplyHeader::Chunk(chunk) => {
            let limit = PAYLOAD_MAX + 8;
            if chunk.length > limit {
                let (length, limit) = (chunk.length.into(), limit.into());
                return Err(ProtocolError::TooLong { what: "a chunk", length, limit });
            }
            Ok(chunk.length as usize)
        }
    }
}

fn take_chunk(slot: &mut Slot, header: ChunkHeader, payload: &[u8], context: Option<u32>) -> Result<(), ProtocolError> {
    let mut fields = Fields(payload);
    let short = ProtocolError::Malformed("a chunk that is too short");
    if header.kind & chunk::ERROR_BIT != 0 {
        let code = fields.u32().ok_or(short)?;
        slot.error.get_or_insert(NbdError::from_code(code));
        return Ok(());
    }
    let reads = slot.command == command::READ;
    match header.kind {
        chunk::NONE => Ok(()),
        chunk::OFFSET_DATA if reads => {
            let offset = fields.u64().ok_or(short)?;
            let data = fields.0;
            place(slot, offset, data.len())?.copy_from_slice(data);
            Ok(())
        }
        chunk::OFFSET_HOLE if reads => {
            let (offset, length) = (fields.u64().ok_or(short)?, fields.u32().ok_or(short)?);
            place(slot, offset, length as usize)?.fill(0);
            Ok(())
        }
        chunk::BLOCK_STATUS if slot.command == command::BLOCK_STATUS => {
            if fields.u32() != context || !fields.0.len().is_multiple_of(8) {
                return Err(ProtocolError::Malformed("a malformed block status"));
            }
            while let (Some(length), Some(flags)) = (fields.u32(), fields.u32()) {
                let (hole, zero) = (flags & STATE_HOLE != 0, flags & STATE_ZERO != 0);
                slot.extents.push(BlockStatus { length: length.into(), hole, zero });
            }
            Ok(())
        }
        _ => Err(ProtocolError::Malformed("a chunk of a kind that does not belong there")),
    }
}

/// Where in the slot's data a chunk belongs.
fn place(slot: &mut Slot, offset: u64, length: usize) -> Result<&mut [u8], ProtocolError> {
    let outside = ProtocolError::Malformed("a chunk outside of what was read");
    let at = offset.checked_sub(slot.offset).and_then(|at| usize::try_from(at).ok()).ok_or(outside)?;
    let end = at.checked_add(length).filter(|&end| end <= slot.length).ok_or(outside)?;
    if slot.data.len() < slot.length {
        slot.data.resize(slot.length, 0);
    }
    slot.covered += length;
    Ok(&mut slot.data[at..end])
}
