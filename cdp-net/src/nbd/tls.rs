//! TLS 1.3 for NBD, with the file names that QEMU and libnbd use, and rustls turned into "what can move now".
//!
//! A directory for a server holds `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` if clients must show a certificate
//! of that authority. A directory for a client holds `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the
//! server demands them.

use super::socket::Socket;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, Connection, RootCertStore, ServerConfig};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no certificate or key.
    #[error("cannot load {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Certificate authority unusable.
    #[error("cannot use the certificate authority for clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// What a server needs for STARTTLS.
#[derive(Clone, Debug)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// Loads `server-cert.pem` and `server-key.pem`; with `ca-cert.pem` every client must show a certificate of that authority.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn from_directory(directory: &Path) -> Result<Self, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let authority = directory.join("ca-cert.pem");
        let builder = if authority.exists() {
            let roots = Arc::new(roots(&authority)?);
            let provider = Arc::new(ring::default_provider());
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider).build()?)
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&directory.join("server-cert.pem"))?;
        let config = builder.with_single_cert(chain, key(&directory.join("server-key.pem"))?)?;
        Ok(Self { config: Arc::new(config) })
    }

    pub(crate) fn connection(&self) -> Result<Connection, rustls::Error> {
        Ok(rustls::ServerConnection::new(Arc::clone(&self.config))?.into())
    }
}

/// What a client needs for `nbds://`.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
}

impl TlsClient {
    /// Loads `ca-cert.pem`, and `client-cert.pem` with `client-key.pem` if they are there.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn from_directory(directory: &Path) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(&directory.join("ca-cert.pem"))?);
        let certificate = directory.join("client-cert.pem");
        let config = if certificate.exists() {
            let chain = certificates(&certificate)?;
            builder.with_client_auth_cert(chain, key(&directory.join("client-key.pem"))?)?
        } else {
            builder.with_no_client_auth()
        };
        Ok(Self { config: Arc::new(config), server_name: None })
    }

    /// Demands this name in the server's certificate, rather than the host of the URI (`localhost` for unix sockets).
    #[must_use]
    pub fn with_server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    pub(crate) fn connection(&self, host: &str) -> Result<Connection, rustls::Error> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| rustls::Error::General(format!("{name:?} is no server name")))?;
        Ok(rustls::ClientConnection::new(Arc::clone(&self.config), name)?.into())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if chain.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(chain) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    certificates(path)?.into_iter().try_for_each(|certificate| roots.add(certificate))?;
    Ok(roots)
}

/// Receives plain bytes without waiting: `None` if there are none, `Some(0)` at the end. What TLS itself has to say in
/// between is appended to `out`.
pub(crate) fn try_recv(
    tls: &mut Connection,
    socket: &Socket,
    buffer: &mut [u8],
    out: &mut Vec<u8>,
) -> io::Result<Option<usize>> {
    loop {
        match tls.reader().read(buffer) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The peer hung up without a farewell; every NBD message has its own length, so nothing can be cut unseen.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
            Err(error) => return Err(error),
        }
        match fill(tls, socket, out)? {
            None => return Ok(None),
            Some(0) => return Ok(Some(0)),
            Some(_) => {}
        }
    }
}

/// Receives and decrypts what is there, without taking plain bytes out: `None` if nothing is, `Some(0)` at the end.
pub(crate) fn fill(tls: &mut Connection, socket: &Socket, out: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let count = match tls.read_tls(&mut Now(socket)) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let processed = tls.process_new_packets();
    while tls.wants_write() {
        tls.write_tls(out)?;
    }
    processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some(count))
}

/// Encrypts `parts` and appends what is to be sent to `out`.
pub(crate) fn encrypt(tls: &mut Connection, parts: &[&[u8]], out: &mut Vec<u8>) -> io::Result<()> {
    for part in parts {
        // rustls takes at most its buffer limit at a time.
        let mut rest = *part;
        while !rest.is_empty() {
            let taken = tls.writer().write(rest)?;
            rest = &rest[taken..];
            if taken == 0 && !tls.wants_write() {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while tls.wants_write() {
                tls.write_tls(out)?;
            }
        }
    }
    Ok(())
}

struct Now<'a>(&'a Socket);

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_recv(buffer)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}
