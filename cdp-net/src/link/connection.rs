//! One connection while it holds: a task that reads and a task that writes.
//!
//! Everything that happens goes to the owner's queue as [`Event`]s under the connection's name, from many connections into one. What is to
//! be sent waits in a queue of its own, so that an owner never waits for the network. When the handle goes, so does the
//! connection.

use super::listener::Slot;
use super::memory;
use super::pin::Fingerprint;
use super::stream::Stream;
use crate::threads::make_way;
use bytes::{Buf, Bytes};
use cdp_core::link::codec::{Decoder, Encoder, Unsendable, WireError};
use cdp_core::link::message::{Code, Farewell, Message};
use cdp_core::link::source::ConnId;
use rustls::AlertDescription;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc::{self, WeakUnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

/// Bytes of messages that came and that the owner did not take yet, at most; one longer message may come alone. Beyond it
/// nothing is read.
pub const CAME_BYTES_MAX: usize = 2 << 20;
/// Messages that came and that the owner did not take yet count as so many bytes at least: small ones are bounded too.
const CAME_BYTES_MIN: usize = 512;
/// Bytes of messages that wait to be written, at most; one may always wait. The machines give no more than a fraction of it.
pub const QUEUE_BYTES_MAX: u64 = 16 << 20;
/// Messages that wait to be written, at most.
pub const QUEUE_MESSAGES_MAX: u64 = 16 << 10;
/// Messages are written together while they have less bytes than this.
const BATCH_BYTES: u64 = 256 << 10;
/// Pieces that one call writes.
const PIECES: usize = 64;
/// A message that began is there after so long: 384 KiB in this time are 26 kbit/s.
const MESSAGE_WITHIN: Duration = Duration::from_secs(120);
/// The last message is written and the other side's end is seen within this, or not at all.
const LINGER: Duration = Duration::from_secs(2);
/// Of a long message on its way the owner hears so often.
const HEARD_EVERY: Duration = Duration::from_millis(500);

/// How a connection is kept.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionOptions {
    /// After so long without a byte from the other side, or without one that it takes, it is taken for dead. The machines are
    /// stricter once they agreed on less.
    pub silence: Duration,
    /// The checksums of frames' chunks are verified as they come.
    pub verify_chunks: bool,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), verify_chunks: false }
    }
}

/// What happened to a connection.
#[derive(Debug)]
pub enum Event {
    /// The other side said something. The permit goes when the owner has taken it.
    Message(Message, Came),
    /// Bytes came, though no whole message yet.
    Heard,
    /// So many bytes of frames and calls ([`Message::queued_bytes`]) left the queue.
    Sent(u64),
    /// It is over: nothing more comes from it.
    Ended(Ended),
}

/// A place among what came and was not taken yet; given back when it goes.
#[derive(Debug)]
pub struct Came {
    _bytes: Option<OwnedSemaphorePermit>,
}

/// Why a connection is over.
#[derive(Debug, Error)]
pub enum Ended {
    /// One side said its last word.
    #[error("the connection was closed")]
    Closed,
    /// The other side is gone without a word.
    #[error("the connection was cut")]
    Cut,
    /// Nothing came for too long.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side takes nothing.
    #[error("nothing could be sent for {} s", .0.as_secs())]
    Stuck(Duration),
    /// A message takes too long.
    #[error("a message was not there after {} s", .0.as_secs())]
    Slow(Duration),
    /// The network failed.
    #[error("the connection failed: {0}")]
    Failed(io::Error),
    /// The other side said what cannot be; it was told so.
    #[error("the other side breaks the protocol: {0}")]
    Wrong(#[from] WireError),
    /// This side wanted to say what cannot be said.
    #[error("a message cannot be sent: {0}")]
    Unsendable(#[from] Unsendable),
}

/// A message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SendError {
    /// Too much waits already.
    #[error("{bytes} bytes in {messages} messages wait to be sent")]
    Full {
        /// How many messages wait.
        messages: u64,
        /// And their bytes.
        bytes: u64,
    },
    /// The connection is over.
    #[error("the connection is over")]
    Over,
}

/// A connection that is open and carries no messages yet.
pub struct Opened {
    pub(super) stream: Stream,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) address: SocketAddr,
    pub(super) peer: Option<Fingerprint>,
    /// Its place among those that were let in.
    pub(super) slot: Option<Slot>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, peer, .. } = self;
        f.debug_struct("Opened").field("address", address).field("peer", peer).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Queued {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// A connection: dropped, it is cut, and its owner hears nothing more of it but what is in its queue already.
#[derive(Debug)]
pub struct Connection {
    /// Bounded by [`Queued`].
    outbox: mpsc::UnboundedSender<Message>,
    queued: Arc<Queued>,
    /// Where the other side is.
    pub address: SocketAddr,
    /// The other side's certificate; none: the connection is plain.
    pub peer: Option<Fingerprint>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Puts a message behind those that wait. An error or close is the last one: when it is written, the connection ends.
    ///
    /// # Errors
    /// When too much waits, or the connection is over.
    pub fn send(&self, message: Message) -> Result<(), SendError> {
        let size = message.queued_bytes();
        let messages = self.queued.messages.fetch_add(1, Ordering::Relaxed);
        let bytes = self.queued.bytes.fetch_add(size, Ordering::Relaxed);
        let full = messages >= QUEUE_MESSAGES_MAX || (bytes > 0 && bytes + size > QUEUE_BYTES_MAX);
        if !full && self.outbox.send(message).is_ok() {
            return Ok(());
        }
        self.queued.took(1, size);
        Err(if full { SendError::Full { messages, bytes } } else { SendError::Over })
    }

    /// Bytes of frames and calls that wait to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.queued.bytes.load(Ordering::Relaxed)
    }
}

