//! Fabrics commands: Base Specification, "Fabrics Command Set".
//!
//! Each command is a view of a [`Sqe`]: `ConnectCmd::of(&sqe)` reinterprets the 64 bytes.

use super::ascii::NqnField;
use super::opcode::{admin, fabrics};
use super::queue_entry::Sqe;
use super::sgl::SglDescriptor;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

macro_rules! command_view {
    ($name:ident) => {
        const _: () = assert!(size_of::<$name>() == 64);

        impl $name {
            /// The same 64 bytes read as this command; opcode and FCTYPE are not checked.
            pub fn of(sqe: &Sqe) -> &Self {
                transmute_ref!(sqe)
            }

            /// The submission queue entry that this command is.
            pub fn sqe(self) -> Sqe {
                transmute!(self)
            }
        }
    };
}

/// Connect command (FCTYPE 01h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectCmd {
    /// Byte 0: opcode 7Fh.
    pub opcode: u8,
    /// Byte 1: PSDT in bits 7:6.
    pub flags: u8,
    /// Bytes 3:2: command identifier.
    pub cid: U16,
    /// Byte 4: fabrics command type (FCTYPE).
    pub fctype: u8,
    /// Bytes 23:5.
    pub reserved5: [u8; 19],
    /// Bytes 39:24: SGL descriptor 1 (SGL1).
    pub sgl: SglDescriptor,
    /// Bytes 41:40: record format (RECFMT), 0.
    pub recfmt: U16,
    /// Bytes 43:42: queue identifier (QID), 0 for the admin queue.
    pub qid: U16,
    /// Bytes 45:44: submission queue size (SQSIZE) in entries, zero based.
    pub sqsize: U16,
    /// Byte 46: connect attributes (CATTR), see the `CATTR_` constants.
    pub cattr: u8,
    /// Byte 47.
    pub reserved47: u8,
    /// Bytes 51:48: keep alive timeout (KATO) in milliseconds, 0 for none; admin queue only.
    pub kato: U32,
    /// Bytes 63:52.
    pub reserved52: [u8; 12],
}
command_view!(ConnectCmd);

impl ConnectCmd {
    /// Offset of RECFMT in the entry, for [`connect_invalid_sqe`].
    pub const OFFSET_RECFMT: u16 = 40;
    /// Offset of QID in the entry.
    pub const OFFSET_QID: u16 = 42;
    /// Offset of SQSIZE in the entry.
    pub const OFFSET_SQSIZE: u16 = 44;
    /// Offset of CATTR in the entry.
    pub const OFFSET_CATTR: u16 = 46;
    /// Offset of KATO in the entry.
    pub const OFFSET_KATO: u16 = 48;

    /// CATTR bits 1:0: priority class.
    pub const CATTR_PRIORITY: u8 = 0b11;
    /// CATTR bit 2: disable submission queue flow control; SQHD is not updated then.
    pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
    /// CATTR bit 3: the host supports deletion of individual I/O queues.
    pub const CATTR_INDIVIDUAL_DELETION: u8 = 1 << 3;

    /// A Connect whose 1,024 bytes of [`ConnectData`] travel in the capsule. `sqsize` is zero based, `kato` in milliseconds.
    pub fn new(cid: u16, qid: u16, sqsize: u16, cattr: u8, kato: u32) -> Self {
        let mut c: ConnectCmd = transmute!(Sqe::new(admin::FABRICS, cid, fabrics::CONNECT as u32));
        c.sgl = SglDescriptor::in_capsule(0, size_of::<ConnectData>() as u32);
        c.qid = qid.into();
        c.sqsize = sqsize.into();
        c.cattr = cattr;
        c.kato = kato.into();
        c
    }
}

/// Data of a Connect command, 1,024 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Bytes 15:0: host identifier (HOSTID).
    pub hostid: [u8; 16],
    /// Bytes 17:16: controller identifier (CNTLID), [`CNTLID_DYNAMIC`] in the dynamic model.
    pub cntlid: U16,
    /// Bytes 255:18.
    pub reserved18: [u8; 238],
    /// Bytes 511:256: NVM subsystem NQN (SUBNQN).
    pub subnqn: NqnField,
    /// Bytes 767:512: host NQN (HOSTNQN).
    pub hostnqn: NqnField,
    /// Bytes 1023:768.
    pub reserved768: [u8; 256],
}
const _: () = assert!(size_of::<ConnectData>() == 1024);

