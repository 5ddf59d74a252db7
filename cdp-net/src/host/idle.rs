//! Changing a directory that nobody protects.

use super::{Change, Store, document};
use crate::clock;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{Executor, Manifest, Opened, Options, Snapshot, Writer, WriterState, drain};
use cdp_core::media::Storage;
use cdp_core::replica::JOURNAL_DIRECTORY;
use cdp_core::trust::Keyring;
use std::sync::{Arc, Mutex, PoisonError};

/// Opens the store for writing at its first change, and not before: a look changes nothing.
#[derive(Debug)]
pub struct IdleStore {
    storage: Arc<dyn Storage>,
    /// Those of the replica that is hosted, if it is sealed at rest: what is drawn for its writer, who reads it knows.
    keys: Arc<Keyring>,
    writer: Mutex<Option<(Writer, Executor)>>,
}

impl IdleStore {
    /// A store whose directory the caller owns.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, keys: Arc<Keyring>) -> Self {
        Self { storage, keys, writer: Mutex::new(None) }
    }
}

impl Store for IdleStore {
    fn change(&self, change: Change) -> Result<(Manifest, Snapshot), Problem> {
        let mut held = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (writer, executor) = match held.as_mut() {
            Some(opened) => opened,
            None => {
                let witness = crate::protect::witness(self.storage.as_ref());
                let holder = self.keys.of_stores();
                let opened = cdp_core::journal::open_with(self.storage.as_ref(), JOURNAL_DIRECTORY, witness, &holder);
                let opened = opened.map_err(|error| document::unreadable(&error.into()))?;
                let opened = Opened { keys: Arc::clone(&self.keys), ..opened };
                // What is merged into bases is sealed by a key of this process.
                let key = holder.draw(opened.manifest.replica, &mut identity, clock::wall());
                let clean = opened.manifest.clean;
                // Nothing is appended: the smallest segments are enough.
                let options = Options { segment_bytes: 0, ..Options::default() };
                let mut writer = Writer::new(opened, options, Box::new(identity));
                if let Some(key) = key {
                    writer.seal_at_rest(key).map_err(|error| document::locked(&error))?;
                }
                writer.edit(|manifest| manifest.clean = clean);
                held.insert((writer, Executor::new(Arc::clone(&self.storage))))
            }
        };
        let generation = change(writer);
        drain(writer, executor, clock::mono());
        if writer.manifest_durable() >= generation {
            return Ok((writer.manifest().clone(), writer.snapshot()));
        }
        if let Some(needed) = writer.lacks() {
            let message = format!("{} has no room for the change: {needed} bytes are needed", self.storage.path());
            return Err(Problem::new(ProblemClass::Failed, "no-space", message).hint("make room on that disk"));
        }
        let message = match writer.state() {
            WriterState::Failed(error) => error.to_string(),
            state => format!("the change could not be stored: the replica's media are {state:?}"),
        };
        Err(Problem::new(ProblemClass::Failed, "not-stored", message))
    }
}
