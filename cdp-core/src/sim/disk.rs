//! Storage that forgets what was not synced.
//!
//! What a power cut leaves: of each file any subset of the sectors written since its last sync (a torn sector too, which
//! holds a first part of the new bytes), any of the lengths it had since, and any subset of the names made, changed and
//! removed since the directory's last sync. What was synced stays. The same seed leaves the same.
//!
//! A read may return a flipped bit of what is there ([`SimDisk::flip_read`]); the media stay as they are.
//!
//! Either the power goes at one change ([`SimDisk::cut_at`]), or the disk remembers itself after every change
//! ([`SimDisk::remember`]) and one life is told once for all the cuts that it may meet ([`SimDisk::past`]).

use super::content::Content;
use crate::media::{File, MediaError, MediaErrorKind, Operation, Result, Storage};
use crate::types::{Extent, SECTOR};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much of what was not synced survives a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// A subset that the seed chooses.
    Some(u64),
}

/// A change of a file that was not synced.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Length(u64),
    Punch(Extent),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// As the running system sees it.
    live: Content,
    /// As it was at the last sync.
    synced: Content,
    changes: Vec<Change>,
}

/// A change of names that was not synced.
#[derive(Clone, Debug)]
enum Naming {
    Made { name: String, inode: usize },
    Removed { name: String },
    Renamed { from: String, to: String, inode: usize },
}

/// Files and names; copies share what they have in common.
#[derive(Clone, Debug, Default)]
struct Media {
    inodes: Vec<Arc<Inode>>,
    live: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    namings: Vec<Naming>,
}

#[derive(Clone, Debug, Default)]
struct State {
    media: Media,
    effects: u64,
    cut_at: Option<u64>,
    trace: u64,
    /// Reads so far that gave any bytes.
    reads: u64,
    flip: Option<Flip>,
    /// As it was before and after each change since it was asked to remember; whoever asks bounds its life.
    past: Option<Vec<Media>>,
}

/// A read that goes wrong, once.
#[derive(Clone, Debug)]
struct Flip {
    /// The read, counted as [`State::reads`] counts.
    read: u64,
    seed: u64,
    /// The file's name, once it was read.
    met: Option<String>,
}

impl Flip {
    /// Flips one of the bits that were read, if it is this read that goes wrong.
    fn meet(&mut self, read: u64, name: &str, out: &mut [IoSliceMut<'_>], length: usize) {
        if self.read != read {
            return;
        }
        let mut dice = Dice { survival: Survival::Some(0), state: self.seed.wrapping_add(read) };
        dice.next();
        let mut at = dice.next() as usize % length;
        for buffer in out {
            if let Some(byte) = buffer.get_mut(at) {
                *byte ^= 1 << (dice.next() % 8);
                break;
            }
            at -= buffer.len();
        }
        self.met = Some(name.to_owned());
    }
}

/// A simulated directory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    prefix: String,
}

impl SimDisk {
    /// An empty directory with power on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes at the `effect`-th change from the beginning (writes, syncs, lengths, names; from 1): that change may
    /// still have reached the media in part, everything after it fails.
    pub fn cut_at(&self, effect: u64) {
        self.state().cut_at = Some(effect);
    }

    /// Of the reads from now on the `read`-th (from 0) gives one flipped bit, which the seed chooses. The media do not change.
    pub fn flip_read(&self, read: u64, seed: u64) {
        let mut state = self.state();
        state.flip = Some(Flip { read: state.reads + read, seed, met: None });
    }

    /// The file of which a read gave a flipped bit, since it was asked for.
    #[must_use]
    pub fn flipped(&self) -> Option<String> {
        self.state().flip.as_ref().and_then(|flip| flip.met.clone())
    }

    /// Reads so far that gave any bytes.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Changes so far.
    #[must_use]
    pub fn effects(&self) -> u64 {
        self.state().effects
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let state = self.state();
        state.cut_at.is_some_and(|cut| state.effects >= cut)
    }

    /// A number that is the same for the same changes in the same order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    /// A number that is the same for the same files with the same bytes, synced or not.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let media = &self.state().media;
        let mut hasher = blake3::Hasher::new();
        for (name, inode) in &media.live {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            media.inodes[*inode].live.hash(&mut hasher);
        }
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// What is found when the power comes back.
    #[must_use]
    pub fn after_cut(&self, survival: Survival) -> SimDisk {
        let state = self.state();
        state.media.clone().after_cut(survival, state.trace)
    }

    /// From now on the disk as it is after every change can be asked for.
    pub fn remember(&self) {
        let mut state = self.state();
        let media = state.media.clone();
        state.past = Some(vec![media]);
    }

