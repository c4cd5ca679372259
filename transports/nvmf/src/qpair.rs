//! A queue pair on its core: slots, flow control, the life of a command, and the end of the connection.
//!
//! # What a transport does with a command
//!
//! 1. [`alloc_slot`](Qpair::alloc_slot), [`begin`](Qpair::begin); it says what the command needs.
//! 2. [`get_buffer`](Qpair::get_buffer) if data moves either way, before Connect succeeded only when all data of the capsule is here; the host's data goes into [`buffer`](Qpair::buffer) (by
//!    reference) or through [`with_buffer`](Qpair::with_buffer) (by copy).
//! 3. [`execute`](Qpair::execute), or [`fail`](Qpair::fail) if the data did not arrive whole.
//! 4. [`QpairTransport::respond`] comes; [`cqe`](Qpair::cqe) and [`take_data`](Qpair::take_data) are sent; then
//!    [`release`](Qpair::release).
//!
//! A transport may answer `respond` from inside `execute`. When the connection ends, for whatever reason, the transport calls
//! [`shutdown`](Qpair::shutdown) once; after that it is never called again, except for the given continuation.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use longshore_bdev::{IoRef, Submitter};
use longshore_nvme::wire::fabrics::ConnectCmd;
use longshore_nvme::wire::opcode::io::{DATASET_MANAGEMENT, READ, WRITE};
use longshore_nvme::wire::{Cqe, Sqe, Status};
use longshore_reactor::{Account, DmaBuf, Reserve, Timer};

use crate::access::Access;
use crate::address::Address;
use crate::controller::Controller;
use crate::io;
use crate::options::TransportOptions;
use crate::place::Placement;
use crate::poll_group::{ABORT_AGAIN, PollGroup};
use crate::predecessors::GRACE;
use crate::request::{Begin, Kind, Phase, Request};
use crate::share::{Host, Line, OWN_REQUESTS, Want};
use crate::tally::{Tally, Traffic};
use crate::transport::{Disconnect, QpairTransport};
use crate::{admin, connect};

/// Asynchronous event requests that a controller holds.
pub(crate) const MAX_AERS: u16 = 4;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Life {
    /// Only Connect is accepted.
    New,
    /// A Connect is being decided.
    Connecting,
    /// Commands are executed.
    Live,
    /// No command is accepted; those in the core are being ended.
    Closing,
    /// Nothing is left.
    Closed,
}

/// A queue pair.
pub struct Qpair {
    /// Never used again: messages to a queue pair that is gone find nothing.
    pub(crate) serial: u64,
    pub(crate) group: Rc<PollGroup>,
    pub(crate) options: Arc<TransportOptions>,
    transport: RefCell<Option<Rc<dyn QpairTransport>>>,
    /// Whose connection it was, once that has ended.
    former: OnceCell<Address>,
    pub(crate) slots: Box<[RefCell<Request>]>,
    free: RefCell<Vec<u16>>,
    pub(crate) life: Cell<Life>,
    /// A Connect came and has not ended.
    pub(crate) connect: Cell<bool>,
    pub(crate) qid: Cell<u16>,
    /// Entries of the submission queue.
    pub(crate) depth: Cell<u16>,
    sqhd: Cell<u16>,
    pub(crate) flow_control: Cell<bool>,
    /// What the controller may do on this core.
    pub(crate) access: OnceCell<Rc<Access>>,
    /// The controller, if this is its admin queue.
    pub(crate) admin: OnceCell<Rc<Controller>>,
    /// Commands that the core has.
    pub(crate) busy: Cell<u32>,
    pub(crate) fused: Cell<io::fused::Pending>,
    /// Commands that wait for a buffer, and for a request of the block layer.
    pub(crate) lines: [Line; 2],
    /// Requests of the block layer that it has, and how many of them are not its host's share.
    pub(crate) requests: Cell<u32>,
    pub(crate) own: Cell<u32>,
    /// The buffer that this queue pair always has, and who it was promised to.
    pub(crate) reserve: RefCell<Option<(Reserve, Rc<Host>)>>,
    /// Whose it is, once Connect succeeded.
    pub(crate) of_host: OnceCell<Rc<Host>>,
    pub(crate) tally: Tally,
    then: RefCell<Option<Box<dyn FnOnce()>>>,
    /// Why the transport was asked to close the connection, once it was.
    disconnecting: Cell<Option<Disconnect>>,
    /// While the connection ends: aborts again what was between two layers of a device and was found by none.
    aborter: RefCell<Option<Timer>>,
    /// Its host need not wait for its end: what its commands may do to others is kept in mind (`predecessors`).
    pub(crate) given_up: Cell<bool>,
    _place: Placement,
}

