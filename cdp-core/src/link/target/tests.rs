//! The rules of a target end, one by one.

use super::*;
use crate::link::message::Ping;
use crate::link::sample::{frame, group, parts, timeline};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn hello(attempt: u64) -> Hello {
    Hello {
        versions: VERSION..=VERSION,
        connection: 0,
        connections: 4,
        plain: true,
        features: Features::ALL,
        session: session(attempt),
        attempt,
        purpose: Purpose::Frames,
        group: Some(group()),
        timeline: Some(timeline()),
        durable_seen: Lsn::ZERO,
        oldest: Position::whole(Lsn::ZERO),
        silence_ms: 6_000,
        tenant: String::new(),
        name: "vm".into(),
        software: "test".into(),
    }
}

fn session(attempt: u64) -> SessionId {
    SessionId::new([attempt as u8; 16]).unwrap()
}

fn terms() -> Terms {
    Terms { have: Some(Position::whole(Lsn::ZERO)), room_bytes: 1 << 20, ..Terms::default() }
}

struct Rig {
    end: TargetEnd,
    now: MonoTime,
}

impl Rig {
    fn new() -> Self {
        let end = TargetEnd::new(TargetOptions {
            group: Some(group()),
            timeline: Some(timeline()),
            features: Features::ALL,
            connections: 2,
            silence_ms: 3_000,
            attempt: 5,
        });
        Self { end, now: MonoTime(SECOND) }
    }

    fn effects(&mut self) -> Vec<TargetEffect> {
        std::iter::from_fn(|| self.end.poll()).collect()
    }

    fn hear(&mut self, conn: u64, message: Message) -> Vec<TargetEffect> {
        self.end.handle_message(self.now, ConnId(conn), message);
        self.effects()
    }

    fn accept(&mut self, conn: u64, hello: Hello) -> Vec<TargetEffect> {
        self.end.handle_accepted(self.now, ConnId(conn), hello);
        self.effects()
    }

    /// A session with attempt 6 on connection 1.
    fn up_with(terms: Terms) -> (Self, Vec<TargetEffect>) {
        let mut rig = Self::new();
        assert!(matches!(rig.accept(1, hello(6))[..], [TargetEffect::Judge { .. }]));
        rig.end.admit(rig.now, session(6), terms);
        let effects = rig.effects();
        (rig, effects)
    }

    fn up() -> Self {
        Self::up_with(terms()).0
    }
}

fn code(effects: &[TargetEffect]) -> Option<Code> {
    effects.iter().find_map(|effect| match effect {
        TargetEffect::Close { farewell, .. } => farewell.as_ref().map(|farewell| farewell.code),
        _ => None,
    })
}

/// First LSN and end of what is handed on.
fn taken(effects: &[TargetEffect]) -> Vec<(u64, Position)> {
    let frames = effects.iter().filter_map(|effect| match effect {
        TargetEffect::Take(frame) => Some((frame.info.first_lsn.0, frame.info.end())),
        _ => None,
    });
    frames.collect()
}

fn acks(effects: &[TargetEffect]) -> Vec<(u64, u64, u64)> {
    let acks = effects.iter().filter_map(|effect| match effect {
        TargetEffect::Send { message: Message::Ack(ack), .. } => Some((ack.received.0, ack.durable.0, ack.credit)),
        _ => None,
    });
    acks.collect()
}

#[test]
fn a_hello_that_is_not_for_this_end_is_refused_with_its_reason() {
    let timeline = Timeline::new([8; 16]);
    let wrong = [
        (Code::Version, Hello { versions: 2..=3, ..hello(6) }),
        (Code::UnknownGroup, Hello { group: GroupId::new([8; 16]), ..hello(6) }),
        (Code::TimelineUnknown, Hello { timeline, ..hello(6) }),
        (Code::Malformed, Hello { purpose: Purpose::Calls, ..hello(6) }),
        (Code::Superseded, hello(5)),
        (Code::Unexpected, Hello { connection: 1, ..hello(6) }),
    ];
    for (expected, hello) in wrong {
        let effects = Rig::new().accept(1, hello);
        assert_eq!((effects.len(), code(&effects)), (1, Some(expected)), "{effects:?}");
    }
}

#[test]
fn what_both_want_is_agreed_on() {
    let key = Some(DataKey([4; 32]));
    let (mut rig, effects) = Rig::up_with(Terms { data_key: key.clone(), ..terms() });
    let Some(TargetEffect::Send { message: Message::Welcome(welcome), .. }) = effects.first() else { panic!() };
    assert_eq!((welcome.connections, welcome.silence_ms, welcome.credit), (2, 3_000, 1 << 20));
    assert_eq!(welcome.data_key, key);
    // On a data connection, which may be in the clear, the key is not said again.
    let effects = rig.accept(2, Hello { connection: 1, ..hello(6) });
    let Some(TargetEffect::Send { message: Message::Welcome(welcome), .. }) = effects.first() else { panic!() };
    assert_eq!(welcome.data_key, None);
    assert_eq!(code(&rig.accept(3, Hello { connection: 1, ..hello(6) })), Some(Code::Busy), "it is there");
    assert_eq!(code(&rig.accept(4, Hello { connection: 3, ..hello(6) })), Some(Code::Busy), "it was not granted");
}

