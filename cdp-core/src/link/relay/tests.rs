//! The rules of a relay, one by one; what holds for whole chains is in `world`.

use super::*;
use crate::link::message::{Answer, Call, CallStatus, Features, Purpose, VERSION, Welcome};
use crate::link::sample::{frame, group, parts, timeline, welcome};
use crate::link::spool::SpoolOptions;
use bytes::Bytes;

const ABOVE: ConnId = ConnId(1);
const BELOW: ConnId = ConnId(2);

struct Rig {
    relay: Relay,
    now: MonoTime,
}

impl Rig {
    fn new() -> Self {
        let options = RelayOptions {
            above: TargetOptions {
                group: Some(group()),
                timeline: Some(timeline()),
                features: Features::ALL,
                connections: 0,
                silence_ms: 3_000,
                attempt: 0,
            },
            below: SourceOptions {
                group: Some(group()),
                timeline: Some(timeline()),
                tenant: String::new(),
                name: "vm".into(),
                software: "test".into(),
                features: Features::ALL,
                connections: 0,
                plain: false,
                silence_ms: 3_000,
                start: Position::default(),
                origin: false,
                durable: Lsn::ZERO,
                attempt: 0,
                retry_max_ns: 1_000_000_000,
                seed: [1; 32],
            },
            held_bytes_max: 1 << 20,
            window_bytes: 1 << 20,
            stores: false,
        };
        let spool = Spool::new(SpoolOptions {
            memory_bytes_max: 2 << 20,
            disk_bytes_max: 0,
            file_bytes: 1 << 20,
            directory: String::new(),
            ahead_bytes: 1 << 19,
            always: false,
            ids: 0,
        });
        let now = MonoTime(1_000_000_000);
        Self { relay: Relay::new(now, options, spool, &[]), now }
    }

    /// What the relay wants; frames that it took are kept as they are.
    fn effects(&mut self) -> Vec<RelayEffect> {
        let mut effects = Vec::new();
        while let Some(effect) = self.relay.poll(self.now) {
            match effect {
                RelayEffect::Taken { run, frame } => self.relay.keep(self.now, run, frame),
                effect => effects.push(effect),
            }
        }
        effects
    }

    fn hear(&mut self, hop: Hop, message: Message) -> Vec<RelayEffect> {
        let conn = if hop == Hop::Above { ABOVE } else { BELOW };
        self.relay.handle_message(self.now, hop, conn, message);
        self.effects()
    }

    fn hello(&mut self, attempt: u64, durable_seen: u64, oldest: u64) -> Vec<RelayEffect> {
        let hello = Hello {
            versions: VERSION..=VERSION,
            connection: 0,
            connections: 0,
            plain: false,
            features: Features::ALL,
            session: SessionId::new([attempt as u8; 16]).unwrap(),
            attempt,
            purpose: Purpose::Frames,
            group: Some(group()),
            timeline: Some(timeline()),
            durable_seen: Lsn(durable_seen),
            oldest: Position::whole(Lsn(oldest)),
            silence_ms: 3_000,
            tenant: String::new(),
            name: "vm".into(),
            software: "test".into(),
        };
        self.relay.handle_accepted(self.now, ABOVE, hello, None);
        self.effects()
    }

    /// The next hop lets the relay in.
    fn up_below(&mut self, welcome: Welcome) -> (Box<Hello>, Vec<RelayEffect>) {
        self.now = self.relay.next_deadline().unwrap().max(self.now);
        self.relay.handle_timer(self.now);
        let effects = self.effects();
        let Some(dial) =
            effects.iter().find_map(|e| if let RelayEffect::Connect { dial, .. } = e { Some(*dial) } else { None })
        else {
            panic!("{effects:?}")
        };
        self.relay.handle_connected(self.now, BELOW, dial);
        let said = self.effects();
        let [RelayEffect::Send { message: Message::Hello(hello), .. }] = &said[..] else { panic!("{said:?}") };
        let hello = hello.clone();
        let effects = self.hear(Hop::Below, Message::Welcome(Box::new(welcome)));
        (hello, effects)
    }
}

fn call(kind: u16) -> Call {
    Call { kind, header: Bytes::from_static(b"{}"), tail: Bytes::new() }
}

