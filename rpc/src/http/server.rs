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
use super::{Listener, Pages, Serve};
use crate::conn::MAX_UNSENT;
use crate::error::{INVALID_REQUEST, RpcError};
use crate::exec::Executor;
use crate::jsonrpc::{Envelope, Rejected, Request, answer};
use crate::server::Dispatch;

/// Connections at a time of a listener for RPC, and of one for metrics, which asks nobody who they are. One more takes the place of
/// the one whose client has been waited for longest.
const RPC_PLACES: usize = 64;
const METRICS_PLACES: usize = 16;
/// Sockets looked at per turn.
const TURN: usize = 64;
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
    AcceptAgain {
        listener: usize,
    },
}

/// A listener and its connections' places.
struct Door {
    listener: Listener,
    places: usize,
    accepting: bool,
    /// It cannot accept, whoever leaves, until some time has passed.
    resting: bool,
}

pub(crate) struct Http<D> {
    doors: Vec<Door>,
    /// Nobody is let in any more.
    stopping: bool,
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
        let door = |listener: Listener| {
            let places = if matches!(*listener.serve, Serve::Metrics) { METRICS_PLACES } else { RPC_PLACES };
            Door { listener, places, accepting: true, resting: false }
        };
        Ok(Http {
            doors: listeners.into_iter().map(door).collect(),
            stopping: false,
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
        let mut ready = Vec::with_capacity(TURN);
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
                Event::AcceptAgain { listener } => {
                    self.doors[listener].resting = false;
                    self.accept_on(listener, true);
                }
            }
        }
        any
    }

    /// Lets nobody in from now on.
    pub(crate) fn stop_accepting(&mut self) {
        (0..self.doors.len()).for_each(|listener| self.accept_on(listener, false));
        self.stopping = true;
    }

    fn accept_on(&mut self, listener: usize, on: bool) {
        let Some(door) = self.doors.get_mut(listener) else { return };
        if self.stopping || door.resting || door.accepting == on {
            return;
        }
        door.accepting = on;
        let flags = if on { EventFlags::IN } else { EventFlags::empty() };
        let _ = epoll::modify(&self.epoll, &door.listener.socket, EventData::new_u64(listener as u64), flags);
    }

    fn accept(&mut self, listener: usize) {
        for _ in 0..ACCEPTS {
            let Some(door) = self.doors.get(listener).filter(|door| door.accepting) else { return };
            let taken = self.connections.values().filter(|c| c.listener == listener).count();
            let full = taken >= door.places;
            let given_up = if full { self.evictable(listener) } else { None };
            if full && given_up.is_none() {
                return self.accept_on(listener, false);
            }
            match door.listener.socket.accept() {
                Ok((stream, _)) => {
                    let id = self.next;
                    self.next += 1;
                    let added = stream
                        .set_nonblocking(true)
                        .and_then(|()| Ok(epoll::add(&self.epoll, &stream, EventData::new_u64(id), EventFlags::IN)?));
                    if added.is_ok() {
                        let connection = Connection::new(stream, listener, door.listener.serve.clone(), Instant::now());
                        self.connections.insert(id, connection);
                        given_up.map(|id| self.connections.remove(&id));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors, most likely: try again later instead of spinning.
                    tracing::warn!("cannot accept an HTTP connection: {error}");
                    self.accept_on(listener, false);
                    self.doors[listener].resting = true;
                    self.later(Duration::from_millis(100), Event::AcceptAgain { listener });
                    break;
                }
            }
        }
        if !self.sweeping && !self.connections.is_empty() {
            self.sweeping = true;
            self.later(SWEEP, Event::Sweep);
        }
    }

    /// The connection of this listener that has waited for its client longest. None: all are being served.
    fn evictable(&self, listener: usize) -> Option<u64> {
        let now = Instant::now();
        let waiting = self.connections.iter().filter(|(_, c)| c.listener == listener && c.evictable(now));
        waiting.min_by_key(|(_, c)| c.since).map(|(id, _)| *id)
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
        for listener in 0..self.doors.len() {
            // An answer that was taken a second ago may not be any more.
            if !self.doors[listener].accepting && self.evictable(listener).is_some() {
                self.accept_on(listener, true);
            }
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
        let (listener, quiet) = (connection.listener, connection.quiet());
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
        }
        if gone || quiet {
            self.accept_on(listener, true);
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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::TcpStream;
    use std::pin::Pin;

    use super::*;
    use crate::error::Reply;

    struct Nothing;

    impl Dispatch for Nothing {
        fn run(&self, _: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
            Box::pin(async { Ok(serde_json::Value::Null) })
        }

        fn mutates(&self, _: &str) -> bool {
            false
        }
    }

    #[test]
    fn a_connection_that_ends_while_the_server_stops_lets_nobody_in() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Serve::Metrics).unwrap();
        let address = listener.address().unwrap();
        let mut http = Http::new(vec![listener], Executor::new().unwrap(), Rc::new(Nothing)).unwrap();
        let mut scratch = [0; 1024];
        let first = TcpStream::connect(address).unwrap();
        while http.connections.is_empty() {
            http.ready(&mut scratch);
        }
        http.stop_accepting();
        drop(first);
        let _second = TcpStream::connect(address).unwrap();
        while !http.connections.is_empty() {
            http.ready(&mut scratch);
        }
        // Were the listener looked at, it would be ready here and now.
        http.ready(&mut scratch);
        assert!(http.connections.is_empty());
    }
}
