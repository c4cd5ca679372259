//! PDU headers as they lie on the wire: NVMe/TCP Transport Specification 1.0, section 3.6.2.

use crate::wire::{Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PDU types, byte 0: Figure 10. Bit 0 is the direction: 0 host to controller, 1 controller to host.
pub mod pdu_type {
    /// Initialize Connection Request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response.
    pub const IC_RESP: u8 = 0x01;
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command Capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response Capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Host to Controller Data.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to Host Data.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const R2T: u8 = 0x09;
}

/// Bits of FLAGS, byte 1.
pub mod flags {
    /// A header digest follows the header (HDGSTF).
    pub const HDGST: u8 = 1 << 0;
    /// A data digest follows the data (DDGSTF).
    pub const DDGST: u8 = 1 << 1;
    /// Last data PDU of an R2T or of a command (LAST_PDU).
    pub const LAST: u8 = 1 << 2;
    /// The command ended successfully and no response capsule follows (SUCCESS), C2HData only.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Offsets of header fields from the start of the PDU, which termination requests report.
pub mod field {
    /// PDU-Type.
    pub const TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
    /// PFV of ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const PDA: u32 = 10;
    /// DGST of ICReq and ICResp.
    pub const DGST: u32 = 11;
    /// MAXH2CDATA of ICResp.
    pub const MAXH2CDATA: u32 = 12;
    /// CCCID of data PDUs and R2T.
    pub const CCCID: u32 = 8;
    /// TTAG of H2CData and R2T.
    pub const TTAG: u32 = 10;
    /// DATAO of data PDUs.
    pub const DATAO: u32 = 12;
    /// DATAL of data PDUs.
    pub const DATAL: u32 = 16;
    /// R2TO of R2T.
    pub const R2TO: u32 = 12;
    /// R2TL of R2T.
    pub const R2TL: u32 = 16;
}

/// PDU common header (CH): Figure 19.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommonHeader {
    /// Byte 0: PDU type, see [`pdu_type`].
    pub pdu_type: u8,
    /// Byte 1: flags, see [`flags`].
    pub flags: u8,
    /// Byte 2: header length (HLEN) in bytes, without the digest.
    pub hlen: u8,
    /// Byte 3: offset of the data from the start of the PDU (PDO) in bytes.
    pub pdo: u8,
    /// Bytes 7:4: length of the whole PDU (PLEN) in bytes: header, digests, padding and data.
    pub plen: U32,
}
const _: () = assert!(size_of::<CommonHeader>() == 8);

/// ICReq: Figure 20, and ICResp: Figure 21, which differ in the meaning of two fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcHeader {
    /// Bytes 7:0.
    pub ch: CommonHeader,
    /// Bytes 9:8: PDU format version (PFV), 0.
    pub pfv: U16,
    /// Byte 10: data alignment that the sender asks for (HPDA, CPDA): (value + 1) * 4 bytes, value at most 31.
    pub pda: u8,
    /// Byte 11: digests (DGST): bit 0 header, bit 1 data.
    pub dgst: u8,
    /// Bytes 15:12: ICReq: maximum number of outstanding R2Ts per command, zero based (MAXR2T). ICResp: maximum data
    /// bytes of an H2CData PDU (MAXH2CDATA).
    pub max: U32,
    /// Bytes 127:16.
    pub reserved16: [u8; 112],
}
const _: () = assert!(size_of::<IcHeader>() == 128);

/// H2CTermReq: Figure 22, and C2HTermReq: Figure 23. A copy of the offending header follows as data.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReqHeader {
    /// Bytes 7:0.
    pub ch: CommonHeader,
    /// Bytes 9:8: fatal error status (FES), see [`super::Fes`].
    pub fes: U16,
    /// Bytes 13:10: fatal error information (FEI).
    pub fei: U32,
    /// Bytes 23:14.
    pub reserved14: [u8; 10],
}
const _: () = assert!(size_of::<TermReqHeader>() == 24);

/// CapsuleCmd: Figure 24.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmdHeader {
    /// Bytes 7:0.
    pub ch: CommonHeader,
    /// Bytes 71:8: submission queue entry (CCSQE).
    pub sqe: Sqe,
}
const _: () = assert!(size_of::<CapsuleCmdHeader>() == 72);

/// CapsuleResp: Figure 25.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleRespHeader {
    /// Bytes 7:0.
    pub ch: CommonHeader,
    /// Bytes 23:8: completion queue entry (RCCQE).
    pub cqe: Cqe,
}
const _: () = assert!(size_of::<CapsuleRespHeader>() == 24);

/// H2CData: Figure 26, C2HData: Figure 27 (which has no transfer tag), and R2T: Figure 28.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataHeader {
    /// Bytes 7:0.
    pub ch: CommonHeader,
    /// Bytes 9:8: command identifier of the command (CCCID).
    pub cccid: U16,
    /// Bytes 11:10: transfer tag (TTAG) that the controller chose; reserved in C2HData.
    pub ttag: U16,
    /// Bytes 15:12: offset into the command's data (DATAO, R2TO) in bytes, a multiple of 4.
    pub offset: U32,
    /// Bytes 19:16: length of the data, sent or asked for (DATAL, R2TL), in bytes, a multiple of 4.
    pub length: U32,
    /// Bytes 23:20.
    pub reserved20: [u8; 4],
}
const _: () = assert!(size_of::<DataHeader>() == 24);
