//! A controller as all threads see it, and the I/O queues made on it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_reactor::{CoreHandle, Reactor};

use crate::wire::identify::cntrltype;
use crate::wire::register::{Cap, Cc, Version};
use crate::wire::{DISCOVERY_NQN, IdentifyController, Sqe};

use super::command::{AdminData, AdminReply};
use super::connect::{Connect, open};
use super::error::HostError;
use super::events::ControllerEvent;
use super::options::{HostOptions, TimeoutAction, TransportId};
use super::owner;
use super::qpair::{Qpair, QueueEnd};

/// What a controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// It is being connected for the first time.
    Connecting,
    /// It takes commands.
    Ready,
    /// It is being connected again.
    Resetting,
    /// Its connection ended, or it could not be connected again: only a reset brings it back.
    Lost,
    /// It was disconnected.
    Closed,
}

/// What is known of a controller since it was last connected.
#[derive(Debug)]
#[non_exhaustive]
pub struct Info {
    /// Controller identifier.
    pub cntlid: u16,
    /// Capabilities.
    pub cap: Cap,
    /// Version.
    pub version: Version,
    /// What was written to CC.
    pub cc: Cc,
    /// Identify Controller.
    pub identify: Box<IdentifyController>,
    /// Largest transfer of a command in bytes (MDTS); 0: no limit.
    pub max_transfer: u64,
    /// Most bytes in a capsule of an I/O queue.
    pub in_capsule: u32,
    /// Submission queue flow control is used.
    pub flow_control: bool,
    /// I/O queues that may be made.
    pub io_queues: u16,
    /// Commands outstanding on each of them.
    pub io_depth: u16,
    /// Keep-alive timeout: the longer one of what was asked for and what the controller says.
    pub keep_alive: Duration,
}

impl Info {
    pub(crate) fn new(
        cntlid: u16,
        cap: Cap,
        version: u32,
        cc: Cc,
        identify: Box<IdentifyController>,
        flow_control: bool,
    ) -> Info {
        let page = 12 + cap.mpsmin() as u32;
        let max_transfer = match u32::from(identify.mdts) {
            0 => 0,
            n => 1u64.checked_shl(n.saturating_add(page)).unwrap_or(0),
        };
        // IOCCSZ counts 16-byte units, the 64 bytes of the entry included. Data after a gap (ICDOFF) is not supported.
        let capsule = identify.ioccsz.get().saturating_mul(16).saturating_sub(64);
        let in_capsule = if identify.icdoff.get() == 0 { capsule.min(1 << 20) } else { 0 };
        Info {
            cntlid,
            cap,
            version: Version(version),
            cc,
            identify,
            max_transfer,
            in_capsule,
            flow_control,
            io_queues: 0,
            io_depth: 0,
            keep_alive: Duration::ZERO,
        }
    }

    /// Whether it is a discovery controller, which has no I/O queues.
    pub fn is_discovery(&self) -> bool {
        self.identify.cntrltype == cntrltype::DISCOVERY || self.identify.subnqn.get() == Some(DISCOVERY_NQN)
    }
}

struct Shared {
    state: ControllerState,
    /// Counts the times it came up.
    generation: u32,
    info: Option<Arc<Info>>,
    why: String,
    qids: BTreeSet<u16>,
    /// Why no I/O queue may be made before a reset: the controller may still execute commands whose end nobody learnt.
    unsettled: Option<String>,
    queues: Vec<(CoreHandle, u16)>,
}

/// A remote controller. Dropping it does not disconnect it: see [`disconnect`](Controller::disconnect).
pub struct Controller {
    pub(crate) id: u64,
    core: CoreHandle,
    pub(crate) id_of: TransportId,
    pub(crate) options: HostOptions,
    shared: Mutex<Shared>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("id", &self.id_of).field("state", &self.state()).finish()
    }
}

thread_local! {
    /// I/O queues of this core, by controller and queue identifier.
    static QUEUES: RefCell<HashMap<(u64, u16), Weak<Qpair>>> = RefCell::default();
}

impl Controller {
    /// Connects a controller, whose admin queue lives on `core`: connection, Connect, enable, identify, queue count, events,
    /// keep-alive.
    ///
    /// # Errors
    /// What went wrong; nothing is left behind.
    pub async fn connect(
        core: &CoreHandle,
        id: TransportId,
        options: HostOptions,
    ) -> Result<Arc<Controller>, HostError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ctrl = Arc::new(Controller {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            core: core.clone(),
            id_of: id,
            options,
            shared: Mutex::new(Shared {
                state: ControllerState::Connecting,
                generation: 0,
                info: None,
                why: String::new(),
                qids: BTreeSet::new(),
                unsettled: None,
                queues: Vec::new(),
            }),
        });
        let c = ctrl.clone();
        core.spawn(move |r| owner::start(r, c)).await??;
        Ok(ctrl)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn transport_id(&self) -> &TransportId {
        &self.id_of
    }

    /// How it is used.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// The core of its admin queue.
    pub fn core(&self) -> &CoreHandle {
        &self.core
    }

    /// What it is doing.
    pub fn state(&self) -> ControllerState {
        self.shared().state
    }

