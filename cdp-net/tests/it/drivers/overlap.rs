//! That what may go on at the same time does.

use super::watched::Gate;
use super::{Driven, Kind, directory};
use bytes::Bytes;
use cdp_core::journal::{Effect, FileId};
use cdp_core::media::{MediaErrorKind, Operation};

/// A driver on storage behind a gate; taken in this order, so that what is held up is let go before the driver is waited for.
fn behind_a_gate(kind: Kind) -> Option<(tempfile::TempDir, Driven, Gate)> {
    let (place, inner) = directory();
    let gate = Gate::default();
    let driven = Driven::new(kind, gate.before(inner))?;
    Some((place, driven, gate))
}

fn write(file: FileId, offset: u64) -> Effect {
    Effect::Write { file, offset, data: vec![Bytes::from_static(&[5; 3000])] }
}

pub(super) fn a_write_and_another_sync_do_not_wait_for_a_sync(kind: Kind) {
    let Some((_place, mut driven, gate)) = behind_a_gate(kind) else { return };
    let (file, other) = (driven.create("slow", 0), driven.create("quick", 0));
    driven.run(write(file, 0)).unwrap();
    gate.hold(Operation::Sync, "slow");
    let slow = driven.start(Effect::Sync { file });
    gate.wait_for(1);
    driven.run(write(file, 3000)).unwrap();
    driven.run(write(other, 0)).unwrap();
    driven.run(Effect::Sync { file: other }).unwrap();
    driven.run(Effect::Remove { name: "nothing".into() }).unwrap();
    assert!(!driven.is_through(slow));
    gate.release();
    driven.wait(slow).unwrap();
}

pub(super) fn a_sync_is_not_told_before_it_is_through_and_survives_a_close(kind: Kind) {
    let Some((_place, mut driven, gate)) = behind_a_gate(kind) else { return };
    let file = driven.create("slow", 0);
    driven.run(write(file, 0)).unwrap();
    gate.hold(Operation::Sync, "slow");
    gate.hold(Operation::Write, "slow");
    let (sync, late) = (driven.start(Effect::Sync { file }), driven.start(write(file, 3000)));
    gate.wait_for(2);
    driven.run(Effect::Close { file }).unwrap();
    assert!(!driven.is_through(sync) && !driven.is_through(late));
    gate.release();
    driven.wait(sync).unwrap();
    driven.wait(late).unwrap();
}

pub(super) fn storage_that_panics_fails_its_own_effects_only(kind: Kind) {
    let Some((_place, mut driven, gate)) = behind_a_gate(kind) else { return };
    let (file, other) = (driven.create("bad", 0), driven.create("good", 0));
    gate.panic(Operation::Write, "bad");
    gate.panic(Operation::Sync, "bad");
    gate.panic(Operation::Create, "worse");
    // More often than there are threads.
    for round in 0..8 {
        let new = driven.new_file();
        let made = super::create(new, "worse", 0);
        for (effect, operation) in [
            (write(file, round * 3000), Operation::Write),
            (Effect::Sync { file }, Operation::Sync),
            (made, Operation::Create),
        ] {
            let error = driven.run(effect).unwrap_err();
            assert_eq!((error.kind, error.operation), (MediaErrorKind::Io, operation));
        }
    }
    driven.run(write(other, 0)).unwrap();
    driven.run(Effect::Sync { file: other }).unwrap();
}

pub(super) fn who_drops_the_driver_waits_for_what_it_was_given(kind: Kind) {
    for operation in [Operation::Write, Operation::Sync] {
        let Some((place, mut driven, gate)) = behind_a_gate(kind) else { return };
        let file = driven.create("slow", 0);
        driven.run(write(file, 0)).unwrap();
        gate.hold(operation, "slow");
        driven.start(if operation == Operation::Write { write(file, 3000) } else { Effect::Sync { file } });
        gate.wait_for(1);
        let (ended, end) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            drop(driven);
            ended.send(()).unwrap();
        });
        // Long enough for one that does not wait; too short never makes this fail.
        assert!(end.recv_timeout(std::time::Duration::from_millis(200)).is_err());
        gate.release();
        thread.join().unwrap();
        let written = if operation == Operation::Write { 6000 } else { 3000 };
        assert_eq!(std::fs::metadata(place.path().join("slow")).unwrap().len(), written);
    }
}
