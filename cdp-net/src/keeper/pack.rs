//! Threads that pack frames beside the pump, for the times when the disk is behind: packing then takes more than one core's
//! share, and must not take turns with what the journal wants.

use super::pump::Message;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, RawFrame};
use cdp_core::types::GroupId;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many threads pack where there are as many cores; never fewer than two: beside a guest's threads one alone gets too little.
const THREADS_MAX: usize = 8;

/// A frame to pack. The ticket comes back with it.
pub(super) struct Pack {
    pub(super) ticket: u64,
    pub(super) raw: RawFrame,
    pub(super) compression: Compression,
}

/// What was packed and the pump has not taken. Whole at every step.
type Packed = Mutex<Vec<(u64, EncodedFrame)>>;

/// The pump's end.
pub(super) struct Packers {
    work: Sender<Pack>,
    packed: Arc<Packed>,
}

/// The threads' end.
#[derive(Clone)]
pub(super) struct PackWork {
    work: Arc<Mutex<Receiver<Pack>>>,
    packed: Arc<Packed>,
}

pub(super) fn packers() -> (Packers, PackWork) {
    let (work, receiver) = channel();
    let packed = Arc::new(Packed::default());
    (Packers { work, packed: Arc::clone(&packed) }, PackWork { work: Arc::new(Mutex::new(receiver)), packed })
}

pub(super) fn pack_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(2, THREADS_MAX)
}

impl Packers {
    /// Has a frame packed; it comes back by [`Self::take`], in any order, with a [`Message::Done`].
    pub(super) fn push(&self, pack: Pack) {
        // Threads that have ended belong to a keeper that is being dropped.
        let _ = self.work.send(pack);
    }

    /// What was packed since the last call.
    pub(super) fn take(&self) -> Vec<(u64, EncodedFrame)> {
        std::mem::take(&mut lock(&self.packed))
    }
}

/// Packs until the pump is gone.
pub(super) fn run_packs(work: &PackWork, group: GroupId, pump: &Sender<Message>) {
    let mut encoder = Encoder::new();
    loop {
        let next = lock(&work.work).recv();
        let Ok(Pack { ticket, raw, compression }) = next else { return };
        let frame = encoder.encode(raw, group, compression);
        lock(&work.packed).push((ticket, frame));
        if pump.send(Message::Done).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use cdp_core::frame::{FrameHead, Payload, RecordKind};
    use cdp_core::types::{ClockEpoch, DiskId, Lsn, Timeline, WallTime};

    fn raw(number: u64) -> RawFrame {
        let bytes = 512 * (1 + number % 200);
        let data = Bytes::from(vec![number as u8; bytes as usize]);
        let payload = Payload::new(number * 512, data).unwrap();
        let (disk, lsn) = (DiskId::new(1).unwrap(), Lsn(number + 1));
        let parts = payload.into_parts(RecordKind::Write, disk, lsn, WallTime(1)).collect();
        let (timeline, prev_lsn) = (Timeline::new([7; 16]).unwrap(), Lsn(number));
        RawFrame { timeline, prev_lsn, settled: lsn, epoch: ClockEpoch(1), parts, plain_bytes: bytes }
    }

    #[test]
    fn every_frame_comes_back_once_with_its_own_ticket() {
        let (packers, work) = packers();
        let (sender, pump) = channel();
        let group = GroupId::new([9; 16]).unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (work, sender) = (work.clone(), sender.clone());
                std::thread::spawn(move || run_packs(&work, group, &sender))
            })
            .collect();
        for ticket in 0..300 {
            packers.push(Pack { ticket, raw: raw(ticket), compression: Compression::Promising(-5) });
        }
        let mut frames = Vec::new();
        while frames.len() < 300 {
            assert!(matches!(pump.recv().unwrap(), Message::Done));
            frames.extend(packers.take());
        }
        frames.sort_by_key(|(ticket, _)| *ticket);
        for (expected, (ticket, frame)) in (0..).zip(frames) {
            let unpacked = FrameHead::parse(&frame.head).unwrap().unpack(&frame.body.concat().into()).unwrap();
            assert_eq!((ticket, unpacked), (expected, raw(expected)));
        }
        drop(packers);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
