//! What one core holds of the target: its queue pairs, the controllers it owns, and its copy of the configuration.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_bdev::{BdevError, CoreState};
use longshore_reactor::{Poller, Reactor, oneshot};

use crate::access::{Access, Identity, LiveNamespace};
use crate::address::Address;
use crate::control::{ControllerInfo, GroupStats, QpairInfo};
use crate::controller::Controller;
use crate::qpair::{Life, Qpair};
use crate::share::Shares;
use crate::tally::Traffic;
use crate::target::Target;
use crate::transport::Disconnect;
use crate::view::{Namespace, TargetView};

/// What a controller is chosen by when hosts are disconnected.
pub(crate) struct ControllerKey {
    pub(crate) subsystem: u64,
    pub(crate) hostnqn: String,
    pub(crate) listener: Address,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) admin: Cell<u32>,
    pub(crate) io: Cell<u32>,
    pub(crate) completed: Cell<u64>,
    pub(crate) pending_io: Cell<u64>,
    pub(crate) refused: Cell<u64>,
}

/// One core's part of the target.
pub struct PollGroup {
    target: Arc<Target>,
    core: usize,
    reactor: Reactor,
    pub(crate) bdev: Rc<CoreState>,
    view: RefCell<Arc<TargetView>>,
    /// The view that hosts were told of last.
    told: RefCell<Arc<TargetView>>,
    pub(crate) qpairs: RefCell<HashMap<u64, Rc<Qpair>>>,
    pub(crate) controllers: RefCell<HashMap<u64, Rc<Controller>>>,
    /// By controller and listener: queue pairs of one controller share the table.
    access: RefCell<Vec<Weak<Access>>>,
    namespaces: RefCell<HashMap<u64, Weak<LiveNamespace>>>,
    pub(crate) shares: Shares,
    poller: OnceCell<Poller>,
    pub(crate) counters: Counters,
    /// Of queue pairs that are gone.
    gone: Cell<Traffic>,
    stopping: Cell<bool>,
}

/// How often what does not end is aborted again.
pub(crate) const ABORT_AGAIN: Duration = Duration::from_millis(50);

thread_local! {
    static GROUPS: RefCell<Vec<Rc<PollGroup>>> = const { RefCell::new(Vec::new()) };
}

impl PollGroup {
    pub(crate) fn install(reactor: &Reactor, target: Arc<Target>, core: usize, view: Arc<TargetView>) {
        let group = Rc::new(PollGroup {
            target,
            core,
            reactor: reactor.clone(),
            bdev: CoreState::current(),
            shares: Shares::new(reactor, view.config.host_share),
            told: RefCell::new(view.clone()),
            view: RefCell::new(view),
            qpairs: RefCell::default(),
            controllers: RefCell::default(),
            access: RefCell::default(),
            namespaces: RefCell::default(),
            poller: OnceCell::new(),
            counters: Counters::default(),
            gone: Cell::default(),
            stopping: Cell::new(false),
        });
        let weak = Rc::downgrade(&group);
        let poller = reactor.poller(format!("nvmf_{core}"), move |_| {
            weak.upgrade().map_or(0, |g| g.serve_buffers() + g.serve_requests())
        });
        let _ = group.poller.set(poller);
        GROUPS.with(|c| c.borrow_mut().push(group));
    }

    /// Disconnects everything; ends when nothing is connected any more.
    pub(crate) async fn quiesce(target: &Arc<Target>) {
        let Some(g) = PollGroup::of(target) else { return };
        g.stopping.set(true);
        let all: Vec<_> = g.qpairs.borrow().values().cloned().collect();
        for q in all {
            q.disconnect(Disconnect::Shutdown);
        }
        let reactor = g.reactor.clone();
        g.wait_until(&reactor, Some(Duration::from_secs(30)), |g| g.qpairs.borrow().is_empty()).await;
    }

