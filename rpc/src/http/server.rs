//! The HTTP connections of the RPC thread: an epoll set of their own, which the thread's loop waits for as for one socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::conn::{Act, Connection};
use super::{Listener, Pages};
use crate::conn::MAX_UNSENT;
use crate::error::{INVALID_REQUEST, RpcError};
use crate::exec::Executor;
use crate::jsonrpc::{Envelope, Rejected, Request, answer};
use crate::server::Dispatch;

/// Connections at a time. One more takes the place of the one whose client has been waited for longest.
const MAX_CONNECTIONS: usize = 64;
/// Connections accepted per turn.
const ACCEPTS: usize = 16;
/// How often clients that take too long are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Where the numbers of connections begin; those below are listeners.
const FIRST: u64 = 16;

enum Event {
    Answer {
        connection: u64,
        status: u16,
        text: Option<String>,
    },
    Metrics {
        connection: u64,
        pages: Option<Pages>,
    },
    /// More may be buffered.
    Again {
        connection: u64,
    },
    Sweep,
    AcceptAgain,
}

pub(crate) struct Http<D> {
    listeners: Vec<Listener>,
    accepting: bool,
    epoll: OwnedFd,
    executor: Executor,
    dispatch: Rc<D>,
    connections: HashMap<u64, Connection>,
    next: u64,
    events: Rc<RefCell<Vec<Event>>>,
    sweeping: bool,
    warned: Cell<Option<Instant>>,
}

