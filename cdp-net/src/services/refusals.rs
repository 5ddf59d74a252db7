//! What next hops say who let nobody in: when they are asked again, and what follows once all of them say it.
//!
//! What a relay keeps may be the only copy there is, and a protection that ends does not begin again by itself. Both are given up for
//! what every next hop says, and says again: never for the word of one of several, and never because somebody does not answer.

use cdp_core::link::farewell::Class;
use cdp_core::link::message::Code;
use cdp_core::types::MonoTime;
use std::collections::{BTreeMap, BTreeSet};

/// Next hops that refuse for good are asked again after so long.
const RETRY_NS: u64 = 5_000_000_000;
/// What is refused for good is kept for so long, in case that somebody changes its mind.
const KEPT_NS: u64 = 600_000_000_000;
/// Two refusals that are further apart are not one that lasts, and one that is older than that says nothing of now.
const PAUSE_NS: u64 = 60_000_000_000;
/// A session that held for so long was no refusal. A proxy lets in before it has asked the next one whether that does.
const HELD_NS: u64 = 10_000_000_000;

/// What one next hop says for good, and nothing else in between.
#[derive(Debug)]
struct Said {
    first: MonoTime,
    last: MonoTime,
    /// The last word.
    code: Code,
}

/// Of one end of a link, since its last session that held.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// By address: at most as many as there are next hops, and those that were taken out of the list since the last refusal.
    said: BTreeMap<String, Said>,
    /// Who is asked, or has let in: he has not refused for good, this time.
    asked: Option<String>,
    /// Who was asked since all of them were.
    round: BTreeSet<String>,
    /// A session holds since then.
    up: Option<MonoTime>,
}

impl Refusals {
    /// The hop at this address is asked. Whoever was asked before and has not refused for good has something else to say, or is not there.
    pub(super) fn asked(&mut self, at: &str) {
        self.unsaid();
        self.round.insert(at.to_owned());
        self.asked = Some(at.to_owned());
    }

    /// Whoever was asked does not refuse for good, whatever it said before.
    pub(super) fn unsaid(&mut self) {
        if let Some(at) = self.asked.take() {
            self.said.remove(&at);
        }
    }

    /// It lets in.
    pub(super) fn up(&mut self, now: MonoTime) {
        self.up = Some(now);
    }

    /// It did.
    pub(super) fn down(&mut self, now: MonoTime) {
        if self.up.take().is_some_and(|up| now.since(up) >= HELD_NS) {
            self.said.clear();
            let asked = self.asked.as_ref();
            self.round.retain(|at| asked == Some(at));
        }
    }

    /// Whoever was asked, one of all `ways`, does not let in. Gives when one is to be asked again that rests otherwise.
    pub(super) fn refused(&mut self, now: MonoTime, code: Code, ways: &[&str]) -> Option<MonoTime> {
        if code.class() != Class::Never {
            self.unsaid();
            return None;
        }
        self.said.retain(|known, _| ways.contains(&known.as_str()));
        if let Some(at) = self.asked.take() {
            let before = self.said.get(&at).filter(|said| now.since(said.last) <= PAUSE_NS);
            let first = before.map_or(now, |said| said.first);
            self.said.insert(at, Said { first, last: now, code });
        }
        // Another one of the list may let it in, at once; or somebody has changed something meanwhile.
        if ways.iter().any(|way| !self.round.contains(*way)) {
            return Some(now);
        }
        self.round.clear();
        Some(now.after(RETRY_NS))
    }

    /// Whether each of the ways that there are now says such a thing, and none is being asked whether it still does.
    fn all(&self, now: MonoTime, ways: &[&str], is: impl Fn(&Said) -> bool) -> bool {
        let says = |way: &&str| self.said.get(*way).is_some_and(|said| now.since(said.last) <= PAUSE_NS && is(said));
        self.asked.is_none() && !ways.is_empty() && ways.iter().all(says)
    }

    /// None of them lets in.
    pub(super) fn are_all(&self, now: MonoTime, ways: &[&str]) -> bool {
        self.all(now, ways, |_| true)
    }

    /// None of them lets in, and for each the reason is the group or the timeline.
    pub(super) fn are_of_the_source(&self, now: MonoTime, ways: &[&str]) -> bool {
        self.all(now, ways, |said| said.code.is_of_the_source())
    }

