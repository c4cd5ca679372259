//! A connection until its Connect command is here: ICReq is answered, Connect is looked at for its queue, and then the
//! descriptor moves to the core that will own the queue, together with the bytes of Connect, which are decoded again there.
//!
//! A half-open connection costs a descriptor, a few hundred bytes and a timer, whatever the peer does.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use longshore_nvme::tcp_pdu::{
    ADMIN_IN_CAPSULE, Decoder, Event, FatalError, IcResp, Params, Pdu, Role, TERM_REQ_MAX, encode_ic_resp,
};
use longshore_nvme::wire::fabrics::{ConnectCmd, ConnectData};
use longshore_nvme::wire::{Sqe, opcode};
use longshore_reactor::sock::{Next, Sock, SockHandler};
use longshore_reactor::{DmaBuf, Reactor, Timer, ticks};

use zerocopy::{FromZeros, IntoBytes};

use crate::options::TcpOptions;

/// A connection on its way from the acceptor to the core of its queue.
pub(crate) struct Greeted {
    pub(crate) fd: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) params: Params,
    /// What was received after ICReq: the first command.
    pub(crate) bytes: Vec<u8>,
    /// The first command, which says where the connection belongs. All zeroes where it is not Connect: it will be refused.
    pub(crate) connect: ConnectCmd,
    pub(crate) data: Box<ConnectData>,
}

/// Where greeted connections go, and what they leave behind.
pub(crate) trait Reception {
    fn greeted(&self, reactor: &Reactor, conn: Greeted);
    /// The greeter `id` is through, whether it succeeded or not.
    fn gone(&self, id: u64);
}

pub(crate) struct Greeter {
    id: u64,
    peer: SocketAddr,
    offer: IcResp,
    accepted_at: u64,
    connect_timeout: u64,
    reception: Rc<dyn Reception>,
    sock: RefCell<Option<Sock>>,
    timer: RefCell<Option<Timer>>,
    read: RefCell<Reading>,
    params: Cell<Option<Params>>,
}

struct Reading {
    decoder: Decoder,
    kept: Vec<u8>,
    first: Option<Sqe>,
    payload: Vec<u8>,
}

/// What the bytes so far amount to.
enum Outcome {
    More,
    /// The first command is complete.
    Ready,
    Fatal(FatalError),
    /// The peer gave up.
    Terminated,
}

impl Greeter {
    /// Takes over an accepted connection.
    pub(crate) fn start(
        reactor: &Reactor,
        id: u64,
        fd: OwnedFd,
        peer: SocketAddr,
        options: &TcpOptions,
        maxh2cdata: u32,
        reception: Rc<dyn Reception>,
    ) -> io::Result<Rc<Greeter>> {
        let offer = IcResp { cpda: options.cpda, hdgst: true, ddgst: true, maxh2cdata };
        let g = Rc::new(Greeter {
            id,
            peer,
            offer,
            accepted_at: reactor.now(),
            connect_timeout: ticks(options.connect_timeout),
            reception,
            sock: RefCell::new(None),
            timer: RefCell::new(None),
            read: RefCell::new(Reading {
                decoder: Decoder::new(Role::Target, ADMIN_IN_CAPSULE),
                kept: Vec::new(),
                first: None,
                payload: Vec::new(),
            }),
            params: Cell::new(None),
        });
        let weak = Rc::downgrade(&g);
        *g.timer.borrow_mut() = Some(reactor.timer(options.icreq_timeout, move |r| expired(&weak, r)));
        let sock = Sock::from_fd(reactor, fd, g.clone())?;
        *g.sock.borrow_mut() = Some(sock.clone());
        sock.start(Next::Ring);
        Ok(g)
    }

    /// Ends it without a word, as at shutdown.
    pub(crate) fn close(&self) {
        if let Some(s) = &*self.sock.borrow() {
            s.close();
        }
    }

    fn through(&self) {
        let timer = self.timer.borrow_mut().take();
        drop(timer);
        let sock = self.sock.borrow_mut().take();
        drop(sock);
        self.reception.gone(self.id);
    }

