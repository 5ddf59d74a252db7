//! io_uring: writes and syncs that the kernel carries out while we do something else.
//!
//! What the kernel reads from belongs to the [`Ring`] from the moment it is handed over until its completion was taken, and is
//! given back with it; a ring that is dropped waits for the kernel first.

use bytes::Bytes;
use cdp_core::media::{File, Portion, Way};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Names the wake-up among completions; operations are numbered from 0.
const WAKE: u64 = u64::MAX;

/// How long it is waited before the kernel is asked again where it has no memory for a request just now.
const PAUSE: Duration = Duration::from_millis(1);

/// Part of a write: what of a portion is not written yet.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) file: Arc<dyn File>,
    pub(crate) way: Way,
    pub(crate) portion: Portion,
    /// What the portion was cut from.
    pub(crate) data: Arc<Vec<Bytes>>,
    /// Bytes of the portion that are written.
    pub(crate) done: usize,
}

/// What the kernel is asked for.
#[derive(Debug)]
pub(crate) enum Operation {
    Write(Write),
    Sync(Arc<dyn File>),
}

/// What the kernel said: a number of bytes, or an error's number.
pub(crate) type Answer = Result<usize, i32>;

/// An operation with what the kernel has addresses of.
struct Underway<T> {
    tag: T,
    operation: Operation,
    /// Addresses into `operation`, for the kernel only; empty for a sync.
    _iovecs: Vec<libc::iovec>,
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Operation>();
};

// SAFETY: the addresses lead into memory that `operation` owns, which may be sent itself, as is seen to above, and takes it along;
// nothing but the kernel uses them, which does not mind by which thread it is asked.
unsafe impl<T: Send> Send for Underway<T> {}

/// A ring, and what the kernel works on. Of one thread: others wake it.
pub(crate) struct Ring<T> {
    uring: IoUring,
    underway: BTreeMap<u64, Underway<T>>,
    next: u64,
    /// At most so many operations at once.
    depth: usize,
    alarm: Arc<Alarm>,
    /// Whether the kernel watches the alarm.
    armed: bool,
}

/// Ends a ring's wait, from any thread, now or when it begins.
#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    pub(crate) fn ring(&self) {
        // A counter that is full rings already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        // One that was cleared before has nothing to read.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl<T> Ring<T> {
    /// A ring for `depth` operations at once.
    ///
    /// # Errors
    /// Where the kernel has none, or does not let us.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        // One more, for the alarm.
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let uring = IoUring::new(entries)?;
        let alarm = Arc::new(Alarm(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        Ok(Self { uring, underway: BTreeMap::new(), next: 0, depth, alarm, armed: false })
    }

    pub(crate) fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// Whether another operation may be handed over.
    pub(crate) fn has_room(&self) -> bool {
        self.underway.len() < self.depth
    }

    /// Whether the kernel works on nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.underway.is_empty()
    }

    /// Hands an operation over and lets the kernel begin. Refused, with the operation, where there is no room or its file has no
    /// descriptors.
    #[allow(clippy::result_large_err, reason = "the operation goes back to where it came from")]
    pub(crate) fn start(&mut self, tag: T, operation: Operation) -> Result<(), Operation> {
        let Some(entry) = (if self.has_room() { entry(&operation) } else { None }) else { return Err(operation) };
        let (entry, iovecs) = entry;
        let number = self.next;
        self.next += 1;
        self.underway.insert(number, Underway { tag, operation, _iovecs: iovecs });
        // SAFETY: the entry names a descriptor, an array of iovecs, and through it memory to read from. All of them belong to what
        // was inserted just now: the descriptor to its file, the array to `_iovecs`, which was moved but not changed and whose heap
        // memory stays where it is, and the memory to its `Bytes` and its `Portion`, whose heap memory is moved or changed by nobody
        // while they are in the map, which gives them to nobody. They leave it in two places only: in `reap`, by the completion of
        // this entry, after which the kernel uses none of it; and in `drop`, after all completions, or never.
        unsafe { self.push(&entry.user_data(number)) };
        // What is not taken now is taken by the next wait.
        let _ = self.uring.submit();
        Ok(())
    }

    /// Waits until an operation is through or the alarm rings, and gives what is through.
    ///
    /// # Errors
    /// When the kernel does not go on with the ring.
    pub(crate) fn wait(&mut self, done: &mut Vec<(T, Operation, Answer)>) -> io::Result<()> {
        if !self.armed {
            let watch = opcode::PollAdd::new(types::Fd(self.alarm.0.as_raw_fd()), libc::POLLIN as u32).build();
            // SAFETY: the entry names no memory, and the descriptor is open as long as the ring, which holds the alarm.
            unsafe { self.push(&watch.user_data(WAKE)) };
            self.armed = true;
        }
        self.enter()?;
        self.reap(done);
        Ok(())
    }

    /// Hands over what was pushed, and waits for a completion.
    fn enter(&self) -> io::Result<()> {
        match self.uring.submit_and_wait(1).map_err(|error| (error.raw_os_error().map(Errno::from_raw_os_error), error))
        {
            Ok(_) | Err((Some(Errno::INTR), _)) => Ok(()),
            // No memory just now, or completions that are to be taken first.
            Err((Some(Errno::AGAIN | Errno::BUSY), _)) => {
                std::thread::sleep(PAUSE);
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn reap(&mut self, done: &mut Vec<(T, Operation, Answer)>) {
        for completion in self.uring.completion() {
            if completion.user_data() == WAKE {
                self.armed = false;
                self.alarm.clear();
            } else if let Some(through) = self.underway.remove(&completion.user_data()) {
                let result = completion.result();
                done.push((through.tag, through.operation, usize::try_from(result).map_err(|_| -result)));
            }
        }
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// What the entry names must be valid, and memory unchanged, until its completion was taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: by the caller's promise. The queue has room: it has `depth` entries and one more, and what is in it is among at
        // most `depth` operations under way and one watch of the alarm.
        let pushed = unsafe { self.uring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "the queue has room for all that may be under way");
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while !self.is_idle() {
            if self.enter().is_err() {
                // The kernel may still read: what it reads from is never freed.
                std::mem::forget(std::mem::take(&mut self.underway));
                return;
            }
            self.reap(&mut done);
        }
    }
}

/// What the kernel is told. None for a file without descriptors.
fn entry(operation: &Operation) -> Option<(squeue::Entry, Vec<libc::iovec>)> {
    match operation {
        Operation::Write(Write { file, way, portion, data, done }) => {
            let fd = types::Fd(file.raw()?.descriptor(*way).as_raw_fd());
            let slices = portion.slices(data.as_slice(), *done);
            let address = |slice: &io::IoSlice<'_>| libc::iovec {
                iov_base: slice.as_ptr().cast_mut().cast(),
                iov_len: slice.len(),
            };
            let iovecs: Vec<_> = slices.iter().map(address).collect();
            let at = portion.offset() + *done as u64;
            let count = u32::try_from(iovecs.len()).ok()?;
            Some((opcode::Writev::new(fd, iovecs.as_ptr(), count).offset(at).build(), iovecs))
        }
        Operation::Sync(file) => {
            let fd = types::Fd(file.raw()?.descriptor(Way::Cached).as_raw_fd());
            Some((opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), Vec::new()))
        }
    }
}
