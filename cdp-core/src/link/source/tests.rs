//! The rules of a source end, one by one.

use super::*;
use crate::link::calls::empty;
use crate::link::message::{Ack, CallStatus, Hello, Welcome};
use crate::link::sample::{frame, group, parts, timeline, welcome};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn options() -> SourceOptions {
    SourceOptions {
        group: Some(group()),
        timeline: Some(timeline()),
        tenant: "t".into(),
        name: "vm".into(),
        software: "test".into(),
        features: Features::ALL,
        connections: 0,
        plain: false,
        silence_ms: 3_000,
        start: Position::whole(Lsn::ZERO),
        origin: true,
        durable: Lsn::ZERO,
        attempt: 10,
        retry_max_ns: 3 * SECOND,
        seed: [3; 32],
    }
}

struct Rig {
    end: SourceEnd,
    now: MonoTime,
    conns: u64,
}

impl Rig {
    fn new(options: SourceOptions) -> Self {
        Self { end: SourceEnd::new(MonoTime(SECOND), options), now: MonoTime(SECOND), conns: 0 }
    }

    fn effects(&mut self) -> Vec<SourceEffect> {
        std::iter::from_fn(|| self.end.poll()).collect()
    }

    /// Lets the time come at which something is due, and gives what is done then.
    fn next(&mut self) -> Vec<SourceEffect> {
        self.now = self.end.next_deadline().expect("something is due").max(self.now);
        self.end.handle_timer(self.now);
        self.effects()
    }

    fn dialled(&mut self) -> Dial {
        match self.next()[..] {
            [SourceEffect::Connect { dial, .. }] => dial,
            ref other => panic!("{other:?}"),
        }
    }

