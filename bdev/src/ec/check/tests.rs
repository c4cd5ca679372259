use super::*;
use crate::ec::format::{MemberEntry, MemberState, Stamp};
use crate::ec::images::{Array, Image};

const BYTES: usize = 400 << 10;

fn run(members: &[Image]) -> Report {
    let devices: Vec<&dyn ReadAt> = members.iter().map(|m| m as &dyn ReadAt).collect();
    check(&devices, Scope::default())
}

fn filled() -> (Array, Vec<Vec<u8>>) {
    let mut array = Array::new(4, 2, BYTES);
    let data: Vec<_> = (0..4).map(|i| array.strip(i)).collect();
    for stripe in [0, 1, 7] {
        array.write_stripe(stripe, &data);
    }
    (array, data)
}

fn says(report: &Report) -> String {
    report.to_string()
}

#[test]
fn a_whole_array_is_sound_and_its_stripes_are_counted() {
    let (array, _) = filled();
    let r = run(&array.members);
    assert_eq!(r.verdict, Verdict::Sound, "{r}");
    assert_eq!((r.counts.mapped, r.counts.agree, r.counts.bad), (3, 3, 0));
    assert_eq!(r.findings, []);
    assert!(says(&r).ends_with("\nsound"), "{r}");
    assert_eq!(r.verdict.exit_code(), 0);
}

#[test]
fn an_array_that_lost_members_is_degraded_and_with_none_to_spare_nothing_can_be_compared() {
    let (array, _) = filled();
    let r = run(&array.members[..5]);
    assert_eq!((r.verdict, r.counts.agree), (Verdict::Degraded, 3), "{r}");
    assert!(says(&r).contains("note: the member in slot 5 is missing"));
    let r = run(&array.members[1..5]);
    assert_eq!((r.verdict, r.counts.unverifiable), (Verdict::Degraded, 3), "{r}");
    let r = run(&array.members[..3]);
    assert_eq!(r.verdict, Verdict::NotAssembled);
    assert!(
        says(&r).contains("cannot start: 3 members are in sync and there, 4 are needed; none in slots 3, 4, 5"),
        "{r}"
    );
    assert_eq!(run(&[]).verdict, Verdict::NotAssembled);
}

#[test]
fn a_changed_byte_of_a_stripe_is_damage_and_the_member_is_named() {
    let (mut array, _) = filled();
    let at = array.head.layout.strip_offset(7) + 600;
    array.put(2, at, &[9]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.bad, r.counts.agree), (Verdict::Damaged, 1, 2));
    assert!(
        says(&r)
            .contains("DAMAGE: stripe 7: its strips do not agree: all others agree without that of 'disk2' in slot 2"),
        "{r}"
    );
    array.put(4, at, &[9]);
    assert!(says(&run(&array.members)).contains("stripe 7: its strips do not agree, and not because of one alone"));
    let devices: Vec<&dyn ReadAt> = array.members.iter().map(|m| m as &dyn ReadAt).collect();
    assert_eq!(check(&devices, Scope { stripes: false }).verdict, Verdict::Sound, "strips were not to be read");
}

#[test]
fn what_lies_in_a_stripe_without_data_does_not_matter() {
    let (mut array, _) = filled();
    let at = array.head.layout.strip_offset(3);
    array.put(2, at, &[9; 4096]);
    assert_eq!(run(&array.members).verdict, Verdict::Sound);
}

#[test]
fn a_write_that_was_half_done_in_place_is_rolled_forward_from_the_journal() {
    let (mut array, data) = filled();
    let after = array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.agree), (Verdict::Sound, 1, 3), "nothing in place: {r}");
    let l = array.head.layout;
    array.put(l.slot_of(1, 0), l.strip_offset(1), &after[0]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone), (Verdict::Sound, 1), "one member in place: {r}");
    // Without its records the same is damage.
    array.head.journal_session += 1;
    array.head.predecessor = array.head.stamp;
    array.head.stamp.epoch += 1;
    array.write_superblocks();
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.bad), (Verdict::Damaged, 0, 1), "{r}");
}

#[test]
fn a_transaction_whose_records_are_not_on_all_members_is_void() {
    let (mut array, data) = filled();
    let l = array.head.layout;
    let (a, b) = (l.slot_of(1, 0), l.slot_of(1, 4));
    array.journal(2, 1, &data, &[a, b]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.discarded), (Verdict::Sound, 0, 1), "{r}");
    // If the member that has none is lost, the others suffice.
    let lost = l.slot_of(1, 5);
    let rest: Vec<Image> = (0..6).filter(|&s| s != lost).map(|s| array.members[s].clone()).collect();
    let r = run(&rest);
    assert_eq!((r.verdict, r.counts.redone), (Verdict::Degraded, 1), "{r}");
}

#[test]
fn records_below_the_highest_tail_are_void_and_a_mark_raises_it() {
    let (mut array, data) = filled();
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    let mark = RecordHeaderOf(&array).mark(9, 9, 3);
    array.write_record(mark, &[]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.discarded), (Verdict::Sound, 0, 0), "{r}");
}

struct RecordHeaderOf<'a>(&'a Array);

