//! What happens in a run: lives, each with its members, its requests, and the moment at which power fails.

use std::fmt;

use longshore_reactor::sim::Random;

/// Something that is done in a life. Places are in blocks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write of so many blocks, perhaps with FUA.
    Write(u64, u64, bool),
    /// A write of zeroes, perhaps with FUA.
    Zeroes(u64, u64, bool),
    /// A read.
    Read(u64, u64),
    /// A flush.
    Flush,
    /// An unmap.
    Unmap(u64, u64),
    /// A member vanishes. Not a request.
    Lose(usize),
    /// A member's block cannot be read until it is written. Not a request.
    Spoil(usize, usize),
    /// A member becomes slow, or normal again. Not a request.
    Slow(usize, bool),
    /// Power fails after so many more requests to and answers of members. Not a request.
    Cut(u64),
    /// All requests until now end before the next begins. Not a request.
    Settle,
}

impl Step {
    /// True if the step asks the device for something.
    pub fn is_request(&self) -> bool {
        !matches!(self, Step::Lose(_) | Step::Spoil(..) | Step::Slow(..) | Step::Cut(_) | Step::Settle)
    }
}

/// From power on to power off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Members that are not there.
    pub absent: Vec<usize>,
    /// Power fails when members have been asked and have answered so often; `None`: when the steps have ended.
    pub crash_in: Option<u64>,
    /// The device is stopped in order when the steps have ended, before power goes.
    pub orderly: bool,
    /// Requests under way at once.
    pub depth: usize,
    /// What is done.
    pub steps: Vec<Step>,
}

/// All lives of a run. The device is read as a whole when each begins, and once more after the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script(pub Vec<Life>);

impl Script {
    /// Requests in all lives.
    pub fn requests(&self) -> usize {
        self.0.iter().flat_map(|l| &l.steps).filter(|s| s.is_request()).count()
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, l) in self.0.iter().enumerate() {
            write!(f, "life {}:", i + 1)?;
            if !l.absent.is_empty() {
                write!(f, " without members {:?},", l.absent)?;
            }
            match l.crash_in {
                Some(n) => write!(f, " power fails at step {n}")?,
                None if l.orderly => write!(f, " stopped in order")?,
                None => write!(f, " power fails at the end")?,
            }
            writeln!(f, ", {} at once", l.depth)?;
            l.steps.iter().try_for_each(|s| writeln!(f, "    {s:?}"))?;
        }
        Ok(())
    }
}

/// What a script is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks of the device.
    pub blocks: u64,
    /// Blocks of a stripe, or of what else requests should lie across.
    pub stripe: u64,
    /// Members.
    pub members: usize,
    /// Members that may be missing at once, and keep missing.
    pub tolerates: usize,
    /// Blocks of a member.
    pub member_blocks: usize,
    /// Unmaps zero aligned groups of so many blocks and leave everything else; 0: there are none.
    pub unmap_unit: u64,
    /// About how many requests its members get when it starts.
    pub start_requests: u64,
}

/// Makes up lives from a seed, until enough requests were made.
pub struct Author {
    random: Random,
    shape: Shape,
    wanted: usize,
    /// Members that are damaged or missing for good, and whether each is there.
    lost: Vec<(usize, bool)>,
    /// Crashes in recovery that are left before the next life with requests.
    interrupted: u64,
    lives: usize,
}

/// Recoveries in a row that a crash may interrupt.
const DEPTH: u64 = 3;
/// Most lives of a run.
const LIVES: usize = 60;

impl Author {
    /// The author of `seed`, who makes up at least `wanted` requests.
    pub fn new(seed: u64, shape: Shape, wanted: usize) -> Author {
        Author { random: Random::new(seed), shape, wanted, lost: Vec::new(), interrupted: 0, lives: 0 }
    }

    /// The next life, after `done` requests; `None`: it is enough.
    pub fn next(&mut self, done: usize) -> Option<Life> {
        if done >= self.wanted && self.interrupted == 0 || self.lives >= LIVES {
            return None;
        }
        self.lives += 1;
        let mut life = Life { depth: 1 + self.random.below(8) as usize, ..Life::default() };
        self.come_and_go(&mut life);
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
        self.mischief(&mut life);
        let expected = 2 * self.shape.start_requests + n * self.shape.members as u64 * 5;
        match self.random.below(10) {
            0 => life.orderly = true,
            1 => {}
            _ => life.crash_in = Some(1 + self.random.below(expected)),
        }
        if self.lives > 1 || self.random.below(2) == 0 {
            self.interrupted = self.random.below(DEPTH + 1).saturating_sub(self.random.below(3));
        }
        Some(life)
    }

    /// A part of the device that most requests of a life are in, so that they meet.
    fn region(&mut self) -> (u64, u64) {
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

    /// Members that are absent at the start of a life, or come back with what they had.
    fn come_and_go(&mut self, life: &mut Life) {
        if self.lives > 1 && self.random.chance(120) {
            self.lose(false);
        }
        for at in 0..self.lost.len() {
            if self.random.chance(400) {
                self.lost[at].1 ^= true;
            }
        }
        life.absent = self.lost.iter().filter(|(_, there)| !there).map(|(m, _)| *m).collect();
        life.absent.sort_unstable();
    }

    /// A member more is damaged or missing, if one may be.
    fn lose(&mut self, there: bool) -> Option<usize> {
        let m = self.random.below(self.shape.members as u64) as usize;
        if self.lost.len() >= self.shape.tolerates || self.lost.iter().any(|(l, _)| *l == m) {
            return None;
        }
        self.lost.push((m, there));
        Some(m)
    }

    fn mischief(&mut self, life: &mut Life) {
        let at = |r: &mut Random| r.below(life.steps.len() as u64 + 1) as usize;
        if self.random.chance(150) {
            let place = at(&mut self.random);
            if let Some(m) = self.lose(false) {
                if self.random.chance(500) {
                    // What is done about the loss takes about so long.
                    let soon = 1 + self.random.below(12 * self.shape.members as u64);
                    life.steps.insert(place, Step::Cut(soon));
                }
                life.steps.insert(place, Step::Lose(m));
            }
        }
        if self.random.chance(80)
            && let Some(m) = self.lose(true)
        {
            let place = self.random.below(life.steps.len() as u64 + 1) as usize;
            for _ in 0..1 + self.random.below(6) {
                let block = self.random.below(self.shape.member_blocks as u64) as usize;
                life.steps.insert(place, Step::Spoil(m, block));
            }
        }
        if self.random.chance(60) {
            let m = self.random.below(self.shape.members as u64) as usize;
            let place = self.random.below(life.steps.len() as u64 + 1) as usize;
            life.steps.insert(place, Step::Slow(m, true));
        }
    }
}
