//! Scrub: every stripe that holds data is read whole and its parity checked, one after the other, while hosts go on.
//!
//! [`check`] is what is done with one stripe, [`locate`] finds which strips are wrong.

mod check;
pub(super) mod locate;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::check::Found;
use super::engine::Engine;
use super::event::Event;
use super::flush::Offline;
use super::shared::Shared;
use super::start::engine_here;
use crate::registry::BdevError;

/// Mismatches of one scrub that are told one by one.
const TOLD: u64 = 16;
/// Longest sleep: how late a scrub may notice that it is to stop.
const NAP: Duration = Duration::from_millis(20);

/// What can be chosen of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Stripes that are checked in a second, at most; 0: no limit.
    pub stripes_per_second: u32,
}

impl Default for ScrubOptions {
    fn default() -> ScrubOptions {
        ScrubOptions { stripes_per_second: 100 }
    }
}

/// Where a scrub is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// There was none since the array was started.
    #[default]
    None,
    /// Under way.
    Running,
    /// It looked at every stripe.
    Finished,
    /// It was stopped, or the array went offline or was stopped.
    Stopped,
}

impl ScrubState {
    /// The name by which clients know it.
    pub fn name(self) -> &'static str {
        match self {
            ScrubState::None => "none",
            ScrubState::Running => "running",
            ScrubState::Finished => "finished",
            ScrubState::Stopped => "stopped",
        }
    }
}

/// How far a scrub is, or how the last one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Where it is.
    pub state: ScrubState,
    /// Stripes that it has passed, those without data included.
    pub stripes_done: u64,
    /// Stripes of the array.
    pub stripes_total: u64,
    /// Stripes that were read and checked.
    pub checked: u64,
    /// Stripes of these that had no redundancy left to check with: it was only seen that they can be read.
    pub unchecked: u64,
    /// Stripes whose strips did not fit together.
    pub mismatches: u64,
    /// Strips that were found wrong and rewritten.
    pub repaired: u64,
    /// Stripes of the mismatches that were left as they were: which strips are wrong cannot be said.
    pub ambiguous: u64,
    /// Strips with blocks that could not be read and were rewritten.
    pub healed: u64,
    /// Stripes with blocks that could not be read on more members than there is redundancy.
    pub unreadable: u64,
    /// When the last scrub that passed every stripe ended.
    pub last_finished: Option<SystemTime>,
}

/// What all cores see of an array's scrub.
#[derive(Default)]
pub(super) struct Board {
    progress: Mutex<ScrubProgress>,
    stop: AtomicBool,
    rate: AtomicU32,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, ScrubProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> ScrubProgress {
        *self.lock()
    }

    /// Asks the scrub to end. False: there is none.
    pub(super) fn stop(&self) -> bool {
        self.stop.store(true, Ordering::Release);
        self.lock().state == ScrubState::Running
    }

    fn end(&self, state: ScrubState) {
        let mut p = self.lock();
        p.state = state;
        if state == ScrubState::Finished {
            p.stripes_done = p.stripes_total;
            p.last_finished = Some(SystemTime::now());
        }
    }
}

/// Starts a scrub on the array's home core.
pub(super) fn start(shared: &Arc<Shared>, options: ScrubOptions) -> Result<(), BdevError> {
    let busy = |why| Err(BdevError::Busy { name: shared.name.clone(), why });
    if shared.is_offline() {
        return busy("too few of its members are left");
    }
    {
        let mut p = shared.scrub.lock();
        if p.state == ScrubState::Running {
            return busy("it is being scrubbed already");
        }
        let (total, last) = (shared.layout.stripes, p.last_finished);
        *p = ScrubProgress {
            state: ScrubState::Running,
            stripes_total: total,
            last_finished: last,
            ..ScrubProgress::default()
        };
        shared.scrub.stop.store(false, Ordering::Release);
        shared.scrub.rate.store(options.stripes_per_second, Ordering::Release);
    }
    let shared = shared.clone();
    let home = shared.home.clone();
    home.send(move |r| match engine_here(shared.id) {
        Some(engine) => drop(r.spawn(engine.scrub())),
        None => shared.scrub.end(ScrubState::Stopped),
    });
    Ok(())
}

