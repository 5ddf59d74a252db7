//! What every client does, on a real file.

use cdp_net::device::{Device, ZeroFlags};
use cdp_net::file_device::FileDevice;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Address, Client, ClientOptions, Export, Server, ServerOptions, Uri};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

fn disk(directory: &Path, name: &str, bytes: u64) -> Arc<dyn Device> {
    let path = directory.join(name);
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    Arc::new(FileDevice::open(&path, false).unwrap())
}

fn start(bytes: u64) -> (TempDir, Server, Uri) {
    let directory = tempfile::tempdir().unwrap();
    let exports = vec![Export::new("disk", disk(directory.path(), "disk.img", bytes))];
    let address = Address::Unix(directory.path().join("nbd.sock"));
    let server = Server::start(ServerOptions::new(address, exports)).unwrap();
    let uri = server.uris().remove(0);
    (directory, server, uri)
}

#[test]
fn what_is_written_is_read() {
    let (_directory, server, uri) = start(64 << 20);
    let mut client = Client::connect(&uri, &ClientOptions::default()).unwrap();
    assert_eq!(client.size(), 64 << 20);
    let data: Vec<u8> = (0..5_000_000u32 / 512 * 512).map(|n| (n % 251) as u8).collect();
    client.write(512, &data, true).unwrap();
    client.write(0, &data[..512], false).unwrap();
    client.flush().unwrap();
    let mut back = vec![0; data.len()];
    client.read(512, &mut back).unwrap();
    assert!(back == data);
    client.write_zeroes(4096, 8192, ZeroFlags::default()).unwrap();
    client.trim(65536, 65536, false).unwrap();
    client.read(0, &mut back).unwrap();
    assert!(back[4096..12288].iter().all(|&byte| byte == 0));
    assert!(back[65536..131072].iter().all(|&byte| byte == 0));
    client.cache(0, 65536).unwrap();
    let extents = client.block_status(0, 64 << 20, false).unwrap();
    assert!(extents.iter().any(|extent| extent.hole) && extents.iter().any(|extent| !extent.hole));
    client.disconnect().unwrap();
    let (stats, clean) = server.stop(Duration::from_secs(5));
    assert!(clean);
    assert_eq!((stats.connections, stats.errors, stats.connections_open), (1, 0, 0));
}

#[test]
fn many_requests_in_flight() {
    let (_directory, _server, uri) = start(16 << 20);
    let mut client = Client::connect(&uri, &ClientOptions::default()).unwrap();
    let block = |number: u64| vec![(number % 255) as u8 + 1; 4096];
    for number in 0..4096u64 {
        client.submit(number, Command::Write { offset: number * 4096, data: &block(number), flags: 0 }).unwrap();
        if client.in_flight() >= 64 {
            client.complete(true).unwrap().unwrap().result.unwrap();
        }
    }
    while let Some(completion) = client.complete(true).unwrap() {
        completion.result.unwrap();
    }
    for number in 0..4096u64 {
        client.submit(number, Command::Read { offset: number * 4096, length: 4096, flags: 0 }).unwrap();
        if client.in_flight() >= 64 {
            let completion = client.complete(true).unwrap().unwrap();
            assert!(completion.data == block(completion.cookie));
        }
    }
    while let Some(completion) = client.complete(true).unwrap() {
        assert!(completion.data == block(completion.cookie));
    }
}
