//! A wrapping key is rotated in every store of a replica, or the old one goes on opening it.

use crate::kit::{Place, seeded};
use cdp_core::media::{Disk, Fault, Faults, Faulty, MediaErrorKind, Operation, Storage};
use cdp_core::trust::{KeyHolder, WrappingKey};
use cdp_net::host::{Host, rotate_key};
use cdp_net::owner::Owner;
use cdp_net::protect::{ProtectOptions, Protector};
use std::sync::Arc;
use std::time::Duration;

fn key(byte: u8) -> WrappingKey {
    WrappingKey::parse(&[byte; 32]).unwrap()
}

fn holder(byte: u8) -> KeyHolder {
    Some(key(byte)).into()
}

#[test]
fn a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one() {
    let place = Place::new();
    place.make_source("disk", 21);
    let options = ProtectOptions { key: holder(1), ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let owner = Owner::acquire(&place.replica()).unwrap();
    let disk: Arc<dyn Storage> = Arc::new(Disk::open(place.replica()).unwrap());
    for directory in ["sessions", "kept"] {
        let faults = Faults::default();
        faults.add(Fault::always(Operation::List, directory, MediaErrorKind::Io));
        let faulty: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::clone(&disk), faults.clone()));
        rotate_key(&owner, &faulty, &holder(1), &key(2)).unwrap_err();
        assert_eq!(faults.fired(), 1);
        Host::idle(Arc::clone(&disk), &holder(1)).unwrap();
    }
    rotate_key(&owner, &disk, &holder(1), &key(2)).unwrap();
    Host::idle(Arc::clone(&disk), &holder(2)).unwrap();
    assert_eq!(Host::idle(disk, &holder(1)).unwrap_err().code, "key-wrong");
}
