//! Discovery log page (LID 70h): Base Specification, "Discovery Log Page".

use super::ascii::{NqnField, space_padded, trimmed};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Header of the Discovery log page, 1,024 bytes; entries follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Bytes 7:0: generation counter (GENCTR).
    pub genctr: U64,
    /// Bytes 15:8: number of records (NUMREC).
    pub numrec: U64,
    /// Bytes 17:16: record format (RECFMT), 0.
    pub recfmt: U16,
    /// Bytes 1023:18.
    pub reserved18: [u8; 1006],
}
const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

/// Discovery log page entry, 1,024 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Byte 0: transport type (TRTYPE), see [`trtype`].
    pub trtype: u8,
    /// Byte 1: address family (ADRFAM), see [`adrfam`].
    pub adrfam: u8,
    /// Byte 2: subsystem type (SUBTYPE), see [`subtype`].
    pub subtype: u8,
    /// Byte 3: transport requirements (TREQ), see [`treq`].
    pub treq: u8,
    /// Bytes 5:4: port identifier (PORTID).
    pub portid: U16,
    /// Bytes 7:6: controller identifier (CNTLID): FFFFh dynamic model, FFFEh any of the static model.
    pub cntlid: U16,
    /// Bytes 9:8: admin maximum submission queue size (ASQSZ), at least 32.
    pub asqsz: U16,
    /// Bytes 11:10: entry flags (EFLAGS), see [`eflags`].
    pub eflags: U16,
    /// Bytes 31:12.
    pub reserved12: [u8; 20],
    /// Bytes 63:32: transport service identifier (TRSVCID), ASCII, the decimal TCP port.
    pub trsvcid: [u8; 32],
    /// Bytes 255:64.
    pub reserved64: [u8; 192],
    /// Bytes 511:256: NVM subsystem NQN (SUBNQN).
    pub subnqn: NqnField,
    /// Bytes 767:512: transport address (TRADDR), ASCII.
    pub traddr: [u8; 256],
    /// Bytes 1023:768: transport specific address subtype (TSAS); for TCP byte 0 is SECTYPE, 0 for no security.
    pub tsas: [u8; 256],
}
const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);

impl DiscoveryEntry {
    /// Stores the transport address, space padded, cut at 256 bytes.
    pub fn set_traddr(&mut self, traddr: &str) {
        self.traddr = space_padded(traddr);
    }

    /// Transport address without padding.
    pub fn traddr(&self) -> &str {
        trimmed(&self.traddr)
    }

    /// Stores the transport service identifier, space padded, cut at 32 bytes.
    pub fn set_trsvcid(&mut self, trsvcid: &str) {
        self.trsvcid = space_padded(trsvcid);
    }

    /// Transport service identifier without padding.
    pub fn trsvcid(&self) -> &str {
        trimmed(&self.trsvcid)
    }
}

/// Values of [`DiscoveryEntry::trtype`].
pub mod trtype {
    /// RDMA.
    pub const RDMA: u8 = 1;
    /// Fibre Channel.
    pub const FC: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 3;
    /// Intra-host.
    pub const INTRA_HOST: u8 = 254;
}

/// Values of [`DiscoveryEntry::adrfam`].
pub mod adrfam {
    /// IPv4.
    pub const IPV4: u8 = 1;
    /// IPv6.
    pub const IPV6: u8 = 2;
    /// InfiniBand.
    pub const IB: u8 = 3;
    /// Fibre Channel.
    pub const FC: u8 = 4;
    /// Intra-host.
    pub const INTRA_HOST: u8 = 254;
}

/// Values of [`DiscoveryEntry::subtype`].
pub mod subtype {
    /// Referral to another discovery subsystem.
    pub const REFERRAL: u8 = 1;
    /// NVM subsystem with namespaces.
    pub const NVM: u8 = 2;
    /// The current discovery subsystem.
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// Bits of [`DiscoveryEntry::treq`].
pub mod treq {
    /// Bits 1:0 = 00b: secure channel not specified.
    pub const SECURE_NOT_SPECIFIED: u8 = 0;
    /// Bits 1:0 = 01b: secure channel required.
    pub const SECURE_REQUIRED: u8 = 1;
    /// Bits 1:0 = 10b: secure channel not required.
    pub const SECURE_NOT_REQUIRED: u8 = 2;
    /// Bit 2: disabling submission queue flow control is supported.
    pub const SQ_FLOW_CONTROL_DISABLE: u8 = 1 << 2;
}

/// Bits of [`DiscoveryEntry::eflags`].
pub mod eflags {
    /// Duplicate returned information (DUPRETINFO).
    pub const DUPLICATE: u16 = 1 << 0;
    /// Explicit persistent connections to the discovery service are supported (EPCSD).
    pub const PERSISTENT: u16 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;
    use zerocopy::FromZeros;

    #[test]
    fn entry_fields_lie_at_their_bytes_and_are_space_padded() {
        assert_eq!(offset_of!(DiscoveryEntry, eflags), 10);
        assert_eq!(offset_of!(DiscoveryEntry, trsvcid), 32);
        assert_eq!(offset_of!(DiscoveryEntry, subnqn), 256);
        assert_eq!(offset_of!(DiscoveryEntry, traddr), 512);
        assert_eq!(offset_of!(DiscoveryEntry, tsas), 768);
        let mut e = DiscoveryEntry::new_zeroed();
        e.set_traddr("192.168.0.1");
        e.set_trsvcid("4420");
        assert_eq!((e.traddr(), e.trsvcid(), &e.trsvcid[4..6]), ("192.168.0.1", "4420", &b"  "[..]));
    }
}
