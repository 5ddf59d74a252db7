//! Threads that prepare frames: unpack, verify, leave out, compress. They serve all groups of a proxy.

use crate::clock::mono;
use crate::crowding::Crowding;
use cdp_core::frame::Encoder;
use cdp_core::link::prepare::{Done, Work};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use tokio::sync::mpsc::UnboundedSender;

/// Work and whom its result goes to. What waits is bounded by what each preparation has inside.
type Job = (Work, UnboundedSender<Done>);

/// See the module's text. The threads end with it, after what was given.
#[derive(Debug)]
pub(super) struct Pool {
    jobs: Sender<Job>,
    crowding: Arc<Seen>,
}

/// The last look of one of the threads: its number, and the parts of a hundred that it ran and that it waited.
#[derive(Debug, Default)]
struct Seen(AtomicU64);

impl Pool {
    /// A thread for each core.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (queue, crowding) = (Arc::new(Mutex::new(queue)), Arc::new(Seen::default()));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (queue, crowding) = (Arc::clone(&queue), Arc::clone(&crowding));
            Builder::new().name("cdp-prepare".into()).spawn(move || run(&queue, &crowding))?;
        }
        Ok(Self { jobs, crowding })
    }

    /// Has it done; the result goes to `to`.
    pub(super) fn give(&self, work: Work, to: UnboundedSender<Done>) {
        // The threads end with this only.
        let _ = self.jobs.send((work, to));
    }

    /// How crowded the cores are: a number that grows with each look, and the parts of a hundred that a thread ran and waited.
    pub(super) fn crowding(&self) -> (u64, u64, u64) {
        let seen = self.crowding.0.load(Ordering::Relaxed);
        (seen >> 32, seen >> 16 & 0xffff, seen & 0xffff)
    }
}

fn run(queue: &Mutex<Receiver<Job>>, crowding: &Seen) {
    let (mut encoder, mut own) = (Encoder::new(), Crowding::of_this_thread(mono()));
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((work, to)) = job else { return };
        // Who wanted it may have ended.
        let _ = to.send(work.run(&mut encoder));
        if let Some((running, waiting)) = own.look(mono()) {
            let number = (crowding.0.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
            crowding.0.store(number << 32 | running.min(0xffff) << 16 | waiting.min(0xffff), Ordering::Relaxed);
        }
    }
}
