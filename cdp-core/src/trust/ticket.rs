//! Tickets: what lets a connection through a gateway. The bytes are in `TICKET.md`.

use crate::types::{GroupId, Timeline, WallTime};
use ring::hmac;
use std::collections::BTreeMap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"CDPTICK\x01";
const FIXED_BYTES: usize = 120;
const MAC_BYTES: usize = 32;
/// The fewest bytes of a ticket: two texts of one byte.
const TICKET_BYTES_MIN: usize = FIXED_BYTES + 2 + 2 + MAC_BYTES;
/// The most bytes of a ticket.
pub const TICKET_BYTES_MAX: usize = FIXED_BYTES + 2 * 256 + MAC_BYTES;
/// The most keys that tickets are judged by at once: the newest, and those whose tickets are still good.
pub const TICKET_KEYS_MAX: usize = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    key: U32,
    connections: U16,
    reserved: [u8; 2],
    serial: [u8; 16],
    group: [u8; 16],
    timeline: [u8; 16],
    certificate: [u8; 32],
    not_before: U64,
    not_after: U64,
    bytes_per_second: U64,
}

const _: () = assert!(size_of::<Fixed>() == FIXED_BYTES);

/// What a ticket says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Random: limits are counted by it, and it is what is revoked.
    pub serial: [u8; 16],
    /// Whose.
    pub tenant: String,
    /// The only group; none: every one of the tenant.
    pub group: Option<GroupId>,
    /// The only timeline; none: every one.
    pub timeline: Option<Timeline>,
    /// The next hop, by the name that the gateway has for it.
    pub route: String,
    /// SHA-256 of the holder's certificate.
    pub certificate: [u8; 32],
    /// Good from then on.
    pub not_before: WallTime,
    /// Good until then.
    pub not_after: WallTime,
    /// So many may be open at once.
    pub connections: u16,
    /// May be relayed by all its connections, in both directions together; none: no limit.
    pub bytes_per_second: Option<u64>,
}

/// What is wrong with a ticket.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TicketError {
    /// There is none.
    #[error("no ticket, and one is needed here")]
    Missing,
    /// Not as many bytes as one has.
    #[error("a ticket of {found} bytes, of which its fields need {expected}")]
    Length {
        /// Bytes that its fields have.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// The first bytes are others.
    #[error("not a ticket of this version: the first bytes are {found:02x?}")]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// Made with a key that is not known here (any more).
    #[error("the ticket was made with key {found}, which is not known here: get a new one")]
    UnknownKey {
        /// Which key.
        found: u32,
    },
    /// It was not made with the key that it names, or was changed.
    #[error("the MAC of the ticket does not verify")]
    Mac,
    /// A field has a value that no issuer gives it.
    #[error("field `{field}` of the ticket has the impossible value {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A text is not UTF-8.
    #[error("field `{field}` of the ticket is not UTF-8")]
    Text {
        /// Which field.
        field: &'static str,
    },
    /// It is not good yet.
    #[error(
        "the ticket is good from {not_before} ns on, and it is {now} ns: the clocks differ, or it was made for later"
    )]
    Early {
        /// Good from then on.
        not_before: u64,
        /// The time here.
        now: u64,
    },
    /// It is good no more.
    #[error("the ticket was good until {not_after} ns, and it is {now} ns: get a new one")]
    Expired {
        /// Good until then.
        not_after: u64,
        /// The time here.
        now: u64,
    },
    /// It is for another hop.
    #[error("the ticket leads to {found}, not to {expected}")]
    Route {
        /// Where this is.
        expected: String,
        /// Where it leads.
        found: String,
    },
    /// It is for another certificate.
    #[error("the ticket is not for the certificate that was shown")]
    Certificate,
    /// It is for another tenant.
    #[error("the ticket is for tenant {expected}, not for {found}")]
    Tenant {
        /// Whose it is.
        expected: String,
        /// Who was named.
        found: String,
    },
    /// It is for another group.
    #[error("the ticket is for group {expected} only")]
    Group {
        /// Which group it is for.
        expected: GroupId,
    },
    /// It is for another timeline.
    #[error("the ticket is for timeline {expected} only")]
    Timeline {
        /// Which timeline it is for.
        expected: Timeline,
    },
}

