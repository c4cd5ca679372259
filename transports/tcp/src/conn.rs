//! One connection: the wire of a queue pair. Its life, and what goes out.
//!
//! It begins on its core with the bytes of its Connect command, ends when its socket is gone, whoever closed it, and is
//! forgotten when the queue pair has nothing in flight any more: only then are buffers freed.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::tcp_pdu::{
    ADMIN_IN_CAPSULE, CAPSULE_RESP_MAX, Crc32c, DATA_HEADER_MAX, Data, Decoder, Encoder, FatalError, R2T_MAX, R2t,
    Role, TERM_REQ_MAX,
};
use longshore_nvme::wire::Cqe;
use longshore_nvmf::{Address, Disconnect, Placement, PollGroup, Qpair, QpairTransport, TransportOptions};
use longshore_reactor::sock::Sock;
use longshore_reactor::ticks;

use crate::core::{Birth, TcpCore};
use crate::greeter::Greeted;
use crate::receive::{Rx, Then};
use crate::slot::{Phase, Slots};

/// Nothing is received while more than this many bytes are queued to be sent.
pub(crate) const SEND_HIGH: usize = 1 << 20;

/// Bytes that the kernel may hold for an I/O queue: what a deep queue sends in capsules at once.
const RECEIVE_ROOM: u32 = 1 << 20;

/// So long the data that the R2T of a Connect asked for may take: it has a buffer out of what all strangers share.
const STRANGER_DATA: Duration = Duration::from_secs(2);

/// Why nothing is received at present: bits.
pub(crate) mod halt {
    /// Every slot is taken: the host sent more commands than the queue has entries.
    pub(crate) const NO_SLOT: u8 = 1;
    /// The host does not take what is sent to it.
    pub(crate) const SEND_FULL: u8 = 4;
    /// The connection ends.
    pub(crate) const ENDED: u8 = 8;
}

pub(crate) struct Conn {
    me: Weak<Conn>,
    pub(crate) core: Rc<TcpCore>,
    pub(crate) key: Cell<usize>,
    sock: OnceCell<Sock>,
    qp: OnceCell<Rc<Qpair>>,
    pub(crate) slots: RefCell<Slots>,
    pub(crate) rx: RefCell<Rx>,
    pub(crate) halted: Cell<u8>,
    pub(crate) scheduled: Cell<bool>,
    /// Data of the PDU that is arriving could not be stored.
    pub(crate) spoilt: Cell<bool>,
    /// Connect succeeded.
    pub(crate) live: Cell<bool>,
    /// Bytes of data that a capsule may carry, once Connect succeeded; 0 when the decoder knows.
    pub(crate) in_capsule: Cell<u32>,
    encoder: Encoder,
    crc: RefCell<Crc32c>,
    transport: Arc<TransportOptions>,
    stall_ticks: u64,
    stranger_ticks: u64,
    /// Connect must have succeeded by then.
    live_by: u64,
    /// Bytes that the host had acknowledged when that was last looked at.
    taken: Cell<u64>,
    /// How long nothing was received because the host did not take enough, but for the time since `deaf_since`, if that is now so.
    deaf: Cell<u64>,
    deaf_since: Cell<u64>,
    listener: Address,
    pub(crate) peer: SocketAddr,
}

impl Conn {
    pub(crate) fn start(
        core: Rc<TcpCore>,
        group: &Rc<PollGroup>,
        birth: Birth,
        place: Placement,
        greeted: Greeted,
    ) -> io::Result<()> {
        let mut decoder = Decoder::new(Role::Target, ADMIN_IN_CAPSULE);
        decoder.establish(&greeted.params);
        let reactor = core.reactor().clone();
        let conn = Rc::new_cyclic(|me| Conn {
            me: me.clone(),
            core,
            key: Cell::new(0),
            sock: OnceCell::new(),
            qp: OnceCell::new(),
            slots: RefCell::new(Slots::new(0)),
            rx: RefCell::new(Rx::new(decoder)),
            halted: Cell::new(0),
            scheduled: Cell::new(true),
            spoilt: Cell::new(false),
            live: Cell::new(false),
            in_capsule: Cell::new(0),
            encoder: Encoder::new(Role::Target, &greeted.params),
            crc: RefCell::default(),
            transport: birth.transport,
            stall_ticks: ticks(birth.options.stall_timeout),
            stranger_ticks: ticks(STRANGER_DATA.min(birth.options.stall_timeout)),
            live_by: reactor.now() + ticks(birth.options.connect_timeout),
            taken: Cell::new(0),
            deaf: Cell::new(0),
            deaf_since: Cell::new(0),
            listener: birth.listener,
            peer: greeted.peer,
        });
        let sock = Sock::from_fd(&reactor, greeted.fd, conn.clone())?;
        sock.set_send_timeout(birth.options.stall_timeout);
        let _ = conn.sock.set(sock);
        let qp = Qpair::new(group, conn.clone(), conn.transport.clone(), &greeted.connect, place);
        *conn.slots.borrow_mut() = Slots::new(qp.slots());
        let _ = conn.qp.set(qp);
        conn.core.add(&conn);
        conn.rx.borrow_mut().keep(greeted.bytes);
        conn.go_on();
        Ok(())
    }

