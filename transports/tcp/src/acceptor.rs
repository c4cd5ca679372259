//! One listening address, on core 0: accepted connections are greeted there and then sent to the core of their queue.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::tcp_pdu::MAXH2CDATA_MIN;
use longshore_nvmf::{Address, ListenError, Target, TransportOptions};
use longshore_reactor::net::TcpListener;
use longshore_reactor::{Reactor, oneshot};

use crate::core::{Birth, TcpCore};
use crate::greeter::{Greeted, Greeter, Reception};
use crate::options::TcpOptions;

thread_local! {
    /// The acceptors of this thread, by transport instance and address.
    static ACCEPTORS: RefCell<HashMap<(u64, Address), Rc<Acceptor>>> = RefCell::default();
    /// Addresses that are tried again, each with the token of who does.
    static TRYING: RefCell<HashMap<(u64, Address), u64>> = RefCell::default();
    static TOKENS: Cell<u64> = const { Cell::new(0) };
}

/// A daemon that was killed leaves its port in use until the kernel has taken its ring apart, which it does at leisure: the next one
/// tries so often, and so long apart.
const TRIES: u32 = 150;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// What a listener is opened with.
#[derive(Clone)]
pub(crate) struct Opening {
    /// The transport instance.
    pub(crate) instance: u64,
    pub(crate) target: Arc<Target>,
    pub(crate) transport: Arc<TransportOptions>,
    pub(crate) options: Arc<TcpOptions>,
    /// As configured.
    pub(crate) address: Address,
    pub(crate) socket: SocketAddr,
}

pub(crate) struct Acceptor {
    o: Opening,
    listener: RefCell<Option<TcpListener>>,
    next: Cell<u64>,
    greeters: RefCell<HashMap<u64, Rc<Greeter>>>,
}

/// How opening an address ended.
type Opened = Result<(), ListenError>;

/// Starts to listen, on this reactor, and says so; if the address is in use, as soon as it is free, if that is soon. `close` ends
/// the tries, whenever it comes after this.
pub(crate) fn open(reactor: &Reactor, o: Opening, told: oneshot::Sender<Opened>) {
    let first = try_open(reactor, o.clone());
    if !matches!(&first, Err(e) if e.errno == libc::EADDRINUSE) {
        let _ = told.send(first);
        return;
    }
    let limit = TRY_AGAIN * TRIES;
    tracing::info!("{} is in use: it is tried again for {} s", o.socket, limit.as_secs());
    let token = TOKENS.get() + 1;
    TOKENS.set(token);
    TRYING.with_borrow_mut(|t| t.insert((o.instance, o.address.clone()), token));
    let r = reactor.clone();
    drop(reactor.spawn(async move {
        let _ = told.send(keep_trying(&r, o, token).await);
    }));
}

async fn keep_trying(reactor: &Reactor, o: Opening, token: u64) -> Opened {
    let key = (o.instance, o.address.clone());
    let mut tries = 0;
    loop {
        tries += 1;
        reactor.sleep(TRY_AGAIN).await;
        if TRYING.with_borrow(|t| t.get(&key) != Some(&token)) {
            return Err(ListenError { errno: libc::ECANCELED, why: format!("{}: nobody wants it any more", o.socket) });
        }
        match try_open(reactor, o.clone()) {
            Err(e) if e.errno == libc::EADDRINUSE && tries < TRIES => {}
            end => {
                TRYING.with_borrow_mut(|t| t.remove(&key));
                return end;
            }
        }
    }
}

fn try_open(reactor: &Reactor, o: Opening) -> Opened {
    let (at, backlog) = (o.socket, o.options.backlog);
    let key = (o.instance, o.address.clone());
    let acceptor =
        Rc::new(Acceptor { o, listener: RefCell::new(None), next: Cell::new(0), greeters: RefCell::default() });
    let weak = Rc::downgrade(&acceptor);
    let listener = TcpListener::bind(reactor, at, backlog, move |r, fd, peer| {
        if let Some(a) = weak.upgrade() {
            a.accepted(r, fd, peer);
        }
    });
    let listener =
        listener.map_err(|e| ListenError { errno: e.raw_os_error().unwrap_or(0), why: format!("{at}: {e}") })?;
    *acceptor.listener.borrow_mut() = Some(listener);
    ACCEPTORS.with_borrow_mut(|a| a.insert(key, acceptor));
    Ok(())
}

/// Stops to listen, or to try to, and ends what was not greeted yet.
pub(crate) fn close(instance: u64, address: &Address) {
    let key = (instance, address.clone());
    TRYING.with_borrow_mut(|t| t.remove(&key));
    let gone = ACCEPTORS.with_borrow_mut(|a| a.remove(&key));
    if let Some(a) = gone {
        let listener = a.listener.borrow_mut().take();
        drop(listener);
        let greeters: Vec<_> = a.greeters.borrow().values().cloned().collect();
        for g in greeters {
            g.close();
        }
    }
}

impl Acceptor {
    fn accepted(self: &Rc<Self>, reactor: &Reactor, fd: OwnedFd, peer: SocketAddr) {
        let t = &self.o.transport;
        if let Err(e) = self.o.options.apply(&fd, t.sock_priority, t.ack_timeout) {
            tracing::debug!("{peer}: {e}");
        }
        let id = self.next.get();
        self.next.set(id + 1);
        let maxh2cdata = t.max_io_size.max(MAXH2CDATA_MIN) & !3;
        match Greeter::start(reactor, id, fd, peer, &self.o.options, maxh2cdata, self.clone()) {
            Ok(g) => {
                self.greeters.borrow_mut().insert(id, g);
            }
            // The peer is gone already.
            Err(e) => tracing::debug!("{peer}: {e}"),
        }
    }
}

impl Reception for Acceptor {
    fn greeted(&self, _: &Reactor, conn: Greeted) {
        let place = self.o.target.place(&conn.connect, &conn.data);
        let birth = Birth {
            instance: self.o.instance,
            target: self.o.target.clone(),
            transport: self.o.transport.clone(),
            options: self.o.options.clone(),
            listener: self.o.address.clone(),
        };
        let Some(core) = self.o.target.cores().get(place.core()) else { return };
        core.send(move |r| TcpCore::adopt(r, birth, place, conn));
    }

    fn gone(&self, id: u64) {
        let greeter = self.greeters.borrow_mut().remove(&id);
        drop(greeter);
    }
}