impl RecordHeaderOf<'_> {
    fn mark(&self, txn: u64, tail: u64, slot: usize) -> crate::ec::format::RecordHeader {
        let mut header = self.0.record(txn, 0, 1 << slot, slot);
        (header.tail, header.length, header.index) = (tail, 0, 0);
        header
    }
}

#[test]
fn a_torn_record_is_no_fault() {
    let (mut array, data) = filled();
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    let l = array.head.layout;
    array.put(l.slot_of(1, 0), l.journal_at(2) + 512 + 100, &[1, 2, 3]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.discarded), (Verdict::Sound, 0, 1), "{r}");
}

#[test]
fn the_tail_of_a_record_whose_payload_is_torn_counts_as_in_a_recovery() {
    let (mut array, data) = filled();
    array.journal(2, 1, &data, &[0, 1, 2, 3, 4, 5]);
    // The slot held the last record whose tail said that transaction 2 is over; what overwrites it says so, too.
    let mut header = array.record(9, 3, 1 << 3, 3);
    header.tail = 9;
    array.write_record(header, &[7; 512]);
    let l = array.head.layout;
    array.put(3, l.journal_at(header.index) + u64::from(l.block) + 100, &[1, 2, 3]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.redone, r.counts.discarded), (Verdict::Sound, 0, 0), "{r}");
}

#[test]
fn pages_of_the_map_that_differ_are_merged_and_a_page_lost_on_all_is_damage() {
    let (mut array, _) = filled();
    array.mark(9);
    array.write_map_to(2);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.map_pages_differ, r.counts.mapped), (Verdict::Sound, 1, 4), "{r}");
    let at = array.head.layout.map_page_at(0, 0);
    array.put(0, at, &[0; 8192]);
    let r = run(&array.members);
    assert_eq!(r.verdict, Verdict::Degraded, "{r}");
    assert!(says(&r).contains("degraded: 'disk0' in slot 0: 1 page of its map cannot be read or is damaged"), "{r}");
    for slot in 0..6 {
        array.put(slot, at, &[0xee; 8192]);
    }
    let r = run(&array.members);
    assert!(
        r.verdict == Verdict::Damaged
            && says(&r).contains("DAMAGE: page 0 of the map is lost: 'disk0' in slot 0: not an array's"),
        "{r}"
    );
}

#[test]
fn stale_foreign_and_unreadable_devices_are_named() {
    let (mut array, _) = filled();
    let old = array.head.clone();
    array.head.members[3].state = MemberState::Failed;
    array.head.predecessor = array.head.stamp;
    array.head.stamp.epoch += 1;
    array.write_superblocks();
    array.write_superblock(3, &Superblock { stamp: Stamp { epoch: 7, nonce: 1 }, ..old.clone() });
    let mut members = array.members.clone();
    members[3] = Array::new(4, 2, BYTES).members[3].clone();
    members.push(Image { name: "other".into(), bytes: vec![0xff; BYTES] });
    members.push(Image { name: "tiny".into(), bytes: vec![0; 512] });
    let r = run(&members);
    assert_eq!(r.verdict, Verdict::Degraded);
    assert!(says(&r).contains("disk3: stale: has epoch 5"), "{r}");
    assert!(says(&r).contains("other: no superblock: not an array's: begins with \\xff"), "{r}");
    assert!(says(&r).contains("tiny: 512 bytes: too small for a member"), "{r}");
    let copy = Image { name: "copy".into(), ..array.members[1].clone() };
    let r = run(&[&array.members[..], &[copy]].concat());
    assert!(r.verdict == Verdict::NotAssembled && says(&r).contains("'disk1' and 'copy' are both"), "{r}");
}

#[test]
fn a_rebuilding_member_counts_below_its_progress_only() {
    let (mut array, _) = filled();
    let rebuild = crate::ec::format::Rebuild { mode: crate::ec::format::RebuildMode::Full, progress: 1 };
    let uuid = array.head.members[0].uuid;
    array.head.members[0] = MemberEntry {
        uuid,
        state: MemberState::Rebuilding,
        failed_epoch: 4,
        rebuild: Some(rebuild),
        ..MemberEntry::EMPTY
    };
    array.write_superblocks();
    let at = array.head.layout.strip_offset(1);
    array.put(0, at, &[0x77; 4096]);
    let r = run(&array.members);
    assert_eq!((r.verdict, r.counts.agree), (Verdict::Degraded, 3), "{r}");
    let at = array.head.layout.strip_offset(0);
    array.put(0, at, &[0x77; 4096]);
    assert_eq!(run(&array.members).counts.bad, 1);
}

#[test]
fn images_of_random_damage_never_panic() {
    let (good, data) = {
        let mut array = Array::new(2, 1, BYTES);
        let data: Vec<_> = (0..2).map(|i| array.strip(i)).collect();
        array.write_stripe(2, &data);
        (array, data)
    };
    let mut seed = 3u64;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for _ in 0..400 {
        let mut array = good.clone();
        array.journal(2, 2, &data, &[0, 1, 2]);
        for _ in 0..1 + next(8) {
            let (slot, at) = (next(3), next(array.head.layout.data_offset as usize));
            array.put(slot, at as u64, &[next(256) as u8]);
        }
        array.members[next(3)].bytes.truncate(BYTES - next(2) * next(BYTES));
        let _ = run(&array.members).to_string();
    }
}
