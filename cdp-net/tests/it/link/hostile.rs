use super::*;
use cdp_core::link::codec::{Decoder, Encoder, HEADER_BYTES};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Takes anybody for the server.
#[derive(Debug)]
struct Blind;

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client that speaks TLS and whatever it likes in it, and keeps what would let it resume a session.
struct Raw {
    certificate: CertificateDer<'static>,
    known: Arc<ClientConfig>,
    nameless: Arc<ClientConfig>,
}

impl Raw {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["raw".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let certificate = made.cert.der().clone();
        let builder = || {
            ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Blind))
        };
        let known = builder().with_client_auth_cert(vec![certificate.clone()], key).unwrap();
        let nameless = builder().with_no_client_auth();
        Self { certificate, known: Arc::new(known), nameless: Arc::new(nameless) }
    }

    fn peers(&self) -> Peers {
        Peers::new([cdp_net::link::pin::Fingerprint::of(&self.certificate)])
    }

    async fn dial(&self, server: &Server, with_certificate: bool) -> std::io::Result<TlsStream<TcpStream>> {
        let config = if with_certificate { &self.known } else { &self.nameless };
        let mut tcp = TcpStream::connect(server.listener.address).await?;
        tcp.write_all(&Preamble::Tls { ticket: bytes::Bytes::new() }.encode().unwrap()).await?;
        TlsConnector::from(Arc::clone(config)).connect("raw".try_into().unwrap(), tcp).await
    }
}

/// What comes until the other side ends.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    // How it ends is up to who ends it.
    let _ = within(20, stream.read_to_end(&mut bytes)).await;
    bytes
}

async fn refusal(server: &Server, said: &[u8]) -> Farewell {
    let mut tcp = TcpStream::connect(server.listener.address).await.unwrap();
    tcp.write_all(said).await.unwrap();
    match Preamble::decode(&rest(&mut tcp).await) {
        Ok(Preamble::Refusal(farewell)) => farewell,
        other => panic!("{other:?}"),
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    Encoder::new().encode(message).unwrap().pieces.concat()
}

/// The last word of a target end behind what else it said.
fn last_word(bytes: &[u8]) -> Farewell {
    let mut decoder = Decoder::of_target(0);
    let mut bytes = bytes;
    loop {
        bytes = &bytes[decoder.take(bytes)..];
        match decoder.message().unwrap() {
            Some(Message::Error(farewell) | Message::Close(farewell)) => return farewell,
            Some(_) => {}
            None => assert!(!bytes.is_empty(), "no last word"),
        }
    }
}

async fn told(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), said: &[u8]) -> Farewell {
    stream.write_all(said).await.unwrap();
    last_word(&rest(stream).await)
}

