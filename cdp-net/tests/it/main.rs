//! Everything of cdp-net that takes real sockets, files and programs to test.

mod bound;
#[cfg(feature = "services")]
mod copying;
mod damaged;
mod dice;
mod disks;
mod disks_crash;
#[cfg(feature = "services")]
mod distance;
mod drivers;
mod every_lsn;
#[cfg(feature = "services")]
mod filter_role;
#[cfg(feature = "services")]
mod forks;
#[cfg(feature = "services")]
mod gateway;
mod halves;
mod held;
mod history;
#[cfg(feature = "services")]
mod hostile_calls;
mod idle;
mod kit;
#[cfg(feature = "services")]
mod lending;
mod levels;
#[cfg(feature = "services")]
mod link;
mod looking;
mod nbd;
mod nbd_clients;
mod overlap;
mod protect;
#[cfg(feature = "services")]
mod proxies;
mod prune;
mod put_aside;
mod readers;
#[cfg(feature = "services")]
mod remote_reading;
mod restoring;
mod rotating;
mod seeding;
#[cfg(feature = "services")]
mod session_names;
mod sets;
#[cfg(feature = "services")]
mod spooling;
mod stopping;
mod stuck;
#[cfg(feature = "services")]
mod tapped;
mod wan;
mod watch;
