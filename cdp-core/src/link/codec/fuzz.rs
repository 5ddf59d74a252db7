//! What is sent on a link, for fuzzers: everything of one connection in one direction.

use super::kind::MessageKind;
use super::layout::{HEADER_BYTES, Header};
use super::{Decoder, Encoder, Party};
use crate::frame;
use crate::link::message::Message;
use zerocopy::{FromBytes, IntoBytes};

/// Whether the bytes are messages and nothing else. What is read must be written as it was, however it came in.
pub(crate) fn messages(from: Party, bytes: &[u8]) -> bool {
    let Some(found) = read(decoder(from), bytes, usize::MAX) else { return false };
    let piecemeal = read(decoder(from), bytes, 1 + bytes.len() / 7).map(|messages| messages.len());
    assert_eq!(piecemeal, Some(found.len()));
    let mut encoder = Encoder::new();
    let again = found.iter().flat_map(|message| encoder.encode(message).expect("what was read can be written").pieces);
    assert_eq!(again.collect::<Vec<_>>().concat(), bytes);
    true
}

fn decoder(from: Party) -> Decoder {
    match from {
        Party::Source => Decoder::of_source(),
        Party::Target => Decoder::of_target(0),
    }
    .with_chunks_verified()
}

/// All messages, if they are nothing else, taken in by so many bytes at a time.
fn read(mut decoder: Decoder, mut bytes: &[u8], at_once: usize) -> Option<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        while let Some(message) = decoder.message().ok()? {
            messages.push(message);
        }
        if bytes.is_empty() {
            return (!messages.is_empty() && !decoder.is_amid()).then_some(messages);
        }
        let taken = decoder.take(&bytes[..bytes.len().min(at_once)]);
        assert!(taken > 0, "no room, and no message");
        bytes = &bytes[taken..];
    }
}

/// These bytes with headers that fit what follows, and with the checksums of frames made right.
pub(crate) fn seal(from: Party, bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut out = Vec::new();
    while let Ok((mut header, payload)) = Header::read_from_prefix(rest) {
        let kind = match MessageKind::from_number(header.kind) {
            _ if out.is_empty() && from == Party::Source => MessageKind::Hello,
            Some(kind) => kind,
            None => MessageKind::Close,
        };
        let length = (header.length.get() as usize).min(payload.len()).min(kind.payload_max());
        let (payload, after) = payload.split_at(length);
        let counted = matches!(kind, MessageKind::Frame | MessageKind::Seed);
        let payload = if counted { frame::fuzz::seal(payload) } else { payload.to_vec() };
        header.length.set(payload.len() as u32);
        (header.kind, header.flags, header.reserved) = (kind as u8, 0, [0; 2]);
        if !kind.numbered() {
            header.number.set(0);
        }
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&payload);
        rest = after;
        debug_assert!(rest.len() < bytes.len(), "{HEADER_BYTES} bytes at least are taken");
    }
    out
}
