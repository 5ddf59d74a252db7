//! The state table of [`State`], pair by pair: every event in every state, those that change nothing included.

use super::resync::overload;
use super::*;

/// What can happen to a group.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Happens {
    SeedDone,
    WriteFails,
    FlushFails,
    FullCheck,
    Fills,
    Drains,
    Mended,
    NoRoom,
    Pause,
    Resume,
    Detach,
    Stuck,
    Attach,
    Fork,
}

const STATES: [State; 6] =
    [State::Seeding, State::Protecting, State::Tracking, State::Resyncing, State::Paused, State::Detached];

fn in_state(state: State) -> Rig {
    let mut rig = if state == State::Seeding { Rig::new(options()) } else { Rig::protecting() };
    rig.pass(30 * MS);
    match state {
        State::Seeding | State::Protecting => {}
        State::Tracking => overload(&mut rig),
        State::Resyncing => {
            let ticket = rig.go(write(0, 4096));
            rig.complete(ticket, Err(EIO));
        }
        State::Paused => rig.filter.pause(rig.now()),
        State::Detached => rig.filter.detach(rig.now()),
    }
    if state == State::Paused {
        let ticket = rig.go(write(0, 4096));
        rig.complete(ticket, Ok(()));
    }
    rig.drain();
    assert_eq!(rig.filter.state(), state);
    rig
}

fn happen(rig: &mut Rig, event: Happens) {
    let now = rig.now();
    match event {
        Happens::SeedDone => rig.filter.seed_done(),
        Happens::WriteFails => {
            let ticket = rig.go(write(8192, 4096));
            rig.complete(ticket, Err(EIO));
        }
        Happens::FlushFails => {
            let ticket = rig.go(write(8192, 4096));
            rig.complete(ticket, Ok(()));
            let flush = rig.filter.flush_begin(disk()).expect("a disk");
            rig.filter.flushed(now, flush, Err(EIO));
        }
        Happens::FullCheck => rig.filter.full_check(now),
        Happens::Fills => overload(rig),
        Happens::Drains => rig.durable(),
        Happens::Mended => {
            while let Some(reread) = rig.rereads.pop() {
                rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
                rig.pass(5 * MS);
            }
        }
        Happens::NoRoom => rig.filter.set_room(Room::NoSpace),
        Happens::Pause => rig.filter.pause(now),
        Happens::Resume => rig.filter.resume(),
        Happens::Detach => rig.filter.detach(now),
        Happens::Stuck => {
            let health = crate::capture::Health { ended: true, ..Default::default() };
            rig.filter.watchdog(now, &health).expect("it is stuck");
        }
        Happens::Attach => drop(rig.filter.attach(now)),
        Happens::Fork => {
            let at = rig.filter.status(now).durable;
            let timeline = Timeline::new([9; 16]).expect("not 0");
            let first = rig.filter.fork(now, timeline, at, Fork::Acknowledged, &options().disks);
            first.expect("a good fork");
        }
    }
    rig.drain();
}

#[test]
fn every_event_in_every_state_leads_where_the_table_says() {
    use State::{Detached as D, Paused as H, Protecting as P, Resyncing as R, Seeding as S, Tracking as T};
    let table = [
        (Happens::SeedDone, [P, P, T, R, H, D]),
        (Happens::WriteFails, [S, R, T, R, H, D]),
        (Happens::FlushFails, [S, R, T, R, H, D]),
        (Happens::FullCheck, [S, R, T, R, H, D]),
        (Happens::Fills, [T, T, T, T, H, D]),
        (Happens::Drains, [S, P, R, R, H, D]),
        (Happens::Mended, [S, P, T, P, H, D]),
        (Happens::NoRoom, [S, P, T, R, H, D]),
        (Happens::Pause, [H, H, H, H, H, D]),
        (Happens::Resume, [S, P, T, R, R, D]),
        (Happens::Detach, [D, D, D, D, D, D]),
        (Happens::Stuck, [D, D, D, D, D, D]),
        (Happens::Attach, [S, P, T, R, H, R]),
        (Happens::Fork, [S, R, R, R, H, D]),
    ];
    for (event, expected) in table {
        for (from, to) in STATES.into_iter().zip(expected) {
            let mut rig = in_state(from);
            rig.events.clear();
            happen(&mut rig, event);
            assert_eq!(rig.filter.state(), to, "{from} and {event:?}");
            let told: Vec<_> = rig.events.iter().filter(|event| matches!(event, Event::State { .. })).collect();
            match told.last() {
                Some(Event::State { to: told, .. }) => assert_eq!(*told, to),
                _ => assert_eq!(from, to, "{event:?} is told"),
            }
            assert_eq!(rig.filter.status(rig.now()).state, to);
        }
    }
}

#[test]
fn a_copy_that_ends_while_something_is_dirty_leads_to_a_resync() {
    let mut rig = in_state(State::Seeding);
    happen(&mut rig, Happens::WriteFails);
    happen(&mut rig, Happens::SeedDone);
    assert_eq!(rig.filter.state(), State::Resyncing);
}

#[test]
fn what_is_left_from_detached_is_pause_if_it_was_paused_and_a_full_queue_tracks() {
    let mut rig = in_state(State::Paused);
    happen(&mut rig, Happens::Detach);
    happen(&mut rig, Happens::Resume);
    happen(&mut rig, Happens::Pause);
    happen(&mut rig, Happens::Attach);
    assert_eq!(rig.filter.state(), State::Paused);
    let mut rig = in_state(State::Tracking);
    happen(&mut rig, Happens::Detach);
    happen(&mut rig, Happens::Drains);
    assert_eq!(rig.filter.state(), State::Detached);
    let mut rig = in_state(State::Tracking);
    happen(&mut rig, Happens::Detach);
    happen(&mut rig, Happens::Attach);
    assert_eq!(rig.filter.state(), State::Tracking);
    happen(&mut rig, Happens::Pause);
    happen(&mut rig, Happens::Drains);
    happen(&mut rig, Happens::Fork);
    happen(&mut rig, Happens::Resume);
    assert_eq!(rig.filter.state(), State::Resyncing);
}

#[test]
fn a_closed_filter_changes_its_state_no_more() {
    for state in STATES {
        let mut rig = in_state(state);
        let _ = rig.filter.close(Vec::new());
        rig.filter.pause(rig.now());
        rig.filter.detach(rig.now());
        rig.filter.attach(rig.now());
        let timeline = Timeline::new([9; 16]).expect("not 0");
        let fork = rig.filter.fork(rig.now(), timeline, Lsn(1), Fork::Acknowledged, &[]);
        assert_eq!(fork, Err(ForkError::Closed));
        rig.drain();
        assert_eq!(rig.filter.state(), state);
    }
}
