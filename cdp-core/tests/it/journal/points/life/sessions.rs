//! The sessions of a life: up to three at a time, each a store of its own.

use super::super::super::kit::*;
use super::super::step::After;
use super::{Life, NOW, Outcome, said};
use cdp_core::frame::{Compression, Payload};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::session::{self, Session, SessionOptions};
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// At most so many at a time.
const SESSIONS: u8 = 3;

/// What a session wrote: each of one block, with its number in every byte.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(crate) info: SessionInfo,
    pub(crate) writes: Vec<(u16, u64)>,
}

impl Overlay {
    /// Bytes of the disks after so many of its writes.
    fn show(&self, disks: &mut BTreeMap<u16, Vec<u8>>, count: usize) -> Outcome<()> {
        let (number, block) = self.writes[count - 1];
        let at = (block * BLOCK) as usize;
        disks.get_mut(&number).ok_or("no such disk")?[at..at + BLOCK as usize].fill(count as u8);
        Ok(())
    }
}

impl Life {
    fn store(&self, info: &SessionInfo) -> Outcome<Arc<dyn Storage>> {
        self.rig.storage.sub(&format!("sessions/{}", info.name)).map_err(said)
    }

    /// The disks that a session that begins there can write to, and how many blocks of each.
    fn writable(&self, fork: Lsn) -> Vec<(u16, u64)> {
        let complete = self.past.at(fork).into_iter().filter(|(_, disk)| disk.complete);
        let blocks = complete.map(|(number, disk)| (number, disk.bytes.len() as u64 / BLOCK));
        blocks.filter(|(_, blocks)| *blocks > 0).collect()
    }

    fn make_session(&mut self, name: String, fork: u16) -> Outcome<Option<Timeline>> {
        let Some(fork) = self.moment(fork).filter(|fork| !self.writable(*fork).is_empty()) else { return Ok(None) };
        let (parent, id, created) = (self.timeline_of(fork), Timeline::new(self.ids()()).unwrap(), WallTime(1));
        let info = SessionInfo { name, timeline: id, parent, fork, kind: SessionKind::Named, created };
        let (state, role, opened, parent) = (TimelineState::Open, TimelineRole::Session, created, Some(parent));
        let branch = TimelineInfo { id, number: 1, parent, fork, last: None, state, role, opened };
        // What is there was never named, or is not any more.
        self.remove_store(&info)?;
        let store = self.store(&info)?;
        session::create(store.as_ref(), self.rig.writer.manifest(), &info.name, branch).map_err(said)?;
        let entry = info.clone();
        self.rig.writer.edit(|manifest| manifest.sessions.push(entry));
        self.overlays.insert(id, Overlay { info, writes: Vec::new() });
        self.settle()?;
        self.belief.sessions.insert(id, 0);
        self.note();
        Ok(Some(id))
    }

    fn remove_store(&self, info: &SessionInfo) -> Outcome<()> {
        let store = self.store(info)?;
        store.list("").map_err(said)?.iter().try_for_each(|name| store.remove(name)).map_err(said)
    }

    fn named(&self, name: &str) -> Option<Timeline> {
        let sessions = &self.rig.writer.manifest().sessions;
        sessions.iter().find(|session| session.name == name).map(|session| session.timeline)
    }

