//! The transport on one core: its connections, which of them go on receiving, and the watch over stalled ones.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvmf::{Address, Placement, PollGroup, Target, TransportOptions};
use longshore_reactor::{Poller, Reactor, Timer};

use crate::conn::Conn;
use crate::greeter::Greeted;
use crate::options::TcpOptions;

thread_local! {
    /// This thread's cores, by transport instance. One lives as long as it has connections.
    static CORES: RefCell<Vec<(u64, Weak<TcpCore>)>> = RefCell::default();
}

/// What a connection comes to its core with, besides what the wire said.
pub(crate) struct Birth {
    pub(crate) instance: u64,
    pub(crate) target: Arc<Target>,
    pub(crate) transport: Arc<TransportOptions>,
    pub(crate) options: Arc<TcpOptions>,
    pub(crate) listener: Address,
}

pub(crate) struct TcpCore {
    reactor: Reactor,
    conns: RefCell<Vec<Option<Rc<Conn>>>>,
    free: RefCell<Vec<usize>>,
    /// Connections that may receive again.
    ready: RefCell<Vec<Rc<Conn>>>,
    spare: RefCell<Vec<Rc<Conn>>>,
    waiting: Cell<bool>,
    poller: OnceCell<Poller>,
    sweep: OnceCell<Timer>,
}

/// How often stalled transfers are looked for.
const SWEEP: Duration = Duration::from_secs(1);

impl TcpCore {
    fn of(reactor: &Reactor, instance: u64) -> Rc<TcpCore> {
        let found = CORES.with_borrow_mut(|all| {
            all.retain(|(_, w)| w.strong_count() > 0);
            all.iter().find(|(i, _)| *i == instance).and_then(|(_, w)| w.upgrade())
        });
        if let Some(c) = found {
            return c;
        }
        let core = Rc::new(TcpCore {
            reactor: reactor.clone(),
            conns: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            spare: RefCell::default(),
            waiting: Cell::new(false),
            poller: OnceCell::new(),
            sweep: OnceCell::new(),
        });
        let weak = Rc::downgrade(&core);
        let poller = reactor.poller("nvmf_tcp", move |_| weak.upgrade().map_or(0, |c| c.poll()));
        let _ = core.poller.set(poller);
        let weak = Rc::downgrade(&core);
        let sweep = reactor.every(SWEEP, move |r| {
            if let Some(c) = weak.upgrade() {
                c.sweep(r.now());
            }
        });
        let _ = core.sweep.set(sweep);
        CORES.with_borrow_mut(|all| all.push((instance, Rc::downgrade(&core))));
        core
    }

    /// Takes over a greeted connection.
    pub(crate) fn adopt(reactor: &Reactor, birth: Birth, place: Placement, conn: Greeted) {
        // The target has shut down, or does: the descriptor closes.
        let Some(group) = PollGroup::of(&birth.target).filter(|g| !g.is_stopping()) else { return };
        let core = TcpCore::of(reactor, birth.instance);
        let peer = conn.peer;
        if let Err(e) = Conn::start(core, &group, birth, place, conn) {
            tracing::debug!("{peer}: {e}");
        }
    }

    pub(crate) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    pub(crate) fn add(&self, conn: &Rc<Conn>) {
        let mut conns = self.conns.borrow_mut();
        let key = self.free.borrow_mut().pop().unwrap_or_else(|| {
            conns.push(None);
            conns.len() - 1
        });
        conns[key] = Some(conn.clone());
        conn.key.set(key);
    }

    /// Forgets a connection with which nothing is in flight.
    pub(crate) fn remove(&self, key: usize) {
        let gone = self.conns.borrow_mut().get_mut(key).and_then(Option::take);
        if gone.is_some() {
            self.free.borrow_mut().push(key);
        }
        drop(gone);
    }

    /// `conn` receives again from the next poll on.
    pub(crate) fn schedule(&self, conn: Rc<Conn>) {
        self.ready.borrow_mut().push(conn);
        if !self.waiting.replace(true)
            && let Some(p) = self.poller.get()
        {
            p.set_pending(true);
        }
    }

    fn poll(&self) -> usize {
        if !self.waiting.get() {
            return 0;
        }
        self.waiting.set(false);
        if let Some(p) = self.poller.get() {
            p.set_pending(false);
        }
        let mut list = std::mem::take(&mut *self.spare.borrow_mut());
        std::mem::swap(&mut list, &mut *self.ready.borrow_mut());
        let n = list.len();
        for c in list.drain(..) {
            c.go_on();
        }
        *self.spare.borrow_mut() = list;
        n
    }

    fn sweep(&self, now: u64) {
        let overdue: Vec<_> =
            self.conns.borrow().iter().flatten().filter_map(|c| Some((c.clone(), c.overdue(now)?))).collect();
        for (c, why) in overdue {
            tracing::info!("{}: {why}, closing", c.peer);
            c.close();
        }
    }
}
