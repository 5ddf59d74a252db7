//! `sched_setattr`: how a thread shares its core with others that want it.
//!
//! A thread that asks for a short slice gets the core back when it wakes, whoever has it (Linux 6.12), instead of up to a tick later; its
//! share of the core stays what it was. A thread of `SCHED_BATCH` takes the core from nobody when it wakes.

use libc::{SCHED_BATCH, SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, c_uint, pid_t, sched_attr, syscall};

/// What a thread asks for, in nanoseconds: the least that Linux gives. A guest's request takes some ten microseconds.
const SHORT_NS: u64 = 100_000;

const THIS_THREAD: pid_t = 0;
const NO_FLAGS: c_uint = 0;

/// Asks for a short slice for the calling thread. A wish: a system that knows no slices does without. A policy that somebody gave to
/// the process is left alone.
pub(crate) fn shorten() {
    change(|attributes| attributes.sched_runtime = SHORT_NS);
}

/// The same for a thread that takes the core from nobody when it wakes: it is not to wait behind what it has to wait for, a tick long.
pub(crate) fn give_way() {
    change(|attributes| {
        attributes.sched_policy = SCHED_BATCH as u32;
        attributes.sched_runtime = SHORT_NS;
    });
}

fn change(change: impl FnOnce(&mut sched_attr)) {
    let Some(mut attributes) = attributes() else { return };
    if attributes.sched_policy == SCHED_OTHER as u32 {
        change(&mut attributes);
        // SAFETY: the structure is as long as it says and outlives the call, which only reads it.
        let _ = unsafe { syscall(SYS_sched_setattr, THIS_THREAD, &raw const attributes, NO_FLAGS) };
    }
}

/// How the calling thread is scheduled now.
fn attributes() -> Option<sched_attr> {
    let size = size_of::<sched_attr>() as u32;
    let mut attributes = sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is ours alone while the call writes at most `size` bytes to it, all of whose values are numbers.
    let done = unsafe { syscall(SYS_sched_getattr, THIS_THREAD, &raw mut attributes, size, NO_FLAGS) };
    (done == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a thread of its own is scheduled before and after; none: it has no slice.
    fn changed(by: fn()) -> Option<[sched_attr; 2]> {
        let look = move || {
            let before = attributes().expect("every Linux tells");
            by();
            [before, attributes().expect("every Linux tells")]
        };
        let both = std::thread::spawn(look).join().unwrap();
        if both[0].sched_policy != SCHED_OTHER as u32 || both[0].sched_runtime == 0 {
            println!("skipped: this thread has no slice");
            return None;
        }
        Some(both)
    }

    #[test]
    fn a_short_slice_is_all_that_changes() {
        let Some([before, after]) = changed(shorten) else { return };
        let rest = |of: &sched_attr| (of.sched_policy, of.sched_flags, of.sched_nice, of.sched_priority);
        assert_eq!(rest(&before), rest(&after));
        assert_eq!(after.sched_runtime, SHORT_NS);
    }

    #[test]
    fn who_gives_way_keeps_its_place() {
        let Some([before, after]) = changed(give_way) else { return };
        assert_eq!((before.sched_nice, SCHED_BATCH as u32), (after.sched_nice, after.sched_policy));
        assert_eq!(after.sched_runtime, SHORT_NS);
    }
}
