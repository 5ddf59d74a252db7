#![no_main]

use cdp_core::fuzz::{Decoder, decode_any};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode_any(Decoder::LinkSource, bytes);
});
