//! A run as the command line asks for it: what is loaded, in which parts, and what is printed.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use longshore_bdev::{CoreOptions, CoreState};
use longshore_reactor::{DmaOptions, Options, PollMode, Reactor, Runtime};
use serde_json::{Value, json};

use crate::cli::{RunArgs, Workload};
use crate::device::Device;
use crate::html;
use crate::lane::{Lane, Plan};
use crate::local::LocalBdev;
use crate::prefill;
use crate::progress::Progress;
use crate::random::Random;
use crate::report::Report;
use crate::run::{self, Schedule};
use crate::target;
use crate::units;
use crate::verify::session;
use crate::zipf::Zipf;

/// How a run ended, for the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Good,
    /// Data was not what it had to be, or requests failed that the run was told to survive.
    Bad,
    /// A request failed in a run with a journal: the target is gone, the journal tells what it owes.
    TargetLost,
}

/// Largest request: one buffer.
const MAX_IO_SIZE: u32 = 2 << 20;

/// Most pieces of memory of a request: as many as the kernel takes at once.
const MAX_PIECES: u32 = 1024;

/// The part of a device that is used, in requests.
pub(crate) struct Extent {
    /// Bytes per block.
    pub(crate) block_size: u32,
    /// Blocks per request.
    pub(crate) unit_blocks: u32,
    /// First block.
    pub(crate) first_lba: u64,
    /// Requests that fit.
    pub(crate) units: u64,
}

impl Extent {
    fn new(a: &RunArgs, block_size: u32, num_blocks: u64) -> Result<Extent, String> {
        let block = u64::from(block_size);
        if !a.io_size.is_multiple_of(block_size) {
            return Err(format!("-o {} is not a multiple of the device's {block_size}-byte blocks", a.io_size));
        }
        if !a.offset.is_multiple_of(block) {
            return Err(format!("--offset {} is not a multiple of the device's {block_size}-byte blocks", a.offset));
        }
        let (unit_blocks, first_lba) = (a.io_size / block_size, a.offset / block);
        let left = num_blocks.saturating_sub(first_lba);
        let blocks = match a.span {
            Some(s) if s / block > left => {
                let size = num_blocks.saturating_mul(block);
                return Err(format!("--offset and --span end behind the device's {}", units::size(size)));
            }
            Some(s) => s / block,
            None => left,
        };
        match blocks / u64::from(unit_blocks) {
            0 => Err(format!(
                "not even one request of {} fits in the part of the device to use",
                units::size(u64::from(a.io_size))
            )),
            units => Ok(Extent { block_size, unit_blocks, first_lba, units }),
        }
    }
}

/// Runs load, or checks a journal.
pub(crate) fn run(a: &RunArgs) -> Result<Outcome, String> {
    for note in a.foreign.answer()? {
        eprintln!("longshore-perf: {note}");
    }
    check(a)?;
    let Some(spec) = &a.bdev else {
        return match a.transport.is_empty() {
            true => Err("nothing to load: name a target with -r or a local bdev with --bdev (try --help)".into()),
            false => target::run(a),
        };
    };
    if a.num_qpairs != 1 {
        eprintln!("longshore-perf: option -P has no effect: a local bdev has no queue pairs");
    }
    local(a, spec)
}

/// Loads or verifies devices that are open, as the options say.
pub(crate) fn on_devices<D: Device>(
    a: &RunArgs,
    runtime: &Runtime,
    devices: &[Arc<D>],
    target: Value,
) -> Result<Outcome, String> {
    if a.verify_check.is_some() || a.workload == Workload::Verify {
        let [device] = devices else {
            return Err(format!(
                "verification is of one namespace, the target has {}: add ns:NSID to -r",
                devices.len()
            ));
        };
        return match &a.verify_check {
            Some(journal) => session::check(a, runtime, device, journal),
            None => session::verify(a, runtime, device, &Extent::new(a, device.block_size(), device.num_blocks())?),
        };
    }
    load(a, runtime, devices, target)
}