    fn read(&self, sock: &Sock, mut data: &[u8]) -> Outcome {
        let read = &mut *self.read.borrow_mut();
        while !data.is_empty() {
            let before = data;
            let event = match read.decoder.decode(&mut data) {
                Ok(e) => e,
                Err(e) => return Outcome::Fatal(e),
            };
            if self.params.get().is_some() {
                read.kept.extend_from_slice(&before[..before.len() - data.len()]);
            }
            let complete = match event {
                None => break,
                Some(Event::Header(Pdu::IcReq(req))) => {
                    let (params, resp) = Params::accept(&req, &self.offer);
                    read.decoder.establish(&params);
                    self.params.set(Some(params));
                    sock.send_bytes(&encode_ic_resp(&resp));
                    self.await_connect(sock.reactor());
                    false
                }
                Some(Event::Header(Pdu::CapsuleCmd(c))) => {
                    read.first = Some(c.sqe);
                    c.data_len == 0
                }
                Some(Event::Header(Pdu::TermReq(_))) => return Outcome::Terminated,
                Some(Event::Header(p)) => return Outcome::Fatal(unexpected(&p)),
                Some(Event::Payload { bytes, .. }) => {
                    read.payload.extend_from_slice(bytes);
                    false
                }
                Some(Event::End { .. }) => true,
            };
            if complete {
                // A host waits for the answer to Connect before it sends anything else, but what it sent is not lost.
                read.kept.extend_from_slice(data);
                return Outcome::Ready;
            }
        }
        if read.first.is_none() || read.decoder.payload_pending() > 0 {
            return Outcome::More;
        }
        // `End` comes without further bytes where data has no digest.
        match read.decoder.decode(&mut &[][..]) {
            Ok(Some(Event::End { .. })) => Outcome::Ready,
            Ok(_) => Outcome::More,
            Err(e) => Outcome::Fatal(e),
        }
    }

    /// What the reception needs to know, once the first command is complete.
    fn result(&self) -> (Vec<u8>, ConnectCmd, Box<ConnectData>) {
        let read = &mut *self.read.borrow_mut();
        let sqe = read.first.unwrap_or_default();
        let is_connect = sqe.opcode == opcode::admin::FABRICS && sqe.fctype() == opcode::fabrics::CONNECT;
        let connect = *ConnectCmd::of(&if is_connect { sqe } else { Sqe::default() });
        let mut data = Box::new(ConnectData::new_zeroed());
        if let Some(bytes) = read.payload.get(..size_of::<ConnectData>()) {
            data.as_mut_bytes().copy_from_slice(bytes);
        }
        (std::mem::take(&mut read.kept), connect, data)
    }

    /// From here on the time for Connect runs, counted from the acceptance.
    fn await_connect(&self, reactor: &Reactor) {
        let spent = reactor.now().saturating_sub(self.accepted_at);
        let left = longshore_reactor::nanos(self.connect_timeout.saturating_sub(spent));
        if let Some(t) = &*self.timer.borrow() {
            t.reset(std::time::Duration::from_nanos(left));
        }
    }
}

fn unexpected(p: &Pdu) -> FatalError {
    match p {
        Pdu::H2cData(d) => FatalError::unknown_ttag(d.ttag),
        _ => FatalError::sequence("PDU before the first command", 0),
    }
}

fn expired(greeter: &Weak<Greeter>, _: &Reactor) {
    let Some(g) = greeter.upgrade() else { return };
    tracing::debug!("{}: no {} in time, closing", g.peer, if g.params.get().is_some() { "Connect" } else { "ICReq" });
    g.close();
}

impl SockHandler for Greeter {
    fn on_recv(&self, sock: &Sock, data: &[u8]) -> Next {
        match self.read(sock, data) {
            Outcome::More => Next::Ring,
            Outcome::Terminated => Next::Close,
            Outcome::Fatal(e) => {
                tracing::debug!("{}: {e}", self.peer);
                let mut out = [0; TERM_REQ_MAX];
                if let Some(pdu) = self.read.borrow().decoder.term_req(&e, &mut out) {
                    sock.send_bytes(pdu);
                }
                Next::Close
            }
            Outcome::Ready => {
                let Some(params) = self.params.get() else { return Next::Close };
                let (bytes, connect, data) = self.result();
                let (peer, reception) = (self.peer, self.reception.clone());
                sock.hand_over(move |r, fd| {
                    reception.greeted(r, Greeted { fd, peer, params, bytes, connect, data });
                });
                self.through();
                Next::Pause
            }
        }
    }

    fn on_direct(&self, _: &Sock, _: DmaBuf, _: usize, _: &[u8]) -> Next {
        Next::Close
    }

    fn on_close(&self, _: &Sock, err: io::Error) {
        tracing::trace!("{}: closed before Connect: {err}", self.peer);
        self.through();
    }
}
