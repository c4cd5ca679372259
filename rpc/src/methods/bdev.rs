//! `bdev_*` that concern every kind of device: listing, examining.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_bdev::{BdevError, BdevNode, ClaimKind, Op, Registry as Bdevs};
use serde_json::{Value, json};

use crate::app::{App, Local};
use crate::config::Entry;
use crate::error::{EINVAL, ENODEV, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::{bdev_ec, bdev_layer, bdev_nvme, bdev_nvme_discovery, bdev_stat, options};
use crate::params;

impl From<BdevError> for RpcError {
    fn from(error: BdevError) -> RpcError {
        RpcError::errno_because(error.errno(), error.to_string())
    }
}

params! {
    struct GetBdevs {
        /// Name, alias or UUID; without it all are listed.
        name: Option<String>,
        /// Milliseconds to wait for the device to come.
        timeout: u64 = 0,
    }
}

params! {
    struct Name {
        /// Name of the device.
        name: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_get_bdevs", When::Runtime, get_bdevs)
            .doc("Block devices and what they can do.")
            .result("array of devices")
            .error(-ENODEV, "No such device")
            .example(
                json!({"name": "Malloc0"}),
                json!([{"name": "Malloc0", "product_name": "Malloc disk", "block_size": 512, "num_blocks": 2048}]),
            ),
    );
    registry.add(
        Method::new("bdev_examine", When::Runtime, examine)
            .doc("Looks at a device for what is to be built on it. Only when `bdev_auto_examine` is off: otherwise it has happened already.")
            .refusal(Refusal::PARAMS_OBJECT)
            .error(-EINVAL, "examined already")
            .error(-ENODEV, "No such device"),
    );
    registry.add(
        Method::bare("bdev_wait_for_examine", When::Runtime, "bdev_wait_for_examine requires no parameters", |app| async move {
            app.bdevs.wait_for_examine().await;
            Ok(json!(true))
        })
        .doc("Answers when every device that there is has been examined, and absent members of arrays have come or were waited for long enough."),
    );
}

/// The device of that name, alias or UUID.
pub(super) fn find(app: &App, name: &str) -> Result<Arc<BdevNode>, RpcError> {
    app.bdevs.find(name).ok_or_else(|| BdevError::NotFound(name.to_string()).into())
}

async fn get_bdevs(app: Arc<App>, p: GetBdevs) -> Reply {
    let Some(name) = p.name else {
        return Ok(app.bdevs.list().iter().map(|node| describe(&app, node)).collect());
    };
    let deadline = Instant::now() + Duration::from_millis(p.timeout.min(3_600_000));
    loop {
        let found = find(&app, &name);
        match (&found, app.cores.first()) {
            (Err(_), Some(core)) if Instant::now() < deadline => {
                let _ = core.spawn(|reactor| async move { reactor.sleep(Duration::from_millis(10)).await }).await;
            }
            _ => {
                let node = found?;
                return Ok(json!([describe(&app, &node)]));
            }
        }
    }
}

async fn examine(app: Arc<App>, p: Name) -> Reply {
    app.bdevs.allow_examine(&p.name)?;
    Ok(json!(true))
}

fn numa_of(bdevs: &Bdevs, node: &BdevNode, depth: u8) -> bool {
    node.device().product_name() == longshore_bdev::malloc::PRODUCT_NAME
        || depth > 0
            && node
                .device()
                .base_names()
                .iter()
                .any(|base| bdevs.find(base).is_some_and(|base| numa_of(bdevs, &base, depth - 1)))
}

fn claim_name(kind: ClaimKind) -> &'static str {
    match kind {
        ClaimKind::ExclusiveWrite => "exclusive_write",
        ClaimKind::ReadManyWriteOne => "read_many_write_one",
        ClaimKind::ReadManyWriteNone => "read_many_write_none",
        ClaimKind::ReadManyWriteShared => "read_many_write_shared",
    }
}

