//! What the tests share: a journal with its driver, a source of records, and a model of the disks.

use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, Note, Part, Payload, RawFrame, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::trust::{KeyHolder, Keyring, NewKey, Recorder, SealCall, WrappingKey};
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const DIRECTORY: &str = "journal";

pub(crate) fn disk(number: u16) -> DiskId {
    DiskId::new(number).unwrap()
}

pub(crate) fn group() -> GroupId {
    GroupId::new([7; 16]).unwrap()
}

pub(crate) fn timeline(number: u8) -> Timeline {
    Timeline::new([number; 16]).unwrap()
}

/// A small, good enough and repeatable source of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) fn options() -> Options {
    Options {
        directory: DIRECTORY.to_owned(),
        segment_bytes: 1 << 20,
        keep_free_bytes: 0,
        commit_bytes: 256 << 10,
        ..Options::default()
    }
}

/// How a store of a test is sealed at rest, and every seal that was made for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtRest {
    pub(crate) key: Option<WrappingKey>,
    pub(crate) recorder: Recorder,
}

impl AtRest {
    pub(crate) fn sealed() -> Self {
        Self { key: Some(WrappingKey::parse(&[0x77; 32]).unwrap()), recorder: Recorder::default() }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::default(), Self::sealed()]
    }

    pub(crate) fn holder(&self) -> KeyHolder {
        KeyHolder::from(self.key.clone()).recorded(self.recorder.clone())
    }

    /// The keys of a manifest; none where nothing is sealed.
    pub(crate) fn keys(&self, manifest: &Manifest) -> Arc<Keyring> {
        self.holder().unlock(manifest.replica, &manifest.keys).unwrap()
    }

    /// A store that was made just now, as who opens it finds it.
    pub(crate) fn made(&self, opened: Opened) -> Opened {
        if self.key.is_none() { opened } else { Opened { keys: self.keys(&opened.manifest), ..opened } }
    }

    pub(crate) fn open(&self, storage: &dyn Storage, witness: Option<Lsn>) -> Result<Opened, OpenError> {
        open_with(storage, DIRECTORY, witness, &self.holder())
    }

    pub(crate) fn look(&self, storage: &dyn Storage, witness: Option<Lsn>) -> Result<Looked, OpenError> {
        look_with(storage, DIRECTORY, witness, &self.holder())
    }

    pub(crate) fn reader(&self, storage: Arc<dyn Storage>, manifest: &Manifest) -> Arc<Reader> {
        Arc::new(Reader::new(storage, DIRECTORY, 1 << 20).with_keys(self.keys(manifest)))
    }

    /// A replica key, drawn from these dice.
    pub(crate) fn draw(&self, replica: ReplicaId, dice: &mut Dice) -> Option<NewKey> {
        self.holder().draw(replica, &mut || std::array::from_fn(|_| dice.next() as u8), WallTime(1))
    }

    /// That no nonce was used twice with a key, but for the same bytes; gives how many seals there were.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let mut seen = BTreeMap::new();
        let calls = self.recorder.calls();
        for SealCall { key, nonce, plain } in &calls {
            if *seen.entry((*key, *nonce)).or_insert(*plain) != *plain {
                return Err(format!("two contents under nonce {nonce:?} of {key:?}"));
            }
        }
        Ok(calls.len())
    }
}

/// A journal with the in-order driver.
pub(crate) struct Rig {
    pub(crate) at_rest: AtRest,
    pub(crate) keys: Arc<Keyring>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) writer: Writer,
    pub(crate) executor: Executor,
    pub(crate) now: MonoTime,
    pub(crate) repairs: Vec<Repair>,
}

impl Rig {
    pub(crate) fn create(storage: Arc<dyn Storage>) -> Self {
        Self::create_at_rest(storage, &AtRest::default())
    }

    pub(crate) fn create_at_rest(storage: Arc<dyn Storage>, at_rest: &AtRest) -> Self {
        let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
        let opened = create(storage.as_ref(), manifest).unwrap();
        Self::with_at_rest(storage, opened, 1, options(), at_rest)
    }

    pub(crate) fn on(storage: Arc<dyn Storage>, opened: Opened, seed: u64) -> Self {
        Self::with(storage, opened, seed, options())
    }

    pub(crate) fn with(storage: Arc<dyn Storage>, opened: Opened, seed: u64, options: Options) -> Self {
        Self::with_at_rest(storage, opened, seed, options, &AtRest::default())
    }

