//! What a proxy has stored, a filter without room need not keep: until that proxy is lost.

use crate::kit::{Sites, any, far_options, noise, restored, seeded, settled, stop, wait_for, write};
use crate::wan::network::Wan;
use cdp_core::capture::State as Filtering;
use cdp_core::frame::ResyncReason;
use cdp_core::replica::catalogue::LossReason;
use cdp_core::when::When;
use cdp_net::protect::{Notice, Protection};
use cdp_net::services::far_link::FarOptions;
use cdp_net::services::proxy::{Mode, Proxy};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

const MIB: usize = 1 << 20;

/// Filter, proxy, cable, replica host.
struct Line {
    sites: Sites,
    wan: Wan,
    proxy: Option<Proxy>,
    /// Where another one may stand.
    second: SocketAddr,
    protection: Protection,
    alarms: Arc<Mutex<Vec<Notice>>>,
    model: Vec<u8>,
}

/// One that has nothing of what others kept.
fn proxy(sites: &Sites, wan: &Wan, cache: &str, listen: SocketAddr) -> Proxy {
    sites.proxy("proxy", cache, listen, &[("filter", "*"), ("host", "*")], &[wan.address()], Mode::Pass)
}

/// A proxy has stored what the filter has no room for, and nobody behind it has anything of that.
fn lent() -> Line {
    let mut sites = Sites::listing(&[("proxy", "acme")]);
    sites.queue_bytes = 8 << 20;
    let mut model = sites.place.make_source("disk", 1);
    let wan = Wan::start(sites.host.address);
    let first = proxy(&sites, &wan, "first", any());
    // Nobody is there yet.
    let second = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let straight = far_options(&[first.address(), second], &sites.identity("proxy"));
    let far = FarOptions { memory_bytes: 12 << 20, ..straight };
    let alarms = Arc::new(Mutex::new(Vec::new()));
    let for_notices = Arc::clone(&alarms);
    let notices = move |notice: Notice| {
        if matches!(notice, Notice::AcknowledgedLost { .. }) {
            for_notices.lock().unwrap().push(notice);
        }
    };
    let protection = sites.protect_over(far, "disk", notices).unwrap();
    seeded(&protection);
    let lsn = protection.status().lsn;
    wait_for("the first copy to be durable", || protection.status().restorable >= lsn);
    wan.cut();
    for piece in 0..40 {
        write(&protection, &mut model, (piece * 5 % 12) * MIB, noise(piece as u64, MIB));
        let queued = || {
            let status = protection.status();
            status.queued_bytes < 6 << 20 || status.stored >= status.settled
        };
        wait_for("the proxy to store it", queued);
    }
    let status = protection.status();
    assert_eq!((status.state, status.counters.gaps), (Filtering::Protecting, 0), "{status:?}");
    assert!(status.lent.is_some() && status.lent_bytes >= 12 * MIB as u64, "{status:?}");
    Line { sites, wan, proxy: Some(first), second, protection, alarms, model }
}

#[test]
fn what_a_proxy_stored_makes_room_at_the_filter_and_becomes_durable_from_there() {
    let line = lent();
    line.wan.mend();
    settled(&line.protection);
    let status = line.protection.status();
    assert_eq!((status.counters.gaps, status.counters.forks, status.lent), (0, 0, None), "{status:?}");
    stop(line.protection);
    drop((line.proxy, line.wan));
    assert!(restored(&line.sites.load().0, &When::Latest, "disk") == line.model);
}

#[test]
fn what_was_lent_to_a_proxy_that_is_lost_is_read_again_and_nothing_else_is() {
    let mut line = lent();
    let read = line.protection.status().counters.bytes_reread;
    // With all that it had.
    line.proxy = None;
    line.proxy = Some(proxy(&line.sites, &line.wan, "second", line.second));
    line.wan.mend();
    wait_for("a new timeline", || line.protection.status().counters.forks == 1);
    write(&line.protection, &mut line.model, 20 * MIB, noise(99, MIB));
    settled(&line.protection);
    let status = line.protection.status();
    assert_eq!((status.counters.gaps, status.lent), (0, None), "{status:?}");
    let read = status.counters.bytes_reread - read;
    assert!((12 * MIB as u64..16 * MIB as u64).contains(&read), "what was lent, and not the disk: {read}");
    assert!(line.alarms.lock().unwrap().is_empty(), "nothing was lost that was acknowledged as durable");
    stop(line.protection);
    drop((line.proxy, line.wan));
    let (replica, _place) = line.sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == line.model);
    let why = LossReason::Resync(ResyncReason::LentLost);
    let gaps = replica.catalogue().trunk().unwrap().gaps();
    assert!(gaps.iter().any(|gap| gap.reason == why), "{gaps:?}");
}