/// One element of `bdev_get_bdevs`.
fn describe(app: &App, node: &BdevNode) -> Value {
    let geometry = node.geometry();
    let mut out = json!({
        "name": node.name(),
        "aliases": node.aliases(),
        "product_name": node.device().product_name(),
        "block_size": geometry.block_size,
        "num_blocks": node.num_blocks(),
        "preferred_write_alignment": geometry.preferred_write_alignment,
        "preferred_write_granularity": geometry.preferred_write_granularity,
        "optimal_write_size": geometry.optimal_write_size,
        "preferred_unmap_alignment": geometry.preferred_unmap_alignment,
        "preferred_unmap_granularity": geometry.preferred_unmap_granularity,
        "uuid": node.uuid().to_string(),
    });
    if numa_of(&app.bdevs, node, 8) {
        out["numa_id"] = json!(-1);
    }
    if geometry.md_size != 0 {
        out["md_size"] = json!(geometry.md_size);
        out["md_interleave"] = json!(geometry.md_interleave);
        out["dif_type"] = json!(0);
    }
    out["assigned_rate_limits"] = bdev_stat::limits(node);
    let claim = node.claim();
    out["claimed"] = json!(claim.is_some());
    if let Some(claim) = claim {
        out["claim_type"] = json!(claim_name(claim.kind));
    }
    out["zoned"] = json!(false);
    let can = |op| node.supports(op);
    out["supported_io_types"] = json!({
        "read": can(Op::Read), "write": can(Op::Write), "unmap": can(Op::Unmap), "flush": can(Op::Flush), "reset": can(Op::Reset),
        "nvme_admin": false, "nvme_io": false, "nvme_io_md": false, "write_zeroes": can(Op::WriteZeroes), "zcopy": false,
        "get_zone_info": false, "zone_management": false, "zone_append": false, "compare": can(Op::Compare),
        "compare_and_write": can(Op::CompareAndWrite), "abort": true, "seek_hole": false, "seek_data": false, "copy": can(Op::Copy),
        "nvme_iov_md": false, "nvme_nssr": false, "write_uncorrectable": false,
    });
    let layer = bdev_layer::driver_specific(node);
    out["driver_specific"] =
        layer.or_else(|| Some(app.recipes.find(node.name())?.driver_specific())).unwrap_or_else(|| json!({}));
    out
}

/// Place of NVMe controllers among the modules of a dump: after null devices, before files.
const NVME: u8 = 7;

/// Place of erasure-coded arrays: after the devices that they are made of.
const ARRAYS: u8 = 12;

fn examined() -> Entry {
    Entry::One(crate::config::Call { method: "bdev_wait_for_examine", params: None })
}

/// Everything about block devices, in the order in which a client expects it.
pub(super) fn dump(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        let mut out = vec![options::bdev_options(&app)];
        let allowed = app.bdevs.examine_allowed();
        out.extend(allowed.iter().map(|name| Entry::new("bdev_examine", json!({"name": name}))));
        let mut modules = bdev_layer::dump(&app);
        modules.push((2, options::raid_options(&app)));
        modules.extend(bdev_ec::dump_options(&app).map(|entry| (2, entry)));
        let mut recipes = app.recipes.all();
        recipes.sort_by_key(|recipe| recipe.kind);
        modules.extend(
            recipes
                .iter()
                .map(|recipe| (4 + recipe.kind as u8 * 2, Entry::new(recipe.kind.method(), recipe.dump(&app.bdevs)))),
        );
        modules.push((NVME, bdev_nvme::dump_options(&app)));
        modules.extend(bdev_nvme::dump_controllers(&app).into_iter().map(|entry| (NVME, entry)));
        modules.extend(bdev_nvme_discovery::dump(&app).into_iter().map(|entry| (NVME, entry)));
        modules.push((NVME, options::hotplug(&app)));
        if bdev_ec::some_were_found(&app) {
            modules.push((ARRAYS, examined()));
        }
        modules.extend(bdev_ec::dump(&app).into_iter().map(|entry| (ARRAYS, entry)));
        modules.sort_by_key(|(place, _)| *place);
        out.extend(modules.into_iter().map(|(_, entry)| entry));
        out.extend(bdev_stat::dump(&app));
        out.push(examined());
        out
    })
}
