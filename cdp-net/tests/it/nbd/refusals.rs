//! Requests that are answered with an error, and leave the connection usable.

use super::{Faulty, Memory, serve, soon};
use cdp_net::device::ZeroFlags;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::protocol::{Request, command, command_flag};
use cdp_net::nbd::{Client, ClientError, ClientOptions, NbdError};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 1 << 20;

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> NbdError {
    match result {
        Err(ClientError::Nbd(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unaligned_empty_and_outside() {
    for structured in [true, false] {
        let served = serve(Memory::new(SIZE as usize), |_| ());
        let options = ClientOptions { structured, ..ClientOptions::default() };
        let mut client = Client::connect(&served.uri, &options).unwrap();
        let mut buffer = vec![0; 1024];
        for (offset, length) in
            [(1, 512), (0, 100), (SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (u64::MAX, 1)]
        {
            assert_eq!(refused(client.read(offset, &mut buffer[..length])), NbdError::Inval, "{offset}+{length}");
        }
        for (offset, length) in [(1, 512), (0, 100)] {
            assert_eq!(refused(client.write(offset, &buffer[..length], false)), NbdError::Inval);
            assert_eq!(refused(client.trim(offset, length as u32, false)), NbdError::Inval);
        }
        for offset in [SIZE, SIZE - 512, u64::MAX - 511] {
            assert_eq!(refused(client.write(offset, &buffer, false)), NbdError::NoSpace);
            assert_eq!(refused(client.write_zeroes(offset, 1024, ZeroFlags::default())), NbdError::NoSpace);
            assert_eq!(refused(client.trim(offset, 1024, false)), NbdError::Inval);
            assert_eq!(refused(client.cache(offset, 1024)), NbdError::Inval);
        }
        assert_eq!(refused(client.trim(0, 0, false)), NbdError::Inval);
        // Large and refused: the payload must not be taken for requests.
        let large = vec![0x25; 2 << 20];
        assert_eq!(refused(client.write(0, &large, false)), NbdError::NoSpace);
        assert_eq!(refused(client.write(7, &large, false)), NbdError::Inval);
        assert_eq!(served.server.stats().bytes_written, 0);
        client.write(SIZE - 512, &buffer[..512], true).unwrap();
    }
}

#[test]
fn too_long_is_skipped_and_answered() {
    let served = serve(Memory::new(64 << 20), |_| ());
    let mut client = served.client();
    let long = vec![0; (32 << 20) + 512];
    client.submit(1, Command::Write { offset: 0, data: &long, flags: 0 }).unwrap();
    client.submit(2, Command::Write { offset: 0, data: &long[..512], flags: 0 }).unwrap();
    assert_eq!(client.complete(true).unwrap().unwrap().result, Err(NbdError::Inval));
    assert_eq!(client.complete(true).unwrap().unwrap().result, Ok(()));
    client.write(0, &long[..32 << 20], false).unwrap();
    let mut back = vec![1; 32 << 20];
    client.read(0, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
}

#[test]
fn a_read_that_is_too_long_and_unknown_commands_and_flags() {
    let served = serve(Memory::new(64 << 20), |_| ());
    let mut channel = served.raw();
    let mut ask = |command: u16, flags: u16, length: u32, reply_bytes: usize| {
        let request = Request { flags, command, cookie: 9, offset: 0, length };
        channel.send_all(&request.encode(), soon()).unwrap();
        let mut reply = vec![0; reply_bytes];
        channel.recv_exact(&mut reply, soon()).unwrap();
        let at = if reply_bytes == 16 { 4 } else { 20 };
        u32::from_be_bytes(reply[at..at + 4].try_into().unwrap())
    };
    assert_eq!(ask(command::READ, 0, 33 << 20, 26), 22);
    assert_eq!(ask(command::READ, command_flag::DF, 33 << 20, 26), 75, "EOVERFLOW: it would do without DF");
    assert_eq!(ask(command::READ, command_flag::NO_HOLE, 512, 26), 22);
    assert_eq!(ask(command::TRIM, command_flag::DF, 512, 16), 22);
    assert_eq!(ask(command::FLUSH, 0, 512, 16), 22);
    for unknown in [8, 9, 77, u16::MAX] {
        assert_eq!(ask(unknown, 0, 512, 16), 22);
    }
    assert_eq!(ask(command::FLUSH, 0, 0, 16), 0, "still in step");
}

#[test]
fn a_read_only_disk() {
    let served = serve(Memory::read_only(SIZE as usize), |_| ());
    let mut client = served.client();
    assert_eq!(refused(client.write(0, &[0; 512], false)), NbdError::Perm);
    assert_eq!(refused(client.trim(0, 512, false)), NbdError::Perm);
    assert_eq!(refused(client.write_zeroes(0, 512, ZeroFlags::default())), NbdError::Perm);
    client.read(0, &mut [0; 512]).unwrap();
    client.flush().unwrap();
}

#[test]
fn fast_zeroes_where_they_would_be_slow() {
    let served = serve(Memory::new(SIZE as usize), |_| ());
    let mut client = served.client();
    let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
    assert_eq!(refused(client.write_zeroes(0, 512, fast)), NbdError::NotSup);
    client.write_zeroes(0, 512, ZeroFlags::default()).unwrap();
}

#[test]
fn block_status_only_where_it_was_agreed_on() {
    let served = serve(Memory::new(SIZE as usize), |_| ());
    let options = ClientOptions { allocation: false, ..ClientOptions::default() };
    let mut client = Client::connect(&served.uri, &options).unwrap();
    assert_eq!(refused(client.block_status(0, 512, false)), NbdError::Inval);
    let mut client = served.client();
    let extents = client.block_status(0, 1 << 20, true).unwrap();
    assert_eq!((extents.len(), extents[0].length), (1, SIZE));
}

#[test]
fn errors_of_the_disk_keep_their_number_and_panics_are_contained() {
    let inner = Memory::new(4 << 20);
    let device = std::sync::Arc::new(Faulty { inner, panics: AtomicBool::new(false), error: Mutex::new(None) });
    let served = serve(std::sync::Arc::clone(&device) as _, |_| ());
    let mut client = served.client();
    for (errno, expected) in [(28, NbdError::NoSpace), (5, NbdError::Io), (1, NbdError::Perm), (110, NbdError::Io)] {
        *device.error.lock().unwrap() = Some(errno);
        assert_eq!(refused(client.write(0, &[0; 512], false)), expected);
        assert_eq!(refused(client.read(0, &mut [0; 512])), expected);
        assert_eq!(refused(client.read(0, &mut vec![0; 1 << 20])), expected);
        assert_eq!(refused(client.flush()), expected);
    }
    *device.error.lock().unwrap() = None;
    device.panics.store(true, Ordering::SeqCst);
    assert_eq!(refused(client.write(0, &[0; 512], false)), NbdError::Io);
    assert_eq!(refused(client.write(0, &vec![0; 1 << 20], true)), NbdError::Io);
    assert_eq!(refused(client.read(0, &mut [0; 512])), NbdError::Io);
    device.panics.store(false, Ordering::SeqCst);
    client.read(0, &mut [0; 512]).unwrap();
    assert_eq!(served.server.stats().panics, 3);
}
