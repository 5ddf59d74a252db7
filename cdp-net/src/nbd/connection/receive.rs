//! From the socket to requests: large receives, payloads as shared slices of the receive buffer, no copies.

use crate::nbd::buffers::{Buffers, LARGE_BYTES, SHARED_MAX};
use crate::nbd::protocol::*;
use crate::nbd::spin::Spin;
use crate::nbd::wire::Wire;
use bytes::Bytes;
use cdp_core::buffer::{PAGE, PooledBuffer};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest payload that is skipped to stay in step, in bytes; what claims more is no NBD client.
const SKIP_MAX: u32 = 64 << 20;
/// A receive gets at least this much room, in bytes; else a new buffer is begun.
const ROOM_MIN: usize = 64 << 10;
/// So many bytes of an incomplete request are moved to the front, to go on in memory that is warm in the cache.
const MOVE_MAX: usize = 8 << 10;
/// The longest request that lives in a receive buffer, in bytes.
const SMALL_MAX: usize = REQUEST_BYTES + LARGE_BYTES;

/// What comes next on the stream.
pub(super) enum Next {
    /// A complete request, with the payload of a write.
    Request(Request, Bytes),
    /// A write whose payload gets a buffer of its own: `receive_large`.
    Large(Request),
    /// A write longer than allowed: `skip`.
    Skip(Request),
    /// More must be received first.
    Incomplete,
}

/// How long to wait for more.
#[derive(Clone, Copy)]
pub(super) enum Limit {
    /// For ever.
    None,
    /// Until then.
    At(Instant),
    /// So long without a request in flight.
    Idle(Duration),
}

pub(super) struct Receiver {
    wire: Arc<Wire>,
    /// Requests that were split off the buffer, shared with the payloads that were handed out.
    batch: Bytes,
    buffer: PooledBuffer,
    /// What was received and not yet consumed of the buffer.
    start: usize,
    filled: usize,
    /// How much to receive at most: little after a large write, so that the payload of the next one is not received into
    /// the wrong buffer.
    receive_max: usize,
    /// What is left of the memory that the last payloads of up to `SHARED_MAX` were received into.
    pages: Option<PooledBuffer>,
    spin: Spin,
}

impl Receiver {
    pub(super) fn new(wire: Arc<Wire>, buffer: PooledBuffer, spin: Duration) -> Self {
        let (batch, spin) = (Bytes::new(), Spin::new(spin));
        Self { wire, batch, buffer, start: 0, filled: 0, receive_max: usize::MAX, pages: None, spin }
    }

    /// What was received and not consumed. Of requests, that is only the incomplete one once `next` has said so.
    pub(super) fn unread(&self) -> &[u8] {
        if self.batch.is_empty() { &self.buffer[self.start..self.filled] } else { &self.batch }
    }

    /// Drops bytes off the front; they must be there, and not part of a batch.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Takes the next request off the stream.
    pub(super) fn next(&mut self) -> Result<Next, ProtocolError> {
        if self.batch.is_empty() {
            let unread = &self.buffer[self.start..self.filled];
            let Some(header) = unread.first_chunk() else { return Ok(Next::Incomplete) };
            let request = Request::decode(header)?;
            let payload = request.payload_bytes();
            if payload == 0 {
                self.start += REQUEST_BYTES;
                self.receive_max = usize::MAX;
                return Ok(Next::Request(request, Bytes::new()));
            }
            if request.length > PAYLOAD_MAX {
                let (length, limit) = (payload, SKIP_MAX.into());
                let too_long = ProtocolError::TooLong { what: "a write", length, limit };
                return if request.length > SKIP_MAX { Err(too_long) } else { Ok(Next::Skip(request)) };
            }
            if payload >= LARGE_BYTES as u64 {
                return Ok(Next::Large(request));
            }
            // What follows belongs into the receive buffer again, the rest of this request first.
            self.receive_max = usize::MAX;
            let complete = complete_requests(unread);
            if complete == 0 {
                return Ok(Next::Incomplete);
            }
            self.batch = self.buffer.freeze_front(self.start + complete);
            bytes::Buf::advance(&mut self.batch, self.start);
            self.filled -= self.start + complete;
            self.start = 0;
        }
        // Every request of a batch was seen whole by `complete_requests`.
        let Some(header) = self.batch.first_chunk() else { return Ok(Next::Incomplete) };
        let request = Request::decode(header)?;
        let end = REQUEST_BYTES + usize::try_from(request.payload_bytes()).unwrap_or(usize::MAX);
        if end > self.batch.len() {
            return Err(ProtocolError::Malformed("a batch that ends inside a request"));
        }
        let front = self.batch.split_to(end);
        let payload = if end > REQUEST_BYTES { front.slice(REQUEST_BYTES..) } else { Bytes::new() };
        Ok(Next::Request(request, payload))
    }

