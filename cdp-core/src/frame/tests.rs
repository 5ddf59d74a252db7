//! The codec gives back what it was given, and refuses everything else by name.

use super::*;
use crate::types::*;
use bytes::Bytes;
use proptest::prelude::*;

fn group() -> GroupId {
    GroupId::new([1; 16]).unwrap()
}

fn timeline() -> Timeline {
    Timeline::new([2; 16]).unwrap()
}

fn disk(number: u16) -> Option<DiskId> {
    DiskId::new(number)
}

fn notes() -> Vec<(RecordKind, Note)> {
    vec![
        (
            RecordKind::Mark,
            Note::Mark(Mark {
                kinds: PointKinds { short: true, long: false, mark: true, app: true, set: false },
                on_barrier: true,
                label: "before the migration".into(),
            }),
        ),
        (RecordKind::Time, Note::Time { mono: MonoTime(77) }),
        (RecordKind::Resize, Note::Resize { from: 4096, to: 8192 }),
        (RecordKind::DiskAdded, Note::DiskAdded { name: "data".into(), size: 1 << 30 }),
        (RecordKind::TimelineStart, Note::TimelineStart { parent: Some(timeline()), fork: Lsn(9) }),
        (RecordKind::GapBegin, Note::GapBegin { from: Lsn(3), reason: GapReason::Overload }),
        (RecordKind::ResyncBegin, Note::ResyncBegin { from: Lsn(3), reason: ResyncReason::UncleanStop }),
        (RecordKind::ResyncEnd, Note::ResyncEnd { bytes_read: 5, bytes_changed: 4 }),
        (RecordKind::PeriodBegin, Note::PeriodBegin { from: Lsn(4) }),
        (
            RecordKind::SetPoint,
            Note::SetPoint {
                set: SetId::new([3; 16]).expect("not zero"),
                taker: StartId::new([4; 16]).expect("not zero"),
                cut: 1042,
                lsn: Lsn(3),
                members: 256,
                label: "shop 1042".into(),
            },
        ),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, sectors: u64, fill: u8, random: bool },
    Zero { offset: u64, sectors: u64 },
    Discard { offset: u64, sectors: u64 },
    Barrier,
    Note(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0u64..1 << 20, 1u64..200, any::<u8>(), any::<bool>())
            .prop_map(|(offset, sectors, fill, random)| Op::Write { offset, sectors, fill, random }),
        1 => (0u64..1 << 20, 1u64..1 << 30).prop_map(|(offset, sectors)| Op::Zero { offset, sectors }),
        1 => (0u64..1 << 20, 1u64..1 << 30).prop_map(|(offset, sectors)| Op::Discard { offset, sectors }),
        1 => Just(Op::Barrier),
        1 => (0..notes().len()).prop_map(Op::Note),
    ];
    prop::collection::vec(op, 1..40)
}

fn payload(fill: u8, random: bool, length: usize) -> Bytes {
    let mut state = u32::from(fill) | 1;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    if random { noise.take(length).collect() } else { Bytes::from(vec![fill; length]) }
}

/// The frame that a filter would make of the operations: closed when the next record would not fit.
fn raw(ops: &[Op]) -> RawFrame {
    let mut parts: Vec<Part> = Vec::new();
    let mut plain_bytes = 0;
    for (number, op) in ops.iter().enumerate() {
        let (lsn, time) = (Lsn(1000 + number as u64 * 3), WallTime(1_700_000_000_000_000_000 + number as u64));
        match op {
            Op::Write { offset, sectors, fill, random } => {
                let data = payload(*fill, *random, (sectors * SECTOR) as usize);
                if plain_bytes + data.len() as u64 > FRAME_PLAIN_MAX {
                    break;
                }
                plain_bytes += data.len() as u64;
                let payload = Payload::new(offset * SECTOR, data).unwrap();
                parts.extend(payload.into_parts(RecordKind::Write, disk(1).unwrap(), lsn, time));
            }
            Op::Zero { offset, sectors } => {
                let extent = Extent::new(offset * SECTOR, sectors * SECTOR);
                parts.push(Part::plain(RecordKind::Zero, disk(2), extent, lsn, time));
            }
            Op::Discard { offset, sectors } => {
                let extent = Extent::new(offset * SECTOR, sectors * SECTOR);
                parts.push(Part::plain(RecordKind::Discard, disk(7), extent, lsn, time));
            }
            Op::Barrier => parts.push(Part::plain(RecordKind::Barrier, None, Extent::new(0, 0), lsn, time)),
            Op::Note(number) => {
                let (kind, note) = notes().swap_remove(*number);
                parts.push(Part::noted(kind, None, lsn, time, note));
            }
        }
    }
    let settled = parts.last().unwrap().lsn;
    RawFrame { timeline: timeline(), prev_lsn: Lsn(999), settled, epoch: ClockEpoch(1), parts, plain_bytes }
}

