//! A replica at another site, as somebody who reads it has it: `cdp://HOST:PORT/GROUP`.
//!
//! Moments are opened there and read over the line; what people ask of an owner, and what takes its time, are jobs there. A line that is
//! cut is mended underneath: who waits, waits a little longer.

mod device;
mod flight;
mod view;

pub use self::device::RemoteSessionDevice;
use self::flight::Flight;
pub use self::view::RemoteView;
use super::far_link::{FarLink, FarOptions};
use super::traffic::Traffic;
use super::url::CdpUrl;
use crate::diff::{Difference, DiskDigest, Of};
use crate::far::{
    self, CallKind, DiffOrder, DigestOrder, Job, JobLine, JobStands, OpenView, Order, ReadName, UNREACHABLE,
};
use crate::link::identity::Identity;
use crate::link::pin::{Fingerprint, Peers};
use crate::owner::Request;
use crate::report::{Problem, ProblemClass};
use crate::restore::OnProgress;
use crate::verify::Verified;
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long the other end may be out of reach before what was asked fails.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The same for the first contact, once it is known why there is none.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// How often it is looked whether there is still a use in waiting.
const LOOK: Duration = Duration::from_millis(100);
/// After so long without a word the other end is taken for dead, in milliseconds.
const SILENCE_MS: u32 = 10_000;
/// Bytes that a job may tell without an end of a line, at most: as an owner's answer.
const LINE_MAX: usize = 64 << 20;

/// Where a replica is, and how it is reached.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// A replica host, a proxy or a gateway, and the group there.
    pub url: CdpUrl,
    /// Whose group; empty: as the other end knows this one.
    pub tenant: String,
    /// Those who may answer there.
    pub peers: Peers,
    /// For a gateway on the way; empty: none.
    pub ticket: Bytes,
}

/// A replica at another site. Any number of threads may ask at once.
pub struct RemoteReplica {
    link: Arc<FarLink>,
    address: String,
    /// By what the other end knows this one.
    own: Fingerprint,
    flight: Flight,
    /// The other end has answered once.
    was_up: AtomicBool,
}

impl std::fmt::Debug for RemoteReplica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteReplica").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An answer that is under way.
struct Asked {
    kind: CallKind,
    answer: Receiver<Answer>,
    begun: Instant,
}

impl RemoteReplica {
    /// Begins to reach for it.
    ///
    /// # Errors
    /// When no group is named, or the system has no thread to give.
    pub fn open(identity: Arc<Identity>, options: RemoteOptions) -> Result<Arc<Self>, Problem> {
        let RemoteOptions { url, tenant, peers, ticket } = options;
        if url.group.is_empty() {
            let problem = Problem::new(ProblemClass::Usage, "usage", format!("{url} names no group"));
            return Err(problem.hint(format!("write {url}/GROUP")));
        }
        let address = url.authority();
        let options = FarOptions {
            to: vec![address.clone()],
            peers,
            tenant,
            name: url.group,
            // Nothing is written.
            memory_bytes: 0,
            silence_ms: SILENCE_MS,
            connections: 0,
            ticket,
            traffic: Traffic::encrypted(),
            spool: None,
        };
        let own = identity.fingerprint();
        let link = FarLink::start(identity, options).map_err(|error| {
            Problem::new(ProblemClass::Failed, "thread", format!("cannot start the thread of the link: {error}"))
        })?;
        Ok(Arc::new(Self { link, address, own, flight: Flight::default(), was_up: AtomicBool::new(false) }))
    }

    /// Asks what an owner is asked for, and waits for the answer, whose type [`Request`] names.
    ///
    /// # Errors
    /// What the owner says, or why it cannot be asked.
    pub fn request<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Problem> {
        let value = self.run(Order::Ask(request.clone()), &mut |_, _| true, &mut |_| Ok(()))?;
        read(value)
    }

    /// Opens a moment, and holds it while it is there. What [`OpenView`] calls it is drawn here.
    ///
    /// # Errors
    /// When it is not restorable or the replica cannot be read.
    pub fn view(self: &Arc<Self>, order: OpenView) -> Result<Arc<RemoteView>, Problem> {
        RemoteView::open(self, order)
    }

    /// Reads and checks everything, there.
    ///
    /// # Errors
    /// When it cannot be read at all: damage is an answer, not an error.
    pub fn verify(&self, progress: OnProgress<'_>) -> Result<Verified, Problem> {
        read(self.run(Order::Verify, progress, &mut |_| Ok(()))?)
    }

    /// Compares two moments, there.
    ///
    /// # Errors
    /// As of [`crate::diff::differences`].
    pub fn differences(
        &self,
        [from, to]: [&RemoteView; 2],
        disk: Option<&str>,
        progress: OnProgress<'_>,
        found: &mut dyn FnMut(Difference),
    ) -> Result<(), Problem> {
        let mut told = |value| read(value).map(&mut *found);
        let (from, to) = (from.name(), to.name());
        let order = Order::Diff(DiffOrder { from, to, disk: disk.map(str::to_owned) });
        read(self.run(order, progress, &mut told)?)
    }

