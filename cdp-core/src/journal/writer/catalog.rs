//! Writing the manifest: two temporary files, written and synced beside each other, renamed over the second copy, then over the
//! first; the directory synced.

use super::{Effect, Purpose, Writer};
use crate::journal::effect::FileId;
use crate::journal::manifest::{
    Generation, MANIFEST_COPY, MANIFEST_COPY_TMP, MANIFEST_NAME, MANIFEST_TMP, Manifest, segment_name,
};
use crate::media;
use crate::mistakes::{self, Mistake};
use crate::types::MonoTime;

/// How far the manifest that is being written is. Each step is issued when the one before is through, for both files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    Creating([FileId; 2]),
    Writing([FileId; 2]),
    Syncing([FileId; 2]),
    Closing,
    RenamingCopy,
    Renaming,
    SyncingDirectory,
    Waiting(MonoTime),
}

/// The manifest's way to the media.
#[derive(Debug)]
pub(super) struct Catalog {
    step: Step,
    /// Effects of the step that are under way.
    under_way: u8,
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
        Self {
            step: Step::Idle,
            under_way: 0,
            dirty: durable < newest,
            writing: durable,
            durable,
            bytes,
            removals: Vec::new(),
        }
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
        // What the other file was issued may still be under way: nothing begins before that is back.
        self.under_way = self.under_way.saturating_sub(1);
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
            Step::Waiting(deadline) => deadline <= now && self.catalog.under_way == 0,
            _ => false,
        };
        if ready {
            self.catalog.dirty = false;
            self.catalog.writing = self.manifest.generation;
            self.manifest.durable = self.durable().lsn();
            self.catalog.bytes = self.manifest.encode().into();
            let files = [self.new_file(), self.new_file()];
            let create = |(file, name): (FileId, &str)| Effect::Create {
                file,
                name: name.to_owned(),
                preallocate: 0,
                keep_free: 0,
                replace: true,
            };
            let effects = files.into_iter().zip([MANIFEST_COPY_TMP, MANIFEST_TMP]).map(create).collect();
            self.catalog_step(Step::Creating(files), effects);
        }
        let durable = self.catalog.durable;
        let (due, later): (Vec<_>, _) =
            std::mem::take(&mut self.catalog.removals).into_iter().partition(|(generation, _)| *generation <= durable);
        self.catalog.removals = later;
        for (_, name) in due {
            self.issue(Effect::Remove { name }, Purpose::Remove);
        }
    }

    fn catalog_step(&mut self, step: Step, effects: Vec<Effect>) {
        (self.catalog.step, self.catalog.under_way) = (step, effects.len() as u8);
        effects.into_iter().for_each(|effect| self.issue(effect, Purpose::Catalog));
    }

    pub(super) fn catalog_completed(&mut self) {
        self.catalog.under_way = self.catalog.under_way.saturating_sub(1);
        if self.catalog.under_way > 0 {
            return;
        }
        let both = |files: [FileId; 2], effect: &dyn Fn(FileId) -> Effect| files.map(effect).to_vec();
        let rename = |from: &str, to: &str| vec![Effect::Rename { from: from.to_owned(), to: to.to_owned() }];
        let (step, effects) = match self.catalog.step {
            Step::Creating(files) => {
                let data = vec![self.catalog.bytes.clone()];
                let write = |file| Effect::Write { file, offset: 0, data: data.clone() };
                (Step::Writing(files), both(files, &write))
            }
            Step::Writing(files) if mistakes::is(Mistake::ManifestNotSynced) => {
                (Step::Closing, both(files, &|file| Effect::Close { file }))
            }
            Step::Writing(files) => (Step::Syncing(files), both(files, &|file| Effect::Sync { file })),
            Step::Syncing(files) => (Step::Closing, both(files, &|file| Effect::Close { file })),
            Step::Closing => (Step::RenamingCopy, rename(MANIFEST_COPY_TMP, MANIFEST_COPY)),
            Step::RenamingCopy => (Step::Renaming, rename(MANIFEST_TMP, MANIFEST_NAME)),
            Step::Renaming => (Step::SyncingDirectory, vec![Effect::SyncDir { name: String::new() }]),
            Step::SyncingDirectory => {
                self.catalog.step = Step::Idle;
                self.catalog.durable = self.catalog.writing;
                return;
            }
            Step::Idle | Step::Waiting(_) => return,
        };
        self.catalog_step(step, effects);
    }
}
