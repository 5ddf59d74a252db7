//! Going through a disk: zeros run by run, everything else read, verified and in pieces.

use crate::moment::MomentDisks;
use crate::report::{Problem, ProblemClass};
use cdp_core::replica::{Run, ViewDisk};
use cdp_core::types::Extent;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Bytes of one read.
const PIECE: u64 = 1 << 20;

/// What is done with the content of a disk, whose pieces may come in any order and at the same time.
pub(super) struct Sink<'a> {
    pub(super) data: &'a (dyn Fn(u64, Vec<u8>) -> Result<(), Problem> + Sync),
    pub(super) zero: &'a (dyn Fn(&Run) -> Result<(), Problem> + Sync),
}

/// Goes through it. `done` is told after each piece up to where everything is done, and says whether to go on: also through terabytes
/// of zeros. As many reads are under way as the moment is worth; each holds one piece.
pub(super) fn copy(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    sink: &Sink<'_>,
    done: &mut dyn FnMut(u64) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let readers = view.reads_at_once().max(1);
    // A piece for each reader waits, besides the one that it has.
    let (pieces, queue) = sync_channel::<Extent>(readers);
    let (told, outcomes) = sync_channel::<Outcome>(4 * readers);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..readers {
            let (told, queue) = (told.clone(), &queue);
            let work = move || read_all(view, disk, sink, queue, &told);
            std::thread::Builder::new().name("cdp-restore".into()).spawn_scoped(scope, work).map_err(|error| {
                Problem::new(ProblemClass::Failed, "thread", format!("cannot start a thread that reads: {error}"))
            })?;
        }
        drop(told);
        let mut walk = Walk { at: 0, size: disk.size, runs: Vec::new().into_iter(), run: None };
        let mut way = Way { reached: 0, beyond: BTreeMap::new() };
        let mut under_way = 0;
        let mut give = Some(pieces);
        loop {
            while let Some(sender) = &give
                && under_way < 2 * readers
            {
                match walk.next(view, disk, sink)? {
                    Some(Step::Zero(extent)) => way.passed(extent, done)?,
                    Some(Step::Data(extent)) => {
                        // Nobody takes it where a reader panicked: the scope says so.
                        if sender.send(extent).is_err() {
                            give = None;
                        }
                        under_way += 1;
                    }
                    None => give = None,
                }
            }
            if under_way == 0 {
                return Ok(());
            }
            let Ok(outcome) = outcomes.recv() else { return Ok(()) };
            under_way -= 1;
            way.passed(outcome?, done)?;
        }
    })
}

type Outcome = Result<Extent, Problem>;

/// Reads pieces until there are no more, or nobody wants to know.
fn read_all(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    sink: &Sink<'_>,
    queue: &Mutex<Receiver<Extent>>,
    told: &SyncSender<Outcome>,
) {
    loop {
        let piece = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(extent) = piece else { return };
        let mut bytes = vec![0; extent.length as usize];
        let read = view.read(disk.id, extent.offset, &mut bytes).and_then(|()| (sink.data)(extent.offset, bytes));
        if told.send(read.map(|()| extent)).is_err() {
            return;
        }
    }
}

enum Step {
    Zero(Extent),
    Data(Extent),
}

/// Where it is in the disk.
struct Walk {
    at: u64,
    size: u64,
    runs: std::vec::IntoIter<Run>,
    /// What is left of a run of data.
    run: Option<Extent>,
}

impl Walk {
    fn next(&mut self, view: &dyn MomentDisks, disk: &ViewDisk, sink: &Sink<'_>) -> Result<Option<Step>, Problem> {
        loop {
            if let Some(left) = self.run.take() {
                let (piece, rest) = (left.length.min(PIECE), left.length.saturating_sub(PIECE));
                self.run = (rest > 0).then(|| Extent::new(left.offset + piece, rest));
                return Ok(Some(Step::Data(Extent::new(left.offset, piece))));
            }
            match self.runs.next() {
                Some(run) if run.zero => {
                    (sink.zero)(&run)?;
                    return Ok(Some(Step::Zero(run.extent)));
                }
                Some(run) => self.run = Some(run.extent),
                None if self.at >= self.size => return Ok(None),
                None => {
                    let runs = view.runs(disk.id, Extent::new(self.at, self.size - self.at))?;
                    self.at = runs.last().map_or(self.size, |run| run.extent.end());
                    self.runs = runs.into_iter();
                }
            }
        }
    }
}

