//! Questions and edits on their way through the pump, whose writer owns the journal and its manifest.

use super::pump::Message;
use crate::host::{Change, Store};
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{Manifest, Snapshot, Writer};
use std::sync::mpsc::{RecvTimeoutError, Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a change of the manifest may take before its caller is told that it is not stored.
pub(super) const EDIT_PATIENCE: Duration = Duration::from_secs(20);
/// The same where there is no room for it: long enough for a moment's lack.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at what another thread brings about.
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// The way to the pump.
pub(super) struct PumpStore {
    pump: Mutex<Sender<Message>>,
}

impl PumpStore {
    pub(super) fn new(pump: Sender<Message>) -> Self {
        Self { pump: Mutex::new(pump) }
    }

    pub(super) fn sender(&self) -> Sender<Message> {
        self.pump.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn send(&self, message: Message) -> bool {
        self.pump.lock().unwrap_or_else(PoisonError::into_inner).send(message).is_ok()
    }

    /// Asks the pump's writer and waits for the answer. `Disconnected`: the pump has ended; `Timeout`: it takes too long.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Writer) -> T + Send + 'static,
        patience: Duration,
    ) -> Result<T, RecvTimeoutError> {
        let (answer, answered) = sync_channel(1);
        let call = Message::Call(Box::new(move |writer| {
            // Who asked may have given up.
            let _ = answer.send(question(writer));
        }));
        // Where nobody takes the question it is dropped, and that is the answer.
        self.send(call);
        answered.recv_timeout(patience)
    }
}

impl Store for Arc<PumpStore> {
    fn change(&self, change: Change) -> Result<(Manifest, Snapshot), Problem> {
        let not_stored = |message: &str| Problem::new(ProblemClass::Failed, "not-stored", message);
        let begun = Instant::now();
        let Ok(generation) = self.ask(change, EDIT_PATIENCE) else {
            return Err(not_stored("the replica's journal has stopped: the change was not stored"));
        };
        loop {
            let look = move |writer: &mut Writer| {
                if writer.manifest_durable() >= generation {
                    Ok((writer.manifest().clone(), writer.snapshot()))
                } else {
                    Err(writer.lacks())
                }
            };
            match self.ask(look, EDIT_PATIENCE) {
                Ok(Ok(stored)) => return Ok(stored),
                Ok(Err(Some(_))) if begun.elapsed() >= ROOM_PATIENCE => {
                    let message = "the replica's disk has no room for the change: it is not stored";
                    return Err(Problem::new(ProblemClass::Failed, "no-space", message).hint(
                        "make room: the change is kept in mind and stored then, if the protection still goes on",
                    ));
                }
                Ok(Err(_)) if begun.elapsed() < EDIT_PATIENCE => std::thread::sleep(LOOK),
                _ => return Err(not_stored("the replica's media do not take the change")),
            }
        }
    }
}
