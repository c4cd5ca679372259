//! A queue pair: its connection, and the commands outstanding on it. The receiving half is in `receive`.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use longshore_reactor::sock::{Next, Sock};
use longshore_reactor::{DmaBuf, Reactor, Timer};

use crate::tcp_pdu::{
    ADMIN_IN_CAPSULE, CAPSULE_CMD_MAX, Crc32c, DATA_HEADER_MAX, Data as DataPdu, Encoder, FatalError, IcReq, Params,
    R2t, Role, TERM_REQ_MAX, encode_ic_req,
};
use crate::wire::opcode::admin;
use crate::wire::{Cqe, SglDescriptor, Sqe, Status};

use super::receive::Rx;
use super::slot::{Dir, Slots};

/// Bytes that the kernel may hold for an I/O queue: answers to a deep queue.
const RECEIVE_ROOM: u32 = 1 << 20;

/// A command's memory. The queue pair has it until the command completes; nobody may look at memory that is read into before.
pub enum Data<'a> {
    /// The command has no data.
    None,
    /// The controller's data goes to the whole buffer.
    Read(DmaBuf),
    /// The whole buffer goes to the controller.
    Write(DmaBuf),
    /// As `Read`, to several buffers in order; they are taken out of the vector.
    ReadMany(&'a mut Vec<DmaBuf>),
    /// As `Write`, from several buffers in order; they are taken out of the vector.
    WriteMany(&'a mut Vec<DmaBuf>),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its identifier, which is free again.
    pub cid: u16,
    /// The tag it was submitted with.
    pub tag: u64,
    /// Its status: the controller's, or `ABORTED_BY_HOST` (connection lost), `TRANSIENT_TRANSPORT_ERROR` (data digest),
    /// `DATA_TRANSFER_ERROR` (success with less data than the command has).
    pub status: Status,
    /// Dwords 1 and 0 of the completion.
    pub result: u64,
    /// It took longer than commands of its queue may, and was to be aborted for that.
    pub late: bool,
}

/// Who submits commands and is told of their end.
pub trait Completer: 'static {
    /// A command ended. Called from the reactor, never from within [`Qpair::submit`].
    fn completed(&self, done: &Done);
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// All entries of the queue are in use: try again when a command has completed.
    Full,
    /// The connection is gone, or going.
    Ended,
    /// The data is longer than 4 GiB or no multiple of 4 bytes.
    BadLength,
}

impl Rejected {
    /// The status that says the same.
    pub fn status(self) -> Status {
        match self {
            Rejected::Full => Status::NAMESPACE_NOT_READY,
            Rejected::Ended => Status::HOST_PATHING_ERROR,
            Rejected::BadLength => Status::DATA_SGL_LENGTH_INVALID,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// ICReq is sent, ICResp awaited.
    Opening,
    Open,
    /// The connection is going; commands outstanding end when it is gone.
    Ending,
    Ended,
}

/// What is known of the other end of a connection that is gone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueEnd {
    /// The controller ended it: it knows.
    pub(crate) by_peer: bool,
    /// Commands were sent whose end nobody learnt: the controller may execute them still.
    pub(crate) unanswered: bool,
}

type LateHook = dyn Fn(&Qpair, u16, u8, u8);
type EndHook = dyn FnOnce(&str, QueueEnd);

/// One queue pair, on the reactor that made it.
pub struct Qpair {
    reactor: Reactor,
    pub(crate) qid: u16,
    sock: OnceCell<Sock>,
    pub(crate) request: IcReq,
    pub(crate) rx: RefCell<Rx>,
    pub(crate) slots: RefCell<Slots>,
    pub(crate) state: Cell<State>,
    encoder: Cell<Option<Encoder>>,
    maxh2cdata: Cell<u32>,
    in_capsule: Cell<u32>,
    digest: RefCell<Crc32c>,
    why: RefCell<Option<String>>,
    waiters: RefCell<Vec<Waker>>,
    late: RefCell<Option<Rc<LateHook>>>,
    deadlines: RefCell<Option<Timer>>,
    ended: RefCell<Option<Box<EndHook>>>,
    end: Cell<QueueEnd>,
}

impl std::fmt::Debug for Qpair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qpair").field("qid", &self.qid).field("state", &self.state.get()).finish()
    }
}

