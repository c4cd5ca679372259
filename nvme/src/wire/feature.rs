//! Features: Base Specification, "Get Features command", "Set Features command".

use super::bits::bits;
use super::queue_entry::Sqe;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature identifiers.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// LBA Range Type (NVM command set).
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery (NVM command set).
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache: CDW11 bit 0 enables it.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing (not on fabrics).
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration (not on fabrics).
    pub const INTERRUPT_VECTOR_CONFIG: u8 = 0x09;
    /// Write Atomicity Normal (NVM command set): CDW11 bit 0 disables it.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration: see [`crate::wire::event::config`].
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    /// Autonomous Power State Transition.
    pub const AUTONOMOUS_POWER: u8 = 0x0c;
    /// Host Memory Buffer.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0d;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0e;
    /// Keep Alive Timer: CDW11 is the timeout in milliseconds.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Controlled Thermal Management.
    pub const THERMAL_MANAGEMENT: u8 = 0x10;
    /// Non-Operational Power State Config.
    pub const NON_OPERATIONAL_POWER: u8 = 0x11;
    /// Read Recovery Level Config.
    pub const READ_RECOVERY_LEVEL: u8 = 0x12;
    /// Predictable Latency Mode Config.
    pub const PREDICTABLE_LATENCY_CONFIG: u8 = 0x13;
    /// Predictable Latency Mode Window.
    pub const PREDICTABLE_LATENCY_WINDOW: u8 = 0x14;
    /// Host Behavior Support: data is a [`super::HostBehavior`].
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// Sanitize Config.
    pub const SANITIZE_CONFIG: u8 = 0x17;
    /// Endurance Group Event Configuration.
    pub const ENDURANCE_GROUP_EVENT: u8 = 0x18;
    /// I/O Command Set Profile: CDW11 bits 8:0 are the index of a command set combination.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Spinup Control.
    pub const SPINUP_CONTROL: u8 = 0x1a;
    /// Software Progress Marker.
    pub const SOFTWARE_PROGRESS: u8 = 0x80;
    /// Host Identifier: CDW11 bit 0 (EXHID) is set for the 128-bit one, which fabrics require.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace Write Protection Config.
    pub const WRITE_PROTECT: u8 = 0x84;
}

/// Which value Get Features asks for: SEL, CDW10 bits 10:8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// 000b: current value.
    Current,
    /// 001b: default value.
    Default,
    /// 010b: saved value.
    Saved,
    /// 011b: supported capabilities, see the `CAPABILITY_` constants.
    Capabilities,
    /// Reserved.
    Reserved(u8),
}

/// Dword 0 of Get Features with Select = supported capabilities: the feature is saveable.
pub const CAPABILITY_SAVEABLE: u32 = 1 << 0;
/// The feature is namespace specific.
pub const CAPABILITY_NAMESPACE_SPECIFIC: u32 = 1 << 1;
/// The feature is changeable.
pub const CAPABILITY_CHANGEABLE: u32 = 1 << 2;

/// Fields of a Get Features or Set Features command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeatureCmd {
    /// CDW10 bits 7:0: feature identifier (FID).
    pub fid: u8,
    /// CDW10 bits 10:8: select (SEL), Get Features only.
    pub select: Select,
    /// CDW10 bit 31: save (SV), Set Features only.
    pub save: bool,
    /// CDW11.
    pub value: u32,
    /// CDW14 bits 6:0: UUID index.
    pub uuid_index: u8,
}

impl FeatureCmd {
    /// Takes the fields from a submission queue entry.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        FeatureCmd {
            fid: cdw10 as u8,
            select: match (cdw10 >> 8) & 7 {
                0 => Select::Current,
                1 => Select::Default,
                2 => Select::Saved,
                3 => Select::Capabilities,
                n => Select::Reserved(n as u8),
            },
            save: cdw10 >> 31 != 0,
            value: sqe.cdw11.get(),
            uuid_index: sqe.cdw14.get() as u8 & 0x7f,
        }
    }
}

bits! {
    /// Number of Queues: CDW11 of Set Features (requested) and Dword 0 of the completion (allocated). Both zero based;
    /// FFFFh is not allowed in a request.
    QueueCount: u32 {
        /// Submission queues, zero based.
        submission, with_submission: 0, 16;
        /// Completion queues, zero based.
        completion, with_completion: 16, 16;
    }
}

bits! {
    /// CDW11 of Temperature Threshold.
    TemperatureThreshold: u32 {
        /// Threshold in Kelvin (TMPTH).
        kelvin, with_kelvin: 0, 16;
        /// Sensor (TMPSEL): 0 composite, 1 to 8 a sensor, Fh all (Set Features only).
        sensor, with_sensor: 16, 4;
        /// Type (THSEL): 0 over temperature, 1 under temperature.
        kind, with_kind: 20, 2;
    }
}

/// Data of Host Behavior Support (FID 16h), 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HostBehavior {
    /// Byte 0: advanced command retry enable (ACRE).
    pub acre: u8,
    /// Byte 1: extended telemetry data area 4 supported (ETDAS).
    pub etdas: u8,
    /// Byte 2: LBA format extension enable (LBAFEE).
    pub lbafee: u8,
    /// Byte 3: host dispersed namespace support (HDISNS).
    pub hdisns: u8,
    /// Bytes 5:4: copy descriptor formats enable (CDFE), bits 4:2 for formats 2h to 4h.
    pub cdfe: U16,
    /// Bytes 511:6.
    pub reserved6: [u8; 506],
}
const _: () = assert!(size_of::<HostBehavior>() == 512);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::opcode::admin;

    #[test]
    fn feature_command_fields() {
        let mut s = Sqe::new(admin::GET_FEATURES, 1, 0);
        s.cdw10 = 0x8000_0307.into();
        s.cdw11 = 0x0003_0004.into();
        let c = FeatureCmd::of(&s);
        assert_eq!((c.fid, c.select, c.save), (fid::NUMBER_OF_QUEUES, Select::Capabilities, true));
        assert_eq!((QueueCount(c.value).submission(), QueueCount(c.value).completion()), (4, 3));
    }
}
