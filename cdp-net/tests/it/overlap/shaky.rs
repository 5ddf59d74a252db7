//! A source that fails now and then, in every way a disk does.

use crate::dice::Dice;
use bytes::Bytes;
use cdp_net::device::{BlockStatus, Device, ZeroFlags};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mood {
    /// Nothing fails.
    Sound,
    /// Reads, writes and flushes fail; a failed write leaves the old bytes, the new ones or whole sectors of both.
    Failing,
    /// Besides, a failed flush loses what was written since the last good one, as a kernel drops pages it could not write.
    Losing,
}

/// A device in front of a real one.
pub(super) struct Shaky {
    inner: Arc<dyn Device>,
    mood: Mood,
    dice: Mutex<Dice>,
    /// Of a thousand ops so many fail.
    permille: AtomicU64,
    /// Changes hold it shared, flushes alone.
    turn: RwLock<()>,
    /// What lay where, before each write since the last good flush.
    unflushed: Mutex<Vec<(u64, Vec<u8>)>>,
    pub(super) faults: AtomicU64,
    pub(super) failed_flushes: AtomicU64,
}

/// What happens to a change.
enum Fault {
    None,
    Before,
    /// After so many sectors of it.
    Torn(u64),
    After,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Shaky {
    pub(super) fn new(inner: Arc<dyn Device>, mood: Mood, seed: u64, permille: u64) -> Arc<Self> {
        let permille = AtomicU64::new(if mood == Mood::Sound { 0 } else { permille });
        let dice = Mutex::new(Dice::new(seed));
        Arc::new(Self {
            inner,
            mood,
            dice,
            permille,
            turn: RwLock::default(),
            unflushed: Mutex::default(),
            faults: AtomicU64::new(0),
            failed_flushes: AtomicU64::new(0),
        })
    }

    /// From now on nothing fails.
    pub(super) fn mend(&self) {
        self.permille.store(0, Ordering::SeqCst);
    }

    /// What is demanded durable at once is so by a flush, which may fail and lose more than the one write; who is told that it
    /// failed cannot know which of the two did.
    fn flushed_if(&self, fua: bool, changed: io::Result<()>) -> io::Result<()> {
        match changed {
            Err(_) if fua => drop(self.failed_flushes.fetch_add(1, Ordering::SeqCst)),
            Ok(()) if fua => return self.flush(),
            _ => {}
        }
        changed
    }

    fn fails(&self) -> bool {
        let permille = self.permille.load(Ordering::SeqCst);
        let fails = permille > 0 && self.dice.lock().unwrap().permille(permille);
        self.faults.fetch_add(u64::from(fails), Ordering::SeqCst);
        fails
    }

    fn fault(&self, length: u64) -> Fault {
        if !self.fails() {
            return Fault::None;
        }
        let mut dice = self.dice.lock().unwrap();
        match dice.below(3) {
            0 => Fault::Before,
            1 => Fault::Torn(dice.below(length / 512 + 1)),
            _ => Fault::After,
        }
    }

    /// Runs a change that `work` makes to the first so many bytes of a range.
    fn change(&self, offset: u64, length: u64, work: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
        let _shared = self.turn.read().unwrap();
        if self.mood == Mood::Losing {
            let mut before = vec![0; length as usize];
            self.inner.read(offset, &mut before)?;
            self.unflushed.lock().unwrap().push((offset, before));
        }
        match self.fault(length) {
            Fault::None => work(length),
            Fault::Before => Err(eio()),
            Fault::Torn(0) => Err(eio()),
            Fault::Torn(sectors) => work((sectors * 512).min(length)).and(Err(eio())),
            Fault::After => work(length).and(Err(eio())),
        }
    }
}

impl Device for Shaky {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.fails() { Err(eio()) } else { self.inner.read(offset, buffer) }
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        if self.fails() { Err(eio()) } else { self.inner.read_now(offset, buffer) }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let write = |bytes| self.inner.write(offset, data.slice(..bytes as usize), false);
        self.flushed_if(fua, self.change(offset, data.len() as u64, write))
    }

    fn flush(&self) -> io::Result<()> {
        let _alone = self.turn.write().unwrap();
        let mut writes = self.unflushed.lock().unwrap();
        if self.fails() {
            self.failed_flushes.fetch_add(1, Ordering::SeqCst);
            for (offset, before) in writes.drain(..).rev() {
                self.inner.write(offset, Bytes::from(before), false)?;
            }
            return Err(eio());
        }
        writes.clear();
        self.inner.flush()
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.flushed_if(fua, self.change(offset, length, |bytes| self.inner.trim(offset, bytes, false)))
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let cached = ZeroFlags { fua: false, ..flags };
        self.flushed_if(flags.fua, self.change(offset, length, |bytes| self.inner.write_zeroes(offset, bytes, cached)))
    }

    fn can_trim(&self) -> bool {
        self.inner.can_trim()
    }

    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        self.inner.can_zero_fast(flags)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        self.inner.block_status(offset, length, entries_max)
    }
}
