//! The whole way: a filter, a gateway, a replica host.

use super::*;
use crate::kit::{Place, far_options, label, noise, restored, seeded, stop, wait_for, write};
use cdp_core::journal::read_manifest;
use cdp_core::link::message::{Answer, Call, CallStatus};
use cdp_core::link::source::ConnId;
use cdp_core::media::Disk;
use cdp_core::when::When;
use cdp_net::far::{CallKind, Far, Remote};
use cdp_net::protect::Protection;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::traffic::Traffic;

fn protect(provider: &Provider, place: &Place, ticket: Bytes) -> Protection {
    let straight = far_options(&[provider.address], &provider.identity("host"));
    // Whatever rules say: what passes a gateway is encrypted.
    let traffic = Traffic::default();
    let options = FarOptions { silence_ms: 10_000, connections: 2, ticket, traffic, ..straight };
    let far: Arc<dyn Far> = Arc::new(Remote::new(FarLink::start(provider.identity("filter"), options).unwrap()));
    place.protect(&place.options_for_far(&["disk"]), &far, |_| {}).unwrap()
}

/// How the replica of `machine` stands, asked with this ticket.
async fn standing(provider: &Provider, ticket: &Bytes) -> Answer {
    let mut hub = provider.enter(provider.address, "filter", ticket, "acme", None).await.unwrap();
    let call = Call { kind: CallKind::Standing as u16, header: Bytes::from_static(b"null"), tail: Bytes::new() };
    hub.send(ConnId(1), Message::Call(1, call));
    loop {
        match within(30, hub.next()).await {
            Happened::Message { message: Message::Answer(1, answer), .. } => return answer,
            Happened::Disconnected { why, .. } => panic!("{why}"),
            _ => {}
        }
    }
}

/// The replica host knows the filter by its ticket only, and keeps the group as that of the ticket's tenant.
#[test]
fn a_filter_reaches_its_replica_through_a_gateway() {
    let (provider, host) = with_host("", AcceptOptions::default());
    let place = Place::new();
    let mut model = place.make_source("disk", 4);
    let ticket = provider.issue(&provider.ticket("acme", "filter"));
    let protection = protect(&provider, &place, ticket);
    seeded(&protection);
    write(&protection, &mut model, 4096, noise(5, 300 << 10));
    protection.mark(&label("written")).unwrap();
    let of = provider.tenant("acme");
    assert!(of.in_bytes > model.len() as u64 && of.out_bytes > 0 && of.connections >= 2, "{of:?}");
    // Who may ask about one group is told nothing of another one, by whatever name he asks.
    let directory = replicas(provider.directory.path()).join("acme/machine");
    let group = read_manifest(&Disk::open(&directory).unwrap()).unwrap().group;
    let asked = |group| {
        let ticket = Ticket { group: Some(group), ..provider.ticket("acme", "filter") };
        provider.runtime.block_on(standing(&provider, &provider.issue(&ticket)))
    };
    let refused = asked(GroupId::new([5; 16]).unwrap());
    assert!(refused.status == CallStatus::Refused && refused.header.windows(11).any(|at| at == b"other-group"));
    assert_eq!(asked(group).status, CallStatus::Done);
    stop(protection);
    wait_for("the connections' end", || provider.tenant("acme").connections == 0);
    provider.runtime.block_on(host.stop());
    std::fs::rename(directory, place.replica()).unwrap();
    assert!(restored(&place.load(), &When::Label(label("written")), "disk") == model);
}

