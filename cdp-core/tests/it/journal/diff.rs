//! What differs between two moments, and their digests, against whole reads of both.

use super::kit::*;
use bytes::Bytes;
use cdp_core::frame::{Compression, Mark, Note, Payload, PointKinds, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::content::{Content, DiskView, Provenance};
use cdp_core::replica::diff::{Change, Diff, DiffError};
use cdp_core::replica::digest::{Digest, digest};
use cdp_core::replica::session::{Session, SessionOptions, create};
use cdp_core::replica::{Bases, ReplicaView, ViewDisk};
use cdp_core::trust::KeyHolder;
use cdp_core::types::*;
use std::cell::Cell;
use std::convert::Infallible;
use std::sync::Arc;

const SIZE: usize = 1 << 20;

/// A restored file.
struct Raw(Vec<u8>);

impl Content for Raw {
    type Error = Infallible;
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
        Ok(())
    }
    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Infallible> {
        Ok(vec![(range, false)])
    }
}

/// A disk of a view that counts what is read of it.
struct Counting<'a> {
    disk: DiskView<'a>,
    read: Cell<u64>,
}

impl Content for Counting<'_> {
    type Error = ReadError;
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.read.set(self.read.get() + out.len() as u64);
        self.disk.read(offset, out)
    }
    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, ReadError> {
        self.disk.zeros(range)
    }
    fn provenance(&self, range: Extent) -> Result<Vec<(Extent, Provenance)>, ReadError> {
        self.disk.provenance(range)
    }
}

fn changes<A: Content, B: Content>(from: &A, to: &B) -> Result<Vec<Change>, DiffError<A::Error, B::Error>> {
    let (mut diff, mut found) = (Diff::new(from, to), Vec::new());
    while diff.step(&mut |change| found.push(change))? {}
    assert_eq!(diff.position(), diff.size());
    Ok(found)
}

/// The same by reading all of both.
fn naive(from: &[u8], to: &[u8]) -> Vec<Change> {
    let size = from.len().max(to.len());
    let whole = |bytes: &[u8]| [bytes, &vec![0; size - bytes.len()]].concat();
    let (from, to) = (whole(from), whole(to));
    let mut found: Vec<Change> = Vec::new();
    for at in (0..size).step_by(4096) {
        let (a, b) = (&from[at..(at + 4096).min(size)], &to[at..(at + 4096).min(size)]);
        if a == b {
            continue;
        }
        let zero = b.iter().all(|byte| *byte == 0);
        let extent = Extent::new(at as u64, b.len() as u64);
        match found.last_mut().filter(|last| last.zero == zero && last.extent.end() == extent.offset) {
            Some(last) => last.extent.length += extent.length,
            None => found.push(Change { extent, zero }),
        }
    }
    found
}

fn digest_of<C: Content>(content: &C) -> Digest
where
    C::Error: std::fmt::Debug,
{
    digest(content, |_| true).unwrap().unwrap()
}

