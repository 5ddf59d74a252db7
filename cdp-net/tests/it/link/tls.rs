use super::*;
use cdp_core::link::message::Ping;

#[tokio::test(flavor = "multi_thread")]
async fn two_who_know_each_other_come_together() {
    let source = Part::new();
    let mut server = Server::new(source.peers(), AcceptOptions::default()).await;
    let mut hub = source.hub();
    let peers = server.part.peers();
    let conn = connected(&mut hub, &server, tls(), &peers).await.unwrap();
    assert_eq!(hub.get(conn).unwrap().peer, Some(server.part.identity.fingerprint()));
    hub.send(conn, Message::Hello(Box::new(hello())));
    let accepted = within(20, server.accepted.recv()).await.unwrap();
    assert_eq!(*accepted.hello, hello());
    assert_eq!(accepted.opened.peer(), Some(source.identity.fingerprint()));
    assert_eq!(accepted.preamble, Preamble::Tls { ticket: bytes::Bytes::new() });
    assert_eq!((server.listener.stats().let_in, server.listener.opening()), (1, 0));
    // What was not wanted after all is told so.
    tokio::spawn(accepted.opened.refuse(Farewell::new(Code::UnknownGroup, "nobody knows it").with(1, 2)));
    let (_, Message::Error(told)) = message(&mut hub).await else { panic!("no error") };
    assert_eq!((told.code, told.expected, told.found), (Code::UnknownGroup, 1, 2));
    assert_eq!(ended(&mut hub).await, "the connection was closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dials_a_stranger_says_nothing_to_him() {
    let (source, other) = (Part::new(), Part::new());
    let server = Server::new(source.peers(), AcceptOptions::default()).await;
    let why = connected(&mut source.hub(), &server, tls(), &other.peers()).await.unwrap_err();
    assert!(why.contains("its certificate is not one that is listed"), "{why}");
    assert_eq!(server.listener.stats().let_in, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_that_he_is_not_let_in() {
    let (source, stranger) = (Part::new(), Part::new());
    let server = Server::new(source.peers(), AcceptOptions::default()).await;
    let mut hub = stranger.hub();
    let peers = server.part.peers();
    // In TLS 1.3 he hears of it only when he listens.
    connected(&mut hub, &server, tls(), &peers).await.unwrap();
    let (_, Message::Error(told)) = message(&mut hub).await else { panic!("no error") };
    assert_eq!(told.code, Code::Unauthorized);
    assert_eq!(ended(&mut hub).await, "the connection was closed");
    // Counted when it was told.
    while server.listener.stats().refused == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((server.listener.stats().let_in, server.listener.stats().refused), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_off_the_list_does_not_come_in_again() {
    let source = Part::new();
    let allowed = source.peers();
    let mut server = Server::new(allowed.clone(), AcceptOptions::default()).await;
    let ((mut near, conn), (mut far, theirs)) = pair(&mut server, &source).await;
    allowed.set([]);
    // What holds goes on; no session of TLS is resumed behind the list's back.
    near.send(conn, Message::Ping(Ping::default()));
    assert!(matches!(message(&mut far).await, (conn, Message::Ping(_)) if conn == theirs));
    let mut again = source.hub();
    let peers = server.part.peers();
    connected(&mut again, &server, tls(), &peers).await.unwrap();
    assert!(matches!(message(&mut again).await, (_, Message::Error(told)) if told.code == Code::Unauthorized));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_ticket_is_refused_in_the_clear_and_by_its_code() {
    let source = Part::new();
    let server = Server::with_ticket(source.peers(), AcceptOptions::default(), Some(b"ticket")).await;
    let peers = server.part.peers();
    let guard = |ticket: &'static [u8]| Guard::Tls { ticket: ticket.into() };
    let why = connected(&mut source.hub(), &server, guard(b"other"), &peers).await.unwrap_err();
    assert!(why.contains("refuses: TicketInvalid: another ticket (expected 1, found 2)"), "{why}");
    connected(&mut source.hub(), &server, guard(b"ticket"), &peers).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_word_is_heard_behind_everything_before_it() {
    let source = Part::new();
    let mut server = Server::new(source.peers(), AcceptOptions::default()).await;
    let ((mut near, conn), (mut far, _)) = pair(&mut server, &source).await;
    for sent_ns in 0..1000 {
        near.send(conn, Message::Ping(Ping { sent_ns, ..Ping::default() }));
    }
    near.close(conn, Some(Farewell::new(Code::Done, "that is all")));
    // Nothing goes behind the last word.
    near.send(conn, Message::Ping(Ping::default()));
    for expected in 0..1000 {
        let (_, Message::Ping(ping)) = message(&mut far).await else { panic!("no ping") };
        assert_eq!(ping.sent_ns, expected);
    }
    assert!(matches!(message(&mut far).await, (_, Message::Close(told)) if told.text == "that is all"));
    assert_eq!(ended(&mut far).await, "the connection was closed");
    // Here nothing happens any more to a connection that was closed here.
    let quiet = tokio::time::timeout(Duration::from_secs(3), near.next()).await;
    assert!(quiet.is_err() && near.is_empty(), "{quiet:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_dropped_is_cut() {
    let source = Part::new();
    let mut server = Server::new(source.peers(), AcceptOptions::default()).await;
    let ((near, _), (mut far, _)) = pair(&mut server, &source).await;
    drop(near);
    assert_eq!(ended(&mut far).await, "the connection was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_taken_for_dead() {
    let source = Part::new();
    let mut server = Server::new(source.peers(), AcceptOptions::default()).await;
    let options = ConnectionOptions { silence: Duration::from_millis(300), ..ConnectionOptions::default() };
    let mut near = Hub::new(Arc::clone(&source.identity), options);
    let peers = server.part.peers();
    let conn = connected(&mut near, &server, tls(), &peers).await.unwrap();
    near.send(conn, Message::Hello(Box::new(hello())));
    let _held = within(20, server.accepted.recv()).await.unwrap();
    assert_eq!(ended(&mut near).await, "nothing was heard for 0 s");
    assert!(near.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_is_taken_for_dead_and_the_queue_has_a_bound() {
    use cdp_core::link::message::Call;
    let source = Part::new();
    let mut server = Server::new(source.peers(), AcceptOptions::default()).await;
    let options = ConnectionOptions { silence: Duration::from_secs(2), ..ConnectionOptions::default() };
    let mut near = Hub::new(Arc::clone(&source.identity), options);
    let peers = server.part.peers();
    let conn = connected(&mut near, &server, tls(), &peers).await.unwrap();
    near.send(conn, Message::Hello(Box::new(hello())));
    let _held = within(20, server.accepted.recv()).await.unwrap();
    let call = Call { kind: 1, header: bytes::Bytes::new(), tail: vec![0; 1 << 20].into() };
    for number in 0..16 {
        near.send(conn, Message::Call(number, call.clone()));
    }
    assert!(near.get(conn).is_some());
    let why = ended(&mut near).await;
    assert!(why.contains("for 2 s"), "{why}");
    // One that gets more than its queue takes is cut at once.
    let ((mut near, conn), _far) = pair(&mut server, &source).await;
    for number in 0..200 {
        near.send(conn, Message::Call(number, call.clone()));
    }
    assert!(ended(&mut near).await.contains("wait to be sent"));
}
