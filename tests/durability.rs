//! Nothing that was acknowledged is lost: the daemon is killed with SIGKILL at seeded moments while `longshore-perf` writes
//! to it over NVMe/TCP, and after each restart every acknowledged write is there and every other one is old or new per block.

mod served;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use served::{Place, text};

/// Moments at which the daemon is killed.
const KILLS: u64 = 100;
/// The longest that load runs before a kill.
const LONGEST: u64 = 60_000; // microseconds
/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two kinds of writes, each with its own part of the device and its own journal.
const KINDS: [(&str, &str); 2] = [
    // a block each, in capsule
    ("4096", "-q 32 -o 4K --offset 0 --span 8M"),
    // many blocks each, fetched by R2T
    ("65536", "-q 8 -o 64K --offset 8M --span 8M"),
];

fn random(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn journal(place: &Place, kind: &str) -> PathBuf {
    place.dir.join(format!("journal-{kind}"))
}

/// Checks what each journal demands; returns how many writes were acknowledged and how many were not.
fn check(place: &Place, round: u64) -> (u64, u64) {
    let mut sum = (0, 0);
    for (kind, _) in KINDS {
        if !journal(place, kind).exists() {
            continue;
        }
        let out =
            place.perf("", "-q 32 --json --verify-check").arg(journal(place, kind)).output().expect("the check runs");
        assert!(out.status.success(), "after kill {round}, writes of {kind} bytes:\n{}", text(&out));
        let v: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let n = |key: &str| v[key].as_u64().unwrap_or_else(|| panic!("no {key} in {v}"));
        sum = (sum.0 + n("acknowledged"), sum.1 + n("unacknowledged"));
    }
    sum
}

fn wait(child: &mut Child, what: &str) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code().unwrap_or(-1);
        }
        assert!(Instant::now() < deadline, "{what} did not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_acknowledged_write_survives_a_hundred_kills() {
    let bdev = r#"{"method": "bdev_uring_create", "params": {"name": "D", "filename": "DIR/disk", "block_size": 512}}"#;
    let place = Place::new("durability", bdev, &["D"]);
    std::fs::write(place.dir.join("disk"), vec![0; 16 << 20]).expect("a file to serve");
    let mut daemon = place.daemon();
    let mut seen = (0, 0);
    for round in 0..KILLS {
        let (kind, options) = KINDS[(round % 2) as usize];
        let journal = journal(&place, kind);
        let before = std::fs::metadata(&journal).map_or(0, |m| m.len());
        let mut load = place
            .perf("", &format!("{options} -w verify -t 60 --fua 20 --flush-every 64 --seed {round} --verify-journal"))
            .arg(&journal)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the load starts");
        // The moment counts from the first write: before it there is nothing to lose.
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(&journal).map_or(0, |m| m.len()) <= before.max(32) {
            assert!(Instant::now() < deadline, "no write in round {round}");
            assert!(load.try_wait().expect("wait").is_none(), "{}", text(&load.wait_with_output().expect("output")));
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(random(round) % LONGEST));
        drop(daemon); // SIGKILL
        let status = wait(&mut load, "the load");
        let out = load.wait_with_output().expect("output");
        assert_eq!(
            status,
            3,
            "round {round}: the load has to find its target gone, and nothing wrong before:\n{}",
            text(&out)
        );
        daemon = place.daemon();
        seen = check(&place, round);
    }
    // The kills hit where it hurts: many writes to lose, and some under way.
    let (acknowledged, open) = seen;
    assert!(
        acknowledged > 10 * KILLS && open > KILLS,
        "{acknowledged} writes were acknowledged, {open} under way at a kill"
    );
}
