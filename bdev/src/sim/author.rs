//! Makes up what happens in a run.

use longshore_reactor::sim::Random;

use super::budget::Budget;
use super::script::{Comes, Life, Shape, Step};

/// Makes up lives from a seed, until enough requests were made.
pub struct Author {
    pub(super) random: Random,
    pub(super) shape: Shape,
    wanted: usize,
    /// Crashes in recovery that are left before the next life with requests.
    interrupted: u64,
    lives: usize,
    /// The member that was lost when power failed, before anybody may have noted it.
    pub(super) just_lost: Option<usize>,
}

/// Recoveries in a row that a crash may interrupt.
const DEPTH: u64 = 3;
/// Most lives of a run: of those that many short ones make up, so that every run ends.
const LIVES: usize = 600;

impl Author {
    /// The author of `seed`, who makes up at least `wanted` requests.
    pub fn new(seed: u64, shape: Shape, wanted: usize) -> Author {
        Author { random: Random::new(seed), shape, wanted, interrupted: 0, lives: 0, just_lost: None }
    }

    /// The next life, after `done` requests; `None`: it is enough.
    pub fn next(&mut self, done: usize, budget: &Budget) -> Option<Life> {
        if done >= self.wanted && self.interrupted == 0 || self.lives >= LIVES {
            return None;
        }
        self.lives += 1;
        let mut life =
            Life { depth: 1 + self.random.below(8) as usize, away: self.random.chance(300), ..Life::default() };
        self.come_and_go(&mut life, budget);
        if self.interrupted > 0 {
            self.interrupted -= 1;
            life.crash_in = Some(1 + self.random.below(2 * self.shape.start_requests));
            return Some(life);
        }
        let n = 10 + self.random.below(90);
        let region = self.region();
        for _ in 0..n {
            let step = self.step(region);
            life.steps.push(step);
        }
        self.mischief(&mut life, budget);
        let expected = 2 * self.shape.start_requests + life.steps.len() as u64 * self.shape.members as u64 * 5;
        match self.random.below(10) {
            0 => life.orderly = true,
            1 => {}
            _ => life.crash_in = Some(1 + self.random.below(expected)),
        }
        let making = self.lives == 1 && self.shape.make_requests != 0 && self.random.chance(700);
        if making {
            life.crash_in = Some(1 + self.random.below(2 * self.shape.make_requests));
        }
        if self.lives > 1 || making || self.random.below(2) == 0 {
            self.interrupted = self.random.below(DEPTH + 1).saturating_sub(self.random.below(3));
        }
        Some(life)
    }

    /// The life after the last one: what was recovered stays, whoever is missing.
    pub fn last(&mut self, budget: &Budget) -> Life {
        let mut absent: Vec<usize> = budget.lost().iter().copied().collect();
        let first = self.random.below(self.shape.members.max(1) as u64) as usize;
        let others = (0..self.shape.members).map(|i| (first + i) % self.shape.members);
        absent.extend(others.filter(|m| !budget.lost().contains(m)).take(budget.left()));
        Life { absent, orderly: true, depth: 1, ..Life::default() }
    }

    /// A part of the device that most requests of a life are in, so that they meet.
    pub(super) fn region(&mut self) -> (u64, u64) {
        let Shape { blocks, stripe, .. } = self.shape;
        let len = (stripe * (1 + self.random.below(6))).min(blocks);
        (self.random.below(blocks - len + 1), len)
    }

    fn place(&mut self, (start, len): (u64, u64)) -> (u64, u64) {
        let Shape { blocks, stripe, .. } = self.shape;
        let (start, len) = if self.random.chance(150) { (0, blocks) } else { (start, len) };
        let mut lba = start + self.random.below(len);
        let n = match self.random.below(10) {
            0..4 => 1,
            4..7 => 1 + self.random.below(stripe),
            7..9 => {
                lba -= lba % stripe;
                stripe * (1 + self.random.below(2))
            }
            _ => 1 + self.random.below(2 * stripe),
        };
        (lba, n.clamp(1, blocks - lba))
    }

    fn step(&mut self, region: (u64, u64)) -> Step {
        let (lba, n) = self.place(region);
        let fua = self.random.chance(200);
        match self.random.below(100) {
            0..62 => Step::Write(lba, n, fua),
            62..72 => Step::Read(lba, n),
            72..84 => Step::Flush,
            84..89 => Step::Zeroes(lba, n, fua),
            89..94 if self.shape.unmap_unit != 0 => Step::Unmap(lba, n),
            94..96 => Step::Settle,
            _ => Step::Write(lba, n, false),
        }
    }

    pub(super) fn member(&mut self) -> usize {
        self.random.below(self.shape.members as u64) as usize
    }

    /// Members that are absent at the start of a life, or come back with what they had.
    fn come_and_go(&mut self, life: &mut Life, budget: &Budget) {
        let lost = self.just_lost.take();
        if self.lives == 1 {
            return;
        }
        if self.shape.exceeds && self.random.chance(30) {
            life.exceed = true;
            let gone = (self.shape.tolerates + 1 + self.random.below(2) as usize).min(self.shape.members);
            let first = self.member();
            life.absent = (0..gone).map(|i| (first + i) % self.shape.members).collect();
            return;
        }
        // One that was named failed may make up for one that is absent.
        let chance = if budget.lost().is_empty() { 12 } else { 40 };
        if self.shape.salvages && self.random.chance(chance) {
            life.salvage = Some(self.random.below(1 << 32));
            return;
        }
        for &m in budget.lost() {
            if self.random.chance(350) && Some(m) != lost {
                life.absent.push(m);
            }
        }
        let other = self.member();
        // If nobody noted that the one was lost, it is as good as any, and another may be missing.
        let chance = if lost.is_some_and(|l| l != other) { 500 } else { 120 };
        if self.random.chance(chance) && !life.absent.contains(&other) {
            life.absent.push(other);
        }
        self.swap(life, budget);
    }

    /// A member has what it had some lives ago, or another device is in its place; of others, blocks have become wrong.
    fn swap(&mut self, life: &mut Life, budget: &Budget) {
        if self.shape.rebuilds && self.random.chance(70) {
            let there = budget.lost().iter().copied().find(|m| !life.absent.contains(m));
            let any = self.member();
            let m = there.filter(|_| self.random.chance(500)).unwrap_or(any);
            life.swapped
                .push((m, [Comes::Older, Comes::Older, Comes::Blank, Comes::Foreign][self.random.below(4) as usize]));
        }
        if self.random.chance(40) {
            life.rotten = Some(self.random.below(1 << 32));
        }
    }
}
