//! Messages as bytes, in both directions, without a socket: the bytes and the rules are in `WIRE.md`.
//!
//! A [`Decoder`] takes the bytes of one connection as they come and gives messages; an [`Encoder`] makes the pieces to be written
//! one after another. Frames are not copied by either: the head and the body of one that came are slices of the buffer
//! that it was read into, and one that goes is sent from where it lies.

mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod kind;
mod layout;
mod read;
#[cfg(test)]
mod tests;
mod write;

use super::mac::{MAC_BYTES, MacChain};
use super::message::Message;
use crate::buffer::{PooledBuffer, SizedPools};
use bytes::Bytes;
pub use error::{Misplaced, Unsendable, WireError};
pub use kind::{MessageKind, Party};
pub use layout::HEADER_BYTES;
use layout::Header;
pub(super) use read::read_farewell;
pub(super) use write::farewell as write_farewell;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Read ahead while nobody knows what comes: small messages come many at a time, and of a long one no more is copied.
const AHEAD_BYTES: usize = 4 << 10;

/// From the bytes of one connection in one direction to messages.
///
/// It holds 4 KiB, and one message if that is longer: made room for once its header is known and within the bounds
/// of its kind.
#[derive(Debug)]
pub struct Decoder {
    from: Party,
    /// Whether this is a session's first connection; not known before the source end's hello.
    first: Option<bool>,
    stage: Stage,
    mac: Option<MacChain>,
    verify: bool,
    memory: SizedPools,
    ahead: Box<[u8]>,
    /// How much of `ahead` was taken, and how much came.
    taken: usize,
    filled: usize,
    /// The message that is too long for `ahead`.
    long: Option<Long>,
}

#[derive(Debug)]
struct Long {
    buffer: PooledBuffer,
    filled: usize,
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Hello or welcome comes first.
    Opening,
    Open,
    /// Error or close came, or something was wrong.
    Ended,
}

impl Decoder {
    /// For what a source end sends. Which connection it is stands in the hello.
    #[must_use]
    pub fn of_source() -> Self {
        Self::new(Party::Source, None)
    }

    /// For what a target end sends on this connection of a session; 0: the first.
    #[must_use]
    pub fn of_target(connection: u16) -> Self {
        Self::new(Party::Target, Some(connection == 0))
    }

    fn new(from: Party, first: Option<bool>) -> Self {
        let (memory, ahead) = (SizedPools::none(), vec![0; AHEAD_BYTES].into());
        let (taken, filled, long) = (0, 0, None);
        Self { from, first, stage: Stage::Opening, mac: None, verify: false, memory, ahead, taken, filled, long }
    }

    /// Long messages are received into these.
    #[must_use]
    pub fn with_memory(mut self, memory: SizedPools) -> Self {
        self.memory = memory;
        self
    }

    /// Every message has a MAC.
    #[must_use]
    pub fn with_mac(mut self, mac: MacChain) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The checksums of frames' chunks are verified too, not only those of their heads.
    #[must_use]
    pub fn with_chunks_verified(mut self) -> Self {
        self.verify = true;
        self
    }

    /// Where the next bytes of the connection go, some of them or all, which [`Self::came`] is told; there is always room for some
    /// once [`Self::message`] gave `None`.
    pub fn room(&mut self) -> &mut [u8] {
        match &mut self.long {
            Some(Long { buffer, filled, length }) => &mut buffer[*filled..*length],
            None => {
                self.ahead.copy_within(self.taken..self.filled, 0);
                self.filled -= self.taken;
                self.taken = 0;
                &mut self.ahead[self.filled..]
            }
        }
    }

    /// So many bytes came to where there is room.
    ///
    /// # Panics
    /// When there was no room for so many.
    pub fn came(&mut self, bytes: usize) {
        let (filled, length) = match &mut self.long {
            Some(long) => (&mut long.filled, long.length),
            None => (&mut self.filled, AHEAD_BYTES),
        };
        *filled += bytes;
        assert!(*filled <= length, "{bytes} bytes cannot have come");
    }

