//! What the chain's work costs when nothing else is done: the limit of `chain`.

use super::image::{MIB, Pool};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

type Failure = Box<dyn std::error::Error>;

/// The level of zstd, as the source proxy has it at most.
pub(crate) const LEVEL: i32 = 1;
/// What each part is measured with.
const BYTES: usize = 256 * MIB;
/// Plain bytes of a chunk.
const CHUNK: usize = 64 << 10;
/// Bytes of a write to a connection.
const PIECE: usize = 256 << 10;
/// From the filter to the source proxy the bytes are as the guest wrote them, on two more hops as they were compressed.
const HOPS_AFTER: f64 = 2.0;

/// Core-seconds for each GB that a guest writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    copied: f64,
    compressed: f64,
    sent: f64,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copied, compressed, sent } = self;
        write!(f, "core-seconds a GB: copy and CRC {copied:.2}, zstd {compressed:.2}, TLS over TCP {sent:.2}")
    }
}

impl Costs {
    /// `ratio` of the bytes went over the hops behind the compression.
    pub(crate) fn measure(pool: &Pool, ratio: f64) -> Result<Self, Failure> {
        let hop = sent(pool)?;
        Ok(Self { copied: copied(pool), compressed: compressed(pool)?, sent: hop * (1.0 + HOPS_AFTER * ratio) })
    }

    pub(crate) fn sum(&self) -> f64 {
        self.copied + self.compressed + self.sent
    }
}

/// Processor time of this process, in seconds, those of its threads that have ended too.
fn used() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn each(begin: f64) -> f64 {
    (used() - begin) / (BYTES as f64 / 1e9)
}

fn copied(pool: &Pool) -> f64 {
    let mut buffer = vec![0; CHUNK];
    let begin = used();
    for number in 0..(BYTES / CHUNK) as u64 {
        buffer.copy_from_slice(pool.piece(number, CHUNK));
        std::hint::black_box(crc32c::crc32c(&buffer));
    }
    each(begin)
}

fn compressed(pool: &Pool) -> Result<f64, Failure> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut out = vec![0; zstd::zstd_safe::compress_bound(CHUNK)];
    let begin = used();
    for number in 0..(BYTES / CHUNK) as u64 {
        std::hint::black_box(compressor.compress_to_buffer(pool.piece(number, CHUNK), &mut out)?);
    }
    Ok(each(begin))
}

/// Both ends of one connection.
fn sent(pool: &Pool) -> Result<f64, Failure> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begin = used();
    let taking = std::thread::spawn(move || {
        let (tcp, _) = listener.accept()?;
        let connection = ServerConnection::new(Arc::new(server)).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp);
        let mut buffer = vec![0; PIECE];
        let mut left = BYTES;
        while left > 0 {
            left -= stream.read(&mut buffer)?.min(left);
        }
        Ok::<_, std::io::Error>(())
    });
    let connection = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost")?)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    for number in 0..(BYTES / PIECE) as u64 {
        stream.write_all(pool.piece(number, PIECE))?;
    }
    stream.flush()?;
    taking.join().map_err(|_| "the other end panicked")??;
    Ok(each(begin))
}
