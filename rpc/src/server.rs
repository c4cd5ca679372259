//! The RPC thread: one epoll loop with the listeners, the connections and the executor that runs the methods.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::conn::{Connection, Slot, Start};
use crate::error::Reply;
use crate::exec::{Executor, Poster};
use crate::http::{self, Http, Pages};
use crate::jsonrpc::Request;
use crate::socket::Listener;

/// Connections served at a time; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection that sent rubbish may take to read why it is closed.
const LINGER: Duration = Duration::from_secs(1);
/// How long requests in progress may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const HTTP: u64 = 2;
const FIRST_CONNECTION: u64 = 3;
/// Rounds of tasks and their results before the sockets are looked at again.
const ROUNDS: usize = 64;

/// What answers requests.
pub trait Dispatch: 'static {
    /// Runs one request.
    fn run(&self, request: Request) -> Pin<Box<dyn Future<Output = Reply>>>;
    /// Whether the method changes something. Later requests of the same connection wait for such a one: a client that sends
    /// "create" and "use" in one breath means them in that order.
    fn mutates(&self, method: &str) -> bool;
    /// The metrics, for `GET /metrics`; `None`: not now.
    fn metrics(&self) -> Pin<Box<dyn Future<Output = Option<Pages>>>> {
        Box::pin(async { None })
    }
    /// A request over HTTP was answered with this status.
    fn answered(&self, status: u16) {
        let _ = status;
    }
}

/// Where requests come in.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// Path of the unix socket.
    pub socket: Option<PathBuf>,
    /// HTTP listeners; 16 at most.
    pub http: Vec<http::Listener>,
}

/// A running server. It ends with `stop` or with the process.
pub struct Server {
    thread: Option<JoinHandle<()>>,
    poster: Poster,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Takes the socket path and starts the thread `rpc`. `make` runs on that thread and yields what answers.
    pub fn start<D: Dispatch>(
        path: &Path,
        make: impl FnOnce(&Executor) -> Rc<D> + Send + 'static,
    ) -> io::Result<Server> {
        Server::start_on(Endpoints { socket: Some(path.to_owned()), http: Vec::new() }, make)
    }