/// Two disks with a history on three timelines; the first has a base below it.
struct Scene {
    rig: Rig,
    source: Source,
    base: Vec<u8>,
    bases: Arc<Bases>,
    /// Every moment: the way to it.
    moments: Vec<Vec<(Timeline, Lsn)>>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let mut rig = Rig::create(Arc::clone(&storage));
        let mut dice = Dice(seed);
        // Half of the base is zeros, in runs.
        let mut base = vec![0; SIZE];
        for piece in base.chunks_mut(64 << 10) {
            let fill = if dice.below(2) == 0 { 0 } else { dice.next() as u8 };
            piece.fill(fill);
        }
        let replica = rig.writer.manifest().replica;
        let mut writer = BaseWriter::create(storage.as_ref(), replica, disk(1), SIZE as u64).unwrap();
        writer.data(&base, Lsn(0)).unwrap();
        let root = writer.finish(storage.as_ref(), Lsn(0)).unwrap();
        let mut bases = Bases::default();
        bases.insert(disk(1), Arc::new(Base::open(storage.as_ref(), replica, disk(1), root).unwrap()));
        rig.start(timeline(1), None, Lsn::ZERO);
        let source = Source::new(seed, timeline(1));
        let mut scene = Self { rig, source, base, bases: Arc::new(bases), moments: Vec::new() };
        let first = |lsn| vec![(timeline(1), lsn)];
        scene.live(60, first);
        let fork = Lsn(scene.source.lsn.0 - 20);
        // The second timeline leaves the first one's last records behind, the third forks from the second's end.
        scene.rig.start(timeline(2), Some(timeline(1)), fork);
        scene.source.fork(timeline(2), scene.source.lsn);
        scene.live(40, |lsn| vec![(timeline(1), fork), (timeline(2), lsn)]);
        let end = scene.source.lsn;
        scene.rig.start(timeline(3), Some(timeline(2)), end);
        scene.source.fork(timeline(3), end);
        scene.live(20, |lsn| vec![(timeline(1), fork), (timeline(2), end), (timeline(3), lsn)]);
        scene
    }

    fn live(&mut self, records: usize, path: impl Fn(Lsn) -> Vec<(Timeline, Lsn)>) {
        for _ in 0..records {
            match self.source.dice.below(8) {
                // The same few blocks with the same few contents, so that many a block is written again with what it held.
                0..=2 => {
                    let number = 1 + self.source.dice.below(2) as u16;
                    let block = self.source.dice.below(6);
                    let fill = [1, 2, 4][self.source.dice.below(3) as usize];
                    self.source.write(number, Extent::new(block * 64 * 1024, 8192), fill);
                }
                3 => drop(self.source.note(RecordKind::Mark, None, mark_note())),
                _ => self.source.any(),
            }
            self.moments.push(path(self.source.lsn));
            let compression = if self.source.dice.below(2) == 0 { Compression::None } else { Compression::Zstd(1) };
            for frame in self.source.frames(compression) {
                self.rig.append(frame);
            }
        }
        self.rig.sync();
    }

    fn disks(&self) -> Vec<ViewDisk> {
        [1, 2].map(|id| ViewDisk { id: disk(id), name: format!("d{id}"), size: SIZE as u64 }).to_vec()
    }

    fn path(&self, moment: &[(Timeline, Lsn)]) -> Vec<PathElement> {
        path(&self.rig.reader(), &self.rig.writer.snapshot(), moment)
    }

    fn view(&self, moment: &[(Timeline, Lsn)]) -> ReplicaView {
        ReplicaView::open((self.path(moment), Arc::clone(&self.bases)), self.disks()).unwrap()
    }

    /// What a disk held.
    fn expected(&self, moment: &[(Timeline, Lsn)], number: u16) -> Vec<u8> {
        let mut bytes = if number == 1 { self.base.clone() } else { vec![0; SIZE] };
        for (lsn, on, of, extent, data) in &self.source.model.history {
            if *of == number && moment.iter().any(|(timeline, upto)| timeline == on && lsn <= upto) {
                let place = &mut bytes[extent.offset as usize..extent.end() as usize];
                match data {
                    Some(data) => place.copy_from_slice(data),
                    None => place.fill(0),
                }
            }
        }
        bytes
    }
}

fn mark_note() -> Note {
    let kinds = PointKinds { short: true, ..PointKinds::default() };
    Note::Mark(Mark { kinds, on_barrier: false, label: String::new() })
}

fn sized(view: &ReplicaView, number: u16, size: u64) -> DiskView<'_> {
    DiskView::new(view, ViewDisk { id: disk(number), name: String::new(), size })
}

