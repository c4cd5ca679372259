//! What happens between assembly and the first request: bitmaps are read, the journal is replayed, and all that is made durable.
//!
//! Each step can be repeated: a crash during it leaves what the next recovery takes for the same, or for one that did not happen.

use std::collections::BTreeMap;
use std::rc::Rc;

use longshore_nvme::wire::Status;
use longshore_reactor::DmaBuf;

use super::engine::Engine;
use super::faults::{self, Mutant, Window};
use super::flush::Offline;
use super::format::{RECORD_BYTES, RecordHeader};
use super::journal::MARK;
use super::memory::ZEROES;
use super::txn::masked;
use crate::io::{IoFlags, Op};

/// What recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) rolled_forward: u64,
    pub(super) discarded: u64,
}

/// Bytes of memory that records are read into at once, if a strip is not larger.
const LANES: usize = 8 << 20;

/// What the journals of all members hold.
#[derive(Default)]
struct Journals {
    /// Records, by transaction.
    all: BTreeMap<u64, Found>,
    /// The highest tail.
    tail: u64,
    /// Member and slot of what could not be read.
    unread: Vec<(usize, u32)>,
}

impl Journals {
    /// True if records of others say that what the member in `slot` has in journal slot `index` is a record that counts.
    fn counts(&self, slot: usize, index: u32) -> bool {
        let counts = |r: &RecordHeader| r.index == index && r.participants >> slot & 1 != 0;
        self.all.range(self.tail..).any(|(_, found)| found.records.values().any(counts))
    }
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
/// the same was not named yet: nothing was begun. One that a salvage took though it lacks writes is not live here.
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
    /// ends; the caller voids the records, and then has those slots [written anew](Engine::renew_slots) that come back: they are of
    /// members that stand in, and cannot be read.
    pub(super) async fn replay(self: &Rc<Self>) -> Result<(Recovered, Vec<(usize, u32)>), Offline> {
        faults::enter(Window::Recovery);
        let outcome = self.replay_all().await;
        faults::leave(Window::Recovery);
        outcome
    }