    /// Gives this core's part up.
    pub(crate) fn uninstall(target: &Arc<Target>) {
        let Some(g) = PollGroup::of(target) else { return };
        g.controllers.borrow_mut().clear();
        // Whoever still holds the group must not hold devices open by it.
        let mut empty = (*g.view()).clone();
        empty.subsystems.clear();
        empty.generation += 1;
        let empty = Arc::new(empty);
        g.apply(empty.clone());
        g.told.replace(empty);
        GROUPS.with(|c| c.borrow_mut().retain(|x| !Rc::ptr_eq(x, &g)));
    }

    /// The calling reactor's group of a target.
    pub fn of(target: &Arc<Target>) -> Option<Rc<PollGroup>> {
        GROUPS.with(|c| c.borrow().iter().find(|g| Arc::ptr_eq(&g.target, target)).cloned())
    }

    /// The target.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Index of the core.
    pub fn core(&self) -> usize {
        self.core
    }

    /// The core's reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// The configuration that this core works from.
    pub fn view(&self) -> Arc<TargetView> {
        self.view.borrow().clone()
    }

    /// Works from a newer view from now on.
    pub(crate) fn apply(&self, view: Arc<TargetView>) {
        let old = {
            let mut cur = self.view.borrow_mut();
            if view.generation <= cur.generation {
                return; // a later change overtook this one
            }
            std::mem::replace(&mut *cur, view.clone())
        };
        self.shares.set_percent(&self.reactor, view.config.host_share);
        let same = |nqn: &str| match (old.subsystem(nqn), view.subsystem(nqn)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        self.rebuild_access(|a| !same(&a.who.nqn));
    }

    /// Makes the tables that `f` names anew.
    pub(crate) fn rebuild_access(&self, f: impl Fn(&Access) -> bool) {
        let all: Vec<Rc<Access>> = {
            let mut a = self.access.borrow_mut();
            a.retain(|w| w.strong_count() > 0);
            a.iter().filter_map(Weak::upgrade).collect()
        };
        let view = self.view();
        for a in all.into_iter().filter(|a| f(a)) {
            a.rebuild(self, view.subsystem(&a.who.nqn).filter(|s| s.id == a.who.subsystem).map(|s| &**s));
        }
    }

    /// Every core works from `view`: tells the hosts of this core's controllers what changed for them.
    pub(crate) fn announce(&self, view: &Arc<TargetView>) {
        let old = {
            let mut told = self.told.borrow_mut();
            if view.generation <= told.generation {
                return;
            }
            std::mem::replace(&mut *told, view.clone())
        };
        let owned: Vec<_> = self.controllers.borrow().values().cloned().collect();
        for c in owned {
            c.view_changed(&old, view);
        }
    }

    /// The table of a controller on this core.
    pub(crate) fn access(&self, who: &Identity, listener: &Address) -> Rc<Access> {
        let known = self
            .access
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .find(|a| a.who.controller == who.controller && a.listener == *listener);
        if let Some(a) = known {
            return a;
        }
        let a = Rc::new(Access::new(who.clone(), listener.clone()));
        let view = self.view();
        a.rebuild(self, view.subsystem(&who.nqn).filter(|s| s.id == who.subsystem).map(|s| &**s));
        let mut list = self.access.borrow_mut();
        list.retain(|w| w.strong_count() > 0);
        list.push(Rc::downgrade(&a));
        a
    }

    /// A namespace with its device open on this core.
    pub(crate) fn live_namespace(&self, ns: &Arc<Namespace>) -> Result<Rc<LiveNamespace>, BdevError> {
        if let Some(l) = self.namespaces.borrow().get(&ns.key).and_then(Weak::upgrade) {
            return Ok(l);
        }
        let channel = ns.desc.channel()?;
        let l =
            Rc::new(LiveNamespace { lends: channel.lends(), channel, ns: ns.clone(), watchers: RefCell::default() });
        let mut map = self.namespaces.borrow_mut();
        map.retain(|_, w| w.strong_count() > 0);
        map.insert(ns.key, Rc::downgrade(&l));
        Ok(l)
    }

    /// A command is through with its namespace. The last user may be inside the device's own completion, which must not
    /// free the device under its feet.
    #[inline]
    pub(crate) fn put_namespace(&self, ns: Rc<LiveNamespace>) {
        if Rc::strong_count(&ns) == 1 {
            self.reactor.defer(move |_| drop(ns));
        }
    }

    /// Waits until nothing on this core uses a namespace that no view holds; aborts what does after `limit`, and gives up
    /// after as long again (the device stays open until its requests end).
    pub(crate) async fn drain_namespace(self: &Rc<Self>, reactor: &Reactor, key: u64, limit: Duration) {
        let (tx, rx) = oneshot::channel();
        {
            let live = self.namespaces.borrow().get(&key).and_then(Weak::upgrade);
            let Some(live) = live else { return };
            live.watchers.borrow_mut().push(tx);
            self.put_namespace(live);
        }
        let (weak, r) = (Rc::downgrade(self), reactor.clone());
        let abort = reactor.spawn(async move {
            r.sleep(limit).await;
            // More than once: a request on its way between two layers is found by none of them.
            while let Some(g) = weak.upgrade() {
                g.abort_on(key);
                drop(g);
                r.sleep(ABORT_AGAIN).await;
            }
        });
        let (quit_tx, quit_rx) = oneshot::channel::<()>();
        let quit = reactor.timer(limit * 2 + Duration::from_secs(1), move |_| drop(quit_tx));
        first_of(rx, quit_rx).await;
        abort.abort();
        drop(quit);
    }

    fn abort_on(&self, key: u64) {
        let all: Vec<_> = self.qpairs.borrow().values().cloned().collect();
        for q in all {
            for slot in 0..q.slots() {
                let uses = q.slots[usize::from(slot)].borrow().ns.as_ref().is_some_and(|n| n.ns.key == key);
                if uses {
                    q.abort_in_device(slot);
                }
            }
        }
    }

    /// Disconnects controllers' queue pairs on this core; true when all are gone in time.
    pub(crate) async fn disconnect_where(
        self: &Rc<Self>,
        reactor: &Reactor,
        f: impl Fn(&ControllerKey) -> bool,
        timeout: Option<Duration>,
    ) -> bool {
        let mut gone = Vec::new();
        let all: Vec<_> = self.qpairs.borrow().values().cloned().collect();
        for q in all {
            let Some(a) = q.access.get() else { continue };
            let key = ControllerKey {
                subsystem: a.who.subsystem,
                hostnqn: a.who.hostnqn.clone(),
                listener: a.listener.clone(),
            };
            if f(&key) {
                gone.push(q.serial);
                q.disconnect(Disconnect::Revoked);
            }
        }
        let limit = timeout.unwrap_or(Duration::from_secs(30));
        self.wait_until(reactor, Some(limit), |g| gone.iter().all(|s| !g.qpairs.borrow().contains_key(s))).await
    }

    async fn wait_until(&self, reactor: &Reactor, limit: Option<Duration>, done: impl Fn(&Self) -> bool) -> bool {
        let step = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while !done(self) {
            if limit.is_some_and(|l| waited >= l) {
                return false;
            }
            reactor.sleep(step).await;
            waited += step;
        }
        true
    }

    /// True if the target shuts down: a connection that was still on its way here is not taken over.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// True if the core serves no queue pair and owns no controller.
    pub fn is_idle(&self) -> bool {
        self.qpairs.borrow().is_empty() && self.controllers.borrow().is_empty()
    }

    pub(crate) fn add_qpair(&self, qp: &Rc<Qpair>) {
        self.qpairs.borrow_mut().insert(qp.serial, qp.clone());
        self.shares.expect_connects(&self.reactor, true);
    }

    pub(crate) fn find_qpair(&self, serial: u64) -> Option<Rc<Qpair>> {
        self.qpairs.borrow().get(&serial).cloned()
    }

    pub(crate) fn find_controller(&self, id: u64) -> Option<Rc<Controller>> {
        self.controllers.borrow().get(&id).cloned()
    }

    /// A queue pair has ended.
    pub(crate) fn qpair_gone(&self, qp: &Qpair) {
        let me = self.qpairs.borrow_mut().remove(&qp.serial);
        if self.qpairs.borrow().is_empty() {
            self.shares.expect_connects(&self.reactor, false);
        }
        let mut gone = self.gone.get();
        gone += qp.traffic();
        self.gone.set(gone);
        if let Some(c) = qp.admin.get() {
            c.destroy();
        } else if let Some(a) = qp.access.get() {
            let (id, qid, serial) = (a.who.controller, qp.qid.get(), qp.serial);
            self.target.send(a.who.core, move |g| {
                if let Some(c) = g.find_controller(id) {
                    c.io_qpair_gone(qid, serial);
                }
            });
        }
        if let Some(me) = me {
            // The caller is a method of it.
            self.reactor.defer(move |_| drop(me));
        }
    }

    pub(crate) fn list_controllers(&self, subsystem: u64) -> Vec<ControllerInfo> {
        let all = self.controllers.borrow();
        all.values().filter(|c| c.who.subsystem == subsystem && !c.is_dead()).map(|c| c.info()).collect()
    }

    pub(crate) fn list_qpairs(&self, subsystem: u64) -> Vec<QpairInfo> {
        let all = self.qpairs.borrow();
        all.values().filter_map(|q| self.describe(q)).filter(|(of, _)| *of == subsystem).map(|(_, q)| q).collect()
    }

    /// The numbers of the queue pairs here.
    pub(crate) fn qpair_keys(&self) -> Vec<u64> {
        self.qpairs.borrow().keys().copied().collect()
    }

    /// Those of these queue pairs that are still here, each after the subsystem it belongs to.
    pub(crate) fn describe_qpairs(&self, keys: &[u64]) -> Vec<(u64, QpairInfo)> {
        let all = self.qpairs.borrow();
        keys.iter().filter_map(|key| self.describe(all.get(key)?)).collect()
    }

    /// A queue pair as it is listed, after its subsystem; `None` before its Connect.
    fn describe(&self, q: &Qpair) -> Option<(u64, QpairInfo)> {
        let a = q.access.get()?;
        let info = QpairInfo {
            cntlid: a.who.cntlid,
            qid: q.qid.get(),
            enabled: q.life.get() == Life::Live,
            core: self.core,
            hostnqn: a.who.hostnqn.clone(),
            listen_address: a.listener.clone(),
            peer_address: q.peer()?,
            traffic: q.traffic(),
        };
        Some((a.who.subsystem, info))
    }

    pub(crate) fn stats(&self) -> GroupStats {
        let c = &self.counters;
        let mut s = GroupStats {
            core: self.core,
            admin_qpairs: c.admin.get(),
            io_qpairs: c.io.get(),
            pending_bdev_io: c.pending_io.get(),
            completed_nvme_io: c.completed.get(),
            refused_connects: c.refused.get(),
            ..GroupStats::default()
        };
        s.traffic = self.gone.get();
        s.hosts = self.shares.hosts().iter().map(|h| self.shares.info(h)).collect();
        for q in self.qpairs.borrow().values() {
            s.traffic += q.traffic();
            match (q.access.get().is_some(), q.qid.get()) {
                (false, _) => s.current_unassociated_qpairs += 1,
                (true, 0) => s.current_admin_qpairs += 1,
                (true, _) => s.current_io_qpairs += 1,
            }
        }
        s
    }
}

/// Waits for either.
async fn first_of(mut a: oneshot::Receiver<()>, mut b: oneshot::Receiver<()>) {
    use std::future::Future;
    use std::pin::Pin;
    std::future::poll_fn(|cx| {
        if Pin::new(&mut a).poll(cx).is_ready() || Pin::new(&mut b).poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
}
