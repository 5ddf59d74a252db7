//! How far this place's clocks are ahead of UTC: `localtime_r`, which reads `$TZ` or `/etc/localtime`.

use cdp_core::types::WallTime;

/// Seconds that local time is ahead of UTC at this moment; 0 where the system does not know.
#[must_use]
pub(crate) fn utc_offset_s(at: WallTime) -> i32 {
    let seconds = i64::try_from(at.0 / 1_000_000_000).unwrap_or(i64::MAX);
    let mut fields = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to live memory of the right types; the call writes all fields where it does not give null, and
    // takes the C library's own lock for the rules of the time zone.
    let offset = unsafe {
        if libc::localtime_r(&raw const seconds, fields.as_mut_ptr()).is_null() {
            return 0;
        }
        fields.assume_init().tm_gmtoff
    };
    i32::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_one_of_this_world() {
        assert!(utc_offset_s(WallTime(1_700_000_000_000_000_000)).abs() <= 14 * 3600);
    }
}
