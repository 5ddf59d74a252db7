//! Accepting connections within bounds: each has a short time to open, and costs little until it has.
//!
//! What opening means is up to an [`Opening`]: a link that says hello ([`LinkDoor`](super::accept::LinkDoor)), or whatever a relay
//! does with a preamble.

use super::connection::{Ended, drain, write_all};
use super::stream::prepare;
use cdp_core::link::message::{Code, Farewell};
use cdp_core::link::preamble::{PREAMBLE_BYTES, Preamble};
use socket2::SockRef;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

/// Preamble, TLS and hello together take so long, at most.
pub const OPENING_WITHIN: Duration = Duration::from_secs(10);
/// Where no more connections can be accepted (no descriptors, no memory), it is tried again after this.
const PAUSE: Duration = Duration::from_millis(100);
/// A refusal in the clear is written within this.
const REFUSE_WITHIN: Duration = Duration::from_secs(1);

/// So many are refused with patience at once; more are told and cut, and may not hear it.
const REFUSALS_MAX: usize = 64;

/// How many are let in.
#[derive(Clone, Copy, Debug)]
pub struct AcceptOptions {
    /// Connections that are open at once, those that have not said who they are included. One more is refused as busy.
    pub connections_max: usize,
    /// Of them those that have not said who they are. One more ends the oldest of them: who dawdles gives way.
    pub opening_max: usize,
    /// They have so long to say it.
    pub opening_within: Duration,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self { connections_max: 1024, opening_max: 128, opening_within: OPENING_WITHIN }
    }
}

/// Its place among the connections that are open; free again when it goes.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// Why a connection was not let in.
#[derive(Debug)]
pub enum Turned {
    /// It is told so in the clear.
    Away(TcpStream, Farewell),
    /// It was told, or cannot be.
    Gone,
}

/// What a connection does before it counts as open. Given up where it takes too long.
pub trait Opening: Send + Sync + 'static {
    /// An open connection.
    type Opened: Send + 'static;

    /// Opens a connection, which is kept as long as its slot is.
    fn open(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
        slot: Slot,
    ) -> impl Future<Output = Result<Self::Opened, Turned>> + Send;
}

/// How many came and what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AcceptStats {
    /// Connections that came.
    pub came: u64,
    /// Of them those that said who they are.
    pub let_in: u64,
    /// Those that were refused: too many, not let in, or not a link.
    pub refused: u64,
    /// Those that gave way to newer ones, or took too long.
    pub dawdled: u64,
    /// How often no connection could be accepted.
    pub errors: u64,
}

#[derive(Debug, Default)]
struct Counts {
    came: AtomicU64,
    let_in: AtomicU64,
    refused: AtomicU64,
    dawdled: AtomicU64,
    errors: AtomicU64,
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// Those that have not said who they are, in the order in which they came; at most [`AcceptOptions::opening_max`].
type Waiting = Arc<Mutex<BTreeMap<u64, AbortHandle>>>;

/// Accepts connections until it is dropped. Those that were let in stay.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<Counts>,
    opening: Waiting,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
        let opening = std::mem::take(&mut *self.opening.lock().unwrap_or_else(PoisonError::into_inner));
        opening.values().for_each(AbortHandle::abort);
    }
}

