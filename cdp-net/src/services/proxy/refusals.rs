//! What next hops say who let nobody in: when they are asked again, and what becomes of what is kept.
//!
//! What a relay keeps may be the only copy there is. It is given up for what next hops say and say again, and never because nobody
//! answers.

use super::Way;
use cdp_core::link::farewell::Class;
use cdp_core::link::message::Code;
use cdp_core::types::MonoTime;
use std::collections::BTreeSet;

/// A next hop that refuses for good is asked again after so long.
const RETRY_NS: u64 = 5_000_000_000;
/// What is refused for good is kept for so long, in case that somebody changes its mind.
const KEPT_NS: u64 = 600_000_000_000;
/// Two refusals that are further apart are not one that lasts: nobody answered in between.
const PAUSE_NS: u64 = 60_000_000_000;

/// Of one relay, since the last session below.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The first and the last one for good of those that followed each other.
    for_good: Option<(MonoTime, MonoTime)>,
    /// What is kept belongs to a timeline that nobody goes on with.
    is_nobodys: bool,
    /// Next hops that do not know the timeline: at most as many as there are.
    strangers: BTreeSet<String>,
}

impl Refusals {
    /// Somebody lets it in.
    pub(super) fn up(&mut self) {
        *self = Self::default();
    }

    /// The hop at this address of all `ways` does not; `untried`: others have not been asked since the last session. Gives when one is to
    /// be asked again that rests otherwise.
    pub(super) fn refused(
        &mut self,
        now: MonoTime,
        code: Code,
        at: &str,
        ways: &[Way],
        untried: bool,
    ) -> Option<MonoTime> {
        self.is_nobodys = match code {
            // Known by who has the replica.
            Code::TimelineClosed => true,
            // It may be another one of the list that has it.
            Code::TimelineUnknown => {
                self.strangers.retain(|known| ways.iter().any(|way| way.address == *known));
                self.strangers.insert(at.to_owned());
                ways.iter().all(|way| self.strangers.contains(&way.address))
            }
            _ => {
                self.strangers.clear();
                false
            }
        };
        if code.class() != Class::Never || code == Code::Superseded {
            self.for_good = None;
            return None;
        }
        let before = self.for_good.filter(|(_, last)| now.since(*last) <= PAUSE_NS);
        self.for_good = Some((before.map_or(now, |(first, _)| first), now));
        // Another one of the list may let it in, at once; or somebody has changed something meanwhile.
        Some(now.after(if untried { 0 } else { RETRY_NS }))
    }

    /// It was refused for good, and again and again, for so long that nobody is expected to change that.
    pub(super) fn is_given_up(&self, now: MonoTime) -> bool {
        self.for_good.is_some_and(|(first, last)| now.since(first) >= KEPT_NS && now.since(last) <= PAUSE_NS)
    }

    /// No next hop will ever take what is kept.
    pub(super) fn is_nobodys(&self) -> bool {
        self.is_nobodys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const SECOND: u64 = 1_000_000_000;

    fn ways(addresses: &[&str]) -> Vec<Way> {
        let way = |address: &&str| Way { address: (*address).into(), ticket: Bytes::new(), addresses: None };
        addresses.iter().map(way).collect()
    }

    #[test]
    fn who_is_refused_for_good_asks_again_all_the_same_and_another_one_at_once() {
        let (mut refusals, ways, now) = (Refusals::default(), ways(&["a", "b"]), MonoTime(SECOND));
        assert_eq!(refusals.refused(now, Code::Unauthorized, "a", &ways, true), Some(now));
        assert_eq!(refusals.refused(now, Code::Unauthorized, "b", &ways, false), Some(now.after(RETRY_NS)));
        // The end itself dials again.
        assert_eq!(refusals.refused(now, Code::Stopping, "a", &ways, false), None);
        assert_eq!(refusals.refused(now, Code::Superseded, "a", &ways, false), None);
    }

    #[test]
    fn what_is_kept_is_given_up_for_refusals_that_last_and_never_for_absence() {
        let (ways, mut now) = (ways(&["a"]), MonoTime(SECOND));
        let mut refusals = Refusals::default();
        let refused = |refusals: &mut Refusals, now| {
            assert!(refusals.refused(now, Code::Unauthorized, "a", &ways, false).is_some());
        };
        // Once, and then nobody answers.
        refused(&mut refusals, now);
        now = now.after(2 * KEPT_NS);
        assert!(!refusals.is_given_up(now));
        // It is there again, and refuses again.
        refused(&mut refusals, now);
        let first = now;
        while now.since(first) < KEPT_NS {
            assert!(!refusals.is_given_up(now));
            now = now.after(RETRY_NS);
            refused(&mut refusals, now);
        }
        assert!(refusals.is_given_up(now));
        // It has something else to say, or lets in.
        refusals.refused(now, Code::Busy, "a", &ways, false);
        assert!(!refusals.is_given_up(now));
        refused(&mut refusals, now);
        refusals.up();
        assert!(!refusals.is_given_up(now.after(KEPT_NS)));
    }

    #[test]
    fn what_is_kept_is_nobodys_when_its_timeline_is_closed_or_is_known_nowhere() {
        let (ways, now) = (ways(&["a", "b"]), MonoTime(SECOND));
        let mut refusals = Refusals::default();
        let mut says = |code, at: &str| {
            refusals.refused(now, code, at, &ways, false);
            refusals.is_nobodys()
        };
        assert!(!says(Code::TimelineUnknown, "a") && !says(Code::TimelineUnknown, "a"));
        assert!(says(Code::TimelineUnknown, "b"));
        for other in [Code::Unauthorized, Code::UnknownGroup, Code::OtherTenant, Code::Unreachable, Code::Torn] {
            assert!(!says(other, "a"), "{other:?}");
        }
        assert!(!says(Code::TimelineUnknown, "b"), "it began anew");
        assert!(says(Code::TimelineClosed, "a"));
        refusals.up();
        assert!(!refusals.is_nobodys());
    }
}
