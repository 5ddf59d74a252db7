//! A moment that somebody has open from afar: read-only, or a session.

use super::super::lock;
use super::super::seat::Seat;
use super::Lease;
use crate::clock;
use crate::device::{Device, ZeroFlags};
use crate::far::{OpenView, OpenedView, VIEW_BYTES_MAX, WriteHow, WriteView};
use crate::moment::MomentDisks;
use crate::mount::SessionDevice;
use crate::owner::Access;
use crate::reading::{Reading, Writing};
use crate::report::{Problem, ProblemClass};
use bytes::Bytes;
use cdp_core::replica::{ReplicaView, Run};
use cdp_core::types::{DiskId, Extent};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Runs of one answer, at most: 68 KiB.
const RUNS_MAX: usize = 4096;
/// An answer is given after so long, however few runs it has.
const RUNS_WITHIN: Duration = Duration::from_millis(250);
/// Entries that a session's disk is asked for at once.
const ENTRIES_MAX: usize = 1024;
/// How much of a session's disk is looked at at once, in bytes.
const STRIDE: u64 = 64 << 20;
/// Writes of a session that were done and whose answers may not have arrived, at most: the calls of two sessions of the link.
const WRITES_MAX: usize = 512;

/// A view's place in the table, which it has before it is open.
pub(super) struct ViewEntry {
    lease: Lease,
    state: Mutex<State>,
}

enum State {
    Opening,
    Open(Arc<View>),
    Closed,
}

/// What is open.
pub(super) struct View {
    disks: Disks,
    document: OpenedView,
}

enum Disks {
    Moment {
        view: Arc<ReplicaView>,
        /// Dropped after it.
        _reading: Box<Reading>,
    },
    Session {
        devices: BTreeMap<DiskId, SessionDevice>,
        writes: Mutex<BTreeMap<u64, Arc<Mutex<Option<Done>>>>>,
        settled: Mutex<u64>,
        writing: Box<Writing>,
    },
}

type Done = Result<(), Problem>;

impl ViewEntry {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { lease: Lease::new(), state: Mutex::new(State::Opening) })
    }

    /// One that was asked for last at that time.
    #[cfg(test)]
    pub(super) fn since(at: std::time::Instant) -> Arc<Self> {
        Arc::new(Self { lease: Lease(Mutex::new(at)), state: Mutex::new(State::Opening) })
    }

    /// Opens it once: whoever asks for the same waits.
    pub(super) fn open(&self, open: impl FnOnce() -> Result<View, Problem>) -> Result<Arc<View>, Problem> {
        let mut state = lock(&self.state);
        let view = match &*state {
            State::Open(view) => Arc::clone(view),
            State::Closed => return Err(super::unknown()),
            State::Opening => {
                let opened = open().map(Arc::new);
                *state = opened.as_ref().map_or(State::Closed, |view| State::Open(Arc::clone(view)));
                opened?
            }
        };
        self.lease.renew();
        Ok(view)
    }

    /// The view, if it is open; its lease begins anew.
    pub(super) fn opened(&self) -> Option<Arc<View>> {
        self.lease.renew();
        match &*lock(&self.state) {
            State::Open(view) => Some(Arc::clone(view)),
            _ => None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        // What is being opened or read is in use.
        self.lease.is_over()
            && self.state.try_lock().is_ok_and(|state| match &*state {
                State::Open(view) => Arc::strong_count(view) == 1,
                _ => true,
            })
    }

    /// Ends it, with what was written in it made durable if it is to be kept.
    pub(super) fn close(&self) -> Done {
        let state = std::mem::replace(&mut *lock(&self.state), State::Closed);
        if let State::Open(view) = state
            && let Disks::Session { writing, .. } = &view.disks
            && writing.report.name.is_some()
        {
            return writing.session.close(clock::now()).map_err(|error| failed(error.to_string()));
        }
        Ok(())
    }
}

fn failed(message: String) -> Problem {
    Problem::new(ProblemClass::Failed, "session", message)
}

fn usage(message: &str) -> Problem {
    Problem::new(ProblemClass::Usage, "call", message)
}

impl View {
    /// Opens what is wanted, as a client of the replica's owner.
    pub(super) fn open(seat: &Seat, order: &OpenView) -> Result<Self, Problem> {
        let access = Access::Client(seat.reach()?);
        let (dir, key) = seat.place();
        if order.writable {
            let writing = Writing::open(dir, access, order.at.as_ref(), order.nearest, order.session.clone(), key)?;
            let disks = writing.session.view().disks().to_vec();
            let document = OpenedView {
                at: writing.report.at.clone(),
                disks: disks.iter().map(Into::into).collect(),
                incomplete: writing.incomplete.clone(),
                session: Some(writing.report.clone()),
            };
            let device =
                |disk: cdp_core::replica::ViewDisk| (disk.id, SessionDevice::new(Arc::clone(&writing.session), disk));
            let devices = disks.into_iter().map(device).collect();
            let (writes, settled) = (Mutex::default(), Mutex::default());
            let writing = Box::new(writing);
            return Ok(Self { disks: Disks::Session { devices, writes, settled, writing }, document });
        }
        let at = order.at.as_ref().ok_or_else(|| usage("a moment that takes no writes is opened by its name"))?;
        let mut reading = Reading::open(dir, access, at, order.nearest, key)?;
        reading.check_disk(order.disk.as_deref())?;
        let view = Arc::new(reading.view()?);
        let document = OpenedView {
            at: reading.at.clone(),
            disks: view.disks().iter().map(Into::into).collect(),
            incomplete: reading.incomplete(),
            session: None,
        };
        Ok(Self { disks: Disks::Moment { view, _reading: Box::new(reading) }, document })
    }

