//! Members with blocks that cannot be read.

use std::ops::Range;

use super::*;
use crate::ec::format::MemberState;
use crate::ec::images::{Array, Image};

const BYTES: usize = 400 << 10;
const EIO: &str = "Input/output error (os error 5)";

/// A member that fails reads of some bytes.
struct Failing {
    image: Image,
    bad: Vec<Range<u64>>,
}

impl ReadAt for Failing {
    fn name(&self) -> String {
        self.image.name()
    }

    fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.image.read_at(offset, buf)
    }
}

/// The check of an array of which the members in these slots cannot read so many bytes from there on; those in `missing` are not there.
fn run_without(array: &Array, missing: &[usize], bad: &[(usize, u64, u64)]) -> Report {
    let there = array.members.iter().enumerate().filter(|(slot, _)| !missing.contains(slot));
    let failing = |(slot, image): (usize, &Image)| Failing {
        image: image.clone(),
        bad: bad.iter().filter(|b| b.0 == slot).map(|&(_, at, bytes)| at..at + bytes).collect(),
    };
    let members: Vec<Failing> = there.map(failing).collect();
    let devices: Vec<&dyn ReadAt> = members.iter().map(|m| m as &dyn ReadAt).collect();
    check(&devices, Scope::default())
}

fn run(array: &Array, bad: &[(usize, u64, u64)]) -> Report {
    run_without(array, &[], bad)
}

/// An array with data in three stripes.
fn filled(k: usize, m: usize) -> (Array, Vec<Vec<u8>>) {
    let mut array = Array::new(k, m, BYTES);
    let data: Vec<_> = (0..k as u64).map(|i| array.strip(i)).collect();
    for stripe in [0, 1, 7] {
        array.write_stripe(stripe, &data);
    }
    (array, data)
}

#[track_caller]
fn says(r: &Report, verdict: Verdict, texts: &[&str]) {
    assert_eq!(r.verdict, verdict, "{r}");
    for text in texts {
        assert!(r.to_string().contains(text), "'{text}' is not in\n{r}");
    }
}

#[test]
fn a_member_whose_data_cannot_be_read_leaves_the_array_degraded_and_is_told_once() {
    for (k, m) in [(4, 1), (4, 2)] {
        let (array, _) = filled(k, m);
        let r = run(&array, &[(2, array.head.layout.data_offset, BYTES as u64)]);
        says(
            &r,
            Verdict::Degraded,
            &[
                &format!(
                    "degraded: 'disk2' in slot 2: its strips of 3 stripes cannot be read, the first that of stripe 0 ({EIO})"
                ),
                "bdev_ec_start_scrub writes them anew; if they cannot be written, or are many, replace the member (bdev_ec_replace_base_bdev)",
                "0 are bad; 3 have strips that cannot be read",
                "\ndegraded: what is there and can be read agrees",
            ],
        );
        assert_eq!((r.findings.len(), r.verdict.exit_code(), r.counts.unreadable), (1, 1, 3), "{r}");
        let compared = if m == 1 { (0, 3) } else { (3, 0) };
        assert_eq!((r.counts.agree, r.counts.unverifiable), compared, "{r}");
    }
}

#[test]
fn a_stripe_of_which_too_little_can_be_read_is_damage_with_all_members_that_fail() {
    let (array, _) = filled(4, 1);
    let l = array.head.layout;
    let r = run(&array, &[(1, l.data_offset, BYTES as u64), (2, l.strip_offset(7), 512)]);
    assert_eq!((r.counts.bad, r.counts.unverifiable), (1, 2), "{r}");
    says(
        &r,
        Verdict::Damaged,
        &[
            "DAMAGE: stripe 7: 3 strips can be read, 4 are needed; '",
            &format!("; 'disk1' in slot 1: {EIO}"),
            &format!("; 'disk2' in slot 2: {EIO}"),
            "degraded: 'disk1' in slot 1: its strips of 2 stripes cannot be read, the first that of stripe 0",
            "note: of 1 stripe too little can be read: hosts get UNRECOVERED READ ERROR",
        ],
    );
}

#[test]
fn members_that_fail_reads_of_different_blocks_make_up_for_each_other() {
    let (mut array, _) = filled(4, 1);
    let at = array.head.layout.strip_offset(7);
    let apart = [(1, at, 512), (2, at + 1024, 512)];
    let r = run(&array, &apart);
    says(&r, Verdict::Degraded, &["'disk1' in slot 1: its strips of 1 stripe cannot", "'disk2' in slot 2: its strips"]);
    assert_eq!((r.counts.agree, r.counts.unverifiable, r.counts.unreadable), (2, 1, 1), "{r}");
    array.put(4, at + 512, &[9]);
    says(&run(&array, &apart), Verdict::Damaged, &["DAMAGE: stripe 7: its strips do not agree"]);
}

#[test]
fn what_is_written_from_the_journal_need_not_be_readable_in_place() {
    let (mut array, data) = filled(4, 1);
    let l = array.head.layout;
    let (written, other) = (l.slot_of(1, 0), l.slot_of(1, 1));
    let bad = [(written, l.strip_offset(1), 512), (other, l.strip_offset(1), 512)];
    says(&run(&array, &bad), Verdict::Damaged, &["stripe 1: 3 strips can be read"]);
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4]);
    let r = run(&array, &bad);
    says(&r, Verdict::Degraded, &[]);
    assert_eq!((r.counts.redone, r.counts.bad), (1, 0), "{r}");
}

