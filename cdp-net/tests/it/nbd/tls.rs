//! STARTTLS, with certificates made for the test.

use super::{Memory, closes, serve, soon};
use cdp_net::nbd::protocol::{self, option, option_reply};
use cdp_net::nbd::{
    Address, Channel, Client, ClientError, ClientOptions, Export, Server, ServerOptions, TlsClient, TlsServer,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::path::Path;
use std::time::Duration;

/// Writes an authority, a server's and a client's certificate into `directory`, by the names that QEMU and libnbd use.
pub(crate) fn certificates(directory: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "test authority");
    let certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(directory.join("ca-cert.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    for (name, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// A copy of the directory with only these files.
fn only(directory: &Path, files: &[&str]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(directory.join(file), copy.path().join(file)).unwrap();
    }
    copy
}

fn server(directory: &Path) -> Server {
    let address = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
    let mut options = ServerOptions::new(address, vec![Export::new("disk", Memory::new(8 << 20))]);
    options.tls = Some(TlsServer::from_directory(directory).unwrap());
    Server::start(options).unwrap()
}

fn client_options(directory: &Path) -> ClientOptions {
    ClientOptions { tls: Some(TlsClient::from_directory(directory).unwrap()), ..ClientOptions::default() }
}

fn exercise(mut client: Client) {
    let data: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 253) as u8).collect();
    client.write(4096, &data, true).unwrap();
    let mut back = vec![0; data.len()];
    client.read(4096, &mut back).unwrap();
    assert!(back == data);
    for number in 0..500 {
        let command = cdp_net::nbd::client::Command::Read { offset: number % 1000 * 4096, length: 4096, flags: 0 };
        client.submit(number, command).unwrap();
    }
    while let Some(completion) = client.complete(true).unwrap() {
        completion.result.unwrap();
    }
    client.disconnect().unwrap();
}

#[test]
fn both_sides_show_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let server = server(directory.path());
    let uri = server.uris().remove(0);
    assert!(uri.to_string().starts_with("nbds://127.0.0.1:"));
    let options = client_options(directory.path());
    exercise(Client::connect(&uri, &options).unwrap());
    assert_eq!(Client::list(&uri, &options).unwrap()[0].0, "disk");
    let (stats, clean) = server.stop(Duration::from_secs(5));
    assert!(clean);
    assert_eq!((stats.handshakes_failed, stats.connections_broken), (0, 0));
}

#[test]
fn a_client_without_certificate_is_refused_unless_none_is_demanded() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let anonymous = only(directory.path(), &["ca-cert.pem"]);
    let strict = server(directory.path());
    assert!(Client::connect(&strict.uris()[0], &client_options(anonymous.path())).is_err());
    let lenient_directory = only(directory.path(), &["server-cert.pem", "server-key.pem"]);
    let lenient = server(lenient_directory.path());
    exercise(Client::connect(&lenient.uris()[0], &client_options(anonymous.path())).unwrap());
}

#[test]
fn a_stranger_and_a_false_server_are_refused() {
    let (directory, stranger) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(directory.path());
    certificates(stranger.path());
    let server = server(directory.path());
    let uri = server.uris().remove(0);
    assert!(Client::connect(&uri, &client_options(stranger.path())).is_err());
    let mut options = client_options(directory.path());
    options.tls = options.tls.map(|tls| tls.with_server_name("other.example"));
    assert!(Client::connect(&uri, &options).is_err());
    exercise(Client::connect(&uri, &client_options(directory.path())).unwrap());
}

#[test]
fn who_does_not_upgrade_gets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let server = server(directory.path());
    let plain = server.uris()[0].with_tls(false);
    match Client::connect(&plain, &ClientOptions::default()) {
        Err(ClientError::Refused { kind: option_reply::ERR_TLS_REQD, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(Client::connect(&server.uris()[0], &ClientOptions::default()), Err(ClientError::NoTls)));
    // What is smuggled in behind STARTTLS must not count as having come through TLS.
    let mut channel = Channel::connect(&plain, Duration::from_secs(5)).unwrap();
    let mut bytes = vec![0, 0, 0, 3];
    protocol::push_option(&mut bytes, option::STARTTLS, &[]);
    protocol::push_option(&mut bytes, option::LIST, &[]);
    channel.send_all(&bytes, soon()).unwrap();
    assert!(closes(&mut channel));
}

#[test]
fn tls_that_is_not_offered() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let served = serve(Memory::new(1 << 20), |_| ());
    match Client::connect(&served.uri.with_tls(true), &client_options(directory.path())) {
        Err(ClientError::Refused { kind: option_reply::ERR_UNSUP, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(TlsServer::from_directory(served.directory.path()).is_err());
}
