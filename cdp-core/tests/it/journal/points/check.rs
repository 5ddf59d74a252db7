//! What is found by whoever opens a store is held against what was told, and what was done.

use super::super::kit::*;
use super::life::{Belief, Life, Outcome, Overlay, said};
use super::model::{Past, State};
use cdp_core::journal::*;
use cdp_core::replica::Replica;
use cdp_core::sim::SimDisk;
use cdp_core::types::*;
use std::collections::BTreeMap;

/// Media after a power cut, or after a stop, and what was told and done before.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) disk: SimDisk,
    pub(crate) past: Past,
    pub(crate) belief: Belief,
    pub(crate) overlays: BTreeMap<Timeline, Overlay>,
}

impl Found {
    /// A start, and what it finds; None: the power went again.
    pub(crate) fn open(&self, at_rest: &AtRest, seed: u64, dice: &mut Dice, all: bool) -> Outcome<Option<Life>> {
        let cut = |why: String| if self.disk.is_cut() { Ok(None) } else { Err(why) };
        let opened = match at_rest.open(&self.disk, Some(self.belief.durable)) {
            Ok(opened) => opened,
            Err(error) => return cut(said(error)),
        };
        self.told_the_truth(&opened)?;
        let told = (&self.belief, &self.overlays);
        let mut life = match Life::after(&self.disk, opened, &self.past, told, (seed, at_rest)) {
            Ok(life) => life,
            Err(why) => return cut(why),
        };
        check(&life, dice, all)?;
        match life.check_sessions() {
            Err(why) => cut(why),
            Ok(()) => Ok(Some(life)),
        }
    }

    fn told_the_truth(&self, opened: &Opened) -> Outcome<()> {
        let (belief, manifest) = (&self.belief, &opened.manifest);
        let durable = opened.durable.lsn();
        if durable < belief.durable {
            return Err(format!("LSN {durable} is there, {} was durable", belief.durable));
        }
        if manifest.generation < belief.generation {
            return Err(format!("a durable manifest is gone: {:?} of {:?}", manifest.generation, belief.generation));
        }
        if let Some(pin) = belief.pins.iter().find(|pin| manifest.pins.iter().all(|found| found.lsn != **pin)) {
            return Err(format!("the pin of LSN {pin} is forgotten"));
        }
        let layers = &manifest.retention.layers;
        if let Some(layer) = belief.layers.iter().find(|layer| layers.iter().all(|found| found.lsn != **layer)) {
            return Err(format!("the long-term point at LSN {layer} is forgotten"));
        }
        if let Some(oldest) = manifest.oldest().filter(|oldest| oldest.lsn > belief.target) {
            return Err(format!("history begins at LSN {}, and was to begin at {}", oldest.lsn, belief.target));
        }
        let there = |id: &Timeline| manifest.sessions.iter().any(|session| session.timeline == *id);
        if let Some(id) = belief.sessions.keys().find(|id| !there(id)) {
            return Err(format!("the session {id} is forgotten"));
        }
        let dropped = opened.repairs.iter().find(|repair| matches!(repair, Repair::IndexDropped { .. }));
        dropped.map_or(Ok(()), |repair| Err(format!("a run that was named is not sound: {repair:?}")))
    }
}

/// One moment, or all of them and the files too.
pub(crate) fn check(life: &Life, dice: &mut Dice, all: bool) -> Outcome<()> {
    let replica = life.replica()?;
    let (from, to) = life.span();
    let held = life.held().into_iter().chain(life.kept.iter().copied());
    let mut moments: Vec<_> = held.chain(life.past.lsns(from, to)).collect();
    if !all && !moments.is_empty() {
        let ends = [moments[0], moments[moments.len() - 1], moments[dice.below(moments.len() as u64) as usize]];
        moments = vec![ends[dice.below(3) as usize]];
    }
    for lsn in moments {
        let then = life.past.at(lsn);
        check_moment(life, &replica, lsn, &then).map_err(|why| format!("LSN {lsn} of {from} to {to}: {why}"))?;
    }
    // Of runs and the footers that they stand for no moment tells: whatever becomes of them, it reads as it should.
    let runs = life.rig.writer.manifest().segments.len() > 7 && dice.below(4) == 0;
    if all || runs { check_files(life) } else { Ok(()) }
}

pub(crate) fn check_files(life: &Life) -> Outcome<()> {
    let findings = life.rig.reader().verify(&life.rig.writer.snapshot(), |_| true).findings;
    findings.first().map_or(Ok(()), |finding| Err(format!("verify: {}", finding.what)))
}

pub(crate) fn check_moment(life: &Life, replica: &Replica, lsn: Lsn, then: &State) -> Outcome<()> {
    let on = life.timeline_of(lsn);
    if replica.catalogue().branch(on).is_none_or(|branch| !branch.is_restorable(lsn)) {
        return Err("not restorable".to_owned());
    }
    // Of a moment that is kept, only what can be restored is said.
    let kept = life.rig.writer.manifest().oldest().is_some_and(|oldest| lsn < oldest.lsn);
    let there = then.iter().filter(|(_, disk)| disk.complete || !kept);
    let there: Vec<_> = there.map(|(number, disk)| (*number, disk.bytes.len() as u64, disk.complete)).collect();
    let found = replica.disks_at(on, lsn);
    let found: Vec<_> = found.iter().map(|at| (at.disk.id.get(), at.disk.size, at.complete)).collect();
    if found != there {
        return Err(format!("the disks are {found:?}, not {there:?}"));
    }
    let view = replica.view(on, lsn).map_err(said)?;
    let complete: Vec<_> = then.iter().filter(|(_, disk)| disk.complete).collect();
    if view.disks().len() != complete.len() {
        return Err(format!("the view has {:?}", view.disks()));
    }
    for (number, disk_then) in complete {
        let mut bytes = vec![0xee; disk_then.bytes.len()];
        view.read(disk(*number), 0, &mut bytes).map_err(said)?;
        if bytes != disk_then.bytes {
            let at = (0..bytes.len()).find(|at| bytes[*at] != disk_then.bytes[*at]).unwrap_or_default();
            return Err(format!("disk {number}, byte {at}: {} is not {}", bytes[at], disk_then.bytes[at]));
        }
    }
    Ok(())
}
