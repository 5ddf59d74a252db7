//! A replica with as many points and layers as anybody keeps: whether it opens, lists and finds as fast as one with few.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, Frames, RECORDS, WRITE, disk, timeline};
use crate::sparse::Sparse;
use crate::store::{DIRECTORY, Rig, zeros};
use crate::{Failure, Plan, Scratch};
use cdp_core::frame::{Compression, Mark, PointKinds};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::Merge;
use cdp_core::replica::{Replica, retention};
use cdp_core::types::*;
use cdp_core::when::{PointName, When};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What is compared: what is asked for, and a hundredth of it.
const POINTS: u64 = 300_000;
const LAYERS: u64 = 1000;
const PART: u64 = 100;
/// A point every 15 seconds; every so many of them have a label.
const RPO_NS: u64 = 15_000_000_000;
const LABELLED: u64 = 100;
/// Bytes of the disk, and blocks that change between two layers.
const DISK: u64 = 1 << 30;
const CHANGED: usize = RECORDS - 1;
/// Points in a list, as when nobody says how many.
const LISTED: usize = 1000;

/// A replica under construction, with everything that is needed to go on.
struct Making {
    storage: Arc<dyn Storage>,
    rig: Rig,
    frames: Frames,
    dice: Dice,
    part: cdp_core::frame::Part,
}

/// What was made.
struct Made {
    path: PathBuf,
    layers: Vec<Lsn>,
    points: Vec<(Lsn, WallTime)>,
}

impl Making {
    fn begin(path: &Path) -> Result<Self, Failure> {
        let storage: Arc<dyn Storage> = Arc::new(Sparse::new(Arc::new(Disk::create(path)?)));
        let mut rig = Rig::create(Arc::clone(&storage), 1 << 40)?;
        let mut base = BaseWriter::create(storage.as_ref(), rig.writer.manifest().replica, disk(), DISK)?;
        base.zeros(DISK, Lsn::ZERO)?;
        let base = base.finish(storage.as_ref(), Lsn::ZERO)?.named(Lsn::ZERO);
        let (name, source, added, removed, stopped) = ("disk".into(), String::new(), Lsn::ZERO, None, None);
        let info = DiskInfo { id: disk(), name, size: DISK, source, added, removed, stopped, base: Some(base) };
        rig.writer.edit(|manifest| manifest.disks.push(info));
        rig.drain();
        Ok(Self { storage, rig, frames: Frames::new(Compression::None), dice: Dice(3), part: zeros()? })
    }

    /// A point after so many writes.
    fn point(&mut self, writes: usize, mark: Mark) -> Result<(Lsn, WallTime), Failure> {
        self.frames.rest(RPO_NS);
        let offsets: Vec<_> = (0..writes).map(|_| self.dice.below(DISK / WRITE) * WRITE).collect();
        let (frame, lsn) = self.frames.point(&self.part, offsets, mark);
        self.rig.append(frame)?;
        Ok((lsn, self.frames.time()))
    }

    /// A long-term point; everything up to it is merged, and the one before is kept.
    fn layer(&mut self) -> Result<Lsn, Failure> {
        let kinds = PointKinds { long: true, ..PointKinds::default() };
        let (lsn, time) = self.point(CHANGED, Mark { kinds, ..Mark::default() })?;
        self.rig.sync();
        let layer = LayerInfo { timeline: timeline(), lsn, elapsed_ms: lsn.0 };
        self.rig.writer.edit(|manifest| manifest.retention.layers.push(layer));
        self.rig.writer.roll();
        self.rig.drain();
        let to = StampedMoment { timeline: timeline(), lsn, stamp: Stamp { epoch: ClockEpoch(1), time } };
        let (storage, now) = (Arc::clone(&self.storage), Now { wall: time, mono: MonoTime(1) });
        let replica = self.replica()?;
        let held = retention::held(replica.manifest());
        let keep = retention::to_keep(replica.manifest(), &held, replica.catalogue());
        if let Some(keep) = &keep {
            let id = Timeline::new([(keep.number % 250 + 2) as u8; 16]).ok_or("an id of zeros")?;
            kept::create(storage.as_ref(), replica.manifest(), keep.number, id, now)?;
        }
        let point = retention::point_at(replica.catalogue(), &to);
        retention::begin(&mut self.rig.writer, to, point, keep);
        self.rig.drain();
        let manifest = self.rig.writer.manifest().clone();
        let mut dice = Dice(lsn.0);
        let ids = Box::new(move || {
            [dice.next().to_le_bytes(), dice.next().to_le_bytes()].concat().try_into().unwrap_or([1; 16])
        });
        let keys = Arc::clone(replica.keys());
        let open = |kept: &KeptInfo| Space::open(storage.as_ref(), kept.number, (0, 1 << 20), (&keys, ids), now);
        let space = manifest.kept.last().map(open).transpose()?;
        let path = replica.path(timeline(), lsn)?;
        let mut bases = cdp_core::replica::Bases::default();
        let base = manifest.disks[0].base.ok_or("a base was made")?;
        bases.insert(disk(), Arc::new(Base::open(storage.as_ref(), manifest.replica, disk(), base.into())?));
        let mut merge = Merge::begin(&storage, &manifest, to, &path, &Arc::new(bases.changed_by(to)), space)?;
        while merge.step(now, 8 << 20)? {}
        let bases = merge.finish(now)?;
        retention::end(&mut self.rig.writer, &bases);
        self.rig.drain();
        Ok(lsn)
    }

