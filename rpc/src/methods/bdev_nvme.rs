//! `bdev_nvme_*`: remote controllers as block devices.

use serde_json::json;

use crate::app::App;
use crate::config::Entry;
use crate::decode::Params;
use crate::error::{EINVAL, EPERM, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::options::{DhchapDigest, DhchapGroup, all_digests, all_groups};
use crate::{choices, params};

choices! {
    /// What happens to a command that took too long.
    enum TimeoutAction { None = "none", Reset = "reset", Abort = "abort" }
}

choices! {
    /// Which paths are used.
    enum Policy { ActivePassive = "active_passive", ActiveActive = "active_active" }
}

choices! {
    /// How a path is chosen.
    enum Selector { RoundRobin = "round_robin", QueueDepth = "queue_depth" }
}

params! {
    /// How paths are used.
    struct Multipath {
        /// Which paths are used.
        policy: Policy = Policy::ActivePassive,
        /// How one of them is chosen.
        selector: Option<Selector>,
        /// Requests after which round robin changes the path.
        min_io: Option<u32>,
    }
}

params! {
    /// Options of all controllers.
    struct NvmeOptions {
        /// What happens to a command that took too long.
        action_on_timeout: TimeoutAction = TimeoutAction::None,
        /// How long an I/O command may take, us; 0: for ever.
        timeout_us: u64 = 0,
        /// How long an admin command may take, us; 0: as an I/O command.
        timeout_admin_us: u64 = 0,
        /// Keep-alive timeout, ms; 0: none.
        keep_alive_timeout_ms: u32 = 10000,
        /// Arbitration burst; no effect.
        arbitration_burst: u32 = 0,
        /// Weight of low priority; no effect.
        low_priority_weight: u32 = 0,
        /// Weight of medium priority; no effect.
        medium_priority_weight: u32 = 0,
        /// Weight of high priority; no effect.
        high_priority_weight: u32 = 0,
        /// How often the admin queue is polled, us; no effect: the ring says when.
        nvme_adminq_poll_period_us: u64 = 10000,
        /// How often I/O queues are polled, us; no effect: the ring says when.
        nvme_ioq_poll_period_us: u64 = 0,
        /// Requests of an I/O queue; 0: the default.
        io_queue_requests: u32 = 0,
        /// Gather commands of a turn; always done.
        delay_cmd_submit: bool = true,
        /// How often a command is sent again after a transport error.
        transport_retry_count: u32 = 4,
        /// How often an I/O is tried again; -1: for ever.
        bdev_retry_count: i32 = 3,
        /// Transport acknowledge timeout (rdma); no effect.
        transport_ack_timeout: u8 = 0,
        /// Seconds after which a lost controller is given up; 0: at once, -1: never.
        ctrlr_loss_timeout_sec: i32 = 0,
        /// Seconds between attempts to reconnect.
        reconnect_delay_sec: u32 = 0,
        /// Seconds after which I/O to a lost controller fails; 0: as long as the controller is not given up.
        fast_io_fail_timeout_sec: u32 = 0,
        /// Do not go back to a preferred path.
        disable_auto_failback: bool = false,
        /// Derive UUIDs for namespaces without one.
        generate_uuids: bool = false,
        /// Type of service (rdma); no effect.
        transport_tos: u8 = 0,
        /// Count errors by status; always done.
        nvme_error_stat: bool = false,
        /// Shared receive queue (rdma); no effect.
        rdma_srq_size: u32 = 0,
        /// Counters for each path.
        io_path_stat: bool = false,
        /// Hand work to the acceleration framework; no effect.
        allow_accel_sequence: bool = false,
        /// Completion queue (rdma); no effect.
        rdma_max_cq_size: u32 = 0,
        /// Connection events (rdma), ms; no effect.
        rdma_cm_event_timeout_ms: u16 = 0,
        /// Digests for in-band authentication. (Kept; authentication is not built.)
        dhchap_digests: Vec<DhchapDigest> = all_digests(),
        /// Groups for in-band authentication. (Kept; authentication is not built.)
        dhchap_dhgroups: Vec<DhchapGroup> = all_groups(),
        /// Memory keys (rdma); no effect.
        rdma_umr_per_io: bool = false,
        /// How long a connection may take, ms; 0: the default.
        tcp_connect_timeout_ms: u32 = 0,
        /// Send flushes to controllers without a volatile write cache too.
        enable_flush: bool = false,
        /// How paths are used.
        multipath_opts: Multipath = Multipath::from_json(None, None).expect("every member has a default"),
    }
}

impl NvmeOptions {
    pub(super) fn defaults() -> NvmeOptions {
        NvmeOptions::from_json(None, None).expect("every member has a default")
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::checked_options("bdev_nvme_set_options", When::Any, |app| &app.options.nvme, check_options)
            .doc("Options of all remote controllers; what is not given keeps its value. Before any controller is attached.")
            .error(-EPERM, "RPC not permitted with nvme controllers already attached")
            .error(-EINVAL, "Invalid argument: timeouts that contradict each other")
            .example(json!({"bdev_retry_count": 5, "timeout_us": 1000000}), json!(true)),
    );
}

/// What is wrong with a set of reconnect timeouts, if anything is.
pub(super) fn check_timeouts(loss: i32, delay: u32, fast: u32) -> Result<(), RpcError> {
    let wrong = |why: &str| {
        let values =
            format!("ctrlr_loss_timeout_sec {loss}, reconnect_delay_sec {delay}, fast_io_fail_timeout_sec {fast}");
        Err(RpcError::errno_because(EINVAL, format!("{values}: {why}")))
    };
    match loss {
        i32::MIN..=-2 => wrong("the first is -1 (never), 0 (at once) or a time"),
        0 if delay != 0 || fast != 0 => wrong("the others have no meaning when a lost controller is given up at once"),
        0 => Ok(()),
        _ if delay == 0 => wrong("the second may not be 0"),
        1.. if delay > loss as u32 => wrong("the second may not exceed the first"),
        1.. if fast > loss as u32 => wrong("the third may not exceed the first"),
        _ if fast != 0 && fast < delay => wrong("the third may not be less than the second"),
        _ => Ok(()),
    }
}

fn check_options(_: &App, o: &NvmeOptions) -> Result<(), RpcError> {
    check_timeouts(o.ctrlr_loss_timeout_sec, o.reconnect_delay_sec, o.fast_io_fail_timeout_sec)
}

/// The options as a call.
pub(super) fn dump_options(app: &App) -> Entry {
    Entry::new("bdev_nvme_set_options", App::lock(&app.options.nvme).to_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_may_not_contradict_each_other() {
        for (loss, delay, fast) in [(0, 0, 0), (-1, 1, 0), (-1, 2, 2), (10, 10, 10), (10, 2, 5)] {
            assert!(check_timeouts(loss, delay, fast).is_ok(), "{loss} {delay} {fast}");
        }
        for (loss, delay, fast) in
            [(-2, 1, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (5, 0, 0), (5, 6, 0), (5, 2, 1), (5, 1, 6)]
        {
            assert!(check_timeouts(loss, delay, fast).is_err(), "{loss} {delay} {fast}");
        }
    }
}
