//! Identify data of namespaces, and the lists that Identify returns: Base Specification, "Identify command"; NVM Command
//! Set Specification, "Identify command".

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Identify Namespace data structure of the NVM command set (CNS 00h), 4,096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Bytes 7:0: namespace size (NSZE) in logical blocks.
    pub nsze: U64,
    /// Bytes 15:8: namespace capacity (NCAP) in logical blocks.
    pub ncap: U64,
    /// Bytes 23:16: namespace utilization (NUSE) in logical blocks.
    pub nuse: U64,
    /// Byte 24: namespace features (NSFEAT), see [`nsfeat`].
    pub nsfeat: u8,
    /// Byte 25: number of LBA formats (NLBAF), zero based.
    pub nlbaf: u8,
    /// Byte 26: formatted LBA size (FLBAS), see [`flbas`].
    pub flbas: u8,
    /// Byte 27: metadata capabilities (MC): bit 0 extended LBA, bit 1 separate buffer.
    pub mc: u8,
    /// Byte 28: end-to-end data protection capabilities (DPC).
    pub dpc: u8,
    /// Byte 29: end-to-end data protection type settings (DPS): type in bits 2:0, bit 3 first bytes of metadata.
    pub dps: u8,
    /// Byte 30: multi-path I/O and sharing capabilities (NMIC): bit 0 shared.
    pub nmic: u8,
    /// Byte 31: reservation capabilities (RESCAP).
    pub rescap: u8,
    /// Byte 32: format progress indicator (FPI).
    pub fpi: u8,
    /// Byte 33: deallocate logical block features (DLFEAT), see [`dlfeat`].
    pub dlfeat: u8,
    /// Bytes 35:34: namespace atomic write unit normal (NAWUN), zero based.
    pub nawun: U16,
    /// Bytes 37:36: namespace atomic write unit power fail (NAWUPF), zero based.
    pub nawupf: U16,
    /// Bytes 39:38: namespace atomic compare and write unit (NACWU), zero based.
    pub nacwu: U16,
    /// Bytes 41:40: namespace atomic boundary size normal (NABSN), zero based.
    pub nabsn: U16,
    /// Bytes 43:42: namespace atomic boundary offset (NABO).
    pub nabo: U16,
    /// Bytes 45:44: namespace atomic boundary size power fail (NABSPF), zero based.
    pub nabspf: U16,
    /// Bytes 47:46: namespace optimal I/O boundary (NOIOB) in logical blocks.
    pub noiob: U16,
    /// Bytes 63:48: NVM capacity (NVMCAP) in bytes.
    pub nvmcap: U128,
    /// Bytes 65:64: namespace preferred write granularity (NPWG), zero based.
    pub npwg: U16,
    /// Bytes 67:66: namespace preferred write alignment (NPWA), zero based.
    pub npwa: U16,
    /// Bytes 69:68: namespace preferred deallocate granularity (NPDG), zero based.
    pub npdg: U16,
    /// Bytes 71:70: namespace preferred deallocate alignment (NPDA), zero based.
    pub npda: U16,
    /// Bytes 73:72: namespace optimal write size (NOWS), zero based.
    pub nows: U16,
    /// Bytes 75:74: maximum single source range length (MSSRL) of Copy, in logical blocks.
    pub mssrl: U16,
    /// Bytes 79:76: maximum copy length (MCL) in logical blocks.
    pub mcl: U32,
    /// Byte 80: maximum source range count (MSRC) of Copy, zero based.
    pub msrc: u8,
    /// Bytes 91:81.
    pub reserved81: [u8; 11],
    /// Bytes 95:92: ANA group identifier (ANAGRPID).
    pub anagrpid: U32,
    /// Bytes 98:96.
    pub reserved96: [u8; 3],
    /// Byte 99: namespace attributes (NSATTR): bit 0 write protected.
    pub nsattr: u8,
    /// Bytes 101:100: NVM set identifier (NVMSETID).
    pub nvmsetid: U16,
    /// Bytes 103:102: endurance group identifier (ENDGID).
    pub endgid: U16,
    /// Bytes 119:104: namespace globally unique identifier (NGUID), big endian.
    pub nguid: [u8; 16],
    /// Bytes 127:120: IEEE extended unique identifier (EUI64), big endian.
    pub eui64: [u8; 8],
    /// Bytes 383:128: LBA formats 0 to 63 (LBAF).
    pub lbaf: [LbaFormat; 64],
    /// Bytes 4095:384: vendor specific.
    pub vendor: [u8; 3712],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);

