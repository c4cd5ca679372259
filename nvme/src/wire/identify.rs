//! Identify Controller: Base Specification, "Identify command", "Identify Controller data structure (CNS 01h)".

use super::ascii::NqnField;
use super::queue_entry::Sqe;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Controller or Namespace Structure (CNS): CDW10 bits 7:0 of Identify.
pub mod cns {
    /// Identify Namespace of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// NVM set list.
    pub const NVM_SETS: u8 = 0x04;
    /// I/O command set specific Identify Namespace.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// I/O command set specific Identify Controller.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// I/O command set specific active namespace ID list.
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// I/O command set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated namespace ID list.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Identify Namespace of an allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers attached to a namespace.
    pub const NAMESPACE_CONTROLLERS: u8 = 0x12;
    /// Controllers of the NVM subsystem.
    pub const SUBSYSTEM_CONTROLLERS: u8 = 0x13;
    /// Primary controller capabilities.
    pub const PRIMARY_CONTROLLER: u8 = 0x14;
    /// Secondary controller list.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// Namespace granularity list.
    pub const NAMESPACE_GRANULARITY: u8 = 0x16;
    /// UUID list.
    pub const UUIDS: u8 = 0x17;
    /// Domain list.
    pub const DOMAINS: u8 = 0x18;
    /// Endurance group list.
    pub const ENDURANCE_GROUPS: u8 = 0x19;
    /// I/O command set specific allocated namespace ID list.
    pub const COMMAND_SET_ALLOCATED_NAMESPACES: u8 = 0x1a;
    /// I/O command set specific Identify Namespace of an allocated namespace.
    pub const COMMAND_SET_ALLOCATED_NAMESPACE: u8 = 0x1b;
    /// I/O command set combinations.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// I/O Command Set Identifier (CSI).
pub mod csi {
    /// NVM command set.
    pub const NVM: u8 = 0x00;
    /// Key value command set.
    pub const KEY_VALUE: u8 = 0x01;
    /// Zoned namespace command set.
    pub const ZONED: u8 = 0x02;
}

/// Every namespace, where a command takes a namespace identifier.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Fields of an Identify command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentifyCmd {
    /// CDW10 bits 7:0: controller or namespace structure (CNS).
    pub cns: u8,
    /// CDW10 bits 31:16: controller identifier (CNTID).
    pub cntid: u16,
    /// CDW11 bits 15:0: CNS specific identifier.
    pub cns_specific: u16,
    /// CDW11 bits 31:24: command set identifier (CSI).
    pub csi: u8,
    /// CDW14 bits 6:0: UUID index.
    pub uuid_index: u8,
}

impl IdentifyCmd {
    /// Takes the fields from a submission queue entry.
    pub const fn of(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        IdentifyCmd {
            cns: cdw10 as u8,
            cntid: (cdw10 >> 16) as u16,
            cns_specific: cdw11 as u16,
            csi: (cdw11 >> 24) as u8,
            uuid_index: sqe.cdw14.get() as u8 & 0x7f,
        }
    }
}

