//! The journal as its users see it.

mod at_rest;
mod corruption;
mod crash;
mod decoders;
mod diff;
mod emptied;
mod flipped;
mod golden;
mod golden_bases;
mod kept;
mod kit;
mod levels;
mod levels_crash;
mod life;
mod live;
mod model;
mod points;
mod prepared;
mod resealed;
mod retention;
mod room;
mod seeding;
mod torn;
mod whole;
mod within;
