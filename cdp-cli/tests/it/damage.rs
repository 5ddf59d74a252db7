//! A replica whose files were cut, removed or changed behind its back: every command gives right bytes or names the damage,
//! and nothing diverges in silence.

mod built;
mod by_disk;
mod flips;
mod journal;
mod log;
mod owned;
mod sessions;