/// Identify Controller data structure (CNS 01h), 4,096 bytes. Start from `IdentifyController::new_zeroed()`
/// ([`zerocopy::FromZeros`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// Bytes 1:0: PCI vendor identifier (VID).
    pub vid: U16,
    /// Bytes 3:2: PCI subsystem vendor identifier (SSVID).
    pub ssvid: U16,
    /// Bytes 23:4: serial number (SN), space padded.
    pub sn: [u8; 20],
    /// Bytes 63:24: model number (MN), space padded.
    pub mn: [u8; 40],
    /// Bytes 71:64: firmware revision (FR), space padded.
    pub fr: [u8; 8],
    /// Byte 72: recommended arbitration burst (RAB).
    pub rab: u8,
    /// Bytes 75:73: IEEE OUI identifier (IEEE).
    pub ieee: [u8; 3],
    /// Byte 76: multi-path I/O and namespace sharing capabilities (CMIC), see [`cmic`].
    pub cmic: u8,
    /// Byte 77: maximum data transfer size (MDTS): 2 to this power, in units of CAP.MPSMIN; 0 for no limit.
    pub mdts: u8,
    /// Bytes 79:78: controller identifier (CNTLID).
    pub cntlid: U16,
    /// Bytes 83:80: version (VER), see [`super::register::Version`].
    pub ver: U32,
    /// Bytes 87:84: RTD3 resume latency (RTD3R) in microseconds.
    pub rtd3r: U32,
    /// Bytes 91:88: RTD3 entry latency (RTD3E) in microseconds.
    pub rtd3e: U32,
    /// Bytes 95:92: optional asynchronous events supported (OAES), see [`super::event::config`].
    pub oaes: U32,
    /// Bytes 99:96: controller attributes (CTRATT), see [`ctratt`].
    pub ctratt: U32,
    /// Bytes 101:100: read recovery levels supported (RRLS).
    pub rrls: U16,
    /// Byte 102: boot partition capabilities (BPCAP).
    pub bpcap: u8,
    /// Byte 103.
    pub reserved103: u8,
    /// Bytes 107:104: NVM subsystem shutdown latency (NSSL) in microseconds.
    pub nssl: U32,
    /// Bytes 109:108.
    pub reserved108: [u8; 2],
    /// Byte 110: power loss signaling information (PLSI).
    pub plsi: u8,
    /// Byte 111: controller type (CNTRLTYPE), see [`cntrltype`].
    pub cntrltype: u8,
    /// Bytes 127:112: FRU globally unique identifier (FGUID).
    pub fguid: [u8; 16],
    /// Bytes 133:128: command retry delay times 1, 2 and 3 (CRDT) in units of 100 ms.
    pub crdt: [U16; 3],
    /// Byte 134: controller reachability capabilities (CRCAP).
    pub crcap: u8,
    /// Bytes 252:135.
    pub reserved135: [u8; 118],
    /// Byte 253: NVM subsystem report (NVMSR).
    pub nvmsr: u8,
    /// Byte 254: VPD write cycle information (VWCI).
    pub vwci: u8,
    /// Byte 255: management endpoint capabilities (MEC).
    pub mec: u8,
    /// Bytes 257:256: optional admin command support (OACS), see [`oacs`].
    pub oacs: U16,
    /// Byte 258: abort command limit (ACL), zero based.
    pub acl: u8,
    /// Byte 259: asynchronous event request limit (AERL), zero based.
    pub aerl: u8,
    /// Byte 260: firmware updates (FRMW): bit 0 slot 1 read only, bits 3:1 number of slots, bit 4 activation without reset.
    pub frmw: u8,
    /// Byte 261: log page attributes (LPA), see [`lpa`].
    pub lpa: u8,
    /// Byte 262: error log page entries (ELPE), zero based.
    pub elpe: u8,
    /// Byte 263: number of power states supported (NPSS), zero based.
    pub npss: u8,
    /// Byte 264: admin vendor specific command configuration (AVSCC).
    pub avscc: u8,
    /// Byte 265: autonomous power state transition attributes (APSTA).
    pub apsta: u8,
    /// Bytes 267:266: warning composite temperature threshold (WCTEMP) in Kelvin.
    pub wctemp: U16,
    /// Bytes 269:268: critical composite temperature threshold (CCTEMP) in Kelvin.
    pub cctemp: U16,
    /// Bytes 271:270: maximum time for firmware activation (MTFA) in units of 100 ms.
    pub mtfa: U16,
    /// Bytes 275:272: host memory buffer preferred size (HMPRE).
    pub hmpre: U32,
    /// Bytes 279:276: host memory buffer minimum size (HMMIN).
    pub hmmin: U32,
    /// Bytes 295:280: total NVM capacity (TNVMCAP) in bytes.
    pub tnvmcap: U128,
    /// Bytes 311:296: unallocated NVM capacity (UNVMCAP) in bytes.
    pub unvmcap: U128,
    /// Bytes 315:312: replay protected memory block support (RPMBS).
    pub rpmbs: U32,
    /// Bytes 317:316: extended device self-test time (EDSTT) in minutes.
    pub edstt: U16,
    /// Byte 318: device self-test options (DSTO).
    pub dsto: u8,
    /// Byte 319: firmware update granularity (FWUG) in units of 4 KiB.
    pub fwug: u8,
    /// Bytes 321:320: keep alive support (KAS): granularity of the timer in units of 100 ms, 0 for no support.
    pub kas: U16,
    /// Bytes 323:322: host controlled thermal management attributes (HCTMA).
    pub hctma: U16,
    /// Bytes 325:324: minimum thermal management temperature (MNTMT) in Kelvin.
    pub mntmt: U16,
    /// Bytes 327:326: maximum thermal management temperature (MXTMT) in Kelvin.
    pub mxtmt: U16,
    /// Bytes 331:328: sanitize capabilities (SANICAP).
    pub sanicap: U32,
    /// Bytes 335:332: host memory buffer minimum descriptor entry size (HMMINDS).
    pub hmminds: U32,
    /// Bytes 337:336: host memory maximum descriptors entries (HMMAXD).
    pub hmmaxd: U16,
    /// Bytes 339:338: NVM set identifier maximum (NSETIDMAX).
    pub nsetidmax: U16,
    /// Bytes 341:340: endurance group identifier maximum (ENDGIDMAX).
    pub endgidmax: U16,
    /// Byte 342: ANA transition time (ANATT) in seconds.
    pub anatt: u8,
    /// Byte 343: asymmetric namespace access capabilities (ANACAP), see [`anacap`].
    pub anacap: u8,
    /// Bytes 347:344: ANA group identifier maximum (ANAGRPMAX).
    pub anagrpmax: U32,
    /// Bytes 351:348: number of ANA group identifiers (NANAGRPID).
    pub nanagrpid: U32,
    /// Bytes 355:352: persistent event log size (PELS) in units of 64 KiB.
    pub pels: U32,
    /// Bytes 357:356: domain identifier.
    pub domain_id: U16,
    /// Bytes 367:358.
    pub reserved358: [u8; 10],
    /// Bytes 383:368: maximum endurance group capacity (MEGCAP) in bytes.
    pub megcap: U128,
    /// Bytes 511:384.
    pub reserved384: [u8; 2],
    /// Bytes 387:386: command quiesce time (CQT) in milliseconds after a keep-alive timeout or a lost association; 0: not reported.
    pub cqt: U16,
    /// Bytes 511:388.
    pub reserved388: [u8; 124],
    /// Byte 512: submission queue entry size (SQES): required in bits 3:0, maximum in bits 7:4, as powers of two.
    pub sqes: u8,
    /// Byte 513: completion queue entry size (CQES): required in bits 3:0, maximum in bits 7:4, as powers of two.
    pub cqes: u8,
    /// Bytes 515:514: maximum outstanding commands (MAXCMD) per I/O queue, mandatory on fabrics.
    pub maxcmd: U16,
    /// Bytes 519:516: number of namespaces (NN): the highest valid NSID.
    pub nn: U32,
    /// Bytes 521:520: optional NVM command support (ONCS), see [`oncs`].
    pub oncs: U16,
    /// Bytes 523:522: fused operation support (FUSES): bit 0 compare and write.
    pub fuses: U16,
    /// Byte 524: format NVM attributes (FNA).
    pub fna: u8,
    /// Byte 525: volatile write cache (VWC), see [`vwc`].
    pub vwc: u8,
    /// Bytes 527:526: atomic write unit normal (AWUN) in logical blocks, zero based.
    pub awun: U16,
    /// Bytes 529:528: atomic write unit power fail (AWUPF) in logical blocks, zero based.
    pub awupf: U16,
    /// Byte 530: I/O command set vendor specific command configuration (ICSVSCC).
    pub icsvscc: u8,
    /// Byte 531: namespace write protection capabilities (NWPC).
    pub nwpc: u8,
    /// Bytes 533:532: atomic compare and write unit (ACWU) in logical blocks, zero based.
    pub acwu: U16,
    /// Bytes 535:534: copy descriptor formats supported (CDFS): one bit per format.
    pub cdfs: U16,
    /// Bytes 539:536: SGL support (SGLS), see [`sgls`].
    pub sgls: U32,
    /// Bytes 543:540: maximum number of allowed namespaces (MNAN).
    pub mnan: U32,
    /// Bytes 559:544: maximum domain namespace attachments (MAXDNA).
    pub maxdna: U128,
    /// Bytes 563:560: maximum I/O controller namespace attachments (MAXCNA).
    pub maxcna: U32,
    /// Bytes 767:564.
    pub reserved564: [u8; 204],
    /// Bytes 1023:768: NVM subsystem NQN (SUBNQN).
    pub subnqn: NqnField,
    /// Bytes 1791:1024.
    pub reserved1024: [u8; 768],
    /// Bytes 1795:1792: I/O queue command capsule supported size (IOCCSZ) in units of 16 bytes, entry included.
    pub ioccsz: U32,
    /// Bytes 1799:1796: I/O queue response capsule supported size (IORCSZ) in units of 16 bytes: 1.
    pub iorcsz: U32,
    /// Bytes 1801:1800: in-capsule data offset (ICDOFF) in units of 16 bytes: 0 for TCP.
    pub icdoff: U16,
    /// Byte 1802: fabrics controller attributes (FCATT): bit 0 set for the static controller model.
    pub fcatt: u8,
    /// Byte 1803: maximum SGL data block descriptors (MSDBD), 0 for no limit.
    pub msdbd: u8,
    /// Bytes 1805:1804: optional fabrics commands support (OFCS): bit 0 Disconnect.
    pub ofcs: U16,
    /// Byte 1806: discovery controller type (DCTYPE).
    pub dctype: u8,
    /// Bytes 2047:1807.
    pub reserved1807: [u8; 241],
    /// Bytes 3071:2048: power state descriptors 0 to 31 (PSD).
    pub psd: [PowerState; 32],
    /// Bytes 4095:3072: vendor specific.
    pub vendor: [u8; 1024],
}
const _: () = assert!(size_of::<IdentifyController>() == 4096);

