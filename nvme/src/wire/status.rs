//! Completion status: Base Specification, "Status Field Definition".

use std::fmt;

/// Status of a completion: bits 31:17 of completion queue entry Dword 3, that is the Status Field without the phase tag.
///
/// | bits | field |
/// |---|---|
/// | 7:0 | Status Code (SC) |
/// | 10:8 | Status Code Type (SCT) |
/// | 12:11 | Command Retry Delay (CRD) |
/// | 13 | More (M): details are in the Error Information log page |
/// | 14 | Do Not Retry (DNR) |
///
/// Two statuses are equal if all fifteen bits are; use [`Status::is`] to compare the code alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;
const MORE: u16 = 1 << 13;
const CRD: u16 = 0b11 << 11;
const CODE: u16 = 0x7ff;

/// Status Code Type (SCT), bits 10:8 of [`Status`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StatusCodeType {
    /// 0h: generic command status.
    Generic,
    /// 1h: command specific status.
    CommandSpecific,
    /// 2h: media and data integrity errors.
    Media,
    /// 3h: path related status.
    Path,
    /// 7h: vendor specific.
    Vendor,
    /// Reserved value.
    Reserved(u8),
}

impl Status {
    /// A status of the given status code type (0 to 7; higher bits are dropped) and status code, all flags clear.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Status(((sct as u16 & 7) << 8) | sc as u16)
    }

    /// The status whose fifteen bits are `raw`; bit 15 is dropped.
    pub const fn from_raw(raw: u16) -> Self {
        Status(raw & 0x7fff)
    }

    /// All fifteen bits.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Status Code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Status Code Type as a number, 0 to 7.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status Code Type.
    pub const fn kind(self) -> StatusCodeType {
        match self.sct() {
            0 => StatusCodeType::Generic,
            1 => StatusCodeType::CommandSpecific,
            2 => StatusCodeType::Media,
            3 => StatusCodeType::Path,
            7 => StatusCodeType::Vendor,
            n => StatusCodeType::Reserved(n),
        }
    }

    /// Command Retry Delay: 0 for none, else the index (1 to 3) of the controller's CRDT field to wait for before retrying.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// More: the Error Information log page tells more.
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Do Not Retry: the same command is expected to fail again.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status with Do Not Retry set.
    pub const fn with_dnr(self) -> Self {
        Status(self.0 | DNR)
    }

    /// The same status with Do Not Retry clear.
    pub const fn without_dnr(self) -> Self {
        Status(self.0 & !DNR)
    }

    /// The same status with the More flag set.
    pub const fn with_more(self) -> Self {
        Status(self.0 | MORE)
    }

    /// The same status with Command Retry Delay `crd` (0 to 3).
    pub const fn with_crd(self, crd: u8) -> Self {
        Status((self.0 & !CRD) | ((crd as u16 & 3) << 11))
    }

    /// Only status code type and status code, all flags clear.
    pub const fn code(self) -> Self {
        Status(self.0 & CODE)
    }

    /// True if status code type and status code equal those of `other`, whatever the flags.
    pub const fn is(self, other: Status) -> bool {
        self.0 & CODE == other.0 & CODE
    }

    /// True for Successful Completion.
    pub const fn is_ok(self) -> bool {
        self.0 & CODE == 0
    }

    /// True for everything but Successful Completion.
    pub const fn is_err(self) -> bool {
        !self.is_ok()
    }

    /// True if this is a path related status, which multipath software answers with another path.
    pub const fn is_path_error(self) -> bool {
        self.sct() == 3
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sct {:x}h sc {:02x}h", self.name().unwrap_or("unknown status"), self.sct(), self.sc())?;
        if self.crd() != 0 {
            write!(f, " crd {}", self.crd())?;
        }
        f.write_str(if self.more() { " more" } else { "" })?;
        f.write_str(if self.dnr() { " dnr)" } else { ")" })
    }
}

impl std::error::Error for Status {}

macro_rules! statuses {
    ($($ident:ident = $sct:literal, $sc:literal, $name:literal;)*) => {
        impl Status {
            $(#[doc = concat!("SCT ", stringify!($sct), "h, SC ", stringify!($sc), ": ", $name, ".")]
            pub const $ident: Status = Status::new($sct, $sc);)*

            /// Every named constant, for tables and tests.
            pub const NAMED: &'static [(Status, &'static str)] = &[$((Status::$ident, $name)),*];
        }
    };
}

