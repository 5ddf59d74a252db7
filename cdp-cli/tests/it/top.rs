//! `cdp top`, on a replica host that keeps the group of a filter in this process.

use super::support::{Place, Serving, cdp, wait_for};
use bytes::Bytes;
use cdp_core::capture::State as Filtering;
use cdp_core::media::{Disk, Storage};
use cdp_net::far::{Far, Remote};
use cdp_net::link::identity::Identity;
use cdp_net::link::pin::Peers;
use cdp_net::owner::Owner;
use cdp_net::protect::{GivenSources, ProtectError, Protection, ProtectionOptions, SourceOptions, State};
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::traffic::Traffic;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A disk whose replica is at that process.
fn protect(place: &Place, serving: &Serving) -> Result<Protection, ProtectError> {
    let identity = Arc::new(Identity::open_or_make(&place.path("filter"), "filter").unwrap());
    let options = FarOptions {
        to: vec![serving.address.to_string()],
        peers: Peers::new([serving.fingerprint.parse().unwrap()]),
        tenant: String::new(),
        name: "web".into(),
        spool: None,
        memory_bytes: 1 << 30,
        silence_ms: 5_000,
        connections: 0,
        ticket: Default::default(),
        traffic: Traffic::encrypted(),
    };
    let far: Arc<dyn Far> = Arc::new(Remote::new(FarLink::start(identity, options).unwrap()));
    let sources = vec![SourceOptions { name: "disk".into(), path: place.source("disk", 1, 4 << 20) }];
    let options = ProtectionOptions {
        sources: sources.clone(),
        name: Some("web".into()),
        policy: Default::default(),
        trust_source: false,
        full_check: false,
        queue_bytes: 64 << 20,
        reread_threads: 1,
    };
    let directory = place.path("filter-state");
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory).unwrap());
    let state = State { storage, owner: Some(Arc::new(Owner::acquire(&directory).unwrap())) };
    Protection::start(&options, GivenSources::open(&sources).unwrap(), state, &far, |_| {})
}

#[test]
fn a_group_is_shown_with_how_it_stands_once_its_filter_is_let_in() {
    let place = Place::new();
    let mut serving = Serving::start(&place, &["aa"]);
    let url = serving.metrics.to_string();
    let none = Command::new(env!("CARGO_BIN_EXE_cdp")).args(["top", "--once", &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&none.stdout), "no group is known there\n");
    let fingerprint = cdp(&["identity".as_ref(), place.path("filter").as_os_str()]).done();
    // Only the new file lets it in.
    Serving::write(&place, &["aa", fingerprint["fingerprint"].as_str().unwrap()]);
    let reloaded = serving.reload("reloaded");
    assert_eq!(reloaded["refused"], serde_json::json!([]));
    let protection = protect(&place, &serving).unwrap();
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    protection.exports()[0].device.write(4096, Bytes::from(vec![7; 64 << 10]), false).unwrap();
    wait_for("the write", || protection.status().durable >= protection.status().lsn);
    let mut row = serde_json::Value::Null;
    wait_for("a look at it", || {
        row = cdp(&["top", "--once", &url]).done();
        // A rate is there from its second look on.
        row["in_bytes_per_s"].is_u64() && row["rpo_looks"].as_u64() > Some(0) && row["state"] == "protecting"
    });
    assert_eq!((row["role"].as_str(), row["tenant"].as_str()), (Some("replica-host"), Some("acme")));
    assert_eq!(row["group"], "web");
    assert!(row["rpo_ms"].is_u64() && row["lag_ms"].is_u64(), "{row}");
    let metrics = serving.metrics();
    let received = metrics.lines().find(|line| line.starts_with("cdp_group_received_bytes_total")).unwrap();
    let received: f64 = received.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(received > f64::from(2 << 20), "first copy and write came here: {received}");

    let table = Command::new(env!("CARGO_BIN_EXE_cdp")).args(["top", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&table.stdout);
    let words: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(words[0][..5], ["TENANT", "GROUP", "ROLE", "STATE", "RPO"], "{text}");
    assert_eq!((words.len(), &words[1][..3]), (2, &["acme", "web", "replica-host"][..]), "{text}");
    assert!(protection.stop(Duration::from_secs(60), &|| false).drained);
    drop(protection);
    assert_eq!(serving.running.stop().0, 0);
    // What it keeps is a replica as any other, sealed and bounded as its file says.
    let (replica, key) = (place.path("replicas/acme/web"), place.path("at-rest.key"));
    let status = cdp(&["status".as_ref(), replica.as_os_str(), "--key-file".as_ref(), key.as_os_str()]).done();
    assert_eq!((status["sealed_at_rest"].as_bool(), status["space"]["quota"].as_u64()), (Some(true), Some(1 << 30)));
}

#[test]
fn a_process_that_does_not_answer_is_named() {
    let error = cdp(&["top", "--once", "127.0.0.1:1"]).failed(1, "no-metrics");
    assert!(error["message"].as_str().unwrap().contains("127.0.0.1:1"), "{error}");
    let place = Place::new();
    let file = Serving::write(&place, &["aa"]);
    let text = std::fs::read_to_string(&file).unwrap().replace("metrics = \"127.0.0.1:0\"\n", "");
    std::fs::write(&file, text).unwrap();
    cdp(&["top".as_ref(), "--config".as_ref(), file.as_os_str()]).failed(2, "no-metrics");
}