impl Ticket {
    /// Whether it leads here.
    ///
    /// # Errors
    /// When it leads elsewhere.
    pub fn admits_route(&self, here: &str) -> Result<(), TicketError> {
        let differ = || TicketError::Route { expected: here.to_owned(), found: self.route.clone() };
        if self.route == here { Ok(()) } else { Err(differ()) }
    }

    /// Whether it is for the certificate with this SHA-256, which is not secret.
    ///
    /// # Errors
    /// When it is for another one.
    pub fn admits_certificate(&self, fingerprint: &[u8; 32]) -> Result<(), TicketError> {
        if self.certificate == *fingerprint { Ok(()) } else { Err(TicketError::Certificate) }
    }

    /// Whether it is for what a hello names; an empty tenant says that the source end does not know.
    ///
    /// # Errors
    /// What it is not for.
    pub fn admits_hello(
        &self,
        tenant: &str,
        group: Option<GroupId>,
        timeline: Option<Timeline>,
    ) -> Result<(), TicketError> {
        if !tenant.is_empty() && tenant != self.tenant {
            return Err(TicketError::Tenant { expected: self.tenant.clone(), found: tenant.to_owned() });
        }
        // A hello that names the group by its name only is judged once it is known.
        if let (Some(expected), Some(_)) = (self.group, group.filter(|group| self.group != Some(*group))) {
            return Err(TicketError::Group { expected });
        }
        if let (Some(expected), Some(_)) = (self.timeline, timeline.filter(|it| self.timeline != Some(*it))) {
            return Err(TicketError::Timeline { expected });
        }
        Ok(())
    }
}

