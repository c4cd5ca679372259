//! Log pages: Base Specification, "Get Log Page command".

use super::queue_entry::Sqe;
use super::status::Status;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log Page Identifier (LID).
pub mod lid {
    /// Supported Log Pages.
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const HEALTH: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Attached Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Device Self-test.
    pub const SELF_TEST: u8 = 0x06;
    /// Telemetry Host-Initiated.
    pub const TELEMETRY_HOST: u8 = 0x07;
    /// Telemetry Controller-Initiated.
    pub const TELEMETRY_CONTROLLER: u8 = 0x08;
    /// Endurance Group Information.
    pub const ENDURANCE_GROUP: u8 = 0x09;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0c;
    /// Persistent Event Log.
    pub const PERSISTENT_EVENT: u8 = 0x0d;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
    /// Sanitize Status.
    pub const SANITIZE: u8 = 0x81;
}

/// Fields of a Get Log Page command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPageCmd {
    /// CDW10 bits 7:0: log page identifier (LID).
    pub lid: u8,
    /// CDW10 bits 14:8: log specific parameter (LSP).
    pub lsp: u8,
    /// CDW10 bit 15: retain asynchronous event (RAE).
    pub rae: bool,
    /// CDW11 bits 31:16: log specific identifier (LSI).
    pub lsi: u16,
    /// Bytes to transfer: (NUMDU, NUMDL) + 1 Dwords, 4 to 16 GiB.
    pub len: u64,
    /// CDW12-13: log page offset (LPO): in bytes, or an index if `index_offset`.
    pub offset: u64,
    /// CDW14 bit 23: offset type (OT).
    pub index_offset: bool,
    /// CDW14 bits 31:24: command set identifier (CSI).
    pub csi: u8,
    /// CDW14 bits 6:0: UUID index.
    pub uuid_index: u8,
}

impl GetLogPageCmd {
    /// Takes the fields from a submission queue entry.
    pub const fn of(sqe: &Sqe) -> Self {
        let (cdw10, cdw11, cdw14) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw14.get());
        let numd = (cdw10 >> 16) as u64 | ((cdw11 & 0xffff) as u64) << 16;
        GetLogPageCmd {
            lid: cdw10 as u8,
            lsp: (cdw10 >> 8) as u8 & 0x7f,
            rae: cdw10 & 1 << 15 != 0,
            lsi: (cdw11 >> 16) as u16,
            len: (numd + 1) * 4,
            offset: sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32,
            index_offset: cdw14 & 1 << 23 != 0,
            csi: (cdw14 >> 24) as u8,
            uuid_index: cdw14 as u8 & 0x7f,
        }
    }

    /// Writes identifier, length (a multiple of 4, at least 4), offset, LSP and RAE into a submission queue entry.
    pub fn encode(&self, sqe: &mut Sqe) {
        debug_assert!(self.len.is_multiple_of(4) && self.len != 0);
        let numd = (self.len / 4).wrapping_sub(1) as u32;
        sqe.cdw10 =
            (self.lid as u32 | (self.lsp as u32 & 0x7f) << 8 | (self.rae as u32) << 15 | (numd & 0xffff) << 16).into();
        sqe.cdw11 = (numd >> 16 | (self.lsi as u32) << 16).into();
        sqe.cdw12 = (self.offset as u32).into();
        sqe.cdw13 = ((self.offset >> 32) as u32).into();
        sqe.cdw14 = (self.uuid_index as u32 & 0x7f | (self.index_offset as u32) << 23 | (self.csi as u32) << 24).into();
    }
}

/// Supported Log Pages log page (LID 00h), 1,024 bytes: one entry per log page identifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct SupportedLogPages(pub [U32; 256]);
const _: () = assert!(size_of::<SupportedLogPages>() == 1024);

impl SupportedLogPages {
    /// Bit 0 of an entry: the log page is supported (LSUPP).
    pub const LSUPP: u32 = 1 << 0;
    /// Bit 1 of an entry: the log page can be read by index offset (IOS).
    pub const IOS: u32 = 1 << 1;
}

/// Error Information log entry (LID 01h), 64 bytes; the newest entry comes first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// Bytes 7:0: error count, unique and rising; 0 marks an unused entry.
    pub error_count: U64,
    /// Bytes 9:8: submission queue identifier (SQID).
    pub sqid: U16,
    /// Bytes 11:10: command identifier (CID).
    pub cid: U16,
    /// Bytes 13:12: status in bits 15:1, phase tag in bit 0; see [`ErrorEntry::set_status`].
    pub status: U16,
    /// Bytes 15:14: parameter error location: byte in bits 7:0, bit in bits 10:8; FFFFh if not specific to a parameter.
    pub location: U16,
    /// Bytes 23:16: first LBA with the error.
    pub lba: U64,
    /// Bytes 27:24: namespace identifier (NSID).
    pub nsid: U32,
    /// Byte 28: vendor specific information available.
    pub vendor: u8,
    /// Byte 29: transport type (TRTYPE).
    pub trtype: u8,
    /// Byte 30: command set indicator.
    pub csi: u8,
    /// Byte 31: opcode of the command.
    pub opcode: u8,
    /// Bytes 39:32: command specific information.
    pub command_specific: U64,
    /// Bytes 41:40: transport type specific information.
    pub transport_specific: U16,
    /// Bytes 62:42.
    pub reserved42: [u8; 21],
    /// Byte 63: log page version: 0 if bytes 31:30 are not used, else 1.
    pub lpver: u8,
}
const _: () = assert!(size_of::<ErrorEntry>() == 64);