    /// The digests of a moment's disks, made there.
    ///
    /// # Errors
    /// As of [`crate::diff::digests`].
    pub fn digests(
        &self,
        (view, of): (&RemoteView, Of),
        disk: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<DiskDigest>, Problem> {
        let mut digests = Vec::new();
        let mut told = |value| read(value).map(|digest| digests.push(digest));
        let order = Order::Digest(DigestOrder { view: view.name(), of, disk: disk.map(str::to_owned) });
        self.run(order, progress, &mut told)?;
        Ok(digests)
    }

    /// Has a job done. When `progress` says stop it is told to end, and what came of it by then is the result.
    fn run(
        &self,
        order: Order,
        progress: OnProgress<'_>,
        found: &mut dyn FnMut(Value) -> Result<(), Problem>,
    ) -> Result<Value, Problem> {
        let mut job = Job { job: ReadName::draw(), order: Some(order), taken: 0, stop: false, forget: false };
        let came = self.follow(&mut job, progress, found);
        // It was not begun, or is forgotten after a while, where this does not arrive.
        let forget = Job { order: None, forget: true, ..job };
        if self.was_up.load(Ordering::Relaxed) {
            drop(self.begin(CallKind::Job, &forget, Bytes::new()));
        }
        came
    }

    fn follow(
        &self,
        job: &mut Job,
        progress: OnProgress<'_>,
        found: &mut dyn FnMut(Value) -> Result<(), Problem>,
    ) -> Result<Value, Problem> {
        let mut text = Vec::new();
        loop {
            let (stands, bytes): (JobStands, Bytes) = self.ask(CallKind::Job, &*job, Bytes::new())?;
            job.order = None;
            job.taken += bytes.len() as u64;
            text.extend_from_slice(&bytes);
            if text.len() > LINE_MAX {
                return Err(strange("a line of a job's answer is too long"));
            }
            job.stop |= !progress(stands.done, stands.total);
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line = serde_json::from_slice(line).map_err(|error| strange(&error.to_string()))?;
                match line {
                    JobLine::Found(value) => found(value)?,
                    JobLine::Ok(value) => return Ok(value),
                    JobLine::Error(problem) => return Err(problem),
                }
            }
            text.drain(..whole);
            if stands.ended {
                return Err(strange("a job ended without a result"));
            }
        }
    }

    fn begin(&self, kind: CallKind, question: &impl Serialize, tail: Bytes) -> Result<Asked, Problem> {
        let call = Call { kind: kind as u16, header: far::header(question)?, tail };
        Ok(Asked { kind, answer: self.link.begin_call(call, ANSWER_WITHIN), begun: Instant::now() })
    }

    /// Waits for an answer, as long as there is a use in it.
    fn wait<A: DeserializeOwned>(&self, asked: Asked) -> Result<(A, Bytes), Problem> {
        let answer = loop {
            match asked.answer.recv_timeout(LOOK) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Disconnected) => return Err(self.unreachable()),
                Err(RecvTimeoutError::Timeout) => {
                    let road = self.link.road();
                    let first = !self.was_up.load(Ordering::Relaxed) && road.why.is_some();
                    let waited = asked.begun.elapsed();
                    if crate::far::Wire::failure(self.link.as_ref()).is_some() || first && waited > FIRST_WITHIN {
                        return Err(self.unreachable());
                    }
                }
            }
        };
        let answered = far::answered(asked.kind, answer);
        match answered {
            Err(problem) if problem.code == UNREACHABLE => Err(self.unreachable()),
            answered => {
                self.was_up.store(true, Ordering::Relaxed);
                answered
            }
        }
    }

    fn ask<A: DeserializeOwned>(
        &self,
        kind: CallKind,
        question: &impl Serialize,
        tail: Bytes,
    ) -> Result<(A, Bytes), Problem> {
        self.wait(self.begin(kind, question, tail)?)
    }

    /// Why nobody answers, as far as that is known.
    fn unreachable(&self) -> Problem {
        let failure = crate::far::Wire::failure(self.link.as_ref()).or(self.link.road().why);
        let why = failure.map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("the replica host cannot be reached at {}{why}", self.address);
        let own = self.own;
        Problem::new(ProblemClass::Failed, UNREACHABLE, message)
            .hint(format!("look whether it runs, and whether it lists this machine, whose certificate is {own}; a gateway needs a ticket"))
    }
}

fn strange(what: &str) -> Problem {
    Problem::new(ProblemClass::Failed, "answer", format!("the replica host's answer is not understood: {what}"))
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| strange(&error.to_string()))
}
