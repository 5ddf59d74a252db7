//! The parts of the chain as services: what `cdp serve` runs, any set of them in one process.

pub mod config;
pub mod door;
pub mod facts;
pub mod far_link;
pub mod filter;
pub mod gateway;
pub mod http;
pub mod inbox;
pub mod metrics;
mod pace;
pub mod peers;
pub mod proxy;
mod refusals;
pub mod remote;
pub mod remote_reading;
pub mod replica_host;
pub mod role;
pub mod roles;
pub mod run;
pub mod scrape;
mod seeds;
pub mod supervisor;
pub mod tickets;
pub mod traffic;
pub mod url;
