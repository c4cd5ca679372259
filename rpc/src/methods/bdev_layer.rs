//! `bdev_passthru_*`, `bdev_delay_*`, `bdev_error_*`, `bdev_volatile_*`: devices on top of another one. Each may be asked for before the device beneath it
//! is there, and is then made when that comes: saved configurations list layers first.

use std::sync::Arc;

use longshore_bdev::delay::{Delay, Latency};
use longshore_bdev::error::{ErrorDev, Fault, Injection};
use longshore_bdev::passthru::Passthru;
use longshore_bdev::volatile::Volatile;
use longshore_bdev::{BdevError, BdevNode, Op, Status, Vbdev, delay, error, passthru, volatile};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::config::Entry;
use crate::error::{EEXIST, EINVAL, ENODEV, EPERM, INVALID_PARAMS, INVALID_REQUEST, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::bdev::find;
use crate::methods::bdev_crypto;
use crate::{choices, params};

params! {
    struct PassthruCreate {
        /// Name of the device beneath; it may come later.
        base_bdev_name: String,
        /// Name.
        name: String,
        /// UUID; without it one derived from the device beneath.
        uuid: Option<Uuid>,
    }
}

params! {
    struct DelayCreate {
        /// Name.
        name: String,
        /// Name of the device beneath; it may come later.
        base_bdev_name: String,
        /// UUID; without it one derived from the device beneath.
        uuid: Option<Uuid>,
        /// Latency of most reads, us.
        avg_read_latency: u64,
        /// Latency of one read in a hundred, us.
        p99_read_latency: u64,
        /// Latency of most writes, us.
        avg_write_latency: u64,
        /// Latency of one write in a hundred, us.
        p99_write_latency: u64,
    }
}

choices! {
    /// Which latency.
    enum LatencyType { AvgRead = "avg_read", P99Read = "p99_read", AvgWrite = "avg_write", P99Write = "p99_write" }
}

params! {
    struct UpdateLatency {
        /// Name of the delay device.
        delay_bdev_name: String,
        /// Which latency.
        latency_type: LatencyType,
        /// New value, us.
        latency_us: u64,
    }
}

params! {
    struct ErrorCreate {
        /// Name of the device beneath; the name of the new one is `EE_` and this.
        base_name: String,
        /// UUID; without it one derived from the device beneath.
        uuid: Option<Uuid>,
    }
}

choices! {
    /// Which requests.
    enum IoType { Clear = "clear", Read = "read", Write = "write", Unmap = "unmap", Flush = "flush", All = "all" }
}

choices! {
    /// What happens to them.
    enum ErrorType { Failure = "failure", Pending = "pending", CorruptData = "corrupt_data", Nomem = "nomem", NvmeFailure = "nvme_failure" }
}

params! {
    struct Inject {
        /// Name of the error device.
        name: String,
        /// Which requests; `clear` ends all injections.
        io_type: IoType,
        /// What happens to them.
        error_type: ErrorType,
        /// Status code type of `nvme_failure`.
        nvme_sct: u32 = 0,
        /// Status code of `nvme_failure`.
        nvme_sc: u32 = 0,
        /// To how many requests; 0 ends it.
        num: u32 = 1,
        /// Only while so many requests are in flight.
        queue_depth: u64 = 0,
        /// Byte of the data that is corrupted.
        corrupt_offset: u64 = 0,
        /// What it is XORed with, not 0.
        corrupt_value: u8 = 0,
    }
}

params! {
    struct VolatileCreate {
        /// Name.
        name: String,
        /// Name of the device beneath; it may come later.
        base_bdev_name: String,
        /// UUID; without it one derived from the device beneath.
        uuid: Option<Uuid>,
        /// Decides which blocks reach the device beneath before they are flushed.
        seed: u64,
        /// Memory for what is not flushed, 1 to 4096; when it is full, the oldest half is written to the device beneath.
        cache_size_mb: u64 = 64,
    }
}

params! {
    struct Name {
        /// Name of the device.
        name: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    let create = |method: Method| {
        method
            .changes()
            .result("name of the device")
            .error(-EEXIST, "File exists")
            .error(-EPERM, "Operation not permitted: the device beneath is claimed")
            .error(-EINVAL, "Invalid argument: `data` says which")
    };
    registry.add(
        create(Method::new("bdev_passthru_create", When::Runtime, |app, p: PassthruCreate| async move {
            passthru::create(
                &app.bdevs,
                passthru::Options { name: p.name.clone(), base: p.base_bdev_name, uuid: p.uuid },
            )?;
            Ok(json!(p.name))
        }))
        .doc("Makes a device that passes everything to the one beneath.")
        .example(json!({"name": "PT0", "base_bdev_name": "Malloc0"}), json!("PT0")),
    );
    registry.add(
        create(Method::new("bdev_delay_create", When::Runtime, delay_create)).doc("Makes a device that answers late.").example(
            json!({
                "name": "D0", "base_bdev_name": "Null0", "avg_read_latency": 10, "p99_read_latency": 20, "avg_write_latency": 10,
                "p99_write_latency": 20,
            }),
            json!("D0"),
        ),
    );
    registry.add(
        Method::new("bdev_delay_update_latency", When::Runtime, update_latency)
            .doc("Changes one latency, for requests from now on. An average never exceeds its 99th percentile: the other one follows.")
            .changes()
            .error(INVALID_PARAMS, "The requested bdev does not exist.")
            .error(INVALID_REQUEST, "The requested bdev is not a delay bdev.")
            .example(json!({"delay_bdev_name": "D0", "latency_type": "avg_read", "latency_us": 100}), json!(true)),
    );
    registry.add(
        create(Method::new("bdev_error_create", When::Runtime, |app, p: ErrorCreate| async move {
            error::create(&app.bdevs, error::Options { base: p.base_name, uuid: p.uuid })?;
            Ok(json!(true))
        }))
        .refusal(Refusal::PARAMS_OBJECT)
        .result("true")
        .doc("Makes a device that fails on request. Its name is `EE_` and that of the device beneath.")
        .example(json!({"base_name": "Malloc0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_error_inject_error", When::Runtime, inject)
            .doc("Lets requests of an error device fail, hang, run out of memory or be corrupted.")
            .refusal(Refusal::PARAMS_OBJECT)
            .error(-ENODEV, "No such device")
            .error(-EINVAL, "nvme_sct or nvme_sc should be specified for NVMe error injection")
            .example(json!({"name": "EE_Malloc0", "io_type": "read", "error_type": "failure", "num": 1}), json!(true)),
    );
    registry.add(
        Method::new("bdev_error_resume_pending", When::Runtime, |app, p: Name| async move {
            let node = find(&app, &p.name)?;
            error_dev(&node, &p.name)?.resume_pending().await;
            Ok(json!(true))
        })
        .doc("Lets requests go on that hang in an error device.")
        .refusal(Refusal::PARAMS_OBJECT)
        .error(-ENODEV, "No such device"),
    );
    registry.add(
        create(Method::new("bdev_volatile_create", When::Runtime, volatile_create))
            .doc(
                "Makes a device for tests that loses what was not flushed: a kill of the daemon, or deleting the device, is a power cut. \
                 Unflushed writes are held in memory, but for a random choice of blocks that goes on to the device beneath at once.",
            )
            .example(json!({"name": "V0", "base_bdev_name": "File0", "seed": 1}), json!("V0")),
    );
    let delete = |name, module: &'static str| {
        Method::new(name, When::Runtime, move |app: Arc<App>, p: Name| async move {
            let name = app.bdevs.find(&p.name).map_or(p.name, |node| node.name().to_string());
            app.bdevs.unconfigure(module, &name).await?;
            Ok(json!(true))
        })
        .doc("Deletes the device. It answers when nobody uses the device any more: layers on it and namespaces go first.")
        .changes()
        .error(-ENODEV, "No such device, or one of another kind")
    };
    registry.add(delete("bdev_passthru_delete", passthru::MODULE));
    registry.add(delete("bdev_delay_delete", delay::MODULE));
    registry.add(
        delete("bdev_volatile_delete", volatile::MODULE)
            .doc("Deletes the device, as a power cut would: **what was not flushed is lost**. It answers when nobody uses it any more."),
    );
    registry.add(delete("bdev_error_delete", error::MODULE).refusal(Refusal::PARAMS_OBJECT));
}

async fn delay_create(app: Arc<App>, p: DelayCreate) -> Reply {
    let options = delay::Options {
        name: p.name.clone(),
        base: p.base_bdev_name,
        uuid: p.uuid,
        avg_read_us: p.avg_read_latency,
        p99_read_us: p.p99_read_latency,
        avg_write_us: p.avg_write_latency,
        p99_write_us: p.p99_write_latency,
    };
    delay::create(&app.bdevs, options)?;
    Ok(json!(p.name))
}

async fn volatile_create(app: Arc<App>, p: VolatileCreate) -> Reply {
    let options = volatile::Options {
        name: p.name.clone(),
        base: p.base_bdev_name,
        uuid: p.uuid,
        seed: p.seed,
        cache_bytes: p.cache_size_mb.saturating_mul(1 << 20),
    };
    volatile::create(&app.bdevs, options)?;
    Ok(json!(p.name))
}

async fn update_latency(app: Arc<App>, p: UpdateLatency) -> Reply {
    let node = app.bdevs.find(&p.delay_bdev_name);
    let node = node.ok_or_else(|| RpcError::new(INVALID_PARAMS, "The requested bdev does not exist."))?;
    let device = node.device().as_any().downcast_ref::<Delay>();
    let device = device.ok_or_else(|| RpcError::new(INVALID_REQUEST, "The requested bdev is not a delay bdev."))?;
    let us = p.latency_us;
    let (which, other) = match p.latency_type {
        LatencyType::AvgRead => (Latency::AvgRead, Latency::P99Read),
        LatencyType::P99Read => (Latency::P99Read, Latency::AvgRead),
        LatencyType::AvgWrite => (Latency::AvgWrite, Latency::P99Write),
        LatencyType::P99Write => (Latency::P99Write, Latency::AvgWrite),
    };
    device.set_latency(which, us);
    // An average above its 99th percentile could not be made again from a dump.
    let now = device.options();
    if now.avg_read_us > now.p99_read_us || now.avg_write_us > now.p99_write_us {
        device.set_latency(other, us);
    }
    Ok(json!(true))
}

fn error_dev<'a>(node: &'a Arc<BdevNode>, name: &str) -> Result<&'a ErrorDev, RpcError> {
    node.device().as_any().downcast_ref::<ErrorDev>().ok_or_else(|| BdevError::NotFound(name.to_string()).into())
}

async fn inject(app: Arc<App>, p: Inject) -> Reply {
    let node = find(&app, &p.name)?;
    let device = error_dev(&node, &p.name)?;
    let op = match p.io_type {
        IoType::Clear => {
            device.clear();
            return Ok(json!(true));
        }
        IoType::All => None,
        IoType::Read => Some(Op::Read),
        IoType::Write => Some(Op::Write),
        IoType::Unmap => Some(Op::Unmap),
        IoType::Flush => Some(Op::Flush),
    };
    let fault = match p.error_type {
        ErrorType::Failure => Fault::Failure,
        ErrorType::Pending => Fault::Pending,
        ErrorType::Nomem => Fault::NoMemory,
        ErrorType::CorruptData => Fault::Corrupt { offset: p.corrupt_offset, value: p.corrupt_value },
        ErrorType::NvmeFailure if p.nvme_sct == 0 && p.nvme_sc == 0 => {
            return Err(RpcError::new(-EINVAL, "nvme_sct or nvme_sc should be specified for NVMe error injection"));
        }
        ErrorType::NvmeFailure if p.nvme_sct > 7 || p.nvme_sc > 255 => {
            return Err(RpcError::errno_because(
                EINVAL,
                format!("nvme_sct {} or nvme_sc {}: at most 7 and 255", p.nvme_sct, p.nvme_sc),
            ));
        }
        ErrorType::NvmeFailure => Fault::Nvme(Status::new(p.nvme_sct as u8, p.nvme_sc as u8)),
    };
    device.inject(Injection { op, fault, count: p.num, queue_depth: p.queue_depth })?;
    Ok(json!(true))
}

/// What `bdev_get_bdevs` says of a layer alone.
pub(super) fn driver_specific(node: &BdevNode) -> Option<Value> {
    let device = node.device().as_any();
    if let Some(layer) = device.downcast_ref::<Passthru>() {
        return Some(json!({"passthru": {"name": node.name(), "base_bdev_name": layer.base_name()}}));
    }
    if let Some(layer) = device.downcast_ref::<Delay>() {
        let o = layer.options();
        return Some(json!({"delay": {
            "name": node.name(), "base_bdev_name": layer.base_name(), "uuid": node.uuid().to_string(), "avg_read_latency": o.avg_read_us,
            "p99_read_latency": o.p99_read_us, "avg_write_latency": o.avg_write_us, "p99_write_latency": o.p99_write_us,
        }}));
    }
    if let Some(layer) = device.downcast_ref::<Volatile>() {
        let o = layer.options();
        return Some(json!({"volatile": {
            "name": node.name(), "base_bdev_name": layer.base_name(), "seed": o.seed, "cache_size_mb": o.cache_bytes >> 20,
            "unflushed_bytes": layer.unflushed_bytes(),
        }}));
    }
    if let Some(shown) = bdev_crypto::driver_specific(node) {
        return Some(shown);
    }
    let layer = device.downcast_ref::<ErrorDev>()?;
    Some(json!({"error_disk": {"name": node.name(), "base_bdev": layer.base_name()}}))
}

fn dump_one(app: &App, spec: &dyn Vbdev) -> Option<(u8, Entry)> {
    // The UUID of now, so that the next start has the same; unless the layer still waits and was given none.
    let uuid = |given: Option<Uuid>| {
        app.bdevs.find(spec.name()).map(|node| node.uuid()).or(given).map(|uuid| uuid.to_string())
    };
    let clean = |value: Value| match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => other,
    };
    if let Some(o) = delay::options(spec) {
        return Some((
            0,
            Entry::new(
                "bdev_delay_create",
                clean(json!({
                    "name": o.name, "base_bdev_name": o.base, "uuid": uuid(o.uuid), "avg_read_latency": o.avg_read_us,
                    "p99_read_latency": o.p99_read_us, "avg_write_latency": o.avg_write_us, "p99_write_latency": o.p99_write_us,
                })),
            ),
        ));
    }
    if let Some(o) = error::options(spec) {
        return Some((1, Entry::new("bdev_error_create", clean(json!({"base_name": o.base, "uuid": uuid(o.uuid)})))));
    }
    if let Some(o) = spec.as_any().downcast_ref::<volatile::Options>() {
        let params = clean(json!({
            "name": o.name, "base_bdev_name": o.base, "uuid": uuid(o.uuid), "seed": o.seed, "cache_size_mb": o.cache_bytes >> 20,
        }));
        return Some((2, Entry::new("bdev_volatile_create", params)));
    }
    if let Some(entry) = bdev_crypto::dump(spec, uuid) {
        return Some((3, entry));
    }
    let o = spec.as_any().downcast_ref::<passthru::Options>()?;
    let params = clean(json!({"base_bdev_name": o.base, "name": o.name, "uuid": uuid(o.uuid)}));
    Some((3, Entry::new("bdev_passthru_create", params)))
}

/// The calls that make all layers again, each with its place among the modules.
pub(super) fn dump(app: &App) -> Vec<(u8, Entry)> {
    let mut out: Vec<_> = app.bdevs.configurations().iter().filter_map(|spec| dump_one(app, spec.as_ref())).collect();
    out.sort_by_key(|(place, _)| *place);
    out
}
