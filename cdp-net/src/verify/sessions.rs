//! Reading the stores of writable sessions, whose writers come and go meanwhile.

use super::{Damage, damaged_copies, range_of};
use crate::host::{SESSIONS_DIRECTORY, session_directory};
use crate::owner::is_owned;
use cdp_core::journal::{
    Generation, Looked, OpenError, Reader, SessionInfo, look_through, look_with, read_manifest, segment_name,
};
use cdp_core::media::Storage;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{Lsn, SECTOR};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often a store is read in which somebody began or ended to write while that was done.
const LOOKS_MAX: usize = 4;

/// Reads the whole store of a session. `progress` is told what `bytes` is then, and says whether to go on.
pub(super) fn check_session(
    storage: &Arc<dyn Storage>,
    info: &SessionInfo,
    key: &KeyHolder,
    bytes: &mut u64,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Vec<Damage> {
    let directory = session_directory(info.timeline);
    let (mut looks, mut go_on) = (0, true);
    loop {
        looks += 1;
        let before = use_of(storage.as_ref(), &directory);
        let mut told = |bytes: u64| {
            go_on = go_on && progress(bytes);
            go_on
        };
        let found = check_store(storage, info, before.written, (key, bytes), &mut told);
        // One that was dropped meanwhile is no loss.
        let named = |info: &SessionInfo| {
            let now = read_manifest(storage.as_ref());
            now.map_or(true, |now| now.sessions.iter().any(|known| known.timeline == info.timeline))
        };
        if found.is_empty() || !named(info) {
            return Vec::new();
        }
        if !go_on || looks == LOOKS_MAX || use_of(storage.as_ref(), &directory) == before {
            return found;
        }
    }
}

/// What changes when somebody opens or closes a session.
#[derive(PartialEq, Eq)]
struct Use {
    written: bool,
    generation: Option<Generation>,
}

fn use_of(storage: &dyn Storage, directory: &str) -> Use {
    let written = is_owned(&Path::new(&storage.path()).join(directory)).unwrap_or(false);
    let generation = || Some(read_manifest(open(storage, directory).ok()??.as_ref()).ok()?.generation);
    Use { written, generation: generation() }
}

/// The store, if it is there: to look at it makes nothing.
fn open(storage: &dyn Storage, directory: &str) -> Result<Option<Arc<dyn Storage>>, OpenError> {
    let names = storage.list(SESSIONS_DIRECTORY)?;
    let is_it = |name: &String| format!("{SESSIONS_DIRECTORY}/{name}") == directory;
    Ok(if names.iter().any(is_it) { Some(storage.look_in(directory)?) } else { None })
}

fn check_store(
    storage: &Arc<dyn Storage>,
    info: &SessionInfo,
    written: bool,
    (key, bytes): (&KeyHolder, &mut u64),
    progress: &mut dyn FnMut(u64) -> bool,
) -> Vec<Damage> {
    let directory = session_directory(info.timeline);
    let damage = |file: PathBuf, offset, length, what, lost: Option<(Lsn, Lsn)>| {
        let lost = lost.map(|(from, newest)| range_of(info.timeline, from, newest.max(from))).into_iter().collect();
        Damage { file, offset, length, what, lost, ..Damage::default() }
    };
    let first = info.fork.next();
    let everything = |what| vec![damage(PathBuf::from(&directory), 0, SECTOR, what, Some((first, first)))];
    let store = match open(storage.as_ref(), &directory) {
        Ok(Some(store)) => store,
        Ok(None) => return everything("the session's store is not there".to_owned()),
        Err(error) => return everything(error.to_string()),
    };
    // Without its writer a frame counts only if every byte of it is right: the last one may be torn.
    let looked = match written {
        true => look_with(store.as_ref(), "", None, key),
        false => look_through(store.as_ref(), "", None, key),
    };
    let Looked { manifest, snapshot, damage: unopened, behind, keys } = match looked {
        Ok(looked) => looked,
        Err(error) => return everything(error.to_string()),
    };
    // Beside its writer only what is sealed, or known to be durable, is judged: the rest is on its way.
    let is_sealed = |file: &str| {
        let mut sealed = manifest.segments.iter().filter(|segment| segment.summary().is_some());
        sealed.any(|segment| segment_name(segment.number) == file)
    };
    let mut found = damaged_copies(store.as_ref(), Path::new(&directory));
    let unopened = unopened.iter().filter(|lost| !written || lost.good < manifest.durable).map(|lost| {
        let lsns = (lost.good.next(), lost.acknowledged);
        damage(PathBuf::from(&lost.path), lost.offset, SECTOR, lost.what.clone(), Some(lsns))
    });
    found.extend(unopened);
    let newest = snapshot.written();
    let reader = Reader::new(store, "", 0).with_keys(keys);
    for snapshot in std::iter::once(&snapshot).chain(&behind) {
        let (before, mut go_on) = (*bytes, true);
        let verified = reader.verify(snapshot, |read| {
            go_on = progress(before + read);
            go_on
        });
        *bytes += verified.bytes;
        let judged = verified.findings.into_iter().filter(|finding| !written || is_sealed(&finding.file));
        found.extend(judged.map(|finding| {
            let file = Path::new(&directory).join(&finding.file);
            damage(file, finding.offset, finding.length, finding.what, finding.lost.map(|(first, _)| (first, newest)))
        }));
        if !go_on {
            break;
        }
    }
    found
}
