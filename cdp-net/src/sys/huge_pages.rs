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

    /// What the system says of the mapping around an address.
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut around = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16);
            if let Some((Ok(first), Ok(end))) = range.map(|(first, end)| (number(first), number(end))) {
                around = (first..end).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| around) {
                return flags.to_owned();
            }
        }
        panic!("no mapping around {address:x}");
    }

    #[test]
    fn the_system_is_asked_for_every_whole_huge_page() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            println!("skipped: this kernel has no transparent huge pages");
            return;
        }
        // So much at once is never an earlier user's memory, which may have been advised.
        let mut memory = vec![0; 64 << 20];
        prefer(&mut memory);
        let first = memory.as_ptr().addr().next_multiple_of(HUGE_PAGE);
        let end = memory.as_ptr_range().end.addr() / HUGE_PAGE * HUGE_PAGE;
        for address in [first, first.midpoint(end), end - 1] {
            let flags = flags_at(address);
            assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
        }
    }
}
