//! Making a replica: what may be made, where, and what an attempt that did not end left behind.

use super::open::{ACTIVITY_LOG, ProtectError, ProtectOptions, SourceOptions, unreadable};
use crate::host::{check_policy, document};
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::source::Source;
use cdp_core::journal::{self, DiskInfo, MANIFEST_NAME, Manifest, is_journal_file};
use cdp_core::media::{MediaError, Storage};
use cdp_core::replica::{BASE_DIRECTORY, BaseFile, JOURNAL_DIRECTORY};
use cdp_core::types::{DISKS_MAX, DiskId, GroupId, Lsn, NAME_MAX, ReplicaId};
use std::collections::BTreeSet;

fn usage(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Usage, code, message)
}

/// Whether the options are such that a manifest can hold them.
pub(super) fn check(options: &ProtectOptions) -> Result<(), Problem> {
    check_policy(&options.policy)?;
    if options.sources.is_empty() || options.sources.len() > DISKS_MAX {
        return Err(usage("disks", format!("a group has 1 to {DISKS_MAX} disks, not {}", options.sources.len())));
    }
    let mut names = BTreeSet::new();
    for name in options.sources.iter().map(|source| &source.name).chain(&options.name) {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(usage("name", format!("a name has 1 to {NAME_MAX} bytes, not {}", name.len())));
        }
    }
    if let Some(twice) = options.sources.iter().find(|source| !names.insert(&source.name)) {
        return Err(usage("name", format!("two disks are called {:?}", twice.name)));
    }
    Ok(())
}

/// What of the directory is ours: segments, index runs, all files of bases.
fn ours(storage: &dyn Storage) -> Result<Vec<String>, MediaError> {
    let of = |directory: &str, is_ours: fn(&str) -> bool| -> Result<Vec<String>, MediaError> {
        let names = storage.list(directory)?.into_iter();
        Ok(names.filter(|name| is_ours(name)).map(|name| format!("{directory}/{name}")).collect())
    };
    let is_base_file = |name: &str| BaseFile::of(name).is_some();
    Ok([of(JOURNAL_DIRECTORY, is_journal_file)?, of(BASE_DIRECTORY, is_base_file)?].concat())
}

/// Makes a new store. What a first copy that never ended left is removed: its manifest, which says so, goes last. Files of
/// ours without a manifest are a replica that lost it, and are not touched.
pub(super) fn create(
    storage: &dyn Storage,
    options: &ProtectOptions,
    sources: &[(&SourceOptions, Source)],
) -> Result<journal::Opened, ProtectError> {
    let left = ours(storage)?;
    let begun = storage.list("")?.iter().any(|name| name == MANIFEST_NAME);
    if let Some(file) = left.first().filter(|_| !begun) {
        let message = format!("{} has {file} and no {MANIFEST_NAME}: it held a replica", storage.path());
        let hint = "bring the manifest back from a copy, or give an empty directory";
        return Err(ProtectError::Replica(Problem::new(ProblemClass::Damage, "no-manifest", message).hint(hint)));
    }
    for name in left.iter().map(String::as_str).chain([ACTIVITY_LOG]) {
        remove(storage, name)?;
    }
    for directory in [JOURNAL_DIRECTORY, BASE_DIRECTORY].into_iter().filter(|_| !left.is_empty()) {
        // A directory that was never made has no names to make durable.
        match storage.sync_dir(directory) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    remove(storage, MANIFEST_NAME)?;
    storage.sync_dir("")?;
    let first = options.sources.first().map(|source| source.name.clone()).unwrap_or_default();
    let name = options.name.clone().unwrap_or(first);
    let (Some(replica), Some(group)) = (ReplicaId::new(identity()), GroupId::new(identity())) else {
        unreachable!("an identity is never zero")
    };
    let mut manifest = Manifest::new(replica, group, &name);
    for (number, (options, source)) in (1..).zip(sources) {
        let Some(id) = DiskId::new(number) else { continue };
        manifest.disks.push(DiskInfo {
            id,
            name: options.name.clone(),
            size: source.size(),
            source: source.path().display().to_string(),
            added: Lsn::ZERO,
            removed: None,
            stopped: None,
            base: None,
        });
    }
    let keys = options.key.unlock(replica, &[]).map_err(|error| ProtectError::Replica(document::locked(&error)))?;
    Ok(journal::Opened { keys, ..journal::create(storage, manifest).map_err(unreadable)? })
}

/// Removes a name, if it is there.
pub(super) fn remove(storage: &dyn Storage, name: &str) -> Result<(), MediaError> {
    match storage.remove(name) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::media::Disk;
    use std::path::PathBuf;

    struct Scene {
        options: ProtectOptions,
        replica: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (path, replica) = (directory.path().join("disk.img"), directory.path().join("replica"));
            std::fs::write(&path, vec![7; 8192]).unwrap();
            let sources = vec![SourceOptions { name: "disk".to_owned(), path }];
            Self { options: ProtectOptions::new(sources, replica.clone()), replica, _directory: directory }
        }

        fn create(&self) -> Result<journal::Opened, ProtectError> {
            let sources = self.options.sources.iter();
            let sources: Vec<_> = sources.map(|source| (source, Source::open(&source.path).unwrap())).collect();
            create(&Disk::create(&self.replica).unwrap(), &self.options, &sources)
        }

        fn write(&self, names: &[&str]) {
            for name in names {
                let path = self.replica.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            }
        }

        /// Which of them are there.
        fn left<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
            names.iter().copied().filter(|name| self.replica.join(name).exists()).collect()
        }
    }

    /// Everything that a first copy, or a later merge, may have made.
    const OURS: [&str; 8] = [
        "base/1.img",
        "base/1.sum",
        "base/1.dig0",
        "base/1.dig1",
        "base/merge.rests",
        "journal/0000000000000001.seg",
        "journal/0000000000000001.idx",
        ACTIVITY_LOG,
    ];
    const STRANGERS: [&str; 4] = ["base/notes.txt", "base/backup.img", "base/1.dig2", "journal/1.seg"];

    #[test]
    fn what_a_first_copy_left_is_removed_and_what_others_put_there_is_not() {
        let scene = Scene::new();
        let first = scene.create().unwrap().manifest.replica;
        scene.write(&[&OURS[..], &STRANGERS].concat());
        let again = scene.create().unwrap().manifest;
        assert_ne!(again.replica, first);
        assert_eq!(scene.left(&OURS), [""; 0]);
        assert_eq!(scene.left(&STRANGERS), STRANGERS);
    }

    #[test]
    fn each_file_of_ours_without_a_manifest_is_a_replica_that_lost_it() {
        for name in &OURS[..7] {
            let scene = Scene::new();
            scene.write(&[name]);
            match scene.create() {
                Err(ProtectError::Replica(problem)) => {
                    assert_eq!(problem.code, "no-manifest");
                    assert!(problem.message.contains(name), "{problem}");
                }
                other => panic!("{name}: {other:?}"),
            }
            assert_eq!(scene.left(&[name]), [*name], "it is not touched");
        }
    }
}
