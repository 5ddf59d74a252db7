//! The taker's side of a member in another process: dialled, and dialled again, for as long as its set's cuts are taken.

use super::super::joining::{JOIN, join_to_bytes, joined_of};
use super::super::words::{CALL, order_to_bytes, report_of};
use super::super::{Reports, Way};
use super::{CALL_NS, RETRY_NS, SILENCE_MS, WAITING_MAX, call, heard};
use crate::clock::{mono, until};
use crate::link::connection::ConnectionOptions;
use crate::link::dial::Guard;
use crate::link::hub::{Happened, Hub};
use crate::link::identity::Identity;
use crate::link::pin::Peers;
use crate::random::identity;
use bytes::Bytes;
use cdp_core::link::message::{Answer, CallStatus, Features};
use cdp_core::link::source::{SourceEffect, SourceEnd, SourceOptions};
use cdp_core::set::Order;
use cdp_core::types::{GroupId, Lsn, Position, SetId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Where a member is found.
#[derive(Clone, Debug)]
pub struct MemberPlace {
    /// HOST:PORT of its filter's listener for sets.
    pub address: String,
    /// The name of its group there.
    pub group: String,
    /// Whose certificates are taken there.
    pub peers: Peers,
}

/// How a member in another process stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nothing came of the first attempt yet.
    Reaching,
    /// It cannot be reached, or does not take part, because of this.
    Away(String),
    /// It takes part, as this group.
    There(GroupId),
}

struct Shared {
    standing: Mutex<Standing>,
    /// Where its reports go; none: nobody takes cuts of it now.
    reports: Mutex<Option<Reports>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A member in another process. Dropping it ends the session.
pub struct FarMember {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for FarMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FarMember").field("standing", &self.standing()).finish_non_exhaustive()
    }
}

impl FarMember {
    /// Begins to reach a member of this set.
    #[must_use]
    pub fn reach(runtime: &Handle, own: Arc<Identity>, place: MemberPlace, set: SetId) -> Self {
        let (orders, queue) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new(Shared { standing: Mutex::new(Standing::Reaching), reports: Mutex::default() });
        let task = runtime.spawn(converse(own, place, set, queue, Arc::clone(&shared)));
        Self { orders, shared, task }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        lock(&self.shared.standing).clone()
    }

    /// The way to it. From now on its reports go there, and to nobody else.
    #[must_use]
    pub fn way(&self, reports: Reports) -> Way {
        *lock(&self.shared.reports) = Some(reports);
        let orders = self.orders.clone();
        Box::new(move |order| {
            let _ = orders.try_send(order);
        })
    }
}

impl Drop for FarMember {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn options(group: String) -> SourceOptions {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&identity());
    seed[16..].copy_from_slice(&identity());
    SourceOptions {
        group: None,
        timeline: None,
        tenant: String::new(),
        name: group,
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
    }
}

/// What the answer to the first call says about the member.
fn standing(answer: &Answer) -> Standing {
    match (answer.status, joined_of(&answer.header)) {
        (CallStatus::Done, Some(Ok(group))) => Standing::There(group),
        (CallStatus::Refused, Some(Err(why))) => Standing::Away(why),
        (CallStatus::TimedOut | CallStatus::Unreachable, _) => Standing::Away("it does not answer in time".to_owned()),
        _ => Standing::Away("what answers there is no member of a consistency set".to_owned()),
    }
}

async fn converse(
    own: Arc<Identity>,
    place: MemberPlace,
    set: SetId,
    mut orders: mpsc::Receiver<Order>,
    shared: Arc<Shared>,
) {
    let mut end = SourceEnd::new(mono(), options(place.group));
    let mut hub = Hub::new(own, ConnectionOptions::default());
    let mut rest = tokio::time::interval(Duration::from_nanos(RETRY_NS));
    // The call that asks whether it takes part, and what was answered to the last one.
    let (mut asked, mut there) = (None, None);
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                SourceEffect::Connect { dial, .. } => {
                    hub.dial(dial, &place.address, Guard::Tls { ticket: Bytes::new() }, &place.peers);
                }
                SourceEffect::Send { conn, message } => hub.send(conn, message),
                SourceEffect::Close { conn, farewell } => hub.close(conn, farewell),
                SourceEffect::Called { id, call } => {
                    // Nobody reports for another group than its own.
                    let own = |bytes: &[u8]| report_of(bytes).filter(|report| Some(report.group) == there);
                    let (answer, said) = heard(&call, own);
                    if let (Some(report), Some(reports)) = (said, &*lock(&shared.reports)) {
                        reports.give(report);
                    }
                    end.answer(mono(), id, answer);
                }
                SourceEffect::Answered { id, answer } if asked == Some(id) => {
                    asked = None;
                    let now = standing(&answer);
                    there = if let Standing::There(group) = now { Some(group) } else { None };
                    *lock(&shared.standing) = now;
                }
                SourceEffect::Up { .. } => {
                    asked = end.call(mono(), call(JOIN, join_to_bytes(set)), CALL_NS).ok();
                }
                SourceEffect::Down { why } | SourceEffect::Refused { farewell: why, .. } => {
                    (asked, there) = (None, None);
                    *lock(&shared.standing) = Standing::Away(why.to_string());
                }
                // What is not answered is said again by who takes the cuts; without frames there is nothing else.
                _ => {}
            }
        }
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                // To one that is away it is lost, and so is the cut.
                Some(order) if there.is_some() && end.is_up() => {
                    let _ = end.call(mono(), call(CALL, order_to_bytes(&order)), CALL_NS);
                }
                Some(_) => {}
                None => return,
            },
            happened = hub.next() => match happened {
                Happened::Connected { dial, conn } => end.handle_connected(mono(), conn, dial),
                Happened::NotConnected { dial, error } => {
                    let why = error.to_string();
                    end.handle_connect_failed(mono(), dial, &why);
                    *lock(&shared.standing) = Standing::Away(why);
                }
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => end.handle_disconnected(mono(), conn, &why),
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
            _ = rest.tick() => {
                // A machine that tries no more by itself is told to, and who said no is asked again: files change.
                if end.is_resting() {
                    end.dial(mono());
                } else if end.is_up() && there.is_none() && asked.is_none() {
                    asked = end.call(mono(), call(JOIN, join_to_bytes(set)), CALL_NS).ok();
                }
            }
        }
    }
}
