//! Everything of the CDP SDK that touches a socket, a thread or a clock: the NBD front end, the protecting process and the
//! control socket of a replica's owner, on top of the pure logic of [`cdp_core`].

#![deny(unsafe_code)]

pub mod clock;
mod crowding;
pub mod device;
pub mod diff;
pub mod drive;
mod failure;
pub mod far;
pub mod file_device;
pub mod host;
pub mod keeper;
pub mod key_file;
#[cfg(feature = "services")]
pub mod link;
pub mod moment;
pub mod mount;
pub mod nbd;
pub mod owner;
pub mod protect;
pub mod random;
pub mod reading;
pub mod report;
pub mod restore;
#[cfg(feature = "services")]
pub mod services;
pub mod sets;
pub mod source;
pub mod sys;
mod threads;
pub mod verify;
