use super::*;
use crate::device::{Device, ZeroFlags};
use bytes::Bytes;
use proptest::prelude::*;
use std::io;
use std::sync::Arc;

struct Fixed(u64);

impl Device for Fixed {
    fn size(&self) -> u64 {
        self.0
    }
    fn read_only(&self) -> bool {
        self.0 == 1024
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn trim(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> io::Result<()> {
        Ok(())
    }
}

fn exports() -> Vec<Export> {
    vec![Export::new("one", Arc::new(Fixed(1 << 20))), Export::new("two", Arc::new(Fixed(1024)))]
}

/// A reply as (option, kind, payload).
type Reply = (u32, u32, Vec<u8>);

/// Runs a whole conversation: the replies as (option, kind, payload), and the last step.
fn talk(tls: Tls, input: &[u8]) -> (Vec<Reply>, Result<Step, HandshakeError>) {
    let exports = exports();
    let mut out = Vec::new();
    let mut handshake = Handshake::new(&exports, tls, &mut out);
    let mut rest = input;
    let last = loop {
        match handshake.handle(rest, &mut out) {
            Ok((used, Step::Continue)) => rest = &rest[used..],
            Ok((_, step)) => break Ok(step),
            Err(error) => break Err(error),
        }
    };
    let mut replies = Vec::new();
    let mut rest = &out[GREETING_BYTES..];
    while let Some(header) = rest.first_chunk() {
        let Ok(header) = OptionReplyHeader::decode(header) else { break };
        let end = OPTION_REPLY_BYTES + header.length as usize;
        replies.push((header.option, header.kind, rest[OPTION_REPLY_BYTES..end].to_vec()));
        rest = &rest[end..];
    }
    (replies, last)
}

fn kinds(tls: Tls, input: &[u8]) -> (Vec<u32>, Result<Step, HandshakeError>) {
    let (replies, last) = talk(tls, input);
    (replies.into_iter().map(|reply| reply.1).collect(), last)
}

fn flags() -> Vec<u8> {
    3u32.to_be_bytes().to_vec()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

fn go(input: &mut Vec<u8>, name: &str) {
    push_option(input, option::GO, &[&string(name), &[0, 0]]);
}

fn set_context(input: &mut Vec<u8>, name: &str, query: &str) {
    push_option(input, option::SET_META_CONTEXT, &[&string(name), &[0, 0, 0, 1], &string(query)]);
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let mut input = flags();
    go(&mut input, "");
    let (replies, last) = talk(Tls::Off, &input);
    assert_eq!(last, Ok(Step::Transmission(Session { export: 0, structured: false, allocation: false })));
    assert_eq!(replies.len(), 3);
    assert_eq!(replies[0].2[..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(replies[1].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(replies[2].1, option_reply::ACK);
}

#[test]
fn unknown_exports_and_options_leave_the_stream_in_step() {
    let mut input = flags();
    push_option(&mut input, 77, &[&[1; 999]]);
    go(&mut input, "three");
    push_option(&mut input, option::LIST, &[&[1]]);
    push_option(&mut input, option::GO, &[&[0, 0, 0, 9, b'x']]);
    push_option(&mut input, option::ABORT, &[]);
    use option_reply::*;
    assert_eq!(kinds(Tls::Off, &input), (vec![ERR_UNSUP, ERR_UNKNOWN, ERR_INVALID, ERR_INVALID, ACK], Ok(Step::Abort)));
}

#[test]
fn the_list_names_every_export() {
    let mut input = flags();
    push_option(&mut input, option::LIST, &[]);
    let (replies, last) = talk(Tls::Off, &input);
    assert_eq!(last, Ok(Step::NeedInput));
    assert_eq!(replies[0].2, string("one"));
    assert_eq!(replies[1].2, string("two"));
    assert_eq!(replies[2].1, option_reply::ACK);
}

#[test]
fn block_status_needs_structured_replies_and_the_same_export() {
    let conversation = |structured: bool, context: &str, export: &str| {
        let mut input = flags();
        if structured {
            push_option(&mut input, option::STRUCTURED_REPLY, &[]);
        }
        set_context(&mut input, context, CONTEXT_ALLOCATION);
        go(&mut input, export);
        match kinds(Tls::Off, &input).1 {
            Ok(Step::Transmission(session)) => session.allocation,
            other => panic!("{other:?}"),
        }
    };
    assert!(conversation(true, "two", "two"));
    assert!(conversation(true, "", "one"), "both names mean the same disk");
    assert!(!conversation(true, "one", "two"));
    assert!(!conversation(false, "two", "two"));
}

#[test]
fn contexts_are_listed_by_namespace_but_selected_only_by_name() {
    let mut input = flags();
    push_option(&mut input, option::STRUCTURED_REPLY, &[]);
    push_option(&mut input, option::LIST_META_CONTEXT, &[&string(""), &[0, 0, 0, 1], &string("base:")]);
    push_option(&mut input, option::LIST_META_CONTEXT, &[&string(""), &[0, 0, 0, 0]]);
    set_context(&mut input, "", "base:");
    set_context(&mut input, "", "qemu:dirty-bitmap:x");
    use option_reply::*;
    assert_eq!(kinds(Tls::Off, &input).0, vec![ACK, META_CONTEXT, ACK, META_CONTEXT, ACK, ACK, ACK]);
}

#[test]
fn nothing_but_starttls_and_abort_before_tls() {
    use option_reply::*;
    let mut input = flags();
    push_option(&mut input, option::LIST, &[]);
    go(&mut input, "");
    push_option(&mut input, option::STARTTLS, &[]);
    assert_eq!(kinds(Tls::Required, &input), (vec![ERR_TLS_REQD, ERR_TLS_REQD, ACK], Ok(Step::StartTls)));
    assert_eq!(
        kinds(Tls::Active, &input).1,
        Ok(Step::Transmission(Session { export: 0, structured: false, allocation: false }))
    );
    let mut input = flags();
    push_option(&mut input, option::EXPORT_NAME, &[b"one"]);
    assert_eq!(kinds(Tls::Required, &input).1, Err(HandshakeError::TlsRequired));
    let mut input = flags();
    push_option(&mut input, option::STARTTLS, &[]);
    assert_eq!(kinds(Tls::Off, &input).0, vec![ERR_UNSUP]);
    assert_eq!(kinds(Tls::Active, &input).0, vec![ERR_INVALID]);
}

#[test]
fn the_old_way_in() {
    let exports = exports();
    for (client_flags, length) in [(1u32, 8 + 2 + 124), (3, 8 + 2)] {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(&exports, Tls::Off, &mut out);
        out.clear();
        let mut input = client_flags.to_be_bytes().to_vec();
        push_option(&mut input, option::EXPORT_NAME, &[b"two"]);
        let (used, _) = handshake.handle(&input, &mut out).unwrap();
        let (_, step) = handshake.handle(&input[used..], &mut out).unwrap();
        assert_eq!(step, Step::Transmission(Session { export: 1, structured: false, allocation: false }));
        assert_eq!(out.len(), length);
        assert_eq!(be16(&out, 8) & transmission::READ_ONLY, transmission::READ_ONLY);
    }
}

#[test]
fn limits_end_the_connection() {
    let mut input = flags();
    input.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    input.extend_from_slice(&option::LIST.to_be_bytes());
    input.extend_from_slice(&(OPTION_PAYLOAD_MAX + 1).to_be_bytes());
    assert!(matches!(kinds(Tls::Off, &input).1, Err(HandshakeError::Protocol(ProtocolError::TooLong { .. }))));
    let mut input = flags();
    for _ in 0..=OPTIONS_MAX {
        push_option(&mut input, 77, &[]);
    }
    assert_eq!(kinds(Tls::Off, &input).1, Err(HandshakeError::TooManyOptions));
    assert_eq!(kinds(Tls::Off, &[0, 0, 0, 4]).1, Err(HandshakeError::ClientFlags { flags: 4 }));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = talk(Tls::Off, &bytes);
        let _ = talk(Tls::Required, &[flags(), bytes].concat());
    }

    #[test]
    fn garbage_in_options_never_panics_and_is_answered(
        options in proptest::collection::vec((0u32..13, proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..40)), 0..8),
    ) {
        let mut input = flags();
        for (option, payload) in &options {
            push_option(&mut input, *option, &[payload]);
        }
        let (replies, last) = talk(Tls::Off, &input);
        if last == Ok(Step::NeedInput) {
            prop_assert!(replies.len() >= options.len());
        }
    }
}
