//! From an address to a queue that takes commands: TCP, ICReq and ICResp, Connect.

use std::rc::Rc;

use longshore_reactor::{Reactor, net};
use zerocopy::{FromZeros, IntoBytes};

use crate::tcp_pdu::IcReq;
use crate::wire::fabrics::{CONNECT_ASCR, CONNECT_ATR, ConnectCmd, ConnectData};
use crate::wire::{NqnField, Status};

use super::command::{success, within};
use super::error::HostError;
use super::options::{HostOptions, TransportId};
use super::qpair::{Data, Qpair};

/// Opens a connection whose first command has to be Connect.
pub(crate) async fn open(
    r: &Reactor,
    id: &TransportId,
    o: &HostOptions,
    qid: u16,
    depth: u16,
) -> Result<Rc<Qpair>, HostError> {
    let fd =
        net::connect_from(r, id.addr, o.source, o.connect_timeout).await.map_err(|e| HostError::io(id.addr, &e))?;
    let request = IcReq { hpda: 0, hdgst: o.hdgst, ddgst: o.ddgst, maxr2t: 0 };
    let q = Qpair::start(r, fd, qid, depth, request).map_err(|e| HostError::io(id.addr, &e))?;
    match within(r, o.connect_timeout, "the controller's answer to ICReq", q.opened()).await {
        Ok(true) => Ok(q),
        Ok(false) => {
            q.gone().await;
            Err(HostError::Lost(q.why()))
        }
        Err(e) => {
            q.shut(e.to_string()).await;
            Err(e)
        }
    }
}

/// What a Connect says.
pub(crate) struct Connect<'a> {
    pub(crate) subnqn: &'a str,
    pub(crate) options: &'a HostOptions,
    pub(crate) cntlid: u16,
    /// Entries of the queue, less one.
    pub(crate) sqsize: u16,
    pub(crate) flow_control: bool,
}

impl Connect<'_> {
    /// Sends Connect; returns the controller identifier.
    pub(crate) async fn send(&self, q: &Qpair) -> Result<u16, HostError> {
        let o = self.options;
        let nqn = |what: &str, text: &str| {
            NqnField::new(text).ok_or_else(|| {
                HostError::Invalid(format!("{what} '{text}' is longer than 223 bytes or contains a zero byte"))
            })
        };
        let mut data = ConnectData::new_zeroed();
        data.hostid = o.effective_hostid();
        data.cntlid = self.cntlid.into();
        data.subnqn = nqn("subsystem NQN", self.subnqn)?;
        data.hostnqn = nqn("host NQN", &o.effective_hostnqn())?;
        let mut buf = q
            .reactor()
            .dma()
            .alloc(size_of::<ConnectData>())
            .ok_or_else(|| HostError::Exhausted("no memory for the data of Connect".into()))?;
        if let Some(b) = buf.get_mut() {
            b.copy_from_slice(data.as_bytes());
        }
        let cattr = if self.flow_control { 0 } else { ConnectCmd::CATTR_DISABLE_SQ_FLOW_CONTROL };
        let kato = if q.qid() == 0 { u32::try_from(o.keep_alive.as_millis()).unwrap_or(u32::MAX) } else { 0 };
        let sqe = ConnectCmd::new(0, q.qid(), self.sqsize, cattr, kato).sqe();
        let done =
            within(q.reactor(), o.setup_timeout, "Connect", success(q, "Connect", &sqe, Data::Write(buf))).await??;
        let dw0 = done.result as u32;
        if dw0 & (CONNECT_ATR | CONNECT_ASCR) != 0 {
            return Err(HostError::Peer("it asks for authentication, which this host cannot do".into()));
        }
        Ok(dw0 as u16)
    }
}

/// Whether a refused Connect may have been refused for its wish to do without flow control.
pub(crate) fn refuses_attributes(e: &HostError) -> bool {
    let HostError::Refused { status, dw0, .. } = e else { return false };
    status.is(Status::INVALID_FIELD)
        || status.is(Status::CONNECT_INVALID_PARAMETERS) && dw0 >> 16 & 1 == 0 && dw0 & 0xffff == 46
}
