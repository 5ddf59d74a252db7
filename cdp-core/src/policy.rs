//! What the owner of a replica wants: pure decisions from policies and facts.

pub mod retention;
pub mod room;
pub mod throttle;
pub mod traffic;
