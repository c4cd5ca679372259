//! `bdev_*` that measure and limit: counters, latency histograms, rate limits.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use longshore_bdev::{BdevNode, Histogram, Op, OpStat, QosLimits, QosUpdate, StatReset, StatSnapshot};
use longshore_reactor::{rdtsc, tick_rate};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::config::Entry;
use crate::decode::Params;
use crate::error::{EINVAL, ENODEV, INTERNAL_ERROR, Reply, RpcError, strerror};
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
            .example(
                json!({"names": ["Malloc0"]}),
                json!({"tick_rate": 2700000000u64, "ticks": 13438677125032u64, "bdevs": []}),
            ),
    );
    registry.add(
        Method::new("bdev_reset_iostat", When::Runtime, reset_iostat)
            .doc("Sets counters of devices back, for everybody who reads them.")
            .error(-ENODEV, "No such device")
            .example(json!({"name": "Malloc0", "mode": "maxmin"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_enable_histogram", When::Runtime, enable_histogram)
            .doc("Counts latencies of a device in a histogram, or stops to.")
            .changes()
            .error(-ENODEV, "No such device")
            .error(INTERNAL_ERROR, "Invalid Io type")
            .example(json!({"name": "Malloc0", "enable": true}), json!(true)),
    );
    registry.add(
        Method::new("bdev_get_histogram", When::Runtime, get_histogram)
            .doc(
                "The latency histogram of a device: 64-bit little-endian counters in base64. Each range from `min_range` to `max_range` has \
                 2^`granularity` of them; range r > 0 begins at 2^(r + granularity - 1) ticks of `tsc_rate` and ends at twice that.",
            )
            .result("{histogram, granularity, min_range, max_range, tsc_rate}")
            .error(-ENODEV, "No such device")
            .error(INTERNAL_ERROR, "Bad address: the histogram is not enabled"),
    );
    registry.add(
        Method::new("bdev_set_qd_sampling_period", When::Runtime, set_qd_period)
            .doc("Samples the queue depth of a device; bdev_get_iostat shows it.")
            .error(-ENODEV, "No such device")
            .example(json!({"name": "Malloc0", "period": 1000}), json!(true)),
    );
    registry.add(
        Method::new("bdev_set_qos_limit", When::Runtime, set_qos)
            .doc(
                "Limits the rate of a device, over all cores: each takes leases of at most a millisecond from what the device may do, so that a core that \
                 is alone gets everything and those that want more take turns. What is not given stays as it is.",
            )
            .changes()
            .error(-ENODEV, "No such device")
            .error(-EINVAL, "No rate limits specified")
            .example(json!({"name": "Malloc0", "rw_ios_per_sec": 20000}), json!(true)),
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
    out.insert(
        "io_error".into(),
        Value::Object(stats.errors.iter().map(|(status, n)| (status.to_string(), json!(n))).collect()),
    );
    out
}

async fn get_iostat(app: Arc<App>, p: GetIostat) -> Reply {
    let names = p.names.into_iter().flatten().chain(p.name).collect::<Vec<_>>();
    let nodes = if names.is_empty() {
        app.bdevs.list()
    } else {
        names.iter().map(|name| find(&app, name)).collect::<Result<_, _>>()?
    };
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
            one.extend(counters(node, &stat));
            Value::Object(one)
        });
        out["channels"] = channels.collect();
    } else {
        let bdevs = nodes.iter().map(|node| {
            let mut one = Map::from_iter([("name".to_string(), json!(node.name()))]);
            one.extend(counters(node, &node.stats()));
            let queue = node.queue_depth();
            if !queue.period.is_zero() {
                one.insert("queue_depth_polling_period".into(), json!(queue.period.as_micros() as u64));
                one.insert("queue_depth".into(), json!(queue.depth));
                one.insert("io_time".into(), json!(queue.io_time));
                one.insert("weighted_io_time".into(), json!(queue.weighted_io_time));
            }
            Value::Object(one)
        });
        out["bdevs"] = bdevs.collect();
    }
    for node in &nodes {
        reset(node, p.reset_mode).await;
    }
    Ok(out)
}

async fn reset_iostat(app: Arc<App>, p: ResetIostat) -> Reply {
    let nodes = match p.name {
        Some(name) => vec![find(&app, &name)?],
        None => app.bdevs.list(),
    };
    for node in &nodes {
        reset(node, p.mode).await;
    }
    Ok(json!(true))
}

async fn reset(node: &Arc<BdevNode>, mode: ResetMode) {
    let what = match mode {
        ResetMode::None => return,
        ResetMode::Maxmin => StatReset::Extremes,
        ResetMode::All => StatReset::All,
        ResetMode::Error => StatReset::Errors,
    };
    let _ = node.reset_stats(what).await;
}

/// The operation that a client names.
fn op_of(name: &str) -> Option<Op> {
    Some(match name {
        "read" => Op::Read,
        "write" => Op::Write,
        "flush" => Op::Flush,
        "unmap" => Op::Unmap,
        "write_zeroes" => Op::WriteZeroes,
        "compare" => Op::Compare,
        "compare_and_write" => Op::CompareAndWrite,
        "copy" => Op::Copy,
        "reset" => Op::Reset,
        _ => return None,
    })
}

