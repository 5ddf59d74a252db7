//! Simulated parts, so that this crate's tests and vendors' can cut the power at any moment. Behind the feature `sim`.

mod content;
mod disk;

pub use disk::{SimDisk, Survival};