impl Engine {
    /// Stops the scrub, and waits until it has let everything go.
    pub(super) async fn scrub_ended(&self) {
        self.shared.scrub.stop();
        while self.shared.scrub.progress().state == ScrubState::Running {
            self.core.reactor().sleep(Duration::from_millis(1)).await;
        }
    }

    async fn scrub(self: Rc<Self>) {
        self.tell(Event::ScrubStarted);
        let outcome = self.scrub_all().await;
        let repaired = {
            let p = self.shared.scrub.lock();
            p.repaired + p.healed > 0
        };
        // What was repaired is to stay so.
        let durable = !repaired || !self.needs_rounds() || self.round().await.is_ok();
        let (state, event) = match outcome {
            Ok(true) if durable => (ScrubState::Finished, Event::ScrubFinished),
            _ => (ScrubState::Stopped, Event::ScrubStopped),
        };
        let p = self.shared.scrub.progress();
        tracing::info!(
            "array '{}': scrub {}: {} stripes checked, {} with wrong strips, {} strips rewritten, {} stripes ambiguous, {} unreadable",
            self.shared.name,
            state.name(),
            p.checked,
            p.mismatches,
            p.repaired + p.healed,
            p.ambiguous,
            p.unreadable
        );
        self.tell(event);
        self.shared.scrub.end(state);
    }

    /// True: every stripe was passed. False: it was stopped.
    async fn scrub_all(self: &Rc<Self>) -> Result<bool, Offline> {
        let board = &self.shared.scrub;
        let stopped = || board.stop.load(Ordering::Acquire);
        let r = self.core.reactor();
        let (mut at, mut due) = (0, r.now());
        while at < self.shared.layout.stripes {
            if stopped() {
                return Ok(false);
            }
            match self.shared.next_mapped(at) {
                Err(next) => {
                    at = next;
                    board.lock().stripes_done = at;
                    r.yield_now().await;
                    continue;
                }
                Ok(stripe) => at = stripe,
            }
            let found = self.check_stripe(at).await?;
            self.note(at, found);
            at += 1;
            let rate = board.rate.load(Ordering::Acquire);
            if rate == 0 {
                r.yield_now().await;
                continue;
            }
            // From when it was due, so that the rate holds; but what was missed is not made up for.
            due = (due + r.ticks(Duration::from_secs(1) / rate)).max(r.now());
            while !stopped() && r.now() < due {
                let left = Duration::from_nanos(longshore_reactor::nanos(due - r.now())).max(Duration::from_micros(1));
                r.sleep(left.min(NAP)).await;
            }
        }
        Ok(true)
    }

    fn note(&self, stripe: u64, found: Found) {
        let c = &self.shared.counters;
        let mismatches = {
            let mut p = self.shared.scrub.lock();
            p.stripes_done = stripe + 1;
            p.checked += 1;
            p.unchecked += u64::from(found.unchecked);
            p.unreadable += u64::from(found.unreadable);
            p.healed += u64::from(found.healed);
            p.repaired += u64::from(found.repaired);
            p.ambiguous += u64::from(found.ambiguous);
            p.mismatches += u64::from(found.mismatch);
            p.mismatches
        };
        c.healed_reads.add(u64::from(found.healed));
        c.scrub_repaired.add(u64::from(found.repaired));
        c.scrub_ambiguous.add(u64::from(found.ambiguous));
        if found.mismatch && mismatches <= TOLD {
            let name = &self.shared.name;
            if found.ambiguous {
                tracing::error!(
                    "array '{name}': stripe {stripe}: its strips do not fit together, and it cannot be said which are wrong; nothing was changed"
                );
            } else {
                tracing::warn!(
                    "array '{name}': stripe {stripe}: {} wrong strips were rewritten from the others",
                    found.repaired
                );
            }
            self.tell(Event::ScrubMismatch { stripe, repaired: found.repaired });
        }
    }
}
