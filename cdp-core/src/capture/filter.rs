//! The filter: one per group, one write order over its disks.

mod detach;
mod disks;
mod fork;
mod lend;
mod ops;
mod order_of_records;
mod orders;
mod periods;
mod resync;
mod stop;
mod timers;

pub use fork::{Fork, ForkError};
pub use resync::RereadError;
pub use stop::{Closing, Drained};

#[cfg(test)]
mod tests;

use self::disks::Changes;
use self::periods::Periods;
use super::activity::{Activity, Limits, LogContents, LogState};
use super::clock::Clock;
use super::gather::Gather;
use super::lent::Lent;
use super::mend::Mend;
use super::options::{DiskSpec, FilterOptions, LSN_JUMP, OptionsError, Start};
use super::order::Order;
use super::output::{Detached, Event, FlushTicket, Ticket};
use super::points::Points;
use super::rest::Rest;
use super::status::{Counters, Rates, State};
use crate::frame::{GapReason, Note, RecordKind, ResyncReason};
use crate::types::{Extent, Lsn, MonoTime, Now, Timeline};
use std::collections::VecDeque;

/// How the replica's side can take what the filter sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It takes everything.
    Ok,
    /// Its media are full.
    NoSpace,
    /// It failed or cannot be reached.
    Lost,
}

/// Writes are tracked, not recorded.
#[derive(Clone, Copy, Debug)]
struct Gap {
    from: Lsn,
    reason: GapReason,
}

/// What is waited for, for so long at most.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Wanted,
    Until(MonoTime),
}

/// A resync that is open.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    reason: ResyncReason,
    bytes_read: u64,
    bytes_changed: u64,
}

/// LSNs that cannot be restored: from the begin of a gap or resync to the end of the (last) resync.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Lsn,
    /// Of the `ResyncEnd`; `None` while it is open.
    end: Option<Lsn>,
}