/// A key that tickets are made with.
#[derive(Clone)]
pub struct TicketKey {
    id: u32,
    key: hmac::Key,
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TicketKey {
    /// The key with this number, from 32 random bytes that are used for nothing else.
    #[must_use]
    pub fn new(id: u32, key: &[u8; 32]) -> Self {
        Self { id, key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// Which of the issuer's keys.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The bytes of a ticket.
    ///
    /// # Errors
    /// When something in it cannot be said, or no time would be good.
    pub fn issue(&self, ticket: &Ticket) -> Result<Vec<u8>, TicketError> {
        check("key", self.id.into(), self.id != 0)?;
        check("connections", ticket.connections.into(), ticket.connections != 0)?;
        check("not_after", ticket.not_after.0, ticket.not_before <= ticket.not_after)?;
        let rate = ticket.bytes_per_second.unwrap_or(0);
        check("bytes_per_second", rate, ticket.bytes_per_second != Some(0))?;
        let mut fixed = Fixed::new_zeroed();
        fixed.magic = MAGIC;
        fixed.key.set(self.id);
        fixed.connections.set(ticket.connections);
        fixed.serial = ticket.serial;
        fixed.group = ticket.group.map_or([0; 16], |group| *group.bytes());
        fixed.timeline = ticket.timeline.map_or([0; 16], |timeline| *timeline.bytes());
        fixed.certificate = ticket.certificate;
        fixed.not_before.set(ticket.not_before.0);
        fixed.not_after.set(ticket.not_after.0);
        fixed.bytes_per_second.set(rate);
        let mut bytes = fixed.as_bytes().to_vec();
        for (field, text) in [("tenant", &ticket.tenant), ("route", &ticket.route)] {
            check(field, text.len() as u64, (1..=255).contains(&text.len()))?;
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
        let mac = hmac::sign(&self.key, &bytes);
        bytes.extend_from_slice(mac.as_ref());
        Ok(bytes)
    }
}

/// The keys that tickets are judged by, by their numbers; at most [`TICKET_KEYS_MAX`].
#[derive(Clone, Debug, Default)]
pub struct TicketKeys(BTreeMap<u32, TicketKey>);

impl TicketKeys {
    /// Adds a key, or takes it in place of the one with its number. Beyond the bound the one with the lowest number, which is the
    /// oldest, goes: its tickets are not known any more.
    pub fn add(&mut self, key: TicketKey) {
        self.0.insert(key.id, key);
        if self.0.len() > TICKET_KEYS_MAX {
            self.0.pop_first();
        }
    }

    /// What a ticket says, once its MAC and its time are good. Nothing of it is looked at before its MAC.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, bytes: &[u8], now: WallTime) -> Result<Ticket, TicketError> {
        let ticket = self.open(bytes)?;
        let (not_before, not_after, now) = (ticket.not_before.0, ticket.not_after.0, now.0);
        if now < not_before {
            return Err(TicketError::Early { not_before, now });
        }
        if now > not_after {
            return Err(TicketError::Expired { not_after, now });
        }
        Ok(ticket)
    }

    /// What a ticket says, once its MAC is good, whatever the time is: to look at it, not to let anybody in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, bytes: &[u8]) -> Result<Ticket, TicketError> {
        let found = bytes.len();
        if found == 0 {
            return Err(TicketError::Missing);
        }
        let length = |expected| TicketError::Length { expected, found };
        if found > TICKET_BYTES_MAX {
            return Err(length(TICKET_BYTES_MAX));
        }
        let (fixed, _) = Fixed::read_from_prefix(bytes).map_err(|_| length(TICKET_BYTES_MIN))?;
        if fixed.magic != MAGIC {
            return Err(TicketError::Magic { found: fixed.magic });
        }
        let end = found.checked_sub(MAC_BYTES).filter(|end| *end >= FIXED_BYTES).ok_or(length(TICKET_BYTES_MIN))?;
        let key = self.0.get(&fixed.key.get()).ok_or(TicketError::UnknownKey { found: fixed.key.get() })?;
        hmac::verify(&key.key, &bytes[..end], &bytes[end..]).map_err(|_| TicketError::Mac)?;
        check("reserved", u16::from_le_bytes(fixed.reserved).into(), fixed.reserved == [0; 2])?;
        check("connections", 0, fixed.connections.get() != 0)?;
        check("not_after", fixed.not_after.get(), fixed.not_before.get() <= fixed.not_after.get())?;
        let mut rest = &bytes[FIXED_BYTES..end];
        let tenant = text(&mut rest, "tenant", found)?;
        let route = text(&mut rest, "route", found)?;
        if !rest.is_empty() {
            return Err(length(found - rest.len()));
        }
        Ok(Ticket {
            serial: fixed.serial,
            tenant,
            group: GroupId::new(fixed.group),
            timeline: Timeline::new(fixed.timeline),
            route,
            certificate: fixed.certificate,
            not_before: WallTime(fixed.not_before.get()),
            not_after: WallTime(fixed.not_after.get()),
            connections: fixed.connections.get(),
            bytes_per_second: Some(fixed.bytes_per_second.get()).filter(|rate| *rate != 0),
        })
    }
}

fn check(field: &'static str, value: u64, holds: bool) -> Result<(), TicketError> {
    if holds { Ok(()) } else { Err(TicketError::Field { field, value }) }
}

/// A length of one byte, and so much text, off `rest`.
fn text(rest: &mut &[u8], field: &'static str, found: usize) -> Result<String, TicketError> {
    let (length, after) = rest.split_first().ok_or(TicketError::Length { expected: found + 1, found })?;
    check(field, 0, *length != 0)?;
    let length = usize::from(*length);
    let missing = length.saturating_sub(after.len());
    let (text, after) =
        after.split_at_checked(length).ok_or(TicketError::Length { expected: found + missing, found })?;
    *rest = after;
    std::str::from_utf8(text).map(str::to_owned).map_err(|_| TicketError::Text { field })
}

/// Tickets for fuzzers.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{FIXED_BYTES, Fixed, MAC_BYTES, MAGIC, TicketKey, TicketKeys, hmac};
    use std::mem::offset_of;

    const KEY: [u8; 32] = [7; 32];

    /// Whether the bytes are a ticket of key 1; one that is must be written as it was.
    pub(crate) fn ticket(bytes: &[u8]) -> bool {
        let key = TicketKey::new(1, &KEY);
        let mut keys = TicketKeys::default();
        keys.add(key.clone());
        let Ok(found) = keys.open(bytes) else { return false };
        assert_eq!(key.issue(&found).as_deref(), Ok(bytes));
        true
    }

    /// These bytes with magic, key and MAC made right.
    pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().max(FIXED_BYTES + MAC_BYTES), 0);
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes[offset_of!(Fixed, key)..][..4].copy_from_slice(&1u32.to_le_bytes());
        let end = bytes.len() - MAC_BYTES;
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), &bytes[..end]);
        bytes[end..].copy_from_slice(mac.as_ref());
        bytes
    }
}

#[cfg(test)]
mod tests;
