//! What a simulated file remembers, and what it forgets in a crash.
//!
//! A write becomes visible when it completes and durable when an `fdatasync` that was submitted after that completes, or at once
//! if it carried `RWF_DSYNC`. When write-back from the page cache fails, the write is lost, which every open descriptor is told
//! once, by a sync or a write with `RWF_DSYNC`; one that is opened after somebody was told is not. What is not durable at a crash survives or not sector by sector, in any combination.

use super::random::Random;

/// The unit that is written whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A write that is visible but not durable.
struct Extent {
    /// Order of visibility.
    version: u64,
    off: usize,
    len: usize,
    /// `None`: zeroes.
    data: Option<Vec<u8>>,
    /// A failed fdatasync dropped it from the cache's list of what to write: no later one saves it.
    abandoned: bool,
}

/// A write on its way: offset, length, data (`None`: zeroes).
pub(crate) type Flying = (usize, usize, Option<Vec<u8>>);

/// One file.
pub(crate) struct Disk {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Per sector, the version that is durable.
    saved: Vec<u64>,
    cached: Vec<Extent>,
    version: u64,
    /// Failures of write-back so far.
    lost: u64,
    /// Somebody was told of the last one.
    told: bool,
}

impl Disk {
    pub(crate) fn new(len: usize) -> Self {
        Disk {
            current: vec![0; len],
            durable: vec![0; len],
            saved: vec![0; len.div_ceil(SECTOR)],
            cached: Vec::new(),
            version: 0,
            lost: 0,
            told: true,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.current.len()
    }

    /// Changes the size, durably.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.durable.resize(len, 0);
        self.saved.resize(len.div_ceil(SECTOR), 0);
    }

    pub(crate) fn read(&self, off: usize, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len().saturating_sub(off));
        to[..n].copy_from_slice(&self.current[off..off + n]);
        n
    }

    /// Makes a write visible; `data` `None` writes zeroes. Grows the file as a write past its end does.
    pub(crate) fn write(&mut self, off: usize, len: usize, data: Option<Vec<u8>>, dsync: bool) {
        if off + len > self.len() {
            self.set_len(off + len);
        }
        self.version += 1;
        let e = Extent { version: self.version, off, len, data, abandoned: false };
        e.apply(&mut self.current, |_| true);
        match dsync {
            true => Self::save(&mut self.durable, &mut self.saved, &e),
            false => self.cached.push(e),
        }
    }

    /// The point in time an `fdatasync` submitted now will cover.
    pub(crate) fn watermark(&self) -> u64 {
        self.version
    }

    /// An `fdatasync` that was submitted at `watermark` completes.
    pub(crate) fn synced(&mut self, watermark: u64) {
        let (durable, saved) = (&mut self.durable, &mut self.saved);
        self.cached.retain(|e| {
            let save = e.version <= watermark && !e.abandoned;
            if save {
                Self::save(durable, saved, e);
            }
            !save
        });
    }

    /// It failed: what it covered may never become durable.
    pub(crate) fn sync_failed(&mut self, watermark: u64) {
        self.cached.iter_mut().filter(|e| e.version <= watermark).for_each(|e| e.abandoned = true);
    }

    /// Write-back of one cached write fails: it never becomes durable by a sync.
    pub(crate) fn write_back_failed(&mut self, random: &mut Random) {
        let n = self.cached.len() as u64;
        if n != 0 {
            self.cached[random.below(n) as usize].abandoned = true;
            self.lost += 1;
            self.told = false;
        }
    }

    /// What a descriptor that is opened now counts as told.
    pub(crate) fn told_at_open(&self) -> u64 {
        if self.told { self.lost } else { self.lost - 1 }
    }

    /// True if a descriptor that was told `known` failures is told of more now.
    pub(crate) fn tell(&mut self, known: &mut u64) -> bool {
        let news = *known != self.lost;
        self.told |= news;
        *known = self.lost;
        news
    }

    /// Power fails. `in_flight` are writes that have not completed.
    pub(crate) fn crash(&mut self, in_flight: Vec<Flying>, random: &mut Random) {
        for (off, len, data) in in_flight {
            if off + len <= self.len() {
                self.version += 1;
                self.cached.push(Extent { version: self.version, off, len, data, abandoned: false });
            }
        }
        // All, none, whole writes, or single sectors: each mix of the four shows other bugs.
        let mode = random.below(4);
        for e in std::mem::take(&mut self.cached) {
            let (keep, tear) = match mode {
                0 => (false, false),
                1 => (true, false),
                2 => (random.chance(500), false),
                _ => (random.chance(700), random.chance(700)),
            };
            if !keep {
                continue;
            }
            let (durable, saved) = (&mut self.durable, &mut self.saved);
            e.apply(durable, |sector| {
                let write = e.version > saved[sector] && (!tear || random.chance(500));
                if write {
                    saved[sector] = e.version;
                }
                write
            });
        }
        self.current.clone_from(&self.durable);
    }

    fn save(durable: &mut [u8], saved: &mut [u64], e: &Extent) {
        e.apply(durable, |sector| {
            let newer = e.version > saved[sector];
            if newer {
                saved[sector] = e.version;
            }
            newer
        });
    }
}

