//! A verified run, and the check of a journal, as the command line asks for them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longshore_reactor::{Runtime, oneshot};
use serde_json::{Value, json};

use super::journal::{After, Header, History, Journal, Record};
use super::work::{self, Checked, VerifyPlan};
use super::{Disk as _, check};
use crate::cli::RunArgs;
use crate::device::Device;
use crate::load::{Extent, Outcome};
use crate::progress::Progress;
use crate::random::Random;

/// Told apart from every other run on the same device, whatever seed they have.
fn new_run_id(seed: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    Random::new(seed ^ now.rotate_left(17) ^ u64::from(std::process::id())).next()
}

/// Runs the `verify` workload on every core.
pub(crate) fn verify<D: Device>(
    a: &RunArgs,
    runtime: &Runtime,
    device: &Arc<D>,
    e: &Extent,
) -> Result<Outcome, String> {
    let fresh = Header { seed: new_run_id(a.seed), block_size: e.block_size, unit_blocks: e.unit_blocks };
    let (journal, history, run_id) = match &a.verify_journal {
        Some(path) => {
            let (j, h) = Journal::open(path, fresh)?;
            let id = h.header.seed;
            (Some(Arc::new(j)), Some(Arc::new(h)), id)
        }
        None => (None, None, fresh.seed),
    };
    let cores = runtime.cores();
    let share = e.units / cores.len() as u64;
    if share == 0 {
        return Err(format!("{} cores need at least as many places to write: make --span larger", cores.len()));
    }
    let progress = Arc::new(AtomicU64::new(0));
    let line = Progress::start(progress.clone(), a.io_size, a.time, a.quiet || a.json);
    let mut running = Vec::new();
    for (i, core) in cores.iter().enumerate() {
        let plan = VerifyPlan {
            first_lba: e.first_lba + share * i as u64 * u64::from(e.unit_blocks),
            units: share,
            unit_blocks: e.unit_blocks,
            block_size: e.block_size,
            depth: a.io_depth,
            length: Duration::from_secs_f64(if a.time == 0.0 { 1e6 } else { a.time }),
            limit: a.number_ios.unwrap_or(u64::MAX),
            fua: a.fua,
            flush_every: a.flush_every.unwrap_or(0),
            run_id,
            seed: Random::new(a.seed ^ (i as u64) << 32).next(),
            journal: journal.clone(),
            progress: progress.clone(),
        };
        let (device, history) = (device.clone(), history.clone());
        running.push(core.spawn(move |r| async move {
            let disk = device.open_disk(&r).await?;
            let found = work::verify(r, disk.clone(), plan, history).await;
            disk.close().await;
            found
        }));
    }
    let found = collect(running)?;
    drop(line);
    print_checked(a, "verify", &found, json!({}));
    Ok(judge(&found, journal.is_some()))
}

/// Checks the device against a journal.
pub(crate) fn check<D: Device>(
    a: &RunArgs,
    runtime: &Runtime,
    device: &Arc<D>,
    journal: &Path,
) -> Result<Outcome, String> {
    let history = History::load(journal)?;
    if history.header.block_size != device.block_size() {
        return Err(format!(
            "the journal is of a device with {}-byte blocks, this one has {}",
            history.header.block_size,
            device.block_size()
        ));
    }
    let after = if a.verify_power_loss { After::PowerLoss } else { After::Kill };
    let history = history.expect(after);
    let (opened, depth) = (device.clone(), a.io_depth);
    let core = runtime.cores().first().ok_or("no core")?;
    let (acknowledged, open) = (history.acknowledged, history.unacknowledged);
    let one = core.spawn(move |r| async move {
        let disk = opened.open_disk(&r).await?;
        let found = check::check(r, disk.clone(), history, depth).await;
        disk.close().await;
        found
    });
    let (found, open_blocks): (Vec<Checked>, Vec<_>) = collect(vec![one])?.into_iter().unzip();
    if !a.json {
        println!("journal: {acknowledged} writes acknowledged, {open} not");
    }
    print_checked(a, "verify-check", &found, json!({ "acknowledged": acknowledged, "unacknowledged": open }));
    if let Some(why) = found.iter().find_map(|f| f.failure.clone()) {
        return Err(why);
    }
    let outcome = judge(&found, false);
    if a.verify_settle && matches!(outcome, Outcome::Good) {
        let records = open_blocks.into_iter().flatten().chain([Record::Settled(after)]);
        let journal_file = Journal::again(journal)?;
        records
            .into_iter()
            .try_for_each(|r| journal_file.add(r))
            .map_err(|e| format!("journal {}: {e}", journal.display()))?;
    }
    Ok(outcome)
}

fn collect<T>(running: Vec<oneshot::Receiver<Result<T, String>>>) -> Result<Vec<T>, String> {
    // Every core is waited for before the first error is passed on: memory is in use until then.
    let all: Vec<_> =
        running.into_iter().map(|r| r.wait().unwrap_or_else(|_| Err("a reactor stopped".into()))).collect();
    all.into_iter().collect()
}

fn judge(found: &[Checked], journaled: bool) -> Outcome {
    if found.iter().any(|f| f.mismatches > 0) {
        Outcome::Bad
    } else if found.iter().any(|f| f.failure.is_some()) {
        if journaled { Outcome::TargetLost } else { Outcome::Bad }
    } else {
        Outcome::Good
    }
}

fn print_checked(a: &RunArgs, kind: &str, found: &[Checked], more: Value) {
    let sum = |f: &dyn Fn(&Checked) -> u64| found.iter().map(f).sum::<u64>();
    let (writes, reads, flushes) = (sum(&|c| c.writes), sum(&|c| c.reads), sum(&|c| c.flushes));
    let (blocks, mismatches) = (sum(&|c| c.blocks), sum(&|c| c.mismatches));
    let failure = found.iter().find_map(|c| c.failure.as_deref());
    let seconds = found.iter().map(|c| c.seconds).fold(0.0, f64::max);
    if a.json {
        let mut out = json!({
            "schema": "longshore-perf/1",
            "kind": kind,
            "version": env!("CARGO_PKG_VERSION"),
            "seconds": seconds,
            "writes": writes,
            "reads": reads,
            "flushes": flushes,
            "blocks_compared": blocks,
            "mismatches": mismatches,
            "failure": failure,
        });
        if let (Value::Object(out), Value::Object(more)) = (&mut out, more) {
            out.extend(more);
        }
        println!("{out:#}");
    } else {
        println!("{kind}: {writes} writes, {reads} reads, {flushes} flushes in {seconds:.1} s");
        println!("{blocks} blocks compared, {mismatches} wrong");
        if let Some(f) = failure {
            println!("ended early: {f}");
        }
    }
}
