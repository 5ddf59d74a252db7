//! Who reads on and on: the media learn what comes next before it is asked for.
//!
//! Where a disk was written in order, a segment is read in order too but for the heads of its frames. Those are read along, so that the
//! system sees no jumps and reads ahead by itself, which it does best. Where blocks lie all over the segments only the view
//! knows where the next ones are, and says so.

use super::part::Cursor;
use crate::types::{DiskId, Extent};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Readers of one view that are told apart; one more takes the place of the oldest, which then begins anew.
const STREAMS: usize = 8;
/// Bytes that are read on before it is judged how they lie, and again and again.
const WINDOW: u64 = 512 << 10;
/// Jumps in the file are many where there is more than one for so many bytes.
const FEW: u64 = 128 << 10;
/// Bytes of the disk that are told ahead of a reader: some milliseconds of a fast disk.
const AHEAD: u64 = 8 << 20;
/// So many at once, at least.
const STEP: u64 = 2 << 20;
/// A read of fewer bytes is looked at only where it continues the last one: most are of one block anywhere, and should cost nothing.
const SMALL: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// None of any disk: 0.
    disk: u16,
    /// Behind what it read last, on the disk.
    next: u64,
    /// Everything before this was told to the media.
    told: u64,
    /// Behind what it read last, in the journal.
    cursor: Option<Cursor>,
    /// Bytes and jumps since it was judged.
    bytes: u64,
    jumps: u64,
    /// The last judgement: many jumps.
    scattered: bool,
}

impl Stream {
    fn goes_on(&self, disk: DiskId, offset: u64) -> bool {
        self.disk == disk.get() && (self.next..=self.next.max(self.told)).contains(&offset)
    }
}

/// What is known of a reader before it reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Known {
    /// To be told the media now.
    pub(super) tell: Option<Extent>,
    /// It goes on here.
    pub(super) cursor: Option<Cursor>,
    /// It wants to hear how the read went.
    pub(super) watched: bool,
}

#[derive(Debug, Default)]
struct Streams {
    all: [Stream; STREAMS],
    /// Which is replaced next.
    oldest: usize,
}

impl Streams {
    fn find(&mut self, disk: DiskId, offset: u64) -> Option<&mut Stream> {
        self.all.iter_mut().find(|stream| stream.goes_on(disk, offset))
    }

    fn begin(&mut self, stream: Stream) {
        self.all[self.oldest] = stream;
        self.oldest = (self.oldest + 1) % STREAMS;
    }
}

/// The readers of one view. All of it is hints: nobody waits for its lock.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where the last read ended, of whatever disk.
    last: AtomicU64,
    streams: Mutex<Streams>,
}

impl Ahead {
    /// Takes a read into account that is going to be made.
    pub(super) fn begin(&self, disk: DiskId, range: Extent) -> Known {
        let last = self.last.load(Ordering::Relaxed);
        self.last.store(range.end(), Ordering::Relaxed);
        if range.length < SMALL && last != range.offset {
            return Known::default();
        }
        let Ok(mut streams) = self.streams.try_lock() else { return Known::default() };
        let watched = true;
        let Some(stream) = streams.find(disk, range.offset) else {
            let (disk, next) = (disk.get(), range.end());
            streams.begin(Stream { disk, next, told: next, ..Stream::default() });
            return Known { watched, ..Known::default() };
        };
        stream.next = range.end();
        stream.told = stream.told.max(stream.next);
        let cursor = stream.cursor;
        if !stream.scattered || stream.told + STEP > stream.next + AHEAD {
            return Known { tell: None, cursor, watched };
        }
        let start = std::mem::replace(&mut stream.told, stream.next + AHEAD);
        Known { tell: Some(Extent::new(start, stream.told - start)), cursor, watched }
    }

    /// How a watched read went: where in the journal it ended, and how often it jumped there.
    pub(super) fn end(&self, disk: DiskId, range: Extent, cursor: Option<Cursor>, jumps: u64) {
        let Ok(mut streams) = self.streams.try_lock() else { return };
        let of = |stream: &&mut Stream| stream.disk == disk.get() && stream.next == range.end();
        let Some(stream) = streams.all.iter_mut().find(of) else { return };
        stream.cursor = cursor;
        (stream.bytes, stream.jumps) = (stream.bytes.saturating_add(range.length), stream.jumps + jumps);
        if stream.bytes >= WINDOW {
            stream.scattered = stream.jumps > stream.bytes / FEW;
            (stream.bytes, stream.jumps) = (0, 0);
        }
    }