fn done(kind: u16) -> Answer {
    Answer { kind, status: CallStatus::Done, header: Bytes::from_static(b"1"), tail: Bytes::new() }
}

fn said(effects: &[RelayEffect], hop: Hop) -> Vec<&Message> {
    let messages = effects.iter().filter_map(|effect| match effect {
        RelayEffect::Send { hop: to, message, .. } if *to == hop => Some(message),
        _ => None,
    });
    messages.collect()
}

fn closed_above(effects: &[RelayEffect]) -> Option<Code> {
    effects.iter().find_map(|effect| match effect {
        RelayEffect::Close { hop: Hop::Above, farewell, .. } => farewell.as_ref().map(|farewell| farewell.code),
        _ => None,
    })
}

fn welcomed(effects: &[RelayEffect]) -> &Welcome {
    let messages = said(effects, Hop::Above);
    let Some(Message::Welcome(welcome)) = messages.first() else { panic!("{effects:?}") };
    welcome
}

#[test]
fn calls_pass_both_ways_under_numbers_of_their_own() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    let refused = rig.hear(Hop::Above, Message::Call(77, call(5)));
    let answers = said(&refused, Hop::Above);
    let [Message::Answer(77, answer)] = answers[..] else { panic!("{answers:?}") };
    assert_eq!((answer.kind, answer.status), (5, CallStatus::Unreachable));
    rig.up_below(welcome());
    let passed = rig.hear(Hop::Above, Message::Call(78, call(6)));
    let [Message::Call(number, _)] = said(&passed, Hop::Below)[..] else { panic!("{passed:?}") };
    let answered = rig.hear(Hop::Below, Message::Answer(*number, done(6)));
    let [Message::Answer(78, answer)] = said(&answered, Hop::Above)[..] else { panic!("{answered:?}") };
    assert_eq!((answer.status, &answer.header[..]), (CallStatus::Done, &b"1"[..]));
    let passed = rig.hear(Hop::Below, Message::Call(9, call(7)));
    let [Message::Call(number, _)] = said(&passed, Hop::Above)[..] else { panic!("{passed:?}") };
    let answered = rig.hear(Hop::Above, Message::Answer(*number, done(7)));
    assert!(matches!(said(&answered, Hop::Below)[..], [Message::Answer(9, _)]), "{answered:?}");
    // What is open when the next hop is lost is answered.
    rig.hear(Hop::Above, Message::Call(79, call(6)));
    rig.relay.handle_disconnected(rig.now, Hop::Below, BELOW, "reset");
    let cut = rig.effects();
    let [Message::Answer(79, answer)] = said(&cut, Hop::Above)[..] else { panic!("{cut:?}") };
    assert_eq!(answer.status, CallStatus::Unreachable);
}

#[test]
fn a_fresh_relay_begins_with_the_oldest_and_sends_on_what_is_new() {
    let mut rig = Rig::new();
    let effects = rig.hello(1, 2, 0);
    assert_eq!(welcomed(&effects).have, None);
    rig.hear(Hop::Above, Message::Frame(1, frame(0, [1, 2], 512)));
    rig.hear(Hop::Above, Message::Frame(2, frame(2, [3], 512)));
    let (hello, effects) = rig.up_below(Welcome { have: Some(Position::whole(Lsn(2))), durable: Lsn(2), ..welcome() });
    assert_eq!(hello.durable_seen, Lsn(2));
    let [Message::Frame(1, sent)] = said(&effects, Hop::Below)[..] else { panic!("{effects:?}") };
    assert_eq!(sent.info.first_lsn, Lsn(3));
    assert!(!rig.relay.is_drained());
}

#[test]
fn what_does_not_meet_the_next_hop_is_forgotten_and_the_source_is_told_where_that_stands() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 8);
    rig.hear(Hop::Above, Message::Frame(1, frame(8, [9], 512)));
    let have = Some(Position::whole(Lsn(5)));
    let (_, effects) = rig.up_below(Welcome { have, ..welcome() });
    assert_eq!(closed_above(&effects), Some(Code::Broken));
    assert!(rig.relay.is_drained());
    let effects = rig.hello(2, 0, 8);
    assert_eq!(welcomed(&effects).have, have);
}

