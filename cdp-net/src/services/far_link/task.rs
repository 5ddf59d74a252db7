//! The task that has the filter's ends of its links.

use super::keep::Keep;
use super::{FarOptions, Road, Shared, given_up, lock};
use crate::clock::{mono, until};
use crate::far::{CallKind, Standing, answer_near};
use crate::link::connection::ConnectionOptions;
use crate::link::dial::Guard;
use crate::link::hub::{Happened, Hub};
use crate::link::identity::Identity;
use crate::random::identity as random;
use crate::services::refusals::Refusals;
use crate::services::traffic::addresses;
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, RawFrame};
use cdp_core::link::calls::CallId;
use cdp_core::link::farewell::Class;
use cdp_core::link::message::{Answer, Call, CallStatus, Code, FarRoom, Farewell, Features, Message};
use cdp_core::link::source::{Acked, ConnId, FrameKey, SourceEffect, SourceEnd, SourceOptions};
use cdp_core::link::spool::{Lookup, PushError, SpoolEvent};
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// Between two tries of a call while nobody can be asked.
const CALL_RETRY_NS: u64 = 50_000_000;
/// How often it is asked how the replica stands.
const STANDING_NS: u64 = 1_000_000_000;
/// The longest wait between two attempts to reach the other end, as a proxy's.
const RETRY_MAX_NS: u64 = 2_000_000_000;

/// What the task is told.
pub(super) enum Command {
    /// Asks the other end; is tried until then.
    Call { call: Call, until: Instant, reply: SyncSender<Answer> },
    /// The timeline is open at the other end.
    Begin { group: GroupId, timeline: Timeline, start: Position },
    /// The next frame of the filter.
    Frame(RawFrame),
    /// Frames up to here need not be kept, if somebody on the way has stored them.
    Lend(Lsn),
    /// The spool's disk has done something.
    DiskDone,
    /// A piece of a first copy, of this session.
    Seed { session: u64, frame: EncodedFrame },
    /// What the filter answered.
    Answered { id: CallId, answer: Answer },
    /// The other end is to be found there.
    Places(Vec<String>),
    /// Whoever is dialled is shown this.
    Ticket(Bytes),
    /// Files of the spool take so much at most.
    SpoolBytes(u64),
    /// Whoever waits for an answer is told that there is none.
    LetGo,
    /// Everything ends.
    Stop { said: SyncSender<()> },
}

/// One end of a link, with its connections.
struct End {
    end: SourceEnd,
    hub: Hub,
    /// Which address is tried, and how often one was since the last session that held.
    at: usize,
    tries: usize,
    refusals: Refusals,
    /// It rests, and is dialled again then.
    redial: Option<MonoTime>,
}

/// What waits for an answer.
enum Asked {
    Caller { call: Call, until: Instant, reply: SyncSender<Answer> },
    Standing,
}

/// See the module's text.
pub(super) struct Task {
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    options: FarOptions,
    calls: End,
    frames: Option<End>,
    /// What is written.
    of: Option<(GroupId, Timeline)>,
    encoder: Encoder,
    /// Frames that are not durable.
    keep: Keep,
    /// Those that are to be sent and are being read: at most what the end has given its connections.
    to_send: VecDeque<(ConnId, u64, FrameKey)>,
    /// The timeline cannot go on: frames are passed over until another one is begun.
    over: bool,
    /// Those that came before it began: a few.
    early: VecDeque<RawFrame>,
    /// Pieces of first copies that the end does not take yet, of the session that holds.
    seeds: VecDeque<EncodedFrame>,
    asked: BTreeMap<CallId, Asked>,
    /// Calls that nobody can be asked yet.
    waiting: VecDeque<(Call, Instant, SyncSender<Answer>)>,
    retry: Option<MonoTime>,
    standing: MonoTime,
    durable: Lsn,
    stored: Lsn,
    room: FarRoom,
}

