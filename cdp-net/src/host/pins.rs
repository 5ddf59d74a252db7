//! Pins: moments that nothing of ours drops until somebody takes the pin away.

use super::{Host, document};
use crate::clock;
use crate::owner::Side;
use crate::report::{At, Problem, ProblemClass};
use cdp_core::journal::PinInfo;
use cdp_core::when::{Label, When};

/// The most pins: with layers, sessions and readers no more moments are kept than a manifest takes.
const PINS_MAX: usize = 1 << 16;

impl Host {
    /// Pins a moment; one that is pinned already gets the new label, if there is one.
    pub(super) fn keep(&self, at: &When, side: Option<Side>, label: Option<&Label>) -> Result<At, Problem> {
        // Held until the manifest holds it.
        let (moment, _hold) = self.hold(at, side)?;
        let trunk = self.replica().catalogue().on_path(moment.lsn).map(|branch| branch.timeline);
        if trunk != Some(moment.timeline) {
            let message = format!("LSN {} lies on a branch that history has left: it cannot be pinned", moment.lsn);
            return Err(Problem::new(ProblemClass::Refused, "not-on-path", message).hint("restore it to a file"));
        }
        let label = label.map_or_else(String::new, |label| label.as_str().to_owned());
        let pin = PinInfo { label, timeline: moment.timeline, lsn: moment.lsn, created: clock::wall() };
        let same = |known: &PinInfo| (known.timeline, known.lsn) == (moment.timeline, moment.lsn);
        let is_full = |pins: &[PinInfo]| pins.len() >= PINS_MAX && !pins.iter().any(same);
        if is_full(&self.replica().manifest().pins) {
            let message = format!("{PINS_MAX} moments are pinned, the most that can be");
            return Err(Problem::new(ProblemClass::Refused, "pins", message).hint("take some away with `cdp unpin`"));
        }
        self.edit(Box::new(move |manifest| {
            let same = |known: &PinInfo| (known.timeline, known.lsn) == (pin.timeline, pin.lsn);
            match manifest.pins.iter_mut().find(|known| same(known)) {
                Some(known) if !pin.label.is_empty() => known.label = pin.label,
                Some(_) => {}
                None => manifest.pins.push(pin),
            }
        }))?;
        Ok(document::at(&self.replica(), &moment))
    }

    /// Takes the pin of a moment away.
    pub(super) fn let_go(&self, at: &When, side: Option<Side>) -> Result<At, Problem> {
        let moment = self.moment(at, side)?;
        let at = document::at(&self.replica(), &moment);
        let same = move |pin: &PinInfo| (pin.timeline, pin.lsn) == (moment.timeline, moment.lsn);
        if !self.replica().manifest().pins.iter().any(same) {
            let message = format!("LSN {} is not pinned", moment.lsn);
            let hint = "`cdp status` lists the pins";
            return Err(Problem::new(ProblemClass::Refused, "not-pinned", message).hint(hint));
        }
        self.edit(Box::new(move |manifest| manifest.pins.retain(|pin| !same(pin))))?;
        Ok(at)
    }
}
