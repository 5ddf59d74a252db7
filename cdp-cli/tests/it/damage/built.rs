//! A replica of which it is known what each moment held, and how every command has to answer once it is damaged.

use crate::support::{Answer, Guest, Place, Running, cdp, flip, hash, mark, restore};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const DISK: usize = 2 << 20;
/// Of the segments that are not sealed: small, because they are looked through and copied.
pub(super) const SEGMENT: u64 = 4 << 20;

/// A replica with several sealed segments that nobody owns.
pub(super) struct Built {
    place: Place,
    source: PathBuf,
    pub(super) replica: PathBuf,
    marks: Vec<(String, blake3::Hash)>,
}

impl Built {
    /// Protects in a few runs, each of which leaves a sealed segment and a mark.
    pub(super) fn new() -> Self {
        let place = Place::new();
        let (source, replica) = (place.source("disk.img", 5, DISK), place.path("replica"));
        let mut built = Self { place, source, replica, marks: Vec::new() };
        for run in 1..=3 {
            let mut running = built.protect().protecting();
            let mut guest = Guest::connect(running.uri(), &built.source, run);
            guest.work(30);
            let label = format!("run {run}");
            mark(&built.replica, &label);
            built.marks.push((label, guest.hash()));
            guest.work(10);
            drop(guest);
            running.stop_clean();
        }
        built
    }

    /// One more mark, with what the source held.
    pub(super) fn marked(&mut self, label: &str, hash: blake3::Hash) {
        self.marks.push((label.to_owned(), hash));
    }

    pub(super) fn protect(&self) -> Running {
        self.protect_with(&[])
    }

    pub(super) fn protect_with(&self, more: &[&str]) -> Running {
        self.try_protect(more).unwrap_or_else(|end| panic!("{end:?}"))
    }

    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    /// The file that a part of a name says, such as `base/`; the first one of those.
    pub(super) fn files(&self, directory: &str, ending: &str) -> Vec<PathBuf> {
        let directory = self.replica.join(directory);
        let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = names.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
        found.sort();
        assert!(!found.is_empty(), "{ending}");
        found
    }

    /// `cdp mount` of a writable session.
    pub(super) fn mount(&self, more: &[&str]) -> Running {
        Running::mount(&self.replica, &self.place.socket("mount"), &[&["--writable"], more].concat())
    }

    pub(super) fn verify(&self) -> Answer {
        cdp(&[OsStr::new("verify"), self.replica.as_os_str()])
    }

    /// Every command that reads: right bytes, or damage; says whether all of them were right.
    pub(super) fn read_everything(&self, case: &str) -> bool {
        let mut all_right = true;
        let output = self.place.path("out.img");
        let latest = ("latest".to_owned(), hash(&self.source));
        for (at, expected) in self.marks.iter().chain([&latest]) {
            let answer = restore(&self.replica, at, &output);
            match answer.status {
                0 => assert_eq!(hash(&output), *expected, "{case}: wrong bytes of {at}"),
                _ => drop(damaged(case, answer)),
            }
            all_right &= output.exists();
            // A failed restore leaves nothing, a good one is not to be taken for the next.
            let _ = std::fs::remove_file(&output);
        }
        let points = cdp(&[OsStr::new("points"), self.replica.as_os_str()]);
        match points.status {
            0 => {
                let labels: Vec<_> = points.json["points"].as_array().unwrap().iter().map(|p| &p["label"]).collect();
                let missing: Vec<_> =
                    self.marks.iter().filter(|(label, _)| !labels.contains(&&label[..].into())).collect();
                assert!(missing.is_empty(), "{case}: points says nothing of {missing:?}");
            }
            // What is left is listed, with a word about what is not; or nothing can be.
            _ if points.json["damaged"].is_string() => {
                assert_eq!(points.status, 5, "{case}");
                all_right = false;
            }
            _ => all_right &= damaged(case, points).is_null(),
        }
        all_right
    }

    /// What `verify` says is damage, and it names this file at or around this place.
    pub(super) fn verify_finds(&self, case: &str, file: &Path, at: Option<u64>) {
        let answer = self.verify();
        assert_eq!(answer.status, 5, "{case}: verify found nothing: {answer:?}");
        let name = file.file_name().unwrap().to_str().unwrap();
        let Some(damage) = answer.json["damage"].as_array() else {
            // Without a manifest there is nothing to verify by: the error names it.
            let message = answer.json["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(name), "{case}: {answer:?}");
            return;
        };
        let is_it = |found: &&Value| found["file"].as_str().is_some_and(|path| Path::new(path) == file);
        let named: Vec<_> = damage.iter().filter(is_it).collect();
        assert!(!named.is_empty(), "{case}: another file is named: {damage:?}");
        let around = |found: &&Value| {
            let (offset, length) = (found["offset"].as_u64().unwrap(), found["length"].as_u64().unwrap());
            at.is_none_or(|at| offset <= at && at < offset + length.max(1))
        };
        assert!(named.iter().any(around), "{case}: the place is not named: {named:?}");
    }

    /// Flips a bit, looks, and undoes it.
    pub(super) fn with_flip(&self, file: &Path, at: u64, look: impl FnOnce(&str)) {
        let case = format!("{} at byte {at}", file.strip_prefix(&self.replica).unwrap().display());
        let bit = (at % 8) as u8;
        flip(file, at, bit);
        look(&case);
        flip(file, at, bit);
    }

    /// Keeps the replica as it is now, to be put back.
    pub(super) fn keep(&self) -> PathBuf {
        let kept = self.place.path("kept");
        copy(&self.replica, &kept);
        kept
    }

    pub(super) fn put_back(&self, kept: &Path) {
        copy(kept, &self.replica);
    }

    /// `cdp protect` again: refuses the damage, or goes on so that replica and source are the same in the end.
    pub(super) fn restart(&self, case: &str) -> bool {
        let mut running = match self.try_protect(&[]) {
            Ok(running) => running,
            Err((status, last)) => {
                assert_eq!((status, last["error"]["code"].as_str()), (5, Some("damaged")), "{case}: {last}");
                return false;
            }
        };
        running = running.protecting();
        running.stop_clean();
        let output = self.place.path("out.img");
        let answer = restore(&self.replica, "latest", &output);
        match answer.status {
            0 => assert_eq!(hash(&output), hash(&self.source), "{case}: replica and source have diverged"),
            _ => drop(damaged(case, answer)),
        }
        true
    }

    fn try_protect(&self, more: &[&str]) -> Result<Running, (i32, Value)> {
        let segment = SEGMENT.to_string();
        let more = [more, &["--segment-size", &segment]].concat();
        Running::try_protect(&[&self.source], &self.replica, &self.place.socket("nbd"), &more)
    }
}

/// Checks that a command said `damage` as it should.
pub(super) fn damaged(case: &str, answer: Answer) -> Value {
    assert_eq!(answer.status, 5, "{case}: {answer:?}");
    answer.failed(5, "damaged")
}

/// Copies a directory with its holes.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    crate::support::run("cp", &[OsStr::new("-a"), OsStr::new("--sparse=always"), from.as_os_str(), to.as_os_str()]);
}
