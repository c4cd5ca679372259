//! NVMe/TCP PDUs, for host and target: NVM Express TCP Transport Specification 1.0.
//!
//! Nothing here does I/O. A [`Decoder`] takes received bytes apart, however they are cut, and hands out events; it checks
//! every field that does not depend on the commands outstanding. An [`Encoder`] writes headers into a small buffer of the
//! caller, who sends the data after it. What depends on commands (tags, ranges, number of R2Ts) is checked by the queue
//! pair, with the constructors of [`FatalError`] for its findings.
//!
//! A connection begins with [`encode_ic_req`] and [`encode_ic_resp`]; [`Params`] is what they agree on.

mod decoder;
mod digest;
mod encoder;
mod error;
pub mod header;
mod params;

pub use decoder::{Decoder, Event};
pub use digest::{Crc32c, crc32c};
pub use encoder::{
    CAPSULE_CMD_MAX, CAPSULE_RESP_MAX, DATA_HEADER_MAX, Encoder, R2T_MAX, encode_ic_req, encode_ic_resp,
};
pub use error::{FatalError, Fes, TERM_REQ_MAX, encode_term_req};
pub use params::{IcReq, IcResp, MAXH2CDATA_MIN, PDA_MAX, Params};

use crate::wire::{Cqe, Sqe};

/// TCP port of NVMe over Fabrics (IANA).
pub const PORT: u16 = 4420;
/// TCP port of the NVMe/TCP discovery service (IANA).
pub const DISCOVERY_PORT: u16 = 8009;
/// In-capsule data that every target takes on the admin queue and for fabrics commands, in bytes (section 3.3).
pub const ADMIN_IN_CAPSULE: u32 = 8192;

/// Which end of the connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The controller: receives commands.
    Target,
    /// The host: sends commands.
    Host,
}

/// A received PDU's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pdu {
    /// Initialize Connection Request, to a target.
    IcReq(IcReq),
    /// Initialize Connection Response, to a host.
    IcResp(IcResp),
    /// Terminate Connection Request, to either. The peer found a fatal error: close the connection.
    TermReq(TermReq),
    /// Command capsule, to a target.
    CapsuleCmd(CapsuleCmd),
    /// Response capsule, to a host.
    CapsuleResp(Cqe),
    /// Data that an R2T asked for, to a target.
    H2cData(Data),
    /// Data of a command, to a host.
    C2hData(Data),
    /// Ready to Transfer, to a host.
    R2t(R2t),
}

impl Pdu {
    /// Bytes of data that follow the header.
    pub const fn data_len(&self) -> u32 {
        match self {
            Pdu::CapsuleCmd(c) => c.data_len,
            Pdu::H2cData(d) | Pdu::C2hData(d) => d.length,
            Pdu::TermReq(t) => t.data_len,
            Pdu::IcReq(_) | Pdu::IcResp(_) | Pdu::CapsuleResp(_) | Pdu::R2t(_) => 0,
        }
    }
}

/// A command capsule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapsuleCmd {
    /// Submission queue entry.
    pub sqe: Sqe,
    /// Bytes of in-capsule data that follow.
    pub data_len: u32,
}

/// A data PDU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Data {
    /// Command identifier of the command (CCCID).
    pub cccid: u16,
    /// Transfer tag of the R2T that is answered (TTAG), H2CData only.
    pub ttag: u16,
    /// Offset into the command's data (DATAO) in bytes, a multiple of 4.
    pub offset: u32,
    /// Bytes of data that follow (DATAL), a multiple of 4, not 0; `offset + length` does not overflow.
    pub length: u32,
    /// Last PDU for this R2T, or (C2HData) for this command (LAST_PDU).
    pub last: bool,
    /// C2HData only: the command ended successfully, no response capsule follows (SUCCESS).
    pub success: bool,
}

/// A Ready to Transfer PDU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct R2t {
    /// Command identifier of the command (CCCID).
    pub cccid: u16,
    /// Transfer tag to be returned with the data (TTAG).
    pub ttag: u16,
    /// Offset into the command's data (R2TO) in bytes, a multiple of 4.
    pub offset: u32,
    /// Bytes asked for (R2TL), a multiple of 4, not 0; `offset + length` does not overflow.
    pub length: u32,
}

/// A termination request from the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TermReq {
    /// Fatal error status; [`Fes::from_u16`] tells its meaning.
    pub fes: u16,
    /// Fatal error information.
    pub fei: u32,
    /// Bytes of the offending header that follow as data, at most 128.
    pub data_len: u32,
}
