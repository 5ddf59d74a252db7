//! What happens when the queue fills: memory, spool, what is lent, change tracking.

use super::resync::overload;
use super::*;
use crate::capture::{DIRTY_BLOCK, REREADS_LIMIT, Stage};

fn far() -> FilterOptions {
    FilterOptions { keeps_ranges: true, ..options() }
}

fn fill(rig: &mut Rig, from_mib: u64, count: u64) {
    for at in from_mib..from_mib + count {
        let ticket = rig.go(write(at << 20, 1 << 20));
        rig.complete(ticket, Ok(()));
    }
}

fn last(rig: &Rig) -> Lsn {
    rig.frames.last().expect("frames").last_lsn()
}

#[test]
fn what_is_stored_is_lent_only_when_the_bound_is_reached_and_comes_back_when_it_is_durable() {
    let mut rig = Rig::protecting_with(far());
    fill(&mut rig, 0, 3);
    rig.pass(20 * MS);
    rig.filter.stored(last(&rig));
    rig.drain();
    let status = rig.filter.status(rig.now());
    assert!(rig.lent.is_empty() && status.lent.is_none() && status.stored == last(&rig));
    assert!(status.queued_bytes > 3 << 20, "it is all kept");
    fill(&mut rig, 16, 1);
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, rig.lent.len()), (State::Protecting, 1));
    assert_eq!(status.lent, rig.lent.last().copied());
    assert!((1 << 20..2 << 20).contains(&status.lent_bytes), "as little as makes room: {}", status.lent_bytes);
    assert!(status.queued_bytes <= status.queue_bytes_max && status.durable < rig.lent[0]);
    rig.pass(20 * MS);
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.lent, status.lent_bytes, status.queued_bytes), (None, 0, 0));
}

#[test]
fn without_a_proxy_or_without_ranges_nothing_is_lent() {
    let mut rig = Rig::protecting_with(far());
    overload(&mut rig);
    assert_eq!((rig.filter.state(), rig.lent.len()), (State::Tracking, 0));
    let mut rig = Rig::protecting();
    fill(&mut rig, 0, 3);
    rig.pass(20 * MS);
    rig.filter.stored(last(&rig));
    fill(&mut rig, 3, 1);
    assert_eq!((rig.filter.state(), rig.lent.len()), (State::Tracking, 0));
}

#[test]
fn a_gap_by_overload_ends_when_a_proxy_has_synced_enough() {
    let mut rig = Rig::protecting_with(far());
    overload(&mut rig);
    rig.filter.stored(last(&rig));
    rig.drain();
    assert_eq!(rig.filter.state(), State::Resyncing);
    let status = rig.filter.status(rig.now());
    assert!(status.queued_bytes <= status.queue_bytes_max / 2 && status.lent.is_some());
}

#[test]
fn another_proxy_may_have_less_and_what_is_lent_stays_lent() {
    let mut rig = Rig::protecting_with(far());
    fill(&mut rig, 0, 3);
    rig.pass(20 * MS);
    let before = rig.filter.status(rig.now()).durable;
    rig.filter.stored(last(&rig));
    fill(&mut rig, 3, 1);
    let lent = rig.filter.lent().expect("some is lent");
    rig.filter.stored(before);
    rig.drain();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.lent, status.stored), (Some(lent), before));
    fill(&mut rig, 4, 2);
    assert_eq!(rig.filter.state(), State::Tracking, "nothing of what is left is stored");
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert!(status.lent.is_none() && status.queued_bytes < 1000);
}

#[test]
fn the_spool_comes_after_memory_and_each_stage_says_how_long() {
    let mut rig = Rig::protecting_with(FilterOptions { spool_bytes_max: 4 << 20, ..far() });
    fill(&mut rig, 0, 3);
    rig.pass(S);
    let status = rig.filter.status(rig.now());
    assert_eq!((status.memory.bytes, status.spool.bytes), (status.queued_bytes, 0));
    let (spool_in, tracking_in) = (status.memory.time_until_full_ns, status.spool.time_until_full_ns);
    assert!(spool_in.expect("it fills") < tracking_in.expect("it fills"));
    assert_eq!(status.time_until_tracking_ns, tracking_in);
    fill(&mut rig, 3, 4);
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, status.memory.bytes, status.memory.bytes_max), (State::Protecting, 4 << 20, 4 << 20));
    assert_eq!(status.memory.time_until_full_ns, Some(0));
    assert_eq!(status.spool.bytes, status.queued_bytes - (4 << 20));
    fill(&mut rig, 7, 1);
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, status.time_until_tracking_ns), (State::Tracking, Some(0)));
    for _ in 0..20 {
        rig.durable();
        rig.pass(S);
    }
    let status = rig.filter.status(rig.now());
    assert!(status.memory.time_until_full_ns.is_none_or(|ns| ns > 1000 * S), "hardly at these rates: {status:?}");
    assert_eq!(status.spool, Stage { bytes: 0, ..status.spool });
}

