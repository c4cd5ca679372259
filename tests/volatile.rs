//! Over a `volatile` device, SIGKILL is a power cut: what was flushed is there afterwards, and of the rest something is missing.

mod served;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use served::{Place, text};

/// Kills, each with a journal of its own.
const KILLS: u64 = 16;
/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn check(place: &Place, journal: &Path, options: &str) -> Output {
    place.perf("", &format!("-q 32 --json {options} --verify-check")).arg(journal).output().expect("the check runs")
}

#[test]
fn a_kill_loses_what_was_not_flushed_and_keeps_what_was() {
    let bdevs = r#"{"method": "bdev_uring_create", "params": {"name": "F", "filename": "DIR/disk", "block_size": 4096}},
        {"method": "bdev_volatile_create", "params": {"name": "V", "base_bdev_name": "F", "seed": 1}}"#;
    let place = Place::new("volatile", bdevs, &["V"]);
    std::fs::write(place.dir.join("disk"), vec![0; 16 << 20]).expect("a file to serve");
    let mut daemon = place.daemon();
    let mut lost = 0;
    for round in 0..KILLS {
        let journal = place.dir.join(format!("journal-{round}"));
        let options = format!("-q 16 -o 16K -w verify -t 60 --fua 10 --flush-every 32 --seed {round} --verify-journal");
        let mut load = place
            .perf("", &options)
            .arg(&journal)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the load starts");
        // Until some flushes are recorded: records are 32 bytes, two for each write.
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(&journal).map_or(0, |m| m.len()) <= 32 * (500 + 37 * round) {
            assert!(Instant::now() < deadline, "no writes in round {round}");
            assert!(load.try_wait().expect("wait").is_none(), "{}", text(&load.wait_with_output().expect("output")));
            std::thread::sleep(Duration::from_micros(200));
        }
        drop(daemon); // SIGKILL
        let out = load.wait_with_output().expect("output");
        assert_eq!(out.status.code(), Some(3), "round {round}: the target is gone, all was well:\n{}", text(&out));
        // The configuration gives the same seed each time; what is written differs.
        daemon = place.daemon();
        let found = check(&place, &journal, "--verify-power-loss");
        assert!(found.status.success(), "round {round}:\n{}", text(&found));
        let found = check(&place, &journal, "");
        lost += u64::from(!found.status.success() && text(&found).contains("a write is lost"));
    }
    assert!(lost > KILLS / 4, "acknowledged and unflushed writes were lost in {lost} of {KILLS} kills only");
}
