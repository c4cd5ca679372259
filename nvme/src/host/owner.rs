//! The owner's side of a controller: admin queue, keep-alive, asynchronous events, aborts. Lives on one core.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_reactor::{Reactor, Timer};
use zerocopy::FromBytes;

use crate::wire::fabrics::{CNTLID_DYNAMIC, PropertyGetCmd, PropertySetCmd};
use crate::wire::feature::{QueueCount, fid};
use crate::wire::identify::{cns, ctratt};
use crate::wire::io::AbortCmd;
use crate::wire::opcode::admin;
use crate::wire::register::{Cap, Cc, Csts, offset, shn, shst};
use crate::wire::{AsyncEvent, IdentifyController, Sqe, Status, event};

use super::command::{AdminData, success, transfer, within};
use super::connect::{Connect, open, refuses_attributes};
use super::controller::{Controller, ControllerState, Info};
use super::error::HostError;
use super::events::ControllerEvent;
use super::options::TimeoutAction;
use super::qpair::{Completer, Data, Done, Qpair, QueueEnd};

/// Aborts that wait for one outstanding to end.
const ABORTS_WAITING: usize = 1024;
/// Event requests outstanding at most.
const EVENTS: u8 = 4;

thread_local! {
    static OWNERS: RefCell<HashMap<u64, Rc<Owner>>> = RefCell::default();
}

const TAG_KEEP_ALIVE: u64 = 0;
const TAG_EVENT: u64 = 1;
const TAG_ABORT: u64 = 2;

pub(crate) struct Owner {
    me: Weak<Owner>,
    reactor: Reactor,
    ctrl: Arc<Controller>,
    admin: RefCell<Option<Rc<Qpair>>>,
    keep_alive: RefCell<Option<Timer>>,
    /// Half timeouts for which a Keep Alive is outstanding.
    unanswered: Cell<u8>,
    aborts: RefCell<VecDeque<(u16, u16)>>,
    aborting: Cell<u16>,
    /// A reset or disconnect is under way.
    busy: Cell<bool>,
    /// A disconnect waits or is under way: nothing is begun any more.
    leaving: Cell<bool>,
    /// Before this time stamp no command of the association that was lost may be sent again: see `end_association`.
    quiet: Cell<u64>,
}

/// The owner of the controller `id` on this core.
pub(crate) fn find(id: u64) -> Option<Rc<Owner>> {
    OWNERS.with(|o| o.borrow().get(&id).cloned())
}

/// Connects a controller for the first time; this core owns it from here on.
pub(crate) async fn start(reactor: Reactor, ctrl: Arc<Controller>) -> Result<(), HostError> {
    let id = ctrl.id;
    let owner = Rc::new_cyclic(|me| Owner {
        me: me.clone(),
        reactor,
        ctrl,
        admin: RefCell::default(),
        keep_alive: RefCell::default(),
        unanswered: Cell::new(0),
        aborts: RefCell::default(),
        aborting: Cell::new(0),
        busy: Cell::new(false),
        leaving: Cell::new(false),
        quiet: Cell::new(0),
    });
    owner.bring_up().await?;
    OWNERS.with(|o| o.borrow_mut().insert(id, owner));
    Ok(())
}

impl Owner {
    /// Connects the admin queue and prepares the controller.
    async fn bring_up(&self) -> Result<(), HostError> {
        let (id, o) = (&self.ctrl.id_of, &self.ctrl.options);
        let depth = o.admin_depth.clamp(31, 4095);
        let mut flow_control = !o.disable_sq_flow_control;
        loop {
            let q = open(&self.reactor, id, o, 0, depth).await?;
            match self.prepare(&q, depth, flow_control).await {
                Ok(info) => {
                    self.adopt(q, info);
                    return Ok(());
                }
                Err(e) => {
                    q.shut("the controller could not be set up").await;
                    if flow_control || !refuses_attributes(&e) {
                        return Err(e);
                    }
                    flow_control = true;
                }
            }
        }
    }