    pub(crate) fn with_at_rest(
        storage: Arc<dyn Storage>,
        opened: Opened,
        seed: u64,
        options: Options,
        at_rest: &AtRest,
    ) -> Self {
        let mut dice = Dice(seed);
        let ids = Box::new(move || {
            let (a, b) = (dice.next(), dice.next());
            let mut id = [0; 16];
            id[..8].copy_from_slice(&a.to_le_bytes());
            id[8..].copy_from_slice(&b.to_le_bytes());
            id
        });
        let repairs = opened.repairs.clone();
        let opened = at_rest.made(opened);
        let keys = Arc::clone(&opened.keys);
        let writer = Writer::new(opened, options, ids);
        let (at_rest, executor) = (at_rest.clone(), Executor::new(Arc::clone(&storage)));
        let mut rig = Self { at_rest, keys, executor, storage, writer, now: MonoTime(1), repairs };
        rig.rotate(seed ^ 0x5ea1);
        rig
    }

    /// Takes a new replica key, if the store is sealed at rest.
    pub(crate) fn rotate(&mut self, seed: u64) {
        if let Some(key) = self.at_rest.draw(self.writer.manifest().replica, &mut Dice(seed)) {
            self.writer.seal_at_rest(key).unwrap();
        }
    }

    pub(crate) fn open_at_rest(storage: Arc<dyn Storage>, seed: u64, at_rest: &AtRest) -> Result<Self, OpenError> {
        let opened = at_rest.open(storage.as_ref(), None)?;
        Ok(Self::with_at_rest(storage, opened, seed, options(), at_rest))
    }

    pub(crate) fn open(storage: Arc<dyn Storage>, seed: u64) -> Result<Self, OpenError> {
        let opened = open(storage.as_ref(), DIRECTORY, None)?;
        Ok(Self::on(storage, opened, seed))
    }

    pub(crate) fn drain(&mut self) {
        drain(&mut self.writer, &self.executor, self.now);
    }

    pub(crate) fn start(&mut self, id: Timeline, parent: Option<Timeline>, fork: Lsn) {
        let number = self.writer.manifest().timelines.len() as u32 + 1;
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        let info = TimelineInfo { id, number, parent, fork, last: None, state, role, opened: WallTime(1) };
        self.writer.open_timeline(info);
        self.drain();
    }

    /// Appends, giving the driver its turns while the writer says "not now".
    pub(crate) fn append(&mut self, frame: EncodedFrame) -> Appended {
        self.offer(frame, Self::drain).unwrap_or_else(|why| panic!("{why}")).expect("a frame that is taken some time")
    }

    /// Offers a frame until it is taken, with a turn of somebody else each time that it is not; none: it never was.
    pub(crate) fn offer(
        &mut self,
        mut frame: EncodedFrame,
        mut turn: impl FnMut(&mut Self),
    ) -> Result<Option<Appended>, Refusal> {
        for _ in 0..50 {
            match self.writer.append(self.now, frame) {
                Ok(appended) => return Ok(Some(appended)),
                Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                Err(refused) => return Err(refused.why),
            }
            turn(self);
        }
        Ok(None)
    }

    pub(crate) fn sync(&mut self) {
        self.writer.request_sync();
        self.drain();
    }

    pub(crate) fn close(&mut self) {
        self.writer.close(true);
        self.drain();
        assert_eq!(self.writer.state(), WriterState::Closed);
    }

    /// Merges the index as far as it goes, a little at a time; how many runs were made.
    pub(crate) fn merge_index(&mut self, budget: u64) -> usize {
        let mut made = 0;
        while self.merge_one(budget) {
            made += 1;
        }
        made
    }

    /// One of those; whether there was one.
    pub(crate) fn merge_one(&mut self, budget: u64) -> bool {
        let Some(task) = self.writer.next_index_merge() else { return false };
        let mut merge = IndexMerge::new(&self.reader(), &self.writer.snapshot(), task).unwrap();
        let run = loop {
            if let Some(run) = merge.step(budget).unwrap() {
                break run;
            }
        };
        assert!(self.writer.publish_run(run).is_some());
        self.drain();
        true
    }

