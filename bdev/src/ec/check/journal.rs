//! The journal: what a start would roll forward.

use std::collections::BTreeMap;
use std::io;

use super::bitmaps::Map;
use super::tally::{REPLACE, Tally, many};
use super::{Opened, ReadAt, Report};
use crate::ec::format::{FormatError, MemberState, RecordHeader};
use crate::ec::layout::Layout;

/// One member's share of a transaction that is rolled forward.
#[derive(Debug, Clone, Copy)]
struct Share {
    slot: usize,
    header: RecordHeader,
}

/// What is rolled forward, by stripe, in the order in which it is done.
pub(super) struct Redo(BTreeMap<u64, Vec<Share>>);

impl Redo {
    /// Reads what the strip of `stripe` on `device`, the member in `slot`, holds after a start, from byte `from` of it on. What is written whole from
    /// the journal need not be readable in place.
    pub(super) fn read(
        &self,
        layout: &Layout,
        device: &dyn ReadAt,
        (stripe, slot): (u64, usize),
        from: usize,
        buf: &mut [u8],
    ) -> io::Result<()> {
        let to = from + buf.len();
        let mut read = device.read_at(layout.strip_offset(stripe) + from as u64, buf);
        for Share { header: h, .. } in self.0.get(&stripe).into_iter().flatten().filter(|s| s.slot == slot) {
            let begin = h.offset as usize;
            let (first, end) = (begin.max(from), (begin + h.length as usize).min(to));
            if first < end {
                let at = layout.journal_at(h.index) + u64::from(layout.block) + (first - begin) as u64;
                device.read_at(at, &mut buf[first - from..end - from])?;
                if (first, end) == (from, to) {
                    read = Ok(());
                }
            }
        }
        read
    }
}

/// What the journals of all members hold.
#[derive(Default)]
struct Journals {
    /// Whole records that are not marks, by transaction.
    transactions: BTreeMap<u64, Vec<Share>>,
    /// The highest tail.
    tail: u64,
    unread: Vec<Unread>,
}

/// Part of a slot of a member's journal cannot be read.
struct Unread {
    slot: usize,
    index: u32,
    /// The transaction, where the header can be read.
    txn: Option<u64>,
    why: io::Error,
}

/// Reads the journals of all members that are there. A member is taken out of `opened` that a start goes on without, because a record of its
/// journal which counts cannot be read.
pub(super) fn redo(opened: &mut Opened<'_>, map: &Map, report: &mut Report) -> Redo {
    let Journals { mut transactions, tail, unread } = journals(opened, report);
    transactions.retain(|txn, _| *txn >= tail);
    let (void, unread) = unread.into_iter().partition(|u| u.txn.is_some_and(|txn| txn < tail));
    without(opened, &transactions, void, unread, report);
    let mut redo: BTreeMap<u64, Vec<Share>> = BTreeMap::new();
    for (txn, shares) in transactions {
        let first = shares[0].header;
        let alike = |s: &Share| s.header.stripe == first.stripe && s.header.participants == first.participants;
        if !shares.iter().all(alike) {
            report.damage(format!("the records of transaction {txn} name different stripes or members"));
            continue;
        }
        let asked = |slot: usize| opened.takes_part(slot) && !opened.head.members[slot].stands_in();
        let wanted = |slot: &usize| first.participants >> slot & 1 != 0 && asked(*slot);
        let complete = (0..opened.layout().n()).filter(wanted).all(|slot| shares.iter().any(|s| s.slot == slot));
        if !complete {
            report.counts.discarded += 1;
        } else if map.holds(first.stripe) {
            report.counts.redone += 1;
            redo.entry(first.stripe).or_default().extend(shares);
        }
    }
    Redo(redo)
}

fn journals(opened: &Opened<'_>, report: &mut Report) -> Journals {
    let mut journals = Journals::default();
    for slot in 0..opened.layout().n() {
        let live = matches!(opened.head.members[slot].state, MemberState::InSync | MemberState::Rebuilding);
        let Some(device) = opened.device(slot).filter(|_| live) else { continue };
        for index in 0..opened.layout().journal_slots {
            match record(opened, device, slot, index) {
                Slot::Void => {}
                Slot::Unread(why) => journals.unread.push(Unread { slot, index, txn: None, why }),
                Slot::Impossible(why) => {
                    report.damage(format!("'{}', journal slot {index}: a record that cannot be: {why}", device.name()));
                }
                Slot::Record(header, payload) => {
                    // Also that of a record which a crash has torn: the record that it replaces had one as high, and may be the last that did.
                    journals.tail = journals.tail.max(header.tail);
                    match payload {
                        Payload::Whole if header.is_mark() => {}
                        Payload::Whole => {
                            journals.transactions.entry(header.txn).or_default().push(Share { slot, header })
                        }
                        Payload::Torn => {}
                        Payload::Unread(why) => {
                            journals.unread.push(Unread { slot, index, txn: Some(header.txn), why });
                        }
                    }
                }
            }
        }
    }
    journals
}