    async fn prepare(&self, q: &Qpair, depth: u16, flow_control: bool) -> Result<Info, HostError> {
        let (id, o) = (&self.ctrl.id_of, &self.ctrl.options);
        let connect = Connect { subnqn: &id.subnqn, options: o, cntlid: CNTLID_DYNAMIC, sqsize: depth, flow_control };
        let cntlid = connect.send(q).await?;
        let steps = async {
            let cap = Cap(self.property(q, offset::CAP, true).await?);
            let version = self.property(q, offset::VS, false).await? as u32;
            let css = if cap.css() & 1 != 0 { 0 } else { 6 };
            let cc = Cc(0).with_en(1).with_css(css).with_iosqes(6).with_iocqes(4);
            self.set_property(q, offset::CC, cc.0).await?;
            self.ready(q, Duration::from_millis(500) * (cap.to().max(1) as u32)).await?;
            let mut sqe = Sqe::new(admin::IDENTIFY, 0, 0);
            sqe.cdw10 = u32::from(cns::CONTROLLER).into();
            let reply = transfer(q, &sqe, AdminData::Read(4096)).await?;
            if reply.status.is_err() {
                return Err(HostError::Refused { what: "Identify Controller", status: reply.status, dw0: 0 });
            }
            let identify = IdentifyController::read_from_bytes(&reply.data)
                .map_err(|_| HostError::Peer("its identify data is cut short".into()))?;
            let mut info = Info::new(cntlid, cap, version, cc, Box::new(identify), flow_control);
            info.keep_alive = self.granted(q).await;
            if !info.is_discovery() {
                info.io_queues = self.queue_count(q, o.io_queues.max(1)).await?;
                info.io_depth = o.io_depth.clamp(1, (cap.mqes() as u16).max(1));
            }
            let wanted =
                info.identify.oaes.get() & (event::config::NAMESPACE | event::config::ANA | event::config::DISCOVERY);
            let mut sqe = Sqe::new(admin::SET_FEATURES, 0, 0);
            sqe.cdw10 = u32::from(fid::ASYNC_EVENT_CONFIG).into();
            sqe.cdw11 = (wanted | event::config::HEALTH).into();
            // A controller without events is one all the same.
            if let Err(e) = success(q, "Set Features (asynchronous events)", &sqe, Data::None).await {
                tracing::debug!("{id}: {e}");
            }
            Ok(info)
        };
        within(&self.reactor, o.setup_timeout.max(Duration::from_secs(1)) * 4, "setting up the controller", steps)
            .await?
    }

    async fn property(&self, q: &Qpair, at: u32, wide: bool) -> Result<u64, HostError> {
        let sqe = PropertyGetCmd::new(0, at, wide).sqe();
        let v = success(q, "Property Get", &sqe, Data::None).await?.result;
        Ok(if wide { v } else { v & 0xffff_ffff })
    }

    async fn set_property(&self, q: &Qpair, at: u32, value: u32) -> Result<(), HostError> {
        let sqe = PropertySetCmd::new(0, at, value).sqe();
        success(q, "Property Set", &sqe, Data::None).await.map(drop)
    }

    /// Waits until the controller says that it is ready.
    async fn ready(&self, q: &Qpair, limit: Duration) -> Result<(), HostError> {
        let until = self.reactor.rdtsc().saturating_add(self.reactor.ticks(limit));
        loop {
            let csts = Csts(self.property(q, offset::CSTS, false).await? as u32);
            if csts.cfs() != 0 {
                return Err(HostError::Peer("it reports a fatal status (CSTS.CFS)".into()));
            }
            if csts.rdy() != 0 {
                return Ok(());
            }
            if self.reactor.rdtsc() > until {
                return Err(HostError::TimedOut { what: format!("becoming ready ({} ms, CAP.TO)", limit.as_millis()) });
            }
            self.reactor.sleep(Duration::from_millis(2)).await;
        }
    }

