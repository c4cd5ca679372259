//! What comes in on a queue pair: answers, data, and requests for data.

use std::io;

use longshore_reactor::DmaBuf;
use longshore_reactor::sock::{Next, Sock, SockHandler};

use crate::tcp_pdu::{Data, Decoder, Event, FatalError, Params, Pdu, Role};
use crate::wire::{Cqe, Status};

use super::qpair::{Qpair, State};
use super::slot::Dir;

/// With at least this much of a PDU's data to come, it is received directly into the command's memory.
const DIRECT_MIN: u32 = 8 << 10;

/// The C2HData PDU whose data is arriving.
#[derive(Clone, Copy)]
struct Current {
    cid: u16,
    /// Where in the command's memory the PDU's data begins.
    base: u32,
    len: u32,
    /// No response follows.
    success: bool,
}

/// The receiving half of a queue pair.
pub(crate) struct Rx {
    pub(crate) decoder: Decoder,
    current: Option<Current>,
    /// Where the direct receive in flight began, in its buffer.
    direct_at: usize,
}

impl Rx {
    pub(crate) fn new() -> Rx {
        Rx { decoder: Decoder::new(Role::Host, 0), current: None, direct_at: 0 }
    }
}

impl Qpair {
    fn take(&self, rx: &mut Rx, mut input: &[u8]) -> Result<(), FatalError> {
        while matches!(self.state.get(), State::Open | State::Opening) {
            let Some(event) = rx.decoder.decode(&mut input)? else { break };
            match event {
                Event::Header(Pdu::CapsuleResp(cqe)) => self.answered(&cqe).map_err(|e| rx.decoder.fail(e))?,
                Event::Header(Pdu::C2hData(d)) => self.data(rx, &d).map_err(|e| rx.decoder.fail(e))?,
                Event::Payload { bytes, offset } => self.payload(rx, bytes, offset),
                Event::End { ddgst_ok } => self.end(rx, ddgst_ok).map_err(|e| rx.decoder.fail(e))?,
                Event::Header(Pdu::R2t(r)) => self.ready_to_transfer(&r).map_err(|e| rx.decoder.fail(e))?,
                Event::Header(Pdu::IcResp(resp)) => {
                    let params = Params::agreed(&self.request, &resp).map_err(|e| rx.decoder.fail(e))?;
                    rx.decoder.establish(&params);
                    self.establish(&params);
                }
                Event::Header(Pdu::TermReq(t)) => {
                    let (fes, fei) = (t.fes, t.fei);
                    self.close(format!(
                        "the controller ended it with fatal error status {fes:#x}, information {fei:#x}"
                    ));
                }
                Event::Header(_) => {
                    return Err(rx.decoder.fail(FatalError::sequence("PDU that no controller sends", 0)));
                }
            }
        }
        self.complete_waiting();
        Ok(())
    }

    #[inline]
    fn data(&self, rx: &mut Rx, d: &Data) -> Result<(), FatalError> {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.open(d.cccid).filter(|s| s.dir == Dir::Read) else {
            return Err(FatalError::unknown_cccid(d.cccid));
        };
        // The decoder vouches for the sum.
        let end = d.offset + d.length;
        if end > slot.len {
            return Err(FatalError::out_of_range(end));
        }
        if d.offset != slot.moved {
            return Err(FatalError::sequence("DATAO that does not follow the last data", d.offset));
        }
        rx.current = Some(Current { cid: d.cccid, base: d.offset, len: d.length, success: d.success });
        Ok(())
    }

    #[inline]
    fn payload(&self, rx: &Rx, bytes: &[u8], offset: u32) {
        // Data without a command is that of a termination request.
        let Some(c) = rx.current else { return };
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.open(c.cid)
            && !slot.memory.fill((c.base + offset) as usize, bytes)
        {
            slot.bad = true;
        }
    }

    #[inline]
    fn end(&self, rx: &mut Rx, ddgst_ok: bool) -> Result<(), FatalError> {
        let Some(c) = rx.current.take() else { return Ok(()) };
        if let Some(slot) = self.slots.borrow_mut().open(c.cid) {
            slot.moved += c.len;
            slot.bad |= !ddgst_ok;
        }
        if c.success {
            return self.answered(&Cqe::new(c.cid, Status::SUCCESS));
        }
        Ok(())
    }

    /// What to receive next.
    #[inline]
    fn next(&self, rx: &mut Rx) -> Next {
        if !matches!(self.state.get(), State::Open | State::Opening) {
            return Next::Pause;
        }
        let pending = rx.decoder.payload_pending();
        if pending < DIRECT_MIN {
            return Next::Ring;
        }
        let Some(c) = rx.current else { return Next::Ring };
        let at = c.base + (c.len - pending);
        let slots = self.slots.borrow();
        match slots.get(c.cid).and_then(|s| s.memory.at(at as usize)) {
            Some((buf, off)) => {
                let len = (buf.len() - off).min(pending as usize);
                if len < DIRECT_MIN as usize {
                    return Next::Ring;
                }
                rx.direct_at = off;
                Next::Direct { buf: buf.clone(), off, len }
            }
            None => Next::Ring,
        }
    }

    fn received(&self, rx: &mut Rx, input: &[u8]) -> Next {
        match self.take(rx, input) {
            Ok(()) => self.next(rx),
            Err(e) => {
                self.fatal(rx, &e);
                Next::Pause
            }
        }
    }
}

impl SockHandler for Qpair {
    fn on_recv(&self, _: &Sock, data: &[u8]) -> Next {
        let rx = &mut *self.rx.borrow_mut();
        self.received(rx, data)
    }

    fn on_direct(&self, _: &Sock, buf: DmaBuf, n: usize, tail: &[u8]) -> Next {
        let rx = &mut *self.rx.borrow_mut();
        rx.decoder.direct_done(&buf.as_slice()[rx.direct_at..rx.direct_at + n]);
        drop(buf);
        self.received(rx, tail)
    }

    fn on_sent(&self, _: &Sock) {
        self.complete_waiting();
    }

    fn on_close(&self, _: &Sock, err: io::Error) {
        self.closed(&err);
    }
}
