//! What a gateway does with the bytes of who was let in. It does not know what they are: here they are no TLS.

use super::*;
use cdp_core::link::preamble::Preamble;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Says back what it hears, the preamble first. Counts connections.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (mut from, mut to) = tcp.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    (address, count)
}

fn echoing(more: &str) -> Provider {
    Provider::leading(|runtime, _| runtime.block_on(echo()).0, more)
}

/// A connection of this tenant, and its preamble as it came back.
async fn connect(provider: &Provider, ticket: &Ticket) -> std::io::Result<TcpStream> {
    let preamble = Preamble::Tls { ticket: provider.issue(ticket) }.encode().unwrap();
    let mut tcp = TcpStream::connect(provider.address).await?;
    tcp.write_all(&preamble).await?;
    let mut back = vec![0; preamble.len()];
    tcp.read_exact(&mut back).await?;
    assert!(back == preamble, "another preamble than was sent: {back:?}");
    Ok(tcp)
}

/// What whoever shows this ticket is told.
async fn told(provider: &Provider, ticket: &Ticket) -> Farewell {
    let mut tcp = TcpStream::connect(provider.address).await.unwrap();
    let preamble = Preamble::Tls { ticket: provider.issue(ticket) }.encode().unwrap();
    tcp.write_all(&preamble).await.unwrap();
    let mut bytes = Vec::new();
    within(30, tcp.read_to_end(&mut bytes)).await.unwrap();
    match Preamble::decode(&bytes) {
        Ok(Preamble::Refusal(farewell)) => farewell,
        other => panic!("{other:?}"),
    }
}

/// Sends so much and reads it back.
async fn there_and_back(tcp: &mut TcpStream, bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut back = vec![0; bytes];
    let (mut from, mut to) = tcp.split();
    let (sent, read) = tokio::join!(to.write_all(&data), from.read_exact(&mut back));
    sent.unwrap();
    read.unwrap();
    assert!(back == data, "what came back is not what was sent");
}

/// What is not through yet when the gateway ends is told so, and does not wait for a next hop that may never answer.
#[test]
fn who_is_on_his_way_in_when_the_gateway_ends_is_told_that_it_does() {
    // Its queue is full: whoever dials it waits.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let to = socket.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(to).unwrap();
    let provider = Provider::new(to, "");
    let ticket = provider.ticket("acme", "filter");
    let gateway = provider.gateway();
    std::thread::scope(|scope| {
        let told = scope.spawn(|| provider.runtime.block_on(told(&provider, &ticket)));
        provider.runtime.block_on(until("it to be let in", || provider.tenant("acme").connections == 1));
        gateway.drain(Duration::from_secs(20));
        assert_eq!(told.join().unwrap().code, Code::Stopping);
    });
}

#[test]
fn bytes_pass_both_ways_as_they_are_until_each_side_has_ended() {
    let provider = echoing("");
    let ticket = provider.ticket("acme", "filter");
    provider.runtime.block_on(async {
        let mut tcp = connect(&provider, &ticket).await.unwrap();
        there_and_back(&mut tcp, 5 << 20).await;
        tcp.write_all(b"last words").await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within(30, tcp.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"last words");
        until("the connection's end", || provider.tenant("acme").connections == 0).await;
    });
    let of = provider.tenant("acme");
    // The preamble is the gateway's own word on the way there.
    assert_eq!(of.in_bytes, (5 << 20) + 10);
    assert!(of.out_bytes > of.in_bytes, "{of:?}");
}

#[test]
fn a_next_hop_that_is_not_there_is_said() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let provider = Provider::new(closed, "");
    let ticket = provider.ticket("acme", "filter");
    let told = provider.runtime.block_on(told(&provider, &ticket));
    assert_eq!(told.code, Code::Unreachable);
    assert!(!told.text.contains("127.0.0.1"), "{told:?}");
}

#[test]
fn one_connection_more_than_a_tenant_may_have_is_refused_and_counted_and_another_tenants_is_not() {
    let provider = echoing("connections-per-tenant = 3");
    let (acme, other) = (provider.ticket("acme", "filter"), provider.ticket("other", "filter"));
    let narrow = Ticket { serial: [9; 16], connections: 1, ..provider.ticket("narrow", "filter") };
    provider.runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(connect(&provider, &acme).await.unwrap());
        }
        for _ in 0..5 {
            let told = told(&provider, &acme).await;
            assert_eq!((told.code, told.expected), (Code::Busy, 3), "{told:?}");
        }
        open.push(connect(&provider, &other).await.unwrap());
        open.push(connect(&provider, &narrow).await.unwrap());
        assert_eq!(told(&provider, &narrow).await.code, Code::Busy);
        let limited = |tenant: &str| (provider.tenant(tenant).connections, provider.tenant(tenant).limited);
        assert_eq!([limited("acme"), limited("other"), limited("narrow")], [(3, 5), (1, 0), (1, 1)]);
        open.remove(0);
        until("a free place", || provider.tenant("acme").connections == 2).await;
        open.push(connect(&provider, &acme).await.unwrap());
    });
    assert_eq!(provider.gateway().report().door.unwrap().refused, 6);
}