statuses! {
    // Generic command status.
    SUCCESS = 0, 0x00, "successful completion";
    INVALID_OPCODE = 0, 0x01, "invalid command opcode";
    INVALID_FIELD = 0, 0x02, "invalid field in command";
    COMMAND_ID_CONFLICT = 0, 0x03, "command ID conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "data transfer error";
    ABORTED_POWER_LOSS = 0, 0x05, "commands aborted due to power loss notification";
    INTERNAL_ERROR = 0, 0x06, "internal error";
    ABORT_REQUESTED = 0, 0x07, "command abort requested";
    ABORTED_SQ_DELETION = 0, 0x08, "command aborted due to SQ deletion";
    ABORTED_FAILED_FUSED = 0, 0x09, "command aborted due to failed fused command";
    MISSING_FUSED = 0, 0x0a, "command aborted due to missing fused command";
    INVALID_NAMESPACE_OR_FORMAT = 0, 0x0b, "invalid namespace or format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0c, "command sequence error";
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0, 0x0d, "invalid SGL segment descriptor";
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0, 0x0e, "invalid number of SGL descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0f, "data SGL length invalid";
    METADATA_SGL_LENGTH_INVALID = 0, 0x10, "metadata SGL length invalid";
    SGL_DESCRIPTOR_TYPE_INVALID = 0, 0x11, "SGL descriptor type invalid";
    INVALID_USE_OF_CMB = 0, 0x12, "invalid use of controller memory buffer";
    PRP_OFFSET_INVALID = 0, 0x13, "PRP offset invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "atomic write unit exceeded";
    OPERATION_DENIED = 0, 0x15, "operation denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL offset invalid";
    HOST_ID_INCONSISTENT_FORMAT = 0, 0x18, "host identifier inconsistent format";
    KEEP_ALIVE_TIMER_EXPIRED = 0, 0x19, "keep alive timer expired";
    KEEP_ALIVE_TIMEOUT_INVALID = 0, 0x1a, "keep alive timeout invalid";
    ABORTED_PREEMPT = 0, 0x1b, "command aborted due to preempt and abort";
    SANITIZE_FAILED = 0, 0x1c, "sanitize failed";
    SANITIZE_IN_PROGRESS = 0, 0x1d, "sanitize in progress";
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0, 0x1e, "SGL data block granularity invalid";
    NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0, 0x1f, "command not supported for queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "namespace is write protected";
    COMMAND_INTERRUPTED = 0, 0x21, "command interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "transient transport error";
    PROHIBITED_BY_LOCKDOWN = 0, 0x23, "command prohibited by command and feature lockdown";
    ADMIN_COMMAND_MEDIA_NOT_READY = 0, 0x24, "admin command media not ready";
    INVALID_KEY_TAG = 0, 0x25, "invalid key tag";
    HOST_DISPERSED_NS_NOT_ENABLED = 0, 0x26, "host dispersed namespace support not enabled";
    HOST_ID_NOT_INITIALIZED = 0, 0x27, "host identifier not initialized";
    INCORRECT_KEY = 0, 0x28, "incorrect key";
    FDP_DISABLED = 0, 0x29, "FDP disabled";
    INVALID_PLACEMENT_HANDLE_LIST = 0, 0x2a, "invalid placement handle list";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA out of range";
    CAPACITY_EXCEEDED = 0, 0x81, "capacity exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "namespace not ready";
    RESERVATION_CONFLICT = 0, 0x83, "reservation conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "format in progress";

    // Command specific status.
    COMPLETION_QUEUE_INVALID = 1, 0x00, "completion queue invalid";
    INVALID_QUEUE_IDENTIFIER = 1, 0x01, "invalid queue identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "invalid queue size";
    ABORT_COMMAND_LIMIT_EXCEEDED = 1, 0x03, "abort command limit exceeded";
    AER_LIMIT_EXCEEDED = 1, 0x05, "asynchronous event request limit exceeded";
    INVALID_FIRMWARE_SLOT = 1, 0x06, "invalid firmware slot";
    INVALID_FIRMWARE_IMAGE = 1, 0x07, "invalid firmware image";
    INVALID_INTERRUPT_VECTOR = 1, 0x08, "invalid interrupt vector";
    INVALID_LOG_PAGE = 1, 0x09, "invalid log page";
    INVALID_FORMAT = 1, 0x0a, "invalid format";
    FIRMWARE_REQUIRES_CONVENTIONAL_RESET = 1, 0x0b, "firmware activation requires conventional reset";
    INVALID_QUEUE_DELETION = 1, 0x0c, "invalid queue deletion";
    FEATURE_NOT_SAVEABLE = 1, 0x0d, "feature identifier not saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0e, "feature not changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0f, "feature not namespace specific";
    FIRMWARE_REQUIRES_SUBSYSTEM_RESET = 1, 0x10, "firmware activation requires NVM subsystem reset";
    FIRMWARE_REQUIRES_CONTROLLER_RESET = 1, 0x11, "firmware activation requires controller level reset";
    FIRMWARE_REQUIRES_MAX_TIME_VIOLATION = 1, 0x12, "firmware activation requires maximum time violation";
    FIRMWARE_ACTIVATION_PROHIBITED = 1, 0x13, "firmware activation prohibited";
    OVERLAPPING_RANGE = 1, 0x14, "overlapping range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 1, 0x15, "namespace insufficient capacity";
    NAMESPACE_ID_UNAVAILABLE = 1, 0x16, "namespace identifier unavailable";
    NAMESPACE_ALREADY_ATTACHED = 1, 0x18, "namespace already attached";
    NAMESPACE_IS_PRIVATE = 1, 0x19, "namespace is private";
    NAMESPACE_NOT_ATTACHED = 1, 0x1a, "namespace not attached";
    THIN_PROVISIONING_NOT_SUPPORTED = 1, 0x1b, "thin provisioning not supported";
    CONTROLLER_LIST_INVALID = 1, 0x1c, "controller list invalid";
    SELF_TEST_IN_PROGRESS = 1, 0x1d, "device self-test in progress";
    BOOT_PARTITION_WRITE_PROHIBITED = 1, 0x1e, "boot partition write prohibited";
    INVALID_CONTROLLER_ID = 1, 0x1f, "invalid controller identifier";
    INVALID_SECONDARY_CONTROLLER_STATE = 1, 0x20, "invalid secondary controller state";
    INVALID_NUMBER_OF_CONTROLLER_RESOURCES = 1, 0x21, "invalid number of controller resources";
    INVALID_RESOURCE_ID = 1, 0x22, "invalid resource identifier";
    SANITIZE_PROHIBITED_PMR = 1, 0x23, "sanitize prohibited while persistent memory region is enabled";
    ANA_GROUP_ID_INVALID = 1, 0x24, "ANA group identifier invalid";
    ANA_ATTACH_FAILED = 1, 0x25, "ANA attach failed";
    INSUFFICIENT_CAPACITY = 1, 0x26, "insufficient capacity";
    NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 1, 0x27, "namespace attachment limit exceeded";
    LOCKDOWN_NOT_SUPPORTED = 1, 0x28, "prohibition of command execution not supported";
    COMMAND_SET_NOT_SUPPORTED = 1, 0x29, "I/O command set not supported";
    COMMAND_SET_NOT_ENABLED = 1, 0x2a, "I/O command set not enabled";
    COMMAND_SET_COMBINATION_REJECTED = 1, 0x2b, "I/O command set combination rejected";
    INVALID_COMMAND_SET = 1, 0x2c, "invalid I/O command set";
    IDENTIFIER_UNAVAILABLE = 1, 0x2d, "identifier unavailable";

    // Command specific status of the NVM command set (NVM Command Set Specification).
    CONFLICTING_ATTRIBUTES = 1, 0x80, "conflicting attributes, or (Connect) incompatible format";
    INVALID_PROTECTION_INFORMATION = 1, 0x81, "invalid protection information, or (Connect) controller busy";
    WRITE_TO_READ_ONLY_RANGE = 1, 0x82, "attempted write to read only range, or (Connect) invalid parameters";
    COMMAND_SIZE_LIMIT_EXCEEDED = 1, 0x83, "command size limit exceeded, or (Connect) restart discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "connect invalid host";
    INCOMPATIBLE_NAMESPACE_OR_FORMAT = 1, 0x85, "incompatible namespace or format, or (Disconnect) invalid queue type";
    FAST_COPY_NOT_POSSIBLE = 1, 0x86, "fast copy not possible";
    OVERLAPPING_IO_RANGE = 1, 0x87, "overlapping I/O range";
    INSUFFICIENT_RESOURCES = 1, 0x89, "insufficient resources";

    // Command specific status of fabrics commands that no other command uses.
    DISCOVERY_RESTART = 1, 0x90, "discover restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "authentication required";

    // Media and data integrity errors.
    WRITE_FAULT = 2, 0x80, "write fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "unrecovered read error";
    GUARD_CHECK_ERROR = 2, 0x82, "end-to-end guard check error";
    APPLICATION_TAG_CHECK_ERROR = 2, 0x83, "end-to-end application tag check error";
    REFERENCE_TAG_CHECK_ERROR = 2, 0x84, "end-to-end reference tag check error";
    COMPARE_FAILURE = 2, 0x85, "compare failure";
    ACCESS_DENIED = 2, 0x86, "access denied";
    DEALLOCATED_OR_UNWRITTEN = 2, 0x87, "deallocated or unwritten logical block";
    STORAGE_TAG_CHECK_ERROR = 2, 0x88, "end-to-end storage tag check error";

    // Path related status.
    INTERNAL_PATH_ERROR = 3, 0x00, "internal path error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "asymmetric access persistent loss";
    ANA_INACCESSIBLE = 3, 0x02, "asymmetric access inaccessible";
    ANA_TRANSITION = 3, 0x03, "asymmetric access transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "controller pathing error";
    HOST_PATHING_ERROR = 3, 0x70, "host pathing error";
    ABORTED_BY_HOST = 3, 0x71, "command aborted by host";
}

