//! What a device may answer: per block, the set of contents that are admissible.
//!
//! Each write of a block is a version with the moment of its submission and of its acknowledgement. A version is superseded by one
//! that was submitted after it was acknowledged. A read may return any version that no acknowledged one supersedes; after a crash, any
//! that no *durable* one supersedes: one that was written with FUA, or acknowledged before a flush was submitted that was acknowledged.
//! The first read after a recovery makes its answer the only one (invariant I3 of `docs/ec.md`): later crashes and losses change nothing.
//!
//! A block may be [given up](Oracle::give_up): whatever the next recovery finds there is what it has from then on.

/// Names what was written: different for every write. 0 stands for zeroes.
pub type Stamp = u64;

/// Moments are numbers of an order, not times.
type Moment = u64;

const NEVER: Moment = Moment::MAX;

#[derive(Clone, Debug)]
struct Version {
    id: u64,
    stamp: Stamp,
    submitted: Moment,
    acknowledged: Moment,
    durable: bool,
}

impl Version {
    fn supersedes(&self, older: &Version) -> bool {
        self.submitted > older.acknowledged
    }
}

/// Fills a block with what names the write and the place.
pub fn fill(block: &mut [u8], lba: u64, stamp: Stamp) {
    if stamp == 0 {
        return block.fill(0);
    }
    for (i, w) in block.chunks_exact_mut(8).enumerate() {
        w.copy_from_slice(&word(lba, stamp, i as u64).to_le_bytes());
    }
}

fn word(lba: u64, stamp: Stamp, i: u64) -> u64 {
    if i == 0 { stamp } else { (stamp ^ lba.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i) }
}

/// The write that a block is of.
///
/// # Errors
/// It is no whole block of one write at this place.
pub fn stamp_of(block: &[u8], lba: u64) -> Result<Stamp, String> {
    let first: [u8; 8] = block[..8].try_into().unwrap_or_default();
    let stamp = u64::from_le_bytes(first);
    let wrong = block.chunks_exact(8).enumerate().find(|(i, w)| {
        let want = if stamp == 0 { 0 } else { word(lba, stamp, *i as u64) };
        **w != want.to_le_bytes()
    });
    match wrong {
        None => Ok(stamp),
        Some((i, _)) => Err(format!("begins as stamp {stamp:#x} and is something else from byte {} on", i * 8)),
    }
}

/// A request that the oracle was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u64,
    at: Moment,
    lba: u64,
    n: u64,
}

/// The admissible contents of a device.
#[derive(Clone)]
pub struct Oracle {
    blocks: Vec<Vec<Version>>,
    now: Moment,
    stamps: Stamp,
    /// Reads under way, which may return what was superseded since they were submitted.
    reading: Vec<Moment>,
    /// Blocks that may have anything when they are read after a recovery.
    given_up: Vec<bool>,
    /// Blocks that were asked to be written since somebody asked for them.
    touched: Vec<bool>,
}

impl Oracle {
    /// A device of so many blocks, all zeroes.
    pub fn new(blocks: u64) -> Oracle {
        let zero = Version { id: 0, stamp: 0, submitted: 0, acknowledged: 0, durable: true };
        let n = blocks as usize;
        Oracle {
            blocks: vec![vec![zero]; n],
            now: 0,
            stamps: 0,
            reading: Vec::new(),
            given_up: vec![false; n],
            touched: vec![false; n],
        }
    }

