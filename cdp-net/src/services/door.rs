//! Tickets at a door: whether one lets its holder in, at a gateway and at what stands directly behind one.
//!
//! A gateway believes a ticket by its MAC, time and route, and cannot know who shows it. Who stands behind it judges the same
//! ticket again and lets nobody through TLS but the holder of the ticket's certificate; what the ticket is good for is then what his
//! hello may name.

use super::tickets::{KeyFile, TicketFileError};
use crate::clock::wall;
use crate::link::accept::{Accepted, Admission};
use crate::link::pin::{Fingerprint, Peers};
use cdp_core::link::message::Farewell;
use cdp_core::link::preamble::{Preamble, ticket_farewell};
use cdp_core::trust::ticket::{Ticket, TicketError, TicketKeys};
use cdp_core::types::GroupId;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// Judges tickets by the keys that are known now. Clones share the keys: a new file changes them for everybody.
#[derive(Clone, Debug)]
pub struct Judge(Arc<RwLock<TicketKeys>>);

impl Judge {
    /// By the keys of this file.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, TicketFileError> {
        Ok(Self(Arc::new(RwLock::new(KeyFile::read(path)?.keys))))
    }

    /// By the keys of this file from now on. Connections that were let in stay.
    ///
    /// # Errors
    /// What is wrong with the file; the keys stay as they were.
    pub fn read_again(&self, path: &Path) -> Result<(), TicketFileError> {
        let keys = KeyFile::read(path)?.keys;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// What a ticket says that is good now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, ticket: &[u8]) -> Result<Ticket, TicketError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).verify(ticket, wall())
    }

    /// What a ticket says, whatever the time is: of one that was good when its connection began.
    fn open(&self, ticket: &[u8]) -> Result<Ticket, TicketError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).open(ticket)
    }
}

/// Who was let in by a ticket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Whose groups he may name.
    pub tenant: String,
    /// The only one of them; none: every one.
    pub group: Option<GroupId>,
}

/// Lets in those whom a gateway let in. Who comes without a ticket is up to the rest of the door.
#[derive(Clone, Debug)]
pub struct BehindGateway {
    judge: Judge,
    route: Option<String>,
}

impl BehindGateway {
    /// Tickets are believed by `judge`, and where `route` is given only those that lead there: the name that this place has at its
    /// gateway.
    #[must_use]
    pub fn new(judge: Judge, route: Option<String>) -> Self {
        Self { judge, route }
    }

    /// How a connection with this preamble goes on: by TLS, with the ticket's certificate and no other. None: it has no ticket.
    ///
    /// # Errors
    /// Why the ticket lets nobody in: the other side is told in the clear.
    pub fn admit(&self, preamble: &Preamble) -> Result<Option<Admission>, Farewell> {
        let Some(bytes) = ticket_of(preamble) else { return Ok(None) };
        let judged = self.judge.verify(bytes).and_then(|ticket| {
            self.route.as_ref().map_or(Ok(()), |here| ticket.admits_route(here))?;
            Ok(Admission::Tls(Peers::new([Fingerprint(ticket.certificate)])))
        });
        judged.map(Some).map_err(|error| ticket_farewell(&error))
    }

    /// Who it is that was let in by a ticket, and whether that is good for what his hello names. None: he had no ticket.
    ///
    /// # Errors
    /// What the ticket is not good for: the other side is told inside of TLS.
    pub fn holder(&self, accepted: &Accepted) -> Result<Option<Holder>, Farewell> {
        let Some(bytes) = ticket_of(&accepted.preamble) else { return Ok(None) };
        let hello = &accepted.hello;
        let judged = self.judge.open(bytes).and_then(|ticket| {
            let shown = accepted.opened.peer().ok_or(TicketError::Certificate)?;
            ticket.admits_certificate(&shown.0)?;
            ticket.admits_hello(&hello.tenant, hello.group, hello.timeline)?;
            Ok(Holder { tenant: ticket.tenant, group: ticket.group })
        });
        judged.map(Some).map_err(|error| ticket_farewell(&error))
    }
}

/// The ticket of a preamble that has one.
fn ticket_of(preamble: &Preamble) -> Option<&[u8]> {
    match preamble {
        Preamble::Tls { ticket } if !ticket.is_empty() => Some(ticket),
        _ => None,
    }
}