/// Why the activity log says that everything is unknown, until this is over.
#[derive(Clone, Debug)]
enum Doubt {
    /// The bracket in which everything is compared or copied is open.
    Open,
    /// It ended here; the log says so once this LSN is restorable and the sources are flushed beyond these generations.
    Ended { lsn: Lsn, flushes: Vec<u64> },
    /// A flush failed meanwhile: what it lost is not known, only the next start can tell.
    Forever,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Life {
    Running,
    /// Nothing new is begun by the filter itself.
    Draining,
    /// Refuses ops; the final log is being written (`clean`) or was left open.
    Closed {
        clean: bool,
        told: bool,
    },
}

/// The I/O filter of a group as a state machine: ops, completions, flushes and what the replica says go in; `poll` gives what
/// is to be done next.
///
/// # The contract
/// * Methods that make records or look at deadlines take both clocks, read together under the lock that orders the calls;
///   [`Now::mono`] never goes back. After every call, and at
///   [`Filter::next_deadline`], the driver calls [`Filter::poll`] until it gives nothing. Outputs are due in the order given;
///   [`super::Output::Ready`] comes first, because a guest waits for it.
/// * An op that [`Filter::submit`] lets go, now or by `Ready`, is done once and reported with [`Filter::complete`]. A read
///   that must see an earlier write needs nothing of us. Submissions from several threads are ordered by the driver's lock;
///   no method does I/O or waits.
/// * The driver never fails or delays a guest's op because of an output that it could not carry out.
///
/// # Methods by task
/// *Guest's path*: [`submit`](Self::submit), [`complete`](Self::complete), [`withdraw`](Self::withdraw),
/// [`flush_begin`](Self::flush_begin), [`flushed`](Self::flushed). *Answers to outputs*: [`log_written`](Self::log_written),
/// [`log_removed`](Self::log_removed), [`reread_done`](Self::reread_done), [`stored`](Self::stored), [`durable`](Self::durable),
/// [`set_room`](Self::set_room), [`watchdog`](Self::watchdog), [`passed_by`](Self::passed_by). *Orders*:
/// [`mark`](Self::mark), [`set_points`](Self::set_points), [`seed_done`](Self::seed_done), [`full_check`](Self::full_check), [`pause`](Self::pause),
/// [`resume`](Self::resume), [`detach`](Self::detach), [`attach`](Self::attach), [`fork`](Self::fork),
/// [`set_bounds`](Self::set_bounds), [`add_disk`](Self::add_disk), [`disk_seeded`](Self::disk_seeded),
/// [`resize_disk`](Self::resize_disk), [`remove_disk`](Self::remove_disk), [`request_drain`](Self::request_drain),
/// [`close`](Self::close). *Looking*: [`status`](Self::status), [`drained`](Self::drained).
#[derive(Debug)]
pub struct Filter {
    /// Those that are gone keep their places.
    disks: Vec<DiskSpec>,
    changes: Changes,
    limits: FilterLimits,
    order: Order,
    clock: Clock,
    gather: Gather,
    activity: Activity,
    mend: Mend,
    lent: Lent,
    points: Points,
    timeline: Timeline,
    periods: Periods,
    first_lsn: Lsn,
    last_lsn: Lsn,
    /// At this LSN the reservation is looked at.
    renew_at: Lsn,
    durable: Lsn,
    stored: Lsn,
    /// What the driver need not keep, until it was told.
    lend_due: Option<Lsn>,
    restorable: Lsn,
    /// How far the frames that are durable say that the order is settled.
    settled_durable: Lsn,
    /// When the last restorable record was made, and the next candidate with its LSN.
    restorable_made: Option<MonoTime>,
    awaiting: Option<(Lsn, MonoTime)>,
    /// What is dirty without an op of its own is compared only when the replica has everything up to here.
    compare_floor: Lsn,
    /// Whole disks are dirty that may be the same: re-reads wait for the floor, but no longer than until then.
    compare_wait: Option<Wait>,
    /// Ops up to this LSN may have run beside others that passed: which of the two the disk ends up with, no record says.
    overtaken: Lsn,
    gap: Option<Gap>,
    bracket: Option<Bracket>,
    window: Option<Window>,
    doubt: Option<Doubt>,
    /// The driver copies the disks; the bracket stays open until it says that it is done.
    seeding: bool,
    paused: bool,
    detached: Option<Detached>,
    /// Detached, and whoever finds the log compares everything: ops pass.
    passing: bool,
    /// When nobody has polled for too long; `MAX` before the first op after a poll.
    stuck_at: MonoTime,
    room: Room,
    life: Life,
    /// When untold settling is told by a time record.
    tell_due: Option<MonoTime>,
    /// Earliest time of the next re-read, by its rate.
    reread_due: MonoTime,
    /// When a re-read that was put off is looked at again.
    reread_wait: Option<MonoTime>,
    /// How long the gap lasts at least, and when it is looked at again for that alone.
    rest: Rest,
    rest_wait: Option<MonoTime>,
    ready: VecDeque<Ticket>,
    events: VecDeque<Event>,
    told_state: State,
    /// Something happened that timers and outputs depend on.
    kicked: bool,
    /// Before this time no timer is due.
    timer_due: MonoTime,
    /// Something was looked at, and its outputs are being fetched.
    working: bool,
    counters: Counters,
    rates: Rates,
}

/// The bounds of [`FilterOptions`] that are looked at later.
#[derive(Clone, Copy, Debug)]
struct FilterLimits {
    memory_bytes: u64,
    spool_bytes: u64,
    frame_age_ns_max: u64,
    reread_bytes_per_s_max: u64,
    rereads_max: usize,
    stuck_ns_max: u64,
    rpo_ns: u64,
}

impl FilterLimits {
    /// The bound of what is recorded and neither durable nor lent.
    fn queue_bytes(&self) -> u64 {
        self.memory_bytes.saturating_add(self.spool_bytes)
    }
}

/// The first LSN and clock epoch of a start, and the log that it found.
fn beginnings(start: &Start) -> (Lsn, Option<crate::types::ClockEpoch>, Option<&LogContents>) {
    match start {
        Start::First => (Lsn::ZERO, None, None),
        Start::Clean { after, epoch, log } => (*after, Some(*epoch), Some(log)),
        Start::Unclean { fork, above, epoch, log: Some(log), .. } => {
            (*fork.max(above).max(&log.reserved_through), Some(*epoch), Some(log))
        }
        Start::Unclean { fork, above, epoch, log: None, .. } => {
            (Lsn(fork.max(above).0.saturating_add(LSN_JUMP)), Some(*epoch), None)
        }
    }
}

impl Filter {
    /// A filter at its start. Its first outputs are the first records and the activity log; ops are held until the log is on
    /// disk (or is given up). The driver should not serve guests before [`Event::Log`] says `Good` or `Lost`, and that is kept
    /// at the replica.
    ///
    /// # Errors
    /// When the options are not those of a group.
    pub fn new(options: FilterOptions, now: Now) -> Result<Self, OptionsError> {
        options.check()?;
        let (after, epoch, found) = beginnings(&options.start);
        let limits = Limits {
            wait_ns_max: options.log_wait_ns_max,
            remove_ns_max: options.log_remove_ns_max,
            hot_ns_min: options.hot_ns_min,
            generation_least: options.log_generation_least,
            durable: known_durable(&options.start),
        };
        let mut filter = Self {
            limits: FilterLimits {
                memory_bytes: options.queue_bytes_max,
                spool_bytes: options.spool_bytes_max,
                frame_age_ns_max: options.frame_age_ns_max,
                reread_bytes_per_s_max: options.reread_bytes_per_s_max,
                rereads_max: options.rereads_max,
                stuck_ns_max: options.stuck_ns_max,
                rpo_ns: options.rpo_ns,
            },
            order: Order::with_capacity(options.ops_expected),
            clock: Clock::new(epoch, options.rpo_ns, now),
            gather: Gather::new(options.timeline, chain_start(&options.start), options.keeps_ranges),
            activity: Activity::new(options.group, options.timeline, found, limits, now.mono),
            mend: Mend::default(),
            lent: Lent::default(),
            points: Points::new(options.rpo_ns, now.mono),
            timeline: options.timeline,
            periods: Periods::new(options.points),
            first_lsn: after.next(),
            last_lsn: after,
            renew_at: Lsn::ZERO,
            durable: chain_start(&options.start),
            stored: chain_start(&options.start),
            lend_due: None,
            restorable: chain_start(&options.start),
            settled_durable: chain_start(&options.start),
            restorable_made: None,
            awaiting: None,
            compare_floor: Lsn::ZERO,
            compare_wait: None,
            overtaken: Lsn::ZERO,
            gap: None,
            bracket: None,
            window: None,
            doubt: None,
            seeding: false,
            paused: false,
            detached: None,
            passing: false,
            stuck_at: MonoTime(u64::MAX),
            room: Room::Ok,
            life: Life::Running,
            tell_due: None,
            reread_due: now.mono,
            reread_wait: None,
            rest: Rest::default(),
            rest_wait: None,
            ready: VecDeque::with_capacity(options.ops_expected),
            events: VecDeque::new(),
            told_state: State::Protecting,
            kicked: true,
            timer_due: now.mono,
            working: false,
            counters: Counters::default(),
            rates: Rates::new(now.mono.0),
            disks: Vec::new(),
            changes: Changes::default(),
        };
        for disk in &options.disks {
            filter.activity.add_disk(disk.id, disk.size);
            filter.mend.add_disk(disk.size);
        }
        filter.activity.writer_mut().set_facts(options.facts.clone());
        filter.disks.clone_from(&options.disks);
        filter.begin(&options, now);
        Ok(filter)
    }