/// LBA format data structure, 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Bytes 1:0: metadata size (MS) in bytes per block.
    pub ms: U16,
    /// Byte 2: LBA data size (LBADS) as a power of two, at least 9.
    pub lbads: u8,
    /// Byte 3: relative performance (RP) in bits 1:0, 0 is best.
    pub rp: u8,
}
const _: () = assert!(size_of::<LbaFormat>() == 4);

/// Bits of [`IdentifyNamespace::nsfeat`].
pub mod nsfeat {
    /// Thin provisioning.
    pub const THIN: u8 = 1 << 0;
    /// NAWUN, NAWUPF and NACWU are defined for this namespace.
    pub const ATOMIC: u8 = 1 << 1;
    /// Deallocated or Unwritten Logical Block error supported.
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    /// NGUID and EUI64 are never reused.
    pub const ID_NEVER_REUSED: u8 = 1 << 3;
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const OPTIMAL_PERFORMANCE: u8 = 1 << 4;
}

/// Bits of [`IdentifyNamespace::flbas`].
pub mod flbas {
    /// Bits 3:0: index of the LBA format (low part).
    pub const INDEX: u8 = 0x0f;
    /// Bit 4: metadata is transferred at the end of the data LBA.
    pub const EXTENDED: u8 = 1 << 4;
}

/// Bits of [`IdentifyNamespace::dlfeat`].
pub mod dlfeat {
    /// Bits 2:0 = 001b: deallocated blocks read as zeroes.
    pub const READ_ZEROES: u8 = 0b001;
    /// Bit 3: Write Zeroes supports the Deallocate bit.
    pub const WRITE_ZEROES_DEALLOCATE: u8 = 1 << 3;
}

/// I/O command set specific Identify Namespace for the NVM command set (CNS 05h, CSI 00h), 4,096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyNamespace {
    /// Bytes 7:0: logical block storage tag mask (LBSTM).
    pub lbstm: U64,
    /// Byte 8: protection information capabilities (PIC).
    pub pic: u8,
    /// Bytes 11:9.
    pub reserved9: [u8; 3],
    /// Bytes 267:12: extended LBA formats 0 to 63 (ELBAF).
    pub elbaf: [U32; 64],
    /// Bytes 4095:268.
    pub reserved268: [u8; 3828],
}
const _: () = assert!(size_of::<NvmIdentifyNamespace>() == 4096);

/// I/O command set specific Identify Controller for the NVM command set (CNS 06h, CSI 00h), 4,096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyController {
    /// Byte 0: verify size limit (VSL) as a power of two of CAP.MPSMIN, 0 for none.
    pub vsl: u8,
    /// Byte 1: write zeroes size limit (WZSL), likewise.
    pub wzsl: u8,
    /// Byte 2: write uncorrectable size limit (WUSL), likewise.
    pub wusl: u8,
    /// Byte 3: dataset management ranges limit (DMRL), 0 for none.
    pub dmrl: u8,
    /// Bytes 7:4: dataset management range size limit (DMRSL) in logical blocks, 0 for none.
    pub dmrsl: U32,
    /// Bytes 15:8: dataset management size limit (DMSL) in logical blocks, 0 for none.
    pub dmsl: U64,
    /// Bytes 4095:16.
    pub reserved16: [u8; 4080],
}
const _: () = assert!(size_of::<NvmIdentifyController>() == 4096);

