//! The event loop: one clock, one queue of what happens, a network that delays, cuts and swallows, and the parts of every group.

use super::host::{DOWN_NS, Host, Life};
use super::part::{In, MS, Out, Part, S, Side};
use super::plan::{Fault, HopPlan, Plan};
use super::proxy::Proxy;
use super::replica::{Begun, ReplicaHost};
use crate::capture::rng::Rng;
use cdp_core::link::message::{Code, Farewell, Message};
use cdp_core::link::source::{ConnId, Dial};
use cdp_core::types::{MonoTime, Timeline};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// A long message is heard of so often while it comes.
const HEARD_NS: u64 = 200 * MS;

/// One group's way from its guests to its journal.
pub struct Group {
    pub host: Host,
    pub proxies: Vec<Proxy>,
    pub replica: ReplicaHost,
    /// Counts what ends an order to the replica.
    life: u64,
}

/// A connection: its two ends are told by [`Side`]: the part above has it below itself.
struct Pipe {
    group: usize,
    hop: usize,
    /// By who sends: above, below: when its last message arrives, and when the other end was last told that one is coming.
    arrives: [u64; 2],
    heard: [u64; 2],
    /// Swallows everything until it breaks.
    dead: bool,
    greeted: bool,
}

/// One hop, which all groups share.
struct Hop {
    plan: HopPlan,
    dark_until: u64,
    /// By who sends: above, below.
    lines: [Line; 2],
}

/// Connections of a hop take turns, so many bytes each.
const TURN: u64 = 4096;

/// One direction of a hop.
#[derive(Default)]
struct Line {
    is_busy: bool,
    /// Whose turn it was.
    turn: Option<ConnId>,
    /// With what of the first one is not sent yet, in bytes.
    waiting: BTreeMap<ConnId, (u64, VecDeque<Item>)>,
}

enum Item {
    Message(Message),
    /// The sender closed it.
    End,
}

impl Item {
    /// Bytes of it on the line.
    fn bytes(&self) -> u64 {
        match self {
            Self::Message(message) => message.queued_bytes() + 16,
            Self::End => 0,
        }
    }
}

enum Event {
    Connect {
        group: usize,
        hop: usize,
        dial: Dial,
    },
    Deliver {
        conn: ConnId,
        by: Side,
        message: Message,
    },
    Sent {
        conn: ConnId,
        by: Side,
        bytes: u64,
    },
    Heard {
        conn: ConnId,
        by: Side,
    },
    Gone(ConnId),
    /// A line has room for the next message.
    Free {
        hop: usize,
        direction: usize,
    },
    Heal(usize),
    Fault(Fault),
    /// A host's machine is there again.
    Start(usize),
    /// An order to the replica: open this timeline.
    Begin {
        group: usize,
        life: u64,
        timeline: Timeline,
    },
    Begun {
        group: usize,
        life: u64,
        timeline: Timeline,
        begun: Begun,
    },
    ProxyBack {
        hop: usize,
        keeps: bool,
    },
    ReplicaBack(usize),
    Look(usize),
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub groups: Vec<Group>,
    /// The parts of each group: the host, its proxies, the replica.
    width: usize,
    hops: Vec<Hop>,
    pipes: BTreeMap<ConnId, Pipe>,
    next_conn: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    /// By part: when its timer is due, and how far its clock is ahead.
    due: Vec<u64>,
    ahead: Vec<i64>,
    touched: BTreeSet<usize>,
    pub calm: bool,
    /// Parts that lie there, or are dark, and will not be.
    pub mending: u32,
    pub trace: u64,
    loud: bool,
    pub looks: u64,
}

