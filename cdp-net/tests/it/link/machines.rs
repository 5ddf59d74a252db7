//! The machines of `cdp_core::link` over real connections: what the services are made of, at its smallest.

use super::*;
use crate::wan::network::{Wan, Weather};
use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, FrameHead, Payload, RawFrame, RecordKind};
use cdp_core::link::source::{SourceEffect, SourceEnd, SourceOptions};
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use cdp_core::types::{ClockEpoch, DiskId, MonoTime, WallTime};
use cdp_net::clock::mono;
use std::time::Instant;

/// LSN of each frame that was taken, and whether its bytes were right.
type Taken = Arc<Mutex<Vec<(u64, bool)>>>;

const KEY: DataKey = DataKey([9; 32]);

/// Frame `number` from 0, of one write of 256 KiB.
fn frame(number: u64) -> EncodedFrame {
    let lsn = Lsn(number + 1);
    let payload = Payload::new(number * (256 << 10), Bytes::from(vec![number as u8; 256 << 10])).unwrap();
    let parts = payload.into_parts(RecordKind::Write, DiskId::new(1).unwrap(), lsn, WallTime(5));
    let parts: Vec<_> = parts.into_iter().collect();
    let epoch = ClockEpoch(1);
    let raw =
        RawFrame { timeline: timeline(), prev_lsn: Lsn(number), settled: lsn, epoch, parts, plain_bytes: 256 << 10 };
    Encoder::new().encode(raw, group(), Compression::None)
}

/// Until so long after now.
async fn until(deadline: Option<MonoTime>) {
    let wait = deadline.map_or(Duration::from_secs(3600), |at| Duration::from_nanos(at.since(mono())));
    tokio::time::sleep(wait).await;
}

