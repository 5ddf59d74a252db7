//! An NBD client: blocking calls for tests and tools, and a pipelined interface that can load a server.
//!
//! Pipelined use: [`Client::submit`] requests, then [`Client::complete`] them in whatever order the server answers. Requests
//! are collected and sent together when `complete` finds no reply at hand, when the buffer is full, or by [`Client::send`].
//! The number of requests in flight is the caller's to bound.

mod negotiate;
mod pipeline;

use super::channel::Channel;
use super::protocol::{NbdError, ProtocolError, command_flag};
use super::tls::TlsClient;
use super::uri::Uri;
use crate::device::{BlockStatus, ZeroFlags};
pub use negotiate::ExportInfo;
pub use pipeline::{Command, Completion};
use std::io;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How to connect.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Needed for `nbds` URIs.
    pub tls: Option<TlsClient>,
    /// Ask for structured replies.
    pub structured: bool,
    /// Ask for `base:allocation` (which needs structured replies).
    pub allocation: bool,
    /// Time for connecting and the handshake.
    pub limit: Duration,
    /// How long to wait awake for a reply before sleeping; zero: not at all.
    pub spin: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        let (limit, spin) = (Duration::from_secs(10), Duration::from_micros(30));
        Self { tls: None, structured: true, allocation: true, limit, spin }
    }
}

/// What a client's call can end in.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection failed, or was closed by the server (`UnexpectedEof`).
    #[error("connection to the NBD server")]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol")]
    Protocol(#[from] ProtocolError),
    /// The server refused an option of the handshake.
    #[error("the server refused option {option} with {kind:#x}: {message}")]
    Refused {
        /// The option.
        option: u32,
        /// The reply's kind, one of `option_reply`.
        kind: u32,
        /// What the server says.
        message: String,
    },
    /// The URI demands TLS, and the options hold no certificates; or they cannot be used.
    #[error("TLS is demanded and not configured")]
    NoTls,
    /// TLS failed.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// A request was answered with an error.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// A request is longer than one request may be.
    #[error("{length} bytes in one request")]
    TooLong {
        /// The length.
        length: u64,
    },
    /// A blocking call while pipelined requests are in flight.
    #[error("{requests} requests are in flight")]
    Busy {
        /// How many.
        requests: usize,
    },
}

/// A connection to one export.
#[derive(Debug)]
pub struct Client {
    info: ExportInfo,
    pipeline: pipeline::Pipeline,
}

impl Client {
    /// Connects to the export that the URI names.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(uri: &Uri, options: &ClientOptions) -> Result<Self, ClientError> {
        let deadline = Instant::now() + options.limit;
        let mut negotiation = negotiate::Negotiation::begin(uri, options, deadline)?;
        let info = negotiation.go(&uri.export, options)?;
        let pipeline = pipeline::Pipeline::new(negotiation.channel, info.structured, info.context, options.spin);
        Ok(Self { info, pipeline })
    }

    /// Names and descriptions of the exports of a server.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list(uri: &Uri, options: &ClientOptions) -> Result<Vec<(String, String)>, ClientError> {
        let mut negotiation = negotiate::Negotiation::begin(uri, options, Instant::now() + options.limit)?;
        let list = negotiation.list()?;
        negotiation.abort();
        Ok(list)
    }

    /// What an export can do, without using it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn info_of(uri: &Uri, options: &ClientOptions) -> Result<ExportInfo, ClientError> {
        let mut negotiation = negotiate::Negotiation::begin(uri, options, Instant::now() + options.limit)?;
        let info = negotiation.info(&uri.export, options)?;
        negotiation.abort();
        Ok(info)
    }

    /// What the export can do.
    #[must_use]
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// The export's size in bytes when the connection was made.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Reads, however long the buffer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        let piece_max = self.info.payload_max as usize;
        let mut at = offset;
        for piece in buffer.chunks_mut(piece_max) {
            let length = u32::try_from(piece.len()).map_err(|_| ClientError::TooLong { length: piece.len() as u64 })?;
            self.call(Command::Read { offset: at, length, flags: 0 }, |completion| {
                piece.copy_from_slice(completion.data);
            })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes, however long the data; with `fua` durable on return.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let flags = if fua { command_flag::FUA } else { 0 };
        let mut at = offset;
        for piece in data.chunks(self.info.payload_max as usize) {
            self.call(Command::Write { offset: at, data: piece, flags }, |_| ())?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(Command::Flush, |_| ())
    }

    /// Discards a range.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn trim(&mut self, offset: u64, length: u32, fua: bool) -> Result<(), ClientError> {
        let flags = if fua { command_flag::FUA } else { 0 };
        self.call(Command::Trim { offset, length, flags }, |_| ())
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write_zeroes(&mut self, offset: u64, length: u32, zero: ZeroFlags) -> Result<(), ClientError> {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(zero.fua, command_flag::FUA)
            | flag(zero.no_hole, command_flag::NO_HOLE)
            | flag(zero.fast, command_flag::FAST_ZERO);
        self.call(Command::WriteZeroes { offset, length, flags }, |_| ())
    }

    /// Has the server read a range into its cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cache(&mut self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.call(Command::Cache { offset, length }, |_| ())
    }

    /// How a range is allocated; the answer may cover less than was asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn block_status(&mut self, offset: u64, length: u32, one: bool) -> Result<Vec<BlockStatus>, ClientError> {
        let mut extents = Vec::new();
        let flags = if one { command_flag::REQ_ONE } else { 0 };
        self.call(Command::BlockStatus { offset, length, flags }, |completion| {
            extents.extend_from_slice(completion.extents);
        })?;
        Ok(extents)
    }

    /// Takes leave; what is in flight is still carried out.
    ///
    /// # Errors
    /// The farewell could not be sent.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.pipeline.farewell()
    }

    /// The bare connection after the handshake.
    #[must_use]
    pub fn into_channel(self) -> Channel {
        self.pipeline.into_channel()
    }

    /// Requests that were submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pipeline.in_flight()
    }

    /// Adds a request; `cookie` comes back with its completion. Sent later, see the module.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is of no use then.
    pub fn submit(&mut self, cookie: u64, command: Command<'_>) -> Result<(), ClientError> {
        self.pipeline.submit(cookie, command)
    }

    /// Sends what was submitted.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is of no use then.
    pub fn send(&mut self) -> Result<(), ClientError> {
        self.pipeline.send()
    }

    /// The next request that is done. `None` if none is: with `wait` only when nothing is in flight.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is of no use then. An error of the request itself is in the completion.
    pub fn complete(&mut self, wait: bool) -> Result<Option<Completion<'_>>, ClientError> {
        self.pipeline.complete(wait)
    }

    fn call(&mut self, command: Command<'_>, take: impl FnOnce(&Completion<'_>)) -> Result<(), ClientError> {
        let requests = self.in_flight();
        if requests > 0 {
            return Err(ClientError::Busy { requests });
        }
        self.pipeline.submit(0, command)?;
        let completion = self.pipeline.complete(true)?.ok_or(ProtocolError::Malformed("no reply"))?;
        completion.result?;
        take(&completion);
        Ok(())
    }
}