impl World {
    pub fn new(plan: Plan, groups: Vec<(Host, Vec<Proxy>, ReplicaHost)>, mut rng: Rng) -> Self {
        let width = plan.hops.len() + 1;
        let now = 1_000 * S;
        let mut ahead = Vec::new();
        for (host, ..) in &groups {
            ahead.push(host.any_world().now as i64 - now as i64);
            ahead.extend((1..width).map(|number| number as i64 * 1_000 * S as i64));
        }
        let parts = groups.len() * width;
        let group = |(host, proxies, replica)| Group { host, proxies, replica, life: 0 };
        let hops = plan.hops.iter().map(|plan| Hop { plan: *plan, dark_until: 0, lines: Default::default() }).collect();
        let mut world = Self {
            now,
            rng: Rng::new(rng.next()),
            groups: groups.into_iter().map(group).collect(),
            width,
            hops,
            pipes: BTreeMap::new(),
            next_conn: 0,
            events: BTreeMap::new(),
            next_event: 0,
            due: vec![0; parts],
            ahead,
            touched: (0..parts).collect(),
            calm: false,
            mending: 0,
            trace: 0,
            loud: std::env::var_os("CDP_CHAIN_TRACE").is_some(),
            looks: 0,
        };
        for (after, fault) in plan.faults {
            world.at(now + after, Event::Fault(fault));
        }
        for (after, group) in plan.looks {
            world.at(now + after, Event::Look(group));
        }
        world
    }

    fn clock(&self, part: usize) -> MonoTime {
        MonoTime((self.now as i64 + self.ahead[part]) as u64)
    }

    fn part(&mut self, part: usize) -> &mut dyn Part {
        let (group, number) = (&mut self.groups[part / self.width], part % self.width);
        match number {
            0 => &mut group.host,
            number if number + 1 == self.width => &mut group.replica,
            number => &mut group.proxies[number - 1],
        }
    }

