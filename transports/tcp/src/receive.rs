//! What comes in: PDUs become requests, their data goes to the request's buffer.
//!
//! Bytes are taken as long as every command finds a slot. Where that ends, the rest of what was received is kept, nothing more is
//! received, and the connection goes on when a slot is free.

use std::rc::Rc;

use longshore_nvme::tcp_pdu::{CapsuleCmd, Data, Decoder, Event, FatalError, Pdu};
use longshore_nvme::wire::Status;
use longshore_nvmf::{Begin, QpairTransport};
use longshore_reactor::DmaBuf;
use longshore_reactor::sock::{Next, Sock, SockHandler};

use crate::conn::{Conn, SEND_HIGH, halt};
use crate::slot::Phase;

/// A device lends no more to a connection that has so many bytes to send, or to read of what is lent.
const LENT_HIGH: usize = 4 << 20;

/// With at least this much of a PDU's data to come, it is received directly into the request's buffer.
const DIRECT_MIN: u32 = 8 << 10;

/// So much is received at a time, for the other connections' sake.
const DIRECT_MAX: u32 = 256 << 10;

/// What happens to a command once its capsule is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Execute,
    /// Ask for so many bytes by R2T, then execute.
    Request {
        len: u32,
        cid: u16,
    },
    /// Get a buffer to read `len` bytes into, unless the device would lend its own; then execute.
    Read {
        len: u32,
        lent: bool,
    },
    /// It failed already.
    Respond,
}

/// The PDU whose data is arriving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    Nothing,
    /// `wanted`: its data goes to the request's buffer.
    Capsule {
        slot: u16,
        then: Then,
        wanted: bool,
        len: u32,
    },
    /// `base`: where in the request's buffer the PDU's data begins.
    H2cData {
        slot: u16,
        base: u32,
        len: u32,
    },
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Rx {
    pub(crate) decoder: Decoder,
    current: Current,
    /// A command that found no slot.
    held: Option<CapsuleCmd>,
    /// Bytes received and not yet taken.
    kept: Vec<u8>,
    /// Where the direct receive in flight began, in its buffer.
    direct_at: usize,
}

impl Rx {
    pub(crate) fn new(decoder: Decoder) -> Rx {
        Rx { decoder, current: Current::Nothing, held: None, kept: Vec::new(), direct_at: 0 }
    }

    /// Bytes that were received before.
    pub(crate) fn keep(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.kept.is_empty());
        self.kept = bytes;
    }
}

impl Conn {
    /// Takes `input` as far as possible and keeps the rest.
    pub(crate) fn take(&self, rx: &mut Rx, mut input: &[u8]) -> Result<(), FatalError> {
        if self.in_capsule.get() != 0 {
            rx.decoder.set_max_in_capsule(self.in_capsule.take());
        }
        if let Some(c) = rx.held.take() {
            self.capsule(rx, c);
        }
        while self.halted.get() & !halt::SEND_FULL == 0 {
            match rx.decoder.decode(&mut input)? {
                None => return Ok(()),
                Some(Event::Header(Pdu::CapsuleCmd(c))) => self.capsule(rx, c),
                Some(Event::Header(Pdu::H2cData(d))) => self.h2c_data(rx, &d)?,
                Some(Event::Payload { bytes, offset }) => self.payload(rx, bytes, offset),
                Some(Event::End { ddgst_ok }) => self.end(rx, ddgst_ok),
                Some(Event::Header(Pdu::TermReq(t))) => {
                    tracing::info!("{}: the host ends the connection: FES {:#x}, FEI {:#x}", self.peer, t.fes, t.fei);
                    self.close();
                }
                Some(Event::Header(_)) => return Err(FatalError::sequence("PDU after the connection was set up", 0)),
            }
        }
        if self.halted.get() & halt::ENDED == 0 {
            rx.kept.extend_from_slice(input);
        }
        Ok(())
    }

    #[inline]
    fn capsule(&self, rx: &mut Rx, c: CapsuleCmd) {
        let Some(slot) = self.qp().alloc_slot() else {
            rx.held = Some(c);
            self.halt(halt::NO_SLOT);
            return;
        };
        let mut wanted = false;
        let then = match self.qp().begin(slot, &c.sqe, c.data_len) {
            Begin::Execute => Then::Execute,
            Begin::NeedData { in_capsule: true, .. } => {
                wanted = true;
                // What strangers share is not theirs before all of their data is here.
                if !self.live.get() || !self.qp().get_buffer(slot) {
                    self.slots.borrow_mut().keep(slot);
                }
                Then::Execute
            }
            Begin::NeedData { len, .. } => Then::Request { len, cid: c.sqe.cid.get() },
            Begin::NeedBuffer { len, lent } => Then::Read { len, lent },
            Begin::Respond => Then::Respond,
        };
        if c.data_len == 0 {
            self.proceed(slot, then);
        } else {
            rx.current = Current::Capsule { slot, then, wanted, len: c.data_len };
        }
    }