#[test]
fn bounds_change_while_it_runs() {
    let mut rig = Rig::protecting_with(far());
    let refused = rig.filter.set_bounds((4 << 20) - 1, 1 << 40);
    assert_eq!(refused, Err(OptionsError::QueueTooSmall { bytes: (4 << 20) - 1 }));
    rig.filter.set_bounds(8 << 20, 0).expect("good bounds");
    fill(&mut rig, 0, 6);
    assert_eq!(rig.filter.state(), State::Protecting);
    rig.filter.set_bounds(4 << 20, 0).expect("good bounds");
    rig.drain();
    assert_eq!(rig.filter.state(), State::Protecting, "what is queued stays");
    fill(&mut rig, 6, 1);
    assert_eq!(rig.filter.state(), State::Tracking);
    rig.filter.set_bounds(4 << 20, 64 << 20).expect("good bounds");
    rig.drain();
    assert_eq!(rig.filter.state(), State::Resyncing, "less than half full");
}

#[test]
fn many_lent_frames_are_known_together_and_their_durability_is_not_lost() {
    let mut rig = Rig::protecting_with(far());
    let (mut frames, mut restorable) = (0, Lsn::ZERO);
    while frames < 6000 {
        let ticket = rig.go(write(frames % 16_000 * DIRTY_BLOCK, 4096));
        rig.complete(ticket, Ok(()));
        rig.pass(20 * MS);
        rig.filter.stored(last(&rig));
        frames += 1;
    }
    assert_eq!(rig.filter.state(), State::Protecting);
    assert!(rig.filter.gather.lent_frames() <= 4096, "{}", rig.filter.gather.lent_frames());
    assert!(rig.filter.lent().is_some());
    for frame in std::mem::take(&mut rig.frames) {
        rig.filter.durable(frame.last_lsn());
        rig.drain();
        let status = rig.filter.status(rig.now());
        assert!(status.restorable >= restorable && status.restorable <= status.durable);
        restorable = status.restorable;
    }
    let status = rig.filter.status(rig.now());
    assert_eq!((status.restorable, status.lent, status.queued_bytes), (status.settled, None, 0));
}

#[test]
fn a_long_write_is_lent_as_a_whole() {
    let mut rig = Rig::protecting_with(FilterOptions { queue_bytes_max: 16 << 20, ..far() });
    let ticket = rig.go(write(0, 12 << 20));
    rig.complete(ticket, Ok(()));
    rig.pass(20 * MS);
    rig.filter.stored(last(&rig));
    fill(&mut rig, 32, 5);
    assert_eq!(rig.filter.state(), State::Protecting);
    assert_eq!(rig.filter.status(rig.now()).lent_bytes, 12 << 20);
}

#[test]
fn as_many_re_reads_are_under_way_as_are_asked_for() {
    let with = |rereads_max| FilterOptions { rereads_max, queue_bytes_max: 128 << 20, ..far() };
    for count in [0, REREADS_LIMIT + 1] {
        let refused = with(count).check();
        assert_eq!(refused, Err(OptionsError::Rereads { count }));
    }
    for count in [1, 4, REREADS_LIMIT] {
        let mut rig = Rig::protecting_with(with(count));
        rig.filter.full_check(rig.now());
        rig.pass(S);
        assert_eq!(rig.rereads.len(), count);
    }
}

#[test]
fn a_gap_after_an_attempt_in_vain_lasts_a_while_and_who_drains_does_not_wait() {
    let mut rig = Rig::protecting();
    overload(&mut rig);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Resyncing, "the first attempt is made at once");
    fill(&mut rig, 100, 5);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Tracking, "the guest is as quick as before");
    rig.pass(S - 10 * MS);
    assert_eq!(rig.filter.state(), State::Tracking);
    rig.pass(20 * MS);
    assert_eq!(rig.filter.state(), State::Resyncing);
    fill(&mut rig, 200, 5);
    rig.durable();
    rig.pass(S);
    assert_eq!(rig.filter.state(), State::Tracking, "twice as long as before");
    rig.filter.request_drain();
    rig.drain();
    assert_eq!(rig.filter.state(), State::Resyncing);
}
