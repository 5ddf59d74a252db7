//! A chain in virtual time: a source that makes frames, relays, a replica that makes them durable, and between them a network that
//! delays, cuts and swallows. Everything that happens follows from the seed and the ops; what must hold is checked as it happens.
//!
//! * `origin`: makes records, keeps frames until they are needed no more, forks when its timeline is broken.
//! * `replica`: takes parts, checks each against what the origin made, syncs, crashes.
//! * `middle`: a relay with its disk.
//! * `chain`: the properties that hold for any ops.

mod chain;
mod middle;
mod origin;
mod replica;

use self::middle::Middle;
use self::origin::Origin;
use self::replica::Replica;
use super::message::{Farewell, Hello, Message};
use super::source::{ConnId, Dial};
use crate::types::MonoTime;
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// Random numbers of a test.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Which neighbour something is about: the one nearer to the source, or the one nearer to the replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Side {
    Above,
    Below,
}

/// What the network tells a part.
#[derive(Clone, Debug)]
enum In {
    Connected(ConnId, Dial),
    ConnectFailed(Dial),
    Accepted(ConnId, Box<Hello>),
    Message(ConnId, Message),
    Sent(ConnId, u64),
    Gone(ConnId),
}

/// What a part wants of the network.
#[derive(Debug)]
enum Out {
    Connect(Dial),
    Send(Side, ConnId, Message),
    Close(Side, ConnId, Option<Farewell>),
}

/// A part of the chain.
trait Part {
    fn handle(&mut self, now: MonoTime, from: Side, input: In);
    fn timer(&mut self, now: MonoTime);
    fn deadline(&self) -> Option<MonoTime>;
    fn poll(&mut self, now: MonoTime) -> Option<Out>;
}

/// A connection: its two ends are told by `Side`: the part above has it below itself.
#[derive(Debug)]
struct Pipe {
    hop: usize,
    /// By who sends: above, below.
    free_at: [MonoTime; 2],
    arrives: [MonoTime; 2],
    /// Swallows everything from now on.
    dead: bool,
    greeted: bool,
}

#[derive(Debug)]
enum Event {
    Connect { hop: usize, dial: Dial },
    Deliver { conn: ConnId, by: Side, message: Message },
    Sent { conn: ConnId, by: Side, bytes: u64 },
    Gone { conn: ConnId },
}

/// How the network of a chain is.
#[derive(Clone, Copy, Debug)]
struct Network {
    delay_ns: u64,
    jitter_ns: u64,
    bytes_per_second: u64,
}

struct World {
    now: MonoTime,
    random: Random,
    network: Network,
    origin: Origin,
    middles: Vec<Middle>,
    replica: Replica,
    pipes: BTreeMap<ConnId, Pipe>,
    next_conn: u64,
    events: BTreeMap<(MonoTime, u64), Event>,
    next_event: u64,
    /// By hop: nothing passes until then.
    dark_until: Vec<MonoTime>,
    /// What happened, for whoever compares two runs.
    trace: blake3::Hasher,
    happened: u64,
}

impl World {
    fn new(seed: u64, middles: Vec<Middle>, connections: u16, network: Network) -> Self {
        let dark_until = vec![MonoTime(0); middles.len() + 1];
        Self {
            now: MonoTime(SECOND),
            random: Random(seed),
            network,
            origin: Origin::new(MonoTime(SECOND), seed, connections),
            middles,
            replica: Replica::new(),
            pipes: BTreeMap::new(),
            next_conn: 0,
            events: BTreeMap::new(),
            next_event: 0,
            dark_until,
            trace: blake3::Hasher::new(),
            happened: 0,
        }
    }

    /// Part 0 is the origin, the last one the replica.
    fn part(&mut self, number: usize) -> &mut dyn Part {
        let middles = self.middles.len();
        match number {
            0 => &mut self.origin,
            number if number <= middles => &mut self.middles[number - 1],
            _ => &mut self.replica,
        }
    }

    fn parts(&self) -> usize {
        self.middles.len() + 2
    }

    /// Each part's clock began at another time.
    fn clock(&self, part: usize) -> MonoTime {
        self.now.after(part as u64 * 1_000 * SECOND)
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.happened += 1;
        let line = format!("{} {what}", self.now.0);
        self.trace.update(line.as_bytes());
        if std::env::var_os("CDP_TRACE").is_some() {
            eprintln!("{line}");
        }
    }

