//! Notes as bytes: what records without disk data say.

use super::record::{GapReason, Mark, Note, PointKinds, RecordKind, ResyncReason};
use crate::types::{CHUNK_PLAIN_MAX, DISK_MAX, Lsn, MonoTime, NAME_MAX, SET_LABEL_MAX, SetId, StartId, Timeline};

/// The most bytes of a note: a disk's size and its name.
const NOTE_BYTES_MAX: usize = 8 + 2 + NAME_MAX;
/// So many notes fit into one frame however long they are: they share a chunk.
pub const NOTES_MAX: usize = CHUNK_PLAIN_MAX as usize / NOTE_BYTES_MAX;

pub(super) fn encode(note: &Note, out: &mut Vec<u8>) {
    match note {
        Note::Mark(mark) => {
            out.extend_from_slice(&[mark.kinds.bits(), u8::from(mark.on_barrier)]);
            text(&mark.label, out);
        }
        Note::Time { mono } => out.extend_from_slice(&mono.0.to_le_bytes()),
        Note::Resize { from, to } => {
            out.extend_from_slice(&from.to_le_bytes());
            out.extend_from_slice(&to.to_le_bytes());
        }
        Note::DiskAdded { name, size } => {
            out.extend_from_slice(&size.to_le_bytes());
            text(name, out);
        }
        Note::TimelineStart { parent, fork } => {
            out.extend_from_slice(parent.as_ref().map_or(&[0; 16], Timeline::bytes).as_slice());
            out.extend_from_slice(&fork.0.to_le_bytes());
        }
        Note::GapBegin { from, reason } => {
            out.extend_from_slice(&from.0.to_le_bytes());
            out.push(*reason as u8);
        }
        Note::ResyncBegin { from, reason } => {
            out.extend_from_slice(&from.0.to_le_bytes());
            out.push(*reason as u8);
        }
        Note::ResyncEnd { bytes_read, bytes_changed } => {
            out.extend_from_slice(&bytes_read.to_le_bytes());
            out.extend_from_slice(&bytes_changed.to_le_bytes());
        }
        Note::PeriodBegin { from } => out.extend_from_slice(&from.0.to_le_bytes()),
        Note::SetPoint { set, taker, cut, lsn, members, label } => {
            out.extend_from_slice(set.bytes());
            out.extend_from_slice(taker.bytes());
            out.extend_from_slice(&cut.to_le_bytes());
            out.extend_from_slice(&lsn.0.to_le_bytes());
            out.extend_from_slice(&members.to_le_bytes());
            text_within(label, SET_LABEL_MAX, out);
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    text_within(text, NAME_MAX, out);
}

fn text_within(text: &str, max: usize, out: &mut Vec<u8>) {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// The note of a record of this kind; `None` when the bytes are not one.
pub(super) fn decode(kind: RecordKind, bytes: &[u8]) -> Option<Note> {
    let mut rest = Cursor(bytes);
    Some(match kind {
        RecordKind::Mark => {
            let [bits, on_barrier] = *rest.take(2)? else { return None };
            let kinds = PointKinds::from_bits(bits);
            Note::Mark(Mark { kinds, on_barrier: on_barrier != 0, label: rest.text()? })
        }
        RecordKind::Time => Note::Time { mono: MonoTime(rest.number()?) },
        RecordKind::Resize => Note::Resize { from: rest.size()?, to: rest.size()? },
        RecordKind::DiskAdded => {
            let size = rest.size()?;
            Note::DiskAdded { name: rest.text()?, size }
        }
        RecordKind::TimelineStart => {
            let parent = Timeline::new(rest.take(16)?.try_into().ok()?);
            Note::TimelineStart { parent, fork: Lsn(rest.number()?) }
        }
        RecordKind::GapBegin => {
            Note::GapBegin { from: Lsn(rest.number()?), reason: GapReason::from_number(rest.take(1)?[0])? }
        }
        RecordKind::ResyncBegin => {
            Note::ResyncBegin { from: Lsn(rest.number()?), reason: ResyncReason::from_number(rest.take(1)?[0])? }
        }
        RecordKind::ResyncEnd => Note::ResyncEnd { bytes_read: rest.number()?, bytes_changed: rest.number()? },
        RecordKind::PeriodBegin => Note::PeriodBegin { from: Lsn(rest.number()?) },
        RecordKind::SetPoint => {
            let set = SetId::new(rest.take(16)?.try_into().ok()?)?;
            let taker = StartId::new(rest.take(16)?.try_into().ok()?)?;
            let (cut, lsn) = (rest.number()?, Lsn(rest.number()?));
            let members = u16::from_le_bytes(rest.take(2)?.try_into().ok()?);
            let label = rest.text().filter(|label| label.len() <= SET_LABEL_MAX)?;
            Note::SetPoint { set, taker, cut, lsn, members, label }
        }
        _ => return None,
    })
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    /// A disk's size: what is as large as it says would be made later, so it is checked here.
    fn size(&mut self) -> Option<u64> {
        self.number().filter(|size| *size <= DISK_MAX)
    }
    fn text(&mut self) -> Option<String> {
        let length = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        let bytes = self.take(usize::from(length))?;
        (bytes.len() <= NAME_MAX).then(|| std::str::from_utf8(bytes).ok().map(str::to_owned)).flatten()
    }
}