/// I/O command set independent Identify Namespace (CNS 08h), 4,096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndependentIdentifyNamespace {
    /// Byte 0: common namespace features (NSFEAT): bit 3 identifiers never reused, bit 4 rotational media.
    pub nsfeat: u8,
    /// Byte 1: multi-path I/O and sharing capabilities (NMIC): bit 0 shared.
    pub nmic: u8,
    /// Byte 2: reservation capabilities (RESCAP).
    pub rescap: u8,
    /// Byte 3: format progress indicator (FPI).
    pub fpi: u8,
    /// Bytes 7:4: ANA group identifier (ANAGRPID).
    pub anagrpid: U32,
    /// Byte 8: namespace attributes (NSATTR): bit 0 write protected.
    pub nsattr: u8,
    /// Byte 9.
    pub reserved9: u8,
    /// Bytes 11:10: NVM set identifier (NVMSETID).
    pub nvmsetid: U16,
    /// Bytes 13:12: endurance group identifier (ENDGID).
    pub endgid: U16,
    /// Byte 14: namespace status (NSTAT): bit 0 ready (NRDY).
    pub nstat: u8,
    /// Bytes 4095:15.
    pub reserved15: [u8; 4081],
}
const _: () = assert!(size_of::<IndependentIdentifyNamespace>() == 4096);

/// Namespace list (CNS 02h, 07h, 10h, 1Ah; also the Changed Attached Namespace List log page): up to 1,024 NSIDs,
/// ascending, unused entries zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct NamespaceList(pub [U32; 1024]);
const _: () = assert!(size_of::<NamespaceList>() == 4096);

impl NamespaceList {
    /// The first 1,024 of `nsids`, which must ascend.
    pub fn of(nsids: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self::new_zeroed();
        for (entry, nsid) in list.0.iter_mut().zip(nsids) {
            *entry = nsid.into();
        }
        list
    }

    /// The entries up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|n| n.get()).take_while(|&n| n != 0)
    }
}

/// Controller list (CNS 12h, 13h): a count and up to 2,047 controller identifiers, ascending.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControllerList {
    /// Bytes 1:0: number of identifiers.
    pub count: U16,
    /// Bytes 4095:2: identifiers.
    pub ids: [U16; 2047],
}
const _: () = assert!(size_of::<ControllerList>() == 4096);

impl ControllerList {
    /// The first 2,047 of `cntlids`, which must ascend.
    pub fn of(cntlids: impl IntoIterator<Item = u16>) -> Self {
        let mut list = Self::new_zeroed();
        for (entry, id) in list.ids.iter_mut().zip(cntlids) {
            *entry = id.into();
            list.count += 1;
        }
        list
    }

    /// The identifiers that the count covers.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ids.iter().map(|n| n.get()).take(self.count.get().into())
    }
}

/// Namespace identification descriptor list (CNS 03h): descriptors of 4 + NIDL bytes one after the other; a descriptor
/// with NIDL 0 ends the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct NamespaceDescriptors(pub [u8; 4096]);
const _: () = assert!(size_of::<NamespaceDescriptors>() == 4096);

/// Namespace Identifier Type (NIDT).
pub mod nidt {
    /// IEEE extended unique identifier, 8 bytes.
    pub const EUI64: u8 = 1;
    /// Namespace globally unique identifier, 16 bytes.
    pub const NGUID: u8 = 2;
    /// Namespace UUID, 16 bytes.
    pub const UUID: u8 = 3;
    /// Command set identifier, 1 byte.
    pub const CSI: u8 = 4;
}

impl NamespaceDescriptors {
    /// The list of the given `(NIDT, identifier)` pairs. Pairs that do not fit are left out; an identifier is at most
    /// 16 bytes long.
    pub fn of(descriptors: &[(u8, &[u8])]) -> Self {
        let mut list = Self::new_zeroed();
        let mut at = 0;
        for &(nidt, nid) in descriptors {
            let end = at + 4 + nid.len();
            if nid.len() > 16 || end > list.0.len() {
                continue;
            }
            list.0[at] = nidt;
            list.0[at + 1] = nid.len() as u8;
            list.0[at + 4..end].copy_from_slice(nid);
            at = end;
        }
        list
    }

