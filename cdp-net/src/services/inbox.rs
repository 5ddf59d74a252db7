//! What the running process is told from outside of its loop: the wish to read its file again, the wish to end, sentences of roles.

use super::role::Notes;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Sentences that nobody has taken yet, at most; beyond it they are counted and lost.
const NOTES_MAX: usize = 256;

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// End. Once wished it stays wished, and comes before everything else.
    Stop,
    /// Read the file again. Wishes that come together are one.
    Reload,
    /// Tell somebody.
    Note(String),
    /// Nothing came in time.
    Nothing,
}

#[derive(Debug, Default)]
struct Pending {
    stop: bool,
    reload: bool,
    notes: VecDeque<String>,
    lost: u64,
}

/// See the module's text. Clones are the same inbox.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<(Mutex<Pending>, Condvar)>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wishes the end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.0.1.notify_all();
    }

    /// Wishes that the file is read again.
    pub fn reload(&self) {
        self.lock().reload = true;
        self.0.1.notify_all();
    }

    /// Whether the end is wished.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.lock().stop
    }

    /// Where roles say their sentences. They never wait for whoever reads them.
    #[must_use]
    pub fn notes(&self) -> Notes {
        let inbox = self.clone();
        Notes::new(move |sentence| {
            let mut pending = inbox.lock();
            if pending.notes.len() < NOTES_MAX {
                pending.notes.push_back(sentence.to_owned());
                inbox.0.1.notify_all();
            } else {
                pending.lost += 1;
            }
        })
    }

    /// The next input; waits for it, at most so long.
    #[must_use]
    pub fn next(&self, within: Duration) -> Input {
        let deadline = Instant::now() + within;
        let mut pending = self.lock();
        loop {
            if pending.stop {
                return Input::Stop;
            }
            if std::mem::take(&mut pending.reload) {
                return Input::Reload;
            }
            if let Some(note) = take(&mut pending) {
                return Input::Note(note);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Input::Nothing;
            }
            pending = self.0.1.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A sentence that nobody has taken yet, also when the end is wished.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        take(&mut self.lock())
    }
}

fn take(pending: &mut Pending) -> Option<String> {
    let note = pending.notes.pop_front();
    note.or_else(|| match std::mem::take(&mut pending.lost) {
        0 => None,
        lost => Some(format!("{lost} sentences were lost: they came faster than they could be told")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_first_and_stays() {
        let inbox = Inbox::default();
        inbox.notes().say("a");
        inbox.reload();
        inbox.reload();
        assert_eq!(inbox.next(Duration::ZERO), Input::Reload);
        assert_eq!(inbox.next(Duration::ZERO), Input::Note("a".into()));
        assert_eq!(inbox.next(Duration::ZERO), Input::Nothing);
        inbox.reload();
        inbox.notes().say("b");
        inbox.stop();
        assert_eq!((inbox.next(Duration::ZERO), inbox.next(Duration::ZERO)), (Input::Stop, Input::Stop));
        assert!(inbox.is_stopping());
        assert_eq!((inbox.note(), inbox.note()), (Some("b".into()), None));
    }

    #[test]
    fn a_wish_wakes_who_waits() {
        let inbox = Inbox::default();
        let waiting = inbox.clone();
        let thread = std::thread::spawn(move || waiting.next(Duration::from_secs(60)));
        inbox.stop();
        assert_eq!(thread.join().unwrap(), Input::Stop);
    }

    #[test]
    fn a_role_that_talks_too_much_is_not_kept() {
        let inbox = Inbox::default();
        let notes = inbox.notes();
        (0..NOTES_MAX + 3).for_each(|number| notes.say(&number.to_string()));
        let told: Vec<_> = std::iter::from_fn(|| inbox.note()).collect();
        assert_eq!(told.len(), NOTES_MAX + 1);
        assert!(told.last().unwrap().starts_with("3 sentences were lost"));
    }
}
