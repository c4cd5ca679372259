//! What happens between assembly and the first request: bitmaps are read, the journal is replayed, and all that is made durable.
//!
//! Each step can be repeated: a crash during it leaves what the next recovery takes for the same, or for one that did not happen.

use std::collections::BTreeMap;
use std::rc::Rc;

use longshore_reactor::DmaBuf;

use super::engine::Engine;
use super::faults::{self, Window};
use super::flush::Offline;
use super::format::{RECORD_BYTES, RecordHeader};
use super::journal::MARK;
use super::layout::PAGE_BYTES;
use super::txn::masked;
use crate::io::{IoFlags, Op};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) rolled_forward: u64,
    pub(super) discarded: u64,
}

/// Records of one transaction, by slot of the member.
#[derive(Default)]
struct Found {
    records: BTreeMap<usize, RecordHeader>,
}

/// Which transactions are rolled forward, in order, and how many are not. `live`: members that take part in recovery.
///
/// A transaction is rolled forward if every live participant has its record whole. Data are overwritten in place only after all of
/// them were durable; a participant that had failed by then is named failed, and so is not live. One that had failed and is live all
/// the same was not named yet: nothing was begun.
fn decide(all: BTreeMap<u64, Found>, tail: u64, live: u64) -> (Vec<(u64, Found)>, u64) {
    let (mut forward, mut discarded) = (Vec::new(), 0);
    for (txn, found) in all.into_iter().filter(|(txn, _)| *txn >= tail) {
        let present = found.records.keys().fold(0u64, |mask, slot| mask | 1 << slot);
        let Some(first) = found.records.values().next() else { continue };
        let alike = found
            .records
            .values()
            .all(|r| (r.participants, r.stripe, r.index) == (first.participants, first.stripe, first.index));
        if alike && first.participants & live & !present == 0 {
            forward.push((txn, found));
        } else {
            discarded += 1;
        }
    }
    (forward, discarded)
}

impl Engine {
    /// Replays the journal: rolls forward what may have been begun in place, and leaves the rest. In place and durable when this
    /// ends; the caller voids the records.
    pub(super) async fn replay(self: &Rc<Self>) -> Result<Recovered, Offline> {
        faults::enter(Window::Recovery);
        let outcome = self.replay_all().await;
        faults::leave(Window::Recovery);
        outcome
    }

    async fn replay_all(self: &Rc<Self>) -> Result<Recovered, Offline> {
        let l = self.shared.layout;
        let buf = self.record_buffer().await;
        let (mut all, mut tail) = (BTreeMap::<u64, Found>::new(), 0);
        for slot in masked(self.live()) {
            for index in 0..l.journal_slots {
                let Some(header) = self.read_record(slot, index, &buf).await else { continue };
                tail = tail.max(header.tail);
                if header.length != 0 && index != MARK {
                    all.entry(header.txn).or_default().records.insert(slot, header);
                }
            }
        }
        let (forward, discarded) = decide(all, tail, self.live());
        // Also if none is missing: one may fail before all is in place.
        for (_, found) in &forward {
            if let Some(r) = found.records.values().next() {
                self.intent.set(l.region_of(r.stripe));
            }
        }
        // What was decided without a member must not be decided again with it.
        if !self.is_stable() {
            self.establish(0, |_| {}).await?;
            self.stable_again();
        } else if self.intent.generation.get() != 0 {
            self.store_intent(false).await?;
        }
        let mut done = Recovered { rolled_forward: 0, discarded };
        for (_, found) in forward {
            for (slot, record) in found.records {
                if self.live() >> slot & 1 == 0 || !self.map.is_live(record.stripe) {
                    continue;
                }
                let len = record.length as usize;
                let from = l.journal_at(record.index) + u64::from(l.block);
                let payload = buf.slice(0, len);
                if self.read_meta(slot, from, &payload).await.is_err() {
                    self.fail_member(slot, "a record could not be read");
                    continue;
                }
                let to = l.strip_offset(record.stripe) + u64::from(record.offset);
                self.count_write(record.length);
                if self.request(slot, Op::Write, IoFlags::NONE, to, &payload).await.done().await.is_err() {
                    self.fail_member(slot, "a write failed");
                }
            }
            done.rolled_forward += 1;
        }
        drop(buf);
        for m in &self.members {
            m.dirty.set(true);
        }
        if self.needs_rounds() {
            for m in masked(self.live()) {
                if self.members[m].volatile.get() && self.flush_member(m).await.is_err() {
                    self.fail_member(m, "a flush failed");
                }
            }
        }
        if self.shared.is_offline() { Err(Offline) } else { Ok(done) }
    }