/// The owner has all of the session before when it is asked about the next one.
#[test]
fn a_newer_session_ends_the_older_one_before_it_is_judged() {
    let mut rig = Rig::up();
    rig.end.handle_message(rig.now, ConnId(1), Message::Frame(1, frame(0, [1], 512)));
    rig.end.handle_accepted(rig.now, ConnId(2), hello(9));
    let effects = rig.effects();
    let place = |found: fn(&TargetEffect) -> bool| effects.iter().position(found).expect("it is there");
    let take = place(|effect| matches!(effect, TargetEffect::Take(_)));
    let close = place(|effect| matches!(effect, TargetEffect::Close { conn: ConnId(1), .. }));
    let judge = place(|effect| matches!(effect, TargetEffect::Judge { .. }));
    assert!(take < judge && close < judge && code(&effects) == Some(Code::Superseded));
    assert!(rig.hear(1, Message::Frame(2, frame(1, [2], 512))).is_empty(), "the old one says nothing any more");
    // The one that waits to be judged is superseded too, and its admission comes too late.
    let effects = rig.accept(3, hello(10));
    assert!(matches!(effects[0], TargetEffect::Close { conn: ConnId(2), .. }));
    rig.end.admit(rig.now, session(9), terms());
    assert!(rig.effects().is_empty() && !rig.end.is_up());
}

#[test]
fn frames_of_several_connections_are_put_in_order() {
    let mut rig = Rig::up();
    rig.accept(2, Hello { connection: 1, ..hello(6) });
    assert_eq!(taken(&rig.hear(2, Message::Frame(2, frame(1, [2], 512)))), []);
    assert_eq!(taken(&rig.hear(2, Message::Frame(3, frame(2, [3], 512)))), []);
    let all = [1, 2, 3].map(|lsn| (lsn, Position::whole(Lsn(lsn))));
    assert_eq!(taken(&rig.hear(1, Message::Frame(1, frame(0, [1], 512)))), all);
    assert_eq!(code(&rig.hear(1, Message::Frame(2, frame(3, [4], 512)))), Some(Code::OutOfOrder), "a number twice");
}

#[test]
fn what_is_there_is_passed_over_and_a_hole_ends_the_session() {
    let have = Some(Position { lsn: Lsn(5), parts: 1 });
    let with = || Rig::up_with(Terms { have, ..terms() }).0;
    let mut rig = with();
    assert_eq!(taken(&rig.hear(1, Message::Frame(1, frame(0, [1, 2], 512)))), []);
    let rest = parts(2, [(5, 0, 3), (5, 1, 3)], 512);
    assert_eq!(taken(&rig.hear(1, Message::Frame(2, rest))), [(5, Position { lsn: Lsn(5), parts: 2 })]);
    let next = parts(5, [(5, 2, 3), (6, 0, 1)], 512);
    assert_eq!(taken(&rig.hear(1, Message::Frame(3, next))), [(5, Position::whole(Lsn(6)))]);
    for hole in [parts(5, [(5, 2, 3)], 512), frame(5, [6], 512), frame(7, [8], 512)] {
        assert_eq!(code(&with().hear(1, Message::Frame(1, hole))), Some(Code::OutOfOrder));
    }
    // A first part whose record is not that of the frame before it, or is.
    let mut lies = parts(5, [(5, 1, 3)], 512);
    lies.info.prev_lsn = Lsn(4);
    assert_eq!(code(&with().hear(1, Message::Frame(1, lies))), Some(Code::OutOfOrder));
}

#[test]
fn after_a_first_frame_out_of_order_a_new_hello_begins_anew() {
    let mut rig = Rig::up();
    assert_eq!(code(&rig.hear(1, Message::Frame(1, frame(5, [6], 512)))), Some(Code::OutOfOrder));
    assert!(matches!(rig.accept(2, hello(7))[..], [TargetEffect::Judge { .. }]));
    rig.end.admit(rig.now, session(7), terms());
    rig.effects();
    assert_eq!(taken(&rig.hear(2, Message::Frame(1, frame(0, [1], 512)))), [(1, Position::whole(Lsn(1)))]);
}

#[test]
fn a_damaged_frame_that_has_to_be_cut_ends_the_session() {
    let mut rig = Rig::up_with(Terms { have: Some(Position::whole(Lsn(1))), ..terms() }).0;
    let mut damaged = frame(0, [1, 2], 512);
    damaged.body[1] = bytes::Bytes::from(vec![0; 512]);
    assert_eq!(code(&rig.hear(1, Message::Frame(1, damaged))), Some(Code::Damaged));
}

