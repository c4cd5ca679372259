//! I/O commands: NVM Command Set Specification.

use super::queue_entry::Sqe;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bits of CDW12 of Read, Write, Compare, Write Zeroes and Verify (NLB is in bits 15:0).
pub mod cdw12 {
    /// Bit 24: storage tag check (STC).
    pub const STORAGE_TAG_CHECK: u32 = 1 << 24;
    /// Bit 25: deallocate (DEAC), Write Zeroes only.
    pub const DEALLOCATE: u32 = 1 << 25;
    /// Bits 29:26: protection information (PRINFO).
    pub const PROTECTION: u32 = 0xf << 26;
    /// Bit 30: force unit access (FUA).
    pub const FUA: u32 = 1 << 30;
    /// Bit 31: limited retry (LR).
    pub const LIMITED_RETRY: u32 = 1 << 31;
}

/// Bits of CDW11 of Dataset Management.
pub mod dsm {
    /// Bit 0: integral dataset for read (IDR).
    pub const INTEGRAL_READ: u32 = 1 << 0;
    /// Bit 1: integral dataset for write (IDW).
    pub const INTEGRAL_WRITE: u32 = 1 << 1;
    /// Bit 2: deallocate (AD).
    pub const DEALLOCATE: u32 = 1 << 2;

    /// Most ranges that one command carries.
    pub const MAX_RANGES: usize = 256;

    /// Number of ranges of a command: CDW10 bits 7:0 (NR, zero based) plus one.
    pub const fn ranges(sqe: &super::Sqe) -> usize {
        (sqe.cdw10.get() & 0xff) as usize + 1
    }
}

/// Dataset Management range, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// Bytes 3:0: context attributes, hints.
    pub attributes: U32,
    /// Bytes 7:4: length in logical blocks, not zero based.
    pub nlb: U32,
    /// Bytes 15:8: starting LBA.
    pub slba: U64,
}
const _: () = assert!(size_of::<DsmRange>() == 16);

/// Fields of a Copy command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyCmd {
    /// CDW10-11: starting destination LBA (SDLBA).
    pub sdlba: u64,
    /// CDW12 bits 7:0: number of source ranges, made one based: 1 to 256.
    pub ranges: usize,
    /// CDW12 bits 11:8: descriptor format (DESFMT).
    pub format: u8,
    /// CDW12 bit 30: force unit access (FUA).
    pub fua: bool,
}

impl CopyCmd {
    /// Takes the fields from a submission queue entry.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw12 = sqe.cdw12.get();
        CopyCmd {
            sdlba: sqe.slba(),
            ranges: (cdw12 & 0xff) as usize + 1,
            format: (cdw12 >> 8) as u8 & 0xf,
            fua: cdw12 & cdw12::FUA != 0,
        }
    }
}

/// Copy source range of descriptor format 0h, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CopyRange {
    /// Bytes 7:0.
    pub reserved0: [u8; 8],
    /// Bytes 15:8: starting LBA (SLBA).
    pub slba: U64,
    /// Bytes 17:16: number of logical blocks (NLB), zero based.
    pub nlb: U16,
    /// Bytes 23:18.
    pub reserved18: [u8; 6],
    /// Bytes 27:24: expected initial logical block reference tag (EILBRT).
    pub reference_tag: U32,
    /// Bytes 29:28: expected logical block application tag (ELBAT).
    pub application_tag: U16,
    /// Bytes 31:30: expected logical block application tag mask (ELBATM).
    pub application_tag_mask: U16,
}
const _: () = assert!(size_of::<CopyRange>() == 32);

/// Fields of an Abort command (Base Specification, "Abort command"): CDW10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbortCmd {
    /// CDW10 bits 15:0: submission queue identifier (SQID).
    pub sqid: u16,
    /// CDW10 bits 31:16: command identifier (CID).
    pub cid: u16,
}

impl AbortCmd {
    /// Dword 0 bit 0 of the completion: set if the command was not aborted.
    pub const NOT_ABORTED: u32 = 1;

    /// Takes the fields from a submission queue entry.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        AbortCmd { sqid: cdw10 as u16, cid: (cdw10 >> 16) as u16 }
    }

    /// CDW10 of the command.
    pub const fn cdw10(self) -> u32 {
        self.sqid as u32 | (self.cid as u32) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_from_bytes() {
        let raw = [[0u8, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x01]; 2].concat();
        let r = <[DsmRange]>::ref_from_bytes(&raw).unwrap();
        assert_eq!((r.len(), r[1].nlb.get(), r[1].slba.get()), (2, 8, 0x0100_0000_0000_0010));
    }

    #[test]
    fn copy_and_abort_fields() {
        let mut s = Sqe::new(0x19, 1, 1);
        s.set_slba(77);
        s.cdw12 = 0x4000_0203.into();
        assert_eq!(CopyCmd::of(&s), CopyCmd { sdlba: 77, ranges: 4, format: 2, fua: true });
        s.cdw10 = 0x0005_0002.into();
        let a = AbortCmd::of(&s);
        assert_eq!((a.sqid, a.cid, a.cdw10()), (2, 5, 0x0005_0002));
        assert_eq!(dsm::ranges(&s), 3);
    }
}
