//! Moments that are held, merges up to them and past them, and runs of the index.

use super::{Life, NOW, Outcome, said};
use cdp_core::journal::*;
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::{self, Merge};
use cdp_core::replica::{merge_limit, remove_bases, retention};
use cdp_core::types::*;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Life {
    /// The moments that must not end.
    pub(crate) fn held(&self) -> BTreeSet<Lsn> {
        let forks = self.belief.sessions.keys().map(|session| self.overlays[session].info.fork);
        self.belief.pins.iter().chain(&self.belief.layers).copied().chain(forks).collect()
    }

    pub(super) fn pin(&mut self, pick: u16) -> Outcome<()> {
        self.moment(pick).map_or(Ok(()), |lsn| self.pin_at(lsn))
    }

    pub(crate) fn pin_at(&mut self, lsn: Lsn) -> Outcome<()> {
        let pin = PinInfo { label: String::new(), timeline: self.timeline_of(lsn), lsn, created: WallTime(1) };
        self.rig.writer.edit(|manifest| manifest.pins.push(pin));
        self.settle()?;
        self.belief.pins.insert(lsn);
        self.note();
        Ok(())
    }

    pub(super) fn unpin(&mut self, pick: u8) -> Outcome<()> {
        let pins = &self.belief.pins;
        let Some(lsn) = pins.iter().nth(usize::from(pick) % pins.len().max(1)).copied() else { return Ok(()) };
        self.belief.pins.remove(&lsn);
        self.note();
        self.rig.writer.edit(|manifest| manifest.pins.retain(|pin| pin.lsn != lsn));
        self.settle()?;
        self.release()
    }

    /// The newest moment is to be kept for long.
    pub(super) fn layer(&mut self) -> Outcome<()> {
        self.flush()?;
        self.rig.writer.roll();
        let lsn = self.rig.writer.durable().lsn();
        if self.belief.layers.contains(&lsn) {
            return self.settle();
        }
        let timeline = self.timeline_of(lsn);
        let layer = LayerInfo { timeline, lsn, elapsed_ms: self.belief.layers.len() as u64 };
        self.rig.writer.edit(|manifest| manifest.retention.layers.push(layer));
        self.settle()?;
        self.belief.layers.insert(lsn);
        self.did("layer");
        self.note();
        Ok(())
    }

    pub(super) fn expire(&mut self) -> Outcome<()> {
        let Some(lsn) = self.belief.layers.pop_first() else { return Ok(()) };
        self.note();
        self.rig.writer.edit(|manifest| manifest.retention.layers.retain(|layer| layer.lsn != lsn));
        self.did("expired");
        self.settle()?;
        self.release()
    }

    /// Lets go of kept moments that nothing holds, but for those that others need; not while a merge is being done.
    pub(super) fn release(&mut self) -> Outcome<()> {
        if self.rig.writer.manifest().merge.is_some() {
            return Ok(());
        }
        let held = retention::held(self.rig.writer.manifest());
        if held != self.held() {
            return Err(format!("{held:?} are held, and {:?} were to be", self.held()));
        }
        if let Some((_, numbers)) = retention::release(&mut self.rig.writer, &held) {
            self.settle()?;
            let storage = Arc::clone(&self.rig.storage);
            numbers.into_iter().try_for_each(|number| kept::remove(storage.as_ref(), number)).map_err(said)?;
            self.did("released");
        }
        while self.kept.first().is_some_and(|lsn| !held.contains(lsn)) {
            self.kept.pop_first();
        }
        remove_bases(self.rig.storage.as_ref(), self.rig.writer.manifest()).map_err(said)
    }

    /// Merges up to a moment that is picked.
    pub(super) fn merge_to(&mut self, pick: u16, pieces: Option<u8>) -> Outcome<()> {
        self.flush()?;
        self.rig.writer.roll();
        self.settle()?;
        let Some(lsn) = self.moment(pick) else { return Ok(()) };
        let (manifest, limit) = (self.rig.writer.manifest(), merge_limit(self.rig.writer.manifest()));
        let beyond = retention::stop(manifest, &retention::held(manifest), Lsn(u64::MAX));
        if beyond.is_none() != limit.is_some() {
            return Err(format!("a merge may stop at {beyond:?} where disks without a base set the limit {limit:?}"));
        }
        self.advance(limit.map_or(lsn, |limit| limit.min(lsn)), pieces)
    }

    /// Merges up to a moment as an owner does, stopping at what is held; one that was left first. Where one is left after some
    /// pieces, or when everything is written but its name, that is all.
    pub(crate) fn advance(&mut self, target: Lsn, pieces: Option<u8>) -> Outcome<()> {
        // What sessions stand on goes.
        self.open.clear();
        self.belief.target = self.belief.target.max(target);
        self.note();
        loop {
            if let Some(to) = self.rig.writer.manifest().merge {
                self.merge(to, pieces)?;
                if pieces.is_some() {
                    self.did("merge left");
                    return Ok(());
                }
                continue;
            }
            let held = retention::held(self.rig.writer.manifest());
            let Some(lsn) = retention::stop(self.rig.writer.manifest(), &held, target) else { break };
            let (replica, on) = (self.replica()?, self.timeline_of(lsn));
            let stamp = replica.exact(on, lsn).map_err(said)?.stamp;
            let keep = retention::to_keep(self.rig.writer.manifest(), &held, replica.catalogue());
            if let Some(keep) = &keep {
                let id = Timeline::new(self.ids()()).unwrap();
                let storage = self.rig.storage.as_ref();
                kept::create(storage, self.rig.writer.manifest(), keep.number, id, NOW).map_err(said)?;
                self.did("kept");
            }
            let to = StampedMoment { timeline: on, lsn, stamp };
            let point = retention::point_at(replica.catalogue(), &to);
            retention::begin(&mut self.rig.writer, to, point, keep);
            let passed = self.oldest.replace(lsn).filter(|passed| self.held().contains(passed));
            self.kept.extend(passed);
            self.settle()?;
        }
        self.release()
    }

    fn merge(&mut self, to: StampedMoment, pieces: Option<u8>) -> Outcome<()> {
        let (storage, replica) = (Arc::clone(&self.rig.storage), self.replica()?);
        let manifest = self.rig.writer.manifest().clone();
        let (newest, ids) = (manifest.kept.last().map(|kept| kept.number), self.ids());
        let open = |number| Space::open(storage.as_ref(), number, (0, u64::MAX), (&self.rig.keys, ids), NOW);
        let space = newest.map(open).transpose().map_err(said)?;
        let path = replica.path(to.timeline, to.lsn).map_err(said)?;
        let mut merge = Merge::begin(&storage, &manifest, to, &path, replica.bases(), space).map_err(said)?;
        for piece in 0.. {
            if pieces == Some(piece) || !merge.step(NOW, 16 << 10).map_err(said)? {
                break;
            }
            if let Some(look) = self.looks.filter(|_| piece < 2) {
                look(self).map_err(|why| format!("in the midst of a merge: {why}"))?;
            }
        }
        if pieces.is_some() {
            return Ok(());
        }
        let bases = merge.finish(NOW).map_err(said)?;
        retention::end(&mut self.rig.writer, &bases);
        self.settle()?;
        self.did("merged");
        merge::clean_up(storage.as_ref()).map_err(said)
    }

    pub(super) fn index(&mut self) -> Outcome<()> {
        let reader = self.rig.reader();
        while let Some(task) = self.rig.writer.next_index_merge() {
            let mut merge = IndexMerge::new(&reader, &self.rig.writer.snapshot(), task).map_err(said)?;
            let run = loop {
                if let Some(run) = merge.step(1 << 16).map_err(said)? {
                    break run;
                }
            };
            self.rig.writer.publish_run(run).ok_or("a run is not taken")?;
            self.did("index merged");
            // Not before the run is named for good.
            self.empty(&reader)?;
            self.settle()?;
        }
        self.empty(&reader)?;
        self.settle()
    }

    /// Empties the footers that are to be.
    fn empty(&mut self, reader: &Arc<Reader>) -> Outcome<()> {
        while let Some(task) = self.rig.writer.next_emptying() {
            let mut emptying = IndexEmptying::new(reader, task);
            while !emptying.step().map_err(said)? {}
            self.rig.writer.emptied(emptying.run()).ok_or("a run that is emptied is gone")?;
            self.did("emptied");
        }
        Ok(())
    }
}
