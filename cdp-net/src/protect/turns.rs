//! Whose turn it is at the filter: its lock, at which no guest waits for ever.
//!
//! Nothing waits for I/O during a turn, and a turn takes microseconds. But what a turn calls is others' code too, and a thread may hang
//! for reasons that nobody thought of. Then guests' ops go *past* what is locked:
//!
//! ```text
//! Through --somebody's turn lasts for STUCK_LOOKS looks--> Closing --nobody believes the activity log any more--> Past
//!    ^                                                                                                             |
//!    +-------- whoever has the next turn told the filter, which is detached, and all that happened beside it ------+
//! ```
//!
//! | who waits | how long |
//! |---|---|
//! | a guest's thread for its turn | until it has one or goes past: [`STUCK_LOOKS`] and what the removal of the log takes, [`WAITS_MAX`] looks at the very most |
//! | any other thread for its turn | as long as it takes, but for those that only look; from the end on [`END_WAITS`] looks |
//!
//! Looks are counted and not seconds: a process that was stopped, or a machine that slept, comes back one look later.
//!
//! What passes is kept small: of the ops that had begun before, how they ended (as many as front ends had open), and of those that run
//! past only how many there are.

use super::engine::Place;
use cdp_core::capture::{Failed, SubmitError, Ticket};
use cdp_core::types::DiskId;
use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at whether anything goes on.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// A turn that lasts for so many looks hangs: ten seconds, as threads may have to wait for a processor too.
pub(super) const STUCK_LOOKS: u32 = 40;
/// So many looks a guest's thread waits for its turn at most, whoever should have let it go: less than guests give a disk.
const WAITS_MAX: u32 = STUCK_LOOKS + 24;
/// From the end on nobody waits longer for who hangs: so many looks.
const END_WAITS: u32 = 8;
/// How often a thread looks whether it is its turn before it sleeps: turns are shorter than that takes.
const SPINS: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Through,
    /// Guests wait until the log is not believed any more.
    Closing,
    Past,
}

/// What happened beside what is locked.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// How ops ended that had begun, or were to begin, before.
    pub(super) late: Vec<(Ticket, Result<(), Failed>)>,
    /// Disks of which a flush failed.
    pub(super) flushes_failed: BTreeSet<DiskId>,
    /// Nobody is served any more.
    ended: bool,
    /// What runs past.
    running: usize,
}

impl Past {
    /// An op, or a flush, runs past from here on, and is to be told by [`Turns::ran_past`].
    pub(super) fn begin(&mut self) -> Result<Place, SubmitError> {
        if self.ended {
            return Err(SubmitError::Closed);
        }
        self.running += 1;
        Ok(Place::Past)
    }
}

struct Gate<T> {
    /// None while it is somebody's turn.
    inside: Option<Box<T>>,
    /// So many turns there were.
    turns: u64,
    waiting: usize,
    way: Way,
    past: Past,
}

impl<T> Gate<T> {
    /// While guests wait for the log nobody has a turn: what it would tell the log may come after its removal.
    fn take(&mut self) -> Option<Box<T>> {
        let inside = if self.way == Way::Closing { None } else { self.inside.take() };
        self.turns += u64::from(inside.is_some());
        inside
    }
}

/// What was seen of the turns, for who watches them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    turns: u64,
    looks: u32,
}

/// One at a time.
pub(super) struct Turns<T> {
    gate: Mutex<Gate<T>>,
    free: Condvar,
}

impl<T> Turns<T> {
    pub(super) fn new(inside: T) -> Self {
        let inside = Some(Box::new(inside));
        let gate = Gate { inside, turns: 0, waiting: 0, way: Way::Through, past: Past::default() };
        Self { gate: Mutex::new(gate), free: Condvar::new() }
    }