#[test]
fn a_page_of_the_map_that_a_member_cannot_read_is_degraded_and_one_that_none_can_is_damage() {
    let (array, _) = filled(4, 2);
    let l = array.head.layout;
    for side in 0..2 {
        let r = run(&array, &[(3, l.map_page_at(0, side), 512)]);
        says(
            &r,
            Verdict::Degraded,
            &["degraded: 'disk3' in slot 3: 1 page of its map cannot be read or is damaged, the first is page 0 ("],
        );
        assert_eq!((r.counts.mapped, r.counts.agree, r.findings.len()), (3, 3, 1), "{r}");
    }
    let everywhere = |bytes| (0..6).map(|slot| (slot, l.map_page_at(0, 1), bytes)).collect::<Vec<_>>();
    let newest = run(&array, &everywhere(512));
    says(&newest, Verdict::Damaged, &["page 0 of the map: what can be read on no member may be newer"]);
    let both: Vec<_> = (0..6).map(|slot| (slot, l.map_page_at(0, 0), 8192)).collect();
    let lost = format!("page 0 of the map is lost: 'disk0' in slot 0: cannot be read: {EIO}; cannot be read: {EIO}");
    says(&run(&array, &both), Verdict::Damaged, &[&lost]);
}

#[test]
fn a_page_of_write_intents_that_cannot_be_read_matters_while_a_member_is_missing() {
    let (mut array, _) = filled(4, 2);
    let at = array.head.layout.wib_page_at(0, 0);
    says(
        &run(&array, &[(1, at, 512)]),
        Verdict::Sound,
        &["note: 'disk1' in slot 1: 1 page of its write-intent bitmap cannot be read", "they hold nothing that counts"],
    );
    array.head.members[5].state = MemberState::Failed;
    array.head.members[5].failed_epoch = 4;
    array.head.wib_generation = 4;
    array.write_superblocks();
    says(
        &run(&array, &[(1, at, 512)]),
        Verdict::Degraded,
        &[
            "degraded: 'disk1' in slot 1: 1 page of its write-intent bitmap",
            "no content of generation 4: a start takes all its regions for written",
        ],
    );
}

#[test]
fn slots_of_a_journal_that_cannot_be_read_and_hold_no_record_that_counts_are_only_noted() {
    let (mut array, data) = filled(4, 2);
    let l = array.head.layout;
    let all = (2, l.journal_offset, l.data_offset - l.journal_offset);
    let r = run(&array, &[all]);
    says(
        &r,
        Verdict::Sound,
        &["note: 'disk2' in slot 2: 4 slots of its journal cannot be read, the first is slot 0 ("],
    );
    assert_eq!((r.findings.len(), r.verdict.exit_code()), (1, 0));
    // Nor does a payload of a transaction that is over.
    let slot = l.slot_of(1, 0);
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    let mut mark = array.record(9, 0, 1 << slot, slot);
    (mark.tail, mark.length, mark.index) = (9, 0, 0);
    array.write_record(mark, &[]);
    let r = run(&array, &[(slot, l.journal_at(2) + 512, 512)]);
    says(&r, Verdict::Sound, &["1 slot of its journal cannot be read, the first is slot 2"]);
}

#[test]
fn a_record_that_counts_and_cannot_be_read_costs_its_member_and_is_damage_where_too_few_are_left() {
    let (mut array, data) = filled(4, 2);
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    let l = array.head.layout;
    let slot = l.slot_of(1, 0);
    for at in [l.journal_at(2), l.journal_at(2) + 512] {
        let r = run(&array, &[(slot, at, 512)]);
        let what =
            format!("in slot {slot}: slot 2 of its journal cannot be read ({EIO}), and by others' records it counts");
        says(&r, Verdict::Degraded, &[&what, "a start goes on without this member"]);
        assert_eq!((r.counts.redone, r.counts.discarded, r.counts.agree), (1, 0, 3), "{r}");
    }
    let missing: Vec<usize> = (2..4).map(|index| l.slot_of(1, index)).collect();
    let r = run_without(&array, &missing, &[(slot, l.journal_at(2), 512)]);
    says(&r, Verdict::Damaged, &["would be left with 3 in sync, where 4 are needed"]);
}

#[test]
fn slots_that_more_members_cannot_read_than_may_be_missing_may_have_held_what_nobody_else_knows() {
    let (array, _) = filled(4, 2);
    let at = array.head.layout.journal_at(3);
    let bad: Vec<_> = (0..3).map(|slot| (slot, at, 512)).collect();
    says(&run(&array, &bad[..2]), Verdict::Sound, &["No record that counts is there"]);
    let r = run(&array, &bad);
    says(&r, Verdict::Degraded, &["Whether a write that a crash cut short is there cannot be told"]);
}

#[test]
fn a_member_with_a_superblock_that_cannot_be_read_is_missing_and_its_slot_is_told() {
    let (array, _) = filled(4, 2);
    let newest = array.head.copy();
    let r = run(&array, &[(3, Layout::superblock_at(1 - newest), 512)]);
    says(
        &r,
        Verdict::Degraded,
        &["cannot be read: Input/output error (os error 5); the other one says slot 3, epoch 5", "slot 3 is missing"],
    );
    says(&run(&array, &[(3, 0, BYTES as u64)]), Verdict::Degraded, &["slot 3 is missing"]);
}
