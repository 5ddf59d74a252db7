//! The server's side of the fixed newstyle handshake as a pure state machine: bytes in, bytes and a [`Step`] out.
//!
//! The caller feeds what it received to [`Handshake::handle`], sends what was appended to `out`, and acts on the step. All
//! limits but the time are here: the length of an option, of a name, the number of options. An option that is refused
//! leaves the stream in step; what cannot be skipped ends the connection.

use super::export::{self, Export};
use super::protocol::*;
use thiserror::Error;

/// The longest payload of an option, in bytes: room for the longest name and a few dozen queries.
pub const OPTION_PAYLOAD_MAX: u32 = 16 << 10;
/// The most options that one client may send.
pub const OPTIONS_MAX: u32 = 256;

/// What TLS is to this connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Not offered.
    Off,
    /// Every option but `STARTTLS` and `ABORT` is refused until the client upgrades.
    Required,
    /// The client has upgraded.
    Active,
}

/// What was agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Index of the export.
    pub export: usize,
    /// Structured replies.
    pub structured: bool,
    /// `base:allocation` may be asked for.
    pub allocation: bool,
}

/// What the caller does next, after sending what was appended to `out`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Receive more and call again.
    NeedInput,
    /// Call again with the rest of the input.
    Continue,
    /// Begin TLS; unread input at this point is an attack. Then call [`Handshake::tls_started`].
    StartTls,
    /// The handshake is over; the rest of the input are requests.
    Transmission(Session),
    /// The client took its leave.
    Abort,
}

/// Why a connection ends in the handshake.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum HandshakeError {
    /// The stream is broken.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Flags that the protocol does not know.
    #[error("unknown client flags {flags:#x}")]
    ClientFlags {
        /// All flags that the client sent.
        flags: u32,
    },
    /// More options than any client needs.
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// `EXPORT_NAME` can be refused only by hanging up.
    #[error("no export named {name:?}")]
    UnknownExport {
        /// The name, cut to 64 characters.
        name: String,
    },
    /// `EXPORT_NAME` without the TLS that is required.
    #[error("the client did not upgrade to TLS")]
    TlsRequired,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    Options,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake<'a> {
    exports: &'a [Export],
    tls: Tls,
    state: State,
    options: u32,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    allocation: Option<usize>,
}

impl<'a> Handshake<'a> {
    /// Begins a handshake; the greeting is appended to `out`.
    #[must_use]
    pub fn new(exports: &'a [Export], tls: Tls, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&MAGIC_SERVER.to_be_bytes());
        out.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        out.extend_from_slice(&SERVER_FLAGS.to_be_bytes());
        Self {
            exports,
            tls,
            state: State::ClientFlags,
            options: 0,
            no_zeroes: false,
            structured: false,
            allocation: None,
        }
    }

    /// TLS is up: what was agreed on before does not count any more.
    pub fn tls_started(&mut self) {
        self.tls = Tls::Active;
        self.structured = false;
        self.allocation = None;
    }

    /// Takes at most one message off the front of `input`; the first value says how many bytes it was.
    ///
    /// # Errors
    /// The connection is to be closed, after sending what was appended to `out`.
    pub fn handle(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Step), HandshakeError> {
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Options => {
                let Some(header) = input.first_chunk::<OPTION_BYTES>() else { return Ok((0, Step::NeedInput)) };
                let magic = be64(header, 0);
                if magic != MAGIC_OPTION {
                    return Err(ProtocolError::Magic { expected: MAGIC_OPTION, found: magic }.into());
                }
                let (option, length) = (be32(header, 8), be32(header, 12));
                if length > OPTION_PAYLOAD_MAX {
                    let limit = OPTION_PAYLOAD_MAX.into();
                    return Err(ProtocolError::TooLong { what: "an option", length: length.into(), limit }.into());
                }
                let end = OPTION_BYTES + length as usize;
                let Some(payload) = input.get(OPTION_BYTES..end) else { return Ok((0, Step::NeedInput)) };
                self.options += 1;
                if self.options > OPTIONS_MAX {
                    return Err(HandshakeError::TooManyOptions);
                }
                Ok((end, self.option(option, payload, out)?))
            }
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Result<(usize, Step), HandshakeError> {
        let Some(bytes) = input.first_chunk::<4>() else { return Ok((0, Step::NeedInput)) };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return Err(HandshakeError::ClientFlags { flags });
        }
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        self.state = State::Options;
        Ok((4, Step::Continue))
    }

