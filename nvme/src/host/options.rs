//! Where a controller is reached, and how it is used.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use crate::wire::DISCOVERY_NQN;

use super::events::EventSink;

/// Where a subsystem is reached over NVMe/TCP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransportId {
    /// Address (TRADDR, whose family is ADRFAM) and port (TRSVCID).
    pub addr: SocketAddr,
    /// Subsystem (SUBNQN).
    pub subnqn: String,
}

impl TransportId {
    /// The subsystem `subnqn` at `addr`.
    pub fn tcp(addr: SocketAddr, subnqn: impl Into<String>) -> TransportId {
        TransportId { addr, subnqn: subnqn.into() }
    }

    /// The discovery service at `addr`.
    pub fn discovery(addr: SocketAddr) -> TransportId {
        Self::tcp(addr, DISCOVERY_NQN)
    }

    /// "IPv4" or "IPv6".
    pub fn adrfam(&self) -> &'static str {
        if self.addr.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// The address alone.
    pub fn traddr(&self) -> IpAddr {
        self.addr.ip()
    }
}

impl std::fmt::Display for TransportId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.subnqn, self.addr)
    }
}

/// What happens to a command that took too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutAction {
    /// Nothing.
    #[default]
    None,
    /// An Abort command; if that does not help within the same time again, as `Reset`.
    Abort,
    /// The connection of an I/O queue, or of the whole controller, is ended, and [`ControllerEvent::TimedOut`] reported: the
    /// owner decides about a reset.
    ///
    /// [`ControllerEvent::TimedOut`]: super::ControllerEvent::TimedOut
    Reset,
}

/// How a host uses a controller.
#[derive(Clone)]
pub struct HostOptions {
    /// Host NQN; a fixed one made of the host identifier if empty.
    pub hostnqn: String,
    /// Host identifier. `None`: the UUID that the host NQN is made of, if it is of that form, otherwise this process's
    /// ([`set_process_hostid`]).
    pub hostid: Option<[u8; 16]>,
    /// Local address to connect from.
    pub source: Option<SocketAddr>,
    /// Ask for header digests.
    pub hdgst: bool,
    /// Ask for data digests.
    pub ddgst: bool,
    /// Keep-alive timeout (KATO), rounded up to what the controller can do; zero: none.
    pub keep_alive: Duration,
    /// Commands outstanding on the admin queue, 31 to 4,095.
    pub admin_depth: u16,
    /// Commands outstanding on an I/O queue, at most what the controller can do.
    pub io_depth: u16,
    /// I/O queues to ask for, at most 65,535.
    pub io_queues: u16,
    /// Longest time for a TCP connection and the exchange of ICReq and ICResp.
    pub connect_timeout: Duration,
    /// Longest time for each step of setting up a controller.
    pub setup_timeout: Duration,
    /// Longest time of an I/O command before `on_timeout`; zero: for ever.
    pub io_timeout: Duration,
    /// Longest time of an admin command before the controller is given up (with `on_timeout` other than `None`); zero: for ever.
    pub admin_timeout: Duration,
    /// What happens to a command that took too long.
    pub on_timeout: TimeoutAction,
    /// Ask for submission queue flow control to be disabled: the controller may then end reads without a response capsule. A
    /// controller that refuses is asked once more without.
    pub disable_sq_flow_control: bool,
    /// Told of asynchronous events and of the controller's end, on the owner's core.
    pub events: Option<EventSink>,
}

impl std::fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostOptions")
            .field("hostnqn", &self.hostnqn)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Default for HostOptions {
    fn default() -> Self {
        HostOptions {
            hostnqn: String::new(),
            hostid: None,
            source: None,
            hdgst: false,
            ddgst: false,
            keep_alive: Duration::from_secs(10),
            admin_depth: 31,
            io_depth: 128,
            io_queues: 127,
            connect_timeout: Duration::from_secs(10),
            setup_timeout: Duration::from_secs(10),
            io_timeout: Duration::ZERO,
            admin_timeout: Duration::ZERO,
            on_timeout: TimeoutAction::None,
            disable_sq_flow_control: true,
            events: None,
        }
    }
}

