//! A replica that nobody protects, whose owner reads everything in it for hours.

use crate::kit::{Place, label, seeded};
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::host::ReadWhole;
use cdp_net::owner::{ClientError, ControlClient, Owner, PinReply, PolicyChange, Request};
use cdp_net::protect::Protector;
use cdp_net::report::{Points, Policy, ProblemClass, Pruned, State, Status};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn who_asks_while_everything_is_read_is_answered_and_changes_nothing() {
    let place = Place::new();
    place.make_source("disk", 31);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    protector.mark(&label("kept")).unwrap();
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
    let whole = ReadWhole::begin(Owner::acquire(&replica).unwrap(), &storage, &key);
    let manifest = std::fs::read(replica.join("MANIFEST")).unwrap();
    let mut client = ControlClient::connect(&replica).unwrap();
    assert_eq!(client.call::<Status>(&Request::Status).unwrap().state, State::Stopped);
    let points: Points = client.call(&Request::Points { since: None, until: None, limit: None }).unwrap();
    assert!(points.points.iter().any(|point| point.label.as_deref() == Some("kept")));
    client.call::<PinReply>(&Request::Pin { at: When::Latest, nearest: None }).unwrap();
    client.call::<Policy>(&Request::Policy { change: PolicyChange::default() }).unwrap();
    client.call::<Pruned>(&Request::Prune { dry_run: true }).unwrap();
    let window = PolicyChange { window_ms: Some(1), ..PolicyChange::default() };
    for change in [
        Request::Policy { change: window },
        Request::Prune { dry_run: false },
        Request::Compact,
        Request::Keep { at: When::Latest, nearest: None, label: None },
        Request::OpenSession { at: Some(When::Latest), nearest: None, name: None },
        Request::RemoveDisk { name: "disk".into() },
    ] {
        let refused = client.call::<serde_json::Value>(&change).unwrap_err();
        let ClientError::Refused(problem) = refused else { panic!("{change:?}: {refused}") };
        assert_eq!((problem.class, problem.code.as_str()), (ProblemClass::Refused, "verifying"), "{change:?}");
    }
    assert!(std::fs::read(replica.join("MANIFEST")).unwrap() == manifest);
    drop(whole);
    assert!(matches!(ControlClient::connect(&replica), Err(ClientError::NoOwner { .. })));
    // What does not load is read all the same, and nobody is answered.
    for copy in ["MANIFEST", "MANIFEST.copy"] {
        let file = std::fs::OpenOptions::new().write(true).open(replica.join(copy)).unwrap();
        file.write_all_at(&[manifest[20] ^ 1], 20).unwrap();
    }
    let _whole = ReadWhole::begin(Owner::acquire(&replica).unwrap(), &storage, &key);
    assert!(matches!(ControlClient::connect(&replica), Err(ClientError::NoOwner { .. })));
}
