//! Writable sessions of a replica: who has one open, and what becomes of it.
//!
//! A session's store is made before the manifest names it, and leaves the manifest before its files go: a crash leaves files
//! that nobody names, and those are removed when the next owner begins to protect.

use super::{Host, document, lock};
use crate::owner::Side;
use crate::random::identity;
use crate::report::{Problem, ProblemClass, Session};
use cdp_core::journal::{SessionInfo, SessionKind, TimelineInfo, TimelineRole, TimelineState};
use cdp_core::media::Storage;
use cdp_core::replica::catalogue::Moment;
use cdp_core::types::{NAME_MAX, Timeline};
use cdp_core::when::When;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// Where the stores of sessions are, inside the replica's directory.
pub const SESSIONS_DIRECTORY: &str = "sessions";
/// The most sessions at once.
const SESSIONS_MAX: usize = 1 << 12;

/// The directory of a session's store, inside the replica's.
#[must_use]
pub fn session_directory(timeline: Timeline) -> String {
    format!("{SESSIONS_DIRECTORY}/{}", timeline.short())
}

/// A session that somebody has open; given back when this is dropped, and forgotten then if it is a temporary one.
#[derive(Debug)]
pub struct OpenedSession {
    /// What it is.
    pub report: Session,
    timeline: Timeline,
    temporary: bool,
    host: Weak<Host>,
    open: Arc<Mutex<BTreeSet<Timeline>>>,
}

impl OpenedSession {
    /// Its branch of history.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }
}

impl Drop for OpenedSession {
    fn drop(&mut self) {
        if self.temporary
            && let Some(host) = self.host.upgrade()
        {
            // What cannot be removed now is removed by the next owner.
            let _ = host.forget_session(self.timeline);
        }
        lock(&self.open).remove(&self.timeline);
    }
}

fn refused(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Refused, code, message)
}

impl Host {
    /// All sessions.
    ///
    /// # Errors
    /// When their moments cannot be read.
    pub(super) fn sessions(&self) -> Result<Vec<Session>, Problem> {
        let infos = self.replica().manifest().sessions.clone();
        infos.iter().map(|info| self.session_report(info)).collect()
    }

    fn session_report(&self, info: &SessionInfo) -> Result<Session, Problem> {
        let at = {
            let replica = self.replica();
            let moment =
                replica.exact(info.parent, info.fork).map_err(|error| document::unresolved(&replica, &error))?;
            document::at(&replica, &moment)
        };
        Ok(Session {
            name: document::session_name(info),
            timeline: info.timeline.into(),
            at,
            bytes: directory_bytes(self.storage().as_ref(), &session_directory(info.timeline)),
            open: lock(&self.open_sessions).contains(&info.timeline),
        })
    }

    /// Makes a session, or opens a named one again.
    ///
    /// # Errors
    /// When somebody has it open, the moment is not restorable, or the media do not take it.
    pub fn open_session(
        &self,
        at: Option<&When>,
        side: Option<Side>,
        name: Option<String>,
    ) -> Result<OpenedSession, Problem> {
        if let Some(name) = name.as_ref().filter(|name| name.is_empty() || name.len() > NAME_MAX) {
            let message = format!("a session's name has 1 to {NAME_MAX} bytes, not {}", name.len());
            return Err(Problem::new(ProblemClass::Usage, "name", message));
        }
        // One at a time: of two who open, or open and drop, the second sees what the first did.
        let _opening = lock(&self.opening);
        let known = |info: &&SessionInfo| info.kind == SessionKind::Named && Some(&info.name) == name.as_ref();
        let found = self.replica().manifest().sessions.iter().find(known).cloned();
        let temporary = name.is_none();
        let info = match (found, at) {
            (Some(info), None) => info,
            (Some(info), Some(at)) => {
                let moment = self.moment(at, side)?;
                if (moment.timeline, moment.lsn) != (info.parent, info.fork) {
                    let message = format!("the session {:?} is there already and began at another moment", info.name);
                    let hint = "leave out --at to open it again, drop it, or take another name";
                    return Err(refused("session-exists", message).hint(hint));
                }
                info
            }
            (None, Some(at)) => {
                // Held until the manifest holds it.
                let (moment, _hold) = self.hold(at, side)?;
                self.make_session(&moment, name)?
            }
            (None, None) => {
                let message = format!("there is no session {:?}", name.unwrap_or_default());
                let hint = "give --at, so that one is made; `cdp status` lists those that there are";
                return Err(refused("no-session", message).hint(hint));
            }
        };
        let taken = || refused("session-open", format!("the session {:?} is open in another process", info.name));
        if self.has_writer(info.timeline) {
            return Err(taken().hint("end that mount first"));
        }
        let report = self.session_report(&info)?;
        if !lock(&self.open_sessions).insert(info.timeline) {
            return Err(taken().hint("end that mount first"));
        }
        Ok(OpenedSession {
            report: Session { open: true, ..report },
            timeline: info.timeline,
            temporary,
            host: self.me.clone(),
            open: Arc::clone(&self.open_sessions),
        })
    }

