//! Everything of cdp-net that takes real sockets, files and programs to test.

mod bound;
mod damaged;
mod dice;
mod disks;
mod disks_crash;
mod drivers;
mod every_lsn;
mod held;
mod history;
mod idle;
mod levels;
mod looking;
mod nbd;
mod nbd_clients;
mod overlap;
mod protect;
mod prune;
mod readers;
mod restoring;
mod rotating;
mod seeding;
mod stopping;
mod watch;