impl Qpair {
    /// Takes over a connected socket and sends ICReq. `depth`: commands outstanding at most.
    pub(crate) fn start(reactor: &Reactor, fd: OwnedFd, qid: u16, depth: u16, request: IcReq) -> io::Result<Rc<Qpair>> {
        let q = Rc::new(Qpair {
            reactor: reactor.clone(),
            qid,
            sock: OnceCell::new(),
            request,
            rx: RefCell::new(Rx::new()),
            slots: RefCell::new(Slots::new(depth)),
            state: Cell::new(State::Opening),
            encoder: Cell::new(None),
            maxh2cdata: Cell::new(0),
            in_capsule: Cell::new(ADMIN_IN_CAPSULE),
            digest: RefCell::default(),
            why: RefCell::default(),
            waiters: RefCell::default(),
            late: RefCell::default(),
            deadlines: RefCell::default(),
            ended: RefCell::default(),
            end: Cell::default(),
        });
        let sock = Sock::from_fd(reactor, fd, q.clone())?;
        if qid != 0 {
            // A write that the kernel repeats after its command was given up could overtake the one that was sent again.
            sock.set_abortive();
            sock.widen_receive_buffer(RECEIVE_ROOM);
        }
        // To be told whenever everything queued is sent.
        sock.set_low_water(0);
        sock.send_bytes(&encode_ic_req(&request));
        sock.start(Next::Ring);
        let _ = q.sock.set(sock);
        Ok(q)
    }

    pub(crate) fn sock(&self) -> &Sock {
        self.sock.get().expect("set right after the connection was made")
    }

    /// The reactor it lives on.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Queue identifier; 0: the admin queue.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Commands that may be submitted now.
    pub fn room(&self) -> usize {
        match self.state.get() {
            State::Open => self.slots.borrow().free(),
            _ => 0,
        }
    }

    /// Commands outstanding.
    pub fn outstanding(&self) -> usize {
        self.slots.borrow().busy().count()
    }

    /// Whether commands are taken.
    pub fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    /// Most bytes of data that travel in a command capsule.
    pub fn in_capsule(&self) -> u32 {
        self.in_capsule.get()
    }

    pub(crate) fn set_in_capsule(&self, bytes: u32) {
        self.in_capsule.set(bytes);
    }

    /// ICResp is here.
    pub(crate) fn establish(&self, params: &Params) {
        self.encoder.set(Some(Encoder::new(Role::Host, params)));
        self.maxh2cdata.set(params.maxh2cdata);
        self.state.set(State::Open);
        self.wake();
    }

    /// Ends when ICResp was received; false if the connection ended instead.
    pub(crate) async fn opened(&self) -> bool {
        self.until(|s| s != State::Opening).await;
        self.is_open()
    }

    /// Ends when the connection is gone and every command has completed.
    pub async fn gone(&self) {
        self.until(|s| s == State::Ended).await;
    }

