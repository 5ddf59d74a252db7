//! Random ops against a list of frames, with media that fail now and then, effects done in any order.

use super::*;
use crate::media::{Fault, Faults, Faulty, MediaErrorKind, Memory, Operation};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Push { sectors: u64, parts: usize },
    Get(u16),
    Next,
    Release(u16),
    Poll,
    Finish(u8),
    Settle,
    Wait(u64),
    Fail(Operation),
}

fn op() -> impl Strategy<Value = Op> {
    let failing = prop_oneof![
        Just(Operation::Write),
        Just(Operation::Sync),
        Just(Operation::SyncDir),
        Just(Operation::Create),
        Just(Operation::Preallocate),
        Just(Operation::Remove),
        Just(Operation::Read),
    ];
    prop_oneof![
        8 => (1u64..500, 1usize..9).prop_map(|(sectors, parts)| Op::Push { sectors, parts }),
        2 => any::<u16>().prop_map(Op::Get),
        4 => Just(Op::Next),
        2 => any::<u16>().prop_map(Op::Release),
        4 => Just(Op::Poll),
        8 => any::<u8>().prop_map(Op::Finish),
        1 => Just(Op::Settle),
        2 => (0u64..50_000_000).prop_map(Op::Wait),
        1 => Just(Op::Wait(RETRY_NS)),
        1 => failing.prop_map(Op::Fail),
    ]
}

fn play(always: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let (memory, faults) = (Memory::new(), Faults::default());
    let storage = Arc::new(Faulty::new(Arc::new(memory.clone()), faults.clone()));
    let mut rig = Rig::new(Spool::new(options(always)), storage);
    let mut source = Source::new(1);
    let (mut frames, mut released, mut stored, mut cursor) = (Vec::<EncodedFrame>::new(), 0, None, 0);
    for op in ops {
        match op {
            Op::Push { sectors, parts } => {
                let (before, frame) = (source.clone(), source.frame(*sectors, *parts));
                let could = rig.spool.can_take(frame.len());
                match rig.spool.push(frame.clone()) {
                    Ok(number) => {
                        prop_assert_eq!(number, frames.len() as u64);
                        frames.push(frame);
                    }
                    Err(refused) => {
                        prop_assert!(matches!(refused, PushError::Full { .. }) && !could, "{}", refused);
                        source = before;
                    }
                }
            }
            Op::Get(pick) => cursor = u64::from(*pick) % (frames.len() as u64 + 2),
            Op::Next => cursor += 1,
            Op::Release(pick) if released < frames.len() as u64 => {
                let upto = released + u64::from(*pick) % (frames.len() as u64 - released).min(9);
                rig.spool.release(upto);
                released = upto + 1;
            }
            Op::Release(_) => rig.spool.release(released.saturating_sub(1)),
            Op::Poll => rig.poll(),
            Op::Finish(which) => rig.finish((*which).into()),
            Op::Settle => rig.settle(),
            Op::Wait(nanoseconds) => rig.now = rig.now.after(*nanoseconds),
            Op::Fail(operation) => faults.add(Fault::once(*operation, "", MediaErrorKind::Io)),
        }
        match rig.spool.get(cursor) {
            Lookup::Here(frame) => {
                prop_assert!(cursor >= released);
                prop_assert_eq!(bytes_of(&frame), bytes_of(&frames[cursor as usize]));
            }
            Lookup::Later => prop_assert!((released..frames.len() as u64).contains(&cursor)),
            Lookup::Gone => prop_assert!(!(released..frames.len() as u64).contains(&cursor), "{cursor} is lost"),
        }
        prop_assert!(rig.spool.stored() >= stored, "what is stored stays so");
        stored = rig.spool.stored();
        prop_assert!(always || stored == released.checked_sub(1));
        let held: u64 = frames[released as usize..].iter().map(EncodedFrame::len).sum();
        prop_assert_eq!(rig.spool.held_bytes(), held);
        prop_assert!(rig.spool.memory_bytes() <= rig.spool.options.memory_bytes_max);
        prop_assert!(rig.spool.disk_bytes() <= rig.spool.options.disk_bytes_max);
    }
    // When the media work again everything is there, and then nothing is left.
    faults.clear();
    rig.settle_for(3 * RETRY_NS);
    for number in released..frames.len() as u64 {
        let frame = rig.read(number);
        prop_assert_eq!(frame.as_ref().map(bytes_of), Some(bytes_of(&frames[number as usize])), "{}", number);
    }
    if always {
        let room = rig.spool.disk_bytes() + MIB <= rig.spool.options.disk_bytes_max;
        prop_assert!(!room || rig.spool.stored() == (frames.len() as u64).checked_sub(1), "all that fits is stored");
        let found = Spool::recover(&memory, "spool/a").unwrap();
        prop_assert!(found.dropped.is_empty(), "{:?}", found.dropped);
    }
    rig.spool.release(u64::MAX);
    rig.spool.retire();
    rig.settle_for(3 * RETRY_NS);
    prop_assert!(rig.spool.is_idle());
    prop_assert_eq!((rig.spool.held_bytes(), rig.spool.memory_bytes(), rig.spool.disk_bytes()), (0, 0, 0));
    prop_assert!(memory.list("spool/a").unwrap().is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_gives_back_what_it_took_in_bounded_memory(always: bool, ops in prop::collection::vec(op(), 1..200)) {
        play(always, &ops)?;
    }
}
