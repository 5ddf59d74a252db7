//! One relay with its connections, its disk and what prepares its frames: a task for each timeline, and one for each session of calls.

use super::disk::Place;
use super::prepared::Prepared;
use super::shares::Share;
use super::{RelayKey, Shared, Stand, ToRelay, lock, places};
use crate::clock::{mono, until};
use crate::link::connection::ConnectionOptions;
use crate::link::dial::Guard;
use crate::link::hub::{Happened, Hub};
use crate::random;
use crate::services::pace::{Member, Pace};
use crate::services::refusals::Refusals;
use crate::services::traffic::{Now, Traffic};
use cdp_core::frame::FrameInfo;
use cdp_core::link::message::{Code, DATA_CONNECTIONS_MAX, DataKey, Farewell, Features, Message};
use cdp_core::link::relay::{Hop, Relay, RelayBounds, RelayEffect, RelayEvent, RelayOptions};
use cdp_core::link::source::{ConnId, SourceOptions};
use cdp_core::link::spool::{Spool, SpoolEvent, SpoolOptions};
use cdp_core::link::target::TargetOptions;
use cdp_core::policy::throttle::REQUEST_MAX;
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, SessionId, Timeline};
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// After so long without a word a neighbour is taken for dead, in milliseconds.
const SILENCE_MS: u32 = 10_000;
/// The longest wait between two attempts to reach the next hop, in nanoseconds: after a long cut, what waits goes on about a second after
/// its end.
const RETRY_MAX_NS: u64 = 2_000_000_000;
/// How often a busy relay's share is looked at, and an idle one's.
const BUSY_NS: u64 = 20_000_000;
const IDLE_NS: u64 = 1_000_000_000;
/// A relay that has nothing and hears from nobody ends after so long; its source begins another.
const REST_NS: u64 = 60_000_000_000;

/// Sessions above whose keys are kept: the one that holds, and one before it.
const KEYS_MAX: usize = 2;
/// Reasons that are said why the next hops do not let in: more are the same ones in other words.
const UNREACHED_MAX: usize = 16;

/// What a task begins with.
pub(super) struct Begin {
    pub(super) key: RelayKey,
    pub(super) group: Option<GroupId>,
    pub(super) timeline: Option<Timeline>,
    /// With the frames that were found in it.
    pub(super) spool: Option<(Spool, Vec<FrameInfo>)>,
    pub(super) place: Option<Place>,
    /// None for calls.
    pub(super) share: Option<Share>,
    pub(super) stand: Arc<Stand>,
}

/// A frame's turn under a limit; the place among those who share it comes back.
type Turn = Pin<Box<dyn Future<Output = Limited> + Send>>;

/// A limit, and this relay's part of it.
type Limited = (Arc<Pace>, Member);

struct Task {
    shared: Arc<Shared>,
    key: RelayKey,
    group: Option<GroupId>,
    relay: Relay,
    above: Hub,
    below: Hub,
    place: Option<Place>,
    share: Option<Share>,
    bounds: RelayBounds,
    prepared: Option<Prepared>,
    stand: Arc<Stand>,
    /// Why the next hops are not reached or refuse, as it was said; emptied by a session that holds.
    unreached: BTreeSet<String>,
    /// Which of the next hops is tried, and how often one was since the last session that held.
    at: usize,
    tries: usize,
    traffic: Now,
    /// Frames and seeds that wait for their turn: what the end below gave, which is bounded by its queue.
    outgoing: VecDeque<(ConnId, Message)>,
    turn: Option<Turn>,
    /// While no frame waits for its turn.
    limited: Option<Limited>,
    look: MonoTime,
    /// Since when nobody above is there and nothing is kept.
    resting: Option<MonoTime>,
    refusals: Refusals,
    /// The end below rests, and is dialled again then.
    redial: Option<MonoTime>,
    /// Sessions that asked for plain data connections, the newest last: their keys are known to the door.
    keys: VecDeque<SessionId>,
    /// Somebody came.
    has_begun: bool,
    is_draining: bool,
    is_retired: bool,
}