/// Whoever dials is told why, by a code: before TLS by the gateway, inside of it by the host.
#[test]
fn a_ticket_lets_in_who_has_its_certificate_for_its_tenant_and_nobody_else() {
    let (provider, host) = with_host("", AcceptOptions::default());
    let (gateway, behind) = (provider.address, host.address());
    let good = provider.ticket("acme", "filter");
    let ticket = provider.issue(&good);
    let other_key = TicketKey::new(1, &[7; 32]).issue(&good).unwrap().into();
    let unknown_key = TicketKey::new(9, &[7; 32]).issue(&good).unwrap().into();
    let route = provider.issue(&Ticket { route: "target-2".into(), ..good.clone() });
    let past = |minutes| WallTime(wall().0 - minutes * MINUTE_NS);
    let expired = provider.issue(&Ticket { not_before: past(9), not_after: past(1), ..good.clone() });
    let only = GroupId::new([5; 16]).unwrap();
    let of_group = provider.issue(&Ticket { group: Some(only), ..good.clone() });
    provider.runtime.block_on(async {
        let cases = [
            (Bytes::new(), Code::TicketInvalid, "no ticket"),
            (Bytes::from_static(b"CDPTICK\x02 and more of it"), Code::TicketInvalid, "bytes"),
            (other_key, Code::TicketInvalid, "MAC"),
            (unknown_key, Code::TicketInvalid, "key 9"),
            (route, Code::TicketInvalid, "target-2"),
            (expired, Code::TicketExpired, "get a new one"),
        ];
        for (ticket, code, text) in cases {
            let told = provider.refusal(gateway, "filter", &ticket).await;
            assert!(told.code == code && told.text.contains(text), "{told:?}");
            if ticket.is_empty() {
                // Without a ticket the certificate would have to be listed.
                let told = provider.enter(behind, "filter", &ticket, "acme", None).await.unwrap_err();
                assert_eq!(told.code, Code::Unauthorized, "{told:?}");
                continue;
            }
            // Who stands behind judges for itself.
            let told = provider.refusal(behind, "filter", &ticket).await;
            assert!(told.code == code && told.text.contains(text), "{told:?}");
        }
        // As somebody does who saw the ticket pass.
        let told = provider.enter(gateway, "thief", &ticket, "acme", None).await.unwrap_err();
        assert_eq!(told.code, Code::Unauthorized, "{told:?}");
        let told = provider.enter(gateway, "filter", &ticket, "other", None).await.unwrap_err();
        assert_eq!(told.code, Code::OtherTenant, "{told:?}");
        let another = GroupId::new([6; 16]);
        let told = provider.enter(gateway, "filter", &of_group, "acme", another).await.unwrap_err();
        assert_eq!(told.code, Code::TicketInvalid, "{told:?}");
        // And the good ones, with and without a name.
        provider.enter(gateway, "filter", &ticket, "acme", None).await.unwrap();
        provider.enter(gateway, "filter", &ticket, "", None).await.unwrap();
        provider.enter(gateway, "filter", &of_group, "acme", Some(only)).await.unwrap();
    });
    assert!(!replicas(provider.directory.path()).join("other").exists());
    provider.runtime.block_on(host.stop());
}

/// A key that is taken off the file lets nobody in any more; one that is added does, without a restart.
#[test]
fn keys_are_read_again() {
    let (provider, host) = with_host("", AcceptOptions::default());
    let path = provider.directory.path().join("ticket.key");
    let old = provider.issue(&provider.ticket("acme", "filter"));
    KeyFile::rotate(&path).unwrap();
    let new = provider.issue(&provider.ticket("acme", "filter"));
    let dial = |ticket: &Bytes| provider.runtime.block_on(provider.dial(provider.address, "filter", ticket));
    assert!(matches!(dial(&new), Err(DialError::Refused { .. })));
    let config = provider.config("127.0.0.1:0", host.address(), "");
    assert_eq!(provider.gateway().reload(&config).unwrap(), Vec::<String>::new());
    // The host has the old keys: its word comes through the gateway.
    assert!(matches!(dial(&new), Err(DialError::Refused { .. })));
    dial(&old).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.lines().last().unwrap()).unwrap();
    provider.gateway().reload(&config).unwrap();
    let told = provider.runtime.block_on(provider.refusal(provider.address, "filter", &old));
    assert!(told.text.contains("key 1"), "{told:?}");
    std::fs::write(&path, "no key").unwrap();
    let refused = provider.gateway().reload(&config).unwrap_err().to_string();
    assert!(refused.starts_with("gateway.ticket-key: "), "{refused}");
    let told = provider.runtime.block_on(provider.refusal(provider.address, "filter", &old));
    assert!(told.text.contains("key 1"), "what it had stays: {told:?}");
    provider.runtime.block_on(host.stop());
}
