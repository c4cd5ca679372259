//! What goes wrong in a life, and sequences of requests that showed faults before.

use super::author::Author;
use super::budget::Budget;
use super::script::{Comes, Life, Step};

impl Author {
    /// Puts mischief among the steps of a life.
    pub(super) fn mischief(&mut self, life: &mut Life, budget: &Budget) {
        let members = self.shape.members as u64;
        let whole: Vec<usize> = (0..self.shape.members).filter(|m| !budget.lost().contains(m)).collect();
        if whole.is_empty() {
            return;
        }
        let any = |me: &mut Author| whole[me.random.below(whole.len() as u64) as usize];
        if self.shape.rebuilds {
            self.returns(life, budget, &whole);
        }
        if self.random.chance(70) {
            let scene = self.written_anew();
            self.insert(life, scene);
        }
        if budget.left() > 0 {
            if self.random.chance(150) {
                let m = any(self);
                self.loss(life, m);
            }
            if self.random.chance(60) {
                let m = any(self);
                self.acknowledged_loss(life, m);
            }
            if self.random.chance(80) {
                let m = any(self);
                let place = self.somewhere(life);
                for _ in 0..1 + self.random.below(6) {
                    let block = self.random.below(self.shape.member_blocks as u64) as usize;
                    life.steps.insert(place, Step::Spoil(m, block));
                }
            }
            if self.random.chance(60) {
                let m = any(self);
                self.hang(life, m);
            }
            let volatile = self.shape.volatile.count_ones() as usize;
            if (1..=self.shape.tolerates).contains(&volatile) && self.random.chance(150) {
                let place = self.somewhere(life);
                for m in (0..self.shape.members).filter(|m| self.shape.volatile >> m & 1 != 0) {
                    life.steps.insert(place, Step::Lose(m));
                }
            }
        }
        if self.random.chance(60) {
            let (m, place) = (self.member(), self.somewhere(life));
            life.steps.insert(place, Step::Slow(m, true));
        }
        if self.random.chance(60) {
            let step = Step::Scrub(self.random.below(1 << 32));
            self.insert(life, vec![step]);
        }
        if self.shape.exceeds && self.random.chance(40) {
            let place = self.somewhere(life);
            let (first, n) = (self.random.below(members), budget.left() as u64 + 1 + self.random.below(2));
            for i in 0..n.min(members) {
                let apart = self.random.below(4) as usize;
                let place = (place + apart).min(life.steps.len());
                life.steps.insert(place, Step::Exceed(((first + i) % members) as usize));
            }
        }
    }

    /// Members that are lost come back to be rebuilt, or one that is whole is replaced; perhaps power fails meanwhile, or another is lost as
    /// soon as that may be.
    fn returns(&mut self, life: &mut Life, budget: &Budget, whole: &[usize]) {
        let lost: Vec<usize> = budget.lost().iter().copied().collect();
        let m = if !lost.is_empty() && self.random.chance(600) {
            lost[self.random.below(lost.len() as u64) as usize]
        } else if budget.left() > 0 && self.random.chance(60) {
            whole[self.random.below(whole.len() as u64) as usize]
        } else {
            return;
        };
        let comes = match self.random.below(20) {
            0..11 => Comes::AsItWas,
            11..14 => Comes::Older,
            14 => Comes::Foreign,
            _ => Comes::Blank,
        };
        let mut scene = Vec::new();
        if self.random.chance(400) {
            // So that there is much to rebuild.
            scene.extend([Step::Write(0, self.shape.blocks, false), Step::Flush, Step::Settle]);
        }
        if self.random.chance(300) {
            scene.push(Step::Lose(m));
        }
        scene.push(Step::Return(m, comes));
        match self.random.below(8) {
            0 => scene.push(Step::Cut(1 + self.random.below(40 * self.shape.members as u64))),
            1..4 => scene.push(Step::Cut(1 + self.random.below(200 * self.shape.members as u64))),
            4 => scene.push(Step::CutAfter(self.random.below(30_000))),
            7 => {
                // What is rebuilt is decoded around blocks that cannot be read.
                let other = whole[self.random.below(whole.len() as u64) as usize];
                for _ in 0..1 + self.random.below(12) {
                    scene.push(Step::Spoil(other, self.random.below(self.shape.member_blocks as u64) as usize));
                }
            }
            5 | 6 => {
                let other = whole[self.random.below(whole.len() as u64) as usize];
                scene.extend([Step::Rebuilt, Step::Lose(other)]);
            }
            _ => {}
        }
        life.depth = life.depth.max(2);
        let place = self.random.below(life.steps.len() as u64 / 2 + 1) as usize;
        life.steps.splice(place..place, scene);
    }

