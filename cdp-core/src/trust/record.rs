//! Writing down every seal: for tests that look for a nonce that came twice.

use crate::types::SegmentId;
use std::sync::{Arc, Mutex, PoisonError};

/// One call that sealed something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SealCall {
    /// Names the key: the segment (none: of bases), which of its keys, and a value that differs where the key does.
    pub key: (Option<SegmentId>, &'static str, u32),
    /// The nonce.
    pub nonce: [u8; 12],
    /// BLAKE3 of what was sealed.
    pub plain: [u8; 32],
}

/// Where seals are written down; clones share it. It grows with every seal: for tests.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Vec<SealCall>>>);

impl Recorder {
    /// What was sealed so far.
    #[must_use]
    pub fn calls(&self) -> Vec<SealCall> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, key: (Option<SegmentId>, &'static str, u32), nonce: [u8; 12], plain: &[u8]) {
        let plain = *blake3::hash(plain).as_bytes();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(SealCall { key, nonce, plain });
    }
}

/// A segment's keys in the record.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) recorder: Recorder,
    pub(super) id: SegmentId,
    pub(super) key: u32,
}

impl Book {
    pub(super) fn add(&self, kind: &'static str, nonce: [u8; 12], plain: &[u8]) {
        self.recorder.add((Some(self.id), kind, self.key), nonce, plain);
    }
}
