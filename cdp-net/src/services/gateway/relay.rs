//! One connection through a gateway: dialled on, and copied both ways until it ends.

use super::limits::{Place, Traffic};
use crate::link::listener::{Slot, refuse_within};
use crate::link::stream::prepare;
use crate::services::pace::Member;
use bytes::BytesMut;
use cdp_core::link::message::{Code, Farewell};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// What a direction holds at most: read from one side and not yet taken by the other. Only while there is something: a connection on
/// which nothing goes holds none.
pub const PIECE_BYTES: usize = 32 << 10;
/// The target proxy answers within this, or whoever dialled is told that it does not: before he gives up himself.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection on which nothing goes for so long is ended: links say something every few seconds.
const SILENCE: Duration = Duration::from_secs(120);
/// At the end of the gateway, one on which nothing goes for so long is ended.
const QUIET: Duration = Duration::from_millis(500);

/// A connection that was let in.
pub(super) struct Let {
    pub(super) tcp: TcpStream,
    /// Is sent on as it came.
    pub(super) preamble: Vec<u8>,
    /// HOST:PORT.
    pub(super) to: String,
    pub(super) place: Place,
    pub(super) slot: Slot,
}

/// When something last went.
struct Moved {
    last: Mutex<Instant>,
    /// Directions that wait for their share of a limit: they are not silent.
    waiting: AtomicUsize,
}

impl Moved {
    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) {
        *self.lock() = Instant::now();
    }

    /// Returns when nothing went for so long.
    async fn silent(&self, so_long: Duration) {
        loop {
            let until = *self.lock() + so_long;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
            if self.waiting.load(Ordering::Relaxed) > 0 {
                self.now();
            }
        }
    }
}

/// Carries a connection until one of its sides ends it, nothing goes for too long, or the gateway ends.
pub(super) async fn run(let_in: Let, mut ending: watch::Receiver<bool>) {
    let Let { tcp, preamble, to, place, slot: _slot } = let_in;
    let dialled = tokio::select! {
        biased;
        // An error before it is dropped is a gateway that ends too.
        () = async { drop(ending.wait_for(|ending| *ending).await) } => None,
        dialled = timeout(CONNECT_WITHIN, connect(&to, &preamble)) => Some(dialled),
    };
    let Some(dialled) = dialled else {
        // Another gateway may be there: whoever dialled does not wait here to find that out.
        return refuse_within(tcp, Farewell::new(Code::Stopping, "this gateway ends")).await;
    };
    let far = match dialled {
        Ok(Ok(far)) => far,
        failed => {
            // Where it is is nobody's business.
            let text = match failed {
                Ok(_) => "the next hop of this gateway cannot be reached",
                Err(_) => "the next hop of this gateway does not answer",
            };
            return refuse_within(tcp, Farewell::new(Code::Unreachable, text)).await;
        }
    };
    let moved = Moved { last: Mutex::new(Instant::now()), waiting: AtomicUsize::new(0) };
    let ((near_from, near_to), (far_from, far_to)) = (tcp.into_split(), far.into_split());
    let way =
        |count: fn(&Traffic) -> &AtomicU64| Way { shares: place.shares(), count: count(&place.traffic), moved: &moved };
    let (mut up, mut down) = (way(|of| &of.up), way(|of| &of.down));
    let ends = async {
        // An error before it is dropped is a gateway that ends too.
        let _ = ending.wait_for(|ending| *ending).await;
        moved.silent(QUIET).await;
    };
    // Whatever ended it: both sides see it, and what was on its way comes again.
    tokio::select! {
        _ = async { tokio::try_join!(up.copy(near_from, far_to), down.copy(far_from, near_to)) } => {}
        () = moved.silent(SILENCE) => {}
        () = ends => {}
    }
}

async fn connect(to: &str, preamble: &[u8]) -> io::Result<TcpStream> {
    let mut far = TcpStream::connect(to).await?;
    prepare(&far)?;
    far.write_all(preamble).await?;
    Ok(far)
}

/// One direction.
struct Way<'a> {
    /// Of the limits that hold for it.
    shares: Vec<Member>,
    count: &'a AtomicU64,
    moved: &'a Moved,
}

impl Way<'_> {
    /// Until the end of what comes, which is passed on too.
    async fn copy(&mut self, from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        loop {
            from.readable().await?;
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            loop {
                match from.try_read_buf(&mut piece) {
                    Ok(0) => return to.shutdown().await,
                    Ok(count) => {
                        self.pass(count as u64).await?;
                        self.write(&mut to, &piece).await?;
                        piece.clear();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Waits for its turn under every limit.
    async fn pass(&mut self, bytes: u64) -> io::Result<()> {
        self.moved.waiting.fetch_add(1, Ordering::Relaxed);
        for share in &mut self.shares {
            share.take(bytes).await.map_err(io::Error::other)?;
        }
        self.moved.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    async fn write(&self, to: &mut OwnedWriteHalf, piece: &[u8]) -> io::Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            let written = to.write(rest).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = &rest[written..];
            self.count.fetch_add(written as u64, Ordering::Relaxed);
            self.moved.now();
        }
        Ok(())
    }
}
