//! Reading the stores of kept moments.

use super::{Damage, damaged_copies};
use cdp_core::journal::{KeptInfo, OpenError, Reader, look_through};
use cdp_core::media::Storage;
use cdp_core::replica::{Lost, kept};
use cdp_core::trust::KeyHolder;
use cdp_core::types::{DISK_MAX, Extent, SECTOR};
use std::path::PathBuf;
use std::sync::Arc;

/// Reads the whole store of a kept moment; gives what is wrong, and what of it cannot be read. `progress` is told what `bytes` is
/// then, and says whether to go on.
pub(super) fn check_kept(
    storage: &Arc<dyn Storage>,
    info: &KeptInfo,
    key: &KeyHolder,
    bytes: &mut u64,
    progress: &mut dyn FnMut(u64) -> bool,
) -> (Vec<Damage>, Vec<Lost>) {
    let directory = PathBuf::from(kept::directory(info.number));
    let damage = |file: PathBuf, offset, length, what| Damage { file, offset, length, what, ..Damage::default() };
    let everything = Lost { written: None, disk: None, extent: Extent::new(0, DISK_MAX) };
    let store = storage.look_in(&kept::directory(info.number));
    let looked = store.map_err(Into::into).and_then(|store| Ok((look_through(store.as_ref(), "", None, key)?, store)));
    let (looked, store) = match looked {
        Ok(found) => found,
        Err(error) => {
            let error: OpenError = error;
            return (vec![damage(directory, 0, SECTOR, error.to_string())], vec![everything]);
        }
    };
    let opened =
        |lost: &cdp_core::journal::Damage| damage(PathBuf::from(&lost.path), lost.offset, SECTOR, lost.what.clone());
    let mut found = damaged_copies(store.as_ref(), &directory);
    found.extend(looked.damage.iter().map(opened));
    let mut lost: Vec<_> = looked.damage.iter().map(|_| everything).collect();
    let (reader, before) = (Reader::new(store, "", 0).with_keys(Arc::clone(&looked.keys)), *bytes);
    let verified = reader.verify(&looked.snapshot, |read| progress(before + read));
    *bytes += verified.bytes;
    lost.extend(verified.unreadable.iter().map(Lost::from));
    let findings = verified.findings.into_iter();
    found.extend(findings.map(|f| damage(directory.join(&f.file), f.offset, f.length, f.what)));
    (found, lost)
}
