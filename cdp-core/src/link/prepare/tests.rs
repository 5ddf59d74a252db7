//! The rules of the preparation, one by one. `images` checks what comes out against a disk.

mod images;
mod kit;

use self::kit::{Source, group, image, prepared, raw_parts, run_all, timeline};
use super::*;
use crate::frame::{Encoder, HEADER_BYTES, RecordKind};

fn at(ns: u64) -> MonoTime {
    MonoTime(ns)
}

fn options() -> Options {
    Options::new(group(), timeline())
}

/// A frame of one write of a block.
fn frame(source: &mut Source, fill: u8) -> EncodedFrame {
    source.write(0, vec![fill; 4096]);
    source.close()
}

#[test]
fn outside_of_periods_each_frame_goes_on_at_once_and_whole() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(options());
    for round in 1..5 {
        let frame = frame(&mut source, round);
        prepare.push(at(1), frame.clone()).unwrap();
        assert_eq!(prepare.next_deadline(), None, "nothing is waited for");
        let out = run_all(&mut prepare, at(1));
        assert_eq!(raw_parts(&out), raw_parts(&[frame]));
    }
    assert_eq!(prepare.stats().records_coalesced, 0);
    assert!(prepare.is_empty());
}

#[test]
fn a_window_waits_for_the_close_of_its_period_and_keeps_the_last_of_each_block() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(options());
    source.begin_period();
    prepare.push(at(1), source.close()).unwrap();
    for fill in 1..=20 {
        prepare.push(at(u64::from(fill)), frame(&mut source, fill)).unwrap();
        assert!(prepare.poll(at(u64::from(fill))).is_none());
    }
    source.mark();
    prepare.push(at(30), source.close()).unwrap();
    let out = run_all(&mut prepare, at(30));
    let kinds: Vec<_> = raw_parts(&out).iter().map(|part| (part.lsn.0, part.kind)).collect();
    assert_eq!(kinds, [(1, RecordKind::PeriodBegin), (21, RecordKind::Write), (22, RecordKind::Mark)]);
    let stats = prepare.stats();
    assert_eq!((stats.records_coalesced, stats.bytes_coalesced), (19, 19 * 4096));
    assert_eq!((stats.frames_in, stats.frames_out, stats.bytes_in), (22, 1, 20 * 4096));
    assert_eq!((out[0].info.prev_lsn, out[0].info.last_lsn, out[0].info.settled), (Lsn::ZERO, Lsn(22), Lsn(22)));
}

#[test]
fn a_window_ends_when_it_is_full_or_old() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(Options { window_bytes: 16 << 10, window_ns: 1000, ..options() });
    source.begin_period();
    let mut given = Vec::new();
    for round in 0..40 {
        prepare.push(at(100), frame(&mut source, round)).unwrap();
        given.extend(prepare.poll(at(100)).map(|work| work.items.len()));
    }
    assert!(given.len() > 8 && given.iter().all(|frames| *frames <= 4), "{given:?}");
    let mut prepare = Prepare::new(Options { window_ns: 1000, ..options() });
    let mut source = Source::new();
    source.begin_period();
    prepare.push(at(100), frame(&mut source, 1)).unwrap();
    assert_eq!(prepare.next_deadline(), Some(at(1100)));
    assert!(prepare.poll(at(1099)).is_none() && prepare.poll(at(1100)).is_some());
    assert_eq!(prepare.next_deadline(), None);
}

/// Frames that were prepared wait, and their bounds count what they have: not what it came in.
#[test]
fn what_little_is_left_of_a_frame_keeps_no_more_than_itself() {
    let mut source = Source::new();
    // Bytes that do not compress, in one of eight parts; the others are zeros.
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut data: Vec<u8> = noise.take(32 << 10).collect();
    data.resize(256 << 10, 0);
    source.write(0, data);
    let out = prepared(options(), &[source.close()]);
    let left: Vec<_> = out.into_iter().flat_map(|frame| frame.body).collect();
    assert_eq!(left.iter().map(bytes::Bytes::len).sum::<usize>(), 32 << 10);
    for piece in left {
        let length = piece.len();
        assert_eq!(piece.try_into_mut().expect("nobody else has a part of this memory").capacity(), length);
    }
}

#[test]
fn the_bound_is_kept_and_nothing_waits_for_ever_at_it() {
    let mut source = Source::new();
    let (window_bytes, inside_bytes_max) = (1 << 20, 64 << 10);
    let mut prepare = Prepare::new(Options { window_bytes, inside_bytes_max, ..options() });
    source.begin_period();
    let mut sent = 0;
    for round in 0..200 {
        let frame = frame(&mut source, round);
        let most = inside_bytes_max + cost(&frame);
        match prepare.push(at(1), frame.clone()) {
            Ok(()) => {}
            Err(error) => {
                assert!(matches!(error, PrepareError::Full { .. }) && prepare.is_full());
                sent += run_all(&mut prepare, at(1)).len();
                prepare.push(at(1), frame).unwrap();
            }
        }
        assert!(prepare.inside_bytes() <= most, "{}", prepare.inside_bytes());
    }
    assert!(sent > 5);
}

