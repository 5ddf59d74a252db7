//! A guest: writes through NBD and knows what it wrote.

use super::noise;
use cdp_net::device::ZeroFlags;
use cdp_net::nbd::{Channel, Client, ClientOptions};
use std::path::Path;

/// A client with a model of the disk.
pub(crate) struct Guest {
    client: Client,
    pub(crate) model: Vec<u8>,
    state: u64,
}

impl Guest {
    /// Connects to a disk that holds what `source` does now.
    pub(crate) fn connect(uri: &str, source: &Path, seed: u64) -> Self {
        Self::of(uri, &std::fs::read(source).unwrap(), seed)
    }

    /// Connects to a disk that holds this.
    pub(crate) fn of(uri: &str, content: &[u8], seed: u64) -> Self {
        Self { client: client(uri), model: content.to_vec(), state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub(crate) fn write(&mut self, offset: u64, data: Vec<u8>) {
        self.model[offset as usize..][..data.len()].copy_from_slice(&data);
        self.client.write(offset, &data, false).unwrap();
    }

    /// Writes, zeroes and trims at random places.
    pub(crate) fn work(&mut self, ops: usize) {
        let sectors = self.model.len() as u64 / 512;
        for _ in 0..ops {
            let (at, kind) = (self.next() % sectors, self.next() % 8);
            let length = (self.next() % 64 + 1).min(sectors - at) * 512;
            let (seed, offset) = (self.next(), at * 512);
            match kind {
                0 => self.client.trim(offset, length as u32, false).unwrap(),
                1 => self.client.write_zeroes(offset, length as u32, ZeroFlags::default()).unwrap(),
                _ => {
                    self.write(offset, noise(seed, length as usize));
                    continue;
                }
            }
            self.model[offset as usize..][..length as usize].fill(0);
        }
        self.flush();
    }

    pub(crate) fn flush(&mut self) {
        self.client.flush().unwrap();
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.model)
    }
}

pub(crate) fn client(uri: &str) -> Client {
    Client::connect(&uri.parse().unwrap(), &ClientOptions::default()).unwrap()
}

/// The head of a write request, as it goes over the wire after the handshake.
pub(crate) fn write_request(offset: u64, length: u32, cookie: u64) -> Vec<u8> {
    let mut head = 0x2560_9513_u32.to_be_bytes().to_vec();
    head.extend(0u16.to_be_bytes());
    head.extend(1u16.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend(offset.to_be_bytes());
    head.extend(length.to_be_bytes());
    head
}

/// A connection after the handshake, whose bytes the test chooses.
pub(crate) fn raw(uri: &str) -> Channel {
    client(uri).into_channel()
}
