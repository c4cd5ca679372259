//! SGL descriptors: Base Specification, "Scatter Gather List (SGL)"; their use over TCP: NVMe/TCP Transport Specification,
//! "Data Transfer Model".

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One 16-byte SGL descriptor.
///
/// A keyed data block descriptor divides bytes 14:8 differently: see [`SglDescriptor::keyed_length`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SglDescriptor {
    /// Bytes 7:0: address; with the offset sub type the offset in bytes into the in-capsule data.
    pub address: U64,
    /// Bytes 11:8: length in bytes.
    pub length: U32,
    /// Bytes 14:12: reserved (key bits 31:8 in a keyed descriptor).
    pub reserved: [u8; 3],
    /// Byte 15: SGL identifier, type in bits 7:4, sub type in bits 3:0.
    pub identifier: u8,
}
const _: () = assert!(size_of::<SglDescriptor>() == 16);

/// What an SGL identifier byte says, for the kinds met on fabrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SglKind {
    /// 00h: data block by address.
    DataBlock,
    /// 01h: data block by offset: the data is in the capsule.
    InCapsule,
    /// 1xh: bit bucket.
    BitBucket,
    /// 2xh: segment.
    Segment,
    /// 3xh: last segment.
    LastSegment,
    /// 40h, 4Fh: keyed data block (RDMA); `invalidate` is sub type Fh.
    KeyedDataBlock {
        /// The key is to be invalidated when the command completes.
        invalidate: bool,
    },
    /// 5Ah: transport data block: the transport (TCP) moves the data by its own PDUs.
    Transport,
    /// Everything else.
    Other(u8),
}

impl SglDescriptor {
    /// Identifier of a data block by address: type 0h, sub type 0h.
    pub const DATA_BLOCK: u8 = 0x00;
    /// Identifier of in-capsule data: data block (0h), sub type offset (1h).
    pub const IN_CAPSULE: u8 = 0x01;
    /// Identifier of a keyed data block: type 4h, sub type address (0h).
    pub const KEYED: u8 = 0x40;
    /// Identifier of a keyed data block whose key is invalidated: type 4h, sub type Fh.
    pub const KEYED_INVALIDATE: u8 = 0x4f;
    /// Identifier of a transport data block: type 5h, sub type NVMe transport specific (Ah).
    pub const TRANSPORT: u8 = 0x5a;

    /// In-capsule data of `length` bytes, `offset` bytes into the data of the capsule.
    pub const fn in_capsule(offset: u64, length: u32) -> Self {
        Self::with(offset, length, Self::IN_CAPSULE)
    }

    /// Data of `length` bytes that the transport moves outside the command capsule.
    pub const fn transport(length: u32) -> Self {
        Self::with(0, length, Self::TRANSPORT)
    }

    const fn with(address: u64, length: u32, identifier: u8) -> Self {
        SglDescriptor { address: U64::new(address), length: U32::new(length), reserved: [0; 3], identifier }
    }

    /// What kind of descriptor this is.
    pub const fn kind(&self) -> SglKind {
        match self.identifier {
            Self::DATA_BLOCK => SglKind::DataBlock,
            Self::IN_CAPSULE => SglKind::InCapsule,
            Self::KEYED => SglKind::KeyedDataBlock { invalidate: false },
            Self::KEYED_INVALIDATE => SglKind::KeyedDataBlock { invalidate: true },
            Self::TRANSPORT => SglKind::Transport,
            id => match id >> 4 {
                1 => SglKind::BitBucket,
                2 => SglKind::Segment,
                3 => SglKind::LastSegment,
                _ => SglKind::Other(id),
            },
        }
    }

    /// Length of a keyed data block: bytes 10:8, 24 bits.
    pub const fn keyed_length(&self) -> u32 {
        self.length.get() & 0x00ff_ffff
    }

    /// Key of a keyed data block: bytes 14:11.
    pub const fn key(&self) -> u32 {
        let r = self.reserved;
        u32::from_le_bytes([(self.length.get() >> 24) as u8, r[0], r[1], r[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_for_tcp_have_the_bytes_of_the_specification() {
        let d = SglDescriptor::in_capsule(0x10, 0x2000);
        assert_eq!(d.as_bytes(), [0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0x01]);
        assert_eq!(d.kind(), SglKind::InCapsule);
        let d = SglDescriptor::transport(4096);
        assert_eq!(d.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
        assert_eq!(d.kind(), SglKind::Transport);
    }

    #[test]
    fn keyed_descriptor_splits_length_and_key() {
        let d = SglDescriptor::read_from_bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0x40]).unwrap();
        assert_eq!((d.keyed_length(), d.key()), (0x030201, 0x07060504));
    }
}
