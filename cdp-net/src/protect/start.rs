//! Starting a protection: the filter, its threads, and the moment from which guests may be served.

use super::copies::{self, CopyOrder};
use super::engine::{Engine, Outgoing, Queues, run_outgoing};
use super::log_file::{run_log_removals, run_log_writes};
use super::open::{GivenSources, Prepared, ProtectError, ProtectionOptions, State, prepare};
use super::seed::Progress;
use super::sources::Sources;
use super::stop::Ending;
use super::watch::{self, Inbox, Tallies};
use super::{Notice, Protection, Shared, fork, reread};
use crate::clock;
use crate::device::Device;
use crate::far::{Far, Near, Origin, SizeOf, Trust};
use cdp_core::capture::{Event, Filter, FilterOptions, LogWrite, Reread, Start};
use cdp_core::types::DiskId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the first write of the activity log may take before guests are served without it.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the replica's side has anything to tell.
const NEWS_LOOK: Duration = Duration::from_millis(250);

/// Threads that read sources again, at most.
const REREAD_THREADS_MAX: usize = 64;

/// What the threads get their work from.
struct Work {
    outgoing: Inbox<Outgoing>,
    log: Inbox<LogWrite>,
    log_removals: Inbox<()>,
    flushes: Inbox<(DiskId, cdp_core::capture::FlushTicket)>,
    rereads: Inbox<Reread>,
    events: Inbox<Event>,
    watched: Tallies,
}

pub(crate) type Wrap<'a> = &'a dyn Fn(DiskId, Arc<dyn Device>) -> Arc<dyn Device>;