    /// The keep-alive timeout after which the controller takes the host for dead; never less than what was asked for.
    async fn granted(&self, q: &Qpair) -> Duration {
        let asked = self.ctrl.options.keep_alive;
        if asked.is_zero() {
            return asked;
        }
        let mut sqe = Sqe::new(admin::GET_FEATURES, 0, 0);
        sqe.cdw10 = u32::from(fid::KEEP_ALIVE_TIMER).into();
        match success(q, "Get Features (keep-alive timeout)", &sqe, Data::None).await {
            Ok(done) => asked.max(Duration::from_millis((done.result as u32).into())),
            Err(e) => {
                tracing::debug!("{}: {e}", self.ctrl.id_of);
                asked
            }
        }
    }

    async fn queue_count(&self, q: &Qpair, wanted: u16) -> Result<u16, HostError> {
        let n = u32::from(wanted.min(0xfffe) - 1);
        let mut sqe = Sqe::new(admin::SET_FEATURES, 0, 0);
        sqe.cdw10 = u32::from(fid::NUMBER_OF_QUEUES).into();
        sqe.cdw11 = QueueCount(0).with_submission(n).with_completion(n).0.into();
        let done = success(q, "Set Features (number of queues)", &sqe, Data::None).await?;
        let got = QueueCount(done.result as u32);
        Ok(got.submission().min(got.completion()).min(n) as u16 + 1)
    }

    /// The controller is ready: keeps it alive and listens to its events.
    fn adopt(&self, q: Rc<Qpair>, info: Info) {
        let o = &self.ctrl.options;
        self.unanswered.set(0);
        self.aborts.borrow_mut().clear();
        self.aborting.set(0);
        let events = info.identify.aerl.min(EVENTS - 1) + 1;
        *self.admin.borrow_mut() = Some(q.clone());
        self.ctrl.came_up(info);
        let me = self.me.clone();
        q.on_end(move |why, end| {
            if let Some(o) = me.upgrade() {
                o.admin_ended(why, end);
            }
        });
        if !o.admin_timeout.is_zero() && o.on_timeout != TimeoutAction::None {
            let me = self.me.clone();
            let late = move |q: &Qpair, _, opcode: u8, _| {
                q.close(format!("admin command {opcode:02x}h took too long"));
                if let Some(o) = me.upgrade() {
                    o.ctrl.tell(ControllerEvent::TimedOut { qid: 0 });
                }
            };
            q.set_deadline(o.admin_timeout, Rc::new(late));
        }
        if !o.keep_alive.is_zero() {
            let me = self.me.clone();
            let period = (o.keep_alive / 2).max(Duration::from_millis(1));
            *self.keep_alive.borrow_mut() = Some(self.reactor.every(period, move |_| {
                if let Some(o) = me.upgrade() {
                    o.send_keep_alive();
                }
            }));
        }
        for _ in 0..events {
            self.listen();
        }
    }

    fn queue(&self) -> Option<Rc<Qpair>> {
        self.admin.borrow().clone().filter(|q| q.is_open())
    }

    fn myself(&self) -> Option<Rc<dyn Completer>> {
        self.me.upgrade().map(|o| o as Rc<dyn Completer>)
    }

    fn send_keep_alive(&self) {
        let (Some(q), Some(me)) = (self.queue(), self.myself()) else { return };
        match self.unanswered.get() {
            0 => {
                if q.submit(&Sqe::new(admin::KEEP_ALIVE, 0, 0), Data::None, me, TAG_KEEP_ALIVE).is_ok() {
                    self.unanswered.set(1);
                }
            }
            1 => self.unanswered.set(2),
            _ => {
                let limit = self.ctrl.options.keep_alive.as_millis();
                q.close(format!("Keep Alive was not answered for {limit} ms"));
            }
        }
    }

