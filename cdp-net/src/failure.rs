//! Why a part of a protection stopped, for whoever asks.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// The first failure stays: what follows it is its consequence.
#[derive(Debug, Default)]
pub(crate) struct Failure(Mutex<Option<String>>);

impl Failure {
    pub(crate) fn set(&self, failure: &dyn Display) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(|| failure.to_string());
    }

    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