    fn replica(&self) -> Result<Replica, Failure> {
        let (manifest, snapshot) = (self.rig.writer.manifest().clone(), self.rig.writer.snapshot());
        Ok(Replica::load(Arc::clone(&self.storage), manifest, snapshot, Lsn(u64::MAX))?)
    }
}

fn made(scratch: &Scratch, points: u64, layers: u64) -> Result<Made, Failure> {
    let (path, begin) = (scratch.path(&format!("points-{points}")), Instant::now());
    let mut making = Making::begin(&path)?;
    let layers = (0..layers).map(|_| making.layer()).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for number in 0..points {
        let label = if number % LABELLED == 0 { format!("point {number}") } else { String::new() };
        let kinds = PointKinds { short: true, ..PointKinds::default() };
        found.push(making.point(1, Mark { kinds, label, ..Mark::default() })?);
    }
    making.rig.close();
    eprintln!("  {points} points and {} layers made in {:.0} s", layers.len(), begin.elapsed().as_secs_f64());
    Ok(Made { path, layers, points: found })
}

fn open_replica(path: &Path) -> Result<Replica, Failure> {
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(path)?);
    let Looked { manifest, snapshot, .. } = look(storage.as_ref(), DIRECTORY, None)?;
    Ok(Replica::load(storage, manifest, snapshot, Lsn(u64::MAX))?)
}

/// The newest points, with the disks that each has.
fn list(replica: &Replica) -> Result<usize, Failure> {
    let branch = replica.catalogue().trunk().ok_or("a trunk was made")?;
    let newest = branch.points().iter().rev().filter(|point| branch.is_restorable(point.id.lsn)).take(LISTED);
    Ok(newest.map(|point| replica.complete_disks(point.id.timeline, point.id.lsn).len()).sum())
}

/// Opens a layer and reads some of it.
fn read_layer(replica: &Replica, lsn: Lsn, dice: &mut Dice) -> Result<(), Failure> {
    let view = replica.view(timeline(), lsn)?;
    for _ in 0..16 {
        view.read(disk(), dice.below(DISK / WRITE) * WRITE, &mut [0; WRITE as usize])?;
    }
    Ok(())
}

/// What is asked of a replica, and how many ms it may take.
const ASKED: [(&str, f64); 10] = [
    ("points-open", 1000.0),
    ("points-list", 50.0),
    ("points-by-id", 5.0),
    ("points-by-lsn", 5.0),
    ("points-by-label", 50.0),
    ("points-by-time", 5.0),
    ("points-oldest-layer", 1000.0),
    ("points-middle-layer", 1000.0),
    ("points-newest-layer", 1000.0),
    ("points-manifest", 100.0),
];

/// Milliseconds of everything that is asked, in the order of [`ASKED`].
fn ask(made: &Made, dice: &mut Dice) -> Result<[f64; 10], Failure> {
    let mut found = [0.0; 10];
    let mut timed = |number: usize, begin: Instant| found[number] = begin.elapsed().as_secs_f64() * 1e3;
    let begin = Instant::now();
    let replica = open_replica(&made.path)?;
    timed(0, begin);
    let begin = Instant::now();
    if list(&replica)? < LISTED.min(made.points.len()) {
        return Err("a point has no disk".into());
    }
    timed(1, begin);
    let (lsn, time) = made.points[dice.below(made.points.len() as u64) as usize];
    let label = made.points.len() as u64 / LABELLED;
    let label = format!("point {}", dice.below(label) * LABELLED).parse()?;
    let id = PointName::from(PointId { timeline: timeline(), lsn });
    let moments = [When::Point(id), When::Lsn { timeline: None, lsn }, When::Label(label), When::Time(time)];
    for (number, when) in (2..).zip(&moments) {
        let begin = Instant::now();
        let moment = replica.resolve(when)?;
        timed(number, begin);
        if number != 4 && moment.lsn != lsn {
            return Err(format!("{when:?} is {moment:?}").into());
        }
    }
    let last = made.layers.len() - 1;
    // The newest one that is kept: behind it the bases are.
    for (number, layer) in (6..).zip([0, last / 2, last - 1]) {
        let begin = Instant::now();
        read_layer(&replica, made.layers[layer], dice)?;
        timed(number, begin);
    }
    let begin = Instant::now();
    Manifest::decode(&replica.manifest().encode())?;
    timed(9, begin);
    Ok(found)
}

/// `points`: ms of what people ask of a replica with 300,000 points and 1,000 layers, against what is bearable; and how long the same
/// takes with a hundredth of both.
pub(crate) fn points(plan: &Plan) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let (points, layers) = (POINTS / plan.fewer, LAYERS / plan.fewer);
    let stores = [made(&scratch, points, layers)?, made(&scratch, points / PART, (layers / PART).max(3))?];
    let mut dice = Dice(6);
    let mut times: [Vec<[f64; 10]>; 2] = Default::default();
    for _ in 0..plan.rounds {
        for (made, times) in stores.iter().zip(&mut times) {
            times.push(ask(made, &mut dice)?);
        }
    }
    let manifest = std::fs::metadata(stores[0].path.join(MANIFEST_NAME))?.len();
    for (number, (id, most)) in ASKED.iter().enumerate() {
        let of = |times: &[[f64; 10]]| times.iter().map(|times| times[number]).collect::<Vec<_>>();
        let ours = of(&times[0]);
        let mut conditions = vec![("hundredth", format!("{:.2}ms", median(&of(&times[1]))))];
        if *id == "points-manifest" {
            conditions.push(("bytes", manifest.to_string()));
        }
        let (unit, reach, limit) = ("ms", Reach::AtMost(1.0), Some(*most));
        println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold: true });
    }
    Ok(())
}
