//! What is exported: one entry per family. Names, labels and meaning as ceph-nvmeof's exporter has them, where it has them, so that its
//! dashboards and alerts go on to work; `longshore_*` for the rest.

use longshore_bdev::Op;
use longshore_nvmf::{AdrFam, HostShare, Traffic};
use longshore_reactor::{ClassStats, tick_rate};

use super::collect::{Core, Device, Snapshot, Subsystem};
use super::text::Kind::{self, Counter, Gauge};
use super::text::Out;
use crate::methods::{poll_group, spdk_release, uuid_text};

/// What one family goes over, and how it puts the samples of one element.
pub(crate) enum Source {
    Process(fn(&Snapshot, &mut Out<'_>)),
    Devices(fn(&Device, &mut Out<'_>)),
    Subsystems(fn(&Subsystem, &mut Out<'_>)),
    Cores(fn(&Core, &mut Out<'_>)),
}

/// Numbers of one name.
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// What it is, in a few words.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    pub(crate) source: Source,
}

const BDEV: &[&str] = &["bdev_name"];
const BDEV_OP: &[&str] = &["bdev_name", "op"];
const NQN: &[&str] = &["nqn"];
const CORE: &[&str] = &["core"];
const HOST: &[&str] = &["core", "host_nqn", "host_id"];
const QPAIR_OP: &[&str] = &["nqn", "host_nqn", "cntlid", "qid", "op"];
const CORE_SIZE: &[&str] = &["core", "size"];

/// Groups of gateways do not exist here; ceph's queries want a value.
const GROUP: &str = "_null_";

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / tick_rate() as f64
}

/// Operations beside reads and writes, which have families of their own.
const OTHERS: [(Op, &str); 7] = [
    (Op::Flush, "flush"),
    (Op::Unmap, "unmap"),
    (Op::WriteZeroes, "write_zeroes"),
    (Op::Compare, "compare"),
    (Op::CompareAndWrite, "compare_and_write"),
    (Op::Copy, "copy"),
    (Op::Reset, "reset"),
];

fn others(device: &Device) -> impl Iterator<Item = (Op, &'static str)> {
    OTHERS.into_iter().filter(|(op, _)| device.supports(*op))
}

fn classes(core: &Core) -> impl Iterator<Item = (String, ClassStats)> {
    let pools = core.pools.iter().flat_map(|(_, dma)| &dma.classes);
    pools.filter(|class| class.capacity > 0 || class.failures > 0).map(|class| (class.size.to_string(), *class))
}

fn shares(core: &Core) -> impl Iterator<Item = (&HostShare, String)> {
    core.group.iter().flat_map(|g| &g.hosts).map(|host| (host, uuid_text(host.hostid)))
}

/// Two samples for each queue pair, told apart by the last label.
fn each_qpair(s: &Subsystem, o: &mut Out<'_>, samples: impl Fn(&Traffic) -> [(&'static str, u64); 2]) {
    for q in &s.qpairs {
        let (cntlid, qid) = (q.cntlid.to_string(), q.qid.to_string());
        for (which, number) in samples(&q.traffic) {
            o.put(&[&s.nqn, &q.hostnqn, &cntlid, &qid, which], number);
        }
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Address and port in one.
fn peer(address: &longshore_nvmf::Address) -> String {
    match address.adrfam {
        AdrFam::Ipv6 => format!("[{}]:{}", address.traddr, address.trsvcid),
        _ => format!("{}:{}", address.traddr, address.trsvcid),
    }
}

macro_rules! families {
    ($($kind:ident $name:literal $labels:expr, $help:literal, $source:ident($($put:tt)*);)*) => {
        &[$(Family { name: $name, kind: $kind, help: $help, labels: $labels, source: Source::$source($($put)*) }),*]
    };
}

/// All families, in the order of the output.
#[rustfmt::skip]
pub static FAMILIES: &[Family] = families! {
    Gauge "ceph_nvmeof_gateway_info" &["name", "hostname", "group", "version", "spdk_version"], "Gateway information",
        Process(|s, o| o.put(&[&s.hostname, &s.hostname, GROUP, env!("CARGO_PKG_VERSION"), &spdk_release()], 1));

    Gauge "ceph_nvmeof_bdev_metadata" &["bdev_name", "pool_name", "namespace", "rbd_name", "block_size"], "BDEV metadata (no RBD pools here)",
        Devices(|d, o| o.put(&[&d.name, "", "", "", &d.block_size.to_string()], 1));
    Gauge "ceph_nvmeof_bdev_capacity_bytes" BDEV, "BDEV capacity",
        Devices(|d, o| o.put(&[&d.name], d.num_blocks.saturating_mul(d.block_size)));
    Counter "ceph_nvmeof_bdev_reads_completed_total" BDEV, "Read operations ended",
        Devices(|d, o| o.put(&[&d.name], d.stats.op(Op::Read).ops));
    Counter "ceph_nvmeof_bdev_writes_completed_total" BDEV, "Write operations ended",
        Devices(|d, o| o.put(&[&d.name], d.stats.op(Op::Write).ops));
    Counter "ceph_nvmeof_bdev_read_bytes_total" BDEV, "Bytes read successfully",
        Devices(|d, o| o.put(&[&d.name], d.bytes(Op::Read)));
    Counter "ceph_nvmeof_bdev_written_bytes_total" BDEV, "Bytes written successfully",
        Devices(|d, o| o.put(&[&d.name], d.bytes(Op::Write)));
    Counter "ceph_nvmeof_bdev_read_seconds_total" BDEV, "Sum of the latencies of reads",
        Devices(|d, o| o.put(&[&d.name], seconds(d.stats.op(Op::Read).ticks)));
    Counter "ceph_nvmeof_bdev_write_seconds_total" BDEV, "Sum of the latencies of writes",
        Devices(|d, o| o.put(&[&d.name], seconds(d.stats.op(Op::Write).ticks)));
    Gauge "longshore_bdev_info" &["bdev_name", "product_name", "uuid"], "What the device is",
        Devices(|d, o| o.put(&[&d.name, d.product, &d.uuid], 1));
    Counter "longshore_bdev_ops_total" BDEV_OP, "Operations ended, other than reads and writes",
        Devices(|d, o| others(d).for_each(|(op, name)| o.put(&[&d.name, name], d.stats.op(op).ops)));
    Counter "longshore_bdev_op_bytes_total" BDEV_OP, "Bytes of those that succeeded",
        Devices(|d, o| others(d).for_each(|(op, name)| o.put(&[&d.name, name], d.bytes(op))));
    Counter "longshore_bdev_op_seconds_total" BDEV_OP, "Sum of their latencies",
        Devices(|d, o| others(d).for_each(|(op, name)| o.put(&[&d.name, name], seconds(d.stats.op(op).ticks))));
    Counter "longshore_bdev_errors_total" &["bdev_name", "status"], "Operations that failed, by NVMe status",
        Devices(|d, o| d.stats.errors.iter().for_each(|(status, n)| o.put(&[&d.name, &status.to_string()], n)));
    Gauge "longshore_bdev_queue_depth" BDEV, "Queue depth, where bdev_set_qd_sampling_period is on",
        Devices(|d, o| d.queue_depth.iter().for_each(|depth| o.put(&[&d.name], depth)));

    Counter "ceph_nvmeof_reactor_seconds_total" &["name", "mode"], "Time of the reactor thread with and without I/O; asleep counts as idle",
        Cores(|c, o| {
            let name = poll_group(&c.handle);
            o.put(&[&name, "busy"], seconds(c.stats.busy));
            o.put(&[&name, "idle"], seconds(c.stats.idle));
        });
    Counter "longshore_reactor_turns_total" CORE, "Turns of the loop", Cores(|c, o| o.put(&[&c.cpu], c.stats.turns));
    Gauge "longshore_reactor_longest_turn_seconds" CORE, "Longest turn that found work, since the start",
        Cores(|c, o| o.put(&[&c.cpu], seconds(c.stats.longest_turn)));
    Counter "longshore_reactor_sleeps_total" CORE, "Times it slept", Cores(|c, o| o.put(&[&c.cpu], c.stats.sleeps));
    Counter "longshore_reactor_wakeups_total" CORE, "Times another thread woke it", Cores(|c, o| o.put(&[&c.cpu], c.stats.wakeups));
    Counter "longshore_reactor_messages_total" CORE, "Messages received", Cores(|c, o| o.put(&[&c.cpu], c.stats.messages));
    Counter "longshore_reactor_ring_ops_total" CORE, "Operations that the ring ended", Cores(|c, o| o.put(&[&c.cpu], c.stats.ops));
    Counter "longshore_reactor_ring_enters_total" CORE, "System calls for the ring", Cores(|c, o| o.put(&[&c.cpu], c.stats.enters));
    Counter "longshore_reactor_ring_full_total" CORE, "Times the submission queue was full", Cores(|c, o| o.put(&[&c.cpu], c.stats.sq_full));
    Counter "longshore_reactor_ring_overflows_total" CORE, "Times the completion queue had overflowed", Cores(|c, o| o.put(&[&c.cpu], c.stats.cq_overflow));

    Gauge "longshore_io_pool_size" CORE, "Requests in the pool of the core",
        Cores(|c, o| c.pools.iter().for_each(|(io, _)| o.put(&[&c.cpu], io.capacity)));
    Gauge "longshore_io_pool_in_use" CORE, "Requests of it in use",
        Cores(|c, o| c.pools.iter().for_each(|(io, _)| o.put(&[&c.cpu], io.in_use)));
    Gauge "longshore_io_pool_peak" CORE, "Most that ever were in use",
        Cores(|c, o| c.pools.iter().for_each(|(io, _)| o.put(&[&c.cpu], io.peak)));
    Counter "longshore_io_pool_waits_total" CORE, "Times somebody had to wait for a request",
        Cores(|c, o| c.pools.iter().for_each(|(io, _)| o.put(&[&c.cpu], io.waits)));
    Gauge "longshore_dma_limit_bytes" CORE, "I/O memory that may be committed",
        Cores(|c, o| c.pools.iter().for_each(|(_, dma)| o.put(&[&c.cpu], dma.limit)));
    Gauge "longshore_dma_committed_bytes" CORE, "I/O memory committed",
        Cores(|c, o| c.pools.iter().for_each(|(_, dma)| o.put(&[&c.cpu], dma.committed)));
    Gauge "longshore_dma_huge_bytes" CORE, "Of that on explicit huge pages",
        Cores(|c, o| c.pools.iter().for_each(|(_, dma)| o.put(&[&c.cpu], dma.huge)));
    Gauge "longshore_dma_registered_bytes" CORE, "Of that registered with the ring",
        Cores(|c, o| c.pools.iter().for_each(|(_, dma)| o.put(&[&c.cpu], dma.registered)));
    Gauge "longshore_dma_lent" CORE, "I/O buffers in use whose memory devices lend",
        Cores(|c, o| c.pools.iter().for_each(|(_, dma)| o.put(&[&c.cpu], dma.adopted)));
    Gauge "longshore_dma_buffers" CORE_SIZE, "I/O buffers of a size that are committed",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.capacity)));
    Gauge "longshore_dma_buffers_in_use" CORE_SIZE, "Of those in use",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.in_use)));
    Gauge "longshore_dma_buffers_peak" CORE_SIZE, "Most that ever were in use",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.peak)));
    Counter "longshore_dma_allocations_total" CORE_SIZE, "Times a buffer was had",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.allocs)));
    Counter "longshore_dma_failures_total" CORE_SIZE, "Times there was none",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.failures)));
    Counter "longshore_dma_waits_total" CORE_SIZE, "Times somebody queued up for one",
        Cores(|c, o| classes(c).for_each(|(size, class)| o.put(&[&c.cpu, &size], class.waits)));

    Gauge "longshore_nvmf_queue_pairs" &["core", "type"], "Queue pairs connected; unassociated: without a Connect yet",
        Cores(|c, o| c.group.iter().for_each(|g| {
            o.put(&[&c.cpu, "admin"], g.current_admin_qpairs);
            o.put(&[&c.cpu, "io"], g.current_io_qpairs);
            o.put(&[&c.cpu, "unassociated"], g.current_unassociated_qpairs);
        }));
    Counter "longshore_nvmf_connects_total" &["core", "type"], "Queue pairs ever connected",
        Cores(|c, o| c.group.iter().for_each(|g| {
            o.put(&[&c.cpu, "admin"], g.admin_qpairs);
            o.put(&[&c.cpu, "io"], g.io_qpairs);
        }));
    Counter "longshore_nvmf_refused_connects_total" CORE, "Connects refused because the core had no buffer or request left to promise, to anybody or to that host",
        Cores(|c, o| c.group.iter().for_each(|g| o.put(&[&c.cpu], g.refused_connects)));
    Counter "longshore_nvmf_completed_total" CORE, "NVMe commands ended",
        Cores(|c, o| c.group.iter().for_each(|g| o.put(&[&c.cpu], g.completed_nvme_io)));
    Counter "longshore_nvmf_request_waits_total" CORE, "Times a command had to wait for a request of the block layer",
        Cores(|c, o| c.group.iter().for_each(|g| o.put(&[&c.cpu], g.pending_bdev_io)));
    Counter "longshore_nvmf_buffer_waits_total" CORE, "Times a command had to wait for a buffer",
        Cores(|c, o| c.group.iter().for_each(|g| o.put(&[&c.cpu], g.traffic.buffer_waits)));

    Counter "longshore_nvmf_ops_total" &["core", "op"], "Reads and writes of hosts ended",
        Cores(|c, o| c.group.iter().for_each(|g| {
            o.put(&[&c.cpu, "read"], g.traffic.reads);
            o.put(&[&c.cpu, "write"], g.traffic.writes);
        }));
    Counter "longshore_nvmf_bytes_total" &["core", "op"], "Bytes that they moved",
        Cores(|c, o| c.group.iter().for_each(|g| {
            o.put(&[&c.cpu, "read"], g.traffic.read_bytes);
            o.put(&[&c.cpu, "write"], g.traffic.written_bytes);
        }));
    Gauge "longshore_host_buffer_bytes" HOST, "Buffers that a host has of what the core shares among all",
        Cores(|c, o| shares(c).for_each(|(h, id)| o.put(&[&c.cpu, &h.hostnqn, &id], h.buffer_bytes)));
    Gauge "longshore_host_buffer_limit_bytes" HOST, "Most of them that it may have",
        Cores(|c, o| shares(c).for_each(|(h, id)| o.put(&[&c.cpu, &h.hostnqn, &id], h.max_buffer_bytes)));
    Gauge "longshore_host_requests" HOST, "Requests that a host has of what the core shares among all",
        Cores(|c, o| shares(c).for_each(|(h, id)| o.put(&[&c.cpu, &h.hostnqn, &id], h.requests)));
    Gauge "longshore_host_request_limit" HOST, "Most of them that it may have",
        Cores(|c, o| shares(c).for_each(|(h, id)| o.put(&[&c.cpu, &h.hostnqn, &id], h.max_requests)));

    Gauge "ceph_nvmeof_subsystem_metadata" &["nqn", "serial_number", "model_number", "allow_any_host", "ha_enabled", "group"], "Metadata describing the subsystem configuration",
        Subsystems(|s, o| o.put(&[&s.nqn, &s.serial_number, &s.model_number, yes(s.allow_any_host), yes(s.ana_reporting), GROUP], 1));
    Gauge "ceph_nvmeof_subsystem_listener_count" NQN, "Listener addresses of the subsystem",
        Subsystems(|s, o| o.put(&[&s.nqn], s.listeners.len()));
    Gauge "ceph_nvmeof_subsystem_host_count" NQN, "Hosts defined to the subsystem",
        Subsystems(|s, o| o.put(&[&s.nqn], s.hosts.len()));
    Gauge "ceph_nvmeof_subsystem_namespace_limit" NQN, "Maximum namespaces supported",
        Subsystems(|s, o| o.put(&[&s.nqn], s.max_namespaces));
    Gauge "ceph_nvmeof_subsystem_namespace_count" NQN, "Namespaces of the subsystem",
        Subsystems(|s, o| o.put(&[&s.nqn], s.namespaces.len()));
    Gauge "ceph_nvmeof_subsystem_namespace_metadata" &["nqn", "nsid", "bdev_name", "anagrpid"], "Namespaces and their devices",
        Subsystems(|s, o| s.namespaces.iter().for_each(|n| o.put(&[&s.nqn, &n.nsid, &n.bdev_name, &n.anagrpid], 1)));
    Gauge "longshore_namespace_capacity_bytes" &["nqn", "nsid"], "Size of the namespace as hosts see it",
        Subsystems(|s, o| s.namespaces.iter().for_each(|n| o.put(&[&s.nqn, &n.nsid], n.bytes)));
    Gauge "ceph_nvmeof_host_connection_state" &["gw_name", "nqn", "host_nqn", "host_addr"], "Host connection state: 0 disconnected, 1 connected; one for each controller",
        Subsystems(|s, o| {
            let name = rustix::system::uname();
            let name = name.nodename().to_string_lossy();
            for q in s.qpairs.iter().filter(|q| q.qid == 0) {
                o.put(&[&name, &s.nqn, &q.hostnqn, &peer(&q.peer_address)], 1);
            }
            s.absent().for_each(|host| o.put(&[&name, &s.nqn, host, "<n/a>"], 0));
        });
    Gauge "longshore_host_queue_pairs" &["nqn", "host_nqn"], "Queue pairs of a host, admin queues included",
        Subsystems(|s, o| {
            s.connected().into_iter().for_each(|(host, n)| o.put(&[&s.nqn, host], n));
            s.absent().for_each(|host| o.put(&[&s.nqn, host], 0));
        });
    Gauge "longshore_listener_queue_pairs" &["nqn", "trtype", "traddr", "trsvcid"], "Queue pairs that came in by a listener",
        Subsystems(|s, o| s.listeners.iter().for_each(|a| {
            let n = s.qpairs.iter().filter(|q| q.listen_address == *a).count();
            o.put(&[&s.nqn, a.trtype.name(), &a.traddr, &a.trsvcid], n);
        }));
    Gauge "longshore_qpair_info" &["nqn", "host_nqn", "cntlid", "qid", "core", "peer"], "Queue pairs: 1 enabled, 0 being closed",
        Subsystems(|s, o| s.qpairs.iter().for_each(|q| {
            let (cntlid, qid, core) = (q.cntlid.to_string(), q.qid.to_string(), q.core.to_string());
            o.put(&[&s.nqn, &q.hostnqn, &cntlid, &qid, &core, &peer(&q.peer_address)], u8::from(q.enabled));
        }));

    Counter "longshore_qpair_ops_total" QPAIR_OP, "Reads and writes of a queue pair ended",
        Subsystems(|s, o| each_qpair(s, o, |t| [("read", t.reads), ("write", t.writes)]));
    Counter "longshore_qpair_bytes_total" QPAIR_OP, "Bytes that they moved",
        Subsystems(|s, o| each_qpair(s, o, |t| [("read", t.read_bytes), ("write", t.written_bytes)]));
    Counter "longshore_qpair_waits_total" &["nqn", "host_nqn", "cntlid", "qid", "for"], "Times a command of the queue pair had to wait for a buffer or a request",
        Subsystems(|s, o| each_qpair(s, o, |t| [("buffer", t.buffer_waits), ("request", t.request_waits)]));

    Counter "longshore_http_answers_total" &["code"], "Answers over HTTP, by status",
        Process(|s, o| s.answers.iter().for_each(|(code, n)| o.put(&[&code.to_string()], n)));
    Gauge "longshore_scrape_seconds" &[], "Time that it took to gather this",
        Process(|s, o| o.put(&[], s.seconds));
    Counter "process_cpu_seconds_total" &[], "CPU time of the process, user and system",
        Process(|s, o| o.put(&[], s.process.cpu_seconds));
    Gauge "process_resident_memory_bytes" &[], "Resident memory, without explicit huge pages",
        Process(|s, o| o.put(&[], s.process.resident));
    Gauge "longshore_process_huge_bytes" &[], "Explicit huge pages of the process",
        Process(|s, o| o.put(&[], s.process.huge));
};
