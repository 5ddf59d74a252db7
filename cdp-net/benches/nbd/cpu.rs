//! What a server's threads cost: on a machine that is not idle this says more than rates do.

use std::collections::BTreeMap;

/// Microseconds of processor time that each thread of a process has used, by the thread's name.
pub(crate) fn used(process: u32) -> BTreeMap<String, u64> {
    let mut used = BTreeMap::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return used };
    for thread in threads.flatten() {
        let Ok(name) = std::fs::read_to_string(thread.path().join("comm")) else { continue };
        let Ok(times) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
        // The first number: nanoseconds on a processor.
        let time: u64 = times.split_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(0);
        *used.entry(name.trim().to_owned()).or_default() += time / 1000;
    }
    used
}

/// What was used between two looks, for each of `requests`, as text.
pub(crate) fn each(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, requests: f64) -> String {
    let spent = |(name, time): (&String, &u64)| {
        let time = time.saturating_sub(before.get(name).copied().unwrap_or(0)) as f64 / requests.max(1.0);
        (time >= 0.05).then(|| format!("{name} {time:.1}"))
    };
    let spent: Vec<_> = after.iter().filter_map(spent).collect();
    format!("us of CPU each: {}", spent.join(", "))
}
