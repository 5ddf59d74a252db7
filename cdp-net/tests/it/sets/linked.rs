//! The same where each member is reached by a link of its own over TLS.

use super::*;
use cdp_net::link::identity::Identity;
use cdp_net::sets::link::{Meeting, TakerAddress, attend, reports_out};
use tokio::runtime::Runtime;

fn identity() -> (tempfile::TempDir, Arc<Identity>) {
    let directory = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::open_or_make(directory.path(), "test").unwrap());
    (directory, identity)
}

/// Joins by a link to `taker`, as `own`.
fn join_by_link(runtime: &Runtime, side: &Side, set: SetId, own: Arc<Identity>, taker: TakerAddress) {
    let protection = side.protector.protection();
    let (out, queue) = reports_out();
    let reports = Box::new(move |report| {
        let _ = out.try_send(report);
    });
    protection.join_set(SetOptions { set, name: "shop".into(), reports });
    let protector = Arc::downgrade(&side.protector);
    let order = move |order| {
        if let Some(protector) = protector.upgrade() {
            protector.protection().set_order(order);
        }
    };
    runtime.spawn(attend(own, taker, protection.group(), queue, order));
}

#[test]
fn no_common_point_holds_an_effect_without_its_cause_over_tls() {
    cuts_over(|sides, set, give| {
        let runtime = Runtime::new().unwrap();
        let (directories, own): (Vec<_>, Vec<_>) = (0..3).map(|_| identity()).unzip();
        let groups = sides.each_ref().map(|side| side.protector.protection().group());
        let members = groups.iter().zip(&own[1..]).map(|(group, own)| (*group, own.fingerprint())).collect();
        let listening = Meeting::listen("127.0.0.1:0", Arc::clone(&own[0]), members, give);
        let (meeting, ways) = runtime.block_on(listening).unwrap();
        let taker = TakerAddress { address: meeting.address().to_string(), fingerprint: own[0].fingerprint() };
        for (side, own) in sides.iter().zip(&own[1..]) {
            join_by_link(&runtime, side, set, Arc::clone(own), taker.clone());
        }
        (ways, Box::new((meeting, runtime, directories)))
    });
}

/// One that has the certificate of a member speaks for its own group and for no other.
#[test]
fn nobody_speaks_for_the_group_of_another() {
    let runtime = Runtime::new().unwrap();
    let (directories, own): (Vec<_>, Vec<_>) = (0..3).map(|_| identity()).unzip();
    let sides = [Side::start(5), Side::start(6)];
    let groups = sides.each_ref().map(|side| side.protector.protection().group());
    let (give, inbox) = reports();
    let members = groups.iter().zip(&own[1..]).map(|(group, own)| (*group, own.fingerprint())).collect();
    let listening = Meeting::listen("127.0.0.1:0", Arc::clone(&own[0]), members, &give);
    let (meeting, ways) = runtime.block_on(listening).unwrap();
    let taker = TakerAddress { address: meeting.address().to_string(), fingerprint: own[0].fingerprint() };
    let set = SetId::new([7; 16]).unwrap();
    // The second one comes with the certificate of the first.
    for side in &sides {
        join_by_link(&runtime, side, set, Arc::clone(&own[1]), taker.clone());
    }
    let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
    let seen = Arc::clone(&ended);
    let push = move |end| seen.lock().unwrap().push(end);
    let taking = Taking::start(set, ways, Duration::from_millis(110), (give, inbox), push).unwrap();
    let second_only = |end: &Ended| end.verdict == Verdict::Missed(Miss::NotPrepared(vec![groups[1]]));
    wait_for("cuts that only the second misses", || {
        ended.lock().unwrap().iter().filter(|end| second_only(end)).count() > 3
    });
    drop(taking);
    assert!(ended.lock().unwrap().iter().all(|end| matches!(end.verdict, Verdict::Missed(_))));
    assert_eq!(sides[1].protector.protection().set_counts().unwrap().holds, 0, "and it hears nothing");
    drop((meeting, directories));
}
