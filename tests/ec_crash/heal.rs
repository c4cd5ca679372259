//! Members that were lost are replaced or brought up to date.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::{N, PATIENCE};
use super::{Life, Loss, NAME};

/// What a call answers that finds nothing to do, or finds it being done.
const ENOENT: i64 = -2;
const EBUSY: i64 = -16;

impl Life<'_> {
    /// Gives lost slots a device again, or lets that be for now. Rebuilds are waited for, or go on under load and through the next crash.
    pub(super) fn heal(&mut self) {
        let mut r = self.random(5);
        let wait = r.chance(500);
        let rate = if wait { 0 } else { [0, 20, 200][r.below(3) as usize] };
        self.call("bdev_ec_set_rebuild_qos", json!({"ec_name": NAME, "max_stripes_per_sec": rate}));
        for slot in 0..N {
            if self.losses[slot] != Loss::None && r.chance(600) {
                self.replace(slot, r.chance(300));
            }
        }
        if wait {
            self.wait_for_rebuilds();
        }
    }

    /// All lost slots get a device, and all of the array is in sync.
    pub(super) fn heal_all(&mut self) {
        self.call("bdev_ec_set_rebuild_qos", json!({"ec_name": NAME}));
        for slot in 0..N {
            if self.losses[slot] != Loss::None {
                self.replace(slot, false);
            }
        }
        self.wait_for_rebuilds();
        assert_eq!(self.lost(), 0, "the array is not whole after all rebuilds: {:?}", self.states());
    }

    /// Sees to it that the slot is being filled; an absent device is replaced by an empty one, or comes back.
    fn replace(&mut self, slot: usize, empty: bool) {
        if !self.members.path(slot).exists() {
            if empty {
                self.members.blank(slot);
            } else {
                self.members.bring_back(slot);
                self.tally.stale += 1;
            }
            for call in self.device(slot, self.number) {
                self.call(call["method"].as_str().expect("a method"), call["params"].clone());
            }
        }
        let name = self.name(slot);
        let began = Instant::now();
        let taken = |life: &Self| matches!(&life.states()[slot][..], "normal" | "replacing");
        while !taken(self) {
            assert!(began.elapsed() < PATIENCE, "slot {slot} stays failed");
            let params = json!({"ec_name": NAME, "slot": slot, "new_bdev_name": name, "force": true});
            match self.ask("bdev_ec_replace_base_bdev", params) {
                Ok(_) => self.note(&format!("{slot} is replaced")),
                // It is about to be brought up to date by itself.
                Err(e) if e["code"] == EBUSY => std::thread::sleep(Duration::from_millis(2)),
                // It has come back since its state was asked for.
                Err(_) if taken(self) => {}
                Err(e) => panic!("slot {slot} is not replaced: {e}"),
            }
        }
        self.losses[slot] = Loss::Stale;
    }

    fn wait_for_rebuilds(&mut self) {
        let began = Instant::now();
        let (mut any, mut partial) = (false, false);
        loop {
            match self.ask("bdev_ec_get_rebuild_progress", json!({"ec_name": NAME})) {
                Err(e) if e["code"] == ENOENT => break,
                Err(e) => panic!("the rebuild's progress: {e}"),
                Ok(p) => {
                    assert!(began.elapsed() < PATIENCE, "a rebuild does not end: {p}");
                    partial |= p["mode"] == "wib";
                }
            }
            any = true;
            std::thread::sleep(Duration::from_millis(2));
        }
        let lost = self.lost();
        self.compare_states();
        self.tally.rebuilt += (lost - self.lost()) as u64;
        self.tally.partial += u64::from(partial);
        self.note(&format!("{} rebuilt", lost - self.lost()));
        if any && self.lost() == 0 {
            self.scrub(true);
        }
    }
}
