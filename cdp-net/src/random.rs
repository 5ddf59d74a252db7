//! Random identities from the kernel: the only place of the SDK that draws them.

use rustix::rand::{GetRandomFlags, getrandom};

/// 128 random bits, never all zero.
///
/// # Panics
/// When the kernel gives no random bytes, which Linux does not do once it has booted: without them no identity is safe.
#[must_use]
pub fn identity() -> [u8; 16] {
    loop {
        let mut bytes = [0; 16];
        match getrandom(&mut bytes[..], GetRandomFlags::empty()) {
            Ok(16) if bytes != [0; 16] => return bytes,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
}