    /// Whether only a [`reset`](Self::reset) brings it back: it is lost, or a queue ended with commands unanswered.
    pub fn needs_reset(&self) -> bool {
        let s = self.shared();
        s.state != ControllerState::Ready || s.unsettled.is_some()
    }

    /// How often it was connected: I/O queues of an earlier time are gone.
    pub fn generation(&self) -> u32 {
        self.shared().generation
    }

    /// Why it was lost, if it was.
    pub fn why_lost(&self) -> String {
        self.shared().why.clone()
    }

    /// What is known of it.
    pub fn info(&self) -> Option<Arc<Info>> {
        self.shared().info.clone()
    }

    pub(crate) fn set_state(&self, state: ControllerState) {
        self.shared().state = state;
    }

    pub(crate) fn set_failed(&self, why: &str) {
        let mut s = self.shared();
        s.state = ControllerState::Lost;
        s.why = why.to_owned();
    }

    pub(crate) fn came_up(&self, info: Info) {
        let mut s = self.shared();
        s.state = ControllerState::Ready;
        s.generation += 1;
        s.info = Some(Arc::new(info));
        s.unsettled = None;
        s.why.clear();
    }

    /// The admin queue ended; true if nobody meant it to.
    pub(crate) fn went_down(&self, why: &str) -> bool {
        let mut s = self.shared();
        if s.state != ControllerState::Ready {
            return false;
        }
        s.state = ControllerState::Lost;
        s.why = why.to_owned();
        true
    }

    pub(crate) fn tell(&self, e: ControllerEvent) {
        if let Some(sink) = &self.options.events {
            sink(e);
        }
    }

    /// Runs an admin command, from any thread, and waits until it succeeds. Command identifier and data pointer are filled in.
    ///
    /// # Errors
    /// It failed, or the connection is gone.
    pub async fn admin(&self, what: &'static str, sqe: Sqe, data: AdminData) -> Result<AdminReply, HostError> {
        let reply = self.admin_any(sqe, data).await?;
        match reply.status.is_err() {
            true => Err(HostError::Refused { what, status: reply.status, dw0: reply.result as u32 }),
            false => Ok(reply),
        }
    }