/// Says what follows from slots that cannot be read, as a start does. Records of a transaction are in the same journal slot of all members that it names, so
/// whether such a slot holds one which counts is known from the others: a start then goes on without the member. Otherwise the slot does not matter,
/// unless there may have been a record that no member is left to know of. Of `void` ones it is known that they do not.
fn without(
    opened: &mut Opened<'_>,
    transactions: &BTreeMap<u64, Vec<Share>>,
    void: Vec<Unread>,
    unread: Vec<Unread>,
    report: &mut Report,
) {
    let mut blind: BTreeMap<u32, usize> = BTreeMap::new();
    let absent = (0..opened.layout().n()).filter(|&slot| !opened.takes_part(slot)).count();
    unread.iter().for_each(|u| *blind.entry(u.index).or_insert(absent) += 1);
    let (mut idle, mut unknown, mut counts) = (Tally::default(), Tally::default(), BTreeMap::new());
    void.into_iter().for_each(|u| idle.add(u.slot, u.index.into(), u.why.to_string()));
    for Unread { slot, index, why, .. } in unread {
        // Nobody asks one that stands in for a record.
        let asked = !opened.head.members[slot].stands_in();
        let named = |s: &Share| asked && s.header.index == index && s.header.participants >> slot & 1 != 0;
        if transactions.values().flatten().any(named) {
            counts.entry(slot).or_insert((index, why));
        } else if blind[&index] > opened.layout().m {
            unknown.add(slot, index.into(), why.to_string());
        } else {
            idle.add(slot, index.into(), why.to_string());
        }
    }
    for (member, f) in idle.members(opened) {
        report.advise(format!(
            "{member}: {} of its journal cannot be read, the first is slot {} ({}). No record that counts is there: it is written anew when it is needed, \
             and if that fails, {REPLACE}",
            many(f.count, "slot"),
            f.first,
            f.why
        ));
    }
    for (member, f) in unknown.members(opened) {
        report.degrade(format!(
            "{member}: {} of its journal cannot be read, the first is slot {} ({}). Whether a write that a crash cut short is there cannot be told: \
             too many others are missing or cannot read theirs. A start goes on without it; attach members that are missing, or {REPLACE}",
            many(f.count, "slot"),
            f.first,
            f.why
        ));
    }
    for (slot, (index, why)) in counts {
        let what = format!(
            "{}: slot {index} of its journal cannot be read ({why}), and by others' records it counts",
            opened.title(slot)
        );
        let left = (0..opened.layout().n()).filter(|&other| other != slot && opened.in_sync(other)).count();
        let need = opened.head.quorum();
        if opened.in_sync(slot) && left < need {
            report.damage(format!(
                "{what}: a start gives the member up, and would be left with {left} in sync, where {need} are needed. Attach members that are missing, or a \
                 copy of this one, made by a tool that reads again"
            ));
        } else {
            report.degrade(format!("{what}: a start goes on without this member. Then {REPLACE}"));
            opened.slots[slot] = None;
        }
    }
}

/// What is in a slot of a journal.
enum Slot {
    /// Nothing that is valid here, which is no fault: a crash may tear the last record.
    Void,
    /// Its first block cannot be read.
    Unread(io::Error),
    /// A whole header with figures that cannot be.
    Impossible(FormatError),
    Record(RecordHeader, Payload),
}

enum Payload {
    Whole,
    Torn,
    Unread(io::Error),
}

fn record(opened: &Opened<'_>, device: &dyn ReadAt, slot: usize, index: u32) -> Slot {
    let (layout, head) = (opened.layout(), &opened.head);
    let mut block = vec![0; layout.block as usize];
    let at = layout.journal_at(index);
    if let Err(why) = device.read_at(at, &mut block) {
        return Slot::Unread(why);
    }
    let Ok(header) = RecordHeader::decode(&block) else { return Slot::Void };
    match header.check(layout, head.array, head.journal_session, slot, index) {
        Ok(()) => {}
        Err(FormatError::Elsewhere { .. }) => return Slot::Void,
        Err(why) => return Slot::Impossible(why),
    }
    let mut payload = vec![0; header.length as usize];
    let payload = match device.read_at(at + u64::from(layout.block), &mut payload) {
        Err(why) => Payload::Unread(why),
        Ok(()) if header.check_payload(&payload).is_ok() => Payload::Whole,
        Ok(()) => Payload::Torn,
    };
    Slot::Record(header, payload)
}
