//! One world: its events in the order of virtual time.

use super::parts::{Clock, Config, MS, Outcome, Random, US};
use crate::set::*;
use crate::types::{GroupId, Lsn, MonoTime, SetId, StartId, Timeline};
use std::collections::BTreeMap;

/// From the beginning of one cut to the next.
const PERIOD: u64 = 250 * MS;
/// Writers rest while no cut is near.
const AROUND: u64 = 3 * MS;

struct Op {
    writer: usize,
    lsn: u64,
    done: u64,
}

struct Host {
    member: Member<u64>,
    /// Counts the starts of its filter.
    life: u64,
    clock: Clock,
    /// What writers of ops up to each LSN knew at most: by hosts, the last LSN that was told done.
    knew: Vec<Vec<u64>>,
    told: u64,
    ops: BTreeMap<u64, Op>,
    stalled: u64,
    timer: u64,
}

/// Whoever takes cuts: one, and for some time perhaps also the one before it.
struct TakerPart {
    start: StartId,
    taker: Taker,
    clock: Clock,
    stalled: u64,
}

#[derive(Clone, Debug)]
enum Event {
    Begin,
    Submit { writer: usize, host: usize },
    Done { host: usize, life: u64, ticket: u64 },
    ToMember { host: usize, order: Order },
    ToTaker(Report),
    CutAt { host: usize, life: u64, cut: CutId, lsn: u64 },
    Kept { host: usize, life: u64, cut: CutId },
    MemberTimer { host: usize },
    TakerTimer(StartId),
}

struct World<'a> {
    config: &'a Config,
    random: Random,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    hosts: Vec<Host>,
    /// At most two; the newest last.
    takers: Vec<TakerPart>,
    next_begin: u64,
    cuts_left: u64,
    /// By writers, what they know to be done.
    knows: Vec<Vec<u64>>,
    /// By cuts: what had been told done when it was begun, and which hosts recorded which LSN.
    told: BTreeMap<CutId, Vec<u64>>,
    points: BTreeMap<CutId, BTreeMap<usize, u64>>,
    tickets: u64,
    outcome: Outcome,
    fault: Option<String>,
}

fn group(host: usize) -> GroupId {
    GroupId::new([host as u8 + 1; 16]).expect("not zero")
}

fn set() -> SetId {
    SetId::new([9; 16]).expect("not zero")
}

fn place(lsn: u64) -> Place {
    Place { timeline: Timeline::new([3; 16]).expect("not zero"), lsn: Lsn(lsn) }
}

/// Runs a world to its end. Gives the fault that it showed, if it did.
pub(super) fn run(seed: u64, config: &Config) -> Result<Outcome, String> {
    let mut world = World::new(seed, config);
    while let Some(((time, _), event)) = world.events.pop_first() {
        world.now = time;
        world.step(event);
        if let Some(fault) = world.fault {
            return Err(fault);
        }
    }
    world.judge()?;
    Ok(world.outcome)
}

impl<'a> World<'a> {
    fn new(seed: u64, config: &'a Config) -> Self {
        let mut random = Random(seed);
        let host = |(number, random): (usize, &mut Random)| Host {
            member: Member::new(set(), group(number), random.start()),
            life: 0,
            clock: Clock::new(random, config),
            knew: vec![vec![0; config.hosts]],
            told: 0,
            ops: BTreeMap::new(),
            stalled: 0,
            timer: u64::MAX,
        };
        let hosts: Vec<_> = (0..config.hosts).map(|number| host((number, &mut random))).collect();
        let mut world = Self {
            config,
            random,
            now: 0,
            events: BTreeMap::new(),
            sequence: 0,
            hosts,
            takers: Vec::new(),
            next_begin: 5 * MS,
            cuts_left: config.cuts,
            knows: vec![vec![0; config.hosts]; config.writers],
            told: BTreeMap::new(),
            points: BTreeMap::new(),
            tickets: 0,
            outcome: Outcome::default(),
            fault: None,
        };
        world.start_taker();
        world.at(world.next_begin, Event::Begin);
        for writer in 0..config.writers {
            let host = world.random.between(0, config.hosts as u64 - 1) as usize;
            world.at(writer as u64 * 50 * US, Event::Submit { writer, host });
        }
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((time.max(self.now), self.sequence), event);
    }