    fn option(&mut self, option: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        if self.tls == Tls::Required && !matches!(option, option::STARTTLS | option::ABORT) {
            if option == option::EXPORT_NAME {
                return Err(HandshakeError::TlsRequired);
            }
            refuse(out, option, option_reply::ERR_TLS_REQD, "this server requires TLS");
            return Ok(Step::Continue);
        }
        match option {
            option::EXPORT_NAME => return self.export_name(payload, out),
            option::ABORT => {
                push_option_reply(out, option, option_reply::ACK, &[]);
                return Ok(Step::Abort);
            }
            option::INFO | option::GO => return Ok(self.info_or_go(option, payload, out)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, payload, out),
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS if !payload.is_empty() => {
                refuse(out, option, option_reply::ERR_INVALID, "this option has no payload");
            }
            option::LIST => self.list(out),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                push_option_reply(out, option, option_reply::ACK, &[]);
            }
            option::STARTTLS => match self.tls {
                Tls::Off => refuse(out, option, option_reply::ERR_UNSUP, "TLS is not configured"),
                Tls::Active => refuse(out, option, option_reply::ERR_INVALID, "TLS is active already"),
                Tls::Required => {
                    push_option_reply(out, option, option_reply::ACK, &[]);
                    return Ok(Step::StartTls);
                }
            },
            _ => refuse(out, option, option_reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Step::Continue)
    }

    fn session(&self, export: usize) -> Session {
        let allocation = self.structured && self.allocation == Some(export);
        Session { export, structured: self.structured, allocation }
    }

    /// The old way to begin; an error can be told only by hanging up.
    fn export_name(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        let name = std::str::from_utf8(payload).unwrap_or("\u{fffd}");
        let Some(index) = export::find(self.exports, name) else {
            return Err(HandshakeError::UnknownExport { name: name.chars().take(64).collect() });
        };
        let export = &self.exports[index];
        out.extend_from_slice(&export.size().to_be_bytes());
        out.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Transmission(self.session(index)))
    }

    fn list(&self, out: &mut Vec<u8>) {
        for export in self.exports {
            let length = u32::try_from(export.name.len()).unwrap_or(u32::MAX).to_be_bytes();
            let payload = [&length, export.name.as_bytes(), export.description.as_bytes()];
            push_option_reply(out, option::LIST, option_reply::SERVER, &payload);
        }
        push_option_reply(out, option::LIST, option_reply::ACK, &[]);
    }

    fn info_or_go(&mut self, option: u32, payload: &[u8], out: &mut Vec<u8>) -> Step {
        let Some((name, wanted)) = parse_info(payload) else {
            refuse(out, option, option_reply::ERR_INVALID, "malformed payload");
            return Step::Continue;
        };
        let Some(index) = export::find(self.exports, name) else {
            refuse(out, option, option_reply::ERR_UNKNOWN, "no export of that name");
            return Step::Continue;
        };
        let export = &self.exports[index];
        let mut push = |kind: u16, parts: &[&[u8]]| {
            let kind = kind.to_be_bytes();
            let mut payload = vec![&kind[..]];
            payload.extend_from_slice(parts);
            push_option_reply(out, option, option_reply::INFO, &payload);
        };
        push(info::EXPORT, &[&export.size().to_be_bytes(), &export.flags(self.structured).to_be_bytes()]);
        // Sent also where it was not asked for: a client that ignores it gets EINVAL for what is not aligned.
        let sizes = [BLOCK_MIN.to_be_bytes(), BLOCK_PREFERRED.to_be_bytes(), PAYLOAD_MAX.to_be_bytes()];
        push(info::BLOCK_SIZE, &[&sizes.concat()]);
        if wanted.contains(&info::NAME) {
            push(info::NAME, &[export.name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            push(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        push_option_reply(out, option, option_reply::ACK, &[]);
        if option == option::GO { Step::Transmission(self.session(index)) } else { Step::Continue }
    }

    fn meta_context(&mut self, option: u32, payload: &[u8], out: &mut Vec<u8>) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Whatever comes of it, an earlier selection is gone.
            self.allocation = None;
        }
        if !self.structured {
            return refuse(out, option, option_reply::ERR_INVALID, "structured replies come first");
        }
        let Some((name, queries)) = parse_meta_context(payload) else {
            return refuse(out, option, option_reply::ERR_INVALID, "malformed payload");
        };
        let Some(index) = export::find(self.exports, name) else {
            return refuse(out, option, option_reply::ERR_UNKNOWN, "no export of that name");
        };
        let exact = queries.contains(&CONTEXT_ALLOCATION);
        let listed = queries.is_empty() || queries.contains(&"base:");
        if exact || (!set && listed) {
            let id = if set { CONTEXT_ID } else { 0 };
            let payload = [&id.to_be_bytes()[..], CONTEXT_ALLOCATION.as_bytes()];
            push_option_reply(out, option, option_reply::META_CONTEXT, &payload);
        }
        if set && exact {
            self.allocation = Some(index);
        }
        push_option_reply(out, option, option_reply::ACK, &[]);
    }
}

/// The number under which `base:allocation` is known on every connection.
pub(crate) const CONTEXT_ID: u32 = 1;

fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, why: &str) {
    push_option_reply(out, option, kind, &[why.as_bytes()]);
}

fn parse_info(payload: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let count = fields.u16()?;
    if fields.0.len() != usize::from(count) * 2 {
        return None;
    }
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    Some((name, wanted))
}

fn parse_meta_context(payload: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Each query takes at least four bytes, so the payload's own limit bounds what is collected.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
mod tests;
