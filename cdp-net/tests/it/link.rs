//! Links over loopback: who is let in, who is not, and what a peer that means harm can cost.

mod hostile;
mod machines;
mod tls;

use cdp_core::link::message::{Code, DataKey, Farewell, Features, Hello, Message, Purpose, Welcome};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::source::{ConnId, Dial};
use cdp_core::types::{GroupId, Lsn, Position, SessionId, Timeline};
use cdp_net::link::accept::{Accepted, Admission, Gate, LinkDoor};
use cdp_net::link::connection::ConnectionOptions;
use cdp_net::link::dial::Guard;
use cdp_net::link::hub::{Happened, Hub};
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::{AcceptOptions, Listener};
use cdp_net::link::pin::Peers;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A part with an identity of its own.
struct Part {
    identity: Arc<Identity>,
    _directory: TempDir,
}

impl Part {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::open_or_make(directory.path(), "test").unwrap());
        Self { identity, _directory: directory }
    }

    fn peers(&self) -> Peers {
        Peers::new([self.identity.fingerprint()])
    }

    fn hub(&self) -> Hub {
        Hub::new(Arc::clone(&self.identity), ConnectionOptions::default())
    }
}

/// Lets in who is listed, and data connections of sessions whose key it has.
struct Doorkeeper {
    peers: Peers,
    keys: Mutex<BTreeMap<SessionId, DataKey>>,
    /// The only ticket that is taken; none: any.
    ticket: Option<&'static [u8]>,
}

impl Gate for Doorkeeper {
    fn admit(&self, preamble: &Preamble, from: SocketAddr, to: SocketAddr) -> Result<Admission, Farewell> {
        assert!(from.ip().is_loopback() && to.ip().is_loopback());
        match preamble {
            Preamble::Tls { ticket } if self.ticket.is_some_and(|expected| expected != ticket) => {
                Err(Farewell::new(Code::TicketInvalid, "another ticket").with(1, 2))
            }
            Preamble::Plain { session, .. } => {
                let key = self.keys.lock().unwrap().get(session).cloned();
                key.map(Admission::Plain).ok_or_else(|| Farewell::new(Code::Unexpected, "no such session"))
            }
            _ => Ok(Admission::Tls(self.peers.clone())),
        }
    }
}

struct Server {
    part: Part,
    gate: Arc<Doorkeeper>,
    listener: Listener,
    accepted: mpsc::Receiver<Accepted>,
}

impl Server {
    async fn new(peers: Peers, options: AcceptOptions) -> Self {
        Self::with_ticket(peers, options, None).await
    }

    async fn with_ticket(peers: Peers, options: AcceptOptions, ticket: Option<&'static [u8]>) -> Self {
        let part = Part::new();
        let gate = Arc::new(Doorkeeper { peers, keys: Mutex::default(), ticket });
        let (sender, accepted) = mpsc::channel(16);
        let identity = Arc::clone(&part.identity);
        let door = LinkDoor::new(identity, gate.clone());
        let listener = Listener::listen("127.0.0.1:0", door, options, sender).await.unwrap();
        Self { part, gate, listener, accepted }
    }

    fn address(&self) -> String {
        self.listener.address.to_string()
    }
}

fn tls() -> Guard {
    Guard::Tls { ticket: bytes::Bytes::new() }
}

fn session() -> SessionId {
    SessionId::new([3; 16]).unwrap()
}

fn group() -> GroupId {
    GroupId::new([2; 16]).unwrap()
}

fn timeline() -> Timeline {
    Timeline::new([1; 16]).unwrap()
}

fn hello() -> Hello {
    Hello {
        versions: 1..=1,
        connection: 0,
        connections: 0,
        plain: false,
        features: Features::ALL,
        session: session(),
        attempt: 1,
        purpose: Purpose::Frames,
        group: Some(group()),
        timeline: Some(timeline()),
        durable_seen: Lsn(0),
        oldest: Position::default(),
        silence_ms: 10_000,
        tenant: String::new(),
        name: String::new(),
        software: "test".into(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        connections: 0,
        data_key: None,
        features: Features::ALL,
        credit: 1 << 40,
        have: None,
        durable: Lsn(0),
        lost: None,
        silence_ms: 10_000,
    }
}

async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what).await.expect("in time")
}

/// The connection that was asked for, or why it is not there.
async fn connected(hub: &mut Hub, server: &Server, guard: Guard, peers: &Peers) -> Result<ConnId, String> {
    hub.dial(Dial { attempt: 1, index: 0 }, &server.address(), guard, peers);
    match within(20, hub.next()).await {
        Happened::Connected { conn, .. } => Ok(conn),
        Happened::NotConnected { error, .. } => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

/// The next message, and on which connection.
async fn message(hub: &mut Hub) -> (ConnId, Message) {
    loop {
        match within(20, hub.next()).await {
            Happened::Message { conn, message } => return (conn, message),
            Happened::Sent { .. } | Happened::Heard { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Why the next connection that ends does.
async fn ended(hub: &mut Hub) -> String {
    loop {
        match within(20, hub.next()).await {
            Happened::Disconnected { why, .. } => return why,
            Happened::Sent { .. } | Happened::Heard { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A source's hub and a target's with one connection between them, behind hello and welcome.
async fn pair(server: &mut Server, source: &Part) -> ((Hub, ConnId), (Hub, ConnId)) {
    let (mut near, mut far) = (source.hub(), server.part.hub());
    let peers = server.part.peers();
    let conn = connected(&mut near, server, tls(), &peers).await.unwrap();
    near.send(conn, Message::Hello(Box::new(hello())));
    let accepted = within(20, server.accepted.recv()).await.unwrap();
    let theirs = far.add(accepted.opened);
    far.send(theirs, Message::Welcome(Box::new(welcome())));
    assert!(matches!(message(&mut near).await, (_, Message::Welcome(_))));
    ((near, conn), (far, theirs))
}