    fn after(&mut self, time: u64, event: Event) {
        self.at(self.now + time, event);
    }

    /// Puts a message on its way, or not, or twice.
    fn send(&mut self, event: &Event) {
        let copies = 1 + u64::from(self.random.thousandths(self.config.doubled));
        for _ in 0..copies {
            if self.random.thousandths(self.config.lost) {
                continue;
            }
            let usual = self.random.between(self.config.delay / 8, self.config.delay);
            let late = if self.random.thousandths(self.config.late) { self.random.between(MS, 400 * MS) } else { 0 };
            // Most that are late are so by little; some come when another cut is being taken.
            let late = if self.random.thousandths(100) { late } else { late / 40 };
            self.after(usual + late, event.clone());
        }
    }

    fn step(&mut self, event: Event) {
        let (host, taker) = match &event {
            Event::Submit { host, .. }
            | Event::Done { host, .. }
            | Event::ToMember { host, .. }
            | Event::CutAt { host, .. }
            | Event::Kept { host, .. }
            | Event::MemberTimer { host } => (Some(*host), None),
            Event::ToTaker(Report { cut: CutId { taker, .. }, .. }) | Event::TakerTimer(taker) => (None, Some(*taker)),
            Event::Begin => (None, None),
        };
        let taker = taker.and_then(|start| self.takers.iter().position(|part| part.start == start));
        let stalled =
            host.map_or(0, |host| self.hosts[host].stalled).max(taker.map_or(0, |at| self.takers[at].stalled));
        if stalled > self.now {
            // What waits for a stalled process is not taken in the order in which it came.
            let behind = self.random.between(0, 20 * US);
            return self.at(stalled + behind, event);
        }
        self.misfortune(host, taker, &event);
        self.carry_out(event);
        if let Some(host) = host {
            self.drain_member(host);
        }
        (0..self.takers.len()).for_each(|at| self.drain_taker(at));
    }

    /// Around a cut anything may stall or be started again.
    fn misfortune(&mut self, host: Option<usize>, taker: Option<usize>, event: &Event) {
        let near = !matches!(event, Event::Submit { .. } | Event::Done { .. } | Event::Begin);
        let crash = if host.is_some() { self.config.crash } else { self.config.crash / 4 };
        let (stall, crash) = if near { (self.config.stall * 5, crash * 5) } else { (0, 0) };
        if self.random.thousandths(stall) {
            let until = self.now + self.random.between(MS, 12 * MS);
            match (host, taker) {
                (Some(host), _) => self.hosts[host].stalled = until,
                (None, Some(at)) => self.takers[at].stalled = until,
                (None, None) => {}
            }
        }
        if self.random.thousandths(crash) {
            match host {
                Some(host) => self.restart_member(host),
                None => self.start_taker(),
            }
        }
    }

    /// Ops that were open are lost to their writers, who go on with what they know.
    fn restart_member(&mut self, number: usize) {
        let start = self.random.start();
        let host = &mut self.hosts[number];
        host.member = Member::new(set(), group(number), start);
        (host.life, host.timer) = (host.life + 1, u64::MAX);
        let writers: Vec<_> = std::mem::take(&mut host.ops).into_values().map(|op| op.writer).collect();
        for writer in writers {
            self.go_on(writer);
        }
    }

    /// Another taker. The one before it may not know that it is to be gone.
    fn start_taker(&mut self) {
        let keep = usize::from(self.random.thousandths(300));
        let gone = self.takers.len().saturating_sub(keep);
        self.outcome.begun += self.takers.drain(..gone).map(|part| part.taker.counts().begun).sum::<u64>();
        let groups: Vec<_> = (0..self.config.hosts).map(group).collect();
        let start = self.random.start();
        let taker = Taker::new(set(), start, &groups, 0).expect("a good set");
        self.takers.push(TakerPart { start, taker, clock: Clock::new(&mut self.random, self.config), stalled: 0 });
    }

