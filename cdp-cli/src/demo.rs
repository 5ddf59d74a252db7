//! A load that can be judged: a ledger on a disk, kept by several writers, whose every moment can be checked afterwards.
//!
//! Money moves between accounts; each movement is announced (*intent*), then taken from one account (*debit*), then given to
//! the other (*credit*), each with a write of its own. So at every write the sum of all accounts is known once announced
//! movements are carried to their end. In between, writers keep documents that they write, trim and zero, overwrite one
//! shared pad without any lock, and flush.
//!
//! What makes a restored image judgeable ([`mod@check`]) is that every sector says which write of which writer it belongs to, and
//! that every intent says which movements of *all* writers its writer knew to be complete. A moment is right if and only if it
//! is a prefix of what happened, so the checker demands: whatever a sector or an intent presupposes is there too. That finds
//! lost writes, reordered writes, torn writes and trims that came undone, also between writers.

pub mod bank;
pub mod check;
pub mod image;

pub mod layout;
pub mod load;
pub mod port;
pub mod sector;
pub mod story;
#[cfg(test)]
mod story_tests;
#[cfg(test)]
mod tests;
pub mod violation;
pub mod writer;

pub use check::{Facts, check};
pub use layout::Layout;
pub use load::{Bounds, Load, LoadOptions, LoadReport, format};
pub use port::{Blocks, Port};
pub use violation::Violation;
