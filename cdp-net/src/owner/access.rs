//! What a command needs that works with and without an owner.

use super::client::{ClientError, ControlClient};
use super::lock::{Owner, OwnerError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Between two looks at a directory whose owner is beginning or ending.
const PAUSE: Duration = Duration::from_millis(20);

/// A way to a replica directory.
#[derive(Debug)]
pub enum Access {
    /// Nobody owned it: now this process does, or reads it together with others where nobody can write
    /// ([`Owner::is_read_only`]).
    Owner(Owner),
    /// Another process does, and listens.
    Client(ControlClient),
}

/// Why there is no way.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The lock is held by somebody who does not answer.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The owner answers, and not well.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Access {
    /// Asks the owner or becomes it. An owner that holds the lock and does not listen is beginning, ending, or a short
    /// command of the same kind: it is given `patience`.
    ///
    /// # Errors
    /// [`OwnerError::Owned`] when that was not enough; otherwise what went wrong.
    pub fn open(dir: &Path, patience: Duration) -> Result<Self, AccessError> {
        let deadline = Instant::now() + patience;
        loop {
            match ControlClient::connect(dir) {
                Ok(client) => return Ok(Self::Client(client)),
                Err(ClientError::NoOwner { .. }) => {}
                // It ended between our connecting and its greeting; its lock goes a moment later.
                Err(ClientError::Io { source, .. }) if has_ended(&source) && Instant::now() < deadline => {}
                Err(ClientError::Io { .. }) if Instant::now() < deadline && !super::is_owned(dir)? => {}
                Err(error) => return Err(error.into()),
            }
            let acquired = match Owner::acquire(dir) {
                Err(error) if error.is_read_only() => Owner::acquire_to_read(dir),
                acquired => acquired,
            };
            match acquired {
                Ok(owner) => return Ok(Self::Owner(owner)),
                Err(OwnerError::Owned { .. }) if Instant::now() < deadline => sleep(PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether this is how a connection fails whose other side closed it.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
