//! The C library: what a vendor's product links. Its header, `include/cdp.h`, is made from this file.
//!
//! Conventions of every function, so that no caller has to look them up: names begin with `cdp_`; what can fail returns a
//! [`cdp_status`]; texts are UTF-8, end with a NUL, and belong to the library unless the function says otherwise; all
//! functions may be called from any thread. A status is an integer with named values and no C enumeration, because a value
//! that a caller does not know yet must not be undefined behaviour.
//!
//! Exports are written by hand, never by a macro: the header's generator does not see through macros and says nothing.

#![allow(non_camel_case_types, reason = "the names are those of the C header")]

use std::ffi::{CStr, c_char};

/// Counts the incompatible changes of this interface. A caller compares it with `CDP_ABI_VERSION` of the header that it was
/// compiled with, and does not go on if they differ.
pub const CDP_ABI_VERSION: u32 = 1;

/// How a call ended. Values that this header does not name may come from a newer library: they are failures.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct cdp_status(pub i32);

/// Done.
pub const CDP_OK: cdp_status = cdp_status(0);
/// Failed, for a reason outside of the library's rules: a file, a disk, a network.
pub const CDP_FAILED: cdp_status = cdp_status(1);
/// The call itself is wrong: an argument that cannot be.
pub const CDP_USAGE: cdp_status = cdp_status(2);
/// The moment asked for is not restorable.
pub const CDP_NOT_RESTORABLE: cdp_status = cdp_status(3);
/// State or ownership does not allow it now.
pub const CDP_REFUSED: cdp_status = cdp_status(4);
/// Stored bytes are not what was stored.
pub const CDP_DAMAGE: cdp_status = cdp_status(5);

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// The library's own `CDP_ABI_VERSION`.
// SAFETY: no other symbol of that name: everything that begins with `cdp_` is ours.
#[unsafe(no_mangle)]
pub extern "C" fn cdp_abi_version() -> u32 {
    CDP_ABI_VERSION
}

/// The library's version, such as `0.0.1`. Never NULL, lives as long as the program.
// SAFETY: no other symbol of that name: everything that begins with `cdp_` is ours.
#[unsafe(no_mangle)]
pub extern "C" fn cdp_version() -> *const c_char {
    VERSION.as_ptr()
}

/// A status in words, for people: one short sentence without a full stop. Never NULL, lives as long as the program.
// SAFETY: no other symbol of that name: everything that begins with `cdp_` is ours.
#[unsafe(no_mangle)]
pub extern "C" fn cdp_status_text(status: cdp_status) -> *const c_char {
    text_of(status).as_ptr()
}

fn text_of(status: cdp_status) -> &'static CStr {
    match status {
        CDP_OK => c"done",
        CDP_FAILED => c"failed",
        CDP_USAGE => c"the call is wrong",
        CDP_NOT_RESTORABLE => c"the moment is not restorable",
        CDP_REFUSED => c"refused because of state or ownership",
        CDP_DAMAGE => c"damage found",
        _ => c"a status that this library does not know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_status_has_its_own_words() {
        let all = [CDP_OK, CDP_FAILED, CDP_USAGE, CDP_NOT_RESTORABLE, CDP_REFUSED, CDP_DAMAGE];
        let texts: BTreeSet<_> = all.into_iter().chain([cdp_status(i32::MIN)]).map(text_of).collect();
        assert_eq!(texts.len(), all.len() + 1);
        assert_eq!(VERSION.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}
