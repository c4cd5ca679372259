//! Asynchronous events: Base Specification, "Asynchronous Event Request command".

/// What one Asynchronous Event Request completion reports, in Dword 0: type in bits 2:0, information in bits 15:8, log
/// page identifier in bits 23:16. Reading that log page (without Retain Asynchronous Event) clears the event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AsyncEvent {
    /// Asynchronous event type, bits 2:0.
    pub kind: u8,
    /// Asynchronous event information, bits 15:8.
    pub info: u8,
    /// Log page identifier, bits 23:16.
    pub lid: u8,
}

impl AsyncEvent {
    /// Type 0h: error status.
    pub const KIND_ERROR: u8 = 0;
    /// Type 1h: SMART / health status.
    pub const KIND_HEALTH: u8 = 1;
    /// Type 2h: notice.
    pub const KIND_NOTICE: u8 = 2;
    /// Type 6h: I/O command specific status.
    pub const KIND_IO: u8 = 6;
    /// Type 7h: vendor specific.
    pub const KIND_VENDOR: u8 = 7;

    /// Notice 00h: namespace attributes changed; log page Changed Attached Namespace List (04h).
    pub const NAMESPACE_CHANGED: AsyncEvent =
        AsyncEvent { kind: 2, info: 0x00, lid: super::log::lid::CHANGED_NAMESPACES };
    /// Notice 03h: asymmetric namespace access changed; log page 0Ch.
    pub const ANA_CHANGED: AsyncEvent = AsyncEvent { kind: 2, info: 0x03, lid: super::log::lid::ANA };
    /// Notice F0h: discovery log page changed; log page 70h.
    pub const DISCOVERY_CHANGED: AsyncEvent = AsyncEvent { kind: 2, info: 0xf0, lid: super::log::lid::DISCOVERY };
    /// I/O command specific 00h: reservation log page available; log page 80h.
    pub const RESERVATION_LOG: AsyncEvent = AsyncEvent { kind: 6, info: 0x00, lid: super::log::lid::RESERVATION };

    /// Dword 0 of the completion.
    pub const fn dw0(self) -> u32 {
        (self.kind as u32 & 7) | (self.info as u32) << 8 | (self.lid as u32) << 16
    }

    /// The event that a completion's Dword 0 reports.
    pub const fn from_dw0(dw0: u32) -> Self {
        AsyncEvent { kind: dw0 as u8 & 7, info: (dw0 >> 8) as u8, lid: (dw0 >> 16) as u8 }
    }
}

/// Bits of the Asynchronous Event Configuration feature (FID 0Bh, CDW11) and, at the same places from bit 8 up, of
/// Optional Asynchronous Events Supported (OAES) in Identify Controller.
pub mod config {
    /// Bits 7:0: SMART / health critical warnings, as in byte 0 of that log page.
    pub const HEALTH: u32 = 0xff;
    /// Bit 8: namespace attribute notices.
    pub const NAMESPACE: u32 = 1 << 8;
    /// Bit 9: firmware activation notices.
    pub const FIRMWARE: u32 = 1 << 9;
    /// Bit 10: telemetry log notices.
    pub const TELEMETRY: u32 = 1 << 10;
    /// Bit 11: asymmetric namespace access change notices.
    pub const ANA: u32 = 1 << 11;
    /// Bit 31: discovery log page change notices.
    pub const DISCOVERY: u32 = 1 << 31;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_as_linux_decodes_them() {
        assert_eq!(AsyncEvent::NAMESPACE_CHANGED.dw0(), 0x0004_0002);
        assert_eq!(AsyncEvent::ANA_CHANGED.dw0(), 0x000c_0302);
        assert_eq!(AsyncEvent::DISCOVERY_CHANGED.dw0(), 0x0070_f002);
        assert_eq!(AsyncEvent::from_dw0(0x0070_f002), AsyncEvent::DISCOVERY_CHANGED);
    }
}
