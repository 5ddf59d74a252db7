//! The shared pad, which writers overwrite without any lock: it is one of their writes, whole, and none that was surely
//! overwritten since.

use super::logs::Log;
use super::{is, read, refuse_garbage};
use crate::demo::layout::{Extra, Layout, PAD_BYTES, PAD_SECTORS};
use crate::demo::port::Blocks;
use crate::demo::sector::{Found, Kind, SECTOR, Stamp, open};
use crate::demo::violation::{Place, Violation};

pub(super) fn check_pad(
    image: &mut dyn Blocks,
    layout: &Layout,
    logs: &[Log],
    complete: &[u64],
) -> Result<(), Violation> {
    let (place, offset) = (Place::Pad, layout.pad());
    let bytes = read(image, offset, PAD_BYTES)?;
    refuse_garbage(&bytes, place, offset)?;
    let found = match open(&bytes[..SECTOR]) {
        Found::Ours(stamp, _) => Some((stamp.writer, stamp.seq)),
        _ => None,
    };
    let expected: Vec<_> = (0..PAD_SECTORS)
        .map(|index| found.map(|(writer, seq)| Stamp { kind: Kind::Pad, writer, index, count: PAD_SECTORS, seq }))
        .collect();
    if !is(&bytes, &expected) {
        let (writer, seq) = found.unwrap_or_default();
        return Err(Violation::Torn { place, writer, seq, offset });
    }
    if let Some((writer, seq)) = found {
        let complete = *complete.get(usize::from(writer)).ok_or(Violation::Garbage { place, offset })?;
        if layout.extra(writer, seq) != Extra::Pad {
            return Err(Violation::Garbage { place, offset });
        }
        if seq > complete {
            return Err(Violation::Early { place, writer, seq, offset });
        }
    }
    for log in logs {
        if let Some(seq) = surely_written(layout, log).filter(|seq| was_overwritten(found, log, *seq)) {
            return Err(Violation::Lost { place, writer: log.writer, seq, offset });
        }
    }
    Ok(())
}

/// The last movement after which the writer overwrote the pad and then went on.
fn surely_written(layout: &Layout, log: &Log) -> Option<u64> {
    (1..log.last).rev().take(8).find(|seq| layout.extra(log.writer, *seq) == Extra::Pad)
}

/// Whether what is there was acknowledged before `log`'s writer overwrote the pad after its movement `seq`.
fn was_overwritten(found: Option<(u16, u64)>, log: &Log, seq: u64) -> bool {
    match found {
        None => true,
        Some((writer, there)) if writer == log.writer => there < seq,
        Some((writer, there)) => {
            // That its writer had completed the movement after it means that the pad was acknowledged in between.
            let seen = log.transfer(seq).and_then(|transfer| transfer.seen.get(usize::from(writer)));
            seen.is_some_and(|seen| *seen > there)
        }
    }
}
