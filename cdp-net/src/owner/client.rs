//! The asking side of the control socket.

use super::lines::{LineError, Lines, send};
use super::message::{Answer, Envelope, Hello, PROTOCOL, Request, VERSION};
use super::server::ANSWER_MAX;
use super::socket::{SOCKET_FILE, connect_in};
use crate::report::Problem;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// To connect and to be greeted.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// From a request to the first byte of its answer, unless [`ControlClient::set_patience`] says otherwise.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the owner of a replica directory. What it holds there ends with it.
pub struct ControlClient {
    path: PathBuf,
    stream: UnixStream,
    lines: Lines,
    hello: Hello,
    patience: Duration,
    last_id: u64,
    /// After a failed exchange nobody knows which answer comes next.
    broken: bool,
}

impl fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlClient").field("path", &self.path).field("owner", &self.hello).finish_non_exhaustive()
    }
}

/// Why the owner gave no answer that can be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("{} has no owner that answers", dir.display())]
    NoOwner {
        /// The replica directory.
        dir: PathBuf,
    },
    /// The owner said no.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// The socket is another user's.
    #[error("{} belongs to {}: only that user and root may ask the replica's owner", path.display(), user(*uid))]
    Denied {
        /// The socket.
        path: PathBuf,
        /// Whose it is, if that can be seen.
        uid: Option<u32>,
    },
    /// The connection failed or its owner ended.
    #[error("the owner behind {} does not answer: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is not what this version understands.
    #[error("the owner behind {} gave an answer that is not understood: {what}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

fn user(uid: Option<u32>) -> String {
    uid.map_or_else(|| "another user".into(), |uid| format!("user {uid}"))
}

impl ControlClient {
    /// Connects to the owner of `dir`, if it has one.
    ///
    /// # Errors
    /// [`ClientError::NoOwner`] when nobody listens; otherwise what went wrong on the way.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        let path = dir.join(SOCKET_FILE);
        let failed = |source| ClientError::Io { path: path.clone(), source };
        let stream = connect_in(dir, GREETING_PATIENCE).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if dir.is_dir() => {
                ClientError::NoOwner { dir: dir.to_owned() }
            }
            io::ErrorKind::PermissionDenied => {
                let uid = std::fs::symlink_metadata(&path).ok().map(|found| found.uid());
                ClientError::Denied { path: path.clone(), uid }
            }
            _ => failed(source),
        })?;
        let lines = Lines::new(stream.try_clone().map_err(failed)?, ANSWER_MAX);
        let hello = Hello { protocol: PROTOCOL.into(), version: VERSION, pid: std::process::id(), since: None };
        let greeting = serde_json::to_vec(&hello).map_err(|error| failed(error.into()))?;
        let patience = GREETING_PATIENCE;
        let mut client = Self { path, stream, lines, hello, patience, last_id: 0, broken: false };
        client.hello = client.exchange(0, &greeting)?;
        client.patience = ANSWER_PATIENCE;
        Ok(client)
    }

    /// What the owner said of itself: its process and since when it owns the directory.
    #[must_use]
    pub fn owner(&self) -> &Hello {
        &self.hello
    }

    /// How long an answer may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Asks and waits for the answer, whose type [`Request`] names.
    ///
    /// # Errors
    /// [`ClientError::Refused`] is the owner's own word; after any other error the connection is of no use any more.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.last_id += 1;
        let id = self.last_id;
        let line = serde_json::to_vec(&Envelope { id, request });
        let line = line.map_err(|error| ClientError::Io { path: self.path.clone(), source: error.into() })?;
        self.exchange(id, &line)
    }

    fn exchange<T: DeserializeOwned>(&mut self, id: u64, line: &[u8]) -> Result<T, ClientError> {
        if self.broken {
            let source = io::Error::new(io::ErrorKind::NotConnected, "an earlier request failed");
            return Err(ClientError::Io { path: self.path.clone(), source });
        }
        let result = self.exchange_once(id, line);
        self.broken = !matches!(&result, Ok(_) | Err(ClientError::Refused(_)));
        result
    }

    fn exchange_once<T: DeserializeOwned>(&mut self, id: u64, line: &[u8]) -> Result<T, ClientError> {
        let path = self.path.clone();
        let failed = |error: LineError| {
            let source = match error {
                LineError::Io(source) => source,
                LineError::Timeout => io::ErrorKind::TimedOut.into(),
                other => io::Error::new(io::ErrorKind::UnexpectedEof, other.to_string()),
            };
            ClientError::Io { path: path.clone(), source }
        };
        // A refused connection may be closed before the request is sent: its reason waits to be read all the same.
        let sent = send(&self.stream, line, self.patience);
        let answer = match self.lines.next(Some(self.patience), self.patience) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(failed(sent.err().unwrap_or(LineError::Torn))),
            Err(error) => return Err(failed(sent.err().unwrap_or(error))),
        };
        let wrong = |what: String| ClientError::Answer { path: self.path.clone(), what };
        let answer: Answer = serde_json::from_slice(&answer).map_err(|error| wrong(error.to_string()))?;
        match (answer.ok, answer.error) {
            // Number 0 is about the connection itself.
            (_, Some(problem)) if answer.id == id || answer.id == 0 => Err(problem.into()),
            _ if answer.id != id => Err(wrong(format!("it is number {}, not {id}", answer.id))),
            (ok, _) => serde_json::from_value(ok.unwrap_or_default()).map_err(|error| wrong(error.to_string())),
        }
    }
}