async fn enable_histogram(app: Arc<App>, p: EnableHistogram) -> Reply {
    let node = find(&app, &p.name)?;
    let op = match p.opc.as_deref() {
        None => None,
        Some(name) => Some(
            op_of(name).ok_or_else(|| RpcError::new(INTERNAL_ERROR, "Invalid Io type").because(format!("'{name}'")))?,
        ),
    };
    if p.granularity.is_some_and(|g| u32::from(g) != Histogram::GRANULARITY) {
        return Err(RpcError::errno_because(
            EINVAL,
            format!("granularity is {}; only that is built", Histogram::GRANULARITY),
        ));
    }
    let _ = node.enable_histogram(p.enable, op).await;
    let mut histograms = App::lock(&app.histograms);
    if p.enable {
        histograms.insert(node.name().to_string(), p);
    } else {
        histograms.remove(node.name());
    }
    Ok(json!(true))
}

/// The range that a latency falls in.
fn range_of(nanoseconds: u64) -> usize {
    let ticks = u128::from(nanoseconds) * u128::from(tick_rate()) / 1_000_000_000;
    Histogram::bucket(u64::try_from(ticks).unwrap_or(u64::MAX)) >> Histogram::GRANULARITY
}

async fn get_histogram(app: Arc<App>, p: Name) -> Reply {
    let node = find(&app, &p.name)?;
    let Some(sum) = node.histogram() else {
        return Err(RpcError::new(INTERNAL_ERROR, strerror(14))
            .because("the histogram is not enabled: call bdev_enable_histogram first"));
    };
    let (least, most) = App::lock(&app.histograms).get(node.name()).map_or((None, None), |p| (p.min_nsec, p.max_nsec));
    let low = range_of(least.unwrap_or(1_000));
    let high = range_of(most.unwrap_or(120_000_000_000)).max(low);
    // What lies outside is counted at the border.
    let (first, end) = (low << Histogram::GRANULARITY, (high + 1) << Histogram::GRANULARITY);
    let mut shown = sum.buckets[first..end].to_vec();
    shown[0] += sum.buckets[..first].iter().sum::<u64>();
    let last = shown.len() - 1;
    shown[last] += sum.buckets[end..].iter().sum::<u64>();
    let bytes: Vec<u8> = shown.iter().flat_map(|n| n.to_le_bytes()).collect();
    Ok(json!({
        "histogram": base64::engine::general_purpose::STANDARD.encode(bytes), "granularity": Histogram::GRANULARITY, "min_range": low,
        "max_range": high, "tsc_rate": sum.tick_rate,
    }))
}

async fn set_qd_period(app: Arc<App>, p: QdPeriod) -> Reply {
    let node = find(&app, &p.name)?;
    if let Some(core) = app.cores.first() {
        node.set_qd_sampling(core, Duration::from_micros(p.period));
    }
    Ok(json!(true))
}

async fn set_qos(app: Arc<App>, p: QosLimit) -> Reply {
    let node = find(&app, &p.name)?;
    let update = QosUpdate {
        rw_ios_per_sec: p.rw_ios_per_sec,
        rw_mbytes_per_sec: p.rw_mbytes_per_sec,
        r_mbytes_per_sec: p.r_mbytes_per_sec,
        w_mbytes_per_sec: p.w_mbytes_per_sec,
    };
    if update == QosUpdate::default() {
        return Err(RpcError::new(-EINVAL, "No rate limits specified"));
    }
    // A rate in bytes has to fit in 64 bits.
    let most = u64::MAX >> 20;
    let rates = [p.rw_mbytes_per_sec, p.r_mbytes_per_sec, p.w_mbytes_per_sec];
    if let Some(rate) = rates.into_iter().flatten().find(|rate| *rate > most) {
        return Err(RpcError::errno_because(
            EINVAL,
            format!("{rate} MiB/s is too much; leave the limit out or give 0 for none"),
        ));
    }
    let _ = node.set_qos(update).await;
    Ok(json!(true))
}

fn limits_value(limits: &QosLimits) -> Map<String, Value> {
    let all = [
        ("rw_ios_per_sec", limits.rw_ios_per_sec),
        ("rw_mbytes_per_sec", limits.rw_mbytes_per_sec),
        ("r_mbytes_per_sec", limits.r_mbytes_per_sec),
        ("w_mbytes_per_sec", limits.w_mbytes_per_sec),
    ];
    all.into_iter().map(|(key, value)| (key.to_string(), json!(value))).collect()
}

/// `assigned_rate_limits` of a device.
pub(super) fn limits(node: &BdevNode) -> Value {
    Value::Object(limits_value(&node.qos_limits()))
}

/// Limits and histograms that are set.
pub(super) fn dump(app: &App) -> Vec<Entry> {
    let mut out = Vec::new();
    for node in app.bdevs.list() {
        let limits = node.qos_limits();
        if limits != QosLimits::default() {
            let mut params = Map::from_iter([("name".to_string(), json!(node.name()))]);
            params.extend(limits_value(&limits));
            out.push(Entry::new("bdev_set_qos_limit", Value::Object(params)));
        }
        if node.histogram().is_some() {
            let set = App::lock(&app.histograms).get(node.name()).map(Params::to_value);
            out.push(Entry::new(
                "bdev_enable_histogram",
                set.unwrap_or_else(|| json!({"name": node.name(), "enable": true})),
            ));
        }
    }
    out
}
