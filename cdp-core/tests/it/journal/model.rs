//! A view at any LSN is what an array of bytes would be.

use super::kit::*;
use cdp_core::frame::Compression;
use cdp_core::journal::*;
use cdp_core::media::Memory;
use cdp_core::types::*;
use std::sync::Arc;

fn compression(dice: &mut Dice) -> Compression {
    if dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) }
}

/// Checks random ranges of both disks at every LSN that was made on the path.
fn check(rig: &Rig, source: &Source, path_of: impl Fn(Lsn) -> Vec<(Timeline, Lsn)>, upto: Lsn, seed: u64) {
    let reader = rig.reader();
    let snapshot = rig.writer.snapshot();
    let mut dice = Dice(seed);
    for (lsn, ..) in source.model.history.iter().filter(|(lsn, ..)| *lsn <= upto) {
        let elements = path_of(*lsn);
        let view = View::open(&path(&reader, &snapshot, &elements), 1 << 20).unwrap();
        let number = 1 + dice.below(2) as u16;
        let expected = source.model.at(&elements, number, source.size as usize);
        let offset = dice.below(source.size);
        let length = (1 + dice.below(100_000)).min(source.size - offset);
        let mut out = vec![0xee; length as usize];
        view.read(disk(number), offset, &mut out, &Nothing).unwrap();
        assert!(out == expected[offset as usize..][..length as usize], "disk {number} at LSN {lsn}, {offset}+{length}");
        if dice.below(16) == 0 {
            assert!(restore(&view, number, source.size).unwrap() == expected, "whole disk {number} at LSN {lsn}");
        }
    }
}

#[test]
fn restore_at_every_lsn_equals_the_model() {
    for seed in 0..4 {
        let at_rest = &AtRest::both()[seed as usize % 2];
        let storage = Arc::new(Memory::new());
        let mut rig = Rig::create_at_rest(storage.clone(), at_rest);
        let mut source = Source::new(seed, timeline(1));
        rig.start(timeline(1), None, Lsn::ZERO);
        let mut dice = Dice(seed + 100);
        for _ in 0..60 {
            (0..1 + dice.below(12)).for_each(|_| source.any());
            for frame in source.frames(compression(&mut dice)) {
                rig.append(frame);
            }
            if dice.below(4) == 0 {
                rig.drain();
            }
        }
        rig.sync();
        assert_eq!(rig.writer.durable().lsn(), source.lsn);
        let first = |lsn| vec![(timeline(1), lsn)];
        check(&rig, &source, first, source.lsn, seed);
        assert!(rig.writer.manifest().segments.len() > 3, "several segments");
        // After a clean stop, on a new timeline that forks where the old one ended.
        rig.close();
        let fork = source.lsn;
        let mut rig = Rig::open_at_rest(storage, seed + 50, at_rest).unwrap();
        assert_eq!(rig.repairs, []);
        assert_eq!(rig.writer.durable().lsn(), fork);
        check(&rig, &source, first, fork, seed + 1);
        rig.start(timeline(2), Some(timeline(1)), fork);
        source.fork(timeline(2), fork);
        (0..100).for_each(|_| source.any());
        for frame in source.frames(Compression::Zstd(1)) {
            rig.append(frame);
        }
        rig.sync();
        let second = |lsn: Lsn| vec![(timeline(1), fork.min(lsn)), (timeline(2), lsn)];
        check(&rig, &source, second, source.lsn, seed + 2);
        let verified = rig.reader().verify(&rig.writer.snapshot(), |_| true);
        assert_eq!(verified.findings, []);
        assert!(verified.records >= source.model.history.len() as u64);
        assert_eq!(at_rest.check().unwrap() > 100, at_rest.key.is_some());
    }
}

#[test]
fn a_live_view_follows_every_append() {
    AtRest::both().iter().for_each(a_live_view_follows);
}

fn a_live_view_follows(at_rest: &AtRest) {
    let mut rig = Rig::create_at_rest(Arc::new(Memory::new()), at_rest);
    let mut source = Source::new(9, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    (0..20).for_each(|_| source.any());
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.drain();
    let reader = rig.reader();
    let elements = [(timeline(1), rig.writer.written())];
    let view = View::open(&path(&reader, &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
    for round in 0..300 {
        source.any();
        for frame in source.frames(Compression::None) {
            let appended = rig.append(frame);
            rig.drain();
            view.advance(&reader, &appended);
        }
        if round % 50 == 0 {
            view.refresh(&rig.writer.snapshot());
        }
        if round % 7 == 0 {
            for number in 1..=2 {
                let expected = source.model.at(&[(timeline(1), source.lsn)], number, source.size as usize);
                assert!(restore(&view, number, source.size).unwrap() == expected, "round {round}");
            }
        }
    }
    assert!(rig.writer.manifest().segments.len() > 2);
}

#[test]
fn pieces_say_where_bytes_come_from() {
    use cdp_core::frame::{Note, RecordKind};
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(3, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    source.write(1, Extent::new(4096, 4096), 1);
    source.clear(RecordKind::Zero, 1, Extent::new(8192, 512));
    source.clear(RecordKind::Discard, 1, Extent::new(0, 512));
    source.note(RecordKind::Resize, Some(1), Note::Resize { from: 1 << 30, to: 16384 });
    source.note(RecordKind::Resize, Some(1), Note::Resize { from: 16384, to: 1 << 30 });
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.sync();
    let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
    let view = View::open(&path(&reader, &snapshot, &[(timeline(1), Lsn(5))]), 1 << 20).unwrap();
    let piece = |offset, length, origin| Piece { extent: Extent::new(offset, length), origin };
    let pieces = view.resolve(disk(1), Extent::new(0, 20480)).unwrap();
    let zero = |lsn, discarded| Origin::Zero { lsn: Lsn(lsn), discarded };
    assert_eq!(
        pieces,
        [
            piece(0, 512, zero(3, true)),
            piece(512, 3584, Origin::Below),
            piece(4096, 4096, Origin::Data { timeline: timeline(1), lsn: Lsn(1) }),
            piece(8192, 512, zero(2, false)),
            piece(8704, 16384 - 8704, Origin::Below),
            piece(16384, 4096, zero(4, true)),
        ]
    );
    let too_far = View::open(&path(&reader, &snapshot, &[(timeline(1), Lsn(6))]), 1 << 20).unwrap_err();
    assert!(matches!(too_far, ReadError::NotWritten { wanted: Lsn(6), written: Lsn(5), .. }));
}
