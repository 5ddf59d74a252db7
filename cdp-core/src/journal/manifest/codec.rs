//! The manifest as bytes: sections with a tag and a length, all under one checksum.

use super::*;
use crate::journal::bytes::{FormatError, Put, Take};
use crate::journal::level;
use crate::trust::{KEYS_MAX, WrappedKey};
use crate::types::{DISK_MAX, DISKS_MAX, NAME_MAX};
use std::collections::BTreeSet;

const VERSION: u16 = 1;
const WHAT: &str = "manifest";

/// A reader that does not know the section refuses the manifest.
const MUST_UNDERSTAND: u16 = 1;

/// Tags of sections.
const IDENTITY: u16 = 1;
const DISKS: u16 = 2;
const TIMELINES: u16 = 3;
const SEGMENTS: u16 = 4;
const POLICY: u16 = 5;
const SESSIONS: u16 = 6;
const SEEDING: u16 = 7;
const PINS: u16 = 8;
const RUNS: u16 = 9;
const KEPT: u16 = 10;
const KEYS: u16 = 11;
const RETENTION: u16 = 12;
const MERGE: u16 = 13;
const CHANGES: u16 = 14;
const ROOM: u16 = 15;
const OLDEST_POINT: u16 = 16;
const CUT: u16 = 17;

/// Sections that are read here.
const KNOWN: [u16; 17] = [
    IDENTITY,
    DISKS,
    TIMELINES,
    SEGMENTS,
    POLICY,
    SESSIONS,
    SEEDING,
    PINS,
    RUNS,
    KEPT,
    KEYS,
    RETENTION,
    MERGE,
    CHANGES,
    ROOM,
    OLDEST_POINT,
    CUT,
];

/// Bounds on lists, far above what can be used.
const TIMELINES_MAX: usize = 1 << 20;
const SEGMENTS_MAX: usize = 1 << 20;
const SESSIONS_MAX: usize = 1 << 16;
const PINS_MAX: usize = 1 << 20;
const RUNS_MAX: usize = 1 << 18;
/// Removed disks stay listed while history knows them.
pub(super) const DISKS_LISTED_MAX: usize = DISKS_MAX * 64;

impl Manifest {
    /// So many timelines are opened at most, a quarter of what a reader takes.
    pub const TIMELINES_OPENED: usize = TIMELINES_MAX / 4;
    /// So many disks are listed at most, those that are gone too.
    pub const DISKS_LISTED: usize = DISKS_LISTED_MAX;

