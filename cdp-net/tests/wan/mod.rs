//! A stretch of network between two parts: delay, a bound of its rate, lost packets, a cut cable, and a line that only falls silent.
//!
//! It relays TCP connections, so what it loses is not bytes but time: as many segments as packets are lost wait for being sent again, a
//! round trip or, for the last of a burst, the retransmission timeout, and everything behind them waits too, as TCP has it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a packet, of which some are lost.
const PACKET: usize = 1460;
/// How long a lost packet waits whose loss nobody sees by those behind it.
const TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes on their way in one direction beside those that rate and delay explain.
const BUFFER: usize = 256 << 10;
/// The shortest sleep of whoever waits for nothing in particular.
const TICK: Duration = Duration::from_millis(20);

/// How the network is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// One way.
    pub(crate) delay: Duration,
    /// Bytes a second in each direction, of all connections together; 0: no bound.
    pub(crate) rate: u64,
    /// Packets lost of a million.
    pub(crate) loss_ppm: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    Whole,
    /// Nothing passes, and nobody is told.
    Silent,
    /// Connections are reset, and none can be made.
    Cut,
}

struct State {
    weather: Weather,
    line: Line,
    /// When the line is free again, by direction.
    free: [Instant; 2],
    dice: u64,
    streams: Vec<TcpStream>,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes that passed, by direction.
    bytes: [AtomicU64; 2],
}

/// A relay in front of one address. Ends when it is dropped.
pub(crate) struct Wan {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Wan {
    /// Relays to `target`, as a good local network does.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((target.ip(), 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let now = Instant::now();
        let (weather, line, free) = (Weather::default(), Line::Whole, [now, now]);
        let state = State { weather, line, free, dice: 0x9e37_79b9_7f4a_7c15, streams: Vec::new(), ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), bytes: Default::default() });
        let for_thread = Arc::clone(&shared);
        let accepting = Some(thread::spawn(move || accept(&for_thread, &listener, target)));
        Self { address, shared, accepting }
    }

    /// Where to connect to instead of the target.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it is like this.
    pub(crate) fn set(&self, weather: Weather) {
        self.shared.lock().weather = weather;
        self.shared.changed.notify_all();
    }

    /// Pulls the cable: connections are reset, new ones refused.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.lock();
        state.line = Line::Cut;
        for stream in state.streams.drain(..) {
            // One that is closed is cut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// Nothing passes any more in either direction, and nobody is told.
    pub(crate) fn silence(&self) {
        self.shared.lock().line = Line::Silent;
        self.shared.changed.notify_all();
    }

    /// The line is whole again.
    pub(crate) fn mend(&self) {
        self.shared.lock().line = Line::Whole;
        self.shared.changed.notify_all();
    }

    /// Bytes that passed towards the target and back.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let [there, back] = &self.shared.bytes;
        (there.load(Ordering::Relaxed), back.load(Ordering::Relaxed))
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.cut();
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // Wakes who accepts.
        let _ = TcpStream::connect(self.address);
        self.accepting.take().map(thread::JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When bytes that came now are at the other end: behind what is on the line, the delay, and what is lost of them.
    fn due(&mut self, direction: usize, bytes: usize, now: Instant) -> Instant {
        let Weather { delay, rate, loss_ppm } = self.weather;
        let spent = (bytes as u64 * 1_000_000_000).checked_div(rate).map_or(Duration::ZERO, Duration::from_nanos);
        let sent = self.free[direction].max(now) + spent;
        self.free[direction] = sent;
        let lost = (0..bytes.div_ceil(PACKET)).filter(|_| self.draw() % 1_000_000 < u64::from(loss_ppm)).count();
        let again = match lost {
            0 => Duration::ZERO,
            // The last packet of what was written has nothing behind it that would tell.
            _ if bytes <= PACKET => TIMEOUT.max(2 * delay),
            _ => 2 * delay,
        };
        sent + delay + again
    }

    fn draw(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, target: SocketAddr) {
    while let Ok((near, _)) = listener.accept() {
        let state = shared.lock();
        if state.ended {
            return;
        }
        let line = state.line;
        drop(state);
        if line == Line::Cut {
            continue;
        }
        let Ok(far) = TcpStream::connect(target) else { continue };
        let clones = [near.try_clone(), far.try_clone()];
        shared.lock().streams.extend(clones.into_iter().flatten());
        for stream in [&near, &far] {
            stream.set_nodelay(true).expect("an option of TCP");
        }
        let (Ok(near_back), Ok(far_back)) = (near.try_clone(), far.try_clone()) else { continue };
        relay(shared, 0, near, far);
        relay(shared, 1, far_back, near_back);
    }
}

/// What is on its way in one direction of one connection.
#[derive(Default)]
struct Way {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ended: bool,
}

fn relay(shared: &Arc<Shared>, direction: usize, mut from: TcpStream, mut to: TcpStream) {
    let way = Arc::new((Mutex::new(Way::default()), Condvar::new()));
    let (for_reader, for_writer) = (Arc::clone(&way), way);
    let (shared, also) = (Arc::clone(shared), Arc::clone(shared));
    thread::spawn(move || {
        let (way, changed) = &*for_reader;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut held = way.lock().unwrap_or_else(PoisonError::into_inner);
            if count == 0 {
                held.ended = true;
                changed.notify_all();
                return;
            }
            let mut state = shared.lock();
            let due = state.due(direction, count, Instant::now());
            let Weather { delay, rate, .. } = state.weather;
            drop(state);
            let most = BUFFER + (rate as f64 * 2.0 * delay.as_secs_f64()) as usize;
            held.pieces.push_back((due, buffer[..count].to_vec()));
            held.bytes += count;
            changed.notify_all();
            while held.bytes > most && !held.ended {
                held = changed.wait_timeout(held, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    });
    thread::spawn(move || {
        let (way, changed) = &*for_writer;
        loop {
            let mut held = way.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((due, _)) = held.pieces.front() else {
                if held.ended {
                    // The other side may be gone already.
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                drop(changed.wait_timeout(held, TICK).unwrap_or_else(PoisonError::into_inner));
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                drop(held);
                thread::sleep(left.min(TICK));
                continue;
            }
            let mut state = also.lock();
            while state.line == Line::Silent {
                state = also.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(state);
            let Some((_, piece)) = held.pieces.pop_front() else { continue };
            held.bytes -= piece.len();
            changed.notify_all();
            drop(held);
            also.bytes[direction].fetch_add(piece.len() as u64, Ordering::Relaxed);
            if to.write_all(&piece).is_err() {
                let mut held = way.lock().unwrap_or_else(PoisonError::into_inner);
                held.ended = true;
                changed.notify_all();
                return;
            }
        }
    });
}
