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
    /// How often a request is tried again that the controller ended for a passing reason; -1: for ever.
    pub bdev_retry_count: i32,
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
            connect_timeout: Duration::ZERO,
        }
    }
}

/// What happens when a controller is lost. By default it is tried once to connect it again; if that fails, requests fail until
/// it is reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconnect {
    /// Seconds after which a controller that did not come back is removed, and its devices with it; -1: never. 0: it is not
    /// connected again.
    pub ctrlr_loss_timeout_sec: i32,
    /// Seconds between attempts; 0: there is one.
    pub reconnect_delay_sec: u32,
    /// Seconds after which requests fail instead of waiting; 0: they wait until the controller is removed.
    pub fast_io_fail_timeout_sec: u32,
}

impl Reconnect {
    /// Why the three contradict each other, if they do.
    ///
    /// # Errors
    /// They do.
    pub fn check(&self) -> Result<(), String> {
        let Reconnect { ctrlr_loss_timeout_sec: loss, reconnect_delay_sec: delay, fast_io_fail_timeout_sec: fast } =
            *self;
        let why = match loss {
            i32::MIN..=-2 => "the first is -1 (never), 0 (at once) or a time",
            0 if delay != 0 || fast != 0 => "the others have no meaning when a lost controller is given up at once",
            0 => return Ok(()),
            _ if delay == 0 => "the second may not be 0",
            1.. if delay > loss as u32 => "the second may not exceed the first",
            1.. if fast > loss as u32 => "the third may not exceed the first",
            _ if fast != 0 && fast < delay => "the third may not be less than the second",
            _ => return Ok(()),
        };
        Err(format!(
            "ctrlr_loss_timeout_sec {loss}, reconnect_delay_sec {delay}, fast_io_fail_timeout_sec {fast}: {why}"
        ))
    }

    pub(super) fn delay(&self) -> Duration {
        Duration::from_secs(self.reconnect_delay_sec.into())
    }

    pub(super) fn fast_io_fail(&self) -> Option<Duration> {
        (self.fast_io_fail_timeout_sec != 0).then(|| Duration::from_secs(self.fast_io_fail_timeout_sec.into()))
    }

    pub(super) fn loss(&self) -> Option<Duration> {
        u64::try_from(self.ctrlr_loss_timeout_sec).ok().filter(|&s| s != 0).map(Duration::from_secs)
    }

    /// How long requests wait for a controller that is there but has no queue for them.
    pub(super) fn patience(&self) -> Duration {
        match (self.fast_io_fail(), self.loss()) {
            (Some(d), _) | (None, Some(d)) => d,
            _ if self.ctrlr_loss_timeout_sec < 0 => Duration::MAX,
            _ => Duration::from_secs(2),
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
    /// What happens when it is lost.
    pub reconnect: Reconnect,
    /// A discovery service attached it.
    pub discovered: bool,
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
            reconnect: Reconnect::default(),
            discovered: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_may_not_contradict_each_other() {
        let of = |(loss, delay, fast)| Reconnect {
            ctrlr_loss_timeout_sec: loss,
            reconnect_delay_sec: delay,
            fast_io_fail_timeout_sec: fast,
        };
        for r in [(0, 0, 0), (-1, 1, 0), (-1, 2, 2), (10, 10, 10), (10, 2, 5)] {
            assert_eq!(of(r).check(), Ok(()));
        }
        for r in [(-2, 1, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (5, 0, 0), (5, 6, 0), (5, 2, 1), (5, 1, 6)] {
            assert!(of(r).check().is_err(), "{r:?}");
        }
    }
}
