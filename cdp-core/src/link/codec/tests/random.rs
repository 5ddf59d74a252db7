//! Any connection, cut anywhere, and changed.

use super::*;
use crate::link::farewell::TEXT_MAX;
use proptest::prelude::*;
use proptest::sample::Index;
use std::ops::RangeInclusive;

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..40).prop_map(move |text| {
        let text: String = text.into_iter().collect();
        text[..text.floor_char_boundary(max)].to_owned()
    })
}

fn parts() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..=1024, Just(Position::WHOLE)]
}

fn any_hello() -> impl Strategy<Value = Message> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), parts());
    let small = (0u16..=15, 0u16..=15, any::<bool>(), any::<bool>(), 1u16..5, 1000u32..=60_000);
    (ids, numbers, small, (text(255), text(255), text(255))).prop_map(|(ids, numbers, small, texts)| {
        let (features, attempt, durable, oldest, parts) = numbers;
        let (connection, connections, plain, frames, highest, silence_ms) = small;
        let known = |bytes: [u8; 16]| bytes.map(|byte| byte | 1);
        Message::Hello(Box::new(Hello {
            versions: 1..=highest,
            connection,
            connections,
            plain,
            features: Features(features),
            session: SessionId::new(known(ids.0)).unwrap(),
            attempt,
            purpose: if frames { Purpose::Frames } else { Purpose::Calls },
            group: if frames || texts.1.is_empty() { GroupId::new(known(ids.1)) } else { GroupId::new(ids.1) },
            timeline: frames.then(|| Timeline::new(known(ids.2)).unwrap()),
            durable_seen: Lsn(durable),
            oldest: Position { lsn: Lsn(oldest), parts },
            silence_ms,
            tenant: texts.0,
            name: texts.1,
            software: texts.2,
        }))
    })
}

fn any_welcome() -> impl Strategy<Value = Message> {
    let lost = prop::option::of((1u64.., any::<u64>()));
    let have = prop::option::of((any::<u64>(), parts()));
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
    (1u16.., 0u16..=15, prop::option::of(any::<[u8; 32]>()), numbers, have, lost, 1000u32..=60_000).prop_map(
        |(version, connections, key, (features, credit, durable), have, lost, silence_ms)| {
            Message::Welcome(Box::new(Welcome {
                version,
                connections,
                data_key: key.filter(|key| *key != [0; 32]).map(DataKey),
                features: Features(features),
                credit,
                have: have.map(|(lsn, parts)| Position { lsn: Lsn(lsn), parts }),
                durable: Lsn(durable),
                lost: lost.map(|(from, more)| -> RangeInclusive<Lsn> { Lsn(from)..=Lsn(from.saturating_add(more)) }),
                silence_ms,
            }))
        },
    )
}

/// Anything that this party may send on a first connection behind hello and welcome, and does not end it.
fn any_message(from: Party) -> impl Strategy<Value = Message> {
    let blob = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
    let pulse = any::<[u64; 3]>();
    let call = (any::<u64>(), any::<u16>(), blob(9000), blob(9000));
    let both = prop_oneof![
        (pulse, any::<bool>()).prop_map(|([first, second, third], ping)| match ping {
            true => Message::Ping(Ping { sent_ns: first, held_bytes: second, newest_ns: third }),
            false => Message::Pong(Pong { sent_ns: first, came_ns: second, left_ns: third }),
        }),
        (call, 0u16..6).prop_map(|((number, kind, header, tail), status)| match CallStatus::from_number(status) {
            None => Message::Call(number, Call { kind, header, tail }),
            Some(status) => Message::Answer(number, Answer { kind, status, header, tail }),
        }),
    ];
    let own = match from {
        Party::Source => (1u64.., 0usize..60, any::<bool>(), any::<bool>())
            .prop_map(|(number, blocks, packed, seed)| {
                let frame = frame(blocks, if packed { Compression::Zstd(1) } else { Compression::None });
                if seed { Message::Seed(number, frame) } else { Message::Frame(number, frame) }
            })
            .boxed(),
        Party::Target => (any::<[u64; 5]>(), 0usize..4)
            .prop_map(|([received, stored, durable, credit, seeds], room)| {
                let room = [FarRoom::Ok, FarRoom::NoSpace, FarRoom::Lost, FarRoom::Quota][room];
                let [received, stored, durable] = [received, stored, durable].map(Lsn);
                Message::Ack(Ack { received, stored, durable, credit, seeds, room })
            })
            .boxed(),
    };
    prop_oneof![2 => both, 3 => own]
}

