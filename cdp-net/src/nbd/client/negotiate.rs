//! The client's side of the handshake.

use super::{ClientError, ClientOptions};
use crate::nbd::channel::{self, Channel};
use crate::nbd::protocol::*;
use crate::nbd::uri::Uri;
use std::time::Instant;

/// The longest reply to an option that is accepted, in bytes.
const REPLY_MAX: u32 = 64 << 10;
/// The most replies to one option that are accepted.
const REPLIES_MAX: usize = 65_536;

/// What an export can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Its name as the server has it, if it said.
    pub name: Option<String>,
    /// Its description, if there is one.
    pub description: Option<String>,
    /// Bytes.
    pub size: u64,
    /// `transmission` flags.
    pub flags: u16,
    /// Smallest unit of requests, in bytes.
    pub block_min: u32,
    /// Best unit of requests, in bytes.
    pub block_preferred: u32,
    /// The most bytes in one read or write.
    pub payload_max: u32,
    /// Structured replies were agreed on.
    pub structured: bool,
    /// The number of `base:allocation`, if it was agreed on.
    pub context: Option<u32>,
}

impl ExportInfo {
    /// Whether a `transmission` flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

pub(super) struct Negotiation {
    pub(super) channel: Channel,
    deadline: Instant,
}

impl Negotiation {
    /// Connects, greets, and upgrades to TLS if the URI says so.
    pub(super) fn begin(uri: &Uri, options: &ClientOptions, deadline: Instant) -> Result<Self, ClientError> {
        let mut negotiation = Self { channel: Channel::connect(uri, options.limit)?, deadline };
        let mut greeting = [0; GREETING_BYTES];
        negotiation.channel.recv_exact(&mut greeting, deadline)?;
        for (at, expected) in [(0, MAGIC_SERVER), (8, MAGIC_OPTION)] {
            let found = be64(&greeting, at);
            if found != expected {
                return Err(ProtocolError::Magic { expected, found }.into());
            }
        }
        let flags = u32::from(be16(&greeting, 16)) & (CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES);
        negotiation.channel.send_all(&flags.to_be_bytes(), deadline)?;
        if uri.tls {
            let tls = options.tls.as_ref().ok_or(ClientError::NoTls)?;
            negotiation.option(option::STARTTLS, &[])?;
            negotiation.channel.upgrade(tls.connection(channel::host(&uri.address))?, deadline)?;
        }
        Ok(negotiation)
    }

    /// Sends an option and collects its replies up to the ACK.
    fn option(&mut self, option: u32, payload: &[&[u8]]) -> Result<Vec<(u32, Vec<u8>)>, ClientError> {
        let mut out = Vec::new();
        push_option(&mut out, option, payload);
        self.channel.send_all(&out, self.deadline)?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            let mut header = [0; OPTION_REPLY_BYTES];
            self.channel.recv_exact(&mut header, self.deadline)?;
            let header = OptionReplyHeader::decode(&header)?;
            if header.option != option {
                return Err(ProtocolError::Malformed("a reply to another option").into());
            }
            if header.length > REPLY_MAX {
                let (length, limit) = (header.length.into(), REPLY_MAX.into());
                return Err(ProtocolError::TooLong { what: "a reply to an option", length, limit }.into());
            }
            let mut payload = vec![0; header.length as usize];
            self.channel.recv_exact(&mut payload, self.deadline)?;
            match header.kind {
                option_reply::ACK => return Ok(replies),
                kind if kind & option_reply::ERROR != 0 => {
                    let message = String::from_utf8_lossy(&payload).into_owned();
                    return Err(ClientError::Refused { option, kind, message });
                }
                kind => replies.push((kind, payload)),
            }
        }
        Err(ProtocolError::Malformed("too many replies to one option").into())
    }

    pub(super) fn list(&mut self) -> Result<Vec<(String, String)>, ClientError> {
        let replies = self.option(option::LIST, &[])?;
        let servers = replies.iter().filter(|(kind, _)| *kind == option_reply::SERVER);
        let parse = |payload: &[u8]| {
            let mut fields = Fields(payload);
            let name = fields.string()?.to_owned();
            Some((name, String::from_utf8_lossy(fields.0).into_owned()))
        };
        let list = servers.map(|(_, payload)| parse(payload)).collect::<Option<Vec<_>>>();
        list.ok_or(ProtocolError::Malformed("a malformed reply to LIST").into())
    }

    pub(super) fn info(&mut self, name: &str, options: &ClientOptions) -> Result<ExportInfo, ClientError> {
        self.information(option::INFO, name, options)
    }

    pub(super) fn go(&mut self, name: &str, options: &ClientOptions) -> Result<ExportInfo, ClientError> {
        self.information(option::GO, name, options)
    }

    fn information(&mut self, option: u32, name: &str, options: &ClientOptions) -> Result<ExportInfo, ClientError> {
        let structured = options.structured && accepted(self.option(option::STRUCTURED_REPLY, &[]))?.is_some();
        let name_length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut context = None;
        if structured && options.allocation {
            let query = CONTEXT_ALLOCATION.as_bytes();
            let query_length = u32::try_from(query.len()).unwrap_or(u32::MAX).to_be_bytes();
            let payload = [&name_length[..], name.as_bytes(), &1u32.to_be_bytes(), &query_length, query];
            let replies = accepted(self.option(option::SET_META_CONTEXT, &payload))?.unwrap_or_default();
            context = replies.first().filter(|(_, payload)| payload.len() >= 4).map(|(_, payload)| be32(payload, 0));
        }
        let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        let wanted = wanted.map(u16::to_be_bytes).concat();
        let count = [0, 3];
        let replies = self.option(option, &[&name_length, name.as_bytes(), &count, &wanted])?;
        let mut found = ExportInfo {
            name: None,
            description: None,
            size: 0,
            flags: 0,
            block_min: 1,
            block_preferred: BLOCK_PREFERRED,
            payload_max: PAYLOAD_MAX,
            structured,
            context,
        };
        let known = replies.iter().filter(|(kind, _)| *kind == option_reply::INFO);
        let parsed = known.map(|(_, payload)| parse_info(&mut found, payload)).collect::<Option<Vec<()>>>();
        if parsed.is_none() || found.flags & transmission::HAS_FLAGS == 0 {
            return Err(ProtocolError::Malformed("malformed information about the export").into());
        }
        Ok(found)
    }

    /// Takes leave; nobody waits for the answer.
    pub(super) fn abort(mut self) {
        let mut out = Vec::new();
        push_option(&mut out, option::ABORT, &[]);
        let _ = self.channel.send_all(&out, self.deadline);
    }
}

/// An option that the server does not have is no failure.
fn accepted<T>(reply: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match reply {
        Ok(replies) => Ok(Some(replies)),
        Err(ClientError::Refused { kind: option_reply::ERR_UNSUP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_info(found: &mut ExportInfo, payload: &[u8]) -> Option<()> {
    let mut fields = Fields(payload);
    match fields.u16()? {
        info::EXPORT => {
            found.size = fields.u64()?;
            found.flags = fields.u16()?;
        }
        info::NAME => found.name = Some(String::from_utf8_lossy(fields.0).into_owned()),
        info::DESCRIPTION => found.description = Some(String::from_utf8_lossy(fields.0).into_owned()),
        info::BLOCK_SIZE => {
            found.block_min = fields.u32()?;
            found.block_preferred = fields.u32()?;
            found.payload_max = fields.u32()?.clamp(1, PAYLOAD_MAX);
        }
        _ => {}
    }
    Some(())
}
