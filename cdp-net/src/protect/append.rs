//! The threads that write the journal's frames: what was packed while the disk was busy goes out together.

use super::pump::{Completions, Message};
use bytes::Bytes;
use cdp_core::journal::EffectId;
use cdp_core::media::File;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are written together at most: enough for any disk, and few enough that the first of them does not wait long.
const TOGETHER_BYTES: u64 = 1 << 20;

/// A write of the journal's.
pub(super) struct Append {
    pub(super) id: EffectId,
    pub(super) file: Arc<dyn File>,
    pub(super) offset: u64,
    pub(super) data: Vec<Bytes>,
}

impl Append {
    fn bytes(&self) -> u64 {
        self.data.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// So many threads write at once: one gathers while the disk works for the other.
pub(super) const APPEND_THREADS: usize = 4;

/// Writes until the pump is gone. What the journal hands out may be written in any order and at once.
pub(super) fn run_appends(queue: &Mutex<Queue>, completions: &Completions, pump: &Sender<Message>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(Together { ids, file, offset, data }) = next else { return };
        let outcome = file.write_at(offset, &data);
        drop((file, data));
        if !completions.add(ids.into_iter().map(|id| (id, outcome.clone())), pump) {
            return;
        }
    }
}

/// Writes to one place after another in the same file.
struct Together {
    ids: Vec<EffectId>,
    file: Arc<dyn File>,
    offset: u64,
    data: Vec<Bytes>,
}

/// What is to be written; shared by the threads.
pub(super) struct Queue {
    receiver: Receiver<Append>,
    /// Taken off the queue, and not to be written together with what came before.
    next: Option<Append>,
}

impl Queue {
    pub(super) fn new(receiver: Receiver<Append>) -> Self {
        Self { receiver, next: None }
    }

    /// Waits for something to write; none when the pump is gone.
    fn next(&mut self) -> Option<Together> {
        let first = self.next.take().or_else(|| self.receiver.recv().ok())?;
        let mut bytes = first.bytes();
        let Append { id, file, offset, data } = first;
        let mut together = Together { ids: vec![id], file, offset, data };
        while let Ok(append) = self.receiver.try_recv() {
            let more = append.bytes();
            let follows = Arc::ptr_eq(&append.file, &together.file) && append.offset == offset + bytes;
            if !follows || bytes + more > TOGETHER_BYTES {
                self.next = Some(append);
                break;
            }
            bytes += more;
            together.ids.push(append.id);
            together.data.extend(append.data);
        }
        Some(together)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::media::{Memory, Storage};
    use std::sync::mpsc::channel;

    #[test]
    fn what_follows_in_the_same_file_is_written_together_up_to_a_bound_and_nothing_else() {
        let storage = Memory::new();
        let files = ["a", "b"].map(|name| storage.create(name).unwrap());
        let (sender, receiver) = channel();
        // File, offset and length of each; with how many it goes together.
        const HALF: usize = (TOGETHER_BYTES / 2) as usize;
        let appends =
            [(0, 0, 4096), (0, 4096, 512), (0, 8192, HALF), (0, 8192 + HALF, HALF), (0, 8192 + 2 * HALF, 512)];
        let appends = [&appends[..], &[(1, 8704 + 2 * HALF, 512), (1, 0, 3 * HALF), (1, 3 * HALF, 512)]].concat();
        for (number, (file, offset, length)) in (0..).zip(appends) {
            // Two pieces: how a write is cut is none of the queue's business.
            let data = vec![Bytes::from(vec![number; length - 100]), Bytes::from(vec![number; 100])];
            let append =
                Append { id: EffectId(number.into()), file: Arc::clone(&files[file]), offset: offset as u64, data };
            sender.send(append).unwrap();
        }
        drop(sender);
        let mut queue = Queue::new(receiver);
        let mut groups = Vec::new();
        while let Some(together) = queue.next() {
            let bytes: usize = together.data.iter().map(Bytes::len).sum();
            groups.push((together.ids.iter().map(|id| id.0).collect::<Vec<_>>(), together.offset, bytes));
        }
        let expected = [
            (vec![0, 1], 0, 4608),
            (vec![2, 3], 8192, 2 * HALF),
            (vec![4], 8192 + 2 * HALF as u64, 512),
            (vec![5], 8704 + 2 * HALF as u64, 512),
            (vec![6], 0, 3 * HALF),
            (vec![7], 3 * HALF as u64, 512),
        ];
        assert_eq!(groups, expected);
    }
}
