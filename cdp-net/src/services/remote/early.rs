//! Disks that are served before there is a filter for them, and go on behind it once there is.
//!
//! Until then what a guest does goes straight to the source, and nothing of it is known: everything is compared later. The hand-over is
//! one short wait: what comes then waits for what is under way at the source, as it would for an overlap. The protection that takes
//! over does not read the sources before all of them are handed over ([`Gate`]), so that what it reads has all that it did not see.

use crate::device::{BlockStatus, Device, Written, ZeroFlags};
use bytes::Bytes;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// How long somebody waits at a gate before he is told to try again: so nobody waits for a gate that nobody opens any more.
const GATE_PATIENCE: Duration = Duration::from_secs(10);

/// A disk that is served at once.
pub(super) struct EarlyDisk {
    source: Arc<dyn Device>,
    /// What it goes on behind.
    then: OnceLock<Arc<dyn Device>>,
    /// Read-held by what is under way at the source itself.
    under_way: RwLock<()>,
}

impl EarlyDisk {
    pub(super) fn new(source: Arc<dyn Device>) -> Self {
        Self { source, then: OnceLock::new(), under_way: RwLock::new(()) }
    }

    /// From now on it goes on behind `device`; returns when nothing is under way at the source itself. Once.
    pub(super) fn hand_over(&self, device: Arc<dyn Device>) {
        let _none = self.under_way.write().unwrap_or_else(PoisonError::into_inner);
        // A second one would be a second filter for one disk; who starts them starts one.
        let _ = self.then.set(device);
    }

    fn through<T>(&self, call: impl FnOnce(&dyn Device) -> T) -> T {
        if let Some(device) = self.then.get() {
            return call(device.as_ref());
        }
        let under_way = self.under_way.read().unwrap_or_else(PoisonError::into_inner);
        match self.then.get() {
            Some(device) => {
                drop(under_way);
                call(device.as_ref())
            }
            None => call(self.source.as_ref()),
        }
    }
}

impl Device for EarlyDisk {
    fn size(&self) -> u64 {
        self.through(|device| device.size())
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.through(|device| device.read(offset, buffer))
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        // The hand-over may wait for a disk, and this may not.
        self.then.get().map_or(Ok(false), |device| device.read_now(offset, buffer))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.through(|device| device.write(offset, data, fua))
    }

    fn write_now(&self, offset: u64, data: Bytes) -> io::Result<Written> {
        self.through(|device| device.write_now(offset, data))
    }

    fn flush(&self) -> io::Result<()> {
        self.through(|device| device.flush())
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.through(|device| match device.can_trim() {
            true => device.trim(offset, length, fua),
            // A hint that the source cannot follow changes nothing.
            false if fua => device.flush(),
            false => Ok(()),
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.through(|device| device.write_zeroes(offset, length, flags))
    }

    fn can_trim(&self) -> bool {
        self.source.can_trim()
    }

    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        self.source.can_zero_fast(flags)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.through(|device| device.cache(offset, length))
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.through(|device| device.block_status(offset, length, entries_max))
    }
}

/// Sources behind it are not read before it is opened.
#[derive(Default)]
pub(super) struct Gate {
    open: AtomicBool,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    pub(super) fn open(&self) {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.store(true, Ordering::Release);
        self.opened.notify_all();
    }

    fn pass(&self) -> io::Result<()> {
        if self.open.load(Ordering::Acquire) {
            return Ok(());
        }
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = |(): &mut ()| !self.open.load(Ordering::Acquire);
        let waited =
            self.opened.wait_timeout_while(lock, GATE_PATIENCE, closed).unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// A source behind a gate.
pub(super) struct Gated {
    pub(super) source: Arc<dyn Device>,
    pub(super) gate: Arc<Gate>,
}

impl Device for Gated {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_only(&self) -> bool {
        self.source.read_only()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.gate.pass()?;
        self.source.read(offset, buffer)
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        if self.gate.open.load(Ordering::Acquire) { self.source.read_now(offset, buffer) } else { Ok(false) }
    }

    fn read_media(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.gate.pass()?;
        self.source.read_media(offset, buffer)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.source.write(offset, data, fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.source.flush()
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.source.trim(offset, length, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.source.write_zeroes(offset, length, flags)
    }

    fn can_trim(&self) -> bool {
        self.source.can_trim()
    }

    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        self.source.can_zero_fast(flags)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.source.cache(offset, length)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.gate.pass()?;
        self.source.block_status(offset, length, entries_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_device::FileDevice;
    use std::sync::mpsc::{Receiver, Sender, channel};

    fn disk(directory: &tempfile::TempDir, name: &str) -> Arc<dyn Device> {
        let path = directory.path().join(name);
        std::fs::write(&path, vec![0; 8192]).unwrap();
        Arc::new(FileDevice::open(&path, false).unwrap())
    }

    /// Says when a write has come to it, and lets it go on when it is told to.
    struct Slow {
        below: Arc<dyn Device>,
        came: Mutex<Sender<()>>,
        go: Mutex<Receiver<()>>,
    }

    impl Device for Slow {
        fn size(&self) -> u64 {
            self.below.size()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.below.read(offset, buffer)
        }
        fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
            self.came.lock().unwrap().send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
            self.below.write(offset, data, fua)
        }
        fn flush(&self) -> io::Result<()> {
            self.below.flush()
        }
        fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
            self.below.trim(offset, length, fua)
        }
        fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
            self.below.write_zeroes(offset, length, flags)
        }
    }

    #[test]
    fn a_write_under_way_is_over_before_the_disk_is_handed_over() {
        let directory = tempfile::tempdir().unwrap();
        let (below, then) = (disk(&directory, "below"), disk(&directory, "then"));
        let ((came, arrived), (let_go, go)) = (channel(), channel());
        let slow = Slow { below: Arc::clone(&below), came: Mutex::new(came), go: Mutex::new(go) };
        let early = EarlyDisk::new(Arc::new(slow));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| early.write(0, vec![1; 512].into(), false));
            arrived.recv().unwrap();
            let over = scope.spawn(|| {
                early.hand_over(Arc::clone(&then));
                let mut found = [0; 512];
                below.read(0, &mut found).unwrap();
                found
            });
            let_go.send(()).unwrap();
            assert_eq!(over.join().unwrap(), [1; 512], "what was under way is at the source");
            first.join().unwrap().unwrap();
        });
        early.write(512, vec![2; 512].into(), false).unwrap();
        let mut found = [0; 512];
        then.read(512, &mut found).unwrap();
        assert_eq!(found, [2; 512], "what came after goes through what took over");
    }

    #[test]
    fn nobody_reads_behind_a_gate_before_it_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let source = disk(&directory, "disk");
        let gate = Arc::<Gate>::default();
        let gated = Gated { source: Arc::clone(&source), gate: Arc::clone(&gate) };
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut found = [0; 512];
                gated.read_media(0, &mut found).unwrap();
                found
            });
            source.write(0, vec![7; 512].into(), false).unwrap();
            gate.open();
            assert_eq!(reader.join().unwrap(), [7; 512]);
        });
    }
}
