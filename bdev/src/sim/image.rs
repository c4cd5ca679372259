//! What a simulated member remembers, and what it forgets when power fails.
//!
//! Every block has its durable content and a list of versions that are not durable: completed, or submitted and not completed.

use std::collections::BTreeSet;
use std::sync::Arc;

use longshore_reactor::sim::Random;

/// Content of one block.
#[derive(Clone)]
pub enum Content {
    /// The same byte all over.
    Fill(u8),
    /// Bytes from `.1` on in what a write brought.
    Data(Arc<[u8]>, u32),
}

impl Content {
    /// Copies the content to `to`, which is a block long.
    pub fn copy_to(&self, to: &mut [u8]) {
        match self {
            Content::Fill(byte) => to.fill(*byte),
            Content::Data(data, at) => to.copy_from_slice(&data[*at as usize..*at as usize + to.len()]),
        }
    }
}

/// Names a write, from its submission to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId(u64);

/// A version that is not durable.
#[derive(Clone)]
struct Version {
    write: WriteId,
    content: Content,
    /// Its place in the order of completions; `None`: it has not completed.
    completed: Option<u64>,
}

#[derive(Clone)]
struct Block {
    durable: Content,
    /// Place of the durable content in the order of completions.
    since: u64,
    /// In order of submission.
    newer: Vec<Version>,
    /// The durable content cannot be read any more: reads fail until the block is written, and after a crash that loses that
    /// write they fail again.
    unreadable: bool,
}

/// The content of one member, which outlives crashes.
#[derive(Clone)]
pub struct Image {
    block_size: usize,
    volatile: bool,
    blocks: Vec<Block>,
    /// Blocks that have versions which are not durable.
    unsettled: BTreeSet<usize>,
    writes: u64,
    completions: u64,
}

impl Image {
    /// A member of so many zeroed blocks. `volatile`: completed writes are lost at a crash unless they are flushed.
    pub fn new(block_size: usize, blocks: usize, volatile: bool) -> Image {
        let b = Block { durable: Content::Fill(0), since: 0, newer: Vec::new(), unreadable: false };
        Image { block_size, volatile, blocks: vec![b; blocks], unsettled: BTreeSet::new(), writes: 0, completions: 0 }
    }

