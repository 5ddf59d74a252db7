//! Frames or seeds of a session, which came over several connections, in the order of their numbers.

use super::super::message::{Code, Farewell};
use crate::frame::EncodedFrame;
use std::collections::BTreeMap;

/// What waits is bounded by the credit: the caller lets nothing in beyond that.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    passed: u64,
    ahead: BTreeMap<u64, EncodedFrame>,
}

impl InOrder {
    pub(super) fn push(&mut self, number: u64, frame: EncodedFrame) -> Result<(), Farewell> {
        if number <= self.passed || self.ahead.insert(number, frame).is_some() {
            let text = "a frame or seed came twice in a session";
            return Err(Farewell::new(Code::OutOfOrder, text).with(self.passed + 1, number));
        }
        Ok(())
    }

    /// How many were given in order.
    pub(super) fn passed(&self) -> u64 {
        self.passed
    }

    /// The next one, once it is there.
    pub(super) fn next(&mut self) -> Option<EncodedFrame> {
        let frame = self.ahead.remove(&(self.passed + 1))?;
        self.passed += 1;
        Some(frame)
    }
}
