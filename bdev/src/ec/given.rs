//! Which superblocks members are given before a session begins, and in which order.
//!
//! Power may fail at any write, and tear it. Whoever lacks nothing must then be told from a stale member all the same: each member keeps a whole
//! superblock that counts for that, and none is two updates behind.
//!
//! * Members that are behind are first given the newest superblock that was found. Else a salvage's own update, on one member only, would leave those
//!   that still have the one before what was found as stale as if they lacked writes, and those that stood in already as stale as all that are stale.
//! * Then those that lack nothing are given the salvage's update, and stand-ins last: none of these has it while others have not.
//! * Where a member's newest superblock is in the copy that the next one goes to, the other copy need not be whole: it is first given an
//!   [attempt](on_the_way) there, which counts as much.

use super::assemble::Assembly;
use super::format::{Stamp, Superblock};

impl Assembly {
    /// What members have to be given, by slot, in this order, each durable before the next is written.
    pub(super) fn gifts(&self) -> Vec<(usize, &Superblock)> {
        let first = self.found.as_ref().unwrap_or(&self.head);
        let behind = self.behind.iter().map(|&slot| (slot, first));
        let taken = (0..self.members.len()).filter(|&slot| self.found.is_some() && self.members[slot].is_some());
        let (last, whole): (Vec<usize>, Vec<usize>) = taken.partition(|&slot| self.head.members[slot].stands_in());
        behind.chain(whole.into_iter().chain(last).map(|slot| (slot, &self.head))).collect()
    }
}

/// What a member whose newest superblock is of `newest` is given before `next`, if anything: an attempt of `next`, with the same content, in the other copy.
pub(super) fn on_the_way(newest: Stamp, next: &Superblock) -> Option<Superblock> {
    let attempt = Superblock { stamp: Stamp { epoch: next.stamp.epoch - 1, ..next.stamp }, ..next.clone() };
    let counts = attempt.stamp.epoch > next.predecessor.epoch && attempt.validate().is_ok();
    (newest != next.stamp && newest.epoch & 1 == next.copy() && counts).then_some(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec::assemble::tests::{assembled, candidate, stamp, superblock};
    use crate::ec::assemble::{Candidate, Decision, Situation, decide};
    use crate::ec::format::MemberState::{self, Failed, InSync};

    /// The two copies of a member's superblock; none where power failed during a write.
    type Copies = [Option<Superblock>; 2];

    fn holds(newest: &Superblock) -> Copies {
        let mut copies = [None, None];
        copies[newest.copy() as usize] = Some(newest.clone());
        copies
    }

    /// What is found, by slot, on those that are there.
    fn found(disks: &[(usize, Copies)]) -> Vec<Candidate> {
        let newest = |copies: &Copies| copies.iter().flatten().max_by_key(|s| s.stamp).cloned();
        let there = disks.iter().map(|(slot, copies)| candidate(*slot, &newest(copies).expect("a whole superblock")));
        there.collect()
    }

    /// Starts the array, by itself or by a salvage, cuts power at each write, and starts it again, up to `cuts` times in a row. All are taken but those in
    /// slots `left`.
    fn starts(disks: &[(usize, Copies)], stand_ins: &[usize], left: &[usize], cuts: usize) {
        let all = found(disks);
        let by = |salvage| decide(&all, Situation { waited: true, salvage });
        let (by_itself, salvaged) = (by(false), by(true));
        let a = assembled(if let Decision::Assemble(_) = by_itself { by_itself } else { salvaged });
        let taken: Vec<usize> = (0..a.members.len()).filter(|&slot| a.members[slot].is_some()).collect();
        let wanted = disks.iter().map(|d| d.0).filter(|slot| !left.contains(slot));
        assert_eq!(taken, wanted.collect::<Vec<_>>(), "{disks:?}");
        let stands_in: Vec<usize> = taken.into_iter().filter(|&slot| a.head.members[slot].stands_in()).collect();
        assert_eq!(stands_in, stand_ins, "{disks:?}");
        let mut now = disks.to_vec();
        for (slot, next) in a.gifts() {
            let at = now.iter().position(|d| d.0 == slot).unwrap();
            let newest = found(&now[at..=at])[0].superblock.stamp;
            for written in on_the_way(newest, next).iter().chain([next]) {
                let copy = written.copy() as usize;
                now[at].1[copy] = None;
                if cuts > 0 {
                    starts(&now, stand_ins, left, cuts - 1);
                }
                now[at].1[copy] = Some(written.for_slot(slot));
            }
        }
        now.retain(|d| !left.contains(&d.0));
        let newest = found(&now);
        assert!(newest.iter().all(|c| c.superblock.stamp == a.head.stamp), "all have the head: {now:?}");
    }

    const WAS: [MemberState; 6] = [InSync, InSync, InSync, Failed, Failed, Failed];

    #[test]
    fn who_lacks_nothing_stands_in_nowhere_though_power_fails_at_every_write_of_salvages_in_a_row() {
        for (was, before, away) in [(20, 17, 4), (20, 17, 5), (20, 19, 4), (21, 20, 5)] {
            let before = superblock(4, stamp(before, 1), stamp(before - 1, 1), &[InSync; 6]);
            let was = superblock(4, stamp(was, 2), before.stamp, &WAS);
            let old = superblock(4, stamp(away, 3), stamp(away - 1, 3), &[InSync; 6]);
            // An update was cut short: member 1 has the one before, and lacks nothing.
            for one in [&was, &before] {
                let kept = [(0, holds(&was)), (1, holds(one)), (2, holds(&was))];
                starts(&[&kept[..], &[(3, holds(&old))]].concat(), &[3], &[], 3);
                starts(&[&kept[..2], &[(3, holds(&old)), (4, holds(&old))]].concat(), &[3, 4], &[], 3);
            }
            // A salvage of before that order may have left its attempt on a stand-in alone.
            let kept = [0, 1, 2].map(|slot| (slot, holds(&was)));
            let all: Vec<_> = kept.iter().map(|(slot, _)| candidate(*slot, &was)).chain([candidate(3, &old)]).collect();
            let head = assembled(decide(&all, Situation { waited: true, salvage: true })).head;
            let attempt = Superblock { stamp: Stamp { epoch: head.stamp.epoch - 1, ..head.stamp }, ..head };
            starts(&[&kept[..], &[(3, holds(&attempt))]].concat(), &[3], &[], 3);
        }
    }

    #[test]
    fn who_stood_in_before_power_failed_stands_in_again_and_nobody_who_lacks_more() {
        for (was, away) in [(20, 4), (20, 5), (21, 4), (21, 5)] {
            let before = superblock(4, stamp(was - 1, 1), stamp(was - 2, 1), &[InSync; 6]);
            let was = superblock(4, stamp(was, 2), before.stamp, &[InSync, InSync, Failed, Failed, Failed, Failed]);
            let old = superblock(4, stamp(away, 3), stamp(away - 1, 3), &[InSync; 6]);
            let older = superblock(4, stamp(2, 4), stamp(1, 4), &[InSync; 6]);
            for one in [&was, &before] {
                let disks = [(0, holds(&was)), (1, holds(one)), (3, holds(&old)), (4, holds(&old)), (5, holds(&older))];
                starts(&disks, &[3, 4], &[5], 3);
            }
        }
    }
}
