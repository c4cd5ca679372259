//! Listening and connecting.
#![allow(unsafe_code)]

use crate::engine::{CQE_F_MORE, Completion, OpId, RingOp};
use crate::op;
use crate::reactor::{Reactor, Timer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// How long accepting pauses when descriptors run out.
const EMFILE_PAUSE: Duration = Duration::from_millis(100);

type Accepted = dyn Fn(&Reactor, OwnedFd, SocketAddr);

struct Listening {
    reactor: Reactor,
    fd: OwnedFd,
    local: SocketAddr,
    accepted: RefCell<Option<Rc<Accepted>>>,
    op: Cell<Option<OpId>>,
    retry: RefCell<Option<Timer>>,
    starved: Cell<bool>,
}

/// A listening socket; dropping it stops accepting and closes it.
pub struct TcpListener(Rc<Listening>);

impl TcpListener {
    /// Listens on `addr` (port 0: any) and calls `accepted` for each connection, from the reap phase. When descriptors run
    /// out, accepting pauses for 100 ms at a time, logged once per shortage.
    pub fn bind(
        reactor: &Reactor,
        addr: SocketAddr,
        backlog: i32,
        accepted: impl Fn(&Reactor, OwnedFd, SocketAddr) + 'static,
    ) -> io::Result<TcpListener> {
        let fd = socket(addr)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if addr.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        rustix::net::bind(&fd, &addr)?;
        rustix::net::listen(&fd, backlog)?;
        let local = rustix::net::getsockname(&fd)?.try_into()?;
        let inner = Rc::new(Listening {
            reactor: reactor.clone(),
            fd,
            local,
            accepted: RefCell::new(Some(Rc::new(accepted))),
            op: Cell::new(None),
            retry: RefCell::new(None),
            starved: Cell::new(false),
        });
        inner.arm();
        Ok(TcpListener(inner))
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let cb = self.0.accepted.borrow_mut().take();
        drop(cb);
        let retry = self.0.retry.borrow_mut().take();
        drop(retry);
        if let Some(op) = self.0.op.take() {
            self.0.reactor.cancel(op);
        }
        // No connection is accepted from here on, even though the descriptor lives until the cancel was reaped.
        let _ = rustix::net::shutdown(&self.0.fd, rustix::net::Shutdown::Both);
    }
}

impl Listening {
    fn arm(self: &Rc<Self>) {
        let done = Completion { func: on_accept, ctx: Rc::into_raw(self.clone()).cast_mut().cast() };
        // SAFETY: the context is a counted reference, kept until the completion without F_MORE.
        let id = unsafe { self.reactor.submit(RingOp::AcceptMulti { fd: self.fd.as_raw_fd() }, done) };
        self.op.set(Some(id));
    }

    fn failed(self: &Rc<Self>, errno: i32) {
        let shortage = matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM);
        if shortage && !self.starved.replace(true) {
            tracing::warn!(
                "accepting on {} pauses: {} (raise the limit of open files, `ulimit -n`)",
                self.local,
                io::Error::from_raw_os_error(errno)
            );
        }
    }
}

unsafe fn on_accept(ctx: *mut (), res: i32, flags: u32) {
    // SAFETY: `arm` leaked a reference for the whole multishot operation: borrowed while more follow, taken at the end.
    let l = unsafe {
        if flags & CQE_F_MORE != 0 {
            Rc::increment_strong_count(ctx.cast_const().cast::<Listening>());
        }
        Rc::from_raw(ctx.cast_const().cast::<Listening>())
    };
    let over = flags & CQE_F_MORE == 0;
    if over {
        l.op.set(None);
    }
    let accepted = l.accepted.borrow().clone();
    if res >= 0 {
        // SAFETY: a descriptor the kernel just made for us.
        let fd = unsafe { OwnedFd::from_raw_fd(res) };
        l.starved.set(false);
        // The peer may be gone already: then there is no connection to report.
        let peer = rustix::net::getpeername(&fd).ok().flatten().and_then(|a| SocketAddr::try_from(a).ok());
        if let (Some(f), Some(peer)) = (&accepted, peer) {
            f(&l.reactor, fd, peer);
        }
    } else {
        l.failed(-res);
    }
    if over && l.accepted.borrow().is_some() {
        if res >= 0 || -res == libc::ECONNABORTED || -res == libc::EINTR {
            l.arm();
        } else {
            let again = Rc::downgrade(&l);
            let timer = l.reactor.timer(EMFILE_PAUSE, move |_| {
                if let Some(l) = again.upgrade() {
                    let fired = l.retry.borrow_mut().take();
                    drop(fired);
                    if l.accepted.borrow().is_some() && l.op.get().is_none() {
                        l.arm();
                    }
                }
            });
            *l.retry.borrow_mut() = Some(timer);
        }
    }
}