    /// The first records, and what is in doubt.
    fn begin(&mut self, options: &FilterOptions, now: Now) {
        let (start, full_check) = (&options.start, options.full_check);
        let first = self.first_lsn;
        self.renew_at = self.activity.writer_mut().reserve(self.last_lsn);
        match start {
            Start::First => {
                self.control(
                    now,
                    RecordKind::TimelineStart,
                    None,
                    Note::TimelineStart { parent: None, fork: Lsn::ZERO },
                );
                self.time_record(now);
                for at in 0..self.disks.len() {
                    let DiskSpec { id, name, size } = self.disks[at].clone();
                    self.control(now, RecordKind::DiskAdded, Some(id), Note::DiskAdded { name, size });
                }
                self.seeding = true;
                self.doubt_everything();
                self.open_bracket(now, first, ResyncReason::Seeding);
            }
            Start::Clean { .. } => {
                self.time_record(now);
                let grown = self.begin_changes(now, options);
                if full_check {
                    self.check_everything(now, first);
                } else if grown {
                    self.open_bracket(now, first, ResyncReason::Seeding);
                }
            }
            Start::Unclean { parent, fork, log, .. } => {
                let note = Note::TimelineStart { parent: Some(*parent), fork: *fork };
                self.control(now, RecordKind::TimelineStart, None, note);
                self.time_record(now);
                self.begin_changes(now, options);
                let known = log.as_ref().filter(|log| log.state != LogState::AllUnknown && !full_check);
                match known {
                    Some(log) => self.compare_hot(now, first, log),
                    None if full_check => self.check_everything(now, first),
                    None => self.compare_everything(now, first, ResyncReason::UncleanStop),
                }
            }
        }
        self.begin_period(now);
    }

