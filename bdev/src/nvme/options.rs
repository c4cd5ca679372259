//! How remote controllers are used.

use std::net::SocketAddr;
use std::time::Duration;

use longshore_nvme::host::{HostOptions, TimeoutAction};

/// What holds for all controllers attached from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeOptions {
    /// What happens to a command that took too long.
    pub action_on_timeout: TimeoutAction,
    /// Longest time of an I/O command; zero: for ever.
    pub timeout: Duration,
    /// Longest time of an admin command; zero: as an I/O command.
    pub timeout_admin: Duration,
    /// Keep-alive timeout; zero: none.
    pub keep_alive: Duration,
    /// Commands outstanding on an I/O queue; 0: 512.
    pub io_queue_requests: u32,
    /// How often a request is tried again; -1: for ever. Kept: requests are not tried again yet.
    pub bdev_retry_count: i32,
    /// Seconds after which a lost controller is given up; -1: never. Kept, as the following two.
    pub ctrlr_loss_timeout_sec: i32,
    /// Seconds between attempts to reconnect.
    pub reconnect_delay_sec: u32,
    /// Seconds after which requests to a lost controller fail.
    pub fast_io_fail_timeout_sec: u32,
    /// Longest time for a connection; zero: 10 s.
    pub connect_timeout: Duration,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        NvmeOptions {
            action_on_timeout: TimeoutAction::None,
            timeout: Duration::ZERO,
            timeout_admin: Duration::ZERO,
            keep_alive: Duration::from_secs(10),
            io_queue_requests: 0,
            bdev_retry_count: 3,
            ctrlr_loss_timeout_sec: 0,
            reconnect_delay_sec: 0,
            fast_io_fail_timeout_sec: 0,
            connect_timeout: Duration::ZERO,
        }
    }
}

/// What holds for one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// Host NQN; one made of this process's host identifier if empty.
    pub hostnqn: String,
    /// Local address to connect from.
    pub source: Option<SocketAddr>,
    /// Ask for header digests.
    pub hdgst: bool,
    /// Ask for data digests.
    pub ddgst: bool,
    /// I/O queues to ask for.
    pub num_io_queues: u32,
    /// Most namespaces that become devices.
    pub max_bdevs: usize,
    /// Do without submission queue flow control.
    pub disable_sq_flow_control: bool,
}

impl Default for AttachOptions {
    fn default() -> Self {
        AttachOptions {
            hostnqn: String::new(),
            source: None,
            hdgst: false,
            ddgst: false,
            num_io_queues: 1024,
            max_bdevs: 128,
            disable_sq_flow_control: true,
        }
    }
}

impl NvmeOptions {
    /// What the host is told.
    pub(crate) fn host(&self, a: &AttachOptions) -> HostOptions {
        let or = |d: Duration, default: Duration| if d.is_zero() { default } else { d };
        let depth = match self.io_queue_requests {
            0 => 512,
            n => n.min(4096) as u16,
        };
        HostOptions {
            hostnqn: a.hostnqn.clone(),
            source: a.source,
            hdgst: a.hdgst,
            ddgst: a.ddgst,
            keep_alive: self.keep_alive,
            io_depth: depth,
            io_queues: u16::try_from(a.num_io_queues).unwrap_or(u16::MAX),
            connect_timeout: or(self.connect_timeout, Duration::from_secs(10)),
            io_timeout: self.timeout,
            admin_timeout: or(self.timeout_admin, self.timeout),
            on_timeout: self.action_on_timeout,
            disable_sq_flow_control: a.disable_sq_flow_control,
            ..HostOptions::default()
        }
    }
}