    /// How many changes it remembers.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.state().past.as_ref().map_or(0, |past| past.len() as u64 - 1)
    }

    /// What is found when the power went after so many changes since [`Self::remember`]; none where it remembers no such moment.
    #[must_use]
    pub fn past(&self, changes: u64, survival: Survival) -> Option<SimDisk> {
        let media = self.state().past.as_ref()?.get(changes as usize)?.clone();
        Some(media.after_cut(survival, 0))
    }

    fn full(&self, name: &str) -> String {
        crate::media::join(&self.prefix, name)
    }

    /// Counts a change; it is made by `change`, and then the power may go.
    fn change<T>(&self, operation: Operation, name: &str, change: impl FnOnce(&mut Media) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let cut = || MediaError::new(MediaErrorKind::Io, operation, name, 0, "the power is gone");
        if state.cut_at.is_some_and(|at| state.effects >= at) {
            return Err(cut());
        }
        state.effects += 1;
        let text = name.bytes().fold(operation as u64 + 1, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte));
        state.trace = state.trace.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ text;
        // A sync that the power cut meets did nothing; other changes may have happened.
        let last = state.cut_at == Some(state.effects);
        if last && matches!(operation, Operation::Sync | Operation::SyncDir) {
            return Err(cut());
        }
        let done = change(&mut state.media)?;
        let state = &mut *state;
        if let Some(past) = &mut state.past {
            past.push(state.media.clone());
        }
        if last { Err(cut()) } else { Ok(done) }
    }
}

impl Media {
    fn after_cut(mut self, survival: Survival, trace: u64) -> SimDisk {
        let mut dice = Dice { survival, state: if let Survival::Some(seed) = survival { seed } else { 0 } };
        let mut names = self.synced;
        for naming in &self.namings {
            if dice.survives() {
                rename(&mut names, naming);
            }
        }
        for inode in &mut self.inodes {
            if inode.changes.is_empty() {
                continue;
            }
            let mut bytes = inode.synced.clone();
            inode.changes.iter().for_each(|change| change.survive(&mut bytes, &mut dice));
            *inode = Arc::new(Inode { live: bytes.clone(), synced: bytes, changes: Vec::new() });
        }
        // What has no name any more is gone.
        let inodes = names.values().map(|inode| Arc::clone(&self.inodes[*inode])).collect();
        let names: BTreeMap<_, _> = names.into_keys().zip(0..).collect();
        let media = Media { inodes, live: names.clone(), synced: names, namings: Vec::new() };
        let state = State { media, trace, ..State::default() };
        SimDisk { state: Arc::new(Mutex::new(state)), prefix: String::new() }
    }

    fn inode(&mut self, number: usize) -> &mut Inode {
        Arc::make_mut(&mut self.inodes[number])
    }
}

struct Dice {
    survival: Survival,
    state: u64,
}

impl Dice {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 33
    }
    fn survives(&mut self) -> bool {
        match self.survival {
            Survival::Nothing => false,
            Survival::Everything => true,
            Survival::Some(_) => self.next().is_multiple_of(2),
        }
    }
    /// How many of `length` bytes of one sector arrive.
    fn arrives(&mut self, length: usize) -> usize {
        match self.survives() {
            true => length,
            false if matches!(self.survival, Survival::Some(_)) && self.next().is_multiple_of(16) => {
                self.next() as usize % (length + 1)
            }
            false => 0,
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Content) {
        match self {
            Self::Write { offset, bytes: data } => bytes.write(*offset, data),
            Self::Length(length) => bytes.set_len(*length),
            Self::Punch(range) => bytes.punch(*range),
        }
    }

    fn survive(&self, bytes: &mut Content, dice: &mut Dice) {
        let Self::Write { offset, bytes: data } = self else {
            if dice.survives() {
                self.apply(bytes);
            }
            return;
        };
        let mut at = *offset;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let count = ((SECTOR - at % SECTOR) as usize).min(rest.len());
            let arrives = dice.arrives(count);
            if arrives > 0 {
                bytes.write(at, &rest[..arrives]);
            }
            at += count as u64;
            rest = &rest[count..];
        }
    }
}

