//! A controller, on the core of its admin queue: registers, keep-alive, the I/O queues it has, and its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::register::{Cap, Cc, Csts, Version, shn, shst};
use longshore_reactor::Timer;

use crate::access::{Access, Identity};
use crate::address::Address;
use crate::admin::aer::Events;
use crate::admin::features::Features;
use crate::control::ControllerInfo;
use crate::options::TransportOptions;
use crate::poll_group::PollGroup;
use crate::qpair::Qpair;
use crate::transport::Disconnect;
use crate::view::{SubsystemView, TargetView};

/// Specification version reported: 1.4.
pub(crate) const VERSION: Version = Version::new(1, 4, 0);
/// How long a controller without a usable association is kept.
const ASSOCIATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Keep-alive of a discovery controller whose host asked for none.
const DISCOVERY_KATO: u32 = 120_000;

/// An I/O queue of the controller, wherever its core is.
#[derive(Clone, Copy)]
pub(crate) struct IoQueue {
    pub(crate) core: usize,
    pub(crate) serial: u64,
}

/// A controller. Lives on the core of its admin queue; other cores send messages that name it by its number.
pub(crate) struct Controller {
    pub(crate) who: Identity,
    pub(crate) hostid: [u8; 16],
    pub(crate) discovery: bool,
    pub(crate) group: Weak<PollGroup>,
    pub(crate) admin: Weak<Qpair>,
    pub(crate) access: Rc<Access>,
    /// The address the host reached the target by.
    pub(crate) came_by: Address,
    pub(crate) options: Arc<TransportOptions>,
    cc: Cell<Cc>,
    csts: Cell<Csts>,
    /// The host disabled the controller or shut it down, and I/O queues are still ending.
    settling: Cell<bool>,
    /// Keep-alive timeout granted, in milliseconds; 0 for none.
    pub(crate) kato: Cell<u32>,
    last_alive: Cell<u64>,
    alive_timer: RefCell<Option<Timer>>,
    association_timer: RefCell<Option<Timer>>,
    pub(crate) queues: RefCell<BTreeMap<u16, IoQueue>>,
    /// I/O queues granted by Set Features; all that the transport allows until then.
    pub(crate) granted: Cell<u16>,
    pub(crate) events: Events,
    /// Aborts that another core works on.
    pub(crate) aborts: Cell<u8>,
    /// Namespaces changed since the host read the list.
    pub(crate) changed: RefCell<BTreeSet<u32>>,
    pub(crate) features: Features,
    dead: Cell<bool>,
    /// Listed as ending, so that a successor waits.
    ending: Cell<bool>,
    /// The admin queue has ended.
    admin_gone: Cell<bool>,
}

impl Controller {
    pub(crate) fn new(
        group: &Rc<PollGroup>,
        admin: &Rc<Qpair>,
        who: Identity,
        hostid: [u8; 16],
        sub: &SubsystemView,
        access: Rc<Access>,
        kato: u32,
    ) -> Rc<Controller> {
        let options = admin.options.clone();
        let c = Rc::new(Controller {
            hostid,
            discovery: sub.discovery,
            came_by: admin.transport().and_then(|t| t.local()).unwrap_or_else(|| access.listener.clone()),
            group: Rc::downgrade(group),
            admin: Rc::downgrade(admin),
            access,
            cc: Cell::default(),
            csts: Cell::default(),
            settling: Cell::new(false),
            kato: Cell::new(0),
            last_alive: Cell::new(group.reactor().rdtsc()),
            alive_timer: RefCell::default(),
            association_timer: RefCell::default(),
            queues: RefCell::default(),
            granted: Cell::new(options.max_io_qpairs_per_ctrlr),
            events: Events::default(),
            aborts: Cell::new(0),
            changed: RefCell::default(),
            features: Features::new(who.waits_to_retry.clone()),
            dead: Cell::new(false),
            ending: Cell::new(false),
            admin_gone: Cell::new(false),
            options,
            who,
        });
        let kato = if c.discovery && kato == 0 { DISCOVERY_KATO } else { kato };
        c.set_kato(kato);
        c.start_association_timer();
        group.controllers.borrow_mut().insert(c.who.controller, c.clone());
        c
    }

