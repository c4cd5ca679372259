//! Makes a failing script smaller while it still fails.

use super::script::{Life, Script};

/// The smallest script found that `fails` still says fails, in at most `tries` attempts. `fails` is asked for every candidate.
pub fn shrink(script: Script, tries: usize, fails: impl FnMut(&Script) -> bool) -> Script {
    let mut s = Shrinker { best: script, left: tries, fails };
    loop {
        let before = s.best.clone();
        s.lives();
        s.steps();
        s.details();
        if s.best == before || s.left == 0 {
            return s.best;
        }
    }
}

struct Shrinker<F> {
    best: Script,
    left: usize,
    fails: F,
}

impl<F: FnMut(&Script) -> bool> Shrinker<F> {
    fn attempt(&mut self, candidate: Script) -> bool {
        if self.left == 0 || candidate == self.best {
            return false;
        }
        self.left -= 1;
        let fails = (self.fails)(&candidate);
        if fails {
            self.best = candidate;
        }
        fails
    }

    /// Without whole lives, the last ones first.
    fn lives(&mut self) {
        for at in (0..self.best.0.len()).rev() {
            let mut c = self.best.clone();
            c.0.remove(at);
            self.attempt(c);
        }
    }

    /// Without some steps: half of a life's, then quarters, down to single ones.
    fn steps(&mut self) {
        for life in 0..self.best.0.len() {
            let mut size = self.best.0[life].steps.len();
            while size > 0 {
                let mut at = 0;
                while at < self.best.0[life].steps.len() {
                    let mut c = self.best.clone();
                    let l = &mut c.0[life];
                    let end = (at + size).min(l.steps.len());
                    let (total, gone) = (l.steps.len() as u64, (end - at) as u64);
                    l.steps.drain(at..end);
                    // The crash came so much later as there were steps before it.
                    let earlier = with_crash(&c, life, |n| n - n * gone / (total + 1));
                    if !self.attempt(c) && !self.attempt(earlier) {
                        at += size;
                    }
                }
                size /= 2;
            }
        }
    }

    /// One request at a time, everybody there, an earlier crash.
    fn details(&mut self) {
        for life in 0..self.best.0.len() {
            let plain = self.with(life, |l| l.depth = 1);
            self.attempt(plain);
            let all = self.with(life, |l| l.absent.clear());
            self.attempt(all);
            let own = self.with(life, |l| l.swapped.clear());
            self.attempt(own);
            let plain = self.with(life, |l| l.salvage = None);
            self.attempt(plain);
            let right = self.with(life, |l| l.rotten = None);
            self.attempt(right);
            let here = self.with(life, |l| l.away = false);
            self.attempt(here);
            for (num, den) in [(1, 2), (3, 4), (9, 10)] {
                let c = with_crash(&self.best, life, |n| n * num / den);
                self.attempt(c);
            }
            let c = with_crash(&self.best, life, |n| n - 1);
            self.attempt(c);
        }
    }

    fn with(&self, life: usize, change: impl FnOnce(&mut Life)) -> Script {
        let mut c = self.best.clone();
        change(&mut c.0[life]);
        c
    }
}

fn with_crash(script: &Script, life: usize, change: impl FnOnce(u64) -> u64) -> Script {
    let mut c = script.clone();
    let l = &mut c.0[life];
    l.crash_in = l.crash_in.map(|n| change(n).max(1));
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::script::Step;

    #[test]
    fn what_is_not_needed_goes() {
        let steps = (0..40).map(|i| Step::Write(i, 1, false)).collect();
        let life = Life { depth: 5, crash_in: Some(1000), absent: vec![2], steps, ..Life::default() };
        let script = Script(vec![Life::default(), life, Life::default()]);
        // It takes writes 7 and 31, in this order, and power that fails after step 9.
        let needs = |s: &Script| {
            s.0.iter().any(|l| {
                let at = |b| l.steps.iter().position(|s| *s == Step::Write(b, 1, false));
                at(7).is_some() && at(31).is_some() && at(7) < at(31) && l.crash_in.is_some_and(|n| n > 9)
            })
        };
        let small = shrink(script, 1000, needs);
        assert_eq!((small.0.len(), small.requests(), small.0[0].depth, &small.0[0].absent[..]), (1, 2, 1, &[][..]));
        assert_eq!(small.0[0].crash_in, Some(10));
    }
}
