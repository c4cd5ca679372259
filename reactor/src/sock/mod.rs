//! The hot-path connection: one receive and one vectored send in flight, callbacks from the reap phase.
//!
//! - Received bytes are handed to [`SockHandler::on_recv`] by reference into the reactor's receive slices; an idle connection
//!   owns no buffer. Inside a large payload the handler asks for a direct receive into a buffer of its own.
//! - Sent headers are copied ([`Sock::send_bytes`]) and coalesced, payloads are referenced ([`Sock::send_buf`]); what a turn
//!   queued goes out as one vectored send at the end of the turn. Nothing is sent from within `send_*`.
//! - Callbacks may call any method of the connection. [`SockHandler::on_close`] is called exactly once, last, and never from
//!   within another callback or a method; until then the reactor keeps connection and handler alive.
#![allow(unsafe_code)]

mod stable;
mod table;
mod tx;

use crate::clock;
use crate::dma::{Account, DmaBuf};
use crate::engine::{CQE_F_SOCK_NONEMPTY, Completion, OpId, RingOp};
use crate::reactor::Reactor;
use crate::turn::buffer_of;
use stable::Stable;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;
pub use table::SockStats;
pub(crate) use table::SockTable;
use tx::{Copied, RecvArena, Spares, Tx};

/// What the owner of a connection is told. Every call comes from the reap phase of the reactor.
pub trait SockHandler {
    /// `data` arrived; it is valid during this call only.
    fn on_recv(&self, sock: &Sock, data: &[u8]) -> Next;

    /// A direct receive ended: `n` bytes (at most what was asked) are in `buf` at the asked offset, `tail` came after them.
    fn on_direct(&self, sock: &Sock, buf: DmaBuf, n: usize, tail: &[u8]) -> Next;

    /// The bytes queued fell to the low-water mark.
    fn on_sent(&self, _sock: &Sock) {}

    /// The connection is gone; nothing is in flight. `err` is `UnexpectedEof` if the peer closed it, `ConnectionAborted` if
    /// this side did.
    fn on_close(&self, sock: &Sock, err: io::Error);
}

/// What to receive next.
#[derive(Debug)]
pub enum Next {
    /// Whatever comes, into the reactor's receive slices.
    Ring,
    /// Up to `len` bytes into `buf` at `off`, and what follows them into a tail of 4 KiB.
    Direct {
        /// Destination. Nobody may read or write the part being received until [`SockHandler::on_direct`].
        buf: DmaBuf,
        /// Offset in `buf`.
        off: usize,
        /// Bytes wanted, at least 1.
        len: usize,
    },
    /// Nothing, until [`Sock::resume`].
    Pause,
    /// Close once everything queued is sent, as [`Sock::finish`].
    Close,
}

/// No progress in sending for this long closes a connection.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const LOW_WATER: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Sends what is queued, then says end-of-stream and discards what comes, until the peer closes.
    Finishing,
    /// The operations in flight are being cancelled.
    Closing,
    /// The descriptor goes to somebody else once nothing is in flight.
    Leaving,
    Closed,
}

enum Rx {
    Idle,
    Ring(OpId),
    Direct { op: OpId, buf: DmaBuf, len: usize, arena: Stable<RecvArena> },
}

type HandOver = Box<dyn FnOnce(&Reactor, OwnedFd)>;

struct Inner {
    reactor: Reactor,
    fd: RefCell<Option<OwnedFd>>,
    raw: RawFd,
    handler: RefCell<Option<Rc<dyn SockHandler>>>,
    phase: Cell<Phase>,
    error: RefCell<Option<io::Error>>,
    slot: Cell<usize>,
    dirty: Cell<bool>,
    in_rx: Cell<bool>,
    rx: RefCell<Rx>,
    /// What to receive from the next flush on.
    want: RefCell<Option<Next>>,
    /// The socket had nothing left when `want` was set.
    empty: Cell<bool>,
    tx: RefCell<Tx>,
    tx_op: Cell<Option<OpId>>,
    /// The send in flight was cancelled so that lent memory can be given back.
    copy_lent: Cell<bool>,
    /// There was no memory for it.
    uncopied: Cell<bool>,
    /// Who pays for copies of lent memory.
    account: RefCell<Rc<Account>>,
    low_water: Cell<usize>,
    above: Cell<bool>,
    send_timeout: Cell<u64>,
    /// When bytes last went out, or were queued to an empty queue; when finishing, since when it lingers.
    progress: Cell<u64>,
    lingering: Cell<bool>,
    /// What the kernel still holds when the descriptor closes is thrown away.
    abortive: Cell<bool>,
    /// The peer will send no more.
    deaf: Cell<bool>,
    received: Cell<u64>,
    sent: Cell<u64>,
    leave: RefCell<Option<HandOver>>,
}

