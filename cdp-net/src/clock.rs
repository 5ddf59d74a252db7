//! The two clocks of this machine, read together: the only place of the SDK that reads them.

use cdp_core::types::{MonoTime, Now, WallTime};
use std::time::{SystemTime, UNIX_EPOCH};

/// Both clocks.
#[must_use]
pub fn now() -> Now {
    Now { wall: wall(), mono: mono() }
}

/// Nanoseconds since 1970 UTC; 0 on a machine whose clock lies before.
#[must_use]
pub fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Nanoseconds of the clock that neither steps nor is slewed into another rate by hand (`CLOCK_BOOTTIME` would count sleep;
/// the RPO of a sleeping machine does not grow, so it is `CLOCK_MONOTONIC`).
#[must_use]
pub fn mono() -> MonoTime {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    MonoTime(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// Sleeps until then; without a time for ever.
#[cfg(feature = "services")]
pub(crate) async fn until(deadline: Option<MonoTime>) {
    match deadline {
        Some(at) => tokio::time::sleep(std::time::Duration::from_nanos(at.since(mono()))).await,
        None => std::future::pending().await,
    }
}
