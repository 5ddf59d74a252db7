//! What a source proxy prepared, in a journal: the moment at which a period closes is what an array of bytes would be.

use super::kit::*;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, Mark, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::link::prepare::{self, Prepare, to_raw};
use cdp_core::media::Memory;
use cdp_core::types::*;
use std::sync::Arc;

/// A period of some records, with runs of zeros in some; frames of it as a filter makes them, and its last LSN.
fn period(source: &mut Source, dice: &mut Dice) -> (Vec<EncodedFrame>, Lsn) {
    let from = source.lsn.next();
    source.note(RecordKind::PeriodBegin, None, Note::PeriodBegin { from });
    let mut frames = Vec::new();
    for _ in 0..dice.below(60) {
        match dice.below(8) {
            0 => {
                let mut bytes = vec![0; 96 << 10];
                bytes[..(dice.below(2) * 40_000) as usize].fill(9);
                source.bytes(1 + dice.below(2) as u16, dice.below(1000) * SECTOR, &bytes);
            }
            1..4 => source.write(1, Extent::new(dice.below(8) * BLOCK, BLOCK), dice.below(200) as u8),
            _ => source.any(),
        }
        if dice.below(4) == 0 {
            frames.extend(source.frames(Compression::None));
        }
    }
    let close = source.note(RecordKind::Mark, None, Note::Mark(Mark::default()));
    frames.extend(source.frames(Compression::None));
    (frames, close)
}

#[test]
fn the_close_of_each_period_is_what_was_written_until_then() {
    for seed in 0..6 {
        let at_rest = &AtRest::both()[seed as usize % 2];
        let (mut rig, mut dice) = (Rig::create_at_rest(Arc::new(Memory::new()), at_rest), Dice(seed));
        let mut source = Source::new(seed, timeline(1));
        rig.start(timeline(1), None, Lsn::ZERO);
        let zstd = seed % 3 != 0;
        let options = prepare::Options { window_bytes: 1 << 20, zstd, ..prepare::Options::new(group(), timeline(1)) };
        let (mut prepare, mut encoder) = (Prepare::new(options), Encoder::new());
        let (mut closes, mut known) = (Vec::new(), 0);
        for _ in 0..20 {
            let (frames, close) = period(&mut source, &mut dice);
            closes.push(close);
            for frame in frames {
                prepare.push(MonoTime(1), frame).unwrap();
                while let Some(work) = prepare.poll(MonoTime(1)) {
                    prepare.done(work.run(&mut encoder)).unwrap();
                }
                while let Some(frame) = prepare.next() {
                    // A host that inflates, and one that does not.
                    let frame = if seed % 2 == 0 { frame } else { to_raw(&frame, &mut encoder).unwrap() };
                    known += u64::from(frame.info.records);
                    rig.append(frame);
                }
            }
        }
        rig.sync();
        let last = *closes.last().unwrap();
        assert_eq!((prepare.is_empty(), rig.writer.durable().lsn()), (true, last));
        let stats = prepare.stats();
        assert!(stats.records_coalesced > 20 && stats.bytes_zero > 1 << 20, "{stats:?}");
        let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
        for close in closes {
            let elements = [(timeline(1), close)];
            let view = View::open(&path(&reader, &snapshot, &elements), 1 << 20).unwrap();
            for number in 1..=2 {
                let expected = source.model.at(&elements, number, source.size as usize);
                assert!(restore(&view, number, source.size).unwrap() == expected, "disk {number} at LSN {close}");
            }
        }
        let verified = reader.verify(&snapshot, |_| true);
        assert_eq!((verified.findings, verified.records), (vec![], known));
    }
}