/// Power state descriptor, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerState {
    /// Bytes 1:0: maximum power (MP).
    pub mp: U16,
    /// Byte 2.
    pub reserved2: u8,
    /// Byte 3: bit 0 maximum power scale (MXPS), bit 1 non-operational state (NOPS).
    pub flags: u8,
    /// Bytes 7:4: entry latency (ENLAT) in microseconds.
    pub enlat: U32,
    /// Bytes 11:8: exit latency (EXLAT) in microseconds.
    pub exlat: U32,
    /// Byte 12: relative read throughput (RRT).
    pub rrt: u8,
    /// Byte 13: relative read latency (RRL).
    pub rrl: u8,
    /// Byte 14: relative write throughput (RWT).
    pub rwt: u8,
    /// Byte 15: relative write latency (RWL).
    pub rwl: u8,
    /// Bytes 31:16: idle and active power, emergency power fail times.
    pub power: [u8; 16],
}
const _: () = assert!(size_of::<PowerState>() == 32);

/// Bits of [`IdentifyController::cmic`].
pub mod cmic {
    /// The subsystem may have more than one port.
    pub const MULTI_PORT: u8 = 1 << 0;
    /// The subsystem may have more than one controller.
    pub const MULTI_CONTROLLER: u8 = 1 << 1;
    /// The controller is an SR-IOV virtual function.
    pub const SR_IOV: u8 = 1 << 2;
    /// Asymmetric namespace access reporting is supported.
    pub const ANA: u8 = 1 << 3;
}

