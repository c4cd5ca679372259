//! What befalls the members of an array between a crash and the next start, and under load.

use std::time::{Duration, Instant};

use longshore_reactor::sim::Random;
use serde_json::json;

use super::super::{M, N, PATIENCE};
use super::{Life, Loss, NAME};

/// What a call answers whose device is claimed.
const EPERM: i64 = -1;

impl Life<'_> {
    /// What befalls the members between a crash and the next start.
    pub(super) fn befall(&mut self) {
        let mut r = self.random(1);
        self.plain = true;
        let slot = r.below(N as u64) as usize;
        // Two different ones, if two.
        let other = (slot + 1 + r.below(N as u64 - 1) as usize) % N;
        let slots = if r.chance(500) { vec![slot, other] } else { vec![slot] };
        for slot in slots {
            if self.losses[slot] == Loss::None {
                self.harm(slot, &mut r);
            } else {
                self.returns(slot, &mut r);
            }
        }
        // Later than what was put back, so that this is of an earlier round.
        let slot = r.below(N as u64) as usize;
        if self.members.path(slot).exists() {
            self.members.remember(slot);
        }
    }

    fn harm(&mut self, slot: usize, r: &mut Random) {
        let event = r.below(16);
        if self.lost() == M || self.spoiled {
            return;
        }
        self.plain = false;
        let (loss, what) = match event {
            0 | 1 => {
                self.members.take_away(slot);
                self.tally.deleted += 1;
                (Loss::Gone, "is taken away")
            }
            2 | 3 => {
                self.members.blank(slot);
                self.tally.deleted += 1;
                (Loss::Gone, "is empty")
            }
            4..=6 if self.members.copied[slot] => {
                self.members.put_back(slot);
                self.tally.stale += 1;
                (Loss::Stale, "is as it was before")
            }
            7 if self.members.spoil_superblocks(slot, false, r) => (Loss::Open, "has its newest superblock spoiled"),
            8 if self.members.spoil_superblocks(slot, true, r) => (Loss::Gone, "has no superblock any more"),
            9 | 10 if self.members.spoil_page(slot, r) => (Loss::None, "has a page spoiled"),
            // A scrub finds one wrong strip of a stripe if it has all the others.
            11..=13 if self.lost() == 0 && self.members.spoil_strips(slot, r) => {
                self.spoiled = true;
                (Loss::None, "has strips spoiled")
            }
            _ => {
                self.plain = true;
                return;
            }
        };
        self.tally.spoiled += u64::from((7..=13).contains(&event));
        self.losses[slot] = loss;
        self.note(&format!("{slot} {what}"));
    }

    /// A member that is lost comes back, or its place is taken by an empty device.
    fn returns(&mut self, slot: usize, r: &mut Random) {
        let event = r.below(4);
        let there = self.members.path(slot).exists();
        let (loss, what) = match event {
            0 if !there => {
                self.members.bring_back(slot);
                self.tally.stale += 1;
                (Loss::Stale, "comes back as it was")
            }
            1 if self.members.copied[slot] => {
                self.members.put_back(slot);
                self.tally.stale += 1;
                (Loss::Stale, "comes back as it was before")
            }
            2 => {
                self.members.blank(slot);
                self.tally.deleted += 1;
                (Loss::Gone, "comes back empty")
            }
            _ => return,
        };
        self.losses[slot] = loss;
        self.note(&format!("{slot} {what}"));
    }

    /// A member goes while the array is used.
    pub(super) fn remove(&mut self, slot: usize) {
        let method = if self.volatile { "bdev_volatile_delete" } else { "bdev_uring_delete" };
        self.call(method, json!({"name": self.name(slot)}));
        self.losses[slot] = Loss::Open;
        self.tally.removed += 1;
        self.note(&format!("{slot} is removed under load"));
    }

    /// The array gets a spare, if it is whole: a member that goes is replaced by it. True: it has one.
    pub(super) fn offer_spare(&mut self) -> bool {
        if self.lost() > 0 {
            return false;
        }
        let params = json!({"bdev_name": self.name(N), "ec_name": NAME, "force": true});
        self.call("bdev_ec_add_spare", params);
        self.note("there is a spare");
        true
    }

    /// Ends when the spare is the member in `slot`.
    pub(super) fn wait_for_spare(&mut self, slot: usize) {
        let began = Instant::now();
        while self.member(slot)["state"] == "failed" {
            assert!(began.elapsed() < PATIENCE, "the spare does not take slot {slot}: {}", self.member(slot));
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(self.member(slot)["name"] == self.name(N)[..], "{} is not the spare", self.member(slot));
    }

    /// Which file the array has found in each slot: the one that stood by may have become a member before the daemon was killed.
    pub(super) fn find_spare(&mut self) {
        let array = self.call("bdev_ec_get_bdevs", json!({"name": NAME}));
        let spare = self.name(N);
        if let Some(slot) = (0..N).find(|&slot| array[0]["base_bdevs"][slot]["name"] == spare[..]) {
            assert!(self.losses[slot] != Loss::None, "the spare is member {slot}, which it was not to replace");
            self.members.trade(slot);
            self.losses[slot] = Loss::Open;
            self.tally.spared += 1;
            self.note(&format!("the spare is member {slot}"));
        }
    }

    /// A member that went is there again while the array is used; of what was not flushed to it some is missing.
    pub(super) fn plug_in(&mut self, slot: usize) {
        // The file below a layer has stayed; what the layer was writing to it when it went has to end first.
        let call = self.device(slot, self.number).swap_remove(0);
        let began = Instant::now();
        while let Err(e) = self.ask(call["method"].as_str().expect("a method"), call["params"].clone()) {
            assert!(e["code"] == EPERM && began.elapsed() < PATIENCE, "{slot} does not come back: {e}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.note(&format!("{slot} is back"));
    }
}