    fn connected(&mut self, dial: Dial) -> (ConnId, Hello) {
        self.conns += 1;
        let conn = ConnId(self.conns);
        self.end.handle_connected(self.now, conn, dial);
        match &self.effects()[..] {
            [SourceEffect::Send { conn: to, message: Message::Hello(hello) }] if *to == conn => {
                (conn, (**hello).clone())
            }
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, conn: ConnId, message: Message) -> Vec<SourceEffect> {
        self.end.handle_message(self.now, conn, message);
        self.effects()
    }

    fn up_with(&mut self, welcome: Welcome) -> (ConnId, Vec<SourceEffect>) {
        let dial = self.dialled();
        let (conn, _) = self.connected(dial);
        let effects = self.hear(conn, Message::Welcome(Box::new(welcome)));
        (conn, effects)
    }

    fn up(&mut self) -> ConnId {
        self.up_with(welcome()).0
    }

    fn offer(&mut self, frame: &EncodedFrame) -> Vec<SourceEffect> {
        self.end.offer(self.now, &frame.info, frame.len()).unwrap();
        self.effects()
    }
}

/// Numbers and keys of the frames that are sent.
fn sent(effects: &[SourceEffect]) -> Vec<(u64, u64, u64)> {
    let frames = effects.iter().filter_map(|effect| match effect {
        SourceEffect::SendFrame { conn, number, key } => Some((conn.0, *number, key.0)),
        _ => None,
    });
    frames.collect()
}

fn closed(effects: &[SourceEffect]) -> Option<Code> {
    effects.iter().find_map(|effect| match effect {
        SourceEffect::Close { farewell, .. } => farewell.as_ref().map(|farewell| farewell.code),
        _ => None,
    })
}

fn ack(received: u64, durable: u64, credit: u64) -> Ack {
    let (received, durable) = (Lsn(received), Lsn(durable));
    Ack { received, stored: durable, durable, credit, seeds: 0, room: FarRoom::Ok }
}

#[test]
fn waits_between_attempts_double_up_to_their_bound_and_differ_by_chance() {
    let mut rig = Rig::new(options());
    let mut waits = Vec::new();
    for attempt in 11..19 {
        let dial = rig.dialled();
        assert_eq!(dial, Dial { attempt, index: 0 });
        rig.end.handle_connect_failed(rig.now, dial, "refused");
        waits.push(rig.end.next_deadline().unwrap().since(rig.now));
    }
    for (failures, wait) in waits.iter().enumerate() {
        let whole = ((100 * MS) << failures).min(3 * SECOND);
        assert!((whole / 2..=whole).contains(wait), "{waits:?}");
    }
    // A session that holds for long enough makes the next wait short again, one that does not, does not.
    let conn = rig.up();
    rig.end.handle_disconnected(rig.now, conn, "reset");
    rig.effects();
    assert!(rig.end.next_deadline().unwrap().since(rig.now) >= 3 * SECOND / 2);
    let conn = rig.up();
    rig.now = rig.now.after(STABLE_NS);
    rig.end.handle_disconnected(rig.now, conn, "reset");
    assert!(rig.end.next_deadline().unwrap().since(rig.now) <= 100 * MS);
}

/// Where the other side says that the very first frame does not continue what it has, both ask each other again.
#[test]
fn a_first_frame_that_is_refused_as_out_of_order_begins_the_link_anew() {
    let mut rig = Rig::new(options());
    rig.offer(&frame(0, [1], 512));
    rig.offer(&frame(1, [2], 512));
    let (conn, effects) = rig.up_with(Welcome { have: Some(Position::whole(Lsn(1))), ..welcome() });
    assert_eq!(sent(&effects).len(), 1);
    let why = Farewell::new(Code::OutOfOrder, "a frame does not continue what is here").with(0, 1);
    let effects = rig.hear(conn, Message::Error(why));
    let is_end = |effect: &SourceEffect| matches!(effect, SourceEffect::Refused { .. } | SourceEffect::Broken { .. });
    assert!(!effects.iter().any(is_end) && !rig.end.is_resting(), "{effects:?}");
    let dial = rig.dialled();
    let (conn, hello) = rig.connected(dial);
    assert_eq!((hello.attempt, hello.oldest), (12, Position::whole(Lsn::ZERO)));
    let again = Welcome { have: Some(Position::whole(Lsn::ZERO)), ..welcome() };
    let keys: Vec<_> = sent(&rig.hear(conn, Message::Welcome(Box::new(again)))).iter().map(|sent| sent.2).collect();
    assert_eq!(keys, [0, 1]);
}

/// Short faults that follow each other are each a short one, as long as something comes through between them.
#[test]
fn a_short_session_in_which_something_came_through_makes_the_next_waits_short() {
    let mut rig = Rig::new(options());
    for _ in 0..8 {
        let dial = rig.dialled();
        rig.end.handle_connect_failed(rig.now, dial, "refused");
    }
    let call = || Call { kind: 4, header: bytes::Bytes::new(), tail: bytes::Bytes::new() };
    let mut waits = Vec::new();
    for lsn in 1..=6 {
        // It begins where the other side stands.
        let have = Some(Position::whole(Lsn(lsn - 1)));
        let (conn, _) = rig.up_with(Welcome { have, durable: Lsn(lsn - 1), ..welcome() });
        rig.offer(&frame(lsn - 1, [lsn], 512));
        if lsn < 6 {
            rig.hear(conn, Message::Ack(ack(lsn, lsn, 1 << 20)));
        } else {
            let id = rig.end.call(rig.now, call(), SECOND).unwrap();
            rig.hear(conn, Message::Answer(id.0, empty(4, CallStatus::Done)));
        }
        rig.now = rig.now.after(SECOND);
        rig.end.handle_disconnected(rig.now, conn, "reset");
        rig.effects();
        waits.push(rig.end.next_deadline().unwrap().since(rig.now));
    }
    // Never the first one: who goes away each time is not dialled as often as may be. And they differ.
    assert!(waits.iter().all(|wait| (100 * MS..=200 * MS).contains(wait)), "{waits:?}");
    assert!(waits.windows(2).any(|two| two[0] != two[1]), "{waits:?}");
    // What the other side had before is nothing that came through.
    let have = Some(Position::whole(Lsn(5)));
    for failures in 2..5 {
        let (conn, _) = rig.up_with(Welcome { have, durable: Lsn(5), ..welcome() });
        rig.hear(conn, Message::Ack(ack(5, 5, 1 << 20)));
        rig.end.handle_disconnected(rig.now, conn, "reset");
        rig.effects();
        let wait = rig.end.next_deadline().unwrap().since(rig.now);
        assert!(wait >= (50 * MS) << failures, "{failures}: {wait}");
    }
}

#[test]
fn an_attempt_that_is_too_low_is_raised_and_one_that_was_beaten_rests() {
    let mut rig = Rig::new(options());
    let dial = rig.dialled();
    let (conn, _) = rig.connected(dial);
    let beaten = |expected, found| Message::Close(Farewell::new(Code::Superseded, "").with(expected, found));
    rig.hear(conn, beaten(500, 11));
    let dial = rig.dialled();
    assert_eq!(dial.attempt, 501);
    let (conn, hello) = rig.connected(dial);
    assert_eq!(hello.attempt, 501);
    rig.hear(conn, Message::Welcome(Box::new(welcome())));
    let effects = rig.hear(conn, beaten(502, 501));
    assert!(effects.iter().any(|effect| matches!(effect, SourceEffect::Refused { class: Class::Never, .. })));
    assert_eq!(rig.end.next_deadline(), None);
    assert!(rig.end.is_resting());
    rig.end.dial(rig.now);
    rig.dialled();
}

#[test]
fn who_is_not_let_in_rests_until_somebody_says_so_or_goes_on_trying() {
    for (code, goes_on) in [(Code::TimelineClosed, false), (Code::Stopping, true), (Code::Busy, true)] {
        let mut rig = Rig::new(options());
        let dial = rig.dialled();
        let (conn, _) = rig.connected(dial);
        let effects = rig.hear(conn, Message::Error(Farewell::new(code, "no")));
        let told = effects.iter().any(|effect| matches!(effect, SourceEffect::Refused { .. }));
        assert_eq!((told, rig.end.next_deadline().is_some()), (code != Code::Busy, goes_on), "{code:?}");
    }
}

#[test]
fn nothing_is_sent_beyond_the_credit() {
    let mut rig = Rig::new(options());
    let one = frame(0, 1..2, 4096);
    let (conn, _) = rig.up_with(Welcome { credit: 2 * one.len(), ..welcome() });
    assert_eq!(sent(&rig.offer(&one)), [(1, 1, 0)]);
    assert_eq!(sent(&rig.offer(&frame(1, 2..3, 4096))), [(1, 2, 1)]);
    assert_eq!(sent(&rig.offer(&frame(2, 3..4, 512))), []);
    assert_eq!(sent(&rig.hear(conn, Message::Ack(ack(0, 0, 2 * one.len() + 700)))), []);
    assert_eq!(sent(&rig.hear(conn, Message::Ack(ack(1, 0, 3 * one.len())))), [(1, 3, 2)]);
}

/// No connection is given more than its bound and one frame, and the one with the least gets the next.
#[test]
fn data_connections_take_turns_and_have_a_bound() {
    let mut rig = Rig::new(SourceOptions { connections: 2, ..options() });
    let (first, effects) = rig.up_with(Welcome { credit: 1 << 30, connections: 2, ..welcome() });
    let dials: Vec<Dial> = effects
        .iter()
        .filter_map(|effect| if let SourceEffect::Connect { dial, .. } = effect { Some(*dial) } else { None })
        .collect();
    assert_eq!(dials.iter().map(|dial| dial.index).collect::<Vec<_>>(), [1, 2]);
    let long = frame(0, 1..5, 32 << 10);
    assert_eq!(sent(&rig.offer(&long)), [(first.0, 1, 0)], "while no data connection is there");
    let data: Vec<ConnId> = dials.into_iter().map(|dial| rig.connected(dial).0).collect();
    assert!(sent(&rig.offer(&frame(4, 5..9, 32 << 10)))[0].0 == first.0, "before its welcome");
    data.iter().for_each(|conn| drop(rig.hear(*conn, Message::Welcome(Box::new(welcome())))));
    let mut by_conn = std::collections::BTreeMap::<u64, u64>::new();
    for at in 2..40 {
        for (conn, _, _) in sent(&rig.offer(&frame(at * 4, at * 4 + 1..at * 4 + 5, 32 << 10))) {
            *by_conn.entry(conn).or_default() += long.len();
        }
    }
    let bytes: Vec<u64> = data.iter().map(|conn| by_conn[&conn.0]).collect();
    assert_eq!(by_conn.len(), 2);
    assert!(bytes.iter().all(|bytes| (QUEUED_BYTES_MAX..QUEUED_BYTES_MAX + long.len()).contains(bytes)), "{bytes:?}");
    rig.end.handle_sent(rig.now, data[1], 2 * long.len());
    assert!(sent(&rig.effects()).iter().all(|(conn, ..)| *conn == data[1].0));
}

#[test]
fn a_session_goes_on_where_the_other_side_stands() {
    let frames = [frame(0, [1, 2], 512), parts(2, [(5, 0, 3), (5, 1, 3)], 512), parts(5, [(5, 2, 3), (6, 0, 1)], 512)];
    let at = |lsn, parts| Position { lsn: Lsn(lsn), parts };
    let cases = [
        (None, 0),
        (Some(Position::whole(Lsn::ZERO)), 0),
        (Some(Position::whole(Lsn(1))), 0),
        (Some(Position::whole(Lsn(2))), 1),
        (Some(at(5, 1)), 1),
        (Some(at(5, 2)), 2),
        (Some(Position::whole(Lsn(5))), 2),
        (Some(Position::whole(Lsn(6))), 3),
    ];
    for (have, first) in cases {
        let mut rig = Rig::new(options());
        frames.iter().for_each(|frame| drop(rig.offer(frame)));
        let (_, effects) = rig.up_with(Welcome { have, ..welcome() });
        let keys: Vec<u64> = sent(&effects).iter().map(|(_, _, key)| *key).collect();
        assert_eq!(keys, (first..3).collect::<Vec<_>>(), "{have:?}");
    }
}

#[test]
fn a_position_outside_of_what_is_held_breaks_the_timeline() {
    let one = frame(0, [1, 2], 512);
    for (origin, have, broken) in [(true, 3, true), (false, 3, false), (true, 1, true), (true, 2, false)] {
        let mut rig = Rig::new(SourceOptions { origin, ..options() });
        rig.offer(&one);
        let (conn, _) = rig.up_with(welcome());
        rig.hear(conn, Message::Ack(ack(2, 2, 1 << 20)));
        rig.end.handle_disconnected(rig.now, conn, "reset");
        rig.effects();
        let have = Some(Position::whole(Lsn(have)));
        let (_, effects) = rig.up_with(Welcome { have, ..welcome() });
        let is_broken = effects.iter().any(|effect| matches!(effect, SourceEffect::Broken { .. }));
        assert_eq!((is_broken, closed(&effects) == Some(Code::Broken), rig.end.is_resting()), (broken, broken, broken));
    }
}

/// A relay whose next hop has more than came sends only what is new.
#[test]
fn what_the_other_side_has_already_is_held_and_not_sent() {
    let mut rig = Rig::new(SourceOptions { origin: false, ..options() });
    rig.up_with(Welcome { have: Some(Position::whole(Lsn(4))), ..welcome() });
    assert_eq!(sent(&rig.offer(&frame(0, [1, 2], 512))), []);
    assert_eq!(sent(&rig.offer(&frame(2, [3, 6], 512))), [(1, 1, 1)]);
    assert_eq!(rig.end.status(rig.now).frames, 2);
}

#[test]
fn acks_let_go_of_frames_and_may_not_run_back_or_ahead() {
    let up = || {
        let mut rig = Rig::new(options());
        let conn = rig.up();
        rig.offer(&frame(0, [1, 2], 512));
        rig.offer(&parts(2, [(3, 0, 2)], 512));
        (rig, conn)
    };
    let (mut rig, conn) = up();
    let effects = rig.hear(conn, Message::Ack(ack(2, 2, 1 << 20)));
    let kept = |effects: &[SourceEffect]| match effects {
        [SourceEffect::Acked(acked)] => (acked.received.0, acked.durable.0, acked.kept_from),
        other => panic!("{other:?}"),
    };
    assert_eq!(kept(&effects), (2, 2, 1));
    assert_eq!(rig.hear(conn, Message::Ack(ack(2, 2, 1 << 21))).len(), 0, "only when something changed");
    let back = [ack(1, 1, 1 << 21), ack(2, 2, 1 << 20), ack(9, 2, 1 << 21), ack(2, 3, 1 << 21)];
    for wrong in back {
        let (mut rig, conn) = up();
        rig.hear(conn, Message::Ack(ack(2, 2, 1 << 21)));
        assert_eq!(closed(&rig.hear(conn, Message::Ack(wrong))), Some(Code::Malformed), "{wrong:?}");
    }
}

#[test]
fn frames_that_do_not_continue_each_other_are_refused() {
    let mut rig = Rig::new(options());
    rig.offer(&frame(0, [1, 2], 512));
    let hole = frame(3, [4], 512);
    let refused = rig.end.offer(rig.now, &hole.info, hole.len()).unwrap_err();
    let (expected, found) = (Position::whole(Lsn(2)), Position::whole(Lsn(3)));
    assert_eq!(refused, OfferError::Chain { expected, found });
    let mut other = frame(2, [3], 512);
    other.info.timeline = Timeline::new([9; 16]).unwrap();
    assert!(matches!(rig.end.offer(rig.now, &other.info, 1), Err(OfferError::Other { .. })));
}

#[test]
fn a_silent_other_side_is_pinged_and_then_taken_for_dead() {
    let mut rig = Rig::new(options());
    rig.up();
    let began = rig.now;
    let mut pings = 0;
    let dead = loop {
        let effects = rig.next();
        if let Some(code) = closed(&effects) {
            break code;
        }
        pings += effects.len();
        assert!(matches!(effects[..], [SourceEffect::Send { message: Message::Ping(_), .. }]), "{effects:?}");
    };
    assert_eq!((dead, pings, rig.now.since(began)), (Code::Silent, 2, 3 * SECOND));
    assert!(!rig.end.is_up());
}

#[test]
fn calls_end_with_their_session_or_with_their_time() {
    let mut rig = Rig::new(options());
    let call = || Call { kind: 4, header: bytes::Bytes::new(), tail: bytes::Bytes::new() };
    assert_eq!(rig.end.call(rig.now, call(), SECOND).unwrap_err(), CallRefused::Down);
    let conn = rig.up();
    let (late, cut) = (rig.end.call(rig.now, call(), MS).unwrap(), rig.end.call(rig.now, call(), SECOND).unwrap());
    assert_eq!(rig.effects().len(), 2);
    let statuses = |effects: &[SourceEffect]| -> Vec<(CallId, CallStatus)> {
        let answers = effects.iter().filter_map(|effect| match effect {
            SourceEffect::Answered { id, answer } => Some((*id, answer.status)),
            _ => None,
        });
        answers.collect()
    };
    assert_eq!(statuses(&rig.next()), [(late, CallStatus::TimedOut)]);
    assert_eq!(rig.hear(conn, Message::Answer(late.0, empty(4, CallStatus::Done))).len(), 0);
    rig.end.handle_disconnected(rig.now, conn, "reset");
    assert_eq!(statuses(&rig.effects()), [(cut, CallStatus::Unreachable)]);
}

#[test]
fn seeds_go_between_frames_and_end_with_their_session() {
    let mut rig = Rig::new(options());
    let seed = || frame(9, [10], 512);
    assert!(rig.end.offer_seed(rig.now, seed()).is_err(), "no session");
    let one = frame(0, [1], 512);
    let (conn, _) = rig.up_with(Welcome { credit: one.len(), ..welcome() });
    for at in 0..9 {
        rig.offer(&frame(at, [at + 1], 512));
    }
    for _ in 0..SEEDS_MAX {
        rig.end.offer_seed(rig.now, seed()).unwrap();
    }
    assert_eq!(rig.end.seeds_wanted(), 0);
    assert!(rig.end.offer_seed(rig.now, seed()).is_err(), "so many wait");
    let order: Vec<char> = rig
        .hear(conn, Message::Ack(ack(0, 0, 11 * one.len())))
        .iter()
        .map(|effect| if matches!(effect, SourceEffect::SendFrame { .. }) { 'f' } else { 's' })
        .collect();
    assert_eq!(order.iter().collect::<String>(), "fffsffffsf");
    rig.end.handle_disconnected(rig.now, conn, "reset");
    assert!(rig.effects().iter().any(|effect| matches!(effect, SourceEffect::Down { .. })));
    assert_eq!(rig.end.seeds_wanted(), 0);
    rig.up_with(Welcome { features: Features::ZSTD, ..welcome() });
    assert!(rig.end.offer_seed(rig.now, seed()).is_err(), "it was not agreed on");
}

#[test]
fn what_is_lost_is_told_and_is_not_durable_any_more() {
    let mut rig = Rig::new(options());
    let conn = rig.up();
    rig.offer(&frame(0, [1, 2, 3], 512));
    rig.hear(conn, Message::Ack(ack(3, 3, 1 << 20)));
    rig.end.handle_disconnected(rig.now, conn, "reset");
    rig.effects();
    let dial = rig.dialled();
    let (conn, hello) = rig.connected(dial);
    assert_eq!((hello.durable_seen, hello.oldest), (Lsn(3), Position::whole(Lsn(3))));
    let lost = Welcome { lost: Some(Lsn(2)..=Lsn(3)), have: Some(Position::whole(Lsn(1))), ..welcome() };
    let effects = rig.hear(conn, Message::Welcome(Box::new(lost)));
    assert!(matches!(&effects[0], SourceEffect::Lost(lost) if *lost == (Lsn(2)..=Lsn(3))), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, SourceEffect::Broken { .. })));
    assert_eq!(rig.end.acked().durable, Lsn(1));
}