    /// Whether little enough is lent to this connection: until it is sent, writers have to do without that memory, and if the
    /// host does not take it, it is copied at the host's expense.
    #[inline]
    fn may_borrow(&self) -> bool {
        self.sock().queued() + self.slots.borrow().lent() <= LENT_HIGH
    }

    /// The capsule is complete.
    #[inline]
    pub(crate) fn proceed(&self, slot: u16, then: Then) {
        match then {
            Then::Execute => self.qp().execute(slot),
            Then::Read { len, lent: true } if self.may_borrow() => {
                self.slots.borrow_mut().lend(slot, len);
                self.qp().execute(slot);
            }
            Then::Read { .. } => {
                if self.qp().get_buffer(slot) {
                    self.qp().execute(slot);
                } else {
                    self.slots.borrow_mut().set_phase(slot, Phase::BufferForRead);
                }
            }
            Then::Request { len, cid } => {
                self.slots.borrow_mut().expect(slot, cid, len);
                if self.qp().get_buffer(slot) {
                    self.request_data(slot);
                } else {
                    self.slots.borrow_mut().set_phase(slot, Phase::BufferForData);
                }
            }
            Then::Respond => self.answer(slot),
        }
    }

    fn h2c_data(&self, rx: &mut Rx, d: &Data) -> Result<(), FatalError> {
        let mut slots = self.slots.borrow_mut();
        // The transfer tag is the slot.
        let Some(s) = slots.get(d.ttag).filter(|s| s.phase == Phase::Data) else {
            return Err(FatalError::unknown_ttag(d.ttag));
        };
        if s.cid != d.cccid {
            return Err(FatalError::unknown_cccid(d.cccid));
        }
        // The decoder vouches for the sum.
        let end = d.offset + d.length;
        if end > s.len || d.offset < s.got {
            return Err(FatalError::out_of_range(end));
        }
        if d.offset != s.got {
            return Err(FatalError::sequence("gap before DATAO", d.offset));
        }
        if d.last && end != s.len {
            return Err(FatalError::sequence("LAST_PDU before the end of the R2T, at", end));
        }
        rx.current = Current::H2cData { slot: d.ttag, base: d.offset, len: d.length };
        Ok(())
    }

    fn payload(&self, rx: &Rx, bytes: &[u8], offset: u32) {
        match rx.current {
            Current::Nothing => {}
            Current::H2cData { slot, base, .. } => self.fill(slot, base + offset, bytes),
            Current::Capsule { slot, wanted: true, .. } => {
                let mut slots = self.slots.borrow_mut();
                if slots.phase(slot) == Phase::BufferForCapsule {
                    slots.keep_bytes(slot, bytes);
                } else {
                    drop(slots);
                    self.fill(slot, offset, bytes);
                }
            }
            // Data that the command has no use for.
            Current::Capsule { .. } => {}
        }
    }

    /// Copies `bytes` to `at` in the buffer of the command in `slot`.
    #[inline]
    pub(crate) fn fill(&self, slot: u16, at: u32, bytes: &[u8]) {
        let at = at as usize;
        let done = self.qp().with_buffer(slot, |buf| {
            // A capsule may carry more than its command wants.
            let room = buf.get_mut(at..).unwrap_or_default();
            let n = bytes.len().min(room.len());
            room[..n].copy_from_slice(&bytes[..n]);
        });
        // Somebody else still refers to the memory: a bug, but never one that loses data silently.
        debug_assert!(done.is_some(), "the buffer of slot {slot} is shared while data arrives");
        if done.is_none() {
            self.spoilt.set(true);
        }
    }

    /// The command in `slot` has all of its data, which was kept until it had its buffer.
    pub(crate) fn have_all(&self, slot: u16) {
        if self.spoilt.take() {
            self.qp().fail(slot, Status::TRANSIENT_TRANSPORT_ERROR);
        } else {
            self.qp().execute(slot);
        }
    }

