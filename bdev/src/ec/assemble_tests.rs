use super::*;
use crate::ec::format::{Features, MATRIX_CAUCHY, Rebuild};
use crate::ec::layout::LayoutOptions;

pub(in crate::ec) fn stamp(epoch: u64, nonce: u64) -> Stamp {
    Stamp { epoch, nonce }
}

fn member(slot: usize) -> Uuid {
    Uuid::from_u128(100 + slot as u128)
}

fn row(slot: usize, state: MemberState) -> MemberEntry {
    let rebuild = (state == MemberState::Rebuilding).then_some(Rebuild { mode: RebuildMode::Full, progress: 1 });
    let uuid = if state == MemberState::Empty { Uuid::nil() } else { member(slot) };
    MemberEntry { uuid, state, rebuild, ..MemberEntry::EMPTY }
}

/// The superblock of a k+m array with all members in the states given.
pub(in crate::ec) fn superblock(k: usize, stamp: Stamp, predecessor: Stamp, states: &[MemberState]) -> Superblock {
    let options = LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(1) };
    Superblock {
        features: Features::default(),
        array: Uuid::from_u128(1),
        name: "vol0".into(),
        layout: Layout::compute(k, states.len() - k, 4096, 512, 1 << 20, &options).unwrap(),
        matrix: MATRIX_CAUCHY,
        stamp,
        predecessor,
        journal_session: 1,
        wib_generation: 0,
        created: 1,
        slot: 0,
        members: states.iter().enumerate().map(|(slot, &state)| row(slot, state)).collect(),
    }
}

pub(in crate::ec) fn candidate(slot: usize, superblock: &Superblock) -> Candidate {
    Candidate { name: format!("disk{slot}"), superblock: superblock.for_slot(slot), bytes: 1 << 20, block: 512 }
}

use MemberState::{Empty, Failed, InSync, Rebuilding};

const HEAD: Stamp = Stamp { epoch: 10, nonce: 20 };
const BEFORE: Stamp = Stamp { epoch: 7, nonce: 10 };
const WAITED: Situation = Situation { waited: true, salvage: false };
const NOW: Situation = Situation { waited: false, salvage: false };
const SALVAGE: Situation = Situation { waited: false, salvage: true };

pub(in crate::ec) fn assembled(d: Decision) -> Assembly {
    match d {
        Decision::Assemble(a) => *a,
        other => panic!("{other:?}"),
    }
}

