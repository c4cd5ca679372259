//! Erasure-coded arrays of a real daemon: it is killed at 200 seeded moments under verified load, 100 times with devices that lose what was not
//! flushed, so that a kill is a power cut. Between the kills members are taken away, come back empty or as they were rounds before, and are
//! spoiled; or they go under load, and come back or a spare takes their place; never more than two of six at a time. They are replaced and
//! rebuilt, before the next kill or through it. Nothing that was flushed is lost, nothing changes once it was read, and members agree.
//!
//! Numbers count the kills: ten in the life of an array. `EC_CRASH=137` runs the life of that number up to it, with the same choices, and
//! keeps the members as they were before the last start. `EC_CRASH_LIVES=20..220` runs other lives than CI does,
//! and `EC_CRASH_STORY=1` tells of each.

mod served;

#[path = "ec_crash/life.rs"]
mod life;
#[path = "ec_crash/members.rs"]
mod members;

use std::ops::Range;
use std::time::Duration;

use life::Life;

/// Data strips, parity strips, members.
const K: usize = 4;
const M: usize = 2;
const N: usize = K + M;
/// Files: those of members, and one that may stand by.
const FILES: usize = N + 1;
/// Kills in the life of an array.
const ROUNDS: u64 = 10;
/// Lives in CI; those with an odd number lose power.
const LIVES: Range<u64> = 0..20;
/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Default)]
struct Tally {
    kills: u64,
    starts_killed: u64,
    deleted: u64,
    stale: u64,
    spoiled: u64,
    removed: u64,
    /// Spares that had taken the place of a member when the daemon was killed.
    spared: u64,
    repaired: u64,
    /// Members that rebuilds brought back into sync while somebody waited for that.
    rebuilt: u64,
    /// Rebuilds that were seen to go by the write-intent bitmap.
    partial: u64,
    /// Checks that would have found acknowledged writes missing, had they asked for all.
    lost: u64,
    acknowledged: u64,
    open: u64,
    /// Acknowledged and other writes of this life so far.
    seen: (u64, u64),
    starts: Vec<Duration>,
}

/// The number to run again.
fn replayed() -> Option<u64> {
    std::env::var("EC_CRASH").ok().map(|n| n.parse().expect("EC_CRASH is a number"))
}

fn lives(volatile: bool) -> Vec<u64> {
    let all = match std::env::var("EC_CRASH_LIVES") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("EC_CRASH_LIVES is FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => LIVES,
    };
    all.filter(|life| life.is_multiple_of(2) != volatile).collect()
}

fn campaign(volatile: bool, cpu: String) {
    let mut tally = Tally::default();
    if let Some(number) = replayed() {
        if (number / ROUNDS).is_multiple_of(2) != volatile {
            Life::new(number / ROUNDS, volatile, cpu, &mut tally).run(number % ROUNDS + 1);
        } else {
            served::void("this half of the kills", "EC_CRASH is of the other");
        }
        return;
    }
    let lives = lives(volatile);
    for &life in &lives {
        Life::new(life, volatile, cpu.clone(), &mut tally).run(ROUNDS);
    }
    let t = &mut tally;
    t.starts.sort_unstable();
    let start = |share: f64| t.starts.get((t.starts.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!(
        "{} {} in lives {lives:?}, and {} during starts; members gone {} times, stale {}, spoiled {}, removed under load {}, taken over by spares {}; {} strips mended by \
         scrubs, {} members rebuilt ({} times by the write-intent bitmap); {} writes acknowledged, {} not; start after a kill: median {:?}, 90 % {:?}",
        t.kills,
        if volatile { "power cuts" } else { "kills" },
        t.starts_killed,
        t.deleted,
        t.stale,
        t.spoiled,
        t.removed,
        t.spared,
        t.repaired,
        t.rebuilt,
        t.partial,
        t.acknowledged,
        t.open,
        start(0.5),
        start(0.9)
    );
    let n = lives.len() as u64;
    assert_eq!(t.kills, n * ROUNDS);
    if std::env::var("EC_CRASH_LIVES").is_ok() {
        return;
    }
    // What is to be tried was tried.
    assert!(
        t.deleted >= n && t.stale >= n / 2 && t.spoiled >= n && t.removed >= n && t.spared >= 1,
        "too little happened"
    );
    assert!(t.rebuilt >= n, "too few rebuilds");
    assert!(t.acknowledged > 10 * t.kills && t.open > t.kills, "too few writes");
    assert!(!volatile || t.lost > n / 2, "power cuts took unflushed writes in {} checks only", t.lost);
}

#[test]
fn nothing_that_was_flushed_is_lost_by_a_hundred_kills_and_lost_members() {
    campaign(false, served::cpus().swap_remove(0));
}

#[test]
fn nothing_that_was_flushed_is_lost_by_a_hundred_power_cuts_and_lost_members() {
    campaign(true, served::cpus().pop().expect("a CPU"));
}