impl ErrorEntry {
    /// Stores a status with a zero phase tag.
    pub fn set_status(&mut self, status: Status) {
        self.status = (status.raw() << 1).into();
    }
}

/// SMART / Health Information log page (LID 02h), 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HealthLog {
    /// Byte 0: critical warning: bit 0 spare, 1 temperature, 2 reliability, 3 read only, 4 volatile backup failed.
    pub critical_warning: u8,
    /// Bytes 2:1: composite temperature in Kelvin.
    pub temperature: U16,
    /// Byte 3: available spare in percent.
    pub available_spare: u8,
    /// Byte 4: available spare threshold in percent.
    pub available_spare_threshold: u8,
    /// Byte 5: percentage used.
    pub percentage_used: u8,
    /// Byte 6: endurance group critical warning summary.
    pub endurance_warning: u8,
    /// Bytes 31:7.
    pub reserved7: [u8; 25],
    /// Bytes 47:32: data units read, in thousands of 512-byte units, rounded up.
    pub data_units_read: U128,
    /// Bytes 63:48: data units written, in thousands of 512-byte units, rounded up.
    pub data_units_written: U128,
    /// Bytes 79:64: host read commands.
    pub host_read_commands: U128,
    /// Bytes 95:80: host write commands.
    pub host_write_commands: U128,
    /// Bytes 111:96: controller busy time in minutes.
    pub controller_busy_time: U128,
    /// Bytes 127:112: power cycles.
    pub power_cycles: U128,
    /// Bytes 143:128: power on hours.
    pub power_on_hours: U128,
    /// Bytes 159:144: unexpected power losses.
    pub unsafe_shutdowns: U128,
    /// Bytes 175:160: media and data integrity errors.
    pub media_errors: U128,
    /// Bytes 191:176: number of error information log entries over the life of the controller.
    pub error_log_entries: U128,
    /// Bytes 195:192: warning composite temperature time in minutes.
    pub warning_temperature_time: U32,
    /// Bytes 199:196: critical composite temperature time in minutes.
    pub critical_temperature_time: U32,
    /// Bytes 215:200: temperature sensors 1 to 8 in Kelvin.
    pub temperature_sensors: [U16; 8],
    /// Bytes 231:216: thermal management transition counts and times.
    pub thermal: [U32; 4],
    /// Bytes 511:232.
    pub reserved232: [u8; 280],
}
const _: () = assert!(size_of::<HealthLog>() == 512);

/// Firmware Slot Information log page (LID 03h), 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareLog {
    /// Byte 0: active firmware info (AFI): active slot in bits 2:0, slot after the next reset in bits 6:4.
    pub afi: u8,
    /// Bytes 7:1.
    pub reserved1: [u8; 7],
    /// Bytes 63:8: firmware revisions of slots 1 to 7 (FRS), ASCII; zero if the slot is empty.
    pub frs: [[u8; 8]; 7],
    /// Bytes 511:64.
    pub reserved64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareLog>() == 512);

/// Changed Attached Namespace List log page (LID 04h): the namespaces changed since it was last read. More than 1,024
/// are told by a first entry of FFFFFFFFh and zeroes after it.
pub type ChangedNamespaces = super::identify_ns::NamespaceList;

/// Commands Supported and Effects log page (LID 05h), 4,096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EffectsLog {
    /// Bytes 1023:0: admin commands by opcode (ACS), see [`effects`].
    pub admin: [U32; 256],
    /// Bytes 2047:1024: I/O commands by opcode (IOCS), see [`effects`].
    pub io: [U32; 256],
    /// Bytes 4095:2048.
    pub reserved2048: [u8; 2048],
}
const _: () = assert!(size_of::<EffectsLog>() == 4096);

