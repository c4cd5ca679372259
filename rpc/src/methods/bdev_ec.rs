//! `bdev_ec_*`: erasure-coded arrays.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use longshore_bdev::BdevNode;
use longshore_bdev::ec::arrays::{self, ASSEMBLE_TIMEOUT, ArrayInfo, REPLACE_TIMEOUT, Replacement};
use longshore_bdev::ec::create::Options;
use longshore_bdev::ec::format::MemberState;
use longshore_bdev::ec::{Ec, ScrubOptions, Tuning};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::config::Entry;
use crate::error::{EBUSY, EEXIST, EINVAL, ENODEV, EPERM, Reply, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::bdev_ec_rebuild;
use crate::params;

params! {
    struct Create {
        /// Name, 1 to 63 bytes.
        name: String,
        /// Data strips of a stripe, k: 1 to 32.
        data_chunk_count: u32,
        /// Parity strips of a stripe, m: 1 to 8; so many members may be lost.
        parity_chunk_count: u32,
        /// KiB of a strip: a power of two, 4 to 1024.
        strip_size_kb: u32,
        /// Names of the k+m devices.
        base_bdevs: Vec<String>,
        /// UUID; without it a random one. With the UUID of an array that the devices hold, devices that are no members of it are passed over, as long as they hold nothing else that is known: saved calls have it, since members may have been replaced.
        uuid: Option<Uuid>,
        /// Start an array that lost more than it can, with what is left: k members are enough even where m >= k, devices that are not there are passed over, and if there are fewer, stale members are taken as they are, and **what they lack is lost**. Nobody else may be using members of it, and what absent members took after these were last in sync is lost. It makes no new array; one that runs and is offline has to be deleted first. Needed at each start until more than half (with m < k: k) are in sync again. Not saved.
        salvage_requested: bool = false,
        /// Make the array even of devices that hold something else, which is **destroyed**; if the others hold this array already, it is started without those, and they stay as they are.
        force: bool = false,
    }
}

params! {
    struct Get {
        /// Name of an array; without it all are listed.
        name: Option<String>,
    }
}

params! {
    struct Delete {
        /// Name of the array.
        name: String,
        /// Make the superblocks void: the devices hold no array any more.
        clear_sb: bool = false,
    }
}

params! {
    struct SetOptions {
        /// Seconds that absent members of an array are waited for, before it starts without them: from the first member on, or, while a configuration is applied, from its last device or `bdev_wait_for_examine`; at first 10.
        assemble_timeout_sec: Option<u32>,
        /// A member that takes longer than so many milliseconds for a request has failed; at least 100, at first 30000. For arrays started from now on.
        member_timeout_ms: Option<u32>,
        /// Reads go past a member that takes longer than so many milliseconds for one, until it is fast again; 0: never, at first 50. For arrays started from now on.
        slow_read_ms: Option<u32>,
        /// Seconds that a member that failed may take to return before a spare takes its place; at first 0.
        spare_delay_sec: Option<u32>,
        /// Seconds that requests which hang on a device that is to leave its slot are waited for; then `bdev_ec_replace_base_bdev` gives up; spares and members that return do so after 30 at the latest. At least 1, at first 30.
        replace_timeout_sec: Option<u32>,
    }
}

params! {
    struct OfArray {
        /// Name of the array.
        ec_name: String,
    }
}

params! {
    struct StartScrub {
        /// Name of the array.
        ec_name: String,
        /// Stripes that are checked in a second, at most; 0: no limit.
        max_stripes_per_sec: u32 = ScrubOptions::default().stripes_per_second,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    let example = json!({
        "name": "Ec0", "data_chunk_count": 4, "parity_chunk_count": 2, "strip_size_kb": 64,
        "base_bdevs": ["Nvme0n1", "Nvme1n1", "Nvme2n1", "Nvme3n1", "Nvme4n1", "Nvme5n1"],
    });
    registry.add(
        Method::new("bdev_ec_create", When::Runtime, create)
            .doc(
                "Makes an erasure-coded array. Devices that hold this very array already are taken as they are, and nothing is written on \
                 them; a device that holds anything else that is known (another array, a partition table, a file system...) is refused, also beside \
                 others that hold this array. Of an array that runs already, all devices have to be members, unless its UUID is given. The \
                 largest block among the devices is the array's, and the smallest size is used of each.",
            )
            .changes()
            .result("true")
            .error(-ENODEV, "No such device")
            .error(-EEXIST, "File exists: something else has this name, or an array of other figures")
            .error(-EPERM, "Operation not permitted: a device is claimed")
            .error(-EINVAL, "Invalid argument: `data` says which, or what a device holds")
            .error(-EBUSY, "Device or resource busy: the members make the array, and could not be started, or the array is there and offline; `data` says why: too many of them failed meanwhile, a page of the map is whole on none, or another writer is at work")
            .example(example, json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_get_bdevs", When::Runtime, get)
            .doc(
                "Erasure-coded arrays, their members and counters. Parity rotates, so that every member has the role `rotating`. Its state \
                 is `normal`, `failed`, `replacing` or `empty`. `overhead_percent` is parity and metadata as a share of what the members \
                 have together, what larger members have unused included. `needs_rebuild` says that it lacks data. `rebuild_progress`, in percent, is there while a \
                 member is being rebuilt; `spares` are devices that may take the place of a member. `reason` says why a member failed since the array started, `replacement` which \
                 device is being taken into the slot and, as `waits_for`, the device that has to end requests first which hang on it, and \
                 `unused_bdevs` which devices of it were found and not taken, and why. An array that is not started is not listed: asked for by \
                 its name, it is an error that says why. \
                 Counted since the array started: `rmw_writes` are writes that read old data and parity, `full_stripe_writes` those of whole stripes, `degraded_reads_reconstructed` strips that were decoded from \
                 the other members, `degraded_read_eio` requests that failed because more was lost of a block than parity makes up for, `unmaps` unmaps and writes of zeroes. `dirty_stripes` are \
                 stripes that a missing member may lack writes of, and `unmapped_stripes` those that hold nothing. There is no `degraded_read_eio_dirty`: a crash leaves no stripe whose parity is in doubt, so no \
                 read fails for that; nor are members of role `data` or `parity`.",
            )
            .result("array of {name, uuid, k, m, n, strip_size_kb, failed_count, offline, offline_reason, block_size, num_blocks, overhead_percent, stats{}, dirty_stripes, unmaps, unmapped_stripes, rmw_writes, full_stripe_writes, degraded_reads_reconstructed, degraded_read_eio, replace_in_progress, rebuild_in_progress, rebuild_progress?, spares[], base_bdevs[{name, slot, role, state, size, unused, reason, needs_rebuild, replacement}], unused_bdevs[{name, reason}]}")
            .error(-ENODEV, "No such device"),
    );
    registry.add(
        Method::new("bdev_ec_delete", When::Runtime, delete)
            .doc(
                "Stops an array, when nobody uses it any more. Its superblocks stay, and it comes back with its devices, unless `clear_sb` \
                 is given.",
            )
            .changes()
            .result("true")
            .error(-ENODEV, "No such device, or one of another kind")
            .example(json!({"name": "Ec0", "clear_sb": true}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_set_options", When::Any, set_options)
            .doc("How arrays are found on devices and run. What is not given stays as it is. Saved.")
            .changes()
            .result("true")
            .error(-EINVAL, "Invalid argument: `data` says which")
            .example(json!({"assemble_timeout_sec": 30}), json!(true)),
    );
    scrubs(registry);
    bdev_ec_rebuild::declare(registry);
}

fn scrubs(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_ec_start_scrub", When::Runtime, |app, p: StartScrub| async move {
            let options = ScrubOptions { stripes_per_second: p.max_stripes_per_sec };
            with_array(&app, &p.ec_name, |ec| ec.start_scrub(options))??;
            Ok(json!(true))
        })
        .doc(
            "Reads every stripe of an array that holds data and checks that its strips fit together. Up to half as many wrong strips as there \
             is parity are found and rewritten; where more than one cause is possible nothing is changed. What is found is told by events \
             and by `bdev_ec_get_scrub_progress`.",
        )
        .result("true")
        .error(-ENODEV, "No such device, or one of another kind")
        .error(-EBUSY, "A scrub of it runs already")
        .example(json!({"ec_name": "Ec0", "max_stripes_per_sec": 500}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_stop_scrub", When::Runtime, |app, p: OfArray| async move {
            Ok(json!(with_array(&app, &p.ec_name, Ec::stop_scrub)?))
        })
        .doc("Stops the scrub of an array after its present stripe.")
        .result("true, or false if none was running")
        .error(-ENODEV, "No such device, or one of another kind")
        .example(json!({"ec_name": "Ec0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_ec_get_scrub_progress", When::Runtime, |app, p: OfArray| async move {
            let s = with_array(&app, &p.ec_name, Ec::scrub_progress)?;
            let seconds = |t: std::time::SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            Ok(json!({
                "state": s.state.name(), "stripes_done": s.stripes_done, "stripes_total": s.stripes_total, "checked": s.checked,
                "unchecked": s.unchecked, "mismatches": s.mismatches, "repaired": s.repaired, "ambiguous": s.ambiguous,
                "healed": s.healed, "unreadable": s.unreadable, "last_finished": s.last_finished.map(seconds),
            }))
        })
        .doc(
            "How far the scrub of an array is, or how the last one ended: `state` is `none`, `running`, `finished` or `stopped`. \
             `unchecked` stripes have no redundancy left to check with. `last_finished` is in seconds since 1970.",
        )
        .result("{state, stripes_done, stripes_total, checked, unchecked, mismatches, repaired, ambiguous, healed, unreadable, last_finished}")
        .error(-ENODEV, "No such device, or one of another kind"),
    );
}

/// Calls `f` with the array of this name.
pub(super) fn with_array<R>(app: &App, name: &str, f: impl FnOnce(&Ec) -> R) -> Result<R, RpcError> {
    let node = find(app, name)?;
    match arrays::array(&node) {
        Some(ec) => Ok(f(ec)),
        None => Err(RpcError::errno_because(ENODEV, format!("bdev '{name}' is no erasure-coded array"))),
    }
}

/// The device of this name; if it is an array that is not started, the error says why.
pub(super) fn find(app: &App, name: &str) -> Result<Arc<BdevNode>, RpcError> {
    super::bdev::find(app, name).map_err(|error| match app.arrays.why_not_started(name) {
        Some(why) => RpcError::errno_because(ENODEV, format!("array '{name}' is not started: {why}")),
        None => error,
    })
}

async fn set_options(app: Arc<App>, p: SetOptions) -> Reply {
    if p.replace_timeout_sec == Some(0) {
        let why = "replace_timeout_sec is 0: must be at least 1, or no device could take a member's place";
        return Err(RpcError::errno_because(EINVAL, why));
    }
    if let Some(ms) = p.member_timeout_ms {
        if ms < 100 {
            let why = format!(
                "member_timeout_ms is {ms}: must be at least 100, or slow members would be given up for nothing"
            );
            return Err(RpcError::errno_because(EINVAL, why));
        }
        app.arrays.set_tuning(Tuning { write_timeout: Duration::from_millis(ms.into()), ..app.arrays.tuning() });
    }
    if let Some(ms) = p.slow_read_ms {
        app.arrays.set_tuning(Tuning { slow_read: Duration::from_millis(ms.into()), ..app.arrays.tuning() });
    }
    if let Some(seconds) = p.spare_delay_sec {
        app.arrays.set_spare_delay(Duration::from_secs(seconds.into()));
    }
    if let Some(seconds) = p.replace_timeout_sec {
        app.arrays.set_replace_timeout(Duration::from_secs(seconds.into()));
    }
    if let Some(seconds) = p.assemble_timeout_sec {
        app.arrays.set_assemble_timeout(Duration::from_secs(seconds.into()));
    }
    Ok(json!(true))
}

async fn create(app: Arc<App>, p: Create) -> Reply {
    let made = json!({
        "name": p.name, "data_chunk_count": p.data_chunk_count, "parity_chunk_count": p.parity_chunk_count,
        "strip_size_kb": p.strip_size_kb, "base_bdevs": p.base_bdevs,
    });
    let o = Options {
        name: p.name,
        data_chunk_count: p.data_chunk_count,
        parity_chunk_count: p.parity_chunk_count,
        strip_size_kb: p.strip_size_kb,
        base_bdevs: p.base_bdevs,
        uuid: p.uuid,
        salvage_requested: p.salvage_requested,
        force: p.force,
        ..Options::default()
    };
    let node = app.arrays.create(&app.bdevs, o).await?;
    // What was forced or salvaged once is not to be again; the UUID makes sure that no other array is taken for this one.
    let mut made = made;
    made["uuid"] = node.uuid().to_string().into();
    App::lock(&app.arrays_made).insert(node.name().to_owned(), made);
    Ok(json!(true))
}

async fn delete(app: Arc<App>, p: Delete) -> Reply {
    let name = app.bdevs.find(&p.name).map_or(p.name, |node| node.name().to_owned());
    app.arrays.delete(&app.bdevs, &name, p.clear_sb).await?;
    App::lock(&app.arrays_made).remove(&name);
    Ok(json!(true))
}

async fn get(app: Arc<App>, p: Get) -> Reply {
    let of = |node: &Arc<BdevNode>| Some(array(node, &app.arrays.describe(&app.bdevs, node)?));
    match p.name {
        Some(name) => match of(&find(&app, &name)?) {
            Some(array) => Ok(json!([array])),
            None => Err(RpcError::errno_because(ENODEV, format!("bdev '{name}' is no erasure-coded array"))),
        },
        None => Ok(app.bdevs.list().iter().filter_map(of).collect()),
    }
}

fn state(state: MemberState) -> &'static str {
    match state {
        MemberState::InSync => "normal",
        MemberState::Failed => "failed",
        MemberState::Rebuilding => "replacing",
        MemberState::Empty => "empty",
    }
}

fn replacement(r: &Replacement) -> Value {
    json!({"name": r.name, "waits_for": r.waits_for})
}

fn array(node: &BdevNode, info: &ArrayInfo) -> Value {
    let (l, s) = (&info.layout, &info.stats);
    let failed = info.members.iter().filter(|m| m.state != MemberState::InSync).count();
    let usable = node.num_blocks() * u64::from(l.block);
    let smallest = l.member_bytes();
    let raw: u64 = info.members.iter().map(|m| m.bytes.unwrap_or(smallest)).sum();
    let bases = info.members.iter().enumerate().map(|(slot, m)| {
        json!({
            "name": m.name, "slot": slot, "role": "rotating", "state": state(m.state), "size": m.bytes,
            "unused": m.bytes.map(|b| b.saturating_sub(smallest)), "reason": m.why,
            "needs_rebuild": m.state != MemberState::InSync, "replacement": m.replacement.as_ref().map(replacement),
        })
    });
    let unused = info.passed_over.iter().map(|(name, why)| json!({"name": name, "reason": why}));
    let mut out = json!({
        "name": node.name(), "uuid": node.uuid().to_string(), "k": l.k, "m": l.m, "n": l.n(), "strip_size_kb": l.strip / 1024,
        "failed_count": failed, "offline": info.offline, "offline_reason": info.offline_because, "block_size": l.block, "num_blocks": node.num_blocks(),
        "overhead_percent": 100.0 * (1.0 - usable as f64 / raw.max(1) as f64),
        "stats": {
            "host_reads": s.host_reads, "host_writes": s.host_writes, "host_flushes": s.host_flushes, "host_unmaps": s.host_unmaps,
            "host_read_bytes": s.host_read_bytes, "host_written_bytes": s.host_written_bytes,
            "member_reads": s.member_reads, "member_writes": s.member_writes, "journal_writes": s.journal_writes,
            "member_flushes": s.member_flushes, "member_read_bytes": s.member_read_bytes,
            "member_written_bytes": s.member_written_bytes, "journal_written_bytes": s.journal_written_bytes,
            "metadata_writes": s.metadata_writes, "joined_writes": s.joined_writes,
            "reconstruct_writes": s.reconstruct_writes, "healed_reads": s.healed_reads, "epochs": s.epochs,
            "scrub_repaired": s.scrub_repaired, "scrub_ambiguous": s.scrub_ambiguous,
        },
        "dirty_stripes": info.dirty_stripes, "unmaps": s.host_unmaps, "unmapped_stripes": info.unmapped_stripes,
        "rmw_writes": s.read_modify_writes, "full_stripe_writes": s.full_stripe_writes,
        "degraded_reads_reconstructed": s.reconstructed_reads, "degraded_read_eio": s.unrecovered_reads,
        "replace_in_progress": info.replacing, "rebuild_in_progress": !info.rebuilds.is_empty(), "spares": info.spares,
        "base_bdevs": bases.collect::<Vec<_>>(), "unused_bdevs": unused.collect::<Vec<_>>(),
    });
    if let Some(first) = info.rebuilds.first() {
        out["rebuild_progress"] = bdev_ec_rebuild::percent(first).into();
    }
    out
}

/// The call that says how arrays are found and run: before their devices are there, or it would not hold for arrays that are found on these.
pub(super) fn dump_options(app: &App) -> Option<Entry> {
    let (absent, tuning) = (app.arrays.assemble_timeout(), app.arrays.tuning());
    // Said only if it was set: clients compare dumps.
    let mut options = Map::new();
    if absent != ASSEMBLE_TIMEOUT {
        options.insert("assemble_timeout_sec".into(), absent.as_secs().into());
    }
    if tuning.write_timeout != Tuning::default().write_timeout {
        options.insert("member_timeout_ms".into(), (tuning.write_timeout.as_millis() as u64).into());
    }
    if tuning.slow_read != Tuning::default().slow_read {
        options.insert("slow_read_ms".into(), (tuning.slow_read.as_millis() as u64).into());
    }
    let delay = app.arrays.spare_delay();
    if !delay.is_zero() {
        options.insert("spare_delay_sec".into(), delay.as_secs().into());
    }
    let hanging = app.arrays.replace_timeout();
    if hanging != REPLACE_TIMEOUT {
        options.insert("replace_timeout_sec".into(), hanging.as_secs().into());
    }
    (!options.is_empty()).then(|| Entry::new("bdev_ec_set_options", Value::Object(options)))
}

/// Whether there are arrays that no call makes: calls that concern them have to wait until they are found.
pub(super) fn some_were_found(app: &App) -> bool {
    let made = App::lock(&app.arrays_made);
    app.bdevs.list().iter().any(|node| arrays::array(node).is_some() && !made.contains_key(node.name()))
}

/// The calls that make the arrays again, those that were made by calls.
pub(super) fn dump(app: &App) -> Vec<Entry> {
    let made: Vec<Value> = App::lock(&app.arrays_made).values().cloned().collect();
    let made = made.into_iter().map(|made| Entry::new("bdev_ec_create", as_it_is(app, made)));
    made.chain(bdev_ec_rebuild::dump(app)).collect()
}

/// The call that made an array, with the members that it has now.
fn as_it_is(app: &App, mut made: Value) -> Value {
    let node = made["name"].as_str().and_then(|name| app.bdevs.find(name));
    let info = node.and_then(|node| app.arrays.describe(&app.bdevs, &node));
    let Some(info) = info else { return made };
    let now: Vec<Option<String>> = info.members.into_iter().map(|m| m.name).collect();
    // A slot whose device is gone keeps a name: as many are needed as there are members.
    let asked: Vec<String> =
        made["base_bdevs"].as_array().into_iter().flatten().filter_map(|b| b.as_str().map(str::to_owned)).collect();
    if now.iter().flatten().all(|name| asked.contains(name)) {
        return made;
    }
    let mut former =
        asked.into_iter().filter(|name| !now.contains(&Some(name.clone()))).collect::<Vec<_>>().into_iter();
    let members: Vec<String> = now.iter().filter_map(|name| name.clone().or_else(|| former.next())).collect();
    if members.len() == now.len() {
        made["base_bdevs"] = members.into();
    }
    made
}