    /// As [`start`](Server::start), with any endpoints.
    pub fn start_on<D: Dispatch>(
        endpoints: Endpoints,
        make: impl FnOnce(&Executor) -> Rc<D> + Send + 'static,
    ) -> io::Result<Server> {
        let listener = endpoints.socket.as_deref().map(Listener::bind).transpose()?;
        let http = endpoints.http;
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = std::sync::mpsc::channel();
        let stop_here = stop.clone();
        let thread = std::thread::Builder::new().name("rpc".into()).spawn(move || {
            let made = Executor::new().and_then(|executor| Loop::new(listener, http, executor, make));
            match made {
                Ok(mut server) => {
                    let _ = tell.send(Ok(server.executor.poster()));
                    server.run(&stop_here);
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })?;
        let poster = told.recv().map_err(|_| io::Error::other("the RPC thread ended at its start"))??;
        Ok(Server { thread: Some(thread), poster, stop })
    }

    /// Runs closures on the RPC thread.
    pub fn poster(&self) -> Poster {
        self.poster.clone()
    }

    /// Answers what is in progress (for a second at most), closes everything and removes the socket.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.poster.post(|| {});
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

enum Event {
    Done { connection: u64, slot: Slot, mutated: bool, reply: Reply },
    LingerOver { connection: u64 },
    AcceptAgain,
}

struct Loop<D> {
    listener: Option<Listener>,
    http: Http<D>,
    accepting: bool,
    /// Nobody is let in any more.
    stopping: bool,
    epoll: OwnedFd,
    executor: Executor,
    dispatch: Rc<D>,
    connections: HashMap<u64, Connection>,
    next: u64,
    events: Rc<RefCell<Vec<Event>>>,
    scratch: Vec<u8>,
}

impl<D: Dispatch> Loop<D> {
    fn new(
        listener: Option<Listener>,
        http: Vec<http::Listener>,
        executor: Executor,
        make: impl FnOnce(&Executor) -> Rc<D>,
    ) -> io::Result<Loop<D>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            epoll::add(&epoll, &listener.socket, EventData::new_u64(LISTENER), EventFlags::IN)?;
        }
        epoll::add(&epoll, executor.wake_fd(), EventData::new_u64(WAKE), EventFlags::IN)?;
        let dispatch = make(&executor);
        let http = Http::new(http, executor.clone(), dispatch.clone())?;
        epoll::add(&epoll, http.epoll(), EventData::new_u64(HTTP), EventFlags::IN)?;
        Ok(Loop {
            listener,
            http,
            accepting: true,
            stopping: false,
            epoll,
            executor,
            dispatch,
            connections: HashMap::new(),
            next: FIRST_CONNECTION,
            events: Rc::default(),
            scratch: vec![0; 64 * 1024],
        })
    }

    fn run(&mut self, stop: &AtomicBool) {
        let mut ready = Vec::with_capacity(MAX_CONNECTIONS + 3);
        let mut deadline = None;
        let mut settled = true;
        loop {
            if deadline.is_none() && stop.load(Ordering::Acquire) {
                deadline = Some(Instant::now() + GRACE);
                self.accept_on(false);
                self.stopping = true;
                self.http.stop_accepting();
            }
            if let Some(deadline) = deadline
                && (Instant::now() >= deadline || self.connections.values().all(Connection::quiet) && self.http.quiet())
            {
                return;
            }
            let mut timeout = self.executor.timeout();
            if deadline.is_some() {
                timeout = Some(timeout.map_or(GRACE / 10, |t| t.min(GRACE / 10)));
            }
            if !settled {
                timeout = Some(Duration::ZERO);
            }
            let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("the RPC thread cannot wait for its sockets: {error}");
                    return;
                }
            }
            for event in ready.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => {}
                    HTTP => self.http.ready(&mut self.scratch),
                    id => self.connection_ready(id, event.flags),
                }
            }
            settled = self.settle();
        }
    }

    /// Runs tasks and hands their results on until nothing moves, or for long enough: then false.
    fn settle(&mut self) -> bool {
        for _ in 0..ROUNDS {
            self.executor.run_ready();
            let events = self.events.take();
            if !self.http.settle(&mut self.scratch) && events.is_empty() {
                return true;
            }
            for event in events {
                match event {
                    Event::Done { connection, slot, mutated, reply } => self.done(connection, &slot, mutated, &reply),
                    Event::LingerOver { connection } => self.drop_connection(connection),
                    Event::AcceptAgain => self.accept_on(true),
                }
            }
        }
        false
    }

    fn accept_on(&mut self, on: bool) {
        if let Some(listener) = &self.listener
            && self.accepting != on
            && !self.stopping
        {
            let flags = if on { EventFlags::IN } else { EventFlags::empty() };
            self.accepting =
                epoll::modify(&self.epoll, &listener.socket, EventData::new_u64(LISTENER), flags).is_ok() == on;
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            let Some(listener) = &self.listener else { return };
            match listener.socket.accept() {
                Ok((stream, _)) => {
                    let id = self.next;
                    self.next += 1;
                    let added = stream
                        .set_nonblocking(true)
                        .and_then(|()| Ok(epoll::add(&self.epoll, &stream, EventData::new_u64(id), EventFlags::IN)?));
                    if added.is_ok() {
                        self.connections.insert(id, Connection::new(stream));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors, most likely: try again later instead of spinning.
                    tracing::warn!("cannot accept an RPC connection: {error}");
                    self.accept_on(false);
                    self.later(Duration::from_millis(100), Event::AcceptAgain);
                    return;
                }
            }
        }
        self.accept_on(false);
    }

    fn later(&self, wait: Duration, event: Event) {
        let (events, sleep) = (self.events.clone(), self.executor.sleep(wait));
        self.executor.spawn(async move {
            sleep.await;
            events.borrow_mut().push(event);
        });
    }

    fn connection_ready(&mut self, id: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut starts = Vec::new();
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            let dispatch = &self.dispatch;
            connection.receive(&mut self.scratch, &|method| dispatch.mutates(method), &mut starts);
            if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                // Nobody is left to read an answer. What was asked for still runs.
                connection.close();
            }
        }
        self.start(id, starts);
        self.tidy(id);
    }

    fn start(&self, connection: u64, starts: Vec<Start>) {
        for Start { slot, request, mutates } in starts {
            let (events, run) = (self.events.clone(), self.dispatch.run(request));
            self.executor.spawn(async move {
                let reply = run.await;
                events.borrow_mut().push(Event::Done { connection, slot, mutated: mutates, reply });
            });
        }
    }

    fn done(&mut self, id: u64, slot: &Slot, mutated: bool, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut starts = Vec::new();
        connection.finish(slot, mutated, reply, &mut starts);
        // Requests that were left in the buffer while the connection was busy.
        let dispatch = &self.dispatch;
        connection.receive(&mut self.scratch, &|method| dispatch.mutates(method), &mut starts);
        self.start(id, starts);
        self.tidy(id);
    }

    /// Sends what there is to send and tells epoll what to wait for, or drops the connection.
    fn tidy(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let lingered = connection.lingering();
        connection.flush();
        if connection.closed() {
            return self.drop_connection(id);
        }
        let linger = connection.lingering() && !lingered;
        let wanted = connection.wanted();
        if wanted != connection.interest {
            connection.interest = wanted;
            if epoll::modify(&self.epoll, connection.stream(), EventData::new_u64(id), wanted).is_err() {
                return self.drop_connection(id);
            }
        }
        if linger {
            self.later(LINGER, Event::LingerOver { connection: id });
        }
    }

    fn drop_connection(&mut self, id: u64) {
        if self.connections.remove(&id).is_some() {
            self.accept_on(true);
        }
    }
}
