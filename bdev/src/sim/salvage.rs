//! Devices that are told to start with fewer members than they start with by themselves, and what may be expected of them.
//!
//! Who is lost is known, so that what has to be there after a salvage is known too:
//!
//! * If as many members are taken that lack nothing as are needed to read everything, nothing may be missing: the oracle expects what it expects
//!   after any crash.
//! * If members are taken that lack something, all blocks may have anything, once, in stripes that such a member lacks a write of; but those do not that lie on a
//!   member which lacks nothing, unless the stripe was zeroed or unmapped since the last start. What a member lacks is at most what was written since the
//!   device was started with it whole: [`Ledger`].
//! * Either way what is read first is what is there from then on, whoever is lost later.
//!
//! A salvage is repeated with the same members if power fails before the device has started: until then those who are absent may come back as if
//! nothing had been, or not, and nobody knows.

use longshore_reactor::sim::Random;

use super::budget::Budget;
use super::oracle::Oracle;
use super::run::Stack;
use super::script::{Life, Shape};
use super::world::World;

/// What a device does with members that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Starts by itself; with these, who lack nothing as far as it can tell.
    Starts(Vec<usize>),
    /// Does not start by itself, and is salvaged with these.
    Salvages(Vec<usize>),
    /// Does not start at all.
    Refuses(String),
}

/// Who is there in a life that begins with too few members, or may.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) absent: Vec<usize>,
    /// The members with which the device goes on.
    taken: Vec<usize>,
    /// It is told to.
    pub(super) salvage: bool,
    /// Members among those taken lack something.
    pub(super) lossy: bool,
    /// Those who lack nothing.
    kept: Vec<usize>,
}

/// What members may lack.
pub(super) struct Ledger {
    stripe: u64,
    members: usize,
    /// By member, stripes that were written since the device was started with it whole.
    lacks: Vec<Vec<bool>>,
    /// Stripes ever written.
    ever: Vec<bool>,
    /// Stripes that were zeroed or unmapped since the last start. That what was recorded of them before is void may be known to those only who take part in
    /// later writes, and these may be away.
    cleared: Vec<bool>,
    /// What has to be repeated.
    pub(super) pinned: Option<Plan>,
}

impl Ledger {
    pub(super) fn new(shape: &Shape) -> Ledger {
        let stripes = vec![false; shape.blocks.div_ceil(shape.stripe.max(1)) as usize];
        Ledger {
            stripe: shape.stripe.max(1),
            members: shape.members,
            lacks: vec![stripes.clone(); shape.members],
            cleared: stripes.clone(),
            ever: stripes,
            pinned: None,
        }
    }

    /// The device was started with all but those lost, and recovered.
    pub(super) fn started(&mut self, budget: &Budget) {
        (0..self.members).filter(|m| !budget.lost().contains(m)).for_each(|m| self.lacks[m].fill(false));
        self.cleared.fill(false);
    }

    /// A life has ended.
    pub(super) fn ended(&mut self, life: &Life, oracle: &mut Oracle) {
        for block in oracle.take_touched() {
            let stripe = (block / self.stripe) as usize;
            self.ever[stripe] = true;
            self.lacks.iter_mut().for_each(|l| l[stripe] = true);
        }
        for (lba, n) in life.cleared() {
            (lba / self.stripe..=(lba + n - 1) / self.stripe).for_each(|s| self.cleared[s as usize] = true);
        }
        // Whatever they have, it is not what they had.
        life.returned().for_each(|m| self.lacks[m] = self.ever.clone());
    }

