//! The threads that write the journal's frames: what was packed while the disk was busy goes out together.

use super::pump::{Completions, Message};
use bytes::Bytes;
use cdp_core::journal::EffectId;
use cdp_core::media::File;
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that are written together at most: several requests for any disk, and the first of them does not wait long.
const TOGETHER_BYTES: u64 = 4 << 20;
/// From so many bytes on a write goes out beside others; less waits until the disk has nothing else to do. A write of half the
/// size costs the processor nearly as much, and the disk too.
const WORTH_BYTES: u64 = 1 << 20;

/// A write of the journal's.
pub(super) struct Append {
    pub(super) id: EffectId,
    pub(super) file: Arc<dyn File>,
    pub(super) offset: u64,
    pub(super) data: Vec<Bytes>,
}

/// So many threads write at once: one gathers while the disk works for the others.
pub(super) const APPEND_THREADS: usize = 4;

/// What is to be written, between the pump and the threads.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Append>,
    /// Bytes of those.
    bytes: u64,
    /// Threads that write, and the file that was last written to.
    writing: usize,
    last: Option<Arc<dyn File>>,
    /// Nothing more comes.
    closed: bool,
}

/// The pump's end of the queue: when it is gone, the threads end.
pub(super) struct Appends(Arc<Queue>);

/// Writes to one place after another in the same file.
struct Together {
    ids: Vec<EffectId>,
    file: Arc<dyn File>,
    offset: u64,
    data: Vec<Bytes>,
}

impl Appends {
    pub(super) fn new(queue: &Arc<Queue>) -> Self {
        Self(Arc::clone(queue))
    }

    pub(super) fn push(&self, append: Append) {
        let mut state = self.0.lock();
        state.bytes += bytes_of(&append.data);
        state.waiting.push_back(append);
        if state.is_worth_it() {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    /// Waits for something to write; none when all is written and nothing more comes.
    fn next(&self) -> Option<Together> {
        let mut state = self.lock();
        while !state.is_worth_it() {
            if state.closed && state.waiting.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let together = state.take()?;
        state.writing += 1;
        state.last = Some(Arc::clone(&together.file));
        if state.is_worth_it() {
            self.changed.notify_one();
        }
        Some(together)
    }

    /// Whole at every step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether another thread should write now. Nothing follows what went to another file, so it need not wait.
    fn is_worth_it(&self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let other = self.last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &first.file));
        other || self.writing == 0 || self.bytes >= WORTH_BYTES || self.closed
    }

    fn take(&mut self) -> Option<Together> {
        let Append { id, file, offset, data } = self.waiting.pop_front()?;
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
        Some(together)
    }
}

/// A thread writes while it holds this, also one that panics.
struct Writing<'a>(&'a Queue);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writing -= 1;
        if state.is_worth_it() {
            self.0.changed.notify_one();
        }
    }
}

fn bytes_of(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

/// Writes until the pump is gone. What the journal hands out may be written in any order and at once.
pub(super) fn run_appends(queue: &Queue, completions: &Completions, pump: &Sender<Message>) {
    while let Some(Together { ids, file, offset, data }) = queue.next() {
        let writing = Writing(queue);
        let outcome = file.write_at(offset, &data);
        drop((file, data));
        drop(writing);
        if !completions.add(ids.into_iter().map(|id| (id, outcome.clone())), pump) {
            return;
        }
    }
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
        let queue = Arc::default();
        let appends = Appends::new(&queue);
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
            appends.push(append(&files[file], id, offset, length));
        }
        drop(appends);
        let groups: Vec<_> = std::iter::from_fn(|| queue.next()).map(|together| described(&together)).collect();
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
    }

    #[test]
    fn beside_a_write_only_what_is_worth_it_goes_out_and_everything_when_it_is_through() {
        let storage = Memory::new();
        let [file, other] = ["a", "b"].map(|name| storage.create(name).unwrap());
        let queue = Arc::default();
        let appends = Appends::new(&queue);
        appends.push(append(&file, 0, 0, 512));
        assert_eq!(described(&queue.next().unwrap()), (vec![0], 0, 512), "an idle disk gets what there is");
        let first = Writing(&queue);
        appends.push(append(&file, 1, 512, 512));
        assert!(!queue.lock().is_worth_it());
        let worth = usize::try_from(WORTH_BYTES).unwrap();
        appends.push(append(&file, 2, 1024, worth));
        assert_eq!(described(&queue.next().unwrap()), (vec![1, 2], 512, 512 + WORTH_BYTES));
        let second = Writing(&queue);
        appends.push(append(&file, 3, 1024 + worth, 512));
        drop(first);
        assert!(!queue.lock().is_worth_it(), "one of the two is still being written");
        drop(second);
        assert_eq!(described(&queue.next().unwrap()), (vec![3], 1024 + WORTH_BYTES, 512));
        appends.push(append(&other, 4, 0, 512));
        assert_eq!(described(&queue.next().unwrap()), (vec![4], 0, 512), "another file's does not wait");
        drop(appends);
        assert!(queue.next().is_none());
    }
}
