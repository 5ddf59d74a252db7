//! The one session of a life.

use super::super::super::kit::*;
use super::{Life, NOW, Outcome, Overlay, said};
use cdp_core::frame::{Compression, Payload};
use cdp_core::journal::*;
use cdp_core::replica::session::{self, Session, SessionOptions};
use cdp_core::types::*;

/// Where it has its store.
const OVERLAY: &str = "sessions/1";
const OVERLAY_TIMELINE: u8 = 250;

impl Life {
    /// Makes a session, or writes more to the one that is there.
    pub(super) fn overlay(&mut self) -> Outcome<()> {
        if self.overlay.is_none() {
            let Some(fork) = self.any_of() else { return Ok(()) };
            if !self.past.at(fork).values().any(|disk| disk.complete && disk.bytes.len() as u64 >= BLOCK) {
                return Ok(());
            }
            let (parent, id, created) = (self.timeline_of(fork), timeline(OVERLAY_TIMELINE), WallTime(1));
            let (name, kind) = ("one".to_owned(), SessionKind::Named);
            let info = SessionInfo { name, timeline: id, parent, fork, kind, created };
            let (state, role, opened) = (TimelineState::Open, TimelineRole::Session, created);
            let parent = Some(parent);
            let branch = TimelineInfo { id, number: 1, parent, fork, last: None, state, role, opened };
            // What is there was never named.
            let store = self.rig.storage.sub(OVERLAY).map_err(said)?;
            for name in store.list("").map_err(said)? {
                store.remove(&name).map_err(said)?;
            }
            session::create(store.as_ref(), self.rig.writer.manifest(), "one", branch).map_err(said)?;
            let entry = info.clone();
            self.rig.writer.edit(|manifest| manifest.sessions.push(entry));
            self.overlay = Some(Overlay { info, writes: Vec::new() });
            self.settle()?;
        }
        let Some(mut overlay) = self.overlay.clone() else { return Ok(()) };
        let session = self.open_session(&overlay)?;
        let disks: Vec<_> = self.past.at(overlay.info.fork).into_iter().filter(|(_, disk)| disk.complete).collect();
        for _ in 0..3 {
            let (number, there) = &disks[self.dice.below(disks.len() as u64) as usize];
            let blocks = there.bytes.len() as u64 / BLOCK;
            if blocks == 0 {
                continue;
            }
            let block = self.dice.below(blocks);
            overlay.writes.push((*number, block));
            // Known before it may be on the media.
            self.overlay = Some(overlay.clone());
            let fill = vec![overlay.writes.len() as u8; BLOCK as usize];
            let payload = Payload::new(block * BLOCK, fill.into()).map_err(said)?;
            session.write(NOW, disk(*number), payload).map_err(said)?;
        }
        session.flush(NOW).map_err(said)?;
        self.belief.flushed = overlay.writes.len();
        self.note();
        self.did("session");
        if self.dice.below(2) == 0 { session.close(NOW).map_err(said) } else { Ok(()) }
    }

    pub(in super::super) fn open_session(&mut self, overlay: &Overlay) -> Outcome<Session> {
        let moment = self.replica()?.view(overlay.info.parent, overlay.info.fork).map_err(said)?;
        let (compression, keys) = (Compression::None, self.rig.keys.of_stores());
        let options = SessionOptions { moment, keep_free_bytes: 0, segment_bytes: u64::MAX, compression, keys };
        let store = self.rig.storage.sub(OVERLAY).map_err(said)?;
        Session::open(&store, options, self.ids(), NOW).map_err(said)
    }
}