    /// Who is there, if the life begins with too few; and what follows for the oracle and the budget.
    pub(super) fn plan<S: Stack>(
        &mut self,
        life: &Life,
        stack: &S,
        world: &World,
        budget: &mut Budget,
        oracle: &mut Oracle,
    ) -> Result<Option<Plan>, String> {
        if let Some(plan) = &self.pinned {
            let present: Vec<usize> = (0..self.members).filter(|m| !plan.absent.contains(m)).collect();
            let salvage = match stack.outlook(world, &present) {
                Outlook::Starts(taken) if taken == plan.taken => false,
                Outlook::Salvages(taken) if taken == plan.taken => true,
                other => return Err(format!("the salvage with {:?} was cut short, and now: {other:?}", plan.taken)),
            };
            return Ok(Some(Plan { salvage, ..plan.clone() }));
        }
        let usable = |m: &usize| world.image(*m, |i| !i.is_damaged()) && stack.is_member(world, *m);
        let stale: Vec<usize> = budget.lost().iter().copied().filter(usable).collect();
        let whole: Vec<usize> = (0..self.members).filter(|m| !budget.lost().contains(m)).collect();
        let again = budget.needs_salvage();
        let (kept, present) = if again {
            let there = stale.into_iter().filter(|m| !life.absent.contains(m));
            (whole.clone(), there.chain(whole).collect::<Vec<_>>())
        } else {
            let Some(which) = life.salvage.filter(|_| budget.rotten().is_empty()) else { return Ok(None) };
            let Some(kept) = self.choose(&mut Random::new(which), whole, stale.len(), budget) else { return Ok(None) };
            (kept.clone(), kept.into_iter().chain(stale).collect())
        };
        let (taken, salvage) = match stack.outlook(world, &present) {
            Outlook::Starts(taken) => (taken, false),
            Outlook::Salvages(taken) => (taken, true),
            // What is stale may be too little, or of no use.
            Outlook::Refuses(_) if !again && kept.len() < budget.fewest(self.members) => return Ok(None),
            Outlook::Refuses(why) => return Err(format!("with members {present:?} it cannot be salvaged: {why}")),
        };
        let kept = self
            .in_place_of(kept, &taken)
            .map_err(|m| format!("of members {present:?}, {taken:?} are taken, and {m} is not, which lacks nothing"))?;
        let absent = (0..self.members).filter(|m| !present.contains(m)).collect();
        let lossy = salvage && kept.len() < budget.fewest(self.members);
        let plan = Plan { absent, taken, salvage, lossy, kept };
        if lossy {
            self.lose(&plan, stack, oracle);
        }
        if plan.salvage && !again {
            self.pinned = Some(plan.clone());
        }
        if plan.salvage {
            budget.salvage(self.members, &plan.taken);
        } else {
            budget.starts_without(&plan.absent);
        }
        Ok(Some(plan))
    }

    /// Those who lack nothing, as far as they are taken. Two starts that power cut short each left its own word on some member, of equal worth: who was away
    /// in the second may be taken for one that is not, which it does not lack more than.
    fn in_place_of(&self, kept: Vec<usize>, taken: &[usize]) -> Result<Vec<usize>, usize> {
        let (mut there, missed): (Vec<_>, Vec<_>) = kept.into_iter().partition(|m| taken.contains(m));
        for m in missed {
            let no_more = |t: usize| self.lacks[t].iter().zip(&self.lacks[m]).all(|(t, m)| !t || *m);
            let instead = taken.iter().copied().find(|&t| !there.contains(&t) && no_more(t)).ok_or(m)?;
            there.push(instead);
        }
        Ok(there)
    }

    /// Those of the members that are whole who are there: too few for the device to start by itself.
    fn choose(&self, random: &mut Random, mut whole: Vec<usize>, stale: usize, budget: &Budget) -> Option<Vec<usize>> {
        let fewest = budget.fewest(self.members);
        let lossless = whole.len() > fewest && fewest < self.members - budget.tolerates();
        let least = fewest.saturating_sub(stale).max(1);
        let n = match (lossless, least < fewest && whole.len() >= fewest) {
            (true, true) if random.below(2) == 0 => fewest,
            (true, false) => fewest,
            (_, true) => least + random.below((fewest - least) as u64) as usize,
            (false, false) => return None,
        };
        while whole.len() > n {
            whole.swap_remove(random.below(whole.len() as u64) as usize);
        }
        Some(whole)
    }

    /// What cannot be known any more.
    fn lose<S: Stack>(&mut self, plan: &Plan, stack: &S, oracle: &mut Oracle) {
        let kept = &plan.kept;
        let mut unknown = vec![false; self.ever.len()];
        for &m in plan.taken.iter().filter(|m| !kept.contains(m)) {
            unknown.iter_mut().zip(&self.lacks[m]).for_each(|(u, l)| *u |= l);
        }
        let (per, blocks) = (self.stripe, oracle.blocks());
        let may_be_old =
            |b: u64| self.cleared[(b / per) as usize] || stack.holder(b).is_none_or(|m| !kept.contains(&m));
        let gone = |b: &u64| unknown[(b / per) as usize] && may_be_old(*b);
        oracle.give_up((0..blocks).filter(gone));
        for m in 0..self.members {
            // To those who are away, what the stripes are from now on is unknown as well.
            if !plan.taken.contains(&m) {
                self.lacks[m].iter_mut().zip(&unknown).for_each(|(l, u)| *l |= u);
            }
        }
    }
}
