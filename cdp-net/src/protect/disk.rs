//! A protected disk as a front end serves it: each write gets its place in the order, goes to the source, and is kept.

use super::engine::{Admitted, Engine};
use crate::device::{BlockStatus, Device, Written, ZeroFlags};
use bytes::Bytes;
use cdp_core::capture::{Op, SubmitError};
use cdp_core::frame::Payload;
use cdp_core::types::{DiskId, Extent};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A source with the filter in front of it.
pub(super) struct ProtectedDisk {
    id: DiskId,
    source: Arc<dyn Device>,
    engine: Arc<Engine>,
    /// The disk left the group.
    ended: AtomicBool,
}

impl ProtectedDisk {
    pub(super) fn new(id: DiskId, source: Arc<dyn Device>, engine: Arc<Engine>) -> Self {
        Self { id, source, engine, ended: AtomicBool::new(false) }
    }

    /// From now on whoever still asks gets errors.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        if self.ended.load(Ordering::Acquire) { Err(refused(SubmitError::Closed)) } else { Ok(()) }
    }

    /// Runs `work` on the source at the place in the order that `op` gets; with `fua` it is durable when this returns.
    fn ordered(&self, op: Op, fua: bool, work: impl FnOnce(&dyn Device) -> io::Result<()>) -> io::Result<()> {
        // What goes past the filter is not refused by it.
        self.check()?;
        let flush = if fua { Some(self.engine.flush_begin(self.id).map_err(refused)?) } else { None };
        let place = self.engine.submit(self.id, op).and_then(|admitted| match admitted {
            Admitted::Now(place) => Ok(place),
            Admitted::Later(ticket) => self.engine.wait_ready(ticket),
        });
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                flush.into_iter().for_each(|flush| self.engine.flush_end(self.id, flush, None));
                return Err(refused(error));
            }
        };
        let result = contained(|| work(self.source.as_ref()));
        if let Some(flush) = flush {
            // The system tells once that it could not write pages: what this call heard of may be others' pages.
            self.engine.flush_end(self.id, flush, Some(&result).filter(|result| result.is_err()));
        }
        self.engine.complete(place, &result);
        result
    }
}

/// A source that panics must not leave its op open for ever: others would wait for it.
fn contained(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let work = std::panic::AssertUnwindSafe(work);
    std::panic::catch_unwind(work).unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::EIO)))
}

/// What is kept of a write. The parts are checksummed here, before any lock.
fn payload(offset: u64, data: &Bytes) -> io::Result<Op> {
    let payload = Payload::new(offset, data.clone()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(Op::Write(payload))
}

fn refused(error: SubmitError) -> io::Error {
    let errno = match error {
        SubmitError::OutOfBounds { .. } => libc::ENOSPC,
        // A disk that the filter does not know has left.
        SubmitError::Closed | SubmitError::UnknownDisk { .. } => libc::ESHUTDOWN,
        _ => libc::EINVAL,
    };
    io::Error::from_raw_os_error(errno)
}

impl Device for ProtectedDisk {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.source.read(offset, buffer)
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.check()?;
        self.source.read_now(offset, buffer)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        // What goes to the source are the very bytes that are kept.
        self.ordered(payload(offset, &data)?, fua, |source| source.write(offset, data, fua))
    }

    fn write_now(&self, offset: u64, data: Bytes) -> io::Result<Written> {
        self.check()?;
        let admitted = self.engine.submit(self.id, payload(offset, &data)?).map_err(refused)?;
        let run = move |engine: &Engine, source: &dyn Device, place, data| {
            let result = contained(|| source.write(offset, data, false));
            engine.complete(place, &result);
            result
        };
        match admitted {
            Admitted::Now(place) => run(&self.engine, self.source.as_ref(), place, data).map(|()| Written::Whole),
            Admitted::Later(ticket) => {
                let (engine, source) = (Arc::clone(&self.engine), Arc::clone(&self.source));
                Ok(Written::Waits(Box::new(move || {
                    let place = engine.wait_ready(ticket).map_err(refused)?;
                    run(&engine, source.as_ref(), place, data)
                })))
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.check()?;
        let flush = self.engine.flush_begin(self.id).map_err(refused)?;
        let result = self.source.flush();
        self.engine.flush_end(self.id, flush, Some(&result));
        result
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        if !self.source.can_trim() {
            // A hint that the source cannot follow changes nothing, so nothing is recorded.
            return if fua { self.flush() } else { Ok(()) };
        }
        self.ordered(Op::Discard(Extent::new(offset, length)), fua, |source| source.trim(offset, length, fua))
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        if flags.fast && !self.source.can_zero_fast(flags) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let extent = Extent::new(offset, length);
        let op = if flags.no_hole { Op::Zero(extent) } else { Op::Discard(extent) };
        self.ordered(op, flags.fua, |source| source.write_zeroes(offset, length, flags))
    }

    fn can_trim(&self) -> bool {
        self.source.can_trim()
    }

    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        self.source.can_zero_fast(flags)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check()?;
        self.source.cache(offset, length)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.check()?;
        self.source.block_status(offset, length, entries_max)
    }
}
