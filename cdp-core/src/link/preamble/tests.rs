use super::*;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_version_1() {
    let tls = Preamble::Tls { ticket: Bytes::from_static(b"ticket") };
    assert_eq!(hex(&tls.encode().unwrap()), "4344504c494e4b01010006006e3680d87469636b6574");
    let plain = Preamble::Plain { session: SessionId::new([3; 16]).unwrap(), connection: 2 };
    let expected = "4344504c494e4b01020018009c16e7fd030303030303030303030303030303030200000000000000";
    assert_eq!(hex(&plain.encode().unwrap()), expected);
}

#[test]
fn what_is_too_long_is_refused_before_it_is_read() {
    let ticket = Bytes::from(vec![1; CONTENT_MAX + 1]);
    assert_eq!(Preamble::Tls { ticket }.encode(), Err(PreambleError::TooLong { found: 1025 }));
    let longest = Preamble::Tls { ticket: Bytes::from(vec![1; CONTENT_MAX]) };
    let mut bytes = longest.encode().unwrap();
    assert_eq!(Preamble::decode(&bytes), Ok(longest));
    bytes[11] = 0xff;
    let start = bytes[..PREAMBLE_BYTES].try_into().unwrap();
    assert_eq!(Preamble::content_length(start), Err(PreambleError::TooLong { found: 0xff00 }));
}

#[test]
fn whoever_speaks_something_else_is_told_so() {
    let start = b"GET / HTTP/1.1\r\n";
    let error = Preamble::content_length(start).unwrap_err();
    assert_eq!(error, PreambleError::Magic { found: *b"GET / HT" });
    assert_eq!(error.farewell().code, Code::Malformed);
}

#[test]
fn a_plain_connection_is_a_data_connection_of_a_session() {
    let session = SessionId::new([3; 16]).unwrap();
    for connection in [0, DATA_CONNECTIONS_MAX + 1] {
        let bytes = Preamble::Plain { session, connection }.encode().unwrap();
        assert_eq!(Preamble::decode(&bytes), Err(field("connection", connection.into())));
    }
    let mut bytes = Preamble::Plain { session, connection: 1 }.encode().unwrap();
    bytes[PREAMBLE_BYTES..PREAMBLE_BYTES + 16].fill(0);
    put_checksum(&mut bytes);
    assert_eq!(Preamble::decode(&bytes), Err(field("session", 0)));
    bytes[8] = KIND_REFUSAL + 1;
    put_checksum(&mut bytes);
    assert_eq!(Preamble::decode(&bytes), Err(field("kind", 4)));
}

#[test]
fn what_is_told_about_a_ticket_says_whether_a_new_one_helps() {
    let told = |error: TicketError| ticket_farewell(&error).code;
    assert_eq!(told(TicketError::Expired { not_after: 1, now: 2 }), Code::TicketExpired);
    assert_eq!(told(TicketError::Mac), Code::TicketInvalid);
    assert_eq!(told(TicketError::Missing), Code::TicketInvalid);
    assert_eq!(told(TicketError::Tenant { expected: "a".into(), found: "b".into() }), Code::OtherTenant);
}

#[test]
fn a_refusal_says_what_an_error_says() {
    let farewell = Farewell::new(Code::TicketExpired, "ä".repeat(500)).with(5, 9);
    let bytes = Preamble::Refusal(farewell.clone()).encode().unwrap();
    assert!(bytes.len() <= PREAMBLE_BYTES + CONTENT_MAX);
    let text = "ä".repeat(REFUSAL_TEXT_MAX / 2);
    assert_eq!(Preamble::decode(&bytes), Ok(Preamble::Refusal(Farewell { text, ..farewell })));
    let mut other = bytes.clone();
    other[PREAMBLE_BYTES] = 99;
    put_checksum(&mut other);
    assert!(matches!(
        Preamble::decode(&other),
        Err(PreambleError::Refusal(WireError::Field { field: "code", value: 99, .. }))
    ));
}

proptest! {
    #[test]
    fn every_preamble_comes_back_and_a_flipped_bit_is_seen(
        ticket in prop::collection::vec(any::<u8>(), 0..CONTENT_MAX),
        session in any::<[u8; 16]>(),
        connection in prop::option::of(1u16..=15),
        bit in any::<prop::sample::Index>(),
    ) {
        let session = SessionId::new(session.map(|byte| byte | 1)).unwrap();
        let tls = Preamble::Tls { ticket: ticket.into() };
        let preamble = connection.map_or(tls, |connection| Preamble::Plain { session, connection });
        let mut bytes = preamble.encode().unwrap();
        let length = Preamble::content_length(bytes[..PREAMBLE_BYTES].try_into().unwrap());
        prop_assert_eq!(length, Ok(bytes.len() - PREAMBLE_BYTES));
        prop_assert_eq!(Preamble::decode(&bytes), Ok(preamble));
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Preamble::decode(&bytes).is_err());
    }
}