    pub(crate) fn qp(&self) -> &Rc<Qpair> {
        self.qp.get().expect("set before the first byte is taken")
    }

    pub(crate) fn sock(&self) -> &Sock {
        self.sock.get().expect("set before the first byte is taken")
    }

    pub(crate) fn halt(&self, why: u8) {
        if why & !self.halted.get() & halt::SEND_FULL != 0 {
            self.deaf_since.set(self.core.reactor().now());
        }
        self.halted.set(self.halted.get() | why);
    }

    /// A reason not to receive is gone.
    pub(crate) fn unhalt(&self, why: u8) {
        if self.halted.get() & why == 0 {
            return;
        }
        if why & halt::SEND_FULL != 0 {
            let deaf = self.core.reactor().now().saturating_sub(self.deaf_since.get());
            self.deaf.set(self.deaf.get() + deaf);
        }
        self.halted.set(self.halted.get() & !why);
        if self.halted.get() == 0
            && !self.scheduled.get()
            && let Some(me) = self.me.upgrade()
        {
            self.scheduled.set(true);
            self.core.schedule(me);
        }
    }

    /// The time by which data is awaited: it stands while the target itself receives nothing. `now` is the reactor's.
    #[inline]
    pub(crate) fn clock(&self, now: u64) -> u64 {
        let deaf = match self.halted.get() & halt::SEND_FULL {
            0 => 0,
            _ => now.saturating_sub(self.deaf_since.get()),
        };
        now.saturating_sub(self.deaf.get() + deaf)
    }

    /// Asks for the data of the command in `slot`, which has its buffer.
    pub(crate) fn request_data(&self, slot: u16) {
        let mut slots = self.slots.borrow_mut();
        slots.set_phase(slot, Phase::Data);
        let Some(s) = slots.get(slot) else { return };
        // One R2T covers the whole command, so that MAXR2T, which allows at least one, is kept whatever it is.
        let r2t = R2t { cccid: s.cid, ttag: slot, offset: 0, length: s.len };
        self.sock().send_with(R2T_MAX, |out| self.encoder.r2t(&r2t, out));
        (s.stamp, s.r2t_end) = (self.clock(self.core.reactor().now()), self.sock().written());
    }

    /// Sends the response of `slot`, with its data if it has any, and frees the slot.
    #[inline]
    pub(crate) fn answer(&self, slot: u16) {
        let qp = self.qp();
        let data = qp.take_data(slot);
        let cqe = qp.cqe(slot);
        let mut implied = false;
        if let Some(buf) = data {
            implied = self.may_imply(&cqe);
            let header = Data {
                cccid: cqe.cid.get(),
                offset: 0,
                length: buf.len() as u32,
                last: true,
                success: implied,
                ..Data::default()
            };
            let sock = self.sock();
            sock.send_with(DATA_HEADER_MAX, |out| self.encoder.c2h_data(&header, out));
            if self.encoder.data_digest() {
                let crc = &mut *self.crc.borrow_mut();
                crc.update(buf.as_slice());
                let digest = crc.finish();
                sock.send_buf(buf);
                sock.send_bytes(&digest);
            } else {
                sock.send_buf(buf);
            }
        }
        if !implied {
            self.sock().send_with(CAPSULE_RESP_MAX, |out| self.encoder.capsule_resp(&cqe, out));
        }
        // Late data for it must find no command, least of all the next one in this slot.
        let whole = self.slots.borrow_mut().ended(slot);
        debug_assert!(whole, "slot {slot} is answered while its data is on the way");
        qp.release(slot);
        if !self.live.get() {
            self.went_live();
        }
        self.unhalt(halt::NO_SLOT);
    }

    /// The SUCCESS flag stands for a completion that says nothing else; SQHD says something unless flow control is off.
    fn may_imply(&self, cqe: &Cqe) -> bool {
        self.transport.c2h_success && !self.qp().flow_control() && cqe.result() == 0 && cqe.status.get() == 0
    }

    /// Connect was answered, perhaps with success: then capsules of an I/O queue may carry what the transport is configured for.
    #[cold]
    fn went_live(&self) {
        if self.qp().is_live() {
            self.live.set(true);
            self.sock().set_account(self.qp().account());
            if self.qp().qid() != 0 {
                self.sock().widen_receive_buffer(RECEIVE_ROOM);
            }
            self.in_capsule.set(match self.qp().qid() {
                0 => ADMIN_IN_CAPSULE,
                _ => self.transport.in_capsule_data_size,
            });
        }
    }

