//! `bdev_ec_*` that concern members which are lost and put right: replacement, rebuild, spares.

use longshore_bdev::ec::arrays::array;
use longshore_bdev::ec::format::RebuildMode;
use longshore_bdev::ec::{Ec, RebuildProgress, RebuildQos};
use serde_json::{Value, json};

use crate::app::App;
use crate::config::Entry;
use crate::error::{EBUSY, EINVAL, EIO, ENODEV, ENOENT, EPERM, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::bdev_ec::{OfArray, find, with_array};
use crate::params;

params! {
    struct Replace {
        /// Name of the array.
        ec_name: String,
        /// Slot of the member, from 0.
        slot: u32,
        /// Name of the device that takes its place; a spare, too, or the slot's own one, back again.
        new_bdev_name: String,
        /// Take the device even if it holds something else, which is **destroyed**, and rebuild all of it.
        force: bool = false,
    }
}

params! {
    struct Start {
        /// Name of the array.
        ec_name: String,
        /// Slot of one member; without it all that can be rebuilt are.
        slot: Option<u32>,
    }
}

params! {
    struct Qos {
        /// Name of the array.
        ec_name: String,
        /// Stripes that are rebuilt in a second, at most; 0: as fast as hosts' requests leave room for.
        max_stripes_per_sec: u32 = 0,
        /// Rebuild nothing for now.
        paused: bool = false,
    }
}

params! {
    struct AddSpare {
        /// Name of the device.
        bdev_name: String,
        /// Name of the array that it is for; without it, any.
        ec_name: Option<String>,
        /// Take the device even if it holds something, which is **destroyed**.
        force: bool = false,
    }
}

params! {
    struct RemoveSpare {
        /// Name of the device.
        bdev_name: String,
    }
}

const NO_ARRAY: &str = "No such device, or one of another kind";

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_ec_replace_base_bdev", When::Runtime, |app, p: Replace| async move {
            find(&app, &p.ec_name)?;
            app.arrays.replace(&app.bdevs, &p.ec_name, p.slot as usize, &p.new_bdev_name, p.force).await?;
            Ok(json!(true))
        })
        .doc(
            "Puts a device in the place of a member that failed; or of one in sync, which is failed first, unless too few would be left. The \
             answer comes when superblocks name the device a member that is being rebuilt. The rebuild goes on by itself. A device that \
             holds anything that is known is refused unless `force` is given; the slot's own member, back again, is only brought up to date.",
        )
        .changes()
        .result("true")
        .error(-ENODEV, "No such device: the array or the new device")
        .error(-EPERM, "Operation not permitted: the new device is claimed")
        .error(-EINVAL, "Invalid argument: `data` says which, what a device holds, or how many members would be left")
        .error(-EBUSY, "Device or resource busy: the slot is being filled already, the array is offline, or requests hang on the old device")
        .error(-EIO, "Input/output error: the new device failed")
        .example(json!({"ec_name": "Ec0", "slot": 2, "new_bdev_name": "Nvme6n1"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_start_rebuild", When::Runtime, |app, p: Start| async move {
            find(&app, &p.ec_name)?;
            app.arrays.start_rebuild(&app.bdevs, &p.ec_name, p.slot.map(|slot| slot as usize)).await?;
            Ok(json!(true))
        })
        .doc(
            "Goes on with rebuilds that were stopped, and takes back failed members whose devices are there: such a member is brought up to date from \
             the write-intent bitmap where that is known to name all it lacks.",
        )
        .result("true")
        .error(-ENODEV, NO_ARRAY)
        .error(-EINVAL, "Invalid argument: there is nothing to rebuild")
        .error(-EBUSY, "Device or resource busy: the array is offline, or requests hang on the device")
        .example(json!({"ec_name": "Ec0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_stop_rebuild", When::Runtime, |app, p: OfArray| async move {
            with_array(&app, &p.ec_name, Ec::stop_rebuild)??;
            Ok(json!(true))
        })
        .doc("Stops rebuilds of an array until they are started. What was rebuilt is kept. After a restart of the daemon they go on by themselves.")
        .result("true")
        .error(-ENODEV, NO_ARRAY)
        .error(-EBUSY, "Device or resource busy: no member is being rebuilt")
        .example(json!({"ec_name": "Ec0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_get_rebuild_progress", When::Runtime, |app, p: OfArray| async move {
            let all = with_array(&app, &p.ec_name, Ec::rebuild_progress)?;
            let Some(first) = all.first() else {
                let why = format!("no member of array '{}' is being rebuilt", p.ec_name);
                return Err(RpcError::errno_because(ENOENT, why));
            };
            let mut shown = progress(first);
            shown["members"] = all.iter().map(progress).collect();
            Ok(shown)
        })
        .doc(
            "How far the rebuild of an array is. `mode` is `wib` for a member that is brought up to date from the write-intent bitmap, else `full`; \
             `state` is `running`, `paused` or `stopped`. `stripes_done` counts those too that hold nothing or lack nothing, \
             `stripes_rebuilt` those that were filled since the array started. Members are rebuilt one after the other; `members` has all that are to be.",
        )
        .result("{slot, mode, state, stripes_done, stripes_total, percent, stripes_rebuilt, members[]}")
        .error(-ENODEV, NO_ARRAY)
        .error(-ENOENT, "No such file or directory: no rebuild is under way"),
    );
    registry.add(
        Method::new("bdev_ec_set_rebuild_qos", When::Runtime, |app, p: Qos| async move {
            let qos = RebuildQos { max_stripes_per_sec: p.max_stripes_per_sec, paused: p.paused };
            with_array(&app, &p.ec_name, |ec| ec.set_rebuild_qos(qos))?;
            Ok(json!(true))
        })
        .doc("Sets how fast rebuilds of an array may be, from now on. Saved.")
        .changes()
        .result("true")
        .error(-ENODEV, NO_ARRAY)
        .example(json!({"ec_name": "Ec0", "max_stripes_per_sec": 200}), json!(true)),
    );
    status(registry);
    spares(registry);
}

fn status(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_ec_get_wib_status", When::Runtime, |app, p: OfArray| async move {
            let s = with_array(&app, &p.ec_name, Ec::wib_status)?;
            Ok(json!({
                "generation": s.generation, "region_stripes": s.region_stripes, "regions": s.regions, "dirty_regions": s.dirty_regions,
            }))
        })
        .doc(
            "The write-intent bitmap of an array: regions that missing members may lack writes of. `generation` is the epoch at which the first of them \
             failed, 0 if none is missing.",
        )
        .result("{generation, region_stripes, regions, dirty_regions}")
        .error(-ENODEV, NO_ARRAY),
    );
    registry.add(
        Method::new("bdev_ec_get_unmap_status", When::Runtime, |app, p: OfArray| async move {
            let s = with_array(&app, &p.ec_name, Ec::unmap_status)?;
            Ok(json!({"stripes": s.stripes, "mapped_stripes": s.mapped, "unmapped_stripes": s.stripes - s.mapped}))
        })
        .doc("How many stripes of an array hold data. Those that were never written, or unmapped, read zero and need no rebuild.")
        .result("{stripes, mapped_stripes, unmapped_stripes}")
        .error(-ENODEV, NO_ARRAY),
    );
}