/// What a spool is made with before its share says more.
pub(super) fn spool_options(key: &RelayKey, place: Option<&Place>) -> SpoolOptions {
    SpoolOptions {
        memory_bytes_max: 0,
        disk_bytes_max: 0,
        file_bytes: super::shares::FILE_BYTES,
        directory: key.directory(),
        ahead_bytes: 0,
        always: true,
        ids: place.map_or(0, |place| place.ids),
    }
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&random::identity());
    seed[16..].copy_from_slice(&random::identity());
    seed
}

async fn completed(place: Option<&mut Place>) -> super::disk::Completion {
    match place {
        Some(place) => place.completed().await,
        None => std::future::pending().await,
    }
}

async fn prepared(prepared: Option<&mut Prepared>) -> cdp_core::link::prepare::Done {
    match prepared {
        Some(prepared) => prepared.done().await,
        None => std::future::pending().await,
    }
}

async fn granted(turn: Option<&mut Turn>) -> Limited {
    match turn {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

/// It cannot begin: nobody finds it any more, and who came is told.
fn refuse_all(shared: &Shared, begin: &Begin, mut queue: UnboundedReceiver<ToRelay>, why: &str) {
    shared.notes.say(&format!("{}: {}: {why}", shared.name, begin.key));
    // Nobody is sent here who does not find it.
    lock(&shared.relays).remove(&begin.key);
    while let Ok(told) = queue.try_recv() {
        if let ToRelay::Accepted(accepted) = told {
            tokio::spawn(accepted.opened.refuse(Farewell::new(Code::Busy, why)));
        }
    }
    begin.stand.end();
}

/// Until it has nothing left to do, or is told to stop.
pub(super) async fn run(shared: Arc<Shared>, begin: Begin, mut queue: UnboundedReceiver<ToRelay>) {
    let mut ending = shared.ending.subscribe();
    if let Some(making) = begin.place.as_ref().map(|place| place.make(&begin.key.directory()))
        && let Err(error) = making.await
    {
        return refuse_all(&shared, &begin, queue, &error.to_string());
    }
    let mut task = Task::new(shared, begin);
    loop {
        task.pump();
        if task.is_over(&queue) {
            break;
        }
        let prepare = task.prepared.as_ref().and_then(Prepared::next_deadline);
        let due =
            [task.relay.next_deadline(), prepare, task.redial].into_iter().flatten().fold(task.look, MonoTime::min);
        tokio::select! {
            told = queue.recv() => match told {
                Some(ToRelay::Accepted(accepted)) => task.accepted(*accepted),
                Some(ToRelay::Drain) => {
                    task.is_draining = true;
                    task.relay.drain(mono());
                    task.drop_nobodys(mono());
                }
                None => break,
            },
            // An error is a proxy that is gone.
            () = async { drop(ending.wait_for(|ending| *ending).await) } => break,
            happened = task.above.next() => task.happened(Hop::Above, happened),
            happened = task.below.next() => task.happened(Hop::Below, happened),
            (id, outcome) = completed(task.place.as_mut()) => task.relay.disk_completed(mono(), id, outcome),
            done = prepared(task.prepared.as_mut()) => task.done(done),
            limited = granted(task.turn.as_mut()) => task.granted(limited),
            () = until(Some(due)) => task.timers(),
        }
    }
    task.stop().await;
}

impl Task {
    fn new(shared: Arc<Shared>, begin: Begin) -> Self {
        let Begin { key, group, timeline, spool, place, share, stand } = begin;
        let now = mono();
        let options = RelayOptions {
            above: TargetOptions {
                group,
                timeline,
                features: Features::ALL,
                connections: DATA_CONNECTIONS_MAX,
                silence_ms: SILENCE_MS,
                attempt: 0,
            },
            below: SourceOptions {
                group,
                timeline,
                tenant: key.tenant_below(),
                name: key.group.clone(),
                software: concat!("cdp ", env!("CARGO_PKG_VERSION")).into(),
                features: Features::ALL,
                connections: 0,
                plain: false,
                silence_ms: SILENCE_MS,
                start: Position::default(),
                origin: false,
                durable: Lsn::ZERO,
                // Above those of every earlier process, as long as the wall clock is not set back between them.
                attempt: crate::clock::wall().0 / 1_000_000,
                retry_max_ns: RETRY_MAX_NS,
                seed: seed(),
            },
            held_bytes_max: 0,
            window_bytes: 0,
            stores: place.is_some(),
        };
        let (spool, frames) = spool.unwrap_or_else(|| (Spool::new(spool_options(&key, place.as_ref())), Vec::new()));
        let relay = Relay::new(now, options, spool, &frames);
        let hub = || Hub::new(Arc::clone(&shared.identity), ConnectionOptions::default());
        let (above, below) = (hub(), hub());
        let bounds = RelayBounds { held_bytes_max: 0, window_bytes: 0, memory_bytes: 0, ahead_bytes: 0, disk_bytes: 0 };
        let prepared = group.zip(timeline).and_then(|of| Prepared::new(&shared, of));
        let mut task = Self {
            shared,
            key,
            group,
            relay,
            above,
            below,
            place,
            share,
            bounds,
            prepared,
            stand,
            unreached: BTreeSet::new(),
            at: 0,
            tries: 0,
            traffic: Now { encrypt: true, pace: None },
            outgoing: VecDeque::new(),
            turn: None,
            limited: None,
            look: now,
            resting: None,
            refusals: Refusals::default(),
            redial: None,
            keys: VecDeque::new(),
            has_begun: false,
            is_draining: false,
            is_retired: false,
        };
        task.look(now);
        task
    }

    fn accepted(&mut self, accepted: crate::link::accept::Accepted) {
        if self.is_draining || self.is_retired {
            let farewell = Farewell::new(Code::Stopping, "this proxy ends");
            drop(tokio::spawn(accepted.opened.refuse(farewell)));
            return;
        }
        let hello = *accepted.hello;
        let key = (hello.plain && hello.connection == 0).then(|| DataKey(seed()));
        if let Some(key) = &key {
            let mut keys = lock(&self.shared.keys);
            // The session's name is its source's choice: nobody takes another's.
            if keys.get(&hello.session).is_some_and(|(of, _)| *of != self.key) {
                drop(keys);
                let farewell = Farewell::new(Code::Unexpected, "another session has this name");
                drop(tokio::spawn(accepted.opened.refuse(farewell)));
                return;
            }
            keys.insert(hello.session, (self.key.clone(), key.clone()));
            drop(keys);
            self.keys.push_back(hello.session);
            // One more than can be: that of the session before, whose end is not seen yet.
            while self.keys.len() > KEYS_MAX {
                let oldest = self.keys.pop_front();
                self.forget_keys(oldest);
            }
        }
        let conn = self.above.add(accepted.opened);
        (self.resting, self.has_begun) = (None, true);
        self.relay.handle_accepted(mono(), conn, hello, key);
    }

    fn forget_keys(&self, sessions: impl IntoIterator<Item = SessionId>) {
        let mut keys = lock(&self.shared.keys);
        for session in sessions {
            keys.remove(&session);
        }
    }

    fn happened(&mut self, hop: Hop, happened: Happened) {
        let now = mono();
        match happened {
            Happened::Connected { dial, conn } => self.relay.handle_connected(now, conn, dial),
            Happened::NotConnected { dial, error } => {
                let why = error.to_string();
                self.relay.handle_connect_failed(now, dial, &why);
                // Of calls whoever asks is told.
                if self.group.is_some() {
                    self.say_once(format!("does not reach the next hop: {why}"));
                }
            }
            Happened::Message { conn, message } => self.relay.handle_message(now, hop, conn, message),
            Happened::Heard { conn } => self.relay.handle_heard(now, hop, conn),
            Happened::Sent { conn, bytes } => self.relay.handle_sent(now, hop, conn, bytes),
            Happened::Disconnected { conn, why } => {
                if hop == Hop::Below {
                    self.forget_outgoing(conn);
                }
                self.relay.handle_disconnected(now, hop, conn, &why);
            }
        }
    }

    /// Everything that can be done without waiting.
    fn pump(&mut self) {
        let now = mono();
        loop {
            while let Some(effect) = self.relay.poll(now) {
                self.carry_out(now, effect);
            }
            let Some(prepared) = &mut self.prepared else { break };
            let all_came = self.is_draining || self.above.is_empty();
            match prepared.work(now, &self.shared.pool, all_came) {
                Ok(Some((run, frame))) => self.relay.keep(now, run, frame),
                Ok(None) => break,
                Err(error) => {
                    self.say(&format!("what came cannot be prepared and is asked for again: {error}"));
                    self.relay.start_over(now, &error.to_string());
                }
            }
        }
        self.send_outgoing();
    }

    fn carry_out(&mut self, now: MonoTime, effect: RelayEffect) {
        match effect {
            RelayEffect::Connect { dial, session, plain } => self.connect(dial, session, plain),
            RelayEffect::Send { hop: Hop::Above, conn, message } => self.above.send(conn, message),
            RelayEffect::Send { hop: Hop::Below, conn, message } => {
                let waits = self.traffic.pace.is_some() || !self.outgoing.is_empty();
                if waits && matches!(message, Message::Frame(..) | Message::Seed(..)) {
                    self.outgoing.push_back((conn, message));
                } else {
                    self.below.send(conn, message);
                }
            }
            RelayEffect::Close { hop: Hop::Above, conn, farewell } => self.above.close(conn, farewell),
            RelayEffect::Close { hop: Hop::Below, conn, farewell } => {
                self.forget_outgoing(conn);
                self.below.close(conn, farewell);
            }
            RelayEffect::Taken { run, frame } => match &mut self.prepared {
                Some(prepared) => prepared.take(run, frame),
                None => self.relay.keep(now, run, frame),
            },
            RelayEffect::Disk(id, effect) => {
                if let Some(place) = &self.place {
                    place.carry_out(id, effect);
                }
            }
            RelayEffect::Event(event) => self.event(now, event),
        }
    }

    fn connect(&mut self, dial: cdp_core::link::source::Dial, session: SessionId, plain: Option<DataKey>) {
        if dial.index == 0 {
            // Whatever became of the try before, nobody let this relay in: the next one of the list may.
            self.at += usize::from(self.tries > 0);
            self.tries += 1;
        }
        let ways = self.shared.ways();
        let way = &ways[self.at % ways.len()];
        if dial.index == 0 {
            self.refusals.asked(&way.address);
            self.traffic = way.traffic(&self.shared.traffic);
            let encrypt = self.traffic.encrypt;
            // Without TLS only data connections go plain, beside the one that agreed on their key.
            let connections = if encrypt { self.shared.connections - 1 } else { self.shared.connections };
            self.relay.set_data_connections(connections, !encrypt);
        }
        let guard = plain.map_or(Guard::Tls { ticket: way.ticket.clone() }, |key| Guard::Plain { session, key });
        self.below.dial(dial, &way.address, guard, &self.shared.peers.pinned());
    }

    fn forget_outgoing(&mut self, conn: ConnId) {
        self.outgoing.retain(|(of, _)| *of != conn);
    }

    /// Frames whose turn it is.
    fn send_outgoing(&mut self) {
        while self.turn.is_none() {
            let Some((conn, message)) = self.outgoing.pop_front() else { return };
            match self.traffic.pace.clone() {
                Some(pace) => {
                    let bytes = message.queued_bytes().min(REQUEST_MAX);
                    self.outgoing.push_front((conn, message));
                    let of_it = self.limited.take().filter(|(of, _)| Arc::ptr_eq(of, &pace));
                    let (pace, mut member) = of_it.unwrap_or_else(|| (Arc::clone(&pace), pace.join()));
                    self.turn = Some(Box::pin(async move {
                        // One that cannot even ask is not held up by it.
                        let _ = member.take(bytes).await;
                        (pace, member)
                    }));
                }
                None => self.below.send(conn, message),
            }
        }
    }

    fn granted(&mut self, limited: Limited) {
        (self.turn, self.limited) = (None, Some(limited));
        if let Some((conn, message)) = self.outgoing.pop_front() {
            self.below.send(conn, message);
        }
    }

    fn done(&mut self, done: cdp_core::link::prepare::Done) {
        if let Some(prepared) = &mut self.prepared
            && let Err(error) = prepared.back(done)
        {
            self.say(&format!("what came cannot be prepared and is asked for again: {error}"));
            self.relay.start_over(mono(), &error.to_string());
        }
    }

    fn timers(&mut self) {
        let now = mono();
        self.relay.handle_timer(now);
        if self.redial.is_some_and(|at| at <= now) {
            self.redial = None;
            self.relay.dial(now);
        }
        if self.look <= now {
            self.look(now);
        }
    }

    /// Bounds, traffic and how it stands.
    fn look(&mut self, now: MonoTime) {
        let status = self.relay.status(now);
        if let Some(share) = &self.share {
            let bounds = share.bounds(&status);
            if bounds != self.bounds {
                self.bounds = bounds;
                self.relay.set_bounds(now, bounds);
            }
        }
        let ways = self.shared.ways();
        if status.below.up {
            self.traffic.pace = ways[self.at % ways.len()].traffic(&self.shared.traffic).pace;
        }
        if let Some(prepared) = &mut self.prepared {
            prepared.look(&self.shared.pool, &status, &self.bounds);
        }
        let is_busy = status.held_bytes + status.waiting_bytes > 0;
        let stats = self.prepared.as_ref().map(Prepared::stats).unwrap_or_default();
        self.stand.set(&status, &stats, self.relay.is_drained(), self.is_draining);
        self.look = now.after(if is_busy { BUSY_NS } else { IDLE_NS });
        let is_at_rest = self.above.is_empty() && self.relay.is_drained();
        self.resting = if is_at_rest { Some(self.resting.unwrap_or(now)) } else { None };
        let since = |at: Option<MonoTime>, ns: u64| at.is_some_and(|at| now.since(at) >= ns);
        let is_refused = self.above.is_empty() && self.refusals.is_given_up(now, &places(&ways));
        if !self.is_retired && self.share.is_some() && (since(self.resting, REST_NS) || is_refused) {
            self.retire(now, "every next hop has refused them for ten minutes");
        }
    }

    /// Ends it with what is kept, if anything is.
    fn retire(&mut self, now: MonoTime, why: &str) {
        if !self.relay.is_drained() {
            let status = self.relay.status(now);
            let bytes = status.held_bytes + status.waiting_bytes;
            self.shared.dropped_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.say(&format!("{bytes} bytes are dropped: {why}"));
        }
        self.is_retired = true;
        self.relay.retire();
        self.look = now.after(BUSY_NS);
    }

    /// At the end of the process nobody waits for what no next hop will ever take. What is refused for another reason stays.
    fn drop_nobodys(&mut self, now: MonoTime) {
        let ways = self.shared.ways();
        if self.is_draining && self.refusals.is_nobodys(now, &places(&ways)) && !self.is_retired && self.share.is_some()
        {
            self.retire(now, "their timeline is closed at the replica, or was never opened there");
        }
    }

    fn event(&mut self, now: MonoTime, event: RelayEvent) {
        match event {
            RelayEvent::Up(Hop::Above) => {}
            // Keys stay until newer ones come: which session ended is not said, and a key without its session opens nothing.
            RelayEvent::Down(Hop::Above, _) => {}
            RelayEvent::Up(Hop::Below) => {
                (self.redial, self.tries) = (None, 0);
                self.refusals.up(now);
                self.unreached.clear();
                let status = self.relay.status(now).below;
                let fits = self.prepared.as_mut().is_none_or(|prepared| prepared.up(&status));
                if !fits {
                    self.relay.start_over(now, "the next hop takes no compressed chunks");
                } else if self.group.is_some() {
                    let ways = self.shared.ways();
                    self.say(&format!("goes on to {}", ways[self.at % ways.len()].address));
                }
            }
            RelayEvent::Down(Hop::Below, why) => {
                if let Some(prepared) = &mut self.prepared {
                    prepared.down();
                }
                self.refusals.down(now);
                self.outgoing.clear();
                self.turn = None;
                if self.group.is_some() {
                    self.say(&format!("lost the next hop: {why}"));
                }
            }
            RelayEvent::Refused(why) => self.refused(now, why),
            RelayEvent::Lost(lost) => self.say(&format!(
                "the replica lost what it had acknowledged, LSN {} to {}: the source is told",
                lost.start(),
                lost.end()
            )),
            RelayEvent::Forgotten { oldest, .. } => {
                if let Some(prepared) = &mut self.prepared {
                    prepared.forget();
                }
                self.say(&format!("what was kept from {oldest} on does not meet the next hop and is asked for again"));
            }
            RelayEvent::Spool(SpoolEvent::DiskFailed { error }) => {
                self.say(&format!("the cache is in memory alone, its disk failed: {error}"));
            }
            RelayEvent::Spool(SpoolEvent::DiskBack) => self.say("the cache's disk works again"),
            RelayEvent::Spool(SpoolEvent::Lost { why, .. }) => {
                self.say(&format!("a frame of the cache cannot be read and is asked for again: {why}"));
            }
        }
    }

    fn refused(&mut self, now: MonoTime, why: Farewell) {
        let ways = self.shared.ways();
        let ways = places(&ways);
        if why.code == Code::Superseded {
            // Another one goes on; it is not that nobody does.
            self.refusals.unsaid();
        } else if let Some(at) = self.refusals.refused(now, why.code, &ways) {
            self.redial = Some(at);
            // One that let in before it refused is not the next one that is asked, either.
            self.tries = self.tries.max(1);
        }
        self.say_once(format!("is refused by the next hop: {why}"));
        // Who has the timeline knows where it is torn; the rest another way may know better.
        let is_last = why.code == Code::Torn || self.refusals.are_of_the_source(now, &ways);
        self.relay.handle_refused(now, why, is_last);
        self.drop_nobodys(now);
    }

    /// Says why nothing goes on: each reason once, until a session holds.
    fn say_once(&mut self, why: String) {
        if self.unreached.len() >= UNREACHED_MAX || self.unreached.contains(&why) {
            return;
        }
        self.say(&why);
        self.unreached.insert(why);
    }

    fn say(&self, what: &str) {
        self.shared.notes.say(&format!("{}: {}: {what}", self.shared.name, self.key));
    }

    /// Whether there is nothing left to do; then nobody finds it any more.
    fn is_over(&mut self, queue: &UnboundedReceiver<ToRelay>) -> bool {
        if self.share.is_none() {
            // A session of calls, which is over with its connection.
            return self.has_begun && self.above.is_empty();
        }
        if !(self.is_retired && self.relay.is_idle()) {
            return false;
        }
        let mut relays = lock(&self.shared.relays);
        let is_over = queue.is_empty();
        if is_over {
            relays.remove(&self.key);
        }
        is_over
    }

    async fn stop(mut self) {
        let now = mono();
        self.forget_keys(self.keys.iter().copied());
        self.relay.stop(now);
        while let Some(effect) = self.relay.poll(now) {
            match effect {
                RelayEffect::Send { hop: Hop::Above, conn, message } => self.above.send(conn, message),
                RelayEffect::Close { hop: Hop::Above, conn, farewell } => self.above.close(conn, farewell),
                RelayEffect::Close { hop: Hop::Below, conn, farewell } => self.below.close(conn, farewell),
                _ => {}
            }
        }
        // The last words are written.
        if !(self.above.is_empty() && self.below.is_empty()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.is_retired
            && let Some(place) = self.place.take()
        {
            place.remove(&self.key.directory()).await;
        }
        self.stand.end();
    }
}

impl super::Way {
    /// What holds for frames on this way now.
    fn traffic(&self, rules: &Traffic) -> Now {
        match self.addresses {
            Some((own, far)) => rules.decide(own, far, !self.ticket.is_empty()),
            None => Now { encrypt: true, pace: None },
        }
    }
}