    fn carry_out(&mut self, event: Event) {
        match event {
            Event::Begin => self.begin(),
            Event::Submit { writer, host } => self.submit(writer, host),
            Event::Done { host, life, ticket } => self.done(host, life, ticket),
            Event::ToMember { host, order } => {
                let now = self.local(host);
                self.hosts[host].member.handle(now, order);
            }
            Event::ToTaker(report) => {
                if let Some(part) = self.takers.iter_mut().find(|part| part.start == report.cut.taker) {
                    part.taker.handle(part.clock.at(self.now), report);
                }
            }
            Event::CutAt { host, life, cut, lsn } if life == self.hosts[host].life => {
                let now = self.local(host);
                self.hosts[host].member.cut_at(now, cut, Ok(place(lsn)));
            }
            Event::Kept { host, life, cut } if life == self.hosts[host].life => self.hosts[host].member.kept(cut, true),
            Event::MemberTimer { host } => self.hosts[host].timer = u64::MAX,
            Event::CutAt { .. } | Event::Kept { .. } | Event::TakerTimer(_) => {}
        }
    }

    fn local(&self, host: usize) -> MonoTime {
        self.hosts[host].clock.at(self.now)
    }

    fn begin(&mut self) {
        self.cuts_left -= 1;
        for part in &mut self.takers {
            if let Ok(cut) = part.taker.begin(part.clock.at(self.now)) {
                self.told.insert(cut, self.hosts.iter().map(|host| host.told).collect());
            }
        }
        if self.cuts_left > 0 {
            self.next_begin = self.now + PERIOD;
            self.at(self.next_begin, Event::Begin);
        }
    }

    fn submit(&mut self, writer: usize, number: usize) {
        // Nothing happens for long between cuts; what is far from one tells nothing.
        if self.next_begin < self.now && self.now > self.next_begin + 8 * AROUND {
            return;
        }
        let far = self.next_begin > self.now + AROUND && self.now + PERIOD > self.next_begin + 8 * AROUND;
        if far {
            let early = self.random.between(0, AROUND);
            return self.at(self.next_begin - early, Event::Submit { writer, host: number });
        }
        let knows = &self.knows[writer];
        let host = &mut self.hosts[number];
        let last = host.knew.last().expect("there is a first");
        host.knew.push(last.iter().zip(knows).map(|(a, b)| *a.max(b)).collect());
        let lsn = host.knew.len() as u64 - 1;
        self.tickets += 1;
        self.outcome.writes += 1;
        let ticket = self.tickets;
        host.ops.insert(ticket, Op { writer, lsn, done: 0 });
        let life = host.life;
        let slow = self.random.thousandths(self.config.slow);
        let time = if slow { self.random.between(MS, 12 * MS) } else { self.random.between(20 * US, 400 * US) };
        self.after(time, Event::Done { host: number, life, ticket });
    }

    fn done(&mut self, number: usize, life: u64, ticket: u64) {
        let now = self.local(number);
        let time = self.now;
        let host = &mut self.hosts[number];
        let Some(op) = host.ops.get_mut(&ticket).filter(|_| life == host.life) else { return };
        op.done = time;
        match host.member.complete(now, ticket, Lsn(op.lsn)) {
            Completion::Release => self.tell(number, ticket),
            Completion::Hold => self.outcome.held += 1,
        }
    }

