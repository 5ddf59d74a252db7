//! The connections of one machine: what its effects do to them, and what happens to them as its inputs.
//!
//! ```text
//! SourceEnd / TargetEnd  --Connect, Send, SendFrame, Close-->  Hub::dial, send, close
//!                        <--handle_connected, _message, ...--  Hub::next
//! ```

use super::connection::{Connection, ConnectionOptions, Event, Opened, SendError};
use super::dial::{DIAL_WITHIN, DialError, Guard, dial};
use super::identity::Identity;
use super::pin::Peers;
use cdp_core::link::message::{DATA_CONNECTIONS_MAX, Farewell, Message};
use cdp_core::link::source::{ConnId, Dial};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Events of all connections that were not taken yet, at most; beyond it connections wait.
const EVENTS_MAX: usize = 256;
/// Connections that are being made at once, at most: those of a session and of the one before it.
const DIALS_MAX: usize = 2 * (DATA_CONNECTIONS_MAX as usize + 1);

/// What happened.
#[derive(Debug)]
pub enum Happened {
    /// A connection is there.
    Connected {
        /// Which was asked for.
        dial: Dial,
        /// Its name from now on.
        conn: ConnId,
    },
    /// A connection could not be made.
    NotConnected {
        /// Which was asked for.
        dial: Dial,
        /// Why.
        error: DialError,
    },
    /// The other side said something.
    Message {
        /// On which connection.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Bytes came, though no whole message yet.
    Heard {
        /// On which connection.
        conn: ConnId,
    },
    /// Bytes of frames and calls left the queue.
    Sent {
        /// Of which connection.
        conn: ConnId,
        /// How many.
        bytes: u64,
    },
    /// A connection is over, and nobody had closed it here.
    Disconnected {
        /// Which.
        conn: ConnId,
        /// Why, for people.
        why: String,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Hub {
    identity: Arc<Identity>,
    options: ConnectionOptions,
    named: u64,
    connections: BTreeMap<ConnId, Connection>,
    /// Those of `connections` that were closed here, and end by themselves when they said so.
    closing: BTreeSet<ConnId>,
    dials: JoinSet<(Dial, Result<Opened, DialError>)>,
    queue: mpsc::Sender<(ConnId, Event)>,
    events: mpsc::Receiver<(ConnId, Event)>,
    /// What happened in calls; a few for each of them.
    happened: VecDeque<Happened>,
}

impl Hub {
    /// One without connections.
    #[must_use]
    pub fn new(identity: Arc<Identity>, options: ConnectionOptions) -> Self {
        let (queue, events) = mpsc::channel(EVENTS_MAX);
        Self {
            identity,
            options,
            named: 0,
            connections: BTreeMap::new(),
            closing: BTreeSet::new(),
            dials: JoinSet::new(),
            queue,
            events,
            happened: VecDeque::new(),
        }
    }

    /// Makes a connection to `address` (HOST:PORT), where one of `peers` must answer: [`Happened::Connected`] or
    /// [`Happened::NotConnected`] comes.
    pub fn dial(&mut self, dialled: Dial, address: &str, guard: Guard, peers: &Peers) {
        if self.dials.len() >= DIALS_MAX {
            let error = DialError::Busy { dials: self.dials.len() };
            return self.happened.push_back(Happened::NotConnected { dial: dialled, error });
        }
        let (address, peers, identity) = (address.to_owned(), peers.clone(), Arc::clone(&self.identity));
        self.dials.spawn(async move {
            (dialled, dial(&address, dialled.index, &guard, &identity, &peers, DIAL_WITHIN).await)
        });
    }

    /// Takes a connection that was let in.
    pub fn add(&mut self, opened: Opened) -> ConnId {
        self.named += 1;
        let conn = ConnId(self.named);
        self.connections.insert(conn, opened.start(conn, self.options, self.queue.clone()));
        conn
    }

    /// Sends a message. A connection that cannot take it is cut: its machine gave more than it may.
    pub fn send(&mut self, conn: ConnId, message: Message) {
        if self.closing.contains(&conn) {
            return;
        }
        let sent = self.connections.get(&conn).map(|connection| connection.send(message));
        // Why one is over comes by itself.
        if let Some(Err(error @ SendError::Full { .. })) = sent {
            self.connections.remove(&conn);
            self.happened.push_back(Happened::Disconnected { conn, why: error.to_string() });
        }
    }

    /// Says the last word, if there is one, and closes. Nothing more happens to this connection.
    pub fn close(&mut self, conn: ConnId, farewell: Option<Farewell>) {
        let said = farewell
            .and_then(|farewell| self.connections.get(&conn).map(|connection| connection.send(farewell.message())));
        if matches!(said, Some(Ok(()))) {
            self.closing.insert(conn);
        } else {
            self.connections.remove(&conn);
        }
    }

    /// The connections that are there and not being closed.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnId> {
        self.connections.keys().filter(|conn| !self.closing.contains(conn)).copied().collect()
    }

    /// Connections that are there, with those that are being closed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether none is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Where the other side of a connection is, and by what certificate it is known.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(&conn)
    }

    /// What happens next. Nothing is lost where this is given up before it ends.
    pub async fn next(&mut self) -> Happened {
        loop {
            if let Some(happened) = self.happened.pop_front() {
                return happened;
            }
            tokio::select! {
                Some((conn, event)) = self.events.recv() => self.came(conn, event),
                Some(dialled) = self.dials.join_next() => match dialled {
                    Ok((dial, Ok(opened))) => {
                        let conn = self.add(opened);
                        self.happened.push_back(Happened::Connected { dial, conn });
                    }
                    Ok((dial, Err(error))) => self.happened.push_back(Happened::NotConnected { dial, error }),
                    // It was ended with its runtime.
                    Err(_) => {}
                },
            }
        }
    }

    fn came(&mut self, conn: ConnId, event: Event) {
        let closing = self.closing.contains(&conn);
        if let Event::Ended(_) = event {
            self.closing.remove(&conn);
        }
        let known = match event {
            Event::Ended(_) => self.connections.remove(&conn).is_some(),
            _ => self.connections.contains_key(&conn),
        };
        if closing || !known {
            return;
        }
        self.happened.push_back(match event {
            // Whoever takes it has it: the next one may be read.
            Event::Message(message, _) => Happened::Message { conn, message },
            Event::Heard => Happened::Heard { conn },
            Event::Sent(bytes) => Happened::Sent { conn, bytes },
            Event::Ended(ended) => Happened::Disconnected { conn, why: ended.to_string() },
        });
    }
}