    fn end(&self, rx: &mut Rx, ddgst_ok: bool) {
        match std::mem::replace(&mut rx.current, Current::Nothing) {
            Current::Nothing => {}
            Current::Capsule { slot, then, .. } => {
                let whole = ddgst_ok && !self.spoilt.take();
                // A refused command is answered with what it was refused for.
                if whole || then == Then::Respond {
                    let mut slots = self.slots.borrow_mut();
                    if slots.phase(slot) == Phase::BufferForCapsule {
                        slots.kept_whole(slot);
                        drop(slots);
                        if !self.live.get() && self.qp().get_buffer(slot) {
                            self.buffer_ready(slot);
                        }
                        return;
                    }
                    drop(slots);
                    self.proceed(slot, then);
                } else {
                    self.qp().fail(slot, Status::TRANSIENT_TRANSPORT_ERROR);
                }
            }
            Current::H2cData { slot, len, .. } => {
                let whole = ddgst_ok && !self.spoilt.take();
                let mut slots = self.slots.borrow_mut();
                slots.data_came(slot, self.clock(self.core.reactor().now()));
                let complete = match slots.get(slot) {
                    Some(s) => {
                        s.got += len;
                        s.bad |= !whole;
                        (s.got == s.len).then_some(s.bad)
                    }
                    None => None,
                };
                let Some(bad) = complete else { return };
                slots.set_phase(slot, Phase::Idle);
                drop(slots);
                if bad {
                    self.qp().fail(slot, Status::TRANSIENT_TRANSPORT_ERROR);
                } else {
                    self.qp().execute(slot);
                }
            }
        }
    }

    /// What to receive next.
    fn next(&self, rx: &mut Rx) -> Next {
        if self.sock().queued() > SEND_HIGH {
            self.halt(halt::SEND_FULL);
        }
        if self.halted.get() != 0 {
            return Next::Pause;
        }
        let pending = rx.decoder.payload_pending();
        if pending < DIRECT_MIN {
            return Next::Ring;
        }
        let (slot, at) = match rx.current {
            Current::H2cData { slot, base, len } => (slot, base + (len - pending)),
            Current::Capsule { slot, wanted: true, len, .. } => (slot, len - pending),
            Current::Capsule { .. } | Current::Nothing => return Next::Ring,
        };
        match self.qp().buffer(slot) {
            Some(buf) if (at + pending) as usize <= buf.len() => {
                rx.direct_at = at as usize;
                Next::Direct { buf, off: at as usize, len: pending.min(DIRECT_MAX) as usize }
            }
            _ => Next::Ring,
        }
    }

    /// After `take`: ends the connection or receives on.
    fn after(&self, rx: &mut Rx, taken: Result<(), FatalError>) -> Next {
        match taken {
            Ok(()) => self.next(rx),
            Err(e) => {
                self.fatal(&rx.decoder, &e);
                Next::Pause
            }
        }
    }

    /// After `take` of what was just received: a PDU that comes slowly comes all the same.
    #[inline]
    fn note_part(&self, rx: &Rx) {
        if let Current::H2cData { slot, .. } = rx.current {
            self.slots.borrow_mut().data_came(slot, self.clock(self.core.reactor().now()));
        }
    }

    /// What kept it from receiving is gone.
    pub(crate) fn go_on(self: &Rc<Self>) {
        self.scheduled.set(false);
        if self.halted.get() != 0 {
            return;
        }
        let next = {
            let rx = &mut *self.rx.borrow_mut();
            let kept = std::mem::take(&mut rx.kept);
            let taken = self.take(rx, &kept);
            self.after(rx, taken)
        };
        self.sock().resume(next);
    }
}

impl SockHandler for Conn {
    fn on_recv(&self, _: &Sock, data: &[u8]) -> Next {
        let rx = &mut *self.rx.borrow_mut();
        let taken = self.take(rx, data);
        self.note_part(rx);
        self.after(rx, taken)
    }

    fn on_direct(&self, _: &Sock, buf: DmaBuf, n: usize, tail: &[u8]) -> Next {
        let rx = &mut *self.rx.borrow_mut();
        rx.decoder.direct_done(&buf.as_slice()[rx.direct_at..rx.direct_at + n]);
        // The request's own reference is then the only one again.
        drop(buf);
        let taken = self.take(rx, tail);
        self.note_part(rx);
        self.after(rx, taken)
    }

    fn on_sent(&self, _: &Sock) {
        self.unhalt(halt::SEND_FULL);
    }

    fn on_close(&self, _: &Sock, err: std::io::Error) {
        self.closed(&err);
    }
}
