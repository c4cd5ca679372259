//! Submission and completion queue entries: Base Specification, "Submission Queue Entry" and "Completion Queue Entry".

use super::sgl::SglDescriptor;
use super::status::Status;
use std::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Submission queue entry, 64 bytes ("Common Command Format").
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// CDW0 bits 7:0: opcode (OPC).
    pub opcode: u8,
    /// CDW0 bits 15:8: fused operation (FUSE) in bits 1:0, PRP or SGL (PSDT) in bits 7:6.
    pub flags: u8,
    /// CDW0 bits 31:16: command identifier (CID).
    pub cid: U16,
    /// CDW1: namespace identifier (NSID); byte 4 is FCTYPE in a fabrics command.
    pub nsid: U32,
    /// CDW2.
    pub cdw2: U32,
    /// CDW3.
    pub cdw3: U32,
    /// CDW4-5: metadata pointer (MPTR).
    pub mptr: U64,
    /// CDW6-9: data pointer (DPTR), an SGL descriptor on fabrics.
    pub dptr: SglDescriptor,
    /// CDW10.
    pub cdw10: U32,
    /// CDW11.
    pub cdw11: U32,
    /// CDW12.
    pub cdw12: U32,
    /// CDW13.
    pub cdw13: U32,
    /// CDW14.
    pub cdw14: U32,
    /// CDW15.
    pub cdw15: U32,
}
const _: () = assert!(size_of::<Sqe>() == 64);

/// Fused operation, CDW0 bits 9:8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fuse {
    /// 00b: a normal command.
    Normal,
    /// 01b: first command of a fused operation.
    First,
    /// 10b: second command of a fused operation.
    Second,
    /// 11b.
    Reserved,
}

/// PRP or SGL for data transfer, CDW0 bits 15:14.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Psdt {
    /// 00b: PRPs (not allowed on fabrics).
    Prp,
    /// 01b: SGL, MPTR is the address of one contiguous buffer.
    Sgl,
    /// 10b: SGL, MPTR is the address of an SGL segment.
    SglMptrSegment,
    /// 11b.
    Reserved,
}

impl Sqe {
    /// Value of `flags` for a normal command with an SGL: what every command on fabrics carries.
    pub const FLAGS_SGL: u8 = 0x40;

    /// An entry for fabrics: opcode, command identifier and namespace, PSDT = SGL, everything else zero.
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        Sqe { opcode, flags: Self::FLAGS_SGL, cid: cid.into(), nsid: nsid.into(), ..Sqe::default() }
    }

    /// Fused operation.
    pub const fn fuse(&self) -> Fuse {
        match self.flags & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// How the data pointer is to be read.
    pub const fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0 => Psdt::Prp,
            1 => Psdt::Sgl,
            2 => Psdt::SglMptrSegment,
            _ => Psdt::Reserved,
        }
    }

    /// FCTYPE of a fabrics command: byte 4.
    pub const fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// CDW10-11 as one number: the starting LBA (SLBA) of most I/O commands.
    pub const fn slba(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Sets CDW10-11 to a starting LBA.
    pub fn set_slba(&mut self, slba: u64) {
        self.cdw10 = (slba as u32).into();
        self.cdw11 = ((slba >> 32) as u32).into();
    }

    /// Number of logical blocks of an I/O command: CDW12 bits 15:0 (NLB, zero based) plus one, 1 to 65,536.
    pub const fn nblocks(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    /// Sets CDW12 bits 15:0 (NLB) for `nblocks` blocks, 1 to 65,536; the other bits stay.
    pub fn set_nblocks(&mut self, nblocks: u32) {
        debug_assert!((1..=0x1_0000).contains(&nblocks));
        self.cdw12 = ((self.cdw12.get() & !0xffff) | (nblocks.wrapping_sub(1) & 0xffff)).into();
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:02x}h", self.opcode))
            .field("flags", &format_args!("{:02x}h", self.flags))
            .field("cid", &self.cid.get())
            .field("nsid", &self.nsid.get())
            .field("dptr", &self.dptr)
            .field(
                "cdw10..15",
                &[self.cdw10, self.cdw11, self.cdw12, self.cdw13, self.cdw14, self.cdw15].map(|d| d.get()),
            )
            .finish()
    }
}