    /// Blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn oldest_read(&self) -> Moment {
        self.reading.iter().copied().min().unwrap_or(NEVER)
    }

    /// A stamp that was not used yet.
    pub fn stamp(&mut self) -> Stamp {
        self.stamps += 1;
        self.stamps
    }

    /// A write is submitted; `stamp` 0 writes zeroes.
    pub fn write(&mut self, lba: u64, n: u64, stamp: Stamp) -> Ticket {
        let at = self.tick();
        self.touched[lba as usize..(lba + n) as usize].fill(true);
        for b in &mut self.blocks[lba as usize..(lba + n) as usize] {
            b.push(Version { id: at, stamp, submitted: at, acknowledged: NEVER, durable: false });
        }
        Ticket { id: at, at, lba, n }
    }

    /// It was acknowledged; `durable`: it has to survive any crash. Nothing is said of one that fails: it may have happened.
    pub fn written(&mut self, t: &Ticket, durable: bool) {
        let now = self.tick();
        let oldest = self.oldest_read();
        for b in &mut self.blocks[t.lba as usize..(t.lba + t.n) as usize] {
            if let Some(v) = b.iter_mut().find(|v| v.id == t.id) {
                (v.acknowledged, v.durable) = (now, durable);
            }
            prune(b, oldest);
        }
    }

    /// A flush is submitted.
    pub fn flush(&mut self) -> Ticket {
        let at = self.tick();
        Ticket { id: at, at, lba: 0, n: 0 }
    }

    /// It was acknowledged.
    pub fn flushed(&mut self, t: &Ticket) {
        let oldest = self.oldest_read();
        for b in &mut self.blocks {
            b.iter_mut().filter(|v| v.acknowledged < t.at).for_each(|v| v.durable = true);
            prune(b, oldest);
        }
    }

    /// A read is submitted.
    pub fn read(&mut self, lba: u64, n: u64) -> Ticket {
        let at = self.tick();
        self.reading.push(at);
        Ticket { id: at, at, lba, n }
    }

    /// It returned `data`.
    ///
    /// # Errors
    /// Which block may not have what it has, and what it may.
    pub fn returned(&mut self, t: &Ticket, data: &[u8]) -> Result<(), String> {
        self.reading.retain(|at| *at != t.at);
        let bs = data.len() / t.n as usize;
        for (lba, block) in (t.lba..t.lba + t.n).zip(data.chunks_exact(bs)) {
            let versions = &self.blocks[lba as usize];
            let ok = |v: &Version| !versions.iter().any(|w| w.acknowledged < t.at && w.supersedes(v));
            self.judge(lba, block, &ok)?;
        }
        Ok(())
    }

    fn judge(&self, lba: u64, block: &[u8], admissible: &dyn Fn(&Version) -> bool) -> Result<Stamp, String> {
        let versions = &self.blocks[lba as usize];
        let is = |stamp| versions.iter().any(|v| v.stamp == stamp && admissible(v));
        // What a block had that was given up.
        if versions.iter().any(|v| v.stamp & STRANGE != 0) && is(digest(block)) {
            return Ok(digest(block));
        }
        let found =
            stamp_of(block, lba).map_err(|why| format!("block {lba} {why}; {}", self.describe(lba, admissible)))?;
        if is(found) {
            return Ok(found);
        }
        Err(format!("block {lba} has stamp {found:#x}; {}", self.describe(lba, admissible)))
    }

    fn describe(&self, lba: u64, admissible: &dyn Fn(&Version) -> bool) -> String {
        let all = self.blocks[lba as usize].iter().map(|v| {
            let state = match (v.acknowledged, v.durable) {
                (NEVER, _) => "under way",
                (_, false) => "acknowledged",
                (_, true) => "durable",
            };
            let not = if admissible(v) { "" } else { ", superseded" };
            format!("{:#x} ({state}{not})", v.stamp)
        });
        format!("versions: {}", all.collect::<Vec<_>>().join(", "))
    }

    /// Power failed: what was under way may have happened or not, and nothing supersedes but what is durable.
    pub fn crashed(&mut self) {
        self.reading.clear();
        let oldest = self.oldest_read();
        for b in &mut self.blocks {
            prune(b, oldest);
            // What has not happened by now never will: it may be found, and is superseded by whatever is written next.
            let now = self.now;
            b.iter_mut().for_each(|v| v.acknowledged = v.acknowledged.min(now));
        }
        self.tick();
    }

    /// Whatever is found in these blocks after the next recovery is right.
    pub fn give_up(&mut self, blocks: impl IntoIterator<Item = u64>) {
        blocks.into_iter().for_each(|b| self.given_up[b as usize] = true);
    }

    /// Blocks that were asked to be written since this was called last.
    pub fn take_touched(&mut self) -> Vec<u64> {
        let all = self.touched.iter_mut().zip(0..);
        all.filter_map(|(t, block)| std::mem::take(t).then_some(block)).collect()
    }

    /// The device was recovered and all its blocks from `lba` on were read: what it has now is all that it may have from now on.
    /// Nothing else may be under way.
    ///
    /// # Errors
    /// As [`returned`](Oracle::returned), with what may be there after a crash.
    pub fn recovered(&mut self, lba: u64, data: &[u8], block_size: usize) -> Result<(), String> {
        for (lba, block) in (lba..).zip(data.chunks_exact(block_size)) {
            let versions = &self.blocks[lba as usize];
            let ok = |v: &Version| !versions.iter().any(|w| w.durable && w.supersedes(v));
            let stamp = match std::mem::take(&mut self.given_up[lba as usize]) {
                true => stamp_of(block, lba).unwrap_or_else(|_| digest(block)),
                false => self.judge(lba, block, &ok)?,
            };
            let b = &mut self.blocks[lba as usize];
            b.truncate(1);
            b[0] = Version { id: 0, stamp, submitted: 0, acknowledged: 0, durable: true };
        }
        Ok(())
    }
}

/// No stamp of a write has this bit.
const STRANGE: Stamp = 1 << 63;