    fn somewhere(&mut self, life: &Life) -> usize {
        self.random.below(life.steps.len() as u64 + 1) as usize
    }

    fn insert(&mut self, life: &mut Life, scene: Vec<Step>) {
        let place = self.somewhere(life);
        life.steps.splice(place..place, scene);
    }

    /// A member vanishes; often power fails about when something is done about it.
    fn loss(&mut self, life: &mut Life, m: usize) {
        let place = self.somewhere(life);
        if self.random.chance(500) {
            let soon = 1 + self.random.below(12 * self.shape.members as u64);
            life.steps.insert(place, Step::Cut(soon));
            self.just_lost = Some(m);
        }
        life.steps.insert(place, Step::Lose(m));
    }

    /// A member vanishes while writes that have to survive are acknowledged, and power fails before others may say that it has.
    fn acknowledged_loss(&mut self, life: &mut Life, m: usize) {
        let stripe = self.shape.stripe;
        let stripes = (self.shape.blocks / stripe).max(1);
        let first = self.random.below(stripes);
        let n = (1 + self.random.below(3)).min(stripes - first);
        let mut scene = vec![Step::Write(first * stripe, n * stripe, false), Step::Flush, Step::Settle];
        let write = |me: &mut Author| {
            let lba = first * stripe + me.random.below(n * stripe);
            Step::Write(lba, 1, me.random.chance(800))
        };
        for _ in 0..self.random.below(8) {
            scene.push(write(self));
        }
        scene.push(Step::Lose(m));
        let soon = 1 + self.random.below(16 * self.shape.members as u64);
        scene.push(Step::Cut(soon));
        for _ in 0..24 {
            scene.push(write(self));
        }
        life.depth = life.depth.max(4);
        self.just_lost = Some(m);
        self.insert(life, scene);
    }

    /// Requests to a member hang, for a while or until power fails.
    fn hang(&mut self, life: &mut Life, m: usize) {
        let place = self.somewhere(life);
        let some = [1000, 1000, 300, 30][self.random.below(4) as usize];
        life.steps.insert(place, Step::Hang(m, some));
        match self.random.below(4) {
            0 => {
                let after = place + 1 + self.random.below(30) as usize;
                life.steps.insert(after.min(life.steps.len()), Step::Hang(m, 0));
            }
            // While everything waits for it, or when it was given up a moment ago.
            1 => life.steps.insert(place, Step::CutAfter(self.random.below(1_000_000))),
            2 => life.steps.insert(place, Step::CutAfter(500_000 + self.random.below(300_000))),
            _ => {}
        }
    }

    /// A stripe is written, cleared and written again: nothing of before may come back.
    fn written_anew(&mut self) -> Vec<Step> {
        let stripe = self.shape.stripe;
        let first = self.random.below((self.shape.blocks / stripe).max(1)) * stripe;
        let part = |me: &mut Author| Step::Write(first + me.random.below(stripe), 1, false);
        let mut scene = vec![Step::Write(first, stripe, false), Step::Flush, part(self)];
        let clear = match self.shape.unmap_unit != 0 && self.random.chance(500) {
            true => Step::Unmap(first, stripe),
            false => Step::Zeroes(first, stripe, false),
        };
        scene.extend([Step::Settle, clear]);
        if self.random.chance(500) {
            scene.push(Step::Settle);
        }
        scene.extend([
            part(self),
            part(self),
            Step::Flush,
            Step::Settle,
            Step::Write(first, stripe, false),
            Step::Flush,
        ]);
        if self.random.chance(500) {
            scene.extend([Step::Settle, Step::Cut(1 + self.random.below(20))]);
        }
        scene
    }
}