#[test]
fn a_data_connection_that_carried_something_takes_the_session_along() {
    let mut rig = Rig::new(SourceOptions { connections: 1, ..options() });
    let (_, effects) = rig.up_with(Welcome { connections: 1, ..welcome() });
    let Some(SourceEffect::Connect { dial, .. }) = effects.last() else { panic!("{effects:?}") };
    rig.end.handle_connect_failed(rig.now, *dial, "refused");
    assert!(rig.end.is_up());
    let dial = rig.dialled();
    let (data, hello) = rig.connected(dial);
    assert_eq!(hello.connection, 1);
    rig.hear(data, Message::Error(Farewell::new(Code::Busy, "")));
    assert!(rig.end.is_up());
    let dial = rig.dialled();
    let (data, _) = rig.connected(dial);
    rig.hear(data, Message::Welcome(Box::new(welcome())));
    assert_eq!(
        closed(&rig.hear(data, Message::Ack(ack(0, 0, 1 << 20)))),
        Some(Code::Unexpected),
        "acks are the first's"
    );
    assert!(!rig.end.is_up());
}

#[test]
fn a_welcome_that_grants_more_than_was_asked_for_is_refused() {
    let wrong = [
        Welcome { version: 2, ..welcome() },
        Welcome { connections: 1, ..welcome() },
        Welcome { data_key: Some(DataKey([1; 32])), ..welcome() },
        Welcome { silence_ms: 60_000, ..welcome() },
        Welcome { features: Features(8), ..welcome() },
    ];
    for welcome in wrong {
        let (_, effects) = Rig::new(options()).up_with(welcome.clone());
        assert_eq!(closed(&effects), Some(Code::Malformed), "{welcome:?}");
    }
}