    /// The list that is longer than a reader takes, if one is: who adds to one sees to it that there is none.
    #[must_use]
    pub fn too_long(&self) -> Option<&'static str> {
        let lists = [
            ("disks", self.disks.len(), DISKS_LISTED_MAX),
            ("timelines", self.timelines.len(), TIMELINES_MAX),
            ("segments", self.segments.len(), SEGMENTS_MAX),
            ("sessions", self.sessions.len(), SESSIONS_MAX),
            ("seeding", self.seeding.len(), DISKS_LISTED_MAX),
            ("resizes", self.resizing.len(), DISKS_LISTED_MAX),
            ("pins", self.pins.len(), PINS_MAX),
            ("index runs", self.runs.len(), RUNS_MAX),
            ("keys", self.keys.len(), KEYS_MAX),
        ];
        let long = lists.into_iter().find(|(_, count, max)| count > max).map(|(what, ..)| what);
        let kept = retention::too_many_kept(&self.kept).then_some("kept moments");
        long.or(kept).or(self.retention.too_long())
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.too_long(), None, "a list that no reader takes");
        let mut put = Put::begin(MANIFEST_MAGIC, VERSION, 0);
        put.u64(self.generation.0);
        section(&mut put, IDENTITY, |put| {
            put.bytes(self.replica.bytes()).bytes(self.group.bytes()).text(&self.name);
            put.u64(self.durable.0).u64(self.floor.0).u64(self.reserved.0).u64(self.next_segment);
            put.u8(u8::from(self.clean)).u64(self.activity_generation);
        });
        section(&mut put, DISKS, |put| list(put, &self.disks, put_disk));
        section(&mut put, TIMELINES, |put| list(put, &self.timelines, put_timeline));
        section(&mut put, SEGMENTS, |put| list(put, &self.segments, put_segment));
        section(&mut put, POLICY, |put| put_policy(put, &self.policy));
        section(&mut put, SESSIONS, |put| list(put, &self.sessions, put_session));
        section(&mut put, SEEDING, |put| {
            list(put, &self.seeding, |put, seeding| seeding.put(put));
        });
        section(&mut put, PINS, |put| {
            list(put, &self.pins, |put, pin| {
                put.text(&pin.label).bytes(pin.timeline.bytes()).u64(pin.lsn.0).u64(pin.created.0);
            });
        });
        // As long as there never was one, nothing is said.
        if self.next_run > 1 {
            section(&mut put, RUNS, |put| {
                put.u64(self.next_run);
                list(put, &self.runs, |put, run| level::put_info(put, run));
            });
        }
        if !self.keys.is_empty() {
            section(&mut put, KEYS, |put| {
                list(put, &self.keys, put_key);
                let sealed: Vec<_> = self.segments.iter().filter(|segment| segment.key != 0).collect();
                list(put, &sealed, |put, segment| {
                    put.u64(segment.number).u32(segment.key);
                });
            });
        }
        if self.next_kept > 1 {
            section(&mut put, KEPT, |put| retention::put_kept(put, self.next_kept, &self.kept));
        }
        if self.retention != Retention::default() {
            section(&mut put, RETENTION, |put| self.retention.put(put));
        }
        if let Some(merge) = &self.merge {
            section(&mut put, MERGE, |put| merge.put(put));
        }
        if self.next_disk > 1 || !self.resizing.is_empty() {
            section(&mut put, CHANGES, |put| {
                put.u16(self.next_disk);
                list(put, &self.resizing, |put, resizing| {
                    put.u16(resizing.disk.get()).u64(resizing.size);
                });
            });
        }
        // As long as nobody asked for anything else, nothing is said.
        if (self.policy.when_full, self.policy.quota) != (WhenFull::default(), 0) {
            section(&mut put, ROOM, |put| {
                put.u8(self.policy.when_full as u8).u64(self.policy.quota);
            });
        }
        if let Some(point) = &self.oldest_point {
            section(&mut put, OLDEST_POINT, |put| retention::put_point(put, point));
        }
        if let Some(cut) = &self.cut {
            section(&mut put, CUT, |put| retention::put_cut(put, cut));
        }
        for (tag, bytes) in &self.unknown {
            put.u16(*tag).u16(0).u32(bytes.len() as u32).bytes(bytes);
        }
        let length = put.0.len();
        put.finish(length)
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// Whatever is wrong with them, by name.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (mut take, _) = Take::begin(WHAT, bytes, MANIFEST_MAGIC, VERSION, 0)?;
        let generation = Generation(take.u64()?);
        let one = || [1; 16];
        let (replica, group) = (ReplicaId::new(one()), GroupId::new(one()));
        let (Some(replica), Some(group)) = (replica, group) else { return Err(take.field("replica", 0)) };
        let mut manifest = Self { generation, ..Self::new(replica, group, "") };
        let (mut seen, mut sealed, mut room) = (0u64, Vec::new(), (WhenFull::default(), 0));
        while take.left() > 0 {
            let (tag, flags) = (take.u16()?, take.u16()?);
            let length = take.u32()? as usize;
            let mut body = Take::new(WHAT, take.bytes(length)?);
            if KNOWN.contains(&tag) {
                if seen >> tag & 1 == 1 {
                    return Err(take.field("section", u64::from(tag)));
                }
                seen |= 1 << tag;
                if tag == KEYS {
                    manifest.keys = body.list("keys", KEYS_MAX, take_key)?;
                    sealed = body.list("sealed segments", SEGMENTS_MAX, |take| Ok((take.u64()?, take.u32()?)))?;
                } else if tag == ROOM {
                    room = take_room(&mut body)?;
                } else {
                    manifest.take_section(tag, &mut body)?;
                }
            } else if flags & MUST_UNDERSTAND != 0 {
                return Err(take.field("section", u64::from(tag)));
            } else {
                let rest = body.left();
                manifest.unknown.push((tag, body.bytes(rest)?.to_vec()));
            }
        }
        if seen >> IDENTITY & 1 == 0 {
            return Err(take.field("section", 0));
        }
        // In whatever order the two sections stand.
        (manifest.policy.when_full, manifest.policy.quota) = room;
        manifest.mark_sealed(&take, &sealed)?;
        manifest.check(&take)?;
        Ok(manifest)
    }

    /// Which segment is sealed by which key.
    fn mark_sealed(&mut self, take: &Take<'_>, sealed: &[(u64, u32)]) -> Result<(), FormatError> {
        let ordered = self.keys.windows(2).all(|pair| pair[0].generation < pair[1].generation);
        if !ordered {
            return Err(take.field("key generation", self.keys.len() as u64));
        }
        for (number, generation) in sealed {
            let known = self.keys.binary_search_by_key(generation, |key| key.generation).is_ok();
            let segment = self.segments.binary_search_by_key(number, |segment| segment.number).ok();
            match segment.and_then(|at| self.segments.get_mut(at)) {
                Some(segment) if known && segment.key == 0 => segment.key = *generation,
                _ => return Err(take.field("sealed segment", *number)),
            }
        }
        Ok(())
    }

    fn take_section(&mut self, tag: u16, take: &mut Take<'_>) -> Result<(), FormatError> {
        match tag {
            IDENTITY => {
                self.replica = take.id("replica", ReplicaId::new)?;
                self.group = take.id("group", GroupId::new)?;
                self.name = take.text("name", NAME_MAX)?;
                (self.durable, self.floor, self.reserved) = (Lsn(take.u64()?), Lsn(take.u64()?), Lsn(take.u64()?));
                self.next_segment = take.u64_if("next_segment", |value| value != 0)?;
                self.clean = take.kind("clean", flag)?;
                self.activity_generation = take.u64()?;
            }
            DISKS => self.disks = take.list("disks", DISKS_LISTED_MAX, take_disk)?,
            TIMELINES => self.timelines = take.list("timelines", TIMELINES_MAX, take_timeline)?,
            SEGMENTS => self.segments = take.list("segments", SEGMENTS_MAX, take_segment)?,
            POLICY => self.policy = take_policy(take)?,
            SESSIONS => self.sessions = take.list("sessions", SESSIONS_MAX, take_session)?,
            SEEDING => {
                self.seeding = take.list("seeding", DISKS_LISTED_MAX, SeedingInfo::take)?;
            }
            RUNS => {
                self.next_run = take.u64_if("next_run", |value| value > 1)?;
                self.runs = take.list("index runs", RUNS_MAX, |take| level::take_info(take).map(Arc::new))?;
            }
            CHANGES => {
                self.next_disk = take.u16()?;
                if self.next_disk == 0 {
                    return Err(take.field("next disk", 0));
                }
                self.resizing = take.list("resizes", DISKS_LISTED_MAX, |take| {
                    Ok(ResizeInfo { disk: disk_id(take)?, size: take.u64_if("size", |value| value <= DISK_MAX)? })
                })?;
            }
            KEPT => (self.next_kept, self.kept) = retention::take_kept(take)?,
            RETENTION => self.retention = Retention::take(take)?,
            MERGE => self.merge = Some(StampedMoment::take(take)?),
            OLDEST_POINT => self.oldest_point = Some(retention::take_point(take)?),
            CUT => self.cut = Some(retention::take_cut(take)?),
            _ => {
                self.pins = take.list("pins", PINS_MAX, |take| {
                    Ok(PinInfo {
                        label: take.text("label", NAME_MAX)?,
                        timeline: take.id("timeline", Timeline::new)?,
                        lsn: Lsn(take.u64()?),
                        created: WallTime(take.u64()?),
                    })
                })?;
            }
        }
        Ok(())
    }

    /// What holds across sections.
    fn check(&self, take: &Take<'_>) -> Result<(), FormatError> {
        let ordered = self.segments.windows(2).all(|pair| pair[0].number < pair[1].number);
        let last = self.segments.last().map_or(0, |segment| segment.number);
        if !ordered || last >= self.next_segment || self.segments.first().is_some_and(|first| first.number == 0) {
            return Err(take.field("segment number", last));
        }
        let unsealed = self.segments.iter().skip_while(|segment| segment.summary().is_some());
        if let Some(late) = unsealed.into_iter().find(|segment| segment.summary().is_some()) {
            return Err(take.field("segment sealed out of order", late.number));
        }
        let mut disks = BTreeSet::new();
        if let Some(twice) = self.disks.iter().find(|disk| !disks.insert(disk.id)) {
            return Err(take.field("disk listed twice", twice.id.get().into()));
        }
        if let Some(twice) = self.seeded_twice() {
            return Err(take.field("disk seeded twice", twice.get().into()));
        }
        let apart = |pair: &[Arc<RunInfo>]| pair[0].last_segment < pair[1].first_segment;
        let numbers: BTreeSet<u64> = self.runs.iter().map(|run| run.number).collect();
        let newest = numbers.last().copied().unwrap_or(0);
        if !self.runs.windows(2).all(apart) || numbers.len() != self.runs.len() || newest >= self.next_run {
            return Err(take.field("run number", newest));
        }
        Ok(())
    }
}

