//! Members in other processes: each dials the taker of the cuts, and both say what they have to say by calls.
//!
//! The machines of the link carry it, over TLS with pinned certificates on the hosts' own network. Nothing is repeated here that was lost: the
//! taker says again what is not answered, and a member answers again.

use super::words::{CALL, order_of, order_to_bytes, report_of, report_to_bytes};
use super::{Reports, Way};
use crate::clock::mono;
use crate::link::accept::{Accepted, Admission, Gate, LinkDoor};
use crate::link::connection::ConnectionOptions;
use crate::link::dial::Guard;
use crate::link::hub::{Happened, Hub};
use crate::link::identity::Identity;
use crate::link::listener::{AcceptOptions, Listener};
use crate::link::pin::{Fingerprint, Peers};
use crate::random::identity;
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call, CallStatus, Code, Farewell, Features};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::source::{SourceEffect, SourceEnd, SourceOptions};
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use cdp_core::set::{Order, Report};
use cdp_core::types::{GroupId, Lsn, MonoTime, Position};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Orders, or reports, that wait to be sent; one more is lost.
const WAITING_MAX: usize = 256;
/// A call whose answer does not come for so long is forgotten. What it said is old by then.
const CALL_NS: u64 = 1_000_000_000;
/// After so long without a word the other side is taken for dead, and dialled again.
const SILENCE_MS: u32 = 2_000;
/// A taker that cannot be reached is tried again so often at least.
const RETRY_NS: u64 = 1_000_000_000;

fn call(header: Bytes) -> Call {
    Call { kind: CALL, header, tail: Bytes::new() }
}

/// The answer to a call, and what it said.
fn heard<T>(call: &Call, of: impl Fn(&[u8]) -> Option<T>) -> (Answer, Option<T>) {
    let said = if call.kind == CALL { of(&call.header) } else { None };
    let status = match said {
        Some(_) => CallStatus::Done,
        None if call.kind == CALL => CallStatus::Refused,
        None => CallStatus::UnknownKind,
    };
    (Answer { kind: call.kind, status, header: Bytes::new(), tail: Bytes::new() }, said)
}

async fn until(deadline: Option<MonoTime>) {
    match deadline {
        Some(at) => tokio::time::sleep(Duration::from_nanos(at.since(mono()))).await,
        None => std::future::pending().await,
    }
}

/// Where a member finds the taker of its set's cuts.
#[derive(Clone, Debug)]
pub struct TakerAddress {
    /// HOST:PORT.
    pub address: String,
    /// Its certificate.
    pub fingerprint: Fingerprint,
}

/// Where a member's reports go on their way to a taker in another process, and where [`attend`] finds them.
#[must_use]
pub fn reports_out() -> (mpsc::Sender<Report>, mpsc::Receiver<Report>) {
    mpsc::channel(WAITING_MAX)
}

/// A member's side: dials, and dials again, until it is dropped or nobody gives reports any more. `order` is called with what the taker says; it must
/// not wait for long. A taker that does not let this member in is asked again.
pub async fn attend(
    own: Arc<Identity>,
    taker: TakerAddress,
    group: GroupId,
    mut reports: mpsc::Receiver<Report>,
    order: impl Fn(Order) + Send,
) {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&identity());
    seed[16..].copy_from_slice(&identity());
    let options = SourceOptions {
        group: Some(group),
        timeline: None,
        tenant: String::new(),
        name: String::new(),
        software: concat!("cdp ", env!("CARGO_PKG_VERSION")).to_owned(),
        features: Features::ALL,
        connections: 0,
        plain: false,
        silence_ms: SILENCE_MS,
        start: Position::whole(Lsn::ZERO),
        origin: true,
        durable: Lsn::ZERO,
        attempt: 0,
        retry_max_ns: RETRY_NS,
        seed,
    };
    let mut end = SourceEnd::new(mono(), options);
    let mut hub = Hub::new(own, ConnectionOptions::default());
    let peers = Peers::new([taker.fingerprint]);
    let mut rest = tokio::time::interval(Duration::from_nanos(RETRY_NS));
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                SourceEffect::Connect { dial, .. } => {
                    hub.dial(dial, &taker.address, Guard::Tls { ticket: Bytes::new() }, &peers);
                }
                SourceEffect::Send { conn, message } => hub.send(conn, message),
                SourceEffect::Close { conn, farewell } => hub.close(conn, farewell),
                SourceEffect::Called { id, call } => {
                    let (answer, said) = heard(&call, order_of);
                    said.into_iter().for_each(&order);
                    end.answer(mono(), id, answer);
                }
                // What is not answered is asked for again by the taker; without frames there is nothing else.
                _ => {}
            }
        }
        tokio::select! {
            biased;
            report = reports.recv() => match report {
                // Without a session it is lost, and so is the cut.
                Some(report) if end.is_up() => drop(end.call(mono(), call(report_to_bytes(&report)), CALL_NS)),
                Some(_) => {}
                None => return,
            },
            happened = hub.next() => match happened {
                Happened::Connected { dial, conn } => end.handle_connected(mono(), conn, dial),
                Happened::NotConnected { dial, error } => end.handle_connect_failed(mono(), dial, &error.to_string()),
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => end.handle_disconnected(mono(), conn, &why),
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
            // A machine that tries no more by itself is told to: the set may have been changed meanwhile.
            _ = rest.tick(), if end.is_resting() => end.dial(mono()),
        }
    }
}