fn check(a: &RunArgs) -> Result<(), String> {
    let mixed = matches!(a.workload, Workload::Rw | Workload::Randrw);
    if a.rwmixread.is_some() && !mixed {
        return Err(format!("-M is for rw and randrw, not for {}", a.workload.name()));
    }
    if a.zipf.is_some() && (!a.workload.random() || a.workload == Workload::Verify) {
        return Err(format!("-F is for randread, randwrite and randrw, not for {}", a.workload.name()));
    }
    if a.zipf.is_some_and(|theta| !(0.0..=10.0).contains(&theta)) {
        return Err("-F: theta is a number from 0 (uniform) to 10".into());
    }
    if a.io_size > MAX_IO_SIZE {
        return Err(format!("-o {}: at most {} per request", a.io_size, units::size(u64::from(MAX_IO_SIZE))));
    }
    if let Some(unit) = a.io_unit_size.filter(|&u| u < a.io_size) {
        if !unit.is_multiple_of(4) {
            return Err(format!("-O {unit} is not a multiple of 4"));
        }
        if a.io_size.div_ceil(unit) > MAX_PIECES {
            return Err(format!("-O {unit} makes more than {MAX_PIECES} pieces of -o {}", a.io_size));
        }
        if a.workload == Workload::Verify {
            return Err("-O does not go with -w verify".into());
        }
    }
    let verify = a.workload == Workload::Verify || a.verify_check.is_some();
    if (a.verify_journal.is_some() || a.verify_power_loss) && !verify {
        return Err("--verify-journal and --verify-power-loss go with -w verify or --verify-check".into());
    }
    if a.report.is_some() && (verify || a.idle.is_some()) {
        return Err("--report is of load, not of verification or of --idle".into());
    }
    if verify && a.rate.is_some() {
        return Err("--rate does not go with verification".into());
    }
    let writes = !matches!(a.workload, Workload::Read | Workload::Randread);
    if (a.fua != 0 || a.flush_every.is_some()) && !writes {
        return Err(format!("--fua and --flush-every are for writes, not for {}", a.workload.name()));
    }
    if a.flush_every == Some(0) {
        return Err("--flush-every 0: leave the option out for no flushes".into());
    }
    if let Some(accel) = &a.accel_mask
        && let Some(cpu) = accel.0.iter().find(|cpu| a.core_mask.0.contains(cpu))
    {
        return Err(format!(
            "--accel-mask: CPU {cpu} is one of those that generate load (-c): it can do one or the other"
        ));
    }
    if a.time == 0.0 && a.number_ios.is_none() {
        return Err("-t 0 measures nothing".into());
    }
    Ok(())
}

/// Reactors with memory for the requests of the run.
pub(crate) fn runtime(a: &RunArgs, lanes_per_core: u64) -> Result<Runtime, String> {
    // Each piece of memory is a buffer of its own, of at least 4 KiB.
    let piece = u64::from(a.io_unit_size.unwrap_or(a.io_size).min(a.io_size));
    let request = u64::from(a.io_size).div_ceil(piece) * piece.next_power_of_two().max(4096);
    let buffers = u64::from(a.io_depth) * lanes_per_core * request;
    let options = Options {
        cores: a.core_mask.0.clone(),
        poll: if a.enable_interrupt { PollMode::default() } else { PollMode::Busy },
        // Twice what is asked for, because classes share 2 MiB chunks, and as much again as a target's connections take.
        dma: DmaOptions { max_bytes: (buffers * 2) as usize + (64 << 20), ..DmaOptions::default() },
        name: "perf".into(),
        ..Options::default()
    };
    Runtime::start(options).map_err(|e| e.to_string())
}

fn local(a: &RunArgs, name: &str) -> Result<Outcome, String> {
    let runtime = runtime(a, 1)?;
    let depth = a.io_depth;
    for core in runtime.cores() {
        let made = core.call(move |r| {
            CoreState::init(r, CoreOptions { requests: (depth * 2 + 4096).min(1 << 18), ..CoreOptions::default() });
        });
        made.wait().map_err(|_| "a reactor stopped")?;
    }
    let outcome = open_and_load(a, name, &runtime);
    for core in runtime.cores() {
        let _ = core.call(|_| CoreState::shutdown()).wait();
    }
    runtime.stop();
    outcome
}

fn open_and_load(a: &RunArgs, name: &str, runtime: &Runtime) -> Result<Outcome, String> {
    let bdev = Arc::new(match &a.config {
        Some(config) => LocalBdev::configured(config, name, runtime.cores(), a.accel_mask.as_ref())?,
        None => LocalBdev::built_in(name)?,
    });
    let filled = match a.prefill {
        Some(how) => Extent::new(a, bdev.block_size(), bdev.num_blocks())
            .and_then(|e| prefill::run(how, bdev.desc(), &e, &runtime.cores()[0])),
        None => Ok(()),
    };
    let outcome = filled.and_then(|()| on_devices(a, runtime, std::slice::from_ref(&bdev), json!({ "bdev": name })));
    // A core's task answers before it drops what it held: one more message, and it has.
    for core in runtime.cores() {
        let _ = core.call(|_| ()).wait();
    }
    match Arc::try_unwrap(bdev) {
        Ok(bdev) => bdev.close(),
        Err(_) => debug_assert!(false, "a core still holds the device"),
    }
    outcome
}

fn plan(a: &RunArgs, e: &Extent, core: usize, device: usize) -> Plan {
    let cores = a.core_mask.0.len() as u64;
    Plan {
        first_lba: e.first_lba,
        units: e.units,
        unit_blocks: e.unit_blocks,
        // Sequential cores start apart from each other.
        start_unit: e.units / cores * core as u64,
        random: a.workload.random(),
        zipf: a.zipf.filter(|&theta| theta > 0.0).map(|theta| Zipf::new(e.units, theta)),
        reads: match a.workload {
            Workload::Read | Workload::Randread => 100,
            Workload::Rw | Workload::Randrw => a.rwmixread.unwrap_or(50),
            _ => 0,
        },
        fua: a.fua,
        flush_every: a.flush_every.unwrap_or(0),
        limit: a.number_ios.unwrap_or(u64::MAX),
        track: tracks(a),
        open: a.rate.is_some(),
        report_every: a.continue_on_error,
        seed: Random::new(a.seed ^ (core as u64) << 32 ^ (device as u64) << 48).next(),
    }
}

