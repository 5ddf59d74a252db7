//! The kernel interfaces that have no safe wrapper: one small file for each, and no `unsafe` anywhere else in this crate.

#![allow(unsafe_code)]

pub(crate) mod huge_pages;
#[cfg(feature = "services")]
pub(crate) mod local_time;
pub mod lock;
#[cfg(feature = "uring")]
pub(crate) mod ring;
pub(crate) mod sched;