/// A connection of the hot path. Clones refer to the same connection.
#[derive(Clone)]
pub struct Sock(Rc<Inner>);

impl std::fmt::Debug for Sock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sock").field("fd", &self.0.raw).field("phase", &self.0.phase.get()).finish()
    }
}

impl Sock {
    /// Takes over a connected stream socket. Nothing is received before [`start`](Self::start).
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd, handler: Rc<dyn SockHandler>) -> io::Result<Sock> {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        if reactor.0.engine.uring().is_none() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a simulation has no sockets"));
        }
        // A non-blocking socket would answer EAGAIN where the ring should wait.
        let flags = fcntl_getfl(&fd)?;
        if flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
        }
        // Not TCP: nothing to set.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        let raw = fd.as_raw_fd();
        let inner = Rc::new(Inner {
            reactor: reactor.clone(),
            fd: RefCell::new(Some(fd)),
            raw,
            handler: RefCell::new(Some(handler)),
            phase: Cell::new(Phase::Open),
            error: RefCell::new(None),
            slot: Cell::new(0),
            dirty: Cell::new(false),
            in_rx: Cell::new(false),
            rx: RefCell::new(Rx::Idle),
            want: RefCell::new(None),
            empty: Cell::new(false),
            tx: RefCell::default(),
            tx_op: Cell::new(None),
            copy_lent: Cell::new(false),
            uncopied: Cell::new(false),
            account: RefCell::new(Rc::new(Account::new(usize::MAX))),
            low_water: Cell::new(LOW_WATER),
            above: Cell::new(false),
            send_timeout: Cell::new(clock::ticks(SEND_TIMEOUT)),
            progress: Cell::new(reactor.now()),
            lingering: Cell::new(false),
            abortive: Cell::new(false),
            deaf: Cell::new(false),
            received: Cell::new(0),
            sent: Cell::new(0),
            leave: RefCell::new(None),
        });
        reactor.0.socks.add(&inner);
        Ok(Sock(inner))
    }

    /// Begins to receive.
    pub fn start(&self, next: Next) {
        self.resume(next);
    }

    /// Receives again after [`Next::Pause`]. While a receive is armed, it does nothing.
    pub fn resume(&self, next: Next) {
        if self.0.phase.get() != Phase::Open {
            return;
        }
        if self.0.in_rx.get() {
            *self.0.want.borrow_mut() = Some(next);
        } else if matches!(*self.0.rx.borrow(), Rx::Idle) && self.0.want.borrow().is_none() {
            self.receive_later(next, true);
        }
    }

    /// Receives from the end of the turn on, after what the turn has to send was submitted: the peer can use it sooner, and
    /// will have sent more by then.
    fn receive_later(&self, next: Next, empty: bool) {
        match next {
            Next::Pause => {}
            Next::Close => self.finish(),
            next => {
                self.0.empty.set(empty);
                *self.0.want.borrow_mut() = Some(next);
                self.mark();
            }
        }
    }

    /// Queues a copy of `bytes`.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.queue(|tx, spares| tx.push_bytes(spares, bytes));
    }

    /// Queues what `fill` writes into a buffer of `max` bytes (at most 8 KiB); it returns how much that is.
    pub fn send_with(&self, max: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.queue(|tx, spares| tx.push_with(spares, max, fill));
    }

    /// Queues `buf` by reference; it is released when its last byte was taken by the kernel, or at close.
    pub fn send_buf(&self, buf: DmaBuf) {
        let now = self.0.reactor.now();
        self.queue(|tx, _| tx.push_buf(buf, now));
    }

    #[inline]
    fn queue(&self, f: impl FnOnce(&mut Tx, &mut Spares)) {
        let s = &*self.0;
        if s.phase.get() != Phase::Open {
            return;
        }
        let mut tx = s.tx.borrow_mut();
        if tx.queued() == 0 {
            s.progress.set(s.reactor.now());
        }
        f(&mut tx, &mut s.reactor.0.socks.spares.borrow_mut());
        if tx.queued() > s.low_water.get() {
            s.above.set(true);
        }
        drop(tx);
        self.mark();
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn queued(&self) -> usize {
        self.0.tx.borrow().queued()
    }

    /// (bytes received, bytes sent) so far.
    pub fn traffic(&self) -> (u64, u64) {
        (self.0.received.get(), self.0.sent.get())
    }

    /// Bytes that were ever queued: where in the stream what is queued next begins.
    pub fn written(&self) -> u64 {
        self.0.sent.get() + self.queued() as u64
    }

    /// Bytes that the peer's kernel has acknowledged, of what was queued here. A system call.
    pub fn acknowledged(&self) -> u64 {
        let on_the_way = self.0.fd.borrow().as_ref().map_or(0, crate::net::unacknowledged);
        self.0.sent.get().saturating_sub(on_the_way)
    }

    /// Sets the low-water mark of [`SockHandler::on_sent`]; 256 KiB unless set.
    pub fn set_low_water(&self, bytes: usize) {
        self.0.low_water.set(bytes);
    }

    /// Sets who pays when lent memory ([`DmaPool::adopt`](crate::DmaPool::adopt)) that the peer does not take is copied, so that it can
    /// go back to its owner. If the account may not hold so much and the peer takes nothing for two seconds, or not all of it within the
    /// time of [`set_send_timeout`](Self::set_send_timeout), the connection ends.
    pub fn set_account(&self, account: Rc<Account>) {
        *self.0.account.borrow_mut() = account;
    }

    /// Lets the kernel hold at least `bytes` that arrived: what the peer may have outstanding. See
    /// [`widen_receive_buffer`](crate::net::widen_receive_buffer).
    pub fn widen_receive_buffer(&self, bytes: u32) {
        if let Some(fd) = &*self.0.fd.borrow() {
            // Not TCP: nothing to widen.
            let _ = crate::net::widen_receive_buffer(fd, bytes);
        }
    }

    /// Sets for how long sending may make no progress; [`SEND_TIMEOUT`] unless set.
    pub fn set_send_timeout(&self, d: Duration) {
        self.0.send_timeout.set(clock::ticks(d));
    }

    /// From now on nothing is sent any more once this end is closed, not even what the kernel has taken already and would repeat
    /// for minutes: closing resets the connection (SO_LINGER of zero).
    pub fn set_abortive(&self) {
        self.0.abortive.set(true);
    }

    /// Closes without sending what is queued. What is in flight is cancelled; then comes `on_close`.
    pub fn close(&self) {
        self.fail(io::ErrorKind::ConnectionAborted.into());
    }

    /// Sends what is queued, says end-of-stream, discards what still arrives until the peer closes too (a second at most),
    /// and closes.
    pub fn finish(&self) {
        let s = &*self.0;
        if s.phase.get() != Phase::Open {
            return;
        }
        s.phase.set(Phase::Finishing);
        s.progress.set(s.reactor.now());
        self.set_error(io::ErrorKind::ConnectionAborted.into());
        *s.want.borrow_mut() = None;
        self.mark();
    }

    /// Whether [`close`](Self::close), [`finish`](Self::finish), the peer or an error ended it.
    pub fn is_closed(&self) -> bool {
        self.0.phase.get() != Phase::Open
    }

    /// Gives the descriptor to `f`, for another core or another protocol, once everything queued is sent. No receive may be
    /// armed: call it paused, or from a receive callback that returns [`Next::Pause`]. There is no `on_close`, unless the
    /// connection fails before.
    pub fn hand_over(&self, f: impl FnOnce(&Reactor, OwnedFd) + 'static) {
        let s = &*self.0;
        if s.phase.get() != Phase::Open {
            return;
        }
        debug_assert!(matches!(*s.rx.borrow(), Rx::Idle), "hand_over with a receive armed");
        s.phase.set(Phase::Leaving);
        *s.leave.borrow_mut() = Some(Box::new(f));
        self.mark();
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let fd = self.0.fd.borrow();
        let fd = fd.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(rustix::net::getpeername(fd.as_fd())?.ok_or(io::ErrorKind::NotConnected)?.try_into()?)
    }

    /// This side's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let fd = self.0.fd.borrow();
        let fd = fd.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(rustix::net::getsockname(fd.as_fd())?.try_into()?)
    }

    /// The reactor it lives on.
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    fn set_error(&self, e: io::Error) {
        self.0.error.borrow_mut().get_or_insert(e);
    }

    fn mark(&self) {
        if !self.0.dirty.replace(true) {
            self.0.reactor.0.socks.dirty.borrow_mut().push(self.0.clone());
        }
    }

    fn fail(&self, e: io::Error) {
        let s = &*self.0;
        match s.phase.get() {
            Phase::Closing | Phase::Closed => return,
            Phase::Finishing | Phase::Open | Phase::Leaving => {}
        }
        if s.phase.get() == Phase::Open || !s.lingering.get() {
            self.set_error(e);
        }
        s.phase.set(Phase::Closing);
        if s.abortive.get()
            && let Some(fd) = &*s.fd.borrow()
        {
            let _ = rustix::net::sockopt::set_socket_linger(fd, Some(Duration::ZERO));
        }
        *s.want.borrow_mut() = None;
        match &*s.rx.borrow() {
            Rx::Idle => {}
            Rx::Ring(op) | Rx::Direct { op, .. } => s.reactor.cancel(*op),
        }
        if let Some(op) = s.tx_op.get() {
            s.reactor.cancel(op);
        }
        self.mark();
    }

    fn completion(&self, func: unsafe fn(*mut (), i32, u32)) -> Completion {
        Completion { func, ctx: Rc::into_raw(self.0.clone()).cast_mut().cast() }
    }

    fn arm(&self, next: Next, poll_first: bool) {
        let s = &*self.0;
        match next {
            Next::Ring => {
                let op = RingOp::RecvSelect { fd: s.raw, poll_first };
                // SAFETY: the operation uses no memory of ours but the context, a counted reference that `on_ring` takes.
                let op = unsafe { s.reactor.submit(op, self.completion(on_ring)) };
                *s.rx.borrow_mut() = Rx::Ring(op);
            }
            Next::Direct { buf, off, len } => {
                assert!(
                    len > 0 && off.checked_add(len).is_some_and(|end| end <= buf.len()),
                    "direct receive of {len} bytes at {off} into a buffer of {}",
                    buf.len()
                );
                let arena = s.reactor.0.socks.spares.borrow_mut().recv_arena();
                let msg = arena.aim(buf.as_ptr().wrapping_add(off), len);
                let op = RingOp::RecvMsg { fd: s.raw, msg, poll_first };
                // SAFETY: arena and buffer, which the range is within, are held in `rx` until `on_direct` takes them; the
                // context is counted.
                let op = unsafe { s.reactor.submit(op, self.completion(on_direct)) };
                *s.rx.borrow_mut() = Rx::Direct { op, buf, len, arena };
            }
            Next::Pause | Next::Close => debug_assert!(false, "nothing to arm"),
        }
    }

    fn handler(&self) -> Option<Rc<dyn SockHandler>> {
        self.0.handler.borrow().clone()
    }

    /// Calls a receive callback and notes what it asks for.
    fn received(&self, n: usize, flags: u32, call: impl FnOnce(&dyn SockHandler) -> Next) {
        let s = &*self.0;
        s.received.set(s.received.get() + n as u64);
        let Some(h) = self.handler() else { return };
        s.in_rx.set(true);
        let mut next = call(&*h);
        s.in_rx.set(false);
        let resumed = s.want.borrow_mut().take();
        if s.phase.get() != Phase::Open {
            return;
        }
        if let (Next::Pause, Some(r)) = (&next, resumed) {
            next = r;
        }
        self.receive_later(next, flags & CQE_F_SOCK_NONEMPTY == 0);
    }

    /// A receive ended without bytes. `again` re-arms it where that helps.
    fn rx_ended(&self, res: i32, again: Next) {
        let s = &*self.0;
        match (s.phase.get(), -res) {
            (Phase::Closing | Phase::Closed | Phase::Leaving, _) => self.mark(),
            // The peer has said all it had to say, but may still be listening.
            (Phase::Finishing, 0) => {
                s.deaf.set(true);
                self.mark();
            }
            (_, 0) => {
                self.set_error(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"));
                self.fail(io::ErrorKind::UnexpectedEof.into());
            }
            (_, libc::ENOBUFS) => {
                // All slices are out. They come back before the turn ends: try again then, with more of them (doubled once
                // for all that starved in this batch).
                let table = &s.reactor.0.socks;
                table.starved.set(table.starved.get() + 1);
                if table.grown.replace(s.reactor.now()) != s.reactor.now()
                    && let Some(e) = s.reactor.0.engine.uring()
                {
                    e.rx_grow();
                }
                self.receive_later(again, false);
            }
            (_, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => self.receive_later(again, false),
            (_, e) => self.fail(io::Error::from_raw_os_error(e)),
        }
    }

    fn flush(&self, reactor: &Reactor) {
        let s = &*self.0;
        match s.phase.get() {
            Phase::Closed => {}
            Phase::Closing => self.try_end(reactor),
            Phase::Open => {
                let sends = self.begin_send();
                let want = s.want.borrow_mut().take();
                if let Some(next) = want
                    && matches!(*s.rx.borrow(), Rx::Idle)
                {
                    // While the kernel sends, the peer goes on.
                    self.arm(next, s.empty.get() && !sends);
                }
            }
            Phase::Finishing => {
                self.begin_send();
                if s.tx.borrow().queued() == 0 && !s.lingering.replace(true) {
                    s.progress.set(s.reactor.now());
                    if let Some(fd) = &*s.fd.borrow() {
                        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
                    }
                }
                *s.want.borrow_mut() = None;
                if s.deaf.get() {
                    if s.lingering.get() {
                        self.fail(io::ErrorKind::ConnectionAborted.into());
                    }
                } else if matches!(*s.rx.borrow(), Rx::Idle) {
                    self.arm(Next::Ring, false);
                }
            }
            Phase::Leaving => {
                self.begin_send();
                if s.tx.borrow().queued() == 0 && s.tx_op.get().is_none() && matches!(*s.rx.borrow(), Rx::Idle) {
                    s.phase.set(Phase::Closed);
                    reactor.0.socks.remove(s.slot.get());
                    let (fd, f, h) =
                        (s.fd.borrow_mut().take(), s.leave.borrow_mut().take(), s.handler.borrow_mut().take());
                    if let (Some(fd), Some(f)) = (fd, f) {
                        f(reactor, fd);
                    }
                    drop(h);
                }
            }
        }
    }

    /// Starts to send what is queued, unless a send is in flight. Whether it did.
    fn begin_send(&self) -> bool {
        let s = &*self.0;
        if s.tx_op.get().is_some() {
            return false;
        }
        let msg = s.tx.borrow_mut().begin(&mut s.reactor.0.socks.spares.borrow_mut());
        let Some(msg) = msg else { return false };
        let op = RingOp::SendMsg { fd: s.raw, msg };
        // SAFETY: the queue keeps header, vectors and bytes in place until `on_sent`; the context is counted.
        let op = unsafe { s.reactor.submit(op, self.completion(on_sent)) };
        s.tx_op.set(Some(op));
        true
    }

    fn try_end(&self, reactor: &Reactor) {
        let s = &*self.0;
        if s.tx_op.get().is_some() || !matches!(*s.rx.borrow(), Rx::Idle) {
            return;
        }
        s.phase.set(Phase::Closed);
        s.tx.borrow_mut().clear(&mut reactor.0.socks.spares.borrow_mut());
        let fd = s.fd.borrow_mut().take();
        drop(fd);
        let leave = s.leave.borrow_mut().take();
        drop(leave);
        let handler = s.handler.borrow_mut().take();
        let e = s.error.borrow_mut().take().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
        if let Some(h) = handler {
            h.on_close(self, e);
        }
        reactor.0.socks.remove(s.slot.get());
    }
}

/// # Safety
/// `ctx` is a counted reference to an [`Inner`], which this call takes.
unsafe fn take(ctx: *mut ()) -> Sock {
    // SAFETY: the caller's.
    Sock(unsafe { Rc::from_raw(ctx.cast_const().cast()) })
}

unsafe fn on_ring(ctx: *mut (), res: i32, flags: u32) {
    // SAFETY: made by `completion`, and a single-shot receive completes once.
    let sock = unsafe { take(ctx) };
    let s = &*sock.0;
    *s.rx.borrow_mut() = Rx::Idle;
    let slice = s.reactor.0.engine.uring().zip(buffer_of(flags));
    if res > 0
        && let Some((ring, bid)) = slice
    {
        match s.phase.get() {
            Phase::Open => {
                // SAFETY: the slice belongs to this completion and is returned only after the callback.
                let data = unsafe { ring.rx_slice(bid, res as usize) };
                sock.received(data.len(), flags, |h| h.on_recv(&sock, data));
            }
            _ => sock.mark(),
        }
    } else {
        sock.rx_ended(res, Next::Ring);
    }
    if let Some((ring, bid)) = slice {
        ring.rx_return(bid);
    }
}

unsafe fn on_direct(ctx: *mut (), res: i32, flags: u32) {
    // SAFETY: made by `completion`, and a receive completes once.
    let sock = unsafe { take(ctx) };
    let s = &*sock.0;
    let rx = std::mem::replace(&mut *s.rx.borrow_mut(), Rx::Idle);
    let Rx::Direct { buf, len, arena, .. } = rx else {
        debug_assert!(false, "a direct receive completed that was not armed");
        return;
    };
    if res > 0 && s.phase.get() == Phase::Open {
        let total = res as usize;
        let n = total.min(len);
        let tail = arena.tail(total - n);
        sock.received(total, flags, |h| h.on_direct(&sock, buf, n, tail));
    } else if res > 0 {
        sock.mark();
    } else {
        let off = arena.offset_in(&buf);
        sock.rx_ended(res, Next::Direct { buf, off, len });
    }
    s.reactor.0.socks.spares.borrow_mut().keep_recv(arena);
}

unsafe fn on_sent(ctx: *mut (), res: i32, _flags: u32) {
    // SAFETY: made by `completion`, and a send completes once.
    let sock = unsafe { take(ctx) };
    let s = &*sock.0;
    s.tx_op.set(None);
    let n = res.max(0) as usize;
    s.tx.borrow_mut().sent(&mut s.reactor.0.socks.spares.borrow_mut(), n);
    s.sent.set(s.sent.get() + n as u64);
    if n > 0 {
        s.progress.set(s.reactor.now());
    }
    let cancelled = s.copy_lent.take();
    if cancelled && s.phase.get() != Phase::Closing {
        let budget = &s.reactor.0.socks.copies;
        let end = s.tx.borrow_mut().copy_lent(s.reactor.dma(), &s.account.borrow(), budget);
        s.uncopied.set(end == Copied::NoMemory);
    }
    let queued = s.tx.borrow().queued();
    if queued > 0 || s.phase.get() != Phase::Open {
        sock.mark();
    }
    let again = matches!(-res, libc::EINTR | libc::EAGAIN) || cancelled && res == -libc::ECANCELED;
    if res < 0 && !again && s.phase.get() != Phase::Closing {
        sock.fail(io::Error::from_raw_os_error(-res));
        return;
    }
    if s.phase.get() == Phase::Open
        && s.above.get()
        && queued <= s.low_water.get()
        && let Some(h) = sock.handler()
    {
        s.above.set(false);
        h.on_sent(&sock);
    }
}