    fn make_session(&self, moment: &Moment, name: Option<String>) -> Result<SessionInfo, Problem> {
        if self.replica().manifest().sessions.len() >= SESSIONS_MAX {
            let message = format!("there are {SESSIONS_MAX} sessions, the most that can be");
            return Err(refused("sessions", message).hint("drop some: `cdp status` lists them"));
        }
        let Some(timeline) = Timeline::new(identity()) else { unreachable!("an identity is never zero") };
        let created = crate::clock::wall();
        let kind = if name.is_some() { SessionKind::Named } else { SessionKind::Temporary };
        let name = name.unwrap_or_else(|| timeline.short());
        let (parent, fork) = (moment.timeline, moment.lsn);
        let info = SessionInfo { name: name.clone(), timeline, parent, fork, kind, created };
        let branch = TimelineInfo {
            id: timeline,
            number: 1,
            parent: Some(parent),
            fork,
            last: None,
            state: TimelineState::Open,
            role: TimelineRole::Session,
            opened: created,
        };
        let manifest = self.replica().manifest().clone();
        let store = self.storage().sub(&session_directory(timeline));
        let made = store
            .map_err(Into::into)
            .and_then(|store| cdp_core::replica::session::create(store.as_ref(), &manifest, &name, branch));
        made.map_err(|error| document::unreadable(&error.into()))?;
        let entry = info.clone();
        self.edit(Box::new(move |manifest| {
            // One that was refused for lack of room may have been stored since: nobody has used it.
            manifest.sessions.retain(|known| known.name != entry.name);
            manifest.sessions.push(entry);
        }))?;
        Ok(info)
    }

    /// Forgets a named session.
    ///
    /// # Errors
    /// When there is none, or somebody has it open.
    pub(super) fn drop_session(&self, name: &str) -> Result<(), Problem> {
        let named = |info: &&SessionInfo| info.kind == SessionKind::Named && info.name == name;
        let found = self.replica().manifest().sessions.iter().find(named).map(|info| info.timeline);
        let Some(timeline) = found else {
            let message = format!("there is no session {name:?}");
            return Err(refused("no-session", message).hint("`cdp status` lists those that there are"));
        };
        let _opening = lock(&self.opening);
        if lock(&self.open_sessions).contains(&timeline) || self.has_writer(timeline) {
            let message = format!("the session {name:?} is open");
            return Err(refused("session-open", message).hint("end its mount first"));
        }
        self.forget_session(timeline)
    }

    /// Whether some process writes in the session, known to this owner or to one before it: writers lock its directory.
    fn has_writer(&self, timeline: Timeline) -> bool {
        let directory = Path::new(&self.storage().path()).join(session_directory(timeline));
        crate::owner::is_owned(&directory).unwrap_or(false)
    }

    fn forget_session(&self, timeline: Timeline) -> Result<(), Problem> {
        self.edit(Box::new(move |manifest| manifest.sessions.retain(|info| info.timeline != timeline)))?;
        remove_directory(self.storage().as_ref(), &session_directory(timeline));
        Ok(())
    }

    /// Forgets temporary sessions whose mount is gone, and files that no session names. For an owner that begins.
    ///
    /// # Errors
    /// When the media do not take it.
    pub fn clean_sessions(&self) -> Result<(), Problem> {
        let sessions = self.replica().manifest().sessions.clone();
        let ended = |info: &&SessionInfo| info.kind == SessionKind::Temporary && !self.has_writer(info.timeline);
        let ended: BTreeSet<_> = sessions.iter().filter(ended).map(|info| info.timeline).collect();
        if !ended.is_empty() {
            self.edit(Box::new(move |manifest| manifest.sessions.retain(|info| !ended.contains(&info.timeline))))?;
        }
        let storage = self.storage();
        let listed = storage.list(SESSIONS_DIRECTORY).unwrap_or_default();
        let named: BTreeSet<_> = self.replica().manifest().sessions.iter().map(|info| info.timeline.short()).collect();
        for name in listed.iter().filter(|name| !named.contains(*name)) {
            remove_directory(storage.as_ref(), &format!("{SESSIONS_DIRECTORY}/{name}"));
        }
        Ok(())
    }
}

pub(super) fn directory_bytes(storage: &dyn Storage, directory: &str) -> u64 {
    let names = storage.list(directory).unwrap_or_default();
    names.iter().filter_map(|name| storage.open(&format!("{directory}/{name}"), false).ok()?.len().ok()).sum()
}

/// Removes a session's files; what cannot be removed now is found again by the next owner.
fn remove_directory(storage: &dyn Storage, directory: &str) {
    for name in storage.list(directory).unwrap_or_default() {
        let _ = storage.remove(&format!("{directory}/{name}"));
    }
    let _ = storage.remove_dir(directory);
}
