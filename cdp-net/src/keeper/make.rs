//! Making a replica: where one may be made, and what an attempt that did not end left behind.

use super::begin::info;
use super::find::{refused_by_media, unreadable};
use crate::far::NewGroup;
use crate::host::document;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{self, MANIFEST_NAME, Manifest, is_journal_file};
use cdp_core::media::{MediaError, Storage};
use cdp_core::replica::{BASE_DIRECTORY, BaseFile, JOURNAL_DIRECTORY};
use cdp_core::trust::KeyHolder;
use cdp_core::types::ReplicaId;

/// What of the directory is ours: segments, index runs, all files of bases.
fn ours(storage: &dyn Storage) -> Result<Vec<String>, MediaError> {
    let of = |directory: &str, is_ours: fn(&str) -> bool| -> Result<Vec<String>, MediaError> {
        let names = storage.list(directory)?.into_iter();
        Ok(names.filter(|name| is_ours(name)).map(|name| format!("{directory}/{name}")).collect())
    };
    let is_base_file = |name: &str| BaseFile::of(name).is_some();
    Ok([of(JOURNAL_DIRECTORY, is_journal_file)?, of(BASE_DIRECTORY, is_base_file)?].concat())
}

/// Whether a replica may be made here. Files of ours without a manifest are a replica that lost it, and are not touched.
pub(super) fn check_vacant(storage: &dyn Storage) -> Result<(), Problem> {
    let look = || -> Result<Option<String>, MediaError> {
        let begun = storage.list("")?.iter().any(|name| name == MANIFEST_NAME);
        Ok(ours(storage)?.into_iter().next().filter(|_| !begun))
    };
    let Some(file) = look().map_err(|error| refused_by_media(&error))? else { return Ok(()) };
    let message = format!("{} has {file} and no {MANIFEST_NAME}: it held a replica", storage.path());
    let hint = "bring the manifest back from a copy, or give an empty directory";
    Err(Problem::new(ProblemClass::Damage, "no-manifest", message).hint(hint))
}

/// Makes a new store. What a first copy that never ended left is removed: its manifest, which says so, goes last.
pub(super) fn create(storage: &dyn Storage, new: &NewGroup, key: &KeyHolder) -> Result<journal::Opened, Problem> {
    check_vacant(storage)?;
    clear(storage).map_err(|error| refused_by_media(&error))?;
    let Some(replica) = ReplicaId::new(identity()) else { unreachable!("an identity is never zero") };
    let mut manifest = Manifest::new(replica, new.group, &new.name);
    manifest.disks = new.disks.iter().map(info).collect();
    let keys = key.unlock(replica, &[]).map_err(|error| document::locked(&error))?;
    Ok(journal::Opened { keys, ..journal::create(storage, manifest).map_err(unreadable)? })
}

fn clear(storage: &dyn Storage) -> Result<(), MediaError> {
    let left = ours(storage)?;
    left.iter().try_for_each(|name| remove(storage, name))?;
    for directory in [JOURNAL_DIRECTORY, BASE_DIRECTORY].into_iter().filter(|_| !left.is_empty()) {
        // A directory that was never made has no names to make durable.
        match storage.sync_dir(directory) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    remove(storage, MANIFEST_NAME)?;
    storage.sync_dir("")
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
    use crate::far::NewDisk;
    use cdp_core::media::Disk;
    use cdp_core::types::{DiskId, GroupId, Lsn};
    use std::path::PathBuf;

    struct Scene {
        replica: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            Self { replica: directory.path().join("replica"), _directory: directory }
        }

        fn create(&self) -> Result<journal::Opened, Problem> {
            let id = DiskId::new(1).unwrap();
            let disk = NewDisk { id, name: "disk".into(), size: 8192, source: "disk.img".into(), added: Lsn::ZERO };
            let group = GroupId::new([3; 16]).unwrap();
            let new = NewGroup { group, name: "group".into(), disks: vec![disk] };
            create(&Disk::create(&self.replica).unwrap(), &new, &KeyHolder::default())
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
    const OURS: [&str; 7] = [
        "base/1.img",
        "base/1.sum",
        "base/1.dig0",
        "base/1.dig1",
        "base/merge.rests",
        "journal/0000000000000001.seg",
        "journal/0000000000000001.idx",
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
        for name in &OURS {
            let scene = Scene::new();
            scene.write(&[name]);
            match scene.create() {
                Err(problem) => {
                    assert_eq!(problem.code, "no-manifest");
                    assert!(problem.message.contains(name), "{problem}");
                }
                Ok(made) => panic!("{name}: {:?}", made.manifest),
            }
            assert_eq!(scene.left(&[name]), [*name], "it is not touched");
        }
    }
}
