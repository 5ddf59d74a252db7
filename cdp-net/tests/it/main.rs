//! Everything of cdp-net that takes real sockets, files and programs to test.

mod nbd;