    /// Compares what the log found marks; a disk that the log does not know, or knows with less, is compared beyond. One that is
    /// being copied has nothing to be compared with.
    fn compare_hot(&mut self, now: Now, first: Lsn, log: &LogContents) {
        for at in self.compared_disks() {
            let (id, size) = (self.disks[at].id, self.disks[at].size);
            let known = log.disks.iter().find(|disk| disk.id == id);
            let known_size = known.map_or(0, |disk| disk.size);
            let hot = known.map(|disk| disk.hot.as_slice()).unwrap_or_default();
            let beyond = Extent::new(known_size, size.saturating_sub(known_size));
            for run in hot.iter().chain(Some(&beyond)).filter_map(|run| run.intersect(&Extent::new(0, size))) {
                self.mend.mark(at, run);
                self.activity.mark_hot(at, run, now.mono);
            }
            self.activity.want_flush(at);
        }
        self.open_bracket(now, first, ResyncReason::UncleanStop);
    }

    fn check_everything(&mut self, now: Now, first: Lsn) {
        self.compare_everything(now, first, ResyncReason::FullCheck);
    }

    fn compare_everything(&mut self, now: Now, first: Lsn, reason: ResyncReason) {
        if first > self.first_lsn {
            self.compare_floor = self.last_lsn;
            self.compare_wait = Some(Wait::Wanted);
        }
        for at in self.compared_disks() {
            self.mend.mark(at, Extent::new(0, self.disks[at].size));
        }
        self.doubt_everything();
        self.open_bracket(now, first, reason);
    }

    fn compared_disks(&self) -> Vec<usize> {
        (0..self.disks.len()).filter(|at| !self.changes.is_gone(*at) && !self.changes.is_copied(*at)).collect()
    }

    /// Until the bracket that begins now has ended durably, a crash leaves everything in doubt.
    fn doubt_everything(&mut self) {
        if !matches!(self.doubt, Some(Doubt::Forever)) {
            self.doubt = Some(Doubt::Open);
        }
        self.activity.writer_mut().set_state(LogState::AllUnknown);
    }

    /// Whether LSNs made now can be restored once they are settled and durable.
    fn is_protecting(&self) -> bool {
        self.gap.is_none() && self.bracket.is_none()
    }

    /// Whether the newest gap or resync, if there was one, has ended durably: what follows it can be restored then. Its end is
    /// made before, so that [`Filter::state`] says `Protecting` a moment earlier.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.window.is_none()
    }

    /// What the group is doing.
    #[must_use]
    pub fn state(&self) -> State {
        match (self.paused, &self.gap, self.seeding, &self.bracket) {
            _ if self.detached.is_some() => State::Detached,
            (true, ..) => State::Paused,
            (_, Some(_), ..) => State::Tracking,
            (_, _, true, _) => State::Seeding,
            (_, _, _, Some(_)) => State::Resyncing,
            _ => State::Protecting,
        }
    }

    /// The timeline of the records that are made now.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The first LSN of this filter on its timeline. The driver keeps it at the replica with the timeline, before anything else of it.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.first_lsn
    }

    fn gap_reason(&self) -> GapReason {
        match (self.paused, self.room) {
            _ if self.detached.is_some() => GapReason::Detached,
            (true, _) => GapReason::Paused,
            (_, Room::NoSpace) => GapReason::NoSpace,
            (_, Room::Lost) => GapReason::ReplicaLost,
            (_, Room::Ok) => GapReason::Overload,
        }
    }

    fn find_disk(&self, id: crate::types::DiskId) -> Option<usize> {
        self.disks.iter().position(|disk| disk.id == id).filter(|at| !self.changes.is_gone(*at))
    }

    fn flush_ticket(&mut self, disk: usize, guest: bool) -> FlushTicket {
        let flushed = self.activity.flushed(disk);
        FlushTicket { disk, generation: self.activity.flush_begins(disk), flushed, guest }
    }
}

/// Up to where the replica was found durable.
fn known_durable(start: &Start) -> Lsn {
    match start {
        Start::First => Lsn::ZERO,
        Start::Clean { after, .. } => *after,
        Start::Unclean { fork, .. } => *fork,
    }
}

/// The last LSN of the timeline before this start: none on a new timeline.
fn chain_start(start: &Start) -> Lsn {
    match start {
        Start::Clean { after, .. } => *after,
        Start::First | Start::Unclean { .. } => Lsn::ZERO,
    }
}