impl Extent {
    /// Writes the sectors that `wanted` picks.
    fn apply(&self, to: &mut [u8], mut wanted: impl FnMut(usize) -> bool) {
        let end = (self.off + self.len).min(to.len());
        let mut at = self.off;
        while at < end {
            let sector = at / SECTOR;
            let stop = ((sector + 1) * SECTOR).min(end);
            if wanted(sector) {
                match &self.data {
                    Some(d) => to[at..stop].copy_from_slice(&d[at - self.off..stop - self.off]),
                    None => to[at..stop].fill(0),
                }
            }
            at = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(d: &Disk, at: usize) -> u8 {
        let mut b = [0];
        d.read(at, &mut b);
        b[0]
    }

    fn put(d: &mut Disk, at: usize, v: u8, dsync: bool) {
        d.write(at, SECTOR, Some(vec![v; SECTOR]), dsync);
    }

    /// Every outcome of a crash over many seeds.
    fn outcomes(make: impl Fn() -> Disk, at: usize) -> Vec<u8> {
        let mut seen: Vec<u8> = (0..200)
            .map(|seed| {
                let mut d = make();
                d.crash(Vec::new(), &mut Random::new(seed));
                byte(&d, at)
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn an_unsynced_write_is_old_or_new_after_a_crash_and_a_synced_one_is_new() {
        let make = |sync: bool| {
            move || {
                let mut d = Disk::new(4096);
                put(&mut d, 0, 1, true);
                put(&mut d, 0, 2, false);
                if sync {
                    let w = d.watermark();
                    d.synced(w);
                }
                d
            }
        };
        assert_eq!(outcomes(make(false), 0), [1, 2]);
        assert_eq!(outcomes(make(true), 0), [2]);
    }

    #[test]
    fn a_sync_covers_only_what_completed_before_it_was_submitted() {
        let make = || {
            let mut d = Disk::new(4096);
            put(&mut d, 0, 1, false);
            let w = d.watermark();
            put(&mut d, 0, 2, false);
            put(&mut d, 512, 3, false);
            d.synced(w);
            d
        };
        assert_eq!(outcomes(make, 0), [1, 2]);
        assert_eq!(outcomes(make, 512), [0, 3]);
    }

    #[test]
    fn an_older_cached_write_never_replaces_a_newer_durable_one() {
        let make = || {
            let mut d = Disk::new(4096);
            put(&mut d, 0, 1, false);
            put(&mut d, 0, 2, true);
            d
        };
        assert_eq!(outcomes(make, 0), [2]);
        let mut d = make();
        let w = d.watermark();
        d.synced(w);
        d.crash(Vec::new(), &mut Random::new(0));
        assert_eq!(byte(&d, 0), 2);
    }

    #[test]
    fn what_a_failed_sync_covered_is_not_saved_by_a_later_one() {
        let make = || {
            let mut d = Disk::new(4096);
            put(&mut d, 0, 1, false);
            let w = d.watermark();
            d.sync_failed(w);
            d.synced(w);
            d
        };
        assert_eq!(byte(&make(), 0), 1, "still readable");
        assert_eq!(outcomes(make, 0), [0, 1]);
    }

    #[test]
    fn a_failed_write_back_is_told_to_each_descriptor_once_and_not_to_those_opened_later() {
        let mut d = Disk::new(4096);
        put(&mut d, 0, 1, false);
        let (mut a, mut b) = (d.told_at_open(), d.told_at_open());
        d.write_back_failed(&mut Random::new(0));
        let mut late = d.told_at_open();
        assert!(d.tell(&mut a) && !d.tell(&mut a));
        let mut later = d.told_at_open();
        assert!(d.tell(&mut b) && d.tell(&mut late) && !d.tell(&mut later));
    }

    #[test]
    fn a_write_in_flight_may_be_torn_at_sectors() {
        let mut torn = false;
        for seed in 0..200 {
            let mut d = Disk::new(4096);
            d.crash(vec![(0, 1024, Some(vec![9; 1024]))], &mut Random::new(seed));
            torn |= byte(&d, 0) != byte(&d, 512);
            assert_eq!((byte(&d, 0), byte(&d, 512)), (byte(&d, 511), byte(&d, 1023)), "sectors are whole");
        }
        assert!(torn);
    }
}
