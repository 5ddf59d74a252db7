//! The manifest on the media: two copies, either of which is enough.
//!
//! Both are replaced at each change, the second one first. So a manifest that nobody was told of may stand as the second copy
//! after a crash, and never an old one: whoever finds the first one damaged loses nothing by taking the second.

use super::bytes::FormatError;
use super::manifest::{MANIFEST_COPY, MANIFEST_MAX, MANIFEST_NAME, MANIFEST_TMP, Manifest};
use super::recover::OpenError;
use crate::media::{MediaError, Storage};
use bytes::Bytes;

/// Reads a store's manifest and nothing else: the second copy where the first one is damaged.
///
/// # Errors
/// When there is none, or neither verifies: then what is wrong with the first.
pub fn read_manifest(storage: &dyn Storage) -> Result<Manifest, OpenError> {
    match read_copy(storage, MANIFEST_NAME) {
        Ok(manifest) => Ok(manifest),
        // One that was removed is no damage: there is no store any more.
        Err(error @ OpenError::NoStore { .. }) => Err(error),
        Err(error) => read_copy(storage, MANIFEST_COPY).map_err(|_| error),
    }
}

/// Names of the copies that do not read as they should, with what is wrong. None is lost as long as it is one.
///
/// # Errors
/// When neither verifies.
pub fn damaged_manifests(storage: &dyn Storage) -> Result<Vec<(&'static str, String)>, OpenError> {
    read_manifest(storage)?;
    let wrong = |name| match read_copy(storage, name).err()? {
        OpenError::Manifest { source, .. } => Some((name, source.to_string())),
        OpenError::NoStore { .. } => Some((name, "it is not there".to_owned())),
        error => Some((name, error.to_string())),
    };
    Ok([MANIFEST_NAME, MANIFEST_COPY].into_iter().filter_map(wrong).collect())
}

fn read_copy(storage: &dyn Storage, name: &str) -> Result<Manifest, OpenError> {
    let file = match storage.open(name, false) {
        Err(error) if error.is_not_found() => return Err(OpenError::NoStore { path: storage.path() }),
        other => other?,
    };
    let length = file.len()?;
    let failed = |source| OpenError::Manifest { path: storage.path(), source };
    if length > MANIFEST_MAX {
        return Err(failed(FormatError::Field { what: "manifest", field: "length", value: length }));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(0, &mut bytes)?;
    Manifest::decode(&bytes).map_err(failed)
}

/// Replaces both copies of the manifest: each written beside, synced, renamed over the old one; the directory synced.
///
/// # Errors
/// When the media do not let us; the old one then stands.
pub(super) fn write_manifest(storage: &dyn Storage, manifest: &Manifest) -> Result<(), MediaError> {
    let bytes = Bytes::from(manifest.encode());
    for name in [MANIFEST_COPY, MANIFEST_NAME] {
        match storage.remove(MANIFEST_TMP) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let file = storage.create(MANIFEST_TMP)?;
        file.write_at(0, std::slice::from_ref(&bytes))?;
        file.sync()?;
        storage.rename(MANIFEST_TMP, name)?;
    }
    storage.sync_dir("")
}
