//! Which members are damaged, and how many more may be.

use std::collections::BTreeSet;

use super::script::Shape;

/// Members that may lack something of what the device was given, or have it wrong. The device has to get along without them.
#[derive(Clone, Debug)]
pub struct Budget {
    tolerates: usize,
    redundancy: usize,
    lost: BTreeSet<usize>,
    /// Members with blocks that are wrong.
    rotten: BTreeSet<usize>,
    /// The device was salvaged, and has had fewer members since than it starts with otherwise.
    salvaged: bool,
}

impl Budget {
    /// Nobody is damaged.
    pub fn new(shape: &Shape) -> Budget {
        let Shape { tolerates, redundancy, .. } = *shape;
        Budget { tolerates, redundancy, lost: BTreeSet::new(), rotten: BTreeSet::new(), salvaged: false }
    }

    /// Members that count as lost.
    pub fn lost(&self) -> &BTreeSet<usize> {
        &self.lost
    }

    /// Members that may be missing at a start that nobody asks for.
    pub fn tolerates(&self) -> usize {
        self.tolerates
    }

    /// Of so many members, the fewest that have everything between them.
    pub fn fewest(&self, members: usize) -> usize {
        members - self.redundancy
    }

    /// Members that may be missing at present.
    fn tolerated(&self) -> usize {
        if self.salvaged { self.redundancy } else { self.tolerates }
    }

    /// Members that may still be lost.
    pub fn left(&self) -> usize {
        self.tolerated()
            .min(self.redundancy - (2 * self.rotten.len()).min(self.redundancy))
            .saturating_sub(self.lost.len())
    }

    /// Member `m` may be damaged from now on. False: too many are.
    pub fn lose(&mut self, m: usize) -> bool {
        if self.lost.contains(&m) {
            return true;
        }
        if self.left() == 0 || self.rotten.contains(&m) {
            return false;
        }
        self.lost.insert(m)
    }

    /// Member `m` vanishes, however many have. False: it may not, because what the others have would not be enough when it is back.
    pub fn exceed(&mut self, m: usize, others_are_whole: bool) -> bool {
        // Those who were away from a salvage may be enough to start with, and must not: nothing tells them of it.
        let may = others_are_whole && self.rotten.is_empty() && !self.salvaged;
        if may {
            self.lost.insert(m);
        }
        may
    }

    /// More members are lost than the device tolerates.
    pub fn is_exceeded(&self) -> bool {
        self.lost.len() > self.tolerated()
    }

    /// The device starts with the members that are not lost only if it is salvaged.
    pub fn needs_salvage(&self) -> bool {
        self.lost.len() > self.tolerates
    }

    /// Of `members` the device has none but `taken`, with whom it goes on.
    pub fn salvage(&mut self, members: usize, taken: &[usize]) {
        self.lost = (0..members).filter(|m| !taken.contains(m)).collect();
        self.salvaged = self.needs_salvage();
    }

    /// The device starts by itself without `absent`. Who was lost stays so although it is taken: perhaps not all know yet that it lacks nothing.
    pub fn starts_without(&mut self, absent: &[usize]) {
        self.lost.extend(absent);
        self.salvaged = self.needs_salvage();
    }

    /// Blocks of member `m` may be wrong from now on. False: it could not be said which are. Two of what is redundant find one wrong.
    pub fn rot(&mut self, m: usize) -> bool {
        let fits = self.lost.len() + 2 * (self.rotten.len() + 1) <= self.redundancy && !self.lost.contains(&m);
        if fits {
            self.rotten.insert(m);
        }
        fits
    }

    /// Members with blocks that are wrong.
    pub fn rotten(&self) -> &BTreeSet<usize> {
        &self.rotten
    }

    /// All that was wrong was put right.
    pub fn mended(&mut self) {
        self.rotten.clear();
    }

    /// Member `m` lacks nothing any more.
    pub fn is_whole_again(&mut self, m: usize) {
        self.lost.remove(&m);
        self.salvaged &= self.needs_salvage();
    }

    /// Lost members stay so for which `still` is true.
    pub fn keep(&mut self, still: impl Fn(usize) -> bool) {
        self.lost.retain(|&m| still(m));
        self.salvaged &= self.needs_salvage();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(tolerates: usize, redundancy: usize) -> Budget {
        Budget::new(&Shape { tolerates, redundancy, ..Shape::default() })
    }

    #[test]
    fn no_more_are_lost_than_tolerated_and_those_that_are_whole_again_make_room() {
        let mut b = budget(2, 2);
        assert!(b.lose(0) && b.lose(3) && b.lose(0) && !b.lose(1));
        b.keep(|m| m == 3);
        assert!(b.lose(1) && !b.lose(0));
        assert!(b.exceed(0, true) && b.is_exceeded() && !b.exceed(4, false));
    }

    #[test]
    fn a_rotten_member_takes_up_as_much_as_two_lost_ones() {
        let mut b = budget(3, 3);
        assert!(b.rot(1) && !b.rot(2) && b.lose(0) && !b.lose(2));
        b.mended();
        assert!(b.lose(2) && b.lose(1) && !b.rot(4));
        assert!(!budget(1, 1).rot(0));
    }

    #[test]
    fn after_a_salvage_nobody_else_may_be_missing_until_enough_are_back() {
        let mut b = budget(1, 2);
        b.salvage(4, &[0, 3]);
        assert!(b.needs_salvage() && !b.is_exceeded() && b.left() == 0 && !b.exceed(0, true) && b.fewest(4) == 2);
        b.starts_without(&[1]);
        assert!(b.needs_salvage() && !b.is_exceeded() && b.lost().len() == 2, "one that is taken stays lost");
        b.is_whole_again(1);
        assert!(!b.needs_salvage() && b.left() == 0);
        b.is_whole_again(2);
        assert!(b.left() == 1 && b.lose(0) && b.exceed(3, true));
    }
}
