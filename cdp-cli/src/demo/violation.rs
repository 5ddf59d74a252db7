//! What can be wrong with a moment of a ledger.

use std::fmt;
use std::io;
use thiserror::Error;

/// A part of a ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The parameters.
    Header,
    /// The intents of a writer.
    Intent,
    /// An account.
    Account(u32),
    /// A document of a writer.
    Document(u64),
    /// The shared pad.
    Pad,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Intent => f.write_str("intent"),
            Self::Account(account) => write!(f, "account {account}"),
            Self::Document(document) => write!(f, "document {document}"),
            Self::Pad => f.write_str("pad"),
        }
    }
}

/// Why an image is no moment of the ledger: it is not what the disk held after the first so many writes.
#[derive(Debug, Error)]
pub enum Violation {
    /// It cannot be read.
    #[error("cannot read the image")]
    Io(#[from] io::Error),
    /// There is no ledger at that place.
    #[error("there is no ledger at byte {base}")]
    NotALedger {
        /// Where it was looked for.
        base: u64,
    },
    /// A sector that no write of ours can have left there.
    #[error("{place} at byte {offset}: the sector belongs to no write of the ledger")]
    Garbage {
        /// The part.
        place: Place,
        /// Where the sector is.
        offset: u64,
    },
    /// Some sectors of one write are there, and some are not.
    #[error("{place} at byte {offset}: the write of movement {seq} of writer {writer} is torn")]
    Torn {
        /// The part.
        place: Place,
        /// Who wrote it.
        writer: u16,
        /// Its movement.
        seq: u64,
        /// Where the first wrong sector is.
        offset: u64,
    },
    /// A write is missing though a later one is there.
    #[error("{place} at byte {offset}: the write of movement {seq} of writer {writer} is lost, later writes are there")]
    Lost {
        /// The part.
        place: Place,
        /// Who wrote it.
        writer: u16,
        /// Its movement.
        seq: u64,
        /// Where it should be.
        offset: u64,
    },
    /// A write is there though an earlier one of the same writer is missing.
    #[error("{place} at byte {offset}: the write of movement {seq} of writer {writer} is there, earlier ones are not")]
    Early {
        /// The part.
        place: Place,
        /// Who wrote it.
        writer: u16,
        /// Its movement.
        seq: u64,
        /// Where it is.
        offset: u64,
    },
    /// What was trimmed or zeroed is there again.
    #[error("{place} at byte {offset}: what writer {writer} erased at movement {seq} is there again")]
    Resurrected {
        /// The part.
        place: Place,
        /// Who erased it.
        writer: u16,
        /// The movement of the erasure.
        seq: u64,
        /// Where the first wrong sector is.
        offset: u64,
    },
    /// A movement is there, and one that was complete before it began is not.
    #[error(
        "movement {seq} of writer {writer} began after movement {knew} of writer {other} was complete, of which only \
         {complete} are there"
    )]
    Reordered {
        /// Who announced it.
        writer: u16,
        /// Its movement.
        seq: u64,
        /// Another writer.
        other: u16,
        /// How many movements of the other were complete when it began.
        knew: u64,
        /// How many are there.
        complete: u64,
    },
    /// Two movements that began from the same state of an account, or a state that follows from none.
    #[error("account {account}: its version {version} does not follow from the movements")]
    Chain {
        /// The account.
        account: u32,
        /// The version.
        version: u64,
    },
    /// Money appeared or vanished.
    #[error("the sum is {found}, not {expected}")]
    Sum {
        /// All the money there is.
        expected: u64,
        /// What is there once announced movements are complete.
        found: u64,
    },
    /// Movements appeared or vanished whole.
    #[error("the accounts were changed {found} times, not {expected} times")]
    Count {
        /// As many as the movements say.
        expected: u64,
        /// As many as the accounts say.
        found: u64,
    },
    /// The moment lacks movements that were complete before it.
    #[error("writer {writer} had {expected} movements complete before this moment, of which {found} are there")]
    TooOld {
        /// The writer.
        writer: u16,
        /// Complete before the moment.
        expected: u64,
        /// There.
        found: u64,
    },
    /// The moment holds movements that began after it.
    #[error("writer {writer} had announced {expected} movements at this moment, and {found} are there")]
    TooNew {
        /// The writer.
        writer: u16,
        /// Announced at the moment.
        expected: u64,
        /// There.
        found: u64,
    },
}
