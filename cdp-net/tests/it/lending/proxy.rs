//! A proxy of the tests: the core's relay with a disk cache in memory, on real links. Each timeline's frames have a relay of their own,
//! and so do calls.

use cdp_core::journal::Executor;
use cdp_core::link::message::{Farewell, Features};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::relay::{Hop, Relay, RelayEffect, RelayOptions};
use cdp_core::link::source::SourceOptions;
use cdp_core::link::spool::{Spool, SpoolOptions};
use cdp_core::link::target::TargetOptions;
use cdp_core::media::Memory;
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use cdp_net::link::accept::{Accepted, Admission, Gate, LinkDoor};
use cdp_net::link::connection::ConnectionOptions;
use cdp_net::link::dial::Guard;
use cdp_net::link::hub::{Happened, Hub};
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::{AcceptOptions, Listener};
use cdp_net::link::pin::Peers;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn mono() -> MonoTime {
    MonoTime(1_000_000_000 + BEGAN.elapsed().as_nanos() as u64)
}

/// Who a proxy is to both sides, and where the next hop is.
#[derive(Clone)]
pub(crate) struct Ways {
    pub(crate) above: Arc<Identity>,
    pub(crate) below: Arc<Identity>,
    pub(crate) peers_above: Peers,
    pub(crate) peers_below: Peers,
    pub(crate) next: SocketAddr,
    /// What is kept, in bytes.
    pub(crate) held_bytes: u64,
}

struct Open(Peers);

impl Gate for Open {
    fn admit(&self, _: &Preamble, _: SocketAddr, _: SocketAddr) -> Result<Admission, Farewell> {
        Ok(Admission::Tls(self.0.clone()))
    }
}

/// Dropping it loses everything that it has.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Proxy {
    pub(crate) fn start(ways: Ways, listen: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let (sender, mut accepted) = channel::<Accepted>(16);
        let door = LinkDoor::new(Arc::clone(&ways.above), Arc::new(Open(ways.peers_above.clone())));
        let listen = listen.to_string();
        let listening = Listener::listen(&listen, door, AcceptOptions::default(), sender);
        let listener = runtime.block_on(listening).unwrap();
        let address = listener.address;
        runtime.spawn(async move {
            let _listener = listener;
            let mut tasks: BTreeMap<Option<Timeline>, UnboundedSender<Accepted>> = BTreeMap::new();
            while let Some(accepted) = accepted.recv().await {
                let of = (accepted.hello.group, accepted.hello.timeline);
                let task = tasks.entry(of.1).or_insert_with(|| {
                    let (sender, queue) = unbounded_channel();
                    tokio::spawn(relay(ways.clone(), of, queue));
                    sender
                });
                task.send(accepted).unwrap();
            }
        });
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

fn options(ways: &Ways, (group, timeline): (Option<GroupId>, Option<Timeline>)) -> RelayOptions {
    RelayOptions {
        above: TargetOptions {
            group,
            timeline,
            features: Features::ALL,
            connections: 0,
            silence_ms: 3_000,
            attempt: 0,
        },
        below: SourceOptions {
            group,
            timeline,
            tenant: String::new(),
            name: "machine".into(),
            software: "test".into(),
            features: Features::ALL,
            connections: 0,
            plain: false,
            silence_ms: 1_500,
            start: Position::default(),
            origin: false,
            durable: Lsn::ZERO,
            attempt: SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64,
            retry_max_ns: 500_000_000,
            seed: [timeline.map_or(1, |timeline| timeline.bytes()[0]); 32],
        },
        held_bytes_max: ways.held_bytes,
        window_bytes: 8 << 20,
        stores: true,
    }
}

fn spool(ways: &Ways) -> Spool {
    Spool::new(SpoolOptions {
        memory_bytes_max: 16 << 20,
        disk_bytes_max: 2 * ways.held_bytes,
        file_bytes: 8 << 20,
        directory: String::new(),
        ahead_bytes: 2 << 20,
        always: true,
        ids: 1,
    })
}

async fn relay(
    ways: Ways,
    of: (Option<GroupId>, Option<Timeline>),
    mut queue: tokio::sync::mpsc::UnboundedReceiver<Accepted>,
) {
    let executor = Executor::new(Arc::new(Memory::new()));
    let mut relay = Relay::new(mono(), options(&ways, of), spool(&ways), &[]);
    let mut above = Hub::new(Arc::clone(&ways.above), ConnectionOptions::default());
    let mut below = Hub::new(Arc::clone(&ways.below), ConnectionOptions::default());
    loop {
        while let Some(effect) = relay.poll(mono()) {
            match effect {
                RelayEffect::Connect { dial, .. } => {
                    let guard = Guard::Tls { ticket: bytes::Bytes::new() };
                    below.dial(dial, &ways.next.to_string(), guard, &ways.peers_below);
                }
                RelayEffect::Send { hop: Hop::Above, conn, message } => above.send(conn, message),
                RelayEffect::Send { hop: Hop::Below, conn, message } => below.send(conn, message),
                RelayEffect::Close { hop: Hop::Above, conn, farewell } => above.close(conn, farewell),
                RelayEffect::Close { hop: Hop::Below, conn, farewell } => below.close(conn, farewell),
                RelayEffect::Taken { run, frame } => relay.keep(mono(), run, frame),
                RelayEffect::Disk(id, effect) => {
                    let outcome = executor.run(&effect);
                    relay.disk_completed(mono(), id, outcome);
                }
                RelayEffect::Event(_) => {}
            }
        }
        let wait = relay.next_deadline().map_or(Duration::from_secs(60), |at| Duration::from_nanos(at.since(mono())));
        let (hop, happened) = tokio::select! {
            accepted = queue.recv() => {
                let Some(accepted) = accepted else { return };
                let conn = above.add(accepted.opened);
                relay.handle_accepted(mono(), conn, *accepted.hello, None);
                continue;
            }
            happened = above.next() => (Hop::Above, happened),
            happened = below.next() => (Hop::Below, happened),
            () = tokio::time::sleep(wait) => {
                relay.handle_timer(mono());
                continue;
            }
        };
        let now = mono();
        match happened {
            Happened::Connected { dial, conn } => relay.handle_connected(now, conn, dial),
            Happened::NotConnected { dial, error } => relay.handle_connect_failed(now, dial, &error.to_string()),
            Happened::Message { conn, message } => relay.handle_message(now, hop, conn, message),
            Happened::Heard { conn } => relay.handle_heard(now, hop, conn),
            Happened::Sent { conn, bytes } => relay.handle_sent(now, hop, conn, bytes),
            Happened::Disconnected { conn, why } => relay.handle_disconnected(now, hop, conn, &why),
        }
    }
}
