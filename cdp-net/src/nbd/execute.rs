//! What one request means: whether it is allowed, which call of the device it is, and what its reply looks like.

use super::export::Export;
use super::handshake::{CONTEXT_ID, Session};
use super::protocol::*;
use super::stats::Counters;
use crate::device::{BlockStatus, Rest, Written, ZeroFlags};
use bytes::Bytes;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The most extents in one answer to `BLOCK_STATUS`.
pub(crate) const EXTENTS_MAX: usize = 4096;

/// Whether a request may be passed to the device, by the protocol's own rules on errors.
pub(crate) fn check(request: &Request, export: &Export, session: Session) -> Result<(), NbdError> {
    use command_flag::*;
    let allowed = match request.command {
        command::READ => FUA | if session.structured { DF } else { 0 },
        command::WRITE | command::FLUSH | command::TRIM | command::CACHE => FUA,
        command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
        command::BLOCK_STATUS if session.allocation => FUA | REQ_ONE,
        _ => return Err(NbdError::Inval),
    };
    if request.flags & !allowed != 0 {
        return Err(NbdError::Inval);
    }
    if request.command == command::FLUSH {
        return if request.offset == 0 && request.length == 0 { Ok(()) } else { Err(NbdError::Inval) };
    }
    let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if changes && export.device.read_only() {
        return Err(NbdError::Perm);
    }
    let sector = u64::from(BLOCK_MIN);
    if request.length == 0 || !request.offset.is_multiple_of(sector) || !request.length.is_multiple_of(BLOCK_MIN) {
        return Err(NbdError::Inval);
    }
    if matches!(request.command, command::READ | command::WRITE) && request.length > PAYLOAD_MAX {
        // The protocol's way to say that a shorter read, or one in fragments, would do.
        return Err(if request.has(DF) { NbdError::Overflow } else { NbdError::Inval });
    }
    let inside = request.offset.checked_add(request.length.into()).is_some_and(|end| end <= export.size());
    match request.command {
        _ if inside => Ok(()),
        command::WRITE | command::WRITE_ZEROES => Err(NbdError::NoSpace),
        _ => Err(NbdError::Inval),
    }
}

/// Runs a call of a device; a panic in it is an I/O error of this request and nothing more.
fn contain<T>(counters: &Counters, call: impl FnOnce() -> io::Result<T>) -> Result<T, NbdError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| NbdError::from(&error)),
        Err(_) => {
            counters.panics.add(1);
            Err(NbdError::Io)
        }
    }
}

/// Runs a request that changes or syncs the disk, or warms its cache. `payload` is what a write brought along.
pub(crate) fn apply(request: &Request, export: &Export, payload: Bytes, counters: &Counters) -> Result<(), NbdError> {
    let device = &*export.device;
    let (offset, length, fua) = (request.offset, u64::from(request.length), request.has(command_flag::FUA));
    contain(counters, || match request.command {
        command::WRITE => {
            counters.bytes_written.add(length);
            device.write(offset, payload, fua)
        }
        command::FLUSH => device.flush(),
        command::TRIM => device.trim(offset, length, fua),
        command::WRITE_ZEROES => {
            let no_hole = request.has(command_flag::NO_HOLE);
            let fast = request.has(command_flag::FAST_ZERO);
            device.write_zeroes(offset, length, ZeroFlags { fua, no_hole, fast })
        }
        command::CACHE => device.cache(offset, length),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    })
}

/// Runs a write without `FUA` as far as nothing but the disk has to be waited for.
pub(crate) fn write_now(offset: u64, data: Bytes, export: &Export, counters: &Counters) -> Result<Written, NbdError> {
    counters.bytes_written.add(data.len() as u64);
    contain(counters, || export.device.write_now(offset, data))
}

/// What was left of a write.
pub(crate) fn finish(rest: Rest, counters: &Counters) -> Result<(), NbdError> {
    contain(counters, rest)
}

/// Reads, waiting for the disk.
pub(crate) fn read(offset: u64, buffer: &mut [u8], export: &Export, counters: &Counters) -> Result<(), NbdError> {
    counters.bytes_read.add(buffer.len() as u64);
    contain(counters, || export.device.read(offset, buffer))
}

/// Reads if that needs no wait.
pub(crate) fn read_now(offset: u64, buffer: &mut [u8], export: &Export, counters: &Counters) -> Result<bool, NbdError> {
    let done = contain(counters, || export.device.read_now(offset, buffer))?;
    if done {
        counters.bytes_read.add(buffer.len() as u64);
    }
    Ok(done)
}

/// What the device says about a range, cut to it, neighbours of one kind joined, empty entries dropped. `None` if nothing is
/// left, which a device must not answer.
pub(crate) fn block_status(
    offset: u64,
    length: u64,
    entries_max: usize,
    export: &Export,
    counters: &Counters,
) -> Result<Vec<BlockStatus>, NbdError> {
    let found = contain(counters, || export.device.block_status(offset, length, entries_max))?;
    let mut left = length;
    let mut extents: Vec<BlockStatus> = Vec::with_capacity(found.len().min(entries_max));
    for status in found {
        let status = BlockStatus { length: status.length.min(left), ..status };
        left -= status.length;
        let count = extents.len();
        match extents.last_mut() {
            _ if status.length == 0 => {}
            Some(last) if (last.hole, last.zero) == (status.hole, status.zero) => last.length += status.length,
            _ if count == entries_max => break,
            _ => extents.push(status),
        }
    }
    if extents.is_empty() { Err(NbdError::Io) } else { Ok(extents) }
}