#[test]
fn more_than_was_granted_ends_the_session() {
    let one = frame(0, [1], 512);
    let mut rig = Rig::up_with(Terms { room_bytes: one.len() + 10, ..terms() }).0;
    assert_eq!(taken(&rig.hear(1, Message::Frame(1, one.clone()))).len(), 1);
    // Room is counted from what the owner took.
    rig.now = rig.now.after(SECOND);
    rig.end.grant(rig.now, one.len());
    assert_eq!(acks(&rig.effects()), [(1, 0, 2 * one.len())]);
    rig.end.grant(rig.now, 1);
    assert_eq!(taken(&rig.hear(1, Message::Frame(2, frame(1, [2], 512)))).len(), 1);
    assert_eq!(code(&rig.hear(1, Message::Frame(3, frame(2, [3], 512)))), Some(Code::Credit));
}

#[test]
fn acks_come_when_something_changed_and_a_millisecond_apart() {
    let (mut rig, effects) = Rig::up_with(terms());
    assert_eq!(acks(&effects), [(0, 0, 1 << 20)]);
    for lsn in 1..5 {
        assert_eq!(acks(&rig.hear(1, Message::Frame(lsn, frame(lsn - 1, [lsn], 512)))), []);
    }
    assert_eq!(rig.end.next_deadline(), Some(rig.now.after(MS)));
    rig.now = rig.now.after(MS);
    rig.end.handle_timer(rig.now);
    assert_eq!(acks(&rig.effects()), [(4, 0, 1 << 20)]);
    assert!(rig.end.next_deadline() > Some(rig.now.after(MS)), "nothing is new");
    // What is durable goes no further than what came.
    rig.now = rig.now.after(MS);
    rig.end.durable(rig.now, Lsn(9));
    assert_eq!(acks(&rig.effects()), [(4, 4, 1 << 20)]);
}

#[test]
fn nobody_who_judges_and_nobody_who_speaks_end_what_waits_for_them() {
    let mut rig = Rig::new();
    rig.accept(1, hello(6));
    rig.now = rig.end.next_deadline().unwrap();
    rig.end.handle_timer(rig.now);
    assert_eq!(code(&rig.effects()), Some(Code::Busy));
    let mut rig = Rig::up();
    let began = rig.now;
    while rig.end.is_up() {
        rig.now = rig.end.next_deadline().unwrap();
        rig.end.handle_timer(rig.now);
    }
    assert_eq!((code(&rig.effects()), rig.now.since(began)), (Some(Code::Silent), 3 * SECOND));
}

#[test]
fn what_may_not_come_here_or_now_ends_the_session() {
    let mut rig = Rig::new();
    rig.accept(1, hello(6));
    assert_eq!(code(&rig.hear(1, Message::Ping(Ping::default()))), Some(Code::Unexpected), "before the welcome");
    let call = Call { kind: 1, header: bytes::Bytes::new(), tail: bytes::Bytes::new() };
    let mut rig = Rig::up();
    rig.accept(2, Hello { connection: 1, ..hello(6) });
    assert_eq!(code(&rig.hear(2, Message::Call(1, call))), Some(Code::Unexpected), "on a data connection");
    let mut other = frame(0, [1], 512);
    other.info.timeline = Timeline::new([9; 16]).unwrap();
    assert_eq!(code(&Rig::up().hear(1, Message::Frame(1, other))), Some(Code::Unexpected));
}

#[test]
fn seeds_are_counted_when_they_are_written() {
    let mut rig = Rig::up();
    let effects = rig.hear(1, Message::Seed(2, frame(0, [2], 512)));
    assert!(effects.is_empty());
    let effects = rig.hear(1, Message::Seed(1, frame(0, [1], 512)));
    assert!(matches!(effects[..], [TargetEffect::TakeSeed(_), TargetEffect::TakeSeed(_)]), "{effects:?}");
    rig.now = rig.now.after(MS);
    rig.end.seeds(rig.now, 1);
    let effects = rig.effects();
    let said = matches!(&effects[..], [TargetEffect::Send { message: Message::Ack(ack), .. }] if ack.seeds == 1);
    assert!(said, "{effects:?}");
}

/// A relay that came back with less than what is durable behind it: the source end must not let go of what it has to send.
#[test]
fn nothing_is_called_durable_beyond_what_is_there() {
    let have = Some(Position { lsn: Lsn(12), parts: 3 });
    let (_, effects) = Rig::up_with(Terms { have, durable: Lsn(17), ..terms() });
    let Some(TargetEffect::Send { message: Message::Welcome(welcome), .. }) = effects.first() else { panic!() };
    assert_eq!(welcome.durable, Lsn(11));
    assert_eq!(acks(&effects), [(11, 11, 1 << 20)]);
}