impl Qpair {
    /// A queue pair for a connection whose Connect command is `cmd`; that command is still to be handed to `begin`. On the
    /// reactor that `place` names.
    pub fn new(
        group: &Rc<PollGroup>,
        transport: Rc<dyn QpairTransport>,
        options: Arc<TransportOptions>,
        cmd: &ConnectCmd,
        place: Placement,
    ) -> Rc<Qpair> {
        let admin = cmd.qid.get() == 0;
        let most = if admin { options.max_aq_depth as u16 } else { options.max_queue_depth };
        let depth = cmd.sqsize.get().saturating_add(1).clamp(2, most.max(2));
        // Event requests do not end, and the head moves past them: they must not use up the queue's slots.
        let n = if admin { depth.saturating_add(MAX_AERS + 1) } else { depth };
        let qp = Rc::new(Qpair {
            serial: group.target().fresh_id(),
            group: group.clone(),
            options,
            transport: RefCell::new(Some(transport)),
            former: OnceCell::new(),
            slots: (0..n).map(|_| RefCell::new(Request::new())).collect(),
            free: RefCell::new((0..n).rev().collect()),
            life: Cell::new(Life::New),
            connect: Cell::new(false),
            qid: Cell::new(cmd.qid.get()),
            depth: Cell::new(depth),
            sqhd: Cell::new(0),
            flow_control: Cell::new(true),
            access: OnceCell::new(),
            admin: OnceCell::new(),
            busy: Cell::new(0),
            fused: Cell::new(io::fused::Pending::None),
            lines: [Line::new(n), Line::new(n)],
            requests: Cell::new(0),
            own: Cell::new(OWN_REQUESTS),
            reserve: RefCell::new(None),
            of_host: OnceCell::new(),
            tally: Tally::default(),
            then: RefCell::new(None),
            disconnecting: Cell::new(None),
            aborter: RefCell::new(None),
            given_up: Cell::new(false),
            _place: place,
        });
        group.add_qpair(&qp);
        qp
    }

