//! Starting a protector: the filter, its threads, and the moment from which guests may be served.

use super::copies::{self, CopyOrder};
use super::engine::{Engine, Queues};
use super::failure::Failure;
use super::labels::Labels;
use super::levels::Levels;
use super::log_file::{run_log_removals, run_log_writes};
use super::open::{Prepared, ProtectError, ProtectOptions, prepare, store};
use super::pack::{pack_threads, packers, run_packs};
use super::pump::{Backlog, Message, Parts, Pump, Stored};
use super::room::Lack;
use super::seed::Progress;
use super::sources::Sources;
use super::stop::Threads;
use super::{Notice, Protector, PumpStore, Shared, reread};
use crate::clock;
use crate::device::Device;
use crate::drive;
use crate::host::{Host, Live, Watch};
use crate::owner::{ControlServer, Owner};
use cdp_core::capture::{Event, Filter, FilterOptions, LogWrite, Reread, Room, Start};
use cdp_core::types::DiskId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long the first write of the activity log may take before guests are served without it.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the replica is still in its place, and whether there is anything to tell of its history.
const PLACE_LOOK: Duration = Duration::from_millis(250);

/// What the threads get their work from.
struct Work {
    log: Receiver<LogWrite>,
    log_removals: Receiver<()>,
    flushes: Receiver<(DiskId, cdp_core::capture::FlushTicket)>,
    rereads: Receiver<Reread>,
    events: Receiver<Event>,
    pump: Receiver<Message>,
}

impl Protector {
    /// Opens sources and replica and begins to protect. When this returns the exports may be served. `notices` is called from
    /// a thread of its own with what happens.
    ///
    /// # Errors
    /// What keeps the disks from being protected.
    pub fn start(options: &ProtectOptions, notices: impl Fn(Notice) + Send + 'static) -> Result<Self, ProtectError> {
        Self::start_over(options, |_, device| device, notices)
    }

