//! The network: it delays, cuts and swallows, and connections of a hop take turns.

use super::super::part::{In, MS, S, Side};
use super::super::plan::HopPlan;
use super::{Event, World};
use cdp_core::link::message::Message;
use cdp_core::link::source::{ConnId, Dial};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// A long message is heard of so often while it comes.
const HEARD_NS: u64 = 200 * MS;

/// A connection: its two ends are told by [`Side`]: the part above has it below itself.
pub struct Pipe {
    pub group: usize,
    pub hop: usize,
    /// By who sends: above, below: when its last message arrives, and when the other end was last told that one is coming.
    arrives: [u64; 2],
    heard: [u64; 2],
    /// Swallows everything until it breaks.
    pub dead: bool,
    greeted: bool,
}

impl Pipe {
    fn new(group: usize, hop: usize, now: u64) -> Self {
        Self { group, hop, arrives: [now; 2], heard: [now; 2], dead: false, greeted: false }
    }
}

/// One hop, which all groups share.
pub struct Hop {
    pub plan: HopPlan,
    pub dark_until: u64,
    /// By who sends: above, below.
    pub lines: [Line; 2],
}

/// Connections of a hop take turns, so many bytes each.
const TURN: u64 = 4096;

/// One direction of a hop.
#[derive(Default)]
pub struct Line {
    pub is_busy: bool,
    /// Whose turn it was.
    turn: Option<ConnId>,
    /// With what of the first one is not sent yet, in bytes.
    pub waiting: BTreeMap<ConnId, (u64, VecDeque<Item>)>,
}

pub enum Item {
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

impl World {
    pub fn way(&mut self, hop: usize) -> u64 {
        let HopPlan { delay_ns, jitter_ns, .. } = self.hops[hop].plan;
        delay_ns + self.rng.below(jitter_ns + 1)
    }

    /// A message goes into a connection; `by` is where its sender stands, seen from the connection.
    pub fn send(&mut self, part: usize, conn: ConnId, by: Side, message: Message) {
        let values = brief(&message);
        self.note([part as u64, 4 + values[0] * 16, values[1], values[2]], || {
            format!("{part} > {} {}", conn.0, text(&message))
        });
        self.wait(conn, by, Item::Message(message));
    }

    pub fn wait(&mut self, conn: ConnId, by: Side, item: Item) {
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
    pub fn serve(&mut self, hop: usize, direction: usize) {
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

    /// Who closed is told nothing new; the other end finds it closed.
    pub fn break_pipe(&mut self, conn: ConnId) {
        if let Some(pipe) = self.pipes.remove(&conn) {
            for line in &mut self.hops[pipe.hop].lines {
                line.waiting.remove(&conn);
            }
            let above = pipe.group * self.width + pipe.hop;
            self.tell(above, Side::Below, In::Gone(conn));
            self.tell(above + 1, Side::Above, In::Gone(conn));
        }
    }

    pub fn connect(&mut self, group: usize, hop: usize, dial: Dial) {
        let above = group * self.width + hop;
        let reaches = self.hops[hop].dark_until <= self.now && self.is_up(above + 1);
        let input = if reaches {
            self.next_conn += 1;
            let conn = ConnId(self.next_conn);
            self.pipes.insert(conn, Pipe::new(group, hop, self.now));
            In::Connected(conn, dial)
        } else {
            In::ConnectFailed(dial)
        };
        self.tell(above, Side::Below, input);
    }

    /// The parts at the ends of a connection that lives: above and below.
    fn ends(&self, conn: ConnId) -> Option<(usize, usize)> {
        let pipe = self.pipes.get(&conn).filter(|pipe| !pipe.dead)?;
        let above = pipe.group * self.width + pipe.hop;
        Some((above, above + 1))
    }

    pub fn sent(&mut self, conn: ConnId, by: Side, bytes: u64) {
        let Some((above, below)) = self.ends(conn) else { return };
        match by {
            Side::Above => self.tell(above, Side::Below, In::Sent(conn, bytes)),
            Side::Below => self.tell(below, Side::Above, In::Sent(conn, bytes)),
        }
    }

    pub fn heard(&mut self, conn: ConnId, by: Side) {
        let Some((above, below)) = self.ends(conn) else { return };
        let (part, from) = if by == Side::Above { (below, Side::Above) } else { (above, Side::Below) };
        self.tell(part, from, In::Heard(conn));
    }

    pub fn deliver(&mut self, conn: ConnId, by: Side, message: Message) {
        let Some((above, below)) = self.ends(conn) else { return };
        let greeted = self.pipes.get_mut(&conn).is_some_and(|pipe| std::mem::replace(&mut pipe.greeted, true));
        match (by, message) {
            (Side::Above, Message::Hello(hello)) if !greeted => {
                self.tell(below, Side::Above, In::Accepted(conn, hello));
            }
            (Side::Above, message) => self.tell(below, Side::Above, In::Message(conn, message)),
            (Side::Below, message) => self.tell(above, Side::Below, In::Message(conn, message)),
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
