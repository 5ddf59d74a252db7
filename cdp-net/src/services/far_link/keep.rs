//! The frames that are not durable, at the filter's end of a link: in memory, and beyond that in files.
//!
//! The files need not survive: what is lost with this process the activity log names. They are removed as what is in them becomes
//! durable, and what an earlier process left is removed at the start.

use super::task::Command;
use super::{FarOptions, SpoolPlace};
use crate::clock::mono;
use crate::drive::{self, Choice, Driver};
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::Executor;
use cdp_core::link::spool::{Lookup, PushError, Spool, SpoolEvent, SpoolOptions, sweep};
use cdp_core::media::{Disk, Storage};
use cdp_core::types::MonoTime;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// A file is this long at most, and an eighth of the room that there is for all of them when it is begun.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Frames that are read before they are asked for take so much memory at most, and an eighth of what there is.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// This part of the memory is not promised: frames take more than the filter counts for them.
const MARGIN: u64 = 8;
/// What the filter is told of room it is told again when it differs by so much, in bytes.
const TOLD_STEP: u64 = 1 << 20;

/// See the module's text.
pub(super) struct Keep {
    memory_bytes: u64,
    disk_bytes: u64,
    spool: Option<Spool>,
    /// Of timelines that are over: their files are being removed. As many as broke within the time that this takes.
    retired: Vec<Spool>,
    driver: Option<Box<dyn Driver>>,
    ids: u16,
    told: u64,
}