    /// Another member of the same kind, with zeroes. Writes on their way to this one do not reach it.
    pub fn blank(&self) -> Image {
        Image { writes: self.writes, ..Image::new(self.block_size, self.blocks.len(), self.volatile) }
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True if there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// True if completed writes are lost at a crash unless they are flushed.
    pub fn volatile(&self) -> bool {
        self.volatile
    }

    /// A write is on its way: from now on a crash may leave any of its blocks.
    pub fn submit(&mut self, lba: usize, contents: impl IntoIterator<Item = Content>) -> WriteId {
        self.writes += 1;
        let write = WriteId(self.writes);
        for (at, content) in (lba..).zip(contents) {
            self.blocks[at].newer.push(Version { write, content, completed: None });
            self.unsettled.insert(at);
        }
        write
    }

    /// The write of `n` blocks at `lba` has happened; with `durable`, it survives any crash.
    pub fn complete(&mut self, write: WriteId, lba: usize, n: usize, durable: bool) {
        self.completions += 1;
        let now = self.completions;
        for at in lba..lba + n {
            let b = &mut self.blocks[at];
            if let Some(v) = b.newer.iter_mut().find(|v| v.write == write) {
                v.completed = Some(now);
            }
            if durable || !self.volatile {
                self.settle(at, now);
            }
        }
    }

    /// What these blocks have from now on, whatever crashes. Nothing is under way.
    pub fn put(&mut self, lba: usize, contents: impl IntoIterator<Item = Content>) {
        for (at, content) in (lba..).zip(contents) {
            let b = &mut self.blocks[at];
            (b.durable, b.unreadable) = (content, false);
            b.newer.clear();
        }
    }

    /// The write failed and never happens.
    pub fn give_up(&mut self, write: WriteId, lba: usize, n: usize) {
        for at in lba..lba + n {
            self.blocks[at].newer.retain(|v| v.write != write);
        }
    }

    /// The point in time that a flush submitted now covers.
    pub fn mark(&self) -> u64 {
        self.completions
    }

    /// A flush that was submitted at `mark` has happened.
    pub fn flushed(&mut self, mark: u64) {
        for at in std::mem::take(&mut self.unsettled) {
            self.settle(at, mark);
            if !self.blocks[at].newer.is_empty() {
                self.unsettled.insert(at);
            }
        }
    }

    /// The latest version completed until `mark` is durable, and older ones are gone.
    fn settle(&mut self, at: usize, mark: u64) {
        let b = &mut self.blocks[at];
        let latest = b.newer.iter().filter_map(|v| v.completed.filter(|&c| c <= mark)).max();
        if let Some(latest) = latest.filter(|&l| l > b.since)
            && let Some(v) = b.newer.iter().find(|v| v.completed == Some(latest))
        {
            (b.durable, b.since, b.unreadable) = (v.content.clone(), latest, false);
        }
        let since = b.since;
        b.newer.retain(|v| v.completed.is_none_or(|c| c > since));
    }

    /// What a reader sees now. False: the block cannot be read.
    pub fn read(&self, at: usize, to: &mut [u8]) -> bool {
        let b = &self.blocks[at];
        let latest = b.newer.iter().filter(|v| v.completed.is_some()).max_by_key(|v| v.completed);
        latest.map_or(&b.durable, |v| &v.content).copy_to(to);
        latest.is_some() || !b.unreadable
    }

    /// Reads of this block fail until it is written.
    pub fn spoil(&mut self, at: usize) {
        self.damage(at).unreadable = true;
    }

    /// This block reads as `content` from now on, and nothing says so.
    pub fn rot(&mut self, at: usize, content: Content) {
        self.damage(at).durable = content;
    }

    /// What was written to the block is gone; what is on its way is not.
    fn damage(&mut self, at: usize) -> &mut Block {
        let since = self.completions;
        let b = &mut self.blocks[at];
        b.newer.retain(|v| v.completed.is_none());
        b.since = since;
        b
    }

    /// True if reads of a block in the range fail.
    pub fn spoiled(&self, lba: usize, n: usize) -> bool {
        let fails = |b: &Block| b.unreadable && b.newer.iter().all(|v| v.completed.is_none());
        self.blocks[lba..lba + n].iter().any(fails)
    }

    /// True if a crash may leave a block that cannot be read.
    pub fn is_damaged(&self) -> bool {
        self.blocks.iter().any(|b| b.unreadable)
    }

    /// Power fails: every block keeps any one of its durable and its not yet durable versions.
    pub fn crash(&mut self, random: &mut Random) {
        // All, none, the latest, or any: each shows other bugs.
        let mode = random.below(5);
        for at in std::mem::take(&mut self.unsettled) {
            let b = &mut self.blocks[at];
            let newer = std::mem::take(&mut b.newer);
            let n = newer.len() as u64;
            let kept = match mode {
                0 => 0,
                1 => n,
                2 => newer.iter().rposition(|v| v.completed.is_some()).map_or(0, |i| i as u64 + 1),
                3 => random.below(n + 1),
                _ if random.chance(800) => n,
                _ => random.below(n + 1),
            };
            if kept > 0 {
                b.durable = newer[kept as usize - 1].content.clone();
                b.unreadable = false;
            }
            b.since = 0;
        }
        self.blocks.iter_mut().for_each(|b| b.since = 0);
        self.completions = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(d: &mut Image, at: usize, v: u8) -> WriteId {
        d.submit(at, [Content::Fill(v)])
    }

    fn done(d: &mut Image, at: usize, v: u8, fua: bool) {
        let w = put(d, at, v);
        d.complete(w, at, 1, fua);
    }

    fn byte(d: &Image, at: usize) -> u8 {
        let mut b = [0; 512];
        d.read(at, &mut b);
        b[0]
    }

    /// Every content that a crash may leave.
    fn outcomes(d: &Image, at: usize) -> Vec<u8> {
        let seen: BTreeSet<u8> = (0..300)
            .map(|seed| {
                let mut d = d.clone();
                d.crash(&mut Random::new(seed));
                byte(&d, at)
            })
            .collect();
        seen.into_iter().collect()
    }

    #[test]
    fn a_crash_leaves_any_version_that_is_not_durable_or_the_durable_one() {
        let mut d = Image::new(512, 8, true);
        done(&mut d, 0, 1, false);
        done(&mut d, 0, 2, false);
        put(&mut d, 0, 3);
        assert_eq!((byte(&d, 0), outcomes(&d, 0)), (2, vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_was_submitted() {
        let mut d = Image::new(512, 8, true);
        done(&mut d, 0, 1, false);
        let late = put(&mut d, 1, 5);
        let mark = d.mark();
        done(&mut d, 0, 2, false);
        d.complete(late, 1, 1, false);
        d.flushed(mark);
        assert_eq!((outcomes(&d, 0), outcomes(&d, 1)), (vec![1, 2], vec![0, 5]));
        d.flushed(d.mark());
        assert_eq!((outcomes(&d, 0), outcomes(&d, 1)), (vec![2], vec![5]));
    }

    #[test]
    fn fua_makes_its_own_write_durable_and_no_older_one_replaces_it() {
        let mut d = Image::new(512, 8, true);
        done(&mut d, 0, 1, false);
        done(&mut d, 1, 1, false);
        done(&mut d, 0, 2, true);
        assert_eq!((outcomes(&d, 0), outcomes(&d, 1)), (vec![2], vec![0, 1]));
    }

    #[test]
    fn without_a_volatile_cache_what_is_completed_is_durable_and_what_is_under_way_is_anything() {
        let mut d = Image::new(512, 8, false);
        done(&mut d, 0, 1, false);
        put(&mut d, 0, 2);
        assert_eq!(outcomes(&d, 0), [1, 2]);
    }

    #[test]
    fn a_block_that_cannot_be_read_can_be_written() {
        let mut d = Image::new(512, 8, true);
        d.spoil(3);
        assert!(!d.read(3, &mut [0; 512]) && d.spoiled(2, 2) && !d.spoiled(4, 2));
        done(&mut d, 3, 1, false);
        assert!(d.read(3, &mut [0; 512]));
    }

    #[test]
    fn a_crash_that_loses_what_mended_a_block_leaves_it_unreadable() {
        let mut d = Image::new(512, 8, true);
        d.spoil(3);
        done(&mut d, 3, 1, false);
        assert!(d.is_damaged() && !d.spoiled(3, 1));
        let readable: BTreeSet<bool> = (0..50)
            .map(|seed| {
                let mut d = d.clone();
                d.crash(&mut Random::new(seed));
                let readable = d.read(3, &mut [0; 512]);
                assert!(!readable || byte(&d, 3) == 1, "never what was there before");
                readable
            })
            .collect();
        assert_eq!(readable.len(), 2, "lost or kept");
        d.flushed(d.mark());
        assert!(!d.is_damaged());
    }

    #[test]
    fn rot_changes_a_block_and_nothing_older_comes_back() {
        let mut d = Image::new(512, 8, true);
        done(&mut d, 0, 1, false);
        d.rot(0, Content::Fill(9));
        assert_eq!(outcomes(&d, 0), [9]);
        done(&mut d, 0, 2, true);
        assert_eq!(outcomes(&d, 0), [2]);
    }
}
