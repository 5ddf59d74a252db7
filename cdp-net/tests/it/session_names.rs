//! What a session is called is its source's choice, and whoever sees it pass without TLS knows it.

use crate::kit::{Sites, seeded};
use bytes::Bytes;
use cdp_core::journal::read_manifest;
use cdp_core::link::message::{Code, Farewell, Features, Hello, Message, Purpose, Welcome};
use cdp_core::media::Disk;
use cdp_core::types::{GroupId, Lsn, Position, SessionId, Timeline};
use cdp_net::far::{Far, Remote};
use cdp_net::link::connection::ConnectionOptions;
use cdp_net::link::dial::{DIAL_WITHIN, Guard, dial};
use cdp_net::link::hub::{Happened, Hub};
use cdp_net::link::pin::Peers;
use cdp_net::protect::ProtectionOptions;
use cdp_net::services::far_link::{FarLink, FarOptions};
use std::sync::Arc;
use std::time::Duration;

/// A group whose filter was there, and whose timeline is open.
struct Begun {
    name: &'static str,
    group: GroupId,
    timeline: Timeline,
}

impl Begun {
    fn at(sites: &Sites, name: &'static str) -> Self {
        sites.place.make_source(name, 1);
        let options = FarOptions { name: name.into(), ..sites.far_options(sites.host.address) };
        let far: Arc<dyn Far> = Arc::new(Remote::new(FarLink::start(sites.identity("filter"), options).unwrap()));
        let options = ProtectionOptions { name: Some(name.into()), ..sites.place.options_for_far(&[name]) };
        let protection = sites.place.protect(&options, &far, |_| {}).unwrap();
        seeded(&protection);
        // As by a crash: the host keeps the group on.
        drop((protection, far));
        let manifest = read_manifest(&Disk::open(sites.replicas().join("acme").join(name)).unwrap()).unwrap();
        Self { name, group: manifest.group, timeline: manifest.timelines.last().unwrap().id }
    }

    /// Newer than any before.
    fn hello(&self, session: SessionId) -> Hello {
        Hello {
            versions: 1..=1,
            connection: 0,
            connections: 1,
            plain: true,
            features: Features::ALL,
            session,
            attempt: cdp_net::clock::wall().0,
            purpose: Purpose::Frames,
            group: Some(self.group),
            timeline: Some(self.timeline),
            durable_seen: Lsn(0),
            oldest: Position::default(),
            silence_ms: 10_000,
            tenant: String::new(),
            name: self.name.into(),
            software: "test".into(),
        }
    }
}

/// A connection of the filter's that says this: the host's welcome, or why there is none.
async fn enter(sites: &Sites, guard: &Guard, hello: &Hello) -> Result<(Hub, Box<Welcome>), Farewell> {
    let (own, peers) = (sites.identity("filter"), Peers::new([sites.identity("host").fingerprint()]));
    let address = sites.host.address.to_string();
    let opened = dial(&address, hello.connection, guard, &own, &peers, DIAL_WITHIN).await.unwrap();
    let mut hub = Hub::new(own, ConnectionOptions::default());
    let conn = hub.add(opened);
    hub.send(conn, Message::Hello(Box::new(hello.clone())));
    loop {
        let happened = tokio::time::timeout(Duration::from_secs(30), hub.next()).await.expect("in time");
        match happened {
            Happened::Message { message: Message::Welcome(welcome), .. } => return Ok((hub, welcome)),
            Happened::Message { message: Message::Error(why) | Message::Close(why), .. } => return Err(why),
            Happened::Disconnected { why, .. } => return Err(Farewell::new(Code::Silent, why)),
            _ => {}
        }
    }
}

#[test]
fn nobody_takes_the_name_of_another_session() {
    let sites = Sites::new();
    let (one, other) = (Begun::at(&sites, "machine"), Begun::at(&sites, "other"));
    let session = SessionId::new(cdp_net::random::identity()).unwrap();
    let tls = Guard::Tls { ticket: Bytes::new() };
    sites.host.runtime.block_on(async {
        let hello = one.hello(session);
        let (first, welcome) = enter(&sites, &tls, &hello).await.unwrap();
        let refused = enter(&sites, &tls, &other.hello(session)).await.map(drop).unwrap_err();
        assert_eq!(refused.code, Code::Unexpected, "{refused}");
        // Who has the name still has its key, too: a data connection of his finds him.
        let plain = Guard::Plain { session, key: welcome.data_key.unwrap() };
        let data = enter(&sites, &plain, &Hello { connection: 1, ..hello }).await.unwrap();
        drop((first, data));
        // And when he is gone it is free.
        for _ in 0..1000 {
            if enter(&sites, &tls, &other.hello(session)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the name stays taken");
    });
}
