//! The crate's integration tests: one binary, a module for each room.

#![allow(unreachable_pub, reason = "modules of a test binary share their items")]

mod capture;
mod chain;
mod journal;
mod resync;
mod session;