    pub(crate) fn group(&self) -> Option<Rc<PollGroup>> {
        self.group.upgrade()
    }

    /// The subsystem as this core knows it now; `None` once it was deleted.
    pub(crate) fn subsystem(&self) -> Option<Arc<SubsystemView>> {
        let view = self.group()?.view();
        view.subsystem(&self.who.nqn).filter(|s| s.id == self.who.subsystem).cloned()
    }

    pub(crate) fn info(&self) -> ControllerInfo {
        ControllerInfo {
            cntlid: self.who.cntlid,
            hostnqn: self.who.hostnqn.clone(),
            hostid: self.hostid,
            discovery: self.discovery,
            num_io_qpairs: self.queues.borrow().len() as u32 + 1,
            core: self.who.core,
        }
    }

    // Registers.

    pub(crate) fn cap(&self) -> Cap {
        Cap(0)
            .with_mqes(u64::from(self.options.max_queue_depth) - 1)
            .with_cqr(1)
            .with_to(30)
            .with_css(1)
            .with_mpsmin(0)
            .with_mpsmax(0)
    }

    pub(crate) fn cc(&self) -> Cc {
        self.cc.get()
    }

    pub(crate) fn csts(&self) -> Csts {
        self.csts.get()
    }

    /// True if I/O queues may be created.
    pub(crate) fn ready(&self) -> bool {
        self.csts.get().rdy() == 1
            && self.cc.get().en() == 1
            && self.cc.get().shn() == shn::NONE
            && !self.settling.get()
    }