#[test]
fn any_two_moments_differ_in_what_whole_reads_of_both_say() {
    let (mut equal, mut grown) = (0, 0);
    for seed in 0..3 {
        let scene = Scene::new(seed);
        let mut dice = Dice(seed + 1000);
        for round in 0..40 {
            let mut draw = || {
                let moment = scene.moments[dice.below(scene.moments.len() as u64) as usize].clone();
                let size = if dice.below(4) == 0 { (1 + dice.below(SIZE as u64 / 512)) * 512 } else { SIZE as u64 };
                (moment, size)
            };
            let ((from, from_size), (to, to_size)) = (draw(), draw());
            let number = 1 + dice.below(2) as u16;
            let case = format!("seed {seed}, round {round}: disk {number} at {from:?} and {to:?}");
            let (a, b) = (scene.view(&from), scene.view(&to));
            let (a, b) = (sized(&a, number, from_size), sized(&b, number, to_size));
            let old = scene.expected(&from, number)[..from_size as usize].to_vec();
            let new = scene.expected(&to, number)[..to_size as usize].to_vec();
            let right = naive(&old, &new);
            assert_eq!(changes(&a, &b).unwrap(), right, "{case}");
            // A file that holds the same is the same, for differences and for digests.
            let (old, new) = (Raw(old), Raw(new));
            assert_eq!(changes(&a, &new).unwrap(), right, "{case}");
            assert_eq!(changes(&old, &b).unwrap(), right, "{case}");
            assert_eq!(changes(&a, &old).unwrap(), [], "{case}");
            assert_eq!((digest_of(&a), digest_of(&b)), (digest_of(&old), digest_of(&new)), "{case}");
            assert_eq!(digest_of(&a) == digest_of(&b), old.0 == new.0, "{case}");
            equal += u64::from(right.is_empty() && from != to);
            grown += u64::from(from_size != to_size && !right.is_empty());
        }
    }
    assert!(equal > 0 && grown > 0, "{equal} {grown}: the dice never met what this is for");
}

#[test]
fn only_what_may_differ_is_read() {
    let mut scene = Scene::new(77);
    let before = scene.moments.last().unwrap().clone();
    let at = |scene: &Scene| {
        let mut moment = before.clone();
        moment.last_mut().unwrap().1 = scene.source.lsn;
        moment
    };
    let count = |scene: &Scene, from: &[(Timeline, Lsn)], to: &[(Timeline, Lsn)]| {
        let (from, to) = (scene.view(from), scene.view(to));
        let [from, to] = [&from, &to].map(|view| Counting { disk: sized(view, 1, SIZE as u64), read: Cell::new(0) });
        let found = changes(&from, &to).unwrap();
        (found, from.read.get(), to.read.get())
    };
    let append = |scene: &mut Scene| {
        for frame in scene.source.frames(Compression::None) {
            scene.rig.append(frame);
        }
        scene.rig.sync();
        at(scene)
    };
    // Two sectors in the middle of two blocks.
    scene.source.write(1, Extent::new(3 * 4096 - 512, 1024), 5);
    let wrote = append(&mut scene);
    let (found, old, new) = count(&scene, &before, &wrote);
    assert_eq!(found, [Change { extent: Extent::new(2 * 4096, 8192), zero: false }]);
    assert_eq!((old, new), (8192, 8192));
    // Once more the same: read, and no difference.
    scene.source.write(1, Extent::new(3 * 4096 - 512, 1024), 5);
    let again = append(&mut scene);
    assert_eq!(count(&scene, &wrote, &again), (vec![], 8192, 8192));
    // Zeros over zeros are not even read.
    scene.source.clear(RecordKind::Discard, 1, Extent::new(0, 8192));
    let cleared = append(&mut scene);
    scene.source.clear(RecordKind::Zero, 1, Extent::new(4096, 4096));
    let zeroed = append(&mut scene);
    assert_eq!(count(&scene, &cleared, &zeroed), (vec![], 0, 0));
    // A note changes nothing.
    scene.source.note(RecordKind::Mark, None, mark_note());
    let marked = append(&mut scene);
    assert_eq!(count(&scene, &zeroed, &marked), (vec![], 0, 0));
}

