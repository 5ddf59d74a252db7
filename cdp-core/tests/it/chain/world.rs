//! The event loop: one clock, one queue of what happens, a network that delays, cuts and swallows, and the parts of every group.

mod calls;
mod faults;
mod net;

use self::calls::Asked;
use self::net::{Hop, Item, Pipe};
use super::calls::{Ask, Reply};
use super::host::{Host, Life};
use super::part::{In, Out, Part, S, Side};
use super::plan::{Fault, Plan};
use super::proxy::Proxy;
use super::replica::ReplicaHost;
use crate::capture::rng::Rng;
use cdp_core::link::message::{Code, Farewell, Message};
use cdp_core::link::source::{ConnId, Dial};
use cdp_core::types::MonoTime;
use std::collections::{BTreeMap, BTreeSet};

/// One group's way from its guests to its journal.
pub struct Group {
    pub host: Host,
    pub proxies: Vec<Proxy>,
    pub replica: ReplicaHost,
    /// Counts the lives of the host: what an earlier one asked is for nobody.
    life: u64,
    /// The question for a timeline that counts, while one is asked for.
    begins: Option<u64>,
}

pub enum Event {
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
    /// What is not answered yet is asked again.
    AskAgain(u64),
    /// A question of a group's host is there, by this sending of it; 0: once more.
    Ask {
        group: usize,
        number: u64,
        ask: Ask,
        sending: u64,
    },
    Answer {
        group: usize,
        number: u64,
        reply: Box<Reply>,
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
    asked: BTreeMap<u64, Asked>,
    next_ask: u64,
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
        let group = |(host, proxies, replica)| Group { host, proxies, replica, life: 0, begins: None };
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
            asked: BTreeMap::new(),
            next_ask: 1,
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
            Out::Begin => self.order_begin(group, false),
            Out::Ask(ask) => {
                self.note([part as u64, 8, self.next_ask, 0], || format!("{part} asks {ask:?}"));
                self.ask(group, ask);
            }
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
            Event::Connect { group, hop, dial } => self.connect(group, hop, dial),
            Event::Sent { conn, by, bytes } => self.sent(conn, by, bytes),
            Event::Heard { conn, by } => self.heard(conn, by),
            Event::Deliver { conn, by, message } => self.deliver(conn, by, message),
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
            Event::Start(group) => self.order_begin(group, true),
            Event::AskAgain(number) => self.ask_again(number),
            Event::Ask { group, number, ask, sending } => self.ask_arrives(group, number, ask, sending),
            Event::Answer { group, number, reply } => self.answer_arrives(group, number, *reply),
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

    fn tell(&mut self, part: usize, from: Side, input: In) {
        if !self.is_up(part) {
            return;
        }
        let clock = self.clock(part);
        self.part(part).handle(clock, from, input);
        self.touched.insert(part);
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

fn other(side: Side) -> Side {
    if side == Side::Above { Side::Below } else { Side::Above }
}

/// Whether a last word is one that can come where nobody does anything wrong.
fn is_fair(farewell: &Farewell) -> bool {
    use Code::{Broken, Busy, Done, Silent, Stopping, Superseded, TimelineClosed, TimelineUnknown, Torn, Unreachable};
    let fair = [Superseded, Busy, Stopping, Unreachable, Silent, Broken, Done, TimelineClosed, TimelineUnknown, Torn];
    // What was lent to a proxy that is lost is missing: one that has nothing takes what follows, and the next hop says so.
    let misses = farewell.code == Code::OutOfOrder && farewell.expected < farewell.found;
    fair.contains(&farewell.code) || misses || farewell.text.starts_with("a data connection of no session")
}