    /// Empties the footers whose indexes runs hold; how many runs say so now.
    pub(crate) fn empty_footers(&mut self) -> usize {
        let reader = self.reader();
        for done in 0.. {
            let Some(task) = self.writer.next_emptying() else { return done };
            let mut emptying = IndexEmptying::new(&reader, task);
            while !emptying.step().unwrap() {}
            assert!(self.writer.emptied(emptying.run()).is_some());
            self.drain();
        }
        unreachable!()
    }

    pub(crate) fn reader(&self) -> Arc<Reader> {
        let reader = Reader::new(Arc::clone(&self.storage), DIRECTORY, 1 << 20);
        Arc::new(reader.with_keys(Arc::clone(&self.keys)))
    }
}

/// One disk's bytes, and what every LSN made of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// State after each LSN: what changed, so that any moment can be played.
    pub(crate) history: Vec<(Lsn, Timeline, u16, Extent, Option<Bytes>)>,
}

impl Model {
    pub(crate) fn at(&self, path: &[(Timeline, Lsn)], disk: u16, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        for (lsn, timeline, of, extent, data) in &self.history {
            let counts = path.iter().any(|(on, upto)| on == timeline && lsn <= upto);
            if !counts || *of != disk {
                continue;
            }
            let end = (extent.end() as usize).min(size);
            let start = (extent.offset as usize).min(end);
            match data {
                Some(data) => bytes[start..end].copy_from_slice(&data[..end - start]),
                None => bytes[start..end].fill(0),
            }
        }
        bytes
    }
}

/// Makes records and frames of them, and plays them on the model.
pub(crate) struct Source {
    pub(crate) dice: Dice,
    pub(crate) lsn: Lsn,
    pub(crate) prev: Lsn,
    pub(crate) timeline: Timeline,
    pub(crate) time: u64,
    pub(crate) epoch: u32,
    pub(crate) size: u64,
    pub(crate) model: Model,
    pub(crate) stamps: Vec<(Lsn, Stamp)>,
    /// LSNs of marks, with their timelines.
    pub(crate) marks: Vec<(Timeline, Lsn)>,
    encoder: Encoder,
    parts: Vec<Part>,
}

impl Source {
    pub(crate) fn new(seed: u64, timeline: Timeline) -> Self {
        Self {
            dice: Dice(seed),
            lsn: Lsn(0),
            prev: Lsn(0),
            timeline,
            time: 1_700_000_000_000_000_000,
            epoch: 1,
            size: 1 << 20,
            model: Model::default(),
            stamps: Vec::new(),
            marks: Vec::new(),
            encoder: Encoder::new(),
            parts: Vec::new(),
        }
    }

    /// Goes on on another timeline, with a jump of LSNs as a filter makes it.
    pub(crate) fn fork(&mut self, timeline: Timeline, above: Lsn) {
        self.timeline = timeline;
        self.lsn = Lsn(above.0.max(self.lsn.0) + 1000);
        self.prev = Lsn::ZERO;
        self.parts.clear();
    }

    fn stamp(&mut self) -> (Lsn, WallTime) {
        self.lsn = self.lsn.next();
        self.time += self.dice.below(1_000_000);
        let time = WallTime(self.time);
        self.stamps.push((self.lsn, Stamp { epoch: ClockEpoch(self.epoch), time }));
        (self.lsn, time)
    }

    pub(crate) fn write(&mut self, number: u16, extent: Extent, fill: u8) {
        let random = fill.is_multiple_of(3);
        let mut noise = Dice(u64::from(fill) * 77 + self.lsn.0);
        let data: Bytes =
            (0..extent.length).map(|at| if random { noise.next() as u8 } else { fill ^ (at >> 9) as u8 }).collect();
        let payload = Payload::new(extent.offset, data.clone()).unwrap();
        let (lsn, time) = self.stamp();
        self.parts.extend(payload.into_parts(RecordKind::Write, disk(number), lsn, time));
        self.model.history.push((lsn, self.timeline, number, extent, Some(data)));
    }

    /// A write of these bytes.
    pub(crate) fn bytes(&mut self, number: u16, offset: u64, bytes: &[u8]) {
        let (data, extent) = (Bytes::copy_from_slice(bytes), Extent::new(offset, bytes.len() as u64));
        let payload = Payload::new(offset, data.clone()).unwrap();
        let (lsn, time) = self.stamp();
        self.parts.extend(payload.into_parts(RecordKind::Write, disk(number), lsn, time));
        self.model.history.push((lsn, self.timeline, number, extent, Some(data)));
    }