impl Listener {
    /// Listens at `address` (HOST:PORT) and gives those that were let in to `opened`. An owner that does not take them in time loses
    /// them.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn listen<O: Opening>(
        address: &str,
        how: O,
        options: AcceptOptions,
        opened: mpsc::Sender<O::Opened>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (counts, opening) = (Arc::new(Counts::default()), Waiting::default());
        let door = Door {
            how,
            options,
            opened,
            counts: Arc::clone(&counts),
            opening: Arc::clone(&opening),
            slots: Arc::new(Semaphore::new(options.connections_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        };
        let task = tokio::spawn(async move { Arc::new(door).accept(listener).await });
        Ok(Self { address, counts, opening, task })
    }

    /// What became of those that came.
    #[must_use]
    pub fn stats(&self) -> AcceptStats {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let Counts { came, let_in, refused, dawdled, errors } = &*self.counts;
        AcceptStats {
            came: read(came),
            let_in: read(let_in),
            refused: read(refused),
            dawdled: read(dawdled),
            errors: read(errors),
        }
    }

    /// Those that have not said who they are.
    #[must_use]
    pub fn opening(&self) -> usize {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

struct Door<O: Opening> {
    how: O,
    options: AcceptOptions,
    opened: mpsc::Sender<O::Opened>,
    counts: Arc<Counts>,
    opening: Waiting,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl<O: Opening> Door<O> {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        for number in 0.. {
            let Ok((tcp, from)) = listener.accept().await else {
                count(&self.counts.errors);
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            count(&self.counts.came);
            let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else {
                count(&self.counts.refused);
                let text = format!("{} connections are open", self.options.connections_max);
                self.refuse(tcp, Farewell::new(Code::Busy, text));
                continue;
            };
            self.open(number, tcp, from, Slot { _permit: permit });
        }
    }

    /// What the other side has sent is read before the connection is closed: closed with bytes that nobody read it is reset, and
    /// what was said is lost with it.
    fn refuse(&self, tcp: TcpStream, farewell: Farewell) {
        match Arc::clone(&self.refusals).try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(async move {
                refuse_within(tcp, farewell).await;
                drop(permit);
            })),
            Err(_) => refuse_at_once(&tcp, farewell),
        }
    }

    /// Begins to open a connection, in the oldest one's place if there are too many.
    fn open(self: &Arc<Self>, number: u64, tcp: TcpStream, from: SocketAddr, slot: Slot) {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if opening.len() >= self.options.opening_max
            && let Some((_, oldest)) = opening.pop_first()
        {
            oldest.abort();
            count(&self.counts.dawdled);
        }
        let door = Arc::clone(self);
        // It cannot take itself off the list before it is on it: the list is locked.
        let task = tokio::spawn(async move {
            let within = door.options.opening_within;
            let (counted, opened) = match timeout(within, door.how.open(tcp, from, slot)).await {
                Ok(Ok(opened)) => (&door.counts.let_in, Some(opened)),
                Ok(Err(turned)) => {
                    // Who is told why not holds no place of those who may still come in.
                    if door.done(number) {
                        count(&door.counts.refused);
                    }
                    if let Turned::Away(tcp, farewell) = turned {
                        door.refuse(tcp, farewell);
                    }
                    return;
                }
                Err(_) => (&door.counts.dawdled, None),
            };
            // One that gave way is counted already.
            if door.done(number) {
                count(counted);
                if let Some(opened) = opened {
                    // One that nobody wants in time is dropped: its owner is overloaded.
                    let _ = timeout(within, door.opened.send(opened)).await;
                }
            }
        });
        opening.insert(number, task.abort_handle());
    }

    /// Takes it off the list; says whether it was on it.
    fn done(&self, number: u64) -> bool {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).remove(&number).is_some()
    }
}

fn refusal(farewell: Farewell) -> Vec<u8> {
    // A refusal is never too long: its text is cut.
    Preamble::Refusal(farewell).encode().unwrap_or_default()
}

/// Without waiting: a new connection has room for it.
fn refuse_at_once(tcp: &TcpStream, farewell: Farewell) {
    let _ = SockRef::from(tcp).send(&refusal(farewell));
}

/// Tells why not, and closes. Whether it was heard is up to the other side.
pub(crate) async fn refuse_within(tcp: TcpStream, farewell: Farewell) {
    let _ = timeout(REFUSE_WITHIN, refuse(tcp, farewell)).await;
}

async fn refuse(mut tcp: TcpStream, farewell: Farewell) -> Result<(), Ended> {
    write_all(&mut tcp, &mut [refusal(farewell).into()].into(), REFUSE_WITHIN).await?;
    tcp.shutdown().await.map_err(Ended::Failed)?;
    drain(&mut tcp).await.map_err(Ended::Failed)
}

/// The preamble of a new connection, and which of our addresses was dialled; else why not.
///
/// # Errors
/// The connection with what it is to be told.
pub async fn read_preamble(tcp: TcpStream) -> Result<(TcpStream, Preamble, SocketAddr), Turned> {
    let mut tcp = tcp;
    let gone = |_| Turned::Gone;
    prepare(&tcp).map_err(gone)?;
    let to = tcp.local_addr().map_err(gone)?;
    let mut bytes = vec![0; PREAMBLE_BYTES];
    tcp.read_exact(&mut bytes).await.map_err(gone)?;
    let start = bytes[..].try_into().map_err(|_| Turned::Gone)?;
    let length = match Preamble::content_length(start) {
        Ok(length) => length,
        Err(error) => return Err(Turned::Away(tcp, error.farewell())),
    };
    bytes.resize(PREAMBLE_BYTES + length, 0);
    tcp.read_exact(&mut bytes[PREAMBLE_BYTES..]).await.map_err(gone)?;
    match Preamble::decode(&bytes) {
        Ok(Preamble::Refusal(_)) => {
            Err(Turned::Away(tcp, Farewell::new(Code::Unexpected, "a refusal answers, it does not ask")))
        }
        Ok(preamble) => Ok((tcp, preamble, to)),
        Err(error) => Err(Turned::Away(tcp, error.farewell())),
    }
}
