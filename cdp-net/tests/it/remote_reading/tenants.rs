//! What one tenant asks keeps no other tenant waiting.

use super::{content, marked, order, protect, read, three_sites};
use crate::kit::stop;
use bytes::Bytes;
use cdp_core::journal::MANIFEST_NAME;
use cdp_core::link::message::Call;
use cdp_net::far::CallKind;
use cdp_net::owner::{Hello, PROTOCOL, SOCKET_FILE, VERSION};
use cdp_net::services::far_link::FarLink;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::Duration;

/// As many calls as sessions have, in as many sessions as would fill every thread of the host.
#[test]
fn a_tenant_whose_calls_are_never_answered_keeps_no_other_tenant_waiting() {
    let sites = three_sites();
    sites.place.make_source("disk", 8);
    // An owner that greets and never answers.
    let directory = sites.replicas().join("other/machine");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(MANIFEST_NAME), "").unwrap();
    let owner = UnixListener::bind(directory.join(SOCKET_FILE)).unwrap();
    let link = || FarLink::start(sites.identity("stranger"), sites.far_options(sites.host.address)).unwrap();
    let flood: Vec<_> = (0..3).map(|_| link()).collect();
    let header: Bytes = serde_json::to_vec(&order("latest")).unwrap().into();
    let kind = CallKind::OpenView as u16;
    let begin = |_| Call { kind, header: header.clone(), tail: Bytes::new() };
    let waiting: Vec<_> = flood
        .iter()
        .flat_map(|link| (0..250).map(begin).map(|call| link.begin_call(call, Duration::from_secs(60))))
        .collect();
    let (mut held, _) = owner.accept().unwrap();
    let hello = Hello { protocol: PROTOCOL.into(), version: VERSION, pid: std::process::id(), since: None };
    writeln!(held, "{}", serde_json::json!({ "id": 0, "ok": hello })).unwrap();
    let protection = protect(&sites);
    let [one, two] = marked(&sites, &protection);
    let replica = read(&sites);
    for (at, model) in [("label:one", &one), ("label:two", &two)] {
        assert!(content(&replica.view(order(at)).unwrap()) == *model);
    }
    stop(protection);
    drop((waiting, held, owner));
}