    /// As [`admin`](Self::admin), with an answer of any status.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn admin_any(&self, sqe: Sqe, data: AdminData) -> Result<AdminReply, HostError> {
        let id = self.id;
        let reply = self.core.spawn(move |_| async move {
            match owner::find(id) {
                Some(o) => o.run(sqe, data).await,
                None => Err(HostError::Gone),
            }
        });
        reply.await?
    }

    /// Asks for command `cid` of queue `qid` to be aborted. The command's own end tells whether it was.
    pub fn abort(&self, qid: u16, cid: u16) {
        let id = self.id;
        self.core.send(move |_| {
            if let Some(o) = owner::find(id) {
                o.abort(qid, cid);
            }
        });
    }

    /// Ends all its connections and connects again. I/O queues do not come back: make new ones.
    ///
    /// What was sent and not answered before is over at the controller when this succeeds, as far as NVMe-oF lets a host know:
    /// it may be sent again. See `Owner::end_association`.
    ///
    /// # Errors
    /// It could not be connected again, and is [`Lost`](ControllerState::Lost).
    pub async fn reset(&self) -> Result<(), HostError> {
        let id = self.id;
        let end = self.core.spawn(move |_| async move {
            match owner::find(id) {
                Some(o) => o.reset().await,
                None => Err(HostError::Gone),
            }
        });
        end.await?
    }

    /// Ends all its connections for good, `notify`: after a shutdown notification. Commands outstanding end with
    /// `ABORTED_BY_HOST`.
    pub async fn disconnect(&self, notify: bool) {
        let id = self.id;
        let end = self.core.spawn(move |_| async move {
            if let Some(o) = owner::find(id) {
                o.disconnect(notify).await;
            }
        });
        let _ = end.await;
    }

    /// Ends all I/O queues and waits until they are gone.
    pub(crate) async fn close_queues(&self, why: &str) {
        let (id, all) = (self.id, self.shared().queues.clone());
        let mut ends = Vec::new();
        for (core, qid) in all {
            let why = why.to_owned();
            ends.push(core.spawn(move |_| async move {
                let q = QUEUES.with(|m| m.borrow().get(&(id, qid)).and_then(Weak::upgrade));
                if let Some(q) = q {
                    q.shut(why).await;
                }
            }));
        }
        for e in ends {
            let _ = e.await;
        }
    }

    fn take_qid(&self) -> Result<(u16, Arc<Info>, u32), HostError> {
        let mut s = self.shared();
        let info = match (&s.info, s.state) {
            (Some(i), ControllerState::Ready) => i.clone(),
            _ => return Err(HostError::Lost(format!("the controller is {:?}: {}", s.state, s.why))),
        };
        if let Some(why) = &s.unsettled {
            return Err(HostError::Lost(why.clone()));
        }
        let free = (1..=info.io_queues).find(|q| !s.qids.contains(q));
        let qid = free.ok_or_else(|| {
            HostError::Exhausted(format!("the controller has {} I/O queues, and all are in use", info.io_queues))
        })?;
        s.qids.insert(qid);
        Ok((qid, info, s.generation))
    }

    fn queue_ended(&self, qid: u16, generation: u32, why: &str, end: QueueEnd) {
        self.free_qid(qid);
        let mut s = self.shared();
        if end.unanswered && s.generation == generation {
            s.unsettled.get_or_insert_with(|| {
                format!("queue {qid} ended with commands unanswered ({why}): the controller has to be reset first")
            });
        }
    }

    fn free_qid(&self, qid: u16) {
        let mut s = self.shared();
        s.qids.remove(&qid);
        s.queues.retain(|(_, q)| *q != qid);
    }

    /// Makes an I/O queue on the calling reactor, for up to `depth` commands (at most, and by default, what the controller
    /// takes).
    ///
    /// # Errors
    /// No queue is left, or it could not be connected; or one was lost with commands unanswered: a write of it could land after
    /// one that is sent again, so the controller has to be [`reset`](Self::reset) first.
    pub async fn io_queue(self: &Arc<Self>, reactor: &Reactor, depth: Option<u16>) -> Result<IoQueue, HostError> {
        let (qid, info, generation) = self.take_qid()?;
        let depth = depth.unwrap_or(info.io_depth).clamp(1, info.io_depth.max(1));
        let made = self.open_queue(reactor, qid, depth, &info).await;
        // The controller may have been reset, or lost, meanwhile.
        let current = {
            let mut s = self.shared();
            let current = s.state == ControllerState::Ready && s.generation == generation;
            if current && made.is_ok() {
                s.queues.push((reactor.handle(), qid));
            }
            current
        };
        match made {
            Ok(q) if current => Ok(self.adopt(q)),
            Ok(q) => {
                q.shut("the controller was reset").await;
                self.free_qid(qid);
                Err(HostError::Lost("the controller was reset while a queue was being made".into()))
            }
            Err(e) => {
                self.free_qid(qid);
                Err(e)
            }
        }
    }

    async fn open_queue(&self, r: &Reactor, qid: u16, depth: u16, info: &Info) -> Result<Rc<Qpair>, HostError> {
        let q = open(r, &self.id_of, &self.options, qid, depth).await?;
        let connect = Connect {
            subnqn: &self.id_of.subnqn,
            options: &self.options,
            cntlid: info.cntlid,
            // One entry of a queue is always empty.
            sqsize: depth,
            flow_control: info.flow_control,
        };
        match connect.send(&q).await {
            Ok(_) => {
                q.set_in_capsule(info.in_capsule);
                Ok(q)
            }
            Err(e) => {
                q.shut("Connect failed").await;
                Err(e)
            }
        }
    }

    fn adopt(self: &Arc<Self>, q: Rc<Qpair>) -> IoQueue {
        let (id, qid) = (self.id, q.qid());
        QUEUES.with(|m| m.borrow_mut().insert((id, qid), Rc::downgrade(&q)));
        let ctrl = self.clone();
        let wanted = Rc::new(std::cell::Cell::new(false));
        let dropped = wanted.clone();
        let generation = self.generation();
        q.on_end(move |why, end| {
            QUEUES.with(|m| m.borrow_mut().remove(&(id, qid)));
            ctrl.queue_ended(qid, generation, why, end);
            if !dropped.get() && ctrl.state() == ControllerState::Ready {
                ctrl.tell(ControllerEvent::QueueLost { qid, why: why.to_owned() });
            }
        });
        let o = &self.options;
        if !o.io_timeout.is_zero() && o.on_timeout != TimeoutAction::None {
            let (ctrl, abort) = (self.clone(), o.on_timeout == TimeoutAction::Abort);
            let late = move |q: &Qpair, cid: u16, opcode: u8, times: u8| {
                if abort && times < 2 {
                    return ctrl.abort(q.qid(), cid);
                }
                q.close(format!("I/O command {opcode:02x}h took too long"));
                ctrl.tell(ControllerEvent::TimedOut { qid: q.qid() });
            };
            q.set_deadline(o.io_timeout, Rc::new(late));
        }
        IoQueue { q, ctrl: self.clone(), wanted }
    }
}

/// An I/O queue pair. Dropping it ends its connection.
pub struct IoQueue {
    q: Rc<Qpair>,
    ctrl: Arc<Controller>,
    wanted: Rc<std::cell::Cell<bool>>,
}

impl IoQueue {
    /// Its controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.ctrl
    }

    /// The queue pair, to wait for its end after this handle was dropped.
    pub fn qpair(&self) -> &Rc<Qpair> {
        &self.q
    }

    /// Ends the connection and waits until it is gone.
    pub async fn disconnect(self) {
        let q = self.q.clone();
        drop(self);
        q.gone().await;
    }
}

impl Deref for IoQueue {
    type Target = Qpair;

    fn deref(&self) -> &Qpair {
        &self.q
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        self.wanted.set(true);
        match self.q.outstanding() {
            0 => self.q.finish("the queue was disconnected"),
            _ => self.q.close("the queue was disconnected"),
        }
    }
}

impl std::fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.q.fmt(f)
    }
}