    /// Slots; they are numbered from 0.
    pub fn slots(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Queue identifier; 0 for the admin queue.
    pub fn qid(&self) -> u16 {
        self.qid.get()
    }

    /// True once a Connect succeeded, until the end begins.
    pub fn is_live(&self) -> bool {
        self.life.get() == Life::Live
    }

    /// False if the host disabled submission queue flow control.
    pub fn flow_control(&self) -> bool {
        self.flow_control.get()
    }

    /// Options of the transport.
    pub fn options(&self) -> &Arc<TransportOptions> {
        &self.options
    }

    /// Whose it is.
    #[inline]
    pub(crate) fn host(&self) -> &Rc<Host> {
        self.of_host.get().unwrap_or(&self.group.shares.strangers)
    }

    /// What it has moved, and how often it had to wait.
    pub(crate) fn traffic(&self) -> Traffic {
        let waits = |want: Want| self.lines[want as usize].waits.get();
        self.tally.traffic(waits(Want::Buffer), waits(Want::Request))
    }

    /// A slot for the next command; `None`: stop to receive until one is released.
    #[inline]
    pub fn alloc_slot(&self) -> Option<u16> {
        self.free.borrow_mut().pop()
    }

    /// Takes a command in. `in_capsule` is how many bytes of data its capsule carries.
    ///
    /// Unsupported opcodes, wrong lengths, SGLs and namespaces are refused here, before any state is touched.
    #[inline]
    pub fn begin(self: &Rc<Self>, slot: u16, sqe: &Sqe, in_capsule: u32) -> Begin {
        let head = self.sqhd.get() + 1;
        self.sqhd.set(if head >= self.depth.get() { 0 } else { head });
        let kind = if sqe.opcode == longshore_nvme::wire::opcode::admin::FABRICS {
            Kind::Fabrics
        } else if self.qid.get() == 0 {
            Kind::Admin
        } else {
            Kind::Io
        };
        self.slots[usize::from(slot)].borrow_mut().start(sqe, kind);
        let live = self.life.get() == Life::Live;
        let plan = match kind {
            Kind::Io if live => io::begin(self, slot, sqe, in_capsule),
            Kind::Fabrics => connect::begin(self, slot, sqe, in_capsule),
            Kind::Admin if live => admin::begin(self, slot, sqe, in_capsule),
            _ => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        };
        plan.unwrap_or_else(|status| self.refuse(slot, status))
    }

    #[cold]
    fn refuse(&self, slot: u16, status: Status) -> Begin {
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        r.status = status;
        r.phase = Phase::Done;
        self.failed(&mut r);
        Begin::Respond
    }

    /// Runs a command whose buffer, if it needs one, is in place and filled.
    #[inline]
    pub fn execute(self: &Rc<Self>, slot: u16) {
        let kind = {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            if r.phase != Phase::Begun {
                return; // aborted while its data was on the way
            }
            r.phase = Phase::Executing;
            r.kind
        };
        self.busy.set(self.busy.get() + 1);
        match kind {
            Kind::Io => {
                self.group.reactor().serving();
                io::execute(self, slot);
            }
            Kind::Admin => admin::execute(self, slot),
            Kind::Fabrics => connect::execute(self, slot),
        }
    }

    /// Ends a command whose data did not arrive whole, with `status`.
    pub fn fail(self: &Rc<Self>, slot: u16, status: Status) {
        if self.slots[usize::from(slot)].borrow().phase != Phase::Begun {
            return;
        }
        self.end_begun(slot, status);
    }

    /// Ends a command that the transport has, as if it had been executed.
    pub(crate) fn end_begun(self: &Rc<Self>, slot: u16, status: Status) {
        self.stop_waiting_for_buffer(slot);
        let kind = {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            r.phase = Phase::Executing;
            r.kind
        };
        if kind == Kind::Fabrics {
            self.connect.set(false);
        }
        self.busy.set(self.busy.get() + 1);
        io::fused::half_failed(self, slot);
        self.complete(slot, status);
    }

    /// What its host holds of the core's memory.
    pub fn account(&self) -> Rc<Account> {
        self.host().memory.clone()
    }

    /// Ends a command that the core has: its response goes out.
    #[inline]
    pub(crate) fn complete(&self, slot: u16, status: Status) {
        {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            debug_assert_eq!(r.phase, Phase::Executing, "slot {slot} completed twice");
            r.status = status;
            r.phase = Phase::Done;
            r.io = None;
            if let Some(ns) = r.ns.take() {
                self.group.put_namespace(ns);
            }
            if !status.is_ok() {
                self.failed(&mut r);
            } else if r.kind == Kind::Io {
                match r.sqe.opcode {
                    READ => self.tally.count_read(r.len),
                    WRITE => self.tally.count_write(r.len),
                    _ => {}
                }
            }
        }
        self.group.counters.completed.set(self.group.counters.completed.get() + 1);
        self.busy.set(self.busy.get() - 1);
        if self.life.get() >= Life::Closing {
            return self.drop_slot(slot);
        }
        let t = self.transport.borrow().clone();
        if let Some(t) = t {
            t.respond(slot);
        }
    }

    /// The device did not lend its memory for the read in `slot` after all: it begins again, and brings a buffer.
    #[cold]
    pub(crate) fn need_buffer(self: &Rc<Self>, slot: u16) {
        {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            r.phase = Phase::Begun;
            r.io = None;
            if let Some(ns) = r.ns.take() {
                self.group.put_namespace(ns);
            }
        }
        self.busy.set(self.busy.get() - 1);
        match self.transport() {
            Some(t) if self.life.get() < Life::Closing => t.buffer_needed(slot),
            _ => self.drop_slot(slot),
        }
    }

    #[cold]
    fn drop_slot(&self, slot: u16) {
        if self.given_up.get() {
            self.held_ended(slot);
        }
        self.slots[usize::from(slot)].borrow_mut().clear();
        self.finish_if_idle();
    }

    /// A command ends with an error. Namespace Not Ready passes, whichever layer says it: a host that can waits before it tries again.
    /// Base Specification, "Status Field Definition" (CRD).
    #[cold]
    fn failed(&self, r: &mut Request) {
        let Some(a) = self.access.get() else { return };
        if r.status.is(Status::NAMESPACE_NOT_READY)
            && !r.status.dnr()
            && a.who.waits_to_retry.load(Relaxed)
            && self.group.view().config.crdt[0] != 0
        {
            r.status = r.status.with_crd(1);
        }
        a.errors.record(self.qid.get(), r);
    }

    /// The completion of the command in `slot`, once it responds.
    #[inline]
    pub fn cqe(&self, slot: u16) -> Cqe {
        let r = self.slots[usize::from(slot)].borrow();
        let mut c = Cqe::new(r.sqe.cid.get(), r.status);
        c.dw0 = r.dw0.into();
        c.dw1 = r.dw1.into();
        c.sqhd = if self.flow_control.get() { self.sqhd.get() } else { Cqe::SQHD_NO_FLOW_CONTROL }.into();
        c
    }

    /// Bytes that the command in `slot` moves.
    #[inline]
    pub fn data_len(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].borrow().len
    }