    pub(super) fn document(&self) -> &OpenedView {
        &self.document
    }

    /// The moment, where nothing is written.
    pub(super) fn moment(&self) -> Result<Arc<ReplicaView>, Problem> {
        match &self.disks {
            Disks::Moment { view, .. } => Ok(Arc::clone(view)),
            Disks::Session { .. } => Err(usage("a session is no moment")),
        }
    }

    /// Refuses what lies outside of the disks.
    fn check(&self, disk: DiskId, range: Extent) -> Result<(), Problem> {
        let known = self.document.disks.iter().find(|known| known.id == disk);
        match known {
            Some(known) if !range.is_empty() && range.end() <= known.size => Ok(()),
            Some(_) => Err(usage("the range is empty, or lies outside of the disk")),
            None => Err(usage("there is no such disk at that moment")),
        }
    }

    pub(super) fn read(&self, disk: DiskId, range: Extent) -> Result<Vec<u8>, Problem> {
        self.check(disk, range)?;
        if range.length > VIEW_BYTES_MAX {
            return Err(usage("more is asked for than one answer can hold"));
        }
        let mut bytes = vec![0; range.length as usize];
        match &self.disks {
            Disks::Moment { view, .. } => MomentDisks::read(view.as_ref(), disk, range.offset, &mut bytes)?,
            Disks::Session { devices, .. } => {
                device(devices, disk)?.read(range.offset, &mut bytes).map_err(io_failed)?
            }
        }
        Ok(bytes)
    }

    /// The beginning of the range, as far as an answer goes.
    pub(super) fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, Problem> {
        self.check(disk, range)?;
        let (mut found, mut left, begun): (Vec<Run>, _, _) = (Vec::new(), range, Instant::now());
        while !left.is_empty() && found.len() < RUNS_MAX && (found.is_empty() || begun.elapsed() < RUNS_WITHIN) {
            for run in self.some_runs(disk, left)? {
                left = Extent::new(run.extent.end(), left.end() - run.extent.end());
                match found.last_mut().filter(|last| (last.zero, last.hole) == (run.zero, run.hole)) {
                    Some(last) => last.extent.length += run.extent.length,
                    None => found.push(run),
                }
            }
        }
        found.truncate(RUNS_MAX);
        Ok(found)
    }

    fn some_runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, Problem> {
        match &self.disks {
            Disks::Moment { view, .. } => MomentDisks::runs(view.as_ref(), disk, range),
            Disks::Session { devices, .. } => {
                let mut at = range.offset;
                let length = range.length.min(STRIDE);
                let found = device(devices, disk)?.block_status(at, length, ENTRIES_MAX).map_err(io_failed)?;
                let run = |status: &crate::device::BlockStatus| {
                    let extent = Extent::new(at, status.length);
                    at = extent.end();
                    Run { extent, zero: status.zero, hole: status.hole }
                };
                Ok(found.iter().map(run).collect())
            }
        }
    }

    /// Does it once, however often it comes.
    pub(super) fn write(&self, write: &WriteView, data: &Bytes) -> Done {
        let Disks::Session { devices, writes, settled, .. } = &self.disks else {
            return Err(Problem::new(ProblemClass::Refused, "read-only", "the moment was not opened to be written"));
        };
        let slot = {
            let mut writes = lock(writes);
            let mut settled = lock(settled);
            *settled = write.settled.max(*settled);
            *writes = writes.split_off(&*settled);
            if write.number < *settled {
                // It was answered long ago: this is a copy that was late.
                return Ok(());
            }
            if writes.len() >= WRITES_MAX && !writes.contains_key(&write.number) {
                return Err(Problem::new(ProblemClass::Refused, "busy", "too many writes are under way"));
            }
            Arc::clone(writes.entry(write.number).or_default())
        };
        let mut done = lock(&slot);
        done.get_or_insert_with(|| self.write_once(device(devices, write.disk)?, write, data)).clone()
    }

    fn write_once(&self, device: &SessionDevice, write: &WriteView, data: &Bytes) -> Done {
        let Extent { offset, length } = write.range;
        if write.how != WriteHow::Flush {
            self.check(write.disk, write.range)?;
        }
        let done = match write.how {
            WriteHow::Data if data.len() as u64 != length => return Err(usage("the tail is not as long as the range")),
            WriteHow::Data => device.write(offset, data.clone(), write.fua),
            WriteHow::Zero => {
                device.write_zeroes(offset, length, ZeroFlags { no_hole: true, fua: write.fua, ..ZeroFlags::default() })
            }
            WriteHow::Discard => device.trim(offset, length, write.fua),
            WriteHow::Flush => device.flush(),
        };
        done.map_err(io_failed)
    }
}

fn device(devices: &BTreeMap<DiskId, SessionDevice>, disk: DiskId) -> Result<&SessionDevice, Problem> {
    devices.get(&disk).ok_or_else(|| usage("there is no such disk in the session"))
}

/// What a guest would see, in words; that there is no room keeps its own code.
fn io_failed(error: io::Error) -> Problem {
    let code = if error.raw_os_error() == Some(libc::ENOSPC) { "no-space" } else { "session" };
    Problem::new(ProblemClass::Failed, code, error.to_string())
}
