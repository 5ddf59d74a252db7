//! What every driver of the journal's effects must hold to: the same tests for the in-order one of the core, for threads, and for
//! what else there is.

mod effects;
mod errors;
mod life;
mod overlap;
mod random;
mod watched;

use crate::dice::Dice;
use bytes::Bytes;
use cdp_core::journal::{Effect, EffectId, Executor, FileId, Outcome};
use cdp_core::media::{Disk, Storage};
use cdp_net::drive::{Driver, Threads, Waker};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longer than anything here takes: who waits so long waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which driver is tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    InOrder,
    Threads,
    #[cfg(feature = "uring")]
    Ring,
}

impl Kind {
    /// None where this machine has no such driver; that is printed.
    fn start(self, executor: Executor, wake: Waker) -> Option<Box<dyn Driver>> {
        match self {
            Self::InOrder => Some(Box::new(InOrder { executor, wake, done: Vec::new() })),
            Self::Threads => Some(Box::new(Threads::start(executor, wake).unwrap())),
            #[cfg(feature = "uring")]
            Self::Ring => match cdp_net::drive::Ring::start(executor, wake) {
                Ok(ring) => Some(Box::new(ring)),
                Err(error) => {
                    println!("skipped: the kernel gives us no io_uring: {error}");
                    None
                }
            },
        }
    }
}

