//! Writing the manifest: a temporary file, synced, renamed over the old one, and the directory synced.

use super::{Effect, Purpose, Writer};
use crate::journal::effect::FileId;
use crate::journal::manifest::{Generation, MANIFEST_NAME, MANIFEST_TMP, Manifest, segment_name};
use crate::media;
use crate::mistakes::{self, Mistake};
use crate::types::MonoTime;

/// How far the manifest that is being written is. Each step is issued when the one before is through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    Creating(FileId),
    Writing(FileId),
    Syncing(FileId),
    Closing,
    Renaming,
    SyncingDirectory,
    Waiting(MonoTime),
}

/// The manifest's way to the media.
#[derive(Debug)]
pub(super) struct Catalog {
    step: Step,
    /// There are edits that no manifest under way has.
    dirty: bool,
    writing: Generation,
    durable: Generation,
    bytes: bytes::Bytes,
    /// Files that go when a generation is durable.
    removals: Vec<(Generation, String)>,
}

impl Catalog {
    /// With the generation that stands on the media, and the newest one.
    pub(super) fn new(durable: Generation, newest: Generation) -> Self {
        let bytes = bytes::Bytes::new();
        Self { step: Step::Idle, dirty: durable < newest, writing: durable, durable, bytes, removals: Vec::new() }
    }

    /// An edit was made: gives the generation that will have it.
    pub(super) fn touch(&mut self, manifest: &mut Manifest) -> Generation {
        if !self.dirty {
            self.dirty = true;
            manifest.generation = Generation(manifest.generation.0 + 1);
        }
        manifest.generation
    }

    pub(super) fn durable(&self) -> Generation {
        self.durable
    }
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.step, Step::Waiting(_))
    }
    pub(super) fn is_through(&self) -> bool {
        self.step == Step::Idle && !self.dirty && self.removals.is_empty()
    }
    pub(super) fn deadline(&self) -> Option<MonoTime> {
        match self.step {
            Step::Waiting(deadline) => Some(deadline),
            _ => None,
        }
    }
    /// Bytes of the manifest that was last written, or tried.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    /// A file goes when the generation is durable.
    pub(super) fn remove_at(&mut self, generation: Generation, name: String) {
        self.removals.push((generation, name));
    }
    /// There was no room: everything again at `deadline`.
    pub(super) fn wait(&mut self, deadline: MonoTime) {
        self.step = Step::Waiting(deadline);
        self.dirty = true;
    }
}

impl Writer {
    pub(super) fn remove_later(&mut self, generation: Generation, number: u64) {
        let name = media::join(&self.options.directory, &segment_name(number));
        self.catalog.remove_at(generation, name);
    }

    pub(super) fn advance_catalog(&mut self, now: MonoTime) {
        let ready = match self.catalog.step {
            Step::Idle => self.catalog.dirty,
            Step::Waiting(deadline) => deadline <= now,
            _ => false,
        };
        if ready {
            self.catalog.dirty = false;
            self.catalog.writing = self.manifest.generation;
            self.manifest.durable = self.durable().lsn();
            self.catalog.bytes = self.manifest.encode().into();
            let file = self.new_file();
            self.catalog.step = Step::Creating(file);
            let name = MANIFEST_TMP.to_owned();
            let create = Effect::Create { file, name, preallocate: 0, keep_free: 0, replace: true };
            self.issue(create, Purpose::Catalog);
        }
        let durable = self.catalog.durable;
        let (due, later): (Vec<_>, _) =
            std::mem::take(&mut self.catalog.removals).into_iter().partition(|(generation, _)| *generation <= durable);
        self.catalog.removals = later;
        for (_, name) in due {
            self.issue(Effect::Remove { name }, Purpose::Remove);
        }
    }

    pub(super) fn catalog_completed(&mut self) {
        let (step, effect) = match self.catalog.step {
            Step::Creating(file) => {
                let data = vec![self.catalog.bytes.clone()];
                (Step::Writing(file), Effect::Write { file, offset: 0, data })
            }
            Step::Writing(file) if mistakes::is(Mistake::ManifestNotSynced) => {
                (Step::Syncing(file), Effect::Close { file })
            }
            Step::Writing(file) => (Step::Syncing(file), Effect::Sync { file }),
            Step::Syncing(file) => (Step::Closing, Effect::Close { file }),
            Step::Closing => {
                (Step::Renaming, Effect::Rename { from: MANIFEST_TMP.to_owned(), to: MANIFEST_NAME.to_owned() })
            }
            Step::Renaming => (Step::SyncingDirectory, Effect::SyncDir { name: String::new() }),
            Step::SyncingDirectory => {
                self.catalog.step = Step::Idle;
                self.catalog.durable = self.catalog.writing;
                return;
            }
            Step::Idle | Step::Waiting(_) => return,
        };
        self.catalog.step = step;
        self.issue(effect, Purpose::Catalog);
    }
}
