//! The members' side: where the takers of other processes find the groups of this one.

use super::super::joining::{JOIN, join_of, joined_to_bytes};
use super::super::words::{CALL, order_of, report_to_bytes};
use super::{CALL_NS, SILENCE_MS, WAITING_MAX, answer, call, heard};
use crate::clock::{mono, until};
use crate::link::accept::{Accepted, Admission, Gate, LinkDoor};
use crate::link::connection::ConnectionOptions;
use crate::link::hub::{Happened, Hub};
use crate::link::identity::Identity;
use crate::link::listener::{AcceptOptions, AcceptStats, Listener};
use crate::link::pin::Peers;
use cdp_core::link::message::{Answer, Call, CallStatus, Code, Farewell, Features, Purpose};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use cdp_core::set::{Order, Report};
use cdp_core::types::{GroupId, SetId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A group as the member that it is.
pub struct Present {
    /// The set.
    pub set: SetId,
    /// The group.
    pub group: GroupId,
    /// Takes what the taker says. It must not wait for long.
    pub order: Box<dyn Fn(Order) + Send + Sync>,
}

/// Where a member's reports go on their way to a taker in another process, and where [`Attendance::sit`] finds them.
#[must_use]
pub fn reports_out() -> (mpsc::Sender<Report>, mpsc::Receiver<Report>) {
    mpsc::channel(WAITING_MAX)
}

/// Lets in whoever is listed: who speaks for a set says its identity later.
struct Takers(Peers);

impl Gate for Takers {
    fn admit(&self, preamble: &Preamble, _from: SocketAddr, _to: SocketAddr) -> Result<Admission, Farewell> {
        match preamble {
            Preamble::Tls { .. } => Ok(Admission::Tls(self.0.clone())),
            _ => Err(Farewell::new(Code::Unexpected, "who takes the cuts of a consistency set comes by TLS")),
        }
    }
}

/// A member's conversation with its taker. Dropping it ends its session.
struct Seat {
    come: mpsc::Sender<Accepted>,
    task: JoinHandle<()>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// By the groups' names. As many as this process serves.
type Seats = Arc<Mutex<BTreeMap<String, Seat>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens for takers, until it is dropped.
pub struct Attendance {
    own: Arc<Identity>,
    listener: Listener,
    seats: Seats,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Attendance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attendance").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Attendance {
    /// Listens at `address` (HOST:PORT) for those with one of these certificates.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn listen(address: &str, own: Arc<Identity>, peers: Peers) -> std::io::Result<Self> {
        let door = LinkDoor::new(Arc::clone(&own), Arc::new(Takers(peers)));
        let (sender, accepted) = mpsc::channel(WAITING_MAX);
        let listener = Listener::listen(address, door, AcceptOptions::default(), sender).await?;
        let seats = Seats::default();
        let task = tokio::spawn(dispatch(accepted, Arc::clone(&seats)));
        Ok(Self { own, listener, seats, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Who came there.
    #[must_use]
    pub fn stats(&self) -> AcceptStats {
        self.listener.stats()
    }

    /// The group with this name takes part from now on, in place of what had the name before: its taker hears `reports`.
    pub fn sit(&self, runtime: &Handle, name: &str, present: Present, reports: mpsc::Receiver<Report>) {
        let (come, came) = mpsc::channel(1);
        let task = runtime.spawn(converse(Arc::clone(&self.own), present, reports, came));
        lock(&self.seats).insert(name.to_owned(), Seat { come, task });
    }

    /// It does not any more.
    pub fn leave(&self, name: &str) {
        lock(&self.seats).remove(name);
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.seats).clear();
    }
}

/// Brings those who come to the conversation of the group that they name.
async fn dispatch(mut accepted: mpsc::Receiver<Accepted>, seats: Seats) {
    while let Some(come) = accepted.recv().await {
        let seat = lock(&seats).get(&come.hello.name).map(|seat| seat.come.clone());
        let farewell = match seat {
            _ if come.hello.purpose != Purpose::Calls => {
                Farewell::new(Code::Unexpected, "only the cuts of consistency sets are spoken of here")
            }
            None => Farewell::new(
                Code::UnknownGroup,
                "no group of this name takes part in a consistency set here: it is not protected yet, or no [[set]] of this \
                 filter's file names it",
            ),
            Some(seat) => {
                // Two at once of one member: the second dials again.
                drop(seat.try_send(come));
                continue;
            }
        };
        // Who does not hear it holds a place of those that were let in, of which there are so many.
        tokio::spawn(come.opened.refuse(farewell));
    }
}

/// The answer to a call, and the order that it gave.
fn judged(present: &Present, asked: &Call) -> (Answer, Option<Order>) {
    if asked.kind != JOIN {
        return heard(asked, order_of);
    }
    let joined = match join_of(&asked.header) {
        Some(set) if set == present.set => Ok(present.group),
        Some(_) => {
            Err("this group is in another consistency set here: name and groups of the set must be the same in \
                        the files of all its filters")
        }
        None => Err("it is not said which consistency set is meant"),
    };
    let status = if joined.is_ok() { CallStatus::Done } else { CallStatus::Refused };
    (answer(JOIN, status, joined_to_bytes(joined)), None)
}

/// A member's side, over one session after the other; a newer one takes the place of the one before.
async fn converse(
    own: Arc<Identity>,
    present: Present,
    mut reports: mpsc::Receiver<Report>,
    mut came: mpsc::Receiver<Accepted>,
) {
    let new = || {
        let features = Features::ALL;
        let options =
            TargetOptions { group: None, timeline: None, features, connections: 0, silence_ms: SILENCE_MS, attempt: 0 };
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
                    let (answer, said) = judged(&present, &call);
                    said.into_iter().for_each(&present.order);
                    end.answer(mono(), id, answer);
                }
                _ => {}
            }
        }
        tokio::select! {
            biased;
            report = reports.recv() => match report {
                // Without a session it is lost, and so is the cut.
                Some(report) if end.is_up() => drop(end.call(mono(), call(CALL, report_to_bytes(&report)), CALL_NS)),
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