fn refused(d: Decision) -> String {
    match d {
        Decision::Refuse(r) => r.to_string(),
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Has {
    Nothing,
    Head,
    Predecessor,
    Attempt,
    Older,
    Twin,
    Shrunk,
}

const ALL: [Has; 7] = [Has::Nothing, Has::Head, Has::Predecessor, Has::Attempt, Has::Older, Has::Twin, Has::Shrunk];

fn combinations<T: Copy>(of: &[T], n: usize) -> Vec<Vec<T>> {
    (0..n).fold(vec![vec![]], |all, _| {
        all.iter().flat_map(|v| of.iter().map(move |&x| [&v[..], &[x]].concat())).collect()
    })
}

#[test]
fn every_state_of_every_member_of_three_is_judged_by_the_rule_as_it_is_written() {
    let mut counts = [0; 3];
    for states in combinations(&[InSync, Failed, Rebuilding], 3) {
        for has in combinations(&ALL, 3) {
            // The head has to be somewhere, and the twin's table must not make it the head.
            if has.iter().filter(|h| **h == Has::Head).count() <= has.iter().filter(|h| **h == Has::Twin).count() {
                continue;
            }
            let head = superblock(2, HEAD, BEFORE, &states);
            let old = |s: Stamp| superblock(2, s, stamp(s.epoch - 1, 1), &[InSync; 3]);
            let candidates: Vec<Candidate> = (0..3)
                .filter_map(|slot| {
                    Some(match has[slot] {
                        Has::Nothing => return None,
                        Has::Head => candidate(slot, &head),
                        Has::Predecessor => candidate(slot, &old(BEFORE)),
                        Has::Attempt => candidate(slot, &superblock(2, stamp(9, HEAD.nonce), BEFORE, &[InSync; 3])),
                        Has::Older => candidate(slot, &old(stamp(6, BEFORE.nonce))),
                        Has::Twin => candidate(slot, &superblock(2, stamp(10, 99), stamp(9, 98), &[Failed; 3])),
                        Has::Shrunk => Candidate { bytes: 4096, ..candidate(slot, &head) },
                    })
                })
                .collect();
            let compatible = |slot: usize| {
                states[slot] != Failed && matches!(has[slot], Has::Head | Has::Predecessor | Has::Attempt)
            };
            let in_sync = (0..3).filter(|&s| compatible(s) && states[s] == InSync).count();
            let absent = (0..3).any(|s| states[s] != Failed && has[s] == Has::Nothing);
            for situation in [NOW, WAITED] {
                let got = decide(&candidates, situation);
                match &got {
                    Decision::Wait { missing } => {
                        counts[0] += 1;
                        assert!(absent && !situation.waited && !missing.is_empty());
                    }
                    Decision::Assemble(a) => {
                        counts[1] += 1;
                        assert!(in_sync >= 2 && (!absent || situation.waited), "{states:?} {has:?}");
                        assert_eq!(a.head.stamp, HEAD);
                        for slot in 0..3 {
                            let taken = a.members[slot].map(|c| candidates[c].superblock.slot);
                            assert_eq!(taken, compatible(slot).then_some(slot), "{states:?} {has:?}");
                            let behind = compatible(slot) && has[slot] != Has::Head;
                            assert_eq!(a.behind.contains(&slot), behind);
                        }
                    }
                    Decision::Refuse(Refusal::TooFew { have, need: 2, .. }) => {
                        counts[2] += 1;
                        assert!(in_sync < 2 && *have == in_sync && (!absent || situation.waited));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert!(counts.iter().all(|&c| c > 100), "{counts:?}");
}

/// All subsets of `0..n`.
fn subsets(n: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..1usize << n).map(move |bits| (0..n).filter(|i| bits >> i & 1 != 0).collect())
}

#[test]
fn no_part_of_the_members_runs_without_one_that_has_the_newest_established_update() {
    for (k, m) in [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (4, 2)] {
        let (n, need) = (k + m, superblock(k, HEAD, BEFORE, &vec![InSync; k + m]).quorum());
        let first = superblock(k, stamp(5, 1), stamp(4, 1), &vec![InSync; n]);
        for established in subsets(n).filter(|e| e.len() >= need) {
            let states = |live: &[usize]| -> Vec<MemberState> {
                (0..n).map(|s| if live.contains(&s) { InSync } else { Failed }).collect()
            };
            let second = superblock(k, stamp(6, 1), stamp(5, 1), &states(&established));
            // An attempt that names the first of them failed, on some of the others; none if it may not be written.
            let after: Vec<usize> = established[1..].to_vec();
            let third = superblock(k, stamp(7, 1), stamp(6, 1), &states(&after));
            let written =
                subsets(n).filter(|w| w.iter().all(|s| after.contains(s)) && (w.is_empty() || after.len() >= need));
            for written in written {
                let on = |slot: usize| match () {
                    () if written.contains(&slot) => &third,
                    () if established.contains(&slot) => &second,
                    () => &first,
                };
                for there in subsets(n).filter(|t| !t.is_empty()) {
                    let candidates: Vec<_> = there.iter().map(|&slot| candidate(slot, on(slot))).collect();
                    let Decision::Assemble(a) = decide(&candidates, WAITED) else { continue };
                    for slot in (0..n).filter(|&s| a.members[s].is_some()) {
                        assert!(established.contains(&slot), "{k}+{m} {established:?} {written:?} {there:?}");
                    }
                }
                let all: Vec<_> = (0..n).map(|slot| candidate(slot, on(slot))).collect();
                assembled(decide(&all, NOW));
            }
        }
    }
}

#[test]
fn of_two_halves_of_a_mirror_at_most_one_runs() {
    let s = superblock(1, HEAD, BEFORE, &[InSync; 2]);
    let half = decide(&[candidate(0, &s)], WAITED);
    assert_eq!(refused(half), "1 members are in sync and there, 2 are needed; none in slots 1");
    let s = superblock(2, HEAD, BEFORE, &[InSync; 4]);
    let half = decide(&[candidate(0, &s), candidate(1, &s)], WAITED);
    assert_eq!(refused(half), "2 members are in sync and there, 3 are needed; none in slots 2, 3");
    assembled(decide(&[candidate(0, &s), candidate(1, &s)], SALVAGE));
}

#[test]
fn an_absent_member_is_waited_for_unless_it_is_named_failed() {
    let s = superblock(2, HEAD, BEFORE, &[InSync, InSync, InSync]);
    let two = [candidate(0, &s), candidate(2, &s)];
    assert_eq!(decide(&two, NOW), Decision::Wait { missing: vec![1] });
    assert_eq!(assembled(decide(&two, WAITED)).members, [Some(0), None, Some(1)]);
    for state in [Failed, Empty] {
        let s = superblock(2, HEAD, BEFORE, &[InSync, state, InSync]);
        assembled(decide(&[candidate(0, &s), candidate(2, &s)], NOW));
    }
}

#[test]
fn a_foreign_device_is_put_aside_and_named() {
    let s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let foreign = Superblock { array: Uuid::from_u128(2), ..s.clone() };
    let a = assembled(decide(&[candidate(0, &s), candidate(1, &foreign), candidate(2, &s)], WAITED));
    assert_eq!(a.members, [Some(0), None, Some(2)]);
    assert_eq!(a.rejected[0].1.to_string(), "belongs to array 00000000-0000-0000-0000-000000000002");
    assert_eq!(decide(&[], NOW), Decision::Refuse(Refusal::Nothing));
}

#[test]
fn a_member_seen_twice_is_refused_naming_both_devices() {
    let s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let copy = Candidate { name: "copy".into(), ..candidate(1, &s) };
    let all = [candidate(0, &s), candidate(1, &s), copy, candidate(2, &s)];
    let says = "'disk1' and 'copy' are both the member in slot 1: one is a copy and has to be taken away";
    assert_eq!(refused(decide(&all, NOW)), says);
    let old = Superblock { stamp: BEFORE, predecessor: stamp(1, 1), ..s.clone() };
    let old = Candidate { name: "copy".into(), ..candidate(1, &old) };
    assert_eq!(refused(decide(&[candidate(0, &s), candidate(1, &s), old], WAITED)), says);
}

#[test]
fn two_volumes_with_one_uuid_are_refused_naming_a_device_of_each() {
    let s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let mut other = Superblock { created: 2, ..s.clone() };
    other.members.iter_mut().for_each(|m| m.uuid = Uuid::from_u128(m.uuid.as_u128() + 50));
    let says = refused(decide(&[candidate(0, &s), candidate(1, &s), candidate(2, &other)], WAITED));
    assert_eq!(
        says,
        "'disk0' and 'disk2' are of two arrays that have the same UUID 00000000-0000-0000-0000-000000000001: take one of them away"
    );
}

#[test]
fn a_member_that_went_back_in_time_is_stale_and_not_waited_for() {
    let s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let old = superblock(2, stamp(3, 4), stamp(2, 4), &[InSync; 3]);
    let a = assembled(decide(&[candidate(0, &s), candidate(1, &old), candidate(2, &s)], NOW));
    assert_eq!(a.members, [Some(0), None, Some(2)]);
    let says = a.rejected[0].1.to_string();
    assert_eq!(
        says,
        "stale: has epoch 3 of writer 0000000000000004, the array has epoch 10 of writer 0000000000000014"
    );
}

#[test]
fn of_equal_epochs_the_writer_with_more_members_in_sync_wins_before_one_with_as_many_members() {
    let before = superblock(3, BEFORE, stamp(6, 1), &[Rebuilding, InSync, InSync, InSync]);
    // Power failed when only the member being rebuilt had this one, and again, in its absence, when only one in sync had the other.
    let (first, second) = (stamp(9, 99), stamp(9, 1));
    let first = superblock(3, first, BEFORE, &[Rebuilding, InSync, InSync, InSync]);
    let second = superblock(3, second, BEFORE, &[Failed, InSync, InSync, InSync]);
    let all = [candidate(0, &first), candidate(1, &second), candidate(2, &before), candidate(3, &before)];
    let a = assembled(decide(&all, WAITED));
    assert_eq!((a.head.stamp, a.members), (second.stamp, vec![None, Some(1), Some(2), Some(3)]));
}

#[test]
fn of_equal_epochs_the_writer_with_more_members_wins_and_then_the_higher_nonce() {
    let a = superblock(2, stamp(9, 1), BEFORE, &[InSync; 3]);
    let b = superblock(2, stamp(9, 2), stamp(8, 77), &[InSync; 3]);
    let won = assembled(decide(&[candidate(0, &a), candidate(1, &a), candidate(2, &b)], WAITED));
    assert_eq!((won.head.stamp.nonce, won.members), (1, vec![Some(0), Some(1), None]));
    let tie = refused(decide(&[candidate(0, &a), candidate(2, &b)], WAITED));
    assert!(tie.contains("'disk0' stale: has epoch 9 of writer 0000000000000001"), "{tie}");
}

#[test]
fn a_base_that_shrank_is_no_member_and_one_that_grew_still_is() {
    let s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let needed = s.layout.member_bytes();
    let sized = |slot, bytes| Candidate { bytes, ..candidate(slot, &s) };
    let a = assembled(decide(&[sized(0, needed), sized(1, needed - 512), sized(2, u64::MAX)], NOW));
    assert_eq!(a.members, [Some(0), None, Some(2)]);
    assert_eq!(a.rejected[0].1, Rejection::Shrunk { bytes: needed - 512, needed });
    let says = refused(decide(&[sized(0, 512), sized(1, needed - 512), sized(2, needed)], NOW));
    assert!(says.contains(&format!("; 'disk0' shrank to 512 bytes, the array needs {needed}")), "{says}");
    let coarse = Candidate { block: 4096, ..candidate(1, &s) };
    let a = assembled(decide(&[candidate(0, &s), coarse, candidate(2, &s)], NOW));
    assert_eq!(a.rejected[0].1.to_string(), "has blocks of 4096 bytes, which do not fit the array's of 512");
}

#[test]
fn a_replaced_member_that_comes_back_is_put_aside() {
    let mut s = superblock(2, HEAD, BEFORE, &[InSync; 3]);
    let old = candidate(1, &superblock(2, BEFORE, stamp(6, 1), &[InSync; 3]));
    s.members[1].uuid = Uuid::from_u128(999);
    let a = assembled(decide(&[candidate(0, &s), old.clone(), candidate(1, &s), candidate(2, &s)], NOW));
    assert_eq!(a.members, [Some(0), Some(2), Some(3)]);
    assert_eq!(a.rejected, [(1, Rejection::Replaced { slot: 1 })]);
    assert_eq!(decide(&[candidate(0, &s), old, candidate(2, &s)], NOW), Decision::Wait { missing: vec![1] });
}

#[test]
fn an_array_that_was_never_started_needs_all_its_members() {
    let s = superblock(2, stamp(1, 1), stamp(0, 0), &[InSync; 3]);
    let all: Vec<_> = (0..3).map(|slot| candidate(slot, &s)).collect();
    assembled(decide(&all, NOW));
    for situation in [WAITED, SALVAGE] {
        let says = refused(decide(&all[..2], situation));
        assert_eq!(says, "2 members are in sync and there, 3 are needed; none in slots 2");
    }
}

#[test]
fn a_rebuilding_member_goes_on_but_never_counts() {
    let s = superblock(2, HEAD, BEFORE, &[InSync, Rebuilding, InSync]);
    let a = assembled(decide(&[candidate(0, &s), candidate(1, &s), candidate(2, &s)], NOW));
    assert_eq!(a.members, [Some(0), Some(1), Some(2)]);
    let says = refused(decide(&[candidate(0, &s), candidate(1, &s)], WAITED));
    assert_eq!(says, "1 members are in sync and there, 2 are needed; none in slots 1, 2");
}

#[test]
fn members_left_behind_by_crashes_in_a_row_are_all_taken_when_each_assembly_first_brings_them_to_its_head() {
    let mut on = vec![superblock(2, stamp(5, 1), stamp(4, 1), &[InSync; 3]); 3];
    for round in 0..3u64 {
        let all: Vec<_> = (0..3).map(|slot| candidate(slot, &on[slot])).collect();
        let a = assembled(decide(&all, NOW));
        assert!(a.members.iter().all(Option::is_some), "round {round}");
        for slot in &a.behind {
            on[*slot] = a.head.clone();
        }
        // The crash leaves the next update on one member only.
        let next = stamp(a.head.stamp.epoch + 2, 100 + round);
        on[round as usize] = superblock(2, next, a.head.stamp, &[InSync; 3]);
    }
}

#[test]
fn a_salvage_takes_the_newest_stale_members_until_there_are_k_by_an_update_for_all() {
    let head = superblock(3, HEAD, BEFORE, &[InSync, Failed, Failed, Failed, InSync]);
    let old = |slot, epoch| candidate(slot, &superblock(3, stamp(epoch, 1), stamp(1, 1), &[InSync; 5]));
    let all = [candidate(0, &head), old(1, 3), old(2, 5), old(3, 4), candidate(4, &head)];
    assert!(refused(decide(&all, WAITED)).starts_with("2 members are in sync and there, 3 are needed"));
    let a = assembled(decide(&all, SALVAGE));
    assert_eq!(a.members, [Some(0), None, Some(2), None, Some(4)]);
    assert_eq!(a.head.members[2].state, InSync);
    assert_eq!((a.head.predecessor, a.found.as_ref().map(|f| f.stamp)), (HEAD, Some(HEAD)));
    let given: Vec<_> = a.gifts().iter().map(|(slot, sb)| (*slot, sb.stamp)).collect();
    assert_eq!(given, [0, 4, 2].map(|slot| (slot, a.head.stamp)), "who stands in comes last");
    assert!(a.head.stamp > HEAD && a.head.validate().is_ok());
    assert!(refused(decide(&all[..2], SALVAGE)).starts_with("2 members are in sync"), "k are needed all the same");
    let last = superblock(3, stamp(MAX_EPOCH, 1), BEFORE, &[InSync, Failed, Failed, Failed, InSync]);
    let all = [candidate(0, &last), old(2, 5), candidate(4, &last)];
    assert!(refused(decide(&all, SALVAGE)).starts_with("2 members are in sync"), "there is no update after this one");
}

#[test]
fn a_salvage_with_stale_members_names_all_others_failed_who_have_to_be_filled_in_full() {
    let mut head = superblock(2, HEAD, BEFORE, &[InSync, Failed, InSync, Rebuilding, Failed]);
    (head.members[4].failed_epoch, head.members[4].last) = (9, stamp(6, 1));
    let old = superblock(2, stamp(3, 1), stamp(1, 1), &[InSync; 5]);
    let all = [candidate(0, &head), candidate(1, &old), candidate(3, &head)];
    let a = assembled(decide(&all, SALVAGE));
    assert_eq!(
        a.members,
        [Some(0), Some(1), None, None, None],
        "who was being filled lacks what the stale one does not have"
    );
    let states: Vec<_> = a.head.members.iter().map(|m| m.state).collect();
    assert_eq!(states, [InSync, InSync, Failed, Failed, Failed]);
    assert!(a.head.members[1].stands_in() && !a.head.members[0].stands_in());
    assert!(a.head.members[2..].iter().all(|m| m.last == Stamp::default()), "no bitmap says what they lack");
    assert!(a.head.validate().is_ok() && matches!(a.rejected[..], [(2, Rejection::Stale { .. })]));
    // If power fails when one of the two has been given it, the one that was away is not believed.
    let one = [candidate(0, &head), candidate(1, &a.head), candidate(2, &head)];
    assert!(
        refused(decide(&one, WAITED))
            .starts_with("2 members are in sync and there, 3 are needed; none in slots 2, 3, 4")
    );
}

#[test]
fn a_salvage_takes_no_half_filled_member_while_there_is_one_that_failed_in_sync() {
    let head = superblock(2, HEAD, BEFORE, &[InSync, Failed, Failed, Failed]);
    let (older, newer) = (stamp(3, 1), stamp(8, 1));
    let filled = superblock(2, newer, stamp(1, 1), &[InSync, Rebuilding, InSync, Failed]);
    let whole = superblock(2, older, stamp(1, 1), &[InSync; 4]);
    let all = [candidate(0, &head), candidate(1, &filled), candidate(3, &whole)];
    assert_eq!(assembled(decide(&all, SALVAGE)).members, [Some(0), None, None, Some(2)]);
    assert_eq!(assembled(decide(&all[..2], SALVAGE)).members, [Some(0), Some(1), None, None], "there is no other");
}

#[test]
fn a_salvage_takes_a_member_that_is_being_filled_if_nobody_else_is_there_and_the_same_when_it_is_made_again() {
    let head = superblock(3, HEAD, BEFORE, &[InSync, InSync, Failed, Rebuilding, Failed]);
    let old = superblock(3, stamp(5, 1), stamp(1, 1), &[InSync, InSync, Rebuilding, Rebuilding, InSync]);
    let there = [candidate(0, &head), candidate(1, &head), candidate(3, &head)];
    let Decision::Refuse(why) = decide(&there, WAITED) else { panic!("{there:?}") };
    assert!(why.advice().contains("salvage_requested starts with what is there"), "{why}{}", why.advice());
    let a = assembled(decide(&there, SALVAGE));
    assert_eq!(a.members, [Some(0), Some(1), None, Some(2), None]);
    assert!(a.head.members[3].stands_in() && a.head.members[3].state == InSync && a.head.members[3].rebuild.is_none());
    // Another one that failed while it was filled: the first update says of one of the two that it failed, the choice stays.
    let all = [candidate(0, &head), candidate(1, &head), candidate(2, &old), candidate(3, &head)];
    let first = assembled(decide(&all, SALVAGE));
    assert_eq!(first.members, [Some(0), Some(1), None, Some(3), None]);
    for given in 0..2 {
        let mut again = all.clone();
        again[given] = candidate(given, &first.head);
        assert_eq!(assembled(decide(&again, SALVAGE)).members, first.members, "{given} was given it");
    }
    // Of two that are being filled the one that is further.
    let mut two = superblock(3, HEAD, BEFORE, &[InSync, InSync, Failed, Rebuilding, Rebuilding]);
    two.members[4].rebuild = Some(Rebuild { mode: RebuildMode::Full, progress: 9 });
    let all = [0, 1, 3, 4].map(|slot| candidate(slot, &two));
    assert_eq!(assembled(decide(&all, SALVAGE)).members, [Some(0), Some(1), None, None, Some(3)]);
    // Who failed in sync comes first.
    let whole = superblock(3, stamp(4, 1), stamp(1, 1), &[InSync; 5]);
    let all = [candidate(0, &head), candidate(1, &head), candidate(3, &head), candidate(4, &whole)];
    assert_eq!(assembled(decide(&all, SALVAGE)).members, [Some(0), Some(1), None, None, Some(3)]);
}

#[test]
fn a_session_needs_as_many_as_the_rule_says_and_k_after_a_salvage() {
    for (k, m, rule) in [(1, 1, 2), (2, 2, 3), (2, 3, 3), (4, 2, 4)] {
        let s = superblock(k, HEAD, BEFORE, &vec![InSync; k + m]);
        let all: Vec<_> = (0..k + m).map(|slot| candidate(slot, &s)).collect();
        assert_eq!((assembled(decide(&all, NOW)).quorum, assembled(decide(&all, SALVAGE)).quorum), (rule, k));
    }
}

#[test]
fn what_is_advised_where_members_are_missing_can_be_done() {
    let advice = |candidates: &[Candidate]| match decide(candidates, WAITED) {
        Decision::Refuse(r) => r.advice(),
        other => panic!("{other:?}"),
    };
    let salvages = |candidates: &[Candidate]| matches!(decide(candidates, SALVAGE), Decision::Assemble(_));
    let at = |epoch| superblock(2, stamp(epoch, 1), Stamp::default(), &[InSync, InSync, Failed]);
    let (head, stale) = (candidate(0, &at(9)), candidate(2, &superblock(2, stamp(4, 1), stamp(3, 1), &[InSync; 3])));
    let both = [head.clone(), stale.clone()];
    assert!(advice(&both).contains("salvage_requested starts with what is there") && salvages(&both));
    let one = [head];
    assert!(advice(&one).contains("fewer are there") && !advice(&one).contains("salvage_requested") && !salvages(&one));
    let made = superblock(2, stamp(FIRST_EPOCH, 1), Stamp::default(), &[InSync; 3]);
    let made = [candidate(0, &made), candidate(1, &made)];
    assert!(advice(&made).contains("make it again by bdev_ec_create") && !salvages(&made));
    let last = [candidate(0, &at(MAX_EPOCH)), stale.clone()];
    assert!(advice(&last).contains("with force makes it anew") && !salvages(&last));
    let nearly = [candidate(0, &at(MAX_EPOCH - 4)), stale];
    assert!(advice(&nearly).contains("with force makes it anew"), "a start makes updates, too");
}