impl Queued {
    fn took(&self, messages: u64, bytes: u64) {
        self.messages.fetch_sub(messages, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Opened {
    /// Where the other side is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The other side's certificate; none: the connection is plain.
    #[must_use]
    pub fn peer(&self) -> Option<Fingerprint> {
        self.peer
    }

    /// Lets messages come and go. `events` is the owner's queue; its bound is the owner's.
    #[must_use]
    pub fn start(self, conn: ConnId, options: ConnectionOptions, events: mpsc::Sender<(ConnId, Event)>) -> Connection {
        let Self { stream, decoder, encoder, address, peer, slot } = self;
        let decoder = decoder.with_memory(memory::messages());
        let decoder = if options.verify_chunks { decoder.with_chunks_verified() } else { decoder };
        let (outbox, inbox) = mpsc::unbounded_channel();
        let queued = Arc::new(Queued::default());
        let (reading, writing) = split(stream);
        let events = Events { conn, queue: events };
        let silence = options.silence;
        let came = Arc::new(Semaphore::new(CAME_BYTES_MAX));
        let reader = Reader { stream: reading, decoder, events: events.clone(), came, silence };
        let mut writer =
            Writer { stream: writing, encoder, inbox, queued: Arc::clone(&queued), events: events.clone(), silence };
        // The writer's own errors go the way of all messages.
        let last = outbox.downgrade();
        let task = tokio::spawn(async move {
            let mut writing = JoinSet::new();
            writing.spawn(async move { writer.run().await });
            let ended = carry(reader, writing, last).await;
            drop(slot);
            events.say(Event::Ended(ended)).await;
        });
        Connection { outbox, queued, address, peer, task }
    }

    /// Says why not, and closes; takes two seconds at most.
    pub async fn refuse(self, farewell: Farewell) {
        let Self { mut stream, mut encoder, slot: _slot, .. } = self;
        let say = async {
            let outgoing = encoder.encode(&farewell.message()).map_err(io::Error::other)?;
            write_all(&mut stream, &mut outgoing.pieces.into(), LINGER).await.map_err(io::Error::other)?;
            stream.shutdown().await?;
            drain(&mut stream).await
        };
        // Whether it was heard is up to the other side.
        let _ = timeout(LINGER, say).await;
    }
}

/// Both directions until the connection is over.
async fn carry(
    mut reader: Reader,
    mut writing: JoinSet<Result<(), Ended>>,
    last: WeakUnboundedSender<Message>,
) -> Ended {
    let ended = {
        // It is never given up in the middle of handing a message over.
        let mut reading = pin!(reader.run());
        tokio::select! {
            ended = &mut reading => ended,
            written = writing.join_next() => {
                // What the other side says until it ends is still heard: perhaps why it takes nothing more.
                let heard = timeout(LINGER, reading).await;
                return match (written, heard) {
                    (Some(Ok(Ok(()))), _) | (_, Ok(Ended::Closed)) => Ended::Closed,
                    (Some(Ok(Err(ended))), _) => ended,
                    (Some(Err(error)), _) => Ended::Failed(io::Error::other(error)),
                    (None, _) => Ended::Cut,
                };
            }
        }
    };
    if let Ended::Wrong(error) = &ended
        && last.upgrade().is_some_and(|outbox| outbox.send(error.farewell().message()).is_ok())
    {
        let told = async { (writing.join_next().await, drain(&mut reader.stream).await) };
        let _ = timeout(LINGER, told).await;
    }
    ended
}

/// Reads on to the end, so that the other side reads what was said to it before it sees that nobody listens.
pub(super) async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut nothing = [0; 4096];
    while stream.read(&mut nothing).await? > 0 {}
    Ok(())
}

#[derive(Clone)]
struct Events {
    conn: ConnId,
    queue: mpsc::Sender<(ConnId, Event)>,
}

impl Events {
    /// Waits for the owner. One that is gone is not told.
    async fn say(&self, event: Event) {
        let _ = self.queue.send((self.conn, event)).await;
    }
}

struct Reader {
    stream: ReadHalf<Stream>,
    decoder: Decoder,
    events: Events,
    came: Arc<Semaphore>,
    silence: Duration,
}

impl Reader {
    /// Until nothing more comes.
    async fn run(&mut self) -> Ended {
        let mut amid: Option<Instant> = None;
        let mut heard = Instant::now();
        loop {
            loop {
                match self.decoder.message() {
                    Ok(Some(message)) => {
                        amid = None;
                        self.hand_over(message).await;
                    }
                    Ok(None) => break,
                    Err(error) => return Ended::Wrong(error),
                }
            }
            if self.decoder.is_ended() {
                return Ended::Closed;
            }
            let now = Instant::now();
            let mut wait = self.silence;
            if self.decoder.is_amid() {
                let left = MESSAGE_WITHIN.saturating_sub(now - *amid.get_or_insert(now));
                wait = wait.min(left);
                if now - heard >= HEARD_EVERY {
                    heard = now;
                    // An owner whose queue is full has more to hear than this.
                    let _ = self.events.queue.try_send((self.events.conn, Event::Heard));
                }
            }
            match timeout(wait, self.stream.read(self.decoder.room())).await {
                Ok(Ok(0)) => return Ended::Cut,
                Ok(Ok(bytes)) => {
                    self.decoder.came(bytes);
                    memory::tend();
                }
                Ok(Err(error)) => return self.failed(error).await,
                Err(_) if wait < self.silence => return Ended::Slow(MESSAGE_WITHIN),
                Err(_) => return Ended::Silent(self.silence),
            }
        }
    }

    async fn hand_over(&self, message: Message) {
        let bytes = message.queued_bytes() as usize;
        let bytes = bytes.clamp(CAME_BYTES_MIN, CAME_BYTES_MAX) as u32;
        let bytes = Arc::clone(&self.came).acquire_many_owned(bytes).await.ok();
        self.events.say(Event::Message(message, Came { _bytes: bytes })).await;
    }

    async fn failed(&self, error: io::Error) -> Ended {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            // In TLS 1.3 who dials hears of it only now. It is said inside of TLS, by who was dialled.
            Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => {
                let text = "our certificate is not one that the other side lets in";
                let farewell = Farewell::new(Code::Unauthorized, text);
                self.events.say(Event::Message(Message::Error(farewell), Came { _bytes: None })).await;
                Ended::Closed
            }
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Ended::Cut,
            _ => Ended::Failed(error),
        }
    }
}

struct Writer {
    stream: WriteHalf<Stream>,
    encoder: Encoder,
    inbox: mpsc::UnboundedReceiver<Message>,
    queued: Arc<Queued>,
    events: Events,
    silence: Duration,
}

impl Writer {
    /// Until the last message is written.
    async fn run(&mut self) -> Result<(), Ended> {
        let mut pieces = VecDeque::new();
        while let Some(message) = self.inbox.recv().await {
            let (mut bytes, mut messages, mut size, mut last) = (0, 0, 0, false);
            let mut next = Some(message);
            while let Some(message) = next {
                let outgoing = self.encoder.encode(&message)?;
                messages += 1;
                size += message.queued_bytes();
                bytes += outgoing.bytes;
                pieces.extend(outgoing.pieces);
                last = outgoing.last;
                next = if last || bytes >= BATCH_BYTES { None } else { self.inbox.try_recv().ok() };
            }
            write_all(&mut self.stream, &mut pieces, self.silence).await?;
            self.queued.took(messages, size);
            if last {
                return self.stream.shutdown().await.map_err(Ended::Failed);
            }
            if size > 0 {
                self.events.say(Event::Sent(size)).await;
            }
        }
        Err(Ended::Cut)
    }
}

/// Writes all of it, without copying it before, while the other side takes something at least every so often.
pub(super) async fn write_all(
    stream: &mut (impl AsyncWrite + Unpin),
    pieces: &mut VecDeque<Bytes>,
    silence: Duration,
) -> Result<(), Ended> {
    while !pieces.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let count = pieces.iter().zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
        let written = timeout(silence, stream.write_vectored(&slices[..count])).await;
        let mut written = written.map_err(|_| Ended::Stuck(silence))?.map_err(Ended::Failed)?;
        if written == 0 {
            return Err(Ended::Failed(io::ErrorKind::WriteZero.into()));
        }
        make_way();
        while let Some(piece) = pieces.front_mut().filter(|_| written > 0) {
            let part = written.min(piece.len());
            piece.advance(part);
            written -= part;
            if piece.is_empty() {
                pieces.pop_front();
            }
        }
    }
    timeout(silence, stream.flush()).await.map_err(|_| Ended::Stuck(silence))?.map_err(Ended::Failed)
}
