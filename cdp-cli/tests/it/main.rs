//! The `cdp` command as people have it: a process of its own, real files, real sockets, real clients.

mod block_device;
mod damage;
mod diff;
mod disks;
mod export;
mod filters;
mod findings;
mod full_disk;
mod hostile;
mod no_room;
mod per_point;
mod places;
mod read_only;
mod real_clients;
mod remote;
mod retention;
mod sealed;
mod serve;
mod sets;
mod shorten;
mod sources;
mod statuses;
mod support;
mod tickets;
mod to;
mod top;
