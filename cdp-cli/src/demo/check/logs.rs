//! What a writer announced: the last so many intents, each whole, none missing.

use super::accounts::AccountSector;
use super::{mismatch, read, refuse_garbage, sector_offset};
use crate::demo::bank::{Account, Transfer};
use crate::demo::layout::{INTENT_BYTES, INTENT_SECTORS, Layout};
use crate::demo::port::Blocks;
use crate::demo::sector::{Fields, Found, Kind, SECTOR, Stamp, open};
use crate::demo::violation::{Place, Violation};

/// A writer's intents.
pub(super) struct Log {
    pub(super) writer: u16,
    /// The last movement that was announced; 0 for none.
    pub(super) last: u64,
    /// Those that are kept, in order.
    pub(super) transfers: Vec<Transfer>,
}

impl Log {
    /// The last complete movement.
    pub(super) fn complete(&self, accounts: &[AccountSector]) -> u64 {
        match self.transfers.last() {
            Some(transfer) if effects(transfer, accounts) != (true, true) => self.last - 1,
            _ => self.last,
        }
    }

    /// The kept intent of that movement.
    pub(super) fn transfer(&self, seq: u64) -> Option<&Transfer> {
        self.transfers.iter().find(|transfer| transfer.seq == seq)
    }
}

/// Whether the debit and the credit of a movement are there.
pub(super) fn effects(transfer: &Transfer, accounts: &[AccountSector]) -> (bool, bool) {
    let version = |account: u32| accounts[account as usize].account.version;
    (version(transfer.from) > transfer.from_before.version, version(transfer.to) > transfer.to_before.version)
}

pub(super) fn read_log(image: &mut dyn Blocks, layout: &Layout, writer: u16) -> Result<Log, Violation> {
    let start = layout.log(writer);
    let bytes = read(image, start, layout.intents * INTENT_BYTES)?;
    refuse_garbage(&bytes, Place::Intent, start)?;
    // Any sector counts, so that an intent of which only a part is there is found to be torn.
    let seqs = bytes.chunks(SECTOR).filter_map(|sector| match open(sector) {
        Found::Ours(stamp, _) => Some(stamp.seq),
        _ => None,
    });
    let last = seqs.max().unwrap_or(0);
    let slots = (0..layout.intents).zip(bytes.chunks(INTENT_BYTES as usize));
    let mut transfers = Vec::new();
    for (slot, bytes) in slots {
        let offset = start + slot * INTENT_BYTES;
        let Some(seq) = newest(slot, last, layout.intents) else {
            if let Some(at) = mismatch(bytes, &[None; INTENT_SECTORS as usize]) {
                return Err(Violation::Garbage { place: Place::Intent, offset: sector_offset(offset, at) });
            }
            continue;
        };
        check_whole(bytes, writer, seq, offset)?;
        let garbage = Violation::Garbage { place: Place::Intent, offset };
        transfers.push(decode(bytes, layout, seq).ok_or(garbage)?);
    }
    transfers.sort_by_key(|transfer| transfer.seq);
    Ok(Log { writer, last, transfers })
}

/// The newest movement up to `last` whose intent goes to that slot.
fn newest(slot: u64, last: u64, slots: u64) -> Option<u64> {
    let first = slot + 1;
    (first <= last).then(|| first + (last - first) / slots * slots)
}

fn check_whole(bytes: &[u8], writer: u16, seq: u64, offset: u64) -> Result<(), Violation> {
    let stamp = |index| Some(Stamp { kind: Kind::Intent, writer, index, count: INTENT_SECTORS, seq });
    let expected: Vec<_> = (0..INTENT_SECTORS).map(stamp).collect();
    let Some(at) = mismatch(bytes, &expected) else { return Ok(()) };
    let any = bytes
        .chunks(SECTOR)
        .zip(&expected)
        .any(|(sector, expected)| matches!(open(sector), Found::Ours(stamp, _) if Some(stamp) == *expected));
    let (place, offset) = (Place::Intent, sector_offset(offset, at));
    Err(if any {
        Violation::Torn { place, writer, seq, offset }
    } else {
        Violation::Lost { place, writer, seq, offset }
    })
}

fn decode(bytes: &[u8], layout: &Layout, seq: u64) -> Option<Transfer> {
    let Found::Ours(_, payload) = open(bytes.get(..SECTOR)?) else { return None };
    let mut fields = Fields(payload);
    let mut next = || fields.long();
    let from = u32::try_from(next()?).ok().filter(|account| *account < layout.accounts)?;
    let from_before = Account { version: next()?, balance: next()? };
    let to = u32::try_from(next()?).ok().filter(|account| *account < layout.accounts && *account != from)?;
    let to_before = Account { version: next()?, balance: next()? };
    let amount = next().filter(|amount| *amount <= from_before.balance)?;
    let seen = (0..layout.writers).map(|_| next()).collect::<Option<Vec<_>>>()?;
    Some(Transfer { seq, from, from_before, to, to_before, amount, seen })
}
