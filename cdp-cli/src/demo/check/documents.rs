//! Documents must be what a writer that came so far leaves.

use super::logs::Log;
use super::{is, mismatch, read, refuse_garbage, sector_offset};
use crate::demo::layout::{Extra, Layout};
use crate::demo::port::Blocks;
use crate::demo::sector::{Found, Kind, SECTOR, Stamp, open};
use crate::demo::violation::{Place, Violation};

/// A document as it should be.
#[derive(Clone)]
struct Document {
    sectors: Vec<Option<Stamp>>,
    /// The movement that changed it last, and whether that erased it.
    last: (u64, bool),
}

/// Every document of a writer after what follows its movement `seq`.
fn documents_after(layout: &Layout, writer: u16, seq: u64) -> Vec<Document> {
    let empty = Document { sectors: vec![None; (layout.document_bytes as usize) / SECTOR], last: (0, true) };
    let mut documents = vec![empty; layout.documents as usize];
    // Each document is erased once in 3 movements for each document, so what lies twice as far back is gone.
    let first = seq.saturating_sub(6 * layout.documents).max(1);
    for seq in first..=seq {
        match layout.extra(writer, seq) {
            Extra::Write { document, sectors: count } => {
                let document = &mut documents[document as usize];
                for index in 0..count {
                    let stamp = Stamp { kind: Kind::Document, writer, index, count, seq };
                    document.sectors[usize::from(index)] = Some(stamp);
                }
                document.last = (seq, false);
            }
            Extra::Erase { document, .. } => {
                let document = &mut documents[document as usize];
                document.sectors.fill(None);
                document.last = (seq, true);
            }
            Extra::Pad | Extra::Nothing => {}
        }
    }
    documents
}

/// Checks a writer's documents; what follows its last movement may be there if that is `complete`. Counts their sectors.
pub(super) fn check_documents(
    image: &mut dyn Blocks,
    layout: &Layout,
    log: &Log,
    complete: bool,
) -> Result<u64, Violation> {
    let (writer, last) = (log.writer, log.last);
    let sure = documents_after(layout, writer, last.saturating_sub(1));
    let perhaps = documents_after(layout, writer, last);
    let mut written = 0;
    for (number, (sure, perhaps)) in sure.iter().zip(&perhaps).enumerate() {
        let start = layout.document(writer, number as u64);
        let bytes = read(image, start, layout.document_bytes)?;
        let place = Place::Document(number as u64);
        refuse_garbage(&bytes, place, start)?;
        let good = is(&bytes, &sure.sectors) || complete && is(&bytes, &perhaps.sectors);
        if !good {
            let began = complete && sure.last != perhaps.last && touches(&bytes, sure, perhaps);
            return Err(explain(&bytes, if began { perhaps } else { sure }, place, writer, start, last));
        }
        written += bytes.chunks(SECTOR).filter(|sector| open(sector) != Found::Zero).count() as u64;
    }
    Ok(written)
}

/// Whether a sector is as only the last change leaves it.
fn touches(bytes: &[u8], sure: &Document, perhaps: &Document) -> bool {
    let pairs = bytes.chunks(SECTOR).zip(sure.sectors.iter().zip(&perhaps.sectors));
    pairs.filter(|(_, (sure, perhaps))| sure != perhaps).any(|(sector, (_, perhaps))| is(sector, &[*perhaps]))
}

/// What is wrong with a document that should be as `expected` says.
fn explain(bytes: &[u8], expected: &Document, place: Place, writer: u16, start: u64, newest: u64) -> Violation {
    let at = mismatch(bytes, &expected.sectors).unwrap_or(0);
    let (seq, erased) = expected.last;
    let offset = sector_offset(start, at);
    if let Found::Ours(stamp, _) = open(&bytes[at * SECTOR..(at + 1) * SECTOR]) {
        if stamp.kind != Kind::Document || stamp.writer != writer {
            return Violation::Garbage { place, offset };
        }
        if stamp.seq > seq.min(newest) {
            return Violation::Early { place, writer, seq: stamp.seq, offset };
        }
    }
    let is_there = |(sector, expected): (&[u8], &Option<Stamp>)| is(sector, &[*expected]);
    let changed = |expected: &Option<Stamp>| expected.is_none_or(|stamp| stamp.seq == seq);
    let mut of_last = bytes.chunks(SECTOR).zip(&expected.sectors).filter(|(_, expected)| changed(expected));
    match (erased, of_last.any(is_there)) {
        // Whether all of the erasure or a part of it is missing: what was there may have had zeros of its own.
        (true, _) => Violation::Resurrected { place, writer, seq, offset },
        (false, false) => Violation::Lost { place, writer, seq, offset },
        (false, true) => Violation::Torn { place, writer, seq, offset },
    }
}
