//! Those who mean harm, and those who die at the wrong moment: the others are served on, and nothing is half applied.

use crate::support::{Guest, Scene, hash, mark, noise, raw, restore, times, write_request};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DISK: usize = 8 << 20;

fn socket(scene: &Scene) -> PathBuf {
    scene.place.path("nbd.sock")
}

/// The protection lives, the source is the model, and so are the mark and the end of the replica.
fn check(mut scene: Scene, model: &[u8]) {
    assert!(scene.running.is_alive());
    mark(&scene.replica, "end");
    scene.running.stop_clean();
    let expected = blake3::hash(model);
    assert_eq!(hash(&scene.source), expected, "the source");
    for at in ["label:end", "latest"] {
        assert_eq!(scene.restored(at), expected, "{at}");
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Sends bytes and reads whatever comes until the server ends it, or has nothing to say for a moment.
fn send_garbage(socket: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // The server may have closed it already.
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 4096]);
}

/// Bytes that come ever further into the protocol before they are wrong.
fn garbage(round: u64) -> Vec<u8> {
    let flags = 3_u32.to_be_bytes();
    let option =
        |number: u32, length: u32| [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &length.to_be_bytes()].concat();
    let random = noise(round, 1 + (round as usize * 37) % 3000);
    match round % 8 {
        0 => random,
        1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        2 => [&flags, random.as_slice()].concat(),
        3 => [&flags, option(7, u32::MAX).as_slice(), &random].concat(),
        4 => [&flags, option(1, 1 << 20).as_slice(), &random].concat(),
        5 => [&flags, option(6, 10).as_slice(), &random].concat(),
        6 => [&u32::MAX.to_be_bytes(), random.as_slice()].concat(),
        _ => [&flags, option(1, 0).as_slice(), &random].concat(),
    }
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let mut scene = Scene::begin(11, DISK);
    for round in 0..times("CDP_TEST_GARBAGE", 64) {
        send_garbage(&socket(&scene), &garbage(round));
        scene.guest.work(2);
    }
    let model = scene.guest.model.clone();
    check(scene, &model);
}

#[test]
fn garbage_after_the_handshake_harms_nobody() {
    let mut scene = Scene::begin(12, DISK);
    for round in 0..times("CDP_TEST_GARBAGE", 64) {
        let mut channel = raw(scene.running.uri());
        // No request begins with bytes like these, so whatever follows cannot be taken for a write.
        let _ = channel.send_all(&noise(round + 100, 28 + round as usize * 11), soon());
        scene.guest.work(2);
    }
    let model = scene.guest.model.clone();
    check(scene, &model);
}

#[test]
fn half_open_connections_keep_nobody_out() {
    let scene = Scene::begin(3, DISK);
    // Some say nothing, some begin a handshake, some a request: all stay.
    let silent: Vec<_> = (0..24).map(|_| UnixStream::connect(socket(&scene)).unwrap()).collect();
    let begun: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(socket(&scene)).unwrap();
            stream.write_all(&[0, 0, 0]).unwrap();
            stream
        })
        .collect();
    let mut half_asked: Vec<_> = (0..8).map(|_| raw(scene.running.uri())).collect();
    for channel in &mut half_asked {
        channel.send_all(&write_request(0, 4096, 1)[..13], soon()).unwrap();
    }
    let mut guest = Guest::connect(scene.running.uri(), &scene.source, 13);
    guest.work(200);
    let model = guest.model.clone();
    drop((guest, silent, begun, half_asked));
    check(scene, &model);
}

#[test]
fn the_end_does_not_wait_for_half_open_connections() {
    let mut scene = Scene::begin(3, DISK);
    let silent: Vec<_> = (0..4).map(|_| UnixStream::connect(socket(&scene)).unwrap()).collect();
    let mut half_written = raw(scene.running.uri());
    let head = write_request(0, 1 << 20, 1);
    half_written.send_all(&[head.as_slice(), &[0xdd; 1000]].concat(), soon()).unwrap();
    let before = hash(&scene.source);
    let (status, stopped) = scene.running.stop();
    assert_eq!((status, stopped["drained"].as_bool()), (0, Some(true)), "{stopped}");
    assert_eq!(hash(&scene.source), before);
    drop((silent, half_written));
}

#[test]
fn a_write_whose_client_dies_in_the_middle_of_it_is_not_applied_at_all() {
    let mut scene = Scene::begin(14, DISK);
    for round in 0..times("CDP_TEST_TORN_WRITES", 40) {
        let length = [512, 4096, 64 << 10, 1 << 20][round as usize % 4];
        let offset = (round * 199 % (DISK as u64 / 512 - 2048)) * 512;
        // From nothing of the data to all but its last byte.
        let sent = match round % 5 {
            0 => 0,
            1 => 1,
            2 => length as usize / 2,
            3 => length as usize - 512,
            _ => length as usize - 1,
        };
        let mut channel = raw(scene.running.uri());
        let request = [write_request(offset, length, round), vec![0xdd; sent]].concat();
        channel.send_all(&request, soon()).unwrap();
        drop(channel);
        scene.guest.work(3);
    }
    let model = scene.guest.model.clone();
    check(scene, &model);
}

#[test]
fn a_client_killed_in_the_middle_of_its_writes_leaves_whole_writes_only() {
    let scene = Scene::begin(3, DISK);
    let block = 64 << 10;
    let before = std::fs::read(&scene.source).unwrap();
    for round in 1..=times("CDP_TEST_KILLED_CLIENTS", 10) {
        let mut channel = raw(scene.running.uri());
        // Many writes in flight, the last one cut in its middle; nobody waits for the answers.
        let mut bytes = Vec::new();
        for number in 0..16 {
            bytes.extend(write_request(number * block, block as u32, number));
            bytes.extend(std::iter::repeat_n(round as u8, block as usize));
        }
        bytes.truncate(bytes.len() - 1 - (round as usize * 7919) % (block as usize));
        // It may have been closed under us, which is as good.
        let _ = channel.send_all(&bytes, soon());
        drop(channel);
    }
    // Whatever was still under way is through when later requests were answered and the protection was ended.
    let Scene { mut running, source, replica, place, .. } = scene;
    running.stop_clean();
    let after = std::fs::read(&source).unwrap();
    for (at, (new, old)) in after.chunks(block as usize).zip(before.chunks(block as usize)).enumerate() {
        let whole = new.iter().all(|byte| *byte == new[0]) && at < 15;
        assert!(new == old || whole, "block {at} is half applied");
    }
    let output = place.path("out.img");
    restore(&replica, "latest", &output).done();
    assert_eq!(hash(&output), hash(&source));
}
