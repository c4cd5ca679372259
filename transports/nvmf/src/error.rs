//! Why a control operation was refused.

use std::fmt;

use longshore_bdev::BdevError;

use crate::address::{Address, TrType};

/// Why a control operation was refused. One variant per fault that clients tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// No subsystem has this NQN.
    SubsystemNotFound(String),
    /// A subsystem with this NQN exists.
    SubsystemExists(String),
    /// As many subsystems as allowed exist; the limit.
    TooManySubsystems(u32),
    /// The NQN is malformed.
    InvalidNqn(String),
    /// The subsystem is being deleted.
    SubsystemDestroyed(String),
    /// The range of controller identifiers is empty or leaves 1 to 65519.
    CntlidRange {
        /// Lowest.
        min: u16,
        /// Highest.
        max: u16,
    },
    /// A parameter is wrong; the text says which, its value and what is allowed.
    Invalid(String),
    /// The transport exists.
    TransportExists(TrType),
    /// The build has no such transport.
    TransportUnknown(TrType),
    /// The transport was not created.
    TransportMissing(TrType),
    /// The subsystem listens there already.
    ListenerExists(Address),
    /// The subsystem does not listen there.
    ListenerNotFound(Address),
    /// The address cannot be listened on.
    ListenFailed {
        /// Where.
        address: Address,
        /// errno, positive; 0 if there is none.
        errno: i32,
        /// Why.
        why: String,
    },
    /// The host is on the list.
    HostExists(String),
    /// The host is not on the list.
    HostNotFound(String),
    /// The subsystem has no namespace with this identifier.
    NamespaceNotFound(u32),
    /// The identifier is taken.
    NamespaceExists(u32),
    /// No identifier is free; the limit.
    TooManyNamespaces(u32),
    /// The device cannot be exported.
    Bdev(BdevError),
    /// The referral exists.
    ReferralExists(Address),
    /// There is no such referral.
    ReferralNotFound(Address),
    /// Something had not ended when the time allowed for it had.
    Timeout(String),
    /// The target is shut down.
    Stopped,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use TargetError::*;
        match self {
            SubsystemNotFound(n) => write!(f, "no subsystem has the NQN '{n}'"),
            SubsystemExists(n) => write!(f, "a subsystem with the NQN '{n}' exists already"),
            TooManySubsystems(n) => write!(f, "{n} subsystems exist already, which is the limit"),
            InvalidNqn(n) => write!(
                f,
                "'{n}' is no NQN: 'nqn.YYYY-MM.reverse.domain:name' or 'nqn.2014-08.org.nvmexpress:uuid:UUID', at most 223 bytes"
            ),
            SubsystemDestroyed(n) => write!(f, "subsystem '{n}' is being deleted"),
            CntlidRange { min, max } => {
                write!(f, "controller identifiers {min} to {max}: the range must ascend within 1 to 65519")
            }
            Invalid(m) => f.write_str(m),
            TransportExists(t) => write!(f, "transport {t} exists already"),
            TransportUnknown(t) => write!(f, "this build has no transport {t}"),
            TransportMissing(t) => write!(f, "transport {t} was not created"),
            ListenerExists(a) => write!(f, "the subsystem listens on {a} already"),
            ListenerNotFound(a) => write!(f, "the subsystem does not listen on {a}"),
            ListenFailed { address, why, .. } => write!(f, "cannot listen on {address}: {why}"),
            HostExists(h) => write!(f, "host '{h}' is on the list already"),
            HostNotFound(h) => write!(f, "host '{h}' is not on the list"),
            NamespaceNotFound(n) => write!(f, "the subsystem has no namespace {n}"),
            NamespaceExists(n) => write!(f, "namespace {n} exists already"),
            TooManyNamespaces(n) => write!(f, "the subsystem has no free namespace identifier up to its limit of {n}"),
            Bdev(e) => e.fmt(f),
            ReferralExists(a) => write!(f, "the referral to {a} exists already"),
            ReferralNotFound(a) => write!(f, "there is no referral to {a}"),
            Timeout(what) => write!(f, "timed out: {what}"),
            Stopped => f.write_str("the target is shut down"),
        }
    }
}

impl std::error::Error for TargetError {}

impl From<BdevError> for TargetError {
    fn from(e: BdevError) -> Self {
        TargetError::Bdev(e)
    }
}