/// Command specific values that the fabrics commands give another meaning than the NVM command set does.
impl Status {
    /// SCT 1h, SC 80h, Connect: incompatible format (RECFMT not supported).
    pub const CONNECT_INCOMPATIBLE_FORMAT: Status = Status::new(1, 0x80);
    /// SCT 1h, SC 81h, Connect: the controller is busy or has no resources; the host may retry.
    pub const CONNECT_CONTROLLER_BUSY: Status = Status::new(1, 0x81);
    /// SCT 1h, SC 82h, Connect: invalid parameters; Dword 0 tells where (IATTR bit 16, IPO bits 15:0).
    pub const CONNECT_INVALID_PARAMETERS: Status = Status::new(1, 0x82);
    /// SCT 1h, SC 83h, Connect: the subsystem is not available, discovery should be run again.
    pub const CONNECT_RESTART_DISCOVERY: Status = Status::new(1, 0x83);
    /// SCT 1h, SC 85h, Disconnect: the queue type does not support Disconnect (admin queue).
    pub const INVALID_QUEUE_TYPE: Status = Status::new(1, 0x85);

    /// What the specification calls this status code, lower case; `None` if it is not one of the named constants.
    pub fn name(self) -> Option<&'static str> {
        Status::NAMED.iter().find(|(s, _)| s.is(self)).map(|&(_, n)| n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_completion_entry_has_them() {
        let s = Status::INVALID_FIELD.with_dnr().with_more().with_crd(2);
        assert_eq!(s.raw(), 0x7002);
        assert_eq!((s.sct(), s.sc(), s.crd(), s.more(), s.dnr()), (0, 2, 2, true, true));
        assert!(s.is(Status::INVALID_FIELD) && s != Status::INVALID_FIELD);
        assert_eq!(s.code(), Status::INVALID_FIELD);
        assert_eq!(s.without_dnr().raw(), 0x3002);
        assert_eq!(Status::from_raw(0xffff).raw(), 0x7fff);
    }

    #[test]
    fn named_constants_are_distinct() {
        for (i, (a, _)) in Status::NAMED.iter().enumerate() {
            for (b, name) in &Status::NAMED[i + 1..] {
                assert_ne!(a, b, "{name}");
            }
        }
    }

    #[test]
    fn display_names_code_and_flags() {
        assert_eq!(Status::SUCCESS.to_string(), "successful completion (sct 0h sc 00h)");
        assert_eq!(
            Status::LBA_OUT_OF_RANGE.with_crd(1).with_dnr().to_string(),
            "LBA out of range (sct 0h sc 80h crd 1 dnr)"
        );
        assert_eq!(Status::new(7, 0xc1).to_string(), "unknown status (sct 7h sc c1h)");
        assert_eq!(Status::new(7, 0xc1).kind(), StatusCodeType::Vendor);
    }
}
