//! A source whose reads or writes wait at a gate, for what must be in flight when something else happens.

use bytes::Bytes;
use cdp_net::device::{BlockStatus, Device, ZeroFlags};
use std::io;
use std::sync::{Arc, Condvar, Mutex};

/// What is done at which offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read(u64),
    Write(u64),
}

/// Open at first.
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { closed: Mutex::new(false), opened: Condvar::new() })
    }
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }
    pub(crate) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

/// Only what `stops` names goes through the gate.
pub(crate) struct Held {
    inner: Arc<dyn Device>,
    gate: Arc<Gate>,
    stops: fn(Access) -> bool,
}

impl Held {
    pub(crate) fn over(inner: Arc<dyn Device>, gate: &Arc<Gate>, stops: fn(Access) -> bool) -> Arc<dyn Device> {
        Arc::new(Self { inner, gate: Arc::clone(gate), stops })
    }

    fn pass(&self, access: Access) {
        if (self.stops)(access) {
            self.gate.pass();
        }
    }
}

impl Device for Held {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.pass(Access::Read(offset));
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.pass(Access::Write(offset));
        self.inner.write(offset, data, fua)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.inner.trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.inner.write_zeroes(offset, length, flags)
    }
    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.inner.block_status(offset, length, entries_max)
    }
}