/// Bits of [`IdentifyController::ctratt`].
pub mod ctratt {
    /// 128-bit host identifier.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Traffic based keep alive.
    pub const TRAFFIC_BASED_KEEP_ALIVE: u32 = 1 << 6;
    /// UUID list.
    pub const UUID_LIST: u32 = 1 << 9;
}

/// Values of [`IdentifyController::cntrltype`].
pub mod cntrltype {
    /// I/O controller.
    pub const IO: u8 = 1;
    /// Discovery controller.
    pub const DISCOVERY: u8 = 2;
    /// Administrative controller.
    pub const ADMINISTRATIVE: u8 = 3;
}

/// Bits of [`IdentifyController::oacs`].
pub mod oacs {
    /// Security Send and Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware Commit and Image Download.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace Management and Attachment.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// Device Self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// Directives.
    pub const DIRECTIVES: u16 = 1 << 5;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
}

/// Bits of [`IdentifyController::lpa`].
pub mod lpa {
    /// SMART / health log page per namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// Commands Supported and Effects log page.
    pub const EFFECTS: u8 = 1 << 1;
    /// Extended data for Get Log Page: 32-bit length and offset.
    pub const EXTENDED: u8 = 1 << 2;
    /// Telemetry log pages.
    pub const TELEMETRY: u8 = 1 << 3;
    /// Persistent Event log page.
    pub const PERSISTENT_EVENT: u8 = 1 << 4;
    /// Supported Log Pages and the other pages that describe support.
    pub const SUPPORTED_LOG_PAGES: u8 = 1 << 5;
}

