//! The `cdp` command as people have it: a process of its own, real files, real sockets, real clients.

mod damage;
mod full_disk;
mod findings;
mod hostile;
mod no_room;
mod real_clients;
mod sources;
mod statuses;
mod support;