    /// `(NIDT, identifier)` of each descriptor; ends at one that would run over the end of the list.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> + '_ {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (&[nidt, nidl, _, _], after) = rest.split_first_chunk::<4>()?;
            if nidl == 0 {
                return None;
            }
            let (nid, next) = after.split_at_checked(nidl.into())?;
            rest = next;
            Some((nidt, nid))
        })
    }
}

/// I/O command set combinations (CNS 1Ch): 512 vectors, each with one bit per supported command set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct CommandSets(pub [U64; 512]);
const _: () = assert!(size_of::<CommandSets>() == 4096);

impl CommandSets {
    /// Bit of the NVM command set in a vector.
    pub const NVM: u64 = 1 << 0;
    /// Bit of the key value command set in a vector.
    pub const KEY_VALUE: u64 = 1 << 1;
    /// Bit of the zoned namespace command set in a vector.
    pub const ZONED: u64 = 1 << 2;
}

/// UUID list (CNS 17h): entry 0 is reserved, a UUID index of n means entry n; the first zero UUID ends the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct UuidList(pub [UuidEntry; 128]);
const _: () = assert!(size_of::<UuidList>() == 4096);

/// UUID list entry, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UuidEntry {
    /// Byte 0: identifier association in bits 1:0.
    pub header: u8,
    /// Bytes 15:1.
    pub reserved1: [u8; 15],
    /// Bytes 31:16: UUID, big endian.
    pub uuid: [u8; 16],
}
const _: () = assert!(size_of::<UuidEntry>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_lie_at_their_bytes() {
        macro_rules! at {
            ($t:ty: $($f:ident = $n:literal),* $(,)?) => { $(assert_eq!(offset_of!($t, $f), $n, stringify!($f));)* };
        }
        at!(IdentifyNamespace: nsfeat = 24, flbas = 26, dps = 29, nmic = 30, dlfeat = 33, nawun = 34, noiob = 46, nvmcap = 48,
            npwg = 64, mssrl = 74, mcl = 76, msrc = 80, anagrpid = 92, nsattr = 99, endgid = 102, nguid = 104, eui64 = 120,
            lbaf = 128, vendor = 384);
        at!(IndependentIdentifyNamespace: anagrpid = 4, nsattr = 8, endgid = 12, nstat = 14);
        at!(NvmIdentifyNamespace: elbaf = 12, reserved268 = 268);
        at!(NvmIdentifyController: dmrsl = 4, dmsl = 8);
    }

    #[test]
    fn lists_round_trip_and_are_cut_at_their_size() {
        let l = NamespaceList::of([1, 5, 9]);
        assert_eq!(l.iter().collect::<Vec<_>>(), [1, 5, 9]);
        assert_eq!(NamespaceList::of(1..5000).iter().last(), Some(1024));
        let c = ControllerList::of([1, 2]);
        assert_eq!((c.count.get(), c.iter().collect::<Vec<_>>()), (2, vec![1, 2]));
        assert_eq!(ControllerList::of(0..3000).count.get(), 2047);
        assert_eq!(ControllerList { count: 0xffff.into(), ..c }.iter().count(), 2047);
    }

    #[test]
    fn descriptors_round_trip_and_survive_garbage() {
        let uuid = [7u8; 16];
        let d = NamespaceDescriptors::of(&[(nidt::UUID, &uuid), (nidt::CSI, &[0]), (9, &[0; 17])]);
        assert_eq!(d.iter().collect::<Vec<_>>(), [(nidt::UUID, &uuid[..]), (nidt::CSI, &[0][..])]);
        assert_eq!(d.0[..4], [3, 16, 0, 0]);
        assert_eq!(NamespaceDescriptors([0xff; 4096]).iter().count(), 4096 / 259);
    }
}
