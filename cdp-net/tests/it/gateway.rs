//! Through a gateway to a replica host: with a good ticket, with bad ones, and with harm in mind.

mod flood;
mod in_file;
mod relaying;
mod whole;

use crate::kit::{any, host_options, identity, replicas};
use bytes::Bytes;
use cdp_core::link::message::{Code, Farewell, Features, Hello, Message, Purpose};
use cdp_core::trust::ticket::{Ticket, TicketKey};
use cdp_core::types::{GroupId, Position, SessionId, WallTime};
use cdp_net::clock::wall;
use cdp_net::link::connection::{ConnectionOptions, Opened};
use cdp_net::link::dial::{DIAL_WITHIN, DialError, Guard, dial};
use cdp_net::link::hub::{Happened, Hub};
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::services::config::Config;
use cdp_net::services::door::{BehindGateway, Judge};
use cdp_net::services::gateway::Gateway;
use cdp_net::services::peers::PeerBook;
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use cdp_net::services::role::{Context, Notes, Role, TenantReport};
use cdp_net::services::tickets::KeyFile;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const MINUTE_NS: u64 = 60_000_000_000;

/// A provider with one gateway, and tenants' identities.
struct Provider {
    directory: TempDir,
    runtime: Runtime,
    gateway: Option<Gateway>,
    address: SocketAddr,
}

impl Provider {
    /// Its gateway leads to `to` by the name `target-1`; `more` stands in its table.
    fn new(to: SocketAddr, more: &str) -> Self {
        Self::leading(|_, _| to, more)
    }

    fn leading(to: impl FnOnce(&Runtime, &TempDir) -> SocketAddr, more: &str) -> Self {
        let (directory, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        KeyFile::make(&directory.path().join("ticket.key")).unwrap();
        let to = to(&runtime, &directory);
        let mut provider = Self { directory, runtime, gateway: None, address: to };
        let config = provider.config("127.0.0.1:0", to, more);
        let gateway = Gateway::start(&config, &provider.context()).unwrap();
        provider.address = gateway.address();
        provider.gateway = Some(gateway);
        provider
    }

    fn config(&self, listen: &str, to: SocketAddr, more: &str) -> Config {
        let key = self.directory.path().join("ticket.key");
        let text = format!(
            "state = \"unused\"\n[gateway]\nlisten = \"{listen}\"\nticket-key = {key:?}\n{more}\nto = {{ target-1 = \"{to}\" }}\n"
        );
        Config::parse(&text).unwrap()
    }

    fn context(&self) -> Context {
        Context {
            runtime: self.runtime.handle().clone(),
            identity: self.identity("gateway"),
            peers: PeerBook::default(),
            state: self.directory.path().to_owned(),
            notes: Notes::new(|_| {}),
        }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        identity(self.directory.path(), name)
    }

    /// The newest key of the gateway.
    fn key(&self) -> TicketKey {
        KeyFile::read(&self.directory.path().join("ticket.key")).unwrap().newest
    }

    /// A ticket that is good for who has this certificate.
    fn ticket(&self, tenant: &str, holder: &str) -> Ticket {
        Ticket {
            serial: [1; 16],
            tenant: tenant.into(),
            group: None,
            timeline: None,
            route: "target-1".into(),
            certificate: self.identity(holder).fingerprint().0,
            not_before: WallTime(wall().0 - 5 * MINUTE_NS),
            not_after: WallTime(wall().0 + 60 * MINUTE_NS),
            connections: 64,
            bytes_per_second: None,
        }
    }

    fn issue(&self, ticket: &Ticket) -> Bytes {
        self.key().issue(ticket).unwrap().into()
    }

    /// Dials as `who` with this ticket; `host` must answer at the end.
    async fn dial(&self, to: SocketAddr, who: &str, ticket: &Bytes) -> Result<Opened, DialError> {
        let (guard, peers) = (Guard::Tls { ticket: ticket.clone() }, Peers::new([self.identity("host").fingerprint()]));
        dial(&to.to_string(), 0, &guard, &self.identity(who), &peers, DIAL_WITHIN).await
    }

    /// What whoever dials is told before TLS.
    async fn refusal(&self, to: SocketAddr, who: &str, ticket: &Bytes) -> Farewell {
        match self.dial(to, who, ticket).await {
            Err(DialError::Refused { farewell, .. }) => farewell,
            other => panic!("{other:?}"),
        }
    }

    /// Asks to be let in as `who`, for a group of this tenant: `Ok` with the welcome's connection, or the last word.
    async fn enter(
        &self,
        to: SocketAddr,
        who: &str,
        ticket: &Bytes,
        tenant: &str,
        group: Option<GroupId>,
    ) -> Result<Hub, Farewell> {
        let opened = match self.dial(to, who, ticket).await {
            Ok(opened) => opened,
            Err(DialError::Refused { farewell, .. }) => return Err(farewell),
            Err(error) => return Err(Farewell::new(Code::Unreachable, error.to_string())),
        };
        let mut hub = Hub::new(self.identity(who), ConnectionOptions::default());
        let conn = hub.add(opened);
        hub.send(conn, Message::Hello(Box::new(hello(tenant, group))));
        loop {
            match within(30, hub.next()).await {
                Happened::Message { message: Message::Welcome(_), .. } => return Ok(hub),
                Happened::Message { message: Message::Error(farewell) | Message::Close(farewell), .. } => {
                    return Err(farewell);
                }
                Happened::Disconnected { why, .. } => return Err(Farewell::new(Code::Silent, why)),
                _ => {}
            }
        }
    }

    fn tenant(&self, name: &str) -> TenantReport {
        let all = self.gateway().report().tenants;
        all.into_iter().find(|of| of.tenant == name).unwrap_or_default()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // Before the runtime that it stands on.
        self.gateway = None;
    }
}

/// A replica host that lets nobody in but by tickets that lead to `target-1`.
async fn host(directory: &TempDir, accept: AcceptOptions) -> ReplicaHost {
    let judge = Judge::read(&directory.path().join("ticket.key")).unwrap();
    let tickets = Some(BehindGateway::new(judge, Some("target-1".into())));
    let root = directory.path();
    let options = ReplicaHostOptions { tickets, accept, ..host_options(root, any(), PeerBook::default()) };
    ReplicaHost::start(identity(root, "host"), options).await.unwrap()
}

/// A provider with a replica host right behind its gateway.
fn with_host(more: &str, accept: AcceptOptions) -> (Provider, ReplicaHost) {
    let mut started = None;
    let provider = Provider::leading(
        |runtime, directory| {
            let host = runtime.block_on(host(directory, accept));
            started.insert(host).address()
        },
        more,
    );
    (provider, started.unwrap())
}

fn hello(tenant: &str, group: Option<GroupId>) -> Hello {
    Hello {
        versions: 1..=1,
        connection: 0,
        connections: 0,
        plain: false,
        features: Features::ALL,
        session: SessionId::new(cdp_net::random::identity()).unwrap(),
        attempt: 1,
        purpose: Purpose::Calls,
        group,
        timeline: None,
        durable_seen: cdp_core::types::Lsn(0),
        oldest: Position::default(),
        silence_ms: 10_000,
        tenant: tenant.into(),
        name: "machine".into(),
        software: "test".into(),
    }
}

async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what).await.expect("in time")
}

/// Until it holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}