/// Bits of [`IdentifyController::anacap`].
pub mod anacap {
    /// Able to report ANA Optimized.
    pub const OPTIMIZED: u8 = 1 << 0;
    /// Able to report ANA Non-Optimized.
    pub const NON_OPTIMIZED: u8 = 1 << 1;
    /// Able to report ANA Inaccessible.
    pub const INACCESSIBLE: u8 = 1 << 2;
    /// Able to report ANA Persistent Loss.
    pub const PERSISTENT_LOSS: u8 = 1 << 3;
    /// Able to report ANA Change.
    pub const CHANGE: u8 = 1 << 4;
    /// ANAGRPID does not change while the namespace is attached to any controller.
    pub const GROUP_FIXED: u8 = 1 << 6;
    /// Namespace Management accepts a non-zero ANAGRPID.
    pub const GROUP_MANAGED: u8 = 1 << 7;
}

/// Bits of [`IdentifyController::oncs`].
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save field in Set Features, select field in Get Features.
    pub const FEATURE_SAVE: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp feature.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

/// Bits of [`IdentifyController::vwc`].
pub mod vwc {
    /// A volatile write cache is present.
    pub const PRESENT: u8 = 1 << 0;
    /// Bits 2:1 = 10b: Flush with NSID FFFFFFFFh is not supported.
    pub const FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
    /// Bits 2:1 = 11b: Flush with NSID FFFFFFFFh flushes every namespace.
    pub const FLUSH_ALL_SUPPORTED: u8 = 0b11 << 1;
}

/// Bits of [`IdentifyController::sgls`].
pub mod sgls {
    /// Bits 1:0 = 01b: SGLs without alignment or granularity requirement.
    pub const SUPPORTED: u32 = 0b01;
    /// Bits 1:0 = 10b: SGLs with Dword alignment and granularity.
    pub const SUPPORTED_DWORD: u32 = 0b10;
    /// Keyed SGL data block descriptor.
    pub const KEYED: u32 = 1 << 2;
    /// Address field with offset: in-capsule data.
    pub const OFFSET: u32 = 1 << 20;
    /// Transport SGL data block descriptor.
    pub const TRANSPORT: u32 = 1 << 21;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_lie_at_their_bytes() {
        macro_rules! at {
            ($($f:ident = $n:literal),* $(,)?) => { $(assert_eq!(offset_of!(IdentifyController, $f), $n, stringify!($f));)* };
        }
        at!(
            sn = 4,
            mn = 24,
            fr = 64,
            rab = 72,
            cmic = 76,
            mdts = 77,
            cntlid = 78,
            ver = 80,
            oaes = 92,
            ctratt = 96,
            cntrltype = 111,
            fguid = 112,
            crdt = 128,
            nvmsr = 253,
            oacs = 256,
            acl = 258,
            aerl = 259,
            frmw = 260,
            lpa = 261,
            elpe = 262,
            npss = 263,
            wctemp = 266,
            tnvmcap = 280,
            unvmcap = 296,
            rpmbs = 312,
            kas = 320,
            sanicap = 328,
            anatt = 342,
            anacap = 343,
            anagrpmax = 344,
            nanagrpid = 348,
            megcap = 368,
            cqt = 386,
            sqes = 512,
            maxcmd = 514,
            nn = 516,
            oncs = 520,
            fuses = 522,
            fna = 524,
            vwc = 525,
            awun = 526,
            acwu = 532,
            cdfs = 534,
            sgls = 536,
            mnan = 540,
            maxcna = 560,
            subnqn = 768,
            ioccsz = 1792,
            icdoff = 1800,
            msdbd = 1803,
            ofcs = 1804,
            dctype = 1806,
            psd = 2048,
            vendor = 3072,
        );
    }

    #[test]
    fn identify_command_fields() {
        let mut s = Sqe::new(6, 1, 2);
        s.cdw10 = 0x0007_0005.into();
        s.cdw11 = 0x0200_0009.into();
        let c = IdentifyCmd::of(&s);
        assert_eq!((c.cns, c.cntid, c.cns_specific, c.csi), (cns::COMMAND_SET_NAMESPACE, 7, 9, csi::ZONED));
    }
}
