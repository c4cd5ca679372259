//! What the wire knows about each request slot of a queue pair: where its data is.

/// Where a slot is, as far as the wire is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Free, or the queue pair has it, or its capsule is still arriving.
    Idle,
    /// Waits for a buffer to read into.
    BufferForRead,
    /// Waits for a buffer, without which no R2T is sent.
    BufferForData,
    /// Waits for a buffer for in-capsule data, which is kept elsewhere until then.
    BufferForCapsule,
    /// An R2T is out, data is arriving.
    Data,
    /// It reads what its device lends.
    Lent,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    /// A data digest did not match: the command fails once all its data is here.
    pub(crate) bad: bool,
    pub(crate) cid: u16,
    /// Bytes asked for by R2T.
    pub(crate) len: u32,
    /// Bytes of them received.
    pub(crate) got: u32,
    /// When the R2T was queued, was last seen to come nearer to the host, or data for it or one before it last came.
    pub(crate) stamp: u64,
    /// Where the R2T ends, in all that is sent.
    pub(crate) r2t_end: u64,
}

const IDLE: Slot = Slot { phase: Phase::Idle, bad: false, cid: 0, len: 0, got: 0, stamp: 0, r2t_end: 0 };

/// In-capsule data of a command that has no buffer yet. It has to be taken off the stream all the same: what would free a buffer
/// may come behind it. At most a capsule per slot.
#[derive(Debug)]
struct Kept {
    slot: u16,
    bytes: Vec<u8>,
    /// The capsule has ended.
    whole: bool,
}

/// The slots of one queue pair, by number.
#[derive(Debug)]
pub(crate) struct Slots {
    all: Box<[Slot]>,
    kept: Vec<Kept>,
    /// Those in [`Phase::Data`].
    awaiting: u32,
    /// Data came since the last [`follow_data`](Slots::follow_data): the least `r2t_end` of those that it was for.
    came: Option<u64>,
    /// Bytes of those in [`Phase::Lent`].
    lent: usize,
}

impl Slots {
    pub(crate) fn new(n: u16) -> Slots {
        Slots { all: vec![IDLE; n.into()].into(), kept: Vec::new(), awaiting: 0, came: None, lent: 0 }
    }

    #[inline]
    pub(crate) fn get(&mut self, slot: u16) -> Option<&mut Slot> {
        self.all.get_mut(usize::from(slot))
    }

    pub(crate) fn phase(&self, slot: u16) -> Phase {
        self.all.get(usize::from(slot)).map_or(Phase::Idle, |s| s.phase)
    }

    #[inline]
    pub(crate) fn set_phase(&mut self, slot: u16, phase: Phase) {
        if let Some(s) = self.all.get_mut(usize::from(slot)) {
            self.awaiting += u32::from(phase == Phase::Data);
            self.awaiting -= u32::from(s.phase == Phase::Data);
            s.phase = phase;
        }
    }

    /// The command in `slot` has no buffer for its in-capsule data: from here on it is kept.
    #[cold]
    pub(crate) fn keep(&mut self, slot: u16) {
        self.set_phase(slot, Phase::BufferForCapsule);
        self.kept.push(Kept { slot, bytes: Vec::new(), whole: false });
    }

    fn kept(&mut self, slot: u16) -> Option<&mut Kept> {
        self.kept.iter_mut().find(|k| k.slot == slot)
    }

    /// More of the data that is kept for `slot`.
    #[cold]
    pub(crate) fn keep_bytes(&mut self, slot: u16, bytes: &[u8]) {
        if let Some(k) = self.kept(slot) {
            k.bytes.extend_from_slice(bytes);
        }
    }

    /// The capsule of `slot` has ended.
    #[cold]
    pub(crate) fn kept_whole(&mut self, slot: u16) {
        if let Some(k) = self.kept(slot) {
            k.whole = true;
        }
    }

    /// Whether all of the data of `slot` is kept.
    pub(crate) fn is_kept_whole(&self, slot: u16) -> bool {
        self.kept.iter().any(|k| k.slot == slot && k.whole)
    }

    /// What is kept for `slot`, which has its buffer now or ended, and whether the capsule has ended.
    #[cold]
    pub(crate) fn take_kept(&mut self, slot: u16) -> Option<(Vec<u8>, bool)> {
        let i = self.kept.iter().position(|k| k.slot == slot)?;
        self.set_phase(slot, Phase::Idle);
        let k = self.kept.swap_remove(i);
        Some((k.bytes, k.whole))
    }

    /// The command in `slot` ended. False: its data was still to come, which from now on belongs to nobody.
    #[inline]
    pub(crate) fn ended(&mut self, slot: u16) -> bool {
        if !self.kept.is_empty() {
            self.take_kept(slot);
        }
        if self.lent != 0 {
            self.unlend(slot);
        }
        if self.awaiting == 0 || self.phase(slot) != Phase::Data {
            return true;
        }
        self.set_phase(slot, Phase::Idle);
        false
    }

    /// The command in `slot` will be lent `len` bytes.
    #[inline]
    pub(crate) fn lend(&mut self, slot: u16, len: u32) {
        if let Some(s) = self.all.get_mut(usize::from(slot)) {
            (s.phase, s.len) = (Phase::Lent, len);
            self.lent += len as usize;
        }
    }

    /// Bytes that commands are lent which have not been answered.
    pub(crate) fn lent(&self) -> usize {
        self.lent
    }

    /// The command in `slot` was answered, or is not lent anything after all.
    #[inline]
    pub(crate) fn unlend(&mut self, slot: u16) {
        if let Some(s) = self.all.get_mut(usize::from(slot))
            && s.phase == Phase::Lent
        {
            s.phase = Phase::Idle;
            self.lent -= s.len as usize;
        }
    }

