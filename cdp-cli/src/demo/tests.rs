//! The checker against a disk in memory: every prefix of what happened must hold, and nothing else may.

use super::bank::Bank;
use super::layout::Extra;
use super::sector::{Rng, SECTOR};
use super::writer::{Step, Writer};
use super::*;
use bytes::Bytes;
use cdp_net::device::{Device, ZeroFlags};
use cdp_net::nbd::{Address, Client, ClientOptions, Export, Server, ServerOptions};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn small(seed: u64) -> Layout {
    let (writers, accounts, balance, intents) = (3, 16, 1000, 8);
    Layout { base: 4096, seed, writers, accounts, balance, intents, documents: 2, document_bytes: 8192 }
}

impl Port for Vec<u8> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Blocks::read(&mut self.as_slice(), offset, buffer)
    }
    fn write(&mut self, offset: u64, data: &[u8], _: bool) -> io::Result<()> {
        self[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.write_zeroes(offset, length)
    }
    fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
}

/// Something that happened, in the order of the disk.
struct Event {
    writer: u16,
    seq: u64,
    step: Step,
    /// It left a mark: not so a flush, and the trim of what was empty.
    visible: bool,
    /// What a moment right after it must lie between.
    bounds: Bounds,
}

impl Event {
    /// Where it changes the disk, and into what.
    fn change(&self) -> Option<(usize, Vec<u8>)> {
        match &self.step {
            Step::Write { offset, data, .. } => Some((*offset as usize, data.clone())),
            Step::Trim { offset, length } | Step::Zero { offset, length } => {
                Some((*offset as usize, vec![0; *length as usize]))
            }
            Step::Flush => None,
        }
    }

    fn apply(&self, image: &mut [u8]) {
        if let Some((offset, data)) = self.change() {
            image[offset..][..data.len()].copy_from_slice(&data);
        }
    }
}

struct History {
    layout: Layout,
    formatted: Vec<u8>,
    events: Vec<Event>,
}

/// Several writers, their writes in a random order that each of them allows.
fn happen(seed: u64, events_max: usize) -> History {
    let layout = small(seed);
    let mut formatted = vec![0; layout.end() as usize];
    format(&mut formatted, &layout).unwrap();
    let mut image = formatted.clone();
    let bank = Bank::new(&layout);
    let mut writers: Vec<_> = (0..layout.writers).map(|number| Writer::new(layout, &bank, number)).collect();
    let mut in_flight: Vec<Option<Step>> = vec![None; writers.len()];
    let mut seqs = vec![1; writers.len()];
    let mut rng = Rng::new(seed);
    let mut events = Vec::new();
    while events.len() < events_max {
        let at = rng.below(writers.len() as u64) as usize;
        match in_flight[at].take() {
            None => {
                in_flight[at] = writers[at].next();
                seqs[at] += u64::from(in_flight[at].is_none());
            }
            Some(step) => {
                let bounds = Bounds { at_least: bank.acknowledged(), at_most: bank.submitted() };
                let mut event = Event { writer: at as u16, seq: seqs[at], step, visible: false, bounds };
                event.visible = event.change().is_some_and(|(offset, data)| image[offset..][..data.len()] != data);
                event.apply(&mut image);
                events.push(event);
            }
        }
    }
    History { layout, formatted, events }
}

impl History {
    fn check(&self, image: &[u8]) -> Result<Facts, Violation> {
        check(&mut { image }, self.layout.base)
    }

    /// The disk after the first so many events.
    fn prefix(&self, count: usize) -> Vec<u8> {
        let mut image = self.formatted.clone();
        self.events[..count].iter().for_each(|event| event.apply(&mut image));
        image
    }

    fn is_pad(&self, event: &Event) -> bool {
        matches!(event.step, Step::Write { offset, .. } if offset == self.layout.pad())
    }

    /// For an intent, the movements that it knew to be complete.
    fn seen(&self, event: &Event) -> Option<Vec<u64>> {
        let Step::Write { offset, data, .. } = &event.step else { return None };
        let is_intent = *offset == self.layout.intent(event.writer, event.seq);
        let mut fields = sector::Fields(&data[24 + 7 * 8..]);
        is_intent.then(|| (0..self.layout.writers).map_while(|_| fields.long()).collect())
    }

    /// Whether the loss looks as if its writer's next write were there too: a document that is missing right before it would
    /// be erased makes a moment that could have been.
    fn is_a_moment(&self, image: &[u8], right: &[u8], missing: usize, at: usize) -> bool {
        let writer = self.events[missing].writer;
        let next = self.events[at + 1..].iter().find(|event| event.writer == writer && event.step != Step::Flush);
        let mut ahead = right.to_vec();
        next.into_iter().for_each(|event| event.apply(&mut ahead));
        ahead == image
    }

