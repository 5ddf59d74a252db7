//! Moments as devices: a view that is only read, and a session that is written too.

use crate::clock;
use crate::device::{BlockStatus, Device, ZeroFlags};
use crate::moment::MomentDisks;
use bytes::Bytes;
use cdp_core::frame::Payload;
use cdp_core::journal::ReadError;
use cdp_core::replica::session::{Session, SessionError};
use cdp_core::replica::{Run, ViewDisk};
use cdp_core::types::Extent;
use std::io;
use std::sync::Arc;

/// A disk as it was at a moment.
pub struct ViewDevice {
    view: Arc<dyn MomentDisks>,
    disk: ViewDisk,
}

impl ViewDevice {
    /// A disk of a view.
    #[must_use]
    pub fn new(view: Arc<dyn MomentDisks>, disk: ViewDisk) -> Self {
        Self { view, disk }
    }
}

/// Damage and failing media are both an I/O error to a guest; the sentence is for the log.
fn unreadable(error: ReadError) -> io::Error {
    io::Error::other(error)
}

fn not_permitted() -> io::Error {
    io::Error::from_raw_os_error(libc::EPERM)
}

fn status_of(view: &dyn MomentDisks, disk: &ViewDisk, range: Extent, most: usize) -> io::Result<Vec<BlockStatus>> {
    let mut found = Vec::new();
    let mut left = range;
    while !left.is_empty() && found.len() < most {
        let runs = view.runs(disk.id, left).map_err(io::Error::other)?;
        let end = runs.last().map_or(left.end(), |run| run.extent.end());
        left = Extent::new(end, left.end() - end);
        let status = |run: &Run| BlockStatus { length: run.extent.length, hole: run.hole, zero: run.zero };
        found.extend(runs.iter().map(status));
    }
    found.truncate(most);
    Ok(found)
}

impl Device for ViewDevice {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.view.read(self.disk.id, offset, buffer).map_err(io::Error::other)
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> io::Result<()> {
        Err(not_permitted())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(not_permitted())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> io::Result<()> {
        Err(not_permitted())
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        status_of(self.view.as_ref(), &self.disk, Extent::new(offset, length), entries_max)
    }
}

/// A disk of a session: the moment it began at, and what was written since.
#[derive(Debug)]
pub struct SessionDevice {
    session: Arc<Session>,
    disk: ViewDisk,
}

impl SessionDevice {
    /// A disk of a session.
    #[must_use]
    pub fn new(session: Arc<Session>, disk: ViewDisk) -> Self {
        Self { session, disk }
    }

    fn flush_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }
}

fn session_failed(error: SessionError) -> io::Error {
    match error {
        SessionError::NoSpace { .. } => io::Error::from_raw_os_error(libc::ENOSPC),
        SessionError::Read(error) => unreadable(error),
        error => io::Error::other(error),
    }
}

impl Device for SessionDevice {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.session.read(clock::now(), self.disk.id, offset, buffer).map_err(session_failed)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let payload = Payload::new(offset, data).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.session.write(clock::now(), self.disk.id, payload).map_err(session_failed)?;
        self.flush_if(fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.session.flush(clock::now()).map_err(session_failed)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let extent = Extent::new(offset, length);
        self.session.zero(clock::now(), self.disk.id, extent, false).map_err(session_failed)?;
        self.flush_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let extent = Extent::new(offset, length);
        self.session.zero(clock::now(), self.disk.id, extent, flags.no_hole).map_err(session_failed)?;
        self.flush_if(flags.fua)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        let range = Extent::new(offset, length);
        self.session.show(clock::now(), self.disk.id, range).map_err(session_failed)?;
        status_of(self.session.view(), &self.disk, range, entries_max)
    }
}
