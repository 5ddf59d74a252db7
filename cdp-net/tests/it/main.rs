//! Everything of cdp-net that takes real sockets, files and programs to test.

mod nbd;
mod nbd_clients;
mod protect;