    /// A write of which every fourth part is zeros that go without their bytes, as a proxy sends them.
    pub(crate) fn write_with_zeros(&mut self, number: u16, extent: Extent, fill: u8) {
        let mut data: Vec<u8> = (0..extent.length).map(|at| fill ^ (at >> 12) as u8 | 1).collect();
        let every = 4 * PART_MAX as usize;
        data.chunks_mut(every).filter(|piece| piece.len() == every).for_each(|piece| piece[..every / 4].fill(0));
        self.bytes(number, extent.offset, &data);
        for part in self.parts.iter_mut().filter(|part| part.lsn == self.lsn) {
            if part.data.iter().all(|byte| *byte == 0) {
                (part.kind, part.crc, part.data) = (RecordKind::Zero, 0, Bytes::new());
            }
        }
    }

    pub(crate) fn clear(&mut self, kind: RecordKind, number: u16, extent: Extent) {
        let (lsn, time) = self.stamp();
        self.parts.push(Part::plain(kind, Some(disk(number)), extent, lsn, time));
        self.model.history.push((lsn, self.timeline, number, extent, None));
    }

    pub(crate) fn note(&mut self, kind: RecordKind, number: Option<u16>, note: Note) -> Lsn {
        let (lsn, time) = self.stamp();
        if kind == RecordKind::Mark {
            self.marks.push((self.timeline, lsn));
        }
        self.parts.push(Part::noted(kind, number.map(disk), lsn, time, note));
        lsn
    }

    /// A record that says nothing but its kind.
    pub(crate) fn plain(&mut self, part: Part) -> Lsn {
        let (lsn, time) = self.stamp();
        self.parts.push(Part { lsn, time, ..part });
        lsn
    }

    /// Any record that changes a disk.
    pub(crate) fn any(&mut self) {
        let number = 1 + self.dice.below(2) as u16;
        let sectors = self.size / SECTOR;
        let start = self.dice.below(sectors);
        let most = if self.dice.below(8) == 0 { 200 } else { 20 };
        let count = (1 + self.dice.below(most)).min(sectors - start);
        let extent = Extent::new(start * SECTOR, count * SECTOR);
        match self.dice.below(10) {
            0 => self.clear(RecordKind::Zero, number, extent),
            1 => {
                let all = (sectors - start) * SECTOR;
                self.clear(RecordKind::Discard, number, Extent::new(extent.offset, all.min(extent.length * 40)));
            }
            _ => {
                let fill = self.dice.next() as u8;
                self.write(number, extent, fill);
            }
        }
    }

    /// What was made since, as frames: as few as hold it.
    pub(crate) fn frames(&mut self, compression: Compression) -> Vec<EncodedFrame> {
        self.short_frames(compression, FRAME_RECORDS_MAX)
    }

    /// The same, with so many parts in a frame at most.
    pub(crate) fn short_frames(&mut self, compression: Compression, most: usize) -> Vec<EncodedFrame> {
        let mut frames = Vec::new();
        let mut parts = std::mem::take(&mut self.parts).into_iter().peekable();
        while parts.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(part) = parts.next_if(|part| bytes + part.data.len() as u64 <= FRAME_PLAIN_MAX) {
                bytes += part.data.len() as u64;
                batch.push(part);
                if batch.len() == most {
                    break;
                }
            }
            let last = batch.last().unwrap().clone();
            let settled = if last.is_last() { last.lsn } else { last.lsn.prev() };
            let (timeline, prev_lsn, epoch) = (self.timeline, self.prev, ClockEpoch(self.epoch));
            let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts: batch, plain_bytes: bytes };
            self.prev = last.lsn;
            frames.push(self.encoder.encode(raw, group(), compression));
        }
        frames
    }
}

/// Reads a whole disk of a view.
pub(crate) fn restore(view: &View, number: u16, size: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0xee; size as usize];
    view.read(disk(number), 0, &mut bytes, &Nothing)?;
    Ok(bytes)
}

/// A path inside one journal.
pub(crate) fn path(reader: &Arc<Reader>, snapshot: &Snapshot, elements: &[(Timeline, Lsn)]) -> Vec<PathElement> {
    let element = |(timeline, upto): &(Timeline, Lsn)| PathElement {
        reader: Arc::clone(reader),
        snapshot: snapshot.clone(),
        timeline: *timeline,
        upto: *upto,
    };
    elements.iter().map(element).collect()
}
