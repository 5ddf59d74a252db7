//! A disk of a session at another site, as a device.

use super::RemoteView;
use crate::device::{BlockStatus, Device, ZeroFlags};
use crate::far::WriteHow;
use crate::mount::ViewDevice;
use crate::report::Problem;
use bytes::Bytes;
use cdp_core::replica::ViewDisk;
use cdp_core::types::Extent;
use std::io;
use std::sync::Arc;

/// What is written goes over the line: a guest here waits for the way there and back.
pub struct RemoteSessionDevice {
    view: Arc<RemoteView>,
    disk: ViewDisk,
    /// Reads are as of any moment.
    read: ViewDevice,
}

impl RemoteSessionDevice {
    /// A disk of a session.
    #[must_use]
    pub fn new(view: Arc<RemoteView>, disk: ViewDisk) -> Self {
        let read = ViewDevice::new(Arc::clone(&view) as _, disk.clone());
        Self { view, disk, read }
    }

    fn change(&self, range: Extent, how: WriteHow, data: &Bytes, fua: bool) -> io::Result<()> {
        self.view.write((self.disk.id, range), how, data, fua).map_err(io_failed)
    }
}

fn io_failed(problem: Problem) -> io::Error {
    match problem.code.as_str() {
        "no-space" => io::Error::from_raw_os_error(libc::ENOSPC),
        _ => io::Error::other(problem),
    }
}

impl Device for RemoteSessionDevice {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.change(Extent::new(offset, data.len() as u64), WriteHow::Data, &data, fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.change(Extent::new(0, 0), WriteHow::Flush, &Bytes::new(), true)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.change(Extent::new(offset, length), WriteHow::Discard, &Bytes::new(), fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let how = if flags.no_hole { WriteHow::Zero } else { WriteHow::Discard };
        self.change(Extent::new(offset, length), how, &Bytes::new(), flags.fua)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.read.block_status(offset, length, entries_max)
    }
}