    /// All of them have refused for good, again and again, for so long that nobody is expected to change that.
    pub(super) fn is_given_up(&self, now: MonoTime, ways: &[&str]) -> bool {
        self.all(now, ways, |said| said.last.since(said.first) >= KEPT_NS)
    }

    /// No next hop will ever take what is kept: it belongs to a timeline that nobody goes on with.
    pub(super) fn is_nobodys(&self, now: MonoTime, ways: &[&str]) -> bool {
        self.all(now, ways, |said| matches!(said.code, Code::TimelineClosed | Code::TimelineUnknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Who is asked, and what comes of it.
    struct Rig {
        refusals: Refusals,
        now: MonoTime,
    }

    impl Rig {
        fn new() -> Self {
            Self { refusals: Refusals::default(), now: MonoTime(SECOND) }
        }

        fn refused(&mut self, at: &str, code: Code, ways: &[&str]) -> Option<MonoTime> {
            self.refusals.asked(at);
            self.refusals.refused(self.now, code, ways)
        }

        /// Each of `ways` but those that are `absent` refuses, round for round, until the time is over.
        fn rounds(&mut self, code: Code, ways: &[&str], absent: &[&str], ns: u64) {
            let end = self.now.after(ns);
            while self.now < end {
                for way in ways {
                    if absent.contains(way) {
                        self.refusals.asked(way);
                    } else {
                        assert!(self.refused(way, code, ways).is_some());
                    }
                }
                self.now = self.now.after(RETRY_NS);
            }
        }
    }

    #[test]
    fn who_is_refused_for_good_asks_again_all_the_same_and_another_one_at_once() {
        let (mut rig, ways) = (Rig::new(), ["a", "b"]);
        let (now, later) = (rig.now, rig.now.after(RETRY_NS));
        assert_eq!(rig.refused("a", Code::Unauthorized, &ways), Some(now));
        assert_eq!(rig.refused("b", Code::Unauthorized, &ways), Some(later));
        assert_eq!(rig.refused("a", Code::Unauthorized, &ways), Some(now), "the next round");
        // The end itself dials again.
        assert_eq!(rig.refused("b", Code::Stopping, &ways), None);
        // A round is over when all were asked, whoever answered.
        assert_eq!(rig.refused("a", Code::Unauthorized, &ways), Some(later));
    }

    /// Such is a proxy, which asks its own next hop only when somebody is there for whom it asks.
    #[test]
    fn a_hop_that_lets_in_and_refuses_then_is_not_asked_without_a_pause() {
        let (mut rig, ways) = (Rig::new(), ["a"]);
        for _ in 0..3 {
            rig.refusals.asked("a");
            rig.refusals.up(rig.now);
            assert!(!rig.refusals.are_all(rig.now, &ways), "a session holds");
            rig.now = rig.now.after(SECOND);
            rig.refusals.down(rig.now);
            let again = rig.refusals.refused(rig.now, Code::TimelineClosed, &ways);
            assert_eq!(again, Some(rig.now.after(RETRY_NS)));
            assert!(rig.refusals.is_nobodys(rig.now, &ways));
        }
        rig.rounds(Code::TimelineClosed, &ways, &[], KEPT_NS + RETRY_NS);
        assert!(rig.refusals.is_given_up(rig.now, &ways));
        // One that holds is none of these.
        rig.refusals.asked("a");
        rig.refusals.up(rig.now);
        rig.now = rig.now.after(HELD_NS);
        rig.refusals.down(rig.now);
        let again = rig.refusals.refused(rig.now, Code::TimelineClosed, &ways);
        assert_eq!(again, Some(rig.now.after(RETRY_NS)));
        assert!(rig.refusals.is_nobodys(rig.now, &ways) && !rig.refusals.is_given_up(rig.now, &ways));
    }

    #[test]
    fn what_is_kept_is_given_up_for_refusals_that_last_and_never_for_absence() {
        let (mut rig, ways) = (Rig::new(), ["a"]);
        // Once, and then nobody answers.
        rig.refused("a", Code::Unauthorized, &ways);
        rig.now = rig.now.after(2 * KEPT_NS);
        assert!(!rig.refusals.is_given_up(rig.now, &ways));
        // It is there again, and refuses again.
        rig.rounds(Code::Unauthorized, &ways, &[], KEPT_NS);
        assert!(!rig.refusals.is_given_up(rig.now, &ways));
        rig.refused("a", Code::Unauthorized, &ways);
        assert!(rig.refusals.is_given_up(rig.now, &ways));
        // It is asked, and may have something else to say, which is told nobody here.
        rig.refusals.asked("a");
        assert!(!rig.refusals.is_given_up(rig.now, &ways));
        rig.refused("a", Code::Unauthorized, &ways);
        assert!(!rig.refusals.is_given_up(rig.now, &ways), "it was busy in between");
    }

    /// The one that is down may have the replica.
    #[test]
    fn what_is_kept_is_not_given_up_while_one_next_hop_of_two_is_absent() {
        let (mut rig, ways) = (Rig::new(), ["a", "b"]);
        for code in [Code::TimelineUnknown, Code::TimelineClosed, Code::Version, Code::OtherTenant] {
            rig.rounds(code, &ways, &["b"], 2 * KEPT_NS);
            rig.refused("a", code, &ways);
            assert!(!rig.refusals.is_given_up(rig.now, &ways), "{code:?}");
            assert!(!rig.refusals.is_nobodys(rig.now, &ways) && !rig.refusals.are_all(rig.now, &ways), "{code:?}");
        }
        // It refuses too, from now on, and not once.
        rig.rounds(Code::TimelineUnknown, &ways, &[], KEPT_NS);
        assert!(!rig.refusals.is_given_up(rig.now, &ways));
        rig.rounds(Code::TimelineUnknown, &ways, &[], RETRY_NS);
        assert!(rig.refusals.is_given_up(rig.now, &ways));
        // It goes away for a while.
        rig.rounds(Code::TimelineUnknown, &ways, &["b"], RETRY_NS);
        rig.rounds(Code::TimelineUnknown, &ways, &[], RETRY_NS);
        assert!(!rig.refusals.is_given_up(rig.now, &ways));
    }

    #[test]
    fn what_is_kept_is_nobodys_when_every_next_hop_knows_its_timeline_to_be_over_or_not_at_all() {
        let (mut rig, ways) = (Rig::new(), ["a", "b"]);
        let mut says = |code, at: &str| {
            rig.refused(at, code, &ways);
            rig.refusals.is_nobodys(rig.now, &ways)
        };
        assert!(!says(Code::TimelineUnknown, "a") && !says(Code::TimelineUnknown, "a"));
        assert!(says(Code::TimelineUnknown, "b"));
        for other in [Code::Unauthorized, Code::UnknownGroup, Code::OtherTenant, Code::Unreachable, Code::Torn] {
            assert!(!says(other, "a"), "{other:?}");
            assert!(!says(Code::TimelineUnknown, "b"), "it is what another one says: {other:?}");
        }
        // One that is closed at an old copy of the replica may be open at the other one.
        let mut rig = Rig::new();
        rig.refused("a", Code::TimelineClosed, &ways);
        assert!(!rig.refusals.is_nobodys(rig.now, &ways));
        rig.refused("b", Code::TimelineUnknown, &ways);
        assert!(rig.refusals.is_nobodys(rig.now, &ways) && rig.refusals.are_of_the_source(rig.now, &ways));
    }

    /// The list is another one, or nobody has said so for long.
    #[test]
    fn what_was_nobodys_may_be_somebodys_again() {
        let mut rig = Rig::new();
        rig.refused("a", Code::TimelineClosed, &["a"]);
        assert!(rig.refusals.is_nobodys(rig.now, &["a"]));
        assert!(!rig.refusals.is_nobodys(rig.now, &["a", "b"]) && !rig.refusals.is_nobodys(rig.now, &["b"]));
        assert!(!rig.refusals.is_nobodys(rig.now.after(PAUSE_NS + 1), &["a"]));
        rig.refusals.asked("a");
        assert!(!rig.refusals.is_nobodys(rig.now, &["a"]), "it is asked whether that still holds");
    }

    #[test]
    fn a_source_hears_what_all_say_of_its_group_and_not_what_is_said_of_the_relay() {
        let (mut rig, ways) = (Rig::new(), ["a", "b"]);
        rig.refused("a", Code::UnknownGroup, &ways);
        assert!(!rig.refusals.are_of_the_source(rig.now, &ways));
        rig.refused("b", Code::Unauthorized, &ways);
        assert!(rig.refusals.are_all(rig.now, &ways) && !rig.refusals.are_of_the_source(rig.now, &ways));
        rig.refused("b", Code::TimelineUnknown, &ways);
        assert!(rig.refusals.are_of_the_source(rig.now, &ways));
    }
}
