//! What of a filter's link can be read by who listens, by the rules that it follows.

use crate::kit::{Sites, noise, restored, seeded, stop, wait_for, write};
use cdp_core::policy::traffic::{Range, Rule, Rules};
use cdp_core::when::When;
use cdp_net::services::far_link::FarOptions;
use cdp_net::services::traffic::Traffic;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A relay that keeps what passes from the filter on.
struct Tap {
    address: SocketAddr,
    /// By connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(to).unwrap();
                let number = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (back_from, back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                std::thread::spawn(move || relay(back_from, back_to, |_| ()));
                let all = Arc::clone(&all);
                std::thread::spawn(move || relay(near, far, |bytes| all.lock().unwrap()[number].extend(bytes)));
            }
        });
        Self { address, heard }
    }

    fn has_heard(&self, words: &[u8]) -> bool {
        self.heard.lock().unwrap().iter().any(|heard| heard.windows(words.len()).any(|found| found == words))
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, mut hear: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        hear(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either may be gone already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Whether a write, and the first copy, can be read on their way; what comes is the same.
fn can_be_read(traffic: Traffic) -> [bool; 2] {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 1);
    let tap = Tap::start(sites.host.address);
    let options = FarOptions { traffic, ..sites.far_options(tap.address) };
    let protection = sites.protect_over(options, "disk", |_| {}).unwrap();
    seeded(&protection);
    // What comes before the connections for frames are there goes by the first one, which is never plain.
    let (written, copied) = (noise(5, 8192), [12, 23].map(|at| model[at << 20..][..64].to_vec()));
    write(&protection, &mut model, 64 << 10, written.clone());
    let lsn = protection.status().lsn;
    wait_for("what was written", || protection.status().durable >= lsn);
    stop(protection);
    let heard = [tap.has_heard(&written[..64]), copied.iter().any(|words| tap.has_heard(words))];
    assert!(restored(&sites.load().0, &When::Latest, "disk") == model);
    heard
}

fn encrypting(encrypt: bool) -> Traffic {
    let (name, any) = ("rule".to_owned(), Range::ANY);
    let rule = Rule { name, enabled: true, source: any, target: any, encrypt: Some(encrypt), limit: None };
    Traffic::new(Rules::new(vec![rule]).unwrap())
}

#[test]
fn a_filter_sends_plain_between_private_addresses() {
    assert_eq!(can_be_read(Traffic::default()), [true; 2]);
    assert_eq!(can_be_read(encrypting(false)), [true; 2]);
}

#[test]
fn a_filter_encrypts_where_a_rule_says_so() {
    assert_eq!(can_be_read(encrypting(true)), [false; 2]);
    assert_eq!(can_be_read(Traffic::encrypted()), [false; 2]);
}
