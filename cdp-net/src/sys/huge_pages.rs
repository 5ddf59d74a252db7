//! `madvise(MADV_HUGEPAGE)`: memory that is handed to disks in pieces of a megabyte takes one page instead of hundreds, which
//! halves what a write past the page cache costs and gives the disk longer requests.

use libc::{MADV_HUGEPAGE, c_void, madvise};

/// Bytes of a huge page on the machines that have them in this size; on others the hint does less.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages under memory that was not touched yet. A hint: a system without them ignores it.
pub(crate) fn prefer(memory: &mut [u8]) {
    let odd = memory.as_ptr().align_offset(HUGE_PAGE);
    let Some(whole) = memory.get_mut(odd..) else { return };
    let length = whole.len() / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: the range lies inside memory that is borrowed here, and the advice changes none of its bytes.
    let _ = unsafe { madvise(whole.as_mut_ptr().cast::<c_void>(), length, MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_stay_what_they_are() {
        for length in [0, 4096, HUGE_PAGE, 3 * HUGE_PAGE + 5] {
            let mut memory = vec![7; length];
            prefer(&mut memory);
            assert!(memory.iter().all(|byte| *byte == 7));
        }
    }
}