    /// Held for a few instructions only, and never while anything else is called.
    fn lock(&self) -> MutexGuard<'_, Gate<T>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given(&self, gate: MutexGuard<'_, Gate<T>>, inside: Box<T>) -> Turn<'_, T> {
        Turn { turns: self, inside: Some(inside), is_past: gate.way == Way::Past }
    }

    /// A guest's turn. Where there is none it goes past, and what that means is said under the lock that ends this.
    pub(super) fn guest<P>(&self, past: impl FnOnce(&mut Past) -> P) -> Result<Turn<'_, T>, P> {
        let mut gate = self.lock();
        if gate.way == Way::Through
            && let Some(inside) = gate.take()
        {
            return Ok(self.given(gate, inside));
        }
        self.guest_waits(gate, past)
    }

    #[cold]
    fn guest_waits<'a, P>(
        &'a self,
        gate: MutexGuard<'a, Gate<T>>,
        past: impl FnOnce(&mut Past) -> P,
    ) -> Result<Turn<'a, T>, P> {
        let mut gate = self.spin(gate);
        let mut waits = 0;
        loop {
            if gate.way != Way::Past && waits >= WAITS_MAX {
                gate.way = Way::Past;
                self.free.notify_all();
            }
            if gate.way == Way::Past {
                if gate.waiting > 0 {
                    // Who woke this thread may have meant one that waits for its turn.
                    self.free.notify_one();
                }
                return Err(past(&mut gate.past));
            }
            if let Some(inside) = gate.take() {
                return Ok(self.given(gate, inside));
            }
            let over;
            (gate, over) = self.wait(gate);
            waits += u32::from(over);
        }
    }

    fn spin<'a>(&'a self, gate: MutexGuard<'a, Gate<T>>) -> MutexGuard<'a, Gate<T>> {
        if gate.way != Way::Through {
            return gate;
        }
        drop(gate);
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if let Ok(gate) = self.gate.try_lock()
                && gate.inside.is_some()
            {
                return gate;
            }
        }
        self.lock()
    }

    /// Waits for somebody to leave; says whether nobody did for a look.
    fn wait<'a>(&self, mut gate: MutexGuard<'a, Gate<T>>) -> (MutexGuard<'a, Gate<T>>, bool) {
        gate.waiting += 1;
        let (mut gate, over) = self.free.wait_timeout(gate, LOOK).unwrap_or_else(PoisonError::into_inner);
        gate.waiting -= 1;
        (gate, over.timed_out())
    }

    /// Any other thread's turn. Where [`Turn::is_past`], what happened beside is to be told first.
    pub(super) fn turn(&self) -> Turn<'_, T> {
        loop {
            if let Some(turn) = self.turn_unless(|_, _| false) {
                return turn;
            }
        }
    }

    /// The same for who is not to be kept by one that hangs when the end has come: none then.
    pub(super) fn turn_before_end(&self) -> Option<Turn<'_, T>> {
        self.turn_unless(|gate, waits| gate.past.ended && waits >= END_WAITS)
    }

    /// The same for who only looks: none while somebody hangs, whoever should have seen that.
    pub(super) fn look_in(&self) -> Option<Turn<'_, T>> {
        self.turn_unless(|gate, waits| gate.way != Way::Through || waits >= WAITS_MAX)
    }

    /// The same for who waits no longer than that.
    pub(super) fn look_in_until(&self, until: Instant) -> Option<Turn<'_, T>> {
        self.turn_unless(|gate, waits| gate.way != Way::Through || (waits > 0 && Instant::now() >= until))
    }

    /// A turn, unless it is given up for what is seen while somebody else has his, after so many looks at which nobody had left.
    fn turn_unless(&self, gives_up: impl Fn(&Gate<T>, u32) -> bool) -> Option<Turn<'_, T>> {
        let mut gate = self.spin(self.lock());
        let mut waits = 0;
        loop {
            if gate.way == Way::Closing && waits >= WAITS_MAX {
                gate.way = Way::Past;
                self.free.notify_all();
            }
            if let Some(inside) = gate.take() {
                return Some(self.given(gate, inside));
            }
            if gives_up(&gate, waits) {
                return None;
            }
            let over;
            (gate, over) = self.wait(gate);
            waits += u32::from(over);
        }
    }

    /// The same for who never waits.
    pub(super) fn try_turn(&self) -> Option<Turn<'_, T>> {
        let mut gate = self.lock();
        let inside = gate.take()?;
        Some(self.given(gate, inside))
    }

    /// One look at whether somebody hangs; comes every [`LOOK`]. `true`, once each time: from now on nobody has a turn, and the log is
    /// to be made one that nobody believes, and then [`Turns::pass`].
    pub(super) fn is_stuck(&self, seen: &mut Seen) -> bool {
        let mut gate = self.lock();
        let same = gate.inside.is_none() && gate.turns == seen.turns;
        *seen = Seen { turns: gate.turns, looks: if same { seen.looks + 1 } else { 0 } };
        let stuck = seen.looks >= STUCK_LOOKS && gate.way == Way::Through;
        if stuck {
            gate.way = Way::Closing;
        }
        stuck
    }

    /// Guests go past.
    pub(super) fn pass(&self) {
        let mut gate = self.lock();
        if gate.way == Way::Closing {
            gate.way = Way::Past;
        }
        drop(gate);
        self.free.notify_all();
    }

    /// Whether guests go past.
    pub(super) fn is_past(&self) -> bool {
        self.lock().way == Way::Past
    }

    /// What ran past is done.
    pub(super) fn ran_past(&self) {
        self.lock().past.running -= 1;
    }

    /// From now on who would go past is refused.
    pub(super) fn end_past(&self) {
        self.lock().past.ended = true;
    }
}

/// A turn; over when it is dropped.
pub(super) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    inside: Option<Box<T>>,
    is_past: bool,
}

