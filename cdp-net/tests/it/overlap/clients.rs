//! Clients over real connections that write into each other's ranges.

use crate::dice::Dice;
use crate::nbd::soon;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::protocol::{REQUEST_BYTES, ReplyHeader, Request, command, command_flag};
use cdp_net::nbd::{Channel, Client, ClientOptions, NbdError, Uri};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests in flight on one connection.
const DEPTH: usize = 8;

/// A counter in a sector of its own, written by one client, one write after another.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// The last value that the server answered with success.
    pub(super) acknowledged: AtomicU64,
    /// The last value that was sent.
    pub(super) sent: AtomicU64,
}

fn connect(uri: &Uri) -> Client {
    let client = Client::connect(uri, &ClientOptions::default()).unwrap();
    assert!(client.info().flags & cdp_net::nbd::protocol::transmission::CAN_MULTI_CONN != 0);
    client
}

/// An extent of whole sectors below `limit`, small ones more often.
fn extent(dice: &mut Dice, limit: u64) -> (u64, u32) {
    let sectors = if dice.permille(800) { 1 + dice.below(40) } else { 1 + dice.below(700) };
    let sectors = sectors.min(limit / 512);
    let offset = dice.below(limit / 512 - sectors + 1) * 512;
    (offset, (sectors * 512) as u32)
}

/// What the source refused is told as such, and nothing else goes wrong.
fn check(result: Result<(), NbdError>) {
    assert!(matches!(result, Ok(()) | Err(NbdError::Io)), "{result:?}");
}

/// Many requests in flight at once, anywhere below `limit`.
pub(super) fn pipelined(uri: &Uri, limit: u64, seed: u64, ops: u64) {
    let mut dice = Dice::new(seed);
    let mut client = connect(uri);
    for op in 0..ops {
        while client.in_flight() >= DEPTH {
            check(client.complete(true).unwrap().unwrap().result);
        }
        let (offset, length) = extent(&mut dice, limit);
        let flags = if dice.permille(60) { command_flag::FUA } else { 0 };
        match dice.below(16) {
            0 => client.submit(op, Command::Flush),
            1 => client.submit(op, Command::Trim { offset, length, flags }),
            2 => client.submit(op, Command::WriteZeroes { offset, length, flags }),
            3 => {
                let flags = flags | command_flag::NO_HOLE;
                client.submit(op, Command::WriteZeroes { offset, length, flags })
            }
            4 => client.submit(op, Command::Read { offset, length, flags: 0 }),
            _ => {
                let data = dice.bytes(length as usize);
                client.submit(op, Command::Write { offset, data: &data, flags })
            }
        }
        .unwrap();
    }
    while client.in_flight() > 0 {
        check(client.complete(true).unwrap().unwrap().result);
    }
    client.disconnect().unwrap();
}

/// One write after another into a sector of its own, each with the next value.
pub(super) fn counting(uri: &Uri, offset: u64, counter: &Counter, ops: u64) {
    let mut client = connect(uri);
    let mut sector = [0; 512];
    for value in 1..=ops {
        sector[..8].copy_from_slice(&value.to_le_bytes());
        counter.sent.store(value, Ordering::SeqCst);
        match client.write(offset, &sector, value % 50 == 0) {
            Ok(()) => counter.acknowledged.store(value, Ordering::SeqCst),
            Err(cdp_net::nbd::ClientError::Nbd(error)) => check(Err(error)),
            Err(error) => panic!("{error}"),
        }
    }
    client.disconnect().unwrap();
}

/// What a client whose buffer changes while it is sent has written: sectors of its own that were answered with success.
pub(super) type Sent = BTreeMap<u64, Vec<u8>>;

/// Sends payloads in pieces and changes its buffer behind each piece. Every other write goes into the others' range, the rest
/// into `own`; what counts is what left.
pub(super) fn piecemeal(uri: &Uri, limit: u64, own: u64, seed: u64, ops: u64) -> Sent {
    let mut dice = Dice::new(seed);
    let options = ClientOptions { structured: false, allocation: false, ..ClientOptions::default() };
    let mut channel = Client::connect(uri, &options).unwrap().into_channel();
    let mut written = Sent::new();
    for cookie in 0..ops {
        let mine = cookie % 2 == 0;
        let (offset, length) = if mine { (own, 8 * 512) } else { extent(&mut dice, limit) };
        let header = Request { flags: 0, command: command::WRITE, cookie, offset, length }.encode();
        let mut buffer = dice.bytes(length as usize);
        let mut sent = Vec::new();
        channel.send_all(&header[..REQUEST_BYTES / 2], soon()).unwrap();
        channel.send_all(&header[REQUEST_BYTES / 2..], soon()).unwrap();
        while sent.len() < buffer.len() {
            let piece = (1 + dice.below(3000) as usize).min(buffer.len() - sent.len());
            let range = sent.len()..sent.len() + piece;
            channel.send_all(&buffer[range.clone()], soon()).unwrap();
            sent.extend_from_slice(&buffer[range]);
            // All of it, what was sent and what was not.
            buffer.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            std::thread::yield_now();
        }
        let ok = answered(&mut channel, cookie);
        if mine && ok {
            written.insert(offset, sent);
        } else if mine {
            written.remove(&offset);
        }
    }
    written
}

/// Waits for the answer: whether the write succeeded.
fn answered(channel: &mut Channel, expected: u64) -> bool {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let count = channel.recv(&mut bytes[filled..], soon()).unwrap();
        assert_ne!(count, 0, "the server closed the connection");
        filled += count;
    }
    match ReplyHeader::decode(&bytes).unwrap() {
        Some((ReplyHeader::Simple { cookie, error }, _)) if cookie == expected => {
            assert!(matches!(error, 0 | 5), "error {error}");
            error == 0
        }
        other => panic!("{other:?}"),
    }
}