    /// Somebody tells the media of a range, and will read it.
    pub(super) fn told(&self, disk: DiskId, range: Extent) {
        let Ok(mut streams) = self.streams.try_lock() else { return };
        match streams.find(disk, range.offset) {
            Some(stream) => stream.told = stream.told.max(range.end()),
            None => {
                let (disk, next, told) = (disk.get(), range.offset, range.end());
                streams.begin(Stream { disk, next, told, ..Stream::default() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(number: u16) -> DiskId {
        DiskId::new(number).unwrap()
    }

    /// One read that jumps once for so many bytes; gives what is told before.
    fn read(ahead: &Ahead, disk: DiskId, range: Extent, jumps_every: u64) -> Option<Extent> {
        let known = ahead.begin(disk, range);
        if known.watched {
            ahead.end(disk, range, None, range.end() / jumps_every - range.offset / jumps_every);
        }
        known.tell
    }

    /// Reads of one size one after another; gives what was told, each with where the reader stood.
    fn reads(ahead: &Ahead, from: u64, size: u64, count: u64, jumps_every: u64) -> Vec<(u64, Extent)> {
        let one = |at: u64| read(ahead, disk(1), Extent::new(at, size), jumps_every).map(|told| (at, told));
        (0..count).filter_map(|at| one(from + at * size)).collect()
    }

    #[test]
    fn who_reads_on_finds_everything_told_once_and_in_time() {
        for size in [4096, 64 << 10, MIB, 3 * MIB] {
            let ahead = Ahead::default();
            let told = reads(&ahead, 5 * MIB, size, 64 * MIB / size, 4096);
            let (first, begin) = told[0];
            assert!(first <= 5 * MIB + WINDOW.max(size) + 2 * size, "{size}: begins at {first}");
            let mut end = begin.offset;
            for (at, told) in &told {
                assert_eq!(told.offset, end, "{size}: nothing twice, nothing left out");
                assert!(told.end() <= at + size + AHEAD && told.length >= STEP, "{size} at {at}: {told:?}");
                end = told.end();
            }
            assert!(end >= 5 * MIB + 64 * MIB + AHEAD - STEP - size, "{size}: told up to {end}");
        }
    }

    #[test]
    fn the_system_reads_ahead_where_little_jumps() {
        assert_eq!(reads(&Ahead::default(), 0, MIB, 100, 256 << 10), []);
        assert_eq!(reads(&Ahead::default(), 0, 4096, 10_000, 256 << 10), []);
        // The second half of a disk that was written in order is all over the place; then it is in order again.
        let ahead = Ahead::default();
        assert_eq!(reads(&ahead, 0, MIB, 50, 256 << 10), []);
        assert!(reads(&ahead, 50 * MIB, MIB, 50, 4096).len() > 10);
        assert!(reads(&ahead, 100 * MIB, MIB, 50, 256 << 10).len() <= 1);
    }

    #[test]
    fn reads_here_and_there_tell_nothing() {
        let ahead = Ahead::default();
        for at in (0..4000u64).map(|at| (at * 7919) % 4001) {
            assert_eq!(read(&ahead, disk(1), Extent::new(at * MIB, 4096), 512), None);
            assert_eq!(read(&ahead, disk(1), Extent::new(at * MIB + MIB / 2, 128 << 10), 512), None);
        }
    }

    #[test]
    fn readers_are_told_apart_and_bounded() {
        let ahead = Ahead::default();
        let mut told = [0; STREAMS];
        for at in 0..32 {
            for (reader, told) in (0..).zip(&mut told) {
                let range = Extent::new(u64::from(reader) * 1000 * MIB + at * MIB, MIB);
                *told += read(&ahead, disk(1 + reader % 2), range, 4096).map_or(0, |extent| extent.length);
            }
        }
        assert!(told.iter().all(|told| *told >= 32 * MIB), "{told:?}");
        // One more than there is room for: each takes the place of another, and none is told anything.
        let ahead = Ahead::default();
        for at in 0..8 {
            for reader in 0..=STREAMS as u64 {
                assert_eq!(read(&ahead, disk(1), Extent::new(reader * 1000 * MIB + at * MIB, MIB), 4096), None);
            }
        }
    }

    #[test]
    fn what_somebody_else_told_is_not_told_again() {
        let ahead = Ahead::default();
        for at in 0..4 {
            ahead.told(disk(1), Extent::new(at * 16 * MIB, 16 * MIB));
        }
        // With holes in what is read.
        let read = |at: u64| read(&ahead, disk(1), Extent::new(at * MIB, MIB / (1 + at % 2)), 4096);
        assert!((0..56).all(|at| read(at).is_none()));
        assert_eq!((56..60).find_map(read), Some(Extent::new(64 * MIB, 3 * MIB)));
    }
}
