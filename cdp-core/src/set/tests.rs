//! Rules by name, then whole sets in virtual time.

mod member;
mod sim;
mod taker;
