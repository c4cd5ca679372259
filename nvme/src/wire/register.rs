//! Controller properties, which fabrics read and write by Property Get and Property Set: Base Specification, "Controller
//! Properties".

use super::bits::bits;

/// Offset of a property.
pub mod offset {
    /// Controller Capabilities, 8 bytes, read only.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes, read only.
    pub const VS: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status, 4 bytes, read only on fabrics but for the write-1-to-clear bit NSSRO.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: u32 = 0x64;
    /// Controller Ready Timeouts, 4 bytes, read only.
    pub const CRTO: u32 = 0x68;
}

/// Value ("NVMe") that written to NSSR resets the NVM subsystem.
pub const NSSR_RESET: u32 = 0x4e56_4d65;

bits! {
    /// Controller Capabilities (CAP), offset 0h.
    Cap: u64 {
        /// Maximum Queue Entries Supported (MQES), zero based.
        mqes, with_mqes: 0, 16;
        /// Contiguous Queues Required (CQR): 1 on fabrics.
        cqr, with_cqr: 16, 1;
        /// Arbitration Mechanism Supported (AMS): bit 0 weighted round robin, bit 1 vendor specific.
        ams, with_ams: 17, 2;
        /// Timeout (TO): longest time to become ready or not ready, in units of 500 ms.
        to, with_to: 24, 8;
        /// Doorbell Stride (DSTRD): 0 on fabrics.
        dstrd, with_dstrd: 32, 4;
        /// NVM Subsystem Reset Supported (NSSRS).
        nssrs, with_nssrs: 36, 1;
        /// Command Sets Supported (CSS): bit 0 NVM command set, bit 6 one or more I/O command sets, bit 7 none.
        css, with_css: 37, 8;
        /// Boot Partition Support (BPS).
        bps, with_bps: 45, 1;
        /// Controller Power Scope (CPS).
        cps, with_cps: 46, 2;
        /// Memory Page Size Minimum (MPSMIN): 2 to the power of (12 + value) bytes.
        mpsmin, with_mpsmin: 48, 4;
        /// Memory Page Size Maximum (MPSMAX): 2 to the power of (12 + value) bytes.
        mpsmax, with_mpsmax: 52, 4;
        /// Persistent Memory Region Supported (PMRS).
        pmrs, with_pmrs: 56, 1;
        /// Controller Memory Buffer Supported (CMBS).
        cmbs, with_cmbs: 57, 1;
        /// NVM Subsystem Shutdown Supported (NSSS).
        nsss, with_nsss: 58, 1;
        /// Controller Ready Modes Supported (CRMS): bit 0 with media, bit 1 independent of media.
        crms, with_crms: 59, 2;
    }
}

bits! {
    /// Version (VS), offset 8h; the same layout as VER in Identify Controller.
    Version: u32 {
        /// Tertiary version number (TER).
        tertiary, with_tertiary: 0, 8;
        /// Minor version number (MNR).
        minor, with_minor: 8, 8;
        /// Major version number (MJR).
        major, with_major: 16, 16;
    }
}

impl Version {
    /// Version `major.minor.tertiary`.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Version((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }
}

bits! {
    /// Controller Configuration (CC), offset 14h.
    Cc: u32 {
        /// Enable (EN).
        en, with_en: 0, 1;
        /// I/O Command Set Selected (CSS): 0 NVM command set, 6 all supported command sets, 7 admin only.
        css, with_css: 4, 3;
        /// Memory Page Size (MPS): 2 to the power of (12 + value) bytes.
        mps, with_mps: 7, 4;
        /// Arbitration Mechanism Selected (AMS).
        ams, with_ams: 11, 3;
        /// Shutdown Notification (SHN): see [`shn`].
        shn, with_shn: 14, 2;
        /// I/O Submission Queue Entry Size (IOSQES), as a power of two: 6.
        iosqes, with_iosqes: 16, 4;
        /// I/O Completion Queue Entry Size (IOCQES), as a power of two: 4.
        iocqes, with_iocqes: 20, 4;
        /// Controller Ready Independent of Media Enable (CRIME).
        crime, with_crime: 24, 1;
    }
}

/// Values of [`Cc::shn`].
pub mod shn {
    /// No notification.
    pub const NONE: u32 = 0;
    /// Normal shutdown.
    pub const NORMAL: u32 = 1;
    /// Abrupt shutdown.
    pub const ABRUPT: u32 = 2;
}

bits! {
    /// Controller Status (CSTS), offset 1Ch.
    Csts: u32 {
        /// Ready (RDY).
        rdy, with_rdy: 0, 1;
        /// Controller Fatal Status (CFS).
        cfs, with_cfs: 1, 1;
        /// Shutdown Status (SHST): see [`shst`].
        shst, with_shst: 2, 2;
        /// NVM Subsystem Reset Occurred (NSSRO), cleared by writing 1.
        nssro, with_nssro: 4, 1;
        /// Processing Paused (PP).
        pp, with_pp: 5, 1;
        /// Shutdown Type (ST): 0 controller, 1 NVM subsystem.
        st, with_st: 6, 1;
    }
}

/// Values of [`Csts::shst`].
pub mod shst {
    /// Normal operation.
    pub const NORMAL: u32 = 0;
    /// Shutdown processing occurring.
    pub const OCCURRING: u32 = 1;
    /// Shutdown processing complete.
    pub const COMPLETE: u32 = 2;
}

bits! {
    /// Controller Ready Timeouts (CRTO), offset 68h, both in units of 500 ms.
    Crto: u32 {
        /// Controller Ready With Media Timeout (CRWMT).
        crwmt, with_crwmt: 0, 16;
        /// Controller Ready Independent of Media Timeout (CRIMT).
        crimt, with_crimt: 16, 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_fields_lie_at_their_bits() {
        let cap = Cap(0).with_mqes(127).with_cqr(1).with_to(30).with_css(1 | 1 << 6).with_crms(1).with_mpsmax(4);
        assert_eq!(cap.0, 0x0840_0820_1e01_007f);
        assert_eq!((cap.mqes(), cap.to(), cap.css(), cap.crms()), (127, 30, 0x41, 1));
        assert_eq!(cap.with_to(0x1ff).to(), 0xff, "a setter drops bits beyond the field");
        assert_eq!(cap.with_to(0x1ff).mqes(), 127);
    }

    #[test]
    fn cc_as_linux_writes_it() {
        // Enabled, NVM command set, 4 KiB pages, 64 B submission and 16 B completion entries.
        let cc = Cc(0x0046_0001);
        assert_eq!((cc.en(), cc.css(), cc.mps(), cc.shn(), cc.iosqes(), cc.iocqes()), (1, 0, 0, 0, 6, 4));
        assert_eq!(cc.with_shn(shn::NORMAL).0, 0x0046_4001);
    }

    #[test]
    fn version_and_status() {
        assert_eq!(Version::new(2, 1, 0).0, 0x0002_0100);
        assert_eq!(Csts(0).with_rdy(1).with_shst(shst::COMPLETE).0, 0b1001);
    }
}
