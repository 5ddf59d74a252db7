//! Random moments: half of them named by LSN, half by time.

use super::{Stage, between};
use crate::demo::load::{Bounds, Load};
use crate::demo::sector::Rng;
use cdp_core::types::WallTime;
use cdp_net::report::At;

/// From where to where.
pub(super) struct Between<'a> {
    pub(super) first: &'a At,
    pub(super) last: &'a At,
    /// Times of this machine's clock, between which notes of the writers' progress were taken.
    pub(super) began: WallTime,
    pub(super) ended: WallTime,
}

/// A moment to bring back.
pub(super) struct Moment {
    pub(super) when: String,
    pub(super) bounds: Bounds,
    pub(super) what: &'static str,
}

pub(super) fn random(stage: &Stage<'_>, between_these: &Between<'_>, load: &Load) -> Vec<Moment> {
    let Between { first, last, began, ended } = between_these;
    let mut rng = Rng::new(stage.plan.seed);
    let mut moment = |number| {
        if number % 2 == 0 {
            let span = last.lsn.0.saturating_sub(first.lsn.0).max(1);
            let when = format!("lsn:{}", first.lsn.0 + rng.below(span));
            // Of an LSN nobody noted the time: what the ledger says of itself has to do.
            return Moment { when, bounds: Bounds::default(), what: "any write" };
        }
        let time = between(*began, *ended, rng.next() >> 32);
        Moment { when: time.to_string(), bounds: load.at(time), what: "any time" }
    };
    (0..stage.plan.moments).map(&mut moment).collect()
}
