//! The journal as its users see it.

mod kit;
mod life;
mod model;
