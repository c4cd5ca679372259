//! What verification writes into each block, and what it makes of a block that it reads.
//!
//! Each 512 bytes ("sector") say where they belong and which write they come from, and the rest of the sector follows from
//! that: a block of an older write, a block of another place, a block of two writes and a damaged block are told apart.

use std::fmt;

/// First word of each sector.
const MAGIC: u64 = 0x4c53_4e53_5645_5249;
/// Bytes that carry a stamp of their own.
const SECTOR: usize = 512;

/// Which write a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Seed of the run: data of another run is foreign.
    pub(crate) seed: u64,
    /// Block address.
    pub(crate) lba: u64,
    /// Number of the write among those of its place, from 1.
    pub(crate) generation: u64,
}

/// What a block turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The block as it was written for this place by this generation.
    Whole(u64),
    /// Sectors of several generations of this place, in order of the sectors; 0 where a sector is not ours.
    Torn(Vec<u64>),
    /// A block of ours that belongs to another place.
    Misplaced {
        /// Where it belongs.
        lba: u64,
        /// Its generation there.
        generation: u64,
    },
    /// The stamp is right, what follows is not: first wrong byte.
    Damaged {
        /// The generation that the sector claims.
        generation: u64,
        /// Offset in the block of the first wrong byte.
        at: usize,
    },
    /// All zeroes.
    Zero,
    /// Not written by this run.
    Foreign,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Whole(g) => write!(f, "generation {g}"),
            Found::Torn(g) => write!(f, "torn: sectors of generations {g:?} (0: not of this run)"),
            Found::Misplaced { lba, generation } => write!(f, "a block of LBA {lba}, generation {generation}"),
            Found::Damaged { generation, at } => write!(f, "generation {generation}, damaged from byte {at} on"),
            Found::Zero => f.write_str("zeroes"),
            Found::Foreign => f.write_str("data that this run did not write"),
        }
    }
}

/// splitmix64's output function: every bit of the result depends on every bit of `x`.
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Stamp {
    #[inline]
    fn key(&self, sector: usize) -> u64 {
        mix(self.seed ^ mix(self.lba ^ mix(self.generation.wrapping_add((sector as u64) << 48))))
    }

    fn words(&self, sector: usize) -> impl Iterator<Item = u64> {
        let key = self.key(sector);
        let head = [MAGIC, self.lba, self.generation, self.seed ^ sector as u64];
        head.into_iter()
            .chain((0u64..).map(move |i| key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(i as u32)))
    }

    /// Fills a block.
    pub(crate) fn fill(&self, block: &mut [u8]) {
        for (i, sector) in block.chunks_mut(SECTOR).enumerate() {
            for (bytes, word) in sector.chunks_mut(8).zip(self.words(i)) {
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            }
        }
    }

    /// First byte of `sector` that differs from what this write put there.
    fn first_difference(&self, i: usize, sector: &[u8]) -> Option<usize> {
        sector.chunks(8).zip(self.words(i)).enumerate().find_map(|(w, (bytes, word))| {
            let want = &word.to_le_bytes()[..bytes.len()];
            bytes.iter().zip(want).position(|(a, b)| a != b).map(|at| w * 8 + at)
        })
    }
}

/// What is in `block`, which was read from `lba`.
pub(crate) fn inspect(seed: u64, lba: u64, block: &[u8]) -> Found {
    let mut generations = Vec::with_capacity(block.len() / SECTOR);
    let mut misplaced = None;
    let mut damaged = None;
    for (i, sector) in block.chunks(SECTOR).enumerate() {
        let word =
            |n: usize| sector.get(n * 8..n * 8 + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        let ours = word(0) == MAGIC && word(3) == seed ^ i as u64;
        // A piece at the end that is too short for a stamp belongs to the sector before it.
        if sector.len() < 32 {
            let generation = generations.last().copied().unwrap_or(0);
            if let Some(at) = (Stamp { seed, lba, generation }).first_difference(i, sector) {
                damaged.get_or_insert((generation, i * SECTOR + at));
            }
            continue;
        }
        if !ours {
            generations.push(0);
            continue;
        }
        let stamp = Stamp { seed, lba: word(1), generation: word(2) };
        if let Some(at) = stamp.first_difference(i, sector) {
            damaged.get_or_insert((stamp.generation, i * SECTOR + at));
        } else if stamp.lba != lba {
            misplaced.get_or_insert((stamp.lba, stamp.generation));
        }
        generations.push(stamp.generation);
    }
    match (generations.first().copied(), damaged, misplaced) {
        (_, Some((generation, at)), _) if generation != 0 => Found::Damaged { generation, at },
        (_, _, Some((lba, generation))) => Found::Misplaced { lba, generation },
        (Some(first), ..) if generations.iter().all(|&g| g == first) => match first {
            0 if block.iter().all(|&b| b == 0) => Found::Zero,
            0 => Found::Foreign,
            g => Found::Whole(g),
        },
        _ => Found::Torn(generations),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lba: u64, generation: u64) -> Vec<u8> {
        let mut b = vec![0; 4096];
        Stamp { seed: 7, lba, generation }.fill(&mut b);
        b
    }

    #[test]
    fn each_fault_has_its_name() {
        assert_eq!(inspect(7, 5, &block(5, 3)), Found::Whole(3));
        assert_eq!(inspect(7, 6, &block(5, 3)), Found::Misplaced { lba: 5, generation: 3 });
        assert_eq!(inspect(8, 5, &block(5, 3)), Found::Foreign);
        assert_eq!(inspect(7, 5, &[0; 4096]), Found::Zero);
        assert_eq!(inspect(7, 5, &[0xa5; 4096]), Found::Foreign);

        let mut torn = block(5, 3);
        torn[1024..].copy_from_slice(&block(5, 4)[1024..]);
        assert_eq!(inspect(7, 5, &torn), Found::Torn(vec![3, 3, 4, 4, 4, 4, 4, 4]));

        let mut half = block(5, 3);
        half[512..].fill(0);
        assert_eq!(inspect(7, 5, &half), Found::Torn(vec![3, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn every_single_changed_byte_is_noticed() {
        let good = block(9, 1);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_ne!(inspect(7, 9, &bad), Found::Whole(1), "byte {at}");
        }
    }

    #[test]
    fn odd_block_sizes_are_covered_to_the_last_byte() {
        for size in [512, 520, 528, 4104, 4160] {
            let mut b = vec![0; size];
            Stamp { seed: 1, lba: 2, generation: 3 }.fill(&mut b);
            assert_eq!(inspect(1, 2, &b), Found::Whole(3), "size {size}");
            *b.last_mut().unwrap() ^= 1;
            assert_ne!(inspect(1, 2, &b), Found::Whole(3), "size {size}");
        }
    }

    #[test]
    fn two_writes_share_no_word_beyond_the_stamp() {
        let (a, b) = (block(5, 3), block(5, 4));
        let same = a.chunks(8).zip(b.chunks(8)).filter(|(x, y)| x == y).count();
        // magic, LBA and seed of each of the eight sectors
        assert_eq!(same, 24);
    }
}