    pub(super) async fn flush_member(self: &Rc<Self>, slot: usize) -> Result<(), Offline> {
        self.members[slot].dirty.set(false);
        self.shared.counters.member_flushes.add(1);
        let status = self.flush_request(slot).await;
        if status.is_ok() { Ok(()) } else { Err(Offline) }
    }

    async fn record_buffer(self: &Rc<Self>) -> DmaBuf {
        let len = self.shared.layout.journal_slot_bytes().max(PAGE_BYTES) as usize;
        loop {
            match self.core.reactor().dma().alloc(len) {
                Some(b) => return b,
                // Nothing of this array is held by anybody yet: others will give some back.
                None => self.core.reactor().sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    }

    /// The record in journal slot `index` of a member, if it is one of this session and whole.
    async fn read_record(self: &Rc<Self>, slot: usize, index: u32, buf: &DmaBuf) -> Option<RecordHeader> {
        let l = self.shared.layout;
        let block = l.block as usize;
        let at = l.journal_at(index);
        if self.read_meta(slot, at, &buf.slice(0, block)).await.is_err() {
            self.fail_member(slot, "its journal could not be read");
            return None;
        }
        let header = RecordHeader::decode(&buf.as_slice()[..RECORD_BYTES]).ok()?;
        header.check(&l, self.array, self.session.get(), slot, index).ok()?;
        if header.length == 0 {
            return Some(header);
        }
        let payload = buf.slice(0, header.length as usize);
        if self.read_meta(slot, at + u64::from(l.block), &payload).await.is_err() {
            self.fail_member(slot, "its journal could not be read");
            return None;
        }
        header.check_payload(payload.as_slice()).ok()?;
        Some(header)
    }

    /// Writes a mark with the present tail to all members in use, durably.
    pub(super) async fn write_mark(self: &Rc<Self>) -> Result<(), Offline> {
        let l = self.shared.layout;
        let (txn, tail) = self.journal.mark();
        for slot in masked(self.live()) {
            let mut buf = self.meta.page().await;
            let header = RecordHeader {
                array: self.array,
                session: self.session.get(),
                txn,
                tail,
                stripe: 0,
                participants: 1 << slot,
                slot: slot as u32,
                index: MARK,
                offset: 0,
                length: 0,
                payload_crc: 0,
            };
            let block = l.block as usize;
            if let Some(out) = buf.get_mut() {
                out[..block].fill(0);
                header.encode(&mut out[..RECORD_BYTES]);
            }
            self.write_to_all(1 << slot, l.journal_at(MARK), &buf.slice(0, block)).await;
            self.meta.stock_page(buf);
        }
        self.until_stable().await?;
        self.journal.tail_is_durable(tail);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn found(participants: u64, there: &[usize]) -> Found {
        let record = |slot: usize| RecordHeader {
            array: Uuid::from_u128(1),
            session: 1,
            txn: 1,
            tail: 1,
            stripe: 0,
            participants,
            slot: slot as u32,
            index: 1,
            offset: 0,
            length: 512,
            payload_crc: 0,
        };
        Found { records: there.iter().map(|&s| (s, record(s))).collect() }
    }

    #[test]
    fn only_what_every_live_participant_has_is_rolled_forward() {
        let all =
            || BTreeMap::from([(1, found(0b111, &[0, 1, 2])), (2, found(0b111, &[0, 1])), (3, found(0b011, &[0, 1]))]);
        let ids = |live, tail| {
            let (f, d) = decide(all(), tail, live);
            (f.into_iter().map(|f| f.0).collect::<Vec<_>>(), d)
        };
        assert_eq!(ids(0b111, 0), (vec![1, 3], 1));
        assert_eq!(ids(0b011, 0), (vec![1, 2, 3], 0), "member 2 is missing: the others decide");
        assert_eq!(ids(0b111, 2), (vec![3], 1), "older than the tail: void");
        assert_eq!(ids(0b111, 4), (vec![], 0));
    }
}
