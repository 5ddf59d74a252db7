//! The whole chain as it is in the field: each part a `cdp serve` of its own, with its own file, identity and state directory.
//!
//! A guest writes through NBD while parts are killed, stopped and replaced and cables are cut ([`faults`]); a database runs on a file
//! system on a protected disk ([`postgres`]); and the two sites are machines of their own for the network ([`namespaces`]). How often
//! says `CDP_CHAIN_ROUNDS`, and with which dice `CDP_CHAIN_SEED`.

mod chain;
mod database;
#[path = "../kill/dice.rs"]
mod dice;
mod faults;
mod namespaces;
mod postgres;

#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "it is written for all tests of the command, and not each needs all of it"
)]
mod support;
#[path = "../../../cdp-net/tests/wan/mod.rs"]
#[expect(dead_code, reason = "others count what passes")]
mod wan;
#[path = "../kill/writers.rs"]
#[expect(dead_code, reason = "kills need more of it")]
mod writers;

use dice::Dice;