/// The source has let go of what another proxy stored, and the next hop has not heard of that one: the first frame that goes below does not
/// continue what is there. All three begin anew, and it is the source that decides.
#[test]
fn a_first_frame_that_is_out_of_order_below_makes_the_relay_begin_anew() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    let have = Some(Position::whole(Lsn::ZERO));
    rig.up_below(Welcome { have, ..welcome() });
    rig.hello(2, 0, 5);
    let effects = rig.hear(Hop::Above, Message::Frame(1, frame(5, [6], 512)));
    assert!(matches!(said(&effects, Hop::Below)[..], [Message::Frame(1, _)]), "{effects:?}");
    let refused = rig.hear(Hop::Below, Message::Error(Farewell::new(Code::OutOfOrder, "no")));
    assert_eq!(closed_above(&refused), Some(Code::Broken));
    assert_eq!(welcomed(&rig.hello(3, 0, 5)).have, have);
}

/// The next hop had more than it has: of the record 3, which was left out here because later ones cover it, it kept a part.
#[test]
fn a_relay_that_left_out_the_rest_of_a_record_asks_for_it_again() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 2);
    rig.hear(Hop::Above, Message::Frame(1, frame(2, [4, 5], 512)));
    let have = Some(Position { lsn: Lsn(3), parts: 1 });
    rig.up_below(Welcome { have, ..welcome() });
    let effects = rig.hear(Hop::Below, Message::Error(Farewell::new(Code::OutOfOrder, "it does not continue")));
    assert_eq!(closed_above(&effects), Some(Code::Broken));
    assert!(rig.relay.is_drained());
    let effects = rig.hello(2, 0, 2);
    assert_eq!(welcomed(&effects).have, have);
    rig.hear(Hop::Above, Message::Frame(1, parts(2, [(3, 0, 2), (3, 1, 2), (4, 0, 1)], 512)));
    let (_, effects) = rig.up_below(Welcome { have, ..welcome() });
    let [Message::Frame(1, sent)] = said(&effects, Hop::Below)[..] else { panic!("{effects:?}") };
    assert_eq!((Some(sent.info.begin()), sent.info.end()), (have, Position::whole(Lsn(4))));
}

#[test]
fn a_relay_that_was_overtaken_begins_anew() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    rig.hear(Hop::Above, Message::Frame(1, frame(0, [1, 2], 512)));
    let effects = rig.hello(2, 0, 0);
    assert_eq!(welcomed(effects.as_slice()).have, Some(Position::whole(Lsn(2))));
    let effects = rig.hello(3, 6, 6);
    assert_eq!(welcomed(effects.as_slice()).have, None);
    assert!(rig.relay.is_drained());
}

/// The welcome may not arrive: it is said again until the source shows that it read it.
#[test]
fn what_is_lost_is_said_until_it_was_heard() {
    let mut rig = Rig::new();
    rig.hello(1, 4, 0);
    let lost = Some(Lsn(3)..=Lsn(4));
    let (_, effects) = rig.up_below(Welcome { have: Some(Position::whole(Lsn(2))), lost: lost.clone(), ..welcome() });
    assert_eq!(closed_above(&effects), Some(Code::Broken));
    for attempt in [2, 3] {
        assert_eq!(welcomed(&rig.hello(attempt, 4, 0)).lost, lost);
    }
    rig.hear(Hop::Above, Message::Frame(1, frame(0, [1], 512)));
    assert_eq!(welcomed(&rig.hello(4, 2, 0)).lost, None);
}

/// A relay believes nobody but the next hop about what is durable: where the source says more, the next hop is asked again.
#[test]
fn what_the_source_calls_durable_is_asked_of_the_next_hop() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    rig.up_below(Welcome { durable: Lsn(2), have: Some(Position::whole(Lsn(2))), ..welcome() });
    rig.hello(2, 2, 2);
    assert!(rig.relay.status(rig.now).below.up);
    let effects = rig.hello(3, 7, 7);
    assert!(!rig.relay.status(rig.now).below.up);
    assert_eq!(welcomed(&effects).durable, Lsn(2));
    let (hello, _) = rig.up_below(welcome());
    assert_eq!(hello.durable_seen, Lsn(7));
}

