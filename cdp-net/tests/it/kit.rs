//! What tests of protected disks begin with: a place, one who protects, what is restored.

#[path = "../kit/basics.rs"]
mod basics;
#[cfg(feature = "services")]
#[path = "../kit/host.rs"]
mod host;
mod place;
#[cfg(feature = "services")]
mod sites;

pub(crate) use basics::{noise, wait_for};
#[cfg(feature = "services")]
pub(crate) use host::{Host, any, host_options, identity, peers, replicas, when_free};
pub(crate) use place::{DISK, Place};
#[cfg(feature = "services")]
pub(crate) use sites::{Sites, Told, far_options, settled, stop, write};

use bytes::Bytes;
use cdp_core::capture::State;
use cdp_core::replica::Replica;
use cdp_core::when::{Label, When};
use cdp_net::device::Device;
use cdp_net::protect::Protection;

pub(crate) fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// One disk of a moment, read through a view.
pub(crate) fn restored(replica: &Replica, when: &When, name: &str) -> Vec<u8> {
    let moment = replica.resolve(when).unwrap();
    let view = replica.view(moment.timeline, moment.lsn).unwrap();
    let disk = view.disks().iter().find(|disk| disk.name == name).unwrap().clone();
    let mut content = vec![0; disk.size as usize];
    let mut buffer = vec![0; 1 << 20];
    view.walk(&disk, &mut buffer, |offset, bytes| {
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok::<_, cdp_core::journal::ReadError>(())
    })
    .unwrap();
    content
}

/// Waits until every write is recorded.
pub(crate) fn seeded(protection: &Protection) {
    wait_for("the first copy", || protection.status().state == State::Protecting);
}

/// Writes to a disk, and to what somebody knows of it.
pub(crate) fn write_to(device: &dyn Device, model: &mut [u8], offset: u64, data: Vec<u8>) {
    model[offset as usize..][..data.len()].copy_from_slice(&data);
    device.write(offset, Bytes::from(data), false).unwrap();
}