    /// Receives what is there, or waits: spinning for a little while first, because waking a thread costs more than a
    /// request. `false` at the end of the stream.
    pub(super) fn receive(&mut self, buffers: &Buffers, in_flight: bool, limit: Limit) -> io::Result<bool> {
        let room = self.make_room(buffers);
        if let Some(count) = self.spin.run(|| self.wire.try_recv(&mut self.buffer[room.clone()]))? {
            return Ok(self.received(count));
        }
        if !in_flight && matches!(limit, Limit::None) {
            let count = self.wire.recv(&mut self.buffer[room])?;
            return Ok(self.received(count));
        }
        loop {
            let deadline = match limit {
                Limit::None => None,
                Limit::At(deadline) => Some(deadline),
                Limit::Idle(limit) => Some(Instant::now() + limit),
            };
            let ready = self.wire.wait(deadline)?;
            if let Some(count) = self.wire.try_recv(&mut self.buffer[room.clone()])? {
                return Ok(self.received(count));
            }
            // Who waits for the disk is not idle.
            let busy = matches!(limit, Limit::Idle(_)) && self.wire.in_flight().requests > 0;
            if !ready && !busy {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Receives only what is there; `false` if nothing is.
    pub(super) fn receive_now(&mut self, buffers: &Buffers) -> io::Result<bool> {
        let room = self.make_room(buffers);
        let count = self.wire.try_recv(&mut self.buffer[room])?.unwrap_or(0);
        Ok(self.received(count))
    }

    /// Receives before a deadline; `false` at the end of the stream.
    pub(super) fn receive_until(&mut self, buffers: &Buffers, deadline: Instant) -> io::Result<bool> {
        let room = self.make_room(buffers);
        let count = recv_until(&self.wire, &mut self.buffer[room], deadline)?;
        Ok(self.received(count))
    }

    /// Receives the payload of a large write into pages of its own, and with it the header of what comes next.
    /// `before_waiting` is called when the rest is not there yet.
    pub(super) fn receive_large(
        &mut self,
        request: &Request,
        buffers: &Buffers,
        deadline: Instant,
        mut before_waiting: impl FnMut(),
    ) -> io::Result<Bytes> {
        let length = request.length as usize;
        let shared = length <= SHARED_MAX;
        let left = if shared { self.pages.take().filter(|pages| pages.len() >= length) } else { None };
        let mut own = left.unwrap_or_else(|| if shared { buffers.pages() } else { buffers.large(length) });
        let here = (self.filled - self.start - REQUEST_BYTES).min(length);
        let from = self.start + REQUEST_BYTES;
        own[..here].copy_from_slice(&self.buffer[from..from + here]);
        self.start = from + here;
        let mut have = here;
        // No more than a header: the payload behind it belongs into pages of its own again.
        self.receive_max = REQUEST_BYTES;
        while have < length {
            let room = self.make_room(buffers);
            let Some(count) = self.wire.try_recv_two(&mut own[have..length], &mut self.buffer[room])? else {
                before_waiting();
                if !self.wire.wait(Some(deadline))? && Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let more = count.min(length - have);
            have += more;
            self.filled += count - more;
        }
        if !shared {
            return Ok(own.freeze(length));
        }
        let payload = own.freeze_front(length.next_multiple_of(PAGE)).slice(..length);
        self.pages = Some(own);
        Ok(payload)
    }

    /// Receives the payload of a write that is too long, and forgets it.
    pub(super) fn skip(&mut self, request: &Request, buffers: &Buffers, deadline: Instant) -> io::Result<()> {
        self.receive_max = usize::MAX;
        let mut left = REQUEST_BYTES + request.length as usize;
        loop {
            let here = (self.filled - self.start).min(left);
            self.start += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            if !self.receive_until(buffers, deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn received(&mut self, count: usize) -> bool {
        self.filled += count;
        count > 0
    }

    /// Makes sure that a receive has room, and that an incomplete request can be completed in one piece; returns where to
    /// receive into.
    fn make_room(&mut self, buffers: &Buffers) -> Range<usize> {
        let unread = self.filled - self.start;
        if unread <= MOVE_MAX {
            let gained = self.buffer.reclaim();
            if unread > 0 && gained + self.start > 0 {
                self.buffer.copy_within(gained + self.start..gained + self.filled, 0);
            }
            (self.start, self.filled) = (0, unread);
        }
        let cramped = self.buffer.len() - self.filled < ROOM_MIN || self.buffer.len() - self.start < SMALL_MAX;
        if cramped {
            let mut fresh = buffers.receive();
            let unread = &self.buffer[self.start..self.filled];
            fresh[..unread.len()].copy_from_slice(unread);
            self.filled = unread.len();
            self.start = 0;
            self.buffer = fresh;
        }
        let room = self.buffer.len() - self.filled;
        self.filled..self.filled + room.min(self.receive_max)
    }
}

/// Length of the complete small requests at the front. What comes after them is looked at when its turn comes.
fn complete_requests(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(header) = bytes[at..].first_chunk() {
        let Ok(request) = Request::decode(header) else { break };
        let payload = request.payload_bytes();
        let end = at as u64 + REQUEST_BYTES as u64 + payload;
        if payload >= LARGE_BYTES as u64 || end > bytes.len() as u64 {
            break;
        }
        at += REQUEST_BYTES + usize::try_from(payload).unwrap_or(0);
    }
    at
}

fn recv_until(wire: &Wire, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        if let Some(count) = wire.try_recv(buffer)? {
            return Ok(count);
        }
        if !wire.wait(Some(deadline))? && Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::socket::Socket;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn write(cookie: u64, length: usize) -> Vec<u8> {
        let (flags, command, offset) = (0, command::WRITE, cookie * 512);
        let header = Request { flags, command, cookie, offset, length: u32::try_from(length).unwrap() }.encode();
        [&header[..], &vec![u8::try_from(cookie).unwrap(); length]].concat()
    }

    /// After a large payload only a header is received; what belongs to it must come at once again.
    #[test]
    fn a_small_write_after_a_large_one_is_received_in_one_piece() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let wire = Arc::new(Wire::new(Socket::adopt(server.into(), false)).unwrap());
        let buffers = Buffers::new();
        let mut receiver = Receiver::new(wire, buffers.receive(), Duration::ZERO);
        let lengths = [LARGE_BYTES, 4096, 2 * LARGE_BYTES, SHARED_MAX + 512, 512, LARGE_BYTES + 512, 60 << 10];
        let stream: Vec<_> = (0..).zip(lengths).flat_map(|(cookie, length)| write(cookie, length)).collect();
        let sender = std::thread::spawn(move || client.write_all(&stream).map(|()| client).unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut receives, mut done) = (0, Vec::new());
        while done.len() < lengths.len() {
            let (request, payload) = match receiver.next().unwrap() {
                Next::Request(request, payload) => (request, payload),
                Next::Large(request) => {
                    let payload = receiver.receive_large(&request, &buffers, deadline, || {}).unwrap();
                    assert_eq!(payload.as_ptr().align_offset(PAGE), 0);
                    (request, payload)
                }
                Next::Incomplete => {
                    receives += 1;
                    assert!(receiver.receive_until(&buffers, deadline).unwrap());
                    continue;
                }
                Next::Skip(_) => panic!("nothing is too long"),
            };
            assert!(payload.iter().all(|byte| u64::from(*byte) == request.cookie));
            done.push(payload.len());
        }
        assert_eq!(done, lengths);
        // The socket's buffer cuts the stream here and there; a header's worth at a time would be thousands.
        assert!(receives < 40, "{receives} receives");
        drop(sender.join().unwrap());
    }
}
