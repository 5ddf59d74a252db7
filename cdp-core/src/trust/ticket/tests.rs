use super::*;
use proptest::prelude::*;

const KEY: [u8; 32] = [7; 32];
const GOOD: WallTime = WallTime(1_500);

fn ticket() -> Ticket {
    Ticket {
        serial: [1; 16],
        tenant: "acme".into(),
        group: GroupId::new([2; 16]),
        timeline: Timeline::new([3; 16]),
        route: "proxy-1.example:7440".into(),
        certificate: [4; 32],
        not_before: WallTime(1_000),
        not_after: WallTime(2_000),
        connections: 16,
        bytes_per_second: Some(1 << 20),
    }
}

fn keys(ids: impl IntoIterator<Item = u32>) -> TicketKeys {
    let mut keys = TicketKeys::default();
    ids.into_iter().for_each(|id| keys.add(TicketKey::new(id, &KEY)));
    keys
}

fn issue(ticket: &Ticket) -> Vec<u8> {
    TicketKey::new(1, &KEY).issue(ticket).unwrap()
}

#[test]
fn golden_bytes_of_version_1() {
    let found: String = issue(&ticket()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, include_str!("golden-v1.hex").trim());
}

/// By the text of `TICKET.md`, written out.
#[test]
fn fields_are_where_the_text_says() {
    let bytes = issue(&ticket());
    assert_eq!(bytes[..16], *b"CDPTICK\x01\x01\0\0\0\x10\0\0\0");
    assert_eq!((bytes[16], bytes[32], bytes[48], bytes[64]), (1, 2, 3, 4));
    assert_eq!((&bytes[96..98], &bytes[104..106]), (&1_000u16.to_le_bytes()[..], &2_000u16.to_le_bytes()[..]));
    assert_eq!((bytes[114], &bytes[120..125]), (16, &b"\x04acme"[..]));
    let end = bytes.len() - 32;
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), &bytes[..end]);
    assert_eq!(mac.as_ref(), &bytes[end..]);
}

#[test]
fn a_ticket_is_good_from_its_first_moment_to_its_last() {
    let (keys, bytes) = (keys([1]), issue(&ticket()));
    assert_eq!(keys.verify(&bytes, WallTime(999)), Err(TicketError::Early { not_before: 1_000, now: 999 }));
    assert_eq!(keys.verify(&bytes, WallTime(1_000)), Ok(ticket()));
    assert_eq!(keys.verify(&bytes, WallTime(2_000)), Ok(ticket()));
    assert_eq!(keys.verify(&bytes, WallTime(2_001)), Err(TicketError::Expired { not_after: 2_000, now: 2_001 }));
}

#[test]
fn a_ticket_of_another_issuer_is_refused() {
    let bytes = TicketKey::new(1, &[8; 32]).issue(&ticket()).unwrap();
    assert_eq!(keys([1]).verify(&bytes, GOOD), Err(TicketError::Mac));
    let bytes = TicketKey::new(2, &KEY).issue(&ticket()).unwrap();
    assert_eq!(keys([1]).verify(&bytes, GOOD), Err(TicketError::UnknownKey { found: 2 }));
    assert_eq!(keys([1]).verify(&[], GOOD), Err(TicketError::Missing));
    // It names a key that is known and was made with the other.
    let mut renamed = bytes;
    renamed[8] = 1;
    assert_eq!(keys([1, 2]).verify(&renamed, GOOD), Err(TicketError::Mac));
}

#[test]
fn the_oldest_key_goes_when_there_are_too_many() {
    let keys = keys(1..=TICKET_KEYS_MAX as u32 + 1);
    assert_eq!(keys.verify(&issue(&ticket()), GOOD), Err(TicketError::UnknownKey { found: 1 }));
    let second = TicketKey::new(2, &KEY).issue(&ticket()).unwrap();
    assert_eq!(keys.verify(&second, GOOD), Ok(ticket()));
}