    /// Sends an Asynchronous Event Request.
    fn listen(&self) {
        if let (Some(q), Some(me)) = (self.queue(), self.myself()) {
            let _ = q.submit(&Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, 0), Data::None, me, TAG_EVENT);
        }
    }

    /// Asks for command `cid` of queue `qid` to be aborted. Nobody learns whether it was: the command's own end tells.
    pub(crate) fn abort(&self, qid: u16, cid: u16) {
        let mut waiting = self.aborts.borrow_mut();
        if waiting.len() < ABORTS_WAITING {
            waiting.push_back((qid, cid));
        }
        drop(waiting);
        self.send_aborts();
    }

    fn send_aborts(&self) {
        let limit = self.ctrl.info().map_or(1, |i| u16::from(i.identify.acl) + 1).min(8);
        while self.aborting.get() < limit {
            let (Some(q), Some(me)) = (self.queue(), self.myself()) else { return };
            let Some((sqid, cid)) = self.aborts.borrow_mut().pop_front() else { return };
            let mut sqe = Sqe::new(admin::ABORT, 0, 0);
            sqe.cdw10 = AbortCmd { sqid, cid }.cdw10().into();
            if q.submit(&sqe, Data::None, me, TAG_ABORT).is_err() {
                return;
            }
            self.aborting.set(self.aborting.get() + 1);
        }
    }

    /// Runs an admin command.
    pub(crate) async fn run(&self, sqe: Sqe, data: AdminData) -> Result<super::AdminReply, HostError> {
        let q = self.admin.borrow().clone().ok_or(HostError::Gone)?;
        transfer(&q, &sqe, data).await
    }

    fn admin_ended(&self, why: &str, end: QueueEnd) {
        let timer = self.keep_alive.take();
        drop(timer);
        if self.ctrl.went_down(why) {
            self.not_before(end.by_peer);
            self.ctrl.tell(ControllerEvent::Lost { why: why.to_owned() });
            let ctrl = self.ctrl.clone();
            drop(self.reactor.spawn(async move { ctrl.close_queues("the controller is lost").await }));
        }
    }

    /// No command of the association that ends now may be sent again before the controller is done with it; `told`: the
    /// controller knows of the end.
    fn not_before(&self, told: bool) {
        let Some(info) = self.ctrl.info() else { return };
        let cqt = Duration::from_millis(info.identify.cqt.get().into());
        // KATO is granted in units of KAS. With traffic based keep-alive (CTRATT.TBKAS) a timer that found any command runs once
        // more.
        let unit = Duration::from_millis(100) * u32::from(info.identify.kas.get());
        let rounds = if info.identify.ctratt.get() & ctratt::TRAFFIC_BASED_KEEP_ALIVE != 0 { 2 } else { 1 };
        let kato = info.keep_alive;
        let unnoticed = if told || kato.is_zero() { Duration::ZERO } else { (kato + unit) * rounds };
        let until = self.reactor.rdtsc().saturating_add(self.reactor.ticks(unnoticed + cqt));
        self.quiet.set(self.quiet.get().max(until));
    }

    /// Ends the association: all queues, the admin queue last.
    ///
    /// A write that was given up must not land after it was sent again, or after a newer one. That the host closed its
    /// connections does not prevent it: the controller may notice late, and execute what it has. A new association proves
    /// nothing either, for a subsystem may have several of the same host. So, in this order of preference:
    ///
    /// 1. The controller answers: CC.EN is cleared. CSTS.RDY falls when the controller level reset is complete, and with it
    ///    every command (Base Specification, "Controller Level Reset"). Longshore's target lets it fall when the last command
    ///    has left its device. (Linux' target lets it fall at once; then only its prompt end of the closed queues helps.)
    /// 2. The controller ended the admin connection, by FIN or RST: it tears the association down by itself. Longshore's target
    ///    lets a host back in only when the commands of its last association have left their devices.
    /// 3. Neither: it may not know yet. It will when the keep-alive timeout (KATO) has passed without a Keep Alive, so a new
    ///    association waits for that long after the last moment at which one could have been sent.
    ///
    /// In cases 2 and 3 the controller may take its command quiesce time (CQT, TP 4129) more. One that reports none promises
    /// nothing, and hosts, Linux' among them, go on without waiting. An RST that is not the controller's, but of a firewall on
    /// the way, is not told apart: then only a CQT protects. Without keep-alive there is no bound in case 3. What a
    /// closed I/O connection had not sent is never sent (see `Sock::set_abortive`).
    ///
    /// The I/O queues go first: a controller that is disabled answers what other cores still send with errors of its own.
    async fn end_association(&self, why: &str) {
        self.ctrl.close_queues(why).await;
        if let (Some(q), Some(info)) = (self.queue(), self.ctrl.info()) {
            let limit = Duration::from_millis(500) * (info.cap.to().max(2) as u32);
            let steps = async {
                self.set_property(&q, offset::CC, info.cc.with_en(0).0).await?;
                while Csts(self.property(&q, offset::CSTS, false).await? as u32).rdy() != 0 {
                    self.reactor.sleep(Duration::from_millis(2)).await;
                }
                Ok::<_, HostError>(())
            };
            if let Ok(Err(e)) | Err(e) = within(&self.reactor, limit, "the controller level reset", steps).await {
                tracing::info!("{}: {e}", self.ctrl.id_of);
                self.not_before(q.ended_by_peer());
            }
        }
        self.take_down(why).await;
    }

    async fn take_down(&self, why: &str) {
        self.ctrl.close_queues(why).await;
        let q = self.admin.borrow_mut().take();
        let timer = self.keep_alive.take();
        drop(timer);
        if let Some(q) = q {
            q.shut(why).await;
        }
    }

    /// Ends all connections and connects anew.
    pub(crate) async fn reset(&self) -> Result<(), HostError> {
        let before = self.ctrl.generation();
        self.turn().await;
        if self.ctrl.state() == ControllerState::Closed || self.leaving.get() {
            return Err(HostError::Gone);
        }
        if self.ctrl.state() == ControllerState::Ready && self.ctrl.generation() != before {
            // The one that was waited for did what was wanted.
            return Ok(());
        }
        self.busy.set(true);
        self.ctrl.set_state(ControllerState::Resetting);
        self.end_association("the controller is being reset").await;
        let end = match self.quiet_passed().await {
            true => self.bring_up().await,
            false => Err(HostError::Gone),
        };
        if let Err(e) = &end {
            self.ctrl.set_failed(&e.to_string());
        }
        self.busy.set(false);
        end
    }

    /// Waits until commands may be sent again. False if that is not wanted any more.
    async fn quiet_passed(&self) -> bool {
        while !self.leaving.get() {
            if self.reactor.rdtsc() >= self.quiet.get() {
                return true;
            }
            self.reactor.sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Waits until no reset or disconnect is under way.
    async fn turn(&self) {
        while self.busy.get() {
            self.reactor.sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends all connections for good; with a shutdown notification if `notify`.
    pub(crate) async fn disconnect(&self, notify: bool) {
        self.leaving.set(true);
        self.turn().await;
        if self.ctrl.state() == ControllerState::Closed {
            return;
        }
        self.busy.set(true);
        self.ctrl.set_state(ControllerState::Closed);
        self.ctrl.close_queues("the controller is being disconnected").await;
        if let (true, Some(q), Some(info)) = (notify, self.queue(), self.ctrl.info()) {
            let steps = async {
                self.set_property(&q, offset::CC, info.cc.with_shn(shn::NORMAL).0).await?;
                while Csts(self.property(&q, offset::CSTS, false).await? as u32).shst() != shst::COMPLETE {
                    self.reactor.sleep(Duration::from_millis(2)).await;
                }
                Ok::<_, HostError>(())
            };
            match within(&self.reactor, Duration::from_secs(5), "the shutdown", steps).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) | Err(e) => tracing::info!("{}: no orderly shutdown: {e}", self.ctrl.id_of),
            }
        }
        self.take_down("the controller was disconnected").await;
        self.busy.set(false);
        let me = OWNERS.with(|o| o.borrow_mut().remove(&self.ctrl.id));
        drop(me);
    }
}

impl Completer for Owner {
    fn completed(&self, done: &Done) {
        let gone = done.status.is(Status::ABORTED_BY_HOST);
        match done.tag {
            // Whatever it answers, it lives.
            TAG_KEEP_ALIVE => self.unanswered.set(0),
            TAG_EVENT if done.status.is_ok() => {
                self.ctrl.tell(ControllerEvent::Async(AsyncEvent::from_dw0(done.result as u32)));
                self.listen();
            }
            TAG_EVENT => {}
            _ => {
                self.aborting.set(self.aborting.get().saturating_sub(1));
                if !gone {
                    self.send_aborts();
                }
            }
        }
    }
}