    /// Takes of `bytes` what there is room for; says how many. For who has them in a buffer of its own.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let length = room.len().min(bytes.len());
        room[..length].copy_from_slice(&bytes[..length]);
        self.came(length);
        length
    }

    /// Whether the other side said that it ends, or something was wrong: nothing that follows is a message.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Whether bytes of a message are there that is not whole: the connection must not end here.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.long.is_some() || self.taken < self.filled
    }

    /// The next message, if it is whole.
    ///
    /// # Errors
    /// Whatever is wrong with it: then the connection cannot go on.
    pub fn message(&mut self) -> Result<Option<Message>, WireError> {
        let next = self.step();
        match &next {
            Err(_) | Ok(Some(Message::Error(_) | Message::Close(_))) => self.stage = Stage::Ended,
            Ok(Some(message)) => {
                self.stage = Stage::Open;
                if let Message::Hello(hello) = message {
                    self.first = Some(hello.connection == 0);
                }
            }
            Ok(None) => {}
        }
        next
    }

    fn step(&mut self) -> Result<Option<Message>, WireError> {
        if let Some(long) = self.long.take_if(|long| long.filled == long.length) {
            let bytes = long.buffer.freeze(long.length);
            let (kind, number, _) = self.judge(&bytes)?;
            return self.whole(kind, number, &bytes).map(Some);
        }
        let waiting = &self.ahead[self.taken..self.filled];
        if self.long.is_some() || waiting.len() < HEADER_BYTES {
            return Ok(None);
        }
        let (kind, number, length) = self.judge(waiting)?;
        if length > AHEAD_BYTES {
            let (mut buffer, filled) = (self.memory.take(length), waiting.len());
            buffer[..filled].copy_from_slice(waiting);
            (self.taken, self.filled) = (0, 0);
            self.long = Some(Long { buffer, filled, length });
            return Ok(None);
        }
        let Some(message) = waiting.get(..length) else { return Ok(None) };
        let message = Bytes::copy_from_slice(message);
        self.taken += length;
        self.whole(kind, number, &message).map(Some)
    }

    /// Kind, number, and length of header, payload and MAC together of the message that begins so, if it may come.
    fn judge(&self, bytes: &[u8]) -> Result<(MessageKind, u64, usize), WireError> {
        let Ok((header, _)) = Header::read_from_prefix(bytes) else { return Err(WireError::Kind { found: 0 }) };
        let kind = MessageKind::from_number(header.kind).ok_or(WireError::Kind { found: header.kind })?;
        let unexpected = |why| Err(WireError::Unexpected { kind, from: self.from, why });
        if kind.sender().is_some_and(|sender| sender != self.from) {
            return unexpected(Misplaced::Party);
        }
        let opens = matches!(kind, MessageKind::Hello | MessageKind::Welcome);
        match self.stage {
            Stage::Ended => return unexpected(Misplaced::Ended),
            // A target end may refuse instead; a source end has nothing to say before its hello.
            Stage::Opening if opens => {}
            Stage::Opening if self.from == Party::Target && matches!(kind, MessageKind::Error | MessageKind::Close) => {
            }
            Stage::Open if !opens => {}
            Stage::Opening | Stage::Open => return unexpected(Misplaced::Order),
        }
        if kind.first_connection_only() && self.first == Some(false) {
            return unexpected(Misplaced::Connection);
        }
        let (found, max) = (u64::from(header.length.get()), kind.payload_max() as u64);
        if found > max {
            return Err(WireError::TooLong { kind, found, max });
        }
        let number = header.number.get();
        let field = |field, value| Err(WireError::Field { kind, field, value });
        if header.flags != 0 {
            return field("flags", header.flags.into());
        }
        if header.reserved != [0; 2] {
            return field("reserved", u16::from_le_bytes(header.reserved).into());
        }
        let counted = matches!(kind, MessageKind::Frame | MessageKind::Seed);
        if (counted && number == 0) || (!kind.numbered() && number != 0) {
            return field("number", number);
        }
        let mac = if self.mac.is_some() { MAC_BYTES } else { 0 };
        Ok((kind, number, HEADER_BYTES + found as usize + mac))
    }

    /// The message of these bytes, all of which are there.
    fn whole(&mut self, kind: MessageKind, number: u64, bytes: &Bytes) -> Result<Message, WireError> {
        let mut end = bytes.len();
        if let Some(mac) = &mut self.mac {
            end -= MAC_BYTES;
            let count = mac.count();
            if !mac.verify(&bytes[..end], &bytes[end..]) {
                return Err(WireError::Mac { count });
            }
        }
        read::message(kind, number, &bytes.slice(HEADER_BYTES..end), self.verify)
    }
}

/// A message as it is written: pieces one after another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// In order, none of them empty.
    pub pieces: Vec<Bytes>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Nothing may be sent after it.
    pub last: bool,
}

/// From messages to the bytes of one connection in one direction.
#[derive(Debug, Default)]
pub struct Encoder {
    mac: Option<MacChain>,
}

impl Encoder {
    /// One without MACs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every message gets a MAC.
    #[must_use]
    pub fn with_mac(mac: MacChain) -> Self {
        Self { mac: Some(mac) }
    }

    /// The pieces of a message, which are sent in the order of these calls. Whether it may be sent here and now is known to
    /// whoever sends.
    ///
    /// # Errors
    /// When something in it is longer than can be said: nothing was counted then.
    pub fn encode(&mut self, message: &Message) -> Result<Outgoing, Unsendable> {
        let kind = MessageKind::of(message);
        let mut start = Vec::with_capacity(HEADER_BYTES * 2);
        start.resize(HEADER_BYTES, 0);
        // The beginning, the MAC, and what is sent as it is.
        let mut pieces = Vec::with_capacity(match message {
            Message::Frame(_, frame) | Message::Seed(_, frame) => frame.body.len() + 3,
            _ => 4,
        });
        pieces.push(Bytes::new());
        write::payload(message, &mut start, &mut pieces)?;
        let length = start.len() - HEADER_BYTES + pieces.iter().map(Bytes::len).sum::<usize>();
        let mut header = Header::new_zeroed();
        header.length.set(length as u32);
        header.kind = kind as u8;
        header.number.set(match message {
            Message::Frame(number, _) | Message::Seed(number, _) => *number,
            Message::Call(number, _) | Message::Answer(number, _) => *number,
            _ => 0,
        });
        start[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        pieces[0] = Bytes::from(start);
        let mut bytes = (HEADER_BYTES + length) as u64;
        if let Some(mac) = &mut self.mac {
            let mac = mac.next(pieces.iter().map(|piece| &piece[..]));
            pieces.push(Bytes::copy_from_slice(&mac));
            bytes += MAC_BYTES as u64;
        }
        let last = matches!(message, Message::Error(_) | Message::Close(_));
        Ok(Outgoing { pieces, bytes, last })
    }
}