fn rename(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Made { name, inode } => {
            names.insert(name.clone(), *inode);
        }
        Naming::Removed { name } => {
            names.remove(name);
        }
        Naming::Renamed { from, to, inode } => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn error(kind: MediaErrorKind, operation: Operation, name: &str) -> MediaError {
    MediaError::new(kind, operation, name, 0, "simulated")
}

impl Storage for SimDisk {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        let name = self.full(name);
        let inode = self.change(Operation::Create, &name, |media| {
            if media.live.contains_key(&name) {
                return Err(error(MediaErrorKind::Exists, Operation::Create, &name));
            }
            media.inodes.push(Arc::default());
            let inode = media.inodes.len() - 1;
            media.live.insert(name.clone(), inode);
            media.namings.push(Naming::Made { name: name.clone(), inode });
            Ok(inode)
        })?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, name }))
    }

    fn open(&self, name: &str, _write: bool) -> Result<Arc<dyn File>> {
        let name = self.full(name);
        let found = self.state().media.live.get(&name).copied();
        let inode = found.ok_or_else(|| error(MediaErrorKind::NotFound, Operation::Open, &name))?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, name }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.full(from), self.full(to));
        self.change(Operation::Rename, &from, |media| {
            let inode = media.live.get(&from).copied();
            let inode = inode.ok_or_else(|| error(MediaErrorKind::NotFound, Operation::Rename, &from))?;
            let naming = Naming::Renamed { from: from.clone(), to, inode };
            rename(&mut media.live, &naming);
            media.namings.push(naming);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        let name = self.full(name);
        if !self.state().media.live.contains_key(&name) {
            return Err(error(MediaErrorKind::NotFound, Operation::Remove, &name));
        }
        self.change(Operation::Remove, &name, |media| {
            let naming = Naming::Removed { name: name.clone() };
            rename(&mut media.live, &naming);
            media.namings.push(naming);
            Ok(())
        })
    }

    fn sync_dir(&self, name: &str) -> Result<()> {
        let directory = self.full(name);
        self.change(Operation::SyncDir, &directory, |media| {
            let here = |naming: &Naming| match naming {
                Naming::Made { name, .. } | Naming::Removed { name } => parent(name) == directory,
                Naming::Renamed { to, .. } => parent(to) == directory,
            };
            let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut media.namings).into_iter().partition(here);
            now.iter().for_each(|naming| rename(&mut media.synced, naming));
            media.namings = later;
            Ok(())
        })
    }

    fn remove_dir(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn list(&self, name: &str) -> Result<Vec<String>> {
        let directory = self.full(name);
        let prefix = if directory.is_empty() { directory } else { directory + "/" };
        let state = self.state();
        let below = state.media.live.keys().filter_map(|path| path.strip_prefix(&prefix));
        let mut names: Vec<_> = below.map(|rest| rest.split('/').next().unwrap_or(rest).to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(u64::MAX)
    }

    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.look_in(name)
    }

    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self { state: Arc::clone(&self.state), prefix: self.full(name) }))
    }

    fn path(&self) -> String {
        crate::media::join("sim:", &self.prefix)
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: usize,
    name: String,
}

impl SimFile {
    fn change(&self, operation: Operation, change: Change) -> Result<()> {
        self.disk.change(operation, &self.name, |media| {
            let inode = media.inode(self.inode);
            change.apply(&mut inode.live);
            inode.changes.push(change);
            Ok(())
        })
    }
}

impl File for SimFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut state = self.disk.state();
        let bytes = &state.media.inodes[self.inode].live;
        let mut at = offset;
        for buffer in out.iter_mut() {
            at += bytes.read(at, buffer) as u64;
        }
        let length = (at - offset) as usize;
        if length > 0 {
            let State { reads, flip, .. } = &mut *state;
            if let Some(flip) = flip {
                flip.meet(*reads, &self.name, out, length);
            }
            *reads += 1;
        }
        Ok(length)
    }

    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        let mut bytes = Vec::with_capacity(data.iter().map(|slice| slice.len()).sum());
        data.iter().for_each(|slice| bytes.extend_from_slice(slice));
        self.change(Operation::Write, Change::Write { offset, bytes: bytes.into() })
    }

    fn sync(&self) -> Result<()> {
        self.disk.change(Operation::Sync, &self.name, |media| {
            let inode = media.inode(self.inode);
            let changes = std::mem::take(&mut inode.changes);
            changes.iter().for_each(|change| change.apply(&mut inode.synced));
            Ok(())
        })
    }

    fn len(&self) -> Result<u64> {
        Ok(self.disk.state().media.inodes[self.inode].live.len())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.change(Operation::SetLength, Change::Length(length))
    }

    fn preallocate(&self, range: Extent) -> Result<()> {
        if range.end() <= self.len()? {
            Ok(())
        } else {
            self.change(Operation::Preallocate, Change::Length(range.end()))
        }
    }

    fn punch(&self, range: Extent) -> Result<()> {
        self.change(Operation::Punch, Change::Punch(range))
    }

    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        Ok(self.disk.state().media.inodes[self.inode].live.next_data(offset))
    }

    fn path(&self) -> &str {
        &self.name
    }
}
