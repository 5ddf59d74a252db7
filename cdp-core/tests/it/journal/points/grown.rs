//! Disks that grow and are cut again, and merges in between.

use super::super::kit::*;
use super::check::check;
use super::life::Life;
use super::step::Step;
use cdp_core::journal::ResizeInfo;
use cdp_core::types::*;

/// The disk grows: what is new is recorded in a segment of its own, the size behind it. It is cut back before anything is merged, so
/// that neither the manifest nor the records up to where is merged say how large it was: the moments between show what it grew by.
#[test]
fn a_disk_that_grew_and_was_cut_keeps_what_its_growth_recorded() {
    for (seed, at_rest) in (0..4).flat_map(|seed| AtRest::both().map(|at_rest| (seed, at_rest))) {
        let mut life = Life::new(seed, 8 * BLOCK, &at_rest);
        let sectors = life.past.at(Lsn(u64::MAX))[&1].bytes.len() as u64 / SECTOR;
        life.resize(0, 4 * sectors, true).unwrap();
        // Two records are behind what it grew by: that it grew, and that it was cut.
        life.resize(0, sectors, true).unwrap();
        life.flush().unwrap();
        let cut = life.rig.writer.durable().lsn();
        let recorded = cut.prev().prev();
        assert_eq!(life.past.at(recorded)[&1].bytes.len() as u64, sectors * SECTOR);
        assert_eq!(life.past.at(cut.prev())[&1].bytes.len() as u64, 4 * sectors * SECTOR);
        life.advance(recorded, None).unwrap();
        let summaries = life.rig.writer.manifest().segments.iter().filter_map(|segment| segment.summary());
        assert!(summaries.map(|summary| summary.last_lsn).all(|last| last > recorded));
        check(&life, &mut Dice(seed), true).unwrap();
        life.advance(cut, None).unwrap();
        check(&life, &mut Dice(seed), true).unwrap();
    }
}

/// A merge writes what a disk is announced to grow by; it is cut off, and the growth is given up. What it left behind the base's end is
/// in nobody's way when the disk grows after all.
#[test]
fn what_a_merge_left_of_a_growth_that_was_given_up_is_gone() {
    for (seed, at_rest) in (0..4).flat_map(|seed| AtRest::both().map(|at_rest| (seed, at_rest))) {
        let mut life = Life::new(seed, 8 * BLOCK, &at_rest);
        let sectors = life.past.at(Lsn(u64::MAX))[&1].bytes.len() as u64 / SECTOR;
        let announced = ResizeInfo { disk: disk(1), size: 4 * sectors * SECTOR };
        life.rig.writer.edit(|manifest| manifest.resizing.push(announced));
        // Beyond the disk's end as it is: no moment shows that.
        life.source.bytes(1, 2 * sectors * SECTOR, &[0x5a; 8 * BLOCK as usize]);
        life.bytes(1, 0, &[3; SECTOR as usize]);
        // Its segment goes with the first merge.
        life.play(&Step::Write { records: Vec::new(), roll: true, wait: true }).unwrap();
        let first = life.source.lsn;
        life.advance(first, Some(u8::MAX)).unwrap();
        life.rig.writer.edit(|manifest| manifest.resizing.clear());
        life.rig.drain();
        life.advance(first, None).unwrap();
        life.pin_at(first).unwrap();
        life.bytes(1, BLOCK, &[1; BLOCK as usize]);
        life.flush().unwrap();
        let second = life.source.lsn;
        life.resize(0, 4 * sectors, true).unwrap();
        for to in [second, life.rig.writer.durable().lsn()] {
            life.advance(to, None).unwrap_or_else(|why| panic!("seed {seed}, to {to}: {why}"));
            check(&life, &mut Dice(seed), true).unwrap_or_else(|why| panic!("seed {seed}, at {to}: {why}"));
        }
    }
}
