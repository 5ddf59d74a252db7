//! The journal as its users see it.

mod corruption;
mod crash;
mod diff;
mod golden;
mod kit;
mod life;
mod merge;
mod model;
mod room;