    /// The host broke the rules of the wire: it is told, and the connection ends.
    #[cold]
    pub(crate) fn fatal(&self, decoder: &Decoder, e: &FatalError) {
        tracing::info!("{}: {e}; ending the connection", self.peer);
        self.halt(halt::ENDED);
        let mut out = [0; TERM_REQ_MAX];
        if let Some(pdu) = decoder.term_req(e, &mut out) {
            self.sock().send_bytes(pdu);
        }
        self.sock().finish();
    }

    /// Ends the connection at once.
    pub(crate) fn close(&self) {
        self.halt(halt::ENDED);
        self.sock().close();
    }

    /// The host's time to send what an R2T asks for begins when it has the R2T, and that may be behind much that it takes slowly, and when it
    /// has sent what was asked for before. If it takes nothing and sends nothing, its time runs: it may be dead. `now` is of
    /// [`clock`](Conn::clock).
    fn follow_r2ts(&self, now: u64) {
        let mut slots = self.slots.borrow_mut();
        slots.follow_data(now);
        // Nobody vouches for one that is not live, and what there is for it to take is an R2T at most.
        if self.live.get() && slots.awaits_data() {
            let taken = self.sock().acknowledged();
            let before = self.taken.replace(taken);
            if taken > before {
                slots.r2ts_moved(before, now);
            }
        }
    }

    /// Why it has waited long enough for its host, if it has.
    pub(crate) fn overdue(&self, now: u64) -> Option<&'static str> {
        let clock = self.clock(now);
        self.follow_r2ts(clock);
        if self.halted.get() & halt::ENDED != 0 {
            None
        } else if !self.live.get() && now > self.live_by {
            Some("no Connect succeeded in time")
        } else if !self.live.get() && self.slots.borrow().data_overdue(clock.saturating_sub(self.stranger_ticks)) {
            Some("the data of its Connect did not come")
        } else if self.slots.borrow().data_overdue(clock.saturating_sub(self.stall_ticks)) {
            Some("the data that an R2T asked for did not come")
        } else {
            None
        }
    }

    /// The socket is gone.
    pub(crate) fn closed(&self, err: &io::Error) {
        tracing::debug!("{}: connection ended: {err}", self.peer);
        self.halt(halt::ENDED);
        let me = self.me.clone();
        self.qp().shutdown(move || {
            if let Some(me) = me.upgrade() {
                me.core.remove(me.key.get());
            }
        });
    }
}

impl QpairTransport for Conn {
    fn respond(&self, slot: u16) {
        self.answer(slot);
    }

    fn buffer_ready(&self, slot: u16) {
        let phase = self.slots.borrow().phase(slot);
        match phase {
            Phase::BufferForRead => {
                self.slots.borrow_mut().set_phase(slot, Phase::Idle);
                self.qp().execute(slot);
            }
            Phase::BufferForData => self.request_data(slot),
            Phase::BufferForCapsule => {
                let kept = self.slots.borrow_mut().take_kept(slot);
                if let Some((bytes, whole)) = kept {
                    self.fill(slot, 0, &bytes);
                    if whole {
                        self.have_all(slot);
                    }
                }
            }
            Phase::Idle | Phase::Data | Phase::Lent => {}
        }
    }

    fn buffer_needed(&self, slot: u16) {
        self.slots.borrow_mut().unlend(slot);
        self.proceed(slot, Then::Read { len: 0, lent: false });
    }

    fn disconnect(&self, why: Disconnect) {
        tracing::debug!("{}: closing: {why:?}", self.peer);
        self.halt(halt::ENDED);
        match why {
            Disconnect::Requested => self.sock().finish(),
            _ => self.sock().close(),
        }
    }

    fn abort_transfer(&self, slot: u16) -> bool {
        let mut slots = self.slots.borrow_mut();
        match slots.phase(slot) {
            // No R2T is out: the host will not send data for it.
            Phase::BufferForRead | Phase::BufferForData => {
                slots.set_phase(slot, Phase::Idle);
                true
            }
            Phase::BufferForCapsule if slots.is_kept_whole(slot) => {
                slots.take_kept(slot);
                true
            }
            // The host may be sending. What it sends must find its command.
            _ => false,
        }
    }

    fn listener(&self) -> &Address {
        &self.listener
    }

    fn local(&self) -> Option<Address> {
        self.sock().local_addr().ok().map(Address::tcp)
    }

    fn peer(&self) -> Address {
        Address::tcp(self.peer)
    }
}