fn socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sets `SO_PRIORITY`.
pub fn set_priority(fd: impl AsFd, priority: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(priority).map_err(|_| io::ErrorKind::InvalidInput)?;
    set_option(fd, libc::SO_PRIORITY, value)
}

/// Lets the kernel hold at least `bytes` that arrived (up to half of the third value of `net.ipv4.tcp_rmem`), and tell the peer so. It grows the
/// buffer by itself where much is received at a time, but settles below what is outstanding where that is many small pieces; then
/// the peer waits for space. Unlike `SO_RCVBUF`, this leaves it free to grow the buffer further, and has no effect
/// on one whose size was set.
pub fn widen_receive_buffer(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // To wait for so much, the kernel makes room for it, and keeps the room.
    set_option(&fd, libc::SO_RCVLOWAT, value)?;
    set_option(&fd, libc::SO_RCVLOWAT, 1)
}

/// Bytes that were given to a stream socket and that its peer has not acknowledged; 0 where the kernel does not say.
pub(crate) fn unacknowledged(fd: impl AsFd) -> u64 {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes an int to `n`.
    let res = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut n) };
    if res == 0 { u64::try_from(n).unwrap_or(0) } else { 0 }
}

/// Sets an option of `SOL_SOCKET` that is an int.
fn set_option(fd: impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `value`, which is that large.
    let res = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(&value).cast(), len)
    };
    if res == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A C socket address, large enough for both families.
#[repr(C)]
union CAddr {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

fn c_addr(addr: SocketAddr) -> (CAddr, libc::socklen_t) {
    match addr {
        SocketAddr::V4(a) => (v4(a), size_of::<libc::sockaddr_in>() as u32),
        SocketAddr::V6(a) => (v6(a), size_of::<libc::sockaddr_in6>() as u32),
    }
}

fn v4(a: SocketAddrV4) -> CAddr {
    CAddr {
        v4: libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: a.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
            sin_zero: [0; 8],
        },
    }
}

fn v6(a: SocketAddrV6) -> CAddr {
    CAddr {
        v6: libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as u16,
            sin6_port: a.port().to_be(),
            sin6_flowinfo: a.flowinfo(),
            sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
            sin6_scope_id: a.scope_id(),
        },
    }
}

/// Connects to `addr`, giving up after `timeout`. The descriptor is for [`Sock::from_fd`](crate::sock::Sock::from_fd).
pub async fn connect(reactor: &Reactor, addr: SocketAddr, timeout: Duration) -> io::Result<OwnedFd> {
    connect_from(reactor, addr, None, timeout).await
}

/// As [`connect`], from the local address `source`.
pub async fn connect_from(
    reactor: &Reactor,
    addr: SocketAddr,
    source: Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<OwnedFd> {
    let fd = socket(addr)?;
    if let Some(s) = source {
        rustix::net::bind(&fd, &s)?;
    }
    let (c, len) = c_addr(addr);
    let make = |p: &mut (OwnedFd, Box<CAddr>)| RingOp::Connect {
        fd: p.0.as_raw_fd(),
        addr: std::ptr::from_ref::<CAddr>(&p.1).cast(),
        len,
    };
    // SAFETY: the address is boxed in the payload, which also owns the socket.
    let op = unsafe { op::start(reactor, (fd, Box::new(c)), make) };
    let id = op.id;
    let timed_out = Rc::new(Cell::new(false));
    let flag = timed_out.clone();
    let timer = reactor.timer(timeout, move |r| {
        flag.set(true);
        r.cancel(id);
    });
    let (res, (fd, _)) = op.wait().await;
    drop(timer);
    match res {
        0 => Ok(fd),
        _ if timed_out.get() => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no connection to {addr} within {} ms", timeout.as_millis()),
        )),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}
