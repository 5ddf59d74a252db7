//! Who takes the cuts of a consistency set: a thread around [`cdp_core::set::Taker`].
//!
//! It knows each member by a way to it, which may lose what it is given and never waits; its reports come in by [`Reports`]. Members of the same
//! process are reached by a direct call of [`Protection::set_order`](crate::protect::Protection::set_order), those of others by `link`.

pub mod joining;
#[cfg(feature = "services")]
pub mod link;
pub mod words;

use crate::clock;
use crate::random::identity;
use cdp_core::set::{Ended, MembersError, Order, Report, Taker, TakerOutput};
use cdp_core::types::{GroupId, MonoTime, SetId, StartId};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// Reports that wait for the taker, at most; one more is lost, and what it would have said is asked for again.
const REPORTS_MAX: usize = 4096;

/// Cuts are never taken more often than this.
pub const EVERY_MIN: Duration = Duration::from_millis(100);

/// To a member. Called from the taker's thread: whatever it takes longer, others are withheld longer.
pub type Way = Box<dyn Fn(Order) + Send>;

enum Input {
    Report(Report),
    Stop,
}

/// Takes what members say to the taker. Never waits.
#[derive(Clone, Debug)]
pub struct Reports(SyncSender<Input>);

impl Reports {
    /// Gives a report to the taker; one too many is lost.
    pub fn give(&self, report: Report) {
        let _ = self.0.try_send(Input::Report(report));
    }
}

/// Reports before there is a taker: members join first.
#[derive(Debug)]
pub struct Inbox(Receiver<Input>);

/// A way for reports, and where they will be read.
#[must_use]
pub fn reports() -> (Reports, Inbox) {
    let (sender, receiver) = sync_channel(REPORTS_MAX);
    (Reports(sender), Inbox(receiver))
}

/// Why no cuts are taken.
#[derive(Debug, Error)]
pub enum TakingError {
    /// A set cannot have these members.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// The system has no thread to give.
    #[error("cannot start the thread that takes the cuts of a consistency set: {0}")]
    Thread(#[source] std::io::Error),
}

/// Cuts of one set, taken until this is dropped.
#[derive(Debug)]
pub struct Taking {
    reports: Reports,
    thread: Option<JoinHandle<()>>,
}

impl Taking {
    /// Begins to take a cut every `every`, [`EVERY_MIN`] at least. Cuts are numbered from above the tenths of a second since 1970 at the start, so
    /// that those of a later start are higher, and names are not given twice. What a cut *is* does not depend on that: each start is another taker. `ended` is told what came of each.
    ///
    /// # Errors
    /// When a set cannot have these members, or there is no thread.
    pub fn start(
        set: SetId,
        ways: BTreeMap<GroupId, Way>,
        every: Duration,
        (reports, inbox): (Reports, Inbox),
        ended: impl Fn(Ended) + Send + 'static,
    ) -> Result<Self, TakingError> {
        let Some(start) = StartId::new(identity()) else { unreachable!("an identity is never zero") };
        let groups: Vec<_> = ways.keys().copied().collect();
        let taker = Taker::new(set, start, &groups, clock::wall().0 / 100_000_000)?;
        let every = every.max(EVERY_MIN);
        let run = move || run(taker, &ways, every, &inbox.0, &ended);
        let thread = std::thread::Builder::new().name("cdp-set".to_owned()).spawn(run).map_err(TakingError::Thread)?;
        Ok(Self { reports, thread: Some(thread) })
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        // The taker reads what is there first, so there is room for this soon.
        let _ = self.reports.0.send(Input::Stop);
        // A panic was told by the thread itself; members let go by their own clocks.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(
    mut taker: Taker,
    ways: &BTreeMap<GroupId, Way>,
    every: Duration,
    inbox: &Receiver<Input>,
    ended: &impl Fn(Ended),
) {
    let every_ns = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
    let mut begins = clock::mono().after(every_ns);
    loop {
        while let Some(output) = taker.poll(clock::mono()) {
            match output {
                TakerOutput::Send(group, order) => ways.get(&group).into_iter().for_each(|way| way(order)),
                TakerOutput::Ended(end) => ended(end),
            }
        }
        let now = clock::mono();
        if now >= begins {
            // One that is still being taken, or has only just ended, is waited for: the next moment is tried.
            begins = now.after(if taker.begin(now).is_ok() { every_ns } else { every_ns.min(10_000_000) });
            continue;
        }
        let due = taker.next_deadline().unwrap_or(MonoTime(u64::MAX)).min(begins);
        match inbox.recv_timeout(Duration::from_nanos(due.since(now))) {
            Ok(Input::Report(report)) => taker.handle(clock::mono(), report),
            Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