/// Bits of an entry of [`EffectsLog`].
pub mod effects {
    /// Command supported (CSUPP).
    pub const SUPPORTED: u32 = 1 << 0;
    /// Logical block content change (LBCC).
    pub const BLOCK_CONTENT: u32 = 1 << 1;
    /// Namespace capability change (NCC).
    pub const NAMESPACE_CAPABILITY: u32 = 1 << 2;
    /// Namespace inventory change (NIC).
    pub const NAMESPACE_INVENTORY: u32 = 1 << 3;
    /// Controller capability change (CCC).
    pub const CONTROLLER_CAPABILITY: u32 = 1 << 4;
    /// Bits 18:16 (CSE) = 001b: submit only with no other command outstanding to the same namespace.
    pub const EXCLUSIVE_NAMESPACE: u32 = 1 << 16;
    /// Bits 18:16 (CSE) = 010b: submit only with no other command outstanding to any namespace.
    pub const EXCLUSIVE_ALL: u32 = 2 << 16;
}

/// Header of the Asymmetric Namespace Access log page (LID 0Ch), 16 bytes; group descriptors follow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaHeader {
    /// Bytes 7:0: change count of the log page.
    pub change_count: U64,
    /// Bytes 9:8: number of ANA group descriptors.
    pub groups: U16,
    /// Bytes 15:10.
    pub reserved10: [u8; 6],
}
const _: () = assert!(size_of::<AnaHeader>() == 16);

/// ANA group descriptor, 32 bytes; `nsids` namespace identifiers of 4 bytes, ascending, follow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroup {
    /// Bytes 3:0: ANA group identifier.
    pub group_id: U32,
    /// Bytes 7:4: number of NSID values; 0 if the log was read with Return Groups Only (LSP bit 0).
    pub nsids: U32,
    /// Bytes 15:8: change count of the group.
    pub change_count: U64,
    /// Byte 16: state in bits 3:0, see [`AnaState`].
    pub state: u8,
    /// Bytes 31:17.
    pub reserved17: [u8; 15],
}
const _: () = assert!(size_of::<AnaGroup>() == 32);

/// LSP bit 0 of the Asymmetric Namespace Access log page: Return Groups Only (RGO).
pub const ANA_LSP_GROUPS_ONLY: u8 = 1;

/// Asymmetric namespace access state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum AnaState {
    /// 1h: optimized.
    #[default]
    Optimized = 0x1,
    /// 2h: non-optimized.
    NonOptimized = 0x2,
    /// 3h: inaccessible.
    Inaccessible = 0x3,
    /// 4h: persistent loss.
    PersistentLoss = 0x4,
    /// Fh: change.
    Change = 0xf,
}

impl AnaState {
    /// The state that the low four bits of `value` encode.
    pub const fn from_bits(value: u8) -> Option<Self> {
        Some(match value & 0xf {
            0x1 => AnaState::Optimized,
            0x2 => AnaState::NonOptimized,
            0x3 => AnaState::Inaccessible,
            0x4 => AnaState::PersistentLoss,
            0xf => AnaState::Change,
            _ => return None,
        })
    }

    /// The path related status with which I/O commands end in this state; `None` if they are processed.
    pub const fn io_status(self) -> Option<Status> {
        match self {
            AnaState::Optimized | AnaState::NonOptimized => None,
            AnaState::Inaccessible => Some(Status::ANA_INACCESSIBLE),
            AnaState::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
            AnaState::Change => Some(Status::ANA_TRANSITION),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn get_log_page_round_trips() {
        let cmd = GetLogPageCmd {
            lid: lid::ANA,
            lsp: 1,
            rae: true,
            lsi: 3,
            len: 0x4_0010,
            offset: 0x1_0000_0200,
            index_offset: false,
            csi: 2,
            uuid_index: 5,
        };
        let mut sqe = Sqe::new(2, 1, 0xffff_ffff);
        cmd.encode(&mut sqe);
        assert_eq!(sqe.cdw10.get(), 0x0003_810c);
        assert_eq!(sqe.cdw11.get(), 0x0003_0001);
        assert_eq!(GetLogPageCmd::of(&sqe), cmd);
        sqe.cdw10 = 0xffff_0002.into();
        sqe.cdw11 = 0xffff.into();
        assert_eq!(GetLogPageCmd::of(&sqe).len, 1 << 34, "the largest length does not overflow");
    }

    #[test]
    fn fields_lie_at_their_bytes() {
        assert_eq!(offset_of!(HealthLog, data_units_read), 32);
        assert_eq!(offset_of!(HealthLog, error_log_entries), 176);
        assert_eq!(offset_of!(HealthLog, temperature_sensors), 200);
        assert_eq!(offset_of!(ErrorEntry, nsid), 24);
        assert_eq!(offset_of!(ErrorEntry, command_specific), 32);
        assert_eq!(offset_of!(FirmwareLog, frs), 8);
        assert_eq!(offset_of!(AnaGroup, state), 16);
    }

    #[test]
    fn ana_states_map_to_their_status() {
        for v in 0..=255 {
            if let Some(s) = AnaState::from_bits(v) {
                assert_eq!(s as u8, v & 0xf);
            }
        }
        assert_eq!(AnaState::Change.io_status(), Some(Status::ANA_TRANSITION));
        assert_eq!(AnaState::NonOptimized.io_status(), None);
    }
}