    /// Like [`Protector::start`], with each source's device replaced by what `wrap` makes of it: for tests whose sources fail.
    ///
    /// # Errors
    /// As [`Protector::start`].
    pub fn start_over(
        options: &ProtectOptions,
        wrap: impl Fn(DiskId, Arc<dyn Device>) -> Arc<dyn Device>,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Self, ProtectError> {
        let mut prepared = prepare(options)?;
        for (id, open) in &mut prepared.sources {
            open.device = wrap(*id, Arc::clone(&open.device));
        }
        launch(options, prepared, Box::new(notices))
    }
}

fn launch(
    options: &ProtectOptions,
    prepared: Prepared,
    notices: Box<dyn Fn(Notice) + Send>,
) -> Result<Protector, ProtectError> {
    let Prepared { owner, storage, sources, found, mut replica, start, timeline, full_check, log, opened, .. } =
        prepared;
    let (mut writer, executor) = (prepared.writer, prepared.executor);
    let manifest = writer.manifest().clone();
    let seeding = matches!(start, Start::First);
    let filter_options = FilterOptions {
        full_check,
        facts: super::same::facts(&sources),
        joining: found.joining.iter().copied().collect(),
        leaving: found.leaving.clone(),
        resized: found.resized.clone(),
        log_generation_least: manifest.activity_generation,
        rpo_ns: manifest.policy.rpo_ms * 1_000_000,
        queue_bytes_max: options.queue_bytes,
        ..FilterOptions::new(manifest.group, timeline, start, found.disks.clone())
    };
    let filter = Filter::new(filter_options, clock::now())?;
    // Before anything of this filter is kept: where its LSNs begin, so that no later start begins below.
    let first_lsn = filter.first_lsn();
    let begun = filter.status(clock::now()).lsn;
    let generation = writer.edit(|manifest| manifest.reserved = manifest.reserved.max(first_lsn));
    store(&mut writer, &executor, generation)?;
    let manifest = writer.manifest().clone();
    let backlog = Arc::new(Backlog::default());
    let (queues, pump_sender, work) = queues(Arc::clone(&backlog));
    let engine = Arc::new(Engine::new(filter, queues));
    let updated = replica.update(Some(&manifest), writer.snapshot());
    updated.map_err(|error| ProtectError::Replica(crate::host::document::unreadable(&error)))?;
    let pump_store = Arc::new(PumpStore { pump: Mutex::new(pump_sender.clone()) });
    let host = Host::new(replica, Box::new(Arc::clone(&pump_store)));
    let failure = Arc::new(Failure::default());
    let stored = Arc::new(Stored::default());
    let lack = Arc::<Lack>::default();
    let (copies, copy_orders) = channel();
    let shared = Arc::new(Shared {
        engine: Arc::clone(&engine),
        host: Arc::clone(&host),
        pump: pump_store,
        failure: Arc::clone(&failure),
        index: Arc::default(),
        stored: Arc::clone(&stored),
        driver: OnceLock::new(),
        segment_bytes: options.segment_bytes,
        lack: Arc::clone(&lack),
        progress: Arc::new(Progress::default()),
        stop: Arc::new(AtomicBool::new(false)),
        draining: AtomicBool::new(false),
        closed: Arc::default(),
        uris: Mutex::default(),
        sources: Sources::default(),
        copies: Mutex::new(Some(copies)),
        changing: Mutex::default(),
        labels: Labels::default(),
        history: Mutex::default(),
    });
    for (disk, open) in sources {
        shared.sources.insert(disk, open, &engine);
    }
    let (packers, pack_work) = packers();
    let (named, manifests) = sync_channel(1);
    // What an earlier start left to be merged.
    let _ = named.try_send(());
    let group = manifest.group;
    let for_driver = pump_sender.clone();
    let wake = Box::new(move || {
        // A pump that has ended takes nothing any more.
        let _ = for_driver.send(Message::Done);
    });
    let for_room = Arc::clone(&shared);
    let admit = move |name: &str, bytes| super::room::admit(&for_room.host, &for_room.lack, name, bytes);
    let driver = drive::start(options.driver, executor.admitted_by(Box::new(admit)), wake)
        .map_err(|source| ProtectError::System { what: "start a thread", source })?;
    shared.driver.get_or_init(|| driver.name());
    let parts = Parts {
        group,
        writer,
        driver,
        packers,
        engine: Arc::clone(&engine),
        host: Arc::clone(&host),
        backlog,
        failure,
        stored,
        lack,
        waiting_bytes_max: options.queue_bytes / 2,
        named,
        closed: Arc::clone(&shared.closed),
    };
    let mut threads = Threads::new(Arc::clone(&shared));
    let Work { log: log_work, log_removals, flushes, rereads, events, pump } = work;
    threads.spawn("cdp-pump", move || Pump::new(parts).run(&pump))?;
    for _ in 0..pack_threads() {
        let (work, pump) = (pack_work.clone(), pump_sender.clone());
        threads.spawn("cdp-pack", move || run_packs(&work, group, &pump))?;
    }
    drop(pump_sender);
    let (pump, stop) = (Arc::clone(&shared.pump), Arc::clone(&shared.stop));
    let levels = Levels { pump, storage: Arc::clone(&storage), stop, trouble: Arc::clone(&shared.index) };
    threads.spawn("cdp-index", move || levels.run(&manifests))?;
    let (of_log, for_removals) = (Arc::clone(&storage), Arc::clone(&engine));
    threads.spawn("cdp-log-removal", move || run_log_removals(of_log.as_ref(), &log_removals, &for_removals))?;
    let (of_log, for_log) = (Arc::clone(&storage), Arc::clone(&engine));
    threads.spawn("cdp-log", move || run_log_writes(of_log.as_ref(), log, &log_work, &for_log))?;
    let for_flush = Arc::clone(&shared);
    threads.spawn("cdp-flush", move || run_flushes(&for_flush, &flushes))?;
    let for_reread = Arc::clone(&shared);
    threads.spawn("cdp-reread", move || {
        reread::run(&for_reread.sources, &for_reread.host, &for_reread.engine, &rereads);
    })?;
    let for_timer = Arc::clone(&engine);
    threads.spawn("cdp-timer", move || for_timer.run_timer())?;
    let (trusted, trust) = channel();
    let for_events = Arc::clone(&shared);
    let owner = Arc::new(owner);
    let for_events_owner = Arc::clone(&owner);
    threads.spawn("cdp-events", move || run_events(&for_events, &for_events_owner, &events, &trusted, &*notices))?;
    // Guests are served when the log is on disk and the replica knows it, or when both are known not to be.
    let _ = trust.recv_timeout(LOG_PATIENCE);
    let (for_copies, copy_storage, replica_id) = (Arc::clone(&shared), Arc::clone(&storage), manifest.replica);
    threads.spawn("cdp-seed", move || copies::run(&for_copies, &copy_storage, replica_id, &copy_orders))?;
    if seeding {
        shared.progress.total.store(shared.sources.bytes(), Ordering::Relaxed);
        shared.order_copy(CopyOrder::Group);
    }
    if !found.resized.is_empty() {
        shared.order_copy(CopyOrder::Sizes(begun, found.new_sizes()));
    }
    for disk in found.disks.iter().filter(|disk| found.joining.contains(&disk.id)) {
        shared.progress.total.fetch_add(disk.size, Ordering::Relaxed);
        shared.order_copy(CopyOrder::Disk(disk.id, begun));
    }
    let live: Arc<dyn Live> = Arc::clone(&shared) as _;
    host.set_live(Some(live));
    // What a killed mount, or a merge that was cut off, left takes room, and nothing else.
    let _ = host.clean_sessions();
    let _ = cdp_core::replica::retention::clean_up(storage.as_ref(), host.replica().manifest());
    let (watch, for_watch) = (Watch::new(&host, &shared.stop), Arc::clone(&shared));
    threads.spawn("cdp-merge", move || watch.run(&|history| for_watch.tell_history(history)))?;
    let control = ControlServer::start(&owner, Arc::clone(&host) as _)
        .map_err(|source| ProtectError::System { what: "make the control socket", source })?;
    Ok(Protector { opened, shared, started: Instant::now(), _control: control, _threads: threads, owner })
}

fn queues(backlog: Arc<Backlog>) -> (Queues, Sender<Message>, Work) {
    let (pump_sender, pump) = channel();
    let (log_sender, log) = channel();
    let (removal_sender, log_removals) = channel();
    let (flush_sender, flushes) = channel();
    let (reread_sender, rereads) = channel();
    let (event_sender, events) = channel();
    let frames = pump_sender.clone();
    let queues = Queues {
        frames: Box::new(move |frame| {
            backlog.add(frame.plain_bytes);
            // A pump that has ended belongs to a protector that is being dropped.
            let _ = frames.send(Message::Frame(frame));
        }),
        log: log_sender,
        log_removals: removal_sender,
        flushes: flush_sender,
        rereads: reread_sender,
        events: event_sender,
    };
    (queues, pump_sender, Work { log, log_removals, flushes, rereads, events, pump })
}

fn run_flushes(shared: &Shared, queue: &Receiver<(DiskId, cdp_core::capture::FlushTicket)>) {
    for (disk, ticket) in queue {
        let result = shared.sources.get(disk).map_or(Ok(()), |held| held.device.flush());
        shared.engine.with(|filter, now| filter.flushed(now, ticket, super::engine::failed(&result)));
    }
}

/// Tells what happens, keeps at the replica which activity logs are to be believed, and sees to it that the replica is where it
/// was: what is written to files that nobody finds any more is kept for nobody.
fn run_events(
    shared: &Shared,
    owner: &Owner,
    events: &Receiver<Event>,
    trusted: &Sender<()>,
    notices: &dyn Fn(Notice),
) {
    let (mut failed, mut index_told) = (false, false);
    loop {
        let event = match events.recv_timeout(PLACE_LOOK) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if !failed && !owner.is_in_place() {
            let directory = owner.dir().display();
            shared.failure.set(&format!("{directory} was removed, replaced or renamed while it was the replica"));
            shared.engine.with(|filter, _| filter.set_room(Room::Lost));
        }
        if let Some(Event::Log(trust)) = event {
            let least = trust.least();
            let edit = Box::new(move |manifest: &mut cdp_core::journal::Manifest| {
                manifest.activity_generation = manifest.activity_generation.max(least);
            });
            // Where the replica cannot keep it, it cannot keep writes either, and says so.
            let _ = shared.host.edit(edit);
            let _ = trusted.send(());
        }
        event.into_iter().for_each(|event| notices(Notice::Filter(event)));
        let history = shared.history.lock().unwrap_or_else(PoisonError::into_inner).take();
        history.into_iter().for_each(|history| notices(Notice::History(history)));
        if let Some(why) = shared.failure.get().filter(|_| !failed) {
            failed = true;
            notices(Notice::ReplicaFailed(why));
        }
        if let Some(why) = shared.index.get().filter(|_| !index_told) {
            index_told = true;
            notices(Notice::IndexTrouble(why));
        }
    }
}
