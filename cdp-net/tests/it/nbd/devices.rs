//! Disks for tests.

use bytes::Bytes;
use cdp_net::device::{Device, ZeroFlags};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// A disk in memory that counts and can be held up.
pub(crate) struct Memory {
    pub(crate) data: Mutex<Vec<u8>>,
    pub(crate) read_only: bool,
    pub(crate) fast_zeroes: bool,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    held: Mutex<bool>,
    released: Condvar,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self::make(bytes, false))
    }

    pub(crate) fn read_only(bytes: usize) -> Arc<Self> {
        Arc::new(Self::make(bytes, true))
    }

    fn make(bytes: usize, read_only: bool) -> Self {
        Self {
            data: Mutex::new(vec![0; bytes]),
            read_only,
            fast_zeroes: false,
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            held: Mutex::new(false),
            released: Condvar::new(),
        }
    }

    /// Makes flushes wait until `false` is given.
    pub(crate) fn hold(&self, hold: bool) {
        *self.held.lock().unwrap() = hold;
        self.released.notify_all();
    }

    pub(crate) fn grow(&self, bytes: usize) {
        self.data.lock().unwrap().resize(bytes, 0);
    }

    fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
        usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
    }
}

impl Device for Memory {
    fn size(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.data.lock().unwrap()[Self::range(offset, buffer.len() as u64)]);
        Ok(())
    }
    fn write(&self, offset: u64, data: Bytes, _: bool) -> io::Result<()> {
        self.data.lock().unwrap()[Self::range(offset, data.len() as u64)].copy_from_slice(&data);
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn trim(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.data.lock().unwrap()[Self::range(offset, length)].fill(0);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        if flags.fast && !self.fast_zeroes {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.trim(offset, length, flags.fua)
    }
}

/// Fails or panics on demand.
pub(crate) struct Faulty {
    pub(crate) inner: Arc<Memory>,
    pub(crate) panics: AtomicBool,
    pub(crate) error: Mutex<Option<i32>>,
}

impl Faulty {
    fn fault(&self) -> io::Result<()> {
        assert!(!self.panics.load(Ordering::SeqCst), "a device that panics (wanted by the test)");
        match *self.error.lock().unwrap() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl Device for Faulty {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.fault()?;
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.fault()?;
        self.inner.write(offset, data, fua)
    }
    fn flush(&self) -> io::Result<()> {
        self.fault()?;
        self.inner.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.fault()?;
        self.inner.trim(offset, length, fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.fault()?;
        self.inner.write_zeroes(offset, length, flags)
    }
}