#[test]
fn a_connection_that_comes_too_late_is_closed_and_a_stop_is_the_end() {
    let mut rig = Rig::new(options());
    let dial = rig.dialled();
    rig.end.handle_connect_failed(rig.now, dial, "timed out");
    rig.end.handle_connected(rig.now, ConnId(9), dial);
    assert!(matches!(rig.effects()[..], [SourceEffect::Close { conn: ConnId(9), farewell: None }]));
    let conn = rig.up();
    rig.end.stop(rig.now);
    assert_eq!(closed(&rig.effects()), Some(Code::Done));
    rig.end.handle_message(rig.now, conn, Message::Ack(ack(0, 0, 0)));
    rig.end.dial(rig.now);
    assert!(rig.effects().is_empty() && rig.end.next_deadline().is_none());
}

#[test]
fn what_is_lent_and_stored_is_let_go_of_and_asked_for_again_it_breaks_the_timeline() {
    let mut rig = Rig::new(options());
    let conn = rig.up();
    let all: Vec<_> = (1..=4).map(|lsn| frame(lsn - 1, [lsn], 512)).collect();
    all.iter().for_each(|frame| drop(rig.offer(frame)));
    let stored = |stored: u64| Message::Ack(Ack { stored: Lsn(stored), ..ack(4, 0, 1 << 20) });
    rig.hear(conn, stored(2));
    // Three are lent, two are stored: the third is held as long as nobody else has it.
    rig.end.lend(Lsn(3));
    assert_eq!((rig.end.acked().kept_from, rig.end.oldest()), (2, Position::whole(Lsn(2))));
    rig.hear(conn, stored(4));
    assert_eq!((rig.end.acked().kept_from, rig.end.oldest()), (3, Position::whole(Lsn(3))));
    // The proxy is there again, with what it stored.
    rig.end.handle_disconnected(rig.now, conn, "reset");
    rig.effects();
    let have = Some(Position::whole(Lsn(3)));
    let (conn, effects) = rig.up_with(Welcome { have, ..welcome() });
    assert_eq!(sent(&effects).len(), 1, "the fourth goes again");
    // Another one has nothing.
    rig.end.handle_disconnected(rig.now, conn, "reset");
    rig.effects();
    let have = Some(Position::whole(Lsn::ZERO));
    let (_, effects) = rig.up_with(Welcome { have, ..welcome() });
    assert!(matches!(effects.last(), Some(SourceEffect::Broken { .. })), "{effects:?}");
}