    /// Writes to a session, which is made or opened where it is not.
    pub(super) fn session(
        &mut self,
        (which, fork): (u8, u16),
        writes: &[(u8, u8)],
        (flush, after): (bool, After),
    ) -> Outcome<()> {
        let name = format!("session {}", which % SESSIONS);
        let known = self.named(&name).map_or_else(|| self.make_session(name, fork), |id| Ok(Some(id)))?;
        let Some(id) = known else { return Ok(()) };
        let session = self.open.remove(&id).map_or_else(|| self.open_session(id), Ok)?;
        let disks = self.writable(self.overlays[&id].info.fork);
        for (number, block) in writes {
            let (number, blocks) = disks[usize::from(*number) % disks.len()];
            let block = u64::from(*block) % blocks;
            // Known before it may be on the media.
            let writes = &mut self.overlays.get_mut(&id).ok_or("it is known")?.writes;
            writes.push((number, block));
            let payload = Payload::new(block * BLOCK, vec![writes.len() as u8; BLOCK as usize].into()).map_err(said)?;
            session.write(NOW, disk(number), payload).map_err(said)?;
        }
        if flush {
            session.flush(NOW).map_err(said)?;
        }
        if after == After::Closed {
            session.close(NOW).map_err(said)?;
        }
        if flush || after == After::Closed {
            self.belief.sessions.insert(id, self.overlays[&id].writes.len());
            self.note();
        }
        if after == After::Open {
            self.open.insert(id, session);
            self.did(if self.open.len() > 1 { "sessions open" } else { "session open" });
        }
        self.did("session");
        Ok(())
    }

    pub(super) fn drop_session(&mut self, which: u8) -> Outcome<()> {
        let sessions = &self.rig.writer.manifest().sessions;
        let Some(info) = sessions.get(usize::from(which) % sessions.len().max(1)).cloned() else { return Ok(()) };
        self.open.remove(&info.timeline);
        self.belief.sessions.remove(&info.timeline);
        self.note();
        self.rig.writer.edit(|manifest| manifest.sessions.retain(|session| session.timeline != info.timeline));
        self.settle()?;
        self.remove_store(&info)?;
        self.did("session dropped");
        self.release()
    }

    fn open_session(&mut self, id: Timeline) -> Outcome<Session> {
        let info = self.overlays[&id].info.clone();
        let moment = self.replica()?.view(info.parent, info.fork).map_err(said)?;
        let (compression, keys) = (Compression::None, self.rig.keys.of_stores());
        let options = SessionOptions { moment, keep_free_bytes: 0, segment_bytes: u64::MAX, compression, keys };
        let session = Session::open(&self.store(&info)?, options, self.ids(), NOW).map_err(said)?;
        self.check_session(id, &session, false)?;
        Ok(session)
    }

    /// A session shows a first part of its writes, and all that were flushed; of one that was open all the time, all. It goes on
    /// from there.
    fn check_session(&mut self, id: Timeline, session: &Session, all: bool) -> Outcome<()> {
        let overlay = self.overlays.get(&id).ok_or_else(|| format!("nobody made the session {id}"))?;
        let complete = self.past.at(overlay.info.fork).into_iter().filter(|(_, disk)| disk.complete);
        let mut shown: BTreeMap<_, _> = complete.map(|(number, disk)| (number, disk.bytes)).collect();
        let mut found = BTreeMap::new();
        for (number, bytes) in &shown {
            let mut read = vec![0xee; bytes.len()];
            session.read(NOW, disk(*number), 0, &mut read).map_err(said)?;
            found.insert(*number, read);
        }
        let least = if all { overlay.writes.len() } else { self.belief.sessions.get(&id).copied().unwrap_or(0) };
        for count in 0..=overlay.writes.len() {
            if count > 0 {
                overlay.show(&mut shown, count)?;
            }
            if count >= least && shown == found {
                self.overlays.get_mut(&id).ok_or("it is known")?.writes.truncate(count);
                if !all {
                    // Whoever opens its store makes what is found there last.
                    self.belief.sessions.insert(id, count);
                    self.note();
                }
                return Ok(());
            }
        }
        Err(format!("{:?} shows no first part of its writes with {least} of them", overlay.info.name))
    }

    /// Every session reads as it should; those that were open stay so.
    pub(crate) fn check_sessions(&mut self) -> Outcome<()> {
        let ids: Vec<_> = self.rig.writer.manifest().sessions.iter().map(|session| session.timeline).collect();
        for id in ids {
            match self.open.remove(&id) {
                Some(session) => {
                    self.check_session(id, &session, true)?;
                    self.open.insert(id, session);
                }
                None => drop(self.open_session(id)?),
            }
        }
        Ok(())
    }
}