impl<T> Turn<'_, T> {
    /// Whether ops went past, and the filter was not told yet.
    pub(super) fn is_past(&self) -> bool {
        self.is_past
    }

    /// What happened beside since this was last asked. None: nothing, and from here on guests have turns again.
    pub(super) fn settle(&mut self) -> Option<Past> {
        let mut gate = self.turns.lock();
        let past = &mut gate.past;
        if past.late.is_empty() && past.flushes_failed.is_empty() {
            gate.way = Way::Through;
            self.is_past = false;
            drop(gate);
            self.turns.free.notify_all();
            return None;
        }
        let (late, flushes_failed) = (std::mem::take(&mut past.late), std::mem::take(&mut past.flushes_failed));
        Some(Past { late, flushes_failed, ..Past::default() })
    }

    /// What still runs past.
    pub(super) fn running_past(&self) -> usize {
        self.turns.lock().past.running
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        let Some(inside) = &self.inside else { unreachable!("it is there until the turn is over") };
        inside
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        let Some(inside) = &mut self.inside else { unreachable!("it is there until the turn is over") };
        inside
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut gate = self.turns.lock();
        gate.inside = self.inside.take();
        let wake = gate.waiting > 0;
        drop(gate);
        if wake {
            self.turns.free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many looks as find somebody stuck.
    fn looks(turns: &Turns<u32>, seen: &mut Seen) -> Option<u32> {
        (1..10 * STUCK_LOOKS).find(|_| turns.is_stuck(seen))
    }

    #[test]
    fn whoever_has_the_turn_after_one_that_hung_hears_first_what_went_past() {
        let (turns, mut seen) = (Turns::new(7), Seen::default());
        let hangs = turns.turn();
        assert_eq!(looks(&turns, &mut seen), Some(STUCK_LOOKS + 1), "the first look sees that it is another turn");
        assert_eq!(looks(&turns, &mut seen), None, "once each time");
        assert!(!turns.is_past() && turns.try_turn().is_none(), "the log is to go first");
        turns.pass();
        assert!(matches!(turns.guest(Past::begin), Err(Ok(Place::Past))));
        let flushed = turns.guest(|past| past.flushes_failed.insert(DiskId::new(1).unwrap()));
        assert!(flushed.is_err_and(|noted| noted));
        assert!(turns.look_in().is_none());
        drop(hangs);
        assert!(turns.guest(|_| ()).is_err(), "nobody has told the filter yet");
        let mut next = turns.turn();
        assert!(next.is_past() && *next == 7);
        assert_eq!(next.settle().map(|past| past.flushes_failed.len()), Some(1));
        assert!(next.settle().is_none() && !next.is_past());
        assert_eq!(next.running_past(), 1);
        drop(next);
        turns.ran_past();
        let mut after = turns.guest(|_| ()).expect("a turn");
        assert_eq!(after.running_past(), 0);
        *after += 1;
    }

    #[test]
    fn turns_that_come_and_go_are_not_stuck_however_busy_it_is() {
        let (turns, mut seen) = (Turns::new(0), Seen::default());
        for _ in 0..3 * STUCK_LOOKS {
            let turn = turns.turn();
            assert!(!turns.is_stuck(&mut seen));
            drop(turn);
        }
        assert_eq!(looks(&turns, &mut seen), None);
    }

    #[test]
    fn nobody_goes_past_what_has_ended() {
        let (turns, mut seen) = (Turns::new(0), Seen::default());
        let _hangs = turns.turn();
        looks(&turns, &mut seen);
        turns.pass();
        turns.end_past();
        assert!(matches!(turns.guest(Past::begin), Err(Err(SubmitError::Closed))));
    }

    #[test]
    fn from_the_end_on_nobody_is_kept_by_one_that_hangs() {
        let turns = Turns::new(0);
        let hangs = turns.turn();
        assert!(turns.look_in_until(Instant::now()).is_none(), "who looks waits as long as he said");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.turn_before_end().is_none());
            std::thread::sleep(LOOK * (END_WAITS + 2));
            assert!(!waits.is_finished(), "before the end it is waited for");
            turns.end_past();
            assert!(waits.join().unwrap());
        });
        assert!(turns.turn_before_end().is_none());
        drop(hangs);
        assert!(turns.turn_before_end().is_some());
    }

    #[test]
    fn who_waits_has_the_next_turn() {
        let turns = Turns::new(0);
        let adds = || (0..1000).for_each(|_| *turns.turn() += 1);
        let guest = || match turns.guest(|_| ()) {
            Ok(mut turn) => *turn += 1,
            Err(()) => unreachable!("nobody hangs"),
        };
        let guests = || (0..1000).for_each(|_| guest());
        std::thread::scope(|scope| {
            let turn = turns.turn();
            for _ in 0..4 {
                scope.spawn(adds);
                scope.spawn(guests);
            }
            drop(turn);
        });
        assert_eq!(*turns.turn(), 8000);
    }
}