    async fn until(&self, reached: impl Fn(State) -> bool) {
        poll_fn(|cx| {
            if reached(self.state.get()) {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        let all = self.waiters.take();
        all.into_iter().for_each(Waker::wake);
    }

    /// Why the connection ended.
    pub fn why(&self) -> String {
        self.why.borrow().clone().unwrap_or_else(|| "it was closed".into())
    }

    /// Whether the connection is gone because the controller ended it.
    pub(crate) fn ended_by_peer(&self) -> bool {
        self.end.get().by_peer
    }

    fn set_why(&self, why: impl FnOnce() -> String) {
        self.why.borrow_mut().get_or_insert_with(why);
    }

    /// Calls `f` with each command that is outstanding for longer than `limit`, its opcode, and how often it was late.
    pub(crate) fn set_deadline(self: &Rc<Self>, limit: Duration, f: Rc<LateHook>) {
        *self.late.borrow_mut() = Some(f);
        let (me, ticks) = (Rc::downgrade(self), self.reactor.ticks(limit));
        let period = (limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let timer = self.reactor.every(period, move |r| {
            let Some(q) = me.upgrade() else { return };
            let now = r.rdtsc();
            // Each call may end the queue, and each that is found is not found again.
            while let Some((cid, opcode, times)) = q.late_command(now, ticks) {
                let hook = q.late.borrow().clone();
                if let Some(f) = hook {
                    f(&q, cid, opcode, times);
                }
            }
        });
        *self.deadlines.borrow_mut() = Some(timer);
    }

    fn late_command(&self, now: u64, ticks: u64) -> Option<(u16, u8, u8)> {
        if self.state.get() != State::Open {
            return None;
        }
        self.slots.borrow_mut().next_late(now.saturating_sub(ticks), now)
    }

    /// Calls `f` once with the reason when the connection has ended, after the last command completed.
    pub(crate) fn on_end(&self, f: impl FnOnce(&str, QueueEnd) + 'static) {
        *self.ended.borrow_mut() = Some(Box::new(f));
    }

    /// Submits a command; returns its identifier. Command identifier and data pointer of `sqe` are filled in. Its end is told
    /// to `to` with `tag`.
    ///
    /// # Errors
    /// See [`Rejected`]; the data is dropped, `to` is not called.
    #[inline]
    pub fn submit(&self, sqe: &Sqe, data: Data<'_>, to: Rc<dyn Completer>, tag: u64) -> Result<u16, Rejected> {
        let (State::Open, Some(encoder)) = (self.state.get(), self.encoder.get()) else { return Err(Rejected::Ended) };
        let (len, write) = match &data {
            Data::None => (0, false),
            Data::Read(b) => (b.len(), false),
            Data::Write(b) => (b.len(), true),
            Data::ReadMany(v) => (v.iter().map(DmaBuf::len).sum(), false),
            Data::WriteMany(v) => (v.iter().map(DmaBuf::len).sum(), true),
        };
        if !len.is_multiple_of(4) || len > u32::MAX as usize {
            return Err(Rejected::BadLength);
        }
        let len = len as u32;
        let in_capsule = write && len <= self.in_capsule.get();
        let mut slots = self.slots.borrow_mut();
        let Some((cid, slot)) = slots.take() else { return Err(Rejected::Full) };
        slot.to = Some(to);
        slot.tag = tag;
        slot.opcode = sqe.opcode;
        slot.bad = false;
        slot.late = 0;
        slot.len = len;
        slot.moved = 0;
        slot.tx_end = 0;
        // An event may take for ever to happen.
        let patient = self.qid == 0 && sqe.opcode == admin::ASYNC_EVENT_REQUEST;
        slot.stamp = if patient { u64::MAX } else { self.reactor.now() };
        slot.dir = match (len, write) {
            (0, _) => Dir::None,
            (_, false) => Dir::Read,
            _ if in_capsule => Dir::InCapsule,
            _ => Dir::Write,
        };
        match data {
            Data::None => {}
            Data::Read(b) | Data::Write(b) => slot.memory.set(b),
            Data::ReadMany(v) | Data::WriteMany(v) => slot.memory.set_many(v),
        }
        let mut sqe = *sqe;
        sqe.cid = cid.into();
        sqe.dptr =
            if in_capsule && len != 0 { SglDescriptor::in_capsule(0, len) } else { SglDescriptor::transport(len) };
        let sock = self.sock();
        let carried = if slot.dir == Dir::InCapsule { len } else { 0 };
        sock.send_with(CAPSULE_CMD_MAX, |out| encoder.capsule_cmd(&sqe, carried, out));
        if carried != 0 {
            slot.moved = len;
            self.send_data(sock, &encoder, &slot.memory, 0, len);
            slot.tx_end = sock.traffic().1 + sock.queued() as u64;
        }
        Ok(cid)
    }

    /// Queues a part of a command's memory, and its digest.
    #[inline]
    fn send_data(&self, sock: &Sock, encoder: &Encoder, memory: &super::memory::Memory, off: u32, len: u32) {
        if encoder.data_digest() {
            let mut crc = self.digest.borrow_mut();
            memory.each(off as usize, len as usize, |b| {
                crc.update(b.as_slice());
                sock.send_buf(b);
            });
            sock.send_bytes(&crc.finish());
        } else {
            memory.each(off as usize, len as usize, |b| sock.send_buf(b));
        }
    }

    /// The controller asks for data.
    pub(crate) fn ready_to_transfer(&self, r: &R2t) -> Result<(), FatalError> {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.open(r.cccid).filter(|s| s.dir == Dir::Write) else {
            return Err(FatalError::unknown_cccid(r.cccid));
        };
        // The decoder vouches for the sum.
        let end = r.offset + r.length;
        if end > slot.len {
            return Err(FatalError::out_of_range(end));
        }
        if r.offset != slot.moved {
            return Err(FatalError::sequence("R2TO that does not follow the last R2T", r.offset));
        }
        let Some(encoder) = self.encoder.get() else { return Ok(()) };
        let sock = self.sock();
        let mut at = r.offset;
        while at < end {
            let n = (end - at).min(self.maxh2cdata.get());
            let pdu =
                DataPdu { cccid: r.cccid, ttag: r.ttag, offset: at, length: n, last: at + n == end, success: false };
            sock.send_with(DATA_HEADER_MAX, |out| encoder.h2c_data(&pdu, out));
            self.send_data(sock, &encoder, &slot.memory, at, n);
            at += n;
        }
        slot.moved = end;
        slot.tx_end = sock.traffic().1 + sock.queued() as u64;
        Ok(())
    }

    /// The controller's answer to a command, in a capsule or with the last data.
    #[inline]
    pub(crate) fn answered(&self, cqe: &Cqe) -> Result<(), FatalError> {
        let cid = cqe.cid.get();
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.open(cid) else {
            // Byte 12 of the entry, which begins at byte 8 of the capsule.
            return Err(FatalError::field(20, "CID of a response to no command, ", cid.into()));
        };
        let mut answer = *cqe;
        if cqe.status().is_ok() {
            let status = if slot.bad {
                Status::TRANSIENT_TRANSPORT_ERROR
            } else if slot.moved != slot.len {
                Status::DATA_TRANSFER_ERROR
            } else {
                Status::SUCCESS
            };
            if status.is_err() {
                answer = Cqe::new(cid, status);
            }
        }
        if slot.tx_end > self.sock().traffic().1 {
            slot.answer = answer;
            slot.answered = true;
            slots.waiting.push(cid);
            return Ok(());
        }
        drop(slots);
        self.complete(&answer);
        Ok(())
    }

    /// Frees the slot and tells whoever submitted the command.
    #[inline]
    fn complete(&self, cqe: &Cqe) {
        let cid = cqe.cid.get();
        let freed = self.slots.borrow_mut().release(cid);
        if let Some((to, tag, late)) = freed {
            to.completed(&Done { cid, tag, status: cqe.status(), result: cqe.result(), late });
        }
    }

    /// Completes answered commands whose memory was sent meanwhile.
    #[inline]
    pub(crate) fn complete_waiting(&self) {
        if !self.slots.borrow().waiting.is_empty() {
            self.complete_waiting_slowly();
        }
    }

    #[cold]
    fn complete_waiting_slowly(&self) {
        let sent = self.sock().traffic().1;
        loop {
            let next = {
                let mut s = self.slots.borrow_mut();
                let ready = |&cid: &u16| s.get(cid).is_some_and(|x| x.tx_end <= sent);
                let Some(i) = s.waiting.iter().position(ready) else { return };
                let cid = s.waiting.remove(i);
                s.get(cid).map(|x| x.answer)
            };
            if let Some(cqe) = next {
                self.complete(&cqe);
            }
        }
    }

    /// Ends the connection at once. Commands outstanding complete with `ABORTED_BY_HOST` when it is gone.
    pub fn close(&self, why: impl Into<String>) {
        if self.leave(why) {
            self.sock().close();
        }
    }

    /// Ends the connection when everything queued is sent.
    pub fn finish(&self, why: impl Into<String>) {
        if self.leave(why) {
            self.sock().finish();
        }
    }

    /// As [`close`](Self::close), then waits until it is gone.
    pub async fn shut(&self, why: impl Into<String>) {
        self.close(why);
        self.gone().await;
    }

    fn leave(&self, why: impl Into<String>) -> bool {
        if !matches!(self.state.get(), State::Opening | State::Open) {
            return false;
        }
        self.set_why(|| why.into());
        self.state.set(State::Ending);
        true
    }

    /// The peer broke the protocol: tell it and leave.
    #[cold]
    pub(crate) fn fatal(&self, rx: &Rx, e: &FatalError) {
        if !self.leave(format!("the controller broke the protocol: {e}")) {
            return;
        }
        let mut out = [0; TERM_REQ_MAX];
        if let Some(pdu) = rx.decoder.term_req(e, &mut out) {
            self.sock().send_bytes(pdu);
        }
        self.sock().finish();
    }

    /// The connection is gone; nothing refers to any command's memory any more.
    #[cold]
    pub(crate) fn closed(&self, err: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        // RST is taken for the controller's as FIN is, although it proves less: something on the way that forgot the connection
        // sends it too, while the controller still has, and executes, what it received. But a killed target sends it just as often
        // (what the host sends into a socket that is being closed turns its FIN into RST), and waiting for a keep-alive timeout and
        // its unit then, 20 s with the defaults, outlasts usual loss timeouts.
        let by_peer = matches!(self.state.get(), State::Opening | State::Open)
            && matches!(err.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
        self.set_why(|| err.to_string());
        self.state.set(State::Ended);
        let timer = self.deadlines.take();
        drop(timer);
        let mut busy: Vec<u16> = self.slots.borrow().busy().collect();
        self.slots.borrow_mut().waiting.clear();
        let unanswered = busy.iter().any(|&c| self.slots.borrow().get(c).is_some_and(|s| !s.answered));
        self.end.set(QueueEnd { by_peer, unanswered });
        // In the order of submission as far as it is known.
        busy.sort_by_key(|&c| self.slots.borrow().get(c).map_or(0, |s| s.stamp));
        for cid in busy {
            // One that was answered has its answer.
            let answer = self.slots.borrow().get(cid).filter(|s| s.answered).map(|s| s.answer);
            self.complete(&answer.unwrap_or_else(|| Cqe::new(cid, Status::ABORTED_BY_HOST)));
        }
        self.late.take();
        let hook = self.ended.take();
        if let Some(f) = hook {
            f(&self.why(), self.end.get());
        }
        self.wake();
    }
}