/// Sends `count` frames; ends when all are durable. Says how many sessions held.
async fn send(part: &Part, address: String, peers: Peers, trip: Trip) -> u64 {
    let Trip { count, connections, plain, .. } = trip;
    let options = SourceOptions {
        group: Some(group()),
        timeline: Some(timeline()),
        tenant: String::new(),
        name: "group".into(),
        software: "test".into(),
        features: Features::ALL,
        connections,
        plain,
        silence_ms: trip.silence_ms,
        start: Position::whole(Lsn(0)),
        origin: true,
        durable: Lsn(0),
        attempt: 0,
        retry_max_ns: 1_000_000_000,
        seed: [7; 32],
    };
    let mut end = SourceEnd::new(mono(), options);
    let mut hub = part.hub();
    let mut frames: Vec<_> = (0..count).map(frame).map(Some).collect();
    for frame in frames.iter().flatten() {
        end.offer(mono(), &frame.info, frame.len()).unwrap();
    }
    let mut sessions = 0;
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                SourceEffect::Connect { dial, session, plain } => {
                    let guard = plain.map_or(tls(), |key| Guard::Plain { session, key });
                    hub.dial(dial, &address, guard, &peers);
                }
                SourceEffect::Send { conn, message } => hub.send(conn, message),
                SourceEffect::SendFrame { conn, number, key } => {
                    hub.send(conn, Message::Frame(number, frames[key.0 as usize].clone().unwrap()));
                }
                SourceEffect::Close { conn, farewell } => hub.close(conn, farewell),
                SourceEffect::Acked(acked) => {
                    frames[..acked.kept_from as usize].fill(None);
                    if acked.durable == Lsn(count) {
                        end.stop(mono());
                        while let Some(effect) = end.poll() {
                            if let SourceEffect::Close { conn, farewell } = effect {
                                hub.close(conn, farewell);
                            }
                        }
                        return sessions;
                    }
                }
                SourceEffect::Up { .. } => sessions += 1,
                SourceEffect::Down { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        tokio::select! {
            happened = hub.next() => match happened {
                Happened::Connected { dial, conn } => end.handle_connected(mono(), conn, dial),
                Happened::NotConnected { dial, error } => end.handle_connect_failed(mono(), dial, &error.to_string()),
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => end.handle_disconnected(mono(), conn, &why),
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
        }
    }
}

/// Takes frames and calls them durable; every `cut_every` of them all connections are cut. Runs until it is dropped.
async fn take(mut server: Server, connections: u16, cut_every: u64, taken: Taken) {
    const ROOM: u64 = 16 << 20;
    let mut end = TargetEnd::new(TargetOptions {
        group: Some(group()),
        timeline: Some(timeline()),
        features: Features::ALL,
        connections,
        silence_ms: 10_000,
        attempt: 0,
    });
    let mut hub = server.part.hub();
    let mut conns = Vec::new();
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                TargetEffect::Judge { session, hello } => {
                    let have = Lsn(taken.lock().unwrap().len() as u64);
                    let position = (have > Lsn(0)).then(|| Position::whole(have));
                    server.gate.keys.lock().unwrap().insert(session, KEY);
                    let data_key = hello.plain.then_some(KEY);
                    let terms = Terms {
                        have: position,
                        durable: have,
                        stored: have,
                        room_bytes: ROOM,
                        data_key,
                        ..Terms::default()
                    };
                    end.admit(mono(), session, terms);
                }
                TargetEffect::Send { conn, message } => hub.send(conn, message),
                TargetEffect::Close { conn, farewell } => hub.close(conn, farewell),
                TargetEffect::Take(frame) => {
                    let raw = FrameHead::parse(&frame.head).unwrap().unpack(&frame.body.concat().into()).unwrap();
                    let lsn = raw.last_lsn();
                    let right = raw.parts.iter().all(|part| part.data.iter().all(|byte| *byte == (lsn.0 - 1) as u8));
                    taken.lock().unwrap().push((lsn.0, right));
                    end.durable(mono(), lsn);
                    end.grant(mono(), ROOM);
                    if lsn.0.is_multiple_of(cut_every) {
                        for conn in std::mem::take(&mut conns) {
                            hub.close(conn, None);
                            end.handle_disconnected(mono(), conn, "cut");
                        }
                    }
                }
                TargetEffect::Up { .. } | TargetEffect::Down { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        tokio::select! {
            Some(accepted) = server.accepted.recv() => {
                let conn = hub.add(accepted.opened);
                conns.push(conn);
                end.handle_accepted(mono(), conn, *accepted.hello);
            }
            happened = hub.next() => match happened {
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => end.handle_disconnected(mono(), conn, &why),
                other => panic!("{other:?}"),
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
        }
    }
}

#[derive(Clone, Copy)]
struct Trip {
    /// Data connections beside the first one.
    connections: u16,
    plain: bool,
    /// Frames.
    count: u64,
    /// All connections are cut after so many of them, again and again.
    cut_every: u64,
    silence_ms: u32,
}

const TRIP: Trip = Trip { connections: 0, plain: false, count: 400, cut_every: u64::MAX, silence_ms: 10_000 };

/// All frames come, once and in order. The network is told how many came so far, and does what it likes.
async fn all_come<N: Future<Output = ()>>(trip: Trip, network: impl FnOnce(Arc<Wan>, Taken) -> N) -> u64 {
    let source = Part::new();
    let server = Server::new(source.peers(), AcceptOptions::default()).await;
    let peers = server.part.peers();
    let wan = Arc::new(Wan::start(server.listener.address));
    let taken = Taken::default();
    let taking = tokio::spawn(take(server, trip.connections, trip.cut_every, Arc::clone(&taken)));
    let began = Instant::now();
    let sent = within(100, send(&source, wan.address().to_string(), peers, trip));
    let (sessions, ()) = tokio::join!(sent, network(Arc::clone(&wan), Arc::clone(&taken)));
    let (seconds, mib) = (began.elapsed().as_secs_f64(), (trip.count * 256 / 1024) as f64);
    taking.abort();
    let Trip { connections, plain, count, .. } = trip;
    let way = if plain { "plain" } else { "TLS" };
    println!("{connections} {way} data connections, {sessions} sessions: {mib} MiB, {:.0} MiB/s", mib / seconds);
    let expected: Vec<_> = (1..=count).map(|lsn| (lsn, true)).collect();
    assert!(*taken.lock().unwrap() == expected);
    sessions
}

async fn calm(_: Arc<Wan>, _: Taken) {}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_over_one_connection() {
    assert_eq!(all_come(TRIP, calm).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_over_data_connections_with_tls() {
    assert_eq!(all_come(Trip { connections: 2, ..TRIP }, calm).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_over_plain_data_connections() {
    assert_eq!(all_come(Trip { connections: 2, plain: true, ..TRIP }, calm).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_once_and_in_order_however_often_connections_are_cut() {
    let plain = Trip { connections: 2, plain: true, count: 300, cut_every: 70, ..TRIP };
    assert!(all_come(plain, calm).await > 4);
    let tls = Trip { connections: 1, count: 300, cut_every: 110, ..TRIP };
    assert!(all_come(tls, calm).await > 2);
}

async fn came(taken: &Taken, count: usize) {
    while taken.lock().unwrap().len() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nobody is told that a line fell silent: both sides notice, and go on where they were when it speaks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_line_is_noticed_and_frames_go_on_when_it_speaks_again() {
    let trip = Trip { connections: 2, plain: true, count: 200, silence_ms: 1_500, ..TRIP };
    let sessions = all_come(trip, |wan, taken| async move {
        wan.set(Weather { delay: Duration::from_millis(10), rate: 20 << 20, loss_ppm: 1_000 });
        came(&taken, 50).await;
        wan.silence();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let before = taken.lock().unwrap().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(taken.lock().unwrap().len(), before);
        assert!(before < 200);
        wan.mend();
    });
    assert!(sessions.await > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cable_that_is_pulled_costs_no_frame() {
    let sessions = all_come(Trip { connections: 1, count: 200, ..TRIP }, |wan, taken| async move {
        wan.set(Weather { delay: Duration::from_millis(5), rate: 40 << 20, ..Weather::default() });
        for count in [40, 80, 120] {
            came(&taken, count).await;
            wan.cut();
            tokio::time::sleep(Duration::from_millis(300)).await;
            wan.mend();
        }
    });
    // What was on its way when the cable was pulled may still come: one more session at least, and not one for each pull.
    assert!(sessions.await > 1);
}
