//! Whether an image is a moment of the ledger: the state after the first so many writes, none missing, none too early.
//!
//! The order of the argument: each writer's log says how far it came; accounts must be what the logs say; what an intent knew
//! of other writers must be there; documents and the pad must be what a writer that came so far leaves; and the sums must hold,
//! which also covers movements that are too old to be in a log.

mod accounts;
mod documents;
mod logs;
mod pad;

use super::layout::{BLOCK, Layout};
use super::load::Bounds;
use super::port::Blocks;
use super::sector::{Found, SECTOR, Stamp, open};
use super::violation::{Place, Violation};
use logs::Log;

/// What a good moment holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The parameters of the ledger.
    pub layout: Layout,
    /// For each writer, its last complete movement.
    pub complete: Vec<u64>,
    /// For each writer, its last announced movement: that, or one more.
    pub announced: Vec<u64>,
    /// All the money, once announced movements are complete.
    pub sum: u64,
    /// Money that is on its way: taken from an account and not yet given to another.
    pub on_the_way: u64,
    /// Sectors of documents.
    pub document_sectors: u64,
}

impl Facts {
    /// Complete movements of all writers.
    #[must_use]
    pub fn movements(&self) -> u64 {
        self.complete.iter().sum()
    }

    /// Whether the moment lies where it should: with everything that was complete before it, without what began after it.
    ///
    /// # Errors
    /// [`Violation::TooOld`] or [`Violation::TooNew`].
    pub fn within(&self, bounds: &Bounds) -> Result<(), Violation> {
        for writer in 0..self.layout.writers {
            let at = usize::from(writer);
            let of = |all: &[u64], missing: u64| all.get(at).copied().unwrap_or(missing);
            let (expected, found) = (of(&bounds.at_least, 0), of(&self.complete, 0));
            if found < expected {
                return Err(Violation::TooOld { writer, expected, found });
            }
            let (expected, found) = (of(&bounds.at_most, u64::MAX), of(&self.announced, 0));
            if found > expected {
                return Err(Violation::TooNew { writer, expected, found });
            }
        }
        Ok(())
    }
}

/// Checks the ledger that begins at byte `base` of an image.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(image: &mut dyn Blocks, base: u64) -> Result<Facts, Violation> {
    let header = read(image, base, BLOCK)?;
    let layout = Layout::from_header(&header).filter(|layout| layout.base == base);
    let layout = layout.ok_or(Violation::NotALedger { base })?;
    let logs =
        (0..layout.writers).map(|writer| logs::read_log(image, &layout, writer)).collect::<Result<Vec<_>, _>>()?;
    let accounts = accounts::read_accounts(image, &layout)?;
    accounts::check_against_logs(&layout, &accounts, &logs)?;
    let complete: Vec<u64> = logs.iter().map(|log| log.complete(&accounts)).collect();
    check_knowledge(&logs, &complete)?;
    let sums = accounts::check_sums(&layout, &accounts, &logs)?;
    let mut document_sectors = 0;
    for (log, complete) in logs.iter().zip(&complete) {
        document_sectors += documents::check_documents(image, &layout, log, *complete == log.last)?;
    }
    pad::check_pad(image, &layout, &logs, &complete)?;
    let announced = logs.iter().map(|log| log.last).collect();
    Ok(Facts { layout, complete, announced, sum: sums.sum, on_the_way: sums.on_the_way, document_sectors })
}

/// What an intent knew to be complete must be there.
fn check_knowledge(logs: &[Log], complete: &[u64]) -> Result<(), Violation> {
    for log in logs {
        for transfer in &log.transfers {
            for (other, (knew, complete)) in transfer.seen.iter().zip(complete).enumerate() {
                if knew > complete {
                    let (writer, seq, other) = (log.writer, transfer.seq, other as u16);
                    return Err(Violation::Reordered { writer, seq, other, knew: *knew, complete: *complete });
                }
            }
        }
    }
    Ok(())
}

fn read(image: &mut dyn Blocks, offset: u64, length: u64) -> Result<Vec<u8>, Violation> {
    let mut bytes = vec![0; length as usize];
    image.read(offset, &mut bytes)?;
    Ok(bytes)
}

/// What each sector should be: of a write, or zeros.
type Expected = [Option<Stamp>];

/// Whether all sectors are as expected.
fn is(bytes: &[u8], expected: &Expected) -> bool {
    mismatch(bytes, expected).is_none()
}

/// The first sector that is not as expected.
fn mismatch(bytes: &[u8], expected: &Expected) -> Option<usize> {
    let same = |(sector, expected): (&[u8], &Option<Stamp>)| match (open(sector), expected) {
        (Found::Zero, None) => true,
        (Found::Ours(stamp, _), Some(expected)) => stamp == *expected,
        _ => false,
    };
    bytes.chunks(SECTOR).zip(expected).position(|pair| !same(pair))
}

/// The first sector that is no sector of ours at all, as an error.
fn refuse_garbage(bytes: &[u8], place: Place, start: u64) -> Result<(), Violation> {
    match bytes.chunks(SECTOR).position(|sector| open(sector) == Found::Garbage) {
        Some(at) => Err(Violation::Garbage { place, offset: sector_offset(start, at) }),
        None => Ok(()),
    }
}

fn sector_offset(start: u64, index: usize) -> u64 {
    start + (index * SECTOR) as u64
}
