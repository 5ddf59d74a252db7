//! Letting links in: preamble, TLS or a MAC, and the hello.

use super::connection::Opened;
use super::identity::Identity;
use super::listener::{Opening, Slot, Turned, read_preamble};
use super::pin::{Fingerprint, Peers, server};
use super::stream::{Stream, Tcp, may_be_plain};
use cdp_core::link::codec::{Decoder, Encoder, Party};
use cdp_core::link::mac::MacChain;
use cdp_core::link::message::{Code, DataKey, Farewell, Hello, Message};
use cdp_core::link::preamble::Preamble;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// How a connection goes on behind its preamble.
#[derive(Clone, Debug)]
pub enum Admission {
    /// By TLS, with one of these certificates.
    Tls(Peers),
    /// Without, as a data connection whose messages have a MAC by this key: between private addresses only.
    Plain(DataKey),
}

/// Judges preambles. Answers at once: it is asked on threads that carry data.
pub trait Gate: Send + Sync + 'static {
    /// How a connection that begins so goes on.
    ///
    /// # Errors
    /// Why it does not: the other side is told in the clear.
    fn admit(&self, preamble: &Preamble, from: SocketAddr, to: SocketAddr) -> Result<Admission, Farewell>;
}

/// A connection that has said who it is.
#[derive(Debug)]
pub struct Accepted {
    /// What it began with.
    pub preamble: Preamble,
    /// Its first message.
    pub hello: Box<Hello>,
    /// The rest of it.
    pub opened: Opened,
}

/// Opens links for a [`Listener`](super::listener::Listener).
pub struct LinkDoor {
    identity: Arc<Identity>,
    gate: Arc<dyn Gate>,
}

impl std::fmt::Debug for LinkDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkDoor").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl LinkDoor {
    /// Those whom `gate` admits are shown this identity.
    #[must_use]
    pub fn new(identity: Arc<Identity>, gate: Arc<dyn Gate>) -> Self {
        Self { identity, gate }
    }
}

impl Opening for LinkDoor {
    type Opened = Accepted;

    async fn open(&self, tcp: TcpStream, from: SocketAddr, slot: Slot) -> Result<Accepted, Turned> {
        let (tcp, preamble, to) = read_preamble(tcp).await?;
        if matches!(preamble, Preamble::Plain { .. }) && !may_be_plain(from, to) {
            let text = format!("a connection from {from} to {to} needs TLS: not both are private addresses");
            return Err(Turned::Away(tcp, Farewell::new(Code::Unauthorized, text)));
        }
        let admission = match self.gate.admit(&preamble, from, to) {
            Ok(admission) => admission,
            Err(farewell) => return Err(Turned::Away(tcp, farewell)),
        };
        let (mut decoder, mut encoder) = (Decoder::of_source(), Encoder::new());
        let (stream, peer) = match (&preamble, admission) {
            (Preamble::Tls { .. }, Admission::Tls(peers)) => {
                let config = server(&self.identity, &peers).map_err(|_| Turned::Gone)?;
                let tls = TlsAcceptor::from(config).accept(Tcp::accepted(tcp)).await.map_err(|_| Turned::Gone)?;
                let chain = tls.get_ref().1.peer_certificates();
                let peer = chain.and_then(|chain| chain.first()).map(|it| Fingerprint::of(it)).ok_or(Turned::Gone)?;
                (Stream::Tls(Box::new(tls.into())), Some(peer))
            }
            (Preamble::Plain { connection, .. }, Admission::Plain(key)) => {
                decoder = decoder.with_mac(MacChain::new(key.clone(), Party::Source, *connection));
                encoder = Encoder::with_mac(MacChain::new(key, Party::Target, *connection));
                (Stream::Plain(tcp), None)
            }
            _ => {
                let text = "this connection is not let in in this way";
                return Err(Turned::Away(tcp, Farewell::new(Code::Unexpected, text)));
            }
        };
        let mut opened = Opened { stream, decoder, encoder, address: from, peer, slot: Some(slot) };
        match hello(&mut opened, &preamble).await {
            Ok(hello) => Ok(Accepted { preamble, hello, opened }),
            Err(Some(farewell)) => {
                opened.refuse(farewell).await;
                Err(Turned::Gone)
            }
            Err(None) => Err(Turned::Gone),
        }
    }
}

/// The first message of a connection; else what is to be said, if there is somebody to hear it.
async fn hello(opened: &mut Opened, preamble: &Preamble) -> Result<Box<Hello>, Option<Farewell>> {
    loop {
        match opened.decoder.message() {
            Ok(Some(Message::Hello(hello))) => {
                let fits = match preamble {
                    Preamble::Plain { session, connection } => {
                        (hello.session, hello.connection) == (*session, *connection)
                    }
                    _ => true,
                };
                let text = "a hello of another session or connection than the preamble says";
                return if fits { Ok(hello) } else { Err(Some(Farewell::new(Code::Unexpected, text))) };
            }
            // The decoder lets nothing else come first.
            Ok(Some(_)) => return Err(None),
            Ok(None) => {}
            Err(error) => return Err(Some(error.farewell())),
        }
        match opened.stream.read(opened.decoder.room()).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(bytes) => opened.decoder.came(bytes),
        }
    }
}