/// Lets in members, each by its certificate.
struct Members(Peers);

impl Gate for Members {
    fn admit(&self, preamble: &Preamble, _from: SocketAddr, _to: SocketAddr) -> Result<Admission, Farewell> {
        match preamble {
            Preamble::Tls { .. } => Ok(Admission::Tls(self.0.clone())),
            _ => Err(Farewell::new(Code::Unexpected, "a member of a consistency set comes by TLS")),
        }
    }
}

/// The taker's side, for members in other processes. Ends when it is dropped.
#[derive(Debug)]
pub struct Meeting {
    listener: Listener,
    _tasks: JoinSet<()>,
}

impl Meeting {
    /// Listens for members: of each the group, and the certificate that may speak for it. Gives the ways to them.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn listen(
        address: &str,
        own: Arc<Identity>,
        members: BTreeMap<GroupId, Fingerprint>,
        reports: &Reports,
    ) -> std::io::Result<(Self, BTreeMap<GroupId, Way>)> {
        let gate = Arc::new(Members(Peers::new(members.values().copied())));
        let door = LinkDoor::new(Arc::clone(&own), gate);
        let (sender, accepted) = mpsc::channel(WAITING_MAX);
        let listener = Listener::listen(address, door, AcceptOptions::default(), sender).await?;
        let (mut tasks, mut ways, mut seats) = (JoinSet::new(), BTreeMap::new(), BTreeMap::new());
        for (group, fingerprint) in members {
            let (orders, queue) = mpsc::channel(WAITING_MAX);
            let (come, came) = mpsc::channel(1);
            let way: Way = Box::new(move |order| {
                let _ = orders.try_send(order);
            });
            ways.insert(group, way);
            seats.insert(group, (fingerprint, come));
            tasks.spawn(converse(Arc::clone(&own), group, queue, came, reports.clone()));
        }
        tasks.spawn(seat(accepted, seats));
        Ok((Self { listener, _tasks: tasks }, ways))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }
}

/// Brings those who come to the conversation of their group, if they may speak for it.
async fn seat(mut accepted: mpsc::Receiver<Accepted>, seats: BTreeMap<GroupId, (Fingerprint, mpsc::Sender<Accepted>)>) {
    while let Some(come) = accepted.recv().await {
        let seat = come.hello.group.and_then(|group| seats.get(&group));
        let Some((_, seat)) = seat.filter(|(peer, _)| come.opened.peer() == Some(*peer)) else {
            let text = "this certificate speaks for no such member of the consistency set";
            // Who does not hear it holds a place of those that were let in, of which there are so many.
            tokio::spawn(come.opened.refuse(Farewell::new(Code::Unauthorized, text)));
            continue;
        };
        // Two at once of one member: the second dials again.
        drop(seat.try_send(come));
    }
}

/// The taker's side of one member, over one session after the other; a newer one takes the place of the one before.
async fn converse(
    own: Arc<Identity>,
    group: GroupId,
    mut orders: mpsc::Receiver<Order>,
    mut came: mpsc::Receiver<Accepted>,
    reports: Reports,
) {
    let new = || {
        let features = Features::ALL;
        let options = TargetOptions {
            group: Some(group),
            timeline: None,
            features,
            connections: 0,
            silence_ms: SILENCE_MS,
            attempt: 0,
        };
        (TargetEnd::new(options), Hub::new(Arc::clone(&own), ConnectionOptions::default()))
    };
    let (mut end, mut hub) = new();
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                TargetEffect::Judge { session, .. } => end.admit(mono(), session, Terms::default()),
                TargetEffect::Send { conn, message } => hub.send(conn, message),
                TargetEffect::Close { conn, farewell } => hub.close(conn, farewell),
                TargetEffect::Called { id, call } => {
                    // Nobody reports for another group than its own.
                    let own = |bytes: &[u8]| report_of(bytes).filter(|report| report.group == group);
                    let (answer, said) = heard(&call, own);
                    said.into_iter().for_each(|report| reports.give(report));
                    end.answer(mono(), id, answer);
                }
                _ => {}
            }
        }
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(order) if end.is_up() => drop(end.call(mono(), call(order_to_bytes(&order)), CALL_NS)),
                Some(_) => {}
                None => return,
            },
            Some(accepted) = came.recv() => {
                (end, hub) = new();
                let conn = hub.add(accepted.opened);
                end.handle_accepted(mono(), conn, *accepted.hello);
            }
            happened = hub.next(), if !hub.is_empty() => match happened {
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => end.handle_disconnected(mono(), conn, &why),
                // Nothing is dialled from here.
                Happened::Connected { .. } | Happened::NotConnected { .. } => {}
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
        }
    }
}