/// Runs each of the tests with each of the drivers.
macro_rules! suite {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod in_order { $(#[test] fn $name() { super::$module::$name(super::Kind::InOrder); })* }
        mod threads { $(#[test] fn $name() { super::$module::$name(super::Kind::Threads); })* }
        #[cfg(feature = "uring")]
        mod ring { $(#[test] fn $name() { super::$module::$name(super::Kind::Ring); })* }
    };
}

suite!(
    effects::writes_handed_out_together_all_land_whatever_their_sizes_and_alignments,
    effects::a_write_of_more_pieces_than_the_system_takes_lands_whole,
    effects::what_a_sync_covers_is_on_the_media,
    effects::a_file_is_closed_while_it_is_synced,
    effects::what_was_written_is_read_by_its_name,
    effects::what_was_handed_over_is_carried_out_before_the_driver_is_gone,
    errors::a_file_that_would_leave_too_little_room_is_not_made,
    errors::errors_say_what_was_tried_and_where_as_the_file_says_it,
    errors::a_file_that_was_never_opened_is_an_error_and_no_wait,
    errors::a_write_that_fails_is_told_once_and_the_others_go_on,
    errors::a_sync_that_fails_is_told_once_and_not_tried_again,
    random::thousands_of_effects_in_random_order_give_one_completion_each_and_the_right_bytes,
    random::the_same_on_storage_without_descriptors,
    life::a_journal_is_what_was_appended_to_it_through_stops_in_the_middle,
);

/// What only a driver that works beside its owner can do.
macro_rules! beside {
    ($($name:ident),* $(,)?) => {
        mod threads_beside { $(#[test] fn $name() { super::overlap::$name(super::Kind::Threads); })* }
        #[cfg(feature = "uring")]
        mod ring_beside { $(#[test] fn $name() { super::overlap::$name(super::Kind::Ring); })* }
    };
}

beside!(
    a_write_and_another_sync_do_not_wait_for_a_sync,
    a_sync_is_not_told_before_it_is_through_and_survives_a_close,
    storage_that_panics_fails_its_own_effects_only,
    who_drops_the_driver_waits_for_what_it_was_given,
);

/// The in-order driver of the core, as a driver: everything is through when it was handed over.
struct InOrder {
    executor: Executor,
    wake: Waker,
    done: Vec<(EffectId, Outcome)>,
}

impl std::fmt::Debug for InOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InOrder").finish_non_exhaustive()
    }
}

impl Driver for InOrder {
    fn start(&mut self, id: EffectId, effect: Effect) {
        let outcome = self.executor.run(&effect);
        self.done.push((id, outcome));
        (self.wake)();
    }
    fn take(&mut self) -> Vec<(EffectId, Outcome)> {
        std::mem::take(&mut self.done)
    }
    fn name(&self) -> &'static str {
        "in-order"
    }
}

/// A driver under test, and what it owes.
pub(crate) struct Driven {
    driver: Box<dyn Driver>,
    woken: Receiver<()>,
    next: u64,
    next_file: u64,
    underway: BTreeSet<EffectId>,
    outcomes: BTreeMap<EffectId, Outcome>,
}

impl Driven {
    pub(crate) fn new(kind: Kind, storage: Arc<dyn Storage>) -> Option<Self> {
        let (wake, woken) = channel();
        let driver = kind.start(Executor::new(storage), waker(wake))?;
        let (underway, outcomes) = (BTreeSet::new(), BTreeMap::new());
        Some(Self { driver, woken, next: 1, next_file: 1, underway, outcomes })
    }

    pub(crate) fn start(&mut self, effect: Effect) -> EffectId {
        let id = EffectId(self.next);
        self.next += 1;
        self.underway.insert(id);
        self.driver.start(id, effect);
        id
    }

    /// Takes what there is; nothing may be told twice, or of nobody.
    fn collect(&mut self) {
        for (id, outcome) in self.driver.take() {
            assert!(self.underway.remove(&id), "{id:?} was told twice, or never started");
            self.outcomes.insert(id, outcome);
        }
    }

    /// Waits for what came of an effect; only as long as the driver wakes.
    pub(crate) fn wait(&mut self, id: EffectId) -> Outcome {
        loop {
            self.collect();
            if let Some(outcome) = self.outcomes.remove(&id) {
                return outcome;
            }
            assert!(self.woken.recv_timeout(PATIENCE).is_ok(), "nobody woke for {id:?}");
        }
    }

    pub(crate) fn run(&mut self, effect: Effect) -> Outcome {
        let id = self.start(effect);
        self.wait(id)
    }

    /// Whether it is through now.
    pub(crate) fn is_through(&mut self, id: EffectId) -> bool {
        self.collect();
        self.outcomes.contains_key(&id)
    }

    /// Makes a file; with room reserved it is one that large writes go past the page cache in, where the system lets them.
    pub(crate) fn create(&mut self, name: &str, preallocate: u64) -> FileId {
        let file = self.new_file();
        self.run(create(file, name, preallocate)).unwrap();
        file
    }

    pub(crate) fn new_file(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file)
    }
}

impl Drop for Driven {
    /// Everything that was told so far was told of something; that nothing stays untold is each test's to ask.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.collect();
        }
    }
}

/// Who waits may be gone before the driver is.
pub(crate) fn waker(wake: Sender<()>) -> Waker {
    Box::new(move || {
        let _ = wake.send(());
    })
}

pub(crate) fn create(file: FileId, name: &str, preallocate: u64) -> Effect {
    Effect::Create { file, name: name.to_owned(), preallocate, keep_free: 0, replace: false }
}

/// A real directory, removed when it is dropped.
pub(crate) fn directory() -> (tempfile::TempDir, Arc<dyn Storage>) {
    let place = tempfile::tempdir().unwrap();
    let storage = Arc::new(Disk::create(place.path()).unwrap());
    (place, storage)
}

/// Random bytes: a cut from many, since making each anew takes longer than all the rest.
pub(crate) fn noise(dice: &mut Dice, length: usize) -> Vec<u8> {
    const MANY: usize = 8 << 20;
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let all = NOISE.get_or_init(|| {
        let mut dice = Dice::new(1);
        (0..MANY / 8).flat_map(|_| dice.next().to_le_bytes()).collect()
    });
    let from = dice.below((MANY - length) as u64) as usize;
    all[from..from + length].to_vec()
}

/// Bytes in pieces of odd sizes, at odd places in memory or at good ones.
pub(crate) fn pieces(dice: &mut Dice, length: usize) -> Vec<Bytes> {
    let aligned = dice.permille(300);
    let odd = if aligned { 0 } else { 1 + dice.below(4000) as usize };
    let bytes = noise(dice, length + odd);
    let whole = if aligned { page_aligned(&bytes) } else { Bytes::from(bytes) };
    let mut rest = whole.slice(odd..odd + length);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let most = [1, 511, 512, 4096, 4097, 20_000, 1 << 20][dice.below(7) as usize];
        let step = if aligned && dice.permille(700) { 4096 } else { 1 + dice.below(most) as usize };
        pieces.push(rest.split_to(step.min(rest.len())));
    }
    pieces
}

/// The same bytes where direct writes take them from.
fn page_aligned(bytes: &[u8]) -> Bytes {
    let mut buffer = cdp_core::buffer::BufferPool::new(bytes.len(), 0).take();
    buffer[..bytes.len()].copy_from_slice(bytes);
    buffer.freeze(bytes.len())
}
