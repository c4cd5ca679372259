//! Writes PDU headers, their digests and padding.

use super::digest::crc32c;
use super::header::{CapsuleCmdHeader, CapsuleRespHeader, CommonHeader, DataHeader, IcHeader, flags, pdu_type};
use super::params::{IcReq, IcResp, PDA_MAX, Params};
use super::{Data, R2t, Role};
use crate::wire::{Cqe, Sqe};
use zerocopy::{FromZeros, IntoBytes};

/// Most bytes that [`Encoder::capsule_cmd`] writes: 72 of header, 4 of digest, padding to an alignment of at most 128.
pub const CAPSULE_CMD_MAX: usize = 144;
/// Most bytes that [`Encoder::capsule_resp`] writes.
pub const CAPSULE_RESP_MAX: usize = 28;
/// Most bytes that [`Encoder::h2c_data`] and [`Encoder::c2h_data`] write.
pub const DATA_HEADER_MAX: usize = 128;
/// Most bytes that [`Encoder::r2t`] writes.
pub const R2T_MAX: usize = 28;

/// Encodes what one side of an established connection sends.
///
/// Each function writes the header, its digest if there is one, and the padding before the data into the start of `out` and
/// returns how many bytes these are. `out` must have the room that the `_MAX` constant of the function names: it panics
/// otherwise. The caller sends the data after these bytes, and after the data its digest if [`Encoder::data_digest`].
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    hdgst: bool,
    ddgst: bool,
    align: u8,
}

impl Encoder {
    /// The encoder of `role` on a connection with these parameters.
    pub const fn new(role: Role, params: &Params) -> Self {
        let pda = match role {
            Role::Target => params.hpda,
            Role::Host => params.cpda,
        };
        let pda = if pda > PDA_MAX { PDA_MAX } else { pda };
        Encoder { hdgst: params.hdgst, ddgst: params.ddgst, align: (pda + 1) * 4 }
    }

    /// Four bytes of digest ([`super::Crc32c::finish`]) have to follow the data of every PDU that has data.
    pub const fn data_digest(&self) -> bool {
        self.ddgst
    }

    /// CapsuleCmd with `data_len` bytes of in-capsule data, which may be 0.
    #[inline]
    pub fn capsule_cmd(&self, sqe: &Sqe, data_len: u32, out: &mut [u8]) -> usize {
        let mut h = CapsuleCmdHeader { ch: CommonHeader::default(), sqe: *sqe };
        h.ch = self.common(pdu_type::CAPSULE_CMD, 72, 0, data_len);
        self.write(h.as_bytes(), h.ch.pdo, out)
    }

    /// CapsuleResp.
    #[inline]
    pub fn capsule_resp(&self, cqe: &Cqe, out: &mut [u8]) -> usize {
        let h = CapsuleRespHeader { ch: self.common(pdu_type::CAPSULE_RESP, 24, 0, 0), cqe: *cqe };
        self.write(h.as_bytes(), 0, out)
    }

    /// H2CData. [`Data::length`] bytes of data follow; [`Data::success`] is ignored.
    #[inline]
    pub fn h2c_data(&self, data: &Data, out: &mut [u8]) -> usize {
        self.data(pdu_type::H2C_DATA, if data.last { flags::LAST } else { 0 }, data, out)
    }

    /// C2HData. [`Data::length`] bytes of data follow; [`Data::ttag`] is ignored; [`Data::success`] needs [`Data::last`].
    #[inline]
    pub fn c2h_data(&self, data: &Data, out: &mut [u8]) -> usize {
        debug_assert!(data.last || !data.success, "SUCCESS without LAST_PDU");
        let mut f = if data.last { flags::LAST } else { 0 };
        if data.success {
            f |= flags::SUCCESS;
        }
        self.data(pdu_type::C2H_DATA, f, &Data { ttag: 0, ..*data }, out)
    }

    #[inline]
    fn data(&self, pdu_type: u8, flags: u8, data: &Data, out: &mut [u8]) -> usize {
        debug_assert!(data.length != 0, "a data PDU without data");
        let h = DataHeader {
            ch: self.common(pdu_type, 24, flags, data.length),
            cccid: data.cccid.into(),
            ttag: data.ttag.into(),
            offset: data.offset.into(),
            length: data.length.into(),
            reserved20: [0; 4],
        };
        self.write(h.as_bytes(), h.ch.pdo, out)
    }

    /// R2T.
    #[inline]
    pub fn r2t(&self, r2t: &R2t, out: &mut [u8]) -> usize {
        let h = DataHeader {
            ch: self.common(pdu_type::R2T, 24, 0, 0),
            cccid: r2t.cccid.into(),
            ttag: r2t.ttag.into(),
            offset: r2t.offset.into(),
            length: r2t.length.into(),
            reserved20: [0; 4],
        };
        self.write(h.as_bytes(), 0, out)
    }

    #[inline]
    fn common(&self, pdu_type: u8, hlen: u8, mut f: u8, data_len: u32) -> CommonHeader {
        let mut full = u32::from(hlen);
        if self.hdgst {
            f |= flags::HDGST;
            full += 4;
        }
        let mut pdo = 0;
        let mut plen = full;
        if data_len != 0 {
            pdo = full.next_multiple_of(self.align.into());
            plen = pdo + data_len;
            if self.ddgst {
                f |= flags::DDGST;
                plen += 4;
            }
        }
        // At most 144: 76 bytes of header and an alignment of at most 128.
        CommonHeader { pdu_type, flags: f, hlen, pdo: pdo as u8, plen: plen.into() }
    }

    #[inline]
    fn write(&self, header: &[u8], pdo: u8, out: &mut [u8]) -> usize {
        let mut end = header.len();
        out[..end].copy_from_slice(header);
        if self.hdgst {
            out[end..end + 4].copy_from_slice(&crc32c(header).to_le_bytes());
            end += 4;
        }
        let pdo = usize::from(pdo);
        if pdo > end {
            out[end..pdo].fill(0);
            end = pdo;
        }
        end
    }
}

/// Encodes ICReq.
pub fn encode_ic_req(req: &IcReq) -> [u8; 128] {
    ic(pdu_type::IC_REQ, req.hpda, req.hdgst, req.ddgst, req.maxr2t)
}

/// Encodes ICResp.
pub fn encode_ic_resp(resp: &IcResp) -> [u8; 128] {
    ic(pdu_type::IC_RESP, resp.cpda, resp.hdgst, resp.ddgst, resp.maxh2cdata)
}

fn ic(pdu_type: u8, pda: u8, hdgst: bool, ddgst: bool, max: u32) -> [u8; 128] {
    let mut h = IcHeader::new_zeroed();
    h.ch = CommonHeader { pdu_type, hlen: 128, plen: 128.into(), ..CommonHeader::default() };
    h.pda = pda;
    h.dgst = hdgst as u8 | (ddgst as u8) << 1;
    h.max = max.into();
    zerocopy::transmute!(h)
}