/// How host NQNs start that are made of a UUID (NVMe Base Specification 2.0, 4.5).
const OF_UUID: &str = "nqn.2014-08.org.nvmexpress:uuid:";

impl HostOptions {
    /// The host NQN that is used: the one given, or the one that follows from the host identifier.
    pub fn effective_hostnqn(&self) -> String {
        if !self.hostnqn.is_empty() {
            return self.hostnqn.clone();
        }
        format!("{OF_UUID}{}", uuid_text(&self.effective_hostid()))
    }

    /// The host identifier that is used.
    pub fn effective_hostid(&self) -> [u8; 16] {
        let named = || self.hostnqn.strip_prefix(OF_UUID).and_then(uuid_bytes);
        self.hostid.or_else(named).unwrap_or_else(process_hostid)
    }
}

/// What the usual text of a UUID stands for. `None` if it is none, or the nil UUID, which is no host identifier.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let dashes = |(i, c): (usize, u8)| (c == b'-') == matches!(i, 8 | 13 | 18 | 23);
    if text.len() != 36 || !text.bytes().enumerate().all(dashes) {
        return None;
    }
    let digits: Option<Vec<u8>> = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits?.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    (id != [0; 16]).then_some(id)
}

/// The usual text of a UUID.
pub(crate) fn uuid_text(b: &[u8; 16]) -> String {
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

static PROCESS: OnceLock<[u8; 16]> = OnceLock::new();

/// Sets what identifies this process as a host unless [`HostOptions`] say otherwise: a UUID that is the same whenever the program is
/// started again, so that controllers recognise who comes back. Without it, it is a random one. False: it is settled already.
pub fn set_process_hostid(id: [u8; 16]) -> bool {
    PROCESS.set(id).is_ok()
}

/// What identifies this process.
fn process_hostid() -> [u8; 16] {
    *PROCESS.get_or_init(|| {
        let mut id = [0; 16];
        for (i, half) in id.chunks_exact_mut(8).enumerate() {
            // Each `RandomState` has keys of its own, from the system's random numbers.
            let mut h = std::collections::hash_map::RandomState::new().build_hasher();
            h.write_usize(i);
            half.copy_from_slice(&h.finish().to_le_bytes());
        }
        // Version 4, variant 1.
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_name_is_named_after_its_identifier() {
        let o = HostOptions { hostid: Some(*b"0123456789abcdef"), ..HostOptions::default() };
        assert_eq!(o.effective_hostnqn(), "nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-616263646566");
        let named = HostOptions { hostnqn: "nqn.x".into(), ..o };
        assert_eq!((&*named.effective_hostnqn(), named.effective_hostid()), ("nqn.x", *b"0123456789abcdef"));
    }

    #[test]
    fn a_host_named_after_a_uuid_is_identified_by_it_and_others_are_this_process() {
        let of = |hostnqn: &str| HostOptions { hostnqn: hostnqn.into(), ..HostOptions::default() }.effective_hostid();
        assert_eq!(of("nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-61626364656f"), *b"0123456789abcdeo");
        assert_eq!(of("nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-61626364656F"), *b"0123456789abcdeo");
        let me = of("");
        assert_ne!(me, [0; 16]);
        for other in [
            "nqn.x",
            "nqn.2014-08.org.nvmexpress:uuid:",
            "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000000",
            "nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-61626364656g",
            "nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-38390-1626364656f",
            "nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-61626364656ff",
            "nqn.2014-08.org.nvmexpress:uuid:é0313233-3435-3637-3839-6162636465é",
        ] {
            assert_eq!(of(other), me, "{other}");
        }
        // Settled by its first use.
        assert!(!set_process_hostid([7; 16]));
        assert_eq!(of(""), me);
    }
}