    /// The command in `slot` needs `len` bytes from the host.
    pub(crate) fn expect(&mut self, slot: u16, cid: u16, len: u32) {
        self.set_phase(slot, Phase::Idle);
        if let Some(s) = self.get(slot) {
            *s = Slot { cid, len, ..IDLE };
        }
    }

    /// Whether data that an R2T asked for is awaited.
    pub(crate) fn awaits_data(&self) -> bool {
        self.awaiting > 0
    }

    /// The host has taken more of what is sent to it than the first `taken` bytes, which was all when this was last looked at: for R2Ts
    /// beyond them its time begins now.
    pub(crate) fn r2ts_moved(&mut self, taken: u64, now: u64) {
        for s in self.all.iter_mut().filter(|s| s.phase == Phase::Data && s.r2t_end > taken) {
            s.stamp = now;
        }
    }

    /// Data for `slot` came.
    #[inline]
    pub(crate) fn data_came(&mut self, slot: u16, now: u64) {
        if let Some(s) = self.all.get_mut(usize::from(slot)) {
            s.stamp = now;
            self.came = Some(self.came.map_or(s.r2t_end, |c| c.min(s.r2t_end)));
        }
    }

    /// What was asked for later comes behind what came: its time begins now. It does not last for ever, since each R2T has an end; and an
    /// earlier one gains nothing by it.
    pub(crate) fn follow_data(&mut self, now: u64) {
        if let Some(came) = self.came.take() {
            for s in self.all.iter_mut().filter(|s| s.phase == Phase::Data && s.r2t_end > came) {
                s.stamp = now;
            }
        }
    }

    /// Whether a command's data has not come since `before`.
    pub(crate) fn data_overdue(&self, before: u64) -> bool {
        self.awaiting > 0 && self.all.iter().any(|s| s.phase == Phase::Data && s.stamp < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_data_goes_with_its_slot() {
        let mut s = Slots::new(3);
        s.keep(1);
        s.keep(2);
        s.keep_bytes(1, b"ab");
        s.keep_bytes(2, b"x");
        s.keep_bytes(1, b"c");
        assert!(!s.is_kept_whole(1));
        s.kept_whole(1);
        assert!(s.is_kept_whole(1) && !s.is_kept_whole(2));
        assert_eq!(s.take_kept(1), Some((b"abc".to_vec(), true)));
        assert_eq!((s.phase(1), s.phase(2)), (Phase::Idle, Phase::BufferForCapsule));
        assert!(s.ended(2));
        assert_eq!((s.take_kept(2), s.phase(2)), (None, Phase::Idle));
    }

    #[test]
    fn the_time_for_data_begins_anew_while_the_r2t_is_on_its_way() {
        let mut s = Slots::new(3);
        for (slot, end) in [(0, 1000), (1, 3000)] {
            s.expect(slot, slot, 512);
            s.set_phase(slot, Phase::Data);
            (s.get(slot).unwrap().stamp, s.get(slot).unwrap().r2t_end) = (10, end);
        }
        s.r2ts_moved(1000, 50);
        assert_eq!((s.all[0].stamp, s.all[1].stamp, s.all[2].stamp), (10, 50, 0), "the host had the first one");
        assert!(s.awaits_data() && s.data_overdue(11));
        s.set_phase(0, Phase::Idle);
        assert!(!s.data_overdue(50) && s.data_overdue(51));
    }

    #[test]
    fn data_of_one_r2t_gives_time_to_those_behind_it_and_to_none_before_it() {
        const LIMIT: u64 = 30;
        let mut s = Slots::new(128);
        for slot in 0..128 {
            s.expect(slot, slot, 512);
            s.set_phase(slot, Phase::Data);
            // Slots are given out in any order.
            (s.get(slot).unwrap().stamp, s.get(slot).unwrap().r2t_end) = (100, 10_000 - u64::from(slot));
        }
        // One of them takes almost as long as all have.
        let mut now = 100;
        for slot in (0..128).rev() {
            now += LIMIT - 1;
            s.data_came(slot, now);
            s.set_phase(slot, Phase::Idle);
            s.follow_data(now);
            assert!(!s.data_overdue(now - LIMIT), "slot {slot}");
        }
        for (slot, end) in [(0, 1000), (1, 2000)] {
            s.expect(slot, slot, 512);
            s.set_phase(slot, Phase::Data);
            (s.get(slot).unwrap().stamp, s.get(slot).unwrap().r2t_end) = (now, end);
        }
        for _ in 0..10 {
            now += LIMIT / 5;
            s.data_came(1, now);
            s.follow_data(now);
        }
        assert!(s.data_overdue(now - LIMIT), "the first one's never came");
        s.set_phase(0, Phase::Idle);
        assert!(!s.data_overdue(now - LIMIT));
        s.follow_data(now + LIMIT);
        assert!(s.data_overdue(now + 1), "nothing came meanwhile");
    }

    #[test]
    fn only_slots_that_wait_for_data_are_overdue() {
        let mut s = Slots::new(2);
        assert!(!s.data_overdue(u64::MAX));
        s.expect(1, 7, 4096);
        s.set_phase(1, Phase::Data);
        s.get(1).unwrap().stamp = 100;
        assert!(!s.data_overdue(100));
        assert!(s.data_overdue(101));
        s.set_phase(1, Phase::Idle);
        assert!(!s.data_overdue(u64::MAX));
        s.set_phase(1, Phase::Data);
        s.expect(1, 8, 512);
        assert!(!s.data_overdue(u64::MAX), "another command's");
        assert_eq!((s.phase(1), s.phase(99)), (Phase::Idle, Phase::Idle));
    }
}
