//! The journal's index is merged while disks are protected, and nothing but time depends on it.

use crate::kit::{Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::journal::{Manifest, read_manifest, segment_name};
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::protect::{Notice, ProtectOptions, Protector};
use cdp_net::verify::verify;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

fn index_files(place: &Place) -> Vec<PathBuf> {
    let names = std::fs::read_dir(place.replica().join("journal")).unwrap();
    let mut files: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "idx"));
    files.sort();
    files
}

fn start(place: &Place) -> Protector {
    start_with(place, |_| {})
}

fn start_with(place: &Place, notices: impl Fn(Notice) + Send + 'static) -> Protector {
    let options = ProtectOptions { segment_bytes: 1 << 20, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, notices).unwrap();
    seeded(protector.protection());
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
    wait_for("footers to be emptied", || protector.host().replica().manifest().runs.iter().all(|run| run.emptied));
    assert!(restored(&protector.host().replica(), &When::Label(label("early")), "disk") == early);
    assert!(restored(&protector.host().replica(), &When::Label(label("late")), "disk") == model);
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(place.replica()).unwrap());
    let found = verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap();
    assert!(found.ok, "{:?}", found.damage);
    // One is lost: it is told, costs nothing, and is made again.
    let files = index_files(&place);
    let in_runs = |manifest: &Manifest| -> Vec<u64> {
        let of_run =
            |number: &u64| manifest.runs.iter().any(|run| (run.first_segment..=run.last_segment).contains(number));
        manifest.segments.iter().map(|segment| segment.number).filter(of_run).collect()
    };
    let before = in_runs(&read_manifest(storage.as_ref()).unwrap());
    std::fs::write(&files[0], b"something else").unwrap();
    let found = verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap();
    assert!(!found.ok && found.damage.iter().all(|damage| damage.file == files[0] && damage.lost.is_empty()));
    assert!(restored(&place.load(), &When::Label(label("early")), "disk") == early);
    let protector = start(&place);
    wait_for("the run to be made again", || {
        let now = in_runs(protector.host().replica().manifest());
        before.iter().all(|number| now.contains(number)) && !files[0].exists()
    });
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    assert!(verify(&storage, None, &KeyHolder::default(), &mut |_, _| true).unwrap().ok);
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
}

/// Neither its footer nor its frames say any more where its data is.
#[test]
fn a_segment_that_cannot_be_merged_is_told_of_once_and_left_out() {
    let place = Place::new();
    let mut model = place.make_source("disk", 32);
    let protector = start(&place);
    // Fewer segments than are merged into a run.
    load(&protector, &mut model, 3, 1);
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(place.replica()).unwrap());
    let manifest = read_manifest(storage.as_ref()).unwrap();
    assert!(manifest.runs.is_empty());
    let segment = manifest.segments[2];
    let file = storage.open(&format!("journal/{}", segment_name(segment.number)), true).unwrap();
    file.write_all_at(segment.summary().unwrap().frames_end, &[0x5a; 64]).unwrap();
    file.write_all_at(4096, &[0x5a; 64]).unwrap();
    let (sender, told) = channel();
    let protector = start_with(&place, move |notice| drop(sender.send(notice)));
    load(&protector, &mut model, 14, 2);
    let is_trouble = |notice: &Notice| matches!(notice, Notice::IndexTrouble(_));
    let runs = || protector.host().replica().manifest().runs.clone();
    wait_for("a run of the others", || !runs().is_empty());
    assert!(runs().iter().all(|run| run.first_segment > segment.number));
    let mut notices = Vec::new();
    wait_for("the word of it", || {
        notices.extend(told.try_iter().filter(is_trouble));
        !notices.is_empty()
    });
    std::thread::sleep(Duration::from_millis(300));
    notices.extend(told.try_iter().filter(is_trouble));
    let expected = format!("segment {} stays out of the levelled index", segment.number);
    assert!(matches!(&notices[..], [Notice::IndexTrouble(why)] if why.starts_with(&expected)), "{notices:?}");
}