async fn next(end: Option<&mut End>) -> Happened {
    match end {
        Some(end) => end.hub.next().await,
        None => std::future::pending().await,
    }
}

fn source(options: &FarOptions, of: Option<(GroupId, Timeline)>, start: Position) -> SourceOptions {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&random());
    seed[16..].copy_from_slice(&random());
    SourceOptions {
        group: of.map(|(group, _)| group),
        timeline: of.map(|(_, timeline)| timeline),
        tenant: options.tenant.clone(),
        name: options.name.clone(),
        software: concat!("cdp ", env!("CARGO_PKG_VERSION")).into(),
        features: Features::ALL,
        connections: if of.is_some() { options.connections } else { 0 },
        plain: false,
        silence_ms: options.silence_ms,
        start,
        origin: true,
        durable: start.lsn,
        // Above those of every earlier process, as long as the wall clock is not set back between them.
        attempt: crate::clock::wall().0 / 1_000_000,
        retry_max_ns: RETRY_MAX_NS,
        seed,
    }
}

impl End {
    fn new(identity: &Arc<Identity>, options: SourceOptions) -> Self {
        let hub = Hub::new(Arc::clone(identity), ConnectionOptions::default());
        let (end, refusals) = (SourceEnd::new(mono(), options), Refusals::default());
        Self { end, hub, at: 0, tries: 0, refusals, redial: None }
    }

    /// Whoever is spoken to is left, and looked for from the beginning of the list.
    fn leave(&mut self) {
        (self.at, self.tries, self.refusals, self.redial) = (0, 0, Refusals::default(), None);
        for conn in self.hub.connections() {
            self.hub.close(conn, Some(Farewell::new(Code::Done, "this filter turns to another place")));
            self.end.handle_disconnected(mono(), conn, "it is none of the places any more");
        }
        // One that was refused for good rests.
        self.end.dial(mono());
    }

    /// A session holds.
    fn let_in(&mut self) {
        (self.tries, self.redial) = (0, None);
        self.refusals.up(mono());
    }

    /// One of the places does not let it in, for good: whether none of them does.
    fn refused(&mut self, now: MonoTime, code: Code, to: &[String]) -> bool {
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let again = self.refusals.refused(now, code, &to);
        // One that let in before it refused is not the next one that is asked, either.
        self.tries = self.tries.max(1);
        let is_last = self.refusals.are_all(now, &to);
        self.redial = again.filter(|_| !is_last);
        is_last
    }

    fn timers(&mut self, now: MonoTime) {
        self.end.handle_timer(now);
        if self.redial.is_some_and(|at| at <= now) {
            self.redial = None;
            self.end.dial(now);
        }
    }

    fn next_deadline(&self) -> Option<MonoTime> {
        self.end.next_deadline().into_iter().chain(self.redial).min()
    }