fn spares(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_ec_add_spare", When::Runtime, |app, p: AddSpare| async move {
            app.arrays.add_spare(&app.bdevs, &p.bdev_name, p.ec_name.as_deref(), p.force).await?;
            Ok(json!(true))
        })
        .doc(
            "Lets a device stand by for an array, or for all: when a member fails and does not return within `spare_delay_sec` \
             (`bdev_ec_set_options`), the first spare that fits takes its place. The device is claimed. One that is a spare or a member already \
             is left as it is. Saved.",
        )
        .changes()
        .result("true")
        .error(-ENODEV, "No such device: the spare or the array")
        .error(-EPERM, "Operation not permitted: the device is claimed")
        .error(-EINVAL, "Invalid argument: `data` says what the device holds, or lacks")
        .example(json!({"bdev_name": "Nvme7n1", "ec_name": "Ec0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_remove_spare", When::Runtime, |app, p: RemoveSpare| async move {
            app.arrays.remove_spare(&app.bdevs, &p.bdev_name)?;
            Ok(json!(true))
        })
        .doc("Lets a device stand by no longer.")
        .changes()
        .result("true")
        .error(-ENODEV, "No such device, or no spare")
        .error(-EBUSY, "Device or resource busy: it is being made a member")
        .example(json!({"bdev_name": "Nvme7n1"}), json!(true)),
    );
}

/// Share of the stripes that are done.
pub(super) fn percent(p: &RebuildProgress) -> f64 {
    let percent = 100.0 * p.stripes_done as f64 / p.stripes_total.max(1) as f64;
    (percent * 100.0).floor() / 100.0
}

fn progress(p: &RebuildProgress) -> Value {
    let mode = match p.mode {
        RebuildMode::Full => "full",
        RebuildMode::Wib => "wib",
    };
    json!({
        "slot": p.slot, "mode": mode, "state": p.state.name(), "stripes_done": p.stripes_done, "stripes_total": p.stripes_total,
        "percent": percent(p), "stripes_rebuilt": p.stripes_rebuilt,
    })
}

/// The calls that make arrays as they are run, once they are there.
pub(super) fn dump(app: &App) -> Vec<Entry> {
    let mut out = Vec::new();
    for node in app.bdevs.list() {
        let Some(qos) = array(&node).map(Ec::rebuild_qos) else { continue };
        if qos != RebuildQos::default() {
            let params =
                json!({"ec_name": node.name(), "max_stripes_per_sec": qos.max_stripes_per_sec, "paused": qos.paused});
            out.push(Entry::new("bdev_ec_set_rebuild_qos", params));
        }
    }
    for spare in app.arrays.spares(&app.bdevs) {
        let mut params = json!({"bdev_name": spare.name});
        if let Some(array) = spare.array {
            params["ec_name"] = array.into();
        }
        out.push(Entry::new("bdev_ec_add_spare", params));
    }
    out
}
