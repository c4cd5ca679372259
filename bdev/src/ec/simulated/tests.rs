//! What has to hold, and that it is found when it does not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::sim::{Report, run_seeds, shrink};

/// Seeds that every run of the tests tries; `LONGSHORE_SEEDS=FROM..TO` tries others.
const SEEDS: std::ops::Range<u64> = 0..400;

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|_| panic!("'{text}' is no number of a seed"))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// `LONGSHORE_SEED`: this one alone, and made smaller if it fails.
fn one(seed: u64) {
    let o = try_seed(seed, None);
    let Err(why) = o.wrong else { return println!("seed {seed}: nothing is wrong\n{:?}", o.tally) };
    println!("seed {seed}: {why}\n{}", o.script);
    let fails = |s: &Script| try_script(seed, None, s).wrong.is_err();
    let small = shrink(o.script, 2000, fails);
    let why = try_script(seed, None, &small).wrong;
    panic!("seed {seed} fails as well with this:\n{small}{}", why.err().unwrap_or_default());
}

#[test]
fn nothing_is_lost_whatever_crashes_and_whoever_is_missing() {
    if let Some(seed) = variable("LONGSHORE_SEED") {
        return one(number(&seed));
    }
    let seeds = variable("LONGSHORE_SEEDS").map_or(SEEDS, |s| {
        let (from, to) = s.split_once("..").unwrap_or_else(|| panic!("'{s}' is not FROM..TO"));
        number(from)..number(to)
    });
    let threads = variable("LONGSHORE_THREADS").map_or(2, |n| number(&n));
    let report = run_seeds(seeds.clone(), threads, |seed| try_seed(seed, None));
    println!("seeds {}..{}: {report}", seeds.start, seeds.end);
    passes(&report);
}

fn passes(report: &Report) {
    assert_eq!(report.failures, 0, "{report}");
    assert!(report.fewest >= REQUESTS as u64, "{report}");
    let windows = Window::ALL.map(name);
    assert_eq!(report.missed(&windows), Vec::<&str>::new(), "{report}");
    assert!(report.joined * 4 > report.seeds && report.rebuilt * 10 > report.seeds, "{report}");
    assert!(report.salvaged * 4 > report.seeds && report.salvaged_stale * 10 > report.seeds, "{report}");
}

/// Seeds within which a fault must be found.
const FOUND_WITHIN: u64 = 1000;

fn caught(mutant: Mutant) {
    // A fault may also show as a panic of the engine's own assertions.
    let wrong = |seed| match catch_unwind(AssertUnwindSafe(|| try_seed(seed, Some(mutant)).wrong)) {
        Ok(outcome) => outcome.err(),
        Err(_) => Some("it panicked".into()),
    };
    let found = (0..FOUND_WITHIN).find_map(|seed| Some((seed, wrong(seed)?)));
    let (seed, why) = found.unwrap_or_else(|| panic!("{mutant:?} goes unnoticed for {FOUND_WITHIN} seeds"));
    println!("{mutant:?} is caught by seed {seed}: {why}");
}

#[test]
fn a_journal_without_its_barrier_is_caught() {
    caught(Mutant::JournalBarrierSkipped);
}

#[test]
fn flushes_that_are_ignored_are_caught() {
    caught(Mutant::FlushIgnored);
}

#[test]
fn a_write_acknowledged_before_the_epoch_is_durable_is_caught() {
    caught(Mutant::AckBeforeEpoch);
}

#[test]
fn records_that_stay_valid_after_they_were_discarded_are_caught() {
    caught(Mutant::DiscardedNotVoided);
}

#[test]
fn a_bit_that_comes_late_is_caught() {
    caught(Mutant::BitLate);
}

#[test]
fn an_epoch_that_is_not_checked_is_caught() {
    caught(Mutant::EpochNotChecked);
}

#[test]
fn a_stale_member_that_is_joined_is_caught() {
    caught(Mutant::StaleMemberJoined);
}

#[test]
fn a_journal_on_too_few_members_is_caught() {
    caught(Mutant::JournalOnTooFew);
}

#[test]
fn a_fua_that_is_dropped_is_caught() {
    caught(Mutant::FuaDropped);
}

#[test]
fn progress_of_a_rebuild_that_is_stored_early_is_caught() {
    caught(Mutant::RebuildProgressEarly);
}

#[test]
fn an_array_that_is_made_superblocks_first_is_caught() {
    caught(Mutant::SuperblocksFirst);
}

#[test]
fn records_that_are_asked_of_those_who_stand_in_are_caught() {
    caught(Mutant::StandInsAsked);
}
