//! Fatal transport errors and the termination requests that report them: NVMe/TCP Transport Specification 1.0, section 3.5.

use super::Role;
use super::header::{CommonHeader, TermReqHeader, field, pdu_type};
use std::fmt;
use zerocopy::{FromZeros, IntoBytes};

/// Fatal Error Status (FES): Figures 22 and 23.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Fes {
    /// 01h: a header field is invalid; FEI is its offset.
    InvalidHeaderField = 1,
    /// 02h: the PDU is not expected now.
    SequenceError = 2,
    /// 03h: the header digest does not match; FEI is the digest received.
    HeaderDigest = 3,
    /// 04h: the data lies outside what was asked for.
    DataOutOfRange = 4,
    /// 05h: sent by the controller: an H2CData PDU exceeds MAXH2CDATA; sent by the host: an R2T exceeds MAXR2T.
    LimitExceeded = 5,
    /// 06h: a parameter is not supported; FEI is the offset of its field.
    UnsupportedParameter = 6,
}

impl Fes {
    /// The status that the number in a termination request means.
    pub const fn from_u16(value: u16) -> Option<Self> {
        Some(match value {
            1 => Fes::InvalidHeaderField,
            2 => Fes::SequenceError,
            3 => Fes::HeaderDigest,
            4 => Fes::DataOutOfRange,
            5 => Fes::LimitExceeded,
            6 => Fes::UnsupportedParameter,
            _ => return None,
        })
    }
}

impl fmt::Display for Fes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fes::InvalidHeaderField => "invalid PDU header field",
            Fes::SequenceError => "PDU sequence error",
            Fes::HeaderDigest => "header digest error",
            Fes::DataOutOfRange => "data transfer out of range",
            Fes::LimitExceeded => "transfer limit exceeded",
            Fes::UnsupportedParameter => "unsupported parameter",
        })
    }
}

/// An error after which the connection has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FatalError {
    /// Fatal error status.
    pub fes: Fes,
    /// Fatal error information: the offset of the field, or the header digest received, or 0.
    pub fei: u32,
    /// The field, or what was unexpected.
    pub what: &'static str,
    /// The value found there.
    pub value: u32,
    /// End the connection without a termination request: the peer sent a malformed one itself.
    pub silent: bool,
}

impl FatalError {
    const fn new(fes: Fes, fei: u32, what: &'static str, value: u32) -> Self {
        FatalError { fes, fei, what, value, silent: false }
    }

    /// The header field `what`, `offset` bytes into the PDU, has the invalid value `value`.
    pub const fn field(offset: u32, what: &'static str, value: u32) -> Self {
        Self::new(Fes::InvalidHeaderField, offset, what, value)
    }

    /// The parameter `what`, `offset` bytes into the PDU, has the unsupported value `value`.
    pub const fn unsupported(offset: u32, what: &'static str, value: u32) -> Self {
        Self::new(Fes::UnsupportedParameter, offset, what, value)
    }

    /// An unexpected PDU or a gap between data PDUs; `what` tells which, `value` is its type or offset.
    pub const fn sequence(what: &'static str, value: u32) -> Self {
        Self::new(Fes::SequenceError, 0, what, value)
    }

    /// The header digest received is `received`.
    pub const fn header_digest(received: u32) -> Self {
        Self::new(Fes::HeaderDigest, received, "HDGST", received)
    }

    /// A data PDU names a command that is not waiting for data.
    pub const fn unknown_cccid(cccid: u16) -> Self {
        Self::field(field::CCCID, "CCCID", cccid as u32)
    }

    /// An H2CData PDU has a transfer tag that is not in use.
    pub const fn unknown_ttag(ttag: u16) -> Self {
        Self::field(field::TTAG, "TTAG", ttag as u32)
    }

    /// The range of a data PDU exceeds the R2T or the command's data; `end` is where it ends.
    pub const fn out_of_range(end: u32) -> Self {
        Self::new(Fes::DataOutOfRange, 0, "end of the data range", end)
    }

    /// An H2CData PDU is longer than MAXH2CDATA.
    pub const fn data_limit(datal: u32) -> Self {
        Self::new(Fes::LimitExceeded, 0, "DATAL above MAXH2CDATA", datal)
    }

    /// More R2Ts are outstanding for a command than MAXR2T allows.
    pub const fn r2t_limit(outstanding: u32) -> Self {
        Self::new(Fes::LimitExceeded, 0, "outstanding R2Ts above MAXR2T", outstanding)
    }

    /// The peer's termination request is malformed: no answer.
    pub(super) const fn bad_term_req(what: &'static str, value: u32) -> Self {
        FatalError { silent: true, ..Self::new(Fes::InvalidHeaderField, 0, what, value) }
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fes {
            Fes::InvalidHeaderField | Fes::UnsupportedParameter => {
                write!(f, "{}: {} at offset {} is {:#x}", self.fes, self.what, self.fei, self.value)
            }
            _ => write!(f, "{}: {} {:#x}", self.fes, self.what, self.value),
        }
    }
}

impl std::error::Error for FatalError {}

/// Longest termination request: 24 bytes of header and 128 bytes of data.
pub const TERM_REQ_MAX: usize = 152;

/// Encodes the termination request that `role` sends: C2HTermReq for a target, H2CTermReq for a host. `header` is the
/// header of the PDU in error, of which at most 128 bytes are copied. Returns the PDU, or nothing for a silent error.
pub fn encode_term_req<'a>(
    role: Role,
    error: &FatalError,
    header: &[u8],
    out: &'a mut [u8; TERM_REQ_MAX],
) -> Option<&'a [u8]> {
    if error.silent {
        return None;
    }
    const HLEN: usize = size_of::<TermReqHeader>();
    let header = &header[..header.len().min(TERM_REQ_MAX - HLEN)];
    let plen = HLEN + header.len();
    let pdu = TermReqHeader {
        ch: CommonHeader {
            pdu_type: match role {
                Role::Target => pdu_type::C2H_TERM_REQ,
                Role::Host => pdu_type::H2C_TERM_REQ,
            },
            hlen: HLEN as u8,
            plen: (plen as u32).into(),
            ..CommonHeader::default()
        },
        fes: (error.fes as u16).into(),
        fei: error.fei.into(),
        ..TermReqHeader::new_zeroed()
    };
    out[..HLEN].copy_from_slice(pdu.as_bytes());
    out[HLEN..plen].copy_from_slice(header);
    Some(&out[..plen])
}
