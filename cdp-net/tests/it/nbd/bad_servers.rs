//! Servers that break the protocol: the client ends in an error, whatever they send.

use cdp_net::nbd::client::Command;
use cdp_net::nbd::protocol::{self, ChunkHeader, chunk, info, option, option_reply, push_option_reply, transmission};
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

const FLAGS: u16 = transmission::HAS_FLAGS | transmission::SEND_FLUSH;

/// A greeting and the answers to what our client asks, before anything can go wrong.
fn good_handshake() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&protocol::MAGIC_SERVER.to_be_bytes());
    out.extend_from_slice(&protocol::MAGIC_OPTION.to_be_bytes());
    out.extend_from_slice(&protocol::SERVER_FLAGS.to_be_bytes());
    push_option_reply(&mut out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    push_option_reply(&mut out, option::SET_META_CONTEXT, option_reply::ACK, &[]);
    let export = [&info::EXPORT.to_be_bytes()[..], &(1u64 << 20).to_be_bytes(), &FLAGS.to_be_bytes()];
    push_option_reply(&mut out, option::GO, option_reply::INFO, &export);
    push_option_reply(&mut out, option::GO, option_reply::ACK, &[]);
    out
}

/// What a client makes of a server that sends exactly these bytes.
fn against(bytes: Vec<u8>) -> Result<(), ClientError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Everything the client says is taken, so that it never learns of the end by a failed send.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let options = ClientOptions { limit: Duration::from_secs(5), ..ClientOptions::default() };
    let result = (|| {
        let mut client = Client::connect(&Uri::unix(&path), &options)?;
        client.submit(1, Command::Read { offset: 4096, length: 512, flags: 0 })?;
        while let Some(completion) = client.complete(true)? {
            completion.result?;
        }
        Ok(())
    })();
    server.join().unwrap();
    result
}

/// A chunk for the first request that the client sends on a connection.
fn chunk(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader { flags, kind, cookie: 1 << 32, length: u32::try_from(payload.len()).unwrap() };
    [&header.encode()[..], payload].concat()
}

fn data(offset: u64, length: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![1; length]].concat()
}

#[test]
fn a_good_one_for_comparison() {
    against([good_handshake(), chunk(chunk::FLAG_DONE, chunk::OFFSET_DATA, &data(4096, 512))].concat()).unwrap();
    let halves =
        [chunk(0, chunk::OFFSET_DATA, &data(4352, 256)), chunk(chunk::FLAG_DONE, chunk::OFFSET_DATA, &data(4096, 256))];
    against([good_handshake(), halves.concat()].concat()).unwrap();
}

#[test]
fn answers_that_do_not_fit() {
    let done = chunk::FLAG_DONE;
    let bad = [
        chunk(done, chunk::OFFSET_DATA, &data(0, 512)),
        chunk(done, chunk::OFFSET_DATA, &data(4096, 1024)),
        chunk(done, chunk::OFFSET_DATA, &data(4096, 256)),
        chunk(done, chunk::OFFSET_DATA, &data(u64::MAX, 512)),
        chunk(done, chunk::OFFSET_DATA, &[0; 3]),
        chunk(done, chunk::OFFSET_HOLE, &[0xff; 12]),
        chunk(done, chunk::BLOCK_STATUS, &[0; 12]),
        chunk(done, chunk::ERROR, &[0; 2]),
        chunk(done, chunk::NONE, &[]),
        protocol::simple_reply(1 << 32, 0).to_vec(),
        protocol::simple_reply(7, 0).to_vec(),
        ChunkHeader { flags: 0, kind: chunk::OFFSET_DATA, cookie: 1 << 32, length: u32::MAX }.encode().to_vec(),
    ];
    for bytes in bad {
        let result = against([good_handshake(), bytes.clone()].concat());
        assert!(matches!(result, Err(ClientError::Protocol(_))), "{bytes:x?} {result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn garbage_at_any_place(keep in 0usize..200, garbage in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = good_handshake();
        bytes.truncate(keep);
        bytes.extend_from_slice(&garbage);
        prop_assert!(against(bytes).is_err());
    }
}