    /// Property Set of CC.
    ///
    /// # Errors
    /// A value that is not supported is named, and nothing changes.
    pub(crate) fn set_cc(self: &Rc<Self>, cc: Cc) -> Result<(), &'static str> {
        let old = self.cc.get();
        if cc.en() == 1 {
            if cc.css() != 0 {
                return Err("CC.CSS: only the NVM command set");
            }
            if cc.mps() != 0 {
                return Err("CC.MPS: only 4 KiB");
            }
            if cc.ams() != 0 {
                return Err("CC.AMS: only round robin");
            }
            if (cc.iosqes() != 0 && cc.iosqes() != 6) || (cc.iocqes() != 0 && cc.iocqes() != 4) {
                return Err("CC.IOSQES and IOCQES: 6 and 4");
            }
        }
        self.cc.set(cc);
        if cc.shn() != old.shn() && cc.shn() != shn::NONE {
            self.csts.set(self.csts.get().with_shst(shst::OCCURRING));
            self.quiesce();
        } else if old.en() == 1 && cc.en() == 0 {
            self.quiesce();
        } else if old.en() == 0 && cc.en() == 1 {
            self.enable();
        }
        Ok(())
    }

    fn enable(&self) {
        if self.settling.get() {
            return; // becomes ready when the old queues have ended
        }
        self.association_timer.replace(None);
        self.csts.set(Csts(0).with_rdy(1));
    }

    /// Ends the I/O queues; [`settled`](Controller::settled) comes when they have ended.
    fn quiesce(self: &Rc<Self>) {
        self.settling.set(true);
        self.start_association_timer();
        self.disconnect_io(Disconnect::ControllerGone);
        self.check_settled();
    }

    fn check_settled(&self) {
        if !self.settling.get() || !self.queues.borrow().is_empty() {
            return;
        }
        self.settling.set(false);
        let cc = self.cc.get();
        let mut s = self.csts.get();
        if cc.shn() != shn::NONE {
            s = s.with_shst(shst::COMPLETE);
        }
        if cc.en() == 0 {
            s = s.with_rdy(0);
            if cc.shn() == shn::NONE {
                s = s.with_shst(shst::NORMAL);
            }
            self.reset_state();
        }
        self.csts.set(s);
        if cc.en() == 1 && cc.shn() == shn::NONE {
            self.enable();
        }
    }

    /// A controller reset puts back what a host may have changed.
    fn reset_state(&self) {
        self.events.reset(self);
        self.changed.borrow_mut().clear();
        self.features.reset();
        self.granted.set(self.options.max_io_qpairs_per_ctrlr);
    }

    fn disconnect_io(&self, why: Disconnect) {
        let Some(g) = self.group() else { return };
        for q in self.queues.borrow().values() {
            let serial = q.serial;
            g.target().send(q.core, move |g| {
                if let Some(q) = g.find_qpair(serial) {
                    q.disconnect(why);
                }
            });
        }
    }

    // Timers.

    /// Grants a keep-alive timeout: what is asked for, at least the transport's minimum, in whole units of KAS.
    pub(crate) fn set_kato(self: &Rc<Self>, asked: u32) {
        let unit = u32::from(self.options.kas) * 100;
        let granted = match asked {
            0 => 0,
            n => n.max(self.options.min_kato).div_ceil(unit).saturating_mul(unit),
        };
        self.kato.set(granted);
        self.alive();
        self.arm_keep_alive();
    }

    fn arm_keep_alive(self: &Rc<Self>) {
        let Some(g) = self.group() else { return };
        if self.kato.get() == 0 {
            self.alive_timer.replace(None);
            return;
        }
        let r = g.reactor();
        let limit = r.ticks(Duration::from_millis(u64::from(self.kato.get())));
        let spent = r.rdtsc().saturating_sub(self.last_alive.get());
        let left = limit.saturating_sub(spent).max(1);
        let after = Duration::from_nanos((u128::from(left) * 1_000_000_000 / u128::from(r.tick_rate().max(1))) as u64);
        let weak = Rc::downgrade(self);
        let timer = r.timer(after.max(Duration::from_millis(1)), move |r| {
            let Some(c) = weak.upgrade() else { return };
            if r.rdtsc().saturating_sub(c.last_alive.get()) >= limit {
                c.expire();
            } else {
                c.arm_keep_alive();
            }
        });
        let old = self.alive_timer.replace(Some(timer));
        drop(old);
    }

    /// The host is alive.
    pub(crate) fn alive(&self) {
        if let Some(g) = self.group() {
            self.last_alive.set(g.reactor().rdtsc());
        }
    }

    fn expire(&self) {
        tracing::warn!(
            "host '{}' sent no keep-alive to controller {} of '{}' for {} ms: disconnected",
            self.who.hostnqn,
            self.who.cntlid,
            self.who.nqn,
            self.kato.get()
        );
        self.csts.set(self.csts.get().with_cfs(1));
        self.fatal(Disconnect::KeepAliveExpired);
    }

    fn fatal(&self, why: Disconnect) {
        self.begin_end();
        self.disconnect_io(why);
        if let Some(q) = self.admin.upgrade() {
            q.disconnect(why);
        }
    }

    fn start_association_timer(self: &Rc<Self>) {
        let Some(g) = self.group() else { return };
        let weak = Rc::downgrade(self);
        let timer = g.reactor().timer(ASSOCIATION_TIMEOUT, move |_| {
            if let Some(c) = weak.upgrade().filter(|c| !c.ready()) {
                tracing::info!("controller {} of '{}' was not enabled in time: disconnected", c.who.cntlid, c.who.nqn);
                c.fatal(Disconnect::ControllerGone);
            }
        });
        let old = self.association_timer.replace(Some(timer));
        drop(old);
    }

    // Queues.

    /// An I/O queue has ended.
    pub(crate) fn io_qpair_gone(&self, qid: u16, serial: u64) {
        {
            let mut q = self.queues.borrow_mut();
            if q.get(&qid).is_none_or(|x| x.serial != serial) {
                return;
            }
            q.remove(&qid);
        }
        self.queue_ended(serial);
        self.check_settled();
        self.finish_if_ended();
    }

    /// From now on a new controller of the same host waits until this one's commands have left their devices, or goes without
    /// the namespaces that they are in (`predecessors`): what the host sent again to the new one must not be overtaken by what it
    /// had sent to this one. No I/O queue joins any more.
    fn begin_end(&self) {
        if !self.ending.replace(true)
            && let Some(g) = self.group()
        {
            let io = self.queues.borrow();
            let admin = self.admin.upgrade().filter(|_| !self.admin_gone.get()).map(|q| q.serial);
            let mut d = g.target().directory();
            // The number is drawn under the lock: who has a larger one finds what is entered here.
            let since = g.target().fresh_id();
            let queues = io.values().map(|q| q.serial).chain(admin);
            d.predecessors.begin(self.who.association(), self.who.controller, since, queues);
        }
    }

    /// One of its queue pairs has ended.
    fn queue_ended(&self, serial: u64) {
        if self.ending.get()
            && let Some(g) = self.group()
        {
            g.target().directory().predecessors.queue_ended(&self.who.association(), self.who.controller, serial);
        }
    }

    fn finish_if_ended(&self) {
        if !self.admin_gone.get() || !self.queues.borrow().is_empty() {
            return;
        }
        if let Some(g) = self.group() {
            if self.ending.replace(false) {
                g.target().directory().predecessors.end(&self.who.association(), self.who.controller);
            }
            let me = g.controllers.borrow_mut().remove(&self.who.controller);
            g.reactor().defer(move |_| drop(me));
        }
    }

    /// The admin queue is ending: nobody can find the controller any more, its I/O queues end too.
    pub(crate) fn closing(&self) {
        if self.dead.replace(true) {
            return;
        }
        self.begin_end();
        self.alive_timer.replace(None);
        self.association_timer.replace(None);
        if let Some(g) = self.group() {
            g.target().directory().remove(&self.who.nqn, self.who.cntlid, self.who.controller);
        }
        self.events.drop_requests(self);
        self.disconnect_io(Disconnect::ControllerGone);
    }

    /// The admin queue has ended.
    pub(crate) fn destroy(&self) {
        self.admin_gone.set(true);
        if let Some(q) = self.admin.upgrade() {
            self.queue_ended(q.serial);
        }
        self.finish_if_ended();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// True from the moment that a successor has to wait.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get() || self.dead.get()
    }

    // Changes of the configuration.

    /// This core works from a new view: tells the host what of it concerns it.
    pub(crate) fn view_changed(&self, old: &TargetView, new: &TargetView) {
        if self.discovery {
            if old.genctr != new.genctr {
                self.events.discovery_changed(self);
            }
            return;
        }
        let of = |v: &TargetView| v.subsystem(&self.who.nqn).filter(|s| s.id == self.who.subsystem).cloned();
        let (Some(a), Some(b)) = (of(old), of(new)) else { return };
        if Arc::ptr_eq(&a, &b) {
            return;
        }
        let host = &self.who.hostnqn;
        let mut ana = false;
        let mut changed = Vec::new();
        let ids: BTreeSet<u32> = a.namespaces.keys().chain(b.namespaces.keys()).copied().collect();
        for id in ids {
            let x = a.namespaces.get(&id).filter(|n| n.visible_to(host));
            let y = b.namespaces.get(&id).filter(|n| n.visible_to(host));
            match (x, y) {
                (None, None) => {}
                (Some(x), Some(y)) => {
                    ana |= x.anagrpid != y.anagrpid;
                    if x.ns.key != y.ns.key || x.num_blocks != y.num_blocks || x.anagrpid != y.anagrpid {
                        changed.push(id);
                    }
                }
                _ => changed.push(id),
            }
        }
        if !changed.is_empty() {
            self.changed.borrow_mut().extend(changed);
            self.events.namespaces_changed(self);
        }
        let states = |s: &SubsystemView| s.listener(&self.access.listener).map(|l| l.ana_changes);
        if b.options.ana_reporting && (ana || states(&a) != states(&b)) {
            self.events.ana_changed(self);
        }
    }
}
