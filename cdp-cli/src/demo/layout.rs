//! Where the parts of a ledger lie, and what its writers do at which movement.
//!
//! What a writer does beside its movements depends only on the movement's number, so that the checker knows it too.

use super::sector::{Fields, Found, Kind, PAYLOAD, SECTOR, Stamp, longs, open, push};

/// The unit in which parts are laid out, in bytes.
pub const BLOCK: u64 = 4096;
/// Sectors of an intent.
pub const INTENT_SECTORS: u16 = 8;
/// Bytes of an intent.
pub const INTENT_BYTES: u64 = INTENT_SECTORS as u64 * SECTOR as u64;
/// Sectors of the shared pad.
pub const PAD_SECTORS: u16 = 16;
/// Bytes of the shared pad.
pub const PAD_BYTES: u64 = PAD_SECTORS as u64 * SECTOR as u64;
/// The most writers, whose clocks all stand in one sector of each intent.
pub const WRITERS_MAX: u64 = 48;
/// Version of all this on disk.
const VERSION: u64 = 1;

const _: () = assert!((WRITERS_MAX as usize + 7) * 8 <= PAYLOAD, "an intent's facts fit into its first sector");

/// The parameters of a ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Where it begins on the disk, in bytes; a multiple of 4096.
    pub base: u64,
    /// Makes one ledger different from another.
    pub seed: u64,
    /// Writers, each with a thread and a connection of its own; 1 to [`WRITERS_MAX`].
    pub writers: u16,
    /// Accounts, a sector each; at least four times the writers, a multiple of 8.
    pub accounts: u32,
    /// What is in each account at the beginning.
    pub balance: u64,
    /// Intents of each writer that are kept, at least 8.
    pub intents: u64,
    /// Documents of each writer.
    pub documents: u64,
    /// Bytes of room for a document; a multiple of 4096, at most 16 MiB.
    pub document_bytes: u64,
}

/// What a writer does after a movement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extra {
    /// Writes that many sectors at the beginning of a document.
    Write {
        /// Which document.
        document: u64,
        /// How many sectors.
        sectors: u16,
    },
    /// Makes a whole document read as zeros.
    Erase {
        /// Which document.
        document: u64,
        /// By a trim; else by writing zeros.
        trim: bool,
    },
    /// Overwrites the shared pad.
    Pad,
    /// Nothing.
    Nothing,
}

impl Layout {
    /// About 20 MiB at `base` for eight writers.
    #[must_use]
    pub fn standard(base: u64, seed: u64) -> Self {
        let (writers, accounts, balance, intents) = (8, 2048, 1_000_000, 64);
        Self { base, seed, writers, accounts, balance, intents, documents: 8, document_bytes: 256 << 10 }
    }

    /// All the money there is.
    #[must_use]
    pub fn total(&self) -> u64 {
        u64::from(self.accounts) * self.balance
    }

    /// Where an account lies.
    #[must_use]
    pub fn account(&self, account: u32) -> u64 {
        self.base + 2 * BLOCK + u64::from(account) * SECTOR as u64
    }

    /// A block that means nothing: a writer tries there what a trim does.
    #[must_use]
    pub fn probe(&self) -> u64 {
        self.base + BLOCK
    }

    /// Where the shared pad lies.
    #[must_use]
    pub fn pad(&self) -> u64 {
        let accounts = u64::from(self.accounts) * SECTOR as u64;
        (self.base + 2 * BLOCK + accounts).next_multiple_of(BLOCK)
    }

    /// Where the writer's intents lie.
    #[must_use]
    pub fn log(&self, writer: u16) -> u64 {
        let each = self.intents * INTENT_BYTES + self.documents * self.document_bytes;
        self.pad() + PAD_BYTES + u64::from(writer) * each
    }

    /// Where the writer keeps the intent of that movement.
    #[must_use]
    pub fn intent(&self, writer: u16, seq: u64) -> u64 {
        self.log(writer) + (seq.saturating_sub(1) % self.intents) * INTENT_BYTES
    }

    /// Where a writer's document lies.
    #[must_use]
    pub fn document(&self, writer: u16, document: u64) -> u64 {
        self.log(writer) + self.intents * INTENT_BYTES + document * self.document_bytes
    }

    /// The first byte after the ledger.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.log(self.writers)
    }

    /// What `writer` does after movement `seq`.
    #[must_use]
    pub fn extra(&self, writer: u16, seq: u64) -> Extra {
        let round = seq / 3;
        match seq % 3 {
            0 => {
                let blocks = self.document_bytes / BLOCK;
                let size = super::sector::Rng::new(self.seed ^ seq << 8 ^ u64::from(writer)).below(blocks) + 1;
                let sectors = (size * BLOCK / SECTOR as u64) as u16;
                Extra::Write { document: round % self.documents, sectors }
            }
            1 => {
                let document = (round + self.documents / 2) % self.documents;
                Extra::Erase { document, trim: (round / self.documents).is_multiple_of(2) }
            }
            _ if round % 2 == 1 => Extra::Pad,
            _ => Extra::Nothing,
        }
    }

    /// Whether `writer` flushes after movement `seq`.
    #[must_use]
    pub fn flushes(&self, writer: u16, seq: u64) -> bool {
        seq % 8 == u64::from(writer) % 8
    }

    /// Whether the intent of movement `seq` is written with FUA.
    #[must_use]
    pub fn fua(&self, seq: u64) -> bool {
        seq.is_multiple_of(16)
    }

    /// The block that holds the parameters.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let numbers = [
            VERSION,
            self.base,
            self.seed,
            u64::from(self.writers),
            u64::from(self.accounts),
            self.balance,
            self.intents,
            self.documents,
            self.document_bytes,
        ];
        let mut block = Vec::with_capacity(BLOCK as usize);
        push(&mut block, Stamp { kind: Kind::Header, writer: 0, index: 0, count: 1, seq: 0 }, &longs(numbers));
        block.resize(BLOCK as usize, 0);
        block
    }

    /// Reads the parameters from their block; `None` if it holds none, or impossible ones.
    #[must_use]
    pub fn from_header(block: &[u8]) -> Option<Self> {
        let Found::Ours(Stamp { kind: Kind::Header, .. }, payload) = open(block.get(..SECTOR)?) else { return None };
        let mut fields = Fields(payload);
        let mut next = || fields.long();
        if next()? != VERSION {
            return None;
        }
        let layout = Self {
            base: next()?,
            seed: next()?,
            writers: next()?.try_into().ok()?,
            accounts: next()?.try_into().ok()?,
            balance: next()?,
            intents: next()?,
            documents: next()?,
            document_bytes: next()?,
        };
        layout.is_possible().then_some(layout)
    }

    /// Whether the parameters make a ledger.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let writers = u64::from(self.writers);
        self.base.is_multiple_of(BLOCK)
            && (1..=WRITERS_MAX).contains(&writers)
            && u64::from(self.accounts) >= 4 * writers
            && self.accounts.is_multiple_of(8)
            && self.accounts <= 1 << 24
            && self.balance <= 1 << 32
            && (8..=65_536).contains(&self.intents)
            && (2..=65_536).contains(&self.documents)
            && self.document_bytes.is_multiple_of(BLOCK)
            && (BLOCK..=16 << 20).contains(&self.document_bytes)
    }
}
