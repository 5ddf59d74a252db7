//! `cdp ticket`: what a gateway lets in, and the keys that it is proved by.

use super::serve::chain;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use cdp_core::trust::ticket::Ticket;
use cdp_core::types::{NAME_MAX, WallTime, is_name};
use cdp_core::when::{AmountError, parse_bytes, parse_duration};
use cdp_net::link::pin::Fingerprint;
use cdp_net::services::tickets::{KeyFile, TicketFileError, ticket_text};
use cdp_net::{clock, random};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// A ticket begins so much earlier, because clocks differ.
const EARLIER: Duration = Duration::from_secs(300);

/// Make a ticket, which lets one certificate of a tenant through a gateway; or, with --new-key, a key that tickets are made with
#[derive(Args, Debug)]
pub struct Arguments {
    /// The gateway's `ticket-key`: the newest key in it makes the ticket
    #[arg(long, value_name = "FILE", required_unless_present = "new_key")]
    ticket_key: Option<PathBuf>,
    /// Add a new key to FILE, which is made if it is not there; tickets of older keys stay good
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ticket_key", "tenant", "certificate", "route"])]
    new_key: Option<PathBuf>,
    /// Whose groups it lets in
    #[arg(long, required_unless_present = "new_key")]
    tenant: Option<String>,
    /// The fingerprint of whoever dials the gateway with it (a source proxy, a filter, or who reads), as `cdp identity` prints it there
    #[arg(long, value_name = "SHA256", required_unless_present = "new_key")]
    certificate: Option<Fingerprint>,
    /// Where it leads: a name in the gateway's table `gateway.to`
    #[arg(long, value_name = "NAME", required_unless_present = "new_key")]
    route: Option<String>,
    /// How long it is good from now on
    #[arg(long, value_name = "D", default_value = "365d", value_parser = duration)]
    valid: Duration,
    /// Connections that may be open at once with it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Bytes a second that may be relayed with it, both ways together; left out: no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    limit: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, AmountError> {
    parse_duration(text)
}

fn bytes(text: &str) -> Result<u64, AmountError> {
    parse_bytes(text)
}

/// The answer of `ticket --new-key`.
#[derive(Serialize)]
struct NewKey {
    file: PathBuf,
    key: u32,
}

/// The answer of `ticket`.
#[derive(Serialize)]
struct Made {
    ticket: String,
    serial: String,
    tenant: String,
    route: String,
    certificate: String,
    not_before: String,
    not_after: String,
    connections: u16,
    bytes_per_second: Option<u64>,
}

impl Arguments {
    /// Makes it.
    ///
    /// # Errors
    /// What is wrong with the keys, or with what the ticket would say.
    pub fn run(self, output: &mut Output<'_>) -> Result<Exit, Failure> {
        if let Some(file) = self.new_key {
            let made = if file.exists() { KeyFile::rotate(&file) } else { KeyFile::make(&file) };
            let key = made.map_err(|error| match error {
                error @ TicketFileError::Io { .. } => {
                    Failure::from(error).hint("give a file in a directory that is there and that you may write to")
                }
                error => error.into(),
            })?;
            let text = |new: &NewKey| format!("key {} is in {}\n", new.key, new.file.display());
            output.answer(&NewKey { file, key }, text);
            return Ok(Exit::Done);
        }
        let (Some(keys), Some(tenant), Some(route), Some(certificate)) =
            (self.ticket_key, self.tenant, self.route, self.certificate)
        else {
            return Err(Failure::new(
                Exit::Usage,
                "usage",
                "a ticket needs --ticket-key, --tenant, --certificate, --route",
            ));
        };
        if !is_name(&tenant) {
            let message = format!(
                "{tenant:?} is no name of a tenant: 1 to {NAME_MAX} bytes without slashes and control characters"
            );
            return Err(Failure::new(Exit::Usage, "usage", message));
        }
        let now = clock::wall().0;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ticket = Ticket {
            serial: random::identity(),
            tenant,
            group: None,
            timeline: None,
            route,
            certificate: certificate.0,
            not_before: WallTime(now.saturating_sub(nanos(EARLIER))),
            not_after: WallTime(now.saturating_add(nanos(self.valid))),
            connections: self.connections,
            bytes_per_second: self.limit.filter(|limit| *limit > 0),
        };
        let issued = KeyFile::read(&keys)?.newest.issue(&ticket);
        let issued =
            issued.map_err(|error| Failure::new(Exit::Usage, "ticket", format!("no such ticket is made: {error}")))?;
        let made = Made {
            ticket: ticket_text(&issued).trim_end().to_owned(),
            serial: ticket.serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            tenant: ticket.tenant,
            route: ticket.route,
            certificate: certificate.to_string(),
            not_before: ticket.not_before.to_string(),
            not_after: ticket.not_after.to_string(),
            connections: ticket.connections,
            bytes_per_second: ticket.bytes_per_second,
        };
        output.answer(&made, |made| format!("{}\n", made.ticket));
        Ok(Exit::Done)
    }
}

impl From<TicketFileError> for Failure {
    fn from(error: TicketFileError) -> Self {
        let failure = Self::new(Exit::Failed, "ticket-key", chain(&error));
        if error.is_missing() { failure.hint("`cdp ticket --new-key FILE` makes a file of keys") } else { failure }
    }
}
