//! `sched_setattr`: how long a thread runs at a stretch where others want its core. One that asks for little gets the core back when it
//! wakes, whoever has it (Linux 6.12), instead of up to a tick later; its share of the core stays what it was.

use libc::{SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, c_uint, pid_t, sched_attr, syscall};

/// What a thread that answers a guest asks for, in nanoseconds: the least that Linux gives. A request takes some ten microseconds.
const SHORT_NS: u64 = 100_000;

const THIS_THREAD: pid_t = 0;
const NO_FLAGS: c_uint = 0;

/// Asks for a short slice for the calling thread. A wish: a system that knows no slices does without. A policy that somebody gave to
/// the process is left alone.
pub(crate) fn shorten() {
    let Some(mut attributes) = attributes() else { return };
    if attributes.sched_policy == SCHED_OTHER as u32 {
        attributes.sched_runtime = SHORT_NS;
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

    #[test]
    fn a_short_slice_is_all_that_changes() {
        std::thread::spawn(|| {
            let before = attributes().expect("every Linux tells");
            shorten();
            let after = attributes().expect("every Linux tells");
            let rest = |of: &sched_attr| (of.sched_policy, of.sched_flags, of.sched_nice, of.sched_priority);
            assert_eq!(rest(&before), rest(&after));
            if before.sched_policy != SCHED_OTHER as u32 || before.sched_runtime == 0 {
                println!("skipped: this thread has no slice");
                return;
            }
            assert_eq!(after.sched_runtime, SHORT_NS);
        })
        .join()
        .unwrap();
    }
}
