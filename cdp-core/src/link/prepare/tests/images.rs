//! Whatever goes in: the disk at every moment that can be restored is what it was, and so are the positions.

use super::kit::{Source, apply, raw_parts, run_all, unpacked};
use super::*;
use crate::frame::{Note, Part, ResyncReason};
use crate::types::{DiskId, Extent};
use proptest::prelude::*;

/// Bytes of the disk that ops touch.
const SPACE: u64 = 96 << 10;

#[derive(Clone, Debug)]
enum Op {
    Write { sector: u64, sectors: u64, fill: u8, noise: bool },
    Zero { sector: u64, sectors: u64, discard: bool },
    Barrier,
    Mark,
    Begin,
    End,
    Resync(bool),
    DiskResync,
    Resize,
    Clock,
    Frame,
    Flush,
    Works,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let space = SPACE / 512;
    let range =
        move |most: u64| (0..space, 1..most).prop_map(move |(sector, sectors)| (sector, sectors.min(space - sector)));
    let op = prop_oneof![
        16 => (range(16), 0u8..4, any::<bool>())
            .prop_map(|((sector, sectors), fill, noise)| Op::Write { sector, sectors, fill, noise }),
        4 => (range(190), 0u8..4, any::<bool>())
            .prop_map(|((sector, sectors), fill, noise)| Op::Write { sector, sectors, fill, noise }),
        2 => (range(100), any::<bool>()).prop_map(|((sector, sectors), discard)| Op::Zero { sector, sectors, discard }),
        1 => Just(Op::Barrier),
        2 => Just(Op::Mark),
        4 => Just(Op::Begin),
        1 => Just(Op::End),
        1 => any::<bool>().prop_map(Op::Resync),
        1 => Just(Op::DiskResync),
        1 => Just(Op::Resize),
        1 => Just(Op::Clock),
        4 => Just(Op::Frame),
        1 => Just(Op::Flush),
        1 => Just(Op::Works),
    ];
    prop::collection::vec(op, 1..200)
}

/// What a source made of ops.
struct Made {
    frames: Vec<EncodedFrame>,
    /// After so many frames it is flushed, or what there is to do is done.
    orders: Vec<(usize, bool)>,
    /// LSNs that can be restored.
    moments: Vec<Lsn>,
}

fn make(ops: &[Op]) -> Made {
    let mut source = Source::new();
    let mut made = Made { frames: Vec::new(), orders: Vec::new(), moments: Vec::new() };
    let (mut in_period, mut in_resync) = (false, false);
    for op in ops {
        let before = source.lsn;
        match op {
            Op::Write { sector, sectors, fill, noise } => {
                let byte = |at: u64| match noise {
                    true => (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as u8 ^ fill,
                    false => *fill,
                };
                let data = (0..sectors * 512).map(|at| byte(at + before.0 * 7919)).collect();
                source.write(sector * 512, data);
            }
            Op::Zero { sector, sectors, discard } => {
                let kind = if *discard { RecordKind::Discard } else { RecordKind::Zero };
                source.zero(kind, Extent::new(sector * 512, sectors * 512));
            }
            Op::Barrier => source.barrier(),
            Op::Mark if !in_resync => {
                source.mark();
                in_period = false;
            }
            Op::Begin if !in_period && !in_resync => {
                source.begin_period();
                in_period = true;
            }
            Op::End if in_period => {
                source.plain(RecordKind::PeriodEnd);
                in_period = false;
            }
            Op::Resync(true) if !in_resync => {
                source.resync_begin();
                (in_period, in_resync) = (false, true);
            }
            Op::Resync(false) if in_resync => {
                source.note(RecordKind::ResyncEnd, None, Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 });
                in_resync = false;
            }
            Op::DiskResync => {
                let (from, reason) = (source.lsn.next(), ResyncReason::Seeding);
                source.note(RecordKind::ResyncBegin, DiskId::new(2), Note::ResyncBegin { from, reason });
            }
            Op::Resize => source.resize(),
            Op::Clock => {
                let closed = source.step_clock();
                made.frames.extend(closed);
            }
            Op::Frame if !source.is_empty() => {
                let frame = source.close();
                made.frames.push(frame);
            }
            Op::Flush | Op::Works => made.orders.push((made.frames.len(), matches!(op, Op::Flush))),
            _ => {}
        }
        let full = source.take_full();
        let at = made.frames.len() - usize::from(matches!(op, Op::Frame | Op::Clock) && !made.frames.is_empty());
        let at = if full.is_empty() { made.frames.len() } else { at };
        made.frames.splice(at..at, full);
        if source.lsn > before && !in_period && !in_resync {
            made.moments.push(source.lsn);
        }
    }
    if !source.is_empty() {
        let last = source.close();
        made.frames.push(last);
    }
    made
}

fn small() -> Options {
    Options { window_bytes: 192 << 10, ..options() }
}

fn prepare(options: Options, frames: &[EncodedFrame], orders: &[(usize, bool)]) -> Vec<EncodedFrame> {
    let mut prepare = Prepare::new(options);
    let (mut out, mut orders) = (Vec::new(), orders.iter().peekable());
    for (number, frame) in frames.iter().enumerate() {
        while let Some((_, flush)) = orders.next_if(|(at, _)| *at <= number) {
            match flush {
                true => prepare.flush(),
                false => out.extend(run_all(&mut prepare, at(1))),
            }
        }
        prepare.push(at(1), frame.clone()).unwrap();
    }
    prepare.flush();
    out.extend(run_all(&mut prepare, at(1)));
    assert!(prepare.is_empty() && prepare.stats().frames_in == frames.len() as u64);
    out
}

