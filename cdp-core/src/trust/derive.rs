//! HKDF (RFC 5869) with SHA-256.

use ring::hkdf::{HKDF_SHA256, KeyType, Salt};

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// `N` bytes from a secret; `info` is its pieces back to back.
pub(super) fn derive<const N: usize>(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> [u8; N] {
    const { assert!(N <= 255 * 32, "more than HKDF gives") };
    let mut out = [0; N];
    let filled =
        Salt::new(HKDF_SHA256, salt).extract(secret).expand(info, Length(N)).and_then(|okm| okm.fill(&mut out));
    filled.expect("the length is one that HKDF gives");
    out
}
