//! Making connections.

use super::connection::Opened;
use super::identity::Identity;
use super::pin::{Fingerprint, Peers, client};
use super::stream::{Stream, Tcp, may_be_plain, prepare};
use bytes::Bytes;
use cdp_core::link::codec::{Decoder, Encoder, Party};
use cdp_core::link::mac::MacChain;
use cdp_core::link::message::{DataKey, Farewell};
use cdp_core::link::preamble::{Preamble, PreambleError};
use cdp_core::types::SessionId;
use rustls::pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

/// A connection takes so long to make, at most, with name, TCP and TLS.
pub const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// How a connection is guarded.
#[derive(Clone, Debug)]
pub enum Guard {
    /// By TLS.
    Tls {
        /// For the gateway on the way; empty: none.
        ticket: Bytes,
    },
    /// By a MAC on each message: between private addresses only. It is up to the caller that policy allows it.
    Plain {
        /// The session of which it is a data connection.
        session: SessionId,
        /// Agreed on the session's first connection.
        key: DataKey,
    },
}

/// Why a connection could not be made.
#[derive(Debug, Error)]
pub enum DialError {
    /// Nobody answered in time.
    #[error("{address} did not answer within {} s", within.as_secs())]
    Late {
        /// Who was dialled.
        address: String,
        /// The time it had.
        within: Duration,
    },
    /// Too many are being made already.
    #[error("{dials} connections are being made already")]
    Busy {
        /// How many.
        dials: usize,
    },
    /// A connection without TLS would leave private networks.
    #[error("a connection from {from} to {to} needs TLS: not both are private addresses")]
    Public {
        /// Our address.
        from: SocketAddr,
        /// The other one.
        to: SocketAddr,
    },
    /// There is no connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Who was dialled.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// TLS did not come up.
    #[error("no TLS with {address}, is it another service's port? {source}")]
    Tls {
        /// Who was dialled.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The other side has a certificate that is not listed.
    #[error(
        "{address} is not who it should be: its certificate is not one that is listed. If it was replaced, give its new fingerprint"
    )]
    Stranger {
        /// Who was dialled.
        address: String,
    },
    /// The other side, or a gateway before it, does not let us in. Nothing proves who said it.
    #[error("{address} refuses: {farewell}")]
    Refused {
        /// Who was dialled.
        address: String,
        /// What it said.
        farewell: Farewell,
    },
    /// The ticket cannot be said.
    #[error("the ticket is unusable: {0}")]
    Ticket(#[from] PreambleError),
    /// The identity is unusable.
    #[error("cannot speak TLS with this identity: {0}")]
    Identity(#[from] rustls::Error),
}

/// Connects to `address` (HOST:PORT) as the session's connection `index`; 0: the first. `peers` are those who may answer.
/// Nothing is said yet but the preamble.
///
/// # Errors
/// [`DialError`] says what went wrong.
pub async fn dial(
    address: &str,
    index: u16,
    guard: &Guard,
    identity: &Identity,
    peers: &Peers,
    within: Duration,
) -> Result<Opened, DialError> {
    let dialled = tokio::time::timeout(within, connect(address, index, guard, identity, peers)).await;
    dialled.unwrap_or_else(|_| Err(DialError::Late { address: address.to_owned(), within }))
}

async fn connect(
    address: &str,
    index: u16,
    guard: &Guard,
    identity: &Identity,
    peers: &Peers,
) -> Result<Opened, DialError> {
    let preamble = match guard {
        Guard::Tls { ticket } => Preamble::Tls { ticket: ticket.clone() },
        Guard::Plain { session, .. } => Preamble::Plain { session: *session, connection: index },
    };
    let preamble = preamble.encode()?;
    let failed = |source| DialError::Connect { address: address.to_owned(), source };
    let mut tcp = TcpStream::connect(address).await.map_err(failed)?;
    prepare(&tcp).map_err(failed)?;
    let far = tcp.peer_addr().map_err(failed)?;
    let from = tcp.local_addr().map_err(failed)?;
    if matches!(guard, Guard::Plain { .. }) && !may_be_plain(from, far) {
        return Err(DialError::Public { from, to: far });
    }
    tcp.write_all(&preamble).await.map_err(failed)?;
    let (mut decoder, mut encoder) = (Decoder::of_target(index), Encoder::new());
    let (stream, peer) = match guard {
        Guard::Tls { .. } => {
            let (tls, peer) = secure(tcp, far.ip(), address, identity, peers).await?;
            (Stream::Tls(Box::new(tls)), Some(peer))
        }
        Guard::Plain { key, .. } => {
            decoder = decoder.with_mac(MacChain::new(key.clone(), Party::Target, index));
            encoder = Encoder::with_mac(MacChain::new(key.clone(), Party::Source, index));
            (Stream::Plain(tcp), None)
        }
    };
    Ok(Opened { stream, decoder, encoder, address: far, peer, slot: None })
}

async fn secure(
    tcp: TcpStream,
    ip: IpAddr,
    address: &str,
    identity: &Identity,
    peers: &Peers,
) -> Result<(TlsStream<Tcp>, Fingerprint), DialError> {
    // The name is not looked at and not sent.
    let name = ServerName::IpAddress(ip.into());
    let connector = TlsConnector::from(client(identity, peers)?);
    let address = address.to_owned();
    let connected = connector.connect(name, Tcp::awaiting(tcp)).into_fallible().await;
    let tls = connected.map_err(|(source, tcp)| match tcp.refusal() {
        Some(farewell) => DialError::Refused { address: address.clone(), farewell },
        None if is_stranger(&source) => DialError::Stranger { address: address.clone() },
        None => DialError::Tls { address: address.clone(), source },
    })?;
    let peer = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|it| Fingerprint::of(it));
    let peer = peer.ok_or(DialError::Stranger { address })?;
    Ok((tls.into(), peer))
}

fn is_stranger(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