/// The disk at each of the moments, from parts in their order.
fn images(parts: &[Part], moments: &[Lsn]) -> Vec<Vec<u8>> {
    let mut disk = vec![0xee; SPACE as usize];
    let mut parts = parts.iter().peekable();
    let mut at = |lsn: &Lsn| {
        while let Some(part) = parts.next_if(|part| part.lsn <= *lsn) {
            apply(&mut disk, part);
        }
        disk.clone()
    };
    moments.iter().map(&mut at).collect()
}

/// Frames chain, each part follows the one before, nothing is settled that the frames up to there did not say.
fn check_shape(frames: &[EncodedFrame], said: &[EncodedFrame]) {
    let mut settled = Lsn::ZERO;
    for pair in frames.windows(2) {
        assert_eq!(pair[1].info.prev_lsn, pair[0].info.last_lsn);
    }
    for frame in frames {
        let raw = unpacked(frame);
        assert_eq!(raw.plain_bytes, raw.parts.iter().map(|part| part.data.len() as u64).sum::<u64>());
        let known = said.iter().filter(|one| one.info.end() <= frame.info.end()).map(|one| one.info.settled).max();
        assert!(raw.settled >= settled && raw.settled <= known.unwrap_or(Lsn::ZERO), "settled {}", raw.settled);
        settled = raw.settled;
    }
    check_order(&raw_parts(frames));
}

fn check_order(parts: &[Part]) {
    for pair in parts.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        let goes_on = b.lsn == a.lsn && b.index == a.index + 1 && b.count == a.count;
        assert!(
            goes_on || (a.is_last() && b.lsn > a.lsn && b.index == 0),
            "{}/{} then {}/{}",
            a.lsn,
            a.index,
            b.lsn,
            b.index
        );
    }
}

fn position(part: &Part) -> Position {
    let parts = if part.is_last() { Position::WHOLE } else { u32::from(part.index) + 1 };
    Position { lsn: part.lsn, parts }
}

/// What of frames lies behind a position, and continues it.
fn after(frames: &[EncodedFrame], position: Option<Position>) -> Vec<EncodedFrame> {
    let Some(mut at) = position else { return frames.to_vec() };
    let mut out = Vec::new();
    for frame in frames {
        let Some(rest) = frame.after(at).unwrap() else { continue };
        assert_eq!(rest.info.begin(), at);
        at = rest.info.end();
        out.push(rest);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_moment_that_can_be_restored_is_what_it_was(ops in ops(), zstd: bool) {
        let Made { frames, orders, moments } = make(&ops);
        prop_assume!(!frames.is_empty());
        let out = prepare(Options { zstd, ..small() }, &frames, &orders);
        let (before, after) = (raw_parts(&frames), raw_parts(&out));
        check_shape(&out, &frames);
        let ends = |frames: &[EncodedFrame]| {
            let (first, last) = (frames[0].info, frames[frames.len() - 1].info);
            (first.prev_lsn, last.end(), last.settled)
        };
        prop_assert_eq!(ends(&out), ends(&frames));
        let mut all = moments;
        all.push(Lsn(u64::MAX));
        prop_assert!(images(&before, &all) == images(&after, &all));
        // Stamps, checksums and what is said are those of the records.
        for part in &after {
            let same = |other: &&Part| (other.lsn, other.index) == (part.lsn, part.index);
            let origin = before.iter().find(same).expect("no record is made here");
            prop_assert_eq!((part.time, part.disk, part.extent, part.count, &part.note), (origin.time, origin.disk, origin.extent, origin.count, &origin.note));
            prop_assert!(part == origin || part.kind == RecordKind::Zero && origin.data.iter().all(|byte| *byte == 0));
        }
        // What was left out changes disks and nothing else.
        let gone = before.iter().filter(|part| !part.kind.changes_disk());
        prop_assert_eq!(gone.count(), after.iter().filter(|part| !part.kind.changes_disk()).count());
    }

    #[test]
    fn where_every_write_can_be_restored_none_is_left_out(ops in ops()) {
        let every: Vec<_> = ops.into_iter().filter(|op| !matches!(op, Op::Begin)).collect();
        let Made { frames, orders, .. } = make(&every);
        prop_assume!(!frames.is_empty());
        let out = prepare(small(), &frames, &orders);
        let lsns = |frames: &[EncodedFrame]| raw_parts(frames).iter().map(position).collect::<Vec<_>>();
        prop_assert_eq!(lsns(&out), lsns(&frames));
    }

    /// The first proxy is lost when the far side has some of its frames; another one gets what the source still has, with other windows.
    #[test]
    fn another_proxy_goes_on_in_the_middle(ops in ops(), delivered: prop::sample::Index, kept: prop::sample::Index, wide: bool) {
        let Made { frames, orders, moments } = make(&ops);
        prop_assume!(!frames.is_empty());
        let first = prepare(small(), &frames, &orders);
        let mut there = raw_parts(&first);
        there.truncate(delivered.index(there.len() + 1));
        let have = there.last().map(position);
        // The source has everything that is not durable, and what is durable is there.
        let all = raw_parts(&frames);
        let behind = all.iter().map(position).take_while(|at| Some(*at) <= have).collect::<Vec<_>>();
        let from = kept.index(behind.len() + 1).checked_sub(1).map(|at| behind[at]);
        let window_bytes = if wide { 16 << 20 } else { 64 << 10 };
        let second = prepare(Options { have, window_bytes, ..small() }, &after(&frames, from), &[]);
        there.extend(raw_parts(&after(&second, have)));
        check_order(&there);
        let mut moments = moments;
        moments.push(Lsn(u64::MAX));
        prop_assert!(images(&all, &moments) == images(&there, &moments));
    }
}
