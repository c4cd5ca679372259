//! What must be so after a crash, and at the end.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::served::text;
use super::super::{N, PATIENCE};
use super::{Kind, Life, NAME};

impl Life<'_> {
    /// Strips that were spoiled are found and mended; where none were, all agree.
    pub(super) fn scrub(&mut self, wanted: bool) {
        if !self.spoiled && !wanted {
            return;
        }
        self.call("bdev_ec_start_scrub", json!({"ec_name": NAME, "max_stripes_per_sec": 0}));
        let began = Instant::now();
        let found = loop {
            let found = self.call("bdev_ec_get_scrub_progress", json!({"ec_name": NAME}));
            if found["state"] == "finished" {
                break found;
            }
            assert!(began.elapsed() < PATIENCE && found["state"] == "running", "a scrub does not end: {found}");
            std::thread::sleep(Duration::from_millis(2));
        };
        let n = |key: &str| found[key].as_u64().expect("a count");
        assert_eq!((n("ambiguous"), n("unreadable")), (0, 0), "{found}");
        assert!(self.spoiled || n("mismatches") == 0, "strips do not agree after recovery: {found}");
        self.tally.repaired += n("repaired");
        self.spoiled = false;
    }

    pub(super) fn journal(&self, kind: &Kind) -> PathBuf {
        self.place.dir.join(format!("journal-{}", kind.name))
    }

    fn perf(&self, kind: &Kind, options: &str) -> Output {
        self.place
            .perf("", &format!("-q 32 --json {options} --verify-check"))
            .arg(self.journal(kind))
            .output()
            .expect("perf")
    }

    /// Each block is what some flushed or later write made it. What it is now it stays.
    pub(super) fn check(&mut self, count_lost: bool) {
        let (mut acknowledged, mut open, mut lost) = (0, 0, 0);
        for kind in self.kinds.iter().filter(|k| self.journal(k).exists()) {
            if count_lost {
                let found = self.perf(kind, "");
                lost += u64::from(text(&found).contains("a write is lost"));
            }
            let out = self.perf(kind, "--verify-power-loss --verify-settle");
            assert!(out.status.success(), "{} writes:\n{}", kind.name, text(&out));
            let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
            let n = |key: &str| v[key].as_u64().expect("a count");
            (acknowledged, open) = (acknowledged + n("acknowledged"), open + n("unacknowledged"));
        }
        self.tally.lost += lost;
        self.tally.seen = (acknowledged, open);
    }

    /// `longshore check` of whatever is there.
    fn offline(&self) -> (Option<i32>, String) {
        let paths = (0..N).map(|slot| self.members.path(slot)).filter(|p| p.exists());
        let mut c = Command::new(env!("CARGO_BIN_EXE_longshore"));
        let out = c.arg("check").args(paths).output().expect("the check runs");
        (out.status.code(), text(&out))
    }

    /// The check without a daemon agrees with the array, before recovery and after an orderly end.
    pub(super) fn end(mut self) {
        self.members.settle();
        let (code, said) = self.offline();
        assert!(matches!(code, Some(0 | 1)), "before recovery: status {code:?}\n{said}");
        self.plain = false;
        self.number += 1;
        self.configure(false, &mut self.random(2));
        let mut daemon = self.launch();
        if let Err(said) = daemon.ready() {
            panic!("the array does not start: {said}");
        }
        self.find_spare();
        self.compare_states();
        self.scrub(true);
        self.heal_all();
        self.scrub(true);
        self.check(false);
        assert!(daemon.stop().success(), "the daemon does not end well");
        let (code, said) = self.offline();
        let whole = self.lost() == 0;
        assert_eq!(code, Some(i32::from(!whole)), "after the end: {said}");
        self.tally.acknowledged += self.tally.seen.0;
        self.tally.open += self.tally.seen.1;
    }
}