impl Protection {
    /// Finds the replica at its side and begins to protect. When this returns the exports may be served. `notices` is called from a
    /// thread of its own with what happens.
    ///
    /// # Errors
    /// What keeps the disks from being protected.
    pub fn start(
        options: &ProtectionOptions,
        given: GivenSources,
        state: State,
        far: &Arc<dyn Far>,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Self, ProtectError> {
        Self::start_over(options, given, state, far, &|_, device| device, Box::new(notices))
    }

    /// The same with each source's device replaced by what `wrap` makes of it: for sources that fail, or are not to be read yet.
    pub(crate) fn start_over(
        options: &ProtectionOptions,
        given: GivenSources,
        state: State,
        far: &Arc<dyn Far>,
        wrap: Wrap<'_>,
        notices: Box<dyn Fn(Notice) + Send>,
    ) -> Result<Self, ProtectError> {
        super::open::check(options)?;
        let mut prepared = prepare(options, given, state.storage.as_ref(), far.as_ref())?;
        for (id, open) in &mut prepared.sources {
            open.device = wrap(*id, Arc::clone(&open.device));
        }
        launch(options, prepared, state, far, notices)
    }
}

fn launch(
    options: &ProtectionOptions,
    prepared: Prepared,
    state: State,
    far: &Arc<dyn Far>,
    notices: Box<dyn Fn(Notice) + Send>,
) -> Result<Protection, ProtectError> {
    let Prepared { sources, disks, group, start, full_check, generation_least, policy, log, opened, mut begin } =
        prepared;
    let seeding = matches!(start, Start::First);
    let lends = far.lends();
    let filter_options = FilterOptions {
        full_check,
        facts: super::same::facts(&sources),
        joining: disks.joining.iter().copied().collect(),
        leaving: disks.leaving.clone(),
        resized: disks.resized.clone(),
        log_generation_least: generation_least,
        rpo_ns: policy.rpo_ms * 1_000_000,
        points: policy.mode(),
        queue_bytes_max: options.queue_bytes,
        keeps_ranges: lends.is_some(),
        ..FilterOptions::new(group, opened.timeline, start, disks.disks.clone())
    };
    let filter = Filter::new(filter_options, clock::now())?;
    begin.reserved = filter.first_lsn();
    let begun = filter.status(clock::now()).lsn;
    let (queues, work) = queues();
    let engine = Arc::new(Engine::new(filter, queues, options.queue_bytes));
    let (copies, copy_orders) = channel();
    let shared = Arc::new(Shared {
        engine: Arc::clone(&engine),
        far: Arc::clone(far),
        marking: super::mark::Marking::default(),
        alarms: Mutex::default(),
        failure: Arc::default(),
        progress: Progress::default(),
        stop: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        uris: Mutex::default(),
        sources: Sources::default(),
        copies: Mutex::new(Some(copies)),
        changing: Mutex::default(),
    });
    for (disk, open) in sources {
        shared.sources.insert(disk, open, &engine);
    }
    // From here on the replica's side may know this one, and lets go of it when this ends, however far it comes.
    let mut ending = Ending::new(Arc::clone(&shared), state.owner);
    far.begin(&begin, Arc::clone(&shared) as Arc<dyn Near>)?;
    let Work { outgoing, log: log_work, log_removals, flushes, rereads, events, watched } = work;
    let frames = far.frames();
    ending.spawn("cdp-frames", move || run_outgoing(&outgoing, &frames, lends.as_ref()))?;
    let (of_log, for_watch) = (Arc::clone(&state.storage), Arc::clone(&engine));
    ending.spawn("cdp-watch", move || watch::run(&for_watch, of_log.as_ref(), watched))?;
    let (of_log, for_removals) = (Arc::clone(&state.storage), Arc::clone(&engine));
    ending.spawn("cdp-log-removal", move || run_log_removals(of_log.as_ref(), &log_removals, &for_removals))?;
    let (of_log, for_log) = (state.storage, Arc::clone(&engine));
    ending.spawn("cdp-log", move || run_log_writes(of_log.as_ref(), log, &log_work, &for_log))?;
    let for_flush = Arc::clone(&shared);
    ending.spawn("cdp-flush", move || run_flushes(&for_flush, &flushes))?;
    let rereads = Arc::new(rereads);
    for _ in 0..options.reread_threads.clamp(1, REREAD_THREADS_MAX) {
        let (for_reread, rereads) = (Arc::clone(&shared), Arc::clone(&rereads));
        ending.spawn("cdp-reread", move || {
            reread::run(&for_reread.sources, for_reread.far.as_ref(), &for_reread.engine, &rereads);
        })?;
    }
    drop(rereads);
    let parent = if let Origin::Fork { parent, .. } = begin.origin { Some(parent) } else { None };
    let for_fork = Arc::clone(&shared);
    ending.spawn("cdp-fork", move || fork::run(&for_fork, parent.into_iter().chain([opened.timeline])))?;
    let for_timer = Arc::clone(&engine);
    ending.spawn("cdp-timer", move || for_timer.run_timer())?;
    let (trusted, trust) = channel();
    let for_events = Arc::clone(&shared);
    ending.spawn("cdp-events", move || run_events(&for_events, &events, &trusted, &*notices))?;
    // Guests are served when the log is on disk and the replica knows it, or when both are known not to be.
    let _ = trust.recv_timeout(LOG_PATIENCE);
    let for_copies = Arc::clone(&shared);
    ending.spawn("cdp-seed", move || copies::run(&for_copies, &copy_orders))?;
    if seeding {
        shared.progress.total.store(shared.sources.bytes(), Ordering::Relaxed);
        shared.order_copy(CopyOrder::Group);
    }
    if !disks.resized.is_empty() {
        let sizes = disks.new_sizes().into_iter().map(|(disk, size)| SizeOf { disk, size }).collect();
        shared.order_copy(CopyOrder::Sizes(begun, sizes));
    }
    for disk in disks.disks.iter().filter(|disk| disks.joining.contains(&disk.id)) {
        shared.progress.total.fetch_add(disk.size, Ordering::Relaxed);
        shared.order_copy(CopyOrder::Disk(disk.id, begun));
    }
    Ok(Protection { opened, group, shared, started: Instant::now(), ending: Mutex::new(ending) })
}

fn queues() -> (Queues, Work) {
    let mut watched = Tallies::default();
    let (far_sender, outgoing) = watched.queue();
    let (log_sender, log) = watched.queue();
    let (removal_sender, log_removals) = watched.queue();
    let (flush_sender, flushes) = watched.queue();
    let (reread_sender, rereads) = watched.queue();
    let (event_sender, events) = watched.queue();
    let queues = Queues {
        far: far_sender,
        log: log_sender,
        log_removals: removal_sender,
        flushes: flush_sender,
        rereads: reread_sender,
        events: event_sender,
    };
    (queues, Work { outgoing, log, log_removals, flushes, rereads, events, watched })
}

fn run_flushes(shared: &Shared, queue: &Inbox<(DiskId, cdp_core::capture::FlushTicket)>) {
    while let Some(((disk, ticket), _taken)) = queue.take() {
        let result = shared.sources.get(disk).map_or(Ok(()), |held| held.device.flush());
        shared.engine.with(|filter, now| filter.flushed(now, ticket, super::engine::failed(&result)));
    }
}

/// Tells what happens, and keeps at the replica which activity logs are to be believed.
fn run_events(shared: &Shared, events: &Inbox<Event>, trusted: &Sender<()>, notices: &dyn Fn(Notice)) {
    let (mut failed, mut index_told) = (false, false);
    loop {
        let (event, _taken) = match events.take_within(NEWS_LOOK) {
            Ok((event, taken)) => (Some(event), Some(taken)),
            Err(RecvTimeoutError::Timeout) => (None, None),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Some(Event::Log(trust)) = event {
            // Where the replica cannot keep it, it cannot keep writes either, and says so.
            let _ = shared.far.trust(Trust { least: trust.least() });
            let _ = trusted.send(());
        }
        event.iter().for_each(|event| shared.marking.hear(event));
        event.into_iter().for_each(|event| notices(Notice::Filter(event)));
        let alarms = std::mem::take(&mut *shared.alarms.lock().unwrap_or_else(PoisonError::into_inner));
        alarms.into_iter().for_each(notices);
        shared.far.history().into_iter().for_each(|history| notices(Notice::History(history)));
        if let Some(why) = shared.failure().filter(|_| !failed) {
            failed = true;
            notices(Notice::ReplicaFailed(why));
        }
        if let Some(why) = shared.far.trouble().filter(|_| !index_told) {
            index_told = true;
            notices(Notice::IndexTrouble(why));
        }
    }
}
