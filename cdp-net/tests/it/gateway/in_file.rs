//! A replica host as a role of a file, right behind a gateway.

use super::*;
use cdp_net::services::replica_host::role::ReplicaHostRole;
use std::sync::Mutex;

fn config(provider: &Provider, more: &str) -> Config {
    let (directory, key) = (replicas(provider.directory.path()), provider.directory.path().join("ticket.key"));
    let text = format!(
        "state = \"unused\"\n\
         [replica-host]\nlisten = \"127.0.0.1:0\"\ndirectory = {directory:?}\nticket-key = {key:?}\n{more}\n"
    );
    Config::parse(&text).unwrap()
}

/// By the keys that are in the file now, and for one route only.
#[test]
fn a_replica_host_of_a_file_lets_in_by_tickets_as_a_target_proxy_does() {
    let provider = Provider::new(([127, 0, 0, 1], 1).into(), "");
    let said = Arc::<Mutex<String>>::default();
    let told = Arc::clone(&said);
    let context = Context {
        identity: provider.identity("host"),
        notes: Notes::new(move |note| told.lock().unwrap().push_str(note)),
        ..provider.context()
    };
    let config = self::config(&provider, "route = \"target-1\"");
    let role = ReplicaHostRole::start(&config, &context).unwrap();
    let address = said.lock().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let good = provider.ticket("acme", "filter");
    let ticket = provider.issue(&good);
    let elsewhere = provider.issue(&Ticket { route: "target-2".into(), ..good.clone() });
    let enter = |ticket: &Bytes, tenant: &str| {
        provider.runtime.block_on(provider.enter(address, "filter", ticket, tenant, None)).map(drop)
    };
    enter(&ticket, "acme").unwrap();
    assert_eq!(enter(&ticket, "other").unwrap_err().code, Code::OtherTenant);
    assert_eq!(enter(&elsewhere, "acme").unwrap_err().code, Code::TicketInvalid);
    assert_eq!(enter(&Bytes::new(), "acme").unwrap_err().code, Code::Unauthorized);

    let path = provider.directory.path().join("ticket.key");
    KeyFile::rotate(&path).unwrap();
    let newer = provider.issue(&good);
    assert_eq!(enter(&newer, "acme").unwrap_err().code, Code::TicketInvalid);
    assert_eq!(role.reload(&config).unwrap(), Vec::<String>::new());
    enter(&newer, "acme").unwrap();
    assert_eq!(role.reload(&self::config(&provider, "")).unwrap(), ["replica-host.route"]);
    std::fs::write(&path, "no key").unwrap();
    let refused = role.reload(&config).unwrap_err().to_string();
    assert!(refused.starts_with("replica-host.ticket-key: "), "{refused}");
    enter(&newer, "acme").unwrap();
    role.drain(Duration::from_secs(5));
}
