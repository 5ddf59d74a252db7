//! Which writes go out together: what was packed while the disk was busy.

use bytes::Bytes;
use cdp_core::journal::EffectId;
use cdp_core::media::File;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that are written together at most: several requests for any disk, and the first of them does not wait long.
const TOGETHER_BYTES: u64 = 4 << 20;
/// From so many bytes on a write goes out beside others; less waits until the disk has nothing else to do. A write of half the
/// size costs the processor nearly as much, and the disk too.
const WORTH_BYTES: u64 = 1 << 20;

/// A write of the journal's.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) id: EffectId,
    pub(super) file: Arc<dyn File>,
    pub(super) offset: u64,
    pub(super) data: Vec<Bytes>,
}

/// Writes to one place after another in the same file.
#[derive(Debug)]
pub(super) struct Together {
    pub(super) ids: Vec<EffectId>,
    pub(super) file: Arc<dyn File>,
    pub(super) offset: u64,
    pub(super) data: Vec<Bytes>,
}

/// What is to be written: as many bytes as who gives them lets be under way, see [the driver](super).
#[derive(Debug, Default)]
pub(super) struct Gather {
    waiting: VecDeque<Append>,
    /// Bytes of those.
    bytes: u64,
    /// What was taken and is not written, and the file that was last written to.
    writing: usize,
    last: Option<Arc<dyn File>>,
    closed: bool,
}

impl Gather {
    pub(super) fn push(&mut self, append: Append) {
        self.bytes += bytes_of(&append.data);
        self.waiting.push_back(append);
    }

    /// Nothing more comes: what there is goes out as soon as it can.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether nothing waits and nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        self.closed && self.waiting.is_empty()
    }

    /// Whether something should be written now, beside what is. Nothing follows what went to another file, so it need not wait.
    pub(super) fn is_worth_it(&self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let other = self.last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &first.file));
        other || self.writing == 0 || self.bytes >= WORTH_BYTES || self.closed
    }

    /// Gives what goes out next, if it is worth it; it is being written until [`Self::written`] says otherwise.
    pub(super) fn take(&mut self) -> Option<Together> {
        let Append { id, file, offset, data } = if self.is_worth_it() { self.waiting.pop_front() } else { None }?;
        let mut bytes = bytes_of(&data);
        let mut together = Together { ids: vec![id], file, offset, data };
        while let Some(append) = self.waiting.front() {
            let more = bytes_of(&append.data);
            let follows = Arc::ptr_eq(&append.file, &together.file) && append.offset == offset + bytes;
            if !follows || bytes + more > TOGETHER_BYTES {
                break;
            }
            bytes += more;
            let append = self.waiting.pop_front()?;
            together.ids.push(append.id);
            together.data.extend(append.data);
        }
        self.bytes -= bytes;
        self.writing += 1;
        self.last = Some(Arc::clone(&together.file));
        Some(together)
    }

    /// One of those that were taken is through.
    pub(super) fn written(&mut self) {
        self.writing -= 1;
    }
}

fn bytes_of(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::media::{Memory, Storage};

    const HALF: usize = (TOGETHER_BYTES / 2) as usize;

    fn append(file: &Arc<dyn File>, id: u64, offset: usize, length: usize) -> Append {
        // Two pieces: how a write is cut is none of the queue's business.
        let data = vec![Bytes::from(vec![1; length - 100]), Bytes::from(vec![2; 100])];
        Append { id: EffectId(id), file: Arc::clone(file), offset: offset as u64, data }
    }

    fn described(together: &Together) -> (Vec<u64>, u64, u64) {
        (together.ids.iter().map(|id| id.0).collect(), together.offset, bytes_of(&together.data))
    }

    #[test]
    fn what_follows_in_the_same_file_is_written_together_up_to_a_bound_and_nothing_else() {
        let storage = Memory::new();
        let files = ["a", "b"].map(|name| storage.create(name).unwrap());
        let mut gather = Gather::default();
        for (id, (file, offset, length)) in (0..).zip([
            (0, 0, 4096),
            (0, 4096, 512),
            (0, 8192, HALF),
            (0, 8192 + HALF, HALF),
            (0, 8192 + 2 * HALF, 512),
            (1, 8704 + 2 * HALF, 512),
            (1, 0, 3 * HALF),
            (1, 3 * HALF, 512),
        ]) {
            gather.push(append(&files[file], id, offset, length));
        }
        gather.close();
        let groups: Vec<_> = std::iter::from_fn(|| gather.take()).map(|together| described(&together)).collect();
        let half = HALF as u64;
        let expected = [
            (vec![0, 1], 0, 4608),
            (vec![2, 3], 8192, 2 * half),
            (vec![4], 8192 + 2 * half, 512),
            (vec![5], 8704 + 2 * half, 512),
            (vec![6], 0, 3 * half),
            (vec![7], 3 * half, 512),
        ];
        assert_eq!(groups, expected);
        assert!(gather.is_over());
    }

    #[test]
    fn beside_a_write_only_what_is_worth_it_goes_out_and_everything_when_it_is_through() {
        let storage = Memory::new();
        let [file, other] = ["a", "b"].map(|name| storage.create(name).unwrap());
        let mut gather = Gather::default();
        gather.push(append(&file, 0, 0, 512));
        assert_eq!(described(&gather.take().unwrap()), (vec![0], 0, 512), "an idle disk gets what there is");
        gather.push(append(&file, 1, 512, 512));
        assert!(gather.take().is_none());
        let worth = usize::try_from(WORTH_BYTES).unwrap();
        gather.push(append(&file, 2, 1024, worth));
        assert_eq!(described(&gather.take().unwrap()), (vec![1, 2], 512, 512 + WORTH_BYTES));
        gather.push(append(&file, 3, 1024 + worth, 512));
        gather.written();
        assert!(gather.take().is_none(), "one of the two is still being written");
        gather.written();
        assert_eq!(described(&gather.take().unwrap()), (vec![3], 1024 + WORTH_BYTES, 512));
        gather.push(append(&other, 4, 0, 512));
        assert_eq!(described(&gather.take().unwrap()), (vec![4], 0, 512), "another file's does not wait");
        gather.close();
        assert!(gather.take().is_none() && gather.is_over());
    }
}
