//! Lines of bounded length in bounded time, over a unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why no line came.
#[derive(Debug, Error)]
pub(super) enum LineError {
    #[error("the line is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the connection ended in the middle of a line")]
    Torn,
    #[error("nothing came in time")]
    Timeout,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The receiving side of a connection.
pub(super) struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no line end.
    searched: usize,
    limit: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(super) fn new(stream: UnixStream, limit: usize) -> Self {
        Self { stream, buffer: Vec::new(), searched: 0, limit }
    }

    /// The next line without its end, or `None` at the end of the connection. Its first byte may take `idle` (`None`: for
    /// ever), the whole line `patience` from then on, however slowly bytes trickle in.
    pub(super) fn next(&mut self, idle: Option<Duration>, patience: Duration) -> Result<Option<Vec<u8>>, LineError> {
        let mut deadline = match (self.buffer.is_empty(), idle) {
            (true, None) => None,
            (true, Some(idle)) => Some(Instant::now() + idle),
            (false, _) => Some(Instant::now() + patience),
        };
        loop {
            if let Some(line) = self.take_line()? {
                return Ok(Some(line));
            }
            let began = !self.buffer.is_empty();
            match self.receive(deadline)? {
                0 if began => return Err(LineError::Torn),
                0 => return Ok(None),
                _ if !began => deadline = Some(Instant::now() + patience),
                _ => {}
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| at + self.searched);
        if end.unwrap_or(self.buffer.len()) > self.limit {
            return Err(LineError::TooLong { limit: self.limit });
        }
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        self.searched = 0;
        Ok(Some(line))
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<usize, LineError> {
        let mut chunk = [0; 16 << 10];
        loop {
            self.stream.set_read_timeout(remaining(deadline)?)?;
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) => retry(error)?,
            }
        }
    }
}

/// Sends `line` and a line end; all of it within `patience`, however slowly the peer reads.
pub(super) fn send(mut stream: &UnixStream, line: &[u8], patience: Duration) -> Result<(), LineError> {
    let deadline = Some(Instant::now() + patience);
    let whole = [line, b"\n"].concat();
    let mut rest = whole.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(remaining(deadline)?)?;
        match stream.write(rest) {
            Ok(0) => return Err(LineError::Torn),
            Ok(count) => rest = &rest[count..],
            Err(error) => retry(error)?,
        }
    }
    Ok(())
}

fn remaining(deadline: Option<Instant>) -> Result<Option<Duration>, LineError> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        Some(Duration::ZERO) => Err(LineError::Timeout),
        left => Ok(left),
    }
}

fn retry(error: io::Error) -> Result<(), LineError> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(LineError::Timeout),
        _ => Err(error.into()),
    }
}