/// The whole reply to `BLOCK_STATUS`.
pub(crate) fn block_status_reply(request: &Request, export: &Export, counters: &Counters) -> Result<Vec<u8>, NbdError> {
    let entries_max = if request.has(command_flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
    let extents = block_status(request.offset, request.length.into(), entries_max, export, counters)?;
    let length = u32::try_from(4 + extents.len() * 8).map_err(|_| NbdError::Io)?;
    let header =
        ChunkHeader { flags: chunk::FLAG_DONE, kind: chunk::BLOCK_STATUS, cookie: request.cookie, length }.encode();
    let mut reply = Vec::with_capacity(CHUNK_BYTES + 4 + extents.len() * 8);
    reply.extend_from_slice(&header);
    reply.extend_from_slice(&CONTEXT_ID.to_be_bytes());
    for extent in extents {
        let flags = if extent.hole { STATE_HOLE } else { 0 } | if extent.zero { STATE_ZERO } else { 0 };
        // Not above the request's own 32-bit length.
        reply.extend_from_slice(&u32::try_from(extent.length).unwrap_or(u32::MAX).to_be_bytes());
        reply.extend_from_slice(&flags.to_be_bytes());
    }
    Ok(reply)
}

/// A reply without data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShortReply {
    bytes: [u8; CHUNK_BYTES + 6],
    length: usize,
}

impl ShortReply {
    pub(crate) fn new(request: &Request, session: Session, result: Result<(), NbdError>) -> Self {
        let mut reply = Self { bytes: [0; CHUNK_BYTES + 6], length: SIMPLE_REPLY_BYTES };
        let code = result.err().map_or(0, NbdError::code);
        let chunked = matches!(request.command, command::READ | command::BLOCK_STATUS);
        if session.structured && chunked && code != 0 {
            let (flags, cookie) = (chunk::FLAG_DONE, request.cookie);
            let header = ChunkHeader { flags, kind: chunk::ERROR, cookie, length: 6 }.encode();
            reply.bytes[..CHUNK_BYTES].copy_from_slice(&header);
            reply.bytes[CHUNK_BYTES..CHUNK_BYTES + 4].copy_from_slice(&code.to_be_bytes());
            reply.length = CHUNK_BYTES + 6;
        } else {
            reply.bytes[..SIMPLE_REPLY_BYTES].copy_from_slice(&simple_reply(request.cookie, code));
        }
        reply
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The most bytes before the data of a read.
pub(crate) const READ_HEADER_MAX: usize = CHUNK_BYTES + 8;

/// Writes the header of the whole reply to a successful read to the end of `space`; returns its length.
pub(crate) fn read_header(request: &Request, session: Session, space: &mut [u8; READ_HEADER_MAX]) -> usize {
    if session.structured {
        data_chunk(request, request.offset, request.length, true, space);
        READ_HEADER_MAX
    } else {
        space[READ_HEADER_MAX - SIMPLE_REPLY_BYTES..].copy_from_slice(&simple_reply(request.cookie, 0));
        SIMPLE_REPLY_BYTES
    }
}

/// Bytes before the data of a read.
pub(crate) fn read_header_bytes(session: Session) -> usize {
    if session.structured { READ_HEADER_MAX } else { SIMPLE_REPLY_BYTES }
}

/// Writes the header of a chunk of `length` bytes of data.
pub(crate) fn data_chunk(request: &Request, offset: u64, length: u32, last: bool, space: &mut [u8; READ_HEADER_MAX]) {
    let flags = if last { chunk::FLAG_DONE } else { 0 };
    let header = ChunkHeader { flags, kind: chunk::OFFSET_DATA, cookie: request.cookie, length: length + 8 }.encode();
    space[..CHUNK_BYTES].copy_from_slice(&header);
    space[CHUNK_BYTES..].copy_from_slice(&offset.to_be_bytes());
}

/// A chunk that says that a range reads as zeros.
pub(crate) fn hole_chunk(request: &Request, offset: u64, length: u32, last: bool) -> [u8; CHUNK_BYTES + 12] {
    let flags = if last { chunk::FLAG_DONE } else { 0 };
    let header = ChunkHeader { flags, kind: chunk::OFFSET_HOLE, cookie: request.cookie, length: 12 }.encode();
    let mut bytes = [0; CHUNK_BYTES + 12];
    bytes[..CHUNK_BYTES].copy_from_slice(&header);
    bytes[CHUNK_BYTES..CHUNK_BYTES + 8].copy_from_slice(&offset.to_be_bytes());
    bytes[CHUNK_BYTES + 8..].copy_from_slice(&length.to_be_bytes());
    bytes
}