/// Two sessions that forked at one moment give their records the same LSNs: they are not the same records.
#[test]
fn sessions_differ_from_the_trunk_and_from_each_other() {
    let scene = Scene::new(5);
    let fork = scene.moments[30].clone();
    let now = |step: u64| Now { wall: WallTime(1_700_000_000_000_000_000 + step), mono: MonoTime(step) };
    let open = |number: u8, stores: &Arc<dyn Storage>, life: u8| {
        let options = SessionOptions {
            moment: scene.view(&fork),
            keep_free_bytes: 0,
            segment_bytes: u64::MAX,
            compression: Compression::None,
            keys: KeyHolder::default(),
        };
        let mut drawn = 0;
        let ids = move || {
            drawn += 1;
            [number, life, drawn, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]
        };
        Session::open(stores, options, Box::new(ids), now(1)).unwrap()
    };
    let mut models = Vec::new();
    let mut stores: Vec<Arc<dyn Storage>> = Vec::new();
    for number in [21, 22] {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let (trunk, lsn) = *fork.last().unwrap();
        let info = TimelineInfo {
            id: timeline(number),
            number: 1,
            parent: Some(trunk),
            fork: lsn,
            last: None,
            state: TimelineState::Open,
            role: TimelineRole::Session,
            opened: WallTime(1),
        };
        create(storage.as_ref(), scene.rig.writer.manifest(), "s", info).unwrap();
        let session = open(number, &storage, 1);
        let mut model = scene.expected(&fork, 1);
        // At the same place, under the same LSN; and somewhere of its own.
        for (step, at) in [(2, 40_960), (3, 512 * u64::from(number))] {
            let data = vec![number ^ step as u8; 6144];
            model[at as usize..][..6144].copy_from_slice(&data);
            session.write(now(step), disk(1), Payload::new(at, Bytes::from(data)).unwrap()).unwrap();
        }
        session.flush(now(9)).unwrap();
        check(&scene, &session, &model, &fork);
        session.close(now(10)).unwrap();
        models.push(model);
        stores.push(storage);
    }
    // As they are found when they are opened again: now their records have names.
    let sessions = [open(21, &stores[0], 2), open(22, &stores[1], 2)];
    for (session, model) in sessions.iter().zip(&models) {
        check(&scene, session, model, &fork);
    }
    let [a, b] = [0, 1].map(|number: usize| sized(sessions[number].view(), 1, SIZE as u64));
    assert_eq!(changes(&a, &b).unwrap(), naive(&models[0], &models[1]));
}

/// A session against its fork, and against what the trunk became.
fn check(scene: &Scene, session: &Session, model: &[u8], fork: &[(Timeline, Lsn)]) {
    let here = sized(session.view(), 1, SIZE as u64);
    for moment in [fork, scene.moments.last().unwrap()] {
        let trunk = scene.view(moment);
        let there = sized(&trunk, 1, SIZE as u64);
        let then = scene.expected(moment, 1);
        assert_eq!(changes(&there, &here).unwrap(), naive(&then, model));
        assert_eq!(changes(&here, &there).unwrap(), naive(model, &then));
    }
    assert_eq!(digest_of(&here), digest_of(&Raw(model.to_vec())));
}

/// What does not verify is never compared: the comparison ends and says which side it was.
#[test]
fn damage_ends_a_comparison_and_names_the_side() {
    let mut scene = Scene::new(8);
    let before = scene.moments.last().unwrap().clone();
    scene.source.write(1, Extent::new(128 << 10, 64 << 10), 3);
    for frame in scene.source.frames(Compression::None) {
        scene.rig.append(frame);
    }
    scene.rig.sync();
    let mut after = before.clone();
    after.last_mut().unwrap().1 = scene.source.lsn;
    let (old, new) = (scene.view(&before), scene.view(&after));
    let data = scene.source.model.history.last().unwrap().4.clone().unwrap();
    let storage = &scene.rig.storage;
    for name in storage.list(DIRECTORY).unwrap() {
        let file = storage.open(&format!("{DIRECTORY}/{name}"), true).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        if let Some(at) = bytes.windows(512).position(|window| *window == data[..512]) {
            file.write_all_at(at as u64, &[bytes[at] ^ 1]).unwrap();
        }
    }
    let [old, new] = [&old, &new].map(|view| sized(view, 1, SIZE as u64));
    assert!(matches!(changes(&old, &new), Err(DiffError::To(ReadError::Frame { .. }))));
    assert!(matches!(changes(&new, &old), Err(DiffError::From(ReadError::Frame { .. }))));
    assert!(digest(&new, |_| true).is_err());
}
