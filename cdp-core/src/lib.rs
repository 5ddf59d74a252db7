//! Continuous data protection as pure logic: the record model, capture, the journal and the replica.
//!
//! Nothing here reads a clock, draws a random number, opens a socket or starts a thread. Time and randomness come in as
//! arguments; what the world has to do comes back as values (`poll`); only [`media`] touches files. So every state machine
//! of this crate runs the same under a simulator, inside a C program's own event loop, and in our own services.
//!
//! The rooms, from the guest's write to the moment that is brought back:
//! [`types`] (the words) → [`capture`] (write order at the source) → [`frame`] (unit of transfer) → [`journal`] (what is
//! kept) → [`replica`] (base, journal and the catalogue of what can be restored), all on [`media`] (files), under the keys of
//! [`trust`] where that is wanted.

#![forbid(unsafe_code)]

pub mod buffer;
pub mod capture;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod journal;
pub mod link;
pub mod media;
#[cfg(feature = "mistakes")]
pub mod mistakes;
#[cfg(not(feature = "mistakes"))]
mod mistakes;
pub mod policy;
pub mod replica;
pub mod set;
#[cfg(feature = "sim")]
pub mod sim;
pub mod trust;
pub mod types;
pub mod when;