fn bytes(frame: &EncodedFrame) -> (Bytes, Bytes) {
    (frame.head.clone(), frame.body.concat().into())
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(ops in ops(), level in prop::option::of(-5i32..4), promising in any::<bool>()) {
        let raw = raw(&ops);
        let packed = if promising { Compression::Promising } else { Compression::Zstd };
        let compression = level.map_or(Compression::None, packed);
        let frame = Encoder::new().encode(raw.clone(), group(), compression);
        let (head, body) = bytes(&frame);
        let parsed = FrameHead::parse(&head).unwrap();
        prop_assert_eq!(FrameHead::length(&head[..HEADER_BYTES]).unwrap(), head.len());
        prop_assert_eq!(parsed.info, frame.info);
        prop_assert_eq!(frame.len() as usize, head.len() + body.len());
        prop_assert_eq!(parsed.unpack(&body).unwrap(), raw.clone());
        let noted = raw.parts.iter().filter(|part| part.note.is_some()).count();
        prop_assert_eq!(parsed.notes(&body).unwrap().len(), noted);
    }

    /// Every byte of a frame is covered: no flip goes unseen.
    #[test]
    fn a_flipped_bit_is_seen(ops in ops(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let frame = Encoder::new().encode(raw(&ops), group(), Compression::Zstd(1));
        let (head, body) = bytes(&frame);
        let mut whole = [head.as_ref(), body.as_ref()].concat();
        let at = at.index(whole.len());
        whole[at] ^= 1 << bit;
        let unpacked = FrameHead::parse(&whole[..head.len()])
            .and_then(|parsed| parsed.unpack(&Bytes::copy_from_slice(&whole[head.len()..])));
        prop_assert!(unpacked.is_err());
    }

    #[test]
    fn garbage_is_refused(mut garbage in prop::collection::vec(any::<u8>(), 0..400), with_magic in any::<bool>()) {
        if with_magic && garbage.len() >= 10 {
            garbage[..8].copy_from_slice(&layout::MAGIC);
            garbage[8..10].copy_from_slice(&layout::VERSION.to_le_bytes());
        }
        prop_assert!(FrameHead::parse(&garbage).is_err());
    }

    /// As a journal keeps it: nothing to be unpacked without the key, everything with it, and only where it stands.
    #[test]
    fn a_sealed_frame_comes_back_with_its_key_in_its_place(
        ops in ops(),
        zstd: bool,
        first in 0u32..1 << 20,
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let raw = raw(&ops);
        let compression = if zstd { Compression::Zstd(1) } else { Compression::None };
        let frame = Encoder::new().encode(raw.clone(), group(), compression);
        let plain = FrameHead::parse(&frame.head).unwrap();
        let keys = crate::trust::test_keys();
        let (head, sealed) = frame.sealed(&plain, &keys, first).unwrap();
        let (bytes, body) = bytes(&sealed);
        prop_assert_eq!(&FrameHead::parse(&bytes).unwrap(), &head);
        prop_assert_eq!(body.len(), frame.body.concat().len() + plain.chunks.len() * crate::trust::TAG_BYTES);
        prop_assert_eq!(head.is_sealed(), !plain.chunks.is_empty());
        let (opened, stored) = head.unsealed(&body, &keys, first).unwrap();
        prop_assert_eq!(opened.unpack(&stored).unwrap(), raw);
        if plain.chunks.is_empty() {
            return Ok(());
        }
        let right = matches!(head.unpack(&body), Err(FrameError::Sealed { .. }));
        prop_assert!(right);
        let moved = head.unsealed(&body, &keys, first + 1).unwrap_err();
        let right = matches!(moved, FrameError::NotOpened { chunk: 1 });
        prop_assert!(right);
        let (chunk, number) = (&head.chunks[0], first);
        let stored = body.slice(..chunk.stored_length as usize);
        let expected = {
            let plain_body = Bytes::from(frame.body.concat());
            decode_chunk(&plain.chunks[0], &plain_body.slice(..plain.chunks[0].stored_length as usize)).unwrap()
        };
        prop_assert_eq!(open_chunk(chunk, number, stored, &keys).unwrap(), expected);
        // Behind right checksums too.
        let mut whole = body.to_vec();
        let at = at.index(whole.len());
        whole[at] ^= 1 << bit;
        let mut forged = head.clone();
        for chunk in &mut forged.chunks {
            chunk.crc = crc32c::crc32c(&whole[chunk.offset as usize..][..chunk.stored_length as usize]);
        }
        let refused = forged.unsealed(&whole, &keys, first).unwrap_err();
        let right = matches!(refused, FrameError::NotOpened { .. });
        prop_assert!(right);
        let refused = head.unsealed(&whole, &keys, first).unwrap_err();
        let right = matches!(refused, FrameError::ChunkChecksum { .. });
        prop_assert!(right);
    }

    /// Tables with any content under a valid checksum: an error or a head whose every place lies inside its bounds.
    #[test]
    fn hostile_tables_stay_inside_their_bounds(
        ops in ops(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let frame = Encoder::new().encode(raw(&ops), group(), Compression::Zstd(1));
        let (head, body) = bytes(&frame);
        let mut head = head.to_vec();
        for (at, value) in edits {
            let at = 16 + at.index(head.len() - 16);
            head[at] = value;
        }
        head[12..16].fill(0);
        let crc = crc32c::crc32c(&head);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        if let Ok(parsed) = FrameHead::parse(&head) {
            let _ = parsed.unsealed(&body, &crate::trust::test_keys(), 0);
            let _ = parsed.unpack(&body);
            let _ = parsed.notes(&body);
        }
    }
}

#[test]
fn two_parts_fill_a_chunk_and_none_crosses_one() {
    let payload = Payload::new(0, payload(3, true, 256 << 10)).unwrap();
    let parts: Vec<_> = payload.into_parts(RecordKind::Write, disk(1).unwrap(), Lsn(1), WallTime(1)).collect();
    let raw = RawFrame {
        timeline: timeline(),
        prev_lsn: Lsn::ZERO,
        settled: Lsn(1),
        epoch: ClockEpoch(1),
        parts,
        plain_bytes: 256 << 10,
    };
    let frame = Encoder::new().encode(raw, group(), Compression::None);
    let head = FrameHead::parse(&frame.head).unwrap();
    assert_eq!(head.chunks.len(), 4);
    assert!(head.chunks.iter().all(|chunk| u64::from(chunk.plain_length) == CHUNK_PLAIN_MAX && !chunk.compressed));
}

#[test]
fn incompressible_data_is_stored_as_it_is() {
    let ops = [Op::Write { offset: 0, sectors: 128, fill: 9, random: true }];
    let frame = Encoder::new().encode(raw(&ops), group(), Compression::Zstd(1));
    assert!(FrameHead::parse(&frame.head).unwrap().chunks.iter().all(|chunk| !chunk.compressed));
}

#[test]
fn only_chunks_whose_sample_shrinks_well_are_packed_where_that_is_asked() {
    // A chunk each: text all through, noise all through, and text whose sampled places are noise.
    let noise = payload(7, true, 64 << 10);
    let text = payload(7, false, 64 << 10);
    let mut mixed = text.to_vec();
    for at in [16 << 10, 48 << 10] {
        mixed[at..at + 1024].copy_from_slice(&noise[at..at + 1024]);
    }
    let packed = |data: Bytes, compression| {
        let plain_bytes = data.len() as u64;
        let payload = Payload::new(0, data).unwrap();
        let parts = payload.into_parts(RecordKind::Write, disk(1).unwrap(), Lsn(1), WallTime(1)).collect();
        let (timeline, prev_lsn, settled, epoch) = (timeline(), Lsn::ZERO, Lsn(1), ClockEpoch(1));
        let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes };
        let frame = Encoder::new().encode(raw.clone(), group(), compression);
        let (head, body) = bytes(&frame);
        let head = FrameHead::parse(&head).unwrap();
        assert_eq!(head.unpack(&body).unwrap(), raw);
        head.chunks.iter().map(|chunk| chunk.compressed).collect::<Vec<_>>()
    };
    for (data, promising, all) in [(text, true, true), (noise, false, false), (mixed.into(), false, true)] {
        assert_eq!(packed(data.clone(), Compression::Promising(-5)), [promising]);
        assert_eq!(packed(data, Compression::Zstd(1)), [all]);
    }
}

/// Frames wait long, each for its own way: one that is kept must not keep what was packed beside it.
#[test]
fn packed_bytes_have_memory_of_their_own_and_no_more_than_they_need() {
    let mut encoder = Encoder::new();
    let mut pack = |number: u64| {
        let ops = [Op::Write { offset: number << 7, sectors: 128, fill: number as u8, random: false }];
        encoder.encode(raw(&ops), group(), Compression::Zstd(1)).body
    };
    // A few hundred bytes each.
    let kept: Vec<Bytes> = (0..100).flat_map(&mut pack).collect();
    assert_eq!(kept.len(), 100);
    for packed in kept {
        let length = packed.len();
        let own = packed.try_into_mut().expect("nobody else has a part of this memory");
        assert_eq!(own.capacity(), length);
    }
}

#[test]
fn a_newer_kind_is_skipped_or_refused_as_its_flag_says() {
    let frame = Encoder::new().encode(raw(&[Op::Barrier]), group(), Compression::None);
    let with_kind = |kind: u8, flags: u8| {
        let mut head = frame.head.to_vec();
        head[HEADER_BYTES + 30..HEADER_BYTES + 32].copy_from_slice(&[kind, flags]);
        head[12..16].fill(0);
        let crc = crc32c::crc32c(&head);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        FrameHead::parse(&head)
    };
    assert_eq!(with_kind(99, 0).unwrap().records[0].kind, None);
    assert_eq!(with_kind(99, layout::MUST_UNDERSTAND), Err(FrameError::UnknownKind { kind: 99, lsn: Lsn(1000) }));
}

#[test]
fn writes_that_are_none_are_refused() {
    let unaligned = Payload::new(1, Bytes::from(vec![0; 512])).unwrap_err();
    assert_eq!(unaligned, PayloadError::Unaligned { extent: Extent::new(1, 512) });
    assert!(matches!(Payload::new(0, Bytes::new()), Err(PayloadError::Unaligned { .. })));
}

/// The bytes of version 1, for ever: a change of this test is a change of the format.
#[test]
fn golden_bytes_of_version_1() {
    let ops = [
        Op::Write { offset: 8, sectors: 8, fill: 0xab, random: false },
        Op::Zero { offset: 16, sectors: 4 },
        Op::Barrier,
        Op::Note(0),
    ];
    let frame = Encoder::new().encode(raw(&ops), group(), Compression::None);
    let (head, body) = bytes(&frame);
    let whole: String = head.iter().chain(&body[4096..]).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(whole, include_str!("golden-v1.hex").trim());
}
