//! The `cdp` command as a library: parse, call, print. Everything that it does for real is behind [`engine::Engine`].
//!
//! A command is one file in [`command`]: its arguments, what it asks for, and how the answer looks to people. What scripts
//! see is in [`json`]; how a command ends is in [`exit`].

#![forbid(unsafe_code)]

pub mod ask;
pub mod command;
pub mod demo;
pub mod engine;
pub mod exit;
pub mod human;
pub mod json;
pub mod key;
pub mod libraries;
pub mod output;
pub mod place;
pub mod progress;
pub mod stop;
pub mod table;
pub mod tree;

pub use tree::run;
