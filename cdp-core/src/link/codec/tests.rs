use super::*;
use crate::frame::{Compression, EncodedFrame, FrameError, Mark, Note, Part, Payload, RawFrame, RecordKind};
use crate::link::message::*;
use crate::media::{Disk, Storage};
use crate::types::*;

mod random;

fn session() -> SessionId {
    SessionId::new([3; 16]).unwrap()
}

fn hello() -> Hello {
    Hello {
        versions: 1..=1,
        connection: 0,
        connections: 2,
        plain: true,
        features: Features::ALL,
        session: session(),
        attempt: 7,
        purpose: Purpose::Frames,
        group: GroupId::new([2; 16]),
        timeline: Timeline::new([1; 16]),
        durable_seen: Lsn(900),
        oldest: Position { lsn: Lsn(800), parts: 3 },
        silence_ms: 10_000,
        tenant: "acme".into(),
        name: "database".into(),
        software: "cdp 0.0.1".into(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        connections: 2,
        data_key: Some(DataKey([9; 32])),
        features: Features::ZSTD,
        credit: 64 << 20,
        have: Some(Position { lsn: Lsn(850), parts: 1 }),
        durable: Lsn(820),
        lost: Some(Lsn(821)..=Lsn(900)),
        silence_ms: 5_000,
    }
}

/// A frame of a write of so many 4 KiB blocks and a mark.
fn frame(blocks: usize, compression: Compression) -> EncodedFrame {
    let time = WallTime(1_700_000_000_000_000_000);
    let bytes = (0..blocks * 4096).map(|n| (n / 16) as u8).collect::<Vec<_>>();
    let mut parts = Vec::new();
    if blocks > 0 {
        let payload = Payload::new(8192, Bytes::from(bytes)).unwrap();
        parts.extend(payload.into_parts(RecordKind::Write, DiskId::new(1).unwrap(), Lsn(10), time));
    }
    let mark = Note::Mark(Mark { label: "before".into(), ..Mark::default() });
    parts.push(Part::noted(RecordKind::Mark, None, Lsn(11), time, mark));
    let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
    let timeline = Timeline::new([1; 16]).unwrap();
    let raw = RawFrame { timeline, prev_lsn: Lsn(9), settled: Lsn(11), epoch: ClockEpoch(1), parts, plain_bytes };
    crate::frame::Encoder::new().encode(raw, GroupId::new([2; 16]).unwrap(), compression)
}

fn farewell() -> Farewell {
    Farewell { code: Code::OutOfOrder, expected: 11, found: 13, text: "frame 4 does not continue 10/2".into() }
}

/// One of each kind that this party sends, in an order that it may come in.
fn each(from: Party) -> Vec<Message> {
    let (header, tail) = (Bytes::from_static(b"{\"disk\":1}"), Bytes::from_static(b"tail"));
    let mut messages = match from {
        Party::Source => vec![
            Message::Hello(Box::new(hello())),
            Message::Frame(1, frame(1, Compression::None)),
            Message::Seed(1, frame(0, Compression::None)),
        ],
        Party::Target => vec![
            Message::Welcome(Box::new(welcome())),
            Message::Ack(Ack {
                received: Lsn(30),
                stored: Lsn(20),
                durable: Lsn(10),
                credit: 1 << 30,
                seeds: 4,
                room: FarRoom::NoSpace,
            }),
        ],
    };
    messages.extend([
        Message::Ping(Ping { sent_ns: 1, held_bytes: 2, newest_ns: 3 }),
        Message::Pong(Pong { sent_ns: 4, came_ns: 5, left_ns: 6 }),
        Message::Call(8, Call { kind: 3, header: header.clone(), tail: tail.clone() }),
        Message::Answer(9, Answer { kind: 3, status: CallStatus::Refused, header, tail }),
        Message::Close(farewell()),
    ]);
    messages
}

fn bytes(encoder: &mut Encoder, messages: &[Message]) -> Vec<u8> {
    let pieces = messages.iter().flat_map(|message| {
        let outgoing = encoder.encode(message).unwrap();
        assert_eq!(outgoing.bytes, outgoing.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        assert!(outgoing.pieces.iter().all(|piece| !piece.is_empty()));
        outgoing.pieces
    });
    pieces.collect::<Vec<_>>().concat()
}

/// All messages, and what ended them.
fn read(mut decoder: Decoder, mut bytes: &[u8], at_once: usize) -> (Vec<Message>, Option<WireError>) {
    let mut messages = Vec::new();
    loop {
        loop {
            match decoder.message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        if bytes.is_empty() {
            return (messages, None);
        }
        let taken = decoder.take(&bytes[..bytes.len().min(at_once)]);
        assert!(taken > 0);
        bytes = &bytes[taken..];
    }
}

fn decoder(from: Party) -> Decoder {
    match from {
        Party::Source => Decoder::of_source(),
        Party::Target => Decoder::of_target(0),
    }
}

/// What comes of a message's bytes behind the connection's first one.
fn judged(from: Party, message: &[u8]) -> WireError {
    let first = bytes(&mut Encoder::new(), &each(from)[..1]);
    let (messages, error) = read(decoder(from), &[&first, message].concat(), usize::MAX);
    assert_eq!(messages.len(), 1, "{messages:?}");
    error.expect("it is wrong")
}

fn header(kind: u8, length: u32, number: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], &[kind, 0, 0, 0], &number.to_le_bytes()].concat()
}

#[test]
fn golden_bytes_of_version_1() {
    let mut found = String::new();
    for from in [Party::Source, Party::Target] {
        for message in each(from) {
            let hex: String = bytes(&mut Encoder::new(), std::slice::from_ref(&message))
                .iter()
                .map(|it| format!("{it:02x}"))
                .collect();
            found += &format!("{} {hex}\n", MessageKind::of(&message));
        }
    }
    let errors = bytes(&mut Encoder::new(), &[Message::Error(farewell())]);
    found += &format!("error {}\n", errors.iter().map(|it| format!("{it:02x}")).collect::<String>());
    if std::env::var_os("CDP_BLESS").is_some() {
        let tree = Disk::open(concat!(env!("CARGO_MANIFEST_DIR"), "/src/link/codec")).unwrap();
        let file = tree.open("golden-v1.txt", true).or_else(|_| tree.create("golden-v1.txt")).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(0, found.as_bytes()).unwrap();
    } else {
        assert!(found == include_str!("golden-v1.txt"), "the protocol changed: raise its version\n{found}");
    }
}

/// Independent of the codec: fields by the offsets that the text gives.
#[test]
fn fields_are_where_the_text_says() {
    let bytes = bytes(&mut Encoder::new(), &each(Party::Source)[..1]);
    assert_eq!(bytes[..8], [(104 + 5 + 9 + 10) as u8, 0, 0, 0, 1, 0, 0, 0]);
    let payload = &bytes[16..];
    assert_eq!(payload[..8], [1, 0, 1, 0, 0, 0, 2, 0]);
    assert_eq!((&payload[16..32], payload[32]), (&[3; 16][..], 7));
    assert_eq!((&payload[40..56], &payload[56..72]), (&[2; 16][..], &[1; 16][..]));
    assert_eq!(payload[72..74], 900u16.to_le_bytes());
    assert_eq!((payload[80..82].to_vec(), payload[88]), (800u16.to_le_bytes().to_vec(), 3));
    assert_eq!(payload[92..98], [0x10, 0x27, 0, 0, 1, 1]);
    assert_eq!(payload[104..109], *b"\x04acme");
}

#[test]
fn a_frame_is_not_copied() {
    let frame = frame(60, Compression::None);
    let outgoing = Encoder::new().encode(&Message::Frame(1, frame.clone())).unwrap();
    assert_eq!(outgoing.pieces.len(), 2 + frame.body.len());
    assert_eq!(outgoing.pieces[1].as_ptr(), frame.head.as_ptr());
    assert_eq!(outgoing.pieces[2].as_ptr(), frame.body[0].as_ptr());
    let first = bytes(&mut Encoder::new(), &each(Party::Source)[..1]);
    let (messages, error) = read(decoder(Party::Source), &[first, outgoing.pieces.concat()].concat(), 10_000);
    assert_eq!(error, None);
    let Message::Frame(1, found) = &messages[1] else { panic!("{messages:?}") };
    assert_eq!((found.info, found.head == frame.head), (frame.info, true));
    assert_eq!(found.body.concat(), frame.body.concat());
    // Head and body lie behind each other in one buffer, a piece for each chunk.
    let mut end = found.head.as_ptr_range().end;
    for piece in &found.body {
        assert_eq!(piece.as_ptr(), end);
        end = piece.as_ptr_range().end;
    }
    let chunks = crate::frame::FrameHead::parse(&found.head).unwrap().chunks.len();
    assert!(chunks > 2 && found.body.len() == chunks, "{chunks} chunks");
}

#[test]
fn a_decoder_asks_for_no_more_than_a_message_has() {
    let first = bytes(&mut Encoder::new(), &each(Party::Source)[..1]);
    let long = bytes(&mut Encoder::new(), &[Message::Frame(1, frame(30, Compression::None))]);
    let mut decoder = Decoder::of_source();
    assert_eq!(decoder.room().len(), AHEAD_BYTES);
    decoder.take(&first);
    assert!(matches!(decoder.message(), Ok(Some(Message::Hello(_)))) && !decoder.is_amid());
    assert_eq!(decoder.take(&long), AHEAD_BYTES);
    assert!(matches!(decoder.message(), Ok(None)) && decoder.is_amid());
    assert_eq!(decoder.room().len(), long.len() - AHEAD_BYTES);
    assert_eq!(decoder.take(&[&long[AHEAD_BYTES..], &first].concat()), long.len() - AHEAD_BYTES);
    assert!(matches!(decoder.message(), Ok(Some(Message::Frame(1, _)))) && !decoder.is_amid());
}

#[test]
fn kinds_that_nobody_knows_are_refused_before_their_payload() {
    assert_eq!(judged(Party::Source, &header(12, u32::MAX, 0)), WireError::Kind { found: 12 });
    assert_eq!(judged(Party::Target, &header(0, 0, 0)), WireError::Kind { found: 0 });
    assert_eq!(WireError::Kind { found: 12 }.farewell().code, Code::Unexpected);
}

#[test]
fn lengths_above_their_bound_are_refused_before_their_payload() {
    for kind in MessageKind::ALL.into_iter().skip(2) {
        let from = kind.sender().unwrap_or(Party::Source);
        let (found, max) = (kind.payload_max() as u64 + 1, kind.payload_max() as u64);
        let error = judged(from, &header(kind as u8, found as u32, 1));
        assert_eq!(error, WireError::TooLong { kind, found, max });
        assert_eq!((error.farewell().code, error.farewell().expected), (Code::TooLong, max));
    }
    let (_, error) = read(Decoder::of_source(), &header(1, u32::MAX, 0), usize::MAX);
    assert_eq!(error, Some(WireError::TooLong { kind: MessageKind::Hello, found: u32::MAX.into(), max: 1024 }));
}

#[test]
fn each_party_sends_its_kinds_only() {
    for from in [Party::Source, Party::Target] {
        for kind in MessageKind::ALL.into_iter().skip(2).filter(|kind| kind.sender() == Some(from.other())) {
            let why = Misplaced::Party;
            assert_eq!(judged(from, &header(kind as u8, 0, 1)), WireError::Unexpected { kind, from, why });
        }
    }
}

#[test]
fn a_connection_begins_with_hello_and_welcome_once() {
    for from in [Party::Source, Party::Target] {
        let (kind, why) =
            (if from == Party::Source { MessageKind::Hello } else { MessageKind::Welcome }, Misplaced::Order);
        assert_eq!(judged(from, &header(kind as u8, 0, 0)), WireError::Unexpected { kind, from, why });
        let ping = bytes(&mut Encoder::new(), &[Message::Ping(Ping::default())]);
        let kind = MessageKind::Ping;
        assert_eq!(read(decoder(from), &ping, 5).1, Some(WireError::Unexpected { kind, from, why }));
    }
    // A target end may refuse instead of its welcome.
    let refusal = bytes(&mut Encoder::new(), &[Message::Error(farewell())]);
    assert!(matches!(&read(Decoder::of_target(0), &refusal, 7), (messages, None) if messages.len() == 1));
    assert!(read(Decoder::of_source(), &refusal, 7).1.is_some());
}

#[test]
fn acks_and_calls_are_of_the_first_connection() {
    let mut second = hello();
    second.connection = 2;
    let call = Message::Call(1, Call { kind: 1, header: Bytes::new(), tail: Bytes::new() });
    let sent = bytes(&mut Encoder::new(), &[Message::Hello(Box::new(second)), call]);
    let why = Misplaced::Connection;
    let error = WireError::Unexpected { kind: MessageKind::Call, from: Party::Source, why };
    assert_eq!(read(Decoder::of_source(), &sent, usize::MAX).1, Some(error));
    let sent = bytes(&mut Encoder::new(), &[Message::Welcome(Box::new(welcome())), Message::Ack(Ack::default())]);
    let error = WireError::Unexpected { kind: MessageKind::Ack, from: Party::Target, why };
    assert_eq!(read(Decoder::of_target(2), &sent, usize::MAX).1, Some(error));
    assert_eq!(read(Decoder::of_target(0), &sent, usize::MAX).1, None);
}

#[test]
fn nothing_comes_behind_a_farewell() {
    let (why, kind) = (Misplaced::Ended, MessageKind::Ping);
    let sent = [each(Party::Source), vec![Message::Ping(Ping::default())]].concat();
    let (messages, error) = read(Decoder::of_source(), &bytes(&mut Encoder::new(), &sent), usize::MAX);
    assert_eq!(messages.len(), sent.len() - 1);
    assert_eq!(error, Some(WireError::Unexpected { kind, from: Party::Source, why }));
}

#[test]
fn a_hello_of_a_newer_version_is_answered_by_version() {
    let mut newer = hello();
    newer.versions = 2..=5;
    let sent = bytes(&mut Encoder::new(), &[Message::Hello(Box::new(newer))]);
    let (_, error) = read(Decoder::of_source(), &sent, usize::MAX);
    assert_eq!(error, Some(WireError::Version { found: 5 }));
    let told = error.unwrap().farewell();
    assert_eq!((told.code, told.expected, told.found), (Code::Version, 1, 5));
    // One that looks different behind its first fields is not malformed, but newer.
    let (_, error) = read(Decoder::of_source(), &[header(1, 6, 0), vec![2, 0, 3, 0, 1, 1]].concat(), usize::MAX);
    assert_eq!(error, Some(WireError::Version { found: 3 }));
}

#[test]
fn a_damaged_head_is_found_always_and_a_damaged_chunk_when_it_is_wanted() {
    let sent =
        bytes(&mut Encoder::new(), &[each(Party::Source)[0].clone(), Message::Frame(5, frame(3, Compression::None))]);
    let mut body = sent.clone();
    *body.last_mut().unwrap() ^= 1;
    assert_eq!(read(Decoder::of_source(), &body, usize::MAX).1, None);
    let (_, error) = read(Decoder::of_source().with_chunks_verified(), &body, usize::MAX);
    assert!(
        matches!(error, Some(WireError::Frame { number: 5, error: FrameError::ChunkChecksum { .. } })),
        "{error:?}"
    );
    let mut head = sent;
    let at = head.len() - 3 * 4096 - 60;
    head[at] ^= 1;
    let (_, error) = read(Decoder::of_source(), &head, usize::MAX);
    assert!(matches!(error, Some(WireError::Frame { number: 5, .. })), "{error:?}");
    assert_eq!(error.unwrap().farewell().code, Code::Damaged);
}

#[test]
fn a_frame_that_is_sealed_at_rest_does_not_travel() {
    let frame = frame(2, Compression::None);
    let head = crate::frame::FrameHead::parse(&frame.head).unwrap();
    let (_, sealed) = frame.sealed(&head, &crate::trust::test_keys(), 0).unwrap();
    let error = judged(Party::Source, &bytes(&mut Encoder::new(), &[Message::Frame(1, sealed)]));
    assert_eq!(error, WireError::Frame { number: 1, error: FrameError::Sealed { chunk: 1 } });
}

#[test]
fn bytes_behind_a_frame_are_refused() {
    let mut sent = bytes(&mut Encoder::new(), &[Message::Frame(1, frame(1, Compression::None))]);
    sent.push(0);
    let length = (sent.len() - HEADER_BYTES) as u32;
    sent[..4].copy_from_slice(&length.to_le_bytes());
    assert!(matches!(judged(Party::Source, &sent), WireError::Frame { number: 1, error: FrameError::Field { .. } }));
}

#[test]
fn what_cannot_be_said_is_not_encoded() {
    let mut long = hello();
    long.name = "n".repeat(256);
    let error = Encoder::new().encode(&Message::Hello(Box::new(long))).unwrap_err();
    assert_eq!((error.field, error.found, error.max), ("name", 256, 255));
    let call = |header: usize, tail: usize| {
        let call = Call { kind: 1, header: vec![b' '; header].into(), tail: vec![0; tail].into() };
        Encoder::new().encode(&Message::Call(1, call))
    };
    assert_eq!(call(CALL_HEADER_MAX + 1, 0).unwrap_err().field, "header");
    assert_eq!(call(0, CALL_TAIL_MAX + 1).unwrap_err().field, "tail");
    // The longest of both fits.
    let longest = call(CALL_HEADER_MAX, CALL_TAIL_MAX).unwrap();
    assert_eq!(longest.bytes as usize, HEADER_BYTES + MessageKind::Call.payload_max());
    let first = bytes(&mut Encoder::new(), &each(Party::Source)[..1]);
    let sent = [first, longest.pieces.concat()].concat();
    assert_eq!(read(Decoder::of_source(), &sent, 1 << 16).0.len(), 2);
}

#[test]
fn a_farewell_of_many_words_is_cut_between_two_letters() {
    let long = Farewell { text: "ä".repeat(700), ..farewell() };
    let sent = bytes(&mut Encoder::new(), &[Message::Error(long)]);
    let (messages, error) = read(Decoder::of_target(0), &sent, usize::MAX);
    assert_eq!(error, None);
    assert!(matches!(&messages[..], [Message::Error(told)] if told.text == "ä".repeat(512)));
}

#[test]
fn a_plain_connection_knows_each_message_and_its_place() {
    let key = DataKey([5; 32]);
    let chain = |from, connection| MacChain::new(key.clone(), from, connection);
    let messages = each(Party::Source);
    let decoder = |connection| Decoder::of_source().with_mac(chain(Party::Source, connection));
    let mut first = hello();
    first.connection = 3;
    let sent: Vec<_> = [Message::Hello(Box::new(first)), messages[1].clone(), messages[2].clone()].into();
    let mut encoder = Encoder::with_mac(chain(Party::Source, 3));
    let pieces: Vec<_> = sent.iter().map(|message| encoder.encode(message).unwrap().pieces.concat()).collect();
    let whole = pieces.concat();
    let mac = |count| Some(WireError::Mac { count });
    for at_once in [1, 100, usize::MAX] {
        assert!(matches!(read(decoder(3), &whole, at_once), (messages, None) if messages.len() == 3));
    }
    // Another key, another connection, the other direction, another order, a repetition, one left out, another number.
    let other = Decoder::of_source().with_mac(MacChain::new(DataKey([6; 32]), Party::Source, 3));
    assert_eq!(read(other, &whole, usize::MAX).1, mac(0));
    assert_eq!(read(decoder(4), &whole, usize::MAX).1, mac(0));
    let reflected = Decoder::of_source().with_mac(chain(Party::Target, 3));
    assert_eq!(read(reflected, &whole, usize::MAX).1, mac(0));
    let order = |order: &[usize]| order.iter().map(|at| pieces[*at].clone()).collect::<Vec<_>>().concat();
    assert_eq!(read(decoder(3), &order(&[0, 2, 1]), usize::MAX).1, mac(1));
    assert_eq!(read(decoder(3), &order(&[0, 1, 1]), usize::MAX).1, mac(2));
    assert_eq!(read(decoder(3), &order(&[0, 2]), usize::MAX).1, mac(1));
    let mut renumbered = whole;
    renumbered[pieces[0].len() + 8] = 2;
    assert_eq!(read(decoder(3), &renumbered, usize::MAX).1, mac(1));
}