    /// Whether an image with the events after `missing` up to `count` and without `missing` itself cannot be a moment: its
    /// writer went on after it, or another knew of it.
    fn is_wrong_without(&self, missing: usize, count: usize) -> bool {
        let event = &self.events[missing];
        let later = &self.events[missing + 1..count];
        let last_pad = later.iter().rposition(|later| self.is_pad(later));
        let marks = later.iter().enumerate().filter(|(at, later)| !self.is_pad(later) || Some(*at) == last_pad);
        let went_on = marks.into_iter().any(|(_, later)| later.writer == event.writer && later.visible);
        let at = usize::from(event.writer);
        let is_movement = (0..self.layout.accounts)
            .map(|account| self.layout.account(account))
            .chain([self.layout.intent(event.writer, event.seq)])
            .any(|offset| matches!(event.step, Step::Write { offset: at, .. } if at == offset));
        let known = later.iter().filter_map(|later| self.seen(later)).any(|seen| seen[at] >= event.seq);
        // Of writes to the pad only some orders are known.
        (went_on && !self.is_pad(event)) || (is_movement && known)
    }
}

/// How many histories to try; CI's long runs set more.
fn seeds() -> std::ops::RangeInclusive<u64> {
    1..=std::env::var("CDP_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

#[test]
fn every_moment_holds() {
    for seed in seeds() {
        let history = happen(seed, 900);
        let mut image = history.formatted.clone();
        let facts = history.check(&image).unwrap();
        assert_eq!((facts.movements(), facts.sum), (0, 16_000));
        for (at, event) in history.events.iter().enumerate() {
            event.apply(&mut image);
            let facts = history.check(&image).unwrap_or_else(|error| panic!("seed {seed}, event {at}: {error}"));
            facts.within(&event.bounds).unwrap_or_else(|error| panic!("seed {seed}, event {at}: {error}"));
        }
        let all: Vec<_> = history.events.iter().map(|event| event.step.clone()).collect();
        assert!(all.iter().any(|step| matches!(step, Step::Trim { .. })), "trims are part of it");
        assert!(all.iter().any(|step| matches!(step, Step::Zero { .. })), "so are zeros");
        assert!(all.contains(&Step::Flush) && history.events.iter().any(|event| history.is_pad(event)));
    }
}

#[test]
fn a_lost_or_reordered_write_is_found() {
    for seed in seeds() {
        let history = happen(seed, 400);
        let (mut wrong, mut pads) = (0, 0);
        for missing in (0..history.events.len()).filter(|at| history.events[*at].visible) {
            let mut without = history.prefix(missing);
            let mut with = without.clone();
            history.events[missing].apply(&mut with);
            // The write next to it first is a reordering; much later is a loss that went unnoticed for long.
            for (at, event) in history.events.iter().enumerate().skip(missing + 1).take(60) {
                event.apply(&mut without);
                event.apply(&mut with);
                if with == without {
                    break;
                }
                // Nearby all are tried, further on some.
                if at > missing + 6 && !(at + missing).is_multiple_of(9) {
                    continue;
                }
                let found = history.check(&without);
                pads += usize::from(found.is_err() && history.is_pad(&history.events[missing]));
                if history.is_wrong_without(missing, at + 1) && !history.is_a_moment(&without, &with, missing, at) {
                    wrong += 1;
                    assert!(found.is_err(), "seed {seed}: event {missing} is missing after event {at}");
                }
            }
        }
        assert!(wrong > 1000, "{wrong} wrong images were tried");
        assert!(pads > 0, "lost writes to the pad are found where the order is known");
    }
}

#[test]
fn a_torn_write_is_found() {
    let history = happen(7, 700);
    let mut image = history.formatted.clone();
    let mut torn = 0;
    for (at, event) in history.events.iter().enumerate() {
        let mut after = image.clone();
        event.apply(&mut after);
        if let Some((offset, data)) = event.change() {
            let sectors = data.len() / SECTOR;
            for cut in 1..sectors {
                let bytes = cut * SECTOR;
                let (mut head, mut tail) = (image.clone(), image.clone());
                head[offset..offset + bytes].copy_from_slice(&data[..bytes]);
                tail[offset + bytes..offset + data.len()].copy_from_slice(&data[bytes..]);
                for part in [head, tail].iter().filter(|part| **part != image && **part != after) {
                    torn += 1;
                    assert!(history.check(part).is_err(), "event {at} torn after {cut} of {sectors} sectors");
                }
            }
        }
        image = after;
    }
    assert!(torn > 2000, "{torn} torn images were tried");
}

#[test]
fn a_trim_that_came_undone_is_named() {
    let history = happen(3, 600);
    let mut named = 0;
    for (at, event) in history.events.iter().enumerate() {
        let Extra::Erase { .. } = history.layout.extra(event.writer, event.seq) else { continue };
        let (Some((offset, zeros)), Some(next)) = (event.change(), next_of(&history, at)) else { continue };
        if !matches!(event.step, Step::Trim { .. } | Step::Zero { .. }) {
            continue;
        }
        let before = history.prefix(at);
        let mut image = history.prefix(next + 1);
        image[offset..][..zeros.len()].copy_from_slice(&before[offset..][..zeros.len()]);
        if image != history.prefix(next + 1) {
            named += 1;
            let found = history.check(&image);
            assert!(matches!(found, Err(Violation::Resurrected { .. })), "event {at}: {found:?}");
        }
    }
    assert!(named > 10, "{named} trims were undone");
}

/// The next write of the same writer.
fn next_of(history: &History, at: usize) -> Option<usize> {
    let writer = history.events[at].writer;
    let later = history.events.iter().enumerate().skip(at + 1);
    later.filter(|(_, event)| event.writer == writer && event.visible).map(|(at, _)| at).next()
}

#[test]
fn a_flipped_bit_is_found_anywhere() {
    let history = happen(5, 600);
    let image = history.prefix(600);
    let layout = history.layout;
    let mut rng = Rng::new(9);
    for _ in 0..2000 {
        let offset = layout.account(0) + rng.below(layout.end() - layout.account(0));
        let mut flipped = image.clone();
        flipped[offset as usize] ^= 1 << rng.below(8);
        assert!(history.check(&flipped).is_err(), "at byte {offset}");
    }
    let mut flipped = image;
    flipped[layout.base as usize + 20] ^= 1;
    assert!(matches!(history.check(&flipped), Err(Violation::NotALedger { .. })));
}

#[test]
fn a_moment_elsewhere_is_found() {
    let history = happen(6, 600);
    let facts = history.check(&history.prefix(300)).unwrap();
    assert!(matches!(facts.within(&history.events[500].bounds), Err(Violation::TooOld { .. })));
    assert!(matches!(facts.within(&history.events[100].bounds), Err(Violation::TooNew { .. })));
}

#[test]
fn garbage_is_no_ledger_and_no_panic() {
    let mut rng = Rng::new(4);
    let noise: Vec<u8> = (0..64 << 10).map(|_| rng.next() as u8).collect();
    assert!(matches!(check(&mut noise.as_slice(), 0), Err(Violation::NotALedger { .. })));
    assert!(matches!(check(&mut &[0_u8; 100][..], 0), Err(Violation::Io(_))));
    let header = small(1).header();
    let mut short = [vec![0; 4096], header].concat();
    assert!(matches!(check(&mut short.as_slice(), 4096), Err(Violation::Io(_))));
    short.resize(small(1).end() as usize, 0);
    assert!(matches!(check(&mut short.as_slice(), 4096), Err(Violation::Garbage { .. })), "accounts are missing");
}

/// A disk in memory; whoever locks it sees a moment.
struct Memory(Mutex<Vec<u8>>);

impl Device for Memory {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Port::read(&mut *self.0.lock().unwrap(), offset, buffer)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        Port::write(&mut *self.0.lock().unwrap(), offset, &data, fua)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn trim(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.0.lock().unwrap().trim(offset, length as u32)
    }
    fn write_zeroes(&self, offset: u64, length: u64, _: ZeroFlags) -> io::Result<()> {
        Port::write_zeroes(&mut *self.0.lock().unwrap(), offset, length as u32)
    }
}

#[test]
fn writers_on_a_served_disk() {
    let layout = Layout { base: 1 << 20, document_bytes: 64 << 10, ..small(8) };
    let memory = Arc::new(Memory(Mutex::new(vec![0; layout.end() as usize])));
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("nbd"));
    let server = Server::start(ServerOptions::new(address, vec![Export::new("ledger", memory.clone())])).unwrap();
    let uri = server.uris().remove(0);
    let connect = || Client::connect(&uri, &ClientOptions::default()).unwrap();
    format(&mut connect(), &layout).unwrap();
    let mut load = Load::start(layout, LoadOptions::default(), &mut || Ok(Box::new(connect()))).unwrap();
    let mut moments = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while moments.len() < 20 {
        std::thread::sleep(Duration::from_millis(20));
        let at_least = load.progress().at_least;
        let (image, time) = {
            let image = memory.0.lock().unwrap();
            (image.clone(), cdp_net::clock::wall())
        };
        moments.push((image, time, Bounds { at_least, at_most: load.progress().at_most }));
        assert!(Instant::now() < deadline && !load.has_failed());
    }
    std::thread::sleep(Duration::from_millis(30));
    for (image, time, bounds) in &moments {
        let facts = check(&mut image.as_slice(), layout.base).unwrap();
        facts.within(bounds).unwrap();
        facts.within(&load.at(*time)).unwrap();
    }
    let report = load.finish().unwrap();
    let facts = check(&mut connect(), layout.base).unwrap();
    assert_eq!(facts.movements(), report.movements);
    assert!(report.movements > 20 && facts.on_the_way == 0, "{report:?}");
}