/// How far everything is done, and what is done beyond that.
struct Way {
    reached: u64,
    /// As many as reads are under way at most, and zeros between them.
    beyond: BTreeMap<u64, u64>,
}

impl Way {
    fn passed(&mut self, extent: Extent, done: &mut dyn FnMut(u64) -> Result<(), Problem>) -> Result<(), Problem> {
        self.beyond.insert(extent.offset, extent.end());
        while let Some(end) = self.beyond.remove(&self.reached) {
            self.reached = end;
        }
        done(self.reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::types::DiskId;
    use std::sync::Condvar;
    use std::time::Duration;

    const SIZE: u64 = 100 << 20;
    const READS: usize = 8;

    /// A disk at the end of a long line: a read is answered when as many are under way as are worth it, or none is left to come. Every
    /// tenth MiB is zeros.
    #[derive(Default)]
    struct Slow {
        /// Reads under way, and the most that ever were.
        state: Mutex<(usize, usize)>,
        changed: Condvar,
        fails_at: Option<u64>,
    }

    fn is_zero(at: u64) -> bool {
        (at >> 20).is_multiple_of(10)
    }

    impl MomentDisks for Slow {
        fn disks(&self) -> &[ViewDisk] {
            &[]
        }

        fn runs(&self, _: DiskId, range: Extent) -> Result<Vec<Run>, Problem> {
            // Never the whole range.
            let run = |at: u64| Run { extent: Extent::new(at, 1 << 20), zero: is_zero(at), hole: is_zero(at) };
            Ok((range.offset..range.end()).step_by(1 << 20).take(7).map(run).collect())
        }

        fn read(&self, _: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Problem> {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            state.1 = state.1.max(state.0);
            self.changed.notify_all();
            let (mut state, _) =
                self.changed.wait_timeout_while(state, Duration::from_millis(300), |state| state.1 < READS).unwrap();
            state.0 -= 1;
            drop(state);
            if self.fails_at == Some(offset) {
                return Err(Problem::new(ProblemClass::Damage, "damaged", "on purpose"));
            }
            out.fill((offset >> 20) as u8);
            Ok(())
        }

        fn reads_at_once(&self) -> usize {
            READS
        }
    }

    fn disk() -> ViewDisk {
        ViewDisk { id: DiskId::new(1).unwrap(), name: "disk".into(), size: SIZE }
    }

    #[test]
    fn as_many_reads_are_under_way_as_are_worth_it_and_progress_is_of_what_is_whole() {
        let slow = Slow::default();
        let written = Mutex::new(BTreeMap::new());
        let data = |offset: u64, bytes: Vec<u8>| {
            assert!(bytes.len() == 1 << 20 && bytes.iter().all(|byte| *byte == (offset >> 20) as u8));
            assert_eq!(written.lock().unwrap().insert(offset, false), None);
            Ok(())
        };
        let zero = |run: &Run| {
            assert_eq!(written.lock().unwrap().insert(run.extent.offset, true), None);
            Ok(())
        };
        let mut last = 0;
        let mut done = |at| {
            let written = written.lock().unwrap();
            assert!(last <= at && (last..at).step_by(1 << 20).all(|at| written.contains_key(&at)));
            last = at;
            Ok(())
        };
        copy(&slow, &disk(), &Sink { data: &data, zero: &zero }, &mut done).unwrap();
        assert_eq!(last, SIZE);
        let written = written.into_inner().unwrap();
        assert!(written.len() == 100 && written.iter().all(|(at, zero)| *zero == is_zero(*at)));
        assert_eq!(slow.state.into_inner().unwrap().1, READS);
    }

    #[test]
    fn what_cannot_be_read_or_is_stopped_ends_it() {
        let nothing = Sink { data: &|_, _| Ok(()), zero: &|_| Ok(()) };
        let slow = Slow { fails_at: Some(33 << 20), ..Slow::default() };
        let mut last = 0;
        let mut done = |at| {
            last = at;
            Ok(())
        };
        assert_eq!(copy(&slow, &disk(), &nothing, &mut done).unwrap_err().code, "damaged");
        assert!(last <= 33 << 20, "nothing beyond it is whole");
        let stop = || Problem::new(ProblemClass::Failed, "stopped", "enough");
        let mut done = |at| if at > 20 << 20 { Err(stop()) } else { Ok(()) };
        assert_eq!(copy(&Slow::default(), &disk(), &nothing, &mut done).unwrap_err().code, "stopped");
    }
}
