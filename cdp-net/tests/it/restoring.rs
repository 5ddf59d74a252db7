//! What a restore does beside giving back the right bytes: it hears that it shall stop, and takes nobody's place by accident.

use crate::kit::{Place, seeded};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::owner::Access;
use cdp_net::protect::Protector;
use cdp_net::reading::Reading;
use cdp_net::report::ProblemClass;
use cdp_net::restore::{RestoreOptions, restore};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DISK: u64 = 1024 * MIB;

/// A replica of a disk that is all zeros.
fn empty_disk(place: &Place) -> Reading {
    std::fs::File::create(place.source("disk")).unwrap().set_len(DISK).unwrap();
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let access = Access::open(&place.replica(), Duration::from_secs(5)).unwrap();
    Reading::open(&place.replica(), access, &When::Latest, None, &KeyHolder::default()).unwrap()
}

#[test]
fn a_restore_of_zeros_hears_that_it_shall_stop() {
    let place = Place::new();
    let reading = empty_disk(&place);
    let options = RestoreOptions { output: place.source("out.img"), disk: None, force: false };
    let mut told = Vec::new();
    let mut once = |done, total| {
        told.push((done, total));
        false
    };
    let stopped = restore(&reading.view().unwrap(), &options, &mut once).unwrap_err();
    assert_eq!(stopped.code, "stopped");
    let [(done, DISK)] = told[..] else { panic!("{told:?}") };
    assert!(done <= 64 * MIB, "{done} bytes of zeros went by");
    assert!(!options.output.exists());
    let mut last = 0;
    let mut on = |done, _| {
        assert!(done >= last, "{done} after {last}");
        last = done;
        true
    };
    restore(&reading.view().unwrap(), &options, &mut on).unwrap();
    assert_eq!((last, std::fs::metadata(&options.output).unwrap().len()), (DISK, DISK));
}

#[test]
fn what_came_there_while_a_restore_ran_is_not_replaced_without_force() {
    let place = Place::new();
    let reading = empty_disk(&place);
    let output = place.source("out.img");
    for force in [false, true] {
        let _ = std::fs::remove_file(&output);
        let options = RestoreOptions { output: output.clone(), disk: None, force };
        let mut come = |_, _| {
            std::fs::write(&output, b"somebody's").unwrap();
            true
        };
        let restored = restore(&reading.view().unwrap(), &options, &mut come);
        let there = std::fs::metadata(&output).unwrap().len();
        if force {
            assert_eq!((restored.unwrap().len(), there), (1, DISK));
        } else {
            let refused = restored.unwrap_err();
            assert_eq!((refused.class, refused.code.as_str()), (ProblemClass::Refused, "output-exists"));
            assert_eq!(std::fs::read(&output).unwrap(), b"somebody's");
        }
        let names = std::fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".cdp-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
