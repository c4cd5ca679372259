//! Several reactors on one thread: whose turn it is, and when time passes.

use super::Sim;
use crate::reactor::Reactor;

/// One turn in so many is followed by one of any reactor, the others by another of the same: a processor may be far ahead of others.
const SWITCH: u64 = 4;

impl Sim {
    /// `told` is told whenever it is another reactor's turn, with the index of the last one and of the next: to keep apart what code under
    /// trial keeps by thread.
    pub fn on_switch(&mut self, told: impl FnMut(usize, usize) + 'static) {
        self.switch = Some(Box::new(told));
    }

    /// Runs `f` as if on the thread of the reactor of this index.
    pub fn on_core<R>(&mut self, index: usize, f: impl FnOnce(&Reactor) -> R) -> R {
        let before = self.at;
        self.switch_to(index);
        let out = f(self.peer(index));
        self.switch_to(before);
        out
    }

    pub(super) fn switch_to(&mut self, index: usize) {
        if self.at == index {
            return;
        }
        if let Some(told) = &mut self.switch {
            told(self.at, index);
        }
        self.at = index;
        if let Some(r) = self.reactors.get(index) {
            r.enter_thread();
        }
    }

    /// One turn of a reactor that has something to do; if none has, time passes until one has.
    pub(super) fn turn(&mut self) {
        if self.cores == 1 {
            self.reactor().turn();
            return;
        }
        let now = self.world.borrow().now();
        let awake = |r: &Reactor| wakes_at(r) <= now;
        let n = self.reactors.iter().filter(|r| awake(r)).count() as u64;
        if n == 0 {
            let next = self.reactors.iter().map(wakes_at).min().unwrap_or(u64::MAX);
            let mut world = self.world.borrow_mut();
            if next == u64::MAX {
                world.stuck = true;
            } else {
                world.advance(next);
            }
            return;
        }
        let stays = awake(self.peer(self.at)) && !(n > 1 && self.world.borrow_mut().random.below(SWITCH) == 0);
        if !stays {
            let which = if n > 1 { self.world.borrow_mut().random.below(n) as usize } else { 0 };
            let next = (0..self.cores).filter(|&i| awake(&self.reactors[i])).nth(which);
            self.switch_to(next.unwrap_or(self.at));
        }
        let r = self.peer(self.at);
        if let Some(e) = r.sim_engine() {
            e.asleep.set(None);
        }
        if r.turn() > 0
            && let Some(e) = r.sim_engine()
        {
            e.asleep.set(None);
        }
    }

    /// Ends the reactors, the first one last.
    pub(super) fn tear_down(&mut self) {
        for index in (0..self.reactors.len()).rev() {
            self.switch_to(index);
            self.peer(index).quiesce();
        }
        Reactor::leave_thread();
        self.reactors.clear();
    }
}

/// When a reactor has something to do next; 0: now.
fn wakes_at(r: &Reactor) -> u64 {
    let Some(asleep) = r.sim_engine().and_then(|e| e.asleep.get()) else { return 0 };
    if !r.shared().inbox.is_empty() || !r.nothing_ready() {
        return 0;
    }
    // Another reactor's turn may have set an earlier timer.
    r.0.timers.borrow().next().map_or(asleep, |t| t.min(asleep))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Random, Settings};
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    /// What two reactors say, which sleep for seeded times and send each other messages.
    fn said(seed: u64) -> Vec<(usize, u64)> {
        let mut sim = Sim::with_cores(seed, Settings::default(), 2);
        let log = Rc::new(RefCell::new(Vec::new()));
        let far = sim.peer(1).clone();
        let all = log.clone();
        sim.block_on(move |home| async move {
            let talk = |r: Reactor, to: Reactor| {
                let (log, mut random) = (all.clone(), Random::new(r.index() as u64));
                async move {
                    for i in 0..50 {
                        assert!(r.handle().is_current());
                        log.borrow_mut().push((r.index(), r.rdtsc()));
                        match i % 5 {
                            0 => r.yield_now().await,
                            1 => assert_eq!(to.handle().call(|r| r.index()).await, Ok(to.index())),
                            _ => r.sleep(Duration::from_nanos(random.below(3000))).await,
                        }
                    }
                }
            };
            let there = far.spawn(talk(far.clone(), home.clone()));
            talk(home.clone(), far.clone()).await;
            assert!(there.await.is_ok());
        });
        log.take()
    }

    #[test]
    fn two_reactors_take_turns_in_an_order_that_the_seed_decides_and_time_never_goes_back() {
        let all = said(7);
        assert_eq!(all, said(7), "a seed always does the same");
        assert!((8..20).any(|seed| said(seed) != all));
        assert!(all.windows(2).all(|w| w[0].1 <= w[1].1));
        let changes = all.windows(2).filter(|w| w[0].0 != w[1].0).count();
        assert!(all.len() == 100 && (10..100).contains(&changes), "{changes} changes");
    }

    #[test]
    #[should_panic(expected = "nothing is in flight and no timer is set")]
    fn reactors_that_all_wait_for_ever_are_told() {
        let mut sim = Sim::with_cores(1, Settings::default(), 2);
        sim.block_on(|_| std::future::pending::<()>());
    }

    #[test]
    fn whoever_keeps_something_by_thread_is_told_whose_turn_it_is() {
        let mut sim = Sim::with_cores(1, Settings::default(), 2);
        let at = Rc::new(RefCell::new(0));
        let told = at.clone();
        sim.on_switch(move |from, to| assert_eq!(told.replace(to), from));
        let there = at.clone();
        sim.on_core(1, |r| assert_eq!((r.index(), *there.borrow()), (1, 1)));
        let far = sim.peer(1).clone();
        sim.block_on(move |home| async move {
            let there = at.clone();
            let on = move |index| move |_: &Reactor| index == *there.borrow();
            for _ in 0..20 {
                assert_eq!(*at.borrow(), 0);
                let on = on.clone();
                let r = far.clone();
                assert!(far.spawn(async move { on(1)(&r) }).await.unwrap());
                home.yield_now().await;
            }
        });
    }
}