impl<D: Dispatch> Http<D> {
    pub(crate) fn new(listeners: Vec<Listener>, executor: Executor, dispatch: Rc<D>) -> io::Result<Http<D>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (listener, token) in listeners.iter().zip(0..FIRST) {
            epoll::add(&epoll, &listener.socket, EventData::new_u64(token), EventFlags::IN)?;
        }
        Ok(Http {
            listeners,
            accepting: true,
            epoll,
            executor,
            dispatch,
            connections: HashMap::new(),
            next: FIRST,
            events: Rc::default(),
            sweeping: false,
            warned: Cell::new(None),
        })
    }

    /// What becomes readable when there is something to do.
    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(crate) fn quiet(&self) -> bool {
        self.connections.values().all(Connection::quiet)
    }

    /// Serves the sockets that are ready.
    pub(crate) fn ready(&mut self, scratch: &mut [u8]) {
        let mut ready = Vec::with_capacity(MAX_CONNECTIONS);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&now)).is_err() {
            return;
        }
        for event in ready.drain(..) {
            match event.data.u64() {
                token if token < FIRST => self.accept(token as usize),
                id => {
                    let flags = event.flags;
                    if flags.intersects(EventFlags::HUP | EventFlags::ERR)
                        && let Some(connection) = self.connections.get_mut(&id)
                    {
                        // Nobody is left to read an answer. What was asked for still runs.
                        connection.close();
                    }
                    self.advance(id, scratch);
                }
            }
        }
    }

    /// Hands on what tasks have left. True if there was anything.
    pub(crate) fn settle(&mut self, scratch: &mut [u8]) -> bool {
        let events = self.events.take();
        let any = !events.is_empty();
        for event in events {
            match event {
                Event::Answer { connection, status, text } => {
                    if let Some(c) = self.connections.get_mut(&connection) {
                        c.rpc_answer(status, text);
                    }
                    self.advance(connection, scratch);
                }
                Event::Metrics { connection, pages } => {
                    if let Some(c) = self.connections.get_mut(&connection) {
                        c.metrics(pages);
                    }
                    self.advance(connection, scratch);
                }
                Event::Again { connection } => self.advance(connection, scratch),
                Event::Sweep => self.sweep(scratch),
                Event::AcceptAgain => self.accept_on(true),
            }
        }
        any
    }

    pub(crate) fn accept_on(&mut self, on: bool) {
        if self.accepting == on {
            return;
        }
        self.accepting = on;
        let flags = if on { EventFlags::IN } else { EventFlags::empty() };
        for (listener, token) in self.listeners.iter().zip(0..FIRST) {
            let _ = epoll::modify(&self.epoll, &listener.socket, EventData::new_u64(token), flags);
        }
    }

    fn accept(&mut self, listener: usize) {
        for _ in 0..ACCEPTS {
            if self.connections.len() >= MAX_CONNECTIONS && !self.evict() {
                return self.accept_on(false);
            }
            let Some(from) = self.listeners.get(listener) else { return };
            match from.socket.accept() {
                Ok((stream, _)) => {
                    let id = self.next;
                    self.next += 1;
                    let added = stream
                        .set_nonblocking(true)
                        .and_then(|()| Ok(epoll::add(&self.epoll, &stream, EventData::new_u64(id), EventFlags::IN)?));
                    if added.is_ok() {
                        self.connections.insert(id, Connection::new(stream, from.serve.clone(), Instant::now()));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors, most likely: try again later instead of spinning.
                    tracing::warn!("cannot accept an HTTP connection: {error}");
                    self.accept_on(false);
                    self.later(Duration::from_millis(100), Event::AcceptAgain);
                    break;
                }
            }
        }
        if !self.sweeping && !self.connections.is_empty() {
            self.sweeping = true;
            self.later(SWEEP, Event::Sweep);
        }
    }

    /// Gives up the connection that has waited for its client longest. False if all are being served.
    fn evict(&mut self) -> bool {
        let waiting = self.connections.iter().filter(|(_, c)| c.quiet());
        let Some(id) = waiting.min_by_key(|(_, c)| c.since).map(|(id, _)| *id) else { return false };
        self.connections.remove(&id).is_some()
    }

    fn later(&self, wait: Duration, event: Event) {
        let (events, sleep) = (self.events.clone(), self.executor.sleep(wait));
        self.executor.spawn(async move {
            sleep.await;
            events.borrow_mut().push(event);
        });
    }

    fn sweep(&mut self, scratch: &mut [u8]) {
        let now = Instant::now();
        let overdue: Vec<u64> = self.connections.iter().filter(|(_, c)| c.overdue(now)).map(|(id, _)| *id).collect();
        for id in overdue {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.close();
            }
            self.advance(id, scratch);
        }
        self.sweeping = !self.connections.is_empty();
        if self.sweeping {
            self.later(SWEEP, Event::Sweep);
        }
    }

    /// Reads, starts and sends what this connection is ready for.
    fn advance(&mut self, id: u64, scratch: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let act = connection.receive(scratch);
        if connection.flush() && act.is_none() {
            self.events.borrow_mut().push(Event::Again { connection: id });
        }
        let (answered, closed, wanted) =
            (std::mem::take(&mut connection.answered), connection.closed(), connection.wanted());
        let mut gone = closed;
        if !gone && wanted != connection.interest {
            connection.interest = wanted;
            gone = epoll::modify(&self.epoll, connection.stream(), EventData::new_u64(id), wanted).is_err();
        }
        let peer = answered.contains(&401).then(|| connection.stream().peer_addr().ok()).flatten();
        for status in answered {
            self.dispatch.answered(status);
        }
        if let Some(peer) = peer {
            self.warn(peer);
        }
        if let Some(act) = act {
            self.start(id, act);
        }
        if gone {
            self.connections.remove(&id);
            self.accept_on(true);
        }
    }

    /// Logs wrong credentials; a guesser cannot fill the log.
    fn warn(&self, peer: std::net::SocketAddr) {
        let now = Instant::now();
        if self.warned.get().is_none_or(|last| now - last >= Duration::from_secs(10)) {
            self.warned.set(Some(now));
            tracing::warn!("RPC over HTTP: wrong credentials from {peer} (said at most every 10 s)");
        }
    }

    fn start(&self, connection: u64, act: Act) {
        let (events, dispatch) = (self.events.clone(), self.dispatch.clone());
        self.executor.spawn(async move {
            let event = match act {
                Act::Rpc(envelope) => match respond(&*dispatch, envelope).await {
                    Ok(text) => Event::Answer { connection, status: 200, text },
                    Err(why) => Event::Answer { connection, status: 500, text: Some(why.into()) },
                },
                Act::Metrics => Event::Metrics { connection, pages: dispatch.metrics().await },
            };
            events.borrow_mut().push(event);
        });
    }
}

/// Runs what a body asks for, one request after the other.
async fn respond<D: Dispatch>(dispatch: &D, envelope: Envelope) -> Result<Option<String>, &'static str> {
    match envelope {
        Envelope::Single(item) => Ok(one(dispatch, item).await),
        Envelope::Batch(items) => {
            let (mut answers, mut size) = (Vec::new(), 0);
            for item in items {
                let text = one(dispatch, item).await;
                size += text.as_ref().map_or(0, String::len);
                if size > MAX_UNSENT {
                    return Err(
                        "the answers exceed 32 MiB: ask for less at a time. Requests up to here were carried out",
                    );
                }
                answers.extend(text);
            }
            Ok((!answers.is_empty()).then(|| format!("[{}]", answers.join(","))))
        }
    }
}

async fn one<D: Dispatch>(dispatch: &D, item: Result<Request, Rejected>) -> Option<String> {
    match item {
        Ok(request) => {
            let id = request.id.clone();
            answer(&id, &dispatch.run(request).await)
        }
        Err(Rejected { id, why }) => answer(&id, &Err(RpcError::new(INVALID_REQUEST, "Invalid request").because(why))),
    }
}