    fn note(&mut self, values: [u64; 4], text: impl FnOnce() -> String) {
        for value in [self.now].into_iter().chain(values) {
            self.trace = (self.trace ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
        if self.loud {
            println!("{}.{:06} {}", self.now / S, self.now % S / 1_000, text());
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((time, self.next_event), event);
    }

    /// Lets everything happen that happens before `until`, or until something holds; whether it does.
    pub fn run(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> bool {
        let mut rounds = 0u64;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            rounds += 1;
            assert!(rounds < 3_000_000, "the chain does not come to rest");
            let event = self.events.first_key_value().map_or(u64::MAX, |((time, _), _)| *time);
            let timer = self.due.iter().copied().min().unwrap_or(u64::MAX);
            let next = event.min(timer).max(self.now);
            if next > until {
                self.now = until.max(self.now);
                return done(self);
            }
            self.now = next;
            if event <= next {
                let (_, event) = self.events.pop_first().expect("an event");
                self.happen(event);
                continue;
            }
            for part in 0..self.due.len() {
                if self.due[part] <= next {
                    let clock = self.clock(part);
                    self.part(part).timer(clock);
                    self.touched.insert(part);
                }
            }
        }
    }

    /// Carries out what the parts want, until none wants anything.
    fn settle(&mut self) {
        while let Some(part) = self.touched.pop_first() {
            let clock = self.clock(part);
            let mut rounds = 0;
            while let Some(out) = self.part(part).poll(clock) {
                rounds += 1;
                assert!(rounds < 100_000, "part {part} does not come to rest");
                self.carry_out(part, out);
            }
            let ahead = self.ahead[part];
            let due = self.part(part).deadline().map_or(i64::MAX, |due| due.0.min(1 << 62) as i64 - ahead);
            self.due[part] = due.max(self.now as i64) as u64;
            let replica = &self.groups[part / self.width].replica;
            if replica.has_failed() && !replica.is_down {
                self.crash_replica(part / self.width);
            }
        }
    }

    fn carry_out(&mut self, part: usize, out: Out) {
        let (group, number) = (part / self.width, part % self.width);
        match out {
            Out::Connect(dial) => {
                self.note([part as u64, 1, dial.attempt, dial.index.into()], || format!("{part} dials {dial:?}"));
                let time = self.now + self.way(number);
                self.at(time, Event::Connect { group, hop: number, dial });
            }
            Out::Send(side, conn, message) => self.send(part, conn, other(side), message),
            Out::Close(side, conn, farewell) => {
                self.note([part as u64, 2, conn.0, 0], || format!("{part} closes {}: {farewell:?}", conn.0));
                let by = other(side);
                if let Some(farewell) = farewell {
                    assert!(is_fair(&farewell), "part {part} complains: {farewell}");
                    self.send(part, conn, by, farewell.message());
                }
                self.wait(conn, by, Item::End);
            }
            Out::Begin => self.order_begin(group),
        }
    }

    fn order_begin(&mut self, group: usize) {
        self.groups[group].life += 1;
        let (life, timeline) = (self.groups[group].life, Timeline::new(self.rng.identity()).expect("not 0"));
        self.note([group as u64, 3, life, 0], || format!("group {group} wants timeline {timeline}"));
        let time = self.now + self.rng.below(20 * MS);
        self.at(time, Event::Begin { group, life, timeline });
    }

    fn way(&mut self, hop: usize) -> u64 {
        let HopPlan { delay_ns, jitter_ns, .. } = self.hops[hop].plan;
        delay_ns + self.rng.below(jitter_ns + 1)
    }

    /// A message goes into a connection; `by` is where its sender stands, seen from the connection.
    fn send(&mut self, part: usize, conn: ConnId, by: Side, message: Message) {
        let values = brief(&message);
        self.note([part as u64, 4 + values[0] * 16, values[1], values[2]], || {
            format!("{part} > {} {}", conn.0, text(&message))
        });
        self.wait(conn, by, Item::Message(message));
    }

    fn wait(&mut self, conn: ConnId, by: Side, item: Item) {
        let Some(hop) = self.pipes.get(&conn).map(|pipe| pipe.hop) else { return };
        let direction = usize::from(by == Side::Below);
        let (left, queue) = self.hops[hop].lines[direction].waiting.entry(conn).or_default();
        if queue.is_empty() {
            *left = item.bytes();
        }
        queue.push_back(item);
        self.serve(hop, direction);
    }

    /// The next message of a line, if it is free.
    fn serve(&mut self, hop: usize, direction: usize) {
        let by = if direction == 0 { Side::Above } else { Side::Below };
        while !self.hops[hop].lines[direction].is_busy {
            let line = &mut self.hops[hop].lines[direction];
            let after = line.turn.and_then(|turn| line.waiting.range((Bound::Excluded(turn), Bound::Unbounded)).next());
            let Some(conn) = after.or_else(|| line.waiting.iter().next()).map(|(conn, _)| *conn) else { return };
            line.turn = Some(conn);
            let Some((left, queue)) = line.waiting.get_mut(&conn) else { return };
            let piece = (*left).min(TURN);
            *left -= piece;
            let item = if *left == 0 { queue.pop_front() } else { None };
            if item.is_some() {
                *left = queue.front().map_or(0, Item::bytes);
            }
            if queue.is_empty() {
                line.waiting.remove(&conn);
            }
            let (now, way) = (self.now, self.way(hop));
            let sent = now + piece * S / self.hops[hop].plan.bytes_per_second;
            let Some(pipe) = self.pipes.get_mut(&conn) else { continue };
            match item {
                Some(Item::End) => {
                    let gone = now.max(pipe.arrives[direction]) + 1;
                    self.at(gone, Event::Gone(conn));
                    continue;
                }
                Some(Item::Message(message)) => {
                    pipe.arrives[direction] = (sent + way).max(pipe.arrives[direction] + 1);
                    let (arrives, bytes) = (pipe.arrives[direction], message.queued_bytes());
                    if bytes > 0 {
                        self.at(sent, Event::Sent { conn, by, bytes });
                    }
                    self.at(arrives, Event::Deliver { conn, by, message });
                }
                // Of a long message the other end hears now and then.
                None if pipe.heard[direction] + HEARD_NS <= now => {
                    pipe.heard[direction] = now;
                    self.at(sent + way, Event::Heard { conn, by });
                }
                None => {}
            }
            self.hops[hop].lines[direction].is_busy = true;
            self.at(sent, Event::Free { hop, direction });
        }
    }

    fn is_up(&self, part: usize) -> bool {
        let (group, number) = (&self.groups[part / self.width], part % self.width);
        match number {
            0 => matches!(group.host.life, Life::Up(_)),
            number if number + 1 == self.width => !group.replica.is_down,
            number => !group.proxies[number - 1].is_down,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Connect { group, hop, dial } => {
                let above = group * self.width + hop;
                let reaches = self.hops[hop].dark_until <= self.now && self.is_up(above + 1);
                let input = if reaches {
                    self.next_conn += 1;
                    let conn = ConnId(self.next_conn);
                    let pipe =
                        Pipe { group, hop, arrives: [self.now; 2], heard: [self.now; 2], dead: false, greeted: false };
                    self.pipes.insert(conn, pipe);
                    In::Connected(conn, dial)
                } else {
                    In::ConnectFailed(dial)
                };
                self.tell(above, Side::Below, input);
            }
            Event::Sent { conn, by, bytes } => {
                let Some(pipe) = self.pipes.get(&conn).filter(|pipe| !pipe.dead) else { return };
                let above = pipe.group * self.width + pipe.hop;
                match by {
                    Side::Above => self.tell(above, Side::Below, In::Sent(conn, bytes)),
                    Side::Below => self.tell(above + 1, Side::Above, In::Sent(conn, bytes)),
                }
            }
            Event::Heard { conn, by } => {
                let Some(pipe) = self.pipes.get(&conn).filter(|pipe| !pipe.dead) else { return };
                let above = pipe.group * self.width + pipe.hop;
                let (part, from) = if by == Side::Above { (above + 1, Side::Above) } else { (above, Side::Below) };
                self.tell(part, from, In::Heard(conn));
            }
            Event::Deliver { conn, by, message } => {
                let Some(pipe) = self.pipes.get_mut(&conn).filter(|pipe| !pipe.dead) else { return };
                let above = pipe.group * self.width + pipe.hop;
                let greeted = pipe.greeted || by == Side::Below;
                pipe.greeted = true;
                match (by, message) {
                    (Side::Above, Message::Hello(hello)) if !greeted => {
                        self.tell(above + 1, Side::Above, In::Accepted(conn, hello));
                    }
                    (Side::Above, message) => self.tell(above + 1, Side::Above, In::Message(conn, message)),
                    (Side::Below, message) => self.tell(above, Side::Below, In::Message(conn, message)),
                }
            }
            Event::Gone(conn) => self.break_pipe(conn),
            Event::Free { hop, direction } => {
                self.hops[hop].lines[direction].is_busy = false;
                self.serve(hop, direction);
            }
            Event::Heal(hop) => {
                self.mending -= 1;
                if self.hops[hop].dark_until <= self.now {
                    let of_hop = |(_, pipe): &(&ConnId, &Pipe)| pipe.hop == hop && pipe.dead;
                    let broken: Vec<ConnId> = self.pipes.iter().filter(of_hop).map(|(conn, _)| *conn).collect();
                    broken.into_iter().for_each(|conn| self.break_pipe(conn));
                }
            }
            Event::Fault(fault) => {
                if !self.calm {
                    self.note([5, 0, 0, 0], || format!("fault {fault:?}"));
                    self.fault(fault);
                }
            }
            Event::Start(group) => self.order_begin(group),
            Event::Begin { group, life, timeline } => self.begin(group, life, timeline),
            Event::Begun { group, life, timeline, begun } => self.begun(group, life, timeline, begun),
            Event::ProxyBack { hop, keeps } => {
                self.mending -= 1;
                for group in 0..self.groups.len() {
                    let part = group * self.width + hop;
                    let clock = self.clock(part);
                    self.groups[group].proxies[hop - 1].restart(clock, keeps);
                    self.touched.insert(part);
                }
            }
            Event::ReplicaBack(group) => {
                self.mending -= 1;
                self.groups[group].replica.restart();
                self.touched.insert((group + 1) * self.width - 1);
                self.look(group);
            }
            Event::Look(group) => self.look(group),
        }
    }

    /// Who closed is told nothing new; the other end finds it closed.
    fn break_pipe(&mut self, conn: ConnId) {
        if let Some(pipe) = self.pipes.remove(&conn) {
            for line in &mut self.hops[pipe.hop].lines {
                line.waiting.remove(&conn);
            }
            let above = pipe.group * self.width + pipe.hop;
            self.tell(above, Side::Below, In::Gone(conn));
            self.tell(above + 1, Side::Above, In::Gone(conn));
        }
    }

    fn tell(&mut self, part: usize, from: Side, input: In) {
        if !self.is_up(part) {
            return;
        }
        let clock = self.clock(part);
        self.part(part).handle(clock, from, input);
        self.touched.insert(part);
    }

    fn begin(&mut self, group: usize, life: u64, timeline: Timeline) {
        if self.groups[group].life != life {
            return;
        }
        let dark = self.hops.iter().any(|hop| hop.dark_until > self.now);
        let part = (group + 1) * self.width - 1;
        let clock = self.clock(part);
        let begun = if dark { None } else { self.groups[group].replica.begin(clock, timeline) };
        self.touched.insert(part);
        let time = self.now + self.rng.between(MS, 20 * MS);
        match begun {
            Some(begun) => self.at(time, Event::Begun { group, life, timeline, begun }),
            None => self.at(time, Event::Begin { group, life, timeline }),
        }
    }

    fn begun(&mut self, group: usize, life: u64, timeline: Timeline, begun: Begun) {
        if self.groups[group].life != life {
            return;
        }
        self.note([6, group as u64, begun.fork.0, 0], || {
            format!("group {group} goes on on {timeline} after {begun:?}")
        });
        let now = self.now;
        let host = &mut self.groups[group].host;
        if matches!(host.life, Life::Down(_)) {
            self.mending -= 1;
        }
        host.begin(timeline, begun.parent, begun.fork);
        let (calm, world) = (self.calm, host.world_mut().expect("it began"));
        world.calm |= calm;
        let part = group * self.width;
        self.ahead[part] = world.now as i64 - now as i64;
        self.touched.insert(part);
    }

    fn crashed(&mut self, part: usize) {
        let (group, number) = (part / self.width, part % self.width);
        let touches = |(_, pipe): &(&ConnId, &Pipe)| {
            pipe.group == group && !pipe.dead && (pipe.hop == number || pipe.hop + 1 == number)
        };
        let broken: Vec<ConnId> = self.pipes.iter().filter(touches).map(|(conn, _)| *conn).collect();
        broken.into_iter().for_each(|conn| self.break_pipe(conn));
        self.due[part] = u64::MAX;
    }

    fn crash_replica(&mut self, group: usize) {
        let replica = &mut self.groups[group].replica;
        if replica.is_down {
            return;
        }
        replica.crash();
        self.mending += 1;
        self.crashed((group + 1) * self.width - 1);
        let time = self.now + self.rng.between(MS, 1_000 * MS);
        self.at(time, Event::ReplicaBack(group));
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Cut { hop, one } => {
                let of_hop: Vec<ConnId> = self.pipes.iter().filter(|(_, p)| p.hop == hop).map(|(id, _)| *id).collect();
                let chosen = one.then(|| self.rng.below(of_hop.len().max(1) as u64) as usize);
                let chosen = |at: usize| chosen.is_none_or(|chosen| chosen == at);
                let cut = of_hop.into_iter().enumerate().filter(|(at, _)| chosen(*at));
                cut.for_each(|(_, conn)| self.break_pipe(conn));
            }
            Fault::Dark { hop, ns } => {
                let until = self.now + ns;
                self.hops[hop].dark_until = self.hops[hop].dark_until.max(until);
                self.pipes.values_mut().filter(|pipe| pipe.hop == hop).for_each(|pipe| pipe.dead = true);
                self.mending += 1;
                self.at(until, Event::Heal(hop));
            }
            Fault::Host { group, end } => {
                if self.is_up(group * self.width) {
                    self.groups[group].host.crash(end);
                    self.groups[group].life += 1;
                    self.mending += 1;
                    self.crashed(group * self.width);
                    let time = self.now + self.rng.between(MS, DOWN_NS);
                    self.at(time, Event::Start(group));
                }
            }
            Fault::Proxy { hop, keeps } => {
                if self.is_up(hop) {
                    for group in 0..self.groups.len() {
                        self.groups[group].proxies[hop - 1].crash();
                        self.crashed(group * self.width + hop);
                    }
                    self.mending += 1;
                    let time = self.now + self.rng.between(MS, DOWN_NS);
                    self.at(time, Event::ProxyBack { hop, keeps });
                }
            }
            Fault::Replica { group } => self.crash_replica(group),
            Fault::ReplicaWrite { group, after } => self.groups[group].replica.writes_fail = after,
            Fault::ReplicaFull { group, ns } => {
                let clock = self.clock((group + 1) * self.width - 1);
                self.groups[group].replica.no_space_until = clock.after(ns);
            }
            Fault::ProxyDisk { hop, ns, reads } => {
                for group in 0..self.groups.len() {
                    let until = self.clock(group * self.width + hop).after(ns);
                    let proxy = &mut self.groups[group].proxies[hop - 1];
                    *(if reads { &mut proxy.reads_fail_until } else { &mut proxy.writes_fail_until }) = until;
                }
            }
        }
    }

    fn look(&mut self, group: usize) {
        if !self.groups[group].replica.is_down {
            self.looks += 1;
            let looked = super::check::look(&self.groups[group], &mut self.rng);
            self.note([7, group as u64, looked, 0], || format!("looked at {looked} moments of group {group}"));
        }
    }

    /// No more faults and no more ops; what is down comes back.
    pub fn heal(&mut self) {
        self.calm = true;
        for group in &mut self.groups {
            if let Some(world) = group.host.world_mut() {
                world.calm = true;
            }
        }
    }
}

/// What of a message goes into the trace.
fn brief(message: &Message) -> [u64; 3] {
    match message {
        Message::Frame(number, frame) => [1, *number, frame.info.last_lsn.0],
        Message::Ack(ack) => [2, ack.received.0, ack.durable.0],
        Message::Ping(ping) => [3, ping.sent_ns, ping.held_bytes],
        Message::Hello(hello) => [4, hello.attempt, hello.durable_seen.0],
        Message::Welcome(welcome) => [5, welcome.durable.0, welcome.credit],
        Message::Error(why) | Message::Close(why) => [6, why.code as u64, why.found],
        _ => [7, 0, 0],
    }
}

fn text(message: &Message) -> String {
    match message {
        Message::Frame(number, frame) => {
            format!("frame {number}: {} to {}, {} bytes", frame.info.begin(), frame.info.end(), frame.len())
        }
        message => format!("{message:?}"),
    }
}

fn other(side: Side) -> Side {
    if side == Side::Above { Side::Below } else { Side::Above }
}

/// Whether a last word is one that can come where nobody does anything wrong.
fn is_fair(farewell: &Farewell) -> bool {
    use Code::{Broken, Busy, Done, Silent, Stopping, Superseded, TimelineClosed, TimelineUnknown, Torn, Unreachable};
    let fair = [Superseded, Busy, Stopping, Unreachable, Silent, Broken, Done, TimelineClosed, TimelineUnknown, Torn];
    fair.contains(&farewell.code) || farewell.text.starts_with("a data connection of no session")
}