impl Keep {
    /// Nothing is kept yet. `commands` is told when the disk has done something.
    pub(super) fn new(options: &FarOptions, commands: UnboundedSender<Command>) -> io::Result<Self> {
        let memory_bytes = options.memory_bytes;
        let none =
            Self { memory_bytes, disk_bytes: 0, spool: None, retired: Vec::new(), driver: None, ids: 0, told: 0 };
        let Some(SpoolPlace { directory, bytes }) = &options.spool else { return Ok(none) };
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(directory).map_err(io::Error::other)?);
        sweep(storage.as_ref(), "").map_err(io::Error::other)?;
        let wake = Box::new(move || {
            // A task that has ended needs nothing any more.
            let _ = commands.send(Command::DiskDone);
        });
        let driver = drive::start(Choice::Threads, Executor::new(storage), wake)?;
        Ok(Self { disk_bytes: *bytes, driver: Some(driver), ..none })
    }

    /// Files take so much at most from now on, where there are files. Those that are there and are beyond it go as what is in them is
    /// released, and no other is begun before.
    pub(super) fn set_disk_bytes(&mut self, bytes: u64) {
        if self.driver.is_some() {
            self.disk_bytes = bytes;
            let (ahead_bytes, file_bytes) = (self.ahead_bytes(), self.file_bytes());
            if let Some(spool) = &mut self.spool {
                spool.set_bounds(self.memory_bytes, ahead_bytes, bytes);
                // Files of the length that they had might have no room at all.
                spool.set_file_bytes(file_bytes);
            }
        }
    }

    fn file_bytes(&self) -> u64 {
        (self.disk_bytes / 8).min(FILE_BYTES_MAX)
    }

    fn ahead_bytes(&self) -> u64 {
        (self.memory_bytes / 8).min(AHEAD_BYTES_MAX)
    }

    /// The frames of a timeline come, and those of the one before are not wanted any more.
    pub(super) fn begin(&mut self) {
        self.give_up();
        self.ids = self.ids % 1000 + 1;
        self.spool = Some(Spool::new(SpoolOptions {
            memory_bytes_max: self.memory_bytes,
            disk_bytes_max: self.disk_bytes,
            file_bytes: self.file_bytes(),
            directory: String::new(),
            ahead_bytes: self.ahead_bytes(),
            always: false,
            ids: self.ids,
        }));
    }

    /// No frame of this timeline is wanted any more.
    pub(super) fn give_up(&mut self) {
        if let Some(mut before) = self.spool.take() {
            before.forget();
            before.retire();
            self.retired.push(before);
            self.work();
        }
    }

    pub(super) fn push(&mut self, frame: EncodedFrame) -> Result<(), PushError> {
        self.spool.as_mut().map_or(Ok(()), |spool| spool.push(frame).map(drop))
    }

    pub(super) fn get(&mut self, key: u64) -> Lookup {
        self.spool.as_mut().map_or(Lookup::Gone, |spool| spool.get(key))
    }

    /// Frames with lower keys are not wanted any more.
    pub(super) fn release(&mut self, kept_from: u64) {
        if let (Some(last), Some(spool)) = (kept_from.checked_sub(1), &mut self.spool) {
            spool.release(last);
        }
    }

    /// Has the disk do what is to be done, and takes what it did. Gives what an operator should know.
    pub(super) fn work(&mut self) -> Vec<SpoolEvent> {
        let (now, mut events) = (mono(), Vec::new());
        let Some(driver) = &mut self.driver else { return events };
        for (id, outcome) in driver.take() {
            let all = self.spool.iter_mut().chain(&mut self.retired);
            let mut of = all.filter(|spool| spool.ids() == Spool::ids_of(id));
            if let Some(spool) = of.next() {
                spool.completed(now, id, outcome);
            }
        }
        for spool in self.spool.iter_mut().chain(&mut self.retired) {
            while let Some((id, effect)) = spool.poll(now) {
                driver.start(id, effect);
            }
            events.extend(std::iter::from_fn(|| spool.event()));
        }
        self.retired.retain(|spool| !spool.is_idle());
        events
    }

    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        self.driver.as_ref()?;
        self.spool.iter().chain(&self.retired).filter_map(Spool::next_deadline).min()
    }

    /// What the filter may have queued, in bytes, if that is another amount than it was told. Where there is no disk it is what it
    /// was made for.
    pub(super) fn new_capacity(&mut self) -> Option<u64> {
        self.driver.as_ref()?;
        let capacity = self.spool.as_ref()?.capacity().saturating_sub(self.memory_bytes / MARGIN);
        let changed = capacity.abs_diff(self.told) >= TOLD_STEP;
        changed.then(|| {
            self.told = capacity;
            capacity
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::pin::Peers;
    use crate::services::traffic::Traffic;
    use bytes::Bytes;
    use cdp_core::frame::{Compression, Encoder, Part, Payload, RawFrame, RecordKind};
    use cdp_core::types::{ClockEpoch, DiskId, GroupId, Lsn, Timeline, WallTime};
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    const MIB: u64 = 1 << 20;

    fn options(directory: PathBuf, bytes: u64) -> FarOptions {
        FarOptions {
            to: vec!["127.0.0.1:1".into()],
            peers: Peers::new([]),
            tenant: String::new(),
            name: "machine".into(),
            memory_bytes: 4 * MIB,
            spool: Some(SpoolPlace { directory, bytes }),
            silence_ms: 1000,
            connections: 0,
            ticket: Bytes::new(),
            traffic: Traffic::default(),
        }
    }

    /// A frame with one write of 128 KiB.
    fn frame(lsn: u64) -> EncodedFrame {
        let plain_bytes = 128 << 10;
        let data = Bytes::from(vec![lsn as u8; plain_bytes as usize]);
        let (disk, time) = (DiskId::new(1).unwrap(), WallTime(lsn));
        let parts: Vec<Part> =
            Payload::new(0, data).unwrap().into_parts(RecordKind::Write, disk, Lsn(lsn), time).collect();
        let (timeline, prev_lsn, epoch) = (Timeline::new([2; 16]).unwrap(), Lsn(lsn - 1), ClockEpoch(1));
        let raw = RawFrame { timeline, prev_lsn, settled: prev_lsn, epoch, parts, plain_bytes };
        Encoder::new().encode(raw, GroupId::new([1; 16]).unwrap(), Compression::None)
    }

    /// As a reload does that names ten groups where there was one.
    #[test]
    fn a_spool_whose_part_becomes_small_goes_on_with_shorter_files() {
        let directory = tempfile::tempdir().unwrap();
        let (commands, _queue) = tokio::sync::mpsc::unbounded_channel();
        let mut keep = Keep::new(&options(directory.path().join("spool"), 160 * MIB), commands).unwrap();
        keep.begin();
        keep.set_disk_bytes(16 * MIB);
        let deadline = Instant::now() + Duration::from_secs(30);
        // Three times what memory has room for.
        for lsn in 1..=96 {
            while let Err(why) = keep.push(frame(lsn)) {
                assert!(Instant::now() < deadline, "frame {lsn}: {why}");
                keep.work();
                std::thread::sleep(Duration::from_millis(1));
            }
            keep.work();
        }
        let files = std::fs::read_dir(directory.path().join("spool")).unwrap();
        let lengths: Vec<u64> = files.map(|file| file.unwrap().metadata().unwrap().len()).collect();
        assert!(lengths.iter().sum::<u64>() <= 16 * MIB, "{lengths:?}");
    }
}