    async fn replay_all(self: &Rc<Self>) -> Result<(Recovered, Vec<(usize, u32)>), Offline> {
        let l = self.shared.layout;
        let mut journals = self.read_headers().await;
        let mut lanes = Vec::new();
        self.read_payloads(&mut journals, &mut lanes).await;
        let later = self.mend_journals(&journals).await;
        let (forward, discarded) = decide(journals.all, journals.tail, self.written_to() & !self.stand_ins());
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
            self.roll_forward(found, &mut lanes).await;
            done.rolled_forward += 1;
        }
        drop(lanes);
        for m in &self.members {
            m.dirty.set(true);
        }
        if self.needs_rounds() {
            for m in masked(self.written_to()) {
                if self.members[m].volatile.get() && self.flush_member(m).await.is_err() {
                    self.fail_member(m, "a flush failed");
                }
            }
        }
        if self.shared.is_offline() { Err(Offline) } else { Ok((done, later)) }
    }

    /// Members that a salvage took though they lack writes: nothing was made to wait for their records.
    pub(super) fn stand_ins(&self) -> u64 {
        if faults::is(Mutant::StandInsAsked) {
            return 0;
        }
        let table = self.table.borrow();
        (0..table.members.len()).filter(|&slot| table.members[slot].stands_in()).fold(0, |mask, slot| mask | 1 << slot)
    }

    /// Reads the headers of all slots, of all members at once. Those count that are of this session and where they belong.
    async fn read_headers(self: &Rc<Self>) -> Journals {
        let l = self.shared.layout;
        let mut journals = Journals::default();
        for index in 0..l.journal_slots {
            let mut pending = Vec::new();
            for slot in masked(self.written_to()) {
                let buf = self.meta.page().await;
                let part = buf.slice(0, l.block as usize);
                pending.push((
                    slot,
                    self.request(slot, Op::Read, IoFlags::NONE, l.journal_at(index), &part).await,
                    buf,
                ));
            }
            for (slot, p, buf) in pending {
                if p.done().await.is_err() {
                    journals.unread.push((slot, index));
                } else if let Ok(header) = RecordHeader::decode(&buf.as_slice()[..RECORD_BYTES])
                    && header.check(&l, self.array, self.session.get(), slot, index).is_ok()
                {
                    journals.tail = journals.tail.max(header.tail);
                    if header.length != 0 && index != MARK {
                        journals.all.entry(header.txn).or_default().records.insert(slot, header);
                    }
                }
                self.meta.stock_page(buf);
            }
        }
        journals
    }

    /// Leaves the records that are whole, of those that are not void.
    async fn read_payloads(self: &Rc<Self>, journals: &mut Journals, lanes: &mut Vec<DmaBuf>) {
        let Journals { all, tail, unread } = journals;
        for found in all.range_mut(*tail..).map(|(_, found)| found) {
            let records: Vec<(usize, RecordHeader)> = found.records.iter().map(|(slot, r)| (*slot, *r)).collect();
            for some in records.chunks(self.lanes(lanes).await) {
                for (slot, record, status, payload) in self.payloads(some, lanes).await {
                    if status.is_err() {
                        unread.push((slot, record.index));
                    }
                    if status.is_err() || record.check_payload(payload.as_slice()).is_err() {
                        found.records.remove(&slot);
                    }
                }
            }
        }
    }

    /// A slot that cannot be read costs its member only if others say that it holds a record which counts. Otherwise nothing of that record was
    /// begun in place, or it is void: the slot is written anew. Of a member that stands in no record is demanded: until all records are void, what
    /// cannot be read there may be read again some day, and stays as it is. Such slots come back.
    ///
    /// For as long as no more members are damaged than can be lost, somebody else has each record and each tail that counts: they are on `m + 1`
    /// members, less those that were missing at the time.
    async fn mend_journals(self: &Rc<Self>, journals: &Journals) -> Vec<(usize, u32)> {
        let (stand_ins, mut now, mut later) = (self.stand_ins(), Vec::new(), Vec::new());
        for &(slot, index) in &journals.unread {
            if self.members[slot].is_barred() {
                continue;
            }
            if stand_ins >> slot & 1 != 0 {
                later.push((slot, index));
            } else if journals.counts(slot, index) {
                self.fail_member(slot, "a record of its journal that counts could not be read");
            } else {
                now.push((slot, index));
            }
        }
        self.renew_slots(&now).await;
        later
    }

    /// Writes slots of members' journals anew that could not be read, durably.
    ///
    /// Before the session has records. If power cut short the first one in such a slot while others have theirs, the slot would still not be read, the
    /// next recovery would find that it counts, and the member would have failed.
    pub(super) async fn renew_slots(self: &Rc<Self>, unread: &[(usize, u32)]) {
        let l = self.shared.layout;
        for &(slot, index) in unread {
            if self.members[slot].is_barred() {
                continue;
            }
            tracing::warn!(
                "array '{}': slot {index} of member {slot}'s journal cannot be read: written anew",
                self.shared.name
            );
            // The payload's blocks, too: one that cannot be read would cost the member as much.
            let (at, bytes) = (l.journal_at(index), l.journal_slot_bytes());
            for from in (0..bytes).step_by(ZEROES) {
                let piece = self.zeroes.slice(0, (bytes - from).min(ZEROES as u64) as usize);
                self.write_to_all(1 << slot, at + from, &piece).await;
            }
        }
    }

    /// Writes in place what the records of a transaction say.
    async fn roll_forward(self: &Rc<Self>, found: Found, lanes: &mut Vec<DmaBuf>) {
        let l = self.shared.layout;
        let wanted =
            |(slot, r): &(usize, RecordHeader)| self.written_to() >> slot & 1 != 0 && self.map.is_live(r.stripe);
        let records: Vec<_> = found.records.into_iter().filter(wanted).collect();
        for some in records.chunks(self.lanes(lanes).await) {
            let mut pending = Vec::new();
            for (slot, record, status, payload) in self.payloads(some, lanes).await {
                if status.is_err() {
                    self.fail_member(slot, "a record could not be read");
                    continue;
                }
                let to = l.strip_offset(record.stripe) + u64::from(record.offset);
                self.count_write(record.length);
                pending.push((slot, self.request(slot, Op::Write, IoFlags::NONE, to, &payload).await));
            }
            for (slot, p) in pending {
                if p.done().await.is_err() && !self.shared.is_offline() {
                    self.fail_member(slot, "a write failed");
                }
            }
        }
    }

    /// Reads the payloads of `some` records, at once, into as many of `lanes`.
    async fn payloads(
        self: &Rc<Self>,
        some: &[(usize, RecordHeader)],
        lanes: &mut [DmaBuf],
    ) -> Vec<(usize, RecordHeader, Status, DmaBuf)> {
        let l = self.shared.layout;
        let mut pending = Vec::new();
        for ((slot, record), lane) in some.iter().zip(lanes) {
            if !lane.is_unique() {
                // A read that was given up, on a member that hangs, may still come in there.
                *lane = self.strip_buffer().await;
            }
            let payload = lane.slice(0, record.length as usize);
            let from = l.journal_at(record.index) + u64::from(l.block);
            pending.push((*slot, *record, self.request(*slot, Op::Read, IoFlags::NONE, from, &payload).await, payload));
        }
        let mut read = Vec::new();
        for (slot, record, p, payload) in pending {
            read.push((slot, record, p.done().await, payload));
        }
        read
    }

    /// Gets `lanes`, if there are none; says how many there are.
    async fn lanes(self: &Rc<Self>, lanes: &mut Vec<DmaBuf>) -> usize {
        if lanes.is_empty() {
            let most = (LANES / self.shared.layout.strip as usize).clamp(1, self.members.len());
            for _ in 0..most {
                lanes.push(self.strip_buffer().await);
            }
        }
        lanes.len()
    }

    async fn strip_buffer(&self) -> DmaBuf {
        loop {
            match self.core.reactor().dma().alloc(self.shared.layout.strip as usize) {
                Some(b) => return b,
                // Nothing of this array is held by anybody yet: others will give some back.
                None => self.core.reactor().sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    }

    pub(super) async fn flush_member(self: &Rc<Self>, slot: usize) -> Result<(), Offline> {
        self.members[slot].dirty.set(false);
        self.shared.counters.member_flushes.add(1);
        let status = self.flush_request(slot).await;
        if status.is_ok() { Ok(()) } else { Err(Offline) }
    }

    /// Writes a mark with the present tail to all members in use, durably.
    pub(super) async fn write_mark(self: &Rc<Self>) -> Result<(), Offline> {
        self.until_asked().await?;
        let l = self.shared.layout;
        let (txn, tail) = self.journal.mark();
        let (live, block) = (self.written_to(), l.block as usize);
        // All or none: who else waits for pages, holding some, gets those that come back from here.
        let pages = self.meta.pages(live.count_ones() as usize).await;
        let mut pending = Vec::new();
        for (slot, mut buf) in masked(live).zip(pages) {
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
            if let Some(out) = buf.get_mut() {
                out[..block].fill(0);
                header.encode(&mut out[..RECORD_BYTES]);
            }
            self.shared.counters.metadata_writes.add(1);
            let part = buf.slice(0, block);
            let sent = self.request(slot, Op::Write, IoFlags::FUA, l.journal_at(MARK), &part).await;
            pending.push((slot, self.members[slot].era(), sent, buf));
        }
        for (slot, era, p, buf) in pending {
            if p.done().await.is_err() && !self.shared.is_offline() {
                self.fail_device(slot, era, "a write of metadata failed");
            }
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
