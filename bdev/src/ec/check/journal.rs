//! The journal: what a start would roll forward.

use std::collections::BTreeMap;

use super::bitmaps::Map;
use super::{Opened, ReadAt, Report};
use crate::ec::format::{FormatError, MemberState, RecordHeader};

/// One member's share of a transaction that is rolled forward.
#[derive(Debug, Clone, Copy)]
struct Share {
    slot: usize,
    header: RecordHeader,
}

/// What is rolled forward, by stripe, in the order in which it is done.
pub(super) struct Redo(BTreeMap<u64, Vec<Share>>);

impl Redo {
    /// Changes `strip`, the strip of `stripe` that was read from the member in `slot`, to what it is after a start.
    pub(super) fn apply(&self, opened: &Opened<'_>, stripe: u64, slot: usize, strip: &mut [u8]) -> std::io::Result<()> {
        let (Some(shares), Some(device)) = (self.0.get(&stripe), opened.device(slot)) else { return Ok(()) };
        for Share { header: h, .. } in shares.iter().filter(|s| s.slot == slot) {
            let at = opened.layout().journal_at(h.index) + u64::from(opened.layout().block);
            device.read_at(at, &mut strip[h.offset as usize..][..h.length as usize])?;
        }
        Ok(())
    }
}

/// Reads the journals of all members that are there.
pub(super) fn redo(opened: &Opened<'_>, map: &Map, report: &mut Report) -> Redo {
    let mut transactions: BTreeMap<u64, Vec<Share>> = BTreeMap::new();
    let mut tail = 0;
    for slot in 0..opened.layout().n() {
        let live = matches!(opened.head.members[slot].state, MemberState::InSync | MemberState::Rebuilding);
        let Some(device) = opened.device(slot).filter(|_| live) else { continue };
        for index in 0..opened.layout().journal_slots {
            match record(opened, device, slot, index) {
                Ok(Some((header, whole))) => {
                    // Also that of a record which a crash has torn: the record that it replaces had one as high, and may be the last that did.
                    tail = tail.max(header.tail);
                    if whole && !header.is_mark() {
                        transactions.entry(header.txn).or_default().push(Share { slot, header });
                    }
                }
                Ok(None) => {}
                Err(why) => report.damage(format!("'{}', journal slot {index}: {why}", device.name())),
            }
        }
    }
    let mut redo: BTreeMap<u64, Vec<Share>> = BTreeMap::new();
    for (txn, shares) in transactions.into_iter().filter(|(txn, _)| *txn >= tail) {
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

/// The header in a journal slot, and whether its payload is whole. None where there is none, which is no fault: a crash may tear the last one.
fn record(
    opened: &Opened<'_>,
    device: &dyn ReadAt,
    slot: usize,
    index: u32,
) -> Result<Option<(RecordHeader, bool)>, String> {
    let (layout, head) = (opened.layout(), &opened.head);
    let mut block = vec![0; layout.block as usize];
    let at = layout.journal_at(index);
    device.read_at(at, &mut block).map_err(|e| format!("cannot be read: {e}"))?;
    let Ok(header) = RecordHeader::decode(&block) else { return Ok(None) };
    match header.check(layout, head.array, head.journal_session, slot, index) {
        Ok(()) => {}
        Err(FormatError::Elsewhere { .. }) => return Ok(None),
        Err(e) => return Err(format!("a record that cannot be: {e}")),
    }
    let mut payload = vec![0; header.length as usize];
    device.read_at(at + u64::from(layout.block), &mut payload).map_err(|e| format!("cannot be read: {e}"))?;
    let whole = header.check_payload(&payload).is_ok();
    Ok(Some((header, whole)))
}