fn any_farewell() -> impl Strategy<Value = Message> {
    (any::<Index>(), any::<[u64; 2]>(), text(TEXT_MAX), any::<bool>()).prop_map(|(code, numbers, text, error)| {
        let farewell = Farewell { code: *code.get(&Code::ALL), expected: numbers[0], found: numbers[1], text };
        if error { Message::Error(farewell) } else { Message::Close(farewell) }
    })
}

fn any_connection(from: Party) -> impl Strategy<Value = Vec<Message>> {
    let first = match from {
        Party::Source => any_hello()
            .prop_map(|message| match message {
                Message::Hello(mut hello) => {
                    hello.connection = 0;
                    Message::Hello(hello)
                }
                _ => message,
            })
            .boxed(),
        Party::Target => any_welcome().boxed(),
    };
    (first, prop::collection::vec(any_message(from), 0..8), prop::option::of(any_farewell())).prop_map(
        |(first, middle, last)| {
            let mut messages = vec![first];
            messages.extend(middle);
            messages.extend(last);
            messages
        },
    )
}

fn party() -> impl Strategy<Value = Party> {
    prop_oneof![Just(Party::Source), Just(Party::Target)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_hello_comes_back(hello in any_hello()) {
        let sent = bytes(&mut Encoder::new(), std::slice::from_ref(&hello));
        let (found, error) = read(Decoder::of_source(), &sent, usize::MAX);
        prop_assert_eq!(error, None);
        prop_assert_eq!(format!("{found:?}"), format!("[{hello:?}]"));
    }

    #[test]
    fn what_is_sent_comes_back_however_it_is_cut(
        (from, messages) in party().prop_flat_map(|from| (Just(from), any_connection(from))),
        at_once in prop_oneof![1usize..20, 1000usize..100_000],
        mac in any::<bool>(),
    ) {
        let chain = || MacChain::new(DataKey([5; 32]), from, 0);
        let (mut encoder, mut decoder) = (Encoder::new(), decoder(from).with_chunks_verified());
        if mac {
            (encoder, decoder) = (Encoder::with_mac(chain()), decoder.with_mac(chain()));
        }
        let sent = bytes(&mut encoder, &messages);
        let (found, error) = read(decoder, &sent, at_once);
        prop_assert_eq!(error, None);
        prop_assert_eq!(found.len(), messages.len());
        for (found, sent) in found.iter().zip(&messages) {
            // Frames are compared by their bytes: their pieces are cut elsewhere.
            if !matches!(sent, Message::Frame(..) | Message::Seed(..)) {
                prop_assert_eq!(format!("{found:?}"), format!("{sent:?}"));
            }
        }
        let mut encoder = if mac { Encoder::with_mac(chain()) } else { Encoder::new() };
        prop_assert!(bytes(&mut encoder, &found) == sent);
    }

    /// A prefix of a connection gives a prefix of its messages and no error.
    #[test]
    fn a_cut_connection_gives_what_was_whole(
        (from, messages) in party().prop_flat_map(|from| (Just(from), any_connection(from))),
        cut in any::<Index>(),
    ) {
        let sent = bytes(&mut Encoder::new(), &messages);
        let (found, error) = read(decoder(from), &sent[..cut.index(sent.len())], 4000);
        prop_assert_eq!(error, None);
        prop_assert!(found.len() < messages.len());
        let again = bytes(&mut Encoder::new(), &found);
        prop_assert!(sent.starts_with(&again));
    }

    /// With a MAC no change of a byte goes unseen.
    #[test]
    fn a_changed_byte_of_a_plain_connection_is_seen(
        (from, messages) in party().prop_flat_map(|from| (Just(from), any_connection(from))),
        at in any::<Index>(),
        bit in 0u8..8,
    ) {
        let chain = || MacChain::new(DataKey([5; 32]), from, 0);
        let mut sent = bytes(&mut Encoder::with_mac(chain()), &messages);
        let at = at.index(sent.len());
        sent[at] ^= 1 << bit;
        let (found, error) = read(decoder(from).with_mac(chain()), &sent, usize::MAX);
        // A length that grew waits for bytes that do not come.
        prop_assert!(error.is_some() || found.len() < messages.len());
    }

    #[test]
    fn garbage_ends_in_messages_or_an_error(from in party(), garbage in prop::collection::vec(any::<u8>(), 0..3000)) {
        let first = bytes(&mut Encoder::new(), &each(from)[..1]);
        let (messages, _) = read(decoder(from), &garbage, 64);
        prop_assert!(messages.len() <= garbage.len() / HEADER_BYTES);
        let (messages, _) = read(decoder(from), &[first, garbage].concat(), 64);
        prop_assert!(!messages.is_empty());
    }
}