    fn happened(&mut self, happened: Happened) {
        let now = mono();
        match happened {
            Happened::Connected { dial, conn } => self.end.handle_connected(now, conn, dial),
            Happened::NotConnected { dial, error } => {
                self.end.handle_connect_failed(now, dial, &error.to_string());
            }
            Happened::Message { conn, message } => self.end.handle_message(now, conn, message),
            Happened::Heard { conn } => self.end.handle_heard(now, conn),
            Happened::Sent { conn, bytes } => self.end.handle_sent(now, conn, bytes),
            Happened::Disconnected { conn, why } => self.end.handle_disconnected(now, conn, &why),
        }
    }
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, identity: Arc<Identity>, options: FarOptions, keep: Keep) -> Self {
        let calls = End::new(&identity, source(&options, None, Position::default()));
        Self {
            shared,
            identity,
            options,
            calls,
            frames: None,
            of: None,
            encoder: Encoder::new(),
            keep,
            to_send: VecDeque::new(),
            over: false,
            early: VecDeque::new(),
            seeds: VecDeque::new(),
            asked: BTreeMap::new(),
            waiting: VecDeque::new(),
            retry: None,
            standing: mono(),
            durable: Lsn::ZERO,
            stored: Lsn::ZERO,
            room: FarRoom::Ok,
        }
    }

    /// Until it is told to stop, or nobody is left who could tell it.
    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        loop {
            self.carry_out(false);
            self.carry_out(true);
            self.spool();
            let frames_due = self.frames.as_ref().and_then(End::next_deadline);
            let standing = self.frames.is_some().then_some(self.standing);
            let spool = self.keep.next_deadline();
            let due = [self.calls.next_deadline(), frames_due, self.retry, standing, spool];
            let due = due.into_iter().flatten().min();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop { said }) => {
                        self.stop().await;
                        // Who waits for it may have given up.
                        let _ = said.send(());
                        return;
                    }
                    Some(command) => {
                        self.command(command);
                        // A few at once: acks go out between them.
                        for _ in 0..32 {
                            match commands.try_recv() {
                                Ok(Command::Stop { said }) => {
                                    self.stop().await;
                                    let _ = said.send(());
                                    return;
                                }
                                Ok(command) => self.command(command),
                                Err(_) => break,
                            }
                        }
                    }
                    None => return,
                },
                happened = self.calls.hub.next() => {
                    self.note_trouble(&happened);
                    self.calls.happened(happened);
                }
                happened = next(self.frames.as_mut()) => {
                    self.look_at_traffic(&happened);
                    self.note_refusal(&happened);
                    if let Some(frames) = &mut self.frames {
                        frames.happened(happened);
                    }
                }
                () = until(due) => self.timers(),
            }
        }
    }

    /// Where the next hop is, is known; what it is asked for is not said yet.
    fn look_at_traffic(&mut self, happened: &Happened) {
        let (Some(frames), Happened::Connected { dial, conn }) = (&mut self.frames, happened) else { return };
        if dial.index > 0 {
            return;
        }
        let FarOptions { traffic, connections, ticket, .. } = &self.options;
        let way = frames.hub.get(*conn).and_then(|connection| addresses(&connection.address.to_string()));
        let encrypt = way.is_none_or(|(own, far)| traffic.decide(own, far, !ticket.is_empty()).encrypt);
        // Without TLS only data connections go plain, beside the one that agreed on their key.
        frames.end.set_data_connections(connections + u16::from(!encrypt), !encrypt);
    }

    /// Keeps for people why nobody answers.
    fn note_trouble(&self, happened: &Happened) {
        let why = match happened {
            Happened::NotConnected { error, .. } => error.to_string(),
            Happened::Disconnected { why, .. } => why.clone(),
            _ => return,
        };
        lock(&self.shared.state).road.why = Some(why);
    }

    /// Keeps for people why no frame is taken where calls are answered.
    fn note_refusal(&self, happened: &Happened) {
        let why = match happened {
            Happened::NotConnected { error, .. } => error.to_string(),
            Happened::Message { message: Message::Error(farewell) | Message::Close(farewell), .. } => {
                format!("records are not taken there: {farewell}")
            }
            _ => return,
        };
        let mut state = lock(&self.shared.state);
        if !state.is_up {
            state.road.why = Some(why);
        }
    }

    async fn stop(&mut self) {
        let now = mono();
        self.calls.end.stop(now);
        if let Some(frames) = &mut self.frames {
            frames.end.stop(now);
        }
        self.carry_out(false);
        self.carry_out(true);
        // The last words are written.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn timers(&mut self) {
        let now = mono();
        self.calls.timers(now);
        if let Some(frames) = &mut self.frames {
            frames.timers(now);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            for (call, until, reply) in std::mem::take(&mut self.waiting) {
                self.call(call, until, reply);
            }
        }
        if self.frames.is_some() && self.standing <= now {
            self.standing = now.after(STANDING_NS);
            let call =
                Call { kind: CallKind::Standing as u16, header: Bytes::from_static(b"null"), tail: Bytes::new() };
            if let Ok(id) = self.calls.end.call(now, call, 10 * STANDING_NS) {
                self.asked.insert(id, Asked::Standing);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Call { call, until, reply } => self.call(call, until, reply),
            Command::Begin { group, timeline, start } => self.begin(group, timeline, start),
            Command::Frame(frame) if self.frames.is_none() => self.early.push_back(frame),
            Command::Frame(frame) => self.frame(frame),
            Command::Lend(through) => {
                if let Some(frames) = &mut self.frames {
                    frames.end.lend(through);
                }
            }
            Command::DiskDone => {}
            Command::Seed { session, frame } => {
                if session == lock(&self.shared.state).session {
                    self.seeds.push_back(frame);
                    self.offer_seeds();
                }
            }
            Command::Answered { id, answer } => {
                if let Some(frames) = &mut self.frames {
                    frames.end.answer(mono(), id, answer);
                }
            }
            Command::Places(to) => self.set_places(to),
            Command::Ticket(ticket) => self.options.ticket = ticket,
            Command::SpoolBytes(bytes) => self.keep.set_disk_bytes(bytes),
            Command::LetGo => self.let_go(),
            Command::Stop { .. } => {}
        }
    }

    fn set_places(&mut self, to: Vec<String>) {
        if to.is_empty() {
            return;
        }
        for end in std::iter::once(&mut self.calls).chain(self.frames.as_mut()) {
            let spoken_to = &self.options.to[end.at % self.options.to.len()];
            match to.iter().position(|place| place == spoken_to) {
                Some(at) => end.at = at,
                None => end.leave(),
            }
        }
        self.options.to = to;
    }

    fn call(&mut self, call: Call, until: Instant, reply: SyncSender<Answer>) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (kind, status) = (call.kind, CallStatus::Unreachable);
            // Who asked may have given up.
            let _ = reply.send(Answer { kind, status, header: Bytes::new(), tail: Bytes::new() });
            return;
        }
        match self.calls.end.call(mono(), call.clone(), left.as_nanos() as u64) {
            Ok(id) => drop(self.asked.insert(id, Asked::Caller { call, until, reply })),
            Err(_) => self.later(call, until, reply),
        }
    }

    fn let_go(&mut self) {
        let asked = self.asked.extract_if(.., |_, asked| matches!(asked, Asked::Caller { .. }));
        let asked = asked.filter_map(|(_, asked)| match asked {
            Asked::Caller { call, reply, .. } => Some((call, reply)),
            Asked::Standing => None,
        });
        for (call, reply) in asked.chain(self.waiting.drain(..).map(|(call, _, reply)| (call, reply))) {
            // Who asked may have given up.
            let _ = reply.send(given_up(call.kind));
        }
    }

    fn later(&mut self, call: Call, until: Instant, reply: SyncSender<Answer>) {
        self.waiting.push_back((call, until, reply));
        self.retry.get_or_insert(mono().after(CALL_RETRY_NS));
    }

    fn begin(&mut self, group: GroupId, timeline: Timeline, start: Position) {
        // Told again, it is the same.
        if self.of == Some((group, timeline)) {
            return;
        }
        // What was on its way under the timeline before is lost with it.
        self.down();
        let mut end = End::new(&self.identity, source(&self.options, Some((group, timeline)), start));
        end.at = self.calls.at;
        self.frames = Some(end);
        self.of = Some((group, timeline));
        (self.durable, self.stored, self.over) = (start.lsn, start.lsn, false);
        self.keep.begin();
        std::mem::take(&mut self.early).into_iter().for_each(|frame| self.frame(frame));
    }

    fn frame(&mut self, raw: RawFrame) {
        let (Some((group, timeline)), Some(frames)) = (self.of, &mut self.frames) else { return };
        // Of the timeline before this one, or of one that is over: what it held is read again.
        if raw.timeline != timeline || self.over {
            return;
        }
        let frame = self.encoder.encode(raw, group, Compression::None);
        let (info, bytes) = (frame.info, frame.len());
        let mut kept = self.keep.push(frame.clone());
        if matches!(kept, Err(PushError::Full { .. })) {
            // What is lent has no room here, whoever has stored it meanwhile or has not.
            frames.end.forfeit_lent(mono());
            self.keep.release(frames.end.acked().kept_from);
            kept = self.keep.push(frame);
        }
        let offered = kept.map_err(|error| error.to_string()).and_then(|()| {
            let offered = frames.end.offer(mono(), &info, bytes);
            offered.map(drop).map_err(|error| error.to_string())
        });
        if let Err(why) = offered {
            self.end_timeline(format!("a frame of the filter cannot be kept: {why}"));
        }
    }

    /// What follows is not kept, or cannot be read: nothing more of this timeline can go.
    fn end_timeline(&mut self, why: String) {
        self.over = true;
        self.to_send.clear();
        self.keep.give_up();
        if let Some(frames) = &mut self.frames {
            frames.end.stop(mono());
        }
        self.shared.breaks(why);
    }

    /// Sends what was read meanwhile, and has the disk do what is to be done.
    fn spool(&mut self) {
        for event in self.keep.work() {
            if let SpoolEvent::Lost { why, .. } = event {
                return self.end_timeline(format!("a frame cannot be read from the spool: {why}"));
            }
        }
        while let Some((conn, number, key)) = self.to_send.pop_front() {
            match self.keep.get(key.0) {
                Lookup::Here(frame) => {
                    if let Some(frames) = &mut self.frames {
                        frames.hub.send(conn, Message::Frame(number, frame));
                    }
                }
                Lookup::Later => {
                    self.to_send.push_front((conn, number, key));
                    break;
                }
                Lookup::Gone => return self.end_timeline("a frame is needed that is not kept any more".to_owned()),
            }
        }
        self.keep.work();
        if let (Some(near), Some(capacity)) = (self.shared.near(), self.keep.new_capacity()) {
            near.capacity(capacity);
        }
    }

    fn offer_seeds(&mut self) {
        let Some(frames) = &mut self.frames else { return };
        while let Some(seed) = self.seeds.pop_front() {
            if let Err(refused) = frames.end.offer_seed(mono(), seed) {
                self.seeds.push_front(*refused.0);
                return;
            }
        }
    }

    /// Does what one of the ends wants.
    fn carry_out(&mut self, of_frames: bool) {
        loop {
            let Some(end) = (if of_frames { self.frames.as_mut() } else { Some(&mut self.calls) }) else { return };
            let Some(effect) = end.end.poll() else { return };
            match effect {
                SourceEffect::Connect { dial, session, plain } => {
                    if dial.index == 0 {
                        // Whatever became of the try before, nobody let this filter in: the next one of the list may.
                        end.at += usize::from(end.tries > 0);
                        end.tries += 1;
                    }
                    let address = &self.options.to[end.at % self.options.to.len()];
                    if dial.index == 0 {
                        end.refusals.asked(address);
                    }
                    let ticket = self.options.ticket.clone();
                    let guard = plain.map_or(Guard::Tls { ticket }, |key| Guard::Plain { session, key });
                    if !of_frames {
                        lock(&self.shared.state).road.address.clone_from(address);
                    }
                    end.hub.dial(dial, address, guard, &self.options.peers);
                }
                SourceEffect::Send { conn, message } => end.hub.send(conn, message),
                SourceEffect::SendFrame { conn, number, key } => self.to_send.push_back((conn, number, key)),
                SourceEffect::Close { conn, farewell } => end.hub.close(conn, farewell),
                SourceEffect::Acked(acked) if of_frames => self.acked(acked),
                SourceEffect::Acked(_) => {}
                SourceEffect::Answered { id, answer } => self.answered(id, answer),
                SourceEffect::Called { id, call } => self.called(id, call),
                // Nothing that follows is held here any more: the session breaks next.
                SourceEffect::Lost(_) => {}
                SourceEffect::Broken { have, oldest, .. } => self.shared.breaks(format!(
                    "the replica stands at {have}, and what follows is not kept any more: the oldest is {oldest}"
                )),
                SourceEffect::Refused { farewell, class } => {
                    lock(&self.shared.state).road.why = Some(format!("it refuses: {farewell}"));
                    match class {
                        Class::Never if farewell.code == Code::Torn => self.shared.breaks(farewell.to_string()),
                        Class::Never => {
                            // Else another one may let it in, be it one that is not there now.
                            if end.refused(mono(), farewell.code, &self.options.to) {
                                self.shared.fail(format!("the other side refuses for good: {farewell}"));
                            }
                        }
                        Class::Retry | Class::Elsewhere => end.refusals.unsaid(),
                    }
                }
                SourceEffect::Up { .. } if of_frames => {
                    end.let_in();
                    self.up();
                }
                SourceEffect::Down { .. } if of_frames => {
                    end.refusals.down(mono());
                    self.down();
                }
                SourceEffect::Up { .. } => {
                    end.let_in();
                    let address = self.options.to[end.at % self.options.to.len()].clone();
                    lock(&self.shared.state).road = Road { address, is_up: true, why: None };
                }
                SourceEffect::Down { why } => {
                    end.refusals.down(mono());
                    let mut state = lock(&self.shared.state);
                    state.road.is_up = false;
                    state.road.why.get_or_insert_with(|| why.to_string());
                }
            }
        }
    }

    fn up(&mut self) {
        let mut state = lock(&self.shared.state);
        state.session += 1;
        (state.is_up, state.seeds_given, state.seeds_taken) = (true, 0, 0);
        if state.road.is_up {
            state.road.why = None;
        }
        self.seeds.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    fn down(&mut self) {
        lock(&self.shared.state).is_up = false;
        self.seeds.clear();
        self.to_send.clear();
        self.shared.changed.notify_all();
    }

    fn acked(&mut self, acked: Acked) {
        self.keep.release(acked.kept_from);
        lock(&self.shared.state).seeds_taken = acked.seeds;
        self.shared.changed.notify_all();
        self.offer_seeds();
        let Some(near) = self.shared.near() else { return };
        if acked.durable > self.durable {
            self.durable = acked.durable;
            near.durable(acked.durable);
        }
        if acked.stored != self.stored {
            self.stored = acked.stored;
            near.stored(acked.stored);
        }
        if acked.room != self.room {
            self.room = acked.room;
            near.room(match acked.room {
                FarRoom::Ok => Room::Ok,
                FarRoom::NoSpace | FarRoom::Quota => Room::NoSpace,
                FarRoom::Lost => Room::Lost,
            });
        }
    }

    fn answered(&mut self, id: CallId, answer: Answer) {
        match self.asked.remove(&id) {
            // Somebody on the way is not there for now.
            Some(Asked::Caller { call, until, reply }) if answer.status == CallStatus::Unreachable => {
                self.later(call, until, reply);
            }
            Some(Asked::Caller { reply, .. }) => {
                // Who asked may have given up.
                let _ = reply.send(answer);
            }
            Some(Asked::Standing) if answer.status == CallStatus::Done => {
                if let Ok(standing) = serde_json::from_slice::<Standing>(&answer.header) {
                    lock(&self.shared.state).standing = standing;
                }
            }
            _ => {}
        }
    }

    /// Who keeps the replica asks: on a thread of its own, since the filter may wait for something.
    fn called(&mut self, id: CallId, call: Call) {
        let (near, commands) = (self.shared.near(), self.shared.commands.clone());
        tokio::task::spawn_blocking(move || {
            let answer = near.map_or_else(
                || Answer {
                    kind: call.kind,
                    status: CallStatus::Unreachable,
                    header: Bytes::new(),
                    tail: Bytes::new(),
                },
                |near| answer_near(near.as_ref(), &call),
            );
            // The link may have ended meanwhile.
            let _ = commands.send(Command::Answered { id, answer });
        });
    }
}