    /// The guest is told; its writer goes on elsewhere.
    fn tell(&mut self, number: usize, ticket: u64) {
        let host = &mut self.hosts[number];
        let Some(op) = host.ops.remove(&ticket) else {
            self.fault = Some(format!("host {number} told ticket {ticket} twice"));
            return;
        };
        host.told = host.told.max(op.lsn);
        let withheld = host.clock.at(self.now).since(host.clock.at(op.done));
        if withheld > 0 {
            self.outcome.withheld(self.now - op.done);
        }
        // A process that is stopped tells nobody anything.
        if withheld > HOLD_NS + 2 && host.stalled < op.done {
            self.fault = Some(format!("host {number} withheld a completion for {withheld} ns"));
        }
        let knows = &mut self.knows[op.writer];
        knows[number] = knows[number].max(op.lsn);
        if self.random.thousandths(200) {
            // Somebody tells it what they know.
            let other = self.random.between(0, self.config.writers as u64 - 1) as usize;
            let theirs = self.knows[other].clone();
            self.knows[op.writer].iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = theirs.max(*mine));
        }
        self.go_on(op.writer);
    }

    fn go_on(&mut self, writer: usize) {
        let host = self.random.between(0, self.config.hosts as u64 - 1) as usize;
        let time = self.random.between(5 * US, 200 * US);
        self.after(time, Event::Submit { writer, host });
    }

    fn drain_member(&mut self, number: usize) {
        let now = self.local(number);
        while let Some(output) = self.hosts[number].member.poll(now) {
            let life = self.hosts[number].life;
            match output {
                Output::Release(ticket) => self.tell(number, ticket),
                Output::Report(report) => self.send(&Event::ToTaker(report)),
                Output::Cut(cut) => {
                    // The driver reads the LSN and takes its time to say it.
                    let lsn = self.hosts[number].knew.len() as u64 - 1;
                    let time = self.random.between(0, 300 * US);
                    self.after(time, Event::CutAt { host: number, life, cut, lsn });
                }
                Output::Keep(point) => {
                    self.points.entry(point.cut).or_default().insert(number, point.place.lsn.0);
                    let time = self.random.between(0, 300 * US);
                    self.after(time, Event::Kept { host: number, life, cut: point.cut });
                }
            }
        }
        let host = &self.hosts[number];
        let due = host.member.next_deadline().map(|due| host.clock.when(due));
        if let Some(due) = due.filter(|due| *due < host.timer) {
            self.hosts[number].timer = due;
            self.at(due, Event::MemberTimer { host: number });
        }
    }

    fn drain_taker(&mut self, at: usize) {
        let part = &self.takers[at];
        if part.stalled > self.now {
            return;
        }
        let (start, now) = (part.start, part.clock.at(self.now));
        let mut acted = false;
        while let Some(output) = self.takers[at].taker.poll(now) {
            acted = true;
            match output {
                TakerOutput::Send(to, order) => {
                    let host = usize::from(to.bytes()[0]) - 1;
                    self.send(&Event::ToMember { host, order });
                }
                TakerOutput::Ended(ended) => self.ended(&ended),
            }
        }
        let part = &self.takers[at];
        if let Some(due) = part.taker.next_deadline().filter(|_| acted) {
            let due = part.clock.when(due);
            self.at(due, Event::TakerTimer(start));
        }
    }

    /// What the taker calls common has been recorded by all, where it says.
    fn ended(&mut self, ended: &Ended) {
        let Verdict::Common(places) = &ended.verdict else { return };
        let places: BTreeMap<_, _> = places.iter().map(|(to, at)| (usize::from(to.bytes()[0]) - 1, at.lsn.0)).collect();
        if self.points.get(&ended.cut) != Some(&places) {
            self.fault = Some(format!("cut {} is called common at {places:?}, and recorded otherwise", ended.cut));
        }
    }

    /// As a restore reads the records: what every member has is a common point.
    fn judge(&mut self) -> Result<(), String> {
        self.outcome.begun += self.takers.iter().map(|part| part.taker.counts().begun).sum::<u64>();
        for (cut, places) in self.points.iter().filter(|(_, places)| places.len() == self.config.hosts) {
            self.outcome.common += 1;
            for (number, lsn) in places {
                if self.told[cut][*number] > *lsn {
                    return Err(format!("cut {}: host {number} is cut below what had been told done", cut.number));
                }
                let knew = &self.hosts[*number].knew[*lsn as usize];
                if let Some(other) = places.iter().find(|(other, at)| knew[**other] > **at) {
                    return Err(format!(
                        "cut {}: host {number} at {lsn} knows of {} of host {}, which is cut at {}",
                        cut.number, knew[*other.0], other.0, other.1
                    ));
                }
            }
        }
        Ok(())
    }
}