impl ConnectData {
    /// Offset of HOSTID in the data, for [`connect_invalid_data`].
    pub const OFFSET_HOSTID: u16 = 0;
    /// Offset of CNTLID in the data.
    pub const OFFSET_CNTLID: u16 = 16;
    /// Offset of SUBNQN in the data.
    pub const OFFSET_SUBNQN: u16 = 256;
    /// Offset of HOSTNQN in the data.
    pub const OFFSET_HOSTNQN: u16 = 512;
}

/// Controller identifier of a Connect that leaves the choice to the subsystem (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// Controller identifier of a Connect (static model) or discovery entry that means any controller.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;
/// Highest controller identifier that a controller may have.
pub const CNTLID_MAX: u16 = 0xffef;

/// Dword 0 of a successful Connect: the controller identifier; no authentication required.
pub const fn connect_success(cntlid: u16) -> u32 {
    cntlid as u32
}

/// AUTHREQ in Dword 0 of a successful Connect: authentication transaction required (ATR).
pub const CONNECT_ATR: u32 = 1 << 17;
/// AUTHREQ in Dword 0 of a successful Connect: authentication and secure channel required (ASCR).
pub const CONNECT_ASCR: u32 = 1 << 18;

/// Dword 0 of Connect Invalid Parameters when the field at `offset` of the submission queue entry is wrong (IATTR 0, IPO).
pub const fn connect_invalid_sqe(offset: u16) -> u32 {
    offset as u32
}

/// Dword 0 of Connect Invalid Parameters when the field at `offset` of the Connect data is wrong (IATTR 1, IPO).
pub const fn connect_invalid_data(offset: u16) -> u32 {
    1 << 16 | offset as u32
}

/// Property Get command (FCTYPE 04h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyGetCmd {
    /// Byte 0: opcode 7Fh.
    pub opcode: u8,
    /// Byte 1.
    pub flags: u8,
    /// Bytes 3:2: command identifier.
    pub cid: U16,
    /// Byte 4: fabrics command type (FCTYPE).
    pub fctype: u8,
    /// Bytes 39:5.
    pub reserved5: [u8; 35],
    /// Byte 40: attributes (ATTRIB), bits 2:0 the size: 0 for 4 bytes, 1 for 8 bytes.
    pub attrib: u8,
    /// Bytes 43:41.
    pub reserved41: [u8; 3],
    /// Bytes 47:44: offset of the property (OFST), see [`super::register::offset`].
    pub ofst: U32,
    /// Bytes 63:48.
    pub reserved48: [u8; 16],
}
command_view!(PropertyGetCmd);

impl PropertyGetCmd {
    /// Reads the property at `ofst`, of 8 bytes if `wide`, else of 4.
    pub fn new(cid: u16, ofst: u32, wide: bool) -> Self {
        let mut c: Self = transmute!(Sqe::new(admin::FABRICS, cid, fabrics::PROPERTY_GET as u32));
        c.attrib = wide as u8;
        c.ofst = ofst.into();
        c
    }
}

/// Property Set command (FCTYPE 00h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertySetCmd {
    /// Byte 0: opcode 7Fh.
    pub opcode: u8,
    /// Byte 1.
    pub flags: u8,
    /// Bytes 3:2: command identifier.
    pub cid: U16,
    /// Byte 4: fabrics command type (FCTYPE).
    pub fctype: u8,
    /// Bytes 39:5.
    pub reserved5: [u8; 35],
    /// Byte 40: attributes (ATTRIB), bits 2:0 the size: 0 for 4 bytes, 1 for 8 bytes.
    pub attrib: u8,
    /// Bytes 43:41.
    pub reserved41: [u8; 3],
    /// Bytes 47:44: offset of the property (OFST), see [`super::register::offset`].
    pub ofst: U32,
    /// Bytes 55:48: value (VALUE); only bytes 51:48 count if the size is 4 bytes.
    pub value: U64,
    /// Bytes 63:56.
    pub reserved56: [u8; 8],
}
command_view!(PropertySetCmd);

impl PropertySetCmd {
    /// Writes the 4-byte property at `ofst`.
    pub fn new(cid: u16, ofst: u32, value: u32) -> Self {
        let mut c: Self = transmute!(Sqe::new(admin::FABRICS, cid, fabrics::PROPERTY_SET as u32));
        c.ofst = ofst.into();
        c.value = u64::from(value).into();
        c
    }
}

