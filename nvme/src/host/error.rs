//! What may go wrong for a host.

use std::fmt;
use std::io;

use crate::wire::Status;

/// Why something that a host tried did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostError {
    /// No connection.
    Connect {
        /// Whereto.
        to: String,
        /// What the system said.
        kind: io::ErrorKind,
        /// The same in words.
        why: String,
    },
    /// Something took too long.
    TimedOut {
        /// What.
        what: String,
    },
    /// The controller refused a command.
    Refused {
        /// Which.
        what: &'static str,
        /// Its answer.
        status: Status,
        /// Dword 0 of the answer, which says more for Connect.
        dw0: u32,
    },
    /// The controller does what the specification does not allow, or asks for what this host cannot do.
    Peer(String),
    /// The connection ended.
    Lost(String),
    /// A parameter is wrong.
    Invalid(String),
    /// Memory, queue entries or queues ran out.
    Exhausted(String),
    /// The reactor or the controller is gone.
    Gone,
}

impl HostError {
    pub(crate) fn io(to: impl fmt::Display, e: &io::Error) -> HostError {
        HostError::Connect { to: to.to_string(), kind: e.kind(), why: e.to_string() }
    }

    /// The positive errno that clients of the RPC expect: of all that goes wrong with a peer, EIO.
    pub fn errno(&self) -> i32 {
        match self {
            HostError::Invalid(_) => 22,
            HostError::Exhausted(_) => 12,
            _ => 5,
        }
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            HostError::Refused { status, .. } => !status.dnr(),
            HostError::Invalid(_) | HostError::Peer(_) | HostError::Gone => false,
            _ => true,
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostError::Connect { to, why, .. } => write!(f, "no connection to {to}: {why}"),
            HostError::TimedOut { what } => write!(f, "{what} took too long"),
            HostError::Refused { what, status, dw0 } => {
                write!(f, "{what} was refused: {status}")?;
                if *status == Status::CONNECT_INVALID_PARAMETERS.with_dnr()
                    || status.is(Status::CONNECT_INVALID_PARAMETERS)
                {
                    let place = if dw0 >> 16 & 1 != 0 { "data" } else { "command" };
                    write!(f, ", at byte {} of the {place}", dw0 & 0xffff)?;
                }
                Ok(())
            }
            HostError::Peer(why) => write!(f, "the controller misbehaves: {why}"),
            HostError::Lost(why) => write!(f, "the connection ended: {why}"),
            HostError::Invalid(why) | HostError::Exhausted(why) => f.write_str(why),
            HostError::Gone => f.write_str("the controller is gone"),
        }
    }
}

impl std::error::Error for HostError {}

impl From<longshore_reactor::oneshot::Canceled> for HostError {
    fn from(_: longshore_reactor::oneshot::Canceled) -> Self {
        HostError::Gone
    }
}
