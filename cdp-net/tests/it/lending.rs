//! What a proxy has stored, a filter without room need not keep: until that proxy is lost.

mod proxy;

use self::proxy::{Proxy, Ways};
use crate::distance::{Sites, seeded, stop, write};
use crate::protect::{noise, restored, wait_for};
use crate::wan::network::Wan;
use cdp_core::capture::State as Filtering;
use cdp_core::frame::ResyncReason;
use cdp_core::replica::catalogue::LossReason;
use cdp_core::when::When;
use cdp_net::link::pin::Peers;
use cdp_net::protect::{Notice, Protection};
use cdp_net::services::far_link::FarOptions;
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

fn proxy(sites: &Sites, wan: &Wan, listen: SocketAddr) -> Proxy {
    let (filter, host) = (sites.identity("filter"), sites.identity("host"));
    let (peers_above, peers_below) = (Peers::new([filter.fingerprint()]), Peers::new([host.fingerprint()]));
    // To each side it is who the other one is.
    let ways = Ways { above: host, below: filter, peers_above, peers_below, next: wan.address(), held_bytes: 64 << 20 };
    Proxy::start(ways, listen)
}

/// A proxy has stored what the filter has no room for, and nobody behind it has anything of that.
fn lent() -> Line {
    let mut sites = Sites::new();
    sites.queue_bytes = 8 << 20;
    let mut model = sites.place.make_source("disk", 1);
    let wan = Wan::start(sites.address);
    let any = ([127, 0, 0, 1], 0).into();
    let first = proxy(&sites, &wan, any);
    // Nobody is there yet.
    let second = TcpListener::bind(any).unwrap().local_addr().unwrap();
    let to = vec![first.address.to_string(), second.to_string()];
    let far = FarOptions { to, memory_bytes: 12 << 20, ..sites.far_options(first.address) };
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

impl Line {
    fn settled(&self) {
        let lsn = self.protection.status().lsn;
        wait_for("everything to be restorable", || {
            let status = self.protection.status();
            status.state == Filtering::Protecting && status.restorable >= lsn
        });
    }
}

#[test]
fn what_a_proxy_stored_makes_room_at_the_filter_and_becomes_durable_from_there() {
    let line = lent();
    line.wan.mend();
    line.settled();
    let status = line.protection.status();
    assert_eq!((status.counters.gaps, status.counters.forks, status.lent), (0, 0, None), "{status:?}");
    stop(line.protection);
    drop((line.proxy, line.wan));
    assert!(restored(&line.sites.load(), &When::Latest, "disk") == line.model);
}

#[test]
fn what_was_lent_to_a_proxy_that_is_lost_is_read_again_and_nothing_else_is() {
    let mut line = lent();
    let read = line.protection.status().counters.bytes_reread;
    // With all that it had.
    line.proxy = None;
    line.proxy = Some(proxy(&line.sites, &line.wan, line.second));
    line.wan.mend();
    wait_for("a new timeline", || line.protection.status().counters.forks == 1);
    write(&line.protection, &mut line.model, 20 * MIB, noise(99, MIB));
    line.settled();
    let status = line.protection.status();
    assert_eq!((status.counters.gaps, status.lent), (0, None), "{status:?}");
    let read = status.counters.bytes_reread - read;
    assert!((12 * MIB as u64..16 * MIB as u64).contains(&read), "what was lent, and not the disk: {read}");
    assert!(line.alarms.lock().unwrap().is_empty(), "nothing was lost that was acknowledged as durable");
    stop(line.protection);
    drop((line.proxy, line.wan));
    let replica = line.sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == line.model);
    let why = LossReason::Resync(ResyncReason::LentLost);
    let gaps = replica.catalogue().trunk().unwrap().gaps();
    assert!(gaps.iter().any(|gap| gap.reason == why), "{gaps:?}");
}