#[test]
fn what_does_not_follow_or_is_of_another_is_refused_by_name() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(options());
    prepare.push(at(1), frame(&mut source, 1)).unwrap();
    let (_, next) = (frame(&mut source, 2), frame(&mut source, 3));
    let refused = prepare.push(at(1), next);
    assert_eq!(refused, Err(PrepareError::OutOfOrder { expected: Lsn(1), found: Lsn(2) }));
    let other = GroupId::new([8; 16]).unwrap();
    let mut prepare = Prepare::new(Options { group: other, ..options() });
    let refused = prepare.push(at(1), frame(&mut source, 2));
    assert_eq!(refused, Err(PrepareError::Other { group: group(), timeline: timeline() }));
}

#[test]
fn a_flipped_bit_ends_it_and_is_never_packed_again() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(options());
    prepare.push(at(1), frame(&mut source, 1)).unwrap();
    let mut bad = frame(&mut source, 2);
    let mut body = bad.body.concat();
    body[77] ^= 1;
    bad.body = vec![body.into()];
    prepare.push(at(1), bad.clone()).unwrap();
    let mut encoder = Encoder::new();
    let works = [prepare.poll(at(1)).unwrap(), prepare.poll(at(1)).unwrap()];
    let [good, damaged] = works.map(|work| work.run(&mut encoder));
    assert!(matches!(prepare.done(damaged), Err(PrepareError::Frame(FrameError::ChunkChecksum { .. }))));
    prepare.done(good).unwrap();
    assert!(prepare.next().is_some() && prepare.next().is_none());
    assert_eq!(prepare.push(at(1), frame(&mut source, 3)), Err(PrepareError::Ended));
    assert!(matches!(to_raw(&bad, &mut encoder), Err(FrameError::ChunkChecksum { .. })));
}

#[test]
fn zeros_go_without_their_bytes_and_parts_keep_their_places() {
    let mut source = Source::new();
    let mut data = vec![7; 96 << 10];
    data[32 << 10..64 << 10].fill(0);
    source.write(4096, data);
    let frame = source.close();
    let out = prepared(options(), std::slice::from_ref(&frame));
    let parts = raw_parts(&out);
    let kinds: Vec<_> = parts.iter().map(|part| (part.kind, part.index, part.count, part.data.len())).collect();
    use RecordKind::{Write, Zero};
    assert_eq!(kinds, [(Write, 0, 3, 32 << 10), (Zero, 1, 3, 0), (Write, 2, 3, 32 << 10)]);
    assert_eq!((out[0].info.begin(), out[0].info.end()), (frame.info.begin(), frame.info.end()));
    assert_eq!(image(&parts), image(&raw_parts(&[frame])));
}

#[test]
fn noise_is_sent_as_it_is_and_what_is_packed_is_not_packed_again() {
    let mut source = Source::new();
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    source.write(0, (0..64 << 10).map(|_| noise()).collect());
    let frame = source.close();
    let out = prepared(options(), std::slice::from_ref(&frame));
    assert_eq!(out[0].len(), frame.len());
    source.write(0, b"some words, and again ".repeat(4096)[..64 << 10].to_vec());
    let frame = source.close();
    let once = prepared(options(), std::slice::from_ref(&frame));
    assert!(once[0].len() < frame.len() / 4, "{}", once[0].len());
    let twice = prepared(options(), &once);
    assert_eq!((&twice[0].head, twice[0].body.concat()), (&once[0].head, once[0].body.concat()));
    // For whoever does not inflate.
    let plain = prepared(Options { zstd: false, ..options() }, &once);
    let raw = to_raw(&once[0], &mut Encoder::new()).unwrap();
    for out in [&plain[0], &raw] {
        assert!(FrameHead::parse(&out.head).unwrap().chunks.iter().all(|chunk| !chunk.compressed));
        assert_eq!(raw_parts(std::slice::from_ref(out)), raw_parts(std::slice::from_ref(&frame)));
    }
}