    /// Command identifier of the command in `slot`.
    #[inline]
    pub fn cid(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].borrow().sqe.cid.get()
    }

    /// The data for the host, if the command succeeded and has any: all of it is to be sent.
    #[inline]
    pub fn take_data(&self, slot: u16) -> Option<DmaBuf> {
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        if !r.to_host || !r.status.is_ok() || r.len == 0 {
            return None;
        }
        r.buf.take()
    }

    /// The command's buffer, to receive into. The transport gives its clones up before it calls `execute`.
    #[inline]
    pub fn buffer(&self, slot: u16) -> Option<DmaBuf> {
        self.slots[usize::from(slot)].borrow().buf.clone()
    }

    /// Runs `f` on the bytes of the command's buffer. `None` if it has none, or a clone of it is still held.
    #[inline]
    pub fn with_buffer<T>(&self, slot: u16, f: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        let mut r = self.slots[usize::from(slot)].borrow_mut();
        r.buf.as_mut()?.get_mut().map(f)
    }

    /// The response was queued: the slot may be used again.
    #[inline]
    pub fn release(&self, slot: u16) {
        self.slots[usize::from(slot)].borrow_mut().clear();
        self.free.borrow_mut().push(slot);
    }

    /// Asks the transport to close the connection; once more if the host wanted that itself and now another reason has come, which does
    /// not wait until the host has taken what is left for it.
    pub(crate) fn disconnect(&self, why: Disconnect) {
        if self.life.get() >= Life::Closing {
            return;
        }
        match self.disconnecting.get() {
            None => {}
            Some(Disconnect::Requested) if why != Disconnect::Requested => {}
            Some(_) => return,
        }
        self.disconnecting.set(Some(why));
        let t = self.transport.borrow().clone();
        if let Some(t) = t {
            t.disconnect(why);
        }
    }

    /// The transport, until the end.
    pub(crate) fn transport(&self) -> Option<Rc<dyn QpairTransport>> {
        self.transport.borrow().clone()
    }

    /// The other end of the connection, also after that has ended.
    pub(crate) fn peer(&self) -> Option<Address> {
        self.transport().map(|t| t.peer()).or_else(|| self.former.get().cloned())
    }

    /// The connection ended: aborts what is in the core and calls `then` when nothing is left there, from the poll phase or
    /// from inside this call. Buffers stay untouched until then.
    pub fn shutdown(self: &Rc<Self>, then: impl FnOnce() + 'static) {
        if self.life.get() >= Life::Closing {
            return;
        }
        self.life.set(Life::Closing);
        if let Some(t) = self.transport.take() {
            let _ = self.former.set(t.peer());
        }
        *self.then.borrow_mut() = Some(Box::new(then));
        self.busy.set(self.busy.get() + 1); // not idle before all below ran
        connect::closing(self);
        let starved = self.lines[Want::Request as usize].slots.take();
        self.group.shares.forget(self);
        for slot in starved {
            self.complete(slot, Status::ABORTED_SQ_DELETION);
        }
        io::fused::closing(self);
        self.abort_all();
        for r in &*self.slots {
            let mut r = r.borrow_mut();
            if matches!(r.phase, Phase::Begun | Phase::Done) {
                r.clear();
            }
        }
        self.busy.set(self.busy.get() - 1);
        if self.busy.get() != 0 {
            let (weak, r) = (Rc::downgrade(self), self.group.reactor());
            let (since, grace) = (r.rdtsc(), r.ticks(GRACE));
            let again = r.every(ABORT_AGAIN, move |r| {
                if let Some(q) = weak.upgrade() {
                    q.abort_all();
                    if r.rdtsc().saturating_sub(since) >= grace {
                        q.give_up();
                    }
                }
            });
            *self.aborter.borrow_mut() = Some(again);
        }
        self.finish_if_idle();
    }

    fn abort_all(&self) {
        for slot in 0..self.slots() {
            self.abort_in_device(slot);
        }
    }

    /// Aborts the block layer's request of a command, if it has one.
    pub(crate) fn abort_in_device(&self, slot: u16) -> bool {
        let parts = {
            let mut r = self.slots[usize::from(slot)].borrow_mut();
            let parts = r.kind == Kind::Io && r.sqe.opcode == DATASET_MANAGEMENT && r.phase == Phase::Executing;
            // A command of several parts starts no more of them.
            if parts {
                r.next_part = u16::MAX;
                if r.status.is_ok() {
                    r.status = Status::ABORT_REQUESTED;
                }
            }
            parts
        };
        if parts && self.group.shares.leave(Want::Request, self, slot) {
            // It waited for a request, which others may keep for long, and held its namespace meanwhile.
            self.complete(slot, Status::ABORT_REQUESTED);
            return true;
        }
        let (ns, id) = {
            let r = self.slots[usize::from(slot)].borrow();
            match (&r.ns, r.io) {
                (Some(ns), Some(id)) if r.phase == Phase::Executing => (ns.clone(), id),
                _ => return false,
            }
        };
        let mut found = ns.channel.abort(id);
        if parts {
            // Those that have ended are recognised and passed over.
            let ids = self.slots[usize::from(slot)].borrow().part_ios.clone();
            for other in ids.into_iter().filter(|other| *other != id) {
                found |= ns.channel.abort(other);
            }
        }
        self.group.put_namespace(ns);
        found
    }

    pub(crate) fn finish_if_idle(&self) {
        if self.life.get() != Life::Closing || self.busy.get() != 0 {
            return;
        }
        self.life.set(Life::Closed);
        self.give_promise_back();
        *self.aborter.borrow_mut() = None;
        let then = self.then.borrow_mut().take();
        self.group.qpair_gone(self);
        if let Some(f) = then {
            f();
        }
    }
}

impl Submitter for Qpair {
    #[inline]
    fn io_done(self: Rc<Self>, io: IoRef, tag: u64) {
        io::done(&self, io, tag);
    }
}
