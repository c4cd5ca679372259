//! `bdev_*` that measure and limit: counters, latency histograms, rate limits.

use std::sync::Arc;

use base64::Engine;
use longshore_bdev::{BdevNode, Histogram, Op, OpStat, StatSnapshot};
use longshore_reactor::{rdtsc, tick_rate};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::config::Entry;
use crate::error::{EINVAL, ENODEV, INTERNAL_ERROR, Reply, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::bdev::find;
use crate::{choices, params};

choices! {
    /// What is set back.
    enum ResetMode { All = "all", Maxmin = "maxmin", Error = "error", None = "none" }
}

params! {
    struct GetIostat {
        /// Old form of `names` with one element.
        name: Option<String>,
        /// Names of devices; without it all are listed.
        names: Option<Vec<String>>,
        /// Counters of each core apart; exactly one name must be given.
        per_channel: bool = false,
        /// Set counters back after they were read.
        reset_mode: ResetMode = ResetMode::None,
    }
}

params! {
    struct ResetIostat {
        /// Name of a device; without it all are reset.
        name: Option<String>,
        /// What is set back.
        mode: ResetMode = ResetMode::All,
    }
}

params! {
    struct EnableHistogram {
        /// Name of the device.
        name: String,
        /// On or off.
        enable: bool,
        /// Count one kind of request only, such as `read`.
        opc: Option<String>,
        /// Buckets per power of two, as a power of two; only 7 is built.
        granularity: Option<u8>,
        /// Shortest latency told apart, ns.
        min_nsec: Option<u64>,
        /// Longest latency told apart, ns.
        max_nsec: Option<u64>,
    }
}

params! {
    struct Name {
        /// Name of the device.
        name: String,
    }
}

params! {
    struct QdPeriod {
        /// Name of the device.
        name: String,
        /// Microseconds between samples; 0: none.
        period: u64,
    }
}

params! {
    struct QosLimit {
        /// Name of the device.
        name: String,
        /// Reads and writes per second, rounded up to thousands; 0: not limited.
        rw_ios_per_sec: Option<u64>,
        /// MiB read and written per second; 0: not limited.
        rw_mbytes_per_sec: Option<u64>,
        /// MiB read per second; 0: not limited.
        r_mbytes_per_sec: Option<u64>,
        /// MiB written per second; 0: not limited.
        w_mbytes_per_sec: Option<u64>,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_get_iostat", When::Runtime, get_iostat)
            .doc("Counters of devices. Latencies are sums, in ticks.")
            .result("{tick_rate, ticks, bdevs[]}, or {tick_rate, ticks, name, channels[]} with per_channel")
            .error(-ENODEV, "No such device")
            .error(-EINVAL, "per_channel without exactly one name")
            .example(json!({"names": ["Malloc0"]}), json!({"tick_rate": 2700000000u64, "ticks": 13438677125032u64, "bdevs": []})),
    );
    registry.add(
        Method::new("bdev_reset_iostat", When::Runtime, reset_iostat)
            .doc("Sets counters of devices back, for everybody who reads them.")
            .error(-ENODEV, "No such device")
            .example(json!({"name": "Malloc0", "mode": "maxmin"}), json!(true)),
    );
}

fn counters(node: &BdevNode, stats: &StatSnapshot) -> Map<String, Value> {
    let block = u64::from(node.geometry().block_size);
    let mut out = Map::new();
    let ops: [(&str, &str, &OpStat); 4] = [
        ("bytes_read", "num_read_ops", stats.op(Op::Read)),
        ("bytes_written", "num_write_ops", stats.op(Op::Write)),
        ("bytes_unmapped", "num_unmap_ops", stats.op(Op::Unmap)),
        ("bytes_copied", "num_copy_ops", stats.op(Op::Copy)),
    ];
    for (bytes, number, op) in ops {
        out.insert(bytes.into(), json!(op.blocks.wrapping_mul(block)));
        out.insert(number.into(), json!(op.ops));
    }
    for (what, (_, _, op)) in ["read", "write", "unmap", "copy"].into_iter().zip(ops) {
        let least = if op.min_ticks == u64::MAX { 0 } else { op.min_ticks };
        out.insert(format!("{what}_latency_ticks"), json!(op.ticks));
        out.insert(format!("max_{what}_latency_ticks"), json!(op.max_ticks));
        out.insert(format!("min_{what}_latency_ticks"), json!(least));
    }
    out.insert("io_error".into(), Value::Object(stats.errors.iter().map(|(status, n)| (status.to_string(), json!(n))).collect()));
    out
}

async fn get_iostat(app: Arc<App>, p: GetIostat) -> Reply {
    let names = p.names.into_iter().flatten().chain(p.name).collect::<Vec<_>>();
    let nodes = if names.is_empty() { app.bdevs.list() } else { names.iter().map(|name| find(&app, name)).collect::<Result<_, _>>()? };
    let mut out = json!({"tick_rate": tick_rate(), "ticks": rdtsc()});
    if p.per_channel {
        let [node] = nodes.as_slice() else {
            return Err(RpcError::errno_because(EINVAL, "per_channel needs the name of exactly one device"));
        };
        if names.is_empty() {
            return Err(RpcError::errno_because(EINVAL, "per_channel needs the name of exactly one device"));
        }
        out["name"] = json!(node.name());
        let channels = node.channel_stats().into_iter().map(|(core, stat)| {
            let mut one = Map::from_iter([("thread_id".to_string(), json!(core + 1))]);
            one.extend(counters(node, &stat.snapshot()));
            Value::Object(one)
        });
        out["channels"] = channels.collect();
    } else {
        let bdevs = nodes.iter().map(|node| {
            let mut one = Map::from_iter([("name".to_string(), json!(node.name()))]);
            one.extend(counters(node, &node.stats()));
            Value::Object(one)
        });
        out["bdevs"] = bdevs.collect();
    }
    for node in &nodes {
        reset(&app, node, p.reset_mode).await;
    }
    Ok(out)
}

async fn reset_iostat(app: Arc<App>, p: ResetIostat) -> Reply {
    let nodes = match p.name {
        Some(name) => vec![find(&app, &name)?],
        None => app.bdevs.list(),
    };
    for node in &nodes {
        reset(&app, node, p.mode).await;
    }
    Ok(json!(true))
}

async fn reset(app: &App, node: &BdevNode, mode: ResetMode) {
    let extremes_only = match mode {
        ResetMode::None => return,
        ResetMode::Maxmin => true,
        ResetMode::All | ResetMode::Error => false,
    };
    for (core, stat) in node.channel_stats() {
        if let Some(core) = app.cores.get(core) {
            let _ = core.call(move |_| stat.reset(extremes_only)).await;
        }
    }
}

/// `assigned_rate_limits` of a device.
pub(super) fn limits(_app: &App, _node: &BdevNode) -> Value {
    json!({"rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0})
}

/// Limits and histograms that are set.
pub(super) fn dump(_app: &App) -> Vec<Entry> {
    Vec::new()
}
