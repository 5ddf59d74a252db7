//! The journal's index is merged while disks are protected, and nothing but time depends on it.

use super::protect::{Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::verify::verify;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn index_files(place: &Place) -> Vec<PathBuf> {
    let names = std::fs::read_dir(place.replica().join("journal")).unwrap();
    let mut files: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "idx"));
    files.sort();
    files
}

fn start(place: &Place) -> Protector {
    let options = ProtectOptions { segment_bytes: 1 << 20, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(&protector);
    protector
}

/// Writes so many segments' worth.
fn load(protector: &Protector, model: &mut [u8], segments: u64, seed: u64) {
    let device = &protector.exports()[0].device;
    for number in 0..segments * 10 {
        let at = (seed * 7 + number * 13) as usize % 180 * (128 << 10);
        let data = noise(seed * 1000 + number, 128 << 10);
        model[at..at + data.len()].copy_from_slice(&data);
        device.write(at as u64, Bytes::from(data), false).unwrap();
    }
}

#[test]
fn runs_are_made_beside_the_guest_and_survive_a_stop_and_their_loss() {
    let place = Place::new();
    let mut model = place.make_source("disk", 31);
    let protector = start(&place);
    load(&protector, &mut model, 12, 1);
    protector.mark(&label("early")).unwrap();
    let early = model.clone();
    wait_for("a run of the index", || !index_files(&place).is_empty());
    // Beside an owner that goes on merging.
    load(&protector, &mut model, 12, 2);
    protector.mark(&label("late")).unwrap();
    let runs = |protector: &Protector| protector.host().replica().manifest().runs.len();
    wait_for("both runs to be named", || runs(&protector) >= 2);
    assert!(restored(&protector.host().replica(), &When::Label(label("early")), "disk") == early);
    assert!(restored(&protector.host().replica(), &When::Label(label("late")), "disk") == model);
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(place.replica()).unwrap());
    let found = verify(&storage, None, &KeyHolder::default(), &mut |_, _| {}).unwrap();
    assert!(found.ok, "{:?}", found.damage);
    // One is lost: it is told, costs nothing, and is made again.
    let files = index_files(&place);
    std::fs::write(&files[0], b"something else").unwrap();
    let found = verify(&storage, None, &KeyHolder::default(), &mut |_, _| {}).unwrap();
    assert!(!found.ok && found.damage.iter().all(|damage| damage.file == files[0] && damage.lost.is_empty()));
    assert!(restored(&place.load(), &When::Label(label("early")), "disk") == early);
    let protector = start(&place);
    wait_for("the run to be made again", || runs(&protector) >= files.len() && !files[0].exists());
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    assert!(verify(&storage, None, &KeyHolder::default(), &mut |_, _| {}).unwrap().ok);
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
}
