//! What many seeds came to.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::run::Outcome;

/// Failures that are kept; the rest are counted.
const KEPT: usize = 10;

/// Sums over seeds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// Requests made.
    pub requests: u64,
    /// Fewest requests of a seed.
    pub fewest: u64,
    /// Lives.
    pub lives: u64,
    /// Times that power failed.
    pub crashes: u64,
    /// Of these, before the device had started.
    pub start_crashes: u64,
    /// Members that were given back to a running device, and those that were rebuilt in the same life.
    pub joined: u64,
    /// See `joined`.
    pub rebuilt: u64,
    /// Lives that began with too few members, and of these, those in which members stood in that lacked something.
    pub salvaged: u64,
    /// See `salvaged`.
    pub salvaged_stale: u64,
    /// Crashes in each named window.
    pub windows: BTreeMap<&'static str, u64>,
    /// Seeds that found something wrong.
    pub failures: u64,
    /// The first of them, each with what was wrong.
    pub wrong: Vec<(u64, String)>,
}

impl Report {
    /// Counts what `seed` came to.
    pub fn add(&mut self, seed: u64, o: &Outcome) {
        let t = &o.tally;
        let one = Report {
            seeds: 1,
            requests: t.requests as u64,
            fewest: t.requests as u64,
            lives: t.lives as u64,
            crashes: t.crashes as u64,
            start_crashes: t.start_crashes as u64,
            joined: t.joined as u64,
            rebuilt: t.rebuilt as u64,
            salvaged: t.salvaged as u64,
            salvaged_stale: t.salvaged_stale as u64,
            windows: t.windows.iter().fold(BTreeMap::new(), |mut w, name| {
                *w.entry(*name).or_default() += 1;
                w
            }),
            failures: u64::from(o.wrong.is_err()),
            wrong: o.wrong.as_ref().err().map(|e| (seed, e.clone())).into_iter().collect(),
        };
        self.merge(one);
    }

    /// Adds another report.
    pub fn merge(&mut self, other: Report) {
        let passed = |r: &Report| r.seeds > r.failures;
        self.fewest = match (passed(self), passed(&other)) {
            (true, true) => self.fewest.min(other.fewest),
            (false, _) => other.fewest,
            _ => self.fewest,
        };
        self.seeds += other.seeds;
        self.requests += other.requests;
        self.lives += other.lives;
        self.crashes += other.crashes;
        self.start_crashes += other.start_crashes;
        self.joined += other.joined;
        self.rebuilt += other.rebuilt;
        self.salvaged += other.salvaged;
        self.salvaged_stale += other.salvaged_stale;
        other.windows.into_iter().for_each(|(name, n)| *self.windows.entry(name).or_default() += n);
        self.failures += other.failures;
        self.wrong.extend(other.wrong);
        self.wrong.sort();
        self.wrong.truncate(KEPT);
    }

    /// Windows of `names` that fewer crashes hit than one for each hundred seeds.
    pub fn missed(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|n| self.windows.get(n).copied().unwrap_or(0) * 100 < self.seeds).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds, {} requests (at least {} each), {} lives, {} crashes, {} of them before the device had started",
            self.seeds, self.requests, self.fewest, self.lives, self.crashes, self.start_crashes
        )?;
        if self.joined > 0 {
            writeln!(f, "{:>10} members given back, {} of them rebuilt in the same life", self.joined, self.rebuilt)?;
        }
        if self.salvaged > 0 {
            let (all, stale) = (self.salvaged, self.salvaged_stale);
            writeln!(f, "{all:>10} lives began with a salvage, {stale} of them with members that lacked writes")?;
        }
        for (name, n) in &self.windows {
            writeln!(f, "{n:>10} crashes: {name}")?;
        }
        write!(f, "{} seeds found something wrong", self.failures)?;
        self.wrong.iter().try_for_each(|(seed, why)| write!(f, "\n  seed {seed}: {why}"))
    }
}

/// Runs `seeds` on so many threads. Each seed is tried by `run` on one of them.
pub fn run_seeds(seeds: Range<u64>, threads: u64, run: impl Fn(u64) -> Outcome + Sync) -> Report {
    let threads = threads.max(1);
    let run = &run;
    std::thread::scope(|s| {
        let parts: Vec<_> = (0..threads)
            .map(|t| {
                let mine = (seeds.start + t..seeds.end).step_by(threads as usize);
                s.spawn(move || {
                    let mut report = Report::default();
                    for seed in mine {
                        let guard = Named(seed);
                        report.add(seed, &run(seed));
                        drop(guard);
                    }
                    report
                })
            })
            .collect();
        let mut sum = Report::default();
        for p in parts {
            match p.join() {
                Ok(r) => sum.merge(r),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum
    })
}

/// Says which seed it was that panicked.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} panicked; run it alone with LONGSHORE_SEED={}", self.0, self.0);
        }
    }
}