    fn at(&mut self, time: MonoTime, event: Event) {
        self.next_event += 1;
        self.events.insert((time, self.next_event), event);
    }

    /// Lets everything happen that happens within so many nanoseconds.
    fn run(&mut self, nanoseconds: u64) {
        let until = self.now.after(nanoseconds);
        loop {
            self.settle();
            let event = self.events.keys().next().map(|(time, _)| *time);
            let timer = (0..self.parts()).filter_map(|part| self.deadline(part)).min();
            let Some(next) = event.into_iter().chain(timer).min().filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            for part in 0..self.parts() {
                if self.deadline(part).is_some_and(|due| due <= self.now) {
                    let clock = self.clock(part);
                    self.part(part).timer(clock);
                }
            }
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let event = entry.remove();
                self.happen(event);
                self.settle();
            }
        }
        self.now = until;
    }

    /// A part's deadline in the world's time.
    fn deadline(&mut self, part: usize) -> Option<MonoTime> {
        let ahead = self.clock(part).since(self.now);
        self.part(part).deadline().map(|due| MonoTime(due.0.saturating_sub(ahead)))
    }

    /// Carries out what the parts want, until none wants anything.
    fn settle(&mut self) {
        let mut quiet = false;
        let mut rounds = 0;
        while !quiet {
            quiet = true;
            for part in 0..self.parts() {
                let clock = self.clock(part);
                while let Some(out) = self.part(part).poll(clock) {
                    quiet = false;
                    rounds += 1;
                    assert!(rounds < 1_000_000, "the parts do not come to rest");
                    self.carry_out(part, out);
                }
            }
        }
        self.replica.check(&self.origin);
        self.origin.check(&self.replica);
    }

    fn carry_out(&mut self, part: usize, out: Out) {
        match &out {
            Out::Send(_, conn, message) => self.note(format_args!("{part} > {} {}", conn.0, brief(message))),
            out => self.note(format_args!("{part} {out:?}")),
        }
        match out {
            Out::Connect(dial) => {
                let time = self.now.after(self.way());
                self.at(time, Event::Connect { hop: part, dial });
            }
            Out::Send(side, conn, message) => self.send(conn, other(side), message),
            Out::Close(side, conn, farewell) => {
                if let Some(farewell) = farewell {
                    assert!(is_fair(&farewell), "part {part} complains: {farewell}");
                    self.send(conn, other(side), farewell.message());
                }
                if let Some(pipe) = self.pipes.get(&conn) {
                    let time = pipe.arrives[usize::from(other(side) == Side::Below)].max(self.now).after(1);
                    self.at(time, Event::Gone { conn });
                }
            }
        }
    }

    fn way(&mut self) -> u64 {
        self.network.delay_ns + self.random.below(self.network.jitter_ns + 1)
    }

    /// A message goes into a connection; `by` is where its sender stands, seen from the connection.
    fn send(&mut self, conn: ConnId, by: Side, message: Message) {
        let way = self.way();
        let Some(pipe) = self.pipes.get_mut(&conn) else { return };
        let direction = usize::from(by == Side::Below);
        let bytes = message.queued_bytes();
        let took = (bytes + 16) * SECOND / self.network.bytes_per_second;
        let sent = pipe.free_at[direction].max(self.now).after(took);
        let arrives = sent.after(way).max(pipe.arrives[direction].after(1));
        (pipe.free_at[direction], pipe.arrives[direction]) = (sent, arrives);
        self.at(sent, Event::Sent { conn, by, bytes });
        self.at(arrives, Event::Deliver { conn, by, message });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Connect { hop, dial } => {
                let input = if self.dark_until[hop] > self.now {
                    In::ConnectFailed(dial)
                } else {
                    self.next_conn += 1;
                    let conn = ConnId(self.next_conn);
                    let pipe =
                        Pipe { hop, free_at: [self.now; 2], arrives: [self.now; 2], dead: false, greeted: false };
                    self.pipes.insert(conn, pipe);
                    In::Connected(conn, dial)
                };
                self.tell(hop, Side::Below, input);
            }
            Event::Sent { conn, by, bytes } => {
                let Some(pipe) = self.pipes.get(&conn).filter(|pipe| !pipe.dead && bytes > 0) else { return };
                let hop = pipe.hop;
                match by {
                    Side::Above => self.tell(hop, Side::Below, In::Sent(conn, bytes)),
                    Side::Below => self.tell(hop + 1, Side::Above, In::Sent(conn, bytes)),
                }
            }
            Event::Deliver { conn, by, message } => {
                let Some(pipe) = self.pipes.get_mut(&conn).filter(|pipe| !pipe.dead) else { return };
                let hop = pipe.hop;
                let greeted = std::mem::replace(&mut pipe.greeted, true);
                match (by, message) {
                    (Side::Above, Message::Hello(hello)) if !greeted => {
                        self.tell(hop + 1, Side::Above, In::Accepted(conn, hello));
                    }
                    (Side::Above, message) => self.tell(hop + 1, Side::Above, In::Message(conn, message)),
                    (Side::Below, message) => self.tell(hop, Side::Below, In::Message(conn, message)),
                }
            }
            // Who closed is told nothing; the other end finds it closed.
            Event::Gone { conn } => {
                if let Some(pipe) = self.pipes.remove(&conn).filter(|pipe| !pipe.dead) {
                    self.tell(pipe.hop, Side::Below, In::Gone(conn));
                    self.tell(pipe.hop + 1, Side::Above, In::Gone(conn));
                }
            }
        }
    }

    fn tell(&mut self, part: usize, from: Side, input: In) {
        match &input {
            In::Message(conn, message) => self.note(format_args!("{part} < {} {}", conn.0, brief(message))),
            input => self.note(format_args!("{part} < {input:?}")),
        }
        let clock = self.clock(part);
        self.part(part).handle(clock, from, input);
    }

    /// Every connection of a hop, or one of them, breaks.
    fn cut(&mut self, hop: usize, only: Option<u64>) {
        let of_hop: Vec<ConnId> = self.pipes.iter().filter(|(_, p)| p.hop == hop).map(|(id, _)| *id).collect();
        let chosen = only.map(|number| number as usize % of_hop.len().max(1));
        for (_, conn) in of_hop.into_iter().enumerate().filter(|(at, _)| chosen.is_none_or(|chosen| chosen == *at)) {
            self.happen(Event::Gone { conn });
        }
    }

    /// Nothing passes a hop for a while, and what passed it before is swallowed without a word.
    fn darken(&mut self, hop: usize, nanoseconds: u64) {
        self.dark_until[hop] = self.dark_until[hop].max(self.now.after(nanoseconds));
        self.pipes.values_mut().filter(|pipe| pipe.hop == hop).for_each(|pipe| pipe.dead = true);
    }

    /// A part crashed: its connections break.
    fn crashed(&mut self, part: usize) {
        let hops = [part.checked_sub(1), (part + 1 < self.parts()).then_some(part)];
        let conns: Vec<(ConnId, usize)> = self.pipes.iter().map(|(id, pipe)| (*id, pipe.hop)).collect();
        for (conn, hop) in conns.into_iter().filter(|(_, hop)| hops.contains(&Some(*hop))) {
            if self.pipes.remove(&conn).is_some_and(|pipe| !pipe.dead) {
                let (other, side) = if hop == part { (hop + 1, Side::Above) } else { (hop, Side::Below) };
                self.tell(other, side, In::Gone(conn));
            }
        }
    }
}

/// A message without its bytes.
fn brief(message: &Message) -> String {
    match message {
        Message::Frame(number, frame) => format!("frame {number}: {} to {}", frame.info.begin(), frame.info.end()),
        Message::Seed(number, _) => format!("seed {number}"),
        message => format!("{message:?}"),
    }
}

fn other(side: Side) -> Side {
    if side == Side::Above { Side::Below } else { Side::Above }
}

/// Whether a last word is one that can come where nobody does anything wrong.
fn is_fair(farewell: &Farewell) -> bool {
    use super::message::Code;
    let fair =
        [Code::Superseded, Code::Busy, Code::Stopping, Code::Unreachable, Code::Silent, Code::Broken, Code::Done];
    fair.contains(&farewell.code) || farewell.text.starts_with("a data connection of no session")
}
