//! What a volatile device holds that its base does not have yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_reactor::sim::Random;

use crate::io::IoRef;

/// Chances in a thousand that a written block goes on to the base at once. Which one holds is drawn anew with each flush: nothing
/// reaches the base, little, half, or nearly all.
const THROUGH: [u32; 4] = [0, 100, 500, 900];

/// Blocks that are not on the base, each with its latest content.
pub(super) struct Cache {
    blocks: BTreeMap<u64, Entry>,
    block_size: usize,
    limit: usize,
    /// Order of the writes so far.
    version: u64,
    random: Random,
    chance: u32,
    /// Blocks that are to be written through.
    eager: BTreeSet<u64>,
    /// Somebody is about to write `eager` through.
    attended: bool,
}

struct Entry {
    /// The oldest version that the base may lack.
    first: u64,
    version: u64,
    data: Arc<[u8]>,
}

/// A block on its way to the base.
pub(super) struct Piece {
    pub(super) lba: u64,
    pub(super) data: Arc<[u8]>,
    version: u64,
}

impl Cache {
    pub(super) fn new(block_size: usize, limit: usize, seed: u64) -> Cache {
        let mut cache = Cache {
            blocks: BTreeMap::new(),
            block_size,
            limit,
            version: 0,
            random: Random::new(seed),
            chance: 0,
            eager: BTreeSet::new(),
            attended: false,
        };
        cache.draw();
        cache
    }

    fn draw(&mut self) {
        self.chance = THROUGH[self.random.below(THROUGH.len() as u64) as usize];
    }

    /// True if so many blocks more may be held. One request is always taken when nothing else is there.
    pub(super) fn has_room(&self, blocks: u32) -> bool {
        self.blocks.is_empty() || (self.blocks.len() + blocks as usize) * self.block_size <= self.limit
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.len() * self.block_size
    }

    /// Takes what a write brings. True if the caller has to see to it that `eager` is written through.
    pub(super) fn write(&mut self, io: &IoRef) -> bool {
        self.version += 1;
        let mut data = Vec::with_capacity(io.buf_len());
        io.segments().for_each(|s| data.extend_from_slice(s));
        for (lba, block) in (io.lba()..).zip(data.chunks_exact(self.block_size)).take(io.nblocks() as usize) {
            let (version, data) = (self.version, Arc::from(block));
            let e = self.blocks.entry(lba).or_insert(Entry { first: version, version, data: Arc::clone(&data) });
            (e.version, e.data) = (version, data);
            if self.random.chance(self.chance) {
                self.eager.insert(lba);
            }
        }
        !self.eager.is_empty() && !std::mem::replace(&mut self.attended, true)
    }

    /// The blocks of a range that are held.
    pub(super) fn held(&self, lba: u64, n: u32) -> Vec<(u64, Arc<[u8]>)> {
        self.blocks.range(lba..lba + u64::from(n)).map(|(&l, e)| (l, e.data.clone())).collect()
    }

    /// The point in time that a flush submitted now covers.
    pub(super) fn mark(&mut self) -> u64 {
        self.draw();
        self.version
    }

    /// What was written until `mark` and is not on the base.
    pub(super) fn until(&self, mark: u64) -> Vec<Piece> {
        self.pick(|_, e| e.first <= mark)
    }

    /// What of a range is not on the base.
    pub(super) fn within(&self, lba: u64, n: u32) -> Vec<Piece> {
        self.blocks.range(lba..lba + u64::from(n)).map(|(&l, e)| e.piece(l)).collect()
    }

    /// The blocks to be written through.
    pub(super) fn take_eager(&mut self) -> Vec<Piece> {
        self.attended = false;
        let eager = std::mem::take(&mut self.eager);
        eager.into_iter().filter_map(|l| self.blocks.get(&l).map(|e| e.piece(l))).collect()
    }

    /// The half of all blocks that have waited longest, in order of place.
    pub(super) fn oldest(&self) -> Vec<Piece> {
        let mut ages: Vec<u64> = self.blocks.values().map(|e| e.first).collect();
        ages.sort_unstable();
        let Some(&median) = ages.get(ages.len() / 2) else { return Vec::new() };
        self.pick(|_, e| e.first <= median)
    }

    fn pick(&self, wanted: impl Fn(u64, &Entry) -> bool) -> Vec<Piece> {
        self.blocks.iter().filter(|(l, e)| wanted(**l, e)).map(|(&l, e)| e.piece(l)).collect()
    }

    /// The base has this.
    pub(super) fn written(&mut self, piece: &Piece) {
        self.forget(piece.lba, piece.version);
    }

    /// The base deallocated the range after everything written until `mark`.
    pub(super) fn unmapped(&mut self, lba: u64, n: u32, mark: u64) {
        let all: Vec<u64> = self.blocks.range(lba..lba + u64::from(n)).map(|(&l, _)| l).collect();
        all.into_iter().for_each(|l| self.forget(l, mark));
    }

    fn forget(&mut self, lba: u64, version: u64) {
        if let Some(e) = self.blocks.get_mut(&lba) {
            if e.version <= version {
                self.blocks.remove(&lba);
            } else {
                e.first = e.first.max(version + 1);
            }
        }
    }
}

impl Entry {
    fn piece(&self, lba: u64) -> Piece {
        Piece { lba, data: self.data.clone(), version: self.version }
    }
}