/// Completion queue entry, 16 bytes ("Common Completion Queue Entry Layout").
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// DW0: command specific.
    pub dw0: U32,
    /// DW1: command specific.
    pub dw1: U32,
    /// DW2 bits 15:0: submission queue head pointer (SQHD); FFFFh on fabrics while SQ flow control is disabled.
    pub sqhd: U16,
    /// DW2 bits 31:16: submission queue identifier, reserved on fabrics.
    pub sqid: U16,
    /// DW3 bits 15:0: command identifier.
    pub cid: U16,
    /// DW3 bits 31:16: phase tag (reserved on fabrics) in bit 0, status in bits 15:1.
    pub status: U16,
}
const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// Value of SQHD while submission queue flow control is disabled (NVMe over Fabrics, "Flow Control").
    pub const SQHD_NO_FLOW_CONTROL: u16 = 0xffff;

    /// An entry for fabrics, SQID and phase tag zero; `sqhd` may be set later.
    pub fn new(cid: u16, status: Status) -> Self {
        Cqe { cid: cid.into(), status: (status.raw() << 1).into(), ..Cqe::default() }
    }

    /// Status without the phase tag.
    pub const fn status(&self) -> Status {
        Status::from_raw(self.status.get() >> 1)
    }

    /// DW1 and DW0 as one number.
    pub const fn result(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }

    /// Sets DW0 and DW1.
    pub fn set_result(&mut self, result: u64) {
        self.dw0 = (result as u32).into();
        self.dw1 = ((result >> 32) as u32).into();
    }
}

impl fmt::Debug for Cqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cqe")
            .field("cid", &self.cid.get())
            .field("status", &self.status())
            .field("sqhd", &self.sqhd.get())
            .field("dw0", &format_args!("{:#x}", self.dw0.get()))
            .field("dw1", &format_args!("{:#x}", self.dw1.get()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqe_fields_lie_at_their_offsets() {
        let mut bytes = [0u8; 64];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8;
        }
        let s = Sqe::ref_from_bytes(&bytes).unwrap();
        assert_eq!((s.opcode, s.flags, s.cid.get(), s.nsid.get()), (0, 1, 0x0302, 0x07060504));
        assert_eq!(s.fctype(), 4);
        assert_eq!(s.mptr.get(), 0x1716151413121110);
        assert_eq!(s.dptr.address.get(), 0x1f1e1d1c1b1a1918);
        assert_eq!((s.dptr.length.get(), s.dptr.identifier), (0x23222120, 39));
        assert_eq!(s.slba(), 0x2f2e2d2c2b2a2928);
        assert_eq!(s.nblocks(), 0x3130 + 1);
        assert_eq!(s.cdw15.get(), 0x3f3e3d3c);
    }

    #[test]
    fn slba_and_nblocks_round_trip() {
        let mut s = Sqe::new(2, 7, 1);
        s.cdw12 = 0x4000_0000.into();
        s.set_slba(0x1234_5678_9abc);
        s.set_nblocks(0x1_0000);
        assert_eq!((s.slba(), s.nblocks(), s.cdw12.get()), (0x1234_5678_9abc, 0x1_0000, 0x4000_ffff));
        assert_eq!((s.fuse(), s.psdt()), (Fuse::Normal, Psdt::Sgl));
    }

    #[test]
    fn cqe_carries_status_above_the_phase_tag() {
        let mut c = Cqe::new(0x1122, Status::LBA_OUT_OF_RANGE.with_dnr());
        c.set_result(0x0807_0605_0403_0201);
        c.sqhd = 9.into();
        assert_eq!(c.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0x22, 0x11, 0x00, 0x81]);
        assert_eq!(c.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(c.result(), 0x0807_0605_0403_0201);
    }
}
