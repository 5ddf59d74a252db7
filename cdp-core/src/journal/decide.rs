//! What is done about each segment at a start: a pure function of facts, so that every combination can be tested.

use crate::mistakes::{self, Mistake};
use crate::types::Lsn;

/// What was found of one segment that the manifest names, in order of their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Facts {
    /// The manifest says sealed.
    Sealed {
        /// File, header, length and trailer are what the manifest says.
        sound: bool,
        /// The last LSN with a part there.
        last: Lsn,
        /// The last LSN that is whole.
        whole: Lsn,
    },
    /// The manifest says prepared or active.
    Unsealed {
        /// The file is there and its header is the one meant.
        there: bool,
        /// There is an opening, and the segment before it ends where that says, whatever stands behind its frames.
        connects: bool,
        /// At least one frame is valid, also where the header is not.
        frames: bool,
        /// The last LSN with a part in valid frames.
        last: Lsn,
        /// The last LSN that is whole with them.
        whole: Lsn,
        /// Something that is no valid frame follows them.
        torn: bool,
        /// What anything valid in it says was durable.
        witness: Lsn,
    },
}

/// What is done about a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Nothing: it is sealed.
    Keep,
    /// It gets a footer behind its last valid frame.
    Seal,
    /// It goes: nothing in it was ever acknowledged.
    Remove,
}

/// Acknowledged data is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Loss {
    /// The first segment, by its place in the list, where something is missing; the last one where all are sound and still
    /// something was acknowledged that none of them has.
    pub(super) at: usize,
    /// Everything up to here is good.
    pub(super) good: Lsn,
    /// Everything up to here was acknowledged.
    pub(super) acknowledged: Lsn,
}

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// The last LSN that is whole: what is durable when the plan is carried out.
    pub(super) whole: Lsn,
    /// The last LSN with a part in what stays.
    pub(super) last: Lsn,
}