#[test]
fn seeds_pass_on_and_a_lost_hop_is_said_where_some_may_be_lost() {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    rig.up_below(welcome());
    let effects = rig.hear(Hop::Above, Message::Seed(1, frame(0, [1], 512)));
    assert!(matches!(said(&effects, Hop::Below)[..], [Message::Seed(1, _)]), "{effects:?}");
    rig.now = rig.now.after(1_000_000);
    let ack = crate::link::message::Ack { seeds: 1, credit: 1 << 20, ..Default::default() };
    rig.hear(Hop::Below, Message::Ack(ack));
    rig.now = rig.now.after(1_000_000);
    rig.relay.handle_timer(rig.now);
    let effects = rig.effects();
    let counted =
        said(&effects, Hop::Above).iter().any(|message| matches!(message, Message::Ack(ack) if ack.seeds == 1));
    assert!(counted, "{effects:?}");
    rig.relay.handle_disconnected(rig.now, Hop::Below, BELOW, "reset");
    assert_eq!(closed_above(&rig.effects()), Some(Code::Unreachable));
}

/// The next hop refuses a relay with a source, that copies a disk or does not. Gives what the source hears before somebody said whether
/// there are other ways, and then.
fn refused_below(code: Code, copies: bool, is_last: bool) -> (Option<Code>, Option<Code>) {
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    rig.up_below(welcome());
    if copies {
        rig.hear(Hop::Above, Message::Seed(1, frame(0, [1], 512)));
    }
    let effects = rig.hear(Hop::Below, Message::Error(Farewell::new(code, "no")));
    let why = effects.iter().find_map(|effect| match effect {
        RelayEffect::Event(RelayEvent::Refused(why)) => Some(why.clone()),
        _ => None,
    });
    let Some(why) = why else { panic!("{effects:?}") };
    rig.relay.handle_refused(rig.now, why, is_last);
    (closed_above(&effects), closed_above(&rig.effects()))
}

/// Also while it copies a disk: that the next hop cannot be reached would only have it try again, for ever.
#[test]
fn what_the_last_next_hop_says_of_the_timeline_the_source_hears() {
    let closed = Some(Code::TimelineClosed);
    assert_eq!(refused_below(Code::TimelineClosed, false, true), (None, closed));
    assert_eq!(refused_below(Code::TimelineClosed, true, true), (None, closed));
    assert_eq!(refused_below(Code::Torn, true, true), (None, Some(Code::Torn)));
    assert_eq!(refused_below(Code::Unauthorized, false, true), (None, None));
    assert_eq!(refused_below(Code::Unauthorized, true, true), (Some(Code::Unreachable), None));
}

/// It would end a protection for good that somebody else takes on. What was copied is lost all the same.
#[test]
fn what_one_next_hop_says_of_the_timeline_the_source_does_not_hear_where_another_may_take_it() {
    for code in [Code::TimelineClosed, Code::TimelineUnknown, Code::UnknownGroup, Code::OtherTenant] {
        assert_eq!(refused_below(code, false, false), (None, None), "{code:?}");
        assert_eq!(refused_below(code, true, false), (None, Some(Code::Unreachable)), "{code:?}");
    }
}

/// The place below is that of who has the source: one that was found in a cache may dial first, or last.
#[test]
fn a_relay_with_a_source_takes_its_place_back_and_one_without_does_not() {
    let superseded = || Message::Close(Farewell::new(Code::Superseded, "a newer session").with(1_000_000, 0));
    let mut rig = Rig::new();
    rig.hello(1, 0, 0);
    rig.up_below(welcome());
    let taken = rig.hear(Hop::Below, superseded());
    assert!(taken.iter().any(|e| matches!(e, RelayEffect::Event(RelayEvent::Refused(_)))), "{taken:?}");
    rig.now = rig.now.after(REDIAL_NS);
    rig.relay.handle_timer(rig.now);
    let (hello, _) = rig.up_below(welcome());
    assert!(hello.attempt > 1_000_000, "its attempt would be refused: {}", hello.attempt);
    rig.relay.handle_disconnected(rig.now, Hop::Above, ABOVE, "the source is gone");
    rig.effects();
    rig.hear(Hop::Below, superseded());
    rig.now = rig.now.after(2 * REDIAL_NS);
    rig.relay.handle_timer(rig.now);
    let again = rig.effects();
    assert!(!again.iter().any(|e| matches!(e, RelayEffect::Connect { .. })), "{again:?}");
}