#[test]
fn a_frame_with_records_of_a_newer_version_goes_on_as_it_is() {
    let mut source = Source::new();
    source.begin_period();
    let mut frames = vec![frame(&mut source, 1)];
    source.write(0, vec![2; 4096]);
    source.barrier();
    let mut newer = source.close();
    let mut head = newer.head.to_vec();
    // The barrier becomes something that may be skipped.
    let record = HEADER_BYTES + crate::frame::RECORD_BYTES;
    head[record + 30] = 99;
    head[12..16].fill(0);
    let crc = crc32c::crc32c(&head);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    newer.head = head.into();
    frames.push(newer.clone());
    frames.push(frame(&mut source, 3));
    let out = prepared(options(), &frames);
    assert_eq!(out.len(), 3, "nothing is left out over it");
    assert_eq!(out[1].head, newer.head);
}

#[test]
fn a_record_of_which_the_far_side_has_a_part_stays() {
    for (have, left) in [(Lsn(2), 2), (Lsn(7), 1)] {
        let mut source = Source::new();
        source.begin_period();
        source.write(0, vec![1; 96 << 10]);
        source.write(0, vec![2; 96 << 10]);
        source.mark();
        let frames = [source.close()];
        let out = prepared(Options { have: Some(Position { lsn: have, parts: 1 }), ..options() }, &frames);
        let writes = raw_parts(&out).iter().filter(|part| part.kind == RecordKind::Write).count();
        assert_eq!(writes, left * 3);
    }
}

/// While it is not known what the far side has, it may have a part of anything.
#[test]
fn nothing_is_left_out_while_the_far_side_is_not_known() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(Options { whole: true, ..options() });
    source.begin_period();
    let mut writes = 0;
    for fill in 1..=5 {
        prepare.push(at(1), frame(&mut source, fill)).unwrap();
        let out = run_all(&mut prepare, at(1));
        writes += raw_parts(&out).iter().filter(|part| part.kind == RecordKind::Write).count();
    }
    assert_eq!((writes, prepare.stats().records_coalesced), (5, 0));
    // Known again, and lost in the midst of a window: what was gathered goes on at once.
    prepare.set_whole(false);
    prepare.push(at(2), frame(&mut source, 6)).unwrap();
    assert!(prepare.poll(at(2)).is_none(), "a window waits");
    prepare.set_whole(true);
    assert!(prepare.poll(at(2)).is_some());
}

#[test]
fn a_full_window_is_no_backlog_and_many_that_wait_are() {
    let mut prepare = Prepare::new(Options { inside_bytes_max: 256 << 20, ..options() });
    let mut source = Source::new();
    source.begin_period();
    let mut fill = |prepare: &mut Prepare, bytes: usize| {
        for _ in 0..bytes >> 18 {
            source.write(0, vec![1; 256 << 10]);
            source
                .take_full()
                .into_iter()
                .chain([source.close()])
                .for_each(|frame| prepare.push(at(1), frame).unwrap());
        }
    };
    fill(&mut prepare, 17 << 20);
    assert_eq!(prepare.poll(at(1)).map(|work| work.compression), Some(Compression::Sampled(1)));
    fill(&mut prepare, 64 << 20);
    assert_eq!(prepare.poll(at(1)).map(|work| work.compression), Some(Compression::None));
    prepare.set_unsent(200 << 20);
    prepare.look(50, 0);
    assert_eq!(prepare.poll(at(1)).map(|work| work.compression), Some(Compression::Sampled(1)));
}

/// Prints what is left of pages that a database writes again and again.
#[test]
fn pages_that_are_written_again_and_again_become_few_bytes() {
    let mut source = Source::new();
    let mut prepare = Prepare::new(options());
    let mut out = Vec::new();
    let mut state = 7u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut written = 0;
    for period in 0..4 {
        source.begin_period();
        for round in 0..2500u64 {
            // A fifth of the pages takes four fifths of the writes; and a log, one after the other.
            let hot = random(5) > 0;
            let page = if hot { random(160) } else { 160 + random(640) };
            let row = |at: u64| format!("{:08x}|{:010}|name-{}|{:016x};", page, at, at % 97, at * round);
            let text: String = (0..)
                .map(|at| row(at + round))
                .scan(0, |sum, row: String| {
                    *sum += row.len();
                    (*sum < 8192 + 64).then_some(row)
                })
                .collect();
            let mut bytes = text.into_bytes();
            bytes.resize(8192, 0);
            written += bytes.len() as u64;
            source.write(page * 8192, bytes);
            if round % 20 == 0 {
                prepare.push(at(period), source.close()).unwrap();
            }
        }
        source.mark();
        prepare.push(at(period), source.close()).unwrap();
        out.extend(run_all(&mut prepare, at(period)));
    }
    let sent: u64 = out.iter().map(EncodedFrame::len).sum();
    let stats = prepare.stats();
    println!("{written} bytes written, {sent} sent: {:.3}; {stats:?}", sent as f64 / written as f64);
    assert!(sent * 100 <= written * 15);
}
