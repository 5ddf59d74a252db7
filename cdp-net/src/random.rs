//! Random identities from the kernel: the only place of the SDK that draws them.

use rustix::rand::{GetRandomFlags, getrandom};

/// 128 random bits, never all zero.
///
/// # Panics
/// When the kernel gives no random bytes, which Linux does not do once it has booted: without them no identity is safe.
#[must_use]
pub fn identity() -> [u8; 16] {
    drawn()
}

/// 256 random bits for a key, never all zero.
///
/// # Panics
/// As [`identity`].
#[must_use]
pub fn key() -> [u8; 32] {
    drawn()
}

fn drawn<const N: usize>() -> [u8; N] {
    loop {
        let mut bytes = [0; N];
        match getrandom(&mut bytes[..], GetRandomFlags::empty()) {
            Ok(length) if length == N && bytes != [0; N] => return bytes,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
}
