//! What the simulated members of one run share: power, chance, and what was in flight when power failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_reactor::sim::Random;

use super::image::Image;
use super::script::Comes;

/// How a member behaves at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Every request fails.
    pub gone: bool,
    /// Requests take a hundred times as long.
    pub slow: bool,
    /// So many of a thousand requests hang: they end seconds later, if anything does.
    pub hangs: u32,
}

pub(super) struct Member {
    pub(super) image: Image,
    /// What it had once.
    older: Option<Image>,
    pub(super) health: Health,
}

/// Names that the moment of a crash may have.
pub type Windows = fn() -> Vec<&'static str>;

pub(super) struct State {
    pub(super) random: Random,
    pub(super) members: Vec<Member>,
    /// Devices end requests that hang when they are told to.
    pub(super) aborts: bool,
    /// Devices of an earlier life are dead.
    pub(super) life: u64,
    pub(super) powered: bool,
    /// Requests of members submitted and completed so far.
    steps: u64,
    crash_at: Option<u64>,
    windows: Windows,
    /// What was going on at the crash.
    crashed_in: Vec<&'static str>,
}

impl State {
    /// Something happens on a member: power may fail before it has.
    pub(super) fn step(&mut self) {
        self.steps += 1;
        if self.powered && self.crash_at.is_some_and(|at| self.steps >= at) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.crashed_in = (self.windows)();
        self.powered = false;
        self.crash_at = None;
        let State { members, random, .. } = self;
        members.iter_mut().for_each(|m| m.image.crash(random));
    }
}

/// The members of one run. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

impl World {
    /// Members with these images. `windows` names what is going on whenever power fails.
    pub fn new(seed: u64, images: Vec<Image>, windows: Windows) -> World {
        let members =
            images.into_iter().map(|image| Member { image, older: None, health: Health::default() }).collect();
        let mut random = Random::new(seed);
        World(Arc::new(Mutex::new(State {
            aborts: random.below(2) == 0,
            random,
            members,
            life: 0,
            powered: false,
            steps: 0,
            crash_at: None,
            windows,
            crashed_in: Vec::new(),
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Members.
    pub fn members(&self) -> usize {
        self.state().members.len()
    }

    /// Turns power on. Devices of earlier lives stay dead. Returns the number of the life.
    pub fn power_on(&self) -> u64 {
        let mut s = self.state();
        (s.powered, s.crashed_in) = (true, Vec::new());
        s.life += 1;
        s.life
    }

    /// Power fails now, unless it has: every image keeps what a crash leaves.
    pub fn cut(&self) {
        let mut s = self.state();
        if s.powered {
            s.cut();
        }
    }

    /// Power fails when so many more requests have been submitted to or completed by members; `None`: it does not.
    pub fn crash_in(&self, steps: Option<u64>) {
        let mut s = self.state();
        s.crash_at = steps.map(|n| s.steps + n.max(1));
    }

    /// Requests submitted to and completed by members so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Number of the life.
    pub fn life(&self) -> u64 {
        self.state().life
    }

    /// True while power is on.
    pub fn powered(&self) -> bool {
        self.state().powered
    }

    /// What was going on when power failed.
    pub fn crashed_in(&self) -> Vec<&'static str> {
        self.state().crashed_in.clone()
    }

    /// How member `i` behaves.
    pub fn health(&self, i: usize) -> Health {
        self.state().members[i].health
    }

    /// Changes how member `i` behaves, for requests from now on.
    pub fn set_health(&self, i: usize, health: Health) {
        self.state().members[i].health = health;
    }

    /// The image of member `i`, to look at or to change while nothing is in flight.
    pub fn image<R>(&self, i: usize, f: impl FnOnce(&mut Image) -> R) -> R {
        f(&mut self.state().members[i].image)
    }

    /// Remembers what a few members have now. Power is off.
    pub fn remember(&self) {
        let mut s = self.state();
        let State { members, random, .. } = &mut *s;
        for m in members.iter_mut().filter(|_| random.chance(100)) {
            m.older = Some(m.image.clone());
        }
    }

    /// Member `i`, which nobody uses, is in order again, and has what `comes` says.
    pub fn bring(&self, i: usize, comes: Comes) {
        let mut s = self.state();
        let m = &mut s.members[i];
        m.health = Health::default();
        match (comes, &m.older) {
            (Comes::AsItWas, _) | (Comes::Older, None) => {}
            (Comes::Older, Some(older)) => m.image = older.clone(),
            (Comes::Blank | Comes::Foreign, _) => m.image = m.image.blank(),
        }
    }

    /// Chance of the same seed.
    pub fn below(&self, n: u64) -> u64 {
        self.state().random.below(n)
    }
}