/// An open loop and a report are about latency: it is measured whether -L is given or not.
fn tracks(a: &RunArgs) -> bool {
    a.latency > 0 || a.rate.is_some() || a.report.is_some()
}

fn load<D: Device>(a: &RunArgs, runtime: &Runtime, devices: &[Arc<D>], target: Value) -> Result<Outcome, String> {
    let extents: Vec<Extent> = devices
        .iter()
        .map(|d| Extent::new(a, d.block_size(), d.num_blocks()).map_err(|e| format!("{}: {e}", d.name())))
        .collect::<Result<_, _>>()?;
    // A file that cannot be written is better told before the run than after it.
    let mut page = match &a.report {
        Some(path) => Some(File::create(path).map_err(|e| format!("--report {}: {e}", path.display()))?),
        None => None,
    };
    let progress = Arc::new(AtomicU64::new(0));
    let schedule = Schedule {
        depth: a.io_depth,
        io_size: a.io_size,
        piece: a.io_unit_size.unwrap_or(a.io_size),
        warm_up: Duration::from_secs_f64(a.warmup_time),
        length: Duration::from_secs_f64(if a.time == 0.0 { 1e6 } else { a.time }),
        rate: a.rate.map(|r| r / a.core_mask.0.len() as f64),
        track: tracks(a),
        progress: progress.clone(),
    };
    let counted: Vec<_> = devices.iter().map(|d| d.counters()).collect();
    let line = Progress::start(progress, a.io_size, a.warmup_time + a.time, a.quiet || a.json);
    let (args, opened, extents) = (a.clone(), devices.to_vec(), Arc::new(extents));
    let cores = run::run(runtime.cores(), &schedule, async move |r: Reactor| {
        let mut lanes = Vec::new();
        for (i, (device, e)) in opened.iter().zip(extents.iter()).enumerate() {
            lanes.push(Lane::new(device.open_port(&r).await?, plan(&args, e, r.index(), i)));
        }
        Ok(lanes)
    })?;
    drop(line);
    let names: Vec<_> = devices.iter().map(|d| d.name()).collect();
    let report = Report {
        title: title(a, &names.join(", ")),
        job: job(a, target),
        io_size: a.io_size,
        rate: a.rate,
        histogram: a.latency > 1,
        counters: match (&counted[..], devices) {
            ([before], [device]) => difference(before, &device.counters()),
            _ => Value::Null,
        },
        cores,
    };
    if a.json {
        println!("{:#}", report.to_json())
    } else {
        report.print()
    }
    if let (Some(file), Some(path)) = (&mut page, &a.report) {
        let command: Vec<_> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
        let page = html::page(&report, &command.join(" "));
        file.write_all(page.as_bytes()).map_err(|e| format!("--report {}: {e}", path.display()))?;
    }
    Ok(if report.errors() == 0 { Outcome::Good } else { Outcome::Bad })
}

/// What counters grew by.
fn difference(before: &Value, after: &Value) -> Value {
    match (before, after) {
        (Value::Object(b), Value::Object(a)) => {
            a.iter().map(|(k, v)| (k.clone(), difference(b.get(k).unwrap_or(&Value::Null), v))).collect()
        }
        (b, a) => match (b.as_u64(), a.as_u64()) {
            (Some(b), Some(a)) => json!(a.saturating_sub(b)),
            _ => Value::Null,
        },
    }
}

fn title(a: &RunArgs, target: &str) -> String {
    let mix = if matches!(a.workload, Workload::Rw | Workload::Randrw) {
        format!(" ({} % reads)", a.rwmixread.unwrap_or(50))
    } else {
        String::new()
    };
    format!(
        "{target}: {}{mix}, {}, depth {} on {} core{}",
        a.workload.name(),
        units::size(u64::from(a.io_size)),
        a.io_depth,
        a.core_mask.0.len(),
        if a.core_mask.0.len() == 1 { "" } else { "s" },
    )
}

fn job(a: &RunArgs, target: Value) -> Value {
    json!({
        "target": target,
        "workload": a.workload.name(),
        "rwmixread": if matches!(a.workload, Workload::Rw | Workload::Randrw) { json!(a.rwmixread.unwrap_or(50)) } else { Value::Null },
        "zipf": a.zipf,
        "io_size": a.io_size,
        "io_unit_size": a.io_unit_size.unwrap_or(a.io_size).min(a.io_size),
        "io_depth": a.io_depth,
        "num_qpairs": a.num_qpairs,
        "cores": a.core_mask.0,
        "time": a.time,
        "warmup_time": a.warmup_time,
        "rate": a.rate,
        "fua": a.fua,
        "flush_every": a.flush_every,
        "header_digest": a.enable_tcp_hdgst,
        "data_digest": a.enable_tcp_ddgst,
        "seed": a.seed,
    })
}