/// Decides. `floor`: segments up to there were dropped on purpose. `witness`: what manifest and peer say was durable.
pub(super) fn decide(facts: &[Facts], floor: Lsn, witness: Lsn) -> Result<Plan, Loss> {
    let mut plan = Plan { actions: Vec::with_capacity(facts.len()), whole: floor, last: floor };
    let mut acknowledged = witness;
    let (mut broken, mut torn_at) = (None, None);
    for (at, facts) in facts.iter().enumerate() {
        let action = match *facts {
            Facts::Sealed { sound, last, whole } => {
                // It was synced before the manifest said so: all that is whole in it is acknowledged. What is not whole is
                // gone for good with a segment that is not sound, and that is not passed over either.
                acknowledged = acknowledged.max(if sound { whole } else { last });
                if sound && broken.is_none() {
                    (plan.whole, plan.last) = (plan.whole.max(whole), plan.last.max(last));
                } else {
                    broken.get_or_insert(at);
                }
                Action::Keep
            }
            Facts::Unsealed { there, connects, frames, last, whole, torn, witness } => {
                acknowledged = acknowledged.max(witness);
                let passes = mistakes::is(Mistake::GapsPassed);
                let fits = frames && connects && broken.is_none();
                let follows = there && (fits || frames && passes);
                if follows {
                    (plan.whole, plan.last) = (plan.whole.max(whole), plan.last.max(last));
                }
                if follows {
                    // What stands behind the frames before it is no part of the journal: a footer that was being written.
                    torn_at = None;
                } else if fits {
                    // A header is durable before the segment is named: it is damaged since, and nobody can tell which of the
                    // frames behind it were acknowledged.
                    acknowledged = acknowledged.max(last);
                    broken = Some(at);
                } else if frames {
                    broken.get_or_insert(torn_at.unwrap_or(at));
                }
                if torn {
                    torn_at.get_or_insert(at);
                }
                if follows { Action::Seal } else { Action::Remove }
            }
        };
        plan.actions.push(action);
    }
    if acknowledged > plan.whole {
        let at = broken.or(torn_at).unwrap_or(facts.len().saturating_sub(1));
        return Err(Loss { at, good: plan.whole, acknowledged });
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of segment at a place where the journal holds LSNs from `first`, ten for each segment, with every witness
    /// that it can hold.
    fn kinds(first: u64) -> Vec<Facts> {
        let (last, whole) = (Lsn(first + 9), Lsn(first + 8));
        let mut kinds = vec![
            Facts::Sealed { sound: true, last, whole: last },
            Facts::Sealed { sound: true, last, whole },
            Facts::Sealed { sound: false, last, whole: last },
        ];
        for bits in 0..16u8 {
            let on = |bit: u8| bits >> bit & 1 == 1;
            let (there, connects, frames, torn) = (on(0), on(1), on(2), on(3));
            for witness in [0, first - 1, first + 5, first + 15] {
                let (last, whole) = if frames { (last, whole) } else { (Lsn::ZERO, Lsn::ZERO) };
                kinds.push(Facts::Unsealed { there, connects, frames, last, whole, torn, witness: Lsn(witness) });
            }
        }
        kinds
    }

    fn acknowledged(facts: &[Facts], witness: Lsn) -> Lsn {
        let of = |facts: &Facts| match *facts {
            Facts::Sealed { whole, .. } => whole,
            Facts::Unsealed { witness, .. } => witness,
        };
        facts.iter().map(of).max().unwrap_or(Lsn::ZERO).max(witness)
    }

    /// What holds for any combination: nothing acknowledged is dropped without a word, nothing is kept behind a break, and
    /// nothing is given a footer that was not validated.
    fn check(facts: &[Facts], witness: Lsn) {
        match decide(facts, Lsn(100), witness) {
            Ok(plan) => {
                assert!(plan.whole >= acknowledged(facts, witness), "{facts:?}");
                assert!(plan.whole <= plan.last);
                let mut intact = true;
                for (facts, action) in facts.iter().zip(&plan.actions) {
                    match (facts, action) {
                        (Facts::Sealed { sound, .. }, action) => {
                            assert!(*sound && *action == Action::Keep, "{facts:?}")
                        }
                        (Facts::Unsealed { there, connects, frames, .. }, Action::Seal) => {
                            assert!(*there && *connects && *frames && intact, "{facts:?}");
                        }
                        (Facts::Unsealed { there, connects, frames, .. }, Action::Remove) => {
                            assert!(*there || !(*connects && *frames && intact), "{facts:?}");
                            intact &= !*frames;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            Err(loss) => {
                assert!(loss.acknowledged > loss.good && loss.at < facts.len().max(1), "{facts:?}");
                let unsound = facts.iter().any(|facts| match *facts {
                    Facts::Sealed { sound, .. } => !sound,
                    Facts::Unsealed { there, frames, .. } => frames && !there,
                });
                assert!(unsound || loss.acknowledged <= acknowledged(facts, witness), "{facts:?}");
            }
        }
    }

    #[test]
    fn every_combination_of_three_segments() {
        let (first, second, third) = (kinds(101), kinds(111), kinds(121));
        let sealed = |facts: &Facts| matches!(facts, Facts::Sealed { .. });
        let mut count = 0;
        for a in &first {
            for b in second.iter().filter(|b| sealed(a) || !sealed(b)) {
                for c in third.iter().filter(|c| sealed(b) || !sealed(c)) {
                    for witness in [0, 100, 109, 119, 130] {
                        check(&[*a, *b, *c], Lsn(witness));
                        count += 1;
                    }
                }
            }
        }
        assert!(count > 100_000, "{count}");
    }

    const VALID: Facts = Facts::Unsealed {
        there: true,
        connects: true,
        frames: true,
        last: Lsn(110),
        whole: Lsn(110),
        torn: false,
        witness: Lsn(105),
    };

    fn headless() -> Facts {
        let (last, whole) = (Lsn(115), Lsn(115));
        Facts::Unsealed { there: false, connects: true, frames: true, last, whole, torn: true, witness: Lsn::ZERO }
    }

    fn next(connects: bool, witness: u64) -> Facts {
        let (last, whole) = (Lsn(120), Lsn(120));
        Facts::Unsealed { there: true, connects, frames: true, last, whole, torn: false, witness: Lsn(witness) }
    }

    fn torn() -> Facts {
        let Facts::Unsealed { there, connects, frames, last, whole, witness, .. } = VALID else { unreachable!() };
        Facts::Unsealed { there, connects, frames, last, whole, torn: true, witness }
    }

    #[test]
    fn the_table() {
        use Action::{Remove, Seal};
        let decided = |facts: &[Facts], witness: u64| {
            decide(facts, Lsn(100), Lsn(witness))
                .map(|plan| (plan.actions, plan.whole.0))
                .map_err(|loss| (loss.at, loss.good.0))
        };
        assert_eq!(decided(&[VALID], 110), Ok((vec![Seal], 110)), "valid frames, nothing behind");
        assert_eq!(decided(&[torn()], 110), Ok((vec![Seal], 110)), "a torn tail behind all that was acknowledged");
        assert_eq!(decided(&[torn()], 111), Err((0, 110)), "a torn tail that was acknowledged");
        assert_eq!(decided(&[torn(), next(true, 0)], 110), Ok((vec![Seal, Seal], 120)), "a footer was being written");
        assert_eq!(
            decided(&[torn(), next(false, 109)], 110),
            Ok((vec![Seal, Remove], 110)),
            "a lost tail, not acknowledged"
        );
        assert_eq!(
            decided(&[torn(), next(false, 115)], 0),
            Err((0, 110)),
            "a lost tail, acknowledged: it is in the first"
        );
        assert_eq!(decided(&[VALID, next(false, 115)], 0), Err((1, 110)), "the second continues something else");
        assert_eq!(decided(&[headless(), next(false, 0)], 0), Err((0, 100)), "a damaged header before valid frames");
        assert_eq!(decided(&[torn(), headless()], 0), Err((1, 110)), "the header of the second, which goes on");
        assert_eq!(decided(&[], 100), Ok((vec![], 100)), "everything was dropped on purpose");
        assert_eq!(decided(&[], 101), Err((0, 100)), "the peer knows of more");
    }
}
