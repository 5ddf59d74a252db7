//! That what was asked for is done.

use super::{Driven, Kind, directory, pieces};
use crate::dice::Dice;
use bytes::Bytes;
use cdp_core::journal::{Effect, Landing};
use cdp_core::media::MediaErrorKind;
use std::process::Command;

/// Bytes from which on a write may go past the page cache.
const BORDER: usize = 64 << 10;

pub(super) fn writes_handed_out_together_all_land_whatever_their_sizes_and_alignments(kind: Kind) {
    for seed in 0..4 {
        let mut dice = Dice::new(seed);
        let (_place, storage) = directory();
        let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
        let file = driven.create("segment", 16 << 20);
        let (mut expected, mut started, mut written) = (Vec::new(), Vec::new(), 0);
        for _ in 0..60 {
            // Around the border, and far from it, on whole sectors and not.
            let around = [512, BORDER - 512, BORDER, BORDER + 512, 3 * BORDER, 20 * BORDER][dice.below(6) as usize];
            let length = if dice.permille(600) { around } else { around + dice.below(1000) as usize };
            let data = pieces(&mut dice, length);
            let offset = expected.len() as u64;
            data.iter().for_each(|piece| expected.extend_from_slice(piece));
            written = expected.len();
            started.push(driven.start(Effect::Write { file, offset, data }));
            if dice.permille(500) {
                // Most writes begin on sectors.
                expected.resize(expected.len().next_multiple_of(4096), 0);
            }
        }
        started.into_iter().for_each(|id| driven.wait(id).unwrap());
        driven.run(Effect::Sync { file }).unwrap();
        let mut found = vec![0; expected.len()];
        let read = storage.open("segment", false).unwrap().read_at(0, &mut found).unwrap();
        assert!(read >= written, "seed {seed}: the file ends after {read} of {written} bytes");
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "seed {seed}");
    }
}

pub(super) fn a_write_of_more_pieces_than_the_system_takes_lands_whole(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
    for (name, preallocate) in [("cached", 0), ("streamed", 1 << 20)] {
        let file = driven.create(name, preallocate);
        // The second is whole sectors, for which copies are made; the third hands over what is aligned already.
        for (pieces, bytes) in [(3000, 100), (2560, 128), (2100, 512)] {
            let data: Vec<_> = (0..pieces).map(|number| Bytes::from(vec![number as u8; bytes])).collect();
            driven.run(Effect::Write { file, offset: 0, data: data.clone() }).unwrap();
            let mut found = vec![0; pieces * bytes];
            storage.open(name, false).unwrap().read_exact_at(0, &mut found).unwrap();
            assert!(found == data.concat(), "{pieces} pieces of {bytes}");
        }
        for data in [Vec::new(), vec![Bytes::new()]] {
            assert_eq!(driven.run(Effect::Write { file, offset: 0, data }), Ok(()), "of nothing");
        }
    }
}

/// Asks the file system whether it has given blocks to everything in a file, or still holds something in memory only. None where it
/// cannot be asked.
fn is_allocated(path: &std::path::Path) -> Option<bool> {
    let Ok(told) = Command::new("filefrag").arg("-v").arg(path).output() else { return None };
    let text = String::from_utf8_lossy(&told.stdout);
    (told.status.success() && text.contains("ext:")).then(|| !text.contains("delalloc"))
}

pub(super) fn what_a_sync_covers_is_on_the_media(kind: Kind) {
    let (place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage) else { return };
    for number in 0..20 {
        let name = format!("file-{number}");
        let file = driven.create(&name, 0);
        driven.run(Effect::Write { file, offset: 0, data: vec![Bytes::from(vec![7; 32 << 10])] }).unwrap();
        let path = place.path().join(name);
        if is_allocated(&path) != Some(false) {
            println!("skipped: {} does not say what it holds in memory only", path.display());
            return;
        }
        driven.run(Effect::Sync { file }).unwrap();
        assert_eq!(is_allocated(&path), Some(true), "synced, and held in memory only");
    }
}

pub(super) fn a_file_is_closed_while_it_is_synced(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
    for number in 0..40 {
        let name = format!("file-{number}");
        let file = driven.create(&name, 1 << 20);
        driven.run(Effect::Write { file, offset: 0, data: vec![Bytes::from(vec![3; 20_000])] }).unwrap();
        let sync = driven.start(Effect::Sync { file });
        let close = driven.start(Effect::Close { file });
        driven.wait(close).unwrap();
        driven.wait(sync).unwrap();
        let write = Effect::Write { file, offset: 0, data: vec![Bytes::from_static(b"more")] };
        assert!(driven.run(write).is_err(), "it is closed");
        assert_eq!(storage.open(&name, false).unwrap().len().unwrap(), 1 << 20);
    }
}

pub(super) fn what_was_written_is_read_by_its_name(kind: Kind) {
    let (_place, storage) = directory();
    let Some(mut driven) = Driven::new(kind, storage) else { return };
    let file = driven.create("file", 1 << 20);
    driven.run(Effect::Write { file, offset: 4096, data: vec![Bytes::from(vec![5; 700 << 10])] }).unwrap();
    let read = |offset, length| {
        let into = Landing::new(length);
        (Effect::Read { name: "file".into(), offset, into: into.clone() }, into)
    };
    let (effect, into) = read(4000, 300 << 10);
    driven.run(effect).unwrap();
    let expected = [vec![0; 96], vec![5; (300 << 10) - 96]].concat();
    assert!(into.bytes().is_some_and(|found| found == expected));
    driven.run(Effect::Close { file }).unwrap();
    let (effect, into) = read((1 << 20) - 10, 11);
    assert_eq!(driven.run(effect).unwrap_err().kind, MediaErrorKind::Short);
    assert!(into.bytes().is_none(), "fewer bytes than were asked for are none");
    driven.run(Effect::Remove { name: "file".into() }).unwrap();
    assert_eq!(driven.run(read(0, 1).0).unwrap_err().kind, MediaErrorKind::NotFound);
}

pub(super) fn what_was_handed_over_is_carried_out_before_the_driver_is_gone(kind: Kind) {
    for round in 0..4 {
        let mut dice = Dice::new(round);
        let (_place, storage) = directory();
        let Some(mut driven) = Driven::new(kind, storage.clone()) else { return };
        let (file, other) = (driven.create("segment", 32 << 20), driven.create("other", 0));
        let mut expected = Vec::new();
        for number in 0..50 {
            let length = if number % 2 == 0 { 10 * BORDER } else { 1 + dice.below(5000) as usize };
            let data = pieces(&mut dice, length);
            let offset = expected.len() as u64;
            data.iter().for_each(|piece| expected.extend_from_slice(piece));
            driven.start(Effect::Write { file, offset, data });
        }
        driven.start(Effect::Write { file: other, offset: 0, data: vec![Bytes::from_static(b"other")] });
        driven.start(Effect::Sync { file });
        for number in 0..20 {
            let new = driven.new_file();
            driven.start(super::create(new, &format!("made-{number}"), 0));
        }
        driven.start(Effect::SyncDir { name: String::new() });
        drop(driven);
        let mut found = vec![0; expected.len()];
        storage.open("segment", false).unwrap().read_exact_at(0, &mut found).unwrap();
        assert!(found == expected, "round {round}");
        assert_eq!(storage.open("other", false).unwrap().len().unwrap(), 5);
        assert_eq!(storage.list("").unwrap().len(), 22);
    }
}