#[test]
fn a_ticket_is_for_one_route_certificate_tenant_group_and_timeline() {
    let ticket = ticket();
    assert_eq!(ticket.admits_route("proxy-1.example:7440"), Ok(()));
    assert!(matches!(ticket.admits_route("proxy-2.example:7440"), Err(TicketError::Route { .. })));
    assert_eq!(ticket.admits_certificate(&[4; 32]), Ok(()));
    assert_eq!(ticket.admits_certificate(&[5; 32]), Err(TicketError::Certificate));
    let (group, timeline) = (ticket.group, ticket.timeline);
    let (other_group, other_timeline) = (GroupId::new([9; 16]), Timeline::new([9; 16]));
    assert_eq!(ticket.admits_hello("acme", group, timeline), Ok(()));
    assert_eq!(ticket.admits_hello("", group, None), Ok(()));
    assert_eq!(ticket.admits_hello("", None, None), Ok(()));
    assert!(matches!(ticket.admits_hello("other", group, timeline), Err(TicketError::Tenant { .. })));
    let expected = group.unwrap();
    assert_eq!(ticket.admits_hello("acme", other_group, timeline), Err(TicketError::Group { expected }));
    let expected = timeline.unwrap();
    assert_eq!(ticket.admits_hello("acme", group, other_timeline), Err(TicketError::Timeline { expected }));
    let any = Ticket { group: None, timeline: None, ..ticket };
    assert_eq!(any.admits_hello("acme", other_group, other_timeline), Ok(()));
}

#[test]
fn what_no_verifier_would_take_is_not_issued() {
    let key = TicketKey::new(1, &KEY);
    let wrong = |field, value| Err(TicketError::Field { field, value });
    assert_eq!(key.issue(&Ticket { tenant: String::new(), ..ticket() }), wrong("tenant", 0));
    assert_eq!(key.issue(&Ticket { route: "r".repeat(256), ..ticket() }), wrong("route", 256));
    assert_eq!(key.issue(&Ticket { connections: 0, ..ticket() }), wrong("connections", 0));
    assert_eq!(key.issue(&Ticket { not_after: WallTime(1), ..ticket() }), wrong("not_after", 1));
    assert_eq!(TicketKey::new(0, &KEY).issue(&ticket()), wrong("key", 0));
    let longest = Ticket { tenant: "t".repeat(255), route: "r".repeat(255), ..ticket() };
    assert_eq!(issue(&longest).len(), TICKET_BYTES_MAX);
    const { assert!(TICKET_BYTES_MAX <= crate::link::preamble::CONTENT_MAX) };
    assert_eq!(keys([1]).verify(&issue(&longest), GOOD), Ok(longest));
}

proptest! {
    #[test]
    fn every_ticket_comes_back_and_a_change_is_seen(
        (serial, group, timeline) in any::<([u8; 16], [u8; 16], [u8; 16])>(),
        certificate in any::<[u8; 32]>(),
        (tenant, route) in ("[a-zä]{1,100}", "[a-z0-9.:]{1,255}"),
        (connections, rate) in (1u16.., any::<u64>()),
        (at, bit) in (any::<prop::sample::Index>(), 0u8..8),
    ) {
        let ticket = Ticket {
            serial,
            tenant,
            group: GroupId::new(group),
            timeline: Timeline::new(timeline),
            route,
            certificate,
            connections,
            bytes_per_second: Some(rate).filter(|rate| *rate != 0),
            ..ticket()
        };
        let (keys, mut bytes) = (keys([1]), issue(&ticket));
        prop_assert_eq!(keys.verify(&bytes, GOOD), Ok(ticket));
        let at = at.index(bytes.len());
        prop_assert!(keys.verify(&bytes[..at], GOOD).is_err());
        bytes[at] ^= 1 << bit;
        prop_assert!(keys.verify(&bytes, GOOD).is_err());
    }
}
