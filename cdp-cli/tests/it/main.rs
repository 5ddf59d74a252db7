//! The `cdp` command as people have it: a process of its own, real files, real sockets, real clients.

mod damage;
mod full_disk;
mod hostile;
mod real_clients;
mod statuses;
mod support;
