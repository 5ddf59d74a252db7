//! Whether the last restorable moment is the source, byte for byte.

use super::image::MIB;
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::host::load_idle;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What a replica holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The last restorable moment.
    pub(crate) lsn: u64,
    pub(crate) gaps: u64,
    pub(crate) equal: bool,
}

/// Reads the replica as somebody else would, after its owner has gone.
pub(crate) fn compare(replica: &Path, source: &Path) -> Result<Found, Box<dyn std::error::Error>> {
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(replica)?);
    let replica = load_idle(&storage, &KeyHolder::default())?;
    let gaps = replica.catalogue().trunk().map_or(0, |trunk| trunk.gaps().len() as u64);
    let moment = replica.resolve(&When::Latest)?;
    let view = replica.view(moment.timeline, moment.lsn)?;
    let disk = view.disks().first().ok_or("a replica without disks")?.clone();
    let source = File::open(source)?;
    let (mut here, mut there) = (vec![0; MIB], vec![0; MIB]);
    let mut equal = true;
    for at in (0..disk.size).step_by(MIB) {
        let length = (disk.size - at).min(MIB as u64) as usize;
        view.read(disk.id, at, &mut here[..length])?;
        source.read_exact_at(&mut there[..length], at)?;
        equal &= here[..length] == there[..length];
    }
    Ok(Found { lsn: moment.lsn.0, gaps, equal })
}