/// Disconnect command (FCTYPE 08h), sent on the I/O queue that it deletes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DisconnectCmd {
    /// Byte 0: opcode 7Fh.
    pub opcode: u8,
    /// Byte 1.
    pub flags: u8,
    /// Bytes 3:2: command identifier.
    pub cid: U16,
    /// Byte 4: fabrics command type (FCTYPE).
    pub fctype: u8,
    /// Bytes 23:5.
    pub reserved5: [u8; 19],
    /// Bytes 39:24: SGL descriptor 1, not used.
    pub sgl: SglDescriptor,
    /// Bytes 41:40: record format (RECFMT), 0.
    pub recfmt: U16,
    /// Bytes 63:42.
    pub reserved42: [u8; 22],
}
command_view!(DisconnectCmd);

/// Authentication Send (FCTYPE 05h) and Receive (FCTYPE 06h) commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AuthenticationCmd {
    /// Byte 0: opcode 7Fh.
    pub opcode: u8,
    /// Byte 1: PSDT in bits 7:6.
    pub flags: u8,
    /// Bytes 3:2: command identifier.
    pub cid: U16,
    /// Byte 4: fabrics command type (FCTYPE).
    pub fctype: u8,
    /// Bytes 23:5.
    pub reserved5: [u8; 19],
    /// Bytes 39:24: SGL descriptor 1 (SGL1).
    pub sgl: SglDescriptor,
    /// Byte 40.
    pub reserved40: u8,
    /// Byte 41: SP specific 0 (SPSP0), 01h.
    pub spsp0: u8,
    /// Byte 42: SP specific 1 (SPSP1), 01h.
    pub spsp1: u8,
    /// Byte 43: security protocol (SECP), E9h.
    pub secp: u8,
    /// Bytes 47:44: transfer length (TL) of a Send, allocation length (AL) of a Receive, in bytes.
    pub length: U32,
    /// Bytes 63:48.
    pub reserved48: [u8; 16],
}
command_view!(AuthenticationCmd);

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn connect_fields_lie_at_their_offsets() {
        assert_eq!(offset_of!(ConnectCmd, sgl), 24);
        assert_eq!(offset_of!(ConnectCmd, recfmt), ConnectCmd::OFFSET_RECFMT as usize);
        assert_eq!(offset_of!(ConnectCmd, qid), ConnectCmd::OFFSET_QID as usize);
        assert_eq!(offset_of!(ConnectCmd, sqsize), ConnectCmd::OFFSET_SQSIZE as usize);
        assert_eq!(offset_of!(ConnectCmd, cattr), ConnectCmd::OFFSET_CATTR as usize);
        assert_eq!(offset_of!(ConnectCmd, kato), ConnectCmd::OFFSET_KATO as usize);
        assert_eq!(offset_of!(ConnectData, cntlid), ConnectData::OFFSET_CNTLID as usize);
        assert_eq!(offset_of!(ConnectData, subnqn), ConnectData::OFFSET_SUBNQN as usize);
        assert_eq!(offset_of!(ConnectData, hostnqn), ConnectData::OFFSET_HOSTNQN as usize);
        assert_eq!(offset_of!(PropertySetCmd, value), 48);
        assert_eq!(offset_of!(AuthenticationCmd, length), 44);
    }

    #[test]
    fn connect_is_a_view_of_the_entry() {
        let c = ConnectCmd::new(5, 1, 127, ConnectCmd::CATTR_DISABLE_SQ_FLOW_CONTROL, 0);
        let sqe = c.sqe();
        assert_eq!((sqe.opcode, sqe.fctype(), sqe.cid.get(), sqe.flags), (0x7f, 1, 5, 0x40));
        assert_eq!(sqe.dptr, SglDescriptor::in_capsule(0, 1024));
        assert_eq!(sqe.cdw10.get(), 1 << 16, "QID in the upper half of CDW10");
        assert_eq!(sqe.cdw11.get(), 127 | 4 << 16, "SQSIZE and CATTR in CDW11");
        assert_eq!(*ConnectCmd::of(&sqe), c);
        assert_eq!(connect_invalid_data(ConnectData::OFFSET_SUBNQN), 0x1_0100);
        assert_eq!(connect_invalid_sqe(ConnectCmd::OFFSET_SQSIZE), 44);
    }
}
