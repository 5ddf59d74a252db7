//! Clients that break the protocol, die, or stall: it costs them their connection and nobody else anything.

use super::{Memory, closes, eventually, serve, soon};
use cdp_net::nbd::Channel;
use cdp_net::nbd::protocol::{self, Request, command, option};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn write_request(offset: u64, length: u32) -> [u8; protocol::REQUEST_BYTES] {
    Request { flags: 0, command: command::WRITE, cookie: 1, offset, length }.encode()
}

#[test]
fn garbage_on_the_port() {
    let served = serve(Memory::new(1 << 20), |_| ());
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 1000], &[0xff; 64]] {
        let mut channel = Channel::connect(&served.uri, Duration::from_secs(5)).unwrap();
        let _ = channel.send_all(garbage, soon());
        assert!(closes(&mut channel));
    }
    eventually(|| served.server.stats().handshakes_failed == 3);
    served.check_alive();
}

#[test]
fn any_garbage_in_the_transmission_phase() {
    let memory = Memory::new(1 << 20);
    let served = serve(memory, |_| ());
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let requests = proptest::collection::vec((any::<u16>(), 0u16..10, any::<u64>(), 0u32..2000), 0..20);
    let result = runner.run(&(requests, proptest::collection::vec(any::<u8>(), 0..200)), |(requests, garbage)| {
        let mut channel = served.raw();
        let mut bytes = Vec::new();
        for (flags, command, offset, length) in requests {
            bytes.extend_from_slice(&Request { flags, command, cookie: 3, offset, length }.encode());
        }
        bytes.extend_from_slice(&garbage);
        let _ = channel.send_all(&bytes, soon());
        channel.finish_sending();
        prop_assert!(closes(&mut channel));
        Ok(())
    });
    result.unwrap();
    served.check_alive();
}

#[test]
fn a_bad_magic_number_ends_that_connection_only() {
    let served = serve(Memory::new(1 << 20), |_| ());
    let mut other = served.client();
    let mut channel = served.raw();
    let mut request = write_request(0, 512);
    request[0] = 0;
    channel.send_all(&request, soon()).unwrap();
    assert!(closes(&mut channel));
    other.flush().unwrap();
    eventually(|| served.server.stats().connections_broken == 1);
}

#[test]
fn a_write_of_four_gigabytes_is_not_waited_for() {
    let served = serve(Memory::new(1 << 20), |_| ());
    let mut channel = served.raw();
    channel.send_all(&write_request(0, u32::MAX), soon()).unwrap();
    assert!(closes(&mut channel));
    served.check_alive();
}

#[test]
fn a_write_cut_off_is_never_applied_and_those_before_it_are() {
    for length in [4096u32, 100 << 10, 1 << 20] {
        let memory = Memory::new(8 << 20);
        let served = serve(std::sync::Arc::clone(&memory) as _, |_| ());
        let mut channel = served.raw();
        let mut bytes = Vec::new();
        for number in 0..3 {
            bytes.extend_from_slice(&write_request(number * u64::from(length), length));
            bytes.resize(bytes.len() + length as usize, 0xaa);
        }
        bytes.extend_from_slice(&write_request(4 << 20, length));
        bytes.resize(bytes.len() + length as usize - 1, 0xbb);
        // The client never reads a reply and is gone at once.
        channel.send_all(&bytes, soon()).unwrap();
        drop(channel);
        eventually(|| served.server.stats().connections_open == 0);
        assert_eq!(memory.writes.load(Ordering::SeqCst), 3, "{length}");
        let data = memory.data.lock().unwrap();
        assert!(data[..3 * length as usize].iter().all(|&byte| byte == 0xaa));
        assert!(data[4 << 20..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn half_a_handshake_and_half_a_request_time_out() {
    let served = serve(Memory::new(1 << 20), |options| {
        options.limits.handshake = Duration::from_millis(150);
        options.limits.request = Duration::from_millis(150);
    });
    let mut silent = Channel::connect(&served.uri, Duration::from_secs(5)).unwrap();
    let mut half = Channel::connect(&served.uri, Duration::from_secs(5)).unwrap();
    half.send_all(&[0, 0, 0, 3, b'I', b'H'], soon()).unwrap();
    let mut header = served.raw();
    header.send_all(&write_request(0, 512)[..20], soon()).unwrap();
    let mut payload = served.raw();
    payload.send_all(&write_request(0, 1 << 20), soon()).unwrap();
    payload.send_all(&[0; 1000], soon()).unwrap();
    let mut resting = served.client();
    for channel in [&mut silent, &mut half, &mut header, &mut payload] {
        assert!(closes(channel));
    }
    resting.flush().unwrap();
    eventually(|| served.server.stats().connections_open == 1);
}

#[test]
fn a_byte_now_and_then_is_not_enough() {
    let served = serve(Memory::new(1 << 20), |options| options.limits.request = Duration::from_millis(200));
    let mut slow = served.raw();
    let begin = std::time::Instant::now();
    for byte in write_request(0, 512).iter().cycle() {
        if slow.send_all(&[*byte], soon()).is_err() {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served.server.stats().connections_broken, 1);
}

#[test]
fn options_without_end() {
    let served = serve(Memory::new(1 << 20), |_| ());
    let mut channel = Channel::connect(&served.uri, Duration::from_secs(5)).unwrap();
    let mut bytes = vec![0, 0, 0, 3];
    (0..300).for_each(|_| protocol::push_option(&mut bytes, option::LIST, &[]));
    let _ = channel.send_all(&bytes, soon());
    assert!(closes(&mut channel));
    served.check_alive();
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    let served = serve(Memory::new(4 << 20), |options| options.limits.workers_max = 1);
    let mut greedy = served.raw();
    let request = Request { flags: 0, command: command::READ, cookie: 1, offset: 0, length: 1 << 20 }.encode();
    greedy.send_all(&request.repeat(500), soon()).unwrap();
    let mut other = served.client();
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..20 {
        other.read(0, &mut buffer).unwrap();
        other.flush().unwrap();
    }
    drop(greedy);
    eventually(|| served.server.stats().connections_open == 1);
}