/// Four connections of a tenant send four megabytes at half a megabyte a second, and another tenant `fast` bytes meanwhile.
fn slow_beside_fast(more: &str, of_slow: impl Fn(u8) -> Ticket, fast: usize, provider: &Provider) {
    let of_fast = provider.ticket("fast", "filter");
    provider.runtime.block_on(async {
        let began = std::time::Instant::now();
        let mut all = Vec::new();
        for number in 0..4 {
            let mut tcp = connect(provider, &of_slow(number)).await.unwrap();
            all.push(tokio::spawn(async move { there_and_back(&mut tcp, 512 << 10).await }));
        }
        let mut tcp = connect(provider, &of_fast).await.unwrap();
        there_and_back(&mut tcp, fast).await;
        assert!(all.iter().all(|one| !one.is_finished()), "{more}: more was there before");
        for one in all {
            within(120, one).await.unwrap();
        }
        // Both ways count; the bucket was full.
        let least = (2.0 * 4.0 * 512.0 - 512.0) / 512.0;
        assert!(began.elapsed().as_secs_f64() >= least, "{more}: {:?}", began.elapsed());
    });
}

/// All connections of a ticket share its rate; another tenant does not feel it.
#[test]
fn a_ticket_at_its_rate_slows_nobody_else() {
    let more = "rate-per-tenant = \"1GiB\"";
    let provider = echoing(more);
    let of_slow = |_| Ticket { bytes_per_second: Some(512 << 10), ..provider.ticket("slow", "filter") };
    slow_beside_fast(more, of_slow, 4 << 20, &provider);
}

/// All tickets of a tenant share its rate, and each tenant has its own.
#[test]
fn a_tenant_at_its_rate_slows_nobody_else() {
    let more = "rate-per-tenant = \"512KiB\"";
    let provider = echoing(more);
    let of_slow = |number| Ticket { serial: [number; 16], ..provider.ticket("slow", "filter") };
    // What a full bucket has.
    slow_beside_fast(more, of_slow, 192 << 10, &provider);
}

#[test]
fn routes_and_limits_are_taken_at_a_reload_and_where_it_listens_is_not() {
    let provider = echoing("connections-per-tenant = 1");
    let ticket = provider.ticket("acme", "filter");
    provider.runtime.block_on(async {
        let _one = connect(&provider, &ticket).await.unwrap();
        assert_eq!(told(&provider, &ticket).await.code, Code::Busy);
    });
    let (to, count) = provider.runtime.block_on(echo());
    let config = provider.config("127.0.0.1:0", to, "connections-per-tenant = 2");
    assert_eq!(provider.gateway().reload(&config).unwrap(), Vec::<String>::new());
    provider.runtime.block_on(async {
        let _one = connect(&provider, &ticket).await.unwrap();
        let _two = connect(&provider, &ticket).await.unwrap();
        assert_eq!((told(&provider, &ticket).await.code, count.load(Ordering::Relaxed)), (Code::Busy, 2));
    });
    let config = provider.config("127.0.0.1:1", to, "");
    assert_eq!(provider.gateway().reload(&config).unwrap(), ["gateway.listen"]);
    let gone = Config::parse(
        "state = \"s\"\n[gateway]\nlisten = \"127.0.0.1:0\"\nticket-key = \"none\"\nto = { x = \"h:1\" }\n",
    );
    assert!(provider.gateway().reload(&gone.unwrap()).is_err());
    provider.runtime.block_on(async { drop(connect(&provider, &ticket).await.unwrap()) });
}

/// A connection on which nothing goes is ended at once, one that is at work at the end of its time; nobody new is let in.
#[test]
fn a_drain_lets_go_of_who_is_idle_and_of_who_works_on_when_its_time_is_over() {
    let provider = echoing("");
    let ticket = provider.ticket("acme", "filter");
    let (mut idle, mut works) = provider
        .runtime
        .block_on(async { (connect(&provider, &ticket).await.unwrap(), connect(&provider, &ticket).await.unwrap()) });
    let idle = provider.runtime.spawn(async move { idle.read(&mut [0; 1]).await });
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let works = provider.runtime.spawn(async move {
        while works.write_all(&[1]).await.is_ok() && works.read_exact(&mut [0; 1]).await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| provider.gateway().drain(Duration::from_secs(4)));
        let ended = provider.runtime.block_on(within(30, idle)).unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let before = rounds.load(Ordering::Relaxed);
        assert!(!drain.is_finished());
        let on = async { until("work that goes on", || rounds.load(Ordering::Relaxed) > before).await };
        provider.runtime.block_on(on);
        assert!(provider.runtime.block_on(connect(&provider, &ticket)).is_err(), "nobody is let in any more");
        assert_eq!(drain.join().unwrap().left_bytes, 0);
    });
    provider.runtime.block_on(within(30, works)).unwrap();
    assert_eq!(provider.tenant("acme").connections, 0);
    assert_eq!(provider.gateway().report().door.unwrap().let_in, 2);
}
