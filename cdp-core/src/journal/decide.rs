//! What is done about each segment at a start: a pure function of facts, so that every combination can be tested.

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
        /// At least one frame is valid.
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
                let follows = there && connects && frames && broken.is_none();
                if follows {
                    (plan.whole, plan.last) = (plan.whole.max(whole), plan.last.max(last));
                }
                if follows {
                    // What stands behind the frames before it is no part of the journal: a footer that was being written.
                    torn_at = None;
                } else if there && frames {
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