fn section(put: &mut Put, tag: u16, body: impl FnOnce(&mut Put)) {
    put.u16(tag).u16(MUST_UNDERSTAND).u32(0);
    let at = put.0.len();
    body(put);
    let length = (put.0.len() - at) as u32;
    put.0[at - 4..at].copy_from_slice(&length.to_le_bytes());
}

pub(super) fn list<T>(put: &mut Put, items: &[T], each: impl Fn(&mut Put, &T)) {
    put.u32(items.len() as u32);
    items.iter().for_each(|item| each(put, item));
}

pub(super) fn flag(number: u8) -> Option<bool> {
    match number {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

pub(super) fn disk_id(take: &mut Take<'_>) -> Result<DiskId, FormatError> {
    let number = take.u16()?;
    DiskId::new(number).ok_or_else(|| take.field("disk", u64::from(number)))
}

fn put_disk(put: &mut Put, disk: &DiskInfo) {
    put.u16(disk.id.get()).text(&disk.name).u64(disk.size).text(&disk.source).u64(disk.added.0);
    put.u64(disk.removed.map_or(0, |lsn| lsn.0));
    put.u8(u8::from(disk.stopped.is_some()));
    if let Some(facts) = &disk.stopped {
        put.u64(facts.size).u64(facts.inode).u64(facts.modified).u64(facts.changed);
    }
    put.u8(disk.base.map_or(0, |base| 1 + u8::from(base.at_rest)));
    if let Some(base) = &disk.base {
        put.u64(base.lsn.0).u64(base.generation).u64(base.size).bytes(&base.root);
    }
}

fn take_disk(take: &mut Take<'_>) -> Result<DiskInfo, FormatError> {
    Ok(DiskInfo {
        id: disk_id(take)?,
        name: take.text("disk name", NAME_MAX)?,
        size: take.u64_if("disk size", |value| value <= DISK_MAX)?,
        source: take.text("source", PATH_MAX)?,
        added: Lsn(take.u64()?),
        removed: Some(Lsn(take.u64()?)).filter(|lsn| *lsn != Lsn::ZERO),
        stopped: match take.kind("stopped", flag)? {
            true => {
                Some(SourceFacts { size: take.u64()?, inode: take.u64()?, modified: take.u64()?, changed: take.u64()? })
            }
            false => None,
        },
        base: match take.kind("base", |number| (number <= 2).then_some(number))? {
            0 => None,
            number => Some(BaseInfo {
                lsn: Lsn(take.u64()?),
                generation: take.u64_if("base generation", |value| value != 0)?,
                size: take.u64_if("base size", |value| value <= DISK_MAX)?,
                root: take.array()?,
                at_rest: number == 2,
            }),
        },
    })
}

fn put_timeline(put: &mut Put, timeline: &TimelineInfo) {
    put.bytes(timeline.id.bytes()).u32(timeline.number);
    put.bytes(&timeline.parent.map_or([0; 16], |id| *id.bytes())).u64(timeline.fork.0);
    put.u64(timeline.last.map_or(u64::MAX, |lsn| lsn.0));
    put.u8(timeline.state as u8).u8(timeline.role as u8).u64(timeline.opened.0);
}

fn take_timeline(take: &mut Take<'_>) -> Result<TimelineInfo, FormatError> {
    let states = [TimelineState::Open, TimelineState::Closed];
    let roles = [TimelineRole::Trunk, TimelineRole::Session, TimelineRole::Failover];
    Ok(TimelineInfo {
        id: take.id("timeline", Timeline::new)?,
        number: take.u32_if("timeline number", |value| value != 0)?,
        parent: Timeline::new(take.array()?),
        fork: Lsn(take.u64()?),
        last: Some(Lsn(take.u64()?)).filter(|lsn| lsn.0 != u64::MAX),
        state: take.kind("timeline state", |n| states.into_iter().find(|state| *state as u8 == n))?,
        role: take.kind("timeline role", |n| roles.into_iter().find(|role| *role as u8 == n))?,
        opened: WallTime(take.u64()?),
    })
}

fn put_segment(put: &mut Put, segment: &SegmentInfo) {
    put.u64(segment.number).bytes(segment.id.bytes());
    match &segment.state {
        SegmentState::Prepared => {
            put.u8(1);
        }
        SegmentState::Active => {
            put.u8(2);
        }
        SegmentState::Sealed(summary) => summary.put(put.u8(3)),
    }
}

fn take_segment(take: &mut Take<'_>) -> Result<SegmentInfo, FormatError> {
    let (number, id) = (take.u64()?, take.id("segment", SegmentId::new)?);
    let state = match take.kind("segment state", |number| (1..=3).contains(&number).then_some(number))? {
        1 => SegmentState::Prepared,
        2 => SegmentState::Active,
        _ => SegmentState::Sealed(Summary::take(take)?),
    };
    Ok(SegmentInfo { number, id, state, key: 0 })
}

fn put_key(put: &mut Put, key: &WrappedKey) {
    put.u32(key.generation).u64(key.created.0).u8(u8::from(key.bases));
    put.bytes(&key.check).bytes(&key.salt).bytes(&key.sealed);
}

fn take_key(take: &mut Take<'_>) -> Result<WrappedKey, FormatError> {
    Ok(WrappedKey {
        generation: take.u32_if("key generation", |value| value != 0)?,
        created: WallTime(take.u64()?),
        bases: take.kind("key flags", flag)?,
        check: take.array()?,
        salt: take.array()?,
        sealed: take.array()?,
    })
}

fn put_policy(put: &mut Put, policy: &Policy) {
    put.u64(policy.rpo_ms).u64(policy.window_ms).u64(policy.max_bytes).u64(policy.reserve_bytes);
    put.u8(policy.points as u8).u64(policy.long_term_ms).u64(policy.keep_ms);
}

fn take_policy(take: &mut Take<'_>) -> Result<Policy, FormatError> {
    let modes = [PointsMode::EveryWrite, PointsMode::PerPoint];
    Ok(Policy {
        rpo_ms: take.u64()?,
        window_ms: take.u64()?,
        max_bytes: take.u64()?,
        reserve_bytes: take.u64()?,
        points: take.kind("points mode", |n| modes.into_iter().find(|mode| *mode as u8 == n))?,
        long_term_ms: take.u64()?,
        keep_ms: take.u64()?,
        ..Policy::default()
    })
}

/// The rest of the policy: what is done without room, and the quota.
fn take_room(take: &mut Take<'_>) -> Result<(WhenFull, u64), FormatError> {
    let known = [WhenFull::Shorten, WhenFull::Stop];
    let when_full = take.kind("when full", |n| known.into_iter().find(|known| *known as u8 == n))?;
    Ok((when_full, take.u64()?))
}

fn put_session(put: &mut Put, session: &SessionInfo) {
    put.text(&session.name).bytes(session.timeline.bytes()).bytes(session.parent.bytes());
    put.u64(session.fork.0).u8(session.kind as u8).u64(session.created.0);
}

fn take_session(take: &mut Take<'_>) -> Result<SessionInfo, FormatError> {
    let kinds = [SessionKind::Temporary, SessionKind::Named];
    Ok(SessionInfo {
        name: take.text("session name", NAME_MAX)?,
        timeline: take.id("timeline", Timeline::new)?,
        parent: take.id("parent", Timeline::new)?,
        fork: Lsn(take.u64()?),
        kind: take.kind("session kind", |n| kinds.into_iter().find(|kind| *kind as u8 == n))?,
        created: WallTime(take.u64()?),
    })
}