async fn settled(server: &Server) {
    let settle = async {
        while server.listener.opening() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(20, settle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_something_else_is_refused_in_the_clear() {
    let server = Server::new(Peers::default(), AcceptOptions::default()).await;
    let told = refusal(&server, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").await;
    assert_eq!(told.code, Code::Malformed);
    let mut preamble = Preamble::Tls { ticket: b"ticket"[..].into() }.encode().unwrap();
    preamble[11] = 0xff;
    let told = refusal(&server, &preamble).await;
    assert_eq!((told.code, told.expected), (Code::TooLong, 1024));
    preamble[11] = 0;
    preamble[20] ^= 1;
    assert_eq!(refusal(&server, &preamble).await.code, Code::Malformed);
    // A data connection of a session that is not there: a replayed one, perhaps.
    let plain = Preamble::Plain { session: session(), connection: 1 }.encode().unwrap();
    assert_eq!(refusal(&server, &plain).await.code, Code::Unexpected);
    let refusing = Preamble::Refusal(Farewell::new(Code::Busy, "")).encode().unwrap();
    assert_eq!(refusal(&server, &refusing).await.code, Code::Unexpected);
    settled(&server).await;
    assert_eq!((server.listener.stats().refused, server.listener.stats().let_in), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_no_way_in() {
    let raw = Raw::new();
    let server = Server::new(raw.peers(), AcceptOptions::default()).await;
    // As of TLS 1.3 it may hear of it only when it listens.
    if let Ok(mut stream) = raw.dial(&server, false).await {
        let _ = stream.write_all(&encoded(&Message::Hello(Box::new(hello())))).await;
        assert!(stream.read(&mut [0; 1]).await.is_err());
    }
    settled(&server).await;
    assert_eq!((server.listener.stats().let_in, server.listener.stats().refused), (0, 1));
}

/// A session of TLS that is resumed would not look at the list.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_off_the_list_does_not_resume_a_session_of_tls() {
    let raw = Raw::new();
    let allowed = raw.peers();
    let mut server = Server::new(allowed.clone(), AcceptOptions::default()).await;
    let said = encoded(&Message::Hello(Box::new(hello())));
    for _ in 0..2 {
        let mut stream = raw.dial(&server, true).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        stream.write_all(&said).await.unwrap();
        let accepted = within(20, server.accepted.recv()).await.unwrap();
        accepted.opened.refuse(Farewell::new(Code::Busy, "")).await;
        last_word(&rest(&mut stream).await);
    }
    allowed.set([]);
    if let Ok(mut stream) = raw.dial(&server, true).await {
        assert!(stream.read(&mut [0; 1]).await.is_err());
    }
    settled(&server).await;
    assert_eq!(server.listener.stats().let_in, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_hello_is_answered_by_its_code() {
    let raw = Raw::new();
    let server = Server::new(raw.peers(), AcceptOptions::default()).await;
    let header = |length: u32, kind: u8| [&length.to_le_bytes()[..], &[kind, 0, 0, 0], &[0; 8]].concat();
    let mut newer = hello();
    newer.versions = 2..=9;
    let ping = encoded(&Message::Ping(cdp_core::link::message::Ping::default()));
    let cases = [
        (header(u32::MAX, 1), Code::TooLong),
        (header(0, 200), Code::Unexpected),
        (header(3, 1).into_iter().chain([1, 0, 1]).collect(), Code::Malformed),
        (encoded(&Message::Hello(Box::new(newer))), Code::Version),
        (encoded(&Message::Welcome(Box::new(welcome()))), Code::Unexpected),
        (ping, Code::Unexpected),
    ];
    for (said, code) in cases {
        let mut stream = raw.dial(&server, true).await.unwrap();
        assert_eq!(told(&mut stream, &said).await.code, code);
    }
    settled(&server).await;
    assert_eq!((server.listener.stats().let_in, server.listener.stats().refused), (0, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_later_is_told_so_and_cut() {
    let raw = Raw::new();
    let mut server = Server::new(raw.peers(), AcceptOptions::default()).await;
    let frame = |length: u32, number: u64| {
        [&length.to_le_bytes()[..], &[3, 0, 0, 0], &number.to_le_bytes(), &vec![7; length.min(4000) as usize]].concat()
    };
    let ack = encoded(&Message::Ack(cdp_core::link::message::Ack::default()));
    let cases = [
        (frame(u32::MAX, 1), Code::TooLong),
        (frame(1000, 1), Code::Damaged),
        (frame(1000, 0), Code::Malformed),
        (ack, Code::Unexpected),
    ];
    for (said, code) in cases {
        let mut stream = raw.dial(&server, true).await.unwrap();
        stream.write_all(&encoded(&Message::Hello(Box::new(hello())))).await.unwrap();
        let mut hub = server.part.hub();
        let conn = hub.add(within(20, server.accepted.recv()).await.unwrap().opened);
        hub.send(conn, Message::Welcome(Box::new(welcome())));
        assert_eq!(told(&mut stream, &said).await.code, code);
        let why = ended(&mut hub).await;
        assert!(why.starts_with("the other side breaks the protocol: "), "{why}");
    }
}

/// A message that never gets whole holds what its kind may have, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_on_its_way_is_heard() {
    let raw = Raw::new();
    let mut server = Server::new(raw.peers(), AcceptOptions::default()).await;
    let mut stream = raw.dial(&server, true).await.unwrap();
    stream.write_all(&encoded(&Message::Hello(Box::new(hello())))).await.unwrap();
    let mut hub = server.part.hub();
    hub.add(within(20, server.accepted.recv()).await.unwrap().opened);
    let call = [&(1u32 << 20).to_le_bytes()[..], &[8, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    stream.write_all(&call).await.unwrap();
    let drip = async {
        loop {
            stream.write_all(&[0]).await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let heard = tokio::select! {
        () = drip => None,
        happened = within(20, hub.next()) => Some(happened),
    };
    assert!(matches!(heard, Some(Happened::Heard { .. })), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drips_is_cut_before_the_hello() {
    let options = AcceptOptions { opening_within: Duration::from_millis(500), ..AcceptOptions::default() };
    let raw = Raw::new();
    let mut server = Server::new(raw.peers(), options).await;
    let began = Instant::now();
    let mut tcp = TcpStream::connect(server.listener.address).await.unwrap();
    let preamble = Preamble::Tls { ticket: vec![1; 900].into() }.encode().unwrap();
    let (mut reading, mut writing) = tcp.split();
    let drip = async {
        for byte in preamble {
            if writing.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // And one that holds still in the middle of its hello.
    let half = async {
        let mut stream = raw.dial(&server, true).await.unwrap();
        stream.write_all(&encoded(&Message::Hello(Box::new(hello())))[..HEADER_BYTES + 50]).await.unwrap();
        rest(&mut stream).await
    };
    let (said, half) = tokio::select! {
        () = drip => panic!("it could say everything"),
        said = async { tokio::join!(rest(&mut reading), half) } => said,
    };
    assert!(said.is_empty() && half.is_empty());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    settled(&server).await;
    assert_eq!((server.listener.stats().dawdled, server.listener.stats().let_in), (2, 0));
    assert!(server.accepted.try_recv().is_err());
}

/// Connections that say nothing cost little, and nobody who has something to say waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_connections_do_not_keep_out_who_speaks() {
    let source = Part::new();
    let options = AcceptOptions { connections_max: 200, opening_max: 50, opening_within: Duration::from_secs(60) };
    let mut server = Server::new(source.peers(), options).await;
    let (address, mut silent) = (server.listener.address, Vec::new());
    for _ in 0..900 {
        silent.push(TcpStream::connect(address).await.unwrap());
        assert!(server.listener.opening() <= 50);
    }
    let began = Instant::now();
    let ((_near, _), _far) = pair(&mut server, &source).await;
    println!("let in after {:?}, {:?}", began.elapsed(), server.listener.stats());
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let all_came = async {
        while server.listener.stats().came < 1001 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(20, all_came).await;
    assert_eq!(server.listener.opening(), 50);
    let stats = server.listener.stats();
    assert_eq!((stats.came, stats.let_in), (1001, 1));
    assert_eq!(stats.dawdled + stats.refused, 950, "{stats:?}");
    drop(server.listener);
    let mut closed = 0;
    for mut tcp in silent {
        let _ = within(20, tcp.read(&mut [0; 1])).await;
        closed += 1;
    }
    assert_eq!(closed, 1000, "nothing is left open");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_than_may_be_open_is_told_to_come_later() {
    let source = Part::new();
    let options = AcceptOptions { connections_max: 2, ..AcceptOptions::default() };
    let mut server = Server::new(source.peers(), options).await;
    let first = pair(&mut server, &source).await;
    let _second = pair(&mut server, &source).await;
    let peers = server.part.peers();
    let why = connected(&mut source.hub(), &server, tls(), &peers).await.unwrap_err();
    assert!(why.contains("refuses: Busy: 2 connections are open"), "{why}");
    drop(first);
    let mut again = Err(String::new());
    for _ in 0..100 {
        again = connected(&mut source.hub(), &server, tls(), &peers).await;
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(again.is_ok(), "{again:?}");
}
