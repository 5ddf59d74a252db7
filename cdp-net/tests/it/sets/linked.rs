//! The same where each member is reached by a link of its own over TLS.

use super::*;
use cdp_core::set::{How, Order, OrderKind, Place, Report, ReportKind};
use cdp_core::types::{Lsn, StartId, Timeline};
use cdp_net::link::identity::Identity;
use cdp_net::link::pin::{Fingerprint, Peers};
use cdp_net::sets::link::member::{Attendance, Present, reports_out};
use cdp_net::sets::link::taker::{FarMember, MemberPlace, Standing};
use tokio::runtime::Runtime;

fn identity() -> (tempfile::TempDir, Arc<Identity>) {
    let directory = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::open_or_make(directory.path(), "test").unwrap());
    (directory, identity)
}

/// Listens as `own` for this taker.
fn listen(runtime: &Runtime, own: &Arc<Identity>, taker: Fingerprint) -> Attendance {
    runtime.block_on(Attendance::listen("127.0.0.1:0", Arc::clone(own), Peers::new([taker]))).unwrap()
}

/// A group's member takes its seat.
fn sit(runtime: &Runtime, attendance: &Attendance, side: &Side, set: SetId) {
    let protection = side.protector.protection();
    let (out, queue) = reports_out();
    let reports = Box::new(move |report| {
        let _ = out.try_send(report);
    });
    protection.join_set(SetOptions { set, name: "shop".into(), reports });
    let protector = Arc::downgrade(&side.protector);
    let order = Box::new(move |order| {
        if let Some(protector) = protector.upgrade() {
            protector.protection().set_order(order);
        }
    });
    attendance.sit(runtime.handle(), "disk", Present { set, group: protection.group(), order }, queue);
}

fn reach(runtime: &Runtime, own: &Arc<Identity>, at: &Attendance, listed: Fingerprint, set: SetId) -> FarMember {
    let peers = Peers::new([listed]);
    let place = MemberPlace { address: at.address().to_string(), group: "disk".into(), peers };
    FarMember::reach(runtime.handle(), Arc::clone(own), place, set)
}

fn away(member: &FarMember, why: &str) -> bool {
    matches!(member.standing(), Standing::Away(text) if text.contains(why))
}

#[test]
fn no_common_point_holds_an_effect_without_its_cause_over_tls() {
    cuts_over(|sides, set, give| {
        let runtime = Runtime::new().unwrap();
        let (directories, own): (Vec<_>, Vec<_>) = (0..3).map(|_| identity()).unzip();
        let (mut ways, mut kept) = (BTreeMap::new(), Vec::new());
        for (side, own_of) in sides.iter().zip(&own[1..]) {
            let attendance = listen(&runtime, own_of, own[0].fingerprint());
            sit(&runtime, &attendance, side, set);
            let member = reach(&runtime, &own[0], &attendance, own_of.fingerprint(), set);
            let group = side.protector.protection().group();
            wait_for("the member", || member.standing() == Standing::There(group));
            ways.insert(group, member.way(give.clone()));
            kept.push((attendance, member));
        }
        (ways, Box::new((kept, runtime, directories)))
    });
}

#[test]
fn who_is_not_listed_or_means_another_set_is_told_so_and_comes_in_later() {
    let runtime = Runtime::new().unwrap();
    let (_directories, own): (Vec<_>, Vec<_>) = (0..3).map(|_| identity()).unzip();
    let side = Side::start(5);
    let group = side.protector.protection().group();
    let [set, other] = [7, 8].map(|byte| SetId::new([byte; 16]).unwrap());
    let attendance = listen(&runtime, &own[1], own[0].fingerprint());
    let print = own[1].fingerprint();
    let member = reach(&runtime, &own[0], &attendance, print, set);
    wait_for("no such group", || away(&member, "no group of this name takes part"));
    // It is not protected yet, or not of this set, and later it is.
    sit(&runtime, &attendance, &side, other);
    wait_for("another set", || away(&member, "in another consistency set here"));
    sit(&runtime, &attendance, &side, set);
    wait_for("the member", || member.standing() == Standing::There(group));
    let stranger = reach(&runtime, &own[2], &attendance, print, set);
    let impostor = reach(&runtime, &own[0], &attendance, own[2].fingerprint(), set);
    wait_for("the refusals", || away(&stranger, "") && away(&impostor, ""));
    // The one that was let in is not disturbed.
    assert_eq!(member.standing(), Standing::There(group));
    attendance.leave("disk");
    wait_for("its leave", || matches!(member.standing(), Standing::Away(_)));
    drop(attendance);
    wait_for("nobody there", || away(&member, "Connection refused"));
}

/// A member speaks for its own group and for no other.
#[test]
fn nobody_speaks_for_the_group_of_another() {
    let runtime = Runtime::new().unwrap();
    let (_directories, own): (Vec<_>, Vec<_>) = (0..2).map(|_| identity()).unzip();
    let side = Side::start(6);
    let set = SetId::new([7; 16]).unwrap();
    let (give, inbox) = reports();
    let mut ways = BTreeMap::from([join(&side, set, &give)]);
    let (first, second) = (side.protector.protection().group(), GroupId::new([9; 16]).unwrap());
    // The second one speaks for the first as well, whatever it is told.
    let attendance = listen(&runtime, &own[1], own[0].fingerprint());
    let (out, queue) = reports_out();
    let heard: Arc<Mutex<usize>> = Arc::default();
    let count = Arc::clone(&heard);
    let order = Box::new(move |order: Order| {
        *count.lock().unwrap() += usize::from(order.kind == OrderKind::Prepare);
        let place = Place { timeline: Timeline::new([1; 16]).unwrap(), lsn: Lsn(1) };
        let start = StartId::new([2; 16]).unwrap();
        let kind = ReportKind::Released { how: How::Timer, place: Some(place) };
        let _ = out.try_send(Report { set, cut: order.cut, group: first, start, kind });
    });
    attendance.sit(runtime.handle(), "disk", Present { set, group: second, order }, queue);
    let member = reach(&runtime, &own[0], &attendance, own[1].fingerprint(), set);
    wait_for("the member", || member.standing() == Standing::There(second));
    ways.insert(second, member.way(give.clone()));
    let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
    let seen = Arc::clone(&ended);
    let push = move |end| seen.lock().unwrap().push(end);
    let taking = Taking::start(set, ways, Duration::from_millis(110), (give, inbox), push).unwrap();
    wait_for("some cuts", || ended.lock().unwrap().len() > 5);
    drop(taking);
    assert!(*heard.lock().unwrap() > 3, "it was asked, and has said something each time");
    let not_heard =
        |end: &Ended| matches!(&end.verdict, Verdict::Missed(Miss::NotPrepared(who)) if who.contains(&second));
    assert!(ended.lock().unwrap().iter().all(not_heard), "{:?}", ended.lock().unwrap());
}