/// Stands for content that no write brought.
fn digest(block: &[u8]) -> Stamp {
    let mix = |h: u64, b: &[u8]| {
        (h ^ u64::from_le_bytes(b.try_into().unwrap_or_default())).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    let sum = block.chunks_exact(8).fold(0x5a1, |h, b| mix(h, b).rotate_left(29));
    sum | STRANGE
}

/// Forgets versions that nothing can bring back.
fn prune(b: &mut Vec<Version>, oldest_read: Moment) {
    // A durable version was acknowledged: it supersedes for reads that came later.
    let durable = b.iter().filter(|v| v.durable && v.acknowledged < oldest_read);
    let Some(latest) = durable.map(|v| v.submitted).max() else { return };
    b.retain(|v| v.acknowledged >= latest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lba: u64, stamp: Stamp) -> Vec<u8> {
        let mut b = vec![0; 512];
        fill(&mut b, lba, stamp);
        b
    }

    /// The stamps that block 0 may have now, as a read sees it.
    fn readable(o: &Oracle) -> Vec<Stamp> {
        let mut o = o.clone();
        let t = o.read(0, 1);
        (0..10).filter(|&s| o.clone().returned(&t, &block(0, s)).is_ok()).collect()
    }

    fn after_crash(o: &Oracle) -> Vec<Stamp> {
        let mut o = o.clone();
        o.crashed();
        (0..10).filter(|&s| o.clone().recovered(0, &block(0, s), 512).is_ok()).collect()
    }

    #[test]
    fn an_acknowledged_write_is_read_and_until_it_is_durable_a_crash_may_undo_it() {
        let mut o = Oracle::new(2);
        let a = o.write(0, 1, 1);
        assert_eq!((readable(&o), after_crash(&o)), (vec![0, 1], vec![0, 1]));
        o.written(&a, false);
        assert_eq!((readable(&o), after_crash(&o)), (vec![1], vec![0, 1]));
        let f = o.flush();
        let b = o.write(0, 1, 2);
        o.written(&b, false);
        o.flushed(&f);
        assert_eq!((readable(&o), after_crash(&o)), (vec![2], vec![1, 2]));
        let c = o.write(0, 1, 3);
        o.written(&c, true);
        assert_eq!((readable(&o), after_crash(&o)), (vec![3], vec![3]));
    }

    #[test]
    fn writes_of_one_block_at_the_same_time_end_in_either_order() {
        let mut o = Oracle::new(2);
        let (a, b) = (o.write(0, 1, 1), o.write(0, 1, 2));
        o.written(&a, true);
        o.written(&b, true);
        assert_eq!((readable(&o), after_crash(&o)), (vec![1, 2], vec![1, 2]));
    }

    #[test]
    fn a_read_that_was_under_way_while_a_write_ended_may_return_what_was_before() {
        let mut o = Oracle::new(2);
        let r = o.read(0, 1);
        let a = o.write(0, 1, 1);
        o.written(&a, false);
        assert!(o.clone().returned(&r, &block(0, 0)).is_ok() && o.returned(&r, &block(0, 1)).is_ok());
    }

    #[test]
    fn what_was_read_first_after_a_recovery_is_the_only_answer_after_further_crashes() {
        let mut o = Oracle::new(2);
        let a = o.write(0, 1, 1);
        o.written(&a, false);
        o.crashed();
        assert_eq!(after_crash(&o), [0, 1]);
        assert!(o.recovered(0, &block(0, 0), 512).is_ok());
        assert_eq!((readable(&o), after_crash(&o)), (vec![0], vec![0]));
    }

    #[test]
    fn a_torn_or_misplaced_block_is_told() {
        let mut o = Oracle::new(2);
        let a = o.write(0, 2, 1);
        o.written(&a, true);
        let r = o.read(0, 2);
        assert!(o.returned(&r, &[block(0, 1), block(1, 1)].concat()).is_ok());
        let why = o.returned(&r, &[block(0, 1), block(0, 1)].concat()).unwrap_err();
        assert!(why.starts_with("block 1 begins as stamp 0x1"), "{why}");
        let torn = [&block(0, 1)[..256], &block(0, 2)[256..], &block(1, 1)].concat();
        assert!(o.returned(&r, &torn).unwrap_err().contains("something else from byte 256"));
    }

    #[test]
    fn a_block_that_was_given_up_has_what_is_found_there_next_and_nothing_else_from_then_on() {
        let mut o = Oracle::new(2);
        let a = o.write(0, 2, 1);
        o.written(&a, true);
        assert_eq!((o.take_touched(), o.take_touched()), (vec![0, 1], vec![]));
        o.give_up([0]);
        o.crashed();
        let torn = [&block(0, 1)[..256], &block(0, 2)[256..]].concat();
        assert!(o.recovered(0, &[torn.clone(), block(1, 1)].concat(), 512).is_ok());
        let r = o.read(0, 1);
        assert!(o.returned(&r, &torn).is_ok() && o.returned(&r, &block(0, 1)).is_err());
        o.crashed();
        assert!(o.clone().recovered(0, &block(0, 2), 512).is_err() && o.recovered(0, &torn, 512).is_ok());
    }
}
