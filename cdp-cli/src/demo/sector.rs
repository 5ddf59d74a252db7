//! A sector that says which write of which writer it belongs to, under a checksum.

use std::sync::LazyLock;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Bytes of a sector before its payload.
const STAMP: usize = 24;
/// Bytes of a sector that its kind may use.
pub const PAYLOAD: usize = SECTOR - STAMP;

/// What a sector is for. The first four bytes of it on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The ledger's own parameters.
    Header,
    /// An account.
    Account,
    /// A movement that is announced.
    Intent,
    /// A document.
    Document,
    /// The shared pad.
    Pad,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Header, Self::Account, Self::Intent, Self::Document, Self::Pad];

    fn magic(self) -> [u8; 4] {
        *match self {
            Self::Header => b"LHDR",
            Self::Account => b"LACC",
            Self::Intent => b"LINT",
            Self::Document => b"LDOC",
            Self::Pad => b"LPAD",
        }
    }
}

/// Which write a sector belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// What it is for.
    pub kind: Kind,
    /// Who wrote it.
    pub writer: u16,
    /// Which of the write's sectors it is, from 0.
    pub index: u16,
    /// How many sectors the write has.
    pub count: u16,
    /// The writer's movement that it belongs to, from 1; 0 at the beginning.
    pub seq: u64,
}

/// A sector as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// All zeros.
    Zero,
    /// Of one of our writes.
    Ours(Stamp, &'a [u8]),
    /// Neither: half a sector, other data, flipped bits.
    Garbage,
}

/// Appends a sector; `payload` is filled up with text that compresses about as documents do.
pub fn push(out: &mut Vec<u8>, stamp: Stamp, payload: &[u8]) {
    let mut sector = [0; SECTOR];
    sector[..4].copy_from_slice(&stamp.kind.magic());
    sector[8..10].copy_from_slice(&stamp.writer.to_le_bytes());
    sector[10..12].copy_from_slice(&stamp.index.to_le_bytes());
    sector[12..14].copy_from_slice(&stamp.count.to_le_bytes());
    sector[16..24].copy_from_slice(&stamp.seq.to_le_bytes());
    let used = payload.len().min(PAYLOAD);
    sector[STAMP..STAMP + used].copy_from_slice(&payload[..used]);
    fill(&mut sector[STAMP + used..], stamp);
    let crc = crc32c::crc32c(&sector);
    sector[4..8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&sector);
}

/// Text that sectors are filled up from, made once.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const WORDS: [&str; 8] = ["account", "balance", "of", "the", "transfer", "ledger", "and", "invoice"];
    let mut rng = Rng::new(1);
    let mut text = String::with_capacity(TEXT_BYTES + 64);
    while text.len() < TEXT_BYTES {
        let bits = rng.next();
        text.push_str(&format!("{} {:06} ", WORDS[(bits & 7) as usize], bits >> 3 & 0xf_ffff));
    }
    text.into_bytes()
});

/// More than the window of a compressor, so that sectors of one write do not repeat each other.
const TEXT_BYTES: usize = 1 << 20;

fn fill(rest: &mut [u8], stamp: Stamp) {
    let mut rng = Rng::new(stamp.seq ^ u64::from(stamp.writer) << 48 ^ u64::from(stamp.index) << 32);
    let start = rng.below((TEXT_BYTES - SECTOR) as u64) as usize;
    rest.copy_from_slice(&TEXT[start..start + rest.len()]);
}

/// What a sector is.
#[must_use]
pub fn open(sector: &[u8]) -> Found<'_> {
    if sector.iter().all(|byte| *byte == 0) {
        return Found::Zero;
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| sector.starts_with(&kind.magic())) else {
        return Found::Garbage;
    };
    if sector.len() != SECTOR {
        return Found::Garbage;
    }
    let mut plain = [0; SECTOR];
    plain.copy_from_slice(sector);
    plain[4..8].fill(0);
    if crc32c::crc32c(&plain).to_le_bytes() != sector[4..8] {
        return Found::Garbage;
    }
    let short = |at: usize| u16::from_le_bytes([sector[at], sector[at + 1]]);
    let mut rest = Fields(&sector[16..STAMP]);
    let seq = rest.long().unwrap_or_default();
    let stamp = Stamp { kind, writer: short(8), index: short(10), count: short(12), seq };
    Found::Ours(stamp, &sector[STAMP..])
}

/// Numbers of a payload, in order.
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    /// The next eight bytes, little endian.
    pub fn long(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }
}

/// Numbers as a payload.
#[must_use]
pub fn longs(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Numbers that look random and are the same in every run (splitmix64, <https://prng.di.unimi.it/splitmix64.c>).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Begins at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so an Option would only be in the way")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