#[test]
fn what_is_lent_and_would_be_sent_again_is_let_go_of_where_there_is_no_room_for_it() {
    let mut rig = Rig::new(options());
    let conn = rig.up();
    (1..=2).for_each(|lsn| drop(rig.offer(&frame(lsn - 1, [lsn], 512))));
    rig.hear(conn, Message::Ack(Ack { stored: Lsn(2), ..ack(2, 0, 1 << 20) }));
    rig.end.handle_disconnected(rig.now, conn, "reset");
    rig.effects();
    // Another proxy, which has nothing and grants nothing: both wait.
    let (_, effects) = rig.up_with(Welcome { have: Some(Position::whole(Lsn::ZERO)), credit: 0, ..welcome() });
    assert!(sent(&effects).is_empty());
    rig.end.lend(Lsn(1));
    assert_eq!(rig.end.acked().kept_from, 0, "nobody has it");
    rig.end.forfeit_lent(rig.now);
    assert_eq!((closed(&rig.effects()), rig.end.acked().kept_from), (Some(Code::Broken), 1));
    let (_, effects) = rig.up_with(Welcome { have: Some(Position::whole(Lsn::ZERO)), ..welcome() });
    assert!(matches!(effects.last(), Some(SourceEffect::Broken { .. })), "{effects:?}");
}
